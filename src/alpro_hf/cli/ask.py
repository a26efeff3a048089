"""`alpro ask`: ask a video a question."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.find_videos import about_pattern, find_videos
from ..data.spans import SpanError, parse_span, span_text, split_span
from ..data.spelling import existing
from ..loading import BUNDLED, CommandError, load_model
from ..trust import printable
from .options import add_limit_options, nonblank, video_limits, whole_number
from .videos import expected_errors as errors_of_videos
from .videos import note_unfamiliar, note_unknown_words

if TYPE_CHECKING:
    from ..inference.best_moment import Moment

EPILOG = """\
The model chooses among the answers that it was trained with, and says how many it knows.

Of a long video it sees only a few frames, so ask about a moment: --at gives its times. --best describes what happens
in it, and the moment is found as alpro search would find it in this file, by a model for retrieval (--search-model).

examples:
  alpro ask clip.mp4 "which way does the fox move?"
  alpro ask clip.mp4 "how many animals are there?" --top-k 1 --json
  alpro ask film.mp4 "who holds the ball?" --at 12:08-12:20
  alpro ask film.mp4 "who holds the ball?" --best "a goal is scored"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro ask` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=expected_errors, usage_error=parser.error)
    parser.add_argument("video", type=Path, help="a video file, or a moment of one: film.mp4@12:08-12:20")
    parser.add_argument("question", type=nonblank, help="in plain language")
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--at", metavar="FROM-TO", help="ask about this moment, for instance 12:08-12:20")
    moment.add_argument(
        "--best", type=nonblank, metavar="TEXT", help="ask about the moment that a text describes best"
    )
    add_limit_options(parser)
    parser.add_argument("--top-k", type=whole_number(1), default=5, metavar="N", help="answers to show (default: 5)")
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the bundled one)")
    parser.add_argument(
        "--search-model", metavar="M", help="model that finds the moment of --best (default: the bundled one)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors of videos and moments that a user can cause; see `cli/main.py`."""
    return (*errors_of_videos(), SpanError)


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro ask`."""
    from ..data.isolated_decoder import IsolatedDecoder
    from ..evaluation.unfamiliar import unfamiliar_videos, unknown_words
    from ..inference.question_answering import ask, known_answers

    name, span = split_span(str(args.video))
    if args.at is not None or args.best:
        if span is not None:
            args.usage_error(f"{args.video} names a moment, and so does {'--best' if args.best else '--at'}")
        span = None if args.at is None else parse_span(args.at)
    video = Path(existing(name))
    if args.search_model and not args.best:
        args.usage_error("--search-model belongs to --best")
    if video.is_dir():
        videos, _ = find_videos([video])
        example = (
            f"{videos[0]}, the first of {len(videos)} videos in it" if videos else "clip.mp4; this one holds none"
        )
        raise CommandError(f"{str(video)!r} is a folder. Name one video, for instance {example}.")
    if not video.is_file():
        raise CommandError(f"there is no file {str(video)!r}.{about_pattern(video)}")
    model, processor = load_model("qa", BUNDLED if args.model is None else args.model)
    with IsolatedDecoder(processes=1, limits=video_limits(args)) as decoder:
        found = None
        if args.best:
            from ..inference.best_moment import best_moment

            searching = load_model("retrieval", BUNDLED if args.search_model is None else args.search_model)
            searching[0].eval()
            found = best_moment(*searching, video, args.best, decoder=decoder)
            span = found.span
        elif span is not None:
            span = span.within(decoder.probe(video).duration, str(video))
        [answers] = ask(model, processor, video, [args.question], top_k=args.top_k, span=span, decoder=decoder)
        unfamiliar = unfamiliar_videos(model, [video], decoder)
    words, known = unknown_words(model, processor, args.question), len(known_answers(model))
    if args.json:
        result: dict[str, Any] = {
            "video": str(video),
            "start": None if span is None else span.start,
            "end": None if span is None else span.end,
            "question": args.question,
            "answers": [{"answer": answer.answer, "probability": answer.probability} for answer in answers],
            "known_answers": known,
            "unknown_words": words,
            "unfamiliar": [str(path) for path in unfamiliar],
        }
        if found is not None:
            result |= {
                "best": args.best,
                "similarity": found.similarity,
                "match_probability": found.match_probability,
            }
        print(json.dumps(result, indent=1))
    else:
        if span is not None:
            print(f"at {span_text(span.start, span.end)}{_why(args.best, found)}")
        for answer in answers:
            print(f"{answer.probability:6.1%}  {printable(answer.answer)}")
        print(f"{len(answers)} of the {known} answers that this model knows")
    note_unknown_words(args, words)
    note_unfamiliar(args, unfamiliar)
    return 0


def _why(text: str | None, found: "Moment | None") -> str:
    """Why a moment was chosen, if a search has found it."""
    if found is None:
        return ""
    match = f" ({found.match_probability:.1%})" if found.match_probability is not None else ""
    return f", the best match for {text!r}{match}"
