"""Protocols of retrieval evaluation: how texts and clips are scored.

Every number of a retrieval evaluation depends on its protocol:

- `vtc`: cosine similarity of the two towers. Every clip and every text is encoded once.
- `reference`: matching score of every text-clip pair, the protocol of the paper's tables. Pairs are ranked by the log
  odds of a match. They give the same order as the probability, which saturates into ties.
- `rerank`: the `rerank_k` best candidates of a query by `vtc` are reordered by matching logit plus cosine similarity.
  All other candidates follow in the order of `vtc`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..model.matching_alpro import most_similar, vtc_scores

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all texts with all clips under a protocol, see the top of this module.

    Args:
        states: Encoded rows.
        protocol: `vtc`, `rerank` or `reference`.
        score_pairs: From int64 (n, 2) pairs to matching logits (n, 2), for instance by `vtm_scores`. Called once, and
            not for `vtc`.
        rerank_k: Candidates that `rerank` reorders for each text and for each clip.
        prior: Whether `rerank` adds the similarity to the matching logit. If not, it orders by matching alone.

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
    for_text, for_video, matching = match_candidates(similarity, rerank_k, score_pairs)
    reordered = matching + similarity if prior else matching
    # Metrics need one score for each candidate, so the others are shifted behind the worst reordered one, in their own
    # order. Cosine similarities span at most 2, hence 3.
    behind = similarity + (reordered.min() - 3)
    return (
        behind.scatter(1, for_text, reordered.gather(1, for_text)),
        behind.t().scatter(1, for_video, reordered.t().gather(1, for_video)).t(),
    )


def match_candidates(
    similarity: torch.Tensor, k: int, score_pairs: ScorePairs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Match the k most similar candidates of every text and of every clip, each pair once.

    Args:
        similarity: (texts, videos) cosine similarities, see `vtc_scores`.
        k: Candidates of each query.
        score_pairs: As in `retrieval_scores`.

    Returns:
        int64 (texts, k), the candidates of each text, and (videos, k), those of each clip, as in `most_similar`; and
        the matching logits (texts, videos) in the dtype of `similarity`, 0 for pairs that are not candidates.
    """
    for_text, for_video = most_similar(similarity, k), most_similar(similarity.t(), k)
    wanted = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, for_text, True)
    wanted.t().scatter_(1, for_video, True)  # a view: both directions mark the same matrix
    pairs = wanted.nonzero()
    matching = torch.zeros_like(similarity)
    matching[pairs[:, 0], pairs[:, 1]] = score_pairs(pairs)[:, 1].to(matching)
    return for_text, for_video, matching


__all__ = ["RetrievalProtocol", "RetrievalStates", "ScorePairs", "match_candidates", "retrieval_scores"]
