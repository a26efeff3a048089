"""One picture of searches and questions: frames of the clips, scores as bars, correct results in green."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import span_text
from ..files import write_whole
from ..inference.question_answering import Answer
from ..inference.save_clips import unreadable
from ..inference.video_index import SearchResult
from ..model.decoding import decode, probe
from ..model.decoding_types import VideoDecodeError, VideoInfo, middles_of
from ..model.video_processing_alpro import sample_indices
from ..trust import printable


@dataclass(frozen=True)
class ShownSearch:
    """A caption used as a query, and the same caption with its opposite meaning.

    Args:
        query: A caption of the clip `target`, which seldom fits another clip.
        target: The clip that the query describes.
        own: The result of the target for the query.
        results: All results, best first.
        captions: One caption of each result.
        opposite: The query with one part turned into its opposite, so that it no longer describes the target.
        opposite_result: The result of the target for the opposite.
    """

    query: str
    target: Path
    own: SearchResult
    results: Sequence[SearchResult]
    captions: Sequence[str]
    opposite: str
    opposite_result: SearchResult


@dataclass(frozen=True)
class ShownQuestion:
    """A question about a clip.

    Args:
        clip: The file.
        question: In plain language.
        answers: The model's answers, most probable first.
        truth: The correct answer.
        known: Whether the model can give the correct answer, which was in its training data.
    """

    clip: Path
    question: str
    answers: Sequence[Answer]
    truth: str
    known: bool


PAPER, CARD, EDGE = "#f3f1ec", "#ffffff", "#dedad0"
INK, MUTED, TRUE, FALSE, TRACK = "#22252b", "#767b86", "#1f8f5f", "#c2483d", "#e9e6df"
FRAMES, FRAME, SMALL_FRAME, GAP = 4, 100, 94, 4
EDGES, PAD, GUTTER, COLUMNS = 36, 22, 24, 3
SCALE = 2  # pictures are drawn twice as large and then reduced, which smooths all edges


def _strip_width(side: int) -> int:
    return FRAMES * side + (FRAMES - 1) * GAP


STRIP = _strip_width(FRAME)
WIDTH = 2 * (EDGES + PAD) + COLUMNS * STRIP + (COLUMNS - 1) * GUTTER


class _Canvas:
    """Drawing in final pixels on a canvas that is `SCALE` times as large."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        # a line end in a name would draw over what is below it
        self.draw.text((x * SCALE, y * SCALE), printable(text), fill=colour, font=_font(size * SCALE), anchor=anchor)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        radius: float,
        fill: str | None = None,
        outline: str | None = None,
        line: int = 1,
    ) -> None:
        corners = (x * SCALE, y * SCALE, (x + width) * SCALE - 1, (y + height) * SCALE - 1)
        self.draw.rounded_rectangle(corners, radius * SCALE, fill, outline, line * SCALE)

    def card(self, x: float, y: float, width: float, height: float) -> None:
        self.box(x, y, width, height, 12, fill=CARD, outline=EDGE)

    def bar(self, x: float, y: float, width: float, share: float, colour: str) -> None:
        self.box(x, y, width, 7, 3.5, fill=TRACK)
        if share * width >= 7:
            self.box(x, y, share * width, 7, 3.5, fill=colour)

    def strip(
        self,
        x: float,
        y: float,
        clip: Path,
        side: int = FRAME,
        outline: str | None = None,
        span: tuple[float, float] | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> None:
        """Frames of a clip from its first to its last, or of a span of it in seconds, side by side."""
        if outline:
            self.box(x - 5, y - 5, _strip_width(side) + 10, side + 10, 7, outline=outline, line=3)
        size = side * SCALE
        shown = (probe if decoder is None else decoder.probe)(clip)
        # the whole picture in its proportions, in the middle of a square
        scale = size / max(shown.height, shown.width)
        height, width = (max(1, round(length * scale)) for length in (shown.height, shown.width))

        def choose(info: VideoInfo) -> list[int]:
            if span is None:
                return sample_indices(info.num_frames, FRAMES)
            return info.frames_at(middles_of(*span, FRAMES))

        if decoder is None:
            frames = decode(clip, choose, height=height, width=width)
        else:
            frames = decoder.decode(clip, choose(shown), height=height, width=width)
        for i, pixels in enumerate(frames.pixels):
            frame = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            left, top = round((x + i * (side + GAP)) * SCALE), round(y * SCALE)
            self.image.paste(frame, (left + (size - width) // 2, top + (size - height) // 2))


def draw_contact_sheet(
    path: Path,
    title: str,
    lines: Sequence[str],
    numbers: Sequence[tuple[str, str, str]],
    searches: Sequence[ShownSearch],
    questions: Sequence[ShownQuestion],
) -> None:
    """Write the picture as PNG.

    Args:
        path: The file.
        title, lines: Heading and the lines below it.
        numbers: Each result and its meaning in two lines.
        searches: Searches to draw, with at most three results each.
        questions: Questions to draw, with at most three answers each.
    """
    search_height, question_height, space = 268, 262, 18
    width = WIDTH - 2 * EDGES
    question_rows = -(-len(questions) // COLUMNS)
    tiles = 104 + 24 * len(lines)
    top = tiles + 128
    height = top + len(searches) * (search_height + space) + 68 + question_rows * (question_height + space) + 18
    canvas = _Canvas(height)
    canvas.text(EDGES, 34, title, 40)
    for i, line in enumerate(lines):
        canvas.text(EDGES, 92 + 24 * i, line, 17, MUTED)
    tile_width = (width - (len(numbers) - 1) * space) / len(numbers)
    for i, (value, *meaning) in enumerate(numbers):
        x = EDGES + i * (tile_width + space)
        canvas.card(x, tiles, tile_width, 64)
        canvas.text(x + 16, tiles + 32, value, 28, TRUE, anchor="lm")
        left = x + 28 + _font(28).getlength(value)
        for row, part in enumerate(meaning):
            canvas.text(left, tiles + 23 + 19 * row, part, 14, MUTED, anchor="lm")
    _draw_heading(canvas, top - 38, "Searches", "frames from first to last; green: the clip that the text describes")
    y = top
    for search in searches:
        canvas.card(EDGES, y, width, search_height)
        _draw_search(canvas, EDGES + PAD, y + 16, search)
        y += search_height + space
    _draw_heading(canvas, y + 12, "Questions", "the three most probable answers; green: the right one")
    y += 50
    card_width = (width - (COLUMNS - 1) * space) / COLUMNS
    for i, question in enumerate(questions):
        x = EDGES + i % COLUMNS * (card_width + space)
        card_y = y + i // COLUMNS * (question_height + space)
        canvas.card(x, card_y, card_width, question_height)
        _draw_question(canvas, x + (card_width - _strip_width(SMALL_FRAME)) / 2, card_y + 20, question)
    write_whole(path, lambda partial: canvas.image.reduce(SCALE).save(partial, format="PNG", optimize=True))


def draw_results(
    path: Path, query: str, results: Sequence[SearchResult], decoder: IsolatedDecoder | None = None
) -> list[tuple[Path, str]]:
    """Write the results of one search as PNG: frames of each, and below them rank, video, time and scores.

    In the place of a video that cannot be read there are no frames.

    Args:
        path: The file, written complete or not at all; an existing one is replaced.
        query: The heading.
        results: Best first.
        decoder: Decodes in a process of its own.

    Returns:
        (video, reason) for those that cannot be read.

    Raises:
        OSError: The file cannot be written.
    """
    failed: list[tuple[Path, str]] = []
    row, top = FRAME + 74, 104
    canvas = _Canvas(top + -(-len(results) // COLUMNS) * row + 18)
    canvas.text(EDGES + PAD, 34, _fitting(f"\u201c{query}\u201d", 30, WIDTH - 2 * (EDGES + PAD)), 30)
    for place, result in enumerate(results):
        x, y = EDGES + PAD + place % COLUMNS * (STRIP + GUTTER), top + place // COLUMNS * row
        span = None if result.start is None or result.end is None else (result.start, result.end)
        problem = unreadable(result.path, decoder)
        if problem is None:
            try:
                canvas.strip(x, y, result.path, span=span, decoder=decoder)
            except VideoDecodeError as error:
                problem = f"{error.problem}. {error.advice}"
        if problem is not None:
            failed.append((result.path, problem))
            canvas.text(x, y + FRAME / 2, "this video cannot be read", 14, FALSE)
        canvas.text(x, y + FRAME + 10, f"{result.rank}", 17, TRUE)
        time = "" if span is None else span_text(*span)
        room = STRIP - 28 - _font(14).getlength(time) - 10
        canvas.text(x + 28, y + FRAME + 12, _fitting(result.path.name, 14, room), 14)
        canvas.text(x + STRIP, y + FRAME + 12, time, 14, anchor="ra")
        _draw_scores(canvas, x + 28, y + FRAME + 34, result, MUTED, STRIP - 28)
    write_whole(path, lambda partial: canvas.image.reduce(SCALE).save(partial, "PNG", optimize=True))
    return failed


def _draw_heading(canvas: _Canvas, y: float, heading: str, explanation: str) -> None:
    canvas.text(EDGES, y + 22, heading, 24, anchor="ls")
    canvas.text(EDGES + _font(24).getlength(heading) + 14, y + 22, explanation, 15, MUTED, anchor="ls")


def _draw_search(canvas: _Canvas, x: float, y: float, search: ShownSearch) -> None:
    width = WIDTH - 2 * (EDGES + PAD)
    canvas.text(x, y, _fitting(f"\u201c{search.query}\u201d", 21, width), 21)
    for column, (result, caption) in enumerate(zip(search.results[:COLUMNS], search.captions, strict=False)):
        left, top = x + column * (STRIP + GUTTER), y + 44
        right = result.path == search.target
        canvas.strip(left, top, result.path, outline=TRUE if right else None)
        colour = TRUE if right else MUTED
        canvas.text(left, top + FRAME + 14, f"{result.rank}", 19, colour)
        canvas.text(left + 20, top + FRAME + 17, _fitting(caption, 14, STRIP - 20), 14, colour if right else INK)
        _draw_scores(canvas, left + 20, top + FRAME + 41, result, colour)
    bottom = y + 44 + FRAME + 72
    note = f"the described clip: {_standing(search.own)}; for the opposite {_standing(search.opposite_result)}"
    canvas.text(x + width, bottom, note, 15, MUTED, anchor="ra")
    room = width - _font(15).getlength(note) - 76 - 20
    canvas.text(x, bottom, "Opposite", 15, FALSE)
    canvas.text(x + 76, bottom, _fitting(f"\u201c{search.opposite}\u201d", 15, room), 15, FALSE)


def _standing(result: SearchResult) -> str:
    return f"match {_percent(result)}, rank {result.rank}"


def _draw_scores(
    canvas: _Canvas, x: float, y: float, result: SearchResult, colour: str, width: float = STRIP - 20
) -> None:
    canvas.bar(x, y + 4, 120, result.match_probability or 0.0, colour)
    canvas.text(x + 130, y, f"match {_percent(result)}", 14, MUTED)
    canvas.text(x + width, y, f"similarity {result.similarity:.2f}", 14, MUTED, anchor="ra")


def _draw_question(canvas: _Canvas, x: float, y: float, question: ShownQuestion) -> None:
    canvas.strip(x, y, question.clip, SMALL_FRAME)
    top = y + SMALL_FRAME + 12
    canvas.text(x, top, _fitting(question.question, 18, _strip_width(SMALL_FRAME)), 18)
    for i, answer in enumerate(question.answers[:3]):
        row = top + 32 + 22 * i
        right = answer.answer == question.truth
        colour = TRUE if right else FALSE if i == 0 else MUTED
        canvas.bar(x, row + 5, 110, answer.probability, colour)
        canvas.text(x + 156, row, f"{answer.probability:.0%}", 15, MUTED, anchor="ra")
        canvas.text(x + 168, row, answer.answer, 15, colour if right or i == 0 else INK)
    if question.answers[0].answer != question.truth:
        note = "" if question.known else " (never taught to the model)"
        canvas.text(x, top + 32 + 66 + 2, f"right answer: {question.truth}{note}", 14, TRUE)


def _percent(result: SearchResult) -> str:
    return "-" if result.match_probability is None else f"{result.match_probability:.0%}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, size: int, width: float) -> str:
    """The text on one line, cut to a width in pixels."""
    font, text = _font(size), printable(text)[:1000]
    while font.getlength(text) > width:
        text = text.rstrip("\u2026")[:-1].rstrip() + "\u2026"
    return text
