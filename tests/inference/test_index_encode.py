"""Decoding goes on while the model encodes, and no more is decoded ahead than there is room for."""

import os
import threading

import pytest

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, bundled_model
from alpro_hf.data.windows import WindowSettings
from alpro_hf.inference import index_encode
from alpro_hf.inference.index_encode import encode_videos
from alpro_hf.sprites.films import write_films
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene

WINDOWS = WindowSettings((0.5,), stride=0.25, short=0, shortest=0.25, cuts=None)
BATCH = 2
DECODERS = 2  # threads; each may hold the clip that it puts, and of a file the window before it


class Counted:
    """Windows as they are decoded: how many there were, and a way to wait for more."""

    def __init__(self, decode) -> None:
        self.decode, self.count, self.changed = decode, 0, threading.Condition()

    def __call__(self, *args, **options):
        for window in self.decode(*args, **options):
            with self.changed:
                self.count += 1
                self.changed.notify_all()
            yield window

    def reaches(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, timeout=60)

    def settled(self) -> int:
        """The count once it has stayed for half a second."""
        with self.changed:
            while self.changed.wait(0.5):
                pass
            return self.count


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    options = {"scenes": (3, 3), "seconds": (1.5, 2), "size": 64, "workers": 1, "progress": False}
    folder = write_films(tmp_path_factory.mktemp("films"), "validation", 3, **options)
    return sorted((folder / "films").iterdir())


@pytest.fixture
def loaded():
    folder = bundled_model("retrieval")
    return AlproForVideoTextRetrieval.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)


@pytest.fixture
def counted(monkeypatch):
    found = Counted(index_encode.model_windows)
    monkeypatch.setattr(index_encode, "model_windows", found)
    return found


def test_the_next_clips_are_decoded_while_the_model_works(loaded, films, counted, monkeypatch):
    model, processor = loaded
    encode, waited = model.alpro.get_video_features, []

    def waits(pixels):
        waited.append(counted.reaches(BATCH * len(waited) + 2 * BATCH))  # those of this batch and of the next one
        return encode(pixels)

    monkeypatch.setattr(model.alpro, "get_video_features", waits)
    batches = encode_videos(model, processor, films, BATCH, windows=WINDOWS)
    for _ in range(4):
        next(batches)
    batches.close()
    assert waited == [True] * 4


def test_what_is_decoded_ahead_is_bounded_and_loses_nothing(loaded, films, counted):
    batches = encode_videos(*loaded, films, BATCH, windows=WINDOWS)
    found = next(batches)
    room = 2 * BATCH + 1 + 2 * DECODERS
    assert BATCH < counted.settled() <= BATCH + room
    taken = BATCH
    for batch in batches:
        taken += len(batch)
        assert counted.count <= taken + room
        found += batch
    assert len(found) == counted.count > 40 > 3 * room
    # in the order of the files, and of the times in each
    places = [(films.index(video.path), video.start) for video in found]
    assert places == sorted(places)
    assert [video.final for video in found].count(True) == len(films)


def test_an_unexpected_error_of_a_thread_is_raised_at_its_file(loaded, films, monkeypatch):
    decode = index_encode.model_windows

    def breaks(source, *args, **options):
        if source == films[1]:
            raise ZeroDivisionError
        return decode(source, *args, **options)

    monkeypatch.setattr(index_encode, "model_windows", breaks)
    seen = []

    def read() -> None:
        for batch in encode_videos(*loaded, films, BATCH, windows=WINDOWS):
            seen.extend(batch)

    with pytest.raises(ZeroDivisionError):
        read()
    assert {video.path for video in seen} == {films[0]}


def test_a_file_given_twice_is_encoded_twice(loaded, films):
    [first, second] = (
        [video for batch in encode_videos(*loaded, files, 4, windows=WINDOWS) for video in batch]
        for files in (films[:1], [films[0], films[0]])
    )
    assert [video.start for video in second] == 2 * [video.start for video in first]


@pytest.mark.parametrize("count", [1, 3])
def test_clips_decoded_at_the_same_time_share_the_cores(loaded, tmp_path, monkeypatch, count):
    clips = [tmp_path / f"{number}.mp4" for number in range(count)]
    for number, clip in enumerate(clips):
        write_clip(clip, draw_scene("validation", 0, number), size=64)
    decode, threads = index_encode.decode, []

    def noting(*source, **options):
        threads.append(options["threads"])
        return decode(*source, **options)

    monkeypatch.setattr(index_encode, "decode", noting)
    assert sum(len(batch) for batch in encode_videos(*loaded, clips, BATCH)) == count
    assert threads == ([0] if count == 1 else [max(1, os.cpu_count() // DECODERS)] * count)
