"""Neighbours joined to a moment, and ends cut off: which windows count, and which do not."""

import pytest

from alpro_hf.data.proposals import Near, join_windows, proposals, trim_ends

STEPS = [(0.0, 4.0), (2.0, 6.0), (4.0, 8.0), (6.0, 10.0), (8.0, 12.0)]


def test_neighbours_of_about_the_same_similarity_are_joined() -> None:
    made = join_windows(STEPS, [0.1, 0.55, 0.6, 0.55, 0.1], 2, longest=8)
    assert (made.start, made.end, sorted(made.members)) == (2, 10, [1, 2, 3])
    assert join_windows(STEPS, [0.1, 0.47, 0.6, 0.2, 0.6], 2, longest=30).members == (2, 4)  # 0.48 are needed


def test_what_is_joined_has_a_bound_and_touches() -> None:
    similar = [0.6, 0.61, 0.62, 0.63, 0.64]
    made = join_windows(STEPS, similar, 4, longest=8)
    assert (made.start, made.end) == (4, 12)
    apart = [(0.0, 2.0), (2.0, 4.0), (6.0, 8.0)]
    made = join_windows(apart, [0.55, 0.6, 0.6], 1, longest=20)
    assert (made.start, made.end) == (0, 4)
    assert join_windows(apart, [-0.1, -0.2, -0.1], 0, longest=20).members == (0,)


def test_a_longer_window_is_no_neighbour() -> None:
    spans = [(0.0, 8.0), (0.0, 4.0), (4.0, 8.0)]
    assert join_windows(spans, [0.59, 0.6, 0.1], 1, longest=30).members == (1,)


def test_a_joined_window_proposes_nothing_itself() -> None:
    similar = [0.1, 0.55, 0.6, 0.55, 0.1]
    near = Near(range(5), STEPS, similar)
    made = list(proposals([2, 1, 3, 0, 4], lambda _: near, 8))
    assert made[0] == (2, 2, 10) and [place for place, _, _ in made] == [2, 0, 4]


def test_ends_where_the_similarity_falls_are_cut_off() -> None:
    # the level is 0.5 from 0 to 2, (0.5 + 0.6) / 2 to 4, (0.6 + 0.1) / 2 to 6, and lower behind
    assert trim_ends(STEPS, [0.5, 0.6, 0.1, 0.0, 0.0], 0, 8) == (0, 4)
    assert trim_ends(STEPS, [0.1, 0.6, 0.6, 0.1, 0.0], 2, 8) == (4, 6)
    assert trim_ends([(0.0, 4.0)], [0.5], 0, 4) == (0, 4)  # nothing is known of its parts
    assert trim_ends(STEPS, [-0.5] * 5, 2, 8) == (2, 8)


@pytest.mark.parametrize("drop", [0, 1])
def test_a_moment_stays_one(drop: int) -> None:
    start, end = trim_ends(STEPS, [0.6, 0.1, 0.1, 0.1, 0.6], 0, 12 - drop)
    assert start == 0 and end > start
