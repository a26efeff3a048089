"""The tab Ask: a question about the chosen clip."""

from typing import Any

import gradio as gr

from ..inference.question_answering import known_answers
from . import views
from .clips import Clip, Visit
from .parts import LIGHT, WORK, Shared, chips, constant, line, mention_unknown, polite
from .studio import Studio

QUESTIONS = (
    ("01", "what does the bell do?"),
    ("12", "which way does the turkey move?"),
    ("07", "how many things are there?"),
    ("05", "what is chased by the rose?"),
    ("10", "what is the chicken doing?"),
)


class AskTab:
    """The chosen clip, a question and its answers."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def ask(self, chosen: str, question: str, visit: Visit | None) -> str:
        """The answers to a question about the chosen clip, as HTML."""
        answers = self.studio.ask(self.studio.find(chosen, visit or Visit()), question)
        mention_unknown(self.studio, question, question=True)
        known = len(known_answers(self.studio.qa[0]))
        return views.answers(answers) + views.note(f"The model chooses among the {known} answers that it knows.")

    def lay_out(self, first: Clip) -> None:
        """Add the components, for the clip that is chosen first."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=240):
                self.stage = gr.HTML(views.stage(first), elem_classes="panel")
            with gr.Column(scale=3, min_width=280):
                self.question, self.button = line("Question about this clip", QUESTIONS[0][1], "Ask")
                self.examples = chips([text for _, text in QUESTIONS])
                self.answer = gr.HTML(elem_classes="panel")

    @property
    def shown(self) -> list[Any]:
        """Components that `show` gives values to."""
        return [self.stage, self.answer]

    def show(self, clip: Clip) -> tuple[str, ...]:
        """Values of `shown` for a clip that was just chosen."""
        return views.stage(clip), ""

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks."""
        ask: tuple[Any, ...] = (polite(self.ask), [shared.chosen, self.question, shared.visit], self.answer)
        gr.on([self.question.submit, self.button.click], *ask, **WORK)
        for example, chip in zip(QUESTIONS, self.examples, strict=True):
            picked = chip.click(constant(example), None, [shared.chosen, self.question], **LIGHT)
            shared.then_show(picked).then(*ask, **WORK)
