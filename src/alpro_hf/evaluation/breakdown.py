"""Where a model is good and where it is not: its metrics by category, by length, by any column of the rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .bootstrap import bootstrap_interval
from .figures import new_figure
from .results import Row, row_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BREAKDOWN_PICTURE = "breakdown.png"
# columns of annotations by which rows are told apart without being asked to
COLUMNS = ("category", "duration")
WORDS = "words"  # the number of words in the text or question, a column that every row has
_MANY = 24  # different numbers of a column, above which they are put into bins
_MOST = 100  # groups of a column
_BINS = 4
_SHOWN = ("t2v_r1", "t2v_r5", "t2v_r10", "t2v_median_rank", "accuracy")
_LEADING = ("t2v_r1", "accuracy")  # the metrics with an interval, and in the picture
_NAMES = {"t2v_r1": "R@1, text to video (%)", "accuracy": "accuracy (%)"}

# column -> group -> metrics
Breakdown = dict[str, dict[str, dict[str, Any]]]


def break_down(predictions: Sequence[Row], columns: Mapping[str, Sequence[Any]], n: int = 1000) -> Breakdown:
    """The metrics of groups of rows; of retrieval those of texts that look for videos.

    Args:
        predictions: Of one text or question each, as in `predictions.jsonl`.
        columns: Name to a value for each prediction. Many different numbers are put into four bins of about equal
            size; rows whose value is None are in no group.
        n: Resamples of an interval, see `bootstrap_interval`.

    Returns:
        For each column with at least two groups, and each group, `n`, the metrics, and `interval` of the first.

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
                key = value if isinstance(value, int | float) else group
                least[group] = min(least.get(group, key), key)
        if len(rows_of) > 1:
            order = sorted(rows_of, key=lambda group: least[group])
            found[name] = {group: _metrics(rows_of[group], n) for group in order}
    return found


def groups_of(values: Sequence[Any], always: bool = False) -> list[str | None]:
    """The group of each value: the value itself, or for many different numbers (or `always`) the bin it is in.

    Raises:
        ValueError: There are more than a hundred different values that are no numbers.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < sum(value is not None for value in values) or not (always or len(set(numbers)) > _MANY):
        groups = [None if value is None else str(value) for value in values]
        if len(set(groups)) > _MOST:
            raise ValueError(f"{len(set(groups))} different values, such as {groups[0]!r}, are no groups.")
        return groups
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
        elif name in _SHOWN:
            found[name] = float(statistic(values))
    return found


def plot_breakdown(breakdown: Breakdown) -> "Figure":
    """Draw the leading metric of each group with its interval, a row of bars for each column.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw.
    """
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


__all__ = ["BREAKDOWN_PICTURE", "COLUMNS", "WORDS", "Breakdown", "break_down", "groups_of", "plot_breakdown"]
