"""Captions and questions of the sprite world."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from alpro_hf.sprites.language import (
    ANSWERS,
    DOING,
    PASSIVE,
    PHRASES,
    PLACES,
    captions,
    noun_phrase,
    opposite_caption,
    questions,
    reversed_caption,
    swapped_caption,
    training_words,
)
from alpro_hf.sprites.world import (
    BASIC_ACTIONS,
    OPPOSITE,
    PAIRS,
    UNSEEN_SPRITES,
    Scene,
    SpriteWorldError,
    allowed_actions,
    content,
    draw_group,
    draw_scene,
    pose,
    stage,
)


def scenes_of(split: str, count: int) -> list[Scene]:
    return [draw_scene(split, 0, index) for index in range(count)]


def test_phrases_are_consistent():
    assert set(PHRASES) == set(BASIC_ACTIONS) | {"follow", "pass"}
    assert all(len(PHRASES[a]) == len(PHRASES[b]) for a, b in PAIRS), "opposites share their wordings"
    phrases = [form for forms in PHRASES.values() for phrase in forms for form in phrase]
    assert len(phrases) == len(set(phrases)), "no phrase says two things"


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)], ids=["random", "numpy"])
def test_captions_name_every_sprite_and_its_action(rng):
    for scene in scenes_of("train", 300):
        kind, roles = content(scene)
        texts = captions(scene, rng, 3)
        assert len(set(texts)) == 3
        for text in texts:
            assert text == text.lower() and "  " not in text and " ," not in text
            for sprite, action in roles:
                assert noun_phrase(sprite) in text or noun_phrase(sprite, definite=True) in text
                said = any(form in text for phrase in PHRASES.get(action, ()) for form in phrase)
                assert said or kind == "relation"


def test_sequence_captions_keep_the_order_of_events():
    scene = stage(("sequence", (("fox", "grow"), ("pizza", "left"))), random.Random(0))
    connectors = set()
    for text in captions(scene, random.Random(0), 40):
        fox, pizza, after = text.index("fox"), text.index("pizza"), text.find("after ")
        # "B after A" names the later event first; "after A, B" and "A and after that B" do not.
        turned = min(fox, pizza) < after and "after that" not in text
        assert (pizza < fox) == turned, text
        connectors |= {word for word in ("then", "before", "after that", ", a", "after a") if word in text}
    assert len(connectors) == 5


def test_too_many_captions_are_refused():
    scene = stage(("one", (("fox", "grow"),)), random.Random(0))
    with pytest.raises(SpriteWorldError, match="count is 1000"):
        captions(scene, random.Random(0), 1000)


def _said(text: str, action: str) -> bool:
    forms = [form for phrase in PHRASES[action] for form in phrase] + list(PASSIVE.get(action, ()))
    return any(form in text for form in forms)


def _actions_said(text: str, actions: list[str]) -> list[str]:
    """Each action as often as the text says it, longest phrases first ("moves to the left" is not "moves")."""
    phrases = [(form, action) for action in actions for phrase in PHRASES[action] for form in phrase]
    phrases += [(form, action) for action in actions for form in PASSIVE.get(action, ())]
    found = []
    for form, action in sorted(phrases, key=lambda item: -len(item[0])):
        found += [action] * text.count(form)
        text = text.replace(form, "")
    return found


def test_opposite_captions_differ_in_one_thing_only():
    kinds = Counter()
    for index, scene in enumerate(scenes_of("test-hard", 600)):
        true, false, pair = opposite_caption(scene, random.Random(index))
        kinds[pair] += 1
        assert true != false
        if pair in ("order", "roles"):
            assert sorted(true.replace(",", "").split()) == sorted(false.replace(",", "").split())
        else:
            before, after = (Counter(_actions_said(text, pair.split("/"))) for text in (true, false))
            (lost,), (won,) = (before - after).elements(), (after - before).elements()
            assert won == OPPOSITE[lost]
    assert set(kinds) == {"/".join(pair) for pair in PAIRS} | {"order", "roles"}


def test_swapped_captions_exchange_actions():
    scene = stage(("two", (("fox", "grow"), ("pizza", "bounce"))), random.Random(0))
    for seed in range(20):
        true, false = swapped_caption(scene, random.Random(seed))
        first, second = sorted(("fox", "pizza"), key=true.index)
        actions = {"fox": "grow", "pizza": "bounce"}
        head, tail = true.split(second)
        assert _said(head, actions[first]) and _said(tail, actions[second])
        head, tail = false.split(second)
        assert _said(head, actions[second]) and _said(tail, actions[first])
    assert swapped_caption(stage(("one", (("fox", "grow"),)), random.Random(0)), random.Random(0)) is None
    same = stage(("two", (("fox", "grow"), ("pizza", "grow"))), random.Random(0))
    assert swapped_caption(same, random.Random(0)) is None


def test_reversed_captions_tell_the_clip_played_backwards():
    def backwards(kind, *roles):
        return reversed_caption(stage((kind, roles), random.Random(0)), random.Random(2))

    true, false = backwards("one", ("fox", "left"))
    assert _said(true, "left") and _said(false, "right")
    true, false = backwards("sequence", ("fox", "grow"), ("pizza", "bounce"))
    assert _said(false, "shrink") and _said(false, "bounce")
    assert (true.index("fox") < true.index("pizza")) != (false.index("fox") < false.index("pizza"))
    true, false = backwards("relation", ("fox", "follow"), ("pizza", "lead"))
    assert (true.index("fox") < true.index("pizza")) != (false.index("fox") < false.index("pizza"))
    assert backwards("relation", ("fox", "pass"), ("pizza", "passed")) is None
    assert backwards("one", ("fox", "sway")) is None


def test_answers_of_seen_sprites_are_in_the_closed_list():
    assert len(ANSWERS) == len(set(ANSWERS)) and not set(ANSWERS) & set(UNSEEN_SPRITES)
    scenes = scenes_of("train", 700) + scenes_of("test", 700)
    rows = [row for scene in scenes for row in questions(scene, random.Random(0))]
    assert {row["answer_type"] for row in rows} == {"what", "where", "how many", "which way", "which first"}
    assert {row["answer"] for row in rows} <= set(ANSWERS)
    outside = [
        row["answer"]
        for scene in scenes_of("test-unseen", 50)
        for row in questions(scene, random.Random(0))
        if row["answer"] not in ANSWERS
    ]
    assert outside and set(outside) <= set(UNSEEN_SPRITES)


def test_questions_have_one_right_answer():
    scene = stage(("three", (("fox", "left"), ("dog", "left"), ("taxi", "clockwise"))), random.Random(0))
    rows = questions(scene, random.Random(0))
    asked = {row["question"]: row["answer"] for row in rows}
    assert len(asked) == len(rows)
    movers = [row for row in rows if row["answer_type"] == "what" and row["answer"] in ("fox", "dog")]
    assert not movers, "two move left: what moves left has no single answer"
    assert [row["answer"] for row in rows if row["answer_type"] == "which way"] == ["left", "left", "clockwise"]
    assert next(row["answer"] for row in rows if "things" in row["question"]) == "three"
    sequence = stage(("sequence", (("fox", "grow"), ("pizza", "left"))), random.Random(0))
    rows = [row for seed in range(9) for row in questions(sequence, random.Random(seed))]
    assert {row["answer"] for row in rows if row["answer_type"] == "which first"} == {"fox"}


def test_candidates_leave_out_what_training_never_shows():
    scenes = [scene for index in range(60) for scene in draw_group("train", 3, index)] + scenes_of("train", 200)
    seen = Counter()
    for number, scene in enumerate(scenes):
        plain = questions(scene, random.Random(number))
        rows = questions(scene, random.Random(number), candidates=True)
        assert [{key: row[key] for key in plain[0]} for row in rows] == plain
        roles = dict(content(scene)[1])
        for row in rows:
            left_out = set(ANSWERS) - set(row.get("candidates", ANSWERS))
            assert row["answer"] not in left_out
            if not left_out:
                continue
            seen[row["answer_type"]] += 1
            if row["answer"] in roles:  # which sprite does it: all left out are sprites that never do
                action = next(done for sprite, done in roles.items() if sprite == row["answer"])
                action = {"lead": "follow", "passed": "pass"}.get(action, action)
                assert all(action not in allowed_actions("train", sprite) for sprite in left_out)
                assert len(left_out) > 20
            else:  # what a sprite does: all left out are actions that it never does
                sprite = next(s for s in roles if f" {noun_phrase(s, True)} " in row["question"].replace("?", " "))
                never = {DOING[action] for action in DOING if action not in allowed_actions("train", sprite)}
                assert never <= left_out
    assert min(seen["what"], seen["which way"]) > 20 and set(seen) == {"what", "which way"}


def test_where_is_asked_of_clear_places_only():
    places = Counter()
    for scene in scenes_of("train", 400):
        actors = {noun_phrase(actor.sprite, True): actor for actor in scene.actors}
        for row in questions(scene, random.Random(0)):
            if row["answer_type"] != "where":
                continue
            actor = next(a for name, a in actors.items() if f" {name} " in row["question"])
            here = pose(actor, 1.0 if " end" in row["question"] else 0.0)
            assert here.opacity == 1
            away = {"left": 0.5 - here.x, "right": here.x - 0.5, "top": 0.5 - here.y, "bottom": here.y - 0.5}
            if row["answer"] == "middle":
                assert max(away.values()) < 0.08
            else:
                assert max(away, key=away.__getitem__) == row["answer"] and away[row["answer"]] > 0.16
            places[row["answer"]] += 1
    assert set(places) == set(PLACES)


def test_training_words_are_those_of_training() -> None:
    """Exactly: every word of many captions and questions is in the list, and every word of the list occurs."""
    rng = random.Random(0)
    scenes = [draw_scene("train", 3, index) for index in range(4000)]
    said = {
        "retrieval": [text for scene in scenes for text in captions(scene, rng, 2)],
        "qa": [row["question"] for scene in scenes for row in questions(scene, rng)],
    }
    for task, texts in said.items():
        words = {word for text in texts for word in re.findall(r"[a-z]+", text)}
        assert words == training_words(task)
