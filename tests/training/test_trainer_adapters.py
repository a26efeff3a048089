"""Adapters of PEFT: they train, resume, are saved, loaded and merged, and every tool takes a model that has them."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers.integrations.peft
from fixtures import colours
from safetensors.torch import load_file

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    build_prompter,
)
from alpro_hf.adapters import has_adapters, load_adapters, lora_model, merged
from alpro_hf.data.collator import AlproCollator
from alpro_hf.evaluation.measure import measure_answers, measure_retrieval
from alpro_hf.hub.export import export
from alpro_hf.inference.question_answering import ask
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.matching_alpro import encode_clips, vtm_scores
from alpro_hf.model.pipeline_alpro import TextVideoRetrievalPipeline, VideoQuestionAnsweringPipeline
from alpro_hf.model.wrappers_alpro import plain_model
from alpro_hf.sprites.render import write_split
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.checkpoints import checkpoint_problem
from alpro_hf.training.recipe import RecipeError
from alpro_hf.training.run import TrainingRun, train
from alpro_hf.training.trainer import AlproTrainer

peft = pytest.importorskip("peft", reason="needs PEFT: pip install 'alpro-hf[peft]'")

RETRIEVAL, ANSWERING = AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering
LORA = {"r": 8, "lora_alpha": 32}


@pytest.fixture
def add_adapter_allowed(monkeypatch):
    """transformers asks for a minimal version of PEFT that may be newer than the newest release."""
    needed = transformers.integrations.peft.MIN_PEFT_VERSION
    if tuple(map(int, peft.__version__.split(".")[:2])) < tuple(map(int, needed.split(".")[:2])):
        monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", peft.__version__)


def build(model_class, seed: int = 0):
    torch.manual_seed(seed)
    return model_class(colours.config()).eval()


def wrapped(model_class, seed: int = 0, **settings):
    torch.manual_seed(seed + 1)
    return lora_model(build(model_class, seed), LORA | settings)


def with_added_adapter(model_class, seed: int = 0):
    model = build(model_class, seed)
    torch.manual_seed(seed + 1)
    heads = [name for name in ("vtm_head", "classifier") if hasattr(model, name)]
    model.add_adapter(peft.LoraConfig(**LORA, target_modules=["qkv", "proj"], modules_to_save=heads or None))
    return model


def randomised(model):
    """Adapters start at zero; a test of them needs others."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def trainer_for(model, folder: Path, **fields) -> AlproTrainer:
    is_qa = isinstance(plain_model(model), ANSWERING)
    rows = colours.question_rows() if is_qa else colours.retrieval_rows()
    task = {"task": "qa", "label2id": colours.ANSWERS} if is_qa else {"task": "retrieval"}
    return AlproTrainer(
        model=model,
        args=colours.arguments(folder, **fields),
        data_collator=AlproCollator(colours.processor(), **task),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=colours.processor(),
    )


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def inputs():
    rows = colours.retrieval_rows()
    return colours.processor()(text=[row["text"] for row in rows], videos=[row["video"] for row in rows])


@torch.no_grad()
def outputs_of(model) -> torch.Tensor:
    found = model.eval()(**inputs())
    return found["logits"] if "logits" in found else torch.cat([found[name].flatten() for name in found_names(found)])


def found_names(found) -> list[str]:
    return [name for name in ("logits_per_text", "vtm_logits") if name in found]


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [AlproModel, RETRIEVAL, ANSWERING])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_lora_learns_and_leaves_the_weights(model_class, checkpointing, tmp_path):
    model = wrapped(model_class)
    before = {name: value.clone() for name, value in model.named_parameters()}
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = trainer_for(model, tmp_path, max_steps=60, **(reentrant if checkpointing else {}))
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert all("lora_" in name or "modules_to_save" in name for name in changed)
    tower = "video_model.layers.0.{}.lora_B"
    for layer in ("temporal_attn.qkv", "spatial_attn.qkv", "spatial_attn.proj"):
        assert any(tower.format(layer) in name for name in changed), layer  # gradients reach both towers
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy" if model_class is ANSWERING else "eval_t2v_r1"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("way", [wrapped, with_added_adapter])
@pytest.mark.parametrize("model_class", [RETRIEVAL, ANSWERING])
@pytest.mark.usefixtures("add_adapter_allowed")
def test_checkpoints_hold_adapters_and_resume(way, model_class, tmp_path):
    straight = trainer_for(way(model_class), tmp_path / "straight", max_steps=8)
    straight.train()
    trainer_for(way(model_class), tmp_path / "run", max_steps=8, save_strategy="steps", save_steps=4).train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= names
    assert "model.safetensors" not in names
    assert checkpoint_problem(checkpoint) is None
    # from a model whose adapter starts elsewhere: everything that counts is in the checkpoint
    resumed = trainer_for(randomised(way(model_class)), tmp_path / "run", max_steps=8, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed)[-4:] == pytest.approx(losses(straight)[-4:], abs=1e-6)
    torch.testing.assert_close(outputs_of(resumed.model), outputs_of(straight.model), atol=1e-5, rtol=1e-4)

    adapter = checkpoint / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-2])
    assert "adapter_model.safetensors cannot be read" in (checkpoint_problem(checkpoint) or "")


