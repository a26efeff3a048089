"""The work of an evaluation: encode rows and windows, match pairs and answer questions, in one process or several.

Work is cut into the same batches whatever the number of processes. The processes take batches in turn and then
exchange the results. So several processes compute the same as one, to the last bit, and each has all results. Every
clip is decoded and encoded once, however many captions it has. Questions about a clip share its encoding.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collator import AlproCollator, Collated
from ..data.prefetch import prefetched
from ..data.rows import NumberedRows, undecoded, video_id
from ..data.windows import Window, WindowSettings, model_windows
from ..model.decoding_column import file_of
from ..model.decoding_types import VideoDecodeError
from ..model.matching_alpro import encode_clips, vtm_scores
from ..model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproPreTrainedModel,
)
from ..model.wrappers_alpro import plain_model
from .metrics import expected_rank
from .protocols import RetrievalStates

_TEXTS = 128  # encoded at a time
_PAIRS = 512  # that a process takes at a time
_QUESTION_INPUTS = ("input_ids", "attention_mask", "pixel_values_videos", "video_index", "answer_mask")
T = TypeVar("T")


class Skipped(NamedTuple):
    """A clip that cannot be decoded.

    Args:
        row: Number of the first row about it.
        reason: Why it cannot be decoded.
        rows: How many rows are about it.
    """

    row: int
    reason: str
    rows: int


class Answers(NamedTuple):
    """Answers of a model to n questions, those whose clips can be decoded.

    Args:
        rows: int64 (n,), numbers of their rows, ascending.
        labels: int64 (n,), the answer given.
        probabilities: float32 (n,), of the answer given.
        ranks: float64 (n,), rank of the right answer among all, see `metrics.expected_rank`; infinite if the model
            does not know the right answer.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    probabilities: torch.Tensor
    ranks: torch.Tensor


class VideoWindows(NamedTuple):
    """The windows of one video.

    Args:
        rows: Numbers of the rows about it.
        spans: Start and end of each window, in seconds.
        embeds: float32 (windows, P), their unit vectors, on the CPU.
    """

    rows: list[int]
    spans: list[tuple[float, float]]
    embeds: torch.Tensor


