"""Exact video frames from any container.

One decoder for the whole package, on PyAV. What it promises: `indices[k]` of the result is the frame that comes
`indices[k]`-th out of the decoder when the file is decoded from its first frame to its last. Frame counts and rates in
file headers are often wrong, so they are never used: the packets of the stream are listed (without decoding them), and
their sorted presentation times are the index of the clip. Seeking happens only in containers whose index can be relied
on and only when it skips something. Pictures of H.264 and H.265 that no other picture is predicted from are left out
unless they are wanted. Every frame that comes out is checked against the index; at the first disagreement the clip is
decoded again from its start, whole.

    frames = decode("clip.mp4", lambda info: [0, info.num_frames // 2, info.num_frames - 1], height=224, width=224)
    frames.pixels            # torch.uint8 (3, 3, 224, 224)
"""

import bisect
import io
import os
import tempfile
import urllib.request
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

if TYPE_CHECKING:
    import torch  # takes longer to import than a clip to decode: processes that only decode do without

VideoSource = str | os.PathLike[str] | bytes | IO[bytes]

# Containers with an index that FFmpeg seeks by exactly: seeks in MPEG-PS/TS land late, times in AVI are not monotonic.
SEEKABLE_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
# VP8 stores frames that are never shown as packets of their own, which only decoding tells apart.
UNSEEKABLE_CODECS = frozenset({"vp8"})
# A seek empties the pipeline of decoder threads, so it has to skip at least this many frames to pay.
MIN_SKIPPED_FRAMES = 2
READ_SIZE = 1 << 18  # bytes that FFmpeg asks for at a time


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


class _TableMismatchError(Exception):
    """Decoded frames disagree with the index table: try again in a slower, safer way."""


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
    """

    pixels: "torch.Tensor"
    indices: list[int]
    timestamps: list[float]
    info: VideoInfo

    @property
    def repeated(self) -> bool:
        """Whether a frame occurs more than once, as it must in a clip shorter than the frames asked for."""
        return len(set(self.indices)) < len(self.indices)


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

    Returns:
        `Frames`, with `pixels` of shape (len(indices), 3, height, width).

    Raises:
        VideoDecodeError: one of its subclasses, naming the input; see each for its meaning.
        IndexError: a frame number outside the video.
        OSError: the path cannot be read.
    """
    import torch

    choose = partial(_choose, indices)
    pixels, chosen, timestamps, info = read(source, choose, height, width, limits, allow_url, allow_truncated)
    return Frames(torch.from_numpy(pixels).permute(0, 3, 1, 2), chosen, timestamps, info)


def read(
    source: VideoSource,
    choose: Callable[[VideoInfo], list[int]],
    height: int | None,
    width: int | None,
    limits: VideoLimits,
    allow_url: bool,
    allow_truncated: bool,
) -> tuple[np.ndarray, list[int], list[float], VideoInfo]:
    """What `decode` makes `Frames` of; the pixels are uint8 (T, height, width, 3)."""
    with _open(source, limits, allow_url) as video:
        for table in video.tables():
            info = video.info(table)
            if info.truncated and not allow_truncated:
                problem = f"the file ends early, after {info.num_frames} readable frames"
                raise TruncatedVideoError(video.name, problem, "Get the whole file, or pass allow_truncated=True")
            try:
                return video.read(table, info, choose(info), height, width)
            except _TableMismatchError:
                continue
            except CorruptVideoError:
                if not table.seekable:  # after a seek, data may only seem damaged
                    raise
        raise CorruptVideoError(video.name, "two decodes of it give different frames", "Re-encode the file")


def _choose(indices: FrameChoice, info: VideoInfo) -> list[int]:
    if indices is None:
        return list(range(info.num_frames))
    chosen = [int(i) for i in (indices(info) if callable(indices) else indices)]
    for i in chosen:
        if not 0 <= i < info.num_frames:
            raise IndexError(f"{info.source}: frame {i} was asked for, and the last frame is {info.num_frames - 1}.")
    if not chosen:
        raise ValueError(f"{info.source}: no frame was asked for. Pass at least one index, or None for all frames.")
    return chosen


