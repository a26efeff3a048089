"""What `AlproTrainer` takes from the model: its collator, the answers, and the metric of the best weights."""

from typing import Any

from transformers import TrainingArguments

from ..data.collator import AlproCollator
from ..data.pretraining_collator import AlproPreTrainingCollator
from .arguments import AlproTrainingArguments


def checked_arguments(args: TrainingArguments | None) -> AlproTrainingArguments:
    """The training arguments of a trainer; None: the defaults, with output folder `alpro_trainer`.

    Raises:
        TypeError: They are of another class, such as the library's own.
    """
    if args is None:
        return AlproTrainingArguments(output_dir="alpro_trainer")
    if not isinstance(args, AlproTrainingArguments):
        raise TypeError(
            f"AlproTrainer needs args of the class AlproTrainingArguments; received {type(args).__name__}. It takes "
            "the same fields and has the losses and the evaluation of ALPRO besides: replace the name of the class."
        )
    return args


def default_collator(model: Any, args: AlproTrainingArguments, processor: Any) -> AlproCollator:
    """The collator for a model: that of pre-training, of questions, or of pairs of a clip and a text.

    Args:
        model: Declares its losses; None: only `model_init` is known, which is not enough.
        args: Losses of weight 0 get no inputs; `seed` is the seed of the collator, as in `alpro train`.
        processor: An `AlproProcessor`.

    Raises:
        ValueError: There is no processor or no model.
        TypeError: The processor is something else, such as a tokenizer.
    """
    if processor is None or model is None:
        raise ValueError(
            "AlproTrainer needs model and processing_class, or data_collator: pass processing_class=processor, or "
            "data_collator=AlproCollator(processor, task=...)."
        )
    if not (hasattr(processor, "video_processor") and hasattr(processor, "tokenizer")):
        raise TypeError(
            f"AlproTrainer makes its collator from an AlproProcessor; processing_class is a "
            f"{type(processor).__name__}. Pass processing_class=AlproProcessor.from_pretrained(...)."
        )
    seed = args.seed if args.data_seed is None else args.data_seed
    if "loss_mlm" in model.training_losses:
        return AlproPreTrainingCollator(
            processor,
            mlm_probability=0.15 if args.mlm_weight else 0,
            pem=bool(model.config.entities) and args.pem_weight > 0,
            patch_size=model.config.video_config.patch_size,
            seed=seed,
        )
    return AlproCollator(processor, task="qa" if "loss" in model.training_losses else "retrieval", seed=seed)


def fit_collator(collator: Any, model: Any) -> None:
    """Give a collator of questions the answers of the model, unless it has its own.

    Raises:
        ValueError: The collator is for another task than the model, or neither names the answers.
    """
    if not isinstance(collator, AlproCollator):
        return
    task = "qa" if "loss" in model.training_losses else "retrieval"
    if collator.task != task:
        raise ValueError(
            f"{type(model).__name__} learns from a collator of the task {task!r}; data_collator has the task "
            f"{collator.task!r}. Pass AlproCollator(processor, task={task!r})."
        )
    if task == "qa" and not collator.label2id:
        labels = model.config.label2id or {}
        # the names that the library makes up for a configuration without labels
        if not labels or set(labels) == {f"LABEL_{index}" for index in range(len(labels))}:
            raise ValueError(
                "The answers are not named: make the model with label2id= and id2label=, or pass "
                "AlproCollator(processor, task='qa', label2id=...)."
            )
        collator.label2id = dict(labels)


def choose_best_metric(args: AlproTrainingArguments, model: Any, eval_dataset: Any) -> None:
    """Set `metric_for_best_model`, where it was not given, to R@1 of text to video or to the accuracy.

    The library's default is `loss`, which an evaluation of retrieval does not have.

    Raises:
        ValueError: The metric that was given, or that the scheduler needs, is none of the evaluation of the model.
    """
    answers = "loss" in model.training_losses
    metric = "accuracy" if answers else "t2v_r1"
    if isinstance(eval_dataset, dict) and eval_dataset:  # the library puts the name of a data set before its metrics
        metric = f"{next(iter(eval_dataset))}_{metric}"
    if args.load_best_model_at_end and args.chooses_best_metric:
        args.metric_for_best_model, args.greater_is_better = metric, True
    elif args.metric_for_best_model in ("loss", "eval_loss") and not answers:
        needs = (
            "load_best_model_at_end" if args.load_best_model_at_end else f"lr_scheduler_type={args.lr_scheduler_type}"
        )
        raise ValueError(
            f"An evaluation of retrieval has no 'loss', which {needs} compares. Set metric_for_best_model, for "
            f"instance to {metric!r}."
        )


__all__ = ["checked_arguments", "choose_best_metric", "default_collator", "fit_collator"]
