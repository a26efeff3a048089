"""Times of all packets of an mp4 or mov file from its index, without reading the packets.

FFmpeg's index of a stream has an entry for each packet: its decoding time, whether decoding can start there, its place
and size. The presentation time is that time plus an offset, which FFmpeg keeps to itself. The offsets are in the box
`ctts` of the file (ISO/IEC 14496-12, 8.6.1.3).

Only plain files are read in this way: one index, no fragments, at most one edit, one entry for each packet that the
boxes announce, and all of them inside the file. Whatever else a file has, its packets must be listed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

# Files with fewer packets are listed as fast as their index is read and checked.
FEWEST_PACKETS = 1000
# Bytes of the box that holds the index; days of video need less.
_LARGEST = 1 << 27
# Boxes of a plain file. FFmpeg also takes parts of an index from others, such as those of fragments.
_PLAIN = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid"})
# What is read of a track: box -> the box it belongs in.
_BOXES = {
    b"tkhd": b"trak",
    b"edts": b"trak",
    b"elst": b"edts",
    b"mdia": b"trak",
    b"minf": b"mdia",
    b"stbl": b"minf",
    b"stts": b"stbl",
    b"ctts": b"stbl",
    b"stsz": b"stbl",
    b"stz2": b"stbl",
}
_PARENTS = frozenset(_BOXES.values())
# Boxes that FFmpeg reads wherever they are, so that none may be elsewhere, and those of files with fragments.
_WATCHED = (b"trak", b"tkhd", b"elst", b"stts", b"ctts", b"stsz", b"stz2", b"moof", b"mvex", b"trex")
_SIZES = frozenset({b"stsz", b"stz2"})  # two forms of one table
# FFmpeg takes larger offsets for damage and then ignores all of them.
_FARTHEST = 1 << 28
_KEY, _DISCARD = 1, 2  # flags of an entry


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a stream in the order of the file.

    Args:
        times: int64 (packets,), presentation times in ticks of the stream, all of them late or early by one number.
        is_key: bool (packets,), whether decoding can start there, as the index says.
        is_discard: bool (packets,), whether the packet is decoded but not shown.
    """

    times: np.ndarray
    is_key: np.ndarray
    is_discard: np.ndarray

    @property
    def last_key(self) -> int:
        """Position of the last key frame; 0 if there is none."""
        return int(np.flatnonzero(self.is_key).max(initial=0))

    @property
    def last_shown(self) -> int:
        """Position of the packet that is shown last."""
        return int(np.where(self.is_discard, self.times.min(), self.times).argmax())

    def starting_at(self, pts: int) -> "PacketIndex":
        """The index with the true times, by that of the first packet."""
        return replace(self, times=self.times + (pts - int(self.times[0])))

    def ends_with(self, packets: list[tuple[int | None, bool, bool]]) -> bool:
        """Whether these are its last packets: the last key frame, what is shown last, and all that follow them.

        Args:
            packets: Time, whether it is a key frame, and whether it is discarded, of each.
        """
        place = len(self.times) - len(packets)
        if not 0 <= place <= min(self.last_key, self.last_shown) or self.is_discard[self.last_shown]:
            return False
        columns = (column[place:].tolist() for column in (self.times, self.is_key, self.is_discard))
        return packets == list(zip(*columns, strict=True))

    @property
    def saves_time(self) -> bool:
        """Whether the packets from the last key frame on are less than half, so that checking them is worth it."""
        return 2 * self.last_key > len(self.is_key)


def read_index(file: IO[bytes], size: int, container: InputContainer, stream: VideoStream) -> PacketIndex | None:
    """The packets of a stream; None if the index does not tell all of them.

    Args:
        file: The file that the container is read from; its position is restored.
        size: Of the file, in bytes.
        container, stream: The open file and one of its streams.
    """
    # PyAV 15 does not show the index
    entries = getattr(stream, "index_entries", ())
    if len(entries) < FEWEST_PACKETS:
        return None
    place = file.tell()
    offsets = _composition_offsets(file, size, stream.id, len(entries))
    file.seek(place)  # FFmpeg reads on from here
    if offsets is None:
        return None
    columns = _columns(stream)
    # Packets of all streams are read on the way, and a listing ends at the first that is not in the file.
    others = (_columns(other) for other in container.streams if other is not stream)
    if not (columns[:, 2] > 0).all() or not all(_inside(one, size) for one in (columns, *others)):
        return None
    flags = columns[:, 1]
    return PacketIndex(columns[:, 0] + offsets, flags & _KEY > 0, flags & _DISCARD > 0)


def _columns(stream: Stream) -> np.ndarray:
    """Decoding time, flags, size and position of each entry, int64 (entries, 4)."""
    rows = ((entry.timestamp, entry.flags, entry.size, entry.pos) for entry in stream.index_entries)
    return np.fromiter(rows, np.dtype((np.int64, 4)), len(stream.index_entries))


