"""Towers and layers that a training leaves as they are, and layers whose activations it computes twice.

A locked tower is that of LiT (arXiv 2111.07991): its weights stay, the other parts learn to read it. Nothing before
the first trained layer has a gradient, so no activations are stored there and nothing runs backward.
"""

from typing import Any

import torch
from transformers import TrainerCallback

from ..adapters import has_adapters
from ..model.wrappers_alpro import plain_model
from .arguments import AlproTrainingArguments


def freeze(model: Any, args: AlproTrainingArguments) -> list[torch.nn.Module]:
    """Take the gradients from the parts of a model that `freeze` and `freeze_layers` name.

    Args:
        model: An ALPRO model, or a wrapper around one. Its other parts stay as they are.
        args: Names of towers, and the number of layers of the video tower.

    Returns:
        The frozen parts, which `still` keeps in evaluation mode. The matrix of MLM is that of the word embeddings, so
        it is frozen with the text tower.

    Raises:
        ValueError: The model has adapters or too few layers, or the arguments ask for something that frozen parts do
            not do.
    """
    if not (args.freeze or args.freeze_layers or args.checkpoint_layers is not None):
        return []
    plain = plain_model(model)
    if (args.freeze or args.freeze_layers) and has_adapters(plain):
        raise ValueError(
            f"freeze={args.freeze} and freeze_layers={args.freeze_layers} go with training whole weights; this model "
            "has adapters, and its other weights stay as they are anyway. Leave layers out with target_modules."
        )
    video, text = plain.base_model.video_model, plain.base_model.text_model
    for name in ("freeze_layers", "checkpoint_layers"):
        if (getattr(args, name) or 0) > len(video.layers):
            raise ValueError(
                f"{name}={getattr(args, name)} is more than the {len(video.layers)} layers of the video tower."
            )
    # code of earlier versions (`trust_remote_code`) has no such field
    dropped: float = getattr(plain.config.video_config, "patch_dropout", 0.0)
    if "video" in args.freeze and dropped:
        raise ValueError(
            f"patch_dropout={dropped} leaves patches out where the video tower is "
            "trained, and freeze='video' keeps it as in evaluation. Set patch_dropout=0, or use freeze_layers."
        )
    parts: list[torch.nn.Module] = []
    if "video" in args.freeze:
        parts.append(video)
    elif args.freeze_layers:
        parts += [video.embeddings, *video.layers[: args.freeze_layers]]
    if "text" in args.freeze:
        parts += [text.embeddings, *text.layers[: text.config.fusion_layer]]
    for part in parts:
        part.requires_grad_(False)
    still(parts)
    return parts


def still(parts: list[torch.nn.Module]) -> None:
    """Put frozen parts in evaluation mode, where nothing is dropped; `model.train()` ends it, so repeat it after."""
    for part in parts:
        part.eval()


class PrepareLayers(TrainerCallback):
    """Limits gradient checkpointing to `checkpoint_layers`, and lets no gradient begin in front of frozen parts."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # here, because the library has just switched checkpointing on for all layers
        plain: Any = plain_model(model)
        base = plain.base_model
        if not has_adapters(plain):
            # With checkpointing the library lets embeddings ask for gradients, for the sake of adapters. Frozen layers
            # would then store their activations. Always, because it forgets these hooks when it sets new ones.
            plain.disable_input_require_grads()
        if args.checkpoint_layers is not None:
            for layer in base.text_model.layers:
                layer.gradient_checkpointing = False
            for number, layer in enumerate(base.video_model.layers):
                layer.gradient_checkpointing = number < args.checkpoint_layers


__all__ = ["PrepareLayers", "freeze", "still"]
