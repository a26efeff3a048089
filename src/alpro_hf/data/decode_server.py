"""TODO docstring."""

import base64
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

MAX_HEADER = 64 * 1024**2  # bytes of JSON that a process may send at once: times and numbers of a million frames


_MODEL = "alpro_hf_model"  # name of the package `alpro_hf/model` in this process


class _WorkerDiedError(Exception):
    """Nothing more comes from the process."""


def _send(stream: IO[bytes], message: dict[str, Any], payload: Any = b"") -> None:
    header = json.dumps(message).encode()
    stream.write(len(header).to_bytes(8, "big") + header)
    stream.write(payload)
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, Any]:
    size = int.from_bytes(_exactly(stream, 8), "big")
    if size > MAX_HEADER:
        raise _WorkerDiedError
    try:
        return json.loads(_exactly(stream, size))
    except ValueError as error:  # it writes over its own memory
        raise _WorkerDiedError from error


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _WorkerDiedError
    return data


def _serve(max_memory: int) -> None:
    decoding = _load_decoding()
    _bound(max_memory)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    answers = sys.stdout.buffer
    _send(answers, {"ready": True})
    while True:
        request = requests.get()
        source: Any = request["data"] if "data" in request else _path(request["path"])
        _set_alarm(request["deadline"])
        try:
            _answer(decoding, request, source, requests, answers)
        except decoding.VideoDecodeError as error:
            _send(answers, {"error": type(error).__name__, "problem": error.problem, "advice": error.advice})
        except MemoryError:
            problem = f"decoding it takes more than {max_memory:,} bytes of memory"
            advice = "Use a smaller video, or allow max_memory=..."
            _send(answers, {"error": "VideoTooLargeError", "problem": problem, "advice": advice})
        except OSError as error:
            _send(answers, {"error": error.strerror or str(error), "errno": error.errno or 0})
        _set_alarm(0)


def _listen(stream: IO[bytes], requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Passes on what the caller says, and ends this process when there is no caller any more, whatever the other
    thread is at: FFmpeg and waiting for a file let threads run."""
    try:
        while True:
            request = _receive(stream)
            if "size" in request:
                request["data"] = _exactly(stream, request["size"])
            requests.put(request)
    finally:  # also without memory for a request
        os._exit(1)


def _answer(
    decoding: ModuleType,
    request: dict[str, Any],
    source: Any,
    requests: "queue.SimpleQueue[dict[str, Any]]",
    answers: IO[bytes],
) -> None:
    limits = decoding.VideoLimits(**request["limits"])
    if request["do"] == "probe":
        info = decoding.probe(source, limits=limits, allow_url=request["allow_url"])
        return _send(answers, {"info": asdict(info)})

    chosen: dict[Any, list[int]] = {}

    def choose(info: Any) -> list[int]:
        if info not in chosen:  # a second try that finds as many frames needs no second question
            _send(answers, {"info": asdict(info)})
            chosen[info] = requests.get()["indices"]
        return list(chosen[info])

    height, width, allow_url, allow_truncated, sent, threads = (
        request[name] for name in ("height", "width", "allow_url", "allow_truncated", "table", "threads")
    )
    kept = decoding.FrameTable.from_bytes(base64.b64decode(sent)) if sent else None
    pixels, indices, timestamps, info, table = decoding.read(
        source, choose, height, width, limits, allow_url, allow_truncated, kept, threads
    )
    about = {
        "shape": pixels.shape,
        "indices": indices,
        "timestamps": timestamps,
        "info": asdict(info),
        "table": _sent(table),
    }
    _send(answers, about, np.ascontiguousarray(pixels))


def _sent(table: "FrameTable | None") -> str | None:
    return base64.b64encode(table.to_bytes()).decode() if table is not None and not table.counted else None


def _path(sent: str) -> str:
    return os.fsdecode(sent.encode("latin-1"))


def _load_decoding() -> ModuleType:
    """`alpro_hf.model.decoding`, whose folder is a package by itself, without `alpro_hf` and so without torch."""
    folder = Path(__file__).parents[1] / "model"
    spec = importlib.util.spec_from_file_location(
        _MODEL, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[_MODEL] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_MODEL}.decoding")


def _bound(max_memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if max_memory:
        resource.setrlimit(resource.RLIMIT_DATA, (max_memory, max_memory))


def _set_alarm(deadline: float) -> None:
    """Ends this process a little after the caller should have, for a caller that cannot."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(deadline) + 5 if deadline else 0)
