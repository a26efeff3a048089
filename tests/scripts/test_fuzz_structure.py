"""Short runs of scripts/checks/stress/fuzz_structure.py.

For ALPRO_FUZZ_SECONDS, as `.ci/run fuzz` sets it, each reader also gets files of a new seed, in a separate process.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import fuzz_structure
import pytest

SECONDS = float(os.environ.get("ALPRO_FUZZ_SECONDS", "0"))


@pytest.mark.parametrize("name", fuzz_structure.TARGETS)
def test_files_of_a_grammar_are_read_or_refused(name, tmp_path) -> None:
    seen = fuzz_structure.run(name, tmp_path, 7, 300 if name == "manifests" else 60)
    assert sum(seen.values()) >= 40 and len(seen) >= 2, seen
    assert not [outcome for outcome in seen if "without the file" in outcome], seen
    if SECONDS > 1:
        seed = random.SystemRandom().randrange(1 << 24)
        command = [sys.executable, fuzz_structure.__file__, name, "--seconds", str(SECONDS), "--seed", str(seed)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 200)
        assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout[-500:]}{ran.stderr[-3000:]}"


def test_a_finding_is_shrunk_and_shown(monkeypatch, tmp_path) -> None:
    def broken(folder: Path):
        def target(field: str, value: str) -> str:
            return str(1 // (len(value) < 9))

        return ["a"], target

    monkeypatch.setitem(fuzz_structure.TARGETS, "broken", broken)
    with pytest.raises(ZeroDivisionError) as found:
        fuzz_structure.run("broken", tmp_path, 0, 200)
    assert any("value=" in note for note in found.value.__notes__)
