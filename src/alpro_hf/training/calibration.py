"""The temperature of the teacher of PEM, fitted to held-out crops so that its probabilities mean what they say.

VTC learns its temperature for whole clips in large batches. Over a thousand entities and on crops, the same
temperature makes the teacher far too sure: labels pass the threshold of PEM that are wrong, or, after a short
training, none passes.
"""

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ..data.pretraining_collator import AlproPreTrainingCollator
from ..data.rows import NumberedRows, undecoded
from ..model.loss_alpro import crop_on_black
from ..model.matching_alpro import vtc_scores
from ..model.pretraining_alpro import AlproPrompterModel

_STEPS = 400  # temperatures that are tried, a fixed ratio apart: 1.6 % between 0.001 and 0.5


class CalibrationError(ValueError):
    """A temperature cannot be fitted; the message says what is missing."""


@cache
def _name(entity: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(entity)}(?:s|es)?\b", re.IGNORECASE)


def named_entities(texts: Sequence[str], entities: Sequence[str]) -> torch.Tensor:
    """Which entities captions name, also in the regular plural: bool (texts, entities)."""
    named = [[bool(_name(entity).search(text)) for entity in entities] for text in texts]
    return torch.tensor(named, dtype=torch.bool).view(len(texts), len(entities))


def fit_temperature(similarity: torch.Tensor, named: torch.Tensor, low: float = 0.001, high: float = 0.5) -> float:
    """The temperature at which the named entities together get the likeliest probability.

    Args:
        similarity: float (n, entities), cosine similarities of crops and prompts.
        named: bool (n, entities), the entities that are right for each crop. Crops for which none is, or all are, say
            nothing and are left out.
        low, high: Range of the temperature.

    Returns:
        The temperature with the smallest mean of -log(sum of the probabilities of the named entities).

    Raises:
        CalibrationError: No crop says anything.
    """
    telling = named.any(dim=1) & ~named.all(dim=1)
    if not telling.any():
        raise CalibrationError("No caption names an entity of the prompter, so its temperature cannot be calibrated.")
    scores, right = similarity[telling].double(), named[telling]
    best, least = low, float("inf")
    for temperature in torch.logspace(math.log10(low), math.log10(high), _STEPS, dtype=torch.float64):
        logs = (scores / temperature).log_softmax(dim=1).masked_fill(~right, float("-inf")).logsumexp(dim=1)
        loss = -logs.mean().item()
        if loss < least:
            best, least = temperature.item(), loss
    return best


@torch.inference_mode()
def calibrate(
    prompter: AlproPrompterModel,
    rows: Any,
    collator: AlproPreTrainingCollator,
    *,
    batch_size: int = 32,
    epoch: int = 0,
) -> float:
    """Fit the temperature of a prompter to crops of held-out rows, and set it.

    What a caption names counts as right for the crop of its clip. A crop may show nothing of it, and then the teacher
    should be unsure: so the temperature is that of crops, and not that of clips.

    Args:
        prompter: The teacher, on its device. `config.pem_temperature` is set, which `save_pretrained` keeps.
        rows: Rows of pre-training that the prompter was not trained on, all with a video or all with an image.
        collator: The collator that pre-training will use, which draws the crops.
        batch_size: Clips encoded at a time.
        epoch: The epoch whose draws are used.

    Returns:
        The temperature.

    Raises:
        CalibrationError: No caption names an entity, or no clip can be decoded.
    """
    entities = list(prompter.config.entities or ())
    numbered = NumberedRows(undecoded(rows), training=True)
    numbered.set_epoch(epoch)
    prompter.eval()
    similarities, texts = [], []
    for start in range(0, len(numbered), batch_size):
        collated = collator.collate(numbered.__getitems__(list(range(start, min(start + batch_size, len(numbered))))))
        if not collated.rows:
            continue
        batch = collated.batch
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
        features = prompter.alpro.get_video_features(crops.to(prompter.device, prompter.dtype)).pooler_output
        prompts = prompter.video_prompt_embeds if batch["kind"] == "video" else prompter.image_prompt_embeds
        similarities.append(vtc_scores(features, prompts).float().cpu())
        texts += [row["text"] for row in collated.rows]
    if not similarities:
        raise CalibrationError("None of the rows for the calibration can be decoded.")
    config = prompter.config
    low, high = max(config.temperature_min, 1e-4), config.temperature_max
    temperature = fit_temperature(torch.cat(similarities), named_entities(texts, entities), low, high)
    config.pem_temperature = temperature
    return temperature


__all__ = ["CalibrationError", "calibrate", "fit_temperature", "named_entities"]
