"""The scripts of the pre-training study measure and print what they promise."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures import tiny
from safetensors.torch import load_file

from alpro_hf import (
    AlproConfig,
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
    bundled_model,
)
from alpro_hf.data.rows import video_id
from alpro_hf.evaluation.encode import answer_rows, encode_rows
from alpro_hf.sprites.language import PHRASES, SEQUENCE, caption_and_negatives, noun_phrase
from alpro_hf.sprites.opposites import opposite_kind
from alpro_hf.sprites.render import write_split
from alpro_hf.sprites.world import BASIC_ACTIONS, SPRITES, Actor, Scene, allowed_actions, content, draw_scene, pose

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("x", "action", "share"),
    [(0.25, "clockwise", 1), (0.75, "clockwise", 0), (0.5, "clockwise", 0.5), (0.25, "disappear", 0.5)],
)
def test_how_much_of_a_sprite_a_crop_holds(x, action, share):
    from crops import shares_inside

    scene = Scene("one", (Actor("fox", action, x, 0.5, 0.2, 0.5),), look=0)
    left_half = torch.zeros(4, 4, dtype=torch.bool)
    left_half[:, :2] = True
    assert shares_inside(scene, left_half) == {"fox": pytest.approx(share, abs=0.01)}


def test_scores_of_a_teacher_by_hand():
    from teacher import score

    names = ["fox", "owl", "bus", "cup", "hat", "key", "pan"]
    labels = torch.full((4, 7), 0.02)
    labels[0, 0] = 0.88  # right and sure
    labels[1] = torch.tensor([0.15, 0.14, 0.16, 0.13, 0.14, 0.14, 0.14])  # owl is third at best, not sure
    labels[2, 3] = 0.88  # sure, wrong
    labels[3, 3] = 0.88  # holds no sprite it knows
    found = score(labels, names, ["fox", "owl", "pan", None], threshold=0.2)
    assert found["crops"] == 3
    assert found["top1"] == pytest.approx(100 / 3)
    assert found["top5"] in (pytest.approx(200 / 3), pytest.approx(100))  # ties behind the first
    assert found["kept"] == 75
    assert found["kept_known"] == pytest.approx(200 / 3)
    assert found["top1_kept"] == 50


def test_all_inputs_are_checked_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    import measure

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "qa.jsonl").write_text(json.dumps({"video": "lost.mp4", "question": "?", "answer": "!"}))
    command = ["measure.py", "--data", str(tmp_path), "--splits", "here", "nowhere", "--qa", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "none" / "x.json")])
    with pytest.raises(SystemExit):
        measure.main()
    error = capsys.readouterr().err
    for problem in (
        f"there is no folder {tmp_path / 'nowhere'}",
        "has no retrieval.jsonl",
        "names 1 clips that are not there, such as",
        f"--qa {tmp_path} is no folder of a model",
        "is in no folder that exists",
    ):
        assert problem in error


def test_numbers_are_written_after_each_split_and_not_measured_twice(tmp_path, capsys, monkeypatch):
    """The bundled model on six clips, of which the second split is a copy."""
    import measure

    from alpro_hf.sprites.render import write_split

    write_split(tmp_path, "dev", count=6, size=64, workers=1)
    shutil.copytree(tmp_path / "dev", tmp_path / "copy")
    output, seen = tmp_path / "numbers.json", []
    command = ["measure.py", "--data", str(tmp_path), "--tasks", "qa", "--output", str(output), "--splits"]
    real = measure.measure

    def interrupted(folder, *rest):
        seen.append(folder.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(folder, *rest)

    monkeypatch.setattr(measure, "measure", interrupted)
    monkeypatch.setattr("sys.argv", [*command, "dev", "copy"])
    with pytest.raises(KeyboardInterrupt):
        measure.main()
    first = json.loads(output.read_text())["results"]
    assert list(first) == ["dev"]
    measure.main()
    assert seen == ["dev", "copy", "copy"]
    results = json.loads(output.read_text())["results"]
    assert results["dev"] == first["dev"] == results["copy"]
    asked = results["dev"]["qa"]
    assert ("false premise: names the other" in asked) == ("what: name in a relation" in asked)
    monkeypatch.setattr("sys.argv", [*command, "dev", "--protocols", "vtc"])
    with pytest.raises(SystemExit):
        measure.main()
    assert "has numbers of other settings" in capsys.readouterr().err


def test_whole_clips_have_no_crop():
    from fixtures import coloured_pretraining as coloured
    from fixtures import colours
    from study import CONTROLS, LOSSES, SAMPLING, TABLE, WholeClips

    batch = WholeClips(colours.processor(), patch_size=8)([{**row, "index": 0} for row in coloured.rows()[:2]])
    assert batch["crop_mask"].all() and batch["crop_mask"].dtype == torch.bool
    assert {*TABLE, *CONTROLS, *SAMPLING} == set(LOSSES) and len(TABLE) == 5


def test_batches_draw_on_data_sets_in_turn():
    from train import Batches

    pairs, crops, questions = list(range(100)), list(range(100, 200)), list(range(200, 300))
    rows = Batches([[(pairs, 2), (crops, 1)], [(questions, 3)]], 5)
    found = [[rows[3 * step + place] for place in range(3)] for step in range(5)]
    assert found == [[0, 1, 100], [200, 201, 202], [2, 3, 101], [203, 204, 205], [4, 5, 102]]
    assert len(rows) == 15
    with pytest.raises(IndexError):
        rows[15]
    rows = Batches([[(pairs, 2)], [(pairs, 1), (crops, 1)], [(questions, 2)]], 7)
    found = [[rows[2 * step + place] for place in range(2)] for step in range(7)]
    assert found == [[0, 1], [2, 100], [200, 201], [3, 4], [5, 101], [202, 203], [6, 7]]


def test_the_first_stage_learns_what_clips_of_one_sprite_show(tmp_path, monkeypatch):
    import classify
    from train import build_config

    drawn, render = [], classify.render
    monkeypatch.setattr(classify, "render", lambda *scene: drawn.append(scene) or render(*scene))
    count = 30
    rows = classify.SingleSprites(count, seed=3, num_frames=4, size=64, split="train-dev")
    processor = AlproProcessor.from_pretrained(bundled_model("retrieval"))
    batch = classify.ClassesCollator(processor)([rows[i] for i in range(count)])
    for (scene, times, _), (name, action, *tilts) in zip(drawn, batch["labels"].tolist(), strict=True):
        [actor] = scene.actors
        assert name == -100 and BASIC_ACTIONS[action] == actor.action
        assert actor.action in allowed_actions("train-dev", actor.sprite)
        for tilt, time in zip(tilts, times, strict=True):
            off = (pose(actor, time).angle - 30 * tilt) % 360
            assert min(off, 360 - off) <= 15
    tilts = batch["labels"][:, 2:]
    assert 0 < (tilts != 0).any(dim=1).float().mean() < 1

    clips = batch["pixel_values_videos"]
    alone = processor.video_processor([rows[5]["video"]], do_sample_frames=False, return_tensors="pt")
    torch.testing.assert_close(clips[5], alone["pixel_values_videos"][0])
    with pytest.raises(IndexError, match="Row 30 of 30"):
        rows[count]

    model = classify.SpriteClassifier(build_config(100)).eval()
    output = model(clips, batch["labels"])
    kinds = zip(output.logits.unbind(dim=2), batch["labels"].unbind(dim=1), strict=True)
    # clips have no names to learn
    by_hand = [torch.nn.functional.cross_entropy(logits, classes) for logits, classes in kinds if (classes >= 0).all()]
    assert len(by_hand) == 5
    torch.testing.assert_close(output.loss, sum(by_hand) / 5)
    model.save_pretrained(tmp_path)
    towers, info = AlproModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    states = towers.video_model(clips).pooler_output
    torch.testing.assert_close(states, model.alpro.video_model(clips).pooler_output)


@pytest.mark.parametrize(("off", "share"), [(1, 100), (2, 0), (11, 100)])
def test_classes_are_counted_as_told_right(off, share, monkeypatch):
    import classify

    class Teller:
        """Tells spins as they are and other actions as left, every other name, and tilts some classes off."""

        config = AlproConfig(video_config={"num_frames": 4, "image_size": 64})

        def __call__(self, clips):
            classes = batches[-1].clone()
            classes[::2, 0] += 1
            left = BASIC_ACTIONS.index("left")
            spins = [BASIC_ACTIONS.index(action) for action in classify.SPINS]
            classes[~torch.isin(classes[:, 1], torch.tensor(spins)), 1] = left
            classes[:, 2:] = (classes[:, 2:] + off) % classify.TILTS
            logits = torch.nn.functional.one_hot(classes.clamp(min=0), len(SPRITES) + 1).transpose(1, 2)
            return classify.ImageClassifierOutput(logits=logits)

    batches, collate = [], classify.ClassesCollator.__call__

    def keep(self, rows):
        batch = collate(self, rows)
        batches.append(batch["labels"])
        return batch

    monkeypatch.setattr(classify.ClassesCollator, "__call__", keep)
    processor = AlproProcessor.from_pretrained(bundled_model("retrieval"))
    found = classify.measure(Teller(), processor, "dev", 120, batch=60)
    assert [labels.shape[1] for labels in batches] == [3, 3, 6, 6]
    assert (found["names"], found["spins"], found["left"], found["right"]) == (50, 100, 100, 0)
    assert found["other actions"] == 10
    assert found["tilts"] == share


def test_stills_show_all_sprites_turned_and_no_action(monkeypatch):
    import classify
    from crops import shares_inside

    drawn, render = [], classify.render
    monkeypatch.setattr(classify, "render", lambda *scene: drawn.append(scene) or render(*scene))
    count = 60
    rows = classify.SingleSprites(count, seed=4, num_frames=1, size=64, split="train-dev")
    found = [rows[i] for i in range(count)]
    classes = [row["classes"] for row in found]
    turned = set()
    for (scene, (time,), _), (name, action, tilt) in zip(drawn, classes, strict=True):
        [actor] = scene.actors
        assert SPRITES[name] == actor.sprite and action == -100
        assert pose(actor, 0) == pose(actor, time) == pose(actor, 1)
        off = (pose(actor, time).angle - 30 * tilt) % 360
        assert min(off, 360 - off) <= 15
        if tilt:
            turned.add(actor.sprite)
    assert any("clockwise" not in allowed_actions("train-dev", sprite) for sprite in turned)
    assert 0 < [tilt for *_, tilt in classes].count(0) < count / 2

    # a third of them are crops of half of the sprite at least
    cropped = 0
    for (scene, times, size), row in zip(drawn, found, strict=True):
        whole = render(scene, times, size)
        patches = row["video"].reshape(4, 16, 4, 16, 3).any(axis=(1, 3, 4))
        inside = patches.repeat(16, 0).repeat(16, 1)[None, :, :, None]
        assert (row["video"] == whole * inside).all()
        if not patches.all():
            cropped += 1
            assert shares_inside(scene, torch.from_numpy(patches))[scene.actors[0].sprite] >= 0.5
    assert count / 6 < cropped < count / 2


def test_the_sharpest_temperature_keeps_few_crops_without_an_entity():
    from crops import sharpest_temperature

    similarity = torch.zeros(100, 4)
    similarity[:, 0] = torch.linspace(0, 0.1, 100)
    found = sharpest_temperature(similarity, threshold=0.5, kept=0.05)
    for temperature, few in ((found, True), (found - 0.001, False)):
        kept = (similarity / temperature).softmax(dim=1).max(dim=1).values >= 0.5
        assert bool(kept.float().mean() <= 0.05) is few


def test_training_crops_hold_the_one_sprite_that_their_prompt_names():
    from crops import EMPTY, NOTHING, CropRows

    rows = CropRows(200, seed=3, num_frames=4, size=64, split="train-dev")
    names = [rows[index]["video_id"].removeprefix("crop ") for index in range(len(rows))]
    assert 0.5 * EMPTY < names.count(NOTHING) / len(rows) < 2 * EMPTY
    for index in range(20):
        row, name = rows[index], names[index]
        assert (name in row["text"]) and row["video"].shape == (4, 64, 64, 3)
        inside = row["video"].any(axis=(0, 3))
        lines = [inside.any(axis=axis).nonzero()[0] for axis in (0, 1)]
        # the box is of whole patches, and a third to a half of the picture
        assert all(line[0] % 16 == 0 and (line[-1] + 1) % 16 == 0 for line in lines)
        assert 0.2 < len(lines[0]) * len(lines[1]) / 64**2 < 0.6
        again = CropRows(200, seed=3, num_frames=4, size=64, split="train-dev")[index]
        assert again["text"] == row["text"] and (again["video"] == row["video"]).all()


def test_the_classifier_of_spins_is_trained_and_measured(tmp_path, monkeypatch):
    import spins

    command = ["spins.py", "--output", str(tmp_path / "spins.json"), "--steps", "2", "--batch", "4", "--measured", "6"]
    monkeypatch.setattr("sys.argv", [*command, "--patches", "32", "16"])
    spins.main()
    curves = json.loads((tmp_path / "spins.json").read_text())["curves"]
    assert list(curves) == ["32", "16"]
    for curve in curves.values():
        assert [found["step"] for found in curve] == [2]
        assert all(round(found[split] * 6 / 100, 6).is_integer() for found in curve for split in ("seen", "dev"))


def test_a_scene_of_one_sprite_does_the_action_of_its_label():
    from classify import SPINS, draw_single

    scenes = [draw_single("dev", SPINS, random.Random(f"scene {seed}")) for seed in range(40)]
    assert {label for _, label in scenes} == {0, 1}
    for scene, label in scenes:
        (actor,) = scene.actors
        assert actor.action == SPINS[label]
        assert actor.action in allowed_actions("dev", actor.sprite)


def test_the_page_has_what_the_classifiers_of_spins_reached():
    page = (DOCS / "experiments.md").read_text().splitlines()
    for name in ("control", "patch-16", "patch-8"):
        result = json.loads((DOCS / "study" / "spins" / f"{name}.json").read_text())
        settings = result["settings"]
        [(patch, curve)] = result["curves"].items()
        last = curve[-1]
        row = [" / ".join(settings["pair"]), patch, f"{last['step'] * settings['batch']:,}", f"{last['minutes']:.0f}"]
        row += [f"{last['loss']:.3f}", *(f"{last[split]:.1f}" for split in ("seen", "dev"))]
        assert f"| {' | '.join(row)} |" in page


def test_the_log_has_what_the_stages_of_classes_and_align_reached():
    log = (DOCS / "experiments_log.md").read_text().splitlines()

    def numbers(name):
        return json.loads((DOCS / "study" / "recipe" / f"{name}.json").read_text())

    for name, row in (("classify", "`stills`, `classify`"), ("classify-2", "`classify-2` instead, 2,400 steps")):
        seen, dev = (numbers(name)[split] for split in ("seen", "dev"))
        cells = [seen[kind] for kind in ("names", "tilts", "spins", "other actions")]
        cells += [dev[kind] for kind in ("names", "spins", "other actions")]
        assert f"| {row} | {' | '.join(f'{cell:.1f}' for cell in cells)} |" in [line.replace("**", "") for line in log]
    for name, row in (("align-without-turns", "without groups of spins"), ("align", "with them")):
        found = numbers(name)["results"]["dev"]
        kinds = [f"opposite: {kind}" for kind in ("clockwise/counterclockwise", "left/right", "bounce/sway")]
        kinds += ["reversed", "opposite: order", "opposite: roles"]
        cells = [found["retrieval"]["vtc"]["t2v_r1"], *(found["choices"][kind]["vtc"] for kind in kinds)]
        assert f"| {row} | {' | '.join(f'{cell:.1f}' for cell in cells)} |" in log


def test_the_table_has_means_and_spreads(tmp_path, capsys):
    from study import table

    def write(losses: str, seed: int, recall: float, zero: float | None) -> None:
        ranks = {"t2v_r1": recall, "t2v_r10": recall + 20, "t2v_median_rank": 8.0}
        fine = {
            "retrieval": {"vtc": ranks, "rerank": ranks},
            "choices": {kind: {"vtc": 50.0, "vtm": 60.0} for kind in ("opposite", "swapped")},
            "qa": {"accuracy": 30.0 + seed},
        }
        shot = {} if zero is None else {"test": {"retrieval": {"vtc": {"t2v_r10": zero}}}}
        result = {"losses": losses, "seed": seed, "fine-tuned": {"test": fine}, "zero-shot": shot}
        (tmp_path / f"seed{seed}-{losses}.json").write_text(json.dumps(result))

    for seed, (none, everything) in enumerate([(2, 10), (4, 13)]):
        write("none", seed, none, None)
        write("all", seed, everything, 5.0)
    write("mlm+vtm", 0, 7, None)
    table(tmp_path, ["test"])
    lines = capsys.readouterr().out.splitlines()
    same = "60.0 ± 0.0 | 60.0 ± 0.0 | 30.5 ± 0.7"
    assert f"| none | 2 | 3.0 ± 1.4 | 23.0 ± 1.4 | 8.0 ± 0.0 | 23.0 ± 1.4 | {same} |  |" in lines
    assert f"| all | 2 | 11.5 ± 2.1 | 31.5 ± 2.1 | 8.0 ± 0.0 | 31.5 ± 2.1 | {same} | 5.0 ± 0.0 |" in lines
    assert "| mlm+vtm | 1 | 7.0 | 27.0 | 8.0 | 27.0 | 60.0 | 60.0 | 30.0 |  |" in lines
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_checkpointing_keeps_less_for_the_backward_pass(monkeypatch):
    import pretraining_cost as cost

    monkeypatch.setattr(cost, "ENTITIES", 3)
    monkeypatch.setattr(cost, "LENGTH", 6)
    config = tiny.config(entities=["fox", "owl", "bus"])
    batch = cost.batch_of(2, config)
    model = AlproForPreTraining(config).train()
    whole = cost.kept_for_backward(model, batch)
    model.activation_checkpointing_enable()
    assert 0 < cost.kept_for_backward(model, batch) < 0.7 * whole
    operations, _ = cost.counted(lambda: torch.ones(3, 4) @ torch.ones(4, 5))
    assert operations == 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("folder", "page", "rows"),
    [
        ("study", "experiments_log.md", 5),
        ("study/scale4", "experiments_log.md", 5),
        ("study/reference", "experiments.md", 9),
    ],
)
def test_the_pages_have_the_tables_of_the_results(folder, page, rows, tmp_path, capsys):
    from study import table

    for path in (DOCS / folder).glob("seed*.json"):
        shutil.copy(path, tmp_path)
    table(tmp_path, ["test", "test-hard"])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) == 2 * (2 + rows)
    assert set(printed) <= set((DOCS / page).read_text().splitlines())


def test_the_page_says_how_the_seeds_of_the_study_differ():
    page = " ".join((DOCS / "experiments.md").read_text().split())

    def found(losses, split, protocol):
        paths = [DOCS / "study" / "reference" / f"seed{seed}-{losses}.json" for seed in range(3)]
        results = [json.loads(path.read_text())["fine-tuned"][split]["retrieval"][protocol] for path in paths]
        return [result["t2v_r10"] for result in results]

    for protocol in ("reference", "vtc"):
        for split in ("test", "test-hard"):
            pairs = zip(found("all", split, protocol), found("mlm-vtm-vtc", split, protocol), strict=True)
            first, second, third = (f"{with_pem - without:+.1f}" for with_pem, without in pairs)
            assert f"{first}, {second} and {third}" in page
    for split in ("test", "test-hard"):
        best, pem, vtc = (found(losses, split, "reference") for losses in ("all", "mlm-vtm-pem", "mlm-vtm-vtc"))
        assert all(a > b and a > c for a, b, c in zip(best, pem, vtc, strict=True))
        first, second, third = (f"{value:.1f}" for value in found("mlm-vtm-whole", split, "vtc"))
        assert f"{first}, {second} and {third}" in page
        for sampling in ("uniform", "warm"):
            for protocol in ("reference", "vtc") if split == "test" else ("reference",):
                pairs = zip(
                    found(f"mlm-vtm-vtc-{sampling}", split, protocol),
                    found("mlm-vtm-vtc", split, protocol),
                    strict=True,
                )
                first, second, third = (f"{less_hard - hard:+.1f}" for less_hard, hard in pairs)
                assert f"{first}, {second} and {third}" in page
    for teacher in ("pem-young", "pem"):
        first, second, third = (f"{value:.1f}" for value in found(f"mlm-vtm-{teacher}", "test", "vtc"))
        assert f"{first}, {second} and {third}" in page


def test_the_page_has_the_numbers_of_the_models_trained_on(capsys):
    from retrain import print_table

    print_table(json.loads((DOCS / "study" / "retrain.json").read_text()))
    printed = [line.split("|")[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    shown = [line.split("|")[2:] for line in (DOCS / "experiments.md").read_text().splitlines()]
    assert len(printed) == 2 * (2 + 3)
    assert all(cells in shown for cells in printed)


@torch.no_grad()
def test_the_order_of_sequences_is_asked_in_every_wording(tmp_path):
    from measure import evaluate_order, read_rows

    folder = write_split(tmp_path, "dev", 24, progress=False)
    model, processor = (
        cls.from_pretrained(bundled_model("retrieval")) for cls in (AlproForVideoTextRetrieval, AlproProcessor)
    )
    rows = read_rows(folder, "retrieval.jsonl")
    states, _ = encode_rows(model, processor, rows, batch_size=8)
    place = states.video_ids.tolist()
    scenes = [draw_scene("dev", 0, number) for number in range(24)]
    sequences = [number for number, scene in enumerate(scenes) if scene.kind == "sequence"]
    assert sequences
    shown = read_rows(folder, "scenes.jsonl")
    found = evaluate_order(model, processor, states, shown)
    assert evaluate_order(model, processor, states, [row for row in shown if row["kind"] != "sequence"]) == {}
    assert list(found) == list(SEQUENCE)
    assert all(scores["n"] == len(sequences) for scores in found.values())
    wording, right = SEQUENCE[0], 0
    for number in sequences:
        true, false = caption_and_negatives(scenes[number], random.Random(f"order/{number}"), (wording,))
        assert opposite_kind(true, false[-1]) == "order" and true.count("first ") == 1
        texts = model.alpro.get_text_features(**processor(text=[true, false[-1]], return_tensors="pt")).pooler_output
        good, bad = (texts @ states.video_embeds[place.index(video_id(rows[number]))]).tolist()
        right += good > bad
    assert found[wording]["vtc"] == pytest.approx(100 * right / len(sequences))


@pytest.fixture
def printed(monkeypatch, capsys):
    """The lines of the tables that compare.py prints."""
    import compare

    def printed(models, *arguments):
        files = [f"{name}={path}" for name, path in models.items()]
        monkeypatch.setattr("sys.argv", ["compare.py", *files, *map(str, arguments)])
        compare.main()
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]

    return printed


STAGES = ("joint", "match-3", "match-2", "final", "crops", "match")


def test_the_page_compares_the_measured_models(tmp_path, printed):
    folder = DOCS / "study" / "edited"
    lines = (DOCS / "experiments.md").read_text().splitlines()
    stages = {name: folder / f"{name}.json" for name in STAGES}
    shown = printed({"version 0.1": folder / "version-0.1.json", **stages}, "--plot", tmp_path / "plot.png")
    assert len(shown) == (3 + len(STAGES)) + (2 + len(SEQUENCE))
    assert set(shown) <= set(lines)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    tests = {name: folder / f"tests-{name.replace(' ', '-')}.json" for name in ("version 0.1", "final", "match")}
    for split in ("test", "test-hard"):
        shown = printed(tests, "--split", split)
        assert len(shown) == 2 + 3
        assert set(shown) <= set(lines)
    with pytest.raises(SystemExit, match=r"no split 'nowhere'.*measure\.py --splits nowhere"):
        printed(tests, "--split", "nowhere")


def test_the_page_has_what_crops_taught_the_teacher():
    page = (DOCS / "experiments.md").read_text()
    teachers = json.loads((DOCS / "study" / "teacher-crops.json").read_text())["teachers"]
    shown = [("templates", "12"), ("templates", "1"), ("templates", "12 captions"), ("frames", "1"), ("frames", "8")]
    shown += [("share inside", "0.5 to 0.75"), ("share inside", "0.75 to 0.95"), ("whole clips of one sprite", "12")]
    for varied, value in shown:
        of = [teachers[name][varied][value] for name in ("before", "continued", "bundled")]
        cells = [" / ".join(f"{numbers[key]:.1f}" for key in ("top1", "top5", "kept")) for numbers in of]
        assert f"| {' | '.join(cells)} |\n" in page
    [(temperature, numbers)] = teachers["bundled"]["calibrated"].items()
    assert float(temperature) == AlproConfig.from_pretrained(bundled_model("retrieval")).pem_temperature
    usual = teachers["bundled"]["frames"]["4"]
    assert usual["top1"] > 50 and f"{usual['top1']:.1f} % are right" in " ".join(page.split())
    text = " ".join(page.split())
    assert f"keeps {numbers['kept']:.1f} % of the crops, {numbers['top1_kept']:.1f} % of these are right" in text
    assert f"{numbers['kept_empty']:.1f} % of the empty crops are kept" in text


def test_the_bundled_prompter_names_sprites_in_crops():
    from crops import draw_crops, embed

    folder = bundled_model("retrieval")
    prompter, info = AlproPrompterModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and tuple(prompter.config.entities) == SPRITES
    crops = draw_crops(100, seed=5)
    embeds = embed(prompter.alpro, AlproProcessor.from_pretrained(folder), crops, 4)
    labels = (embeds @ prompter.video_prompt_embeds.t() / prompter.label_temperature()).softmax(dim=1)
    held = [(number, name) for number, name in enumerate(crops.held()) if name is not None]
    right = sum(SPRITES[labels[number].argmax()] == name for number, name in held)
    assert right > 0.6 * len(held)  # 74 % of many
    kept = labels.max(dim=1).values >= prompter.config.pem_threshold
    assert kept[crops.empty()].float().mean() < 0.2
    assert kept.any()


@pytest.mark.slow
@torch.inference_mode()
def test_the_cards_of_the_bundled_models_name_their_limits(tmp_path):
    from measure import read_rows

    folder = write_split(tmp_path, "dev", 160, progress=False)
    model, processor = (
        cls.from_pretrained(bundled_model("retrieval")) for cls in (AlproForVideoTextRetrieval, AlproProcessor)
    )
    whole, left_out = 0, []
    for number, row in enumerate(read_rows(folder, "retrieval.jsonl")):
        kind, roles = content(draw_scene("dev", 0, number))
        if len(roles) != 2 or kind in ("relation", "sequence"):
            continue
        one, other = (f"{noun_phrase(sprite, True)} {PHRASES[action][0][0]}" for sprite, action in roles)
        logits = model(**processor(text=[f"{one} and {other}", one], videos=row["video"])).vtm_logits
        match = logits.softmax(dim=1)[:, 1]
        whole += match[0] > 0.5
        left_out.append(match[1])
    assert len(left_out) > 30 and whole >= 0.8 * len(left_out)
    assert sum(match < 0.1 for match in left_out) > 0.8 * len(left_out)  # "mostly gets a match near 0"
    answering = AlproForVideoQuestionAnswering.from_pretrained(bundled_model("qa"))
    asked = [row for row in read_rows(folder, "qa.jsonl") if row["question"].startswith("how many ")]
    answers, _ = answer_rows(answering, AlproProcessor.from_pretrained(bundled_model("qa")), asked)
    right = {}
    for row, label in zip(asked, answers.labels.tolist(), strict=True):
        right.setdefault(row["question"].split()[2], []).append(answering.config.id2label[label] == row["answer"])
    shares = {counted: sum(found) / len(found) for counted, found in right.items()}
    things = shares.pop("things")
    assert shares.keys() == {"animals", "foods", "vehicles"} and things > max(shares.values())


def test_the_page_has_the_answers_to_false_premises():
    page = " ".join((DOCS / "experiments.md").read_text().split())
    folder = DOCS / "study" / "edited" / "questions"
    joint, before = (
        json.loads((folder / f"{name}.json").read_text())["results"]["dev"]["qa"] for name in ("joint", "version-0.1")
    )
    assert f'answers "none" in {joint["false premise: none"]:.0f} %' in page
    assert f"names the other sprite in {joint['false premise: names the other']:.0f} %" in page
    assert f"named the other in {before['false premise: names the other']:.0f} %" in page
    assert f"Names are right in {joint['what: name']:.0f} % on `dev`" in page
    columns = ["accuracy", "what: name", "what: name in a relation", "accuracy_which_first", "false premise: none"]
    for name in ("version-0.1", "joint", "answer", "answer-2"):
        found = json.loads((folder / f"{name}.json").read_text())["results"]["dev"]["qa"]
        cells = [f"{found[column]:.1f}" for column in (*columns, "false premise: names the other")]
        assert f"| {name.replace('-0', ' 0')} | {' | '.join(cells)} |" in page
    new, before = (accuracy_of_tests(folder / f"tests-{name}.json") for name in ("answer-2", "version-0.1"))
    assert f"it is right in {new} %, version 0.1 in {before} %" in page


def accuracy_of_tests(file):
    results = json.loads(file.read_text())["results"]
    return " and ".join(f"{results[split]['qa']['accuracy']:.1f}" for split in ("test", "test-hard"))


RECIPE = ("joint", "joint-2", "order", "wordings", "crops", "match")


def test_the_page_has_what_the_recipe_reached(printed):
    folder = DOCS / "study" / "recipe"
    lines = (DOCS / "experiments.md").read_text().splitlines()
    page = " ".join(" ".join(lines).split())

    def shown(models, *arguments):
        found = printed(models, *arguments)
        assert set(found) <= set(lines)
        return len(found)

    assert shown({name: folder / f"{name}.json" for name in RECIPE}) == (2 + len(RECIPE)) + (2 + len(SEQUENCE))
    seeds = {f"seed {seed}": folder / "quarter" / f"seed{seed}.json" for seed in range(3)}
    assert shown(seeds, "--spread") == 2 + len(seeds) + 1
    tests = {"version 0.1": DOCS / "study" / "edited" / "tests-version-0.1.json"}
    tests |= {"continued": DOCS / "study" / "edited" / "tests-match.json"}
    tests |= {"recipe": Path(bundled_model("retrieval")) / "results.json"}
    for split in ("test", "test-hard"):
        assert shown(tests, "--split", split) == 2 + len(tests)
    columns = ("accuracy", "what: name", "what: name in a relation", "accuracy_which_first", "which way: spin")
    columns += ("false premise: none", "false premise: names the other")
    for name in ("joint", "joint-2", "answer", "answer-2"):
        found = json.loads((folder / f"{name}.json").read_text())["results"]["dev"]["qa"]
        assert f"| {name} | {' | '.join(f'{found[column]:.1f}' for column in columns)} |" in lines
    assert f"right in {accuracy_of_tests(Path(bundled_model('qa')) / 'results.json')} %" in page
    with pytest.raises(SystemExit):
        printed({"seed 0": seeds["seed 0"]}, "--spread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stills", "--start", "x"], "--start does not go with stills"),
        (["all", "--start", "x"], "--start does not go with all"),
        (["joint"], "align holds no model; run that stage first"),
        (["match", "--start", "nowhere"], "nowhere holds no model"),
        (["joint", "--without", "order", "luck"], "invalid choice: 'luck'"),
    ],
)
def test_stages_check_their_inputs_before_they_train(options, message, monkeypatch, capsys, tmp_path):
    import train

    monkeypatch.setattr("sys.argv", ["train.py", *options, "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        train.main()
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_recipe_of_the_bundled_models_from_random_weights_to_their_folders(tmp_path, monkeypatch, capsys):
    import train

    def run(*options, output="."):
        command = ["train.py", *options, "--output", str(tmp_path / output), "--threads", "1"]
        monkeypatch.setattr("sys.argv", command)
        train.main()

    def log(stage):
        return json.loads((tmp_path / stage / "trainer_state.json").read_text())["log_history"][0]

    small = {name: replace(stage, rows=8) for name, stage in train.STAGES.items()}
    monkeypatch.setattr(train, "STAGES", small)
    drawn = []
    rows_class = train.SpriteRows
    monkeypatch.setattr(train, "SpriteRows", lambda *a, **k: drawn.append((a, k)) or rows_class(*a, **k))
    for name in small:
        run(name, "--steps", "2")
        shutil.rmtree(tmp_path / "vocabulary", ignore_errors=True)  # later stages take that of their start
    assert all("accuracy" in log(name) for name in ("stills", "classify", "classify-2"))
    assert "loss_vtm" not in log("align") and log("align")["loss_vtc"] > 0
    assert {"loss_vtc", "loss_vtm", "loss_answer"} <= set(log("joint"))
    assert all("loss_vtm" in log(name) for name in ("order", "wordings", "match"))
    assert "accuracy" in log("answer")
    words = {(tmp_path / name / "tokenizer.json").read_text() for name in small}
    assert len(words) == 1
    # each stage draws clips of its own, all of combinations that dev does not show
    assert len({options["seed"] for _, options in drawn}) == len(small)
    assert {options["split"] for _, options in drawn} == {"train-dev"}

    capsys.readouterr()
    run("all", "--steps", "2")
    assert capsys.readouterr().out.count("has ended; skipped") == len(small)

    run("export", "--target", str(tmp_path / "bundled"))
    for task, stage in train.EXPORTED.items():
        folder, source = tmp_path / "bundled" / f"sprites-{task}", tmp_path / stage
        exported, trained = (load_file(path / "model.safetensors") for path in (folder, source))
        prompts = {name: exported.pop(name) for name in list(exported) if name.endswith("_prompt_embeds")}
        assert len(prompts) == 2 * (task == "retrieval")
        assert set(exported) == set(trained)
        assert all(torch.equal(weights, trained[name].half()) for name, weights in exported.items())
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
        assert (folder / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    prompter, info = AlproPrompterModel.from_pretrained(
        tmp_path / "bundled" / "sprites-retrieval", output_loading_info=True
    )
    assert not info["missing_keys"] and len(prompter.config.entities) == len(SPRITES)
    assert prompter.label_temperature().item() == pytest.approx(prompter.config.pem_temperature)
    assert prompter.pseudo_labels(torch.zeros(1, 4, 3, 64, 64)).sum().item() == pytest.approx(1)
    # half of the training in `joint` are pairs: the phases of its rows follow from what they see, not from all steps
    [pairs] = [options for (task, *_), options in drawn if task == "retrieval" and options["seed"] == 1000]
    assert pairs["wordings"][0][0] == 4 and pairs["wordings"][1][0] == 8

    drawn.clear()
    for method in ("questions", "negatives", "false premises", "one wording"):
        run("joint", "--steps", "2", "--without", method, "--start", str(tmp_path / "align"), output=method)
    assert "loss_answer" not in log("questions/joint") and "loss_answer" in log("negatives/joint")
    pairs, asked = ([options for (task, *_), options in drawn if task == kind] for kind in ("retrieval", "qa"))
    assert [options["negatives"] for options in pairs] == [True, False, True, True]
    assert [options["wordings"][0][0] for options in pairs if options["wordings"]] == [8, 4, 0]
    assert [options["false_premises"] for options in asked] == [True, True, False, True]
