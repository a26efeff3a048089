"""The sprite world: scenes of one to three named sprites in motion, their captions, questions and splits.

A procedural video-language benchmark. Nothing here draws a pixel (see `sprite_render`): a `Scene` says, on a unit
square and for times in [0, 1], where every sprite is; captions and questions are made from it.

Every action needs more than one frame and has its opposite in the set, and no single frame (nor the set of frames
without their order) tells the two apart. Splits are made by combination: each sprite holds out two of the seven
opposite pairs, both members together. `train` and `validation` never show a sprite doing a held-out action, `test` and
`test-hard` show nothing else, and eight sprites occur only in `test-unseen`. In a relation ("A follows B") the pair
counts for A, the agent. These splits are part of the world: they do not depend on the seed of the draw.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

WORLD_VERSION = 1  # raised whenever the same arguments give other scenes or pixels
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
# What an action becomes when the clip is played backwards; a bounce stays a bounce, being passed stays being passed.
REVERSED: dict[str, str] = {**OPPOSITE, "bounce": "bounce", "sway": "sway", "follow": "lead", "lead": "follow"}
REVERSED |= {"pass": "pass", "passed": "passed"}

KINDS: dict[str, float] = {"one": 0.15, "two": 0.40, "three": 0.15, "sequence": 0.15, "relation": 0.15}
ACTORS: dict[str, int] = {"one": 1, "two": 2, "three": 3, "sequence": 2, "relation": 2}
SPLITS: tuple[str, ...] = ("train", "validation", "test", "test-hard", "test-unseen")
SPLIT_SIZES: dict[str, int] = {"validation": 1000, "test": 1000, "test-hard": 1000, "test-unseen": 200}


def _held_out() -> dict[str, tuple[tuple[str, str], ...]]:
    """Two pairs for each seen sprite; every combination of two pairs is held out by seven or eight sprites."""
    sprites = list(SEEN_SPRITES)
    random.Random("sprite world: held-out pairs").shuffle(sprites)
    return dict(zip(sprites, itertools.cycle(itertools.combinations(PAIRS, 2)), strict=False))


HELD_OUT: dict[str, tuple[tuple[str, str], ...]] = _held_out()


class SpriteWorldError(ValueError):
    """An argument names a split, clip or folder that the sprite world does not have."""


# -------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True, slots=True)
class Actor:
    """One sprite and what it does.

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
    """Where an actor is at one moment: centre, scale, clockwise tilt in degrees, opacity in [0, 1]."""

    x: float
    y: float
    scale: float = 1.0
    angle: float = 0.0
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole clip: its kind (a key of `KINDS`), its actors in painting order, the seed of background and camera."""

    kind: str
    actors: tuple[Actor, ...]
    look: int


FADE = 0.04  # how long, as a share of the clip, an appearance takes


def pose(actor: Actor, time: float) -> Pose:
    """Where `actor` is at `time` in [0, 1]."""
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
    """What a scene means, without its geometry: (kind, ((sprite, action), ...)).

    The roles of a sequence are in order of time, the agent of a relation comes first.
    """
    actors: Sequence[Actor] = scene.actors
    if scene.kind == "sequence":
        actors = sorted(actors, key=lambda actor: actor.begin)
    elif scene.kind == "relation":
        actors = sorted(actors, key=lambda actor: actor.action not in RELATION_PAIR)
    return scene.kind, tuple((actor.sprite, actor.action) for actor in actors)


def semantic_key(scene_content: Content) -> Content:
    """Equal for two contents exactly when every caption of one is true of the other."""
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
_PROBES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def _uniform(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _pick(rng: Rng, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _act(rng: Rng, sprite: str, action: str, size: float, begin: float, end: float) -> Actor:
    """An actor in the middle of the canvas; `_arrange` moves it to its place."""
    pair, angle = PAIR_OF[action], 0.0
    if pair in (("left", "right"), ("up", "down")):
        amount = _uniform(rng, 0.45, min(0.65, 1 - size - 2 * MARGIN))
    elif action in ("grow", "shrink"):
        amount = _uniform(rng, 0.36, 0.44)
    elif pair == ("clockwise", "counterclockwise"):
        # Upright (within 40 degrees) at one end of the turn, the first or the last, so that the tilts without their
        # order do not tell the direction.
        amount = _uniform(rng, 110, 160)
        angle = _pick(rng, (-1, 1)) * (amount / 2 + _uniform(rng, -40, 40))
    elif pair == ("appear", "disappear"):
        amount = _uniform(rng, 0.35, 0.65)
    else:
        # An eighth of a cycle off, so that four frames never fall on the zeros of the sine.
        amount = _uniform(rng, 0.14, 0.18)
        angle = _pick(rng, (45, 135, 225, 315))
    return Actor(sprite, action, 0.5, 0.5, size, amount, angle, begin, end)


def _arrange(rng: Rng, actors: list[Actor]) -> list[Actor]:
    """Place the paths: of a few random layouts the one whose sprites overlap least on their way."""
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
    """Two sprites that move in one horizontal direction, in two lanes (whichever the relation)."""
    (agent, action), (patient, _) = roles
    size = SIZES["relation"] * _uniform(rng, 0.92, 1.08)
    room = 1 - size - 2 * MARGIN
    way = _pick(rng, (-1, 1))
    lane = _pick(rng, (-1, 1)) * _uniform(rng, 0.20, 0.32) / 2
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
    else:
        pairs = HELD_OUT[sprite]
    return tuple(itertools.chain.from_iterable(pairs))


class _Cast(NamedTuple):
    sprites: tuple[str, ...]
    actions: dict[str, tuple[str, ...]]  # basic actions by sprite
    versatile: tuple[str, ...]  # sprites with at least four basic actions
    agents: tuple[str, ...]  # sprites that may follow and pass


@cache
def _cast(split: str) -> _Cast:
    allowed = {sprite: allowed_actions(split, sprite) for sprite in SPRITES}
    sprites = tuple(sprite for sprite in SPRITES if allowed[sprite])
    actions = {sprite: tuple(a for a in allowed[sprite] if a in BASIC_ACTIONS) for sprite in sprites}
    versatile = tuple(sprite for sprite in sprites if len(actions[sprite]) >= 4)
    agents = tuple(sprite for sprite in sprites if "follow" in allowed[sprite])
    return _Cast(sprites, actions, versatile, agents)


def _draw_kind(rng: Rng) -> str:
    share = rng.random()
    for kind, weight in KINDS.items():
        share -= weight
        if share < 0:
            return kind
    return "two"


def _draw_sprites(rng: Rng, pool: Sequence[str], count: int) -> tuple[str, ...]:
    sprites: list[str] = []
    while len(sprites) < count:
        sprite = _pick(rng, pool)
        if sprite not in sprites:
            sprites.append(sprite)
    return tuple(sprites)


def _relation(agent: str, action: str, patient: str) -> Content:
    return "relation", ((agent, action), (patient, "lead" if action == "follow" else "passed"))


def _draw_content(split: str, rng: Rng) -> Content:
    cast, kind = _cast(split), _draw_kind(rng)
    if kind == "relation":
        agent = _pick(rng, cast.agents)
        patient = _pick(rng, cast.sprites)
        while patient == agent:
            patient = _pick(rng, cast.sprites)
        return _relation(agent, _pick(rng, RELATION_PAIR), patient)
    sprites = _draw_sprites(rng, cast.sprites, ACTORS[kind])
    return kind, tuple((sprite, _pick(rng, cast.actions[sprite])) for sprite in sprites)


def _draw_group_content(split: str, rng: Rng, kind: str | None = None) -> tuple[Content, ...]:
    """Four different contents with the same sprites; in half of the groups they are built from opposites."""
    cast, kind = _cast(split), kind or _draw_kind(rng)
    if kind == "relation":
        a, b = _draw_sprites(rng, cast.agents, 2)
        return tuple(_relation(*pair) for action in RELATION_PAIR for pair in ((a, action, b), (b, action, a)))
    sprites = _draw_sprites(rng, cast.versatile if kind == "one" else cast.sprites, ACTORS[kind])
    roles = tuple((sprite, _pick(rng, cast.actions[sprite])) for sprite in sprites)
    if rng.random() < 0.5:
        return _opposite_group(kind, roles, cast, rng)
    group: dict[Content, Content] = {}
    while len(group) < 4:
        drawn = [(sprite, _pick(rng, cast.actions[sprite])) for sprite in sprites]
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
        second = (sprite, _pick(rng, others))
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

    `train` has no end. The other splits have `SPLIT_SIZES[split]` scenes, no two with the same meaning; scenes 4k to
    4k + 3 of `test-hard` share their sprites, and no other group has the same sprites.
    """
    _check(split, index, SPLIT_SIZES.get(split))
    rng = random.Random(f"sprite world/{split}/{seed}/scene/{index}")
    return stage(_draw_content(split, rng) if split == "train" else _fixed_contents(split, seed)[index], rng)


