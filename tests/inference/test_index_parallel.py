"""Two real processes build one index, as one alone would."""

import json
from pathlib import Path

import pytest
from fixtures.gallery import load, write_model, write_video
from fixtures.processes import run_together

from alpro_hf.inference.video_index import VideoIndex


def build(arguments: list[str]) -> dict:
    done = run_together(2, ["-m", "alpro_hf", "index", *arguments, "--json"])
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_processes_make_the_index_of_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "retrieval")
    folder, index = tmp_path / "videos", tmp_path / "index"
    clips = [write_video(folder / f"{i}.mp4", i, frames=4 + i) for i in range(5)]
    (folder / "broken.mp4").write_bytes(b"not a video")
    arguments = [str(folder), "--output", str(index), "--model", str(model), "--shard-size", "2"]
    frames = ["--num-frames", "3", "--size", "24", "--dtype", "float32"]
    first = build([*arguments, *frames])
    assert [first["videos"], first["indexed"], first["unchanged"]] == [5, 5, 0]
    assert [Path(failure["path"]).name for failure in first["failed"]] == ["broken.mp4"]

    clips.append(write_video(folder / "new.mp4", 9, frames=6))
    write_video(clips[1], seed=77, frames=8)
    second = build(arguments)  # the index notes its frames and its data type
    assert [second["num_frames"], second["size"], second["dtype"]] == [3, 24, "float32"]
    assert [second["videos"], second["indexed"], second["unchanged"]] == [6, 2, 4]
    assert not list(index.glob("part-*/index.json"))

    trained = load(model, "retrieval")
    together = VideoIndex.load(index, *trained).search("a fox runs", rerank=6)
    alone = VideoIndex.build(*trained, clips, progress=False, num_frames=3, size=24).search("a fox runs", rerank=6)
    assert [result.path for result in together] == [result.path for result in alone]
    for found, expected in zip(together, alone, strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-5)
