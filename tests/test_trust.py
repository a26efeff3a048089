"""Names from strangers, and the seal of the user."""

import os
from pathlib import Path

import pytest

from alpro_hf import trust
from alpro_hf.trust import is_sealed, printable, seal


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


def test_json_of_files_is_read_within_bounds_everywhere() -> None:
    """Whoever adds a reader of JSON uses `untrusted_json`, or says here whose JSON it is."""
    ours = {
        "data/decode_server.py": "answers of our own process",
        "data/parquet_process.py": "requests of our own process, which does not import the package",
        "evaluation/results.py": "a text that was just made",
        "inference/index_frames.py": "settings of a processor in memory",
        "model/decoding_table.py": "a table whose reader checks its size; the model travels without the package",
        "sprites/render.py": "a file of the package",
        "training/feature_cache.py": "settings of a processor in memory",
        "training/pseudo_labels.py": "settings of a processor in memory",
        "training/run.py": "a text that was just made",
        "metrics/video_moment_retrieval/app.py": "the field of a page of its own",
        "metrics/video_text_retrieval/app.py": "the field of a page of its own",
    }
    package = Path(trust.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.load" in path.read_text(encoding="utf-8") and path.name != "untrusted_json.py"
    }
    assert found == set(ours)
