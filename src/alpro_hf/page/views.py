"""HTML of clips, results and answers. All text that a visitor typed, including names of files, is escaped."""

from collections.abc import Sequence
from html import escape

from ..inference.question_answering import Answer
from .clips import Clip
from .studio import RERANK, Found

SHOWN_RESULTS = 6


def shelf(clips: Sequence[Clip], chosen: str) -> str:
    """A list of clips to choose from."""
    return f'<div class="shelf" role="listbox" aria-label="Clips">{"".join(_pick(c, chosen) for c in clips)}</div>'


def _pick(clip: Clip, chosen: str) -> str:
    picked = clip.id == chosen
    return (
        f'<button type="button" class="pick{" chosen" if picked else ""}" data-id="{escape(clip.id)}" role="option" '
        f'aria-selected="{str(picked).lower()}" tabindex="{0 if picked else -1}">'
        f'<span class="picture" data-video="{clip.preview}">'
        f'<img src="{clip.poster}" alt=""></span>'
        f'<span class="title">{"<b>yours</b> " if clip.mine else ""}{escape(clip.title)}</span></button>'
    )


def _video(clip: Clip) -> str:
    return (
        f'<video src="{clip.preview}" poster="{clip.poster}" autoplay muted loop playsinline '
        f'aria-label="{escape(clip.title)}"></video>'
    )


def stage(clip: Clip) -> str:
    """One clip as a playing video."""
    return f'<figure class="stage">{_video(clip)}<figcaption>{escape(clip.title)}</figcaption></figure>'


def note(text: str) -> str:
    """A line of explanation."""
    return f'<p class="note">{escape(text)}</p>'


def results(found: Sequence[Found]) -> str:
    """The best clips, and how re-ranking changed their order."""
    # the best clip is always re-ranked, if the model can match at all
    matched = bool(found) and found[0].match_probability is not None
    cards = "".join(_card(result, matched) for result in found[:SHOWN_RESULTS])
    said = _changes(found) if matched else note("This model has no trained matching head. Similarity alone decides.")
    return f'{said}<div class="results">{cards}</div>'


def _changes(found: Sequence[Found]) -> str:
    moved = [result for result in found[:SHOWN_RESULTS] if result.rank != result.rank_before]
    looked = f"The matching head re-ranked the {min(RERANK, len(found))} most similar of {len(found)} clips"
    if not moved:
        return note(f"{looked} and kept the order of the first {min(SHOWN_RESULTS, len(found))}.")
    first = found[0]
    if first.rank_before != 1:
        said = f"and put “{first.clip.title}” first, which was number {first.rank_before} by similarity alone."
    else:
        said = f"and kept the first; {len(moved)} of the other clips shown here changed places."
    return note(f"{looked} {said}")


def _card(result: Found, matched: bool) -> str:
    change = result.rank_before - result.rank
    moved = "same place" if not change else f"{'▲' if change > 0 else '▼'} was {result.rank_before}"
    way = "up" if change > 0 else "down" if change < 0 else "same"
    match = result.match_probability
    change_shown = f'<span class="moved {way}">{moved}</span>' if matched else ""
    match_shown = _score("Match (VTM)", match, "-" if match is None else f"{match:.0%}") if matched else ""
    return (
        f'<article class="card{" best" if result.rank == 1 else ""}" data-id="{escape(result.clip.id)}">'
        f'{_video(result.clip)}<div class="caption"><span class="rank">{result.rank}</span>'
        f'<span class="title">{escape(result.clip.title)}</span>'
        f"{change_shown}</div>{match_shown}"
        f"{_score('Similarity (VTC)', max(0.0, result.similarity), f'{result.similarity:.2f}')}</article>"
    )


def _score(label: str, share: float | None, value: str) -> str:
    return (
        f'<div class="score"><span>{label}</span><span class="value">{value}</span>'
        f'<span class="track"><span style="width:{100 * (share or 0):.1f}%"></span></span></div>'
    )


def answers(found: Sequence[Answer]) -> str:
    """Answers, with their probabilities as bars."""
    return bars([(answer.answer, answer.probability) for answer in found])


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Names, best first, with their probabilities as bars."""
    lines = "".join(
        f'<li{" class=first" if i == 0 else ""}><span class="name">{escape(name)}</span>'
        f'<span class="value">{share:.0%}</span>'
        f'<span class="track"><span style="width:{100 * share:.1f}%"></span></span></li>'
        for i, (name, share) in enumerate(rows)
    )
    return f'<ol class="bars">{lines}</ol>'
