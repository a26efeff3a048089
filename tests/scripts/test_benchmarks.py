"""The benchmarks compare things that are the same, and the page about them is made from their results."""

import models
import pytest
import report
import torch
from fixtures import tiny

from alpro_hf import AlproForVideoTextRetrieval


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AlproForVideoTextRetrieval(tiny.config()).eval()


@torch.no_grad()
def test_both_sides_of_a_comparison_compute_the_same(model) -> None:
    text, mask, video = torch.randn(4, 7, 32), tiny.inputs(4)["attention_mask"], torch.randn(4, 5, 32)
    plain = models.plain(model)
    expected = models.every_token(plain, text, mask, video)
    for logits in (
        model.match(text, mask, video),
        models.matched_by_length(model, text, mask, video),
        models.vtm_scores(model, text, mask, video, torch.arange(4)[:, None].expand(-1, 2)),
    ):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    found = models.packed(model, 4 * 12).match(text, None, video)
    torch.testing.assert_close(found, model.match(text, None, video), atol=1e-5, rtol=1e-5)


def test_the_plain_step_has_the_loss_and_gradients_of_ours(model) -> None:
    inputs, plain = tiny.inputs(4), models.plain(model)
    expected = models.plain_step(plain, inputs, torch.Generator().manual_seed(0))
    found = model(**inputs, return_loss=True, generator=torch.Generator().manual_seed(0)).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    wanted, given = torch.autograd.grad(expected, weights), torch.autograd.grad(found, weights)
    for one, two in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_an_evaluation_counts_how_often_each_part_runs() -> None:
    one = {"wall": 1.0, "cpu": 1.0, "flops": 1.0}
    cost = {(part, side): one for part in ("clip", "text", "pair") for side in ("plain", "ours")}
    rows = {row["evaluation"]: row for row in models.evaluations(cost, half=False)}
    plain = rows["100 x 100: plain, all pairs"]
    assert plain["wall h"] * 3600 == pytest.approx(100 * 2 + 100 * 100 + 100 * 100)
    assert rows["100 x 100: ours, all pairs (reference)"]["ratio cpu"] == pytest.approx(20_200 / 10_200)
    assert rows["1000 x 1000: ours, bf16, top 20"]["PFLOP"] == models.NO_BF16


def test_the_page_is_that_of_the_results() -> None:
    assert report.PAGE.read_text() == report.page()
