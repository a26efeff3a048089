"""`alpro search`: find the videos that a text describes, in an index or in a folder."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.spans import span_text
from ..loading import BUNDLED, CommandError, load_model
from ..trust import printable
from .options import DTYPES, add_limit_options, complain, nonblank, number_from_zero, video_limits, whole_number
from .options import expected_errors as expected_errors_of_all
from .videos import (
    add_decoding_options,
    failed_json,
    find_some_videos,
    list_failed,
    note_unfamiliar,
    note_unknown_words,
    say_what_it_is,
    shown,
)
from .videos import expected_errors as errors_of_videos

if TYPE_CHECKING:
    from ..data.isolated_decoder import IsolatedDecoder
    from ..inference.index_faiss import AnnSearch
    from ..inference.queries import Term
    from ..inference.video_index import SearchResult, VideoIndex

EPILOG = """\
First all videos are ordered by the cosine similarity of video and query (column "similarity"). Then the best K are
reordered by the sum of that similarity and the matching logit of a slower model part that reads video and query
together; column "match" is its probability. A model without such a trained part has no column "match". An index
stores the name of its model, so it rarely needs --model.

--also searches further indexes or folders of the same model, as if all were one. Each result names its index. --join
and --trim change the ends of moments in videos whose windows do not end at cuts.

An index that somebody else has made, or that you made on another computer, cannot choose the folder of its videos.
Name it with --videos, or pass --allow-outside if you trust the index.

What is encoded of a folder is kept in the cache of the user, and the next search in it only encodes what has changed.
alpro index --list shows what is kept.

--like finds what is like an example: a video, a moment of one, or a picture. A query may also add and subtract: write
+ and - between terms, each a word of its own. A term is a text or a file; a number and a colon before it weigh it.
Such queries are compared by similarity alone, without matching.

Without a query, one is read from each line of the standard input: type them, or send a file. The model is loaded once.
A line is a text, or terms with + and - between them. Ctrl-D ends the command.

--save-clips writes each result as an mp4 of its own, with rank, name and time in the name of the file. A clip is
copied without loss from the key frame before the moment; --exact encodes exactly the moment instead.

