"""How far a metric can be trusted: bootstrap over the rows it was computed from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]


def recall_at(k: int) -> Statistic:
    """The statistic of ranks (n,) that is the percentage of at most k."""
    return lambda ranks: 100.0 * float(np.mean(ranks <= k))


def percentage(hits: np.ndarray) -> float:
    """The percentage of hits (n,) that are true, such as an accuracy."""
    return 100.0 * float(np.mean(hits))


class Interval(NamedTuple):
    """A statistic, and the bounds between which it would be expected for other rows of the same kind."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """A statistic of the same rows under a and b: `difference` is b - a, within [low, high].

    `p_value` is two-sided: how often resampling alone would move the difference as far as across zero.
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
    """Percentile bootstrap: the statistic of rows drawn with replacement, n times.

    Args:
        values: (rows,) ranks, hits, or whatever the statistic takes.
        statistic: From (rows,) to a number: `recall_at(5)`, `np.median`, `percentage`, ...
        n: Resamples.
        seed: Of the draws.
        groups: (rows,) whose rows are drawn together, such as the video of each caption. Captions of a video succeed
            and fail together; drawn one by one, the interval would be too narrow. None: every row by itself.
        confidence: Share of the resamples between the bounds.

    Raises:
        ValueError: no rows, values that are not numbers, or arguments that do not fit.
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
    """Compare two evaluations of the same rows: the same rows are drawn from both, n times.

    What makes a row hard makes it hard for both, and cancels in the difference. So this finds differences that the two
    intervals of `bootstrap_interval` would hide. The p-value is at least 2 / (n + 1).

    Args:
        a, b: (rows,) values under each, row by row.
        statistic, n, seed, groups, confidence: See `bootstrap_interval`.

    Raises:
        ValueError: as of `bootstrap_interval`, or a and b of different lengths.
    """
    rows_a, rows_b = _checked_rows({"a": a, "b": b})
    draws = _resamples(len(rows_a), n, seed, groups, confidence)
    drawn = np.array([statistic(rows_b[indices]) - statistic(rows_a[indices]) for indices in draws])
    low, high = _bounds(drawn, confidence)
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    value_a, value_b = float(statistic(rows_a)), float(statistic(rows_b))
    return PairedDifference(value_a, value_b, value_b - value_a, low, high, min(1.0, 2 * (1 + tail) / (n + 1)))


def _checked_rows(named: Mapping[str, np.ndarray | Sequence[float]]) -> list[np.ndarray]:
    arrays = {name: np.asarray(values) for name, values in named.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes.values()):
        raise ValueError(f"A bootstrap needs one value for each row, and at least one row; received {shapes}.")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or np.isnan(array).any():
            raise ValueError(f"A bootstrap needs numbers, but {name} has NaN or the type {array.dtype}.")
    return list(arrays.values())


def _resamples(
    size: int, n: int, seed: int, groups: np.ndarray | Sequence[Any] | None, confidence: float
) -> Iterator[np.ndarray]:
    """Indices of the rows of each resample; with groups, of as many groups as there are."""
    if n < 1 or not 0 < confidence < 1:
        raise ValueError(f"n must be at least 1 and confidence between 0 and 1; received {n} and {confidence}.")
    if groups is not None and len(groups) != size:
        raise ValueError(f"There are {size} rows, but groups names the group of {len(groups)}.")
    rng = np.random.default_rng(seed)
    if groups is None:
        return (rng.integers(0, size, size) for _ in range(n))
    _, group_of_row, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    by_group = np.argsort(group_of_row, kind="stable")
    starts = np.cumsum(counts) - counts

    def draw() -> np.ndarray:
        chosen = rng.integers(0, len(counts), len(counts))
        lengths = counts[chosen]
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
    "recall_at",
]
