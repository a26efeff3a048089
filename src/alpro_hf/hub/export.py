"""Publishing on the Hugging Face Hub: `export` writes a folder that loads without this package, `publish` uploads it.

An exported checkpoint carries the flat code files of the model, the processor and the pipelines, so that
`AutoModel.from_pretrained(..., trust_remote_code=True)` works where only transformers, torch, torchvision and av are
installed. An upload is one commit; files that the repository already has are not sent again, which is also how an
interrupted upload goes on.
"""

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..model import modeling_alpro, pretraining_alpro
from ..model.configuration_alpro import AlproConfig
from ..model.processing_alpro import AlproProcessor
from .card import CARD, PICTURE, model_card
from .picture import draw_model

AUTO_MAP = {
    "AutoConfig": "configuration_alpro.AlproConfig",
    "AutoModel": "modeling_alpro.AlproModel",
    "AutoModelForPreTraining": "pretraining_alpro.AlproForPreTraining",
    "AutoModelForVisualQuestionAnswering": "modeling_alpro.AlproForVideoQuestionAnswering",
    # the library has no class for matching; this one, too, decides whether two things belong together
    "AutoModelForNextSentencePrediction": "modeling_alpro.AlproForVideoTextRetrieval",
    "AutoProcessor": "processing_alpro.AlproProcessor",
    "AutoVideoProcessor": "video_processing_alpro.AlproVideoProcessor",
}
_SEARCH, _ASK = "text-video-retrieval", "video-question-answering"
_PIPELINES = {
    _SEARCH: "pipeline_alpro.TextVideoRetrievalPipeline",
    _ASK: "pipeline_alpro.VideoQuestionAnsweringPipeline",
}
# head -> its class, and the pipeline that it is for with the Auto class that this loads
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
# of a checkpoint folder, what is part of the model; optimizer, random states and logs of a training are not
_TRAVELLING = (
    *(CONFIG, PROCESSOR, TOKENIZER, "tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"),
    *("video_preprocessor_config.json", "preprocessor_config.json"),
)


class ExportError(ValueError):
    """A checkpoint cannot be exported; the message names the file and what to do."""


# -------------------------------------------------------------------------------------------------------------- export


def code_files() -> list[Path]:
    """The source files that travel with a checkpoint: all of `alpro_hf/model/`."""
    return sorted(path for path in Path(str(files("alpro_hf.model"))).glob("*.py") if path.name != "__init__.py")


def add_remote_code(folder: str | Path) -> None:
    """Make a saved checkpoint load without this package: add the code files and name the classes in its configs.

    Only adds to `folder`; a checkpoint that a `Trainer` wrote stays one. Written twice, the files stay the same.

    Args:
        folder: What `save_pretrained` of a model and its processor wrote.

    Raises:
        ExportError: It holds no ALPRO model or no processor.
    """
    folder = Path(folder)
    config = _read_config(folder)
    for path in code_files():
        shutil.copyfile(path, folder / path.name)
    config["auto_map"] = {name: path for name, path in AUTO_MAP.items() if "Processor" not in name}
    config.pop("_name_or_path", None)  # a path of this machine
    _, task, auto_class = HEADS[config["architectures"][0]]
    config["custom_pipelines"] = {task: {"impl": _PIPELINES[task], "pt": [auto_class], "type": "multimodal"}}
    _write_json(folder / CONFIG, config)

    if not (folder / PROCESSOR).is_file():
        raise ExportError(
            f"{folder} holds no {PROCESSOR}: save the AlproProcessor of the model into it with save_pretrained, or "
            "name a folder that has one as the processor."
        )
    processor = _read_json(folder / PROCESSOR)
    processor["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    processor["video_processor"]["auto_map"] = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
    _write_json(folder / PROCESSOR, processor)
    tokenizer = _read_json(folder / TOKENIZER)
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)  # how it was loaded here
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
    """Write a model as a folder that is ready for the Hub.

    It holds the weights as safetensors, the configs, tokenizer and processor, the code files, and a model card with
    its picture. The same input gives the same bytes.

    Args:
        model: A model, or a folder with one (also a checkpoint of a training; what is not part of the model stays).
        output: New or empty folder.
        processor: Processor of the model, or a folder with one; None: it is in the folder of the model.
        name: Title of the card and id in its example, such as `acme/alpro-msrvtt`; None: the name of `output`.
        results: JSON files with measured numbers, for the card; none given: a `results.json` beside the weights.
        picture: PNG for the card; None: a drawing of the model.
        licence: Identifier of the licence of the weights, such as `apache-2.0`; None: as the checkpoint's own
            `training.json` says, otherwise none is claimed.

    Returns:
        `output`.

    Raises:
        ExportError: `model` is no ALPRO checkpoint, files of it are missing, or `output` is not empty.
        ModelCardError: A result file or `training.json` cannot be used.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder; name a new one to export to.")
    source = None if isinstance(model, PreTrainedModel) else Path(model)
    if source is not None:
        config = _read_config(source)
        weights = _weights(source)
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(output)
        config = _read_config(output)
    elif weights:
        for file in weights:
            shutil.copyfile(file, output / file.name)
    else:  # an old pickle, which the library reads with weights_only=True: whoever publishes it says what it is
        HEADS[config["architectures"][0]][0].from_pretrained(source, use_safetensors=False).save_pretrained(output)
    if source is not None:
        for file_name in _TRAVELLING:
            if (source / file_name).is_file():
                shutil.copyfile(source / file_name, output / file_name)
    if processor is not None:
        if not isinstance(processor, AlproProcessor):
            processor = AlproProcessor.from_pretrained(processor)
        processor.save_pretrained(output)
    add_remote_code(output)
    if picture is None:
        draw_model(config).save(output / PICTURE)
    else:
        shutil.copyfile(picture, output / PICTURE)
    card = model_card(output, source=source, name=name or output.name, results=results, licence=licence)
    card.save(output / CARD)
    return output


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path.parent} holds no {path.name}.") from None
    except ValueError as error:
        raise ExportError(f"{path} is no JSON file: {error}.") from None
    if not isinstance(content, dict):
        raise ExportError(f"{path} must hold a JSON object; it holds a {type(content).__name__}.")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder. Name the folder of a model.")
    config = _read_json(folder / CONFIG)
    kind, heads = config.get("model_type"), config.get("architectures")
    if kind != AlproConfig.model_type:
        raise ExportError(f"{folder / CONFIG} describes a model of type {kind!r}, not an ALPRO model.")
    if not heads or heads[0] not in HEADS:
        raise ExportError(f"{folder / CONFIG}: architectures must name one of {', '.join(HEADS)}; it is {heads!r}.")
    return config


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, with their index; [] if its weights have another format."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        if not any(folder.glob("pytorch_model*.bin")):
            raise ExportError(
                f"{folder} holds no weights ({WEIGHTS}). A checkpoint of the original code becomes a model folder by "
                "alpro convert."
            )
        return []
    files = [folder / name for name in sorted(set(_read_json(folder / WEIGHTS_INDEX)["weight_map"].values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ExportError(f"{folder / WEIGHTS_INDEX} names files that are missing: {', '.join(missing)}.")
    return [*files, folder / WEIGHTS_INDEX]


# ------------------------------------------------------------------------------------------------------------- command


__all__ = ["AUTO_MAP", "ExportError", "add_remote_code", "code_files", "export"]
