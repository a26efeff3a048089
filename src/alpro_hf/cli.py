"""The command `alpro`. Results go to stdout, progress and complaints to stderr.

Only what a command needs is imported, and only when it runs: `alpro --help` waits for no tensor library.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .loading import BUNDLED, CommandError, load_model

# command -> the module that has its arguments and runs it, and what it does
MODULES = {
    "convert": ("convert", "turn a checkpoint of the original ALPRO code into a model folder"),
    "entities": ("entities", "list the most frequent nouns of captions, for the prompter"),
    "pseudo-label": ("pseudo_labels", "let a prompter label the crops of a data set, once and for all"),
    "train": ("train", "train a model by a recipe: prompter, pre-training, retrieval or question answering"),
    "evaluate": ("evaluate", "measure a model on a benchmark or rows of your own: retrieval or question answering"),
    "plot": ("plots", "draw the curves of training runs"),
    "publish": ("hub", "put a model, the demo and the metrics on the Hub"),
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
WHAT_IS_A_VIDEO = """\
In a folder, a file is a video if its extension is a well-known one of videos (.mp4, .mkv, .avi, ...) or if its first
bytes are those of a video container, whatever it is called. Hidden files and folders are passed over.
"""
INDEX_EPILOG = f"""\
{WHAT_IS_A_VIDEO}
Started again, the command takes up changes: new and changed videos (other size or time of change) are encoded, those
that are gone are dropped, all others are left alone. That is also how an interrupted run goes on. Videos that cannot
be decoded are listed at the end, and with their reasons in INDEX/failed.jsonl, and tried again next time. Decoding
runs in processes of its own, so that a video that crashes or hangs it is one of those.

An index may be moved, and be made from several folders.

