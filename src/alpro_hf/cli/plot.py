"""`alpro plot`: the curves of training runs."""

import argparse
from pathlib import Path

from ..files import write_whole
from ..training.curves import PICTURE, STATE, plot_logs, read_logs
from ..trust import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro plot` to a parser."""
    parser.description = (
        "Draw the curves of a training from the log of its trainer: every loss, accuracies, temperature, norm of the\n"
        "gradient, learning rate, statistics of PEM and the metrics of evaluations, over steps.\n\n"
        "The training may still run: the log of its newest complete checkpoint is drawn. Several runs are drawn into\n"
        "the same axes."
    )
    parser.epilog = (
        "examples:\n  alpro plot runs/pretrain\n  alpro plot runs/with-pem runs/without-pem --output comparison.png"
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help=f"folder of a training, a checkpoint, or a {STATE}"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"picture to write; its extension (.png, .svg, .pdf) sets the format (default: {PICTURE} in the run, "
        "or with several runs in the working directory)",
    )
    parser.set_defaults(expected_errors=lambda: (ValueError, ImportError))


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro plot`."""
    output = args.output or _folder(args.runs) / PICTURE
    if output.is_dir():
        raise IsADirectoryError(f"--output {output} is a folder; name a file, for instance {output / PICTURE}.")
    logs = read_logs(args.runs)
    figure = plot_logs(logs)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda partial: figure.savefig(partial, format=output.suffix[1:] or "png"))
    for name, log in logs.items():
        print(printable(f"{name}: {len(log.curves)} curves up to step {log.step}, from {log.path}"))
    print(printable(f"written to {output}"))
    return 0


def _folder(runs: list[Path]) -> Path:
    """The folder of the only run; the working directory for several."""
    if len(runs) > 1:
        return Path()
    return runs[0].parent if runs[0].is_file() else runs[0]
