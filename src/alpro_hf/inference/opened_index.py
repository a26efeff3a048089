"""An index that is open: the model it belongs to, what it holds, and where the frames of its videos are.

`VideoIndex` is made of three classes: this one reads, `index_search` finds, and `video_index` changes.
"""

import copy
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..data.window_choice import WindowChoice, WindowError, window_settings
from ..files import inside, model_fingerprint
from ..loading import has_int8_weights, portable_name, with_int8_weights
from ..model.decoding import decode
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames
from ..model.matching_alpro import matching_problem
from ..model.modeling_alpro import AlproPreTrainedModel
from ..model.wrappers_alpro import plain_model
from .index_bounds import DTYPES, TOKEN_DTYPES
from .index_frames import (
    check_token_dtype,
    choose_frames,
    chosen_frames,
    made_with,
    noted_frames,
    noted_token_dtype,
    noted_windows,
    video_settings,
)
from .index_results import SearchResult
from .index_shards import (
    MANIFEST,
    PART,
    Block,
    IndexFolder,
    IndexingReport,
    IndexMismatchError,
    Manifest,
    Shard,
    ShardGoneError,
    VideoEntry,
    VideoIndexError,
    blocks_of,
)

VideoPath = str | os.PathLike[str]
_NARROWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # to which a float32 model is rounded
_Index = TypeVar("_Index", bound="OpenedIndex")


