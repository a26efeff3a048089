"""From rows (a clip and its words) to the batches that the models read."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from ..decoding import VideoDecodeError
from ..loss_alpro import IGNORE_INDEX
from ..video_processing_alpro import SAMPLING_STRATEGIES, SamplingStrategy

if TYPE_CHECKING:
    from ..processing_alpro import AlproProcessor

logger = logging.getLogger(__name__)

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


class AlproCollator:
    """Turns rows into a batch for retrieval or question answering.

    Rows are `{"video", "text"}` or `{"video", "question", "answer"[, "answer_type"]}`. `video` is a path, decoded by
    the processor, or a decoded clip: uint8 (T, height, width, 3). A clip that has the processor's frame count and size
    is only normalised, which costs a fraction of a millisecond.

    Optional in a row: `video_id` (text or whole number), where the same clip hides behind different paths or arrays;
    `index` and `epoch`, which `NumberedRows` adds. The frames of a row with an `epoch` are drawn by `train_sampling`;
    without one, the processor samples as in evaluation.

    A clip that cannot be decoded loses its row, never its place to another clip: a warning names the file and
    `dropped` counts it. A batch without any row left raises `ValueError`.

    Args:
        processor: What prepares frames and text at inference too.
        task: `retrieval` or `qa`.
        label2id: Answer to label, for `qa`; an answer outside it gets the label -100.
        train_sampling: How frames are drawn in training: `headtail` (as in the paper), `random`, `uniform`, `center`.
        seed: Of the drawn frames.

    Returns (from a call):
        `input_ids`, `attention_mask` (B, L), `pixel_values_videos` (B, T, 3, height, width) float32; for retrieval
        `video_ids`, `text_ids` int64 (B,), equal where clip or caption are the same; for `qa` `labels` int64 (B,) and
        the lists of strings `answers`, `answer_types`; `row_ids` int64 (B,) where rows have an `index`.

    Example:
        >>> collator = AlproCollator(processor, task="retrieval")
        >>> batch = collator([{"video": "clip.mp4", "text": "a fox runs to the left"}])
    """

    def __init__(
        self,
        processor: "AlproProcessor",
        task: Literal["retrieval", "qa"] = "retrieval",
        label2id: Mapping[str, int] | None = None,
        train_sampling: SamplingStrategy = "headtail",
        seed: int = 42,
    ):
        if task not in ("retrieval", "qa"):
            raise ValueError(f"AlproCollator knows the tasks 'retrieval' and 'qa'; received task={task!r}.")
        if task == "qa" and not label2id:
            raise ValueError("AlproCollator(task='qa') needs label2id, for instance model.config.label2id.")
        if train_sampling not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"train_sampling={train_sampling!r} is unknown. Use one of {', '.join(SAMPLING_STRATEGIES)}."
            )
        self.processor = processor
        self.task = task
        self.label2id = dict(label2id or {})
        self.train_sampling = train_sampling
        self.seed = seed
        self._dropped = torch.zeros((), dtype=torch.int64).share_memory_()
        self._ready_shape, self._scale, self._shift = _plain_normalisation(processor.video_processor)

    @property
    def dropped(self) -> int:
        """Rows lost to clips that could not be decoded, in all worker processes together."""
        return int(self._dropped)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        rows, pixels = self._clips(rows)
        words = "text" if self.task == "retrieval" else "question"
        texts = [_field(row, words, self.task) for row in rows]
        encoding = self.processor(text=texts, return_tensors="pt")
        batch: dict[str, Any] = {
            "input_ids": encoding["input_ids"],
            "attention_mask": encoding["attention_mask"],
            "pixel_values_videos": pixels,
        }
        if self.task == "retrieval":
            batch["video_ids"] = torch.tensor([video_id(row) for row in rows])
            batch["text_ids"] = torch.tensor([_stable_id(text.encode()) for text in texts])
        else:
            answers = [_field(row, "answer", self.task) for row in rows]
            batch["labels"] = torch.tensor([self.label2id.get(answer, IGNORE_INDEX) for answer in answers])
            batch["answers"] = answers
            batch["answer_types"] = [row.get("answer_type") for row in rows]
        if all("index" in row for row in rows):
            batch["row_ids"] = torch.tensor([row["index"] for row in rows])
        return batch

    def _clips(self, rows: Sequence[Row]) -> tuple[list[Row], torch.Tensor]:
        """The rows whose clip can be had, and their normalised pixels (B, T, 3, height, width)."""
        kept: list[Row] = []
        ready: list[np.ndarray | torch.Tensor] = []
        processed: dict[int, torch.Tensor] = {}
        failures: list[str] = []
        for row in rows:
            video = _field(row, "video", self.task)
            if self._is_ready(video):
                ready.append(video)
            else:
                try:
                    processed[len(kept)] = self._process(row, video)
                except (VideoDecodeError, OSError) as error:
                    self._dropped.add_(1)
                    failures.append(str(error))
                    logger.warning("Row dropped, %d in all so far: %s", self.dropped, error)
                    continue
            kept.append(row)
        if not kept:
            raise ValueError(
                f"No row of a batch of {len(rows)} is left, because none of its clips can be decoded:\n"
                + "\n".join(failures)
            )
        pixels = self._normalise(ready) if ready else None
        if not processed:
            assert pixels is not None
            return kept, pixels
        fast = iter(pixels if pixels is not None else ())
        return kept, torch.stack([processed[i] if i in processed else next(fast) for i in range(len(kept))])

    def _is_ready(self, video: Any) -> bool:
        """Whether the processor would do nothing but normalise the clip."""
        return (
            _is_decoded(video)
            and tuple(video.shape) == self._ready_shape
            and video.dtype in (np.dtype(np.uint8), torch.uint8)
        )

    def _normalise(self, clips: Sequence[np.ndarray | torch.Tensor]) -> torch.Tensor:
        """uint8 (T, height, width, 3) each -> float32 (B, T, 3, height, width), the whole batch in one go."""
        stacked = torch.from_numpy(np.stack([np.asarray(clip) for clip in clips]))
        pixels = stacked.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return pixels.mul_(self._scale[:, None, None]).sub_(self._shift[:, None, None])

    def _process(self, row: Row, video: Any) -> torch.Tensor:
        """One clip through the processor: (T, 3, height, width)."""
        options: dict[str, Any] = {}
        if "epoch" in row:
            if "index" not in row:
                raise ValueError(
                    "A row has an 'epoch' but no 'index'; the frames of a training clip are drawn as a function of "
                    "both. Wrap the data set in NumberedRows (AlproTrainer does), or add the index."
                )
            options = {
                "frame_sampling": self.train_sampling,
                "sampling_seed": self.seed,
                "sampling_epoch": row["epoch"],
                "sampling_index": row["index"],
            }
        return self.processor.video_processor(videos=video, return_tensors="pt", **options)["pixel_values_videos"][0]


def _plain_normalisation(video_processor: Any) -> tuple[tuple[int, ...] | None, torch.Tensor, torch.Tensor]:
    """The shape of clips that the processor only normalises, and scale and shift that do the same.

    The shape is None where the processor does more, such as cropping, to clips of any shape.
    """
    mean, std = torch.tensor(video_processor.image_mean), torch.tensor(video_processor.image_std)
    if not video_processor.do_normalize:
        mean, std = torch.zeros(3), torch.ones(3)
    factor = video_processor.rescale_factor if video_processor.do_rescale else 1.0
    size = video_processor.size
    plain = video_processor.do_resize and not video_processor.do_center_crop and video_processor.fps is None
    shape = None
    if plain and size.get("height") and size.get("width"):
        shape = (video_processor.num_frames, size["height"], size["width"], 3)
    return shape, factor / std, mean / std


def _field(row: Row, name: str, task: str) -> Any:
    if name not in row:
        raise KeyError(
            f"A row for the task {task!r} has no field {name!r}; it has {sorted(row)}. Rename the column, or load the "
            "annotations in the package's row format."
        )
    return row[name]


def _is_decoded(video: Any) -> bool:
    return isinstance(video, np.ndarray | torch.Tensor)


def _stable_id(content: bytes) -> int:
    """A number that depends on the content alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def video_id(row: Row) -> int:
    """The number by which batches know the clip of a row: its `video_id`, or else a hash of its path or pixels."""
    identity = row.get("video_id")
    if isinstance(identity, int | np.integer):
        return int(identity)
    if identity is None:
        identity = row["video"]
    if isinstance(identity, str | os.PathLike):
        return _stable_id(os.fspath(identity).encode())
    if isinstance(identity, bytes):
        return _stable_id(identity)
    if _is_decoded(identity):
        return _stable_id(np.ascontiguousarray(identity).tobytes())
    raise TypeError(
        f"A clip given as {type(identity).__name__} has no name to tell it by. Add a 'video_id' (text or number)."
    )


__all__ = ["AlproCollator", "NumberedRows", "video_id"]
