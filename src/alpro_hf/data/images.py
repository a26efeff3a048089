"""Read still images."""

import io
import os
import struct
import zlib
from typing import Any

from PIL import Image, ImageOps

from ..model.decoding_types import VideoDecodeError

# Pillow documents no common base of these; each is raised for damaged files of some format.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageDecodeError(VideoDecodeError):
    """An image cannot be decoded."""


def read_image(source: "str | os.PathLike[str] | bytes | Image.Image") -> Image.Image:
    """Decode an image, upright and in RGB; transparency is dropped.

    Raises:
        ImageDecodeError: It is not an image, is damaged, or has more pixels than Pillow considers safe.
        OSError: The file cannot be opened.
        TypeError: `source` has another type.
    """
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, bytes):
        return _decode_image(io.BytesIO(source), f"<{len(source)} bytes>")
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return _decode_image(file, os.fspath(source))
    raise TypeError(
        f"An image is a path, bytes, a mapping of 'bytes' and 'path', or a PIL.Image, not {type(source).__name__}."
    )


def _decode_image(file: Any, name: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            # cameras store how they were held in the EXIF data, as they do for videos
            return ImageOps.exif_transpose(image).convert("RGB")
    except _DAMAGED as error:
        problem = f"it cannot be decoded as an image ({type(error).__name__}: {error})"
        raise ImageDecodeError(name, problem, "Get the file again, or leave its row out") from error


__all__ = ["ImageDecodeError", "read_image"]