class WindowStates(NamedTuple):
    """Encoded rows of moments.

    Args:
        text_embeds: float32 (rows, P), unit vectors on the CPU.
        videos: Those that can be decoded, in the order of their first rows.
    """

    text_embeds: torch.Tensor
    videos: list[VideoWindows]


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
        workers: Processes that decode ahead; 0: a thread of this process does.
        keep_states: Whether to keep the tokens that matching needs.
        title: Title of the progress bars; None: no bars.

    Returns:
        States on the model's device, of the rows whose clips can be decoded, in their order; and the other clips.

    Raises:
        ValueError: No clip can be decoded, or there are no rows.
    """
    rows = undecoded(rows)
    base = cast(AlproModel, plain_model(model).base_model)
    clips: dict[int, list[int]] = {}  # id -> numbers of the rows about it
    texts: list[str] = []
    for number, row in enumerate(_bar(rows, title and f"{title}: rows", "row")):
        clips.setdefault(video_id(row), []).append(number)
        texts.append(row["text"])
    ids = torch.empty(len(texts), dtype=torch.int64)
    for identity, numbers in clips.items():
        ids[numbers] = identity

    # parts hold either clips or texts; the other half of a part is empty, and `merge_states` joins both
    empty = torch.zeros(0, base.config.projection_dim, device=base.device)
    none = torch.zeros(0, dtype=torch.int64)
    parts: list[RetrievalStates] = []
    lost: dict[int, str] = {}  # number of the first row -> reason
    firsts = [numbers[0] for numbers in clips.values()]  # each clip is decoded for the first row about it
    for collated, chosen in _decoded(
        rows, _cut(firsts, batch_size), AlproCollator(processor), workers, title and f"{title}: clips"
    ):
        lost |= {chosen[place]: reason for place, reason in collated.failures.items()}
        if not collated.rows:  # no clip of the batch can be decoded
            continue
        embeds, states = _clip_features(base, collated.batch["pixel_values_videos"], keep_states)
        parts.append(RetrievalStates(none, none, empty, collated.batch["video_ids"], embeds, video_states=states))
    for batch in _bar(_own(_cut(range(len(texts)), _TEXTS)), title and f"{title}: texts", "batch"):
        words = processor(text=[texts[number] for number in batch], return_tensors="pt").to(base.device)
        text = base.get_text_features(words["input_ids"], words["attention_mask"])
        tokens = (text.last_hidden_state, words["attention_mask"]) if keep_states else (None, None)
        places = torch.tensor(batch)  # in the list of texts, which is also the number of the row
        parts.append(RetrievalStates(places, ids[places], text.pooler_output.float(), none, empty, *tokens))

    parts, skipped = gather_states(parts), _skipped(lost, clips)
    return _without(merge_states(parts).to(base.device), [ids[skip.row] for skip in skipped]), skipped


@torch.inference_mode()
def encode_windows(
    model: AlproPreTrainedModel,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    windows: WindowSettings,
    *,
    batch_size: int = 16,
    title: str | None = None,
) -> tuple[WindowStates, list[Skipped]]:
    """Encode the texts of rows, and their videos as windows. Each video is decoded once, by one of the processes.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode and on its device.
        processor: Its `AlproProcessor`, which decides on the frames of a window and on the length of texts.
        rows: `{"video", "text"}`; a `Dataset` or a list.
        windows: How videos are cut.
        batch_size: Windows encoded at a time.
        title: Title of the progress bars; None: no bars.

    Returns:
        The encoded rows, and the videos that cannot be decoded.

    Raises:
        ValueError: No video can be decoded, or there are no rows.
    """
    rows = undecoded(rows)
    base = cast(AlproModel, plain_model(model).base_model)
    videos: dict[int, list[int]] = {}
    texts: list[str] = []
    for number, row in enumerate(_bar(rows, title and f"{title}: rows", "row")):
        videos.setdefault(video_id(row), []).append(number)
        texts.append(row["text"])
    found: list[VideoWindows] = []
    lost: dict[int, str] = {}
    own = _bar(_own(list(videos.values())), title and f"{title}: videos", "video")
    spans: list[tuple[float, float]] = []
    vectors: list[torch.Tensor] = []
    for numbers, decoded, end in prefetched(_window_batches(rows, own, processor, windows, batch_size)):
        vectors += [clip.embed.cpu() for clip in encode_clips(base, [pixels for _, pixels in decoded])]
        spans += [(window.start, window.end) for window, _ in decoded]
        if end is None:
            continue
        if end is True:
            found.append(VideoWindows(numbers, spans, torch.stack(vectors)))
        else:  # the windows before the damage do not count: what is lost is the video
            lost[numbers[0]] = end
        spans, vectors = [], []
    embeds = []
    for batch in _cut(texts, _TEXTS):
        words = processor(text=list(batch), return_tensors="pt").to(base.device)
        text = base.get_text_features(words["input_ids"], words["attention_mask"])
        embeds.append(text.pooler_output.float().cpu())
    found, skipped = _together(found), _skipped(lost, videos)
    return WindowStates(torch.cat(embeds), sorted(found, key=lambda video: video.rows[0])), skipped


def _window_batches(
    rows: Any, videos: Iterable[list[int]], processor: Any, windows: WindowSettings, batch_size: int
) -> Generator[tuple[list[int], list[tuple[Window, torch.Tensor]], Literal[True] | str | None], None, None]:
    """Decode videos one after the other, each given by the numbers of the rows about it.

    Yields:
        The numbers; up to `batch_size` windows with their pixels; and None if the video goes on, True if it has ended,
        or why it cannot be decoded.
    """
    for numbers in videos:
        try:
            found = model_windows(file_of(rows[numbers[0]]["video"]), processor, windows)
            while batch := list(islice(found, batch_size)):
                yield numbers, batch, None
        except (VideoDecodeError, OSError) as error:
            yield numbers, [], str(error)
        else:
            yield numbers, [], True


def gather_states(parts: list[RetrievalStates]) -> list[RetrievalStates]:
    """Exchange encoded parts between all processes.

    Args:
        parts: The parts that this process has encoded.

    Returns:
        The parts of all processes, those of the first one first; on the CPU if there are several processes.
    """
    if processes().num_processes == 1:
        return parts
    # objects are exchanged by pickling, and a tensor on a GPU would be restored on the device of its sender
    return _together([part.to("cpu") for part in parts])


def _clip_features(
    model: AlproModel, pixels: torch.Tensor, keep_states: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Unit vectors (n, P) of a batch of clips, and their tokens (n, 1 + N, D) if they are kept."""
    encoded = encode_clips(model, pixels)
    tokens = torch.stack([clip.tokens for clip in encoded]) if keep_states else None
    return torch.stack([clip.embed for clip in encoded]), tokens


