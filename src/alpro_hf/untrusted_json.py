"""JSON from files of others: read within bounds, so that a small file cannot cost much memory or end in a traceback.

Python's own reader ends in a `RecursionError` at deep nesting, in a plain `ValueError` at a long number, and takes
files of any size. It also reads NaN and Infinity, which JSON does not have.
"""

import errno
import json
import math
import os
import re
import stat
from typing import Any, BinaryIO, NoReturn

MAX_BYTES = 1 << 24  # of a file of settings; in memory, JSON takes up to about 25 times its size
MAX_DEPTH = 64  # levels of objects and lists
MAX_DIGITS = 100  # of a whole number, so that each of them is also a finite float
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},:]|-?[0-9][0-9.eE+-]*|-?Infinity|NaN')


class JsonBoundsError(ValueError):
    """A file or its JSON exceeds a bound. The message is the end of a sentence, without the name of the file.

    `position` is where in the text, and `path` the keys and indices that lead there, such as ("videos", 3, "split").
    """

    def __init__(self, problem: str, position: int = 0, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(problem)
        self.position, self.path = position, path


def read_json(
    path: str | os.PathLike[str], max_bytes: int = MAX_BYTES, *, nan: bool = False, errors: str = "strict"
) -> Any:
    """Read a JSON file within bounds.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.
        max_bytes: Largest size.
        nan: See `parse_json`.
        errors: How to treat bytes that are not UTF-8, see `bytes.decode`.

    Raises:
        JsonBoundsError: The file is larger, is a pipe or a device, or see `parse_json`.
        ValueError: It is not UTF-8 (`UnicodeDecodeError`) or not JSON (`json.JSONDecodeError`).
        OSError: It cannot be read.
    """
    return parse_json(read_bounded(path, max_bytes).decode("utf-8-sig", errors), nan=nan)


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """Parse JSON within bounds.

    Args:
        text: One JSON value; bytes are UTF-8.
        nan: Whether to accept NaN, Infinity and numbers like 1e999, which are infinite as a float.

    Raises:
        JsonBoundsError: A value is nested deeper than `MAX_DEPTH`, a whole number has more than `MAX_DIGITS` digits,
            or, without `nan`, a number is not finite.
        ValueError: It is not UTF-8 (`UnicodeDecodeError`) or not JSON (`json.JSONDecodeError`).
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    decoder = _LENIENT if nan else _STRICT
    try:
        return _checked(decoder.decode(text))
    except (JsonBoundsError, RecursionError) as error:
        raise _located(error, text, 0, nan) from None


def parse_json_prefix(text: str, start: int) -> tuple[Any, int]:
    """Parse the JSON value that starts at a position: the value, and the position after it. NaN is accepted.

    Raises:
        JsonBoundsError, json.JSONDecodeError: See `parse_json`.
    """
    try:
        value, end = _LENIENT.raw_decode(text, start)
        return _checked(value), end
    except (JsonBoundsError, RecursionError) as error:
        raise _located(error, text, start, nan=True) from None


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a plain file that has at most `max_bytes`.

    Raises:
        JsonBoundsError: The file is larger, or see `open_regular`.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise JsonBoundsError(f"it is larger than {max_bytes:,} bytes")
    return content


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file to read its bytes.

    Raises:
        JsonBoundsError: The path is a pipe or a device, which may never end.
        OSError: It cannot be opened.
    """
    # Opening a pipe would wait for a writer without O_NONBLOCK, which has no meaning for files. Windows has neither.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise JsonBoundsError("it is a pipe or a device, where a plain file is needed")
    return open(handle, "rb")


def _checked(value: Any) -> Any:
    # Python's own limit depends on the stack of the caller. What is a little less deep would be an error later, for
    # instance when it is printed.
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    raise RecursionError


def _located(error: JsonBoundsError | RecursionError, text: str, start: int, nan: bool) -> JsonBoundsError:
    """The error with its place, which the parser does not tell."""
    problem = str(error) if isinstance(error, JsonBoundsError) else f"it is nested deeper than {MAX_DEPTH} levels"
    path: list[str | int] = []  # of each level that is open, the key or the index
    name = ""
    for token in _TOKEN.finditer(text, start):
        word = token[0]
        if word in "[{":
            path.append(0 if word == "[" else "")
            if len(path) > MAX_DEPTH:
                break
        elif word in "]}":
            del path[-1:]
        elif word == "," and path and isinstance(path[-1], int):
            path[-1] += 1
        elif word == ":" and path:
            path[-1] = name
        elif word[0] == '"':
            name = word[1:-1]
        elif word[-1].isalpha() or word[-1].isdigit():
            whole = word.lstrip("-").isdigit()
            if (whole and len(word) > MAX_DIGITS) or not (whole or nan or math.isfinite(float(word))):
                break
    return JsonBoundsError(problem, token.start(), tuple(path))


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonBoundsError(f"the number {digits[:12]}... has {len(digits):,} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonBoundsError(f"the number {digits:.24} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise JsonBoundsError(f"it contains {name}, which is not JSON")


_STRICT = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_int=_whole)


__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "JsonBoundsError",
    "open_regular",
    "parse_json",
    "parse_json_prefix",
    "read_bounded",
    "read_json",
]
