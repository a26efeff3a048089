"""Columns of the type `datasets.Video`, with and without torchcodec, wherever clips are taken."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from datasets import Dataset, List, Video, load_dataset
from fixtures import gallery
from fixtures.processes import environment
from torch.utils.data import Subset
from transformers import pipeline

from alpro_hf import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproProcessor,
    AlproTrainer,
    AlproTrainingArguments,
)
from alpro_hf.data.rows import NumberedRows, video_id
from alpro_hf.evaluation.encode import answer_rows, encode_rows

TEXTS = ["a fox moves", "the dog runs left", "a cat spins"]


@pytest.fixture(scope="module")
def clips(encode) -> list[str]:
    return [str(encode(f"{name}.mp4", num_frames=12, gop=gop)) for gop, name in enumerate(("a", "b", "c"), 4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for task in ("retrieval", "qa"):
        gallery.write_model(folder / task, task)
    return folder


def rows_of(clips: list[str], **columns: list) -> Dataset:
    return Dataset.from_dict({"video": clips, **columns}).cast_column("video", Video())


def files(rows: Dataset) -> Dataset:
    return rows.cast_column("video", Video(decode=False))


def test_the_processor_takes_the_values_of_a_column(clips, models, tmp_path) -> None:
    processor = AlproProcessor.from_pretrained(models / "retrieval")
    expected = processor(videos=clips)["pixel_values_videos"]
    column = files(rows_of(clips))["video"]
    assert not isinstance(column, list)  # but a sequence of its own
    with_bytes = [{"bytes": Path(clip).read_bytes(), "path": "gone.mp4"} for clip in clips]
    several = Dataset.from_dict({"videos": [clips]}, features=None).cast_column("videos", List(Video(decode=False)))
    for given in (column, column[:], with_bytes, several[0]["videos"]):
        assert torch.equal(processor(videos=given)["pixel_values_videos"], expected)
    assert torch.equal(processor(videos=column[1])["pixel_values_videos"], expected[1:2])
    with pytest.raises(ValueError, match="needs 'bytes' or a 'path'"):
        processor(videos={"bytes": None, "path": None})


def test_a_table_with_the_bytes_of_clips(clips, models, tmp_path) -> None:
    """What `push_to_hub` writes: files inside Parquet, read as a table and as a stream."""
    processor = AlproProcessor.from_pretrained(models / "retrieval")
    expected = processor(videos=clips)["pixel_values_videos"]
    embedded = [{"bytes": Path(clip).read_bytes(), "path": Path(clip).name} for clip in clips]
    path = str(tmp_path / "rows.parquet")
    Dataset.from_dict({"video": embedded, "text": TEXTS}).cast_column("video", Video(decode=False)).to_parquet(path)
    for streaming in (False, True):
        rows = (
            load_dataset("parquet", data_files=path, split="train", streaming=streaming).decode(False)
            if streaming
            else files(load_dataset("parquet", data_files=path, split="train"))
        )
        found = processor(videos=[row["video"] for row in rows])["pixel_values_videos"]
        assert torch.equal(found, expected)


def test_pipelines_take_rows_and_name_their_files(clips, models) -> None:
    rows = files(rows_of(clips, question=["what is this"] * 3))
    ask = pipeline("video-question-answering", model=models / "qa")
    expected = ask([{"video": clip, "question": "what is this"} for clip in clips])
    assert list(ask(rows)) == expected
    assert list(ask(rows["video"], "what is this")) == expected
    assert ask(rows[0]["video"], "what is this") == expected[0]
    with pytest.raises(ValueError, match="no question"):
        ask(rows[0]["video"])
    search = pipeline("text-video-retrieval", model=models / "retrieval")
    best = search("a fox moves", videos=clips)
    assert search("a fox moves", videos=rows["video"]) == search("a fox moves", videos=list(rows["video"])) == best
    assert {result["video"] for result in best} == set(clips)
    assert search(rows[0]["video"], texts=TEXTS) == search(clips[0], texts=TEXTS)


def trained(model, rows, folder: Path, processor, **fields) -> AlproTrainer:
    args = AlproTrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, per_device_train_batch_size=3, save_steps=2, **fields
    )
    trainer = AlproTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    trainer.train()
    return trainer


def test_training_and_evaluation_take_the_column_as_it_is(clips, models, tmp_path) -> None:
    """The README's own example: no collator, and a column that would be decoded."""
    processor = AlproProcessor.from_pretrained(models / "retrieval")
    ends = []
    for name, rows in (
        ("column", rows_of(clips, text=TEXTS)),
        ("paths", Dataset.from_dict({"video": clips, "text": TEXTS})),
    ):
        model = AlproForVideoTextRetrieval.from_pretrained(models / "retrieval")
        trainer = trained(model, rows, tmp_path / name, processor)
        metrics = {key: value for key, value in trainer.evaluate().items() if "t2v" in key}
        states, skipped = encode_rows(model.eval(), processor, rows)
        ends.append((trainer.model.state_dict(), metrics, states.video_embeds, skipped, states.video_ids))
    assert ends[0][1] == ends[1][1] and ends[0][3] == ends[1][3] == []
    assert torch.equal(ends[0][2], ends[1][2]) and torch.equal(ends[0][4], ends[1][4])
    assert all(torch.equal(value, ends[1][0][key]) for key, value in ends[0][0].items())
    opened = pipeline("text-video-retrieval", model=tmp_path / "column" / "checkpoint-2")
    assert len(opened(TEXTS[0], videos=clips)) == 3


