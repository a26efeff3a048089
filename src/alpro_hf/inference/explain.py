"""What a model sees: the entities of every region of a clip, and the patches that each word of a sentence reads.

Regions are what prompting entity modeling learns from (section 3.3 of the paper): a box, the same in all frames, shown
to the prompter on black. Words are explained by the attention of the fusion layers, weighted by its gradient (the
relevance of Chefer, Gur and Wolf, arXiv 2103.15679): attention counts as far as more of it would make the matching
head surer that sentence and clip belong together.

Both give maps on the grid of patches, (rows, columns). A map holds for all frames: the prompter sees a box in all of
them at once, and the video tower averages patches over time before any word reads them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.loss_alpro import crop_on_black
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from ..model.pretraining_alpro import AlproPrompterModel, PromptKind

BOX_SHARE = 0.4  # of the area: the middle of what PEM draws
_PLACES = 5  # of a region along each side, at most; bounds the cost on fine grids
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class EntityMaps:
    """What the prompter sees where.

    Args:
        regions: bool (R, rows, columns), the boxes that were looked at.
        probabilities: float32 (R, entities), of each box; rows sum to 1.
        maps: float32 (entities, rows, columns): for each patch the mean probability over the boxes that hold it.
    """

    regions: torch.Tensor
    probabilities: torch.Tensor
    maps: torch.Tensor


@dataclass(frozen=True)
class WordMap:
    """Where a word looks.

    Args:
        word: As it stands in the sentence.
        known: Whether the vocabulary of the model has it; the model reads all words it does not know alike.
        relevance: float32 (rows, columns), not negative; comparable between the words of a sentence.
    """

    word: str
    known: bool
    relevance: torch.Tensor


@dataclass(frozen=True)
class SentenceMaps:
    """How a sentence reads a clip.

    Args:
        match_probability: That they belong together, in [0, 1].
        sentence: float32 (rows, columns), what the matching head rests on: the map of the token it reads.
        words: One map for each word.
    """

    match_probability: float
    sentence: torch.Tensor
    words: list[WordMap]


def patch_grid(model: Any, pixel_values_videos: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches of a clip (..., H, W)."""
    patch = model.config.video_config.patch_size
    height, width = pixel_values_videos.shape[-2:]
    return height // patch, width // patch


def black_pixel(video_processor: Any) -> torch.Tensor:
    """The value of a black pixel after normalisation, float32 (3,)."""
    mean, std = torch.tensor(video_processor.image_mean), torch.tensor(video_processor.image_std)
    return -mean / std


def region_masks(grid: tuple[int, int], share: float = BOX_SHARE) -> torch.Tensor:
    """Boxes of about a share of the grid, in two sizes and at all places (at most 5 x 5 of each size).

    The sizes are the square root of `share` of each side, rounded down and up to whole patches.

    Returns:
        bool (R, rows, columns); every patch is inside at least one box of each size.
    """
    if min(grid) < 1 or not 0 < share <= 1:
        raise ValueError(f"Regions need a grid of patches and a share in (0, 1]; received {grid} and {share}.")
    masks = []
    sizes = [[max(1, rounded(side * math.sqrt(share))) for side in grid] for rounded in (math.floor, math.ceil)]
    for height, width in dict.fromkeys(map(tuple, sizes)):
        for top in _places(grid[0] - height, height):
            for left in _places(grid[1] - width, width):
                mask = torch.zeros(grid, dtype=torch.bool)
                mask[top : top + height, left : left + width] = True
                masks.append(mask)
    return torch.stack(masks)


def _places(last: int, size: int) -> list[int]:
    """Starts from 0 to `last`, evenly spread and without a gap between boxes of this size."""
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
    """How probable each entity is in each of some boxes of one clip.

    Args:
        pixel_values_videos: (1, T, 3, H, W), normalised frames.
        masks: bool (R, rows, columns) on the grid of patches, True inside the box.
        black: (3,), see `black_pixel`.
        kind: Which prompts to compare with.

    Returns:
        float32 (R, entities) on the CPU; rows sum to 1.

    Raises:
        ValueError: More than one clip, or a box without a patch.
    """
    if len(pixel_values_videos) != 1:
        raise ValueError(f"box_entities looks at one clip; received {len(pixel_values_videos)}.")
    if not masks.flatten(1).any(dim=1).all():
        raise ValueError("A box holds no patch. Make it larger.")
    clip, found = pixel_values_videos.to(prompter.device), []
    for some in masks.to(prompter.device).split(_ENCODED_AT_ONCE):
        crops = crop_on_black(clip.expand(len(some), -1, -1, -1, -1), some, black)
        found.append(prompter.pseudo_labels(crops, kind).cpu())
    return torch.cat(found)


