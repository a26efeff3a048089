"""Rows encoded and answered: what the model says row by row, every clip once, broken ones left out and named."""

import numpy as np
import pytest
import torch
from fixtures import colours

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.rows import NumberedRows
from alpro_hf.evaluation.encode import _whole_clips, answer_rows, encode_batches, encode_rows, match_pairs


@pytest.fixture(scope="module")
def retrieval():
    torch.manual_seed(0)
    return AlproForVideoTextRetrieval(colours.config()).eval()


@pytest.fixture(scope="module")
def answering():
    torch.manual_seed(0)
    return AlproForVideoQuestionAnswering(colours.config()).eval()


@pytest.fixture(scope="module")
def processor():
    return colours.processor()


def captions():
    """Eleven captions of six clips; the last clip has one only, and is broken."""
    rows = [{**row, "video_id": name} for name, row in zip("abcdef", colours.retrieval_rows(), strict=True)]
    rows += [{**row, "text": f"{row['text']} and {row['text']}"} for row in rows[:5]]
    rows[5]["video"] = b"no video"
    return rows


def test_encoding_equals_that_of_collated_batches(retrieval, processor, monkeypatch):
    rows = [row for row in captions() if row["video_id"] != "f"]
    expected = encode_batches(retrieval, [AlproCollator(processor)(list(NumberedRows(rows)))], keep_states=True)
    seen = []
    encode = retrieval.alpro.get_video_features
    monkeypatch.setattr(retrieval.alpro, "get_video_features", lambda clips: seen.append(len(clips)) or encode(clips))
    states, skipped = encode_rows(retrieval, processor, rows, batch_size=2)
    assert skipped == []
    assert seen == [2, 2, 1], "each of the five clips once"
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(states, name), value, atol=1e-5, rtol=0)
    assert encode_rows(retrieval, processor, rows, keep_states=False)[0].video_states is None


def test_a_broken_clip_loses_its_rows_and_is_named(retrieval, processor):
    rows = captions()
    states, [skipped] = encode_rows(retrieval, processor, rows, batch_size=4)
    assert states.row_ids.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert len(states.video_ids) == 5
    assert len(states.text_states) == len(states.text_mask) == 10
    assert (skipped.row, skipped.rows) == (5, 1)
    assert "no video or audio" in skipped.reason
    with pytest.raises(ValueError, match="None of the 1 clips can be decoded; the first: "):
        encode_rows(retrieval, processor, rows[5:6])
    with pytest.raises(ValueError, match="no rows"):
        encode_rows(retrieval, processor, [])


def test_matching_does_not_depend_on_the_batch(retrieval, processor):
    states, _ = encode_rows(retrieval, processor, captions())
    pairs = torch.cartesian_prod(torch.arange(10), torch.arange(5))
    logits = match_pairs(retrieval, states, pairs, batch_size=7)
    assert logits.shape == (50, 2)
    torch.testing.assert_close(logits, match_pairs(retrieval, states, pairs), atol=1e-5, rtol=0)
    assert match_pairs(retrieval, states, pairs[:0]).shape == (0, 2)


def test_answers_are_those_of_the_model_question_by_question(answering, processor):
    rows = colours.question_rows()
    shuffled = [rows[i] | {"video_id": int(i)} for i in np.random.default_rng(0).permutation(len(rows))]
    found, skipped = answer_rows(answering, processor, shuffled, batch_size=3)
    assert skipped == []
    assert found.rows.tolist() == list(range(len(rows)))
    collator = AlproCollator(processor, task="qa", label2id=colours.ANSWERS)
    for number, row in enumerate(shuffled):
        batch = collator([row])
        with torch.no_grad():
            [logits] = answering(
                **{key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values_videos")}
            ).logits
        assert found.labels[number] == logits.argmax()
        assert found.probabilities[number] == pytest.approx(logits.softmax(0).max().item(), abs=1e-5)
        if row["answer"] in colours.ANSWERS:
            order = logits.argsort(descending=True).tolist()
            assert found.ranks[number] == order.index(colours.ANSWERS[row["answer"]]) + 1
        else:
            assert found.ranks[number] == torch.inf


def test_questions_about_a_broken_clip_are_left_out(answering, processor):
    rows = [
        *colours.question_rows()[:4],
        {"video": b"no video", "question": "which colour ?", "answer": "red"},
        {"video": b"no video", "question": "how many colours ?", "answer": "one"},
    ]
    found, [skipped] = answer_rows(answering, processor, rows, batch_size=1)
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert (skipped.row, skipped.rows) == (4, 2)
    with pytest.raises(ValueError, match="None of the 1 clips"):
        answer_rows(answering, processor, rows[4:])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_clips_are_kept_together_where_they_fit(batch_size):
    clips = [[0, 5], [1], [2, 3, 4, 6, 7], [8, 9]]
    batches = list(_whole_clips(clips, batch_size))
    assert [number for batch in batches for number in batch] == [0, 5, 1, 2, 3, 4, 6, 7, 8, 9]
    assert max(map(len, batches)) <= batch_size
    if batch_size >= 3:
        assert all(any({0, 5} <= set(batch) for batch in batches) for _ in clips)
