"""Models and their processors by name, checked to be what a command needs.

Nothing heavy is imported before a model is asked for, so that commands can import this at their start.
"""

from typing import Any, Literal

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
    from .configuration_alpro import AlproConfig
    from .hardware import best_device, best_dtype
    from .modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
    from .processing_alpro import AlproProcessor

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


__all__ = ["BUNDLED", "CommandError", "load_model"]
