"""Pre-training and its prompter, on coloured clips whose entities are the colours."""

import math

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours

from alpro_hf import AlproForPreTraining, AlproForVideoTextRetrieval, AlproModel, AlproPrompterModel
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.training.trainer import AlproTrainer, NonFiniteLossError

LOSSES = coloured.LOSSES
PARTS = {*LOSSES, "vtm_accuracy", "mlm_accuracy", "pem_kept", "pem_entropy", "pem_agreement", "temperature"}


def copied(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def prompter_training(tmp_path_factory):
    """A prompter that learned from VTC which colours a clip shows, and its trainer."""
    torch.manual_seed(0)
    model = AlproPrompterModel(coloured.config())
    args = coloured.arguments(
        # after half as many steps, one seed of eight names only two of the four colours in crops
        tmp_path_factory.mktemp("prompter"),
        max_steps=240,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
    )
    trainer = coloured.trainer(model, args)
    trainer.train()
    coloured.set_prompts(model)
    return trainer


@pytest.fixture(scope="module")
def prompter(prompter_training):
    return prompter_training.model


# --- the stage of the prompter --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_prompter_learns_from_vtc_alone(prompter_training):
    entries = coloured.logs(prompter_training)
    assert prompter_training.evaluate()["eval_t2v_r1"] == 100
    assert {"loss_vtc", "temperature"} <= entries[-1].keys()
    assert not {"loss_vtm", "loss_mlm", "loss_pem"} & entries[-1].keys()
    assert entries[-1]["loss"] == pytest.approx(entries[-1]["loss_vtc"], abs=1e-6)
    assert entries[-1]["loss"] < entries[0]["loss"] / 4


def test_a_trained_prompter_names_the_colour_of_a_crop(prompter):
    batch = coloured.collator()(coloured.rows())
    left = torch.zeros(16, 2, 2, dtype=torch.bool)
    left[:, :, 0] = True
    crops = crop_on_black(batch["pixel_values_videos"], left, batch["black"])
    named = [coloured.ENTITIES[i] for i in prompter.pseudo_labels(crops).argmax(dim=1).tolist()]
    shown = [row["text"].split()[0] for row in coloured.rows()]
    # crops on black were never shown in training
    assert sum(a == b for a, b in zip(named, shown, strict=True)) >= 12, (named, shown)


@pytest.mark.slow
def test_towers_alone_train_as_the_prompter_does(tmp_path):
    """`AlproModel` and `AlproPrompterModel` are the same stage: equal towers, equal losses."""
    seen = []
    torch.manual_seed(0)
    towers = AlproModel(coloured.config())
    wrapped = AlproPrompterModel(coloured.config())
    wrapped.alpro.load_state_dict(towers.state_dict())
    for model in (towers, wrapped):
        trainer = coloured.trainer(model, coloured.arguments(tmp_path, max_steps=3))
        trainer.train()
        seen.append([{name: entry[name] for name in ("loss", "temperature")} for entry in coloured.logs(trainer)])
    assert seen[0] == seen[1]


# --- pre-training ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def agreement(student, prompter) -> float:
    """The share of 320 crops that student and teacher give one name; a batch of the log has 16."""
    agreed = []
    for seed in range(20):
        batch = coloured.collator(seed=seed)(coloured.rows())
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch.pop("black"))
        batch["pem_targets"] = prompter.pseudo_labels(crops, kind=batch.pop("kind"))
        outputs = student.eval()(**batch)
        agreed.append(outputs.pem_logits.argmax(dim=1) == batch["pem_targets"].argmax(dim=1))
    return torch.cat(agreed).float().mean().item()


