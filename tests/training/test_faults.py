"""What power cuts, full disks and impatient schedulers do to long work: nothing that was there before is harmed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import faults
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What `fixtures/faults.py` saw, run by itself: it forks, which no process that tests ran in should."""
    folder = tmp_path_factory.mktemp("faults")
    paths = os.pathsep.join([str(Path(faults.__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, faults.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": folder, "errors": done.stderr}


def test_an_index_that_is_killed_keeps_what_it_had_and_goes_on(seen) -> None:
    assert len(seen["index"]) == faults.MOMENTS["index"] + faults.MOMENTS["decode"]
    names = [f"{i}.mp4" for i in range(faults.CLIPS)]
    for ended, kept, whole, files in seen["index"]:
        assert ended in (-9, 0) and whole, seen["errors"]
        assert kept[:2] == names[:2] and kept == names[: len(kept)]  # in order, nothing half
        assert not [name for name in files if name.endswith(".partial")]
    assert sum(ended == -9 for ended, *_ in seen["index"]) >= faults.MOMENTS["index"] // 2
    assert len({len(kept) for _, kept, *_ in seen["index"]}) > 1  # it was caught at different places
    decoding = seen["index"][faults.MOMENTS["index"] :]
    assert [ended for ended, *_ in decoding] == [-9, -9, -9]  # in the midst of clips, the next one being read ahead
    assert 2 == len(decoding[0][1]) < len(decoding[-1][1]) < faults.CLIPS


def test_an_evaluation_that_is_killed_leaves_the_results_there_were(seen) -> None:
    *killed, last = seen["evaluation"]
    assert killed == [[-9, True]] * faults.MOMENTS["evaluation"], (seen["folder"] / "evaluation.txt").read_text()
    assert last == [0, False]


def test_results_that_are_killed_are_the_old_the_new_or_an_error_that_says_so(seen) -> None:
    told = [found for ended, found, _ in seen["results"] if ended == -9]
    assert len(told) >= 3 and 1.0 in told
    for ended, found, after in seen["results"]:
        assert ended in (-9, 0)
        assert found in (0.0, 1.0) or re.search("belong|differ|do not|another", found), found
        assert after == 0.0  # written again, all is well


def test_a_checkpoint_that_is_killed_leaves_the_one_before(seen) -> None:
    assert sum(ended == -9 for ended, _ in seen["checkpoint"]) >= faults.MOMENTS["checkpoint"] // 2
    for ended, newest in seen["checkpoint"]:
        assert ended in (-9, 0)
        assert newest in ("checkpoint-1", "checkpoint-2", "checkpoint-3")


def test_sigterm_saves_a_checkpoint_from_which_a_training_goes_on_exactly(seen) -> None:
    assert seen["training"] == [0, 0], seen["errors"]
    weights, expected = (
        load_file(seen["folder"] / run / "final" / "model.safetensors") for run in ("training", "whole")
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("fault", "code", "said", "kept"),
    [
        ("full", 1, r"File too large|no room|os error 27", 2),
        ("sealed", 1, r"Permission denied.*index", 0),
        ("told", 143, r"terminated; what is done is kept", 3),
    ],
)
def test_indexing_ends_with_a_sentence_and_harms_nothing(seen, fault, code, said, kept) -> None:
    ended, text, videos, files = seen["commands"][fault]
    assert ended == code, (text, seen["errors"])
    last = text.splitlines()[-1]
    assert last.startswith("alpro index: ") and re.search(said, last), text
    assert "Traceback" not in text
    assert videos == kept
    if fault == "sealed":
        assert files == []
