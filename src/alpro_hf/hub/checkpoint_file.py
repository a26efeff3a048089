"""Read a checkpoint file as data: `.pt`, `.pth` and `.bin` without running code from them, and safetensors.

Pickles are read in a process of their own, see `checkpoint_reader`, because a file can be made that crashes the
interpreter or never comes to an end. What comes back are names, shapes and raw bytes.
"""

import math
import os
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..data.decode_server import ConnectionLostError, receive_message
from ..model.unimodal_alpro import CheckpointError
from . import checkpoint_reader
from .checkpoint_reader import DATA_TYPES, RefusedError, check_tensors, some_names
from .download import is_web_page

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")  # in the order of preference, where a repository has several
START_DEADLINE = 120.0  # seconds that the process may take to start
READ_DEADLINE = 120.0  # seconds for reading a file, and one more for each _BYTES_A_SECOND
_BYTES_A_SECOND = 5 << 20
_MEMORY = 4 << 30  # bytes for the process besides three times the size of the file
_MAX_DIRECTORY = 64 << 20  # bytes of the directory of an archive, which is read as a whole
# Runs a script without the working folder in the search path: a `torch.py` there must not be imported.
_START = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "import runpy; runpy.run_path(sys.argv[1], None, '__main__')"
)


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
            to more than its own size, takes too long or too much memory to read, or has tensors that cannot be
            weights: sparse, complex, of an unusual data type, smaller than their shape, infinite or NaN.
    """
    path = Path(path)
    start = _start_of(path)
    if start[:4] == b"PK\x03\x04":  # torch.save writes a zip archive since 1.6, and wrote a pickle before
        _check_archive(path)
    elif start[:1] != b"\x80":
        raise CheckpointError(f"{path} is not a file written by torch.save (it starts with {start[:4]!r}).")
    return _read_in_process(path)


def load_checkpoint(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Read the files of a checkpoint: one, or the parts of a sharded one.

    Args:
        files: Safetensors files, or files that `load_original_checkpoint` reads. Their content tells which.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        CheckpointError: As in `load_original_checkpoint`, also for safetensors files; or two parts have a tensor of
            the same name.
    """
    state: dict[str, torch.Tensor] = {}
    for path in files:
        # safetensors: the length of the header in 8 bytes, then JSON
        if _start_of(path)[8:9] == b"{" or path.suffix == ".safetensors":
            try:
                part = load_file(path)
                check_tensors(path, part)
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path} is damaged or incomplete ({error}): copy or download it again."
                ) from error
            except RefusedError as error:
                raise CheckpointError(str(error)) from error
        else:
            part = load_original_checkpoint(path)
        if twice := sorted(state.keys() & part.keys()):
            raise CheckpointError(f"{path} repeats tensors of another part: {some_names(twice)}.")
        state |= part
    return state


def _start_of(path: Path) -> bytes:
    """The first bytes of a file, unless they are of what often lies in the place of weights."""
    with path.open("rb") as file:
        start = file.read(64)
    if is_web_page(start):
        raise CheckpointError(f"{path} is a web page and not a file of weights: download the file itself.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS and not the file itself: fetch it with git lfs pull, or name the Hub id."
        )
    return start


def _read_in_process(path: Path) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    deadline = READ_DEADLINE + size / _BYTES_A_SECOND
    bounds = (str(_MEMORY + 3 * size), str(math.ceil(START_DEADLINE + deadline)))
    command = [sys.executable, "-c", _START, checkpoint_reader.__file__, os.path.abspath(path), *bounds]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C reaches only us, who then end the process
    ) as process:
        assert process.stdout is not None
        expired = threading.Event()
        timer = _timer(process, START_DEADLINE, expired)
        problem = "the process that reads it did not start"
        try:
            receive_message(process.stdout)
            timer.cancel()
            timer = _timer(process, deadline, expired)
            problem = "reading it ended the process that reads it, as files do that were made to crash"
            answer = receive_message(process.stdout)
            if "error" in answer:
                raise CheckpointError(str(answer["error"]).replace(os.path.abspath(path), str(path)))
            return _receive_tensors(path, answer["tensors"], process.stdout, 2 * size + (1 << 20))
        except ConnectionLostError:
            if expired.is_set():
                problem = f"reading it took longer than {deadline:.0f} seconds"
            raise CheckpointError(f"{path} was refused: {problem}.") from None
        finally:
            timer.cancel()
            process.kill()


def _timer(process: "subprocess.Popen[bytes]", seconds: float, expired: threading.Event) -> threading.Timer:
    """Kill a process after some seconds, and note that."""

    def end() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _receive_tensors(path: Path, described: list, stream: IO[bytes], limit: int) -> dict[str, torch.Tensor]:
    # tied tensors arrive once for each name, so up to twice the size of the file is normal
    total = sum(math.prod(shape) * DATA_TYPES[dtype].itemsize for _, dtype, shape in described)
    if total > limit:
        raise CheckpointError(
            f"{path} was refused: many of its tensors share one memory, and take {total:,} bytes apart."
        )
    state = {}
    for name, dtype, shape in described:
        tensor = torch.empty(shape, dtype=DATA_TYPES[dtype])
        memory = tensor.reshape(-1).view(torch.uint8).numpy().data
        if memory.nbytes and stream.readinto(memory) < memory.nbytes:  # type: ignore[attr-defined]
            raise ConnectionLostError
        state[name] = tensor
    return state


def check_directory(path: Path) -> None:
    """Refuse a zip archive with a directory that would fill the memory: zipfile reads it as a whole.

    Raises:
        CheckpointError: The directory is larger than 64 MiB.
    """
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 1 << 17), os.SEEK_END)
        end = file.read()
    size, place = 0, end.rfind(b"PK\x05\x06")  # the record at the end, and its successor for large archives
    if 0 <= place <= len(end) - 16:
        size = struct.unpack_from("<I", end, place + 12)[0]
    place = end.rfind(b"PK\x06\x06")
    if size == 0xFFFFFFFF and 0 <= place <= len(end) - 48:
        size = struct.unpack_from("<Q", end, place + 40)[0]
    if size > _MAX_DIRECTORY:
        raise CheckpointError(f"{path} was refused: the directory of this archive has {size:,} bytes.")


def _check_archive(path: Path) -> None:
    """Refuse archives that torch.save does not write, before they are unpacked: a small one could fill the memory."""
    check_directory(path)
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
    if odd := [member.filename for member in members if leads_out(member.filename)]:
        raise CheckpointError(
            f"{path} was refused: the names of these members lead out of the archive: {some_names(odd)}."
        )


def leads_out(name: str) -> bool:
    """Whether the name of a member of an archive is a path to somewhere else."""
    return "\\" in name or name[:1] == "/" or ".." in name.split("/") or name[1:2] == ":"


__all__ = [
    "WEIGHTS",
    "check_directory",
    "leads_out",
    "load_checkpoint",
    "load_original_checkpoint",
    "some_names",
]
