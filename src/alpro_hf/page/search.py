"""The tab Search: the clips that a text describes."""

from typing import Any

import gradio as gr

from . import about, views
from .clips import Visit
from .parts import LIGHT, WORK, Shared, Tab, chips, constant, line, polite, script
from .studio import Studio

SEARCHES = (
    "the giraffe expands as the lemon grows",
    "a television moves down while a boat climbs",
    "a rose chases a gem",
    "a chicken appears, a flamingo sinks and a taxi rotates clockwise",
    "the tiger grows",
)


class SearchTab(Tab):
    """Text field, examples and results. Arguments and results of its functions are values of gradio components."""

    id = "search"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        # examples are in words that the model knows and, for the bundled gallery, of its clips
        sprites = studio.sprites and studio.collection is None
        self.searches = SEARCHES if sprites else tuple(studio.facts.example_texts)

    def search(self, text: str, visit: Visit | None) -> str:
        """The results for a text, as HTML."""
        studio = self.studio
        found = studio.search(text, visit or Visit())
        strange = [one.clip for one in found[: views.SHOWN_RESULTS] if studio.is_strange(one.clip)]
        cautions = (about.unknown(studio.unknown_words(text)), about.unfamiliar(strange))
        shown = views.results(found, ask=studio.qa is not None)
        return "".join(map(views.caution, cautions)) + shown

    def lay_out(self) -> None:
        """Add the components. A result is shown at once, if there is an example to search for."""
        self.text, self.button = line("What happens?", self.searches[0] if self.searches else "a dog runs", "Search")
        self.examples = chips(self.searches)
        shown = views.note("Describe what happens in a clip, and press Enter.")
        if self.searches:
            first = self.searches[0]
            shown = views.note(f"For example, “{first}”:") + self.search(first, None)
        self.result = gr.HTML(shown, js_on_load=script("door.js"), elem_classes="panel found")

    def answer(self, chosen: str, text: str, visit: Visit | None) -> str:
        """The results for a text that came with the address of the page."""
        return self.search(text, visit)

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        search: tuple[Any, ...] = (polite(self.search), [self.text, shared.visit], self.result)
        searched = [gr.on([self.text.submit, self.button.click], *search, **WORK)]
        for text, chip in zip(self.searches, self.examples, strict=True):
            searched.append(chip.click(constant(text), None, self.text, **LIGHT).then(*search, **WORK))
        for event in searched:
            shared.note(event, self)
