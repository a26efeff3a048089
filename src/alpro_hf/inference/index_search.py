"""Searching an index: windows by similarity, neighbours joined, the best re-ranked by matching, ends trimmed.

Neither searching nor re-ranking opens a video. A search reads the features block by block, and the tokens of the
videos that it re-ranks. It copies at most `KEPT_BYTES` into memory, however large the index is. Results have the order
of the protocol `rerank`, see `model.matching_alpro.rerank`.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..data.proposals import LONGEST_JOINED, Near, proposals, trim_ends
from ..data.windows import frames_of_window
from ..model.matching_alpro import matching_problem, vtc_scores, vtm_scores
from .index_bounds import check_finite
from .index_results import Candidates, SearchResult, VideoSpan
from .index_shards import Shard, ShardGoneError, VideoEntry, VideoIndexError
from .opened_index import OpenedIndex, VideoPath
from .queries import Term, example, query_vector

Nearest = Callable[[torch.Tensor, int], Iterable[torch.Tensor]]
_Place = tuple[Shard, int]  # shard and row

DEFAULT_RERANK = 16  # videos that the matching head reorders, if there is one


@dataclass(frozen=True)
class Stages:
    """What a search does with the windows that are similar to a query, see `VideoIndex.search`."""

    top_k: int = 10
    rerank: int = 0
    per_video: int = 1
    join: bool = False
    trim: bool = False
    rerank_margin: float | None = None

    def check(self, index: "SearchedIndex") -> None:
        """Check that they can be carried out in an index.

        Raises:
            VideoIndexError: The index is empty, a number is out of range, or the model or the windows are missing that
                a stage needs.
        """
        if not len(index):
            raise VideoIndexError("The index is empty: there is nothing to search. Add videos first.")
        if self.top_k < 1 or self.rerank < 0 or self.per_video < 0:
            raise VideoIndexError(
                f"top_k={self.top_k} (--top-k) must be at least 1, rerank={self.rerank} (--rerank) and "
                f"per_video={self.per_video} (--per-video) at least 0."
            )
        if self.rerank_margin is not None and not (self.rerank and 0 <= self.rerank_margin < math.inf):
            raise VideoIndexError(
                f"rerank_margin={self.rerank_margin} (--rerank-margin) must be a number of at least 0, and belongs to "
                f"re-ranking; rerank={self.rerank} (--rerank)."
            )
        if self.rerank and (problem := matching_problem(index.model)):
            raise VideoIndexError(
                f"rerank={self.rerank} (--rerank) needs a matching head, and {problem}. Use rerank=0, or index with a "
                "model that was trained to match."
            )
        for name in ("join", "trim"):
            if getattr(self, name) and index.windows is None:
                raise VideoIndexError(
                    f"{name}=True (--{name}) needs windows, and this index was made of whole files. Index again, into "
                    "a new folder, with --window auto."
                )


@dataclass(frozen=True)
class Found:
    """The windows of one index that are similar to a query.

    Args:
        index: The index.
        positions: Of the windows, in the order of `moments`.
        places: Shard and row of each.
        entries: What each is.
        spans: File, start and end of each; of a proposal, those of its windows together.
        similarity: float32 (n,), those to the query.
    """

    index: "SearchedIndex"
    positions: list[int]
    places: list[_Place]
    entries: list[VideoEntry]
    spans: list[VideoSpan]
    similarity: torch.Tensor


class SearchedIndex(OpenedIndex):
    """An index that is searched. Use `VideoIndex`, which has all methods."""

    @overload
    def search(  # type: ignore[overload-overlap]  # a text is also a sequence of texts
        self,
        queries: str,
        *,
        top_k: int = 10,
        rerank: int | None = None,
        rerank_margin: float | None = None,
        per_video: int = 1,
        join: bool = False,
        trim: bool = False,
        nearest: Nearest | None = None,
    ) -> list[SearchResult]: ...

    @overload
    def search(
        self,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        rerank: int | None = None,
        rerank_margin: float | None = None,
        per_video: int = 1,
        join: bool = False,
        trim: bool = False,
        nearest: Nearest | None = None,
    ) -> list[list[SearchResult]]: ...

    def search(
        self,
        queries: str | Sequence[str],
        *,
        top_k: int = 10,
        rerank: int | None = None,
        rerank_margin: float | None = None,
        per_video: int = 1,
        join: bool = False,
        trim: bool = False,
        nearest: Nearest | None = None,
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos that texts describe, or moments of long videos, best first.

        Of windows that overlap by more than half (intersection over union), only the most similar one counts.

        Args:
            queries: One text, or several.
            top_k: Results for each query.
            rerank: How many of the best videos or moments by VTC similarity the matching head reorders; 0: none
                (`vtc`). `rerank=len(index)` matches all, which is slow. None: 16, or 0 if the model cannot match.
            rerank_margin: Of these, leave out those that are less similar than the best one by more than this. They
                follow behind in the order of similarity. None: leave out none.
            per_video: Results of one video; with 1, each video comes once, at its best moment. 0: any number.
            join: Join neighbouring windows of about the same similarity to one moment, see `join_windows`. It is
                re-ranked by its most similar window.
            trim: Cut off the ends of a moment where the windows around it are less similar, see `trim_ends`.
            nearest: Finds candidates, as the method `nearest` does: `AnnSearch(index).nearest` for an approximate
                search among millions. None: exact comparison with every video.

        Returns:
            The results of the query; for several queries a list of such lists.

        Raises:
            VideoIndexError: The index is empty, a query is blank, a number is out of range, `rerank` is above 0 and
                the model has no trained matching head, `rerank_margin` is there without it, or `join` or `trim` and
                the index has no windows.
        """
        if rerank is None:
            rerank = DEFAULT_RERANK if self.can_match else 0
        stages = Stages(top_k, rerank, per_video, join, trim, rerank_margin)
        found = search_texts([self], [queries] if isinstance(queries, str) else queries, stages, nearest)
        return found[0] if isinstance(queries, str) else found

    def search_like(
        self,
        *terms: Term | VideoPath,
        top_k: int = 10,
        per_video: int = 1,
        join: bool = False,
        trim: bool = False,
        nearest: Nearest | None = None,
        decoder: IsolatedDecoder | None = None,
    ) -> list[SearchResult]:
        """Find the videos that are like examples, or like a sum of texts and examples, best first.

        Results are in the order of similarity (`vtc`). The matching head reads one text, so nothing is re-ranked.

        Args:
            terms: Names of videos or pictures, such as `"clip.mp4"`, `"clip.mp4@00:12-00:20"` or `"photo.jpg"`; or
                terms, such as those of `queries.parse_terms`.
            top_k, per_video, join, trim, nearest: As in `search`.
            decoder: Decodes the examples in a process of its own.

        Raises:
            QueryError, SpanError, VideoDecodeError: As `queries.query_vector`.
            VideoIndexError: As in `search`.
        """
        return search_terms([self], terms, Stages(top_k, 0, per_video, join, trim), nearest, decoder)

    @torch.inference_mode()
    def encode_text(self, query: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (1, L, D) of a text on the model's device and its unit vector (1, P) on the CPU.

        Queries are encoded one by one: a query has the same scores whatever other queries are asked with it.
        """
        inputs = self.processor(text=[query], return_tensors="pt").to(self.model.device)
        text = self.model.base_model.get_text_features(inputs["input_ids"])
        return text.last_hidden_state, text.pooler_output.float().cpu()

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

    def find(self, embed: torch.Tensor, positions: torch.Tensor, stages: Stages, nearest: Nearest) -> Found:
        """The windows that are similar to a query, as many as are needed for its results.

        Args:
            embed: Its unit vector (1, P).
            positions: int64 (n,), the nearest windows, as many as `stages` asks for.
            stages: What is done with them.
            nearest: Finds more of them.
        """
        count = wanted = max(stages.top_k, stages.rerank)
        places_of = _Places(self.shards)
        while True:
            numbers: list[int] = positions.tolist()
            places = [places_of[position] for position in numbers]
            entries = [shard.entries()[row] for shard, row in places]
            similarity = _similarity(places, embed)
            spans = [self._span(entry) for entry in entries]
            kept = list(range(len(numbers)))
            if stages.join:
                kept, spans = self._joined(numbers, entries, similarity, embed, places_of)
            chosen = similarity[torch.tensor(kept, dtype=torch.long)]
            found = Candidates.of([spans[i] for i in kept], chosen)
            if found.suffice(wanted, stages.top_k, stages.per_video) or len(numbers) < count or count >= len(self):
                of_kept = [kept[place] for place in found.kept]
                return Found(
                    self,
                    [numbers[i] for i in of_kept],
                    [places[i] for i in of_kept],
                    [entries[i] for i in of_kept],
                    [spans[i] for i in of_kept],
                    chosen[torch.tensor(found.kept, dtype=torch.long)],
                )
            count *= 4  # windows that overlap, or are of one video, have taken the places of others
            [positions] = nearest(embed, count)

    def _span(self, entry: VideoEntry) -> VideoSpan:
        # the whole path: two indexes may have files of the same name, and the same file
        return str(self.path_of(entry)), *entry.span[1:]

    def _joined(
        self,
        numbers: Sequence[int],
        entries: Sequence[VideoEntry],
        similarity: torch.Tensor,
        embed: torch.Tensor,
        places_of: "_Places",
    ) -> tuple[list[int], list[VideoSpan]]:
        """Which windows remain when neighbours are joined, by their places in `numbers`, and the spans of all."""
        assert self.windows is not None
        longest = LONGEST_JOINED * self.windows.longest
        place_of = {number: place for place, number in enumerate(numbers)}
        order = similarity.argsort(descending=True, stable=True).tolist()
        spans = [self._span(entry) for entry in entries]
        kept = [place for place in order if entries[place].end is None]  # whole files have no neighbours
        windows = [numbers[place] for place in order if entries[place].end is not None]
        for number, start, end in proposals(windows, lambda one: self._near(one, longest, embed, places_of), longest):
            place = place_of[number]
            spans[place] = (spans[place][0], start, end)
            kept.append(place)
        return kept, spans

    def _near(self, position: int, reach: float, embed: torch.Tensor, places_of: "_Places") -> Near:
        """The windows of the same file that lie within some seconds of one of them, and their similarities."""
        shard, row = places_of[position]
        centre = shard.entries()[row]
        assert centre.start is not None and centre.end is not None and self.windows is not None
        # windows are stored in the order of their ends, which the longest one bounds in both directions
        first, last = centre.start - reach, centre.end + reach + self.windows.longest
        found: dict[int, tuple[_Place, float, float]] = {}
        for step in (-1, 1):
            at = position if step < 0 else position + 1
            while 0 <= at < len(places_of):
                shard, row = places_of[at]
                entry = shard.entries()[row]
                if entry.version != centre.version or entry.start is None or entry.end is None:
                    break
                if entry.end < first or entry.end > last:
                    break
                if entry.start <= centre.end + reach:
                    found[at] = ((shard, row), entry.start, entry.end)
                at += step
        numbers = sorted(found)
        similarity = _similarity([found[number][0] for number in numbers], embed)
        return Near(numbers, [found[number][1:] for number in numbers], similarity.tolist())

    def trimmed(self, position: int, span: VideoSpan, embed: torch.Tensor) -> tuple[float, float]:
        """Start and end of a moment without the ends where the windows around it are less similar.

        Args:
            position: Of its most similar window.
            span: File, start and end of the moment.
            embed: Unit vector (1, P) of the query.
        """
        near = self._near(position, span[2] - span[1], embed, _Places(self.shards))
        return trim_ends(near.spans, near.similarity, *span[1:])

    def sampled(self) -> tuple[int, float] | None:
        """How the frames of windows are chosen, see `SearchResult`."""
        if self.windows is None:
            return None
        count = frames_of_window(self.processor, self.windows)
        return count, self.windows.spacing(count)

    def match(self, text: torch.Tensor, videos: Sequence[_Place]) -> torch.Tensor:
        """Matching logits (n, 2) of one text (1, L, D) with n videos, whose tokens are read from the shards."""
        each = [shard.tokens_of(row) for shard, row in videos]
        if len({tokens.shape for tokens in each}) > 1:
            raise VideoIndexError("The videos of the index have different numbers of tokens. Index them again.")
        pairs = torch.tensor([[0, video] for video in range(len(videos))])
        logits = vtm_scores(self.model, text, None, torch.cat(each).to(text.dtype), pairs)
        try:
            check_finite("the scores of the matching head", logits)  # numbers in tokens may be too large for it
        except ValueError as error:
            raise VideoIndexError(f"The index {self.folder} is damaged ({error}). Index again.") from error
        return logits


class _Places(Sequence[_Place]):
    """Shard and row of each position in the order of `moments`."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])  # position of the first video after each shard

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, position: int) -> _Place: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[_Place]: ...
    def __getitem__(self, position: int | slice) -> _Place | Sequence[_Place]:
        if isinstance(position, slice):
            return [self[one] for one in range(*position.indices(len(self)))]
        number = int(np.searchsorted(self._ends, position, side="right"))
        shard = self._shards[number]
        return shard, shard.live_row(position - int(self._ends[number]) + len(shard))


