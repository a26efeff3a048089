"""Sources mixed by step: lists, Arrow tables and streams of real files, alone, in workers and in processes."""

import gc
import io
import json
import pickle
import tarfile
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from fixtures import gallery
from fixtures.processes import run_together
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from alpro_hf.data.mixed_rows import MixedRows
from alpro_hf.data.rows import NumberedRows
from alpro_hf.model.decoding import probe

CLIPS = [{"video": f"{i}.mp4", "text": f"clip {i}"} for i in range(7)]
IMAGES = [{"image": f"{i}.png", "text": f"image {i}"} for i in range(11)]
MAPS = {"clips": CLIPS, "images": IMAGES}


def mixed(sources: Any = MAPS, **options: Any) -> MixedRows:
    return MixedRows(
        sources, **{"steps": 50, "batch_size": 3, "world_size": 2, "accumulation": 2, "seed": 5} | options
    )


def batches(rows: MixedRows, rank: int = 0, workers: int = 0, first: int = 0) -> list[list[dict[str, Any]]]:
    """What one process of `rows.world_size` gets, as accelerate deals it."""
    in_order = BatchSampler(SequentialSampler(rows), rows.batch_size, drop_last=False)
    own = list(BatchSamplerShard(in_order, num_processes=rows.world_size, process_index=rank))[first:]
    return list(DataLoader(rows, batch_sampler=own, num_workers=workers, collate_fn=list))


def names(read: list[list[dict[str, Any]]]) -> list[str]:
    """The source of each batch, which must be one."""
    assert all(len({row["source"] for row in batch}) == 1 for batch in read)
    return [batch[0]["source"] for batch in read]


def first_passes(read: list[list[dict[str, Any]]], source: str, epoch: int = 0) -> list[str]:
    return sorted(row["text"] for batch in read for row in batch if (row["source"], row["epoch"]) == (source, epoch))


# Sources with a length


def test_a_row_is_a_pure_function_of_seed_and_index():
    rows, again, other = mixed(), mixed(steps=80), mixed(seed=6)
    forward = [rows[i] for i in range(len(rows))]
    assert [again[i] for i in reversed(range(len(rows)))][::-1] == forward
    assert [row for b in range(0, len(rows), 3) for row in rows.__getitems__(range(b, b + 3))] == forward
    assert len(rows) == 50 * 3 * 2 * 2 and len(forward) == len(list(rows))
    assert [row["source"] for row in forward] != [other[i]["source"] for i in range(len(rows))]
    assert pickle.loads(pickle.dumps(rows))[17] == rows[17]


def test_one_source_in_a_step_on_every_rank():
    rows = mixed()
    one, other = (batches(rows, rank) for rank in range(2))
    assert names(one) == names(other)
    assert names(one)[::2] == names(one)[1::2], "both batches of a step"
    assert set(names(one)) == set(MAPS)
    assert len(one) == 50 * 2 and {len(batch) for batch in one} == {3}


def test_every_row_once_before_any_twice():
    rows = list(mixed())
    for name, source in MAPS.items():
        own = [row for row in rows if row["source"] == name]
        orders = []
        for number, start in enumerate(range(0, len(own), len(source))):
            of_pass = own[start : start + len(source)]
            assert {row["epoch"] for row in of_pass} == {number}
            assert len({row["index"] for row in of_pass}) == len(of_pass)
            assert all({**row, **source[row["index"]]} == row for row in of_pass)
            orders.append([row["index"] for row in of_pass])
        assert len(set(map(tuple, orders[:-1]))) > 1, "each pass has its own order"
        assert orders[0] != sorted(orders[0])


def test_a_source_smaller_than_a_step_repeats_within_it():
    rows = mixed({"few": CLIPS[:2]}, steps=2)
    assert Counter((row["index"], row["epoch"]) for row in rows) == {(i, e): 1 for i in (0, 1) for e in range(12)}


