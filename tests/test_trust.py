"""JSON, files and names from strangers."""

import json
import os
from pathlib import Path

import pytest

from alpro_hf.trust import (
    JSON_DEPTH,
    JSON_DIGITS,
    is_sealed,
    open_regular,
    parse_json,
    printable,
    read_json,
    seal,
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (nested(JSON_DEPTH + 1), "deeper than 64"),
        (nested(100_000), "deeper than 64"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "deeper than 64"),
        ("[" + nested(JSON_DEPTH) + ", 1]", "deeper than 64"),
        ("9" * 5000, "5000 digits"),
        ("-" + "9" * JSON_DIGITS, "41 digits"),
        ('{"a": [NaN]}', "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not"),
        ("1e999", "1e999 is not"),
        ("9" * 400 + ".0", "999 is not a finite number"),
        ("[1", "Expecting"),
        (b"\xff\xfe\xfd", "decode"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_beyond_the_bounds_is_refused(text, said) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


@pytest.mark.parametrize("text", [nested(JSON_DEPTH), '{"a": [1, -2.5, "b", null, true]}', "9" * JSON_DIGITS, "1e308"])
def test_json_within_the_bounds_is_as_the_library_reads_it(text) -> None:
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_a_file_is_bounded_and_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json(path, 6) == [1, 2]
    with pytest.raises(ValueError, match="larger than 5 bytes"):
        read_json(path, 5)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe\x1b[2J")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, shown in (("pipe\x1b[2J", r"pipe\\x1b\[2J is not a file"), ("zero", "is not a file")):
        with pytest.raises(ValueError, match=shown):
            open_regular(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    (tmp_path / "text").write_text("x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"x"


def test_names_are_shown_on_one_line() -> None:
    name = "a\x1b[2J\n2  9\r\t\x07\x7f\x9b1m\u202egpm\u2066\u200f\ud800\udcff.mp4"
    shown = printable(name)
    assert shown.isprintable() and shown.startswith("a\\x1b[2J\\n2  9\\r\\t") and shown.endswith("\\ud800\\udcff.mp4")
    for plain in ("clip 1.mp4", "Häschen.mkv", "猫が走る.mp4", "كلب.mp4", "a\\b"):
        assert printable(plain) == plain
    assert printable(Path("a\nb")) == "a\\nb"


def test_only_this_user_can_seal(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    assert not is_sealed("0" * 64, "root", "/videos")  # and no key is made for it
    assert not (tmp_path / "mine").exists()
    proof = seal("root", "/videos")
    assert is_sealed(proof, "root", "/videos") and proof == seal("root", "/videos")
    for other in (("root", "/"), ("root/", "videos"), ("root", "/videos", ""), ('root", "/videos',)):
        assert not is_sealed(proof, *other)
    for nonsense in (None, 7, "", "ä\ud800", [proof]):
        assert not is_sealed(nonsense, "root", "/videos")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    assert not is_sealed(proof, "root", "/videos")
    assert seal("root", "/videos") != proof and not is_sealed(proof, "root", "/videos")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_key_is_the_users_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal("text")
    [key] = (tmp_path / "alpro_hf").iterdir()
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 64
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    with pytest.raises(OSError, match="nowhere"):
        seal("text")
