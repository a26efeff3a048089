"""The demo page: search clips by what happens in them, ask questions about them, and look inside the model.

    python spaces_demo/app.py

It runs the bundled models. The environment variables ALPRO_MODEL, ALPRO_QA_MODEL and ALPRO_PROMPTER replace them, each
with a folder or a Hub id.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
if find_spec("gradio") is None:
    sys.exit('The page needs gradio, which is not installed: pip install "alpro-hf[demo]"')

import gradio as gr
import views
from gradio.utils import get_upload_folder
from guard import Guard, functions_of
from starlette.middleware import Middleware
from studio import (
    MAX_CHARACTERS,
    MAX_CLIPS,
    MAX_MEGABYTES,
    MAX_SECONDS,
    Clip,
    DemoError,
    Studio,
    Visit,
    bundled_results,
    from_environment,
)
from theme import THEME

from alpro_hf import VideoDecodeError
from alpro_hf.inference.question_answering import known_answers

HERE = Path(__file__).parent
QUEUE = 32  # waiting requests; further ones are refused
AT_ONCE = 2  # computations at the same time
AN_HOUR = 3600  # seconds
BOX_SIDE = 0.55  # side of the first box, as a share of the frame
BOX_SIDES = ("top", "left", "bottom", "right")

SEARCHES = (
    "the giraffe expands as the lemon grows",
    "a television moves down while a boat climbs",
    "a rose chases a gem",
    "a chicken appears, a flamingo sinks and a taxi rotates clockwise",
    "the tiger grows",
)
QUESTIONS = (
    ("01", "what does the bell do?"),
    ("12", "which way does the turkey move?"),
    ("07", "how many things are there?"),
    ("05", "what is chased by the rose?"),
    ("10", "what is the chicken doing?"),
)
SENTENCES = (
    ("16", "the chicken runs to the right while the rose grows"),
    ("14", "the tiger grows"),
    ("05", "the gem is followed by the rose"),
)

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
This demo runs **{0}** for search and **{1}** for questions. The gallery shows the synthetic sprite world, which these
models may never have seen: upload your own clips.
"""
BUILT_PROMPTER = (
    "No prompter was trained for this model yet. This one is built from the towers of the retrieval model, which have "
    "never seen a box on a black background: expect frequent mistakes."
)
UNFAMILIAR = (
    "<strong>Do not trust what the page says about {0}.</strong> The model knows a synthetic world of moving "
    "pictograms and nothing else, and {0} {1} not of it. It answers all the same, often with high percentages. For "
    "real videos, run the page with a model trained on real videos."
)
INSIDE_MAPS = (
    "It is the same in all frames. The maps are also the same for all frames: the model averages patches over time "
    "before it reads any word."
)


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


