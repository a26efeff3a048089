"""The videos among files and in folders, recognised by extension or else by their first bytes.

A file with an extension of `VIDEO_EXTENSIONS` is a video, so that a damaged one is reported later instead of skipped
silently. For other extensions, or without one, the content decides: `.ts`, `.mts` and `.dat`, for example, have other
meanings, too.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_EXTENSIONS = """.3g2 .3gp .asf .avi .divx .dv .f4v .flv .m1v .m2ts .m2v .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg .mpg .mxf
    .ogm .ogv .qt .rm .rmvb .vob .webm .wmv .y4m"""
VIDEO_EXTENSIONS = frozenset(_EXTENSIONS.split())
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
)
_HEAD_SIZE = 768  # bytes; four packets of a transport stream, whose packets are the longest signature


def starts_like_a_video(head: bytes) -> bool:
    """Whether the first bytes of a file (at most 768 are needed) are those of a video container."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _NOT_VIDEO_BRANDS
    if head[4:8] in (b"moov", b"mdat", b"wide") or head.startswith(_MAGIC):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    if head[:4] == b"OggS":
        return b"theora" in head[:64]
    # A transport stream has a sync byte every 188 bytes, or every 192 if a time stamp precedes each packet (Blu-ray).
    # One sync byte proves nothing, because it is the letter G.
    return any(
        len(head) > start + 2 * step and all(head[start + i * step] == 0x47 for i in range(3))
        for start, step in ((0, 188), (4, 192))
    )


def is_video_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video: by its extension, or else by its first bytes.

    Raises:
        OSError: Its extension is not one of `VIDEO_EXTENSIONS` and it cannot be read.
    """
    if os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS:
        return True
    with open(path, "rb") as file:
        return starts_like_a_video(file.read(_HEAD_SIZE))


def find_videos(paths: Iterable[str | Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Collect the videos among files and in folders and their subfolders.

    A file among `paths` is taken without looking at it. Hidden files and folders are skipped, and links to folders are
    not followed.

    Returns:
        The videos, each once, those of a folder in sorted order; and (path, reason) for what could not be read.

    Raises:
        FileNotFoundError: One of `paths` does not exist.
    """
    found: dict[Path, None] = {}
    unreadable: list[tuple[Path, str]] = []

    def note(error: OSError) -> None:
        unreadable.append((Path(error.filename), error.strerror or str(error)))

    for start in map(Path, paths):
        if not start.exists():
            raise FileNotFoundError(f"There is no file or folder {str(start)!r}.")
        if not start.is_dir():
            found[start] = None
            continue
        for folder, subfolders, names in os.walk(start, onerror=note):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or not path.is_file():
                    continue
                try:
                    if is_video_file(path):
                        found[path] = None
                except OSError as error:
                    note(error)
    return list(found), unreadable


__all__ = ["VIDEO_EXTENSIONS", "find_videos", "is_video_file", "starts_like_a_video"]
