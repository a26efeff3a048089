"""The exchange between the processes and the micro-steps of a training step.

A loss is a mean, and the mean of the means of unequal parts is not the mean of the whole. With these functions, a step
over several processes or micro-steps has the losses and gradients of a single step with the whole batch.

Shape letters: B rows of this process, G rows of all processes, P width of the contrastive space.
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

# labels in a batch -> the argument of the models for the number of labelled entries
_COUNT_ARGUMENTS = {"labels": "label_count", "mlm_labels": "mlm_count", "pem_targets": "pem_count"}
# value to pad each text tensor with
PADDING = {"input_ids": 0, "mlm_input_ids": 0, "attention_mask": 0, "mlm_labels": IGNORE_INDEX}
PADDING |= {"negative_input_ids": 0, "negative_attention_mask": 0}


def in_parallel() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """Collect a tensor from every process.

    Args:
        tensor: (B, ...), of equal shape on every process.

    Returns:
        (G, ...) in rank order. Gradients of floating point tensors flow back to the process they came from.
    """
    # the differentiable version does not take integers
    if tensor.is_floating_point() and torch.is_grad_enabled():
        return torch.cat(dist_nn.all_gather(tensor.contiguous()))
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def smallest_of_all(number: int, device: torch.device) -> int:
    """Return the smallest number of any process, exchanged on a device that the process group can use."""
    smallest = torch.tensor(number, device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


def pad_to_longest(batch: Batch) -> Batch:
    """Pad the texts of a batch to the longest text of any process, so that their states can be gathered."""
    length = torch.tensor(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    missing = int(length) - batch["input_ids"].shape[1]
    padded = {
        key: nn.functional.pad(batch[key], (0, missing), value=value) for key, value in PADDING.items() if key in batch
    }
    return batch | padded


def add_counts(batches: Sequence[Batch], pem_threshold: float) -> None:
    """Add to each micro-batch the divisors of its losses: the mean number of labels per micro-batch and process.

    A trainer averages losses over micro-steps and processes. The average of sums that were divided by this mean is the
    sum of all losses divided by the number of all labels.

    Args:
        batches: Micro-batches of a step. Each gets scalars `label_count`, `mlm_count`, `pem_count` for the labels it
            has.
        pem_threshold: See `pem_kept`.
    """
    for labels, argument in _COUNT_ARGUMENTS.items():
        if not batches or labels not in batches[0]:
            continue
        counts = []
        for batch in batches:
            wanted = (
                pem_kept(batch[labels], pem_threshold) if labels == "pem_targets" else batch[labels] != IGNORE_INDEX
            )
            counts.append(wanted.sum().float())
        # stays a tensor: reading it would wait for the GPU in every step
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

    This function encodes every micro-batch without gradients. It computes the contrastive loss of all of them, and
    keeps its gradients with respect to the unit vectors. When the training step encodes a micro-batch again, with
    gradients, `contrastive_surrogate` continues from them.

    Args:
        base: Model with both towers.
        batches: Micro-batches. Each gets `contrastive`: the loss, its gradients with respect to the video vectors and
            the text vectors (B, P), and its gradient with respect to the temperature (1,).
        encode: Function from a micro-batch to its `AlproOutput`.
        gather, rank: As in `AlproModel.forward`.
        seeds: Seed of the dropout of each micro-batch. The second pass must use the same seeds.
    """
    videos, texts = [], []
    for batch, seed in zip(batches, seeds, strict=True):
        with torch.no_grad(), seeded(seed, base.device):
            outputs = encode(batch)
        size = len(batch["input_ids"])
        videos.append(outputs.video_embeds[:size])
        texts.append(outputs.text_embeds[:size])  # the masked texts of MLM follow
    video, text = (torch.cat(parts).detach().requires_grad_() for parts in (videos, texts))
    ids = [torch.cat([batch[name] for batch in batches]) for name in ("video_ids", "text_ids")]
    loss = base.contrastive_loss(video, text, ids[0], ids[1], gather=gather, rank=rank)
    video_grad, text_grad, temperature_grad = torch.autograd.grad(loss, (video, text, base.temperature))
    sizes = [len(part) for part in videos]
    for batch, of_video, of_text in zip(batches, video_grad.split(sizes), text_grad.split(sizes), strict=True):
        batch["contrastive"] = (loss.detach(), of_video, of_text, temperature_grad)


def contrastive_surrogate(outputs: Any, base: AlproModel, cached: tuple, micro_steps: int) -> torch.Tensor:
    """Return a scalar with the value of the cached loss and, averaged over the micro-steps, its gradients.

    Args:
        outputs: Output of the second, differentiable pass of a micro-batch.
        base: Model with both towers.
        cached: `contrastive` of that micro-batch.
        micro_steps: Number of micro-batches of the step.
    """
    loss, of_video, of_text, of_temperature = cached
    surrogate = (outputs.video_embeds * of_video).sum() + (outputs.text_embeds * of_text).sum()
    # The trainer divides by the micro-steps. Each vector is in one micro-batch, but the temperature is in all of them.
    surrogate = micro_steps * surrogate + (base.temperature * of_temperature).sum()
    return surrogate - surrogate.detach() + loss  # value of `loss`, gradient of `surrogate`


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from `seed` inside the context; outside, the generators continue unaffected."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


__all__ = [
    "PADDING",
    "Batch",
    "add_counts",
    "cache_contrastive_gradients",
    "contrastive_surrogate",
    "gather_with_gradients",
    "in_parallel",
    "pad_to_longest",
    "seeded",
    "smallest_of_all",
]
