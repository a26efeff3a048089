"""Rows: a number and an epoch for each, its clip, and an identity for that clip."""

import hashlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset as ArrowDataset
from datasets import Image, IterableDataset, Video
from PIL.Image import Image as PILImage
from torch.utils.data import Dataset

Row = Mapping[str, Any]


class NumberedRows(Dataset):
    """A data set whose rows know their place, and in training their epoch.

    Random choices in a row (which frames) can then be a function of (seed, epoch, index), so that an interrupted
    training continues exactly. `set_epoch` reaches persistent workers too: the epoch lives in shared memory.

    Args:
        dataset: Anything with a length whose items are rows.
        training: Whether rows carry `epoch` beside `index`.
    """

    def __init__(self, dataset: Any, training: bool = False):
        self.dataset = dataset
        self.training = training
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._told = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Start of an epoch; passed on to the data set below, in every process that reads it."""
        self._epoch.fill_(epoch)
        self._tell()

    def _tell(self) -> int:
        epoch = int(self._epoch)
        if epoch != self._told and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._told = epoch
        return epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        epoch = self._tell()
        if hasattr(self.dataset, "__getitems__"):
            rows = self.dataset.__getitems__(indices)
        else:
            rows = [self.dataset[index] for index in indices]
        extra = {"epoch": epoch} if self.training else {}
        return [{**row, "index": index, **extra} for row, index in zip(rows, indices, strict=True)]


@dataclass(frozen=True)
class Draw:
    """What everything random in a row is a function of.

    `generator` gives each purpose a stream of its own, so that one choice more for one purpose changes nothing for
    another. The streams stay the same between versions: pseudo-labels that were cached rely on them.
    """

    seed: int
    epoch: int
    index: int

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose: `augmentation`, `crop` or `masking`."""
        key = f"{purpose}/{self.seed}/{self.epoch}/{self.index}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))


def _shown_clip(row: Row) -> str:
    """A name for a clip or image in a list: its path, else its id, else the number of its row."""
    source = row.get("video") if row.get("video") is not None else row.get("image")
    path = source.get("path") if isinstance(source, Mapping) else source
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)
    return f"video_id {row['video_id']}" if row.get("video_id") is not None else f"row {row.get('index', 'unknown')}"


def _field(row: Row, name: str, task: str) -> Any:
    if name not in row:
        raise KeyError(
            f"A row for the task {task!r} has no field {name!r}; it has {sorted(row)}. Rename the column, or load the "
            "annotations in the package's row format."
        )
    return row[name]


def _source(value: Any) -> Any:
    """A clip or image; of `{"bytes", "path"}`, the bytes, or else the path."""
    if not isinstance(value, Mapping):
        return value
    source = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if source is None:
        raise ValueError(
            f"A clip or image given as a mapping needs 'bytes' or a 'path' that is not None; it has {sorted(value)}."
        )
    return source


def _is_decoded(video: Any) -> bool:
    return isinstance(video, np.ndarray | torch.Tensor)


def _stable_id(content: bytes) -> int:
    """A number that depends on the content alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _clip_name(row: Row, position: int) -> Hashable:
    """Equal for rows that name the same clip; its position where a row has no name that can be had for nothing."""
    identity = row.get("video_id")
    if identity is None:
        identity = _source(row.get("video"))
    if isinstance(identity, os.PathLike):
        return os.fspath(identity)
    return identity if isinstance(identity, str | int | np.integer) else (None, position)


def video_id(row: Row) -> int:
    """The number by which batches know the clip of a row: its `video_id`, or else a hash of its path or content."""
    identity = row.get("video_id")
    if isinstance(identity, int | np.integer):
        return int(identity)
    if identity is None:
        identity = _source(row["video"] if row.get("video") is not None else row["image"])
    if isinstance(identity, str | os.PathLike):
        return _stable_id(os.fspath(identity).encode())
    if isinstance(identity, bytes):
        return _stable_id(identity)
    if _is_decoded(identity) or isinstance(identity, PILImage):
        return _stable_id(np.ascontiguousarray(identity).tobytes())
    raise TypeError(
        f"A clip given as {type(identity).__name__} has no name to tell it by. Add a 'video_id' (text or number)."
    )


KINDS = ("video", "image")


def undecoded(source: Any) -> Any:
    """Decoding is left to the collator: a shuffle buffer of decoded clips would not fit into memory."""
    if isinstance(source, ArrowDataset | IterableDataset):
        features = source.features or {}
        for column in KINDS:
            feature = features.get(column)
            if isinstance(feature, Video | Image) and feature.decode:
                source = source.cast_column(column, type(feature)(decode=False))
    return source
