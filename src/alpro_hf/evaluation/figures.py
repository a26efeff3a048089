"""Figures of an evaluation: recall over rank, over the number of re-ranked candidates, and over overlap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .protocols import ScorePairs, match_candidates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANKS_PICTURE = "ranks.png"
RERANK_PICTURE = "rerank.png"
OVERLAPS_PICTURE = "overlaps.png"
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_QUERIES = _DIRECTIONS | {"qa": "question to answer"}
_MARKED = (1, 5, 10, 50)


@dataclass(frozen=True)
class RerankCurve:
    """R@1 in percent against the number of candidates that are re-ranked.

    Args:
        k: int64 (K,), 1 to K. Re-ranking one candidate changes nothing, so the first point is that of `vtc`.
        with_prior: Direction (`t2v`, `v2t`) -> float64 (K,), R@1 of candidates ordered by matching logit plus
            similarity, the protocol `rerank`.
        without_prior: The same for candidates ordered by the matching logit alone.
    """

    k: np.ndarray
    with_prior: dict[str, np.ndarray]
    without_prior: dict[str, np.ndarray]


def rerank_curve(
    similarity: torch.Tensor,
    score_pairs: ScorePairs,
    text_to_video: torch.Tensor,
    max_k: int = 64,
    margin: float | None = None,
) -> RerankCurve:
    """R@1 for every number of re-ranked candidates up to `max_k`. Each pair is scored once.

    For every k the result equals `retrieval_scores(..., "rerank", rerank_k=k)` with `retrieval_metrics`: a video is
    found by the best of its captions, and a target that ties with another candidate is not a hit.

    Args:
        similarity: (texts, videos) cosine similarities, see `vtc_scores`.
        score_pairs: From int64 (n, 2) pairs of text and video to matching logits (n, 2), for instance by `vtm_scores`.
        text_to_video: int64 (texts,), the video that each text describes.
        max_k: Largest number of candidates of a text and of a video.
        margin: `rerank_margin` of `retrieval_scores`: what is less similar is not matched, and follows behind.

    Raises:
        ValueError: `max_k` is not positive, or the shapes do not fit.
    """
    if max_k < 1 or similarity.ndim != 2 or text_to_video.shape != similarity.shape[:1]:
        raise ValueError(
            "rerank_curve needs a matrix (texts, videos), the video of each text and max_k of at least 1; received "
            f"{tuple(similarity.shape)}, {tuple(text_to_video.shape)} and {max_k}."
        )
    targets = text_to_video.to(similarity.device).long()
    asked = targets.unique()  # a video without a caption is a candidate but not a query
    found = match_candidates(similarity, max_k, score_pairs, margin)
    for_text, for_video = found.for_text, found.for_video[asked]
    far_text, far_video = ~found.near_text, ~found.near_video[asked]
    is_target = for_text == targets[:, None]
    is_caption = targets[for_video] == asked[:, None]
    length = max(for_text.shape[1], for_video.shape[1])

    def curves(scores: torch.Tensor) -> dict[str, np.ndarray]:
        return {
            "t2v": _recall_at_one(scores.gather(1, for_text).masked_fill(far_text, -torch.inf), is_target, length),
            "v2t": _recall_at_one(
                scores.t()[asked].gather(1, for_video).masked_fill(far_video, -torch.inf), is_caption, length
            ),
        }

    return RerankCurve(np.arange(1, length + 1), curves(found.matching + similarity), curves(found.matching))


def _recall_at_one(scores: torch.Tensor, is_own: torch.Tensor, length: int) -> np.ndarray:
    """Percent of the queries whose own candidate leads among the first k, for all k.

    Args:
        scores: (queries, K), the candidates of each query, most similar first.
        is_own: bool (queries, K), whether a candidate is a target of the query.
        length: Length of the result; values past K repeat the last one.
    """
    # Without running maxima each k would need a matrix of its own. Before the first target `own` is -inf, not a hit.
    own = scores.masked_fill(~is_own, float("-inf")).cummax(dim=1).values
    other = scores.masked_fill(is_own, float("-inf")).cummax(dim=1).values
    recall = 100.0 * (own > other).double().mean(dim=0).cpu().numpy()
    return np.pad(recall, (0, length - len(recall)), mode="edge")


def plot_rerank_curve(curve: RerankCurve) -> "Figure":
    """Draw R@1 against k, for both directions, with and without the similarity. Save the figure with `savefig`.

    Args:
        curve: Result of `rerank_curve`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = new_figure("Re-ranking", "candidates that are re-ranked (k)", "R@1 (%)")
    for colour, (direction, name) in zip(("C0", "C1"), _DIRECTIONS.items(), strict=True):
        for style, prior, recall in (
            ("-", "matching + similarity", curve.with_prior[direction]),
            ("--", "matching alone", curve.without_prior[direction]),
        ):
            axes.plot(curve.k, recall, style, color=colour, label=f"{name}, {prior}")
        axes.axhline(curve.with_prior[direction][0], color=colour, linestyle=":", label=f"{name}, not re-ranked")
    axes.set_xscale("log", base=2)  # most of the gain lies at small k
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(1, max(2, curve.k[-1]))
    axes.legend(fontsize=8)
    return figure


