"""The commands that find moments, as their users meet them: search, label, ask and the cache of searches."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from fixtures.gallery import write_model, write_video
from huggingface_hub import constants
from huggingface_hub.utils import _cache_assets
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging

import alpro_hf
from alpro_hf.cli.contact_sheet import draw_results
from alpro_hf.cli.main import main
from alpro_hf.cli.search import print_table
from alpro_hf.data.cut_clip import CutError
from alpro_hf.inference.save_clips import clip_name, save_clips
from alpro_hf.inference.video_index import SearchResult
from alpro_hf.model.decoding import decode
from alpro_hf.sprites.films import write_films


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "retrieval", "retrieval")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for seed in range(3):
        write_video(tmp_path / "videos" / f"{seed}.mp4", seed, frames=18)
    return tmp_path / "videos"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = write_films(
        tmp_path_factory.mktemp("films"), "test", 1, scenes=(4, 4), seconds=(1.5, 3), workers=1, progress=False
    )
    return folder / "films" / "00000.mp4", [json.loads(line) for line in (folder / "moments.jsonl").open()]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and a library that speaks again afterwards."""
    for module in (constants, _cache_assets):
        monkeypatch.setattr(module, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_second_search_in_a_folder_encodes_nothing(capsys, videos, model, tmp_path) -> None:
    command = ("search", videos, "a fox runs", "--model", model, "--json")
    code, first, err = run(capsys, *command)
    assert code == 0 and "3/3" in err
    code, again, err = run(capsys, *command)
    assert (code, again) == (0, first) and "indexing" not in err
    code, listed, _ = run(capsys, "index", "--list", "--json")
    [kept] = json.loads(listed)["indexes"]
    assert (kept["folder"], kept["model"], kept["videos"]) == (str(videos), str(model), 3)
    assert json.loads(listed)["cache"] == str(tmp_path / "cache" / "alpro_hf" / "indexes")
    code, uncached, err = run(capsys, *command, "--no-cache")
    assert (code, json.loads(uncached)) == (0, json.loads(first)) and "3/3" in err

    code, listed, _ = run(capsys, "index", "--list")
    assert code == 0 and kept["name"] in listed and str(videos) in listed
    code, out, err = run(capsys, "index", "--remove", tmp_path)
    assert (code, out) == (1, "") and "only indexes in the cache are removed" in err
    code, out, _ = run(capsys, "index", "--remove", videos)
    assert (code, out) == (0, f"removed {kept['name']}, of {videos}\n")
    assert json.loads(run(capsys, "index", "--list", "--json")[1])["indexes"] == []
    assert len(list(videos.iterdir())) == 3


@pytest.mark.slow
def test_several_indexes_and_limits_are_options(capsys, videos, model, tmp_path) -> None:
    common = ("--model", model)
    for name in ("0", "1"):
        assert run(capsys, "index", videos / f"{name}.mp4", "--output", tmp_path / name, *common)[0] == 0
    code, out, _ = run(capsys, "search", tmp_path / "0", "a fox", "--also", tmp_path / "1", "--json", *common)
    assert code == 0
    assert {Path(one["path"]).stem: one["index"] for one in json.loads(out)["results"]} == {
        name: str(tmp_path / name) for name in ("0", "1")
    }
    code, out, _ = run(capsys, "search", tmp_path / "0", "a fox", "--also", tmp_path / "1", *common)
    assert code == 0 and f"[{tmp_path / '1'}]" in out
    with pytest.raises(SystemExit):
        main(["search", str(tmp_path / "0"), "a fox", "--ann", "--also", str(tmp_path / "1")])
    labels = tmp_path / "labels.txt"
    labels.write_text("a fox\n")
    short = ("--max-duration", "0.0001")
    for command in (
        ("index", videos, "--output", tmp_path / "index"),
        ("search", videos, "a fox"),
        ("label", videos, "--labels", labels),
    ):
        code, _, err = run(capsys, *command, *common, *short)
        assert code == 1 and "(--max-duration)" in err
    code, out, _ = run(capsys, "label", videos / "0.mp4", "--labels", labels, "--window", "0.5", *common)
    assert code == 0 and len(out.splitlines()) > 1
    code, _, err = run(capsys, "label", videos / "0.mp4", "--labels", labels, "--window", "0", *common)
    assert code == 1 and "length is 0" in err


def test_a_cache_that_cannot_be_written_is_said(capsys, videos, model, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file")
    code, out, err = run(capsys, "search", videos, "a fox", "--model", model)
    assert code == 0 and len(out.splitlines()) == 4
    assert "note: nothing is kept of this folder" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index"], "name the folders of videos"),
        (["index", "--list", "videos"], "stand alone"),
        (["index", "--list", "--remove", "x"], "not allowed with"),
        (["search", "index", "--save-clips", "out"], "need a QUERY"),
        (["search", "index", "a dog", "--exact"], "--exact belongs to --save-clips"),
        (["search", "index", "a dog", "--sheet", "out.jpg"], "out.jpg is not named like one"),
        (["ask", "clip.mp4@1-2", "what?", "--at", "1-2"], "names a moment, and so does --at"),
        (["ask", "clip.mp4", "what?", "--at", "1-2", "--best", "a dog"], "not allowed with"),
        (["ask", "clip.mp4", "what?", "--search-model", "m"], "--search-model belongs to --best"),
    ],
)
def test_wrong_usage(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_sums_and_examples(capsys, videos, model, monkeypatch) -> None:
    common = ("--model", model, "--top-k", 3, "--json")
    code, out, _ = run(capsys, "search", videos, "--like", videos / "1.mp4", *common)
    found = json.loads(out)
    assert code == 0 and found["query"] == str(videos / "1.mp4")
    assert found["results"][0] | {"score": 1, "similarity": 1} == {
        "rank": 1,
        "path": str(videos / "1.mp4"),
        "start": None,
        "end": None,
        "score": 1,
        "similarity": 1,
        "match_probability": None,
    }
    monkeypatch.chdir(videos)
    for words in (["a fox", "+", "1.mp4", "-", "0.5:the dog"], ["-", "0.5:the dog", "+", "1.mp4", "+", "a fox"]):
        code, out, _ = run(capsys, "search", videos, *common, *words)
        mixed = json.loads(out)
        assert code == 0 and mixed["results"][0]["path"] == str(videos / "1.mp4")
        assert mixed["query"] == " ".join(words).replace("- 0.5", "- 0.5")
        assert all(result["match_probability"] is None for result in mixed["results"])
    for words, said in (
        (["--like", "gone.mp4"], "There is no file 'gone.mp4' to take as an example."),
        (["--like", model / "config.json"], "is neither a video nor a picture that can be read"),
        (["--like", "1.mp4@9-10"], "does not lie in it"),
        (["a", "fox"], "There is no + or - before 'fox'"),
    ):
        code, out, err = run(capsys, "search", videos, *common, *words)
        assert (code, out) == (1, "") and said in err.splitlines()[-1]


def test_queries_of_lines_from_a_pipe(capsys, videos, model, monkeypatch) -> None:
    lines = f"a fox runs\n\n  \na dog + gone.mp4\na dog - {videos / '0.mp4'}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = run(capsys, "search", videos, "--model", model, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"] for answer in answers] == ["a fox runs", f"a dog - {videos / '0.mp4'}"]
    assert answers[1]["results"][-1]["path"] == str(videos / "0.mp4")
    assert code == 1 and "alpro search: There is no file 'gone.mp4'" in err
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fox\n"))
    code, out, _ = run(capsys, "search", videos, "--model", model)
    assert code == 0 and len(out.splitlines()) == 4
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run(capsys, "search", videos, "--model", model)[:2] == (0, "")


