"""The files of a video index: a manifest and shards of tensors, each written completely or not at all.

Shards are safetensors and not Arrow: `features` and `tokens` are read in place from the memory-mapped file, in the
model's own dtype (Arrow has no bfloat16), and reading one row of `tokens` reads no other. The header of a shard lists
its videos. The manifest has one entry for each shard, so that appending to a large index is cheap.
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

from ..files import inside, write_text_whole, write_whole

MANIFEST = "index.json"
FAILED = "failed.jsonl"  # files that the last indexing could not read, and the reasons
PART = "part-"  # folders of an index that several processes build begin with this
INDEX_FORMAT = 2  # version of manifest and shards
BLOCK = 1 << 14  # videos compared at a time; small shards are joined up to this number
KEPT_BYTES = 1 << 28  # of joined blocks kept in memory; further blocks are joined again in each search
_START_AGAIN = "Delete the folder of the index and index again."


class VideoIndexError(ValueError):
    """A folder holds no usable index, or an index cannot do what was asked."""


class IndexMismatchError(VideoIndexError):
    """An index and a model do not belong together: their vectors cannot be compared."""


@dataclass(frozen=True)
class VideoEntry:
    """One indexed video.

    Args:
        path: Relative to the root of the index, with "/".
        size, mtime_ns: Bytes and modification time of the file when it was encoded. They tell a changed file.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass
class IndexingReport:
    """Result of `VideoIndex.add` for each video.

    Args:
        indexed: Files that were encoded.
        unchanged: Files that the index already held.
        failed: Files that could not be indexed, with the reasons.
    """

    indexed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(eq=False)
