"""Metrics against the reference's numbers and brute force; scores against the model itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval
from alpro_hf.evaluation.encode import encode_batches, merge_states
from alpro_hf.evaluation.metrics import question_answering_metrics, retrieval_metrics
from alpro_hf.evaluation.protocols import retrieval_scores, vtm_scores

REFERENCE = json.loads((Path(__file__).parents[1] / "fixtures" / "retrieval_metrics.json").read_text())


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{len(case['scores'])} pairs")
def test_retrieval_metrics_equal_the_reference(case):
    metrics = retrieval_metrics(np.array(case["scores"]), range(len(case["scores"])))
    assert metrics == pytest.approx(case["metrics"])


def brute_force_ranks(scores, text_to_video):
    """Expected ranks by sorting: the mean place over the best and the worst order of equal scores."""
    texts, videos = scores.shape
    t2v = []
    for text in range(texts):
        own = scores[text, text_to_video[text]]
        others = [scores[text, video] for video in range(videos) if video != text_to_video[text]]
        best = sorted([*others, own], reverse=True).index(own) + 1
        worst = best + sum(other == own for other in others)
        t2v.append((best + worst) / 2)
    v2t = []
    for video in sorted(set(text_to_video)):
        own = max(scores[text, video] for text in range(texts) if text_to_video[text] == video)
        others = [scores[text, video] for text in range(texts) if text_to_video[text] != video]
        best = sorted([*others, own], reverse=True).index(own) + 1
        v2t.append(best + sum(other == own for other in others) / 2)
    return np.array(t2v), np.array(v2t)


@pytest.mark.parametrize("seed", range(4))
def test_retrieval_metrics_equal_brute_force_with_ties_and_many_captions(seed):
    rng = np.random.default_rng(seed)
    texts, videos = 60, 17
    text_to_video = np.concatenate([np.arange(videos), rng.integers(0, videos, texts - videos)])
    scores = rng.integers(0, 8, (texts, videos)).astype(np.float32)  # few different values: many ties
    metrics = retrieval_metrics(scores, text_to_video)
    for direction, ranks in zip(("t2v", "v2t"), brute_force_ranks(scores, text_to_video), strict=True):
        for k in (1, 5, 10):
            assert metrics[f"{direction}_r{k}"] == pytest.approx(100 * np.mean(ranks <= k))
        assert metrics[f"{direction}_median_rank"] == pytest.approx(np.median(ranks))
        assert metrics[f"{direction}_mean_rank"] == pytest.approx(np.mean(ranks))


def test_retrieval_metrics_do_not_depend_on_the_chunk(monkeypatch):
    scores, targets = torch.rand(30, 12), torch.arange(30) % 12
    whole = retrieval_metrics(scores, targets)
    monkeypatch.setattr("alpro_hf.evaluation.metrics._CHUNK", 7)
    assert retrieval_metrics(scores, targets) == pytest.approx(whole)


def test_equal_scores_earn_no_recall():
    metrics = retrieval_metrics(torch.zeros(101, 101), torch.arange(101))
    assert metrics["t2v_r10"] == metrics["v2t_r10"] == 0
    assert metrics["t2v_mean_rank"] == metrics["v2t_mean_rank"] == 51


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (torch.zeros(3, 2), [0, 1], "text_to_video"),
        (torch.zeros(2, 2), [0, 2], "2 videos"),
        (torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), [0, 1], "NaN"),
        (torch.zeros(0, 2), [], "not empty"),
    ],
)
def test_retrieval_metrics_refuse(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(scores, targets)


def test_question_answering_metrics():
    metrics = question_answering_metrics(
        predictions=["fox", "left", "two", "owl", "fox"],
        answers=["fox", "right", "two", "ladle", "fox"],
        answer_types=["what", "which way", "how many", "what", None],
        known_answers=["fox", "left", "right", "two", "owl"],
    )
    assert metrics == {
        "accuracy": 60.0,
        "accuracy_how_many": 100.0,
        "accuracy_what": 50.0,
        "accuracy_which_way": 0.0,
        "out_of_list": 1.0,
        "out_of_list_share": 20.0,
        "n": 5.0,
    }


def test_an_unknown_answer_is_wrong_even_if_predicted():
    assert question_answering_metrics(["ladle"], ["ladle"], None, ["fox"])["accuracy"] == 0


def test_question_answering_metrics_refuse_other_lengths():
    with pytest.raises(ValueError, match="received 2, 1 and 1"):
        question_answering_metrics(["a", "b"], ["a"], None, ["a"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = AlproConfig(
        text_config={**shared, "vocab_size": 40, "num_hidden_layers": 2, "fusion_layer": 1},
        video_config={**shared, "image_size": 16, "patch_size": 8, "num_frames": 2, "num_hidden_layers": 1},
        projection_dim=16,
        initializer_range=0.3,
    )
    return AlproForVideoTextRetrieval(config).eval()


@pytest.fixture(scope="module")
def batches():
    """Seven captions of five clips; clip 3 comes again in the second batch, captions have different lengths."""
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(5, 2, 3, 16, 16, generator=generator)
    lengths, videos, result = [5, 8, 3, 6, 9, 4, 7], [0, 1, 2, 3, 3, 4, 1], []
    for start, stop in ((0, 4), (4, 7)):
        longest = max(lengths[start:stop])
        mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths[start:stop]])
        rows = videos[start:stop]
        result.append(
            {
                "input_ids": torch.randint(5, 40, mask.shape, generator=generator) * mask,
                "attention_mask": mask,
                "pixel_values_videos": clips[rows],
                "video_ids": torch.tensor(rows) * 100 - 150,
                "text_ids": torch.arange(start, stop),
            }
        )
    return result


@pytest.fixture(scope="module")
def direct(model, batches):
    """Similarity and matching logits of every pair, each pair fed to the model by itself."""
    texts = [(b["input_ids"][i], b["attention_mask"][i]) for b in batches for i in range(len(b["input_ids"]))]
    clips = {int(v): c for b in batches for v, c in zip(b["video_ids"], b["pixel_values_videos"], strict=True)}
    similarity, logits = torch.zeros(7, 5), torch.zeros(7, 5, 2)
    with torch.no_grad():
        for i, (ids, mask) in enumerate(texts):
            for j, video in enumerate(sorted(clips)):
                output = model(ids[None], mask[None], clips[video][None])
                similarity[i, j] = (output.text_embeds @ output.video_embeds.t()).item()
                logits[i, j] = output.vtm_logits[0]
    return similarity, logits


def test_encoding_visits_every_clip_once(model, batches, monkeypatch):
    seen = []
    encode = model.alpro.get_video_features
    monkeypatch.setattr(
        model.alpro, "get_video_features", lambda clips, **kwargs: seen.append(len(clips)) or encode(clips, **kwargs)
    )
    states = encode_batches(model, batches)
    assert seen == [4, 1]
    assert states.text_to_video.tolist() == [0, 1, 2, 3, 3, 4, 1]
    assert states.video_states is None


def test_vtc_scores_equal_the_model(model, batches, direct):
    scores, _ = retrieval_scores(encode_batches(model, batches), "vtc")
    torch.testing.assert_close(scores, direct[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [3, 256])
def test_matching_scores_from_cached_states_equal_the_model(model, batches, direct, batch_size):
    states = encode_batches(model, batches, keep_states=True)
    pairs = torch.tensor([[6, 4], [0, 0], [2, 3], [2, 1], [5, 2]])
    logits = vtm_scores(model, states.text_states, states.text_mask, states.video_states, pairs, batch_size)
    torch.testing.assert_close(logits, direct[1][pairs[:, 0], pairs[:, 1]], atol=1e-5, rtol=0)


def test_matching_reads_no_padding_beyond_the_longest_text_of_its_batch(model, batches, monkeypatch):
    states = encode_batches(model, batches, keep_states=True)
    lengths = states.text_mask.sum(dim=1)
    assert len(lengths.unique()) > 2
    seen, match = [], model.match
    monkeypatch.setattr(
        model,
        "match",
        lambda text, mask, *clips, **of: seen.append((text.shape[1], mask)) or match(text, mask, *clips, **of),
    )
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(5))
    vtm_scores(model, states.text_states, states.text_mask, states.video_states, pairs, batch_size=5)
    assert [length for length, _ in seen] == sorted(lengths.tolist())
    assert all(mask is None for _, mask in seen)  # five pairs of one text: nothing is padded


def score_pairs_of(model, states):
    return lambda pairs: vtm_scores(model, states.text_states, states.text_mask, states.video_states, pairs)


def test_the_reference_protocol_orders_pairs_by_the_matching_probability(model, batches, direct):
    states = encode_batches(model, batches, keep_states=True)
    scores, scores_v2t = retrieval_scores(states, "reference", score_pairs_of(model, states))
    torch.testing.assert_close(scores.sigmoid(), direct[1].softmax(dim=-1)[..., 1], atol=1e-5, rtol=0)
    assert scores_v2t is scores


def test_reranking_reorders_the_best_and_keeps_the_rest_behind(model, batches, direct):
    states = encode_batches(model, batches, keep_states=True)
    t2v, v2t = retrieval_scores(states, "rerank", score_pairs_of(model, states), rerank_k=2)
    similarity, logits = direct
    combined = similarity + logits[..., 1]
    for scores, sim, both in ((t2v, similarity, combined), (v2t.t(), similarity.t(), combined.t())):
        for query in range(len(sim)):
            by_similarity = sim[query].argsort(descending=True)
            head = by_similarity[:2]
            expected = [*head[both[query][head].argsort(descending=True)].tolist(), *by_similarity[2:].tolist()]
            assert scores[query].argsort(descending=True).tolist() == expected


def test_reranking_everything_orders_by_the_sum(model, batches, direct):
    states = encode_batches(model, batches, keep_states=True)
    t2v, v2t = retrieval_scores(states, "rerank", score_pairs_of(model, states), rerank_k=99)
    torch.testing.assert_close(t2v, direct[0] + direct[1][..., 1], atol=2e-5, rtol=0)
    torch.testing.assert_close(t2v, v2t)


def test_matching_protocols_need_a_matching_function(model, batches):
    with pytest.raises(ValueError, match="score_pairs"):
        retrieval_scores(encode_batches(model, batches), "rerank")


def test_merging_removes_what_processes_share(model, batches):
    numbered = [{**b, "row_ids": torch.tensor(ids)} for b, ids in zip(batches, ([0, 1, 2, 3], [4, 5, 6]), strict=True)]
    whole = encode_batches(model, numbered, keep_states=True)
    padding = {key: value[:1] for key, value in numbered[0].items()}  # what evens out the shares of two processes
    parts = [encode_batches(model, [*numbered[1:], padding], keep_states=True)]
    parts.append(encode_batches(model, numbered[:1], keep_states=True))
    merged = merge_states(parts)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(merged, name), value, atol=1e-5, rtol=0)


def test_no_rows_is_an_error(model):
    with pytest.raises(ValueError, match="no rows"):
        encode_batches(model, [])
