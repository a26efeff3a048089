"""Spans of time as people write them: `12:08-12:20`, and behind the name of a file, `match.mp4@12:08-12:20`."""

import math
import os
import re
from dataclasses import dataclass

_TIME = r"(?:(?:(\d{1,4}):)?(\d{1,6}):)?(\d{1,9}(?:\.\d{1,9})?)"
_SPAN = re.compile(rf"\s*{_TIME}\s*-\s*{_TIME}\s*", re.ASCII)
_LIKE_A_SPAN = re.compile(r"[\d:.\s-]*", re.ASCII)  # what may have been meant as one
_HOW = "Write two times with a hyphen, as in 12-20, 00:12-00:20 or 1:02:03.5-1:02:10"
# Seconds by which a span may exceed its video: people and `span_text` write whole seconds.
_ROUNDED = 1.0


class SpanError(ValueError):
    """A span of time is not written as one, or does not lie in its video."""


@dataclass(frozen=True)
class Span:
    """A part of a video.

    Args:
        start, end: Seconds from the start of the video; `end` is greater.
    """

    start: float
    end: float

    def within(self, duration: float, name: str) -> "Span":
        """The span in a video; its end may exceed that of the video by a second, and then becomes it.

        Args:
            duration: Seconds of the video.
            name: The video, for the message.

        Raises:
            SpanError: It begins or ends after the video.
        """
        if self.start >= duration or self.end > duration + _ROUNDED:
            raise SpanError(
                f"{name} lasts {duration:.6g} s, and {span_text(self.start, self.end)} does not lie in it. Give a "
                "span of time within the video."
            )
        return Span(self.start, min(self.end, duration))


def parse_span(text: str) -> Span:
    """Read a span such as `12-20`, `00:12-00:20` or `1:02:03.5-1:02:10` (hours, minutes and seconds).

    Raises:
        SpanError: The text is no span, minutes or seconds are above 59, or it does not end after it starts.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise SpanError(f"{text!r} is not a span of time. {_HOW}.")
    parts = found.groups()
    start, end = _seconds(text, *parts[:3]), _seconds(text, *parts[3:])
    if end <= start:
        raise SpanError(f"The span {text!r} does not end after it starts. Write the earlier time first.")
    return Span(start, end)


def _seconds(text: str, hours: str | None, minutes: str | None, seconds: str) -> float:
    # the first number may be large: 90:00 are 90 minutes
    if (minutes is not None and float(seconds) >= 60) or (hours is not None and int(minutes or 0) >= 60):
        raise SpanError(f"The span {text!r} has more than 59 minutes or seconds behind a colon. {_HOW}.")
    return 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(seconds)


def split_span(name: str) -> tuple[str, Span | None]:
    """Divide `clip.mp4@00:12-00:20` into the name of a file and a span.

    A file may have `@` in its name: where the whole name is that of a file, there is no span.

    Returns:
        The name of the file, which need not exist, and the span; None if there is none.

    Raises:
        SpanError: A file is named, and what follows `@` is not a span.
    """
    file, sign, text = name.rpartition("@")
    if not sign or not file or os.path.exists(name):
        return name, None
    if os.path.isfile(file) or _LIKE_A_SPAN.fullmatch(text):
        return file, parse_span(text)
    return name, None


def time_text(seconds: float) -> str:
    """Whole seconds as `HH:MM:SS`."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}"


def span_text(start: float, end: float) -> str:
    """The whole seconds that a span lies in, such as `00:41:08-00:41:23`. `parse_span` reads it."""
    # what floating-point arithmetic adds to a whole second is not another one
    return f"{time_text(math.floor(start + 1e-6))}-{time_text(math.ceil(end - 1e-6))}"


__all__ = ["Span", "SpanError", "parse_span", "span_text", "split_span", "time_text"]
