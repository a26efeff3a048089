"""Measure speed and memory: every number of docs/performance.md, and moments of films.

    python scripts/benchmarks/run.py inference                evaluation and its parts at base size
    python scripts/benchmarks/run.py accuracy --data DIR      cost of inexact savings, on the sprite world
    python scripts/benchmarks/run.py index                    10^3 to 10^6 videos
    python scripts/benchmarks/run.py training                 a training step, and its share of waiting for data
    python scripts/benchmarks/run.py decoding                 other decoders: PyAV, decord, OpenCV, torchcodec
    python scripts/benchmarks/run.py listing                  the frames of a file: by its index, and by its packets
    python scripts/benchmarks/run.py films --data DIR         moments of films of the sprite world, by kind of windows
    python scripts/benchmarks/run.py long                     speed and memory of indexing long videos
    python scripts/benchmarks/run.py savings                  cost of candidates by a margin, and of 8-bit numbers
    python scripts/benchmarks/run.py startup                  starting, and queries of a running search
    python scripts/benchmarks/run.py savings-training         frozen towers, cached tokens, patch dropout, ...
    python scripts/benchmarks/run.py savings-training-memory  their memory
    python scripts/benchmarks/run.py savings-training-recall  what they cost, on the sprite world
    python scripts/benchmarks/run.py overlap                  whether decoding and encoding wait for each other
    python scripts/benchmarks/run.py gpu                      inference and training on a GPU
    python scripts/benchmarks/run.py report                   write the pages that show these numbers, and their plots

The sides of a comparison take turns in one process, after a warm-up run of each. A time is the median of the rounds.
`wall` is the elapsed time. `cpu` is the CPU time of the process, summed over its threads. On a machine that runs other
programs, ratios of `cpu` are more reliable. Results are JSON files in docs/benchmarks. Decoders that are not installed
are left out.
"""

import argparse
import os

import decoding
import films
import index
import long
import models
import overlap
import report
import savings
import savings_training
import startup
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for add in (
        models.add_arguments,
        index.add_arguments,
        decoding.add_arguments,
        films.add_arguments,
        long.add_arguments,
        savings.add_arguments,
        startup.add_arguments,
        savings_training.add_arguments,
        overlap.add_arguments,
        report.add_arguments,
    ):
        add(commands)
    # `main` sets the threads before any command runs, so all of them have the option
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
