"""A table that is kept gives the same frames, saves listing the packets, and costs nothing where it does not fit."""

import io
import random
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import Encoder

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_table import FrameTable
from alpro_hf.model.decoding_types import DEFAULT_LIMITS, TruncatedVideoError
from alpro_hf.model.decoding_video import Video, open_video

ORIGIN = (1000, "h264", Fraction(1, 12800))
CLIPS = {
    "h264_key12.mp4": {},
    "h264_open_gop.mp4": {"gop": 8, "options": {"x264-params": "open-gop=1:bframes=3"}},
    "h264_vfr.mkv": {"times": np.random.default_rng(0).integers(10, 200, 48).cumsum().tolist()},
    "h264.ts": {},
    "hevc_10bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "vp9_alt_ref.mp4": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "av1_10bit.mkv": {"codec": "libsvtav1", "pix_fmt": "yuv420p10le", "gop": 6, "options": {"preset": "12"}},
    "mpeg2_b.mpg": {"codec": "mpeg2video", "b_frames": 2},
}


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Video) -> None:
        raise AssertionError("the packets were listed")

    monkeypatch.setattr(Video, "packet_table", refuse)
    monkeypatch.setattr(Video, "index_table", refuse)


def made_up(frames: int, order: tuple[int, ...] = (0, 4, 2, 1, 3)) -> FrameTable:
    """Half a second between key frames, five frames in an order as of B frames."""
    shown = np.add.outer(np.arange(0, frames, 5), np.array(order)).ravel()[:frames]
    table = FrameTable.of_packets(shown * 512, np.arange(len(shown)) % 15 == 0, True, ORIGIN)
    assert table is not None
    return table


