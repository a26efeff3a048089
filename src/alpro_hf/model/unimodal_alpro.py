"""Convert the tensors of a ViT and of a BERT checkpoint to those of the ALPRO towers (arXiv 2112.09583, section 4.1).

Each function looks up the tensors that the target needs by name, and accounts for every tensor of the source. A tensor
that is neither used nor known to be unnecessary is an error, so that no other architecture is loaded in part.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

State = Mapping[str, torch.Tensor]

# module of our text layer -> modules of BERT's layer; several names are stacked, as `qkv` stacks query, key and value
_BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.proj": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
# module of our video layer -> modules of ViT's layer; transformers 5 has other names in memory than in files
_VIT_LAYER = {
    "spatial_attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "spatial_attn.proj": ("attention.o_proj",),
    "spatial_norm": ("layernorm_before",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
    "mlp_norm": ("layernorm_after",),
}
_VIT_LAYER_IN_FILES = _VIT_LAYER | {
    "spatial_attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "spatial_attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
# time attention starts as a copy of space attention
_TIME_FROM_SPACE = {"temporal_attn": "spatial_attn", "temporal_norm": "spatial_norm"}
_VIT_REST = {"embeddings.patch_embed": "embeddings.patch_embeddings.projection", "norm": "layernorm"}


class CheckpointError(ValueError):
    """A checkpoint does not hold the tensors of the expected architecture; the message lists every tensor.

    Attributes:
        missing: Names that the model needs and the checkpoint lacks.
        unexpected: Names in the checkpoint that the model does not use.
        misshaped: Texts of the form "name: shape in the checkpoint, shape needed".
    """

    def __init__(
        self,
        message: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshaped: Iterable[str] = (),
    ) -> None:
        self.missing, self.unexpected, self.misshaped = sorted(missing), sorted(unexpected), sorted(misshaped)
        groups = {"missing": self.missing, "unexpected": self.unexpected, "misshaped": self.misshaped}
        lines = [f"{title} ({len(names)}): {', '.join(names)}" for title, names in groups.items() if names]
        super().__init__("\n  ".join([message, *lines]))


def assemble_state(
    source: State,
    targets: Mapping[str, torch.Size],
    source_names: Callable[[str], tuple[str, ...]],
    *,
    unused: str,
    what: str,
) -> dict[str, torch.Tensor]:
    """Build the tensors of a model from those of a checkpoint.

    Args:
        source: Tensors of the checkpoint by name.
        targets: Shapes of the tensors of the model by name.
        source_names: Function from a name in the model to names in the checkpoint. Their tensors, stacked along the
            first dimension, are the tensor of the model.
        unused: Regular expression for names in the checkpoint that are known to be unnecessary; matched from the
            start of the name.
        what: Name of the checkpoint in errors, for example "The BERT checkpoint".

    Returns:
        New float32 tensors by their names in the model; they share no memory with `source`.

    Raises:
        CheckpointError: A tensor is missing, unexpected or misshaped.
    """
    names = {target: source_names(target) for target in targets}
    wanted = {name for group in names.values() for name in group}
    missing = wanted - set(source)
    unexpected = {name for name in set(source) - wanted if not re.match(unused, name)}
    misshaped = set()
    state = {}
    for target, group in names.items():
        if not missing.isdisjoint(group):
            continue  # reported below; go on, so that one error lists every tensor
        rows = targets[target][0] // len(group)  # of one of the stacked tensors
        needed = (rows, *targets[target][1:])
        wrong = [name for name in group if tuple(source[name].shape) != needed]
        misshaped |= {f"{name}: {tuple(source[name].shape)}, {needed} needed" for name in wrong}
        if not wrong:
            state[target] = torch.cat([source[name].to(torch.float32) for name in group])
    if missing or unexpected or misshaped:
        raise CheckpointError(
            f"{what} does not hold the tensors of the expected model.", missing, unexpected, misshaped
        )
    return state


def bert_names(target: str) -> tuple[str, ...]:
    """Return the names of the BERT tensors that are stacked to the tensor `target` of `AlproTextModel`."""
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", target)
    if layer is None:
        return (target.replace("embeddings.norm.", "embeddings.LayerNorm."),)
    index, module, kind = layer.groups()
    return tuple(f"encoder.layer.{index}.{name}.{kind}" for name in _BERT_LAYER[module])


def text_state_from_bert(bert_state_dict: State, text_state_dict: State) -> dict[str, torch.Tensor]:
    """Convert the state of a `BertModel` to the state of an `AlproTextModel` of the same sizes.

    Args:
        bert_state_dict: State of the `BertModel`. A pooler is left out.
        text_state_dict: State of the model to fill. Only its names and shapes are read.

    Returns:
        float32 tensors for `AlproTextModel.load_state_dict`.

    Raises:
        CheckpointError: A tensor is missing, unexpected or misshaped.
    """
    targets = {name: tensor.shape for name, tensor in text_state_dict.items()}
    return assemble_state(
        bert_state_dict, targets, bert_names, unused=r"pooler\.|embeddings\.position_ids$", what="The BERT checkpoint"
    )


def video_state_from_vit(vit_state_dict: State, video_state_dict: State) -> dict[str, torch.Tensor]:
    """Convert the state of a `ViTModel` to the state of an `AlproVideoModel` that has not seen a video yet.

    Time attention and its norm start as copies of space attention. The projection behind the time attention is zero in
    every layer but the first, which keeps its random values, as in the released code. Time embeddings are zero. Space
    embeddings are resized bicubically if the video model has another grid of patches.

    Args:
        vit_state_dict: State of the `ViTModel`, with the names of the model in memory or those of a file. A pooler is
            left out.
        video_state_dict: State of the newly initialised model to fill.

    Returns:
        float32 tensors for `AlproVideoModel.load_state_dict`.

    Raises:
        CheckpointError: A tensor is missing, unexpected or misshaped.
    """
    # a state from memory has `layers.0...`, a state from a file `encoder.layer.0...`
    in_files = any(name.startswith("encoder.layer.") for name in vit_state_dict)
    prefix, modules = ("encoder.layer", _VIT_LAYER_IN_FILES) if in_files else ("layers", _VIT_LAYER)

    def vit_names(target: str) -> tuple[str, ...]:
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", target)
        if layer is None:
            module, _, kind = target.rpartition(".")
            return (f"{_VIT_REST[module]}.{kind}" if module in _VIT_REST else target,)
        index, module, kind = layer.groups()
        for time, space in _TIME_FROM_SPACE.items():
            module = module.replace(time, space)
        return tuple(f"{prefix}.{index}.{name}.{kind}" for name in modules[module])

    no_counterpart = re.compile(r"embeddings\.time_embeddings$|layers\.\d+\.temporal_fc\.")
    targets = {name: tensor.shape for name, tensor in video_state_dict.items() if not no_counterpart.match(name)}
    source = dict(vit_state_dict)
    # Only the grid is resized; the embedding of the CLS token, at index 0, is kept.
    position, wanted = "embeddings.position_embeddings", targets["embeddings.position_embeddings"]
    if position in source:
        source[position] = resize_position_embeddings(source[position], wanted)
    state = assemble_state(
        source, targets, vit_names, unused=r"pooler\.|embeddings\.mask_token$", what="The ViT checkpoint"
    )
    for name, fresh in video_state_dict.items():
        if no_counterpart.match(name):
            # Parity: the released code, like TimeSformer, zeroes the projection in all layers but the first.
            state[name] = fresh.clone() if name.startswith("layers.0.") else torch.zeros_like(fresh)
    return state


def resize_position_embeddings(embeddings: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
    """Resize the space embeddings of an image model bicubically to another grid of patches.

    Args:
        embeddings: (1, 1 + n * n, D), the CLS token first. A tensor that is not a square grid is returned unchanged;
            `assemble_state` then reports its shape.
        wanted: Shape of the result, (1, 1 + m * m, D).

    Returns:
        float32 (1, 1 + m * m, D), or `embeddings` if the grids are equal.
    """
    grid, new_grid = (round((count - 1) ** 0.5) for count in (embeddings.shape[1], wanted[1]))
    if grid == new_grid or grid**2 + 1 != embeddings.shape[1]:
        return embeddings
    square = embeddings[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(square, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)


__all__ = [
    "CheckpointError",
    "assemble_state",
    "bert_names",
    "resize_position_embeddings",
    "text_state_from_bert",
    "video_state_from_vit",
]
