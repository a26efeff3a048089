"""Both sides of a benchmark compute the same result, and the pages on performance agree with the stored results."""

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial

import common
import films
import long
import models
import overlap
import patches
import pytest
import report
import savings
import savings_training
import summary
import torch
from film_windows import FilmWindows, key_of
from fixtures import tiny

from alpro_hf import AlproForVideoTextRetrieval, AlproVideoModel
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.loading import load_model
from alpro_hf.sprites.films import claim_films, draw_films, write_films


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
    assert not any("margin" in name or "int8" in name for name in rows)
    cost |= {(part, "ours, int8"): one | {"cpu": 0.5} for part in ("clip", "text", "pair")}
    rows = {row["evaluation"]: row for row in models.evaluations(cost, half=False, near={0.05: 4})}
    assert rows["100 x 100: ours, int8, margin 0.05"]["cpu h"] * 3600 == pytest.approx((200 + 400) / 2)
    cost |= {(part, "ours, bf16"): one | {"cpu": 0.25} for part in ("clip", "text", "pair")}
    rows = {row["evaluation"]: row for row in models.evaluations(cost, half=True, near={0.05: 4})}
    assert rows["100 x 100: ours, bf16, margin 0.05"]["cpu h"] * 3600 == pytest.approx((200 + 400) / 4)


def test_attention_is_compared_on_the_shapes_of_the_video_tower(model) -> None:
    rows = models.attention(model, Namespace(device="cpu", frames=4, rounds=1), clips=3)
    shapes = [(row["attention"], row["sequences"], row["length"]) for row in rows]
    assert shapes[:2] == [("time", 3 * 4, 4), ("space", 3 * 4, 1 + 4)]
    assert all(row["sdpa over eager"] == row["sdpa wall ms"] / row["eager wall ms"] > 0 for row in rows)


def test_the_tower_with_a_convolution_computes_the_same_and_both_are_measured(monkeypatch, capsys) -> None:
    config = tiny.config().video_config
    product = AlproVideoModel(config)
    convolved = patches.with_convolution(product)
    assert type(convolved.embeddings.patch_embed) is torch.nn.Conv2d
    clips = torch.randn(2, 4, 3, config.image_size, config.image_size)
    for tower in (product, convolved):
        patches.step(tower, clips, half=False)
    for ours, theirs in zip(product.parameters(), convolved.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    monkeypatch.setitem(patches.SIZES, "bundled", (2, {"num_hidden_layers": 1}))
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["patches.py", "--rounds", "1", "--sizes", "bundled"])
    patches.main()
    torch.set_num_threads(threads)
    header, _, row, *_ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    ratio = float(cells["convolution cpu s"]) / float(cells["product cpu s"])
    assert float(cells["convolution over product"]) == pytest.approx(ratio, rel=0.02)


