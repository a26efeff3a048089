"""The work of an evaluation: rows are encoded, pairs matched, questions answered, in one process or many.

Work is cut into the same batches whatever the number of processes, which take them in turn and then tell each other
what came out. So several processes compute what one computes, to the last bit, and all of them have all of it.
Every clip is decoded and encoded once, however many captions it has; questions about a clip share its encoding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collator import AlproCollator, Collated
from ..data.rows import NumberedRows, video_id
from ..model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproPreTrainedModel,
)
from .protocols import RetrievalStates, vtm_scores

_TEXTS = 128  # encoded at a time
_AT_ONCE = 512  # pairs that a process takes from the pile
_QUESTION_INPUTS = ("input_ids", "attention_mask", "pixel_values_videos", "video_index", "answer_mask")
T = TypeVar("T")


class Skipped(NamedTuple):
    """A clip that cannot be decoded.

    Args:
        row: Number of the first row that is about it.
        reason: What is wrong with it.
        rows: How many rows are about it.
    """

    row: int
    reason: str
    rows: int


class Answers(NamedTuple):
    """What a model answers; n questions, those whose clips can be decoded.

    Args:
        rows: int64 (n,), numbers of their rows, ascending.
        labels: int64 (n,), the answer given.
        probabilities: float32 (n,), of the answer given.
        ranks: float64 (n,), of the right answer among all, expected as for retrieval where logits are equal; infinite
            where the right answer is none that the model knows.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    probabilities: torch.Tensor
    ranks: torch.Tensor


@torch.inference_mode()
def encode_rows(
    model: AlproPreTrainedModel,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 16,
    workers: int = 0,
    keep_states: bool = True,
    title: str | None = None,
) -> tuple[RetrievalStates, list[Skipped]]:
    """Encode the texts and clips of retrieval rows, each once.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode and on its device.
        processor: Its `AlproProcessor`, which decides on frames and text length.
        rows: `{"video", "text"}`, see `AlproCollator`; a `Dataset` or a list.
        batch_size: Clips encoded at a time.
        workers: Processes that decode ahead; 0: none.
        keep_states: Whether to keep the tokens that matching needs.
        title: Of the progress bars; None: no bars.

    Returns:
        States on the model's device, in the order of the rows that are left; and the clips that are left out.

    Raises:
        ValueError: No clip can be decoded, or there are no rows.
    """
    base = cast(AlproModel, model.base_model)
    clips: dict[int, list[int]] = {}  # id -> numbers of the rows about it
    texts: list[str] = []
    for number, row in enumerate(_bar(rows, title and f"{title}: rows", "row")):
        clips.setdefault(video_id(row), []).append(number)
        texts.append(row["text"])
    ids = torch.empty(len(texts), dtype=torch.int64)
    for identity, numbers in clips.items():
        ids[numbers] = identity

    empty = torch.zeros(0, base.config.projection_dim, device=base.device)
    none = torch.zeros(0, dtype=torch.int64)
    parts: list[RetrievalStates] = []
    lost: dict[int, str] = {}  # number of the first row -> reason
    firsts = [numbers[0] for numbers in clips.values()]
    for collated, chosen in _decoded(
        rows, _cut(firsts, batch_size), AlproCollator(processor), workers, title and f"{title}: clips"
    ):
        lost |= {chosen[place]: reason for place, reason in collated.failures.items()}
        if not collated.rows:
            continue
        video = base.get_video_features(collated.batch["pixel_values_videos"].to(base.device))
        states = video.last_hidden_state if keep_states else None
        found = collated.batch["video_ids"]
        parts.append(RetrievalStates(none, none, empty, found, video.pooler_output.float(), video_states=states))
    for batch in _bar(_own(_cut(range(len(texts)), _TEXTS)), title and f"{title}: texts", "batch"):
        words = processor(text=[texts[number] for number in batch], return_tensors="pt").to(base.device)
        text = base.get_text_features(words["input_ids"], words["attention_mask"])
        tokens = (text.last_hidden_state, words["attention_mask"]) if keep_states else (None, None)
        places = torch.tensor(batch)
        parts.append(RetrievalStates(places, ids[places], text.pooler_output.float(), none, empty, *tokens))

    parts, failures = gather_states(parts), _together([lost])
    lost = {number: reason for part in failures for number, reason in part.items()}
    skipped = [Skipped(n, lost[n], len(numbers)) for numbers in clips.values() if (n := numbers[0]) in lost]
    if len(lost) == len(clips):
        raise ValueError(
            f"None of the {len(clips)} clips can be decoded; the first: {skipped[0].reason}"
            if skipped
            else "There is nothing to encode: the data set has no rows."
        )
    return _without(merge_states(parts).to(base.device), [ids[skip.row] for skip in skipped]), skipped


