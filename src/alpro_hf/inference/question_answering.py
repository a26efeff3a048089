"""Ask a video a question: the answers a model knows, best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..model.decoding_source import VideoSource
from ..model.modeling_alpro import AlproForVideoQuestionAnswering


@dataclass(frozen=True)
class Answer:
    """An answer from the model's list and its probability, in [0, 1]."""

    answer: str
    probability: float


@torch.inference_mode()
def ask(
    model: AlproForVideoQuestionAnswering,
    processor: Any,
    video: VideoSource,
    questions: Sequence[str],
    *,
    top_k: int = 5,
    decoder: IsolatedDecoder | None = None,
) -> list[list[Answer]]:
    """Answer questions about one video, which is decoded and encoded once.

    Args:
        model: On the device to compute on, in evaluation mode.
        processor: Its `AlproProcessor`.
        video: Path, bytes or file object.
        questions: At least one.
        top_k: Answers to each.
        decoder: Decodes in a process of its own.

    Returns:
        The answers to each question, most probable first.

    Raises:
        VideoDecodeError: The video cannot be decoded.
        ValueError: A question is blank, or there is none.
    """
    if not questions or any(not question.strip() for question in questions):
        raise ValueError("A question is blank. Ask something, for instance 'what is the dog doing?'.")
    options = {} if decoder is None else {"decoder": decoder.decode}
    inputs = processor(text=list(questions), videos=video, return_tensors="pt", **options).to(model.device)
    video_index = torch.zeros(len(questions), dtype=torch.long, device=model.device)
    probabilities = model(**inputs, video_index=video_index).logits.float().softmax(dim=1)
    names: Any = model.config.id2label
    best = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
    return [
        [Answer(names[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
