"""Exact video frames from any container.

The one decoder of the package, built on PyAV. It guarantees that frame `i` of a result is the frame that a decoder
outputs at position `i` when it decodes the file from start to end. Frame counts and rates in file headers are often
wrong and are never used. Instead, the packets of the stream are listed without decoding them, and their sorted
presentation times form a table of frames (`FrameTable`). The decoder seeks only in containers that find a key frame by
its time, and only if that skips frames. It skips pictures of H.264 and H.265 that are not wanted and that no other
picture refers to. Every decoded frame is compared with the table. At the first difference, the clip is decoded again,
completely and from its start.

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
from .decoding_source import VideoSource, open_source
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

# Containers by whose index FFmpeg seeks exactly. Seeks in MPEG-PS/TS land late; times in AVI are not monotonic.
SEEKABLE_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# VP8 stores frames that are never shown in packets of their own. Only decoding tells them from others.
UNSEEKABLE_CODECS = frozenset({"vp8"})
# With one thread per frame, FFmpeg's VP9 decoder crashes (it calls a null pointer) if it has decoded frames before a
# seek and then meets a damaged key frame.
SLICE_THREADS_ACROSS_SEEKS = frozenset({"vp9"})
READ_SIZE = 1 << 18  # bytes that FFmpeg reads at a time


class _TableMismatchError(Exception):
    """Decoded frames differ from the table: try again in a slower, safer way."""


FrameChoice = Sequence[int] | Callable[[VideoInfo], Sequence[int]] | None


def probe(
    source: VideoSource,
    *,
    limits: VideoLimits = DEFAULT_LIMITS,
    allow_url: bool = False,
) -> VideoInfo:
    """Describe a video without decoding it, except where only decoding can count its frames.

    For arguments and errors see `decode`. A truncated file is described, not refused.
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
    """Decode the frames `indices` of a video, exactly.

    FFmpeg's scaler converts colours and resizes in one step with a bicubic filter, as in the original ALPRO. Quarter
    turns and mirroring that a camera noted in the file are applied, other angles are not. Alpha is dropped, 10-bit
    becomes 8-bit, grey becomes RGB, interlaced frames stay interlaced. Damaged data raise an error if container or
    codec can detect them; VP8, VP9 and some intra-only codecs have no checksums or other means to do so.

    Args:
        source: path, bytes, or binary file object (left open; read from its start). An http(s) URL, downloaded first,
            if `allow_url`. Nothing else is opened, whatever the content refers to.
        indices: frame numbers in any order, repeats allowed; or a function from `VideoInfo` to frame numbers, so that
            the length need not be known beforehand; or `None` for all frames.
        height, width: size of the result in pixels; `None` keeps the size of the first frame requested.
        limits: limits on the cost of a video; one that exceeds them is refused.
        allow_url: whether `source` may be an http(s) URL.
        allow_truncated: decode the readable part of a file that ends early, instead of raising `TruncatedVideoError`.
        table: `Frames.table` of an earlier decode of this file, which saves listing its packets. A table of another
            file is ignored: size and codec are compared first, then every decoded frame.
        threads: threads of FFmpeg; 0 for one per core, 1 when other clips are decoded at the same time.

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
) -> tuple[np.ndarray, list[int], list[float], VideoInfo, FrameTable | None]:
    """`decode` without torch, for processes that only decode.

    Returns:
        The fields of `Frames`: pixels as uint8 (T, height, width, 3), indices, timestamps, info, table.
    """
    if threads < 0:
        raise ValueError(f"threads={threads} must be 0 (one for each core) or more.")
    with _open(source, limits, allow_url, threads) as video:
        for attempt in video.tables(table):
            info = video.info(attempt)
            if info.truncated and not allow_truncated:
                problem = f"the file ends early, after {info.num_frames} readable frames"
                raise TruncatedVideoError(video.name, problem, "Get the whole file, or pass allow_truncated=True")
            try:
                result = video.read(attempt, info, choose(info), height, width)
                certain = not (attempt.counted or video.truncated or video.damaged)
                return *result, attempt if certain else None
            except _TableMismatchError:
                continue
            except CorruptVideoError:
                # A seek may land where the decoder lacks a reference, and intact data then seem damaged.
                if not attempt.seekable:
                    raise
        raise CorruptVideoError(video.name, "two decodes of it give different frames", "Re-encode the file")


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


@contextmanager
def _open(source: VideoSource, limits: VideoLimits, allow_url: bool, threads: int = 0) -> Iterator["_Video"]:
    with (
        open_source(source, limits, allow_url) as (name, file, size),
        closing(_Video(name, file, size, limits, threads)) as video,
    ):
        yield video


# Metadata need not be valid UTF-8, and PyAV before 19 raises an error for that unless told to ignore it.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class _Reader:
    """The bytes of a file without its name, from whose extension FFmpeg would guess the format."""

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
    """An open video, which lists its packets and decodes them from the start or from a key frame.

    Not every container can seek back to its first packet, so each pass over the file opens it again.
    """

    def __init__(self, name: str, file: IO[bytes], size: int, limits: VideoLimits, threads: int) -> None:
        self.name, self.file, self.size, self.limits, self.threads = name, file, size, limits, threads
        self.truncated = ends_early(file, size)
        self.damaged: set[int | None] = set()  # times of packets that the container marks as damaged
        self.container: InputContainer
        self.stream: VideoStream
        self.open()

    def open(self) -> None:
        """Open the file at its start."""
        self.file.seek(0)
        self.head = self.file.read(4096)
        self.file.seek(0)
        # Formats that refer to other files (playlists, sdp, concat) could read local files or reach the network. They
        # get no protocol to open them with, and the callback refuses.
        options = {"protocol_whitelist": ""}
        # PyAV's log calls Python from FFmpeg's threads. Closing a container waits for these threads while it holds the
        # interpreter lock, so it would hang. torchvision 0.24 turns the log on when it is imported.
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
        # Report damaged data; by default FFmpeg conceals them and guesses the missing picture.
        context.options = {"err_detect": "explode+crccheck"}
        if self.limits.max_pixels is not None:
            # Frames may be larger than the header says. Twice the limit, because padding may double small frames.
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
        problem = f"its content has no video or audio format that FFmpeg can read ({error.strerror})"
        return NotAVideoError(self.name, problem, "Check the content of the file; its name does not matter")

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
        """The packets of the stream from the current position on. Adds the times of unreliable ones to `damaged`."""
        damaged = False
        for packet in self._whole_packets():
            # After data that the container marks as damaged, nothing is reliable before the next key frame.
            damaged = packet.is_corrupt or (damaged and not packet.is_keyframe)
            if damaged:
                self.damaged.add(packet.pts)
            yield packet

    def _whole_packets(self) -> Iterator[av.Packet]:
        """All packets except a last one that is cut off."""
        held: av.Packet | None = None  # one packet back, because only the last one may be cut off
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
        """The table of the packets, or `None` if they do not give each frame a time of its own."""
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
        """The table of the frames that a decode of the whole clip outputs."""
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
        """The longest duration allowed, in ticks."""
        return float("inf") if self.limits.max_duration is None else float(self.limits.max_duration / self._time_base)

    def _check_duration(self, ticks: int) -> None:
        self.limits.check("max_duration", float(ticks * self._time_base), self.name, "the duration in seconds is")

    @property
    def _time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 1)

    def info(self, table: FrameTable) -> VideoInfo:
        """Describe the video by its table.

        Raises:
            EmptyVideoError: The table has no frame.
        """
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
            # Matroska writes the names of its tags in capitals
            comment=next((text for tag, text in self.container.metadata.items() if tag.lower() == "comment"), "")[
                :200
            ],
        )

    def _frames(self, packets: Iterator[av.Packet] | None = None, *, late_start: bool = False) -> Iterator[VideoFrame]:
        """Decode packets; by default all from the current position to the end.

        With `late_start`, errors before the first decoded frame are ignored: after a seek, the leading frames of an
        open group refer to frames before it, and the recording of a broadcast starts in the middle of a group.
        """
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
        yield None  # makes the decoder output the frames that it still holds

    def read(
        self, table: FrameTable, info: VideoInfo, chosen: list[int], height: int | None, width: int | None
    ) -> tuple[np.ndarray, list[int], list[float], VideoInfo]:
        """Decode the chosen frames.

        Raises:
            _TableMismatchError: The decoded frames differ from the table.
        """
        unique = sorted(set(chosen))
        canvas: _Canvas | None = None
        for slot, frame in enumerate(self._exact_frames(table, unique)):
            if canvas is None:
                canvas = _Canvas(frame, height, width)
                size = len(chosen) * 3 * canvas.height * canvas.width
                self.limits.check("max_decoded_size", size, self.name, "the size in bytes of the frames requested is")
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
        if len(runs) > 1 and self.stream.codec_context.name in SLICE_THREADS_ACROSS_SEEKS:
            self.stream.codec_context.thread_type = "SLICE"
        for run in runs:
            skipped: set[int | None] = set()  # times of pictures that are not decoded
            if table.seekable:
                position = table.key_before(run[0])
                frames = self._frames_from(table, position, run, skipped)
            else:
                self.container.close()
                self.open()
                frames, position = self._frames(late_start=self._broadcast), 0
            damaged = False
            for target in run:
                while position <= target:
                    frame = next(frames, None)
                    while position < target and table.pts[position] in skipped:
                        position += 1
                    if frame is None or (frame.pts != table.pts[position] and not table.counted):
                        raise _TableMismatchError
                    # A concealed error spreads to the frames predicted from it, up to the next key frame.
                    damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                    position += 1
                assert frame is not None
                if damaged or frame.pts in self.damaged:
                    problem = f"the data of frame {target}, or of one it is predicted from, is damaged"
                    raise CorruptVideoError(self.name, problem, "Re-encode or replace the file")
                yield frame

    def _frames_from(
        self, table: FrameTable, key: int, run: list[int], skipped: set[int | None]
    ) -> Iterator[VideoFrame]:
        """Seek to a key frame and decode what the wanted frames need. Adds times of other pictures to `skipped`."""
        start = table.pts[key]
        assert start is not None
        try:
            self.container.seek(start, stream=self.stream)
        except av.error.FFmpegError as error:
            raise _TableMismatchError from error
        packets = self._needed_packets(table.last_stored(key, run[-1]), {table.pts[i] for i in run}, skipped)
        for frame in self._frames(packets, late_start=True):
            # Earlier frames are stored behind the key frame but shown before it, or the seek landed at an earlier key
            # frame.
            if frame.pts is None or frame.pts >= start:
                yield frame

    def _needed_packets(
        self, last: int | None, wanted: set[int | None], skipped: set[int | None]
    ) -> Iterator[av.Packet]:
        """The packets up to the one at time `last`, without pictures that are neither wanted nor referred to."""
        layers = layers_of(self.stream.codec_context)
        # The headers only promise that no picture of the same layer refers to a skipped one. A picture of a higher
        # layer might, so such a stream is decoded completely. Layers go from 0 to 6.
        lowest = 8
        for packet in self._packets():
            layer, unused = layers(packet)
            if layer > lowest:
                raise _TableMismatchError
            if unused and packet.pts not in wanted:
                lowest = min(lowest, layer)
                skipped.add(packet.pts)
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
    """Converts decoded frames to upright RGB arrays of one size."""

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
    """The steps that turn a frame upright: transpose, then flip top to bottom, then flip left to right."""
    if frame.rotation == 0:  # also avoids `side_data`, which fails on types that PyAV does not know
        return False, False, False
    data = cast(SideData, frame.side_data.get("DISPLAYMATRIX"))
    # In the display matrix, a point (x, y) of the stored frame is shown at (a x + c y, b x + d y), up to a shift.
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if a and d and not (b or c):
        return False, d < 0, a < 0
    if b and c and not (a or d):
        return True, b < 0, c < 0
    return False, False, False


__all__ = ["FrameChoice", "choose_frames", "decode", "decode_to_array", "probe"]
