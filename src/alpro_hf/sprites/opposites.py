"""Tell in which detail two captions of the sprite world differ: the inverse of `language.opposite_caption`."""

import re
from functools import cache

from .language import PASSIVE, PHRASES
from .world import ACTORS, OPPOSITE, PAIR_OF, SPRITES, Content

_RELATIONS = frozenset(PASSIVE)
_BEFORE = re.compile(r"\b(?:then|before|after that)\b")
_AFTER = re.compile(r"\bafter\b")


@cache
def _wordings() -> tuple[re.Pattern[str], dict[str, tuple[str, bool]]]:
    """A pattern for sprites and actions, longest first, and what the wordings of actions say: action, passive."""
    said = {form: (action, False) for action, forms in PHRASES.items() for both in forms for form in both}
    said |= {form: (action, True) for action, forms in PASSIVE.items() for form in forms}
    longest = sorted([*said, *SPRITES], key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b"), said


def read_caption(caption: str) -> Content | None:
    """What a caption says, as `world.content` has it of a scene; None if it is not worded as captions of this world.

    A passive sentence and an active one say the same. So do "X and then Y" and "Y after X". The second role of a
    relation has the action "" here.
    """
    pattern, said = _wordings()
    text = " ".join(caption.lower().split())
    found = [match.group() for match in pattern.finditer(text)]
    between = pattern.sub("|", text)
    sprites, actions = [one for one in found if one not in said], [said[one] for one in found if one in said]
    if len(sprites) == 2 and len(actions) == 1 and found[1] in said and actions[0][0] in _RELATIONS:
        (action, passive), (agent, patient) = actions[0], sprites
        if passive:
            agent, patient = patient, agent
        return "relation", ((agent, action), (patient, ""))
    # every sprite is followed by its action
    if not sprites or found[::2] != sprites or len(actions) != len(sprites) or len(set(sprites)) != len(sprites):
        return None
    if any(action in _RELATIONS for action, _ in actions) or len(sprites) > 3:
        return None
    roles = tuple((sprite, action) for sprite, (action, _) in zip(sprites, actions, strict=True))
    if len(roles) == 2 and (_BEFORE.search(between) or _AFTER.search(between)):
        turned = not _BEFORE.search(between) and not _AFTER.search(between.partition("|")[0])  # "Y after X"
        return "sequence", roles[::-1] if turned else roles
    kind = next(kind for kind in ("one", "two", "three") if ACTORS[kind] == len(roles))
    return kind, roles


def opposite_kind(caption: str, other: str) -> str | None:
    """The one difference between two captions, by the names that `opposite_caption` uses.

    Returns:
        A pair of actions such as "left/right", "order" (which happens first), "roles" (who follows whom), "swapped"
        (two sprites exchange their actions), or None: no difference, more than one, or none of these.
    """
    one, two = read_caption(caption), read_caption(other)
    if one is None or two is None or one[0] != two[0]:
        return None
    kind, before, after = one[0], one[1], two[1]
    if kind == "relation":
        if before[0][0] == after[1][0] and before[1][0] == after[0][0]:
            return "roles" if before[0][1] == after[0][1] else None
        same = before[0][0] == after[0][0] and before[1][0] == after[1][0]
        return _pair([(before[0][1], after[0][1])]) if same else None
    if kind == "sequence" and before == after[::-1] and before != after:
        return "order"
    if kind == "sequence" and [sprite for sprite, _ in before] != [sprite for sprite, _ in after]:
        return None
    actions = dict(after)
    if actions.keys() != {sprite for sprite, _ in before}:
        return None
    return _pair([(action, actions[sprite]) for sprite, action in before if actions[sprite] != action])


def _pair(changes: list[tuple[str, str]]) -> str | None:
    if len(changes) == 1 and OPPOSITE.get(changes[0][0]) == changes[0][1]:
        return "/".join(PAIR_OF[changes[0][0]])
    if len(changes) == 2 and changes[0] == changes[1][::-1]:
        return "swapped"
    return None


__all__ = ["opposite_kind", "read_caption"]
