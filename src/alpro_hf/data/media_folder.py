"""The file of a clip or image by its id, among millions: one scan of a folder, 8 bytes and the path for each file."""

import logging
import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..files import inside
from .find_videos import _HEAD, VIDEO_EXTENSIONS, starts_like_a_video
from .records import AnnotationError
from .rows import _stable_id

logger = logging.getLogger(__name__)

_EXTENSIONS = ".avif .bmp .gif .jfif .jpe .jpeg .jpg .png .ppm .tif .tiff .webp"
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())
_CHUNK = 1 << 16  # names in a piece of the Arrow column


class MediaFolder:
    """The videos, or images, in a folder, found by id.

    The id of a file is its name without the extension, whatever that is. Videos are told by extension or else by their
    first bytes, as in `alpro_hf.video_files`; images by extension, or by having none. Hidden files and folders are
    passed over, links to folders are not followed.

    Args:
        folder: Where to look; scanned now, once.
        media: `video` or `image`.
        recursive: Whether to look into subfolders too.
        allow_outside: Whether to take links to files outside of the folder; if not, a warning counts them.

    Raises:
        NotADirectoryError: There is no such folder.
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
            raise NotADirectoryError(f"videos={self.folder!r} is no folder. Name the folder of the {media} files.")
        names: list[str] = []
        chunks: list[pa.Array] = []
        hashes: list[np.ndarray] = []

        def flush() -> None:
            chunks.append(pa.array(names, pa.large_string()))
            hashes.append(np.array([_key(_file_id(name)) for name in names], np.int64))
            names.clear()

        outside: list[str] = []
        files = _files(self.folder, media, recursive)
        for name in tqdm(files, desc=f"Scanning {self.folder}", unit=" files", delay=2):
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
                "%d links that lead out of %s were passed over, the first is %s; allow_outside=True (--allow-outside) "
                "takes them.",
                len(outside),
                self.folder,
                outside[0],
            )
        keys = np.concatenate(hashes)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._names = pa.chunked_array(chunks).take(pa.array(order)).combine_chunks()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, position: int) -> str:
        """Path relative to the folder, in no particular order."""
        return str(self._names[position].as_py())

    def find(self, name: str) -> str | None:
        """The path of the file called `name`, or None.

        `name` is an id, or a file name, or a path of either. The extension may differ. As far as both tell folders,
        these must agree: "/data/train/7.jpg" is found as "7.png" or "train/7.jpg", not as "test/7.jpg".

        Raises:
            AnnotationError: Several files may be meant.
        """
        found = [path for path in self._with_id(media_id(name)) if _agree(path, name)]
        if not found and os.path.basename(name) != media_id(name):
            # "a.mov" may be the id itself, and the file "a.mov.mp4"
            found = [path for path in self._with_id(os.path.basename(name)) if _agree(os.path.splitext(path)[0], name)]
        if len(found) > 1:
            spelled = [path for path in found if os.path.basename(path) == os.path.basename(name)]
            found = spelled if len(spelled) == 1 else sorted(found)
        if len(found) > 1:
            raise AnnotationError(
                f"{name!r} may be any of {', '.join(found[:5])} in {self.folder}. Leave one, or search one folder "
                "alone (recursive=False)."
            )
        return os.path.join(self.folder, found[0]) if found else None

    def _with_id(self, identity: str) -> list[str]:
        key = _key(identity)
        start = int(np.searchsorted(self._keys, key))
        found = []
        while start < len(self._keys) and self._keys[start] == key:
            found.append(self[start])
            start += 1
        return [path for path in found if _file_id(path) == identity]


def media_id(name: str) -> str:
    """The name of a file without folder and, if it is one of a video or image, extension."""
    stem, extension = os.path.splitext(os.path.basename(name))
    return stem if is_media_extension(extension) else stem + extension


def is_media_extension(extension: str) -> bool:
    return extension.lower() in VIDEO_EXTENSIONS or extension.lower() in IMAGE_EXTENSIONS


def _file_id(path: str) -> str:
    """The name of a file in the folder without its extension, be it known or not; ".2" is none."""
    stem, extension = os.path.splitext(os.path.basename(path))
    return stem if any(character.isalpha() for character in extension) else stem + extension


def _key(identity: str) -> int:
    try:
        return _stable_id(identity.encode())
    except UnicodeEncodeError as error:
        raise AnnotationError(f"The file name {identity!r} is not UTF-8 ({error.reason}). Rename the file.") from error


def _agree(path: str, name: str) -> bool:
    """Whether the folders of both are the same as far as both name any."""
    folders = (reversed(p.replace(os.sep, "/").split("/")[:-1]) for p in (path, name))
    return all(ours == theirs for ours, theirs in zip(*folders, strict=False))


def _files(folder: str, media: str, recursive: bool, inside: str = "") -> Iterator[str]:
    """Relative paths of the files of the medium."""
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
    if extension in VIDEO_EXTENSIONS:
        return True
    if extension in IMAGE_EXTENSIONS:
        return False
    with open(entry.path, "rb") as file:
        return starts_like_a_video(file.read(_HEAD))


__all__ = ["IMAGE_EXTENSIONS", "MediaFolder", "is_media_extension", "media_id"]
