"""What a video may be given as: a path, bytes, a binary file, and if allowed a web address."""

import io
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from .decoding_types import EmptyVideoError, VideoDecodeError, VideoLimits

VideoSource = str | os.PathLike[str] | bytes | IO[bytes]


@contextmanager
def opened(source: VideoSource, limits: VideoLimits, allow_url: bool) -> Iterator[tuple[str, IO[bytes], int]]:
    """The name of a source for messages, its bytes as a file that can seek, and their number.

    Raises:
        VideoDecodeError: It is empty or larger than the limit, or a web address and not allowed, or not to be had.
        TypeError: It is nothing that a video can be given as.
        OSError: The path cannot be read.
    """
    name = source_name(source)
    with ExitStack() as stack:
        file: IO[bytes]
        if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
            if not allow_url:
                problem = "web addresses are not opened by default"
                raise VideoDecodeError(name, problem, "Download the file, or pass allow_url=True")
            file = stack.enter_context(_download(source, limits))
        elif isinstance(source, bytes | bytearray | memoryview):
            file = io.BytesIO(source)
        else:
            if isinstance(source, str | os.PathLike):
                file = stack.enter_context(open(source, "rb"))
            else:
                file = checked_file(source)
            if not (hasattr(file, "seekable") and file.seekable()):
                file = stack.enter_context(copied(file, name, limits))
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise EmptyVideoError(name, "the file has zero bytes", "Get the file again")
        limits.check("max_file_size", size, name, "the file size in bytes is")
        yield name, file, size


def source_name(source: VideoSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def checked_file(source: object) -> IO[bytes]:
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"A video is a path, bytes or a binary file object, not {type(source).__name__}. "
            "Arrays, tensors and lists of images go to AlproVideoProcessor."
        )
    return cast(IO[bytes], source)


def copied(stream: IO[bytes], name: str, limits: VideoLimits) -> IO[bytes]:
    """Everything in a stream that cannot seek, in memory or on disk if large."""
    copy = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=64 * 1024**2))  # noqa: SIM115 (the caller closes it)
    try:
        while chunk := stream.read(1024**2):
            copy.write(chunk)
            limits.check("max_file_size", copy.tell(), name, "bytes received so far are")
    except BaseException:
        copy.close()
        raise
    return copy


def _download(url: str, limits: VideoLimits) -> IO[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return copied(response, url, limits)
    except OSError as error:
        raise VideoDecodeError(url, f"the download failed ({error})", "Check the address and the network") from error
