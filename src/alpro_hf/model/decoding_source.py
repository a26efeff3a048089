"""Sources of a video: a path, bytes, a binary file object, or an http(s) URL if allowed."""

import errno
import glob
import io
import os
import tempfile
import unicodedata
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TypeGuard, cast

from .decoding_types import EmptyVideoError, VideoDecodeError, VideoLimits

VideoSource = str | os.PathLike[str] | bytes | IO[bytes]


@contextmanager
def open_source(source: VideoSource, limits: VideoLimits, allow_url: bool) -> Iterator[tuple[str, IO[bytes], int]]:
    """Open a source: its name for messages, a seekable binary file, and the size of that in bytes.

    Raises:
        VideoDecodeError: The source is empty, exceeds the size limit, or is a URL that is not allowed or cannot be
            downloaded.
        TypeError: The source is of another type.
        OSError: The path cannot be read.
    """
    name = source_name(source)
    with ExitStack() as stack:
        file: IO[bytes]
        if is_url(source):
            if not allow_url:
                problem = "URLs are not opened by default"
                raise VideoDecodeError(name, problem, "Download the file, or pass allow_url=True")
            file = stack.enter_context(_download(source, limits))
        elif isinstance(source, bytes | bytearray | memoryview):
            file = io.BytesIO(source)
        else:
            if isinstance(source, str | os.PathLike):
                file = stack.enter_context(_opened(source))
            else:
                file = checked_file(source)
            if not (hasattr(file, "seekable") and file.seekable()):
                file = stack.enter_context(copied(file, name, limits))
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise EmptyVideoError(name, "the file has zero bytes", "Get the file again")
        limits.check("max_file_size", size, name, "the file size in bytes is")
        yield name, file, size


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    name = os.fspath(path)
    if os.path.isdir(path):
        problem = (
            "It is a folder, and a video is one file: pass a list of files (alpro_hf.data.find_videos finds them)"
        )
        raise IsADirectoryError(errno.EISDIR, problem, name)
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        if glob.has_magic(name):
            problem = "No such file, and a pattern is not expanded here: pass sorted(glob.glob(pattern))"
            raise FileNotFoundError(error.errno, problem, name) from error
        text = os.fsdecode(name).replace("\\", "/")
        for other in (unicodedata.normalize(form, text) for form in ("NFC", "NFD")):
            if other != os.fsdecode(name) and os.path.exists(other):
                problem = (
                    f"No such file, but there is {other!a}, which differs in slashes or in how accents are stored"
                )
                raise FileNotFoundError(error.errno, problem, name) from error
        raise


def is_url(source: object) -> TypeGuard[str]:
    """Whether a source is an http(s) URL. A path object is not: it would have lost one of the two slashes."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def source_name(source: VideoSource) -> str:
    """A name for messages: the path or URL, or a description such as `<1024 bytes>`."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def checked_file(source: object) -> IO[bytes]:
    """The same object, if it is a binary file.

    Raises:
        TypeError: It is something else.
    """
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"A video is a path, bytes or a binary file object, not {type(source).__name__}. "
            "Arrays, tensors and lists of images go to AlproVideoProcessor."
        )
    return cast(IO[bytes], source)


def copied(stream: IO[bytes], name: str, limits: VideoLimits) -> IO[bytes]:
    """The rest of a stream as a seekable file, in memory or, if large, on disk. The caller closes it.

    Raises:
        VideoTooLargeError: The stream exceeds `limits.max_file_size`; no more than that is read.
    """
    copy = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=64 * 1024**2))  # noqa: SIM115 (the caller closes it)
    try:
        while chunk := stream.read(1024**2):
            copy.write(chunk)
            limits.check("max_file_size", copy.tell(), name, "bytes received so far are")
    except BaseException:  # including KeyboardInterrupt: the file on disk ends with the copy
        copy.close()
        raise
    return copy


def _download(url: str, limits: VideoLimits) -> IO[bytes]:
    try:
        # urllib follows redirects to http, https and ftp alone, never to a file
        with urllib.request.urlopen(url, timeout=30) as response:  # seconds of silence, not in total
            return copied(response, url, limits)
    except OSError as error:
        raise VideoDecodeError(url, f"the download failed ({error})", "Check the URL and the network") from error
