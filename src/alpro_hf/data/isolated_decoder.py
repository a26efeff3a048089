"""Decoding in processes that may die: a file that crashes or hangs FFmpeg costs its own row and nothing else.

`IsolatedDecoder.decode` takes and gives what `decoding.decode` does. Behind it stand processes that import FFmpeg and
numpy alone, take one file at a time, and are ended when one takes too long; the next file finds a fresh one. They can
hold only so much memory. What they answer is JSON and raw pixels, which is read as data.

    with IsolatedDecoder(deadline=60) as decoder:
        frames = decoder.decode("clip.mp4", [0, 10, 20])
        pixels = processor.video_processor("clip.mp4", decoder=decoder.decode)
"""

import base64
import io
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from . import decode_server
from .decode_server import (
    _receive,
    _send,
    _sent,
    _serve,
    _WorkerDiedError,
)

if TYPE_CHECKING:
    from ..model.decoding import FrameChoice
    from ..model.decoding_source import VideoSource
    from ..model.decoding_table import FrameTable
    from ..model.decoding_types import Frames, VideoInfo, VideoLimits

STARTING = 120.0  # seconds that a process may take to start

# nothing is imported from the working folder, nor from that of the file; `python -P` does this from 3.11 on
_START = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "import runpy; runpy.run_path(sys.argv[1], None, '__main__')"
)


# ------------------------------------------------------------------------------------------------- what both sides say


# --------------------------------------------------------------------------------------------------- the caller's side


