"""An evaluation decodes the next clips and windows while the model encodes, and not more than two batches of them."""

import threading

import numpy as np
import pytest

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, bundled_model
from alpro_hf.data.windows import WindowSettings
from alpro_hf.evaluation import encode
from alpro_hf.evaluation.encode import encode_rows, encode_windows
from alpro_hf.sprites.films import write_films

BATCH = 2


class Noted:
    """How many things were decoded, and a way to wait for more."""

    def __init__(self) -> None:
        self.count, self.changed = 0, threading.Condition()

    def one_more(self) -> None:
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def reaches(self, count: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, timeout=60)


class Rows:
    """Rows with a clip of noise each, which note that they are read."""

    def __init__(self, count: int, noted: Noted) -> None:
        self.rows = [{"video_id": number, "text": f"dog {number}"} for number in range(count)]
        self.clip = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
        self.noted = noted

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        return {**self.rows[number], "video": self.clip}

    def __getitems__(self, numbers: list[int]) -> list[dict]:  # which only the data loader calls
        for _ in numbers:
            self.noted.one_more()
        return [self[number] for number in numbers]


@pytest.fixture
def loaded():
    folder = bundled_model("retrieval")
    return AlproForVideoTextRetrieval.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)


def watch(model, monkeypatch, noted, total) -> list[tuple[bool, int]]:
    """Let the video tower wait for the next batch; for each call, whether it came, and how many were decoded then."""
    tower, seen = model.alpro.get_video_features, []

    def waits(pixels):
        came = noted.reaches(min(total, BATCH * (len(seen) + 2)))
        seen.append((came, noted.count))
        return tower(pixels)

    monkeypatch.setattr(model.alpro, "get_video_features", waits)
    return seen


def test_the_next_clips_are_decoded_while_the_model_works(loaded, monkeypatch) -> None:
    noted = Noted()
    seen = watch(loaded[0], monkeypatch, noted, 12)
    states, skipped = encode_rows(*loaded, Rows(12, noted), batch_size=BATCH)
    assert len(states.video_ids) == noted.count == 12 and not skipped
    assert [came for came, _ in seen] == [True] * 6
    for call, (_, count) in enumerate(seen):
        assert count <= BATCH * (call + 3)  # this batch and two more


def test_the_next_windows_are_decoded_while_the_model_works(loaded, monkeypatch, tmp_path) -> None:
    options = {"scenes": (2, 2), "seconds": (1.5, 2), "size": 64, "workers": 1, "progress": False}
    files = sorted((write_films(tmp_path / "films", "validation", 2, **options) / "films").iterdir())
    decode, noted = encode.model_windows, Noted()

    def counted(*args, **kwargs):
        for window in decode(*args, **kwargs):
            noted.one_more()
            yield window

    monkeypatch.setattr(encode, "model_windows", counted)
    windows = WindowSettings((1.0,), stride=0.5, short=0, cuts=None, shortest=0.5)
    rows = [{"video": str(file), "text": "a dog moves"} for file in [files[0], tmp_path / "none.mp4", files[1]]]
    alone, lost = encode_windows(*loaded, rows, windows, batch_size=1000)
    total, noted.count = noted.count, 0
    waited = watch(loaded[0], monkeypatch, noted, BATCH * 2)
    found, lost_again = encode_windows(*loaded, rows, windows, batch_size=BATCH)
    assert noted.count == total and waited[0][0] and len(waited) >= total / BATCH
    assert all(count <= BATCH * (call + 3) for call, (_, count) in enumerate(waited))
    assert [skip.row for skip in lost] == [skip.row for skip in lost_again] == [1]
    for one, two in zip(alone.videos, found.videos, strict=True):
        assert (one.rows, one.spans) == (two.rows, two.spans)
        assert np.allclose(one.embeds, two.embeds, atol=1e-5)
