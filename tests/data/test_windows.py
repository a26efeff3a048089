"""Windows of a video that comes frame by frame: where they lie, what they show, and how little is kept."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro_hf.data.windows import CUTS, Window, WindowCutter, WindowSettings, overlap, stream_windows, suppress
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_types import VideoDecodeError, VideoTooLargeError
from alpro_hf.sprites.films import draw_films, write_films

STILL = WindowSettings(lengths=(15,), cuts=None)
ONE_LENGTH = WindowSettings(lengths=(15,))


def frame(number: int, colour: int = 0) -> np.ndarray:
    """A picture that tells its number, and has a colour."""
    picture = np.full((3, 16, 16), colour, np.uint8)
    picture[:, 0, 0] = number // 256, number % 256, 0
    return picture


def number_of(picture: np.ndarray) -> int:
    return int(picture[0, 0, 0]) * 256 + int(picture[1, 0, 0])


def cut(duration: float, rate: float, options: WindowSettings, num_frames: int = 4, colours=lambda time: 0):
    cutter = WindowCutter(options, num_frames)
    windows: list[Window] = []
    for number in range(round(duration * rate)):
        windows += cutter.feed(number / rate, frame(number, colours(number / rate)))
    return windows + cutter.finish(duration)


def spans(windows: list[Window]) -> list[tuple[float, float]]:
    return [(round(window.start, 6), round(window.end, 6)) for window in windows]


def test_windows_follow_each_other_and_the_last_reaches_the_end():
    assert spans(cut(40, 5, STILL)) == [(0, 15), (7.5, 22.5), (15, 30), (22.5, 37.5), (25, 40)]
    assert spans(cut(37.5, 5, STILL)) == [(0, 15), (7.5, 22.5), (15, 30), (22.5, 37.5)]
    assert spans(cut(15, 5, STILL)) == [(0, 15)]
    assert spans(cut(4, 5, STILL)) == [(0, 4)]
    assert spans(cut(9, 5, WindowSettings(lengths=(3,), stride=3, cuts=None))) == [(0, 3), (3, 6), (6, 9)]
    assert WindowCutter(STILL, 4).finish(0) == []


def test_several_lengths_and_a_window_that_two_of_them_share_once():
    several = WindowSettings(lengths=(4, 8), stride=6, cuts=None)
    assert sorted(spans(cut(14, 5, several))) == [(0, 4), (0, 8), (3, 7), (6, 10), (6, 14), (9, 13), (10, 14)]
    assert spans(cut(5, 5, several)) == [(0, 4), (0, 5), (1, 5)]
    assert spans(cut(3, 5, several)) == [(0, 3)]


def test_a_shot_as_long_as_a_shorter_window_is_one_window():
    for lengths, duration in (((4, 8), 4), ((15, 7.5), 7.5), ((6, 3, 1.5), 3)):
        found = spans(cut(duration, 10, WindowSettings(lengths=lengths, cuts=None)))
        assert len(set(found)) == len(found) and (0, duration) in found


def test_a_window_shows_the_frames_at_the_middles_of_its_parts():
    for window in cut(40, 5, STILL):
        shown = [number_of(picture) for picture in window.pixels]
        middles = [window.start + (part + 0.5) * (window.end - window.start) / 4 for part in range(4)]
        assert shown == [int(np.floor(middle * 5 + 1e-9)) for middle in middles]


def test_windows_end_at_cuts():
    colours = lambda time: 20 if time < 4 else 200 if time < 6.4 else 90  # noqa: E731
    windows = cut(24, 5, ONE_LENGTH, colours=colours)
    assert spans(windows) == [(0, 4), (4, 6.4), (6.4, 21.4), (9, 24)]
    for window, colour in zip(windows, (20, 200, 90, 90), strict=True):
        assert (window.pixels[:, :, 1:, 1:] == colour).all()


def test_slow_and_steady_changes_are_no_cuts_and_short_shots_are_joined():
    fading = lambda time: int(time * 25)  # noqa: E731  (5 a frame)
    assert spans(cut(10, 5, ONE_LENGTH, colours=fading)) == [(0, 10)]
    flicker = lambda time: 200 * (round(time * 5) % 2)  # noqa: E731
    assert spans(cut(10, 5, ONE_LENGTH, colours=flicker)) == [(0, 10)]
    flash = lambda time: 200 if 4 <= time < 4.2 else 0  # noqa: E731  (each side is a cut, the shot between too short)
    assert spans(cut(8, 5, ONE_LENGTH, colours=flash)) == [(0, 4), (4, 8)]


def test_frames_at_uneven_times():
    cutter = WindowCutter(WindowSettings(lengths=(4,), stride=2, cuts=None), 2)
    windows = [window for time in (0, 0.5, 3, 3.1, 9) for window in cutter.feed(time, frame(round(time * 10)))]
    windows += cutter.finish(10)
    shown = {(window.start, window.end): [number_of(picture) for picture in window.pixels] for window in windows}
    # from 3.1 s to 9 s the picture stands still
    assert shown == {(0, 4): [5, 30], (2, 6): [30, 31], (4, 8): [31, 31], (6, 10): [31, 90]}


def test_memory_is_that_of_one_window():
    cutter, most = WindowCutter(WindowSettings(lengths=(3,), stride=1.5), 4), 0
    for number in range(2000):
        cutter.feed(number / 5, frame(number % 250))
        most = max(most, len(cutter._kept))
    assert most <= 3 * 5 + 2


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=60),
    st.floats(0.5, 10),
    st.floats(0.1, 1),
    st.integers(1, 9),
    st.lists(st.integers(0, 255), min_size=60, max_size=60),
)
def test_any_video_is_covered_wholly_and_in_order(gaps, length, share, num_frames, colours):
    options = WindowSettings(lengths=(length,), stride=max(0.1, share * length), shortest=min(1.0, length))
    cutter, time, windows = WindowCutter(options, num_frames), 0.0, []
    for number, gap in enumerate(gaps):
        windows += cutter.feed(time, frame(number, colours[number]))
        time += gap
    windows += cutter.finish(time)
    assert windows[0].start == 0 and windows[-1].end == time
    for window in windows:
        assert 0 < window.end - window.start <= length + 1e-9
        assert window.pixels.shape == (num_frames, 3, 16, 16)
    for one, other in itertools.pairwise(windows):
        assert one.start <= other.start <= one.end + 1e-9 and one.end < other.end + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": (15, 0)}, "length is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": -1}, "stride is -1"),
        ({"stride": 20}, "would be in none"),
        ({"lengths": (float("nan"),)}, "length is nan"),
        ({"lengths": (float("inf"),)}, "length is inf"),
        ({"short": -1}, "short is -1"),
        ({"lengths": ()}, "lengths is empty"),
        ({"shortest": 8}, "longer than a window"),
        ({"lengths": (1e300, 0.1), "stride": 0.1}, "at most 3600"),
        ({"lengths": (3600, 0.1), "stride": 0.1, "shortest": 0.1}, "would lie 2.8e-06 s apart"),  # never ended
        ({"lengths": tuple(range(1, 18))}, "there are 17 lengths"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowSettings(**arguments)
    with pytest.raises(ValueError, match="at least 1 frame"):
        WindowCutter(STILL, 0)


def test_overlapping_moments_are_suppressed_and_videos_limited():
    moments = [("a", 0, 10), ("a", 2, 12), ("b", 2, 12), ("a", 9, 19), ("a", 20, 30), ("b", 12, 13)]
    assert suppress(moments) == [0, 2, 3, 4, 5]
    assert suppress(moments, per_video=1) == [0, 2]
    assert suppress(moments, per_video=2) == [0, 2, 3, 5]
    assert suppress(moments, most=1.0) == [0, 1, 2, 3, 4, 5]
    assert overlap(0, 10, 5, 15) == pytest.approx(1 / 3) and overlap(0, 1, 2, 3) == 0 and overlap(1, 1, 1, 1) == 1


@pytest.mark.parametrize("cuts", ["changes", "scenes"])
def test_a_film_is_cut_at_its_scenes_in_one_pass(tmp_path, cuts):
    if cuts == "scenes":
        pytest.importorskip("scenedetect")
    [film] = draw_films("validation", 1, scenes=(6, 6), seconds=(1.5, 3))
    folder = write_films(tmp_path, "validation", 1, scenes=(6, 6), seconds=(1.5, 3), size=64, progress=False)
    path = folder / film.name
    windows = list(stream_windows(path, WindowSettings(short=0, cuts=cuts), 4, height=32, width=32))
    edges = [scene.first / 12 for scene in film.scenes] + [decode(path, [0]).info.duration]
    assert len(windows) == len(film.scenes)
    for window, start, end in zip(windows, edges[:-1], edges[1:], strict=True):
        # frames are fed every 0.2 s, so a cut is found up to that much late
        assert start <= window.start <= start + 0.2 and end <= window.end <= end + 0.2 + 1e-6
        assert window.pixels.shape == (4, 3, 32, 32)
        middles = [window.start + (part + 0.5) * (window.end - window.start) / 4 for part in range(4)]
        exact = decode(path, lambda info, middles=middles: info.frames_at(middles), height=32, width=32).pixels
        assert np.abs(exact.numpy().astype(int) - window.pixels).mean() < 12  # of the same scene, at most 0.2 s apart


class FifthFrame:
    """A detector that knows two frames later that the fifth frame begins a shot."""

    delay = 2

    def __init__(self):
        self.seen = 0

    def is_cut(self, pixels):
        self.seen += 1
        return self.seen == 5 + self.delay


def test_a_detector_may_know_later(monkeypatch):
    monkeypatch.setitem(CUTS, "sudden", FifthFrame)
    assert spans(cut(3, 5, WindowSettings(lengths=(15,), cuts="sudden", shortest=0.5))) == [(0, 0.8), (0.8, 3)]
    # too few frames follow the fifth one
    assert spans(cut(1.2, 5, WindowSettings(lengths=(15,), cuts="sudden", shortest=0.5))) == [(0, 1.2)]


def test_damage_on_the_way_keeps_the_windows_before_it(tmp_path):
    write_films(tmp_path, "validation", 1, scenes=(12, 12), seconds=(1.5, 3), size=64, progress=False)
    path = tmp_path / "validation-films" / "films" / "00000.mp4"
    whole = list(stream_windows(path, WindowSettings(short=0), 4, height=32, width=32))
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) * 2 // 3
    data[place : place + 3000] = bytes(3000)
    path.write_bytes(data)
    found = []
    with pytest.raises(VideoDecodeError, match=r"00000\.mp4"):  # noqa: PT012
        for window in stream_windows(path, WindowSettings(short=0), 4, height=32, width=32):
            found.append(window)
    assert 2 <= len(found) < len(whole)
    assert found[:-1] == whole[: len(found) - 1]  # the last one may end early


def test_a_clip_of_weeks_ends_at_once(tmp_path):
    """A hostile clip of a few kilobytes: its last frame comes after weeks."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"threads": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for time in (0, 1, 2, 10**6):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(VideoTooLargeError, match="limit is 21,600"):
        list(stream_windows(path, WindowSettings(), 4, height=16, width=16))


