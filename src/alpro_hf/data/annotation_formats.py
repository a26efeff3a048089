"""The layouts in which data sets publish their annotations: one reader for each, record by record."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from .media_folder import media_id
from .tables import AnnotationError, Record, name_of, read_lines, read_records, read_whole, text_of, value_of

AnnotationKind = Literal[
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
_LONGEST_FILM = 1e9  # seconds, more than 30 years
# The types of the questions of MSRVTT-QA and MSVD-QA: the word that a question starts with.
QUESTION_WORDS = ("what", "who", "how", "where", "when")


@dataclass(frozen=True)
class AnnotationFile:
    """A file of annotations.

    Args:
        kind, path, encoding: As in `load_annotations`; `path` is a file.
        split: The split to read of a file that has several; None for all.
        columns: For `table`, from the field of a row to the column of the file.
    """

    kind: AnnotationKind
    path: Path
    encoding: str = "utf-8"
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An annotation of a clip or image.

    Args:
        place: Its place in the file, for messages.
        identity: The id of the clip, equal for all entries about it.
        names: Possible names of its file, best first.
        fields: The other fields of its row.
    """

    place: str
    identity: str
    names: tuple[str, ...]
    fields: dict[str, Any]


def read_entries(file: AnnotationFile) -> Iterator[Entry]:
    """Read the entries of a file in its order. Their texts may be empty.

    Raises:
        AnnotationError: A record lacks a field, or has an unexpected value in it.
        OSError: The file cannot be read.
    """
    match file.kind:
        case "released-retrieval":
            return _captions(file, "clip_name", "caption")
        case "released-qa":
            return _released_questions(file)
        case "msrvtt":
            return _msrvtt(file)
        case "msrvtt-1ka":
            return _msrvtt_1ka(file)
        case "msrvtt-qa":
            return _numbered_questions(file, "video")
        case "msvd-qa":
            return _numbered_questions(file, "vid")
        case "msvd":
            return _msvd_lines(file) if file.path.suffix.lower() == ".txt" else _msvd_table(file)
        case "didemo":
            return _moments(file)
        case "webvid":
            return _webvid(file)
        case "cc3m":
            return _cc3m_urls(file) if ".tsv" in file.path.suffixes else _captions(file, "image", "caption")
        case "table":
            return _table(file)


def _captions(file: AnnotationFile, name: str, text: str) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        identity = name_of(record, name, place)
        yield Entry(place, identity, (identity,), {"text": text_of(record, text, place)})


def _released_questions(file: AnnotationFile) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        identity = name_of(record, "video_id", place)
        yield Entry(place, identity, (identity,), _question(record, place))


def _numbered_questions(file: AnnotationFile, prefix: str) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        identity = name_of(record, "video_id", place)
        # these files number the clips, whose names are video7 (MSR-VTT) or vid7 (MSVD)
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
    """The first word, as MSRVTT-QA and MSVD-QA define the type."""
    first = question.lower().split(maxsplit=1)[:1]
    return first[0] if first and first[0] in QUESTION_WORDS else None


