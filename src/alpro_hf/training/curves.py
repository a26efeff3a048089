"""The curves of a training, drawn from the log of the trainer.

The log is `trainer_state.json`, which `Trainer` writes into every checkpoint. Nothing else is needed, so one can look
at a training while it runs, and next to an earlier one.
"""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..trust import printable
from ..untrusted_json import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
PICTURE = "curves.png"
# neighbours on either side of a smoothed point: their share of the curve, and how many at most
NEIGHBOURS = 0.03, 25

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Entries of the log that are not drawn: bookkeeping and timing; constant counts; ranks, because recalls are shown.
_NO_CURVE = re.compile(
    r"step|epoch|total_flos|num_input_tokens_seen|train_.*|.*_runtime|.*_per_second|.*_preparation_time"
    r"|eval_(.*_)?(n|out_of_list|out_of_list_share|dropped_rows|mean_rank|median_rank)"
)
# Key in the log -> title and unit, in the order of the panels. Other keys follow under their own names.
_TITLES = {
    "loss": ("Total loss", ""),
    "loss_vtc": ("Contrastive loss (VTC)", "nats"),
    "loss_vtm": ("Matching loss (VTM)", "nats"),
    "loss_mlm": ("Masked language loss (MLM)", "nats"),
    "loss_pem": ("Prompting entity loss (PEM)", "nats"),
    "accuracy": ("Accuracy of answers, training", "share"),
    "vtm_accuracy": ("Accuracy of matching, training", "share"),
    "mlm_accuracy": ("Accuracy of masked words, training", "share"),
    "pem_kept": ("Crops that PEM keeps", "share"),
    "pem_entropy": ("Entropy of the teacher (PEM)", "nats"),
    "pem_agreement": ("Student agrees with teacher (PEM)", "share"),
    "temperature": ("Temperature", ""),
    "grad_norm": ("Norm of the gradient", ""),
    "learning_rate": ("Learning rate", ""),
}
_ORDER = {key: place for place, key in enumerate(_TITLES)}
_RECALL = re.compile(r"(eval.*?)_(t2v|v2t)_r(\d+)")
_ACCURACY = re.compile(r"(eval|eval_.*?)_accuracy(?:_(.+))?")
_DIRECTIONS = {"t2v": "Text-to-video recall", "v2t": "Video-to-text recall"}
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")


_MOST = 200  # curves of a run; each has a place in the picture


class TrainingLogError(ValueError):
    """A log of a training is missing or cannot be drawn; the message names the file and the remedy."""


