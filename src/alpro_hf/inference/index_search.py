"""Searching an index: windows by similarity, overlapping ones left out, and the best re-ranked by matching.

Neither searching nor re-ranking opens a video. A search reads the features block by block, and the tokens of the
videos that it re-ranks. It copies at most `KEPT_BYTES` into memory, however large the index is. Results have the order
of the protocol `rerank`, see `model.matching_alpro.rerank`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np
import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..model.matching_alpro import matching_problem, vtc_scores, vtm_scores
from .index_bounds import check_finite
from .index_results import Candidates, SearchResult
from .index_shards import Shard, ShardGoneError, VideoIndexError
from .opened_index import OpenedIndex, VideoPath
from .queries import Term, example, query_vector

Nearest = Callable[[torch.Tensor, int], Iterable[torch.Tensor]]

DEFAULT_RERANK = 16  # videos that the matching head reorders, if there is one


class SearchedIndex(OpenedIndex):
    """An index that is searched. Use `VideoIndex`, which has all methods."""

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
                if nearest is not None or self.storage is None or self.storage.stamp() == self.stamp:
                    raise
                self.read_again(self.storage)

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
                self.checked_path(entries[i]),
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
        ends = np.cumsum([len(shard) for shard in self.shards])  # position of the first video after each shard
        places = []
        for position in positions.tolist():
            number = int(np.searchsorted(ends, position, side="right"))
            shard = self.shards[number]
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


__all__ = ["DEFAULT_RERANK", "Nearest", "SearchedIndex"]
