"""Batches from rows: against the processor, with real files, broken ones, and in worker processes."""

import logging
import os
import threading

import numpy as np
import pytest
import torch
from fixtures import colours
from torch.utils.data import DataLoader

from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.prefetch import AT_ONCE
from alpro_hf.data.rows import NumberedRows
from alpro_hf.model.decoding import decode
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor


@pytest.fixture(scope="module")
def processor():
    return colours.processor()


@pytest.fixture
def noise():
    """Two clips of random pixels at the size of the processor."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (colours.FRAMES, colours.SIZE, colours.SIZE, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.parametrize("kind", ["array", "tensor", "read-only"])
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False}], ids=str)
def test_ready_clips_get_the_pixels_of_the_processor(processor, noise, kind, options):
    processor = colours.processor()
    for name, value in options.items():
        setattr(processor.video_processor, name, value)
    videos = [torch.from_numpy(clip) for clip in noise] if kind == "tensor" else noise
    if kind == "read-only":
        noise[0].flags.writeable = False
    batch = AlproCollator(processor)([{"video": video, "text": "red"} for video in videos])
    expected = processor(text=["red", "red"], videos=noise)
    torch.testing.assert_close(batch["pixel_values_videos"], expected["pixel_values_videos"], atol=1e-5, rtol=1e-5)
    assert batch["pixel_values_videos"].is_contiguous()
    assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_ready_clips_do_not_pass_through_the_processor(processor, noise, monkeypatch):
    monkeypatch.setattr(AlproVideoProcessor, "preprocess", lambda *args, **kwargs: pytest.fail("slow path"))
    assert len(AlproCollator(processor)([{"video": clip, "text": "red"} for clip in noise])["input_ids"]) == 2


def test_other_sizes_and_files_mix_with_ready_clips_in_order(processor, noise, encode):
    path = encode("plain.mp4")
    large = np.kron(noise[1], np.ones((1, 2, 2, 1), np.uint8))
    rows = [{"video": video, "text": "red"} for video in (path, noise[0], large, str(path))]
    batch = AlproCollator(processor)(rows)
    expected = processor.video_processor([path, noise[0], large, path])["pixel_values_videos"]
    torch.testing.assert_close(batch["pixel_values_videos"], expected, atol=1e-5, rtol=1e-5)
    assert batch["video_ids"][0] == batch["video_ids"][3]
    assert len(set(batch["video_ids"].tolist())) == 3


def test_a_cropping_processor_is_not_short_cut(noise):
    processor = colours.processor()
    processor.video_processor.do_center_crop = True
    processor.video_processor.crop_size = {"height": 8, "width": 8}
    batch = AlproCollator(processor)([{"video": noise[0], "text": "red"}])
    assert batch["pixel_values_videos"].shape[-2:] == (8, 8)


def test_ids_are_equal_where_clip_or_caption_are_and_stable(processor, noise):
    rows = [
        {"video": noise[0], "text": "red"},
        {"video": noise[0].copy(), "text": "blue"},
        {"video": noise[1], "text": "red"},
        {"video": noise[1], "text": "green", "video_id": 7},
        {"video": noise[0], "text": "green", "video_id": "clip-7"},
    ]
    batch = AlproCollator(processor)(rows)
    videos, texts = batch["video_ids"].tolist(), batch["text_ids"].tolist()
    assert videos[0] == videos[1] != videos[2]
    assert videos[3] == 7
    assert len(set(videos)) == 4
    assert texts[0] == texts[2]
    assert texts[3] == texts[4]
    assert len(set(texts)) == 3
    # the same in every process and on every machine, unlike hash()
    assert texts[0] == -6681078847286810355
    assert batch["video_ids"].dtype == batch["text_ids"].dtype == torch.int64


def test_questions_get_labels(processor):
    rows = colours.question_rows()
    batch = AlproCollator(processor, task="qa", label2id=colours.ANSWERS)(rows)
    assert batch["labels"].tolist() == [colours.ANSWERS.get(row["answer"], -100) for row in rows]
    assert batch["labels"][-1] == -100
    assert batch["answers"] == [row["answer"] for row in rows]
    assert batch["answer_types"][-1] == "how many"
    assert batch["video_index"].tolist() == list(range(len(rows)))
    assert "video_ids" not in batch
    assert AlproCollator(processor, task="qa", label2id=colours.ANSWERS)([{**rows[0], "answer_type": None}])


def questions_about(videos, **fields):
    """A row for each clip, with a question of its own; `fields` are lists of further fields."""
    more = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)] or [{}] * len(
        videos
    )
    words = ("which colour ?", "how many colours ?", "how many frames ?", "which ?", "how ?", "many ?")
    return [
        {"video": video, "question": words[i], "answer": list(colours.ANSWERS)[i], **more[i]}
        for i, video in enumerate(videos)
    ]


def asking(processor, **options):
    return AlproCollator(processor, task="qa", label2id=colours.ANSWERS, **options)


def test_questions_about_one_clip_share_its_pixels(processor, noise, encode):
    path, other = str(encode("plain.mp4")), encode("short.mp4")
    rows = questions_about([path, noise[0], other, encode("plain.mp4"), noise[1], other])
    for row, video_id in ((rows[1], "noise"), (rows[4], "more noise")):
        row["video_id"] = video_id
    batch = asking(processor)(rows)
    assert batch["video_index"].tolist() == [0, 1, 2, 0, 3, 2]
    assert batch["video_index"].dtype == torch.int64
    expected = processor.video_processor([path, noise[0], other, noise[1]])["pixel_values_videos"]
    torch.testing.assert_close(batch["pixel_values_videos"], expected, atol=1e-5, rtol=1e-5)
    # the words stay in their order, a row each
    alone = processor(text=[row["question"] for row in rows], return_tensors="pt")
    assert torch.equal(batch["input_ids"], alone["input_ids"])
    assert batch["answers"] == [row["answer"] for row in rows]
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_shared_clip_is_decoded_once(processor, encode, monkeypatch):
    path, decoded = encode("plain.mp4"), []
    preprocess = AlproVideoProcessor.preprocess
    monkeypatch.setattr(
        AlproVideoProcessor,
        "preprocess",
        lambda self, videos, **kw: decoded.append(videos) or preprocess(self, videos, **kw),
    )
    assert len(asking(processor)(questions_about([path] * 4))["pixel_values_videos"]) == 1
    assert len(decoded) == 1
    AlproCollator(processor)([{"video": path, "text": "red"}] * 4)
    assert len(decoded) == 5, "in contrastive learning each text has a clip"


def test_a_name_tells_clips_apart_and_arrays_without_one_are_not_compared(processor, noise, encode):
    def index(videos, **fields):
        return asking(processor)(questions_about(videos, **fields))["video_index"].tolist()

    same, path = noise[0].copy(), encode("plain.mp4")
    assert index([noise[0], same, noise[0]]) == [0, 1, 2]
    assert index([noise[0], same, noise[1]], video_id=[7, np.int64(7), 8]) == [0, 0, 1]
    assert index([noise[0], same, noise[1]], video_id=["a", "b", "a"]) == [0, 1, 0]
    assert index([path, path], video_id=["first half", "second half"]) == [0, 1]
    assert index([path, str(path), noise[0], noise[0]], video_id=[None] * 4) == [0, 0, 1, 2]


def test_the_frames_of_a_shared_clip_are_those_of_its_first_question(processor, encode):
    path = encode("plain.mp4")
    rows = questions_about([path, path], epoch=[1, 1], index=[5, 6])
    collator = asking(processor, train_sampling="random", seed=3)
    batch = collator(rows)
    assert torch.equal(batch["pixel_values_videos"], collator(rows[:1])["pixel_values_videos"])
    assert not torch.equal(batch["pixel_values_videos"], collator(rows[1:])["pixel_values_videos"])
    assert batch["row_ids"].tolist() == [5, 6]


def test_a_broken_clip_loses_all_its_questions_and_no_others(processor, noise, tmp_path, encode, caplog):
    broken, path = tmp_path / "broken.mp4", encode("plain.mp4")
    broken.write_bytes(b"no video at all" * 100)
    rows = questions_about([broken, path, noise[0], broken, str(broken), path])
    collator = asking(processor)
    with caplog.at_level(logging.WARNING, logger="alpro_hf"):
        batch = collator(NumberedRows(rows).__getitems__(list(range(6))))
    kept = [1, 2, 5]
    alone = asking(processor)([rows[i] for i in kept])
    assert batch["row_ids"].tolist() == kept
    assert batch["video_index"].tolist() == [0, 1, 0]
    for name in ("input_ids", "attention_mask", "pixel_values_videos", "labels", "video_index"):
        assert torch.equal(batch[name], alone[name]), name
    assert batch["answers"] == alone["answers"]
    assert collator.dropped == 3
    (warning,) = caplog.messages
    assert warning.startswith("3 rows dropped, 3 in all so far") and str(broken) in warning


def test_a_batch_about_one_broken_clip_names_it_once(processor, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)batch of 3.*a\.mp4") as caught:
        asking(processor)(questions_about([tmp_path / "a.mp4"] * 3))
    assert str(caught.value).count("a.mp4") == 1


def epoch_pixels(collator, path, **numbers):
    return collator([{"video": path, "text": "red", **numbers}])["pixel_values_videos"]


def test_training_frames_depend_on_seed_epoch_and_index(processor, encode):
    path = encode("plain.mp4")
    collator = AlproCollator(processor, train_sampling="random", seed=3)
    drawn = epoch_pixels(collator, path, epoch=1, index=5)
    expected = processor.video_processor(
        path, frame_sampling="random", sampling_seed=3, sampling_epoch=1, sampling_index=5
    )["pixel_values_videos"]
    assert torch.equal(drawn, expected)
    assert torch.equal(drawn, epoch_pixels(collator, path, epoch=1, index=5))
    assert not torch.equal(drawn, epoch_pixels(collator, path, epoch=2, index=5))
    assert not torch.equal(drawn, epoch_pixels(collator, path, epoch=1, index=6))
    other_seed = AlproCollator(processor, train_sampling="random", seed=4)
    assert not torch.equal(drawn, epoch_pixels(other_seed, path, epoch=1, index=5))


def test_evaluation_frames_are_those_of_the_processor(processor, encode):
    path = encode("plain.mp4")
    pixels = epoch_pixels(AlproCollator(processor, train_sampling="random"), path, index=5)
    assert torch.equal(pixels, processor.video_processor(path)["pixel_values_videos"])


class Noting:
    """Decodes like an `IsolatedDecoder`, and notes the options and how many calls ran at the same time."""

    def __init__(self, processes=AT_ONCE):
        self.processes = processes
        self.threads, self.together, self._running, self._lock = [], 0, 0, threading.Lock()
        self.met = threading.Event()

    def decode(self, source, indices, **options):
        with self._lock:
            self.threads.append(options["threads"])
            self._running += 1
            self.together = max(self.together, self._running)
            if self._running > 1:
                self.met.set()
        self.met.wait(1)
        try:
            return decode(source, indices, **options)
        finally:
            with self._lock:
                self._running -= 1


def test_an_evaluation_decodes_several_clips_at_a_time_and_keeps_their_order(processor, encode, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    files = [
        encode("plain.mp4"),
        broken,
        encode("vfr.mp4", gop=3),
        encode("plain.mp4", size=(96, 64)),
        encode("plain.mp4"),
    ]
    rows = [{"video": file, "text": f"clip {number}"} for number, file in enumerate(files)]
    noting = Noting()
    collated = AlproCollator(processor, decoder=noting).collate(rows)
    assert noting.together == AT_ONCE
    assert set(noting.threads) == {max(1, os.cpu_count() // AT_ONCE)}
    assert [row["text"] for row in collated.rows] == ["clip 0", "clip 2", "clip 3", "clip 4"]
    assert list(collated.failures) == [1]
    assert str(broken) in collated.failures[1]
    for position, number in enumerate((0, 2, 3, 4)):
        [expected] = processor.video_processor(files[number])["pixel_values_videos"]
        torch.testing.assert_close(collated.batch["pixel_values_videos"][position], expected, atol=1e-5, rtol=1e-5)


def test_a_training_a_single_clip_and_a_single_process_decode_one_clip_at_a_time_with_all_cores(processor, encode):
    row = {"video": encode("plain.mp4"), "text": "red"}
    drawn = [row | {"video": encode("vfr.mp4", gop=3), "epoch": 0, "index": 0}, row | {"epoch": 0, "index": 1}]
    two = [row, {**row, "video": encode("vfr.mp4", gop=3)}]
    for rows, processes in ((drawn, AT_ONCE), ([row], AT_ONCE), (two, 1)):
        noting = Noting(processes)
        noting.met.set()
        AlproCollator(processor, decoder=noting).collate(rows)
        assert noting.together == 1
        assert noting.threads == [0] * len(rows)


def test_an_epoch_without_an_index_is_refused(processor, encode):
    with pytest.raises(ValueError, match="NumberedRows"):
        epoch_pixels(AlproCollator(processor), encode("plain.mp4"), epoch=0)


def test_a_broken_clip_loses_its_row_and_nothing_else(processor, noise, tmp_path, caplog):
    broken, missing = tmp_path / "broken.mp4", tmp_path / "missing.mp4"
    broken.write_bytes(b"no video at all" * 100)
    rows = [{"video": video, "text": text} for video, text in
            ((broken, "red"), (noise[0], "green"), (missing, "blue"), (noise[1], "white"))]  # fmt: skip
    collator = AlproCollator(processor)
    with caplog.at_level(logging.WARNING, logger="alpro_hf"):
        batch = collator(NumberedRows(rows).__getitems__([0, 1, 2, 3]))
    alone = AlproCollator(processor)([rows[1], rows[3]])
    for name in alone:
        assert torch.equal(batch[name], alone[name])
    assert batch["row_ids"].tolist() == [1, 3]
    assert collator.dropped == 2
    assert str(broken) in caplog.text
    assert str(missing) in caplog.text


def test_a_batch_without_any_row_left_names_the_files(processor, tmp_path):
    rows = [{"video": tmp_path / f"{name}.mp4", "text": "red"} for name in "ab"]
    with pytest.raises(ValueError, match=r"(?s)batch of 2.*a\.mp4.*b\.mp4"):
        AlproCollator(processor)(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "captioning"}, "captioning"),
        ({"train_sampling": "middle"}, "middle.*headtail"),
    ],
)
def test_wrong_arguments_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        AlproCollator(processor, **arguments)


def test_questions_need_answers_to_number(processor, noise):
    rows = questions_about([noise[0]])
    collator = AlproCollator(processor, task="qa")  # a trainer would set its answers
    with pytest.raises(ValueError, match=r"label2id.*model\.config\.label2id"):
        collator(rows)
    collator.label2id = dict(colours.ANSWERS)
    assert collator(rows)["labels"].tolist() == [0]


def test_a_missing_field_is_named(processor, noise):
    with pytest.raises(KeyError, match=r"'text'.*caption"):
        AlproCollator(processor)([{"video": noise[0], "caption": "red"}])


class Epochs:
    """A data set that says which epoch it was told."""

    epoch = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"value": index * 10, "told": self.epoch}

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("workers", [0, 1])
def test_numbered_rows_tell_the_epoch_even_to_persistent_workers(workers):
    rows = NumberedRows(Epochs(), training=True)
    loader = DataLoader(rows, batch_size=2, num_workers=workers, persistent_workers=workers > 0, collate_fn=list)
    for epoch in (0, 1, 5):
        rows.set_epoch(epoch)
        seen = [row for batch in loader for row in batch]
        assert seen == [{"value": i * 10, "told": epoch, "index": i, "epoch": epoch} for i in range(3)]


def test_numbered_rows_of_an_evaluation_have_no_epoch():
    assert NumberedRows(Epochs())[2] == {"value": 20, "told": 0, "index": 2}


def test_numbered_rows_over_a_dataset_of_the_library():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"video": ["a.mp4", "b.mp4"], "text": ["red", "blue"]})
    assert NumberedRows(table).__getitems__([1, 0]) == [
        {"video": "b.mp4", "text": "blue", "index": 1},
        {"video": "a.mp4", "text": "red", "index": 0},
    ]


def test_dropped_rows_of_workers_are_counted_together(processor, noise, tmp_path):
    rows = [{"video": noise[0], "text": "red"}, {"video": tmp_path / "missing.mp4", "text": "red"}] * 4
    collator = AlproCollator(processor)
    batches = list(DataLoader(rows, batch_size=2, num_workers=2, collate_fn=collator))
    assert [len(batch["input_ids"]) for batch in batches] == [1] * 4
    assert collator.dropped == 4


def test_candidates_become_a_mask(processor):
    first, *others = colours.question_rows()
    label2id = colours.ANSWERS
    candidates = [first["answer"], next(answer for answer in label2id if answer != first["answer"]), "not in the list"]
    collator = AlproCollator(processor, task="qa", label2id=label2id)
    mask = collator([{**first, "candidates": candidates}, *others])["answer_mask"]
    assert mask.shape == (1 + len(others), len(label2id)) and mask.dtype == torch.bool
    assert mask[0].nonzero().flatten().tolist() == sorted(label2id[answer] for answer in candidates[:2])
    assert mask[1:].all()
    assert "answer_mask" not in collator([first, *others])
    outside = {**first, "answer": "not in the list", "candidates": ["not in the list"]}
    assert collator([outside])["answer_mask"].all(), "a row without a known candidate carries no loss, and no nan"
    with pytest.raises(ValueError, match="lack its answer"):
        collator([{**first, "candidates": candidates[1:]}])
