"""Retrieval and question-answering metrics, and the scoring behind them.

The metrics are pure functions of scores and answers. Every number of a retrieval evaluation depends on its protocol:

- `vtc`: cosine similarity of the two towers; every clip and every text is encoded once.
- `reference`: matching score of every text-clip pair, the protocol of the paper's tables. Ranked by the log odds of a
  match, which order pairs like the probability does but do not saturate into ties.
- `rerank`: the `rerank_k` best candidates of a query by `vtc`, reordered by matching logit plus cosine similarity; the
  remaining candidates follow in the order of `vtc`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..model.modeling_alpro import AlproForVideoTextRetrieval

RetrievalProtocol = Literal["vtc", "rerank", "reference"]
_CACHE = 12 * 2**20  # bytes of activations that stay in the cache of most CPUs
_PAIRS = 256  # fused at a time where there is no such bound


@dataclass
class RetrievalStates:
    """Texts and clips, each encoded once. n rows (text, clip), v different clips.

    Args:
        row_ids: int64 (n,), place of each row in its data set.
        row_video_ids: int64 (n,), the clip of each row.
        text_embeds: (n, P) unit vectors.
        video_ids: int64 (v,), ascending.
        video_embeds: (v, P) unit vectors.
        text_states, text_mask: (n, L, D) and (n, L), what the fusion layers read; None where no matching is wanted.
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
        """int64 (n,), index into the clips."""
        return torch.searchsorted(self.video_ids, self.row_video_ids)

    def to(self, device: torch.device | str) -> "RetrievalStates":
        """The same on another device."""
        moved: dict[str, Any] = {key: None if value is None else value.to(device) for key, value in vars(self).items()}
        return RetrievalStates(**moved)


@torch.no_grad()
def vtm_scores(
    model: AlproForVideoTextRetrieval,
    text_states: torch.Tensor,
    text_mask: torch.Tensor | None,
    video_states: torch.Tensor,
    pairs: torch.Tensor,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Matching logits of chosen text-clip pairs from cached states; nothing is encoded again.

    Pairs are fused in the order of the length of their texts and then of their clips: each batch is padded to its own
    longest text only, goes without a mask where nothing is padded, and takes a clip that occurs several times through
    the projections of the first layer once. The logits are those of every pair alone, but for rounding.

    Args:
        model: In evaluation mode.
        text_states, text_mask: (texts, L, D) from `alpro.get_text_features`, and its (texts, L) mask or None.
        video_states: (videos, 1 + N, D) from `alpro.get_video_features`.
        pairs: int64 (n, 2), index of a text and of a clip.
        batch_size: Pairs fused at a time. None: 256, on a CPU as many as its cache holds the activations of.

    Returns:
        float32 (n, 2) on the model's device; column 1 = matched.
    """
    device = model.device
    logits = torch.empty(len(pairs), 2, device=device)
    pairs = pairs.to(text_states.device)
    length = torch.full((len(text_states),), text_states.shape[1])
    if text_mask is not None:  # up to the last token that counts, wherever the padding is
        length = text_mask.shape[1] - text_mask.bool().flip(1).int().argmax(dim=1).cpu()
    length_of_pair = length[pairs[:, 0].cpu()]
    order = pairs[:, 1].cpu().argsort(stable=True)
    order = order[length_of_pair[order].argsort(stable=True)]
    if batch_size is None:
        tokens = video_states.shape[1] + text_states.shape[1]
        width = model.config.text_config.intermediate_size  # of the widest activations
        batch_size = max(1, min(_PAIRS, _CACHE // (4 * width * tokens))) if device.type == "cpu" else _PAIRS
    for rows in order.split(batch_size) if len(order) else ():
        longest = int(length_of_pair[rows[-1]])
        texts, videos = pairs[rows.to(pairs.device)].unbind(dim=1)
        mask = None if text_mask is None else text_mask[texts, :longest]
        if mask is not None:
            mask = None if mask.all() else mask.to(device)
        clips, row = videos.unique(return_inverse=True)
        if len(clips) == len(videos):
            clips, row = videos, None
        states = text_states[texts, :longest].to(device), mask, video_states[clips].to(device)
        chunk = model.match(*states, video_index=None if row is None else row.to(device))
        logits[rows.to(device)] = chunk.float()
    return logits


def vtc_scores(text_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine similarities (texts, videos) of unit vectors; in float32 even under autocast, which would make ties."""
    with torch.autocast(text_embeds.device.type, enabled=False):
        return text_embeds.float() @ video_embeds.float().t()


def retrieval_scores(
    states: RetrievalStates,
    protocol: RetrievalProtocol,
    score_pairs: Callable[[torch.Tensor], torch.Tensor] | None = None,
    rerank_k: int = 16,
    prior: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all texts with all clips under a protocol (see the top of this module).

    Args:
        states: Encoded rows.
        protocol: `vtc`, `rerank` or `reference`.
        score_pairs: From int64 (n, 2) pairs to matching logits (n, 2), for instance `vtm_scores`; unused by `vtc`.
        rerank_k: Candidates that `rerank` reorders for each text and for each clip.
        prior: Whether `rerank` adds the similarity to the matching logit; without, it orders by matching alone.

    Returns:
        Two (texts, videos) matrices: to rank the clips of a text by, and the texts of a clip by.
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
    for_text = torch.zeros_like(similarity, dtype=torch.bool)
    for_text.scatter_(1, similarity.topk(min(rerank_k, videos), dim=1).indices, True)
    for_video = torch.zeros_like(for_text)
    for_video.scatter_(0, similarity.topk(min(rerank_k, texts), dim=0).indices, True)
    pairs = (for_text | for_video).nonzero()
    matched = torch.zeros_like(similarity)
    matched[pairs[:, 0], pairs[:, 1]] = score_pairs(pairs)[:, 1].to(matched.device)
    reordered = matched + similarity if prior else matched
    # cosine similarities span at most 2: this puts every other candidate behind the worst reordered one
    behind = similarity + (reordered.min() - 3)
    return torch.where(for_text, reordered, behind), torch.where(for_video, reordered, behind)


__all__ = ["RetrievalProtocol", "RetrievalStates", "retrieval_scores", "vtc_scores", "vtm_scores"]
