"""Decoding in separate processes: a file that crashes or hangs FFmpeg costs its own row and nothing else.

`IsolatedDecoder.decode` takes the arguments of `decoding.decode` and returns the same. It passes each file to a
process that runs `decode_server.py` and can hold only a limited amount of memory. A process that takes too long is
killed, and the next file gets a new one. The answers are JSON and raw pixels, never pickles: a hostile file that took
control of a process cannot make the caller run code.

    with IsolatedDecoder(deadline=60) as decoder:
        frames = decoder.decode("clip.mp4", [0, 10, 20])
        pixels = processor.video_processor("clip.mp4", decoder=decoder.decode)
"""

import base64
import io
import math
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, NoReturn, cast

import numpy as np

from ..model.decoding import FrameChoice, choose_frames
from ..model.decoding_source import VideoSource, checked_file, copied, is_url, source_name
from ..model.decoding_table import FrameTable
from ..model.decoding_types import (
    DEFAULT_LIMITS,
    CorruptVideoError,
    DecoderFailedError,
    EmptyVideoError,
    Frames,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnsupportedVideoError,
    VideoDecodeError,
    VideoInfo,
    VideoLimits,
    VideoTooLargeError,
)
from . import decode_server
from .decode_server import ConnectionLostError, path_to_text, receive_message, send_message, table_to_text

SLOWEST_DISK = 20e6  # bytes a second
START_DEADLINE = 120.0  # seconds that a process may take to start

_Answer = tuple[dict[str, Any], np.ndarray]  # the message, and the pixels, uint8 (T, height, width, 3)

_ERRORS: dict[str, type[VideoDecodeError]] = {
    kind.__name__: kind
    for kind in (
        NotAVideoError,
        NoVideoStreamError,
        EmptyVideoError,
        TruncatedVideoError,
        CorruptVideoError,
        UnsupportedVideoError,
        VideoTooLargeError,
    )
}

# Runs a script without its folder or the working folder in the search path: a `numpy.py` next to a user's videos must
# not be imported. `python -P` does this from Python 3.11 on; `-I` would also ignore PYTHONPATH, which may be needed.
_START = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "import runpy; runpy.run_path(sys.argv[1], None, '__main__')"
)


