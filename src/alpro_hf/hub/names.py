"""Names that the modules of this package share with the command line. Nothing is imported, so that help is quick."""

CARD, PICTURE = "README.md", "model.png"  # of an exported checkpoint

# tasks of the checkpoints that `convert` reads
CONVERTED_TASKS = ("pretrain", "prompter", "retrieval", "qa")
CONVERSION = "conversion.json"  # in a converted folder: where its weights come from
PROMPTER_FOLDER = "prompter"  # subfolder of a converted pre-training checkpoint that holds its teacher

# short names of the bundled models for an export to ONNX -> their names elsewhere
BUNDLED_TO_ONNX = {"retrieval": "bundled-retrieval", "qa": "bundled-qa"}
