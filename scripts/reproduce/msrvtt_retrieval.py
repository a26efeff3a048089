"""MSR-VTT, text to video, fine-tuned ALPRO: R@1 33.9, R@5 60.7, R@10 73.2, median rank 3.

Source: the paper's table of fine-tuned retrieval. Protocol `reference`: 1k-A test, matching probability of all pairs,
8 uniform frames, 40 tokens. Checkpoint: msrvtt_ret.

    python scripts/reproduce/msrvtt_retrieval.py --released RELEASED --output results/msrvtt-retrieval
    python scripts/reproduce/msrvtt_retrieval.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce, retrieval

PUBLISHED = retrieval(33.9, 60.7, 73.2, 3)


def steps(run: Run) -> None:
    model = run.convert("msrvtt_ret", "retrieval")
    run.evaluate(model, "msrvtt_ret", PUBLISHED, "--protocol", "reference")


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
