"""Training and evaluation on a world of coloured clips, small enough to be learned in seconds."""

import json
import math
from pathlib import Path

import pytest
import torch
from fixtures import colours
from fixtures.processes import run_together
from safetensors.torch import load_file
from transformers import HfArgumentParser

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.rows import video_id
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.trainer import AlproTrainer

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def arguments(folder: Path, **fields) -> AlproTrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 10,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return AlproTrainingArguments(**(defaults | fields))


def build(model_class, seed: int = 0, **config):
    torch.manual_seed(seed)
    return model_class(colours.config(**config))


def trainer_for(model, args, rows=None, **kwargs) -> AlproTrainer:
    is_qa = isinstance(model, AlproForVideoQuestionAnswering)
    rows = rows or (colours.question_rows() if is_qa else colours.retrieval_rows())
    collator = AlproCollator(
        colours.processor(), task="qa" if is_qa else "retrieval", label2id=colours.ANSWERS if is_qa else None
    )
    fields = {"train_dataset": rows, "eval_dataset": rows, "processing_class": colours.processor()} | kwargs
    return AlproTrainer(model=model, args=args, data_collator=collator, **fields)


def training_logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_retrieval_is_learned_and_every_part_logged(tmp_path):
    model = build(AlproForVideoTextRetrieval)
    trainer = trainer_for(model, arguments(tmp_path, max_steps=150, eval_protocol="rerank", rerank_k=3))
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_t2v_r1"] < 100
    for name in ("eval_t2v_r1", "eval_v2t_r1", "eval_vtc_t2v_r1", "eval_vtc_v2t_r1"):
        assert after[name] == 100, name
    assert after["eval_dropped_rows"] == 0

    logs = training_logs(trainer)
    assert len(logs) == 15
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["loss_vtc"] + entry["loss_vtm"], abs=1e-4)
        assert 0 <= entry["vtm_accuracy"] <= 1
        assert 0.001 <= entry["temperature"] <= 0.5
    assert logs[-1]["loss_vtc"] < logs[0]["loss_vtc"] / 4
    assert logs[-1]["loss_vtm"] < logs[0]["loss_vtm"] / 2
    assert logs[-1]["vtm_accuracy"] > 0.9


@pytest.mark.slow
def test_answers_are_learned_and_counted_by_type(tmp_path):
    model = build(AlproForVideoQuestionAnswering)
    args = arguments(tmp_path, max_steps=120, per_device_train_batch_size=10, vtm_weight=0)
    trainer = trainer_for(model, args)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy_which"] == 100
    assert metrics["eval_accuracy_how_many"] == pytest.approx(100 * 6 / 7)  # one answer is outside the list
    assert metrics["eval_accuracy"] == 90
    assert metrics["eval_out_of_list"] == 1
    assert metrics["eval_n"] == 10
    logs = training_logs(trainer)
    assert logs[0]["loss"] > metrics["eval_loss"]
    assert logs[-1]["accuracy"] == pytest.approx(1)


@pytest.mark.slow
def test_without_matching_only_the_towers_run_and_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(AlproTextModel, "fuse", lambda *args, **kwargs: pytest.fail("the fusion layers ran"))
    head = build(AlproForVideoTextRetrieval)
    trainer = trainer_for(head, arguments(tmp_path, max_steps=100, vtm_weight=0))
    trainer.train()
    assert trainer.evaluate()["eval_t2v_r1"] == 100
    assert "loss_vtm" not in training_logs(trainer)[-1]
    assert trainer.model is head.alpro

    trainer.save_model()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["AlproModel"]
    reloaded = AlproForVideoTextRetrieval.from_pretrained(tmp_path)
    for name, value in AlproModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, head.alpro.state_dict()[name])
        assert torch.equal(value, reloaded.alpro.state_dict()[name])


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path):
    trainer = trainer_for(build(AlproForVideoTextRetrieval), arguments(tmp_path, vtc_weight=0.5, vtm_weight=3.0))
    batch = trainer.data_collator(colours.retrieval_rows())
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(loss, 0.5 * outputs.loss_vtc + 3 * outputs.loss_vtm)


