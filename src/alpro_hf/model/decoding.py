"""Exact video frames from any container.

The one decoder of the package, built on PyAV. It guarantees that frame `i` of a result is the frame that a decoder
outputs at position `i` when it decodes the file from start to end. Frame counts and rates in file headers are often
wrong and are never used. Instead, the packets of the stream are listed without decoding them, and their sorted
presentation times form a table of frames (`FrameTable`). Where the index of a long mp4 has an entry for each packet,
the times come from there, and only some packets are compared with it.

The decoder seeks only in containers that find a key frame by its time, and only if that skips frames. It skips
pictures of H.264 and H.265 that are not wanted and that no other picture refers to. Every decoded frame is compared
with the table. At the first difference, the clip is decoded again, completely and from its start.

    frames = decode("clip.mp4", lambda info: [0, info.num_frames // 2, info.num_frames - 1], height=224, width=224)
    frames.pixels            # torch.uint8 (3, 3, 224, 224)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise

import numpy as np

from .decoding_source import VideoSource
from .decoding_table import FrameTable
from .decoding_types import (
    DEFAULT_LIMITS,
    CorruptVideoError,
    Frames,
    TruncatedVideoError,
    VideoInfo,
    VideoLimits,
)
from .decoding_video import TableMismatchError, Video, open_video

_UNSTEADY = ("two decodes of it give different frames", "Re-encode the file")

# the fields of `Frames`: pixels as uint8 (T, height, width, 3), indices, timestamps, info, table
Decoded = tuple[np.ndarray, list[int], list[float], VideoInfo, FrameTable | None]
FrameChoice = Sequence[int] | Callable[[VideoInfo], Sequence[int]] | None


def probe(
    source: VideoSource,
    *,
    limits: VideoLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
) -> VideoInfo:
    """Describe a video. Of its frames only the first is decoded, except where only decoding can count them.

    For arguments and errors see `decode`. A truncated file is described, not refused. A file of which `decode` can
    decode no frame is refused with the same error.
    """
    # threads would decode several frames at a time, of which the first alone is wanted
    with open_video(source, limits, allow_url, threads=1) as video:
        return video.shown_info(next(video.tables()))


def read_comment(source: VideoSource, *, limits: VideoLimits = DEFAULT_LIMITS, allow_url: bool = False) -> str:
    """The comment in the metadata of a video, as in `VideoInfo.comment`. Nothing is decoded, nor are frames listed.

    For arguments and errors see `decode`. Damage behind the header of the file is not noticed.
    """
    with open_video(source, limits, allow_url, threads=1) as video:
        return video.comment


def decode(
    source: VideoSource,
    indices: FrameChoice = None,
    *,
    height: int | None = None,
    width: int | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
    allow_truncated: bool = False,
    table: FrameTable | None = None,
    threads: int = 0,
) -> Frames:
    """Decode the frames `indices` of a video, exactly.

    FFmpeg's scaler converts colours and resizes in one step with a bicubic filter, as in the original ALPRO. Quarter
    turns and mirroring that a camera noted in the file are applied, other angles are not. Pixels that are not square
    become square. Alpha is dropped, 10-bit becomes 8-bit, grey becomes RGB, interlaced frames stay interlaced. High
    dynamic range (PQ, HLG) and the colours of BT.2020 are converted to those of ordinary video, and `info.hdr` says
    so. Damaged data raise an error if container or codec can detect them; VP8, VP9 and some intra-only codecs have no
    checksums or other means to do so.

    Args:
        source: path, bytes, or binary file object (left open; read from its start). An http(s) URL, downloaded first,
            if `allow_url`. Nothing else is opened, whatever the content refers to.
        indices: frame numbers in any order, repeats allowed; or a function from `VideoInfo` to frame numbers, so that
            the length need not be known beforehand; or `None` for all frames.
        height, width: size of the result in pixels; `None` for the size at which the first frame requested is shown.
        limits: limits on the cost of a video; one that exceeds them is refused.
        allow_url: whether `source` may be an http(s) URL.
        allow_truncated: decode the readable part of a file that ends early, instead of raising `TruncatedVideoError`.
        table: `Frames.table` of an earlier decode of this file, which saves finding them. A table of another
            file is ignored: size and codec are compared first, then every decoded frame.
        threads: threads of FFmpeg; 0 for one per core (one for small pictures), 1 when other clips are decoded at the
            same time.

    Returns:
        `Frames`, with `pixels` of shape (len(indices), 3, height, width).

    Raises:
        VideoDecodeError: one of its subclasses, which names the input; see each for its meaning.
        IndexError: a frame number is outside the video.
        OSError: the path cannot be read.
    """
    import torch

    pixels, chosen, timestamps, info, found = decode_to_array(
        source,
        partial(choose_frames, indices),
        height=height,
        width=width,
        limits=limits,
        allow_url=allow_url,
        allow_truncated=allow_truncated,
        table=table,
        threads=threads,
    )
    return Frames(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen, timestamps, info, found)


def decode_to_array(
    source: VideoSource,
    choose: Callable[[VideoInfo], list[int]],
    *,
    height: int | None,
    width: int | None,
    limits: VideoLimits,
    allow_url: bool,
    allow_truncated: bool,
    table: FrameTable | None,
    threads: int,
) -> Decoded:
    """`decode` without torch, for processes that only decode.

    Returns:
        `Decoded`.
    """
    with _opened(source, limits, allow_url, threads) as video:

        def whole(attempt: FrameTable, info: VideoInfo) -> Iterator[Decoded]:
            yield *video.read(attempt, info, choose(info), height, width), attempt

        return next(_exact(video, table, allow_truncated, whole))


def choose_frames(indices: FrameChoice, info: VideoInfo) -> list[int]:
    """The frame numbers that `indices` of `decode` selects from a video.

    Raises:
        IndexError: A number is outside the video.
        ValueError: There is no number.
    """
    if indices is None:
        return list(range(info.num_frames))
    chosen = [int(i) for i in (indices(info) if callable(indices) else indices)]
    for i in chosen:
        if not 0 <= i < info.num_frames:
            raise IndexError(f"{info.source}: frame {i} was requested, and the last frame is {info.num_frames - 1}.")
    if not chosen:
        raise ValueError(f"{info.source}: no frame was requested. Pass at least one index, or None for all frames.")
    return chosen


def decode_stream(
    source: VideoSource,
    indices: FrameChoice = None,
    *,
    height: int | None = None,
    width: int | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
    allow_truncated: bool = False,
    table: FrameTable | None = None,
    threads: int = 0,
    chunk: int = 32,
) -> Iterator[Frames]:
    """Decode frames of a long video in one pass, a few at a time, so that memory does not grow with their number.

    The frames are those of `decode`. If the file turns out to need a slower and safer way of decoding, all frames come
    again from the first one: the first index of a part is then not greater than that of the part before.

    Args:
        source, height, width, limits, allow_url, allow_truncated, table, threads: As in `decode`.
        indices: As in `decode`, and ascending.
        chunk: Frames in one part.

    Yields:
        `Frames` of at most `chunk` frames. Only the last part has a `table`.

    Raises:
        VideoDecodeError, IndexError, OSError: As in `decode`; damage is found when the pass reaches it.
        ValueError: The indices do not ascend, or `chunk` is below 1.
    """
    import torch

    choose = partial(choose_frames, indices)
    for pixels, chosen, timestamps, info, found in stream_arrays(
        source,
        choose,
        height=height,
        width=width,
        limits=limits,
        allow_url=allow_url,
        allow_truncated=allow_truncated,
        table=table,
        threads=threads,
        chunk=chunk,
    ):
        yield Frames(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen, timestamps, info, found)


def stream_arrays(
    source: VideoSource,
    choose: Callable[[VideoInfo], list[int]],
    *,
    height: int | None,
    width: int | None,
    limits: VideoLimits,
    allow_url: bool,
    allow_truncated: bool,
    table: FrameTable | None,
    threads: int,
    chunk: int,
) -> Iterator[Decoded]:
    """`decode_stream` without torch, for processes that only decode; see `decode_to_array` for what it yields."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1.")
    with _opened(source, limits, allow_url, threads) as video:

        def parts(attempt: FrameTable, info: VideoInfo) -> Iterator[Decoded]:
            chosen = choose(info)
            if any(one >= other for one, other in pairwise(chosen)):
                raise ValueError(f"{video.name}: the frames of a stream must ascend, each once.")
            for part in video.read_parts(attempt, info, chosen, height, width, chunk):
                yield *part, attempt if part[1][-1] == chosen[-1] else None

        yield from _exact(video, table, allow_truncated, parts)


