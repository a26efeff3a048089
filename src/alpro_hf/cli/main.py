"""The command `alpro`. Results go to stdout, progress and complaints to stderr.

Only what a command needs is imported, and only when it runs: `alpro --help` waits for no tensor library.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ..loading import BUNDLED, CommandError, load_model
from ..version import __version__
from .options import Terminated, complain, exit_code_of, nonblank, reason_of, whole_number
from .search import (
    ASK_EPILOG,
    INDEX_EPILOG,
    SEARCH_EPILOG,
    _ask,
    _index,
    _search,
)

# command -> the module that has its arguments and runs it, and what it does
MODULES = {
    "convert": ("convert", "turn a checkpoint of the original ALPRO code into a model folder"),
    "entities": ("entities", "list the most frequent nouns of captions, for the prompter"),
    "pseudo-label": ("pseudo_label", "let a prompter label the crops of a data set, once and for all"),
    "train": ("train", "train a model by a recipe: prompter, pre-training, retrieval or question answering"),
    "evaluate": ("evaluate", "measure a model on a benchmark or rows of your own: retrieval or question answering"),
    "plot": ("plot", "draw the curves of training runs"),
    "publish": ("publish", "put a model, the demo and the metrics on the Hub"),
    "compare": ("compare", "tell whether two evaluations differ by more than chance"),
}
Command = Callable[[argparse.Namespace], int]

DESCRIPTION = "Search videos by what happens in them, and ask them questions in plain language."
EPILOG = """\
examples:
  alpro demo                                         see it work: renders a small gallery, searches it and asks it
  alpro index holiday --output holiday-index         look at every video below a folder, once
  alpro search holiday-index "a dog runs into the sea"
  alpro search holiday "a dog runs into the sea"     the same without an index, which is slower each time
  alpro ask holiday/0042.mp4 "what is the dog doing?"
  alpro evaluate --task retrieval --data rows.jsonl --output results    how good is it, and how sure is that
  alpro entities captions.csv --output entities.txt  the first step of pre-training on your own videos
  alpro COMMAND --help                               all options of a command

The model is the bundled one unless --model names another (a folder or a Hub id). The bundled models know nothing but
the sprite world they were trained on, a synthetic world of moving pictograms: they show that everything works.
For real videos use a checkpoint trained on such, for instance one made by alpro convert.

exit codes:
  0    done
  1    the command failed, or some of the videos could not be used (named on stderr; all others were)
  2    wrong usage
  130  interrupted (Ctrl-C); alpro index keeps what it has done and goes on when started again
  143  told to end (SIGTERM); alpro index as with Ctrl-C, and alpro train saves a checkpoint first
"""
DEMO_EPILOG = """\
The clips show the sprite world, a synthetic world of moving pictograms; the two small models that search and answer
were trained on nothing else and know nothing else. The clips are new to them: in training no sprite was seen doing
what it does here. Nothing is downloaded. What is written: the clips, an index of them to search with alpro search,
and a picture of what was asked and found.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `alpro` with the given arguments (default: those of the process) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    args.command_line = ["alpro", *argv]
    for stream in (sys.stdout, sys.stderr):  # a file name need not be text
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        with _terminable():
            from .. import registration as registration

            return args.run(args)
    except KeyboardInterrupt as stopped:
        return complain(args, reason_of(stopped), code=exit_code_of(stopped))
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _expected_errors() as error:
        return complain(args, " ".join(str(error).split()))


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into `Terminated`, where signals can be received: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause; anything else is our mistake and keeps its traceback. Called when something is raised."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from ..inference.index_shards import VideoIndexError
    from ..model.decoding_types import VideoDecodeError
    from ..sprites.world import SpriteWorldError

    of_files = (OSError, StrictDataclassError, SafetensorError, VideoDecodeError)
    return CommandError, *of_files, SpriteWorldError, VideoIndexError


# ----------------------------------------------------------------------------------------------------------- arguments


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alpro", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"alpro-hf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Command, summary: str, epilog: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "render a gallery of small clips, search it and ask it questions", DEMO_EPILOG)
    demo.add_argument("--output", type=Path, default=Path("alpro-demo"), metavar="DIR", help="default: alpro-demo")
    demo.add_argument(
        "--clips", type=whole_number(1), default=36, metavar="N", help="size of the gallery (default: 36)"
    )
    demo.add_argument("--seed", type=whole_number(0), default=0, help="another seed, another gallery (default: 0)")

    index = command("index", _index, "look at every video once and keep what a search needs", INDEX_EPILOG)
    index.add_argument("paths", nargs="+", type=Path, metavar="DIR", help="folders, or single videos")
    index.add_argument("--output", type=Path, required=True, metavar="INDEX", help="folder to keep the index in")
    index.add_argument(
        "--batch-size", type=whole_number(1), default=8, metavar="N", help="encoded at a time (default: 8)"
    )
    index.add_argument(
        "--shard-size",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="videos in a file of the index, which is what a crash can lose (default: 64)",
    )

    search = command("search", _search, "find the videos that a text describes", SEARCH_EPILOG)
    search.add_argument("where", type=Path, metavar="INDEX-or-DIR", help="an index, or a folder of videos")
    search.add_argument("query", type=nonblank, help="what to look for, in plain language")
    search.add_argument("--top-k", type=whole_number(1), default=10, metavar="N", help="results to show (default: 10)")
    search.add_argument(
        "--rerank",
        type=whole_number(0),
        default=16,
        metavar="K",
        help="candidates to look at twice, 0 for none (default: 16)",
    )

    ask = command("ask", _ask, "ask a video a question", ASK_EPILOG)
    ask.add_argument("video", type=Path)
    ask.add_argument("question", type=nonblank)
    ask.add_argument("--top-k", type=whole_number(1), default=5, metavar="N", help="answers to show (default: 5)")

    for sub in (index, search):
        sub.add_argument(
            "--allow-outside",
            action="store_true",
            help="take videos that links, or the paths in an index, lead to outside of the folder (default: refuse)",
        )
        sub.add_argument(
            "--deadline",
            type=whole_number(1),
            default=300,
            metavar="SECONDS",
            help="give up on a video that takes longer to decode (default: 300)",
        )
        sub.add_argument(
            "--dtype",
            choices=["auto", "float32", "bfloat16"],
            default="float32" if sub is index else None,
            help="numbers to compute in; auto: bfloat16 where the machine has it in hardware, else float32 "
            f"(default: {'float32' if sub is index else 'that of the index'})",
        )
    search.add_argument("--ann", action="store_true", help="find candidates with FAISS, for millions of videos")
    for sub in (index, search, ask):
        default = "the index's own" if sub is search else "the bundled one"
        sub.add_argument("--model", metavar="M", help=f"folder, Hub id or 'bundled' (default: {default})")
        sub.add_argument("--json", action="store_true", help="print one JSON object")

    for name, (module, summary) in MODULES.items():
        sub = commands.add_parser(name, help=summary)
        if argv[:1] == [name]:  # what the options mean is told by a module that is not worth importing for others
            described = import_module(f".{module}", __package__)
            described.add_arguments(sub)
            sub.set_defaults(run=described.run)
    return parser


# ------------------------------------------------------------------------------------------------------------ commands


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    retrieval, qa = load_model("retrieval", BUNDLED), load_model("qa", BUNDLED)
    run_demo(args.output, retrieval, qa, clips=args.clips, seed=args.seed)
    return 0
