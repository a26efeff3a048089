"""Clips of the gallery and of visitors: what an upload must be, and its small version for browsers."""

import base64
import io
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image

from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span
from ..inference.video_index import VideoIndex
from ..model.decoding import decode
from ..model.decoding_types import (
    CorruptVideoError,
    DecoderFailedError,
    EmptyVideoError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnsupportedVideoError,
    VideoDecodeError,
    VideoInfo,
    VideoTooLargeError,
)

MAX_CLIPS = 8  # per visitor
MAX_MEGABYTES = 20
MAX_SECONDS = 60
MAX_PIXELS = 4096 * 2304
PREVIEW_SIDE, PREVIEW_FRAMES, PREVIEW_RATE = 480, 240, 10
POSTER_SIDE = 320
SHOWN_AS = (".mp4", ".jpg")  # what is made of an upload, beside it
OTHERS_TURN = 10.0  # seconds after a file arrived in which another visitor may be given the same

# messages for people who know nothing of containers and codecs
PROBLEMS: dict[type[VideoDecodeError], str] = {
    NotAVideoError: "is not a video. Upload an mp4, mov, mkv, webm or avi file.",
    NoVideoStreamError: "contains no moving pictures, only sound or a still image.",
    EmptyVideoError: "is empty.",
    TruncatedVideoError: "is incomplete. Upload the whole file.",
    CorruptVideoError: "is damaged and cannot be read.",
    UnsupportedVideoError: "is of a kind that cannot be decoded here. Upload an mp4, mov, mkv, webm or avi file.",
    DecoderFailedError: "cannot be decoded here: it takes too long or is damaged.",
    VideoTooLargeError: "is too large to be decoded here.",
}


class DemoError(ValueError):
    """A request of a visitor cannot be fulfilled; the message says why, in plain words."""


