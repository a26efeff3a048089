"""Confidence intervals and paired comparisons of metrics, by bootstrap over the rows that they are computed from.

Percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993), with optional groups of rows
that are drawn together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]


def recall_at(k: int) -> Statistic:
    """Recall at k in percent, as a statistic of ranks (n,): the share of ranks that are at most k."""
    return lambda ranks: 100.0 * float(np.mean(ranks <= k))


def reaching(threshold: float) -> Statistic:
    """The share of values (n,) that are at least `threshold`, in percent."""
    return lambda values: 100.0 * float(np.mean(values >= threshold))


def percentage(hits: np.ndarray) -> float:
    """The share of hits (n,) that are true, in percent: an accuracy."""
    return 100.0 * float(np.mean(hits))


class Interval(NamedTuple):
    """A statistic, and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """A statistic of the same rows under a and under b, and the confidence interval of their difference.

    Args:
        a, b: The statistic under each.
        difference: b - a.
        low, high: Bounds of the confidence interval of the difference.
        p_value: Two-sided: twice the share of resamples in which the difference is zero or has the other sign.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: np.ndarray | Sequence[float],
    statistic: Statistic,
    n: int = 1000,
    seed: int = 0,
    *,
    groups: np.ndarray | Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap: compute the statistic of rows that are drawn with replacement, n times.

    Args:
        values: (rows,) ranks, hits, or other input of the statistic.
        statistic: From (rows,) to a number, such as `recall_at(5)`, `np.median` or `percentage`.
        n: Number of resamples.
        seed: Seed of the draws. The same seed gives the same interval.
        groups: (rows,) group of each row; the rows of a group are drawn together. Captions of one video succeed and
            fail together, so an interval from captions drawn one by one would be too narrow. None: each row is drawn
            by itself.
        confidence: Share of the resamples that lies between the bounds.

    Raises:
        ValueError: There are no rows, a value is not a number, `n`, `confidence` or the length of `groups` is wrong.
    """
    [rows] = _checked_rows({"values": values})
    drawn = [statistic(rows[indices]) for indices in _resamples(len(rows), n, seed, groups, confidence)]
    low, high = _bounds(drawn, confidence)
    return Interval(float(statistic(rows)), low, high)


def paired_bootstrap(
    a: np.ndarray | Sequence[float],
    b: np.ndarray | Sequence[float],
    statistic: Statistic,
    n: int = 1000,
    seed: int = 0,
    *,
    groups: np.ndarray | Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compare two evaluations of the same rows. Each resample draws the same rows from both.

    A hard row is hard for both, which cancels in the difference. So this finds differences that two separate intervals
    of `bootstrap_interval` would hide.

    Args:
        a, b: (rows,) values under each; row i of both is about the same query or question.
        statistic, n, seed, groups, confidence: See `bootstrap_interval`.

    Returns:
        The difference with its interval. The p-value is at least 2 / (n + 1).

    Raises:
        ValueError: As `bootstrap_interval`, or a and b have different lengths.
    """
    rows_a, rows_b = _checked_rows({"a": a, "b": b})
    draws = _resamples(len(rows_a), n, seed, groups, confidence)
    drawn = np.array([statistic(rows_b[indices]) - statistic(rows_a[indices]) for indices in draws])
    low, high = _bounds(drawn, confidence)
    # one is added to both counts, so that no finite number of resamples claims a probability of zero
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    value_a, value_b = float(statistic(rows_a)), float(statistic(rows_b))
    return PairedDifference(value_a, value_b, value_b - value_a, low, high, min(1.0, 2 * (1 + tail) / (n + 1)))


def _checked_rows(named: Mapping[str, np.ndarray | Sequence[float]]) -> list[np.ndarray]:
    arrays = {name: np.asarray(values) for name, values in named.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes.values()):
        raise ValueError(f"A bootstrap needs one value for each row, and at least one row; received {shapes}.")
    for name, array in arrays.items():
        # b, i, u, f: bool, integers and floats
        if array.dtype.kind not in "biuf" or np.isnan(array).any():
            raise ValueError(f"A bootstrap needs numbers, but {name} has NaN or the type {array.dtype}.")
    return list(arrays.values())


def _resamples(
    size: int, n: int, seed: int, groups: np.ndarray | Sequence[Any] | None, confidence: float
) -> Iterator[np.ndarray]:
    """The row indices of each resample. With groups, a resample draws as many groups as exist, with all their rows."""
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"n must be at least 1 and confidence between 0 and 1; received {n} and {confidence}.")
    if groups is not None and len(groups) != size:
        raise ValueError(f"groups must name a group for each of the {size} rows; received {len(groups)} groups.")
    rng = np.random.default_rng(seed)
    if groups is None:
        return (rng.integers(0, size, size) for _ in range(n))
    _, group_of_row, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    # all rows, sorted by group: group g occupies counts[g] places from starts[g] on
    by_group = np.argsort(group_of_row, kind="stable")
    starts = np.cumsum(counts) - counts

    def draw() -> np.ndarray:
        chosen = rng.integers(0, len(counts), len(counts))
        lengths = counts[chosen]
        # 0, 1, ... within each drawn group, without a loop over groups
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return by_group[np.repeat(starts[chosen], lengths) + within]

    return (draw() for _ in range(n))


def _bounds(drawn: Sequence[float] | np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(drawn, float), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


__all__ = [
    "Interval",
    "PairedDifference",
    "Statistic",
    "bootstrap_interval",
    "paired_bootstrap",
    "percentage",
    "reaching",
    "recall_at",
]
