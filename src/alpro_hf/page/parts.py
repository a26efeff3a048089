"""What the parts of the page share: errors as toasts, text fields with a button, examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib.resources import files
from typing import Any, Protocol

import gradio as gr

from ..data.spans import SpanError
from ..inference.index_shards import VideoIndexError
from ..model.decoding_types import VideoDecodeError
from .clips import DemoError, Visit
from .studio import MAX_CHARACTERS

AT_ONCE = 2  # computations at the same time
WORK: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "work", "concurrency_limit": AT_ONCE}
# what cannot fail: the browser shows no error and no warning of an event without the queue
LIGHT: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
QUICK: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}


def script(name: str) -> str:
    """A script of the page."""
    return (files("alpro_hf.page") / "static" / name).read_text("utf-8")


@dataclass(frozen=True)
class Shared:
    """What the tabs have in common.

    Args:
        chosen: Component with the id of the chosen clip.
        visit: Component with the `Visit`.
        then_show: Shows the chosen clip in all tabs after an event of gradio, and returns the event that follows.
    """

    chosen: gr.Textbox
    visit: gr.State
    then_show: Callable[[Any], Any]

    def note(self, event: Any, tab: "Tab") -> None:
        """After an event, write tab, clip and text into the address of the page, for reload, back and for friends."""
        script = f"(clip, q) => window.alproPlace({{ tab: '{tab.id}', clip, q }})"
        event.then(None, [self.chosen, tab.text], None, js=script, api_visibility="private")


class Tab(Protocol):
    """A tab that the address of the page can name.

    Attributes:
        id: Its name in the address.
        text: The field with the query, question or sentence.
        result: What is shown for it.
    """

    id: str
    text: gr.Textbox
    result: gr.HTML

    def answer(self, chosen: str, text: str, visit: Visit | None) -> str:
        """The result for a text, as HTML."""

    def fill(self, text: str) -> dict[Any, str]:
        """The fields of the tab and their values for a text."""
        return {self.text: text}


def told(event: gr.EventData, name: str) -> Any:
    """A value that the script of the page sends with an event."""
    if not isinstance(event._data, dict) or name not in event._data:
        raise DemoError("The page did not say what was chosen. Load it again.")
    return event._data[name]


def polite(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with a toast in place of a `DemoError` or an unreadable clip."""

    @wraps(function)
    def polite(*args: Any) -> Any:
        try:
            return function(*args)
        except DemoError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except (VideoDecodeError, SpanError, FileNotFoundError) as error:  # it was readable when it was added
            gone = "This clip can no longer be read. Pick another or upload it again."
            raise gr.Error(gone, print_exception=False) from error
        except VideoIndexError as error:
            changed = (
                "The index of the videos cannot be used now; it may be changing. Try again, or start the page again."
            )
            raise gr.Error(changed, print_exception=False) from error

    return polite


def constant(value: Any) -> Any:
    """A function that returns a value."""
    return lambda: value


def line(label: str, placeholder: str, action: str) -> tuple[gr.Textbox, gr.Button]:
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


def chips(texts: Sequence[str]) -> list[gr.Button]:
    """Buttons with examples."""
    with gr.Row(elem_classes="chips"):
        return [gr.Button(text, size="sm", min_width=0, elem_classes="chip") for text in texts]