class IsolatedDecoder:
    """`decode` and `probe` as in `decoding`, in processes of their own.

    Threads may share it, and processes too: one that was forked or got it by pickling starts processes of its own.
    They start when they are first needed and end with `close`, with the process that started them, or by force.

    Args:
        processes: How many files are decoded at a time; a further caller waits.
        deadline: Seconds for one file, after which its process is ended.
        max_memory: Bytes of data that a process may hold, FFmpeg's own included; None: no bound. Kept where the
            system keeps such bounds (Linux).

    Raises (from `decode` and `probe`, beside what those of `decoding` do):
        DecoderFailedError: The process crashed, or was ended at the deadline.
        VideoTooLargeError: The file needs more than `max_memory`.
    """

    def __init__(self, *, processes: int = 2, deadline: float = 60.0, max_memory: int | None = 4 * 1024**3) -> None:
        if processes < 1 or deadline <= 0 or (max_memory is not None and max_memory < 1):
            raise ValueError(
                f"processes={processes} and max_memory={max_memory} must be at least 1, and deadline={deadline} "
                "above 0."
            )
        self.processes, self.deadline, self.max_memory = processes, deadline, max_memory
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._free = threading.BoundedSemaphore(self.processes)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("processes", "deadline", "max_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __deepcopy__(self, memo: dict[int, Any]) -> "IsolatedDecoder":
        return self  # processors copy their arguments, and a copy would start processes that nobody ends

    def __enter__(self) -> "IsolatedDecoder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes at once, also those at work; a later call starts new ones."""
        if self._owner == os.getpid():
            with self._lock:
                for worker in self._busy:  # the thread that waits for it cleans up
                    worker.process.kill()
                while self._idle:
                    self._idle.pop().kill()

    def decode(
        self,
        source: "VideoSource",
        indices: "FrameChoice" = None,
        *,
        height: int | None = None,
        width: int | None = None,
        limits: "VideoLimits | None" = None,
        allow_url: bool = False,
        allow_truncated: bool = False,
        table: "FrameTable | None" = None,
        threads: int = 0,
    ) -> "Frames":
        """See `decoding.decode`. A file object is read to its end first."""
        import torch

        from ..model.decoding import choose_frames
        from ..model.decoding_table import FrameTable
        from ..model.decoding_types import Frames

        request: dict[str, Any] = {
            "do": "decode",
            "height": height,
            "width": width,
            "allow_url": allow_url,
            "allow_truncated": allow_truncated,
            "table": _sent(table),
            "threads": threads,
        }
        answer, pixels = self._ask(source, request, limits, lambda info: choose_frames(indices, info))
        info = _video_info(answer["info"], source)
        stack = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        try:
            found = FrameTable.from_bytes(base64.b64decode(answer["table"])) if answer["table"] else None
        except ValueError:  # the process writes over its own memory; a table is a help and not the result
            found = None
        return Frames(stack, answer["indices"], answer["timestamps"], info, found)

    def probe(
        self, source: "VideoSource", *, limits: "VideoLimits | None" = None, allow_url: bool = False
    ) -> "VideoInfo":
        """See `decoding.probe`."""
        answer, _ = self._ask(source, {"do": "probe", "allow_url": allow_url}, limits)
        return _video_info(answer["info"], source)

    def _ask(
        self,
        source: "VideoSource",
        request: dict[str, Any],
        limits: "VideoLimits | None",
        choose: Callable[["VideoInfo"], list[int]] | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        from ..model.decoding_types import DEFAULT_LIMITS

        limits = limits or DEFAULT_LIMITS
        if isinstance(source, str | os.PathLike):
            is_url = str(source).lower().startswith(("http://", "https://"))
            path = os.fspath(source) if is_url else os.path.abspath(source)
            request["path"], data = os.fsencode(path).decode("latin-1"), b""
        else:
            data = _content(source, limits)
            request["size"] = len(data)
        request["limits"] = asdict(limits)
        if self._owner != os.getpid():
            self._begin()
        with self._free:
            worker = self._take()
            try:
                return worker.ask(source, request, data, choose, self.deadline)
            finally:
                self._put_back(worker)

    def _take(self) -> "_Worker":
        with self._lock:
            worker = self._idle.pop() if self._idle else None
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


def _content(source: "VideoSource", limits: "VideoLimits") -> bytes:
    from ..model.decoding_source import checked_file, copied, source_name

    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    file = checked_file(source)
    if hasattr(file, "seekable") and file.seekable():
        file.seek(0)
    with copied(file, source_name(source), limits) as copy:
        copy.seek(0)
        return copy.read()


def _video_info(said: dict[str, Any], source: "VideoSource") -> "VideoInfo":
    from ..model.decoding_source import source_name
    from ..model.decoding_types import VideoInfo

    return replace(VideoInfo(**said), source=source_name(source))


class _Worker:
    """A process, seen from the one that started it."""

    def __init__(self, max_memory: int | None) -> None:
        self.ready = False
        # by its path: the package would bring torch along, which takes longer to import than most clips to decode
        command = [sys.executable, "-c", _START, decode_server.__file__, str(max_memory or 0)]
        # not our stderr: whoever reads it would wait for a process that hangs after we were killed
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.answers = self.process.stdin, self.process.stdout
        timer = threading.Timer(STARTING, self.process.kill)
        timer.start()
        try:
            _receive(self.answers)
        except _WorkerDiedError as error:
            self.kill()
            raise RuntimeError(
                f"The process that decodes videos did not start ({shown_exit(self.process.returncode)}): "
                f"{' '.join(command)}"
            ) from error
        finally:
            timer.cancel()
        self.ready = True

    def kill(self) -> None:
        self.ready = False
        self.process.kill()
        self.process.wait()
        for stream in (self.to, self.answers):
            with suppress(OSError):  # what it did not take is lost with it
                stream.close()

    def ask(
        self,
        source: "VideoSource",
        request: dict[str, Any],
        data: bytes,
        choose: Callable[["VideoInfo"], list[int]] | None,
        deadline: float,
    ) -> tuple[dict[str, Any], np.ndarray]:
        from ..model.decoding_source import source_name
        from ..model.decoding_types import DecoderFailedError

        expired = threading.Event()

        def end() -> None:
            expired.set()
            self.process.kill()

        self.ready = False  # until the answer is complete
        timer = threading.Timer(deadline, end)
        timer.daemon = True
        timer.start()
        try:
            _send(self.to, request | {"deadline": deadline}, data)
            answer = _receive(self.answers)
            while choose is not None and "info" in answer and "shape" not in answer:
                chosen = choose(_video_info(answer["info"], source))
                _send(self.to, {"indices": chosen})
                answer = _receive(self.answers)
            if "error" in answer:
                self.ready = True
                _raise(answer, source)
            shape, limit = answer.get("shape", (0, 0, 0, 3)), request["limits"]["max_decoded_size"]
            if limit is not None and math.prod(shape) > limit:
                raise _WorkerDiedError
            pixels = np.empty(tuple(shape), np.uint8)
            if pixels.size and cast(io.BufferedReader, self.answers).readinto(pixels.data) < pixels.nbytes:
                raise _WorkerDiedError
        except (_WorkerDiedError, BrokenPipeError) as error:
            code = self.process.wait() if expired.is_set() else _exit_code(self.process)
            took_too_long = expired.is_set() or code == -signal.SIGALRM
            problem = (
                f"decoding it took longer than {deadline:g} seconds and was ended"
                if took_too_long
                else f"decoding it ended the decoder ({shown_exit(code)})"
            )
            advice = "Re-encode the file or leave it out"
            raise DecoderFailedError(
                source_name(source), problem, advice + ("; or allow it more time" if took_too_long else "")
            ) from error
        finally:
            timer.cancel()
        self.ready = True
        return answer, pixels


def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    """Of a process that is ending, or says what makes no sense and is ended."""
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def shown_exit(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name


def _raise(answer: dict[str, Any], source: "VideoSource") -> NoReturn:
    """The error of the other side, as if it had happened here."""
    from ..model import decoding_types as video_info
    from ..model.decoding_source import source_name

    name = source_name(source)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"], name)
    kind = getattr(video_info, str(answer["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, video_info.VideoDecodeError)):
        kind = video_info.VideoDecodeError
    raise kind(name, answer["problem"], answer["advice"])


# -------------------------------------------------------------------------------------------------- the process's side


if __name__ == "__main__":
    _serve(int(sys.argv[-1]))


__all__ = ["IsolatedDecoder"]
