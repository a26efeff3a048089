"""The teacher of PEM: prompts such as "A video of a dog.", and the model that compares crops of clips with them.

Source: arXiv 2112.09583, section 3.3. The templates are those of the original code.
"""

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Literal

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..adapters import merged
from ..model.modeling_alpro import AlproModel
from ..model.pretraining_alpro import AlproPrompterModel

logger = logging.getLogger(__name__)

VIDEO_TEMPLATES = tuple(
    f"{start} {article} {{entity}}."
    for start in ("A footage of", "A video of", "A portrait of", "A video footage of")
    for article in ("a", "the", "one")
)

IMAGE_TEMPLATES = tuple(
    f"{start} {article} {{entity}}."
    for start in ("A photo of", "A picture of", "A good photo of", "A good picture of")
    for article in ("a", "the", "one")
)


def prompts(entities: Sequence[str], templates: Sequence[str] = VIDEO_TEMPLATES) -> list[str]:
    """Put each entity into each template: all entities into the first template, then all into the second, and so on.

    Args:
        entities: Names of the entities.
        templates: Sentences with `{entity}` in place of the name.

    Returns:
        `len(templates) * len(entities)` sentences.

    Raises:
        ValueError: A template has no `{entity}`, or there are no templates or no entities.
    """
    if not templates or not entities:
        raise ValueError(f"Prompts need templates and entities; received {len(templates)} and {len(entities)}.")
    for template in templates:
        if "{entity}" not in template:
            raise ValueError(f"The template {template!r} has no place for the entity; write {{entity}} there.")
    return [template.replace("{entity}", entity) for template in templates for entity in entities]


def build_prompter(
    model: PreTrainedModel,
    processor: Any,
    entities: Sequence[str],
    *,
    video_templates: Sequence[str] = VIDEO_TEMPLATES,
    image_templates: Sequence[str] = IMAGE_TEMPLATES,
    more_templates: Sequence[str] = (),
    batch_size: int = 256,
    max_length: int = 15,
    progress: bool = True,
) -> AlproPrompterModel:
    """Make the teacher of PEM from a model trained with VTC: its towers, and an embedding for each entity.

    An embedding is the mean of the text features of all prompts of a kind (paper, section 3.3). The names go into
    `config.entities`, so that `save_pretrained` and `from_pretrained` keep both.

    Args:
        model: An `AlproModel` or any model around one, which is copied. The entities of a prompter are replaced, and
            its calibrated temperature is dropped.
        processor: The tokenizer of that model, or its processor.
        entities: Names, all different; see `read_entities`.
        video_templates, image_templates: Sentences with `{entity}`, see `prompts`.
        more_templates: Further sentences for both kinds, such as some in the language of the captions.
        batch_size: Prompts encoded at a time.
        max_length: Tokens of a prompt, including `[CLS]` and `[SEP]` (15 in the paper). Longer prompts are cut off,
            and a warning names their entities.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The prompter, frozen and in evaluation mode, on the device and in the dtype of the model.

    Raises:
        TypeError: There is no `AlproModel` in the model.
        ValueError: Templates, entities, `max_length` or `batch_size` cannot be used.
    """
    base = merged(model).base_model
    if not isinstance(base, AlproModel):
        raise TypeError(
            f"A prompter is made from an AlproModel or a model around one; received {type(model).__name__}."
        )
    longest = base.config.text_config.max_position_embeddings
    if not 2 < max_length <= longest or batch_size < 1:
        raise ValueError(
            f"max_length={max_length} must lie between 3 and the {longest} tokens that the model reads, and "
            f"batch_size={batch_size} must be at least 1."
        )
    unusable = sorted(name for name, times in Counter(entities).items() if times > 1 or not name.strip())
    if unusable:
        raise ValueError(f"Each entity needs a name of its own; blank or more than once: {unusable}.")
    tokenizer = getattr(processor, "tokenizer", processor)
    encoded: dict[Literal["video", "image"], Mapping[str, Any]] = {
        "video": _tokenize(tokenizer, prompts(entities, (*video_templates, *more_templates)), entities, max_length),
        "image": _tokenize(tokenizer, prompts(entities, (*image_templates, *more_templates)), entities, max_length),
    }
    config = copy.deepcopy(base.config)
    config.entities = list(entities)
    config.pem_temperature = None  # a calibration holds for the prompts that it was fitted with
    prompter = AlproPrompterModel(config)
    prompter.to(device=base.device, dtype=base.dtype)  # type: ignore[call-arg]  # the library's wrapper hides self
    prompter.alpro.load_state_dict(base.state_dict())
    prompter.eval().requires_grad_(False)
    total = sum(len(tokens["input_ids"]) for tokens in encoded.values())
    with tqdm(total=total, desc="embedding prompts", unit=" prompts", disable=not progress) as bar:
        # `set_prompts` encodes in batches and reports nothing, but each batch passes this projection once
        def tick(module: Any, inputs: Any, embeds: Sized) -> None:
            bar.update(len(embeds))

        hook = prompter.alpro.text_projection.register_forward_hook(tick)
        for kind, tokens in encoded.items():
            prompter.set_prompts(kind, tokens["input_ids"], tokens["attention_mask"], batch_size=batch_size)
        hook.remove()
    return prompter


def _tokenize(tokenizer: Any, texts: Sequence[str], entities: Sequence[str], max_length: int) -> Mapping[str, Any]:
    """`input_ids` and `attention_mask`, int64 (texts, at most max_length)."""
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    # prompts are ordered by template, see `prompts`, so entities repeat with their number as the period
    cut = sorted({entities[row % len(entities)] for row, length in enumerate(lengths) if length > max_length})
    if cut:
        logger.warning(
            "Prompts of %d entities are longer than max_length=%d tokens and lose their end: %s",
            len(cut),
            max_length,
            ", ".join(cut[:20]) + (", ..." if len(cut) > 20 else ""),
        )
    return tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")


__all__ = ["IMAGE_TEMPLATES", "VIDEO_TEMPLATES", "build_prompter", "prompts"]
