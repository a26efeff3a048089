"""What stands between the demo and the web: how often one may upload, and headers that browsers heed."""

import time
from collections import deque
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

A_MINUTE = 60.0
KEPT = 600.0  # seconds that an upload may wait until its visit takes it over
UPLOADS = 30  # a minute, of one address
ALL_UPLOADS = 120  # a minute, of all addresses together
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    # a Space is shown in a frame of the Hub
    (
        b"content-security-policy",
        b"object-src 'none'; frame-ancestors 'self' https://huggingface.co https://*.hf.space",
    ),
)


class Guard:
    """ASGI middleware: turns away uploads that come too fast, with a sentence, and adds `HEADERS` to every answer.

    Args:
        app: What it guards.
        folder: Where gradio keeps uploads, until `sweep` takes them away.
        uploads, all_uploads: Allowed in a minute, of one address and of all.
    """

    def __init__(
        self, app: Any, folder: Path | None = None, uploads: int = UPLOADS, all_uploads: int = ALL_UPLOADS
    ) -> None:
        self.folder = folder
        self.app, self.uploads, self.all_uploads = app, uploads, all_uploads
        self.times: deque[tuple[float, str]] = deque()  # of the last minute, oldest first, with the address

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
        except ClientDisconnect:  # in the middle of an upload: nobody is left to tell
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
    """Remove files below a folder that are older than `age` seconds: uploads, of which visits have copies, and the
    empty files that gradio leaves with each."""
    for path in folder.rglob("*"):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime > age:
                path.unlink()
        except FileNotFoundError:  # gradio was faster
            continue


def _address(scope: dict[str, Any]) -> str:
    """Of the client; behind a proxy what the nearest one says, for all before it anyone can write."""
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
    return forwarded or (scope.get("client") or ("unknown",))[0]
