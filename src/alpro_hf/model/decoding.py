"""Exact video frames from any container.

One decoder for the whole package, on PyAV. What it promises: `indices[k]` of the result is the frame that comes
`indices[k]`-th out of the decoder when the file is decoded from its first frame to its last. Frame counts and rates in
file headers are often wrong, so they are never used: the packets of the stream are listed (without decoding them), and
their sorted presentation times are the table of the clip's frames. Seeking happens only in containers that find a key
frame by its time and only when it skips something. Pictures of H.264 and H.265 that no other picture is predicted from
are left out unless they are wanted. Every frame that comes out is checked against the table; at the first disagreement
the clip is decoded again from its start, whole.

    frames = decode("clip.mp4", lambda info: [0, info.num_frames // 2, info.num_frames - 1], height=224, width=224)
    frames.pixels            # torch.uint8 (3, 3, 224, 224)
"""

import bisect
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import IO, Any, NoReturn, cast

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from .decoding_bitstream import ends_early, layers_of
from .decoding_source import VideoSource, opened
from .decoding_table import FrameTable
from .decoding_types import (
    DEFAULT_LIMITS,
    CorruptVideoError,
    EmptyVideoError,
    Frames,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    VideoDecodeError,
    VideoInfo,
    VideoLimits,
)

# Containers with an index that FFmpeg seeks by exactly: seeks in MPEG-PS/TS land late, times in AVI are not monotonic.
SEEKABLE_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# VP8 stores frames that are never shown as packets of their own, which only decoding tells apart.
UNSEEKABLE_CODECS = frozenset({"vp8"})
# With a thread a frame, FFmpeg's decoder calls what is not there if it was at work before a seek and then meets a
# damaged key frame.
NO_THREADS_A_FRAME_OVER_SEEKS = frozenset({"vp9"})
READ_SIZE = 1 << 18  # bytes that FFmpeg asks for at a time


class _TableMismatchError(Exception):
    """Decoded frames disagree with the table: try again in a slower, safer way."""


FrameChoice = Sequence[int] | Callable[[VideoInfo], Sequence[int]] | None


def probe(
    source: VideoSource,
    *,
    limits: VideoLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
) -> VideoInfo:
    """Describes a video without decoding it (except where only decoding can count its frames).

    Args and errors: see `decode`. A truncated file is described, not refused.
    """
    with _open(source, limits, allow_url) as video:
        return video.info(next(video.tables()))


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
    """Decodes the frames `indices` of a video, exactly.

    Colour conversion and resize are one step inside FFmpeg's scaler with a bicubic filter, as the original ALPRO had
    its decoder do. Quarter turns and mirroring that a camera noted in the file are applied, other angles are not.
    Alpha is dropped, 10-bit becomes 8-bit, grey becomes RGB, interlaced frames stay interlaced. Damaged data raises an
    error as far as container and codec can tell; VP8, VP9 and some intra-only codecs have nothing to tell it by.

    Args:
        source: path, bytes, or binary file object (left open; read from its start). An http(s) URL, downloaded first,
            if `allow_url`. Nothing else is ever opened, whatever the content says.
        indices: frame numbers in any order, repeats allowed; or a function from `VideoInfo` to frame numbers, so that
            the length need not be known beforehand; or `None` for all frames.
        height, width: size of the result; `None` keeps that of the first frame wanted.
        limits: what to refuse.
        allow_url: whether `source` may be an http(s) URL.
        allow_truncated: decode what is there of a file that ends early, rather than raise `TruncatedVideoError`.
        table: `Frames.table` of an earlier decode of this file, which saves listing its packets. One of another file,
            by size, codec or what comes out, is left aside.
        threads: of FFmpeg; 0 for as many as there are cores, 1 where other clips are decoded at the same time.

    Returns:
        `Frames`, with `pixels` of shape (len(indices), 3, height, width).

    Raises:
        VideoDecodeError: one of its subclasses, naming the input; see each for its meaning.
        IndexError: a frame number outside the video.
        OSError: the path cannot be read.
    """
    import torch

    choose = partial(choose_frames, indices)
    pixels, chosen, timestamps, info, found = read(
        source, choose, height, width, limits, allow_url, allow_truncated, table, threads
    )
    return Frames(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen, timestamps, info, found)


