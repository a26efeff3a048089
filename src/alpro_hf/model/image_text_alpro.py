"""Convert BLIP for image-text retrieval (arXiv 2201.12086) to an ALPRO model that compares texts and clips as BLIP.

BLIP's retrieval models consist of the parts that ALPRO has: a pre-norm ViT, a BERT and two projections. Facts about
transformers' `BlipForImageTextRetrieval` on which the conversion rests:

- An image is compared by the CLS token of `last_hidden_state`, which is normed once. (BLIP's `pooler_output` is normed
  a second time and belongs to another model class.) So `post_layernorm` is the last norm of our video tower.
- Query, key and value of the ViT are one stacked projection already; those of the text encoder are three.
- The text encoder has no token types: our only token type is a zero vector.
- Its cross-attention is used by the matching head alone; both are left out.
- The checkpoint has no temperature.

The time attention starts as a copy of the space attention behind a projection that is zero in **every** layer.
`from_unimodal_pretrained` draws that of the first layer, as the released code does; here it would change the vectors.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from .unimodal_alpro import assemble_state, bert_names, resize_position_embeddings

# module of our video layer -> module of BLIP's vision layer
_VISION_LAYER = {
    "spatial_attn.qkv": "self_attn.qkv",
    "spatial_attn.proj": "self_attn.projection",
    "spatial_norm": "layer_norm1",
    "temporal_attn.qkv": "self_attn.qkv",
    "temporal_attn.proj": "self_attn.projection",
    "temporal_norm": "layer_norm1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp_norm": "layer_norm2",
}
# tensor of our model outside the layers -> tensor of BLIP
_REST = {
    "video_model.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "video_model.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "video_model.embeddings.patch_embed.weight": "vision_model.embeddings.patch_embedding.weight",
    "video_model.embeddings.patch_embed.bias": "vision_model.embeddings.patch_embedding.bias",
    "video_model.norm.weight": "vision_model.post_layernorm.weight",
    "video_model.norm.bias": "vision_model.post_layernorm.bias",
    "video_projection.weight": "vision_proj.weight",
    "video_projection.bias": "vision_proj.bias",
    "text_projection.weight": "text_proj.weight",
    "text_projection.bias": "text_proj.bias",
}
# what comparing by vectors does not need
_UNUSED = r"itm_head\.|text_encoder\.(encoder\.layer\.\d+\.crossattention|pooler)\.|.*\.position_ids$"
# what BLIP does not have and must not disturb its vectors: zero at the start
_ZERO_AT_START = re.compile(
    r"video_model\.embeddings\.time_embeddings$|video_model\.layers\.\d+\.temporal_fc\."
    r"|text_model\.embeddings\.token_type_embeddings\."
)
_NAMES_IN_ERRORS = 10  # of another architecture hundreds are missing


def load_blip(source: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Load a BLIP checkpoint for image-text retrieval.

    The library reads safetensors, and `.bin` files with `weights_only=True`.

    Args:
        source: Folder that `save_pretrained` wrote, or Hub id.

    Returns:
        The `BlipConfig`, and the tensors by the names of `BlipForImageTextRetrieval`.

    Raises:
        ValueError: The model is of another type, or lacks tensors; the message names them.
    """
    from transformers import AutoConfig, BlipForImageTextRetrieval  # needed here alone, and slow to import

    found = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    if found != "blip":
        raise ValueError(
            f"source={source!r} holds a model of type {found!r}; from_image_text_pretrained starts from type 'blip', "
            "such as Salesforce/blip-itm-base-coco."
        )
    # with `output_loading_info` the library returns a pair, which its annotation does not say
    loaded: Any = BlipForImageTextRetrieval.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
    )
    blip, report = loaded
    # A tensor of another shape is as good as missing. The library lists it with both shapes.
    unfit = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    unfit = {name for name in unfit if not re.match(_UNUSED, name)}
    if unfit:
        names = ", ".join(sorted(unfit)[:_NAMES_IN_ERRORS])
        more = f" and {len(unfit) - _NAMES_IN_ERRORS} more" if len(unfit) > _NAMES_IN_ERRORS else ""
        raise ValueError(
            f"source={source!r} lacks the weights {names}{more}, or has them in other shapes, so it is not a complete "
            "BlipForImageTextRetrieval; pass a BLIP model for image-text retrieval as `save_pretrained` wrote it."
        )
    return blip.config, blip.state_dict()


