"""Facts read from the bytes of a video without decoding: is the file complete, which pictures are never referred to.

Sources: the box structure of ISO/IEC 14496-12, the elements of Matroska (RFC 9559), and the unit headers of H.264
(ITU-T H.264, 7.3.1) and H.265 (ITU-T H.265, 7.3.1.2).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

import av
from av.video.codeccontext import VideoCodecContext


def ends_early(file: IO[bytes], size: int) -> bool:
    """Whether an mp4 or Matroska file announces more bytes of pictures, or of their index, than it has.

    Other containers announce no size; False for them.
    """
    file.seek(0)
    head = file.read(4096)
    if head[4:8] == b"ftyp":
        offset, length = 0, 0
        while offset + 16 <= size:
            file.seek(offset)
            box = file.read(16)
            length = int.from_bytes(box[:4], "big")
            if length == 1:  # a 64-bit length follows the type
                length = int.from_bytes(box[8:], "big")
            if length < 8:  # 0: up to the end of the file; else not a box
                break
            if box[4:8] in (b"mdat", b"moov", b"moof") and offset + length > size:
                return True
            offset += length
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        before, segment, rest = head.partition(b"\x18\x53\x80\x67")  # the element that holds all others
        if segment and rest:
            width = 9 - rest[0].bit_length()  # the leading zero bits of a number encode its length in bytes
            unknown = (1 << 7 * width) - 1  # all ones: a live recording did not know its length
            length = int.from_bytes(rest[:width], "big") & unknown
            return length != unknown and len(before) + len(segment) + width + length > size
    return False


def layers_of(context: VideoCodecContext) -> Callable[[av.Packet], tuple[int, bool]]:
    """A function from a packet to its temporal layer, and whether no picture of the same layer refers to it.

    Such a picture can be skipped if it is not wanted. For codecs other than H.264 and H.265, and for streams with
    start codes instead of lengths, the function returns (0, False): nothing is skipped.
    """
    # Version 1 of the decoder configuration record (avcC, hvcC) says that units start with their length, and how many
    # bytes that has; extradata of other streams starts with 0.
    head = bytes(context.extradata or b"")
    if context.name == "h264" and len(head) > 6 and head[0] == 1:
        return partial(_h264_layer, (head[4] & 3) + 1)
    if context.name == "hevc" and len(head) > 22 and head[0] == 1:
        return partial(_hevc_layer, (head[21] & 3) + 1)
    return lambda packet: (0, False)


def _units(packet: av.Packet, length_size: int) -> Iterator[tuple[int, int]]:
    """The first two bytes of each unit of coded data.

    (255, 255) at the end if the lengths do not add up to the packet: no valid header, so that nothing is skipped.
    """
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
        elif not 6 <= kind <= 12:  # not a message or parameter set: a partition, or another view
            # that may refer to this picture
            return 0, False
    return 0, unused


def _hevc_layer(length_size: int, packet: av.Packet) -> tuple[int, bool]:
    layer, unused = 0, False
    for first, second in _units(packet, length_size):
        kind = first >> 1 & 63
        if kind < 32:  # a slice
            layer = (second & 7) - 1
            if kind > 8 or kind % 2 or first & 1 or second >> 3:  # referred to, or not of the base view
                return layer, False
            unused = True
        elif kind > 40:
            return layer, False
    return layer, unused
