"""Training arguments of ALPRO: the library's, with the paper's defaults (arXiv 2112.09583, sections 3.2 to 4.3)."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from transformers import TrainingArguments

from ..evaluation.protocols import RetrievalProtocol

MIN_ROWS_FOR_SHARE = 100  # with fewer rows, a few broken clips make a large share
# name of a loss in the outputs of the models -> the argument that is its weight
WEIGHT_ARGUMENTS = {
    "loss_vtc": "vtc_weight",
    "loss_vtm": "vtm_weight",
    "loss_mlm": "mlm_weight",
    "loss_pem": "pem_weight",
}
_PROTOCOLS = get_args(RetrievalProtocol)


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
    contrastive_accumulation: bool = field(
        default=False,
        metadata={
            "help": "Contrast all micro-batches of gradient_accumulation_steps with each other in VTC (GradCache). "
            "Allows large contrastive batches in little memory, but encodes every clip and text twice."
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

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each loss by its name in the outputs of the models; `loss` is that of question answering."""
        return {
            "loss": 1.0,
            "loss_vtc": self.vtc_weight,
            "loss_vtm": self.vtm_weight,
            "loss_mlm": self.mlm_weight,
            "loss_pem": self.pem_weight,
        }


__all__ = ["MIN_ROWS_FOR_SHARE", "WEIGHT_ARGUMENTS", "AlproTrainingArguments"]
