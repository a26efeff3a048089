"""Compare encoded texts and clips: features of clips, matching logits from cached states, the order of re-ranking.

Training, evaluation, the video index and the pipelines all use these functions, so that a score and an order mean the
same everywhere. Retrieval with ALPRO has two stages (section 3.2 of the paper). The two towers give unit vectors,
whose cosine similarity (VTC) is cheap. The fusion layers with the matching head (VTM) read the tokens of both, at the
cost of one forward pass for each pair. Re-ranking applies the second stage to the best candidates of the first.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers.utils.generic import maybe_autocast

from .wrappers_alpro import plain_model

_CACHE = 12 * 2**20  # bytes of activations that stay in the cache of most CPUs
_PAIRS = 256  # fused at a time where there is no such bound
_CANDIDATES = 64  # whose tokens `rerank` asks for at a time


def matching_problem(model: Any) -> str | None:
    """Why a model must not rank by its matching head. Everything that re-ranks asks here first.

    Args:
        model: Any ALPRO model, also of the code that comes with a checkpoint.

    Returns:
        The end of a sentence such as "rerank=2 needs a matching head, and ..."; None: the matching head may rank.
    """
    text = model.config.text_config
    if not hasattr(model, "vtm_head"):
        return f"{type(model).__name__} has none"
    if text.fusion_layer >= text.num_hidden_layers:
        return "the one of a model without fusion layers does not read text and video together"
    # the code of an older checkpoint has no such field
    if getattr(model.config, "matching_trained", None) is False:
        # what is in the folder, which may be another class than the one it was loaded as
        holds = ", ".join(model.config.architectures or ()) or type(model).__name__
        where = f"{model.name_or_path!r} holds {holds}" if model.name_or_path else f"this is a new {holds}"
        return f"{where}, which has no trained matching head (config.matching_trained is False)"
    return None


class EncodedClip(NamedTuple):
    """Features of one clip, on the model's device.

    Args:
        embed: float32 (P,), the unit vector that is compared with texts.
        tokens: (1 + N, D) in the model's dtype, what the fusion layers read.
    """

    embed: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def encode_clips(model: Any, clips: torch.Tensor | Sequence[torch.Tensor]) -> list[EncodedClip]:
    """Encode clips with the video tower, in batches of clips that have one shape.

    Consecutive clips of the same shape form a batch. Shapes differ where frames are sampled by frame rate. Such clips
    are not padded, because the video tower has no mask for frames.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode.
        clips: One batch (n, T, 3, H, W), or a list of clips (T, 3, H, W). They are moved to the model's device, and
            the model casts them to its own dtype.

    Returns:
        One `EncodedClip` for each clip, in their order.
    """
    # a batch is passed on as it is: stacking its clips again would copy all pixels
    batches = [clips] if isinstance(clips, torch.Tensor) else [torch.stack(run) for run in _runs_of_one_shape(clips)]
    model = plain_model(model)
    encoded: list[EncodedClip] = []
    for batch in batches:
        output = model.base_model.get_video_features(batch.to(model.device))
        encoded += map(EncodedClip, output.pooler_output.float(), output.last_hidden_state)
    return encoded


def _runs_of_one_shape(clips: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    return [list(run) for _, run in groupby(clips, key=lambda clip: clip.shape)]


def vtc_scores(text_embeds: torch.Tensor, video_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine similarities of unit vectors.

    Args:
        text_embeds, video_embeds: (texts, P) and (videos, P), any floating point type.

    Returns:
        (texts, videos), float32, or float64 if a vector is. Half precision, which autocast would choose, has so few
        digits that different videos would tie.
    """
    with maybe_autocast(text_embeds.device.type, enabled=False):
        return at_least_float32(text_embeds) @ at_least_float32(video_embeds).t()


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Cast half precision to float32, and leave float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def vtm_scores(
    model: Any,
    text_states: torch.Tensor,
    text_mask: torch.Tensor | None,
    video_states: torch.Tensor,
    pairs: torch.Tensor,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Matching logits of chosen text-clip pairs from cached states. Nothing is encoded again.

    Pairs are fused in the order of the lengths of their texts, and among texts of one length in the order of clips.
    Each batch is padded only to its own longest text and has no mask if nothing is padded. A clip that occurs several
    times in a batch passes the projections of the first fusion layer once. Apart from rounding, the logits are those
    of each pair alone.

    Args:
        model: An ALPRO model with a matching head, in evaluation mode.
        text_states, text_mask: (texts, L, D) from `alpro.get_text_features`, and its (texts, L) mask or None.
        video_states: (videos, 1 + N, D) from `alpro.get_video_features`.
        pairs: int64 (n, 2), index of a text and of a clip.
        batch_size: Pairs fused at a time. None: 256, and on a CPU no more than its cache holds the activations of.

    Returns:
        float32 (n, 2) on the model's device; column 1 = matched.
    """
    model = plain_model(model)
    device = model.device
    logits = torch.empty(len(pairs), 2, device=device)
    pairs = pairs.to(text_states.device)
    length = torch.full((len(text_states),), text_states.shape[1])
    if text_mask is not None:
        # the place of the last token that counts: a mask may also have zeros at the left
        length = text_mask.shape[1] - text_mask.bool().flip(1).int().argmax(dim=1).cpu()
    length_of_pair = length[pairs[:, 0].cpu()]
    # two stable sorts: by length, and by clip among equal lengths
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
        if len(clips) == len(videos):  # no clip to share; `unique` has sorted them, the pairs have another order
            clips, row = videos, None
        states = text_states[texts, :longest].to(device), mask, video_states[clips].to(device)
        chunk = model.match(*states, video_index=None if row is None else row.to(device))
        logits[rows.to(device)] = chunk.float()
    return logits


def most_similar(similarity: torch.Tensor, k: int) -> torch.Tensor:
    """The candidates that re-ranking reorders: the k most similar ones of each query.

    Args:
        similarity: (..., C), cosine similarities of queries with C candidates.
        k: How many; all, if there are fewer.

    Returns:
        int64 (..., min(k, C)), most similar first. Of equally similar candidates the first one leads.
    """
    # `topk` would choose among equals arbitrarily; `contiguous` releases the rest of the full order
    return similarity.argsort(dim=-1, descending=True, stable=True)[..., :k].contiguous()


def within_margin(similarity: torch.Tensor, candidates: torch.Tensor, margin: float | None) -> torch.Tensor:
    """Which candidates are about as similar as the best one, so that matching may put them first.

    Args:
        similarity: (..., C), cosine similarities of queries with C candidates.
        candidates: int64 (..., k), those of each query, most similar first.
        margin: How much less similar than the best one, at least 0; None: any.

    Returns:
        bool (..., k). Those that count come first, and the best one always counts.
    """
    if margin is None:
        return torch.ones_like(candidates, dtype=torch.bool)
    chosen = similarity.gather(-1, candidates)
    return chosen >= chosen[..., :1] - margin


def rerank_order(similarity: torch.Tensor, scores: torch.Tensor, k: int) -> torch.Tensor:
    """The order of re-ranking: the k most similar candidates by their scores, then all others by similarity.

    Args:
        similarity: (C,), cosine similarities of one query with C candidates.
        scores: (C,), what the k most similar candidates are reordered by; other entries do not count.
        k: How many candidates are reordered.

    Returns:
        int64 (C,), best candidate first. Ties keep the order of similarity.
    """
    order = most_similar(similarity, len(similarity))
    best, others = order[:k], order[k:]
    return torch.cat([best[scores[best].argsort(descending=True, stable=True)], others])


class Reranked(NamedTuple):
    """Candidates of one query, re-ranked.

    Args:
        order: int64 (C,), best candidate first.
        scores: float32 (C,), matching logit plus similarity where a candidate was matched, else the similarity. The
            two kinds cannot be compared with each other, hence `order`.
        probabilities: Candidate -> probability of a match in [0, 1], of those that were matched.
    """

    order: torch.Tensor
    scores: torch.Tensor
    probabilities: dict[int, float]


def rerank(
    similarity: torch.Tensor,
    k: int,
    match: Callable[[torch.Tensor], torch.Tensor],
    margin: float | None = None,
) -> Reranked:
    """Re-rank the candidates of one query: the protocol `rerank` of the evaluation, for one row of its matrix.

    Args:
        similarity: float32 (C,) on the CPU, cosine similarities of the query with C candidates.
        k: How many of the most similar candidates are matched; 0: none.
        match: From candidates int64 (n,) to matching logits (n, 2), such as those of `vtm_scores`. It is called with
            at most 64 candidates at a time, so that their tokens need not be in memory together.
        margin: Of the k candidates, those that are less similar than the best one by more than this are not matched,
            see `within_margin`.
    """
    scores = similarity.clone()
    probabilities: dict[int, float] = {}
    best = most_similar(similarity, k)
    best = best[within_margin(similarity, best, margin)]
    for chunk in best.split(_CANDIDATES) if len(best) else ():
        logits = match(chunk).float().cpu()
        scores[chunk] += logits[:, 1]
        probabilities |= zip(chunk.tolist(), logits.softmax(dim=1)[:, 1].tolist(), strict=True)
    return Reranked(rerank_order(similarity, scores, len(best)), scores, probabilities)
