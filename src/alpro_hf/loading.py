"""Models and their processors by name, checked to be what a command needs.

Nothing heavy is imported before a model is asked for, so that commands can import this at their start.
"""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

BUNDLED = "bundled"


class CommandError(Exception):
    """A command cannot do what it was asked to; the message says why."""


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
        task: `retrieval`; `towers`, which is retrieval without matching and which every checkpoint can do; or `qa`.
        name: Folder, Hub id, or `bundled`.
        dtype: `float32`, `bfloat16`, or `auto` for what the machine is fast in; None: float32.
        revision: Branch, tag or commit of a Hub id.
        device: Where to put the model instead.

    Raises:
        CommandError: It is no ALPRO model, or one of another task.
        OSError: It cannot be found or read.
    """
    import torch
    from transformers.utils import logging

    from .assets import bundled_model
    from .model.configuration_alpro import AlproConfig
    from .model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
    from .model.processing_alpro import AlproProcessor

    logging.set_verbosity_error()  # what matters of the library's warnings is checked here
    logging.disable_progress_bar()
    source = str(bundled_model("qa" if task == "qa" else "retrieval")) if name == BUNDLED else name
    config, _ = AlproConfig.get_config_dict(source, revision=revision)
    if not config:
        raise CommandError(f"{name} holds no model: there is no config.json in it.")
    kind = config.get("model_type")
    if kind != AlproConfig.model_type:
        raise CommandError(f"{name} holds a model of type {kind!r}, not an ALPRO model.")
    model_class: Any = {
        "retrieval": AlproForVideoTextRetrieval,
        "towers": AlproModel,
        "qa": AlproForVideoQuestionAnswering,
    }[task]
    device = best_device() if device is None else device
    numbers = best_dtype(device) if dtype == "auto" else getattr(torch, dtype or "float32")
    model, info = model_class.from_pretrained(source, revision=revision, dtype=numbers, output_loading_info=True)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CommandError(f"{name} was not trained for {task}: it lacks {missing}, ... Name another --model.")
    return model.to(device), AlproProcessor.from_pretrained(source, revision=revision or "main")


def fast_bfloat16(device: "torch.device | str") -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does with AVX512-BF16 or AMX; on others every product is emulated, several times slower than in float32. A
    GPU does from NVIDIA's Ampere on. Of other devices nothing is known, which counts as no.

    Args:
        device: Such as `model.device` or "cuda:1".
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def best_device() -> "torch.device":
    """The GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: "torch.device | str") -> "torch.dtype":
    """bfloat16 where a device has it in hardware, else float32, which is exact and elsewhere also faster."""
    import torch

    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


__all__ = ["BUNDLED", "CommandError", "best_device", "best_dtype", "fast_bfloat16", "load_model"]
