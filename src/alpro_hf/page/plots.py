"""HTML of captions over the time of a clip."""

import math
from collections.abc import Sequence
from html import escape

import torch

from ..data.spans import Span

_STEP = 0.1  # between lines of the scale
_ROUNDING = 1e-4
_LEAST = 3  # steps of the scale, so that a flat curve looks flat


def _scale(values: torch.Tensor) -> tuple[int, int]:
    """Lowest and highest line of the scale, in steps of 0.1."""
    # a value on a line, such as 0.5, may be a little below it as a float
    low, high = math.floor(values.min().item() / _STEP + _ROUNDING), math.ceil(values.max().item() / _STEP - _ROUNDING)
    while high - low < _LEAST:
        low -= 1
    return low, high


def curves(captions: Sequence[str], windows: Sequence[Span], values: torch.Tensor, frames: Sequence[str]) -> str:
    """Similarities of captions over time, above frames of the clip.

    Args:
        captions: One or two.
        windows: Seconds of each window; the last one ends with the clip.
        values: float (captions, windows), cosine similarities.
        frames: Addresses of pictures, evenly spread over the clip.
    """
    low, high = _scale(values)
    start, duration = windows[0].start, windows[-1].end - windows[0].start

    def left(seconds: float) -> float:
        return 100 * (seconds - start) / duration

    def top(value: float) -> float:
        return 100 * (high - value / _STEP) / (high - low)

    middles = [(window.start + window.end) / 2 for window in windows]
    lines, said, bands = [], [], []
    for i, (caption, row) in enumerate(zip(captions, values.tolist(), strict=True)):
        points = " ".join(f"{left(x):.2f},{top(y):.2f}" for x, y in zip(middles, row, strict=True))
        lines.append(f'<polyline class="line{i}" points="{points}"/>')
        best = windows[max(range(len(row)), key=row.__getitem__)]
        place = f"left:{left(best.start):.1f}%;width:{left(best.end) - left(best.start):.1f}%"
        bands.append(f'<span class="band line{i}" style="{place}"></span>')
        said.append(
            f'<li class="line{i}"><span class="key"></span><span>{escape(caption)} <small>fits best from '
            f"{best.start:.1f} to {best.end:.1f} s, with {max(row):.2f}</small></span></li>"
        )
    grid = "".join(
        f'<span class="rule" style="top:{top(step * _STEP):.1f}%"><b>{step * _STEP:.1f}</b></span>'
        for step in range(low, high + 1)
    )
    times = "".join(f'<span style="left:{25 * i}%">{start + duration * i / 4:.1f} s</span>' for i in range(5))
    film = "".join(f'<img src="{frame}" alt="">' for frame in frames)
    return (
        f'<div class="curves"><ul>{"".join(said)}</ul><div class="plot" aria-hidden="true">{"".join(bands)}{grid}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(lines)}</svg></div>'
        f'<div class="film" aria-hidden="true">{film}</div><div class="times" aria-hidden="true">{times}</div></div>'
    )


__all__ = ["curves"]
