"""Search a collection of videos by text: every video is encoded once, and every query costs one short text.

An index keeps two things of each video: the unit vector that contrastive similarity (VTC) compares with a query, and
the tokens that the matching head (VTM) reads together with it; neither searching nor re-ranking opens a video again.
How the two scores combine is the protocol `rerank` of `evaluation`: the best candidates by cosine similarity are
reordered by matching logit plus cosine similarity, and the others follow in the order of similarity.

On disk an index is a folder: `index.json`, and shards of `features` (n, P) and `tokens` (n, 1 + N, D) of n videos. A
shard is written as soon as it is full, so that an interrupted job, even a killed one, goes on from there.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from tqdm.auto import tqdm

from .evaluation import vtc_scores, vtm_scores
from .index_files import (
    MANIFEST,
    IndexFolder,
    IndexMismatchError,
    Manifest,
    Shard,
    VideoEntry,
    VideoIndexError,
    model_fingerprint,
)
from .modeling_alpro import AlproForVideoTextRetrieval
from .video_features import encode_videos

VideoPath = str | os.PathLike[str]
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


@dataclass
class IndexingReport:
    """What became of the videos given to `VideoIndex.add`; `failed` holds (path, reason)."""

    indexed: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


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
        report: What became of the videos that were added last.
    """

    def __init__(self, model: AlproForVideoTextRetrieval, processor: Any, *, name: str | None = None) -> None:
        self.model, self.processor = model.eval(), processor
        settings = json.loads(processor.video_processor.to_json_string())
        self._model = {"name": name or model.config._name_or_path, "fingerprint": model_fingerprint(model)}
        self._video = {key: settings.get(key) for key in _VIDEO_SETTINGS}
        self._root: Path | None = None
        self._entries: dict[str, VideoEntry] = {}
        self._shards: dict[int, Shard] = {}
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
    ) -> "VideoIndex":
        """Index videos; see `add` for what happens to each.

        Args:
            directory: Folder to keep the index in, written shard by shard. One that holds an index of the same model
                is continued. None: the index stays in memory until `save`.

        Raises:
            IndexMismatchError: `directory` holds an index of another model.
        """
        index = cls(model, processor, name=name)
        if directory is not None:
            index._folder = IndexFolder(directory)
        index.add(paths, batch_size=batch_size, shard_size=shard_size, progress=progress)
        return index

    @classmethod
    def load(
        cls, directory: VideoPath, model: AlproForVideoTextRetrieval, processor: Any, *, name: str | None = None
    ) -> "VideoIndex":
        """Open an index; what is added to it or removed is written to the folder.

        Raises:
            VideoIndexError: The folder holds no index, or a damaged one.
            IndexMismatchError: The index was made by another model, or with other frames.
        """
        index = cls(model, processor, name=name)
        index._read(IndexFolder(directory))
        return index

    def _read(self, folder: IndexFolder) -> None:
        stamp = folder.stamp()
        found = Manifest.read(folder.path)
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
        self._entries = {entry.path: entry for entry in found.videos}
        self._shards = {number: Shard.read(folder.shard_file(number)) for number in {e.shard for e in found.videos}}

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
        return len(self._entries)

    @property
    def paths(self) -> list[Path]:
        """The indexed files, in the order of indexing."""
        return [self._path(entry) for entry in self._entries.values()]

    def _path(self, entry: VideoEntry) -> Path:
        assert self._root is not None
        return Path(os.path.normpath(self._root / entry.path))

    def _key(self, path: VideoPath) -> str:
        return Path(os.path.relpath(path, self._root)).as_posix()

    # ------------------------------------------------------------------------------------------------------- indexing

    def add(
        self, paths: Iterable[VideoPath], *, batch_size: int = 8, shard_size: int = 64, progress: bool = True
    ) -> IndexingReport:
        """Encode videos into the index.

        A video that is already there and has the same size and time of change is left alone; a changed one is encoded
        again. A file that cannot be decoded is reported and stops nothing. What is encoded when this is interrupted is
        kept.

        Args:
            paths: Video files.
            batch_size: Videos encoded at a time.
            shard_size: Videos in a file of the index: what a crash can lose.
            progress: Show a bar on stderr.

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
                entry = VideoEntry(self._key(file), stat.st_size, stat.st_mtime_ns, shard=-1, row=-1)
                known = self._entries.get(entry.path)
                if known is not None and (known.size, known.mtime_ns) == (entry.size, entry.mtime_ns):
                    report.unchanged.append(file)
                else:
                    wanted[file] = entry
            self._encode(wanted, batch_size, shard_size, progress)
        return report

    def _encode(self, wanted: dict[Path, VideoEntry], batch_size: int, shard_size: int, progress: bool) -> None:
        pending: list[tuple[VideoEntry, torch.Tensor, torch.Tensor]] = []
        bar = tqdm(total=len(wanted), desc="indexing", unit="video", disable=not progress)
        try:
            for batch in encode_videos(self.model, self.processor, list(wanted), batch_size):
                for video in batch:
                    entry = wanted[video.path]
                    self._entries.pop(entry.path, None)  # a changed file must not be found by what it was
                    if video.embed is None or video.tokens is None:
                        self.report.failed.append((video.path, video.problem or ""))
                    else:
                        pending.append((entry, video.embed, video.tokens))
                        self.report.indexed.append(video.path)
                while len(pending) >= shard_size:
                    self._store(pending[:shard_size])
                    del pending[:shard_size]
                bar.update(len(batch))
        finally:  # also when interrupted
            bar.close()
            self._store(pending)

    def _store(self, videos: Sequence[tuple[VideoEntry, torch.Tensor, torch.Tensor]]) -> None:
        """Make one shard of some videos, and note in the folder what the index holds now."""
        if videos:
            number, self._next_shard = self._next_shard, self._next_shard + 1
            features = torch.stack([feature for _, feature, _ in videos])
            tokens = torch.stack([token for *_, token in videos])
            if self._folder:
                self._shards[number] = self._folder.write_shard(number, features, tokens)
            else:
                self._shards[number] = Shard(features, tokens)
            for row, (entry, *_) in enumerate(videos):
                self._entries[entry.path] = replace(entry, shard=number, row=row)
        self._write()

    def _write(self) -> None:
        used = {entry.shard for entry in self._entries.values()}
        self._shards = {number: shard for number, shard in self._shards.items() if number in used}
        if self._folder and self._root is not None:
            videos = list(self._entries.values())
            self._folder.write_manifest(Manifest(self._model, self._video, self._root, self._next_shard, videos))
            self._stamp = self._folder.stamp()

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
                for path in gone:
                    del self._entries[self._key(path)]
                self._write()

    def save(self, directory: VideoPath, *, shard_size: int = 64) -> None:
        """Write the whole index to a folder without one; later changes go there too.

        Raises:
            VideoIndexError: The folder already holds an index, or there is nothing to save.
        """
        folder = IndexFolder(directory)
        if (folder.path / MANIFEST).exists():
            raise VideoIndexError(f"{folder.path} already holds an index. Save into another folder.")
        if not self._entries:
            raise VideoIndexError("The index is empty: there is nothing to save.")
        videos = [(entry, self._shards[entry.shard]) for entry in self._entries.values()]
        with folder.locked():
            self._folder, self._entries, self._shards, self._next_shard = folder, {}, {}, 0
            for start in range(0, len(videos), shard_size):
                part = videos[start : start + shard_size]
                self._store([(entry, old.features[entry.row], old.tokens_of(entry.row)[0]) for entry, old in part])

    # ------------------------------------------------------------------------------------------------------ searching

    @overload
    def search(  # type: ignore[overload-overlap]  # a text is also a sequence of texts
        self, queries: str, *, top_k: int = 10, rerank: int = 16
    ) -> list[SearchResult]: ...
    @overload
    def search(self, queries: Sequence[str], *, top_k: int = 10, rerank: int = 16) -> list[list[SearchResult]]: ...
    @torch.inference_mode()
    def search(
        self, queries: str | Sequence[str], *, top_k: int = 10, rerank: int = 16
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos that texts describe, best first.

        Args:
            queries: One text, or several.
            top_k: Results of a query.
            rerank: How many of the best videos by VTC similarity the matching head reorders; 0: none (`vtc`). All
                videos (`rerank=len(index)`) is slow and looks at every pair.

        Returns:
            Results of the query, or a list of them for each of several.

        Raises:
            VideoIndexError: The index is empty, a query is blank, or a number makes no sense.
        """
        if isinstance(queries, str):
            return self.search([queries], top_k=top_k, rerank=rerank)[0]
        if not self._entries:
            raise VideoIndexError("The index is empty: there is nothing to search. Add videos first.")
        if top_k < 1 or rerank < 0:
            raise VideoIndexError(f"top_k={top_k} must be at least 1 and rerank={rerank} at least 0.")
        if any(not query.strip() for query in queries):
            raise VideoIndexError("A query is blank. Describe what to look for, for instance 'a dog runs'.")
        entries = list(self._entries.values())
        features = torch.stack([self._shards[entry.shard].features[entry.row] for entry in entries])
        return [self._search_one(query, entries, features, top_k, rerank) for query in queries]

    def _search_one(
        self, query: str, entries: list[VideoEntry], features: torch.Tensor, top_k: int, rerank: int
    ) -> list[SearchResult]:
        device = self.model.device
        inputs = self.processor(text=[query], return_tensors="pt").to(device)
        text = self.model.alpro.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        similarity = vtc_scores(text.pooler_output.cpu(), features)[0]
        order = similarity.argsort(descending=True, stable=True)[: max(top_k, rerank)]
        scores, probabilities = similarity.clone(), {}
        if rerank:
            candidates = order[:rerank]
            logits = torch.cat(
                [
                    self._match(text.last_hidden_state, inputs["attention_mask"], [entries[i] for i in chunk.tolist()])
                    for chunk in candidates.split(_FUSED_AT_ONCE)
                ]
            )
            scores[candidates] += logits[:, 1]
            probabilities = dict(zip(candidates.tolist(), logits.softmax(dim=1)[:, 1].tolist(), strict=True))
            order = torch.cat([candidates[scores[candidates].argsort(descending=True, stable=True)], order[rerank:]])
        return [
            SearchResult(rank, self._path(entries[i]), scores[i].item(), similarity[i].item(), probabilities.get(i))
            for rank, i in enumerate(order[:top_k].tolist(), start=1)
        ]

    def _match(self, text: torch.Tensor, mask: torch.Tensor, entries: Sequence[VideoEntry]) -> torch.Tensor:
        """Matching logits (n, 2) of one text (1, L, D) with n videos, whose tokens are read from the shards."""
        tokens = torch.cat([self._shards[entry.shard].tokens_of(entry.row) for entry in entries])
        pairs = torch.tensor([[0, video] for video in range(len(entries))])
        return vtm_scores(self.model, text, mask, tokens, pairs).cpu()
