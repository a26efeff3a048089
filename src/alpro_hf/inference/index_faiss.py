"""Approximate search for millions of videos: FAISS, by way of the library `datasets`.

An exact search reads every feature vector, which is 1 KB for each video at 256 numbers. Where that is too slow, FAISS
reads only some of them. The candidates that it finds are compared and re-ranked exactly, so an approximate search
returns exact scores but may miss a video. The FAISS index is a file next to the shards, valid for the videos that it
was built from.

FAISS believes what it reads: a made-up file can take any amount of memory or crash the process. So the file ends with
128 characters that FAISS does not read: a hash of the manifest it was built for, and the seal of who built it.

Needs the extra `faiss`: pip install "alpro-hf[faiss]".
"""

import hashlib
import math
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets.search import FaissIndex

from ..files import write_whole
from ..trust import is_sealed, seal
from ..untrusted_json import open_regular
from .index_shards import IndexFolder, VideoIndexError
from .video_index import VideoIndex

FILE = "ann.faiss"
_DIGITS = 64  # of the hash and of the seal at the end of the file
_TRAINED_ON = 50  # vectors for each cell of an inverted file


def _faiss() -> ModuleType:
    try:
        return import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise ImportError(
            'Approximate search needs FAISS, which is not installed: pip install "alpro-hf[faiss]"'
        ) from error


def build_ann(index: VideoIndex, kind: str | None = None) -> int:
    """Build the approximate index of a saved one, next to its shards.

    Args:
        index: Loaded from, or saved to, a folder.
        kind: FAISS factory string; None: `IVF<cells>,Flat`, an inverted file of sqrt(n) cells with whole vectors.

    Returns:
        Number of videos in the approximate index.

    Raises:
        VideoIndexError: The index has no folder or no videos, or another process is writing to it.
        ImportError: FAISS is not installed.
        OSError: The file cannot be written or sealed.
    """
    faiss = _faiss()
    if index.folder is None or not len(index):
        raise VideoIndexError("An approximate index needs a saved index with videos. Call index.save(...) first.")
    built_for = index.manifest_digest()
    cells = max(1, round(math.sqrt(len(index))))
    kind = kind or f"IVF{cells},Flat"
    every = max(1, len(index) // (_TRAINED_ON * cells))  # cells are learned from a sample, spread over the whole index
    sample = torch.cat([block[::every].float() for block in index.features()])
    made: Any = faiss.index_factory(sample.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    made.train(sample.numpy())
    for block in index.features():
        made.add(block.float().numpy())
    if kind.startswith("IVF"):  # FAISS looks at one cell by default, which misses too many neighbours
        made.nprobe = max(8, cells // 16)

    def write(partial: Path) -> None:
        FaissIndex(custom_index=made).save(partial)
        with partial.open("ab") as file:
            file.write((built_for + seal(built_for, _digest(partial, 0))).encode())

    with IndexFolder(index.folder).locked():
        write_whole(index.folder / FILE, write)
    return int(made.ntotal)


def _digest(path: Path, end: int) -> str:
    """A hash over a file without its last `end` bytes."""
    with open_regular(path) as file:
        left, digest = path.stat().st_size - end, hashlib.sha256()
        while part := file.read(min(max(left, 0), 1 << 20)):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


class AnnOutdatedError(VideoIndexError):
    """There is no approximate index, or videos were added or removed since it was built: build it again."""


class AnnSearch:
    """Approximate nearest videos. Pass its method `nearest` to `VideoIndex.search`.

    Example:
        >>> build_ann(index)
        >>> index.search("a dog runs into the sea", nearest=AnnSearch(index).nearest)

    Args:
        index: A saved index, for which `build_ann` was called.

    Raises:
        AnnOutdatedError: There is no approximate index, or videos were added or removed since it was built.
        VideoIndexError: The file is damaged, or was not built by this user on this computer. `allow_outside` of the
            index means that it is trusted: then the file may come from somebody else.
        ImportError: FAISS is not installed.
    """

    def __init__(self, index: VideoIndex) -> None:
        _faiss()
        path = index.folder / FILE if index.folder else None
        if path is None or not path.exists():
            missing = f"{path} is not there" if path else "The index is in memory, so an approximate one is not there"
            raise AnnOutdatedError(f"{missing}. Save the index, then call build_ann(index).")
        self._path, self._videos = path, len(index)
        try:
            with open_regular(path) as file:
                file.seek(max(0, path.stat().st_size - 2 * _DIGITS))
                end = file.read().decode("ascii", "replace")
            built_for, proof = end[:_DIGITS], end[_DIGITS:]
            sealed = is_sealed(proof, built_for, _digest(path, 2 * _DIGITS))
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if not (sealed or index.allow_outside):
            raise self._damaged("or was not built by this user on this computer")
        # not by times, which a clock that was set back turns around
        if sealed and built_for != index.manifest_digest():
            raise AnnOutdatedError(f"{path} is older than the index next to it. Call build_ann(index) again.")
        try:
            self._found: Any = FaissIndex.load(path)
            width, count = self._found.faiss_index.d, self._found.faiss_index.ntotal
        except (RuntimeError, MemoryError) as error:  # of FAISS, which has no classes of its own
            raise self._damaged(str(error)) from error
        if (width, count) != (index.model.config.projection_dim, len(index)):
            raise AnnOutdatedError(f"{path} is older than the index next to it. Call build_ann(index) again.")

    def _damaged(self, reason: str) -> VideoIndexError:
        return VideoIndexError(f"{self._path} is damaged ({reason}). Delete it, then build it again with build_ann.")

    def nearest(self, embeds: torch.Tensor, k: int) -> list[torch.Tensor]:
        """As `VideoIndex.nearest`; int64 (k,) for each text, or fewer if the cells that were read hold fewer.

        Raises:
            VideoIndexError: The file names a video that the index does not have.
        """
        _, places = self._found.search_batch(embeds.float().numpy(), k)
        if (places >= self._videos).any():
            raise self._damaged(f"it names video {places.max()} of {self._videos}")
        # FAISS fills missing places with -1
        return [torch.from_numpy(row[row >= 0]) for row in places]


__all__ = ["AnnOutdatedError", "AnnSearch", "build_ann"]