def test_decoding_and_encoding_are_measured_alone_and_together(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(common, "RESULTS_FOLDER", tmp_path)
    given = {"size": "sprites", "clips": 4, "heights": [64], "batch": 2, "rounds": 1, "output": "overlap"}
    overlap.run(Namespace(**given))
    result = json.loads((tmp_path / "overlap.json").read_text())
    assert result["settings"] == given
    assert [row["work"] for row in result["tables"]["overlap"]] == ["index, 64p", "evaluate, 64p"]
    for row in result["tables"]["overlap"]:
        assert row["cpu of both / sum"] == row["both cpu s"] / (row["decode cpu s"] + row["encode cpu s"]) > 0


def test_tokens_are_joined_by_means() -> None:
    generator = torch.Generator().manual_seed(0)
    cls, eight = torch.randn(2, 1, 4, generator=generator), torch.randn(2, 8, 4, generator=generator)
    twice = torch.cat([cls, eight.repeat_interleave(2, dim=1)], dim=1)  # each patch beside its equal
    torch.testing.assert_close(savings.merged(twice, 9), torch.cat([cls, eight], dim=1))
    assert savings.merged(twice, 4).shape == (2, 4, 4)
    pooled = savings.pooled(twice, 2)  # rows of the 4x4 grid are a a b b: the first mean is of two rows' a
    torch.testing.assert_close(pooled[:, 0], cls[:, 0])
    torch.testing.assert_close(pooled[:, 1], (eight[:, 0] + eight[:, 2]) / 2)


def test_cheaper_steps_are_measured_side_by_side(tmp_path, monkeypatch, capsys) -> None:
    torch.manual_seed(0)
    small = AlproForVideoTextRetrieval(tiny.config(video={"num_hidden_layers": 4, "image_size": 64}))
    monkeypatch.setattr(savings_training, "build", lambda size: small)
    monkeypatch.setattr(common, "RESULTS_FOLDER", tmp_path)
    given = Namespace(size="tiny", batch=2, frames=4, rounds=1, threads=1, output="savings-training")
    savings_training.speed(given)
    rows = {row["way"]: row for row in json.loads((tmp_path / "savings-training.json").read_text())["tables"]["step"]}
    assert list(rows) == list(savings_training.ways(4))
    whole = rows.pop(savings_training.ALL)
    assert whole["ratio wall"] == whole["ratio cpu"] == 1
    assert rows["video tower frozen"]["kept MB a sample"] == pytest.approx(
        rows["video tower frozen, cached tokens"]["kept MB a sample"], rel=0.02
    )
    for way, row in rows.items():
        assert row["kept MB a sample"] < whole["kept MB a sample"], way
        assert (row["TFLOP"] > whole["TFLOP"]) == (way.startswith("checkpointing")), way
        assert (row["gradients and AdamW MB"] < whole["gradients and AdamW MB"]) == ("frozen" in way), way
    cheapest = rows["both towers frozen, cached tokens"]
    assert cheapest["TFLOP"] == min(row["TFLOP"] for row in rows.values())
    assert savings_training.ALL in capsys.readouterr().out
    given.output = "memory"
    savings_training.memory(given)
    peaks = json.loads((tmp_path / "memory.json").read_text())["tables"]["memory"]
    assert [row["way"] for row in peaks] == list(savings_training.ways(4)) and peaks[0]["ratio over"] == 1
    assert all(row["peak MB"] >= row["over before MB"] > 0 for row in peaks)


def test_the_cost_in_recall_is_that_of_real_trainings_from_one_start(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(common, "RESULTS_FOLDER", tmp_path)
    ways = {savings_training.ALL: savings_training.Way({}), "frozen": savings_training.Way({"freeze": ["video"]})}
    monkeypatch.setattr(savings_training, "ways", lambda layers: ways)
    given = {"start": "qa", "steps": 1, "batch": 4, "learning_rate": 1e-3, "seeds": 2, "clips": 8, "threads": 1}
    savings_training.recall(Namespace(**given, output="recall"))
    result = json.loads((tmp_path / "recall.json").read_text())
    assert result["settings"] == given
    start, *rows = result["tables"]["recall"]
    assert start["way"] == "the start"
    assert [row["way"] for row in rows] == [*ways, "patch dropout 0.5, twice the steps"]
    for row in rows:
        values = [float(value) for value in row["test: seeds"].split(", ")]
        assert len(values) == 2 and row["R@1, test"] == pytest.approx(sum(values) / 2, abs=0.1)


def test_the_pages_are_those_of_the_results() -> None:
    assert report.PAGE.read_text() == summary.page()
    assert report.DETAIL.read_text() == report.detail()


def test_the_page_for_users_has_five_short_tables() -> None:
    tables = [part.splitlines() for part in summary.page().split("\n\n") if part.startswith("| ")]
    assert len(tables) == 5
    assert all(3 <= len(table) <= 2 + 10 for table in tables)  # with head and rule


def test_the_section_on_films_is_that_of_its_result() -> None:
    assert report.QUALITY_PAGE.read_text() == report.quality_page()


@pytest.fixture
def small_films(tmp_path, monkeypatch) -> Namespace:
    """The benchmark on films of three scenes, with few settings to compare."""
    few = {"scenes": (3, 3), "seconds": (1.5, 2.0)}
    candidates = {
        films.WHOLE: [films.settings_of(films.ENDLESS)],
        films.ONE: [films.settings_of(2.0), films.settings_of(1.0)],
        films.SEVERAL: [films.settings_of(2.0, 1.0)],
        films.DEFAULT: [films.settings_of(3.0, cuts="changes")],
        films.TRUTH: [films.TRUTH],
    }
    monkeypatch.setattr(films, "claim_films", partial(claim_films, **few))
    monkeypatch.setattr(films, "write_films", partial(write_films, **few, progress=False))
    monkeypatch.setattr(films, "CANDIDATES", candidates)
    monkeypatch.setattr(common, "RESULTS_FOLDER", tmp_path)
    return Namespace(
        data=tmp_path / "films",
        count=2,
        fading=1,
        fade=1.0,
        size=64,
        model="bundled",
        threads=1,
        validation_only=False,
    )


def test_films_are_cut_as_validation_says_and_measured_on_the_test(small_films, tmp_path, capsys) -> None:
    films.run(small_films)
    tables = json.loads((tmp_path / "films.json").read_text())["tables"]
    tried, test, fading = (tables[name] for name in ("validation, hard cuts", "test, hard cuts", "test, fading"))
    assert [row["windows"] for row in tried[:5]] == ["one window", "2 s", "1 s", "2 and 1 s", "3 s, at cuts and fades"]
    assert [row["cut"] for row in test] == [
        films.WHOLE,
        films.ONE,
        films.SEVERAL,
        films.DEFAULT,
        f"{films.DEFAULT}, re-ranked",
        films.SCENES,
        films.TRUTH,
    ]
    best = max(tried[1:3], key=lambda row: row["R@1, IoU 0.5"])
    whole, one, several, default, reranked = test[:5]
    assert one["windows"] == best["windows"] and one["x one length"] == 1 < several["x one length"]
    # of two films, each is one window; the default has a window a scene, because these films have hard cuts
    assert whole["windows of the films"] == 2 and default["windows of the films"] == 6
    assert default["mean IoU"] > one["mean IoU"] > whole["mean IoU"]
    # whatever is found where the scenes are known is found exactly
    [truth] = [row for row in test if row["cut"] == films.TRUTH]
    assert truth["windows of the films"] == 6
    assert truth["R@1, IoU 0.7"] == truth["R@1, IoU 0.3"] == truth["mean IoU"] >= default["R@1, IoU 0.7"]
    # the matching head changes the order of the windows, not the windows
    assert reranked["windows of the films"] == 6 and reranked["R@5, IoU 0.5"] == default["R@5, IoU 0.5"] == 100
    low, high = map(float, tables["test, hard cuts: 95 % intervals"][3]["film R@1"].split(" to "))
    assert low <= default["film R@1"] <= high
    assert len(fading) == len(test) and "| whole files | one window |" in capsys.readouterr().out
    report.plot_films(tables, tmp_path / "films.png")
    assert (tmp_path / "films.png").stat().st_size > 10_000


def test_what_is_encoded_is_kept_and_checked_first(small_films, tmp_path, monkeypatch) -> None:
    small_films.validation_only, small_films.fading, small_films.count = True, 0, 1
    films.run(small_films)
    [kept] = (tmp_path / "films" / "windows").rglob("*.safetensors")
    before, first = kept.stat().st_mtime_ns, json.loads((tmp_path / "films-validation.json").read_text())["tables"]
    films.run(small_films)
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "films-validation.json").read_text())["tables"] == first
    # one more setting encodes its own windows only
    places = FilmWindows(kept).of_settings
    another = films.settings_of(1.5)
    monkeypatch.setitem(films.CANDIDATES, films.SEVERAL, [films.settings_of(2.0, 1.0), another])
    films.run(small_films)
    more = FilmWindows(kept)
    assert {key: more.of_settings[key] for key in places} == places and key_of(another) in more.of_settings
    assert more.tokens(0).shape[0] == 1 and len(more.embeds) == len(more.spans) == len(set(more.spans))
    small_films.size = 32
    with pytest.raises(SystemExit, match="made with size=64, not size=32"):
        films.run(small_films)


def test_a_long_file_is_indexed_alike_by_all_sides(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(long, "CLIP_FOLDER", tmp_path)
    monkeypatch.setattr(long, "draw_films", partial(draw_films, scenes=(12, 12)))
    path = long.film(40 / 3600)
    assert path.name == "film-64-12-0.0111111h.mp4" and long.packets_of(path) > 30 * 12
    model, processor = load_model("retrieval", "bundled", device="cpu")
    with IsolatedDecoder() as decoder:
        sides, windows, duration = long.sides_of(path, model, processor, decoder)
        assert set(sides) == set(long.TURNS) and {run() for run in sides.values()} == {len(windows)}
    assert duration > 30 and windows[-1][0].end == pytest.approx(duration, abs=0.2)


def test_the_memory_of_a_command_is_watched_until_it_ends() -> None:
    code = "import time; kept = bytearray(150_000_000); time.sleep(1); print('done')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        found = long.watched(process)
    assert found["output"] == "done\n" and process.returncode == 0
    assert 150 < found["peaks"]["index"] < 250 and len(long.thinned(found["samples"], 3)) <= 6
