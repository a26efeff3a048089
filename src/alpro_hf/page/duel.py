"""The tab Opposites: two captions compete for the chosen clip, while they are typed."""

from pathlib import Path
from typing import Any

import gradio as gr

from ..evaluation.results import RESULTS
from ..sprites.opposites import opposite_kind
from ..untrusted_json import read_json
from . import about, duel_views, views
from .clips import Clip, DemoError, Visit
from .duel_views import KINDS, Measured
from .parts import QUICK, WORK, Shared, Tab, polite, script, told
from .studio import MAX_CHARACTERS, Studio

# kind of opposites -> clip of the bundled gallery, what happens in it, and the opposite
EXAMPLES: dict[str, tuple[str, str, str]] = {
    "bounce/sway": ("01", "the bell bounces up and down", "the bell sways from side to side"),
    "grow/shrink": ("14", "the tiger grows", "the tiger shrinks"),
    "left/right": (
        "16",
        "the chicken runs to the right while the rose grows",
        "the chicken runs to the left while the rose grows",
    ),
    "up/down": (
        "24",
        "a ram rises, a cookie moves up and a toilet appears",
        "a ram rises, a cookie moves down and a toilet appears",
    ),
    "appear/disappear": (
        "24",
        "a ram rises, a cookie moves up and a toilet appears",
        "a ram rises, a cookie moves up and a toilet disappears",
    ),
    "follow/pass": ("17", "a frog chases a rose", "a frog overtakes a rose"),
    "swapped": (
        "04",
        "a hedgehog bounces up and down as a bed sways from side to side",
        "a bed bounces up and down as a hedgehog sways from side to side",
    ),
    "roles": ("05", "the rose follows the gem", "the gem follows the rose"),
    "clockwise/counterclockwise": (
        "10",
        "the taxi turns clockwise while the flamingo goes down and the chicken appears",
        "the taxi turns counterclockwise while the flamingo goes down and the chicken appears",
    ),
    "order": (
        "06",
        "a bear bounces up and down after a balloon sways",
        "a balloon sways after a bear bounces up and down",
    ),
}
BETWEEN = " | "  # stands between caption and opposite in the address of the page
EXPLAINED = (
    "Two captions that differ in one thing, and one clip. Does the model notice? Write your own: the bars follow as "
    "you type."
)
TOLD_APART = (
    "How often the true caption scored higher than its opposite, by the better of the two scores, on clips that the "
    "model was not trained on. The mark stands at 50 %, which guessing gives. Pick one for an example."
)


def measured_choices(folder: Path) -> dict[str, Measured]:
    """What was measured about a model's choices between a caption and its opposite, by kinds of opposites.

    Args:
        folder: Folder of the model. Its results file has it, as that of the bundled model does, or has not.
    """
    content = read_json(folder / RESULTS) if (folder / RESULTS).is_file() else {}
    found: Any = content
    for key in ("results", "test", "choices"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return {}
    return {
        kind: Measured(float(one["vtc"]), float(one["vtm"]), int(one["n"]))
        for kind in KINDS
        if (one := found.get(kind if kind == "swapped" else f"opposite: {kind}"))
    }


def _parted(text: str) -> tuple[str, str]:
    """Caption and opposite of a text that holds both."""
    caption, _, opposite = (text or "").partition(BETWEEN)
    return caption.strip(), opposite.strip()


class DuelTab(Tab):
    """The chosen clip, two captions, their scores, and what the model was measured to tell apart."""

    id = "duel"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.measured = measured_choices(studio.source)
        self.examples = EXAMPLES if studio.sprites and studio.collection is None else {}

    def duel(self, chosen: str, caption: str, opposite: str, visit: Visit | None) -> str:
        """The scores of two captions for the chosen clip, as HTML."""
        if not (caption or "").strip() or not (opposite or "").strip():
            return views.note("Write both captions.")
        clip = self.studio.find(chosen, visit or Visit())
        scores = self.studio.scores(clip, (caption, opposite))
        kind = opposite_kind(caption, opposite)
        shown = duel_views.duel((caption, opposite), scores, kind, self.measured.get(kind or ""))
        words = self.studio.unknown_words(f"{caption} {opposite}")
        cautions = (about.unknown(words), about.unfamiliar([clip] if self.studio.is_strange(clip) else []))
        return "".join(map(views.caution, cautions)) + shown

    def answer(self, chosen: str, text: str, visit: Visit | None) -> str:
        """The scores of two captions that came with the address of the page."""
        return self.duel(chosen, *_parted(text), visit)

    def fill(self, text: str) -> dict[Any, str]:
        """Both captions, with their common text: a clip that is chosen with them is scored with them."""
        return {self.text: text} | dict(zip((self.caption, self.opposite), _parted(text), strict=True))

    def example(self, event: gr.EventData) -> tuple[str, str, str]:
        """Clip, caption and opposite of the kind that was clicked."""
        kind = told(event, "kind")
        if kind not in self.examples:
            raise DemoError("There is no such example. Load the page again.")
        return self.examples[kind]

    def lay_out(self, first: Clip) -> None:
        """Add the components, for the clip that is chosen first. A result is shown at once, if there is an example."""
        _, caption, opposite = next(iter(self.examples.values()), ("", "", ""))
        self.text = gr.Textbox(f"{caption}{BETWEEN}{opposite}".strip(" |"), visible="hidden", label="both captions")
        gr.HTML(views.note(EXPLAINED))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=220):
                self.stage = gr.HTML(views.stage(first), elem_classes="panel")
            with gr.Column(scale=5, min_width=300):
                with gr.Row(elem_classes="pair"):
                    options: dict[str, Any] = {
                        "max_length": MAX_CHARACTERS,
                        "lines": 1,
                        "max_lines": 3,
                        "min_width": 200,
                    }
                    self.caption = gr.Textbox(caption, label="Caption", **options)
                    self.opposite = gr.Textbox(opposite, label="Its opposite", **options)
                self.result = gr.HTML(self.duel(first.id, caption, opposite, None), elem_classes="panel")
        if self.measured:
            gr.HTML(f'<h3 class="step">What this model tells apart</h3>{views.note(TOLD_APART)}')
            listed = duel_views.kinds(self.measured, list(self.examples))
            self.kinds = gr.HTML(listed, js_on_load=script("kinds.js"))

    @property
    def shown(self) -> list[Any]:
        """Components that `show` gives values to."""
        return [self.stage]

    def show(self, clip: Clip) -> tuple[str, ...]:
        """Values of `shown` for a clip that was just chosen."""
        return (views.stage(clip),)

    def connect(self, shared: Shared) -> None:
        """Say what happens at clicks and while one types."""
        captions = [self.caption, self.opposite]
        duel: tuple[Any, ...] = (polite(self.duel), [shared.chosen, *captions, shared.visit], self.result)
        live: dict[str, Any] = {**WORK, "show_progress": "hidden", "trigger_mode": "always_last"}
        gr.on([self.caption.input, self.opposite.input, shared.chosen.change], *duel, **live)
        noted = [gr.on([box.submit for box in captions], *duel, **live)]
        if self.measured and self.examples:
            picked = self.kinds.select(polite(self.example), None, [shared.chosen, *captions], **QUICK)
            noted.append(shared.then_show(picked).then(*duel, **live))
        together = f"(one, other) => `${{one}}{BETWEEN}${{other}}`"
        for event in noted:
            shared.note(event.then(None, captions, self.text, js=together, api_visibility="private"), self)
