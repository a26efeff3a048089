"""MSVD-QA, fine-tuned ALPRO: accuracy 45.9 (the log of the release says 45.91, the page of the paper 46.3).

Source: the paper's table of question answering. 2,423 answers, any other counts as wrong; 16 uniform frames, 40
tokens. Checkpoint: msvd_qa.

    python scripts/reproduce/msvd_qa.py --released RELEASED --output results/msvd-qa
    python scripts/reproduce/msvd_qa.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce

PUBLISHED = {"accuracy": 45.9}


def steps(run: Run) -> None:
    run.evaluate(run.convert("msvd_qa", "qa"), "msvd_qa", PUBLISHED)


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
