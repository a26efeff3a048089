"""Files that visitors send, without what gradio leaves behind of each: an empty file, which nobody deletes."""

from typing import TypeVar

import gradio as gr
from gradio.data_classes import FileData, ListFiles

C = TypeVar("C", gr.File, gr.UploadButton)


def by_path(component: C) -> C:
    """The same component, which hands the paths of its files to functions; gradio has checked that they were uploaded.

    Gradio's own way hands on the same, but creates an empty file beside each. It is replaced at the object: gradio
    writes a file beside the source of every class that is derived from a component.
    """
    single = component.file_count == "single"

    def preprocess(payload: ListFiles | FileData | None) -> str | list[str] | None:
        files = [] if payload is None else payload.root if isinstance(payload, ListFiles) else [payload]
        paths = [file.path for file in files]
        return (paths[0] if single else paths) if paths else None

    component.preprocess = preprocess  # type: ignore[method-assign]
    return component
