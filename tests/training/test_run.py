"""`alpro train` as a user runs it: the bundled recipes, made small by options, on clips in files."""

import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from datasets import Dataset
from fixtures import gallery, tiny
from fixtures.processes import environment, run_together
from PIL import Image
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer, HfArgumentParser, ViTConfig, ViTModel

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
)
from alpro_hf.cli.main import main, parse_arguments
from alpro_hf.cli.train import SHOWN, given_settings
from alpro_hf.data.augmentation import AlproAugmentation
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.callbacks import StopWhenTerminated
from alpro_hf.training.checkpoints import checkpoint_problem
from alpro_hf.training.recipe import (
    FIELDS,
    AlproRecipe,
    RecipeError,
    batch_per_device,
    read_recipe,
    recipe_names,
    settings,
)
from alpro_hf.training.run import MAY_CHANGE_ON_RESUME, TrainingRun, resolve
from alpro_hf.training.run import train as run_training

ENTITIES = ["fox", "dog", "cat"]
# what makes a bundled recipe small; options on the command line win over it
SMALL = {
    "image_size": 16,
    "num_frames": 2,
    "text_length": 12,
    "global_batch_size": 4,
    "max_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": "false",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "num_entities": 3,
}


def alpro_train(*argv):
    return main(["train", *map(str, argv)])


def small(**values):
    return [word for name, value in (SMALL | values).items() for word in (f"--{name}", str(value))]


def train(*argv, **values):
    return alpro_train(*argv, *small(**values))


def log_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def clips(encode):
    return [str(encode(f"{name}.mp4", num_frames=12, gop=gop)) for gop, name in enumerate(("a", "b", "c", "d"), 4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, clips):
    """Folder of rows for every task, and of the models to start from."""
    folder = tmp_path_factory.mktemp("train")
    texts = ["a fox moves", "the dog runs left", "a cat spins", "pizza and fox"]
    write_lines(folder / "clips.jsonl", [{"video": c, "text": t} for c, t in zip(clips, texts, strict=True)])
    questions = [("what is this", "fox"), ("how many things", "two"), ("which way", "left"), ("what moves", "fox")]
    rows = [{"video": c, "question": q, "answer": a} for c, (q, a) in zip(clips, questions, strict=True)]
    write_lines(folder / "questions.jsonl", rows)
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 30), colour).save(folder / f"{colour}.png")
        texts[i] = f"the {ENTITIES[i % 3]} here"
    images = [str(folder / f"{colour}.png") for colour in ("red", "green", "blue", "white")]
    Dataset.from_dict({"image": images, "text": texts}).to_parquet(str(folder / "images.parquet"))
    (folder / "entities.txt").write_text("".join(f"{name} {9 - i}\n" for i, name in enumerate([*ENTITIES, "pizza"])))
    gallery.write_model(folder / "retrieval", "retrieval")
    gallery.write_model(folder / "qa", "qa")
    torch.manual_seed(1)
    config = tiny.config(text={"max_position_embeddings": 32}, entities=ENTITIES, pem_threshold=0.0)
    prompter = AlproPrompterModel(config)
    with torch.no_grad():
        for embeds in (prompter.video_prompt_embeds, prompter.image_prompt_embeds):
            embeds.copy_(torch.randn_like(embeds))
    prompter.save_pretrained(folder / "prompter")
    AlproForPreTraining(config).save_pretrained(folder / "pretrained")
    for name in ("prompter", "pretrained"):
        AlproProcessor.from_pretrained(folder / "retrieval").save_pretrained(folder / name)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    ViTModel(ViTConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8)).save_pretrained(folder / "vit")
    BertModel(BertConfig(**sizes, num_hidden_layers=2, vocab_size=50, max_position_embeddings=20)).save_pretrained(
        folder / "bert"
    )
    vocab = AlproProcessor.from_pretrained(folder / "retrieval").tokenizer.get_vocab()
    BertTokenizer(vocab=vocab).save_pretrained(folder / "bert")
    return folder


# ------------------------------------------------------------------------------------------------------------- recipes


# recipe -> learning rate, rows of a step, accumulation, epochs or steps, frames, tokens, gradient clip
PAPER = {
    "prompter": (1e-4, 256, 1, 100_000, 4, 30, 20),
    "pretrain": (1e-4, 256, 1, 100_000, 4, 30, 20),
    "msrvtt-retrieval": (2.5e-5, 64, 1, 5, 8, 40, 5),
    "didemo-retrieval": (4e-5, 96, 1, 10, 8, 50, 20),
    "msrvtt-qa": (5e-5, 192, 2, 10, 16, 40, 5),
    "msvd-qa": (5e-5, 192, 2, 15, 16, 40, 20),
}


@pytest.mark.parametrize("name", PAPER)
def test_bundled_recipes_hold_the_values_of_the_paper(name):
    values = read_recipe(name)
    found = (
        values["learning_rate"],
        values["global_batch_size"],
        values.get("gradient_accumulation_steps", 1),
        values["max_steps"] if "max_steps" in values else values["num_train_epochs"],
        values["num_frames"],
        values["text_length"],
        values["max_grad_norm"],
    )
    assert found == PAPER[name]
    pretraining = values["task"] in ("prompter", "pretrain")
    assert values["warmup_steps"] == (0.05 if pretraining else 0.1)
    assert values["augmentation"] == ("pretrain" if pretraining else "finetune")
    assert (values["adam_beta1"], values["adam_beta2"], values["weight_decay"]) == (0.9, 0.98, 1e-3)
    # of the released code: adamw.py, randaugment.py, timesformer_divst_8x32_224_k600.json
    assert (values["adam_epsilon"], values["randaugment"], values["drop_path_rate"]) == (1e-6, "released", 0.1)
    # the batch of one of its devices: 256 / 16, 64 / 8 and 96 / 8
    assert values.get("vtm_pool") == {"pretrain": 16, "msrvtt-retrieval": 8, "didemo-retrieval": 12}.get(name)
    assert (values["lr_scheduler_type"], values["image_size"], values["train_sampling"]) == ("linear", 224, "headtail")
    assert values["seed"] == 42
    assert values.get("num_answers") == {"msrvtt-qa": 1500, "msvd-qa": 2423}.get(name)


