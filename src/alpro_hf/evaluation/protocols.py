"""Protocols of retrieval evaluation: how texts and clips are scored.

Every number of a retrieval evaluation depends on its protocol:

- `vtc`: cosine similarity of the two towers. Every clip and every text is encoded once.
- `reference`: matching score of every text-clip pair, the protocol of the paper's tables. Pairs are ranked by the log
  odds of a match. They give the same order as the probability, which saturates into ties.
- `rerank`: the `rerank_k` best candidates of a query by `vtc` are reordered by matching logit plus cosine similarity.
  All other candidates follow in the order of `vtc`. With a `rerank_margin`, so do those that are less similar than the
  best one by more than this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from ..model.matching_alpro import most_similar, vtc_scores, within_margin

RetrievalProtocol = Literal["vtc", "rerank", "reference"]
ScorePairs = Callable[[torch.Tensor], torch.Tensor]  # int64 (n, 2) pairs of text and clip -> matching logits (n, 2)


@dataclass
class RetrievalStates:
    """Texts and clips, each encoded once: n rows (text, clip) and v different clips.

    Args:
        row_ids: int64 (n,), number of each row in its data set.
        row_video_ids: int64 (n,), the clip of each row.
        text_embeds: (n, P) unit vectors.
        video_ids: int64 (v,), ascending.
        video_embeds: (v, P) unit vectors.
        text_states, text_mask: (n, L, D) and (n, L), what the fusion layers read; None without matching.
        video_states: (v, 1 + N, D), or None.
    """

    row_ids: torch.Tensor
    row_video_ids: torch.Tensor
    text_embeds: torch.Tensor
    video_ids: torch.Tensor
    video_embeds: torch.Tensor
    text_states: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    video_states: torch.Tensor | None = None

    @property
    def text_to_video(self) -> torch.Tensor:
        """int64 (n,), index of the clip of each row."""
        return torch.searchsorted(self.video_ids, self.row_video_ids)

    def to(self, device: torch.device | str) -> "RetrievalStates":
        """A copy on another device."""
        moved: dict[str, Any] = {key: None if value is None else value.to(device) for key, value in vars(self).items()}
        return RetrievalStates(**moved)


def retrieval_scores(
    states: RetrievalStates,
    protocol: RetrievalProtocol,
    score_pairs: ScorePairs | None = None,
    rerank_k: int = 16,
    prior: bool = True,
    rerank_margin: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all texts with all clips under a protocol, see the top of this module.

    Args:
        states: Encoded rows.
        protocol: `vtc`, `rerank` or `reference`.
        score_pairs: From int64 (n, 2) pairs to matching logits (n, 2), for instance by `vtm_scores`. Called once, and
            not for `vtc`.
        rerank_k: Candidates that `rerank` reorders for each text and for each clip.
        prior: Whether `rerank` adds the similarity to the matching logit. If not, it orders by matching alone.
        rerank_margin: How much less similar than the best candidate of a query another one may be for `rerank` to
            reorder it; None: any.

    Returns:
        Two float32 (texts, videos) matrices: to rank the clips of a text by, and the texts of a clip by.

    Raises:
        ValueError: The protocol is unknown, or it needs `score_pairs`.
    """
    similarity = vtc_scores(states.text_embeds, states.video_embeds)
    if protocol == "vtc":
        return similarity, similarity
    if score_pairs is None:
        raise ValueError(f"The protocol {protocol!r} needs score_pairs, a function from pairs to matching logits.")
    texts, videos = similarity.shape
    if protocol == "reference":
        logits = score_pairs(torch.cartesian_prod(torch.arange(texts), torch.arange(videos)))
        log_odds = (logits[:, 1] - logits[:, 0]).view(texts, videos).to(similarity.device)
        return log_odds, log_odds
    if protocol != "rerank":
        raise ValueError(f"Unknown retrieval protocol {protocol!r}. Use vtc, rerank or reference.")
    found = match_candidates(similarity, rerank_k, score_pairs, rerank_margin)
    reordered = found.matching + similarity if prior else found.matching
    # Metrics need one score for each candidate, so the others are shifted behind the worst reordered one, in their own
    # order. Cosine similarities span at most 2, hence 3.
    behind = similarity + (reordered.min() - 3)
    return (
        torch.where(_marked(behind, found.for_text, found.near_text), reordered, behind),
        torch.where(_marked(behind.t(), found.for_video, found.near_video).t(), reordered, behind),
    )


class MatchedCandidates(NamedTuple):
    """What `match_candidates` finds for t texts and v clips.

    Args:
        for_text, for_video: int64 (t, k) and (v, k), the candidates of each text and of each clip, as in
            `most_similar`.
        near_text, near_video: bool, of the same shapes: which of them are matched, see `within_margin`.
        matching: (t, v) matching logits in the dtype of the similarity, 0 for pairs that are not matched.
    """

    for_text: torch.Tensor
    for_video: torch.Tensor
    near_text: torch.Tensor
    near_video: torch.Tensor
    matching: torch.Tensor


def match_candidates(
    similarity: torch.Tensor, k: int, score_pairs: ScorePairs, margin: float | None = None
) -> MatchedCandidates:
    """Match the k most similar candidates of every text and of every clip, each pair once.

    Args:
        similarity: (texts, videos) cosine similarities, see `vtc_scores`.
        k: Candidates of each query.
        score_pairs: As in `retrieval_scores`.
        margin: As `rerank_margin` there.
    """
    for_text, for_video = most_similar(similarity, k), most_similar(similarity.t(), k)
    near_text = within_margin(similarity, for_text, margin)
    near_video = within_margin(similarity.t(), for_video, margin)
    wanted = _marked(similarity, for_text, near_text) | _marked(similarity.t(), for_video, near_video).t()
    pairs = wanted.nonzero()
    matching = torch.zeros_like(similarity)
    matching[pairs[:, 0], pairs[:, 1]] = score_pairs(pairs)[:, 1].to(matching)
    return MatchedCandidates(for_text, for_video, near_text, near_video, matching)


def _marked(scores: torch.Tensor, candidates: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """bool, of the shape of `scores` (queries, C): which candidates (queries, k) are `near`."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, candidates, near)


__all__ = [
    "MatchedCandidates",
    "RetrievalProtocol",
    "RetrievalStates",
    "ScorePairs",
    "match_candidates",
    "retrieval_scores",
]
