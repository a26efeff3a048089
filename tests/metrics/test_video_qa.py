"""The metric, loaded from its folder: against brute force and the package's own numbers."""

import re
import runpy
import sys
from pathlib import Path

import evaluate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alpro_hf
from alpro_hf.evaluation.metrics import question_answering_metrics

FOLDER = Path(alpro_hf.__file__).parent / "metrics" / "video_qa"


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_overall_and_by_type(metric):
    result = metric.compute(
        predictions=["fox", "left", "two", "owl", "fox", "fox", "fox", "left"],
        references=["fox", "right", "two", "ladle", "fox", "owl", "fox", "left"],
        answer_types=["what", "which way", "how many", "what", None, "what", "what", "which way"],
        known_answers=["fox", "left", "right", "two", "owl"],
    )
    assert result == {
        "accuracy": 62.5,
        "accuracy_how_many": 100.0,
        "ratio_how_many": 12.5,
        "n_how_many": 1.0,
        "accuracy_what": 50.0,
        "ratio_what": 50.0,
        "n_what": 4.0,
        "accuracy_which_way": 50.0,
        "ratio_which_way": 25.0,
        "n_which_way": 2.0,
        "out_of_list": 1.0,
        "out_of_list_share": 12.5,
        "n": 8.0,
    }


def test_an_answer_out_of_the_list_is_wrong_even_if_predicted(metric):
    right = {"predictions": ["ladle", "fox"], "references": ["ladle", "fox"]}
    assert metric.compute(**right, known_answers=["fox"])["accuracy"] == 50
    assert metric.compute(**right, known_answers=[])["accuracy"] == 0
    assert metric.compute(**right) == {"accuracy": 100.0, "n": 2.0}


ANSWERS = st.sampled_from(["fox", "owl", "two", "", "über"])
QUESTIONS = st.tuples(ANSWERS, ANSWERS, st.sampled_from(["what", "how many", "who", None]))


@settings(max_examples=200, deadline=None)
@given(questions=st.lists(QUESTIONS, min_size=1, max_size=30), known=st.sets(ANSWERS))
def test_equals_counting_and_the_package(metric, questions, known):
    predictions, references, types = map(list, zip(*questions, strict=True))
    function = sys.modules[type(metric).__module__].video_qa_metrics
    result = function(predictions, references, types, known)
    right = [q for q in questions if q[0] == q[1] and q[1] in known]
    assert result["accuracy"] == pytest.approx(100 * len(right) / len(questions))
    for kind in set(types) - {None}:
        of_kind = [q for q in questions if q[2] == kind]
        name = kind.replace(" ", "_")
        assert result[f"accuracy_{name}"] == pytest.approx(100 * sum(q in right for q in of_kind) / len(of_kind))
        assert result[f"ratio_{name}"] == pytest.approx(100 * len(of_kind) / len(questions))
        assert result[f"n_{name}"] == len(of_kind)
    package = question_answering_metrics(predictions, references, types, known)
    assert {key: result[key] for key in package} == package


def test_answers_added_in_parts_count_together(metric):
    metric.add_batch(predictions=["fox", "two"], references=["fox", "three"])
    metric.add(prediction="owl", reference="owl")
    result = metric.compute(answer_types=["what", "how many", "what"])
    assert (result["accuracy"], result["accuracy_what"], result["n"]) == (pytest.approx(200 / 3), 100, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"predictions": ["fox"], "references": ["fox"], "answer_types": ["what", "who"]}, "received 1, 1 and 2"),
        ({"predictions": ["fox", "owl"], "references": ["fox"]}, "Mismatch"),
        ({"predictions": ["fox"], "references": ["fox"], "known_answers": "fox"}, "not the text 'fox'"),
        ({"predictions": [3], "references": ["fox"]}, "format"),
    ],
)
def test_refuses(metric, inputs, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)


def test_the_example_of_the_card_prints_what_it_shows(metric, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load", lambda name: metric)
    [(code, shown)] = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == shown


def test_the_page_computes():
    gr = pytest.importorskip("gradio")
    app = runpy.run_path(str(FOLDER / "app.py"))
    result = app["compute"]([*app["ROWS"], ["", None, ""]], "fox, two, three")
    assert (result["accuracy"], result["n"], result["out_of_list"]) == (33.33, 3, 1)
    assert app["compute"]([["fox", "fox", ""]], "") == {"accuracy": 100.0, "n": 1.0}
    with pytest.raises(gr.Error):
        app["compute"]([["", "", ""]], "")


def test_the_folder_needs_no_more_than_it_names():
    source = (FOLDER / "video_qa.py").read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) - set(sys.stdlib_module_names)
    required = set(re.findall(r"^\w+", (FOLDER / "requirements.txt").read_text(), re.MULTILINE))
    assert imported == required