def test_all_bundled_recipes_are_known_here_and_usable():
    assert set(recipe_names()) == {*PAPER, "blip-retrieval"}  # BLIP's is not of the paper, see `test_start.py`
    own = {name: {k: v for k, v in read_recipe(name).items() if hasattr(AlproRecipe(), k)} for name in PAPER}
    assert AlproRecipe(**own["pretrain"]).pem_threshold == 0.2
    assert AlproRecipe(**own["pretrain"]).mlm_probability == 0.15
    assert AlproRecipe(**own["prompter"]).num_entities == 1000
    assert AlproRecipe(**own["prompter"]).prompt_length == 15


def test_a_yaml_recipe_is_read_like_json(tmp_path):
    values = read_recipe("msvd-qa")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "mine.json").write_text(json.dumps(values))
    assert read_recipe(tmp_path / "mine.yaml") == read_recipe(tmp_path / "mine.json") == values
    # YAML takes 1e-5 for a word
    (tmp_path / "rate.yml").write_text("learning_rate: 1e-5\nbf16: yes\n")
    assert read_recipe(tmp_path / "rate.yml") == {"learning_rate": 1e-5, "bf16": True}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"learning_rte": 1}', r"mine.json: unknown key 'learning_rte'. Did you mean learning_rate"),
        ('{"frames": 1}', r"unknown key 'frames'. Did you mean .*num_frames"),
        ('{"qqqq": 1}', r"unknown key 'qqqq'. See alpro train --help"),
        ('{"output_dir": "x"}', r"'output_dir' is decided by the command"),
        ('{"num_frames": 4.5}', r"mine.json: num_frames=4.5 must be a whole number"),
        ('{"num_frames": true}', r"num_frames=True must be a whole number"),
        ('{"learning_rate": "fast"}', r"learning_rate='fast' must be a number"),
        ('{"bf16": "perhaps"}', r"bf16='perhaps' must be true or false"),
        ('{"augmentation": "strong"}', r"augmentation='strong' must be one of pretrain, finetune, none"),
        ('{"leave_out": "rotate"}', r"leave_out='rotate' must be a list"),
        ('{"task": "captioning"}', r"task='captioning' is unknown"),
        ("[1]", r"mine.json must hold one object"),
        ("{", r"mine.json is not a recipe"),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path, content, message):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "mine.json")


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(RecipeError, match=r"'msrvtt-retrival'.*didemo-retrieval.*Did you mean msrvtt-retrieval\?"):
        read_recipe("msrvtt-retrival")


@pytest.mark.parametrize("values", [{"num_frames": 0}, {"text_length": 2}, {"leave_out": ["blur"]}])
def test_impossible_values_are_refused(values):
    with pytest.raises(RecipeError, match=next(iter(values))):
        AlproRecipe(**values)


def test_the_batch_is_divided_among_processes():
    assert batch_per_device(192, 4, 2) == 24
    assert batch_per_device(64, 1, 1) == 64
    with pytest.raises(RecipeError, match=r"96 cannot be divided among 5 processes x 2 .* one of 1, 2, 3, .*, 96"):
        batch_per_device(96, 5, 2)
    with pytest.raises(RecipeError, match="4 cannot be divided among 8 processes"):
        batch_per_device(4, 8, 1)


