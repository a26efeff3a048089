"""Demo page of the metric: paste found and right moments, see recall and overlap."""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_moment_retrieval.py")))
FOUND = '[[{"video": "match", "start": 10, "end": 20}],\n [{"video": "match", "start": 0, "end": 5}]]'
RIGHT = '[[{"video": "match", "start": 12, "end": 20}],\n [{"video": "film", "start": 0, "end": 5}]]'


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


def moments_of(field: str, text: str) -> list[list[dict[str, Any]]]:
    """For each query, the moments that a field holds."""
    queries = read(field, text, '[[{"video": "match", "start": 10, "end": 20}]]')
    for query in queries:
        if not isinstance(query, list) or not all(map(is_moment, query)):
            raise gr.Error(
                f"{field} must hold a list for each query, and in it moments such as "
                '{"video": "match", "start": 10, "end": 20}, with a text and two numbers of seconds.'
            )
    return queries


def is_moment(value: Any) -> bool:
    """Whether a value has the fields of a moment, of the right types."""
    return (
        isinstance(value, dict)
        and value.keys() == {"video", "start", "end"}
        and isinstance(value["video"], str)
        and all(type(value[side]) in (int, float) for side in ("start", "end"))
    )


def compute(found: str, right: str) -> dict[str, float]:
    """Metrics of two JSON lists, rounded to two digits. Errors in them are shown on the page."""
    predictions, references = moments_of("Predictions", found), moments_of("References", right)
    if len(predictions) != len(references):
        counts = f"{len(predictions)} queries in Predictions and {len(references)} in References"
        raise gr.Error(f"There are {counts}. Give both for each query.")
    try:
        metrics = METRIC.compute(predictions=predictions, references=references)
    except (ValueError, OverflowError) as error:  # the metric says what else is wrong
        raise gr.Error(str(error).splitlines()[0]) from error
    return {name: round(value, 2) for name, value in metrics.items()}


page = gr.Interface(
    compute,
    inputs=[
        gr.Textbox(FOUND, lines=6, label="Predictions: for each query the moments that were found, best first"),
        gr.Textbox(RIGHT, lines=6, label="References: for each query the moments that it describes"),
    ],
    outputs=gr.JSON(label="Metrics"),
    title="Video moment retrieval",
    description=METRIC.description,
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
