"""Search a collection of videos by text. Every video is encoded once; a query costs one short text.

An index keeps two things for each video: the unit vector that is compared with a query (VTC), and the tokens that the
matching head reads together with it (VTM). Without a trained matching head there are no tokens, and vectors alone
decide. Neither searching nor re-ranking opens a video again. The index also keeps where the frames of each video are,
so that decoding a few of them is quick (`VideoIndex.decode`). Results have the order of the protocol `rerank`, see
`model.matching_alpro.rerank`.

On disk an index is a folder: `index.json`, and shards of `features` (n, P) and `tokens` (n, 1 + N, D) of n videos with
their frame tables end to end (`tables` uint8, `table_ends` (n,)). A shard is written as soon as it is full, so that an
interrupted or killed job can be continued. Shards are memory-mapped. A search reads the features block by block, and
the tokens of the videos that it re-ranks. It copies at most `KEPT_BYTES` into memory, however large the index is.
"""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.isolated_decoder import IsolatedDecoder
from ..files import inside, model_fingerprint
from ..loading import portable_name
from ..model.decoding import decode
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames, VideoLimits
from ..model.matching_alpro import matching_problem, vtc_scores, vtm_scores
from ..model.modeling_alpro import AlproPreTrainedModel
from ..model.wrappers_alpro import plain_model
from ..trust import printable
from .index_bounds import DTYPES, check_finite
from .index_encode import EncodedVideo, encode_videos
from .index_frames import (
    WindowChoice,
    choose_frames,
    chosen_frames,
    made_with,
    noted_frames,
    noted_windows,
    video_settings,
    window_settings,
)
from .index_results import Candidates, SearchResult
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
from .queries import Term, example, query_vector

VideoPath = str | os.PathLike[str]
_Row = tuple[VideoEntry, torch.Tensor, torch.Tensor, bytes]  # entry, vector (P,), tokens (1 + N, D), frame table
Nearest = Callable[[torch.Tensor, int], Iterable[torch.Tensor]]

_NARROWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # to which a float32 model is rounded
DEFAULT_RERANK = 16  # videos that the matching head reorders, if there is one