class Curve(NamedTuple):
    """One quantity of a training: float64 (n,) steps, ascending, and float64 (n,) values, maybe NaN or infinite."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class TrainingLog:
    """The log of a training.

    Args:
        path: The `trainer_state.json` that it was read from.
        step: Optimizer steps done when it was written.
        curves: The quantities to draw, by their key in the log.
    """

    path: Path
    step: int
    curves: dict[str, Curve]


@dataclass(frozen=True)
class _Panel:
    title: str
    label: str
    keys: dict[str, str]  # key in the log -> name of its line; empty for the only line of a panel


def read_log(run: str | Path) -> TrainingLog:
    """Read the newest log of a training.

    Args:
        run: The folder that a training writes to (`output_dir`), a checkpoint, or a `trainer_state.json`. In a folder,
            the log with the most steps is read: its own or that of the newest checkpoint. A checkpoint whose log is
            missing or cut off, such as one that is being written, is skipped with a warning.

    Raises:
        FileNotFoundError: There is no such file or folder.
        TrainingLogError: There is no log, it is not valid, or nothing was logged yet.
    """
    run = Path(run)
    if not run.exists():
        raise FileNotFoundError(f"There is no run {str(run)!r}. Name the folder that the training writes to.")
    path, state = (run, _read_state(run)) if run.is_file() else _newest_state(run)
    curves = _curves(state["log_history"])
    if not curves:
        raise TrainingLogError(
            f"Nothing was logged in {path}: its training was at step {state['global_step']} and logs every "
            f"{state.get('logging_steps', '?')} steps. Look again later, or train with fewer logging_steps."
        )
    return TrainingLog(path, state["global_step"], curves)


def _newest_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    found = []
    if (folder / STATE).is_file():
        found.append((folder / STATE, _read_state(folder / STATE)))
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    for _, checkpoint in sorted(numbered, reverse=True):
        try:
            found.append((checkpoint / STATE, _read_state(checkpoint / STATE)))
        except (FileNotFoundError, TrainingLogError) as error:
            logger.warning("%s is skipped: it is not complete (%s).", checkpoint, error)
        else:
            break
    if not found:
        raise TrainingLogError(
            f"{folder} holds no log of a training: neither {STATE} nor a complete checkpoint-N with one. It is "
            "written with every checkpoint (save_steps) and by trainer.save_state(). Wait for the first, or name "
            "another run."
        )
    return max(found, key=lambda pair: pair[1]["global_step"])


def _read_state(path: Path) -> dict[str, Any]:
    hint = f"A {STATE} that the Trainer wrote is needed."
    try:
        state = read_json(path, max_bytes=1 << 28, nan=True)  # the loss of a step may be NaN
    except ValueError as error:
        raise TrainingLogError(f"{path} is not JSON, or cut off: {error}. {hint}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("step"), int | float) for entry in history
    ):
        raise TrainingLogError(f"{path} has no 'log_history', a list of entries with the number of a 'step'. {hint}")
    if not isinstance(state.get("global_step"), int):
        raise TrainingLogError(f"{path} has global_step={state.get('global_step')!r}, not a number. {hint}")
    return state


def _curves(history: Iterable[dict[str, Any]]) -> dict[str, Curve]:
    points: dict[str, dict[float, float]] = {}
    for entry in history:
        for key, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not _NO_CURVE.fullmatch(key):
                # a training that continued from an earlier checkpoint logs some steps again; the last values count
                points.setdefault(_shown(key), {})[entry["step"]] = value
    if len(points) > _MOST:
        raise TrainingLogError(f"The log names {len(points):,} values, such as {next(iter(points))}; at most {_MOST}.")
    return {
        key: Curve(np.array(sorted(values), float), np.array([values[step] for step in sorted(values)], float))
        for key, values in points.items()
    }


def _shown(key: str) -> str:
    """A name for the picture: one line of at most 60 characters."""
    return printable(key[:60])


def smooth(values: np.ndarray) -> np.ndarray:
    """Running median over up to 3 % of the curve, and up to 25 values, on either side.

    A median ignores spikes and keeps jumps, such as one between the phases of a curriculum, where they are.

    Args:
        values: (n,), in the order of steps. Values that are NaN or infinite are left out of all medians.

    Returns:
        float64 (n,), NaN where the value is NaN or infinite.
    """
    share, most = NEIGHBOURS
    reach = min(round(share * len(values)), most)
    finite = np.isfinite(values)
    padded = np.pad(np.where(finite, values, np.nan), reach, constant_values=np.nan)
    smoothed = np.full(len(values), np.nan)
    smoothed[finite] = np.nanmedian(sliding_window_view(padded, 2 * reach + 1)[finite], axis=1)
    return smoothed


def plot_runs(runs: Sequence[str | Path]) -> "Figure":
    """Draw the curves of one training, or of several in the same axes. See `plot_logs`.

    Args:
        runs: Folders, checkpoints or logs, see `read_log`.

    Raises:
        FileNotFoundError, TrainingLogError: See `read_log`; or the same run is named twice, or none.
        ImportError: matplotlib is not installed.
    """
    return plot_logs(read_logs(runs))


def read_logs(runs: Sequence[str | Path]) -> dict[str, TrainingLog]:
    """Read the newest logs of several trainings.

    Args:
        runs: Folders, checkpoints or logs, see `read_log`.

    Returns:
        The logs by name: the end of the path that tells the runs apart.

    Raises:
        FileNotFoundError, TrainingLogError: See `read_log`; or the same run is named twice, or none.
    """
    if not runs:
        raise TrainingLogError("No run was named. Name the folder of at least one training.")
    names = _names([Path(run) for run in runs])
    return {name: read_log(run) for name, run in zip(names, runs, strict=True)}


def plot_logs(logs: dict[str, TrainingLog]) -> "Figure":
    """Draw logs as small multiples over steps, one panel for each quantity.

    There is a panel for each loss, each statistic of training and each metric of evaluation that a log holds.
    Quantities of training are drawn faintly as logged, and strongly as smoothed by `smooth`. Their highest and lowest
    percent may leave the axes, so that one spike does not flatten the rest. Evaluations are few and get markers.

    Args:
        logs: At least one log, by the name that the legend shows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure  # not pyplot, which needs a display and keeps global state
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ImportError('Drawing needs matplotlib, which is not installed: pip install "alpro-hf[plot]"') from error

    panels = _panels({key for log in logs.values() for key in log.curves})
    columns = min(4, math.ceil(len(panels) ** 0.5))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 3.0 * rows + 0.8), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in grid[len(panels) :]:
        unused.remove()
    many = len(logs) > 10
    colours = [colormaps["turbo"](i / (len(logs) - 1)) if many else f"C{i}" for i in range(len(logs))]
    last = max(curve.steps[-1] for log in logs.values() for curve in log.curves.values())
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylabel(panel.label)
        axes.set_xlim(0, max(last, 1) * 1.02)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        for (name, log), colour in zip(logs.items(), colours, strict=True):
            for (key, line), style in zip(panel.keys.items(), cycle(_STYLES), strict=False):
                if key in log.curves:
                    label = " ".join(part for part in (name if len(logs) > 1 else "", line) if part)
                    _draw_curve(axes, key, log.curves[key], color=colour, linestyle=style, label=label)
        measured = [key for key in panel.keys if _is_measured(key)]
        _set_height(axes, [log.curves[key] for log in logs.values() for key in measured if key in log.curves])
        if len(panel.keys) > 1:
            styles = [Line2D([], [], color="0.35", linestyle=style) for style, _ in zip(cycle(_STYLES), panel.keys)]
            axes.legend(styles, list(panel.keys.values()), fontsize=8)
    if len(logs) > 1:
        handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
        figure.legend(handles, list(logs), loc="outside upper center", ncols=min(len(logs), 2 * columns))
    else:
        figure.suptitle(f"Training curves of {next(iter(logs))}", fontsize=14)
    share, most = NEIGHBOURS
    figure.supxlabel(
        f"faint: as logged; strong: median of the neighbourhood ({share:.0%} of the log on either side, up to {most})",
        fontsize=9,
    )
    return figure


