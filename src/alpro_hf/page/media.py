"""Files that the page serves, each under a name that nobody can guess, and no other file of the machine.

A browser keeps what it was sent, so a clip is sent once. What takes long to make, such as the picture of a moment, is
made when a browser asks for it.
"""

import asyncio
import mimetypes
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, PlainTextResponse, Response

from ..data.spans import SpanError
from ..model.decoding_types import VideoDecodeError

PREFIX = "media/"  # of all addresses, which are relative to the page
_AN_HOUR = 3600  # seconds; names are new whenever the page starts


@dataclass
class _Served:
    path: Path
    kind: str
    make: Callable[[], bytes] | None = None
    allowed: Callable[[Path], bool] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Media:
    """What is served.

    Args:
        folder: Folder for files that are made on demand.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._served: dict[str, _Served] = {}

    def add(self, path: Path, allowed: Callable[[Path], bool] | None = None) -> str:
        """Serve a file; its address.

        Args:
            path: The file.
            allowed: Asked at each request whether the file may be served. None: it always may.
        """
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        return self._note(path.suffix, lambda _: _Served(path, kind, allowed=allowed))

    def add_made(self, make: Callable[[], bytes], suffix: str) -> str:
        """Serve what a function returns, which is called at the first request; the address.

        Args:
            make: May raise `VideoDecodeError`, `SpanError` or `OSError`; then there is no such file.
            suffix: Ending of its name, such as `.jpg`.
        """
        kind = mimetypes.guess_type(f"x{suffix}")[0] or "application/octet-stream"
        return self._note(suffix, lambda name: _Served(self.folder / name, kind, make))

    def _note(self, suffix: str, served: Callable[[str], _Served]) -> str:
        name = secrets.token_urlsafe(18) + suffix.lower()
        self._served[name] = served(name)
        return PREFIX + name

    def forget(self, addresses: Iterable[str]) -> None:
        """Serve these no longer, and delete what was made for them."""
        for address in addresses:
            served = self._served.pop(address.removeprefix(PREFIX), None)
            if served is not None and served.make is not None:
                served.path.unlink(missing_ok=True)

    def read(self, address: str) -> bytes:
        """The content behind an address, as a browser gets it.

        Raises:
            KeyError: There is none.
            VideoDecodeError, SpanError, OSError: It cannot be made or read.
        """
        return self._ready(self._served[address.removeprefix(PREFIX)]).path.read_bytes()

    def _ready(self, served: _Served) -> _Served:
        if served.make is not None:
            with served.lock:  # two browsers may ask for it at the same time
                if not served.path.exists():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    partial = served.path.with_suffix(".partial")
                    partial.write_bytes(served.make())
                    partial.replace(served.path)
        return served

    async def answer(self, name: str) -> Response:
        """The response to a request for a name; it answers requests for ranges, which browsers need to seek."""
        served = self._served.get(name)
        if served is None:
            return PlainTextResponse("There is no such clip here; it may have been removed.", status_code=404)
        try:
            await asyncio.to_thread(self._ready, served)
            if served.allowed is not None and not served.allowed(served.path):
                raise FileNotFoundError
            found = served.path.stat()
        except (VideoDecodeError, SpanError, OSError):
            return _gone()
        headers = {"cache-control": f"private, max-age={_AN_HOUR}, immutable"}
        return _FileOrGone(served.path, media_type=served.kind, headers=headers, stat_result=found)


class _FileOrGone(FileResponse):
    """A file that may be deleted before it is opened: then it is not found. The class of starlette raises an error."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start: list[Any] = []

        async def send_opened(message: Any) -> None:
            if message["type"] == "http.response.start":  # sent before the file is opened
                start.append(message)
                return
            while start:
                await send(start.pop())
            await send(message)

        try:
            await super().__call__(scope, receive, send_opened)
        except FileNotFoundError:
            if start:
                await _gone()(scope, receive, send)


def _gone() -> PlainTextResponse:
    return PlainTextResponse("This clip can no longer be read.", status_code=404)


class MediaRoute:
    """ASGI middleware that answers requests for `media/...`."""

    def __init__(self, app: Any, media: Media) -> None:
        self.app, self.media = app, media

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).lstrip("/")
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and path.startswith(PREFIX):
            response = await self.media.answer(path.removeprefix(PREFIX))
            return await response(scope, receive, send)
        return await self.app(scope, receive, send)
