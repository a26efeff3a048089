"""Training is right on many processes: losses and gradients are those of one process with the same global batch."""

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours
from fixtures import pretrain_in_processes as script
from fixtures.processes import run_together
from safetensors.torch import load_file

WORLDS = (2, 4)
EXACT = [name for name in script.CASES if name != "local"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of every case."""
    folder = tmp_path_factory.mktemp("alone")
    script.main(folder)
    return folder


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world}-processes")
def together(request, tmp_path_factory):
    """The number of processes, and what they make of every case."""
    folder = tmp_path_factory.mktemp(f"together{request.param}")
    done = run_together(request.param, [script.__file__, str(folder)])
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, folder


def read(folder: Path, name: str):
    found = json.loads((folder / f"{name}.json").read_text())
    return found["log"], found["sizes"], load_file(folder / f"{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_losses_and_gradients_are_those_of_one_process(alone, together, name):
    _, folder = together
    expected_log, _, expected = read(alone, name)
    log, _, gradients = read(folder, name)
    assert gradients.keys() == expected.keys()
    for parameter, value in expected.items():
        torch.testing.assert_close(gradients[parameter], value, atol=1e-5, rtol=1e-4, msg=parameter)
    # where VTM has no weight its negatives are local ones
    everywhere = script.CASES[name].get("vtm_negatives") == "global" or "vtm_pool" in script.CASES[name]
    drawn = () if everywhere else ("loss_vtm", "vtm_accuracy")
    assert len(log) == len(expected_log) == 2
    for entry, expected_entry in zip(log, expected_log, strict=True):
        wanted = {key: value for key, value in expected_entry.items() if key not in drawn}
        assert {key: entry[key] for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_the_processes_had_different_shares(together):
    """What makes the above worth something: unequal texts and unequal numbers of labels in the processes."""
    world, folder = together
    kept = {name: [[count for _, count in sizes] for sizes in read(folder, name)[1]] for name in ("all", "pem")}
    for name, counts in kept.items():
        assert len(counts) == world
        for step in range(2):
            assert len({process[step] for process in counts}) > 1, (name, counts)
    lengths = [[length for length, _ in sizes] for sizes in read(folder, "mlm")[1]]
    assert len({process[0] for process in lengths}) > 1, lengths
    # global negatives travel, so there texts are padded alike
    assert len({process[0][0] for process in read(folder, "vtm")[1]}) == 1
    answered = [row["answer"] in colours.ANSWERS for row in script.question_rows()[: script.GLOBAL_BATCH]]
    size = len(answered) // world
    assert len({sum(answered[rank * size : (rank + 1) * size]) for rank in range(world)}) > 1, answered


@pytest.mark.slow
def test_local_negatives_are_those_of_each_process_alone(alone, together, tmp_path):
    """VTM is then the mean of what every process would have with its rows only; all else is as with one process."""
    world, folder = together
    (first, *_), _, _ = read(folder, "local")
    (expected, *_), _, _ = read(alone, "local")
    own = {"loss", "grad_norm", "loss_vtm", "vtm_accuracy", "epoch", "step"}
    others = {key: value for key, value in expected.items() if key not in own}
    assert {key: first[key] for key in others} == pytest.approx(others, rel=1e-5, abs=1e-6)

    student = coloured.student().train()
    seed = coloured.trainer(student, coloured.arguments(tmp_path), prompter=coloured.prompter())._seed_of(0)
    size = script.GLOBAL_BATCH // world
    losses = []
    for rank in range(world):
        batch = coloured.collator()(coloured.rows()[rank * size : (rank + 1) * size])
        words = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values_videos")}
        ids = {key: batch[key] for key in ("video_ids", "text_ids")}
        generator = torch.Generator().manual_seed(seed)
        losses.append(student(**words, **ids, return_loss=True, generator=generator).loss_vtm.item())
    assert first["loss_vtm"] == pytest.approx(sum(losses) / world, rel=1e-5)


@pytest.mark.slow
def test_a_last_batch_that_is_not_full_and_a_broken_clip_hang_nothing(together):
    _, folder = together
    found = json.loads((folder / "uneven.json").read_text())
    assert len(found["log"]) == 4
    for entry in found["log"]:
        assert all(math.isfinite(value) for value in entry.values())
        assert {*coloured.LOSSES, "temperature"} <= entry.keys()
    assert found["log"][-1]["dropped_rows"] >= 2, "once an epoch"
    assert found["metrics"]["eval_t2v_r10"] == 100, "7 rows, each counted once"


@pytest.mark.slow
def test_every_epoch_draws_anew(together):
    """Shuffled batches that are divided among processes: where accelerate does not tell the data set its epoch."""
    _, folder = together
    epochs = json.loads((folder / "uneven.json").read_text())["epochs"]
    assert set(epochs) == {0, 1}
    assert epochs.count(0) == epochs.count(1)


@pytest.mark.slow
def test_processes_go_on_from_the_newest_checkpoint_that_all_of_them_wrote(together):
    _, folder = together
    log, resumed_log = (json.loads((folder / f"{name}.json").read_text())["log"] for name in ("uneven", "resumed"))
    since_the_start = ("dropped_rows", "dropped_share")  # of a process, not of the training
    facts, resumed_facts = (
        [{key: value for key, value in entry.items() if key not in since_the_start} for entry in entries]
        for entries in (log, resumed_log)
    )
    assert facts == resumed_facts
    weights, resumed = (load_file(folder / f"{name}.safetensors") for name in ("uneven", "resumed"))
    for name, value in weights.items():
        assert torch.equal(resumed[name], value), name
    epochs = json.loads((folder / "resumed.json").read_text())["epochs"]
    assert set(epochs) == {1}, "checkpoint-4 was passed over, and step 4 is in the second epoch"


@pytest.mark.slow
def test_a_student_in_shards_has_the_losses_and_gradients_of_a_whole_one(together):
    world, folder = together
    found = load_file(folder / "sharded.safetensors")
    assert found["layers"] == 1 + 1 + 2, "the embeddings and layer of video, the layers of text; the rest in the root"
    torch.testing.assert_close(found["sharded.losses"], found["whole.losses"], atol=1e-6, rtol=1e-6)
    names = {name.removeprefix("whole.") for name in found if name.startswith("whole.")} - {"losses"}
    assert {"alpro.temperature", "pem_head.0.weight", "alpro.text_model.layers.1.mlp.fc1.weight"} <= names, names
    for name in names:
        whole, in_shards = found[f"whole.{name}"], found[f"sharded.{name}"]
        torch.testing.assert_close(in_shards, whole, atol=1e-6, rtol=1e-5, msg=name)
    local = sum(int(found[f"sharded.local.{name}"]) for name in names)
    assert local * world < 1.1 * sum(found[f"whole.{name}"].numel() for name in names), "a process holds its share"
