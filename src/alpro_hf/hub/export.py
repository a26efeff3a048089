"""Export of a checkpoint to a folder that is ready for the Hub and loads without this package.

An exported checkpoint contains the code of the model, the processor and the pipelines as flat files. So
`AutoModel.from_pretrained(..., trust_remote_code=True)` works where only transformers, torch, torchvision and av are
installed.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..adapters import merged
from ..files import belongs_to
from ..model import modeling_alpro, pretraining_alpro
from ..model.configuration_alpro import AlproConfig
from ..model.processing_alpro import AlproProcessor
from .card import FACTS, model_card, result_files, write_card_results
from .errors import ExportError, read_json_object
from .names import CARD, PICTURE
from .picture import draw_model

AUTO_MAP = {
    "AutoConfig": "configuration_alpro.AlproConfig",
    "AutoModel": "modeling_alpro.AlproModel",
    "AutoModelForPreTraining": "pretraining_alpro.AlproForPreTraining",
    "AutoModelForVisualQuestionAnswering": "modeling_alpro.AlproForVideoQuestionAnswering",
    # transformers has no Auto class for matching; this one also decides whether two inputs belong together
    "AutoModelForNextSentencePrediction": "modeling_alpro.AlproForVideoTextRetrieval",
    "AutoProcessor": "processing_alpro.AlproProcessor",
    "AutoVideoProcessor": "video_processing_alpro.AlproVideoProcessor",
}
_SEARCH, _ASK = "text-video-retrieval", "video-question-answering"
_PIPELINES = {
    _SEARCH: "pipeline_alpro.TextVideoRetrievalPipeline",
    _ASK: "pipeline_alpro.VideoQuestionAnsweringPipeline",
}
# class of a model -> the class, the task of its pipeline, and the Auto class by which this pipeline loads it
HEADS = {
    "AlproModel": (modeling_alpro.AlproModel, _SEARCH, "AutoModel"),
    "AlproPrompterModel": (pretraining_alpro.AlproPrompterModel, _SEARCH, "AutoModel"),
    "AlproForVideoTextRetrieval": (
        modeling_alpro.AlproForVideoTextRetrieval,
        _SEARCH,
        "AutoModelForNextSentencePrediction",
    ),
    "AlproForPreTraining": (pretraining_alpro.AlproForPreTraining, _SEARCH, "AutoModelForNextSentencePrediction"),
    "AlproForVideoQuestionAnswering": (
        modeling_alpro.AlproForVideoQuestionAnswering,
        _ASK,
        "AutoModelForVisualQuestionAnswering",
    ),
}
CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor_config.json", "tokenizer_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# the files of a checkpoint folder that belong to the model, besides weights; training leaves others there: optimizer,
# random states, logs
_FILES_OF_MODEL = (
    *(CONFIG, PROCESSOR, TOKENIZER, "tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"),
    *("video_preprocessor_config.json", "preprocessor_config.json"),
    FACTS,  # what its users are told about the weights
)


def code_files() -> list[Path]:
    """The source files that are exported with a checkpoint: all modules of `alpro_hf.model`."""
    # in the flat folder of a checkpoint there is no package to initialize
    return sorted(path for path in Path(str(files("alpro_hf.model"))).glob("*.py") if path.name != "__init__.py")


def _marked_code() -> dict[str, bytes]:
    """The content of each exported code file by its name. The last line of each has the digest of all of them.

    transformers keeps one configuration class for equal files of configurations in local folders, and one model class
    for each configuration class. So files of versions that differ in their model code alone must differ everywhere.
    """
    sources = {path.name: path.read_bytes() for path in code_files()}
    digest = hashlib.sha256()
    for name, content in sources.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    # at the end, so that the numbers of lines stay those of the package
    mark = f"\n# sha256 of all code files of this export: {digest.hexdigest()}\n".encode()
    return {name: content + mark for name, content in sources.items()}


def add_remote_code(folder: str | Path) -> None:
    """Make a saved checkpoint load without this package: add the code files, and name their classes in its configs.

    Files are only added, so a checkpoint of a `Trainer` stays one. A second call changes nothing.

    Args:
        folder: Folder that `save_pretrained` of a model and its processor wrote.

    Raises:
        ExportError: The folder holds no ALPRO model or no processor.
    """
    folder = Path(folder)
    config = checkpoint_config(folder)
    for name, content in _marked_code().items():
        (folder / name).write_bytes(content)
    # processors are named in their own configuration below
    config["auto_map"] = {name: path for name, path in AUTO_MAP.items() if "Processor" not in name}
    config.pop("_name_or_path", None)  # a path on this machine, which would be published
    _, task, auto_class = HEADS[config["architectures"][0]]
    config["custom_pipelines"] = {task: {"impl": _PIPELINES[task], "pt": [auto_class], "type": "multimodal"}}
    _write_json(folder / CONFIG, config)

    if not (folder / PROCESSOR).is_file():
        raise ExportError(
            f"{folder} holds no {PROCESSOR}. Save the AlproProcessor of the model into it with save_pretrained, or "
            "name a folder that has one as the processor."
        )
    processor = _read_object(folder / PROCESSOR)
    processor["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    processor["video_processor"]["auto_map"] = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
    _write_json(folder / PROCESSOR, processor)
    tokenizer = _read_object(folder / TOKENIZER)
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)  # facts about how it was loaded on this machine
    _write_json(folder / TOKENIZER, tokenizer)


def export(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    *,
    processor: AlproProcessor | str | Path | None = None,
    name: str | None = None,
    results: Sequence[str | Path] = (),
    picture: str | Path | None = None,
    licence: str | None = None,
) -> Path:
    """Write a model to a folder that is ready for the Hub.

    The folder receives the weights as safetensors, configs, tokenizer and processor, the code files, and a model card
    with its picture. The same input gives the same bytes.

    Args:
        model: A model, or its folder. From a checkpoint of a training, only the files of the model are taken.
            Adapters of a model are merged into a copy of its weights.
        output: New or empty folder.
        processor: Processor of the model, or a folder with one. None: it is in the folder of the model.
        name: Title of the card and id in its example, such as `acme/alpro-msrvtt`. None: the name of `output`.
        results: Files with metrics for the card, see `read_card_results`. None given: a `results.json` next to the
            weights, if there is one.
        picture: PNG for the card. None: a drawing of the model.
        licence: Identifier of the licence of the weights, such as `apache-2.0`. None: as `training.json` next to the
            weights says; without one, the card states no licence.

    Returns:
        `output`.

    Raises:
        ExportError: `model` is not an ALPRO checkpoint, files of it are missing, a link leads out of its folder, or
            `output` is not empty.
        ModelCardError: A result file or `training.json` cannot be used.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder. Name a new one to export to.")
    if isinstance(model, torch.nn.Module):
        model = merged(model)
    source = None if isinstance(model, PreTrainedModel) else Path(model)
    if source is not None:
        _check_links(source)
        config = checkpoint_config(source)
        weights = _weights(source)
    if isinstance(processor, str | Path):
        _check_links(Path(processor))
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(output)
        config = checkpoint_config(output)
    elif weights:
        for file in weights:
            shutil.copyfile(file, output / file.name)
    else:  # old pickled weights; transformers reads them with weights_only=True, so that no code in them runs
        HEADS[config["architectures"][0]][0].from_pretrained(
            source, use_safetensors=False, trust_remote_code=False
        ).save_pretrained(output)
    if source is not None:
        for file_name in _FILES_OF_MODEL:
            if (source / file_name).is_file():
                shutil.copyfile(source / file_name, output / file_name)
    if processor is not None:
        if not isinstance(processor, AlproProcessor):
            processor = AlproProcessor.from_pretrained(processor, trust_remote_code=False)
        processor.save_pretrained(output)
    add_remote_code(output)
    if picture is None:
        draw_model(config).save(output / PICTURE)
    else:
        shutil.copyfile(picture, output / PICTURE)
    if measured := result_files(source or output, results):
        write_card_results(output, measured)
    card = model_card(output, source=source, name=name or output.name, results=results, licence=licence)
    card.save(output / CARD)
    return output