@pytest.mark.parametrize("name", CLIPS)
def test_a_second_decode_lists_nothing(name: str, encode: Encoder, request: pytest.FixtureRequest) -> None:
    path = encode(name, **CLIPS[name])
    first = decode(path, height=48, width=64)
    assert first.table is not None
    kept = FrameTable.from_bytes(first.table.to_bytes())
    assert kept == first.table
    request.getfixturevalue("no_listing")
    n = first.info.num_frames
    for indices in (lambda info: [info.num_frames // 2], [n - 1, 0, n // 3], None):
        again = decode(path, indices, height=48, width=64, table=kept)
        assert torch.equal(again.pixels, first.pixels[again.indices])
        assert again.timestamps == [first.timestamps[i] for i in again.indices]
        assert (again.info, again.table) == (first.info, kept)


def test_the_same_through_processes(encode: Encoder) -> None:
    path = encode("h264_key12.mp4")
    with IsolatedDecoder(processes=1) as decoder:
        first = decoder.decode(path, [5, 40])
        assert first.table == decode(path, [5, 40]).table
        assert torch.equal(decoder.decode(path, [5, 40], table=first.table, threads=1).pixels, first.pixels)
        # a table that claims more frames than there are: the second try asks anew which are wanted
        longer = FrameTable.of_packets(np.arange(90) * 512, np.arange(90) % 12 == 0, True, first.table.origin)
        last = decoder.decode(path, lambda info: [info.num_frames - 1], table=longer)
        assert last.indices == [47] and torch.equal(last.pixels[0], decode(path, [47]).pixels[0])


def test_a_table_of_something_else_changes_nothing(encode: Encoder) -> None:
    path, other = (
        encode("h264_key12.mp4"),
        encode("hevc.mp4", codec="libx265", options={"x265-params": "log-level=none"}),
    )
    right = decode(path, [0, 20, 47])
    assert right.table is not None
    shifted = FrameTable.of_packets(np.array(right.table.pts) + 7, np.ones(48, bool), True, right.table.origin)
    endless = FrameTable.of_packets(np.arange(48) << 50, np.arange(48) == 0, True, right.table.origin)
    for table in (decode(other, [0]).table, made_up(48), shifted, endless):
        found = decode(path, [0, 20, 47], table=table)
        assert torch.equal(found.pixels, right.pixels)
        assert found.table == right.table


def test_none_where_only_decoding_tells(encode: Encoder) -> None:
    vp8 = decode(encode("vp8.webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}), [0])
    raw = decode(encode("h264_raw.h264"), [0])
    assert raw.table is None
    assert vp8.table is None or not vp8.table.seekable
    data = encode("h264.mkv").read_bytes()
    cut = decode(data[: len(data) * 2 // 3], [0], allow_truncated=True)
    assert cut.info.truncated and cut.table is None
    with pytest.raises(TruncatedVideoError):  # the table of the whole file does not make it whole
        decode(data[: len(data) * 2 // 3], [0], table=decode(data, [0]).table)


def test_about_a_byte_a_second() -> None:
    hour = made_up(108_000)
    assert len(hour.to_bytes()) < 3600
    assert FrameTable.from_bytes(hour.to_bytes()) == hour
    assert len(made_up(300).to_bytes()) < 200


def test_bytes_that_are_no_table_are_refused() -> None:
    good, draw = made_up(200).to_bytes(), random.Random(0)
    unfolded = zlib.decompress(good)
    changed = [good[: len(good) // 2], good + b"x", b"", b"{}", zlib.compress(unfolded[:-1]), zlib.compress(b"[1]\n")]
    head = unfolded.partition(b"\n")[0]
    for wrong in (
        b'[1, "h264", 1, 0, true, 200]',
        b'[1, "h264", 1, 1, 1, 200]',
        b'[1, "h264", 1, 1, true, -8]',
        b'[1e999, "h264", 1, 1, true, 200]',
        b"{}",
    ):
        changed.append(zlib.compress(unfolded.replace(head, wrong)))
    changed.append(zlib.compress(head + b"\n" + bytes(len(unfolded) - len(head) - 1)))  # all at one time
    changed.append(zlib.compress(bytes(1 << 28)))  # unfolds to more than it may
    for data in changed:
        with pytest.raises(ValueError, match="not a frame table"):
            FrameTable.from_bytes(data)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:  # zlib keeps a checksum, and ignores some bits
            assert FrameTable.from_bytes(bytes(data)) == made_up(200)
        except ValueError:
            refused += 1
    assert refused > 280


def test_a_counted_table_is_not_kept() -> None:
    with pytest.raises(ValueError, match="made by decoding"):
        FrameTable([0, 1], [0, 1], [], seekable=False, counted=True, origin=ORIGIN).to_bytes()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_no_pixel(encode: Encoder, threads: int) -> None:
    for name in ("h264_key12.mp4", "vp9.webm"):
        path = encode(name, **({} if "h264" in name else {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}))
        assert torch.equal(decode(path, [3, 30, 47], threads=threads).pixels, decode(path, [3, 30, 47]).pixels)
    with pytest.raises(ValueError, match="threads=-1"):
        decode(io.BytesIO(path.read_bytes()), [0], threads=-1)


@pytest.mark.parametrize(
    ("size", "threads", "used"), [((96, 96), 0, 1), ((98, 96), 0, 0), ((96, 96), 2, 2), ((160, 90), 1, 1)]
)
def test_small_pictures_take_one_thread(encode: Encoder, size: tuple[int, int], threads: int, used: int) -> None:
    with open_video(encode("h264_key12.mp4", size=size), DEFAULT_LIMITS, False, threads) as video:
        assert video.stream is not None
        assert video.stream.codec_context.thread_count == used  # 0: one for each core


def test_a_table_is_of_the_stream_that_is_decoded(encode: Encoder) -> None:
    path: Path = encode("h264_key12.mp4")
    table = decode(path, [0]).table
    assert table is not None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert table.origin == (path.stat().st_size, "h264", stream.time_base)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert sorted(packet.pts for packet in packets) == list(table.pts)
    assert [table.pts[i] for i in table.keys] == sorted(packet.pts for packet in packets if packet.is_keyframe)
