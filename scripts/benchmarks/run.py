"""What is fast and what is not: every number of docs/performance.md.

    python scripts/benchmarks/run.py inference                evaluation and its parts, base size
    python scripts/benchmarks/run.py accuracy --data DIR      what inexact savings cost, on the sprite world
    python scripts/benchmarks/run.py index                    10^3 to 10^6 videos
    python scripts/benchmarks/run.py training                 a step, and the share of it that waits for data
    python scripts/benchmarks/run.py decoding                 against PyAV, decord, OpenCV, torchcodec, where installed
    python scripts/benchmarks/run.py gpu                      inference and training on a GPU
    python scripts/benchmarks/run.py report                   docs/performance.md and plots, from the results

Both sides of a comparison run alternately in one process, after one run of each that does not count; a time is the
median of the rounds. `wall` is what a clock shows, `cpu` what the process computed, summed over its threads: where
other programs share the machine, ratios of `cpu` say more. Results are JSON files in docs/benchmarks.
"""

import argparse
import os

import decoding
import index
import models
import report
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for add in (
        models.add_arguments,
        index.add_arguments,
        decoding.add_arguments,
        report.add_arguments,
    ):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
