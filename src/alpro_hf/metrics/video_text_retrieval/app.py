"""Demo page of the metric: paste a matrix of scores, see recall and ranks."""

import json
from pathlib import Path

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_text_retrieval.py")))
SCORES = "[[0.9, 0.1],\n [0.8, 0.3],\n [0.2, 0.7]]"
TARGETS = "[0, 1, 1]"


def compute(scores: str, text_to_video: str) -> dict[str, float]:
    """Metrics of two JSON lists. Errors in them are shown on the page."""
    try:
        return METRIC.compute(predictions=json.loads(scores), references=json.loads(text_to_video))
    except (ValueError, TypeError) as error:  # not valid JSON, or not valid input of the metric
        raise gr.Error(str(error)) from error


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
