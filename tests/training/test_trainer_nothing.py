"""A training or an evaluation on nothing is an error that says why, and saves nothing."""

import json
from pathlib import Path

import pytest
from datasets import IterableDataset
from fixtures import coloured_pretraining as coloured
from fixtures import colours
from transformers import TrainingArguments

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproTrainer,
    AlproTrainingArguments,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.mixed_rows import MixedRows
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.training.trainer import DroppedRowsError


def arguments(folder: Path, **fields) -> AlproTrainingArguments:
    defaults = {"use_cpu": True, "per_device_train_batch_size": 2, "disable_tqdm": True, "save_strategy": "epoch"}
    return AlproTrainingArguments(output_dir=str(folder), dataloader_pin_memory=False, **(defaults | fields))


def missing(rows: list[dict], count: int) -> list[dict]:
    return [{**rows[i % len(rows)], "video": f"nowhere/{i}.mp4"} for i in range(count)]


def nothing_saved(folder: Path) -> bool:
    return {path.name for path in folder.rglob("*") if path.is_file()} <= {"dropped_rows.jsonl"}


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (1, {}),
        (5, {"num_train_epochs": 2}),
        (5, {"dataloader_num_workers": 2}),
        (3, {"gradient_accumulation_steps": 4}),
        (7, {"max_steps": 20, "save_strategy": "steps", "save_steps": 1}),
    ],
)
def test_paths_that_are_all_wrong(tmp_path, count, fields) -> None:
    rows = missing(colours.retrieval_rows(), count)
    trainer = AlproTrainer(
        AlproForVideoTextRetrieval(colours.config()),
        arguments(tmp_path, **fields),
        train_dataset=rows,
        processing_class=colours.processor(),
    )
    with pytest.raises(DroppedRowsError, match=rf"(?s){count} of {count} rows were dropped.*nowhere/\d\.mp4"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert nothing_saved(tmp_path)


def test_many_wrong_rows_end_early(tmp_path) -> None:
    """A hundred thousand steps are not tried one by one; the share of dropped rows stops them."""
    rows = MixedRows({"clips": missing(coloured.rows(), 30)}, steps=100_000, batch_size=20)
    args = arguments(tmp_path, max_steps=100_000, per_device_train_batch_size=20, train_sampling_strategy="sequential")
    model = coloured.student()
    trainer = AlproTrainer(model, args, coloured.collator(), train_dataset=rows, prompter=coloured.prompter())
    with pytest.raises(DroppedRowsError, match="100 of 100 rows were dropped"):
        trainer.train()
    assert nothing_saved(tmp_path)


def test_streams_without_rows_and_with_wrong_ones(tmp_path) -> None:
    def rows(count):
        for i in range(count):
            yield {"video": f"nowhere/{i}.mp4", "text": "red", "index": i, "epoch": 0}

    for count, message in ((0, "gave no rows"), (3, "3 of 3 rows")):
        stream = IterableDataset.from_generator(rows, gen_kwargs={"count": count})
        args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
        trainer = AlproTrainer(
            AlproModel(colours.config()), args, train_dataset=stream, processing_class=colours.processor()
        )
        with pytest.raises(DroppedRowsError, match=message):
            trainer.train()
        assert nothing_saved(tmp_path)
    with pytest.raises(ValueError, match="to train on has no rows"):
        AlproTrainer(AlproModel(colours.config()), args, train_dataset=[], processing_class=colours.processor())


def test_an_evaluation_set_that_is_all_wrong_is_found_before_the_training(tmp_path) -> None:
    rows = colours.retrieval_rows()
    for sets in (missing(rows, 3), {"good": rows, "bad": missing(rows, 3)}):
        trainer = AlproTrainer(
            AlproModel(colours.config()),
            arguments(tmp_path, eval_strategy="epoch"),
            train_dataset=rows,
            eval_dataset=sets,
            processing_class=colours.processor(),
        )
        with pytest.raises(DroppedRowsError, match="None of the 3 clips of the evaluation set"):
            trainer.train()
        assert trainer.state.global_step == 0 and nothing_saved(tmp_path)
    with pytest.raises(DroppedRowsError, match="nothing to evaluate"):
        trainer.evaluate(missing(rows, 3))


def test_answers_that_the_model_cannot_give_teach_nothing(tmp_path) -> None:
    rows = [{**row, "answer": "a thing nobody knows"} for row in colours.question_rows()]
    trainer = AlproTrainer(
        AlproForVideoQuestionAnswering(colours.config()),
        arguments(tmp_path),
        train_dataset=rows,
        processing_class=colours.processor(),
    )
    with pytest.raises(DroppedRowsError, match=r"none of the answers of 10 questions .* such as 'red'"):
        trainer.train()
    assert nothing_saved(tmp_path)


def test_the_end_says_what_was_used_and_the_loss_of_few_steps_is_logged(tmp_path) -> None:
    rows = colours.retrieval_rows()[:5] + missing(colours.retrieval_rows(), 1)
    args = arguments(tmp_path, num_train_epochs=3, per_device_train_batch_size=3, logging_steps=500)
    trainer = AlproTrainer(
        AlproForVideoTextRetrieval(colours.config()), args, train_dataset=rows, processing_class=colours.processor()
    )
    metrics = trainer.train().metrics
    assert (metrics["train_rows"], metrics["train_steps"], metrics["train_rows_left_out"]) == (15, 6, 0)
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["step"] == 6 and entry["dropped_rows"] == 3 and {"loss_vtc", "loss_vtm"} <= entry.keys()
    assert trainer.state.log_history[-1]["train_rows"] == 15


def test_the_collator_is_that_of_the_model_and_checkpoints_hold_the_processor(tmp_path) -> None:
    processor = colours.processor()
    args = arguments(tmp_path, max_steps=1)
    kinds = {AlproModel: "retrieval", AlproForVideoTextRetrieval: "retrieval", AlproForVideoQuestionAnswering: "qa"}
    for model_class, task in kinds.items():
        trainer = AlproTrainer(model_class(colours.config()), args, processing_class=processor)
        assert trainer.data_collator.task == task
        assert type(trainer.data_collator) is AlproCollator
    student = AlproTrainer(AlproForPreTraining(colours.config()), args, processing_class=processor)
    assert isinstance(student.data_collator, AlproPreTrainingCollator) and not student.data_collator.pem
    qa = AlproForVideoQuestionAnswering(colours.config())
    trainer = AlproTrainer(qa, args, AlproCollator(processor, task="qa"), colours.question_rows())
    assert trainer.data_collator.label2id == colours.ANSWERS
    trainer.train()
    assert AlproProcessor.from_pretrained(tmp_path / "checkpoint-1").video_processor.num_frames == colours.FRAMES
    with pytest.raises(ValueError, match="task 'qa'; data_collator has the task 'retrieval'"):
        AlproTrainer(qa, args, AlproCollator(processor))
    with pytest.raises(TypeError, match="processing_class is a"):
        AlproTrainer(qa, args, processing_class=processor.tokenizer)
    unnamed = colours.config()
    unnamed.label2id = {f"LABEL_{i}": i for i in range(6)}
    with pytest.raises(ValueError, match="answers are not named"):
        AlproTrainer(AlproForVideoQuestionAnswering(unnamed), args, processing_class=processor)


def test_arguments_of_the_library_and_metrics_there_are_not(tmp_path) -> None:
    processor, rows = colours.processor(), colours.retrieval_rows()
    with pytest.raises(TypeError, match="AlproTrainingArguments; received TrainingArguments"):
        AlproTrainer(AlproModel(colours.config()), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "num_train_epochs": 2}
    args = arguments(tmp_path, **best)
    trainer = AlproTrainer(AlproModel(colours.config()), args, None, rows, rows, processing_class=processor)
    trainer.train()
    assert args.metric_for_best_model == "t2v_r1" and args.greater_is_better
    state = json.loads((Path(trainer.state.best_model_checkpoint) / "trainer_state.json").read_text())
    assert state["best_metric"] == max(e["eval_t2v_r1"] for e in trainer.state.log_history if "eval_t2v_r1" in e)
    args = arguments(tmp_path, **best)
    AlproTrainer(AlproModel(colours.config()), args, None, rows, {"mine": rows}, processing_class=processor)
    assert args.metric_for_best_model == "mine_t2v_r1"
    args = arguments(tmp_path, **best)
    AlproTrainer(AlproForVideoQuestionAnswering(colours.config()), args, processing_class=processor, eval_dataset=rows)
    assert args.metric_for_best_model == "accuracy"
    args = arguments(tmp_path, **best, metric_for_best_model="loss")
    with pytest.raises(ValueError, match=r"no 'loss'.*t2v_r1"):
        AlproTrainer(AlproModel(colours.config()), args, eval_dataset=rows, processing_class=processor)


@pytest.mark.slow
def test_a_resumption_by_others_is_told(tmp_path, caplog) -> None:
    """With other rows, and from a checkpoint that two processes wrote: it continues, and says what differs."""
    rows = colours.retrieval_rows() * 3
    args = arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    processor = colours.processor()
    AlproTrainer(AlproModel(colours.config()), args, train_dataset=rows, processing_class=processor).train()
    checkpoint = tmp_path / "checkpoint-2"
    linked = tmp_path / "linked" / "checkpoint-2"
    linked.parent.mkdir()
    linked.symlink_to(checkpoint)
    args = arguments(tmp_path / "linked", max_steps=3, save_strategy="no")
    trainer = AlproTrainer(AlproModel(colours.config()), args, train_dataset=rows, processing_class=processor)
    trainer.train(resume_from_checkpoint=str(linked))
    assert trainer.state.global_step == 3 and "continue" not in caplog.text
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        (checkpoint / name).write_bytes((checkpoint / "rng_state.pth").read_bytes())
    trainer = AlproTrainer(AlproModel(colours.config()), args, train_dataset=rows[:4], processing_class=processor)
    trainer.train(resume_from_checkpoint=str(linked))
    assert trainer.state.global_step == 3
    assert "was written by 2 processes, and 1 continue it" in caplog.text
    assert "made with 9 steps an epoch, and the 4 rows of train_dataset now make 2" in caplog.text
