"""Write a moment of a video as an mp4 of its own: copied from the key frame before it, or encoded exactly."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.stream import Disposition
from av.video.frame import VideoFrame

from ..files import write_whole
from ..model.decoding import decode, decode_stream, probe
from ..model.decoding_errors import PYAV_ERRORS, pyav_errors, shown
from ..model.decoding_table import FrameTable
from ..model.decoding_types import VideoDecodeError, VideoInfo
from .spans import Span

_TICK = Fraction(1, 90000)  # seconds; the frame times of all usual rates are multiples of it
_SOUND_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)  # of AAC
_INTERLEAVED = 10.0  # seconds by which sound may lie behind the pictures in a file
_ROUNDING = 2e-5  # seconds, about two ticks


class CutError(VideoDecodeError):
    """A moment cannot be cut out in the way that was asked for."""


@dataclass(frozen=True)
class CutClip:
    """A clip that was written.

    Args:
        path: The file.
        start, end: Seconds of the source that it shows. A copy starts at a key frame, so at or before the moment.
    """

    path: Path
    start: float
    end: float


def cut_clip(
    source: str | Path,
    output: str | Path,
    span: Span | None = None,
    *,
    exact: bool = False,
    overwrite: bool = False,
) -> CutClip:
    """Write a moment of a video as an mp4, with its sound.

    A copy is quick and changes no frame: it holds the packets from the key frame before the moment to its end. With
    `exact`, the frames that are shown in [start, end) are encoded anew, as H.264 with AAC, and no others. The clip
    then lasts as long as the moment.

    Args:
        source: The video.
        output: The file to write, complete or not at all.
        span: The moment; None: the whole video.
        exact: Encode instead of copying.
        overwrite: Replace an existing file.

    Raises:
        CutError: `output` exists or is the source; or the packets of this video cannot be copied into an mp4.
        SpanError: The moment does not lie in the video.
        VideoDecodeError: The video is damaged.
        OSError: A file cannot be read or written.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        if not overwrite:
            raise CutError(str(output), "the file exists already", "Name another one, or delete it first")
        if output.samefile(source):
            raise CutError(str(output), "it is the video itself", "Name another file to write")
    info = probe(source)
    if not info.duration:
        raise CutError(str(source), "it is a single picture, which has no moments", "Name a video")
    moment = Span(0.0, info.duration) if span is None else span.within(info.duration, str(source))
    written = []
    try:
        write_whole(output, lambda path: written.append((_encode if exact else _copy)(source, path, moment, info)))
    finally:
        output.with_name(f".{output.name}.partial").unlink(missing_ok=True)
    [(start, end)] = written
    return CutClip(output, start, end)


def _frames_of(info: VideoInfo, moment: Span) -> tuple[int, int]:
    """The first and the last frame that are shown in [start, end)."""
    first, last = info.frames_at([moment.start, moment.end])
    if first + 1 < info.num_frames and _time_of(info, first + 1) <= moment.start + _ROUNDING:
        first += 1  # the start was written with fewer digits than the time of this frame has
    if last > first and _time_of(info, last) >= moment.end - _ROUNDING:
        last -= 1  # it only begins then
    return first, last


def _time_of(info: VideoInfo, frame: int) -> float:
    """Seconds at which a frame begins; behind the last one, the end of the video."""
    if frame >= info.num_frames:
        return info.duration
    if info.frame_times is not None:
        return info.frame_times[frame]
    return frame / info.fps if info.fps else 0.0


def _needs_encoding(source: Path, problem: str) -> CutError:
    return CutError(str(source), f"it cannot be copied: {problem}", "Encode the moment with exact=True (--exact)")


def _pictures_of(container: Any) -> Any:
    """The stream that is decoded: the first that is not the cover of an album."""
    streams = container.streams.video
    return next((one for one in streams if not one.disposition & Disposition.attached_pic), streams[0])


# ------------------------------------------------------------------------------------------------------------- copying


