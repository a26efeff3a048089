"""Protection of the demo on the web: bounds and types of requests, limits on uploads."""

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..trust import printable
from ..untrusted_json import JsonBoundsError, parse_json

A_MINUTE = 60.0
KEPT = 600.0  # seconds until an upload is deleted; by then its visit has a copy
UPLOADS = 30  # files per minute and address
ALL_UPLOADS = 120  # files per minute
FILES = 8  # of a request
UPLOAD_BYTES = 161 << 20  # of a request of files: eight of the largest, and what stands between them
UPLOADED = 4 << 30  # bytes of all uploads that are kept
BODY_BYTES = 1 << 20  # of any other request
MAX_NAME, MAX_PATH = 64, 1024  # characters of a session or an event, and of a path: gradio remembers sessions
# Routes of gradio that take a POST: those that call a function by name, and all others that the page needs.
_CALL = re.compile(r"/(?:gradio_api/)?(?:call/v2|call|run|api)/([^/]+)/?")
_OTHER = re.compile(r"/(?:gradio_api/)?(?:upload|queue/join|cancel|reset)/?")
_NOT_FOUND = str(HTTPException(404)).encode()  # how a stream of gradio names an unknown event or session


class RefusedError(Exception):
    """A request is refused; the message is a sentence for people."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Function:
    """A function of the page.

    Args:
        name: Name in the API; None for the page's own.
        inputs: Name and kind of each value that it takes: `textbox`, `number`, `file`, or another of gradio's.
    """

    name: str | None
    inputs: Sequence[tuple[str, str]]


class Guard:
    """ASGI middleware that refuses requests beyond the bounds.

    Args:
        app: The application behind it.
        folder: Folder in which gradio keeps uploads; `sweep` deletes old ones at every upload. None: keep them all.
        uploads, all_uploads: Files allowed per minute, of one address and of all together.
        functions: The functions of the page by number, see `functions_of`. None: their values are not checked.
    """

    def __init__(
        self,
        app: Any,
        folder: Path | None = None,
        uploads: int = UPLOADS,
        all_uploads: int = ALL_UPLOADS,
        functions: Mapping[int, Function] | None = None,
    ) -> None:
        self.folder, self.functions = folder, functions
        self.app, self.uploads, self.all_uploads = app, uploads, all_uploads
        self.times: deque[tuple[float, str]] = deque()  # time and address of the last minute's files, oldest first

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False
        held: list[dict[str, Any]] = []

        # Gradio begins its answer before it looks for the event. So the beginning waits for the first piece, and a
        # piece that says "not found" waits for what follows: an exception, if it is meant.
        async def hold(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                held.append(message)
                return
            held.append(message)
            if len(held) == 2 and message.get("more_body") and _NOT_FOUND in message.get("body", b""):
                return
            started = True
            while held:
                await send(held.pop(0))

        async def refuse(status: int, said: str) -> None:
            held.clear()
            headers = [(b"content-type", b"application/json")]
            # what is left of the request is not read
            headers += [(b"connection", b"close"), *([(b"retry-after", b"60")] if status == 429 else [])]
            await hold({"type": "http.response.start", "status": status, "headers": headers})
            await hold({"type": "http.response.body", "body": json.dumps({"detail": said}).encode()})

        try:
            if len(scope["path"]) > MAX_PATH:
                raise RefusedError(414, f"The address has more than {MAX_PATH} characters.")
            if scope["method"] == "POST":
                receive = await self._checked(scope, receive)
            await self.app(scope, receive, hold)
        except ClientDisconnect:  # the visitor left in the middle of an upload; there is nobody to respond to
            return None
        except RefusedError as refused:
            if not started:
                await refuse(refused.status, refused.said)
        except OSError as error:
            if not _is_upload(scope):
                raise
            # the folder of uploads was emptied meanwhile, or is full; gradio may answer before it moves a file
            print(f"An upload was lost: {printable(error)}", file=sys.stderr, flush=True)
            if not started:
                await refuse(503, "The upload was lost on its way. Send it again.")
        except RuntimeError as error:  # starlette: an exception for a response that has already begun
            if not isinstance(error.__cause__, HTTPException):
                raise
            if started:
                await send({"type": "http.response.body"})
            else:
                await refuse(error.__cause__.status_code, "There is no such event or session here; it may have ended.")

    async def _checked(self, scope: dict[str, Any], receive: Any) -> Any:
        """The rest of a request, in place of `receive`; of a request that is no upload, all of it is read here.

        Raises:
            RefusedError: The request is beyond the bounds, or calls no function of the page.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        called = _CALL.fullmatch(path)
        if not called and not _OTHER.fullmatch(path):
            raise RefusedError(404, "There is no such address here.")
        if _is_upload(scope):
            return self._bounded_upload(scope, receive)
        body = await _body(scope, receive)
        if self.functions is not None:
            # under the name `predict`, the page calls what passes by the queue, by number
            name = called[1] if called and called[1] != "predict" else None
            _check_call(body, name, path, self.functions)
        sent = False

        async def again() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _bounded_upload(self, scope: dict[str, Any], receive: Any) -> Any:
        headers, address = Headers(scope=scope), _address(scope)
        kind, options = parse_options_header(headers.get("content-type"))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise RefusedError(400, "An upload is a form with files (multipart/form-data).")
        if self.folder is not None and sweep(self.folder) > UPLOADED:
            raise RefusedError(503, "There is no room for uploads now. Try again in ten minutes.")
        _check_length(headers, UPLOAD_BYTES)
        mark, tail, size, files = b"--" + boundary + b"\r", b"", 0, 0  # a part begins after it

        # Parts are counted before gradio sees them, because it writes each one to the disk as it comes.
        async def counted() -> dict[str, Any]:
            nonlocal tail, size, files
            message = await receive()
            data = message.get("body", b"")
            size += len(data)
            if size > UPLOAD_BYTES:
                raise _too_large(UPLOAD_BYTES)
            seen = tail + data  # a mark may lie in two pieces
            for _ in range(seen.count(mark)):
                files += 1
                if files > FILES:
                    raise RefusedError(413, f"More than {FILES} files in one request. Send fewer at a time.")
                if not self._admits(address):
                    raise RefusedError(429, "Too many uploads in a minute. Wait a little and try again.")
            tail = seen[-(len(mark) - 1) :]
            return message

        return counted

    def _admits(self, address: str) -> bool:
        """Count a file of an address, if it may send one more."""
        now = time.monotonic()
        while self.times and self.times[0][0] < now - A_MINUTE:
            self.times.popleft()
        if len(self.times) >= self.all_uploads:
            return False
        if sum(address == other for _, other in self.times) >= self.uploads:
            return False
        self.times.append((now, address))
        return True


