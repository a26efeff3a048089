"""Reproduce the ablation of the number of frames (text to video on MSR-VTT).

    frames    2     4     8     16
    R@1       25.7  31.0  33.9  34.2

The script fine-tunes the released pre-trained checkpoint with this number of frames and evaluates with it, too.
The paper reports single runs.

    python scripts/reproduce/ablation_frames.py 4 --released RELEASED --output results/4-frames
    python scripts/reproduce/ablation_frames.py 4 --dry --output dry
"""

import argparse
from collections.abc import Sequence

from released import Run, protocol, reproduce

# number of frames -> R@1
PUBLISHED = {2: 25.7, 4: 31.0, 8: 33.9, 16: 34.2}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("frames", type=int, choices=list(PUBLISHED), help="frames per clip")


def steps(run: Run) -> None:
    frames = run.args.frames
    start = run.convert("pretrained", "pretrain")
    model = run.finetune(["--model", start], "msrvtt_ret", num_frames=frames)
    published = {"t2v_r1": PUBLISHED[frames]}
    run.evaluate(model, "msrvtt_ret", published, *protocol("msrvtt_ret"), num_frames=frames)


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps, add_options)


if __name__ == "__main__":
    raise SystemExit(main())
