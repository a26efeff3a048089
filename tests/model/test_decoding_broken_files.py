"""A folder of which a fifth is broken: all of it is gone through, what is broken is listed, the rest is untouched."""

import json
import os
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from safetensors.torch import load_file

from alpro_hf.data.collator import AlproCollator, dropped_clips
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.trainer import DROPPED, AlproTrainer, DroppedRowsError

QUERIES = ["a fox runs to the left", "the pizza spins"]
BATCH, BROKEN_AT = 5, 2  # one of five clips is broken


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Ten clips, two of them broken, each in its way."""
    folder = tmp_path_factory.mktemp("clips")
    clips = [write_video(folder / f"{i}.mp4", i) for i in range(2 * BATCH)]
    clips[BROKEN_AT].write_bytes(clips[BROKEN_AT].read_bytes()[:900])
    clips[BATCH + BROKEN_AT].write_text("not a video")
    return clips


def is_sound(path: Path) -> bool:
    return int(path.stem) % BATCH != BROKEN_AT


def rows(clips: list[Path]) -> list[dict[str, str]]:
    words = ["a fox runs", "the dog spins", "a cat moves left", "the pizza grows", "two dogs"]
    return [{"video": str(clip), "text": f"{words[int(clip.stem) % 5]} {clip.stem}"} for clip in clips]


def trainer(model_folder: Path, folder: Path, given: list, batch: int, collator=None, **fields) -> AlproTrainer:
    """Each step one batch in the order of the rows, the frames of the middle."""
    model, processor = load(model_folder, "retrieval")
    arguments = AlproTrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **({"num_train_epochs": 1, "learning_rate": 1e-3} | fields),
    )
    collator = collator or AlproCollator(processor, train_sampling="center")
    return AlproTrainer(model, arguments, collator, given, given)


def test_indexing(model_folder, clips, tmp_path) -> None:
    loaded = load(model_folder, "retrieval")
    sound = list(filter(is_sound, clips))
    index = VideoIndex.build(*loaded, clips, directory=tmp_path / "all", batch_size=1, progress=False)
    clean = VideoIndex.build(*loaded, sound, directory=tmp_path / "sound", batch_size=1, progress=False)
    assert index.paths == clean.paths == sound
    assert index.search(QUERIES, top_k=8) == clean.search(QUERIES, top_k=8)
    listed = [json.loads(line) for line in (tmp_path / "all" / "failed.jsonl").read_text().splitlines()]
    assert [one["path"] for one in listed] == [str(clip) for clip in clips if not is_sound(clip)]
    assert "ends" in listed[0]["reason"] and "no video" in listed[1]["reason"]
    assert not (tmp_path / "sound" / "failed.jsonl").exists()
    index.add(sound, progress=False)
    assert not (tmp_path / "all" / "failed.jsonl").exists()  # nothing failed this time


@pytest.mark.slow
def test_training_and_evaluation(model_folder, clips, tmp_path) -> None:
    """A batch of five with one broken is, to the last bit, a batch of the other four with their own captions."""
    ends = {}
    for name, given, batch in (("all", clips, BATCH), ("sound", list(filter(is_sound, clips)), BATCH - 1)):
        training = trainer(model_folder, tmp_path / name, rows(given), batch)
        training.train()
        training.save_model()
        training.args.per_device_eval_batch_size = 1  # some batches lose all they have
        metrics = {k: v for k, v in training.evaluate().items() if "runtime" not in k and "per_second" not in k}
        ends[name] = load_file(tmp_path / name / "model.safetensors"), metrics, training.state.log_history
    weights, expected = ends["all"][0], ends["sound"][0]
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert ends["all"][1].pop("eval_dropped_rows") == 2 and ends["sound"][1].pop("eval_dropped_rows") == 0
    assert ends["all"][1] == ends["sound"][1]
    log = [entry for entry in ends["all"][2] if "loss" in entry]
    assert (log[-1]["dropped_rows"], log[-1]["dropped_share"]) == (2, 0.2)
    listed = dropped_clips(tmp_path / "all" / DROPPED)
    assert [one["clip"] for one in listed] == [str(clip) for clip in clips if not is_sound(clip)]
    assert len((tmp_path / "all" / DROPPED).read_text().splitlines()) == 2  # once, though evaluated as well
    assert not (tmp_path / "sound" / DROPPED).exists()


def test_too_many_dropped_rows_stop_the_training(model_folder, clips, tmp_path) -> None:
    many = rows(clips) * 11
    with pytest.raises(ValueError, match="max_dropped_share=2 must be between"):
        trainer(model_folder, tmp_path, many, 20, max_dropped_share=2)
    stopped = trainer(model_folder, tmp_path, many, 20, max_dropped_share=0.19)
    with pytest.raises(DroppedRowsError, match=rf"20 of 100 rows were dropped.*=0\.19.*{DROPPED}.*raise"):
        stopped.train()
    assert stopped.state.log_history[-1]["dropped_share"] == 0.2


@pytest.mark.slow
def test_a_batch_that_loses_all_its_rows_is_passed_over(model_folder, clips, tmp_path) -> None:
    ends = {}
    steady = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant", "warmup_steps": 0}
    for name, given in (("all", clips), ("sound", list(filter(is_sound, clips)))):
        training = trainer(model_folder, tmp_path / name, rows(given), 1, **steady)
        training.train()
        ends[name] = training.model.state_dict(), training.state.global_step
    assert ends["all"][1] == ends["sound"][1] == 4
    assert all(torch.equal(ends["all"][0][key], value) for key, value in ends["sound"][0].items())


def test_a_clip_that_hangs_costs_its_row_in_a_data_loading_process(model_folder, clips, tmp_path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)  # whoever opens it waits for ever
    _, processor = load(model_folder, "retrieval")
    collator = AlproCollator(
        processor,
        train_sampling="center",
        decoder=IsolatedDecoder(processes=1, deadline=5),
        dropped_file=tmp_path / "lost",
    )
    given = rows([clip for clip in clips if is_sound(clip)][:3])
    given.insert(1, {"video": str(pipe), "text": "a pipe"})
    training = trainer(model_folder, tmp_path, given, 4, collator, dataloader_num_workers=1)
    training.train()
    assert training.state.global_step == 1 and collator.dropped == 1 and collator.read == 4
    [lost] = dropped_clips(tmp_path / "lost")
    assert lost["clip"] == str(pipe) and "longer than 5 seconds" in lost["reason"]


def test_a_torn_list_of_dropped_clips_is_read_as_far_as_it_goes(tmp_path) -> None:
    file = tmp_path / DROPPED
    assert dropped_clips(file) == []
    file.write_text('{"clip": "a", "reason": "x"}\n{"clip": "a", "reason": "x"}\n{"clip": "b", "rea')
    assert dropped_clips(file) == [{"clip": "a", "reason": "x"}]


@pytest.mark.parametrize(
    "line",
    ["[" * 10_000, "7", '{"clip": "b"}', '{"reason": 7}', "9" * 5000, '{"clip": [], "reason": ""}', "x" * 70_000],
)
def test_a_list_of_dropped_clips_by_somebody_else_is_one_error(tmp_path, line) -> None:
    file = tmp_path / DROPPED
    file.write_text('{"clip": "a", "reason": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"{DROPPED}, line 2, is no record of a dropped clip") as found:
        dropped_clips(file)
    assert len(str(found.value)) < 1000
