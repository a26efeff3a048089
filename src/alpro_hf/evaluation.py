"""Retrieval and question-answering metrics, and the scoring behind them.

The metrics are pure functions of scores and answers. Every number of a retrieval evaluation depends on its protocol:

- `vtc`: cosine similarity of the two towers; every clip and every text is encoded once.
- `reference`: matching score of every text-clip pair, the protocol of the paper's tables. Ranked by the log odds of a
  match, which order pairs like the probability does but do not saturate into ties.
- `rerank`: the `rerank_k` best candidates of a query by `vtc`, reordered by matching logit plus cosine similarity; the
  remaining candidates follow in the order of `vtc`.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from .modeling_alpro import AlproForVideoTextRetrieval, AlproModel, AlproPreTrainedModel

RetrievalProtocol = Literal["vtc", "rerank", "reference"]
RECALL_AT = (1, 5, 10)
_CACHE = 12 * 2**20  # bytes of activations that stay in the cache of most CPUs
_PAIRS = 256  # fused at a time where there is no such bound
_CHUNK = 1024  # queries ranked at a time, so that comparisons need little memory next to the scores


def retrieval_metrics(
    scores: torch.Tensor | np.ndarray,
    text_to_video: torch.Tensor | np.ndarray | Sequence[int],
    scores_v2t: torch.Tensor | np.ndarray | None = None,
) -> dict[str, float]:
    """Recall and ranks of text-to-video (`t2v_*`) and video-to-text (`v2t_*`) retrieval.

    The rank of a target is its expected place if candidates of equal score come in random order: 1 + the number of
    better candidates + half the number of equal ones. So a model that gives every pair the same score gets no recall.
    A video with several captions is found by the best of them, and its other captions are not competitors.

    Args:
        scores: (texts, videos), higher is better.
        text_to_video: int64 (texts,), column of the video that each text describes.
        scores_v2t: (texts, videos) to rank texts by, where the protocol scores the two directions differently.

    Returns:
        For both directions `r1`, `r5`, `r10` in percent, `median_rank` and `mean_rank` (best: 1).

    Raises:
        ValueError: shapes that do not fit, a target outside the videos, or scores that are not numbers.
    """
    metrics = {}
    for direction, ranks in zip(("t2v", "v2t"), retrieval_ranks(scores, text_to_video, scores_v2t), strict=True):
        for k in RECALL_AT:
            metrics[f"{direction}_r{k}"] = 100.0 * (ranks <= k).double().mean().item()
        metrics[f"{direction}_median_rank"] = float(np.median(ranks.cpu().numpy()))
        metrics[f"{direction}_mean_rank"] = ranks.mean().item()
    return metrics


def retrieval_ranks(
    scores: torch.Tensor | np.ndarray,
    text_to_video: torch.Tensor | np.ndarray | Sequence[int],
    scores_v2t: torch.Tensor | np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks behind `retrieval_metrics`, which takes the same arguments and explains them.

    Returns:
        float64 (texts,), the rank of the video of each text, and (described videos,), the rank of the best caption of
        each video that has one, in ascending order of videos; on the device of the scores.

    Raises:
        ValueError: shapes that do not fit, a target outside the videos, or scores that are not numbers.
    """
    t2v = torch.as_tensor(scores)
    v2t = t2v if scores_v2t is None else torch.as_tensor(scores_v2t)
    targets = torch.as_tensor(text_to_video, device=t2v.device).long()
    if t2v.ndim != 2 or t2v.shape != v2t.shape or targets.shape != t2v.shape[:1] or not len(targets):
        raise ValueError(
            f"scores must be (texts, videos) and text_to_video (texts,), not empty; received {tuple(t2v.shape)}, "
            f"{tuple(v2t.shape)} and {tuple(targets.shape)}."
        )
    if targets.min() < 0 or targets.max() >= t2v.shape[1]:
        raise ValueError(
            f"text_to_video points at videos {int(targets.min())} to {int(targets.max())}, but scores has "
            f"{t2v.shape[1]} videos."
        )
    if torch.isnan(t2v).any() or torch.isnan(v2t).any():
        raise ValueError("scores contains NaN, which has no rank. Look for a diverged training or a broken clip.")

    text_ranks = []
    for rows, target in zip(t2v.split(_CHUNK), targets.split(_CHUNK), strict=True):
        own = rows.gather(1, target[:, None])
        text_ranks.append(_expected_rank(rows > own, (rows == own).scatter(1, target[:, None], False)))
    video_ranks = []
    for videos in targets.unique().split(_CHUNK):
        rows = v2t[:, videos].t()
        is_own = targets[None, :] == videos[:, None]
        best = rows.masked_fill(~is_own, float("-inf")).amax(dim=1, keepdim=True)
        video_ranks.append(_expected_rank((rows > best) & ~is_own, (rows == best) & ~is_own))
    return torch.cat(text_ranks), torch.cat(video_ranks)


