"""Equal shares: all processes train on equally many rows in a batch, and keep what is over for their next batch.

Rows whose clips cannot be decoded are dropped, so the batches of a step may have different sizes in different
processes. Gathering needs equal shapes. A process with more rows than another one lets the rest wait. Its next batch
begins with them.
"""

from collections.abc import Callable, Hashable

import torch
from torch import nn

from .distributed import PADDING, Batch

_OF_THE_BATCH = ("kind", "black")  # entries of a pre-training batch that are not one per row


class EqualShares:
    """Equalises the batches of several processes, which all use it for the same steps.

    Args:
        limit: Rows of a process in a batch. At most as many rows of a kind wait, because their clips are in memory.
        rows_move: Whether rows may move between batches. Batches of questions, which share clips, wait as a whole.
        smallest: Function from the number of a process to the smallest one of all processes.

    Attributes:
        left_out: Rows that this process gave up, because more than `limit` rows would have to wait.
    """

    def __init__(self, limit: int, rows_move: bool, smallest: Callable[[int], int]):
        self.limit = limit
        self.rows_move = rows_move
        self.left_out = 0
        self._smallest = smallest
        self._waiting: dict[Hashable, Batch] = {}

    @property
    def waiting(self) -> int:
        """Number of rows that wait for the next batch."""
        return sum(map(size_of, self._waiting.values()))

    def equal(self, batch: Batch | None) -> Batch | None:
        """Return the part of a batch, with rows that waited, that is as large as that of all other processes.

        Args:
            batch: The next batch of this process; empty if none of its clips can be decoded; None if there is no more.

        Returns:
            The batch to train on; empty in all processes if one of them has nothing; None in all processes if there is
            no next batch in one of them.
        """
        key = _key(batch) if batch and self.rows_move else None
        own = _joined(self._waiting.pop(key, None), batch) if batch and self.rows_move else self._whole(batch)
        smallest = self._smallest(-1 if batch is None else size_of(own))
        taken = min(smallest, self.limit) if self.rows_move else size_of(own)
        if smallest < 1:
            self._wait(key, own)
            return None if smallest < 0 else {}
        if taken < size_of(own):
            self._wait(key, _rows(own, taken, None))
            own = _rows(own, 0, taken)
        return own

    def _whole(self, batch: Batch | None) -> Batch:
        """The batch that waited, if one did; the given one waits then."""
        if self.rows_move or batch is None:
            return {}
        waited = self._waiting.pop(None, None)
        if waited is None:
            return batch
        if batch:
            self._wait(None, batch)
        return waited

    def _wait(self, key: Hashable, batch: Batch) -> None:
        if not batch:
            return
        if not self.rows_move:
            if key in self._waiting:  # the older one stays
                self.left_out += size_of(batch)
            else:
                self._waiting[key] = batch
            return
        self.left_out += max(size_of(batch) - self.limit, 0)
        self._waiting[key] = _rows(batch, 0, self.limit)

    def state(self) -> list[Batch]:
        """What waits, as tensors on the CPU, for a checkpoint."""
        return [
            {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
            for batch in self._waiting.values()
        ]

    def restore(self, state: list[Batch], device: torch.device) -> None:
        """Let wait what a checkpoint holds."""
        batches = [
            {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
            for batch in state
        ]
        self._waiting = {_key(batch) if self.rows_move else None: batch for batch in batches}


def size_of(batch: Batch) -> int:
    """Number of rows of a batch."""
    # a model of clips and classes alone has no texts
    return len(batch["input_ids"] if "input_ids" in batch else batch["labels"]) if batch else 0


def _key(batch: Batch) -> Hashable:
    """What two batches must have in common to be joined: columns, kind of medium and shape of a clip."""
    clips = batch["video_hidden_states"] if "video_hidden_states" in batch else batch["pixel_values_videos"]
    return batch.get("kind"), tuple(sorted(batch)), tuple(clips.shape[1:])


def _rows(batch: Batch, start: int, stop: int | None) -> Batch:
    return {name: value if name in _OF_THE_BATCH else value[start:stop] for name, value in batch.items()}


def _joined(first: Batch | None, second: Batch) -> Batch:
    if first is None:
        return second
    joined = dict(second)
    for name, value in second.items():
        if name in _OF_THE_BATCH:
            continue
        parts = [first[name], value]
        if name in PADDING:
            length = max(part.shape[1] for part in parts)
            parts = [nn.functional.pad(part, (0, length - part.shape[1]), value=PADDING[name]) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


__all__ = ["EqualShares", "size_of"]