@pytest.mark.slow
def test_all_losses_are_logged_and_fall(tmp_path, prompter):
    before = copied(prompter)
    student = coloured.student()
    agreed = agreement(student, prompter)
    args = coloured.arguments(
        tmp_path, max_steps=150, logging_steps=15, logging_first_step=True, per_device_train_batch_size=16,
        train_sampling_strategy="random"
    )  # fmt: skip
    trainer = coloured.trainer(student, args, prompter=prompter)
    trainer.train()
    entries = coloured.logs(trainer)
    assert len(entries) == 11
    for entry in entries:
        assert entry.keys() >= PARTS | {"grad_norm", "learning_rate"}
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in LOSSES), rel=1e-4)
        for name in ("vtm_accuracy", "mlm_accuracy", "pem_kept", "pem_agreement"):
            assert 0 <= entry[name] <= 1, name
        assert 0 <= entry["pem_entropy"] <= math.log(len(coloured.ENTITIES))
        assert entry["loss_pem"] > 0
    # wrong pairs as close as these take VTM longer than this
    for name, share in (("loss_vtc", 0.3), ("loss_vtm", 0.99), ("loss_mlm", 0.4), ("loss_pem", 0.4)):
        assert entries[-1][name] < share * entries[0][name], name
    assert agreement(trainer.model, prompter) > max(agreed, 0.75)
    assert entries[-1]["pem_kept"] > 0.5, "a trained prompter is sure of most crops"

    assert not prompter.training and not any(p.requires_grad or p.grad is not None for p in prompter.parameters())
    assert all(torch.equal(value, before[name]) for name, value in prompter.state_dict().items())
    assert not any(name.startswith("prompter") for name in trainer.model.state_dict())


def test_the_pem_statistics_are_those_of_the_batch(tmp_path):
    prompter = coloured.prompter()
    student = coloured.student()
    trainer = coloured.trainer(student, coloured.arguments(tmp_path, max_steps=1), prompter=prompter)
    start = copied(student)
    trainer.train()
    (entry,) = coloured.logs(trainer)

    numbered = [{**row, "index": i, "epoch": 0} for i, row in enumerate(coloured.rows()[:8])]
    batch = coloured.collator()(numbered)
    crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
    targets = prompter.pseudo_labels(crops)
    student.load_state_dict(start)
    names = ("input_ids", "attention_mask", "pixel_values_videos", "mlm_input_ids", "mlm_labels", "crop_mask")
    out = student(**{name: batch[name] for name in names}, pem_targets=targets, return_loss=True)
    kept = targets.max(dim=1).values >= student.config.pem_threshold
    assert kept.sum() == 3
    wanted = batch["mlm_labels"] >= 0
    expected = {
        "pem_kept": kept.float().mean(),
        "pem_entropy": -(targets * targets.log()).sum(dim=1).mean(),
        "pem_agreement": (out.pem_logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean(),
        "mlm_accuracy": (out.mlm_logits.argmax(dim=-1) == batch["mlm_labels"])[wanted].float().mean(),
        "loss_mlm": torch.nn.functional.cross_entropy(out.mlm_logits[wanted], batch["mlm_labels"][wanted]),
        "loss_pem": torch.nn.functional.cross_entropy(out.pem_logits[kept], targets[kept]),
    }
    assert {name: entry[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )


def test_weights_of_losses(tmp_path):
    weights = {"vtc_weight": 0.5, "vtm_weight": 2.0, "mlm_weight": 0.25, "pem_weight": 3.0}
    args = coloured.arguments(tmp_path, max_steps=1, **weights)
    trainer = coloured.trainer(coloured.student(), args, prompter=coloured.prompter())
    trainer.train()
    (entry,) = coloured.logs(trainer)
    expected = sum(weights[f"{name.removeprefix('loss_')}_weight"] * entry[name] for name in LOSSES)
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("off", ["vtc", "vtm", "mlm", "pem"])
def test_a_loss_of_weight_0_moves_nothing_of_its_own(tmp_path, off):
    student = coloured.student()
    start = copied(student)
    args = coloured.arguments(tmp_path, max_steps=2, optim="sgd", weight_decay=0, **{f"{off}_weight": 0})
    trainer = coloured.trainer(student, args, prompter=None if off == "pem" else coloured.prompter())
    trainer.train()
    entry = coloured.logs(trainer)[-1]
    assert entry["loss"] == pytest.approx(sum(entry[n] for n in LOSSES if n in entry and n != f"loss_{off}"), rel=1e-5)
    assert (f"loss_{off}" in entry) == (off in ("vtc", "vtm")), "MLM and PEM cost something that is then saved"
    heads = {
        "vtc": ["alpro.text_projection.weight", "alpro.video_projection.weight", "alpro.temperature"],
        "vtm": ["vtm_head.weight"],
        "mlm": ["mlm_head.dense.weight"],
        "pem": ["pem_head.0.weight"],
    }
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, start[name])}
    for loss, names in heads.items():
        assert moved.issuperset(names) if loss != off else not moved.intersection(names), loss


