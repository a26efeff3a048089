"""The command `alpro`. Results go to stdout; progress and error messages go to stderr.

A command is a module of this package with two functions. `add_arguments(parser)` describes its options, and
`run(args)` carries it out and returns its exit code. Both modules and options stay free of torch and transformers,
which are imported inside `run`: help answers at once.

Errors are reported here, for all commands. In `add_arguments`, a command says with `parser.set_defaults` what is its
own: `expected_errors`, a function that returns the types of error its users can cause, besides those of
`options.expected_errors`; `when_stopped`, what to say after "interrupted" or "terminated"; and `registers_later`, if
it registers the Auto classes by itself.
"""

import argparse
import atexit
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from ..trust import printable
from ..version import __version__
from .options import Parser, Terminated, complain, did_you_mean, exit_code_of, expected_errors, reason_of

# command -> its module, imported only when the command is chosen, and its summary
COMMANDS = {
    "demo": ("demo", "render a gallery of small clips, search it and ask it questions"),
    "index": ("index", "encode every video of a folder once, for fast searches"),
    "search": ("search", "find the videos that a text describes"),
    "ui": ("ui", "open a page in the browser that searches and plays the videos of an index"),
    "ask": ("ask", "ask a video a question"),
    "label": ("label", "name what each moment of videos shows, with labels of a list"),
    "convert": ("convert", "turn a checkpoint of ALPRO, also a published one, or of BLIP into a model folder"),
    "entities": ("entities", "list the most frequent nouns of captions, for the prompter"),
    "edit-captions": ("edit_captions", "make false captions of true ones, from which matching learns order and roles"),
    "pseudo-label": ("pseudo_label", "precompute the labels that a prompter gives to crops of a data set"),
    "train": ("train", "train a model by a recipe: prompter, pre-training, retrieval or question answering"),
    "evaluate": ("evaluate", "measure a model on a benchmark or on your own rows: retrieval or question answering"),
    "compare": ("compare", "test whether two evaluations differ by more than chance"),
    "plot": ("plot", "draw the curves of training runs"),
    "publish": ("publish", "upload a model, the demo and the metrics to the Hub"),
    "export-onnx": ("export_onnx", "export a model to ONNX"),
}
# Loggers of what libraries say of their own installation when they are imported: torch of torchao, and bitsandbytes of
# itself. transformers imports both if they are there, whether a command uses them or not.
_OF_THE_INSTALLATION = ("torch.utils._pytree", "bitsandbytes")
_IMPATIENCE = 1.0  # seconds within which a second Ctrl-C is not another one
DESCRIPTION = "Search videos by what happens in them, and ask them questions in plain language."
EPILOG = """\
examples:
  alpro demo                                         see it work: renders a small gallery, searches it and asks it
  alpro index holiday --output holiday-index         encode every video below a folder once
  alpro search holiday-index "a dog runs into the sea"
  alpro search holiday "a dog runs into the sea"     the same in a folder; what is encoded is kept in the cache
  alpro ui holiday-index                             the same on a page in the browser
  alpro ask holiday/0042.mp4 "what is the dog doing?"
  alpro evaluate --task retrieval --data rows.jsonl --output results    metrics with their intervals
  alpro entities captions.csv --output entities.txt  the first step of pre-training on your own videos
  alpro COMMAND --help                               all options of a command

The model is the bundled one unless --model names another (a folder or a Hub id). The bundled models know only the
sprite world they were trained on, a synthetic world of moving pictograms: they show that everything works, and the
commands say when a clip or a word is not of it. For real videos, use a model trained on real videos or images:
  alpro convert Salesforce/blip-itm-base-coco --output my-alpro

exit codes:
  0    done
  1    the command failed, or some videos could not be used (named on stderr; all others were used)
  2    wrong usage
  130  interrupted (Ctrl-C); alpro index keeps what is done and continues when started again
  143  terminated (SIGTERM); alpro index as with Ctrl-C, and alpro train saves a checkpoint first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `alpro` with the given arguments (default: those of the process) and return its exit code.

    Raises:
        SystemExit: Code 0 after help or version, code 2 after wrong usage.
    """
    ends = argv is None  # the process, together with the command
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(argv)
    args.command_line = ["alpro", *argv]
    for stream in (sys.stdout, sys.stderr):  # names of files need not be valid text, and are printed all the same
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with _stoppable(ends=ends) as end, _plain_log():
        try:
            # the console script has left this to us; see alpro_hf_launch
            if not args.registers_later:
                from .. import registration as registration

            return args.run(args)
        except KeyboardInterrupt as stopped:
            end()
            message = reason_of(stopped) + (f"; {args.when_stopped}" if args.when_stopped else "")
            return complain(args, message, code=exit_code_of(stopped))
        except BrokenPipeError:  # the reader of our output, such as head, has seen enough
            # Python flushes stdout at exit, which would raise the error again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        # anything else is our own mistake and keeps its traceback
        except (*expected_errors(), *args.expected_errors()) as error:
            return complain(args, " ".join(str(error).split()))


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the chosen command; help, version and wrong usage end the process here."""
    if not argv or argv[0] not in COMMANDS:
        _end_without_command(argv)
    module, summary = COMMANDS[argv[0]]
    command = import_module(f".{module}", __package__)
    parser = Parser(f"alpro {argv[0]}", description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(
        command=argv[0], run=command.run, expected_errors=tuple, when_stopped="", registers_later=False
    )
    command.add_arguments(parser)
    return parser.parse(argv[1:])


def _end_without_command(argv: Sequence[str]) -> NoReturn:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    parser = Parser(
        "alpro",
        usage="alpro [-h] [--version] COMMAND ...",
        description=f"{DESCRIPTION}\n\ncommands:\n{listed}",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"alpro-hf {__version__}")
    if not argv:
        # Help for a person, but an error for a script: its variable with the command was empty. So nothing goes to
        # stdout, where results are expected, and the code is that of wrong usage.
        parser.print_help(sys.stderr)
        parser.exit(2)
    if argv[0].startswith("-"):
        parser.parse(argv)  # ends the process unless argv is only "--"
        parser.error("name a COMMAND.")
    parser.error(f"unknown command {argv[0]}.{did_you_mean(argv[0], COMMANDS, 'alpro --help')}")


@contextmanager
def _stoppable(ends: bool) -> Iterator[Callable[[], None]]:
    """Turn SIGTERM into `Terminated`, and hear Ctrl-C once, where Python allows it: in the main thread.

    A signal raises an exception, and what is done is then kept. Pressed again meanwhile, Ctrl-C would interrupt that,
    or the end of the interpreter, whose exit code would then be another one. So signals within a second of one that
    was heard change nothing. Later ones are heard again: the user has waited.

    Args:
        ends: Whether the process ends with the command; then a signal after it cannot change the exit code either.

    Yields:
        A function to call when nothing is left to be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    heard = -math.inf
    code = 0
    over = False

    def stop(number: int, frame: Any) -> None:
        nonlocal heard, code
        if time.monotonic() - heard < _IMPATIENCE:
            return
        heard = time.monotonic()
        if over:  # something hangs, although all is done
            os._exit(code)
        code = 128 + number
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def end() -> None:
        nonlocal over
        over = True

    def deafen() -> None:
        # at its very end Python restores what the system does by itself, which is to kill the process by the signal
        if over:
            for number in before:
                signal.signal(number, signal.SIG_IGN)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    # a process in the background, such as one of nohup, may have been told to ignore Ctrl-C
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    if ends:
        atexit.register(deafen)
    try:
        yield end
    finally:
        if not (ends and over):
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _plain_log() -> Iterator[None]:
    """Let names in our warnings not steer the terminal (see `trust.printable`), and libraries keep their notes."""
    make = logging.getLogRecordFactory()
    levels = {name: logging.getLogger(name).level for name in _OF_THE_INSTALLATION}

    def make_plain(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name.startswith("alpro_hf."):
            record.msg, record.args = printable(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_plain)
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.setLogRecordFactory(make)
