"""Compare models of the sprite world: one row for each file that measure.py wrote, and a plot of what was hard.

    python scripts/sprites/measure.py --data sprite-world --splits dev --retrieval runs/order/joint --output joint.json
    python scripts/sprites/compare.py bundled.json joint.json --split dev --plot order.png
    python scripts/sprites/compare.py "version 0.1=bundled.json" final=results.json --split test
    python scripts/sprites/compare.py "seed 0=a.json" "seed 1=b.json" "seed 2=c.json" --spread

Two numbers with a slash are those of similarity and of matching (VTC / VTM). Answers have a column if all files have
them. A second table has the order by wording, by matching, if all files have it (measure.py --tasks order).
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

HARD = {"order": "opposite: order", "roles": "opposite: roles", "spins": "opposite: clockwise/counterclockwise"}
CHOICES = {**HARD, "swapped": "swapped", "reversed": "reversed"}


def read(path: Path, split: str) -> dict[str, Any]:
    """What measure.py found on a split.

    Raises:
        SystemExit: The file lacks the split.
    """
    results = json.loads(path.read_text())["results"]
    if split not in results:
        raise SystemExit(
            f"{path} has no split {split!r}; it has {', '.join(results)}. Run measure.py --splits {split}."
        )
    found: dict[str, Any] = results[split]
    return found


def row(found: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """The numbers of a model, by column."""
    numbers: dict[str, tuple[float, ...]] = {
        "R@1, vtc / rerank": tuple(found["retrieval"][protocol]["t2v_r1"] for protocol in ("vtc", "rerank"))
    }
    numbers |= {
        title: tuple(found["choices"][kind][score] for score in ("vtc", "vtm")) for title, kind in CHOICES.items()
    }
    if "qa" in found:
        numbers["answers"] = (found["qa"]["accuracy"],)
    return numbers


def table(models: dict[str, dict[str, Any]], spread: bool = False) -> list[str]:
    """Lines of a Markdown table, with a row for each model; with `spread`, the last row has mean and deviation."""
    rows = {name: row(found) for name, found in models.items()}
    columns = [column for column in next(iter(rows.values())) if all(column in numbers for numbers in rows.values())]
    lines = [f"| model | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, numbers in rows.items():
        cells = [" / ".join(f"{value:.1f}" for value in numbers[column]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if spread:
        cells = []
        for column in columns:
            over = zip(*(numbers[column] for numbers in rows.values()), strict=True)
            cells.append(" / ".join(f"{fmean(values):.1f} ± {stdev(values):.1f}" for values in over))
        lines.append(f"| mean ± deviation | {' | '.join(cells)} |")
    return lines


def order_table(models: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of the order, with a row for each wording and a column for each model."""
    lines = [f"| wording | {' | '.join(models)} |", "| --- |" + " --- |" * len(models)]
    for wording in next(iter(models.values()))["order"]:
        cells = [f"{found['order'][wording]['vtm']:.1f}" for found in models.values()]
        lines.append(f"| {wording} | {' | '.join(cells)} |")
    return lines


def plot(models: dict[str, dict[str, Any]], split: str, target: Path) -> None:
    """Bars of what was hard, by matching, with the line of chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(models)
    for number, (name, found) in enumerate(models.items()):
        places = [place + (number - (len(models) - 1) / 2) * width for place in range(len(HARD))]
        bars = axis.bar(places, [found["choices"][kind]["vtm"] for kind in HARD.values()], width, label=name)
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.axhline(50, color="grey", linestyle=":", linewidth=1)
    counts = next(iter(models.values()))["choices"]
    axis.set_xticks(range(len(HARD)), [f"{name} ({counts[kind]['n']} pairs)" for name, kind in HARD.items()])
    axis.set(ylim=(0, 108), ylabel="% right, by matching", title=f"true caption against a false one, {split}")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(target, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", metavar="[NAME=]FILE", help="files of measure.py, in the order of the rows"
    )
    parser.add_argument("--split", default="dev", help="split to compare on (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="file of a plot, too")
    parser.add_argument("--spread", action="store_true", help="a last row with the mean and the standard deviation")
    arguments = parser.parse_args()
    if arguments.spread and len(arguments.results) < 2:
        parser.error("--spread needs two files or more")
    models = {}
    for given in arguments.results:
        name, _, path = given.rpartition("=")
        models[name or Path(path).stem] = read(Path(path), arguments.split)
    print("\n".join(table(models, arguments.spread)))
    if all("order" in found for found in models.values()):
        print("\n" + "\n".join(order_table(models)))
    if arguments.plot:
        plot(models, arguments.split, arguments.plot)


if __name__ == "__main__":
    main()
