"""Types that `decoding.py` and its callers share: facts about a video, limits on its cost, errors of decoding."""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from .decoding_table import FrameTable

if TYPE_CHECKING:
    import torch  # takes longer to import than most clips to decode, so a process that only decodes must not

# How the frames of a clip are chosen. Not in the module of `sample_indices`, so that
# help texts can list them without torch.
SamplingStrategy = Literal["center", "uniform", "random", "headtail"]
SAMPLING_STRATEGIES: tuple[SamplingStrategy, ...] = get_args(SamplingStrategy)


class VideoDecodeError(ValueError):
    """A video cannot be decoded exactly. Base class of the errors below.

    Args:
        source (`str`): path or description of the input.
        problem (`str`): the problem with it.
        advice (`str`): the remedy.
    """

    def __init__(self, source: str, problem: str, advice: str) -> None:
        super().__init__(source, problem, advice)  # pickling rebuilds an error from `args`, so all three must be there
        self.source, self.problem, self.advice = source, problem, advice

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}. {self.advice}"


class NotAVideoError(VideoDecodeError):
    """FFmpeg does not know the format of the content, or the file is a playlist that refers to other files."""


class NoVideoStreamError(VideoDecodeError):
    """The media file has no moving pictures: audio, subtitles, or audio with a cover image."""


class UnsupportedVideoError(VideoDecodeError):
    """FFmpeg knows what the file is, and has no decoder for it: an animated WebP, for example."""


class EmptyVideoError(VideoDecodeError):
    """The file has zero bytes, or its video stream has no frame."""


class TruncatedVideoError(VideoDecodeError):
    """The file ends before the video does."""


class CorruptVideoError(VideoDecodeError):
    """Data inside the clip are damaged, so that a requested frame would be a guess of the decoder."""


class VideoTooLargeError(VideoDecodeError):
    """The input exceeds one of the `VideoLimits`."""


class DecoderFailedError(VideoDecodeError):
    """The process that decoded the file crashed, or was killed at its deadline; see `IsolatedDecoder`."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits on the cost of a video; one that exceeds them is refused. `None` switches a limit off.

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
        """Raise `VideoTooLargeError` if `value` exceeds the field named `limit`.

        `what` describes the value in the message, such as "the number of pixels of a frame is".
        """
        allowed = getattr(self, limit)
        if allowed is not None and value > allowed:
            problem = f"{what} {value:,.6g}, and the limit is {allowed:,.6g}"
            option = f"--{limit.replace('_', '-')}"
            raise VideoTooLargeError(
                source, problem, f"Use a smaller video, or pass VideoLimits({limit}=...) ({option})"
            )


DEFAULT_LIMITS = VideoLimits()
_ROUNDING = 1e-6  # seconds or frames by which floating-point times may miss a frame that begins exactly then


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video, read from its packets or their index.

    Args:
        source: path or description of the input.
        num_frames: number of frames.
        fps: average frames per second over the clip; `None` for a single frame without a rate.
        duration: seconds from the first frame to the end of the last one, which is `num_frames / fps` at a constant
            rate; 0 where `fps` is unknown. Where the file does not say how long the last frame of a variable rate
            stays, it is taken to stay for the mean, and for at most a second.
        width, height: size of a frame as shown, in square pixels. The function `indices` of `decode` gets them
            before the rotation by the camera, which is only known once a frame is decoded.
        codec: FFmpeg's name, such as `h264`.
        container: FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`.
        truncated: the file ends before the video does; the other fields describe the readable part.
        comment: the comment in the metadata of the file, at most 200 characters of it.
        hdr: `pq` or `hlg` for a video of high dynamic range, whose frames are converted to ordinary brightness and
            colours; `None` for all others. Known once a frame is decoded, like the rotation.
        frame_times: seconds of each frame after the first, if the frame rate varies; `None` if it is constant, so
            that frame `i` is shown at `i / fps`.
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
    comment: str = ""
    hdr: str | None = None
    frame_times: tuple[float, ...] | None = field(default=None, repr=False)

    def frames_at(self, seconds: Iterable[float]) -> list[int]:
        """The number of the frame that is shown at each time, in seconds after the first frame.

        Before the first frame that is frame 0, after the last one the last.
        """
        if self.frame_times is None:
            rate = self.fps or 0.0
            return [min(max(int(time * rate + _ROUNDING), 0), self.num_frames - 1) for time in seconds]
        return frames_at(self.frame_times, seconds)


def frames_at(times: Sequence[float], seconds: Iterable[float]) -> list[int]:
    """The frame that is shown at each of `seconds`, of frames that begin at the ascending `times`."""
    return [max(bisect.bisect_right(times, time + _ROUNDING) - 1, 0) for time in seconds]


def middles_of(start: float, end: float, count: int) -> list[float]:
    """The middles of so many equal parts of a span of time, in seconds."""
    part = (end - start) / count
    return [start + (number + 0.5) * part for number in range(count)]


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Args:
        pixels: `torch.uint8` of shape (T, 3, height, width), RGB, upright. `decode` gives a view of memory in the
            order (T, height, width, 3), the order of FFmpeg and of image files.
        indices: the frame number of each, counted from 0.
        timestamps: seconds of each after the first frame of the clip; exact at a variable frame rate, too.
        info: the video they come from.
        table: positions of its frames, for the next decode of the same file; `None` if only decoding finds them, and
            for damaged and truncated files.
    """

    pixels: "torch.Tensor"
    indices: list[int]
    timestamps: list[float]
    info: VideoInfo
    table: FrameTable | None = field(default=None, repr=False, compare=False)

    @property
    def repeated(self) -> bool:
        """Whether a frame occurs more than once, as it must in a clip with fewer frames than requested."""
        return len(set(self.indices)) < len(self.indices)
