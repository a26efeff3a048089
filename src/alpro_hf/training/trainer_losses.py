"""The losses of a model in training: which there are, what they read, and what the log says of them."""

from typing import Any

import torch

from ..adapters import has_adapters
from ..model.loss_alpro import IGNORE_INDEX
from ..model.wrappers_alpro import plain_model
from .arguments import WEIGHT_ARGUMENTS, AlproTrainingArguments


class NonFiniteLossError(ArithmeticError):
    """A loss is infinite or NaN; the message names the step, the losses and the rows."""


def is_contrastive(model: Any) -> bool:
    """Tell training on pairs of text and clip from training on labelled questions."""
    return "loss_vtc" in model.training_losses


def may_leave_parameters_unused(model: Any) -> bool:
    """Tell whether some parameters can be without a gradient in a step, which DDP must know.

    VTC alone does not run the fusion layers. A loss that is computed only if its inputs are given leaves its head
    without a gradient in the other steps.
    """
    return set(model.training_losses) == {"loss_vtc"} or any(model.training_losses.values())


def trained_part(model: Any, args: AlproTrainingArguments) -> Any:
    """Return the model to train: the one passed, or only its towers if it would learn nothing else than VTC.

    Raises:
        TypeError: The model declares no losses.
        ValueError: The arguments leave the model without a loss, or ask for contrastive accumulation without VTC.
    """
    plain = plain_model(model)
    if not getattr(plain, "training_losses", None):
        raise TypeError(
            "AlproTrainer trains AlproModel, AlproPrompterModel, AlproForPreTraining, AlproForVideoTextRetrieval and "
            f"AlproForVideoQuestionAnswering; received {type(model).__name__}."
        )
    # what is wrapped stays whole: its wrapper, or the adapters in it, save the model that they were made for
    towers_alone = set(plain.training_losses) == {"loss_vtc", "loss_vtm"} and args.vtm_weight == 0
    if towers_alone and model is plain and not has_adapters(plain):
        model = plain = plain.base_model
    text = plain.config.text_config
    if "loss_vtm" in plain.training_losses and args.vtm_weight and text.fusion_layer == text.num_hidden_layers:
        raise ValueError(
            f"vtm_weight={args.vtm_weight} trains a matching head on fusion layers, and the model has none. Set "
            "vtm_weight=0, or start with fusion layers (fusion_layers in a recipe)."
        )
    if args.contrastive_accumulation and not is_contrastive(plain):
        raise ValueError(
            "contrastive_accumulation is for contrastive training; question answering has none. Set it to False."
        )
    weights = args.loss_weights
    if not any(weights[loss] for loss in plain.training_losses):
        zeros = ", ".join(f"{WEIGHT_ARGUMENTS[loss]}=0" for loss in plain.training_losses)
        raise ValueError(f"{zeros} leave nothing to learn for {type(plain).__name__}. Raise one of them above 0.")
    return model


def _share_correct(logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Return the share of labelled rows whose highest logit is the label; 0 without labels.

    Args:
        logits: (rows, C).
        labels: int64 (rows,), `IGNORE_INDEX` for rows without a label.
        count: Divisor, as in `classification_loss`.
    """
    labelled = labels != IGNORE_INDEX
    count = labelled.sum() if count is None else count
    return ((logits.argmax(dim=1) == labels) & labelled).sum() / torch.where(count > 0, count, 1)


def losses_of(model: Any, outputs: Any) -> dict[str, torch.Tensor]:
    """Return the losses that the model computed, by name."""
    names = tuple(model.training_losses)
    if len(names) == 1:
        return {names[0]: outputs["loss"]}
    return {name: outputs[name] for name in names if name in outputs}  # MLM and PEM only if their inputs were given


def statistics_of(
    model: Any, losses: dict[str, torch.Tensor], outputs: Any, batch: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the scalars of the log that are not losses; the docstring of `AlproTrainer` describes them."""
    if "loss" in losses or "loss_answer" in losses:
        return {"accuracy": _share_correct(outputs.logits, batch["labels"], batch.get("label_count"))}
    statistics = {"temperature": model.base_model.get_temperature().squeeze()}
    if "loss_vtm" in losses:
        pairs = 3 * len(batch["input_ids"])  # behind them are the false captions
        statistics["vtm_accuracy"] = _share_correct(outputs.vtm_logits[:pairs], outputs.vtm_labels[:pairs])
        if "negative_input_ids" in batch:
            statistics["vtm_edited_accuracy"] = _share_correct(outputs.vtm_logits[pairs:], outputs.vtm_labels[pairs:])
    if "loss_mlm" in losses:
        logits, labels = outputs.mlm_logits.flatten(0, 1), batch["mlm_labels"].flatten()
        statistics["mlm_accuracy"] = _share_correct(logits, labels, batch.get("mlm_count"))
    if "loss_pem" in losses:
        targets = batch["pem_targets"].float()
        statistics["pem_kept"] = outputs.pem_kept.float().mean()
        statistics["pem_entropy"] = torch.special.entr(targets).sum(dim=1).mean()
        statistics["pem_agreement"] = (outputs.pem_logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
    return statistics


def input_names(model: Any, args: AlproTrainingArguments) -> list[str]:
    """Return what the model reads of a batch; the inputs of a loss of weight 0 are left out."""
    weights = args.loss_weights
    names = list(model.training_inputs)
    for loss, own_inputs in model.training_losses.items():
        if weights[loss]:
            names += own_inputs
    return names


def refuse_non_finite(losses: dict[str, torch.Tensor], inputs: dict[str, Any], step: int) -> None:
    """Raise an error if a loss of a step, counted from 1, is infinite or NaN.

    Raises:
        NonFiniteLossError: One is; the message names the losses and the rows.
    """
    values = torch.stack([value.detach().float() for value in losses.values()])
    if torch.isfinite(values).all():
        return
    parts = ", ".join(f"{name}={value:g}" for name, value in zip(losses, values.tolist(), strict=True))
    rows = inputs["row_ids"].tolist() if "row_ids" in inputs else "unknown, they have no 'index'"
    raise NonFiniteLossError(
        f"The loss of step {step} is not finite: {parts}. Its rows: {rows}. The "
        "weights have not been updated with it, and checkpoints are intact. Inspect these rows. A lower "
        "learning_rate, a smaller max_grad_norm, or bf16 instead of fp16 often helps."
    )


__all__ = [
    "NonFiniteLossError",
    "input_names",
    "is_contrastive",
    "losses_of",
    "may_leave_parameters_unused",
    "refuse_non_finite",
    "statistics_of",
    "trained_part",
]
