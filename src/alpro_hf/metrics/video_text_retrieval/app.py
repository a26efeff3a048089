"""The page of the metric: paste a matrix of scores, see recall and ranks."""

import json
from pathlib import Path

import evaluate
import gradio as gr

METRIC = evaluate.load(str(Path(__file__).with_name("video_text_retrieval.py")))
SCORES = "[[0.9, 0.1],\n [0.8, 0.3],\n [0.2, 0.7]]"
TARGETS = "[0, 1, 1]"


def compute(scores: str, text_to_video: str) -> dict[str, float]:
    """The metrics of two JSON lists; what is wrong with them is shown on the page."""
    try:
        return METRIC.compute(predictions=json.loads(scores), references=json.loads(text_to_video))
    except (ValueError, TypeError) as error:  # no JSON, or not what the metric takes
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
