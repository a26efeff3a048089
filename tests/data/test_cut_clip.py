"""Moments as files of their own: which frames they hold, how long they last, and what they sound like."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame

from alpro_hf.data.cut_clip import CutError, cut_clip
from alpro_hf.data.spans import Span, SpanError
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_types import VideoDecodeError

RATE, FRAMES, SOUND = 10, 60, 16000
TONES = (400, 800, 1200, 1600, 2000, 2400)  # Hz in each second


def write_source(
    path: Path, codec: str = "libx264", sound: str | None = "aac", times: list[int] | None = None
) -> Path:
    """Six seconds, of which each frame is a picture of its own and each second has a tone; key frames every 1.5 s."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as output:
        pictures = output.add_stream(codec, rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        pictures.codec_context.gop_size = 15
        if codec == "libx264":
            pictures.options = {"threads": "1", "sc_threshold": "0"}
            pictures.codec_context.max_b_frames = 2
        if times:
            pictures.codec_context.time_base = Fraction(1, 1000)
        heard = output.add_stream(sound, rate=SOUND, layout="mono") if sound else None
        for number in range(FRAMES):
            blocks = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8)), "rgb24")
            frame.pts, frame.time_base = (times[number], Fraction(1, 1000)) if times else (number, Fraction(1, RATE))
            output.mux(pictures.encode(frame))
            if heard is not None:
                n = SOUND // RATE
                seconds = (np.arange(n) + number * n) / SOUND
                wave = 0.5 * np.sin(2 * np.pi * TONES[number // RATE] * seconds)
                part = AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = SOUND, number * n, Fraction(1, SOUND)
                output.mux(heard.encode(part))
        output.mux(pictures.encode(None))
        if heard is not None:
            output.mux(heard.encode(None))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {end: write_source(folder / f"source.{end}") for end in ("mp4", "mkv", "ts", "mov")}


def tones_of(path: Path) -> tuple[list[float], float]:
    """The loudest frequency in the middle of each second, and the seconds of sound."""
    resampler = av.AudioResampler("fltp", "mono", SOUND)
    with av.open(str(path)) as clip:
        parts = [part.to_ndarray()[0] for frame in clip.decode(audio=0) for part in resampler.resample(frame)]
    wave = np.concatenate(parts)
    found = []
    for second in range(len(wave) // SOUND):
        middle = wave[second * SOUND + SOUND // 4 : second * SOUND + 3 * SOUND // 4]
        found.append(float(np.abs(np.fft.rfft(middle)).argmax()) * SOUND / len(middle))
    return found, len(wave) / SOUND


def pixels(path: Path, frames: list[int] | None = None) -> np.ndarray:
    return decode(path, frames).pixels.numpy().astype(int)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov"])
def test_a_copy_starts_at_the_key_frame_before_and_changes_nothing(sources, tmp_path, container) -> None:
    source, output = sources[container], tmp_path / "out.mp4"
    clip = cut_clip(source, output, Span(3.6, 5.0))  # key frames at 0, 1.5, 3.0, 4.5
    assert (clip.path, round(clip.start, 3), round(clip.end, 3)) == (output, 3.0, 5.0)
    shown = decode(output)
    assert 20 <= shown.info.num_frames <= 23  # those behind the end are needed by others before it
    assert shown.info.codec == "h264" and shown.timestamps[:20] == pytest.approx([i / RATE for i in range(20)])
    assert (pixels(output)[:20] == pixels(source, list(range(30, 50)))).all()
    tones, seconds = tones_of(output)
    assert tones == pytest.approx([TONES[3], TONES[4]], abs=5) and seconds == pytest.approx(2.0, abs=0.15)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov"])
def test_exact_holds_the_frames_of_the_moment_and_no_others(sources, tmp_path, container) -> None:
    source, output = sources[container], tmp_path / "out.mp4"
    clip = cut_clip(source, output, Span(2.0, 5.0), exact=True)
    assert (clip.start, clip.end) == (2.0, 5.0)
    shown = decode(output)
    assert shown.info.num_frames == 30 and shown.info.duration == pytest.approx(3.0, abs=1e-3)
    assert shown.info.codec == "h264" and shown.timestamps == pytest.approx([i / RATE for i in range(30)], abs=1e-4)
    difference = np.abs(pixels(output) - pixels(source, list(range(20, 50)))).mean((1, 2, 3))
    assert difference.max() < 6  # another frame differs by some 80
    tones, seconds = tones_of(output)
    assert tones[:3] == pytest.approx(TONES[2:5], abs=5) and seconds == pytest.approx(3.0, abs=0.15)
    with av.open(str(output)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.duration / 1e6 == pytest.approx(3.0, abs=0.15)


def test_the_whole_video_and_its_edges(sources, tmp_path) -> None:
    source = sources["mp4"]
    for exact in (False, True):
        clip = cut_clip(source, tmp_path / f"{exact}.mp4", exact=exact)
        assert (clip.start, clip.end) == (0.0, pytest.approx(6.0))
        assert decode(clip.path).info.num_frames == FRAMES
    assert (pixels(tmp_path / "False.mp4") == pixels(source)).all()
    # within one frame, that frame is shown for as long as the moment
    clip = cut_clip(source, tmp_path / "short.mp4", Span(2.02, 2.06), exact=True)
    shown = decode(clip.path)
    assert shown.info.num_frames == 1
    assert np.abs(pixels(clip.path) - pixels(source, [20])).mean() < 6
    clip = cut_clip(source, tmp_path / "end.mp4", Span(5.0, 6.4), exact=True)  # written in whole seconds
    assert (clip.end, decode(clip.path).info.num_frames) == (pytest.approx(6.0), 10)


def test_without_sound_and_at_uneven_times(tmp_path) -> None:
    times = [number * 100 if number < 30 else 3000 + (number - 30) * 40 for number in range(FRAMES)]
    source = write_source(tmp_path / "uneven.mkv", sound=None, times=times)
    clip = cut_clip(source, tmp_path / "copy.mp4", Span(2.5, 3.4))
    assert (clip.start, clip.end) == (pytest.approx(1.5), pytest.approx(3.4))
    assert (pixels(clip.path)[:25] == pixels(source, list(range(15, 40)))).all()
    clip = cut_clip(source, tmp_path / "exact.mp4", Span(2.55, 3.4), exact=True)
    shown = decode(clip.path)
    # the frame of 2.5 s is shown at the start
    expected = [0, *[time / 1000 - 2.55 for time in times[26:40]]]
    assert shown.timestamps == pytest.approx(expected, abs=1e-3)
    assert np.abs(pixels(clip.path) - pixels(source, list(range(25, 40)))).mean((1, 2, 3)).max() < 6
    with av.open(str(clip.path)) as container:
        assert not container.streams.audio


def test_what_an_mp4_cannot_hold_is_said_and_can_be_encoded(tmp_path) -> None:
    pictures = write_source(tmp_path / "vp8.webm", "libvpx", sound="libopus")
    sound = write_source(tmp_path / "adpcm.avi", "mpeg4", sound="adpcm_ms")
    for source, codec in ((pictures, "vp8"), (sound, "adpcm_ms")):
        with pytest.raises(CutError, match=rf"an mp4 cannot hold its codec {codec}\. .*--exact"):
            cut_clip(source, tmp_path / "out.mp4", Span(1, 2))
        assert not (tmp_path / "out.mp4").exists() and not list(tmp_path.glob(".*"))
        clip = cut_clip(source, tmp_path / f"{codec}.mp4", Span(1, 3), exact=True)
        assert decode(clip.path).info.num_frames == 20
        assert tones_of(clip.path)[0][:2] == pytest.approx(TONES[1:3], abs=5)


def test_nothing_is_overwritten_and_failures_leave_nothing(sources, tmp_path) -> None:
    source, output = sources["mp4"], tmp_path / "out.mp4"
    output.write_text("mine")
    with pytest.raises(CutError, match=r"out\.mp4: the file exists already"):
        cut_clip(source, output, Span(1, 2))
    assert output.read_text() == "mine"
    cut_clip(source, output, Span(1, 2), overwrite=True)
    assert decode(output).info.codec == "h264"
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(source.read_bytes())
    with pytest.raises(CutError, match="it is the video itself"):
        cut_clip(copy, copy, Span(1, 2), overwrite=True)
    with pytest.raises(SpanError, match=r"lasts 6 s"):
        cut_clip(source, tmp_path / "late.mp4", Span(7, 8))
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    with pytest.raises(VideoDecodeError, match=r"notes\.mp4"):
        cut_clip(text, tmp_path / "late.mp4")
    damaged = bytearray(source.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 4000] = bytes(4000)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    with pytest.raises(VideoDecodeError, match=r"damaged\.mp4"):
        cut_clip(tmp_path / "damaged.mp4", tmp_path / "late.mp4", exact=True)
    assert not (tmp_path / "late.mp4").exists() and not list(tmp_path.glob(".*"))
