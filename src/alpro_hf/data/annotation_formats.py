"""What annotation files say, record by record: one reader for each layout in which data sets are published."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from .media_folder import media_id
from .records import AnnotationError, Record, name_of, read_lines, read_records, text_of, value_of

Kind = Literal[
    "released-retrieval",
    "released-qa",
    "msrvtt",
    "msrvtt-1ka",
    "msrvtt-qa",
    "msvd",
    "msvd-qa",
    "didemo",
    "webvid",
    "cc3m",
    "table",
]
QUESTION_WORDS = ("what", "who", "how", "where", "when")


@dataclass(frozen=True)
class Source:
    """A file of annotations.

    Args:
        kind, path, encoding: As in `load_annotations`; `path` is the file.
        split: What to pick of a file that has several splits; None: everything.
        columns: For `table`, from the field of a row to the column of the file.
    """

    kind: Kind
    path: Path
    encoding: str = "utf-8"
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """What a file says about a clip or image."""

    place: str
    identity: str  # equal for all that is said about one clip
    names: tuple[str, ...]  # what its file may be called, best first
    fields: dict[str, Any]


def read_entries(source: Source) -> Iterator[Entry]:
    """What the file says, in its order; words may be empty.

    Raises:
        AnnotationError: A record lacks a field, or has in it what does not belong there.
        OSError: The file cannot be read.
    """
    match source.kind:
        case "released-retrieval":
            return _captions(source, "clip_name", "caption")
        case "released-qa":
            return _released_questions(source)
        case "msrvtt":
            return _msrvtt(source)
        case "msrvtt-1ka":
            return _msrvtt_1ka(source)
        case "msrvtt-qa":
            return _numbered_questions(source, "video")
        case "msvd-qa":
            return _numbered_questions(source, "vid")
        case "msvd":
            return _msvd_lines(source) if source.path.suffix.lower() == ".txt" else _msvd_table(source)
        case "didemo":
            return _moments(source)
        case "webvid":
            return _webvid(source)
        case "cc3m":
            return _cc3m_urls(source) if ".tsv" in source.path.suffixes else _captions(source, "image", "caption")
        case "table":
            return _table(source)


def _captions(source: Source, name: str, text: str) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        identity = name_of(record, name, place)
        yield Entry(place, identity, (identity,), {"text": text_of(record, text, place)})


def _released_questions(source: Source) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        identity = name_of(record, "video_id", place)
        yield Entry(place, identity, (identity,), _question(record, place))


def _numbered_questions(source: Source, prefix: str) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        identity = name_of(record, "video_id", place)
        if identity.isdecimal():
            identity = prefix + identity
        yield Entry(place, identity, (identity,), _question(record, place))


def _question(record: Record, place: str) -> dict[str, str | None]:
    question = text_of(record, "question", place)
    kind = text_of(record, "answer_type", place) if "answer_type" in record else ""
    return {
        "question": question,
        "answer": text_of(record, "answer", place),
        "answer_type": kind or _answer_type(question),
    }


def _answer_type(question: str) -> str | None:
    """By the first word, as both data sets define it."""
    first = question.lower().split(maxsplit=1)[:1]
    return first[0] if first and first[0] in QUESTION_WORDS else None


def _msrvtt(source: Source) -> Iterator[Entry]:
    try:
        data = json.loads(source.path.read_text(encoding=source.encoding))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{source.path}, line {error.lineno}: not JSON: {error.msg}.") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise AnnotationError(f"{source.path}, line {line}: not {source.encoding}: {error.reason}.") from error
    for name in ("videos", "sentences"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise AnnotationError(f"{source.path}: there is no list {name!r}. Is this file of another kind?")
    videos: dict[str, Record] = {}
    for i, video in enumerate(data["videos"]):
        place = f"{source.path}, videos[{i}]"
        identity = name_of(_checked(video, place), "video_id", place)
        if identity in videos:
            raise AnnotationError(f"{place}, field 'video_id': {identity!r} is there twice.")
        if source.split is not None:
            name_of(video, "split", place)
        videos[identity] = video
    wanted = {"7k": ("train", "validate"), "9k": None, None: None}.get(source.split, (source.split,))
    if wanted is not None:
        known = {str(video["split"]) for video in videos.values()}
        if lacking := sorted({str(name) for name in wanted} - known):
            raise AnnotationError(
                f"{source.path} has no videos of the split {lacking[0]!r}; it has {', '.join(sorted(known))}. "
                "split is one of these, or '7k' or '9k'; the 1k-A test is a kind of its own, 'msrvtt-1ka'."
            )
    for i, sentence in enumerate(data["sentences"]):
        place = f"{source.path}, sentences[{i}]"
        identity = name_of(_checked(sentence, place), "video_id", place)
        if identity not in videos:
            raise AnnotationError(f"{place}, field 'video_id': {identity!r} is not among the videos of the file.")
        if wanted is not None and videos[identity]["split"] not in wanted:
            continue
        category = videos[identity].get("category")
        if category is not None and not isinstance(category, int):
            raise AnnotationError(f"{place}: the category of {identity!r} is a number; received {category!r}.")
        text = text_of(sentence, "caption", place)
        facts = {"category": category, "duration": _duration(videos[identity])}
        yield Entry(place, identity, (identity,), {"text": text, **facts})


def _duration(video: Record) -> float | None:
    """Seconds between the times that cut a clip of MSR-VTT out of its film, where they are told."""
    begin, end = video.get("start time"), video.get("end time")
    return round(float(end - begin), 3) if isinstance(begin, int | float) and isinstance(end, int | float) else None


def _checked(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: expected an object with named fields; received {value!r:.60}.")
    return value


def _msrvtt_1ka(source: Source) -> Iterator[Entry]:
    places: dict[str, str] = {}
    for place, record in read_records(source.path, source.encoding):
        identity = name_of(record, "video_id", place)
        if identity in places:
            raise AnnotationError(
                f"{place}, field 'video_id': {identity!r} was already at {places[identity]}; the test has one "
                "sentence a video."
            )
        places[identity] = place
        yield Entry(place, identity, (identity,), {"text": text_of(record, "sentence", place)})


def _msvd_lines(source: Source) -> Iterator[Entry]:
    for place, line in read_lines(source.path, source.encoding):
        if line.startswith("#"):  # the notice on top
            continue
        identity, _, text = line.partition(" ")
        yield Entry(place, identity, (identity,), {"text": text.strip()})


def _msvd_table(source: Source) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        if text_of(record, "Language", place) != "English":
            continue
        identity = "_".join(name_of(record, name, place) for name in ("VideoID", "Start", "End"))
        yield Entry(place, identity, (identity,), {"text": text_of(record, "Description", place)})


def _moments(source: Source) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        name = name_of(record, "video", place)
        yield Entry(place, media_id(name), (name,), {"text": text_of(record, "description", place)})


def _webvid(source: Source) -> Iterator[Entry]:
    for place, record in read_records(source.path, source.encoding):
        if "videoid" in record:
            identity = name_of(record, "videoid", place)
            # the folder first: in copies that kept the owners' layout it must be the right one
            names = (f"{text_of(record, 'page_dir', place)}/{identity}.mp4", identity)
            yield Entry(place, identity, names, {"text": text_of(record, "name", place)})
        else:
            identity = name_of(record, "video_id", place)
            yield Entry(place, identity, (identity,), {"text": text_of(record, "text", place)})


def _cc3m_urls(source: Source) -> Iterator[Entry]:
    records = read_records(source.path, source.encoding, columns=("caption", "url"))
    for number, (place, record) in enumerate(records):
        url = name_of(record, "url", place)
        names = (f"{number}_{crc32(url.encode())}", f"{number:09d}")
        yield Entry(place, url, names, {"text": text_of(record, "caption", place)})


def _table(source: Source) -> Iterator[Entry]:
    where = source.columns
    media = "image" if "image" in where else "video"
    for place, record in read_records(source.path, source.encoding):
        if source.split is not None and text_of(record, "split", place) != source.split:
            continue
        name = name_of(record, where[media], place)
        identity = name_of(record, where["video_id"], place) if "video_id" in where else name
        if "question" in where:
            fields = _question({to: value_of(record, at, place) for to, at in where.items()}, place)
        else:
            fields = {"text": text_of(record, where["text"], place)}
        yield Entry(place, identity, (name,), fields)


__all__ = ["QUESTION_WORDS", "Entry", "Kind", "Source", "read_entries"]
