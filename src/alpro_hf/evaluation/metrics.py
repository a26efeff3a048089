"""TODO docstring."""

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch

RECALL_AT = (1, 5, 10)


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