def _check_links(folder: Path) -> None:
    """Check that no file of a model leads out of its folder: what it names there would be exported, and published.

    Raises:
        ExportError: One does.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and not belongs_to(path, folder):
            raise ExportError(
                f"{path} is a link to {path.resolve()}, outside of the folder. Put a copy in its place if that may be "
                "exported."
            )


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, ExportError)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    # sorted, so that a second export gives the same bytes, and an upload finds the file unchanged
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def checkpoint_config(folder: Path) -> dict[str, Any]:
    """The content of the `config.json` of an ALPRO checkpoint.

    Raises:
        ExportError: The folder holds no model, or a model of another type or class.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder. Name the folder of a model.")
    config = _read_object(folder / CONFIG)
    kind, heads = config.get("model_type"), config.get("architectures")
    if kind != AlproConfig.model_type:
        raise ExportError(f"{folder / CONFIG} describes a model of type {kind!r}, not an ALPRO model.")
    if not heads or heads[0] not in HEADS:
        raise ExportError(f"{folder / CONFIG}: architectures must name one of {', '.join(HEADS)}; it is {heads!r}.")
    return config


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, with their index; [] if its weights are pickled."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        if not any(folder.glob("pytorch_model*.bin")):
            raise ExportError(
                f"{folder} holds no weights ({WEIGHTS}). If it is a checkpoint of the original code, convert it with "
                "alpro convert."
            )
        return []
    # the index maps each tensor to its file
    listed = _read_object(folder / WEIGHTS_INDEX).get("weight_map")
    names: list[Any] = list(listed.values()) if isinstance(listed, dict) else [None]
    if wrong := [name for name in names if not (isinstance(name, str) and Path(name).name == name)]:
        raise ExportError(f"{folder / WEIGHTS_INDEX}: weight_map must name files of this folder; found {wrong[0]!r}.")
    files = [folder / name for name in sorted(set(names))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ExportError(f"{folder / WEIGHTS_INDEX} names files that are missing: {', '.join(missing)}.")
    return [*files, folder / WEIGHTS_INDEX]


__all__ = ["AUTO_MAP", "HEADS", "ExportError", "add_remote_code", "checkpoint_config", "code_files", "export"]
