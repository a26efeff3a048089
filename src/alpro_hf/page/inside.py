"""The tab Look inside: how a sentence fits over the time of a clip, the patches its words read, and the entities that
a prompter finds in a box."""

from typing import Any

import gradio as gr

from . import about, maps, plots, views
from .clips import Clip, DemoError, Visit
from .parts import LIGHT, WORK, Shared, Tab, chips, constant, line, polite, script, told
from .studio import MAX_CHARACTERS, Studio
from .word_maps import word_panels

BOX_SIDE = 0.55  # side of the first box, as a share of the frame
# clip of the bundled gallery, a sentence, and one to compare it with
SENTENCES = (
    ("06", "the balloon sways from side to side", "the bear bounces up and down"),
    ("14", "the tiger grows", "the tiger shrinks"),
    ("24", "a ram rises, a cookie moves up and a toilet appears", ""),
    ("11", "a candy shakes from side to side", "the hippopotamus turns counterclockwise"),
)
OVER_TIME = (
    "Similarity (VTC) of the sentence and a window that slides over the clip. A window is a third of the clip; each "
    "point of a curve stands at the middle of its window."
)
READ_BY_WORDS = (
    "The matching head reads sentence and clip together. The model averages patches over time before any word reads "
    "them, so a map holds for the whole clip; the picture shows what moves at all its places."
)
PROMPTER = (
    "The prompter compares a box with the {0} entities that it knows. It always names one of them, also where there "
    "is none. Take a name as a guess, and a low percentage as no answer."
)
DRAW = "Drag over a frame, or tap it. Arrow keys move the box, and with Shift they change its size."


class InsideTab(Tab):
    """A sentence, its curve and its maps; with a prompter, frames to draw a box on and the entities in it."""

    id = "inside"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.sentences = SENTENCES if studio.sprites and studio.collection is None else ()

    def start_box(self) -> list[int]:
        """A box in the middle of the frame: top, left, bottom, right in patches."""
        sizes = [max(1, round(side * BOX_SIDE)) for side in self.studio.grid]
        first = [(side - size) // 2 for side, size in zip(self.studio.grid, sizes, strict=True)]
        return [*first, *(start + size for start, size in zip(first, sizes, strict=True))]

    def read(self, chosen: str, sentence: str, other: str, visit: Visit | None) -> str:
        """A sentence, and one to compare it with, over the time of the chosen clip; what its words read. As HTML."""
        clip = self.studio.find(chosen, visit or Visit())
        captions = [text for text in (sentence, other or "") if text.strip()] if (sentence or "").strip() else [""]
        windows, scores, film = self.studio.over_time(clip, captions)
        shown = f'<h3 class="step">Second by second</h3>{views.note(OVER_TIME)}'
        shown += plots.curves(captions, windows, scores.similarity, film)
        if self.studio.can_match:
            shown += f'<h3 class="step">Word by word</h3>{views.note(READ_BY_WORDS)}'
            shown += word_panels(self.studio.trail(clip), self.studio.words(clip, sentence))
        words = self.studio.unknown_words(" ".join(captions))
        cautions = (about.unknown(words), about.unfamiliar([clip] if self.studio.is_strange(clip) else []))
        return "".join(map(views.caution, cautions)) + shown

    def answer(self, chosen: str, text: str, visit: Visit | None) -> str:
        """What is shown of a sentence that came with the address of the page."""
        return self.read(chosen, text, "", visit)

    def box(self, event: gr.EventData, chosen: str, visit: Visit | None) -> str:
        """The entities in the box that was drawn, as HTML."""
        box = told(event, "box")
        if not isinstance(box, list) or len(box) != 4 or not all(type(side) is int for side in box):
            raise DemoError("A box is four whole numbers. Draw it inside of the picture.")
        return views.bars(self.studio.box(self.studio.find(chosen, visit or Visit()), box))

    def regions(self, chosen: str, visit: Visit | None) -> str:
        """The entities of all regions of the chosen clip, as HTML."""
        clip = self.studio.find(chosen, visit or Visit())
        return maps.region_maps(self.studio.frames(clip), self.studio.regions(clip), self.studio.entities)

    def lay_out(self, first: Clip) -> None:
        """Add the components, for the clip that is chosen first."""
        example = self.sentences[0][1] if self.sentences else "a dog runs"
        self.text, self.button = line("Sentence about this clip", example, "Show")
        self.other = gr.Textbox(
            label="Compare with (optional)",
            placeholder=f"for example: {self.sentences[0][2] if self.sentences else 'a dog sits'}",
            max_length=MAX_CHARACTERS,
            lines=1,
            max_lines=3,
        )
        self.examples = chips([text for _, text, _ in self.sentences])
        self.result = gr.HTML(views.note("Write a sentence about the clip, or try an example."), elem_classes="panel")
        if self.studio.prompter is not None:
            self._lay_out_prompter(first)

    def _lay_out_prompter(self, first: Clip) -> None:
        said = views.note(PROMPTER.format(len(self.studio.entities))) + views.note(DRAW)
        gr.HTML(f'<h3 class="step">Which entities does the prompter find in a box?</h3>{said}')
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=280):
                self.frames = gr.HTML(self._frames(first), js_on_load=script("inside.js"))
            with gr.Column(scale=2, min_width=200):
                self.seen = gr.HTML(self._seen(first), elem_classes="panel")
        self.region_button = gr.Button("Name every region", size="md", elem_classes="regions")
        self.region_maps = gr.HTML(js_on_load=script("maps.js"), elem_classes="panel")

    def _seen(self, clip: Clip) -> str:
        """The entities in the first box."""
        return views.bars(self.studio.box(clip, self.start_box()))

    def _frames(self, clip: Clip) -> str:
        return maps.drawing_frames(self.studio.frames(clip), self.studio.grid, self.start_box())

    @property
    def shown(self) -> list[Any]:
        """Components that `show` gives values to."""
        prompter = [self.frames, self.seen, self.region_maps] if self.studio.prompter is not None else []
        return [self.result, *prompter]

    def show(self, clip: Clip) -> tuple[str, ...]:
        """Values of `shown` for a clip that was just chosen."""
        said = views.note("Write a sentence about this clip, or try an example.")
        prompter = (self._frames(clip), self._seen(clip), "") if self.studio.prompter is not None else ()
        return said, *prompter

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        inputs = [shared.chosen, self.text, self.other, shared.visit]
        read: tuple[Any, ...] = (polite(self.read), inputs, self.result)
        shown = [gr.on([self.text.submit, self.other.submit, self.button.click], *read, **WORK)]
        for example, chip in zip(self.sentences, self.examples, strict=True):
            picked = chip.click(constant(example), None, [shared.chosen, self.text, self.other], **LIGHT)
            shown.append(shared.then_show(picked).then(*read, **WORK))
        for event in shown:
            shared.note(event, self)
        if self.studio.prompter is not None:
            self.frames.select(polite(self.box), [shared.chosen, shared.visit], self.seen, **WORK)
            regions = [shared.chosen, shared.visit]
            self.region_button.click(polite(self.regions), regions, self.region_maps, **WORK)
