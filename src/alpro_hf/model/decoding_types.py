"""What a video is and costs, and why one is refused: the plain facts that `decoding.py` and its callers share."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .decoding_table import FrameTable

if TYPE_CHECKING:
    import torch  # takes longer to import than a clip to decode: processes that only decode do without


class VideoDecodeError(ValueError):
    """A video cannot be decoded exactly. Base of the errors below.

    Args:
        source (`str`): path or description of the input.
        problem (`str`): what is wrong with it.
        advice (`str`): what the user can do.
    """

    def __init__(self, source: str, problem: str, advice: str) -> None:
        super().__init__(source, problem, advice)  # all three in `args`: the error must survive a worker process
        self.source, self.problem, self.advice = source, problem, advice

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}. {self.advice}"


class NotAVideoError(VideoDecodeError):
    """The content is no media format that FFmpeg knows, or a playlist that points at other files."""


class NoVideoStreamError(VideoDecodeError):
    """A media file without moving pictures: audio, subtitles, or audio with a cover image."""


class EmptyVideoError(VideoDecodeError):
    """Zero bytes, or a video stream without a single frame."""


class TruncatedVideoError(VideoDecodeError):
    """The file ends before the video does."""


class CorruptVideoError(VideoDecodeError):
    """Damaged data inside the clip: a wanted frame would only be the decoder's guess."""


class VideoTooLargeError(VideoDecodeError):
    """The input exceeds one of the `VideoLimits`."""


class DecoderFailedError(VideoDecodeError):
    """The process that decoded it crashed or hung, and was ended; see `decoding_worker`."""


@dataclass(frozen=True)
class VideoLimits:
    """What a video may cost before it is refused. `None` switches a limit off.

    Args:
        max_pixels: width x height of one stored frame. The default admits 8K.
        max_duration: seconds.
        max_file_size: bytes of the file, buffer or download.
        max_decoded_size: bytes of all frames that one call returns.
    """

    max_pixels: int | None = 8192 * 4608
    max_duration: float | None = 6 * 3600.0
    max_file_size: int | None = 16 * 1024**3
    max_decoded_size: int | None = 4 * 1024**3

    def check(self, limit: str, value: float, source: str, what: str) -> None:
        """Raises `VideoTooLargeError` if `value` is over the field named `limit`."""
        allowed = getattr(self, limit)
        if allowed is not None and value > allowed:
            problem = f"{what} {value:,.6g}, and the limit is {allowed:,.6g}"
            raise VideoTooLargeError(source, problem, f"Use a smaller video, or pass VideoLimits({limit}=...)")


DEFAULT_LIMITS = VideoLimits()


@dataclass(frozen=True)
class VideoInfo:
    """What the packets of a video say.

    Args:
        source: path or description of the input.
        num_frames: number of frames.
        fps: average frames per second over the clip; `None` for a single frame without a rate.
        duration: seconds, `num_frames / fps`; 0 where `fps` is unknown.
        width, height: pixels of a frame. From `decode` as shown; from `probe` as stored, because that a camera was
            held upright is only known once a frame is decoded.
        codec: FFmpeg's name, such as `h264`.
        container: FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`.
        truncated: the file ends before the video does; the other fields describe the readable part.
    """

    source: str
    num_frames: int
    fps: float | None
    duration: float
    width: int
    height: int
    codec: str
    container: str
    truncated: bool = False


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Args:
        pixels: `torch.uint8` of shape (T, 3, height, width), RGB, upright; a view of memory in the order (T, height,
            width, 3), which is how FFmpeg and image files keep it.
        indices: the frame number of each, counted from 0.
        timestamps: seconds of each after the first frame of the clip (true ones, also at a variable frame rate).
        info: the video they come from.
        table: where its frames are, to be passed to the next decode of the same file; `None` where only decoding finds
            them, and for damaged and truncated files.
    """

    pixels: "torch.Tensor"
    indices: list[int]
    timestamps: list[float]
    info: VideoInfo
    table: FrameTable | None = field(default=None, repr=False, compare=False)

    @property
    def repeated(self) -> bool:
        """Whether a frame occurs more than once, as it must in a clip shorter than the frames asked for."""
        return len(set(self.indices)) < len(self.indices)
