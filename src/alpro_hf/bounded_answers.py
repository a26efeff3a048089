"""Bounds for the answers of a Hub server: their bytes, their number and their time.

The client of the Hub reads an answer to its end, whatever its length, and waits for it as long as it takes. A server
that lies could fill the memory or the disk, or keep a command for ever. `bounded_answers` bounds the answers to our
own calls through hooks of the client's session; outside of it, the hooks do nothing.

Not bounded is what the Rust code of hf_xet transfers, and the head of an answer that arrives byte by byte. The parser
bounds the size of a head, and each of its bytes must come within `SILENCE`.
"""

import importlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError

ANSWER_BYTES = 1 << 26  # of one answer: a list of 1,000 files takes about 300 KB
ANSWERS = 10_000  # to one call of ours, besides those to uploaded files
SILENCE = 300.0  # seconds until the next bytes, where the client would wait for ever; a large commit takes minutes
PATIENCE, BYTES_A_SECOND = 300.0, 4096  # an answer may take so many seconds, and more if it is faster than this
LONGEST_WAIT = 900.0  # seconds that a server may ask to wait before a repetition; the Hub counts in windows of 300

# the library of the client's session: httpx, or a successor of the same interface
_http: Any = importlib.import_module(HTTPError.__module__.partition(".")[0])


class UnboundedAnswerError(HTTPError):
    """A server sends more, or longer, than an answer can be."""


@dataclass(eq=False)
class _Bounds:
    max_bytes: int
    max_answers: int
    patience: float
    answers: int = 0
    # threads from before the call; what starts later, such as those that upload files, may be the client's
    others: frozenset[threading.Thread] = field(default_factory=lambda: frozenset(threading.enumerate()))


_bounds: ContextVar[_Bounds | None] = ContextVar("_bounds", default=None)
_active: list[_Bounds] = []


@contextmanager
def bounded_answers(
    max_bytes: int = ANSWER_BYTES, max_answers: int = ANSWERS, patience: float = PATIENCE
) -> Iterator[None]:
    """Bound the answers to calls of `huggingface_hub` in this block.

    Bounded are all calls of this thread, and uploads (PUT, POST) of threads that start meanwhile. All other calls,
    such as downloads of the user in other threads, stay as they are.

    Args:
        max_bytes: Bytes of one answer, also after it is unpacked.
        max_answers: Number of answers, redirects and repetitions included.
        patience: Seconds that an answer may take; a longer one must have brought `BYTES_A_SECOND` since.

    Raises:
        UnboundedAnswerError: An answer exceeds a bound. As an `HTTPError`, it passes through the client unrepeated.
    """
    _install()
    bounds = _Bounds(max_bytes, max_answers, patience)
    token = _bounds.set(bounds)
    _active.append(bounds)
    try:
        yield
    finally:
        _active.remove(bounds)
        _bounds.reset(token)


def _install() -> None:
    """Add the hooks to the session of the client. They stay, because another thread may need them."""
    hooks = get_session().event_hooks
    for kind, hook in (("request", _before), ("response", _after)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)


def _bounds_of(request: Any) -> _Bounds | None:
    """The bounds of a request; None if it is not one of ours."""
    if (bounds := _bounds.get()) is not None:
        return bounds
    thread = threading.current_thread()
    # no honest answer to an upload is long, so it does no harm if it is the user's
    uploads = request.method in ("PUT", "POST")
    return next((one for one in reversed(_active) if uploads and thread not in one.others), None)


def _before(request: Any) -> None:
    if (bounds := _bounds_of(request)) is None:
        return
    bounds.answers += 1
    if bounds.answers > bounds.max_answers:
        raise UnboundedAnswerError(f"{_place(request)}: one call does not need more than {bounds.max_answers} answers")
    if request.headers.get("Accept-Encoding") != "identity":
        request.headers["Accept-Encoding"] = "gzip"  # which is unpacked below, within bounds
    waits = request.extensions.get("timeout", {})
    parts = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {part: SILENCE if waits.get(part) is None else waits[part] for part in parts}
    request.extensions.setdefault("trace", _keep_session)


def _keep_session(event: str, info: dict[str, Any]) -> None:
    """Report a failed connection as a late one: after the former, the client takes a new session without our hooks."""
    error = info.get("exception")
    if event.endswith(("connect_tcp.failed", "start_tls.failed")) and isinstance(error, Exception):
        raise _http.ConnectTimeout(str(error)) from error


def _after(response: Any) -> None:
    if (bounds := _bounds_of(response.request)) is None:
        return
    if response.status_code in (408, 429) or response.status_code >= 500:  # what the client repeats
        for wait in _waits(response.headers):
            if wait > LONGEST_WAIT:
                raise UnboundedAnswerError(f"{_place(response.request)} asks to wait for {wait:.0f} seconds")
    if response.request.method == "HEAD":
        return
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > bounds.max_bytes):
        raise _too_long(response, bounds)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise UnboundedAnswerError(f"{_place(response.request)} answers in the encoding {encoding:.20}, unasked")
    if encoding == "gzip":
        for name in ("Content-Encoding", "Content-Length"):
            response.headers.pop(name, None)
    response.stream = _BoundedStream(response, bounds, zlib.decompressobj(31) if encoding == "gzip" else None)


def _waits(headers: Any) -> Iterator[float]:
    """The seconds that the client would wait before it repeats a request."""
    told = [headers.get("Retry-After", "").strip()]
    told += [part.strip()[2:] for part in headers.get("RateLimit", "").split(";") if part.strip()[:2].lower() == "t="]
    yield from (float(seconds) for seconds in told if seconds.isascii() and seconds.isdigit())


def _too_long(response: Any, bounds: _Bounds) -> UnboundedAnswerError:
    return UnboundedAnswerError(f"{_place(response.request)} sends more than {bounds.max_bytes:,} bytes")


def _place(request: Any) -> str:
    return f"{request.method} {request.url.host}{request.url.path:.200}"


class _BoundedStream(_http.SyncByteStream):
    """The content of an answer, unpacked if it is packed; raises where it exceeds the bounds."""

    def __init__(self, response: Any, bounds: _Bounds, unpacker: Any) -> None:
        self.response, self.bounds, self.stream = response, bounds, response.stream
        self.unpack: Callable[[bytes], bytes] | None = None
        if unpacker is not None:
            self.unpack = lambda piece: unpacker.decompress(piece, bounds.max_bytes + 1)

    def __iter__(self) -> Iterator[bytes]:
        start, packed, sent = time.monotonic(), 0, 0
        for piece in self.stream:
            packed += len(piece)
            try:
                piece = piece if self.unpack is None else self.unpack(piece)
            except zlib.error as error:
                raise UnboundedAnswerError(f"{_place(self.response.request)} answers in damaged gzip") from error
            sent += len(piece)
            if max(packed, sent) > self.bounds.max_bytes:
                raise _too_long(self.response, self.bounds)
            took = time.monotonic() - start
            if took > self.bounds.patience + packed / BYTES_A_SECOND:
                raise UnboundedAnswerError(
                    f"{_place(self.response.request)} sent {packed:,} bytes in {took:.0f} seconds and no end"
                )
            yield piece

    def close(self) -> None:
        self.stream.close()


__all__ = ["ANSWERS", "ANSWER_BYTES", "UnboundedAnswerError", "bounded_answers"]
