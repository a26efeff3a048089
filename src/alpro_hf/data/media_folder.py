"""Find the file of a clip or image by its id among millions.

A folder is scanned once. Each file then takes 8 bytes and its path in memory.
"""

import logging
import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..files import inside
from ..model.decoding_formats import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, has_image_extension, is_video_file
from ..trust import printable
from .rows import stable_id
from .spelling import composed, look_alike
from .tables import AnnotationError

logger = logging.getLogger(__name__)

_LOOKED_AT = 100_000  # names, for one that looks like a missing one
_CHUNK = 1 << 16  # names in a chunk of the Arrow column


class MediaFolder:
    """The videos, or images, of a folder, found by id.

    The id of a file is its name without its extension. Videos are recognised by extension or else by their first
    bytes, see `is_video_file`; images are files with an extension of images or without one. Hidden files and folders
    are skipped, and links to folders are not followed.

    Args:
        folder: The folder; it is scanned once, now.
        media: `video` or `image`.
        recursive: Whether to scan subfolders, too.
        allow_outside: Whether to take links to files outside of the folder. If not, a warning counts them.

    Raises:
        NotADirectoryError: `folder` is not a folder.
        OSError: A subfolder or a file without a known extension cannot be read.
        AnnotationError: The name of a file is not UTF-8.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        media: Literal["video", "image"] = "video",
        recursive: bool = True,
        allow_outside: bool = False,
    ):
        self.folder = os.fspath(folder)
        self.media = media
        if not os.path.isdir(self.folder):
            raise NotADirectoryError(f"videos={self.folder!r} is not a folder. Name the folder of the {media} files.")
        names: list[str] = []
        chunks: list[pa.Array] = []
        hashes: list[np.ndarray] = []

        def flush() -> None:
            chunks.append(pa.array(names, pa.large_string()))
            hashes.append(np.array([_hash(_file_id(name)) for name in names], np.int64))
            names.clear()

        outside: list[str] = []
        files = _files(self.folder, media, recursive)
        for name in tqdm(files, desc=f"Scanning {printable(self.folder)}", unit=" files", delay=2):
            path = os.path.join(self.folder, name)
            if not allow_outside and os.path.islink(path) and not inside(path, self.folder):
                outside.append(path)
                continue
            names.append(name)
            if len(names) == _CHUNK:
                flush()
        flush()
        if outside:
            logger.warning(
                "%d links to files outside of %s were skipped, the first is %s; allow_outside=True (--allow-outside) "
                "takes them.",
                len(outside),
                self.folder,
                outside[0],
            )
        # Sorted hashes and an Arrow column, because a dictionary of paths would take several times the memory.
        hashed = np.concatenate(hashes)
        order = np.argsort(hashed, kind="stable")
        self._hashes = hashed[order]
        self._names = pa.chunked_array(chunks).take(pa.array(order)).combine_chunks()

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, position: int) -> str:
        """The path of a file relative to the folder; the order is arbitrary."""
        return str(self._names[position].as_py())

    def find(self, name: str) -> str | None:
        """The path of a file, or None if there is none.

        Args:
            name: An id, a file name, or a path that ends with either. The extension may differ from that of the file.
                The folders must agree, as far as both paths have any: "/data/train/7.jpg" matches the files "7.png"
                and "train/7.jpg", not "test/7.jpg". Accents may be composed or decomposed, and folders separated by
                backslashes.

        Raises:
            AnnotationError: Several files match.
        """
        found = [path for path in self._with_id(media_id(name)) if _agree(path, name)]
        if not found and "\\" in name:
            return self.find(name.replace("\\", "/"))
        if not found and os.path.basename(name) != media_id(name):
            # "a.mov" may be the id of a file "a.mov.mp4"
            found = [path for path in self._with_id(os.path.basename(name)) if _agree(os.path.splitext(path)[0], name)]
        if len(found) > 1:
            spelled = [path for path in found if os.path.basename(path) == os.path.basename(name)]
            found = spelled if len(spelled) == 1 else sorted(found)
        if len(found) > 1:
            raise AnnotationError(
                f"{name!r} matches several files in {self.folder}: {', '.join(found[:5])}. Keep one of them, or "
                "search only one folder (recursive=False)."
            )
        return os.path.join(self.folder, found[0]) if found else None

    def look_alike(self, name: str) -> str:
        """A sentence about a file whose id looks like that of a name but differs; empty if there is none."""
        names = (_file_id(self[position]) for position in range(min(len(self), _LOOKED_AT)))
        return look_alike(media_id(name.replace("\\", "/")), names)

    def _with_id(self, identity: str) -> list[str]:
        identity = composed(identity)
        hashed = _hash(identity)
        start = int(np.searchsorted(self._hashes, hashed, side="left"))
        stop = int(np.searchsorted(self._hashes, hashed, side="right"))
        found = [self[position] for position in range(start, stop)]
        return [path for path in found if composed(_file_id(path)) == identity]  # different ids may share a hash


def media_id(name: str) -> str:
    """The name of a file without its folder, and without its extension if that is one of a video or image.

    Ids may contain dots: "clip.2" stays whole.
    """
    stem, extension = os.path.splitext(os.path.basename(name))
    return stem if is_media_extension(extension) else stem + extension


def is_media_extension(extension: str) -> bool:
    """Whether an extension, with its dot, is one of videos or images."""
    return extension.lower() in VIDEO_EXTENSIONS or extension.lower() in IMAGE_EXTENSIONS


def _file_id(path: str) -> str:
    """The name of a file of the folder without its extension, known or not; one without a letter, as ".2", is none."""
    stem, extension = os.path.splitext(os.path.basename(path))
    return stem if any(character.isalpha() for character in extension) else stem + extension


def _hash(identity: str) -> int:
    try:
        return stable_id(composed(identity).encode())
    except UnicodeEncodeError as error:
        raise AnnotationError(f"The file name {identity!r} is not UTF-8 ({error.reason}). Rename the file.") from error


def _agree(path: str, name: str) -> bool:
    """Whether both paths name the same folders, compared from the file upwards as far as both name any."""
    folders = (reversed(composed(p.replace(os.sep, "/")).split("/")[:-1]) for p in (path, name))
    return all(ours == theirs for ours, theirs in zip(*folders, strict=False))


def _files(folder: str, media: str, recursive: bool, inside: str = "") -> Iterator[str]:
    """Relative paths of the files of a medium."""
    below = []
    with os.scandir(os.path.join(folder, inside)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if recursive and not entry.is_symlink():
                    below.append(entry.name)
            elif entry.is_file() and _is_medium(entry, media):
                yield os.path.join(inside, entry.name)
    for name in below:
        yield from _files(folder, media, recursive, os.path.join(inside, name))


def _is_medium(entry: os.DirEntry[str], media: str) -> bool:
    extension = os.path.splitext(entry.name)[1].lower()
    if media == "image":
        return not extension or extension in IMAGE_EXTENSIONS
    return not has_image_extension(entry.name, still=True) and is_video_file(entry.path)  # photos need not be opened


__all__ = ["IMAGE_EXTENSIONS", "MediaFolder", "is_media_extension", "media_id"]
