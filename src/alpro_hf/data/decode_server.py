"""The process that decodes for `IsolatedDecoder`, and the messages that both sides exchange.

This file is run as a script, by its path. It imports numpy, PyAV and the folder `model/`, but neither the package
`alpro_hf` nor torch: importing those takes longer than decoding most clips.

A message is a length (8 bytes, big-endian), that many bytes of JSON, and raw bytes whose number the JSON tells. The
server says `{"ready": true}` first. Then the caller sends one request at a time:

| request | answer |
| --- | --- |
| `do`: "probe" | `info` |
| `do`: "comment" | `comment` |
| `do`: "decode" | `info`; the caller replies with `indices`; then `info`, `shape`, `indices`, `timestamps`, `table`, \
and the pixels, uint8 (T, height, width, 3) |

| `do`: "stream" | as "decode", but part by part; all but the last part have `more`, \
and the first one `info` |

A request names a file by `path`, or by `size` and the bytes of the file. An answer with `error` reports a failure.
The server asks for `indices` again if a second attempt finds another number of frames.
"""

import base64
import ctypes
import importlib
import importlib.util
import json
import math
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..model.decoding_table import FrameTable

MAX_HEADER = 64 * 1024**2  # bytes of JSON in one message; the times and numbers of a million frames fit
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_GRACE = 5  # seconds after the deadline before the server ends itself; the caller acts first if it can
_MODEL_PACKAGE = "alpro_hf_model"  # name of the folder `model/` as a package of this process


# ------------------------------------------------------------------------------------------- messages, for both sides


class ConnectionLostError(Exception):
    """The other side ended, or sent something that is not a message."""


def send_message(stream: IO[bytes], message: dict[str, Any], payload: Any = b"") -> None:
    """Send a message, and after it the bytes of `payload` (bytes or a contiguous array)."""
    header = json.dumps(message).encode()
    stream.write(len(header).to_bytes(8, "big") + header)
    stream.write(payload)
    stream.flush()


def receive_message(stream: IO[bytes]) -> dict[str, Any]:
    """Wait for a message. Bytes that follow it are left in the stream.

    Raises:
        ConnectionLostError: The stream ended, or its bytes are not a message.
    """
    # The sender may have overwritten its own memory: neither the length nor the JSON can be trusted.
    size = int.from_bytes(receive_bytes(stream, 8), "big")
    if size > MAX_HEADER:
        raise ConnectionLostError
    try:
        return json.loads(receive_bytes(stream, size))
    except ValueError as error:
        raise ConnectionLostError from error


def receive_bytes(stream: IO[bytes], size: int) -> bytes:
    """Wait for `size` bytes.

    Raises:
        ConnectionLostError: The stream ended before.
    """
    data = stream.read(size)
    if len(data) < size:
        raise ConnectionLostError
    return data


def table_to_text(table: "FrameTable | None") -> str | None:
    """A frame table as a string for JSON; None where there is none worth keeping."""
    return base64.b64encode(table.to_bytes()).decode() if table is not None and not table.counted else None


def path_to_text(path: str | os.PathLike[str]) -> str:
    """A path as a string for JSON; the name of a file need not be valid Unicode, so each byte becomes a character."""
    return os.fsencode(path).decode("latin-1")


# ---------------------------------------------------------------------------------------------------------- the server


def serve(max_memory: int) -> None:
    """Answer requests from standard input on standard output until the caller is gone.

    Args:
        max_memory: Bytes of data that this process may hold; 0 for no limit.
    """
    decoding = load_decoding()
    types = sys.modules[f"{_MODEL_PACKAGE}.decoding_types"]
    _limit_memory(max_memory)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    answers = sys.stdout.buffer
    send_message(answers, {"ready": True})
    while True:
        request = requests.get()
        _set_alarm(request["deadline"])
        try:
            _answer(decoding, request, requests, answers)
        except types.VideoDecodeError as error:
            refusal = {"error": type(error).__name__, "problem": error.problem, "advice": error.advice}
            send_message(answers, refusal)
        except MemoryError:
            problem = f"decoding it takes more than {max_memory:,} bytes of memory"
            advice = "Use a smaller video, or allow max_memory=..."
            send_message(answers, {"error": "VideoTooLargeError", "problem": problem, "advice": advice})
        except OSError as error:
            send_message(answers, {"error": error.strerror or str(error), "errno": error.errno or 0})
        _set_alarm(0)


