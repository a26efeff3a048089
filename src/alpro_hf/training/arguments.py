"""TODO docstring."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from ..evaluation.protocols import RetrievalProtocol

PROTOCOLS = ("vtc", "rerank", "reference")


_ENOUGH_ROWS = 100  # a share of fewer says nothing


@dataclass
class AlproTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of the paper's fine-tuning, and what ALPRO needs besides.

    The defaults that differ from the library's are those that all fine-tuning runs of the paper share; learning rate,
    batch size and epochs differ from task to task there (2.5e-5 and a global batch of 64 for 5 epochs on MSR-VTT
    retrieval, 5e-5 and 192 for 10 on MSRVTT-QA).
    """

    # Losses
    vtc_weight: float = field(
        default=1.0, metadata={"help": "Weight of the contrastive loss VTC in pre-training and retrieval."}
    )
    vtm_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the matching loss VTM in the training of retrieval. 0 leaves matching out altogether: "
            "the two towers are trained and saved as an AlproModel, without the cost of the fusion layers."
        },
    )
    mlm_weight: float = field(default=1.0, metadata={"help": "Weight of masked language modeling in pre-training."})
    pem_weight: float = field(default=1.0, metadata={"help": "Weight of prompting entity modeling in pre-training."})
    vtm_negatives: Literal["local", "global"] = field(
        default="local",
        metadata={
            "help": "Where VTM's hard negatives come from: the batch of the process ('local', as in the original "
            "code), or those of all processes ('global'), which costs the exchange of their token states.",
            "choices": ["local", "global"],
        },
    )
    contrastive_accumulation: bool = field(
        default=False,
        metadata={
            "help": "Contrast all micro-batches of gradient_accumulation_steps with each other in VTC (GradCache), "
            "for large contrastive batches in little memory. Encodes everything once more."
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
    max_dropped_share: float = field(
        default=0.5,
        metadata={
            "help": "Stop the training when more than this share of the rows read so far was dropped because their "
            f"clips cannot be decoded, looked at with each log from {_ENOUGH_ROWS} rows on; 1: never."
        },
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Must stay off (the library's default is on): the collator reads columns no model knows."},
    )

    def __post_init__(self) -> None:
        if self.eval_protocol not in PROTOCOLS:
            raise ValueError(f"eval_protocol={self.eval_protocol!r} is unknown. Use one of {', '.join(PROTOCOLS)}.")
        for name in ("vtc_weight", "vtm_weight", "mlm_weight", "pem_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 switches the loss off.")
        if self.vtm_negatives not in ("local", "global"):
            raise ValueError(f"vtm_negatives={self.vtm_negatives!r} is unknown. Use 'local' or 'global'.")
        if self.vtm_weight == 0 and self.eval_protocol != "vtc":
            raise ValueError(
                f"eval_protocol={self.eval_protocol!r} scores by matching, which vtm_weight=0 leaves out. Use "
                "eval_protocol='vtc', or evaluate a model trained with matching."
            )
        if self.rerank_k < 1 or self.vtm_batch_size < 1:
            raise ValueError(f"rerank_k={self.rerank_k} and vtm_batch_size={self.vtm_batch_size} must be at least 1.")
        if not 0 <= self.max_dropped_share <= 1:
            raise ValueError(f"max_dropped_share={self.max_dropped_share} must be between 0 and 1.")
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would drop the columns 'video', 'text', 'question' and 'answer' before "
                "AlproCollator reads them. Leave it off."
            )
        super().__post_init__()
