"""`alpro ask`: ask a video a question."""

import argparse
import json
from pathlib import Path

from ..data.find_videos import about_pattern, find_videos
from ..data.spelling import existing
from ..loading import BUNDLED, CommandError, load_model
from ..trust import printable
from .options import nonblank, whole_number
from .videos import expected_errors, note_unfamiliar, note_unknown_words

EPILOG = """\
The model chooses among the answers that it was trained with, and says how many it knows.

examples:
  alpro ask clip.mp4 "which way does the fox move?"
  alpro ask clip.mp4 "how many animals are there?" --top-k 1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro ask` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=expected_errors)
    parser.add_argument("video", type=Path, help="a video file")
    parser.add_argument("question", type=nonblank, help="in plain language")
    parser.add_argument("--top-k", type=whole_number(1), default=5, metavar="N", help="answers to show (default: 5)")
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the bundled one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro ask`."""
    from ..data.isolated_decoder import IsolatedDecoder
    from ..evaluation.unfamiliar import unfamiliar_videos, unknown_words
    from ..inference.question_answering import ask, known_answers

    args.video = Path(existing(str(args.video)))
    if args.video.is_dir():
        found, _ = find_videos([args.video])
        example = f"{found[0]}, the first of {len(found)} videos in it" if found else "clip.mp4; this one holds none"
        raise CommandError(f"{str(args.video)!r} is a folder. Name one video, for instance {example}.")
    if not args.video.is_file():
        raise CommandError(f"there is no file {str(args.video)!r}.{about_pattern(args.video)}")
    model, processor = load_model("qa", BUNDLED if args.model is None else args.model)
    with IsolatedDecoder(processes=1) as decoder:
        [answers] = ask(model, processor, args.video, [args.question], top_k=args.top_k, decoder=decoder)
        unfamiliar = unfamiliar_videos(model, [args.video], decoder)
    words, known = unknown_words(model, processor, args.question), len(known_answers(model))
    if args.json:
        result = {
            "video": str(args.video),
            "question": args.question,
            "answers": [{"answer": answer.answer, "probability": answer.probability} for answer in answers],
            "known_answers": known,
            "unknown_words": words,
            "unfamiliar": [str(path) for path in unfamiliar],
        }
        print(json.dumps(result, indent=1))
    else:
        for answer in answers:
            print(f"{answer.probability:6.1%}  {printable(answer.answer)}")
        print(f"{len(answers)} of the {known} answers that this model knows")
    note_unknown_words(args, words)
    note_unfamiliar(args, unfamiliar)
    return 0