def test_parts_are_averaged_over_the_steps_between_logs(tmp_path):
    args = {"max_steps": 4, "train_sampling_strategy": "sequential"}
    every = trainer_for(build(AlproModel), arguments(tmp_path, logging_steps=1, **args))
    every.train()
    seldom = trainer_for(build(AlproModel), arguments(tmp_path, logging_steps=2, **args))
    seldom.train()
    singles, pairs = training_logs(every), training_logs(seldom)
    for i, pair in enumerate(pairs):
        for name in ("loss_vtc", "temperature"):
            assert pair[name] == pytest.approx((singles[2 * i][name] + singles[2 * i + 1][name]) / 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, model_class):
    def run(folder: str, checkpoint: Path | None = None, seed: int = 0, **fields):
        args = arguments(
            tmp_path / folder, max_steps=8, per_device_train_batch_size=4, save_strategy="steps", save_steps=4,
            logging_steps=4, **fields
        )  # fmt: skip
        model = build(model_class, seed, text=DROPOUT)
        trainer = trainer_for(model, args)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return trainer

    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / "checkpoint-4", seed=1)
    for (name, expected), value in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name
    first, second = training_logs(whole)[-1], training_logs(resumed)[-1]
    assert first == second


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path):
    rows = colours.question_rows()[:8]
    weights = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        model = build(AlproForVideoQuestionAnswering)
        args = arguments(
            tmp_path, max_steps=2, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential", optim="sgd", max_grad_norm=0.0
        )  # fmt: skip
        trainer_for(model, args, rows).train()
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-4, msg=name)


def test_the_temperature_stays_in_its_range_and_never_decays(tmp_path):
    model = build(AlproModel, temperature_init=0.5)  # an untrained model wants it higher, but 0.5 is the limit
    trainer = trainer_for(model, arguments(tmp_path, max_steps=3, warmup_steps=0))
    seen = []
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: seen.append(model.temperature.item()) or step(*args, **kwargs)
    trainer.train()
    assert model.temperature.item() <= 0.5
    assert max(seen) == 0.5
    decayed = trainer.get_decay_parameter_names(model)
    assert "temperature" not in decayed
    assert "text_projection.weight" in decayed


