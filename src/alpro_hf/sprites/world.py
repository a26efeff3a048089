"""The sprite world, a procedural video-language benchmark: scenes of one to three named sprites in motion, and splits.

A `Scene` describes the position of every sprite on a unit square for times in [0, 1]. `render` draws scenes, and
`language` makes captions and questions of them.

Every action takes more than one frame and has its opposite in the set. No single frame, and not even the set of frames
without their order, distinguishes the two. Splits are made by combination: each sprite holds out two of the seven
pairs of opposites, both members together. `train` and `validation` never show a sprite doing a held-out action, `test`
and `test-hard` show only held-out actions, and eight sprites occur only in `test-unseen`. `dev` is for decisions
during development, so that `test` stays unseen: it has pairs of its own, which `train` shows and `train-dev` does not.
Train on `train-dev` to decide on `dev`; the combinations of `test` and `test-hard` are new to both. In a relation
("A follows
B") the pair counts for A, the agent. The splits are part of the world and do not depend on the seed of a draw.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

WORLD_VERSION = 1  # increased whenever the same arguments give other scenes or pixels
SPRITE_WORLD = "sprite-world"  # `training_domain` in the configuration of a model that knows nothing else
MARK = "a clip of the sprite world of alpro-hf"  # comment in the metadata of every rendered file
Rng = random.Random | np.random.Generator
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------- vocabulary


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": _words(
        """dog cat mouse hamster rabbit fox bear panda koala tiger lion cow pig frog monkey chicken penguin bird duck
        eagle owl bat wolf boar horse unicorn bee caterpillar butterfly snail ladybug ant turtle snake lizard octopus
        shrimp lobster crab blowfish fish dolphin whale shark crocodile leopard zebra gorilla elephant hippopotamus
        rhinoceros camel giraffe kangaroo ox ram sheep goat deer llama rooster turkey peacock parrot swan flamingo
        hedgehog"""
    ),
    "vehicle": _words(
        """car taxi bus trolleybus ambulance truck tractor bicycle scooter motorcycle train helicopter airplane rocket
        sailboat speedboat ship boat canoe"""
    ),
    "food": _words(
        """apple pear tangerine lemon banana watermelon grape strawberry cherry peach mango pineapple coconut tomato
        avocado broccoli carrot corn bread cheese egg bacon hamburger pizza taco sushi doughnut cookie cake
        candy"""
    ),
    "object": _words(
        """football basketball baseball guitar trumpet violin drum camera television telephone lamp candle book pencil
        scissors key hammer axe umbrella balloon gift crown hat shoe ring gem bell clock hourglass chair bed door
        toilet bathtub house tent castle church tree cactus rose tulip sunflower mushroom"""
    ),
}
SPRITES: tuple[str, ...] = tuple(itertools.chain.from_iterable(CATEGORIES.values()))
CATEGORY_OF: dict[str, str] = {sprite: category for category, sprites in CATEGORIES.items() for sprite in sprites}
UNSEEN_SPRITES: tuple[str, ...] = ("kangaroo", "lizard", "tractor", "canoe", "mango", "taco", "umbrella", "cactus")
SEEN_SPRITES: tuple[str, ...] = tuple(sprite for sprite in SPRITES if sprite not in UNSEEN_SPRITES)

BASIC_PAIRS: tuple[tuple[str, str], ...] = (
    ("left", "right"),
    ("up", "down"),
    ("grow", "shrink"),
    ("clockwise", "counterclockwise"),
    ("appear", "disappear"),
    ("bounce", "sway"),
)
RELATION_PAIR: tuple[str, str] = ("follow", "pass")
PAIRS: tuple[tuple[str, str], ...] = (*BASIC_PAIRS, RELATION_PAIR)
BASIC_ACTIONS: tuple[str, ...] = tuple(itertools.chain.from_iterable(BASIC_PAIRS))
PAIR_OF: dict[str, tuple[str, str]] = {action: pair for pair in PAIRS for action in pair}
OPPOSITE: dict[str, str] = {first: second for a, b in PAIRS for first, second in ((a, b), (b, a))}
# Action -> action of the clip played backwards. A bounce stays a bounce, and being passed stays being passed.
REVERSED: dict[str, str] = {**OPPOSITE, "bounce": "bounce", "sway": "sway", "follow": "lead", "lead": "follow"}
REVERSED |= {"pass": "pass", "passed": "passed"}

SCENE_KINDS: dict[str, float] = {"one": 0.15, "two": 0.40, "three": 0.15, "sequence": 0.15, "relation": 0.15}
# two more kinds of groups
DIRECTIONS = "directions"  # one sprite that moves left, right, up and down
TURNS = "turns"  # one sprite that spins in both directions, and does both actions of another pair
ACTORS: dict[str, int] = {"one": 1, "two": 2, "three": 3, "sequence": 2, "relation": 2}
SPLITS: tuple[str, ...] = ("train", "train-dev", "validation", "dev", "test", "test-hard", "test-unseen")
SPLIT_SIZES: dict[str, int] = {"validation": 1000, "dev": 1000, "test": 1000, "test-hard": 1000, "test-unseen": 200}
ENDLESS: tuple[str, ...] = ("train", "train-dev")


def _held_out() -> dict[str, tuple[tuple[str, str], ...]]:
    """Two pairs for each seen sprite. Each combination of two pairs is held out by seven or eight sprites."""
    sprites = list(SEEN_SPRITES)
    random.Random("sprite world: held-out pairs").shuffle(sprites)
    return dict(zip(sprites, itertools.cycle(itertools.combinations(PAIRS, 2)), strict=False))


HELD_OUT: dict[str, tuple[tuple[str, str], ...]] = _held_out()


def _held_out_for_dev() -> dict[str, tuple[tuple[str, str], ...]]:
    """Of the pairs that tests leave, one basic pair for each seen sprite; for some sprites the relation, too."""
    sprites = list(SEEN_SPRITES)
    random.Random("sprite world: pairs of the dev split").shuffle(sprites)
    turns = itertools.cycle(BASIC_PAIRS)
    held: dict[str, tuple[tuple[str, str], ...]] = {}
    for sprite in sprites:
        pair = next(pair for pair in turns if pair not in HELD_OUT[sprite])
        held[sprite] = (pair,)
    able = [sprite for sprite in sprites if RELATION_PAIR not in HELD_OUT[sprite]]
    for sprite in able[: len(sprites) // len(PAIRS)]:
        held[sprite] = (*held[sprite], RELATION_PAIR)
    return held


HELD_OUT_DEV: dict[str, tuple[tuple[str, str], ...]] = _held_out_for_dev()


class SpriteWorldError(ValueError):
    """An argument does not fit the sprite world: an unknown split or kind, an index out of range, a foreign folder."""


# -------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True, slots=True)
class Actor:
    """One sprite and its action.

    Lengths are fractions of the canvas, the origin is the upper left corner, y points down, times are in [0, 1].

    Args:
        sprite: its name, one of `SPRITES`.
        action: one of `BASIC_ACTIONS`, or "follow", "lead" (is followed), "pass", "passed" in a relation.
        x, y: centre of its path.
        size: side of the sprite at full scale.
        amount: how far a move goes (signed, positive to the right, in a relation), the smallest scale of a growth, the
            degrees of a spin, the moment of an appearance as a share of the window, the amplitude of a bounce or sway.
        angle: degrees: the clockwise tilt in the middle of a spin, or the phase of a bounce or sway.
        begin, end: the window in which it acts; it stands still outside.
    """

    sprite: str
    action: str
    x: float
    y: float
    size: float
    amount: float
    angle: float = 0.0
    begin: float = 0.0
    end: float = 1.0


class Pose(NamedTuple):
    """State of an actor at one moment: centre, scale, clockwise tilt in degrees, opacity in [0, 1]."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip: its kind (a key of `SCENE_KINDS`), its actors in painting order, the seed of background and camera."""

    kind: str
    actors: tuple[Actor, ...]
    look: int


