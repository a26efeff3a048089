"""Which pictures of an MPEG transport stream are complete, read from its packets (ISO/IEC 13818-1, 2.4.3).

A packet carries a counter of 4 bits. FFmpeg takes a jump of it as proof that a picture nearby is damaged. But the
counter also jumps where two recordings were joined, and some muxers write no counter at all. A picture ends with a
packet that is filled up with stuffing bytes, unless it happens to fit. So if a counter jumps between two pictures and
there was stuffing, the first of them is complete, although others may be missing between them. It is complete, too, if
the counter of the table of contents jumps there: then another recording begins.
"""

import bisect
from dataclasses import dataclass, field
from typing import IO

import numpy as np

_SYNC = 0x47
_CONTENTS = 0  # number of the table of contents (PAT)
_STEPS = ((188, 0), (192, 4), (204, 0))  # bytes from packet to packet, and where in it the sync byte is
_CHUNK = 1 << 14  # packets read at a time


@dataclass
class TransportPictures:
    """The pictures of one elementary stream, in the order of the file.

    Args:
        starts: Position in the file of the packet in which each begins, ascending.
        whole: Whether each is complete.
        follows: Whether nothing is missing between each and the one before.
    """

    starts: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    follows: list[bool] = field(default_factory=list)

    def at(self, position: int | None) -> tuple[bool, bool]:
        """`whole` and `follows` of the picture that holds a position of the file; False if there is none."""
        place = bisect.bisect_right(self.starts, -1 if position is None else position) - 1
        return (self.whole[place], self.follows[place]) if place >= 0 else (False, False)


def read_pictures(file: IO[bytes], stream: int) -> TransportPictures:
    """List the pictures of a stream.

    Args:
        file: Any position; it is left at another.
        stream: Number of the elementary stream (PID).
    """
    found = TransportPictures()
    file.seek(0)
    step, sync = next((s for s in _STEPS if _is_aligned(file, 0, *s)), _STEPS[0])
    packets = jumps = 0
    counters: dict[int, int] = {}  # of the stream and of the table of contents
    broken = lost = stuffed = restarted = False  # since the picture has begun
    place = 0
    while len(data := _read(file, place, _CHUNK * step)) >= step:
        table = np.frombuffer(data, np.uint8, len(data) // step * step).reshape(-1, step)[:, sync:]
        aligned = table[:, 0] == _SYNC
        rows = len(table) if aligned.all() else int(aligned.argmin())
        table = table[:rows]
        header = table[:, 1:4].astype(np.int64)
        numbers = (header[:, 0] & 0x1F) << 8 | header[:, 1]
        own = np.flatnonzero((numbers == stream) | (numbers == _CONTENTS))
        begins, filled = (header[own, 0] & 0x40) > 0, _has_stuffing(table[own])
        columns = (own, numbers[own], begins, filled, header[own, 2])
        for row, number, start, full, flags in zip(*(column.tolist() for column in columns), strict=True):
            count, before, has_data = flags & 15, counters.get(number), flags >> 4 & 1
            jump = before is not None and count != (before + has_data) & 15
            counters[number] = count
            if number == _CONTENTS:
                restarted = jump
                continue
            packets, jumps = packets + 1, jumps + jump
            if start:
                if found.starts:
                    found.whole.append(not broken and (stuffed or restarted or not jump))
                found.starts.append(place + row * step)
                found.follows.append(not jump and not lost)
                broken = lost = restarted = False
            else:
                broken = broken or jump
            if has_data:
                stuffed = full
        place += rows * step
        if rows < len(aligned):  # bytes are missing: look for the next packet
            broken = lost = True
            place = _next_aligned(file, place + 1, step, sync)
    if found.starts:
        found.whole.append(not broken and stuffed)  # the end of the file may be missing
    if 2 * jumps > packets:  # no counters, so they tell nothing
        found.whole = found.follows = [True] * len(found.starts)
    return found


def _has_stuffing(packets: np.ndarray) -> np.ndarray:
    """Whether the adaptation field of each packet, uint8 (N, 184 or more), is longer than what it says it holds."""
    has_field = packets[:, 3] & 0x20 > 0
    length, flags = packets[:, 4].astype(np.int64), packets[:, 5]
    used = 1 + 6 * (flags >> 4 & 1).astype(np.int64) + 6 * (flags >> 3 & 1) + (flags >> 2 & 1)
    other = flags & 3 > 0  # private data or an extension, whose length is not looked up
    return has_field & ((length == 0) | ((length > used) & ~other))


def _read(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _is_aligned(file: IO[bytes], place: int, step: int, sync: int) -> bool:
    data = _read(file, place, 3 * step)
    return len(data) == 3 * step and all(data[sync + i * step] == _SYNC for i in range(3))


def _next_aligned(file: IO[bytes], place: int, step: int, sync: int) -> int:
    """The first position from `place` on at which three packets follow each other; the end of the file if there is
    none."""
    while len(data := _read(file, place, _CHUNK * step)) >= 3 * step:
        content = np.frombuffer(data, np.uint8)
        last = len(content) - 2 * step - sync
        runs = np.logical_and.reduce([content[sync + i * step :][:last] == _SYNC for i in range(3)])
        if runs.any():
            return place + int(runs.argmax())
        place += last
    return place + len(data)


__all__ = ["TransportPictures", "read_pictures"]
