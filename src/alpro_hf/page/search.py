"""The tab Search: the clips that a text describes."""

from typing import Any

import gradio as gr

from . import views
from .clips import Visit
from .parts import LIGHT, WORK, Shared, chips, constant, line, mention_unknown, polite
from .studio import Studio

SEARCHES = (
    "the giraffe expands as the lemon grows",
    "a television moves down while a boat climbs",
    "a rose chases a gem",
    "a chicken appears, a flamingo sinks and a taxi rotates clockwise",
    "the tiger grows",
)


class SearchTab:
    """Text field, examples and results. Arguments and results of its functions are values of gradio components."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def search(self, text: str, visit: Visit | None) -> str:
        """The results for a text, as HTML."""
        found = self.studio.search(text, visit or Visit())
        mention_unknown(self.studio, text)
        return views.results(found)

    def lay_out(self) -> None:
        """Add the components."""
        self.query, self.button = line("What happens?", SEARCHES[0], "Search")
        self.examples = chips(SEARCHES)
        said = views.note("Describe what happens in a clip, or try an example.")
        self.found = gr.HTML(said, elem_classes="panel")

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        search: tuple[Any, ...] = (polite(self.search), [self.query, shared.visit], self.found)
        gr.on([self.query.submit, self.button.click], *search, **WORK)
        for text, chip in zip(SEARCHES, self.examples, strict=True):
            chip.click(constant(text), None, self.query, **LIGHT).then(*search, **WORK)
