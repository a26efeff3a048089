"""JSON of others is read within bounds, and what exceeds them is named with its place."""

import os

import pytest

from alpro_hf.untrusted_json import MAX_DEPTH, MAX_DIGITS, JsonBoundsError, parse_json, parse_json_prefix, read_json


def refused(text: str, **options) -> JsonBoundsError:
    with pytest.raises(JsonBoundsError) as caught:
        parse_json(text, **options)
    return caught.value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 100_000])
@pytest.mark.parametrize("ends", ["[]", ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth(depth, ends) -> None:
    opening, closing = ends
    error = refused(f'{{"b": [1, "[", {{}}], "text": {opening * depth}0{closing * depth}}}')
    assert "deeper than 64" in str(error) and error.path[0] == "text"


def test_what_is_just_deep_enough_is_read() -> None:
    value = parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for _ in range(MAX_DEPTH - 1):
        [value] = value
    assert value == []


@pytest.mark.parametrize("digits", [MAX_DIGITS + 1, 5000, 1_000_000])
def test_digits(digits) -> None:
    error = refused(f'{{"a": {{"b": 12}}, "c": [0, -{"9" * digits}]}}')
    assert f"{digits + 1:,} digits" in str(error) and error.path == ("c", 1)
    assert parse_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_numbers_that_are_not_finite(number) -> None:
    text = f'{{"name": "NaN", "values": {{"x": 1.5, "y": {number}}}}}'
    error = refused(text)
    assert error.path == ("values", "y") and text[error.position :].startswith(number)
    value = parse_json(text, nan=True)["values"]["y"]
    assert value != value or abs(value) == float("inf")


def test_a_value_inside_of_a_text() -> None:
    assert parse_json_prefix('xx {"a": 1}, 2', 3) == ({"a": 1}, 11)
    with pytest.raises(JsonBoundsError) as caught:
        parse_json_prefix('[1], {"k": ' + "[" * 2000, 5)
    assert caught.value.path[0] == "k"


def test_bytes() -> None:
    assert parse_json('{"a": "ä"}'.encode()) == {"a": "ä"}
    with pytest.raises(UnicodeDecodeError):
        parse_json(b'"\xff"')


def test_files(tmp_path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4"}')
    assert read_json(file) == {"a": "ä"}
    with pytest.raises(JsonBoundsError, match="larger than 5 bytes"):
        read_json(file, max_bytes=5)
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(JsonBoundsError, match="larger than"):
        read_json(file)
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    for device in (tmp_path / "pipe", tmp_path / "zero"):
        os.mkfifo(device) if device.name == "pipe" else device.symlink_to("/dev/zero")
        with pytest.raises(JsonBoundsError, match="pipe or a device"):
            read_json(device)