def draw_group(split: str, seed: int, index: int, kind: str | None = None) -> list[Scene]:
    """Four scenes with the same sprites and different actions: a pure function of its arguments.

    Half of the groups are made of opposites. `train` and `validation` have no end of groups; those of `test-hard` are
    its 250 groups; `test` and `test-unseen` are not made of groups and raise `SpriteWorldError`. With `kind`, a key of
    `KINDS`, groups of `train` and `validation` are of that kind.
    """
    if kind is not None and kind not in KINDS:
        raise SpriteWorldError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    if split in ("test", "test-unseen"):
        raise SpriteWorldError(f"split {split!r} has no groups; use 'train', 'validation' or 'test-hard'.")
    if split == "test-hard":
        _check(split, index, SPLIT_SIZES[split] // 4)
        return [draw_scene(split, seed, 4 * index + member) for member in range(4)]
    _check(split, index, None)
    rng = random.Random(f"sprite world/{split}/{seed}/group/{index}")
    return [stage(member, rng) for member in _draw_group_content(split, rng, kind)]


# ------------------------------------------------------------------------------------------------------------ captions


def _forms(*phrases: str) -> tuple[tuple[str, str], ...]:
    """ "moves|moving left" -> ("moves left", "moving left"): third person and "-ing" form."""
    split = (phrase.partition(" ")[::2] for phrase in phrases)
    return tuple(
        (f"{verb.split('|')[0]} {rest}".strip(), f"{verb.split('|')[1]} {rest}".strip()) for verb, rest in split
    )


# The phrases of two opposites stand in the same order.
PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    "left": _forms(
        "moves|moving to the left",
        "moves|moving left",
        "goes|going left",
        "runs|running to the left",
        "slides|sliding to the left",
        "travels|travelling from right to left",
    ),
    "right": _forms(
        "moves|moving to the right",
        "moves|moving right",
        "goes|going right",
        "runs|running to the right",
        "slides|sliding to the right",
        "travels|travelling from left to right",
    ),
    "up": _forms("moves|moving up", "goes|going up", "rises|rising", "climbs|climbing", "moves|moving upwards"),
    "down": _forms("moves|moving down", "goes|going down", "falls|falling", "sinks|sinking", "moves|moving downwards"),
    "grow": _forms("grows|growing", "gets|getting bigger", "becomes|becoming larger", "expands|expanding"),
    "shrink": _forms("shrinks|shrinking", "gets|getting smaller", "becomes|becoming smaller", "contracts|contracting"),
    "clockwise": _forms(
        "spins|spinning clockwise",
        "turns|turning clockwise",
        "rotates|rotating clockwise",
        "twirls|twirling clockwise",
    ),
    "counterclockwise": _forms(
        "spins|spinning counterclockwise",
        "turns|turning counterclockwise",
        "rotates|rotating anticlockwise",
        "twirls|twirling counterclockwise",
    ),
    "appear": _forms("appears|appearing", "shows|showing up", "comes|coming into view", "becomes|becoming visible"),
    "disappear": _forms(
        "disappears|disappearing", "vanishes|vanishing", "goes|going out of view", "becomes|becoming invisible"
    ),
    "bounce": _forms(
        "bounces|bouncing up and down", "bounces|bouncing", "hops|hopping up and down", "jumps|jumping up and down"
    ),
    "sway": _forms(
        "sways|swaying from side to side",
        "sways|swaying",
        "swings|swinging from side to side",
        "shakes|shaking from side to side",
    ),
    "follow": _forms("follows|following", "chases|chasing", "runs|running after", "goes|going after"),
    "pass": _forms("passes|passing", "overtakes|overtaking", "runs|running past", "goes|going past"),
}
PASSIVE: dict[str, tuple[str, ...]] = {
    "follow": ("is followed by", "is chased by"),
    "pass": ("is passed by", "is overtaken by"),
}
OPENINGS: tuple[str, ...] = (
    *("", "", ""),
    *("in this clip ", "in this video ", "a video where ", "a clip in which ", "here "),
)
ING_OPENINGS: tuple[str, ...] = ("a video of ", "a clip of ", "a short film of ")
TOGETHER: tuple[str, ...] = ("{0} while {1}", "{0} and {1}", "{0} as {1}", "while {1} , {0}")
TOGETHER_THREE: tuple[str, ...] = ("{0} while {1} and {2}", "{0} , {1} and {2}", "{0} as {1} and {2}")
SEQUENCE: tuple[str, ...] = (
    "first {0} , then {1}",
    "{0} and then {1}",
    "{0} before {1}",
    "after {0} , {1}",
    "{1} after {0}",
    "first {0} and after that {1}",
)
_PARTITIVES: dict[str, str] = {"scissors": "pair of scissors"} | {
    food: f"piece of {food}" for food in ("bread", "cheese", "bacon", "sushi", "broccoli", "corn", "candy")
}
_VOWEL_SOUND: frozenset[str] = frozenset(s for s in SPRITES if s[0] in "aeio") | {"umbrella", "hourglass"}