def _is_measured(key: str) -> bool:
    """Whether a curve is noisy: evaluations are few, and smoothing would bend the corners of a schedule."""
    return not key.startswith("eval_") and key != "learning_rate"


def _draw_curve(axes: "Axes", key: str, curve: Curve, **look: Any) -> None:
    marker = "o" if key.startswith("eval_") or len(curve.steps) == 1 else None
    if not _is_measured(key):
        axes.plot(*curve, marker=marker, markersize=3.5, **look)
    else:
        axes.plot(*curve, alpha=0.3, linewidth=1, **look | {"label": ""})
        axes.plot(curve.steps, smooth(curve.values), linewidth=1.8, marker=marker, markersize=3.5, **look)


def _set_height(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Fit the axes to the smoothed curves and to the logged values without their highest and lowest percent."""
    values = [curve.values[np.isfinite(curve.values)] for curve in curves]
    inner = [np.percentile(logged, (1, 99)) for logged in values if len(logged)]
    if not inner:
        return
    shown = np.concatenate([*inner, *(smooth(logged) for logged in values)])
    low, high = shown.min(), shown.max()
    if high > low:
        axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _panels(keys: Iterable[str]) -> list[_Panel]:
    """Panels for the keys of a log: known quantities of training, others of training, then those of evaluation."""
    recalls: dict[tuple[str, str], dict[int, str]] = {}
    training, evaluation = [], []
    for key in sorted(keys, key=lambda key: (_ORDER.get(key, len(_ORDER)), key)):
        if recall := _RECALL.fullmatch(key):
            recalls.setdefault((recall[1], recall[2]), {})[int(recall[3])] = key
        elif accuracy := _ACCURACY.fullmatch(key):
            kind = f": {_spaced(accuracy[2])}" if accuracy[2] else ""
            evaluation.append(_Panel(f"Accuracy{kind} ({_spaced(accuracy[1])})", f"{key} (%)", {key: ""}))
        elif key.startswith("eval_"):
            evaluation.append(_Panel(_spaced(key), key, {key: ""}))
        else:
            other = f"Loss {_spaced(key[5:])}" if key.startswith("loss_") else _spaced(key)
            title, unit = _TITLES.get(key, (other, ""))
            training.append(_Panel(title, f"{key} ({unit})" if unit else key, {key: ""}))
    found = [
        _Panel(f"{_DIRECTIONS[way]} ({_spaced(prefix)})", "recall (%)", {of[k]: f"R@{k}" for k in sorted(of)})
        for (prefix, way), of in sorted(recalls.items())
    ]
    return training + found + evaluation


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    # resolved, so that a run named "." has a name and the same run under two paths is noticed
    folders = [(run.parent if run.is_file() else run).resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise TrainingLogError(f"The same run is named twice: {', '.join(map(str, runs))}.")
    # "checkpoint-1000" alone says too little
    parts = 2 if any(_CHECKPOINT.fullmatch(folder.name) for folder in folders) else 1
    while len(names := ["/".join(folder.parts[-parts:]) for folder in folders]) > len(set(names)):
        parts += 1
    return names


__all__ = ["Curve", "TrainingLog", "TrainingLogError", "plot_logs", "plot_runs", "read_log", "read_logs", "smooth"]
