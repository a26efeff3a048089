"""Demo page of the metric: a table of answers, and their accuracy."""

from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_qa.py")))
HEADERS = ["prediction", "reference", "type"]
ROWS = [["fox", "fox", "what"], ["two", "three", "how many"], ["ladle", "ladle", "what"]]


def compute(rows: list[list[Any]], known_answers: str) -> dict[str, float]:
    """Metrics of a table of answers, with a closed list if one is given; two digits. Blank rows are skipped."""
    cells = [[str(cell or "").strip() for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    known = [answer.strip() for answer in known_answers.split(",") if answer.strip()]
    if not cells:
        raise gr.Error("The table has no answers.")
    try:
        found = METRIC.compute(
            predictions=[row[0] for row in cells],
            references=[row[1] for row in cells],
            answer_types=[row[2] or None for row in cells],
            known_answers=known or None,
        )
    except ValueError as error:  # the metric says what is wrong
        raise gr.Error(str(error).splitlines()[0]) from error
    return {name: round(value, 2) for name, value in found.items()}


page = gr.Interface(
    compute,
    inputs=[
        gr.Dataframe(ROWS, headers=HEADERS, type="array", label="Answers", column_count=3),
        gr.Textbox("fox, two, three", label="Known answers, separated by commas; blank if answers are open"),
    ],
    outputs=gr.JSON(label="Metrics"),
    title="Video question answering",
    description=METRIC.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
