"""Results written and read back; what does not belong together or is damaged is refused."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

import alpro_hf
from alpro_hf.evaluation.metrics import question_answering_metrics, retrieval_metrics
from alpro_hf.evaluation.results import (
    PREDICTIONS,
    RESULTS,
    Results,
    ResultsError,
    data_fingerprint,
    metric_intervals,
    model_source,
    question_rows,
    read_predictions,
    read_results,
    retrieval_rows,
    row_metrics,
    write_results,
)

SCORES = np.random.default_rng(0).integers(0, 9, (30, 8)).astype(np.float32)
TARGETS = np.arange(30) % 7  # video 7 has no caption
ANSWERS = {
    "questions": ["what is it?", "how many?", "what\u2028now?", "who?"],
    "answers": ["fox", "two", "ladle", "owl"],
    "predictions": ["fox", "one", "ladle", "owl"],
    "known_answers": {"fox", "one", "two", "owl"},
    "answer_types": ["what", "how many", "what", None],
    "videos": ["a.mp4", "a.mp4", "b.mp4", "b.mp4"],
}


def expected_rank(own, others):
    return 1 + sum(others > own) + sum(others == own) / 2


def both_directions():
    ranks = [expected_rank(row[t], np.delete(row, t)) for row, t in zip(SCORES, TARGETS, strict=True)]
    queries = range(7)
    best = [SCORES[v == TARGETS, v].max() for v in queries]
    video_ranks = [expected_rank(best[v], SCORES[v != TARGETS, v]) for v in queries]
    names = [f"video{v}.mp4" for v in range(8)]
    captions = [f"caption {i} \u2028 ü" for i in range(30)]
    t2v = retrieval_rows("t2v", SCORES, ranks, range(30), names=names, text_to_video=TARGETS, captions=captions)
    v2t = retrieval_rows("v2t", torch.tensor(SCORES.T[:7]), torch.tensor(video_ranks), queries, names=names)
    return [*t2v, *v2t]


def results(**changes):
    found = Results(
        task="retrieval",
        protocol={"name": "rerank", "rerank_k": 16},
        metrics={"t2v_r1": 33.9, "n": 30},
        model={"name": "some/model", "revision": "0123abc"},
        data={"fingerprint": data_fingerprint([{"video": "a.mp4", "text": "a"}]), "rows": 1},
        intervals={"t2v_r1": (31.0, 36.5)},
        command=["alpro", "evaluate"],
    )
    return replace(found, **changes)


def test_what_was_written_is_read(tmp_path):
    rows = both_directions()
    path = write_results(tmp_path / "new" / "folder", results(), iter(rows))
    assert path == tmp_path / "new" / "folder" / RESULTS
    assert sorted(os.listdir(path.parent)) == [PREDICTIONS, RESULTS]
    for given in (path, path.parent, str(path)):
        read = read_results(given)
        assert replace(read, predictions={}) == replace(results(), date=read.date)
        assert read_predictions(given) == rows
    assert read.predictions["rows"] == len(rows)
    assert read.versions["torch"] == torch.__version__
    assert read.versions["alpro_hf"] == alpro_hf.__version__
    assert set(read.versions) == {"alpro_hf", "torch", "transformers", "av", "python"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", read.date)


def test_retrieval_rows_name_what_was_found():
    rows = both_directions()
    first, last = rows[0], rows[-1]
    assert (first["text"], first["video"], first["caption"]) == (0, "video0.mp4", "caption 0 \u2028 ü")
    order = sorted(range(8), key=lambda video: (-SCORES[0, video], video))[:5]
    assert first["top"] == [{"video": f"video{video}.mp4", "score": float(SCORES[0, video])} for video in order]
    assert last["direction"] == "v2t"
    assert last["video"] == "video6.mp4"
    assert [found["score"] for found in last["top"]] == sorted(SCORES[:, 6], reverse=True)[:5]
    assert len({found["text"] for found in last["top"]}) == 5


def test_metrics_of_retrieval_rows_are_those_of_the_scores():
    expected = retrieval_metrics(SCORES, TARGETS)
    found = {name: metric.statistic(metric.values) for name, metric in row_metrics(both_directions()).items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) - set(expected) == {"t2v_r50", "v2t_r50"}


def test_metrics_of_question_rows_are_those_of_the_answers():
    rows = list(question_rows(**ANSWERS))
    assert rows[2] == {
        "question": "what\u2028now?", "answer": "ladle", "prediction": "ladle",
        "video": "b.mp4", "answer_type": "what", "correct": False,
    }  # fmt: skip
    expected = question_answering_metrics(
        ANSWERS["predictions"], ANSWERS["answers"], ANSWERS["answer_types"], ANSWERS["known_answers"]
    )
    found = {name: metric.statistic(metric.values) for name, metric in row_metrics(rows).items()}
    assert found == {name: value for name, value in expected.items() if name.startswith("accuracy")}


def test_intervals_hold_their_metrics_and_group_by_video():
    rows = both_directions()
    intervals = metric_intervals(rows, n=200)
    for name, metric in row_metrics(rows).items():
        low, high = intervals[name]
        assert low <= metric.statistic(metric.values) <= high
        assert (metric.groups is None) == name.startswith("v2t")
    assert len(set(row_metrics(rows)["t2v_r1"].groups)) == 7
    assert row_metrics(list(question_rows(**ANSWERS)))["accuracy"].groups.tolist() == ANSWERS["videos"]
    assert row_metrics(list(question_rows(**{**ANSWERS, "videos": None})))["accuracy"].groups is None


def test_only_rows_that_may_lack_a_rank_are_read_without_one(tmp_path):
    """An answer that the model does not know, or a moment that was not found, has none."""
    moment = {"query": "a fox", "video": "a", "iou": 0.0, "iou_at_5": 0.0, "video_found": False, "rank": None}
    answer = {"question": "what?", "answer": "owl", "prediction": "fox", "correct": False, "rank": None}
    write_results(tmp_path, results(), [moment, answer])
    assert read_predictions(tmp_path) == [moment, answer]
    for row, message in (
        ({"direction": "v2t", "video": "a", "rank": None}, "line 1: the row lacks rank"),
        ({name: value for name, value in moment.items() if name != "video"}, "line 1: the row lacks video"),
        (moment | {"iou": "much"}, "line 1, field 'iou'"),
        (moment | {"video_found": 1}, "line 1, field 'video_found'"),
    ):
        write_results(tmp_path, results(), [row])
        with pytest.raises(ResultsError, match=message):
            read_predictions(tmp_path)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="received 30, 30 and 8"):
        next(retrieval_rows("v2t", SCORES, np.ones(30), range(8)))
    with pytest.raises(ValueError, match="text_to_video"):
        next(retrieval_rows("t2v", SCORES, np.ones(30), range(30)))
    with pytest.raises(ValueError, match="shorter"):
        list(question_rows(["what?", "who?"], ["fox", "owl"], ["fox"], {"fox"}))


@pytest.mark.parametrize("metrics", [{"t2v_r1": float("nan")}, {"t2v_r1": np.float32(3)}, {}, {"t2v_r1": "33.9"}])
def test_metrics_that_are_no_numbers_are_not_written(tmp_path, metrics):
    write_results(tmp_path, results(), [{"direction": "v2t", "video": 0, "rank": 1.0}])
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS, PREDICTIONS)}
    with pytest.raises(ResultsError, match=r"JSON|metrics"):
        write_results(tmp_path, results(metrics=metrics), [])
    assert {name: (tmp_path / name).read_bytes() for name in (RESULTS, PREDICTIONS)} == before


def test_a_row_that_is_no_json_is_named(tmp_path):
    with pytest.raises(ResultsError, match="row 1 of the predictions"):
        write_results(tmp_path, results(), [{"rank": 1.0}, {"rank": float("inf")}])
    assert not (tmp_path / RESULTS).exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"task": "captioning"}, "field 'task': .*captioning"),
        ({"protocol": {}}, "protocol"),
        ({"metrics": None}, "metrics"),
        ({"metrics": {"t2v_r1": True}}, "metrics"),
        ({"model": {"name": "m"}}, "model"),
        ({"data": {"rows": 3}}, "data"),
        ({"intervals": {"t2v_r1": [1]}}, "intervals"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"command": "alpro evaluate"}, "command"),
        ({"date": "yesterday"}, "field 'date': .*yesterday"),
        ({"predictions": {"file": PREDICTIONS}}, "predictions"),
        ({"predictions": {"file": "../x", "rows": 1, "sha256": "0"}}, "predictions"),
    ],
)
def test_damaged_results_are_refused_with_the_field(tmp_path, damage, message):
    path = write_results(tmp_path, results(), [{"rank": 1.0}])
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ResultsError, match=message):
        read_results(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_other_files_are_no_results(tmp_path, content):
    (tmp_path / RESULTS).write_text(content)
    with pytest.raises(ResultsError, match=RESULTS):
        read_results(tmp_path)


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=RESULTS):
        read_results(tmp_path)


def test_predictions_of_another_evaluation_are_noticed(tmp_path):
    path = write_results(tmp_path, results(), [{"rank": 1.0}])
    (tmp_path / PREDICTIONS).write_text('{"rank": 2.0}\n')
    with pytest.raises(ResultsError, match="does not belong"):
        read_predictions(path)


def test_fingerprints_tell_data_apart_and_not_folders():
    rows = [{"video": "data/a.mp4", "text": "a fox"}, {"video": "data/b.mp4", "text": "an owl"}]
    fingerprint = data_fingerprint(rows)
    assert fingerprint.startswith("sha256:")
    assert fingerprint == data_fingerprint(Dataset.from_list(rows))
    assert fingerprint == data_fingerprint(
        [{**row, "video": Path("/other") / row["video"], "index": 3} for row in rows]
    )
    assert fingerprint == data_fingerprint([{**row, "video": {"path": row["video"], "bytes": b"x"}} for row in rows])
    others = [rows[::-1], rows[:1], [rows[0], {**rows[1], "text": "an ow"}], [rows[0], {**rows[1], "video": "c.mp4"}]]
    others.append([{**row, "answer": "fox"} for row in rows])
    others.append([{**row, "video": {"path": None, "bytes": b"x"}} for row in rows])
    assert len({fingerprint, *map(data_fingerprint, others)}) == 7
    with pytest.raises(TypeError, match=r"row 1, field 'video' is of type Tensor.*decode=False"):
        data_fingerprint([rows[0], {**rows[1], "video": torch.zeros(1)}])


def test_the_revision_of_a_folder_is_that_of_its_weights(tmp_path):
    assert model_source("some/model", "0123abc") == {"name": "some/model", "revision": "0123abc"}
    revisions = set()
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        source = model_source(str(folder))
        assert source["name"] == str(folder)
        revisions.add(source["revision"])
    assert len(revisions) == 2
