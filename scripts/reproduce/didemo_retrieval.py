"""DiDeMo, paragraph to video, fine-tuned ALPRO: R@1 35.9, R@5 67.5, R@10 78.8, median rank 3.

Source: the paper's table of fine-tuned retrieval. Protocol `reference`: matching probability of all pairs, 8 uniform
frames, the first 50 tokens of a paragraph. Checkpoint: didemo_ret.

    python scripts/reproduce/didemo_retrieval.py --released RELEASED --output results/didemo-retrieval
    python scripts/reproduce/didemo_retrieval.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce, retrieval

PUBLISHED = retrieval(35.9, 67.5, 78.8, 3)


def steps(run: Run) -> None:
    model = run.convert("didemo_ret", "retrieval")
    run.evaluate(model, "didemo_ret", PUBLISHED, "--protocol", "reference")


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
