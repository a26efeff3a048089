"""Recall and ranks of text-to-video and video-to-text retrieval, with ties and without a full matrix of scores.

This file works alone on the Hub, so it imports nothing from `alpro_hf`. It counts ranks in tiles of the matrix, where
`alpro_hf.evaluation.metrics.expected_rank` compares whole rows. A test holds the two equal, also with ties.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from tqdm.auto import tqdm

_DESCRIPTION = """\
How well texts find their videos and videos their texts: recall at 1, 5, 10 and 50, median and mean rank, for both
directions, with any number of captions to a video. Candidates of equal score count as if they came in random order.
Scores are given as rows of a matrix, or as embeddings that are ranked in chunks, without a full matrix in memory.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: (texts, videos), one row of scores for each text; higher is better.
    references: int (texts,), index of the video that each text describes.
    scores_v2t: (texts, videos) to rank texts by, where video-to-text is scored differently. None: `predictions`.
    text_embeddings, video_embeddings: (texts, D) and (videos, D), instead of predictions and references. A score is
        their inner product, which is the cosine similarity of unit vectors. They are not normalised here.
    text_to_video: int (texts,), the references of embeddings. None: text i describes video i.
    chunk_size: texts and videos compared at a time. It changes memory and speed, not the result.
    recall_at: the values of k for which recall is returned.
Returns:
    t2v_r1, t2v_r5, t2v_r10, t2v_r50: percent of the texts whose video has at most this rank.
    t2v_median_rank, t2v_mean_rank: 1 is best.
    v2t_*: the same for videos, each found by the best of its captions. Videos without a caption are not counted.
Examples:
    >>> metric = evaluate.load("video_text_retrieval")
    >>> result = metric.compute(predictions=[[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]], references=[0, 1, 1])
    >>> print(round(result["t2v_r1"], 1), result["v2t_r1"], result["t2v_mean_rank"])
    66.7 100.0 1.3333333333333333
"""

_CITATION = """\
@inproceedings{li2022align,
  title     = {Align and Prompt: Video-and-Language Pre-training with Entity Prompts},
  author    = {Li, Dongxu and Li, Junnan and Li, Hongdong and Niebles, Juan Carlos and Hoi, Steven C. H.},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}
