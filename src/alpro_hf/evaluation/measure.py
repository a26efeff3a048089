"""Evaluate a model on rows: metrics, a prediction for every row, and figures."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.matching_alpro import vtc_scores
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproPreTrainedModel
from ..model.wrappers_alpro import plain_model
from .encode import Skipped, answer_rows, encode_rows, match_pairs
from .figures import RANKS_PICTURE, RERANK_PICTURE, plot_ranks, plot_rerank_curve, rerank_curve
from .metrics import question_answering_metrics, retrieval_ranks
from .protocols import RetrievalProtocol, RetrievalStates, ScorePairs, retrieval_scores
from .results import Row, question_rows, retrieval_rows, row_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSIFIER = "classifier"  # protocol of question answering: the most probable of the answers that the model knows
_CURVE_K = 256  # length of the re-ranking curve if all pairs are scored anyway

Rows = Sequence[Mapping[str, Any]]


@dataclass
class EvaluationOutcome:
    """Metrics, predictions and figures of one evaluation.

    Args:
        protocol, metrics: As in `Results`.
        predictions: Rows as in `predictions.jsonl`: those of questions, or those of texts and then of videos.
        numbers: Numbers of the evaluated rows. The first predictions are about these rows, in this order.
        skipped: Clips that cannot be decoded.
        counts: Numbers of texts and videos, or of questions and videos.
        details: As in `Results`.
        pictures: File name -> function that draws the figure.
    """

    protocol: dict[str, Any]
    metrics: dict[str, float]
    predictions: list[Row]
    numbers: list[int]
    skipped: list[Skipped]
    counts: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[], "Figure"]] = field(default_factory=dict)


class PairScores:
    """Cache of matching logits: each pair is scored once, however often it is asked for.

    Several protocols and the re-ranking curve are computed from one evaluation, and matching is its main cost.

    Args:
        score: From int64 (n, 2) pairs of text and video to logits (n, 2), for instance by `vtm_scores`.
        shape: Numbers of texts and videos.
    """

    def __init__(self, score: ScorePairs, shape: tuple[int, int]):
        self._score = score
        self._logits = torch.full((*shape, 2), torch.nan)  # NaN: not scored yet

    def __call__(self, pairs: torch.Tensor) -> torch.Tensor:
        texts, videos = pairs.cpu().unbind(dim=1)
        new = self._logits[texts, videos, 0].isnan()
        if new.any():
            self._logits[texts[new], videos[new]] = self._score(pairs.cpu()[new]).float().cpu()
        return self._logits[texts, videos]


def measure_retrieval(
    model: AlproPreTrainedModel,
    processor: Any,
    rows: Rows,
    protocol: RetrievalProtocol = "reference",
    *,
    rerank_k: int = 16,
    prior: bool = True,
    rerank_margin: float | None = None,
    pair_batch_size: int | None = None,
    computing: AbstractContextManager[Any] | None = None,
    **work: Any,
) -> EvaluationOutcome:
    """Evaluate retrieval: find the clip of each text, and the texts of each clip.

    Besides the metrics of the protocol, the result has those of the two towers alone, with the prefix `vtc_`, and
    those of the other way to combine matching and similarity, with the prefix `with_prior_` or `without_prior_`.

    Args:
        model: A retrieval model; for the protocol `vtc`, any model with both towers. On its device, in evaluation
            mode.
        processor: Its `AlproProcessor`.
        rows: `{"video", "text"}`, see `AlproCollator`.
        protocol, rerank_k, prior, rerank_margin: See `retrieval_scores`; they apply to `rerank` only.
        pair_batch_size: Pairs matched at a time; None: see `vtm_scores`.
        computing: Context in which the model runs, such as autocast. It is entered more than once.
        work: `batch_size`, `workers` and `title` of `encode_rows`.

    Raises:
        ValueError: There are no rows, or none of their clips can be decoded.
    """
    computing = nullcontext() if computing is None else computing
    with computing:
        states, skipped = encode_rows(model, processor, rows, keep_states=protocol != "vtc", **work)
    shape = len(states.row_ids), len(states.video_ids)
    title = work.get("title") and f"{work['title']}: matching"

    def match(pairs: torch.Tensor) -> torch.Tensor:
        with computing:
            return match_pairs(model, states, pairs, batch_size=pair_batch_size, title=title)  # type: ignore[arg-type]

    matching = PairScores(match, shape) if protocol != "vtc" else None
    found = _Ranked(states, protocol, matching, rerank_k, prior, rerank_margin)
    metrics = found.metrics()
    details: dict[str, Any] = {}
    pictures: dict[str, Callable[[], Figure]] = {
        RANKS_PICTURE: lambda: plot_ranks(
            {"t2v": found.t2v.numpy(), "v2t": found.v2t.numpy()}, {"t2v": shape[1], "v2t": shape[0]}
        )
    }
    settings: dict[str, Any] = {"name": protocol}
    if matching is not None:
        # these protocols need no further forward pass: `matching` holds the logits of all their pairs
        metrics |= {f"vtc_{name}": value for name, value in _Ranked(states, "vtc").metrics().items()}
        # how much does the similarity add to matching? The protocol `reference` matches all pairs, so its counterpart
        # is to re-rank all candidates with the prior
        if protocol == "rerank":
            settings |= {"rerank_k": rerank_k, "prior": prior}
            settings |= {} if rerank_margin is None else {"rerank_margin": rerank_margin}
            other = _Ranked(states, "rerank", matching, rerank_k, not prior, rerank_margin)
        else:
            other = _Ranked(states, "rerank", matching, max(shape), prior=True)
        prefix = "without_prior" if protocol == "rerank" and prior else "with_prior"
        metrics |= {f"{prefix}_{name}": value for name, value in other.metrics().items()}
        longest = rerank_k if protocol == "rerank" else min(_CURVE_K, max(shape))
        similarity = vtc_scores(states.text_embeds, states.video_embeds)
        margin = rerank_margin if protocol == "rerank" else None
        curve = rerank_curve(similarity, matching, states.text_to_video, longest, margin)
        details["rerank_curve"] = {
            "k": curve.k.tolist(),
            **{f"with_prior_{way}_r1": recall.tolist() for way, recall in curve.with_prior.items()},
            **{f"without_prior_{way}_r1": recall.tolist() for way, recall in curve.without_prior.items()},
        }
        pictures[RERANK_PICTURE] = lambda: plot_rerank_curve(curve)

    numbers = states.row_ids.tolist()
    predictions = list(found.rows(_video_names(states, rows), [rows[number]["text"] for number in numbers]))
    counts = {"texts": shape[0], "videos": shape[1]}
    return EvaluationOutcome(settings, metrics, predictions, numbers, skipped, counts, details, pictures)


class _Ranked:
    """Scores of texts and videos under a protocol, and the ranks that follow from them."""

    def __init__(self, states: RetrievalStates, protocol: RetrievalProtocol, *args: Any, **kwargs: Any):
        t2v, v2t = retrieval_scores(states, protocol, *args, **kwargs)
        self.targets = states.text_to_video.cpu()
        self.scores, self.scores_v2t = t2v.cpu(), v2t.cpu()
        self.t2v, self.v2t = retrieval_ranks(self.scores, self.targets, self.scores_v2t)

    def metrics(self) -> dict[str, float]:
        """The metrics of `retrieval_metrics`, and recall at 50."""
        # `row_metrics` groups captions by video for confidence intervals, which are not needed here
        ranks = [{"direction": "t2v", "rank": rank, "video": 0} for rank in self.t2v.tolist()]
        ranks += [{"direction": "v2t", "rank": rank} for rank in self.v2t.tolist()]
        return {name: float(metric.statistic(metric.values)) for name, metric in row_metrics(ranks).items()}

    def rows(self, names: Sequence[str], captions: Sequence[str]) -> list[Row]:
        texts, asked = range(len(captions)), self.targets.unique().tolist()
        shared: dict[str, Any] = {"names": names, "captions": captions, "text_to_video": self.targets.tolist()}
        return [
            *retrieval_rows("t2v", self.scores, self.t2v, texts, **shared),
            *retrieval_rows("v2t", self.scores_v2t[:, asked].t(), self.v2t, asked, names=names),
        ]


def measure_answers(
    model: AlproForVideoQuestionAnswering,
    processor: Any,
    rows: Rows,
    *,
    computing: AbstractContextManager[Any] | None = None,
    **work: Any,
) -> EvaluationOutcome:
    """Evaluate question answering: the accuracy of the answers to the questions of rows.

    Args:
        model: On its device, in evaluation mode.
        processor: Its `AlproProcessor`.
        rows: `{"video", "question", "answer"[, "answer_type"]}`, see `AlproCollator`.
        computing: Context in which the model runs, such as autocast.
        work: `batch_size`, `workers` and `title` of `answer_rows`.

    Raises:
        ValueError: There are no rows, or none of their clips can be decoded.
    """
    with nullcontext() if computing is None else computing:
        found, skipped = answer_rows(model, processor, rows, **work)
    id2label: Any = plain_model(model).config.id2label
    known = set(id2label.values())
    numbers = found.rows.tolist()
    asked = [rows[number] for number in numbers]
    questions, answers = [row["question"] for row in asked], [row["answer"] for row in asked]
    types = [row.get("answer_type") for row in asked]
    given = [id2label[label] for label in found.labels.tolist()]
    names = [clip_name(row, number) for row, number in zip(asked, numbers, strict=True)]
    predictions = [
        # JSON has no infinity: an answer that the model does not know has no rank
        row | {"probability": probability, "rank": rank if np.isfinite(rank) else None}
        for row, probability, rank in zip(
            question_rows(questions, answers, given, known, videos=names, answer_types=types),
            found.probabilities.tolist(),
            found.ranks.tolist(),
            strict=True,
        )
    ]
    return EvaluationOutcome(
        protocol={"name": CLASSIFIER, "answers": len(known)},
        metrics=question_answering_metrics(given, answers, types, known),
        predictions=predictions,
        numbers=numbers,
        skipped=skipped,
        counts={"questions": len(numbers), "videos": len(set(names))},
        pictures={RANKS_PICTURE: lambda: plot_ranks({"qa": found.ranks.numpy()}, {"qa": len(known)})},
    )


def _video_names(states: RetrievalStates, rows: Rows) -> list[str]:
    """Names of the encoded clips: each clip has that of the first row about it."""
    first: dict[int, int] = {}
    for number, video in zip(states.row_ids.tolist(), states.text_to_video.tolist(), strict=True):
        first.setdefault(video, number)
    return [clip_name(rows[first[video]], first[video]) for video in range(len(states.video_ids))]


def clip_name(row: Mapping[str, Any], number: int) -> str:
    """Name of a clip in results: its id, else the name of its file, else the number of the row."""
    if row.get("video_id") is not None:
        return str(row["video_id"])
    video = row["video"]
    if isinstance(video, Mapping):
        video = video.get("path")
    return os.path.basename(os.fspath(video)) if isinstance(video, str | os.PathLike) else f"row {number}"


__all__ = ["CLASSIFIER", "EvaluationOutcome", "PairScores", "clip_name", "measure_answers", "measure_retrieval"]
