"""Adapters of PEFT, such as LoRA, on ALPRO models: wrap, load into a model again, and merge into the weights.

The package needs PEFT only here, and imports it where it is used, as it is an extra: `pip install "alpro-hf[peft]"`.
"""

import copy
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TARGETS = ("qkv", "proj")  # every attention layer of both towers and of the fusion encoder


def lora_model(model: Any, settings: Mapping[str, Any]) -> Any:
    """Wrap a model for training with LoRA: the weights are frozen, and low-rank updates of some layers are trained.

    Args:
        model: An ALPRO model.
        settings: Fields of `peft.LoraConfig`. Without `target_modules`, the attention layers (`qkv` and `proj`) get
            updates. Without `modules_to_save`, the matching head or the classifier is trained as a whole.

    Returns:
        The `peft.PeftModel`, which `AlproTrainer` trains.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: A setting is unknown, or a value cannot be used.
    """
    _need_peft()
    from peft import LoraConfig, get_peft_model

    heads = [name for name in ("vtm_head", "classifier") if hasattr(model, name)]
    given = {"target_modules": list(TARGETS), "modules_to_save": heads or None} | dict(settings)
    try:
        config = LoraConfig(**given)
    except TypeError as error:  # of an unknown field
        raise ValueError(f"lora={dict(settings)!r} is not a LoraConfig of PEFT: {error}") from error
    return get_peft_model(model, config)


def has_adapters(model: "torch.nn.Module") -> bool:
    """Whether layers of a model have adapters, from `peft.get_peft_model` or from `model.add_adapter`."""
    return bool(_adapted_layers(model))


def load_adapters(model: Any, folder: str | os.PathLike[str]) -> None:
    """Load saved adapter weights into the active adapter of a model that got it from `model.add_adapter`.

    Args:
        model: The model; its adapter has the shapes of the saved one.
        folder: Folder with `adapter_model.safetensors`, as `model.save_pretrained` writes it.

    Raises:
        ValueError: The folder has weights that the adapter lacks, or lacks some of its weights.
    """
    _need_peft()
    from peft import load_peft_weights, set_peft_model_state_dict

    [name] = model.active_adapters()[:1]
    # the prefix is that of a PeftModel, which this model is not
    weights = {
        key.removeprefix("base_model.model."): value
        for key, value in load_peft_weights(os.fspath(folder), device="cpu").items()
    }
    report: Any = set_peft_model_state_dict(model, weights, adapter_name=name)
    missing = [key for key in report.missing_keys if f".{name}" in key]
    if report.unexpected_keys or missing:
        raise ValueError(
            f"The adapter in {os.fspath(folder)} does not fit the model: {len(report.unexpected_keys)} weights have "
            f"no place in it, and {len(missing)} are missing. Add the adapter with the LoraConfig that was saved."
        )


def merged(model: Any) -> Any:
    """Merge adapters into the weights, so that the model needs PEFT no more.

    Args:
        model: A model, or a wrapper around one such as a `peft.PeftModel`. It is not changed.

    Returns:
        The plain model itself if it has no adapters. Otherwise a copy with merged weights, on the same device and in
        the same mode.
    """
    from .model.wrappers_alpro import plain_model

    plain = plain_model(model)
    if not has_adapters(plain):
        return plain
    merged_copy = copy.deepcopy(plain)
    for name, layer in _adapted_layers(merged_copy).items():
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            unwrapped = layer.get_base_layer()
        else:  # trained as a whole
            [active] = layer.active_adapters[:1] or [None]
            unwrapped = layer.original_module if active is None else layer.modules_to_save[active]
        parent, _, attribute = name.rpartition(".")
        setattr(merged_copy.get_submodule(parent), attribute, unwrapped)
    # otherwise `save_pretrained` would write adapters only
    merged_copy._hf_peft_config_loaded = False
    vars(merged_copy).pop("peft_config", None)
    return merged_copy.requires_grad_(True)


def _adapted_layers(model: "torch.nn.Module") -> dict[str, Any]:
    """Layers with adapters and layers that are trained as a whole next to them, by name."""
    if "peft" not in sys.modules:  # nothing has added an adapter
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ImportError('Adapters need PEFT, which is not installed: pip install "alpro-hf[peft]"') from error


__all__ = ["TARGETS", "has_adapters", "load_adapters", "lora_model", "merged"]
