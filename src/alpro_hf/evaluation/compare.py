"""Is the difference between two evaluations more than chance? `alpro compare A.json B.json`."""

import argparse
from pathlib import Path

from .bootstrap import PairedDifference, paired_bootstrap
from .results import ResultsError, Row, read_predictions, read_results, row_metrics

# of a row: what the two files must have in common
_SAME = ("direction", "text", "video", "question", "answer", "answer_type")


def compare_results(
    a: str | Path, b: str | Path, n: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, PairedDifference]:
    """Compare two evaluations of the same data row by row, metric by metric.

    Captions of the same video, and questions about it, are drawn together. The protocols may differ: that is a
    comparison one may want, and one to be told about.

    Args:
        a, b: `results.json`, or the folder it is in.
        n, seed, confidence: See `paired_bootstrap`.

    Raises:
        FileNotFoundError: Results or predictions are not there.
        ResultsError: They are damaged, or of other tasks or other data.
    """
    results_a, results_b = read_results(a), read_results(b)
    for name, one, other in (
        ("task", results_a.task, results_b.task),
        ("data fingerprint", results_a.data["fingerprint"], results_b.data["fingerprint"]),
    ):
        if one != other:
            raise ResultsError(
                f"{a} and {b} cannot be compared row by row: the {name} of the first is {one!r}, that of the second "
                f"{other!r}. Evaluate both models on the same data."
            )
    rows_a, rows_b = read_predictions(a), read_predictions(b)
    _check_same_rows(rows_a, rows_b, a, b)
    metrics_a, metrics_b = row_metrics(rows_a), row_metrics(rows_b)
    return {
        name: paired_bootstrap(
            values, metrics_b[name].values, statistic, n, seed, groups=groups, confidence=confidence
        )
        for name, (values, statistic, groups) in metrics_a.items()
    }


def _check_same_rows(rows_a: list[Row], rows_b: list[Row], a: str | Path, b: str | Path) -> None:
    if len(rows_a) != len(rows_b):
        raise ResultsError(
            f"{a} has {len(rows_a)} predictions and {b} has {len(rows_b)}. Evaluate both on the same data."
        )
    for number, (one, other) in enumerate(zip(rows_a, rows_b, strict=True), start=1):
        for name in _SAME:
            if one.get(name) != other.get(name):
                raise ResultsError(
                    f"Row {number} of the predictions of {a} and {b} is not about the same: {name} is "
                    f"{one.get(name)!r} and {other.get(name)!r}. Evaluate both on the same data, in the same order."
                )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


__all__ = ["compare_results"]
