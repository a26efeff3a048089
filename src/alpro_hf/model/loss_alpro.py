"""The training losses of ALPRO as pure functions of tensors (arXiv 2112.09583, sections 3.2 and 3.3).

No function here uses a model, a tokenizer or a process group. Tensors of other processes are arguments, and so is the
`torch.Generator` that random numbers come from.

Shape letters: B rows of this process, G rows of all processes, P width of the contrastive space, C classes, L text
tokens; h x w patches of a frame.
"""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .matching_alpro import at_least_float32

IGNORE_INDEX = -100  # label of rows without a loss; PyTorch's default `ignore_index`


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
    """Mark the pairs of the global batch that are not negatives of a local row, as they share its video or caption.

    Args:
        video_ids, text_ids: int64 (B,). Equal numbers mean the same video or the same caption. None: all differ.
        all_video_ids, all_text_ids: int64 (G,), the numbers of every process in rank order. None: a single process.
        size: (B, G).
        rank: Index of this process. Row i of the local batch is column `rank * B + i` of the global batch; the
            released code used the local index on every process.
        device: Device of the result.

    Returns:
        bool (B, G), True where a pair is not a negative. A row is never a negative of itself.
    """
    batch, total = size
    mask = torch.zeros(batch, total, dtype=torch.bool, device=device)
    own = torch.arange(batch, device=device)
    mask[own, own + rank * batch] = True  # the diagonal of this process within the global batch
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
    edited_text_embeds: torch.Tensor | None = None,
    has_edited: torch.Tensor | None = None,
) -> torch.Tensor:
    """Video-text contrastive loss VTC: symmetric InfoNCE over the global batch (section 3.2, equations 1 to 3).

    Pairs that share a video or a caption are neither positives nor negatives of each other: they are left out of the
    denominator. The released code counts them as negatives.

    Args:
        video_embeds, text_embeds: (B, P), unit vectors of this process.
        temperature: Scalar or (1,), the divisor of the similarities.
        all_video_embeds, all_text_embeds: (G, P), unit vectors of all processes in rank order, gathered with
            gradients. None: a single process.
        same_pair: bool (B, G) from `same_pair_mask`. None: row i only matches itself.
        rank: Index of this process.
        edited_text_embeds: (B, P), unit vectors of false captions of the local clips: each is one more candidate for
            its own clip, and for no other, of which it may be true. None: there are none, as in the paper.
        has_edited: bool (B,), False for a clip without a false caption, whose row is a filler. None: all have one.

    Returns:
        Scalar, the mean of the video-to-text and text-to-video cross entropies of the local rows; float32, or float64
        for vectors of float64.
    """
    all_video_embeds = video_embeds if all_video_embeds is None else all_video_embeds
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    # At least in float32: rounding to bfloat16 moves a similarity by up to 0.004, and a temperature of 0.01 makes 0.4
    # of that.
    with maybe_autocast(video_embeds.device.type, enabled=False):
        logits_v2t = at_least_float32(video_embeds) @ at_least_float32(all_text_embeds).t() / temperature
        logits_t2v = at_least_float32(text_embeds) @ at_least_float32(all_video_embeds).t() / temperature
    batch = video_embeds.shape[0]
    # The positive of row i is its global index. The released code used the local one, wrong on every rank but 0.
    targets = torch.arange(batch, device=logits_v2t.device) + rank * batch
    if same_pair is not None:
        left_out = same_pair.scatter(1, targets[:, None], False)  # the positive itself stays in
        logits_v2t = logits_v2t.masked_fill(left_out, float("-inf"))
        logits_t2v = logits_t2v.masked_fill(left_out, float("-inf"))
    if edited_text_embeds is not None:
        with maybe_autocast(video_embeds.device.type, enabled=False):
            own = at_least_float32(video_embeds) * at_least_float32(edited_text_embeds)
            edited = own.sum(dim=1, keepdim=True) / temperature
        if has_edited is not None:
            edited = edited.masked_fill(~has_edited[:, None], float("-inf"))
        logits_v2t = torch.cat([logits_v2t, edited], dim=1)  # behind the others, so the targets stay
    loss_v2t = nn.functional.cross_entropy(logits_v2t, targets)
    loss_t2v = nn.functional.cross_entropy(logits_t2v, targets)
    return (loss_v2t + loss_t2v) / 2


