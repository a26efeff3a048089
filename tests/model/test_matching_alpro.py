"""Encoding clips, and one order of re-ranking: the same for a single query as in the matrix of an evaluation."""

import json

import pytest
import torch
from fixtures import tiny
from fixtures.blip import write_blip
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro_hf import AlproConfig, AlproForPreTraining, AlproForVideoTextRetrieval, AlproModel, bundled_model
from alpro_hf.evaluation.protocols import RetrievalStates, retrieval_scores
from alpro_hf.model.matching_alpro import encode_clips, matching_problem, most_similar, rerank, rerank_order

SMALL = st.integers(-3, 3).map(float)  # few different numbers: many ties


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AlproForVideoTextRetrieval(tiny.config()).eval()


def test_clips_of_several_shapes_are_encoded_as_each_alone(model, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(frames, 3, 16, 16, generator=generator) for frames in (4, 4, 2, 4, 4)]
    with torch.no_grad():
        alone = [model.alpro.get_video_features(clip[None]) for clip in clips]
    shapes, encode = [], model.alpro.get_video_features
    monkeypatch.setattr(
        model.alpro, "get_video_features", lambda pixels: shapes.append(tuple(pixels.shape[:2])) or encode(pixels)
    )
    encoded = encode_clips(model, clips)
    assert shapes == [(2, 4), (1, 2), (2, 4)]
    for clip, expected in zip(encoded, alone, strict=True):
        torch.testing.assert_close(clip.embed, expected.pooler_output[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(clip.tokens, expected.last_hidden_state[0], atol=1e-5, rtol=0)
        assert not clip.embed.requires_grad
    assert encode_clips(model, []) == []


def test_a_batch_is_encoded_in_one_call_by_towers_and_by_models_with_heads(model):
    pixels = tiny.inputs(3)["pixel_values_videos"]
    with_head = encode_clips(model, pixels)
    towers = AlproModel(model.config).eval()
    towers.load_state_dict(model.alpro.state_dict())
    for one, other in zip(with_head, encode_clips(towers, pixels), strict=True):
        assert torch.equal(one.embed, other.embed)
        assert torch.equal(one.tokens, other.tokens)


def test_vectors_are_float32_and_tokens_of_the_models_own_type():
    model = AlproForVideoTextRetrieval(tiny.config()).eval().to(torch.bfloat16)
    [clip] = encode_clips(model, tiny.inputs(1)["pixel_values_videos"])
    assert (clip.embed.dtype, clip.tokens.dtype) == (torch.float32, torch.bfloat16)


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=12), k=st.integers(0, 14))
def test_the_order_equals_two_stable_sorts(pairs, k):
    similarity, scores = torch.tensor(pairs).unbind(dim=1)
    by_similarity = sorted(range(len(pairs)), key=lambda i: -pairs[i][0])
    expected = sorted(by_similarity[:k], key=lambda i: -pairs[i][1]) + by_similarity[k:]
    assert most_similar(similarity, k).tolist() == by_similarity[:k]
    assert rerank_order(similarity, scores, k).tolist() == expected


@pytest.mark.parametrize("k", [0, 1, 5, 70, 200])
def test_reranking_matches_the_best_candidates_a_few_at_a_time(k):
    generator = torch.Generator().manual_seed(2)
    similarity = torch.rand(130, generator=generator) * 2 - 1
    logits = torch.randn(130, 2, generator=generator)
    asked = []

    def match(places):
        asked.append(places.tolist())
        return logits[places]

    found = rerank(similarity, k, match)
    best = similarity.argsort(descending=True)[:k].tolist()
    assert [place for places in asked for place in places] == best
    assert all(len(places) <= 64 for places in asked)
    assert set(found.probabilities) == set(best)
    for i in range(130):
        matched = i in found.probabilities
        assert found.scores[i] == (similarity[i] + logits[i, 1] if matched else similarity[i])
        assert not matched or found.probabilities[i] == pytest.approx(logits[i].softmax(dim=0)[1].item())
    assert sorted(found.order[:k].tolist()) == sorted(best)
    assert found.scores[found.order[:k]].diff().le(0).all()
    assert found.scores[found.order[k:]].diff().le(0).all()