def read(
    source: VideoSource,
    choose: Callable[[VideoInfo], list[int]],
    height: int | None,
    width: int | None,
    limits: VideoLimits,
    allow_url: bool,
    allow_truncated: bool,
    kept: FrameTable | None,
    threads: int,
) -> tuple[np.ndarray, list[int], list[float], VideoInfo, FrameTable | None]:
    """What `decode` makes `Frames` of; the pixels are uint8 (T, height, width, 3)."""
    if threads < 0:
        raise ValueError(f"threads={threads} must be 0 (one for each core) or more.")
    with _open(source, limits, allow_url, threads) as video:
        for table in video.tables(kept):
            info = video.info(table)
            if info.truncated and not allow_truncated:
                problem = f"the file ends early, after {info.num_frames} readable frames"
                raise TruncatedVideoError(video.name, problem, "Get the whole file, or pass allow_truncated=True")
            try:
                result = video.read(table, info, choose(info), height, width)
                certain = not (table.counted or video.truncated or video.damaged)
                return *result, table if certain else None
            except _TableMismatchError:
                continue
            except CorruptVideoError:
                if not table.seekable:  # after a seek, data may only seem damaged
                    raise
        raise CorruptVideoError(video.name, "two decodes of it give different frames", "Re-encode the file")


def choose_frames(indices: FrameChoice, info: VideoInfo) -> list[int]:
    if indices is None:
        return list(range(info.num_frames))
    chosen = [int(i) for i in (indices(info) if callable(indices) else indices)]
    for i in chosen:
        if not 0 <= i < info.num_frames:
            raise IndexError(f"{info.source}: frame {i} was asked for, and the last frame is {info.num_frames - 1}.")
    if not chosen:
        raise ValueError(f"{info.source}: no frame was asked for. Pass at least one index, or None for all frames.")
    return chosen


@contextmanager
def _open(source: VideoSource, limits: VideoLimits, allow_url: bool, threads: int = 0) -> Iterator["_Video"]:
    with (
        opened(source, limits, allow_url) as (name, file, size),
        closing(_Video(name, file, size, limits, threads)) as video,
    ):
        yield video


