"""The functions of the page that programs call, with `gradio_client`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from .clips import MAX_CLIPS, Clip, DemoError, Visit
from .parts import AT_ONCE, polite
from .received import by_path
from .studio import Studio

BOX_SIDES = ("top", "left", "bottom", "right")


class Endpoints:
    """The functions that `gradio_client` calls. `clip` is an id of `/clips`; an uploaded `file` replaces it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def clips(self) -> list[dict[str, str]]:
        """The clips of the gallery."""
        return [{"id": clip.id, "title": clip.title} for clip in self.studio.clips]

    def search(self, text: str, files: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Order the gallery, and uploaded files, by how well they match a text."""
        visit = Visit()
        try:
            for file in (files or ())[: MAX_CLIPS + 1]:
                self.studio.add(Path(file), Path(file).name, visit)
            return [
                {
                    "rank": found.rank,
                    "clip": found.clip.id,
                    "title": found.clip.title,
                    "rank_by_similarity": found.rank_before,
                    "similarity": found.similarity,
                    **({"match_probability": found.match_probability} if self.studio.can_match else {}),
                }
                for found in self.studio.search(text, visit)
            ]
        finally:
            visit.forget()

    def ask(self, question: str, clip: str = "", file: str | None = None) -> list[dict[str, Any]]:
        """The most probable answers to a question about a clip."""
        visit = Visit()
        try:
            found = self.studio.ask(self._clip(clip, file, visit), question)
            return [{"answer": answer.answer, "probability": answer.probability} for answer in found]
        finally:
            visit.forget()

    def entities(
        self,
        clip: str,
        file: str | None = None,
        top: float | None = 0.0,
        left: float | None = 0.0,
        bottom: float | None = 1.0,
        right: float | None = 1.0,
    ) -> dict[str, Any]:
        """The entities that the prompter finds in a box, which is given in shares of height and width.

        The box is enlarged to whole patches.
        """
        visit = Visit()
        try:
            box = _patches(self.studio.grid, top, left, bottom, right)
            found = self.studio.box(self._clip(clip, file, visit), box)
            return {"box": box, "grid": list(self.studio.grid), "entities": dict(found)}
        finally:
            visit.forget()

    def words(self, sentence: str, clip: str = "", file: str | None = None) -> dict[str, Any]:
        """The patches that each word of a sentence attends to: a map, row by row, for each word."""
        visit = Visit()
        try:
            found = self.studio.words(self._clip(clip, file, visit), sentence)
            words = [
                {"word": word.word, "known": word.known, "relevance": word.relevance.tolist()} for word in found.words
            ]
            return {
                "match_probability": found.match_probability,
                "sentence": found.sentence.tolist(),
                "words": words,
            }
        finally:
            visit.forget()

    def _clip(self, clip: str, file: str | None, visit: Visit) -> Clip:
        return self.studio.add(Path(file), Path(file).name, visit) if file else self.studio.find(clip, visit)


def _patches(grid: tuple[int, int], *sides: float | None) -> list[int]:
    """Top, left, bottom, right of the smallest box of patches that holds a box given in shares.

    Raises:
        DemoError: A side is missing or is no share, or the box has no area.
    """
    shares = [side for side in sides if side is not None]
    if len(shares) < len(sides):
        raise DemoError("A box has four sides: top, left, bottom and right, each a share between 0 and 1.")
    # before they are multiplied, which may be infinite
    if not all(0 <= share <= 1 for share in shares):
        raise DemoError("The box lies outside the picture: its sides are shares between 0 and 1.")
    top, left, bottom, right = shares
    if not (top < bottom and left < right):
        raise DemoError("The box is empty, or it is turned around: top is less than bottom, left than right.")
    rows, columns = grid
    first = math.floor(top * rows), math.floor(left * columns)
    return [*first, math.ceil(bottom * rows), math.ceil(right * columns)]


def add_endpoints(endpoints: Endpoints, first: Clip) -> None:
    """Named endpoints, on hidden components so that gradio checks their files like any other upload."""
    with gr.Row(visible=False):
        text, clip = gr.Textbox(label="text"), gr.Textbox(first.id, label="clip")
        file = by_path(gr.File(label="file", file_count="single", type="filepath"))
        files = by_path(gr.File(label="files", file_count="multiple", type="filepath"))
        box = [gr.Number(value, label=side) for side, value in zip(BOX_SIDES, (0.0, 0.0, 1.0, 1.0), strict=True)]
        result, call = gr.JSON(label="result"), gr.Button("call")
    calls: list[tuple[str, Any, list[Any]]] = [
        ("clips", endpoints.clips, []),
        ("search", endpoints.search, [text, files]),
    ]
    studio = endpoints.studio
    if studio.qa is not None:
        calls.append(("ask", endpoints.ask, [text, clip, file]))
    if studio.prompter is not None:
        calls.append(("entities", endpoints.entities, [clip, file, *box]))
    if studio.can_match:
        calls.append(("words", endpoints.words, [text, clip, file]))
    for name, function, inputs in calls:
        call.click(
            polite(function),
            inputs,
            result,
            api_name=name,
            api_description=function.__doc__,
            concurrency_id="work",
            concurrency_limit=AT_ONCE,
        )
