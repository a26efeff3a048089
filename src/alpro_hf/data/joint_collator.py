"""Collate batches of pairs and batches of questions for a model that learns both."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .collator import AlproCollator, Collated
from .rows import Row

if TYPE_CHECKING:
    from ..model.processing_alpro import AlproProcessor


class AlproJointCollator(AlproCollator):
    """Collate rows of `{"video", "text"}` or of `{"video", "question", "answer"}`, one of the two in a batch.

    `MixedRows` of the two sources gives such batches: each step draws one source. The model is
    `AlproForMatchingAndAnswering`.

    Args:
        processor: As in `AlproCollator`.
        label2id: Answer to label.
        options: Further arguments of `AlproCollator`, for both.

    Returns (from a call): As from `AlproCollator`, for the task of the rows.
    """

    def __init__(self, processor: "AlproProcessor", label2id: Mapping[str, int], **options: Any):
        super().__init__(processor, task="retrieval", **options)
        self.questions = AlproCollator(processor, task="qa", label2id=label2id, **options)
        self.label2id = self.questions.label2id
        self.questions._dropped, self.questions._read = self._dropped, self._read  # counted together

    def collate(self, rows: Sequence[Row]) -> Collated:
        asks = ["question" in row and row["question"] is not None for row in rows]
        if any(asks) and not all(asks):
            raise ValueError(
                f"A batch holds rows with a text or rows with a question, not both: row {asks.index(True)} of this "
                f"one has a question and row {asks.index(False)} none. Make them two sources of MixedRows."
            )
        if not any(asks):
            return super().collate(rows)
        self.questions.dropped_file = self.dropped_file
        return self.questions.collate(rows)


__all__ = ["AlproJointCollator"]
