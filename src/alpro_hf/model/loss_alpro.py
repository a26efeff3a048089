"""The training losses of ALPRO as pure functions of tensors (arXiv 2112.09583, sections 3.2 and 3.3).

No function here knows a model, a tokenizer or a process group: what other processes hold comes in as arguments, and
randomness comes in as a `torch.Generator`. Shape letters: B local batch, G global batch, P projection width.
"""

import torch
from torch import nn

IGNORE_INDEX = -100  # label of rows that carry no loss, as everywhere in PyTorch


def same_pair_mask(
    video_ids: torch.Tensor | None,
    text_ids: torch.Tensor | None,
    all_video_ids: torch.Tensor | None = None,
    all_text_ids: torch.Tensor | None = None,
    *,
    size: tuple[int, int],
    rank: int = 0,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Which of the global pairs match a local row, because they share its video or its caption.

    Args:
        video_ids, text_ids: int64 (B,), equal numbers mean the same video or the same caption; None: all distinct.
        all_video_ids, all_text_ids: int64 (G,), those of every process in rank order; None: a single process.
        size: (B, G).
        rank: Index of this process; row i of the local batch is column `rank * B + i` of the global one.

    Returns:
        bool (B, G), True where the pair is not a negative; always True for a row and itself.
    """
    batch, total = size
    mask = torch.zeros(batch, total, dtype=torch.bool, device=device)
    own = torch.arange(batch, device=device)
    mask[own, own + rank * batch] = True
    for ids, all_ids in ((video_ids, all_video_ids), (text_ids, all_text_ids)):
        if ids is not None:
            mask = mask | (ids[:, None] == (ids if all_ids is None else all_ids)[None, :])
    return mask


def vtc_loss(
    video_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    temperature: torch.Tensor | float,
    *,
    all_video_embeds: torch.Tensor | None = None,
    all_text_embeds: torch.Tensor | None = None,
    same_pair: torch.Tensor | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """Video-text contrastive loss: symmetric InfoNCE over the global batch (section 3.2, equations 1 to 3).

    A pair that shares the video or the caption with another one is neither its negative nor its positive: it is left
    out of the denominator. The original code counted such pairs as negatives.

    Args:
        video_embeds, text_embeds: (B, P) unit vectors of this process.
        temperature: Scalar or (1,); similarities are divided by it.
        all_video_embeds, all_text_embeds: (G, P) unit vectors of all processes in rank order, gathered with
            gradients; None: a single process.
        same_pair: bool (B, G) from `same_pair_mask`; None: only the diagonal matches.
        rank: Index of this process.

    Returns:
        Scalar, mean of the video-to-text and text-to-video cross entropies of the local rows.
    """
    all_video_embeds = video_embeds if all_video_embeds is None else all_video_embeds
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    # float32 whatever autocast says: a similarity in bfloat16 is off by 0.004, divided by a temperature of 0.01 by 0.4
    with torch.autocast(video_embeds.device.type, enabled=False):
        logits_v2t = video_embeds.float() @ all_text_embeds.float().t() / temperature
        logits_t2v = text_embeds.float() @ all_video_embeds.float().t() / temperature
    batch = video_embeds.shape[0]
    targets = torch.arange(batch, device=logits_v2t.device) + rank * batch
    if same_pair is not None:
        left_out = same_pair.scatter(1, targets[:, None], False)
        logits_v2t = logits_v2t.masked_fill(left_out, float("-inf"))
        logits_t2v = logits_t2v.masked_fill(left_out, float("-inf"))
    loss_v2t = nn.functional.cross_entropy(logits_v2t, targets)
    loss_t2v = nn.functional.cross_entropy(logits_t2v, targets)
    return (loss_v2t + loss_t2v) / 2


@torch.no_grad()
def sample_hard_negatives(
    similarity: torch.Tensor, same_pair: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One hard negative per row, drawn in proportion to the softmax of the similarities (section 3.2, VTM).

    Args:
        similarity: (B, G) scaled similarities of local rows with the pool of candidates.
        same_pair: bool (B, G), True where a candidate is no negative.
        generator: Source of randomness; None: the global one.

    Returns:
        (indices, valid): int64 (B,) into the pool and bool (B,). A row without any negative (a batch of one, or all of
        one video) is not valid and its index points at a candidate that must not be used.
    """
    logits = similarity.float().masked_fill(same_pair, float("-inf"))
    valid = ~same_pair.all(dim=1)
    weights = torch.where(valid[:, None], logits, torch.zeros_like(logits)).softmax(dim=1)
    weights = weights.nan_to_num(nan=1.0)  # the loss tells of them; a failed draw would bring down a GPU instead
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), valid


