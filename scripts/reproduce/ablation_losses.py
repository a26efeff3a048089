"""Reproduce the ablation of the pre-training losses: pre-train with some of them, fine-tune, evaluate.

    losses    MSR-VTT                    DiDeMo                     MSVD-QA  MSRVTT-QA
    none      16.5 / 42.8 / 57.9 / 7      9.5 / 29.1 / 42.5 / 14    41.5     39.6
    mlm-vtm   28.5 / 53.0 / 66.8 / 5     29.8 / 57.7 / 69.7 / 4     43.3     40.9
    pem       30.3 / 56.7 / 67.8 / 4     31.0 / 61.8 / 73.5 / 3     46.3     41.8     MLM + VTM + PEM
    vtc       32.8 / 59.2 / 70.3 / 3     36.8 / 64.7 / 77.4 / 2     45.5     41.9     MLM + VTM + VTC
    all       33.9 / 60.7 / 73.2 / 3     35.9 / 67.5 / 78.8 / 3     45.9     42.1

Retrieval is text to video: R@1 / R@5 / R@10 / median rank. Question answering is accuracy. The paper reports single
runs. It does not say how it draws the negatives of VTM without VTC. Here the similarities of the towers still select
them, although nothing trains the towers for it. All rows but `none` pre-train on WebVid-2M and CC3M, 100,000 steps of
256 rows, which needs several GPUs.

    python scripts/reproduce/ablation_losses.py vtc msrvtt_ret --released RELEASED --output results/without-pem
    python scripts/reproduce/ablation_losses.py all msvd_qa --dry --output dry
"""

import argparse
from collections.abc import Sequence

from released import BENCHMARKS, Run, protocol, reproduce, retrieval

# losses -> a result for each of DATA_SETS
PUBLISHED = {
    "none": (retrieval(16.5, 42.8, 57.9, 7), retrieval(9.5, 29.1, 42.5, 14), 41.5, 39.6),
    "mlm-vtm": (retrieval(28.5, 53.0, 66.8, 5), retrieval(29.8, 57.7, 69.7, 4), 43.3, 40.9),
    "pem": (retrieval(30.3, 56.7, 67.8, 4), retrieval(31.0, 61.8, 73.5, 3), 46.3, 41.8),
    "vtc": (retrieval(32.8, 59.2, 70.3, 3), retrieval(36.8, 64.7, 77.4, 2), 45.5, 41.9),
    "all": (retrieval(33.9, 60.7, 73.2, 3), retrieval(35.9, 67.5, 78.8, 3), 45.9, 42.1),
}
DATA_SETS = ("msrvtt_ret", "didemo_ret", "msvd_qa", "msrvtt_qa")
# losses -> those that get weight 0
OFF = {"mlm-vtm": ("vtc", "pem"), "pem": ("vtc",), "vtc": ("pem",), "all": ()}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("losses", choices=list(PUBLISHED), help="row of the table")
    parser.add_argument("data_set", choices=list(BENCHMARKS), help="column of the table")


def steps(run: Run) -> None:
    losses, name = run.args.losses, run.args.data_set
    if losses == "none":
        start = run.scratch()
    else:
        weights = {f"{loss}_weight": 0 for loss in OFF[losses]}
        teacher = [] if "pem" in OFF[losses] else ["--prompter", run.convert("prompter", "prompter")]
        start = ["--model", run.pretrain(*teacher, **weights)]
    number = PUBLISHED[losses][DATA_SETS.index(name)]
    published = number if isinstance(number, dict) else {"accuracy": number}
    run.evaluate(run.finetune(start, name), name, published, *protocol(name))


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps, add_options)


if __name__ == "__main__":
    raise SystemExit(main())
