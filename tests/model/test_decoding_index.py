"""The table that comes from the index of a file is that of its packets, field by field; otherwise there is none."""

import io
import os
import random
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Stream
from conftest import Encoder
from fixtures import hostile_videos as hostile

from alpro_hf.model import decoding_index
from alpro_hf.model.decoding import FrameChoice, decode, decode_stream, probe
from alpro_hf.model.decoding_index import PacketIndex
from alpro_hf.model.decoding_table import FrameTable
from alpro_hf.model.decoding_types import (
    DEFAULT_LIMITS,
    VideoDecodeError,
    VideoInfo,
    VideoLimits,
    VideoTooLargeError,
)
from alpro_hf.model.decoding_video import Video, open_video

# ALPRO_FILES=5000 pytest -n 0 -s tests/model/test_decoding_index.py
HAS_INDEX = hasattr(Stream, "index_entries")  # PyAV 15 does not show the index
FILES, SEED = int(os.environ.get("ALPRO_FILES", "30")), int(os.environ.get("ALPRO_SEED", "0"))
CODECS: dict[str, dict[str, Any]] = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "mpeg4": {},
    "mpeg2video": {},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
PLAIN = {"mp4": "mp4", "mov": "mov"}  # containers whose index tells all, if they are not cut into fragments
FLIPS = int(os.environ.get("ALPRO_FLIPS", "40"))
OTHER = {"mkv": "matroska", "avi": "avi", "ts": "mpegts"}
MUXERS: list[dict[str, str]] = [
    {},
    {"movflags": "negative_cts_offsets"},
    {"use_editlist": "0"},
    {"avoid_negative_ts": "disabled"},
    {"movflags": "frag_keyframe+empty_moov"},
    {"movflags": "frag_keyframe"},
]


@pytest.fixture(autouse=True)
def short_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default an index is used where it saves time; here wherever it tells all."""
    monkeypatch.setattr(decoding_index, "FEWEST_PACKETS", 2)
    monkeypatch.setattr(PacketIndex, "saves_time", True)


def encoded(draw: random.Random, codec: str, frames: int) -> bytes:
    """A small clip with any distance of key frames, frames between others or none, and any rate."""
    options = dict(CODECS[codec])
    between = draw.choice((0, 0, 1, 2, 3))
    if codec == "libx264":
        opened = draw.random() < 0.4
        options["x264-params"] = (
            f"bframes={between}:b-pyramid={draw.choice(('none', 'strict'))}:open-gop={int(opened)}"
        )
    elif codec == "libx265":
        options["x265-params"] += f":bframes={between}:open-gop={draw.randrange(2)}"
    file = io.BytesIO()
    ramp = np.add.outer(np.arange(32), np.arange(32))[..., None]
    with av.open(file, "w", format="matroska") as container:
        rate = draw.choice((24, 25, 30, Fraction(30000, 1001), 12))
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = draw.choice((1, 3, 6, 10))
        if codec.startswith("mpeg"):
            stream.codec_context.max_b_frames = between
        for i in range(frames):
            picture = np.broadcast_to((ramp * 3 + 17 * i) % 256, (32, 32, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def muxed(draw: random.Random, clip: bytes, container: str, muxer: dict[str, str]) -> bytes:
    """The packets of a clip with other times: uneven, from any start, without the first few, beside a sound."""
    file = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(file, "w", format=container, options=muxer) as target:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        stream = target.add_stream_from_template(source.streams.video[0])
        sound = None
        if container != "mpegts" and draw.random() < 0.3:
            sound = target.add_stream("mp3", rate=16000)
        shown = sorted(packet.pts for packet in packets)
        order = {pts: i for i, pts in enumerate(shown)}
        uneven, start = draw.random() < 0.4, draw.choice((0, 0, 40, 4000))
        steps = [draw.choice((20, 40, 41, 500)) if uneven else 40 for _ in shown]
        times = np.cumsum([start, *steps]).tolist()
        delay = max(order[packet.pts] * -1 + i for i, packet in enumerate(packets))
        dropped = draw.choice((0, 0, 0, 2)) if container in ("mp4", "mov") else 0
        for i, packet in enumerate(packets[dropped:], dropped):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = times[order[packet.pts]]
            packet.dts = times[i - delay] if i >= delay else times[0] - 40 * (delay - i)
            packet.duration = steps[min(i, len(steps) - 1)]
            target.mux(packet)
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            target.mux(sound.encode(silence))
            target.mux(sound.encode())
    return file.getvalue()


def edited(draw: random.Random, data: bytes) -> bytes:
    """With a random beginning or length of the first edit, if there is one."""
    place = data.rfind(b"elst")
    if place < 0:
        return data
    changed = bytearray(data)
    field = place + 12 + draw.choice((0, 4))  # its duration, or where in the track it begins
    changed[field : field + 4] = draw.choice((0, 1, 40, 700, 15_000, 2**32 - 1)).to_bytes(4, "big")
    return bytes(changed)


def both(data: bytes) -> tuple[FrameTable | VideoDecodeError | None, FrameTable | VideoDecodeError | None]:
    """The table by the index and that of the packets, or the error in their place."""
    found: list[FrameTable | VideoDecodeError | None] = []
    for make in (Video.index_table, Video.packet_table):
        try:
            with open_video(data, DEFAULT_LIMITS, False, 1) as video:
                found.append(make(video))
        except VideoDecodeError as error:
            found.append(error)
    return found[0], found[1]


def test_by_index_and_by_packets_are_equal() -> None:
    draw, used, plain = random.Random(SEED), 0, 0
    for number in range(FILES):
        if number % 5 == 0:
            codec = draw.choice([*CODECS])
            clip = encoded(draw, codec, draw.randrange(12, 40))
        kind = draw.choice([*PLAIN, *PLAIN, *OTHER])
        muxer = draw.choice(MUXERS) if kind in PLAIN else {}
        try:
            data = muxed(draw, clip, {**PLAIN, **OTHER}[kind], muxer)
        except (av.error.FFmpegError, ValueError):  # a container may refuse a codec or its times
            continue
        changed = draw.random() < 0.3
        if changed:
            data = edited(draw, data)
        by_index, by_packets = both(data)
        case = f"file {number}, seed {SEED}: {codec} in {kind}, {muxer}"
        if isinstance(by_index, VideoDecodeError):
            assert str(by_index) == str(by_packets), case
        elif by_index is not None:
            used += 1
            assert kind in PLAIN and "frag" not in muxer.get("movflags", ""), case
            assert by_index == by_packets, case
        plain += kind in PLAIN
    print(f"{used} of {plain} tables by the index, {FILES} files")
    assert used > plain / 4 > 0 if HAS_INDEX else used == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 with frames between others and ten key frames; its index is in front, so that pictures end the file."""
    options = {"preset": "ultrafast", "x264-params": "bframes=2:open-gop=0:scenecut=0"}
    path = tmp_path_factory.mktemp("index") / "clip.mp4"
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 6
        for i in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, i, 1), "rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def result(data: bytes, indices: FrameChoice) -> tuple[Any, ...]:
    """Times, facts and pixels of the frames, or the error."""
    try:
        found = decode(data, indices, height=16, width=16, threads=1, allow_truncated=True)
    except VideoDecodeError as error:
        return type(error).__name__, str(error)
    return found.indices, found.timestamps, found.info, found.pixels.numpy().tobytes()


