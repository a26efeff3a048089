"""Find the moment of one video that a text describes, without an index: its windows are encoded in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span
from ..data.windows import WindowSettings, model_windows
from ..model.decoding import decode_stream
from ..model.decoding_source import VideoSource
from ..model.matching_alpro import EncodedClip, encode_clips, matching_problem, rerank, vtm_scores

_BATCH = 8  # windows encoded at a time
_CANDIDATES = 16  # that the matching head looks at, as in a search


@dataclass(frozen=True)
class Moment:
    """A moment that a text describes.

    Args:
        span: Seconds of the video.
        similarity: Cosine similarity of text and moment (VTC), in [-1, 1].
        match_probability: Probability that they belong together (VTM), in [0, 1]; None if the model cannot match.
    """

    span: Span
    similarity: float
    match_probability: float | None


def encode_windows(
    model: Any,
    processor: Any,
    video: VideoSource,
    settings: WindowSettings,
    decoder: IsolatedDecoder | None = None,
) -> Iterator[tuple[Span, EncodedClip]]:
    """Decode a video once and encode its windows on the way, so that memory does not grow with its length.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode.
        processor: Its `AlproProcessor`.
        video: Path, bytes or file object.
        settings: How it is cut; `settings.short` is not looked at.
        decoder: Decodes in a process of its own.

    Yields:
        The seconds and the features of each window.

    Raises:
        VideoDecodeError: The video is damaged. The windows before the damage come first.
    """
    stream = decode_stream if decoder is None else decoder.stream
    windows = model_windows(video, processor, settings, stream=stream)
    while batch := list(islice(windows, _BATCH)):
        clips = encode_clips(model, [pixels for _, pixels in batch])
        yield from ((Span(window.start, window.end), clip) for (window, _), clip in zip(batch, clips, strict=True))


@torch.inference_mode()
def best_moment(
    model: Any,
    processor: Any,
    video: VideoSource,
    text: str,
    *,
    settings: WindowSettings | None = None,
    decoder: IsolatedDecoder | None = None,
) -> Moment:
    """The window of a video that a search for a text would rank first: the most similar ones, re-ranked by matching.

    Args:
        model: A retrieval model, or one of both towers alone, in evaluation mode, on its device.
        processor: Its `AlproProcessor`.
        video: Path, bytes or file object.
        text: What happens in the moment.
        settings: How the video is cut; None: the defaults. A short video is cut, too.
        decoder: Decodes in a process of its own.

    Raises:
        ValueError: The text is blank.
        VideoDecodeError: The video cannot be decoded.
    """
    if not text.strip():
        raise ValueError("The text is blank. Describe the moment, for instance 'a goal is scored'.")
    inputs = processor(text=[text], return_tensors="pt").to(model.device)
    words = model.base_model.get_text_features(inputs["input_ids"])
    query = words.pooler_output[0].float()
    best: list[tuple[float, Span, torch.Tensor]] = []  # tokens are large, so only those of candidates are kept
    for span, clip in encode_windows(model, processor, video, settings or WindowSettings(), decoder):
        best.append((float((clip.embed * query).sum()), span, clip.tokens))
        best = sorted(best, key=lambda one: -one[0])[:_CANDIDATES]
    if matching_problem(model) is not None:
        return Moment(best[0][1], best[0][0], None)
    tokens = torch.stack([one[2] for one in best])

    def match(places: torch.Tensor) -> torch.Tensor:
        pairs = torch.tensor([[0, place] for place in range(len(places))])
        return vtm_scores(model, words.last_hidden_state, None, tokens[places.to(tokens.device)], pairs)

    found = rerank(torch.tensor([one[0] for one in best]), len(best), match)
    first = int(found.order[0])
    return Moment(best[first][1], best[first][0], found.probabilities[first])


__all__ = ["Moment", "best_moment", "encode_windows"]
