"""What the README shows is what happens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alpro_hf.assets import bundled_model
from alpro_hf.sprites.render import write_split

# kind of choice, type of question -> how the row of the table begins
CHOICES = {
    "opposite": "prefers the caption to its opposite",
    "opposite: left/right": "... left / right",
    "opposite: up/down": "... up / down",
    "opposite: grow/shrink": "... grows / shrinks",
    "opposite: appear/disappear": "... appears / disappears",
    "opposite: bounce/sway": "... bounces / sways",
    "opposite: follow/pass": "... follows / passes",
    "opposite: clockwise/counterclockwise": "... spins",
    "opposite: order": "... order",
    "opposite: roles": "... who follows whom",
    "reversed": "prefers the caption to that of the clip played backwards",
    "swapped": "prefers the caption to one with two actions exchanged",
}
ANSWERS = {
    "question answering, all": ["accuracy"],
    "... what / where": [f"accuracy_{kind}" for kind in ("what", "where", "how_many", "which_way", "which_first")],
    "... which way it moves": ["which way: motion", "which way: spin"],
    '... "what grows?"': ["what: name", "what: action"],
}
# the rows that the README has too
SHORT = (
    "text to video",
    "best 16",
    "prefers the caption to its opposite",
    "... spins",
    "... order",
    "... who follows whom",
    "question answering, all",
)
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BUNDLED_MODELS = (ROOT / "docs" / "bundled_models.md").read_text(encoding="utf-8")


def test_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, shown = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[:2]
    write_split(tmp_path / "alpro-demo", "test", 1, progress=False)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    outputs = names["outputs"]
    assert f"({outputs.video_embeds.shape}, {outputs.text_embeds.shape})" in shown
    printed = re.search(r"tensor\((\[\[.*?\]\])\)", shown, flags=re.DOTALL)
    assert printed is not None
    expected = torch.tensor(json.loads(printed.group(1)))
    torch.testing.assert_close(outputs.text_embeds @ outputs.video_embeds.T, expected, atol=5e-3, rtol=0)


def row(label: str, page: str) -> list[list[float]]:
    """The numbers of a row of a page's table: a list for each test."""
    [line] = [line for line in page.splitlines() if line.startswith(f"| {label}")]
    return [[float(number) for number in cell.split(" / ")] for cell in line.strip("| ").split(" | ")[1:]]


def test_the_table_is_what_was_measured() -> None:
    """Every number of it is in the files that the measuring script wrote beside the weights."""
    results = {
        task: json.loads(Path(bundled_model(task), "results.json").read_text("utf-8"))["results"]
        for task in ("retrieval", "qa")
    }
    expected: dict[str, list[list[float]]] = {}
    for split in ("test", "test-hard"):
        found, answers = results["retrieval"][split], results["qa"][split]["qa"]
        for protocol, label in (("vtc", "text to video"), ("rerank", "best 16"), ("reference", "VTM of all pairs")):
            if protocol in found["retrieval"]:
                numbers = [found["retrieval"][protocol][f"t2v_r{k}"] for k in (1, 5, 10)]
                expected.setdefault(label, []).append(numbers)
        for kind, label in CHOICES.items():
            numbers = [found["choices"][kind][score] for score in ("vtc", "vtm")]
            expected.setdefault(label, []).append(numbers)
        for label, names in ANSWERS.items():
            expected.setdefault(label, []).append([answers[name] for name in names])
    for label, tests in expected.items():
        rounded = [[round(number + 1e-9, 1) for number in numbers] for numbers in tests]
        assert row(label, BUNDLED_MODELS) == rounded, label
        if label in SHORT:
            assert row(label, README) == rounded, label
    assert set(SHORT) <= set(expected)
    assert len(re.findall(r"^\| .*\d\.\d.*\|$", README, flags=re.MULTILINE)) == len(SHORT)  # no row is left unread
    unseen = results["retrieval"]["test-unseen"]["retrieval"]["vtc"]["t2v_r1"]
    for page in (BUNDLED_MODELS, README):
        assert f"(`test-unseen`), R@1 falls to {unseen:.1f}" in page


def test_two_commands_do_all_the_set_up() -> None:
    commands = re.findall(r"^python3 -m venv \.venv.*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("alpro demo")
    assert commands[1].endswith("pytest")


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z0-9]+@|TODO|FIXME", README)