class Shard:
    """The tensors of some videos, in memory or in a file.

    Args:
        rows: Number of videos, including those that are `removed`.
        removed: Rows that are no longer part of the index.
        file: The file; None: the shard is in memory.
        features: (rows, P). If there is a file, a view into its memory map, whose pages the system may drop.
        tokens: (rows, 1 + N, D); None: they are in the file.
        videos: One entry for each row; None: they are in the file.
        tables: A `FrameTable` as bytes for each row, empty where it is unknown; None: they are in the file.
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
        """Open the file of a shard.

        Raises:
            VideoIndexError: The file is missing or damaged, or has another number of videos.
        """
        with _reading(file) as tensors:
            features = tensors.get_tensor("features")
        if len(features) != rows:
            raise VideoIndexError(f"{file} is damaged (it has {len(features)} videos, not {rows}). {_START_AGAIN}")
        # the file is closed, but its memory map lives as long as `features`
        return cls(rows, removed, file, features)

    def entries(self) -> list[VideoEntry]:
        """One entry for each row. Those of a few files read last stay in memory."""
        if self.videos is not None:
            return self.videos
        assert self.file is not None
        found = _entries_in(self.file, self.file.stat().st_mtime_ns)
        if len(found) != self.rows:
            raise VideoIndexError(f"{self.file} is damaged (it names {len(found)} of {self.rows}). {_START_AGAIN}")
        return found

    def tokens_of(self, row: int) -> torch.Tensor:
        """(1, 1 + N, D), the tokens of one video. Nothing else is read from the file."""
        if self.tokens is not None:
            return self.tokens[row : row + 1]
        assert self.file is not None
        with _reading(self.file) as file:
            return file.get_slice("tokens")[row : row + 1]

    def table_of(self, row: int) -> bytes:
        """Frame table of one video, see `FrameTable.from_bytes`; empty if it is not known."""
        if self.tables is not None:
            return self.tables[row]
        assert self.file is not None
        with _reading(self.file) as file:
            if "table_ends" not in file.keys():  # an index made before tables were kept  # noqa: SIM118
                return b""
            ends, kept = file.get_tensor("table_ends"), file.get_slice("tables")
            start, end = int(ends[row - 1]) if row else 0, int(ends[row])
            return bytes(kept[start:end].numpy())

    def live(self) -> list[int]:
        """Rows that are part of the index, ascending."""
        return [row for row in range(self.rows) if row not in self.removed]

    def live_row(self, place: int) -> int:
        """`live()[place]`, without a list of all rows."""
        for gone in sorted(self.removed):
            if gone > place:
                break
            place += 1  # each removed row before it moves the row by one
        return place

    def __len__(self) -> int:
        return self.rows - len(self.removed)


@dataclass
class Block:
    """Videos that one matrix product compares: those of one large shard, or of several small ones joined.

    Args:
        shards: The shards, in the order of the index.
        keep: Whether `features` keeps what it has joined.
        kept: The joined features, once they are kept.
    """

    shards: list[Shard]
    keep: bool
    kept: torch.Tensor | None = None

    def features(self) -> torch.Tensor:
        """(n, P). For a single shard without removed rows this is the memory map itself, not a copy."""
        if self.kept is not None:
            return self.kept
        parts = [shard.features[shard.live()] if shard.removed else shard.features for shard in self.shards]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.keep:
            self.kept = joined
        return joined


def blocks_of(shards: Sequence[Shard]) -> list[Block]:
    """Group shards into blocks that are compared with queries, in their order."""
    blocks: list[Block] = []
    bytes_kept = 0
    group: list[Shard] = []
    for number, shard in enumerate(shards, start=1):
        group.append(shard)
        if (size := sum(map(len, group))) >= BLOCK or number == len(shards):
            copied = len(group) > 1 or bool(group[0].removed)  # else the block is the memory map and costs nothing
            bytes_kept += size * shard.features.shape[1] * shard.features.element_size() if copied else 0
            blocks.append(Block(group, keep=bytes_kept <= KEPT_BYTES))
            group = []
    return blocks


@lru_cache(maxsize=32)  # the modification time is part of the key: a file that was written again is read again
def _entries_in(file: Path, mtime_ns: int) -> list[VideoEntry]:
    with _reading(file) as tensors:
        listed = (tensors.metadata() or {}).get("videos", "")
    try:
        found = [VideoEntry(*values) for values in json.loads(listed)]
        for entry in found:
            if not isinstance(entry.path, str) or not type(entry.size) is type(entry.mtime_ns) is int:
                raise ValueError(f"{entry} is not an entry of a video")
        return found
    except (TypeError, ValueError) as error:
        raise VideoIndexError(f"{file} is damaged (it does not list its videos). {_START_AGAIN}") from error


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, FileNotFoundError) as error:
        raise VideoIndexError(f"{file} is missing or damaged ({error}). {_START_AGAIN}") from error


@dataclass
class Manifest:
    """Description of an index, without its tensors.

    Args:
        model: `name` (folder or Hub id), `dtype` and `fingerprint` of the model that encoded the videos.
        video: Settings of the video processor that change the pixels.
        root: Folder that the paths of the videos are relative to.
        next_shard: Number of the next shard to write.
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
        """Content of the manifest in `directory`.

        The root is stored relative to the folder, so that index and videos can be moved together, and as an absolute
        path, so that the index can be moved alone.
        """
        return {
            "format": INDEX_FORMAT,
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

        The root is the folder at the same place relative to the index. If there is none, because the index was moved
        alone, it is the folder that the index was made from.

        Raises:
            VideoIndexError: There is no manifest; or it has another format, is damaged, or names a shard that is
                damaged or outside of its folder.
        """
        directory = Path(os.path.abspath(directory))
        path = directory / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise VideoIndexError(f"{directory} holds no index: it has no {MANIFEST}.") from error
        except ValueError as error:
            raise VideoIndexError(f"{path} is damaged ({error}). {_START_AGAIN}") from error
        if not isinstance(content, dict) or content.get("format") != INDEX_FORMAT:
            found = content.get("format") if isinstance(content, dict) else content
            raise VideoIndexError(
                f"{path} has the format {found!r}, but this version of alpro_hf reads format {INDEX_FORMAT}. "
                "Index again, into a new folder."
            )
        try:
            root = Path(os.path.normpath(directory / content["root"]))
            model = {key: content["model"][key] for key in ("name", "dtype", "fingerprint")}
            video, next_shard = dict(content["video"]), int(content["next_shard"])
            shards = [(directory / one["file"], int(one["rows"]), set(one["removed"])) for one in content["shards"]]
            # the relative root comes first: index and videos may have been moved together
            root = root if root.is_dir() else Path(content["absolute_root"])
            # an index may come from a stranger: it must not make us open files elsewhere
            outside = [str(file) for file, *_ in shards if not inside(file, directory)]
            if outside:
                raise ValueError(f"the shard {outside[0]} is outside of the folder of the index")
        except (KeyError, TypeError, ValueError) as error:
            raise VideoIndexError(f"{path} is damaged ({error!r}). {_START_AGAIN}") from error
        return cls(model, video, root, next_shard, [Shard.read(*shard) for shard in shards])


class IndexFolder:
    """A folder that an index is written to.

    Args:
        directory: The folder; it need not exist.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(directory))

    def parts(self) -> list[Path]:
        """Folders of the parts that other processes have built, or have begun, and that are not adopted yet."""
        return [manifest.parent for manifest in sorted(self.path.glob(f"{PART}*/{MANIFEST}"))]

    def shard_file(self, shard: int) -> Path:
        """File of the shard of a number."""
        return self.path / f"shard-{shard:05d}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing. If this process dies, the lock is released.

        Raises:
            VideoIndexError: Another process is writing to the index.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):  # fail at once: the other process may run for hours
                yield
        except Timeout as error:
            raise VideoIndexError(f"Another process is writing to the index {self.path}. Try again later.") from error

    def dissolve(self) -> None:
        """Remove this folder's manifest and lock. Its shards stay, for the index that has adopted them."""
        for file in (self.path / MANIFEST, self.path / ".lock"):
            file.unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def stamp(self) -> tuple[int, ...] | None:
        """A value that changes whenever the manifest is written; None: there is no manifest."""
        try:
            stat = (self.path / MANIFEST).stat()
        except FileNotFoundError:
            return None
        # a manifest is replaced and not overwritten, so its inode changes even within one tick of the clock
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def write_shard(
        self,
        shard: int,
        features: torch.Tensor,
        tokens: torch.Tensor,
        videos: list[VideoEntry],
        tables: list[bytes],
    ) -> Shard:
        """Write the file of a shard and open it.

        Args:
            shard: Its number.
            features, tokens: (n, P) and (n, 1 + N, D).
            videos, tables: Entry and frame table of each of the n videos.
        """
        file, ends = self.shard_file(shard), np.cumsum([len(table) for table in tables])
        tensors = {
            "features": features,
            "tokens": tokens,
            # rows of different lengths end to end, as safetensors has no ragged arrays; `copy`: bytes are read-only
            "tables": torch.from_numpy(np.frombuffer(b"".join(tables), np.uint8).copy()),
            "table_ends": torch.from_numpy(ends),
        }
        listed = json.dumps([[video.path, video.size, video.mtime_ns] for video in videos])
        write_whole(file, lambda path: save_file(tensors, path, metadata={"videos": listed}))
        return Shard.read(file, len(videos), set())

    def write_failed(self, failed: Iterable[tuple[Path, str]]) -> None:
        """Write the list of failed files and reasons, one JSON object on each line; delete it if there are none."""
        lines = [json.dumps({"path": str(path), "reason": reason}) + "\n" for path, reason in failed]
        if lines:
            write_text_whole(self.path / FAILED, "".join(lines))
        else:
            (self.path / FAILED).unlink(missing_ok=True)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, then delete shards that it does not name, also those that a dead process left behind.

        The order matters: until the new manifest stands, the old one needs its shards.
        """
        text = json.dumps(manifest.to_json(self.path), indent=1) + "\n"
        write_text_whole(self.path / MANIFEST, text)
        needed = {shard.file for shard in manifest.shards}
        # a part with a manifest is still being built, see `index_parallel`; one without it has been adopted
        parts = set(self.path.glob(f"{PART}*")) - set(self.parts())
        for folder in (self.path, *parts):
            for file in [*folder.glob("shard-*.safetensors"), *folder.glob(".*.partial")]:
                if file not in needed:
                    file.unlink()
