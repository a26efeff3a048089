"""Interrupted trainings go on as if they had never stopped, from checkpoints that were written to their end."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharded
from fixtures import coloured_pretraining as coloured
from fixtures import killed_trainings as script
from fixtures.processes import environment
from safetensors.torch import load_file
from transformers import TrainerCallback

from alpro_hf import AlproForPreTraining
from alpro_hf.training.checkpoints import checkpoint_problem, last_complete_checkpoint
from alpro_hf.training.trainer import AlproTrainer
from alpro_hf.training.trainer_rows import tell_other_start

# --- which checkpoint -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of 6 steps, saved every 2."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = script.training(folder, max_steps=6, save_steps=2)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def blank(path: Path) -> None:
    """What a file may be after a power cut: as long as it should be, and empty."""
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_a_finished_checkpoint_has_no_problem(trained):
    for step in (2, 4, 6):
        assert checkpoint_problem(trained / f"checkpoint-{step}") is None
    assert last_complete_checkpoint(trained) == str(trained / "checkpoint-6")


NEEDED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", [os.remove, halve, shorten, blank, empty], ids=lambda damage: damage.__name__)
def test_a_checkpoint_with_a_broken_file_is_passed_over(run, name, damage, caplog):
    damage(run / "checkpoint-6" / name)
    problem = checkpoint_problem(run / "checkpoint-6")
    assert problem is not None and name in problem
    with caplog.at_level(logging.WARNING, logger="alpro_hf.training.checkpoints"):
        assert last_complete_checkpoint(run) == str(run / "checkpoint-4")
    assert caplog.messages == [f"Skipped {run / 'checkpoint-6'}, which is not complete: {problem}."]


def test_the_state_must_be_of_the_folder_s_step(run):
    shutil.copy(run / "checkpoint-4" / "trainer_state.json", run / "checkpoint-6")
    assert checkpoint_problem(run / "checkpoint-6") == "trainer_state.json belongs to step 4"
    (run / "checkpoint-6" / "trainer_state.json").write_text("[]")
    assert checkpoint_problem(run / "checkpoint-6") == "trainer_state.json is not valid JSON (it holds no object)"


def test_numbers_count_not_letters_and_other_folders_are_none_of_ours(run):
    os.rename(run / "checkpoint-6", run / "checkpoint-10")
    state = run / "checkpoint-10" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": 10}))
    shutil.copytree(run / "checkpoint-10", run / "checkpoint-11-copy")
    (run / "checkpoint-12").write_text("a file")
    assert last_complete_checkpoint(run) == str(run / "checkpoint-10")
    assert last_complete_checkpoint(run / "nowhere") is None
    assert checkpoint_problem(run / "nowhere") == "there is no such folder"


def test_weights_in_several_files_are_looked_at_one_by_one(run):
    checkpoint = run / "checkpoint-6"
    model = AlproForPreTraining.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="60KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1 and checkpoint_problem(checkpoint) is None
    shorten(shards[-1])
    problem = checkpoint_problem(checkpoint)
    assert problem is not None and f"lists {shards[-1].name}, which cannot be read" in problem
    (checkpoint / "model.safetensors.index.json").write_text('{"weight')
    assert re.match("model.safetensors.index.json is not an index of weights", checkpoint_problem(checkpoint) or "")


def test_weights_and_optimizer_may_be_folders_of_shards(run):
    checkpoint = run / "checkpoint-6"
    for name, folder in (("model.safetensors", "pytorch_model_fsdp_0"), ("optimizer.pt", "optimizer_0")):
        (checkpoint / name).unlink()
        sharded.save({"tensor": torch.ones(3)}, checkpoint_id=checkpoint / folder, no_dist=True)
    assert checkpoint_problem(checkpoint) is None
    (checkpoint / "optimizer_0" / ".metadata").unlink()
    assert checkpoint_problem(checkpoint) == "optimizer_0 lacks its .metadata"


# --- going on -------------------------------------------------------------------------------------------------------


def assert_same_weights(found: Path, expected: Path) -> None:
    weights, wanted = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(weights[name], value), name


def test_a_training_goes_on_from_the_newest_that_is_complete(run, trained, caplog):
    halve(run / "checkpoint-6" / "optimizer.pt")
    os.remove(run / "checkpoint-4" / "rng_state.pth")
    shutil.rmtree(run / "final")
    trainer = script.training(run, seed=1, max_steps=6, save_steps=2)
    with caplog.at_level(logging.WARNING, logger="alpro_hf.training.checkpoints"):
        trainer.train(resume_from_checkpoint=True)
    passed_over = [record.getMessage() for record in caplog.records if record.name == "alpro_hf.training.checkpoints"]
    assert [message.split(",")[0] for message in passed_over] == [
        f"Skipped {run / f'checkpoint-{step}'}" for step in (6, 4)
    ]
    trainer.save_model(str(run / "final"))
    assert_same_weights(run / "final", trained / "final")
    assert [entry["step"] for entry in coloured.logs(trainer)] == [1, 2, 3, 4, 5, 6]
    assert last_complete_checkpoint(run) == str(run / "checkpoint-6")


def test_without_any_complete_checkpoint_there_is_an_error(run, tmp_path):
    for step in (2, 4, 6):
        os.remove(run / f"checkpoint-{step}" / "trainer_state.json")
    for folder in (run, tmp_path / "new"):
        trainer = script.training(folder)
        with pytest.raises(ValueError, match=f"no complete checkpoint in {folder} to resume from"):
            trainer.train(resume_from_checkpoint=True)


def test_false_starts_anew_and_a_path_is_taken_at_its_word(run):
    anew = script.training(run, max_steps=1, save_strategy="no")
    anew.train(resume_from_checkpoint=False)
    assert anew.state.global_step == 1
    given = script.training(run, max_steps=3, save_strategy="no")
    given.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert [entry["step"] for entry in coloured.logs(given)] == [1, 2, 3]


class DiesLate(AlproTrainer):
    """Ends after weights, optimizer and scheduler are written."""

    def _save_rng_state(self, output_dir):
        raise KeyboardInterrupt


def test_a_checkpoint_that_is_overwritten_is_not_complete_meanwhile(run, monkeypatch):
    """A run into the folder of an older one: its new weights must not pass for a whole with the old rest."""
    monkeypatch.setattr(coloured, "AlproTrainer", DiesLate)
    trainer = script.training(run, seed=2, max_steps=6, save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {path.name for path in (run / "checkpoint-2").iterdir()} >= set(NEEDED) - {"trainer_state.json"}
    problem = checkpoint_problem(run / "checkpoint-2")
    assert problem is not None and "it lacks the trainer's state" in problem


class AlwaysOneComplete(TrainerCallback):
    """Notes the complete checkpoints after each save and each step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(last_complete_checkpoint(args.output_dir))

    on_save = on_step_end


