"""Components that take files, without what gradio's own leave behind: an empty file for each file that they hand on,
which belongs to no visit and nobody deletes with one."""

from collections.abc import Sequence

import gradio as gr
from gradio.data_classes import FileData, ListFiles

from gradio.events import Dependency

class ReceivedFiles(gr.File):
    """A field for files; functions get their paths."""

    is_template = True  # for the browser, it is gradio's own

    def preprocess(self, payload: ListFiles | FileData | None) -> str | list[str] | None:
        """The path of the file, or paths of the files; gradio has checked that they were uploaded."""
        paths = _paths(payload)
        if self.file_count == "single":
            return paths[0] if paths else None
        return paths or None
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class ReceivingButton(gr.UploadButton):
    """A button to upload several files; functions get their paths."""

    is_template = True

    def preprocess(self, payload: ListFiles | FileData | None) -> list[str] | None:
        """Paths of the files; gradio has checked that they were uploaded."""
        return _paths(payload) or None
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

def _paths(payload: ListFiles | FileData | None) -> list[str]:
    files: Sequence[FileData] = (
        [] if payload is None else payload.root if isinstance(payload, ListFiles) else [payload]
    )
    return [file.path for file in files]