def _expected_rank(better: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    return 1 + better.sum(dim=1).double() + equal.sum(dim=1).double() / 2


def question_answering_metrics(
    predictions: Sequence[str],
    answers: Sequence[str],
    answer_types: Sequence[str | None] | None,
    known_answers: Collection[str],
) -> dict[str, float]:
    """Accuracy of answers chosen from a closed list, overall and for each type of question.

    Args:
        predictions: One answer per question.
        answers: The right one. It counts as wrong, whatever the prediction, where it is not a known answer.
        answer_types: Type of each question, such as `what`; None where a question, or the data set, has none.
        known_answers: The list that the model chooses from.

    Returns:
        `accuracy` and `accuracy_<type>` in percent, with `_` for blanks in the type; `out_of_list` (count) and
        `out_of_list_share` (percent) of questions whose answer the model cannot give; `n`, the number of questions.

    Raises:
        ValueError: sequences of different lengths, or none at all.
    """
    types = [None] * len(answers) if answer_types is None else list(answer_types)
    if not len(predictions) == len(answers) == len(types) or not len(answers):
        raise ValueError(
            f"question_answering_metrics needs as many predictions as answers and types, and at least one; received "
            f"{len(predictions)}, {len(answers)} and {len(types)}."
        )
    known = set(known_answers)
    correct_by_type: dict[str, list[bool]] = defaultdict(list)
    correct = [given == right and right in known for given, right in zip(predictions, answers, strict=True)]
    for kind, is_correct in zip(types, correct, strict=True):
        if kind is not None:
            correct_by_type[kind].append(is_correct)
    out_of_list = sum(answer not in known for answer in answers)
    return {
        "accuracy": 100.0 * float(np.mean(correct)),
        **{
            f"accuracy_{kind.replace(' ', '_')}": 100.0 * float(np.mean(values))
            for kind, values in sorted(correct_by_type.items())
        },
        "out_of_list": float(out_of_list),
        "out_of_list_share": 100.0 * out_of_list / len(answers),
        "n": float(len(answers)),
    }


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
def encode_batches(
    model: AlproPreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    keep_states: bool = False,
    on_batch: Callable[[], None] | None = None,
) -> RetrievalStates:
    """Encode collated retrieval rows: every text once, and every clip once however many captions it has.

    Args:
        model: Any ALPRO model with both towers, unwrapped; put in evaluation mode by the caller.
        batches: What `AlproCollator(task="retrieval")` returns. Rows without `row_ids` are numbered as they come.
        keep_states: Whether to keep the tokens that matching needs.
        on_batch: Called after each batch.

    Returns:
        States on the model's device, in order of `row_ids`.
    """
    base = cast(AlproModel, model.base_model)
    device = base.device
    parts: list[RetrievalStates] = []
    seen: set[int] = set()
    count = 0
    for batch in batches:
        video_ids = batch["video_ids"].cpu()
        first: dict[int, int] = {}
        for row, video in enumerate(video_ids.tolist()):
            if video not in seen:
                first.setdefault(video, row)
        seen.update(first)
        mask = batch["attention_mask"].to(device)
        text = base.get_text_features(batch["input_ids"].to(device), mask)
        row_ids = batch.get("row_ids")
        part = RetrievalStates(
            row_ids=torch.arange(count, count + len(video_ids)) if row_ids is None else row_ids.cpu(),
            row_video_ids=video_ids,
            text_embeds=text.pooler_output.float(),
            video_ids=torch.tensor(list(first), dtype=torch.long),
            video_embeds=text.pooler_output.new_zeros((0, text.pooler_output.shape[1]), dtype=torch.float32),
            text_states=text.last_hidden_state if keep_states else None,
            text_mask=mask if keep_states else None,
        )
        if first:
            pixels = batch["pixel_values_videos"]
            rows = torch.tensor(list(first.values()), device=pixels.device)
            video = base.get_video_features(pixels[rows].to(device))
            part.video_embeds = video.pooler_output.float()
            part.video_states = video.last_hidden_state if keep_states else None
        parts.append(part)
        count += len(video_ids)
        if on_batch is not None:
            on_batch()
    if not parts:
        raise ValueError("There is nothing to encode: the data set has no rows.")
    return merge_states(parts).to(device)


def merge_states(parts: Sequence[RetrievalStates]) -> RetrievalStates:
    """Join what several batches or processes encoded; a row or a clip that occurs twice counts once."""
    rows = torch.cat([part.row_ids for part in parts])
    videos = torch.cat([part.video_ids for part in parts])
    row_ids, row_order = _first_occurrences(rows)
    video_ids, video_order = _first_occurrences(videos)
    video_states = [part.video_states for part in parts if part.video_states is not None]
    text_states = [part.text_states for part in parts if part.text_states is not None]
    text_masks = [part.text_mask for part in parts if part.text_mask is not None]
    return RetrievalStates(
        row_ids=row_ids,
        row_video_ids=torch.cat([part.row_video_ids for part in parts])[row_order],
        text_embeds=torch.cat([part.text_embeds for part in parts])[row_order],
        video_ids=video_ids,
        video_embeds=torch.cat([part.video_embeds for part in parts])[video_order],
        text_states=_cat_padded(text_states)[row_order] if text_states else None,
        text_mask=_cat_padded(text_masks)[row_order] if text_masks else None,
        video_states=torch.cat(video_states)[video_order] if video_states else None,
    )


def _first_occurrences(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Different values in ascending order, and where each comes first."""
    unique, first = np.unique(ids.numpy(force=True), return_index=True)
    return torch.from_numpy(unique), torch.from_numpy(first)


def _cat_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate (n_i, L_i, ...) along the first dimension, zeros up to the longest L_i."""
    length = max(tensor.shape[1] for tensor in tensors)
    joined = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), length, *tensors[0].shape[2:]))
    start = 0
    for tensor in tensors:
        joined[start : start + len(tensor), : tensor.shape[1]] = tensor
        start += len(tensor)
    return joined


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


__all__ = [
    "RetrievalProtocol",
    "RetrievalStates",
    "encode_batches",
    "merge_states",
    "question_answering_metrics",
    "retrieval_metrics",
    "retrieval_ranks",
    "retrieval_scores",
    "vtc_scores",
    "vtm_scores",
]
