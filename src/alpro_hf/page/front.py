"""What the server answers before the page is there, and what others show of its address.

It imports neither gradio nor torch, so that the server answers while they are imported.
"""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

HEADLINE = "Search and question videos: ALPRO on the Hugging Face stack"
COVER = "cover.jpg"  # picture for whoever shows the address of the page
DESCRIPTION = "Search clips by what happens in them, ask questions about them, and look inside the model."
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
_CARD = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>\s*')

_WAITING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="2"><title>{headline}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 12vh auto; padding: 0 1rem; }}
li:last-child {{ font-weight: 700; }}
</style></head>
<body><h1>{headline}</h1><p>{description}</p>
<p role="status">The page is starting, and opens by itself:</p><ol>{steps}</ol></body></html>
"""


class Front:
    """ASGI application that shows what is being done until `app` is set, and hands everything to it afterwards.

    Meanwhile the status is 503, so that a program knows that it has to ask again.

    Attributes:
        app: The page.
        steps: What was done and is being done, in words.
    """

    def __init__(self) -> None:
        self.app: Any = None
        self.steps: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if self.app is not None:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        steps = "".join(f"<li>{escape(step)}</li>" for step in self.steps)
        page = _WAITING.format(headline=HEADLINE, description=DESCRIPTION, steps=steps).encode()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(page)).encode()),
            (b"retry-after", b"2"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else page})


class BrowserHeaders:
    """ASGI middleware that adds `HEADERS` to every response, also to refusals and errors of what is behind it.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


class SharedAddress:
    """ASGI middleware that puts title, description and picture of the page into its HTML, for previews of links.

    Args:
        app: The application behind it.
        title, description: Of the page.
        picture: Address of a picture, relative to the page.
    """

    def __init__(self, app: Any, title: str, description: str, picture: str) -> None:
        self.app, self.title, self.description, self.picture = app, title, description, picture

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path not in ("", "/"):
            return await self.app(scope, receive, send)
        start: dict[str, Any] = {}
        body = b""

        async def gather(message: dict[str, Any]) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _CARD.sub(b"", body).replace(b"</head>", self._tags(scope).encode() + b"</head>", 1)
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send(start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})

        # a compressed page could not be read here
        plain = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        return await self.app(scope | {"headers": plain}, receive, gather)

    def _tags(self, scope: Mapping[str, Any]) -> str:
        given = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme = given.get(b"x-forwarded-proto", scope.get("scheme", "http")).partition(",")[0].strip()
        host = given.get(b"x-forwarded-host", given.get(b"host", "")).partition(",")[0].strip()
        # pictures need a whole address
        base = f"{scheme}://{host}{scope.get('root_path', '')}/"
        facts = {
            "og:type": "website",
            "og:url": base,
            "og:title": self.title,
            "og:description": self.description,
            "og:image": base + self.picture,
            "twitter:card": "summary_large_image",
            "twitter:title": self.title,
            "twitter:description": self.description,
            "twitter:image": base + self.picture,
        }
        tags = "".join(
            f'<meta {"property" if name.startswith("og:") else "name"}="{name}" content="{escape(text)}" />\n'
            for name, text in facts.items()
        )
        return f'{tags}<meta name="description" content="{escape(self.description)}" />\n'