@pytest.mark.slow
@pytest.mark.parametrize("way", [wrapped, with_added_adapter])
@pytest.mark.parametrize("model_class", [RETRIEVAL, ANSWERING, AlproModel])
@pytest.mark.usefixtures("add_adapter_allowed")
def test_the_collator_is_made_for_the_model_inside(way, model_class, clips, tmp_path):
    if model_class is ANSWERING:
        rows = [{"video": row["video"], "question": "which colour ?", "answer": "red"} for row in clips]
    else:
        rows = [{"video": row["video"], "text": "red and green"} for row in clips]
    rows.append(rows[0] | {"video": str(tmp_path / "missing.mp4")})
    fields = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "logging_steps": 1, "disable_tqdm": True}
    fields |= {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2, "max_dropped_share": 1.0}

    def trainer(**more) -> AlproTrainer:
        args = AlproTrainingArguments(**(fields | more))
        return AlproTrainer(way(model_class), args, processing_class=colours.processor(), train_dataset=rows)

    metrics = trainer(max_steps=4).train().metrics
    assert metrics["train_steps"] == 4 and 4 <= metrics["train_rows"] <= 7  # the missing one is in each of two epochs
    for name in ("checkpoint-2", "checkpoint-4"):
        assert AlproProcessor.from_pretrained(tmp_path / "run" / name).video_processor.num_frames == colours.FRAMES
        assert (tmp_path / "run" / name / "adapter_model.safetensors").is_file()
    resumed = trainer(max_steps=6)
    assert resumed.train(resume_from_checkpoint=True).metrics["train_steps"] == 2
    assert resumed.state.global_step == 6 and resumed.data_collator.dropped


@pytest.mark.parametrize("way", [wrapped, with_added_adapter])
@pytest.mark.usefixtures("add_adapter_allowed")
def test_the_best_adapters_come_back(way, tmp_path):
    fields = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    fields |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_t2v_mean_rank"}
    trainer = trainer_for(way(RETRIEVAL), tmp_path, max_steps=8, greater_is_better=True, **fields)  # the worst one
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-8"
    saved = load_file(best / "adapter_model.safetensors")
    now = dict(plain_model(trainer.model).named_parameters())
    loras = {name.removeprefix("base_model.model."): value for name, value in saved.items() if "lora_" in name}
    assert loras
    for name, value in loras.items():
        assert torch.equal(now[name.replace(".weight", ".default.weight")], value)


