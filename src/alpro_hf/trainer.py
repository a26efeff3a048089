"""Fine-tuning with the library's Trainer: retrieval (VTC + VTM) and question answering (arXiv 2112.09583, section 4).

Only what the library cannot know is added: which losses make up the loss, how features are gathered over processes,
the log of every part, and the evaluation of retrieval and question answering.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from .data.collator import AlproCollator, NumberedRows
from .evaluation import (
    RetrievalProtocol,
    RetrievalStates,
    encode_batches,
    merge_states,
    question_answering_metrics,
    retrieval_metrics,
    retrieval_scores,
    vtm_scores,
)
from .loss_alpro import IGNORE_INDEX
from .modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel

PROTOCOLS = ("vtc", "rerank", "reference")
_MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values_videos", "video_ids", "text_ids", "labels")


@dataclass
class AlproTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of the paper's fine-tuning, and what ALPRO needs besides.

    The defaults that differ from the library's are those that all fine-tuning runs of the paper share; learning rate,
    batch size and epochs differ from task to task there (2.5e-5 and a global batch of 64 for 5 epochs on MSR-VTT
    retrieval, 5e-5 and 192 for 10 on MSRVTT-QA).
    """

    # Losses
    vtc_weight: float = field(
        default=1.0, metadata={"help": "Weight of the contrastive loss VTC in the training of retrieval."}
    )
    vtm_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the matching loss VTM in the training of retrieval. 0 leaves matching out altogether: "
            "the two towers are trained and saved as an AlproModel, without the cost of the fusion layers."
        },
    )

    # Evaluation
    eval_protocol: RetrievalProtocol = field(
        default="vtc",
        metadata={
            "help": "How retrieval is scored: 'vtc' (cosine similarity of the towers), 'rerank' (its best rerank_k "
            "candidates reordered by matching), 'reference' (matching score of all pairs, as in the paper's tables).",
            "choices": list(PROTOCOLS),
        },
    )
    rerank_k: int = field(
        default=16, metadata={"help": "Candidates of each query that the protocol 'rerank' reorders."}
    )
    vtm_batch_size: int = field(
        default=256, metadata={"help": "Text-clip pairs fused at a time in the evaluation by 'rerank' or 'reference'."}
    )

    # Optimisation: the library's fields, with the paper's values
    adam_beta2: float = field(
        default=0.98, metadata={"help": "Beta2 of AdamW. The paper's value; the library's default is 0.999."}
    )
    weight_decay: float = field(
        default=1e-3,
        metadata={"help": "Weight decay of AdamW. The paper's value; the library's default is 0."},
    )
    warmup_steps: float = field(
        default=0.1,
        metadata={
            "help": "Steps of linear warm-up; below 1: their share of all steps. The paper's value; the library's "
            "default is 0."
        },
    )
    max_grad_norm: float = field(
        default=5.0,
        metadata={
            "help": "Largest norm of the gradient. The paper's value for MSR-VTT (20 for DiDeMo and MSVD); the "
            "library's default is 1."
        },
    )

    # Data
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Must stay off (the library's default is on): the collator reads columns no model knows."},
    )

    def __post_init__(self) -> None:
        if self.eval_protocol not in PROTOCOLS:
            raise ValueError(f"eval_protocol={self.eval_protocol!r} is unknown. Use one of {', '.join(PROTOCOLS)}.")
        if self.vtc_weight < 0 or self.vtm_weight < 0 or self.vtc_weight + self.vtm_weight == 0:
            raise ValueError(
                f"vtc_weight={self.vtc_weight} and vtm_weight={self.vtm_weight} must not be negative, nor both 0."
            )
        if self.vtm_weight == 0 and self.eval_protocol != "vtc":
            raise ValueError(
                f"eval_protocol={self.eval_protocol!r} scores by matching, which vtm_weight=0 leaves out. Use "
                "eval_protocol='vtc', or evaluate a model trained with matching."
            )
        if self.rerank_k < 1 or self.vtm_batch_size < 1:
            raise ValueError(f"rerank_k={self.rerank_k} and vtm_batch_size={self.vtm_batch_size} must be at least 1.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would drop the columns 'video', 'text', 'question' and 'answer' before "
                "AlproCollator reads them. Leave it off."
            )
        super().__post_init__()


