"""Recognise clips of the sprite world by their pictures, where copying has removed the mark of the renderer.

A sprite is looked for as the renderer draws it: the pictures of the sheet, in the sizes of the world, upright or
tilted as at the end of a spin, over a background that is even behind each. Colours must agree, not only shapes,
so drawings and photographs of the same things do not count.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import conv2d, interpolate

from .render import tile_of
from .world import SIZES, SPRITES

SIDE, COARSE = 128, 32  # pixels of the frames that are looked at, and of the first, rough look
FRAMES = 4  # spread over the clip, its first and its last one among them
TILTS = (-40, -20, 20, 40)  # degrees; a spin begins or ends within 40 degrees of upright
CANDIDATES = 16  # best places of the rough look that are looked at closely
ROUGH, SHARE = 0.5, 0.65  # of the variance of a place that a sprite must explain, at the rough and at the close look
INNER = 0.45  # of the variance inside its outline, which tells it from an even shape of its colour
EVEN = 6.0  # standard deviation, in levels of 256, below which a place counts as even
CONTRAST = 12.0  # least standard deviation of a place, in levels of 256; an even one is explained by anything


class _Place(NamedTuple):
    share: float
    frame: int
    sprite: str
    side: int
    tilt: int
    x: int
    y: int


@cache
def _templates(sprites: tuple[str, ...], side: int, tilt: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours times opacity (n, 3, s, s) and transparency (n, 1, s, s) of sprites in one size."""
    tiles = np.stack([np.asarray(tile_of(sprite, side, tilt), dtype=np.float32) for sprite in sprites])
    opacity = torch.from_numpy(tiles[..., 3:] / 255).permute(0, 3, 1, 2)
    return torch.from_numpy(tiles[..., :3]).permute(0, 3, 1, 2) * opacity, 1 - opacity


def _explained(frames: torch.Tensor, sprites: tuple[str, ...], side: int, tilt: int) -> torch.Tensor:
    """The share of variance that each sprite explains at each place: (frames, sprites, rows, columns).

    At a place p, the model is p = opacity * colour + transparency * b, with the b of each channel that fits best.
    """
    drawn, through = _templates(sprites, side, tilt)
    count, edge = len(frames), drawn.shape[-1]
    channels = frames.flatten(0, 1)[:, None]  # (frames * 3, 1, S, S)
    ones = torch.ones(1, 1, edge, edge)
    squares = conv2d(channels**2, ones).unflatten(0, (count, 3)).sum(1)
    sums = conv2d(channels, ones).unflatten(0, (count, 3))
    variance = squares - (sums**2).sum(1) / edge**2
    behind = conv2d(channels, through).unflatten(0, (count, 3))  # (frames, 3, sprites, rows, columns)
    offset = (drawn * through).sum((2, 3)).T[..., None, None]  # (3, sprites, 1, 1)
    room = (through**2).sum((1, 2, 3)).clamp(min=1e-3)[:, None, None]
    fitted = ((behind - offset) ** 2).sum(1) / room
    left = squares - 2 * conv2d(frames, drawn) + (drawn**2).sum((1, 2, 3))[:, None, None] - fitted
    enough = variance > 3 * edge**2 * CONTRAST**2
    return torch.where(enough, 1 - left / variance.clamp(min=1.0), 0.0)


def _rough(frames: torch.Tensor, tilts: Sequence[int]) -> list[_Place]:
    """The best places of a look at small frames."""
    found: list[_Place] = []
    least, most = 0.92 * min(SIZES.values()) * COARSE, 1.08 * max(SIZES.values()) * COARSE
    for tilt in tilts:
        for side in range(int(least), int(np.ceil(most)) + 1):
            shares = _explained(frames, SPRITES, side, tilt)
            best, places = shares.flatten(2).max(2)  # one place of each sprite in each frame
            top = best.flatten().topk(CANDIDATES)
            for share, number in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                frame, sprite = divmod(number, len(SPRITES))
                y, x = divmod(int(places[frame, sprite]), shares.shape[-1])
                found.append(_Place(share, frame, SPRITES[sprite], side, tilt, x, y))
    return sorted(found, reverse=True)[:CANDIDATES]


def _inside(area: torch.Tensor, sprite: str, side: int, tilt: int) -> float:
    """The share of variance that a sprite explains of a place (3, s, s), inside its outline."""
    drawn, through = _templates((sprite,), side, tilt)
    opaque = through[0, 0] < 0.05
    seen = area[:, opaque]
    left = seen - drawn[0][:, opaque]
    spread, unexplained = (part.var(dim=1, correction=0).sum().item() for part in (seen, left))
    return 1 - unexplained / spread if spread > 3 * EVEN**2 else 0.0


def _close(frames: torch.Tensor, place: _Place) -> float:
    """The share of variance explained at a place, looked at closely, in sizes, tilts and positions around it."""
    scale = SIDE // COARSE
    middle = [scale * (at + _templates((place.sprite,), place.side, place.tilt)[0].shape[-1] / 2) for at in place[5:]]
    best = 0.0
    for tilt in (place.tilt - 10, place.tilt - 5, place.tilt, place.tilt + 5, place.tilt + 10) if place.tilt else (0,):
        for side in range(scale * place.side - scale, scale * place.side + scale + 1, 1 if not place.tilt else 2):
            edge = _templates((place.sprite,), side, tilt)[0].shape[-1]
            left, top = (max(0, round(at - edge / 2) - scale) for at in middle)
            area = frames[place.frame, None, :, top : top + edge + 2 * scale, left : left + edge + 2 * scale]
            if min(area.shape[-2:]) < edge:
                continue
            shares = _explained(area, (place.sprite,), side, tilt)[0, 0]
            y, x = divmod(int(shares.argmax()), shares.shape[-1])
            if shares[y, x] > best:
                inside = _inside(area[0, :, y : y + edge, x : x + edge], place.sprite, side, tilt)
                best = shares[y, x].item() if inside >= INNER else best
    return best


@torch.inference_mode()
def sprite_share(pixels: torch.Tensor) -> float:
    """How much of the variance, at the best place of a clip, a sprite over an even background explains.

    Args:
        pixels: uint8 (T, 3, 128, 128), some frames of a clip.

    Returns:
        At most 1. Clips of the sprite world have at least `SHARE`, unless they were made too small or too blurred.
    """
    frames = pixels.float()
    small = interpolate(frames, (COARSE, COARSE), mode="area")
    best = 0.0
    # upright in all frames, then tilted in the first and the last one
    for chosen, tilts in ((list(range(len(frames))), (0,)), ([0, len(frames) - 1], TILTS)):
        for place in _rough(small[chosen], tilts):
            if place.share < ROUGH:
                break  # the places are sorted
            best = max(best, _close(frames[chosen], place))
            if best >= SHARE:
                return best
    return best
