"""Load annotation files, published ones or a user's own tables, into data sets in the row format of this package.

The files are read record by record, and rows are written to Arrow as they come, so memory hardly grows: about 20 bytes
a row to find repeated rows, and about 120 bytes a clip to look up clips (measured with
scripts/benchmarks/annotations_memory.py). The exception is `msrvtt`: its file is one JSON object (about 35 MB) and is
read completely.
"""

import logging
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value
from datasets.fingerprint import get_temporary_cache_files_directory
from tqdm import tqdm

from ..files import inside, is_name, write_text_whole
from ..model.decoding_formats import has_image_extension
from ..trust import printable
from .annotation_formats import AnnotationFile, AnnotationKind, Entry, read_entries
from .columns import TABLE_COLUMNS
from .media_folder import MediaFolder
from .rows import stable_id
from .spelling import composed, look_alike, other_delimiter, spellings
from .tables import AnnotationError, name_of, read_lines, read_records

logger = logging.getLogger(__name__)

PathLike: TypeAlias = str | os.PathLike[str]
# Kind -> files of one split in a folder as it is published.
SPLIT_FILES: dict[str, tuple[str, ...]] = {
    "released-retrieval": ("{split}.jsonl",),
    "released-qa": ("{split}.jsonl",),
    "msrvtt-qa": ("{split}_qa.json",),
    "msvd-qa": ("{split}_qa.json",),
    "didemo": ("{split}_data.json",),
    "webvid": ("results_2M_{split}.csv", "results_10M_{split}.csv"),
    "table": ("{split}/metadata.csv", "{split}/metadata.jsonl", "{split}/metadata.parquet"),
}
# Kind -> files that hold all splits, or the only one.
WHOLE_FILES: dict[str, tuple[str, ...]] = {
    "msrvtt": ("MSRVTT_data.json",),
    "msrvtt-1ka": ("MSRVTT_JSFUSION_test.csv",),
    "msvd": ("AllVideoDescriptions.txt",),
    "table": ("metadata.csv", "metadata.jsonl", "metadata.parquet"),
}
# Kinds in which annotators wrote, or a program generated, the same words for a clip more than once.
REPEATS = ("released-retrieval", "released-qa", "msrvtt", "msrvtt-qa", "msvd", "msvd-qa")
_BATCH, _BATCH_CHARACTERS = 10_000, 1 << 25  # rows written to Arrow at a time; fewer if their texts are long
_LOOKED_AT = 100_000  # files of a folder, for a name that looks like a missing one
_WORDS = ("text", "question", "answer")


@dataclass(frozen=True)
class _Plan:
    """The arguments of `load_annotations`, resolved. It is pickled to the workers of a stream."""

    file: AnnotationFile
    features: Features
    media: Literal["video", "image"]  # the column
    folder: MediaFolder | None
    only: frozenset[str] | None
    without: frozenset[str]
    names: Mapping[str, str] | None
    missing: Path | None
    on_missing: str
    on_empty: str
    allow_outside: bool


@dataclass
class _Tally:
    """Counts of what happened to the records."""

    stops: bool = False  # whether the first missing clip is an error at once
    records: int = 0
    empty: int = 0
    unselected: int = 0
    rows: int = 0
    rows_missing: int = 0
    missing: dict[str, str] = field(default_factory=dict)  # id -> place of its first entry
    near: str = ""  # about the first missing clip, see `_near`
    met: set[str] = field(default_factory=set)  # ids of `only` and `without` that occurred


