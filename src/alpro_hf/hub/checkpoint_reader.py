"""The process that unpickles checkpoints, and what it refuses. A hostile file can crash or stall it, and nothing else.

`checkpoint_file` runs this file as a script, by its path, so it imports torch but nothing of the package: importing
that takes longer than reading most checkpoints. The script writes to standard output: a message as a length (8 bytes,
big-endian) and that many bytes of JSON, then raw bytes.

1. `{"ready": true}`
2. `{"error": MESSAGE}`, or `{"tensors": [[NAME, DATA TYPE, SHAPE], ...]}` and the bytes of all tensors in this order
"""

import json
import os
import pickle
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch

# data types of weights, and of the buffers that are saved with them, by their names in torch
DATA_TYPES = {
    name: getattr(torch, name)
    for name in (
        *("float32", "float16", "bfloat16", "float64"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}


class RefusedError(Exception):
    """The file cannot be used as a checkpoint; the message says why, and names the file."""


def read_state(path: str) -> dict[str, torch.Tensor]:
    """Unpickle a state dict with `weights_only=True`.

    Raises:
        RefusedError: The file is damaged, runs code, or holds something else than weights.
    """
    try:
        content: Any = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch gives the reason only as text
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        reason = f"an object of type {blocked[1]}" if blocked else f"more than pure data ({detail and detail[1]})"
        raise RefusedError(
            f"{path} was refused: it holds {reason}, and reading that could run code from the file. If you trust it, "
            "load it yourself and save only the state dict: torch.save(model.state_dict(), file)."
        ) from error
    except RecursionError as error:
        raise RefusedError(f"{path} was refused: it nests its content far deeper than weights do.") from error
    # types that torch's reader raises for damaged files
    except (
        *(RuntimeError, EOFError, LookupError, UnicodeDecodeError, MemoryError, ValueError),
        *(TypeError, AttributeError, AssertionError, OverflowError),
    ) as error:
        raise RefusedError(f"{path} is damaged or incomplete ({type(error).__name__}: {error}).") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise RefusedError(f"{path} holds a {type(content).__name__}, not a state dict.")
    others = sorted(str(key) for key, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise RefusedError(f"{path} is not a state dict: these entries are not tensors: {some_names(others)}.")
    check_tensors(path, content)
    return content


def check_tensors(path: object, content: dict[str, torch.Tensor]) -> None:
    """Refuse entries that cannot be weights.

    Raises:
        RefusedError: A name is not a text, or a tensor is sparse, complex, quantized, of a data type that is not in
            `DATA_TYPES`, smaller than its shape, infinite or NaN.
    """
    problems = [f"{name!r} {problem}" for name, tensor in content.items() if (problem := _problem_of(name, tensor))]
    if problems:
        raise RefusedError(f"{path} was refused: these entries cannot be weights: {some_names(problems)}.")


def _problem_of(name: object, tensor: torch.Tensor) -> str | None:
    """The reason why an entry of a state dict cannot be a weight; None if it can."""
    if not isinstance(name, str):
        return "is not a name"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return f"is not a plain tensor ({type(tensor).__name__}, {tensor.layout}, {tensor.dtype})"
    if tensor.device.type != "cpu" or tensor.is_complex():
        return f"has no real values ({tensor.dtype} on {tensor.device.type})"
    if tensor.dtype not in DATA_TYPES.values():
        return f"has the data type {tensor.dtype}, which is not one of {', '.join(DATA_TYPES)}"
    # such as a tensor expanded from one element, which would need far more memory once it is copied
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = " x ".join(map(str, tensor.shape))
        return f"says it has the shape {shape} but holds {tensor.untyped_storage().nbytes():,} bytes"
    if not tensor.isfinite().all():
        return "has values that are infinite or NaN"
    return None


def some_names(names: Sequence[str]) -> str:
    """The first ten names, fit for a terminal: they come from a file, and could be of any length and character."""
    short = [name if len(name) <= 120 else f"{name[:120]}..." for name in names[:10]]
    shown = ", ".join(name if name.isprintable() else repr(name) for name in short)
    return shown if len(names) <= 10 else f"{shown}, and {len(names) - 10} more"


def serve(path: str, max_memory: int, deadline: int) -> None:
    """Read one file and write it to standard output, within bytes of memory and seconds."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whatever prints must not disturb the messages

    def send(message: dict[str, Any]) -> None:
        text = json.dumps(message).encode()
        answers.write(len(text).to_bytes(8, "big") + text)
        answers.flush()

    _limit(max_memory, deadline)
    send({"ready": True})
    try:
        state = read_state(path)
    except RefusedError as error:
        return send({"error": str(error)})
    send({"tensors": [[name, str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in state.items()]})
    for tensor in state.values():
        answers.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    answers.flush()


def _limit(max_memory: int, deadline: int) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(deadline)  # in case the caller is gone
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash on a hostile file leaves no core dump behind
    resource.setrlimit(resource.RLIMIT_DATA, (max_memory, max_memory))


if __name__ == "__main__":
    serve(sys.argv[-3], int(sys.argv[-2]), int(sys.argv[-1]))


__all__ = ["DATA_TYPES", "RefusedError", "check_tensors", "read_state", "serve", "some_names"]
