"""HTML of the demo's results. All text that a visitor typed, including names of files, is escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from studio import RERANK, Clip, Found

from alpro_hf.inference.explain import EntityMaps, SentenceMaps
from alpro_hf.inference.question_answering import Answer

SHOWN_RESULTS = 6
SHOWN_ENTITIES = 6
# distinct colours of regions, dark enough for white letters
REGION_COLOURS = ("#d1495b", "#00798c", "#c97b12", "#5b5f97", "#3a7d44", "#8f3985", "#8a5a44", "#30638e")
# value -> RGBA; alpha grows with the value, so that low values leave the frame visible
HEAT = ((0.0, (60, 20, 110, 0)), (0.4, (120, 28, 109, 70)), (0.75, (237, 105, 37, 140)), (1.0, (252, 222, 90, 195)))


def shelf(clips: Sequence[Clip], chosen: str) -> str:
    """A list of clips to choose from."""
    return f'<div class="shelf" role="listbox" aria-label="Clips">{"".join(_pick(c, chosen) for c in clips)}</div>'


def _pick(clip: Clip, chosen: str) -> str:
    picked = clip.id == chosen
    return (
        f'<button type="button" class="pick{" chosen" if picked else ""}" data-id="{escape(clip.id)}" role="option" '
        f'aria-selected="{str(picked).lower()}"><span class="picture" data-video="{clip.preview}">'
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
    return _bars([(answer.answer, answer.probability) for answer in found])


def entities(found: Sequence[tuple[str, float]]) -> str:
    """Entities of a box, with their probabilities as bars."""
    return _bars(found)


def _bars(rows: Sequence[tuple[str, float]]) -> str:
    lines = "".join(
        f'<li{" class=first" if i == 0 else ""}><span class="name">{escape(name)}</span>'
        f'<span class="value">{share:.0%}</span>'
        f'<span class="track"><span style="width:{100 * share:.1f}%"></span></span></li>'
        for i, (name, share) in enumerate(rows)
    )
    return f'<ol class="bars">{lines}</ol>'


# --------------------------------------------------------------------------------------------------- maps over frames


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
        f'<div class="strip drawing" data-rows="{rows}" data-columns="{columns}" data-box="{place}">{pictures}</div>'
    )


def _all(frames: Sequence[str]) -> Sequence[tuple[int, str]]:
    return list(enumerate(frames, start=1))


def _picture(number: int, source: str) -> str:
    return f'<img src="{source}" alt="Frame {number}" draggable="false">'


def region_maps(frames: Sequence[str], found: EntityMaps, names: Sequence[str]) -> str:
    """The most probable entity of every patch, and a heat map for each of the strongest entities."""
    strongest = found.maps.flatten(1).amax(dim=1).topk(min(SHOWN_ENTITIES, len(names)))
    layers = [("every region", None, _named_regions(found.maps, names))]
    for entity, highest in zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True):
        layers.append((names[entity], f"{highest:.0%}", _heat(found.maps[entity])))
    return _layers(frames, layers)


def sentence_maps(frames: Sequence[str], found: SentenceMaps) -> str:
    """Heat maps of the whole sentence and of each word, with each word's share of the attention."""
    total = sum(word.relevance.sum().item() for word in found.words) or 1.0
    layers = [("whole sentence", None, _heat(found.sentence))]
    for word in found.words:
        share = f"{word.relevance.sum().item() / total:.0%}" if word.known else "unknown"
        layers.append((word.word, share, _heat(word.relevance)))
    said = f"Sentence and clip match with a probability of {found.match_probability:.1%}."
    return f"{note(said)}{_layers(frames, layers)}"


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
    for number, source in _all(frames):
        over = "".join(f'<span class="layer{on}" data-layer="{i}">{layer}</span>' for i, on, layer in shown)
        pictures.append(f'<figure class="frame">{_picture(number, source)}{over}</figure>')
    return (
        f'<div class="maps"><div class="layer-buttons">{"".join(buttons)}</div>'
        f'<div class="strip">{"".join(pictures)}</div></div>'
    )


def _heat(values: torch.Tensor) -> str:
    """A map, float (rows, columns), as a picture; its highest value has the strongest colour."""
    scaled = (values / values.max().clamp(min=1e-12)).clamp(0, 1).numpy()
    rows, columns = scaled.shape
    smooth = Image.fromarray(scaled.astype(np.float32)).resize((columns * 12, rows * 12), Image.Resampling.BICUBIC)
    level = np.asarray(smooth).clip(0, 1)
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