def vtm_labels(valid_videos: torch.Tensor, valid_texts: torch.Tensor) -> torch.Tensor:
    """Labels of the 3B matching rows: B positives (1), B with a wrong video (0), B with a wrong text (0).

    Args:
        valid_videos, valid_texts: bool (B,) from `sample_hard_negatives`; a row that found no negative gets
            `IGNORE_INDEX`.

    Returns:
        int64 (3B,).
    """
    positives = torch.ones_like(valid_videos, dtype=torch.long)
    negatives = [torch.where(valid, 0, IGNORE_INDEX) for valid in (valid_videos, valid_texts)]
    return torch.cat([positives, *negatives])


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Cross entropy, averaged over the rows that carry a label; exactly 0 with finite gradients where none does.

    Serves the matching loss VTM (logits (3B, 2)), masked language modeling MLM (logits (B * L, vocabulary), section
    3.2) and question answering (logits (B, answers)), where an answer outside the list has the label `IGNORE_INDEX`.

    Args:
        logits: (N, C).
        labels: int64 (N,).
        count: What to divide the sum by; None: the number of labelled rows. Processes that hold parts of one batch
            pass the mean of their numbers, so that the mean of their losses is the loss of the whole batch.

    Returns:
        Scalar.
    """
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / _at_least_one((labels != IGNORE_INDEX).sum() if count is None else count)


def pem_kept(targets: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which pseudo-labels (B, entities) are sure enough to learn from: bool (B,), highest probability >= threshold."""
    return targets.max(dim=1).values >= threshold


def pem_loss(
    logits: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor, count: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Prompting entity modeling: soft cross entropy against the prompter's pseudo-labels (section 3.3, equation 7).

    Args:
        logits: (B, entities) of the student.
        targets: (B, entities) probabilities of the teacher.
        kept: bool (B,) from `pem_kept`.
        count: As in `classification_loss`; None: the number of kept rows.

    Returns:
        Scalar; exactly 0 with finite gradients where no row is kept.
    """
    losses = nn.functional.cross_entropy(logits.float(), targets.float(), reduction="none")
    return (losses * kept).sum() / _at_least_one(kept.sum() if count is None else count)


def _at_least_one(count: torch.Tensor | float) -> torch.Tensor | float:
    # a mean over processes may lie between 0 and 1; only 0, where the sum is 0 too, must not divide
    if isinstance(count, torch.Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count or 1.0


def crop_to_patches(crop_mask: torch.Tensor) -> torch.Tensor:
    """A crop mask (B, h, w) on the patch grid -> float weights (B, h * w) that average what is inside."""
    weights = crop_mask.flatten(1).float()
    inside = weights.sum(dim=1, keepdim=True)
    if not torch.all(inside > 0):
        empty = (inside.squeeze(1) == 0).nonzero().flatten().tolist()
        raise ValueError(f"crop_mask is empty in the rows {empty}: a crop needs at least one patch.")
    return weights / inside


def crop_on_black(pixel_values_videos: torch.Tensor, crop_mask: torch.Tensor, black: torch.Tensor) -> torch.Tensor:
    """What the prompter sees: the crop at its place in every frame, black around it (section 3.3).

    Args:
        pixel_values_videos: (B, T, C, H, W), normalised frames.
        crop_mask: (B, h, w) on the patch grid, 1 inside the crop.
        black: (C,), the value of a black pixel after normalisation.

    Returns:
        (B, T, C, H, W).
    """
    height, width = pixel_values_videos.shape[-2:]
    rows, columns = crop_mask.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(
            f"A crop mask of {rows} x {columns} patches does not tile frames of {height} x {width} pixels."
        )
    inside = crop_mask.bool().repeat_interleave(height // rows, dim=1).repeat_interleave(width // columns, dim=2)
    outside = black.to(pixel_values_videos)[None, None, :, None, None]
    return torch.where(inside[:, None, None], pixel_values_videos, outside)


__all__ = [
    "IGNORE_INDEX",
    "classification_loss",
    "crop_on_black",
    "crop_to_patches",
    "pem_kept",
    "pem_loss",
    "same_pair_mask",
    "sample_hard_negatives",
    "vtc_loss",
    "vtm_labels",
]