@pytest.mark.slow
def test_cached_pseudo_labels_take_the_place_of_a_prompter(tmp_path):
    def losses(given, **options):
        args = coloured.arguments(tmp_path, max_steps=2)
        trainer = coloured.trainer(coloured.student(), args, given, **options)
        trainer.train()
        return [
            {name: entry[name] for name in (*LOSSES, "pem_kept", "pem_entropy")} for entry in coloured.logs(trainer)
        ]

    prompter, rows, seed = coloured.prompter(), coloured.rows(), coloured.collator().seed
    batch = coloured.collator()([{**row, "index": i, "epoch": 0} for i, row in enumerate(rows)])
    targets = prompter.pseudo_labels(
        crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
    ).tolist()
    cached = [
        {**row, "pem_targets": target, "pem_seed": seed, "pem_epoch": 0, "pem_index": i}
        for i, (row, target) in enumerate(zip(rows, targets, strict=True))
    ]
    asked = losses(rows, prompter=prompter)
    for expected, found in zip(asked, losses(cached), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    # where both are there, what is cached counts
    for expected, found in zip(asked, losses(cached, prompter=coloured.prompter(seed=7)), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_pem_without_any_pseudo_label_sure_enough_is_0(tmp_path):
    student = coloured.student(pem_threshold=1.0)
    trainer = coloured.trainer(student, coloured.arguments(tmp_path, max_steps=2), prompter=coloured.prompter())
    trainer.train()
    for entry in coloured.logs(trainer):
        assert (entry["loss_pem"], entry["pem_kept"]) == (0, 0)
        assert math.isfinite(entry["grad_norm"])


def test_mixed_precision_trains_all_losses(tmp_path):
    args = coloured.arguments(tmp_path, max_steps=3, bf16=True, gradient_accumulation_steps=2, max_grad_norm=1.0)
    args.contrastive_accumulation = True
    trainer = coloured.trainer(coloured.student(), args, prompter=coloured.prompter())
    trainer.train()
    for entry in coloured.logs(trainer):
        assert all(math.isfinite(entry[name]) for name in PARTS)


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["vtc", "rerank", "reference"])
def test_evaluation_of_a_student_equals_that_of_the_retrieval_model(tmp_path, protocol):
    student = coloured.student().eval()
    retrieval = AlproForVideoTextRetrieval(student.config).eval()
    assert not retrieval.load_state_dict(student.state_dict(), strict=False).missing_keys
    student.config.matching_trained = retrieval.config.matching_trained = True
    found = []
    for model, collator in ((student, coloured.collator()), (retrieval, AlproCollator(colours.processor()))):
        args = coloured.arguments(tmp_path, eval_protocol=protocol, rerank_k=3)
        trainer = coloured.trainer(model, args, data_collator=collator)
        output = trainer.predict(coloured.rows())
        found.append((output, trainer.evaluate()))
    (student_output, metrics), (expected, expected_metrics) = found
    torch.testing.assert_close(student_output.predictions, expected.predictions, atol=1e-6, rtol=1e-5)
    assert student_output.predictions.shape == (16, 16)
    recalls = {name for name in metrics if "_r" in name and "runtime" not in name}
    assert {f"eval_{name}" for name in retrieval_metrics(expected.predictions, torch.arange(16))} <= metrics.keys()
    assert ("eval_vtc_t2v_r1" in metrics) == (protocol != "vtc")
    assert {name: metrics[name] for name in recalls} == {name: expected_metrics[name] for name in recalls}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pem_without_a_teacher_or_without_crops_is_refused(tmp_path):
    args = coloured.arguments(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"a prompter\. Pass prompter=, cache pseudo-labels, or set pem_weight=0"):
        coloured.trainer(coloured.student(), args).train()
    for collator in (AlproCollator(colours.processor()), coloured.collator(pem=False)):
        trainer = coloured.trainer(coloured.student(), args, prompter=coloured.prompter(), data_collator=collator)
        with pytest.raises(ValueError, match="lacks crops: use the collator for pre-training"):
            trainer.train()


def test_a_model_without_entities_needs_no_teacher(tmp_path):
    trainer = coloured.trainer(coloured.student(entities=None), coloured.arguments(tmp_path, max_steps=1))
    trainer.train()
    (entry,) = coloured.logs(trainer)
    assert {"loss_vtc", "loss_vtm", "loss_mlm"} <= entry.keys()
    assert "loss_pem" not in entry


def test_prompters_that_cannot_teach_are_refused(tmp_path):
    args = coloured.arguments(tmp_path)
    with pytest.raises(ValueError, match=r"entities of the model \(3\) and of the prompter \(4\) differ"):
        coloured.trainer(coloured.student(entities=coloured.ENTITIES[:3]), args, prompter=coloured.prompter())
    reordered = coloured.student(entities=coloured.ENTITIES[::-1])
    with pytest.raises(ValueError, match=r"entities=prompter\.config\.entities"):
        coloured.trainer(reordered, args, prompter=coloured.prompter())
    with pytest.raises(TypeError, match="AlproPrompterModel; received AlproModel"):
        coloured.trainer(coloured.student(), args, prompter=AlproModel(coloured.config()))
    with pytest.raises(ValueError, match="AlproModel has no use for it"):
        coloured.trainer(AlproModel(coloured.config()), args, prompter=coloured.prompter())
    blank = AlproPrompterModel(coloured.config())
    with pytest.raises(ValueError, match=r"set_prompts\('video'"):
        coloured.trainer(coloured.student(), args, prompter=blank).train()


def test_arguments_of_pretraining_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"vtm_negatives='remote' is unknown\. Use 'local' or 'global'"):
        coloured.arguments(tmp_path, vtm_negatives="remote")
    for name in ("mlm_weight", "pem_weight"):
        with pytest.raises(ValueError, match=f"{name}=-1 must not be negative"):
            coloured.arguments(tmp_path, **{name: -1})


