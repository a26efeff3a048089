"""Conversion of BLIP for image-text retrieval to an ALPRO model, with its processor and a card.

`model/image_text_alpro.py` says how BLIP's tensors become ALPRO's. Here they are read as data, like any checkpoint.
The numbers that the tensors do not show come from `config.json`, and every size in it is compared with the tensors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from transformers import BlipConfig, BlipImageProcessor
from transformers.activations import ACT2FN

from ..assets import bundled_vocabulary
from ..model.configuration_alpro import AlproConfig
from ..model.image_text_alpro import config_from_blip, image_text_facts, model_state_from_blip
from ..model.modeling_alpro import AlproForVideoTextRetrieval, AlproModel
from ..model.processing_alpro import AlproProcessor
from ..model.unimodal_alpro import CheckpointError
from ..model.video_processing_alpro import AlproVideoProcessor
from .card import FACTS
from .checkpoint_file import some_names
from .checkpoint_source import IMAGE_SETTINGS, VOCABULARIES, Checkpoint
from .converted_folder import BUNDLED_WORDS, build_tokenizer, read_words
from .names import CARD

State = Mapping[str, torch.Tensor]
MAX_LENGTH = 35  # tokens of the texts on which BLIP was fine-tuned for retrieval
_EXTRA_WORDS = 2  # [DEC] and [ENC], which BLIP adds to BERT's vocabulary; retrieval by vectors uses neither
_TEXT, _VISION = "text_encoder.", "vision_model."
# (part of the configuration, field, tensor that shows it, its dimension, number of dimensions)
_SIZES = (
    ("text_config", "vocab_size", f"{_TEXT}embeddings.word_embeddings.weight", 0, 2),
    ("text_config", "hidden_size", f"{_TEXT}embeddings.word_embeddings.weight", 1, 2),
    ("text_config", "max_position_embeddings", f"{_TEXT}embeddings.position_embeddings.weight", 0, 2),
    ("text_config", "intermediate_size", f"{_TEXT}encoder.layer.0.intermediate.dense.weight", 0, 2),
    ("vision_config", "hidden_size", f"{_VISION}embeddings.patch_embedding.weight", 0, 4),
    ("vision_config", "patch_size", f"{_VISION}embeddings.patch_embedding.weight", 3, 4),
    ("vision_config", "intermediate_size", f"{_VISION}encoder.layers.0.mlp.fc1.weight", 0, 2),
    ("", "image_text_hidden_size", "vision_proj.weight", 0, 2),
)
_DEPTHS = (("text_config", f"{_TEXT}encoder.layer."), ("vision_config", f"{_VISION}encoder.layers."))
# what config_from_blip reads; all else in the file is left alone
_FIELDS = {
    "text_config": (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *("layer_norm_eps", "vocab_size", "max_position_embeddings", "pad_token_id"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ),
    "vision_config": (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *("layer_norm_eps", "image_size", "patch_size", "attention_dropout"),
    ),
}


def convert_blip(
    found: Checkpoint, state: State, fusion_layers: int = 0, vocab: str | Path | None = None
) -> tuple[AlproModel | AlproForVideoTextRetrieval, AlproProcessor]:
    """Build an ALPRO model and its processor from a BLIP model for image-text retrieval.

    Args:
        found: The checkpoint; its folder holds `config.json`, and often the settings of the images and the vocabulary.
        state: Its tensors by the names of `BlipForImageTextRetrieval`.
        fusion_layers: Number of fusion layers to append for fine-tuning, see
            `AlproForVideoTextRetrieval.from_image_text_pretrained`. 0: none, and so no matching head.
        vocab: A `vocab.txt`. None: the vocabulary in the folder; without one, that of bert-base-uncased, if it fits.

    Returns:
        An `AlproModel` in float32 and evaluation mode, or with fusion layers an `AlproForVideoTextRetrieval`; and its
        processor.

    Raises:
        CheckpointError: The configuration is absent, damaged or of other sizes than the tensors, or tensors are
            missing, unexpected or misshaped.
        ValueError: The number of fusion layers or the vocabulary does not fit the model.
    """
    blip_config = _read_config(found, state)
    config = AlproConfig(**config_from_blip(blip_config, fusion_layers))
    # in this order: the vocabulary is read before the model is built
    processor = _build_processor(found.folder, config, vocab)
    model = AlproModel(config)
    try:
        tensors = model_state_from_blip(state, model.state_dict(), fusion_layers)
    except CheckpointError as error:
        raise CheckpointError(_in_one_sentence(found.source, error)) from error
    model.load_state_dict(tensors)
    if not fusion_layers:
        return model.eval(), processor
    retrieval = AlproForVideoTextRetrieval(config)
    retrieval.alpro = model
    return retrieval.eval(), processor


def write_card(folder: Path, source: str, name: str) -> None:
    """Write `README.md`, and the facts for the card of a publication, into a folder with a model that was BLIP.

    Args:
        folder: The model folder.
        source: Hub id, or name of the file or folder that was converted.
        name: Title of the card.
    """
    facts = image_text_facts(source)
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    data = ModelCardData(
        license=facts["license"],
        library_name="alpro-hf",
        language=["en"],
        tags=["alpro", "video", "video-text-retrieval"],
        base_model=source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else None,
    )
    limits = "\n".join(f"- {limit}" for limit in facts["limits"])
    text = (
        f"# {name}\n\n{facts['summary']} {facts['procedure']}\n\n## Quality\n\nThe quality of this model was not "
        f"measured by the authors of alpro-hf.\n\n{limits}\n\n## Data\n\n{facts['data']}\n\n## Licence\n\n"
        "The weights that Salesforce published have the licence BSD-3-Clause. If somebody else trained this "
        "checkpoint, their licence holds.\n"
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / CARD)


def _read_config(found: Checkpoint, state: State) -> BlipConfig:
    """The configuration in the folder, of which each size is that of the tensors."""
    path = None if found.folder is None else found.folder / "config.json"
    if path is None or not path.is_file():
        raise CheckpointError(
            f"{found.source} is a BLIP model without its config.json: name its folder, or its id on the Hub, such as "
            "Salesforce/blip-itm-base-coco."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    try:
        kind = content["model_type"]
        parts: dict[str, Any] = {
            part: {name: content[part][name] for name in names if name in content[part]}
            for part, names in _FIELDS.items()
        }
        if "image_text_hidden_size" in content:
            parts["image_text_hidden_size"] = content["image_text_hidden_size"]
        config = BlipConfig(**parts)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{path} does not describe a BLIP model ({reason}).") from error
    if kind != "blip":
        raise CheckpointError(f"{path} describes a model of type {kind!r}, but the weights are those of BLIP.")
    for name in _FIELDS:
        part = getattr(config, name)
        if part.num_attention_heads < 1 or part.hidden_act not in ACT2FN:
            raise CheckpointError(
                f"{path} says {name}.num_attention_heads={part.num_attention_heads} and {name}.hidden_act="
                f"{part.hidden_act!r}, with which no model can be built."
            )
    _check_sizes(found.source, config, state)
    return config


def _check_sizes(source: str, config: BlipConfig, state: State) -> None:
    """Refuse a configuration of other sizes than the tensors, before a model of these sizes is built."""
    absent = [name for _, _, name, _, _ in _SIZES if name not in state]
    position = f"{_VISION}embeddings.position_embedding"
    absent += [name for name in (position, "text_proj.weight") if name not in state]
    if absent:
        raise CheckpointError(_lacks(source, absent))

    def check(part: str, field: str, shown: int, where: str) -> None:
        said = getattr(getattr(config, part) if part else config, field)
        if said != shown:
            full = f"{part}.{field}" if part else field
            raise CheckpointError(f"The config.json of {source} says {full}={said}, but {where} shows {shown}.")

    for part, field, name, dimension, dimensions in _SIZES:
        shape = tuple(state[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {shape}, but {dimensions} dimensions are needed, none of them empty."
            )
        check(part, field, shape[dimension], f"{name} of the shape {shape}")
    for part, prefix in _DEPTHS:
        numbers = {found[1] for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))}
        check(part, "num_hidden_layers", len(numbers), f"{prefix}*")
    vision: Any = config.vision_config
    grid, shape = vision.image_size // vision.patch_size, tuple(state[position].shape)
    if len(shape) != 3 or shape[1] != grid**2 + 1:
        raise CheckpointError(
            f"The config.json of {source} says vision_config.image_size={vision.image_size}, which are {grid} x "
            f"{grid} patches, but {position} has the shape {shape}."
        )


def _lacks(source: str, names: Sequence[str]) -> str:
    return (
        f"{source} is not a whole BLIP model for image-text retrieval (BlipForImageTextRetrieval): {len(names)} "
        f"tensors are missing: {some_names(sorted(names))}."
    )


def _in_one_sentence(source: str, error: CheckpointError) -> str:
    if error.missing:
        return _lacks(source, error.missing)
    problem, names = (
        ("tensors are unknown", error.unexpected)
        if error.unexpected
        else ("tensors have other shapes", error.misshaped)
    )
    return f"{source} is not a BLIP model for image-text retrieval: {len(names)} {problem}: {some_names(names)}."


def _build_processor(folder: Path | None, config: AlproConfig, vocab: str | Path | None) -> AlproProcessor:
    """Pictures and texts as BLIP takes them: bicubic, CLIP's mean and deviation, `[CLS]` first, 35 tokens."""
    images = BlipImageProcessor()  # the values of BLIP's own files
    if folder is not None and any((folder / name).is_file() for name in IMAGE_SETTINGS):
        images = BlipImageProcessor.from_pretrained(folder, trust_remote_code=False)
    video = config.video_config
    settings = {name: getattr(images, name) for name in ("resample", "image_mean", "image_std", "rescale_factor")}
    videos = AlproVideoProcessor(size={"height": video.image_size, "width": video.image_size}, **settings)
    return AlproProcessor(video_processor=videos, tokenizer=_build_tokenizer(folder, config, vocab))


def _build_tokenizer(folder: Path | None, config: AlproConfig, vocab: str | Path | None) -> Any:
    text = config.text_config
    least = text.vocab_size - _EXTRA_WORDS
    path = _vocabulary_in(folder) if vocab is None else Path(vocab)
    if path is None and not least <= BUNDLED_WORDS <= text.vocab_size:
        raise ValueError(
            f"The model embeds {text.vocab_size} words and comes without a vocabulary, and that of bert-base-uncased "
            f"has {BUNDLED_WORDS}: name its vocab.txt with --vocab."
        )
    path = path or bundled_vocabulary()
    words = read_words(path)
    if not least <= len(words) <= text.vocab_size:
        raise ValueError(
            f"{path} has {len(words)} entries, but the model embeds {text.vocab_size} words: it belongs to another "
            "model."
        )
    return build_tokenizer(path, words, min(MAX_LENGTH, text.max_position_embeddings))


def _vocabulary_in(folder: Path | None) -> Path | None:
    return next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None) if folder else None


__all__ = ["convert_blip", "write_card"]
