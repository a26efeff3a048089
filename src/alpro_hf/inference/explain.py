"""Explain a model: the entities in each region of a clip, and the patches that each word of a sentence reads.

Regions are the input of prompting entity modeling (section 3.3 of the paper): a box at the same place in all frames,
shown to the prompter on black. Words are explained by the attention of the fusion layers, weighted by its gradient
(the relevance of Chefer, Gur and Wolf, arXiv 2103.15679). Attention counts as far as more of it would raise the
matching logit.

Both kinds of map lie on the grid of patches, (rows, columns), and hold for all frames: the prompter sees a box in all
frames at once, and the video tower averages patches over time before any word reads them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.loss_alpro import crop_on_black
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from ..model.pretraining_alpro import AlproPrompterModel, PromptKind
from ..model.wrappers_alpro import plain_model

BOX_SHARE = 0.4  # of the area: the middle of the range that PEM draws boxes from
_PLACES = 5  # of a region along each side, at most; limits the cost on fine grids
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class EntityMaps:
    """Entities that the prompter sees in each region of a clip.

    Args:
        regions: bool (R, rows, columns), the boxes that were shown to the prompter.
        probabilities: float32 (R, entities), of each box; rows sum to 1.
        maps: float32 (entities, rows, columns), for each patch the mean probability over the boxes that hold it.
    """

    regions: torch.Tensor
    probabilities: torch.Tensor
    maps: torch.Tensor


@dataclass(frozen=True)
class WordMap:
    """Patches that a word reads.

    Args:
        word: The word as written in the sentence.
        known: Whether the model's vocabulary has the word. All unknown words are the same token to the model.
        relevance: float32 (rows, columns), not negative. Comparable between the words of one sentence.
    """

    word: str
    known: bool
    relevance: torch.Tensor


@dataclass(frozen=True)
class SentenceMaps:
    """Patches that a sentence and its words read.

    Args:
        match_probability: Probability that sentence and clip belong together, in [0, 1].
        sentence: float32 (rows, columns), the map of the token that the matching head reads.
        words: One map for each word.
    """

    match_probability: float
    sentence: torch.Tensor
    words: list[WordMap]


def patch_grid(model: Any, pixel_values_videos: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patches of a clip (..., H, W)."""
    patch = plain_model(model).config.video_config.patch_size
    height, width = pixel_values_videos.shape[-2:]
    return height // patch, width // patch


def black_pixel(video_processor: Any) -> torch.Tensor:
    """The value of a black pixel after normalisation, float32 (3,)."""
    mean, std = torch.tensor(video_processor.image_mean), torch.tensor(video_processor.image_std)
    return -mean / std


def region_masks(grid: tuple[int, int], share: float = BOX_SHARE) -> torch.Tensor:
    """Boxes that cover about a share of the grid, in two sizes, at up to 5 x 5 places for each size.

    Each side of a box is the square root of `share` of the side of the grid, rounded down and up to whole patches.

    Args:
        grid: Rows and columns of patches.
        share: Area of a box as a share of the grid, in (0, 1].

    Returns:
        bool (R, rows, columns); every patch is inside at least one box of each size.

    Raises:
        ValueError: The grid is empty, or the share is outside (0, 1].
    """
    if min(grid) < 1 or not 0 < share <= 1:
        raise ValueError(f"Regions need a grid of patches and a share in (0, 1]; received {grid} and {share}.")
    masks = []
    sizes = [[max(1, rounded(side * math.sqrt(share))) for side in grid] for rounded in (math.floor, math.ceil)]
    for height, width in dict.fromkeys(map(tuple, sizes)):  # one size where rounding gives the same
        for top in _places(grid[0] - height, height):
            for left in _places(grid[1] - width, width):
                mask = torch.zeros(grid, dtype=torch.bool)
                mask[top : top + height, left : left + width] = True
                masks.append(mask)
    return torch.stack(masks)


def _places(last: int, size: int) -> list[int]:
    """Start positions from 0 to `last`, evenly spread, so close that boxes of this size leave no gap."""
    count = min(last + 1, max(_PLACES, math.ceil(last / size) + 1))
    return sorted({round(i * last / max(1, count - 1)) for i in range(count)})


@torch.no_grad()
def box_entities(
    prompter: AlproPrompterModel,
    pixel_values_videos: torch.Tensor,
    masks: torch.Tensor,
    black: torch.Tensor,
    kind: PromptKind = "video",
) -> torch.Tensor:
    """Probability of each entity in some boxes of one clip.

    Args:
        prompter: On its device, in evaluation mode.
        pixel_values_videos: (1, T, 3, H, W), normalised frames.
        masks: bool (R, rows, columns) on the grid of patches, True inside the box.
        black: (3,), see `black_pixel`.
        kind: Which prompts to compare with.

    Returns:
        float32 (R, entities) on the CPU; rows sum to 1.

    Raises:
        ValueError: More than one clip, or a box without a patch.
    """
    prompter = plain_model(prompter)
    if len(pixel_values_videos) != 1:
        raise ValueError(f"box_entities needs exactly one clip; received {len(pixel_values_videos)}.")
    if not masks.flatten(1).any(dim=1).all():
        empty = (~masks.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"masks {empty} hold no patch. Make the boxes larger.")
    # all boxes of one clip at once would multiply the memory of the clip by their number
    clip, found = pixel_values_videos.to(prompter.device), []
    for some in masks.to(prompter.device).split(_ENCODED_AT_ONCE):
        crops = crop_on_black(clip.expand(len(some), -1, -1, -1, -1), some, black)
        found.append(prompter.pseudo_labels(crops, kind).cpu())
    return torch.cat(found)


