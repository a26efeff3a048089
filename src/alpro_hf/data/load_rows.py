"""Load the rows for a training or evaluation: tables, folders of `save_to_disk`, or published annotations."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from transformers.utils import logging

from ..model.decoding_column import file_of
from ..model.decoding_source import is_url
from .annotations import load_annotations
from .columns import MEDIA_COLUMNS, WORD_COLUMNS
from .moment_formats import checked_windows
from .parquet_file import check_unfolding
from .rows import undecoded
from .spelling import existing, look_alike, other_delimiter

logger = logging.get_logger(__name__)

# Annotations as KIND:PATH. A kind has at least two characters, so that C:\... is a path of Windows.
_KIND_AND_PATH = re.compile(r"([A-Za-z][\w-]+):(.+)")
_STRINGS = ("string", "large_string")
_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_TSV: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}  # quotes are part of a text, see `tables`


class RowsError(ValueError):
    """Rows cannot be read or used; the message names the file, the problem and the remedy."""


def load_rows(
    spec: str,
    task: str,
    videos: Path | None = None,
    split: str | None = None,
    output: Path | None = None,
    **options: Any,
) -> Dataset:
    """Load rows and check that they have what a task needs.

    Paths of clips may have backslashes, or accents that are composed where those of the files are decomposed.

    Args:
        spec: A file or folder of rows, see `read_rows`; or KIND:PATH, see `load_annotations`.
        task: `prompter`, `pretrain`, `retrieval`, `moments` or `qa`.
        videos: The folder of the clips of KIND:PATH.
        split: The split to read, if the file or folder has several.
        output: Folder for a list of the missing clips of KIND:PATH; None for no list.
        options: Further arguments of `load_annotations`, for KIND:PATH.

    Raises:
        RowsError: A column is missing, holds no text or has empty fields, or there are no rows.
        OSError, ValueError: The file is missing or cannot be read.
    """
    match = None if Path(spec).exists() else _KIND_AND_PATH.fullmatch(spec)
    if match:
        kind: Any = match[1]
        missing = None if output is None or videos is None else missing_list(spec, output)
        rows = load_annotations(kind, match[2], videos=videos, split=split, missing=missing, **options)
    elif options:
        raise RowsError(f"{', '.join(options)} belong to annotations as their owners publish them, KIND:PATH.")
    else:
        rows = read_rows(spec, split)
    columns = list(rows.features or ())
    media = MEDIA_COLUMNS if task in ("prompter", "pretrain") else ("video",)
    lacking = [name for name in WORD_COLUMNS[task] if name not in columns]
    lacking += ["windows"] if task == "moments" and "windows" not in columns else []
    if not any(name in columns for name in media):
        lacking.insert(0, " or ".join(media))
    if lacking:
        alike = next(filter(None, (look_alike(name, columns) for name in lacking)), "")
        raise RowsError(
            f"{spec} has the columns {', '.join(columns)}; for the task {task!r} it lacks {', '.join(lacking)}."
            + (other_delimiter(columns) or f"{alike} Rename the columns of your file, or name its kind (KIND:PATH).")
        )
    for name in WORD_COLUMNS[task]:
        _check_words(spec, rows, name)
    if task == "moments":
        for place, windows in enumerate(rows["windows"]):
            checked_windows(windows, f"{spec}: row {place} (counted from 0), field 'windows'")
    if match:
        return undecoded(rows)
    if videos is not None:
        logger.warning(
            "--videos %s is not used for %s: the rows of a file name their clips by paths from the working directory.",
            *(videos, spec),
        )
    return _with_existing_paths(undecoded(rows), media)


def read_rows(path: str | Path, split: str | None = None) -> Dataset:
    """Read rows from a JSON-lines, CSV, TSV or Parquet file, or from a folder written by `save_to_disk`.

    Args:
        path: The file or folder.
        split: The split to read, if the folder has several.

    Raises:
        FileNotFoundError: There is no such file or folder.
        RowsError: The file is empty, damaged or has another extension, a Parquet file unfolds to far more than its
            size, or the folder has several splits and none was named.
    """
    path = Path(path)
    if path.is_file() and not path.stat().st_size:
        raise RowsError(f"{path} is empty.")
    try:
        return _read_rows(path, split)
    except RowsError:  # a ValueError whose message names the file already
        raise
    except (ValueError, OverflowError, RecursionError, DatasetsError) as error:
        # the cause is the error of the parser, which names the place
        raise RowsError(f"{path} cannot be read as rows, or has none: {error.__cause__ or error}") from error


def _read_rows(path: Path, split: str | None) -> Dataset:
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if path.is_dir():
        loaded = load_from_disk(str(path))
        if not isinstance(loaded, DatasetDict):
            return loaded
        splits = list(loaded)
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            raise RowsError(f"{path} has the splits {', '.join(splits)}; name one of them with --split.")
        return loaded[split]
    if path.suffix.lower() not in _LOADERS:
        raise RowsError(f"{path}: rows are read from {', '.join(_LOADERS)}, or a folder of save_to_disk.")
    if path.suffix.lower() == ".parquet":
        check_unfolding(path)
    options = _TSV if path.suffix.lower() == ".tsv" else {}
    return load_dataset(_LOADERS[path.suffix.lower()], data_files=str(path), split="train", **options)


def missing_list(spec: str, output: Path) -> Path | None:
    """The file in which `load_rows` lists the missing clips of KIND:PATH; None if `spec` is a file of rows."""
    match = None if Path(spec).exists() else _KIND_AND_PATH.fullmatch(spec)
    return output / f"missing-{match[1]}-{Path(match[2]).stem}.txt" if match else None


def video_folders(videos: Sequence[Path] | None, sources: int) -> list[Path | None]:
    """The folder of clips for each of several sources; one folder serves all.

    Raises:
        RowsError: The number of folders is neither 1 nor that of the sources.
    """
    if videos and len(videos) not in (1, sources):
        raise RowsError(f"--videos names {len(videos)} folders for {sources} --data. Name one, or one for each.")
    return [None] * sources if not videos else [*videos] * (sources if len(videos) == 1 else 1)


def refuse_missing_files(spec: str, rows: Dataset) -> None:
    """Raise an error if none of the files that rows name exists; looks no further than the first that does.

    Args:
        spec: What the rows were read from, for the message.
        rows: Rows whose clips and images are paths, or `{"bytes", "path"}`.

    Raises:
        RowsError: There is none of the files.
    """
    columns = [name for name in MEDIA_COLUMNS if name in (rows.features or ())]
    first = None
    for batch in rows.select_columns(columns).iter(batch_size=1000):
        for value in (value for name in columns for value in batch[name]):
            source = file_of(value) if value is not None else None
            if source is None:
                continue
            if not isinstance(source, str) or is_url(source) or os.path.exists(source):
                return
            first = first or source
    if first is not None:
        raise RowsError(
            f"{spec}: none of the files of its {len(rows)} rows exists; the first is {first!r}. Relative paths start "
            f"at the working directory, {os.getcwd()}. Start the command elsewhere, or write other paths."
        )


def words_digest(rows: Dataset, task: str) -> str:
    """Hash the texts of rows in their order, to tell whether another run has the same; clips are not read.

    Args:
        rows: Rows of a task.
        task: `prompter`, `pretrain`, `retrieval` or `qa`.
    """
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.select_columns(list(WORD_COLUMNS[task])).with_format(None).iter(batch_size=10_000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()


def is_labelled(rows: Dataset) -> bool:
    """Whether rows have cached pseudo-labels."""
    return "pem_targets" in (rows.features or ())


def _with_existing_paths(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """The same rows, with the spelling of paths under which there is a file; see `spelling.existing`."""
    columns = [name for name in columns if getattr((rows.features or {}).get(name), "dtype", None) in _STRINGS]
    other: dict[str, str] = {}
    for batch in rows.select_columns(columns).with_format(None).iter(batch_size=10_000):
        named = (path for name in columns for path in batch[name] if path is not None and not is_url(path))
        other.update((path, found) for path in named if (found := existing(path)) != path)
    if not other:
        return rows
    return rows.map(
        lambda batch: {name: [other.get(path, path) for path in batch[name]] for name in columns},
        batched=True,
        desc="Spelling of paths",
    )


def _check_words(spec: str, rows: Dataset, name: str) -> None:
    kind = getattr(rows.features[name], "dtype", "no text")
    if kind not in _STRINGS:
        raise RowsError(f"{spec}: the column {name!r} holds {kind}, where text is needed. Quote its values.")
    # in batches, because a column of a memory-mapped data set may be larger than memory
    place = 0
    for batch in rows.select_columns(name).iter(batch_size=10_000):
        for text in batch[name]:
            if text is None or not text.strip():
                raise RowsError(f"{spec}: row {place} (counted from 0) has no {name!r}. Fill it in or remove the row.")
            place += 1


__all__ = [
    "RowsError",
    "is_labelled",
    "load_rows",
    "missing_list",
    "read_rows",
    "refuse_missing_files",
    "video_folders",
    "words_digest",
]