def _skipped(lost: dict[int, str], clips: Mapping[int, Sequence[int]]) -> list[Skipped]:
    """The clips that no process could decode.

    Args:
        lost: Number of the first row about a clip -> reason, of the clips of this process.
        clips: Clip -> numbers of the rows about it, of all processes.

    Raises:
        ValueError: None of the clips can be decoded, or there are none.
    """
    # collective: every process has to come here, also one without failures
    reasons = {number: reason for part in _together([lost]) for number, reason in part.items()}
    skipped = [Skipped(n, reasons[n], len(numbers)) for numbers in clips.values() if (n := numbers[0]) in reasons]
    if not clips:
        raise ValueError("There is nothing to evaluate: the data set has no rows.")
    if len(skipped) == len(clips):
        raise ValueError(f"None of the {len(clips)} clips can be decoded; the first: {skipped[0].reason}")
    return skipped


def _without(states: RetrievalStates, lost: Sequence[torch.Tensor]) -> RetrievalStates:
    """The states without the rows about some clips."""
    if not lost:
        return states
    kept = ~torch.isin(states.row_video_ids, torch.stack(list(lost)).to(states.row_video_ids.device))
    for name in ("row_ids", "row_video_ids", "text_embeds", "text_states", "text_mask"):
        value = getattr(states, name)
        setattr(states, name, None if value is None else value[kept])
    return states


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
        model: Any ALPRO model with both towers, unwrapped and in evaluation mode.
        batches: Results of `AlproCollator(task="retrieval")`. Rows without `row_ids` are numbered in their order.
        keep_states: Whether to keep the tokens that matching needs.
        on_batch: Called after each batch.

    Returns:
        States on the model's device, in the order of `row_ids`.

    Raises:
        ValueError: There are no batches.
    """
    base = cast(AlproModel, plain_model(model).base_model)
    device = base.device
    parts: list[RetrievalStates] = []
    seen: set[int] = set()
    count = 0
    for batch in batches:
        video_ids = batch["video_ids"].cpu()
        first: dict[int, int] = {}  # clip that no batch had before -> its first row in this one
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
            # a batch may bring no new clip; its part then has no row of videos
            video_embeds=text.pooler_output.new_zeros((0, text.pooler_output.shape[1]), dtype=torch.float32),
            text_states=text.last_hidden_state if keep_states else None,
            text_mask=mask if keep_states else None,
        )
        if first:
            pixels = batch["pixel_values_videos"]
            rows = torch.tensor(list(first.values()), device=pixels.device)
            part.video_embeds, part.video_states = _clip_features(base, pixels[rows], keep_states)
        parts.append(part)
        count += len(video_ids)
        if on_batch is not None:
            on_batch()
    if not parts:
        raise ValueError("There is nothing to encode: the data set has no rows.")
    return merge_states(parts).to(device)


def merge_states(parts: Sequence[RetrievalStates]) -> RetrievalStates:
    """Join the states of several batches or processes. A row or a clip that occurs twice is kept once.

    Args:
        parts: At least one; all of them with tokens, or none.

    Returns:
        States in ascending order of `row_ids` and `video_ids`.
    """
    # The sampler of several processes repeats rows to give all of them the same number, and a clip may have been
    # encoded by two processes.
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
    """Distinct values in ascending order, and the first position of each."""
    unique, first = np.unique(ids.numpy(force=True), return_index=True)
    return torch.from_numpy(unique), torch.from_numpy(first)


def _cat_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate (n_i, L_i, ...) along the first dimension, padded with zeros to the longest L_i."""
    length = max(tensor.shape[1] for tensor in tensors)
    joined = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), length, *tensors[0].shape[2:]))
    start = 0
    for tensor in tensors:
        joined[start : start + len(tensor), : tensor.shape[1]] = tensor
        start += len(tensor)
    return joined