def _similarity(places: Sequence[_Place], embed: torch.Tensor) -> torch.Tensor:
    """float32 (n,), the cosine similarities of some windows to the unit vector (1, P) of a query."""
    # not a matrix product, whose last bits would depend on the other videos: a video has the same similarity
    # whether candidates came from an exact or an approximate search
    vectors = torch.stack([shard.vectors()[row] for shard, row in places]).float()
    return (vectors * embed[0]).sum(dim=1)


@torch.inference_mode()
def search_texts(
    indexes: Sequence[SearchedIndex], queries: Sequence[str], stages: Stages, nearest: Nearest | None = None
) -> list[list[SearchResult]]:
    """Search one or several indexes of one model for texts, as if they were one; see `VideoIndex.search`.

    Args:
        indexes: One or more. `nearest` belongs to a single one.
        queries: Texts.
        stages: What is done with the windows that are similar.
    """
    for index in indexes:
        stages.check(index)
    if any(not query.strip() for query in queries):
        raise VideoIndexError("A query is blank. Describe what to look for, for instance 'a dog runs'.")
    return _results(indexes, [indexes[0].encode_text(query) for query in queries], stages, nearest)


@torch.inference_mode()
def search_terms(
    indexes: Sequence[SearchedIndex],
    terms: Sequence[Term | VideoPath],
    stages: Stages,
    nearest: Nearest | None = None,
    decoder: IsolatedDecoder | None = None,
) -> list[SearchResult]:
    """Search one or several indexes of one model for examples and sums, as if they were one; see `search_like`."""
    for index in indexes:
        stages.check(index)
    read = [term if isinstance(term, Term) else example(os.fspath(term)) for term in terms]
    embed = query_vector(indexes[0].model, indexes[0].processor, read, decoder)[None]
    [results] = _results(indexes, [(embed, embed)], stages, nearest)  # without re-ranking, no tokens are read
    return results