def entity_maps(
    prompter: AlproPrompterModel, pixel_values_videos: torch.Tensor, black: torch.Tensor, kind: PromptKind = "video"
) -> EntityMaps:
    """Probabilities of entities in the regions of one clip, see `region_masks`; arguments as in `box_entities`."""
    regions = region_masks(patch_grid(prompter, pixel_values_videos))
    probabilities = box_entities(prompter, pixel_values_videos, regions, black, kind)
    weights = regions.float() / regions.sum(dim=0)  # for each patch, the boxes that hold it have equal weights
    return EntityMaps(regions, probabilities, torch.einsum("re,rhw->ehw", probabilities, weights))


def word_maps(
    model: AlproForVideoTextRetrieval, processor: Any, text: str, pixel_values_videos: torch.Tensor
) -> SentenceMaps:
    """Patches that each word of a sentence reads in the fusion layers, weighted by their effect on the match.

    In each fusion layer the attention of every head is multiplied by the gradient of the matching logit (matched minus
    not matched). Negative products are dropped, heads are averaged, and layers are chained with their residual
    connections. The head reads only the first token of the last layer, so words need at least two fusion layers.

    Args:
        model: Loaded with `attn_implementation="eager"`, the only one that returns its attention.
        processor: Its `AlproProcessor`.
        text: A sentence. Words beyond the longest text that the model reads are left out.
        pixel_values_videos: (1, T, 3, H, W), normalised frames.

    Raises:
        ValueError: The text is blank, the attention is not eager, there are fewer than two fusion layers, or there is
            more than one clip.
    """
    model = plain_model(model)
    if not text.strip():
        raise ValueError("The sentence is blank. Describe the clip, for instance 'a dog runs'.")
    if model.config._attn_implementation != "eager":
        raise ValueError(
            f"word_maps needs the attention weights, which {model.config._attn_implementation!r} does not return. "
            "Load the model with attn_implementation='eager'."
        )
    text_config = model.config.text_config
    if text_config.num_hidden_layers - text_config.fusion_layer < 2:
        raise ValueError("word_maps needs at least two fusion layers; the words of the last one are never read.")
    if len(pixel_values_videos) != 1:
        raise ValueError(f"word_maps needs exactly one clip; received {len(pixel_values_videos)}.")
    limit = text_config.max_position_embeddings
    tokens = processor.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
    ids, mask = tokens["input_ids"].to(model.device), tokens["attention_mask"].to(model.device)
    with torch.no_grad():
        video_BND = model.alpro.get_video_features(pixel_values_videos.to(model.device)).last_hidden_state
        text_BLD = model.alpro.get_text_features(ids, mask).last_hidden_state
    # gradients start at the text states: the towers need none, and a frozen model works too
    with torch.enable_grad():
        fused = model.alpro.fuse(text_BLD.requires_grad_(), mask, video_BND, output_attentions=True)
        logits = model.vtm_head(fused.last_hidden_state[:, 0])[0]  # (2,); not `match`, which returns no attention
        gradients = torch.autograd.grad(logits[1] - logits[0], fused.attentions)
    relevance = _relevance([weights[0].detach() for weights in fused.attentions], [g[0] for g in gradients])
    length = ids.shape[1]
    # columns: `length` text tokens, the CLS token of the clip, its patches
    to_patches = relevance[:length, length + 1 :].unflatten(1, patch_grid(model, pixel_values_videos)).float().cpu()
    return SentenceMaps(
        match_probability=logits.softmax(dim=0)[1].item(),
        sentence=to_patches[0],
        words=_words(tokens, text, to_patches, processor.tokenizer.unk_token_id),
    )


def _relevance(attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """(S, S), how much each token has read from each other one; attentions and gradients are (heads, S, S)."""
    # the identity is the residual connection: a token keeps its own content
    relevance = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (weights * gradient).clamp(min=0).mean(dim=0).float() @ relevance
    return relevance


def _words(tokens: Any, text: str, to_patches: torch.Tensor, unknown: int) -> list[WordMap]:
    """One map for each word, the sum of the maps of its pieces. Punctuation is left out."""
    pieces: dict[int, list[int]] = {}
    for place, word in enumerate(tokens.word_ids(0)):
        if word is not None:
            pieces.setdefault(word, []).append(place)
    words = []
    for word, places in pieces.items():
        start, end = tokens.word_to_chars(0, word)
        if any(map(str.isalnum, text[start:end])):  # the tokenizer counts punctuation as words
            known = unknown not in tokens["input_ids"][0, places].tolist()
            words.append(WordMap(text[start:end], known, to_patches[places].sum(dim=0)))
    return words


__all__ = [
    "EntityMaps",
    "SentenceMaps",
    "WordMap",
    "black_pixel",
    "box_entities",
    "entity_maps",
    "patch_grid",
    "region_masks",
    "word_maps",
]