def _exact(
    video: Video,
    kept: FrameTable | None,
    allow_truncated: bool,
    read: Callable[[FrameTable, VideoInfo], Iterator[Decoded]],
) -> Iterator[Decoded]:
    """What `read` gives with the first table that the decoded frames agree with.

    Raises:
        VideoDecodeError: With no table are the frames sound.
    """
    for attempt in video.tables(kept):
        try:
            for pixels, chosen, timestamps, info, used in read(
                attempt, _checked_info(video, attempt, allow_truncated)
            ):
                yield pixels, chosen, timestamps, info, used if _is_certain(video, attempt) else None
            return
        except TableMismatchError:
            continue
        except CorruptVideoError:
            # A seek may land where the decoder lacks a reference, and intact data then seem damaged.
            if not attempt.seekable:
                raise
    raise CorruptVideoError(video.name, *_UNSTEADY)


def _opened(source: VideoSource, limits: VideoLimits, allow_url: bool, threads: int) -> AbstractContextManager[Video]:
    if threads < 0:
        raise ValueError(f"threads={threads} must be 0 (one for each core) or more.")
    return open_video(source, limits, allow_url, threads)


def _checked_info(video: Video, table: FrameTable, allow_truncated: bool) -> VideoInfo:
    info = video.info(table)
    if info.truncated and not allow_truncated:
        problem = f"the file ends early, after {info.num_frames} readable frames"
        raise TruncatedVideoError(video.name, problem, "Get the whole file, or pass allow_truncated=True")
    return info


def _is_certain(video: Video, table: FrameTable) -> bool:
    """Whether a table is worth keeping for the next decode of the file."""
    return not (table.counted or video.truncated or video.damaged)


__all__ = [
    "FrameChoice",
    "choose_frames",
    "decode",
    "decode_stream",
    "decode_to_array",
    "probe",
    "read_comment",
    "stream_arrays",
]
