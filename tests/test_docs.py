"""The pages of docs/: their code runs, their links lead somewhere, the reference lists what is public."""

import ast
import doctest
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.hub_double import HubDouble
from huggingface_hub import constants
from transformers.utils import logging

import alpro_hf
from alpro_hf import bundled_model
from alpro_hf.cli import main as cli
from alpro_hf.hub import publish as hub_publish
from alpro_hf.sprites.films import write_films
from alpro_hf.sprites.render import write_split

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "alpro_hf"
PAGES = ("quick_start.md", "concepts.md", "how_to.md")
# what makes a documented training short
SHORT = "--max_steps 1 --global_batch_size 3 --image_size 64 --num_frames 2 --dataloader_num_workers 0 --use_cpu true"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of each block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: clips, rows and models."""
    folder = tmp_path_factory.mktemp("docs")
    test = write_split(folder / "alpro-demo", "test", 6, progress=False)
    (folder / "holiday").symlink_to(test / "clips")
    films = write_films(folder / "alpro-films", count=1, scenes=(2, 2), seconds=(0.5, 1.0), size=64, progress=False)
    (folder / "films").symlink_to(films)
    (folder / "my-model").symlink_to(bundled_model("retrieval"))
    (folder / "my-qa-model").symlink_to(bundled_model("qa"))
    rows = [json.loads(line) for line in (test / "retrieval.jsonl").read_text("utf-8").splitlines()]
    lines = [json.dumps({"video": row["video"].replace("clips", "holiday"), "text": row["text"]}) for row in rows]
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture
def at_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A Hub that `alpro publish` talks to."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubDouble() as double:
        monkeypatch.setattr(hub_publish, "HfApi", lambda: double.api())
        yield double


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """The command silences the library for its process, which here is everybody's."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run_commands(code: str) -> list[list[str]]:
    """The `alpro` commands of a block, run in this process, but what takes the network or draws the demo."""
    ran = []
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        if (program, arguments[0]) in (("pip", "install"), ("alpro", "demo")):
            continue
        assert program == "alpro", line
        short = shlex.split(SHORT) if arguments[0] == "train" else []
        assert cli.main([*arguments, *short]) == 0, line
        ran.append(arguments)
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(
    page: str,
    prepared: Path,
    at_double: HubDouble,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In its order, in one namespace, in a folder with clips and models; only other packages may be missing."""
    monkeypatch.chdir(prepared)
    names: dict[str, Any] = {}
    commands: list[list[str]] = []
    for language, code in blocks(page):
        if language == "bash":
            commands += run_commands(code)
        elif language == "python":
            if "sentence_transformers" in code and importlib.util.find_spec("sentence_transformers") is None:
                continue
            exec(compile(code, page, "exec"), names)
        else:
            assert language == "text", f"{page}: a block of {language} is not run"
    said = capsys.readouterr().out
    if page == "quick_start.md":
        assert "alpro-demo/test/clips/00000.mp4 0.98" in said  # the pipeline's
        shown = next(code for language, code in blocks(page) if language == "text")
        # processors differ in the last digits
        numbers = re.compile(r"\d+\.\d+")
        for line in shown.splitlines():
            [found] = [one for one in said.splitlines() if numbers.sub("#", one) == numbers.sub("#", line)]
            printed, expected = ([float(number) for number in numbers.findall(one)] for one in (found, line))
            assert printed == pytest.approx(expected, abs=0.5), line
        assert [words[0] for words in commands] == ["index", "search", "ask"]
    elif page == "concepts.md":
        torch.testing.assert_close(names["similarity"].squeeze(), torch.tensor([0.751, 0.569]), atol=1e-2, rtol=0)
        assert names["match"][0] > 0.9 > names["match"][1]
    else:
        assert "which would be created (public)" in said
        assert list(at_double.repos) == [("model", "acme/alpro-holiday")]
        repo = at_double.repos["model", "acme/alpro-holiday"]
        assert repo.private
        assert "| rerank | R@1 text to video |" in repo.files()["README.md"].content.decode()
        assert (prepared / "curves.png").stat().st_size > 10_000
        assert names["captions"][0]["text"] == "a bell bounces"
        assert "notes.mp4" in said and "a bell bounces" in said


def test_links_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if "://" not in target:
                assert (DOCS / target).is_file(), f"{page.name} links to {target}"


# besides those that `alpro_hf` itself exports, names that programs rely on, wherever their module is
RELIED_ON = """
AlproConfig AlproTextConfig AlproVideoConfig
AlproModel AlproForVideoTextRetrieval AlproForVideoQuestionAnswering AlproTextModel AlproVideoModel
AlproOutput AlproRetrievalOutput AlproForPreTraining AlproPreTrainingOutput AlproPrompterModel
CheckpointError assemble_state bert_names text_state_from_bert video_state_from_vit
decode probe Frames VideoInfo VideoLimits VideoDecodeError FrameTable IsolatedDecoder
AlproVideoProcessor AlproProcessor VideoQuestionAnsweringPipeline TextVideoRetrievalPipeline
VideoIndex SearchResult IndexingReport VideoIndexError IndexMismatchError ask Answer
EntityMaps SentenceMaps WordMap black_pixel box_entities entity_maps patch_grid region_masks word_maps
classification_loss crop_on_black crop_to_patches pem_kept pem_loss same_pair_mask sample_hard_negatives
vtc_loss vtm_labels AlproTrainer AlproTrainingArguments DroppedRowsError NonFiniteLossError StopWhenTerminated
AlproRecipe RecipeError batch_per_device read_recipe recipe_names recipe_table
load_annotations AlproCollator Collated Draw NumberedRows dropped_clips video_id
AlproAugmentation apply_operation box_mask draw_crop AlproPreTrainingCollator ImageDecodeError read_image MixedRows
EntityListError NounCounts TaggerError build_prompter count_nouns load_tagger prompts read_entities write_entities
LabelSummary PseudoLabelError pseudo_label read_rows read_skipped summarise
RetrievalStates encode_batches merge_states question_answering_metrics retrieval_metrics retrieval_ranks
retrieval_scores vtc_scores vtm_scores Answers Skipped answer_rows encode_rows gather_states match_pairs processes
PairScores clip_name measure_answers measure_retrieval break_down groups_of plot_breakdown
Results ResultsError RowMetric data_fingerprint metric_intervals model_source package_versions question_rows
read_predictions read_results retrieval_rows row_metrics write_results AlproEncoder
convert convert_original_checkpoint load_original_checkpoint read_answers
ExportError add_remote_code code_files export UploadPlan plan_upload upload publish PublishError
ModelCardError TrainingFacts draw_model model_card bundled_model
"""


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    entries: set[str] = set()
    for page in (DOCS / "api").glob("*.rst"):
        module = ""
        for kind, name in re.findall(r"^\.\. auto(\w+):: ([\w.]+)$", page.read_text("utf-8"), flags=re.MULTILINE):
            if kind == "module":
                module = name
            else:
                entries.add(name if name.startswith("alpro_hf.") else f"{module}.{name}")
    assert len(entries) > 150
    assert {f"alpro_hf.{name}" for name in alpro_hf.__all__} <= entries
    assert set(RELIED_ON.split()) <= {entry.rpartition(".")[2] for entry in entries}


def test_examples_of_docstrings_compile() -> None:
    compiled = 0
    for source in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                # the end of a fence would pass for the output of the line above it
                for example in doctest.DocTestParser().get_examples(text.replace("```", "")):
                    compile(example.source, str(source), "single")
                    compiled += 1
    assert compiled > 10


def test_scripts_and_files_that_the_pages_name_are_there() -> None:
    for page in PAGES:
        text = (DOCS / page).read_text("utf-8")
        for name in re.findall(r"(?:scripts|spaces_demo|src/alpro_hf)/\w+\.py", text):
            assert (ROOT / name).is_file(), f"{page} names {name}"


def commands_of_pretraining() -> list[str]:
    """What calls `alpro`, also by torchrun; it takes minutes, so it is only parsed."""
    code = "\n".join(code for _, code in blocks("pretraining.md")).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in code.splitlines() if re.match(r"\$ alpro |alpro |torchrun ", line)]


@pytest.mark.parametrize("command", commands_of_pretraining())
def test_commands_of_pretraining_parse(command: str) -> None:
    words = shlex.split(command)
    words = words[1:] if words[0] == "alpro" else words[words.index("alpro_hf") + 1 :]
    assert cli.parse_arguments(words).run


def test_pretraining_is_five_commands_and_two_launches() -> None:
    found = [line.split()[:2] for line in commands_of_pretraining()]
    assert [second for _, second in found[:5]] == ["entities", "train", "pseudo-label", "train", "plot"]
    assert [first for first, _ in found[5:]] == ["torchrun", "torchrun"]


def test_each_thing_from_outside_has_a_bound_and_a_test() -> None:
    """The table in reliability.md: its files and tests are there, and each test file has a test."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.partition("## What comes from outside")[2].partition("\n### ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 15
    for what, enters, bounds, test in rows:
        assert what.strip() and bounds.strip()
        for path in re.findall(r"`([\w/]+\.py)`", enters):
            assert (ROOT / path).is_file() or (ROOT / "src" / "alpro_hf" / path).is_file(), path
        tests = re.findall(r"`(tests/[\w/]+\.py)`", test)
        assert tests, what
        for path in tests:
            assert "\ndef test_" in (ROOT / path).read_text(encoding="utf-8"), path
