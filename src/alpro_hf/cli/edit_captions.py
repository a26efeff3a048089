"""`alpro edit-captions`: false captions from true ones, for training."""

import argparse
from pathlib import Path

from ..trust import printable
from .options import whole_number

KINDS = ("order", "opposites", "roles")
WORDINGS = ("then", "before", "after")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro edit-captions` to a parser."""
    parser.description = (
        "Make false captions of true ones by small edits, and store them with the rows, in the column 'negatives'.\n\n"
        "DATA are rows with a column 'text': JSON lines, CSV or Parquet, or a folder written by save_to_disk. alpro\n"
        "train learns from the column in VTC and VTM: nouns do not tell such a caption from the true one. Edits:\n"
        "  order      'before' becomes 'after', and clauses of 'then', 'before' and 'after' exchange their places\n"
        "  opposites  a word or phrase becomes its opposite: left and right, opens and closes, into and out of\n"
        "  roles      subject and object exchange their places: a dog chases a cat. Needs spaCy with a parser:\n"
        '             pip install "alpro-hf[entities]", then python -m spacy download en_core_web_sm\n'
        "An edited caption can be true by chance; look at some of them before you train."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro edit-captions clips.jsonl --output edited.jsonl\n"
        "  alpro edit-captions clips.jsonl --output edited.jsonl --kinds order opposites roles\n"
        "  alpro edit-captions clips.jsonl --output edited.jsonl --words my-words.json\n\n"
        "a curriculum, in which the wordings that name the later event first come later and more often:\n"
        "  alpro edit-captions clips.jsonl --output first.jsonl --wordings then\n"
        "  alpro edit-captions clips.jsonl --output all.jsonl --repeat-reversing 2\n"
        "  alpro train --recipe msrvtt-retrieval --data first.jsonl --model START --output runs/first\n"
        "  alpro train --recipe msrvtt-retrieval --data all.jsonl --model runs/first --output runs/all"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="a file or a folder of rows")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the rows to write: .jsonl, .parquet"
    )
    parser.add_argument("--split", metavar="NAME", help="split of DATA, if it has several")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=["order", "opposites"],
        metavar="KIND",
        help=f"edits to make, any of {', '.join(KINDS)} (default: order opposites)",
    )
    parser.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help="JSON file of opposites and of words that begin a clause (default: that of the package, "
        "alpro_hf/data/caption_edits.json, a file to copy and edit)",
    )
    parser.add_argument(
        "--pipeline",
        default="en_core_web_sm",
        metavar="NAME",
        help="for roles: spaCy pipeline with a parser, by name or folder (default: %(default)s)",
    )
    parser.add_argument(
        "--wordings",
        nargs="+",
        choices=WORDINGS,
        default=[],
        metavar="WORDING",
        help=f"write only rows whose captions order two events so, any of {', '.join(WORDINGS)} (default: all rows)",
    )
    parser.add_argument(
        "--repeat-reversing",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="write rows with 'after' so many times: they may name the later event first (default: 1)",
    )
    parser.set_defaults(expected_errors=_expected_errors)


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro edit-captions`."""
    from ..data.edited_captions import WORDS, edit_rows, read_edit_words
    from ..data.load_rows import read_rows
    from ..training.entities import load_parser

    words = read_edit_words(args.words or WORDS)
    parse = load_parser(args.pipeline) if "roles" in args.kinds else None
    counts = edit_rows(
        read_rows(args.data, args.split),
        args.output,
        args.kinds,
        words=words,
        parse=parse,
        wordings=args.wordings,
        repeat_reversing=args.repeat_reversing,
    )
    made = ", ".join(f"{kind} {count:,}" for kind, count in counts.edits.items())
    print(f"{counts.rows:,} rows, {counts.edited:,} of them with false captions ({made})")
    print(printable(f"written to {args.output}"))
    return 0


def _expected_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError

    return ValueError, DatasetsError