def by_packets(data: bytes, indices: FrameChoice) -> tuple[Any, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Video, "index_table", lambda self: None)
        return result(data, indices)


def apart(info: VideoInfo) -> list[int]:
    return sorted({0, info.num_frames // 3, info.num_frames // 2, info.num_frames - 1})


def same(data: bytes, name: str, indices: FrameChoice = apart) -> None:
    with_index, without = result(data, indices), by_packets(data, indices)
    assert with_index[:3] == without[:3], name
    assert with_index == without, name


@pytest.mark.skipif(not HAS_INDEX, reason="this PyAV does not show the index")
def test_frames_come_without_listing_the_packets(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [3, 20, 41, 59]
    whole = by_packets(clip, None)
    listed = decode(clip, wanted)

    def refuse(self: Video) -> None:
        raise AssertionError("the packets were listed")

    monkeypatch.setattr(Video, "packet_table", refuse)
    found = decode(clip, wanted)
    assert torch.equal(found.pixels, listed.pixels)
    assert (found.timestamps, found.info, found.table) == (listed.timestamps, listed.info, listed.table)
    assert probe(clip) == listed.info
    assert result(clip, None) == whole
    parts = [*decode_stream(clip, wanted, chunk=3)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), listed.pixels)
    assert parts[-1].table == listed.table
    assert torch.equal(decode(clip, wanted, table=FrameTable.from_bytes(found.table.to_bytes())).pixels, listed.pixels)
    with pytest.raises(VideoTooLargeError) as refused:
        decode(clip, wanted, limits=VideoLimits(max_duration=1.5))
    monkeypatch.undo()
    monkeypatch.setattr(Video, "index_table", lambda self: None)
    with pytest.raises(VideoTooLargeError) as by_listing:
        decode(clip, wanted, limits=VideoLimits(max_duration=1.5))
    assert str(refused.value) == str(by_listing.value)


def test_an_index_that_lies_changes_no_frame(clip: bytes) -> None:
    """Key frames that are none, packets outside the file, times that repeat, offsets for fewer packets."""

    def changed(box: bytes, offset: int, *values: int) -> bytes:
        data = bytearray(clip)
        struct.pack_into(f">{len(values)}I", data, data.index(box) + 4 + offset, *values)
        return bytes(data)

    sound = decode(clip, apart, height=16, width=16).pixels.numpy().tobytes()
    lies = {
        "key frame": changed(b"stss", 8 + 4 * 3, 20),
        "last key frame": changed(b"stss", 8 + 4 * 9, 58),
        "no key frames": changed(b"stss", 4, 0),
        "times": changed(b"stts", 4, 1, 60, 0),
        "fewer times": changed(b"stts", 4, 1, 59, 512),
        "fewer offsets": changed(b"ctts", 4, 5),
        "more offsets": changed(b"ctts", 8, 2),
        "no offsets": clip.replace(b"ctts", b"free"),
        "place": changed(b"stco", 8, 1 << 30),
        "one place": changed(b"stsc", 8, 1, 59, 1),
        "a second index": clip + clip[clip.index(b"moov") - 4 : clip.index(b"mdat") - 4],
        "offsets elsewhere": clip.replace(b"udta", b"ctts"),
        "cut": clip[:-1],
    }
    for name, data in lies.items():
        assert data != clip, name
        same(data, name)
        same(data, name, None)
    assert result(lies["key frame"], apart)[-1] == sound


def test_odd_and_damaged_files_are_decoded_as_by_their_packets(clip: bytes, encode: Encoder) -> None:
    for case in hostile.files(encode):
        same(case.data, case.name)
    movie = clip[: clip.index(b"mdat")]
    for number, data in enumerate(hostile.flips(movie, FLIPS, SEED + 3)):
        same(data + clip[len(movie) :], f"change {number} of the index")
    for number, data in enumerate(hostile.flips(clip, FLIPS, SEED + 5)):
        same(data, f"change {number}")
    for number, data in enumerate(hostile.truncations(clip, max(FLIPS // 5, 5))):
        same(data, f"cut {number}")
