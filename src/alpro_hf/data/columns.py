"""Columns of rows and of tables, by name. This module imports nothing, so that help texts can quote it cheaply."""

# A row is about one of these: a clip, or a still image.
MEDIA_COLUMNS = ("video", "image")

# Task -> columns of text that its rows must have.
WORD_COLUMNS = {
    "prompter": ("text",),
    "pretrain": ("text",),
    "retrieval": ("text",),
    "moments": ("text",),
    "qa": ("question", "answer"),
}

# Columns of a table that are taken for its captions when none is named.
CAPTION_COLUMNS = ("text", "caption", "sentence")

# Column of a row -> names that it may have in a user's own table, best first.
TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "video": ("video", "file_name", "clip_name"),
    "image": ("image",),
    "video_id": ("video_id",),
    "text": CAPTION_COLUMNS,
    "question": ("question",),
    "answer": ("answer",),
    "answer_type": ("answer_type",),
    "windows": ("windows",),
    "start": ("start",),
    "end": ("end",),
}


__all__ = ["CAPTION_COLUMNS", "MEDIA_COLUMNS", "TABLE_COLUMNS", "WORD_COLUMNS"]