def load_decoding() -> ModuleType:
    """Import `model/decoding.py` without `alpro_hf`, whose import registers classes and so imports torch.

    The folder `model/` imports nothing of `alpro_hf` outside of itself and its `__init__.py` is empty, so that it also
    works as a package of its own. Its modules import each other relatively; a search path would not do, because names
    such as `decoding` could then also be found elsewhere.
    """
    folder = Path(__file__).parents[1] / "model"
    spec = importlib.util.spec_from_file_location(
        _MODEL_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None  # None only for file extensions that Python does not know
    sys.modules[_MODEL_PACKAGE] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_MODEL_PACKAGE}.decoding")


def _listen(stream: IO[bytes], requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Queue the caller's messages; end this process when the caller is gone.

    A thread of its own notices the end of the stream even while the other one decodes or waits for a file: FFmpeg and
    system calls release the interpreter lock. `os._exit` because that thread cannot be interrupted.
    """
    try:
        while True:
            request = receive_message(stream)
            if "size" in request:
                request["data"] = receive_bytes(stream, request["size"])
            requests.put(request)
    finally:  # also when memory for a request runs out
        os._exit(1)


def _answer(
    decoding: ModuleType,
    request: dict[str, Any],
    requests: "queue.SimpleQueue[dict[str, Any]]",
    answers: IO[bytes],
) -> None:
    source = request["data"] if "data" in request else os.fsdecode(request["path"].encode("latin-1"))
    # the modules that `load_decoding` has imported
    types, tables = (sys.modules[f"{_MODEL_PACKAGE}.{name}"] for name in ("decoding_types", "decoding_table"))
    limits = types.VideoLimits(**request["limits"])
    if request["do"] == "probe":
        info = decoding.probe(source, limits=limits, allow_url=request["allow_url"])
        return send_message(answers, {"info": asdict(info)})
    if request["do"] == "comment":
        comment = decoding.read_comment(source, limits=limits, allow_url=request["allow_url"])
        return send_message(answers, {"comment": comment})

    chosen: dict[Any, list[int]] = {}
    latest: list[int] = []

    def choose(info: Any) -> list[int]:
        if info not in chosen:  # a second attempt that finds as many frames does not ask again
            send_message(answers, {"info": asdict(info)})
            chosen[info] = requests.get()["indices"]
        latest[:] = chosen[info]
        return list(latest)

    kept = request["table"]
    options = {
        **{name: request[name] for name in ("height", "width", "allow_url", "allow_truncated", "threads")},
        "limits": limits,
        "table": tables.FrameTable.from_bytes(base64.b64decode(kept)) if kept else None,
    }
    if request["do"] == "decode":
        return _send_frames(answers, *decoding.decode_to_array(source, choose, **options), more=False)
    for part in decoding.stream_arrays(source, choose, chunk=request["chunk"], **options):
        _set_alarm(0)  # the caller may take its time, and reads the next part when it wants it
        _send_frames(answers, *part, more=part[1][-1] != latest[-1], again=part[1][0] == latest[0])
        _set_alarm(request["deadline"])
    return None


def _send_frames(
    answers: IO[bytes],
    pixels: np.ndarray,
    indices: list[int],
    timestamps: list[float],
    info: Any,
    table: "FrameTable | None",
    *,
    more: bool,
    again: bool = True,
) -> None:
    about: dict[str, Any] = {
        "shape": pixels.shape,
        "indices": indices,
        "timestamps": timestamps,
        "table": table_to_text(table),
        "more": more,
    }
    if again:  # the times of all frames may be megabytes, which later parts need not repeat
        about["info"] = asdict(info)
    send_message(answers, about, np.ascontiguousarray(pixels))


def _limit_memory(max_memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash on a hostile file leaves no core dump behind
    if max_memory:
        resource.setrlimit(resource.RLIMIT_DATA, (max_memory, max_memory))


def end_with_caller(caller: int) -> None:
    """Let Linux kill this process when the thread that started it ends, however that comes about.

    The end of standard input says the same, but a process that was stopped (SIGSTOP) reads nothing and keeps its
    alarms. Other systems have no such order.

    Args:
        caller: Number of the process that started this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != caller:  # it ended before the order
        os._exit(1)


def _set_alarm(deadline: float) -> None:
    """Let the system end this process some seconds after the deadline, in case the caller cannot."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(deadline) + _GRACE if deadline else 0)


if __name__ == "__main__":
    end_with_caller(int(sys.argv[-2]))
    serve(int(sys.argv[-1]))


__all__ = [
    "ConnectionLostError",
    "end_with_caller",
    "load_decoding",
    "path_to_text",
    "receive_bytes",
    "receive_message",
    "send_message",
    "serve",
    "table_to_text",
]
