"""Which files below a folder are videos: by well-known extension, or else by their first bytes.

A file counts as a video if its extension says so (then a broken one is worth a complaint), or if it starts like one of
the containers below. Where the extension also means something else (`.ts`, `.mts`, `.dat`) or is missing, the content
decides. Hidden files and folders are passed over, links to folders are not followed, a file named directly counts.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_EXTENSIONS = """.3g2 .3gp .asf .avi .divx .dv .f4v .flv .m1v .m2ts .m2v .m4v .mj2 .mkv .mov .mp4 .mpe .mpeg .mpg .mxf
    .ogm .ogv .qt .rm .rmvb .vob .webm .wmv .y4m"""
VIDEO_EXTENSIONS = frozenset(_EXTENSIONS.split())
# ISO files say in their brand what they hold; these brands hold pictures or sound
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
_HEAD = 768  # four packets of a transport stream


def starts_like_a_video(head: bytes) -> bool:
    """Whether the first bytes of a file (768 tell everything) are those of a video container."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _NOT_VIDEO_BRANDS
    if head[4:8] in (b"moov", b"mdat", b"wide") or head.startswith(_MAGIC):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    if head[:4] == b"OggS":
        return b"theora" in head[:64]
    # transport stream: a sync byte every 188 bytes, or every 192 where each packet has a time stamp in front
    return any(
        len(head) > start + 2 * step and all(head[start + i * step] == 0x47 for i in range(3))
        for start, step in ((0, 188), (4, 192))
    )


def find_videos(paths: Iterable[str | Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Collect the videos among files and in folders, however deep, in sorted order and each once.

    Returns:
        The videos, and (path, reason) for what could not be read.

    Raises:
        FileNotFoundError: One of `paths` does not exist.
    """
    found: dict[Path, None] = {}
    unreadable: list[tuple[Path, str]] = []

    def complain(error: OSError) -> None:
        unreadable.append((Path(error.filename), error.strerror or str(error)))

    for start in map(Path, paths):
        if not start.exists():
            raise FileNotFoundError(f"There is no file or folder {str(start)!r}.")
        if not start.is_dir():
            found[start] = None
            continue
        for folder, subfolders, names in os.walk(start, onerror=complain):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(".") or not path.is_file():
                    continue
                if path.suffix.lower() in VIDEO_EXTENSIONS:
                    found[path] = None
                    continue
                try:
                    with path.open("rb") as file:
                        if starts_like_a_video(file.read(_HEAD)):
                            found[path] = None
                except OSError as error:
                    complain(error)
    return list(found), unreadable
