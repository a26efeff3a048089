"""Ask questions about a video. The answers come from the closed list that the model knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.decode_span import span_decoder
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span
from ..model.decoding import decode
from ..model.decoding_source import VideoSource
from ..model.modeling_alpro import AlproForVideoQuestionAnswering
from ..model.wrappers_alpro import plain_model


@dataclass(frozen=True)
class Answer:
    """An answer from the model's list, and its probability in [0, 1] among all answers of the list."""

    answer: str
    probability: float


def known_answers(model: AlproForVideoQuestionAnswering) -> list[str]:
    """All answers that a model can give, in the order of their indices. It has no others, whatever is asked."""
    names: Any = model.config.id2label
    return [names[index] for index in range(len(names))]


@torch.inference_mode()
def ask(
    model: AlproForVideoQuestionAnswering,
    processor: Any,
    video: VideoSource,
    questions: Sequence[str],
    *,
    top_k: int = 5,
    span: Span | None = None,
    decoder: IsolatedDecoder | None = None,
) -> list[list[Answer]]:
    """Answer questions about one video. The video is decoded and encoded once.

    Args:
        model: On the device to compute on, in evaluation mode.
        processor: Its `AlproProcessor`.
        video: Path, bytes or file object.
        questions: One or more questions.
        top_k: Number of answers to each; all answers, if the model knows fewer.
        span: The moment to ask about; None: the whole video.
        decoder: Decodes in a process of its own.

    Returns:
        The answers to each question, most probable first.

    Raises:
        VideoDecodeError: The video cannot be decoded.
        SpanError: The moment does not lie in the video.
        ValueError: A question is blank, or there are no questions.
    """
    if not questions or any(not question.strip() for question in questions):
        raise ValueError(
            f"A question is blank, or there is none: {list(questions)}. Ask, for instance, 'what is the dog doing?'."
        )
    model = plain_model(model)
    frames_of = decode if decoder is None else decoder.decode
    if span is not None:
        frames_of = span_decoder(processor, span, frames_of)
    inputs = processor(text=list(questions), videos=video, return_tensors="pt", decoder=frames_of).to(model.device)
    # every question is about clip 0, so the clip is encoded once however many questions there are
    video_index = torch.zeros(len(questions), dtype=torch.long, device=model.device)
    # a softmax in half precision would round different probabilities to equal ones
    probabilities = model(**inputs, video_index=video_index).logits.float().softmax(dim=1)
    names = known_answers(model)
    best = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1)
    return [
        [Answer(names[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
