"""Transport streams that were joined, renumbered or damaged: a jump of the packet counter is a hint and no fact."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import RATE, Encoder

from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_transport import read_pictures
from alpro_hf.model.decoding_types import CorruptVideoError

PACKET = 188


def segments(source_frames: np.ndarray, codec: str, length: int, restart: bool = False) -> list[bytes]:
    """Files of `length` frames each, as ffmpeg's segment muxer writes them: the counters of each begin at 0.

    Args:
        source_frames: uint8 (T, H, W, 3).
        codec: Of FFmpeg.
        length: Frames of a file, each with a key frame of its own.
        restart: Whether times begin at 0 in each file, too.
    """
    made = []
    for start in range(0, len(source_frames), length):
        file = io.BytesIO()
        with av.open(file, "w", format="mpegts") as container:
            stream = container.add_stream(
                codec, rate=RATE, options={"x265-params": "log-level=none"} if "265" in codec else {}
            )
            stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
            for i, picture in enumerate(source_frames[start : start + length]):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i if restart else start + i, Fraction(1, RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        made.append(file.getvalue())
    return made


def plain_decode(data: bytes) -> torch.Tensor:
    with av.open(io.BytesIO(data)) as container:
        arrays = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
@pytest.mark.parametrize("length", [8, 11, 16])
def test_joined_files(source_frames, codec: str, length: int) -> None:
    parts = segments(source_frames, codec, length)
    joined = b"".join(parts)
    frames = decode(joined)
    assert len(frames.pixels) == probe(joined).num_frames == 48
    expected = torch.cat([plain_decode(part) for part in parts])
    assert torch.equal(frames.pixels, expected)
    assert frames.timestamps == pytest.approx([i / RATE for i in range(48)])
    for i in range(length - 2, 48, length):  # around the seams
        assert torch.equal(decode(joined, [i]).pixels[0], expected[i])


def test_joined_recordings_that_each_begin_at_time_0(source_frames) -> None:
    joined = b"".join(segments(source_frames, "libx264", 24, restart=True))
    frames = decode(joined)
    assert len(frames.pixels) == 48
    assert frames.timestamps == pytest.approx([i / RATE for i in range(48)])
    assert frames.info.duration == pytest.approx(48 / RATE)


@pytest.mark.parametrize("step", [188, 192])
def test_a_muxer_without_counters(encode: Encoder, step: int) -> None:
    data = np.frombuffer(encode("h264.ts").read_bytes(), np.uint8).reshape(-1, PACKET).copy()
    data[:, 3] &= 0xF0
    if step == 192:  # as on a Blu-ray disc, each packet behind a time
        data = np.concatenate([np.zeros((len(data), 4), np.uint8), data], axis=1)
    assert torch.equal(decode(data.tobytes()).pixels, decode(encode("h264.ts")).pixels)


def test_lost_packets_are_damage(encode: Encoder) -> None:
    """A picture that lost its middle is refused, and so is what refers to it: the decoder guesses without a word."""
    data = encode("h264.ts").read_bytes()
    reference, refused = decode(data), 0
    with av.open(io.BytesIO(data)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    # FFmpeg marks the picture before the damaged one, and before the first there is none
    for start, end in itertools.pairwise(starts[1:]):
        if end - start < 3 * PACKET:
            continue
        try:
            frames = decode(data[: start + PACKET] + data[start + 2 * PACKET :], allow_truncated=True)
        except CorruptVideoError:
            refused += 1
            continue
        numbers = [round(second * RATE) for second in frames.timestamps]
        assert torch.equal(frames.pixels, reference.pixels[numbers])
    assert refused >= 3


def test_the_list_of_pictures(encode: Encoder) -> None:
    data = encode("h264.ts").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0].id
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    found = read_pictures(io.BytesIO(data), stream)
    assert found.starts == positions and all(found.whole) and all(found.follows)
    inside = (positions[3] // PACKET + 1) * PACKET
    torn = data[:inside] + data[inside + 100 :]  # bytes are missing, and the packets behind begin elsewhere
    again = read_pictures(io.BytesIO(torn), stream)
    assert not again.whole[3] and again.whole[:3] == [True] * 3 and len(again.starts) >= 47
    assert read_pictures(io.BytesIO(bytes(1000)), 256).starts == []
