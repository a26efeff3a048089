"""MSR-VTT, text to video, zero-shot from the pre-trained ALPRO: R@1 24.1, R@5 44.7, R@10 55.4, median rank 8.

Source: the paper's table of zero-shot retrieval. Protocol `reference`; frames and tokens as in fine-tuning (8, 40), of
which the paper does not speak. Checkpoint: pretrained.

    python scripts/reproduce/msrvtt_zero_shot.py --released RELEASED --output results/msrvtt-zero-shot
    python scripts/reproduce/msrvtt_zero_shot.py --dry --output dry
"""

from collections.abc import Sequence

from released import Run, reproduce, retrieval

PUBLISHED = retrieval(24.1, 44.7, 55.4, 8)


def steps(run: Run) -> None:
    model = run.convert("pretrained", "pretrain")
    run.evaluate(model, "msrvtt_ret", PUBLISHED, "--protocol", "reference")


def main(argv: Sequence[str] | None = None) -> int:
    return reproduce(__doc__, argv, steps)


if __name__ == "__main__":
    raise SystemExit(main())
