"""The files of a video index: a manifest and shards of tensors, each written completely or not at all.

Shards are safetensors and not Arrow: `features` and `tokens` are read in place from the memory-mapped file, in the
model's own dtype (Arrow has no bfloat16), and reading one row of `tokens` reads no other. The header of a shard lists
its videos. The manifest has one entry for each shard, so that appending to a large index is cheap.
"""

import json
import logging
import math
import os
import reprlib
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

from ..files import inside, is_link, remove_partial, write_text_whole, write_whole
from ..trust import is_sealed, seal
from ..untrusted_json import open_regular, read_json
from .index_bounds import check_finite, check_manifest, check_shapes, check_unit_vectors, read_entries

logger = logging.getLogger(__name__)

MANIFEST = "index.json"
FAILED = "failed.jsonl"  # files that the last indexing could not read, and the reasons
PART = "part-"  # folders of an index that several processes build begin with this
_MANIFEST_BYTES = 1 << 25  # some 300,000 shards
INDEX_FORMAT = 3  # version of manifest and shards
OLDER_FORMATS = (2,)  # that are read, too: 2 has whole files alone
BLOCK = 1 << 14  # videos compared at a time; small shards are joined up to this number
KEPT_BYTES = 1 << 28  # of joined blocks kept in memory; further blocks are joined again in each search
_START_AGAIN = "Delete the folder of the index and index again."
_ATTEMPTS = 20  # to read an index that another process changes meanwhile


class VideoIndexError(ValueError):
    """A folder holds no usable index, or an index cannot do what was asked."""


class IndexMismatchError(VideoIndexError):
    """An index and a model do not belong together: their vectors cannot be compared."""


class ShardGoneError(VideoIndexError):
    """The file of a shard is not there: another process has changed the index, or the file was deleted."""


def stored(tokens: torch.Tensor, token_dtype: str | None) -> torch.Tensor:
    """Tokens in the type that an index keeps them in; None: as they are."""
    if token_dtype is None:
        return tokens
    kind: torch.dtype = getattr(torch, token_dtype)
    most = torch.finfo(kind).max  # what is larger would become NaN
    return tokens.clamp(-most, most).to(kind)


