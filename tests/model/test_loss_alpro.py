import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro_hf.model.loss_alpro import (
    IGNORE_INDEX,
    classification_loss,
    crop_on_black,
    crop_to_patches,
    hardest_negatives,
    pem_kept,
    pem_loss,
    same_pair_mask,
    sample_hard_negatives,
    vtc_loss,
    vtm_labels,
)


def unit_vectors(rows, seed, width=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def brute_force_vtc(video, text, temperature, video_ids, text_ids):
    """InfoNCE row by row, in plain Python floats."""
    total = 0.0
    for anchors, others in ((video, text), (text, video)):
        for row, anchor in enumerate(anchors):
            positive = math.exp(float(anchor @ others[row]) / temperature)
            negatives = sum(
                math.exp(float(anchor @ other) / temperature)
                for column, other in enumerate(others)
                if video_ids[column] != video_ids[row] and text_ids[column] != text_ids[row]
            )
            total -= math.log(positive / (positive + negatives))
    return total / (2 * len(video))


batches = st.integers(1, 8).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 4), min_size=size, max_size=size),
        st.lists(st.integers(0, 4), min_size=size, max_size=size),
        st.integers(0, 10_000),
    )
)


@settings(max_examples=60, deadline=None)
@given(batches, st.floats(0.02, 0.5))
def test_vtc_equals_brute_force(batch, temperature):
    video_ids, text_ids, seed = batch
    size = len(video_ids)
    video, text = unit_vectors(size, seed), unit_vectors(size, seed + 1)
    mask = same_pair_mask(torch.tensor(video_ids), torch.tensor(text_ids), size=(size, size))
    loss = vtc_loss(video, text, temperature, same_pair=mask)
    expected = brute_force_vtc(video, text, temperature, video_ids, text_ids)
    assert loss.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_vtc_without_ids_is_plain_info_nce():
    video, text = unit_vectors(5, 0), unit_vectors(5, 1)
    expected = brute_force_vtc(video, text, 0.07, range(5), range(5))
    assert vtc_loss(video, text, torch.tensor([0.07])).item() == pytest.approx(expected, rel=1e-6)


def test_same_pair_mask_by_video_and_by_caption():
    mask = same_pair_mask(torch.tensor([7, 7, 8, 9]), torch.tensor([1, 2, 3, 1]), size=(4, 4))
    expected = [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    assert mask.long().tolist() == expected


def test_a_pair_of_the_same_video_gets_no_gradient_from_it():
    """Rows 0 and 1 show one video: neither caption may be pushed away from it."""
    video, text = unit_vectors(3, 0), unit_vectors(3, 1)
    video[1] = video[0]
    text.requires_grad_()
    mask = same_pair_mask(torch.tensor([0, 0, 1]), None, size=(3, 3))
    vtc_loss(video[:1], text[:1], 0.1, all_video_embeds=video, all_text_embeds=text, same_pair=mask[:1]).backward()
    assert text.grad[1].abs().max() == 0
    assert text.grad[2].abs().max() > 0


@pytest.mark.parametrize("with_ids", [False, True])
def test_two_processes_give_the_loss_and_gradients_of_one(with_ids):
    ids = torch.tensor([0, 1, 2, 0, 3, 4]) if with_ids else None
    captions = torch.tensor([0, 1, 2, 3, 4, 1]) if with_ids else None

    def leaves():
        return unit_vectors(6, 3).requires_grad_(), unit_vectors(6, 4).requires_grad_()

    video, text = leaves()
    whole = vtc_loss(video, text, 0.07, same_pair=same_pair_mask(ids, captions, size=(6, 6)))
    whole.backward()

    split_video, split_text = leaves()
    parts = []
    for rank in range(2):
        rows = slice(3 * rank, 3 * rank + 3)
        mask = same_pair_mask(
            None if ids is None else ids[rows],
            None if captions is None else captions[rows],
            ids,
            captions,
            size=(3, 6),
            rank=rank,
        )
        part = vtc_loss(
            split_video[rows],
            split_text[rows],
            0.07,
            all_video_embeds=split_video,
            all_text_embeds=split_text,
            same_pair=mask,
            rank=rank,
        )
        parts.append(part)
    mean = torch.stack(parts).mean()  # as data-parallel training averages
    mean.backward()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(split_video.grad, video.grad)
    torch.testing.assert_close(split_text.grad, text.grad)


@settings(max_examples=60, deadline=None)
@given(batches)
def test_a_hard_negative_is_never_the_same_video_or_caption(batch):
    video_ids, text_ids, seed = batch
    size = len(video_ids)
    mask = same_pair_mask(torch.tensor(video_ids), torch.tensor(text_ids), size=(size, size))
    similarity = unit_vectors(size, seed) @ unit_vectors(size, seed + 1).T / 0.05
    index, valid = sample_hard_negatives(similarity, mask, torch.Generator().manual_seed(seed))
    for row in range(size):
        others = [
            column
            for column in range(size)
            if video_ids[column] != video_ids[row] and text_ids[column] != text_ids[row] and column != row
        ]
        assert valid[row].item() == bool(others)
        if others:
            assert index[row].item() in others


def test_hard_negatives_follow_the_softmax_of_the_similarities():
    similarity = torch.tensor([[9.0, 0.0, 1.0, 2.0]]).expand(4000, -1)
    mask = torch.tensor([[True, False, False, False]]).expand(4000, -1)
    index, valid = sample_hard_negatives(similarity, mask, torch.Generator().manual_seed(0))
    frequencies = torch.bincount(index, minlength=4) / 4000
    expected = torch.cat([torch.zeros(1), torch.tensor([0.0, 1.0, 2.0]).softmax(dim=0)])
    assert valid.all()
    torch.testing.assert_close(frequencies, expected, atol=0.03, rtol=0)


def test_hard_negatives_repeat_with_the_seed_of_the_generator():
    similarity, mask = torch.zeros(32, 32), torch.eye(32, dtype=torch.bool)

    def draw(seed):
        return sample_hard_negatives(similarity, mask, torch.Generator().manual_seed(seed))[0].tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_hard_negatives_survive_extreme_similarities():
    similarity = torch.tensor([[1000.0, -1000.0, -999.0]], dtype=torch.float16)
    mask = torch.tensor([[True, False, False]])
    for seed in range(20):
        index, valid = sample_hard_negatives(similarity, mask, torch.Generator().manual_seed(seed))
        assert valid.item()
        assert index.item() in (1, 2)


def test_a_batch_of_one_has_no_negative():
    index, valid = sample_hard_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert index.shape == (1,)
    assert not valid.item()
    assert vtm_labels(valid, valid).tolist() == [1, IGNORE_INDEX, IGNORE_INDEX]


def test_matching_labels_are_positives_then_wrong_videos_then_wrong_texts():
    labels = vtm_labels(torch.tensor([True, False]), torch.tensor([False, True]))
    assert labels.tolist() == [1, 1, 0, IGNORE_INDEX, IGNORE_INDEX, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([IGNORE_INDEX, 0, 1, 2]), min_size=1, max_size=8), st.integers(0, 1000))
