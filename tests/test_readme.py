"""What the README shows is what happens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alpro_hf.data.sprite_render import write_split

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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


def test_two_commands_do_all_the_set_up() -> None:
    commands = re.findall(r"^python3 -m venv \.venv.*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("alpro demo")
    assert commands[1].endswith("pytest")


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z0-9]+@|TODO|FIXME", README)