def load_annotations(
    kind: AnnotationKind,
    path: PathLike,
    *,
    streaming: bool = False,
    videos: PathLike | None = None,
    split: str | None = None,
    only: PathLike | Sequence[str] | None = None,
    without: PathLike | Sequence[str] | None = None,
    video_names: PathLike | Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    recursive: bool = True,
    missing: PathLike | None = None,
    on_missing: Literal["drop", "error"] = "drop",
    on_duplicate: Literal["error", "drop", "keep"] | None = None,
    on_empty: Literal["error", "drop"] = "error",
    encoding: str = "utf-8",
    cache_dir: PathLike | None = None,
    allow_outside: bool = False,
) -> Dataset | IterableDataset:
    """Load annotations as rows.

    Rows are `{"video", "text", "video_id"}`, or for questions `{"video", "question", "answer", "answer_type",
    "video_id"}`; images have `image` instead of `video`. `msrvtt` adds `category` (0 to 19) and `duration` (seconds),
    if the file has them.

    | kind | file | split |
    | --- | --- | --- |
    | `released-retrieval` | JSON lines `caption`, `clip_name`, as released with ALPRO | F: `<split>.jsonl` |
    | `released-qa` | JSON lines `question`, `answer`, `video_id`, `answer_type` | F: `<split>.jsonl` |
    | `msrvtt` | JSON object of lists `videos` and `sentences` | `train`, `validate`, `test`; `7k` (train and \
validate); `9k` (all but the videos of the 1k-A file) |
    | `msrvtt-1ka` | CSV `key,vid_key,video_id,sentence`: the 1k-A test | |
    | `msrvtt-qa`, `msvd-qa` | JSON list `id`, `video_id` (number), `question`, `answer` | F: `<split>_qa.json` |
    | `msvd` | lines `<clip> <caption>`; or CSV `VideoID,Start,End,...,Language,Description`, its English rows | \
`<split>_list.txt` next to the file |
    | `didemo` | JSON list, `video`, `description` of moments: those of a video are joined with spaces, in the order \
of the file | F: `<split>_data.json` |
    | `webvid` | CSV `videoid,contentUrl,duration,page_dir,name`; or any table of `video_id`, `text` | \
F: `results_2M_<split>.csv` |
    | `cc3m` | JSON list `image`, `caption`; or TSV of caption and URL without a header | |
    | `table` | your own CSV, TSV, JSON, JSON lines or Parquet | F: `<split>/metadata.csv`; or a column `split` |

    F: the file is one split; to choose by `split`, give the folder. `path` may also be the folder that contains the
    file under its published name: `MSRVTT_data.json`, `MSRVTT_JSFUSION_test.csv`, `AllVideoDescriptions.txt`,
    `metadata.csv` (or `.jsonl`, `.parquet`; laid out as for `videofolder` of the `datasets` library).

    Clips are found in `videos` by id, see `MediaFolder`. In MSR-VTT QA number 7 is `video7`, in MSVD-QA `vid7`. The
    image of row n (from 0) of the TSV of CC3M is `<n>_<crc32 of the URL>`, or n in nine digits: the names that
    downloaders give it. Rows whose clip is missing are dropped with a warning. If all clips are missing, it is an
    error.

    Args:
        streaming: Whether to read the file again in each pass instead of writing it to Arrow once. Repeated rows are
            not detected in a stream.
        videos: Folder of the clips or images. None: nothing is looked up and `video` is the id, except in a `table`,
            which holds paths relative to its own folder.
        split: See the table above; None for everything in the file.
        only, without: Ids of the clips to take or to leave out: a sequence, a text file with one a line, or a CSV with
            a column `video_id`. The 7k and 9k lists of MSR-VTT (`MSRVTT_train.9k.csv`) fit `only`. For split `9k`,
            `without` is the 1k-A file, by default the one next to `path`.
        video_names: Names of clips that differ from their ids: a mapping from id to name, or a text file with
            `<name> <id>` on each line, such as the `youtube_mapping.txt` of MSVD-QA.
        columns: For `table`, from a field of the row to its column in the file: `{"text": "description"}`. Recognised
            without it: `file_name`, `clip_name` or `video_id` for `video`, `caption` or `sentence` for `text`.
        recursive: Whether to look for clips in subfolders, too.
        missing: File for the ids of missing clips, one a line; it is empty if none is missing. A stream writes it at
            the end of each pass.
        on_missing: `drop` or `error`. With `error`, a stream stops at the first missing clip.
        on_duplicate: How to treat rows with the same clip and words: `error`, `drop` or `keep`. None: `keep` for
            MSR-VTT, MSVD, questions and released files, in which annotators or programs repeat each other; `error`
            for all others.
        on_empty: How to treat records without words: `error`, or `drop` with a warning. Some copies of the MSVD CSV
            have such records.
        encoding: Encoding of text, CSV and JSON files.
        cache_dir: Folder of the Arrow file; None: a temporary folder that is removed when Python exits.
        allow_outside: Whether a clip may lie outside of its folder (`videos`, or the folder of a `table`), by "..", an
            absolute path or a link. If not, such a path in a table is an error, and such a link in `videos` is skipped
            with a warning.

    Returns:
        A `Dataset` on a memory-mapped Arrow file; with `streaming`, an `IterableDataset` of one shard.

    Raises:
        AnnotationError: A record cannot be used (the message names file, line and field), or no row remains.
        FileNotFoundError, NotADirectoryError, OSError: A file or folder is missing, or cannot be read or written.
        ValueError: An argument does not fit the kind.

    Example:
        >>> test = load_annotations("msrvtt-1ka", "MSRVTT_JSFUSION_test.csv", videos="MSRVTT/videos")
        >>> test[0]["text"], test[0]["video_id"]
        ('a person is connecting something to system', 'video9770')
    """
    _check_options(kind, streaming, columns, on_missing, on_duplicate, on_empty)
    file, split = _resolve(kind, Path(path), split)
    if kind == "msvd" and split is not None:
        if only is not None:
            raise ValueError(f"split={split!r} of msvd is the list {split}_list.txt. Pass either split or only.")
        only, split = file.with_name(f"{split}_list.txt"), None
    if kind == "msrvtt" and split == "9k" and without is None:
        without = file.with_name(WHOLE_FILES["msrvtt-1ka"][0])
        if not without.exists():
            raise FileNotFoundError(
                f"split='9k' is all but the videos of the 1k-A test, and there is no {without}. Pass without=FILE."
            )
    media, features, where = _layout(kind, file, encoding, columns or {})
    plan = _Plan(
        file=AnnotationFile(kind, file, encoding, split, where),
        features=features,
        media=media,
        folder=None if videos is None else MediaFolder(videos, media, recursive, allow_outside),
        only=None if only is None else frozenset(map(composed, _read_ids(only))),
        without=frozenset(() if without is None else map(composed, _read_ids(without))),
        names=_read_names(video_names),
        missing=None if missing is None else Path(missing),
        on_missing=on_missing,
        on_empty=on_empty,
        allow_outside=allow_outside,
    )
    if streaming:
        return IterableDataset.from_generator(_stream, features=features, gen_kwargs={"plan": plan})
    return _build(plan, on_duplicate or ("keep" if kind in REPEATS else "error"), cache_dir)


