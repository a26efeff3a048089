"""What the page says about itself and about its models."""

from collections.abc import Sequence
from contextlib import suppress
from html import escape
from importlib.metadata import PackageNotFoundError, metadata

from .clips import Clip
from .front import HEADLINE
from .studio import Studio, bundled_results

WHAT_ALPRO_IS = """
[ALPRO](https://arxiv.org/abs/2112.09583) (“Align and Prompt”, CVPR 2022) compares a clip and a text with two towers
(VTC) and reads both together in a fusion encoder (VTM). In pre-training, a *prompter* teaches it which entities a box
shows (PEM).
"""
BUNDLED_MODELS = """
**Two small models that only know a synthetic world of moving pictograms.** They have {search:.1f}
and {answer:.1f} million parameters and were trained on two CPU cores, on sentences such as “the boat climbs while a
scooter spins”. The clips here are new to them: in training no sprite was seen doing what it does here. On
{clips:,.0f} such clips, a caption finds its clip first in {first:.0f} % of cases (chance: 0.1 %), a clip prefers its
caption to the opposite in {opposite:.0f} % (chance: 50 %), and {answers:.0f} % of questions are answered right.
{not_learned}

You can upload your own videos, but these models have never seen a real video. For real videos, run the demo with
checkpoints trained on real videos: set `ALPRO_MODEL` and `ALPRO_QA_MODEL` to folders or Hub ids.
"""
OTHER_MODELS = """
This page runs {0}. {1} {2}
"""
REAL_MODEL = "For real videos, run the page with a model trained on real videos."
UNFAMILIAR = (
    "<strong>Do not trust what the page says about {0}.</strong> The model knows a synthetic world of moving "
    "pictograms and nothing else, and {0} {1} not of it. It answers all the same, often with high percentages. "
) + REAL_MODEL
SPRITES_ALONE = "This model was trained on a synthetic world of moving pictograms, and on no real video."
PAPER = "https://arxiv.org/abs/2112.09583"
ORIGINAL = "https://github.com/salesforce/ALPRO"


def trained_on(studio: Studio) -> str:
    """What the model for searches was trained on, in one sentence."""
    if studio.sprites:
        return SPRITES_ALONE
    facts = studio.facts
    said = facts.data or (f"the data sets {', '.join(facts.datasets)}" if facts.datasets else "")
    if said:
        return f"{studio.names[0]} was trained on {said.rstrip('.')}."
    return facts.summary or f"{studio.names[0]} does not say what it was trained on."


def links(studio: Studio) -> list[tuple[str, str]]:
    """Names and addresses of paper, repositories and model card."""
    found = [("Paper", PAPER)]
    with suppress(PackageNotFoundError):  # run from a checkout that is only on the path
        named = dict(entry.split(", ", 1) for entry in metadata("alpro-hf").get_all("Project-URL", []))
        found += [("Repository", named[name]) for name in ("Repository", "Source", "Homepage") if name in named][:1]
    return [*found, ("Original code", ORIGINAL), ("Model card", studio.card)]


def header(studio: Studio) -> str:
    """The first lines of the page, as HTML."""
    anchors = " · ".join(
        f'<a href="{escape(address)}" target="_blank" rel="noopener">{name}</a>' for name, address in links(studio)
    )
    return f'<h1>{HEADLINE}</h1><p>{escape(trained_on(studio))}</p><p class="links">{anchors}</p>'


def about(studio: Studio) -> str:
    """What the models can and cannot do, as Markdown."""
    if studio.bundled and studio.qa_bundled:
        return about_bundled(studio) + WHAT_ALPRO_IS
    search, questions = (f"**{name}**" for name in studio.names)
    models = f"{search} for search" + (f" and {questions} for questions" if studio.qa else "")
    gallery = (
        ""
        if studio.sprites or studio.collection
        else "The gallery shows the synthetic sprite world, which these models may never have seen: upload your own "
        "clips."
    )
    return OTHER_MODELS.format(models, trained_on(studio), gallery) + WHAT_ALPRO_IS


def unfamiliar(clips: Sequence[Clip]) -> str:
    """A warning about clips that a model cannot know, as HTML; empty if there are none."""
    if not clips:
        return ""
    titles = ", ".join(f"“{escape(clip.title)}”" for clip in clips)
    return UNFAMILIAR.format(titles, "is" if len(clips) == 1 else "are")


def unknown(words: Sequence[str]) -> str:
    """A warning about words that a model cannot know, as HTML; empty if there are none."""
    if not words:
        return ""
    listed = ", ".join(f"“{escape(word)}”" for word in words)
    return f"<strong>The model does not know {listed}.</strong> Do not trust the result."


# kinds of opposites in the results file -> the words for them, used where the model is near chance
DISTINCTIONS = {
    "clockwise/counterclockwise": "which way something spins",
    "order": "which of two things happens first",
    "roles": "who follows whom",
    "left/right": "left from right",
    "up/down": "up from down",
    "grow/shrink": "growing from shrinking",
    "appear/disappear": "appearing from disappearing",
    "bounce/sway": "bouncing from swaying",
    "follow/pass": "following from passing",
}
LEARNED = 65  # percent of choices between two; chance is 50


def about_bundled(studio: Studio) -> str:
    """Description and accuracy of the bundled models, from the results files next to their weights."""
    assert studio.qa is not None  # the bundled one
    search, answers = bundled_results("retrieval"), bundled_results("qa")
    choices = search["choices"]
    weak = [
        said
        for pair, said in DISTINCTIONS.items()
        if max(choices[f"opposite: {pair}"]["vtc"], choices[f"opposite: {pair}"]["vtm"]) < LEARNED
    ]
    said = f"The search model did not learn to distinguish {_listed(weak)}." if weak else ""
    return BUNDLED_MODELS.format(
        search=studio.model.num_parameters() / 1e6,
        answer=studio.qa[0].num_parameters() / 1e6,
        clips=choices["opposite"]["n"],
        first=search["retrieval"]["rerank"]["t2v_r1"],
        opposite=choices["opposite"]["vtc"],
        answers=answers["qa"]["accuracy"],
        not_learned=said,
    )


def _listed(words: Sequence[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last
