"""What a video is: the one list of names and first bytes that folders, tables, processors and the decoder go by.

A file with an extension of `VIDEO_EXTENSIONS` is a video, so that a damaged one is reported later instead of skipped
silently. For other extensions, or without one, the content decides: `.ts`, `.mts` and `.dat`, for example, have other
meanings, too, and `.png`, `.webp` and `.avif` are a still image or an animation. A GIF is a video: FFmpeg decodes it
frame by frame. It may be used as a still image where an image is asked for, so it is in both lists.
"""

import os
from typing import Any

_VIDEO = """.3g2 .3gp .apng .asf .avi .divx .dv .f4v .flv .gif .ivf .m1v .m2ts .m2v .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg
    .mpg .mxf .nut .ogm .ogv .qt .rm .rmvb .vob .webm .wmv .y4m"""
VIDEO_EXTENSIONS = frozenset(_VIDEO.split())
# images that may also be an animation
_ANIMATED = frozenset({".avif", ".gif", ".png", ".webp"})
_STILL = frozenset([".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".ppm", ".tif", ".tiff"])
IMAGE_EXTENSIONS = _STILL | _ANIMATED

# Photos and music use the same container (ISO/IEC 14496-12) as mp4; its brand tells them apart.
_NOT_VIDEO_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"M4A ", b"M4B ", b"M4P ", b"crx ", b"jp2 ")
_MAGIC = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"YUV4MPEG2 ",
    b"DKIF",  # IVF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
    b".RMF",
    b"nut/multimedia container",
    b"GIF87a",
    b"GIF89a",
)
_PNG = b"\x89PNG\r\n\x1a\n"
# Bytes. Four packets of a transport stream need 768; in an animated PNG, a colour profile may precede the mark.
_HEAD_SIZE = 4096


def starts_like_a_video(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a video container; 4096 bytes are enough, 768 nearly always."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _NOT_VIDEO_BRANDS
    if head[4:8] in (b"moov", b"mdat", b"wide") or head.startswith(_MAGIC):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI " or is_animated_webp(head)
    if head.startswith(_PNG):
        return b"acTL" in head.partition(b"IDAT")[0]
    if head[:4] == b"OggS":
        return any(codec in head[:64] for codec in (b"theora", b"OVP80"))
    # A transport stream has a sync byte every 188 bytes, or every 192 if a time stamp precedes each packet (Blu-ray).
    # One sync byte proves nothing, because it is the letter G.
    return any(
        len(head) > start + 2 * step and all(head[start + i * step] == 0x47 for i in range(3))
        for start, step in ((0, 188), (4, 192))
    )


def is_animated_webp(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a WebP with several pictures (RFC 9649, section 2.7)."""
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 2)


def is_video_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video: by its extension, or else by its first bytes.

    Raises:
        OSError: Its extension is not one of `VIDEO_EXTENSIONS` and it cannot be read.
    """
    if has_video_extension(path):
        return True
    with open(path, "rb") as file:
        return starts_like_a_video(file.read(_HEAD_SIZE))


def has_video_extension(path: str | os.PathLike[str]) -> bool:
    """Whether a name, of a file or not, ends like a video."""
    return _extension(path) in VIDEO_EXTENSIONS


def has_image_extension(path: str | os.PathLike[str], *, still: bool = False) -> bool:
    """Whether a name ends like an image and not like a video.

    Args:
        path: The name.
        still: Whether to leave out the extensions that animations share, such as `.png`.
    """
    return _extension(path) in (_STILL if still else IMAGE_EXTENSIONS - VIDEO_EXTENSIONS)


def is_image_sequence(item: Any) -> bool:
    """Whether an object is one clip given as the paths of its frames: a list of two or more paths of images."""
    return (
        isinstance(item, list | tuple)
        and len(item) > 1
        and all(isinstance(path, str | os.PathLike) and has_image_extension(path) for path in item)
    )


def _extension(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fsdecode(path))[1].lower()


__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "has_image_extension",
    "has_video_extension",
    "is_animated_webp",
    "is_image_sequence",
    "is_video_file",
    "starts_like_a_video",
]
