"""Moments of films: the numbers of a result folder against brute force and against the module for `evaluate`."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.processes import environment, run_together
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

import alpro_hf
from alpro_hf.cli.main import main
from alpro_hf.data.load_rows import load_rows
from alpro_hf.data.windows import WindowSettings, stream_windows
from alpro_hf.evaluation.compare import compare_results
from alpro_hf.evaluation.moments import best_moments, moment_row
from alpro_hf.evaluation.results import read_predictions, read_results, row_metrics
from alpro_hf.evaluation.run import Evaluation, EvaluationError, evaluate
from alpro_hf.loading import load_model
from alpro_hf.sprites.films import write_films

METRIC = Path(alpro_hf.__file__).parent / "metrics" / "video_moment_retrieval" / "video_moment_retrieval.py"
LENGTHS = (3.0, 1.5)


@pytest.fixture(autouse=True)
def quiet_library():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def metric() -> Any:
    """The file that works alone on the Hub, as a module."""
    spec = importlib.util.spec_from_file_location("video_moment_retrieval", METRIC)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    return write_films(folder, "test", 3, scenes=(4, 6), seconds=(1.0, 3.0), size=64, workers=1, progress=False)


@pytest.fixture(scope="module")
def results(films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of results of the bundled model, by gallery."""
    folder = tmp_path_factory.mktemp("results")
    for gallery in ("own", "all"):
        options = ["--data", f"table:{films / 'moments.jsonl'}", "--gallery", gallery, "--draws", "50"]
        argv = [
            "evaluate",
            "--task",
            "moments",
            *options,
            "--window",
            "3",
            "1.5",
            "--no-cuts",
            "--output",
            str(folder / gallery),
        ]
        assert main(argv) == 0
    return {gallery: folder / gallery for gallery in ("own", "all")}


