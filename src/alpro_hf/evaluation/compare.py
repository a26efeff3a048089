"""Comparison of two evaluations: whether their difference is more than chance. Behind `alpro compare`."""

from pathlib import Path

from .bootstrap import PairedDifference, paired_bootstrap
from .results import ResultsError, Row, read_predictions, read_results, row_metrics

# fields of a prediction that must be equal in both evaluations: they say what the row is about
_ROW_IDENTITY = ("direction", "text", "video", "question", "answer", "answer_type")


def compare_results(
    a: str | Path, b: str | Path, n: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, PairedDifference]:
    """Compare two evaluations of the same data row by row, metric by metric.

    Captions of the same video, and questions about it, are drawn together. The protocols may differ: comparing two
    protocols is a use of its own. `alpro compare` prints a note then.

    Args:
        a, b: `results.json`, or its folder.
        n, seed, confidence: See `paired_bootstrap`.

    Returns:
        Name of each metric that the predictions define (see `row_metrics`) to the difference b - a.

    Raises:
        FileNotFoundError: Results or predictions do not exist.
        ResultsError: They are damaged, or belong to different tasks or different data.
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
    if metrics_a.keys() != metrics_b.keys() or any(
        len(values) != len(metrics_b[name].values) for name, (values, *_) in metrics_a.items()
    ):
        raise ResultsError(
            f"The predictions of {a} and {b} have different fields, so they define different metrics. Evaluate again."
        )
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
    # equal fingerprints do not suffice: a row whose clip could not be decoded is missing in one of the two
    for number, (one, other) in enumerate(zip(rows_a, rows_b, strict=True), start=1):
        for name in _ROW_IDENTITY:
            if one.get(name) != other.get(name):
                raise ResultsError(
                    f"Row {number} of the predictions is about different things in {a} and {b}: {name} is "
                    f"{one.get(name)!r} and {other.get(name)!r}. Evaluate both on the same data, in the same order."
                )


__all__ = ["compare_results"]