@dataclass(frozen=True)
class VideoEntry:
    """One indexed video, or one window of a long one.

    Args:
        path: Relative to the root of the index, with "/".
        size, mtime_ns: Bytes and modification time of the file when it was encoded. They tell a changed file.
        start, end: Seconds of the window; None for a whole file.
        final: Whether it is the last one of its file: a file without has not been encoded to its end.
    """

    path: str
    size: int
    mtime_ns: int
    start: float | None = None
    end: float | None = None
    final: bool = True

    @property
    def version(self) -> tuple[str, int, int]:
        """The file and the state of it that was encoded, equal for all its windows."""
        return self.path, self.size, self.mtime_ns

    @property
    def span(self) -> tuple[str, float, float]:
        """Its file, start and end; a whole file has no end."""
        return self.path, self.start or 0.0, math.inf if self.end is None else self.end

    def listed(self) -> list[Any]:
        """The entry in the list of a shard."""
        whole = [self.path, self.size, self.mtime_ns]
        return whole if self.start is None else [*whole, self.start, self.end, self.final]


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
        token_shape, token_dtype: (1 + N, D) of the tokens in the file, and their type as safetensors names it.
        stamp: Tells the file from another of its name, as an index that is made again has; None: it is in memory.
    """

    rows: int
    removed: set[int] = field(default_factory=set)
    file: Path | None = None
    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    tokens: torch.Tensor | None = None
    videos: list[VideoEntry] | None = None
    tables: list[bytes] | None = None
    token_shape: tuple[int, ...] = ()
    token_dtype: str = ""
    stamp: tuple[int, ...] | None = None
    _checked: bool = False

    @classmethod
    def read(cls, file: Path, rows: int, removed: set[int]) -> "Shard":
        """Open the file of a shard.

        Raises:
            VideoIndexError: The file is missing or damaged, or has another number of videos.
        """
        with _damage(file):
            stamp = _stamp(file)
        with _reading(file, stamp) as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            dtypes = {name: one.get_dtype() for name, one in slices.items()}
            check_shapes({name: one.get_shape() for name, one in slices.items()}, dtypes, rows)
            features = tensors.get_tensor("features")
            token_shape = tuple(slices["tokens"].get_shape()[1:])
        # the file is closed, but its memory map lives as long as `features`
        kind = dtypes["tokens"]
        return cls(rows, removed, file, features, token_shape=token_shape, token_dtype=kind, stamp=stamp)

    def vectors(self) -> torch.Tensor:
        """`features`, of which the first use checks that they are unit vectors.

        Raises:
            VideoIndexError: They are not.
        """
        if self.file is not None and not self._checked:  # not when the file is opened, which reads none of them
            with _damage(self.file):
                check_unit_vectors(self.features)
            self._checked = True
        return self.features

    def entries(self) -> list[VideoEntry]:
        """One entry for each row. Those of a few files read last stay in memory."""
        if self.videos is not None:
            return self.videos
        assert self.file is not None
        with _damage(self.file):
            _check_stamp(self.file, self.stamp)
            return _entries_in(self.file, self.stamp, self.rows)

    def tokens_of(self, row: int) -> torch.Tensor:
        """(1, 1 + N, D), the tokens of one video; float32 if they are kept in 8 bits. Nothing else is read."""
        if self.tokens is not None:
            return _computable(self.tokens[row : row + 1])
        assert self.file is not None
        with _reading(self.file, self.stamp) as file:
            tokens = _computable(file.get_slice("tokens")[row : row + 1])
            check_finite("tokens", tokens)
            return tokens

    def table_of(self, row: int) -> bytes:
        """Frame table of one video, see `FrameTable.from_bytes`; empty if it is not known."""
        if self.tables is not None:
            return self.tables[row]
        assert self.file is not None
        with _reading(self.file, self.stamp) as file:
            if "table_ends" not in file.keys():  # an index made before tables were kept  # noqa: SIM118
                return b""
            ends, kept = file.get_tensor("table_ends"), file.get_slice("tables")
            start, end = int(ends[row - 1]) if row else 0, int(ends[row])
            if not 0 <= start <= end <= kept.get_shape()[0]:
                raise ValueError(f"the frame table of row {row} is at {start} to {end}")
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


def _computable(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.float() if tokens.element_size() == 1 else tokens


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
        parts = [shard.vectors()[shard.live()] if shard.removed else shard.vectors() for shard in self.shards]
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


@lru_cache(maxsize=32)  # the stamp is part of the key: a file that was written again is read again
def _entries_in(file: Path, stamp: tuple[int, ...] | None, rows: int) -> list[VideoEntry]:
    with _reading(file, stamp) as tensors:
        return [VideoEntry(*values) for values in read_entries((tensors.metadata() or {}).get("videos", ""), rows)]


@contextmanager
def _reading(file: Path, stamp: tuple[int, ...] | None) -> Iterator[Any]:
    """Open the file of a shard, if it still is the one with a stamp."""
    with _damage(file):
        open_regular(file).close()  # a pipe would wait forever
        with safe_open(file, framework="pt") as tensors:
            _check_stamp(file, stamp)  # after it was opened: files are replaced and not overwritten
            yield tensors


def _stamp(file: Path) -> tuple[int, ...]:
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_stamp(file: Path, stamp: tuple[int, ...] | None) -> None:
    if _stamp(file) != stamp:
        raise ShardGoneError(f"{file} was replaced: another process has made the index again. Open it again.")


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turn what is wrong with the file of a shard into an error that names it.

    Raises:
        ShardGoneError: It is not there.
        VideoIndexError: It cannot be used.
    """
    try:
        yield
    except VideoIndexError:
        raise
    except FileNotFoundError as error:
        raise ShardGoneError(
            f"{file} is missing: another process has changed the index, or the file was deleted. Open the index "
            "again; if this stays, index again into a new folder."
        ) from error
    except (SafetensorError, ValueError, IsADirectoryError) as error:
        raise VideoIndexError(f"{file} is damaged ({error}). {_START_AGAIN}") from error