def test_classification_loss_averages_over_labelled_rows(labels, seed):
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = classification_loss(logits, torch.tensor(labels))
    loss.backward()
    terms = [-logits[row].log_softmax(dim=-1)[label].item() for row, label in enumerate(labels) if label >= 0]
    assert loss.item() == pytest.approx(sum(terms) / len(terms) if terms else 0.0, abs=1e-5)
    ignored = torch.tensor([label == IGNORE_INDEX for label in labels])
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[ignored].abs().sum() == 0


def test_classification_loss_of_half_precision_logits_is_computed_in_float32():
    logits = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16)
    loss = classification_loss(logits, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(600.0)


def parts_with_mean_count(loss, counts):
    """Losses of parts, each divided by the mean count, averaged as trainers do."""
    mean = torch.tensor(counts, dtype=torch.float32).mean()
    return torch.stack([loss(part, mean) for part in range(len(counts))]).mean()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([IGNORE_INDEX, 0, 1, 2]), min_size=6, max_size=6), st.integers(0, 1000))
def test_classification_losses_of_unequal_parts_average_to_the_whole(labels, seed):
    labels = torch.tensor(labels)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    rows = [slice(0, 1), slice(1, 4), slice(4, 6)]
    counts = [int((labels[part] != IGNORE_INDEX).sum()) for part in rows]
    mean = parts_with_mean_count(lambda i, count: classification_loss(logits[rows[i]], labels[rows[i]], count), counts)
    torch.testing.assert_close(mean, classification_loss(logits, labels), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [4, 4.0, torch.tensor(4), torch.tensor(4.0), 0.5, torch.tensor(0.5)])
def test_classification_loss_divides_by_the_given_count(count):
    logits, labels = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([1, IGNORE_INDEX, 4])
    expected = -(logits[0].log_softmax(0)[1] + logits[2].log_softmax(0)[4]) / float(count)
    torch.testing.assert_close(classification_loss(logits, labels, count), expected)


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_nothing_labelled_anywhere_is_a_loss_of_zero(count):
    logits = torch.randn(3, 5).requires_grad_()
    loss = classification_loss(logits, torch.full((3,), IGNORE_INDEX), count)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() == 0
    logits.grad = None
    loss = pem_loss(logits, torch.full((3, 5), 0.2), torch.zeros(3, dtype=torch.bool), count)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().max() == 0


def pseudo_labels(rows, entities=4, seed=0, sharpness=3.0):
    logits = torch.randn(rows, entities, generator=torch.Generator().manual_seed(seed))
    return (sharpness * logits).softmax(dim=1)


