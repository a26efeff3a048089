"""Ways of training that must not differ: the same losses whatever the memory, the kernel or the version."""

import json

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours, trajectories
from fixtures.train_in_processes import KeepGradients

from alpro_hf import AlproForVideoQuestionAnswering, AlproModel
from alpro_hf.data.collator import AlproCollator
from alpro_hf.training.distributed import add_counts, seeded

ONLY = {f"{loss}_weight": 0.0 for loss in ("vtc", "vtm", "mlm", "pem")}
GRADIENTS = {"atol": 1e-5, "rtol": 1e-4}


# --- the same as ever -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [{}, {"attention": "eager"}, {"activation_checkpointing": True}], ids=["plain", "eager", "checkpointing"]
)
@pytest.mark.parametrize("task", trajectories.TASKS)
def test_ten_steps_are_as_they_were(tmp_path, task, way):
    """A change that is meant: see `fixtures/trajectories.py` for how to write the numbers anew."""
    expected = json.loads(trajectories.FILE.read_text())[task]
    found = trajectories.trajectory(task, tmp_path, **way)
    assert found.keys() == expected.keys()
    assert len(found["loss"]) == trajectories.STEPS
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


def test_the_trajectories_are_of_trainings_that_get_somewhere():
    """Numbers that stand still would agree with anything."""
    for task, parts in json.loads(trajectories.FILE.read_text()).items():
        assert parts["loss"][-1] < 0.95 * parts["loss"][0], task
        assert all(len(set(values)) > 3 for name, values in parts.items() if name.startswith("loss")), task


def test_checkpointing_runs_layers_again(tmp_path):
    calls = []
    for checkpointing in (False, True):
        student = coloured.student()
        args = coloured.arguments(tmp_path, max_steps=1, activation_checkpointing=checkpointing)
        trainer = coloured.trainer(student, args, prompter=coloured.prompter())
        layer = student.alpro.video_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, seen=checkpointing: calls.append(seen))
        trainer.train()
    assert calls == [False, True, True]


# --- one batch in parts ---------------------------------------------------------------------------------------------


def step_in_parts(tmp_path, micro_steps: int, **fields):
    """Log and gradients of a step over 8 rows in so many micro-batches."""
    args = coloured.arguments(
        tmp_path, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=8 // micro_steps,
        gradient_accumulation_steps=micro_steps, **fields
    )  # fmt: skip
    if fields.keys() & ONLY.keys():
        rows = coloured.pseudo_labelled(coloured.rows())
        trainer = coloured.trainer(coloured.student(), args, rows[:8])
    else:
        torch.manual_seed(0)
        collator = AlproCollator(colours.processor(), task="qa", label2id=colours.ANSWERS)
        rows = colours.question_rows(4)[-8:]  # the last has an answer outside the list
        rows[1:3] = [{**row, "answer": "four"} for row in rows[1:3]]
        trainer = coloured.trainer(
            AlproForVideoQuestionAnswering(colours.config()), args, rows, data_collator=collator
        )  # fmt: skip
    kept = KeepGradients(trainer)
    trainer.add_callback(kept)
    trainer.train()
    (entry,) = coloured.logs(trainer)
    return entry, kept.gradients


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        (ONLY | {"mlm_weight": 1.0}, ["loss_mlm", "mlm_accuracy"]),
        (ONLY | {"pem_weight": 1.0}, ["loss_pem", "pem_kept", "pem_entropy", "pem_agreement"]),
        (ONLY | {"vtc_weight": 1.0, "contrastive_accumulation": True}, ["loss_vtc", "temperature"]),
        (
            ONLY | {"vtc_weight": 1.0, "mlm_weight": 1.0, "pem_weight": 1.0, "contrastive_accumulation": True},
            ["loss_vtc", "loss_mlm", "loss_pem", "temperature"],
        ),
        ({}, ["accuracy"]),
    ],
    ids=["mlm", "pem", "vtc", "all-but-vtm", "qa"],
)
@pytest.mark.parametrize("micro_steps", [2, 4])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, fields, facts, micro_steps):
    whole, expected = step_in_parts(tmp_path, 1, **fields)
    parts, gradients = step_in_parts(tmp_path, micro_steps, **fields)
    for name in ["loss", *facts]:
        assert parts[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name
    assert gradients.keys() == expected.keys()
    if fields.get("vtc_weight"):
        assert "alpro.temperature" in gradients
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, **GRADIENTS, msg=name)