@dataclass(frozen=True)
class _Table:
    """Frames in order of presentation: their times, their places in the file, and which of them are key frames."""

    pts: Sequence[int | None]
    ranks: Sequence[int]
    keys: list[int]
    seekable: bool
    counted: bool  # made by decoding, so decoded frames agree with it by position

    def key_before(self, position: int) -> int:
        return self.keys[bisect.bisect_right(self.keys, position) - 1]

    def runs(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Ascending positions in groups, each to be decoded in one go: between groups, a seek pays."""
        run: list[int] = []
        for target in wanted:
            if run and self.seekable and self.key_before(target) - run[-1] > MIN_SKIPPED_FRAMES:
                yield run
                run = []
            run.append(target)
        yield run

    def last_stored(self, first: int, last: int) -> int | None:
        """Time of the frame that is stored last of those at the positions `first` to `last`."""
        return self.pts[max(range(first, last + 1), key=self.ranks.__getitem__)]


@contextmanager
def _open(source: VideoSource, limits: VideoLimits, allow_url: bool) -> Iterator["_Video"]:
    name = _name(source)
    with ExitStack() as stack:
        file: IO[bytes]
        if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
            if not allow_url:
                problem = "web addresses are not opened by default"
                raise VideoDecodeError(name, problem, "Download the file, or pass allow_url=True")
            file = stack.enter_context(_download(source, limits))
        elif isinstance(source, bytes | bytearray | memoryview):
            file = io.BytesIO(source)
        else:
            if isinstance(source, str | os.PathLike):
                file = stack.enter_context(open(source, "rb"))
            else:
                file = _checked_file(source)
            if not (hasattr(file, "seekable") and file.seekable()):
                file = stack.enter_context(_copy(file, name, limits))
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise EmptyVideoError(name, "the file has zero bytes", "Get the file again")
        limits.check("max_file_size", size, name, "the file size in bytes is")
        yield stack.enter_context(closing(_Video(name, file, size, limits)))


def _name(source: VideoSource) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


def _checked_file(source: object) -> IO[bytes]:
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"A video is a path, bytes or a binary file object, not {type(source).__name__}. "
            "Arrays, tensors and lists of images go to AlproVideoProcessor."
        )
    return cast(IO[bytes], source)


def _copy(stream: IO[bytes], name: str, limits: VideoLimits) -> IO[bytes]:
    """Everything in a stream that cannot seek, in memory or on disk if large."""
    copy = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=64 * 1024**2))  # noqa: SIM115 (the caller closes it)
    try:
        while chunk := stream.read(1024**2):
            copy.write(chunk)
            limits.check("max_file_size", copy.tell(), name, "bytes received so far are")
    except BaseException:
        copy.close()
        raise
    return copy


def _download(url: str, limits: VideoLimits) -> IO[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return _copy(response, url, limits)
    except OSError as error:
        raise VideoDecodeError(url, f"the download failed ({error})", "Check the address and the network") from error


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

    def __init__(self, name: str, file: IO[bytes], size: int, limits: VideoLimits) -> None:
        self.name, self.file, self.size, self.limits = name, file, size, limits
        self.truncated = _ends_early(file, size)
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
        context.thread_count = 0

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

    def tables(self) -> Iterator[_Table]:
        """Index tables to try, from the fastest to the safest."""
        table = self._packet_table()
        if table is not None:
            yield table
            if table.seekable:
                yield replace(table, seekable=False)
        yield self._decoded_table()

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

    def _packet_table(self) -> _Table | None:
        """The table as the packets tell it, or `None` where they do not give each frame a time of its own."""
        times, is_key = array("q"), bytearray()
        timed = True
        longest = float("inf") if self.limits.max_duration is None else self.limits.max_duration / self._time_base
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
        ranks = np.argsort(np.array(times), kind="stable")
        pts = np.array(times)[ranks]
        if not timed or not times or (np.diff(pts) == 0).any():
            return None
        keys = np.flatnonzero(np.array(is_key)[ranks]).tolist()
        seekable = bool(SEEKABLE_FORMATS & self._formats) and self.stream.codec_context.name not in UNSEEKABLE_CODECS
        compact = array("q", pts.tobytes()), array("q", ranks.tobytes())
        # Frames shown before the first key frame come out of some decoders and not of others: only decoding tells.
        return _Table(*compact, keys, seekable and keys[:1] == [0], counted=False)

    def _decoded_table(self) -> _Table:
        """The table as a decode of the whole clip tells it."""
        self.container.close()
        self.open()
        pts: list[int | None] = []
        for frame in self._frames(late_start=self._broadcast):
            if frame.pts is not None and pts and pts[0] is not None:
                self._check_duration(frame.pts - pts[0])
            pts.append(frame.pts)
        return _Table(pts, range(len(pts)), [], seekable=False, counted=True)

    @property
    def _formats(self) -> set[str]:
        return set(self.container.format.name.split(","))

    @property
    def _broadcast(self) -> bool:
        return not SEEKABLE_FORMATS & self._formats

    def _check_duration(self, ticks: int) -> None:
        self.limits.check("max_duration", float(ticks * self._time_base), self.name, "the duration in seconds is")

    @property
    def _time_base(self) -> Fraction:
        return self.stream.time_base or Fraction(1, 1)

    def info(self, table: _Table) -> VideoInfo:
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
        self, table: _Table, info: VideoInfo, chosen: list[int], height: int | None, width: int | None
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

    def _exact_frames(self, table: _Table, wanted: list[int]) -> Iterator[VideoFrame]:
        """The frames at ascending positions of the table."""
        for run in table.runs(wanted):
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

    def _frames_from(self, table: _Table, key: int, run: list[int], left_out: set[int | None]) -> Iterator[VideoFrame]:
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
        layers = _layers(self.stream.codec_context)
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

    def _seconds(self, table: _Table, info: VideoInfo, position: int) -> float:
        first, time = table.pts[0], table.pts[position]
        if first is None or time is None:
            return position / info.fps if info.fps else 0.0
        return float((time - first) * self._time_base)


def _ends_early(file: IO[bytes], size: int) -> bool:
    """Whether an mp4 or Matroska file announces more bytes of pictures, or of their index, than it has."""
    file.seek(0)
    head = file.read(4096)
    if head[4:8] == b"ftyp":
        offset, length = 0, 0
        while offset + 16 <= size:
            file.seek(offset)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:
                length = int.from_bytes(box[8:], "big")
            if length < 8:  # up to the end of the file, or not a box
                break
            if box[4:8] in (b"mdat", b"moov", b"moof") and offset + length > size:
                return True
            offset += length
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        before, segment, rest = head.partition(b"\x18\x53\x80\x67")  # the element that holds everything else
        if segment and rest:
            width = 9 - rest[0].bit_length()  # the leading zero bits of a number tell how many bytes it has
            unknown = (1 << 7 * width) - 1  # all ones, as a live recording writes
            length = int.from_bytes(rest[:width], "big") & unknown
            return length != unknown and len(before) + len(segment) + width + length > size
    return False


def _layers(context: VideoCodecContext) -> Callable[[av.Packet], tuple[int, bool]]:
    """A function that tells of a packet its temporal layer, and whether no picture of the same layer refers to it.

    Where the coded data do not tell (other codecs than H.264 and H.265, streams with start codes) it is (0, False).
    """
    head = bytes(context.extradata or b"")
    if context.name == "h264" and len(head) > 6 and head[0] == 1:
        return partial(_h264_layer, (head[4] & 3) + 1)
    if context.name == "hevc" and len(head) > 22 and head[0] == 1:
        return partial(_hevc_layer, (head[21] & 3) + 1)
    return lambda packet: (0, False)


def _units(packet: av.Packet, length_size: int) -> Iterator[tuple[int, int]]:
    """The first two bytes of each unit of coded data; of data that is not made of such units (255, 255) at the end."""
    data = memoryview(packet)
    place = 0
    while place + length_size + 2 <= len(data):
        length = int.from_bytes(data[place : place + length_size], "big")
        yield data[place + length_size], data[place + length_size + 1]
        place += length_size + length
    if place != len(data):
        yield 255, 255


def _h264_layer(length_size: int, packet: av.Packet) -> tuple[int, bool]:
    unused = False
    for first, _ in _units(packet, length_size):
        kind, referred = first & 31, first & 0x60
        if kind == 1:  # a slice
            if referred:
                return 0, False
            unused = True
        elif not 6 <= kind <= 12:  # neither a message nor a parameter set, such as a part of another view
            return 0, False
    return 0, unused


def _hevc_layer(length_size: int, packet: av.Packet) -> tuple[int, bool]:
    layer, unused = 0, False
    for first, second in _units(packet, length_size):
        kind = first >> 1 & 63
        if kind < 32:  # a slice
            layer = (second & 7) - 1
            if kind > 8 or kind % 2 or first & 1 or second >> 3:  # used by others, or not of the base view
                return layer, False
            unused = True
        elif kind > 40:
            return layer, False
    return layer, unused


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
