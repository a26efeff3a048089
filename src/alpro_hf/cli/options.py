"""Parsers, argument types and error reports, written once for all commands."""

import argparse
import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from ..loading import CommandError
from ..trust import printable

DTYPES = ("auto", "float32", "bfloat16", "int8")  # see `loading.load_model`
MAX_MESSAGE = 4000  # characters of an error message


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and answers an unknown option with the nearest known one.

    An abbreviation could turn off a protection: `--allow-outsid` is a typing error, not consent to `--allow-outside`.

    Args:
        prog: Name of the program in its usage, such as `alpro search`.
        texts: `usage`, `description` and `epilog`, printed as they are written.

    Attributes:
        add_unlisted: Adds the options that help does not list. Not called for help, so it may import what takes long.
    """

    add_unlisted: Callable[[argparse.ArgumentParser], None] | None = None

    def __init__(self, prog: str, **texts: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)

    def error(self, message: str) -> NoReturn:
        """Report wrong usage and end the process; an argument in the message cannot steer the terminal."""
        super().error(printable(message))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse arguments, checking the names of all options first.

        Left alone, argparse complains about missing arguments before it mentions a misspelt option, which is often the
        reason why they are missing.
        """
        options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        if self.add_unlisted is not None and not {"-h", "--help"} & set(options):
            self.add_unlisted(self)
        # argparse keeps the names of its options in this attribute and has no public way to list them
        known = self._option_string_actions
        if not {"-h", "--help"} & set(options):
            for option in filter(_is_option, options):
                name = option.partition("=")[0]
                if name not in known:
                    self.error(f"unknown option {name}.{did_you_mean(name, known, f'{self.prog} --help')}")
        if "--" not in arguments and any(a.nargs == "*" and not a.option_strings for a in self._actions):
            # `parse_args` would let an argument that may be missing take nothing before the first option, and then
            # refuse the values behind it; but only `parse_args` understands "--"
            return self.parse_intermixed_args(arguments)
        return self.parse_args(arguments)


def _is_option(argument: str) -> bool:
    """Whether argparse reads an argument as the name of an option: negative numbers and texts are values."""
    return len(argument) > 1 and argument[0] == "-" and " " not in argument and not re.match(r"-\.?\d", argument)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A sentence with the known name that is nearest to an unknown one, or with the command that lists them all."""
    known = list(known)
    begun = [one for one in known if one.startswith(name)]  # a name that was not finished
    nearest = difflib.get_close_matches(name, begun or known, n=1)
    return f" Did you mean {nearest[0]}?" if nearest else f" {otherwise} lists them all."


def whole_number(least: int) -> Callable[[str], int]:
    """Argument type: a whole number that is at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """A type for `argparse`: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def number_from_zero(text: str) -> float:
    """A type for `argparse`: a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return number


def window_choice(text: str) -> str | tuple[float, ...]:
    """A type for `argparse`: how videos are cut, a word or seconds."""
    if text in ("auto", "scenes", "none"):
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, scenes, none, or seconds such as 10 or 4,8") from None


def add_window_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--window` and `--stride`; `default` says what counts without them."""
    parser.add_argument(
        "--window",
        type=window_choice,
        metavar="SECONDS|scenes|none",
        help="length of the windows that long videos are cut into, or several, such as 4,8; scenes: at the shot "
        f"boundaries that PySceneDetect finds; none: each video is one clip (default: {default})",
    )
    parser.add_argument(
        "--stride",
        type=positive_number,
        metavar="SECONDS",
        help="from one window to the next (default: half of the length)",
    )


# field of `VideoLimits` -> unit on the command line, how many of its units that is, help, default in that unit
_LIMITS = {
    "max_duration": ("HOURS", 3600, "longest video", "6"),
    "max_pixels": ("N", 1, "most pixels of a stored frame", "37748736, 8K"),
    "max_file_size": ("GIB", 1 << 30, "largest file", "16"),
    "max_decoded_size": ("GIB", 1 << 30, "most memory for the frames of one clip", "4"),
}


def _limit(text: str) -> float | None:
    return None if text == "none" else positive_number(text)


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `VideoLimits`; `video_limits` reads them."""
    limits = parser.add_argument_group(
        "limits on the cost of a video, of which larger ones are refused; none: no limit"
    )
    for name, (unit, _, what, default) in _LIMITS.items():
        limits.add_argument(
            f"--{name.replace('_', '-')}",
            type=_limit,
            default=argparse.SUPPRESS,
            metavar=unit,
            help=f"{what} (default: {default})",
        )


def video_limits(args: argparse.Namespace) -> Any:
    """The `VideoLimits` that options name; None: no option was given."""
    from ..model.decoding_types import VideoLimits

    given = {name: getattr(args, name) for name in _LIMITS if hasattr(args, name)}
    if not given:
        return None
    whole = {"max_pixels", "max_file_size", "max_decoded_size"}
    values = {name: None if value is None else value * _LIMITS[name][1] for name, value in given.items()}
    return VideoLimits(
        **{name: int(value) if name in whole and value is not None else value for name, value in values.items()}
    )


def nonblank(text: str) -> str:
    """Argument type: a text with more in it than white space."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is blank")
    return text


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM. Work stops and is kept as after Ctrl-C; only the exit code differs."""


def reason_of(stopped: KeyboardInterrupt) -> str:
    """The cause that stopped a command, in one word."""
    return "terminated" if isinstance(stopped, Terminated) else "interrupted"


def exit_code_of(stopped: KeyboardInterrupt) -> int:
    """128 plus the number of the signal, the convention of shells."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def complain(args: argparse.Namespace, message: str, code: int = 1) -> int:
    """Print `alpro COMMAND: message` to stderr and return an exit code.

    In a process that torchrun or `accelerate launch` started, the line also says which process speaks, unless it is
    the first one.
    """
    rank = int(os.environ.get("RANK", "0"))
    process = f" (process {rank})" if rank else ""
    if len(message) > MAX_MESSAGE:  # a stranger's file may fill it
        message = f"{message[:MAX_MESSAGE]} ..."
    print(f"alpro {args.command}{process}: {printable(message)}", file=sys.stderr)
    return code


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors that a user of any command can cause, by naming a file or a model that cannot be used.

    The types come from libraries, so they are imported when something was raised and not before.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return CommandError, OSError, StrictDataclassError, SafetensorError