def test_rotation_leaves_a_complete_checkpoint_at_any_time(run):
    for step in (2, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    shutil.copytree(run / "checkpoint-6", run / "checkpoint-8")
    halve(run / "checkpoint-8" / "model.safetensors")  # the newest by number is of no use
    trainer = script.training(run, max_steps=10, save_steps=2, save_total_limit=1)
    watcher = AlwaysOneComplete()
    trainer.add_callback(watcher)
    trainer.train(resume_from_checkpoint=True)
    assert None not in watcher.seen
    assert watcher.seen[0] == str(run / "checkpoint-6") and watcher.seen[-1] == str(run / "checkpoint-10")
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-10"]


def test_rotation_after_the_clock_was_set_back(run):
    """The library deletes checkpoints by their times; those of yesterday seem to be written tomorrow."""
    for ahead, step in enumerate((2, 4, 6)):
        moment = time.time() + 86_400 + ahead
        os.utime(run / f"checkpoint-{step}", (moment, moment))
    script.training(run, max_steps=10, save_steps=2, save_total_limit=2).train(resume_from_checkpoint=True)
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-10"}
    assert checkpoint_problem(run / "checkpoint-10") is None


def test_a_training_goes_on_from_a_link_and_leaves_what_is_behind_it(run, tmp_path):
    """As in a folder of checkpoints that were moved to another disk."""
    elsewhere = shutil.move(run / "checkpoint-6", tmp_path / "elsewhere")
    (run / "checkpoint-6").symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in Path(elsewhere).iterdir()}
    trainer = script.training(run, max_steps=8, save_steps=2, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8 and checkpoint_problem(run / "checkpoint-8") is None
    assert {path.name: path.read_bytes() for path in Path(elsewhere).iterdir()} == before


def test_a_state_of_absurd_numbers_is_no_crash(run, caplog):
    state = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())
    (run / "checkpoint-6" / "trainer_state.json").write_text(json.dumps(state | {"epoch": 5e-324}))
    tell_other_start(script.training(run, max_steps=6), str(run / "checkpoint-6"))
    assert "the data set or the batch is another" in caplog.text


# --- kill -9 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Trainings that ended in the middle of a step or of a write, and what became of them; see the script."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, script.__file__, str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", script.WORKERS)
def test_killed_in_the_middle_of_a_step(killed, name):
    folder, ends, errors = killed
    assert ends["whole"] == [0] and ends[name] == [-9, 0], errors
    assert_same_weights(folder / name / "final", folder / "whole" / "final")
    state, expected = (
        json.loads((folder / run / "checkpoint-12" / "trainer_state.json").read_text())["log_history"]
        for run in (name, "whole")
    )
    assert [entry.get("loss") for entry in state] == [entry.get("loss") for entry in expected]
    assert len(state) == script.STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", script.FILES)
def test_killed_in_the_middle_of_a_write(killed, name):
    """With only one checkpoint to be kept: the old one was still there, and the half of a new one did no harm."""
    folder, ends, errors = killed
    assert ends[name] == [-25, 0], errors
    left = json.loads((folder / name / "left.json").read_text())
    assert left.keys() == {"checkpoint-4", "checkpoint-8"}
    assert set(NEEDED) <= set(left["checkpoint-4"])
    assert "trainer_state.json" not in left["checkpoint-8"]
    assert f"Skipped {folder / name / 'checkpoint-8'}, which is not complete" in errors
    assert_same_weights(folder / name / "final", folder / "whole" / "final")
    assert [path.name for path in (folder / name).glob("checkpoint-*")] == ["checkpoint-12"]
    assert checkpoint_problem(folder / name / "checkpoint-12") is None
