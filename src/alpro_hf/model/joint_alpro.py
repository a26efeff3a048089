"""Matching and answering trained together, on the same towers and the same fusion layers.

Questions teach the order of events and who does what to whom; captions alone did not in the sprite world. Trained one
after the other, the second task forgets the first. Here each step is of one of the two.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.utils.generic import can_return_tuple

from .configuration_alpro import AlproConfig
from .modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproQuestionAnsweringOutput

_OF_RETRIEVAL = ("return_loss", "video_ids", "text_ids", "gather", "rank", "generator", "negatives")


@dataclass
class AlproJointAnswersOutput(AlproQuestionAnsweringOutput):
    """Output of `AlproForMatchingAndAnswering` for a batch of questions.

    Args:
        loss_answer: The same as `loss`, under the name that tells it from the losses of the other batches.
    """

    loss_answer: torch.Tensor | None = None


class AlproForMatchingAndAnswering(AlproForVideoTextRetrieval):
    """A retrieval model with the classifier of question answering beside its matching head.

    A batch is of pairs, or of questions: `labels` tell them apart. The weights load as `AlproForVideoTextRetrieval`
    and as `AlproForVideoQuestionAnswering`, which leave out the head of the other.

    Example:
        >>> from alpro_hf import AlproConfig
        >>> model = AlproForMatchingAndAnswering(AlproConfig(id2label={0: "cat", 1: "dog"}))
    """

    training_inputs = (*AlproForVideoTextRetrieval.training_inputs, "video_index", "answer_mask", "label_count")
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {
        "loss_vtc": (),
        "loss_vtm": (),
        "loss_answer": ("labels",),
    }

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        # parity: the classifier of `AlproForVideoQuestionAnswering`, under the same name
        self.classifier = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, config.num_labels or 0)
        )
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[override, unused-ignore]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        video_index: torch.Tensor | None = None,
        answer_mask: torch.Tensor | None = None,
        label_count: torch.Tensor | float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer questions if `labels` are given, see `AlproForVideoQuestionAnswering`.

        Otherwise score or learn from pairs, see `AlproForVideoTextRetrieval`. Arguments of the other are not used.
        """
        if labels is None:
            return super().forward(input_ids, attention_mask, pixel_values_videos, **kwargs, return_dict=True)
        others = {name: value for name, value in kwargs.items() if name not in _OF_RETRIEVAL}
        answers: Any = AlproForVideoQuestionAnswering.forward(
            self,  # type: ignore[arg-type, unused-ignore]
            input_ids,
            attention_mask,
            pixel_values_videos,
            labels,
            video_index,
            answer_mask,
            label_count,
            **(others | {"return_dict": True}),
        )
        return AlproJointAnswersOutput(**answers, loss_answer=answers.loss)


__all__ = ["AlproForMatchingAndAnswering", "AlproJointAnswersOutput"]
