"""Groups of rows, their metrics, and the picture of them."""

import numpy as np
import pytest

from alpro_hf.evaluation.breakdown import WORDS, break_down, groups_of, plot_breakdown

ROWS = [
    {"direction": "t2v", "text": i, "video": f"video{i % 10}", "rank": float(rank)}
    for i, rank in enumerate([1, 1, 7, 2, 1, 30, 1, 1, 3, 1] * 3)
]
CATEGORIES = [3 if i % 2 else 11 for i in range(30)]


def test_few_values_are_groups_themselves():
    assert groups_of([3, 11, None, 3]) == ["3", "11", None, "3"]
    assert groups_of(["music", "sports", None]) == ["music", "sports", None]
    assert groups_of([True, False]) == ["True", "False"]


def test_many_numbers_are_put_into_bins_of_about_equal_size():
    values = [*range(100), None]
    groups = groups_of(values)
    assert groups[-1] is None
    assert list(dict.fromkeys(groups[:-1])) == ["0 to 25", "26 to 50", "51 to 75", "76 to 99"]
    assert groups_of([4, 4, 4, 9], always=True) == ["4", "4", "4", "9"]
    assert groups_of([5, 5, 5], always=True) == ["5"] * 3
    assert groups_of([0.5, 1.25, 2.0, 8.0, 9.0], always=True)[0] == "0.5 to 1.25"


def test_metrics_of_a_group_are_those_of_its_rows():
    found = break_down(ROWS, {"category": CATEGORIES, WORDS: [5] * 30}, n=200)
    assert list(found) == ["category"], "all texts are equally long"
    assert list(found["category"]) == ["3", "11"], "in the order of the values"
    for group, number in (("3", 3), ("11", 11)):
        ranks = np.array([row["rank"] for row, value in zip(ROWS, CATEGORIES, strict=True) if value == number])
        metrics = found["category"][group]
        assert metrics["n"] == 15
        assert metrics["t2v_r1"] == pytest.approx(100 * np.mean(ranks <= 1))
        assert metrics["t2v_r5"] == pytest.approx(100 * np.mean(ranks <= 5))
        assert metrics["t2v_median_rank"] == np.median(ranks)
        low, high = metrics["interval"]
        assert low < metrics["t2v_r1"] < high


def test_answers_have_an_accuracy():
    rows = [{"question": "?", "correct": i % 4 == 0, "video": str(i)} for i in range(8)]
    found = break_down(rows, {"half": ["a"] * 4 + [None, "b", "b", "b"]}, n=50)
    assert {group: (metrics["n"], metrics["accuracy"]) for group, metrics in found["half"].items()} == {
        "a": (4, 25.0),
        "b": (3, 0.0),
    }


def test_names_are_no_groups():
    with pytest.raises(ValueError, match="101 different values, such as 'clip 0', are no groups"):
        groups_of([f"clip {i}" for i in range(101)])
    assert len(set(groups_of([f"clip {i}" for i in range(100)]))) == 100


def test_the_picture_has_a_bar_for_each_group():
    [axes] = plot_breakdown(break_down(ROWS, {"category": CATEGORIES}, n=50)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["category: 3 (n=15)", "category: 11 (n=15)"]
    assert len(axes.patches) == 2
    assert axes.get_xlabel() == "R@1, text to video (%)"
    with pytest.raises(ValueError, match="at least one column"):
        plot_breakdown({})
