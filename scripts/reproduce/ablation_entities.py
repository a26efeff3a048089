"""Reproduce the ablation of the number of entities (text to video on MSR-VTT).

    entities    0     500   1000  2000
    R@1         32.8  33.0  33.9  34.7

The script builds prompts for the first entities of entities.txt with the released prompter, pre-trains a student on
WebVid-2M and CC3M with this teacher, and fine-tunes the student. With 0 entities, it pre-trains without PEM. The paper
reports single runs. The released list has 1,000 entities; make one of 2,000 with `alpro entities`.

    python scripts/reproduce/ablation_entities.py 500 --released RELEASED --output results/500-entities
    python scripts/reproduce/ablation_entities.py 500 --dry --output dry
"""

import argparse
from collections.abc import Sequence

from released import Run, protocol, reproduce

# number of entities -> R@1
PUBLISHED = {0: 32.8, 500: 33.0, 1000: 33.9, 2000: 34.7}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("entities", type=int, choices=list(PUBLISHED), help="number of entities")


def steps(run: Run) -> None:
    count = run.args.entities
    start = run.pretrain("--prompter", run.prompter(count)) if count else run.pretrain(pem_weight=0)
    model = run.finetune(["--model", start], "msrvtt_ret")
    run.evaluate(model, "msrvtt_ret", {"t2v_r1": PUBLISHED[count]}, *protocol("msrvtt_ret"))


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps, add_options)


if __name__ == "__main__":
    raise SystemExit(main())
