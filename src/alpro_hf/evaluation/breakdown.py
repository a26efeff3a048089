"""Metrics by groups of rows: by category, by length, or by any column of the annotations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .bootstrap import bootstrap_interval
from .results import Row, row_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BREAKDOWN_PICTURE = "breakdown.png"
GROUP_COLUMNS = ("category", "duration")  # columns of annotations that group the rows without being asked for
WORDS = "words"  # a column that all rows have: the number of words in the text or question
_MAX_SINGLE_NUMBERS = 24  # a column with more different numbers is divided into bins
_MAX_GROUPS = 100
_BINS = 4
_GROUP_METRICS = ("t2v_r1", "t2v_r5", "t2v_r10", "t2v_median_rank", "accuracy", "r5_iou_0.5", "mean_iou")
_LEADING = ("t2v_r1", "accuracy", "r1_iou_0.5")  # the metrics with an interval, which the picture shows
_NAMES = {
    "t2v_r1": "R@1, text to video (%)",
    "accuracy": "accuracy (%)",
    "r1_iou_0.5": "R@1, overlap 0.5 (%)",
}

# column -> group -> metrics
Breakdown = dict[str, dict[str, dict[str, Any]]]


def break_down(predictions: Sequence[Row], columns: Mapping[str, Sequence[Any]], n: int = 1000) -> Breakdown:
    """The metrics of each group of rows. For retrieval, these are the metrics of text to video.

    Args:
        predictions: Rows of `predictions.jsonl`, one for each text or question.
        columns: Name to a value for each prediction. Many different numbers are divided into four bins of about equal
            size. Rows whose value is None are in no group.
        n: Number of resamples of an interval, see `bootstrap_interval`.

    Returns:
        Column to group to `n` (the number of rows), the metrics, and `interval`, the bounds of the first metric.
        Columns with fewer than two groups are left out.

    Raises:
        ValueError: A column has too many different values, see `groups_of`.
    """
    found: Breakdown = {}
    for name, values in columns.items():
        rows_of: dict[str, list[Row]] = defaultdict(list)
        least: dict[str, Any] = {}
        for row, value, group in zip(predictions, values, groups_of(values, always=name == WORDS), strict=True):
            if group is not None:
                rows_of[group].append(row)
                # numbers and bins of numbers are listed by size: as text, "11" would come before "3"
                key = value if isinstance(value, int | float) else group
                least[group] = min(least.get(group, key), key)
        if len(rows_of) > 1:
            order = sorted(rows_of, key=lambda group: least[group])
            found[name] = {group: _metrics(rows_of[group], n) for group in order}
    return found


def groups_of(values: Sequence[Any], always: bool = False) -> list[str | None]:
    """The name of the group of each value.

    Args:
        values: Values of a column; None is in no group.
        always: Divide numbers into bins even if few of them differ.

    Returns:
        The value itself as text. If a column holds many different numbers (or `always`), the bounds of its bin.

    Raises:
        ValueError: There are more than a hundred different values that are not numbers.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    only_numbers = len(numbers) == sum(value is not None for value in values)
    if not only_numbers or not (always or len(set(numbers)) > _MAX_SINGLE_NUMBERS):
        groups = [None if value is None else str(value) for value in values]
        if len(set(groups)) > _MAX_GROUPS:
            raise ValueError(
                f"{len(set(groups))} different values, such as {groups[0]!r}, are no groups. Name a column with fewer."
            )
        return groups
    # method "higher" takes edges from the values themselves, not from between them; a very frequent number gives equal
    # edges, which are merged
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1], method="higher"))
    bins: list[list[float]] = [[] for _ in range(len(edges) + 1)]
    places = [None if value is None else int(np.searchsorted(edges, value)) for value in values]
    for value, place in zip(values, places, strict=True):
        if place is not None:
            bins[place].append(value)
    names = [_span(min(inside), max(inside)) if inside else "" for inside in bins]
    return [None if place is None else names[place] for place in places]


def _span(least: float, most: float) -> str:
    return f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"


def _metrics(rows: Sequence[Row], n: int) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(rows)}
    for name, (values, statistic, groups) in row_metrics(rows).items():
        if name in _LEADING:
            found[name], *bounds = bootstrap_interval(values, statistic, n, groups=groups)
            found["interval"] = bounds
        elif name in _GROUP_METRICS:
            found[name] = float(statistic(values))
    return found


def plot_breakdown(breakdown: Breakdown) -> "Figure":
    """Draw the leading metric of each group with its interval, as a bar for each group.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
    from .figures import new_figure  # needs torch, and the command line imports this module to describe itself

    if not breakdown:
        raise ValueError("plot_breakdown needs at least one column with groups.")
    metric = next(name for name in _LEADING if name in next(iter(next(iter(breakdown.values())).values())))
    figure, axes = new_figure("By group, with 95 % intervals", _NAMES[metric], "")
    labels: list[str] = []
    for column, groups in breakdown.items():
        for group, found in groups.items():
            value, (low, high) = found[metric], found["interval"]
            colour = f"C{list(breakdown).index(column)}"
            axes.barh(len(labels), value, color=colour, alpha=0.6)
            axes.plot([low, high], [len(labels)] * 2, color=colour, linewidth=2)
            labels.append(f"{column}: {group} (n={found['n']})")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    figure.set_figheight(1.5 + 0.24 * len(labels))
    return figure


__all__ = ["BREAKDOWN_PICTURE", "GROUP_COLUMNS", "WORDS", "Breakdown", "break_down", "groups_of", "plot_breakdown"]
