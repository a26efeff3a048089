"""From a decoded frame to the picture that a player shows: upright, with square pixels, in ordinary RGB."""

from dataclasses import replace
from fractions import Fraction
from typing import cast

import av.error
import av.filter
import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from .decoding_colour import hdr_kind, is_wide, to_ordinary
from .decoding_errors import PYAV_ERRORS, pyav_error, pyav_errors
from .decoding_types import UnsupportedVideoError, VideoInfo

# A pixel more than ten times as wide as high, or the reverse, is taken for an error of the file.
MOST_STRETCHED = 10
# FFmpeg's scaler ends the process when it meets these (grey of floating-point numbers with alpha).
_FATAL_FORMATS = frozenset({"yaf32be", "yaf32le"})
_UNSPECIFIED, _BT2020 = 2, 9  # matrices of colours, ITU-T H.273
_SCALER_STEPS = 4
_SIDE_DATA_TYPES = 64  # more than FFmpeg has


def square_pixels(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """The size that a picture is shown at, without losing lines or columns.

    Args:
        width, height: Pixels as stored.
        ratio: Width of a stored pixel divided by its height; None or 0 if unknown.

    Returns:
        Width and height in square pixels.
    """
    if not ratio or not Fraction(1, MOST_STRETCHED) <= ratio <= MOST_STRETCHED:
        return width, height
    if ratio > 1:
        return round(width * ratio), height
    return width, round(height / ratio)


class Canvas:
    """Converts decoded frames to upright RGB arrays of one size.

    Args:
        name: The input, for messages.
        frame: The first frame; orientation, colours and the size that is not given are read from it.
        height, width: Size of the arrays; None: as shown.
        ratio: Width of a stored pixel divided by its height; None if unknown.

    Raises:
        VideoDecodeError: PyAV cannot read what it needs from the frame.
    """

    def __init__(
        self,
        name: str,
        frame: VideoFrame,
        height: int | None = None,
        width: int | None = None,
        ratio: Fraction | None = None,
    ) -> None:
        self.name = name
        with pyav_errors(name, "read the orientation and colours of its frames"):
            self.transposed, self.flip_vertical, self.flip_horizontal = orientation(frame)
            transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
            # HDR without a matrix of colours has that of BT.2020
            unknown = int(frame.colorspace) == _UNSPECIFIED
        shown = square_pixels(frame.width, frame.height, ratio)
        self.shown_width, self.shown_height = reversed(shown) if self.transposed else shown
        self.height, self.width = height or self.shown_height, width or self.shown_width
        self.hdr, self.wide = hdr_kind(transfer), is_wide(transfer, primaries)
        self.colours = {"src_colorspace": _BT2020} if self.hdr and unknown else {}
        self.scaler = VideoReformatter()

    def describe(self, info: VideoInfo) -> VideoInfo:
        """The facts about a video with those that only a decoded frame tells."""
        return replace(info, width=self.shown_width, height=self.shown_height, hdr=self.hdr)

    def draw(self, frame: VideoFrame) -> np.ndarray:
        """(height, width, 3) uint8."""
        height, width = (self.width, self.height) if self.transposed else (self.height, self.width)
        if self.hdr or self.wide:
            rgb = to_ordinary(self._scaled(frame, height, width, "rgb48le"), self.hdr, self.wide)
        else:
            rgb = self._scaled(frame, height, width, "rgb24")
        if self.transposed:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]

    def _scaled(self, frame: VideoFrame, height: int, width: int, layout: str) -> np.ndarray:
        """(height, width, 3), uint8 or, for rgb48le, uint16.

        The scaler refuses to change a side by too large a factor at once, as extremely long pictures need: then it
        does so in steps.
        """
        if frame.format.name in _FATAL_FORMATS:
            problem = f"FFmpeg cannot convert its format of pixels ({frame.format.name})"
            raise UnsupportedVideoError(self.name, problem, "Re-encode it, for instance to H.264 in mp4")
        refusal: Exception | None = None
        for steps in range(1, _SCALER_STEPS + 1):
            scaled = frame
            try:
                for i in range(1, steps + 1):
                    between = (_between(frame.width, width, i, steps), _between(frame.height, height, i, steps))
                    scaler = self.scaler if steps == 1 else VideoReformatter()
                    options = self.colours if i == 1 else {}
                    scaled = scaler.reformat(scaled, *between, layout, interpolation="BICUBIC", **options)
                return scaled.to_ndarray()
            except PYAV_ERRORS as error:
                refusal = refusal or error
        assert refusal is not None
        action = f"convert its frames ({frame.width} x {frame.height}, {frame.format.name}) to {width} x {height}"
        raise pyav_error(self.name, action, refusal) from refusal


def _between(start: int, end: int, step: int, steps: int) -> int:
    return end if step == steps else max(1, round(start * (end / start) ** (step / steps)))


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """The steps that turn a frame upright: transpose, then flip top to bottom, then flip left to right."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return False, False, False
    # In the display matrix, a point (x, y) of the stored frame is shown at (a x + c y, b x + d y), up to a shift.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if a and d and not (b or c):
        return False, d < 0, a < 0
    if b and c and not (a or d):
        return True, b < 0, c < 0
    return False, False, False


def _display_matrix(frame: VideoFrame) -> bytes | None:
    try:
        data = frame.side_data
    except ValueError:  # it has side data of a type that PyAV does not know, such as EXIF, and cannot list any
        data = _without_unknown(frame).side_data
    found = cast(SideData | None, data.get("DISPLAYMATRIX"))
    return None if found is None else bytes(found)


def _without_unknown(frame: VideoFrame) -> VideoFrame:
    """The frame after FFmpeg's filter `sidedata` has removed the types of side data that PyAV does not know."""
    known = {kind.value for kind in Type}
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    for number in set(range(_SIDE_DATA_TYPES)) - known:
        try:
            step = graph.add("sidedata", f"mode=delete:type={number}")
        except av.error.FFmpegError:  # FFmpeg has no such type
            continue
        last.link_to(step)
        last = step
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    graph.push(frame)
    filtered = graph.pull()
    assert isinstance(filtered, VideoFrame)
    return filtered


__all__ = ["Canvas", "orientation", "square_pixels"]
