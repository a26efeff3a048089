"""What an evaluation leaves behind, and how far its numbers can be trusted.

A folder of results holds `results.json` (metrics and everything they depend on), `predictions.jsonl` (a row for every
query or question) and pictures. From the rows every metric can be computed again, so its uncertainty can be told, and
two evaluations of the same data can be compared row by row (`alpro compare`).
"""

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ..version import __version__
from .bootstrap import (
    Statistic,
    bootstrap_interval,
    percentage,
    recall_at,
)

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
FORMAT = 1
RECALL_AT = (1, 5, 10, 50)

Row = dict[str, Any]


class ResultsError(ValueError):
    """Files are no results, are damaged, or cannot be compared."""


# ------------------------------------------------------------------------------------------------- metrics from rows


class RowMetric(NamedTuple):
    """A metric as a statistic of (rows,) values; `groups` are the rows that are drawn together, if any are."""

    values: np.ndarray
    statistic: Statistic
    groups: np.ndarray | None


def row_metrics(rows: Sequence[Row]) -> dict[str, RowMetric]:
    """The metrics that predictions tell, under their names in `results.json`; rows as in `predictions.jsonl`.

    Of retrieval: recall at 1, 5, 10 and 50, median and mean rank in the directions there are; captions are grouped by
    their video. Of question answering: accuracy, overall and by type; questions are grouped by video if it is named.
    """
    found: dict[str, RowMetric] = {}
    for direction in ("t2v", "v2t"):
        of_direction = [row for row in rows if row.get("direction") == direction]
        if of_direction:
            ranks = np.array([row["rank"] for row in of_direction], float)
            groups = np.array([str(row["video"]) for row in of_direction]) if direction == "t2v" else None
            for k in RECALL_AT:
                found[f"{direction}_r{k}"] = RowMetric(ranks, recall_at(k), groups)
            found[f"{direction}_median_rank"] = RowMetric(ranks, np.median, groups)
            found[f"{direction}_mean_rank"] = RowMetric(ranks, np.mean, groups)
    answered = [row for row in rows if "correct" in row]
    if answered:
        types = sorted({row["answer_type"] for row in answered if row.get("answer_type") is not None})
        found["accuracy"] = _accuracy(answered)
        for kind in types:
            found[f"accuracy_{kind.replace(' ', '_')}"] = _accuracy(
                [row for row in answered if row.get("answer_type") == kind]
            )
    return found


def _accuracy(rows: Sequence[Row]) -> RowMetric:
    grouped = all("video" in row for row in rows)
    return RowMetric(
        np.array([row["correct"] for row in rows], bool),
        percentage,
        np.array([str(row["video"]) for row in rows]) if grouped else None,
    )


