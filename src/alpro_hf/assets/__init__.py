"""Data in the package: the pictures of the sprite world, and two small models trained on it."""

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
