"""Read a checkpoint out of a zip archive of several files, without unpacking the archive.

Only the bytes of the chosen member are read. They go to a temporary file whose name the archive does not choose.
"""

import lzma
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..model.unimodal_alpro import CheckpointError
from .checkpoint_file import WEIGHTS, check_directory, leads_out, some_names

MAX_MEMBER = 32 * 1024**3  # bytes of an unpacked member
MAX_RATIO = 20  # unpacked to packed bytes; weights barely shrink
_BLOCK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive of files, and not one checkpoint, which torch.save also writes as a zip."""
    with path.open("rb") as file:
        if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
            return False
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False  # reported when it is read as a checkpoint
    return not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names)


@contextmanager
def member_of(path: Path, member: str | None, source: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Copy one checkpoint of an archive to a temporary file.

    Args:
        path: The archive.
        member: Name of the checkpoint in the archive. None: the only one there is.
        source: Name of the archive in errors.
        folder: Existing folder for the temporary file.

    Yields:
        The name in the archive, and the path of the copy, which is removed at the end.

    Raises:
        CheckpointError: The archive holds no or several checkpoints, or is not to be trusted: names that are paths out
            of it, links, encryption, members that unpack to far more than their size, archives in the archive.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="member.") as work:
        try:
            name, copy = _copy(path, member, source, Path(work))
        # what zipfile and its decompressors raise for damaged members, and for compression that they do not know
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
            raise CheckpointError(f"{source} is damaged or incomplete: {error}.") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise CheckpointError(f"{source} is damaged or incomplete: {error}.") from error  # of bz2
        yield name, copy


def _copy(path: Path, member: str | None, source: str, folder: Path) -> tuple[str, Path]:
    with zipfile.ZipFile(path) as archive:
        entry = _choose(archive.infolist(), member, source)
        copy = folder / re.sub(r"[^\w.-]", "_", entry.filename.rpartition("/")[2])[-100:]
        with archive.open(entry) as packed, copy.open("wb") as file:
            shutil.copyfileobj(packed, file, _BLOCK)
    if is_archive(copy):
        raise CheckpointError(
            f"{source}: {some_names([entry.filename])} is an archive itself, and archives inside an archive are not "
            "read: unpack it, and name the checkpoint."
        )
    return entry.filename, copy


def _choose(entries: Sequence[zipfile.ZipInfo], member: str | None, source: str) -> zipfile.ZipInfo:
    names = [entry.filename for entry in entries]
    if odd := [name for name in names if leads_out(name)]:
        raise CheckpointError(
            f"{source} was refused: the names of these members lead out of the archive: {some_names(odd)}."
        )
    found = [entry for entry in entries if entry.filename == member] if member else _checkpoints(entries)
    if len(found) != 1:
        listed = some_names([f"{entry.filename} ({entry.file_size:,} bytes)" for entry in _checkpoints(entries)])
        if len(found) > 1 and member:
            raise CheckpointError(f"{source} was refused: it holds {len(found)} members called {member}.")
        if not listed:
            raise CheckpointError(f"{source} holds no weights: no member ends in {', '.join(WEIGHTS)}.")
        problem = f"holds no {member}" if member else "holds several checkpoints"
        raise CheckpointError(f"{source} {problem}: choose one of these with --member: {listed}.")
    entry = found[0]
    name = some_names([entry.filename])
    if entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16):
        raise CheckpointError(f"{source} was refused: its member {name} is a folder or a link, not a file.")
    if entry.flag_bits & 1:
        raise CheckpointError(f"{source}: {name} is encrypted, so it cannot be read: unpack it with its password.")
    if entry.file_size > min(MAX_MEMBER, MAX_RATIO * max(entry.compress_size, 1)):
        raise CheckpointError(
            f"{source} was refused: its member {name} has {entry.compress_size:,} bytes that unpack to "
            f"{entry.file_size:,}, which weights do not."
        )
    return entry


def _checkpoints(entries: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The members that look like checkpoints; the shadow files of macOS have the same endings."""
    return [
        entry for entry in entries if entry.filename.endswith(WEIGHTS) and not entry.filename.startswith("__MACOSX/")
    ]


__all__ = ["is_archive", "member_of"]
