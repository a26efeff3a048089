"""The re-ranking curve against the protocol itself, and what the pictures show."""

import numpy as np
import pytest
import torch
from PIL import Image

from alpro_hf.evaluation.figures import plot_ranks, plot_rerank_curve, rerank_curve
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.evaluation.protocols import RetrievalStates, retrieval_scores


class Matching:
    """Logits of a random table that knows the truth a little; remembers what it was asked."""

    def __init__(self, targets, videos):
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(len(targets), videos, 2, generator=generator)
        self.table[torch.arange(len(targets)), targets, 1] += 1
        self.asked = []

    def __call__(self, pairs):
        self.asked += map(tuple, pairs.tolist())
        return self.table[pairs[:, 0], pairs[:, 1]]


@pytest.fixture
def states():
    """40 captions of 10 of 12 videos."""
    generator = torch.Generator().manual_seed(4)
    videos = torch.randn(12, 6, generator=generator)
    targets = torch.arange(40) % 10
    texts = videos[targets] + 1.5 * torch.randn(40, 6, generator=generator)
    return RetrievalStates(
        row_ids=torch.arange(40),
        row_video_ids=targets,
        text_embeds=torch.nn.functional.normalize(texts, dim=1),
        video_ids=torch.arange(12),
        video_embeds=torch.nn.functional.normalize(videos, dim=1),
    )


@pytest.mark.parametrize("margin", [None, 0.15])
def test_equals_the_protocol_for_every_k(states, margin):
    similarity, _ = retrieval_scores(states, "vtc")
    matching = Matching(states.text_to_video, 12)
    curve = rerank_curve(similarity, matching, states.text_to_video, max_k=15, margin=margin)
    assert curve.k.tolist() == list(range(1, 16))
    asked = len(matching.asked)
    assert asked == len(set(matching.asked)) and (margin is None or asked < 200)
    for place, k in enumerate(curve.k.tolist()):
        scores, scores_v2t = retrieval_scores(states, "rerank", matching, rerank_k=k, rerank_margin=margin)
        expected = retrieval_metrics(scores, states.text_to_video, scores_v2t)
        assert curve.with_prior["t2v"][place] == pytest.approx(expected["t2v_r1"])
        assert curve.with_prior["v2t"][place] == pytest.approx(expected["v2t_r1"])
    assert len(set(curve.with_prior["t2v"])) > 3


def test_without_the_prior_only_matching_counts(states):
    similarity, _ = retrieval_scores(states, "vtc")
    matching = Matching(states.text_to_video, 12)
    curve = rerank_curve(similarity, matching, states.text_to_video, max_k=40)
    alone = retrieval_metrics(matching.table[..., 1], states.text_to_video)
    assert curve.without_prior["t2v"][-1] == pytest.approx(alone["t2v_r1"])
    assert curve.without_prior["v2t"][-1] == pytest.approx(alone["v2t_r1"])
    by_similarity = retrieval_metrics(similarity, states.text_to_video)
    assert curve.without_prior["v2t"][0] == curve.with_prior["v2t"][0] == pytest.approx(by_similarity["v2t_r1"])


def test_a_target_that_ties_is_no_hit():
    curve = rerank_curve(
        torch.tensor([[3.0, 2.0, 1.0]]),
        lambda pairs: torch.tensor([[0.0, float(video)] for _, video in pairs.tolist()]),
        torch.tensor([0]),
        max_k=3,
    )
    assert curve.with_prior["t2v"].tolist() == [100, 0, 0]
    assert curve.without_prior["t2v"].tolist() == [100, 0, 0]
    assert curve.with_prior["v2t"].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("shape", "targets", "max_k"), [((3, 2), [0, 1, 1], 0), ((3, 2), [0, 1], 4), ((6,), [0, 1], 4)]
)
def test_refuses(shape, targets, max_k):
    with pytest.raises(ValueError, match="rerank_curve needs"):
        rerank_curve(torch.zeros(shape), Matching([0, 1, 1], 2), torch.tensor(targets), max_k)


def test_the_picture_of_ranks_shows_recall(tmp_path):
    ranks = {"t2v": np.array([1, 1, 2, 7, 30.5]), "v2t": np.array([3, 100])}
    figure = plot_ranks(ranks, {"t2v": 200, "v2t": 200})
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    steps, marks, chance = axes.lines[:3]
    curve = dict(zip(*steps.get_data(), strict=True))
    assert {x: y for x, y in curve.items() if x < 200} == pytest.approx({1: 40, 2: 60, 7: 80, 30.5: 100})
    assert dict(zip(*marks.get_data(), strict=True)) == pytest.approx({1: 40, 5: 60, 10: 80, 50: 100})
    assert chance.get_ydata()[-1] == pytest.approx(100)
    assert {text.get_text() for text in axes.texts} == {"40.0", "60.0", "80.0", "100.0", "0.0", "50.0"}
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "text to video, median rank 2, 5 queries" in names
    figure.savefig(tmp_path / "ranks.png")
    assert Image.open(tmp_path / "ranks.png").size[0] > 600


def test_answers_out_of_the_list_are_never_found():
    [axes] = plot_ranks({"qa": np.array([1, 2, np.inf, 1])}, {"qa": 50}).axes
    steps = axes.lines[0]
    assert dict(zip(*steps.get_data(), strict=True)) == pytest.approx({1: 50, 2: 75, 50: 75})
    assert steps.get_label() == "question to answer, median rank 1.5, 4 queries"


def test_the_picture_of_the_curve_has_both_directions(states):
    similarity, _ = retrieval_scores(states, "vtc")
    curve = rerank_curve(similarity, Matching(states.text_to_video, 12), states.text_to_video, max_k=8)
    [axes] = plot_rerank_curve(curve).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["text to video, matching + similarity"], curve.with_prior["t2v"])
    np.testing.assert_array_equal(lines["video to text, matching alone"], curve.without_prior["v2t"])
    assert set(lines["video to text, not re-ranked"]) == {curve.with_prior["v2t"][0]}


@pytest.mark.parametrize("ranks", [{}, {"sideways": [1.0]}])
def test_ranks_of_no_direction_are_not_drawn(ranks):
    with pytest.raises(ValueError, match="t2v, v2t or both"):
        plot_ranks(ranks)