def gather_states(parts: list[RetrievalStates]) -> list[RetrievalStates]:
    """The parts that all processes have encoded."""
    if processes().num_processes == 1:
        return parts
    return _together([part.to("cpu") for part in parts])


def _without(states: RetrievalStates, lost: Sequence[torch.Tensor]) -> RetrievalStates:
    """The rows whose clips are there."""
    if not lost:
        return states
    kept = ~torch.isin(states.row_video_ids, torch.stack(list(lost)).to(states.row_video_ids.device))
    for name in ("row_ids", "row_video_ids", "text_embeds", "text_states", "text_mask"):
        value = getattr(states, name)
        setattr(states, name, None if value is None else value[kept])
    return states


@torch.inference_mode()
def match_pairs(
    model: AlproForVideoTextRetrieval,
    states: RetrievalStates,
    pairs: torch.Tensor,
    *,
    batch_size: int | None = None,
    title: str | None = None,
) -> torch.Tensor:
    """Matching logits of pairs of encoded texts and clips, each process computing its share.

    The pile is sorted by clips, so that a process has many pairs of the same ones.

    Args:
        model: In evaluation mode.
        states: With the tokens, see `encode_rows`.
        pairs: int64 (n, 2), index of a text and of a clip.
        batch_size: Pairs fused at a time; None: what `vtm_scores` finds right.
        title: Of the progress bar; None: no bar.

    Returns:
        float32 (n, 2); column 1 = matched.
    """
    assert states.text_states is not None
    assert states.video_states is not None
    order = pairs[:, 1].argsort(stable=True)
    batches = pairs[order].split(_AT_ONCE if batch_size is None else 8 * batch_size)
    own = [
        vtm_scores(model, states.text_states, states.text_mask, states.video_states, batch, batch_size)
        for batch in _bar(_own(batches), title, f"{len(batches[0])} pairs")
    ]
    parts = own
    if processes().num_processes > 1:
        parts = [torch.empty(0)] * len(batches)
        for rank, share in enumerate(_together([[part.cpu() for part in own]])):
            parts[rank :: processes().num_processes] = share
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, order.to(logits.device), logits)


