"""Search a collection of videos by text. Every video is encoded once; a query costs one short text.

An index keeps two things for each video: the unit vector that is compared with a query (VTC), and the tokens that the
matching head reads together with it (VTM). Without a trained matching head there are no tokens, and vectors alone
decide. The index also keeps where the frames of each video are, so that decoding a few of them is quick
(`VideoIndex.decode`).

The class has three parts: `opened_index` reads an index, `index_search` searches it, and this module changes it.

On disk an index is a folder: `index.json`, and shards of `features` (n, P) and `tokens` (n, 1 + N, D) of n videos with
their frame tables end to end (`tables` uint8, `table_ends` (n,)). A shard is written as soon as it is full, so that an
interrupted or killed job can be continued. Shards are memory-mapped. Tokens have the type of the model, or 8 bits
(`token_dtype`), which is chosen for a whole index.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.isolated_decoder import IsolatedDecoder
from ..data.window_choice import WindowChoice
from ..model.decoding_types import VideoLimits
from ..model.modeling_alpro import AlproPreTrainedModel
from ..trust import printable
from .index_encode import EncodedVideo, encode_videos
from .index_results import SearchResult
from .index_search import DEFAULT_RERANK, Nearest, SearchedIndex
from .index_shards import (
    MANIFEST,
    IndexFolder,
    IndexingReport,
    IndexMismatchError,
    Manifest,
    Shard,
    VideoEntry,
    VideoIndexError,
    stored,
)
from .opened_index import VideoPath

_Row = tuple[VideoEntry, torch.Tensor, torch.Tensor, bytes]  # entry, vector (P,), tokens (1 + N, D), frame table


class VideoIndex(SearchedIndex):
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
            `window_settings`. None: as the index in a folder notes, or `auto` for a new one.
        token_dtype: `float8_e4m3fn` keeps tokens in 8 bits each, which takes a quarter of the disk space of float32.
            They are rounded, so the scores of matching change a little. None: in the type of the model, or as the
            index in a folder notes.
        allow_outside: Whether videos may lie outside of `root`, by "..", as absolute paths or by links. If not, `add`
            reports such files as failed, and `search` raises an error when it finds one.

    Attributes:
        windows: How long videos are cut; None: each is one clip.
        token_dtype: Type of the tokens that are kept; None: that of the model.
        model_facts: `name`, `dtype` and `fingerprint` of the model, as in the manifest.
        video_settings: Settings of the video processor that change the pixels, as in the manifest.
        can_match: Whether the model has a trained matching head. If not, searches compare vectors alone.
        root: Folder that the paths of the videos are relative to; None: no video was added yet.
        report: Results of the last `add`.
    """

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
        token_dtype: str | None = None,
        limits: VideoLimits | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> "VideoIndex":
        """Index videos; see `add` for what happens to each.

        Args:
            model, processor, name, allow_outside, num_frames, size, window, stride, token_dtype: As in the class.
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
            "token_dtype": token_dtype,
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
                    entry = self.entry_of(file)
                except OSError as error:
                    report.failed.append((file, error.strerror or str(error)))
                    continue
                if not self.may_hold(file):
                    reason = f"it lies outside of {self.root}, the folder of this index, or is a link that leads out"
                    report.failed.append((file, f"{reason}; allow_outside=True (--allow-outside) takes it"))
                    continue
                if self.has(entry):
                    report.unchanged.append(file)
                else:
                    wanted[file] = entry
            try:
                self._encode(wanted, batch_size, shard_size, progress, limits, decoder)
            finally:
                if self.storage:
                    self.storage.write_failed(report.failed)
        return report

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the folder for writing, and read it again if another process has changed it since."""
        if self.storage is None:
            yield
            return
        with self.storage.locked():
            self.refresh()
            yield

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
            if held := self.entries_of(file.path):
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
            self._store([row for row in pending if row[0] not in self.entries_of(row[0].path)])

    def _problem(self, video: EncodedVideo, wanted: dict[Path, VideoEntry], pending: Sequence[_Row]) -> str:
        """Why a file failed, and how much of it is kept."""
        entry = wanted[video.path]
        kept = [*self.entries_of(entry.path), *(row[0] for row in pending if row[0].path == entry.path)]
        ends = [one.end for one in kept if one.end is not None]
        return f"{video.problem} (kept up to {max(ends):.1f} s)" if ends else video.problem or ""

    def _store(self, videos: Sequence["_Row"]) -> None:
        """Make one shard of some videos, and write a manifest that includes it."""
        if videos:
            number, self.next_shard = self.next_shard, self.next_shard + 1
            entries, tables = [entry for entry, *_ in videos], [table for *_, table in videos]
            features = torch.stack([feature for _, feature, _, _ in videos])
            tokens = stored(torch.stack([token for _, _, token, _ in videos]), self.token_dtype)
            if self.storage:
                shard = self.storage.write_shard(number, features, tokens, entries, tables)
            else:
                shard = Shard(len(videos), features=features, tokens=tokens, videos=entries, tables=tables)
            # The places first: interrupted between the two, these videos are encoded again next time. The other way
            # round they would be stored twice.
            for row, entry in enumerate(entries):
                self.places_of_files().setdefault(entry.path, []).append((shard, row))
            self.shards.append(shard)
        self._write()

    def _write(self) -> None:
        self.shards = [shard for shard in self.shards if len(shard)]  # an emptied shard loses its file, too
        self.blocks = None
        if self.storage and self.root is not None:
            self.storage.write_manifest(
                Manifest(
                    self.model_facts, self.video_settings, self.root, self.next_shard, self.shards, self.root_is_ours
                )
            )
            self.stamp = self.storage.stamp()

    def _forget(self, key: str) -> None:
        """Remove one video.

        Raises:
            KeyError: It is not in the index.
        """
        for shard, row in self.places_of_files().pop(key):
            shard.removed.add(row)

    def adopt(self, part: "VideoIndex") -> None:
        """Take over the shards of another index without copying them.

        Args:
            part: An index of the same model with the same root, in a folder below that of this one. If both hold a
                video, the entry of `part` counts. The manifest of `part` is deleted: it stops being an index.
        """
        assert self.storage is not None and part.storage is not None
        with self._writing():
            self.root = self.root or part.root
            # shards are not copied: rows that both indexes hold are marked as removed in the older shard
            for key in part.places_of_files().keys() & self.places_of_files().keys():
                self._forget(key)
            self.shards += part.shards
            self.places_of_files().update(part.places_of_files())
            self.next_shard += 1  # the next parts must have other names, see `part_folder`
            self._write()
        part.storage.dissolve()

    def remove(self, paths: Iterable[VideoPath]) -> None:
        """Remove videos from the index.

        Raises:
            KeyError: A video is not in the index; then nothing is removed.
        """
        gone = list(paths)
        if gone:
            with self._writing():
                keys = [self.key_of(path) for path in gone]
                for key in keys:  # all are checked before one is removed
                    if key not in self.places_of_files():
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
        videos = [(shard, row) for shard in self.shards for row in shard.live()]
        with folder.locked():
            self.storage, self.shards, self.places, self.next_shard = folder, [], {}, 0
            for start in range(0, len(videos), shard_size):
                part = videos[start : start + shard_size]  # new shards hold no removed rows
                self._store(
                    [
                        (old.entries()[row], old.vectors()[row], old.tokens_of(row)[0], old.table_of(row))
                        for old, row in part
                    ]
                )


def _folder_of(paths: Iterable[VideoPath]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([Path(os.path.abspath(path)).parent for path in paths]))


__all__ = [
    "DEFAULT_RERANK",
    "IndexMismatchError",
    "Nearest",
    "SearchResult",
    "VideoIndex",
    "VideoIndexError",
    "VideoPath",
]