examples:
  alpro search holiday-index "two people dance" --top-k 5
  alpro search holiday-index "two people dance" --rerank 0 --json | jq -r '.results[].path'
  alpro search holiday "two people dance"                   a folder: encoded the first time, then from the cache
  alpro search holiday-index --like dance.mp4@00:12-00:20   what is like these 8 seconds
  alpro search holiday-index --like photo.jpg
  alpro search holiday-index "a dog runs" + clip.mp4 - 0.5:"snow"
  alpro search holiday-index "a dog runs" --also films-index
  alpro search holiday-index < queries.txt                  one query a line
  alpro search films-index "a goal is scored" --save-clips goals --exact
  alpro search films-index "a goal is scored" --sheet goals.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro search` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=expected_errors, usage_error=parser.error)
    parser.add_argument("where", type=Path, metavar="INDEX-or-DIR", help="an index, a folder of videos, or a video")
    parser.add_argument(
        "query",
        nargs="*",
        type=nonblank,
        metavar="QUERY",
        help="what to look for, in plain language; or terms with + and - between them (default: read from each line)",
    )
    parser.add_argument(
        "--like",
        action="append",
        default=[],
        type=nonblank,
        metavar="FILE[@FROM-TO]",
        help="find what is like a video, a moment of it, or a picture; may be given several times",
    )
    parser.add_argument("--save-clips", type=Path, metavar="DIR", help="write each result as an mp4 into a folder")
    parser.add_argument(
        "--exact", action="store_true", help="with --save-clips: encode exactly the moments instead of copying"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="draw the results: frames of each, time, similarity")
    parser.add_argument("--top-k", type=whole_number(1), default=10, metavar="N", help="results to show (default: 10)")
    parser.add_argument(
        "--per-video",
        type=whole_number(0),
        default=1,
        metavar="N",
        help="moments of one video to show, 0 for all (default: 1, the best one)",
    )
    parser.add_argument(
        "--rerank",
        type=whole_number(0),
        metavar="K",
        help="candidates to reorder by matching, 0 for none (default: 16, or 0 if the model cannot match)",
    )
    parser.add_argument(
        "--rerank-margin",
        type=number_from_zero,
        metavar="M",
        help="do not reorder candidates whose similarity is lower than the best one's by more than M; 0.05 matches a "
        "quarter as many in an index of 1,000 clips (default: reorder all K)",
    )
    parser.add_argument("--join", action="store_true", help="join neighbouring windows of about the same similarity")
    parser.add_argument("--trim", action="store_true", help="cut off ends of moments where the similarity is lower")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        type=Path,
        metavar="INDEX-or-DIR",
        help="search this one, too, as if all were one; of the same model; may be given several times",
    )
    add_decoding_options(parser)
    add_limit_options(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="data type of the model; auto: bfloat16 where the hardware supports it, else float32; int8: "
        "weights of 8 bits, quicker on a CPU (default: that of the index, or auto)",
    )
    parser.add_argument("--ann", action="store_true", help="find candidates with FAISS, for millions of videos")
    parser.add_argument("--no-cache", action="store_true", help="encode a folder anew and keep nothing of it")
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the index's own)")
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="folder of the videos, for an index that somebody else has made (default: as noted when you made it)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; one a line for queries of lines")


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors of videos, indexes and queries that a user can cause; see `cli/main.py`."""
    from ..data.spans import SpanError
    from ..inference.queries import QueryError

    return (*errors_of_videos(), QueryError, SpanError)


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro search`; 1 if some videos of a folder, or some queries, could not be used."""
    from ..data.isolated_decoder import IsolatedDecoder
    from ..inference.queries import parse_terms

    query: str | list[Term] | None = None
    if args.like or len(args.query) > 1:
        query = parse_terms(args.query, args.like)
    elif args.query:
        query = args.query[0]
    if query is None and (args.save_clips or args.sheet):
        args.usage_error("--save-clips and --sheet need a QUERY, or --like, on the command line")
    if args.exact and not args.save_clips:
        args.usage_error("--exact belongs to --save-clips")
    if args.sheet and args.sheet.suffix.lower() != ".png":
        args.usage_error(f"--sheet writes a PNG; {args.sheet} is not named like one")
    if args.ann and args.also:
        args.usage_error("--ann searches one index, without --also")
    if args.videos and args.also:
        args.usage_error("--videos belongs to one index, without --also; --allow-outside trusts all of them")
    indexes: list[VideoIndex] = []
    failed: list[tuple[Path, str]] = []
    loaded: dict[tuple[str, str], Any] = {}
    name = ""
    for where in (args.where, *args.also):
        index, model_name, problems = _opened(args, where, loaded)
        name = name or model_name
        failed += problems
        if not len(index):
            list_failed(failed)
            raise CommandError(f"there is no usable video in {where}.")
        indexes.append(index)
    nearest = _approximate(indexes[0], args.where).nearest if args.ann else None
    search = _Search(args, indexes, name, failed, nearest)
    with IsolatedDecoder(processes=1, deadline=args.deadline, limits=video_limits(args)) as decoder:
        if query is not None:
            search.answer(query, decoder)
            return list_failed(search.failed)
        unanswered = search.answer_lines(decoder)
    return max(list_failed(failed), 1 if unanswered else 0)


def _opened(
    args: argparse.Namespace, where: Path, loaded: dict[tuple[str, str], Any]
) -> tuple["VideoIndex", str, list[tuple[Path, str]]]:
    """An index to search, the name of its model, and the videos of a folder that could not be used.

    Args:
        args: The arguments of the command.
        where: The index or folder.
        loaded: Models that were loaded so far, by name and data type.
    """
    from ..data.isolated_decoder import IsolatedDecoder
    from ..inference.cached_index import build_cached
    from ..inference.index_shards import MANIFEST, Manifest
    from ..inference.video_index import VideoIndex

    options: dict[str, Any]

    def load(name: str, dtype: str) -> Any:
        if (name, dtype) not in loaded:
            loaded[name, dtype] = load_model("retrieval", name, dtype)
            say_what_it_is(name, loaded[name, dtype][0])
        return loaded[name, dtype]

    if (where / MANIFEST).is_file():
        made = Manifest.read(where, root=args.videos, allow_outside=args.allow_outside).model
        name = made["name"] if args.model is None else args.model
        options = {"root": args.videos, "name": name, "allow_outside": args.allow_outside}
        return VideoIndex.load(where, *load(name, args.dtype or made["dtype"]), **options), name, []
    if args.videos:
        raise CommandError(f"--videos belongs to an index, and {where} holds none.")
    videos, failed = find_some_videos([where])
    name = BUNDLED if args.model is None else args.model
    model, processor = load(name, args.dtype or "auto")  # as `alpro index` would
    options = {"name": name, "allow_outside": args.allow_outside}
    with IsolatedDecoder(deadline=args.deadline, limits=video_limits(args)) as decoder:
        if args.no_cache or not _cache_is_writable(args):
            index = VideoIndex.build(model, processor, videos, decoder=decoder, **options)
        else:
            index = build_cached(model, processor, where, videos, decoder=decoder, **options)
    return index, name, failed + index.report.failed


def _cache_is_writable(args: argparse.Namespace) -> bool:
    """Whether encoded videos can be kept; if not, a line on stderr says so."""
    from ..inference.cached_index import cache_folder

    try:
        cache_folder()
        return True
    except OSError as error:
        complain(args, f"note: nothing is kept of this folder, because the cache cannot be written ({error}).")
        return False


class _Search:
    """Answers queries in an opened index and prints the results."""

    def __init__(
        self,
        args: argparse.Namespace,
        indexes: list["VideoIndex"],
        name: str,
        failed: list[tuple[Path, str]],
        nearest: Any,
    ) -> None:
        self.args, self.indexes, self.name, self.failed, self.nearest = args, indexes, name, failed, nearest
        self.index = indexes[0]  # of its model are all

    def answer(self, query: "str | list[Term]", decoder: "IsolatedDecoder", *, indent: int | None = 1) -> None:
        """Find and print the results of one query."""
        from ..evaluation.unfamiliar import unfamiliar_videos, unknown_words
        from ..inference.save_clips import save_clips
        from ..inference.several_indexes import search_indexes, search_indexes_like

        args, index = self.args, self.index
        clips: dict[int, Path] = {}
        options = {"top_k": args.top_k, "per_video": args.per_video, "join": args.join, "trim": args.trim}
        if isinstance(query, str):
            matching = {"rerank": args.rerank, "rerank_margin": args.rerank_margin}
            if args.also:
                results = search_indexes(self.indexes, query, **matching, **options)
            else:
                results = index.search(query, nearest=self.nearest, **matching, **options)
            asked, texts, files = query, [query], []
        else:
            if args.also:
                results = search_indexes_like(self.indexes, *query, decoder=decoder, **options)
            else:
                results = index.search_like(*query, nearest=self.nearest, decoder=decoder, **options)
            asked, texts = _written(query), [term.text for term in query if term.text]
            files = [term.file for term in query if term.file is not None]
        words = [word for text in texts for word in unknown_words(index.model, index.processor, text)]
        unfamiliar = unfamiliar_videos(index.model, [*files, *_files_of(results)], decoder)
        if args.save_clips:
            clips, problems = save_clips(results, args.save_clips, exact=args.exact, decoder=decoder)
            self.failed = [*self.failed, *problems]
        if args.sheet:
            from .contact_sheet import draw_results

            problems = draw_results(args.sheet, asked, results, decoder)
            self.failed = list(dict.fromkeys([*self.failed, *problems]))
        if args.json:
            output = {
                "query": asked,
                "model": self.name,
                "results": [_as_json(result, clips, index.can_match, bool(args.also)) for result in results],
                "failed": failed_json(self.failed),
                "unknown_words": words,
                "unfamiliar": [str(path) for path in unfamiliar],
            }
            print(json.dumps(output, indent=indent), flush=True)
        else:
            print_table(results, matched=index.can_match, several=bool(args.also))
        note_unknown_words(args, words)
        note_unfamiliar(args, unfamiliar)

    def answer_lines(self, decoder: "IsolatedDecoder") -> int:
        """Answer the query of each line of the standard input; the number of those that could not be answered."""
        from ..inference.queries import read_query

        problems = 0
        for line in _lines("query> "):
            if not line.strip():
                continue
            try:
                self.answer(read_query(line), decoder, indent=None)
            except (*expected_errors_of_all(), *expected_errors()) as error:
                problems += 1
                complain(self.args, " ".join(str(error).split()))
        return problems


def _lines(prompt: str) -> Iterator[str]:
    """Lines of the standard input; a person is asked for each."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ModuleNotFoundError):  # it is not on every platform
        import readline as readline  # lets people edit the line, and find the lines before it again
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return