def _copy(source: Path, path: Path, moment: Span, info: VideoInfo) -> tuple[float, float]:
    """Write the packets of a moment; the seconds of the source that they show."""
    first, last = _frames_of(info, moment)
    table = decode(source, [first]).table
    if table is None or table.counted or not table.keys or table.keys[0] > first:
        raise _needs_encoding(source, "its frames have no times of their own")
    position = table.key_before(first)
    stored = _stored_times(table, position, last)
    with pyav_errors(str(source), "read it"), av.open(str(source)) as container, av.open(path, "w", "mp4") as clip:
        pictures = _pictures_of(container)
        copies: dict[int, Any] = {}
        for stream in (pictures, *container.streams.audio[:1]):
            name = stream.codec_context.codec.canonical_name
            if name not in clip.supported_codecs:
                raise _needs_encoding(source, f"an mp4 cannot hold its codec {name}")
            copies[stream.index] = clip.add_stream_from_template(stream)
        begin = stored[0] * pictures.time_base
        end = begin + Fraction(_time_of(info, last + 1) - _time_of(info, position))
        if table.seekable:
            container.seek(stored[0], stream=pictures)
        # Times of decoding are made anew, because not every demuxer knows them after a seek. They ascend, and lie as
        # little before the times of presentation as the order of the pictures allows.
        ascending = sorted(stored)
        delay = max(one - other for one, other in zip(ascending, stored, strict=True))
        order = iter(ascending)
        for packet in _packets(container, pictures, list(copies), stored, (float(begin), float(end))):
            shift = round(begin / packet.time_base)
            if packet.stream.index == pictures.index:
                packet.dts = next(order) - delay - shift
            else:
                packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.pts -= shift
            packet.stream = copies[packet.stream.index]
            try:
                clip.mux(packet)
            except PYAV_ERRORS as error:
                raise _needs_encoding(source, f"an mp4 cannot hold its packets ({shown(error)})") from error
    return _time_of(info, position), _time_of(info, last + 1)


def _stored_times(table: FrameTable, position: int, last: int) -> list[int]:
    """Times of the pictures to copy, in the order of the file, in ticks of the stream; the key frame is the first.

    Pictures of the moment may refer to some behind its end; they are among them.
    """
    ranks, times = table.ranks, table.pts
    final = max(ranks[position : last + 1])
    # pictures that are shown before the key frame, and stored behind it, refer to others before it
    needed = [place for place in range(position, len(ranks)) if ranks[position] <= ranks[place] <= final]
    return [time for place in sorted(needed, key=ranks.__getitem__) if (time := times[place]) is not None]


def _packets(
    container: Any, pictures: Any, streams: list[int], stored: list[int], seconds: tuple[float, float]
) -> Iterator[Any]:
    """The packets of a moment in the order of the file.

    Args:
        container, pictures: The opened file, near the key frame, and its stream of pictures.
        streams: Numbers of the streams to read.
        stored: Times of the pictures.
        seconds: Start and end of the sound, in the time of the file.
    """
    waiting, (start, end) = dict.fromkeys(stored), seconds
    begun = rewound = False
    sound: list[Any] = []
    for packet in container.demux(streams):
        if packet.pts is None:  # the mark of the end
            continue
        time = float(packet.pts * packet.time_base)
        if packet.stream.index != pictures.index:
            if start - _ROUNDING <= time < end - _ROUNDING:
                sound.append(packet)
            elif not waiting and time >= end:
                break
        elif not begun and packet.pts > stored[0] and not rewound:  # the container led us behind the key frame
            rewound, sound = True, []
            container.seek(container.start_time or 0)
        elif packet.pts in waiting and (begun or packet.pts == stored[0]):
            begun = True
            del waiting[packet.pts]
            yield packet
        if not waiting and (len(streams) == 1 or time > end + _INTERLEAVED):
            break
        if begun:
            yield from sound
            sound = []
    yield from sound
    if waiting:
        raise CutError(container.name, "it cannot be copied: some of its packets are not found again", "Use --exact")


# ------------------------------------------------------------------------------------------------------------ encoding


