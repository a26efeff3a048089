"""Files from strangers: right frames or a `VideoDecodeError`, in bounded time and memory; none opens another file.

Each goes through a process of its own, so a crash would show as a `DecoderFailedError`; there must be none.
"""

import functools
import http.server
import io
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import RATE, Encoder
from fixtures import hostile_videos as hostile

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import FrameChoice, decode
from alpro_hf.model.decoding_types import DecoderFailedError, Frames, NotAVideoError, VideoDecodeError, VideoInfo

DEADLINE = 30.0  # seconds for one file
MEMORY = 512 * 1024**2  # bytes of data, in which a process may decode any of the files
RESIDENT = 256 * 1024**2  # bytes that it may touch
# of each of the five kinds of file: ALPRO_CUTS=200 pytest -n 0 -s tests/test_hostile_videos.py
CUTS, FLIPS = (int(os.environ.get(name, some)) for name, some in (("ALPRO_CUTS", 40), ("ALPRO_FLIPS", 400)))


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(processes=1, deadline=DEADLINE, max_memory=MEMORY) as decoder:
        yield decoder


@pytest.fixture(scope="module", autouse=True)
def survives(decoder: IsolatedDecoder) -> Iterator[None]:
    """One process decodes all of it, in little memory."""
    with pytest.raises(VideoDecodeError):
        decoder.probe(b"no video")
    [first] = decoder._idle
    yield
    assert decoder._idle == [first]
    if os.path.exists(f"/proc/{first.process.pid}/status"):
        status = Path(f"/proc/{first.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        assert int(peak.split()[1]) * 1024 < RESIDENT


def outcome(
    decoder: IsolatedDecoder, source: Path | bytes, indices: FrameChoice = None, **options: bool
) -> Frames | VideoDecodeError:
    """Any other error is a failure of the test, and so is a crash."""
    start = time.monotonic()
    try:
        found: Frames | VideoDecodeError = decoder.decode(source, indices, height=48, width=48, **options)
    except VideoDecodeError as error:
        found = error
    assert not isinstance(found, DecoderFailedError), found
    assert time.monotonic() - start < DEADLINE
    if isinstance(found, Frames):
        assert found.pixels.shape == (len(found.indices), 3, 48, 48)
        assert indices is not None or len(found.indices) == found.info.num_frames
        assert all(math.isfinite(second) for second in found.timestamps)
    return found


def apart(info: VideoInfo) -> list[int]:
    return [0, info.num_frames // 2, info.num_frames - 1]


def plain_decode(data: bytes) -> torch.Tensor:
    with av.open(io.BytesIO(data)) as container:
        frames = container.decode(container.streams.video[0])
        arrays = [frame.reformat(48, 48, "rgb24", interpolation="BICUBIC").to_ndarray() for frame in frames]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_odd_files_give_right_frames_or_an_error_with_their_name(decoder, encode: Encoder, tmp_path) -> None:
    seen = Counter()
    for case in hostile.files(encode):
        path = tmp_path / case.name
        path.write_bytes(case.data)
        found = outcome(decoder, path)
        seen[type(found).__name__] += 1
        if isinstance(found, VideoDecodeError):
            assert case.frames is None, (case.name, found)
            assert case.error in (None, type(found).__name__), (case.name, found)
            assert str(path) in str(found)
            continue
        assert case.error is None, case.name
        assert case.frames in (None, len(found.pixels)), case.name
        if case.name != "turned.mp4":
            assert torch.equal(found.pixels, plain_decode(case.data)), case.name
    assert seen["Frames"] > 35 and len(seen) > 3, seen


@pytest.mark.parametrize("name", hostile.TARGETS)
def test_truncations(decoder, encode: Encoder, name: str) -> None:
    """What is there comes out exact, under its true time; without asking for it, a cut mp4, mkv or webm is refused."""
    data = hostile.clips(encode)[name]
    reference = decode(data, height=48, width=48).pixels
    some = 0
    for cut in hostile.truncations(data, CUTS):
        found = outcome(decoder, cut, allow_truncated=True)
        if isinstance(found, Frames):
            some += 1
            for pixels, second in zip(found.pixels, found.timestamps, strict=True):
                assert torch.equal(pixels, reference[round(second * RATE)])
        if name.endswith(("mp4", "mkv", "webm")) and len(cut) < len(data) - 1500:
            assert isinstance(outcome(decoder, cut), VideoDecodeError)
    assert some >= 1


@pytest.mark.parametrize("name", hostile.TARGETS)
def test_changed_bytes(decoder, encode: Encoder, name: str) -> None:
    """No crash, no hang, no other error. That a codec cannot tell damage from pictures is another matter."""
    data = hostile.clips(encode)[name]
    reference, seen = decode(data, height=48, width=48).pixels, Counter()
    for damaged in hostile.flips(data, FLIPS, seed=7):
        found = outcome(decoder, damaged)
        right = isinstance(found, Frames) and torch.equal(found.pixels, reference)
        seen["right" if right else "other pixels" if isinstance(found, Frames) else type(found).__name__] += 1
        few = outcome(decoder, damaged, apart)  # with seeks
        if right and isinstance(few, Frames):
            assert torch.equal(few.pixels, reference[few.indices])
    print(f"{FLIPS} changes of {name}: {dict(seen)}")
    assert seen["right"] and len(seen) >= 2, seen


def test_a_damaged_key_frame_after_a_seek(decoder, encode: Encoder) -> None:
    """FFmpeg's VP9 decoder, with a thread a frame and at work before, called what was not there, wherever the head of
    the second key frame is changed."""
    data = encode(
        "vp9_key3.webm", num_frames=6, gop=3, codec="libvpx-vp9", options={"deadline": "realtime"}
    ).read_bytes()
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.is_keyframe for packet in packets] == [True, False, False] * 2
        place = data.index(bytes(packets[3]))
    seen = Counter()
    for bit in range(24):
        damaged = bytearray(data)
        damaged[place + bit // 8] ^= 0x80 >> bit % 8
        for _ in range(3):
            seen[type(outcome(decoder, bytes(damaged), apart)).__name__] += 1
    assert seen["CorruptVideoError"] > 36, seen


class Counting(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None: ...


def test_no_file_makes_us_open_another(decoder, encode: Encoder, tmp_path, monkeypatch) -> None:
    """Neither a file, told by the time it was last read, nor a server, told by what it was asked."""
    target = tmp_path / "target.mp4"
    target.write_bytes(hostile.clips(encode)["clip.mp4"])
    handler = functools.partial(Counting, directory=str(tmp_path))
    Counting.asked = []
    monkeypatch.chdir(tmp_path)

    def untouched() -> bool:
        return target.stat().st_atime_ns == 10**9 and not Counting.asked

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/target.mp4"
        traps = hostile.traps(target.read_bytes(), target, address)
        os.utime(target, ns=(10**9, 10**18))
        for name, content in traps.items():
            trap = tmp_path / name
            trap.write_bytes(content)
            for found in (outcome(decoder, trap), outcome(decoder, content)):
                # an alias to another file is passed over: the pictures are looked for in the file itself
                assert isinstance(found, NotAVideoError) or name == "alias.mov", (name, found)
            assert untouched(), name
        # the traps are real: FFmpeg by itself follows them
        (tmp_path / "real.m3u8").write_bytes(traps["hls-http.mp4"])
        for name in ("concat-name.avi", "real.m3u8"):
            with av.open(str(tmp_path / name), options={"safe": "0", "protocol_whitelist": "file,http,tcp"}):
                assert not untouched() or name == "concat-name.avi"  # some file systems keep no time of reading
        server.shutdown()
    assert Counting.asked