"""

# a slice of texts and a slice of videos -> their scores (texts, videos)
Tile = Callable[[slice, slice], np.ndarray]


class VideoTextRetrieval(evaluate.Metric):
    """The metric that `evaluate.load` finds in this file."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2112.09583"],
        )

    def compute(  # embeddings are inputs of their own, which are never written to a cache
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        text_embeddings: Any = None,
        video_embeddings: Any = None,
        text_to_video: Any = None,
        **kwargs: Any,
    ) -> dict[str, float] | None:
        """Rank score rows, passed here or added before, or embeddings. See the description of the inputs.

        Raises:
            ValueError: The inputs do not fit together, a target is outside the videos, or a value is NaN.
        """
        if text_embeddings is None and video_embeddings is None:
            if text_to_video is not None:
                raise ValueError("text_to_video belongs to embeddings. The targets of score rows are the references.")
            return super().compute(predictions=predictions, references=references, **kwargs)
        if text_embeddings is None or video_embeddings is None:
            missing = "text_embeddings" if text_embeddings is None else "video_embeddings"
            raise ValueError(f"Both kinds of embeddings are needed, but {missing} is missing.")
        if predictions is not None or references is not None or len(self):
            raise ValueError(
                "Score rows (predictions and references, or what was added before) and embeddings cannot be ranked "
                "together. Give one of them; the targets of embeddings are called text_to_video."
            )
        return retrieval_metrics_of_embeddings(text_embeddings, video_embeddings, text_to_video, **kwargs)

    def _compute(self, *, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return retrieval_metrics_of_scores(predictions, references, **kwargs)


def retrieval_metrics_of_scores(
    scores: Any,
    text_to_video: Any,
    scores_v2t: Any = None,
    *,
    chunk_size: int = 512,
    recall_at: Sequence[int] = (1, 5, 10, 50),
) -> dict[str, float]:
    """Metrics of a matrix of scores (texts, videos). Arguments are those in the description of the inputs."""
    for_text = _matrix("predictions", scores)
    for_video = for_text if scores_v2t is None else _matrix("scores_v2t", scores_v2t)
    if for_video.shape != for_text.shape:
        raise ValueError(f"scores_v2t has the shape {for_video.shape}, but predictions has {for_text.shape}.")
    targets = _targets("references", text_to_video, for_text.shape)
    texts = np.arange(len(targets))

    def ranks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def tile(rows: slice, columns: slice) -> np.ndarray:
            return matrix[rows, columns]

        return _ranks(tile, matrix[texts, targets], targets, for_text.shape, chunk_size)

    t2v, v2t = ranks(for_text)
    return _summary(t2v, v2t if for_video is for_text else ranks(for_video)[1], recall_at)


def retrieval_metrics_of_embeddings(
    text_embeddings: Any,
    video_embeddings: Any,
    text_to_video: Any = None,
    *,
    chunk_size: int = 512,
    recall_at: Sequence[int] = (1, 5, 10, 50),
) -> dict[str, float]:
    """Metrics of inner products of embeddings (texts, D) and (videos, D), a chunk of both at a time.

    Products are computed in float64 and rounded to float32. The last bits of a product depend on its place in the
    matrix; after rounding, equal embeddings tie wherever they stand.
    """
    texts, videos = _matrix("text_embeddings", text_embeddings), _matrix("video_embeddings", video_embeddings)
    if texts.shape[1] != videos.shape[1]:
        raise ValueError(
            f"text_embeddings has {texts.shape[1]} dimensions and video_embeddings {videos.shape[1]}; both must be "
            "of the same model."
        )
    if text_to_video is None and len(texts) != len(videos):
        raise ValueError(
            f"{len(texts)} texts cannot be paired one to one with {len(videos)} videos. Give text_to_video, the index "
            "of the video that each text describes."
        )
    shape = len(texts), len(videos)
    targets = _targets("text_to_video", np.arange(len(texts)) if text_to_video is None else text_to_video, shape)
    own = np.empty(len(texts), np.float32)
    for rows in _slices(len(texts), chunk_size):
        own[rows] = np.einsum("nd,nd->n", texts[rows], videos[targets[rows]], dtype=np.float64)

    def tile(rows: slice, columns: slice) -> np.ndarray:
        scores = (texts[rows].astype(np.float64) @ videos[columns].astype(np.float64).T).astype(np.float32)
        # a pair must have the same number here as in `own`, but the order of summation differs
        inside = np.flatnonzero((targets[rows] >= columns.start) & (targets[rows] < columns.stop))
        scores[inside, targets[rows][inside] - columns.start] = own[rows][inside]
        return scores

    return _summary(*_ranks(tile, own, targets, shape, chunk_size), recall_at)


def _ranks(
    tile: Tile, own: np.ndarray, targets: np.ndarray, shape: tuple[int, int], chunk_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of each text's video, and of the best caption of each video that has one; both float64.

    A rank is the expected place if candidates of equal score come in random order: 1 + the number of better ones +
    half the number of equal ones. Other captions of a video do not compete with its best one.
    """
    texts, videos = shape
    best = np.full(videos, -np.inf, own.dtype)
    np.maximum.at(best, targets, own)
    # better ones plus not worse ones = twice the better ones plus once the equal ones; half of it is the rank less 1
    text_counts, video_counts = np.zeros(texts, np.int64), np.zeros(videos, np.int64)
    for rows in tqdm(_slices(texts, chunk_size), desc="ranking", delay=3, leave=False):
        for columns in _slices(videos, chunk_size):
            scores = tile(rows, columns)
            for compare in (np.greater, np.greater_equal):
                text_counts[rows] += np.count_nonzero(compare(scores, own[rows, None]), axis=1)
                video_counts[columns] += np.count_nonzero(compare(scores, best[columns]), axis=0)
    text_counts -= 1  # each text's own video is as good as itself
    # captions of the same video that are as good as its best one, which itself is among them
    video_counts -= np.bincount(targets[own == best[targets]], minlength=videos)
    return 1 + text_counts / 2, (1 + video_counts / 2)[np.unique(targets)]


def _summary(t2v: np.ndarray, v2t: np.ndarray, recall_at: Sequence[int]) -> dict[str, float]:
    metrics = {}
    for direction, ranks in (("t2v", t2v), ("v2t", v2t)):
        for k in recall_at:
            metrics[f"{direction}_r{k}"] = 100.0 * float(np.mean(ranks <= k))
        metrics[f"{direction}_median_rank"] = float(np.median(ranks))
        metrics[f"{direction}_mean_rank"] = float(np.mean(ranks))
    return metrics


def _slices(length: int, chunk_size: int) -> list[slice]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, but at least one text and video must be compared at a time.")
    return [slice(start, min(start + chunk_size, length)) for start in range(0, length, chunk_size)]


def _matrix(name: str, values: Any) -> np.ndarray:
    """A matrix of numbers without NaN. An array is not copied."""
    try:
        matrix = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not a matrix: its rows have different lengths.") from error
    if matrix.dtype == object:
        raise ValueError(f"{name} is not a matrix of numbers: its rows have different lengths, or other values.")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix with rows and columns; received the shape {matrix.shape}.")
    if np.isnan(matrix.min()):  # the minimum of numbers with NaN is NaN, and needs no second matrix
        raise ValueError(f"{name} contains NaN, which has no rank. Look for a diverged training or a broken clip.")
    return matrix


def _targets(name: str, values: Any, shape: tuple[int, int]) -> np.ndarray:
    targets = np.asarray(values)
    if targets.shape != shape[:1] or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"{name} must hold one whole number for each of {shape[0]} texts; received the shape {targets.shape} of "
            f"type {targets.dtype}."
        )
    if targets.min() < 0 or targets.max() >= shape[1]:
        raise ValueError(
            f"{name} points at videos {targets.min()} to {targets.max()}, but there are {shape[1]} videos, numbered "
            "from 0."
        )
    return targets
