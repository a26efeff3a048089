"""A decoder that shows a processor one moment of a video instead of the whole."""

from collections.abc import Callable
from typing import Any

from ..model.decoding import FrameChoice, decode
from ..model.decoding_source import VideoSource
from ..model.decoding_types import Frames, VideoInfo, middles_of
from .spans import Span


def span_decoder(processor: Any, span: Span, decoder: Callable[..., Frames] = decode) -> Callable[..., Frames]:
    """A decoder for `processor(videos=..., decoder=...)` that takes the frames of a span.

    The frames are those shown at the middles of equal parts of the span, as for the windows of a long video: as many
    as `num_frames` of the video processor, or `fps` for each second.

    Args:
        processor: An `AlproProcessor`.
        span: The moment.
        decoder: `decoding.decode`, or `IsolatedDecoder.decode`.

    Returns:
        A function that is called like `decoding.decode`. It raises `SpanError` if the span does not lie in the video.
    """
    video_processor = processor.video_processor

    def decode_span(source: VideoSource, indices: FrameChoice = None, **options: Any) -> Frames:
        def choose(info: VideoInfo) -> list[int]:
            inside = span.within(info.duration, info.source)
            if callable(indices):
                indices(info)  # the processor refuses frames that are too many or too large
            length = inside.end - inside.start
            fps = video_processor.fps
            count = max(1, round(length * fps)) if fps else video_processor.num_frames
            return info.frames_at(middles_of(inside.start, inside.end, count))

        return decoder(source, choose, **options)

    return decode_span


__all__ = ["span_decoder"]