@dataclass
class Manifest:
    """Description of an index, without its tensors.

    Args:
        model: `name` (folder or Hub id), `dtype` and `fingerprint` of the model that encoded the videos.
        video: Settings of the video processor that change the pixels.
        root: Folder that the paths of the videos are relative to.
        ours: Whether this user has noted or named the root; then it is noted again.
        next_shard: Number of the next shard to write.
        shards: In the order of indexing.
    """

    model: dict[str, str]
    video: dict[str, Any]
    root: Path
    next_shard: int = 0
    shards: list[Shard] = field(default_factory=list)
    ours: bool = True

    @cached_property
    def videos(self) -> list[VideoEntry]:
        """All videos of the index, read from the shards."""
        return [shard.entries()[row] for shard in self.shards for row in shard.live()]

    def to_json(self, directory: Path) -> dict[str, Any]:
        """Content of the manifest in `directory`.

        The root is stored relative to the folder, so that index and videos can be moved together, and as an absolute
        path, so that the index can be moved alone. The seal shows that this user has chosen both.
        """
        root, absolute_root = Path(os.path.relpath(self.root, directory)).as_posix(), self.root.as_posix()
        return {
            "format": INDEX_FORMAT,
            "model": self.model,
            "video": self.video,
            "root": root,
            "absolute_root": absolute_root,
            "seal": _seal_of(root, absolute_root) if self.ours else None,
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
    def read(
        cls,
        directory: str | Path,
        *,
        root: str | Path | None = None,
        within: str | Path | None = None,
        allow_outside: bool = False,
    ) -> "Manifest":
        """Read the manifest of an index and open its shards.

        The root of an index that this user has made is the folder at the same place relative to the index. If there is
        none, because the index was moved alone, it is the folder that the index was made from. Other manifests could
        name any folder, so their root is only used if it lies in the folder of the index, or in `within`, or with
        `allow_outside`.

        Args:
            directory: The folder of the index.
            root: Folder of the videos, which replaces the root in the manifest.
            within: Folder in which the user says that the videos are. It replaces a root outside of it that this user
                has not noted.
            allow_outside: Whether to use any root that the manifest names.

        Raises:
            VideoIndexError: There is no manifest; or it has another format, is damaged, or names a shard that is
                damaged or outside of its folder; or its root was not noted by this user.
        """
        folder = IndexFolder(directory)
        for _ in range(_ATTEMPTS):
            before = folder.stamp()
            try:
                return cls._read(folder.path, root, within, allow_outside)
            except ShardGoneError:  # another process may have removed videos since the manifest was read
                if folder.stamp() == before:
                    raise
        raise VideoIndexError(f"The index {folder.path} is being changed all the time. Try again later.")

    @classmethod
    def _read(
        cls, directory: Path, root: str | Path | None, within: str | Path | None, allow_outside: bool
    ) -> "Manifest":
        path = directory / MANIFEST
        try:
            content = read_json(path, max_bytes=_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise VideoIndexError(f"{directory} holds no index: it has no {MANIFEST}.") from error
        except (ValueError, IsADirectoryError) as error:
            raise VideoIndexError(f"{path} is damaged ({error}). {_START_AGAIN}") from error
        if not isinstance(content, dict) or content.get("format") not in (INDEX_FORMAT, *OLDER_FORMATS):
            found = content.get("format") if isinstance(content, dict) else content
            raise VideoIndexError(
                f"{path} has the format {reprlib.repr(found)}, but this version of alpro_hf reads format "
                f"{INDEX_FORMAT}. Index again, into a new folder."
            )
        try:
            check_manifest(content)
            noted = Path(os.path.normpath(directory / content["root"]))
            model = {key: content["model"][key] for key in ("name", "dtype", "fingerprint")}
            video, next_shard = content["video"], content["next_shard"]
            shards = [(directory / one["file"], one["rows"], set(one["removed"])) for one in content["shards"]]
            # the relative root comes first: index and videos may have been moved together
            noted = noted if noted.is_dir() else Path(content["absolute_root"])
            ours = is_sealed(content.get("seal"), content["root"], content["absolute_root"])
            # an index may come from a stranger: it must not make us open files elsewhere
            outside = [str(file) for file, *_ in shards if not inside(file, directory)]
            if outside:
                raise ValueError(f"the shard {outside[0]} is outside of the folder of the index")
        except (KeyError, TypeError, ValueError) as error:
            raise VideoIndexError(f"{path} is damaged ({error!r}). {_START_AGAIN}") from error
        if root is not None:
            noted, ours = Path(os.path.abspath(root)), True
        elif not ours and not allow_outside:
            if within is not None:
                noted, ours = noted if inside(noted, within) else Path(os.path.abspath(within)), True
            elif not inside(noted, directory):
                raise VideoIndexError(
                    f"{path} says that its videos are in {noted}, but this user has not made it on this computer. Say "
                    "where the videos are with root=... (--videos DIR); or, if you trust the index, pass "
                    "allow_outside=True (--allow-outside)."
                )
        return cls(model, video, noted, next_shard, [Shard.read(*shard) for shard in shards], ours)


def _seal_of(root: str, absolute_root: str) -> str | None:
    try:
        return seal(root, absolute_root)
    except OSError as error:
        _warn_once(f"A search of this index will have to say where its videos are (--videos): {error}")
        return None


@lru_cache(maxsize=32)  # a manifest is written after each shard
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


class IndexFolder:
    """A folder that an index is written to.

    Args:
        directory: The folder; it need not exist.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(directory))

    def parts(self) -> list[Path]:
        """Folders of the parts that other processes have built, or have begun, and that are not adopted yet."""
        return [folder for folder in self._part_folders() if (folder / MANIFEST).exists()]

    def _part_folders(self) -> list[Path]:
        # a link would lead the files that are written and deleted there out of the index
        return [folder for folder in sorted(self.path.glob(f"{PART}*")) if folder.is_dir() and not is_link(folder)]

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
        if is_link(self.path / ".lock"):  # old versions of the library empty the file behind it
            (self.path / ".lock").unlink(missing_ok=True)
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
            # a manifest is replaced and not overwritten, so its inode changes even within one tick of the clock
            return _stamp(self.path / MANIFEST)
        except FileNotFoundError:
            return None

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
        listed = json.dumps([video.listed() for video in videos])
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
        for folder in (self.path, *(set(self._part_folders()) - set(self.parts()))):
            remove_partial(folder)
            for file in folder.glob("shard-*.safetensors"):
                if file not in needed and (is_link(file) or file.is_file()):
                    file.unlink()