@pytest.mark.parametrize(("weights", "share"), [(None, 0.5), ({"clips": 3, "images": 1}, 0.75)])
def test_sources_are_drawn_by_weight(weights, share):
    steps = 4000
    rows = mixed(steps=steps, batch_size=1, world_size=1, accumulation=1, weights=weights)
    drawn = np.array([row["source"] == "clips" for row in rows])
    assert abs(drawn.mean() - share) < 4 * np.sqrt(share * (1 - share) / steps)
    follows = drawn[1:][drawn[:-1]].mean()
    assert abs(follows - share) < 5 * np.sqrt(share * (1 - share) / drawn.sum()), "independent of the step before"


def test_a_second_epoch_goes_on_where_the_first_ended():
    short, long = mixed(steps=20), mixed(steps=40)
    expected = list(long)
    assert list(short) == expected[: len(short)]
    short.set_epoch(1)
    assert list(short) == expected[len(short) :]


def test_arrow_tables_and_other_columns():
    table = datasets.Dataset.from_list([{**row, "score": i, "index": "mine"} for i, row in enumerate(CLIPS)])
    rows = list(mixed({"clips": table}, steps=2))
    plain = list(mixed({"clips": CLIPS}, steps=2))
    assert [{key: row[key] for key in plain[0]} for row in rows] == plain
    assert all(row["score"] == row["index"] for row in rows), "the number of the row replaces a column of that name"


def test_numbering_leaves_them_alone():
    rows = mixed()
    assert isinstance(rows, NumberedRows), "so that AlproTrainer does not number them again"
    assert {row["epoch"] for row in rows} != {0}


def test_images_and_videos_of_a_table_leave_undecoded(tmp_path):
    clip = gallery.write_video(tmp_path / "clip.mp4", seed=1)
    image = Image.new("RGB", (8, 6), (200, 10, 10))
    videos = datasets.Dataset.from_dict({"video": [str(clip)], "text": ["a clip"]})
    videos = videos.cast_column("video", datasets.Video())
    images = datasets.Dataset.from_dict({"image": [image], "text": ["red"]})
    images = images.cast_column("image", datasets.Image())
    rows = list(mixed({"videos": videos, "images": images}, steps=20))
    by_source = {row["source"]: row for row in rows}
    assert by_source["videos"]["video"] == {"bytes": None, "path": str(clip)}
    stored = by_source["images"]["image"]
    assert Image.open(io.BytesIO(stored["bytes"])).getpixel((0, 0)) == (200, 10, 10)
    assert mixed({"pil": [{"image": image, "text": "red"}]}, steps=1)[0]["image"] is image


def test_a_column_of_nothing_is_no_image():
    [row, *_] = mixed({"clips": datasets.Dataset.from_list([{**CLIPS[0], "image": None}])}, steps=1)
    assert row["video"] == "0.mp4" and "image" not in row


# Streams


def write_json_lines(folder: Path, shards: int, rows: int) -> datasets.IterableDataset:
    for shard in range(shards):
        lines = [json.dumps({"video": f"{i}.mp4", "text": f"json {i:03}"}) for i in range(shard, rows, shards)]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return datasets.load_dataset("json", data_files=str(folder / "*.jsonl"), split="train", streaming=True)


def write_parquet(folder: Path, shards: int, rows: int) -> datasets.IterableDataset:
    for shard in range(shards):
        numbers = range(shard, rows, shards)
        pixels = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in numbers]
        table = datasets.Dataset.from_dict({"image": pixels, "text": [f"parquet {i:03}" for i in numbers]})
        table.cast_column("image", datasets.Image()).to_parquet(folder / f"{shard}.parquet")
    return datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True)


