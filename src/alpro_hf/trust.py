"""What is trusted, and what bounds everything else.

Trusted is the user: arguments, and what carries the `seal` of this user. Nothing else is: a clip, an index, a model
folder, a checkpoint, a table of annotations, a result folder, a recipe, an upload and the answer of a server may come
from a stranger.
`docs/reliability.md` lists where each of them enters, what bounds it, and the test.

The rules are few:

- Code: none is run. Every load passes `trust_remote_code=False` and reads safetensors, or pickles with `weights_only`.
- Sizes: a number in a file is compared with a limit or with the size of the file before memory is allocated for it;
  `untrusted_json` reads JSON within such bounds.
- Places: a path in a file stays in the folder that the user named. A link is replaced, never written through, see
  `files.write_whole`.
- Texts: a name is shown with `printable`, so that it cannot steer a terminal or forge a line.
"""

import hashlib
import hmac
import json
import os
import secrets
import sys
from pathlib import Path

_KEY_BYTES = 32


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


__all__ = [
    "is_sealed",
    "printable",
    "seal",
]
