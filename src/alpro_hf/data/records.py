"""Records of annotation files, one at a time and each with its place: CSV, TSV, JSON, JSON lines and Parquet."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .tables import CaptionError, _Reader

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
_BATCH = 1000  # rows of Parquet read at a time

Record = dict[str, Any]


class AnnotationError(ValueError):
    """Annotations cannot be used; the message names the file, the place in it, the field and what to do."""


def read_records(
    path: Path, encoding: str = "utf-8", columns: Sequence[str] | None = None
) -> Iterator[tuple[str, Record]]:
    """The records of a file, by its extension: `.csv`, `.tsv`, `.json` (a list, or one a line), `.jsonl`, `.ndjson`,
    each also with `.gz` behind it; `.parquet`.

    No more than a batch is in memory. A `.tsv` knows no quotes, they are part of its text.

    Args:
        encoding: Of the text files. A UTF-8 byte order mark is passed over.
        columns: Names of the fields of a CSV or TSV without a header; a first line of these names is passed over.

    Yields:
        Place, such as "train.csv, line 7", and record. Values of CSV and TSV are text.

    Raises:
        AnnotationError: The file is none of these, is broken or damaged, or is in another encoding.
        OSError: It cannot be opened.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _table(path, encoding, columns, "," if suffix == ".csv" else "\t")
    elif suffix in (".json", ".jsonl", ".ndjson"):
        yield from _json(path, encoding)
    elif path.suffix.lower() == ".parquet":
        yield from _parquet(path)
    else:
        raise AnnotationError(
            f"{path}: no file of annotations by its name; known are {', '.join(SUFFIXES)}, and .gz behind all but the "
            "last. Rename it to what it holds."
        )


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """Place and text of the lines of a file that are not blank, without white space around them.

    Raises:
        AnnotationError: The file is damaged or in another encoding.
        OSError: It cannot be opened.
    """
    try:
        for place, line in _reader(encoding)._lines(path):
            if line.strip():
                yield f"{path}, {place}", line.strip()
    except CaptionError as error:
        raise AnnotationError(str(error)) from error


def text_of(record: Record, field: str, place: str) -> str:
    """The text in a field, without white space around it; it may be empty."""
    value = value_of(record, field, place)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnnotationError(f"{place}, field {field!r}: expected text; received {_shown(value)}.")
    return _proper(value.strip(), field, place)


def name_of(record: Record, field: str, place: str) -> str:
    """The name of a clip or image in a field, which may be a whole number."""
    value = value_of(record, field, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(
            f"{place}, field {field!r}: expected the name of a clip or image; received {_shown(value)}."
        )
    return _proper(value.strip(), field, place)


def value_of(record: Record, field: str, place: str) -> Any:
    """Whatever is in a field, which must be there."""
    if field not in record:
        raise AnnotationError(
            f"{place}: there is no field {field!r}; there are {_listed(record)}. Is this file of another kind?"
        )
    return record[field]


def _proper(text: str, field: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AnnotationError(
            f"{place}, field {field!r}: {text!r:.80} has half a character ({error.reason}). Write the file anew, in "
            "UTF-8."
        ) from error
    return text


def _reader(encoding: str) -> _Reader:
    name = codecs.lookup(encoding).name
    if "a\n".encode(name) != b"a\n":
        raise AnnotationError(f"encoding={encoding!r} does not extend ASCII; convert the file to UTF-8 first.")
    return _Reader(None, None, None, "utf-8-sig" if name == "utf-8" else encoding)


def _table(path: Path, encoding: str, columns: Sequence[str] | None, delimiter: str) -> Iterator[tuple[str, Record]]:
    names = None if columns is None else list(columns)
    line = 1
    try:
        lines = (text for _, text in _reader(encoding)._lines(path))
        if delimiter == "\t":
            rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
        for row in rows:
            place, first, line = f"{path}, line {line}", line == 1, rows.line_num + 1
            if not row:
                continue
            if names is None:
                names = row
                if len(set(names)) < len(names):
                    raise AnnotationError(f"{place}: the header names a column twice: {_listed(names)}.")
                continue
            if first and row == names:
                continue
            if len(row) != len(names):
                raise AnnotationError(
                    f"{place}: {len(row)} fields, where {len(names)} are expected: {_listed(names)}. Is a delimiter "
                    "missing, or one in a text without quotes?"
                )
            yield place, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {line}: {error}. Is a quotation mark open or a field broken?") from error
    except CaptionError as error:
        raise AnnotationError(str(error)) from error


def _json(path: Path, encoding: str) -> Iterator[tuple[str, Record]]:
    try:
        for where, value in _reader(encoding)._json(path):
            place = f"{path}, {where}"
            if not isinstance(value, dict):
                raise AnnotationError(f"{place}: expected an object with named fields; received {_shown(value)}.")
            yield place, value
    except CaptionError as error:
        raise AnnotationError(str(error)) from error


def _parquet(path: Path) -> Iterator[tuple[str, Record]]:
    row = 0
    with path.open("rb") as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(_BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last where a text is not UTF-8
            raise AnnotationError(f"{path}, after row {row}: no readable Parquet: {error}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


def _listed(names: Sequence[str] | Record) -> str:
    return ", ".join(repr(name) for name in list(names)[:20]) or "none"


__all__ = ["SUFFIXES", "AnnotationError", "Record", "name_of", "read_lines", "read_records", "text_of", "value_of"]