examples:
  alpro index holiday --output holiday-index
  alpro index talks films/*.mkv --output my-index --model my-alpro --batch-size 16
  accelerate launch --num_processes 4 -m alpro_hf index films --output my-index    four processes, one index
"""
SEARCH_EPILOG = """\
First all videos are ordered by the cosine similarity of video and query (column "similarity"); then the best K are
reordered by the sum of similarity and matching logit of a second, slower look at video and query together (column
"match" is the probability it gives). An index remembers its model, so --model is rarely needed with one.

examples:
  alpro search holiday-index "two people dance" --top-k 5
  alpro search holiday-index "two people dance" --rerank 0 --json | jq -r '.results[].path'
"""
ASK_EPILOG = """\
The answers come from the closed list that the model was trained with.

examples:
  alpro ask clip.mp4 "which way does the fox move?"
  alpro ask clip.mp4 "how many animals are there?" --top-k 1 --json
"""
DEMO_EPILOG = """\
The clips show the sprite world, a synthetic world of moving pictograms; the two small models that search and answer
were trained on nothing else and know nothing else. The clips are new to them: in training no sprite was seen doing
what it does here. Nothing is downloaded. What is written: the clips, an index of them to search with alpro search,
and a picture of what was asked and found.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which asks as Ctrl-C does, only from outside: the same is kept and the same is cleaned up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `alpro` with the given arguments (default: those of the process) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
    args.command_line = ["alpro", *argv]
    for stream in (sys.stdout, sys.stderr):  # a file name need not be text
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        with _terminable():
            return args.run(args)
    except KeyboardInterrupt as stopped:
        return _complain(args, _why(stopped), code=_code(stopped))
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _expected_errors() as error:
        return _complain(args, " ".join(str(error).split()))


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


def _why(stopped: KeyboardInterrupt) -> str:
    return "told to end" if isinstance(stopped, Terminated) else "interrupted"


def _code(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def _complain(args: argparse.Namespace, message: str, code: int = 1) -> int:
    print(f"alpro {args.command}: {message}", file=sys.stderr)
    return code


def _expected_errors() -> tuple[type[Exception], ...]:
    """What a user can cause; anything else is our mistake and keeps its traceback. Called when something is raised."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    from .data.sprite_world import SpriteWorldError
    from .decoding import VideoDecodeError
    from .index_files import VideoIndexError

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
    demo.add_argument("--clips", type=_number(1), default=36, metavar="N", help="size of the gallery (default: 36)")
    demo.add_argument("--seed", type=_number(0), default=0, help="another seed, another gallery (default: 0)")

    index = command("index", _index, "look at every video once and keep what a search needs", INDEX_EPILOG)
    index.add_argument("paths", nargs="+", type=Path, metavar="DIR", help="folders, or single videos")
    index.add_argument("--output", type=Path, required=True, metavar="INDEX", help="folder to keep the index in")
    index.add_argument("--batch-size", type=_number(1), default=8, metavar="N", help="encoded at a time (default: 8)")
    index.add_argument(
        "--shard-size",
        type=_number(1),
        default=64,
        metavar="N",
        help="videos in a file of the index, which is what a crash can lose (default: 64)",
    )

    search = command("search", _search, "find the videos that a text describes", SEARCH_EPILOG)
    search.add_argument("where", type=Path, metavar="INDEX-or-DIR", help="an index, or a folder of videos")
    search.add_argument("query", type=_text, help="what to look for, in plain language")
    search.add_argument("--top-k", type=_number(1), default=10, metavar="N", help="results to show (default: 10)")
    search.add_argument(
        "--rerank",
        type=_number(0),
        default=16,
        metavar="K",
        help="candidates to look at twice, 0 for none (default: 16)",
    )

    ask = command("ask", _ask, "ask a video a question", ASK_EPILOG)
    ask.add_argument("video", type=Path)
    ask.add_argument("question", type=_text)
    ask.add_argument("--top-k", type=_number(1), default=5, metavar="N", help="answers to show (default: 5)")

    for sub in (index, search):
        sub.add_argument(
            "--allow-outside",
            action="store_true",
            help="take videos that links, or the paths in an index, lead to outside of the folder (default: refuse)",
        )
        sub.add_argument(
            "--deadline",
            type=_number(1),
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


def _number(least: int) -> Callable[[str], int]:
    """A whole number from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is blank")
    return text


# ------------------------------------------------------------------------------------------------------------ commands


def _index(args: argparse.Namespace) -> int:
    from .decoding_worker import IsolatedDecoder
    from .index_files import FAILED
    from .retrieval import VideoIndex

    videos, failed = _find_videos(args.paths)
    name = _lasting_name(args.model or BUNDLED)
    model, processor = load_model("retrieval", name, args.dtype)
    sizes = {"batch_size": args.batch_size, "shard_size": args.shard_size, "name": name}
    first = True
    try:
        with IsolatedDecoder(deadline=args.deadline) as decoder:
            options: dict[str, Any] = {"decoder": decoder, "allow_outside": args.allow_outside, **sizes}
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by accelerate launch or torchrun
                from accelerate import PartialState

                from .index_processes import build_in_processes

                state = PartialState(cpu=model.device.type == "cpu")
                first = state.is_main_process
                index = build_in_processes(model.to(state.device), processor, videos, args.output, state, **options)
            else:
                index = VideoIndex.build(model, processor, videos, directory=args.output, **options)
    except KeyboardInterrupt as stopped:
        kept = "what is done is kept, and the same command goes on from there"
        return _complain(args, f"{_why(stopped)}; {kept}", code=_code(stopped))
    if not first:  # one process speaks for all
        return 0
    failed += index.report.failed
    gone = index.missing()
    index.remove(gone)
    result = {
        "index": str(args.output),
        "videos": len(index),
        "indexed": len(index.report.indexed),
        "unchanged": len(index.report.unchanged),
        "removed": [str(path) for path in gone],
        "failed": _failed_json(failed),
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{args.output}: {len(index)} videos")
        print(f"{result['indexed']} indexed, {result['unchanged']} unchanged, {len(gone)} gone, {len(failed)} failed")
    for path in gone:
        print(f"gone: {_shown(path)}", file=sys.stderr)
    if index.report.failed:
        print(f"all that failed are listed in {args.output / FAILED}", file=sys.stderr)
    return _list_failed(failed)


def _search(args: argparse.Namespace) -> int:
    from .decoding_worker import IsolatedDecoder
    from .index_files import MANIFEST, Manifest
    from .retrieval import VideoIndex

    outside = args.allow_outside

    failed: list[tuple[Path, str]] = []
    if (args.where / MANIFEST).is_file():
        made = Manifest.read(args.where).model
        name = args.model or made["name"]
        loaded = load_model("retrieval", name, args.dtype or made["dtype"])
        index = VideoIndex.load(args.where, *loaded, name=name, allow_outside=outside)
    else:
        videos, failed = _find_videos([args.where])
        name = args.model or BUNDLED
        model, processor = load_model("retrieval", name, args.dtype)
        with IsolatedDecoder(deadline=args.deadline) as decoder:
            index = VideoIndex.build(model, processor, videos, allow_outside=outside, decoder=decoder)
        failed += index.report.failed
    if not len(index):
        _list_failed(failed)
        raise CommandError(f"there is no usable video in {args.where}.")
    nearest = None
    if args.ann:
        from .ann import FILE, AnnSearch, build_ann

        if index.folder is None:
            raise CommandError(f"--ann needs an index; make one with alpro index {args.where} --output INDEX.")
        if find_spec("faiss") is None:
            raise CommandError('--ann needs FAISS, which is not installed: pip install "alpro-hf[faiss]"')
        if not (index.folder / FILE).exists() or (index.folder / FILE).stat().st_mtime_ns < index.changed_ns():
            print(f"building {index.folder / FILE} ...", file=sys.stderr)
            build_ann(index)
        nearest = AnnSearch(index).nearest
    results = index.search(args.query, top_k=args.top_k, rerank=args.rerank, nearest=nearest)
    if args.json:
        found = [
            {
                "rank": result.rank,
                "path": str(result.path),
                "score": result.score,
                "similarity": result.similarity,
                "match_probability": result.match_probability,
            }
            for result in results
        ]
        shown = {"query": args.query, "model": name, "results": found, "failed": _failed_json(failed)}
        print(json.dumps(shown, indent=1))
    else:
        print("rank   match  similarity  video")
        for result in results:
            match = "-" if result.match_probability is None else f"{result.match_probability:.1%}"
            print(f"{result.rank:4}  {match:>6}  {result.similarity:10.3f}  {_shown(result.path)}")
    return _list_failed(failed)


def _ask(args: argparse.Namespace) -> int:
    from .question_answering import ask

    if not args.video.is_file():
        raise CommandError(f"there is no file {str(args.video)!r}.")
    model, processor = load_model("qa", args.model or BUNDLED)
    [answers] = ask(model, processor, args.video, [args.question], top_k=args.top_k)
    if args.json:
        listed = [{"answer": answer.answer, "probability": answer.probability} for answer in answers]
        print(json.dumps({"video": str(args.video), "question": args.question, "answers": listed}, indent=1))
    else:
        for answer in answers:
            print(f"{answer.probability:6.1%}  {answer.answer}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    retrieval, qa = load_model("retrieval", BUNDLED), load_model("qa", BUNDLED)
    run_demo(args.output, retrieval, qa, clips=args.clips, seed=args.seed)
    return 0


def _find_videos(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    from .video_files import find_videos

    videos, failed = find_videos(paths)
    if not videos:
        _list_failed(failed)
        raise CommandError(f"there is no video in {', '.join(map(str, paths))}. {WHAT_IS_A_VIDEO}")
    return videos, failed


def _lasting_name(model: str) -> str:
    """A name that an index may keep: of a local folder, the absolute path."""
    return os.path.abspath(model) if model != BUNDLED and Path(model).is_dir() else model


def _shown(path: Path) -> str:
    """Relative to the working directory if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _failed_json(failed: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in failed]


def _list_failed(failed: Sequence[tuple[Path, str]]) -> int:
    """Name on stderr the videos that could not be used; the exit code that says whether there were any."""
    for path, reason in failed:
        print(f"failed: {_shown(path)}: {reason}", file=sys.stderr)
    return 1 if failed else 0
