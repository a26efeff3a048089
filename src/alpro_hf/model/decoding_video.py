"""An open video: its packets, its frame table, and exact frames by their positions in that table."""

import bisect
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import IO, Any, NoReturn

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .decoding_bitstream import ends_early, layers_of
from .decoding_errors import PYAV_ERRORS, is_unsupported, pyav_errors, shown
from .decoding_formats import is_animated_webp
from .decoding_index import PacketIndex, read_index
from .decoding_picture import Canvas, square_pixels
from .decoding_source import VideoSource, open_source
from .decoding_table import FrameTable
from .decoding_transport import TransportPictures, read_pictures
from .decoding_types import (
    CorruptVideoError,
    EmptyVideoError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnsupportedVideoError,
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
# Up to so many pixels, passing frames between threads costs as much time as it saves, and more CPU.
ONE_THREAD_PIXELS = 96 * 96
# How far times of frames may be from those of a constant rate: a share of a frame, or seconds, because some containers
# round times to milliseconds.
MOST_JITTER, ROUNDING = 0.1, 0.0011
# Containers that say how long each frame is shown. For others FFmpeg makes it up from the mean rate.
TIMED_FORMATS = frozenset({"mov", "mp4", "gif", "apng"})
# Seconds that the last frame is shown at a variable rate if the file does not say: the mean, but no more than this.
LONGEST_LAST = 1.0


class TableMismatchError(Exception):
    """Decoded frames differ from the table: try again in a slower, safer way."""


@contextmanager
def open_video(source: VideoSource, limits: VideoLimits, allow_url: bool, threads: int = 0) -> Iterator["Video"]:
    """Open a video for reading.

    Raises:
        VideoDecodeError: It is no video, cannot be decoded, or exceeds a limit.
        OSError: The path cannot be read.
    """
    with (
        open_source(source, limits, allow_url) as (name, file, size),
        closing(Video(name, file, size, limits, threads)) as video,
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


class Video:
    """An open video, which lists its packets and decodes them from the start or from a key frame.

    Not every container can seek back to its first packet, so each pass over the file opens it again.
    """

    def __init__(self, name: str, file: IO[bytes], size: int, limits: VideoLimits, threads: int) -> None:
        self.name, self.file, self.size, self.limits, self.threads = name, file, size, limits, threads
        self.truncated = ends_early(file, size)
        self.damaged: set[int | None] = set()  # times of packets that the container marks as damaged
        self._transport: TransportPictures | None = None  # of a transport stream with such marks
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
        with pyav_errors(self.name, "read its header"):
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
        try:
            with pyav_errors(self.name, "read its header"):
                self._choose_stream()
        except BaseException:  # nobody else knows of the container yet
            self.close()
            raise

    def _choose_stream(self) -> None:
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        whole = streams and all(stream.codec_context is not None for stream in streams)
        if self.truncated and not whole:
            raise self._without_index()
        if not streams:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "none"
            problem = f"there is no video stream in it (streams: {kinds})"
            raise NoVideoStreamError(self.name, problem, "Pass a file with moving pictures")
        best = self.container.streams.best("video")
        self.stream = next((s for s in streams if s is best), streams[0])
        context = self.stream.codec_context
        if context is None:
            raise UnsupportedVideoError(self.name, "FFmpeg has no decoder for its codec", "Re-encode it to H.264")
        pixels = context.width * context.height
        self.limits.check("max_pixels", pixels, self.name, "the number of pixels of a frame is")
        # Report damaged data; by default FFmpeg conceals them and guesses the missing picture.
        context.options = {"err_detect": "explode+crccheck"}
        if self.limits.max_pixels is not None:
            # Frames may be larger than the header says. Twice the limit, because padding may double small frames.
            context.options = {**context.options, "max_pixels": str(2 * self.limits.max_pixels)}
        context.thread_type = "AUTO"
        context.thread_count = self.threads or int(pixels <= ONE_THREAD_PIXELS)  # 0: one for each core

    def close(self) -> None:
        self.container.close()

    def _unreadable(self, error: av.error.FFmpegError) -> VideoDecodeError:
        head = self.head
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return self._without_index()
        if head.lstrip().startswith((b"#EXTM3U", b"ffconcat", b"v=0")) or b"<MPD" in head:
            problem = "it is a playlist, which only points to other files"
            return NotAVideoError(self.name, problem, "Pass the video itself")
        problem = f"its content has no video or audio format that FFmpeg can read ({shown(error)})"
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
        indexed = self.index_table()
        if indexed is not None:
            yield indexed
            self.container.close()
            self.open()
        table = self.packet_table()
        if table is not None:
            if table != indexed:
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
        damaged, transport = False, "mpegts" in self._formats
        for packet in self._whole_packets():
            # After data that the container marks as damaged, nothing is reliable before the next key frame.
            whole, follows = self._is_whole(packet) if transport or packet.is_corrupt else (True, True)
            damaged = not whole or ((damaged or not follows) and not packet.is_keyframe)
            if damaged:
                self.damaged.add(packet.pts)
            yield packet

    def _is_whole(self, packet: av.Packet) -> tuple[bool, bool]:
        """Whether a packet is complete, and whether no packet is missing before it, as far as the container tells."""
        if "mpegts" not in self._formats:
            return not packet.is_corrupt, True
        # FFmpeg marks a picture near the damaged one, so from the first mark on all of them are looked up
        if self._transport is None and not packet.is_corrupt:
            return True, True
        return self._pictures().at(packet.pos)

    def _pictures(self) -> TransportPictures:
        if self._transport is None:
            place = self.file.tell()
            self._transport = read_pictures(self.file, self.stream.id)
            self.file.seek(place)  # FFmpeg reads on from here
        return self._transport

    def _whole_packets(self) -> Iterator[av.Packet]:
        """All packets except a last one that is cut off."""
        held: av.Packet | None = None  # one packet back, because only the last one may be cut off
        with pyav_errors(self.name, "read its packets"):
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size == 0 and packet.dts is None:  # PyAV's flushing packet, at the end
                        break
                    if held is not None:
                        yield held
                    held = packet
            except av.error.FFmpegError:
                self.truncated = True
        if held is not None and held.is_corrupt and not self._is_whole(held)[0]:
            self.truncated = True
        elif held is not None:
            yield held

    def packet_table(self) -> FrameTable | None:
        """The table of the packets, or `None` if they do not give each frame a time of its own."""
        times, is_key = array("q"), bytearray()
        timed, longest, last, last_ticks = True, self._longest, 0, 0
        for packet in self._packets():
            if packet.size == 0 or packet.is_discard:
                continue
            pts = packet.pts
            if pts is None:
                timed = False
                continue
            if not times or pts > last:
                last, last_ticks = pts, packet.duration or 0
            times.append(pts)
            is_key.append(packet.is_keyframe)
            if abs(pts - times[0]) > longest:
                self._check_duration(abs(pts - times[0]))
        if not timed:
            return None
        if not TIMED_FORMATS & self._formats:
            last_ticks = 0
        return FrameTable.of_packets(
            np.array(times, np.int64), np.array(is_key, bool), self._finds_keys, self._origin, last_ticks
        )

    def index_table(self) -> FrameTable | None:
        """The table of the packets by the index of the file, or `None` where the packets must be listed."""
        if self.truncated or not self._finds_keys or "mp4" not in self._formats:
            return None
        index = read_index(self.file, self.size, self.container, self.stream)
        if index is None or not index.saves_time:
            return None
        table = self._checked_table(index)
        if table is None:  # as if nothing had been read
            self.damaged.clear()
            self.truncated = False
            self.container.close()
            self.open()
        return table

    def _checked_table(self, index: PacketIndex) -> FrameTable | None:
        """The table of an index whose first packet, and all from the last key frame on, are as the index says.

        Raises:
            VideoTooLargeError: It is longer than allowed.
        """
        first = next(self._packets(), None)
        if first is None or first.pts is None:
            return None
        index = index.starting_at(first.pts)
        try:
            self.container.seek(int(index.times[index.last_key]), stream=self.stream)
        except PYAV_ERRORS:
            return None
        tail = [(one.pts, one.is_keyframe, one.is_discard, one.duration or 0) for one in self._packets()]
        if not index.ends_with([one[:3] for one in tail]):
            return None
        shown = ~index.is_discard
        times = index.times[shown]
        far = np.abs(times - times[0])
        if (far > self._longest).any():
            self._check_duration(int(far[(far > self._longest).argmax()]))
        last_ticks = tail[index.last_shown - len(shown)][3]
        return FrameTable.of_packets(times, index.is_key[shown], True, self._origin, last_ticks)

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
    def _finds_keys(self) -> bool:
        """Whether the container finds a key frame by its time."""
        return bool(SEEKABLE_FORMATS & self._formats) and self.stream.codec_context.name not in UNSEEKABLE_CODECS

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
        ticks = self._ticks(table)
        with pyav_errors(self.name, "describe its video stream"):
            if n > 1 and ticks is not None:
                fps = float((n - 1) / (int(ticks[-1]) * self._time_base))
            else:
                fps = float(self.stream.average_rate or 0)
            context = self.stream.codec_context
            width, height = square_pixels(context.width, context.height, self._pixel_ratio)
            codec, container = context.codec.canonical_name, self.container.format.name
        duration, times = n / fps if fps else 0.0, None
        if n > 1 and ticks is not None:
            last = float(int(ticks[-1]) * self._time_base)
            seconds = ticks * float(self._time_base)
            if np.abs(seconds - np.arange(n) / fps).max() > max(MOST_JITTER / fps, ROUNDING):
                times = tuple(seconds.tolist())
                duration = last + min(1 / fps, LONGEST_LAST)
            if table.last_ticks:
                duration = last + float(table.last_ticks * self._time_base)
        return VideoInfo(
            source=self.name,
            num_frames=n,
            fps=fps or None,
            duration=duration,
            width=width,
            height=height,
            codec=codec,
            container=container,
            truncated=self.truncated,
            comment=self.comment,
            frame_times=times,
        )

    @property
    def comment(self) -> str:
        # Matroska writes the names of its tags in capitals
        tags = self.container.metadata.items()
        return next((text for tag, text in tags if tag.lower() == "comment"), "")[:200]

    def _ticks(self, table: FrameTable) -> np.ndarray | None:
        """Times of the frames after the first, int64 (frames,); None if they are unknown or do not ascend.

        They do not where recordings were joined that each begin at time 0.
        """
        if None in table.pts:
            return None
        ticks = np.array(table.pts, np.int64)
        return ticks - ticks[0] if (np.diff(ticks) > 0).all() else None

    @property
    def _pixel_ratio(self) -> Fraction | None:
        return self.stream.sample_aspect_ratio

    def shown_info(self, table: FrameTable) -> VideoInfo:
        """`info` with what only a decoded frame tells: rotation and high dynamic range.

        Raises:
            VideoDecodeError: No frame can be decoded.
        """
        info = self.info(table)
        self.close()
        self.open()
        failure: VideoDecodeError | None = None
        for packet in self._then_flush(self._packets()):
            try:
                frames = self._decoded(packet)
            except CorruptVideoError as error:  # a later frame may be sound
                failure = failure or error
                continue
            if frames:
                return Canvas(self.name, frames[0], ratio=self._pixel_ratio).describe(info)
        problem = "its video stream holds no frame that can be decoded"
        raise failure or EmptyVideoError(self.name, problem, "Get the file again")

    def _frames(self, packets: Iterator[av.Packet] | None = None, *, late_start: bool = False) -> Iterator[VideoFrame]:
        """Decode packets; by default all from the current position to the end.

        With `late_start`, errors before the first decoded frame are ignored: after a seek, the leading frames of an
        open group refer to frames before it, and the recording of a broadcast starts in the middle of a group.
        """
        started = not late_start
        for packet in self._then_flush(packets or self._packets()):
            try:
                frames = self._decoded(packet)
            except CorruptVideoError:
                if not started and packet is not None:
                    continue
                raise
            for frame in frames:
                started = True
                yield frame

    def _decoded(self, packet: av.Packet | None) -> list[VideoFrame]:
        """The frames that the decoder outputs for a packet; None for those that it still holds."""
        with pyav_errors(self.name, "decode it"):
            try:
                return self.stream.decode(packet)
            except av.error.FFmpegError as error:
                raise self._undecodable(error) from error

    def _undecodable(self, error: av.error.FFmpegError) -> VideoDecodeError:
        if is_animated_webp(self.head):
            problem = "it is an animated WebP, for which FFmpeg has no decoder"
            return UnsupportedVideoError(self.name, problem, "Convert it, for instance to GIF or mp4")
        if is_unsupported(error) or not self.stream.codec_context.width:
            problem = f"FFmpeg cannot decode its kind of {self.stream.codec_context.name} ({shown(error)})"
            return UnsupportedVideoError(self.name, problem, "Re-encode it, for instance to H.264 in mp4")
        return CorruptVideoError(self.name, f"its data is damaged ({shown(error)})", "Re-encode or replace the file")

    @staticmethod
    def _then_flush(packets: Iterator[av.Packet]) -> Iterator[av.Packet | None]:
        yield from packets
        yield None  # makes the decoder output the frames that it still holds

    def read(
        self, table: FrameTable, info: VideoInfo, chosen: list[int], height: int | None, width: int | None
    ) -> tuple[np.ndarray, list[int], list[float], VideoInfo]:
        """Decode the chosen frames.

        Raises:
            TableMismatchError: The decoded frames differ from the table.
        """
        unique = sorted(set(chosen))
        canvas: Canvas | None = None
        position_seconds = self._clock(table, info)
        for slot, frame in enumerate(self._exact_frames(table, unique)):
            if canvas is None:
                canvas = Canvas(self.name, frame, height, width, self._pixel_ratio)
                size = len(chosen) * 3 * canvas.height * canvas.width
                self.limits.check("max_decoded_size", size, self.name, "the size in bytes of the frames requested is")
                stack = np.empty((len(unique), canvas.height, canvas.width, 3), np.uint8)
                info = canvas.describe(info)
            stack[slot] = canvas.draw(frame)
        if chosen != unique:
            stack = stack[[bisect.bisect_left(unique, i) for i in chosen]]
        return stack, chosen, [position_seconds(i) for i in chosen], info

    def read_parts(
        self,
        table: FrameTable,
        info: VideoInfo,
        chosen: Sequence[int],
        height: int | None,
        width: int | None,
        chunk: int,
    ) -> Iterator[tuple[np.ndarray, list[int], list[float], VideoInfo]]:
        """Decode ascending positions in one pass, a few at a time; the parts are like the result of `read`.

        Raises:
            TableMismatchError: The decoded frames differ from the table.
        """
        canvas: Canvas | None = None
        position_seconds = self._clock(table, info)
        pictures: list[np.ndarray] = []
        first = 0  # of the part, in `chosen`
        for frame in self._exact_frames(table, list(chosen)):
            if canvas is None:
                canvas = Canvas(self.name, frame, height, width, self._pixel_ratio)
                size = min(chunk, len(chosen)) * 3 * canvas.height * canvas.width
                self.limits.check("max_decoded_size", size, self.name, "the size in bytes of the frames decoded is")
                info = canvas.describe(info)
            pictures.append(canvas.draw(frame))
            if len(pictures) == chunk or first + len(pictures) == len(chosen):
                part = list(chosen[first : first + len(pictures)])
                yield np.stack(pictures), part, [position_seconds(i) for i in part], info
                first += len(pictures)
                pictures = []

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
                        raise TableMismatchError
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
        except PYAV_ERRORS as error:
            raise TableMismatchError from error
        last = table.last_stored(key, run[-1])
        packets = self._needed_packets(start, last, {table.pts[i] for i in run}, skipped)
        for frame in self._frames(packets, late_start=True):
            # Earlier frames are stored behind the key frame but shown before it, or the seek landed at an earlier key
            # frame.
            if frame.pts is None or frame.pts >= start:
                yield frame

    def _needed_packets(
        self, start: int, last: int | None, wanted: set[int | None], skipped: set[int | None]
    ) -> Iterator[av.Packet]:
        """The packets up to the one at time `last`, without pictures that are neither wanted nor referred to.

        Raises:
            TableMismatchError: No picture can be decoded from the one at time `start` on, whatever an index says.
        """
        layers = layers_of(self.stream.codec_context)
        # The headers only promise that no picture of the same layer refers to a skipped one. A picture of a higher
        # layer might, so such a stream is decoded completely. Layers go from 0 to 6.
        lowest = 8
        for packet in self._packets():
            if packet.pts == start and not packet.is_keyframe:
                raise TableMismatchError
            layer, unused = layers(packet)
            if layer > lowest:
                raise TableMismatchError
            if unused and packet.pts not in wanted:
                lowest = min(lowest, layer)
                skipped.add(packet.pts)
            else:
                yield packet
            if packet.pts == last:
                break

    def _clock(self, table: FrameTable, info: VideoInfo) -> Callable[[int], float]:
        """A function from a position to its seconds after the first frame."""
        ticks = self._ticks(table)
        if ticks is None:
            return lambda position: position / info.fps if info.fps else 0.0
        return lambda position: float(int(ticks[position]) * self._time_base)


__all__ = ["TableMismatchError", "Video", "open_video"]