def noun_phrase(sprite: str, definite: bool = False) -> str:
    """ "a fox", "an apple", "a piece of bread"; with `definite` "the fox", "the pair of scissors"."""
    name = _PARTITIVES.get(sprite, sprite)
    if definite:
        return f"the {name}"
    return f"{'an' if name in _VOWEL_SOUND else 'a'} {name}"


class _Wording(NamedTuple):
    """Every free choice of a caption, as numbers in [0, 1): applied to another content it gives the same wording."""

    opening: float
    ing: bool
    connector: float
    order: tuple[int, ...]
    definite: tuple[bool, ...]
    phrases: tuple[float, ...]


def _draw_wording(kind: str, rng: Rng) -> _Wording:
    count = ACTORS[kind]
    order = list(range(count))
    if kind in ("two", "three"):
        for last in range(count - 1, 0, -1):
            other = int(rng.random() * (last + 1))
            order[last], order[other] = order[other], order[last]
    definite = rng.random() < 0.3
    return _Wording(
        rng.random(),
        rng.random() < 0.3,
        rng.random(),
        tuple(order),
        (definite,) * count,
        tuple(rng.random() for _ in range(count)),
    )


def _at(items: Sequence[T], share: float) -> T:
    return items[int(share * len(items))]


def _compose(scene_content: Content, wording: _Wording) -> str:
    kind, roles = scene_content
    nouns = [noun_phrase(roles[i][0], wording.definite[i]) for i in wording.order]
    ing = wording.ing and kind != "sequence"
    opening = _at(ING_OPENINGS if ing else OPENINGS, wording.opening)
    if kind == "relation":
        action = roles[0][1]
        if wording.connector < 0.35 and not ing:
            return f"{opening}{nouns[1]} {_at(PASSIVE[action], wording.phrases[0])} {nouns[0]}"
        return f"{opening}{nouns[0]} {_at(PHRASES[action], wording.phrases[0])[ing]} {nouns[1]}"
    forms = [_at(PHRASES[roles[i][1]], wording.phrases[i]) for i in wording.order]
    if kind == "one":
        return f"{opening}{nouns[0]} {forms[0][ing]}"
    if ing:  # "a video of a fox moving left and a pizza spinning"
        clauses = [f"{noun} {form[1]}" for noun, form in zip(nouns, forms, strict=True)]
        return opening + " , ".join(clauses[:-1]) + " and " + clauses[-1]
    templates = {"two": TOGETHER, "three": TOGETHER_THREE, "sequence": SEQUENCE}[kind]
    clauses = [f"{noun} {form[0]}" for noun, form in zip(nouns, forms, strict=True)]
    return opening + _at(templates, wording.connector).format(*clauses)


