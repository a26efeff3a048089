"""Read a checkpoint file as data: `.pt`, `.pth` and `.bin` without running code from them, and safetensors."""

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..model.unimodal_alpro import CheckpointError


def load_original_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a `.pt` file of the original code as data, without running code from it.

    Args:
        path: A file written by `torch.save`: a state dict, or a dictionary with a state dict under `model` or
            `state_dict`.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is not a checkpoint, is damaged, contains objects that run code when read, unpacks
            to more than its own size, or has tensors that cannot be weights: sparse, complex, smaller than their
            shape, infinite or NaN.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":  # torch.save writes a zip archive since 1.6, and wrote a pickle before
        _check_archive(path)
    elif start[:1] != b"\x80":
        raise CheckpointError(f"{path} is not a file written by torch.save (it starts with {start!r}).")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch gives the reason only as text
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        reason = f"an object of type {blocked[1]}" if blocked else f"more than pure data ({detail and detail[1]})"
        raise CheckpointError(
            f"{path} was refused: it holds {reason}, and reading that could run code from the file. If you trust it, "
            "load it yourself and save only the state dict: torch.save(model.state_dict(), file)."
        ) from error
    # types that torch's reader raises for damaged files
    except (RuntimeError, EOFError, LookupError, UnicodeDecodeError, MemoryError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({type(error).__name__}: {error}).") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    others = sorted(str(key) for key, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise CheckpointError(f"{path} is not a state dict: these entries are not tensors: {some_names(others)}.")
    _check_tensors(path, content)
    return content


def load_checkpoint(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Read the files of a checkpoint: one, or the parts of a sharded one.

    Args:
        files: Safetensors files, or files that `load_original_checkpoint` reads.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        SafetensorError: A safetensors file is damaged.
        CheckpointError: As in `load_original_checkpoint`, or two parts have a tensor of the same name.
    """
    state: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            part = load_file(path)
            _check_tensors(path, part)
        else:
            part = load_original_checkpoint(path)
        if twice := sorted(state.keys() & part.keys()):
            raise CheckpointError(f"{path} repeats tensors of another part: {some_names(twice)}.")
        state |= part
    return state


def _check_tensors(path: Path, content: dict[str, torch.Tensor]) -> None:
    problems = [f"{name!r} {problem}" for name, tensor in content.items() if (problem := _problem_of(name, tensor))]
    if problems:
        raise CheckpointError(f"{path} was refused: these entries cannot be weights: {some_names(problems)}.")


def _check_archive(path: Path) -> None:
    """Refuse archives that torch.save does not write, before they are unpacked: a small one could fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}.") from error
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path} was refused: {some_names(packed)} is compressed, but torch.save does not compress."
        )
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size:
        raise CheckpointError(f"{path} was refused: it has {path.stat().st_size:,} bytes that unpack to {unpacked:,}.")
    odd = [
        name for name in (m.filename for m in members) if "\\" in name or name[:1] == "/" or ".." in name.split("/")
    ]
    if odd:
        raise CheckpointError(
            f"{path} was refused: the names of these members lead out of the archive: {some_names(odd)}."
        )


def _problem_of(name: object, tensor: torch.Tensor) -> str | None:
    """The reason why an entry of a state dict cannot be a weight; None if it can."""
    if not isinstance(name, str):
        return "is not a name"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return f"is not a plain tensor ({type(tensor).__name__}, {tensor.layout}, {tensor.dtype})"
    if tensor.device.type != "cpu" or tensor.is_complex():
        return f"has no real values ({tensor.dtype} on {tensor.device.type})"
    # such as a tensor expanded from one element, which would need far more memory once it is copied
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = " x ".join(map(str, tensor.shape))
        return f"says it has the shape {shape} but holds {tensor.untyped_storage().nbytes():,} bytes"
    if not tensor.isfinite().all():
        return "has values that are infinite or NaN"
    return None


def some_names(names: Sequence[str]) -> str:
    """The first ten names, long ones truncated: names come from the file and could be of any length."""
    shown = ", ".join(name if len(name) <= 120 else f"{name[:120]}..." for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, and {len(names) - 10} more"


__all__ = ["load_checkpoint", "load_original_checkpoint", "some_names"]
