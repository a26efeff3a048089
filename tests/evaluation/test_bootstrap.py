"""The bootstrap against every resample there is, against the normal approximation, and against itself by pairs."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro_hf.evaluation.bootstrap import bootstrap_interval, paired_bootstrap, percentage, recall_at

RNG = np.random.default_rng(0)


def test_statistics():
    assert recall_at(5)(np.array([1, 5, 5.5, 9])) == 50
    assert percentage(np.array([True, False, True, True])) == 75


def test_equals_all_resamples_of_few_rows():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    every = [np.mean(drawn) for drawn in product(values, repeat=4)]
    interval = bootstrap_interval(values, np.mean, n=20_000, confidence=0.8)
    assert interval.value == 4
    assert interval.low == pytest.approx(np.quantile(every, 0.1), abs=0.26)  # the neighbouring mean at most
    assert interval.high == pytest.approx(np.quantile(every, 0.9), abs=0.26)


def test_is_as_wide_as_the_normal_approximation():
    hits = RNG.random(900) < 0.6
    value, low, high = bootstrap_interval(hits, percentage, n=4000)
    spread = 1.96 * 100 * hits.std() / 30
    assert value == 100 * hits.mean()
    assert (low, high) == pytest.approx((value - spread, value + spread), abs=0.5)


def test_holds_the_truth_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        _, low, high = bootstrap_interval(
            np.random.default_rng(seed).random(150) < 0.3, percentage, n=300, seed=seed, confidence=0.9
        )
        inside += low <= 30 <= high
    assert 165 <= inside <= 195


def test_median_rank_of_equal_ranks_has_no_spread():
    assert bootstrap_interval(np.full(20, 3.0), np.median, n=50) == (3, 3, 3)


def test_the_same_seed_draws_the_same():
    values = RNG.random(100)
    assert bootstrap_interval(values, np.mean, seed=1) == bootstrap_interval(values, np.mean, seed=1)
    assert bootstrap_interval(values, np.mean, seed=1) != bootstrap_interval(values, np.mean, seed=2)


def test_copies_in_a_group_add_no_certainty():
    once = RNG.random(200)
    videos = np.repeat(np.arange(200), 9)
    alone = bootstrap_interval(once, np.mean, n=2000)
    grouped = bootstrap_interval(np.repeat(once, 9), np.mean, n=2000, groups=videos)
    fooled = bootstrap_interval(np.repeat(once, 9), np.mean, n=2000)
    assert grouped == pytest.approx(alone)
    assert fooled.high - fooled.low == pytest.approx((alone.high - alone.low) / 3, rel=0.15)


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_groups_are_drawn_whole_and_as_many_as_there_are(groups):
    sizes = {group: groups.count(group) for group in groups}

    def drawn_groups(members):
        counts = {group: np.count_nonzero(members == group) / sizes[group] for group in sizes}
        assert all(count == int(count) for count in counts.values())
        return sum(counts.values())

    value, low, high = bootstrap_interval(groups, drawn_groups, n=20, groups=[f"video {group}" for group in groups])
    assert value == low == high == len(sizes)


def test_pairs_find_what_intervals_hide():
    """Rows of very different difficulty, and a small gain on nearly all of them."""
    difficulty = RNG.normal(0, 10, 300)
    a = difficulty + RNG.normal(0, 0.5, 300)
    b = difficulty + 0.3 + RNG.normal(0, 0.5, 300)
    paired = paired_bootstrap(a, b, np.mean)
    assert paired.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert 0 < paired.low < paired.difference < paired.high
    assert paired.p_value == pytest.approx(2 / 1001)
    alone_a, alone_b = bootstrap_interval(a, np.mean), bootstrap_interval(b, np.mean)
    assert alone_a.high > alone_b.low
    swapped = paired_bootstrap(b, a, np.mean)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))
    assert swapped.p_value == paired.p_value


def test_no_difference_is_no_evidence():
    hits = RNG.random(50) < 0.5
    assert paired_bootstrap(hits, hits, percentage)[2:] == (0, 0, 0, 1)


def test_p_values_are_rarely_small_where_nothing_differs():
    values = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).random((2, 120)) < 0.4
        values.append(paired_bootstrap(a, b, percentage, n=200, seed=seed).p_value)
    assert 0.005 <= np.mean(np.array(values) < 0.05) <= 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, r"\(0,\)"),
        ({"values": [[1, 2]]}, r"\(1, 2\)"),
        ({"values": [1.0, float("nan")]}, "NaN"),
        ({"values": ["a"]}, "type"),
        ({"values": [1], "n": 0}, "n must be at least 1"),
        ({"values": [1], "confidence": 95}, "confidence between 0 and 1"),
        ({"values": [1, 2], "groups": [0]}, "2 rows"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(statistic=np.mean, **arguments)


def test_pairs_need_each_other():
    with pytest.raises(ValueError, match=r"'a': \(2,\), 'b': \(3,\)"):
        paired_bootstrap([1, 2], [1, 2, 3], np.mean)
