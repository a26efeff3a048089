"""From a model and rows to metrics, a prediction for every row, and the curves behind them."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproPreTrainedModel
from .encode import Skipped, answer_rows, encode_rows, match_pairs
from .figures import RANKS_PICTURE, RERANK_PICTURE, plot_ranks, plot_rerank_curve, rerank_curve
from .metrics import question_answering_metrics, retrieval_ranks
from .protocols import RetrievalProtocol, RetrievalStates, retrieval_scores, vtc_scores
from .results import Row, question_rows, retrieval_rows, row_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSIFIER = "classifier"  # the protocol of questions: the most probable of the answers that the model knows
_CURVE_K = 256  # length of the re-ranking curve where all pairs are scored anyway

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Measured:
    """What an evaluation finds out.

    Args:
        protocol, metrics: As in `Results`.
        predictions: Rows as in `predictions.jsonl`: of questions, or of texts and then of videos.
        numbers: Of the rows that were asked, which the first predictions are about.
        skipped: Clips that cannot be decoded.
        counts: How many texts and videos, or questions.
        details: As in `Results`.
        pictures: File name to what draws it.
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
    """Matching logits of pairs, each of them computed once however often it is asked for.

    Args:
        score: From int64 (n, 2) pairs of text and video to logits (n, 2), such as `vtm_scores`.
        shape: Texts and videos.
    """

    def __init__(self, score: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int]):
        self._score = score
        self._logits = torch.full((*shape, 2), torch.nan)

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
    pair_batch_size: int | None = None,
    computing: AbstractContextManager[Any] | None = None,
    **work: Any,
) -> Measured:
    """Search the clips of rows by their texts, and the texts by their clips.

    Beside the metrics of the protocol there are, under the prefix `vtc_`, those of the two towers alone, and under
    `with_prior_` or `without_prior_` those of the other way to combine matching and similarity.

    Args:
        model: A retrieval model; for the protocol `vtc` any with both towers. On its device, in evaluation mode.
        processor: Its `AlproProcessor`.
        rows: `{"video", "text"}`, see `AlproCollator`.
        protocol, rerank_k, prior: See `retrieval_scores`; `prior` is of `rerank`.
        pair_batch_size: Pairs matched at a time; None: see `vtm_scores`.
        computing: Where the model runs, such as an autocast; entered more than once.
        work: `batch_size`, `workers`, `title` of `encode_rows`.

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
    found = _Ranked(states, protocol, matching, rerank_k, prior)
    metrics = found.metrics()
    details: dict[str, Any] = {}
    pictures: dict[str, Callable[[], Figure]] = {
        RANKS_PICTURE: lambda: plot_ranks(
            {"t2v": found.t2v.numpy(), "v2t": found.v2t.numpy()}, {"t2v": shape[1], "v2t": shape[0]}
        )
    }
    settings: dict[str, Any] = {"name": protocol}
    if matching is not None:
        metrics |= {f"vtc_{name}": value for name, value in _Ranked(states, "vtc").metrics().items()}
        if protocol == "rerank":
            settings |= {"rerank_k": rerank_k, "prior": prior}
            other = _Ranked(states, "rerank", matching, rerank_k, not prior)
        else:
            other = _Ranked(states, "rerank", matching, max(shape), prior=True)
        prefix = "without_prior" if protocol == "rerank" and prior else "with_prior"
        metrics |= {f"{prefix}_{name}": value for name, value in other.metrics().items()}
        longest = rerank_k if protocol == "rerank" else min(_CURVE_K, max(shape))
        similarity = vtc_scores(states.text_embeds, states.video_embeds)
        curve = rerank_curve(similarity, matching, states.text_to_video, longest)
        details["rerank_curve"] = {
            "k": curve.k.tolist(),
            **{f"with_prior_{way}_r1": recall.tolist() for way, recall in curve.with_prior.items()},
            **{f"without_prior_{way}_r1": recall.tolist() for way, recall in curve.without_prior.items()},
        }
        pictures[RERANK_PICTURE] = lambda: plot_rerank_curve(curve)

    numbers = states.row_ids.tolist()
    predictions = list(found.rows(_video_names(states, rows), [rows[number]["text"] for number in numbers]))
    counts = {"texts": shape[0], "videos": shape[1]}
    return Measured(settings, metrics, predictions, numbers, skipped, counts, details, pictures)


class _Ranked:
    """Scores of texts and videos under a protocol, and the ranks they give."""

    def __init__(self, states: RetrievalStates, protocol: RetrievalProtocol, *args: Any, **kwargs: Any):
        t2v, v2t = retrieval_scores(states, protocol, *args, **kwargs)
        self.targets = states.text_to_video.cpu()
        self.scores, self.scores_v2t = t2v.cpu(), v2t.cpu()
        self.t2v, self.v2t = retrieval_ranks(self.scores, self.targets, self.scores_v2t)

    def metrics(self) -> dict[str, float]:
        """As `retrieval_metrics`, and recall at 50."""
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
) -> Measured:
    """Ask the questions of rows.

    Args:
        model: On its device, in evaluation mode.
        processor: Its `AlproProcessor`.
        rows: `{"video", "question", "answer"[, "answer_type"]}`, see `AlproCollator`.
        computing: Where the model runs, such as an autocast.
        work: `batch_size`, `workers`, `title` of `answer_rows`.

    Raises:
        ValueError: There are no rows, or none of their clips can be decoded.
    """
    with nullcontext() if computing is None else computing:
        found, skipped = answer_rows(model, processor, rows, **work)
    id2label: Any = model.config.id2label
    known = set(id2label.values())
    numbers = found.rows.tolist()
    asked = [rows[number] for number in numbers]
    questions, answers = [row["question"] for row in asked], [row["answer"] for row in asked]
    types = [row.get("answer_type") for row in asked]
    given = [id2label[label] for label in found.labels.tolist()]
    names = [clip_name(row, number) for row, number in zip(asked, numbers, strict=True)]
    predictions = [
        row | {"probability": probability, "rank": rank if np.isfinite(rank) else None}
        for row, probability, rank in zip(
            question_rows(questions, answers, given, known, videos=names, answer_types=types),
            found.probabilities.tolist(),
            found.ranks.tolist(),
            strict=True,
        )
    ]
    return Measured(
        protocol={"name": CLASSIFIER, "answers": len(known)},
        metrics=question_answering_metrics(given, answers, types, known),
        predictions=predictions,
        numbers=numbers,
        skipped=skipped,
        counts={"questions": len(numbers), "videos": len(set(names))},
        pictures={RANKS_PICTURE: lambda: plot_ranks({"qa": found.ranks.numpy()}, {"qa": len(known)})},
    )


def _video_names(states: RetrievalStates, rows: Rows) -> list[str]:
    """What the encoded clips are called."""
    first: dict[int, int] = {}
    for number, video in zip(states.row_ids.tolist(), states.text_to_video.tolist(), strict=True):
        first.setdefault(video, number)
    return [clip_name(rows[first[video]], first[video]) for video in range(len(states.video_ids))]


def clip_name(row: Mapping[str, Any], number: int) -> str:
    """What results call a clip: its id, else the name of its file, else the number of the row."""
    if row.get("video_id") is not None:
        return str(row["video_id"])
    video = row["video"]
    if isinstance(video, Mapping):
        video = video.get("path")
    return os.path.basename(os.fspath(video)) if isinstance(video, str | os.PathLike) else f"row {number}"


__all__ = ["CLASSIFIER", "Measured", "PairScores", "clip_name", "measure_answers", "measure_retrieval"]