class OpenedIndex:
    """Videos that one model has encoded, in memory or in a folder. Use `VideoIndex`, which has all methods.

    Arguments and attributes are those of `VideoIndex`. Further attributes are for its own modules:

    Attributes:
        shards: What it holds.
        storage: The folder; None: it is in memory.
        stamp: That of the folder when the index was read, see `IndexFolder.stamp`.
        next_shard: Number of the next shard. Numbers are never reused: a reader must not find other videos in a shard
            file that it knows.
        root_is_ours: Whether this user has noted or named the root.
        places: Of each video by its path, shard and row of each window, in order of time; None: not read yet.
        blocks: The shards as a search compares them; None: not grouped yet.
    """

    def __init__(
        self,
        model: AlproPreTrainedModel,
        processor: Any,
        *,
        name: str | None = None,
        allow_outside: bool = False,
        num_frames: int | None = None,
        size: int | None = None,
        window: WindowChoice = None,
        stride: float | None = None,
        token_dtype: str | None = None,
    ) -> None:
        model = plain_model(model)
        self.model, self.allow_outside = model.eval(), allow_outside
        self.can_match = matching_problem(model) is None
        self.model_facts = self._facts(name or portable_name(model.config._name_or_path))
        self._given = chosen_frames(num_frames, size)
        config: Any = model.config
        self._patch = config.video_config.patch_size
        self.processor = choose_frames(processor, self._patch, self._given)
        try:
            self.windows = window_settings(window, stride)
        except WindowError as error:
            raise VideoIndexError(str(error)) from error
        self._windows_given = window is not None or stride is not None
        self.token_dtype = self._token_dtype_given = check_token_dtype(token_dtype)
        self.video_settings = video_settings(self.processor, self._given, self.windows, self.token_dtype)
        self.root: Path | None = None
        self._named: dict[str, Path | None] = {}  # where the user says that the videos are, see `Manifest.read`
        self.root_is_ours = True
        self.shards: list[Shard] = []
        self.places: dict[str, list[tuple[Shard, int]]] | None = {}
        self.blocks: list[Block] | None = None
        self.next_shard = 0
        self.storage: IndexFolder | None = None
        self.stamp: object = None
        self.report = IndexingReport()

    def _facts(self, name: str) -> dict[str, str]:
        # an untrained head plays no part, and is random each time that such a checkpoint is loaded
        weights = self.model if self.can_match else self.model.base_model
        dtype = "int8" if has_int8_weights(self.model) else str(self.model.dtype).removeprefix("torch.")
        return {"name": name, "dtype": dtype, "fingerprint": model_fingerprint(weights)}

    @classmethod
    def load(
        cls: type[_Index],
        directory: VideoPath,
        model: AlproPreTrainedModel,
        processor: Any,
        *,
        root: Path | None = None,
        name: str | None = None,
        allow_outside: bool = False,
    ) -> _Index:
        """Open the index of a folder. Later changes are written to the folder.

        Args:
            directory: The folder of the index.
            model, processor, name, allow_outside: As in the class.
            root: Folder of the videos, for an index that somebody else has made, or whose videos were moved. None: the
                folder that was noted when this user made the index.

        Raises:
            VideoIndexError: The folder holds no index, or a damaged one; or the root in it was not noted by this user.
            IndexMismatchError: The index was made by another model, or with other frames.
        """
        index = cls(model, processor, name=name, allow_outside=allow_outside)
        index._named = {"root": root}
        index.read_again(IndexFolder(directory))
        return index

    @classmethod
    def open(
        cls: type[_Index],
        directory: VideoPath,
        model: AlproPreTrainedModel,
        processor: Any,
        *,
        root: Path | None = None,
        within: Path | None = None,
        name: str | None = None,
        allow_outside: bool = False,
        num_frames: int | None = None,
        size: int | None = None,
        window: WindowChoice = None,
        stride: float | None = None,
        token_dtype: str | None = None,
    ) -> _Index:
        """Open the index of a folder, or begin an empty one that `add` will write there.

        Args:
            directory: The folder; it need not exist.
            model, processor, name, allow_outside, num_frames, size, window, stride, token_dtype: As in the
                class.
            root: As in `build`.
            within: Folder that all videos are in. It replaces a root outside of it that this user has not noted.

        Raises:
            VideoIndexError: The folder holds a damaged index, or one whose root was not noted by this user.
            IndexMismatchError: Its index was made by another model, or with other frames.
        """
        frames: dict[str, Any] = {"num_frames": num_frames, "size": size, "window": window, "stride": stride}
        index = cls(model, processor, name=name, allow_outside=allow_outside, token_dtype=token_dtype, **frames)
        folder = IndexFolder(directory)
        index._named = {"within": within or root}
        if folder.stamp() is None:
            index.storage, index.root = folder, root
        else:
            index.read_again(folder)
        return index

    def read_again(self, folder: IndexFolder) -> None:
        stamp = folder.stamp()
        found = Manifest.read(folder.path, allow_outside=self.allow_outside, **self._named)
        made_in = found.model["dtype"]
        if self.model_facts["dtype"] == "float32" and made_in in (*_NARROWER, "int8"):
            # a copy, rounded as the model was when it made the index: queries must be encoded as the videos were
            narrower = _NARROWER.get(made_in)
            self.model = with_int8_weights(self.model) if narrower is None else copy.deepcopy(self.model).to(narrower)
            self.model_facts = self._facts(self.model_facts["name"])
        if found.model["dtype"] != self.model_facts["dtype"]:
            from_type = "float32" if made_in == "int8" else made_in  # what `from_pretrained` takes
            raise IndexMismatchError(
                f"The index {folder.path} was made in {found.model['dtype']}, but the model computes in "
                f"{self.model_facts['dtype']}. Load the model with dtype={from_type!r}, or index again "
                "into a new folder."
            )
        if found.model["fingerprint"] != self.model_facts["fingerprint"]:
            raise IndexMismatchError(
                f"The index {folder.path} was made by the model {found.model['name']!r}, whose weights differ from "
                f"those of {self.model_facts['name']!r}. Search with that model, or index again into a new folder."
            )
        for setting, value in self._given.items():
            if (made := made_with(found.video, setting)) != value:
                raise IndexMismatchError(
                    f"The index {folder.path} was made with {setting}={made}, not {value}: leave {setting} (--"
                    f"{setting.replace('_', '-')}) out, or index again into a new folder."
                )
        noted, cut = noted_frames(found.video), noted_windows(found.video)
        kept = noted_token_dtype(found.video)
        if self._token_dtype_given not in (None, kept):
            raise IndexMismatchError(
                f"The tokens of the index {folder.path} are kept in {kept or found.model['dtype']}, not in "
                f"{self._token_dtype_given}: leave token_dtype (--token-dtype) out, or index again into a new folder."
            )
        if self._windows_given and cut != self.windows:
            made = "whole files" if cut is None else f"windows of {', '.join(f'{one:g}' for one in cut.lengths)} s"
            raise IndexMismatchError(
                f"The index {folder.path} was made of {made}, and the windows asked for are others: leave window and "
                "stride (--window, --stride) out, or index again into a new folder."
            )
        # what was chosen when the index began also counts for what follows
        self.processor, self.windows = choose_frames(self.processor, self._patch, noted), cut
        self.token_dtype = kept
        self.video_settings = video_settings(self.processor, noted, cut, kept)
        if found.video != self.video_settings:
            was, now = (set(map(str, video.items())) for video in (found.video, self.video_settings))
            raise IndexMismatchError(
                f"The index {folder.path} was made from other frames, with {', '.join(sorted(was - now))}, and not "
                f"{', '.join(sorted(now - was))}. Use the processor it was made with, or index again elsewhere."
            )
        self._check_shards(found.shards)
        self.storage, self.model_facts["name"], self.root = folder, found.model["name"], found.root
        self.root_is_ours = found.ours
        self.stamp, self.next_shard = stamp, found.next_shard
        self.shards, self.places, self.blocks = found.shards, None, None

    def refresh(self) -> bool:
        """Read the index again if another process has changed it since; whether it has."""
        if self.storage is None or self.storage.stamp() == self.stamp:
            return False
        self.read_again(self.storage)
        return True

    def _check_shards(self, shards: Sequence[Shard]) -> None:
        """Check that the model can read the vectors and tokens of shards, and quickly.

        Raises:
            VideoIndexError: It cannot: an index of this model has other widths, types or numbers of tokens.
        """
        config: Any = self.model.config
        video = config.video_config
        size = self.video_settings["size"] or {}
        sides = [size.get(side, 8 * video.image_size) for side in ("height", "width")]  # else the file decides
        patches = math.prod(-(-side // video.patch_size) for side in sides)
        wanted = DTYPES[self.model_facts["dtype"]] if self.token_dtype is None else TOKEN_DTYPES[self.token_dtype]
        for shard in shards:
            tokens, width = shard.token_shape
            if (shard.features.shape[1], width) != (config.projection_dim, video.hidden_size):
                problem = f"vectors of {shard.features.shape[1]} and tokens of {width} numbers"
            elif shard.token_dtype != wanted:
                problem = f"tokens of the type {shard.token_dtype}"
            elif tokens > 4 * (1 + patches) or (self.can_match and not tokens):  # matching takes time for each
                problem = f"{tokens} tokens for each video"
            else:
                continue
            raise VideoIndexError(f"{shard.file} is damaged: it has {problem}, which the model never makes.")

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def paths(self) -> list[Path]:
        """The indexed files, in the order of indexing."""
        return list(dict.fromkeys(path for path, _, _ in self.moments))

    @property
    def moments(self) -> list[tuple[Path, float | None, float | None]]:
        """File, start and end of each vector, in the order of `features`; without times for a whole file."""
        entries = (shard.entries()[row] for shard in self.shards for row in shard.live())
        return [(self.path_of(entry), entry.start, entry.end) for entry in entries]

    def places_of_files(self) -> dict[str, list[tuple[Shard, int]]]:
        """Places of each video. Only changes of an index need this; a search works without it."""
        if self.places is None:
            self.places = {}
            for shard in self.shards:
                entries = shard.entries()
                for row in shard.live():
                    self.places.setdefault(entries[row].path, []).append((shard, row))
        return self.places

    def entries_of(self, key: str) -> list[VideoEntry]:
        """The entries of one video; empty if it is not in the index."""
        return [shard.entries()[row] for shard, row in self.places_of_files().get(key, ())]

    @property
    def folder(self) -> Path | None:
        """The folder of the index; None: it is in memory."""
        return self.storage.path if self.storage else None

    def part_folder(self, process: int) -> Path:
        """Folder below that of the index for the part that one of several processes builds, see `adopt`."""
        assert self.storage is not None
        # the number of the next shard tells the parts of one run from those of a later one
        return self.storage.path / f"{PART}{self.next_shard:05d}-{process:03d}"

    def manifest_digest(self) -> str:
        """A hash over the manifest of a saved index, 64 hexadecimal digits: another one after each change.

        Raises:
            VideoIndexError: Another process has changed the index since it was opened.
        """
        assert self.storage is not None
        if self.storage.stamp() != self.stamp:
            raise VideoIndexError(f"Another process has changed the index {self.storage.path}. Open it again.")
        return hashlib.sha256((self.storage.path / MANIFEST).read_bytes()).hexdigest()

    def path_of(self, entry: VideoEntry) -> Path:
        assert self.root is not None
        return Path(os.path.normpath(self.root / entry.path))  # not resolved: a link keeps the name it was given

    def checked_path(self, entry: VideoEntry) -> Path:
        path = self.path_of(entry)
        if not self.may_hold(path):
            raise VideoIndexError(
                f"The index names {path}, which lies outside of {self.root}, the folder of its videos, or is a link "
                "that leads out. If you trust the index, pass allow_outside=True (--allow-outside)."
            )
        return path

    def may_hold(self, path: Path) -> bool:
        return self.allow_outside or self.root is None or inside(path, self.root)

    def key_of(self, path: VideoPath) -> str:
        # with "/" on every platform, so that an index can be moved between them
        return Path(os.path.relpath(path, self.root)).as_posix()

    def is_current(self, path: VideoPath) -> bool:
        """Whether the index holds a file in its present state, by size and modification time.

        Raises:
            OSError: The file is not there or cannot be read.
        """
        return self.has(self.entry_of(path))

    def entry_of(self, path: VideoPath) -> VideoEntry:
        stat = os.stat(path)
        return VideoEntry(self.key_of(path), stat.st_size, stat.st_mtime_ns)

    def has(self, entry: VideoEntry) -> bool:
        held = self.entries_of(entry.path)
        return any(one.final for one in held) and all(one.version == entry.version for one in held)

    def missing(self) -> list[Path]:
        """Indexed files that no longer exist."""
        return [path for path in self.paths if not path.exists()]

    def features(self) -> Iterator[torch.Tensor]:
        """All unit vectors in the order of `paths`, as blocks (n, P). Blocks of large shards are memory-mapped."""
        if self.blocks is None:
            self.blocks = blocks_of(self.shards)
        for block in self.blocks:
            yield block.features()

    def decode(
        self, source: Any, indices: Any = None, *, decoder: IsolatedDecoder | None = None, **options: Any
    ) -> Frames:
        """Decode frames of an indexed video without listing its packets again.

        It also decodes videos that are not in the index or have changed, so it can replace `decoding.decode`
        anywhere, for instance in `processor.video_processor(path, decoder=index.decode)`.

        Args:
            source, indices, options: As in `decoding.decode`. `source` may also be a `SearchResult`; without
                `indices` these are as many frames as the index was made of, at the middles of equal parts of its time.
            decoder: Decodes in a process of its own.

        Returns:
            The frames, as `decoding.decode` returns them.
        """
        if isinstance(source, SearchResult):
            count = self.processor.video_processor.num_frames if source.sampled is None else source.sampled[0]
            source, indices = source.path, source.indices(count) if indices is None else indices
        if isinstance(source, str | os.PathLike):
            options = {"table": self.frame_table(source)} | options
        return (decoder.decode if decoder else decode)(source, indices, **options)

    def frame_table(self, path: VideoPath) -> FrameTable | None:
        """Where the frames of a video are; None: it is not in the index, has changed, or has no table.

        Raises:
            VideoIndexError: The index is damaged.
        """
        while True:
            try:
                return self._frame_table(path)
            except ShardGoneError:  # another process may have changed the index
                if not self.refresh():
                    raise

    def _frame_table(self, path: VideoPath) -> FrameTable | None:
        places = self.places_of_files().get(self.key_of(path)) if self.root is not None else None
        if not places:
            return None
        shard, row = places[-1]  # the table of a file is with its last window
        try:
            stat = os.stat(path)
        except OSError:  # the caller opens the file next, and that raises the error
            return None
        entry = shard.entries()[row]
        kept = shard.table_of(row) if (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else b""
        try:
            return FrameTable.from_bytes(kept) if kept else None
        except ValueError as error:
            raise VideoIndexError(f"{shard.file} is damaged ({error}). Index again, into a new folder.") from error


__all__ = ["OpenedIndex", "VideoPath"]
