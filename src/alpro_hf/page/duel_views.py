"""HTML of two captions that compete for one clip, and of what was measured about such choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..inference.caption_scores import CaptionScores
from .views import percent

CHANCE = 50.0  # percent of choices between two
NARROW = 0.03  # difference of two scores below which nobody should rely on it
LEARNED = 65.0  # percent; below it a model is close to guessing
# kinds of opposites in the results file -> words for them
KINDS: dict[str, str] = {
    "follow/pass": "following or passing",
    "grow/shrink": "growing or shrinking",
    "left/right": "left or right",
    "up/down": "up or down",
    "appear/disappear": "appearing or disappearing",
    "bounce/sway": "bouncing or swaying",
    "swapped": "who does which of two things",
    "roles": "who follows whom",
    "clockwise/counterclockwise": "clockwise or counterclockwise",
    "order": "which of two things happens first",
}


@dataclass(frozen=True)
class Measured:
    """How often a model preferred the true caption to its opposite.

    Args:
        vtc, vtm: Percent of clips, by similarity and by matching.
        clips: Number of clips.
    """

    vtc: float
    vtm: float
    clips: int

    @property
    def best(self) -> float:
        """Percent by the better of the two scores."""
        return max(self.vtc, self.vtm)


def duel(captions: tuple[str, str], scores: CaptionScores, kind: str | None, measured: Measured | None) -> str:
    """Two captions, their scores as bars that meet in the middle, and how far to trust the outcome.

    Args:
        captions: The two.
        scores: Of both for one clip, (2, 1).
        kind: Key of `KINDS`, or None if the captions do not differ in one of these.
        measured: What was measured about choices of this kind; None: nothing.
    """
    similarity = scores.similarity[:, 0].tolist()
    rows = [_versus("Similarity (VTC)", similarity, [f"{value:.2f}" for value in similarity])]
    choices, narrow = [_first(similarity)], [abs(similarity[0] - similarity[1]) < NARROW]
    if scores.match_probability is not None:
        match = scores.match_probability[:, 0].tolist()
        rows.append(_versus("Match (VTM)", match, [escape(percent(value)) for value in match]))
        choices.append(_first(match))
        narrow.append(abs(match[0] - match[1]) < NARROW)
    names = "".join(
        f'<p class="{side}{" won" if set(choices) == {i} else ""}">{escape(caption)}</p>'
        for i, (side, caption) in enumerate(zip(("left", "right"), captions, strict=True))
    )
    return (
        f'<div class="duel"><p class="verdict">{_verdict(captions, choices, all(narrow))}</p>'
        f'<div class="names">{names}</div>{"".join(rows)}{_trust(kind, measured)}</div>'
    )


def _first(values: Sequence[float]) -> int | None:
    """Which of two is greater; None if they are equal."""
    return None if values[0] == values[1] else int(values[1] > values[0])


def _versus(label: str, values: Sequence[float], shown: Sequence[str]) -> str:
    first = _first(values)
    sides = [
        f'<span class="track {side}{" won" if first == i else ""}"><span style="width:{100 * max(0.0, value):.1f}%">'
        "</span></span>"
        for i, (side, value) in enumerate(zip(("left", "right"), values, strict=True))
    ]
    return (
        f'<div class="versus"><span class="label">{label}</span><span class="value">{shown[0]}</span>{"".join(sides)}'
        f'<span class="value">{shown[1]}</span></div>'
    )


def _verdict(captions: tuple[str, str], choices: Sequence[int | None], narrow: bool) -> str:
    if len(set(choices)) > 1:
        return "The two scores disagree."
    place = choices[0]
    if place is None:
        return "Both captions have the same scores."
    by = "by both scores" if len(choices) == 2 else "by similarity"
    hair = ", but by a hair" if narrow else ""
    return f"The model prefers <strong>“{escape(captions[place])}”</strong> {by}{hair}."


def _trust(kind: str | None, measured: Measured | None) -> str:
    if measured is None or kind is None:
        return ""
    close = ": close to guessing" if measured.best < LEARNED else ""
    return (
        f'<p class="note">How far to trust this: on {measured.clips} test clips that show {KINDS[kind]}, the true '
        f"caption scored higher in {measured.vtc:.0f} % by VTC and in {measured.vtm:.0f} % by VTM{close}. "
        f"Guessing gives {CHANCE:.0f} %.</p>"
    )


def kinds(measured: Mapping[str, Measured], with_example: Sequence[str]) -> str:
    """What a model tells apart, best first, as buttons that start an example where there is one."""
    rows = []
    for kind, found in sorted(measured.items(), key=lambda item: -item[1].best):
        tag = "button" if kind in with_example else "div"
        start = f'button type="button" data-kind="{escape(kind)}"' if tag == "button" else "div"
        weak = " weak" if found.best < LEARNED else ""
        rows.append(
            f'<li><{start} class="kind{weak}"><span class="name">{KINDS[kind]}</span>'
            f'<span class="value">{found.best:.0f} %</span>'
            f'<span class="track"><span style="width:{found.best:.1f}%"></span><i></i></span></{tag}></li>'
        )
    return f'<ol class="kinds">{"".join(rows)}</ol>'


__all__ = ["CHANCE", "KINDS", "LEARNED", "Measured", "duel", "kinds"]
