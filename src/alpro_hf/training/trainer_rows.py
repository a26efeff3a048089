"""The rows of a training: numbered, decodable, enough of them; and what is said if they are not."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data.collator import AlproCollator, dropped_clips
from ..data.mixed_rows import MixedRows
from ..data.rows import NumberedRows, undecoded
from ..model.wrappers_alpro import plain_model
from .arguments import MIN_ROWS_FOR_SHARE, AlproTrainingArguments
from .checkpoints import processes_of, read_state
from .distributed import in_parallel

logger = logging.get_logger(__name__)

DROPPED = "dropped_rows.jsonl"  # in the output folder
NOTHING_TO_EVALUATE = "There is nothing to evaluate: the data set has no rows whose clips can be decoded."


class DroppedRowsError(RuntimeError):
    """Too few rows are left to train or evaluate on, mostly because clips cannot be decoded; the message says why."""


def check_fit(rows: MixedRows, args: AlproTrainingArguments) -> None:
    """Refuse rows that were ordered for other batches: a batch would then mix rows of different sources.

    Raises:
        ValueError: `MixedRows` was built with another batch size, accumulation or number of processes.
    """
    wrong = [
        f"{name}={found} instead of {wanted}"
        for name, found, wanted in (
            ("batch_size", rows.batch_size, args.per_device_train_batch_size),
            ("world_size", rows.world_size, args.world_size),
            ("accumulation", rows.accumulation, args.gradient_accumulation_steps),
        )
        if found != wanted
    ]
    if wrong:
        raise ValueError(
            f"MixedRows was made for another training: {', '.join(wrong)}. Build it with "
            "MixedRows.from_arguments(sources, args)."
        )


def numbered(dataset: Any, training: bool = False) -> Any:
    """The same rows with their numbers, not decoded yet.

    Raises:
        ValueError: There are no rows.
    """
    dataset = undecoded(dataset)
    if dataset is None or isinstance(dataset, NumberedRows) or not hasattr(dataset, "__len__"):
        return dataset
    if not len(dataset):
        raise ValueError(f"The data set to {'train' if training else 'evaluate'} on has no rows. Pass one with rows.")
    return NumberedRows(dataset, training=training)


def refuse_undecodable_evaluation(trainer: Any) -> None:
    """Raise an error if no clip of an evaluation set can be decoded, before the training instead of after it."""
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    for name, rows in sets.items():
        if not (isinstance(rows, NumberedRows) and isinstance(trainer.data_collator, AlproCollator)):
            continue
        problem = None
        for index in range(len(rows)):
            found = trainer.data_collator.problem_of(rows[index])
            if found is None:
                break
            problem = problem or found
        else:
            raise DroppedRowsError(
                f"None of the {len(rows)} clips of the evaluation set{name and f' {name!r}'} can be decoded, the "
                f"first because: {(problem or '').rstrip('.')}. Nothing was trained. Correct the paths, or set "
                "eval_strategy='no'."
            )


def refuse_nothing_learned(trainer: Any, rows_used: int, labels_seen: torch.Tensor | int) -> None:
    """Raise an error if no row, or no labelled question, has been used for learning."""
    used = torch.tensor([rows_used, int(labels_seen)], device=trainer.args.device)
    if in_parallel():
        used = trainer.accelerator.gather(used[None]).sum(dim=0)
    if not used[0]:
        raise DroppedRowsError(why_nothing_was_learned(trainer))
    if not used[1] and "loss" in plain_model(trainer.model).training_losses:
        known = ", ".join(map(repr, list(getattr(trainer.data_collator, "label2id", {}))[:3]))
        raise DroppedRowsError(
            f"Nothing was learned, and nothing was saved: none of the answers of {int(used[0])} questions is one "
            f"that the model can give, such as {known}. Pass the answers of your rows as label2id to the model."
        )


def why_nothing_was_learned(trainer: Any) -> str:
    dropped, read = dropped_and_read(trainer)
    if not read:
        return "Nothing was learned: the data set gave no rows. Nothing was saved. Check the data set."
    listed = dropped_clips(dropped_file(trainer) or "")
    example = f" One of them: {listed[-1]['reason'].rstrip('.')}." if listed else ""
    steps = trainer.args.gradient_accumulation_steps
    rest = f", and the others do not fill a step of {steps} batches" if dropped < read else ""
    return (
        f"Nothing was learned, and nothing was saved: {dropped} of {read} rows were dropped, because their clips "
        f"cannot be decoded{rest}.{example} {dropped_file(trainer)} lists all of them with the reasons. Relative "
        "paths start at the working directory."
    )


def dropped_and_read(trainer: Any) -> tuple[int, int]:
    """Rows dropped and rows read so far, in all processes."""
    collator = trainer.data_collator
    counts = [collator.dropped, collator.read] if isinstance(collator, AlproCollator) else [0, 0]
    gathered = trainer.accelerator.gather(torch.tensor([counts], device=trainer.args.device))
    dropped, read = gathered.sum(dim=0).tolist()
    return dropped, read


def refuse_too_many_dropped(trainer: Any, dropped: int, read: int) -> None:
    if read >= MIN_ROWS_FOR_SHARE and dropped / read > trainer.args.max_dropped_share:
        raise DroppedRowsError(
            f"{dropped} of {read} rows were dropped, because their clips cannot be decoded; "
            f"max_dropped_share={trainer.args.max_dropped_share:g}. {dropped_file(trainer)} lists them with the "
            "reasons. Repair or remove them, or raise max_dropped_share."
        )


def dropped_file(trainer: Any) -> str | os.PathLike[str] | None:
    return trainer.data_collator.dropped_file if isinstance(trainer.data_collator, AlproCollator) else None


def tell_other_start(trainer: Any, checkpoint: str) -> None:
    """Warn if a training continues from a checkpoint that other processes, or other rows, made."""
    wrote, now = processes_of(checkpoint), trainer.args.world_size
    if wrote not in (0, now):
        logger.warning(
            "%s was written by %d processes, and %d continue it: the random numbers of dropout are others, and so "
            "is the batch of a step, unless per_device_train_batch_size x processes is the same.",
            *(checkpoint, wrote, now),
        )
    rows: Any = trainer.train_dataset
    path = Path(checkpoint) / "trainer_state.json"
    if isinstance(rows, MixedRows) or not isinstance(rows, NumberedRows) or not path.is_file():
        return
    state = read_state(checkpoint)
    accumulation = trainer.args.gradient_accumulation_steps
    steps = math.ceil(math.ceil(len(rows) / (trainer.args.train_batch_size * now)) / accumulation)
    step, epoch = state.get("global_step"), state.get("epoch")
    before = steps
    if isinstance(step, int) and isinstance(epoch, int | float) and epoch > 0:
        before = round(min(step / epoch, 1e18))  # an epoch of 1e-320 steps is in no file that we wrote
    if abs(before - steps) > 1:  # an epoch ends between two steps
        logger.warning(
            "%s was made with %d steps an epoch, and the %d rows of train_dataset now make %d: the data set or "
            "the batch is another. The training continues at step %d, and reads other rows than it would have.",
            *(checkpoint, before, len(rows), steps, step),
        )


__all__ = [
    "DROPPED",
    "NOTHING_TO_EVALUATE",
    "DroppedRowsError",
    "check_fit",
    "dropped_and_read",
    "dropped_file",
    "numbered",
    "refuse_nothing_learned",
    "refuse_too_many_dropped",
    "refuse_undecodable_evaluation",
    "tell_other_start",
    "why_nothing_was_learned",
]
