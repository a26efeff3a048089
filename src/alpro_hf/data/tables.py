"""Captions from wherever they are kept, one at a time: text, CSV, JSON and Parquet files, `datasets`, iterables.

Nothing here holds more than a batch of rows, however many there are. A row that cannot be read is an error with its
place; a caption that is empty is not, and comes out as None for the caller to count.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

COLUMNS = ("text", "caption", "sentence")  # tried in a table when no column is named
_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON = (".json", ".jsonl", ".ndjson")
_SUFFIXES = (".txt", *_TABLES, *_JSON, ".parquet")
_BATCH = 1000  # rows of Parquet and datasets read at a time
_CHUNK = 1 << 20  # bytes of a JSON list read at a time
_LONGEST = 1 << 24  # bytes of a line, characters of an item of a JSON list: more is no caption
_SPACE = re.compile(r"\s*")
_AFTER_ITEM = re.compile(r"\s*([,\]])")

Source: TypeAlias = str | PathLike[str] | Dataset | DatasetDict | IterableDataset | IterableDatasetDict | Iterable[Any]


class CaptionError(ValueError):
    """A source of captions cannot be read; the message names the source, the place in it and what to do."""


def read_captions(
    *sources: Source,
    column: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[str | None]:
    """Read the captions of all sources, one after the other.

    Args:
        sources: Each a file (`.txt` with one caption a line, `.csv`, `.tsv`, `.json` with a list or with one value a
            line, `.jsonl`, `.ndjson`; each of these also with `.gz`; `.parquet`), a folder written by
            `save_to_disk` or laid out for `load_dataset`, the name of a dataset on the Hub (`owner/name`, streamed),
            a dataset, or any iterable of captions or of rows. A `.tsv` knows no quotes, they are part of its text.
        column: Where a row keeps its caption. None takes the one there is of `text`, `caption` and `sentence`. For a
            CSV or TSV without a header, `#1` is the first field, `#2` the second, ... A column may hold lists of
            captions. Text files have no columns.
        split: Of a dataset with several, the one to read, such as `train`.
        subset: Of a dataset with several configurations, the one to read.
        encoding: Of text, CSV and JSON files; one that extends ASCII. A UTF-8 byte order mark is passed over.

    Yields:
        The captions without white space around them; None for one that is missing or empty.

    Raises:
        CaptionError: A source is none of these, lacks the column, or has a row that cannot be read.
        OSError: A file cannot be opened, or the Hub cannot be reached.
    """
    if "a\n".encode(codecs.lookup(encoding).name) != b"a\n":
        raise CaptionError(f"encoding={encoding!r} does not extend ASCII; convert the file to UTF-8 first.")
    for source in sources:
        reader = _Reader(column, split, subset, "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
        yield from reader.read(source)


class _Reader:
    """Reads one source; see `read_captions`."""

    def __init__(self, column: str | None, split: str | None, subset: str | None, encoding: str) -> None:
        self.column = column
        self.split = split
        self.subset = subset
        self.encoding = encoding

    def read(self, source: Source) -> Iterator[str | None]:
        if isinstance(source, str | PathLike):
            return self._path(str(source))
        if isinstance(source, Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
            return self._dataset(source, "the dataset")
        if not isinstance(source, Iterable):
            raise CaptionError(f"A source of captions is a path, a dataset or an iterable; received {source!r}.")
        return self._values(((f"item {index}", value) for index, value in enumerate(source)), "the iterable")

    def _path(self, name: str) -> Iterator[str | None]:
        path, suffix = Path(name), _suffix(name)
        if path.is_dir():
            return self._dataset_named(name)
        if not path.exists():
            if suffix in _SUFFIXES or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                raise FileNotFoundError(f"There is no file {name}.")
            return self._dataset_named(name)
        if suffix == ".txt":
            return (caption for place, line in self._lines(path) for caption in _captions(line, place, None))
        if suffix in _TABLES:
            return self._table(path, _TABLES[suffix])
        if suffix in _JSON:
            return self._values(self._json(path), name)
        if suffix == ".parquet" and path.suffix != ".gz":
            return self._parquet(path)
        raise CaptionError(
            f"{name}: no file of captions by its name; known are {', '.join(_SUFFIXES)}, and .gz behind all but the "
            "last. Rename it to what it holds (.txt: one caption a line)."
        )

    # ------------------------------------------------------------------------------------------------- files of text

    def _lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """Number and text of each line, its line break included."""
        number, encoding = 0, self.encoding
        try:
            with _opened(path) as file:
                while line := file.readline(_LONGEST + 1):
                    number += 1
                    if len(line) > _LONGEST:
                        raise CaptionError(f"{path}, line {number}: longer than {_LONGEST} bytes, so no captions.")
                    yield f"line {number}", line.decode(encoding)
                    encoding = self.encoding.removesuffix("-sig")  # a mark stands in front of the first line only
        except UnicodeDecodeError as error:
            raise _undecodable(path, number, encoding, error) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(path, number, error) from error

    def _chunks(self, path: Path) -> Generator[str]:
        """The text of a file whose lines may be longer than memory."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        number = 1
        try:
            with _opened(path) as file:
                while chunk := file.read(_CHUNK):
                    yield decoder.decode(chunk)
                    number += chunk.count(b"\n")
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            number += error.object.count(b"\n", 0, error.start)
            raise _undecodable(path, number, self.encoding, error) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(path, number, error) from error

    def _table(self, path: Path, delimiter: str) -> Iterator[str | None]:
        lines = (line for _, line in self._lines(path))
        if delimiter == "\t":
            rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
        field, width, line = -1, 0, 1
        try:
            for row in rows:
                place, line = f"{path}, line {line}", rows.line_num + 1
                if not row:
                    yield None
                    continue
                if not width:
                    field, width = self._field(row, place), len(row)
                    if self.column is None or self.column in row:
                        continue
                if len(row) != width:
                    raise CaptionError(f"{place}: {len(row)} fields, where the first line has {width}.")
                yield from _captions(row[field], place, self.column)
        except csv.Error as error:
            raise CaptionError(f"{path}, line {line}: {error}. Is a quotation mark open or a field broken?") from error

    def _field(self, first: Sequence[str], place: str) -> int:
        """Index of the caption in the rows of a table, which may have no header."""
        if self.column and self.column not in first and re.fullmatch(r"#[1-9]\d*", self.column):
            if int(self.column[1:]) > len(first):
                raise CaptionError(f"{place}: there is no field {self.column}, only {len(first)} fields.")
            return int(self.column[1:]) - 1
        hint = " In a table without a header, the first field is column #1, the second #2, ..."
        return list(first).index(_choose(first, self.column, place, hint))

    # -------------------------------------------------------------------------------------------------- rows of values

    def _json(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Place and value of each item of a list, or of each line."""
        chunks = self._chunks(path)
        start = next(chunks, "")
        if start.lstrip().startswith("["):
            yield from _json_list(start, chunks, path)
            return
        chunks.close()
        for place, line in self._lines(path):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise CaptionError(
                    f"{path}, {place}: not JSON: {error.msg} at character {error.pos + 1}. A file of captions is one "
                    "list of rows, or has one row a line."
                ) from error
            yield place, value

    def _values(self, values: Iterable[tuple[str, Any]], name: str) -> Iterator[str | None]:
        """Captions of values that are captions themselves or rows that have one."""
        key: str | None = None
        for place, value in values:
            if isinstance(value, dict):
                if key is None:
                    key = _choose(list(value), self.column, f"{name}, {place}")
                elif key not in value:
                    raise CaptionError(f"{name}, {place}: the row lacks {key!r}; it has {_listed(value)}.")
                yield from _captions(value[key], f"{name}, {place}", key)
            elif self.column is None:
                yield from _captions(value, f"{name}, {place}", None)
            else:
                raise CaptionError(f"{name}, {place}: no row with a field {self.column!r} but {_shown(value)}.")

    def _parquet(self, path: Path) -> Iterator[str | None]:
        row = 0
        with path.open("rb") as file:
            try:
                parquet = pq.ParquetFile(file)
                key = _choose(parquet.schema_arrow.names, self.column, str(path))
                for batch in parquet.iter_batches(_BATCH, columns=[key]):
                    for value in batch.column(0).to_pylist():
                        row += 1
                        yield from _captions(value, f"{path}, row {row}", key)
            except (pa.ArrowException, OSError) as error:
                raise CaptionError(f"{path}, after row {row}: no readable Parquet: {error}") from error

    # ------------------------------------------------------------------------------------------------------- datasets

    def _dataset_named(self, name: str) -> Iterator[str | None]:
        """Captions of a folder that holds a dataset, or of a dataset on the Hub."""
        try:
            if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
                return self._dataset(load_from_disk(name), name)
            return self._dataset(load_dataset(name, self.subset, split=self.split, streaming=True), name)
        except (DatasetsError, ValueError) as error:
            raise CaptionError(f"{name}: no file and no dataset that can be read: {error}") from error

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
            columns = dataset.column_names or list(next(iter(dataset), {}))  # a stream may not know before it starts
            key = _choose(columns, self.column, name)
            for batch in dataset.select_columns([key]).iter(_BATCH):
                for value in batch[key]:
                    row += 1
                    yield from _captions(value, f"{name}, row {row}", key)
        except (DatasetsError, pa.ArrowException, UnicodeDecodeError) as error:
            raise CaptionError(f"{name}, after row {row}: {error}") from error


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _undecodable(path: Path, line: int, encoding: str, error: UnicodeDecodeError) -> CaptionError:
    return CaptionError(
        f"{path}, line {line}: not {encoding.removesuffix('-sig')}: the byte 0x{error.object[error.start]:02x} "
        f"({error.reason}). Name the encoding of the file (--encoding), or convert it to UTF-8."
    )


def _damaged(path: Path, line: int, error: Exception) -> CaptionError:
    return CaptionError(f"{path}, line {line}: from here on the archive is damaged or incomplete: {error}")


def _json_list(text: str, chunks: Iterator[str], path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of the items of a JSON list that may be larger than memory; `text` is its beginning."""
    decode = json.JSONDecoder().raw_decode
    position, index = text.index("[") + 1, 0
    line = 1 + text.count("\n", 0, position)
    after = None
    while after is None or after[1] == ",":
        start = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches anywhere
        if index == 0 and text.startswith("]", start):
            position = start + 1
            break
        try:
            value, end = decode(text, start)
            after, problem = _AFTER_ITEM.match(text, end), "no ',' or ']' behind the item"
        except json.JSONDecodeError as error:
            after, problem = None, error.msg
        if after is None:  # broken, or the end of what has been read
            more = next(chunks, "")
            if not more or len(text) - position > _LONGEST:
                place = f"line {line + text.count(chr(10), position, start)}, item {index}"
                raise CaptionError(f"{path}, {place}: not JSON: {problem}.")
            text, position = text[position:] + more, 0
            continue
        yield f"line {line + text.count(chr(10), position, start)}, item {index}", value
        line += text.count("\n", position, after.end())
        position, index = after.end(), index + 1
    if (text[position:] + next(chunks, "")).strip():
        raise CaptionError(f"{path}, line {line}: there is something behind the end of the list.")


def _choose(columns: Sequence[str], column: str | None, name: str, hint: str = "") -> str:
    """The column that holds the captions."""
    if column is not None:
        if column not in columns:
            raise CaptionError(f"{name}: there is no column {column!r}; the columns are {_listed(columns)}.{hint}")
        return column
    known = [candidate for candidate in COLUMNS if candidate in columns]
    if len(known) == 1:
        return known[0]
    problem = (
        f"several columns may be the captions ({', '.join(known)})" if known else "no column of captions is known"
    )
    raise CaptionError(f"{name}: {problem}; name it (--column). The columns are {_listed(columns)}.{hint}")


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


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


def _listed(columns: Iterable[str]) -> str:
    names = [repr(name) if len(name) < 60 else repr(name[:60]) + "..." for name in columns]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") or "none"


__all__ = ["COLUMNS", "CaptionError", "read_captions"]
