"""Scenes, splits, captions and questions of the sprite world."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest

from alpro_hf.data import sprite_world as world
from alpro_hf.data.sprite_world import (
    ANSWERS,
    BASIC_ACTIONS,
    BASIC_PAIRS,
    HELD_OUT,
    KINDS,
    OPPOSITE,
    PAIRS,
    PHRASES,
    SEEN_SPRITES,
    SPLIT_SIZES,
    SPRITES,
    UNSEEN_SPRITES,
    Scene,
    SpriteWorldError,
    captions,
    content,
    draw_group,
    draw_scene,
    noun_phrase,
    opposite_caption,
    pose,
    questions,
    reversed_caption,
    reversed_scene,
    semantic_key,
    stage,
    swapped_caption,
)

TIMES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)


def scenes_of(split: str, count: int, seed: int = 0) -> list[Scene]:
    return [draw_scene(split, seed, index) for index in range(count)]


def combinations_of(scene: Scene) -> set[tuple[str, str]]:
    """The (sprite, action) pairs the splits are about: in a relation, only the agent's."""
    kind, roles = content(scene)
    return set(roles[:1] if kind == "relation" else roles)


def test_vocabulary_is_consistent():
    assert len(SPRITES) == len(set(SPRITES)) == 160
    assert len(UNSEEN_SPRITES) == 8 and set(UNSEEN_SPRITES) < set(SPRITES)
    assert set(PHRASES) == set(BASIC_ACTIONS) | {"follow", "pass"}
    assert all(len(PHRASES[a]) == len(PHRASES[b]) for a, b in PAIRS), "opposites share their wordings"
    phrases = [form for forms in PHRASES.values() for phrase in forms for form in phrase]
    assert len(phrases) == len(set(phrases)), "no phrase says two things"
    assert sum(KINDS.values()) == pytest.approx(1)


def test_held_out_pairs_never_change_and_are_balanced():
    digest = hashlib.sha256(json.dumps(HELD_OUT, sort_keys=True).encode()).hexdigest()[:16]
    assert digest == "dbad35f64be9e9fc", "a changed split lets trained models see the tests"
    counts = Counter(pair for pairs in HELD_OUT.values() for pair in pairs)
    assert set(counts) == set(PAIRS) and max(counts.values()) - min(counts.values()) <= 5
    assert all(len(set(pairs)) == 2 for pairs in HELD_OUT.values()) and set(HELD_OUT) == set(SEEN_SPRITES)