def test_a_window_of_a_billion_frames_is_refused_before_it_is_made():
    with pytest.raises(VideoTooLargeError, match="1,000,000,000 frames was asked for"):
        next(stream_windows("no file is opened", WindowSettings(), 10**9))


def fading(time: float, *middles: float, seconds: float = 1.0) -> int:
    """A grey that fades, in a second around each of the middles, by 45 up or down."""
    place = sum(min(max((time - middle) / seconds + 0.5, 0), 1) * (-1) ** i for i, middle in enumerate(middles))
    return round(100 + 45 * place)


def test_windows_end_in_the_middle_of_fades():
    colours = lambda time: fading(time, 4, 9.4)  # noqa: E731
    windows = cut(14, 5, ONE_LENGTH, colours=colours)
    assert len(windows) == 3 and windows[0].start == 0 and windows[-1].end == 14
    for window, other, middle in zip(windows, windows[1:], (4, 9.4), strict=False):
        assert window.end == other.start and abs(window.end - middle) <= 0.5
    assert spans(cut(14, 5, WindowSettings(lengths=(15,), cuts="sudden"), colours=colours)) == [(0, 14)]


def test_a_steady_camera_and_slow_changes_are_no_fades():
    slow = lambda time: fading(time, 7, seconds=3)  # noqa: E731  (15 a second)
    assert spans(cut(14, 5, ONE_LENGTH, colours=slow)) == [(0, 14)]
    steady = lambda time: round(20 + 40 * time)  # noqa: E731  (fast, but no faster than before)
    assert spans(cut(5, 5, ONE_LENGTH, colours=steady)) == [(0, 5)]


def test_a_film_of_fades_is_cut_near_its_boundaries(tmp_path):
    [film] = draw_films("validation", 1, scenes=(8, 8), seconds=(2, 4))
    folder = write_films(tmp_path, "validation", 1, scenes=(8, 8), seconds=(2, 4), size=64, fade=1.5, progress=False)
    windows = list(stream_windows(folder / film.name, WindowSettings(short=0), 4, height=32, width=32))
    sudden = list(stream_windows(folder / film.name, WindowSettings(short=0, cuts="sudden"), 4, height=32, width=32))
    found = {name: [window.start for window in some] for name, some in (("all", windows), ("sudden", sudden))}
    edges = [scene.first / 12 for scene in film.scenes[1:]]
    near = {
        name: sum(any(abs(one - edge) <= 0.75 for one in starts) for edge in edges) for name, starts in found.items()
    }
    assert near["all"] >= 6 > near["sudden"]