class Page:
    """The functions behind the buttons. Their arguments and results are values of gradio components."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def _find(self, chosen: str, visit: Visit | None) -> Clip:
        return self.studio.find(chosen, visit or Visit())

    def start_box(self) -> list[int]:
        """A box in the middle of the frame: top, left, bottom, right in patches."""
        sizes = [max(1, round(side * BOX_SIDE)) for side in self.studio.grid]
        first = [(side - size) // 2 for side, size in zip(self.studio.grid, sizes, strict=True)]
        return [*first, *(start + size for start, size in zip(first, sizes, strict=True))]

    def pick(self, event: gr.EventData) -> str:
        return str(_told(event, "id"))

    def show(self, chosen: str, visit: Visit | None) -> tuple[str, ...]:
        """The chosen clip, its frames and the entities in the first box; empty results for everything else."""
        clip = self._find(chosen, visit)
        found = views.entities(self.studio.box(clip, self.start_box())) if self.studio.prompter else ""
        frames = views.drawing_frames(self.studio.frames(clip), self.studio.grid, self.start_box())
        return views.stage(clip), "", frames, found, "", ""

    def upload(self, files: Sequence[str] | None, visit: Visit | None) -> tuple[Visit, str, str, dict[str, Any]]:
        visit, last, problems = visit or Visit(), None, []
        for file in files or ():
            try:
                last = self.studio.add(Path(file), Path(file).name, visit)
            except DemoError as error:
                problems.append(str(error))
        if last is None:
            raise gr.Error(
                "\n".join(problems) or "No file arrived. Try again.", title="Not added", print_exception=False
            )
        for problem in problems:
            gr.Warning(problem, title="Not added")
        return visit, self._shelf(visit, last.id), last.id, gr.update(visible=True)

    def forget(self, visit: Visit | None) -> tuple[None, str, str, dict[str, Any]]:
        if visit is not None:
            visit.forget()
        first = self.studio.clips[0].id
        return None, self._shelf(Visit(), first), first, gr.update(visible=False)

    def banner(self, visit: Visit | None) -> str:
        """A warning if clips of the visitor are not of the world that a model knows; empty otherwise."""
        strange = self.studio.unfamiliar(visit or Visit())
        if not strange:
            return ""
        titles = ", ".join(f"“{escape(clip.title)}”" for clip in strange)
        return (
            f'<div role="alert" class="banner">{UNFAMILIAR.format(titles, "is" if len(strange) == 1 else "are")}</div>'
        )

    def _shelf(self, visit: Visit, chosen: str) -> str:
        return views.shelf([*reversed(visit.clips), *self.studio.clips], chosen)

    def search(self, text: str, visit: Visit | None) -> str:
        found = self.studio.search(text, visit or Visit())
        self._mention_unknown(text)
        return views.results(found)

    def _mention_unknown(self, text: str, *, question: bool = False) -> None:
        unknown = self.studio.unknown_words(text, question=question)
        if unknown:
            words = ", ".join(f"“{word}”" for word in unknown)
            gr.Warning(f"The model does not know {words}. Do not trust the result.", title="Unknown words")

    def ask(self, chosen: str, question: str, visit: Visit | None) -> str:
        answers = self.studio.ask(self._find(chosen, visit), question)
        self._mention_unknown(question, question=True)
        known = len(known_answers(self.studio.qa[0]))
        return views.answers(answers) + views.note(f"The model chooses among the {known} answers that it knows.")

    def box(self, event: gr.EventData, chosen: str, visit: Visit | None) -> str:
        box = _told(event, "box")
        if not isinstance(box, list) or len(box) != 4 or not all(type(side) is int for side in box):
            raise DemoError("A box is four whole numbers. Draw it inside of the picture.")
        return views.entities(self.studio.box(self._find(chosen, visit), box))

    def regions(self, chosen: str, visit: Visit | None) -> str:
        clip = self._find(chosen, visit)
        return views.region_maps(self.studio.frames(clip), self.studio.regions(clip), self.studio.entities)

    def words(self, chosen: str, sentence: str, visit: Visit | None) -> str:
        clip = self._find(chosen, visit)
        found = self.studio.words(clip, sentence)
        self._mention_unknown(sentence)
        return views.sentence_maps(self.studio.frames(clip), found)


class Endpoints:
    """The functions that `gradio_client` calls. `clip` is an id of `/clips`; an uploaded `file` replaces it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def clips(self) -> list[dict[str, str]]:
        """The clips of the gallery."""
        return [{"id": clip.id, "title": clip.title} for clip in self.studio.clips]

    def search(self, text: str, files: Sequence[str] | None) -> list[dict[str, Any]]:
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

    def ask(self, question: str, clip: str, file: str | None) -> list[dict[str, Any]]:
        """The most probable answers to a question about a clip."""
        visit = Visit()
        try:
            found = self.studio.ask(self._clip(clip, file, visit), question)
            return [{"answer": answer.answer, "probability": answer.probability} for answer in found]
        finally:
            visit.forget()

    def entities(
        self, clip: str, file: str | None, top: float, left: float, bottom: float, right: float
    ) -> dict[str, Any]:
        """The entities that the prompter finds in a box, which is given in shares of height and width."""
        rows, columns = self.studio.grid
        sides = ((top, rows), (left, columns), (bottom, rows), (right, columns))
        visit = Visit()
        try:
            # before they are multiplied, which may be infinite
            if not all(0 <= share <= 1 for share, _ in sides):
                raise DemoError("The box lies outside the picture: its sides are shares between 0 and 1.")
            box = [round(share * count) for share, count in sides]
            found = self.studio.box(self._clip(clip, file, visit), box)
            return {"box": box, "grid": [rows, columns], "entities": dict(found)}
        finally:
            visit.forget()

    def words(self, sentence: str, clip: str, file: str | None) -> dict[str, Any]:
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


def _told(event: gr.EventData, name: str) -> Any:
    """A value that the script of the page sends with an event."""
    if not isinstance(event._data, dict) or name not in event._data:
        raise DemoError("The page did not say what was chosen. Load it again.")
    return event._data[name]