@pytest.mark.slow
def test_a_person_is_asked_for_queries(videos, model) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1]), "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "alpro_hf", "search", str(videos), "--model", str(model)],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    said = b""

    def wait_for(text: bytes, times: int) -> None:
        nonlocal said
        while len(re.findall(text, said)) < times:
            said += os.read(ours, 1000)

    wait_for(b"query> ", 1)
    os.write(ours, b"a fox +\n")  # an error ends nothing
    wait_for(b"query> ", 2)
    os.write(ours, b"a fox runs\n")
    wait_for(b"query> ", 3)
    assert b"similarity  video" in said
    os.write(ours, b"\x04")
    assert process.wait(60) == 1  # one query could not be answered
    os.close(ours)


def test_results_are_saved_as_clips_and_drawn(capsys, videos, model, tmp_path) -> None:
    write_video(videos / "mpeg.avi", 7)
    with av.open(str(videos / "vp8.webm"), "w") as output, av.open(str(videos / "0.mp4")) as source:
        stream = output.add_stream("libvpx", rate=6)
        stream.width = stream.height = 32
        for frame in source.decode(video=0):
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    common = ("search", videos, "a fox", "--model", model, "--json")
    code, said, err = run(capsys, *common, "--save-clips", out, "--sheet", sheet)
    results = json.loads(said)["results"]
    assert code == 1 and re.search(r"failed: .*vp8\.webm: .*mp4 cannot hold its codec vp8\. .*--exact", err)
    for result in results:
        stem = Path(result["path"]).stem
        if stem == "vp8":
            assert "clip" not in result
        elif stem != "mpeg":
            assert result["clip"] == str(out / f"{result['rank']:02d}_{stem}.mp4")
            assert (decode(result["clip"]).pixels == decode(result["path"]).pixels).all()
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width > 1000
        assert len({picture.getpixel((x, 150)) for x in range(80, 450)}) > 20  # frames are there
    code, said, err = run(capsys, *common, "--save-clips", out)
    assert (code, said) == (1, "") and "the file exists already" in err
    code, said, _ = run(capsys, *common, "--save-clips", tmp_path / "exact", "--exact")
    assert code == 0 and all(Path(result["clip"]).is_file() for result in json.loads(said)["results"])