def functions_of(config: Mapping[str, Any], api: Mapping[str, Any]) -> dict[int, Function]:
    """The functions of a page by number, from what `gradio.Blocks` returns of `get_config_file` and `get_api_info`."""
    components = {one["id"]: one for one in config["components"]}
    found = {}
    for function in config["dependencies"]:
        inputs = [components[number] for number in function["inputs"]]
        called = api["named_endpoints"].get(f"/{function['api_name']}", {}).get("parameters", ())
        names = [one["parameter_name"] for one in called] or [one["props"].get("label") for one in inputs]
        found[function["id"]] = Function(
            function["api_name"] or None,
            [(str(name or one["type"]), _kind_of(one)) for name, one in zip(names, inputs, strict=True)],
        )
    return found


def _kind_of(component: Mapping[str, Any]) -> str:
    many = component["props"].get("file_count") == "multiple"
    return f"{component['type']}s" if many else component["type"]


async def _body(scope: dict[str, Any], receive: Any) -> bytes:
    _check_length(Headers(scope=scope), BODY_BYTES)
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            raise _too_large(BODY_BYTES)
        if not message.get("more_body", False):
            return body


def _check_length(headers: Headers, most: int) -> None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise RefusedError(400, "The length of the request is no number.")
    if len(length) > 18 or int(length) > most:
        raise _too_large(most)


def _is_upload(scope: Mapping[str, Any]) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"The request is larger than the maximum allowed size of {most >> 20} MB.")


