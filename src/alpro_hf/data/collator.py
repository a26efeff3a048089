"""Collate rows, each a clip and its text, into the batches that the models read."""

import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..files import append_line
from ..model.decoding import decode
from ..model.decoding_column import file_of
from ..model.decoding_types import VideoDecodeError
from ..model.loss_alpro import IGNORE_INDEX
from ..model.video_processing_alpro import SAMPLING_STRATEGIES, SamplingStrategy
from ..untrusted_json import open_regular, parse_json
from .isolated_decoder import IsolatedDecoder
from .prefetch import sharing
from .rows import Draw, Row, clip_key, clip_label, is_decoded_clip, required_field, stable_id, video_id

if TYPE_CHECKING:
    from ..model.processing_alpro import AlproProcessor
    from .augmentation import AlproAugmentation

logger = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 16  # bytes of a line of a `dropped_file`


class Collated(NamedTuple):
    """A batch, the rows in it, and the reasons why others are not.

    Args:
        batch: The result of a call of the collator; empty if no row is left.
        rows: The rows in the batch.
        failures: Position of each lost row among the rows given -> why it is not in the batch.
    """

    batch: dict[str, Any]
    rows: list[Row]
    failures: dict[int, str]


class AlproCollator:
    """Collate rows into a batch for retrieval or question answering.

    Rows are `{"video", "text"}` or `{"video", "question", "answer"[, "answer_type"]}`. `video` is one of:

    - a path or the bytes of a file, decoded by the processor;
    - a value of a column of `datasets.Video`: a mapping `{"bytes", "path"}`, or a decoder of torchcodec;
    - a decoded clip: uint8 (T, height, width, 3). With the frame count and size of the processor it is only
      normalised, which takes a fraction of a millisecond.

    Optional fields of a row:

    - `video_id` (text or whole number): identifies a clip that occurs under different paths or as different arrays;
    - `negatives` (strings), for `retrieval`: false captions of the clip, such as `alpro edit-captions` makes. One is
      drawn in each epoch; VTC and VTM learn that it does not describe the clip.
    - `candidates` (strings): the answers that compete for a question, if not all do (multiple choice);
    - `index` and `epoch`, which `NumberedRows` adds. With an `epoch`, frames are drawn by `train_sampling` and go
      through `augmentation`, both as functions of (seed, epoch, index). Without one, the processor samples as in
      evaluation and nothing is augmented.

    A row whose clip cannot be decoded is dropped and never replaced by another: a warning names the file, `dropped`
    counts the row, and `dropped_file` lists the clip. A batch without any row left raises `ValueError`; if the
    attribute `allow_empty` is set, as `AlproTrainer` does, the batch is empty instead.

    Args:
        processor: The processor of the model, which also prepares its inputs at inference.
        task: `retrieval` or `qa`.
        label2id: Answer to label, for `qa`; an answer outside of it gets the label -100. None: `AlproTrainer` takes
            those of the model.
        train_sampling: How frames are drawn in training: `headtail` (as in the paper), `random`, `uniform`, `center`.
        augmentation: Random changes in training, `AlproAugmentation("finetune", size)` in the paper; None for none.
        seed: Seed of the drawn frames and the augmentation.
        decoder: Decodes in separate processes, so that a clip that crashes or hangs FFmpeg costs its row and not the
            job. Each data loading process starts its own.
        dropped_file: JSON lines `{"clip", "reason"}` of the clips that could not be decoded, each once. Existing lines
            are kept. None for no list. `AlproTrainer` names one in its output folder.

    Returns (from a call), for B rows with V clips:
        - `input_ids`, `attention_mask` int64 (B, L);
        - `pixel_values_videos` float32 (V, T, 3, height, width); V = B for retrieval. For `qa`, questions about one
          path or `video_id` share a clip. With `features`, `video_hidden_states` (V, 1 + N, D) in its place;
        - `row_ids` int64 (B,), if all rows have an `index`;
        - retrieval: `video_ids`, `text_ids` int64 (B,), equal for the same clip or caption; if a row has `negatives`,
          `negative_input_ids` and `negative_attention_mask` int64 (B, L) and `has_negative` bool (B,);
        - `qa`: `labels` int64 (B,); lists of strings `answers`, `answer_types`; `video_index` int64 (B,), the clip
          among the V that a question is about; `answer_mask` bool (B, answers), if a row has `candidates`.

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
            raise ValueError(f"AlproCollator has the tasks 'retrieval' and 'qa'; received task={task!r}.")
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
        # from a row to the tokens (1 + N, D) of its clip; set by `AlproTrainer` for training rows, see `feature_cache`
        self.features: Callable[[Row], torch.Tensor] | None = None
        self._listed: set[str] | None = None  # clips in `dropped_file`
        # in shared memory, because data loading processes count too
        self._dropped = torch.zeros((), dtype=torch.int64).share_memory_()
        self._read = torch.zeros((), dtype=torch.int64).share_memory_()
        self._ready_shape = _ready_shape(processor.video_processor)
        self._mean, self._std = _pixel_statistics(processor.video_processor)

    @property
    def dropped(self) -> int:
        """Rows dropped because their clips could not be decoded, in all worker processes together."""
        return int(self._dropped)

    @property
    def read(self) -> int:
        """Rows given to the collator, including dropped ones, in all worker processes together."""
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
        """Collate rows like a call, and tell which rows were lost. A batch without rows is not an error."""
        if self.task == "qa" and not self.label2id:
            raise ValueError(
                "AlproCollator(task='qa') needs label2id, for instance model.config.label2id; AlproTrainer sets it."
            )
        # A clip is decoded and encoded once for all its questions. Contrastive learning needs one for each text.
        keys = [clip_key(row, i) if self.task == "qa" else i for i, row in enumerate(rows)]
        places, clips, failures = self._clips(rows, keys)
        kept = [row for row, key in zip(rows, keys, strict=True) if key in places]
        lost = {i: failures[key] for i, key in enumerate(keys) if key in failures}
        if not kept:
            return Collated({}, [], lost)
        texts = [required_field(row, "text" if self.task == "retrieval" else "question", self.task) for row in kept]
        false = [self._false_caption(row) for row in kept] if self.task == "retrieval" else []
        edited = any(one is not None for one in false)
        # together with the true captions, so that both are padded to the same length
        fillers = [one or text for one, text in zip(false, texts, strict=True)] if edited else []
        encoding = self.processor(text=texts + fillers, return_tensors="pt")
        batch: dict[str, Any] = {
            "input_ids": encoding["input_ids"][: len(kept)],
            "attention_mask": encoding["attention_mask"][: len(kept)],
        }
        if self._features_of(kept[0]) is not None:
            batch["video_hidden_states"] = torch.stack(clips)
        else:
            batch["pixel_values_videos"] = self._normalise(torch.stack(clips))
        if self.task == "retrieval":
            batch["video_ids"] = torch.tensor([video_id(row) for row in kept])
            batch["text_ids"] = torch.tensor([stable_id(text.encode()) for text in texts])
            if edited:
                batch["negative_input_ids"] = encoding["input_ids"][len(kept) :]
                batch["negative_attention_mask"] = encoding["attention_mask"][len(kept) :]
                batch["has_negative"] = torch.tensor([one is not None for one in false])
        else:
            answers = [required_field(row, "answer", self.task) for row in kept]
            batch["video_index"] = torch.tensor([places[key] for key in keys if key in places])
            batch["labels"] = torch.tensor([self.label2id.get(answer, IGNORE_INDEX) for answer in answers])
            if any(row.get("candidates") is not None for row in kept):
                batch["answer_mask"] = torch.stack([self._answer_mask(row) for row in kept])
            batch["answers"] = answers
            batch["answer_types"] = [row.get("answer_type") for row in kept]
        if all("index" in row for row in kept):
            batch["row_ids"] = torch.tensor([row["index"] for row in kept])
        return Collated(batch, kept, lost)

    def _false_caption(self, row: Row) -> str | None:
        """One of the false captions of a row: another one in each epoch, and the first in evaluation.

        Raises:
            TypeError: `negatives` is not a list of texts.
        """
        negatives = row.get("negatives")
        if negatives is None or len(negatives) == 0:
            return None
        if isinstance(negatives, str) or not all(isinstance(one, str) for one in negatives):
            raise TypeError(
                f"The column 'negatives' of a row is {negatives!r:.120}; it must be a list of false captions, as "
                "written by alpro edit-captions."
            )
        draw = AlproCollator._draw(self, row)  # of this epoch, also for a row with cached pseudo-labels
        if draw is None:
            return negatives[0]
        return negatives[int(torch.randint(len(negatives), (), generator=draw.generator("negatives")))]

    def _answer_mask(self, row: Row) -> torch.Tensor:
        """The answers that compete for a question, bool (answers,)."""
        candidates = row.get("candidates")
        if candidates is None:
            return torch.ones(len(self.label2id), dtype=torch.bool)
        if row["answer"] not in candidates:
            raise ValueError(
                f"The candidates of the question {row['question']!r} lack its answer {row['answer']!r}; they are "
                f"{', '.join(map(repr, candidates))}."
            )
        known = [self.label2id[answer] for answer in candidates if answer in self.label2id]
        mask = torch.full(
            (len(self.label2id),), not known
        )  # if none is a label, any mask will do: the row has no loss
        mask[known] = True
        return mask

    def _clips(
        self, rows: Sequence[Row], keys: Sequence[Hashable]
    ) -> tuple[dict[Hashable, int], list[torch.Tensor], dict[Hashable, str]]:
        """Decode the clips of a batch. Rows with equal keys share a clip, decoded with the draw of the first of them.

        Returns:
            Key -> position of its clip; the clips, each (T, 3, height, width) uint8, or their tokens (1 + N, D) if
            there are `features`; key -> why it has no clip.
        """
        places: dict[Hashable, int] = {}
        clips: list[torch.Tensor] = []
        failures: dict[Hashable, str] = {}
        self._read.add_(len(rows))
        firsts: dict[Hashable, Row] = {}
        for row, key in zip(rows, keys, strict=True):
            firsts.setdefault(key, row)
        with self._reading(list(firsts.values())) as found:
            for (key, row), clip in zip(firsts.items(), found, strict=True):
                try:
                    clips.append(clip())
                except (VideoDecodeError, OSError) as error:
                    lost = keys.count(key)  # all rows of the batch that share the clip
                    self._dropped.add_(lost)
                    failures[key] = str(error)
                    self._list(row, str(error))
                    message = "Row dropped" if lost == 1 else f"{lost} rows dropped"
                    logger.warning("%s, %d in all so far: %s", message, self.dropped, error)
                    continue
                places[key] = len(places)
        return places, clips, failures

    @contextmanager
    def _reading(self, rows: Sequence[Row]) -> Iterator[list[Callable[[], torch.Tensor]]]:
        """Functions that give the clips of rows. In an evaluation, several clips are decoded at the same time.

        Processes that load data share the cores as it is, and a training without them draws in the order of the rows.
        """
        together, threads = sharing(len(rows), self.decoder.processes if self.decoder else None)
        if together < 2 or get_worker_info() is not None or any("epoch" in row for row in rows):
            yield [partial(self._tokens_or_frames, row) for row in rows]
            return
        mode = torch.is_inference_mode_enabled()  # threads begin outside of it

        def read(row: Row) -> torch.Tensor:
            with torch.inference_mode(mode):
                return self._frames(row, threads)

        with ThreadPoolExecutor(together, thread_name_prefix="alpro-decode") as pool:
            try:
                yield [pool.submit(read, row).result for row in rows]
            finally:
                pool.shutdown(cancel_futures=True)

    def clip_of(self, row: Row) -> torch.Tensor | str:
        """The frames of a row as the model reads them, float32 (T, 3, height, width), or why it cannot be decoded.

        The row is not counted.
        """
        try:
            return self._normalise(self._frames(row))
        except (VideoDecodeError, OSError) as error:
            return str(error)

    def problem_of(self, row: Row) -> str | None:
        """Return why the clip of a row cannot be decoded; None if it can. The row is not counted."""
        found = self.clip_of(row)
        return found if isinstance(found, str) else None

    def _tokens_or_frames(self, row: Row) -> torch.Tensor:
        features = self._features_of(row)
        return self._frames(row) if features is None else features(row)

    def _features_of(self, row: Row) -> Callable[[Row], torch.Tensor] | None:
        """`features`, if tokens take the place of the frames of a row, which they never do in evaluation."""
        return self.features if "epoch" in row else None

    def _list(self, row: Row, reason: str) -> None:
        """Add a clip to `dropped_file`, unless this process, or an earlier run, has listed it already."""
        if self.dropped_file is None:
            return
        if self._listed is None:
            self._listed = {one["clip"] for one in dropped_clips(self.dropped_file)}
        clip = clip_label(row)
        if clip not in self._listed:
            self._listed.add(clip)
            os.makedirs(os.path.dirname(os.path.abspath(self.dropped_file)), exist_ok=True)
            append_line(self.dropped_file, json.dumps({"clip": clip, "reason": reason}).encode())

    def _frames(self, row: Row, threads: int = 0) -> torch.Tensor:
        """The frames of a row at their final size, not normalised: uint8 (T, 3, height, width)."""
        file = file_of(required_field(row, "video", self.task))
        return self._prepare(row, file, self.augmentation, threads)

    def _draw(self, row: Row) -> Draw | None:
        """The draw of the frames and the augmentation of a row; None if nothing is random (evaluation)."""
        if "epoch" not in row:
            return None
        if "index" not in row:
            raise ValueError(
                "A row has an 'epoch' but no 'index'; the frames of a training clip are drawn as a function of "
                "both. Wrap the data set in NumberedRows (AlproTrainer does), or add the index."
            )
        return Draw(self.seed, row["epoch"], row["index"])

    def _prepare(
        self, row: Row, clip: Any, augmentation: "AlproAugmentation | None", threads: int = 0, **options: Any
    ) -> torch.Tensor:
        """Process and augment one clip, without normalising it: uint8 (T, 3, height, width).

        `threads` are those of FFmpeg; 0 for one per core.
        """
        decoder = decode if self.decoder is None else self.decoder.decode
        # One thread each in data loading processes, which decode at the same time and share the cores with the model.
        options["decoder"] = partial(decoder, threads=threads if get_worker_info() is None else 1)
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
                # np.array copies: arrays that come from Arrow are read-only, which torch does not support
                return torch.from_numpy(np.array(clip)).permute(0, 3, 1, 2)
        else:
            # Directly to the input size of the augmentation: for a file, decoding and resizing are one step.
            size = augmentation.input_size
            options |= {"do_center_crop": False, "do_resize": size is not None}
            if size is not None:
                options["size"] = {"height": size[0], "width": size[1]}
        frames: torch.Tensor = self.processor.video_processor(
            videos=clip, do_rescale=False, do_normalize=False, return_tensors="pt", **options
        )["pixel_values_videos"][0]
        if frames.dtype != torch.uint8:  # the range of other types is unknown: 0 to 1, or 0 to 255
            raise TypeError(
                f"A decoded clip in a row must be uint8, with pixels from 0 to 255; received {frames.dtype}. Convert "
                "it, or pass the file."
            )
        if draw is None or augmentation is None:
            return frames
        return augmentation(frames, draw.generator("augmentation"))

    def _is_ready(self, video: Any) -> bool:
        """Whether the processor would only normalise the clip."""
        return (
            is_decoded_clip(video)
            and tuple(video.shape) == self._ready_shape
            and video.dtype in (np.dtype(np.uint8), torch.uint8)
        )

    def _normalise(self, clips: torch.Tensor) -> torch.Tensor:
        """Normalise clips, (V, T, 3, height, width) -> float32.

        All at once and in place, which is faster than in the processor and gives bitwise the same result.
        """
        # Contiguous, because decoded frames are a view of memory in the order (T, height, width, 3).
        pixels = clips.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return pixels.sub_(self._mean[:, None, None]).div_(self._std[:, None, None])


def dropped_clips(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The clips in a `dropped_file`, each once: `{"clip", "reason"}`. An empty list if there is no such file.

    Raises:
        ValueError: A line is no such record. The message has the file and the line.
    """
    found: dict[str, dict[str, str]] = {}
    if os.path.exists(path):
        with open_regular(path) as file:
            for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), b""), 1):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    break  # the incomplete last line: a process died while writing it
                try:
                    one = parse_json(line)
                    found.setdefault(one["clip"], {"clip": str(one["clip"]), "reason": str(one["reason"])})
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{os.fspath(path)}, line {number}, is no record of a dropped clip ({error!r:.200}). Delete "
                        "the file; the clips are noted again when they are dropped."
                    ) from error
    return list(found.values())


def _ready_shape(video_processor: Any) -> tuple[int, ...] | None:
    """The shape of decoded clips that the processor would only normalise; None if there is no such shape."""
    size = video_processor.size
    plain = video_processor.do_resize and not video_processor.do_center_crop and video_processor.fps is None
    if plain and size.get("height") and size.get("width"):
        return video_processor.num_frames, size["height"], size["width"], 3
    return None


def _pixel_statistics(video_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the processor's normalisation, for pixels from 0 to 255: float32 (3,) each."""
    mean, std = torch.zeros(3), torch.ones(3)
    if video_processor.do_normalize:
        mean, std = torch.tensor(video_processor.image_mean), torch.tensor(video_processor.image_std)
    # As the base class of the processor: scaling the three means is cheaper than rescaling all pixels.
    brightest = 1.0 / video_processor.rescale_factor if video_processor.do_rescale else 1.0
    return mean * brightest, std * brightest


__all__ = ["AlproCollator", "Collated", "dropped_clips"]
