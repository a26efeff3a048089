"""The files of a video index: a manifest and shards of tensors, each complete or not there at all."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

MANIFEST = "index.json"
FORMAT = 1
_START_AGAIN = "Delete the folder of the index and index again."


class VideoIndexError(ValueError):
    """A folder is no usable index, or an index is asked for what it does not hold."""


class IndexMismatchError(VideoIndexError):
    """An index and a model do not belong together: their vectors mean different things."""


@dataclass(frozen=True)
class VideoEntry:
    """One indexed video.

    Args:
        path: Relative to the root of the index, with "/".
        size, mtime_ns: Bytes and time of change of the file when it was encoded, by which a change is noticed.
        shard, row: Where its tensors are.
    """

    path: str
    size: int
    mtime_ns: int
    shard: int
    row: int


@dataclass
class Manifest:
    """What an index is, without its tensors.

    Args:
        model: `name` (folder or Hub id) and `fingerprint` of the model that encoded the videos.
        video: How frames are chosen and prepared.
        root: Folder that the paths of the videos are relative to.
        next_shard: Number of the shard to be written next.
        videos: One entry each.
    """

    model: dict[str, str]
    video: dict[str, Any]
    root: Path
    next_shard: int = 0
    videos: list[VideoEntry] = field(default_factory=list)

    def to_json(self, directory: Path) -> dict[str, Any]:
        """As written to `directory`: the root also relative to it, so that both may be moved together."""
        return {
            "format": FORMAT,
            "model": self.model,
            "video": self.video,
            "root": Path(os.path.relpath(self.root, directory)).as_posix(),
            "absolute_root": self.root.as_posix(),
            "next_shard": self.next_shard,
            "videos": [asdict(entry) for entry in self.videos],
        }

    @classmethod
    def read(cls, directory: str | Path) -> "Manifest":
        """Read the manifest of an index.

        The root is the folder at the same place relative to the index, or where none is there (the index was moved
        alone) the folder it was made from.

        Raises:
            VideoIndexError: There is none, or it is damaged or of another version of the format.
        """
        directory = Path(os.path.abspath(directory))
        path = directory / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise VideoIndexError(f"{directory} holds no index: it has no {MANIFEST}.") from error
        except ValueError as error:
            raise VideoIndexError(f"{path} is damaged ({error}). {_START_AGAIN}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else content
            raise VideoIndexError(
                f"{path} has the format {found!r}, but this version of alpro_hf reads format {FORMAT}. "
                "Index again, into a new folder."
            )
        try:
            root = Path(os.path.normpath(directory / content["root"]))
            return cls(
                model={"name": content["model"]["name"], "fingerprint": content["model"]["fingerprint"]},
                video=dict(content["video"]),
                root=root if root.is_dir() else Path(content["absolute_root"]),
                next_shard=int(content["next_shard"]),
                videos=[VideoEntry(**entry) for entry in content["videos"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VideoIndexError(f"{path} is damaged ({error!r}). {_START_AGAIN}") from error


@dataclass
class Shard:
    """The tensors of some videos: `features` (n, P) in memory; `tokens` (n, 1 + N, D) in memory or in `file`."""

    features: torch.Tensor
    tokens: torch.Tensor | None = None
    file: Path | None = None

    def tokens_of(self, row: int) -> torch.Tensor:
        """(1, 1 + N, D), the tokens of one video; of a file nothing else is read."""
        if self.tokens is not None:
            return self.tokens[row : row + 1]
        assert self.file is not None
        with _reading(self.file) as file:
            return file.get_slice("tokens")[row : row + 1]

    @classmethod
    def read(cls, file: Path) -> "Shard":
        with _reading(file) as tensors:
            return cls(tensors.get_tensor("features"), file=file)


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise VideoIndexError(f"{file} is missing or damaged ({error}). {_START_AGAIN}") from error


class IndexFolder:
    """A folder that an index is written to."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(directory))

    def shard_file(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing; a process that dies gives the lock back.

        Raises:
            VideoIndexError: Another process is writing to the index.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise VideoIndexError(f"Another process is writing to the index {self.path}; wait for it.") from error

    def stamp(self) -> tuple[int, ...] | None:
        """Something that changes whenever the manifest is written; None without one."""
        try:
            stat = (self.path / MANIFEST).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def write_shard(self, shard: int, features: torch.Tensor, tokens: torch.Tensor) -> Shard:
        file = self.shard_file(shard)
        _write_whole(file, lambda path: save_file({"features": features, "tokens": tokens}, path))
        return Shard(features, file=file)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, then drop the shards that it does not need (or that a dead process left behind)."""
        text = json.dumps(manifest.to_json(self.path), indent=1) + "\n"
        _write_whole(self.path / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
        needed = {self.shard_file(entry.shard) for entry in manifest.videos}
        for file in [*self.path.glob("shard-*.safetensors"), *self.path.glob(".*.partial")]:
            if file not in needed:
                file.unlink()


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
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


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of every weight, its name, type and shape: equal for equal models, wherever they were loaded from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
