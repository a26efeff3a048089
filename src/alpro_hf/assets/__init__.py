"""What the package carries: the sprites, and two small models trained on the sprite world."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

BUNDLED_RETRIEVAL = "sprites-retrieval"
BUNDLED_QA = "sprites-qa"


def bundled_model(task: Literal["retrieval", "qa"]) -> Path:
    """Folder of the bundled model for a task, as `from_pretrained` reads it.

    Raises:
        FileNotFoundError: This copy of the package was installed without the model.
    """
    folder = Path(str(files(__package__) / {"retrieval": BUNDLED_RETRIEVAL, "qa": BUNDLED_QA}[task]))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The bundled model for {task} is missing from this installation ({folder}). Install the package again, "
            "or name a model of your own."
        )
    return folder
