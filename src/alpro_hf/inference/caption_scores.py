"""Scores of captions: of one clip, where captions compete, and over the time of a clip.

Captions are compared by both scores of the model: the similarity of the two towers (VTC), and the probability of the
matching head (VTM), where it was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.spans import Span
from ..model.decoding import decode
from ..model.decoding_source import VideoSource
from ..model.decoding_types import Frames, VideoInfo
from ..model.matching_alpro import EncodedClip, encode_clips, matching_problem, vtc_scores, vtm_scores

WINDOW = 1 / 3  # of the clip; half of what happens in one of two halves, and a little more
POINTS = 16
_BATCH = 8  # windows encoded at a time


@dataclass(frozen=True)
class CaptionScores:
    """Scores of captions for clips, or for windows of one clip.

    Args:
        similarity: float32 (captions, clips), cosine similarities (VTC), in [-1, 1].
        match_probability: float32 (captions, clips), probabilities (VTM), in [0, 1]; None if the model cannot match.
    """

    similarity: torch.Tensor
    match_probability: torch.Tensor | None


@torch.inference_mode()
def score_captions(model: Any, processor: Any, captions: Sequence[str], clips: Sequence[EncodedClip]) -> CaptionScores:
    """Compare captions with encoded clips.

    Args:
        model: A retrieval model, or one of both towers alone, in evaluation mode.
        processor: Its `AlproProcessor`.
        captions: One or more texts.
        clips: From `encode_clips`, all of one number of tokens.

    Raises:
        ValueError: There is no caption or no clip, or a caption is blank.
    """
    if not captions or not all(caption.strip() for caption in captions):
        raise ValueError("There is no caption, or one is blank. Describe what happens, for instance 'a dog runs'.")
    if not clips:
        raise ValueError("There is no clip to compare the captions with.")
    inputs = processor(text=list(captions), return_tensors="pt", padding=True).to(model.device)
    mask = inputs["attention_mask"]
    words = model.base_model.get_text_features(inputs["input_ids"], mask)
    similarity = vtc_scores(words.pooler_output.float(), torch.stack([clip.embed for clip in clips])).float().cpu()
    if matching_problem(model) is not None:
        return CaptionScores(similarity, None)
    pairs = torch.cartesian_prod(torch.arange(len(captions)), torch.arange(len(clips)))
    tokens = torch.stack([clip.tokens for clip in clips])
    logits = vtm_scores(model, words.last_hidden_state, mask, tokens, pairs)
    return CaptionScores(similarity, logits.softmax(dim=1)[:, 1].unflatten(0, similarity.shape).cpu())


def sliding_windows(span: Span, share: float = WINDOW, points: int = POINTS) -> list[Span]:
    """Windows of one length, from the start of a clip to its end, in even steps.

    Args:
        span: Seconds of the clip in its video.
        share: Length of a window as a share of the clip, in (0, 1].
        points: Number of windows, at least 2.

    Raises:
        ValueError: An argument is out of its range.
    """
    duration = span.end - span.start
    if not duration > 0 or not 0 < share <= 1 or points < 2:
        raise ValueError(
            f"Windows need a duration above 0, a share in (0, 1] and 2 or more points; received {duration}, {share} "
            f"and {points}."
        )
    step = duration * (1 - share) / (points - 1)
    starts = [span.start + i * step for i in range(points)]
    return [Span(start, start + duration * share) for start in starts]


@torch.inference_mode()
def encode_sliding_windows(
    model: Any,
    processor: Any,
    video: VideoSource,
    info: VideoInfo,
    span: Span | None = None,
    *,
    share: float = WINDOW,
    points: int = POINTS,
    decoder: Callable[..., Frames] = decode,
) -> tuple[list[Span], list[EncodedClip]]:
    """Encode windows that slide over a whole clip. Each has as many frames as the model reads of a clip.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode.
        processor: Its `AlproProcessor`.
        video: The video, and `info`, what `probe` says of it.
        span: Seconds of the clip in it; None: all of it.
        share, points: As in `sliding_windows`.
        decoder: Decodes frames, like `alpro_hf.model.decoding.decode`.

    Returns:
        The seconds of each window, and its features.

    Raises:
        ValueError: As in `sliding_windows`.
        VideoDecodeError: The clip cannot be decoded.
    """
    span = span or Span(0.0, info.duration)
    windows = sliding_windows(span, share, points)
    seen = processor.video_processor
    count = seen.num_frames if seen.fps is None else max(1, round(seen.fps * (span.end - span.start) * share))
    # the middles of equal parts, as for a whole clip
    shown = [
        info.frames_at([window.start + (window.end - window.start) * (i + 0.5) / count for i in range(count)])
        for window in windows
    ]
    height, width = seen.decoded_size()
    needed = sorted({index for indices in shown for index in indices})
    pixels = decoder(video, needed, height=height, width=width).pixels
    place = {index: i for i, index in enumerate(needed)}
    clips: list[EncodedClip] = []
    for first in range(0, points, _BATCH):
        batch = [pixels[[place[index] for index in indices]] for indices in shown[first : first + _BATCH]]
        read = seen(batch, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
        clips += encode_clips(model, read["pixel_values_videos"])
    return windows, clips


__all__ = ["CaptionScores", "encode_sliding_windows", "score_captions", "sliding_windows"]