def test_pseudo_labels_are_kept_from_the_threshold_on():
    targets = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.375, 0.625]])
    assert pem_kept(targets, 0.625).tolist() == [True, False, True]
    assert pem_kept(targets, 0.626).tolist() == [True, False, False]
    assert pem_kept(targets, 0).all()
    assert pem_kept(torch.zeros(2, 3), 0).all()
    assert not pem_kept(targets, 1.0).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
def test_pem_loss_equals_its_formula_row_by_row(rows, threshold, seed):
    logits = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    targets = pseudo_labels(rows, seed=seed + 1)
    kept = pem_kept(targets, threshold)
    loss = pem_loss(logits, targets, kept)
    loss.backward()
    terms = []
    for row in range(rows):
        if max(targets[row].tolist()) >= threshold:
            scores = [math.exp(value) for value in logits[row].tolist()]
            log_probabilities = [math.log(score / sum(scores)) for score in scores]
            terms.append(-sum(q * p for q, p in zip(targets[row].tolist(), log_probabilities, strict=True)))
    assert loss.item() == pytest.approx(sum(terms) / len(terms) if terms else 0.0, abs=1e-5)
    # the gradient of a soft cross entropy: difference of the distributions
    expected = (logits.detach().softmax(dim=1) - targets) * kept[:, None] / max(1, len(terms))
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)


def test_pem_loss_is_least_where_student_and_teacher_agree():
    targets = pseudo_labels(3)
    kept = torch.ones(3, dtype=torch.bool)
    least = pem_loss(targets.log(), targets, kept)
    torch.testing.assert_close(least, -(targets * targets.log()).sum(dim=1).mean())
    assert pem_loss(torch.zeros(3, 4), targets, kept) > least


def test_pem_losses_of_unequal_parts_average_to_the_whole():
    logits, targets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), pseudo_labels(6)
    kept = torch.tensor([True, False, False, True, True, True])
    rows = [slice(0, 3), slice(3, 6)]
    mean = parts_with_mean_count(
        lambda i, count: pem_loss(logits[rows[i]], targets[rows[i]], kept[rows[i]], count), [1, 3]
    )
    torch.testing.assert_close(mean, pem_loss(logits, targets, kept))


def test_pem_loss_of_half_precision_logits_is_computed_in_float32():
    logits = torch.tensor([[300.0, -300.0]], dtype=torch.float16)
    loss = pem_loss(logits, torch.tensor([[0.5, 0.5]], dtype=torch.float16), torch.tensor([True]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(300.0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_a_crop_averages_its_patches(dtype):
    mask = torch.tensor([[[0, 1, 1], [0, 1, 1]], [[0, 0, 0], [1, 0, 0]]]).to(dtype)  # two rows of three patches
    weights = crop_to_patches(mask)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [[0, 0.25, 0.25, 0, 0.25, 0.25], [0, 0, 0, 1, 0, 0]]


def test_an_empty_crop_is_refused():
    mask = torch.zeros(3, 2, 2)
    mask[1, 0, 0] = 1
    with pytest.raises(ValueError, match=r"empty in the rows \[0, 2\]"):
        crop_to_patches(mask)


def test_a_crop_on_black_keeps_its_place_in_every_frame():
    clips = torch.randn(2, 3, 3, 4, 6, generator=torch.Generator().manual_seed(0))  # patches of 2 pixels: 2 x 3
    mask = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]])
    black = torch.tensor([-1.0, -2.0, -3.0])
    crops = crop_on_black(clips, mask, black)
    for row in range(2):
        for y in range(4):
            for x in range(6):
                inside = mask[row, y // 2, x // 2] == 1
                expected = clips[row, :, :, y, x] if inside else black.expand(3, -1)
                assert torch.equal(crops[row, :, :, y, x], expected)
    assert torch.equal(crop_on_black(clips, mask.bool(), black), crops)
    assert crop_on_black(clips.bfloat16(), mask, black).dtype == torch.bfloat16


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 4)])
def test_a_crop_mask_must_tile_the_frames(rows, columns):
    with pytest.raises(ValueError, match=rf"{rows} x {columns} patches does not tile frames of 4 x 6 pixels"):
        crop_on_black(torch.zeros(1, 2, 3, 4, 6), torch.ones(1, rows, columns), torch.zeros(3))


def test_hardest_negatives_are_the_most_similar_ones():
    similarity = torch.tensor([[9.0, 1.0, 3.0], [2.0, 9.0, 2.0], [0.0, 5.0, 9.0]])
    same_pair = torch.eye(3, dtype=torch.bool)
    indices, valid = hardest_negatives(similarity, same_pair)
    assert indices.tolist() == [2, 0, 1]  # of equals the first
    assert valid.tolist() == [True] * 3
    same_pair[2] = True  # every candidate of the last row is its own pair
    same_pair[0, 2] = True
    indices, valid = hardest_negatives(similarity.bfloat16(), same_pair)
    assert indices[:2].tolist() == [1, 0]
    assert valid.tolist() == [True, True, False]
