"""Training rows drawn and rendered on the fly from the sprite world."""

import random
from ast import literal_eval
from typing import Any

import numpy as np
import pytest

from alpro_hf.sprites.language import ANSWERS, PHRASES, noun_phrase, questions
from alpro_hf.sprites.render import render
from alpro_hf.sprites.rows import GROUP, SpriteRows
from alpro_hf.sprites.world import (
    DIRECTIONS,
    KINDS,
    OPPOSITE,
    Content,
    SpriteWorldError,
    allowed_actions,
    content,
    draw_group,
    semantic_key,
)

SIZE = 32


def meaning(row: dict[str, Any]) -> Content:
    """What a retrieval row shows: (kind, ((sprite, action), ...))."""
    return literal_eval(row["video_id"])


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    np.testing.assert_array_equal(one["video"], other["video"])
    assert {k: v for k, v in one.items() if k != "video"} == {k: v for k, v in other.items() if k != "video"}


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_a_row_is_a_pure_function_of_seed_and_index(task):
    forward = SpriteRows(task, 12, seed=3, size=SIZE)
    backward = SpriteRows(task, 999, seed=3, size=SIZE)
    rows = [forward[index] for index in range(12)]
    again = [backward[index] for index in reversed(range(12))][::-1]
    for row, same in zip(rows, again, strict=True):
        assert_same(row, same)
    assert len(forward) == 12 and len(backward) == 999
    assert len({row["video"].tobytes() for row in rows}) == 12, "no clip twice"
    other = SpriteRows(task, 12, seed=4, size=SIZE)
    assert all((row["video"] != other[index]["video"]).any() for index, row in enumerate(rows))


@pytest.mark.parametrize("num_frames", [1, 4, 7])
@pytest.mark.parametrize("size", [32, 50])
def test_frames_are_rgb_pixels_of_the_asked_number_and_size(num_frames, size):
    video = SpriteRows("retrieval", 4, num_frames=num_frames, size=size)[0]["video"]
    assert video.dtype == np.uint8 and video.shape == (num_frames, size, size, 3)


