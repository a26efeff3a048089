"""Model cards: what they say comes from files, their metadata pass the Hub's rules, their example runs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import colours, tiny
from fixtures.hub_double import HubDouble, check_metadata
from huggingface_hub import ModelCard, constants
from PIL import Image

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, bundled_model
from alpro_hf.evaluation.results import Results, write_results
from alpro_hf.hub import export as hub
from alpro_hf.hub.card import CITATION, ModelCardError, read_card_results
from alpro_hf.hub.picture import draw_model
from alpro_hf.sprites.render import write_split
from alpro_hf.training.arguments import AlproTrainingArguments

ROOT = Path(__file__).parents[2]
RETRIEVAL = {"t2v_r1": 74.5, "t2v_r10": 99.5, "t2v_median_rank": 1.0, "v2t_r1": 73.0, "n": 1000.0}
SPRITES = {
    "settings": {"rerank_k": 16, "seconds": 9, "torch": "2"},
    "results": {
        "test": {
            "retrieval": {"vtc": RETRIEVAL, "rerank": RETRIEVAL | {"t2v_r1": 72.8}},
            "choices": {"opposite": {"vtc": 83.4, "vtm": 80.0, "n": 1000}},
            "qa": {"accuracy": 52.6, "accuracy_which": 75.0, "n": 100.0},
        }
    },
}


@pytest.fixture
def sprites_results(tmp_path: Path) -> Path:
    path = tmp_path / "sprites.json"
    path.write_text(json.dumps(SPRITES))
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A retrieval model beside what a training leaves."""
    folder = tmp_path / "trained"
    AlproForVideoTextRetrieval(colours.config()).save_pretrained(folder)
    colours.processor().save_pretrained(folder)
    return folder


