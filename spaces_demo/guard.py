"""Protection of the demo on the web: a limit on the rate of uploads, and security headers for browsers."""

import time
from collections import deque
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

A_MINUTE = 60.0
KEPT = 600.0  # seconds until an upload is deleted; by then its visit has a copy
UPLOADS = 30  # per minute and address
ALL_UPLOADS = 120  # per minute
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    # the Hub shows a Space inside a frame
    (
        b"content-security-policy",
        b"object-src 'none'; frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    ),
)


class Guard:
    """ASGI middleware that refuses uploads above a rate, and adds `HEADERS` to every response.

    Args:
        app: The application behind it.
        folder: Folder in which gradio keeps uploads; `sweep` deletes old ones at every upload. None: keep them all.
        uploads, all_uploads: Uploads allowed per minute, of one address and of all together.
    """

    def __init__(
        self, app: Any, folder: Path | None = None, uploads: int = UPLOADS, all_uploads: int = ALL_UPLOADS
    ) -> None:
        self.folder = folder
        self.app, self.uploads, self.all_uploads = app, uploads, all_uploads
        self.times: deque[tuple[float, str]] = deque()  # time and address of the last minute's uploads, oldest first

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")
        if is_upload and not self._admits(_address(scope)):
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"60")]
            await send_with_headers({"type": "http.response.start", "status": 429, "headers": headers})
            said = b'{"detail": "Too many uploads in a minute. Wait a little and try again."}'
            await send({"type": "http.response.body", "body": said})
            return None
        if is_upload and self.folder is not None:
            sweep(self.folder)
        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:  # the visitor left in the middle of an upload; there is nobody to respond to
            return None

    def _admits(self, address: str) -> bool:
        now = time.monotonic()
        while self.times and self.times[0][0] < now - A_MINUTE:
            self.times.popleft()
        if len(self.times) >= self.all_uploads:
            return False
        if sum(address == other for _, other in self.times) >= self.uploads:
            return False
        self.times.append((now, address))
        return True


def sweep(folder: Path, age: float = KEPT) -> None:
    """Delete files below a folder that are older than `age` seconds.

    These are uploads, of which visits have copies, and the empty files that gradio creates with each of them.
    """
    for path in folder.rglob("*"):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime > age:
                path.unlink()
        except FileNotFoundError:  # gradio deleted it first
            continue


def _address(scope: dict[str, Any]) -> str:
    """The address of the client; behind a proxy, the one that the proxy appended to the header.

    A client can send such a header itself, so all entries before the last one may be made up.
    """
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
    return forwarded or (scope.get("client") or ("unknown",))[0]