def _caption(scene_content: Content, wording: _Wording) -> str:
    return _compose(scene_content, wording).replace(" ,", ",")


def captions(scene: Scene, rng: Rng, count: int = 1) -> list[str]:
    """`count` true captions in lower case, different from each other; each names every sprite and its action.

    `rng` is a `random.Random` or a `numpy.random.Generator`.
    """
    meaning = content(scene)
    found: dict[str, None] = {}
    for _ in range(50 * count):
        if len(found) == count:
            return list(found)
        found[_caption(meaning, _draw_wording(scene.kind, rng))] = None
    raise SpriteWorldError(f"count is {count}; a scene of kind {scene.kind!r} has fewer captions, ask for at most 12.")


def opposite_caption(scene: Scene, rng: Rng) -> tuple[str, str, str]:
    """A true caption, a false one in the same wording, and what they differ in.

    One action is replaced by its opposite ("left/right", "grow/shrink", ..., "follow/pass"), or the two halves of a
    sequence change places ("order"), or the two sprites of a relation ("roles").
    """
    kind, roles = content(scene)
    wording = _draw_wording(kind, rng)
    true = _caption((kind, roles), wording)
    choices = range(len(roles) + (kind == "sequence")) if kind != "relation" else range(2)
    choice = _pick(rng, choices)
    if kind == "relation" and choice == 1:
        (a, action), (b, role) = roles
        return true, _caption((kind, ((b, action), (a, role))), wording), "roles"
    if choice == len(roles):
        swapped = wording._replace(phrases=wording.phrases[::-1], definite=wording.definite[::-1])
        return true, _caption((kind, roles[::-1]), swapped), "order"
    sprite, action = roles[choice]
    false_roles = (*roles[:choice], (sprite, OPPOSITE[action]), *roles[choice + 1 :])
    return true, _caption((kind, false_roles), wording), "/".join(PAIR_OF[action])


