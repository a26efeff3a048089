"""The curves of real trainings of a few steps, and what is said where there is nothing to draw."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import colours
from PIL import Image

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.cli.main import main
from alpro_hf.data.collator import AlproCollator
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.curves import STATE, TrainingLogError, plot_runs, read_log, smooth
from alpro_hf.training.trainer import AlproTrainer


def train(folder: Path, model_class, **fields) -> AlproTrainer:
    is_qa = model_class is AlproForVideoQuestionAnswering
    torch.manual_seed(0)
    rows = colours.question_rows() if is_qa else colours.retrieval_rows()
    args = AlproTrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=6, learning_rate=5e-3, logging_steps=1,
        eval_strategy="steps", eval_steps=4, save_steps=4, disable_tqdm=True, dataloader_pin_memory=False, **fields
    )  # fmt: skip
    trainer = AlproTrainer(
        model=model_class(colours.config()),
        args=args,
        data_collator=AlproCollator(
            colours.processor(), task="qa" if is_qa else "retrieval", label2id=colours.ANSWERS if is_qa else None
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trainers(tmp_path_factory) -> dict[str, AlproTrainer]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "search": train(folder / "search", AlproForVideoTextRetrieval, max_steps=12, eval_protocol="rerank"),
        "ask": train(folder / "ask", AlproForVideoQuestionAnswering, max_steps=8),
    }


@pytest.fixture
def runs(trainers) -> dict[str, Path]:
    return {name: Path(trainer.args.output_dir) for name, trainer in trainers.items()}


def logged(trainer: AlproTrainer, key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]


def panels(figure) -> dict[str, object]:
    return {axes.get_title(): axes for axes in figure.axes}


def points(line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line.get_xydata().tolist()]


def write_state(folder: Path, *entries: dict, **fields) -> Path:
    """A log written by hand, for values that a short training cannot be made to have."""
    folder.mkdir(parents=True, exist_ok=True)
    last = entries[-1]["step"] if entries else 0
    path = folder / STATE
    path.write_text(json.dumps({"global_step": last, "log_history": list(entries), "logging_steps": 10} | fields))
    return path


# --- what is drawn --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_quantity_of_training_has_a_panel_with_what_was_logged(trainers, runs):
    found = panels(plot_runs([runs["search"]]))
    of_training = {
        "Total loss": "loss",
        "Contrastive loss (VTC)": "loss_vtc",
        "Matching loss (VTM)": "loss_vtm",
        "Accuracy of matching, training": "vtm_accuracy",
        "Temperature": "temperature",
        "Norm of the gradient": "grad_norm",
    }
    assert list(found)[: len(of_training) + 1] == [*of_training, "Learning rate"]
    for title, key in of_training.items():
        axes, expected = found[title], logged(trainers["search"], key)
        assert len(expected) == 12
        raw, strong = axes.lines
        assert points(raw) == expected and raw.get_alpha() == 0.3
        steps, values = map(list, zip(*expected, strict=True))
        assert strong.get_xdata().tolist() == steps and strong.get_alpha() is None
        np.testing.assert_array_equal(strong.get_ydata(), smooth(np.array(values)))
        assert axes.get_xlabel() == "step" and axes.get_ylabel().split()[0] == key
        assert axes.get_xscale() == axes.get_yscale() == "linear"
        assert axes.get_legend() is None
    (schedule,) = found["Learning rate"].lines
    assert points(schedule) == logged(trainers["search"], "learning_rate")


def test_recall_has_a_panel_for_each_direction_and_protocol(trainers, runs):
    found = panels(plot_runs([runs["search"]]))
    assert list(found)[7:] == [
        "Text-to-video recall (eval)",
        "Video-to-text recall (eval)",
        "Text-to-video recall (eval vtc)",
        "Video-to-text recall (eval vtc)",
    ]
    for title, prefix in (
        ("Video-to-text recall (eval)", "eval_v2t"),
        ("Text-to-video recall (eval vtc)", "eval_vtc_t2v"),
    ):
        axes = found[title]
        for line, k in zip(axes.lines, (1, 5, 10), strict=True):
            expected = logged(trainers["search"], f"{prefix}_r{k}")
            assert [step for step, _ in expected] == [4, 8, 12]
            assert points(line) == expected and line.get_marker() == "o"
        assert len({line.get_linestyle() for line in axes.lines}) == 3
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["R@1", "R@5", "R@10"]
        assert axes.get_ylabel() == "recall (%)"
        low, high = axes.get_ylim()
        assert all(low <= value <= high for line in axes.lines for _, value in points(line))


def test_accuracy_of_answers_in_training_and_evaluation(trainers, runs):
    found = panels(plot_runs([runs["ask"]]))
    assert list(found) == [
        "Total loss",
        "Accuracy of answers, training",
        "Norm of the gradient",
        "Learning rate",
        "Accuracy (eval)",
        "Accuracy: how many (eval)",
        "Accuracy: which (eval)",
        "eval loss",
    ]
    for title, key in (("Accuracy: which (eval)", "eval_accuracy_which"), ("eval loss", "eval_loss")):
        (line,) = found[title].lines
        assert points(line) == logged(trainers["ask"], key)
        assert key in found[title].get_ylabel()


def test_several_runs_share_panels_and_have_colours_of_their_own(trainers, runs):
    figure = plot_runs([runs["search"], runs["ask"]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["search", "ask"]
    own = dict(zip(("search", "ask"), (handle.get_color() for handle in legend.get_lines()), strict=True))
    assert own["search"] != own["ask"]
    found = panels(figure)
    strong = {line.get_label(): line for line in found["Total loss"].lines if line.get_alpha() is None}
    for name, line in strong.items():
        assert line.get_color() == own[name]
        assert line.get_xdata().tolist() == [step for step, _ in logged(trainers[name], "loss")]
    assert strong.keys() == {"search", "ask"}
    assert {line.get_color() for line in found["Temperature"].lines} == {own["search"]}
    assert {line.get_color() for line in found["Accuracy (eval)"].lines} == {own["ask"]}
    assert len({axes.get_xlim() for axes in found.values()}) == 1, "one scale of steps"


def test_many_runs_have_a_colour_each(tmp_path):
    for i in range(12):
        write_state(tmp_path / f"run{i}", {"step": 10, "loss": i}, {"step": 20, "loss": i + 1})
    (legend,) = plot_runs([tmp_path / f"run{i}" for i in range(12)]).legends
    assert len({handle.get_color() for handle in legend.get_lines()}) == 12


def test_pretraining_has_its_losses_and_statistics_in_order_and_new_quantities_follow(tmp_path):
    names = ["loss_pem", "pem_kept", "pem_entropy", "pem_agreement", "loss_mlm", "loss_vtc", "loss_new", "pem_top1"]
    entry = dict.fromkeys([*names, "loss", "train_runtime", "total_flos", "epoch", "eval_runtime", "eval_n"], 1.0)
    write_state(tmp_path, {**entry, "step": 10, "eval_own_metric": 3, "done": True, "note": "text"})
    found = panels(plot_runs([tmp_path]))
    assert list(found) == [
        "Total loss",
        "Contrastive loss (VTC)",
        "Masked language loss (MLM)",
        "Prompting entity loss (PEM)",
        "Crops that PEM keeps",
        "Entropy of the teacher (PEM)",
        "Student agrees with teacher (PEM)",
        "Loss new",
        "pem top1",
        "eval own metric",
    ]
    assert all(axes.lines[-1].get_marker() == "o" for axes in found.values()), "a single point would not be seen"


def test_a_spike_leaves_the_axes_and_a_jump_does_not(tmp_path):
    losses = [5.0] * 60 + [1.0] * 59
    losses[30], losses[90] = 900.0, float("inf")
    write_state(tmp_path, *({"step": i + 1, "loss": loss} for i, loss in enumerate(losses)))
    low, high = panels(plot_runs([tmp_path]))["Total loss"].get_ylim()
    assert 0 < low < 1 and 5 < high < 6


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path):
    write_state(tmp_path, *({"step": step, "loss": float("nan") if step == 3 else 1.0 * step} for step in range(1, 6)))
    raw, strong = panels(plot_runs([tmp_path]))["Total loss"].lines
    for line in (raw, strong):
        assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False, False]
    write_state(tmp_path / "lost", {"step": 1, "loss": float("nan")})
    assert list(panels(plot_runs([tmp_path / "lost"]))) == ["Total loss"]


def test_a_step_that_was_logged_twice_counts_as_it_went_last(tmp_path):
    write_state(tmp_path, *({"step": step, "loss": loss} for step, loss in ((1, 5), (3, 9), (2, 4), (3, 3))))
    curve = read_log(tmp_path).curves["loss"]
    assert curve.steps.tolist() == [1, 2, 3] and curve.values.tolist() == [5, 4, 3]


@pytest.mark.parametrize("count", [1, 2, 16, 17, 50, 400, 2000])
def test_smoothing_is_the_median_of_the_neighbourhood(count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=count)
    values[rng.random(count) < 0.1] = np.nan
    values[rng.random(count) < 0.05] = np.inf
    reach = min(round(0.03 * count), 25)
    for i, smoothed in enumerate(smooth(values).tolist()):
        if not np.isfinite(values[i]):
            assert np.isnan(smoothed)
            continue
        around = values[max(i - reach, 0) : i + reach + 1]
        assert smoothed == pytest.approx(statistics.median(around[np.isfinite(around)].tolist()))


def test_smoothing_leaves_a_jump_where_it_is():
    jump = np.repeat([5.0, 1.0], 50)
    np.testing.assert_array_equal(smooth(jump), jump)


# --- where the log is -----------------------------------------------------------------------------------------------


def test_the_newest_log_of_a_run_counts(trainers, runs, tmp_path):
    run = runs["search"]
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-4", "checkpoint-8"]
    log = read_log(run)
    assert log.path == run / "checkpoint-12" / STATE and log.step == 12
    earlier = read_log(run / "checkpoint-8")
    assert earlier.step == 8 and earlier.curves["loss"].steps.tolist() == list(range(1, 9))
    of_file = read_log(run / "checkpoint-8" / STATE)
    assert of_file.step == 8 and of_file.path == run / "checkpoint-8" / STATE

    old = (run / "checkpoint-4" / STATE).read_text()
    for own, step in ((tmp_path / "own is older", 12), (tmp_path / "own is newer", 13)):
        (own / "checkpoint-12").mkdir(parents=True)
        (own / "checkpoint-12" / STATE).write_text((run / "checkpoint-12" / STATE).read_text())
        (own / STATE).write_text(old if step == 12 else json.dumps(json.loads(old) | {"global_step": 13}))
        assert read_log(own).step == step


def test_a_checkpoint_that_is_being_written_is_passed_over(runs, tmp_path, caplog):
    for name in ("checkpoint-8", "checkpoint-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).write_text((runs["search"] / name / STATE).read_text())
    (tmp_path / "checkpoint-16").mkdir()  # weights come first, the log last
    (tmp_path / "checkpoint-best").mkdir()
    whole = (tmp_path / "checkpoint-12" / STATE).read_text()
    (tmp_path / "checkpoint-12" / STATE).write_text(whole[: len(whole) // 2])
    assert read_log(tmp_path).path == tmp_path / "checkpoint-8" / STATE
    assert len(caplog.messages) == 2
    for message, name in zip(caplog.messages, ("checkpoint-16", "checkpoint-12"), strict=True):
        assert name in message and "skipped" in message


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("a/run", "b/run", "b/run/checkpoint-8"):
        write_state(tmp_path / folder, {"step": 1, "loss": 1.0})

    def names(*runs):
        (legend,) = plot_runs([tmp_path / run for run in runs]).legends
        return [text.get_text() for text in legend.get_texts()]

    assert names("a/run", "b/run") == ["a/run", "b/run"]
    assert names(f"a/run/{STATE}", "b/run/checkpoint-8") == ["a/run", "run/checkpoint-8"]
    with pytest.raises(TrainingLogError, match="same run is named twice"):
        plot_runs([tmp_path / "a/run", tmp_path / "b" / ".." / "a/run"])


# --- what cannot be drawn -------------------------------------------------------------------------------------------


def test_what_is_no_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run .*nowhere"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(TrainingLogError, match=rf"neither {STATE} nor a complete checkpoint-N.*save_steps"):
        read_log(tmp_path)
    with pytest.raises(TrainingLogError, match="No run was named"):
        plot_runs([])
    write_state(tmp_path / "young", global_step=3)
    with pytest.raises(TrainingLogError, match=r"Nothing was logged.*step 3 and logs every 10 steps"):
        read_log(tmp_path / "young")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON, or cut off: Expecting value"),
        (b'{"global_step": 3,', "is not JSON, or cut off"),
        (b"\x89PNG\xff", "is not JSON, or cut off: 'utf-8'"),
        (b"[]", "has no 'log_history'"),
        (b'{"global_step": 3}', "has no 'log_history'"),
        (b'{"global_step": 3, "log_history": [{"loss": 1.0}]}', "has no 'log_history'.*'step'"),
        (b'{"global_step": 3, "log_history": [{"loss": 1.0, "step": "3"}]}', "has no 'log_history'.*'step'"),
        (b'{"global_step": null, "log_history": []}', "has global_step=None"),
    ],
)
def test_a_file_that_is_none_of_the_trainer_is_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(TrainingLogError, match=rf"file\.json {message}"):
        read_log(path)


# --- the command ----------------------------------------------------------------------------------------------------


def plot(*arguments) -> int:
    return main(["plot", *map(str, arguments)])


@pytest.mark.slow
def test_the_picture_lies_in_the_run(runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # which would look for a display
    assert plot(runs["search"]) == 0
    out, err = capsys.readouterr()
    picture = runs["search"] / "curves.png"
    assert f"written to {picture}" in out and "up to step 12" in out and err == ""
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000
        assert len(set(image.convert("RGB").reduce(4).getdata())) > 50
    picture.unlink()
    assert plot(runs["search"] / "checkpoint-8" / STATE) == 0
    assert (runs["search"] / "checkpoint-8" / "curves.png").is_file()


@pytest.mark.slow
def test_the_picture_lies_where_it_was_asked_for(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert plot(*runs.values()) == 0
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert plot(runs["ask"], "--output", tmp_path / "new" / "ask.svg") == 0
    assert "<svg" in (tmp_path / "new" / "ask.svg").read_text()
    assert plot(runs["ask"], "--output", tmp_path / "plain") == 0
    assert (tmp_path / "plain").read_bytes()[:4] == b"\x89PNG"


def test_what_the_command_cannot_do_is_said_on_stderr(runs, tmp_path, capsys, monkeypatch):
    def complaint(*arguments) -> str:
        assert plot(*arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("alpro plot: ")
        return err

    assert "There is no run" in complaint(tmp_path / "nowhere")
    assert "same run is named twice" in complaint(runs["ask"], runs["ask"])
    assert "is a folder; name a file" in complaint(runs["ask"], "--output", tmp_path)
    assert "'docx' is not supported" in complaint(runs["ask"], "--output", tmp_path / "curves.docx")
    assert not (tmp_path / "curves.docx").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "alpro-hf[plot]"' in complaint(runs["ask"])


def test_names_in_a_log_of_a_stranger_have_bounds(tmp_path):
    """Thousands of curves, or a name of a megabyte, would be drawn for minutes; a name could steer a terminal."""
    many = {f"value_{number}": 1.0 for number in range(3000)}
    for name, logged in {"many": many, "long": {"\x1b[2J" + "a" * 10**6: 1.0}}.items():
        (tmp_path / name).mkdir()
        history = [{"step": step, **logged} for step in (1, 2)]
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": history}))
    with pytest.raises(TrainingLogError, match="The log names 3,000 values, such as value_0; at most 200"):
        read_log(tmp_path / "many")
    [key] = read_log(tmp_path / "long").curves
    assert key.startswith("\\x1b[2Jaa") and len(key) < 70