def _files_of(results: Sequence["SearchResult"]) -> list[Path]:
    return list(dict.fromkeys(result.path for result in results))


def _written(terms: Sequence["Term"]) -> str:
    """Terms as one line, as `alpro search` takes them."""
    parts = []
    for place, term in enumerate(terms):
        sign = "- " if term.weight < 0 else "+ " if place else ""
        weight = "" if abs(term.weight) == 1 else f"{abs(term.weight):g}:"
        span = "" if term.span is None else f"@{term.span.start:g}-{term.span.end:g}"
        parts.append(f"{sign}{weight}{term.text or term.file}{span}")
    return " ".join(parts)


def _as_json(result: "SearchResult", clips: dict[int, Path], matched: bool, several: bool) -> dict[str, Any]:
    clip = {"clip": str(clips[result.rank])} if result.rank in clips else {}
    return {
        "rank": result.rank,
        "path": str(result.path),
        "start": result.start,
        "end": result.end,
        "score": result.score,
        "similarity": result.similarity,
        **({"match_probability": result.match_probability} if matched else {}),
        **({"index": None if result.index is None else str(result.index)} if several else {}),
        **clip,
    }


def print_table(results: Sequence["SearchResult"], *, matched: bool = True, several: bool = False) -> None:
    """Print results; the column of times is there if one of them is a moment.

    Args:
        results: Best first.
        matched: Whether the model can match, so that there is a column for it.
        several: Whether several indexes were searched, so that each result names its own behind the video.
    """
    times = [
        "-" if result.start is None or result.end is None else span_text(result.start, result.end)
        for result in results
    ]
    timed = any(time != "-" for time in times)
    width = max(map(len, times), default=0)
    head = "   match" if matched else ""
    print(f"rank{head}  similarity  " + (f"{'time':{width}}  " if timed else "") + "video")
    for result, time in zip(results, times, strict=True):
        match = "-" if result.match_probability is None else f"{result.match_probability:.1%}"
        column = f"{time:{width}}  " if timed else ""
        match = f"  {match:>6}" if matched else ""
        own = f"  [{shown(result.index)}]" if several and result.index is not None else ""
        print(f"{result.rank:4}{match}  {result.similarity:10.3f}  {column}{shown(result.path)}{own}")
    sys.stdout.flush()


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
