"""Spans of time in names: read, written, and refused in one sentence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpro_hf.data.spans import Span, SpanError, parse_span, span_text, split_span, time_text


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("12-20", 12, 20),
        ("00:12-00:20", 12, 20),
        ("1:02:03.5-1:02:10", 3723.5, 3730),
        ("90:00-1:31:00", 5400, 5460),
        ("100-200.25", 100, 200.25),
        (" 0 - 0.5 ", 0, 0.5),
        ("12-1:00", 12, 60),
    ],
)
def test_spans_are_read(text: str, start: float, end: float) -> None:
    assert parse_span(text) == Span(start, end)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a span"),
        ("12", "not a span"),
        ("12-", "not a span"),
        ("-12", "not a span"),
        ("-3-5", "not a span"),
        ("a-b", "not a span"),
        ("1:2:3:4-5", "not a span"),
        ("nan-inf", "not a span"),
        ("1e3-2e3", "not a span"),
        ("٣-٤", "not a span"),
        ("9" * 400 + "-" + "9" * 401, "not a span"),
        ("20-12", "does not end after"),
        ("12-12", "does not end after"),
        ("0:75-2:00", "more than 59"),
        ("1:75:00-2:00:00", "more than 59"),
    ],
)
def test_what_is_no_span_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(SpanError, match=problem) as caught:
        parse_span(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_spans_behind_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "me@home.mp4", "film@12-20", "film"):
        Path(name).touch()
    assert split_span("clip.mp4@00:12-00:20") == ("clip.mp4", Span(12, 20))
    assert split_span("clip.mp4") == ("clip.mp4", None)
    assert split_span("me@home.mp4") == ("me@home.mp4", None)
    assert split_span("me@home.mp4@1-2") == ("me@home.mp4", Span(1, 2))
    assert split_span("film@12-20") == ("film@12-20", None)  # a file of this name
    assert split_span("film@12-21") == ("film", Span(12, 21))
    assert split_span("gone.mp4@1-2") == ("gone.mp4", Span(1, 2))
    assert split_span("mail me@home") == ("mail me@home", None)
    assert split_span("@home") == ("@home", None)
    for name in ("clip.mp4@", "clip.mp4@soon", "clip.mp4@20-12", "gone.mp4@5", "gone.mp4@"):
        with pytest.raises(SpanError):
            split_span(name)


def test_a_span_lies_in_its_video() -> None:
    assert Span(1, 2).within(10, "a.mp4") == Span(1, 2)
    assert Span(58, 60).within(59.96, "a.mp4") == Span(58, 59.96)  # written in whole seconds
    for span in (Span(10, 11), Span(5, 12), Span(70, 80)):
        with pytest.raises(SpanError, match=r"a\.mp4 lasts 10 s"):
            span.within(10, "a.mp4")


def test_times_are_written() -> None:
    assert time_text(3723.9) == "01:02:03" and time_text(0) == "00:00:00" and time_text(360000) == "100:00:00"
    assert span_text(2468, 2483) == "00:41:08-00:41:23"
    assert span_text(7.5, 22.5) == "00:00:07-00:00:23"
    assert span_text(0.1 + 0.2 - 0.3 + 5, 6.9999999999) == "00:00:05-00:00:07"


@given(st.floats(0, 1e5), st.floats(0.01, 1e4))
def test_a_written_span_holds_the_moment(start: float, length: float) -> None:
    read = parse_span(span_text(start, start + length))
    assert start - 1 <= read.start <= start + 1e-5 and start + length - 1e-5 <= read.end <= start + length + 1