def _check_options(
    kind: str,
    streaming: bool,
    columns: Mapping[str, str] | None,
    on_missing: str,
    on_duplicate: str | None,
    on_empty: str,
) -> None:
    for name, value, known in (
        ("kind", kind, get_args(AnnotationKind)),
        ("on_missing", on_missing, ("drop", "error")),
        ("on_duplicate", on_duplicate, ("error", "drop", "keep", None)),
        ("on_empty", on_empty, ("error", "drop")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown. Use one of {', '.join(map(str, known))}.")
    if streaming and on_duplicate in ("error", "drop"):
        raise ValueError(
            f"on_duplicate={on_duplicate!r} needs all rows, which a stream does not know. Load without streaming=True."
        )
    if columns and kind != "table":
        raise ValueError(f"columns are for the kind 'table'; {kind!r} has its own columns. Received {dict(columns)}.")
    if unknown := [name for name in columns or {} if name not in TABLE_COLUMNS]:
        raise ValueError(f"columns names {unknown}, which rows do not have; they have {', '.join(TABLE_COLUMNS)}.")


def _resolve(kind: str, path: Path, split: str | None) -> tuple[Path, str | None]:
    """The file to read, and the split that remains to be picked from it."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {str(path)!r} of annotations.")
        if split is not None and kind != "table" and kind not in ("msrvtt", "msvd"):
            hint = (
                f"give the folder that has {SPLIT_FILES[kind][0].format(split=split)}" if kind in SPLIT_FILES else ""
            )
            raise ValueError(
                f"split={split!r}: a file of the kind {kind!r} is one split. Name its file without split"
                f"{hint and ', or ' + hint}."
            )
        return path, split
    tried = [path / name.format(split=split) for name in SPLIT_FILES.get(kind, ()) if split is not None]
    in_split = [file for file in tried if file.exists()]
    whole = [path / name for name in WHOLE_FILES.get(kind, ())]
    found = in_split or [file for file in whole if file.exists()]
    if len(found) == 1:
        return found[0], None if in_split else split
    if found:
        raise AnnotationError(f"{path} has several files of annotations: {', '.join(map(str, found))}. Name one.")
    hint = " Choose a split, or name the file." if kind in SPLIT_FILES and split is None else " Name the file."
    names = ", ".join(str(file.relative_to(path)) for file in tried + whole) or "none with a published name"
    raise FileNotFoundError(f"The folder {path} has no annotations of the kind {kind!r}: looked for {names}.{hint}")


def _layout(
    kind: str, path: Path, encoding: str, columns: Mapping[str, str]
) -> tuple[Literal["video", "image"], Features, dict[str, str]]:
    """The column of the clip or image, the types of all columns, and for `table` their columns in the file."""
    media: Literal["video", "image"] = "image" if kind == "cc3m" else "video"
    asks = kind.endswith("-qa")
    where: dict[str, str] = {}
    if kind == "table":
        place, record = next(read_records(path, encoding), (str(path), {}))
        if not record:
            raise AnnotationError(f"{path} has no records.")
        for name, column in columns.items():
            if column not in record:
                hint = other_delimiter(record) or look_alike(column, record)
                raise AnnotationError(
                    f"{place}: there is no column {column!r} for {name!r}; there are {', '.join(record)}.{hint}"
                )
        for name, known in TABLE_COLUMNS.items():
            if here := columns.get(name) or next((column for column in known if column in record), None):
                where[name] = here
        if "video" in where and "image" in where:
            raise AnnotationError(
                f"{place}: both {where['video']!r} and {where['image']!r} may be the file of a row. Rename one."
            )
        if "video" not in where and "image" not in where and "video_id" in where:
            where["video"] = where["video_id"]
        asks = "question" in where
        needed = ("image" if "image" in where else "video", *(("question", "answer") if asks else ("text",)))
        for name in needed:
            if name not in where:
                alike = next(filter(None, (look_alike(known, record) for known in TABLE_COLUMNS[name])), "")
                hint = other_delimiter(record) or f"{alike} Say which it is: columns={{{name!r}: ...}}."
                raise AnnotationError(
                    f"{place}: there is no column {name!r}, nor one known for it ({', '.join(TABLE_COLUMNS[name])}); "
                    f"there are {', '.join(record)}.{hint}"
                )
        media = "image" if "image" in where else "video"
        # `metadata.csv` of an image folder also names its files in the column file_name
        if has_image_extension(str(record[where[media]])):
            media, where["image"] = "image", where[media]
    names = [media, *(("question", "answer", "answer_type") if asks else ("text",)), "video_id"]
    features = Features({name: Value("string") for name in names})
    if kind == "msrvtt":
        features["category"], features["duration"] = Value("int64"), Value("float64")
    return media, features, where


# -------------------------------------------------------------------------------------------------- from files to rows


def _build(plan: _Plan, on_duplicate: str, cache_dir: PathLike | None) -> Dataset:
    """Write all rows to an Arrow file and open that."""
    tally, digests, schema = _Tally(), array("q"), plan.features.arrow_schema
    folder = get_temporary_cache_files_directory() if cache_dir is None else os.fspath(cache_dir)
    os.makedirs(folder, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{plan.file.kind}-", suffix=".arrow", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            batch: list[dict[str, Any]] = []
            title = f"Reading {printable(plan.file.path.name)}"
            characters = 0
            for _, row in tqdm(_rows(plan, tally), desc=title, unit=" rows", delay=2):
                digests.append(_digest(row))
                batch.append(row)
                characters += sum(len(value) for value in row.values() if isinstance(value, str))
                if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                    batch.clear()
                    characters = 0
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        _finish(plan, tally)
        repeated = _repeated(np.frombuffer(digests, np.int64))
        if len(repeated) and on_duplicate == "error":
            raise _duplicate(plan, digests, repeated)
        dataset = Dataset.from_file(name)
    except BaseException:  # including KeyboardInterrupt: an incomplete file must not stay in the cache
        os.unlink(name)
        raise
    if len(repeated) and on_duplicate == "drop":
        logger.warning(
            "%s: %d rows that repeat the clip and words of another are dropped.", plan.file.path, len(repeated)
        )
        kept = np.ones(len(digests), bool)
        kept[repeated] = False
        return dataset.select(np.flatnonzero(kept))
    if len(repeated):
        logger.info(
            "%s: %d of %d rows repeat the clip and words of another.", plan.file.path, len(repeated), tally.rows
        )
    return dataset


def _stream(plan: _Plan) -> Iterator[dict[str, Any]]:
    tally = _Tally(stops=plan.on_missing == "error")
    for _, row in _rows(plan, tally):
        yield row
    _finish(plan, tally)


def _rows(plan: _Plan, tally: _Tally) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and row of each entry that is selected and whose clip exists."""
    entries = _with_words(read_entries(plan.file), plan, tally)
    if plan.file.kind == "didemo":
        entries = _paragraphs(entries)
    named = plan.without | (plan.only or frozenset())
    for entry in entries:
        identity = composed(entry.identity)
        if identity in named:
            tally.met.add(identity)
        if identity in plan.without or (plan.only is not None and identity not in plan.only):
            tally.unselected += 1
            continue
        video = _locate(entry, plan)
        if video is None:
            if tally.stops:
                raise AnnotationError(f"{entry.place}: {entry.names[0]!r} is missing. on_missing='drop' drops it.")
            if not tally.missing:
                tally.near = _near(entry.names[0], plan)
            tally.rows_missing += 1
            tally.missing.setdefault(entry.identity, entry.place)
            continue
        tally.rows += 1
        yield entry.place, {plan.media: video, "video_id": entry.identity, **entry.fields}


def _with_words(entries: Iterable[Entry], plan: _Plan, tally: _Tally) -> Iterator[Entry]:
    for entry in entries:
        tally.records += 1
        empty = [name for name in _WORDS if entry.fields.get(name) == ""]
        if not empty:
            yield entry
            continue
        if plan.on_empty == "error":
            raise AnnotationError(
                f"{entry.place}: the {empty[0]} of {entry.identity!r} is empty. Fill it in, remove the record, or "
                "drop such records with on_empty='drop'."
            )
        tally.empty += 1


def _paragraphs(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Join the moments of each video to one text."""
    joined: dict[str, Entry] = {}
    for entry in entries:
        first = joined.setdefault(entry.identity, entry)
        if first is not entry:
            text = f"{first.fields['text']} {entry.fields['text']}"
            joined[entry.identity] = replace(first, fields={"text": text})
    yield from joined.values()


def _locate(entry: Entry, plan: _Plan) -> str | None:
    """The path of the clip; None if it is missing."""
    names = entry.names
    if plan.names is not None:
        identity = composed(entry.identity)
        if identity not in plan.names:
            raise AnnotationError(f"{entry.place}: video_names has no name for the id {entry.identity!r}.")
        names = (plan.names[identity],)
    if plan.folder is not None:
        return next(filter(None, map(plan.folder.find, names)), None)
    if plan.file.kind != "table":
        return entry.identity
    for name in spellings(names[0]):
        path = plan.file.path.parent / name
        if not is_name(path):
            raise AnnotationError(f"{entry.place}: {name!r} is not a name that a file can have.")
        if not (plan.allow_outside or inside(path, plan.file.path.parent)):
            raise AnnotationError(
                f"{entry.place}: {name!r} leads out of {plan.file.path.parent}, the folder of the file. If you "
                "trust the file, pass allow_outside=True (--allow-outside)."
            )
        if os.path.isfile(path):  # False for names that are too long, too
            return str(path)
    return None


def _near(name: str, plan: _Plan) -> str:
    """A sentence about a file that looks like the missing one, if there is one in its folder; else empty."""
    if plan.folder is not None:
        return plan.folder.look_alike(name)
    path = plan.file.path.parent / name.replace("\\", "/")
    try:
        with os.scandir(path.parent) as entries:
            return look_alike(path.name, (entry.name for entry in islice(entries, _LOOKED_AT)))
    except (OSError, ValueError):  # there is no such folder, or it cannot have this name
        return ""


def _finish(plan: _Plan, tally: _Tally) -> None:
    """Report what was dropped. If that is everything, it is an error."""
    where = plan.file.path.parent if plan.folder is None else plan.folder.folder
    if plan.missing is not None:
        plan.missing.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(plan.missing, "".join(f"{identity}\n" for identity in tally.missing))
    if not tally.rows and not tally.missing:
        split = "" if plan.file.split is None else f" in the split {plan.file.split!r}"
        raise AnnotationError(
            f"{plan.file.path} has no row{split}: of {tally.records} records, {tally.empty} have no words, and "
            f"{tally.unselected} are not selected (only, without). Does the list of ids belong to these annotations?"
        )
    if tally.missing:
        first, place = next(iter(tally.missing.items()))
        listed_in = f"They are listed in {plan.missing}." if plan.missing else "missing=FILE lists them."
        if not tally.rows:
            example = f"; there are {len(plan.folder)} {plan.media}s, such as {plan.folder[0]}" if plan.folder else ""
            raise AnnotationError(
                f"All {len(tally.missing)} {plan.media}s of {plan.file.path} are missing in {where}, the first is "
                f"{first!r} ({place}){example}.{tally.near or ' Is this the right folder?'} {listed_in}"
            )
        problem = (
            f"{len(tally.missing)} {plan.media}s of {plan.file.path} are missing in {where}, the first is {first!r} "
            f"({place}).{tally.near} {listed_in}"
        )
        if plan.on_missing == "error":
            raise AnnotationError(f"{problem} on_missing='drop' drops their {tally.rows_missing} rows.")
        logger.warning("%s %d rows are dropped, %d remain.", problem, tally.rows_missing, tally.rows)
    if tally.empty:
        logger.warning("%s: %d records without words are dropped.", plan.file.path, tally.empty)
    if unmet := sorted((plan.without | (plan.only or frozenset())) - tally.met):
        logger.warning(
            "%s: %d of the listed ids (only, without) do not occur, the first is %r.",
            plan.file.path,
            len(unmet),
            unmet[0],
        )


def _digest(row: Mapping[str, Any]) -> int:
    """A hash that is equal for rows with the same clip and words."""
    return stable_id("\0".join((row["video_id"], *(row[name] for name in _WORDS if name in row))).encode())


def _repeated(digests: np.ndarray) -> np.ndarray:
    """Ascending positions of the rows that repeat an earlier one."""
    # Sorting 8 bytes a row takes a fraction of the memory of a set. A stable sort keeps the first of equal rows first.
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    return np.sort(order[1:][ordered[1:] == ordered[:-1]])


def _duplicate(plan: _Plan, digests: Sequence[int], repeated: np.ndarray) -> AnnotationError:
    """The error for the first repeated row. The file is read again to find its place, which was not kept."""
    second = int(repeated[0])
    first = digests.index(digests[second])
    places = [(place, row) for i, (place, row) in enumerate(_rows(plan, _Tally())) if i in (first, second)]
    row = places[1][1]
    words = next(name for name in _WORDS if name in row)
    more = f", and {len(repeated) - 1} more rows repeat others" if len(repeated) > 1 else ""
    return AnnotationError(
        f"{places[1][0]}: the {words} {row[words]!r} of {row['video_id']!r} was already at {places[0][0]}{more}. "
        "Remove it, or pass on_duplicate='drop' or 'keep'."
    )


# -------------------------------------------------------------------------------------------------------- small files


def _read_ids(source: PathLike | Sequence[str]) -> list[str]:
    """Ids from a sequence, a text file with one a line, or the column `video_id` of a CSV; at least one."""
    if not isinstance(source, str | os.PathLike):
        ids = list(source)
    elif (path := Path(source)).suffix.lower() == ".csv":
        ids = [name_of(record, "video_id", place) for place, record in read_records(path)]
    else:
        ids = [line for _, line in read_lines(path)]
    if not ids:
        raise AnnotationError(f"{source} lists no ids of clips.")
    return ids


def _read_names(source: PathLike | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """A mapping from id to the name of a file; a text file has `<name> <id>` on each line."""
    if source is None or isinstance(source, Mapping):
        return None if source is None else {composed(identity): name for identity, name in source.items()}
    names: dict[str, str] = {}
    for place, line in read_lines(Path(source)):
        pair = line.split()
        if len(pair) != 2:
            raise AnnotationError(f"{place}: expected '<name> <id>', two words; received {line!r:.80}.")
        identity = composed(pair[1])
        if identity in names:
            raise AnnotationError(f"{place}: the id {identity!r} occurs twice.")
        names[identity] = pair[0]
    return names


__all__ = ["load_annotations"]