@torch.inference_mode()
def answer_rows(
    model: AlproForVideoQuestionAnswering,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 64,
    workers: int = 0,
    title: str | None = None,
) -> tuple[Answers, list[Skipped]]:
    """Answer questions about clips.

    Args:
        model: In evaluation mode and on its device.
        processor: Its `AlproProcessor`.
        rows: `{"video", "question", "answer"}`, see `AlproCollator`; a `Dataset` or a list.
        batch_size: Questions answered at a time. Those about one clip come together, in whatever order they are.
        workers, title: As in `encode_rows`.

    Returns:
        The answers, and the clips that are left out.

    Raises:
        ValueError: No clip can be decoded, or there are no rows.
    """
    clips: dict[int, list[int]] = {}
    for number, row in enumerate(_bar(rows, title and f"{title}: rows", "row")):
        clips.setdefault(video_id(row), []).append(number)
    label2id: Any = model.config.label2id
    collator = AlproCollator(processor, task="qa", label2id=label2id)
    parts: list[torch.Tensor] = []
    lost: dict[int, str] = {}
    batches = list(_whole_clips(clips.values(), batch_size))
    for collated, chosen in _decoded(rows, batches, collator, workers, title and f"{title}: questions"):
        lost |= {chosen[place]: reason for place, reason in collated.failures.items()}
        if not collated.rows:
            continue
        inputs = {name: collated.batch[name].to(model.device) for name in _QUESTION_INPUTS if name in collated.batch}
        logits = model(**inputs).logits.float().cpu()
        found = logits.softmax(dim=1).max(dim=1)
        right = collated.batch["labels"]
        own = logits.gather(1, right.clamp(min=0)[:, None])
        ties = (logits == own).sum(dim=1) - 1
        ranks = torch.where(right >= 0, 1 + (logits > own).sum(dim=1) + ties / 2, torch.inf)
        columns = (collated.batch["row_ids"], found.indices, found.values, ranks)
        parts.append(torch.stack([column.double() for column in columns], dim=1))
    parts, failures = _together(parts), _together([lost])
    lost = {number: reason for part in failures for number, reason in part.items()}
    skipped = [Skipped(n, lost[n], len(numbers)) for numbers in clips.values() if (n := numbers[0]) in lost]
    if not parts:
        raise ValueError(
            f"None of the {len(clips)} clips can be decoded; the first: {skipped[0].reason}"
            if skipped
            else "There is nothing to evaluate: the data set has no rows."
        )
    table = torch.cat(parts)
    row_numbers, labels, probabilities, ranks = table[table[:, 0].argsort()].unbind(dim=1)
    return Answers(row_numbers.long(), labels.long(), probabilities.float(), ranks), skipped


