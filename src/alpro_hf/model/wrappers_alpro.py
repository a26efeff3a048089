"""Find the ALPRO model inside the objects that tools wrap around a model."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

# attribute that holds the wrapped model: of torch.compile; of DataParallel, DistributedDataParallel, FSDP and
# DeepSpeed; of the adapters of PEFT, whose `base_model` is another wrapper
_WRAPPED = ("_orig_mod", "module", "model")


def plain_model(model: Any) -> Any:
    """Return the model inside any number of wrappers, such as those of PEFT, torch.compile, DDP, FSDP and DeepSpeed.

    Adapters stay active, because PEFT puts them in the place of the layers of the model. Everything here and in the
    other wings reads attributes of this model, and calls the wrapper only where gradients pass through it.

    Args:
        model: A model of transformers, or a wrapper around one.

    Returns:
        The model of transformers. An object that holds none is returned as it is, for the caller to refuse.
    """
    inner = model
    while not isinstance(inner, PreTrainedModel):
        held = (getattr(inner, name, None) for name in _WRAPPED)
        inner = next((candidate for candidate in held if isinstance(candidate, nn.Module)), None)
        if inner is None:
            return model
    return inner


__all__ = ["plain_model"]
