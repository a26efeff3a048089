"""Reproduce a published number of ALPRO from the released files, one command per number.

    python scripts/reproduce/published.py                     list the numbers
    python scripts/reproduce/published.py msrvtt_retrieval --released RELEASED --output results/msrvtt-retrieval
    python scripts/reproduce/published.py msrvtt_retrieval --dry --output dry

The command converts the released checkpoint, evaluates it, and prints the result next to the published number.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from released import BENCHMARKS, Published, Run, reproduce, retrieval


@dataclass(frozen=True)
class Row:
    """A published result and the settings that reproduce it.

    Args:
        checkpoint: Name of the file in RELEASED/checkpoints, without `.pt`.
        layout: Task of the checkpoint for `alpro convert`: retrieval, qa or pretrain.
        data_set: Folder of RELEASED with the test set.
        published: Metric -> published value.
        source: Place of publication, and notes on the protocol.
        protocol: Retrieval protocol; None for question answering.
        options: Further options of `alpro evaluate`; the command line replaces them.
    """

    checkpoint: str
    layout: str
    data_set: str
    published: Published
    source: str
    protocol: str | None = "reference"
    options: tuple[str, ...] = ()


FINE_TUNED = "Paper, table of fine-tuned retrieval. The score is the matching probability of all pairs."
ZERO_SHOT = "Paper, table of zero-shot retrieval. The paper does not give frames and tokens; here as in fine-tuning."
ANSWERS = "Paper, table of question answering. Answers outside the closed list count as wrong."
ROWS = {
    "msrvtt_retrieval": Row("msrvtt_ret", "retrieval", "msrvtt_ret", retrieval(33.9, 60.7, 73.2, 3), FINE_TUNED),
    "msrvtt_retrieval_rerank": Row(
        *("msrvtt_ret", "retrieval", "msrvtt_ret", retrieval(33.8, 61.4, 72.7)),
        "Public protocol of the same checkpoint: matching logit plus similarity. The number of re-ranked candidates "
        "is not published; here all 1,000 are re-ranked.",
        "rerank",
        ("--rerank-k", "1000"),
    ),
    "didemo_retrieval": Row("didemo_ret", "retrieval", "didemo_ret", retrieval(35.9, 67.5, 78.8, 3), FINE_TUNED),
    "msrvtt_zero_shot": Row("pretrained", "pretrain", "msrvtt_ret", retrieval(24.1, 44.7, 55.4, 8), ZERO_SHOT),
    "didemo_zero_shot": Row("pretrained", "pretrain", "didemo_ret", retrieval(23.8, 47.3, 57.9, 6), ZERO_SHOT),
    "msrvtt_qa": Row("msrvtt_qa", "qa", "msrvtt_qa", {"accuracy": 42.1}, ANSWERS, None),
    "msvd_qa": Row(
        *("msvd_qa", "qa", "msvd_qa", {"accuracy": 45.9}),
        f"{ANSWERS} The log of the release says 45.91, the project page 46.3.",
        None,
    ),
}


def described(name: str) -> str:
    """A row as text: numbers, settings and source."""
    row = ROWS[name]
    benchmark = BENCHMARKS[row.data_set]
    numbers = ", ".join(f"{metric} {number:g}" for metric, number in row.published.items())
    how = f"{benchmark.num_frames} frames, {benchmark.text_length} tokens, protocol {row.protocol or 'classifier'}"
    return f"{name}: {numbers}\n    checkpoint {row.checkpoint}, {how}\n    {row.source}"


def table() -> str:
    """All rows as text."""
    return "\n".join(described(name) for name in ROWS)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=list(ROWS), help=f"one of {', '.join(ROWS)}")


def steps(run: Run) -> None:
    row = ROWS[run.args.name]
    model = run.convert(row.checkpoint, row.layout)
    protocol = ["--protocol", row.protocol] if row.protocol else []
    # an option on the command line replaces that of the row
    options = [] if row.options[:1] and row.options[0] in run.evaluation else row.options
    run.evaluate(model, row.data_set, row.published, *protocol, *options)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        print(table())
        return 0
    return reproduce(f"{__doc__}\n{table()}", argv, steps, add_options)


if __name__ == "__main__":
    raise SystemExit(main())