def swapped_caption(scene: Scene, rng: Rng) -> tuple[str, str] | None:
    """A true caption and the one in which two sprites exchange their actions; None where no two actions differ."""
    kind, roles = content(scene)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(roles)), 2) if roles[i][1] != roles[j][1]]
    if kind == "relation" or not pairs:
        return None
    wording = _draw_wording(kind, rng)
    i, j = _pick(rng, pairs)
    exchanged, phrases = list(roles), list(wording.phrases)
    exchanged[i], exchanged[j] = (roles[i][0], roles[j][1]), (roles[j][0], roles[i][1])
    phrases[i], phrases[j] = phrases[j], phrases[i]
    false = _caption((kind, tuple(exchanged)), wording._replace(phrases=tuple(phrases)))
    return _caption((kind, roles), wording), false


def reversed_caption(scene: Scene, rng: Rng) -> tuple[str, str] | None:
    """A caption true of the clip and one true of the clip played backwards; None where both mean the same."""
    forward, backward = content(scene), content(reversed_scene(scene))
    if semantic_key(forward) == semantic_key(backward):
        return None
    wording = _draw_wording(scene.kind, rng)
    if scene.kind not in ("sequence", "relation"):
        return _caption(forward, wording), _caption(backward, wording)
    turned = wording._replace(phrases=wording.phrases[::-1]) if scene.kind == "sequence" else wording
    return _caption(forward, wording), _caption(backward, turned)


# ----------------------------------------------------------------------------------------------------------- questions

DOING: dict[str, str] = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "grow": "growing",
    "shrink": "shrinking",
    "clockwise": "spinning clockwise",
    "counterclockwise": "spinning counterclockwise",
    "appear": "appearing",
    "disappear": "disappearing",
    "bounce": "bouncing",
    "sway": "swaying",
    "follow": "following",
    "pass": "passing",
}
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom", "middle")
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three")
_PLURALS: dict[str, str] = {"animal": "animals", "vehicle": "vehicles", "food": "foods"}

