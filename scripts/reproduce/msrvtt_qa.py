"""MSRVTT-QA, fine-tuned ALPRO: accuracy 42.1.

Source: the paper's table of question answering. 1,500 answers, any other counts as wrong; 16 uniform frames, 40
tokens. Checkpoint: msrvtt_qa.

    python scripts/reproduce/msrvtt_qa.py --released RELEASED --output results/msrvtt-qa
    python scripts/reproduce/msrvtt_qa.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce

PUBLISHED = {"accuracy": 42.1}


def steps(run: Run) -> None:
    run.evaluate(run.convert("msrvtt_qa", "qa"), "msrvtt_qa", PUBLISHED)


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