FADE = 0.04  # duration of an appearance as a share of the clip


def pose(actor: Actor, time: float) -> Pose:
    """The pose of `actor` at `time` in [0, 1]."""
    span = actor.end - actor.begin
    u = min(max((time - actor.begin) / span, 0.0), 1.0)
    x, y, action, amount = actor.x, actor.y, actor.action, actor.amount
    if action == "left":
        return Pose(x + (0.5 - u) * amount, y)
    if action == "right":
        return Pose(x + (u - 0.5) * amount, y)
    if action == "up":
        return Pose(x, y + (0.5 - u) * amount)
    if action == "down":
        return Pose(x, y + (u - 0.5) * amount)
    if action == "grow":
        return Pose(x, y, scale=amount + (1 - amount) * u)
    if action == "shrink":
        return Pose(x, y, scale=1 - (1 - amount) * u)
    if action == "clockwise":
        return Pose(x, y, angle=actor.angle + (u - 0.5) * amount)
    if action == "counterclockwise":
        return Pose(x, y, angle=actor.angle + (0.5 - u) * amount)
    if action in ("appear", "disappear"):
        shown = min(max(0.5 + (u - amount) * span / FADE, 0.0), 1.0)
        return Pose(x, y, opacity=shown if action == "appear" else 1 - shown)
    if action in ("bounce", "sway"):
        cycles = 2 if span > 0.75 else 1
        offset = amount * math.sin(2 * math.pi * cycles * u + math.radians(actor.angle))
        return Pose(x, y + offset) if action == "bounce" else Pose(x + offset, y)
    if action in ("follow", "lead", "pass", "passed"):
        return Pose(x + (u - 0.5) * amount, y)
    raise SpriteWorldError(f"Actor.action is {action!r}; expected one of {', '.join(REVERSED)}.")