# The closed answer list of training. Nouns of `UNSEEN_SPRITES` are left out on purpose.
ANSWERS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (*DOING.values(), *PLACES, "up", "down", "clockwise", "counterclockwise", *NUMBERS, *sorted(SEEN_SPRITES))
    )
)


def _place(here: Pose) -> str | None:
    """Which of `PLACES` a sprite is at; None in a corner, between two places, or where it cannot be seen."""
    if here.opacity < 1:
        return None
    x, y = here.x - 0.5, here.y - 0.5
    if max(abs(x), abs(y)) < 0.08:
        return "middle"
    if abs(x) > 0.16 and abs(x) > 1.6 * abs(y):
        return "left" if x < 0 else "right"
    if abs(y) > 0.16 and abs(y) > 1.6 * abs(x):
        return "top" if y < 0 else "bottom"
    return None


def questions(scene: Scene, rng: Rng) -> list[dict[str, str]]:
    """Every question the scene answers without doubt: rows of `question`, `answer` and `answer_type`.

    The types are "what", "where", "how many", "which way" and "which first". Where a sprite stands is asked only if it
    is at the same place at the very start (or end) and an eighth of the clip later (or earlier).
    """
    kind, roles = content(scene)
    rows: list[dict[str, str]] = []

    def ask(answer_type: str, wordings: Sequence[str], answer: str) -> None:
        rows.append({"question": _pick(rng, wordings), "answer": answer, "answer_type": answer_type})

    if kind == "relation":
        (agent, action), (patient, _) = roles
        the_agent, the_patient = noun_phrase(agent, True), noun_phrase(patient, True)
        verb = _pick(rng, PHRASES[action])[0]
        ask("what", (f"what is {the_agent} doing?", f"what does {the_agent} do?"), DOING[action])
        ask("what", (f"what {verb} {the_patient}?",), agent)
        ask("what", (f"what {_pick(rng, PASSIVE[action])} {the_agent}?",), patient)
    else:
        done = [action for _, action in roles]
        for sprite, action in roles:
            the_sprite = noun_phrase(sprite, True)
            ask("what", (f"what is {the_sprite} doing?", f"what does {the_sprite} do?"), DOING[action])
            if done.count(action) == 1:
                ask("what", (f"what {_pick(rng, PHRASES[action])[0]}?",), sprite)
            if PAIR_OF[action] in BASIC_PAIRS[:2]:
                way = (f"which way does {the_sprite} move?", f"which way does {the_sprite} go?")
                ask("which way", way, action)
            elif action in PAIR_OF["clockwise"]:
                way = (f"which way does {the_sprite} spin?", f"which way does {the_sprite} turn?")
                ask("which way", way, action)
    for actor in scene.actors:
        the_sprite = noun_phrase(actor.sprite, True)
        start, end = _place(pose(actor, 0)), _place(pose(actor, 1))
        if start and start == _place(pose(actor, 0.125)):
            wordings = (f"where is {the_sprite} at the start?", f"where is {the_sprite} at the beginning?")
            ask("where", wordings, start)
        if end and end == _place(pose(actor, 0.875)):
            wordings = (f"where is {the_sprite} at the end?", f"where does {the_sprite} end up?")
            ask("where", wordings, end)
    ask("how many", ("how many things are there?", "how many things can you see?"), NUMBERS[len(roles)])
    category = _pick(rng, tuple(_PLURALS))
    number = NUMBERS[sum(CATEGORY_OF[sprite] == category for sprite, _ in roles)]
    plural = _PLURALS[category]
    ask("how many", (f"how many {plural} are there?", f"how many {plural} can you see?"), number)
    if kind == "sequence":
        pair = [noun_phrase(sprite, True) for sprite, _ in roles]
        if rng.random() < 0.5:
            pair.reverse()
        one, other = pair
        wordings = (f"which one moves first, {one} or {other}?", f"which one starts first, {one} or {other}?")
        ask("which first", wordings, roles[0][0])
    return rows
