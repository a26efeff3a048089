"""The files of a video index: a manifest and shards of tensors, each complete or not there at all.

Shards are safetensors and not Arrow: `features` and `tokens` are read in place from the memory-mapped file, in the
model's own type (Arrow has no bfloat16), and one row of `tokens` costs one row of reading. What the videos of a shard
are stands in the header of its file; the manifest has a line a shard, so that appending to a large index is cheap.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import inside, write_whole

MANIFEST = "index.json"
FAILED = "failed.jsonl"  # what could not be indexed the last time, and why
FORMAT = 2
BLOCK = 1 << 14  # videos compared at a time: small shards are put together up to as many
KEPT_BYTES = 1 << 28  # of blocks that were put together; above, they are put together anew in each search
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
    """

    path: str
    size: int
    mtime_ns: int


@dataclass
class IndexingReport:
    """What became of the videos given to `VideoIndex.add`; `failed` holds (path, reason)."""

    indexed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(eq=False)
class Shard:
    """The tensors of some videos, in memory or in a file.

    Args:
        rows: Videos in it, also those that are `removed`.
        removed: Rows that are no longer part of the index.
        file: Where it is; None: in memory.
        features: (rows, P); of a file it is a view into the memory map, which the system may drop.
        tokens: (rows, 1 + N, D), None if they are in the file.
        videos: What the rows are, None if that is in the file.
        tables: Of each row a `FrameTable` as bytes, none where it is not known; None if they are in the file.
    """

    rows: int
    removed: set[int] = field(default_factory=set)
    file: Path | None = None
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: torch.Tensor | None = None
    videos: list[VideoEntry] | None = None
    tables: list[bytes] | None = None

    @classmethod
    def read(cls, file: Path, rows: int, removed: set[int]) -> "Shard":
        with _reading(file) as tensors:
            features = tensors.get_tensor("features")
        if len(features) != rows:
            raise VideoIndexError(f"{file} is damaged (it has {len(features)} videos, not {rows}). {_START_AGAIN}")
        return cls(rows, removed, file, features)

    def entries(self) -> list[VideoEntry]:
        """What the rows are; of files the last ones read are kept."""
        if self.videos is not None:
            return self.videos
        assert self.file is not None
        found = _entries_in(self.file, self.file.stat().st_mtime_ns)
        if len(found) != self.rows:
            raise VideoIndexError(f"{self.file} is damaged (it names {len(found)} of {self.rows}). {_START_AGAIN}")
        return found

    def tokens_of(self, row: int) -> torch.Tensor:
        """(1, 1 + N, D), the tokens of one video; of a file nothing else is read."""
        if self.tokens is not None:
            return self.tokens[row : row + 1]
        assert self.file is not None
        with _reading(self.file) as file:
            return file.get_slice("tokens")[row : row + 1]

    def table_of(self, row: int) -> bytes:
        """Where the frames of one video are, see `FrameTable.from_bytes`; nothing if that is not known."""
        if self.tables is not None:
            return self.tables[row]
        assert self.file is not None
        with _reading(self.file) as file:
            if "table_ends" not in file.keys():  # of an index made before tables were kept  # noqa: SIM118
                return b""
            ends, kept = file.get_tensor("table_ends"), file.get_slice("tables")
            start, end = int(ends[row - 1]) if row else 0, int(ends[row])
            return bytes(kept[start:end].numpy())

    def live(self) -> list[int]:
        """Rows that are part of the index."""
        return [row for row in range(self.rows) if row not in self.removed]

    def live_row(self, place: int) -> int:
        """`live()[place]`, without a list of them all."""
        for gone in sorted(self.removed):
            if gone > place:
                break
            place += 1
        return place

    def __len__(self) -> int:
        return self.rows - len(self.removed)


@dataclass
class Block:
    """Videos that are compared in one product: those of one large shard, or of small ones put together."""

    shards: list[Shard]
    keep: bool
    kept: torch.Tensor | None = None

    def features(self) -> torch.Tensor:
        """(n, P): of one whole shard the memory-mapped file itself."""
        if self.kept is not None:
            return self.kept
        parts = [shard.features[shard.live()] if shard.removed else shard.features for shard in self.shards]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.keep:
            self.kept = joined
        return joined


def blocks_of(shards: Sequence[Shard]) -> list[Block]:
    """The shards in blocks to compare with queries, in their order."""
    blocks: list[Block] = []
    bytes_kept = 0
    group: list[Shard] = []
    for number, shard in enumerate(shards, start=1):
        group.append(shard)
        if (size := sum(map(len, group))) >= BLOCK or number == len(shards):
            copied = len(group) > 1 or bool(group[0].removed)
            bytes_kept += size * shard.features.shape[1] * shard.features.element_size() if copied else 0
            blocks.append(Block(group, keep=bytes_kept <= KEPT_BYTES))
            group = []
    return blocks


