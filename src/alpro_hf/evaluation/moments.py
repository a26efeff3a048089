"""Evaluate moment retrieval: when does a video show what a text says?

Each video is cut into windows while it is decoded once. The windows are ranked by their similarity to the text. One
that overlaps too much with a better one of its video is left out. The metrics are those of
`metrics/video_moment_retrieval`, computed from the rows of the result; a test holds the two equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.proposals import LONGEST_JOINED, Near, proposals, trim_ends
from ..data.rows import undecoded
from ..data.windows import WindowSettings, overlap, suppress
from ..model.matching_alpro import vtc_scores
from ..model.modeling_alpro import AlproPreTrainedModel
from .encode import WindowStates, encode_windows
from .figures import OVERLAPS_PICTURE, plot_overlaps
from .measure import EvaluationOutcome, clip_name
from .results import Row, row_metrics
from .settings import MomentGallery

MOMENTS_KEPT = 10  # of each query, in the rows of a result
MOST_OVERLAP = 0.5  # of two moments of one video in an answer
_FOUND = 0.5  # overlap from which on a moment counts as found, for `rank`


class _Gallery(NamedTuple):
    """The windows that a query is compared with: (video, start, end) of each, and float32 (windows, P)."""

    spans: list[tuple[int, float, float]]
    embeds: torch.Tensor


def measure_moments(
    model: AlproPreTrainedModel,
    processor: Any,
    rows: Sequence[Mapping[str, Any]],
    windows: WindowSettings | None = None,
    gallery: MomentGallery = "own",
    *,
    join: bool = False,
    trim: bool = False,
    computing: AbstractContextManager[Any] | None = None,
    **work: Any,
) -> EvaluationOutcome:
    """Evaluate moment retrieval by the similarity of texts and windows.

    Args:
        model: Any model with both towers, on its device and in evaluation mode.
        processor: Its `AlproProcessor`.
        rows: `{"video", "text", "windows"}`; `windows` are the right moments, `[start, end]` in seconds.
        windows: How videos are cut. Short ones are cut as well.
        gallery: `own`: the windows of the video that the text is about, as data sets of moments define the task.
            `all`: those of all videos, so the right video has to be found, too.
        join, trim: Whether neighbouring windows are joined, and ends of moments cut off, as `VideoIndex.search` does.
        computing: Context in which the model runs, such as autocast.
        work: `batch_size` and `title` of `encode_windows`.

    Raises:
        ValueError: There are no rows, or none of their videos can be decoded.
    """
    windows, rows = WindowSettings() if windows is None else windows, undecoded(rows)
    with nullcontext() if computing is None else computing:
        states, skipped = encode_windows(model, processor, rows, windows, **work)
    numbers = [number for video in states.videos for number in video.rows]
    names = {place: clip_name(rows[video.rows[0]], video.rows[0]) for place, video in enumerate(states.videos)}
    stages = _Stages(LONGEST_JOINED * windows.longest if join else None, trim)
    predictions = dict(_predictions(states, rows, gallery, names, stages))
    numbers.sort()
    found = [predictions[number] for number in numbers]
    overlaps = {f"R@{k}": np.array([row[name] for row in found]) for k, name in ((1, "iou"), (5, "iou_at_5"))}
    return EvaluationOutcome(
        protocol={
            "name": "vtc",
            "gallery": gallery,
            "windows": list(windows.lengths),
            "stride": windows.stride_of(windows.longest),
            "cuts": windows.cuts,
            "join": join,
            "trim": trim,
            "most_overlap": MOST_OVERLAP,
        },
        metrics={name: float(metric.statistic(metric.values)) for name, metric in row_metrics(found).items()},
        predictions=found,
        numbers=numbers,
        skipped=skipped,
        counts={
            "queries": len(found),
            "videos": len(states.videos),
            "windows": sum(len(video.spans) for video in states.videos),
        },
        pictures={OVERLAPS_PICTURE: lambda: plot_overlaps(overlaps)},
    )


class _Stages(NamedTuple):
    """Seconds that joined windows may have, None without joining; and whether ends are cut off."""

    longest: float | None
    trim: bool


def _predictions(
    states: WindowStates,
    rows: Sequence[Mapping[str, Any]],
    gallery: MomentGallery,
    names: Mapping[int, str],
    stages: _Stages,
) -> Iterator[tuple[int, Row]]:
    """Number and prediction of each row."""
    own = [
        _Gallery([(place, start, end) for start, end in video.spans], video.embeds)
        for place, video in enumerate(states.videos)
    ]
    whole = _Gallery([span for one in own for span in one.spans], torch.cat([one.embeds for one in own]))
    for place, video in enumerate(states.videos):
        candidates = own[place] if gallery == "own" else whole
        for number in video.rows:
            scores = vtc_scores(states.text_embeds[number, None], candidates.embeds)[0]
            found = [
                {"video": shown, "start": start, "end": end, "score": float(scores[one])}
                for one, (shown, start, end) in _moments(scores, candidates.spans, stages)
            ]
            row = rows[number]
            prediction = moment_row(row["text"], place, row["windows"], found)
            prediction["video"] = names[place]
            for moment in prediction["moments"]:
                moment["video"] = names[moment["video"]]
            yield number, prediction


def _moments(
    scores: torch.Tensor, spans: Sequence[tuple[int, float, float]], stages: _Stages
) -> list[tuple[int, tuple[int, float, float]]]:
    """The best moments: the most similar window of each, and its video, start and end."""
    if stages.longest is None and not stages.trim:
        return [(one, spans[one]) for one in best_moments(scores, spans)]
    similarity = scores.tolist()
    windows: dict[int, list[int]] = {}
    for place, (video, _, _) in enumerate(spans):
        windows.setdefault(video, []).append(place)

    def around(place: int) -> Near:
        places = windows[spans[place][0]]
        return Near(places, [spans[one][1:] for one in places], [similarity[one] for one in places])

    order = scores.argsort(descending=True, stable=True).tolist()
    made = [(one, spans[one]) for one in order]
    if stages.longest is not None:
        made = [(one, (spans[one][0], start, end)) for one, start, end in proposals(order, around, stages.longest)]
    kept = suppress([(str(video), start, end) for _, (video, start, end) in made], most=MOST_OVERLAP)[:MOMENTS_KEPT]
    found = [made[one] for one in kept]
    if not stages.trim:
        return found
    near = [around(one) for one, _ in found]
    return [
        (one, (span[0], *trim_ends(about.spans, about.similarity, *span[1:])))
        for (one, span), about in zip(found, near, strict=True)
    ]


def best_moments(
    scores: torch.Tensor, spans: Sequence[tuple[Any, float, float]], top: int = MOMENTS_KEPT
) -> list[int]:
    """The places of the windows with the highest scores, best first, without those that overlap with a better one.

    Args:
        scores: (windows,). Of equal scores the first window leads.
        spans: Video, start and end in seconds of each window.
        top: How many.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    some = 8 * top  # usually enough of them remain: looking at all windows of a collection would take long
    while True:
        kept = suppress([(str(spans[one][0]), *spans[one][1:]) for one in order[:some]], most=MOST_OVERLAP)
        if len(kept) >= top or some >= len(order):
            return [order[one] for one in kept[:top]]
        some *= 4