def test_moments_have_times_in_names_tables_and_pictures(capsys, film, tmp_path) -> None:
    path, scenes = film
    results = [
        SearchResult(rank, path, 1.0, 0.5, 0.9, scene["start"], scene["end"]) for rank, scene in enumerate(scenes, 1)
    ]
    whole = SearchResult(5, path, 0.1, 0.1)
    assert clip_name(whole) == "05_00000.mp4"
    assert re.fullmatch(r"02_00000_00\.00\.0\d-00\.00\.0\d\.mp4", clip_name(results[1]))
    files, failed = save_clips(results, tmp_path / "clips", exact=True)
    assert failed == [] and list(files) == [1, 2, 3, 4]
    for result in results:
        shown = decode(files[result.rank])
        assert shown.info.duration == pytest.approx(result.end - result.start, abs=1e-3)
        first = round(result.start * 12)
        expected = decode(path, list(range(first, first + shown.info.num_frames))).pixels
        assert shown.info.num_frames == round((result.end - result.start) * 12)
        assert (shown.pixels.float() - expected.float()).abs().mean() < 6
    with pytest.raises(CutError, match="exists already"):
        save_clips(results[3:], tmp_path / "clips")
    print_table([*results, whole])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "match", "similarity", "time", "video"]
    assert lines[1].split()[3].startswith("00:00:00-00:00:0") and lines[5].split()[3] == "-"
    draw_results(tmp_path / "sheet.png", "a query", results)
    with Image.open(tmp_path / "sheet.png") as picture:
        # the first frame of the first and of the second moment are of different scenes
        assert picture.getpixel((70, 115)) != picture.getpixel((506, 115))


