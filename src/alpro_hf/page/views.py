"""HTML of clips, results and answers. All text that a visitor typed, including names of files, is escaped."""

from collections.abc import Sequence
from html import escape

from ..inference.question_answering import Answer
from .clips import Clip
from .studio import RERANK, Found

SHOWN_RESULTS = 6
MATCHES = 0.5  # above it, the matching head takes clip and text for a pair


def shelf(clips: Sequence[Clip], chosen: str) -> str:
    """A list of clips to choose from."""
    return f'<div class="shelf" role="listbox" aria-label="Clips">{"".join(_pick(c, chosen) for c in clips)}</div>'


def _pick(clip: Clip, chosen: str) -> str:
    picked = clip.id == chosen
    return (
        f'<button type="button" class="pick{" chosen" if picked else ""}" data-id="{escape(clip.id)}" role="option" '
        f'aria-selected="{str(picked).lower()}" tabindex="{0 if picked else -1}">'
        f'<span class="picture" data-video="{clip.video}">'
        f'<img src="{clip.poster}" alt="" loading="lazy"></span>'
        f'<span class="title">{"<b>yours</b> " if clip.mine else ""}{escape(clip.title)}</span></button>'
    )


def _video(clip: Clip, controls: str = "") -> str:
    """A playing clip; one of an index waits for a click, and door.js keeps to the times of a moment."""
    moment = fallback = ""
    if clip.start is not None and clip.end is not None:
        moment = f' data-start="{clip.start:g}" data-end="{clip.end:g}"'
    if clip.fallback:
        fallback = f' data-fallback="{clip.fallback}"'
    # the files of an index may be large, so they are loaded when somebody plays them
    way = 'preload="none"' if clip.fallback else "autoplay"
    return (
        f'<video src="{clip.video}" poster="{clip.poster}" {way} muted loop playsinline{controls}{moment}{fallback} '
        f'aria-label="{escape(clip.title)}"></video>'
    )


def stage(clip: Clip) -> str:
    """One clip as a playing video."""
    video = _video(clip, " controls" if clip.fallback else "")
    return f'<figure class="stage">{video}<figcaption>{escape(clip.title)}</figcaption></figure>'


def note(text: str) -> str:
    """A line of explanation."""
    return f'<p class="note">{escape(text)}</p>'


def percent(share: float) -> str:
    """A probability for people: what is not 0 or 1 is never shown as that."""
    if share < 0.01:
        return "<1 %"
    return ">99 %" if share >= 0.995 else f"{share:.0%}".replace("%", " %")


def results(found: Sequence[Found], *, ask: bool = True, inside: bool = True) -> str:
    """The best clips, how well they match, and how matching changed their order.

    Args:
        found: Best first.
        ask, inside: Whether there are tabs to ask a clip and to look inside, which each result leads to.
    """
    # the best clip is always re-ranked, if the model can match at all
    best = found[0].match_probability if found else None
    matched = best is not None
    doors = [("ask", "Ask this clip")] * ask + [("inside", "Look inside")] * inside
    cards = "".join(_card(result, matched, doors) for result in found[:SHOWN_RESULTS])
    if best is None:
        said = note(
            "This model has no trained matching head. Similarity alone decides, and does not say what matches."
        )
    elif best < MATCHES:
        said = '<p class="note weak"><b>Nothing matches well.</b> The nearest clips are listed all the same.</p>'
    else:
        said = _changes(found)
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


def _card(result: Found, matched: bool, doors: Sequence[tuple[str, str]]) -> str:
    change = result.rank_before - result.rank
    moved = "same place" if not change else f"{'▲' if change > 0 else '▼'} was {result.rank_before}"
    way = "up" if change > 0 else "down" if change < 0 else "same"
    match = result.match_probability
    fits = match is not None and match >= MATCHES
    look = " best" if result.rank == 1 and (fits or not matched) else "" if fits or not matched else " weak"
    change_shown = f'<span class="moved {way}">{moved}</span>' if matched else ""
    match_shown = _score("Match (VTM)", match, "-" if match is None else percent(match)) if matched else ""
    clip, title = result.clip, escape(result.clip.title)
    buttons = "".join(f'<button type="button" data-door="{door}">{text}</button>' for door, text in doors)
    return (
        f'<article class="card{look}" data-id="{escape(clip.id)}" data-title="{title}">'
        f'<button type="button" class="open" data-door="open" aria-label="Open “{title}”">{_video(clip)}</button>'
        f'<div class="caption"><span class="rank">{result.rank}</span><span class="title">{title}</span>'
        f"{change_shown}</div>{match_shown}"
        f"{_score('Similarity (VTC)', max(0.0, result.similarity), f'{result.similarity:.2f}')}"
        f'<div class="doors">{buttons}</div></article>'
    )


def _score(label: str, share: float | None, value: str) -> str:
    return (
        f'<div class="score"><span>{label}</span><span class="value">{escape(value)}</span>'
        f'<span class="track"><span style="width:{100 * (share or 0):.1f}%"></span></span></div>'
    )


def caution(said: str) -> str:
    """A warning in its place, as HTML; `said` is HTML too."""
    return f'<div role="alert" class="banner">{said}</div>' if said else ""


def answers(found: Sequence[Answer]) -> str:
    """Answers, with their probabilities as bars."""
    return bars([(answer.answer, answer.probability) for answer in found])


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Names, best first, with their probabilities as bars."""
    lines = "".join(
        f'<li{" class=first" if i == 0 else ""}><span class="name">{escape(name)}</span>'
        f'<span class="value">{escape(percent(share))}</span>'
        f'<span class="track"><span style="width:{100 * share:.1f}%"></span></span></li>'
        for i, (name, share) in enumerate(rows)
    )
    return f'<ol class="bars">{lines}</ol>'
