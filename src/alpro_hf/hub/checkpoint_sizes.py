"""Read the sizes of an ALPRO model off the shapes of the tensors of a checkpoint."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..model.configuration_alpro import AlproConfig
from ..model.unimodal_alpro import CheckpointError

State = Mapping[str, torch.Tensor]

VIDEO_PREFIX = "visual_encoder.model."  # of the names of the video tower


def shape_of(state_dict: State, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that determines a size in the configuration."""
    if name not in state_dict:
        raise CheckpointError("The checkpoint lacks a tensor that determines the size of the model.", missing=[name])
    shape = tuple(state_dict[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(
            "A tensor that determines the size of the model has the wrong number of dimensions.",
            misshaped=[f"{name}: {shape}, {dimensions} dimensions needed"],
        )
    if 0 in shape:
        raise CheckpointError(
            "A tensor that determines the size of the model is empty.", misshaped=[f"{name}: {shape}"]
        )
    return shape


def _depth(state_dict: State, prefix: str) -> int:
    """The number of layers `prefix0`, `prefix1`, ... in the checkpoint."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state_dict)
    layers = {int(match.group(1)) for match in found if match}
    # the first number that is absent; without a gap, it is the number of layers
    missing = next(number for number in range(len(layers) + 1) if number not in layers)
    if missing < len(layers):
        raise CheckpointError(
            f"The checkpoint has {len(layers)} layers with numbers up to {max(layers)}, so not all in between.",
            missing=[f"{prefix}{missing}.*"],
        )
    return len(layers)


def read_config(
    state_dict: State, prefix: str, text: str, sizes: dict[str, int], labels: dict[str, Any]
) -> AlproConfig:
    """Read the configuration off the tensors. `prefix` starts all names, `text` those of the text encoder."""
    video = prefix + VIDEO_PREFIX
    vocab_size, text_width = shape_of(state_dict, text + "embeddings.word_embeddings.weight", 2)
    video_width, channels, patch_size, _ = shape_of(state_dict, video + "patch_embed.proj.weight", 4)
    positions = shape_of(state_dict, video + "pos_embed", 3)
    # one position for the CLS token, then a square grid of patches
    grid = round(max(positions[1] - 1, 0) ** 0.5)
    if grid**2 + 1 != positions[1]:
        raise CheckpointError(
            "The space embeddings are not one CLS token and a square of patches.",
            misshaped=[f"{video}pos_embed: {positions}, (1, 1 + n * n, D) needed"],
        )
    text_config = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "intermediate_size": shape_of(state_dict, text + "encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": _depth(state_dict, text + "encoder.layer."),
        **sizes,
        "max_position_embeddings": shape_of(state_dict, text + "embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": shape_of(state_dict, text + "embeddings.token_type_embeddings.weight", 2)[0],
    }
    video_config = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "num_frames": shape_of(state_dict, video + "time_embed", 3)[1],
        "hidden_size": video_width,
        "intermediate_size": shape_of(state_dict, video + "blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _depth(state_dict, video + "blocks."),
        "num_attention_heads": sizes["num_attention_heads"],
        "qkv_bias": video + "blocks.0.attn.qkv.bias" in state_dict,
    }
    # question answering of LAVIS has no projections; the configuration then keeps its own size
    if "id2label" not in labels or prefix + "text_proj.weight" in state_dict:
        labels = labels | {"projection_dim": shape_of(state_dict, prefix + "text_proj.weight", 2)[0]}
    return AlproConfig(text_config=text_config, video_config=video_config, **labels)


__all__ = ["VIDEO_PREFIX", "read_config", "shape_of"]
