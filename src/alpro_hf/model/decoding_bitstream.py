"""What the bytes of a video tell without decoding it: whether the file is whole, which pictures nobody refers to."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

import av
from av.video.codeccontext import VideoCodecContext


def ends_early(file: IO[bytes], size: int) -> bool:
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


def layers_of(context: VideoCodecContext) -> Callable[[av.Packet], tuple[int, bool]]:
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