# ---------------------------------------------------------------------------------------------------------- the tasks


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_the_same_command_goes_on(data, tmp_path, capsys, monkeypatch):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    argv += ["--output", tmp_path, "--isolate_decoding", "true"]

    def told(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(StopWhenTerminated, "on_step_begin", told)
    assert train(*argv, save_steps=50) == 143
    assert "terminated; a checkpoint was saved" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    assert train(*argv, save_steps=50) == 0
    assert f"continues from {tmp_path / 'checkpoint-1'}" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def ctrl_c():
    """Heeded, also where the tests run behind a shell that has its jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(data, tmp_path, capsys, monkeypatch, ctrl_c):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]

    def pressed(self, args, state, control, **kwargs):
        if state.global_step == 1:
            signal.raise_signal(signal.SIGINT)  # to this thread; `os.kill` may hand it to another, and so later

    monkeypatch.setattr(StopWhenTerminated, "on_step_begin", pressed)
    assert train(*argv, "--output", tmp_path, max_steps=3, save_steps=50) == 130
    said = "alpro train: interrupted; the same command continues from the newest checkpoint"
    assert said in capsys.readouterr().err.splitlines()
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.undo()
    assert train(*argv, "--output", tmp_path, max_steps=3, save_steps=50) == 0
    assert f"continues from {tmp_path / 'checkpoint-2'}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_in_a_terminal(data, tmp_path, workers):
    """SIGINT to a real command and, as from a terminal, to the processes that decode for it."""
    command = [sys.executable, "-m", "alpro_hf", "train", "--recipe", "msrvtt-retrieval", "--output", str(tmp_path)]
    command += ["--data", str(data / "clips.jsonl"), "--model", str(data / "retrieval")]
    command += small(max_steps=5000, save_strategy="no", dataloader_num_workers=workers)
    run = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    errors = ""
    while "'loss'" not in errors:  # the first step is done
        line = run.stderr.readline()
        assert line, errors
        errors += line
    os.killpg(run.pid, signal.SIGINT)
    errors += run.communicate(timeout=120)[1]
    assert run.returncode == 130, errors
    assert "Ctrl-C again stops at once" in errors and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("alpro train: interrupted; the same command continues"), errors
    [checkpoint] = tmp_path.glob("checkpoint-*")
    assert checkpoint_problem(checkpoint) is None
    assert not (tmp_path / "model.safetensors").exists()


def test_a_training_on_nothing_saves_nothing(data, tmp_path, capsys, clips):
    texts = [json.loads(line)["text"] for line in (data / "clips.jsonl").read_text().splitlines()]
    wrong = write_lines(tmp_path / "wrong.jsonl", [{"video": f"no/{i}.mp4", "text": t} for i, t in enumerate(texts)])
    for i, clip in enumerate(clips):
        (tmp_path / f"{i}.mp4").write_bytes(Path(clip).read_bytes()[:300])
    rows = [{"video": str(tmp_path / f"{i}.mp4"), "text": text} for i, text in enumerate(texts)]
    broken = write_lines(tmp_path / "broken.jsonl", rows)
    good, output = data / "clips.jsonl", tmp_path / "out"
    argv = ["--recipe", "msrvtt-retrieval", "--model", data / "retrieval", "--output", output]
    for options, message in (
        (["--data", wrong], "wrong.jsonl: none of the files of its 4 rows exists; the first is 'no/0.mp4'"),
        (["--data", good, "--eval-data", wrong], "wrong.jsonl: none of the files of its 4 rows exists"),
        (["--data", broken], "Nothing was learned, and nothing was saved: 4 of 4 rows were dropped"),
        (["--data", good, "--eval-data", broken], "None of the 4 clips of the evaluation set can be decoded"),
    ):
        assert (
            train(*argv, *options, global_batch_size=2, eval_strategy="steps" if "--eval-data" in options else "no")
            == 1
        )
        out, err = capsys.readouterr()
        assert message in err.splitlines()[-1] and not out
        assert {path.name for path in output.rglob("*")} <= {"recipe.json", "dropped_rows.jsonl"}


def test_a_model_keeps_its_sizes_and_a_recipe_that_changes_them_says_so(data, tmp_path, capsys):
    argv = ["--data", data / "clips.jsonl", "--model", data / "retrieval", "--output"]
    before = AlproProcessor.from_pretrained(data / "retrieval")
    own = AlproForVideoTextRetrieval.from_pretrained(data / "retrieval").config.video_config
    few = {name: value for name, value in SMALL.items() if name not in ("image_size", "num_frames", "text_length")}
    options = [word for name, value in few.items() for word in (f"--{name}", str(value))]
    assert alpro_train("--recipe", "msrvtt-retrieval", *argv, tmp_path / "kept", *options) == 0
    err = capsys.readouterr().err
    assert f"num_frames {own.num_frames} instead of 8, image_size {own.image_size} instead of 224" in err
    kept = AlproForVideoTextRetrieval.from_pretrained(tmp_path / "kept").config.video_config
    assert (kept.num_frames, kept.image_size) == (own.num_frames, own.image_size)
    processor = AlproProcessor.from_pretrained(tmp_path / "kept")
    assert processor.tokenizer.model_max_length == before.tokenizer.model_max_length
    assert processor.video_processor.size == before.video_processor.size
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"task": "retrieval", "num_frames": 6, "image_size": own.image_size}))
    assert alpro_train("--recipe", mine, *argv, tmp_path / "mine", *options) == 0
    err = capsys.readouterr().err
    assert (
        f"made for others, num_frames {own.num_frames} -> 6. Options such as --num_frames {own.num_frames} keep" in err
    )
    assert AlproForVideoTextRetrieval.from_pretrained(tmp_path / "mine").config.video_config.num_frames == 6


def test_a_run_continues_with_the_same_rows_alone(data, tmp_path, capsys):
    rows = [json.loads(line) for line in (data / "clips.jsonl").read_text().splitlines()]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    argv = [
        "--recipe",
        "msrvtt-retrieval",
        "--data",
        path,
        "--model",
        data / "retrieval",
        "--output",
        tmp_path / "run",
    ]
    assert train(*argv) == 0
    write_lines(path, [rows[0] | {"text": "another fox"}, *rows[1:]])
    assert train(*argv) == 1
    assert "have other texts, or another order" in capsys.readouterr().err.splitlines()[-1]
    write_lines(path, rows)
    (tmp_path / "run" / "checkpoint-9").symlink_to(tmp_path / "nowhere")
    assert train(*argv) == 0
    assert f"continues from {tmp_path / 'run' / 'checkpoint-2'}" in capsys.readouterr().err


def test_the_best_weights_are_those_of_the_best_recall(data, tmp_path):
    rows = data / "clips.jsonl"
    argv = ["--recipe", "msrvtt-retrieval", "--data", rows, "--eval-data", rows, "--model", data / "retrieval"]
    options = {"load_best_model_at_end": "true", "eval_strategy": "steps", "eval_steps": 1}
    assert train(*argv, "--output", tmp_path, **options) == 0
    assert json.loads((tmp_path / "recipe.json").read_text())["metric_for_best_model"] == "t2v_r1"


@pytest.mark.slow
def test_retrieval(data, tmp_path, capsys):
    rows = data / "clips.jsonl"
    argv = ["--recipe", "msrvtt-retrieval", "--data", rows, "--eval-data", rows, "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path, "--plot", num_frames=6, eval_strategy="steps", eval_steps=1) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["eval_t2v_r1"] == log_of(tmp_path)[-2]["eval_t2v_r1"]  # the result alone
    assert "retrieval by msrvtt-retrieval" in err
    assert "(4 rows)" in err
    assert "batch: 4 x 1 processes x 1 accumulated" in err
    assert "new weights" not in err
    assert "trained on 8 rows in 2 steps (step 2 of 2)" in err
    model = AlproForVideoTextRetrieval.from_pretrained(tmp_path)
    before = AlproForVideoTextRetrieval.from_pretrained(data / "retrieval")
    assert not torch.equal(model.vtm_head.weight, before.vtm_head.weight)
    time = model.alpro.video_model.embeddings.time_embeddings
    assert time.shape[1] == model.config.video_config.num_frames == 6
    expected = before.alpro.video_model.embeddings.frame_embeddings(6)
    assert (time - expected).abs().max() < 1e-3 < expected.std()  # two steps away from what the start would use
    processor = AlproProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.model_max_length == 12
    assert processor.video_processor.num_frames == 6
    assert processor.video_processor.frame_sampling == "uniform"
    evaluated = json.loads((tmp_path / "eval_results.json").read_text())
    logs = log_of(tmp_path)
    assert evaluated["eval_t2v_r1"] == next(e for e in logs if e["step"] == 2 and "eval_t2v_r1" in e)["eval_t2v_r1"]
    assert len([entry for entry in logs if "eval_t2v_r1" in entry]) == 2  # the last is not repeated
    assert [entry["step"] for entry in logs if "loss_vtm" in entry] == [1, 2]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_training_starts_from_the_bundled_model(data, tmp_path, capsys):
    assert (
        train(
            "--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", "bundled", "--output", tmp_path
        )
        == 0
    )
    assert json.loads((tmp_path / "recipe.json").read_text())["run"]["start"] == "bundled"
    assert "start: bundled\n" in capsys.readouterr().err  # no part of it is new
    # what the model knows goes with it
    assert AlproForVideoTextRetrieval.from_pretrained(tmp_path).config.training_domain == "sprite-world"


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("mlflow", "--report_to mlflow needs mlflow, which is not installed: pip install mlflow, or leave it out"),
        ("comet_ml", "pip install comet-ml, or leave it out"),
        ("tensorbord", "--report_to tensorbord is no tracker. Name one of .*tensorboard"),
    ],
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_loaded(tmp_path, capsys, tracker, said):
    argv = ["--data", tmp_path / "gone.jsonl", "--model", tmp_path / "gone", "--output", tmp_path / "out"]
    assert train("--recipe", "msrvtt-retrieval", *argv, "--report_to", tracker) == 1
    [complaint] = capsys.readouterr().err.splitlines()
    assert re.search(said, complaint)
    assert not (tmp_path / "out").exists()


def test_question_answering_with_the_most_frequent_answers(data, tmp_path, capsys):
    argv = ["--recipe", "msvd-qa", "--data", data / "questions.jsonl", "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path, num_answers=2) == 0
    assert "new weights: classifier" in capsys.readouterr().err
    model = AlproForVideoQuestionAnswering.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "fox", 1: "left"}  # equals by the alphabet
    assert model.config.label2id == {"fox": 0, "left": 1}
    assert model.classifier[2].out_features == 2
    values = json.loads((tmp_path / "recipe.json").read_text())
    assert values["gradient_accumulation_steps"] == 2
    assert values["run"]["per_device_train_batch_size"] == 2


def test_question_answering_with_a_file_of_answers_keeps_a_classifier_that_fits(data, tmp_path, capsys):
    answers = {name: i for i, name in enumerate(gallery.ANSWERS)}
    (tmp_path / "same.json").write_text(json.dumps(answers))
    (tmp_path / "other.json").write_text(json.dumps({name: 4 - i for name, i in answers.items()}))
    argv = ["--recipe", "msrvtt-qa", "--data", data / "questions.jsonl", "--model", data / "qa"]
    before = load_file(data / "qa" / "model.safetensors")["classifier.2.weight"]
    for name, is_new in (("same", False), ("other", True)):
        options = ["--answers", tmp_path / f"{name}.json", "--output", tmp_path / name]
        assert train(*argv, *options, learning_rate=1e-6) == 0
        assert ("new weights: classifier" in capsys.readouterr().err) == is_new
        after = load_file(tmp_path / name / "model.safetensors")["classifier.2.weight"]
        assert ((after - before).abs().max() < 1e-4) != is_new
    model = AlproForVideoQuestionAnswering.from_pretrained(tmp_path / "other")
    assert model.config.id2label[0] == gallery.ANSWERS[4]
    assert train(*argv, "--answers", tmp_path / "recipe.json", "--output", tmp_path / "none") == 1


@pytest.mark.slow
def test_the_whole_way_from_image_and_text_models(data, tmp_path, capsys):
    """ViT and BERT -> prompter -> pre-training on videos and images -> retrieval."""
    sources = ["--data", data / "clips.jsonl", data / "images.parquet"]
    start = ["--vision", data / "vit", "--text", data / "bert"]
    entities = ["--entities", data / "entities.txt"]
    prompter, student = tmp_path / "prompter", tmp_path / "student"
    assert train("--recipe", "prompter", *sources, *start, *entities, "--output", prompter) == 0
    teacher = AlproPrompterModel.from_pretrained(prompter)
    assert teacher.config.entities == ENTITIES  # the first three of four
    assert teacher.video_prompt_embeds.abs().sum() > 0
    assert not torch.equal(teacher.video_prompt_embeds, teacher.image_prompt_embeds)
    assert [entry["step"] for entry in log_of(prompter) if "loss_vtc" in entry] == [1, 2]
    assert "a prompter of 3 entities" in capsys.readouterr().err

    argv = ["--recipe", "pretrain", *sources, *start, "--prompter", prompter, "--output", student]
    assert train(*argv, pem_threshold=0, mlm_probability=0.5, max_steps=4) == 0
    assert "new weights: mlm_head, pem_head, projections" in capsys.readouterr().err
    model = AlproForPreTraining.from_pretrained(student)
    assert model.config.entities == ENTITIES
    assert model.config.pem_threshold == 0
    assert model.config.video_config.num_frames == 2
    logs = [entry for entry in log_of(student) if "loss" in entry]
    for name in ("loss_vtc", "loss_vtm", "loss_mlm", "loss_pem"):
        assert all(entry[name] > 0 for entry in logs), name
    assert [entry["pem_kept"] for entry in logs] == [1.0] * 4

    argv = ["--recipe", "didemo-retrieval", "--data", data / "clips.jsonl", "--model", student]
    assert train(*argv, "--output", tmp_path / "tuned") == 0
    assert "new weights" not in capsys.readouterr().err  # matching was pre-trained


def test_pretraining_with_cached_pseudo_labels_needs_no_teacher(data, tmp_path, clips):
    row = {"pem_seed": 42, "pem_epoch": 0}
    rows = [
        {"video": clip, "text": "a fox", "pem_targets": [0.7, 0.2, 0.1], "pem_index": i, **row}
        for i, clip in enumerate(clips)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "labelled")
    argv = ["--recipe", "pretrain", "--data", tmp_path / "labelled", "--model", data / "retrieval"]
    options = ["--entities", data / "entities.txt", "--output", tmp_path / "run"]
    assert train(*argv, *options) == 0
    entropy = -sum(p * torch.tensor(p).log().item() for p in (0.7, 0.2, 0.1))
    for entry in log_of(tmp_path / "run"):
        if "loss" in entry:
            assert entry["pem_entropy"] == pytest.approx(entropy, abs=1e-5)


def test_pretraining_without_pem_and_from_another_head(data, tmp_path):
    """No teacher is needed, the head for entities goes away; a curriculum of epochs works with one source."""
    argv = ["--recipe", "pretrain", "--data", data / "clips.jsonl", "--model", data / "pretrained"]
    options = {"pem_weight": 0, "train_sampling_strategy": "random", "max_steps": -1, "num_train_epochs": 2}
    assert train(*argv, "--output", tmp_path, **options) == 0
    model = AlproForPreTraining.from_pretrained(tmp_path)
    assert model.pem_head is None
    logs = [entry for entry in log_of(tmp_path) if "loss" in entry]
    assert len(logs) == 2
    assert all("loss_pem" not in entry and "loss_mlm" in entry for entry in logs)


@pytest.mark.slow
def test_a_pem_head_for_other_entities_is_new(data, tmp_path, capsys):
    """Same number, other names: the weights would fit and be wrong."""
    prompter = AlproPrompterModel.from_pretrained(data / "prompter")
    prompter.config.entities = ["dog", "fox", "cat"]
    prompter.save_pretrained(tmp_path / "prompter")
    argv = ["--recipe", "pretrain", "--data", data / "clips.jsonl", "--model", data / "pretrained"]
    before = load_file(data / "pretrained" / "model.safetensors")["pem_head.0.weight"]
    for teacher, is_new in ((tmp_path / "prompter", True), (data / "prompter", False)):
        output = tmp_path / f"new-{is_new}"
        assert train(*argv, "--prompter", teacher, "--output", output, learning_rate=1e-6, pem_threshold=0) == 0
        assert ("new weights: pem_head" in capsys.readouterr().err) == is_new
        after = load_file(output / "model.safetensors")["pem_head.0.weight"]
        assert ((after - before).abs().max() < 1e-4) != is_new


def test_towers_alone_are_trained_without_matching(data, tmp_path):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "pretrained"]
    assert train(*argv, "--output", tmp_path, vtm_weight=0) == 0
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [AlproModel.__name__]


def test_annotations_as_published(data, tmp_path, clips):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, clip in enumerate(clips):
        os.symlink(clip, videos / f"video{number}.mp4")
    rows = [{"clip_name": f"video{number}", "caption": "a fox moves"} for number in range(5)]
    write_lines(tmp_path / "train.jsonl", rows)
    data_of = ["--data", f"released-retrieval:{tmp_path / 'train.jsonl'}", "--videos", videos]
    output = tmp_path / "run"
    argv = ["--recipe", "msrvtt-retrieval", *data_of, "--model", data / "retrieval", "--output", output]
    assert train(*argv) == 1, "the clips are links to another folder, which somebody else may have made"
    assert train(*argv, "--allow-outside") == 0
    facts = json.loads((output / "recipe.json").read_text())["run"]
    assert list(facts["data"].values()) == [4]
    assert (output / "missing-released-retrieval-train.txt").read_text() == "video4\n"


# ---------------------------------------------------------------------------------------------- values and how they go


def test_options_win_over_the_recipe_and_all_values_are_written(data, tmp_path):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path, learning_rate=1e-3, leave_out="horizontal_flip", max_grad_norm=7) == 0
    written = json.loads((tmp_path / "recipe.json").read_text())
    facts = written.pop("run")
    expected = {"learning_rate": 1e-3, "max_grad_norm": 7.0, "adam_beta2": 0.98, "weight_decay": 1e-3, "seed": 42}
    expected |= {"global_batch_size": 4, "num_frames": 2, "leave_out": ["horizontal_flip"], "task": "retrieval"}
    assert {name: written[name] for name in expected} == expected
    assert len(written) > 100
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["start"] == str(data / "retrieval")
    assert facts["data"] == {str(data / "clips.jsonl"): 4}
    assert facts["processes"] == 1
    assert "command" in facts
    logged = [entry["learning_rate"] for entry in log_of(tmp_path) if "learning_rate" in entry]
    assert max(logged) == 1e-3


def test_the_written_recipe_repeats_the_run(data, tmp_path):
    argv = ["--data", data / "clips.jsonl", "--model", data / "retrieval"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("--recipe", "msrvtt-retrieval", *argv, "--output", first, learning_rate=1e-3) == 0
    assert alpro_train("--recipe", first / "recipe.json", *argv, "--output", second) == 0
    one, other = (json.loads((folder / "recipe.json").read_text()) for folder in (first, second))
    one.pop("run"), other.pop("run")
    assert one == other
    weights, again = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_batch_of_a_device_may_be_given_instead(data, tmp_path, capsys):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    values = [word for word in small() if word not in ("--global_batch_size", "4")]
    values = [*values, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    assert alpro_train(*argv, *values, "--output", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "recipe.json").read_text())["global_batch_size"] == 4
    assert alpro_train(*argv, *values, "--global_batch_size", "6", "--output", tmp_path / "b") == 1
    assert "global_batch_size=6, but 1 processes x 2 rows x 2 accumulated are 4" in capsys.readouterr().err
    assert train(*argv, "--output", tmp_path / "c", gradient_accumulation_steps=3) == 1
    assert "4 cannot be divided among 1 processes x 3" in capsys.readouterr().err


@pytest.mark.slow
def test_augmentation_is_that_of_the_recipe(data, tmp_path, monkeypatch):
    """What the collators make of frames while a training runs."""
    seen = Counter()
    original = AlproAugmentation.__call__

    def counted(self, frames, generator):
        seen[self.kind, "horizontal_flip" in self.operations] += 1
        return original(self, frames, generator)

    monkeypatch.setattr(AlproAugmentation, "__call__", counted)
    rows = ["--data", data / "clips.jsonl", "--model", data / "retrieval"]
    assert train("--recipe", "msrvtt-retrieval", *rows, "--output", tmp_path / "a", max_steps=1) == 0
    assert seen == {("finetune", True): 4}
    seen.clear()
    options = ["--data", data / "images.parquet", "--model", data / "retrieval", "--output", tmp_path / "b"]
    assert train("--recipe", "prompter", *options, max_steps=1, leave_out="horizontal_flip") == 0
    assert seen == {("image", False): 4}
    seen.clear()
    assert train("--recipe", "prompter", *rows, "--output", tmp_path / "c", max_steps=1) == 0
    assert seen == {("video", True): 4}
    seen.clear()
    assert train("--recipe", "prompter", *rows, "--output", tmp_path / "d", max_steps=1, augmentation="none") == 0
    assert not seen


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["msrvtt-retrieval", "pretrain"])
def test_an_interrupted_run_goes_on_and_ends_the_same(data, tmp_path, capsys, recipe):
    argv = ["--recipe", recipe, "--data", data / "clips.jsonl", "--model", data / "pretrained"]
    if recipe == "pretrain":
        argv += ["--prompter", data / "prompter"]
    values = {"max_steps": 4, "learning_rate": 1e-3}
    assert train(*argv, "--output", tmp_path / "whole", **values) == 0
    broken = tmp_path / "broken"
    assert train(*argv, "--output", broken, **values) == 0
    # what a process leaves that is killed while it writes its fourth checkpoint
    for file in (broken / "checkpoint-4").iterdir():
        if file.name != "model.safetensors":
            file.unlink()
    for name in ("model.safetensors", "trainer_state.json"):
        (broken / name).unlink()
    capsys.readouterr()
    assert train(*argv, "--output", broken, **values) == 0
    assert f"continues from {broken / 'checkpoint-3'}" in capsys.readouterr().err
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [entry["step"] for entry in log_of(broken) if "loss" in entry] == [1, 2, 3, 4]


def test_a_folder_with_another_run_is_not_overwritten(data, tmp_path, capsys):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path) == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    assert train(*argv, "--output", tmp_path, learning_rate=1e-3) == 1
    assert "learning_rate was 2.5e-05, is 0.001" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert train(*argv, "--output", tmp_path, logging_steps=5) == 0  # how it is watched may change
    assert "continues from" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("retrieval-x", [], "There is no recipe 'retrieval-x'"),
        ("msrvtt-retrieval", ["--task", "qa"], "is for the task 'retrieval', not 'qa'"),
        ("msrvtt-retrieval", ["--prompter", "x"], "--prompter is not used by the task 'retrieval'"),
        ("msrvtt-retrieval", ["--vision", "x"], "Say what to start from"),
        ("msrvtt-retrieval", ["--eval_strategy", "epoch"], "needs rows to evaluate with: --eval-data"),
        ("msrvtt-retrieval", ["--text_length", "99"], "text_length=99 is more than the 32 tokens"),
        ("msrvtt-retrieval", ["--data", "clips.jsonl"], "learns from one --data; received 2"),
        ("msrvtt-retrieval", ["--image_size", "20"], "image_size=20 is not a multiple of patch_size=8"),
        ("pretrain", [], "PEM needs a teacher: --prompter DIR"),
        ("pretrain", ["--prompter", "MODEL"], "names no entities"),
        ("pretrain", ["--entities", "ENTITIES"], "has no pseudo-labels"),
        ("pretrain", ["--prompter", "MODEL", "--entities", "ENTITIES"], "--prompter or --entities, not both"),
        ("pretrain", ["--pem_weight", "0", "--max_steps", "-1"], "set max_steps"),
        ("prompter", ["--data_weights", "1", "2"], "must have one number for each of the 1 --data"),
        ("msrvtt-qa", [], "lacks question, answer"),
    ],
)
def test_mistakes_are_named(data, tmp_path, capsys, recipe, options, message):
    places = {"MODEL": str(data / "retrieval"), "ENTITIES": str(data / "entities.txt")}
    options = [places.get(word, word) for word in options]
    argv = ["--recipe", recipe, "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    assert alpro_train(*argv, "--output", tmp_path / "run", *small(), *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_mistakes_in_rows_are_named(data, tmp_path, capsys, clips):
    options = ["--model", data / "retrieval", "--output", tmp_path / "run"]
    cases = {
        "rows.jsonl is empty": [],
        "none.parquet cannot be read as rows, or has none": None,
        "row 1 (counted from 0) has no 'text'": [{"video": clips[0], "text": "a"}, {"video": clips[0], "text": " "}],
        "the column 'text' holds int64": [{"video": clips[0], "text": 3}],
        "lacks video": [{"clip": clips[0], "text": "a"}],
    }
    for message, rows in cases.items():
        path = tmp_path / "none.parquet"
        if rows is not None:
            path = write_lines(tmp_path / "rows.jsonl", rows)
        else:
            Dataset.from_dict({"video": [], "text": []}).to_parquet(str(path))
        assert train("--recipe", "msrvtt-retrieval", "--data", path, *options) == 1
        assert message in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(data, tmp_path, capsys):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "vit"]
    assert train(*argv, "--output", tmp_path) == 1
    assert "holds a model of type 'vit'" in capsys.readouterr().err


def test_unknown_options_and_values_are_usage_errors(capsys):
    base = ["--recipe", "pretrain", "--data", "x", "--output", "y"]
    for option, message in (
        (["--learning_rat", "1"], "unknown option --learning_rat. Did you mean --learning_rate?"),
        (["--num_frames", "many"], "argument --num_frames/--num-frames: 'many' must be a whole number"),
        (["--augmentation", "strong"], "invalid choice: 'strong'"),
        (["--output_dir", "z"], "unknown option --output_dir. "),
    ):
        with pytest.raises(SystemExit) as stop:
            alpro_train(*base, *option)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_clips_that_cannot_be_decoded_are_counted(data, tmp_path, capsys, clips):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    rows = [{"video": clip, "text": "a fox"} for clip in [*clips[:3], str(tmp_path / "broken.mp4")]]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    argv = ["--recipe", "msrvtt-retrieval", "--data", path, "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path / "run") == 0
    assert "2 rows were dropped" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        alpro_train("--help")
    text = capsys.readouterr().out
    for name in recipe_names():
        batch = read_recipe(name)["global_batch_size"]
        assert re.search(rf"^  {name} .* {batch} ", text, re.M), name
    for word in ("torchrun --nproc_per_node 8 -m alpro_hf train", "accelerate launch", "--num_frames", "KIND:PATH"):
        assert word in text
    assert "--push_to_hub" not in text  # works, but is one of a hundred


def test_help_lists_only_what_works(capsys):
    """Help is written without torch, so its names and words are compared with the classes here."""
    known = settings()
    assert SHOWN.keys() <= known.keys() - set(FIELDS)
    for name in set(SHOWN) & {field.name for field in dataclasses.fields(AlproTrainingArguments)}:
        own = name in AlproTrainingArguments.__annotations__
        assert not own or all(choice in SHOWN[name] for choice in known[name].choices), name
    switches = {name for name, text in SHOWN.items() if text.startswith("Switch: ")}
    assert switches == {name for name in SHOWN if known[name].kind is bool}
    with pytest.raises(SystemExit):
        alpro_train("--help")
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in (*SHOWN, *FIELDS))


# ----------------------------------------------------------------------------------------------------------- settings


def test_settings_have_the_types_of_the_librarys_parser():
    """The options that `HfArgumentParser` makes of the same classes, its public way, read the same words alike."""
    words = {bool: "false", int: "3", float: "0.25", str: "word"}
    managed = {"output_dir", "do_train", "do_eval", "do_predict", "local_rank", "resume_from_checkpoint"}
    known = settings()
    described = {one.name for one in dataclasses.fields(AlproRecipe)}
    described |= {one.name for one in dataclasses.fields(AlproTrainingArguments)}
    assert set(known) == described - managed
    # JSON objects and a Python object, which the library's parser cannot read from words at all
    unreadable = {"liger_kernel_config", "lora", "parallelism_config"}
    parser = HfArgumentParser([AlproRecipe, AlproTrainingArguments])
    for name, setting in known.items():
        if name in unreadable:
            continue
        word = setting.choices[0] if setting.choices else words[setting.kind]
        read = vars(parser.parse_args(["--output_dir", "x", f"--{name}", word]))[name]
        value = setting.parse(word)
        if isinstance(read, list):
            assert setting.takes_list
            value = [value]
        assert value == read, name


def test_options_of_every_kind_arrive(tmp_path):
    given = {
        "--num-frames 8": ("num_frames", 8),
        "--bf16": ("bf16", True),
        "--tf32 no": ("tf32", False),
        "--no_dataloader_pin_memory": ("dataloader_pin_memory", False),
        "--no-log-on-each-node": ("log_on_each_node", False),
        "--report_to none": ("report_to", "none"),
        "--report-to tensorboard wandb": ("report_to", ["tensorboard", "wandb"]),
        "--debug underflow_overflow": ("debug", "underflow_overflow"),
        "--leave_out rotate": ("leave_out", ["rotate"]),
        "--data_weights 1 2.5": ("data_weights", [1.0, 2.5]),
        "--fsdp": ("fsdp", True),
        "--lr_scheduler_kwargs {}": ("lr_scheduler_kwargs", "{}"),
        '--liger_kernel_config {"rope":true}': ("liger_kernel_config", {"rope": True}),
        "--include_num_input_tokens_seen all": ("include_num_input_tokens_seen", "all"),
        "--learning_rate=1e-3": ("learning_rate", 1e-3),
    }
    for words, (name, value) in given.items():
        args = parse_arguments(["train", "--recipe", "pretrain", "--data", "x", "--output", "y", *words.split()])
        assert given_settings(args) == {name: value}, words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rte": 1}, "settings: unknown key 'learning_rte'. Did you mean learning_rate"),
        ({"num_frames": "many"}, "settings: num_frames='many' must be a whole number"),
        ({"eval_strategy": "often"}, "settings: eval_strategy='often' must be one of no, steps, epoch"),
        ({"task": "qa"}, "settings: unknown key 'task'"),
        ({"leave_out": "rotate"}, "settings: leave_out='rotate' must be a list"),
    ],
)
def test_settings_from_python_are_checked_like_a_recipe(tmp_path, given, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        resolve(TrainingRun("msrvtt-retrieval", ["rows.jsonl"], tmp_path, settings=given))


def test_a_run_from_python_is_the_run_of_the_command(data, tmp_path):
    argv = ["--data", data / "clips.jsonl", "--model", data / "retrieval", "--output", tmp_path / "command"]
    assert train("--recipe", "msrvtt-retrieval", *argv) == 0
    inputs = {"model": str(data / "retrieval"), "settings": SMALL}
    run = TrainingRun("msrvtt-retrieval", [str(data / "clips.jsonl")], tmp_path / "python", **inputs)
    assert run_training(run) is True
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("command", "python")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    written = [json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("command", "python")]
    assert written[0].pop("run")["start"] == written[1].pop("run")["start"]
    assert written[0] == written[1]


def test_what_may_change_on_resume_is_known_and_sorted():
    """A misspelt name would make a setting strict without a word."""
    assert set(MAY_CHANGE_ON_RESUME) <= set(settings())
    assert list(MAY_CHANGE_ON_RESUME) == sorted(set(MAY_CHANGE_ON_RESUME))
    learned = {
        "learning_rate",
        "seed",
        "data_seed",
        "global_batch_size",
        "dataloader_drop_last",
        "dataloader_in_order",
    }
    assert not learned & set(MAY_CHANGE_ON_RESUME)


def test_a_run_of_an_earlier_version_continues_and_new_settings_are_strict(data, tmp_path, capsys):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    assert train(*argv, "--output", tmp_path) == 0
    written = json.loads((tmp_path / "recipe.json").read_text())
    assert written.pop("neftune_noise_alpha") is None  # as if the version of that run had no such setting
    (tmp_path / "recipe.json").write_text(json.dumps(written))
    assert train(*argv, "--output", tmp_path, neftune_noise_alpha=5) == 1
    assert "neftune_noise_alpha was None, is 5.0" in capsys.readouterr().err
    assert train(*argv, "--output", tmp_path) == 0
    assert "continues from" in capsys.readouterr().err


def test_frozen_towers_cached_tokens_and_patch_dropout_are_settings(data, tmp_path, capsys):
    argv = ["--recipe", "msrvtt-retrieval", "--data", data / "clips.jsonl", "--model", data / "retrieval"]
    frozen = ["--freeze", "video", "text", "--feature_cache", tmp_path / "tokens"]
    assert train(*argv, *frozen, "--output", tmp_path / "headtail") == 1
    assert "train_sampling='uniform' or 'center' and augmentation='none'" in capsys.readouterr().err
    frozen += ["--train_sampling", "uniform", "--augmentation", "none"]
    # the frames of the start, for which its time embeddings need not be resized
    assert train(*argv, *frozen, "--output", tmp_path / "frozen", num_frames=4) == 0
    start, learned = (load_file(folder / "model.safetensors") for folder in (data / "retrieval", tmp_path / "frozen"))
    changed = {name for name in start if not torch.equal(start[name], learned[name])}
    assert changed and not any("video_model" in name or "text_model.embeddings" in name for name in changed)
    written = json.loads((tmp_path / "frozen" / "recipe.json").read_text())
    assert (written["freeze"], written["feature_cache"]) == (["video", "text"], str(tmp_path / "tokens"))
    less = ["--patch_dropout", 0.5, "--gradient_checkpointing", "true", "--checkpoint_layers", 1]
    assert train(*argv, *less, "--output", tmp_path / "less", max_steps=1) == 0
    assert AlproForVideoTextRetrieval.from_pretrained(tmp_path / "less").config.video_config.patch_dropout == 0.5
    with pytest.raises(RecipeError, match=r"patch_dropout=1\.0 must be at least 0 and below 1"):
        AlproRecipe(patch_dropout=1.0)


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data, tmp_path):
    model = AlproForVideoTextRetrieval.from_pretrained(data / "retrieval")
    model.config.text_config.hidden_dropout_prob = model.config.text_config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(tmp_path / "start")  # without dropout and drop path, of which each process has its own
    AlproProcessor.from_pretrained(data / "retrieval").save_pretrained(tmp_path / "start")
    argv = ["train", "--recipe", "msrvtt-retrieval", "--data", str(data / "clips.jsonl")]
    argv += ["--model", str(tmp_path / "start"), *small(vtm_weight=0, learning_rate=1e-3, drop_path_rate=0)]
    printed = {}
    for name, processes in (("one", 1), ("two", 2)):
        done = run_together(processes, ["-m", "alpro_hf", *argv, "--output", str(tmp_path / name)])
        assert done.returncode == 0, done.stderr
        printed[name] = done.stderr
    for name, processes in (("one", 1), ("two", 2)):
        facts = json.loads((tmp_path / name / "recipe.json").read_text())["run"]
        assert (facts["processes"], facts["per_device_train_batch_size"]) == (processes, 4 // processes)
        assert printed[name].count("model and processor saved") == 1
    logs = [[entry["loss_vtc"] for entry in log_of(tmp_path / name) if "loss_vtc" in entry] for name in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert len(logs[0]) == 2 and logs[0][0] != logs[0][1]


@pytest.mark.slow
def test_a_data_loading_process_that_is_killed_ends_the_run_and_the_same_command_goes_on(data, tmp_path):
    """A real training, its clip a pipe at which a data loading process waits: SIGKILL finds it there."""
    rows = [json.loads(line) for line in (data / "clips.jsonl").read_text().splitlines()]
    pipe = tmp_path / "pipe.mp4"
    write_lines(tmp_path / "rows.jsonl", [*rows, *rows, rows[0] | {"video": str(pipe)}])
    run_folder, whole = tmp_path / "run", tmp_path / "whole"
    argv = ["--recipe", "msrvtt-retrieval", "--data", str(tmp_path / "rows.jsonl"), "--model", str(data / "retrieval")]
    argv += small(
        global_batch_size=1,
        max_steps=9,
        learning_rate=1e-3,
        dataloader_num_workers=1,
        train_sampling_strategy="sequential",
    )
    command = [sys.executable, "-m", "alpro_hf", "train", *argv, "--output", str(run_folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    os.mkfifo(pipe)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as running:
        try:
            [worker] = wait_for_children(running, run_folder / "checkpoint-7")  # one batch is read ahead
            worker.kill()
            errors = running.communicate(timeout=100)[1]
        finally:
            running.kill()
    assert running.returncode == 1, errors
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("alpro train: a data loading process died (DataLoader worker"), errors
    assert f"(pid(s) {worker.pid})" in last or f"(pid {worker.pid})" in last

    pipe.unlink()
    pipe.write_bytes(Path(rows[0]["video"]).read_bytes())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"continues from {run_folder / 'checkpoint-7'}" in done.stderr
    assert alpro_train(*argv, "--dataloader_num_workers", "0", "--output", str(whole)) == 0
    ends = [load_file(folder / "model.safetensors") for folder in (run_folder, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    assert [entry["step"] for entry in log_of(run_folder) if "loss" in entry] == list(range(1, 10))


@pytest.mark.slow
def test_no_room_for_a_checkpoint_is_one_sentence_and_harms_nothing(data, tmp_path):
    """The weights fit, and what the optimizer knows does not: twice as much."""
    size = int(1.3 * (data / "retrieval" / "model.safetensors").stat().st_size)
    argv = ["--recipe", "msrvtt-retrieval", "--data", str(data / "clips.jsonl"), "--model", str(data / "retrieval")]
    command = [sys.executable, "-m", "alpro_hf", "train", *argv, *small(), "--output", str(tmp_path / "run")]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("alpro train: ") and last.endswith("Is there room on the disk?")
    assert str(tmp_path / "run") in last
    assert checkpoint_problem(tmp_path / "run" / "checkpoint-1") is not None
    assert alpro_train(*argv, *small(), "--output", str(tmp_path / "run")) == 0  # once there is


def wait_for_children(process, checkpoint):
    """The children of a process, once it has written a checkpoint."""
    deadline = time.monotonic() + 120
    while checkpoint_problem(checkpoint) is not None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(process.pid).children()
