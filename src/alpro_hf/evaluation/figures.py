"""Two pictures of a retrieval: how deep its targets lie, and how far re-ranking more candidates helps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANKS_PICTURE = "ranks.png"
RERANK_PICTURE = "rerank.png"
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_QUERIES = _DIRECTIONS | {"qa": "question to answer"}
_MARKED = (1, 5, 10, 50)


@dataclass(frozen=True)
class RerankCurve:
    """R@1 in percent against the number of candidates that are re-ranked.

    Args:
        k: int64 (K,), 1 to K. Re-ranking one candidate changes nothing, so the first point is that of `vtc`.
        with_prior: Direction (`t2v`, `v2t`) to float64 (K,): candidates ordered by matching logit plus similarity, the
            protocol `rerank`.
        without_prior: The same for the matching logit alone.
    """

    k: np.ndarray
    with_prior: dict[str, np.ndarray]
    without_prior: dict[str, np.ndarray]


def rerank_curve(
    similarity: torch.Tensor,
    score_pairs: Callable[[torch.Tensor], torch.Tensor],
    text_to_video: torch.Tensor,
    max_k: int = 64,
) -> RerankCurve:
    """R@1 for every number of re-ranked candidates up to `max_k`, each pair being scored once.

    Equal to `retrieval_scores(..., "rerank", rerank_k=k)` with `retrieval_metrics`, for every k: a video is found by
    the best of its captions, and a target that ties with another candidate is no hit. Only where candidates have the
    same similarity to the last bit is it arbitrary, here as there, which of them are among the first k.

    Args:
        similarity: (texts, videos) cosine similarities, see `vtc_scores`.
        score_pairs: From int64 (n, 2) pairs of text and video to matching logits (n, 2), such as `vtm_scores`.
        text_to_video: int64 (texts,), the video that each text describes.
        max_k: Largest number of candidates, of a text and of a video.

    Raises:
        ValueError: `max_k` is not positive, or the shapes do not fit.
    """
    if max_k < 1 or similarity.ndim != 2 or text_to_video.shape != similarity.shape[:1]:
        raise ValueError(
            "rerank_curve needs a matrix (texts, videos), the video of each text and max_k of at least 1; received "
            f"{tuple(similarity.shape)}, {tuple(text_to_video.shape)} and {max_k}."
        )
    texts, videos = similarity.shape
    targets = text_to_video.to(similarity.device).long()
    asked = targets.unique()
    for_text = similarity.topk(min(max_k, videos), dim=1).indices
    for_video = similarity[:, asked].topk(min(max_k, texts), dim=0).indices.t()
    text_pairs = torch.arange(texts, device=similarity.device)[:, None] * videos + for_text
    video_pairs = for_video * videos + asked[:, None]
    numbers, place = torch.cat([text_pairs.flatten(), video_pairs.flatten()]).unique(return_inverse=True)
    pairs = torch.stack([numbers // videos, numbers % videos], dim=1)
    matched = score_pairs(pairs)[:, 1].to(similarity.device, similarity.dtype)
    summed = matched + similarity[pairs[:, 0], pairs[:, 1]]
    of_text, of_video = (
        place[: text_pairs.numel()].view_as(text_pairs),
        place[text_pairs.numel() :].view_as(video_pairs),
    )
    is_target = for_text == targets[:, None]
    is_caption = targets[for_video] == asked[:, None]
    length = max(for_text.shape[1], for_video.shape[1])

    def curves(scores: torch.Tensor) -> dict[str, np.ndarray]:
        return {
            "t2v": _recall_at_one(scores[of_text], is_target, length),
            "v2t": _recall_at_one(scores[of_video], is_caption, length),
        }

    return RerankCurve(np.arange(1, length + 1), curves(summed), curves(matched))


def _recall_at_one(scores: torch.Tensor, is_own: torch.Tensor, length: int) -> np.ndarray:
    """Percent of the queries whose own candidate leads among the first k, for all k; past the last one, as there."""
    own = scores.masked_fill(~is_own, float("-inf")).cummax(dim=1).values
    other = scores.masked_fill(is_own, float("-inf")).cummax(dim=1).values
    recall = 100.0 * (own > other).double().mean(dim=0).cpu().numpy()
    return np.pad(recall, (0, length - len(recall)), mode="edge")


def plot_rerank_curve(curve: RerankCurve) -> "Figure":
    """Draw R@1 against k, for both directions, with and without the similarity; save it with `savefig`.

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
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(1, max(2, curve.k[-1]))
    axes.legend(fontsize=8)
    return figure


def plot_ranks(ranks: Mapping[str, Any], candidates: Mapping[str, int] | None = None) -> "Figure":
    """Draw the distribution of ranks as recall over rank, with a logarithmic axis; save it with `savefig`.

    Args:
        ranks: Direction (`t2v`, `v2t`, or `qa` for answers) to (queries,) ranks; infinite ones are never found.
        candidates: Direction to the number of candidates, for the line of a random order; left out if None.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There are no ranks, or a direction is unknown.
    """
    if not ranks or not set(ranks) <= set(_QUERIES):
        raise ValueError(f"plot_ranks needs the ranks of t2v, v2t or both, or qa; received those of {sorted(ranks)}.")
    figure, axes = new_figure("Recall over rank", "rank", "queries with at most this rank (%)")
    last = max(float(np.max(values, where=np.isfinite(values), initial=1)) for values in ranks.values())
    last = max([last, 10.0, *(candidates or {}).values()])
    for colour, direction in zip(("C0", "C1"), [name for name in _QUERIES if name in ranks], strict=False):
        values = np.sort(np.asarray(ranks[direction], float))
        steps = np.unique(values[np.isfinite(values)])
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


def new_figure(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    """A figure with labelled axes; needs no display.

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
    "RANKS_PICTURE",
    "RERANK_PICTURE",
    "RerankCurve",
    "new_figure",
    "plot_ranks",
    "plot_rerank_curve",
    "rerank_curve",
]
