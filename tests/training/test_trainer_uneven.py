"""Two real processes, of which one lacks rows: healthy rows of the other are kept, and nothing hangs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import uneven_in_processes as script
from fixtures.processes import environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("uneven")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, script.__file__, str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_no_healthy_row_is_lost(seen) -> None:
    """Process 0 lacks row 1, so row 3 waits in process 1, and takes the place of row 6 in its next batch."""
    _, found = seen
    assert [one["uneven"]["rows"] for one in found] == [[[0], [4, 5]], [[2], [3, 7]]]
    assert found[0]["uneven"]["metrics"]["train_rows"] == 6
    assert found[0]["uneven"]["metrics"]["train_rows_left_out"] == 0


def test_a_process_without_a_batch_lets_all_wait(seen) -> None:
    _, found = seen
    rows = [one["empty"]["rows"] for one in found]
    assert len(rows[0]) == len(rows[1]) == 2
    metrics = found[0]["empty"]["metrics"]
    assert metrics["train_rows"] == sum(len(batch) for one in rows for batch in one)
    healthy = 2 * 6
    assert metrics["train_rows"] + metrics["train_rows_left_out"] == healthy, "each healthy row is used or counted"


def test_questions_wait_as_whole_batches(seen) -> None:
    _, found = seen
    rows = [one["questions"]["rows"] for one in found]
    assert rows == [[[0, 1]], [[6, 7]]]
    assert found[0]["questions"]["metrics"]["train_rows_left_out"] == 2


def test_all_processes_report_that_there_was_nothing(seen) -> None:
    folder, found = seen
    for one in found:
        assert "Nothing was learned, and nothing was saved: 8 of 8 rows were dropped" in one["nothing"]["error"]
        assert one["nothing"]["rows"] == []
    assert {path.name for path in (folder / "nothing").iterdir()} == {"dropped_rows.jsonl"}


def test_waiting_rows_are_saved_with_a_checkpoint(seen) -> None:
    folder, found = seen
    assert (folder / "whole" / "checkpoint-1" / "waiting_rows_1.pt").is_file()
    for one in found:
        assert one["resumed"]["rows"] == one["whole"]["rows"][1:]


def test_an_evaluation_of_which_one_process_has_nothing(seen) -> None:
    _, found = seen
    for one in found:
        assert one["evaluated one"] == {"dropped": 2.0}
        assert "nothing to evaluate" in one["evaluated all"]["error"]
