"""Captions and questions of the sprite world: true ones, and false ones that differ in one detail.

They are made from the meaning of a scene (`world.content`); questions about places also use its geometry.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

from .world import (
    ACTORS,
    BASIC_PAIRS,
    CATEGORY_OF,
    OPPOSITE,
    PAIR_OF,
    RELATION_PAIR,
    SEEN_SPRITES,
    SPRITES,
    Content,
    Pose,
    Rng,
    Role,
    Scene,
    SpriteWorldError,
    allowed_actions,
    content,
    pick,
    pose,
    reversed_scene,
    semantic_key,
)

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------------------ captions


def _forms(*phrases: str) -> tuple[tuple[str, str], ...]:
    """ "moves|moving left" -> ("moves left", "moving left"): third person and "-ing" form."""
    split = (phrase.partition(" ")[::2] for phrase in phrases)
    return tuple(
        (f"{verb.split('|')[0]} {rest}".strip(), f"{verb.split('|')[1]} {rest}".strip()) for verb, rest in split
    )


# The phrases of two opposites are in the same order, so that a caption and its negative differ in the action alone.
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
# the wordings of `SEQUENCE` that name the events in their order, and those that can reverse it
FORWARD: tuple[str, ...] = tuple(one for one in SEQUENCE if "after {0}" not in one and "{1} after" not in one)
REVERSING: tuple[str, ...] = tuple(one for one in SEQUENCE if one not in FORWARD)
_PARTITIVES: dict[str, str] = {"scissors": "pair of scissors"} | {
    food: f"piece of {food}" for food in ("bread", "cheese", "bacon", "sushi", "broccoli", "corn", "candy")
}
# Not by all vowels: a unicorn, but an umbrella.
_VOWEL_SOUND: frozenset[str] = frozenset(s for s in SPRITES if s[0] in "aeio") | {"umbrella", "hourglass"}


def noun_phrase(sprite: str, definite: bool = False) -> str:
    """ "a fox", "an apple", "a piece of bread"; with `definite` "the fox", "the pair of scissors"."""
    name = _PARTITIVES.get(sprite, sprite)
    if definite:
        return f"the {name}"
    return f"{'an' if name in _VOWEL_SOUND else 'a'} {name}"


class _Wording(NamedTuple):
    """All free choices of a caption, as numbers in [0, 1). Applied to another content, they give the same wording."""

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
        # a shuffle by `random()` alone, which generators of Python and numpy both have
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


def _compose(scene_content: Content, wording: _Wording, sequence: Sequence[str] = SEQUENCE) -> str:
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
    templates = {"two": TOGETHER, "three": TOGETHER_THREE, "sequence": sequence}[kind]
    clauses = [f"{noun} {form[0]}" for noun, form in zip(nouns, forms, strict=True)]
    return opening + _at(templates, wording.connector).format(*clauses)


def _caption(scene_content: Content, wording: _Wording, sequence: Sequence[str] = SEQUENCE) -> str:
    return _compose(scene_content, wording, sequence).replace(" ,", ",")


def caption_and_negatives(scene: Scene, rng: Rng, sequence: Sequence[str] = SEQUENCE) -> tuple[str, list[str]]:
    """A true caption, and all false ones in the same wording that differ in one detail.

    The details: one action is replaced by its opposite, two sprites exchange their actions, the events of a sequence
    their order, or the sprites of a relation their roles. Of a sequence, the other order comes last.

    Args:
        scene: The scene.
        rng: A `random.Random` or a `numpy.random.Generator`.
        sequence: Wordings of a sequence to choose from, of `SEQUENCE`; one may be there several times.
    """
    kind, roles = content(scene)
    wording = _draw_wording(kind, rng)
    true = _caption((kind, roles), wording, sequence)
    false: dict[str, None] = {}

    def add(other: tuple[Role, ...], phrases: tuple[float, ...] = wording.phrases) -> None:
        if semantic_key((kind, other)) != semantic_key((kind, roles)):
            false[_caption((kind, other), wording._replace(phrases=phrases), sequence)] = None

    if kind == "relation":
        (a, action), (b, role) = roles
        add(((b, action), (a, role)))
        add(((a, OPPOSITE[action]), (b, role)))
    else:
        for place, (sprite, action) in enumerate(roles):
            add((*roles[:place], (sprite, OPPOSITE[action]), *roles[place + 1 :]))
        for i, j in itertools.combinations(range(len(roles)), 2):
            exchanged, phrases = list(roles), list(wording.phrases)
            exchanged[i], exchanged[j] = (roles[i][0], roles[j][1]), (roles[j][0], roles[i][1])
            phrases[i], phrases[j] = phrases[j], phrases[i]
            add(tuple(exchanged), tuple(phrases))
        if kind == "sequence":
            add(roles[::-1], wording.phrases[::-1])
    false.pop(true, None)
    return true, list(false)


def captions(scene: Scene, rng: Rng, count: int = 1) -> list[str]:
    """`count` different true captions in lower case; each names every sprite and its action.

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
    """A true caption, a false one in the same wording, and the difference between them.

    One action is replaced by its opposite ("left/right", "grow/shrink", ..., "follow/pass"), or the two halves of a
    sequence are exchanged ("order"), or the two sprites of a relation ("roles").
    """
    kind, roles = content(scene)
    wording = _draw_wording(kind, rng)
    true = _caption((kind, roles), wording)
    choices = range(len(roles) + (kind == "sequence")) if kind != "relation" else range(2)
    choice = pick(rng, choices)
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
    """A true caption and one in which two sprites exchange their actions; None if no two actions differ."""
    kind, roles = content(scene)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(roles)), 2) if roles[i][1] != roles[j][1]]
    if kind == "relation" or not pairs:
        return None
    wording = _draw_wording(kind, rng)
    i, j = pick(rng, pairs)
    exchanged, phrases = list(roles), list(wording.phrases)
    exchanged[i], exchanged[j] = (roles[i][0], roles[j][1]), (roles[j][0], roles[i][1])
    phrases[i], phrases[j] = phrases[j], phrases[i]
    false = _caption((kind, tuple(exchanged)), wording._replace(phrases=tuple(phrases)))
    return _caption((kind, roles), wording), false


