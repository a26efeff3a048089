"""Results, recipes, checkpoints and configurations from strangers are refused with a sentence, in little memory."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from fixtures.gallery import write_model
from huggingface_hub.errors import StrictDataclassError

from alpro_hf.cli.main import main
from alpro_hf.data.label_lists import EntityListError, read_answers, read_entities
from alpro_hf.evaluation.compare import compare_results
from alpro_hf.evaluation.results import (
    PREDICTIONS,
    RESULTS,
    Results,
    ResultsError,
    read_predictions,
    read_results,
    write_results,
)
from alpro_hf.loading import CommandError, load_model
from alpro_hf.model.configuration_alpro import AlproConfig
from alpro_hf.training.checkpoints import checkpoint_problem
from alpro_hf.training.recipe import AlproRecipe, RecipeError, check_settings, read_recipe

DEEP, LONG = "[" * 100_000, "9" * 5000
BEYOND = [
    (DEEP, "deeper than 64"),
    (LONG, "5,000 digits"),
    ("1e999", "too large"),
    ("NaN", "NaN"),
    ("-Infinity", "Inf"),
]


# --- results --------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path) -> Path:
    content = Results(
        "retrieval", {"name": "vtc"}, {"t2v_r1": 5.0}, {"name": "m", "revision": None}, {"fingerprint": "f", "rows": 2}
    )
    rows = [{"direction": "t2v", "video": name, "text": i, "rank": 1.0} for i, name in enumerate(("a.mp4", "b.mp4"))]
    return write_results(tmp_path / "results", content, rows).parent


@pytest.mark.parametrize(("value", "said"), BEYOND)
def test_results_beyond_their_bounds(results, value, said, capsys) -> None:
    path = results / RESULTS
    path.write_text(path.read_text().replace('"t2v_r1": 5.0', f'"t2v_r1": {value}'))
    with pytest.raises(ResultsError, match=rf"{path} cannot be results, field 'metrics': .*{said}"):
        read_results(results)
    assert main(["compare", str(results), str(results)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../results.json", "..", ".", "/etc/passwd", "a\0b", "link.jsonl", "pipe.jsonl"])
def test_predictions_are_a_plain_file_of_the_folder(results, name) -> None:
    (results / "link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(results / "pipe.jsonl")
    content = json.loads((results / RESULTS).read_text())
    content["predictions"]["file"] = name
    (results / RESULTS).write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=r"same folder|leads out of|pipe or a device"):
        read_predictions(results)


def rewrite(results: Path, rows: str) -> None:
    """Predictions that belong to the results, whatever is in them."""
    (results / PREDICTIONS).write_text(rows)
    content = json.loads((results / RESULTS).read_text())
    content["predictions"]["sha256"] = hashlib.sha256(rows.encode()).hexdigest()
    (results / RESULTS).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        *(
            (f'{{"direction": "t2v", "video": "a", "rank": {value}}}', f"field 'rank'.*{said}")
            for value, said in BEYOND
        ),
        ('{"direction": "t2v", "video": "a", "rank": "1"}', "field 'rank': a number is expected; received '1'"),
        ('{"direction": "t2v", "video": "a", "rank": true}', "field 'rank': a number is expected; received True"),
        ('{"direction": "t2v", "rank": 1}', "lacks video"),
        ('{"direction": "v2t"}', "lacks rank"),
        ('{"direction": ["t2v"]}', "field 'direction': a text"),
        ('{"correct": 1}', "field 'correct': true or false"),
        ('{"correct": true, "answer_type": 7}', "field 'answer_type': a text"),
        ('{"correct": true, "video": {"a": 1}}', "field 'video': a name or a number"),
        ("[1]", "an object with named fields"),
        ("{", "not valid JSON"),
    ],
    ids=str,
)
def test_rows_of_predictions(results, row, said) -> None:
    rewrite(results, '{"direction": "v2t", "rank": 1}\n' + row + "\n")
    with pytest.raises(ResultsError, match=f"{PREDICTIONS}, line 2.*{said}"):
        compare_results(results, results)


def test_results_with_other_metrics(results, tmp_path) -> None:
    other = tmp_path / "other"
    write_results(
        other,
        read_results(results),
        [
            {"direction": "t2v", "video": n, "text": i} | {"rank": 1, "correct": True}
            for i, n in enumerate(("a.mp4", "b.mp4"))
        ],
    )
    with pytest.raises(ResultsError, match="define different metrics"):
        compare_results(results, other)


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "said"), BEYOND)
def test_recipes_beyond_their_bounds(tmp_path, value, said) -> None:
    path = tmp_path / "mine.json"
    path.write_text(f'{{"task": "qa", "learning_rate": {value}}}')
    with pytest.raises(RecipeError, match=rf"{path} is not a recipe, field 'learning_rate': .*{said}"):
        read_recipe(path)


LAUGHS = "a: &a [1, 1]\n" + "".join(
    f"{x}: &{x} [{f'*{y}, ' * 9}*{y}]\n" for x, y in zip("bcdefghij", "abcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "in line 1 there is a reference"),
        ("num_frames: *other", "in line 1 there is a reference"),
        ("num_frames: " + "[" * 20_000, "nested deeper than 64"),
        ("- " * 20_000, "nested deeper than 64"),
        (f"num_frames: {LONG}", "is not a recipe"),
        ("learning_rate: .nan", "not finite"),
        ("learning_rate: -.inf", "not finite"),
        ("when: 2024-99-99", "unknown key 'when'"),
        ("num_frames: !!binary AAAA", "there is the type"),
        ("num_frames: !!python/object/apply:os.system [ls]", "there is the type"),
        ("<<: {num_frames: 3}", "unknown key '<<'"),
        ("? [a]\n: b", "is not a recipe"),
        ("num_frames: 2024-01-01", "num_frames='2024-01-01' must be a whole number"),
        ("x" * (1 << 18) + "x: 1", "larger than"),
        ("description: [a]", "must be a text"),
        ("task: {a: b}", "is unknown"),
        ("%YAML 9.9\n---\na: 1", "is not a recipe"),
        ("a: \0", "is not a recipe"),
    ],
    ids=lambda value: value[:24].encode("ascii", "replace").decode().replace("\0", "0"),
)
def test_yaml_recipes(tmp_path, text, said) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": 10**12},
        {"global_batch_size": 10**12},
        {"image_size": 0},
        {"text_length": 10**9},
        {"prompt_length": 0},
        {"mlm_probability": 1.5},
        {"pem_threshold": -1},
        {"data_weights": [1.0, -1.0]},
    ],
)
def test_settings_out_of_range(values) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        AlproRecipe(**check_settings(values, "mine"))


def test_null_is_the_default_of_a_list(tmp_path) -> None:
    """Found by fuzzing."""
    path = tmp_path / "mine.json"
    path.write_text('{"data_weights": null, "leave_out": null}')
    recipe = AlproRecipe(**read_recipe(path))
    assert (recipe.data_weights, recipe.leave_out) == ([], [])


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("-inf"), "1e999"])
def test_settings_that_are_not_finite(value) -> None:
    with pytest.raises(RecipeError, match="must be a number"):
        check_settings({"learning_rate": value}, "mine")


# --- lists and checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "said"), BEYOND)
def test_lists_of_answers(tmp_path, value, said) -> None:
    path = tmp_path / "ans2label.json"
    path.write_text(f'{{"dog": 0, "cat": {value}}}')
    with pytest.raises(ValueError, match=f"{path} .*{said}"):
        read_answers(path)


def test_lists_that_never_end(tmp_path) -> None:
    (tmp_path / "list.txt").symlink_to("/dev/zero")
    with pytest.raises(EntityListError, match="pipe or a device"):
        read_entities(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [(DEEP, "deeper than 64"), (f'{{"global_step": {LONG}}}', "5,000 digits"), ("[]", "holds no object")],
)
def test_the_state_of_a_checkpoint(tmp_path, content, said) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(content)
    assert said in (checkpoint_problem(folder) or "")


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (DEEP, "deeper than 64"),
        ("[]", "no 'weight_map'"),
        ('{"weight_map": [1]}', "no 'weight_map'"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "not a file of the same folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not a file of the same folder"),
        ('{"weight_map": {"a": "link.safetensors"}}', "not a file of the same folder"),
        ('{"weight_map": {"a": ["x"]}}', "cannot be read"),
        ('{"weight_map": {"a": 7}}', "cannot be read"),
    ],
    ids=str,
)
def test_the_index_of_a_checkpoint(tmp_path, index, said) -> None:
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    (folder / "link.safetensors").symlink_to("/etc/passwd")
    (folder / "model.safetensors.index.json").write_text(index)
    problem = checkpoint_problem(folder)
    assert problem is not None and problem.startswith("model.safetensors.index.json ") and said in problem


# --- model folders --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")


FIELDS = [
    ({"video_config": {"patch_size": 0}}, "video_config.patch_size=0"),
    ({"video_config": {"patch_size": -16}}, "video_config.patch_size=-16"),
    ({"video_config": {"image_size": 1 << 20}}, "video_config.image_size"),
    ({"video_config": {"num_frames": 10**9}}, "video_config.num_frames"),
    ({"video_config": {"num_attention_heads": 0}}, "video_config.num_attention_heads=0"),
    ({"text_config": {"num_attention_heads": -1}}, "text_config.num_attention_heads=-1"),
    ({"text_config": {"num_hidden_layers": 10**6}}, "text_config.num_hidden_layers=1000000"),
    (
        {"text_config": {"hidden_size": 1 << 16, "intermediate_size": 1 << 20, "num_attention_heads": 1}},
        "have more than",
    ),
    ({"text_config": {"vocab_size": -5}}, "text_config.vocab_size=-5"),
    ({"text_config": {"pad_token_id": 10**6}}, "pad_token_id"),
    ({"text_config": {"hidden_act": "exec"}}, "text_config.hidden_act='exec' is no activation"),
    ({"text_config": {"hidden_dropout_prob": 7}}, "hidden_dropout_prob=7 is not a probability"),
    ({"text_config": {"layer_norm_eps": 0.0}}, "layer_norm_eps"),
    ({"text_config": {"hidden_size": "64"}}, "hidden_size"),
    ({"text_config": {"hidden_size": 64.5}}, "hidden_size"),
    ({"text_config": {"hidden_size": True}}, "hidden_size"),
    ({"text_config": {"hidden_size": None}}, "hidden_size"),
    ({"text_config": "bert"}, "text_config"),
    ({"projection_dim": 0}, "projection_dim=0"),
    ({"temperature_init": -1}, "temperature_init=-1"),
    ({"entities": ["dog", 7]}, "entities"),
    ({"entities": ["dog"] * 50_000}, "more than once"),
    ({"num_labels": 10**12}, "num_labels=1000000000000"),
    ({"id2label": {"9" * 5000: "x"}}, "config.json"),
    ({"dtype": "save"}, "dtype='save' is unknown"),
    ({"torch_dtype": ["float32"]}, "torch_dtype"),
    ({"text_config": {"dtype": "nn"}}, "text_config.dtype='nn'"),
    (
        {"quantization_config": {"quant_method": "finegrained_fp8"}},
        "quantization_config is of the kind 'finegrained_fp8'",
    ),
    ({"quantization_config": "everything"}, "quantization_config"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "may run code from elsewhere"),
    ({"_attn_implementation": "someone/kernel:run"}, "may run code from elsewhere"),
    ({"_attn_implementation_internal": "someone/kernel"}, "may run code from elsewhere"),
    ({"video_config": {"attn_implementation": "someone/kernel"}}, "may run code from elsewhere"),
    ({"attn_implementation": {"text_config": "someone/kernel"}}, "may run code from elsewhere"),
    ({"experts_implementation": "someone/kernel"}, "may run code from elsewhere"),
    ({"use_kernels": True}, "use_kernels may run code"),
    ({"to_dict": 1}, "to_dict is a part of AlproConfig"),
    ({"attribute_map": {"hidden_size": "x"}}, "attribute_map is a part"),
]


@pytest.mark.parametrize(("fields", "said"), FIELDS, ids=lambda value: str(value)[:60])
def test_fields_of_a_configuration(model, tmp_path, fields, said) -> None:
    content = json.loads((model / "config.json").read_text())
    for name, value in fields.items():
        content[name] = (
            content[name] | value
            if isinstance(value, dict) and name.endswith("_config") and name in content
            else value
        )
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises((CommandError, StrictDataclassError)) as caught:
        load_model("retrieval", str(tmp_path))
    assert said in str(caught.value) and len(str(caught.value)) < 3000


@pytest.mark.parametrize(("value", "said"), BEYOND)
def test_a_configuration_beyond_its_bounds(model, tmp_path, value, said, capsys) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(f'{{"model_type": "alpro", "projection_dim": {value}}}')
    with pytest.raises(CommandError, match=rf"{tmp_path / 'config.json'} cannot be used: .*{said}"):
        load_model("retrieval", str(tmp_path))


@pytest.mark.slow
def test_more_layers_than_the_file_has_weights(model, tmp_path) -> None:
    content = json.loads((model / "config.json").read_text())
    content["video_config"]["num_hidden_layers"] = 1000
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CommandError, match=r"describes [\d,]+ weights, but its files of weights have only"):
        load_model("retrieval", str(tmp_path))


def test_an_index_of_weights_elsewhere(model, tmp_path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(CommandError, match="not in its folder"):
        load_model("retrieval", str(tmp_path))


def test_kernels_that_the_caller_names_are_his_decision(model) -> None:
    config = AlproConfig.from_pretrained(model, attn_implementation="eager")
    assert config._attn_implementation == "eager"
    loaded, _ = load_model("retrieval", str(model))
    assert loaded.config.video_config.patch_size > 0
