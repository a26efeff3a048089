"""What a search finds: results, and how they are chosen from the most similar windows of videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.windows import suppress
from ..model.decoding import decode
from ..model.decoding_types import Frames, VideoInfo, middles_of
from ..model.matching_alpro import rerank

VideoSpan = tuple[str, float, float]  # video, start and end


@dataclass(frozen=True)
class SearchResult:
    """A video, or a moment of a long one, found by a query.

    Args:
        rank: 1 is the best.
        path: The file.
        score: `similarity`, plus the matching logit if the video was re-ranked. Only scores of the same kind can be
            compared; re-ranked videos come before all others.
        similarity: Cosine similarity of query and video (VTC), in [-1, 1].
        match_probability: Probability that query and video belong together, from the matching head (VTM), in [0, 1];
            None if the video was not re-ranked.
        start, end: Seconds of the moment; None for a whole file.
        index: Folder of the index that holds it; None: the index is in memory. Not compared.
        sampled: Of a window: how many frames the index was made of, and the seconds between the frames of the video
            that these were chosen from. With as many, `frames` shows exactly those. Not compared.
    """

    rank: int
    path: Path
    score: float
    similarity: float
    match_probability: float | None = None
    start: float | None = None
    end: float | None = None
    index: Path | None = field(default=None, compare=False)
    sampled: tuple[int, float] | None = field(default=None, compare=False, repr=False)

    def frames(self, num_frames: int, **options: Any) -> Frames:
        """Decode frames of it, at the middles of equal parts of its time.

        Args:
            num_frames: How many.
            options: Further arguments of `decoding.decode`, such as `height` and `width`.
        """
        return decode(self.path, self.indices(num_frames), **options)

    def indices(self, num_frames: int) -> Callable[[VideoInfo], list[int]]:
        """A function from the description of the video to the numbers of such frames, for `decoding.decode`."""

        def choose(info: VideoInfo) -> list[int]:
            start = 0.0 if self.start is None else self.start
            middles = middles_of(start, info.duration if self.end is None else self.end, num_frames)
            if self.sampled is None or num_frames != self.sampled[0]:
                return info.frames_at(middles)
            return [_fed(info, self.sampled[1], middle) for middle in middles]

        return choose


def _fed(info: VideoInfo, spacing: float, middle: float) -> int:
    """The last frame at or before a time of those that windows are cut from, see `data.windows.stream_windows`."""
    step = int(middle / spacing)
    # the frame of the next step may have begun before the time, too, and stays
    before, after = info.frames_at([step * spacing, (step + 1) * spacing])
    times = info.frame_times
    begins = times[after] if times is not None else after / info.fps if info.fps else 0.0
    return after if begins <= middle else before


@dataclass(frozen=True)
class Candidates:
    """Windows that are similar to a query, without those that overlap with a more similar one.

    Args:
        spans: Of all windows that were compared.
        similarity: float32 (n,), theirs.
        kept: The windows that remain, by their places, most similar first.
    """

    spans: Sequence[VideoSpan]
    similarity: torch.Tensor
    kept: list[int]

    @classmethod
    def of(cls, spans: Sequence[VideoSpan], similarity: torch.Tensor) -> "Candidates":
        """Leave out windows that overlap with a more similar one."""
        order = similarity.argsort(descending=True, stable=True).tolist()
        return cls(spans, similarity, [order[place] for place in suppress([spans[i] for i in order])])

    def suffice(self, wanted: int, top_k: int, per_video: int) -> bool:
        """Whether there are as many as wanted, and `top_k` of them with at most `per_video` of one video."""
        spans = [self.spans[i] for i in self.kept]
        return len(spans) >= wanted and len(suppress(spans, per_video=per_video)) >= top_k

    def rank(
        self,
        count: int,
        per_video: int,
        match: Callable[[torch.Tensor], torch.Tensor],
        margin: float | None = None,
    ) -> list[tuple[int, float, float, float | None]]:
        """Put the best into the order of the matching head.

        Args:
            count: How many of them it reorders; 0: none.
            per_video: Windows of one video, the best ones; 0: any number.
            match: Matching logits (n, 2) of the windows at some places.
            margin: How much less similar than the best one they may be to be reordered; None: any.

        Returns:
            Place, score, similarity and matching probability of each, best first; see `SearchResult`.
        """
        kept = torch.tensor(self.kept)
        similarity = self.similarity[kept]
        found = rerank(similarity, count, lambda places: match(kept[places]), margin)
        order = found.order.tolist()
        best = suppress([self.spans[self.kept[i]] for i in order], per_video=per_video)
        return [
            (self.kept[i], found.scores[i].item(), similarity[i].item(), found.probabilities.get(i))
            for i in (order[place] for place in best)
        ]


__all__ = ["Candidates", "SearchResult", "VideoSpan"]