def test_drawing_is_a_pure_function_of_its_arguments():
    forward = [draw_scene("train", 3, index) for index in range(20)]
    backward = [draw_scene("train", 3, index) for index in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [draw_scene("train", 4, index) for index in range(20)]
    assert draw_group("train", 3, 5) == draw_group("train", 3, 5)
    world._fixed_contents.cache_clear()
    once = scenes_of("test", 10)
    world._fixed_contents.cache_clear()
    assert once == scenes_of("test", 10)


def test_splits_share_no_sprite_action_combination():
    trained = scenes_of("train", 3000) + scenes_of("validation", 1000)
    trained += [scene for index in range(500) for scene in draw_group("train", 0, index)]
    tested = scenes_of("test", 1000) + scenes_of("test-hard", 1000)
    seen, held = ({pair for scene in scenes for pair in combinations_of(scene)} for scenes in (trained, tested))
    assert len(seen) > 1200 and len(held) > 500
    assert not seen & held
    assert not {sprite for sprite, _ in seen | held} & set(UNSEEN_SPRITES)
    for scene in scenes_of("test-unseen", 200):
        assert {actor.sprite for actor in scene.actors} <= set(UNSEEN_SPRITES)


@pytest.mark.parametrize("split", ["validation", "test", "test-hard", "test-unseen"])
def test_evaluation_splits_repeat_no_meaning(split):
    scenes = scenes_of(split, SPLIT_SIZES[split])
    assert len({semantic_key(content(scene)) for scene in scenes}) == len(scenes)
    with pytest.raises(SpriteWorldError, match=f"index is {len(scenes)}.*'{split}'"):
        draw_scene(split, 0, len(scenes))


def test_kinds_have_their_shares():
    counts = Counter(scene.kind for scene in scenes_of("test", 1000))
    assert all(abs(counts[kind] / 1000 - share) < 0.05 for kind, share in KINDS.items())


def test_hard_test_defeats_nouns():
    scenes = scenes_of("test-hard", 1000)
    casts = [frozenset(actor.sprite for actor in scene.actors) for scene in scenes]
    assert all(len(set(casts[i : i + 4])) == 1 for i in range(0, 1000, 4))
    # Whoever knows the nouns alone finds the right cast and then guesses: one of four, for any order of the clips.
    sizes = Counter(casts)
    assert sum(1 / sizes[cast] for cast in casts) / 1000 <= 0.27
    assert draw_group("test-hard", 0, 7) == scenes[28:32]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_groups_share_sprites_and_differ_in_meaning(split):
    with_opposites = 0
    for index in range(400):
        group = draw_group(split, 1, index)
        contents = [content(scene) for scene in group]
        assert len({semantic_key(one) for one in contents}) == 4
        assert len({frozenset(sprite for sprite, _ in roles) for _, roles in contents}) == 1
        assert len({kind for kind, _ in contents}) == 1
        actions = {role for _, roles in contents for role in roles}
        with_opposites += all((sprite, OPPOSITE.get(action)) in actions for sprite, action in contents[0][1][:1])
    assert with_opposites > 200


def test_groups_and_splits_that_do_not_exist_are_refused():
    with pytest.raises(SpriteWorldError, match="'test' has no groups"):
        draw_group("test", 0, 0)
    with pytest.raises(SpriteWorldError, match="split is 'dev'; expected one of train"):
        draw_scene("dev", 0, 0)
    with pytest.raises(SpriteWorldError, match="index is -1"):
        draw_scene("train", 0, -1)


@pytest.mark.parametrize("first, second", [pair for pair in BASIC_PAIRS if pair[0] not in ("appear", "bounce")])
def test_an_opposite_is_the_same_clip_backwards(first, second):
    """So no frame, nor all frames without their order, tells the two apart."""
    for seed in range(20):
        one, other = (stage(("one", (("fox", action),)), random.Random(seed)) for action in (first, second))
        assert reversed_scene(one) == other


@pytest.mark.parametrize("split", ["train", "test"])
def test_reversed_scene_mirrors_every_pose_in_time(split):
    for scene in scenes_of(split, 200):
        backward = reversed_scene(scene)
        for actor, mirrored in zip(scene.actors, backward.actors, strict=True):
            for time in (0.0, 0.2, *TIMES, 1.0):
                assert pose(mirrored, time) == pytest.approx(pose(actor, 1 - time), abs=1e-9)
        assert semantic_key(content(reversed_scene(backward))) == semantic_key(content(scene))


def test_everything_stays_on_the_canvas_and_moves():
    for scene in scenes_of("train", 500):
        for actor in scene.actors:
            poses = [pose(actor, time) for time in TIMES]
            for here in poses:
                half = actor.size * here.scale / 2
                assert half - 1e-6 <= here.x <= 1 - half + 1e-6 and half - 1e-6 <= here.y <= 1 - half + 1e-6
            still = (0.01, 0.01, 0.02, 2, 0.5)
            spread = np.ptp(np.array(poses), axis=0)
            assert (spread > still).any(), f"{actor} looks as if it stood still"


def test_a_sequence_has_one_actor_at_a_time():
    for scene in (scene for scene in scenes_of("test", 1000) if scene.kind == "sequence"):
        (first, _), (second, _) = content(scene)[1]
        by_name = {actor.sprite: actor for actor in scene.actors}
        assert pose(by_name[first], 0.5) == pose(by_name[first], 1.0)
        assert pose(by_name[second], 0.0) == pose(by_name[second], 0.5)


def test_follow_and_pass_are_what_they_say():
    relations = [scene for scene in scenes_of("train", 1500) if scene.kind == "relation"]
    seen = set()
    for scene in relations:
        (agent, action), (patient, _) = content(scene)[1]
        actors = {actor.sprite: actor for actor in scene.actors}
        one, other = actors[agent], actors[patient]
        way = np.sign(one.amount)
        assert np.sign(other.amount) == way
        leads = [way * (pose(one, time).x - pose(other, time).x) for time in (0.0, 0.5, 1.0)]
        if action == "follow":
            assert leads == pytest.approx([leads[0]] * 3) and leads[0] < -0.15
        else:
            assert leads[0] < -0.15 and leads[2] > 0.15
        seen.add((action, way))
    assert len(seen) == 4


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
    forms = [form for phrase in PHRASES[action] for form in phrase] + list(world.PASSIVE.get(action, ()))
    return any(form in text for form in forms)


def _actions_said(text: str, actions: list[str]) -> list[str]:
    """Each action as often as the text says it, longest phrases first ("moves to the left" is not "moves")."""
    phrases = [(form, action) for action in actions for phrase in PHRASES[action] for form in phrase]
    phrases += [(form, action) for action in actions for form in world.PASSIVE.get(action, ())]
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
    assert set(places) == set(world.PLACES)