def reversed_caption(scene: Scene, rng: Rng) -> tuple[str, str] | None:
    """A caption of the clip and one of the clip played backwards; None if both mean the same."""
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

# The closed list of answers for training. Nouns of `UNSEEN_SPRITES` are missing on purpose.
ANSWERS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (*DOING.values(), *PLACES, "up", "down", "clockwise", "counterclockwise", *NUMBERS, *sorted(SEEN_SPRITES))
    )
)


def _place(here: Pose) -> str | None:
    """The one of `PLACES` where a sprite is; None in a corner, between two places, or if it is not fully visible."""
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


@cache
def _never_does(sprite: str, split: str) -> frozenset[str]:
    """Answers that name actions of `sprite` that a split for training never shows."""
    absent = {*PHRASES} - {*allowed_actions(split, sprite)}
    return frozenset(DOING[action] for action in absent) | frozenset(absent & {*ANSWERS})


@cache
def _never_done_by(action: str, split: str) -> frozenset[str]:
    """Sprites that a split for training never shows doing `action`."""
    return frozenset(sprite for sprite in SEEN_SPRITES if action not in allowed_actions(split, sprite))


def questions(scene: Scene, rng: Rng, candidates: bool = False, split: str = "train") -> list[dict[str, Any]]:
    """All questions that the scene answers without doubt: rows of `question`, `answer` and `answer_type`.

    The types are "what", "where", "how many", "which way" and "which first". The place of a sprite is asked only if it
    is the same at the very start (or end) and an eighth of the clip later (or earlier).

    With `candidates`, a row has a tuple of that name if training never shows some answers with its question: the
    answers that it does show. If no fox grows in training, "what grows?" never has the answer "fox". A model that lets
    only candidates compete does not learn which combinations are held out. `split` is the split for training, `train`
    or `train-dev`.
    """
    kind, roles = content(scene)
    rows: list[dict[str, Any]] = []

    def ask(answer_type: str, wordings: Sequence[str], answer: str, never: frozenset[str] = frozenset()) -> None:
        rows.append({"question": pick(rng, wordings), "answer": answer, "answer_type": answer_type})
        if candidates and never:
            rows[-1]["candidates"] = tuple(one for one in ANSWERS if one not in never)

    if kind == "relation":
        (agent, action), (patient, _) = roles
        the_agent, the_patient = noun_phrase(agent, True), noun_phrase(patient, True)
        verb = pick(rng, PHRASES[action])[0]
        ask(
            "what",
            (f"what is {the_agent} doing?", f"what does {the_agent} do?"),
            DOING[action],
            _never_does(agent, split),
        )
        ask("what", (f"what {verb} {the_patient}?",), agent, _never_done_by(action, split))
        # groups of training show a relation in both directions, so the patient may be an agent there, too
        never = _never_done_by(action, split) - {patient}
        ask("what", (f"what {pick(rng, PASSIVE[action])} {the_agent}?",), patient, never)
    else:
        done = [action for _, action in roles]
        for sprite, action in roles:
            the_sprite, never = noun_phrase(sprite, True), _never_does(sprite, split)
            ask("what", (f"what is {the_sprite} doing?", f"what does {the_sprite} do?"), DOING[action], never)
            if done.count(action) == 1:
                ask("what", (f"what {pick(rng, PHRASES[action])[0]}?",), sprite, _never_done_by(action, split))
            if PAIR_OF[action] in BASIC_PAIRS[:2]:
                way = (f"which way does {the_sprite} move?", f"which way does {the_sprite} go?")
                ask("which way", way, action, never)
            elif action in PAIR_OF["clockwise"]:
                way = (f"which way does {the_sprite} spin?", f"which way does {the_sprite} turn?")
                ask("which way", way, action, never)
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
    category = pick(rng, tuple(_PLURALS))
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


