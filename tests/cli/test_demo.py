"""`alpro demo`: what it prints and draws is what the models say about the gallery."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model
from PIL import Image

import alpro_hf
from alpro_hf.cli.gallery import DemoScores, run_demo
from alpro_hf.inference.index_shards import Manifest, VideoIndexError
from alpro_hf.sprites.world import SpriteWorldError

CLIPS = 20  # more than are re-ranked
NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b(?!\.mp4)")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    folder = tmp_path_factory.mktemp("models")
    return {task: load(write_model(folder / task, task), task) for task in ("retrieval", "qa")}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoScores]:
    output = tmp_path_factory.mktemp("demo")
    return output, run_demo(output, models["retrieval"], models["qa"], clips=CLIPS)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.inference_mode()
def test_scores_are_those_of_the_models(models, finished) -> None:
    gallery, scores = finished[0] / "test", finished[1]
    model, processor = models["retrieval"]
    found = rows(gallery / "retrieval.jsonl")
    videos = processor(videos=[str(gallery / row["video"]) for row in found], return_tensors="pt")
    texts = processor(text=[row["text"] for row in found], return_tensors="pt")
    similarity = model.alpro(**texts, **videos).logits_per_text
    assert scores.clips == len(found) == CLIPS
    assert scores.r1_vtc == (similarity.argmax(dim=1) == torch.arange(CLIPS)).sum()

    model, processor = models["qa"]
    right = total = 0
    for row in rows(gallery / "qa.jsonl"):
        inputs = processor(text=[row["question"]], videos=[str(gallery / row["video"])], return_tensors="pt")
        right += model.config.id2label[model(**inputs).logits.argmax().item()] == row["answer"]
        total += 1
    assert scores.answers["n"] == total
    assert scores.answers["accuracy"] == pytest.approx(100 * right / total)


def test_runs_again_on_what_is_there(models, finished, capsys) -> None:
    output, scores = finished
    stamps = {clip: clip.stat().st_mtime_ns for clip in (output / "test" / "clips").iterdir()}
    (output / "contact-sheet.png").unlink()
    assert run_demo(output, models["retrieval"], models["qa"], clips=CLIPS) == scores
    assert {clip: clip.stat().st_mtime_ns for clip in (output / "test" / "clips").iterdir()} == stamps
    with Image.open(output / "contact-sheet.png") as picture:
        assert picture.width == 1400
        assert picture.height > 1500
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 10_000  # the clips are in it

    out = capsys.readouterr().out
    searches = out.split("\nSearch ")[1:]
    assert len(searches) >= 3
    for search in searches:
        lines = search.splitlines()
        assert lines[1].split() == ["rank", "match", "similarity", "clip", "caption"]
        assert [line.strip("* ").split()[0] for line in lines[2:5]] == ["1", "2", "3"]
        assert lines[5].startswith("  The opposite: ")
    assert f"{scores.r1_vtc / CLIPS:.0%}  of {CLIPS} captions find their clip first" in out
    assert "know a synthetic world of moving pictograms and nothing else" in out
    assert "(never taught)" in out
    assert str(output / "contact-sheet.png") in out


def test_smaller_gallery_in_the_same_folder(models, finished) -> None:
    output, _ = finished
    assert run_demo(output, models["retrieval"], models["qa"], clips=5).clips == 5
    assert len(Manifest.read(output / "index").videos) == 5
    assert run_demo(output, models["retrieval"], models["qa"], clips=CLIPS) == finished[1]


def test_refuses_another_gallery_or_model(models, finished, tmp_path) -> None:
    with pytest.raises(SpriteWorldError, match="seed"):
        run_demo(finished[0], models["retrieval"], models["qa"], clips=CLIPS, seed=1)
    with pytest.raises(SpriteWorldError, match="1001"):
        run_demo(tmp_path, models["retrieval"], models["qa"], clips=1001)
    other = load(write_model(tmp_path / "other", "retrieval", seed=5), "retrieval")
    with pytest.raises(VideoIndexError, match="weights differ"):
        run_demo(finished[0], other, models["qa"], clips=CLIPS)


def test_alpro_demo_with_the_bundled_models(tmp_path) -> None:
    """The whole command, offline."""
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "alpro_hf", "demo", "--output", str(tmp_path / "demo")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    shares = [int(line.split("%")[0]) for line in done.stdout.split("The whole gallery\n")[1].splitlines()[:4]]
    r1_vtc, r1_rerank, opposites, answers = shares
    assert min(r1_vtc, r1_rerank) >= 95  # by chance 3
    assert opposites >= 88
    assert answers >= 78
    assert (tmp_path / "demo" / "contact-sheet.png").stat().st_size > 100_000
    # what the README prints of it; processors differ in the last digit
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    printed = readme.split("alpro demo\n```\n\n```text\n")[1].split("\n```")[0].splitlines()
    said = iter(done.stdout.splitlines())
    for line in filter(None, printed):
        if line == "[...]":
            continue
        found = next((one for one in said if NUMBER.sub("#", one) == NUMBER.sub("#", line)), None)
        assert found is not None, f"the demo prints no line like {line!r}, or not in this place"
        numbers = [[float(number) for number in NUMBER.findall(one)] for one in (line, found)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1), line
