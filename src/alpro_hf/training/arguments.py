"""Training arguments of ALPRO: the library's, with the paper's defaults (arXiv 2112.09583, sections 3.2 to 4.3)."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from ..evaluation.protocols import RetrievalProtocol
from ..model.modeling_alpro import NegativeSampling

MIN_ROWS_FOR_SHARE = 100  # with fewer rows, a few broken clips make a large share
# name of a loss in the outputs of the models -> the argument that is its weight
WEIGHT_ARGUMENTS = {
    "loss_vtc": "vtc_weight",
    "loss_vtm": "vtm_weight",
    "loss_mlm": "mlm_weight",
    "loss_pem": "pem_weight",
}
_PROTOCOLS = get_args(RetrievalProtocol)
TOWERS = ("video", "text")  # what can be frozen as a whole


@dataclass
class AlproTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of the paper's fine-tuning, and additional arguments for ALPRO.

    Defaults that differ from the library's are values that all fine-tuning runs of the paper share. Learning rate,
    batch size and epochs depend on the task: 2.5e-5, a global batch of 64 and 5 epochs for MSR-VTT retrieval; 5e-5,
    192 and 10 for MSRVTT-QA.

    The `metadata` of each field has its description, which `alpro train --help` and `HfArgumentParser` show.

    Raises:
        ValueError: A value is out of its range, or two values contradict each other; the message names the fields.
    """

    # Losses
    vtc_weight: float = field(
        default=1.0, metadata={"help": "Weight of the contrastive loss VTC in pre-training and retrieval."}
    )
    vtm_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the matching loss VTM in pre-training and retrieval. In retrieval, 0 leaves matching "
            "out: the two towers are trained and saved as an AlproModel, without the cost of the fusion layers."
        },
    )
    mlm_weight: float = field(default=1.0, metadata={"help": "Weight of masked language modeling in pre-training."})
    pem_weight: float = field(default=1.0, metadata={"help": "Weight of prompting entity modeling in pre-training."})
    vtm_negatives: Literal["local", "global"] = field(
        default="local",
        metadata={
            "help": "Where VTM's hard negatives come from: the batch of the process ('local', as in the released "
            "code), or the batches of all processes ('global'), which must then exchange their token states.",
            "choices": ["local", "global"],
        },
    )
    vtm_pool: int | None = field(
        default=None,
        metadata={
            "help": "Draw VTM's hard negatives among this many neighbouring rows of the batch, whatever the number of "
            "devices (released: 16 in pre-training, 8 for MSR-VTT, 12 for DiDeMo); vtm_negatives then has no effect. "
            "Default: all rows that vtm_negatives says."
        },
    )
    vtm_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Temperature with which VTM's hard negatives are drawn; a higher one draws more varied negatives. "
            "Default: the learned one, as in the paper."
        },
    )
    vtm_uniform_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of VTM's negatives that is drawn evenly at the start of training, from 0 (the paper) to "
            "1; it falls linearly to 0. 0.3 to 0.5 lets matching start where VTC is sharp already."
        },
    )
    vtm_uniform_steps: float = field(
        default=0.5,
        metadata={"help": "Steps until vtm_uniform_share is 0, or their share of all steps if below 1."},
    )
    head_warmup_steps: float = field(
        default=0.0,
        metadata={
            "help": "Steps at the start in which the towers and the fusion layers stay as they are and only heads and "
            "projections learn, or their share of all steps if below 1. Protects trained layers from new heads."
        },
    )
    contrastive_accumulation: bool = field(
        default=False,
        metadata={
            "help": "Contrast all micro-batches of gradient_accumulation_steps with each other in VTC (GradCache). "
            "Allows large contrastive batches in little memory, but encodes every clip and text twice."
        },
    )

    # Less work and less memory
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Towers whose weights stay as they are (locked, as in LiT): 'video', 'text' or both. They run as "
            "in evaluation and store no activations. Projections, fusion layers and heads learn.",
            "choices": list(TOWERS),
        },
    )
    freeze_layers: int = field(
        default=0,
        metadata={"help": "Freeze the embeddings and this many first layers of the video tower alone."},
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "With freeze=video: folder that keeps the tokens of each clip. They are computed before the first "
            "step; no later step or run decodes a clip or runs the tower. Needs train_sampling=center or uniform and "
            "augmentation=none, and at base size 605 KB for each clip."
        },
    )
    checkpoint_layers: int | None = field(
        default=None,
        metadata={
            "help": "With gradient checkpointing: only the first so many layers of the video tower are computed "
            "twice. Default: all layers of both towers, which needs the least memory."
        },
    )

    # Evaluation
    eval_protocol: RetrievalProtocol = field(
        default="vtc",
        metadata={
            "help": "Score of retrieval: 'vtc' (cosine similarity of the towers), 'rerank' (the best rerank_k "
            "candidates by 'vtc', reordered by matching), 'reference' (matching score of all pairs, as in the paper).",
            "choices": list(_PROTOCOLS),
        },
    )
    rerank_k: int = field(
        default=16, metadata={"help": "Candidates of each query that the protocol 'rerank' reorders."}
    )
    vtm_batch_size: int = field(
        default=256, metadata={"help": "Text-clip pairs to fuse at a time in evaluation by 'rerank' or 'reference'."}
    )

    # Optimisation: the library's fields, with the paper's values
    adam_beta2: float = field(
        default=0.98, metadata={"help": "Beta2 of AdamW. The paper's value; the library's default is 0.999."}
    )
    adam_epsilon: float = field(
        default=1e-6, metadata={"help": "Epsilon of AdamW. The released value; the library's default is 1e-8."}
    )
    weight_decay: float = field(
        default=1e-3,
        metadata={"help": "Weight decay of AdamW. The paper's value; the library's default is 0."},
    )
    warmup_steps: float = field(
        default=0.1,
        metadata={
            "help": "Steps of linear warm-up, or their share of all steps if below 1. The paper's value; the "
            "library's default is 0."
        },
    )
    max_grad_norm: float = field(
        default=5.0,
        metadata={
            "help": "Norm to which gradients are clipped. The paper's value for MSR-VTT (20 for DiDeMo and MSVD); the "
            "library's default is 1."
        },
    )

    # Data
    max_dropped_share: float = field(
        default=0.5,
        metadata={
            "help": "Stop the training if more than this share of the rows so far was dropped because their clips "
            f"cannot be decoded. Checked at each log, once {MIN_ROWS_FOR_SHARE} rows were read. 1: never stop."
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Must stay off (the library's default is on): the collator reads columns no model reads."},
    )

    def __post_init__(self) -> None:
        if self.eval_protocol not in _PROTOCOLS:
            raise ValueError(f"eval_protocol={self.eval_protocol!r} is unknown. Use one of {', '.join(_PROTOCOLS)}.")
        for loss, weight in self.loss_weights.items():
            if weight < 0:
                raise ValueError(f"{WEIGHT_ARGUMENTS[loss]}={weight} must not be negative; 0 switches the loss off.")
        if self.vtm_negatives not in ("local", "global"):
            raise ValueError(f"vtm_negatives={self.vtm_negatives!r} is unknown. Use 'local' or 'global'.")
        try:
            self.negative_sampling(0, 1)
        except ValueError as error:
            raise ValueError(f"vtm_negatives, vtm_pool, vtm_temperature or vtm_uniform_share: {error}") from error
        for name in ("vtm_uniform_steps", "head_warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a number of steps or a share, of at least 0.")
        # null in a recipe is the default
        self.freeze = [self.freeze] if isinstance(self.freeze, str) else list(self.freeze or [])
        self.freeze_layers = self.freeze_layers or 0
        if unknown := [name for name in self.freeze if name not in TOWERS]:
            raise ValueError(f"freeze={self.freeze} names {unknown[0]!r}. Use {' and '.join(map(repr, TOWERS))}.")
        if self.freeze_layers < 0:
            raise ValueError(f"freeze_layers={self.freeze_layers} must be a number of layers, of at least 0.")
        if self.freeze_layers and "video" in self.freeze:
            raise ValueError(
                f"freeze='video' freezes all layers, and freeze_layers={self.freeze_layers} the first ones. Use one "
                "of the two."
            )
        if self.feature_cache is not None and "video" not in self.freeze:
            raise ValueError(
                f"feature_cache={self.feature_cache!r} keeps what the video tower makes of clips, which changes while "
                "the tower learns. Add freeze='video', or leave the cache out."
            )
        if self.vtm_weight == 0 and self.eval_protocol != "vtc":
            raise ValueError(
                f"eval_protocol={self.eval_protocol!r} scores by matching, which vtm_weight=0 does not train. Use "
                "eval_protocol='vtc', or evaluate a model that was trained with matching."
            )
        if self.rerank_k < 1 or self.vtm_batch_size < 1:
            raise ValueError(f"rerank_k={self.rerank_k} and vtm_batch_size={self.vtm_batch_size} must be at least 1.")
        if not 0 <= self.max_dropped_share <= 1:
            raise ValueError(f"max_dropped_share={self.max_dropped_share} must be between 0 and 1.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True removes the columns 'video', 'text', 'question' and 'answer' before "
                "AlproCollator reads them. Set it to False."
            )
        # whether the trainer, which knows the model, is to choose; the library's choice would be `loss`
        self.chooses_best_metric = self.metric_for_best_model is None
        super().__post_init__()
        self._check_checkpointing()

    def _check_checkpointing(self) -> None:
        """Check gradient checkpointing, whose fields have two names that the library has made equal by now."""
        checkpointing: Any = self.gradient_checkpointing_kwargs or {}
        if self.checkpoint_layers is not None:
            if not self.gradient_checkpointing:
                raise ValueError(
                    f"checkpoint_layers={self.checkpoint_layers} says which layers gradient checkpointing computes "
                    "twice, and it is off. Set gradient_checkpointing=True, too."
                )
            if self.checkpoint_layers <= self.freeze_layers or "video" in self.freeze:
                raise ValueError(
                    f"checkpoint_layers={self.checkpoint_layers} names layers to compute twice, all of which are "
                    f"frozen or none (freeze={self.freeze}, freeze_layers={self.freeze_layers}). Frozen layers store "
                    "nothing; leave checkpoint_layers out or name more layers."
                )
            if "every_n_layers" in checkpointing:
                raise ValueError(
                    f"checkpoint_layers={self.checkpoint_layers} and every_n_layers="
                    f"{checkpointing['every_n_layers']!r} both choose layers. Use one of the two."
                )
        if (self.freeze or self.freeze_layers) and self.gradient_checkpointing and checkpointing.get("use_reentrant"):
            raise ValueError(
                "Reentrant gradient checkpointing needs inputs with gradients, and behind frozen layers there are "
                "none: the first trained layers would not learn. Leave use_reentrant out."
            )

    def negative_sampling(self, step: int, max_steps: int) -> NegativeSampling:
        """How VTM draws its negatives in a step (counted from 0) of a training of `max_steps`."""
        until = _steps(self.vtm_uniform_steps, max_steps)
        left = max(0.0, 1 - step / until) if until else 0.0
        return NegativeSampling(self.vtm_negatives, self.vtm_pool, self.vtm_temperature, self.vtm_uniform_share * left)

    def heads_alone(self, step: int, max_steps: int) -> bool:
        """Whether only heads and projections learn in a step (counted from 0) of a training of `max_steps`."""
        return step < _steps(self.head_warmup_steps, max_steps)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by its name in the outputs of the models; `loss` and `loss_answer` are of answers."""
        return {
            "loss": 1.0,
            "loss_answer": 1.0,
            "loss_vtc": self.vtc_weight,
            "loss_vtm": self.vtm_weight,
            "loss_mlm": self.mlm_weight,
            "loss_pem": self.pem_weight,
        }


def _steps(value: float, max_steps: int) -> float:
    """A number of steps, given as such or as a share of all."""
    return value * max_steps if value < 1 else value


__all__ = ["MIN_ROWS_FOR_SHARE", "WEIGHT_ARGUMENTS", "AlproTrainingArguments"]