class IsolatedDecoder:
    """`decode`, `decode_stream`, `probe` and `read_comment` of `decoding`, run in separate processes.

    Threads may share a decoder. So may processes: after a fork, or when unpickled, a decoder starts processes of its
    own. Processes start when they are first needed. They end with `close`, or when the process that started them ends,
    even if it is killed. On Linux that holds for a stopped process, too (SIGSTOP).

    Args:
        processes: How many files are decoded at a time; further callers wait.
        deadline: Seconds for one file, and with `stream` for one part of it. After that its process is killed.
        max_memory: Bytes of data that a process may hold, including those of FFmpeg; None for no limit. Only Linux
            enforces such limits.
        limits: Limits on the cost of every video, instead of those that each call gives; None: those.

    Raises (from `decode`, `stream`, `probe` and `comment`, in addition to the errors of `decoding`):
        DecoderFailedError: The process crashed, or was killed at the deadline.
        VideoTooLargeError: The file needs more than `max_memory`.
    """

    def __init__(
        self,
        *,
        processes: int = 2,
        deadline: float = 60.0,
        max_memory: int | None = 4 * 1024**3,
        limits: VideoLimits | None = None,
    ) -> None:
        if processes < 1 or deadline <= 0 or (max_memory is not None and max_memory < 1):
            raise ValueError(
                f"processes={processes} and max_memory={max_memory} must be at least 1, and deadline={deadline} "
                "above 0."
            )
        self.processes, self.deadline, self.max_memory, self.limits = processes, deadline, max_memory, limits
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._free = threading.BoundedSemaphore(self.processes)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()

    def __getstate__(self) -> dict[str, Any]:
        names = ("processes", "deadline", "max_memory", "limits")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> "IsolatedDecoder":
        return self  # processors copy their arguments, and nobody would close the processes of a copy

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes, including busy ones. A later call starts new ones."""
        if self._owner == os.getpid():
            with self._lock:
                for worker in self._busy:  # the thread that waits for the worker removes it
                    worker.process.kill()
                while self._idle:
                    self._idle.pop().kill()

    def decode(
        self,
        source: VideoSource,
        indices: FrameChoice = None,
        *,
        height: int | None = None,
        width: int | None = None,
        limits: VideoLimits | None = None,
        allow_url: bool = False,
        allow_truncated: bool = False,
        table: FrameTable | None = None,
        threads: int = 0,
    ) -> Frames:
        """Decode the frames `indices` of a video; see `decoding.decode`.

        A file object is read completely and its bytes are sent to the process.
        """
        request = _request("decode", height, width, allow_url, allow_truncated, table, threads)
        # `indices` may be a function, which stays here: the process sends what it found out and gets numbers back.
        answer, pixels = self._ask(source, request, limits, lambda info: choose_frames(indices, info))
        return _frames(answer, pixels, source)

    def stream(
        self,
        source: VideoSource,
        indices: FrameChoice = None,
        *,
        height: int | None = None,
        width: int | None = None,
        limits: VideoLimits | None = None,
        allow_url: bool = False,
        allow_truncated: bool = False,
        table: FrameTable | None = None,
        threads: int = 0,
        chunk: int = 32,
    ) -> Iterator[Frames]:
        """Decode frames of a long video in one pass, a few at a time; see `decoding.decode_stream`.

        The deadline counts anew for each part. Before the first one, the process reads the whole file once. For that
        it gets more time, the larger the file is.
        """
        request = _request("stream", height, width, allow_url, allow_truncated, table, threads) | {"chunk": chunk}
        answers = self._answers(source, request, limits, lambda info: choose_frames(indices, info))
        with closing(answers):
            about: dict[str, Any] = {}
            for answer, pixels in answers:
                about = answer.get("info") or about
                yield _frames(answer | {"info": about}, pixels, source)

    def probe(self, source: VideoSource, *, limits: VideoLimits | None = None, allow_url: bool = False) -> VideoInfo:
        """Describe a video without decoding it; see `decoding.probe`."""
        answer, _ = self._ask(source, {"do": "probe", "allow_url": allow_url}, limits)
        return _video_info(answer["info"], source)

    def comment(self, source: VideoSource, *, limits: VideoLimits | None = None, allow_url: bool = False) -> str:
        """The comment in the metadata of a video; see `decoding.read_comment`."""
        answer, _ = self._ask(source, {"do": "comment", "allow_url": allow_url}, limits)
        return str(answer.get("comment", ""))

    def _ask(
        self,
        source: VideoSource,
        request: dict[str, Any],
        limits: VideoLimits | None,
        choose: Callable[[VideoInfo], list[int]] | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        with closing(self._answers(source, request, limits, choose)) as answers:
            return next(answers)

    def _answers(
        self,
        source: VideoSource,
        request: dict[str, Any],
        limits: VideoLimits | None,
        choose: Callable[[VideoInfo], list[int]] | None,
    ) -> Generator[_Answer, None, None]:
        limits = self.limits or limits or DEFAULT_LIMITS
        data = b""
        if isinstance(source, str | os.PathLike):
            # absolute, because the process keeps the working folder in which it started
            request["path"] = path_to_text(source if is_url(source) else os.path.abspath(source))
        else:
            data = _content(source, limits)
            request["size"] = len(data)
        request["limits"] = asdict(limits)
        if self._owner != os.getpid():  # a forked process must not talk to the workers of its parent
            self._begin()
        with self._free:
            worker = self._take()
            try:
                yield from worker.answers(source, request, data, choose, self.deadline)
            finally:
                self._put_back(worker)

    def _take(self) -> "_Worker":
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is not None and worker.process.poll() is not None:  # something else has ended it
            worker.kill()
            worker = None
        worker = worker or _Worker(self.max_memory)
        with self._lock:
            self._busy.add(worker)
        return worker

    def _put_back(self, worker: "_Worker") -> None:
        with self._lock:
            self._busy.discard(worker)
            if worker.ready:
                self._idle.append(worker)
            else:
                worker.kill()


def _shown_exit(code: int) -> str:
    """How a process ended, in words: `code` is an exit code, or the negative number of a signal."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"{name}, possibly out of memory" if name == "SIGKILL" else name


