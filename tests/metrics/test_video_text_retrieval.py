"""The metric, loaded from its folder: against the reference's numbers, the package's own, and brute force."""

import json
import re
import runpy
import sys
import tracemalloc
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import alpro_hf
from alpro_hf.evaluation.metrics import retrieval_metrics

FOLDER = Path(alpro_hf.__file__).parent / "metrics" / "video_text_retrieval"
REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "retrieval_metrics.json").read_text())


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def functions(metric):
    """The module as `evaluate` imported it."""
    return sys.modules[type(metric).__module__]


def brute_force(scores, text_to_video, ks=(1, 5, 10, 50)):
    """Average the rank over the orders in which equal scores may come: the first and the last place of each."""
    texts, videos = len(scores), len(scores[0])
    ranks = {"t2v": [], "v2t": []}
    for text, own in enumerate(text_to_video):
        others = [scores[text][video] for video in range(videos) if video != own]
        ranks["t2v"].append(expected_place(scores[text][own], others))
    for video in sorted(set(text_to_video)):
        own = max(scores[text][video] for text in range(texts) if text_to_video[text] == video)
        others = [scores[text][video] for text in range(texts) if text_to_video[text] != video]
        ranks["v2t"].append(expected_place(own, others))
    metrics = {}
    for direction, places in ranks.items():
        metrics |= {f"{direction}_r{k}": 100 * sum(place <= k for place in places) / len(places) for k in ks}
        metrics[f"{direction}_median_rank"] = np.median(places)
        metrics[f"{direction}_mean_rank"] = np.mean(places)
    return metrics


def expected_place(own, others):
    first = 1 + sum(other > own for other in others)
    last = first + sum(other == own for other in others)
    return (first + last) / 2


@st.composite
def cases(draw, values):
    """A matrix with rows of `values` for texts and videos, and targets; some videos without a text."""
    texts, videos = draw(st.integers(1, 14)), draw(st.integers(1, 9))
    width = draw(st.integers(1, 4))
    return (
        draw(arrays(np.float64, (texts, width), elements=values)),
        draw(arrays(np.float64, (videos, width), elements=values)),
        draw(st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts)),
    )


SMALL = st.integers(-2, 2).map(float)  # few different products: many ties, and no rounding


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{len(case['scores'])} pairs")
def test_equals_the_reference(metric, case):
    result = metric.compute(predictions=case["scores"], references=range(len(case["scores"])))
    assert {key: result[key] for key in case["metrics"]} == pytest.approx(case["metrics"])
    assert set(result) - set(case["metrics"]) == {"t2v_r50", "v2t_r50"}


@settings(max_examples=150, deadline=None)
@given(case=cases(SMALL), chunk_size=st.integers(1, 16))
def test_equals_brute_force_and_the_package_with_ties(functions, case, chunk_size):
    texts, videos, targets = case
    scores = texts @ videos.T
    expected = brute_force(scores.tolist(), targets)
    from_scores = functions.retrieval_metrics_of_scores(scores, targets, chunk_size=chunk_size)
    from_embeddings = functions.retrieval_metrics_of_embeddings(texts, videos, targets, chunk_size=chunk_size)
    assert from_scores == pytest.approx(expected)
    assert from_embeddings == from_scores
    package = retrieval_metrics(scores, targets)
    assert {key: from_scores[key] for key in package} == pytest.approx(package)


@settings(max_examples=60, deadline=None)
@given(case=cases(st.floats(-1, 1, width=32)), copies=st.integers(1, 6))
def test_equal_embeddings_tie_wherever_they_stand(functions, case, copies):
    """A gallery that holds each video several times: the copies share the places, and a hit at 1 is impossible."""
    texts, videos, targets = case
    scores = (texts @ videos.T).astype(np.float32)
    once = functions.retrieval_metrics_of_embeddings(texts, np.concatenate([videos] * copies), targets, chunk_size=3)
    again = functions.retrieval_metrics_of_scores(np.concatenate([scores] * copies, axis=1), targets)
    assert once["t2v_mean_rank"] == pytest.approx(again["t2v_mean_rank"])
    assert copies == 1 or once["t2v_r1"] == 0


def test_directions_scored_differently(metric):
    rng = np.random.default_rng(0)
    scores, scores_v2t, targets = rng.random((12, 5)), rng.random((12, 5)), rng.integers(0, 5, 12)
    result = metric.compute(predictions=scores, references=targets, scores_v2t=scores_v2t)
    package = retrieval_metrics(scores, targets, scores_v2t)
    assert {key: result[key] for key in package} == pytest.approx(package)
    other = metric.compute(predictions=scores_v2t, references=targets)
    assert [result[key] for key in result if key[0] == "v"] == [other[key] for key in other if key[0] == "v"]


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, list])
def test_takes_arrays_tensors_and_lists(metric, convert):
    scores = np.random.default_rng(1).random((6, 6)).tolist()
    result = metric.compute(predictions=convert(scores), references=convert(range(6)))
    assert result == pytest.approx(brute_force(scores, range(6)))


def test_rows_added_in_parts_are_ranked_together(metric):
    scores = np.random.default_rng(2).random((7, 4))
    targets = [0, 1, 2, 3, 0, 1, 2]
    metric.add_batch(predictions=scores[:4], references=targets[:4])
    metric.add_batch(predictions=scores[4:6], references=targets[4:6])
    metric.add(prediction=scores[6], reference=targets[6])
    assert metric.compute(recall_at=(2, 3)) == pytest.approx(brute_force(scores, targets, ks=(2, 3)))


