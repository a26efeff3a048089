"""Short runs of scripts/checks/stress/fuzz.py: changed files are read or refused with the typed error of their reader.

The same files each time; and after them as many others, of a new seed, as fit into ALPRO_FUZZ_SECONDS for each kind of
reader: 30 where CI=true, else none. Among these may be the first that ever crashes FFmpeg, so they run in a process
of their own; then the file must cost no more than itself where decoding is isolated, and a warning names it.
"""

import os
import random
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fuzz
import pytest

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding_types import VideoDecodeError

SCRIPT = Path(fuzz.__file__)
RUNS = {"annotations": 1500, "decoding": 700}
SECONDS = float(os.environ.get("ALPRO_FUZZ_SECONDS", "30" if os.environ.get("CI") == "true" else "0"))


@pytest.mark.parametrize("name", RUNS)
def test_changed_files_are_read_or_refused(name, tmp_path) -> None:
    seeds, target = fuzz.TARGETS[name](tmp_path)
    start, findings = time.monotonic(), fuzz.Findings(target, tmp_path / "findings")
    draw = findings.begin(name, 20, seeds)
    assert set(findings.seen) == {"frames"} if name == "decoding" else "rows" in findings.seen
    for _ in range(RUNS[name]):
        findings.try_one(fuzz.changed(seeds, draw))
    assert sum(findings.seen.values()) == RUNS[name] + len(seeds)
    assert len(findings.seen) >= 2, findings.seen  # some were read, some refused
    assert findings.slowest < fuzz.SLOW
    left = SECONDS - (time.monotonic() - start)
    if left > 1:
        try_others(name, left, tmp_path / "others", seeds[0])


def try_others(name: str, seconds: float, folder: Path, good: bytes) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    command = [sys.executable, str(SCRIPT), name, "--seed", str(seed), "--findings", str(folder)]
    ran = subprocess.run(
        [*command, "--seconds", f"{seconds:.0f}"], capture_output=True, text=True, timeout=seconds + 120
    )
    if name == "decoding" and ran.returncode < 0:
        crashes = (folder / "last").read_bytes()
        with IsolatedDecoder(processes=1) as decoder:
            with pytest.raises(VideoDecodeError):
                decoder.decode(crashes, [0], height=16, width=16)
            assert decoder.decode(good, [0]).indices == [0]
        warnings.warn(f"FFmpeg crashed in {shlex.join(command)} at {crashes.hex()}", stacklevel=2)
        return
    assert ran.returncode == 0, f"exit code {ran.returncode}: {shlex.join(command)}\n{ran.stderr[-3000:]}"
    assert f"{name}: " in ran.stdout, ran.stdout


def test_a_finding_tells_how_it_is_made_again(tmp_path) -> None:
    def target(data: bytes) -> str:
        return "short" if len(data) < 100 else 1 // 0

    findings, seeds = fuzz.Findings(target, tmp_path), [b"ab" * 40, b"cd" * 40]
    draw = findings.begin("decoding", 7, seeds)

    def until_one_is_found() -> None:
        while True:
            findings.try_one(fuzz.changed(seeds, draw))

    with pytest.raises(ZeroDivisionError) as found:
        until_one_is_found()
    number = sum(findings.seen.values()) + 1
    kept = (tmp_path / "finding").read_bytes()
    [note] = found.value.__notes__
    assert (
        f"python scripts/checks/stress/fuzz.py decoding --seed 7 --runs {number}" in note
        and str(tmp_path / "finding") in note
    )
    draw = random.Random(7)
    assert [fuzz.changed(seeds, draw) for _ in range(number - len(seeds))][-1] == kept