Role = tuple[str, str]  # (sprite, action)
Content = tuple[str, tuple[Role, ...]]  # (kind, roles): sequence in order of time, relation with the agent first


def content(scene: Scene) -> Content:
    """The meaning of a scene, without its geometry: (kind, ((sprite, action), ...)).

    The roles of a sequence are in order of time, the agent of a relation comes first.
    """
    actors: Sequence[Actor] = scene.actors
    if scene.kind == "sequence":
        actors = sorted(actors, key=lambda actor: actor.begin)
    elif scene.kind == "relation":
        actors = sorted(actors, key=lambda actor: actor.action not in RELATION_PAIR)
    return scene.kind, tuple((actor.sprite, actor.action) for actor in actors)


def semantic_key(scene_content: Content) -> Content:
    """A key that is equal for two contents exactly if every caption of one is true of the other."""
    kind, roles = scene_content
    return kind, roles if kind in ("sequence", "relation") else tuple(sorted(roles))


def reversed_scene(scene: Scene) -> Scene:
    """The scene that looks like `scene` played backwards: its frame at t is the frame of `scene` at 1 - t."""

    def backwards(actor: Actor) -> Actor:
        amount, angle = actor.amount, actor.angle
        if actor.action in ("appear", "disappear"):
            amount = 1 - amount
        elif actor.action in ("bounce", "sway"):
            angle = 180 - angle
        elif actor.action in ("follow", "lead", "pass", "passed"):
            amount = -amount
        action = REVERSED[actor.action]
        return replace(actor, action=action, amount=amount, angle=angle, begin=1 - actor.end, end=1 - actor.begin)

    return replace(scene, actors=tuple(backwards(actor) for actor in scene.actors))


# ------------------------------------------------------------------------------------------------------------ geometry