def test_mixed_precision_and_persistent_workers_on_a_cpu(tmp_path):
    model = build(AlproForVideoTextRetrieval)
    args = arguments(
        tmp_path, num_train_epochs=3, bf16=True, dataloader_num_workers=1, dataloader_persistent_workers=True,
        dataloader_prefetch_factor=2, train_sampling_strategy="sequential", eval_strategy="epoch",
        eval_protocol="reference", logging_steps=1
    )  # fmt: skip
    trainer = trainer_for(model, args)
    seen = []
    layer, head = model.alpro.text_model.layers[-1].attention.qkv, model.vtm_head
    scores = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    head.register_forward_hook(lambda module, inputs, output: scores.append(output.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert set(scores) == {torch.float32}  # scores in bfloat16 would tie
    evaluations = [entry for entry in trainer.state.log_history if "eval_t2v_r1" in entry]
    assert len(evaluations) == 3
    assert all(math.isfinite(entry["loss"]) for entry in training_logs(trainer))
    assert model.training or trainer.model.training  # evaluation leaves the mode it found


@pytest.mark.parametrize("protocol", ["vtc", "reference"])
def test_evaluation_equals_scoring_every_pair_directly(tmp_path, protocol):
    rows = colours.retrieval_rows(4)
    rows += [{"video": row["video"], "text": f"white {row['text']} ?"} for row in rows[2:7]]  # second captions
    model = build(AlproForVideoTextRetrieval).eval()
    model.config.matching_trained = True
    trainer = trainer_for(model, arguments(tmp_path, eval_protocol=protocol), rows)
    output = trainer.predict(rows)

    batch = trainer.data_collator(rows)
    video_ids, first = batch["video_ids"].unique(return_inverse=True)
    clips = torch.stack([batch["pixel_values_videos"][(first == i).nonzero()[0, 0]] for i in range(len(video_ids))])
    scores = torch.empty(len(rows), len(clips))
    with torch.no_grad():
        for i in range(len(rows)):
            for j in range(len(clips)):
                single = model(batch["input_ids"][i : i + 1], batch["attention_mask"][i : i + 1], clips[j : j + 1])
                cosine = (single.text_embeds @ single.video_embeds.t()).squeeze()
                log_odds = single.vtm_logits[0, 1] - single.vtm_logits[0, 0]
                scores[i, j] = cosine if protocol == "vtc" else log_odds
    torch.testing.assert_close(torch.from_numpy(output.predictions), scores, atol=1e-5, rtol=1e-4)
    assert output.label_ids.tolist() == first.tolist()
    expected = retrieval_metrics(output.predictions, first)
    assert {name: output.metrics[f"test_{name}"] for name in expected} == expected


def test_predictions_of_answers_are_the_logits(tmp_path):
    rows = colours.question_rows(4)
    model = build(AlproForVideoQuestionAnswering).eval()
    output = trainer_for(model, arguments(tmp_path, vtm_weight=0), rows).predict(rows)
    collator = AlproCollator(colours.processor(), task="qa", label2id=colours.ANSWERS)
    batch = collator(rows)
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"], batch["pixel_values_videos"]).logits
    torch.testing.assert_close(torch.from_numpy(output.predictions), logits, atol=1e-5, rtol=1e-4)
    assert output.label_ids.tolist() == batch["labels"].tolist()
    correct = logits.argmax(dim=1) == batch["labels"]
    assert output.metrics["test_accuracy"] == pytest.approx(100 * correct.float().mean().item())


@pytest.mark.slow
def test_questions_that_share_clips_are_trained_and_evaluated_as_if_each_had_its_own(tmp_path):
    rows = colours.question_rows(4)
    named = [{**row, "video_id": video_id(row)} for row in rows]
    assert len({row["video_id"] for row in named}) == 10 < len(named) == 15
    found = {}
    for name, given in (("apart", rows), ("shared", named)):
        model = build(AlproForVideoQuestionAnswering)
        encoded = []
        model.alpro.video_model.register_forward_pre_hook(lambda module, args, seen=encoded: seen.append(len(args[0])))
        args = arguments(
            tmp_path, max_steps=3, per_device_train_batch_size=15, train_sampling_strategy="sequential", optim="sgd",
            logging_steps=1
        )  # fmt: skip
        trainer = trainer_for(model, args, given)
        trainer.train()
        clips_in_training = encoded.copy()
        output = trainer.predict(given)
        found[name] = (clips_in_training, sum(encoded[3:]), output, [log["loss"] for log in training_logs(trainer)])
    apart, shared = found["apart"], found["shared"]
    assert apart[:2] == ([15] * 3, 15) and shared[:2] == ([10] * 3, 11), "each batch shares within itself"
    assert shared[3] == pytest.approx(apart[3], rel=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(shared[2].predictions), torch.from_numpy(apart[2].predictions), atol=1e-5, rtol=1e-4
    )
    assert shared[2].label_ids.tolist() == apart[2].label_ids.tolist()
    for metric, value in apart[2].metrics.items():
        if "runtime" not in metric and "per_second" not in metric and "preparation_time" not in metric:
            assert shared[2].metrics[metric] == pytest.approx(value, rel=1e-5), metric


def test_several_evaluation_sets_and_own_metrics(tmp_path):
    rows = colours.retrieval_rows()
    trainer = trainer_for(
        build(AlproModel),
        arguments(tmp_path),
        eval_dataset={"all": rows, "few": rows[:2]},
        compute_metrics=lambda prediction: {"videos": prediction.predictions.shape[1]},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_all_videos"] == 6
    assert metrics["eval_few_videos"] == 2
    assert metrics["eval_few_t2v_r5"] == 100


def test_rows_of_broken_clips_are_counted(tmp_path):
    rows = colours.retrieval_rows()
    rows.insert(2, {"video": tmp_path / "missing.mp4", "text": "red and blue"})
    trainer = trainer_for(
        build(AlproModel),
        arguments(tmp_path, num_train_epochs=2, logging_steps=2, per_device_train_batch_size=7),
        rows,
    )
    trainer.train()
    assert training_logs(trainer)[-1]["dropped_rows"] == 2
    metrics = trainer.evaluate()
    assert metrics["eval_dropped_rows"] == 1


def test_the_paper_is_the_default_and_every_own_field_has_help(tmp_path):
    args = AlproTrainingArguments(output_dir=str(tmp_path))
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.98, 1e-3)
    assert (args.lr_scheduler_type, args.get_warmup_steps(1000), args.max_grad_norm, args.seed) == (
        "linear",
        100,
        5,
        42,
    )
    for name in AlproTrainingArguments.__annotations__:
        assert AlproTrainingArguments.__dataclass_fields__[name].metadata["help"], name
    (parsed,) = HfArgumentParser(AlproTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--eval_protocol", "rerank", "--vtm_weight", "0.5"]
    )
    assert (parsed.eval_protocol, parsed.vtm_weight) == ("rerank", 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval_protocol": "vtm"}, "vtm.*reference"),
        ({"vtc_weight": -1}, "vtc_weight=-1"),
        ({"vtm_weight": 0, "eval_protocol": "rerank"}, "vtm_weight=0"),
        ({"rerank_k": 0}, "rerank_k=0"),
        ({"remove_unused_columns": True}, "'video'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        AlproTrainingArguments(output_dir=str(tmp_path), **fields)


def test_a_training_without_any_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vtc_weight=0 leave nothing to learn for AlproModel"):
        trainer_for(build(AlproForVideoTextRetrieval).alpro, arguments(tmp_path, vtc_weight=0))
    args = arguments(tmp_path, vtc_weight=0, vtm_weight=0, mlm_weight=0, pem_weight=0)
    with pytest.raises(ValueError, match="vtc_weight=0, vtm_weight=0, mlm_weight=0, pem_weight=0 leave nothing"):
        trainer_for(build(AlproForPreTraining), args, rows=colours.retrieval_rows())


def test_other_models_and_a_missing_collator_are_refused(tmp_path):
    tower = build(AlproModel).text_model
    with pytest.raises(TypeError, match="AlproTextModel"):
        trainer_for(tower, arguments(tmp_path))
    with pytest.raises(ValueError, match="AlproCollator"):
        AlproTrainer(model=build(AlproModel), args=arguments(tmp_path))


@pytest.fixture(scope="module")
def processes_results(tmp_path_factory):
    """What one process and what two processes wrote about the same global batch."""
    script = Path(__file__).parents[1] / "fixtures" / "train_in_processes.py"
    folders = []
    for processes in (1, 2):
        folders.append(tmp_path_factory.mktemp(f"processes{processes}"))
        done = run_together(processes, [str(script), str(folders[-1])])
        assert done.returncode == 0, done.stdout + done.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vtc", "vtc-uneven", "qa", "qa-shared", "frozen"])
def test_two_processes_equal_one_with_the_same_global_batch(processes_results, task):
    one, two = (json.loads((folder / f"{task}.json").read_text()) for folder in processes_results)
    expected, gradients = (load_file(folder / f"{task}.safetensors") for folder in processes_results)
    assert expected.keys() == gradients.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert two["log"]["loss"] == pytest.approx(one["log"]["loss"], rel=1e-5)
    assert two["log"].get("dropped_rows", 0) == (task == "vtc-uneven")
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


@pytest.mark.slow
def test_matching_in_two_processes_logs_and_evaluates_the_same_things(processes_results):
    one, two = (json.loads((folder / "vtm.json").read_text()) for folder in processes_results)
    # hard negatives come from the local batch, so the two draw different ones
    assert two["log"]["loss_vtc"] == pytest.approx(one["log"]["loss_vtc"], rel=1e-5)
    assert two["log"].keys() == one["log"].keys()
    assert two["metrics"].keys() == one["metrics"].keys()