class _Starter:
    """Starts processes, all in one thread that lives as long as this process.

    Linux ends a process when the thread that started it ends (`decode_server.end_with_caller`), and the threads that
    use a decoder come and go.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._runs = False

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with self._lock:
            if not self._runs:
                threading.Thread(target=self._run, name="alpro-decoder-starter", daemon=True).start()
                self._runs = True
        started: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((started, command))
        return started.result()

    def _run(self) -> None:
        while True:
            started, command = self._orders.get()
            try:
                # Not our stderr: a program that reads it to its end would wait for a process that hangs after we were
                # killed. A session of its own, so that Ctrl-C reaches only us, who then close the process.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                started.set_exception(error)
            else:
                started.set_result(process)
            del started  # while it waits, this thread keeps no process


_starter = _Starter()


def _start_anew() -> None:
    global _starter
    _starter = _Starter()


if hasattr(os, "register_at_fork"):  # a fork has none of the threads, and its locks may be held by them
    os.register_at_fork(after_in_child=_start_anew)


class _Worker:
    """The caller's end of one process."""

    def __init__(self, max_memory: int | None) -> None:
        self.ready = False
        # By its path: as a module of the package, it would import torch with the package.
        command = [sys.executable, "-c", _START, decode_server.__file__, str(os.getpid()), str(max_memory or 0)]
        self.process = _starter.start(command)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers_stream = self.process.stdin, self.process.stdout
        timer = threading.Timer(START_DEADLINE, self.process.kill)
        timer.start()
        try:
            receive_message(self.answers_stream)
        except ConnectionLostError as error:
            self.kill()
            raise RuntimeError(
                f"The process that decodes videos did not start ({_shown_exit(self.process.returncode)}). To see why, "
                f"run: {shlex.join(command)}"
            ) from error
        finally:
            timer.cancel()
        self.ready = True

    def kill(self) -> None:
        self.ready = False
        self.process.kill()
        self.process.wait()
        for stream in (self.requests, self.answers_stream):
            with suppress(OSError):  # closing flushes what the process never read
                stream.close()

    def answers(
        self,
        source: VideoSource,
        request: dict[str, Any],
        data: bytes,
        choose: Callable[[VideoInfo], list[int]] | None,
        deadline: float,
    ) -> Generator[_Answer, None, None]:
        """Send a request and wait for its answers, one or as many as the process announces."""
        # Ready again only after the last answer: whatever interrupts this, even KeyboardInterrupt or an error of
        # `choose`, would leave the rest of an answer in the pipe for the next request.
        self.ready = False
        first = deadline + _seconds_to_read(request)
        with self._within(first, source):
            send_message(self.requests, request | {"deadline": first}, data)
        limit = request["limits"]["max_decoded_size"]
        more, allowed = True, first
        while more:
            with self._within(allowed, source):
                answer = receive_message(self.answers_stream)
                while choose is not None and "info" in answer and "shape" not in answer:
                    chosen = choose(_video_info(answer["info"], source))
                    send_message(self.requests, {"indices": chosen})
                    answer = receive_message(self.answers_stream)
                if "error" in answer:
                    self.ready = True
                    _raise(answer, source)
                shape = answer.get("shape", (0, 0, 0, 3))
                # checked here too: a process that a file took over could claim any size
                if limit is not None and math.prod(shape) > limit:
                    raise ConnectionLostError
                pixels = np.empty(tuple(shape), np.uint8)
                if pixels.size and cast(io.BufferedReader, self.answers_stream).readinto(pixels.data) < pixels.nbytes:
                    raise ConnectionLostError
            more, allowed = bool(answer.get("more")), deadline
            self.ready = not more
            yield answer, pixels

    @contextmanager
    def _within(self, deadline: float, source: VideoSource) -> Iterator[None]:
        """Kill the process if the body takes longer, and say so if that, or its own end, breaks the connection."""
        expired = threading.Event()

        def end() -> None:
            expired.set()
            self.process.kill()

        timer = threading.Timer(deadline, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (ConnectionLostError, BrokenPipeError) as error:
            code = self.process.wait() if expired.is_set() else _exit_code(self.process)
            took_too_long = expired.is_set() or _shown_exit(code) == "SIGALRM"
            problem = (
                f"decoding it took longer than {deadline:g} seconds and was stopped"
                if took_too_long
                else f"decoding it ended the decoder ({_shown_exit(code)})"
            )
            advice = "Re-encode the file or leave it out"
            raise DecoderFailedError(
                source_name(source), problem, advice + ("; or allow it more time" if took_too_long else "")
            ) from error
        finally:
            timer.cancel()


def _request(
    what: str,
    height: int | None,
    width: int | None,
    allow_url: bool,
    allow_truncated: bool,
    table: FrameTable | None,
    threads: int,
) -> dict[str, Any]:
    return {
        "do": what,
        "height": height,
        "width": width,
        "allow_url": allow_url,
        "allow_truncated": allow_truncated,
        "table": table_to_text(table),
        "threads": threads,
    }


def _frames(answer: dict[str, Any], pixels: np.ndarray, source: VideoSource) -> Frames:
    import torch

    stack = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    try:
        found = FrameTable.from_bytes(base64.b64decode(answer["table"])) if answer["table"] else None
    except ValueError:  # The process may have overwritten its memory; the frames are usable without the table.
        found = None
    return Frames(stack, answer["indices"], answer["timestamps"], _video_info(answer["info"], source), found)


def _seconds_to_read(request: dict[str, Any]) -> float:
    """Seconds to allow for reading the whole file of a stream once."""
    if request["do"] != "stream":
        return 0.0
    try:
        size = (
            request["size"] if "size" in request else os.stat(os.fsdecode(request["path"].encode("latin-1"))).st_size
        )
    except OSError:  # a URL, or a file that is not there, which the process says
        size = 0
    return size / SLOWEST_DISK


def _content(source: VideoSource, limits: VideoLimits) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    file = checked_file(source)
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    with copied(file, source_name(source), limits) as copy:
        copy.seek(0)
        return copy.read()


def _video_info(fields: dict[str, Any], source: VideoSource) -> VideoInfo:
    """The process knows bytes and relative paths by other names than the caller does."""
    times = fields["frame_times"]
    return replace(
        VideoInfo(**fields), source=source_name(source), frame_times=None if times is None else tuple(times)
    )


def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process that is about to end. One that sent garbage and keeps running is killed."""
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _raise(answer: dict[str, Any], source: VideoSource) -> NoReturn:
    """Raise the error of the process as if it had occurred here."""
    name = source_name(source)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"], name)
    raise _ERRORS.get(str(answer["error"]), VideoDecodeError)(name, answer["problem"], answer["advice"])


__all__ = ["IsolatedDecoder"]
