"""Download a file by http or https to the cache of huggingface_hub, and go on where an earlier download stopped.

The client is that of huggingface_hub, with its settings: HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, HF_ASSETS_CACHE, and
proxies. Files that are in no repository of the Hub belong to its cache of assets, where each address has a folder:

    NAME                the file, once it is whole
    NAME.json           its size, and the entity tag and date by which the server knows it
    NAME.partial        the part that has arrived; the next download asks only for the rest
    NAME.partial.json   the same facts about the whole file
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from filelock import FileLock
from huggingface_hub import cached_assets_path, constants, get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from tqdm import tqdm

from ..files import write_text_whole
from ..untrusted_json import read_json
from .errors import DownloadError

logger = logging.getLogger(__name__)

FOLDER = ("alpro-hf", "downloads")  # in the cache of assets: the library, and what the files are
MAX_SIZE = 32 * 1024**3  # bytes of one download
ATTEMPTS = 4  # connections in a row that may bring nothing new
PAUSE = 1.0  # seconds before the second attempt, twice as many before each further one
_PROGRESS = 1 << 20  # bytes that count as something new
_MAX_PAUSE = 30.0
_MAX_REDIRECTS = 10
_START = 64  # bytes that tell a web page
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


@dataclass(frozen=True)
class _About:
    """What a server says about a file; size in bytes. What it does not say is None."""

    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None

    @property
    def validator(self) -> str | None:
        """By what a server can tell that the rest still belongs to the part; a weak tag does not say so."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def fits(self, other: "_About") -> bool:
        """Whether two answers can be about the same file: nothing that both say differs."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return all(ours == theirs for ours, theirs in pairs if ours is not None and theirs is not None)


class _InterruptedError(Exception):
    """An attempt failed, and another one may succeed. `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _StaleError(Exception):
    """The part that is here does not belong to the file on the server."""


def download(url: str, *, max_size: int = MAX_SIZE) -> Path:
    """Download a file, or find it in the cache if the server says that it has not changed.

    If the server cannot be asked, a file that is whole in the cache is used, with a warning.

    Args:
        url: Address with the scheme http or https. A redirect may lead to another host, but not from https to http.
        max_size: Bytes that the file may have.

    Returns:
        Path of the whole file in the cache. Its name is the last part of the address.

    Raises:
        DownloadError: The file cannot be downloaded; the message says why. What has arrived is kept.
    """
    _check(url)
    folder = Path(constants.HF_ASSETS_CACHE, *FOLDER, hashlib.sha256(url.encode()).hexdigest()[:16])
    try:
        cached_assets_path(*FOLDER, folder.name, assets_dir=constants.HF_ASSETS_CACHE)
        # two processes must not write one part; the system frees the lock of a process that was killed
        with FileLock(folder / ".lock"):
            return _Transfer(url, folder, max_size).run()
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(
            f"{public(url)} cannot be stored in {folder} ({error.strerror or error}): free some space there, or set "
            "HF_ASSETS_CACHE to another folder. What has arrived is kept, and the next download goes on from there."
        ) from error


def public(url: str) -> str:
    """An address without what may be secret: name and password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def is_url(source: str) -> bool:
    """Whether a source is written as an address, with any scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def is_web_page(start: bytes) -> bool:
    """Whether a file that begins so is a web page, as servers send instead of a file that they do not give."""
    return _PAGE.match(start) is not None


class _Transfer:
    """The download of one address to its folder."""

    def __init__(self, url: str, folder: Path, max_size: int) -> None:
        self.url, self.max_size = url, max_size
        name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))[-100:].lstrip(".") or "file"
        self.path, self.partial = folder / name, folder / f"{name}.partial"
        self.whole = self.path.is_file() and self.path.stat().st_size == _read_about(self.path).size

    def run(self) -> Path:
        about = _read_about(self.path)
        if self.whole and not (about.etag or about.last_modified):
            return self.path  # nothing to ask the server by
        try:
            self._try_several_times()
        except DownloadError as error:
            if not self.whole:
                raise
            logger.warning("%s The copy in the cache is used: %s.", error, self.path)
        return self.path

    def _try_several_times(self) -> None:
        failures, farthest = 0, _size(self.partial)
        while True:
            try:
                return self._attempt()
            except _StaleError:
                self.partial.unlink(missing_ok=True)
                failures += 1
                reason, wait = "the file changed while it was downloaded", 0.0
                farthest = 0
            except _InterruptedError as error:
                reason, wait = str(error), error.wait
                size = _size(self.partial)
                failures = 1 if size >= farthest + _PROGRESS else failures + 1
                farthest = max(farthest, size)
            if self.whole or failures >= ATTEMPTS:
                kept = f" {_size(self.partial):,} bytes are kept, and the next download goes on from there."
                raise DownloadError(
                    f"{public(self.url)} cannot be downloaded: {reason}." + (kept if _size(self.partial) else "")
                )
            time.sleep(min(max(wait, PAUSE * 2 ** (failures - 1)), _MAX_PAUSE))

    def _attempt(self) -> None:
        """Ask once, and store what comes; returns when the file is whole."""
        part = _read_about(self.partial)
        offset = _size(self.partial)
        if offset and part.size == offset:
            return self._finish()
        # without a validator, at least the size must be known, to notice another file
        if offset and part.validator is None and part.size is None:
            offset = 0
        headers = {"Accept-Encoding": "identity"}  # else the size and the place of a part mean nothing
        if self.whole:
            about = _read_about(self.path)
            if about.etag:
                headers["If-None-Match"] = about.etag
            elif about.last_modified:
                headers["If-Modified-Since"] = about.last_modified
        elif offset:
            headers["Range"] = f"bytes={offset}-"
            if part.validator:
                headers["If-Range"] = part.validator
        with self._response(headers) as response:
            status = response.status_code
            if status == 304 and self.whole:
                return
            if status == 416 and "Range" in headers:
                raise _StaleError
            if status in _TEMPORARY:
                raise _InterruptedError(f"the server answers with status {status}", _seconds(response.headers))
            if status != 200 and not (status == 206 and "Range" in headers):
                raise DownloadError(f"{public(self.url)} cannot be downloaded: {_explained(status)}.")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise DownloadError(f"{public(self.url)} is sent compressed although the file was asked for as it is.")
            tags = response.headers.get("ETag"), response.headers.get("Last-Modified")
            if status == 206:
                total = _total(response.headers, offset)
                # a server may heed Range and not If-Range
                if total is None or not part.fits(_About(total, *tags)):
                    raise _StaleError
                self._store(response, part, offset)
            else:
                length = response.headers.get("Content-Length", "")
                self._store(
                    response, _About(int(length) if length.isdecimal() and len(length) < 19 else None, *tags), 0
                )
        self._finish()

    @contextmanager
    def _response(self, headers: Mapping[str, str]) -> Iterator[Any]:
        """The answer of the server after redirects; failures of the connection are `_InterruptedError`."""
        url = self.url
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            for _ in range(_MAX_REDIRECTS):
                with get_session().stream(
                    "GET", url, headers=headers, follow_redirects=False, timeout=timeout
                ) as response:
                    if response.status_code not in _REDIRECTS:
                        yield response
                        return
                    url = self._redirected(url, response.headers.get("Location", ""))
        except OfflineModeIsEnabled:
            raise DownloadError(
                f"{public(self.url)} cannot be downloaded, because HF_HUB_OFFLINE is set; unset it and repeat."
            ) from None
        except HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _InterruptedError(f"the connection failed ({reason})") from error
        raise DownloadError(f"{public(self.url)} cannot be downloaded: it redirects more than {_MAX_REDIRECTS} times.")

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme.lower()
        allowed = ("https",) if urlsplit(url).scheme.lower() == "https" else ("http", "https")
        if not location or scheme not in allowed:
            where = f"to {public(target)[:200]!r}" if location else "without saying where to"
            raise DownloadError(
                f"{public(self.url)} was refused: it redirects {where}, and only redirects to "
                f"{' and '.join(allowed)} are followed."
            )
        _check(target)
        return target

    def _store(self, response: Any, about: _About, offset: int) -> None:
        """Append the body to the part, or begin a new part if `offset` is 0."""
        if about.size is not None:
            self._check_size(about.size)
            free = shutil.disk_usage(self.partial.parent).free
            if about.size - offset > free:
                raise DownloadError(
                    f"{public(self.url)} has {about.size:,} bytes, and {self.partial.parent} has room for {free:,}: "
                    "free some space there, or set HF_ASSETS_CACHE to another folder."
                )
        blocks = (
            response.iter_raw()
        )  # as they arrive: blocks of a fixed size would lose the last one when it breaks off
        block = next(blocks, b"")
        if not offset:
            while len(block) < _START and (more := next(blocks, b"")):
                block += more
            if response.headers.get("Content-Type", "").lower().startswith("text/html") or is_web_page(block):
                raise DownloadError(
                    f"{public(self.url)} is a web page and not a file of weights: name the address of the file "
                    "itself, or for a model on the Hub its id (namespace/name)."
                )
            if not block:
                raise DownloadError(f"{public(self.url)} is an empty file.")
            # facts first: a part without facts is worth nothing
            self.partial.unlink(missing_ok=True)
            write_text_whole(_about_path(self.partial), json.dumps(asdict(about)))
            self.whole = False  # the server has another file now
        bar = tqdm(
            desc=self.path.name, total=about.size, initial=offset, unit="B", unit_scale=True, disable=_bar_disabled()
        )
        # unbuffered, so that a killed process leaves everything that has arrived
        with bar, self.partial.open("ab" if offset else "wb", buffering=0) as file:
            size = offset
            while block:
                size += len(block)
                if about.size is None:
                    self._check_size(size)
                _write(file, block)
                bar.update(len(block))
                block = next(blocks, b"")
            os.fsync(file.fileno())
        if about.size is not None and size != about.size:
            if size > about.size:
                raise _StaleError
            raise _InterruptedError(f"the server sent {size:,} of {about.size:,} bytes")

    def _check_size(self, size: int) -> None:
        if size > self.max_size:
            raise DownloadError(
                f"{public(self.url)} was refused: it has {size:,} bytes or more, and {self.max_size:,} are allowed."
            )

    def _finish(self) -> None:
        about = _read_about(self.partial)
        about = _About(_size(self.partial), about.etag, about.last_modified)
        # without its facts an older file counts as absent, whatever happens between these lines
        _about_path(self.path).unlink(missing_ok=True)
        os.replace(self.partial, self.path)
        write_text_whole(_about_path(self.path), json.dumps(asdict(about)))
        _about_path(self.partial).unlink(missing_ok=True)


def _check(url: str) -> None:
    """Refuse what is no address of a file on the web."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # as the system does before it looks up a host
    except ValueError as error:
        raise DownloadError(f"{url[:200]!r} is not an address: {error}.") from None
    shown = public(url)[:200] if url.isprintable() else repr(url[:200])
    if parts.scheme.lower() not in ("http", "https"):
        raise DownloadError(f"{shown} was refused: only addresses with http and https are downloaded.")
    if not host or not re.fullmatch(r"[A-Za-z0-9._:-]+", host) or len(url) > 4000 or not url.isprintable():
        raise DownloadError(f"{shown} is not an address of a file on the web.")


def _about_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_about(path: Path) -> _About:
    try:
        return _About(**read_json(_about_path(path)))
    except (FileNotFoundError, ValueError, TypeError):
        return _About()  # as if the server had said nothing, so nothing is reused


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write(file: Any, block: bytes) -> None:
    """Write all of a block: an unbuffered file may take less at a time."""
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


def _total(headers: Mapping[str, str], offset: int) -> int | None:
    """The size of the whole file if the answer is a part of it that begins at `offset`; None otherwise."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", headers.get("Content-Range", "").strip())
    if found is None:
        return None
    start, end, total = (int(number) for number in found.groups())
    return total if start == offset and end < total else None


def _seconds(headers: Mapping[str, str]) -> float:
    """The pause that a server asks for in `Retry-After`; 0 if it names none, or a date."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0


def _explained(status: int) -> str:
    reasons = {
        401: "the server wants a password",
        403: "the server does not give this file to everybody",
        404: "the server does not have this file; check the address",
        410: "the file was removed from the server",
    }
    return f"{reasons.get(status, 'the server refuses')} (status {status})"


def _bar_disabled() -> bool | None:
    return True if constants.HF_HUB_DISABLE_PROGRESS_BARS else None  # None: shown on a terminal


__all__ = ["MAX_SIZE", "download", "is_url", "is_web_page", "public"]