def test_one_process_with_several_gpus_is_refused(tmp_path):
    args = coloured.arguments(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 3
    with pytest.raises(ValueError, match=r"drives 3 GPUs.*torchrun --nproc_per_node 3"):
        coloured.trainer(coloured.student(), args)


# --- losses that are not finite -------------------------------------------------------------------------------------


class Poisoned(AlproPreTrainingCollator):
    """Row 9 arrives with pixels that are no numbers."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        batch["pixel_values_videos"][batch["row_ids"] == 9] = torch.nan
        return batch


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_training_in_time(tmp_path, accumulation):
    """With rows in order and 4 a step, row 9 comes in step 3; step 2 was saved."""
    student = coloured.student()
    args = coloured.arguments(
        tmp_path, max_steps=4, per_device_train_batch_size=4 // accumulation, save_strategy="steps", save_steps=2,
        gradient_accumulation_steps=accumulation
    )  # fmt: skip
    trainer = coloured.trainer(
        student, args, prompter=coloured.prompter(), data_collator=Poisoned(colours.processor(), patch_size=8)
    )
    rows = [8, 9, 10, 11] if accumulation == 1 else [8, 9]
    with pytest.raises(NonFiniteLossError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("The loss of step 3 is not finite: loss_vtc=nan, loss_vtm=nan, loss_mlm=")
    assert "loss_pem=nan" in message
    assert f"Its rows: {rows}." in message

    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    saved = AlproForPreTraining.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    for name, value in student.state_dict().items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, saved[name]), name

    sound = coloured.trainer(
        coloured.student(1), args, prompter=coloured.prompter(), data_collator=coloured.collator()
    )
    sound.train(resume_from_checkpoint=True)
    assert sound.state.global_step == 4


def test_the_row_is_named_in_question_answering_too(tmp_path):
    class PoisonedAnswers(AlproCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            batch["pixel_values_videos"][0] = torch.inf
            return batch

    from alpro_hf import AlproForVideoQuestionAnswering

    rows = colours.question_rows()
    trainer = AlproTrainer(
        model=AlproForVideoQuestionAnswering(colours.config()),
        args=coloured.arguments(tmp_path, max_steps=1, per_device_train_batch_size=2),
        data_collator=PoisonedAnswers(colours.processor(), task="qa", label2id=colours.ANSWERS),
        train_dataset=rows,
    )
    with pytest.raises(NonFiniteLossError, match=r"step 1 is not finite: loss=nan. Its rows: \[0, 1\]"):
        trainer.train()
