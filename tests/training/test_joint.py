"""Matching and answering trained together: each step is of one of them, and both are learned."""

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.data.joint_collator import AlproJointCollator
from alpro_hf.data.mixed_rows import MixedRows
from alpro_hf.model.joint_alpro import AlproForMatchingAndAnswering


def joint() -> AlproForMatchingAndAnswering:
    torch.manual_seed(0)
    config = colours.config()
    config.id2label, config.label2id = {i: a for a, i in colours.ANSWERS.items()}, dict(colours.ANSWERS)
    return AlproForMatchingAndAnswering(config)


def collator() -> AlproJointCollator:
    return AlproJointCollator(colours.processor(), colours.ANSWERS)


def test_a_batch_is_of_pairs_or_of_questions():
    pairs, questions = colours.retrieval_rows(), colours.question_rows()
    assert "labels" not in collator()(pairs[:3]) and "video_ids" in collator()(pairs[:3])
    assert "labels" in collator()(questions[:3]) and "video_index" in collator()(questions[:3])
    with pytest.raises(ValueError, match="row 1 of this one has a question and row 0 none"):
        collator()([pairs[0], questions[0]])
    both = collator()
    both([*pairs[:2], {**pairs[0], "video": "missing.mp4"}])
    both([*questions[:2], {**questions[0], "video": "missing.mp4"}])
    assert (both.read, both.dropped) == (6, 2)


def test_it_computes_what_each_model_alone_computes(tmp_path):
    model = joint().eval()
    model.save_pretrained(tmp_path)
    given = {k: v for k, v in collator()(colours.question_rows()).items() if k not in ("answers", "answer_types")}
    alone = AlproForVideoQuestionAnswering.from_pretrained(tmp_path)(**given)
    found = model(**given, return_loss=True, generator=None, negatives="local")
    assert torch.equal(found.logits, alone.logits) and torch.equal(found.loss_answer, alone.loss)
    given = collator()(colours.retrieval_rows())
    alone = AlproForVideoTextRetrieval.from_pretrained(tmp_path)(**given, return_loss=True)
    found = model(**given, return_loss=True)
    assert torch.equal(found.loss, alone.loss) and torch.equal(found.vtm_logits, alone.vtm_logits)
    again = AlproForMatchingAndAnswering.from_pretrained(tmp_path)
    assert torch.equal(again(**given).vtm_logits, model(**given).vtm_logits)


def test_both_are_learned_and_logged_by_their_own_steps(tmp_path):
    args = coloured.arguments(tmp_path, max_steps=60, learning_rate=5e-3, logging_steps=20)
    rows = MixedRows.from_arguments({"pairs": colours.retrieval_rows(), "questions": colours.question_rows()}, args)
    trainer = coloured.trainer(joint(), args, rows, data_collator=collator(), eval_dataset=colours.retrieval_rows())
    trainer.train()
    first, last = coloured.logs(trainer)[0], coloured.logs(trainer)[-1]
    assert {"loss_vtc", "loss_vtm", "loss_answer", "accuracy", "vtm_accuracy"} <= last.keys()
    assert last["loss_vtc"] < 0.7 * first["loss_vtc"] and last["loss_answer"] < 0.7 * first["loss_answer"]
    assert last["accuracy"] > 0.6
    assert 0 <= trainer.evaluate()["eval_t2v_r1"] <= 100