@dataclass(frozen=True)
class Clip:
    """A video of the gallery or of a visitor, or a moment of one.

    Args:
        id: Unique among the clips that a visitor sees.
        title: Title for people.
        path: The file.
        video: Address of a video that the browser plays.
        poster: Address of a picture of it.
        start, end: Seconds of the moment in the file, and in `video`; None for a whole file.
        fallback: Address of a small H.264 version of the clip, for browsers that cannot play `video`; may be empty.
        mine: Whether the visitor uploaded it.
        strange: Whether a model of a closed world cannot know it.
    """

    id: str
    title: str
    path: Path
    video: str
    poster: str
    start: float | None = None
    end: float | None = None
    fallback: str = ""
    mine: bool = False
    strange: bool = False

    @property
    def span(self) -> Span | None:
        """The moment; None for a whole file."""
        return None if self.start is None or self.end is None else Span(self.start, self.end)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that is served of it."""
        return tuple(filter(None, (self.video, self.poster, self.fallback)))


@dataclass
class Visit:
    """The uploads of one visitor, which nobody else sees.

    Args:
        clips: In the order of their uploads.
        index: Their vectors; None: there are none.
        folder: Copies of the files.
        uploads: How many there were, with those that were removed.
        received: Files that gradio wrote for the page, and when. They are deleted with it, others when they are old.
        on_forget: Called with the clips that are removed.
        left: Whether the visitor has left: what is added from then on is to be deleted at once.
        lock: Held while `index` is changed or searched, since a page may do both at once.
    """

    clips: list[Clip] = field(default_factory=list)
    index: VideoIndex | None = None
    folder: Path | None = None
    uploads: int = 0
    received: dict[Path, int] = field(default_factory=dict)
    on_forget: Callable[[Sequence[Clip]], None] = lambda clips: None
    left: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def receive(self, files: Iterable[Path]) -> None:
        """Note files that gradio wrote for the page."""
        for file in files:
            with suppress(FileNotFoundError):  # an error for whoever reads it
                self.received[file] = file.stat().st_mtime_ns

    def remove(self, clip: Clip) -> None:
        """Delete one upload."""
        with self.lock:
            self.clips.remove(clip)
            if self.index is not None:
                self.index.remove([clip.path])
        for file in (clip.path, *(clip.path.with_suffix(suffix) for suffix in SHOWN_AS)):
            file.unlink(missing_ok=True)
        self.on_forget([clip])

    def forget(self) -> None:
        """Delete all uploads."""
        # taken over first: a file may be added at the same time
        clips, folder, received = self.clips, self.folder, self.received
        self.clips, self.index, self.folder, self.received = [], None, None, {}
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for file, arrived in list(received.items()):
            discard(file, arrived)
        self.on_forget(clips)

    def leave(self) -> None:
        """Delete all uploads, also those that are being added."""
        self.left = True
        self.forget()


def discard(file: Path, arrived: int) -> None:
    """Delete a file that gradio wrote for one visitor.

    Gradio keeps equal files of equal names once. If the same arrived again, it belongs to another visitor. If it
    arrived just now, it may have been for somebody who is not given it yet: then it is deleted a little later.

    Args:
        file: The file.
        arrived: Its modification time in nanoseconds, when it was given to the visitor.
    """
    with suppress(FileNotFoundError):
        if (written := file.stat().st_mtime_ns) != arrived:
            return
        if abs(time.time() - written / 1e9) >= OTHERS_TURN:
            file.unlink()
            return
        later = threading.Timer(OTHERS_TURN, discard, (file, arrived))
        later.daemon = True  # gradio deletes all files when the page ends
        later.start()


def checked_preview(file: Path, name: str, decoder: IsolatedDecoder) -> bytes:
    try:
        info = decoder.probe(file)
        if info.num_frames < 2 or not info.duration:
            raise DemoError(f"“{name}” is a still picture, whatever its name. Upload a video.")
        if info.duration > MAX_SECONDS:
            raise DemoError(f"“{name}” lasts {info.duration:.0f} seconds; the limit is {MAX_SECONDS} seconds.")
        if info.width * info.height > MAX_PIXELS:
            raise DemoError(
                f"“{name}” has {info.width} x {info.height} pixels, more than 4K. Upload a smaller version."
            )
        return preview(file, decoder, info)
    except VideoDecodeError as error:
        problem = PROBLEMS.get(type(error), f"cannot be used: {error.problem}.")
        raise DemoError(f"“{name}” {problem}") from error


def preview(file: Path, decoder: IsolatedDecoder, info: VideoInfo | None = None, span: Span | None = None) -> bytes:
    """A small H.264 version in the original speed, without sound.

    Args:
        file: The video.
        decoder: Reads it in a process of its own.
        info: What `decoder.probe` says of it; None: it is asked.
        span: The moment; None: the whole file.

    Raises:
        VideoDecodeError: The file cannot be read.
        SpanError: The moment does not lie in it.
    """
    info = info or decoder.probe(file)
    span = Span(0.0, info.duration) if span is None else span.within(info.duration, file.name)
    length = span.end - span.start
    rate = min(PREVIEW_RATE, PREVIEW_FRAMES / max(length, 1))
    if info.frame_times is None and info.fps is not None:  # more frames than there are would only repeat some
        rate = min(rate, info.fps)
    count = max(1, round(length * rate))
    scale = min(1.0, PREVIEW_SIDE / max(info.width, info.height))
    height, width = (max(16, round(side * scale / 2) * 2) for side in (info.height, info.width))
    indices = info.frames_at([span.start + (i + 0.5) / rate for i in range(count)])
    frames = decoder.decode(file, indices, height=height, width=width).pixels
    result = io.BytesIO()
    with av.open(result, "w", format="mp4") as container:
        options = {"crf": "26", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            picture = pixels.permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return result.getvalue()


def poster(video: bytes) -> bytes:
    """The middle frame of a preview as JPEG."""
    return jpeg(decode(video, lambda info: [info.num_frames // 2]).pixels[0])


def poster_of(file: Path, decoder: IsolatedDecoder, span: Span | None) -> bytes:
    """The middle frame of a moment of a file as JPEG.

    Raises:
        VideoDecodeError: The file cannot be read.
    """
    info = decoder.probe(file)
    middle = (span.start + span.end) / 2 if span else info.duration / 2
    scale = min(1.0, POSTER_SIDE / max(info.width, info.height))
    height, width = (max(1, round(side * scale)) for side in (info.height, info.width))
    return jpeg(decoder.decode(file, info.frames_at([middle]), height=height, width=width).pixels[0])


def jpeg(pixels: torch.Tensor) -> bytes:
    """A frame, uint8 (3, H, W), as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85)
    return file.getvalue()


def data_uri(kind: str, data: bytes) -> str:
    """Content as the address of itself, for pictures that are shown once."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