def pools_of(rows: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """Divide the rows of a batch into pools of neighbours, among which VTM draws its negatives.

    Args:
        rows: Rows of the batch of all processes.
        size: Rows of a pool. If it does not divide the batch, pools are a little smaller, and their sizes differ by at
            most one.
        device: Device of the result.

    Returns:
        int64 (rows,), number of the pool of each row, ascending.
    """
    count = -(-rows // size)
    return torch.arange(rows, device=device) * count // max(rows, 1)


@torch.no_grad()
def sample_hard_negatives(
    similarity: torch.Tensor,
    same_pair: torch.Tensor,
    generator: torch.Generator | None = None,
    uniform_share: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one hard negative per row, with the softmax of the similarities as probabilities (section 3.2, VTM).

    Args:
        similarity: (B, G), similarities divided by the temperature, of local rows with the pool of candidates.
        same_pair: bool (B, G), True where a candidate is not a negative.
        generator: Source of randomness. None: the global generator.
        uniform_share: Share of the probability that all negatives of a row have in equal parts, in [0, 1]; 0 in the
            paper. A sharp softmax draws nearly the same negative always; see `vtm_uniform_share` of the trainer.

    Returns:
        `indices`, int64 (B,) into the pool, and `valid`, bool (B,). A row has no negative if all candidates are its
        own pair, as in a batch of one; it is not valid, and its index must not be used.
    """
    logits = similarity.float().masked_fill(same_pair, float("-inf"))
    valid = ~same_pair.all(dim=1)
    # A row of -inf would be NaN after the softmax. Zeros give it a uniform draw, which `valid` marks as unusable.
    weights = torch.where(valid[:, None], logits, torch.zeros_like(logits)).softmax(dim=1)
    # A NaN in `multinomial` is an assertion on the GPU, which kills the process. The loss is NaN too and says so.
    weights = weights.nan_to_num(nan=1.0)
    if uniform_share:
        evenly = (~same_pair).float()
        # a row without negatives keeps its uniform draw
        evenly = torch.where(valid[:, None], evenly / evenly.sum(dim=1, keepdim=True).clamp(min=1), weights)
        weights = torch.lerp(weights, evenly, uniform_share)
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), valid


def hardest_negatives(similarity: torch.Tensor, same_pair: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most similar negative of each row. Unlike `sample_hard_negatives` it needs no randomness.

    Args:
        similarity, same_pair: As in `sample_hard_negatives`.

    Returns:
        `indices` and `valid`, as in `sample_hard_negatives`. Of equally similar candidates the first one is taken.
    """
    return similarity.masked_fill(same_pair, float("-inf")).argmax(dim=1), ~same_pair.all(dim=1)


def vtm_labels(valid_videos: torch.Tensor, valid_texts: torch.Tensor) -> torch.Tensor:
    """Label the 3B matching rows: B true pairs (1), B texts with a wrong video (0), B videos with a wrong text (0).

    Args:
        valid_videos, valid_texts: bool (B,) from `sample_hard_negatives`.

    Returns:
        int64 (3B,); `IGNORE_INDEX` for rows without a negative.
    """
    positives = torch.ones_like(valid_videos, dtype=torch.long)
    negatives = [torch.where(valid, 0, IGNORE_INDEX) for valid in (valid_videos, valid_texts)]
    return torch.cat([positives, *negatives])


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Cross entropy, averaged over the rows that have a label.

    Three losses use it: matching VTM with logits (3B, 2), masked language modeling MLM with logits (B * L, vocabulary)
    (both section 3.2), and question answering with logits (B, answers).

    Args:
        logits: (rows, C), any floating point type; the loss is computed in float32.
        labels: int64 (rows,) in [0, C), or `IGNORE_INDEX` for rows without a loss.
        count: Divisor of the summed loss. None: the number of labelled rows. Processes that hold parts of one batch
            pass the mean of their numbers; the mean of their losses then is the loss of the whole batch.

    Returns:
        Scalar float32. Exactly 0, with finite gradients, if no row has a label.
    """
    # Summed, not averaged: the mean over no rows is NaN, and the divisor may count the rows of other processes.
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / _at_least_one((labels != IGNORE_INDEX).sum() if count is None else count)


def pem_kept(targets: torch.Tensor, threshold: float) -> torch.Tensor:
    """Select the pseudo-labels that are certain enough to learn from (section 3.3).

    The released code compares the index of the most probable entity with the threshold; the paper compares its
    probability, as here.

    Args:
        targets: (B, entities), probabilities.
        threshold: Smallest value of the highest probability.

    Returns:
        bool (B,).
    """
    return targets.max(dim=1).values >= threshold


def pem_loss(
    logits: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor, count: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Prompting entity modeling PEM: soft cross entropy against the pseudo-labels (section 3.3, equation 7).

    Args:
        logits: (B, entities), from the student.
        targets: (B, entities), probabilities from the teacher.
        kept: bool (B,) from `pem_kept`.
        count: Divisor of the summed loss, as in `classification_loss`. None: the number of kept rows.

    Returns:
        Scalar float32. Exactly 0, with finite gradients, if no row is kept; the released code divides 0 by 0.
    """
    losses = nn.functional.cross_entropy(logits.float(), targets.float(), reduction="none")  # (B,)
    return (losses * kept).sum() / _at_least_one(kept.sum() if count is None else count)


def _at_least_one(count: torch.Tensor | float) -> torch.Tensor | float:
    # Not `max(count, 1)`: a mean over processes may lie between 0 and 1. Only 0 is replaced; the sum is 0 then, too.
    if isinstance(count, torch.Tensor):
        return torch.where(count > 0, count, torch.ones_like(count))
    return count or 1.0


def crop_to_patches(crop_mask: torch.Tensor, kept_patches: torch.Tensor | None = None) -> torch.Tensor:
    """Turn a crop mask into the weights that average the patches inside the crop (section 3.3).

    Args:
        crop_mask: (B, h, w) on the patch grid, 1 inside the crop.
        kept_patches: int64 (B, N) in [0, h * w), the patches that training has kept (`patch_dropout`). None: all.

    Returns:
        float32 (B, h * w), or (B, N) with `kept_patches`. Each row sums to 1; it is 0 where no patch of the crop was
        kept.

    Raises:
        ValueError: A crop contains no patch; the message lists the rows.
    """
    weights = crop_mask.flatten(1).float()
    inside = weights.sum(dim=1, keepdim=True)
    if not torch.all(inside > 0):
        empty = (inside.squeeze(1) == 0).nonzero().flatten().tolist()
        raise ValueError(f"crop_mask is empty in the rows {empty}: a crop needs at least one patch.")
    if kept_patches is not None:
        weights = weights.gather(1, kept_patches)
        inside = weights.sum(dim=1, keepdim=True).clamp(min=1)
    return weights / inside


def crop_on_black(pixel_values_videos: torch.Tensor, crop_mask: torch.Tensor, black: torch.Tensor) -> torch.Tensor:
    """Blacken everything outside the crop, the same in every frame; this is the prompter's input (section 3.3).

    Args:
        pixel_values_videos: float (B, T, 3, H, W), normalised frames; H and W in pixels.
        crop_mask: (B, h, w) on the patch grid, 1 inside the crop.
        black: (3,), the value of a black pixel after normalisation, which is not 0.

    Returns:
        (B, T, 3, H, W) in the type of the frames.

    Raises:
        ValueError: The patch grid does not tile the frames.
    """
    height, width = pixel_values_videos.shape[-2:]
    rows, columns = crop_mask.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(
            f"A crop mask of {rows} x {columns} patches does not tile frames of {height} x {width} pixels."
        )
    # (B, h, w) -> (B, H, W): each patch covers height // rows by width // columns pixels
    inside = crop_mask.bool().repeat_interleave(height // rows, dim=1).repeat_interleave(width // columns, dim=2)
    outside = black.to(pixel_values_videos)[None, None, :, None, None]
    return torch.where(inside[:, None, None], pixel_values_videos, outside)


__all__ = [
    "IGNORE_INDEX",
    "classification_loss",
    "crop_on_black",
    "crop_to_patches",
    "hardest_negatives",
    "pem_kept",
    "pem_loss",
    "pools_of",
    "same_pair_mask",
    "sample_hard_negatives",
    "vtc_loss",
    "vtm_labels",
]