@pytest.mark.slow
def test_ask_about_a_moment(capsys, film) -> None:
    path, scenes = film
    whole = json.loads(run(capsys, "ask", path, "what happens?", "--json")[1])
    assert (whole["start"], whole["end"]) == (None, None) and "best" not in whole
    code, out, _ = run(capsys, "ask", path, "what happens?", "--at", "0:01-0:02", "--json")
    moment = json.loads(out)
    assert (code, moment["start"], moment["end"], moment["video"]) == (0, 1, 2, str(path))
    assert moment["answers"] != whole["answers"]
    code, out, _ = run(capsys, "ask", f"{path}@0:01-0:02", "what happens?", "--json")
    assert (code, json.loads(out)["answers"]) == (0, moment["answers"])
    text = scenes[2]["text"]
    code, out, _ = run(capsys, "ask", path, "what happens?", "--best", text, "--json")
    best = json.loads(out)
    assert code == 0 and best["best"] == text
    assert best["start"] == pytest.approx(scenes[2]["start"], abs=0.3)
    assert best["end"] == pytest.approx(scenes[2]["end"], abs=0.3)
    code, out, _ = run(capsys, "ask", path, "what happens?", "--best", text)
    assert re.match(rf"at 00:00:0\d-00:00:\d\d, the best match for {text!r} \(\d+\.\d%\)", out.splitlines()[0])
    for at, said in (("2-1", "does not end after"), ("soon", "not a span"), ("100-200", "does not lie in it")):
        code, out, err = run(capsys, "ask", path, "what?", "--at", at)
        assert (code, out) == (1, "") and said in err.splitlines()[-1]


def test_label(capsys, film, tmp_path) -> None:
    path, scenes = film
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(scene["text"] for scene in scenes) + "\n\n", "utf-8")
    (tmp_path / "broken.mp4").write_text("no video")
    code, out, _ = run(capsys, "label", path, tmp_path / "broken.mp4", "--labels", labels, "--top", 2, "--json")
    found = json.loads(out)
    [whole] = found["results"]
    assert code == 1 and [one["path"] for one in found["failed"]] == [str(tmp_path / "broken.mp4")]
    assert (whole["path"], whole["start"], len(whole["labels"])) == (str(path), None, 2)
    assert whole["labels"][0]["label"] in [scene["text"] for scene in scenes]
    code, out, _ = run(capsys, "label", path, "--labels", labels, "--template", "a video of {}")
    assert code == 0 and re.match(r"- .*00000\.mp4  .* \d+\.\d%\n$", out)
    labels.write_text("\n")
    assert "holds no label" in run(capsys, "label", path, "--labels", labels)[2]
    labels.write_text("a dog\na dog\n")
    assert "'a dog' occurs twice" in run(capsys, "label", path, "--labels", labels)[2]
    labels.write_text("a dog\n")
    assert "must have {} once" in run(capsys, "label", path, "--labels", labels, "--template", "a video")[2]


def test_videos_that_cannot_be_read_any_more_leave_the_other_results(capsys, videos, model, tmp_path) -> None:
    """A pipe would wait for ever, and a made-up index names moments that no video has."""
    write_video(videos / "film.mp4", seed=9, frames=240)
    write_video(videos / "pipe.mp4", seed=8)
    write_video(videos / "gone.mp4", seed=7)
    index = tmp_path / "index"
    assert run(capsys, "index", videos, "--output", index, "--model", model)[0] == 0
    (videos / "gone.mp4").unlink()
    (videos / "pipe.mp4").unlink()
    os.mkfifo(videos / "pipe.mp4")
    [file] = index.glob("shard-*")
    with safe_open(file, framework="pt") as shard:
        listed = json.loads(shard.metadata()["videos"])
    for entry in listed:
        if len(entry) == 6:
            entry[3:5] = entry[3] + 5e8, entry[4] + 5e8
    save_file(load_file(file), file, {"videos": json.dumps(listed)})
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    code, said, err = run(capsys, "search", index, "a fox", "--json", "--save-clips", out, "--sheet", sheet)
    answer = json.loads(said)
    names = {Path(result["path"]).name: "clip" in result for result in answer["results"]}
    expected = {path.name: True for path in videos.glob("*.mp4")}
    assert code == 1 and names == expected | {"film.mp4": False, "pipe.mp4": False, "gone.mp4": False}
    reasons = {Path(one["path"]).name: one["reason"] for one in answer["failed"]}
    assert reasons.keys() == {"film.mp4", "pipe.mp4", "gone.mp4"} and "does not lie in it" in reasons["film.mp4"]
    assert "is no file. Index its folder again" in reasons["pipe.mp4"] == reasons["gone.mp4"]
    assert sheet.stat().st_size > 10_000 and all(f"{name}: " in err for name in reasons)