# metadata need not be text; from PyAV 19 on they are read without this
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class _Reader:
    """The bytes of a file and nothing else: a name would let FFmpeg guess the format from its extension."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"The video tried to open {url}; a video may not open other files.")


class _Video:
    """An open video: lists its packets, and decodes them in order or from a key frame on."""

    def __init__(self, name: str, file: IO[bytes], size: int, limits: VideoLimits, threads: int) -> None:
        self.name, self.file, self.size, self.limits, self.threads = name, file, size, limits, threads
        self.truncated = ends_early(file, size)
        self.damaged: set[int | None] = set()  # times of packets that the container calls damaged
        self.container: InputContainer
        self.stream: VideoStream
        self.open()

    def open(self) -> None:
        """Opens the file at its start."""
        self.file.seek(0)
        self.head = self.file.read(4096)
        self.file.seek(0)
        # Formats that refer to other files (playlists, sdp, concat) get no protocol and no callback to open them with.
        options = {"protocol_whitelist": ""}
        # PyAV's log calls Python from FFmpeg's threads; closing waits for these and lets no Python run: it hangs.
        # torchvision 0.24 turns the log on when it is imported.
        if av.logging.get_level() is not None:
            av.logging.set_level(None)
        try:
            self.container = av.open(
                _Reader(self.file),
                "r",
                container_options=options,
                io_open=_refuse,
                buffer_size=READ_SIZE,
                **_ANY_METADATA,
            )
        except av.error.FFmpegError as error:
            raise self._unreadable(error) from error
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        whole = streams and all(stream.codec_context is not None for stream in streams)
        if self.truncated and not whole:
            self.close()
            raise self._without_index()
        if not streams:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "none"
            self.close()
            problem = f"there is no video stream in it (streams: {kinds})"
            raise NoVideoStreamError(self.name, problem, "Pass a file with moving pictures")
        best = self.container.streams.best("video")
        self.stream = next((s for s in streams if s is best), streams[0])
        context = self.stream.codec_context
        if context is None:
            self.close()
            raise VideoDecodeError(self.name, "PyAV has no decoder for its codec", "Re-encode it to H.264")
        pixels = context.width * context.height
        self.limits.check("max_pixels", pixels, self.name, "the number of pixels of a frame is")
        # Damaged data is reported instead of patched up; FFmpeg's default is to guess the missing picture.
        context.options = {"err_detect": "explode+crccheck"}
        if self.limits.max_pixels is not None:  # for frames larger than the header says; padding may double small ones
            context.options = {**context.options, "max_pixels": str(2 * self.limits.max_pixels)}
        context.thread_type = "AUTO"
        context.thread_count = self.threads

    def close(self) -> None:
        self.container.close()

    def _unreadable(self, error: av.error.FFmpegError) -> VideoDecodeError:
        head = self.head
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return self._without_index()
        if head.lstrip().startswith((b"#EXTM3U", b"ffconcat", b"v=0")) or b"<MPD" in head:
            problem = "it is a playlist, which only points to other files"
            return NotAVideoError(self.name, problem, "Pass the video itself")
        problem = f"its content is no video or audio format that can be read ({error.strerror})"
        return NotAVideoError(self.name, problem, "Check the file; its name does not matter")

    def _without_index(self) -> TruncatedVideoError:
        problem = "the file is an mp4 or mov that ends before its index, or the index is damaged"
        return TruncatedVideoError(self.name, problem, "Get the whole file, or finish the interrupted recording")

    def tables(self, kept: FrameTable | None = None) -> Iterator[FrameTable]:
        """Tables to try, from the fastest to the safest."""
        if kept is not None and self._may_use(kept):
            yield kept
            self.container.close()
            self.open()
        table = self._packet_table()
        if table is not None:
            yield table
            if table.seekable:
                yield replace(table, seekable=False)
        yield self._decoded_table()

    def _may_use(self, kept: FrameTable) -> bool:
        if kept.counted or self.truncated or kept.origin != self._origin:
            return False
        first, last = kept.pts[0], kept.pts[-1]
        return first is not None and last is not None and last - first <= self._longest

    def _packets(self) -> Iterator[av.Packet]:
        """The packets of the stream, from the present position; notes in `damaged` what cannot be certain."""
        damaged = False
        for packet in self._whole_packets():
            # After a loss that the container noticed, nothing is certain up to the next key frame.
            damaged = packet.is_corrupt or (damaged and not packet.is_keyframe)
            if damaged:
                self.damaged.add(packet.pts)
            yield packet

    def _whole_packets(self) -> Iterator[av.Packet]:
        """All packets but a last one that is cut off."""
        held: av.Packet | None = None
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self.truncated = True
                packet = None
            if packet is None or (packet.size == 0 and packet.dts is None):  # the end, or PyAV's flushing packet
                break
            if held is not None:
                yield held
            held = packet
        if held is not None and held.is_corrupt:
            self.truncated = True
        elif held is not None:
            yield held

    def _packet_table(self) -> FrameTable | None:
        """The table as the packets tell it, or `None` where they do not give each frame a time of its own."""
        times, is_key = array("q"), bytearray()
        timed, longest = True, self._longest
        for packet in self._packets():
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                timed = False
                continue
            times.append(packet.pts)
            is_key.append(packet.is_keyframe)
            if abs(packet.pts - times[0]) > longest:
                self._check_duration(abs(packet.pts - times[0]))
        seekable = bool(SEEKABLE_FORMATS & self._formats) and self.stream.codec_context.name not in UNSEEKABLE_CODECS
        if not timed:
            return None
        return FrameTable.of_packets(np.array(times, np.int64), np.array(is_key, bool), seekable, self._origin)

    def _decoded_table(self) -> FrameTable:
        """The table as a decode of the whole clip tells it."""
        self.container.close()
        self.open()
        pts: list[int | None] = []
        for frame in self._frames(late_start=self._broadcast):
            if frame.pts is not None and pts and pts[0] is not None:
                self._check_duration(frame.pts - pts[0])
            pts.append(frame.pts)
        return FrameTable(pts, range(len(pts)), [], seekable=False, counted=True, origin=self._origin)

    @property
    def _origin(self) -> tuple[int, str, Fraction]:
        return self.size, self.stream.codec_context.name, self._time_base

    @property
    def _formats(self) -> set[str]:
        return set(self.container.format.name.split(","))

    @property
    def _broadcast(self) -> bool:
        return not SEEKABLE_FORMATS & self._formats

    @property
    def _longest(self) -> float:
        """Ticks that a video may last."""
        return float("inf") if self.limits.max_duration is None else float(self.limits.max_duration / self._time_base)

    def _check_duration(self, ticks: int) -> None:
        self.limits.check("max_duration", float(ticks * self._time_base), self.name, "the duration in seconds is")

    @property
    def _time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 1)

    def info(self, table: FrameTable) -> VideoInfo:
        """Raises `EmptyVideoError` if the table has no frame."""
        n = len(table.pts)
        if n == 0:
            problem = "its video stream holds no frame that can be decoded"
            raise EmptyVideoError(self.name, problem, "Get the file again")
        first, last = table.pts[0], table.pts[-1]
        if n > 1 and first is not None and last is not None and last > first:
            fps = float((n - 1) / ((last - first) * self._time_base))
        else:
            fps = float(self.stream.average_rate or 0)
        context = self.stream.codec_context
        return VideoInfo(
            source=self.name,
            num_frames=n,
            fps=fps or None,
            duration=n / fps if fps else 0.0,
            width=context.width,
            height=context.height,
            codec=context.codec.canonical_name,
            container=self.container.format.name,
            truncated=self.truncated,
        )

    def _frames(self, packets: Iterator[av.Packet] | None = None, *, late_start: bool = False) -> Iterator[VideoFrame]:
        """Decodes packets, or all from the present position to the end. With `late_start`, what cannot be decoded
        before the first frame that can is skipped: the leading frames of an open group after a seek, a broadcast
        recorded from its middle."""
        started = not late_start
        for packet in self._then_flush(packets or self._packets()):
            try:
                frames = self.stream.decode(packet)
            except av.error.FFmpegError as error:
                if not started and packet is not None:
                    continue
                problem = f"its data is damaged ({error.strerror})"
                raise CorruptVideoError(self.name, problem, "Re-encode or replace the file") from error
            for frame in frames:
                started = True
                yield frame

    @staticmethod
    def _then_flush(packets: Iterator[av.Packet]) -> Iterator[av.Packet | None]:
        yield from packets
        yield None  # makes the decoder give out the frames it still holds

    def read(
        self, table: FrameTable, info: VideoInfo, chosen: list[int], height: int | None, width: int | None
    ) -> tuple[np.ndarray, list[int], list[float], VideoInfo]:
        """Decodes the chosen frames. Raises `_TableMismatchError` when what comes out is not what the table says."""
        unique = sorted(set(chosen))
        canvas: _Canvas | None = None
        for slot, frame in enumerate(self._exact_frames(table, unique)):
            if canvas is None:
                canvas = _Canvas(frame, height, width)
                size = len(chosen) * 3 * canvas.height * canvas.width
                self.limits.check("max_decoded_size", size, self.name, "the size in bytes of the frames asked for is")
                stack = np.empty((len(unique), canvas.height, canvas.width, 3), np.uint8)
                if canvas.transposed:
                    info = replace(info, width=info.height, height=info.width)
            stack[slot] = canvas.draw(frame)
        if chosen != unique:
            stack = stack[[bisect.bisect_left(unique, i) for i in chosen]]
        return stack, chosen, [self._seconds(table, info, i) for i in chosen], info

    def _exact_frames(self, table: FrameTable, wanted: list[int]) -> Iterator[VideoFrame]:
        """The frames at ascending positions of the table."""
        runs = list(table.runs(wanted))
        if len(runs) > 1 and self.stream.codec_context.name in NO_THREADS_A_FRAME_OVER_SEEKS:
            self.stream.codec_context.thread_type = "SLICE"
        for run in runs:
            left_out: set[int | None] = set()  # times of pictures that are not decoded
            if table.seekable:
                position = table.key_before(run[0])
                frames = self._frames_from(table, position, run, left_out)
            else:
                self.container.close()
                self.open()
                frames, position = self._frames(late_start=self._broadcast), 0
            damaged = False
            for target in run:
                while position <= target:
                    frame = next(frames, None)
                    while position < target and table.pts[position] in left_out:
                        position += 1
                    if frame is None or (frame.pts != table.pts[position] and not table.counted):
                        raise _TableMismatchError
                    # What the decoder patched up spoils the frames predicted from it, up to the next key frame.
                    damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                    position += 1
                assert frame is not None
                if damaged or frame.pts in self.damaged:
                    problem = f"the data of frame {target}, or of one it is predicted from, is damaged"
                    raise CorruptVideoError(self.name, problem, "Re-encode or replace the file")
                yield frame

    def _frames_from(
        self, table: FrameTable, key: int, run: list[int], left_out: set[int | None]
    ) -> Iterator[VideoFrame]:
        """Decodes from a key frame on, by a seek, what the wanted frames need; notes what it left out."""
        start = table.pts[key]
        assert start is not None
        try:
            self.container.seek(start, stream=self.stream)
        except av.error.FFmpegError as error:
            raise _TableMismatchError from error
        packets = self._needed_packets(table.last_stored(key, run[-1]), {table.pts[i] for i in run}, left_out)
        for frame in self._frames(packets, late_start=True):
            # Shown before the key frame but stored behind it, or of an earlier key frame where the seek went too far.
            if frame.pts is None or frame.pts >= start:
                yield frame

    def _needed_packets(
        self, last: int | None, wanted: set[int | None], left_out: set[int | None]
    ) -> Iterator[av.Packet]:
        """The packets up to the one of a given time, without those of pictures that nobody wants or refers to."""
        layers = layers_of(self.stream.codec_context)
        lowest = 8  # layer of what was left out: a higher layer may refer to it, against our assumption
        for packet in self._packets():
            layer, unused = layers(packet)
            if layer > lowest:
                raise _TableMismatchError
            if unused and packet.pts not in wanted:
                lowest = min(lowest, layer)
                left_out.add(packet.pts)
            else:
                yield packet
            if packet.pts == last:
                break

    def _seconds(self, table: FrameTable, info: VideoInfo, position: int) -> float:
        first, time = table.pts[0], table.pts[position]
        if first is None or time is None:
            return position / info.fps if info.fps else 0.0
        return float((time - first) * self._time_base)


class _Canvas:
    """Turns decoded frames into upright RGB arrays of one size."""

    def __init__(self, frame: VideoFrame, height: int | None, width: int | None) -> None:
        self.transposed, self.flip_vertical, self.flip_horizontal = _orientation(frame)
        shown = (frame.width, frame.height) if self.transposed else (frame.height, frame.width)
        self.height, self.width = height or shown[0], width or shown[1]
        self.scaler = VideoReformatter()

    def draw(self, frame: VideoFrame) -> np.ndarray:
        """(height, width, 3) uint8."""
        stored = (self.width, self.height) if self.transposed else (self.height, self.width)
        rgb = self.scaler.reformat(frame, stored[1], stored[0], "rgb24", interpolation="BICUBIC").to_ndarray()
        if self.transposed:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """(transpose, then flip top to bottom, then flip left to right) out of the display matrix, if there is one."""
    if frame.rotation == 0:  # also spares `side_data`, which does not know every type
        return False, False, False
    data = cast(SideData, frame.side_data.get("DISPLAYMATRIX"))
    # A point (x, y) of the stored frame is shown at (a x + c y, b x + d y), up to a shift.
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if a and d and not (b or c):
        return False, d < 0, a < 0
    if b and c and not (a or d):
        return True, b < 0, c < 0
    return False, False, False


__all__ = ["FrameChoice", "decode", "probe"]