class VideoIndex:
    """Videos that one model has encoded, for search by text.

    Example:
        >>> index = VideoIndex.build(model, processor, Path("holiday").glob("*.mp4"))
        >>> for result in index.search("a dog runs into the sea", top_k=3):
        ...     print(result.rank, result.path, result.match_probability)
        >>> index.save("holiday-index")

    Args:
        model: Any ALPRO model with both towers, on the device to compute on. It is put in evaluation mode. For the
            index of a folder that was made in bfloat16, a float32 model is copied in bfloat16.
        processor: Its `AlproProcessor`.
        name: Name of the model in the manifest. Default: the folder or Hub id it was loaded from.
        num_frames, size: Frames of a video, and their height and width in pixels; fewer and smaller ones are quicker
            to encode. None: as in the processor, or as the index in a folder notes.
        window, stride: How long videos are cut into windows, of which each is searched for itself; see
            `index_frames.window_settings`. None: as the index in a folder notes, or `auto` for a new one.
        allow_outside: Whether videos may lie outside of `root`, by "..", as absolute paths or by links. If not, `add`
            reports such files as failed, and `search` raises an error when it finds one.

    Attributes:
        windows: How long videos are cut; None: each is one clip.
        model_facts: `name`, `dtype` and `fingerprint` of the model, as in the manifest.
        video_settings: Settings of the video processor that change the pixels, as in the manifest.
        can_match: Whether the model has a trained matching head. If not, searches compare vectors alone.
        root: Folder that the paths of the videos are relative to; None: no video was added yet.
        report: Results of the last `add`.
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
    ) -> None:
        model = plain_model(model)
        self.model, self.allow_outside = model.eval(), allow_outside
        self.can_match = matching_problem(model) is None
        self.model_facts = self._facts(name or portable_name(model.config._name_or_path))
        self._given = chosen_frames(num_frames, size)
        config: Any = model.config
        self._patch = config.video_config.patch_size
        self.processor = choose_frames(processor, self._patch, self._given)
        self.windows = window_settings(window, stride)
        self._windows_given = window is not None or stride is not None
        self.video_settings = video_settings(self.processor, self._given, self.windows)
        self.root: Path | None = None
        self._named: dict[str, Path | None] = {}  # where the user says that the videos are, see `Manifest.read`
        self._ours = True  # whether this user has noted or named the root
        self._shards: list[Shard] = []
        # path -> shard and row of each window, in order of time; None: not read yet
        self._places: dict[str, list[tuple[Shard, int]]] | None = {}
        self._blocks: list[Block] | None = None
        self._next_shard = 0  # never reused: a reader must not find other videos in a shard file that it knows
        self._folder: IndexFolder | None = None
        self._stamp: object = None
        self.report = IndexingReport()

    def _facts(self, name: str) -> dict[str, str]:
        # an untrained head plays no part, and is random each time that such a checkpoint is loaded
        weights = self.model if self.can_match else self.model.base_model
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"name": name, "dtype": dtype, "fingerprint": model_fingerprint(weights)}

    @classmethod
    def build(
        cls,
        model: AlproPreTrainedModel,
        processor: Any,
        paths: Iterable[VideoPath],
        *,
        directory: VideoPath | None = None,
        batch_size: int = 8,
        shard_size: int = 64,
        progress: bool = True,
        name: str | None = None,
        root: Path | None = None,
        allow_outside: bool = False,
        num_frames: int | None = None,
        size: int | None = None,
        window: WindowChoice = None,
        stride: float | None = None,
        limits: VideoLimits | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> "VideoIndex":
        """Index videos; see `add` for what happens to each.

        Args:
            model, processor, name, allow_outside, num_frames, size, window, stride: As in the class.
            paths, batch_size, shard_size, progress, limits, decoder: As in `add`.
            directory: Folder to keep the index in, written shard by shard. An index that it already holds is
                continued. None: the index stays in memory until `save`.
            root: Folder that paths are stored relative to, if the index is new. None: the deepest folder that holds
                all videos. If the index in `directory` was made by somebody else, it replaces a root outside of it.

        Raises:
            IndexMismatchError: `directory` holds an index of another model, or of other frames or windows than the
                arguments say.
            VideoIndexError: `directory` holds a damaged index, the model cannot read frames of `size`, or as in `add`.
        """
        facts: dict[str, Any] = {
            "name": name,
            "allow_outside": allow_outside,
            "num_frames": num_frames,
            "size": size,
            "window": window,
            "stride": stride,
        }
        paths = list(paths)
        if directory is None:
            index = cls(model, processor, **facts)
            index.root = root
        else:
            within = root or (_folder_of(paths) if paths else None)
            index = cls.open(directory, model, processor, root=root, within=within, **facts)
        index.add(
            paths, batch_size=batch_size, shard_size=shard_size, progress=progress, limits=limits, decoder=decoder
        )
        return index

    @classmethod
    def load(
        cls,
        directory: VideoPath,
        model: AlproPreTrainedModel,
        processor: Any,
        *,
        root: Path | None = None,
        name: str | None = None,
        allow_outside: bool = False,
    ) -> "VideoIndex":
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
        index._read(IndexFolder(directory))
        return index

    @classmethod
    def open(
        cls,
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
    ) -> "VideoIndex":
        """Open the index of a folder, or begin an empty one that `add` will write there.

        Args:
            directory: The folder; it need not exist.
            model, processor, name, allow_outside, num_frames, size, window, stride: As in the class.
            root: As in `build`.
            within: Folder that all videos are in. It replaces a root outside of it that this user has not noted.

        Raises:
            VideoIndexError: The folder holds a damaged index, or one whose root was not noted by this user.
            IndexMismatchError: Its index was made by another model, or with other frames.
        """
        frames: dict[str, Any] = {"num_frames": num_frames, "size": size, "window": window, "stride": stride}
        index = cls(model, processor, name=name, allow_outside=allow_outside, **frames)
        folder = IndexFolder(directory)
        index._named = {"within": within or root}
        if folder.stamp() is None:
            index._folder, index.root = folder, root
        else:
            index._read(folder)
        return index

    def _read(self, folder: IndexFolder) -> None:
        stamp = folder.stamp()
        found = Manifest.read(folder.path, allow_outside=self.allow_outside, **self._named)
        narrower = _NARROWER.get(found.model["dtype"])
        if narrower is not None and self.model.dtype == torch.float32:
            # a copy, rounded as the model was when it made the index: queries must be encoded as the videos were
            self.model = copy.deepcopy(self.model).to(narrower)
            self.model_facts = self._facts(self.model_facts["name"])
        if found.model["dtype"] != self.model_facts["dtype"]:
            raise IndexMismatchError(
                f"The index {folder.path} was made in {found.model['dtype']}, but the model computes in "
                f"{self.model_facts['dtype']}. Load the model with dtype={found.model['dtype']!r}, or index again "
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
        if self._windows_given and cut != self.windows:
            made = "whole files" if cut is None else f"windows of {', '.join(f'{one:g}' for one in cut.lengths)} s"
            raise IndexMismatchError(
                f"The index {folder.path} was made of {made}, and the windows asked for are others: leave window and "
                "stride (--window, --stride) out, or index again into a new folder."
            )
        # what was chosen when the index began also counts for what follows
        self.processor, self.windows = choose_frames(self.processor, self._patch, noted), cut
        self.video_settings = video_settings(self.processor, noted, cut)
        if found.video != self.video_settings:
            was, now = (set(map(str, video.items())) for video in (found.video, self.video_settings))
            raise IndexMismatchError(
                f"The index {folder.path} was made from other frames, with {', '.join(sorted(was - now))}, and not "
                f"{', '.join(sorted(now - was))}. Use the processor it was made with, or index again elsewhere."
            )
        self._check_shards(found.shards)
        self._folder, self.model_facts["name"], self.root = folder, found.model["name"], found.root
        self._ours = found.ours
        self._stamp, self._next_shard = stamp, found.next_shard
        self._shards, self._places, self._blocks = found.shards, None, None

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
        for shard in shards:
            tokens, width = shard.token_shape
            if (shard.features.shape[1], width) != (config.projection_dim, video.hidden_size):
                problem = f"vectors of {shard.features.shape[1]} and tokens of {width} numbers"
            elif shard.token_dtype != DTYPES[self.model_facts["dtype"]]:
                problem = f"tokens of the type {shard.token_dtype}"
            elif tokens > 4 * (1 + patches) or (self.can_match and not tokens):  # matching takes time for each
                problem = f"{tokens} tokens for each video"
            else:
                continue
            raise VideoIndexError(f"{shard.file} is damaged: it has {problem}, which the model never makes.")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the folder for writing, and read it again if another process has changed it since."""
        if self._folder is None:
            yield
            return
        with self._folder.locked():
            if self._folder.stamp() != self._stamp:
                self._read(self._folder)
            yield

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    @property
    def paths(self) -> list[Path]:
        """The indexed files, in the order of indexing."""
        return list(dict.fromkeys(path for path, _, _ in self.moments))

    @property
    def moments(self) -> list[tuple[Path, float | None, float | None]]:
        """File, start and end of each vector, in the order of `features`; without times for a whole file."""
        entries = (shard.entries()[row] for shard in self._shards for row in shard.live())
        return [(self._path(entry), entry.start, entry.end) for entry in entries]

    def _place_of(self) -> dict[str, list[tuple[Shard, int]]]:
        """Places of each video. Only changes of an index need this; a search works without it."""
        if self._places is None:
            self._places = {}
            for shard in self._shards:
                entries = shard.entries()
                for row in shard.live():
                    self._places.setdefault(entries[row].path, []).append((shard, row))
        return self._places

    def _entries_of(self, key: str) -> list[VideoEntry]:
        """The entries of one video; empty if it is not in the index."""
        return [shard.entries()[row] for shard, row in self._place_of().get(key, ())]

    def _forget(self, key: str) -> None:
        """Remove one video.

        Raises:
            KeyError: It is not in the index.
        """
        for shard, row in self._place_of().pop(key):
            shard.removed.add(row)

    @property
    def folder(self) -> Path | None:
        """The folder of the index; None: it is in memory."""
        return self._folder.path if self._folder else None

    def part_folder(self, process: int) -> Path:
        """Folder below that of the index for the part that one of several processes builds, see `adopt`."""
        assert self._folder is not None
        # the number of the next shard tells the parts of one run from those of a later one
        return self._folder.path / f"{PART}{self._next_shard:05d}-{process:03d}"

    def manifest_digest(self) -> str:
        """A hash over the manifest of a saved index, 64 hexadecimal digits: another one after each change.

        Raises:
            VideoIndexError: Another process has changed the index since it was opened.
        """
        assert self._folder is not None
        if self._folder.stamp() != self._stamp:
            raise VideoIndexError(f"Another process has changed the index {self._folder.path}. Open it again.")
        return hashlib.sha256((self._folder.path / MANIFEST).read_bytes()).hexdigest()

    def _path(self, entry: VideoEntry) -> Path:
        assert self.root is not None
        return Path(os.path.normpath(self.root / entry.path))  # not resolved: a link keeps the name it was given

    def _checked_path(self, entry: VideoEntry) -> Path:
        path = self._path(entry)
        if not self.may_hold(path):
            raise VideoIndexError(
                f"The index names {path}, which lies outside of {self.root}, the folder of its videos, or is a link "
                "that leads out. If you trust the index, pass allow_outside=True (--allow-outside)."
            )
        return path

    def _key(self, path: VideoPath) -> str:
        # with "/" on every platform, so that an index can be moved between them
        return Path(os.path.relpath(path, self.root)).as_posix()

    # ------------------------------------------------------------------------------------------------------- indexing

    def add(
        self,
        paths: Iterable[VideoPath],
        *,
        batch_size: int = 8,
        shard_size: int = 64,
        progress: bool = True,
        limits: VideoLimits | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> IndexingReport:
        """Encode videos into the index.

        A video that the index already holds, with the same size and modification time, is skipped. A changed one is
        encoded again. A file that cannot be decoded is reported and stops nothing; an index in a folder lists such
        files and the reasons in `failed.jsonl`. A long video that breaks on the way is reported, too, and keeps its
        windows up to there. If this is interrupted, what was encoded so far is kept, also the windows of a long video.

        Args:
            paths: Video files.
            batch_size: Videos or windows encoded at a time.
            shard_size: Videos or windows in one file of the index, which is also how many a crash can lose.
            progress: Show a bar on stderr.
            limits: Limits on the cost of a video; None: the defaults of `decoding_types.VideoLimits`.
            decoder: Decodes in processes of its own, so that a file that crashes or hangs FFmpeg is reported too.

        Returns:
            The files that were indexed, unchanged or failed; also kept in `report`.

        Raises:
            VideoIndexError: Another process is writing to the index, or a size is not positive.
        """
        if batch_size < 1 or shard_size < 1:
            raise VideoIndexError(f"batch_size={batch_size} and shard_size={shard_size} must be at least 1.")
        self.report = report = IndexingReport()
        files = [Path(os.path.abspath(path)) for path in dict.fromkeys(paths)]  # each once, in order
        with self._writing():
            if self.root is None and files:
                self.root = _folder_of(files)
            wanted: dict[Path, VideoEntry] = {}
            for file in files:
                try:
                    entry = self._entry(file)
                except OSError as error:
                    report.failed.append((file, error.strerror or str(error)))
                    continue
                if not self.may_hold(file):
                    reason = f"it lies outside of {self.root}, the folder of this index, or is a link that leads out"
                    report.failed.append((file, f"{reason}; allow_outside=True (--allow-outside) takes it"))
                    continue
                if self._has(entry):
                    report.unchanged.append(file)
                else:
                    wanted[file] = entry
            try:
                self._encode(wanted, batch_size, shard_size, progress, limits, decoder)
            finally:
                if self._folder:
                    self._folder.write_failed(report.failed)
        return report

    def may_hold(self, path: Path) -> bool:
        return self.allow_outside or self.root is None or inside(path, self.root)

    def is_current(self, path: VideoPath) -> bool:
        """Whether the index holds a file in its present state, by size and modification time.

        Raises:
            OSError: The file is not there or cannot be read.
        """
        return self._has(self._entry(path))

    def _entry(self, path: VideoPath) -> VideoEntry:
        stat = os.stat(path)
        return VideoEntry(self._key(path), stat.st_size, stat.st_mtime_ns)

    def _has(self, entry: VideoEntry) -> bool:
        held = self._entries_of(entry.path)
        return any(one.final for one in held) and all(one.version == entry.version for one in held)

    def _encode(
        self,
        wanted: dict[Path, VideoEntry],
        batch_size: int,
        shard_size: int,
        progress: bool,
        limits: VideoLimits | None,
        decoder: IsolatedDecoder | None,
    ) -> None:
        pending: list[_Row] = []
        known: dict[Path, int] = {}  # of an interrupted file, the windows that are there
        changed: set[Path] = set()
        for path, file in wanted.items():
            if held := self._entries_of(file.path):
                if all(one.version == file.version for one in held):
                    known[path] = len(held)
                else:
                    changed.add(path)
        # drawn after each batch, however quick or slow, with the time left by the mean of all batches so far
        bar = tqdm(
            total=len(wanted),
            desc="indexing",
            unit="video",
            disable=not progress,
            mininterval=0,
            miniters=1,
            smoothing=0,
        )
        try:
            encoding = encode_videos(
                self.model,
                self.processor,
                list(wanted),
                batch_size,
                decoder,
                keep_tokens=self.can_match,
                windows=self.windows,
                known=known,
                limits=limits,
            )
            # `closing`: an exception must end the threads that decode ahead now, not when garbage is collected
            with closing(encoding) as batches:
                for batch in batches:
                    for video in batch:
                        if video.path in changed:
                            changed.remove(video.path)
                            self._forget(wanted[video.path].path)  # it must not be found by its old content
                        if video.embed is None or video.tokens is None:
                            self.report.failed.append((video.path, self._problem(video, wanted, pending)))
                        else:
                            table = b"" if video.table is None else video.table.to_bytes()
                            entry = replace(wanted[video.path], start=video.start, end=video.end, final=video.final)
                            pending.append((entry, video.embed, video.tokens, table))
                            if video.final:
                                self.report.indexed.append(video.path)
                    # a batch may be larger than a shard, and what is left over waits for the next batch
                    while len(pending) >= shard_size:
                        self._store(pending[:shard_size])
                        del pending[:shard_size]
                    if batch[-1].end is not None:  # of a long video, how far it is
                        bar.set_postfix_str(
                            f"{printable(batch[-1].path.name)} {timedelta(seconds=int(batch[-1].end))}"
                        )
                    bar.update(sum(video.final for video in batch))
        finally:  # also when interrupted: what is encoded is kept
            bar.close()
            # an interruption may have come after a shard was stored and before `pending` was cut
            self._store([row for row in pending if row[0] not in self._entries_of(row[0].path)])

    def _problem(self, video: EncodedVideo, wanted: dict[Path, VideoEntry], pending: Sequence[_Row]) -> str:
        """Why a file failed, and how much of it is kept."""
        entry = wanted[video.path]
        kept = [*self._entries_of(entry.path), *(row[0] for row in pending if row[0].path == entry.path)]
        ends = [one.end for one in kept if one.end is not None]
        return f"{video.problem} (kept up to {max(ends):.1f} s)" if ends else video.problem or ""

    def _store(self, videos: Sequence["_Row"]) -> None:
        """Make one shard of some videos, and write a manifest that includes it."""
        if videos:
            number, self._next_shard = self._next_shard, self._next_shard + 1
            entries, tables = [entry for entry, *_ in videos], [table for *_, table in videos]
            features = torch.stack([feature for _, feature, _, _ in videos])
            tokens = torch.stack([token for _, _, token, _ in videos])
            if self._folder:
                shard = self._folder.write_shard(number, features, tokens, entries, tables)
            else:
                shard = Shard(len(videos), features=features, tokens=tokens, videos=entries, tables=tables)
            # The places first: interrupted between the two, these videos are encoded again next time. The other way
            # round they would be stored twice.
            for row, entry in enumerate(entries):
                self._place_of().setdefault(entry.path, []).append((shard, row))
            self._shards.append(shard)
        self._write()

    def _write(self) -> None:
        self._shards = [shard for shard in self._shards if len(shard)]  # an emptied shard loses its file, too
        self._blocks = None
        if self._folder and self.root is not None:
            self._folder.write_manifest(
                Manifest(self.model_facts, self.video_settings, self.root, self._next_shard, self._shards, self._ours)
            )
            self._stamp = self._folder.stamp()

    def adopt(self, part: "VideoIndex") -> None:
        """Take over the shards of another index without copying them.

        Args:
            part: An index of the same model with the same root, in a folder below that of this one. If both hold a
                video, the entry of `part` counts. The manifest of `part` is deleted: it stops being an index.
        """
        assert self._folder is not None and part._folder is not None
        with self._writing():
            self.root = self.root or part.root
            # shards are not copied: rows that both indexes hold are marked as removed in the older shard
            for key in part._place_of().keys() & self._place_of().keys():
                self._forget(key)
            self._shards += part._shards
            self._place_of().update(part._place_of())
            self._next_shard += 1  # the next parts must have other names, see `part_folder`
            self._write()
        part._folder.dissolve()

    def missing(self) -> list[Path]:
        """Indexed files that no longer exist."""
        return [path for path in self.paths if not path.exists()]

    def remove(self, paths: Iterable[VideoPath]) -> None:
        """Remove videos from the index.

        Raises:
            KeyError: A video is not in the index; then nothing is removed.
        """
        gone = list(paths)
        if gone:
            with self._writing():
                keys = [self._key(path) for path in gone]
                for key in keys:  # all are checked before one is removed
                    if key not in self._place_of():
                        raise KeyError(key)
                for key in keys:
                    self._forget(key)
                self._write()

    def save(self, directory: VideoPath, *, shard_size: int = 64) -> None:
        """Write the whole index to a folder that holds none. Later changes are written there too.

        Args:
            directory: The folder; it need not exist.
            shard_size: Videos in one file of the index.

        Raises:
            VideoIndexError: The folder already holds an index, or there is nothing to save.
        """
        folder = IndexFolder(directory)
        if (folder.path / MANIFEST).exists():
            raise VideoIndexError(f"{folder.path} already holds an index. Save into another folder.")
        if not len(self):
            raise VideoIndexError("The index is empty: there is nothing to save.")
        videos = [(shard, row) for shard in self._shards for row in shard.live()]
        with folder.locked():
            self._folder, self._shards, self._places, self._next_shard = folder, [], {}, 0
            for start in range(0, len(videos), shard_size):
                part = videos[start : start + shard_size]  # new shards hold no removed rows
                self._store(
                    [
                        (old.entries()[row], old.vectors()[row], old.tokens_of(row)[0], old.table_of(row))
                        for old, row in part
                    ]
                )

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
            count = self.processor.video_processor.num_frames
            source, indices = source.path, source.indices(count) if indices is None else indices
        if isinstance(source, str | os.PathLike):
            options = {"table": self.frame_table(source)} | options
        return (decoder.decode if decoder else decode)(source, indices, **options)

    def frame_table(self, path: VideoPath) -> FrameTable | None:
        """Where the frames of a video are; None: it is not in the index, has changed, or has no table.

        Raises:
            VideoIndexError: The index is damaged.
        """
        places = self._place_of().get(self._key(path)) if self.root is not None else None
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

    # ------------------------------------------------------------------------------------------------------ searching

    @overload
    def search(  # type: ignore[overload-overlap]  # a text is also a sequence of texts
        self,
        queries: str,
        *,
        top_k: int = 10,
        rerank: int | None = None,
        per_video: int = 1,
        nearest: Nearest | None = None,
    ) -> list[SearchResult]: ...
    @overload
    def search(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        rerank: int | None = None,
        per_video: int = 1,
        nearest: Nearest | None = None,
    ) -> list[list[SearchResult]]: ...
    @torch.inference_mode()
    def search(
        self,
        queries: str | Sequence[str],
        *,
        top_k: int = 10,
        rerank: int | None = None,
        per_video: int = 1,
        nearest: Nearest | None = None,
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos that texts describe, or moments of long videos, best first.

        Of windows that overlap by more than half (intersection over union), only the most similar one counts.

        Args:
            queries: One text, or several.
            top_k: Results for each query.
            rerank: How many of the best videos or moments by VTC similarity the matching head reorders; 0: none
                (`vtc`). `rerank=len(index)` matches all, which is slow. None: 16, or 0 if the model cannot match.
            per_video: Results of one video; with 1, each video comes once, at its best moment. 0: any number.
            nearest: Finds candidates, as the method `nearest` does: `AnnSearch(index).nearest` for an approximate
                search among millions. None: exact comparison with every video.

        Returns:
            The results of the query; for several queries a list of such lists.

        Raises:
            VideoIndexError: The index is empty, a query is blank, a number is out of range, or `rerank` is above 0 and
                the model has no trained matching head.
        """
        if isinstance(queries, str):
            [results] = self.search([queries], top_k=top_k, rerank=rerank, per_video=per_video, nearest=nearest)
            return results
        if not len(self):
            raise VideoIndexError("The index is empty: there is nothing to search. Add videos first.")
        if rerank is None:
            rerank = DEFAULT_RERANK if self.can_match else 0
        if top_k < 1 or rerank < 0 or per_video < 0:
            raise VideoIndexError(
                f"top_k={top_k} must be at least 1, rerank={rerank} and per_video={per_video} at least 0."
            )
        if rerank and (problem := matching_problem(self.model)):
            raise VideoIndexError(
                f"rerank={rerank} (--rerank) needs a matching head, and {problem}. Use rerank=0, or index with a "
                "model that was trained to match."
            )
        if any(not query.strip() for query in queries):
            raise VideoIndexError("A query is blank. Describe what to look for, for instance 'a dog runs'.")
        texts = [self._encode_text(query) for query in queries]
        while True:
            try:
                # re-ranking may bring a video to the top that similarity alone would have cut off
                positions = (nearest or self.nearest)(torch.cat([embed for _, embed in texts]), max(top_k, rerank))
                return [
                    self._find(*text, near, top_k, rerank, per_video, nearest or self.nearest)
                    for text, near in zip(texts, positions, strict=True)
                ]
            except ShardGoneError:
                # another process may have removed videos; an approximate index counts those that there were
                if nearest is not None or self._folder is None or self._folder.stamp() == self._stamp:
                    raise
                self._read(self._folder)

    @torch.inference_mode()
    def search_like(
        self,
        *terms: Term | VideoPath,
        top_k: int = 10,
        per_video: int = 1,
        nearest: Nearest | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> list[SearchResult]:
        """Find the videos that are like examples, or like a sum of texts and examples, best first.

        Results are in the order of similarity (`vtc`). The matching head reads one text, so nothing is re-ranked.

        Args:
            terms: Names of videos or pictures, such as `"clip.mp4"`, `"clip.mp4@00:12-00:20"` or `"photo.jpg"`; or
                terms, such as those of `queries.parse_terms`.
            top_k, per_video, nearest: As in `search`.
            decoder: Decodes the examples in a process of its own.

        Raises:
            QueryError, SpanError, VideoDecodeError: As `queries.query_vector`.
            VideoIndexError: The index is empty, or `top_k` is below 1.
        """
        if not len(self) or top_k < 1:
            raise VideoIndexError(f"top_k={top_k} must be at least 1, and the index must not be empty.")
        read = [term if isinstance(term, Term) else example(os.fspath(term)) for term in terms]
        embed = query_vector(self.model, self.processor, read, decoder)
        # without re-ranking, no tokens are read
        nearest = nearest or self.nearest
        [positions] = nearest(embed[None], top_k)
        return self._find(embed[None], embed[None], positions, top_k, 0, per_video, nearest)

    def _encode_text(self, query: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (1, L, D) on the model's device and unit vector (1, P) on the CPU.

        Queries are encoded one by one: a query has the same scores whatever other queries are asked with it.
        """
        inputs = self.processor(text=[query], return_tensors="pt").to(self.model.device)
        text = self.model.base_model.get_text_features(inputs["input_ids"])
        return text.last_hidden_state, text.pooler_output.float().cpu()

    def features(self) -> Iterator[torch.Tensor]:
        """All unit vectors in the order of `paths`, as blocks (n, P). Blocks of large shards are memory-mapped."""
        if self._blocks is None:
            self._blocks = blocks_of(self._shards)
        for block in self._blocks:
            yield block.features()

    def nearest(self, embeds: torch.Tensor, k: int) -> torch.Tensor:
        """Find the videos of highest cosine similarity by exact comparison with every video.

        Args:
            embeds: Unit vectors (n, P) of texts, on the CPU.
            k: How many videos; all, if there are fewer.

        Returns:
            int64 (n, k), places in `paths`, best first.
        """
        best = torch.empty(len(embeds), 0)
        places = torch.empty(len(embeds), 0, dtype=torch.long)
        start = 0
        for features in self.features():
            top = vtc_scores(embeds, features).topk(min(k, len(features)), dim=1)
            best, places = torch.cat([best, top.values], dim=1), torch.cat([places, start + top.indices], dim=1)
            start += len(features)
            # the best so far are cut to k after each block, so memory does not grow with the index
            if best.shape[1] > k:
                kept = best.topk(k, dim=1)
                best, places = kept.values, places.gather(1, kept.indices)
        return places.gather(1, best.argsort(dim=1, descending=True, stable=True))

    def _find(
        self,
        text: torch.Tensor,
        embed: torch.Tensor,
        positions: torch.Tensor,
        top_k: int,
        rerank: int,
        per_video: int,
        nearest: Nearest,
    ) -> list[SearchResult]:
        """The results of one query: its tokens (1, L, D), unit vector (1, P) and nearest positions (n,) are given."""
        count = wanted = max(top_k, rerank)
        while True:
            places = self._shards_at(positions)
            entries = [shard.entries()[row] for shard, row in places]
            # not a matrix product, whose last bits would depend on the other videos: a video has the same similarity
            # whether candidates came from an exact or an approximate search
            vectors = torch.stack([shard.vectors()[row] for shard, row in places]).float()
            found = Candidates.of([one.span for one in entries], (vectors * embed[0]).sum(dim=1))
            if found.suffice(wanted, top_k, per_video) or len(positions) < count or count >= len(self):
                break
            count *= 4  # windows that overlap, or are of one video, have taken the places of others
            [positions] = nearest(embed, count)
        ranked = found.rank(rerank, per_video, lambda kept: self._match(text, [places[i] for i in kept.tolist()]))
        return [
            SearchResult(
                rank,
                self._checked_path(entries[i]),
                score,
                similarity,
                probability,
                entries[i].start,
                entries[i].end,
            )
            for rank, (i, score, similarity, probability) in enumerate(ranked[:top_k], start=1)
        ]

    def _shards_at(self, positions: torch.Tensor) -> list[tuple[Shard, int]]:
        """Shard and row of each of some positions in the order of `moments`."""
        ends = np.cumsum([len(shard) for shard in self._shards])  # position of the first video after each shard
        places = []
        for position in positions.tolist():
            number = int(np.searchsorted(ends, position, side="right"))
            shard = self._shards[number]
            places.append((shard, shard.live_row(position - int(ends[number]) + len(shard))))
        return places

    def _match(self, text: torch.Tensor, videos: Sequence[tuple[Shard, int]]) -> torch.Tensor:
        """Matching logits (n, 2) of one text (1, L, D) with n videos, whose tokens are read from the shards."""
        each = [shard.tokens_of(row) for shard, row in videos]
        if len({tokens.shape for tokens in each}) > 1:
            raise VideoIndexError("The videos of the index have different numbers of tokens. Index them again.")
        pairs = torch.tensor([[0, video] for video in range(len(videos))])
        logits = vtm_scores(self.model, text, None, torch.cat(each), pairs)
        try:
            check_finite("the scores of the matching head", logits)  # numbers in tokens may be too large for it
        except ValueError as error:
            raise VideoIndexError(f"The index {self.folder} is damaged ({error}). Index again.") from error
        return logits


def _folder_of(paths: Iterable[VideoPath]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in paths]))