def metric_intervals(
    rows: Sequence[Row], n: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Bounds of every metric of `row_metrics`, for `Results.intervals`."""
    intervals = {}
    for name, (values, statistic, groups) in row_metrics(rows).items():
        _, low, high = bootstrap_interval(values, statistic, n, seed, groups=groups, confidence=confidence)
        intervals[name] = low, high
    return intervals


# --------------------------------------------------------------------------------------------------------- predictions


def retrieval_rows(
    direction: Literal["t2v", "v2t"],
    scores: Any,
    ranks: Any,
    queries: Sequence[int],
    *,
    names: Sequence[Any] | None = None,
    text_to_video: Sequence[int] | None = None,
    captions: Sequence[str] | None = None,
    top: int = 5,
) -> Iterator[Row]:
    """The predictions of one direction, a row for each query.

    Args:
        direction: `t2v`: texts look for videos; `v2t`: videos look for texts.
        scores: (queries, candidates), an array or a tensor on the CPU.
        ranks: (queries,) of what belongs to each query.
        queries: (queries,) number of the text, or of the video, that each row is about.
        names: (videos,) what videos are called in the file; their numbers if None.
        text_to_video: (texts,) number of the video of each text; needed for `t2v`.
        captions: (texts,) written beside the numbers of texts that are queries.
        top: Candidates to keep, best first; equal ones in their order.

    Returns:
        `{"direction": "t2v", "text", "caption", "video", "rank", "top": [{"video", "score"}]}`, where `video` is the
        right one, and `{"direction": "v2t", "video", "rank", "top": [{"text", "score"}]}`.
    """
    if direction == "t2v" and text_to_video is None:
        raise ValueError("retrieval_rows needs text_to_video to name the right video of each text.")
    if not len(scores) == len(ranks) == len(queries):
        raise ValueError(
            f"retrieval_rows needs scores, a rank and a number for each query; received {len(scores)}, {len(ranks)} "
            f"and {len(queries)}."
        )

    def video(number: int) -> Any:
        return int(number) if names is None else names[number]

    for query, rank, candidates in zip(queries, ranks, scores, strict=True):
        of_query = np.asarray(candidates)
        least = np.partition(of_query, -top)[-top] if top < len(of_query) else -np.inf
        best = np.flatnonzero(of_query >= least)  # sorting only what can be among the best
        best = best[np.argsort(-of_query[best], kind="stable")][:top]
        row: Row = {"direction": direction}
        if direction == "t2v":
            assert text_to_video is not None
            row["text"] = int(query)
            if captions is not None:
                row["caption"] = captions[query]
            row["video"] = video(int(text_to_video[query]))
            found = [{"video": video(int(i)), "score": float(of_query[i])} for i in best]
        else:
            row["video"] = video(int(query))
            found = [{"text": int(i), "score": float(of_query[i])} for i in best]
        yield row | {"rank": float(rank), "top": found}


def question_rows(
    questions: Sequence[str],
    answers: Sequence[str],
    predictions: Sequence[str],
    known_answers: Iterable[str],
    *,
    videos: Sequence[Any] | None = None,
    answer_types: Sequence[str | None] | None = None,
) -> Iterator[Row]:
    """The predictions of question answering, a row for each question.

    Returns:
        `{"question", "answer", "prediction", "correct"}` and, where given, `video` and `answer_type`. An answer out of
        the known ones is not correct, whatever was predicted.
    """
    known = set(known_answers)
    columns: dict[str, Sequence[Any]] = {"question": questions, "answer": answers, "prediction": predictions}
    columns |= {
        name: column for name, column in (("video", videos), ("answer_type", answer_types)) if column is not None
    }
    for values in zip(*columns.values(), strict=True):
        row: Row = dict(zip(columns, values, strict=True))
        yield row | {"correct": row["answer"] == row["prediction"] and row["answer"] in known}


# --------------------------------------------------------------------------------------------------------------- files


def data_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """`sha256:...` of annotation rows: equal if the same questions are asked about the same files, in the same order.

    Counted are `text`, `question`, `answer`, `answer_type`, and of `video` and `image` the name of the file, so that
    the data may lie in any folder; encoded bytes without a name count by their content. Frames are not looked at.

    Raises:
        TypeError: A video or image is already decoded.
    """
    digest = hashlib.sha256()
    for number, row in enumerate(rows):
        seen: Row = {}
        for name in ("text", "question", "answer", "answer_type"):
            if row.get(name) is not None:
                seen[name] = row[name]
        for name in ("video", "image"):
            if row.get(name) is not None:
                seen[name] = _file_identity(row[name], f"row {number}, field {name!r}")
        digest.update(json.dumps(seen, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _file_identity(value: Any, where: str) -> str:
    if isinstance(value, Mapping) and value.get("path"):
        value = value["path"]
    elif isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str | os.PathLike):
        return os.path.basename(os.fspath(value))
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    raise TypeError(
        f"{where} is of type {type(value).__name__}, but a fingerprint needs the path or the encoded bytes. Load the "
        "column undecoded: dataset.cast_column(name, datasets.Video(decode=False))."
    )


def model_source(name: str, commit: str | None = None) -> dict[str, str | None]:
    """The `model` of results: its name, and what makes sure which weights were meant.

    Args:
        name: Folder or Hub id.
        commit: Of a Hub model, its commit (`model.config._commit_hash`). For a folder the revision is `sha256:...` of
            its safetensors files.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "revision": commit}
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"name": name, "revision": f"sha256:{digest.hexdigest()}"}


