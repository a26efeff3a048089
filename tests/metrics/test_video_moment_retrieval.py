"""The metric of moments, loaded from its folder: against brute force, and with inputs that make no sense."""

import re
import runpy
import sys
from pathlib import Path

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alpro_hf

FOLDER = Path(alpro_hf.__file__).parent / "metrics" / "video_moment_retrieval"

_TIMES = st.tuples(st.integers(0, 12), st.integers(0, 6))
_MOMENTS = st.tuples(st.sampled_from("ab"), _TIMES).map(
    lambda drawn: {"video": drawn[0], "start": drawn[1][0] / 2, "end": (drawn[1][0] + drawn[1][1]) / 2}
)


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def halves(moment):
    """The moment as a set of half seconds, to count overlaps without the formula."""
    return {(moment["video"], i) for i in range(round(2 * moment["start"]), round(2 * moment["end"]))}


def brute_force(predictions, references):
    def overlap(one, other):
        both = halves(one) | halves(other)
        if not both:
            return float(one == other)
        if one["video"] != other["video"]:
            return 0.0
        # half seconds between two moments that do not touch are no overlap either way
        return len(halves(one) & halves(other)) / len(both)

    result = {}
    for k in (1, 5):
        best = [
            max((overlap(one, other) for one in found[:k] for other in right), default=0.0)
            for found, right in zip(predictions, references, strict=True)
        ]
        for threshold in (0.3, 0.5, 0.7):
            result[f"r{k}_iou_{threshold}"] = 100 * sum(value >= threshold for value in best) / len(best)
        hits = [
            any(one["video"] == other["video"] for one in found[:k] for other in right)
            for found, right in zip(predictions, references, strict=True)
        ]
        result[f"video_r{k}"] = 100 * sum(hits) / len(hits)
        if k == 1:
            result["mean_iou"] = 100 * sum(best) / len(best)
    return result


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(_MOMENTS, max_size=6), st.lists(_MOMENTS, min_size=1, max_size=3)), min_size=1))
def test_random_cases_equal_brute_force(metric, queries):
    predictions, references = [list(part) for part in zip(*queries, strict=True)]
    # the function itself: the metric writes its inputs to a file first, which takes its time
    computed = sys.modules[type(metric).__module__].moment_metrics(predictions, references)
    assert computed == pytest.approx(brute_force(predictions, references))


def test_batches_and_thresholds(metric):
    right = {"video": "a", "start": 0.0, "end": 4.0}
    metric.add_batch(predictions=[[right], []], references=[[right], [right]])
    metric.add(prediction=[{"video": "b", "start": 0.0, "end": 4.0}, {**right, "end": 1.0}], reference=[right])
    result = metric.compute(iou_thresholds=[0.25, 1.0], recall_at=[1, 2])
    third = pytest.approx(100 / 3)
    assert result == {
        "r1_iou_0.25": third,
        "r1_iou_1": third,
        "video_r1": third,
        "r2_iou_0.25": pytest.approx(200 / 3),
        "r2_iou_1": third,
        "video_r2": pytest.approx(200 / 3),
        "mean_iou": third,
    }


def test_the_card_shows_what_its_code_prints(capsys):
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)[:2]
    exec(code.replace('"video_moment_retrieval"', repr(str(FOLDER))), {})
    assert capsys.readouterr().out == printed


MOMENT = {"video": "a", "start": 1.0, "end": 2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": [[]]}, r"references\[0\] is empty"),
        ({"predictions": [[MOMENT, {**MOMENT, "end": 0.5}]]}, r"predictions\[0\]\[1\] of 'a' goes from 1.0 to 0.5"),
        ({"predictions": [[{**MOMENT, "start": float("nan")}]]}, "finite seconds"),
        ({"references": [[{**MOMENT, "end": float("inf")}]]}, "finite seconds"),
        ({"iou_thresholds": [0.0]}, "above 0"),
        ({"iou_thresholds": []}, "above 0"),
        ({"recall_at": [0]}, "ranks of at least 1"),
        ({"predictions": [], "references": []}, "at least one"),
    ],
)
def test_input_without_meaning(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**{"predictions": [[MOMENT]], "references": [[MOMENT]], **arguments})


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("{", "[]", "Predictions cannot be read"),
        ("[[1]]", "[[1]]", "Predictions must hold"),
        ('[[{"video": "a", "start": "x", "end": 2}]]', "[[]]", "two numbers"),
        ('[[{"video": "a", "start": 0, "end": 2}]]', "[[], []]", "1 queries"),
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
    found = page["compute"](page["FOUND"], page["RIGHT"])
    assert found and all(value == round(value, 2) for value in found.values())


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio")
    return runpy.run_path(str(FOLDER / "app.py"))