SIZES: dict[str, float] = {"one": 0.40, "two": 0.34, "three": 0.28, "sequence": 0.34, "relation": 0.28}
MARGIN = 0.02  # kept free along the border, for the camera
LAYOUTS = 16
# times at which a layout is checked for overlaps
_PROBES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def _uniform(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def pick(rng: Rng, items: Sequence[T]) -> T:
    """One of `items`, by one draw of `random()`, which generators of Python and numpy both have."""
    return items[int(rng.random() * len(items))]


def _act(rng: Rng, sprite: str, action: str, size: float, begin: float, end: float) -> Actor:
    """An actor in the middle of the canvas; `_arrange` moves it to its place."""
    pair, angle = PAIR_OF[action], 0.0
    if pair in (("left", "right"), ("up", "down")):
        amount = _uniform(rng, 0.45, min(0.65, 1 - size - 2 * MARGIN))
    elif action in ("grow", "shrink"):
        amount = _uniform(rng, 0.36, 0.44)
    elif pair == ("clockwise", "counterclockwise"):
        # Upright (within 40 degrees) at one end of the turn, the first or the last, so that the set of tilts does not
        # reveal the direction.
        amount = _uniform(rng, 110, 160)
        angle = pick(rng, (-1, 1)) * (amount / 2 + _uniform(rng, -40, 40))
    elif pair == ("appear", "disappear"):
        amount = _uniform(rng, 0.35, 0.65)
    else:
        # Shifted by an eighth of a cycle, so that four frames never coincide with the zeros of the sine.
        amount = _uniform(rng, 0.14, 0.18)
        angle = pick(rng, (45, 135, 225, 315))
    return Actor(sprite, action, 0.5, 0.5, size, amount, angle, begin, end)


def _arrange(rng: Rng, actors: list[Actor]) -> list[Actor]:
    """Place the paths: choose the random layout, of `LAYOUTS`, in which the sprites overlap least."""
    ranges, offsets = [], []
    for actor in actors:
        poses = [pose(actor, time) for time in _PROBES]
        half = actor.size * (0.6 if PAIR_OF[actor.action] == PAIR_OF["clockwise"] else 0.5) + MARGIN
        swing = actor.amount if actor.action in ("bounce", "sway") else 0.0
        reach_x = max(swing * (actor.action == "sway"), *(abs(p.x - 0.5) for p in poses))
        reach_y = max(swing * (actor.action == "bounce"), *(abs(p.y - 0.5) for p in poses))
        ranges.append((min(half + reach_x, 0.5), min(half + reach_y, 0.5)))
        offsets.append([(p.x - 0.5, p.y - 0.5, actor.size * p.scale / 2) for p in poses])
    best, least = [(0.5, 0.5)] * len(actors), math.inf
    for _ in range(LAYOUTS):
        centres = [(_uniform(rng, rx, 1 - rx), _uniform(rng, ry, 1 - ry)) for rx, ry in ranges]
        overlap = 0.0
        for i, j in itertools.combinations(range(len(actors)), 2):
            gap_x, gap_y = centres[i][0] - centres[j][0], centres[i][1] - centres[j][1]
            for (ax, ay, ah), (bx, by, bh) in zip(offsets[i], offsets[j], strict=True):
                overlap += max(0.0, ah + bh - max(abs(gap_x + ax - bx), abs(gap_y + ay - by)))
        if overlap < least:
            best, least = centres, overlap
        if least == 0:
            break
    return [replace(actor, x=x, y=y) for actor, (x, y) in zip(actors, best, strict=True)]


def _relate(rng: Rng, roles: tuple[Role, ...]) -> list[Actor]:
    """Two sprites that move in the same horizontal direction, in two lanes, for both relations."""
    (agent, action), (patient, _) = roles
    size = SIZES["relation"] * _uniform(rng, 0.92, 1.08)
    room = 1 - size - 2 * MARGIN
    way = pick(rng, (-1, 1))
    lane = pick(rng, (-1, 1)) * _uniform(rng, 0.20, 0.32) / 2
    middle = _uniform(rng, 0.5 - (room / 2 - abs(lane)), 0.5 + (room / 2 - abs(lane)))
    gap = _uniform(rng, 0.20, 0.24)
    if action == "follow":
        travel = room - gap - 0.03 * rng.random()
        places = ((0.5 - way * gap / 2, way * travel), (0.5 + way * gap / 2, way * travel))
    else:
        travel = room - 0.03 * rng.random()
        places = ((0.5, way * travel), (0.5, way * (travel - 2 * gap)))
    names = ("follow", "lead") if action == "follow" else ("pass", "passed")
    actors = [
        Actor(agent, names[0], places[0][0], middle + lane, size, places[0][1]),
        Actor(patient, names[1], places[1][0], middle - lane, size, places[1][1]),
    ]
    return actors if rng.random() < 0.5 else actors[::-1]


def stage(scene_content: Content, rng: Rng) -> Scene:
    """Give a content a geometry: sizes, paths, timing, background."""
    kind, roles = scene_content
    if kind == "relation":
        actors = _relate(rng, roles)
    else:
        windows = ((0.0, 0.46), (0.54, 1.0)) if kind == "sequence" else ((0.0, 1.0),) * len(roles)
        size = SIZES[kind]
        actors = _arrange(
            rng,
            [
                _act(rng, sprite, action, size * _uniform(rng, 0.92, 1.08), begin, end)
                for (sprite, action), (begin, end) in zip(roles, windows, strict=True)
            ],
        )
    return Scene(kind, tuple(actors), int(rng.random() * 2**31))


# -------------------------------------------------------------------------------------------------------------- splits


def allowed_actions(split: str, sprite: str) -> tuple[str, ...]:
    """The actions, relations included, that `sprite` may perform in `split`; empty where it does not occur."""
    if split not in SPLITS:
        raise SpriteWorldError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    if sprite in UNSEEN_SPRITES:
        pairs: Sequence[tuple[str, str]] = PAIRS if split == "test-unseen" else ()
    elif split == "test-unseen":
        pairs = ()
    elif split in ("train", "validation"):
        pairs = [pair for pair in PAIRS if pair not in HELD_OUT[sprite]]
    elif split == "train-dev":
        pairs = [pair for pair in PAIRS if pair not in (*HELD_OUT[sprite], *HELD_OUT_DEV[sprite])]
    elif split == "dev":
        pairs = HELD_OUT_DEV[sprite]
    else:
        pairs = HELD_OUT[sprite]
    return tuple(itertools.chain.from_iterable(pairs))


class _Cast(NamedTuple):
    sprites: tuple[str, ...]
    actions: dict[str, tuple[str, ...]]  # basic actions by sprite
    versatile: tuple[str, ...]  # sprites with at least four basic actions
    agents: tuple[str, ...]  # sprites that may follow and pass
    movers: tuple[str, ...]  # sprites that may move in all four directions
    spinners: tuple[str, ...]  # versatile sprites that may spin


@cache
def _cast(split: str) -> _Cast:
    allowed = {sprite: allowed_actions(split, sprite) for sprite in SPRITES}
    sprites = tuple(sprite for sprite in SPRITES if allowed[sprite])
    actions = {sprite: tuple(a for a in allowed[sprite] if a in BASIC_ACTIONS) for sprite in sprites}
    versatile = tuple(sprite for sprite in sprites if len(actions[sprite]) >= 4)
    agents = tuple(sprite for sprite in sprites if "follow" in allowed[sprite])
    movers = tuple(sprite for sprite in sprites if {*BASIC_PAIRS[0], *BASIC_PAIRS[1]} <= set(actions[sprite]))
    spinners = tuple(sprite for sprite in versatile if "clockwise" in actions[sprite])
    return _Cast(sprites, actions, versatile, agents, movers, spinners)


def _draw_kind(rng: Rng) -> str:
    share = rng.random()
    for kind, weight in SCENE_KINDS.items():
        share -= weight
        if share < 0:
            return kind
    return "two"


def _draw_sprites(rng: Rng, pool: Sequence[str], count: int) -> tuple[str, ...]:
    sprites: list[str] = []
    while len(sprites) < count:
        sprite = pick(rng, pool)
        if sprite not in sprites:
            sprites.append(sprite)
    return tuple(sprites)


def _relation(agent: str, action: str, patient: str) -> Content:
    return "relation", ((agent, action), (patient, "lead" if action == "follow" else "passed"))


def _draw_content(split: str, rng: Rng) -> Content:
    cast, kind = _cast(split), _draw_kind(rng)
    if kind == "relation":
        agent = pick(rng, cast.agents)
        patient = pick(rng, cast.sprites)
        while patient == agent:
            patient = pick(rng, cast.sprites)
        return _relation(agent, pick(rng, RELATION_PAIR), patient)
    sprites = _draw_sprites(rng, cast.sprites, ACTORS[kind])
    return kind, tuple((sprite, pick(rng, cast.actions[sprite])) for sprite in sprites)


def _draw_group_content(split: str, rng: Rng, kind: str | None = None) -> tuple[Content, ...]:
    """Four different contents with the same sprites; half of the groups consist of opposites."""
    cast, kind = _cast(split), kind or _draw_kind(rng)
    if kind == DIRECTIONS:
        (sprite,) = _draw_sprites(rng, cast.movers, 1)
        return tuple(("one", ((sprite, action),)) for pair in BASIC_PAIRS[:2] for action in pair)
    if kind == TURNS:
        (sprite,) = _draw_sprites(rng, cast.spinners, 1)
        return _opposite_group("one", ((sprite, "clockwise"),), cast, rng)
    if kind == "relation":
        a, b = _draw_sprites(rng, cast.agents, 2)
        return tuple(_relation(*pair) for action in RELATION_PAIR for pair in ((a, action, b), (b, action, a)))
    sprites = _draw_sprites(rng, cast.versatile if kind == "one" else cast.sprites, ACTORS[kind])
    roles = tuple((sprite, pick(rng, cast.actions[sprite])) for sprite in sprites)
    if rng.random() < 0.5:
        return _opposite_group(kind, roles, cast, rng)
    group: dict[Content, Content] = {}
    while len(group) < 4:
        drawn = [(sprite, pick(rng, cast.actions[sprite])) for sprite in sprites]
        if kind == "sequence" and rng.random() < 0.5:
            drawn.reverse()
        group.setdefault(semantic_key((kind, tuple(drawn))), (kind, tuple(drawn)))
    return tuple(group.values())


def _opposite_group(kind: str, roles: tuple[Role, ...], cast: _Cast, rng: Rng) -> tuple[Content, ...]:
    def turned(role: Role) -> Role:
        return role[0], OPPOSITE[role[1]]

    if kind == "one":
        (sprite, action), *_ = roles
        others = [other for other in cast.actions[sprite] if other not in PAIR_OF[action]]
        second = (sprite, pick(rng, others))
        return tuple((kind, (role,)) for role in (roles[0], turned(roles[0]), second, turned(second)))
    a, b, *rest = roles
    if kind == "sequence":
        c, d = (turned(a), b) if rng.random() < 0.5 else (turned(a), turned(b))
        return (kind, (a, b)), (kind, (b, a)), (kind, (c, d)), (kind, (d, c))
    return tuple((kind, (first, second, *rest)) for first in (a, turned(a)) for second in (b, turned(b)))


@lru_cache(maxsize=16)
def _fixed_contents(split: str, seed: int) -> tuple[Content, ...]:
    """The contents of an evaluation split, all different."""
    size = SPLIT_SIZES[split]
    rng = random.Random(f"sprite world/{split}/{seed}/contents")
    contents: dict[Content, Content] = {}
    if split == "test-hard":
        casts: set[frozenset[str]] = set()
        while len(contents) < size:
            group = _draw_group_content(split, rng)
            sprites = frozenset(sprite for sprite, _ in group[0][1])
            if sprites not in casts:
                casts.add(sprites)
                contents |= {semantic_key(one): one for one in group}
    while len(contents) < size:
        drawn = _draw_content(split, rng)
        contents.setdefault(semantic_key(drawn), drawn)
    return tuple(contents.values())


def _check(split: str, index: int, size: int | None) -> None:
    if split not in SPLITS:
        raise SpriteWorldError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    if index < 0 or (size is not None and index >= size):
        limit = "" if size is None else f" and below {size}, the size of {split!r}"
        raise SpriteWorldError(f"index is {index}; it must be at least 0{limit}.")


def draw_scene(split: str, seed: int, index: int) -> Scene:
    """Scene `index` of a split: a pure function of its arguments.

    `train` and `train-dev` are endless. The other splits have `SPLIT_SIZES[split]` scenes, no two with the same
    meaning. Scenes 4k to 4k + 3 of `test-hard` share their sprites, and no other group has the same sprites.
    """
    _check(split, index, SPLIT_SIZES.get(split))
    rng = random.Random(f"sprite world/{split}/{seed}/scene/{index}")
    return stage(_draw_content(split, rng) if split in ENDLESS else _fixed_contents(split, seed)[index], rng)


def draw_scenes(split: str, seed: int, name: str, count: int) -> list[Scene]:
    """Scenes of the combinations of a split, no two with the same meaning: as many as wanted, in no split themselves.

    Args:
        split: One of `SPLITS`.
        seed, name: Which scenes; the same split, seed, name and count give the same ones.
        count: Number of scenes, of at least 0. A larger count only adds scenes.
    """
    _check(split, 0, None)
    rng = random.Random(f"sprite world/{split}/{seed}/{name}/contents")
    contents: dict[Content, Content] = {}
    while len(contents) < count:
        drawn = _draw_content(split, rng)
        contents.setdefault(semantic_key(drawn), drawn)
    return [
        stage(drawn, random.Random(f"sprite world/{split}/{seed}/{name}/scene/{index}"))
        for index, drawn in enumerate(contents.values())
    ]


def draw_group(split: str, seed: int, index: int, kind: str | None = None) -> list[Scene]:
    """Four scenes with the same sprites and different actions: a pure function of its arguments.

    Half of the groups consist of opposites. `train`, `train-dev` and `validation` have endless groups, `test-hard` has
    250; `dev`, `test` and `test-unseen` have none and raise `SpriteWorldError`. With `kind`, a key of `SCENE_KINDS`,
    `DIRECTIONS` or `TURNS`, endless groups are of that kind.
    """
    if kind is not None and kind not in (*SCENE_KINDS, DIRECTIONS, TURNS):
        expected = ", ".join((*SCENE_KINDS, DIRECTIONS))
        raise SpriteWorldError(f"kind is {kind!r}; expected one of {expected} or {TURNS}.")
    if split in ("dev", "test", "test-unseen"):
        others = "'train', 'train-dev', 'validation' or 'test-hard'"
        raise SpriteWorldError(f"split {split!r} has no groups; use {others}.")
    if split == "test-hard":
        _check(split, index, SPLIT_SIZES[split] // 4)
        return [draw_scene(split, seed, 4 * index + member) for member in range(4)]
    _check(split, index, None)
    rng = random.Random(f"sprite world/{split}/{seed}/group/{index}")
    return [stage(member, rng) for member in _draw_group_content(split, rng, kind)]
