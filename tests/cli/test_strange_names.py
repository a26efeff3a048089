"""Names of files cannot steer the terminal, and no number of Ctrl-C changes the exit code."""

import io
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
from huggingface_hub import constants
from huggingface_hub.utils import _cache_assets

from alpro_hf.cli.main import COMMANDS, main
from alpro_hf.inference.index_shards import Manifest

# clears the screen, forges a row, turns the direction of text, rings, is no text
NAMES = ["\x1b[2J\x1b[H", "x\n   1   99.9%       0.999  forged", "\u202egpm.4", "\u2066\u200f\x07\x9b1m", "\udcff\x85"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", "retrieval")


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, as a terminal shows it in the end.

    Progress bars move in their line by \\r, and libraries move to the line of another bar by \\x1b[A.
    """
    out, err = capsys.readouterr()
    return [line.rpartition("\r")[2] for line in (out + err).replace("\x1b[A", "").split("\n")]


@pytest.mark.skipif(os.name != "posix", reason="names of other systems cannot have these characters")
def test_names_are_escaped_wherever_a_command_shows_them(tmp_path, model, capsys, monkeypatch) -> None:
    videos = tmp_path / "videos"
    for number, name in enumerate(NAMES):
        write_video(videos / "clip.mp4", number).rename(videos / f"{name}.mp4")
        (videos / f"{name}-broken.mp4").write_bytes(b"not a video")
    shown: list[str] = []
    index, absent = tmp_path / "in\x1b[31mdex", str(tmp_path / "ab\x1b\u202e\nsent")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    rows = tmp_path / "ro\x1bws.jsonl"
    texts = [(name, f"a fox{name}") for name in (*NAMES, "gone\x1b[2J") if name.isascii()]
    rows.write_text("".join(json.dumps({"video": f"{videos}/{n}.mp4", "text": text}) + "\n" for n, text in texts))
    results, exported = tmp_path / "re\x1b\u202esults", tmp_path / "ex\x1bported"
    evaluate = ["evaluate", "--task", "retrieval", "--model", str(model), "--no-plot", "--output"]
    train = ["train", "--output", absent, "--recipe"]
    commands = (
        ["index", str(videos), "--output", str(index), "--model", str(model)],
        ["search", str(index), "a fox", "--rerank", "0"],
        ["search", str(videos), "a \x1b[2Jfox \u202ewolf", "--model", str(model)],
        ["search", absent, "a fox"],
        ["search", str(index), "a fox", "--model", absent],
        ["ask", absent, "what is it"],
        ["ask", str(videos / f"{NAMES[0]}-broken.mp4"), "what is it"],
        ["label", str(videos), "--labels", absent],
        ["label", absent, "--labels", str(rows)],
        ["convert", absent, "--output", str(tmp_path / "converted")],
        ["entities", absent, "--output", str(tmp_path / "entities.txt")],
        ["pseudo-label", absent, "--prompter", absent, "--output", absent],
        ["edit-captions", absent, "--output", f"{absent}.jsonl"],
        ["edit-captions", str(rows), "--output", str(tmp_path / "ed\x1bited.jsonl"), "--kinds", "opposites"],
        ["ui", absent, "--no-browser"],
        ["ui", str(index), "--model", absent, "--no-browser"],
        [*train, absent, "--data", absent, "--model", absent],
        [*train, "msrvtt-retrieval", "--data", absent, "--model", absent],
        [*evaluate, str(tmp_path), "--data", absent],
        [*evaluate, str(results), "--data", str(rows)],
        [*evaluate, str(results), "--data", str(rows)],
        ["compare", absent, absent],
        ["compare", str(results), str(results)],
        ["plot", absent],
        ["publish", str(model), "--repo", "acme/alpro", "--dry-run", "--output", str(exported)],
        ["publish", str(model), "--repo", "acme/alpro\x1b", "--dry-run"],
        ["publish", absent, "--repo", "acme/alpro", "--revision", "\x1b[2J", "--dry-run"],
        ["export-onnx", absent, absent],
    )
    assert {command[0] for command in commands} == set(COMMANDS) - {"demo"}  # which is in a test of its own
    for command in commands:
        main(command)
        shown += lines_of(capsys)
    assert exported.is_dir() and (results / "results.json").is_file()
    for line in shown:
        assert line.isprintable(), line
    assert not [line for line in shown if line.startswith("   1   99.9%")]
    assert "\\x1b[2J" in "".join(shown) and "\\n" in "".join(shown) and "\\u202e" in "".join(shown)
    # the result stays usable: JSON has the names as they are
    main(["search", str(index), "a fox", "--rerank", "0", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {Path(result["path"]).name for result in found["results"]} == {f"{name}.mp4" for name in NAMES}


@pytest.mark.skipif(os.name != "posix", reason="names of other systems cannot have these characters")
def test_names_labels_and_queries_of_moments_are_escaped(tmp_path, model, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    for module in (constants, _cache_assets):
        monkeypatch.setattr(module, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    videos, long = tmp_path / "vi\x1b[31m\u202edeos", "x" * 250
    for number, name in enumerate((*NAMES, long)):
        write_video(tmp_path / "clip.mp4", number, frames=18).rename(ensured(videos) / f"{name}.mp4")
    labels, rows = tmp_path / "la\x1bbels.txt", tmp_path / "rows.jsonl"
    labels.write_text("a fox\x1b[2J\na dog\u202e\u2066\x9b1m\n", encoding="utf-8")
    first = videos / f"{NAMES[0]}.mp4"
    query = "a \x1b[2Jfox\u202e"
    rows.write_text(json.dumps({"video": str(first), "text": query, "windows": [[0, 1]]}) + "\n")
    qa, index, windows = write_model(tmp_path / "qa", "qa"), tmp_path / "index", ["--window", "1", "--stride", "1"]
    of_model = ["--model", str(model), "--rerank", "0", "--top-k", "50"]
    clips, sheet = tmp_path / "cl\x1bips", tmp_path / "sh\x1beet.png"
    evaluate = ["evaluate", "--task", "moments", "--data", str(rows), "--model", str(model), "--no-plot", *windows[:2]]
    # arguments, and the lines of the standard input
    commands: tuple[tuple[list[str], str], ...] = (
        (["index", str(videos), "--output", str(index), "--model", str(model), *windows], ""),
        (["search", str(index), query, *of_model[2:], "--save-clips", str(clips), "--sheet", str(sheet)], ""),
        (["search", str(index), query, *of_model[2:], "--save-clips", str(clips)], ""),
        (["search", str(index), "--like", f"{first}@0-1", "-", query, *of_model[2:]], ""),
        (["search", str(index), "--like", f"{first}@8-9", *of_model[2:]], ""),
        (["search", str(videos), *of_model], f'{query}\n{query} + \x1b[2J.mp4\n{query} - {query}\n"{query} + a\n'),
        (["index", "--list"], ""),
        (["index", "--remove", f"{videos}\n"], ""),
        (["index", "--remove", str(videos)], ""),
        (["label", str(videos), "--labels", str(labels), "--model", str(model)], ""),
        (["ask", str(first), "what\x1b is it", "--best", query, "--model", str(qa), "--search-model", str(model)], ""),
        (["ask", str(first), "what is it", "--at", "0-1\x1b", "--model", str(qa)], ""),
        ([*evaluate, "--output", str(tmp_path / "re\x1bsults")], ""),
    )
    codes, shown = [], []
    for command, lines in commands:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        codes.append(main(command))
        shown.append(lines_of(capsys))
    for line in (line for lines in shown for line in lines):
        assert line.isprintable(), line
    assert not [line for lines in shown for line in lines if line.startswith("   1   99.9%")]
    assert codes == [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0], shown
    everything = "\n".join(line for lines in shown for line in lines)
    assert "\\x1b[2J" in everything and "\\u202e" in everything and "a dog\\u202e" in everything
    assert len(list(clips.iterdir())) == len((*NAMES, long)) and sheet.is_file()


def ensured(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="names of other systems cannot have these characters")
def test_the_demo_escapes_the_name_of_its_folder(tmp_path, capsys) -> None:
    assert main(["demo", "--output", str(tmp_path / "de\x1b[2J\n\u202emo")]) == 0
    lines = lines_of(capsys)
    assert all(line.isprintable() for line in lines), lines
    assert sum("de\\x1b[2J\\n\\u202emo" in line for line in lines) >= 3


def test_what_a_model_says_of_its_training_is_escaped(tmp_path, capsys) -> None:
    folder = write_model(tmp_path / "model", "retrieval")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"matching_trained": False}))
    strange = "made\x1b[2J by\n   1   99.9%\u202e"
    (folder / "training.json").write_text(json.dumps({"summary": strange, "limits": [strange], "license": strange}))
    write_video(tmp_path / "videos" / "a.mp4", 0)
    main(["search", str(tmp_path / "videos"), "a fox", "--model", str(folder)])
    lines = lines_of(capsys)
    assert all(line.isprintable() for line in lines), lines
    assert any("made\\x1b[2J" in line for line in lines)


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