def _check_call(body: bytes, name: str | None, path: str, functions: Mapping[int, Function]) -> None:
    """Check the JSON of a request: the function that it calls, and the types of the values.

    Raises:
        RefusedError: The JSON is broken or beyond its bounds, no function is called, or a value is of another type.
    """
    try:
        content = parse_json(body.decode()) if body else {}
    except JsonBoundsError as error:
        raise RefusedError(400, f"The request cannot be read: {error}.") from None
    except ValueError:
        raise RefusedError(400, "The request is not valid JSON in UTF-8.") from None
    if not isinstance(content, dict):
        raise RefusedError(422, "The request is one JSON object.")
    if name is None and not path.rstrip("/").endswith(("/join", "/predict")):
        return
    function = _function(name, content.get("fn_index"), functions)
    for field in ("session_hash", "event_id", "trigger_id"):
        if content.get(field) is not None and not isinstance(content[field], int if field == "trigger_id" else str):
            raise RefusedError(422, f"{field} has a wrong type.")
        if len(str(content.get(field))) > MAX_NAME:
            raise RefusedError(422, f"{field} has more than {MAX_NAME} characters.")
    if "/v2/" in path:  # values by name, which gradio orders
        values = [(label, kind, content[label]) for label, kind in function.inputs if label in content]
        if unknown := sorted(content.keys() - {label for label, _ in function.inputs}):
            raise RefusedError(422, f"{unknown[0]!r:.60} is no value of {name}; {_takes(function)}.")
    else:
        data = content.get("data")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise RefusedError(422, f'"data" must be a list of {len(function.inputs)} values; {_takes(function)}.')
        values = [(label, kind, value) for (label, kind), value in zip(function.inputs, data, strict=True)]
    for label, kind, value in values:
        types, said = _KINDS.get(kind, (None, ""))
        if types is not None and not _is(value, kind, types):
            raise RefusedError(422, f"{label} must be {said}; received {json.dumps(value):.60}.")


# kind of a component -> types of its values, and these in words
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "textbox": ((str, type(None)), "a text"),
    "html": ((str, type(None)), "a text"),
    "number": ((int, float), "a number"),
    "file": ((dict, type(None)), 'an uploaded file, {"path": ...}, or null'),
    "files": ((list, type(None)), 'a list of uploaded files, {"path": ...}, or null'),
    "uploadbuttons": ((list, type(None)), 'a list of uploaded files, {"path": ...}, or null'),
}


def _is(value: Any, kind: str, types: tuple[type, ...]) -> bool:
    if kind in ("file", "files", "uploadbuttons"):
        files = value if isinstance(value, list) else [] if value is None else [value]
        return type(value) in types and len(files) <= FILES + 1 and all(map(_is_file, files))
    return type(value) in types  # by `type`, because a bool is an int for `isinstance`


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("path"), str)
        and "\0" not in value["path"]
        and isinstance(value.get("orig_name"), str | None)
        and isinstance(value.get("meta"), dict | None)
    )


def _function(name: str | None, number: Any, functions: Mapping[int, Function]) -> Function:
    if name is not None:
        for function in functions.values():
            if function.name == name:
                return function
        known = ", ".join(sorted(function.name for function in functions.values() if function.name))
        raise RefusedError(404, f"There is no function {name!r:.60}; there are {known}.")
    if type(number) is not int or number not in functions:
        raise RefusedError(404, f"There is no function with the number {json.dumps(number):.60}.")
    return functions[number]


def _takes(function: Function) -> str:
    return f"it takes {', '.join(label for label, _ in function.inputs) or 'none'}"


def sweep(folder: Path, age: float = KEPT) -> int:
    """Delete files below a folder that are older than `age` seconds; the bytes of those that stay.

    These are uploads, of which visits have copies, and the empty files that gradio creates with each of them. Gradio
    may delete files and folders at the same time. A file from the future is as old as it lies ahead: a clock that was
    set back would otherwise keep files for as long as that.
    """
    kept = 0
    for base, _, names in os.walk(folder):  # passes over folders that are gone
        for path in (Path(base, name) for name in names):
            try:
                found = path.lstat()
                if abs(time.time() - found.st_mtime) > age:
                    path.unlink()
                else:
                    kept += found.st_size
            except FileNotFoundError:  # gradio deleted it first
                continue
    return kept


def _address(scope: dict[str, Any]) -> str:
    """The address of the client; behind a proxy, the one that the proxy appended to the header.

    A client can send such a header itself, so all entries before the last one may be made up.
    """
    forwarded = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
    return forwarded or (scope.get("client") or ("unknown",))[0]
