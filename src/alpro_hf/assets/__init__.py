"""Data in the package: pictures of the sprite world, two small models trained on it, and the vocabulary of BERT."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

BUNDLED_RETRIEVAL = "sprites-retrieval"
BUNDLED_QA = "sprites-qa"


def bundled_model(task: Literal["retrieval", "qa"]) -> Path:
    """The folder of the bundled model for a task, for `from_pretrained`.

    Raises:
        FileNotFoundError: This installation of the package lacks the model.
    """
    folder = Path(str(files(__package__) / {"retrieval": BUNDLED_RETRIEVAL, "qa": BUNDLED_QA}[task]))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The bundled model for {task} is missing from this installation ({folder}). Install the package again, "
            "or name another model."
        )
    return folder


def bundled_vocabulary() -> Path:
    """The `vocab.txt` of bert-base-uncased, 30,522 entries, for text encoders that start from that model."""
    return Path(str(files(__package__) / "bert-base-uncased" / "vocab.txt"))
