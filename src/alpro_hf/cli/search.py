"""`alpro search`: find the videos that a text describes, in an index or in a folder."""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading import BUNDLED, CommandError, load_model
from ..trust import printable
from .options import DTYPES, nonblank, whole_number
from .videos import (
    add_decoding_options,
    expected_errors,
    failed_json,
    find_some_videos,
    list_failed,
    note_unfamiliar,
    note_unknown_words,
    say_what_it_is,
    shown,
)

if TYPE_CHECKING:
    from ..inference.index_faiss import AnnSearch
    from ..inference.video_index import VideoIndex

EPILOG = """\
First all videos are ordered by the cosine similarity of video and query (column "similarity"). Then the best K are
reordered by the sum of that similarity and the matching logit of a slower model part that reads video and query
together; column "match" is its probability. A model without such a trained part has no column "match". An index
stores the name of its model, so it rarely needs --model.

An index that somebody else has made, or that you made on another computer, cannot choose the folder of its videos.
Name it with --videos, or pass --allow-outside if you trust the index.

examples:
  alpro search holiday-index "two people dance" --top-k 5
  alpro search holiday-index "two people dance" --rerank 0 --json | jq -r '.results[].path'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro search` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=expected_errors)
    parser.add_argument("where", type=Path, metavar="INDEX-or-DIR", help="an index, or a folder of videos")
    parser.add_argument("query", type=nonblank, help="what to look for, in plain language")
    parser.add_argument("--top-k", type=whole_number(1), default=10, metavar="N", help="results to show (default: 10)")
    parser.add_argument(
        "--rerank",
        type=whole_number(0),
        metavar="K",
        help="candidates to reorder by matching, 0 for none (default: 16, or 0 if the model cannot match)",
    )
    add_decoding_options(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="data type of the model; auto: bfloat16 where the hardware supports it, else float32 "
        "(default: that of the index, or auto)",
    )
    parser.add_argument("--ann", action="store_true", help="find candidates with FAISS, for millions of videos")
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the index's own)")
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="folder of the videos, for an index that somebody else has made (default: as noted when you made it)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro search`; 1 if some videos of a folder could not be used."""
    from ..data.isolated_decoder import IsolatedDecoder
    from ..evaluation.unfamiliar import unfamiliar_videos, unknown_words
    from ..inference.index_shards import MANIFEST, Manifest
    from ..inference.video_index import VideoIndex

    failed: list[tuple[Path, str]] = []
    if (args.where / MANIFEST).is_file():
        made = Manifest.read(args.where, root=args.videos, allow_outside=args.allow_outside).model
        name = made["name"] if args.model is None else args.model
        loaded = load_model("retrieval", name, args.dtype or made["dtype"])
        say_what_it_is(name, loaded[0])
        index = VideoIndex.load(args.where, *loaded, root=args.videos, name=name, allow_outside=args.allow_outside)
    elif args.videos:
        raise CommandError(f"--videos belongs to an index, and {args.where} holds none.")
    else:
        videos, failed = find_some_videos([args.where])
        name = BUNDLED if args.model is None else args.model
        model, processor = load_model("retrieval", name, args.dtype or "auto")  # as `alpro index` would
        say_what_it_is(name, model)
        with IsolatedDecoder(deadline=args.deadline) as decoder:
            index = VideoIndex.build(model, processor, videos, allow_outside=args.allow_outside, decoder=decoder)
        failed += index.report.failed
    if not len(index):
        list_failed(failed)
        raise CommandError(f"there is no usable video in {args.where}.")
    nearest = _approximate(index, args.where).nearest if args.ann else None
    results = index.search(args.query, top_k=args.top_k, rerank=args.rerank, nearest=nearest)
    words = unknown_words(index.model, index.processor, args.query)
    with IsolatedDecoder(processes=1, deadline=args.deadline) as decoder:
        unfamiliar = unfamiliar_videos(index.model, [result.path for result in results], decoder)
    if args.json:
        found: list[dict[str, Any]] = [
            {
                "rank": result.rank,
                "path": str(result.path),
                "score": result.score,
                "similarity": result.similarity,
                **({"match_probability": result.match_probability} if index.can_match else {}),
            }
            for result in results
        ]
        output = {
            "query": args.query,
            "model": name,
            "results": found,
            "failed": failed_json(failed),
            "unknown_words": words,
            "unfamiliar": [str(path) for path in unfamiliar],
        }
        print(json.dumps(output, indent=1))
    else:
        print(f"rank{'   match' if index.can_match else ''}  similarity  video")
        for result in results:
            match = "-" if result.match_probability is None else f"{result.match_probability:.1%}"
            column = f"  {match:>6}" if index.can_match else ""
            print(f"{result.rank:4}{column}  {result.similarity:10.3f}  {shown(result.path)}")
    note_unknown_words(args, words)
    note_unfamiliar(args, unfamiliar)
    return list_failed(failed)


def _approximate(index: "VideoIndex", where: Path) -> "AnnSearch":
    """The FAISS index of a video index, built again if the videos have changed since.

    Raises:
        CommandError: The videos have no index, or FAISS is not installed.
    """
    from ..inference.index_faiss import FILE, AnnOutdatedError, AnnSearch, build_ann

    if index.folder is None:
        raise CommandError(f"--ann needs an index; make one with alpro index {where} --output INDEX.")
    if find_spec("faiss") is None:
        raise CommandError('--ann needs FAISS, which is not installed: pip install "alpro-hf[faiss]"')
    try:
        return AnnSearch(index)
    except AnnOutdatedError:
        print(f"building {printable(index.folder / FILE)} ...", file=sys.stderr)
        build_ann(index)
        return AnnSearch(index)
