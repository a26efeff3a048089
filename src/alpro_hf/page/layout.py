"""The whole page: its head, the shelf of clips and the tabs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from . import views
from .about import OTHER_MODELS, UNFAMILIAR, WHAT_ALPRO_IS, about_bundled
from .ask import AskTab
from .clips import MAX_CLIPS, MAX_MEGABYTES, MAX_SECONDS, DemoError, Visit
from .duel import DuelTab
from .endpoints import Endpoints, add_endpoints
from .inside import InsideTab
from .parts import AT_ONCE, LIGHT, WORK, Shared, polite, script, told
from .search import SearchTab
from .studio import Studio

QUEUE = 32  # waiting requests; further ones are refused
AN_HOUR = 3600  # seconds


class Shelf:
    """The functions of the list of clips: choose one, add some, remove them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def pick(self, event: gr.EventData) -> str:
        """The id of the clip that was clicked."""
        return str(told(event, "id"))

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


def build(studio: Studio) -> gr.Blocks:
    """The whole page, for loaded models."""
    shelf, first = Shelf(studio), studio.clips[0]
    search, duel, ask, inside = SearchTab(studio), DuelTab(studio), AskTab(studio), InsideTab(studio)
    with gr.Blocks(title="ALPRO: search and ask videos", delete_cache=(AN_HOUR, AN_HOUR)) as demo:
        add_endpoints(Endpoints(studio), first)  # before the page: gradio numbers later functions of a name
        visit = gr.State(None, time_to_live=AN_HOUR, delete_callback=lambda gone: gone and gone.forget())
        gr.HTML(_header(studio), elem_classes="head")
        banner = gr.HTML()
        with gr.Accordion("What this model can and cannot do", open=False):
            about = about_bundled(studio) if studio.bundled else OTHER_MODELS.format(*studio.names)
            gr.Markdown(about + WHAT_ALPRO_IS)
        chosen = gr.Textbox(first.id, visible="hidden", label="chosen clip")
        with gr.Row(elem_classes="floor", equal_height=False):
            with gr.Column(scale=3, min_width=280, elem_classes="side"):
                clips = gr.HTML(views.shelf(studio.clips, first.id), js_on_load=script("shelf.js"))
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
                    search.lay_out()
                with gr.Tab("Opposites", id="duel") as tab:
                    duel.lay_out(first, tab)
                with gr.Tab("Ask", id="ask"):
                    ask.lay_out(first)
                with gr.Tab("Look inside", id="inside") as tab:
                    inside.lay_out(first, tab)

        def show(chosen: str, visit: Visit | None) -> tuple[Any, ...]:
            clip = studio.find(chosen, visit or Visit())
            return *duel.show(clip), *ask.show(clip), *inside.show(clip)

        shown = [*duel.shown, *ask.shown, *inside.shown]

        def then_show(event: Any) -> Any:
            return event.then(polite(show), [chosen, visit], shown, show_progress="hidden", **WORK)

        chosen.change(None, chosen, None, js="(id) => window.alproChoose(id)", api_visibility="private")
        then_show(clips.select(polite(shelf.pick), None, chosen, **LIGHT))
        added = add.upload(polite(shelf.upload), [add, visit], [visit, clips, chosen, forget], **WORK)
        forgotten = forget.click(shelf.forget, visit, [visit, clips, chosen, forget], **LIGHT)
        for changed in (added, forgotten):
            then_show(changed)
            changed.then(shelf.banner, visit, banner, show_progress="hidden", **WORK)
        shared = Shared(chosen, visit, then_show)
        for part in (search, duel, ask, inside):
            part.connect(shared)
    # only through the queue, which is bounded and passes the sentences of errors on
    demo.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE, api_open=False)
    return demo


def _header(studio: Studio) -> str:
    said = (
        "Two small models of a synthetic world of moving pictograms: search, ask questions, and look inside."
        if studio.bundled
        else f"Search, ask questions, and look inside {escape(studio.names[0])}."
    )
    return f"<h1>ALPRO</h1><p>{said}</p>"
