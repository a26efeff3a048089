"""Results of an evaluation on disk: metrics with their uncertainty, and the predictions that they are computed from.

A folder of results holds `results.json` (metrics and everything they depend on), `predictions.jsonl` (a row for every
query or question) and pictures. All metrics can be computed again from the rows. So their uncertainty can be
estimated, and two evaluations of the same data can be compared row by row (`alpro compare`).
"""

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError

from ..files import inside, is_name, write_whole
from ..untrusted_json import JsonBoundsError, open_regular, parse_json, read_json
from ..version import __version__
from .bootstrap import Statistic, bootstrap_interval, percentage, recall_at

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
RESULTS_FORMAT = 1  # version of the fields of results.json
_LONGEST_ROW = 1 << 22  # bytes of a row of predictions
# fields that metrics are computed from -> their types, and these in words
_ROW_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "direction": ((str,), "a text"),
    "rank": ((int, float), "a number"),
    "correct": ((bool,), "true or false"),
    "answer_type": ((str, NoneType), "a text"),
    "video": ((str, int, NoneType), "a name or a number"),
}
_RECALL_AT = (1, 5, 10, 50)

Row = dict[str, Any]


class ResultsError(ValueError):
    """A file of results is damaged or of another format, or two of them cannot be compared."""


# ------------------------------------------------------------------------------------------------- metrics from rows


class RowMetric(NamedTuple):
    """A metric as a statistic of (rows,) values; `groups`, if any, is the group of each row."""

    values: np.ndarray
    statistic: Statistic
    groups: np.ndarray | None


