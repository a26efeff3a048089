"""The whole page: its head, the shelf of clips and the tabs."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from . import about, views
from .ask import AskTab
from .clips import MAX_CLIPS, MAX_MEGABYTES, MAX_SECONDS, DemoError, Visit, discard
from .duel import DuelTab
from .endpoints import Endpoints, add_endpoints
from .front import HEADLINE
from .inside import InsideTab
from .parts import AT_ONCE, LIGHT, QUICK, WORK, Shared, Tab, polite, script, told
from .received import by_path
from .search import SearchTab
from .studio import MAX_CHARACTERS, Studio

SESSIONS = 2000  # of pages that were closed, and of all pages that gradio remembers
QUEUE = 32  # waiting requests; further ones are refused
AN_HOUR = 3600  # seconds
SWEPT = (60, 600)  # seconds: how often gradio looks for files of uploads, and their age when it deletes them


class Shelf:
    """The functions of the list of clips: choose one, add some, remove them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.visits: dict[str, list[Visit]] = {}  # session -> what its page has uploaded
        # a page that was closed does not come back, but what it has sent may wait its turn
        self.left: deque[str] = deque(maxlen=SESSIONS)

    def pick(self, event: gr.EventData) -> str:
        """The id of the clip that was clicked."""
        return str(told(event, "id"))

    def upload(
        self, files: Sequence[str] | None, visit: Visit | None, request: gr.Request | None = None
    ) -> tuple[Visit, str, str, dict[str, Any]]:
        """Add files to a visit: the visit, the list, the id of the last clip, and whether clips can be removed."""
        if visit is None:
            visit = Visit()
            if request is not None and request.session_hash:
                self.visits.setdefault(request.session_hash, []).append(visit)
                if request.session_hash in self.left:
                    self.leave(request)
        visit.receive(map(Path, files or ()))
        last, problems, over = None, [], []
        try:
            for file in map(Path, files or ()):
                if visit.left:
                    raise DemoError("You have left this page, so its clips were deleted. Load it again.")
                if len(visit.clips) >= MAX_CLIPS:
                    over.append(file.name)
                    if file in visit.received:
                        discard(file, visit.received.pop(file))
                    continue
                try:
                    last = self.studio.add(file, file.name, visit)
                except DemoError as error:
                    problems.append(str(error))
        finally:
            if visit.left:  # also what was added since is deleted
                visit.forget()
        if over:
            named = ", ".join(f"“{name}”" for name in over)
            problems.append(f"You can have {MAX_CLIPS} clips here. Not added: {named}. Remove some first.")
        said = " ".join(problems)  # one toast, however many files there were
        if last is None:
            raise gr.Error(said or "No file arrived. Try again.", print_exception=False)
        if said:
            gr.Warning(said)
        return visit, self._shelf(visit, last.id), last.id, gr.update(visible=True)

    def too_large(self, event: gr.EventData) -> None:
        """Say that the browser has held back files beyond the limit."""
        names = told(event, "names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DemoError("A file is too large.")
        listed = ", ".join(f"“{name[:60]}”" for name in names[:MAX_CLIPS])
        are = "is" if len(names) == 1 else "are"
        gr.Warning(
            f"{listed} {are} larger than {MAX_MEGABYTES} MB, the limit here. Upload a shorter or smaller version."
        )

    def remove(self, chosen: str, visit: Visit | None) -> tuple[Visit | None, str, str, dict[str, Any]]:
        """Remove the chosen clip, if the visitor has uploaded it."""
        mine = [clip for clip in (visit.clips if visit else []) if clip.id == chosen.partition("@")[0]]
        if visit is None or not mine:
            raise DemoError("This clip is of the gallery. Choose one of your own to remove it.")
        visit.remove(mine[0])
        if not visit.clips:
            return self.forget(visit)
        return visit, self._shelf(visit, visit.clips[-1].id), visit.clips[-1].id, gr.update(visible=True)

    def forget(self, visit: Visit | None) -> tuple[None, str, str, dict[str, Any]]:
        """Delete the uploads of a visit."""
        if visit is not None:
            visit.forget()
            for session in [session for session, visits in self.visits.items() if any(one is visit for one in visits)]:
                del self.visits[session]
        first = self.studio.clips[0].id
        return None, self._shelf(Visit(), first), first, gr.update(visible=False)

    def leave(self, request: gr.Request) -> None:
        """Delete the uploads of a page that was closed."""
        self.left.append(request.session_hash or "")  # first: an upload that begins now is to see it
        for visit in self.visits.pop(request.session_hash or "", []):
            visit.leave()

    def banner(self, visit: Visit | None) -> str:
        """A warning if clips of the visitor are not of the world that a model knows; empty otherwise."""
        return views.caution(about.unfamiliar(self.studio.unfamiliar(visit or Visit())))

    def _shelf(self, visit: Visit, chosen: str) -> str:
        return views.shelf([*reversed(visit.clips), *self.studio.clips], chosen)


def build(studio: Studio) -> gr.Blocks:
    """The whole page, for loaded models."""
    shelf, first = Shelf(studio), studio.clips[0]
    search, duel, inside = SearchTab(studio), DuelTab(studio), InsideTab(studio)
    ask = AskTab(studio) if studio.qa is not None else None
    with gr.Blocks(title=HEADLINE, delete_cache=SWEPT) as demo:
        add_endpoints(Endpoints(studio), first)  # before the page: gradio numbers later functions of a name
        visit = gr.State(None, time_to_live=AN_HOUR, delete_callback=lambda gone: gone and gone.leave())
        gr.HTML(about.header(studio), elem_classes="head")
        place = gr.HTML(js_on_load=script("place.js"), elem_classes="place")
        with gr.Accordion("What this model can and cannot do", open=False):
            gr.Markdown(about.about(studio))
        chosen = gr.Textbox(first.id, visible="hidden", label="chosen clip")
        with gr.Row(elem_classes="floor", equal_height=False):
            with gr.Column(scale=3, min_width=280, elem_classes="side"):
                clips = gr.HTML(views.shelf(studio.clips, first.id), js_on_load=script("shelf.js"))
                add = by_path(
                    gr.UploadButton(
                        "Add your own clips",
                        file_count="multiple",
                        file_types=["video"],
                        type="filepath",
                        size="md",
                        elem_classes="add",
                    )
                )
                limits = script("limits.js").replace("MOST_BYTES", str(MAX_MEGABYTES << 20))
                large = gr.HTML(js_on_load=limits, elem_classes="place")
                banner = gr.HTML()
                with gr.Row(visible=False, elem_classes="mine") as mine:
                    remove = gr.Button("Remove this clip", size="sm", min_width=120)
                    forget = gr.Button("Remove my clips", size="sm", min_width=120)
                gr.HTML(
                    views.note(
                        f"Up to {MAX_CLIPS} clips of {MAX_SECONDS} seconds and {MAX_MEGABYTES} MB. Only you can see "
                        "them, and they are deleted when you leave, at the latest after an hour."
                    )
                )
            with gr.Column(scale=8, min_width=320, elem_classes="main"), gr.Tabs() as tabs:
                opened: list[tuple[Tab, gr.Tab]] = []
                with gr.Tab("Search", id="search") as tab:
                    search.lay_out()
                opened.append((search, tab))
                with gr.Tab("Opposites", id="duel") as tab:
                    duel.lay_out(first)
                opened.append((duel, tab))
                if ask is not None:
                    with gr.Tab("Ask", id="ask") as tab:
                        ask.lay_out(first)
                    opened.append((ask, tab))
                with gr.Tab("Look inside", id="inside") as tab:
                    inside.lay_out(first)
                opened.append((inside, tab))

        parts: list[Any] = [part for part, _ in opened if part is not search]
        shown = [component for part in parts for component in part.shown]

        def show(chosen: str, visit: Visit | None) -> tuple[Any, ...]:
            clip = studio.find(chosen, visit or Visit())
            return tuple(value for part in parts for value in part.show(clip))

        def then_show(event: Any) -> Any:
            return event.then(polite(show), [chosen, visit], shown, show_progress="hidden", **WORK)

        def arrive(event: gr.EventData, visit: Visit | None) -> dict[Any, Any]:
            """What an address says, which may come from anybody."""
            name, clip_id, text = (str(told(event, key) or "") for key in ("tab", "clip", "q"))
            known = {part.id: part for part, _ in opened}
            part = known.get(name, search)
            try:
                clip = studio.find(clip_id or first.id, visit or Visit())
            except DemoError as error:
                gr.Warning(str(error))
                clip = first
            values = {tabs: gr.Tabs(selected=part.id), chosen: clip.id}
            values |= dict(zip(shown, show(clip.id, visit), strict=True))
            # without a text, the tab is as it was in the beginning
            text = text[:MAX_CHARACTERS] if text.strip() else part.text.value or ""
            values |= part.fill(text)
            values[part.result] = part.answer(clip.id, text, visit) if text else part.result.value
            return values

        def open_door(event: gr.EventData, visit: Visit | None) -> tuple[Any, str]:
            name, clip_id = str(told(event, "door")), str(told(event, "id"))
            if name not in {part.id for part, _ in opened}:
                raise DemoError("There is no such tab here.")
            return gr.Tabs(selected=name), studio.find(clip_id, visit or Visit()).id

        chosen.change(None, chosen, None, js="(id) => window.alproChoose(id)", api_visibility="private")
        picked = then_show(clips.select(polite(shelf.pick), None, chosen, **QUICK))
        written = "(clip) => window.alproPlace({ clip })"
        picked.then(None, chosen, None, js=written, api_visibility="private")
        entered = search.result.select(polite(open_door), visit, [tabs, chosen], **QUICK)
        then_show(entered).then(None, chosen, None, js=written, api_visibility="private")
        reached = [tabs, chosen, *shown, *(one for part, _ in opened for one in (*part.fill(""), part.result))]
        arrived = place.select(polite(arrive), visit, list(dict.fromkeys(reached)), **WORK)
        arrived.then(None, None, None, js="() => window.alproArrived()", api_visibility="private")
        for part, tab in opened:
            turned = f"(q) => window.alproPlace({{ tab: '{part.id}', q }})"
            tab.select(None, part.text, None, js=turned, api_visibility="private")

        added = add.upload(polite(shelf.upload), [add, visit], [visit, clips, chosen, mine], **WORK)
        removed = remove.click(polite(shelf.remove), [chosen, visit], [visit, clips, chosen, mine], **QUICK)
        forgotten = forget.click(shelf.forget, visit, [visit, clips, chosen, mine], **LIGHT)
        for changed in (added, removed, forgotten):
            then_show(changed)
            changed.then(shelf.banner, visit, banner, show_progress="hidden", **WORK)
        large.select(polite(shelf.too_large), None, None, **QUICK)
        demo.unload(shelf.leave)
        shared = Shared(chosen, visit, then_show)
        for part in (search, *parts):
            part.connect(shared)
    # only through the queue, which is bounded and passes the sentences of errors on
    demo.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE, api_open=False)
    return demo
