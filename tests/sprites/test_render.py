"""Pixels, files and annotations of the sprite world."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import datasets
import numpy as np
import pytest

from alpro_hf.sprites import render as sprite_render
from alpro_hf.sprites.language import ANSWERS
from alpro_hf.sprites.render import frame_times, render, write_clip, write_split
from alpro_hf.sprites.world import (
    BASIC_ACTIONS,
    SPRITES,
    UNSEEN_SPRITES,
    SpriteWorldError,
    draw_scene,
    reversed_scene,
    stage,
)

TIMES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
SMALL = {"size": 32, "num_frames": 6, "progress": False}


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def test_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("world"), "test", 8, workers=1, **SMALL)


def test_the_sheet_has_every_sprite_and_no_empty_tile():
    _, _, places = sprite_render._sheet()
    assert tuple(places) == SPRITES
    for sprite in SPRITES:
        assert np.asarray(sprite_render._tile(sprite, 64))[..., 3].mean() > 25, sprite


def test_render_is_a_pure_function_of_its_arguments():
    scene = draw_scene("train", 0, 1)
    clip = render(scene, TIMES, 64)
    assert clip.shape == (4, 64, 64, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, render(scene, TIMES, 64))
    np.testing.assert_array_equal(clip[2], render(scene, TIMES[2:3], 64)[0])
    assert render(scene, frame_times(9), 50).shape == (9, 50, 50, 3)


@pytest.mark.parametrize("action", BASIC_ACTIONS)
@pytest.mark.parametrize("kind", ["one", "sequence"])
def test_every_action_is_visible_in_four_frames(action, kind):
    other = () if kind == "one" else (("dog", "grow"),)
    for seed in range(5):
        scene = stage((kind, (("fox", action), *other)), random.Random(seed))
        clip = render(scene, TIMES, 64).astype(int)
        steps = [np.abs(after - before).max(-1) > 40 for before, after in itertools.pairwise(clip)]
        assert max(step.mean() for step in steps) > 0.01


@pytest.mark.parametrize("index", range(12))
def test_a_reversed_scene_looks_like_the_clip_backwards(index):
    scene = draw_scene("train", 7, index)
    backward = render(reversed_scene(scene), TIMES, 64)[::-1]
    # Rounding to pixels may fall the other way by one.
    assert np.abs(backward.astype(int) - render(scene, TIMES, 64)).mean() < 1


@pytest.mark.parametrize("size", [64, 160])
def test_a_sprite_is_drawn_where_its_pose_says(size):
    scene = stage(("one", (("tomato", "right"),)), random.Random(3))
    actor = scene.actors[0]
    centres = []
    for frame in render(scene, (0.0, 1.0), size).astype(int):
        red = frame[..., 0] - frame[..., 1:].max(-1) > 80
        centres.append(np.argwhere(red).mean(0)[1] / size)
    assert centres == pytest.approx([actor.x - actor.amount / 2, actor.x + actor.amount / 2], abs=0.04)


def test_a_clip_decodes_to_its_frames(tmp_path):
    scene = draw_scene("test", 0, 5)
    write_clip(tmp_path / "clip.mp4", scene)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (128, 128, 24, 12)
    frames = decoded(tmp_path / "clip.mp4")
    assert frames.shape == (24, 128, 128, 3)
    assert np.abs(frames.astype(int) - render(scene, frame_times(24), 128)).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_split_is_rows_and_clips(test_folder):
    clips = sorted(path.name for path in (test_folder / "clips").iterdir())
    assert clips == [f"{i:05d}.mp4" for i in range(8)] + ["unseen-00000.mp4"]
    retrieval = rows_of(test_folder / "retrieval.jsonl")
    assert [row["video"] for row in retrieval] == [f"clips/{i:05d}.mp4" for i in range(8)]
    assert len({row["text"] for row in retrieval}) == 8
    for row in rows_of(test_folder / "choices.jsonl"):
        assert row.keys() == {"video", "text", "negative", "kind", "pair"} and row["text"] != row["negative"]
    kinds = Counter(row["kind"] for row in rows_of(test_folder / "choices.jsonl"))
    assert kinds["opposite"] == 8 and set(kinds) <= {"opposite", "swapped", "reversed"}
    for index, row in enumerate(rows_of(test_folder / "scenes.jsonl")[:8]):
        scene = draw_scene(row["split"], row["seed"], row["index"])
        assert row["index"] == index and row["look"] == scene.look
    for name in ("retrieval", "qa", "choices", "scenes"):
        assert all((test_folder / row["video"]).is_file() for row in rows_of(test_folder / f"{name}.jsonl"))


def test_a_few_test_answers_are_outside_the_training_list(test_folder):
    rows = rows_of(test_folder / "qa.jsonl")
    outside = [row for row in rows if row["answer"] not in ANSWERS]
    assert 0 < len(outside) < 0.1 * len(rows)
    assert {row["answer"] for row in outside} <= set(UNSEEN_SPRITES)
    assert outside == [row for row in rows if "unseen" in row["video"]]


def test_datasets_reads_every_file(test_folder, tmp_path):
    for name, columns in (
        ("retrieval", {"video", "text"}),
        ("qa", {"video", "question", "answer", "answer_type"}),
        ("choices", {"video", "text", "negative", "kind", "pair"}),
        ("scenes", {"video", "split", "seed", "index", "kind", "roles", "actors", "look"}),
    ):
        file = test_folder / f"{name}.jsonl"
        table = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
        assert set(table.column_names) == columns and len(table) == len(rows_of(file))


def test_writing_again_keeps_finished_clips_and_makes_the_missing(tmp_path):
    folder = write_split(tmp_path, "train", 4, 1, workers=1, **SMALL)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(rows_of(folder / "retrieval.jsonl")) == 16
    kept, lost = folder / "clips" / "00000.mp4", folder / "clips" / "00002.mp4"
    os.utime(kept, (1, 1))
    lost.rename(lost.with_name(".00002.mp4.partial"))
    write_split(tmp_path, "train", 4, 1, workers=1, **SMALL)
    assert kept.stat().st_mtime == 1
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_of_other_clips_is_refused(test_folder):
    with pytest.raises(SpriteWorldError, match="made with seed=0, not seed=5"):
        write_split(test_folder.parent, "test", 8, 5, workers=1, **SMALL)


@pytest.mark.parametrize(
    ("split", "count", "options", "message"),
    [
        ("devel", 4, {}, "split is 'devel'"),
        ("train", None, {}, "count is None for split 'train'"),
        ("test", 1001, {}, "between 1 and 1000"),
        ("test", 4, {"size": 33}, "size is 33"),
        ("test", 4, {"num_frames": 2}, "num_frames is 2"),
        ("test", 4, {"fps": 0}, "fps is 0"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path, split, count, options, message):
    with pytest.raises(SpriteWorldError, match=message):
        write_split(tmp_path, split, count, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_write_what_one_process_writes(tmp_path):
    count = sprite_render.WORTH_PROCESSES
    alone = write_split(tmp_path / "alone", "validation", count, workers=1, **SMALL)
    together = write_split(tmp_path / "together", "validation", count, workers=2, **SMALL)
    written = [path for path in alone.rglob("*.*") if path.is_file()]
    assert len(written) == count + 5
    for path in written:
        assert path.read_bytes() == (together / path.relative_to(alone)).read_bytes()


@pytest.mark.slow
def test_the_script_renders_a_split(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "sprites/render.py"
    options = ["--split", "test-unseen", "--count", "2", "--size", "32", "--num-frames", "4", "--workers", "1"]
    done = subprocess.run([sys.executable, script, tmp_path, *options], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "test-unseen")
    assert "test-unseen: clips" in done.stderr
    assert decoded(tmp_path / "test-unseen" / "clips" / "00001.mp4").shape == (4, 32, 32, 3)
    refused = subprocess.run([sys.executable, script, tmp_path, "--split", "train"], capture_output=True, text=True)
    assert refused.returncode == 2 and "count is None" in refused.stderr
