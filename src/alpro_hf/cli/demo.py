"""`alpro demo`: render a gallery from the sprite world, then search it and ask it with the bundled models."""

import argparse
from pathlib import Path

from ..loading import BUNDLED, load_model
from .options import whole_number
from .videos import expected_errors

EPILOG = """\
The clips show the sprite world, a synthetic world of moving pictograms. Two small models search and answer; they were
trained on that world alone and know nothing else. The clips are new to them: in training no sprite was seen doing
what it does here. Nothing is downloaded. The command writes the clips, an index of them for alpro search, and a
picture of the searches and questions.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro demo` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=_expected_errors)
    parser.add_argument(
        "--output", type=Path, default=Path("alpro-demo"), metavar="DIR", help="folder to write (default: alpro-demo)"
    )
    parser.add_argument(
        "--clips", type=whole_number(1), default=36, metavar="N", help="size of the gallery (default: 36)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="another seed gives another gallery (default: 0)"
    )


def _expected_errors() -> tuple[type[Exception], ...]:
    from ..sprites.world import SpriteWorldError

    return SpriteWorldError, *expected_errors()


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro demo`."""
    from .gallery import run_demo

    retrieval, qa = load_model("retrieval", BUNDLED), load_model("qa", BUNDLED)
    run_demo(args.output, retrieval, qa, clips=args.clips, seed=args.seed)
    return 0
