"""One batch out of many: what the processes and micro-steps of a training step must tell each other.

A loss is a mean, and the mean of the means of unequal parts is not the mean of the whole. With these functions a step
over several processes or micro-steps has the losses and gradients of a single one with the whole batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import nn

from ..model.loss_alpro import IGNORE_INDEX, pem_kept
from ..model.modeling_alpro import AlproModel

Batch = dict[str, Any]

# a tensor of labels -> the argument of the models that takes the number of its labelled entries
COUNTS = {"labels": "label_count", "mlm_labels": "mlm_count", "pem_targets": "pem_count"}
_OF_THE_BATCH = ("kind", "black")  # what a batch from the collator for pre-training has once, not for each row
_PADDING = {"input_ids": 0, "mlm_input_ids": 0, "attention_mask": 0, "mlm_labels": IGNORE_INDEX}


def in_parallel() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) of every process -> (G, ...) in rank order; gradients flow back for floating point tensors."""
    if tensor.is_floating_point() and torch.is_grad_enabled():
        return torch.cat(dist_nn.all_gather(tensor.contiguous()))
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def trim_to_smallest(batch: Batch) -> Batch:
    """As many rows as every process has: broken clips may have cost some of them rows, and gathering needs equals."""
    size = len(batch["input_ids"])
    rows = torch.tensor(size, device=batch["input_ids"].device)
    dist.all_reduce(rows, op=dist.ReduceOp.MIN)
    smallest = int(rows)
    return {key: value if key in _OF_THE_BATCH else value[:smallest] for key, value in batch.items()}


def pad_to_longest(batch: Batch) -> Batch:
    """Texts as long as the longest of all processes, so that their states can be gathered."""
    length = torch.tensor(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    missing = int(length) - batch["input_ids"].shape[1]
    padded = {
        key: nn.functional.pad(batch[key], (0, missing), value=value)
        for key, value in _PADDING.items()
        if key in batch
    }
    return batch | padded


def add_counts(batches: Sequence[Batch], pem_threshold: float) -> None:
    """Give each micro-batch the mean number of labels in all micro-batches of all processes, to divide its losses by.

    A loss divided by that mean and then averaged over micro-steps and processes, as trainers do, is the sum of all
    losses divided by the number of all labels.
    """
    for labels, argument in COUNTS.items():
        if not batches or labels not in batches[0]:
            continue
        counts = []
        for batch in batches:
            wanted = (
                pem_kept(batch[labels], pem_threshold) if labels == "pem_targets" else batch[labels] != IGNORE_INDEX
            )
            counts.append(wanted.sum().float())
        mean = torch.stack(counts).mean()
        if in_parallel():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        for batch in batches:
            batch[argument] = mean


def cache_contrastive_gradients(
    base: AlproModel, batches: Sequence[Batch], encode: Any, gather: Any, rank: int, seeds: Sequence[int]
) -> None:
    """Contrast all micro-batches of a step with each other, in the memory of one (GradCache, arXiv 2101.06983).

    Every micro-batch is encoded without gradients, the contrastive loss of all is taken and its gradients with respect
    to the unit vectors are kept. When a micro-batch is encoded again with gradients, `contrastive_surrogate` hands
    them on.

    Args:
        base: The model whose towers are used.
        batches: Micro-batches; each gets `contrastive` = (loss, gradients of the video and of the text vectors,
            gradient of the temperature).
        encode: From a micro-batch to its `AlproOutput`.
        gather, rank: As in `AlproModel.forward`.
        seeds: Of the random numbers (dropout) of each micro-batch, which must be the same the second time.
    """
    videos, texts = [], []
    for batch, seed in zip(batches, seeds, strict=True):
        with torch.no_grad(), seeded(seed, base.device):
            outputs = encode(batch)
        size = len(batch["input_ids"])
        videos.append(outputs.video_embeds[:size])
        texts.append(outputs.text_embeds[:size])  # without the masked texts behind them
    video, text = (torch.cat(parts).detach().requires_grad_() for parts in (videos, texts))
    ids = [torch.cat([batch[name] for batch in batches]) for name in ("video_ids", "text_ids")]
    loss = base.contrastive_loss(video, text, ids[0], ids[1], gather=gather, rank=rank)
    video_grad, text_grad, temperature_grad = torch.autograd.grad(loss, (video, text, base.temperature))
    sizes = [len(part) for part in videos]
    for batch, of_video, of_text in zip(batches, video_grad.split(sizes), text_grad.split(sizes), strict=True):
        batch["contrastive"] = (loss.detach(), of_video, of_text, temperature_grad)


def contrastive_surrogate(outputs: Any, base: AlproModel, cached: tuple, micro_steps: int) -> torch.Tensor:
    """A scalar with the value of the cached loss and, averaged over micro-steps, its gradients."""
    loss, of_video, of_text, of_temperature = cached
    surrogate = (outputs.video_embeds * of_video).sum() + (outputs.text_embeds * of_text).sum()
    surrogate = micro_steps * surrogate + (base.temperature * of_temperature).sum()
    return surrogate - surrogate.detach() + loss


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers that are a function of `seed`; those outside go on as if nothing had happened."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


__all__ = [
    "COUNTS",
    "add_counts",
    "cache_contrastive_gradients",
    "contrastive_surrogate",
    "gather_with_gradients",
    "in_parallel",
    "pad_to_longest",
    "seeded",
    "trim_to_smallest",
]
