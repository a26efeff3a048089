"""The videos among files and in folders; what counts as a video is in `model/decoding_formats.py`."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from ..model.decoding_formats import VIDEO_EXTENSIONS, is_video_file, starts_like_a_video
from .spelling import existing


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

    for start in (Path(existing(str(path))) for path in paths):
        if not start.exists():
            raise FileNotFoundError(f"There is no file or folder {str(start)!r}.{about_pattern(start)}")
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


def about_pattern(path: str | Path) -> str:
    """A sentence to add to the message about a path that does not exist, if it is a pattern; else empty."""
    return " A pattern with * or ? is not expanded here: name a folder or files." if glob.has_magic(str(path)) else ""


__all__ = ["VIDEO_EXTENSIONS", "about_pattern", "find_videos", "is_video_file", "starts_like_a_video"]