def test_embeddings_may_be_paired_one_to_one_and_of_low_precision(metric):
    rng = np.random.default_rng(3)
    videos = rng.standard_normal((30, 8)).astype(np.float16)
    texts = (videos + rng.standard_normal((30, 8))).astype(np.float16)
    scores = texts.astype(np.float64) @ videos.astype(np.float64).T
    result = metric.compute(text_embeddings=texts, video_embeddings=torch.tensor(videos), chunk_size=7)
    assert result == pytest.approx(brute_force(scores, range(30)))


def test_memory_is_that_of_the_chunks(functions):
    """4,000 x 4,000 scores are 64 MB in single precision; a tenth of it must do."""
    rng = np.random.default_rng(4)
    texts, videos = rng.standard_normal((2, 4000, 16), dtype=np.float32)
    tracemalloc.start()
    functions.retrieval_metrics_of_embeddings(texts, videos, chunk_size=256)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6.4e6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": [[1.0, 2.0], [1.0]], "references": [0, 0]}, "different lengths"),
        ({"predictions": [[1.0, 2.0]], "references": [2]}, "2 videos"),
        ({"predictions": [[1.0, 2.0]], "references": [-1]}, "-1"),
        ({"predictions": [[1.0, float("nan")]], "references": [0]}, "NaN"),
        ({"predictions": [[1.0, 2.0]], "references": [0, 1]}, "Mismatch"),
        ({"predictions": [[1.0, 2.0]], "references": [0], "scores_v2t": [[1.0]]}, r"\(1, 1\)"),
        ({"predictions": [[1.0, 2.0]], "references": [0], "chunk_size": 0}, "chunk_size is 0"),
        ({"predictions": [[1.0, 2.0]], "references": [0], "text_to_video": [0]}, "references"),
        ({"text_embeddings": [[1.0]]}, "video_embeddings is missing"),
        ({"text_embeddings": [[1.0]], "video_embeddings": [[1.0], [2.0]]}, "text_to_video"),
        ({"text_embeddings": [[1.0]], "video_embeddings": [[1.0, 2.0]]}, "1 dimensions"),
        ({"text_embeddings": [[1.0]], "video_embeddings": [[1.0]], "text_to_video": [0.5]}, "float64"),
        ({"text_embeddings": [[1.0]], "video_embeddings": [[1.0]], "text_to_video": [0, 0]}, "each of 1 texts"),
        ({"text_embeddings": [1.0], "video_embeddings": [[1.0]]}, r"text_embeddings .*\(1,\)"),
        ({"text_embeddings": [[1.0]], "video_embeddings": [[1.0]], "references": [0]}, "cannot be ranked together"),
    ],
)
def test_refuses(metric, inputs, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)


def test_embeddings_do_not_mix_with_rows_added_before(tmp_path):
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path))
    metric.add(prediction=[1.0], reference=0)
    with pytest.raises(ValueError, match="added before"):
        metric.compute(text_embeddings=[[1.0]], video_embeddings=[[1.0]])


def test_the_examples_of_the_card_print_what_it_shows(metric, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load", lambda name: metric)
    blocks = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for code, shown in blocks:
        exec(code, scope)
        assert capsys.readouterr().out == shown


def test_the_page_computes(monkeypatch):
    gr = pytest.importorskip("gradio")
    app = runpy.run_path(str(FOLDER / "app.py"))
    assert app["compute"](app["SCORES"], app["TARGETS"])["v2t_r1"] == 100
    for scores in ("[[1, 2", "[[1, 2], [3]]", "5"):
        with pytest.raises(gr.Error):
            app["compute"](scores, "[0, 1]")


def test_the_folder_needs_no_more_than_it_names():
    source = (FOLDER / "video_text_retrieval.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names)
    required = set(re.findall(r"^\w+", (FOLDER / "requirements.txt").read_text(), re.MULTILINE))
    assert imported == required


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("[[0.9, 0.1", "[0]", "Scores cannot be read"),
        ("[]", "[0]", "something in it"),
        ("5", "[0]", "must be a list"),
        ("[[0.1],[0.1, 0.2]]", "[0, 0]", "same length"),
        ('[["a"]]', "[0]", "list of numbers"),
        ("[[NaN]]", "[0]", "list of numbers"),
        ("[[0.1]]", "[0.5]", "whole numbers"),
        ("[[0.1]]", "[3]", "number of a column"),
        ("[[0.1]]", "[0, 0]", "1 rows"),
        ("[" * 100_000, "[0]", "cannot be read"),
    ],
)
def test_the_page_says_in_a_sentence_what_is_wrong(page, first, second, said):
    gr = pytest.importorskip("gradio")
    with pytest.raises(gr.Error) as error:
        page["compute"](first, second)
    shown = error.value.message
    assert said in shown and shown.endswith(".")
    assert not re.search("Expecting|Expected format|Traceback", shown)


def test_the_page_shows_few_digits(page):
    found = page["compute"](page["SCORES"], page["TARGETS"])
    assert found and all(value == round(value, 2) for value in found.values())


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    return runpy.run_path(str(FOLDER / "app.py"))