NONE = "none"  # answer to a question with a false premise; not in `ANSWERS`


def false_premises(scene: Scene, rng: Rng) -> list[dict[str, Any]]:
    """Questions that assume a relation the scene does not show: what follows the one that follows?

    Rows of `question`, `answer` (`NONE`), `answer_type` ("false premise") and `other`, the sprite that the question
    names not. A model that only looks for the second sprite of a relation answers with `other`. Empty for scenes
    without a relation.
    """
    kind, roles = content(scene)
    if kind != "relation":
        return []
    (agent, action), (patient, _) = roles
    verb, passive = pick(rng, PHRASES[action])[0], pick(rng, PASSIVE[action])
    asked = (
        (f"what {verb} {noun_phrase(agent, True)}?", patient),
        (f"what {passive} {noun_phrase(patient, True)}?", agent),
    )
    return [
        {"question": question, "answer": NONE, "answer_type": "false premise", "other": other}
        for question, other in asked
    ]


@cache
def _relation_forms() -> dict[str, bool]:
    """Beginnings of questions about a relation -> whether they ask for the agent; longer ones first."""
    active = {f"what {form[0]} ": True for action in RELATION_PAIR for form in PHRASES[action]}
    passive = {f"what {form} ": False for action in RELATION_PAIR for form in PASSIVE[action]}
    return dict(sorted((active | passive).items(), key=lambda item: -len(item[0])))


def turned_premise(question: str, answer: str) -> dict[str, Any] | None:
    """The question with a false premise that a true question about a relation turns into, as in `false_premises`.

    "what follows the owl?" with the answer "fox" becomes "what follows the fox?", with `other` "owl". None for other
    questions.
    """
    for start in _relation_forms():
        if not question.startswith(start):
            continue
        named = _named().get(question.removeprefix(start).removesuffix("?"))
        if named is not None and answer in SPRITES:
            turned = f"{start}{noun_phrase(answer, True)}?"
            return {"question": turned, "answer": NONE, "answer_type": "false premise", "other": named}
    return None


@cache
def _named() -> dict[str, str]:
    return {noun_phrase(sprite, True): sprite for sprite in SPRITES}


# --------------------------------------------------------------------------------------------------------------- words

# the words of the questions of `questions` besides the names, phrases and places in them
_ASKED = """what is the doing does do which way move go spin turn where at start beginning end up how many things are
there can you see one moves starts first or"""


@cache
def training_words(task: Literal["retrieval", "qa"]) -> frozenset[str]:
    """Every word that training shows in a text: in captions, or in questions. All in lower case.

    The vocabulary of the tokenizer is no such list: it also holds parts of words, and parts can spell any word.
    """
    going = [form[1] for forms in PHRASES.values() for form in forms]
    verbs = [form[0] for forms in PHRASES.values() for form in forms]
    said = [*verbs, *itertools.chain.from_iterable(PASSIVE.values())]
    said += [noun_phrase(sprite, True) for sprite in SEEN_SPRITES]
    if task == "qa":
        said += [_ASKED, *_PLURALS.values()]
    else:
        said += [*going, *OPENINGS, *ING_OPENINGS, *TOGETHER, *TOGETHER_THREE, *SEQUENCE, "a an"]
    words = itertools.chain.from_iterable(text.split() for text in said)
    return frozenset(word for word in words if word.isalpha())
