"""Tell from the names of its tensors what a checkpoint is: whose layout it has, and the task it was trained for."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

# task -> the tensor that no checkpoint of another task has, in the order in which they are asked: a pre-training
# checkpoint also holds the tensors of retrieval, and those of its prompter under another prefix
_MARKS = {
    "pretrain": "mpm_head.2.weight",
    "prompter": "video_prompt_feat",
    "qa": "classifier.2.weight",
    "retrieval": "itm_head.weight",
}
_LAYOUT_NAMES = {"original": "the original code", "lavis": "LAVIS"}


class CheckpointKind(NamedTuple):
    """Layout and task of a checkpoint.

    Attributes:
        layout: `original` (the released code), `lavis` (the copy in the LAVIS library) or `blip` (a BLIP model).
        task: `pretrain`, `prompter`, `retrieval` or `qa`; None if the tensors show none of them.
    """

    layout: Literal["original", "lavis", "blip"]
    task: str | None

    @property
    def has_matching_head(self) -> bool:
        """Whether the checkpoint holds a trained matching head that the converted model keeps.

        Pre-training and fine-tuning for retrieval train one. The prompter, question answering and the vectors of BLIP
        have none, and where such a file holds tensors of that name they were never trained.
        """
        return self.layout != "blip" and self.task in ("pretrain", "retrieval")

    def __str__(self) -> str:
        if self.layout == "blip":
            return "a BLIP model"
        return f"a {self.task or 'bare'} checkpoint in the layout of {_LAYOUT_NAMES[self.layout]}"


def recognise(names: Iterable[str]) -> CheckpointKind | None:
    """Tell layout and task from the names of the tensors.

    Args:
        names: Names of the tensors of a checkpoint.

    Returns:
        The kind of the checkpoint; None if it is neither an ALPRO nor a BLIP checkpoint.
    """
    names = set(names)
    text = {name for name in names if name.startswith("text_encoder.")}
    # BLIP's text layers look at the image by cross-attention; ALPRO's layers have none. The names of its vision tower
    # are those of transformers (`vision_model`) or of the code of its authors (`visual_encoder.blocks`).
    if any(".crossattention." in name for name in text) or (
        text and "vision_model.embeddings.class_embedding" in names
    ):
        return CheckpointKind("blip", None)
    if not text or not any(name.startswith("visual_encoder.model.") for name in names):
        return None
    task = next((task for task, mark in _MARKS.items() if mark in names), None)
    # both codes keep question answering without the language model around BERT; only LAVIS drops the contrastive part
    lavis = not any(name.startswith("text_encoder.bert.") for name in text) and (task != "qa" or "temp" not in names)
    return CheckpointKind("lavis" if lavis else "original", task)


def mark_of(task: str) -> str:
    """The name of the tensor that tells a task."""
    return _MARKS[task]


__all__ = ["CheckpointKind", "mark_of", "recognise"]
