"""Names of files cannot steer the terminal, and no number of Ctrl-C changes the exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.gallery import ANSWERS, write_model, write_video
from fixtures.processes import environment

from alpro_hf.cli.main import main
from alpro_hf.inference.index_shards import Manifest

# clears the screen, forges a row, turns the direction of text, rings, is no text
NAMES = ["\x1b[2J\x1b[H", "x\n   1   99.9%       0.999  forged", "\u202egpm.4", "\u2066\u200f\x07\x9b1m", "\udcff\x85"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "retrieval")


@pytest.mark.skipif(os.name != "posix", reason="names of other systems cannot have these characters")
def test_names_are_escaped_wherever_a_command_shows_them(tmp_path, model, capsys) -> None:
    videos = tmp_path / "videos"
    for number, name in enumerate(NAMES):
        write_video(videos / "clip.mp4", number).rename(videos / f"{name}.mp4")
        (videos / f"{name}-broken.mp4").write_bytes(b"not a video")
    index = tmp_path / "in\x1b[31mdex"
    shown = []
    commands = (
        ["index", str(videos), "--output", str(index), "--model", str(model)],
        ["search", str(index), "a fox", "--rerank", "0"],
        ["search", str(videos), "a fox", "--model", str(model)],
        ["search", str(tmp_path / "ab\x1bsent"), "a fox"],
        ["ask", str(tmp_path / "ab\x1b\nsent"), "what is it"],
        ["evaluate", "--task", "qa", "--data", str(tmp_path / "ab\x1b\u202esent.jsonl"), "--output", str(tmp_path)],
        ["plot", str(tmp_path / "ab\x1bsent")],
        ["compare", str(tmp_path / "ab\x1bsent"), str(tmp_path / "ab\x1bsent")],
    )
    for command in commands:
        main(command)
        out, err = capsys.readouterr()
        # progress bars move in their line by \r, and libraries move to the line of another bar by \x1b[A
        shown += [line.rpartition("\r")[2] for line in (out + err).replace("\x1b[A", "").split("\n")]
    for line in shown:
        assert line.isprintable(), line
    assert not [line for line in shown if line.startswith("   1   99.9%")]
    assert "\\x1b[2J" in "".join(shown) and "\\n" in "".join(shown) and "\\u202e" in "".join(shown)
    # the result stays usable: JSON has the names as they are
    main(["search", str(index), "a fox", "--rerank", "0", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {Path(result["path"]).name for result in found["results"]} == {f"{name}.mp4" for name in NAMES}


def test_labels_of_a_model_are_escaped(tmp_path, capsys) -> None:
    folder = write_model(tmp_path / "qa", "qa")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"{answer}\x1b[2J\n{i}\u202e" for i, answer in enumerate(ANSWERS)}
    (folder / "config.json").write_text(json.dumps(config))
    clip = write_video(tmp_path / "clip.mp4", 0)
    assert main(["ask", str(clip), "what is it", "--model", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ANSWERS) + 1 and all(line.isprintable() for line in lines)  # and how many it knows


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "alpro_hf", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT] * 3, 130),
        ([signal.SIGINT] * 8, 130),
        ([signal.SIGTERM] * 3, 143),
    ],
)
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_more_signals_change_neither_the_exit_code_nor_what_is_kept(tmp_path, model, signals, code, pause) -> None:
    clips = [write_video(tmp_path / f"{seed}.mp4", seed) for seed in range(3)]
    pipe, index = tmp_path / "pipe.mp4", tmp_path / "index"
    os.mkfifo(pipe)
    process = start("index", *clips, pipe, "--output", index, "--model", model, "--batch-size", 1, "--shard-size", 2)
    deadline = time.monotonic() + 120
    while not (index / "index.json").exists() or len(Manifest.read(index).videos) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == "" and "Traceback" not in err
    assert "what is done is kept" in err
    assert len(Manifest.read(index).videos) in (2, 3)
