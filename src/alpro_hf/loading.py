"""Load a model and its processor by name, and choose a device and a data type.

Importing this module imports no library: torch and transformers are imported when a model is loaded, so that commands
can import it before they parse their arguments.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

BUNDLED = "bundled"  # as the name of a model: the one that the package contains for the task


class CommandError(Exception):
    """A command cannot do its work with the given arguments; the message says why and what to change."""


def load_model(
    task: Literal["retrieval", "towers", "qa"],
    name: str,
    dtype: str | None = None,
    *,
    revision: str | None = None,
    device: Any = None,
) -> tuple[Any, Any]:
    """Load a model and its processor for a task, on the GPU if there is one.

    Args:
        task: `retrieval`, whose model has no matching head if the checkpoint is of a bare `AlproModel`; `towers`,
            which is retrieval without the matching head, so every checkpoint has it; or `qa`.
        name: Folder, Hub id, or `bundled`.
        dtype: `float32`, `bfloat16`, or `auto` for `best_dtype`; None means float32.
        revision: Branch, tag or commit of a Hub id.
        device: Device of the model; None means `best_device()`.

    Returns:
        The model, in evaluation mode and on its device, and its processor.

    Raises:
        CommandError: The checkpoint is not an ALPRO model, or lacks the weights of the task.
        OSError: The checkpoint cannot be found or read.
    """
    import torch
    from transformers.utils import logging

    from .assets import bundled_model
    from .model.configuration_alpro import AlproConfig
    from .model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
    from .model.processing_alpro import AlproProcessor

    # Missing weights are an error below. The library only warns about them, and also about weights that the task does
    # not use, which is normal: every ALPRO checkpoint serves several tasks.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = str(bundled_model("qa" if task == "qa" else "retrieval")) if name == BUNDLED else name
    config, _ = AlproConfig.get_config_dict(source, revision=revision)
    if not config:
        raise CommandError(f"{name} does not contain a model: there is no config.json in it.")
    kind = config.get("model_type")
    if kind != AlproConfig.model_type:
        raise CommandError(f"{name} holds a model of type {kind!r}, not an ALPRO model.")
    model_class: Any = {
        "retrieval": AlproForVideoTextRetrieval,
        "towers": AlproModel,
        "qa": AlproForVideoQuestionAnswering,
    }[task]
    if task == "retrieval" and has_towers_alone(config):
        model_class = AlproModel
    device = best_device() if device is None else device
    numbers = best_dtype(device) if dtype == "auto" else getattr(torch, dtype or "float32")
    model, info = model_class.from_pretrained(source, revision=revision, dtype=numbers, output_loading_info=True)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CommandError(f"{name} was not trained for {task}: it lacks {missing}, ... Name another --model.")
    return model.to(device), AlproProcessor.from_pretrained(source, revision=revision or "main")


def has_towers_alone(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved without any head, by the content of its `config.json`.

    Such a model is loaded as an `AlproModel`. It compares texts and videos by similarity alone.
    """
    return set(config.get("architectures") or ()) in ({"AlproModel"}, {"AlproPrompterModel"})


def fast_bfloat16(device: "torch.device | str") -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does so with AVX512-BF16 or AMX. Other CPUs emulate each product, which is several times slower than float32.
    NVIDIA GPUs do so since Ampere. For all other devices the answer is False.

    Args:
        device: A device such as `model.device` or "cuda:1".
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        # torch has no public function for this question
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            # by default also GPUs that emulate bfloat16 count as supporting it
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def best_device() -> "torch.device":
    """The first GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: "torch.device | str") -> "torch.dtype":
    """bfloat16 if the device has it in hardware, else float32, which is more exact and on such devices also faster."""
    import torch

    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


__all__ = ["BUNDLED", "CommandError", "best_device", "best_dtype", "fast_bfloat16", "has_towers_alone", "load_model"]
