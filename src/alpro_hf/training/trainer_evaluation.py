"""Evaluation in a training: retrieval by the protocol of the arguments, and question answering, over all processes."""

from itertools import chain
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..evaluation.encode import encode_batches, gather_states, match_pairs, merge_states
from ..evaluation.metrics import question_answering_metrics, retrieval_metrics
from ..evaluation.protocols import RetrievalProtocol, retrieval_scores
from ..model.loss_alpro import IGNORE_INDEX
from ..model.matching_alpro import matching_problem
from .trainer_losses import input_names
from .trainer_rows import NOTHING_TO_EVALUATE, DroppedRowsError

logger = logging.get_logger(__name__)


def _row_ids(trainer: Any, batch: dict[str, Any], count: int) -> list[int]:
    """Return the numbers of the rows; samplers repeat rows to give every process equally many."""
    if "row_ids" in batch:
        return batch["row_ids"].tolist()
    if trainer.args.world_size > 1:
        raise ValueError(
            "Evaluation in several processes needs rows with an 'index'. The trainer adds it to data sets with "
            "a length; add it yourself to the rows of an iterable data set."
        )
    return list(range(count, count + len(batch["input_ids"])))


def evaluate_retrieval(
    trainer: Any, model: Any, dataloader: DataLoader
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return scores (texts, clips), the clip of each text (texts,), and metrics."""
    can_match = "loss_vtm" in model.training_losses
    protocol: RetrievalProtocol = trainer.args.eval_protocol if can_match else "vtc"
    if protocol != "vtc" and (problem := matching_problem(model)):
        logger.warning("The protocol %s needs a matching head, and %s. Evaluating by vtc.", protocol, problem)
        protocol = "vtc"
    batches = filter(None, dataloader)  # an undecodable batch is empty, see `AlproCollator`
    parts = []
    for first in batches:
        with trainer.accelerator.autocast():  # around the model only: similarities in bfloat16 have many ties
            rest = chain([first], batches)
            parts = [encode_batches(model, rest, keep_states=protocol != "vtc", on_batch=trainer.count_batch)]
    parts = gather_states(parts)  # a process without any row takes part in it
    if not parts:
        raise DroppedRowsError(NOTHING_TO_EVALUATE)
    states = merge_states(parts).to(trainer.args.device)

    def score_pairs(pairs: torch.Tensor) -> torch.Tensor:
        with trainer.accelerator.autocast():
            return match_pairs(model, states, pairs, batch_size=trainer.args.vtm_batch_size)

    text_to_video = states.text_to_video
    metrics: dict[str, float] = {}
    if protocol != "vtc":
        similarity, _ = retrieval_scores(states, "vtc")
        metrics = {f"vtc_{name}": value for name, value in retrieval_metrics(similarity, text_to_video).items()}
    scores, scores_v2t = retrieval_scores(states, protocol, score_pairs, trainer.args.rerank_k)
    return scores, text_to_video, retrieval_metrics(scores, text_to_video, scores_v2t) | metrics


def evaluate_answers(
    trainer: Any, model: Any, dataloader: DataLoader
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return logits (rows, answers), labels int64 (rows,), and metrics."""
    rows: dict[int, tuple] = {}  # row id -> (logits, label, answer, answer type)
    count = 0
    for batch in filter(None, dataloader):  # an undecodable batch is empty, see `AlproCollator`
        inputs = trainer._prepare_inputs(
            {name: batch[name] for name in input_names(model, trainer.args) if name in batch}
        )
        own_labels = inputs.pop("labels").tolist()
        with torch.no_grad(), trainer.accelerator.autocast():
            own_logits = model(**inputs).logits.float().cpu()
        columns = (own_logits, own_labels, batch["answers"], batch["answer_types"])
        for row_id, *row in zip(_row_ids(trainer, batch, count), *columns, strict=True):
            rows.setdefault(row_id, tuple(row))  # samplers may repeat a row
        count += len(own_labels)
        trainer.count_batch()
    if trainer.args.world_size > 1:
        rows = {row_id: row for part in gather_object([rows]) for row_id, row in part.items()}
    if not rows:
        raise DroppedRowsError(NOTHING_TO_EVALUATE)
    all_logits, all_labels, answers, types = zip(*(rows[row_id] for row_id in sorted(rows)), strict=True)
    logits, labels = torch.stack(all_logits), torch.tensor(all_labels)
    id2label = model.config.id2label or {}
    predictions = [id2label[index] for index in logits.argmax(dim=1).tolist()]
    metrics = question_answering_metrics(predictions, answers, types, set(id2label.values()))
    if (labels != IGNORE_INDEX).any():
        metrics["loss"] = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX).item()
    return logits, labels, metrics


__all__ = ["evaluate_answers", "evaluate_retrieval"]
