"""Decoding in one pass: the frames of `decode`, part by part, in this process and in one of its own."""

import itertools
import os
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode, decode_stream
from alpro_hf.model.decoding_types import CorruptVideoError, DecoderFailedError, NotAVideoError, TruncatedVideoError
from alpro_hf.model.decoding_video import TableMismatchError, Video

LENGTH = 90


def write(path: Path, codec: str = "libx264", frames: int = LENGTH, uneven: bool = False) -> Path:
    """A clip in which each frame differs, of a codec with frames between others, and a key frame each second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "10", "bf": "2"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if uneven:
            stream.codec_context.time_base = Fraction(1, 1000)
        ramp = np.arange(64)[None, :, None]
        for number in range(frames):
            picture = np.broadcast_to((ramp * 2 + number * 2) % 256, (48, 64, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if uneven:
                frame.pts, frame.time_base = number * number * 7, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def decoder():
    with IsolatedDecoder(processes=1) as decoder:
        yield decoder


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
@pytest.mark.parametrize("alone", [False, True], ids=["here", "isolated"])
def test_the_parts_are_the_frames_of_decode(tmp_path, decoder, name, alone):
    path = write(tmp_path / name, "mpeg4" if name.endswith("avi") else "libx264")
    wanted = sorted({0, *range(3, LENGTH, 4), LENGTH - 1})
    whole = decode(path, wanted, height=24, width=32)
    parts = list((decoder.stream if alone else decode_stream)(path, wanted, height=24, width=32, chunk=7))
    assert {len(part.indices) for part in parts[:-1]} == {7}
    assert list(itertools.chain.from_iterable(part.indices for part in parts)) == wanted
    assert list(itertools.chain.from_iterable(part.timestamps for part in parts)) == whole.timestamps
    assert (torch.cat([part.pixels for part in parts]) == whole.pixels).all()
    assert all(part.info == whole.info for part in parts)
    assert all(part.table is None for part in parts[:-1])
    kept = parts[-1].table
    assert (kept is None) == (whole.table is None) and (kept is None or kept.to_bytes() == whole.table.to_bytes())


def test_uneven_times_cross_to_the_process_once(tmp_path, decoder):
    path = write(tmp_path / "clip.mp4", uneven=True)
    parts = list(decoder.stream(path, lambda info: info.frames_at(range(0, 57, 3)), chunk=4))
    times = [time for part in parts for time in part.timestamps]
    # the frame that is shown at a time is the last one that began before it
    begun = [number * number * 7 / 1000 for number in range(LENGTH)]
    assert times == pytest.approx([max(one for one in begun if one <= time + 1e-6) for time in range(0, 57, 3)])
    assert len({part.info for part in parts}) == 1 and parts[-1].info.frame_times is not None


def test_a_worker_that_was_left_in_the_middle_is_not_used_again(tmp_path, decoder):
    path = write(tmp_path / "clip.mp4")
    stream = decoder.stream(path, None, chunk=5)
    assert next(stream).indices == [0, 1, 2, 3, 4]
    stream.close()
    assert decoder.decode(path, [50]).indices == [50]
    again = decoder.stream(path, None, chunk=50)
    assert [part.indices[0] for part in again] == [0, 50]


def test_frames_come_again_if_the_table_proves_wrong(tmp_path, monkeypatch):
    path, real, calls = write(tmp_path / "clip.mp4"), Video.read_parts, []

    def fail_once(self, *arguments):
        calls.append(arguments)
        for number, part in enumerate(real(self, *arguments)):
            if len(calls) == 1 and number == 2:
                raise TableMismatchError
            yield part

    monkeypatch.setattr(Video, "read_parts", fail_once)
    parts = list(decode_stream(path, range(0, 50, 5), chunk=2))
    assert [part.indices[0] for part in parts] == [0, 10, 0, 10, 20, 30, 40]


def test_damage_is_found_when_the_pass_reaches_it(tmp_path, decoder):
    path = write(tmp_path / "clip.mp4", frames=200)
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") + 3 * (len(data) - data.index(b"mdat")) // 4  # the index comes behind the pictures
    place = min(place, data.index(b"moov") - 1000)
    data[place : place + 600] = os.urandom(600)
    path.write_bytes(data)
    for stream in (decode_stream, decoder.stream):
        seen = []
        with pytest.raises(CorruptVideoError, match=r"clip\.mp4"):
            seen.extend(part.indices[-1] for part in stream(path, None, chunk=10))
        assert max(seen) >= 90


def test_a_truncated_file(tmp_path, decoder):
    path = write(tmp_path / "clip.mkv", frames=200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TruncatedVideoError, match="ends early"):
        next(decode_stream(path))
    parts = list(decoder.stream(path, allow_truncated=True, chunk=10))
    assert parts[-1].info.truncated and 50 < parts[-1].indices[-1] < 200


def test_the_deadline_is_for_one_part(tmp_path):
    path = write(tmp_path / "clip.mp4", frames=300)
    with IsolatedDecoder(processes=1, deadline=3.0) as decoder:
        last = 0
        for part in decoder.stream(path, None, chunk=60):
            time.sleep(1.2)  # the caller takes longer than the deadline in all
            last = part.indices[-1]
        assert last == 299


def test_input_without_meaning(tmp_path, decoder):
    path = write(tmp_path / "clip.mp4", frames=20)
    with pytest.raises(ValueError, match="must ascend"):
        next(decode_stream(path, [3, 2]))
    with pytest.raises(ValueError, match="chunk=0"):
        next(decode_stream(path, chunk=0))
    with pytest.raises(IndexError, match="frame 20"):
        next(decoder.stream(path, [20]))
    (tmp_path / "text.mp4").write_text("no video")
    for stream in (decode_stream, decoder.stream):
        with pytest.raises(NotAVideoError):
            next(stream(tmp_path / "text.mp4"))
    with pytest.raises(FileNotFoundError):
        next(decoder.stream(tmp_path / "nothing.mp4"))
    with pytest.raises(DecoderFailedError), IsolatedDecoder(processes=1, deadline=0.0001) as hasty:
        next(hasty.stream(path))