def _encode(source: Path, path: Path, moment: Span, info: VideoInfo) -> tuple[float, float]:
    """Encode the frames and the sound of a moment; its seconds."""
    first, last = _frames_of(info, moment)
    height, width = (max(2, side - side % 2) for side in (info.height, info.width))  # H.264 in 4:2:0 has even sides
    begins = [max(0, round((_time_of(info, i) - moment.start) / _TICK)) for i in range(first, last + 1)]
    begins.append(max(begins[-1] + 1, round((moment.end - moment.start) / _TICK)))
    lasts = {begin: following - begin for begin, following in pairwise(begins)}
    with pyav_errors(str(source), "encode it"), av.open(path, "w", "mp4") as clip:
        rate = Fraction(info.fps or 25).limit_denominator(1001)
        pictures: Any = clip.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "fast"})
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        pictures.codec_context.time_base = _TICK

        def write(frame: VideoFrame | None) -> None:
            for packet in pictures.encode(frame):
                packet.duration = lasts[packet.pts]
                clip.mux(packet)

        with closing(_Sound(source, clip, moment)) as sound:
            parts = decode_stream(source, range(first, last + 1), height=height, width=width, chunk=16)
            begin = iter(begins)
            for part in parts:
                if part.indices[0] == first:
                    begin = iter(begins)
                for pixels in part.pixels.permute(0, 2, 3, 1).contiguous().numpy():
                    frame = VideoFrame.from_ndarray(pixels, "rgb24")
                    frame.pts, frame.time_base = next(begin), _TICK
                    write(frame)
                sound.write_until((frame.pts or 0) * float(_TICK))
            write(None)
            sound.write_until(float("inf"))
    return moment.start, moment.end


class _Sound:
    """Encodes the sound of a moment beside its pictures, as AAC; nothing if the video has none."""

    def __init__(self, source: Path, clip: Any, moment: Span) -> None:
        self.clip, self.moment = clip, moment
        self.container: Any = av.open(str(source))
        self.frames: Iterator[tuple[float, AudioFrame]] = iter(())
        self.stream: Any = None
        self.next: tuple[float, AudioFrame] | None = None
        heard = next(iter(self.container.streams.audio), None)
        if heard is not None:
            given = heard.codec_context.sample_rate
            self.rate = given if given in _SOUND_RATES else 48000
            self.layout = "mono" if heard.codec_context.channels == 1 else "stereo"
            self.stream = clip.add_stream("aac", rate=self.rate, layout=self.layout)
            self.frames = self._decoded(heard, _origin(source, self.container))

    def _decoded(self, heard: Any, origin: float) -> Iterator[tuple[float, AudioFrame]]:
        """Seconds after the start of the moment, and samples in it."""
        length = self.moment.end - self.moment.start
        start = origin + self.moment.start
        resampler = av.AudioResampler("fltp", self.layout, self.rate)
        if start > 1:  # codecs of sound need some packets before the first sample
            self.container.seek(int((start - 1) / heard.time_base), stream=heard)
        for packet in self.container.demux(heard):
            for decoded in packet.decode():
                for frame in resampler.resample(decoded):
                    assert frame.pts is not None and frame.time_base is not None
                    time = float(frame.pts * frame.time_base) - start
                    if time >= length:
                        return
                    samples = frame.to_ndarray().astype(np.float32, copy=False)
                    skipped = max(0, round(-time * self.rate))
                    kept = samples[:, skipped : round((length - time) * self.rate)]
                    if kept.shape[1]:
                        part = AudioFrame.from_ndarray(np.ascontiguousarray(kept), "fltp", self.layout)
                        part.sample_rate, part.time_base = self.rate, Fraction(1, self.rate)
                        part.pts = round((time + skipped / self.rate) * self.rate)
                        yield part.pts / self.rate, part

    def write_until(self, seconds: float) -> None:
        """Encode the sound up to a time; to the end, if it is infinite."""
        while (following := self.next or next(self.frames, None)) is not None:
            self.next = following
            if following[0] > seconds:
                return
            self.clip.mux(self.stream.encode(following[1]))
            self.next = None
        if seconds == float("inf") and self.stream is not None:
            self.clip.mux(self.stream.encode(None))

    def close(self) -> None:
        self.container.close()


def _origin(source: Path, container: Any) -> float:
    """Seconds of the file at which its first frame is shown."""
    pictures = _pictures_of(container)
    table = decode(source, [0]).table
    first = None if table is None else table.pts[0]
    first = (pictures.start_time or 0) if first is None else first
    return float(first * pictures.time_base)


__all__ = ["CutClip", "CutError", "cut_clip"]
