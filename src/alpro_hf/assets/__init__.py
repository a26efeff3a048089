"""Data in the package: pictures of the sprite world, two small models trained on it, and the vocabulary of BERT."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

_BUNDLED = {"retrieval": "sprites-retrieval", "qa": "sprites-qa"}  # task -> folder


def bundled_model(task: Literal["retrieval", "qa"]) -> str:
    """The folder of the bundled model for a task, for `from_pretrained`, `pipeline` and `SentenceTransformer`.

    Args:
        task: `retrieval` or `qa`.

    Raises:
        ValueError: There is no bundled model for this task.
        FileNotFoundError: This installation of the package lacks the model.
    """
    if task not in _BUNDLED:
        raise ValueError(
            f"There is no bundled model {task!r}. There are two: {' and '.join(map(repr, _BUNDLED))}, for text-video "
            "retrieval and for question answering."
        )
    folder = Path(str(files(__package__) / _BUNDLED[task]))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The bundled model for {task} is missing from this installation ({folder}). Install the package again, "
            "or name another model."
        )
    return str(folder)  # not a Path, which SentenceTransformer does not take


def bundled_vocabulary() -> Path:
    """The `vocab.txt` of bert-base-uncased, 30,522 entries, for text encoders that start from that model."""
    return Path(str(files(__package__) / "bert-base-uncased" / "vocab.txt"))
