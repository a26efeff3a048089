"""Two real processes, of which one lacks rows: healthy rows of the other are kept, and nothing hangs."""

import json
from pathlib import Path

import pytest
from fixtures import colours
from fixtures import uneven_in_processes as script
from fixtures.processes import run_together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("uneven")
    done = run_together(2, [script.__file__, str(folder)])
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


def test_one_process_continues_what_two_began(seen, tmp_path, caplog) -> None:
    """With twice the rows in a batch, it learns from the rows of the steps that are left, and says what differs."""
    folder, _ = seen
    rows = script.without(colours.retrieval_rows(4)[:8], 1)
    training = script.trainer(tmp_path, rows, per_device_train_batch_size=4, num_train_epochs=2, max_steps=3)
    learned: list[list[int]] = []
    compute_loss = training.compute_loss

    def noting(model, inputs, *args, **kwargs):
        learned.append(inputs["row_ids"].tolist())
        return compute_loss(model, inputs, *args, **kwargs)

    training.compute_loss = noting
    training.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-1"))
    assert training.state.global_step == 3
    assert learned == [[4, 5, 6, 7], [0, 2, 3]]
    assert "was written by 2 processes, and 1 continue it" in caplog.text
    assert all(weight.isfinite().all() for weight in training.model.parameters())
