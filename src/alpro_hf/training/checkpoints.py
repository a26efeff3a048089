"""Find the checkpoint from which an interrupted training can resume.

The library writes a checkpoint file by file into its final folder, and resumes from the checkpoint with the highest
number. A process that is killed while writing leaves the folder with the highest number incomplete.
"""

import logging
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import inside, is_link, remove_links
from ..untrusted_json import read_json

logger = logging.getLogger(__name__)

_LARGEST_STATE = 1 << 28  # bytes; a log of a million steps fits
_STATE = "trainer_state.json"  # the library writes it last, so it marks a checkpoint as complete


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the newest complete `checkpoint-N` in the output folder of a training, or None.

    A warning names each newer checkpoint that is incomplete, and the reason.
    """
    # by number: names sort "checkpoint-1000" before "checkpoint-900", and copies lose their times
    named = [path for path in Path(folder).glob("checkpoint-*") if _step(path) is not None]
    found = [path for path in named if path.is_dir() or path.is_symlink()]  # a link that leads nowhere is named, too
    for checkpoint in sorted(found, key=lambda path: _step(path) or 0, reverse=True):
        problem = checkpoint_problem(checkpoint)
        if problem is None:
            return str(checkpoint)
        logger.warning("Skipped %s, which is not complete: %s.", checkpoint, problem)
    return None


def checkpoint_problem(checkpoint: str | os.PathLike[str]) -> str | None:
    """Return the reason why a training cannot resume exactly from a checkpoint, or None if it can.

    `trainer_state.json` is written last, so its presence means that the other files are there: weights, optimizer,
    scheduler and random numbers. Copying a checkpoint can be interrupted, too, so these are checked as far as it is
    cheap: sizes and tables of contents. Sharded weights and optimizers (FSDP) are folders whose `.metadata` is written
    last.

    Args:
        checkpoint: Path of a `checkpoint-N` folder.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "it is a link that leads to no folder" if checkpoint.is_symlink() else "there is no such folder"
    parts: list[tuple[str, Sequence[str], Callable[[Path], str | None]]] = [
        ("the trainer's state", [_STATE], _state_problem),
        (
            "weights",
            # the third: adapters, whose checkpoints do not repeat the frozen weights. Several are in subfolders
            [
                *("model.safetensors", "model.safetensors.index.json"),
                *("adapter_model.safetensors", "*/adapter_model.safetensors", "pytorch_model_fsdp*"),
            ],
            _weights_problem,
        ),
        ("the optimizer", ["optimizer.pt", "optimizer.bin", "optimizer_*"], _archive_problem),
        ("the scheduler", ["scheduler.pt"], _archive_problem),
        ("random numbers", ["rng_state.pth", "rng_state_*.pth"], _archive_problem),
    ]
    for what, names, problem_of in parts:
        paths = sorted(path for name in names for path in checkpoint.glob(name))
        if not paths:
            return f"it lacks {what} ({' or '.join(names)})"
        for path in paths:
            problem = problem_of(path)
            if problem is not None:
                return f"{path.name} {problem}"
    return None


def processes_of(checkpoint: str | os.PathLike[str]) -> int:
    """Return the number of processes that wrote a checkpoint; 0 if it holds no random numbers."""
    checkpoint = Path(checkpoint)
    # of one process and of several; the first file may be left over from an earlier run
    return len(list(checkpoint.glob("rng_state_*.pth"))) or int((checkpoint / "rng_state.pth").is_file())


@contextmanager
def disk_errors(folder: str) -> Iterator[None]:
    """Turn the error of `torch.save` for a file that cannot be written into an `OSError` that names the folder.

    Raises:
        OSError: A file could not be written.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no class for it, so only the text tells
        if not any(words in str(error) for words in ("iostream error", "PytorchStreamWriter", "unexpected pos")):
            raise
        raise OSError(
            f"A checkpoint in {folder} could not be written ({str(error).splitlines()[0]}). Is there room on the disk?"
        ) from error


def mark_incomplete(checkpoint: str | os.PathLike[str]) -> None:
    """Mark an existing checkpoint as incomplete before a new one of the same name is written over it.

    If it is a link, or has links to files, these are removed: nothing outside of it is changed.
    """
    checkpoint = Path(checkpoint)
    if is_link(checkpoint):
        checkpoint.unlink()
    remove_links(checkpoint)
    (checkpoint / _STATE).unlink(missing_ok=True)


def settle_times(folder: str | os.PathLike[str]) -> None:
    """Set the times of checkpoints that lie in the future to now, in their order.

    The library deletes the oldest checkpoints by these times. After a clock was set back, or with copies from another
    machine, it would take the one that was just written for the oldest. Links stay as they are.
    """
    now = time.time()
    named = [path for path in Path(folder).glob("checkpoint-*") if _step(path) is not None and not is_link(path)]
    ahead = sorted((path for path in named if path.stat().st_mtime > now), key=lambda path: path.stat().st_mtime)
    for place, path in enumerate(ahead):
        moment = now - (len(ahead) - place) / 1000
        os.utime(path, (moment, moment))


def _step(checkpoint: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def read_state(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of `trainer_state.json` of a checkpoint.

    Raises:
        ValueError: The file is not JSON within bounds, or holds no object.
        OSError: The file cannot be read.
    """
    path = Path(checkpoint) / _STATE
    state = read_json(path, max_bytes=_LARGEST_STATE, nan=True)  # the loss of a step may be NaN
    if not isinstance(state, dict):
        raise ValueError("it holds no object")
    return state


def _state_problem(path: Path) -> str | None:
    try:
        state = read_state(path.parent)
    except ValueError as error:
        return f"is not valid JSON ({error})"
    # A state of another step was copied here, or comes from an older run in the same folder.
    step, expected = state.get("global_step"), _step(path.parent)
    if step is None or (expected is not None and step != expected):
        return f"belongs to step {step}"
    return None


def _weights_problem(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return _tensors_problem(path)
    if path.suffix != ".json":
        return _archive_problem(path)
    try:
        index = read_json(path)
    except ValueError as error:
        return f"is not an index of weights ({type(error).__name__}: {error})"
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        return "is not an index of weights (it has no 'weight_map')"
    names = set(map(str, files.values()))
    # the library would open files elsewhere
    outside = [name for name in names if Path(name).name != name or not inside(path.parent / name, path.parent)]
    if outside:
        return f"lists {min(outside)!r:.80}, which is not a file of the same folder"
    for name in sorted(names):
        problem = _tensors_problem(path.parent / name)
        if problem is not None:
            return f"lists {name}, which {problem}"
    return None


def _tensors_problem(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt"):  # checks that the file is as long as its header says
            return None
    except (OSError, SafetensorError) as error:
        return f"cannot be read ({error})"


def _archive_problem(path: Path) -> str | None:
    """Check a file of `torch.save`, an archive whose table of contents is written last, or a folder of shards."""
    if path.is_dir():
        return None if (path / ".metadata").is_file() else "lacks its .metadata"
    try:
        zipfile.ZipFile(path).close()
    except (OSError, zipfile.BadZipFile) as error:
        return f"cannot be read ({error})"
    return None


__all__ = [
    "checkpoint_problem",
    "disk_errors",
    "last_complete_checkpoint",
    "mark_incomplete",
    "processes_of",
    "read_state",
    "settle_times",
]
