"""Captions are read back: what they say, and in which detail two of them differ."""

import random

import pytest

from alpro_hf.sprites.language import captions, opposite_caption, swapped_caption
from alpro_hf.sprites.opposites import opposite_kind, read_caption
from alpro_hf.sprites.world import content, draw_scene

SCENES = [draw_scene("test", 0, index) for index in range(120)]


def test_a_caption_is_read_back_as_what_it_was_made_from() -> None:
    kinds = set()
    for index, scene in enumerate(SCENES):
        kind, roles = content(scene)
        kinds.add(kind)
        for caption in captions(scene, random.Random(index), 3):
            read = read_caption(caption)
            assert read is not None and read[0] == kind, caption
            if kind == "relation":
                assert [sprite for sprite, _ in read[1]] == [sprite for sprite, _ in roles]
                assert read[1][0] == roles[0]
            elif kind == "sequence":
                assert read[1] == roles, caption
            else:
                assert sorted(read[1]) == sorted(roles), caption
    assert kinds == {"one", "two", "three", "sequence", "relation"}


def test_the_difference_is_the_one_that_was_made() -> None:
    seen = set()
    for index, scene in enumerate(SCENES):
        for seed in range(3):
            true, false, kind = opposite_caption(scene, random.Random(1000 * seed + index))
            assert opposite_kind(true, false) == opposite_kind(false, true) == kind, (true, false)
            seen.add(kind)
        if swapped := swapped_caption(scene, random.Random(index)):
            assert opposite_kind(*swapped) == "swapped", swapped
            seen.add("swapped")
    assert len(seen) == 10  # seven pairs of actions, order, roles, and exchanged actions


@pytest.mark.parametrize(
    ("caption", "other", "kind"),
    [
        ("The tiger  GROWS", "the tiger shrinks", "grow/shrink"),
        ("the gem is followed by the rose", "the gem follows the rose", "roles"),
        ("a fox grows while a dog shrinks", "a dog shrinks while a fox grows", None),  # says the same
        ("the fox grows before the dog shrinks", "the dog shrinks after the fox grows", None),  # says the same
        ("the tiger grows", "the tiger spins clockwise", None),  # no opposite
        ("the tiger grows", "the lion shrinks", None),
        ("a fox grows and a dog grows", "a fox shrinks and a dog shrinks", None),  # two differences
        ("a man opens a door", "a man closes a door", None),
        ("", "the tiger grows", None),
    ],
)
def test_what_is_no_single_difference_has_no_kind(caption, other, kind) -> None:
    assert opposite_kind(caption, other) == kind
