"""`alpro entities`: the most frequent nouns of captions."""

import argparse
from pathlib import Path

from ..data.columns import CAPTION_COLUMNS
from ..data.label_lists import EntityListError, write_entities
from ..training.entities import DEFAULT_PIPELINE, count_nouns, load_tagger
from ..trust import printable
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro entities` to a parser."""
    parser.description = (
        "Find the entities that captions are about: their most frequent nouns, for the prompts of a prompter.\n\n"
        "Captions are read from any number of files and data sets, one at a time: text (one caption a line),\n"
        "CSV, TSV, JSON (a list, or one value a line), each also with .gz; Parquet; a folder written by\n"
        "save_to_disk or laid out for load_dataset; a data set on the Hub (owner/name, streamed). Nouns are found by\n"
        'a spaCy pipeline: pip install "alpro-hf[entities]", then python -m spacy download\n'
        + DEFAULT_PIPELINE
        + ", or pip install a wheel of it."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro entities captions.txt --output entities.txt\n"
        "  alpro entities webvid/*.csv --column name --output entities.txt --processes 8\n"
        "  alpro entities Train_GCC-training.tsv --column '#1' --output entities.txt   a table without a header\n"
        "  alpro entities owner/captions --split train --top 500 --output entities.txt\n\n"
        "then:\n"
        "  alpro train --recipe prompter --entities entities.txt ...\n\n"
        "The output holds one noun and its count a line, most frequent first. Empty captions are counted and\n"
        "skipped. A row that cannot be read ends the command with its file and line, and nothing is written."
    )
    parser.add_argument("captions", nargs="+", metavar="CAPTIONS", help="a file, a folder, or a data set on the Hub")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the list to write")
    parser.add_argument(
        "--top", type=whole_number(1), default=1000, metavar="N", help="entities to keep (default: 1000)"
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help=f"column with the captions (default: the one of {', '.join(CAPTION_COLUMNS)} that exists)",
    )
    parser.add_argument("--split", metavar="NAME", help="split of a data set that has several")
    parser.add_argument("--subset", metavar="NAME", help="configuration of a data set that has several")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="encoding of text files (default: utf-8)")
    parser.add_argument(
        "--pipeline",
        default=DEFAULT_PIPELINE,
        metavar="NAME",
        help="spaCy pipeline with a tagger and a lemmatizer, by name or folder (default: %(default)s)",
    )
    parser.add_argument("--proper-nouns", action="store_true", help="also count names such as London")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=256, metavar="N", help="captions tagged at a time (default: 256)"
    )
    parser.add_argument(
        "--processes", type=whole_number(1), default=1, metavar="N", help="processes that tag (default: 1)"
    )
    parser.add_argument(
        "--max-nouns",
        type=whole_number(1),
        default=1_000_000,
        metavar="N",
        help="counts kept in memory; beyond, the rarest are dropped, and the summary says by how much a count may be "
        "too low (default: 1000000)",
    )
    parser.set_defaults(expected_errors=lambda: (ValueError,))


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro entities`."""
    from ..data.tables import read_captions

    options = {"column": args.column, "split": args.split, "subset": args.subset, "encoding": args.encoding}
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise EntityListError(f"--output {args.output} must name a file in a folder that exists.")
    tagger = load_tagger(args.pipeline)
    # a wrong column of the last file is reported now, and not after all others were read
    for source in args.captions:
        next(read_captions(source, **options), None)
    found = count_nouns(
        read_captions(*args.captions, **options),
        tagger,
        pos=("NOUN", "PROPN") if args.proper_nouns else ("NOUN",),
        batch_size=args.batch_size,
        processes=args.processes,
        max_nouns=args.max_nouns,
    )
    entities = write_entities(args.output, found.counts, args.top)
    print(f"{found.captions:,} captions ({found.empty:,} empty), {len(found.counts):,} different nouns")
    first = ", ".join(map(printable, entities[:10]))
    print(f"{len(entities):,} entities: {first}{', ...' if len(entities) > 10 else ''}")
    if found.undercount:
        print(f"rare nouns were dropped to bound the memory: a count may be up to {found.undercount:,} too low")
    print(printable(f"written to {args.output}"))
    return 0