def _polite(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with a toast in place of a `DemoError` or an unreadable clip."""

    @wraps(function)
    def polite(*args: Any) -> Any:
        try:
            return function(*args)
        except DemoError as error:
            raise gr.Error(str(error), title="Not possible", print_exception=False) from error
        except (VideoDecodeError, FileNotFoundError) as error:  # it was readable when it was uploaded
            gone = "This clip can no longer be read. Pick another or upload it again."
            raise gr.Error(gone, title="Not possible", print_exception=False) from error

    return polite


def build(studio: Studio) -> gr.Blocks:
    """The whole page, for loaded models."""
    page, first = Page(studio), studio.clips[0]
    work: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "work", "concurrency_limit": AT_ONCE}
    light: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    with gr.Blocks(title="ALPRO: search and ask videos", delete_cache=(AN_HOUR, AN_HOUR)) as demo:
        _add_endpoints(Endpoints(studio), first)  # before the page: gradio numbers later functions of a name
        visit = gr.State(None, time_to_live=AN_HOUR, delete_callback=lambda gone: gone and gone.forget())
        gr.HTML(_header(studio), elem_classes="head")
        banner = gr.HTML()
        with gr.Accordion("What this model can and cannot do", open=False):
            about = about_bundled(studio) if studio.bundled else OTHER_MODELS.format(*studio.names)
            gr.Markdown(about + WHAT_ALPRO_IS)
        chosen = gr.Textbox(first.id, visible="hidden", label="chosen clip")
        with gr.Row(elem_classes="floor", equal_height=False):
            with gr.Column(scale=3, min_width=280, elem_classes="side"):
                shelf = gr.HTML(views.shelf(studio.clips, first.id), js_on_load=(HERE / "shelf.js").read_text("utf-8"))
                add = gr.UploadButton(
                    "Add your own clips",
                    file_count="multiple",
                    file_types=["video"],
                    type="filepath",
                    size="md",
                    elem_classes="add",
                )
                forget = gr.Button("Remove my clips", size="sm", visible=False)
                gr.HTML(
                    views.note(
                        f"Up to {MAX_CLIPS} clips of {MAX_SECONDS} seconds and {MAX_MEGABYTES} MB. Only you can see "
                        "them, and they are deleted after an hour."
                    )
                )
            with gr.Column(scale=8, min_width=320, elem_classes="main"), gr.Tabs():
                with gr.Tab("Search", id="search"):
                    query, search_button = _line("What happens?", SEARCHES[0], "Search")
                    search_examples = _chips(SEARCHES)
                    found = gr.HTML(
                        views.note("Describe what happens in a clip, or try an example."), elem_classes="panel"
                    )
                with gr.Tab("Ask", id="ask"), gr.Row(equal_height=False):
                    with gr.Column(scale=2, min_width=240):
                        stage = gr.HTML(views.stage(first), elem_classes="panel")
                    with gr.Column(scale=3, min_width=280):
                        question, ask_button = _line("Question about this clip", QUESTIONS[0][1], "Ask")
                        question_examples = _chips([text for _, text in QUESTIONS])
                        answer = gr.HTML(elem_classes="panel")
                with gr.Tab("Look inside", id="inside"):
                    gr.HTML('<h3 class="step">Which entities does the prompter find in a box?</h3>')
                    gr.HTML(views.note("Draw a box on any frame, or tap it. " + INSIDE_MAPS))
                    with gr.Row(equal_height=False):
                        with gr.Column(scale=5, min_width=280):
                            frames = gr.HTML(
                                views.drawing_frames(studio.frames(first), studio.grid, page.start_box()),
                                js_on_load=(HERE / "inside.js").read_text("utf-8"),
                            )
                        with gr.Column(scale=2, min_width=200):
                            seen = gr.HTML(page.show(first.id, None)[3], elem_classes="panel")
                    region_button = gr.Button("Name every region", size="md")
                    maps_script = (HERE / "maps.js").read_text("utf-8")
                    regions = gr.HTML(js_on_load=maps_script, elem_classes="panel")
                    if studio.bundled and not studio.own_prompter:
                        gr.HTML(views.note(BUILT_PROMPTER))
                    gr.HTML('<h3 class="step">Which patches does each word attend to?</h3>')
                    sentence, sentence_button = _line("Sentence about this clip", SENTENCES[0][1], "Show")
                    sentence_examples = _chips([text for _, text in SENTENCES])
                    words = gr.HTML(js_on_load=maps_script, elem_classes="panel")

        shown = [stage, answer, frames, seen, regions, words]
        chosen.change(None, chosen, None, js="(id) => window.alproChoose(id)", api_visibility="private")

        def then_show(event: Any) -> Any:
            return event.then(_polite(page.show), [chosen, visit], shown, show_progress="hidden", **work)

        then_show(shelf.select(_polite(page.pick), None, chosen, **light))
        added = add.upload(_polite(page.upload), [add, visit], [visit, shelf, chosen, forget], **work)
        forgotten = forget.click(page.forget, visit, [visit, shelf, chosen, forget], **light)
        for changed in (added, forgotten):
            then_show(changed)
            changed.then(page.banner, visit, banner, show_progress="hidden", **work)

        search = (_polite(page.search), [query, visit], found)
        gr.on([query.submit, search_button.click], *search, **work)
        for text, chip in zip(SEARCHES, search_examples, strict=True):
            chip.click(_constant(text), None, query, **light).then(*search, **work)

        ask = (_polite(page.ask), [chosen, question, visit], answer)
        gr.on([question.submit, ask_button.click], *ask, **work)
        for example, chip in zip(QUESTIONS, question_examples, strict=True):
            then_show(chip.click(_constant(example), None, [chosen, question], **light)).then(*ask, **work)

        read = (_polite(page.words), [chosen, sentence, visit], words)
        gr.on([sentence.submit, sentence_button.click], *read, **work)
        for example, chip in zip(SENTENCES, sentence_examples, strict=True):
            then_show(chip.click(_constant(example), None, [chosen, sentence], **light)).then(*read, **work)

        frames.select(_polite(page.box), [chosen, visit], seen, **work)
        region_button.click(_polite(page.regions), [chosen, visit], regions, **work)
    # only through the queue, which is bounded and passes the sentences of errors on
    demo.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE, api_open=False)
    return demo


def _constant(value: Any) -> Any:
    return lambda: value


def _header(studio: Studio) -> str:
    said = (
        "Two small models of a synthetic world of moving pictograms: search, ask questions, and look inside."
        if studio.bundled
        else f"Search, ask questions, and look inside {escape(studio.names[0])}."
    )
    return f"<h1>ALPRO</h1><p>{said}</p>"


def _line(label: str, placeholder: str, action: str) -> tuple[gr.Textbox, gr.Button]:
    """A text field and the button that sends its text."""
    with gr.Row(elem_classes="line", equal_height=False):
        text = gr.Textbox(
            label=label,
            placeholder=f"for example: {placeholder}",
            max_length=MAX_CHARACTERS,
            lines=1,
            max_lines=3,
            scale=5,
            min_width=250,
        )
        button = gr.Button(action, variant="primary", scale=1, min_width=90)
    return text, button


def _chips(texts: Sequence[str]) -> list[gr.Button]:
    with gr.Row(elem_classes="chips"):
        return [gr.Button(text, size="sm", min_width=0, elem_classes="chip") for text in texts]


def _add_endpoints(endpoints: Endpoints, first: Clip) -> None:
    """Named endpoints, on hidden components so that gradio checks their files like any other upload."""
    with gr.Row(visible=False):
        text, clip = gr.Textbox(label="text"), gr.Textbox(first.id, label="clip")
        file = gr.File(label="file", file_count="single", type="filepath")
        files = gr.File(label="files", file_count="multiple", type="filepath")
        box = [gr.Number(value, label=side) for side, value in zip(BOX_SIDES, (0.0, 0.0, 1.0, 1.0), strict=True)]
        result, call = gr.JSON(label="result"), gr.Button("call")
    calls: tuple[tuple[str, Any, list[Any]], ...] = (
        ("clips", endpoints.clips, []),
        ("search", endpoints.search, [text, files]),
        ("ask", endpoints.ask, [text, clip, file]),
        ("entities", endpoints.entities, [clip, file, *box]),
        ("words", endpoints.words, [text, clip, file]),
    )
    for name, function, inputs in calls:
        call.click(
            _polite(function),
            inputs,
            result,
            api_name=name,
            api_description=function.__doc__,
            concurrency_id="work",
            concurrency_limit=AT_ONCE,
        )


def _stop(*_: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """Load the models and serve the page until the process is stopped."""
    signal.signal(signal.SIGTERM, _stop)  # a Space is stopped by it; without this, uploaded files would stay
    studio = from_environment()
    demo = build(studio)
    try:
        demo.launch(
            theme=THEME,
            css_paths=HERE / "style.css",
            max_file_size=f"{MAX_MEGABYTES}mb",
            allowed_paths=[],
            footer_links=["api"],
            ssr_mode=False,
            app_kwargs={
                "middleware": [
                    Middleware(
                        Guard,
                        folder=Path(get_upload_folder()),
                        functions=functions_of(demo.get_config_file(), demo.get_api_info()),
                    )
                ]
            },
        )
    except SystemExit:  # from `_stop`
        demo.close()
        studio.close()
        os._exit(0)  # a normal exit would wait for threads of gradio, and they for visitors who are still connected
    finally:
        demo.close()
        studio.close()


if __name__ == "__main__":
    main()