def as_moments(rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Predictions and references of the metric, from rows of results."""
    found = [[{key: moment[key] for key in ("video", "start", "end")} for moment in row["moments"]] for row in rows]
    right = [[{"video": row["video"], "start": start, "end": end} for start, end in row["windows"]] for row in rows]
    return found, right


@pytest.mark.slow
@pytest.mark.parametrize("gallery", ["own", "all"])
def test_the_result_equals_brute_force(films: Path, results: dict[str, Path], gallery: str, metric: Any) -> None:
    """Every film is cut, encoded and searched once more here, a window at a time."""
    rows = list(load_rows(f"table:{films / 'moments.jsonl'}", "moments"))
    model, processor = load_model("retrieval", "bundled")
    size, frames = dict(processor.video_processor.size), processor.video_processor.num_frames
    windows = []
    for video in sorted({row["video"] for row in rows}):
        settings = WindowSettings(LENGTHS, cuts=None)
        for window in stream_windows(video, settings, frames, height=size["height"], width=size["width"]):
            pixels = processor.video_processor([window.pixels], do_sample_frames=False, return_tensors="pt")
            with torch.no_grad():
                embed = model.alpro.get_video_features(pixels["pixel_values_videos"]).pooler_output[0]
            windows.append((video, window.start, window.end, embed))
    found = []
    for row in rows:
        with torch.no_grad():
            text = model.alpro.get_text_features(**processor(text=[row["text"]], return_tensors="pt")).pooler_output[0]
        ranked = sorted(
            (one for one in windows if gallery == "all" or one[0] == row["video"]),
            key=lambda one: -float(one[3] @ text),
        )
        kept: list[Any] = []
        for video, start, end, _ in ranked:
            others = [one for one in kept if one["video"] == video]
            if all(metric.temporal_iou(start, end, one["start"], one["end"]) <= 0.5 for one in others):
                kept.append({"video": video, "start": start, "end": end})
        found.append(kept)
    right = [[{"video": row["video"], "start": a, "end": b} for a, b in row["windows"]] for row in rows]
    expected = metric.moment_metrics(found, right)
    written = read_results(results[gallery])
    assert written.metrics == pytest.approx({name: expected[name] for name in written.metrics})
    assert {"r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "r5_iou_0.5", "mean_iou", "video_r1"} <= set(written.metrics)
    assert set(written.intervals) == set(written.metrics)
    for name, (low, high) in written.intervals.items():
        assert low <= written.metrics[name] <= high
    # the model finds what chance does not: the numbers are of something
    assert written.metrics["r1_iou_0.5"] > 30

    predictions = read_predictions(results[gallery])
    assert [row["query"] for row in predictions] == [row["text"] for row in rows]
    for row, kept in zip(predictions, found, strict=True):
        assert [one["start"] for one in row["moments"]] == pytest.approx([one["start"] for one in kept[:10]])
    again = metric.moment_metrics(*as_moments(predictions))
    assert written.metrics == pytest.approx({name: again[name] for name in written.metrics})
    assert written.protocol["gallery"] == gallery and written.protocol["name"] == "vtc"
    assert written.protocol["windows"] == [3.0, 1.5] and written.protocol["stride"] == 1.5
    assert written.data["windows"] == len(windows) and written.data["queries"] == len(rows)
    assert (results[gallery] / "overlaps.png").read_bytes().startswith(b"\x89PNG")


def test_two_results_are_compared(results: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    differences = compare_results(results["own"], results["all"], n=50)
    own, everywhere = read_results(results["own"]).metrics, read_results(results["all"]).metrics
    for name, difference in differences.items():
        assert (difference.a, difference.b) == pytest.approx((own[name], everywhere[name]))
    assert own["video_r1"] == 100 and differences["video_r1"].difference <= 0
    assert main(["compare", str(results["own"]), str(results["all"]), "--draws", "20"]) == 0
    out, err = capsys.readouterr()
    assert "gallery own" in out and "gallery all" in out and "r1_iou_0.5" in out
    assert "the protocols differ" in err


@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_rows_equal_those_of_the_module(seed: int, metric: Any) -> None:
    rng = np.random.default_rng(seed)

    def moment(steps: int) -> tuple[str, float, float]:
        start, length = rng.integers(0, steps, 2) / 2  # halves, so that overlaps of exactly 0.5 occur
        return f"video {rng.integers(3)}", float(start), float(start + length)

    rows = []
    for query in range(30):
        video, *_ = moment(9)
        windows = [list(moment(9)[1:]) for _ in range(rng.integers(1, 4))]
        found = [dict(zip(("video", "start", "end"), moment(9), strict=True)) for _ in range(rng.integers(0, 8))]
        rows.append(moment_row(f"query {query}", video, windows, found))
    expected = metric.moment_metrics(*as_moments(rows))
    computed = {name: one.statistic(one.values) for name, one in row_metrics(rows).items()}
    assert computed == pytest.approx({name: expected[name] for name in computed})
    for row in rows:
        reached = [rank for rank, one in enumerate(row["moments"], start=1) if one["iou"] >= 0.5]
        assert row["rank"] == (reached[0] if reached else None)


def test_overlapping_windows_of_one_video_are_left_out() -> None:
    spans = [("a", 0.0, 4.0), ("a", 1.0, 5.0), ("b", 1.0, 5.0), ("a", 2.0, 6.0), ("a", 0.0, 4.0)]
    # 0 and 1 overlap by 3/5, 1 and 3 by 3/5, 0 and 3 by 1/3; 4 is 0 again
    assert best_moments(torch.tensor([0.5, 0.9, 0.8, 0.7, 0.6]), spans) == [1, 2]
    assert best_moments(torch.tensor([0.9, 0.5, 0.8, 0.7, 0.9]), spans) == [0, 2, 3]
    # many windows in one place before the next: the search goes on until it has as many as were asked for
    spans = [("a", 0.0, 4.0)] * 100 + [("a", 10.0, 14.0)] + [("a", 0.0, 4.0)] * 500 + [("a", 20.0, 24.0)]
    assert best_moments(torch.arange(len(spans), 0.0, -1.0), spans, top=3) == [0, 100, 601]


def test_a_damaged_film_is_named_and_its_rows_are_left_out(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (films / "moments.jsonl").read_text().splitlines()]
    (tmp_path / "films").mkdir()
    for name in ("00000.mp4", "00001.mp4"):
        content = (films / "films" / name).read_bytes()
        (tmp_path / "films" / name).write_bytes(content if name == "00000.mp4" else content[:500])
    (tmp_path / "moments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", f"table:{tmp_path / 'moments.jsonl'}", "--window", "3", "--no-plot", "--json"]
    argv = ["evaluate", "--task", "moments", *options, "--draws", "10", "--output", str(tmp_path / "out")]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    whole = [row for row in rows if row["video"] == "films/00000.mp4"]
    assert json.loads(out)["data"]["queries"] == len(whole) == len(read_predictions(tmp_path / "out"))
    assert "failed: films/00001.mp4" in err
    # other moments are other data, which cannot be compared
    rows[0]["end"] += 0.5
    (tmp_path / "moments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*argv, "--overwrite"]) == 1
    assert json.loads(capsys.readouterr().out)["data"]["fingerprint"] != json.loads(out)["data"]["fingerprint"]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(films: Path, results: dict[str, Path], tmp_path: Path) -> None:
    options = ["--data", f"table:{films / 'moments.jsonl'}", "--gallery", "all", "--no-cuts", "--draws", "50"]
    argv = ["-m", "alpro_hf", "evaluate", "--task", "moments", *options, "--window", "3", "1.5"]
    variables = environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS=str(torch.get_num_threads()))
    done = run_together(2, [*argv, "--output", str(tmp_path)], env=variables)
    assert done.returncode == 0, done.stderr
    assert read_predictions(tmp_path) == read_predictions(results["all"])
    one, two = read_results(results["all"]), read_results(tmp_path)
    assert (one.details["run"]["processes"], two.details["run"]["processes"]) == (1, 2)
    assert (one.metrics, one.intervals, one.data) == (two.metrics, two.intervals, two.data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "rerank"}, "protocol.*belongs to retrieval; moments are ranked by similarity"),
        ({"workers": 2}, "workers"),
        ({"window": [0]}, "window.*length is 0"),
        ({"window": []}, "window.*empty"),
        ({"window": [2.0], "stride": 3.0}, "stride is 3.0 s and the length 2.0 s"),
        ({"stride": float("nan")}, "stride is nan"),
        ({"task": "retrieval", "window": [2.0]}, "window.*belongs to moments"),
        ({"task": "qa", "gallery": "all"}, "gallery.*belongs to moments"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(Evaluation(**{"task": "moments", "data": "x.jsonl", "output": tmp_path / "out", **settings}))
    with pytest.raises(StrictDataclassError, match="gallery"):
        Evaluation(task="moments", data="x", output=tmp_path, gallery="some")  # type: ignore[arg-type]