def test_each_frame_is_from_its_share_of_the_clip():
    rows = SpriteRows("retrieval", 16, seed=2, size=SIZE)
    early = late = 0
    for index in range(16):
        scene = draw_group("train", 2, index // GROUP)[index % GROUP]
        moments = np.linspace(0, 1, 161)  # forty in each share, and the end
        clip = render(scene, moments.tolist(), SIZE).astype(int)
        for frame, pixels in enumerate(rows[index]["video"]):
            difference = np.abs(clip - pixels).mean((1, 2, 3))
            inside = difference[40 * frame : 40 * frame + 41]
            assert inside.min() < 1, (index, frame)
            if inside.min() < difference[40 * frame : 40 * frame + 41 : 40].min():
                early += inside.argmin() < 20
                late += inside.argmin() > 20
    assert early > 10 and late > 10, "the moment within a share is random"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_rows_of_a_group_share_sprites_and_differ_in_meaning(split):
    rows = SpriteRows("retrieval", 80, seed=1, size=SIZE, num_frames=1, split=split)
    casts = set()
    for first in range(0, 80, GROUP):
        meanings = [meaning(rows[index]) for index in range(first, first + GROUP)]
        assert meanings == [semantic_key(content(scene)) for scene in draw_group(split, 1, first // GROUP)]
        assert len(set(meanings)) == GROUP
        (cast,) = {frozenset(sprite for sprite, _ in roles) for _, roles in meanings}
        casts.add(cast)
        for kind, roles in meanings:
            done = roles if kind != "relation" else [role for role in roles if role[1] in ("follow", "pass")]
            assert all(action in allowed_actions(split, sprite) for sprite, action in done)
    assert len(casts) > 15, "neighbouring groups have sprites of their own"


def test_validation_draws_other_rows_than_training():
    train, validation = (
        SpriteRows("retrieval", 40, size=SIZE, num_frames=1, split=split) for split in ("train", "validation")
    )
    assert all(meaning(train[index]) != meaning(validation[index]) for index in range(40))


def test_the_text_says_what_the_clip_shows():
    single, mixed = (
        SpriteRows("retrieval", 80, seed=5, size=SIZE, num_frames=1, curriculum=phases)
        for phases in ([(80, ("one",))], [])
    )
    for index in range(80):
        _, ((sprite, action),) = meaning(single[index])
        text = single[index]["text"]
        assert noun_phrase(sprite) in text or noun_phrase(sprite, definite=True) in text
        assert any(text.endswith(f" {form}") for phrase in PHRASES[action] for form in phrase), (text, action)
        assert not any(text.endswith(f" {form}") for phrase in PHRASES[OPPOSITE[action]] for form in phrase), (
            text,
            action,
        )
        _, roles = meaning(mixed[index])
        text = mixed[index]["text"]
        assert all(noun_phrase(one) in text or noun_phrase(one, definite=True) in text for one, _ in roles)


def test_a_curriculum_has_phases_whose_groups_take_kinds_in_turn():
    phases = [(40, ("one",)), (120, ("one", DIRECTIONS)), (200, ("sequence", None, "relation"))]
    rows = SpriteRows("retrieval", 400, size=SIZE, num_frames=1, curriculum=phases)
    meanings = [meaning(rows[index]) for index in range(400)]
    assert {kind for kind, _ in meanings[:120]} == {"one"}
    assert {kind for kind, _ in meanings[200:]} == set(KINDS)
    groups = [meanings[first : first + GROUP] for first in range(0, 400, GROUP)]
    actions = [[roles[0][1] for _, roles in group] for group in groups]
    directions = ["left", "right", "up", "down"]
    assert directions not in actions[:10]
    # the place of a group in the whole decides whose turn it is
    assert [done == directions for done in actions[10:30]] == [False, True] * 10
    for turn, wanted in ((30, "sequence"), (32, "relation")):
        assert all({kind for kind, _ in groups[number]} == {wanted} for number in range(turn, 50, 3))
    plain = SpriteRows("retrieval", 400, size=SIZE, num_frames=1)
    for index in (*range(31 * GROUP, 32 * GROUP), *range(200, 400)):  # any kind's turn, and behind the last phase
        assert_same(rows[index], plain[index])


def test_a_curriculum_holds_for_groups_that_are_broken_up():
    phases = [(160, ("sequence", "relation")), (240, ("one",))]
    rows = SpriteRows("retrieval", 240, size=SIZE, num_frames=1, curriculum=phases, mixed=True)
    meanings = [meaning(rows[index]) for index in range(240)]
    for number in range(40):
        group = meanings[number * GROUP : (number + 1) * GROUP]
        casts = {frozenset(sprite for sprite, _ in roles) for _, roles in group}
        # two groups of a kind, the second of different sprites, then two of the next
        assert {kind for kind, _ in group} == {"relation" if number // 2 % 2 else "sequence"}
        assert len(casts) > 2 if number % 2 else len(casts) == 1
    assert {kind for kind, _ in meanings[160:]} == {"one"}


def test_a_phase_ends_between_groups_and_never_within_a_clip():
    phases = [(10, ("one",)), (24, (DIRECTIONS,))]
    rows = SpriteRows("retrieval", 32, size=SIZE, num_frames=1, curriculum=phases)
    first = SpriteRows("retrieval", 32, size=SIZE, num_frames=1, curriculum=[(32, ("one",))])
    for index in range(12):
        assert_same(rows[index], first[index])
    assert [meaning(rows[index])[1][0][1] for index in range(12, 24)] == ["left", "right", "up", "down"] * 3

    asked = SpriteRows("qa", 64, size=SIZE, num_frames=1, curriculum=phases, questions_per_clip=4)
    clips: dict[int, set[bytes]] = {}
    for row in asked:
        clips.setdefault(row["video_id"], set()).add(row["video"].tobytes())
    assert len(clips) == 16 and all(len(videos) == 1 for videos in clips.values()), "one clip behind one video_id"


def test_a_curriculum_with_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(SpriteWorldError, match="kind is 'two legs'; expected one of"):
        SpriteRows("retrieval", 8, size=SIZE, curriculum=[(8, ("two legs",))])[0]


@pytest.mark.parametrize("mixed", [False, True])
def test_neighbouring_questions_share_a_clip(mixed):
    rows = SpriteRows("qa", 120, seed=6, size=SIZE, num_frames=2, mixed=mixed, questions_per_clip=4)
    single = SpriteRows("qa", 30, seed=6, size=SIZE, num_frames=2, mixed=mixed)
    fewer = 0
    for clip in range(30):
        asked = [rows[4 * clip + k] for k in range(4)]
        assert {row["video_id"] for row in asked} == {clip}
        for row in asked:
            np.testing.assert_array_equal(row["video"], single[clip]["video"])
        assert_same(asked[0], single[clip])
        fewer += len({row["question"] for row in asked}) < 4
    assert fewer < 8, "a question comes again only where a clip has no other left"
    counted = SpriteRows("qa", 80, size=SIZE, num_frames=1, curriculum=[(80, ("one",))], questions_per_clip=4)
    things = [row for row in counted if "things" in row["question"]]
    assert things and {row["answer"] for row in things} == {"one"}


def test_a_row_does_not_depend_on_the_rows_read_before_nor_on_what_was_done_to_them():
    rows = SpriteRows("qa", 12, size=SIZE, questions_per_clip=3)
    forward = [rows[index] for index in range(12)]
    for row, index in zip(forward, range(12), strict=True):
        again = SpriteRows("qa", 12, size=SIZE, questions_per_clip=3)[index]
        assert_same(row, again)
        again["video"][:] = 0
    assert rows[0]["video"].any()
    rows[0]["video"][:] = 0
    assert_same(rows[1], forward[1])


def test_captions_have_a_clip_each_however_many_questions_one_would_get():
    plain, asked = (SpriteRows("retrieval", 8, size=SIZE, num_frames=1, questions_per_clip=k) for k in (1, 4))
    for one, other in zip(plain, asked, strict=True):
        assert_same(one, other)


def test_no_question_at_all_is_refused():
    with pytest.raises(ValueError, match="questions_per_clip=0 must be at least 1"):
        SpriteRows("qa", 4, questions_per_clip=0)


def test_question_rows_carry_answers_of_the_closed_list():
    rows = SpriteRows("qa", 200, seed=6, size=SIZE, num_frames=1)
    types = set()
    for index in range(200):
        row = rows[index]
        assert row.keys() - {"candidates"} == {"video", "video_id", "question", "answer", "answer_type"}
        assert row["answer"] in row.get("candidates", ANSWERS)
        assert row["video_id"] == index
        assert row["answer"] in ANSWERS
        types.add(row["answer_type"])
        scene = draw_group("train", 6, index // GROUP)[index % GROUP]
        answers = {(true["answer_type"], true["answer"]) for true in questions(scene, random.Random(0))}
        # Which category is counted is drawn with the wording.
        assert row["answer_type"] == "how many" or (row["answer_type"], row["answer"]) in answers
    assert types == {"what", "where", "how many", "which way", "which first"}


@pytest.mark.parametrize("task", ["caption", "", None])
def test_an_unknown_task_is_refused(task):
    with pytest.raises(ValueError, match=rf"task={task!r} is unknown; use 'retrieval' or 'qa'"):
        SpriteRows(task, 4)


def test_a_split_without_groups_is_refused():
    with pytest.raises(ValueError, match="'test' has no groups"):
        SpriteRows("retrieval", 4, split="test")[0]


def test_rows_end() -> None:
    rows = SpriteRows("retrieval", 6, size=16)
    assert len(list(rows)) == 6
    with pytest.raises(IndexError, match="Row 6 of 6"):
        rows[6]
