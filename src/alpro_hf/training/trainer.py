"""Pre-training and fine-tuning with the library's Trainer (arXiv 2112.09583, sections 3 and 4).

The model decides the stage: the prompter or its towers (VTC), pre-training (VTC + VTM + MLM + PEM), retrieval (VTC +
VTM), question answering. Only what the library cannot know is added: which losses make up the loss, what processes and
micro-steps tell each other, the log of every part, and the evaluation of retrieval and question answering.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.collator import AlproCollator
from ..data.mixed_rows import MixedRows
from ..data.rows import NumberedRows
from ..evaluation.encode import encode_batches, gather_states, match_pairs, merge_states
from ..evaluation.metrics import question_answering_metrics, retrieval_metrics
from ..evaluation.protocols import RetrievalProtocol, retrieval_scores
from ..model.loss_alpro import IGNORE_INDEX, crop_on_black
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel, AlproOutput
from ..model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from .arguments import _ENOUGH_ROWS, AlproTrainingArguments
from .callbacks import _KeepTemperatureInRange, _TellEpoch
from .checkpoints import break_seal, disk_errors, last_complete_checkpoint
from .distributed import (
    add_counts,
    cache_contrastive_gradients,
    contrastive_surrogate,
    gather_with_gradients,
    in_parallel,
    pad_to_longest,
    seeded,
    trim_to_smallest,
)

AlproTrainable = (
    AlproModel | AlproPrompterModel | AlproForPreTraining | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering
)
DROPPED = "dropped_rows.jsonl"  # in the output folder
_WORDS = ("input_ids", "attention_mask", "pixel_values_videos")
_MLM_INPUTS = ("mlm_input_ids", "mlm_labels", "mlm_count")
_PEM_INPUTS = ("crop_mask", "pem_targets", "pem_count")
_MODEL_INPUTS = {
    AlproModel: (*_WORDS, "video_ids", "text_ids"),
    AlproPrompterModel: (*_WORDS, "video_ids", "text_ids"),
    AlproForVideoTextRetrieval: (*_WORDS, "video_ids", "text_ids"),
    AlproForPreTraining: (*_WORDS, "video_ids", "text_ids", *_MLM_INPUTS, *_PEM_INPUTS),
    AlproForVideoQuestionAnswering: (*_WORDS, "video_index", "answer_mask", "labels", "label_count"),
}


class DroppedRowsError(RuntimeError):
    """Too many rows were dropped because their clips cannot be decoded; the message names the list of them."""


class NonFiniteLossError(ArithmeticError):
    """A loss is infinite or no number; the message names the step, the losses and the rows."""


class AlproTrainer(Trainer):
    """Pre-trains, fine-tunes and evaluates an ALPRO model, in one process or many.

    The model decides the task: `AlproModel` and `AlproPrompterModel` learn from VTC alone; `AlproForPreTraining` from
    VTC, VTM, MLM and PEM; `AlproForVideoTextRetrieval` from VTC and VTM; `AlproForVideoQuestionAnswering` from labels.
    PEM needs pseudo-labels: from the column `pem_targets` of the rows (see `alpro pseudo-label`), or else from
    `prompter`, which is put on the device of the training and stays as it is. With `vtm_weight=0` a retrieval model's
    `alpro` is what is trained and saved (`trainer.model`); the model passed in holds the same weights.

    Rows get numbered on the way to the collator (see `NumberedRows`), so that frames drawn at random are the same
    after a resumed training. The log has, beside the library's `loss`, the mean since the last log of `loss_vtc`,
    `loss_vtm`, `vtm_accuracy` and the `temperature`; in pre-training also of `loss_mlm`, `mlm_accuracy`, `loss_pem`,
    `pem_kept` (share of sure pseudo-labels), `pem_entropy` (of the teacher, in nats) and `pem_agreement` (how often
    teacher and student name the same entity); or of the `accuracy` of answers; and `dropped_rows`, all those so far
    whose clip could not be decoded, and `dropped_share` of all rows, once there is one; `dropped_rows.jsonl` in the
    output folder lists the clips with the reasons. More than `max_dropped_share` of them raise `DroppedRowsError`. A
    loss that is not finite raises `NonFiniteLossError` before it
    reaches the weights.

    Several processes, and the micro-steps of gradient accumulation, divide a loss by its number of labels in all of
    them, so losses and gradients are those of a single process with the whole batch. VTC compares across processes
    always, across micro-steps with `contrastive_accumulation`; VTM's negatives come from where `vtm_negatives` says.

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
        model: AlproTrainable | None = None,
        args: AlproTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        prompter: AlproPrompterModel | None = None,
        **kwargs: Any,
    ):
        args = AlproTrainingArguments(output_dir="alpro_trainer") if args is None else args
        if data_collator is None:
            raise ValueError("AlproTrainer needs data_collator=AlproCollator(processor, task=...).")
        if args.n_gpu > 1:
            raise ValueError(
                f"One process drives {args.n_gpu} GPUs, which splits batches behind the back of the contrastive loss. "
                f"Start one process for each: torchrun --nproc_per_node {args.n_gpu} SCRIPT (or hide all but one with "
                "CUDA_VISIBLE_DEVICES=0)."
            )
        if isinstance(train_dataset, MixedRows):
            _check_fit(train_dataset, args)
        accelerator_config: Any = args.accelerator_config
        if accelerator_config.dispatch_batches is None:
            accelerator_config.dispatch_batches = False  # clips would travel through the first process
        trained = None if model is None else _trained_part(model, args)
        if trained is not None and args.ddp_find_unused_parameters is None:
            # only the fusion layers under VTC alone, and heads whose loss has no labels, stay without gradient
            args.ddp_find_unused_parameters = isinstance(
                trained, AlproModel | AlproPrompterModel | AlproForPreTraining
            )
        self._parts: dict[str, torch.Tensor] = {}
        self._steps_in_parts = 0
        self._micro_step = 0
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
        if isinstance(data_collator, AlproCollator):
            data_collator.allow_empty = True
            if data_collator.dropped_file is None:
                data_collator.dropped_file = Path(args.output_dir or ".") / DROPPED
        self.add_callback(_KeepTemperatureInRange())
        self.add_callback(_TellEpoch())
        self.prompter = prompter
        if prompter is not None:
            self._check_prompter(prompter)
            teacher: nn.Module = prompter
            teacher.to(self.args.device).eval().requires_grad_(False)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return _trained_part(super().call_model_init(trial), self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return super().get_eval_dataloader(
            eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else _numbered(eval_dataset)
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(_numbered(test_dataset))

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the library's; `resume_from_checkpoint=True` goes on from the newest checkpoint that is complete.

        Raises:
            ValueError: There is nothing in `output_dir` to go on from.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir or "")
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in {self.args.output_dir} to resume from. Train without "
                    "resume_from_checkpoint, or give the path of a checkpoint."
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            break_seal(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        with disk_errors(self._get_output_dir(trial=trial)):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # what is written next, by one process, tells that the checkpoint is complete
        self.accelerator.wait_for_everyone()

    def _check_prompter(self, prompter: AlproPrompterModel) -> None:
        if not isinstance(prompter, AlproPrompterModel):
            raise TypeError(f"prompter must be an AlproPrompterModel; received {type(prompter).__name__}.")
        if not isinstance(self.model, AlproForPreTraining):
            raise ValueError(f"A prompter teaches AlproForPreTraining; {type(self.model).__name__} has no use for it.")
        if self.model.config.entities != prompter.config.entities:
            ours, theirs = (len(model.config.entities or ()) for model in (self.model, prompter))
            raise ValueError(
                f"The entities of the model ({ours}) and of the prompter ({theirs}) differ. Build the model with "
                "entities=prompter.config.entities."
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of a step, with all that they must know of each other; see `global_batch`.

        A batch of which no row is left is passed over; where that leaves too few for the last step of an epoch, that
        step is left out.

        Raises:
            ValueError: Such a batch came to one of several processes, while the others wait for what it makes of it.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        while not all(batches):
            if in_parallel():
                raise ValueError(
                    f"No row of a batch is left, because none of its clips can be decoded; they are listed in "
                    f"{getattr(self.data_collator, 'dropped_file', None)}. Several processes cannot go on without "
                    "one: mend or remove them, or take a larger batch."
                )
            batches = [batch for batch in batches if batch]
            more, _ = super().get_batch_samples(epoch_iterator, num_batches - len(batches), device)
            batches = batches + more if more else []
        plain: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self._micro_step = 0
        if not batches:
            return batches, count
        batches = [self._prepare_inputs(batch) for batch in batches]
        if in_parallel() and not isinstance(plain, AlproForVideoQuestionAnswering):
            batches = [trim_to_smallest(batch) for batch in batches]
            if self.args.vtm_negatives == "global":
                batches = [pad_to_longest(batch) for batch in batches]
        if isinstance(plain, AlproForPreTraining) and plain.pem_head is not None:
            for batch in batches:
                self._add_pseudo_labels(batch)
        add_counts(batches, plain.config.pem_threshold)
        if self.args.contrastive_accumulation and len(batches) > 1:
            self._cache_contrastive_gradients(plain, batches)
        return batches, count

    def _add_pseudo_labels(self, batch: dict[str, Any]) -> None:
        if self.args.pem_weight == 0 or "pem_targets" in batch:
            return
        if self.prompter is None or "crop_mask" not in batch:
            missing = "a prompter" if self.prompter is None else "crops: use the collator for pre-training"
            raise ValueError(
                f"The model has a PEM head, but a batch has no 'pem_targets' and there is no way to make them: the "
                f"trainer lacks {missing}. Pass prompter=, cache pseudo-labels, or set pem_weight=0."
            )
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
        with self.accelerator.autocast():
            batch["pem_targets"] = self.prompter.pseudo_labels(crops, kind=batch["kind"])

    def _cache_contrastive_gradients(self, plain: Any, batches: list[dict[str, Any]]) -> None:
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("contrastive_accumulation does not work with sharded models (FSDP, DeepSpeed).")

        def encode(batch: dict[str, Any]) -> AlproOutput:
            texts, mask = batch["input_ids"], batch["attention_mask"]
            if "mlm_input_ids" in batch and "mlm_input_ids" in _model_inputs(plain, self.args):
                texts, mask = torch.cat([texts, batch["mlm_input_ids"]]), torch.cat([mask, mask])
            with self.accelerator.autocast():
                return plain.base_model(texts, mask, batch["pixel_values_videos"], return_dict=True)

        plain.train()
        gather, rank = (gather_with_gradients, self.args.process_index) if in_parallel() else (None, 0)
        seeds = [self._own_seed_of(micro_step) for micro_step in range(len(batches))]
        cache_contrastive_gradients(plain.base_model, batches, encode, gather, rank, seeds)

    def _seed_of(self, micro_step: int) -> int:
        """A number that depends on the seed and the place in the training alone, the same on every process."""
        place = f"{self.args.seed}/{self.state.global_step}/{micro_step}".encode()
        return int.from_bytes(hashlib.blake2b(place, digest_size=7).digest(), "little")

    def _own_seed_of(self, micro_step: int) -> int:
        """`_seed_of`, but another one on every process: their dropout must not drop the same units."""
        return self._seed_of(micro_step) + self.args.process_index

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the losses of a batch; notes every part for the log.

        Raises:
            NonFiniteLossError: A part of the loss is infinite or no number.
        """
        plain: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        batch = {key: inputs[key] for key in _model_inputs(plain, self.args) if key in inputs}
        options: dict[str, Any] = {}
        if not isinstance(plain, AlproForVideoQuestionAnswering):
            options["return_loss"] = True
            if in_parallel():
                options |= {"gather": gather_with_gradients, "rank": self.args.process_index}
            if isinstance(plain, AlproForVideoTextRetrieval | AlproForPreTraining):
                generator = torch.Generator(self.args.device).manual_seed(self._seed_of(self._micro_step))
                options |= {"generator": generator, "negatives": self.args.vtm_negatives}
        cached = inputs.get("contrastive")
        with nullcontext() if cached is None else seeded(self._own_seed_of(self._micro_step), self.args.device):
            outputs = model(**batch, **options)
        if cached is not None:
            loss_vtc = contrastive_surrogate(
                outputs, plain.base_model, cached, self.current_gradient_accumulation_steps
            )
            outputs["loss" if isinstance(plain, AlproModel | AlproPrompterModel) else "loss_vtc"] = loss_vtc
        losses, facts = _parts_of(plain, outputs, batch)
        weights = {name: getattr(self.args, name.removeprefix("loss_") + "_weight", 1.0) for name in losses}
        # those of weight 0 too: several processes wait for the gradients of all that the outputs were made with
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        if plain.training:
            self._refuse_non_finite(losses, inputs)
            self._micro_step += 1
            for name, value in (losses | facts).items():
                value = value.detach().float()
                self._parts[name] = self._parts[name] + value if name in self._parts else value
            self._steps_in_parts += 1
        return (loss, outputs) if return_outputs else loss

    def _refuse_non_finite(self, losses: dict[str, torch.Tensor], inputs: dict[str, Any]) -> None:
        values = torch.stack([value.detach().float() for value in losses.values()])
        if torch.isfinite(values).all():
            return
        parts = ", ".join(f"{name}={value:g}" for name, value in zip(losses, values.tolist(), strict=True))
        rows = inputs["row_ids"].tolist() if "row_ids" in inputs else "without numbers"
        raise NonFiniteLossError(
            f"The loss of step {self.state.global_step + 1} is not finite: {parts}. Its rows: {rows}. The weights "
            "were not touched by it, and earlier checkpoints are as they were. A lower learning rate, a smaller "
            "max_grad_norm or bf16 instead of fp16 often help; look at these rows too."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, averaged over the steps since the last log and over processes.

        Raises:
            DroppedRowsError: See the class.
        """
        collator, all_dropped, all_read = None, 0, 0
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            means = torch.stack([self._parts[name] for name in names]) / self._steps_in_parts
            if isinstance(self.data_collator, AlproCollator):
                collator = self.data_collator
            counts = [0, 0] if collator is None else [collator.dropped, collator.read]
            gathered = self.accelerator.gather(torch.cat([means, means.new_tensor(counts)])[None])
            logs |= dict(zip(names, gathered[:, :-2].mean(dim=0).tolist(), strict=True))
            all_dropped, all_read = (int(count) for count in gathered[:, -2:].sum(dim=0))
            if all_dropped:
                logs["dropped_rows"], logs["dropped_share"] = all_dropped, all_dropped / all_read
        if "loss" in logs or "train_loss" in logs:  # the latter closes a training
            self._parts, self._steps_in_parts = {}, 0
        super().log(logs, start_time)
        share = logs.get("dropped_share", 0.0)
        if share > self.args.max_dropped_share and all_read >= _ENOUGH_ROWS:
            raise DroppedRowsError(
                f"{all_dropped} of {all_read} rows were dropped, because their clips cannot be decoded; "
                f"max_dropped_share={self.args.max_dropped_share:g}. They are listed with the reasons in "
                f"{collator and collator.dropped_file}. Mend or remove them, or raise max_dropped_share."
            )

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
        self, model: Any, dataloader: DataLoader
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        protocol: RetrievalProtocol = (
            self.args.eval_protocol if isinstance(model, AlproForVideoTextRetrieval | AlproForPreTraining) else "vtc"
        )
        with self.accelerator.autocast():  # around the model alone: similarities in bfloat16 would be full of ties
            batches = filter(None, dataloader)  # without the empty ones, see AlproCollator
            states = encode_batches(model, batches, keep_states=protocol != "vtc", on_batch=self._on_batch)
        states = merge_states(gather_states([states])).to(self.args.device)

        def score_pairs(pairs: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                return match_pairs(model, states, pairs, batch_size=self.args.vtm_batch_size)

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
        for batch in filter(None, dataloader):  # without the empty ones, see AlproCollator
            names = _model_inputs(model, self.args)
            inputs = self._prepare_inputs({key: batch[key] for key in names if key in batch})
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
    if not isinstance(model, tuple(_MODEL_INPUTS)):
        known = ", ".join(one.__name__ for one in _MODEL_INPUTS)
        raise TypeError(f"AlproTrainer trains {known}; received {type(model).__name__}.")
    weights = {"vtc": args.vtc_weight}
    if isinstance(model, AlproForVideoTextRetrieval):
        weights |= {"vtm": args.vtm_weight}
    elif isinstance(model, AlproForPreTraining):
        weights |= {"vtm": args.vtm_weight, "mlm": args.mlm_weight, "pem": args.pem_weight}
    if isinstance(model, AlproForVideoQuestionAnswering):
        if args.contrastive_accumulation:
            raise ValueError("contrastive_accumulation is for contrastive training; question answering has none.")
    elif not any(weights.values()):
        names = ", ".join(f"{name}_weight=0" for name in weights)
        raise ValueError(f"{names} leave nothing to learn for {type(model).__name__}.")
    return model


def _check_fit(rows: MixedRows, args: AlproTrainingArguments) -> None:
    """Rows in the order of the steps of another training would mix their sources in a batch."""
    wanted = {
        "batch_size": args.per_device_train_batch_size,
        "world_size": args.world_size,
        "accumulation": args.gradient_accumulation_steps,
    }
    wrong = [f"{name}={getattr(rows, name)} instead of {value}" for name, value in wanted.items()
             if getattr(rows, name) != value]  # fmt: skip
    if wrong:
        raise ValueError(
            f"MixedRows was made for another training: {', '.join(wrong)}. Build it with "
            "MixedRows.from_arguments(sources, args)."
        )


def _model_inputs(model: nn.Module, args: AlproTrainingArguments) -> list[str]:
    """What of a batch the model reads, without the inputs of a loss whose weight is 0."""
    names = next(names for model_class, names in _MODEL_INPUTS.items() if isinstance(model, model_class))
    off = {*(() if args.mlm_weight else _MLM_INPUTS), *(() if args.pem_weight else _PEM_INPUTS)}
    return [name for name in names if name not in off]


def _numbered(dataset: Any, training: bool = False) -> Any:
    if dataset is None or isinstance(dataset, NumberedRows) or not hasattr(dataset, "__len__"):
        return dataset
    return NumberedRows(dataset, training=training)


def _share_correct(logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the labelled rows whose highest logit is the label; 0 where none has one. `count` as in the losses."""
    labelled = labels != IGNORE_INDEX
    count = labelled.sum() if count is None else count
    return ((logits.argmax(dim=1) == labels) & labelled).sum() / torch.where(count > 0, count, 1)


def _parts_of(
    model: Any, outputs: Any, batch: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The losses of a batch by name, and what else the log should know."""
    if isinstance(model, AlproForVideoQuestionAnswering):
        return {"loss": outputs.loss}, {
            "accuracy": _share_correct(outputs.logits, batch["labels"], batch.get("label_count"))
        }
    facts = {"temperature": model.base_model.get_temperature().squeeze()}
    if isinstance(model, AlproModel | AlproPrompterModel):
        return {"loss_vtc": outputs.loss}, facts
    losses = {"loss_vtc": outputs.loss_vtc, "loss_vtm": outputs.loss_vtm}
    facts["vtm_accuracy"] = _share_correct(outputs.vtm_logits, outputs.vtm_labels)
    if isinstance(model, AlproForPreTraining):
        if outputs.loss_mlm is not None:
            losses["loss_mlm"] = outputs.loss_mlm
            facts["mlm_accuracy"] = _share_correct(
                outputs.mlm_logits.flatten(0, 1), batch["mlm_labels"].flatten(), batch.get("mlm_count")
            )
        if outputs.loss_pem is not None:
            losses["loss_pem"] = outputs.loss_pem
            targets = batch["pem_targets"].float()
            facts["pem_kept"] = outputs.pem_kept.float().mean()
            facts["pem_entropy"] = torch.special.entr(targets).sum(dim=1).mean()
            facts["pem_agreement"] = (outputs.pem_logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
    return losses, facts


__all__ = ["DROPPED", "AlproTrainer", "DroppedRowsError", "NonFiniteLossError"]
