"""Approximate search for millions of videos: FAISS, by way of the library `datasets`.

An exact search reads every feature vector, which is 1 KB for each video at 256 numbers. Where that is too slow, FAISS
reads only some of them. The candidates that it finds are compared and re-ranked exactly, so an approximate search
returns exact scores but may miss a video. The FAISS index is a file next to the shards, valid for the videos that it
was built from.

Needs the extra `faiss`: pip install "alpro-hf[faiss]".
"""

import math
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from datasets.search import FaissIndex

from .index_shards import VideoIndexError
from .video_index import VideoIndex

FILE = "ann.faiss"
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
        VideoIndexError: The index has no folder or no videos.
        ImportError: FAISS is not installed.
    """
    faiss = _faiss()
    if index.folder is None or not len(index):
        raise VideoIndexError("An approximate index needs a saved index with videos. Call index.save(...) first.")
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
    FaissIndex(custom_index=made).save(index.folder / FILE)
    return int(made.ntotal)


class AnnSearch:
    """Approximate nearest videos. Pass its method `nearest` to `VideoIndex.search`.

    Example:
        >>> build_ann(index)
        >>> index.search("a dog runs into the sea", nearest=AnnSearch(index).nearest)

    Args:
        index: A saved index, for which `build_ann` was called.

    Raises:
        VideoIndexError: There is no approximate index, or videos were added or removed since it was built.
        ImportError: FAISS is not installed.
    """

    def __init__(self, index: VideoIndex) -> None:
        _faiss()
        path = index.folder / FILE if index.folder else None
        if path is None or not path.exists():
            missing = f"{path} is not there" if path else "The index is in memory, so an approximate one is not there"
            raise VideoIndexError(f"{missing}. Save the index, then call build_ann(index).")
        self._found: Any = FaissIndex.load(path)
        if path.stat().st_mtime_ns < index.changed_ns() or self._found.faiss_index.ntotal != len(index):
            raise VideoIndexError(f"{path} is older than the index next to it. Call build_ann(index) again.")

    def nearest(self, embeds: torch.Tensor, k: int) -> list[torch.Tensor]:
        """As `VideoIndex.nearest`; int64 (k,) for each text, or fewer if the cells that were read hold fewer."""
        _, places = self._found.search_batch(embeds.float().numpy(), k)
        # FAISS fills missing places with -1
        return [torch.from_numpy(row[row >= 0]) for row in places]


__all__ = ["AnnSearch", "build_ann"]
