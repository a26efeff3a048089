"""Files and paths: complete writes, paths that stay inside a folder, fingerprints of models."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers, and a crash at any moment, see the complete new content or the old one.

    Args:
        path: The file, in a folder that exists. An existing file is replaced.
        write: Writes the content to the path it receives: `.NAME.partial` in the same folder. If it raises, `path`
            stays as it was.

    Raises:
        OSError: The file cannot be written.
    """
    # in the same folder, because a rename is atomic only within one file system
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    # Without this flush a power cut could leave the new name with empty content: many file systems write names before
    # content. The file is opened again, since `write` has closed it; r+ because Windows flushes only writable files.
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":  # the rename is on the disk once its folder is; Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8 with `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def model_fingerprint(model: "torch.nn.Module") -> str:
    """A hash over the name, dtype, shape and values of every weight.

    Returns:
        32 hexadecimal digits, equal for equal models wherever they were loaded from.
    """
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in _stored(tensor):
            # as bytes, because numpy has no bfloat16
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(tensor: "torch.Tensor") -> "list[torch.Tensor]":
    """The tensors that hold the values of a tensor: itself, or the integers and scales of a quantised one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]


def inside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder after all links are followed; False for what cannot be the name of a file."""
    # `..` and links are resolved before the comparison: either could lead out of the folder
    return is_name(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether a path can name a file: it has no zero byte, and the file system can encode it."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
