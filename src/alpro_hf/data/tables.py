"""Tables of captions and annotations, read one row at a time: text, CSV, JSON and Parquet files, data sets, iterables.

`read_captions` reads the captions alone, from any source. `read_records` reads all fields of a file of annotations. No
more than a batch of rows is in memory. A row that cannot be read is an error that names its place in the file.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..untrusted_json import JsonBoundsError, open_regular, parse_json, parse_json_prefix, read_bounded
from .columns import CAPTION_COLUMNS
from .parquet_file import ParquetError, parquet_rows
from .spelling import look_alike, other_delimiter

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_TABLE_SUFFIXES = (*_DELIMITERS, *_JSON_SUFFIXES, ".parquet")
_BATCH = 1000  # rows of Parquet files and data sets read at a time
_CHUNK = 1 << 20  # bytes of a JSON list read at a time
# Bytes of a line, or characters of an item of a JSON list. A file of another format may be one endless line.
_LONGEST = 1 << 24
_LARGEST_WHOLE = 1 << 28  # bytes of a JSON file that is one value
# A packed file may unfold to this many times its size; small ones to more.
_MAX_UNFOLDING, _UNFOLDED_ANYWAY = 200, 1 << 26
# What must be the same bytes as in ASCII: lines are split before they are decoded, and these mean something in a file.
_SYNTAX = '09azAZ \t\r\n",;:.|-[]{}'
_DELIMITER_HINT = " Is a delimiter missing, or is there one in a text without quotes?"
_SPACE = re.compile(r"\s*")
_AFTER_ITEM = re.compile(r"\s*([,\]])")

CaptionSource: TypeAlias = (
    str | PathLike[str] | Dataset | DatasetDict | IterableDataset | IterableDatasetDict | Iterable[Any]
)
Record: TypeAlias = dict[str, Any]


class CaptionError(ValueError):
    """A source of captions cannot be read; the message names the source, the place in it and the remedy."""


class AnnotationError(ValueError):
    """Annotations cannot be used; the message names the file, the place in it, the field and the remedy."""


# ------------------------------------------------------------------------------------------------------------ captions


def read_captions(
    *sources: CaptionSource,
    column: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[str | None]:
    """Read the captions of all sources, one after the other.

    Args:
        sources: Each is one of: a file (`.txt` with one caption a line, `.csv`, `.tsv`, `.json` with a list or with
            one value a line, `.jsonl`, `.ndjson`; each of these also with `.gz`; `.parquet`); a folder written by
            `save_to_disk` or laid out for `load_dataset`; the name of a data set on the Hub (`owner/name`, streamed);
            a data set; an iterable of captions or of rows. Quotes in a `.tsv` are part of its text.
        column: The column or field with the captions. None: the one of `text`, `caption` and `sentence` that exists.
            In a CSV or TSV without a header, `#1` is the first field, `#2` the second, and so on. A value may also be
            a list of captions. Text files have no columns.
        split: The split to read, such as `train`, if a data set has several.
        subset: The configuration to read, if a data set has several.
        encoding: Encoding of text, CSV and JSON files, one that extends ASCII. A UTF-8 byte order mark is skipped.

    Yields:
        The captions, stripped; None for each that is missing or empty, so that callers can count those.

    Raises:
        CaptionError: A source is none of these, lacks the column, or has a row that cannot be read.
        OSError: A file cannot be opened, or the Hub cannot be reached.
    """
    reader = _CaptionReader(column, split, subset, _codec(encoding, CaptionError))
    for source in sources:
        yield from reader.read(source)


@dataclass(frozen=True)
class _CaptionReader:
    """Options of `read_captions`, and how each kind of source is read with them."""

    column: str | None
    split: str | None
    subset: str | None
    codec: str

    def read(self, source: CaptionSource) -> Iterator[str | None]:
        if isinstance(source, str | PathLike):
            return self._path(str(source))
        if isinstance(source, Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
            return self._dataset(source, "the data set")
        if not isinstance(source, Iterable):
            raise CaptionError(f"A source of captions is a path, a data set or an iterable; received {source!r}.")
        return self._values((f"the iterable, item {index}", value) for index, value in enumerate(source))

    def _path(self, name: str) -> Iterator[str | None]:
        file, suffix = _File(Path(name), self.codec, CaptionError), _suffix(name)
        if file.path.is_dir():
            return self._named_dataset(name)
        if not file.path.exists():
            # a name of the Hub looks like a relative path; one that ends as a file does is more likely a typing error
            if suffix in (".txt", *_TABLE_SUFFIXES) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                raise FileNotFoundError(f"There is no file {name}.")
            return self._named_dataset(name)
        if suffix == ".txt":
            return (caption for place, line in file.lines() for caption in _captions(line, place, None))
        if suffix in _DELIMITERS:
            return self._rows(file.rows(_DELIMITERS[suffix]))
        if suffix in _JSON_SUFFIXES:
            return self._values(file.values())
        if suffix == ".parquet" and file.path.suffix != ".gz":
            return self._parquet(file)
        raise CaptionError(_unknown_suffix(name, "captions", (".txt", *_TABLE_SUFFIXES)))

    def _rows(self, rows: Iterable[tuple[str, list[str]]]) -> Iterator[str | None]:
        """Captions of a CSV or TSV, which may have no header."""
        index: int | None = None
        for place, row in rows:
            if not row:  # a blank line of a table with one column is an empty caption
                yield None
                continue
            if index is None:
                index = self._index(row, place)
                if self.column is None or self.column in row:  # the row was the header
                    continue
            yield from _captions(row[index], place, self.column)

    def _index(self, first: Sequence[str], place: str) -> int:
        """Index of the captions in the rows of a CSV or TSV with this first row."""
        if self.column and self.column not in first and re.fullmatch(r"#[1-9]\d*", self.column):
            if int(self.column[1:]) > len(first):
                raise CaptionError(f"{place}: there is no field {self.column}, only {len(first)} fields.")
            return int(self.column[1:]) - 1
        hint = " In a table without a header, the first field is column #1, the second #2, ..."
        return list(first).index(self._key(first, place, other_delimiter(first) or hint))

    def _values(self, values: Iterable[tuple[str, Any]]) -> Iterator[str | None]:
        """Captions of values that are captions, or rows with a caption."""
        key: str | None = None
        for place, value in values:
            if isinstance(value, dict):
                if key is None:
                    key = self._key(list(value), place)
                elif key not in value:
                    raise CaptionError(f"{place}: the row lacks {key!r}; it has {listed(value)}.")
                yield from _captions(value[key], place, key)
            elif self.column is None:
                yield from _captions(value, place, None)
            else:
                raise CaptionError(f"{place}: expected a row with a field {self.column!r}; received {_shown(value)}.")

    def _parquet(self, file: "_File") -> Iterator[str | None]:
        for place, record in file.parquet(lambda names: [self._key(names, str(file.path))]):
            [(key, value)] = record.items()
            yield from _captions(value, place, key)

    def _named_dataset(self, name: str) -> Iterator[str | None]:
        """Captions of a folder that holds a data set, or of a data set on the Hub."""
        try:
            if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
                return self._dataset(load_from_disk(name), name)
            return self._dataset(load_dataset(name, self.subset, split=self.split, streaming=True), name)
        except (DatasetsError, ValueError) as error:
            raise CaptionError(f"{name} is neither a file nor a data set that can be read: {error}") from error

    def _dataset(self, dataset: Any, name: str) -> Iterator[str | None]:
        if isinstance(dataset, DatasetDict | IterableDatasetDict):
            splits = list(dataset)
            split = splits[0] if len(splits) == 1 and self.split is None else self.split
            if split not in splits:
                wanted = "name the split to read (--split)" if split is None else f"there is no split {split!r}"
                raise CaptionError(f"{name}: {wanted}; the splits are {', '.join(splits)}.")
            dataset = dataset[split]
        return self._dataset_rows(dataset, name)

    def _dataset_rows(self, dataset: Any, name: str) -> Iterator[str | None]:
        row = 0
        try:
            # a stream may not know its columns before its first row
            columns = dataset.column_names or list(next(iter(dataset), {}))
            key = self._key(columns, name)
            for batch in dataset.select_columns([key]).iter(_BATCH):
                for value in batch[key]:
                    row += 1
                    yield from _captions(value, f"{name}, row {row}", key)
        except (DatasetsError, pa.ArrowException, UnicodeDecodeError) as error:
            raise CaptionError(f"{name}, after row {row}: {error}") from error

    def _key(self, columns: Sequence[str], place: str, hint: str = "") -> str:
        """The column that holds the captions."""
        if self.column is not None:
            if self.column not in columns:
                hint = look_alike(self.column, columns) or hint
                raise CaptionError(
                    f"{place}: there is no column {self.column!r}; the columns are {listed(columns)}.{hint}"
                )
            return self.column
        known = [candidate for candidate in CAPTION_COLUMNS if candidate in columns]
        if len(known) == 1:
            return known[0]
        problem = (
            f"several columns may be the captions ({', '.join(known)})" if known else "no column of captions is known"
        )
        raise CaptionError(f"{place}: {problem}; name it (--column). The columns are {listed(columns)}.{hint}")


def _captions(value: Any, place: str, field: str | None) -> Iterator[str | None]:
    """The captions in a field: one, none, or a list of them."""
    if value is None or isinstance(value, str):
        yield (value and value.strip()) or None
    elif isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
        for item in value or [None]:
            yield (item and item.strip()) or None
    else:
        where = place if field is None else f"{place}, field {field!r}"
        raise CaptionError(f"{where}: a caption is text; received {_shown(value)}.")


# ------------------------------------------------------------------------------------------------------------- records


def read_records(
    path: Path, encoding: str = "utf-8", columns: Sequence[str] | None = None
) -> Iterator[tuple[str, Record]]:
    """Read the records of a file, whose extension tells its format.

    Formats: `.csv`, `.tsv`, `.json` (a list, or one object a line), `.jsonl`, `.ndjson`, each also with `.gz`;
    `.parquet`. Quotes in a `.tsv` are part of its text.

    Args:
        path: The file.
        encoding: Encoding of the text formats, one that extends ASCII. A UTF-8 byte order mark is skipped.
        columns: Names of the fields of a CSV or TSV without a header. A first line of these names is skipped.

    Yields:
        The place, such as "train.csv, line 7", and the record. Values of CSV and TSV are text.

    Raises:
        AnnotationError: The file is none of these, is damaged, or has another encoding.
        OSError: It cannot be opened.
    """
    file = _File(path, _codec(encoding, AnnotationError, path), AnnotationError)
    suffix = _suffix(path.name)
    if suffix in _DELIMITERS:
        yield from _named(file.rows(_DELIMITERS[suffix], columns), columns)
    elif suffix in _JSON_SUFFIXES:
        for place, value in file.values():
            if not isinstance(value, dict):
                raise AnnotationError(f"{place}: expected an object with named fields; received {_shown(value)}.")
            yield place, value
    elif suffix == ".parquet" and path.suffix != ".gz":
        yield from file.parquet()
    else:
        raise AnnotationError(_unknown_suffix(str(path), "annotations", _TABLE_SUFFIXES))


def read_whole(path: Path, encoding: str = "utf-8") -> Any:
    """Read a file of one JSON value, which is in memory completely.

    Raises:
        AnnotationError: The file is larger than 256 MiB, is damaged, or has another encoding.
        OSError: It cannot be opened.
    """
    codec, text = _codec(encoding, AnnotationError, path), ""
    try:
        text = read_bounded(path, _LARGEST_WHOLE).decode(codec)
        return parse_json(text, nan=True)
    except JsonBoundsError as error:
        place = f"{path}, line {1 + text.count(chr(10), 0, error.position)}" if text else str(path)
        keys = [key for key in error.path if isinstance(key, str)]
        where = f", field {keys[min(1, len(keys) - 1)]!r:.80}" if keys else ""
        raise AnnotationError(f"{place}{where}: {error}.") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}.") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise AnnotationError(f"{path}, line {line}: not {encoding}: {error.reason}.") from error


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, str]]:
    """Read the place and the stripped text of the lines of a file, except blank ones.

    Raises:
        AnnotationError: The file is damaged or has another encoding.
        OSError: It cannot be opened.
    """
    for place, line in _File(path, _codec(encoding, AnnotationError, path), AnnotationError).lines():
        if line.strip():
            yield place, line.strip()


def text_of(record: Record, field: str, place: str) -> str:
    """The stripped text in a field; "" for a null.

    Raises:
        AnnotationError: The field is missing or holds no text.
    """
    value = value_of(record, field, place)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnnotationError(f"{place}, field {field!r}: expected text; received {_shown(value)}.")
    return _encodable(value.strip(), field, place)


def name_of(record: Record, field: str, place: str) -> str:
    """The name of a clip or image in a field, which may be a whole number.

    Raises:
        AnnotationError: The field is missing, empty, or holds something else.
    """
    value = value_of(record, field, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise AnnotationError(
            f"{place}, field {field!r}: expected the name of a clip or image; received {_shown(value)}."
        )
    return _encodable(value.strip(), field, place)


def value_of(record: Record, field: str, place: str) -> Any:
    """The value of a field.

    Raises:
        AnnotationError: The field is missing.
    """
    if field not in record:
        raise AnnotationError(
            f"{place}: there is no field {field!r}; there are {listed(record)}."
            + (other_delimiter(record) or look_alike(field, record) or " Is this file of another kind?")
        )
    return record[field]


def _named(rows: Iterable[tuple[str, list[str]]], columns: Sequence[str] | None) -> Iterator[tuple[str, Record]]:
    names = None if columns is None else list(columns)
    first = True
    for place, row in rows:
        is_first, first = first, False
        if not row or (is_first and row == names):
            continue
        if names is None:
            names = row
            if len(set(names)) < len(names):
                raise AnnotationError(f"{place}: the header names a column twice: {listed(names)}.")
            continue
        yield place, dict(zip(names, row, strict=True))


def _encodable(text: str, field: str, place: str) -> str:
    # JSON can express half of a surrogate pair, which Arrow and UTF-8 files cannot store
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AnnotationError(
            f"{place}, field {field!r}: {text!r:.80} contains half of a character ({error.reason}). Write the file "
            "again, in UTF-8."
        ) from error
    return text


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _File:
    """A file of rows. All its methods yield a place, for messages, and what is there.

    CSV and JSON are read by the standard library: the readers of pyarrow and `datasets` report no line of an error,
    guess types (the name 0042 becomes 42), and read no JSON list without holding it in memory. Parquet is read by
    pyarrow, in a process of its own.
    """

    path: Path
    codec: str
    error: type[CaptionError] | type[AnnotationError]  # the class of errors that it raises

    def lines(self) -> Iterator[tuple[str, str]]:
        """The lines, with their line breaks: LF, CRLF, or in a file without either, CR alone."""
        number, codec = 0, self.codec
        try:
            with self._opened() as file:
                for line in self._raw_lines(file):
                    number += 1
                    if len(line) > _LONGEST:
                        raise self.error(f"{self.path}, line {number}: longer than {_LONGEST} bytes, so not a row.")
                    yield f"{self.path}, line {number}", line.decode(codec)
                    codec = self.codec.removesuffix("-sig")  # only the first line may start with a byte order mark
        except UnicodeDecodeError as error:
            raise self._undecodable(number, error) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._damaged(number, error) from error

    def rows(self, delimiter: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, list[str]]]:
        """The fields of each row of a CSV or TSV; none for a blank line. All rows have as many as the first row, or
        as `columns`, the names of the fields of a table without a header."""
        lines = (text for _, text in self.lines())
        if delimiter == "\t":
            rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
        expected = columns
        line = 1  # where the row starts; a quoted field may span lines
        try:
            for row in rows:
                place, line = f"{self.path}, line {line}", rows.line_num + 1
                expected = expected or row
                if row and len(row) != len(expected):
                    count = (
                        f"the first line has {len(expected)}" if columns is None else f"{len(expected)} are expected"
                    )
                    raise self.error(
                        f"{place}: {len(row)} fields, where {count}: {listed(expected)}."
                        + (other_delimiter(expected) or _DELIMITER_HINT)
                    )
                yield place, row
        except csv.Error as error:
            hint = self._csv_hint(str(error), line, delimiter)
            raise self.error(f"{self.path}, line {line}: {error}.{hint}") from error

    def _csv_hint(self, problem: str, line: int, delimiter: str) -> str:
        if problem.startswith("new-line character"):
            return " A carriage return (CR) stands inside of a line: give all lines of the file the same end."
        if line == 1 and delimiter not in (header := next(self.lines())[1]):  # quoted names, another delimiter
            return other_delimiter([header.strip()])
        return " Is a quotation mark open or a field broken?"

    def values(self) -> Iterator[tuple[str, Any]]:
        """The items of a JSON list, or the values of a file with one JSON value a line."""
        chunks = self._chunks()
        start = next(chunks, "")
        if start.lstrip().startswith("["):
            yield from self._list_items(start, chunks)
            return
        chunks.close()
        for place, line in self.lines():
            if not line.strip():
                continue
            try:
                value = parse_json(line, nan=True)
            except JsonBoundsError as error:
                raise self.error(f"{_place_in(place, error)}: {error}.") from error
            except json.JSONDecodeError as error:
                raise self.error(
                    f"{place}: not valid JSON: {error.msg} at character {error.pos + 1}. A JSON file is one list of "
                    "rows, or has one row a line."
                ) from error
            yield place, value

    def parquet(
        self, select: Callable[[Sequence[str]], Sequence[str]] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of a Parquet file; with `select`, only the columns that it selects by name are read."""
        row = 0
        try:
            for row, record in enumerate(parquet_rows(self.path, select), start=1):
                yield f"{self.path}, row {row}", record
        except ParquetError as error:
            if error.column is not None:
                raise self.error(f"{self.path}, row {error.row}, field {error.column!r}: {error}.") from error
            raise self.error(f"{self.path}, after row {error.row}: not readable as Parquet: {error}.") from error

    def _opened(self) -> IO[bytes]:
        try:
            file = open_regular(self.path)  # a pipe would wait for ever
        except JsonBoundsError as error:
            raise self.error(f"{self.path} cannot be read: {error}.") from error
        return gzip.open(file, "rb") if self.path.suffix == ".gz" else file  # type: ignore[return-value]

    def _raw_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """The lines of an open file. A longer one than `_LONGEST` is cut off one byte later."""
        # a part of the beginning: reading more would find the damage of a packed file before its line is known
        head: bytes = file.read1(_CHUNK)  # type: ignore[attr-defined]  # both kinds of files have it
        file.seek(0)
        read, most = 0, self._most()
        lines = _lines_by_cr(file) if b"\r" in head and b"\n" not in head else _lines_by_lf(file)
        for number, line in enumerate(lines, start=1):
            read += len(line)
            if read > most:
                raise self._unfolds(number)
            yield line

    def _most(self) -> int:
        """The largest number of bytes that the file may unfold to."""
        return max(_MAX_UNFOLDING * self.path.stat().st_size, _UNFOLDED_ANYWAY)

    def _unfolds(self, line: int) -> ValueError:
        return self.error(
            f"{self.path}, line {line}: the archive unfolds to more than {_MAX_UNFOLDING} times its size. If that is "
            "right, unpack it first."
        )

    def _chunks(self) -> Generator[str]:
        """The text in pieces, because a JSON list may be one line larger than memory."""
        decoder = codecs.getincrementaldecoder(self.codec)()
        number = 1
        try:
            with self._opened() as file:
                read, most = 0, self._most()
                while chunk := file.read(_CHUNK):
                    read += len(chunk)
                    if read > most:
                        raise self._unfolds(number)
                    yield decoder.decode(chunk)
                    number += chunk.count(b"\n")
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            number += error.object.count(b"\n", 0, error.start)
            raise self._undecodable(number, error) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._damaged(number, error) from error

    def _list_items(self, text: str, chunks: Iterator[str]) -> Iterator[tuple[str, Any]]:
        """The items of a JSON list that may be larger than memory; `text` is its beginning."""
        position, index = text.index("[") + 1, 0
        line = 1 + text.count("\n", 0, position)
        after = None
        while after is None or after[1] == ",":
            start = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches anywhere
            if index == 0 and text.startswith("]", start):
                position = start + 1
                break
            # An item counts only if its delimiter has been read, too: of "12" and "34," the number is 1234.
            try:
                value, end = parse_json_prefix(text, start)
                after, problem = _AFTER_ITEM.match(text, end), "no ',' or ']' after the item"
            except JsonBoundsError as error:
                place = f"{self.path}, line {line + text.count(chr(10), position, error.position)}, item {index}"
                raise self.error(f"{_place_in(place, error)}: {error}.") from error
            except json.JSONDecodeError as error:
                after, problem = None, error.msg
            if after is None:  # broken, or it continues in the next chunk
                more = next(chunks, "")
                if not more or len(text) - position > _LONGEST:
                    place = f"line {line + text.count(chr(10), position, start)}, item {index}"
                    raise self.error(f"{self.path}, {place}: not valid JSON: {problem}.")
                text, position = text[position:] + more, 0
                continue
            yield f"{self.path}, line {line + text.count(chr(10), position, start)}, item {index}", value
            line += text.count("\n", position, after.end())
            position, index = after.end(), index + 1
        if (text[position:] + next(chunks, "")).strip():
            raise self.error(f"{self.path}, line {line}: there is text after the end of the list.")

    def _undecodable(self, line: int, error: UnicodeDecodeError) -> ValueError:
        return self.error(
            f"{self.path}, line {line}: not {self.codec.removesuffix('-sig')}: the byte "
            f"0x{error.object[error.start]:02x} ({error.reason}). Name the encoding of the file (--encoding), or "
            "convert it to UTF-8."
        )

    def _damaged(self, line: int, error: Exception) -> ValueError:
        return self.error(f"{self.path}, line {line}: from here on the archive is damaged or incomplete: {error}")


