"""A short, seeded run of scripts/fuzz.py: changed files are read or refused with the typed error of their reader."""

import importlib.util
import random
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"
RUNS = {"annotations": 1500, "decoding": 700}


@pytest.mark.parametrize("name", RUNS)
def test_changed_files_are_read_or_refused(name, tmp_path, caplog) -> None:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None and spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    seeds, target = fuzz.TARGETS[name](tmp_path)
    findings, draw = fuzz.Findings(target, tmp_path / "findings"), random.Random(20)
    for seed in seeds:
        findings.try_one(seed)
    assert set(findings.seen) == {"frames"} if name == "decoding" else "rows" in findings.seen
    for _ in range(RUNS[name]):
        findings.try_one(fuzz.changed(seeds, draw))
    assert sum(findings.seen.values()) == RUNS[name] + len(seeds)
    assert len(findings.seen) >= 2, findings.seen  # some were read, some refused
    assert findings.slowest < fuzz.SLOW
