"""A training that starts from BLIP: its first step has BLIP's own numbers, and what it trains may rank."""

import json

import pytest
import torch
from fixtures.blip import blip_cosines, write_blip
from fixtures.gallery import write_video

from alpro_hf import AlproForVideoTextRetrieval, AlproModel, AlproProcessor, VideoIndex
from alpro_hf.cli.main import main
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.model.matching_alpro import matching_problem
from alpro_hf.training.recipe import AlproRecipe, RecipeError, read_recipe
from alpro_hf.training.start import TrainError, start_model, start_processor

TEXTS = ["a fox moves", "the dog runs left", "a cat spins", "the pizza shrinks", "two things here", "a video of a dog"]
SMALL = {"num_frames": 3, "fusion_layers": 2, "global_batch_size": 3, "max_steps": 2, "logging_steps": 1}
SMALL |= {"dataloader_num_workers": 0, "dataloader_pin_memory": "false", "use_cpu": "true", "disable_tqdm": "true"}


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    return folder, write_blip(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_video(folder / f"{seed}.mp4", seed, frames=5 + seed)) for seed in range(len(TEXTS))]


@pytest.fixture(scope="module")
def rows(clips, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"video": c, "text": t}) + "\n" for c, t in zip(clips, TEXTS, strict=True)))
    return path


def recipe(**values):
    known = {name: value for name, value in read_recipe("blip-retrieval").items() if hasattr(AlproRecipe(), name)}
    return AlproRecipe(**known | {"num_frames": 3, "fusion_layers": 2} | values)


def inputs_of(clips, processor):
    return processor(text=TEXTS, videos=clips)


@torch.no_grad()
def cosines(model, inputs):
    outputs = model.base_model(**inputs)
    return outputs.text_embeds @ outputs.video_embeds.t()


def test_the_start_has_the_cosines_of_blip(blip, clips):
    folder, original = blip
    model, fresh = start_model("retrieval", recipe(), model=str(folder))
    assert fresh == ["2 fusion layers from the last text layers", "temperature", "vtm_head"]
    processor = start_processor(recipe(), model.config, processor=str(folder))
    assert (processor.video_processor.num_frames, processor.tokenizer.model_max_length) == (3, 35)
    inputs = inputs_of(clips, processor)
    assert inputs["pixel_values_videos"].shape == (6, 3, 3, 32, 32)
    expected = blip_cosines(original, inputs)
    assert expected.std() > 0.02  # texts and clips do differ
    torch.testing.assert_close(cosines(model.eval(), inputs), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("task", ["retrieval", "prompter"])
def test_a_folder_with_converted_weights_starts_equally(blip, tmp_path, task):
    folder, _ = blip
    AlproModel.from_image_text_pretrained(str(folder)).save_pretrained(tmp_path)
    AlproProcessor.from_image_text_pretrained(str(folder)).save_pretrained(tmp_path)
    direct, _ = start_model(task, recipe(), model=str(folder))
    model, fresh = start_model(task, recipe(), model=str(tmp_path))
    assert "2 fusion layers from the last text layers" in fresh
    ours, theirs = model.base_model.state_dict(), direct.base_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    layers = model.base_model.text_model.layers
    assert len(layers) == 6 and model.config.text_config.fusion_layer == 4
    for added, copied in ((4, 2), (5, 3)):
        pairs = zip(layers[added].parameters(), layers[copied].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert model.config.video_config.cls_per_frame
    first = start_processor(recipe(), model.config, processor=str(tmp_path))
    second = start_processor(recipe(), model.config, processor=str(folder))
    assert first.video_processor.to_dict() == second.video_processor.to_dict()


def test_training_begins_with_the_metrics_of_blip_and_ends_with_a_head_that_ranks(
    blip, clips, rows, tmp_path, capsys, caplog
):
    folder, original = blip
    values = SMALL | {"eval_on_start": "true", "eval_protocol": "rerank", "rerank_k": 2, "augmentation": "none"}
    settings = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    argv = [
        "train",
        "--recipe",
        "blip-retrieval",
        "--data",
        str(rows),
        "--eval-data",
        str(rows),
        "--model",
        str(folder),
    ]
    assert main([*argv, "--output", str(tmp_path), *settings]) == 0
    said = capsys.readouterr().err
    assert f"start: {folder}; new weights: 2 fusion layers from the last text layers, temperature, vtm_head" in said
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    before, after = [entry for entry in history if "eval_t2v_r1" in entry][:2]

    processor = AlproProcessor.from_pretrained(tmp_path)
    expected = retrieval_metrics(blip_cosines(original, inputs_of(clips, processor)), torch.arange(len(TEXTS)))
    assert {name: before[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert "eval_vtc_t2v_r1" not in before  # the head was not trained yet
    assert "The protocol rerank needs a matching head" in caplog.text
    assert "eval_vtc_t2v_r1" in after

    model = AlproForVideoTextRetrieval.from_pretrained(tmp_path)
    assert model.config.matching_trained is True and matching_problem(model) is None
    assert json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())["matching_trained"] is True
    index = VideoIndex.build(model, processor, clips, progress=False)
    assert index.search("a fox moves", rerank=2)[0].match_probability is not None

    # the same command again has no step left, and must not forget what was trained
    assert main([*argv, "--output", str(tmp_path), *settings]) == 0
    assert AlproForVideoTextRetrieval.from_pretrained(tmp_path).config.matching_trained is True


def test_towers_of_two_widths_train_without_fusion_layers(tmp_path, clips, rows, capsys):
    write_blip(tmp_path / "large", vision={"hidden_size": 48})
    start = str(tmp_path / "large")
    with pytest.raises(TrainError, match=r"fusion_layers 2 .* 32 \(text\) and 48 \(video\)"):
        start_model("retrieval", recipe(), model=start)
    with pytest.raises(TrainError, match=r"fusion_layers 9 .* which are 4"):
        start_model("retrieval", recipe(fusion_layers=9), model=start)
    with pytest.raises(RecipeError, match="fusion_layers=-1"):
        recipe(fusion_layers=-1)
    argv = ["train", "--recipe", "blip-retrieval", "--data", str(rows), "--model", start]
    values = SMALL | {"fusion_layers": 0}
    settings = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    assert main([*argv, "--output", str(tmp_path / "refused"), *settings]) == 1
    assert "vtm_weight=1.0 trains a matching head on fusion layers, and the model has none" in capsys.readouterr().err
    assert main([*argv, "--output", str(tmp_path / "run"), *settings, "--vtm_weight", "0"]) == 0
    model = AlproModel.from_pretrained(tmp_path / "run")
    index = VideoIndex.build(model, AlproProcessor.from_pretrained(tmp_path / "run"), clips, progress=False)
    assert len(index.search("a fox moves")) == len(clips)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(TrainError, match="type 'bert', neither an ALPRO model nor BLIP"):
        start_model("retrieval", recipe(), model=str(tmp_path))
