"""Compare models of the sprite world: one row for each file that measure.py wrote, and a plot of what was hard.

    python scripts/sprites/measure.py --data sprite-world --splits dev --retrieval runs/order/joint --output joint.json
    python scripts/sprites/compare.py bundled.json joint.json --split dev --plot order.png

Two numbers with a slash are those of similarity and of matching (VTC / VTM).
"""

import argparse
import json
from pathlib import Path
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


def row(found: dict[str, Any]) -> dict[str, str]:
    """The cells of a model."""
    recall = [found["retrieval"][protocol]["t2v_r1"] for protocol in ("vtc", "rerank")]
    cells = {"R@1, vtc / rerank": " / ".join(f"{value:.1f}" for value in recall)}
    for title, kind in CHOICES.items():
        cells[title] = f"{found['choices'][kind]['vtc']:.1f} / {found['choices'][kind]['vtm']:.1f}"
    return cells


def table(paths: list[Path], split: str) -> list[str]:
    """Lines of a Markdown table."""
    rows = {path.stem: row(read(path, split)) for path in paths}
    columns = list(next(iter(rows.values())))
    lines = [f"| model | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    return lines + [f"| {name} | {' | '.join(cells[column] for column in columns)} |" for name, cells in rows.items()]


def plot(paths: list[Path], split: str, target: Path) -> None:
    """Bars of what was hard, by matching, with the line of chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(paths)
    for number, path in enumerate(paths):
        found = read(path, split)["choices"]
        places = [place + (number - (len(paths) - 1) / 2) * width for place in range(len(HARD))]
        bars = axis.bar(places, [found[kind]["vtm"] for kind in HARD.values()], width, label=path.stem)
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.axhline(50, color="grey", linestyle=":", linewidth=1)
    counts = read(paths[0], split)["choices"]
    axis.set_xticks(range(len(HARD)), [f"{name} ({counts[kind]['n']} pairs)" for name, kind in HARD.items()])
    axis.set(ylim=(0, 108), ylabel="% right, by matching", title=f"true caption against a false one, {split}")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(target, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files of measure.py, in the order of the rows")
    parser.add_argument("--split", default="dev", help="split to compare on (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="file of a plot, too")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.results, arguments.split)))
    if arguments.plot:
        plot(arguments.results, arguments.split, arguments.plot)


if __name__ == "__main__":
    main()