def test_without_contrastive_accumulation_micro_batches_are_not_contrasted(tmp_path):
    """Else the test above would show nothing about VTC."""
    whole, _ = step_in_parts(tmp_path, 1, **(ONLY | {"vtc_weight": 1.0}))
    parts, _ = step_in_parts(tmp_path, 2, **(ONLY | {"vtc_weight": 1.0}))
    assert abs(parts["loss_vtc"] - whole["loss_vtc"]) > 0.1


# --- large contrastive batches under dropout ------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_contrastive_accumulation_is_exact_under_dropout(tmp_path, checkpointing):
    """The second encoding of a micro-batch drops what the first did: gradients are those of the loss that was taken.

    The loss written out: all micro-batches encoded with gradients, each under its own random numbers, and contrasted
    with each other at once.
    """

    def student():
        model = coloured.student(text=coloured.DROPOUT)
        model.config.video_config.hidden_dropout_prob = 0.2
        for module in model.alpro.video_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        return model.train()

    rows = coloured.pseudo_labelled(coloured.rows())[:8]
    args = coloured.arguments(
        tmp_path, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        contrastive_accumulation=True, activation_checkpointing=checkpointing
    )  # fmt: skip
    trainer = coloured.trainer(student(), args, rows)
    kept = KeepGradients(trainer)
    trainer.add_callback(kept)
    trainer.train()
    (entry,) = coloured.logs(trainer)

    model = student()
    trainer.state.global_step = 0
    numbered = [{**row, "index": i, "epoch": 0} for i, row in enumerate(rows)]
    batches = [coloured.collator()(numbered[:4]), coloured.collator()(numbered[4:])]
    add_counts(batches, model.config.pem_threshold)
    outputs = []
    for i, batch in enumerate(batches):
        inputs = {key: value for key, value in batch.items() if key not in ("kind", "black", "row_ids")}
        generator = torch.Generator().manual_seed(trainer._seed_of(i))
        with seeded(trainer._seed_of(i), torch.device("cpu")):
            outputs.append(model(**inputs, return_loss=True, generator=generator))
    video, text = (torch.cat([out[name] for out in outputs]) for name in ("video_embeds", "text_embeds"))
    vtc = model.alpro.contrastive_loss(video, text)
    others = sum(out.loss_vtm + out.loss_mlm + out.loss_pem for out in outputs) / 2
    (vtc + others).backward()
    assert entry["loss_vtc"] == pytest.approx(vtc.item(), rel=1e-5)
    assert entry["loss"] == pytest.approx((vtc + others).item(), rel=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert kept.gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(kept.gradients[name], value, **GRADIENTS, msg=name)


def test_random_numbers_outside_go_on_as_if_nothing_had_happened():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = torch.rand(2)
    with seeded(7, torch.device("cpu")):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)
    with seeded(7, torch.device("cpu")):
        assert torch.equal(torch.rand(3), inside)


def test_a_short_last_step_accumulates_too(tmp_path):
    """5 micro-batches in steps of 2: the last step has one, and contrasts it with itself only."""
    args = coloured.arguments(
        tmp_path, num_train_epochs=1, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        contrastive_accumulation=True
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = coloured.trainer(AlproModel(coloured.config()), args, coloured.rows()[:10])
    trainer.train()
    losses = [entry["loss"] for entry in coloured.logs(trainer)]
    assert len(losses) == 3
    assert losses[2] < 1.5 < losses[0], "of 2 rows, of 4 rows"


def test_contrastive_accumulation_is_refused_where_nothing_is_contrasted(tmp_path):
    args = coloured.arguments(tmp_path, contrastive_accumulation=True)
    collator = AlproCollator(colours.processor(), task="qa", label2id=colours.ANSWERS)
    model = AlproForVideoQuestionAnswering(colours.config())
    with pytest.raises(ValueError, match="question answering has none"):
        coloured.trainer(model, args, colours.question_rows(), data_collator=collator)
