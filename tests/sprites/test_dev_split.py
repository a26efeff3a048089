"""The split for development, and rows with false captions, wordings in turn and false premises."""

import random
from ast import literal_eval

import pytest

from alpro_hf.sprites.language import (
    FORWARD,
    NONE,
    REVERSING,
    SEQUENCE,
    caption_and_negatives,
    false_premises,
    questions,
    turned_premise,
)
from alpro_hf.sprites.opposites import opposite_kind
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import (
    HELD_OUT,
    HELD_OUT_DEV,
    PAIR_OF,
    SEEN_SPRITES,
    Scene,
    SpriteWorldError,
    allowed_actions,
    content,
    draw_group,
    draw_scene,
    semantic_key,
)


def combinations(split: str, count: int) -> set[tuple[str, tuple[str, str]]]:
    """Sprites with the pair of what they do; in a relation only the agent's counts."""
    found = set()
    for index in range(count):
        kind, roles = content(draw_scene(split, 0, index))
        found |= {(sprite, PAIR_OF[action]) for sprite, action in (roles[:1] if kind == "relation" else roles)}
    return found


def test_dev_has_combinations_of_its_own():
    dev, test = combinations("dev", 400), combinations("test", 400)
    assert all(pair in HELD_OUT_DEV[sprite] and pair not in HELD_OUT[sprite] for sprite, pair in dev)
    assert not dev & test
    assert not combinations("train-dev", 600) & (dev | test)
    seen = {(sprite, PAIR_OF[a]) for sprite in SEEN_SPRITES for a in allowed_actions("train", sprite)}
    assert dev <= seen and not test & seen
    assert {kind for kind, _ in (content(draw_scene("dev", 0, i)) for i in range(100))} == {
        *("one", "two", "three", "sequence", "relation")
    }


def test_dev_is_fixed_and_without_repetition():
    scenes = [draw_scene("dev", 0, index) for index in range(1000)]
    assert scenes[:5] == [draw_scene("dev", 0, index) for index in range(5)]
    assert len({semantic_key(content(scene)) for scene in scenes}) == 1000
    assert HELD_OUT_DEV["fox"] == HELD_OUT_DEV["fox"] and set(HELD_OUT_DEV) == set(SEEN_SPRITES)
    with pytest.raises(SpriteWorldError, match="'dev' has no groups"):
        draw_group("dev", 0, 0)
    with pytest.raises(SpriteWorldError, match="below 1000"):
        draw_scene("dev", 0, 1000)


def scene_of(kind: str) -> Scene:
    return next(scene for i in range(200) if (scene := draw_scene("train", 0, i)).kind == kind)


@pytest.mark.parametrize(("kind", "count"), [("one", 1), ("two", 3), ("relation", 2), ("sequence", 4)])
def test_false_captions_differ_from_the_true_one_in_a_detail(kind, count):
    scene = scene_of(kind)
    for seed in range(20):
        true, false = caption_and_negatives(scene, random.Random(seed))
        assert 1 <= len(false) == len(set(false)) <= count and true not in false
        for caption in false:  # the same words, except for one verb with its adverb, or in another order
            assert len(set(caption.split()) ^ set(true.split())) <= 10
    if kind == "relation":
        (agent, _), (patient, _) = content(scene)[1]
        true, false = caption_and_negatives(scene, random.Random(0))
        assert any(caption.find(agent) > caption.find(patient) for caption in [true, *false])
        assert any(caption.find(agent) < caption.find(patient) for caption in [true, *false])


def test_one_wording_first_and_all_later():
    rows = SpriteRows(
        "retrieval", 400, size=32, negatives=True, curriculum=[(400, ("sequence",))], wordings=[(200, FORWARD[:1])]
    )
    first = [rows[i]["text"] for i in range(0, 200, 9)]
    later = [rows[i]["text"] for i in range(200, 400, 9)]
    assert all("first " in text and ", then " in text for text in first)
    assert any("after" in text or "before" in text for text in later)
    assert set(FORWARD) | set(REVERSING) == set(SEQUENCE) and len(REVERSING) == 2
    plain = SpriteRows("retrieval", 8, size=32)
    assert "negatives" not in plain[0]
    assert all(isinstance(text, str) for text in rows[0]["negatives"]) and rows[0]["negatives"]


def test_sequences_whose_false_caption_has_the_other_order():
    shared = {"size": 32, "negatives": True, "curriculum": [(200, ("sequence", None))]}
    rows, always, half = (SpriteRows("retrieval", 200, order_share=share, **shared) for share in (0.0, 1.0, 0.5))
    reduced = 0
    for number in range(200):
        kind = literal_eval(rows[number]["video_id"])[0]
        assert always[number]["text"] == half[number]["text"] == rows[number]["text"]
        if kind != "sequence":
            assert always[number]["negatives"] == rows[number]["negatives"]
            continue
        [false] = always[number]["negatives"]
        assert opposite_kind(rows[number]["text"], false) == "order"
        assert false in rows[number]["negatives"]
        reduced += len(half[number]["negatives"]) == 1
    assert 30 < reduced < 90  # of at least 100 sequences


def test_a_false_premise_asks_for_what_is_not_there():
    scene = scene_of("relation")
    (agent, _), (patient, _) = content(scene)[1]
    rows = false_premises(scene, random.Random(0))
    assert [(row["answer"], row["other"]) for row in rows] == [(NONE, patient), (NONE, agent)]
    assert agent in rows[0]["question"] and patient not in rows[0]["question"]
    assert false_premises(scene_of("two"), random.Random(0)) == []
    turned = [turned_premise(row["question"], row["answer"]) for row in questions(scene, random.Random(1))]
    found = [row for row in turned if row]
    assert {row["other"] for row in found} == {agent, patient} and len(found) == 2
    assert all(row["other"] not in row["question"] for row in found)


def test_rows_may_ask_false_premises_and_let_all_answers_compete():
    rows = SpriteRows("qa", 240, size=32, questions_per_clip=4, false_premises=True, curriculum=[(240, ("relation",))])
    drawn = [rows[i] for i in range(240)]
    asked = [row for row in drawn if row["answer_type"] == "false premise"]
    assert len(asked) > 10 and {row["answer"] for row in asked} == {NONE}
    assert any("candidates" in row for row in drawn)
    assert all(NONE in row["candidates"] for row in drawn if "candidates" in row)
    free = SpriteRows("qa", 80, size=32, questions_per_clip=4, candidates=False)
    masked = SpriteRows("qa", 80, size=32, questions_per_clip=4)
    for i in range(80):
        row = masked[i]
        row.pop("candidates", None)
        assert row["question"] == free[i]["question"] and "candidates" not in free[i]


def test_the_rows_of_train_dev_lack_the_combinations_of_dev():
    rows = SpriteRows("retrieval", 64, size=32, split="train-dev")
    for i in range(64):
        kind, roles = literal_eval(rows[i]["video_id"])
        acting = roles[:1] if kind == "relation" else roles
        assert all(PAIR_OF[action] not in HELD_OUT_DEV[sprite] for sprite, action in acting)
