"""Files and paths: writes that appear whole or not at all, paths that stay inside a folder, fingerprints."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make a file appear complete under its name: written under another one, flushed to the disk, renamed."""
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":  # a folder is flushed where folders are files
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def model_fingerprint(model: "torch.nn.Module") -> str:
    """A hash of every weight, its name, type and shape: equal for equal models, wherever they were loaded from."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def inside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether a path lies below a folder once all links are followed; not so for what no file can be called."""
    return is_name(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file can be called so: no zero byte, and only what the system has letters for."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
