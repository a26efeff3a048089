"""Where an optional package is not installed, a command says so in one sentence and names what installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def without(package: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Python runs the command in the folder, and finds no such package there."""
    (folder / "hidden").mkdir(exist_ok=True)
    (folder / "hidden" / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    path = os.pathsep.join((str(folder / "hidden"), *filter(None, (os.environ.get("PYTHONPATH"),))))
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "captions.txt").write_text("a dog runs\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"video": "a.png", "text": "a dog runs"}\n')
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "trainer_state.json").write_text(
        '{"global_step": 2, "log_history": [{"loss": 1.0, "step": 1}, {"loss": 0.5, "step": 2}]}'
    )
    return tmp_path


ALPRO = ("-m", "alpro_hf")
CASES = {
    "entities": ("spacy", (*ALPRO, "entities", "captions.txt", "--output", "entities.txt")),
    "plot": ("matplotlib", (*ALPRO, "plot", "train")),
    "evaluate": ("matplotlib", (*ALPRO, "evaluate", "--task", "retrieval", "--data", "rows.jsonl", "--output", "out")),
    "train": (
        "matplotlib",
        (
            *(*ALPRO, "train", "--recipe", "msrvtt-retrieval", "--model", "start"),
            *("--data", "rows.jsonl", "--output", "out", "--plot"),
        ),
    ),
    "demo page": ("gradio", (str(ROOT / "spaces_demo" / "app.py"),)),
    "export": ("onnxruntime", (*ALPRO, "export-onnx", "retrieval", "onnx")),
}
EXTRA = {"spacy": "entities", "matplotlib": "plot", "gradio": "demo", "onnxruntime": "onnx"}


@pytest.mark.parametrize("case", CASES)
def test_a_command_names_the_extra_that_it_needs(case: str, captions: Path) -> None:
    package, command = CASES[case]
    before = sorted(captions.rglob("*"))
    ran = without(package, captions, *command)
    assert f'pip install "alpro-hf[{EXTRA[package]}]"' in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (ran.returncode, ran.stdout) == (1, "")
    assert [path for path in sorted(captions.rglob("*")) if "hidden" not in path.parts] == before


def test_the_harness_without_mteb(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "alpro_hf.evaluation.mteb", raising=False)
    with pytest.raises(ImportError, match=r'pip install "alpro-hf\[mteb\]"'):
        import alpro_hf.evaluation.mteb  # noqa: F401