def gather_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) of every process -> (G, ...) in rank order; gradients flow back for floating point tensors."""
    if tensor.is_floating_point():
        return torch.cat(dist_nn.all_gather(tensor.contiguous()))
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _KeepTemperatureInRange(TrainerCallback):
    """Weights that leave the range would take as long to come back as they took to leave."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        base = model.base_model
        with torch.no_grad():
            base.temperature.clamp_(base.config.temperature_min, base.config.temperature_max)


class AlproTrainer(Trainer):
    """Trains and evaluates an ALPRO model for retrieval or question answering.

    The model decides the task: `AlproForVideoQuestionAnswering` learns from labels; `AlproForVideoTextRetrieval` from
    VTC and VTM; `AlproModel` from VTC alone. With `vtm_weight=0` a retrieval model's `alpro` is what is trained and
    saved (`trainer.model`); the model passed in holds the same weights.

    Rows get numbered on the way to the collator (see `NumberedRows`), so that frames drawn at random are the same
    after a resumed training. The log has, beside the library's `loss`, the mean since the last log of `loss_vtc`,
    `loss_vtm`, `vtm_accuracy` and the `temperature`, or of the `accuracy` of answers; and `dropped_rows`, all those
    so far whose clip could not be decoded, once there is one.

    Evaluation gives `eval_t2v_r1` and so on (see `retrieval_metrics`) under `args.eval_protocol`, and beside another
    protocol than `vtc` those of `vtc` as `eval_vtc_t2v_r1` and so on; or `eval_accuracy` and so on (see
    `question_answering_metrics`). `eval_dropped_rows` counts rows whose clip could not be decoded. `predict` returns
    the scores (texts, videos) and the clip of each text; or the logits (n, answers) and the labels.

    Example:
        >>> trainer = AlproTrainer(
        ...     model=model,
        ...     args=AlproTrainingArguments(output_dir="out", per_device_train_batch_size=64),
        ...     data_collator=AlproCollator(processor),
        ...     train_dataset=train_rows,
        ...     eval_dataset=test_rows,
        ...     processing_class=processor,
        ... )
        >>> trainer.train()
    """

    args: AlproTrainingArguments
    loss_is_scaled_for_ga = False  # losses are means over a batch

    def __init__(
        self,
        model: AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering | None = None,
        args: AlproTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ):
        args = AlproTrainingArguments(output_dir="alpro_trainer") if args is None else args
        if data_collator is None:
            raise ValueError("AlproTrainer needs data_collator=AlproCollator(processor, task=...).")
        trained = None if model is None else _trained_part(model, args)
        if trained is not None and args.ddp_find_unused_parameters is None:
            # only the fusion layers under VTC alone stay without gradient
            args.ddp_find_unused_parameters = isinstance(trained, AlproModel)
        self._parts: dict[str, torch.Tensor] = {}
        self._steps_in_parts = 0
        super().__init__(
            model=trained,
            args=args,
            data_collator=data_collator,
            train_dataset=_numbered(train_dataset, training=True),
            eval_dataset=(
                {name: _numbered(rows) for name, rows in eval_dataset.items()}
                if isinstance(eval_dataset, dict)
                else _numbered(eval_dataset)
            ),
            **kwargs,
        )
        self.add_callback(_KeepTemperatureInRange())

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return _trained_part(super().call_model_init(trial), self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return super().get_eval_dataloader(
            eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else _numbered(eval_dataset)
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(_numbered(test_dataset))

    # Training

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the losses of a batch from `AlproCollator`; notes every part for the log."""
        batch = {key: inputs[key] for key in _MODEL_INPUTS if key in inputs}
        plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if isinstance(plain, AlproForVideoQuestionAnswering):
            outputs = model(**batch)
            loss = outputs.loss
            parts = {"accuracy": _share_correct(outputs.logits, batch["labels"])}
        else:
            if self.args.world_size > 1:
                batch = _trim_to_smallest(batch)
                batch |= {"gather": gather_with_gradients, "rank": self.args.process_index}
            outputs = model(**batch, return_loss=True)
            if isinstance(plain, AlproModel):
                loss = self.args.vtc_weight * outputs.loss
                parts = {"loss_vtc": outputs.loss}
            else:
                loss = self.args.vtc_weight * outputs.loss_vtc + self.args.vtm_weight * outputs.loss_vtm
                parts = {
                    "loss_vtc": outputs.loss_vtc,
                    "loss_vtm": outputs.loss_vtm,
                    "vtm_accuracy": _share_correct(outputs.vtm_logits, outputs.vtm_labels),
                }
            parts["temperature"] = plain.base_model.get_temperature().squeeze()
        if plain.training:
            for name, value in parts.items():
                value = value.detach().float()
                self._parts[name] = self._parts[name] + value if name in self._parts else value
            self._steps_in_parts += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, averaged over the steps since the last log and over processes."""
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            means = torch.stack([self._parts[name] for name in names]) / self._steps_in_parts
            dropped = self.data_collator.dropped if isinstance(self.data_collator, AlproCollator) else 0
            gathered = self.accelerator.gather(torch.cat([means, means.new_tensor([dropped])])[None])
            logs |= dict(zip(names, gathered[:, :-1].mean(dim=0).tolist(), strict=True))
            all_dropped = int(gathered[:, -1].sum())
            if all_dropped:
                logs["dropped_rows"] = all_dropped
        if "loss" in logs or "train_loss" in logs:  # the latter closes a training
            self._parts, self._steps_in_parts = {}, 0
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The library's choice without the temperature, which decay would sharpen whatever the data say."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("temperature")]

    # Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score a data set; see the class for what comes back. `prediction_loss_only`, `ignore_keys` play no role."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not self.is_in_train:
            dtype = {self.args.bf16_full_eval: torch.bfloat16, self.args.fp16_full_eval: torch.float16}.get(True)
            model = model.to(device=self.args.device, dtype=dtype)
        was_training = model.training
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        if isinstance(model, AlproForVideoQuestionAnswering):
            predictions, label_ids, metrics = self._evaluate_answers(model, dataloader)
        else:
            predictions, label_ids, metrics = self._evaluate_retrieval(model, dataloader)
        model.train(was_training)
        count = len(label_ids)
        if isinstance(dataloader.dataset, NumberedRows):
            metrics["dropped_rows"] = float(len(dataloader.dataset) - count)
        arrays = predictions.float().numpy(force=True), label_ids.numpy(force=True)
        if self.compute_metrics is not None:
            metrics |= self.compute_metrics(EvalPrediction(predictions=arrays[0], label_ids=arrays[1]))
        return EvalLoopOutput(
            predictions=arrays[0],
            label_ids=arrays[1],
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=count,
        )

    def _row_ids(self, batch: dict[str, Any], count: int) -> list[int]:
        """Numbers of the rows, which tell the repeated ones apart that even out the processes' shares."""
        if "row_ids" in batch:
            return batch["row_ids"].tolist()
        if self.args.world_size > 1:
            raise ValueError(
                "Evaluation in several processes needs rows with an 'index'. A data set with a length gets it by "
                "itself; add it to the rows of an iterable one."
            )
        return list(range(count, count + len(batch["input_ids"])))

    def _on_batch(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _evaluate_retrieval(
        self, model: AlproModel | AlproForVideoTextRetrieval, dataloader: DataLoader
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        protocol: RetrievalProtocol = (
            self.args.eval_protocol if isinstance(model, AlproForVideoTextRetrieval) else "vtc"
        )
        with self.accelerator.autocast():  # around the model alone: similarities in bfloat16 would be full of ties
            states = encode_batches(model, dataloader, keep_states=protocol != "vtc", on_batch=self._on_batch)
        if self.args.world_size > 1:
            gathered: list[RetrievalStates] = gather_object([states.to("cpu")])
            states = merge_states(gathered).to(self.args.device)

        def score_pairs(pairs: torch.Tensor) -> torch.Tensor:
            """Each process scores a slice; all get everything, in order."""
            shards = pairs.tensor_split(self.args.world_size)
            own = shards[self.args.process_index]
            text, mask, video = states.text_states, states.text_mask, states.video_states
            assert isinstance(model, AlproForVideoTextRetrieval)
            assert text is not None
            assert video is not None
            with self.accelerator.autocast():
                logits = vtm_scores(model, text, mask, video, own, self.args.vtm_batch_size)
            return logits if self.args.world_size == 1 else torch.cat(gather_object([logits.cpu()]))

        text_to_video = states.text_to_video
        metrics: dict[str, float] = {}
        if protocol != "vtc":
            similarity, _ = retrieval_scores(states, "vtc")
            metrics = {f"vtc_{name}": value for name, value in retrieval_metrics(similarity, text_to_video).items()}
        scores, scores_v2t = retrieval_scores(states, protocol, score_pairs, self.args.rerank_k)
        return scores, text_to_video, retrieval_metrics(scores, text_to_video, scores_v2t) | metrics

    def _evaluate_answers(
        self, model: AlproForVideoQuestionAnswering, dataloader: DataLoader
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        rows: dict[int, tuple] = {}  # row id -> (logits, label, answer, answer type)
        count = 0
        for batch in dataloader:
            inputs = self._prepare_inputs({key: batch[key] for key in _MODEL_INPUTS if key in batch})
            own_labels = inputs.pop("labels").tolist()
            with torch.no_grad(), self.accelerator.autocast():
                own_logits = model(**inputs).logits.float().cpu()
            columns = (own_logits, own_labels, batch["answers"], batch["answer_types"])
            for row_id, *row in zip(self._row_ids(batch, count), *columns, strict=True):
                rows.setdefault(row_id, tuple(row))
            count += len(own_labels)
            self._on_batch()
        if self.args.world_size > 1:
            rows = {row_id: row for part in gather_object([rows]) for row_id, row in part.items()}
        if not rows:
            raise ValueError("There is nothing to evaluate: the data set has no rows.")
        all_logits, all_labels, answers, types = zip(*(rows[row_id] for row_id in sorted(rows)), strict=True)
        logits, labels = torch.stack(all_logits), torch.tensor(all_labels)
        id2label = model.config.id2label or {}
        predictions = [id2label[index] for index in logits.argmax(dim=1).tolist()]
        metrics = question_answering_metrics(predictions, answers, types, set(id2label.values()))
        if (labels != IGNORE_INDEX).any():
            metrics["loss"] = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX).item()
        return logits, labels, metrics


def _trained_part(model: nn.Module, args: AlproTrainingArguments) -> nn.Module:
    if isinstance(model, AlproForVideoTextRetrieval) and args.vtm_weight == 0:
        return model.alpro
    if not isinstance(model, AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering):
        raise TypeError(
            f"AlproTrainer trains AlproModel, AlproForVideoTextRetrieval and AlproForVideoQuestionAnswering; received "
            f"{type(model).__name__}."
        )
    return model


def _numbered(dataset: Any, training: bool = False) -> Any:
    if dataset is None or isinstance(dataset, NumberedRows) or not hasattr(dataset, "__len__"):
        return dataset
    return NumberedRows(dataset, training=training)


def _share_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of the labelled rows whose highest logit is the label; 0 where no row has one."""
    labelled = labels != IGNORE_INDEX
    return ((logits.argmax(dim=1) == labels) & labelled).sum() / labelled.sum().clamp(min=1)


def _trim_to_smallest(batch: dict[str, Any]) -> dict[str, Any]:
    """As many rows as every process has: broken clips may have cost some of them rows, and gathering needs equals."""
    rows = batch["input_ids"].new_tensor(len(batch["input_ids"]))
    dist.all_reduce(rows, op=dist.ReduceOp.MIN)
    return {key: value[: int(rows)] for key, value in batch.items()}


__all__ = ["AlproTrainer", "AlproTrainingArguments", "gather_with_gradients"]
