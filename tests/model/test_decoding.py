"""Every frame that `decode` returns is compared with a plain decode of the whole file."""

import functools
import http.server
import io
import os
import pickle
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import RATE, Encoder

from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_types import (
    CorruptVideoError,
    EmptyVideoError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    VideoDecodeError,
    VideoLimits,
    VideoTooLargeError,
)

HEIGHT, WIDTH = 48, 64
TIMES = np.random.default_rng(0).integers(10, 200, 48).cumsum().tolist()
LAYERS = "log-level=none:temporal-layers=3:bframes=7:b-adapt=0"
QUIET = {"x265-params": "log-level=none"}
TRANSCODES = {
    "h264_key1.mp4": {"gop": 1},
    "h264_key4_b3.mp4": {"gop": 4, "options": {"x264-params": "bframes=3"}},
    "h264_key12.mp4": {},
    "h264_key250.mp4": {"gop": 250},
    "h264.mkv": {},
    "h264.ts": {},
    "h264_b.avi": {},
    "h264.flv": {},
    "h264_raw.h264": {},
    "h264_fragmented.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_open_gop.mp4": {"gop": 8, "options": {"x264-params": "open-gop=1:bframes=3"}},
    "h264_intra_refresh.mp4": {"options": {"x264-params": "intra-refresh=1"}},
    "h264_interlaced.ts": {"size": (160, 96), "options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
    "h264_interlaced.mp4": {"size": (160, 96), "options": {"flags": "+ildct+ilme", "x264-params": "tff=1:bframes=3"}},
    "h264_pyramid.mp4": {"gop": 24, "options": {"x264-params": "bframes=7:b-adapt=0:b-pyramid=normal:ref=4"}},
    "h264_no_pyramid.mkv": {"gop": 24, "options": {"x264-params": "bframes=5:b-adapt=0:b-pyramid=none"}},
    "h264_vfr.mp4": {"times": TIMES},
    "h264_vfr.mkv": {"times": TIMES},
    "h264_10bit.mp4": {"pix_fmt": "yuv420p10le"},
    "h264_odd.mp4": {"size": (161, 91), "pix_fmt": "yuv444p"},
    "hevc.mp4": {"codec": "libx265", "options": QUIET},
    "hevc_key250.mkv": {"codec": "libx265", "gop": 250, "options": QUIET},
    "hevc_10bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": QUIET},
    "hevc_open_gop.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint=8"}},
    "hevc_layers.mp4": {"codec": "libx265", "gop": 24, "options": {"x265-params": LAYERS}},
    "hevc_pyramid.mkv": {
        "codec": "libx265",
        "gop": 24,
        "options": {"x265-params": "log-level=none:bframes=8:b-adapt=0"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9_odd.webm": {"codec": "libvpx-vp9", "size": (161, 91), "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9_alt_ref.mp4": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "av1_10bit.mkv": {"codec": "libsvtav1", "pix_fmt": "yuv420p10le", "gop": 6, "options": {"preset": "12"}},
    "mpeg4_b.mp4": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4_b.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg2_b.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2_b.ts": {"codec": "mpeg2video", "b_frames": 2},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "wmv2.wmv": {"codec": "wmv2"},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "alpha.mov": {"codec": "qtrle", "pix_fmt": "argb"},
    "alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {"auto-alt-ref": "0"}},
    "grey_odd.mkv": {"codec": "ffv1", "pix_fmt": "gray", "size": (33, 47)},
    "grey_10bit.mkv": {"codec": "ffv1", "pix_fmt": "gray10le"},
    "single_frame.mp4": {"num_frames": 1},
}


def plain_decode(path: Path | io.BytesIO) -> torch.Tensor:
    """All frames from first to last: (T, 3, HEIGHT, WIDTH)."""
    with av.open(str(path) if isinstance(path, Path) else path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = [
            frame.reformat(WIDTH, HEIGHT, "rgb24", interpolation="BICUBIC").to_ndarray()
            for frame in container.decode(stream)
        ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def assert_exact(path: Path, draws: int) -> None:
    reference = plain_decode(path)
    n = len(reference)
    assert probe(path).num_frames == n
    generator = random.Random(0)
    choices = [[n - 1], [n // 2], *([generator.randrange(n) for _ in range(4)] for _ in range(draws))]
    for indices in choices:
        frames = decode(path, indices, height=HEIGHT, width=WIDTH)
        assert frames.indices == indices
        assert torch.equal(frames.pixels, reference[indices]), indices
    assert torch.equal(decode(path, height=HEIGHT, width=WIDTH).pixels, reference)


@pytest.mark.parametrize("name", TRANSCODES)
def test_transcodes_are_frame_exact(name: str, encode: Encoder) -> None:
    path = encode(name, **TRANSCODES[name])
    assert_exact(path, draws=4)
    info = probe(path)
    assert info.num_frames == TRANSCODES[name].get("num_frames", 48)
    assert (info.width, info.height) == TRANSCODES[name].get("size", (160, 90))
    if "vfr" not in name:
        assert info.fps == pytest.approx(RATE, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "b.avi", "b.mp4", "muted_b.mp4", "world.mp4"])
def test_real_clips_are_frame_exact(name: str, real_clips: dict[str, Path]) -> None:
    assert_exact(real_clips[name], draws=1)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system has no such policies")
def test_encoding_leaves_the_tests_no_precedence(encode: Encoder) -> None:
    before = os.sched_getscheduler(0)
    assert before not in (os.SCHED_FIFO, os.SCHED_RR)
    encode("av1_precedence.mp4", codec="libsvtav1", num_frames=4, options={"preset": "12"})
    assert os.sched_getscheduler(0) == before


def test_header_counts_are_not_trusted(real_clips: dict[str, Path]) -> None:
    with av.open(str(real_clips["b.avi"])) as container:
        assert container.streams.video[0].frames == 151
    assert probe(real_clips["b.avi"]).num_frames == 150


def test_variable_rate_gives_true_times(encode: Encoder) -> None:
    frames = decode(encode("h264_vfr.mkv", times=TIMES), [0, 10, 47])
    assert frames.timestamps == pytest.approx([0, (TIMES[10] - TIMES[0]) / 1000, (TIMES[47] - TIMES[0]) / 1000])
    assert frames.info.fps == pytest.approx(47 / (TIMES[47] - TIMES[0]) * 1000)
    assert frames.info.duration == pytest.approx(48 / frames.info.fps)


def test_only_what_is_needed_is_decoded(encode: Encoder) -> None:
    """Damage in front of the last key frame is only noticed when that part is wanted."""
    for gop, reaches_the_damage in ((12, False), (250, True)):
        path = encode(f"h264_key{gop}.mp4", gop=gop)
        reference = plain_decode(path)
        with av.open(str(path)) as container:
            packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
        data = bytearray(path.read_bytes())
        for position, size in packets[4:8]:
            data[position + 8 : position + size] = bytes(size - 8)
        with pytest.raises(CorruptVideoError, match="damaged"):
            decode(bytes(data), [8], height=HEIGHT, width=WIDTH)
        if reaches_the_damage:
            with pytest.raises(CorruptVideoError):
                decode(bytes(data), [47], height=HEIGHT, width=WIDTH)
        else:
            assert torch.equal(decode(bytes(data), [47], height=HEIGHT, width=WIDTH).pixels[0], reference[47])


@pytest.mark.parametrize("name", ["h264_open_gop.mp4", "hevc_open_gop.mp4"])
def test_a_clip_cut_at_an_open_group(name: str, encode: Encoder) -> None:
    """Its first packets in order of presentation refer to what was cut off, and may not come out of the decoder."""
    path = encode(name, **TRANSCODES[name])
    cut = io.BytesIO()
    with av.open(str(path)) as source, av.open(cut, "w", format="mp4") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        second_key = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second_key:]:
            packet.stream = stream
            container.mux(packet)
    reference = plain_decode(io.BytesIO(cut.getvalue()))
    n = len(reference)
    assert probe(cut).num_frames in (n, len(packets) - second_key)
    for target in (0, n // 2, n - 1):
        assert torch.equal(decode(cut, [target], height=HEIGHT, width=WIDTH).pixels[0], reference[target])


@pytest.mark.parametrize("name", ["h264_no_pyramid.mkv", "hevc_pyramid.mkv"])
def test_pictures_that_nothing_refers_to_are_left_out(name: str, encode: Encoder) -> None:
    """They may be damaged where others are wanted, which come out exact; they themselves are then refused."""
    path = encode(name, **TRANSCODES[name])
    reference = plain_decode(path)
    with av.open(str(path)) as container:
        packets = sorted((p.pts, bytes(p)) for p in container.demux(video=0) if p.size)
    kinds = [(data[4] & 0x60) == 0 if "h264" in name else (data[4] >> 1 & 63) == 0 for _, data in packets]
    kinds = kinds[:24]
    unused = kinds.index(True, 12)
    wanted = kinds.index(False, unused)
    data = path.read_bytes()
    place = data.index(packets[unused][1])
    length = len(packets[unused][1])
    damaged = data[: place + 6] + bytes(length - 6) + data[place + length :]
    assert sum(kinds) >= 8
    assert torch.equal(decode(damaged, [wanted], height=HEIGHT, width=WIDTH).pixels[0], reference[wanted])
    with pytest.raises(CorruptVideoError):
        decode(damaged, [unused])


def test_recording_that_begins_between_key_frames(encode: Encoder) -> None:
    """Cut at the front, as a broadcast is recorded: frame 0 is the first that can be decoded."""
    data = encode("h264.ts").read_bytes()
    cut = data[len(data) // 3 // 188 * 188 :]
    reference = plain_decode(encode("h264.ts"))
    pixels = decode(cut, height=HEIGHT, width=WIDTH).pixels
    assert 12 <= len(pixels) <= 32
    assert torch.equal(pixels, reference[-len(pixels) :])


ORIENTATIONS: dict[str, tuple[tuple[int, int, int, int], Callable[[torch.Tensor], torch.Tensor]]] = {
    "clockwise": ((0, 1, -1, 0), lambda image: torch.rot90(image, -1, (1, 2))),
    "counterclockwise": ((0, -1, 1, 0), lambda image: torch.rot90(image, 1, (1, 2))),
    "upside_down": ((-1, 0, 0, -1), lambda image: image.flip(1, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image.flip(2)),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 2)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_camera_orientation_is_applied(encode: Encoder, name: str) -> None:
    """A phone stores the picture as its sensor sees it and notes in the track header how to show it."""
    (a, b, c, d), turn = ORIENTATIONS[name]
    path = encode("h264_key12.mp4")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    expected = turn(decode(path, [5]).pixels[0])
    frames = decode(bytes(data), [5])
    assert torch.equal(frames.pixels[0], expected)
    assert (frames.info.height, frames.info.width) == tuple(expected.shape[1:])
    assert decode(bytes(data), [5], height=20, width=30).pixels.shape == (1, 3, 20, 30)


def test_pixels_are_those_of_the_source(encode: Encoder, source_frames: np.ndarray) -> None:
    source = torch.from_numpy(source_frames).permute(0, 3, 1, 2).float()
    for name in ("h264_key12.mp4", "h264_10bit.mp4", "alpha.mov"):
        frames = decode(encode(name, **TRANSCODES[name]), [0, 20, 40])
        assert frames.pixels.dtype == torch.uint8
        assert frames.pixels.shape == (3, 3, 90, 160)
        assert (frames.pixels.float() - source[[0, 20, 40]]).abs().mean() < 6
    grey = decode(encode("grey_10bit.mkv", **TRANSCODES["grey_10bit.mkv"]), [0]).pixels[0].int()
    assert (grey[0] - grey[1]).abs().max() <= 1
    assert (grey[1] - grey[2]).abs().max() <= 1


def test_a_function_chooses_from_the_info(encode: Encoder) -> None:
    frames = decode(encode("h264_key12.mp4"), lambda info: [info.num_frames - 1, 0, 0], height=HEIGHT, width=WIDTH)
    assert frames.indices == [47, 0, 0]
    assert frames.repeated
    assert torch.equal(frames.pixels[1], frames.pixels[2])
    assert frames.timestamps == pytest.approx([47 / RATE, 0, 0])


class Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation


def test_kinds_of_source(encode: Encoder, tmp_path: Path) -> None:
    path = encode("h264_key12.mp4")
    data = path.read_bytes()
    misnamed = tmp_path / "clip.txt"
    misnamed.write_bytes(data)
    expected = decode(path, [3], height=HEIGHT, width=WIDTH).pixels
    with path.open("rb") as file:
        file.seek(1000)
        sources = [
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            Unseekable(data),
            misnamed,
        ]
        for source in sources:
            assert torch.equal(decode(source, [3], height=HEIGHT, width=WIDTH).pixels, expected), source
        assert not file.closed
    with path.open(errors="replace") as text, pytest.raises(TypeError, match="binary file object, not TextIOWrapper"):
        decode(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not ndarray"):
        decode(np.zeros((4, 8, 8, 3), np.uint8))  # type: ignore[arg-type]


def test_wrong_choices_of_frames(encode: Encoder) -> None:
    path = encode("h264_key12.mp4")
    with pytest.raises(IndexError, match="frame 48 was requested, and the last frame is 47"):
        decode(path, [48])
    with pytest.raises(IndexError, match="frame -1"):
        decode(path, [-1])
    with pytest.raises(ValueError, match="no frame was requested"):
        decode(path, [])


@pytest.fixture
def server(encode: Encoder) -> Iterator[str]:
    folder = encode("h264_key12.mp4").parent
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


def test_web_addresses_only_when_asked(server: str, encode: Encoder) -> None:
    url = f"{server}/h264_key12.mp4"
    with pytest.raises(VideoDecodeError, match="allow_url=True"):
        decode(url, [0])
    assert torch.equal(decode(url, [7], allow_url=True).pixels, decode(encode("h264_key12.mp4"), [7]).pixels)
    with pytest.raises(VideoDecodeError, match=r"missing.mp4: the download failed \(HTTP Error 404"):
        decode(f"{server}/missing.mp4", [0], allow_url=True)
    with pytest.raises(VideoTooLargeError, match="bytes"):
        decode(url, [0], allow_url=True, limits=VideoLimits(max_file_size=1000))


def test_not_a_video(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("These are my notes about the video.\n" * 50)
    with pytest.raises(NotAVideoError, match=r"notes.mp4: its content has no video.*Check the content") as caught:
        decode(text)
    assert caught.value.source == str(text)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(EmptyVideoError, match=r"empty.mp4: the file has zero bytes"):
        probe(empty)
    with pytest.raises(NotAVideoError, match="5000 bytes"):
        decode(random.Random(0).randbytes(5000))
    with pytest.raises(FileNotFoundError, match=r"nowhere.mp4"):
        decode(tmp_path / "nowhere.mp4")


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(NoVideoStreamError, match=r"sound.mp4: there is no video stream in it \(streams: audio\)"):
        decode(path)


def test_a_stream_without_frames(encode: Encoder) -> None:
    data = encode("mpeg4_b.avi", **TRANSCODES["mpeg4_b.avi"]).read_bytes()
    with pytest.raises(EmptyVideoError, match="no frame"):
        decode(data[: data.index(b"movi") + 4])


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{path}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{path}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_open_nothing_else(kind: str, encode: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    video = encode("h264_key12.mp4")
    monkeypatch.chdir(video.parent)
    playlist = video.parent / f"{kind}.mp4"
    playlist.write_text(PLAYLISTS[kind].format(path=video, name=video.name))
    if kind == "concat":  # the trap is real: FFmpeg by itself follows it
        assert len(plain_decode(playlist)) == 48
    with pytest.raises(NotAVideoError, match="playlist"):
        decode(playlist)


@pytest.mark.parametrize("source", ["concat:h264_key12.mp4|h264_key12.mp4", "file:h264_key12.mp4", "subfile,,:x.mp4"])
def test_protocols_are_file_names(source: str, encode: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(encode("h264_key12.mp4").parent)
    with pytest.raises(FileNotFoundError):
        decode(source)


@pytest.mark.parametrize(
    "name", ["faststart.mp4", "h264_fragmented.mp4", "h264.mkv", "vp9.webm", "h264.flv", "mjpeg.avi"]
)
def test_truncated_files_raise_or_give_exact_frames(name: str, encode: Encoder) -> None:
    settings = {**TRANSCODES, "faststart.mp4": {"muxer": {"movflags": "faststart"}}}[name]
    path = encode(name, **settings)
    reference = plain_decode(path)
    data = path.read_bytes()
    cut = data[: len(data) * 6 // 10]
    with pytest.raises(TruncatedVideoError, match=r"ends early, after \d+ readable frames.*allow_truncated=True"):
        decode(cut)
    assert probe(cut).truncated
    frames = decode(cut, height=HEIGHT, width=WIDTH, allow_truncated=True)
    assert 8 <= len(frames.pixels) < 48
    times = [round(t * RATE) for t in frames.timestamps]  # a cut between B-frames leaves a hole in time, not in truth
    assert torch.equal(frames.pixels, reference[times])


def test_interrupted_recording(encode: Encoder) -> None:
    data = encode("h264_key12.mp4").read_bytes()
    assert data.rindex(b"moov") > len(data) // 2
    with pytest.raises(TruncatedVideoError, match="ends before its index"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("name", ["h264_key12.mp4", "h264.ts", "hevc.mp4", "mpeg4_b.mp4", "av1.mp4"])
def test_a_damaged_header_never_shifts_frames(name: str, encode: Encoder) -> None:
    """The start of a coded picture is destroyed: an error, not the frames that are left under new numbers."""
    path = encode(name, **TRANSCODES[name])
    with av.open(str(path)) as container:
        start = [packet.pos for packet in container.demux(video=0) if packet.size][30]
    data = path.read_bytes()
    damaged = data[:start] + bytes([0xFF] * 24) + data[start + 24 :]
    with pytest.raises(CorruptVideoError):
        decode(damaged)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (VideoLimits(max_pixels=160 * 90 - 1), "number of pixels of a frame is 14,400"),
        (VideoLimits(max_duration=1.5), "duration in seconds"),
        (VideoLimits(max_file_size=2000), "file size in bytes"),
        (VideoLimits(max_decoded_size=160 * 90 * 3 * 48 - 1), "frames requested"),
    ],
)
def test_limits(limits: VideoLimits, words: str, encode: Encoder) -> None:
    path = encode("h264_key12.mp4")
    with pytest.raises(VideoTooLargeError, match=words) as caught:
        decode(path, limits=limits)
    assert path.name in str(caught.value)
    assert "VideoLimits(max_" in str(caught.value)
    unlimited = VideoLimits(None, None, None, None)
    assert len(decode(path, limits=unlimited).pixels) == 48


def test_errors_survive_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(TruncatedVideoError("clip.mp4", "it ends", "Get it again")))
    assert isinstance(error, TruncatedVideoError)
    assert str(error) == "clip.mp4: it ends. Get it again"


def test_decoding_does_not_leak_files(encode: Encoder) -> None:
    path = encode("h264_key12.mp4")
    count: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("counts open files through /proc")
    before = count()
    for _ in range(5):
        decode(path, [1])
        with pytest.raises(IndexError):
            decode(path, [99])
    assert count() <= before


@pytest.mark.parametrize("name", ["title.mp4", "title.mkv"])
def test_a_title_need_not_be_text(name: str, encode: Encoder, tmp_path: Path) -> None:
    with av.open(str(encode("h264_key12.mp4"))) as source, av.open(str(tmp_path / name), "w") as made:
        made.metadata["title"] = "HolidayHoliday"
        stream = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    content = (tmp_path / name).read_bytes()
    assert content.count(b"HolidayHoliday") == 1
    latin = content.replace(b"HolidayHoliday", b"Caf\xe9Caf\xff\xfe12345")
    assert torch.equal(decode(latin, [7]).pixels, decode(encode("h264_key12.mp4"), [7]).pixels)


def test_the_log_of_pyav_is_off_while_decoding(encode: Encoder) -> None:
    before = av.logging.get_level()
    av.logging.set_level(av.logging.DEBUG)  # its threads would wait for Python, which waits for them
    try:
        for _ in range(20):
            assert decode(encode("h264_key1.mp4", gop=1), [40]).indices == [40]
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(before)