def _whole_clips(clips: Iterable[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Batches of row numbers in which the questions about a clip stay together, if they are not too many."""
    batch: list[int] = []
    for numbers in clips:
        if batch and len(batch) + len(numbers) > batch_size:
            yield batch
            batch = []
        batch = batch + numbers
        while len(batch) > batch_size:
            yield batch[:batch_size]
            batch = batch[batch_size:]
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------------------- processes


def processes() -> PartialState:
    """The processes that share the work and the device of this one, as the launcher started them; often just one.

    Where there is no accelerator, `PartialState()` by itself takes every process of torchrun for the only one.
    """
    return PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _own(batches: Sequence[T]) -> Sequence[T]:
    """What this process has to do."""
    state = processes()
    return batches[state.process_index :: state.num_processes]


def _together(own: list[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    return own if processes().num_processes == 1 else cast(list[T], gather_object(own))


def _decoded(
    rows: Any, batches: Sequence[Sequence[int]], collator: AlproCollator, workers: int, title: str | None
) -> Iterator[tuple[Collated, Sequence[int]]]:
    """The batches of this process, collated, and the numbers of their rows."""
    own = [list(batch) for batch in _own(batches)]
    collate: Callable[[list[Any]], Collated] = collator.collate
    loader = DataLoader(NumberedRows(rows), batch_sampler=own, collate_fn=collate, num_workers=workers)
    yield from zip(_bar(loader, title, "batch", len(own)), own, strict=True)


def _bar(items: Iterable[T], title: str | None, unit: str, total: int | None = None) -> Iterable[T]:
    """With a progress bar on stderr, in the first process alone, once it takes longer than a moment."""
    hidden = not title or not processes().is_main_process
    return tqdm(items, desc=title, unit=unit, total=total, disable=hidden, delay=1)


@torch.no_grad()
def encode_batches(
    model: AlproPreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    keep_states: bool = False,
    on_batch: Callable[[], None] | None = None,
) -> RetrievalStates:
    """Encode collated retrieval rows: every text once, and every clip once however many captions it has.

    Args:
        model: Any ALPRO model with both towers, unwrapped; put in evaluation mode by the caller.
        batches: What `AlproCollator(task="retrieval")` returns. Rows without `row_ids` are numbered as they come.
        keep_states: Whether to keep the tokens that matching needs.
        on_batch: Called after each batch.

    Returns:
        States on the model's device, in order of `row_ids`.
    """
    base = cast(AlproModel, model.base_model)
    device = base.device
    parts: list[RetrievalStates] = []
    seen: set[int] = set()
    count = 0
    for batch in batches:
        video_ids = batch["video_ids"].cpu()
        first: dict[int, int] = {}
        for row, video in enumerate(video_ids.tolist()):
            if video not in seen:
                first.setdefault(video, row)
        seen.update(first)
        mask = batch["attention_mask"].to(device)
        text = base.get_text_features(batch["input_ids"].to(device), mask)
        row_ids = batch.get("row_ids")
        part = RetrievalStates(
            row_ids=torch.arange(count, count + len(video_ids)) if row_ids is None else row_ids.cpu(),
            row_video_ids=video_ids,
            text_embeds=text.pooler_output.float(),
            video_ids=torch.tensor(list(first), dtype=torch.long),
            video_embeds=text.pooler_output.new_zeros((0, text.pooler_output.shape[1]), dtype=torch.float32),
            text_states=text.last_hidden_state if keep_states else None,
            text_mask=mask if keep_states else None,
        )
        if first:
            pixels = batch["pixel_values_videos"]
            rows = torch.tensor(list(first.values()), device=pixels.device)
            video = base.get_video_features(pixels[rows].to(device))
            part.video_embeds = video.pooler_output.float()
            part.video_states = video.last_hidden_state if keep_states else None
        parts.append(part)
        count += len(video_ids)
        if on_batch is not None:
            on_batch()
    if not parts:
        raise ValueError("There is nothing to encode: the data set has no rows.")
    return merge_states(parts).to(device)


def merge_states(parts: Sequence[RetrievalStates]) -> RetrievalStates:
    """Join what several batches or processes encoded; a row or a clip that occurs twice counts once."""
    rows = torch.cat([part.row_ids for part in parts])
    videos = torch.cat([part.video_ids for part in parts])
    row_ids, row_order = _first_occurrences(rows)
    video_ids, video_order = _first_occurrences(videos)
    video_states = [part.video_states for part in parts if part.video_states is not None]
    text_states = [part.text_states for part in parts if part.text_states is not None]
    text_masks = [part.text_mask for part in parts if part.text_mask is not None]
    return RetrievalStates(
        row_ids=row_ids,
        row_video_ids=torch.cat([part.row_video_ids for part in parts])[row_order],
        text_embeds=torch.cat([part.text_embeds for part in parts])[row_order],
        video_ids=video_ids,
        video_embeds=torch.cat([part.video_embeds for part in parts])[video_order],
        text_states=_cat_padded(text_states)[row_order] if text_states else None,
        text_mask=_cat_padded(text_masks)[row_order] if text_masks else None,
        video_states=torch.cat(video_states)[video_order] if video_states else None,
    )


def _first_occurrences(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Different values in ascending order, and where each comes first."""
    unique, first = np.unique(ids.numpy(force=True), return_index=True)
    return torch.from_numpy(unique), torch.from_numpy(first)


def _cat_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate (n_i, L_i, ...) along the first dimension, zeros up to the longest L_i."""
    length = max(tensor.shape[1] for tensor in tensors)
    joined = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), length, *tensors[0].shape[2:]))
    start = 0
    for tensor in tensors:
        joined[start : start + len(tensor), : tensor.shape[1]] = tensor
        start += len(tensor)
    return joined


__all__ = ["Answers", "Skipped", "answer_rows", "encode_rows", "gather_states", "match_pairs", "processes"]
