"""A clock that goes back: files from the future and from before 1970, and a process whose clock was set back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.gallery import load, write_model, write_video
from fixtures.processes import environment

from alpro_hf.cli.main import main
from alpro_hf.inference.video_index import VideoIndex

DAY = 86_400 * 10**9
MOMENTS = {"tomorrow": DAY, "in 200 years": 200 * 365 * DAY, "before 1970": -60 * 365 * DAY}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_index_of_clips_of_any_time_resumes_and_sees_changes(model, tmp_path, moment) -> None:
    loaded, at = load(model, "retrieval"), time.time_ns() + MOMENTS[moment]
    clips = [write_video(tmp_path / "videos" / f"{seed}.mp4", seed) for seed in range(2)]
    for clip in clips:
        os.utime(clip, ns=(at, at))
    VideoIndex.build(*loaded, clips[:1], directory=tmp_path / "index", progress=False)
    os.utime(tmp_path / "index" / "index.json", ns=(at, at))
    again = VideoIndex.build(*loaded, clips, directory=tmp_path / "index", progress=False)
    assert again.report.indexed == clips[1:]
    write_video(clips[0], 7)  # a newer clip has an older time
    os.utime(clips[0], ns=(at - DAY, at - DAY))
    again = VideoIndex.build(*loaded, clips, directory=tmp_path / "index", progress=False)
    assert again.report.indexed == clips[:1]
    assert len(VideoIndex.load(tmp_path / "index", *loaded).search("a fox")) == 2


def test_the_cache_of_a_folder_sees_a_clip_of_an_older_time(model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    clip = write_video(tmp_path / "videos" / "0.mp4", 0)
    command = ["search", str(tmp_path / "videos"), "a fox", "--model", str(model), "--rerank", "0", "--json"]
    similarity = []
    for seed in (0, 1, 1):
        write_video(clip, seed)
        moment = time.time_ns() + (2 - seed) * DAY
        os.utime(clip, ns=(moment, moment))
        assert main(command) == 0
        similarity.append(json.loads(capsys.readouterr().out)["results"][0]["similarity"])
    assert similarity[0] != similarity[1] == similarity[2]


BACK = """
import sys, threading, time
back, real, real_ns = 0, time.time, time.time_ns
time.time = lambda: real() - back
time.time_ns = lambda: real_ns() - back * 10**9
import datetime
import alpro_hf.evaluation.results
from alpro_hf.cli.main import main

class Clock(datetime.datetime):  # which asks the system itself
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(time.time(), tz)

alpro_hf.evaluation.results.datetime = Clock

def set_back():
    global back
    back += 86_400

rows, model, results, index, *clips = sys.argv[1:]
evaluate = ["evaluate", "--task", "retrieval", "--model", model, "--data", rows, "--no-plot", "--overwrite"]
for place in (results + "-before", results + "-during", results + "-after"):
    timer = threading.Timer(0.05, set_back)  # in the middle of the second
    if place.endswith("-during"):
        timer.start()
    assert main([*evaluate, "--output", place]) == 0
for number in (1, 2):
    assert main(["index", *clips[:number], "--output", index, "--model", model]) == 0
    set_back()
assert main(["search", index, "a fox", "--rerank", "0"]) == 0
"""


def test_a_clock_that_is_set_back_during_commands(model, tmp_path) -> None:
    """A process evaluates, indexes, resumes and searches while its clock goes back by days."""
    clips = [write_video(tmp_path / f"{seed}.mp4", seed) for seed in range(2)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"video": str(clip), "text": f"a fox {clip.stem}"}) + "\n" for clip in clips))
    arguments = [rows, model, tmp_path / "results", tmp_path / "index", *clips]
    command = [sys.executable, "-c", BACK, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    texts = [(tmp_path / f"results-{when}" / "results.json").read_text() for when in ("before", "during", "after")]
    assert len({json.dumps(json.loads(text)["metrics"]) for text in texts}) == 1
    assert not [text for text in texts if '"seconds": -' in text]
    assert len({json.loads(text)["date"][:10] for text in texts}) == 2  # the clock was another
    found = [line for line in done.stdout.splitlines() if line.endswith((clips[0].name, clips[1].name))]
    assert len(found) == 2
