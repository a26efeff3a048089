"""Scenes, their geometry and the splits of the sprite world."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest

from alpro_hf.sprites import world
from alpro_hf.sprites.world import (
    BASIC_PAIRS,
    DIRECTIONS,
    HELD_OUT,
    OPPOSITE,
    PAIRS,
    SCENE_KINDS,
    SEEN_SPRITES,
    SPLIT_SIZES,
    SPRITES,
    UNSEEN_SPRITES,
    Scene,
    SpriteWorldError,
    allowed_actions,
    content,
    draw_group,
    draw_scene,
    pose,
    reversed_scene,
    semantic_key,
    stage,
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
    assert sum(SCENE_KINDS.values()) == pytest.approx(1)


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
    assert all(abs(counts[kind] / 1000 - share) < 0.05 for kind, share in SCENE_KINDS.items())


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


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", [*SCENE_KINDS, DIRECTIONS])
def test_groups_of_one_kind(split, kind):
    for index in range(50):
        contents = [content(scene) for scene in draw_group(split, 1, index, kind)]
        assert {found for found, _ in contents} == {"one" if kind == DIRECTIONS else kind}
        assert len({semantic_key(one) for one in contents}) == 4
        if kind == DIRECTIONS:
            assert [roles[0][1] for _, roles in contents] == ["left", "right", "up", "down"]
            (sprite,) = {sprite for _, roles in contents for sprite, _ in roles}
            assert not {("left", "right"), ("up", "down")} & set(HELD_OUT[sprite])


def test_groups_and_splits_that_do_not_exist_are_refused():
    for index in range(30):
        group = draw_group("train-dev", 0, index, "turns")
        [sprite] = {actor.sprite for scene in group for actor in scene.actors}
        first, second, *others = (scene.actors[0].action for scene in group)
        assert (first, second) == ("clockwise", "counterclockwise")
        assert tuple(others) in {pair for a, b in BASIC_PAIRS for pair in ((a, b), (b, a))} - {(first, second)}
        assert {first, second, *others} <= {*allowed_actions("train-dev", sprite)}
    with pytest.raises(SpriteWorldError, match=r"kind is 'four'; expected one of one, .*, directions or turns"):
        draw_group("train", 0, 0, "four")
    with pytest.raises(SpriteWorldError, match="'test' has no groups"):
        draw_group("test", 0, 0)
    with pytest.raises(SpriteWorldError, match="split is 'training'; expected one of train"):
        draw_scene("training", 0, 0)
    with pytest.raises(SpriteWorldError, match="index is -1"):
        draw_scene("train", 0, -1)


@pytest.mark.parametrize(("first", "second"), [pair for pair in BASIC_PAIRS if pair[0] not in ("appear", "bounce")])
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
