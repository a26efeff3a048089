"""Search a collection of videos by text: every video is encoded once, and every query costs one short text.

An index keeps two things of each video: the unit vector that contrastive similarity (VTC) compares with a query, and
the tokens that the matching head (VTM) reads together with it; neither searching nor re-ranking opens a video again.
Beside them it keeps where the frames of each video are, so that showing some of them is quick (`VideoIndex.decode`).
How the two scores combine is the protocol `rerank` of `evaluation`: the best candidates by cosine similarity are
reordered by matching logit plus cosine similarity, and the others follow in the order of similarity.

On disk an index is a folder: `index.json`, and shards of `features` (n, P) and `tokens` (n, 1 + N, D) of n videos, and
their frame tables end to end (`tables` uint8, `table_ends` (n,)). A shard is written as soon as it is full, so that an
interrupted job, even a killed one, goes on from there. Shards are memory-mapped: a search reads the features, block by
block, and the tokens of what it re-ranks, and holds in memory no more than `KEPT_BYTES` of copies however large the
index is.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.isolated_decoder import IsolatedDecoder
from ..evaluation.protocols import vtc_scores, vtm_scores
from ..files import inside, model_fingerprint
from ..model.decoding import decode
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from .index_encode import encode_videos
from .index_shards import (
    MANIFEST,
    Block,
    IndexFolder,
    IndexingReport,
    IndexMismatchError,
    Manifest,
    Shard,
    VideoEntry,
    VideoIndexError,
    blocks_of,
)

VideoPath = str | os.PathLike[str]
_Row = tuple[VideoEntry, torch.Tensor, torch.Tensor, bytes]  # entry, vector (P,), tokens (1 + N, D), frame table
Nearest = Callable[[torch.Tensor, int], Iterable[torch.Tensor]]
_FUSED_AT_ONCE = 64

# the settings of the video processor that decide what the model sees
_VIDEO_SETTINGS = ("num_frames", "fps", "frame_sampling", "size", "resample", "image_mean", "image_std")


@dataclass(frozen=True)
class SearchResult:
    """A video found by a query.

    Args:
        rank: 1 is the best.
        path: The file.
        score: What the order is made by: `similarity`, plus the matching logit where the video was re-ranked. The
            second kind only compares with its like; re-ranked videos come before all others.
        similarity: Cosine between query and video (VTC), in [-1, 1].
        match_probability: That query and video belong together, according to the matching head (VTM), in [0, 1]; None
            where the video was not re-ranked.
    """

    rank: int
    path: Path
    score: float
    similarity: float
    match_probability: float | None = None


class VideoIndex:
    """Videos encoded by one model, to be searched by text.

    Example:
        >>> index = VideoIndex.build(model, processor, Path("holiday").glob("*.mp4"))
        >>> for result in index.search("a dog runs into the sea", top_k=3):
        ...     print(result.rank, result.path, result.match_probability)
        >>> index.save("holiday-index")

    Args:
        model: A retrieval model, on the device to compute on. It is put in evaluation mode.
        processor: Its `AlproProcessor`.
        name: What to call the model in the manifest; default where it was loaded from.
        allow_outside: Whether videos may lie outside of the common folder that an index keeps their paths relative
            to, by "..", as absolute paths or by links. If not, `add` reports such files, and such results of `search`
            are an error.
        report: What became of the videos that were added last.
    """

    def __init__(
        self,
        model: AlproForVideoTextRetrieval,
        processor: Any,
        *,
        name: str | None = None,
        allow_outside: bool = False,
    ) -> None:
        self.model, self.processor = model.eval(), processor
        self.allow_outside = allow_outside
        settings = json.loads(processor.video_processor.to_json_string())
        self._model = {
            "name": name or model.config._name_or_path,
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": model_fingerprint(model),
        }
        self._video = {key: settings.get(key) for key in _VIDEO_SETTINGS}
        self._root: Path | None = None
        self._shards: list[Shard] = []
        self._places: dict[str, tuple[Shard, int]] | None = {}  # of each path; None: not read yet
        self._blocks: list[Block] | None = None
        self._next_shard = 0  # numbers are not used twice: a reader must not find other videos under one it knows
        self._folder: IndexFolder | None = None
        self._stamp: object = None
        self.report = IndexingReport()

    @classmethod
    def build(
        cls,
        model: AlproForVideoTextRetrieval,
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
        decoder: IsolatedDecoder | None = None,
    ) -> "VideoIndex":
        """Index videos; see `add` for what happens to each.

        Args:
            directory: Folder to keep the index in, written shard by shard. One that holds an index of the same model
                is continued. None: the index stays in memory until `save`.
            root: Folder that the index notes paths relative to, if it is new; None: the one that has all videos.
            allow_outside: As in the class.
            decoder: As in `add`.

        Raises:
            IndexMismatchError: `directory` holds an index of another model.
        """
        index = cls(model, processor, name=name, allow_outside=allow_outside)
        index._root = root
        if directory is not None:
            index._folder = IndexFolder(directory)
        index.add(paths, batch_size=batch_size, shard_size=shard_size, progress=progress, decoder=decoder)
        return index

    @classmethod
    def load(
        cls,
        directory: VideoPath,
        model: AlproForVideoTextRetrieval,
        processor: Any,
        *,
        name: str | None = None,
        allow_outside: bool = False,
    ) -> "VideoIndex":
        """Open an index; what is added to it or removed is written to the folder.

        Raises:
            VideoIndexError: The folder holds no index, or a damaged one.
            IndexMismatchError: The index was made by another model, or with other frames.
        """
        index = cls(model, processor, name=name, allow_outside=allow_outside)
        index._read(IndexFolder(directory))
        return index

    def _read(self, folder: IndexFolder) -> None:
        stamp = folder.stamp()
        found = Manifest.read(folder.path)
        if found.model["dtype"] != self._model["dtype"]:
            raise IndexMismatchError(
                f"The index {folder.path} was made in {found.model['dtype']}, but the model computes in "
                f"{self._model['dtype']}. Load it with dtype={found.model['dtype']!r}, or index again elsewhere."
            )
        if found.model["fingerprint"] != self._model["fingerprint"]:
            raise IndexMismatchError(
                f"The index {folder.path} was made by the model {found.model['name']!r}, whose weights differ from "
                f"those of {self._model['name']!r}. Search with that model, or index again into a new folder."
            )
        if found.video != self._video:
            was, now = (set(map(str, video.items())) for video in (found.video, self._video))
            raise IndexMismatchError(
                f"The index {folder.path} was made from other frames, with {', '.join(sorted(was - now))}, and not "
                f"{', '.join(sorted(now - was))}. Use the processor it was made with, or index again elsewhere."
            )
        self._folder, self._model["name"], self._root = folder, found.model["name"], found.root
        self._stamp, self._next_shard = stamp, found.next_shard
        self._shards, self._places, self._blocks = found.shards, None, None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other processes from writing to the folder, and take up what they have written since we read it."""
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
        return [self._path(shard.entries()[row]) for shard in self._shards for row in shard.live()]

    def _place_of(self) -> dict[str, tuple[Shard, int]]:
        """Where each video is; changing an index needs all of them in memory, searching does not."""
        if self._places is None:
            self._places = {
                entries[row].path: (shard, row)
                for shard in self._shards
                for entries in [shard.entries()]
                for row in shard.live()
            }
        return self._places

    def _forget(self, key: str) -> None:
        """Take one video out.

        Raises:
            KeyError: It is not in.
        """
        shard, row = self._place_of().pop(key)
        shard.removed.add(row)

    @property
    def folder(self) -> Path | None:
        """Where the index is kept; None: in memory."""
        return self._folder.path if self._folder else None

    def changed_ns(self) -> int:
        """Time of the last change of a saved index, in nanoseconds."""
        assert self._folder is not None
        return (self._folder.path / MANIFEST).stat().st_mtime_ns

    def _path(self, entry: VideoEntry) -> Path:
        assert self._root is not None
        return Path(os.path.normpath(self._root / entry.path))

    def _checked_path(self, entry: VideoEntry) -> Path:
        path = self._path(entry)
        if not self._may_hold(path):
            raise VideoIndexError(
                f"The index names {path}, which lies outside of {self._root}, the folder of its videos, or is a link "
                "that leads out. If you trust it, pass allow_outside=True (--allow-outside)."
            )
        return path

    def _key(self, path: VideoPath) -> str:
        return Path(os.path.relpath(path, self._root)).as_posix()

    # ------------------------------------------------------------------------------------------------------- indexing

    def add(
        self,
        paths: Iterable[VideoPath],
        *,
        batch_size: int = 8,
        shard_size: int = 64,
        progress: bool = True,
        decoder: IsolatedDecoder | None = None,
    ) -> IndexingReport:
        """Encode videos into the index.

        A video that is already there and has the same size and time of change is left alone; a changed one is encoded
        again. A file that cannot be decoded is reported and stops nothing; an index in a folder lists such files and
        the reasons in `failed.jsonl`. What is encoded when this is interrupted is kept.

        Args:
            paths: Video files.
            batch_size: Videos encoded at a time.
            shard_size: Videos in a file of the index: what a crash can lose.
            progress: Show a bar on stderr.
            decoder: Decodes in processes of its own, so that a file that crashes or hangs FFmpeg is reported too.

        Raises:
            VideoIndexError: Another process is writing to the index, or a size is not positive.
        """
        if batch_size < 1 or shard_size < 1:
            raise VideoIndexError(f"batch_size={batch_size} and shard_size={shard_size} must be at least 1.")
        self.report = report = IndexingReport()
        files = [Path(os.path.abspath(path)) for path in dict.fromkeys(paths)]
        with self._writing():
            if self._root is None and files:
                self._root = Path(os.path.commonpath([file.parent for file in files]))
            wanted: dict[Path, VideoEntry] = {}
            for file in files:
                try:
                    stat = file.stat()
                except OSError as error:
                    report.failed.append((file, error.strerror or str(error)))
                    continue
                if not self._may_hold(file):
                    reason = f"it lies outside of {self._root}, the folder of this index, or is a link that leads out"
                    report.failed.append((file, f"{reason}; allow_outside=True (--allow-outside) takes it"))
                    continue
                entry = VideoEntry(self._key(file), stat.st_size, stat.st_mtime_ns)
                if self._holds(entry):
                    report.unchanged.append(file)
                else:
                    wanted[file] = entry
            try:
                self._encode(wanted, batch_size, shard_size, progress, decoder)
            finally:
                if self._folder:
                    self._folder.write_failed(report.failed)
        return report

    def _may_hold(self, path: Path) -> bool:
        return self.allow_outside or self._root is None or inside(path, self._root)

    def _holds(self, entry: VideoEntry) -> bool:
        """Whether this very state of a file is in the index."""
        place = self._place_of().get(entry.path)
        return place is not None and place[0].entries()[place[1]] == entry

    def _encode(
        self,
        wanted: dict[Path, VideoEntry],
        batch_size: int,
        shard_size: int,
        progress: bool,
        decoder: IsolatedDecoder | None,
    ) -> None:
        pending: list[_Row] = []
        bar = tqdm(total=len(wanted), desc="indexing", unit="video", disable=not progress)
        try:
            with closing(encode_videos(self.model, self.processor, list(wanted), batch_size, decoder)) as batches:
                for batch in batches:
                    for video in batch:
                        entry = wanted[video.path]
                        if entry.path in self._place_of():
                            self._forget(entry.path)  # a changed file must not be found by what it was
                        if video.embed is None or video.tokens is None:
                            self.report.failed.append((video.path, video.problem or ""))
                        else:
                            table = b"" if video.table is None else video.table.to_bytes()
                            pending.append((entry, video.embed, video.tokens, table))
                            self.report.indexed.append(video.path)
                    while len(pending) >= shard_size:
                        self._store(pending[:shard_size])
                        del pending[:shard_size]
                    bar.update(len(batch))
        finally:  # also when interrupted
            bar.close()
            self._store(pending)

    def _store(self, videos: Sequence["_Row"]) -> None:
        """Make one shard of some videos, and note in the folder what the index holds now."""
        if videos:
            number, self._next_shard = self._next_shard, self._next_shard + 1
            entries, tables = [entry for entry, *_ in videos], [table for *_, table in videos]
            features = torch.stack([feature for _, feature, _, _ in videos])
            tokens = torch.stack([token for _, _, token, _ in videos])
            if self._folder:
                shard = self._folder.write_shard(number, features, tokens, entries, tables)
            else:
                shard = Shard(len(videos), features=features, tokens=tokens, videos=entries, tables=tables)
            self._shards.append(shard)
            self._place_of().update({entry.path: (shard, row) for row, entry in enumerate(entries)})
        self._write()

    def _write(self) -> None:
        self._shards = [shard for shard in self._shards if len(shard)]
        self._blocks = None
        if self._folder and self._root is not None:
            self._folder.write_manifest(Manifest(self._model, self._video, self._root, self._next_shard, self._shards))
            self._stamp = self._folder.stamp()

    def adopt(self, part: "VideoIndex") -> None:
        """Make the shards of another index part of this one, where they are: nothing is copied.

        Args:
            part: An index of the same model in a folder below that of this one, with the same root. Where both know a
                video, what `part` knows of it counts. Its manifest is deleted, for it is no index of its own any more.
        """
        assert self._folder is not None and part._folder is not None
        with self._writing():
            self._root = self._root or part._root
            for key in part._place_of().keys() & self._place_of().keys():
                self._forget(key)
            self._shards += part._shards
            self._place_of().update(part._place_of())
            self._next_shard += 1  # so that the next parts have other names
            self._write()
        part._folder.dissolve()

    def missing(self) -> list[Path]:
        """Indexed files that are no longer there."""
        return [path for path in self.paths if not path.exists()]

    def remove(self, paths: Iterable[VideoPath]) -> None:
        """Take videos out of the index.

        Raises:
            KeyError: A video that is not in the index.
        """
        gone = list(paths)
        if gone:
            with self._writing():
                keys = [self._key(path) for path in gone]
                for key in keys:
                    if key not in self._place_of():
                        raise KeyError(key)
                for key in keys:
                    self._forget(key)
                self._write()

    def save(self, directory: VideoPath, *, shard_size: int = 64) -> None:
        """Write the whole index to a folder without one; later changes go there too.

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
                part = videos[start : start + shard_size]
                self._store(
                    [
                        (old.entries()[row], old.features[row], old.tokens_of(row)[0], old.table_of(row))
                        for old, row in part
                    ]
                )

    def decode(
        self, source: Any, indices: Any = None, *, decoder: IsolatedDecoder | None = None, **options: Any
    ) -> Frames:
        """Frames of an indexed video, as `decoding.decode` gives them, without listing its packets again.

        It also decodes what is not in the index, or has changed since, so it may stand wherever `decode` may, such as
        in `processor.video_processor(path, decoder=index.decode)`.

        Args:
            source, indices, options: As in `decoding.decode`.
            decoder: Decodes in a process of its own.
        """
        if isinstance(source, str | os.PathLike):
            options = {"table": self.frame_table(source)} | options
        return (decoder.decode if decoder else decode)(source, indices, **options)

    def frame_table(self, path: VideoPath) -> FrameTable | None:
        """Where the frames of a video are; None: it is not in the index, has changed, or only decoding can tell.

        Raises:
            VideoIndexError: The index is damaged.
        """
        place = self._place_of().get(self._key(path)) if self._root is not None else None
        if place is None:
            return None
        shard, row = place
        try:
            stat = os.stat(path)
        except OSError:  # whoever opens it is told
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
        self, queries: str, *, top_k: int = 10, rerank: int = 16, nearest: Nearest | None = None
    ) -> list[SearchResult]: ...
    @overload
    def search(
        self, queries: Sequence[str], *, top_k: int = 10, rerank: int = 16, nearest: Nearest | None = None
    ) -> list[list[SearchResult]]: ...
    @torch.inference_mode()
    def search(
        self,
        queries: str | Sequence[str],
        *,
        top_k: int = 10,
        rerank: int = 16,
        nearest: Nearest | None = None,
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos that texts describe, best first.

        Args:
            queries: One text, or several.
            top_k: Results of a query.
            rerank: How many of the best videos by VTC similarity the matching head reorders; 0: none (`vtc`). All
                videos (`rerank=len(index)`) is slow and looks at every pair.
            nearest: How to find candidates: `AnnSearch(index).nearest` for an approximate search among millions;
                None: by comparison with every video, as `nearest` of this class does.

        Returns:
            Results of the query, or a list of them for each of several.

        Raises:
            VideoIndexError: The index is empty, a query is blank, or a number makes no sense.
        """
        if isinstance(queries, str):
            return self.search([queries], top_k=top_k, rerank=rerank, nearest=nearest)[0]
        if not len(self):
            raise VideoIndexError("The index is empty: there is nothing to search. Add videos first.")
        if top_k < 1 or rerank < 0:
            raise VideoIndexError(f"top_k={top_k} must be at least 1 and rerank={rerank} at least 0.")
        if any(not query.strip() for query in queries):
            raise VideoIndexError("A query is blank. Describe what to look for, for instance 'a dog runs'.")
        texts = [self._encode_text(query) for query in queries]
        found = (nearest or self.nearest)(torch.cat([embed for _, embed in texts]), max(top_k, rerank))
        return [
            self._rank(text, embed[0], positions, top_k, rerank)
            for (text, embed), positions in zip(texts, found, strict=True)
        ]

    def _encode_text(self, query: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (1, L, D) on the model's device and unit vector (1, P) on the CPU; nothing is padded."""
        inputs = self.processor(text=[query], return_tensors="pt").to(self.model.device)
        text = self.model.alpro.get_text_features(inputs["input_ids"])
        return text.last_hidden_state, text.pooler_output.float().cpu()

    def features(self) -> Iterator[torch.Tensor]:
        """All unit vectors in the order of `paths`, as blocks (n, P); those of large shards are memory-mapped."""
        if self._blocks is None:
            self._blocks = blocks_of(self._shards)
        for block in self._blocks:
            yield block.features()

    def nearest(self, embeds: torch.Tensor, k: int) -> torch.Tensor:
        """The k videos (all, if there are fewer) of highest cosine similarity, by exact comparison with every one.

        Args:
            embeds: Unit vectors (n, P) of texts, on the CPU.

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
            if best.shape[1] > k:
                kept = best.topk(k, dim=1)
                best, places = kept.values, places.gather(1, kept.indices)
        return places.gather(1, best.argsort(dim=1, descending=True, stable=True))

    def _rank(
        self, text: torch.Tensor, embed: torch.Tensor, positions: torch.Tensor, top_k: int, rerank: int
    ) -> list[SearchResult]:
        ends = np.cumsum([len(shard) for shard in self._shards])
        videos = []
        for position in positions.tolist():
            number = int(np.searchsorted(ends, position, side="right"))
            shard = self._shards[number]
            videos.append((shard, shard.live_row(position - int(ends[number]) + len(shard))))
        features = torch.stack([shard.features[row] for shard, row in videos]).float()
        similarity = (features * embed).sum(dim=1)  # row by row: the same whatever else is compared in one call
        order = similarity.argsort(descending=True, stable=True)
        scores, probabilities = similarity.clone(), {}
        if rerank:
            candidates = order[:rerank]
            logits = torch.cat(
                [self._match(text, [videos[i] for i in chunk.tolist()]) for chunk in candidates.split(_FUSED_AT_ONCE)]
            )
            scores[candidates] += logits[:, 1]
            probabilities = dict(zip(candidates.tolist(), logits.softmax(dim=1)[:, 1].tolist(), strict=True))
            order = torch.cat([candidates[scores[candidates].argsort(descending=True, stable=True)], order[rerank:]])
        return [
            SearchResult(
                rank,
                self._checked_path(videos[i][0].entries()[videos[i][1]]),
                scores[i].item(),
                similarity[i].item(),
                probabilities.get(i),
            )
            for rank, i in enumerate(order[:top_k].tolist(), start=1)
        ]

    def _match(self, text: torch.Tensor, videos: Sequence[tuple[Shard, int]]) -> torch.Tensor:
        """Matching logits (n, 2) of one text (1, L, D) with n videos, whose tokens are read from the shards."""
        tokens = torch.cat([shard.tokens_of(row) for shard, row in videos])
        pairs = torch.tensor([[0, video] for video in range(len(videos))])
        return vtm_scores(self.model, text, None, tokens, pairs).cpu()
