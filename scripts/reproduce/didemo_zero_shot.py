"""DiDeMo, paragraph to video, zero-shot from the pre-trained ALPRO: R@1 23.8, R@5 47.3, R@10 57.9, median rank 6.

Source: the paper's table of zero-shot retrieval. Protocol `reference`; frames and tokens as in fine-tuning (8, 50), of
which the paper does not speak. Checkpoint: pretrained.

    python scripts/reproduce/didemo_zero_shot.py --released RELEASED --output results/didemo-zero-shot
    python scripts/reproduce/didemo_zero_shot.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce, retrieval

PUBLISHED = retrieval(23.8, 47.3, 57.9, 6)


def steps(run: Run) -> None:
    model = run.convert("pretrained", "pretrain")
    run.evaluate(model, "didemo_ret", PUBLISHED, "--protocol", "reference")


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
