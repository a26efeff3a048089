"""Recall and overlap of moments found in videos: does a search say when something happens?

This file works alone on the Hub, so it imports nothing from `alpro_hf`.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
How well queries find the moments that they describe, in one video or in a collection. A moment is a video with a start
and an end in seconds. The overlap of two moments is their temporal intersection over union (IoU), and 0 if they are of
different videos. The metric returns recall at rank k and overlap m, the mean overlap of the first moment, and the
share of queries whose first moment lies in the right video.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each query a list of moments, best first, each {"video": str, "start": float, "end": float} with
        seconds. A query without a moment counts as not found.
    references: for each query the list of its right moments, of the same form. One that overlaps well enough with any
        of them is right.
    iou_thresholds: the overlaps m, each in (0, 1].
    recall_at: the values of k.
Returns:
    r{k}_iou_{m}: percent of the queries of which one of the first k moments overlaps by at least m with a right one.
    mean_iou: mean overlap, in percent, of the first moment with the right one that it overlaps with most.
    video_r{k}: percent of the queries of which one of the first k moments is of a right video.
Examples:
    >>> metric = evaluate.load("video_moment_retrieval")
    >>> found = [[{"video": "match", "start": 10.0, "end": 20.0}], [{"video": "match", "start": 0.0, "end": 5.0}]]
    >>> right = [[{"video": "match", "start": 12.0, "end": 20.0}], [{"video": "film", "start": 0.0, "end": 5.0}]]
    >>> result = metric.compute(predictions=found, references=right)
    >>> print(result["r1_iou_0.7"], result["mean_iou"], result["video_r1"])
    50.0 40.0 50.0
"""

_CITATION = """\
@inproceedings{gao2017tall,
  title     = {{TALL}: Temporal Activity Localization via Language Query},
  author    = {Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram},
  booktitle = {Proceedings of the IEEE International Conference on Computer Vision},
  year      = {2017}
}
"""

_MOMENT = {"video": datasets.Value("string"), "start": datasets.Value("float64"), "end": datasets.Value("float64")}


class VideoMomentRetrieval(evaluate.Metric):
    """The metric that `evaluate.load` finds in this file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": [_MOMENT], "references": [_MOMENT]}),
            reference_urls=["https://arxiv.org/abs/1705.02101"],
        )

    def _compute(self, *, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return moment_metrics(predictions, references, **kwargs)


def moment_metrics(
    predictions: Sequence[Sequence[dict[str, Any]]],
    references: Sequence[Sequence[dict[str, Any]]],
    *,
    iou_thresholds: Sequence[float] = (0.3, 0.5, 0.7),
    recall_at: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Metrics of ranked moments. Arguments and values are those in the description of the inputs.

    Raises:
        ValueError: There is no query, a query has no right moment, a moment ends before it starts or has a time that
            is not finite, or a threshold or rank is out of range.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            f"predictions has {len(predictions)} queries and references {len(references)}; both must have the same "
            "number, and at least one."
        )
    if not recall_at or any(k < 1 for k in recall_at):
        raise ValueError(f"recall_at is {list(recall_at)}; give ranks of at least 1.")
    if not iou_thresholds or any(not 0 < threshold <= 1 for threshold in iou_thresholds):
        raise ValueError(f"iou_thresholds is {list(iou_thresholds)}; give overlaps above 0 and of at most 1.")
    deepest = max(recall_at)
    overlaps = np.zeros((len(references), deepest))  # of each moment with the best right one
    of_right_video = np.zeros((len(references), deepest), bool)
    for query, (found, right) in enumerate(zip(predictions, references, strict=True)):
        if not len(right):
            raise ValueError(f"references[{query}] is empty; each query needs the moment that it describes.")
        truths = [_moment("references", query, rank, moment) for rank, moment in enumerate(right)]
        for rank, moment in enumerate(found):
            video, start, end = _moment("predictions", query, rank, moment)
            if rank < deepest:
                of_right_video[query, rank] = any(video == other for other, _, _ in truths)
                overlaps[query, rank] = max(
                    temporal_iou(start, end, first, last) if video == other else 0.0 for other, first, last in truths
                )
    metrics = {}
    for k in recall_at:
        best = overlaps[:, :k].max(axis=1)
        for threshold in iou_thresholds:
            metrics[f"r{k}_iou_{threshold:g}"] = 100.0 * float(np.mean(best >= threshold))
        metrics[f"video_r{k}"] = 100.0 * float(np.mean(of_right_video[:, :k].any(axis=1)))
    metrics["mean_iou"] = 100.0 * float(np.mean(overlaps[:, 0]))
    return metrics


def temporal_iou(start: float, end: float, other_start: float, other_end: float) -> float:
    """Intersection over union of two spans of time. Two equal moments without length overlap wholly."""
    union = max(end, other_end) - min(start, other_start)
    # of two spans that touch nowhere, the union has a gap; then the intersection is 0 anyway
    intersection = max(0.0, min(end, other_end) - max(start, other_start))
    return intersection / union if union > 0 else 1.0


def _moment(name: str, query: int, rank: int, moment: dict[str, Any]) -> tuple[str, float, float]:
    video, start, end = moment["video"], moment["start"], moment["end"]
    if start is None or end is None or not (np.isfinite(start) and np.isfinite(end)) or end < start:
        raise ValueError(
            f"{name}[{query}][{rank}] of {video!r} goes from {start} to {end}; give finite seconds, the end not "
            "before the start."
        )
    return video, start, end