@torch.inference_mode()
def match_pairs(
    model: AlproForVideoTextRetrieval,
    states: RetrievalStates,
    pairs: torch.Tensor,
    *,
    batch_size: int | None = None,
    title: str | None = None,
) -> torch.Tensor:
    """Matching logits of pairs of encoded texts and clips. Each process computes its share.

    Pairs are sorted by clips, so that a process gets many pairs of the same clips.

    Args:
        model: In evaluation mode.
        states: States with the tokens, see `encode_rows`.
        pairs: int64 (n, 2), index of a text and of a clip.
        batch_size: Pairs fused at a time; None: see `vtm_scores`.
        title: Title of the progress bar; None: no bar.

    Returns:
        float32 (n, 2); column 1 = matched.
    """
    assert states.text_states is not None
    assert states.video_states is not None
    order = pairs[:, 1].argsort(stable=True)
    # the batches must not depend on the number of processes, or the logits would differ in their last bits
    batches = pairs[order].split(_PAIRS if batch_size is None else 8 * batch_size)
    own = [
        vtm_scores(model, states.text_states, states.text_mask, states.video_states, batch, batch_size)
        for batch in _bar(_own(batches), title, f"{len(batches[0])} pairs")
    ]
    parts = own
    if processes().num_processes > 1:
        # batches were dealt out in turn, see `_own`, and go back to their places
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
        batch_size: Questions answered at a time. Questions about one clip stay together, whatever the order of rows.
        workers, title: As in `encode_rows`.

    Returns:
        The answers, and the clips that cannot be decoded.

    Raises:
        ValueError: No clip can be decoded, or there are no rows.
    """
    rows = undecoded(rows)
    model = plain_model(model)
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
        equal = (logits == own).scatter(1, right.clamp(min=0)[:, None], False)
        # an answer that the model does not know has the label -100; it is never found
        ranks = torch.where(right >= 0, expected_rank(logits > own, equal), torch.inf)
        # one table is exchanged instead of four tensors; float64 holds row numbers and float32 exactly
        columns = (collated.batch["row_ids"], found.indices, found.values, ranks)
        parts.append(torch.stack([column.double() for column in columns], dim=1))
    parts, skipped = _together(parts), _skipped(lost, clips)
    table = torch.cat(parts)
    row_numbers, labels, probabilities, ranks = table[table[:, 0].argsort()].unbind(dim=1)
    return Answers(row_numbers.long(), labels.long(), probabilities.float(), ranks), skipped


def _whole_clips(clips: Iterable[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Batches of row numbers. Questions about one clip are in one batch, unless there are more than `batch_size`."""
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


def processes() -> PartialState:
    """The processes that share the work, as the launcher started them; often just one."""
    # without an accelerator and without cpu=True, `PartialState()` takes each process of torchrun for the only one
    return PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))


def _cut(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _own(batches: Sequence[T]) -> Sequence[T]:
    """The batches of this process: every n-th one of n processes."""
    state = processes()
    return batches[state.process_index :: state.num_processes]


def _together(own: list[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    return own if processes().num_processes == 1 else cast(list[T], gather_object(own))


def _decoded(
    rows: Any, batches: Sequence[Sequence[int]], collator: AlproCollator, workers: int, title: str | None
) -> Iterator[tuple[Collated, Sequence[int]]]:
    """Collated batches of this process, each with the numbers of its rows. The next ones are decoded meanwhile."""
    own = [list(batch) for batch in _own(batches)]
    collate: Callable[[list[Any]], Collated] = collator.collate
    loader = DataLoader(NumberedRows(rows), batch_sampler=own, collate_fn=collate, num_workers=workers)
    with closing(prefetched(loader)) if not workers else nullcontext(loader) as batches_ahead:
        yield from zip(_bar(batches_ahead, title, "batch", len(own)), own, strict=True)


def _bar(items: Iterable[T], title: str | None, unit: str, total: int | None = None) -> Iterable[T]:
    """The items with a progress bar on stderr, in the first process only, shown after a second."""
    hidden = not title or not processes().is_main_process
    return tqdm(items, desc=title, unit=unit, total=total, disable=hidden, delay=1)


__all__ = [
    "Answers",
    "Skipped",
    "VideoWindows",
    "WindowStates",
    "answer_rows",
    "encode_batches",
    "encode_rows",
    "encode_windows",
    "gather_states",
    "match_pairs",
    "merge_states",
    "processes",
]