def test_questions_need_neither_collator_nor_labels(clips, models, tmp_path) -> None:
    processor = AlproProcessor.from_pretrained(models / "qa")
    model = AlproForVideoQuestionAnswering.from_pretrained(models / "qa")
    rows = rows_of(clips, question=["what is this"] * 3, answer=["fox", "two", "left"])
    trainer = trained(model, rows, tmp_path, processor)
    assert trainer.data_collator.label2id == model.config.label2id
    assert trainer.evaluate()["eval_out_of_list"] == 0
    assert len(answer_rows(model.eval(), processor, rows)[0].rows) == 3
    assert pipeline("video-question-answering", model=tmp_path / "checkpoint-2")(clips[0], "what is this", top_k=1)


def test_a_column_that_decodes_out_of_reach_teaches(clips) -> None:
    """Inside another data set, the column cannot be told not to decode."""
    subset = Subset(rows_of(clips, text=TEXTS), [0, 1])
    try:
        subset[0]
    except (ImportError, RuntimeError, OSError):  # no torchcodec, or no FFmpeg for it
        with pytest.raises(ImportError, match=r"cast_column\('video', datasets.Video\(decode=False\)\)"):
            NumberedRows(subset)[0]
    else:
        assert video_id(NumberedRows(subset)[0]) == video_id({"video": clips[0]})


SCRIPT = """
import sys
from pathlib import Path
import torch
from datasets import Dataset, Video
from torchcodec.decoders import VideoDecoder
from alpro_hf import AlproProcessor
from alpro_hf.data.collator import AlproCollator
processor = AlproProcessor.from_pretrained(sys.argv[1])
clip = sys.argv[2]
rows = Dataset.from_dict({"video": [clip], "text": ["a fox"]}).cast_column("video", Video())
value = rows[0]["video"]
assert isinstance(value, VideoDecoder)
expected = processor(videos=clip, return_metadata=True)
assert torch.equal(processor(videos=value)["pixel_values_videos"], expected["pixel_values_videos"])
assert torch.equal(processor(videos=rows["video"])["pixel_values_videos"], expected["pixel_values_videos"])
own = processor(videos=[VideoDecoder(clip)], return_metadata=True)  # not from `datasets`: no file is known
found, wanted = own["video_metadata"][0], expected["video_metadata"][0]
assert found.frames_indices == wanted.frames_indices and found.total_num_frames == wanted.total_num_frames
assert (own["pixel_values_videos"] - expected["pixel_values_videos"]).abs().mean() < 0.1
assert len(AlproCollator(processor)([rows[0]])["pixel_values_videos"]) == 1
from alpro_hf import AlproForVideoTextRetrieval
from transformers import pipeline
search = pipeline("text-video-retrieval", model=sys.argv[1])
assert search("a fox", videos=[value])[0]["video"] == clip
assert search(value, texts=["a fox"]) == search(clip, texts=["a fox"])
try:
    from sentence_transformers import SentenceTransformer
except ImportError:
    SentenceTransformer = None
if SentenceTransformer is not None:
    encoder = SentenceTransformer(sys.argv[1], local_files_only=True, device="cpu")
    assert abs(encoder.encode([value]) - encoder.encode([clip])).max() < 0.05
print("decoded")
"""


def test_decoders_of_torchcodec(clips, models, tmp_path) -> None:
    """In a process of its own, which finds the FFmpeg that PyAV carries."""
    if importlib.util.find_spec("torchcodec") is None:  # to import it here would need FFmpeg here
        pytest.skip("needs torchcodec: pip install torchcodec")
    libraries = Path(av.__file__).parents[1] / "av.libs"
    for file in libraries.glob("lib*.so*"):
        name, _, number = file.name.partition(".so.")
        (tmp_path / f"{name.rsplit('-', 1)[0]}.so.{number.split('.')[0]}").symlink_to(file)
    command = [sys.executable, "-c", SCRIPT, str(models / "retrieval"), clips[0]]
    done = subprocess.run(
        command,
        env=environment(LD_LIBRARY_PATH=f"{tmp_path}{os.pathsep}{libraries}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "Could not load libtorchcodec" in done.stderr:
        pytest.skip("torchcodec does not work with the FFmpeg of PyAV")
    assert done.stdout.strip() == "decoded", done.stderr