@pytest.mark.parametrize("margin", [None, 0.0, 0.2])
@pytest.mark.parametrize("k", [1, 3, 9, 50])
def test_one_query_is_ranked_as_in_the_matrix_of_an_evaluation(k, margin):
    generator = torch.Generator().manual_seed(3)
    texts, videos = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (20, 12))
    table = torch.randn(20, 12, 2, generator=generator)
    rows = torch.arange(20)
    states = RetrievalStates(rows, rows % 12, texts, torch.arange(12), videos)
    t2v, v2t = retrieval_scores(
        states, "rerank", lambda pairs: table[pairs[:, 0], pairs[:, 1]], rerank_k=k, rerank_margin=margin
    )
    similarity, _ = retrieval_scores(states, "vtc")
    for text in range(20):
        found = rerank(similarity[text], k, lambda places, text=text: table[text, places], margin)
        assert t2v[text].argsort(descending=True).tolist() == found.order.tolist()
    for video in range(12):
        found = rerank(similarity[:, video], k, lambda places, video=video: table[places, video], margin)
        assert v2t[:, video].argsort(descending=True).tolist() == found.order.tolist()


def test_a_margin_leaves_out_candidates_that_are_less_similar():
    similarity = torch.tensor([0.1, 0.5, 0.45, 0.44, 0.2])
    logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 2.0], [0.0, 8.0], [0.0, 7.0]])
    found = rerank(similarity, 4, lambda places: logits[places], margin=0.055)
    assert set(found.probabilities) == {1, 2}
    assert found.order.tolist() == [2, 1, 3, 4, 0]  # matched, then the others by similarity
    assert rerank(similarity, 4, lambda places: logits[places]).order.tolist() == [3, 4, 2, 1, 0]
    assert set(rerank(similarity, 4, lambda places: logits[places], margin=0.0).probabilities) == {1}
    assert rerank(similarity, 0, lambda places: logits[places], margin=0.1).probabilities == {}


# --------------------------------------------------------------------------------------- may the matching head rank?


@pytest.mark.parametrize("kind", [AlproForVideoTextRetrieval, AlproForPreTraining])
def test_a_head_as_it_was_drawn_may_not_rank(kind, tmp_path):
    config = tiny.config(entities=tiny.ENTITIES)
    new = kind(config)
    assert new.config.matching_trained is False and config.matching_trained is None  # the caller's stays as it was
    assert new.base_model.config is new.config
    assert matching_problem(new) == (
        f"this is a new {kind.__name__}, which has no trained matching head (config.matching_trained is False)"
    )
    new.save_pretrained(tmp_path)
    assert f"{str(tmp_path)!r} holds {kind.__name__}" in matching_problem(kind.from_pretrained(tmp_path))


def test_a_head_that_was_trained_may_rank_and_stays_so(tmp_path):
    trained = AlproForVideoTextRetrieval(tiny.config())
    trained.config.matching_trained = True
    trained.save_pretrained(tmp_path)
    again = AlproForVideoTextRetrieval.from_pretrained(tmp_path)
    assert matching_problem(again) is None
    # another new model of the same configuration changes nothing about this one
    assert matching_problem(AlproForVideoTextRetrieval(again.config)) is not None
    assert matching_problem(again) is None
    assert matching_problem(AlproForVideoTextRetrieval(AlproConfig.from_pretrained(tmp_path))) is not None


def test_folders_of_earlier_versions_count_as_trained_where_they_hold_a_head(tmp_path):
    bundled = AlproForVideoTextRetrieval.from_pretrained(bundled_model("retrieval"))
    assert bundled.config.matching_trained is True and matching_problem(bundled) is None
    AlproForVideoTextRetrieval(tiny.config()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("matching_trained") is False
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert matching_problem(AlproForVideoTextRetrieval.from_pretrained(tmp_path)) is None
    # weights of the head that the folder lacks are drawn when it is loaded
    AlproModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "towers")
    headless = AlproForVideoTextRetrieval.from_pretrained(tmp_path / "towers")
    assert "holds AlproModel, which has no trained matching head" in matching_problem(headless)
    answering = AlproForVideoTextRetrieval.from_pretrained(bundled_model("qa"))
    assert "holds AlproForVideoQuestionAnswering, which has no trained matching head" in matching_problem(answering)


def test_without_fusion_layers_and_from_blip(tmp_path):
    blind = AlproForVideoTextRetrieval(tiny.config(text={"fusion_layer": tiny.TEXT["num_hidden_layers"]}))
    blind.config.matching_trained = True  # training cannot make it see
    assert "without fusion layers does not read text and video together" in matching_problem(blind)
    assert matching_problem(blind.alpro) == "AlproModel has none"
    write_blip(tmp_path)
    started = AlproForVideoTextRetrieval.from_image_text_pretrained(str(tmp_path), fusion_layers=2)
    assert started.config.matching_trained is False and matching_problem(started) is not None
