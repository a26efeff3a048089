"""Names that the modules of this package share with the command line. Nothing is imported, so that help is quick."""

from typing import Literal

CARD, PICTURE = "README.md", "model.png"  # of an exported checkpoint

# tasks of the checkpoints that `convert` reads
CONVERTED_TASKS = ("pretrain", "prompter", "retrieval", "qa")
CONVERSION = "conversion.json"  # in a converted folder: where its weights come from
PROMPTER_FOLDER = "prompter"  # subfolder of a converted pre-training checkpoint that holds its teacher

# names by which a bundled model can be published -> its task
BUNDLED_TO_PUBLISH: dict[str, Literal["retrieval", "qa"]] = {"bundled-retrieval": "retrieval", "bundled-qa": "qa"}
# names by which a bundled model can be exported to ONNX -> its task
BUNDLED_TO_ONNX: dict[str, Literal["retrieval", "qa"]] = {"retrieval": "retrieval", "qa": "qa"}
