"""Links in the output folder of a training lead no write and no deletion out of it."""

from pathlib import Path

from fixtures import killed_trainings as trainings

from alpro_hf.training.checkpoints import mark_incomplete

WRITTEN = (
    *("model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
    *("training_args.bin", "dropped_rows.jsonl", "train_results.json"),
)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_training_writes_to_none_of_the_files_that_links_name(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    for name in WRITTEN:
        (precious / name).write_text("precious")
    before = contents(precious)
    output = tmp_path / "run"
    (output / "checkpoint-2").mkdir(parents=True)
    for name in WRITTEN:
        (output / name).symlink_to(precious / name)
        (output / "checkpoint-2" / name).symlink_to(precious / name)
    (output / "checkpoint-1").symlink_to(precious)
    (output / "checkpoint-3").symlink_to(tmp_path / "nowhere")
    trainer = trainings.training(output, max_steps=3, save_steps=1, save_total_limit=2)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert contents(precious) == before
    assert not (tmp_path / "nowhere").exists()
    kept = sorted(path.name for path in output.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-3"]
    for folder in (output, output / "checkpoint-2", output / "checkpoint-3"):
        assert not [path for path in (folder, *folder.iterdir()) if path.is_symlink()]
        assert (folder / "model.safetensors").stat().st_size > 1000


def test_an_incomplete_mark_is_not_set_through_a_link(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "trainer_state.json").write_text("precious")
    (tmp_path / "checkpoint-1").symlink_to(precious)
    mark_incomplete(tmp_path / "checkpoint-1")
    assert contents(precious) == {"trainer_state.json": "precious"}
    mark_incomplete(tmp_path / "checkpoint-7")  # there is none yet
