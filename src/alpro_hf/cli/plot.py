"""TODO docstring."""

import argparse
import sys
from pathlib import Path

from ..training.curves import (
    PICTURE,
    STATE,
    _draw,
    _names,
    read_log,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro plot` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Draw the curves of a training from the trainer's own log: every loss, accuracies, temperature, norm of\n"
        "the gradient, learning rate, statistics of PEM and the metrics of evaluations, over steps.\n\n"
        "The training may still run: the log of its newest complete checkpoint is drawn. Several runs are drawn\n"
        "into the same axes."
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
        help=f"picture to write; its extension (.png, .svg, .pdf) tells the format (default: {PICTURE} in the run, "
        "or with several runs in the working directory)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro plot`; 0 when the picture was written, 1 with the reason on stderr when not."""
    first: Path = args.runs[0]
    output: Path = (
        args.output or ((first.parent if first.is_file() else first) if len(args.runs) == 1 else Path()) / PICTURE
    )
    try:
        if output.is_dir():
            raise IsADirectoryError(f"--output {output} is a folder; name a file, for instance {output / PICTURE}.")
        names = _names(args.runs)
        logs = {name: read_log(path) for name, path in zip(names, args.runs, strict=True)}
        figure = _draw(logs)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, format=output.suffix[1:] or "png")
    except (OSError, ValueError, ImportError) as error:
        print(f"alpro plot: {error}", file=sys.stderr)
        return 1
    for name, log in logs.items():
        print(f"{name}: {len(log.curves)} curves up to step {log.step}, from {log.path}")
    print(f"written to {output}")
    return 0
