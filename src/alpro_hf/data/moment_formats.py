"""The layouts in which data sets of moments publish their annotations: a text, and when its video shows it.

A moment is a window of seconds from the start of its video. `windows` of a row are all that the annotators gave.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .tables import AnnotationError, Record, name_of, read_lines, read_records, read_whole, text_of, value_of

MomentKind = Literal["qvhighlights", "charades-sta", "didemo-moments", "activitynet-captions"]
DIDEMO_SECONDS = 5.0  # of a segment, in which the annotators of DiDeMo count
_BEYOND = 1.0  # seconds by which a moment may outlast its video, because durations are rounded and measured


class Moment(NamedTuple):
    """An annotation of a moment.

    Args:
        place: Its place in the file, for messages.
        video: The name of the video.
        text: What happens; may be empty.
        windows: Start and end in seconds, at least one.
    """

    place: str
    video: str
    text: str
    windows: list[list[float]]


def read_moments(kind: MomentKind, path: Path, encoding: str = "utf-8") -> Iterator[Moment]:
    """Read the moments of a file in its order.

    | kind | file |
    | --- | --- |
    | `qvhighlights` | JSON lines `query`, `vid`, `duration`, `relevant_windows` (seconds) |
    | `charades-sta` | lines `VID start end##sentence` (seconds) |
    | `didemo-moments` | JSON list `video`, `description`, `times`: first and last segment of 5 s, of each annotator |
    | `activitynet-captions` | JSON object `{id: {duration, timestamps, sentences}}` (seconds) |

    Raises:
        AnnotationError: A record lacks a field, or has an unexpected value or a wrong time in it.
        OSError: The file cannot be read.
    """
    match kind:
        case "qvhighlights":
            return _qvhighlights(path, encoding)
        case "charades-sta":
            return _charades_sta(path, encoding)
        case "didemo-moments":
            return _didemo(path, encoding)
        case "activitynet-captions":
            return _activitynet_captions(path, encoding)


def _qvhighlights(path: Path, encoding: str) -> Iterator[Moment]:
    for place, record in read_records(path, encoding):
        video = name_of(record, "vid", place)
        if "relevant_windows" not in record and "query" in record:
            raise AnnotationError(
                f"{place}: there is no field 'relevant_windows': the test split of QVHighlights is published without "
                "its moments. Take the file of another split, such as highlight_val_release.jsonl."
            )
        length = _duration(value_of(record, "duration", place), place, "duration")
        windows = checked_windows(record["relevant_windows"], f"{place}, field 'relevant_windows'", length)
        yield Moment(place, video, text_of(record, "query", place), windows)


def _charades_sta(path: Path, encoding: str) -> Iterator[Moment]:
    for place, line in read_lines(path, encoding):
        head, separator, sentence = line.partition("##")
        words = head.split()
        if not separator or len(words) != 3:
            raise AnnotationError(f"{place}: expected 'VID start end##sentence'; received {line!r:.80}.")
        start, end = (_number(word, place, name) for name, word in zip(("start", "end"), words[1:], strict=True))
        yield Moment(
            place, words[0], sentence.strip(), [checked_window(start, end, f"{place}, fields 'start' and 'end'")]
        )


def _didemo(path: Path, encoding: str) -> Iterator[Moment]:
    for place, record in read_records(path, encoding):
        video = name_of(record, "video", place)
        where = f"{place}, field 'times'"
        count = record.get("num_segments")
        if count is not None and (type(count) is not int or count < 1):
            raise AnnotationError(f"{place}, field 'num_segments': expected a number of segments; received {count!r}.")
        windows = []
        for first, last in _pairs(value_of(record, "times", place), where):
            if type(first) is not int or type(last) is not int or not 0 <= first <= last:
                raise AnnotationError(
                    f"{where}: a moment goes from its first to its last segment, counted from 0; received "
                    f"{[first, last]!r:.80}."
                )
            if last > 10**6 or (count is not None and last >= count):
                raise AnnotationError(
                    f"{where}: the moment {[first, last]!r:.80} ends beyond the "
                    f"{'video' if count is None else f'{count} segments of the video'}."
                )
            windows.append([DIDEMO_SECONDS * first, DIDEMO_SECONDS * (last + 1)])
        yield Moment(place, video, text_of(record, "description", place), windows)


def _activitynet_captions(path: Path, encoding: str) -> Iterator[Moment]:
    data = read_whole(path, encoding)
    if not isinstance(data, dict):
        raise AnnotationError(
            f"{path}: expected one JSON object from the id of a video to its duration, timestamps and sentences. Is "
            "this file of another kind?"
        )
    for video, record in data.items():
        place = f"{path}, video {video!r:.80}"
        if not video.strip():
            raise AnnotationError(f"{path}: a video has an empty id.")
        if not isinstance(record, dict):
            raise AnnotationError(f"{place}: expected an object with named fields; received {record!r:.60}.")
        length = _duration(value_of(record, "duration", place), place, "duration")
        times = value_of(record, "timestamps", place)
        sentences = value_of(record, "sentences", place)
        if not isinstance(sentences, list) or not isinstance(times, list) or len(sentences) != len(times):
            raise AnnotationError(
                f"{place}, fields 'timestamps' and 'sentences': expected two lists of one length; received "
                f"{times!r:.60} and {sentences!r:.60}."
            )
        for number, (time, sentence) in enumerate(zip(times, sentences, strict=True)):
            windows = checked_windows([time], f"{place}, field 'timestamps[{number}]'", length)
            name = f"sentences[{number}]"
            yield Moment(place, video, text_of({name: sentence}, name, place), windows)


def table_windows(record: Record, where: Mapping[str, str], place: str) -> list[list[float]]:
    """The windows of a row of a user's own table: its `windows`, or the one from its `start` to its `end`.

    Args:
        where: From `windows`, or `start` and `end`, to the columns of the table.

    Raises:
        AnnotationError: A column is missing or has a wrong time in it.
    """
    if "windows" in where:
        return checked_windows(value_of(record, where["windows"], place), f"{place}, field {where['windows']!r}")
    names = where["start"], where["end"]
    start, end = (_number(value_of(record, name, place), place, name) for name in names)
    return [checked_window(start, end, f"{place}, fields {names[0]!r} and {names[1]!r}")]


def has_times(record: Record, where: Mapping[str, str]) -> bool:
    """Whether a row of a table has a moment in seconds: in `windows`, or in `start` and `end`.

    Tables of clips that were cut out of films may have a start and an end of another form, such as "00:01:02".
    """
    if "windows" in where:
        return isinstance(record[where["windows"]], list)
    if "start" not in where or "end" not in where:
        return False
    try:
        for name in ("start", "end"):
            _number(record[where[name]], "", name)
    except AnnotationError:
        return False
    return True


def checked_windows(value: Any, where: str, duration: float | None = None) -> list[list[float]]:
    """Windows of seconds from the value of a field.

    Args:
        value: A list of pairs of numbers.
        where: File, line and field, for messages.
        duration: Seconds of the video, if they are known.

    Raises:
        AnnotationError: The value is something else, or there is no pair; or see `checked_window`.
    """
    windows = []
    for start, end in _pairs(value, where):
        if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in (start, end)):
            raise AnnotationError(
                f"{where}: a start and an end in seconds are expected; received {[start, end]!r:.80}."
            )
        windows.append(checked_window(start, end, where, duration))
    return windows


def checked_window(start: float, end: float, where: str, duration: float | None = None) -> list[float]:
    """A window of seconds that a video can have.

    Raises:
        AnnotationError: A time is negative, infinite or not a number, the end lies before the start, or more than a
            second behind the end of the video.
    """
    try:
        start, end = float(start), float(end)
    except OverflowError:
        start = end = math.inf
    if not (math.isfinite(start) and math.isfinite(end)):
        problem = "has a time that is not finite"
    elif start < 0:
        problem = "starts before its video"
    elif end < start:
        problem = "ends before it starts"
    elif duration is not None and end > duration + _BEYOND:
        problem = f"ends beyond its video of {duration:g} s"
    else:
        return [start, end]
    raise AnnotationError(f"{where}: the moment from {start:g} to {end:g} s {problem}. Correct or remove it.")


def _pairs(value: Any, where: str) -> list[Sequence[Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, list) and len(one) == 2 for one in value):
        raise AnnotationError(f"{where}: expected at least one pair of a start and an end; received {value!r:.80}.")
    return value


def _number(value: Any, place: str, name: str) -> float:
    """A number, which tables of text hold as text."""
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):  # the last of a whole number with hundreds of digits
        pass
    raise AnnotationError(f"{place}, field {name!r}: a time in seconds is expected; received {value!r:.60}.")


def _duration(value: Any, place: str, name: str) -> float:
    seconds = _number(value, place, name)
    if not 0 < seconds < math.inf:
        raise AnnotationError(f"{place}, field {name!r}: the seconds of a video are expected; received {value!r:.60}.")
    return seconds


__all__ = [
    "DIDEMO_SECONDS",
    "Moment",
    "MomentKind",
    "checked_window",
    "checked_windows",
    "has_times",
    "read_moments",
    "table_windows",
]
