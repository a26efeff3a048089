"""From rows (a clip and its words) to the batches that the models read."""

import json
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..model.decoding import decode
from ..model.decoding_types import VideoDecodeError
from ..model.loss_alpro import IGNORE_INDEX
from ..model.video_processing_alpro import SAMPLING_STRATEGIES, SamplingStrategy
from .isolated_decoder import IsolatedDecoder
from .rows import Draw, Row, _clip_name, _field, _is_decoded, _shown_clip, _source, _stable_id, video_id

if TYPE_CHECKING:
    from ..model.processing_alpro import AlproProcessor
    from .augmentation import AlproAugmentation

logger = logging.getLogger(__name__)


class Collated(NamedTuple):
    """What became of some rows.

    Args:
        batch: As a call of the collator returns it; empty where no row is left.
        rows: The rows that are in the batch.
        failures: Place among the rows given -> why the row is not in the batch.
    """

    batch: dict[str, Any]
    rows: list[Row]
    failures: dict[int, str]


class AlproCollator:
    """Turns rows into a batch for retrieval or question answering.

    Rows are `{"video", "text"}` or `{"video", "question", "answer"[, "answer_type"]}`. `video` is a path or the bytes
    of a file, decoded by the processor; `{"bytes", "path"}`, as the `datasets` library gives either; or a decoded
    clip: uint8 (T, height, width, 3). A clip that has the processor's frame count and size is only normalised, which
    costs a fraction of a millisecond.

    Optional in a row: `video_id` (text or whole number), where the same clip hides behind different paths or arrays;
    `candidates` (strings), the answers that compete for a question, where not all do (multiple choice); `index` and
    `epoch`, which `NumberedRows` adds. The frames of a row with an `epoch` are drawn by `train_sampling`
    and go through `augmentation`, both as functions of (seed, epoch, index); without one, the processor samples as in
    evaluation and nothing is augmented.

    A clip that cannot be decoded loses its row, never its place to another clip: a warning names the file, `dropped`
    counts it, and `dropped_file` lists it. A batch without any row left raises `ValueError`, or with `allow_empty` (an
    attribute, which `AlproTrainer` sets) is an empty one.

    Args:
        processor: What prepares frames and text at inference too.
        task: `retrieval` or `qa`.
        label2id: Answer to label, for `qa`; an answer outside it gets the label -100.
        train_sampling: How frames are drawn in training: `headtail` (as in the paper), `random`, `uniform`, `center`.
        augmentation: Random changes in training, `AlproAugmentation("finetune", size)` in the paper; None: none.
        seed: Of the drawn frames and the augmentation.
        decoder: Decodes in processes of its own, so that a clip that crashes or hangs FFmpeg loses its row, too,
            instead of ending the job. Each data loading process starts its own.
        dropped_file: JSON lines `{"clip", "reason"}` of the clips that could not be decoded, each once; what is there
            is kept. None: no list. `AlproTrainer` names one in its output folder.

    Returns (from a call):
        `input_ids`, `attention_mask` (B, L), `pixel_values_videos` (V, T, 3, height, width) float32; for retrieval
        V = B, and `video_ids`, `text_ids` int64 (B,), equal where clip or caption are the same; for `qa` `labels`
        int64 (B,), the lists of strings `answers`, `answer_types`, and `video_index` int64 (B,): the clip, among the
        V, that a question is about, since questions about one path or `video_id` share it, and `answer_mask` bool (B,
        answers) where a row has `candidates`; `row_ids` int64 (B,) where rows have an `index`.

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
        augmentation: "AlproAugmentation | None" = None,
        decoder: IsolatedDecoder | None = None,
        dropped_file: str | os.PathLike[str] | None = None,
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
        self.augmentation = augmentation
        self.seed = seed
        self.decoder = decoder
        self.dropped_file = dropped_file
        self.allow_empty = False
        self._listed: set[str] | None = None  # clips in `dropped_file`
        self._dropped = torch.zeros((), dtype=torch.int64).share_memory_()
        self._read = torch.zeros((), dtype=torch.int64).share_memory_()
        self._ready_shape = _ready_shape(processor.video_processor)
        self._mean, self._std = _pixel_statistics(processor.video_processor)

    @property
    def dropped(self) -> int:
        """Rows lost to clips that could not be decoded, in all worker processes together."""
        return int(self._dropped)

    @property
    def read(self) -> int:
        """Rows that were to be collated, dropped ones among them, in all worker processes together."""
        return int(self._read)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        collated = self.collate(rows)
        if not collated.rows and not self.allow_empty:
            raise ValueError(
                f"No row of a batch of {len(rows)} is left, because none of its clips can be decoded:\n"
                + "\n".join(dict.fromkeys(collated.failures.values()))
            )
        return collated.batch

    def collate(self, rows: Sequence[Row]) -> Collated:
        """The batch that a call returns, and what became of the rows; does not raise where no row is left."""
        # a clip is decoded and encoded once for all its questions; contrastive learning needs one for each text
        keys = [_clip_name(row, i) if self.task == "qa" else i for i, row in enumerate(rows)]
        places, clips, failures = self._clips(rows, keys)
        kept = [row for row, key in zip(rows, keys, strict=True) if key in places]
        lost = {i: failures[key] for i, key in enumerate(keys) if key in failures}
        if not kept:
            return Collated({}, [], lost)
        texts = [_field(row, "text" if self.task == "retrieval" else "question", self.task) for row in kept]
        encoding = self.processor(text=texts, return_tensors="pt")
        batch: dict[str, Any] = {
            "input_ids": encoding["input_ids"],
            "attention_mask": encoding["attention_mask"],
            "pixel_values_videos": self._normalise(torch.stack(clips)),
        }
        if self.task == "retrieval":
            batch["video_ids"] = torch.tensor([video_id(row) for row in kept])
            batch["text_ids"] = torch.tensor([_stable_id(text.encode()) for text in texts])
        else:
            answers = [_field(row, "answer", self.task) for row in kept]
            batch["video_index"] = torch.tensor([places[key] for key in keys if key in places])
            batch["labels"] = torch.tensor([self.label2id.get(answer, IGNORE_INDEX) for answer in answers])
            if any(row.get("candidates") is not None for row in kept):
                batch["answer_mask"] = torch.stack([self._answer_mask(row) for row in kept])
            batch["answers"] = answers
            batch["answer_types"] = [row.get("answer_type") for row in kept]
        if all("index" in row for row in kept):
            batch["row_ids"] = torch.tensor([row["index"] for row in kept])
        return Collated(batch, kept, lost)

    def _answer_mask(self, row: Row) -> torch.Tensor:
        """bool (answers,): which answers a row lets compete."""
        candidates = row.get("candidates")
        if candidates is None:
            return torch.ones(len(self.label2id), dtype=torch.bool)
        if row["answer"] not in candidates:
            raise ValueError(
                f"The candidates of the question {row['question']!r} lack its answer {row['answer']!r}; they are "
                f"{', '.join(map(repr, candidates))}."
            )
        known = [self.label2id[answer] for answer in candidates if answer in self.label2id]
        mask = torch.full((len(self.label2id),), not known)  # none of them: the row carries no loss in any case
        mask[known] = True
        return mask

    def _clips(
        self, rows: Sequence[Row], keys: Sequence[Hashable]
    ) -> tuple[dict[Hashable, int], list[torch.Tensor], dict[Hashable, str]]:
        """Where the clip of each key stands among the clips; the clips; why there is none for the other keys.

        Rows with equal keys share a clip. Its frames are those of the first of them.
        """
        places: dict[Hashable, int] = {}
        clips: list[torch.Tensor] = []
        failures: dict[Hashable, str] = {}
        self._read.add_(len(rows))
        for row, key in zip(rows, keys, strict=True):
            if key in places or key in failures:
                continue
            try:
                clips.append(self._frames(row))
            except (VideoDecodeError, OSError) as error:
                lost = keys.count(key)
                self._dropped.add_(lost)
                failures[key] = str(error)
                self._list(row, str(error))
                message = "Row dropped" if lost == 1 else f"{lost} rows dropped"
                logger.warning("%s, %d in all so far: %s", message, self.dropped, error)
                continue
            places[key] = len(places)
        return places, clips, failures

    def _list(self, row: Row, reason: str) -> None:
        """Note a clip in `dropped_file`, unless it is there: by another process, or in an earlier epoch or run."""
        if self.dropped_file is None:
            return
        if self._listed is None:
            self._listed = {one["clip"] for one in dropped_clips(self.dropped_file)}
        clip = _shown_clip(row)
        if clip not in self._listed:
            self._listed.add(clip)
            os.makedirs(os.path.dirname(os.path.abspath(self.dropped_file)), exist_ok=True)
            with open(self.dropped_file, "ab", buffering=0) as file:  # one write a line: processes do not mix theirs
                file.write(json.dumps({"clip": clip, "reason": reason}).encode() + b"\n")

    def _frames(self, row: Row) -> torch.Tensor:
        """The frames of a row at their final size, not normalised: (T, 3, height, width)."""
        return self._prepare(row, _source(_field(row, "video", self.task)), self.augmentation)

    def _draw(self, row: Row) -> Draw | None:
        """What the frames and the augmentation of a row are drawn by; None where nothing is drawn."""
        if "epoch" not in row:
            return None
        if "index" not in row:
            raise ValueError(
                "A row has an 'epoch' but no 'index'; the frames of a training clip are drawn as a function of "
                "both. Wrap the data set in NumberedRows (AlproTrainer does), or add the index."
            )
        return Draw(self.seed, row["epoch"], row["index"])

    def _prepare(self, row: Row, clip: Any, augmentation: "AlproAugmentation | None", **options: Any) -> torch.Tensor:
        """One clip through the processor, all but normalised, and through the augmentation: (T, 3, height, width)."""
        decoder = decode if self.decoder is None else self.decoder.decode
        # workers decode side by side, and share the cores with the model
        options["decoder"] = decoder if get_worker_info() is None else partial(decoder, threads=1)
        draw = self._draw(row)
        if draw is not None:
            options |= {
                "frame_sampling": self.train_sampling,
                "sampling_seed": draw.seed,
                "sampling_epoch": draw.epoch,
                "sampling_index": draw.index,
            }
        if draw is None or augmentation is None:
            if self._is_ready(clip):
                return torch.from_numpy(np.array(clip)).permute(0, 3, 1, 2)
        else:
            # straight to the size that the augmentation starts from: in a file, decoding and resizing are one step
            size = augmentation.input_size
            options |= {"do_center_crop": False, "do_resize": size is not None}
            if size is not None:
                options["size"] = {"height": size[0], "width": size[1]}
        frames: torch.Tensor = self.processor.video_processor(
            videos=clip, do_rescale=False, do_normalize=False, return_tensors="pt", **options
        )["pixel_values_videos"][0]
        if frames.dtype != torch.uint8:
            raise TypeError(
                f"A decoded clip in a row must be uint8, with pixels from 0 to 255; received {frames.dtype}. Convert "
                "it, or pass the file."
            )
        if draw is None or augmentation is None:
            return frames
        return augmentation(frames, draw.generator("augmentation"))

    def _is_ready(self, video: Any) -> bool:
        """Whether the processor would do nothing but normalise the clip."""
        return (
            _is_decoded(video)
            and tuple(video.shape) == self._ready_shape
            and video.dtype in (np.dtype(np.uint8), torch.uint8)
        )

    def _normalise(self, clips: torch.Tensor) -> torch.Tensor:
        """(V, T, 3, height, width) -> float32, the whole batch in one go and bit for bit as the processor does it."""
        pixels = clips.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return pixels.sub_(self._mean[:, None, None]).div_(self._std[:, None, None])


def dropped_clips(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """What a `dropped_file` lists, each clip once: `{"clip", "reason"}`. Nothing if there is no such file."""
    found: dict[str, dict[str, str]] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # else a process died while it wrote
                    one = json.loads(line)
                    found.setdefault(one["clip"], one)
    return list(found.values())


def _ready_shape(video_processor: Any) -> tuple[int, ...] | None:
    """The shape of clips that the processor only normalises; None where it does more to clips of any shape."""
    size = video_processor.size
    plain = video_processor.do_resize and not video_processor.do_center_crop and video_processor.fps is None
    if plain and size.get("height") and size.get("width"):
        return video_processor.num_frames, size["height"], size["width"], 3
    return None


def _pixel_statistics(video_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (3,) of pixels as they come out of a file, by which the processor normalises."""
    mean, std = torch.zeros(3), torch.ones(3)
    if video_processor.do_normalize:
        mean, std = torch.tensor(video_processor.image_mean), torch.tensor(video_processor.image_std)
    brightest = 1.0 / video_processor.rescale_factor if video_processor.do_rescale else 1.0
    return mean * brightest, std * brightest


__all__ = ["AlproCollator", "Collated", "dropped_clips"]
