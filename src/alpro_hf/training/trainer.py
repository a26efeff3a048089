"""Pre-training and fine-tuning with the library's Trainer (arXiv 2112.09583, sections 3 and 4).

The model decides the stage, because it declares its inputs and its losses (see `AlproPreTrainedModel`). This module
adds what the library cannot know: the weights of the losses, the exchange between processes and between micro-steps,
the log of every loss, and the evaluation of retrieval and question answering.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ..adapters import load_adapters
from ..data.collator import AlproCollator
from ..data.mixed_rows import MixedRows
from ..data.rows import NumberedRows
from ..files import remove_links
from ..model.loss_alpro import IGNORE_INDEX, crop_on_black
from ..model.modeling_alpro import AlproOutput, AlproPreTrainedModel, NegativeSampling
from ..model.pretraining_alpro import AlproPrompterModel
from ..model.wrappers_alpro import plain_model
from .arguments import AlproTrainingArguments
from .callbacks import KeepTemperatureInRange, LogLastSteps, SetDatasetEpoch
from .checkpoints import disk_errors, last_complete_checkpoint, mark_incomplete, processes_of, settle_times
from .defaults import checked_arguments, choose_best_metric, default_collator, fit_collator
from .distributed import (
    add_counts,
    cache_contrastive_gradients,
    contrastive_surrogate,
    gather_with_gradients,
    in_parallel,
    pad_to_longest,
    seeded,
    smallest_of_all,
)
from .feature_cache import FillFeatures, check_cache
from .frozen import PrepareLayers, freeze, still
from .shares import EqualShares, size_of
from .trainer_evaluation import evaluate_answers, evaluate_retrieval
from .trainer_losses import (
    NonFiniteLossError,
    input_names,
    is_contrastive,
    losses_of,
    may_leave_parameters_unused,
    refuse_non_finite,
    statistics_of,
    trained_part,
)
from .trainer_rows import (
    DROPPED,
    DroppedRowsError,
    check_fit,
    dropped_and_read,
    numbered,
    refuse_nothing_learned,
    refuse_too_many_dropped,
    refuse_undecodable_evaluation,
    tell_other_start,
    why_nothing_was_learned,
)

logger = logging.get_logger(__name__)

_WAITING = "waiting_rows_{}.pt"  # in a checkpoint: rows of a process for its next batch, see `EqualShares`


class AlproTrainer(Trainer):
    """Pre-trains, fine-tunes and evaluates an ALPRO model, in one process or in many.

    Losses. The model decides which losses there are:
        - `AlproModel`, `AlproPrompterModel`: VTC.
        - `AlproForVideoTextRetrieval`: VTC and VTM. With `vtm_weight=0` the trainer trains and saves its `alpro`
          instead (`trainer.model`), which shares the weights of the model that was passed.
        - `AlproForPreTraining`: VTC, VTM, MLM and PEM.
        - `AlproForVideoQuestionAnswering`: cross entropy of the answers.
        - `AlproForMatchingAndAnswering`: VTC and VTM in steps of pairs, `loss_answer` in steps of questions. Its means
          in the log are those of its steps. Evaluation is that of retrieval.

    Pseudo-labels. PEM reads them from the column `pem_targets` of the rows (see `alpro pseudo-label`). Without that
    column, `prompter` computes them. The trainer moves the prompter to the device of the training and does not change
    its weights.

    Log. Besides `loss`, each log contains means since the previous log, over all processes:
        - `loss_vtc` and `loss_vtm`, `vtm_accuracy` in [0, 1], and the `temperature`. If rows have false captions
          (column `negatives`), `vtm_edited_accuracy` is the share of them that matching recognises.
        - In pre-training also `loss_mlm`, `mlm_accuracy` and `loss_pem`; `pem_kept`, the share of certain
          pseudo-labels; `pem_entropy`, the entropy of the teacher in nats; and `pem_agreement`, the share of crops for
          which teacher and student name the same entity.
        - In question answering, `accuracy` in [0, 1].
        - Once rows were dropped, `dropped_rows`, their number so far, and `dropped_share`, their share of all rows so
          far. The file `dropped_rows.jsonl` in the output folder lists the clips with the reasons.

    Processes and micro-steps. A loss is divided by its number of labels in all processes and all micro-steps of
    gradient accumulation. Losses and gradients therefore equal those of a single process with the whole batch. VTC
    compares across processes always, and across micro-steps with `contrastive_accumulation`. `vtm_negatives` says
    where the negatives of VTM come from. If rows were dropped in one process, the others keep as many for their next
    batch, and save them with checkpoints.

    Less work. `freeze` and `freeze_layers` leave towers or layers as they are, `feature_cache` keeps what a frozen
    video tower makes of each clip, and `checkpoint_layers` limits gradient checkpointing.

    End. The last log has `train_rows`, `train_rows_left_out` and `train_steps`: see `train`.

    Evaluation. Retrieval has metrics such as `eval_t2v_r1` (see `retrieval_metrics`), by the protocol
    `args.eval_protocol`, or by `vtc` while the matching head is untrained. If that is not `vtc`, the metrics by `vtc`
    are added as `eval_vtc_t2v_r1` and so on. Question answering has metrics such as `eval_accuracy` (see
    `question_answering_metrics`). `eval_dropped_rows` is the number of rows whose clip cannot be decoded. `predict`
    returns the scores (texts, clips) and the clip of each text, or the logits (rows, answers) and the labels.

    Rows are numbered on the way to the collator (see `NumberedRows`), so a resumed training draws the same frames.

    Args:
        model: One of the models above, or the same class from the code of a checkpoint (`trust_remote_code`); also
            in a wrapper, such as that of `peft.get_peft_model`, or with adapters from `add_adapter`. With adapters,
            checkpoints hold the adapters alone.
        args: Training arguments. None: the defaults, with output folder `alpro_trainer`.
        data_collator: An `AlproCollator`, or an `AlproPreTrainingCollator` for `AlproForPreTraining`. None: one for
            the model, from `processing_class`, without augmentation. A collator of questions takes `config.label2id`
            if it has no `label2id`.
        train_dataset: Rows, see `AlproCollator`.
        eval_dataset: Rows, or a dictionary of names and rows.
        prompter: Teacher of PEM, with the entities of the model. None: the rows have pseudo-labels, or there is no
            PEM.
        kwargs: Other arguments of `transformers.Trainer`. `processing_class`, the `AlproProcessor`, is saved with
            every checkpoint; None: that of `data_collator`.

    Raises:
        TypeError: The model declares no losses, `prompter` is not a prompter, or `args` are of another class.
        ValueError: Arguments are missing or contradict each other; the message names them.
        DroppedRowsError: While training, more than `max_dropped_share` of the rows were dropped, or there is nothing
            to train or evaluate on.
        NonFiniteLossError: While training, before a loss that is not finite reaches the weights.

    Example:
        >>> trainer = AlproTrainer(
        ...     model=model,
        ...     args=AlproTrainingArguments(output_dir="out", per_device_train_batch_size=64),
        ...     processing_class=processor,
        ...     train_dataset=train_rows,
        ...     eval_dataset=test_rows,
        ... )
        >>> trainer.train()
    """

    args: AlproTrainingArguments
    loss_is_scaled_for_ga = False  # losses are means over a batch, so the library divides them by the micro-steps

    def __init__(
        self,
        model: AlproPreTrainedModel | None = None,
        args: AlproTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        prompter: AlproPrompterModel | None = None,
        **kwargs: Any,
    ):
        args = checked_arguments(args)
        if args.n_gpu > 1:
            raise ValueError(
                f"One process drives {args.n_gpu} GPUs. The library then splits each batch, and the contrastive loss "
                f"would compare within the parts only. Start one process for each GPU: torchrun --nproc_per_node "
                f"{args.n_gpu} SCRIPT. To use a single GPU, set CUDA_VISIBLE_DEVICES=0."
            )
        if isinstance(train_dataset, MixedRows):
            check_fit(train_dataset, args)
        accelerator_config: Any = args.accelerator_config
        if accelerator_config.dispatch_batches is None:
            accelerator_config.dispatch_batches = False  # True decodes every clip in the first process
        trained = None if model is None else trained_part(model, args)
        plain: Any = None if trained is None else plain_model(trained)
        if data_collator is None:
            data_collator = default_collator(plain, args, kwargs.get("processing_class"))
        elif kwargs.get("processing_class") is None and isinstance(data_collator, AlproCollator):
            kwargs["processing_class"] = data_collator.processor  # so that checkpoints hold it
        if plain is not None:
            fit_collator(data_collator, plain)
            choose_best_metric(args, plain, eval_dataset)
            if args.ddp_find_unused_parameters is None:
                args.ddp_find_unused_parameters = may_leave_parameters_unused(plain)
        self._frozen = [] if trained is None else freeze(trained, args)
        # sums over the micro-steps since the last log; tensors, because reading a number would wait for the GPU
        self._parts: dict[str, torch.Tensor] = {}
        self._steps_in_parts: Counter[str] = Counter()  # a loss may be of some steps alone
        self._micro_step = 0  # index within the current optimiser step
        self._rows_used = 0  # by this process, since `train` was called
        self._rows_left_out = 0  # healthy ones, which did not fill a step
        self._labels_seen: torch.Tensor | int = 0
        self._resumed = False
        self._shares: EqualShares | None = None
        super().__init__(
            model=trained,
            args=args,
            data_collator=data_collator,
            train_dataset=numbered(train_dataset, training=True),
            eval_dataset=(
                {name: numbered(rows) for name, rows in eval_dataset.items()}
                if isinstance(eval_dataset, dict)
                else numbered(eval_dataset)
            ),
            **kwargs,
        )
        if isinstance(data_collator, AlproCollator):
            data_collator.allow_empty = True  # a batch without rows comes back empty, see `get_batch_samples`
            if data_collator.dropped_file is None:
                data_collator.dropped_file = Path(args.output_dir or ".") / DROPPED
        self.add_callback(KeepTemperatureInRange())
        self.add_callback(LogLastSteps())
        self.add_callback(SetDatasetEpoch())
        self.add_callback(PrepareLayers())
        if args.feature_cache is not None:
            check_cache(self.model, data_collator, self.train_dataset)
            self.add_callback(FillFeatures(self))
        self.prompter = prompter
        if prompter is not None:
            self._check_prompter(prompter)
            teacher: nn.Module = prompter
            teacher.to(self.args.device).eval().requires_grad_(False)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model: nn.Module = trained_part(super().call_model_init(trial), self.args)
        self._frozen = freeze(model, self.args)
        return model

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        return super().get_eval_dataloader(
            eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else numbered(eval_dataset)
        )

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return super().get_test_dataloader(numbered(test_dataset))

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as the library does; `resume_from_checkpoint=True` resumes from the newest complete checkpoint.

        The result has metrics of this call: `train_rows`, the rows that the losses were computed from (a row counts
        in each epoch); `train_rows_left_out`, healthy rows that did not fill a step; and `train_steps`.

        Raises:
            ValueError: `output_dir` contains no complete checkpoint to resume from.
            DroppedRowsError: There was nothing to train or evaluate on. No model is saved.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir or "")
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in {self.args.output_dir} to resume from. Train without "
                    "resume_from_checkpoint, or pass the path of a checkpoint."
                )
        if self.args.should_save and self.args.output_dir:
            remove_links(self.args.output_dir)  # the library writes to the files behind them
        self._rows_used = self._rows_left_out = self._labels_seen = 0
        self._resumed = bool(resume_from_checkpoint)
        self._shares = None
        if resume_from_checkpoint:
            tell_other_start(self, str(resume_from_checkpoint))
        if in_parallel():
            exchange = partial(smallest_of_all, device=self.args.device)
            plain = plain_model(self.model)
            # batches of questions, which share clips, are not cut
            rows_move = is_contrastive(plain) and "loss_answer" not in plain.training_losses
            self._shares = EqualShares(self.args.per_device_train_batch_size, rows_move, exchange)
            if resume_from_checkpoint and processes_of(resume_from_checkpoint) == self.args.world_size:
                self._restore_waiting_rows(resume_from_checkpoint)
        if self.args.eval_strategy != "no":
            refuse_undecodable_evaluation(self)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._rows_used or self.state.global_step < self.state.max_steps:  # else it had ended before
            refuse_nothing_learned(self, self._rows_used, self._labels_seen)
        if self.state.global_step:  # also when a resumed training had no step left
            self._note_matching(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        return output

    def _note_matching(self, model: Any) -> None:
        """Note in the configuration that VTM has trained the matching head, if the model learns from it."""
        model = plain_model(model)
        if "loss_vtm" in model.training_losses and self.args.loss_weights["loss_vtm"]:
            model.config.matching_trained = True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        remove_links(output_dir or self.args.output_dir or "")
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self._resumed:  # the checkpoint would not be the first one that learned something
            refuse_nothing_learned(self, self._rows_used, self._labels_seen)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial))
            mark_incomplete(folder / f"checkpoint-{self.state.global_step}")
            settle_times(folder)
        with disk_errors(self._get_output_dir(trial=trial)):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        plain = plain_model(self.model if model is None else model)
        # the library loads adapters into a PeftModel only, not into a model that got them from `add_adapter`
        if getattr(plain, "_hf_peft_config_loaded", False):
            load_adapters(plain, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        plain = plain_model(self.model)
        if getattr(plain, "_hf_peft_config_loaded", False):
            load_adapters(plain, self.state.best_model_checkpoint or "")
        else:
            super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        waiting = Path(output_dir) / _WAITING.format(self.args.process_index)
        if self._shares is not None and self._shares.waiting:
            torch.save(self._shares.state(), waiting)
        else:
            waiting.unlink(missing_ok=True)
        # The first process now writes the trainer's state, which marks the checkpoint as complete (see `checkpoints`).
        self.accelerator.wait_for_everyone()

    def _restore_waiting_rows(self, checkpoint: str | os.PathLike[str]) -> None:
        waiting = Path(checkpoint) / _WAITING.format(self.args.process_index)
        if self._shares is not None and waiting.is_file():
            self._shares.restore(torch.load(waiting, weights_only=True), self.args.device)

    def _check_prompter(self, prompter: AlproPrompterModel) -> None:
        # by what it can do, not by its class: remote code defines the class a second time
        if not hasattr(prompter, "pseudo_labels"):
            raise TypeError(f"prompter must be an AlproPrompterModel; received {type(prompter).__name__}.")
        student: Any = plain_model(self.model)
        if "loss_pem" not in student.training_losses:
            raise ValueError(f"A prompter teaches AlproForPreTraining; {type(student).__name__} has no use for it.")
        if student.config.entities != prompter.config.entities:
            ours, theirs = (len(model.config.entities or ()) for model in (student, prompter))
            raise ValueError(
                f"The entities of the model ({ours}) and of the prompter ({theirs}) differ. Build the model with "
                "entities=prompter.config.entities."
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return the micro-batches of a step and their number of items, and let them exchange what they must share.

        An empty batch, of whose rows no clip can be decoded, is replaced by the next one. If the epoch has no more
        batches, its last step is left out. Several processes do so together, see `EqualShares`.

        Raises:
            DroppedRowsError: The epoch has ended without a row to learn from, or too many rows were dropped.
        """
        plain: Any = plain_model(self.model)
        self._micro_step = 0
        batches: list[dict[str, Any]] = []
        count = None
        replaced = ended = False
        while len(batches) < num_batches and not ended:
            missing = num_batches - len(batches)
            found, items = super().get_batch_samples(epoch_iterator, missing, device)
            count = items if count is None else count
            # an empty dictionary: the collator found no clip of the batch that can be decoded
            given = [self._prepare_inputs(batch) if batch else batch for batch in found]
            ended = len(given) < missing
            if self._shares is not None:
                padded: list[Any] = [*given, *[None] * (missing - len(given))]
                shared = [self._shares.equal(batch) for batch in padded]
                ended = any(batch is None for batch in shared)
                given = [batch for batch in shared if batch is not None]
            batches += filter(None, given)
            if not all(given):
                replaced = True
                refuse_too_many_dropped(self, *dropped_and_read(self))
        if replaced and len(batches) < num_batches:  # a shorter accumulation would be a step of another batch size
            self._rows_left_out += sum(map(size_of, batches))
            batches = []
        if not batches:
            if not self._rows_used and not self._resumed:
                raise DroppedRowsError(why_nothing_was_learned(self))
            return batches, count
        self._rows_used += sum(map(size_of, batches))
        if "labels" in batches[0]:
            self._labels_seen += sum((batch["labels"] != IGNORE_INDEX).sum() for batch in batches)
        # The order matters: PEM labels only the rows that stay, and the counts are those of the labels that stay.
        shares_texts = self.args.vtm_negatives == "global" or self.args.vtm_pool is not None
        if in_parallel() and is_contrastive(plain) and shares_texts:
            batches = [pad_to_longest(batch) for batch in batches]
        if "loss_pem" in plain.training_losses and plain.config.entities:
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
                f"The model has a PEM head, but a batch has no 'pem_targets' and they cannot be computed: the trainer "
                f"lacks {missing}. Pass prompter=, cache pseudo-labels, or set pem_weight=0."
            )
        crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
        with self.accelerator.autocast():
            batch["pem_targets"] = self.prompter.pseudo_labels(crops, kind=batch["kind"])

    def _cache_contrastive_gradients(self, plain: Any, batches: list[dict[str, Any]]) -> None:
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("contrastive_accumulation does not work with sharded models (FSDP, DeepSpeed).")
        if any("negative_input_ids" in batch for batch in batches):
            raise ValueError(
                "contrastive_accumulation does not work with false captions: the rows have a column 'negatives'. "
                "Remove the column, or set contrastive_accumulation=False."
            )

        def encode(batch: dict[str, Any]) -> AlproOutput:
            # Exactly the texts that the later forward pass encodes: dropout draws by the shape of the batch.
            texts, mask = batch["input_ids"], batch["attention_mask"]
            if "mlm_input_ids" in batch and "mlm_input_ids" in input_names(plain, self.args):
                texts, mask = torch.cat([texts, batch["mlm_input_ids"]]), torch.cat([mask, mask])
            clips = {name: batch[name] for name in ("pixel_values_videos", "video_hidden_states") if name in batch}
            with self.accelerator.autocast():
                return plain.base_model(texts, mask, **clips, return_dict=True)

        plain.train()  # the library does so after this; both passes need the same dropout
        still(self._frozen)
        gather, rank = (gather_with_gradients, self.args.process_index) if in_parallel() else (None, 0)
        seeds = [self._own_seed_of(micro_step) for micro_step in range(len(batches))]
        cache_contrastive_gradients(plain.base_model, batches, encode, gather, rank, seeds)

    def _seed_of(self, micro_step: int) -> int:
        """Return a seed that depends only on `args.seed`, the step and the micro-step; equal on every process."""
        place = f"{self.args.seed}/{self.state.global_step}/{micro_step}".encode()
        return int.from_bytes(hashlib.blake2b(place, digest_size=7).digest(), "little")

    def _own_seed_of(self, micro_step: int) -> int:
        """Return a seed that differs between processes, so that their dropouts drop different units."""
        return self._seed_of(micro_step) + self.args.process_index

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients of a micro-batch; during `head_warmup_steps`, of heads and projections alone."""
        loss = super().training_step(model, *args, **kwargs)
        if self.args.heads_alone(self.state.global_step, self.state.max_steps):
            # Here, before the norm is clipped. Not by `requires_grad`, which DDP reads once, at the start. The
            # optimizer leaves what has no gradient as it is, without decay, too.
            for name, weight in model.named_parameters():
                if "text_model." in name or "video_model." in name:
                    weight.grad = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the weighted sum of the losses of a batch, and record every loss for the log.

        Raises:
            NonFiniteLossError: A loss is infinite or NaN.
        """
        plain: Any = plain_model(model)
        if plain.training:
            still(self._frozen)  # the library has just put the whole model in training mode
        batch = {name: inputs[name] for name in input_names(plain, self.args) if name in inputs}
        cached = inputs.get("contrastive")
        with nullcontext() if cached is None else seeded(self._own_seed_of(self._micro_step), self.args.device):
            outputs = model(**batch, **self._loss_options(plain))
        losses = losses_of(plain, outputs)
        if cached is not None:
            losses["loss_vtc"] = contrastive_surrogate(
                outputs, plain.base_model, cached, self.current_gradient_accumulation_steps
            )
        weights = self.args.loss_weights
        # Losses of weight 0 are part of the sum, too: DDP waits for a gradient of each parameter that made an output.
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        if plain.training:
            refuse_non_finite(losses, inputs, self.state.global_step + 1)
            self._micro_step += 1
            self._note_matching(plain)  # now, so that the checkpoints of this training say so
            for name, value in (losses | statistics_of(plain, losses, outputs, batch)).items():
                value = value.detach().float()
                self._parts[name] = self._parts[name] + value if name in self._parts else value
                self._steps_in_parts[name] += 1
        return (loss, outputs) if return_outputs else loss

    def _loss_options(self, model: Any) -> dict[str, Any]:
        """Return the arguments of the forward pass that are not in the batch."""
        if not is_contrastive(model):
            return {}
        options: dict[str, Any] = {"return_loss": True}
        if in_parallel():
            options |= {"gather": gather_with_gradients, "rank": self.args.process_index}
        if "loss_vtm" in model.training_losses:
            generator = torch.Generator(self.args.device).manual_seed(self._seed_of(self._micro_step))
            sampling = self.args.negative_sampling(self.state.global_step, self.state.max_steps)
            # the word alone where it says all, which code of earlier versions (`trust_remote_code`) knows, too
            says_all = sampling == NegativeSampling(sampling.where)
            options |= {"generator": generator, "negatives": sampling.where if says_all else sampling}
        return options

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the means of the losses since the last log, over all processes.

        Raises:
            DroppedRowsError: More than `max_dropped_share` of the rows were dropped.
        """
        all_dropped, all_read = 0, 0
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            means = torch.stack([self._parts[name] / self._steps_in_parts[name] for name in names])
            collator = self.data_collator
            counts = [collator.dropped, collator.read] if isinstance(collator, AlproCollator) else [0, 0]
            # one exchange for everything: each one waits for the slowest process
            gathered = self.accelerator.gather(torch.cat([means, means.new_tensor(counts)])[None])
            logs |= dict(zip(names, gathered[:, :-2].mean(dim=0).tolist(), strict=True))
            all_dropped, all_read = (int(count) for count in gathered[:, -2:].sum(dim=0))
            if all_dropped:
                logs["dropped_rows"], logs["dropped_share"] = all_dropped, all_dropped / all_read
        if "train_loss" in logs:  # the last log of a training
            waiting = 0 if self._shares is None else self._shares.left_out + self._shares.waiting
            own = torch.tensor([[self._rows_used, self._rows_left_out + waiting]], device=self.args.device)
            used, left_out = self.accelerator.gather(own).sum(dim=0).tolist()
            logs |= {
                "train_rows": used,
                "train_rows_left_out": left_out,
                "train_steps": self.state.global_step - self._initial_global_step,
            }
        if "loss" in logs or "train_loss" in logs:
            self._parts, self._steps_in_parts = {}, Counter()
        super().log(logs, start_time)
        refuse_too_many_dropped(self, all_dropped, all_read)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the library's choice without the temperature, which weight decay would lower whatever the data."""
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
        """Score a data set; the docstring of the class describes the result.

        `prediction_loss_only` and `ignore_keys` are the library's arguments and have no effect.
        """
        model = plain_model(self.model)
        if not self.is_in_train:  # as the library does: in training, the optimiser holds on to these weights
            dtype = {self.args.bf16_full_eval: torch.bfloat16, self.args.fp16_full_eval: torch.float16}.get(True)
            model = model.to(device=self.args.device, dtype=dtype)
        was_training = model.training
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        evaluate = evaluate_retrieval if is_contrastive(model) else evaluate_answers
        predictions, label_ids, metrics = evaluate(self, model, dataloader)
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

    def count_batch(self) -> None:
        """Move the progress bar of an evaluation."""
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)


__all__ = ["DROPPED", "AlproTrainer", "DroppedRowsError", "NonFiniteLossError"]