def write_tar(folder: Path, shards: int, rows: int) -> datasets.IterableDataset:
    clips = [gallery.write_video(folder / f"{i}.mp4", seed=i).read_bytes() for i in range(2)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(shard, rows, shards):
                members = {"mp4": clips[i % 2], "txt": f"tar {i:03}".encode(), "json": b'{"license": "CC0"}'}
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"{i:03}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    stream = datasets.load_dataset("webdataset", data_files=str(folder / "*.tar"), split="train", streaming=True)
    return stream.decode(False).rename_columns({"mp4": "video", "txt": "text"})


WRITERS = {"json": write_json_lines, "parquet": write_parquet, "tar": write_tar}


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(("format", "shards"), [("json", 1), ("json", 4), ("json", 3), ("parquet", 4), ("tar", 1)])
def test_a_pass_of_a_stream_has_every_row_once(tmp_path, monkeypatch, format, shards, workers):
    # five seconds after each pass over Parquet files, for threads of a slow network to end
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    stream = WRITERS[format](tmp_path, shards, rows=37)
    rows = mixed({format: stream, "clips": CLIPS}, steps=40, accumulation=1, shuffle_buffer=8)
    ranks = [batches(rows, rank, workers) for rank in range(2)]
    assert names(ranks[0]) == names(ranks[1]) and set(names(ranks[0])) == {format, "clips"}
    together = [batch for rank in ranks for batch in rank]
    everything = [f"{format} {i:03}" for i in range(37)]
    assert first_passes(together, format) == everything
    assert first_passes(together, "clips") == [row["text"] for row in CLIPS]
    own = [row for batch in together for row in batch if row["source"] == format]
    assert len({(row["index"], row["epoch"]) for row in own}) == len(own)
    readers = 2 * max(workers, 1)
    for rank, read in enumerate(ranks):
        for number, batch in enumerate(read):
            if batch[0]["source"] == format:
                reader = rank * max(workers, 1) + number % max(workers, 1)
                assert {row["index"] % readers for row in batch} == {reader}, "each worker reads its own share"
    in_order = [row["text"] for batch in ranks[0] for row in batch if row["source"] == format]
    assert in_order != sorted(in_order)
    assert first_passes(together, format, epoch=1)[0] in everything, "an ended stream begins again"


def test_each_pass_of_a_stream_has_its_own_order(tmp_path):
    stream = write_json_lines(tmp_path, shards=2, rows=12)
    rows = list(mixed({"json": stream}, steps=12, batch_size=3, world_size=1, accumulation=1))
    passes = [[row["text"] for row in rows if row["epoch"] == epoch] for epoch in range(3)]
    assert len({tuple(texts) for texts in passes}) == 3
    assert len({tuple(sorted(texts)) for texts in passes}) == 1
    assert [row["epoch"] for row in rows] == sorted(row["epoch"] for row in rows)


def test_a_batch_at_the_end_of_a_pass_is_filled_from_the_next(tmp_path):
    stream = write_json_lines(tmp_path, shards=1, rows=5)
    read = batches(mixed({"json": stream}, steps=5, batch_size=3, world_size=1, accumulation=1))
    assert [[row["epoch"] for row in batch] for batch in read[:4]] == [[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 2, 2]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [1, 8, 13])
def test_a_stream_read_from_the_middle_goes_on_exactly(tmp_path, workers, first):
    stream = write_json_lines(tmp_path, shards=3, rows=31)
    sources = {"json": stream, "clips": CLIPS}
    expected = batches(mixed(sources, steps=15), rank=1, workers=workers)
    assert batches(mixed(sources, steps=15), rank=1, workers=workers, first=first) == expected[first:]


def test_a_stream_read_backwards_begins_again(tmp_path):
    rows = mixed({"json": write_json_lines(tmp_path, shards=1, rows=9)}, steps=6)
    expected = [rows[i] for i in range(len(rows))]
    assert [rows[i] for i in reversed(range(len(rows)))][::-1] == expected
    # open files stay behind where the process is left
    assert pickle.loads(pickle.dumps(rows))[5] == expected[5]
    assert batches(rows, workers=2) == batches(mixed(rows.dataset, steps=6), workers=2)


def test_an_abandoned_stream_is_closed_by_the_next_reader_and_never_by_the_garbage_collector(tmp_path):
    """Closing waits for threads, which the collector may have interrupted: a training would stand still for ever."""
    closed = []

    def lines():
        try:
            yield from ({"video": "0.mp4", "text": f"line {i}"} for i in range(99))
        finally:
            closed.append(True)

    def read(rows):
        return rows.__getitems__(range(3))

    rows = mixed({"lines": datasets.IterableDataset.from_generator(lines)}, steps=4, world_size=1, shuffle_buffer=2)
    rows.cycle = rows
    read(rows)
    gone = weakref.ref(rows)
    del rows
    gc.collect()
    assert gone() is None
    assert not closed
    read(mixed({"json": write_json_lines(tmp_path, shards=1, rows=9)}, steps=4, world_size=1))
    assert closed


def test_a_worker_does_not_read_on_in_the_files_of_its_parent(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(f"line {i}" for i in range(200)))

    def unbuffered_lines():
        with path.open("rb", buffering=0) as file:
            for line in file:
                yield {"video": "0.mp4", "text": line.decode().strip()}

    stream = datasets.IterableDataset.from_generator(unbuffered_lines)
    rows, fresh = (mixed({"lines": stream}, steps=20, world_size=1, shuffle_buffer=2) for _ in range(2))
    expected = batches(fresh)
    begun = [rows.__getitems__(range(start, start + 3)) for start in (0, 3)]
    assert batches(rows, workers=1, first=2) == expected[2:]
    rest = [rows.__getitems__(range(start, start + 3)) for start in range(6, len(rows), 3)]
    assert begun + rest == expected


def test_clips_of_a_tar_leave_undecoded_and_can_be_decoded(tmp_path):
    [row, *_] = mixed({"tar": write_tar(tmp_path, shards=1, rows=4)}, steps=1)
    assert row["json"] == {"license": "CC0"} and row["__key__"].endswith(row["text"].removeprefix("tar "))
    assert probe(row["video"]["bytes"]).num_frames == 6


# What cannot be


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (MAPS, {"steps": 0}, "steps of at least 1; received 0"),
        (MAPS, {"batch_size": 0}, "batch_size"),
        (MAPS, {"world_size": 0}, "world_size"),
        (MAPS, {"weights": {"clips": 1}}, r"\['clips'\], the sources are \['clips', 'images'\]"),
        (MAPS, {"weights": {"clips": 1, "images": 1, "web": 1}}, "web"),
        (MAPS, {"weights": {"clips": 1, "images": 0}}, "'images' is 0"),
        (MAPS, {"weights": {"clips": 1, "images": float("nan")}}, "nan"),
        ({}, {}, "at least one source"),
        ({"clips": CLIPS, "nothing": []}, {}, "'nothing' has no rows"),
    ],
)
def test_wrong_plans(sources, options, message):
    with pytest.raises(ValueError, match=message):
        mixed(sources, **options)


