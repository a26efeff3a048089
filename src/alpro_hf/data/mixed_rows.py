"""Mix pre-training rows from several sources: each step draws a source, and its batches hold rows of that source."""

import logging
import math
import os
import weakref
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info

from .columns import MEDIA_COLUMNS
from .rows import NumberedRows, Row, undecoded

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


Numbered = tuple[dict[str, Any], int, int]  # a row, its index and its epoch

# Process -> its streams that are no longer read. The next reader closes them, never the garbage collector: closing a
# stream of several shards waits for its threads, and the collector may run while a lock that they need is held. A
# forked process has none of these threads, so it leaves the streams of its parent open.
_ABANDONED: defaultdict[int, list[Generator[Numbered, None, None]]] = defaultdict(list)


@dataclass
class _Share:
    """The share of a stream that one reader reads: batch after batch, pass after pass."""

    rows: Generator[Numbered, None, None]
    batches: int = 0  # read so far
    last: list[dict[str, Any]] = field(default_factory=list)


class MixedRows(NumberedRows):
    """All rows of a pre-training, in the order in which the steps need them.

    Rows are `{"video", "text"}` or `{"image", "text"}`; a source has either videos or images. A source may also have
    questions, `{"video", "question", "answer"}`, see `AlproJointCollator`. To each row are added
    `source` (the name), `index` (the number of the row in its source) and `epoch` (the number of earlier passes over
    the source); they replace columns of these names. The source is drawn once for each optimizer step, so that all
    processes, and all batches that accumulate into a step, use the same. The row at an index is a function of `seed`
    and index alone: a resumed training skips indices and continues exactly.

    Read the rows in order and in batches of `batch_size`: `train_sampling_strategy="sequential"` and one epoch of the
    Trainer. Batch b then goes to process b % world_size. A second epoch continues the sequence of steps.

    A source with a length (a list, a `datasets.Dataset`, a torch data set) is read in a new permutation in each pass,
    by all processes together: no row is repeated before every row was read. The permutation of the current pass is
    kept in memory, 4 or 8 bytes a row.

    A stream (`datasets.IterableDataset`: Parquet, JSON lines, WebDataset tars, ...) is divided among readers, one in
    each worker of each process. In each pass, its shards are shuffled and assigned to the readers. If their number is
    not a multiple of the number of readers R, each reader reads everything and keeps every R-th row. Then rows are
    shuffled in a buffer. Shares are disjoint and complete, and no row is lost: the last batch of a reader's pass is
    filled from its next pass. With unequal shards, readers begin a pass at different steps. `index` counts the rows in
    the order of reading. The share of a reader depends on the number of processes and workers, so resume with the same
    numbers; the reader then skips the rows of earlier steps without decoding them. Do not shuffle a stream yourself:
    without a seed, readers would see different orders.

    Videos and images in columns of the types `datasets.Video` and `datasets.Image` are not decoded here, but passed on
    as `{"bytes", "path"}`; all other columns are passed on unchanged. If a stream was mapped or its columns were
    renamed, it decodes before that: write `stream.decode(False).rename_columns(...)`.

    Args:
        sources: Name of each source -> its rows.
        steps: Optimizer steps of the training.
        batch_size: Rows of a process in a forward pass (`per_device_train_batch_size`).
        world_size: Number of processes.
        accumulation: Batches of a process in a step (`gradient_accumulation_steps`).
        seed: Seed of the draw of sources and of all permutations.
        weights: Name of each source -> its relative frequency; None for equal ones.
        shuffle_buffer: Rows of each stream that each reader holds in memory to draw from.

    Raises:
        ValueError, TypeError: A source, weight or number is invalid; while reading: a row has no text, or not exactly
            one of video and image; a source has both; a stream has no rows; rows are read in another order.

    Example:
        >>> rows = MixedRows({"clips": clips, "images": images}, steps=1000, batch_size=16)
        >>> {row["source"] for row in rows.__getitems__(range(16))}
        {'images'}
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        *,
        steps: int,
        batch_size: int,
        world_size: int = 1,
        accumulation: int = 1,
        seed: int = 42,
        weights: Mapping[str, float] | None = None,
        shuffle_buffer: int = 256,
    ):
        sizes = {
            "steps": steps,
            "batch_size": batch_size,
            "world_size": world_size,
            "accumulation": accumulation,
            "shuffle_buffer": shuffle_buffer,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"MixedRows needs {name} of at least 1; received {size}.")
        if not sources:
            raise ValueError("MixedRows needs at least one source; received none.")
        super().__init__({name: undecoded(_known(name, source)) for name, source in sources.items()}, training=True)
        self.names = list(sources)
        self.steps = steps
        self.batch_size = batch_size
        self.world_size = world_size
        self.accumulation = accumulation
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.weights = _checked_weights(self.names, weights)
        self._plan = np.empty(0, np.int64), np.empty(0, np.int64)
        self._permutations: dict[str, tuple[int, np.ndarray]] = {}
        self._shares: dict[tuple[int, ...], _Share] = {}
        self._kinds: dict[str, str] = {}

    @classmethod
    def from_arguments(
        cls,
        sources: Mapping[str, Any],
        args: "TrainingArguments",
        weights: Mapping[str, float] | None = None,
        shuffle_buffer: int = 256,
    ) -> "MixedRows":
        """Make rows that fit a training: its `max_steps`, batch size, processes, accumulation and (data) seed.

        Raises:
            ValueError: The arguments ask for another order than "sequential", or set no `max_steps`.
        """
        if args.train_sampling_strategy != "sequential":
            raise ValueError(
                "MixedRows has its rows in the order of training. Use train_sampling_strategy='sequential'; received "
                f"{args.train_sampling_strategy!r}."
            )
        if args.max_steps < 1:
            raise ValueError(f"Sources are mixed for a number of steps: set max_steps; received {args.max_steps}.")
        return cls(
            sources,
            steps=args.max_steps,
            batch_size=args.train_batch_size,
            world_size=args.world_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed,
            weights=weights,
            shuffle_buffer=shuffle_buffer,
        )

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step in all processes together."""
        return self.batch_size * self.world_size * self.accumulation

    def __len__(self) -> int:
        return self.steps * self.rows_per_step

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shares": {}}  # open streams cannot be pickled; another process reads its own

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """One row, or the rows of one whole batch."""
        batch = self._batch_of(indices)
        micro_step, rank = divmod(batch, self.world_size)
        micro_step += self._tell() * self.steps * self.accumulation
        step = micro_step // self.accumulation
        source_of_step, earlier = self._steps_until(step)
        name = self.names[source_of_step[step]]
        if isinstance(self.dataset[name], IterableDataset):
            rows = self._stream_batch(name, micro_step, rank)
            return [rows[index % self.batch_size] for index in indices]
        used = int(earlier[step]) * self.rows_per_step
        return self._mapped_rows(name, [used + index % self.rows_per_step for index in indices])

    def _batch_of(self, indices: Sequence[int]) -> int:
        first = indices[0]
        if not 0 <= first < len(self):
            raise IndexError(f"Row {first} of {len(self)}.")
        start = first - first % self.batch_size
        if len(indices) > 1 and list(indices) != list(range(start, start + self.batch_size)):
            raise ValueError(
                f"MixedRows made for batches of {self.batch_size} rows was asked for the {len(indices)} rows "
                f"{list(indices[:4])}..., which are not one of them. Read it in order "
                "(train_sampling_strategy='sequential') and with the batch size it was made for "
                "(MixedRows.from_arguments takes everything from the training arguments)."
            )
        return first // self.batch_size

    def _steps_until(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """For each step, the number of its source, and the number of earlier steps with the same source."""
        if step >= len(self._plan[0]):
            steps = math.ceil((step + 1) / self.steps) * self.steps
            bounds = np.cumsum(self.weights)[:-1] / sum(self.weights)
            # drawn again from the start: a longer sequence begins with the shorter one
            draws = np.random.default_rng([self.seed, 0]).random(steps)
            source_of_step = np.searchsorted(bounds, draws, side="right")
            earlier = np.empty(steps, np.int64)
            for number in range(len(self.names)):
                own = source_of_step == number
                earlier[own] = np.arange(np.count_nonzero(own))
            self._plan = source_of_step, earlier
        return self._plan

    def _mapped_rows(self, name: str, positions: list[int]) -> list[dict[str, Any]]:
        """Rows of a source with a length; positions count through all its passes."""
        source = self.dataset[name]
        places = [divmod(position, len(source)) for position in positions]
        indices = [int(self._permutation(name, epoch)[place]) for epoch, place in places]
        rows = source.__getitems__(indices) if hasattr(source, "__getitems__") else [source[i] for i in indices]
        return [self._row(name, *numbered) for numbered in zip(rows, indices, (e for e, _ in places), strict=True)]

    def _permutation(self, name: str, epoch: int) -> np.ndarray:
        if self._permutations.get(name, (-1,))[0] != epoch:
            size = len(self.dataset[name])
            numbers = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
            seeds = [self.seed, 1 + self.names.index(name), epoch]
            self._permutations[name] = epoch, np.random.default_rng(seeds).permutation(numbers)
        return self._permutations[name][1]

    def _stream_batch(self, name: str, micro_step: int, rank: int) -> list[dict[str, Any]]:
        """The batch of one process. A reader that did not read the earlier batches, after a resumption, skips them."""
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        # A data loader gives batches to its workers in turn. The number of the batch determines the reader, not the
        # worker that runs: after a resumption, worker 0 gets the first batch, whatever its number.
        reader, readers = rank * workers + micro_step % workers, self.world_size * workers
        number = self.names.index(name)
        own_steps = np.arange(micro_step % workers, micro_step, workers) // self.accumulation
        batches = int(np.count_nonzero(self._plan[0][own_steps] == number))
        # With the process id, because a forked process must not continue to read the files that its parent has open.
        key = (os.getpid(), number, reader, readers)
        share = self._shares.get(key)
        if share is None or share.batches > batches + 1:
            if share is not None:
                share.rows.close()
            abandoned = _ABANDONED[os.getpid()]
            while abandoned:
                abandoned.pop().close()
            seeds = [self.seed, 1 + number]
            rows = _share_rows(self.dataset[name], name, reader, readers, seeds, self.shuffle_buffer)
            weakref.finalize(self, abandoned.append, rows)
            share = self._shares[key] = _Share(rows)
        if share.batches <= batches:
            skipped = (batches - share.batches) * self.batch_size
            if skipped:
                logger.info("Source %r: skipping the %d rows of earlier steps.", name, skipped)
            numbered = islice(share.rows, skipped, skipped + self.batch_size)
            share.last = [self._row(name, row, index, epoch) for row, index, epoch in numbered]
            share.batches = batches + 1
        return share.last

    def _row(self, name: str, row: Row, index: int, epoch: int) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise TypeError(f"Row {index} of source {name!r} is a {type(row).__name__}; rows map columns to values.")
        asks = isinstance(row.get("question"), str) and isinstance(row.get("answer"), str)
        if not asks and not isinstance(row.get("text"), str):
            received = f"a {type(row['text']).__name__}" if "text" in row else f"none among {sorted(row)}"
            raise ValueError(
                f"Row {index} of source {name!r} needs a string 'text'; it has {received}. Rename the column of the "
                "captions, or filter such rows out."
            )
        kinds = [kind for kind in MEDIA_COLUMNS if row.get(kind) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"Row {index} of source {name!r} needs a 'video' or an 'image', one of the two; it has "
                f"{' and '.join(kinds) or 'neither'} among {sorted(row)}. Rename the column, or filter such rows out."
            )
        if self._kinds.setdefault(name, kinds[0]) != kinds[0]:
            raise ValueError(
                f"Source {name!r} has rows with a video and rows with an image (row {index}); a batch holds one kind. "
                "Make it two sources."
            )
        columns = {column: value for column, value in row.items() if column not in MEDIA_COLUMNS or column == kinds[0]}
        return {**columns, "source": name, "index": index, "epoch": epoch}


def _share_rows(
    source: IterableDataset, name: str, reader: int, readers: int, seeds: list[int], shuffle_buffer: int
) -> Generator[Numbered, None, None]:
    """The rows of one of `readers` disjoint shares, pass after pass without end.

    Not a method: a reference to its `MixedRows` would keep that alive, and its finalizer would never run.
    """
    for epoch in count():
        seed = int(np.random.SeedSequence([*seeds, epoch]).generate_state(1)[0])
        stream = source.shuffle(seed=seed, buffer_size=shuffle_buffer)
        share = split_dataset_by_node(stream, rank=reader, world_size=readers)
        place = -1
        # `iter(share)` would divide it again among the workers of a DataLoader
        for place, batch in enumerate(share.iter(batch_size=1)):
            yield {column: values[0] for column, values in batch.items()}, place * readers + reader, epoch
        if place < 0:
            raise ValueError(
                f"Source {name!r} has no row for reader {reader} of {readers} (processes x workers) in pass "
                f"{epoch}: it is empty, or has fewer rows than readers, or shards without rows. Leave it out, "
                "use fewer workers, or load it without streaming."
            )


def _known(name: str, source: Any) -> Any:
    if isinstance(source, IterableDataset):
        return source
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")) or isinstance(source, str | Mapping):
        raise TypeError(
            f"Source {name!r} is a {type(source).__name__}. A source is a sequence of rows, a data set with a length, "
            "or a datasets.IterableDataset (IterableDataset.from_generator makes one of a function)."
        )
    if not len(source):
        raise ValueError(f"Source {name!r} has no rows. Leave it out.")
    return source


def _checked_weights(names: list[str], weights: Mapping[str, float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(names)
    if set(weights) != set(names):
        raise ValueError(
            f"Every source needs a weight, and every weight a source: the weights are for {sorted(weights)}, the "
            f"sources are {sorted(names)}."
        )
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"The weight of source {name!r} is {weight}; weights are finite and above 0.")
    return [float(weights[name]) for name in names]


__all__ = ["MixedRows"]