def config_from_blip(blip_config: Any, fusion_layers: int = 0) -> dict[str, Any]:
    """Return the fields of the `AlproConfig` of a model that starts from BLIP.

    Args:
        blip_config: The `BlipConfig`.
        fusion_layers: Number of fusion layers behind the text layers.

    Returns:
        Arguments of `AlproConfig`; both towers as dictionaries.

    Raises:
        ValueError: `fusion_layers` is negative or greater than the number of text layers that it copies, or the towers
            differ in width and `fusion_layers` is not 0.
    """
    text, vision = blip_config.text_config, blip_config.vision_config
    depth = text.num_hidden_layers
    if not 0 <= fusion_layers <= depth:
        raise ValueError(
            f"fusion_layers={fusion_layers} must lie between 0 and {depth}, because fusion layers start as copies of "
            f"the last of {depth} text layers."
        )
    if fusion_layers and text.hidden_size != vision.hidden_size:
        raise ValueError(
            f"fusion_layers={fusion_layers} needs towers of one width, but BLIP's text_config.hidden_size="
            f"{text.hidden_size} and vision_config.hidden_size={vision.hidden_size} differ; use fusion_layers=0."
        )
    shared = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
    words = ("vocab_size", "max_position_embeddings", "pad_token_id")
    text_fields = (*shared, *words, "hidden_dropout_prob", "attention_probs_dropout_prob")
    video_fields = (*shared, "num_hidden_layers", "image_size", "patch_size")
    return {
        "text_config": {name: getattr(text, name) for name in text_fields}
        | {"num_hidden_layers": depth + fusion_layers, "fusion_layer": depth, "type_vocab_size": 1},
        "video_config": {name: getattr(vision, name) for name in video_fields}
        | {"attention_probs_dropout_prob": vision.attention_dropout, "cls_per_frame": True},
        "projection_dim": blip_config.image_text_hidden_size,
    }


def model_state_from_blip(
    blip_state_dict: Mapping[str, torch.Tensor], model_state_dict: Mapping[str, torch.Tensor], fusion_layers: int = 0
) -> dict[str, torch.Tensor]:
    """Convert the state of a `BlipForImageTextRetrieval` to that of an `AlproModel`.

    Space embeddings are resized bicubically if the video tower has another grid of patches.

    Args:
        blip_state_dict: State of the BLIP model.
        model_state_dict: State of the newly initialised model to fill. The temperature is taken from it; of the other
            tensors only names and shapes are read.
        fusion_layers: Number of layers at the end of the text model that start as copies of the last text layers.

    Returns:
        float32 tensors for `AlproModel.load_state_dict`.

    Raises:
        CheckpointError: A tensor is missing, unexpected or misshaped.
    """
    layers = {int(name.split(".")[2]) for name in model_state_dict if name.startswith("text_model.layers.")}
    fusion_layer = len(layers) - fusion_layers

    def blip_names(target: str) -> tuple[str, ...]:
        if target in _REST:
            return (_REST[target],)
        tower, _, name = target.partition(".")
        if tower == "text_model":
            layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
            if layer is not None and int(layer[1]) >= fusion_layer:
                name = f"layers.{int(layer[1]) - fusion_layers}.{layer[2]}"
            return tuple(f"text_encoder.{source}" for source in bert_names(name))
        _, index, module = name.split(".", 2)
        module, _, kind = module.rpartition(".")
        return (f"vision_model.encoder.layers.{index}.{_VISION_LAYER[module]}.{kind}",)

    targets = {
        name: tensor.shape
        for name, tensor in model_state_dict.items()
        if name != "temperature" and not _ZERO_AT_START.match(name)
    }
    source = dict(blip_state_dict)
    position = "video_model.embeddings.position_embeddings"
    if _REST[position] in source:
        source[_REST[position]] = resize_position_embeddings(source[_REST[position]], targets[position])
    state = assemble_state(source, targets, blip_names, unused=_UNUSED, what="The BLIP checkpoint")
    state |= {name: torch.zeros_like(t) for name, t in model_state_dict.items() if _ZERO_AT_START.match(name)}
    return state | {"temperature": model_state_dict["temperature"].clone()}


def image_text_facts(source: str) -> dict[str, Any]:
    """Return the facts for the card of a model that was converted and not fine-tuned, to save as `training.json`.

    Args:
        source: Hub id that was converted. The licence is that of the checkpoints that Salesforce published,
            BSD-3-Clause; a checkpoint of somebody else may have another.
    """
    return {
        "summary": f"The weights of the image-text model BLIP ({source}) in ALPRO's architecture. It has not been "
        "trained on videos.",
        "data": "No data beyond that of the BLIP checkpoint: images with captions (arXiv 2201.12086).",
        "procedure": "Converted without training. The vector of a clip is the mean of BLIP's vectors of its frames.",
        "limits": [
            "The quality of this model was not measured.",
            "It does not know the order of the frames: time attention has no effect before fine-tuning.",
            "It has no trained matching head.",
        ],
        "license": "bsd-3-clause",
    }


__all__ = ["config_from_blip", "image_text_facts", "load_blip", "model_state_from_blip"]