@pytest.mark.parametrize("source", [iter(CLIPS), "clips.json", {"train": CLIPS}, 3])
def test_what_is_no_source(source):
    with pytest.raises(TypeError, match=r"'web' is a .*IterableDataset"):
        mixed({"web": source})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"video": "0.mp4", "caption": "a"},
            r"Row 0 of source 'web' .*'text'; it has none among \['caption', 'video'\]",
        ),
        ({"video": "0.mp4", "text": ["a", "b"]}, "'text'; it has a list"),
        ({"text": "a", "clip": "0.mp4"}, r"it has neither among \['clip', 'text'\]"),
        ({"text": "a", "video": "0.mp4", "image": "0.png"}, "video and image"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_rows(row, message, streaming):
    source = datasets.IterableDataset.from_generator(lambda: iter([row])) if streaming else [row]
    with pytest.raises(ValueError, match=message):
        mixed({"web": source})[0]


def test_a_source_of_both_kinds():
    with pytest.raises(ValueError, match="Make it two sources"):
        list(mixed({"web": [*CLIPS, *IMAGES]}))


def test_a_row_that_is_no_row():
    with pytest.raises(TypeError, match="is a str"):
        mixed({"web": ["0.mp4"]})[0]


def test_a_stream_without_rows(tmp_path):
    with pytest.raises(ValueError, match="'web' has no row for reader 0 of 2"):
        mixed({"web": datasets.IterableDataset.from_generator(lambda: iter([]))})[0]
    few = mixed({"few": write_json_lines(tmp_path, shards=1, rows=1)}, steps=1)
    assert few[0]["text"] == "json 000"
    with pytest.raises(ValueError, match="'few' has no row for reader 1 of 2"):
        few[3]


@pytest.mark.parametrize("indices", [[0, 1], [1, 2, 3], [0, 3, 6], [2, 1, 0], list(range(6))])
def test_reading_in_another_order_is_noticed(indices):
    with pytest.raises(ValueError, match="sequential"):
        mixed().__getitems__(indices)


def test_reading_behind_the_end():
    with pytest.raises(IndexError, match="Row 600 of 600"):
        mixed()[600]
    with pytest.raises(IndexError):
        mixed()[-1]


# Under the library's Trainer


class Remembers(torch.nn.Module):
    """Keeps the rows that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append([bytes(row).decode().rstrip() for row in rows.tolist()])
        return {"loss": self.weight.sum() ** 2}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    texts = [f"{row['source']} {row['epoch']} {row['index']} {row['text']}" for row in rows]
    return {"rows": torch.tensor([list(text.ljust(40).encode()) for text in texts])}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    fields = {
        "max_steps": 8,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "save_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **fields | options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_what_an_uninterrupted_one_does(tmp_path, workers):
    (tmp_path / "stream").mkdir()
    sources = {"json": write_json_lines(tmp_path / "stream", shards=3, rows=31), **MAPS}
    args = arguments(tmp_path / "run", dataloader_num_workers=workers)
    seen = []
    for checkpoint in (None, str(tmp_path / "run" / "checkpoint-3")):
        model = Remembers()
        rows = MixedRows.from_arguments(sources, args, shuffle_buffer=8)
        trainer = Trainer(model, args, data_collator=collate, train_dataset=rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        seen.append(model.seen)
    assert len(seen[0]) == 16
    assert seen[1] == seen[0][6:]
    assert seen[0] == [collate_back(batch) for batch in batches(rows, workers=workers)]


def collate_back(rows: list[dict[str, Any]]) -> list[str]:
    return [bytes(row).decode().rstrip() for row in collate(rows)["rows"].tolist()]


def test_arguments_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"train_sampling_strategy='sequential'; received .*random"):
        MixedRows.from_arguments(MAPS, arguments(tmp_path, train_sampling_strategy="random"))
    with pytest.raises(ValueError, match="set max_steps; received -1"):
        MixedRows.from_arguments(MAPS, arguments(tmp_path, max_steps=-1))


@pytest.fixture(scope="module")
def read_by_two(tmp_path_factory) -> Path:
    """What two processes read, without workers and with two each."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "stream").mkdir()
    write_json_lines(folder / "stream", shards=3, rows=31)
    script = Path(__file__).parents[1] / "fixtures" / "read_in_processes.py"
    done = run_together(2, [str(script), str(folder), "0", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_out_the_rows(read_by_two, workers):
    ranks = [json.loads((read_by_two / str(workers) / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [len(read) for read in ranks] == [60, 60]
    assert names(ranks[0]) == names(ranks[1]) and set(names(ranks[0])) == {"json", "clips"}
    assert names(ranks[0])[::2] == names(ranks[0])[1::2]
    together = [batch for rank in ranks for batch in rank]
    assert first_passes(together, "json") == [f"json {i:03}" for i in range(31)]
    assert first_passes(together, "clips") == first_passes(together, "clips", 1) == [row["text"] for row in CLIPS]
