"""The table that comes from the index of a file is that of its packets, field by field; otherwise there is none."""

import io
import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from fixtures.hostile_videos import flips

from alpro_hf.model import decoding_index
from alpro_hf.model.decoding import decode, decode_stream, probe
from alpro_hf.model.decoding_table import FrameTable
from alpro_hf.model.decoding_types import DEFAULT_LIMITS, VideoDecodeError, VideoLimits, VideoTooLargeError
from alpro_hf.model.decoding_video import Video, open_video

# ALPRO_FILES=5000 pytest -n 0 -s tests/model/test_decoding_index.py
FILES, SEED = int(os.environ.get("ALPRO_FILES", "30")), int(os.environ.get("ALPRO_SEED", "0"))
CODECS: dict[str, dict[str, Any]] = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "mpeg4": {},
    "mpeg2video": {},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
PLAIN = {"mp4": "mp4", "mov": "mov"}  # containers whose index tells all, if they are not cut into fragments
OTHER = {"mkv": "matroska", "avi": "avi", "ts": "mpegts"}
MUXERS: list[dict[str, str]] = [
    {},
    {"movflags": "faststart"},
    {"movflags": "negative_cts_offsets"},
    {"use_editlist": "0"},
    {"avoid_negative_ts": "disabled"},
    {"movflags": "frag_keyframe+empty_moov"},
    {"movflags": "frag_keyframe"},
]


@pytest.fixture(autouse=True)
def short_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_index, "FEWEST_PACKETS", 2)


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
    for make in (Video._index_table, Video._packet_table):
        try:
            with open_video(data, DEFAULT_LIMITS, False, 1) as video:
                found.append(make(video))
        except VideoDecodeError as error:
            found.append(error)
    return found[0], found[1]


def test_by_index_and_by_packets_are_equal() -> None:
    draw, used, plain = random.Random(SEED), 0, 0
    for number in range(FILES):
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
    assert used > plain / 4 > 0