def moment_row(text: str, video: Any, windows: Sequence[Sequence[float]], found: Sequence[Mapping[str, Any]]) -> Row:
    """The prediction for a query, a row of `predictions.jsonl`.

    Args:
        text: The query.
        video: The video that it is about.
        windows: Its right moments, `[start, end]` in seconds.
        found: `{"video", "start", "end"}` of the moments that were found, best first.

    Returns:
        `query`, `video`, `windows`; `rank`, that of the first moment that overlaps by at least 0.5 with a right one,
        or None; `iou`, the overlap of the first moment with the right one that it overlaps with most; `iou_at_5`, the
        greatest overlap of the first five; `video_found`, whether the first moment is one of the right video; and
        `moments`, those that were found, each with its `iou`.
    """
    moments = []
    for moment in found:
        start, end = moment["start"], moment["end"]
        best = max(overlap(start, end, first, last) for first, last in windows) if moment["video"] == video else 0.0
        moments.append({**moment, "iou": best})
    overlaps = [moment["iou"] for moment in moments]
    return {
        "query": text,
        "video": video,
        "windows": [[float(first), float(last)] for first, last in windows],
        "rank": next((rank for rank, one in enumerate(overlaps, start=1) if one >= _FOUND), None),
        "iou": overlaps[0] if overlaps else 0.0,
        "iou_at_5": max(overlaps[:5], default=0.0),
        "video_found": bool(moments) and moments[0]["video"] == video,
        "moments": moments,
    }


__all__ = ["MOMENTS_KEPT", "MOST_OVERLAP", "best_moments", "measure_moments", "moment_row"]
