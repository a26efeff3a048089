"""The tab Ask: a question about the chosen clip."""

from typing import Any

import gradio as gr

from ..evaluation.unfamiliar import knows_only_sprites
from ..inference.question_answering import known_answers
from . import about, views
from .clips import Clip, Visit
from .parts import LIGHT, WORK, Shared, Tab, chips, constant, line, polite
from .studio import Studio

# clip of the bundled gallery, and a question about it
QUESTIONS = (
    ("01", "what does the bell do?"),
    ("12", "which way does the turkey move?"),
    ("07", "how many things are there?"),
    ("05", "what is chased by the rose?"),
    ("10", "what is the chicken doing?"),
)


class AskTab(Tab):
    """The chosen clip, a question and its answers. The studio has a model for questions."""

    id = "ask"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        sprites = studio.qa is not None and knows_only_sprites(studio.qa[0]) and studio.collection is None
        self.questions = QUESTIONS if sprites else ()

    def answer(self, chosen: str, question: str, visit: Visit | None) -> str:
        """The answers to a question about the chosen clip, as HTML."""
        studio = self.studio
        assert studio.qa is not None
        clip = studio.find(chosen, visit or Visit())
        answers = studio.ask(clip, question)
        words = studio.unknown_words(question, question=True)
        cautions = (about.unknown(words), about.unfamiliar([clip] if studio.is_strange(clip) else []))
        known = len(known_answers(studio.qa[0]))
        said = views.note(f"The model chooses among the {known} answers that it knows.")
        return "".join(map(views.caution, cautions)) + views.answers(answers) + said

    def lay_out(self, first: Clip) -> None:
        """Add the components, for the clip that is chosen first."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=240):
                self.stage = gr.HTML(views.stage(first), elem_classes="panel")
            with gr.Column(scale=3, min_width=280):
                example = self.questions[0][1] if self.questions else "what is the dog doing?"
                self.text, self.button = line("Question about this clip", example, "Ask")
                self.examples = chips([text for _, text in self.questions])
                self.result = gr.HTML(elem_classes="panel")

    @property
    def shown(self) -> list[Any]:
        """Components that `show` gives values to."""
        return [self.stage, self.result]

    def show(self, clip: Clip) -> tuple[str, ...]:
        """Values of `shown` for a clip that was just chosen."""
        return views.stage(clip), ""

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        ask: tuple[Any, ...] = (polite(self.answer), [shared.chosen, self.text, shared.visit], self.result)
        asked = [gr.on([self.text.submit, self.button.click], *ask, **WORK)]
        for example, chip in zip(self.questions, self.examples, strict=True):
            picked = chip.click(constant(example), None, [shared.chosen, self.text], **LIGHT)
            asked.append(shared.then_show(picked).then(*ask, **WORK))
        for event in asked:
            shared.note(event, self)
