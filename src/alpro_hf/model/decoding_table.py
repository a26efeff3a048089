"""Frame tables: the time and place of every frame of a video, so that a decoder can seek to any of them.

Making a table takes the index of the file, or a pass over its packets without decoding them. A stored table, about one
byte for each second of video, saves that when the file is decoded again:

    frames = decode("lecture.mp4", [0, 1000])
    kept = frames.table.to_bytes()
    frames = decode("lecture.mp4", [2000, 3000], table=FrameTable.from_bytes(kept))
"""

import bisect
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# A seek empties the pipeline of decoder threads, so it pays off only if it skips at least this many.
MIN_SKIPPED_FRAMES = 2
# Bytes of an unpacked table, enough for some days of video. Without a limit, a few bytes could unpack to gigabytes.
_LARGEST = 1 << 27


@dataclass(frozen=True)
class FrameTable:
    """The frames of a video in order of presentation.

    Args:
        pts: Time of each frame in ticks of the stream; None if the decoder gives a frame none.
        ranks: Position of each frame in the file, counted in packets.
        keys: Positions, in order of presentation, of the frames at which decoding can start.
        seekable: Whether the container finds a key frame by its time.
        counted: Whether the table was made by decoding, so that frames are identified by position instead of time.
            Such a table is not stored.
        origin: The file it belongs to: size in bytes, codec, seconds of a tick.
        last_ticks: How long the last frame is shown, in ticks; 0 if the file does not say.
    """

    pts: Sequence[int | None]
    ranks: Sequence[int]
    keys: Sequence[int]
    seekable: bool
    counted: bool
    origin: tuple[int, str, Fraction]
    last_ticks: int = 0

    @classmethod
    def of_packets(
        cls,
        times: np.ndarray,
        is_key: np.ndarray,
        seekable: bool,
        origin: tuple[int, str, Fraction],
        last_ticks: int = 0,
    ) -> "FrameTable | None":
        """The table of packets in the order of the file.

        Args:
            times: int64 (packets,), presentation times in ticks.
            is_key: bool (packets,), whether decoding can start there.
            seekable, origin, last_ticks: As in the class.

        Returns:
            None if two packets have the same time, or there is none.
        """
        ranks = np.argsort(times, kind="stable")
        pts = times[ranks]
        if not len(pts) or (np.diff(pts) == 0).any():
            return None
        keys = np.flatnonzero(is_key[ranks]).tolist()
        compact = array("q", pts.tobytes()), array("q", ranks.astype(np.int64).tobytes())
        # Some decoders output the frames shown before the first key frame and others do not: only decoding tells.
        return cls(*compact, keys, seekable and keys[:1] == [0], False, origin, last_ticks)

    def to_bytes(self) -> bytes:
        """Pack the table for `from_bytes`.

        Raises:
            ValueError: The table was made by decoding; its frames can only be found by decoding the whole file.
        """
        if self.counted:
            raise ValueError("A table that was made by decoding saves no time and cannot be stored.")
        ranks = np.array(self.ranks, np.int64)
        times, is_key = np.empty(len(ranks), np.int64), np.zeros(len(ranks), bool)
        times[ranks] = np.array(self.pts, np.int64)
        is_key[ranks[np.array(self.keys, np.int64)]] = True
        size, codec, tick = self.origin
        facts = [size, codec, tick.numerator, tick.denominator, self.seekable, len(ranks), self.last_ticks]
        head = json.dumps(facts).encode()
        steps = np.diff(times, prepend=np.int64(0))  # differences, because most are equal and so compress well
        return zlib.compress(b"\n".join([head, steps.astype("<i8").tobytes() + np.packbits(is_key).tobytes()]))

    @classmethod
    def from_bytes(cls, kept: bytes) -> "FrameTable":
        """Unpack a table of `to_bytes`. Whether it belongs to a file is checked when it is used.

        Raises:
            ValueError: The bytes are not a table.
        """
        try:
            unfolder = zlib.decompressobj()
            head, _, body = unfolder.decompress(kept, _LARGEST).partition(b"\n")
            # tables of earlier versions end before the duration of the last frame
            size, codec, numerator, denominator, seekable, frames, last_ticks = [*json.loads(head), 0][:7]
            numbers = [size, numerator, denominator, frames, last_ticks]
            if not (all(type(number) is int for number in numbers) and type(codec) is str and type(seekable) is bool):
                raise ValueError(f"its head is {head!r}")
            packed = -(-frames // 8)
            if not unfolder.eof or unfolder.unused_data or len(body) != 8 * frames + packed:
                raise ValueError("it is cut off or longer than it says")
            times = np.frombuffer(body, "<i8", frames).cumsum(dtype=np.int64)
            is_key = np.unpackbits(np.frombuffer(body, np.uint8, packed, 8 * frames), count=frames).astype(bool)
            table = cls.of_packets(
                times, is_key, seekable, (size, codec, Fraction(numerator, denominator)), max(last_ticks, 0)
            )
            if table is None:
                raise ValueError("its frames have no times of their own")
            return table
        except (zlib.error, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"These {len(kept)} bytes are not a frame table ({error}).") from error

    def key_before(self, position: int) -> int:
        """Position of the key frame from which to decode the frame at `position`."""
        return self.keys[bisect.bisect_right(self.keys, position) - 1]

    def runs(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Split ascending positions into groups that are decoded without a seek; between groups, a seek saves time."""
        run: list[int] = []
        for target in wanted:
            if run and self.seekable and self.key_before(target) - run[-1] > MIN_SKIPPED_FRAMES:
                yield run
                run = []
            run.append(target)
        yield run

    def last_stored(self, first: int, last: int) -> int | None:
        """Time of the frame stored last in the file among those at the positions `first` to `last`."""
        return self.pts[max(range(first, last + 1), key=self.ranks.__getitem__)]


__all__ = ["FrameTable"]
