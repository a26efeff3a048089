"""The tab Look inside: the entities that the prompter finds in a box, and the patches that words attend to."""

from typing import Any

import gradio as gr

from . import maps, views
from .clips import Clip, DemoError, Visit
from .parts import LIGHT, WORK, Shared, chips, constant, line, mention_unknown, polite, script, told
from .studio import Studio

BOX_SIDE = 0.55  # side of the first box, as a share of the frame
SENTENCES = (
    ("16", "the chicken runs to the right while the rose grows"),
    ("14", "the tiger grows"),
    ("05", "the gem is followed by the rose"),
)
BUILT_PROMPTER = (
    "No prompter was trained for this model yet. This one is built from the towers of the retrieval model, which have "
    "never seen a box on a black background: expect frequent mistakes."
)
INSIDE_MAPS = (
    "It is the same in all frames. The maps are also the same for all frames: the model averages patches over time "
    "before it reads any word."
)


class InsideTab:
    """Frames to draw a box on, the entities of the box, and maps of regions and of words."""

    id = "inside"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def start_box(self) -> list[int]:
        """A box in the middle of the frame: top, left, bottom, right in patches."""
        sizes = [max(1, round(side * BOX_SIDE)) for side in self.studio.grid]
        first = [(side - size) // 2 for side, size in zip(self.studio.grid, sizes, strict=True)]
        return [*first, *(start + size for start, size in zip(first, sizes, strict=True))]

    def _seen(self, clip: Clip) -> str:
        """The entities in the first box."""
        return views.bars(self.studio.box(clip, self.start_box())) if self.studio.prompter else ""

    def _frames(self, clip: Clip) -> str:
        return maps.drawing_frames(self.studio.frames(clip), self.studio.grid, self.start_box())

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

    def answer(self, chosen: str, sentence: str, visit: Visit | None) -> str:
        """The patches that the words of a sentence attend to, as HTML."""
        clip = self.studio.find(chosen, visit or Visit())
        found = self.studio.words(clip, sentence)
        mention_unknown(self.studio, sentence)
        return maps.sentence_maps(self.studio.frames(clip), found)

    def lay_out(self, first: Clip) -> None:
        """Add the components, for the clip that is chosen first."""
        gr.HTML('<h3 class="step">Which entities does the prompter find in a box?</h3>')
        gr.HTML(views.note("Draw a box on any frame, or tap it. " + INSIDE_MAPS))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=280):
                self.frames = gr.HTML(self._frames(first), js_on_load=script("inside.js"))
            with gr.Column(scale=2, min_width=200):
                self.seen = gr.HTML(self._seen(first), elem_classes="panel")
        self.region_button = gr.Button("Name every region", size="md")
        self.region_maps = gr.HTML(js_on_load=script("maps.js"), elem_classes="panel")
        if self.studio.bundled and not self.studio.own_prompter:
            gr.HTML(views.note(BUILT_PROMPTER))
        gr.HTML('<h3 class="step">Which patches does each word attend to?</h3>')
        self.text, self.button = line("Sentence about this clip", SENTENCES[0][1], "Show")
        self.examples = chips([text for _, text in SENTENCES])
        self.result = gr.HTML(js_on_load=script("maps.js"), elem_classes="panel")

    @property
    def shown(self) -> list[Any]:
        """Components that `show` gives values to."""
        return [self.frames, self.seen, self.region_maps, self.result]

    def show(self, clip: Clip) -> tuple[str, ...]:
        """Values of `shown` for a clip that was just chosen."""
        return self._frames(clip), self._seen(clip), "", ""

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        read: tuple[Any, ...] = (polite(self.answer), [shared.chosen, self.text, shared.visit], self.result)
        gr.on([self.text.submit, self.button.click], *read, **WORK)
        for example, chip in zip(SENTENCES, self.examples, strict=True):
            picked = chip.click(constant(example), None, [shared.chosen, self.text], **LIGHT)
            shared.then_show(picked).then(*read, **WORK)
        self.frames.select(polite(self.box), [shared.chosen, shared.visit], self.seen, **WORK)
        self.region_button.click(polite(self.regions), [shared.chosen, shared.visit], self.region_maps, **WORK)
