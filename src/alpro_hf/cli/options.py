"""Argument types and the handling of errors, shared by all commands."""

import argparse
import signal
import sys
from collections.abc import Callable


class Terminated(KeyboardInterrupt):
    """SIGTERM, which asks as Ctrl-C does, only from outside: the same is kept and the same is cleaned up."""


def reason_of(stopped: KeyboardInterrupt) -> str:
    return "told to end" if isinstance(stopped, Terminated) else "interrupted"


def exit_code_of(stopped: KeyboardInterrupt) -> int:
    """128 and the number of the signal, as shells have it."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def complain(args: argparse.Namespace, message: str, code: int = 1) -> int:
    print(f"alpro {args.command}: {message}", file=sys.stderr)
    return code


def whole_number(least: int) -> Callable[[str], int]:
    """A whole number from `least` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def nonblank(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is blank")
    return text
