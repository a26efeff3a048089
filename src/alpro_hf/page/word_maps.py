"""HTML of the patches that words read: one small picture a word, all on one scale."""

from html import escape

import numpy as np
import torch

from ..inference.explain import SentenceMaps
from .views import percent

_DARKEST = 0.86  # opacity over a patch that is not read at all
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def word_panels(picture: str, found: SentenceMaps) -> str:
    """A panel for the sentence and for each word: the clip, darkened where a patch is not read.

    Values are shares of what all words together read, and for the sentence of what the sentence reads. They have one
    scale, which ends at the greatest of them.

    Args:
        picture: Address of a picture of the clip.
        found: The maps.
    """
    total = sum(word.relevance.sum().item() for word in found.words) or 1.0
    maps: list[tuple[str, str | None, torch.Tensor]] = [
        ("whole sentence", None, found.sentence / (found.sentence.sum().item() or 1.0))
    ]
    for word in found.words:
        share = word.relevance.sum().item() / total
        maps.append((word.word, percent(share) if word.known else "unknown", word.relevance / total))
    highest = max(values.max().item() for _, _, values in maps) or 1.0
    panels = "".join(_panel(name, share, values, highest) for name, share, values in maps)
    steps = "".join(f"<span>{escape(percent(tick * highest)) if tick else '0 %'}</span>" for tick in _TICKS)
    shades = ", ".join(f"rgb(14 16 21 / {_darkness(tick):.0%}) {tick:.0%}" for tick in np.linspace(0, 1, 9))
    return (
        f'<p class="note">A patch is bright where a word reads it, and dark where it does not. All pictures share one '
        f"scale. Sentence and clip match with a probability of {escape(percent(found.match_probability))}.</p>"
        f'<div class="legend" role="img" aria-label="Scale from 0 to {percent(highest)} of what is read">'
        f'<span class="shades" style="background-image:linear-gradient(90deg, {shades})"></span>'
        f'<span class="ticks">{steps}</span><span class="what">share of what is read</span></div>'
        f'<div class="words" style="--clip:url({picture})">{panels}</div>'
    )


def _darkness(level: float) -> float:
    """Opacity over a patch; the root lets small shares be told from none."""
    return _DARKEST * (1 - level**0.5)


def _panel(name: str, share: str | None, values: torch.Tensor, highest: float) -> str:
    rows, columns = values.shape
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{_darkness(value / highest):.3f}"/>'
        for y, row in enumerate(values.tolist())
        for x, value in enumerate(row)
    )
    small = f" <small>{escape(share)}</small>" if share else ""
    return (
        f'<figure class="word"><div class="seen"><svg viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" '
        f'role="img" aria-label="Map of {escape(name)}">{cells}</svg></div>'
        f"<figcaption>{escape(name)}{small}</figcaption></figure>"
    )


__all__ = ["word_panels"]