def plot_ranks(ranks: Mapping[str, Any], candidates: Mapping[str, int] | None = None) -> "Figure":
    """Draw recall over rank, with a logarithmic axis of ranks. Save the figure with `savefig`.

    Args:
        ranks: Direction (`t2v`, `v2t`, or `qa` for answers) -> (queries,) ranks. Infinite ranks are never found.
        candidates: Direction -> number of candidates, for the line of a random order; None: no such line.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are no ranks, or a direction is unknown.
    """
    if not ranks or not set(ranks) <= set(_QUERIES):
        raise ValueError(f"plot_ranks needs the ranks of t2v, v2t or both, or qa; received those of {sorted(ranks)}.")
    figure, axes = new_figure("Recall over rank", "rank", "queries with at most this rank (%)")
    last = max(float(np.max(values, where=np.isfinite(values), initial=1)) for values in ranks.values())
    last = max([last, 10.0, *(candidates or {}).values()])  # the axis ends at the worst possible rank
    for colour, direction in zip(("C0", "C1"), [name for name in _QUERIES if name in ranks], strict=False):
        values = np.sort(np.asarray(ranks[direction], float))
        steps = np.unique(values[np.isfinite(values)])  # ranks may be halves, see `expected_rank`
        recall = 100.0 * np.searchsorted(values, steps, side="right") / len(values)
        label = f"{_QUERIES[direction]}, median rank {np.median(values):g}, {len(values)} queries"
        axes.step(
            [1, *steps, last],
            [np.sum(values <= 1) / len(values) * 100, *recall, 100 * np.mean(np.isfinite(values))],
            where="post",
            color=colour,
            label=label,
        )
        marked = [k for k in _MARKED if k <= last]
        shares = 100.0 * np.searchsorted(values, marked, side="right") / len(values)
        axes.plot(marked, shares, "o", color=colour, markersize=4)
        for k, share in zip(marked, shares, strict=True):
            axes.annotate(
                f"{share:.1f}",
                (k, share),
                textcoords="offset points",
                # left above and right below the curves, so that labels of two directions do not overlap
                xytext=(-24, 5) if direction == "v2t" else (5, -10),
                fontsize=8,
                color=colour,
            )
        if candidates is not None and direction in candidates:
            chance = np.geomspace(1, candidates[direction], 100)
            axes.plot(
                chance, 100 * chance / candidates[direction], ":", color=colour, linewidth=1, label="random order"
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0.95, last)
    axes.set_ylim(0, 102)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def plot_overlaps(overlaps: Mapping[str, np.ndarray]) -> "Figure":
    """Draw the recall of moments over the overlap that it asks for. Save the figure with `savefig`.

    Args:
        overlaps: Name of a line, such as `R@1`, -> (queries,) overlaps with the right moments, in [0, 1].

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are no overlaps.
    """
    if not overlaps or not all(map(len, overlaps.values())):
        raise ValueError("plot_overlaps needs the overlaps of at least one query.")
    figure, axes = new_figure("Recall over overlap", "temporal intersection over union", "queries found (%)")
    least = np.linspace(0.01, 1, 100)
    for name, values in overlaps.items():
        recall = 100.0 * np.mean(np.asarray(values)[:, None] >= least, axis=0)
        axes.plot(least, recall, label=f"{name}, {len(values)} queries")
    for threshold in (0.3, 0.5, 0.7):
        axes.axvline(threshold, color="grey", linestyle=":", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 102)
    axes.legend(fontsize=8)
    return figure


def new_figure(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    """A figure with labelled axes. It needs no display.

    Args:
        title, x, y: Title of the figure and labels of its axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError('Drawing needs matplotlib, which is not installed: pip install "alpro-hf[plot]"') from error
    figure = Figure(figsize=(6.4, 4.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


__all__ = [
    "OVERLAPS_PICTURE",
    "RANKS_PICTURE",
    "RERANK_PICTURE",
    "RerankCurve",
    "new_figure",
    "plot_overlaps",
    "plot_ranks",
    "plot_rerank_curve",
    "rerank_curve",
]
