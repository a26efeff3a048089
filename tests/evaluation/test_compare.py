"""Two evaluations of the same data, of which one is better by a known amount."""

import argparse
import json

import numpy as np
import pytest

from alpro_hf.cli.compare import add_arguments, run
from alpro_hf.evaluation.compare import compare_results
from alpro_hf.evaluation.results import Results, ResultsError, question_rows, retrieval_rows, write_results

TARGETS = np.arange(120) % 40


def evaluate(folder, strength, *, protocol="vtc", fingerprint="sha256:1", task="retrieval", texts=120, shift=0):
    """A retrieval whose similarities tell the right video with the given strength; the noise is the same for all."""
    scores = np.random.default_rng(0).normal(size=(120, 40))
    scores[np.arange(120), TARGETS] += strength
    own = scores[np.arange(120), TARGETS]
    ranks = 1 + (scores > own[:, None]).sum(axis=1)
    rows = list(retrieval_rows("t2v", scores, ranks, range(120), text_to_video=(TARGETS + shift) % 40))[:texts]
    return write_results(
        folder,
        Results(
            task=task,
            protocol={"name": protocol},
            metrics={"t2v_r1": 100 * float(np.mean(ranks <= 1))},
            model={"name": f"model of strength {strength}", "revision": None},
            data={"fingerprint": fingerprint, "rows": 120},
        ),
        rows,
    )


def compare(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in argv]))


def test_the_better_model_is_better_beyond_chance(tmp_path):
    a, b = evaluate(tmp_path / "a", 1.0), evaluate(tmp_path / "b", 2.5)
    differences = compare_results(a, tmp_path / "b")
    assert set(differences) == {"t2v_r1", "t2v_r5", "t2v_r10", "t2v_r50", "t2v_median_rank", "t2v_mean_rank"}
    recall, rank = differences["t2v_r5"], differences["t2v_mean_rank"]
    assert 0 < recall.low < recall.difference < recall.high
    assert rank.high < 0
    assert recall.p_value == rank.p_value == pytest.approx(2 / 1001)
    assert differences["t2v_r50"][:3] == (100, 100, 0)
    assert json.loads(b.read_text())["metrics"]["t2v_r1"] == pytest.approx(differences["t2v_r1"].b)


def test_a_model_does_not_differ_from_itself(tmp_path):
    a, b = evaluate(tmp_path / "a", 1.5), evaluate(tmp_path / "b", 1.5)
    assert all(value.difference == 0 and value.p_value == 1 for value in compare_results(a, b, n=50).values())


def test_questions_are_compared_by_type(tmp_path):
    answers = ["fox", "owl", "two", "three"] * 30
    known, types = set(answers), ["what", "what", "how many", "how many"] * 30
    for name, predictions in (("a", ["fox", "fox", "two", "two"] * 30), ("b", ["fox", "owl", "two", "two"] * 30)):
        rows = question_rows(["?"] * 120, answers, predictions, known, answer_types=types)
        evaluate(tmp_path / name, 0, task="qa")
        found = Results(
            "qa",
            {"name": "list"},
            {"accuracy": 1.0},
            {"name": name, "revision": None},
            {"fingerprint": "f", "rows": 120},
        )
        write_results(tmp_path / name, found, rows)
    differences = compare_results(tmp_path / "a", tmp_path / "b")
    assert {name: value[:3] for name, value in differences.items()} == {
        "accuracy": (50, 75, 25),
        "accuracy_what": (50, 100, 50),
        "accuracy_how_many": (50, 50, 0),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "sha256:2"}, "fingerprint of the first is 'sha256:1'.*'sha256:2'"),
        ({"task": "qa"}, "task"),
        ({"texts": 100}, "120 predictions .* 100"),
        ({"shift": 1}, "Row 1 .* video is 0 and 1"),
    ],
)
def test_other_data_are_not_compared(tmp_path, change, message):
    a, b = evaluate(tmp_path / "a", 1.0), evaluate(tmp_path / "b", 1.0, **change)
    with pytest.raises(ResultsError, match=message):
        compare_results(a, b)


def test_the_command_prints_a_table(tmp_path, capsys):
    a, b = evaluate(tmp_path / "a", 1.0), evaluate(tmp_path / "b", 2.5, protocol="rerank")
    assert compare(a, b) == 0
    printed = capsys.readouterr()
    assert f"B  {b}: model of strength 2.5; protocol rerank; 120 rows" in printed.out
    [line] = [line for line in printed.out.splitlines() if line.startswith("t2v_r5 ")]
    expected = compare_results(a, b)["t2v_r5"]
    assert line.split()[1:4] == [f"{expected.a:.2f}", f"{expected.b:.2f}", f"{expected.difference:+.2f}"]
    assert f"[{expected.low:+.2f}, {expected.high:+.2f}]" in line
    assert "protocols differ" in printed.err


def test_the_command_prints_json(tmp_path, capsys):
    a, b = evaluate(tmp_path / "a", 1.0), evaluate(tmp_path / "b", 2.5)
    assert compare(a, b, "--json", "--draws", 200, "--seed", 3) == 0
    printed = capsys.readouterr()
    expected = {name: value._asdict() for name, value in compare_results(a, b, n=200, seed=3).items()}
    assert json.loads(printed.out) == expected
    assert printed.err == ""


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    a = evaluate(tmp_path / "a", 1.0)
    assert compare(a, tmp_path / "none.json") == 1
    assert "none.json" in capsys.readouterr().err
    assert compare(a, evaluate(tmp_path / "b", 1.0, fingerprint="sha256:2")) == 1
    assert capsys.readouterr().err.startswith("alpro compare: ")
    with pytest.raises(SystemExit):
        compare(a, a, "--draws", "0")
