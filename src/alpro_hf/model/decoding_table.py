"""Where the frames of a video are: what a decoder has to know to go straight to one of them.

It takes a pass over the packets of the file, without decoding them, to make such a table. One that is kept, in about a
byte a second of video, saves the next decode of the same file that pass:

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

# A seek empties the pipeline of decoder threads, so it has to skip at least this many frames to pay.
MIN_SKIPPED_FRAMES = 2
_LARGEST = 1 << 27  # bytes that a kept table may unfold to: those of some days of video


@dataclass(frozen=True)
class FrameTable:
    """The frames of a video in order of presentation.

    Args:
        pts: Time of each, in ticks of the stream; None where a decoder gives a frame none.
        ranks: Place of each in the file, counted in packets.
        keys: Positions of those from which decoding can start.
        seekable: Whether the container finds a key frame by its time.
        counted: Made by decoding, so that decoded frames agree with it by position. Such a table is not kept.
        origin: What it belongs to: bytes of the file, codec, seconds of a tick.
    """

    pts: Sequence[int | None]
    ranks: Sequence[int]
    keys: Sequence[int]
    seekable: bool
    counted: bool
    origin: tuple[int, str, Fraction]

    @classmethod
    def of_packets(
        cls, times: np.ndarray, is_key: np.ndarray, seekable: bool, origin: tuple[int, str, Fraction]
    ) -> "FrameTable | None":
        """The table that the packets tell, int64 times and flags in the order of the file.

        None: they do not give each frame a time of its own.
        """
        ranks = np.argsort(times, kind="stable")
        pts = times[ranks]
        if not len(pts) or (np.diff(pts) == 0).any():
            return None
        keys = np.flatnonzero(is_key[ranks]).tolist()
        compact = array("q", pts.tobytes()), array("q", ranks.astype(np.int64).tobytes())
        # Frames shown before the first key frame come out of some decoders and not of others: only decoding tells.
        return cls(*compact, keys, seekable and keys[:1] == [0], False, origin)

    def to_bytes(self) -> bytes:
        """A compact copy, for `from_bytes`.

        Raises:
            ValueError: It was made by decoding, and only a decode of the whole file finds its frames.
        """
        if self.counted:
            raise ValueError("A table that was counted by decoding saves nothing and is not kept.")
        ranks = np.array(self.ranks, np.int64)
        times, is_key = np.empty(len(ranks), np.int64), np.zeros(len(ranks), bool)
        times[ranks] = np.array(self.pts, np.int64)
        is_key[ranks[np.array(self.keys, np.int64)]] = True
        size, codec, tick = self.origin
        head = json.dumps([size, codec, tick.numerator, tick.denominator, self.seekable, len(ranks)]).encode()
        steps = np.diff(times, prepend=np.int64(0))  # mostly the same number, which packs well
        return zlib.compress(b"\n".join([head, steps.astype("<i8").tobytes() + np.packbits(is_key).tobytes()]))

    @classmethod
    def from_bytes(cls, kept: bytes) -> "FrameTable":
        """A table out of `to_bytes`. That it fits a file is checked when it is used, not here.

        Raises:
            ValueError: The bytes are no table.
        """
        try:
            unfolder = zlib.decompressobj()
            head, _, body = unfolder.decompress(kept, _LARGEST).partition(b"\n")
            size, codec, numerator, denominator, seekable, frames = json.loads(head)
            numbers = [size, numerator, denominator, frames]
            if not (all(type(number) is int for number in numbers) and type(codec) is str and type(seekable) is bool):
                raise ValueError(f"its head is {head!r}")
            packed = -(-frames // 8)
            if not unfolder.eof or unfolder.unused_data or len(body) != 8 * frames + packed:
                raise ValueError("it is cut off or longer than it says")
            times = np.frombuffer(body, "<i8", frames).cumsum(dtype=np.int64)
            is_key = np.unpackbits(np.frombuffer(body, np.uint8, packed, 8 * frames), count=frames).astype(bool)
            table = cls.of_packets(times, is_key, seekable, (size, codec, Fraction(numerator, denominator)))
            if table is None:
                raise ValueError("its frames have no times of their own")
            return table
        except (zlib.error, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"These {len(kept)} bytes are no frame table ({error}).") from error

    def key_before(self, position: int) -> int:
        """The key frame that decoding of a frame starts from."""
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


__all__ = ["FrameTable"]