@lru_cache(maxsize=32)
def _entries_in(file: Path, mtime_ns: int) -> list[VideoEntry]:
    with _reading(file) as tensors:
        listed = (tensors.metadata() or {}).get("videos", "")
    try:
        found = [VideoEntry(*values) for values in json.loads(listed)]
        for entry in found:
            if not isinstance(entry.path, str) or not type(entry.size) is type(entry.mtime_ns) is int:
                raise ValueError(f"{entry} is no video")
        return found
    except (TypeError, ValueError) as error:
        raise VideoIndexError(f"{file} is damaged (it does not say what is in it). {_START_AGAIN}") from error


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise VideoIndexError(f"{file} is missing or damaged ({error}). {_START_AGAIN}") from error


@dataclass
class Manifest:
    """What an index is, without its tensors.

    Args:
        model: `name` (folder or Hub id), `dtype` and `fingerprint` of the model that encoded the videos.
        video: How frames are chosen and prepared.
        root: Folder that the paths of the videos are relative to.
        next_shard: Number of the shard to be written next.
        shards: In the order of indexing.
    """

    model: dict[str, str]
    video: dict[str, Any]
    root: Path
    next_shard: int = 0
    shards: list[Shard] = field(default_factory=list)

    @cached_property
    def videos(self) -> list[VideoEntry]:
        """All videos of the index, read from the shards."""
        return [shard.entries()[row] for shard in self.shards for row in shard.live()]

    def to_json(self, directory: Path) -> dict[str, Any]:
        """As written to `directory`: the root also relative to it, so that both may be moved together."""
        return {
            "format": FORMAT,
            "model": self.model,
            "video": self.video,
            "root": Path(os.path.relpath(self.root, directory)).as_posix(),
            "absolute_root": self.root.as_posix(),
            "next_shard": self.next_shard,
            "shards": [
                {
                    "file": Path(os.path.relpath(shard.file, directory)).as_posix(),
                    "rows": shard.rows,
                    "removed": sorted(shard.removed),
                }
                for shard in self.shards
                if shard.file is not None
            ],
        }

    @classmethod
    def read(cls, directory: str | Path) -> "Manifest":
        """Read the manifest of an index and open its shards.

        The root is the folder at the same place relative to the index, or where none is there (the index was moved
        alone) the folder it was made from.

        Raises:
            VideoIndexError: There is none, or it or a shard is damaged, or it is of another version of the format, or
                it names a shard outside of its folder.
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
            model = {key: content["model"][key] for key in ("name", "dtype", "fingerprint")}
            video, next_shard = dict(content["video"]), int(content["next_shard"])
            shards = [(directory / one["file"], int(one["rows"]), set(one["removed"])) for one in content["shards"]]
            root = root if root.is_dir() else Path(content["absolute_root"])
            strangers = [str(file) for file, *_ in shards if not inside(file, directory)]
            if strangers:
                raise ValueError(f"the shard {strangers[0]} is outside of the folder of the index")
        except (KeyError, TypeError, ValueError) as error:
            raise VideoIndexError(f"{path} is damaged ({error!r}). {_START_AGAIN}") from error
        return cls(model, video, root, next_shard, [Shard.read(*shard) for shard in shards])


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

    def dissolve(self) -> None:
        """Be no index any more, but a folder of shards that another index has adopted."""
        for file in (self.path / MANIFEST, self.path / ".lock"):
            file.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def stamp(self) -> tuple[int, ...] | None:
        """Something that changes whenever the manifest is written; None without one."""
        try:
            stat = (self.path / MANIFEST).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def write_shard(
        self,
        shard: int,
        features: torch.Tensor,
        tokens: torch.Tensor,
        videos: list[VideoEntry],
        tables: list[bytes],
    ) -> Shard:
        file, ends = self.shard_file(shard), np.cumsum([len(table) for table in tables])
        tensors = {
            "features": features,
            "tokens": tokens,
            "tables": torch.from_numpy(np.frombuffer(b"".join(tables), np.uint8).copy()),
            "table_ends": torch.from_numpy(ends),
        }
        listed = json.dumps([[video.path, video.size, video.mtime_ns] for video in videos])
        write_whole(file, lambda path: save_file(tensors, path, metadata={"videos": listed}))
        return Shard.read(file, len(videos), set())

    def write_failed(self, failed: Iterable[tuple[Path, str]]) -> None:
        """List files and reasons, one JSON object a line; no file if there are none."""
        lines = [json.dumps({"path": str(path), "reason": reason}) + "\n" for path, reason in failed]
        if lines:
            write_whole(self.path / FAILED, lambda path: path.write_text("".join(lines), encoding="utf-8"))
        else:
            (self.path / FAILED).unlink(missing_ok=True)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, then drop the shards that it does not need (or that a dead process left behind)."""
        text = json.dumps(manifest.to_json(self.path), indent=1) + "\n"
        write_whole(self.path / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
        needed = {shard.file for shard in manifest.shards}
        # a part that still has a manifest of its own is being built, see index_processes
        parts = [part for part in self.path.glob("part-*") if not (part / MANIFEST).exists()]
        for folder in (self.path, *parts):
            for file in [*folder.glob("shard-*.safetensors"), *folder.glob(".*.partial")]:
                if file not in needed:
                    file.unlink()