def export(model: Path, tmp_path: Path, **options: Any) -> tuple[Path, str]:
    out = hub.export(model, tmp_path / "out" / "alpro-test", name="acme/alpro-test", **options)
    return out, (out / "README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ metadata


@pytest.fixture
def validator(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    with HubDouble() as double:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        yield double


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_metadata_pass_the_rules_and_hold_every_number_with_its_protocol(
    task: Any, validator: HubDouble, sprites_results: Path, tmp_path: Path
) -> None:
    out, text = export(bundled_model(task), tmp_path, results=[sprites_results])
    card = ModelCard.load(out / "README.md")
    card.validate()
    assert validator.count("POST", "validate-yaml") == 1
    data = card.data
    assert data.library_name == "transformers"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == ("feature-extraction" if task == "retrieval" else "visual-question-answering")
    assert "alpro" in data.tags
    assert data.model_name == "alpro-test"
    found = {
        (entry.dataset_split, entry.metric_args["protocol"], entry.metric_name): entry.metric_value
        for entry in data.eval_results
    }
    if task == "qa":
        assert found == {("test", "closed", "accuracy (closed)"): 52.6}
    else:
        assert len(found) == 8
        assert found["test", "vtc", "R@1 text to video (vtc)"] == 74.5
        assert found["test", "rerank", "R@1 text to video (rerank)"] == 72.8
        assert {entry.metric_args.get("rerank_k") for entry in data.eval_results} == {None, 16}
        assert "| sprite-world (test) | rerank | R@1 text to video | 72.8 |" in text


def test_the_validator_finds_what_is_wrong(validator: HubDouble) -> None:
    for metadata, complaint in (
        ("license: 3", "license"),
        ("pipeline_tag: video-thinking", "pipeline_tag"),
        ("tags: [1, 2]", "tags"),
        ("datasets: [not an id]", "datasets"),
        ("model-index:\n- name: a\n  results:\n  - metrics: []", "task"),
        ("a: [", "YAML"),
    ):
        content = f"---\n{metadata}\n---\n# A model\n"
        assert complaint in " ".join(check_metadata(content, "model"))
    with pytest.raises(ValueError, match="Invalid metadata"):
        ModelCard("---\npipeline_tag: video-thinking\n---\n# A model\n").validate()


# ---------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_the_example_runs_as_it_stands(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = export(bundled_model(task), tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    clip = next(write_split(tmp_path / "clips", "test", 1, progress=False).glob("clips/*.mp4"))
    monkeypatch.chdir(tmp_path / "out")
    (tmp_path / "out" / "acme").mkdir()
    (tmp_path / "out" / "alpro-test").rename("acme/alpro-test")
    (tmp_path / "out" / "clip.mp4").write_bytes(clip.read_bytes())
    names: dict[str, Any] = {}
    exec(code, names)
    shown = capsys.readouterr().out.strip()
    assert shown
    if task == "qa":
        assert shown in names["model"].config.id2label.values()
    else:
        assert names["outputs"].text_embeds.shape[0] == 2


def test_results_beside_the_weights_need_not_be_named(tmp_path: Path) -> None:
    _, text = export(bundled_model("retrieval"), tmp_path)
    measured = json.loads(Path(bundled_model("retrieval"), "results.json").read_text())["results"]["test"]["retrieval"]
    found = {
        (entry.dataset_split, entry.metric_args["protocol"]): entry.metric_value
        for entry in ModelCard(text).data.eval_results
        if entry.metric_type == "t2v_r1"
    }
    assert {("test", "vtc"), ("test", "rerank"), ("test-hard", "vtc")} <= set(found)
    assert found["test", "vtc"] == round(measured["vtc"]["t2v_r1"], 2)


def test_bundled_models_say_what_they_are(tmp_path: Path) -> None:
    out, text = export(bundled_model("qa"), tmp_path)
    assert "synthetic world of moving pictograms and nothing else" in text
    assert "It is of no use for real videos" in text
    assert "no other answers than the 180" in text
    assert "](model.png)" in text
    with Image.open(out / "model.png") as picture:
        assert picture.size == (1920, 680)


def test_citation_is_that_of_the_repository() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    assert paper["title"] in CITATION
    assert paper["url"] in CITATION
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert authors in CITATION


def test_nothing_is_claimed_that_no_file_says(trained: Path, tmp_path: Path) -> None:
    _, text = export(trained, tmp_path)
    assert "training data is not recorded" in text
    assert "states no licence" in text
    assert "## Results" not in text
    assert "hyperparameter" not in text
    assert not {"license", "datasets", "model-index"} & set(ModelCard(text).data.to_dict())


def test_training_arguments_and_state_are_read(trained: Path, tmp_path: Path) -> None:
    arguments = AlproTrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4, use_cpu=True, max_steps=7)
    torch.save(arguments, trained / "training_args.bin")
    log = [{"loss": 4.0, "step": 1}, {"loss": 2.0, "loss_vtc": 1.5, "step": 7}]
    (trained / "trainer_state.json").write_text(json.dumps({"global_step": 7, "epoch": 1.5, "log_history": log}))
    _, text = export(trained, tmp_path)
    assert "| `learning_rate` | 0.0003 |" in text
    assert "7 steps, 1.5 epochs; at the end loss 2, loss_vtc 1.5." in text
    assert "Loss: contrastive (VTC) and matching (VTM)." in text


def test_a_recipe_is_read_and_shows_no_paths(trained: Path, tmp_path: Path) -> None:
    recipe = {
        "learning_rate": 2.5e-5,
        "global_batch_size": 64,
        "train_sampling": "headtail",
        "run": {"data": {"/home/me/msrvtt/train.jsonl": 140200}, "command": "alpro train --output /home/me/run"},
    }
    (trained / "recipe.json").write_text(json.dumps(recipe))
    _, text = export(trained, tmp_path)
    assert "`train.jsonl` (140,200 rows)" in text
    assert "| `global_batch_size` | 64 |" in text
    assert "/home/me" not in text


class _Trap:
    """Would leave a file behind if it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "caught")


def test_a_pickle_that_holds_more_than_arguments_is_not_run(trained: Path, tmp_path: Path) -> None:
    torch.save(_Trap(tmp_path / "trap"), trained / "training_args.bin")
    with pytest.raises(ModelCardError, match=r"holds more than training arguments: .*getattr"):
        export(trained, tmp_path)
    assert not (tmp_path / "trap").exists()


class _Attribute:
    """Is written as an attribute of something, as Python 3.11.0 to 3.11.3 write the members of enumerations."""

    def __init__(self, owner: Any, name: str) -> None:
        self.reduced = getattr, (owner, name)

    def __reduce__(self) -> Any:
        return self.reduced


def test_members_of_enumerations_are_read_as_early_versions_of_python_write_them(
    trained: Path, tmp_path: Path
) -> None:
    arguments = AlproTrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4, use_cpu=True, max_steps=7)
    kind = type(arguments.save_strategy)
    arguments.save_strategy = _Attribute(kind, "STEPS")
    torch.save(arguments, trained / "training_args.bin")
    _, text = export(trained, tmp_path)
    assert "| `learning_rate` | 0.0003 |" in text
    for owner, name in ((AlproTrainingArguments, "__init__"), (kind, "__class__"), (kind, "__doc__")):
        arguments.save_strategy = _Attribute(owner, name)
        torch.save(arguments, trained / "training_args.bin")
        with pytest.raises(ModelCardError, match="or holds more than training arguments"):
            export(trained, tmp_path / name)


def test_facts_of_the_author(trained: Path, tmp_path: Path) -> None:
    facts = {"data": "Ten clips of mine.", "datasets": ["acme/clips"], "license": "mit", "language": ["de"]}
    (trained / "training.json").write_text(json.dumps(facts))
    _, text = export(trained, tmp_path)
    data = ModelCard(text).data
    assert (data.datasets, data.license, data.language) == (["acme/clips"], "mit", ["de"])
    assert "Ten clips of mine." in text
    (trained / "training.json").write_text('{"datasest": []}')
    with pytest.raises(
        ModelCardError, match=r"training\.json: the key 'datasest' is unknown\. Known keys are .*datasets"
    ):
        hub.export(trained, tmp_path / "again")
    (trained / "training.json").write_text('{"datasets": "acme/clips"}')
    with pytest.raises(ModelCardError, match="datasets must be a list; it is 'acme/clips'"):
        hub.export(trained, tmp_path / "once-more")


# ------------------------------------------------------------------------------------------------------------- results


def test_results_of_alpro_evaluate(trained: Path, tmp_path: Path) -> None:
    results = Results(
        task="retrieval",
        protocol={"name": "rerank", "rerank_k": 32},
        metrics={"t2v_r1": 33.94, "t2v_median_rank": 3.0},
        model={"name": "x", "revision": None},
        data={"fingerprint": "sha256:0", "rows": 10, "name": "MSR-VTT 1k-A", "split": "test"},
        intervals={"t2v_r1": (31.0, 36.9)},
    )
    path = write_results(tmp_path / "results", results, [])
    _, text = export(trained, tmp_path, results=[path])
    assert "| MSR-VTT 1k-A (test) | rerank | R@1 text to video | 33.9 | 31.0 to 36.9 |" in text
    assert "reordered by matching (rerank_k 32)" in text
    assert check_metadata(text, "model") == []
    [first, _] = ModelCard(text).data.eval_results
    assert first.metric_args == {"protocol": "rerank", "rerank_k": 32}
    assert first.dataset_name == "MSR-VTT 1k-A"
    assert first.metric_value == 33.94
    assert read_card_results(path.parent) == read_card_results(path)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("msrvtt-1ka:annotations/MSRVTT_JSFUSION_test.csv", "msrvtt-1ka"),
        ("/home/me/holiday/test.jsonl", "test"),
        ("rows/", "rows"),
        ("acme/clips", "clips"),
    ],
)
def test_the_data_of_an_evaluation_are_named_without_their_folders(tmp_path: Path, source: str, name: str) -> None:
    results = Results(
        task="retrieval",
        protocol={"name": "vtc"},
        metrics={"t2v_r1": 50.0},
        model={"name": "x", "revision": None},
        data={"fingerprint": "sha256:0", "rows": 10, "source": source, "split": None},
    )
    [entry] = read_card_results(write_results(tmp_path / "anything", results, []))
    assert (entry.dataset, entry.split) == (name, "test")


def test_a_card_shows_ten_numbers_and_links_to_all(tmp_path: Path) -> None:
    out, text = export(bundled_model("retrieval"), tmp_path)
    section = text.partition("## Results")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| sprite-world .*\|$", section, re.MULTILINE)
    assert len(rows) == len(ModelCard(text).data.eval_results) == 10
    assert "All numbers are in [metrics.json](metrics.json)." in section
    everything = read_card_results(out / "metrics.json")
    assert everything == read_card_results(Path(bundled_model("retrieval"), "results.json"))
    # R@1 of every test and protocol comes before any other number
    first = {(entry.split, entry.protocol) for entry in everything if "t2v_r1" in entry.metrics}
    shown = {tuple(row.split(" | ")[i] for i in (0, 1)) for row in rows if "R@1 text to video" in row}
    assert shown == {(f"| sprite-world ({split})", protocol) for split, protocol in first}
    again = hub.export(out, tmp_path / "again", name="acme/alpro-test")
    assert section in (again / "README.md").read_text()
    assert (again / "metrics.json").read_bytes() == (out / "metrics.json").read_bytes()


def test_few_numbers_need_no_link(trained: Path, sprites_results: Path, tmp_path: Path) -> None:
    content = json.loads(sprites_results.read_text())
    del content["results"]["test"]["qa"]
    sprites_results.write_text(json.dumps(content))
    _, text = export(trained, tmp_path, results=[sprites_results])
    assert len(ModelCard(text).data.eval_results) == 8
    assert "metrics.json" not in text


def test_numbers_of_other_tasks_are_passed_over(trained: Path, sprites_results: Path, tmp_path: Path) -> None:
    AlproForVideoQuestionAnswering(colours.config()).save_pretrained(trained)
    _, text = export(trained, tmp_path, results=[sprites_results])
    assert "52.6" in text
    assert "74.5" not in text


def test_what_is_no_result_file(tmp_path: Path) -> None:
    with pytest.raises(ModelCardError, match="There is no result file"):
        read_card_results(tmp_path / "missing.json")
    path = tmp_path / "other.json"
    for content, complaint in (
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"a": 1}', "neither of alpro evaluate nor"),
        ('{"format": 99}', "format 99"),
    ):
        path.write_text(content)
        with pytest.raises(ModelCardError, match=complaint):
            read_card_results(path)


# ------------------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("head", list(hub.HEADS))
def test_the_picture_is_drawn_for_every_head_and_size(head: str) -> None:
    config = tiny.config(entities=["a", "b"]).to_dict() | {"architectures": [head]}
    small = draw_model(config)
    config["video_config"]["num_hidden_layers"] = 12
    assert small.size == draw_model(config).size
    assert small.tobytes() != draw_model(config).tobytes()