def entity_maps(
    prompter: AlproPrompterModel, pixel_values_videos: torch.Tensor, black: torch.Tensor, kind: PromptKind = "video"
) -> EntityMaps:
    """Look at every region of one clip; arguments as in `box_entities`, regions of `region_masks`."""
    regions = region_masks(patch_grid(prompter, pixel_values_videos))
    probabilities = box_entities(prompter, pixel_values_videos, regions, black, kind)
    weights = regions.float() / regions.sum(dim=0)  # every patch: equal weights of the boxes that hold it
    return EntityMaps(regions, probabilities, torch.einsum("re,rhw->ehw", probabilities, weights))


def word_maps(
    model: AlproForVideoTextRetrieval, processor: Any, text: str, pixel_values_videos: torch.Tensor
) -> SentenceMaps:
    """Which patches each word of a sentence attends to in the fusion layers, as far as it bears on the match.

    In each fusion layer the attention of every head is multiplied by the gradient of the matching logit (matched minus
    not matched); what is negative is dropped, heads are averaged, and layers are chained with their residual
    connections. The last layer is only read at its first token, so at least two are needed to say something of words.

    Args:
        model: With `attn_implementation="eager"`, the only one that returns its attention.
        processor: Its `AlproProcessor`.
        text: A sentence; words beyond what the model reads are left out.
        pixel_values_videos: (1, T, 3, H, W), normalised frames.

    Raises:
        ValueError: A blank text, another attention, fewer than two fusion layers, or more than one clip.
    """
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
        raise ValueError(f"word_maps looks at one clip; received {len(pixel_values_videos)}.")
    limit = text_config.max_position_embeddings
    tokens = processor.tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
    ids, mask = tokens["input_ids"].to(model.device), tokens["attention_mask"].to(model.device)
    with torch.no_grad():
        video_BND = model.alpro.get_video_features(pixel_values_videos.to(model.device)).last_hidden_state
        text_BLD = model.alpro.get_text_features(ids, mask).last_hidden_state
    with torch.enable_grad():  # a frozen model has gradients of its input too
        fused = model.alpro.fuse(text_BLD.requires_grad_(), mask, video_BND, output_attentions=True)
        logits = model.vtm_head(fused.last_hidden_state[:, 0])[0]
        gradients = torch.autograd.grad(logits[1] - logits[0], fused.attentions)
    relevance = _relevance([weights[0].detach() for weights in fused.attentions], [g[0] for g in gradients])
    length = ids.shape[1]
    to_patches = relevance[:length, length + 1 :].unflatten(1, patch_grid(model, pixel_values_videos)).float().cpu()
    return SentenceMaps(
        match_probability=logits.softmax(dim=0)[1].item(),
        sentence=to_patches[0],
        words=_words(tokens, text, to_patches, processor.tokenizer.unk_token_id),
    )


def _relevance(attentions: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """(S, S): how much each token took from each, through all layers; attentions and gradients are (heads, S, S)."""
    relevance = torch.eye(attentions[0].shape[-1], device=attentions[0].device)
    for weights, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (weights * gradient).clamp(min=0).mean(dim=0).float() @ relevance
    return relevance


def _words(tokens: Any, text: str, to_patches: torch.Tensor, unknown: int) -> list[WordMap]:
    """One map a word, the sum of its pieces; punctuation is left out."""
    pieces: dict[int, list[int]] = {}
    for place, word in enumerate(tokens.word_ids(0)):
        if word is not None:
            pieces.setdefault(word, []).append(place)
    words = []
    for word, places in pieces.items():
        start, end = tokens.word_to_chars(0, word)
        if any(map(str.isalnum, text[start:end])):
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
