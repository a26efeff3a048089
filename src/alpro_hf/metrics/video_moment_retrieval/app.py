"""Demo page of the metric: paste found and right moments, see recall and overlap."""

import json
from pathlib import Path

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_moment_retrieval.py")))
FOUND = '[[{"video": "match", "start": 10, "end": 20}],\n [{"video": "match", "start": 0, "end": 5}]]'
RIGHT = '[[{"video": "match", "start": 12, "end": 20}],\n [{"video": "film", "start": 0, "end": 5}]]'


def compute(found: str, right: str) -> dict[str, float]:
    """Metrics of two JSON lists. Errors in them are shown on the page."""
    try:
        return METRIC.compute(predictions=json.loads(found), references=json.loads(right))
    except (ValueError, TypeError, KeyError) as error:  # not valid JSON, or not valid input of the metric
        raise gr.Error(str(error)) from error


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
