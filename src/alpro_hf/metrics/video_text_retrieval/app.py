"""Demo page of the metric: paste a matrix of scores, see recall and ranks."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_text_retrieval.py")))
SCORES = "[[0.9, 0.1],\n [0.8, 0.3],\n [0.2, 0.7]]"
TARGETS = "[0, 1, 1]"


def read(field: str, text: str, example: str) -> list[Any]:
    """The list that a field holds as JSON. What is wrong with it is shown on the page."""
    advice = f"Write a list, such as {example}."
    try:
        content = json.loads(text, parse_constant=lambda name: None)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise gr.Error(f"{field} cannot be read: it is not valid JSON at {where}. {advice}") from error
    except RecursionError as error:
        raise gr.Error(f"{field} cannot be read: its brackets are nested too deep. {advice}") from error
    if not isinstance(content, list) or not content:
        raise gr.Error(f"{field} must be a list with something in it. {advice}")
    return content


def compute(scores: str, text_to_video: str) -> dict[str, float]:
    """Metrics of two JSON lists, rounded to two digits. Errors in them are shown on the page."""
    rows, targets = read("Scores", scores, "[[0.9, 0.1], [0.8, 0.3]]"), read("References", text_to_video, "[0, 1]")
    if not all(isinstance(row, list) and row and all(type(one) in (int, float) for one in row) for row in rows):
        raise gr.Error("Each row of Scores must be a list of numbers, one for each video.")
    if len({len(row) for row in rows}) > 1:
        raise gr.Error("All rows of Scores must have the same length: one number for each video.")
    if not all(type(target) is int for target in targets):
        raise gr.Error("References must hold whole numbers: the column of each text's video, counted from 0.")
    if len(targets) != len(rows):
        raise gr.Error(f"There are {len(rows)} rows of Scores and {len(targets)} References. Give one for each text.")
    if not all(0 <= target < len(rows[0]) for target in targets):
        raise gr.Error(f"A reference is the number of a column of Scores, from 0 to {len(rows[0]) - 1}.")
    try:
        found = METRIC.compute(predictions=rows, references=targets)
    except (ValueError, OverflowError) as error:  # the metric says what else is wrong
        raise gr.Error(str(error).splitlines()[0]) from error
    return {name: round(value, 2) for name, value in found.items()}


page = gr.Interface(
    compute,
    inputs=[
        gr.Textbox(SCORES, lines=6, label="Scores: one row for each text, one column for each video"),
        gr.Textbox(TARGETS, label="References: the column of the video that each text describes"),
    ],
    outputs=gr.JSON(label="Metrics"),
    title="Video-text retrieval",
    description=METRIC.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
