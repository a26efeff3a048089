"""HTML of frames with boxes and maps over them."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image

from ..inference.explain import EntityMaps

SHOWN_ENTITIES = 6
# distinct colours of regions, dark enough for white letters
REGION_COLOURS = ("#d1495b", "#00798c", "#c97b12", "#5b5f97", "#3a7d44", "#8f3985", "#8a5a44", "#30638e")
# value -> RGBA; alpha grows with the value, so that low values leave the frame visible
HEAT = ((0.0, (60, 20, 110, 0)), (0.4, (120, 28, 109, 70)), (0.75, (237, 105, 37, 140)), (1.0, (252, 222, 90, 195)))


def drawing_frames(frames: Sequence[str], grid: tuple[int, int], box: Sequence[int]) -> str:
    """Frames to draw a box on, which is the same in all frames.

    Args:
        frames: Data URIs of the frames.
        grid: Rows and columns of patches.
        box: Top, left, bottom, right of the first box, in patches.
    """
    rows, columns = grid
    pictures = "".join(
        f'<figure class="frame">{_picture(i, src)}<i class="box"></i></figure>' for i, src in _all(frames)
    )
    place = ",".join(map(str, box))
    return (
        f'<div class="strip drawing" tabindex="0" role="group" aria-label="Box over the frames" data-rows="{rows}" '
        f'data-columns="{columns}" data-box="{place}">{pictures}</div>'
    )


def _all(frames: Sequence[str]) -> Sequence[tuple[int, str]]:
    return list(enumerate(frames, start=1))


def _picture(number: int, source: str) -> str:
    return f'<img src="{source}" alt="Frame {number}" draggable="false">'


def region_maps(frames: Sequence[str], found: EntityMaps, names: Sequence[str]) -> str:
    """The most probable entity of every patch, and a heat map for each of the strongest entities."""
    strongest = found.maps.flatten(1).amax(dim=1).topk(min(SHOWN_ENTITIES, len(names)))
    layers: list[tuple[str, str | None, str]] = [("every region", None, _named_regions(found.maps, names))]
    for entity, highest in zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True):
        layers.append((names[entity], f"{highest:.0%}", _heat(found.maps[entity], found.maps.max().item())))
    return _layers(frames, layers)


def _layers(frames: Sequence[str], layers: Sequence[tuple[str, str | None, str]]) -> str:
    """Frames with one of several layers over them, and a button for each layer; maps.js switches between them."""
    buttons, shown = [], []
    for i, (name, number, layer) in enumerate(layers):
        on = " on" if i == 0 else ""
        small = f" <small>{escape(number)}</small>" if number else ""
        buttons.append(
            f'<button type="button" class="layer-button{on}" data-layer="{i}" aria-pressed="{str(i == 0).lower()}">'
            f"{escape(name)}{small}</button>"
        )
        shown.append((i, on, layer))
    pictures = []
    for place, source in _all(frames):
        over = "".join(f'<span class="layer{on}" data-layer="{i}">{layer}</span>' for i, on, layer in shown)
        pictures.append(f'<figure class="frame">{_picture(place, source)}{over}</figure>')
    return (
        f'<div class="maps"><div class="layer-buttons">{"".join(buttons)}</div>'
        f'<div class="strip">{"".join(pictures)}</div></div>'
    )


def _heat(values: torch.Tensor, highest: float) -> str:
    """A map, float (rows, columns), as a picture of one pixel a patch; `highest` has the strongest colour."""
    level = (values / max(highest, 1e-12)).clamp(0, 1).numpy()
    stops = [stop for stop, _ in HEAT]
    channels = [np.interp(level, stops, [colour[i] for _, colour in HEAT]) for i in range(4)]
    file = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8), "RGBA").save(file, "PNG")
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img class="heat" src="data:image/png;base64,{source}" alt="">'


def _named_regions(maps: torch.Tensor, names: Sequence[str]) -> str:
    """The most probable entity of each patch; adjacent patches of one entity form a region with its name."""
    best = maps.argmax(dim=0)
    rows, columns = best.shape
    colours = {entity: REGION_COLOURS[i % len(REGION_COLOURS)] for i, entity in enumerate(best.unique().tolist())}
    cells, labels = [], []
    taken: list[tuple[float, float]] = []
    for entity, patches in sorted(_regions(best), key=lambda region: -len(region[1])):
        look = f'width="10" height="10" fill="{colours[entity]}"'
        cells += [f'<rect x="{x * 10}" y="{y * 10}" {look}/>' for y, x in patches]
        middle_y, middle_x = (sum(place) / len(patches) + 0.5 for place in zip(*patches, strict=True))
        left, top = _free(100 * middle_x / columns, 100 * middle_y / rows, taken)
        taken.append((left, top))
        labels.append(
            f'<b style="left:{left:.0f}%;top:{top:.0f}%;background:{colours[entity]}">{escape(names[entity])}</b>'
        )
    picture = f'<svg viewBox="0 0 {columns * 10} {rows * 10}" preserveAspectRatio="none">{"".join(cells)}</svg>'
    return f"{picture}{''.join(labels)}"


def _free(left: float, top: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The nearest position, up or down, where a label covers no other label; in percent of the frame."""
    left = min(max(left, 22), 78)
    tried = sorted(range(7, 94, 2), key=lambda place: abs(place - top))
    for place in tried:
        if all(abs(left - x) > 38 or abs(place - y) > 13 for x, y in taken):
            return left, place
    return left, tried[0]


def _regions(best: torch.Tensor) -> list[tuple[int, list[tuple[int, int]]]]:
    left = {(y, x) for y in range(best.shape[0]) for x in range(best.shape[1])}
    regions = []
    while left:
        start = min(left)
        entity, patches, edge = int(best[start]), [], [start]
        left.discard(start)
        while edge:
            y, x = edge.pop()
            patches.append((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and int(best[near]) == entity:
                    left.discard(near)
                    edge.append(near)
        regions.append((entity, patches))
    return regions
