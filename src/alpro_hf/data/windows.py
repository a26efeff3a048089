"""Cut a long video into windows while it is decoded: frames come in, windows with the frames that show them go out.

A video is decoded once, forward. `WindowCutter` is fed its frames at a steady rate, and hands out each window as soon
as its last frame has come. It keeps the frames of the longest window and no more, so memory does not grow with the
length of the video.

Windows do not reach over cuts, where a caption would have to describe two things, see `data.cuts`.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ..model.decoding import decode_stream
from ..model.decoding_source import VideoSource, source_name
from ..model.decoding_types import (
    Frames,
    TruncatedVideoError,
    VideoDecodeError,
    VideoInfo,
    VideoTooLargeError,
    middles_of,
)
from .cuts import AnyChange, CutDetector, SceneChange, SuddenChange

SHORTEST = 0.1  # seconds of a window and between two windows
LONGEST = 3600.0  # seconds of a window, all of whose frames are kept until it ends
MOST_LENGTHS = 16
MOST_FRAMES = 10_000  # of a window
_CLOSEST = 0.01  # seconds between two windows of a shorter length; at 0, cutting would not end
CUTS: dict[str, Callable[[], CutDetector]] = {"changes": AnyChange, "sudden": SuddenChange, "scenes": SceneChange}


@dataclass(frozen=True)
class WindowSettings:
    """How a long video is cut.

    Args:
        lengths: Seconds of a window; of several lengths, each cuts the whole video. A moment is found best by a window
            of about its own length, which nobody knows beforehand.
        stride: Seconds from the start of a window of the greatest length to that of the next one. Shorter windows
            have the same share of their length between them. None: half of the length.
        short: Videos up to this many seconds are one clip.
        shortest: Seconds below which a shot is joined with the next one.
        cuts: What ends a window: `changes`, which are sudden ones and fades; `sudden` changes alone; the `scenes` of
            PySceneDetect; or None for nothing.

    Raises:
        ValueError: A number is below `SHORTEST` or above `LONGEST`, there are more than `MOST_LENGTHS`, the stride
            exceeds the length, or `shortest` does, or windows of the shortest length lie too close together.
    """

    lengths: tuple[float, ...] = (15.0, 7.5)
    stride: float | None = None
    short: float = 30.0
    shortest: float = 1.0
    cuts: Literal["changes", "sudden", "scenes"] | None = "changes"

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ValueError("lengths is empty; give the seconds of a window.")
        if len(self.lengths) > MOST_LENGTHS:  # each cuts the whole video
            raise ValueError(f"there are {len(self.lengths)} lengths; give at most {MOST_LENGTHS}.")
        stride = self.longest / 2 if self.stride is None else self.stride
        named = [("length", length) for length in self.lengths] + [("stride", stride), ("shortest", self.shortest)]
        for name, seconds in named:
            if not SHORTEST <= seconds <= LONGEST:
                raise ValueError(f"{name} is {seconds}; give seconds, at least {SHORTEST} and at most {LONGEST:g}.")
        if not 0 <= self.short < float("inf"):
            raise ValueError(f"short is {self.short}; give a number of seconds, 0 to cut every video.")
        if stride > self.longest:
            raise ValueError(
                f"stride is {stride} s and the length {self.longest} s: what lies between two windows would be in "
                "none. Give a stride of at most the length."
            )
        if (least := self.stride_of(min(self.lengths))) < _CLOSEST:
            raise ValueError(
                f"stride is {stride} s of windows of {self.longest} s, so those of {min(self.lengths)} s would lie "
                f"{least:.2g} s apart. Give a greater stride."
            )
        if self.cuts not in (*CUTS, None):
            raise ValueError(f"cuts is {self.cuts!r}; use {', '.join(map(repr, CUTS))} or None.")
        if self.shortest > min(self.lengths):
            raise ValueError(
                f"shortest is {self.shortest} s, longer than a window of {min(self.lengths)} s. Give at most that."
            )

    @property
    def longest(self) -> float:
        """Seconds of the longest window."""
        return max(self.lengths)

    def stride_of(self, length: float) -> float:
        """Seconds between the starts of windows of a length."""
        return length * (0.5 if self.stride is None else self.stride / self.longest)

    def spacing(self, num_frames: int) -> float:
        """Seconds between the frames to feed, so that the shortest window has as many frames as a clip."""
        return max(0.001, min(self.shortest / num_frames, 0.2))

    def fed(self, info: VideoInfo, num_frames: int) -> list[int]:
        """The numbers of the frames of a video that are fed, in order."""
        spacing = self.spacing(num_frames)
        steps = max(1, math.ceil(info.duration / spacing))
        return sorted(set(info.frames_at(step * spacing for step in range(steps))))


@dataclass(frozen=True)
class Window:
    """A part of a video.

    Args:
        start, end: Seconds from the start of the video.
        pixels: uint8 (T, 3, H, W), the frames shown at the middles of T equal parts of the window.
    """

    start: float
    end: float
    pixels: np.ndarray = field(repr=False, compare=False)


class WindowCutter:
    """Cuts one video. Feed its frames in order, then finish.

    Args:
        settings: Lengths.
        num_frames: Frames of a window, T.
    """

    def __init__(self, settings: WindowSettings, num_frames: int) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; a window has at least 1 frame.")
        self.settings, self.num_frames = settings, num_frames
        self._lengths = sorted(set(settings.lengths), reverse=True)
        self._kept: deque[tuple[float, np.ndarray]] = deque()
        self._undecided: deque[tuple[float, np.ndarray]] = deque()  # frames that the detector has not decided on
        self._detector = CUTS[settings.cuts]() if settings.cuts else None
        self._begin_shot(0.0)

    def _begin_shot(self, start: float) -> None:
        self._shot = start
        self._next = dict.fromkeys(self._lengths, start)  # start of the next window of each length
        self._last = dict.fromkeys(self._lengths, (start, start))  # the last one

    def feed(self, time: float, pixels: np.ndarray) -> list[Window]:
        """Take the next frame.

        Args:
            time: Seconds from the start of the video, more than at the frame before.
            pixels: uint8 (3, H, W). It is kept, not copied.

        Returns:
            The windows that are known to end at or before this frame.
        """
        if self._detector is None:
            return self._take(time, pixels)
        is_cut = self._detector.is_cut(pixels)
        self._undecided.append((time, pixels))
        if len(self._undecided) <= self._detector.delay:
            return []
        return self._take(*self._undecided.popleft(), is_cut=is_cut)

    def _take(self, time: float, pixels: np.ndarray, *, is_cut: bool = False) -> list[Window]:
        """Add a frame that is known to begin a new shot, or not to."""
        finished: list[Window] = []
        if is_cut and time - self._shot >= self.settings.shortest:
            finished += self._windows_until(time) + self._end_shot(time)
            self._kept.clear()
            self._begin_shot(time)
        finished += self._windows_until(time)
        self._kept.append((time, pixels))
        # the last window of a shot may begin one length before its end, in the time of the frame before that
        while len(self._kept) > 1 and self._kept[1][0] <= time - self.settings.longest:
            self._kept.popleft()
        return finished

    def finish(self, end: float) -> list[Window]:
        """The windows that remain when the video ends.

        Args:
            end: Seconds from the start of the video to the end of its last frame.
        """
        finished: list[Window] = []
        while self._undecided:  # too few frames follow for a decision
            finished += self._take(*self._undecided.popleft())
        return finished + self._windows_until(end) + self._end_shot(end) if self._kept else []

    def _windows_until(self, time: float) -> list[Window]:
        windows = []
        for length in self._lengths:
            while time >= self._next[length] + length:
                windows.append(self._window(self._next[length], self._next[length] + length))
                self._last[length] = (self._next[length], self._next[length] + length)
                self._next[length] += self.settings.stride_of(length)
        return windows

    def _end_shot(self, end: float) -> list[Window]:
        """The last windows of a shot reach its end; a short shot is one window."""
        starts = {
            max(self._shot, end - length): None for length in self._lengths if end > self._last[length][1]
        }  # a dictionary keeps the order, and a start that two lengths share once
        # a shot as long as a shorter window is that window, and was given already
        return [self._window(start, end) for start in starts if (start, end) not in self._last.values()]

    def _window(self, start: float, end: float) -> Window:
        times = [time for time, _ in self._kept]
        middles = middles_of(start, end, self.num_frames)
        shown = [self._kept[max(0, bisect_right(times, middle) - 1)][1] for middle in middles]
        return Window(start, end, np.stack(shown))


def stream_windows(
    source: VideoSource,
    settings: WindowSettings,
    num_frames: int,
    *,
    stream: Callable[..., Iterator[Frames]] = decode_stream,
    **options: Any,
) -> Generator[Window, None, None]:
    """Decode a video once and hand out its windows on the way.

    Args:
        source: As in `decoding.decode`.
        settings: Lengths.
        num_frames: Frames of a window.
        stream: `decode_stream`, or `IsolatedDecoder.stream`.
        options: Further arguments of `decode_stream`, such as `height`, `width` and `limits`.

    Yields:
        Windows, in the order in which they end.

    Raises:
        VideoDecodeError, OSError: As `decode_stream`. If damage is met on the way, or the file ends early, the windows
            before that come first.
    """
    if num_frames > MOST_FRAMES:
        raise VideoTooLargeError(
            source_name(source),
            f"a window of {num_frames:,} frames was asked for, of at most {MOST_FRAMES:,}",
            "Set num_frames of the processor",
        )
    duration = 0.0

    def choose(info: VideoInfo) -> list[int]:
        nonlocal duration
        duration = info.duration
        return settings.fed(info, num_frames)

    cutter, before, seen, given, reached = WindowCutter(settings, num_frames), -1, 0, 0, 0.0
    damage: VideoDecodeError | None = None
    ends_early = False
    parts = stream(source, choose, allow_truncated=True, **options)
    while True:
        try:
            frames = next(parts, None)
        except VideoDecodeError as error:
            frames, damage = None, error
        if frames is None:
            # after damage, nothing is known behind the last frame
            windows = cutter.finish(reached if damage else max(duration, reached))
            if ends_early:
                problem = f"the file ends early, after {reached:.1f} s"
                damage = TruncatedVideoError(source_name(source), problem, "Get the whole file")
        else:
            if frames.indices[0] <= before:  # the file is read anew, and gives the same windows once more
                cutter, seen = WindowCutter(settings, num_frames), 0
            before, reached = frames.indices[0], frames.timestamps[-1]
            ends_early = frames.info.truncated
            windows = []
            for time, pixels in zip(frames.timestamps, frames.pixels.numpy(), strict=True):
                windows += cutter.feed(time, pixels)
        for window in windows:
            seen += 1
            if seen > given:
                given = seen
                yield window
        if damage is not None:
            raise damage
        if frames is None:
            return


def frames_of_window(processor: Any, settings: WindowSettings) -> int:
    """Frames of a window as a model reads it; `fps` of its processor counts for the longest window."""
    video = processor.video_processor
    return video.num_frames if video.fps is None else max(1, round(video.fps * settings.longest))


def model_windows(
    source: VideoSource,
    processor: Any,
    settings: WindowSettings,
    *,
    stream: Callable[..., Iterator[Frames]] = decode_stream,
    **options: Any,
) -> Generator[tuple[Window, torch.Tensor], None, None]:
    """Windows of a video, and their pixels as a model reads them.

    Args:
        source, settings, stream, options: As in `stream_windows`.
        processor: The `AlproProcessor` of the model. Its `fps` counts for the longest window.

    Yields:
        A window, and (T, 3, H, W) of `pixel_values_videos`.

    Raises:
        VideoDecodeError, OSError: As in `stream_windows`.
    """
    video, num_frames = processor.video_processor, frames_of_window(processor, settings)
    height, width = video.decoded_size()
    options |= {"stream": stream, "height": height, "width": width}
    with closing(stream_windows(source, settings, num_frames, **options)) as windows:
        for window in windows:
            clip = [torch.from_numpy(window.pixels)]
            seen = video(clip, do_sample_frames=False, input_data_format="channels_first", return_tensors="pt")
            yield window, seen["pixel_values_videos"][0]


def overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    """Intersection over union of two spans of time, in [0, 1]."""
    if (start, end) == (other_start, other_end):
        return 1.0
    union = max(end, other_end) - min(start, other_start)
    return max(0.0, min(end, other_end) - max(start, other_start)) / union if union > 0 else 1.0


def suppress(spans: Sequence[tuple[str, float, float]], *, most: float = 0.5, per_video: int = 0) -> list[int]:
    """Leave out moments that overlap with a better one.

    Args:
        spans: (video, start, end) of each moment, best first.
        most: Largest intersection over union of two moments of one video.
        per_video: Moments of one video; 0: any number.

    Returns:
        The places of those that remain, in their order.
    """
    remaining: list[int] = []
    of_video: dict[str, list[tuple[float, float]]] = {}
    for place, (video, start, end) in enumerate(spans):
        taken = of_video.setdefault(video, [])
        if per_video and len(taken) >= per_video:
            continue
        if all(overlap(start, end, *other) <= most for other in taken):
            taken.append((start, end))
            remaining.append(place)
    return remaining


__all__ = [
    "CUTS",
    "Window",
    "WindowCutter",
    "WindowSettings",
    "frames_of_window",
    "model_windows",
    "overlap",
    "stream_windows",
    "suppress",
]
