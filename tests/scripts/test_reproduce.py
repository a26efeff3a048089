"""The scripts that reproduce published numbers run from released files to results, on a miniature of those files."""

import json
import shlex
import shutil
from collections.abc import Iterator

import ablation_entities
import ablation_frames
import ablation_losses
import ablation_prompts
import finetune
import published
import pytest
from miniature import make_released
from released import Run
from transformers.utils import logging

from alpro_hf import AlproPrompterModel
from alpro_hf.cli.main import parse_arguments
from alpro_hf.evaluation.results import read_predictions, read_results

# row of the table -> protocol, frames and tokens of its evaluation, and what it should reach
EVALUATIONS = {
    "msrvtt_retrieval": ("reference", 8, 40, {"t2v_r1": 33.9, "t2v_r5": 60.7, "t2v_r10": 73.2, "t2v_median_rank": 3}),
    "msrvtt_retrieval_rerank": ("rerank", 8, 40, {"t2v_r1": 33.8, "t2v_r5": 61.4, "t2v_r10": 72.7}),
    "didemo_retrieval": ("reference", 8, 50, {"t2v_r1": 35.9, "t2v_r5": 67.5, "t2v_r10": 78.8, "t2v_median_rank": 3}),
    "msrvtt_zero_shot": ("reference", 8, 40, {"t2v_r1": 24.1, "t2v_r5": 44.7, "t2v_r10": 55.4, "t2v_median_rank": 8}),
    "didemo_zero_shot": ("reference", 8, 50, {"t2v_r1": 23.8, "t2v_r5": 47.3, "t2v_r10": 57.9, "t2v_median_rank": 6}),
    "msrvtt_qa": ("classifier", 16, 40, {"accuracy": 42.1}),
    "msvd_qa": ("classifier", 16, 40, {"accuracy": 45.9}),
}
TRAININGS = {
    "finetune": [["msrvtt_ret"], ["didemo_ret"], ["msrvtt_qa"], ["msvd_qa"]],
    "ablation_losses": [["none", "msrvtt_ret"], ["mlm-vtm", "msvd_qa"], ["vtc", "msrvtt_qa"], ["all", "didemo_ret"]],
    "ablation_frames": [["2"], ["4"], ["8"], ["16"]],
    "ablation_entities": [["0"], ["500"], ["1000"], ["2000"]],
    "ablation_prompts": [["fine-tuned"], ["zero-shot"]],
}
MODULES = {
    "finetune": finetune,
    "ablation_losses": ablation_losses,
    "ablation_frames": ablation_frames,
    "ablation_entities": ablation_entities,
    "ablation_prompts": ablation_prompts,
}


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """Restore the verbosity of transformers, which a command lowers for the whole process."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return make_released(tmp_path_factory.mktemp("released"))


def test_the_miniature_has_the_released_form(miniature):
    for name, extension in (
        ("msrvtt_ret", ".mp4"),
        ("didemo_ret", ".mp4"),
        ("msrvtt_qa", ".mp4"),
        ("msvd_qa", ".avi"),
    ):
        rows = [json.loads(line) for line in (miniature / name / "txt" / "test.jsonl").read_text().splitlines()]
        if name.endswith("_ret"):
            assert {tuple(row) for row in rows} == {("caption", "clip_name")}
        else:
            assert {tuple(row) for row in rows} == {("question", "answer", "video_id", "answer_type")}
            assert {row["answer_type"] for row in rows} <= {"what", "who", "how", "where", "when"}
            numbers = json.loads((miniature / name / "txt" / "train_ans2label.json").read_text())
            assert sorted(numbers.values()) == list(range(5))
            assert {row["answer"] for row in rows} - set(numbers), "some answers are out of the list"
        for row in rows:
            assert (miniature / name / "videos" / f"{row.get('clip_name') or row['video_id']}{extension}").is_file()
    assert (miniature / "msrvtt_ret" / "videos" / "video7010.mp4").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_from_released_files_to_results(name, miniature, tmp_path, capsys):
    """convert -> evaluate -> result file, and the expected numbers in the table."""
    protocol, frames, tokens, numbers = EVALUATIONS[name]
    shutil.copytree(miniature, tmp_path / "released")
    for number in numbers.values():
        assert f"{number:g}" in published.described(name)
    assert published.main([name, "--dry", "--output", str(tmp_path), "--draws", "20", "--no-plot"]) == 0
    results = read_results(tmp_path / "results")
    assert results.protocol["name"] == protocol
    assert (results.protocol["num_frames"], results.protocol["text_length"]) == (frames, tokens)
    assert results.protocol["frame_sampling"] == "uniform"
    assert results.data["missing"] == 0
    assert results.details["skipped"] == []
    assert len(read_predictions(tmp_path / "results")) == (12 if results.task == "retrieval" else results.data["rows"])
    record = json.loads((tmp_path / "reproduction.json").read_text())
    assert record["published"] == numbers
    assert record["here"] == {metric: results.metrics[metric] for metric in numbers}
    assert record["dry"] is True
    assert [shlex.split(command)[1] for command in record["commands"]] == ["convert", "evaluate"]
    assert shlex.split(record["commands"][-1]) == results.command
    if results.task == "qa":
        assert 0 < results.metrics["out_of_list"] < results.data["questions"]
        assert results.data["questions"] > 20
    out = capsys.readouterr().out
    for metric, value in numbers.items():
        assert f"{metric:18}{value:10.1f}{results.metrics[metric]:8.1f}" in out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("finetune", ["msvd_qa"]), ("ablation_losses", ["pem", "didemo_ret"])])
def test_trainings_go_all_the_way(name, words, miniature, tmp_path):
    shutil.copytree(miniature, tmp_path / "released")
    module = MODULES[name]
    assert module.main([*words, "--dry", "--output", str(tmp_path), "--draws", "20", "--no-plot"]) == 0
    record = json.loads((tmp_path / "reproduction.json").read_text())
    expected = {"finetune": ["convert", "train"], "ablation_losses": ["convert", "train", "train"]}[name]
    assert [shlex.split(command)[1] for command in record["commands"]] == [*expected, "evaluate"]
    assert read_results(tmp_path / "results").model["name"] == str(tmp_path / "finetuned")
    values = json.loads((tmp_path / "finetuned" / "recipe.json").read_text())
    assert values["learning_rate"] == (5e-5 if name == "finetune" else 4e-5)
    if name == "ablation_losses":
        values = json.loads((tmp_path / "pretrained" / "recipe.json").read_text())
        assert (values["vtc_weight"], values["pem_weight"]) == (0, 1)


@pytest.mark.slow
def test_the_prompter_gets_other_entities(miniature, tmp_path):
    """The released prompter gets prompts of three entities, with all templates and with one; no command does this."""
    shutil.copytree(miniature, tmp_path / "released")
    args = type("Args", (), {"output": tmp_path, "dry": True, "print": False, "checkpoint": None})()
    models = {}
    for ensembled in (True, False):
        models[ensembled] = AlproPrompterModel.from_pretrained(Run(args, []).prompter(3, ensembled))
        assert models[ensembled].config.entities == ["fox", "bell", "door"]
    assert not models[True].video_prompt_embeds.allclose(models[False].video_prompt_embeds)


@pytest.mark.parametrize("name", TRAININGS)
def test_every_command_of_a_training_is_one_that_alpro_knows(name, tmp_path, capsys):
    """--print prints the commands and runs none, so the released files need not exist."""
    module = MODULES[name]
    for words in TRAININGS[name]:
        assert module.main([*words, "--released", "RELEASED", "--output", str(tmp_path / "out"), "--print"]) == 0
        lines = [line.removeprefix("$ ") for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
        commands = [shlex.split(line)[1:] for line in lines]
        assert [command[0] for command in commands][-1] == "evaluate"
        for command in commands:
            args = parse_arguments(command)
            if command[0] == "train":
                assert "max_steps" not in args, "the values of the paper stay"
        assert not any((tmp_path / "out").iterdir())


def test_released_files_or_a_dry_run(capsys):
    for words in ([], ["--released", "RELEASED", "--dry"]):
        with pytest.raises(SystemExit):
            published.main(["msvd_qa", *words, "--output", "out"])
        assert "--released" in capsys.readouterr().err


def test_without_a_name_the_table_is_printed(capsys):
    assert published.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in EVALUATIONS)


def test_a_name_that_no_row_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        published.main(["msrvt_retrieval", "--dry", "--output", "out"])
    assert "msrvtt_retrieval" in capsys.readouterr().err
