"""What is trusted, and what bounds everything else.

Trusted is the user: arguments, and what carries the `seal` of this user. Nothing else is: a clip, an index, a model
folder, a checkpoint, a table of annotations, a result folder, a recipe, an upload and the answer of a server may come
from a stranger.
`docs/reliability.md` lists where each of them enters, what bounds it, and the test.

The rules are few:

- Code: none is run. Every load passes `trust_remote_code=False` and reads safetensors, or pickles with `weights_only`.
- Sizes: a number in a file is compared with a limit or with the size of the file before memory is allocated for it.
- Places: a path in a file stays in the folder that the user named. A link is replaced, never written through, see
  `files.write_whole`.
- Texts: a name is shown with `printable`, so that it cannot steer a terminal or forge a line.
"""

import hashlib
import hmac
import json
import math
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

JSON_DEPTH = 64  # lists and objects inside each other
JSON_DIGITS = 40  # of an integer; those of 64 bits have 19
JSON_BYTES = 1 << 25  # of a file that is read as one JSON value; values take up to twenty times as much memory
_KEY_BYTES = 32


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
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{printable(path)} is not a file")
    return open(handle, "rb")


def printable(text: object) -> str:
    """A text for people on one line: what could steer a terminal, end a line or turn its direction is escaped.

    Letters of all languages stay. A byte of a file name that is no text (a lone surrogate) becomes `\\udc..`.
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text))


def seal(*texts: str) -> str:
    """A proof that this user, on this computer, has written some texts; `is_sealed` checks it.

    It is a hash of the texts with a secret key, which is made when it is first needed. The key is a file of the user:
    `alpro_hf/key` in `XDG_STATE_HOME` (`~/.local/state`) or, on Windows, in `LOCALAPPDATA`. Whoever sends an index
    does not have it.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: The key can neither be read nor made.
    """
    return _hash(_key(make=True), texts)


def is_sealed(proof: object, *texts: str) -> bool:
    """Whether `proof` is what `seal` returned to this user for the same texts."""
    try:
        return isinstance(proof, str) and hmac.compare_digest(proof.encode(), _hash(_key(make=False), texts).encode())
    except (OSError, UnicodeEncodeError):  # without a key nothing was sealed
        return False


def _hash(key: bytes, texts: tuple[str, ...]) -> str:
    # as JSON, which shows where one text ends and the next begins
    return hmac.new(key, json.dumps(texts).encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes:
    home = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME")
    path = Path(home or os.path.expanduser("~/.local/state"), "alpro_hf", "key")
    if not path.is_absolute():
        raise OSError(f"There is no home folder for the key {path}. Set XDG_STATE_HOME to a folder of your own.")
    if make and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_hex(_KEY_BYTES).encode())
        try:
            os.link(partial, path)  # fails if another process was faster: then both use its key
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    key = path.read_bytes()
    if len(key) != 2 * _KEY_BYTES:  # with an empty key, everybody could seal
        raise OSError(f"{path} is not a key of {2 * _KEY_BYTES} characters. Delete it; a new one is then made.")
    return key


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


__all__ = [
    "JSON_BYTES",
    "JSON_DEPTH",
    "JSON_DIGITS",
    "is_sealed",
    "open_regular",
    "parse_json",
    "printable",
    "read_json",
    "seal",
]
