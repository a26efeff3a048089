"""Both sides of a benchmark compute the same result, and the pages on performance agree with the stored results."""

import json
from argparse import Namespace

import common
import films
import models
import pytest
import report
import summary
import torch
from fixtures import tiny

from alpro_hf import AlproForVideoTextRetrieval
from alpro_hf.sprites.films import write_films


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


def test_the_pages_are_those_of_the_results() -> None:
    assert report.PAGE.read_text() == summary.page()
    assert report.DETAIL.read_text() == report.detail()


def test_the_page_for_users_has_five_short_tables() -> None:
    tables = [part.splitlines() for part in summary.page().split("\n\n") if part.startswith("| ")]
    assert len(tables) == 5
    assert all(3 <= len(table) <= 2 + 10 for table in tables)  # with head and rule


def test_films_are_cut_as_validation_says_and_measured_on_the_test(tmp_path, monkeypatch, capsys) -> None:
    def few(output, split, count, *, size):
        return write_films(
            output, split, count, scenes=(3, 3), seconds=(1.5, 2.0), size=size, workers=1, progress=False
        )

    candidates = {
        films.WHOLE: [films.settings_of((films.ENDLESS,))],
        films.ONE: [films.settings_of((2.0,)), films.settings_of((1.0,))],
        films.SEVERAL: [films.settings_of((2.0, 0.1))],
        films.AT_CUTS: [films.settings_of((3.0,), cuts=True)],
    }
    monkeypatch.setattr(films, "write_films", few)
    monkeypatch.setattr(films, "CANDIDATES", candidates)
    monkeypatch.setattr(common, "RESULTS_FOLDER", tmp_path)
    films.run(Namespace(data=tmp_path / "films", count=2, size=64, model="bundled"))
    written = json.loads((tmp_path / "films.json").read_text())
    test, validation = (written["tables"][split] for split in ("test", "validation"))
    assert [row["cut"] for row in test] == list(candidates)
    assert [row["windows"] for row in validation] == ["one window", "2 s", "1 s", "2 and 0.1 s", "3 s, at cuts"]
    whole, one, _, at_cuts = test
    assert whole["number of windows"] == 2  # one a film
    best = max(validation[1:3], key=lambda row: row["r1_iou_0.5"])
    assert one["windows"] == best["windows"]
    # a window a scene: the cuts of these films are where their scenes change
    assert at_cuts["number of windows"] == 6 and at_cuts["mean_iou"] > one["mean_iou"] > whole["mean_iou"]
    assert "| whole files | one window | 2 |" in capsys.readouterr().out
