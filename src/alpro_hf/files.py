"""Files and paths: complete writes, paths that stay inside a folder, fingerprints of models."""

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PARTIAL = ".partial"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers, and a crash at any moment, see the complete new content or the old one.

    A link at `path` is replaced; the file behind it stays as it is.

    Args:
        path: The file, in a folder that exists. An existing file is replaced.
        write: Writes the content to the path it receives, an empty file `.*.partial` in the same folder. If it raises,
            `path` stays as it was.

    Raises:
        OSError: The file cannot be written.
    """
    # In the same folder, because a rename is atomic only within one file system. The folder may come from a stranger,
    # with links that wait for the names we write to: nobody can guess this one, and O_EXCL follows no link.
    partial = path.with_name(f".{secrets.token_hex(8)}{_PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)  # Windows has no O_NOFOLLOW
    os.close(os.open(partial, flags, 0o666))
    try:
        write(partial)
        # Without this flush a power cut could leave the new name with empty content: many file systems write names
        # before content. The file is opened again, since `write` has closed it; r+ because Windows flushes only
        # writable files.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # including KeyboardInterrupt: its name is new each time, so nothing would overwrite it
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename is on the disk once its folder is; Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partial(folder: Path) -> None:
    """Remove what `write_whole` has left in a folder because the process was killed; nobody else may write there."""
    for path in folder.glob(f".*{_PARTIAL}"):
        if is_link(path) or path.is_file():
            path.unlink(missing_ok=True)


def is_link(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a link, or on Windows a junction, to another file or folder, or to nothing."""
    return os.path.islink(path) or getattr(os.path, "isjunction", os.path.islink)(path)


def remove_links(folder: str | os.PathLike[str]) -> None:
    """Remove links to files from a folder before a library writes there, which would write to the files behind them.

    Links to folders stay, and so does everything that is no link.
    """
    for path in Path(folder).glob("*"):
        if is_link(path) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a text as UTF-8 with `write_whole`."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def append_line(path: str | os.PathLike[str], line: bytes) -> None:
    """Append a line in one write, so that lines of several processes do not mix.

    Raises:
        OSError: The file cannot be written; also if the path is a link, where the system can tell.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        os.write(handle, line + b"\n")
    finally:
        os.close(handle)


def model_fingerprint(model: "torch.nn.Module") -> str:
    """A hash over the name, dtype, shape and values of every weight.

    Returns:
        32 hexadecimal digits, equal for equal models wherever they were loaded from.
    """
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        # a layer with 8-bit weights has its weight and its bias, or None, in one entry, and their type in another
        for tensor in value if isinstance(value, tuple) else (value,):
            if not isinstance(tensor, torch.Tensor):
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for part in _stored(tensor):
                # as bytes, because numpy has no bfloat16
                digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stored(tensor: "torch.Tensor") -> "list[torch.Tensor]":
    """The tensors that hold the values of a tensor: itself, or the integers and scales of a quantised one."""
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _stored(getattr(tensor, name))]


def inside(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a folder after all links are followed; False for what cannot be the name of a file."""
    # `..` and links are resolved before the comparison: either could lead out of the folder
    return is_name(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def belongs_to(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether what a path leads to is part of a folder: `inside` it, or its file in the cache of the Hub's client.

    That cache keeps contents in `blobs` and makes links to them in `snapshots/COMMIT`.
    """
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    return inside(path, folder) or (root.parent.name == "snapshots" and target.parent == root.parents[1] / "blobs")


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether a path can name a file: it has no zero byte, and the file system can encode it."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