def _lines_by_lf(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.readline(_LONGEST + 1), b"")


def _lines_by_cr(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := file.read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\r")
        yield from (line + b"\n" for line in whole)
        if len(rest) > _LONGEST:
            break
    if rest:
        yield rest[: _LONGEST + 1]


def _place_in(place: str, error: JsonBoundsError) -> str:
    """The place of an error in a record: with the field, where there is one."""
    return f"{place}, field {error.path[0]!r:.80}" if error.path and isinstance(error.path[0], str) else place


def _codec(encoding: str, error: type[CaptionError] | type[AnnotationError], path: Path | None = None) -> str:
    """Python's name of an encoding, that of UTF-8 with or without a byte order mark for UTF-8."""
    where = "" if path is None else f"{path}: "
    try:
        name = codecs.lookup(encoding).name
        extends_ascii = _SYNTAX.encode(name) == _SYNTAX.encode("ascii")
    except (LookupError, ValueError) as reason:  # the last if the name has a zero byte, or the codec is not for text
        raise error(f"{where}encoding={encoding!r:.80} is no encoding of text that Python knows: {reason}.") from None
    if not extends_ascii or name in ("idna", "punycode"):  # of host names
        raise error(f"{where}encoding={encoding!r} does not extend ASCII; convert the file to UTF-8 first.")
    return "utf-8-sig" if name == "utf-8" else name


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _unknown_suffix(name: str, content: str, known: Sequence[str]) -> str:
    return (
        f"{name}: the name is not that of a file of {content}. Known are {', '.join(known)}, and .gz after all but "
        "the last. Rename the file to match its content."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


def listed(columns: Iterable[str]) -> str:
    """Names of columns for a message, in quotes, so that spaces in them are seen."""
    names = [repr(name) if len(name) < 60 else repr(name[:60]) + "..." for name in columns]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "none"


__all__ = [
    "AnnotationError",
    "CaptionError",
    "Record",
    "listed",
    "name_of",
    "read_captions",
    "read_lines",
    "read_records",
    "read_whole",
    "text_of",
    "value_of",
]
