"""Rows: mappings of a clip or image and its text, their place and epoch, and the identity of their clips.

A row has a `video` or an `image`: a path, the bytes of a file, a mapping `{"bytes", "path"}` as the `datasets` library
gives either, or decoded pixels. Its other fields depend on the task, see `AlproCollator`.
"""

import hashlib
import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch.utils.data import Dataset

from ..model.decoding_column import file_of, path_of
from .columns import MEDIA_COLUMNS

Row = Mapping[str, Any]


class NumberedRows(Dataset):
    """A data set whose rows carry their `index` and, in training, their `epoch`.

    Random choices for a row, such as its frames, can then be a function of (seed, epoch, index), so that an
    interrupted training continues with the same choices. The epoch lives in shared memory, so that `set_epoch` also
    reaches persistent workers of a data loader.

    Args:
        dataset: Any object with a length whose items are rows.
        training: Whether rows carry `epoch` in addition to `index`.
    """

    def __init__(self, dataset: Any, training: bool = False):
        self.dataset = dataset
        self.training = training
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._told = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch. In every process that reads it, `dataset.set_epoch` is called, too, if there is one."""
        self._epoch.fill_(epoch)
        self._tell()

    def _tell(self) -> int:
        # Each process has its own copy of `dataset`, which learns of a new epoch when that process reads next.
        epoch = int(self._epoch)
        if epoch != self._told and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._told = epoch
        return epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        epoch = self._tell()
        with teach_undecoded():
            if hasattr(self.dataset, "__getitems__"):
                rows = self.dataset.__getitems__(indices)
            else:
                rows = [self.dataset[index] for index in indices]
        extra = {"epoch": epoch} if self.training else {}
        return [{**row, "index": index, **extra} for row, index in zip(rows, indices, strict=True)]


@dataclass(frozen=True)
class Draw:
    """The numbers that determine all random choices for a row.

    `generator` gives each purpose a stream of its own, so that an additional choice for one purpose changes nothing
    for another. The streams stay the same between versions, because cached pseudo-labels rely on them.
    """

    seed: int
    epoch: int
    index: int

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose, such as `augmentation`, `crop`, `masking` or `negatives`."""
        key = f"{purpose}/{self.seed}/{self.epoch}/{self.index}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))


def required_field(row: Row, name: str, task: str) -> Any:
    """A field that rows of a task must have.

    Raises:
        KeyError: The row lacks it.
    """
    if name not in row:
        raise KeyError(
            f"A row for the task {task!r} has no field {name!r}; it has {sorted(row)}. Rename the column, or load the "
            "annotations in the package's row format."
        )
    return row[name]


def is_decoded_clip(video: Any) -> bool:
    """Whether a clip is an array or a tensor of pixels instead of a file."""
    return isinstance(video, np.ndarray | torch.Tensor)


def clip_label(row: Row) -> str:
    """The name of a row's clip or image for messages and lists: its path, else its id, else its row number."""
    path = path_of(row.get("video") if row.get("video") is not None else row.get("image"))
    if path is not None:
        return path
    return f"video_id {row['video_id']}" if row.get("video_id") is not None else f"row {row.get('index', 'unknown')}"


def clip_key(row: Row, position: int) -> Hashable:
    """A cheap identifier of a row's clip, equal for rows that name the same clip.

    A row without a `video_id` or path gets one of its own, made of `position`: hashing pixels would cost more than a
    clip that is decoded twice.
    """
    identity = row.get("video_id")
    if identity is None:
        identity = file_of(row.get("video"))
    if isinstance(identity, os.PathLike):
        return os.fspath(identity)
    # a tuple, which never equals the name of another row
    return identity if isinstance(identity, str | int | np.integer) else (None, position)


def video_id(row: Row) -> int:
    """The number that identifies a row's clip in a batch, as int64.

    It is the `video_id` of the row if that is a number, else a hash of `video_id`, path or content.

    Raises:
        TypeError: The clip is of a type without an identity, such as a file object.
    """
    identity = row.get("video_id")
    if isinstance(identity, int | np.integer):
        return int(identity)
    if identity is None:
        identity = file_of(row["video"] if row.get("video") is not None else row["image"])
    if isinstance(identity, str | os.PathLike):
        return stable_id(os.fspath(identity).encode())
    if isinstance(identity, bytes):
        return stable_id(identity)
    if is_decoded_clip(identity) or isinstance(identity, PILImage):
        return stable_id(np.ascontiguousarray(identity).tobytes())
    raise TypeError(
        f"A clip given as {type(identity).__name__} cannot be identified. Add a 'video_id' (text or number)."
    )


def stable_id(content: bytes) -> int:
    """A 64-bit signed hash of `content`, equal in every process and on every machine, unlike `hash`."""
    # 64 bits: among a million clips, two share an id with a probability of about 3e-8
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


@contextmanager
def teach_undecoded() -> Iterator[None]:
    """Let an error of the `datasets` library, which decodes a column of videos without need, say how to avoid it.

    Raises:
        ImportError: torchcodec, or FFmpeg for it, is missing.
    """
    try:
        yield
    except (ImportError, RuntimeError, OSError) as error:
        if "torchcodec" not in str(error):
            raise
        raise ImportError(
            f"The data set decodes its column of videos, for which it needs torchcodec and FFmpeg "
            f"({' '.join(str(error).split())[:100]}). Neither is needed here: give files, by "
            "dataset.cast_column('video', datasets.Video(decode=False)), before other data sets are made of it."
        ) from error


def undecoded(source: Any) -> Any:
    """The same data set, whose columns of clips and images give files instead of pixels.

    The collator decodes them. A shuffle buffer of decoded clips would not fit into memory.
    """
    # imported here, because searching and indexing need this module and not that library
    from datasets import Dataset as ArrowDataset
    from datasets import Image, IterableDataset, Video

    if isinstance(source, ArrowDataset | IterableDataset):
        features = source.features or {}
        for column in MEDIA_COLUMNS:
            feature = features.get(column)
            if isinstance(feature, Video | Image) and feature.decode:
                source = source.cast_column(column, type(feature)(decode=False))
    return source


__all__ = [
    "Draw",
    "NumberedRows",
    "Row",
    "clip_key",
    "clip_label",
    "is_decoded_clip",
    "required_field",
    "stable_id",
    "teach_undecoded",
    "undecoded",
    "video_id",
]
