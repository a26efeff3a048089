"""Indexes that searches in folders keep: one for each folder and model, in the user's cache of the Hub's libraries.

They lie in `alpro_hf/indexes` of the assets cache, which `HF_ASSETS_CACHE` or `HF_HOME` moves. Each has a file
`folder.json` beside its manifest that says what it is an index of. Only folders with that file are ever deleted.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path

from ..data.isolated_decoder import IsolatedDecoder
from ..files import is_link, write_text_whole
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from ..untrusted_json import read_json
from .index_shards import FAILED, MANIFEST, PART, IndexFolder, Manifest, VideoIndexError
from .video_index import VideoIndex

MARK = "folder.json"
# what an index consists of, all in its own folder; nothing else is deleted
_OWN_FILES = (MANIFEST, FAILED, "ann.faiss", ".lock", "shard-*.safetensors", ".*.partial")


@dataclass(frozen=True)
class CachedIndex:
    """An index in the cache.

    Args:
        name: Its folder in the cache.
        folder: The folder, or the single video, that was searched.
        model: Name of the model.
        videos: Number of videos; None if its manifest cannot be read.
        size: Bytes on the disk.
        path: Where it is.
    """

    name: str
    folder: str
    model: str
    videos: int | None
    size: int
    path: Path


def cache_folder() -> Path:
    """The folder of all cached indexes.

    Raises:
        OSError: It cannot be made.
    """
    try:
        return cached_assets_path("alpro_hf", "indexes", "").resolve()
    except ValueError as error:  # a file has the place of the folder
        raise NotADirectoryError(str(error)) from error


def build_cached(
    model: AlproForVideoTextRetrieval,
    processor: Any,
    folder: Path,
    videos: Iterable[Path],
    *,
    name: str,
    allow_outside: bool = False,
    decoder: IsolatedDecoder | None = None,
    **options: Any,
) -> VideoIndex:
    """Bring the cached index of a folder up to date, or begin it, and open it.

    New and changed videos are encoded, and those that are no longer among `videos` are removed. An index that is
    damaged is made again.

    Args:
        model, processor, name, allow_outside: As in `VideoIndex`.
        folder: The folder, or a single video.
        videos: The videos in it.
        decoder, options: As in `VideoIndex.add`, such as `batch_size` and `progress`.

    Returns:
        The index. `report` says what was encoded and what failed.

    Raises:
        VideoIndexError: Another process is writing to the same index, or there is a link in its place.
        OSError: The cache cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    videos = [Path(os.path.abspath(video)) for video in videos]
    root = folder if folder.is_dir() else folder.parent
    facts: dict[str, Any] = {"name": name, "allow_outside": allow_outside}
    plain = VideoIndex(model, processor, **facts)
    directory = _folder_of(plain, folder)
    if is_link(directory):
        raise VideoIndexError(f"{directory} is a link, and an index in the cache is a folder. Remove the link.")
    directory.mkdir(exist_ok=True)
    if not (directory / MARK).exists():
        write_text_whole(directory / MARK, json.dumps({"folder": str(folder), "model": name}, indent=1) + "\n")
    try:
        index = VideoIndex.open(directory, model, processor, root=root, **facts)
    except VideoIndexError:  # damaged, or of another version: a cache is made again
        for file in (directory / MANIFEST, *directory.glob("shard-*.safetensors")):
            file.unlink(missing_ok=True)
        index = VideoIndex.open(directory, model, processor, root=root, **facts)
    # adding takes the lock even if there is nothing to add, and several searches may run at once
    if not all(_is_current(index, video) for video in videos):
        index.add(videos, decoder=decoder, **options)
    index.remove(sorted(set(index.paths) - set(videos)))
    return index


def _is_current(index: VideoIndex, video: Path) -> bool:
    try:
        return index.is_current(video)
    except OSError:  # adding it reports the reason
        return False


def _folder_of(index: VideoIndex, folder: Path) -> Path:
    """Whatever changes the vectors, or which videos are taken, is part of the name."""
    facts = [str(folder), index.model_facts["fingerprint"], index.model_facts["dtype"], index.video_settings]
    known = json.dumps([*facts, index.allow_outside], sort_keys=True)
    readable = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in folder.name)[:60]
    return cache_folder() / f"{readable or 'root'}-{hashlib.blake2b(known.encode(), digest_size=6).hexdigest()}"


def cached_indexes() -> list[CachedIndex]:
    """All indexes in the cache, in the order of their names."""
    found = []
    for mark in sorted(cache_folder().glob(f"*/{MARK}")):
        if is_link(mark.parent):  # what lies behind it was not made here, and must not be deleted
            continue
        if (index := _described(mark.parent)) is not None:
            found.append(index)
    return found


def _described(directory: Path) -> CachedIndex | None:
    """The cached index in a folder; None if it is none."""
    try:
        about = read_json(directory / MARK)
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict) or not {"folder", "model"} <= about.keys():
        return None
    try:
        videos = len({entry.path for entry in Manifest.read(directory).videos})
    except VideoIndexError:
        videos = None
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return CachedIndex(directory.name, str(about["folder"]), str(about["model"]), videos, size, directory)


def remove_cached(name: str) -> list[CachedIndex]:
    """Delete cached indexes.

    Args:
        name: The name of one, the path of its folder in the cache, or the path of the videos; the latter names the
            indexes of all models.

    Returns:
        What was deleted.

    Raises:
        VideoIndexError: No cached index has this name; or a folder holds files that are not of an index, and stays.
    """
    path = os.path.realpath(name)
    kept = cached_indexes()
    chosen = [one for one in kept if name == one.name or path == os.path.realpath(one.path)]
    chosen = chosen or [one for one in kept if path == os.path.realpath(one.folder) or name == one.folder]
    if not chosen:
        own = os.path.isfile(os.path.join(name, MANIFEST))
        problem = f"{name} is an index that was made with --output" if own else f"no cached index is named {name!r}"
        raise VideoIndexError(
            f"{problem}; only indexes in the cache are removed. alpro index --list shows their names."
        )
    for one in chosen:
        _delete(one.path)
    return chosen


def _delete(directory: Path) -> None:
    with IndexFolder(directory).locked():
        parts = [part for part in directory.glob(f"{PART}*") if part.is_dir() and not is_link(part)]
        for place in (*parts, directory):
            for pattern in _OWN_FILES:
                for file in place.glob(pattern):
                    if file.is_file() or file.is_symlink():
                        file.unlink()
            if place != directory and not any(place.iterdir()):
                place.rmdir()
    (directory / ".lock").unlink(missing_ok=True)
    strange = [file.name for file in directory.iterdir() if file.name != MARK]
    if strange:
        raise VideoIndexError(f"{directory} also holds {strange[0]}, which is not of an index. It was left there.")
    (directory / MARK).unlink()
    directory.rmdir()


def as_json(index: CachedIndex) -> dict[str, Any]:
    """A cached index as the command line prints it."""
    return asdict(index) | {"path": str(index.path)}


__all__ = ["CachedIndex", "as_json", "build_cached", "cache_folder", "cached_indexes", "remove_cached"]
