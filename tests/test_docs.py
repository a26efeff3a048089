"""The pages of docs/: their code runs, their links lead somewhere, the reference is what the docstrings say."""

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

from alpro_hf import bundled_model
from alpro_hf.cli import main as cli
from alpro_hf.cli import publish as publish_command
from alpro_hf.sprites.render import write_split

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
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
        monkeypatch.setattr(publish_command, "HfApi", lambda: double.api())
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
    for line in code.splitlines():
        program, *arguments = shlex.split(line)
        if (program, arguments[0]) in (("pip", "install"), ("alpro", "demo")):
            continue
        assert program == "alpro", line
        short = shlex.split(SHORT) if arguments[0] == "train" else []
        assert cli.main([*arguments, *short]) == 0, line
        ran.append(arguments)
    return ran


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
        assert all(line in said for line in shown.splitlines())
        assert [words[0] for words in commands] == ["index", "search", "ask"]
    elif page == "concepts.md":
        torch.testing.assert_close(names["similarity"].squeeze(), torch.tensor([0.897, 0.757]), atol=1e-2, rtol=0)
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


def test_the_reference_is_what_the_docstrings_say() -> None:
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "scripts" / "api_reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.reference()
    assert (DOCS / "api.md").read_text("utf-8") == page, "out of date: python scripts/api_reference.py"
    assert {"### `AlproModel`", "#### `VideoIndex.search`", "### `publish`"} <= set(page.splitlines())
    examples = re.findall(r"^```pycon\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(examples) > 10
    for example in examples:
        for part in doctest.DocTestParser().get_examples(example):
            compile(part.source, "docs/api.md", "single")


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
