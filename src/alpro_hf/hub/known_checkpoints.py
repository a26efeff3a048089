"""Checkpoints that their owners publish, by name. Nothing is imported that takes long, so that help can list them.

The addresses are those of the README of the original code and of the configuration files of LAVIS. Whether they still
answer could not be tried, and the sizes are not known before a download begins.
"""

from dataclasses import dataclass

PUBLISHER = "https://storage.googleapis.com/sfr-vision-language-research"


@dataclass(frozen=True)
class KnownCheckpoint:
    """A checkpoint, or an archive of several, that can be named instead of a file.

    Attributes:
        path: Path below the address of the publisher.
        summary: What it is.
        answers: Path of the answer list of question answering; None for other tasks.
    """

    path: str
    summary: str
    answers: str | None = None

    def url(self, mirror: str | None = None) -> str:
        """The address of the checkpoint, at the publisher or below the address of a mirror."""
        return _below(mirror, self.path)

    def answers_url(self, mirror: str | None = None) -> str | None:
        """The address of the answer list; None if the checkpoint answers no questions."""
        return None if self.answers is None else _below(mirror, self.answers)


def _below(mirror: str | None, path: str) -> str:
    return f"{(mirror or PUBLISHER).rstrip('/')}/{path}"


_MODELS, _DATA = "LAVIS/models/ALPRO", "LAVIS/datasets"
KNOWN = {
    "pretrain": KnownCheckpoint(f"{_MODELS}/alpro_pretrain.pt", "pre-trained on WebVid-2M and CC3M"),
    "msrvtt-retrieval": KnownCheckpoint(f"{_MODELS}/alpro_msrvtt_retrieval.pt", "retrieval, fine-tuned on MSR-VTT"),
    "didemo-retrieval": KnownCheckpoint(f"{_MODELS}/alpro_didemo_retrieval.pt", "retrieval, fine-tuned on DiDeMo"),
    "msrvtt-qa": KnownCheckpoint(
        f"{_MODELS}/alpro_msrvtt_qa.pth", "question answering, 1,500 answers", f"{_DATA}/msrvtt/train_ans2label.json"
    ),
    "msvd-qa": KnownCheckpoint(
        f"{_MODELS}/alpro_msvd_qa.pth", "question answering, 2,423 answers", f"{_DATA}/msvd/train_ans2label.json"
    ),
    "original-output": KnownCheckpoint(
        "ALPRO/output.zip", "archive of the original code: all checkpoints; choose one with --member"
    ),
    "original-ext": KnownCheckpoint(
        "ALPRO/ext.zip", "archive of the original code: external resources; choose a file with --member"
    ),
}


def known_table() -> str:
    """The known names, what they are, and where they come from, as text for a terminal."""
    width = max(map(len, KNOWN))
    lines = [f"  {name:{width}}  {known.summary}\n  {'':{width}}  {known.url()}" for name, known in KNOWN.items()]
    return "\n".join(
        [
            "names of published checkpoints:",
            *lines,
            "",
            "Sizes: not known before the download begins; it prints size and sha256. No sha256 is published.",
            "Licence: the code of ALPRO and of LAVIS is BSD-3-Clause. We know of no statement about the weights.",
            "Whether these addresses still answer could not be tried. --mirror names a copy of them elsewhere.",
        ]
    )


__all__ = ["KNOWN", "PUBLISHER", "KnownCheckpoint", "known_table"]