def _msrvtt(file: AnnotationFile) -> Iterator[Entry]:
    data = read_whole(file.path, file.encoding)
    for name in ("videos", "sentences"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise AnnotationError(f"{file.path}: there is no list {name!r}. Is this file of another kind?")
    videos: dict[str, Record] = {}
    for i, video in enumerate(data["videos"]):
        place = f"{file.path}, videos[{i}]"
        identity = name_of(_checked(video, place), "video_id", place)
        if identity in videos:
            raise AnnotationError(f"{place}, field 'video_id': {identity!r} occurs twice.")
        if file.split is not None:
            name_of(video, "split", place)
        videos[identity] = video
    # The 1k-A protocol trains on all videos outside its test (9k); an older one on train and validate alone (7k).
    wanted = {"7k": ("train", "validate"), "9k": None, None: None}.get(file.split, (file.split,))
    if wanted is not None:
        known = {str(video["split"]) for video in videos.values()}
        if lacking := sorted({str(name) for name in wanted} - known):
            raise AnnotationError(
                f"{file.path} has no videos of the split {lacking[0]!r}; it has {', '.join(sorted(known))}. "
                "split is one of these, or '7k' or '9k'; the 1k-A test has its own kind, 'msrvtt-1ka'."
            )
    for i, sentence in enumerate(data["sentences"]):
        place = f"{file.path}, sentences[{i}]"
        identity = name_of(_checked(sentence, place), "video_id", place)
        if identity not in videos:
            raise AnnotationError(f"{place}, field 'video_id': {identity!r} is not among the videos of the file.")
        if wanted is not None and videos[identity]["split"] not in wanted:
            continue
        text = text_of(sentence, "caption", place)
        facts = {"category": _category(videos[identity], place), "duration": _duration(videos[identity], place)}
        yield Entry(place, identity, (identity,), {"text": text, **facts})


def _category(video: Record, place: str) -> int | None:
    category = video.get("category")
    # a bool is an int for `isinstance`; the column has 64 bits
    if category is not None and not (type(category) is int and -(1 << 63) <= category < 1 << 63):
        raise AnnotationError(
            f"{place}: the category of {video['video_id']!r} is a number; received {category!r:.60}."
        )
    return category


def _duration(video: Record, place: str) -> float | None:
    """Seconds between the start and end of a clip of MSR-VTT in its film, if the file has them."""
    begin, end = video.get("start time"), video.get("end time")
    if not isinstance(begin, int | float) or not isinstance(end, int | float):
        return None
    for name, seconds in (("start time", begin), ("end time", end)):
        if not (math.isfinite(seconds) and abs(seconds) < _LONGEST_FILM):
            raise AnnotationError(
                f"{place}, field {name!r}: a time in seconds is expected for {video['video_id']!r}; received "
                f"{seconds!r:.60}."
            )
    return round(float(end - begin), 3)


def _checked(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise AnnotationError(f"{place}: expected an object with named fields; received {value!r:.60}.")
    return value


def _msrvtt_1ka(file: AnnotationFile) -> Iterator[Entry]:
    places: dict[str, str] = {}
    for place, record in read_records(file.path, file.encoding):
        identity = name_of(record, "video_id", place)
        if identity in places:
            raise AnnotationError(
                f"{place}, field 'video_id': {identity!r} was already at {places[identity]}; the test has one "
                "sentence a video."
            )
        places[identity] = place
        yield Entry(place, identity, (identity,), {"text": text_of(record, "sentence", place)})


def _msvd_lines(file: AnnotationFile) -> Iterator[Entry]:
    for place, line in read_lines(file.path, file.encoding):
        if line.startswith("#"):  # the notice at the top
            continue
        identity, _, text = line.partition(" ")
        yield Entry(place, identity, (identity,), {"text": text.strip()})


def _msvd_table(file: AnnotationFile) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        if text_of(record, "Language", place) != "English":
            continue
        # a clip of MSVD is a part of a video on YouTube, named by the id of that and two times in seconds
        identity = "_".join(name_of(record, name, place) for name in ("VideoID", "Start", "End"))
        yield Entry(place, identity, (identity,), {"text": text_of(record, "Description", place)})


def _moments(file: AnnotationFile) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        # DiDeMo keeps the extension of the upload, which the file of the clip need not have
        name = name_of(record, "video", place)
        yield Entry(place, media_id(name), (name,), {"text": text_of(record, "description", place)})


def _webvid(file: AnnotationFile) -> Iterator[Entry]:
    for place, record in read_records(file.path, file.encoding):
        if "videoid" in record:
            identity = name_of(record, "videoid", place)
            # with the folder first: in copies with the layout of the owners, an id alone may match another folder
            names = (f"{text_of(record, 'page_dir', place)}/{identity}.mp4", identity)
            yield Entry(place, identity, names, {"text": text_of(record, "name", place)})
        else:
            identity = name_of(record, "video_id", place)
            yield Entry(place, identity, (identity,), {"text": text_of(record, "text", place)})


def _cc3m_urls(file: AnnotationFile) -> Iterator[Entry]:
    # Downloaders of CC3M name an image by its row and the CRC-32 of its URL, or by its row in nine digits.
    records = read_records(file.path, file.encoding, columns=("caption", "url"))
    for number, (place, record) in enumerate(records):
        url = name_of(record, "url", place)
        names = (f"{number}_{crc32(url.encode())}", f"{number:09d}")
        yield Entry(place, url, names, {"text": text_of(record, "caption", place)})


def _table(file: AnnotationFile) -> Iterator[Entry]:
    where = file.columns
    media = "image" if "image" in where else "video"
    for place, record in read_records(file.path, file.encoding):
        if file.split is not None and text_of(record, "split", place) != file.split:
            continue
        name = name_of(record, where[media], place)
        identity = name_of(record, where["video_id"], place) if "video_id" in where else name
        if "question" in where:
            fields = _question({to: value_of(record, at, place) for to, at in where.items()}, place)
        else:
            fields = {"text": text_of(record, where["text"], place)}
        yield Entry(place, identity, (name,), fields)


__all__ = ["QUESTION_WORDS", "AnnotationFile", "AnnotationKind", "Entry", "read_entries"]
