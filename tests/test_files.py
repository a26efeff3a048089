"""Writes are whole, and never go through a link."""

import os
from functools import partial
from pathlib import Path

import pytest

from alpro_hf.files import append_line, is_link, remove_links, remove_partial, write_text_whole, write_whole


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside of the folder that is written to."""
    path = tmp_path / "home" / "precious"
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_a_link_is_replaced_and_not_written_through(folder, precious) -> None:
    names = ("a.txt", ".a.txt.partial", ".a.txt.partial.partial")
    for name in names:
        (folder / name).symlink_to(precious)
    write_text_whole(folder / "a.txt", "new")
    assert (folder / "a.txt").read_text() == "new" and not is_link(folder / "a.txt")
    assert precious.read_text() == "precious"


def test_partial_names_cannot_be_guessed_and_are_made_exclusively(folder, precious, monkeypatch) -> None:
    seen = []
    for _ in range(3):
        write_whole(folder / "a", lambda path: (seen.append(path.name), path.write_text("x")))
    assert len(set(seen)) == 3 and all(name.endswith(".partial") and len(name) > 20 for name in seen)
    monkeypatch.setattr("secrets.token_hex", lambda size: "known")
    (folder / ".known.partial").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_text_whole(folder / "a", "new")
    assert precious.read_text() == "precious" and (folder / "a").read_text() == "x"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder) -> None:
    write_text_whole(folder / "a", "old")

    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(folder / "a", interrupted)
    assert [path.name for path in folder.iterdir()] == ["a"] and (folder / "a").read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_permissions_are_those_of_any_new_file(folder) -> None:
    write_text_whole(folder / "a", "text")
    (folder / "b").write_text("text")
    assert (folder / "a").stat().st_mode == (folder / "b").stat().st_mode


def test_links_are_removed_and_not_what_is_behind_them(folder, precious) -> None:
    (folder / "model.safetensors").symlink_to(precious)
    (folder / "nowhere").symlink_to(precious.parent / "absent")
    (folder / "runs").symlink_to(precious.parent)
    (folder / ".1.partial").symlink_to(precious)
    (folder / ".2.partial").symlink_to(precious.parent)
    (folder / ".3.partial").write_text("left by a killed process")
    (folder / ".4.partial").mkdir()
    (folder / "config.json").write_text("{}")
    remove_partial(folder)
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "nowhere", "runs", ".4.partial", "config.json")
    }
    remove_links(folder)
    assert {path.name for path in folder.iterdir()} == {"runs", ".4.partial", "config.json"}
    assert precious.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot tell")
def test_lines_are_not_appended_through_a_link(folder, precious) -> None:
    for line in (b"one", b"two"):
        append_line(folder / "lines", line)
    assert (folder / "lines").read_bytes() == b"one\ntwo\n"
    (folder / "link").symlink_to(precious)
    with pytest.raises(OSError, match="link"):
        append_line(folder / "link", b"more")
    assert precious.read_text() == "precious"


def test_a_system_without_o_nofollow_writes_too(folder, monkeypatch) -> None:
    monkeypatch.delattr(os, "O_NOFOLLOW", raising=False)
    write_text_whole(folder / "a", "text")
    write_whole(folder / "b", partial(Path.write_text, data="text"))
    append_line(folder / "c", b"text")
    assert [(folder / name).read_text() for name in "abc"] == ["text", "text", "text\n"]