def _inside(columns: np.ndarray, size: int) -> bool:
    lengths, places = columns[:, 2], columns[:, 3]
    return bool((places >= 0).all() and (lengths >= 0).all() and (places <= size - lengths).all())


class _UnusualError(Exception):
    """The boxes are not those of a plain file."""


def _composition_offsets(file: IO[bytes], size: int, track: int, packets: int) -> np.ndarray | None:
    """What presentation adds to the decoding time of each packet of a track, in ticks, int64 (packets,)."""
    try:
        boxes = _tracks(_movie(file, size))
        return _offsets(boxes[track], packets)
    except (_UnusualError, KeyError):
        return None


def _movie(file: IO[bytes], size: int) -> bytes:
    """The content of the only box `moov`."""
    place, found = 0, None
    while place < size:
        file.seek(place)
        head = file.read(16)
        length, start = int.from_bytes(head[:4], "big"), 8
        if length == 1:  # a 64-bit length follows the type
            length, start = int.from_bytes(head[8:], "big"), 16
        if head[4:8] not in _PLAIN or length < start or place + length > size:
            raise _UnusualError
        if head[4:8] == b"moov":
            if found is not None or length > _LARGEST:
                raise _UnusualError
            found = place + start, length - start
        place += length
    if found is None:
        raise _UnusualError
    file.seek(found[0])
    movie = file.read(found[1])
    if len(movie) != found[1]:
        raise _UnusualError
    return movie


def _inner(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each box in a box."""
    place = 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if length < 8 or place + length > len(content):
            raise _UnusualError
        yield bytes(content[place + 4 : place + 8]), content[place + 8 : place + length]
        place += length


def _tracks(movie: bytes) -> dict[int, dict[bytes, memoryview]]:
    """Number of each track -> its boxes without those that only hold others."""
    tracks: dict[int, dict[bytes, memoryview]] = {}
    seen = dict.fromkeys(_WATCHED, 0)
    for kind, content in _inner(memoryview(movie)):
        if kind != b"trak":
            continue
        seen[kind] += 1
        boxes: dict[bytes, memoryview] = {}
        waiting = [(kind, content)]
        while waiting:
            parent, within = waiting.pop()
            for name, inside in _inner(within):
                if _BOXES.get(name) != parent:
                    continue
                if name in boxes:
                    raise _UnusualError
                boxes[name] = inside
                if name in seen:
                    seen[name] += 1
                if name in _PARENTS:
                    waiting.append((name, inside))
        if boxes.keys() >= _SIZES:
            raise _UnusualError
        header = boxes.get(b"tkhd", memoryview(b""))
        if len(header) < 24:
            raise _UnusualError
        place = 20 if header[0] == 1 else 12  # after two times of 64 or 32 bits
        number = int.from_bytes(header[place : place + 4], "big")
        if number in tracks:
            raise _UnusualError
        tracks[number] = boxes
    if any(movie.count(name) != times for name, times in seen.items()):
        raise _UnusualError
    return tracks


def _offsets(boxes: dict[bytes, memoryview], packets: int) -> np.ndarray:
    sizes = boxes.get(b"stsz", boxes.get(b"stz2"))
    if sizes is None or int.from_bytes(sizes[8:12], "big") != packets:
        raise _UnusualError  # FFmpeg's index has more or fewer entries, for instance of several edits
    if _edits(boxes.get(b"elst")) > 1:
        raise _UnusualError  # an edit may repeat what another one shows
    durations = _pairs(boxes.get(b"stts"))
    if durations[:, 0].sum() != packets:
        raise _UnusualError
    shifts = _pairs(boxes.get(b"ctts"))
    if not len(shifts):
        return np.zeros(packets, np.int64)
    counts, offsets = shifts[:, 0], shifts[:, 1].astype(np.uint32).view(np.int32).astype(np.int64)
    if counts.sum() != packets or not counts.all() or (np.abs(offsets) > _FARTHEST).any():
        raise _UnusualError
    return np.repeat(offsets, counts)


def _pairs(box: memoryview | None) -> np.ndarray:
    """The pairs of a table in a box, int64 (pairs, 2); none if there is no box."""
    if box is None:
        return np.zeros((0, 2), np.int64)
    count = int.from_bytes(box[4:8], "big")
    if len(box) < 8 + 8 * count:
        raise _UnusualError
    return np.frombuffer(box, ">u4", 2 * count, 8).reshape(-1, 2).astype(np.int64)


def _edits(box: memoryview | None) -> int:
    """How many edits show pictures; others are pauses."""
    if box is None:
        return 0
    count, wide = int.from_bytes(box[4:8], "big"), box[:1] == b"\x01"
    step, width = (20, 8) if wide else (12, 4)
    if len(box) < 8 + step * count:
        raise _UnusualError
    starts = [box[8 + i * step + width :][:width] for i in range(count)]
    return sum(bytes(start) != b"\xff" * width for start in starts)


__all__ = ["FEWEST_PACKETS", "PacketIndex", "read_index"]
