"""Clips of the gallery and of visitors: what an upload must be, and its small version for browsers."""

import base64
import io
import shutil
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image

from ..data.isolated_decoder import IsolatedDecoder
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
PREVIEW_SIDE, PREVIEW_FRAMES, PREVIEW_RATE = 240, 240, 10

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
    """A video of the gallery or of a visitor.

    Args:
        id: Unique among the clips that a visitor sees.
        title: Title for people.
        path: The file.
        preview: Data URI of a small H.264 version, which every browser plays.
        poster: Data URI of its middle frame as JPEG.
        mine: Whether the visitor uploaded it.
    """

    id: str
    title: str
    path: Path
    preview: str
    poster: str
    mine: bool = False


@dataclass
class Visit:
    """The uploads of one visitor, which nobody else sees."""

    clips: list[Clip] = field(default_factory=list)
    index: VideoIndex | None = None
    folder: Path | None = None
    uploads: int = 0

    def forget(self) -> None:
        """Delete all uploads."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.clips, self.index, self.folder = [], None, None


def checked_preview(file: Path, name: str, decoder: IsolatedDecoder) -> bytes:
    try:
        info = decoder.probe(file)
        if info.duration > MAX_SECONDS:
            raise DemoError(f"“{name}” lasts {info.duration:.0f} seconds; the limit is {MAX_SECONDS} seconds.")
        if info.width * info.height > MAX_PIXELS:
            raise DemoError(
                f"“{name}” has {info.width} x {info.height} pixels, more than 4K. Upload a smaller version."
            )
        return _preview(file, info, decoder)
    except VideoDecodeError as error:
        problem = PROBLEMS.get(type(error), f"cannot be used: {error.problem}.")
        raise DemoError(f"“{name}” {problem}") from error


def _preview(file: Path, info: VideoInfo, decoder: IsolatedDecoder) -> bytes:
    """A small H.264 version in the original speed, without sound."""
    rate = min(PREVIEW_RATE, PREVIEW_FRAMES / max(info.duration, 1))
    if info.frame_times is None and info.fps is not None:  # more frames than there are would only repeat some
        rate = min(rate, info.fps)
    count = max(1, round(info.duration * rate))
    scale = min(1.0, PREVIEW_SIDE / max(info.width, info.height))
    height, width = (max(16, round(side * scale / 2) * 2) for side in (info.height, info.width))
    indices = info.frames_at([(i + 0.5) / rate for i in range(count)])
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


def poster(video: bytes) -> str:
    return jpeg(decode(video, lambda info: [info.num_frames // 2]).pixels[0])


def jpeg(pixels: torch.Tensor) -> str:
    """A frame, uint8 (3, H, W), as a data URI of a JPEG image."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