def package_versions() -> dict[str, str]:
    """Versions of what decodes, prepares and computes."""
    return {
        "alpro_hf": __version__,
        "torch": str(torch.__version__),  # with its build, which the metadata of a wheel may leave out
        "transformers": version("transformers"),
        "av": version("av"),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Results:
    """What `results.json` holds.

    Args:
        task: `retrieval` or `qa`.
        protocol: `name`, and the numbers that belong to it, such as `rerank_k`.
        metrics: Name to value; percent where it is a share.
        model: `name` and `revision`, see `model_source`.
        data: `fingerprint` (see `data_fingerprint`) and number of `rows`, and what else describes the data.
        intervals: Name of a metric to its bounds, see `metric_intervals`.
        command: The command line that made it.
        date: ISO 8601, in UTC.
        versions: See `package_versions`.
        predictions: `file`, `rows` and `sha256` of the predictions; set by `write_results`.
        details: What else was found out, such as the breakdown by groups of rows and the re-ranking curve.
    """

    task: str
    protocol: dict[str, Any]
    metrics: dict[str, float]
    model: dict[str, Any]
    data: dict[str, Any]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    command: list[str] = field(default_factory=lambda: list(sys.argv))
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    versions: dict[str, str] = field(default_factory=package_versions)
    predictions: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def write_results(folder: str | Path, results: Results, rows: Iterable[Row]) -> Path:
    """Write `predictions.jsonl`, then `results.json`; each appears complete or not at all.

    Whoever reads notices if the two do not belong together, as after a crash in between.

    Returns:
        The path of `results.json`.

    Raises:
        ResultsError: A field is not what `Results` says, or a number is NaN or infinite, which JSON cannot hold.
    """
    folder = Path(folder)
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    digest, count = hashlib.sha256(), 0
    partial = folder / f".{PREDICTIONS}.partial"
    with partial.open("wb") as file:
        for row in rows:
            line = (_to_json(row, f"row {count} of the predictions") + "\n").encode("utf-8", "surrogatepass")
            digest.update(line)
            file.write(line)
            count += 1
        _to_disk(file)
    record = {"file": PREDICTIONS, "rows": count, "sha256": digest.hexdigest()}
    content = {"format": FORMAT, **asdict(replace(results, predictions=record))}
    text = _to_json(content, str(path), indent=1)
    _checked(json.loads(text), path)
    os.replace(partial, folder / PREDICTIONS)
    partial = folder / f".{RESULTS}.partial"
    with partial.open("wb") as file:
        file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        _to_disk(file)
    os.replace(partial, path)
    return path


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _to_json(content: Any, what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{what} cannot be written as JSON: {error}.") from error


def read_results(path: str | Path) -> Results:
    """Read `results.json`, or that of a folder.

    Raises:
        FileNotFoundError: There is none.
        ResultsError: It is damaged, of another format, or a field is missing or of a wrong type.
    """
    path = _results_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not JSON, or cut off: {error}. Name a {RESULTS} of alpro evaluate.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ResultsError(
            f"{path} has the format {found!r}, but this version of alpro_hf reads results of format {FORMAT}. "
            "Evaluate again, or use the version that wrote it."
        )
    return _checked(content, path)


def _results_file(path: str | Path) -> Path:
    path = Path(path)
    return path / RESULTS if path.is_dir() else path


def _checked(content: Mapping[str, Any], path: Path) -> Results:
    def need(is_right: bool, name: str, what: str) -> None:
        if not is_right:
            raise ResultsError(f"{path}: {name} must be {what}, but is {content.get(name)!r}. Evaluate again.")

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value)

    for name in ("protocol", "metrics", "model", "data", "intervals", "versions", "predictions", "details"):
        need(isinstance(content.get(name), dict), name, "an object")
    need(content.get("task") in ("retrieval", "qa"), "task", "'retrieval' or 'qa'")
    need(is_text(content["protocol"].get("name")), "protocol", "an object with a name")
    metrics = content["metrics"]
    need(bool(metrics) and all(map(is_number, metrics.values())), "metrics", "an object of finite numbers")
    model = content["model"]
    need(is_text(model.get("name")) and "revision" in model, "model", "an object with name and revision")
    data = content["data"]
    need(
        is_text(data.get("fingerprint")) and isinstance(data.get("rows"), int),
        "data",
        "an object with fingerprint and number of rows",
    )
    bounds = content["intervals"].values()
    need(
        all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in bounds),
        "intervals",
        "an object of pairs of numbers",
    )
    need(all(map(is_text, content["versions"].values())), "versions", "an object of texts")
    command = content.get("command")
    need(isinstance(command, list) and all(isinstance(word, str) for word in command), "command", "a list of texts")
    try:
        datetime.fromisoformat(content.get("date", ""))
    except (TypeError, ValueError) as error:
        raise ResultsError(
            f"{path}: date must be of the form 2026-01-31T12:00:00, but is {content.get('date')!r}."
        ) from error
    record = content["predictions"]
    need(
        is_text(record.get("file"))
        and Path(record["file"]).name == record["file"]
        and isinstance(record.get("rows"), int)
        and is_text(record.get("sha256")),
        "predictions",
        "an object with file (in the same folder), rows and sha256",
    )
    values = {item.name: content[item.name] for item in fields(Results)}
    values["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
    return Results(**values)


def read_predictions(path: str | Path) -> list[Row]:
    """The rows that belong to a `results.json` (or that of a folder), in their order.

    Raises:
        FileNotFoundError: `results.json` or its predictions are not there.
        ResultsError: The results are damaged, or the predictions are not those it was written with.
    """
    path = _results_file(path)
    record = read_results(path).predictions
    predictions = path.with_name(record["file"])
    content = predictions.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise ResultsError(
            f"{predictions} does not belong to {path}: it was changed, cut off, or written by another evaluation. "
            "Evaluate again, each time into a folder of its own."
        )
    return [json.loads(line) for line in content.decode("utf-8", "surrogatepass").split("\n") if line]


__all__ = [
    "Results",
    "ResultsError",
    "Row",
    "RowMetric",
    "data_fingerprint",
    "metric_intervals",
    "model_source",
    "package_versions",
    "question_rows",
    "read_predictions",
    "read_results",
    "retrieval_rows",
    "row_metrics",
    "write_results",
]
