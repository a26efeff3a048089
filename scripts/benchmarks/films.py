"""Cut films of the sprite world into windows in several ways, and search the moments of each among all films."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import write

from alpro_hf.data.load_rows import load_rows
from alpro_hf.data.windows import WindowSettings
from alpro_hf.evaluation.measure import EvaluationOutcome
from alpro_hf.evaluation.moments import measure_moments
from alpro_hf.evaluation.results import metric_intervals
from alpro_hf.loading import BUNDLED, load_model
from alpro_hf.sprites.films import write_films

WHOLE, ONE, SEVERAL, AT_CUTS = "whole files", "one length", "several lengths", "at cuts"
CHOSEN_BY = "r1_iou_0.5"
MOST_WINDOWS = 3.0  # times those of one length, that several lengths may have
ENDLESS = 1e6  # seconds of a window that holds a whole film
SHOWN = ("video_r1", "r1_iou_0.3", "r1_iou_0.5", "r1_iou_0.7", "r5_iou_0.5", "mean_iou")


def settings_of(lengths: Sequence[float], stride: float | None = None, cuts: bool = False) -> WindowSettings:
    """Windows of some lengths, which also cut short films."""
    return WindowSettings(tuple(lengths), stride, short=0.0, shortest=min(1.0, *lengths), cuts=cuts)


# what is compared -> settings of which the best on validation is reported; scenes last 1.5 to 6 s
CANDIDATES: dict[str, list[WindowSettings]] = {
    WHOLE: [settings_of((ENDLESS,))],
    ONE: [settings_of((length,)) for length in (2.0, 3.0, 4.0)],
    SEVERAL: [settings_of(lengths) for lengths in ((4.0, 2.0), (5.0, 2.5), (5.0, 3.5, 2.0), (6.0, 4.0, 3.0, 2.0))],
    AT_CUTS: [settings_of(lengths, cuts=True) for lengths in ((15.0, 7.5), (6.0,), (6.0, 3.0))],
}


def add_arguments(commands: Any) -> None:
    """Describe `run.py films`."""
    parser = commands.add_parser("films", help=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the films; those in it are used again")
    parser.add_argument("--count", type=int, default=60, help="films of each split (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels (default: %(default)s)")
    parser.add_argument("--model", default=BUNDLED, help="folder, Hub id or 'bundled' (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Choose on films of validation, report on those of the test."""
    rows = {}
    for split in ("validation", "test"):
        folder = write_films(arguments.data, split, arguments.count, size=arguments.size)
        rows[split] = load_rows(f"table:{folder / 'moments.jsonl'}", "moments")
    model, processor = load_model("towers", arguments.model)

    def measured(split: str, windows: WindowSettings) -> EvaluationOutcome:
        return measure_moments(model, processor, rows[split], windows, "all", title=f"{split}, {described(windows)}")

    tried, chosen = [], {}
    for name, candidates in CANDIDATES.items():
        found = {windows: measured("validation", windows) for windows in candidates}
        tried += [row_of(name, windows, outcome) for windows, outcome in found.items()]
        if name == SEVERAL:
            most = MOST_WINDOWS * tried_windows(tried, ONE, chosen[ONE])
            found = {windows: one for windows, one in found.items() if one.counts["windows"] <= most} or found
        chosen[name] = max(found, key=lambda windows: found[windows].metrics[CHOSEN_BY])
    table = []
    for name, windows in chosen.items():
        outcome = measured("test", windows)
        low, high = metric_intervals(outcome.predictions)[CHOSEN_BY]
        table.append({**row_of(name, windows, outcome), "95 % interval of R@1, IoU 0.5": f"{low:.1f} to {high:.1f}"})
    settings = {"films": arguments.count, "size": arguments.size, "model": arguments.model}
    settings |= {"protocol": "vtc, gallery all", "queries": len(rows["test"]), "chosen by": f"{CHOSEN_BY}, validation"}
    write("films", settings, {"test": table, "validation": tried})


def described(windows: WindowSettings) -> str:
    """The lengths of windows in words."""
    if windows.longest == ENDLESS:
        return "one window"
    return " and ".join(f"{length:g}" for length in windows.lengths) + " s" + (", at cuts" if windows.cuts else "")


def row_of(name: str, windows: WindowSettings, outcome: EvaluationOutcome) -> dict[str, Any]:
    """A row of a table: the cut, its cost, its metrics in percent."""
    shown: Mapping[str, float] = outcome.metrics
    return {
        "cut": name,
        "windows": described(windows),
        "number of windows": outcome.counts["windows"],
        **{metric: round(shown[metric], 1) for metric in SHOWN},
    }


def tried_windows(tried: Sequence[Mapping[str, Any]], name: str, windows: WindowSettings) -> int:
    """How many windows a cut gave on validation."""
    return next(
        row["number of windows"] for row in tried if row["cut"] == name and row["windows"] == described(windows)
    )
