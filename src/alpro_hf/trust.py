"""What is trusted, and what bounds everything else.

Trusted is the user, who passes arguments. Nothing else is: a clip, an index, a model folder, a checkpoint, a table of
annotations, a result folder, a recipe, an upload and the answer of a server may come from a stranger.
`docs/reliability.md` lists where each of them enters, what bounds it, and the test.

The rules are few:

- Code: none is run. Every load passes `trust_remote_code=False` and reads safetensors, or pickles with `weights_only`.
- Sizes: a number in a file is compared with a limit or with the size of the file before memory is allocated for it.
- Places: a path in a file stays in the folder that the user named. A link is replaced, never written through, see
  `files.write_whole`.
- Texts: a name is shown with `printable`, so that it cannot steer a terminal or forge a line.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

JSON_DEPTH = 64  # lists and objects inside each other
JSON_DIGITS = 40  # of an integer; those of 64 bits have 19
JSON_BYTES = 1 << 25  # of a file that is read as one JSON value; values take up to twenty times as much memory


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may come from a stranger.

    Raises:
        ValueError: The text is not JSON; or it is nested deeper than `JSON_DEPTH`, or has an integer of more than
            `JSON_DIGITS` digits or a number that is NaN or infinite.
    """
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels") from error
    level = [value]
    for _ in range(JSON_DEPTH):  # level by level, because a recursion is what a deep value would overflow
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {JSON_DEPTH} levels")


def read_json(path: Path, max_bytes: int = JSON_BYTES) -> Any:
    """Read a file that is one JSON value, with the bounds of `parse_json`.

    Raises:
        ValueError: As in `parse_json`; or the path is not a file, or is larger than `max_bytes`.
        OSError: The file is not there or cannot be read.
    """
    with open_regular(path) as file:
        text = file.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return parse_json(text)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes; refuse pipes and devices, which may have no end or never answer.

    Raises:
        ValueError: The path is neither a file nor a link to one.
        OSError: The file is not there or cannot be read.
    """
    # Opening a pipe would wait for a writer without O_NONBLOCK, which has no meaning for files. Windows has neither.
    file = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{printable(path)} is not a file")
    return file


def printable(text: object) -> str:
    """A text for people on one line: what could steer a terminal, end a line or turn its direction is escaped.

    Letters of all languages stay. A byte of a file name that is no text (a lone surrogate) becomes `\\udc..`.
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def _integer(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits, more than {JSON_DIGITS}")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        _no_number(digits)
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"{text[:40]} is not a finite number")


__all__ = ["JSON_BYTES", "JSON_DEPTH", "JSON_DIGITS", "open_regular", "parse_json", "printable", "read_json"]