def _results(
    indexes: Sequence[SearchedIndex],
    queries: Sequence[tuple[torch.Tensor, torch.Tensor]],
    stages: Stages,
    nearest: Nearest | None,
) -> list[list[SearchResult]]:
    """The results of queries, of which tokens (1, L, D) and unit vector (1, P) are given."""
    embeds = torch.cat([embed for _, embed in queries])
    wanted = max(stages.top_k, stages.rerank)  # re-ranking may bring a video to the top that would have been cut off
    while True:
        try:
            finders = [nearest or index.nearest for index in indexes]
            positions = [finder(embeds, wanted) for finder in finders]
            return [
                _ranked(
                    [
                        index.find(embed, near, stages, finder)
                        for index, near, finder in zip(indexes, each, finders, strict=True)
                    ],
                    text,
                    embed,
                    stages,
                )
                for (text, embed), *each in zip(queries, *positions, strict=True)
            ]
        except ShardGoneError:
            # another process may have removed videos; an approximate index counts those that there were
            changed = [] if nearest is not None else [index.refresh() for index in indexes]
            if not any(changed):
                raise
            for index in indexes:  # it may be empty now
                stages.check(index)


def _ranked(found: Sequence[Found], text: torch.Tensor, embed: torch.Tensor, stages: Stages) -> list[SearchResult]:
    """The results of one query from what was found in each index."""
    owners = [(one, place) for one in found for place in range(len(one.spans))]
    candidates = Candidates.of(
        [one.spans[place] for one, place in owners], torch.cat([one.similarity for one in found])
    )

    def match(kept: torch.Tensor) -> torch.Tensor:
        chosen = [owners[i] for i in kept.tolist()]
        logits: list[torch.Tensor] = [torch.empty(0)] * len(chosen)
        for one in found:
            own = [number for number, (owner, _) in enumerate(chosen) if owner is one]
            if own:
                rows = one.index.match(text, [one.places[chosen[number][1]] for number in own])
                for number, row in zip(own, rows, strict=True):
                    logits[number] = row
        return torch.stack(logits)

    results = []
    ranked = candidates.rank(stages.rerank, stages.per_video, match, stages.rerank_margin)[: stages.top_k]
    for rank, (i, score, similarity, probability) in enumerate(ranked, start=1):
        one, place = owners[i]
        entry, span = one.entries[place], one.spans[place]
        start, end = (None, None) if entry.end is None else span[1:]
        if stages.trim and end is not None:
            start, end = one.index.trimmed(one.positions[place], span, embed)
        path, folder = one.index.checked_path(entry), one.index.folder
        sampled = None if end is None else one.index.sampled()
        results.append(SearchResult(rank, path, score, similarity, probability, start, end, folder, sampled))
    return results


__all__ = ["DEFAULT_RERANK", "Found", "Nearest", "SearchedIndex", "Stages", "search_terms", "search_texts"]