@pytest.mark.parametrize("way", [wrapped, with_added_adapter])
@pytest.mark.parametrize("model_class", [AlproModel, RETRIEVAL, ANSWERING, AlproForPreTraining])
@pytest.mark.usefixtures("add_adapter_allowed")
def test_merging_gives_a_plain_model_with_the_same_outputs(way, model_class, tmp_path):
    model = randomised(way(model_class)).eval()
    before, expected = outputs_of(build(model_class)), outputs_of(model)
    assert (before - expected).abs().max() > 1e-3
    plain = merged(model)
    assert type(plain) is model_class and not has_adapters(plain) and has_adapters(plain_model(model))
    assert set(plain.state_dict()) == set(build(model_class).state_dict())
    torch.testing.assert_close(outputs_of(plain), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(outputs_of(model), expected)  # the model itself is as it was
    plain.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    assert not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(outputs_of(model_class.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=1e-3)
    assert merged(plain) is plain
    if way is wrapped:
        torch.testing.assert_close(outputs_of(model.merge_and_unload()), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("add_adapter_allowed")
def test_a_saved_adapter_loads_by_the_library_s_own_ways(tmp_path):
    build(RETRIEVAL).save_pretrained(tmp_path / "base")
    model = randomised(lora_model(RETRIEVAL.from_pretrained(tmp_path / "base"), LORA))
    model.save_pretrained(tmp_path / "adapter")
    expected = outputs_of(model)
    base = RETRIEVAL.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(outputs_of(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), expected)
    torch.testing.assert_close(outputs_of(RETRIEVAL.from_pretrained(tmp_path / "adapter")), expected)

    other = with_added_adapter(RETRIEVAL)
    load_adapters(other, tmp_path / "adapter")
    smaller = build(RETRIEVAL)
    smaller.add_adapter(peft.LoraConfig(**LORA, target_modules=["qkv"]))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_adapters(smaller, tmp_path / "adapter")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[dict]:
    folder = write_split(tmp_path_factory.mktemp("sprites"), "test", 3, progress=False)
    rows = [json.loads(line) for line in (folder / "retrieval.jsonl").read_text().splitlines()]
    return [row | {"video": str(folder / row["video"])} for row in rows]


WRAPPERS = {
    "peft": lambda model: model,
    "merged": merged,
    "compiled": torch.compile,  # not run: every tool reads what is inside
    "data parallel": lambda model: torch.nn.DataParallel(model),
    "both": lambda model: torch.compile(torch.nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@torch.no_grad()
def test_every_tool_takes_a_wrapped_model(wrapper, clips, tmp_path):
    processor = colours.processor()
    rows = colours.retrieval_rows()
    model = randomised(wrapped(RETRIEVAL)).eval()
    plain, given = merged(model), wrapper(model)
    for one in (plain, given):  # what is new may not re-rank
        plain_model(one).config.matching_trained = True
    pixels = inputs()["pixel_values_videos"]
    for one, other in zip(encode_clips(given, pixels), encode_clips(plain, pixels), strict=True):
        torch.testing.assert_close(one.embed, other.embed, atol=1e-4, rtol=1e-3)
    states = plain.alpro.get_text_features(**{k: v for k, v in inputs().items() if "pixel" not in k}), pixels
    tokens = torch.stack([clip.tokens for clip in encode_clips(plain, pixels)])
    pairs = torch.tensor([[0, 1], [1, 1]])
    scores = [vtm_scores(one, states[0].last_hidden_state, None, tokens, pairs) for one in (given, plain)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-3)

    results = [measure_retrieval(one, processor, rows).metrics for one in (given, plain)]
    assert results[0] == pytest.approx(results[1], abs=1e-3)
    indexes = [VideoIndex.build(one, processor, [row["video"] for row in clips]) for one in (given, plain)]
    found = [[(hit.path, hit.score) for hit in index.search("red", top_k=3, rerank=2)] for index in indexes]
    assert [path for path, _ in found[0]] == [path for path, _ in found[1]]
    assert [score for _, score in found[0]] == pytest.approx([score for _, score in found[1]], abs=1e-3)
    searching = TextVideoRetrievalPipeline(model=given, processor=processor)
    assert len(searching("red", videos=[row["video"] for row in clips], rerank=2)) == 3

    answering = wrapper(randomised(wrapped(ANSWERING)).eval())
    outcome = measure_answers(answering, processor, colours.question_rows())
    assert 0 <= outcome.metrics["accuracy"] <= 100
    assert len(ask(answering, processor, clips[0]["video"], ["which colour ?"], top_k=2)[0]) == 2
    assert VideoQuestionAnsweringPipeline(model=answering, processor=processor)(clips[0]["video"], "which colour ?")

    written = export(given, tmp_path / "exported", processor=processor)
    torch.testing.assert_close(outputs_of(RETRIEVAL.from_pretrained(written)), outputs_of(plain), atol=1e-4, rtol=1e-3)
    teacher = build_prompter(given, processor, ["red", "green"], progress=False)
    again = build_prompter(plain, processor, ["red", "green"], progress=False)
    torch.testing.assert_close(teacher.video_prompt_embeds, again.video_prompt_embeds, atol=1e-4, rtol=1e-3)


def test_without_peft_nothing_changes(monkeypatch):
    model = build(RETRIEVAL)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install \"alpro-hf\[peft\]\""):
        lora_model(model, LORA)
    monkeypatch.delitem(sys.modules, "peft")
    assert merged(model) is model and not has_adapters(model)


def test_a_recipe_with_lora(clips, tmp_path):
    build(RETRIEVAL).save_pretrained(tmp_path / "start")
    colours.processor().save_pretrained(tmp_path / "start")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"video": row["video"], "text": "red and green"}) + "\n" for row in clips))
    recipe = tmp_path / "lora.yaml"
    recipe.write_text(
        "task: retrieval\nlearning_rate: 1e-3\nmax_steps: 2\nglobal_batch_size: 3\nlora:\n  r: 4\n  lora_alpha: 16\n"
    )
    settings = {"use_cpu": True, "disable_tqdm": True, "augmentation": "none"}

    def run(**fields) -> TrainingRun:
        given = {"recipe": str(recipe), "data": [str(data)], "output": tmp_path / "out", "settings": settings}
        return TrainingRun(**(given | {"model": str(tmp_path / "start")} | fields))

    assert train(run())
    output = tmp_path / "out"
    assert not (output / "adapter_config.json").exists()  # the library would add the adapter a second time
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == 4
    start = RETRIEVAL.from_pretrained(tmp_path / "start")
    trained = RETRIEVAL.from_pretrained(output)
    again = peft.PeftModel.from_pretrained(start, output / "adapter")
    torch.testing.assert_close(outputs_of(trained), outputs_of(again), atol=1e-5, rtol=1e-4)
    weight = "alpro.video_model.layers.0.spatial_attn.qkv.weight"
    before = load_file(tmp_path / "start" / "model.safetensors")[weight]
    assert not torch.equal(trained.state_dict()[weight], before)
    assert json.loads((output / "recipe.json").read_text())["lora"] == {"r": 4, "lora_alpha": 16}

    with pytest.raises(ValueError, match=r"'rank'.* is not a LoraConfig"):
        train(run(settings=settings | {"lora": {"rank": 4}}, output=tmp_path / "wrong"))
    with pytest.raises(RecipeError, match="lora is for fine-tuning"):
        train(run(task="pretrain", recipe="pretrain", settings=settings | {"lora": {"r": 4}}))