def row_metrics(rows: Sequence[Row]) -> dict[str, RowMetric]:
    """All metrics that can be computed from predictions.

    Args:
        rows: Rows of `predictions.jsonl`.

    Returns:
        Name of the metric in `results.json` to its values and statistic. For retrieval: recall at 1, 5, 10 and 50,
        median and mean rank in each direction that the rows have; captions are grouped by their video. For question
        answering: accuracy, overall and by type; questions are grouped by their video, if all rows name one.
    """
    found: dict[str, RowMetric] = {}
    for direction in ("t2v", "v2t"):
        of_direction = [row for row in rows if row.get("direction") == direction]
        if of_direction:
            ranks = np.array([row["rank"] for row in of_direction], float)
            # of v2t, each video is one row, so there is nothing to group
            groups = np.array([str(row["video"]) for row in of_direction]) if direction == "t2v" else None
            for k in _RECALL_AT:
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
    """The confidence interval of every metric of `row_metrics`, for `Results.intervals`.

    Args:
        rows: Rows of `predictions.jsonl`.
        n, seed, confidence: See `bootstrap_interval`.
    """
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
    """The predictions of one direction of retrieval, a row for each query.

    Args:
        direction: `t2v` (text to video) or `v2t` (video to text).
        scores: (queries, candidates), an array or a tensor on the CPU.
        ranks: (queries,) rank of the right candidate of each query.
        queries: (queries,) number of the text, or of the video, of each query.
        names: (videos,) names of the videos in the file; their numbers if None.
        text_to_video: (texts,) number of the video of each text; required for `t2v`.
        captions: (texts,) texts, written into the rows of queries that are texts.
        top: Number of candidates to keep, best first. Equal scores keep their order.

    Returns:
        `{"direction": "t2v", "text", "caption", "video", "rank", "top": [{"video", "score"}]}`, where `video` is the
        right one, and `{"direction": "v2t", "video", "rank", "top": [{"text", "score"}]}`.

    Raises:
        ValueError: `text_to_video` is missing, or scores, ranks and queries have different lengths.
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
        # sorting every candidate of every query would dominate: take those that can be among the best, and sort these
        least = np.partition(of_query, -top)[-top] if top < len(of_query) else -np.inf
        best = np.flatnonzero(of_query >= least)
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
        `{"question", "answer", "prediction", "correct"}` and, where given, `video` and `answer_type`. A question whose
        answer is not among the known answers counts as wrong, whatever was predicted.
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
    """A hash of annotation rows: equal if the same questions are asked about the same files, in the same order.

    It covers `text`, `question`, `answer`, `answer_type`, and the file names of `video` and `image`. Folders do not
    count, so the data may lie anywhere; encoded bytes without a name count by their content. Nothing is decoded.

    Returns:
        `sha256:` and 64 hexadecimal digits.

    Raises:
        TypeError: A video or image is already decoded.
    """
    digest = hashlib.sha256()
    for number, row in enumerate(rows):
        # absent and None are the same: tables fill missing columns with None
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
    """The field `model` of `Results`: the name of a model, and a revision that identifies its weights.

    Args:
        name: Folder or Hub id.
        commit: Commit of a Hub model (`model.config._commit_hash`). For a folder it is ignored: the revision is a hash
            of its safetensors files, `sha256:...`.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "revision": commit}
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        # with the names, so that the boundaries between files count
        digest.update(f"{path.name}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"name": name, "revision": f"sha256:{digest.hexdigest()}"}


def package_versions() -> dict[str, str]:
    """Versions of the packages that decode, prepare and compute."""
    import torch  # here, because reading results and describing the command line do without it

    return {
        "alpro_hf": __version__,
        "torch": str(torch.__version__),  # names the build, such as +cu128, which the metadata of a wheel may omit
        "transformers": version("transformers"),
        "av": version("av"),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Results:
    """The content of `results.json`.

    Args:
        task: `retrieval` or `qa`.
        protocol: `name` of the protocol, and its settings, such as `rerank_k`.
        metrics: Name to value. Shares are in percent.
        model: `name` and `revision`, see `model_source`.
        data: `fingerprint` (see `data_fingerprint`), number of `rows`, and further facts about the data.
        intervals: Name of a metric to the bounds of its interval, see `metric_intervals`.
        command: The command line.
        date: ISO 8601, in UTC.
        versions: See `package_versions`.
        predictions: `file`, `rows` and `sha256` of the predictions; `write_results` sets it.
        details: Further findings, such as the breakdown by groups of rows and the re-ranking curve.
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
    """Write `predictions.jsonl`, then `results.json`. Each of them appears complete or not at all.

    After a crash between the two, `read_predictions` notices that they do not belong together.

    Args:
        folder: Folder to write to; created if it does not exist.
        results: Content of `results.json`, except for the field `predictions`.
        rows: Content of `predictions.jsonl`, see `retrieval_rows` and `question_rows`. Read once.

    Returns:
        The path of `results.json`.

    Raises:
        ResultsError: A field does not have the type that `Results` documents, or a number is NaN or infinite, which
            JSON cannot represent. The old files stay.
    """
    folder = Path(folder)
    path = folder / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    content = b""

    def write_predictions(partial: Path) -> None:
        nonlocal content
        digest, count = hashlib.sha256(), 0
        with partial.open("wb") as file:
            for row in rows:
                line = (_to_json(row, f"row {count} of the predictions") + "\n").encode("utf-8", "surrogatepass")
                digest.update(line)
                file.write(line)
                count += 1
        record = {"file": PREDICTIONS, "rows": count, "sha256": digest.hexdigest()}
        fields_of_file = {"format": RESULTS_FORMAT, **asdict(replace(results, predictions=record))}
        text = _to_json(fields_of_file, str(path), indent=1)
        _checked(json.loads(text), path)  # before the rename, so that invalid results leave the old predictions alone
        # a file name that is not valid UTF-8 reaches Python as lone surrogates, which plain UTF-8 refuses to encode
        content = text.encode("utf-8", "surrogatepass") + b"\n"

    write_whole(folder / PREDICTIONS, write_predictions)
    write_whole(path, lambda partial: partial.write_bytes(content))
    return path


def _to_json(content: Any, what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{what} cannot be written as JSON: {error}.") from error


def read_results(path: str | Path) -> Results:
    """Read a `results.json`.

    Args:
        path: The file, or its folder.

    Raises:
        FileNotFoundError: There is no such file.
        ResultsError: The file is damaged or of another format, or a field is missing or has the wrong type.
    """
    path = _results_file(path)
    try:
        content = read_json(path, errors="surrogatepass")
        # of half characters, only those that stand for a byte of a file name can be printed
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except JsonBoundsError as error:
        raise ResultsError(f"{path} cannot be results{_field(error)}: {error}.") from error
    except ValueError as error:
        raise ResultsError(
            f"{path} is not valid JSON: {error}. Name a {RESULTS} that alpro evaluate wrote."
        ) from error
    if not isinstance(content, dict) or content.get("format") != RESULTS_FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ResultsError(
            f"{path} has format {found!r:.80}, but this version of alpro_hf reads format {RESULTS_FORMAT}. Evaluate "
            "again, or use the version that wrote it."
        )
    return _checked(content, path)


def _results_file(path: str | Path) -> Path:
    path = Path(path)
    return path / RESULTS if path.is_dir() else path


# The schema of results.json, in the types of JSON. Typed dictionaries are validated as strict dataclasses, see
# `huggingface_hub.dataclasses`: types first, then the function in the annotation, which raises a ValueError.


def _not_empty(value: Any) -> None:
    if not value:
        raise ValueError(f"it is empty: {value!r}")


def _finite_numbers(values: Mapping[str, float]) -> None:
    _not_empty(values)
    if wrong := {name: value for name, value in values.items() if not math.isfinite(value)}:
        raise ValueError(f"these are not finite numbers: {wrong}")


def _bounds(intervals: Mapping[str, Sequence[float]]) -> None:
    if wrong := {
        name: pair for name, pair in intervals.items() if len(pair) != 2 or not all(map(math.isfinite, pair))
    }:
        raise ValueError(f"these are not pairs of a lower and an upper bound: {wrong}")


def _iso_date(value: str) -> None:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value!r} is not of the form 2026-01-31T12:00:00") from None


def _file_in_same_folder(value: str) -> None:
    # results come from others, too: a path could make us read any file
    if not value or value == ".." or not is_name(value) or Path(value).name != value:
        raise ValueError(f"{value!r} is not the name of a file in the same folder")


class _Protocol(TypedDict):
    name: Annotated[str, _not_empty]


class _Model(TypedDict):
    name: Annotated[str, _not_empty]
    revision: str | None


class _Data(TypedDict):
    fingerprint: Annotated[str, _not_empty]
    rows: int


class _Predictions(TypedDict):
    file: Annotated[str, _file_in_same_folder]
    rows: int
    sha256: Annotated[str, _not_empty]


def _has_keys_of(schema: Any) -> Callable[[Mapping[str, Any]], None]:
    """A validator of objects that have the keys of a schema, and may have others."""

    def validate(value: Mapping[str, Any]) -> None:
        keys = schema.__annotations__
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}: {value!r}")
        try:
            validate_typed_dict(schema, {key: value[key] for key in keys})
        except StrictDataclassError as error:
            raise ValueError(_in_one_line(error)) from None

    return validate


class _ResultsFile(TypedDict):
    task: Literal["retrieval", "qa"]
    protocol: Annotated[dict[str, Any], _has_keys_of(_Protocol)]
    metrics: Annotated[dict[str, int | float], _finite_numbers]
    model: Annotated[dict[str, Any], _has_keys_of(_Model)]
    data: Annotated[dict[str, Any], _has_keys_of(_Data)]
    intervals: Annotated[dict[str, list[int | float]], _bounds]
    command: list[str]
    date: Annotated[str, _iso_date]
    versions: dict[str, str]
    predictions: Annotated[dict[str, Any], _has_keys_of(_Predictions)]
    details: dict[str, Any]


def _checked(content: Mapping[str, Any], path: Path) -> Results:
    """Results from the content of a file. A missing field counts as None, which none may be; unknown ones do not."""
    values: Any = {item.name: content.get(item.name) for item in fields(Results)}
    try:
        validate_typed_dict(_ResultsFile, values)  # type: ignore[type-var]  # its bound matches no typed dictionary
    except StrictDataclassError as error:
        raise ResultsError(f"{path}: {_in_one_line(error)}. Evaluate again.") from error
    values["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
    return Results(**values)


def _in_one_line(error: StrictDataclassError) -> str:
    """The field that is wrong, and the innermost reason: the outer ones do not show the values of a list or object."""
    reason: BaseException = error
    while reason.__cause__ is not None:
        reason = reason.__cause__
    return f"{str(error).splitlines()[0]} {reason}"


def read_predictions(path: str | Path) -> list[Row]:
    """Read the rows that belong to a `results.json`, in their order.

    Args:
        path: The `results.json`, or its folder.

    Raises:
        FileNotFoundError: `results.json` or its predictions do not exist.
        ResultsError: The results are damaged, or the predictions are not the ones they were written with.
    """
    path = _results_file(path)
    record = read_results(path).predictions
    predictions = path.with_name(record["file"])
    if not inside(predictions, path.parent):
        raise ResultsError(f"{predictions} leads out of the folder of {path}. Copy the file into it.")
    digest = hashlib.sha256()
    try:
        with open_regular(predictions) as file:
            while block := file.read(1 << 20):
                digest.update(block)
            if digest.hexdigest() != record["sha256"]:
                raise ResultsError(
                    f"{predictions} does not belong to {path}: it was changed, truncated, or written by another "
                    "evaluation. Evaluate again, and give each evaluation a folder of its own."
                )
            file.seek(0)
            # a line of a file ends at \n alone: a caption may contain characters that Python counts as line ends
            lines = enumerate(iter(lambda: file.readline(_LONGEST_ROW + 1), b""), start=1)
            return [_row(line, f"{predictions}, line {number}") for number, line in lines if line.strip()]
    except JsonBoundsError as error:
        raise ResultsError(f"{predictions} cannot be read: {error}.") from error


def _row(line: bytes, place: str) -> Row:
    """A row of predictions with the types that its metrics need."""
    if len(line) > _LONGEST_ROW:
        raise ResultsError(f"{place}: longer than {_LONGEST_ROW:,} bytes, so not a row.")
    try:
        row = parse_json(line.decode("utf-8", "surrogatepass"))
    except JsonBoundsError as error:
        raise ResultsError(f"{place}{_field(error)}: {error}.") from error
    except ValueError as error:
        raise ResultsError(f"{place}: not valid JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ResultsError(f"{place}: a row is an object with named fields; received {row!r:.60}.")
    needed = {"t2v": ("rank", "video"), "v2t": ("rank",)}.get(str(row.get("direction")), ())
    if missing := [name for name in needed if name not in row]:
        raise ResultsError(f"{place}: the row lacks {', '.join(missing)}.")
    for name, (types, said) in _ROW_TYPES.items():
        # by `type`, because a bool is an int for `isinstance`
        if name in row and type(row[name]) not in types:
            raise ResultsError(f"{place}, field {name!r}: {said} is expected; received {row[name]!r:.60}.")
    return row


def _field(error: JsonBoundsError) -> str:
    return f", field {error.path[0]!r:.80}" if error.path else ""


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
