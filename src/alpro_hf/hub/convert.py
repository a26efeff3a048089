"""Conversion of a checkpoint of the original ALPRO code (`.pt`) to a `save_pretrained` folder, as in `alpro convert`.

The sizes of the model are read off the tensors. The number of attention heads and the first fusion layer cannot be, so
they are arguments. Files are read with `weights_only=True`: a checkpoint is data, and no code in it runs.
"""

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

from ..data.label_lists import read_answers, read_entities
from ..model.configuration_alpro import AlproConfig, AlproTextConfig
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from ..model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from ..model.processing_alpro import AlproProcessor
from ..model.unimodal_alpro import CheckpointError, assemble_state, bert_names
from ..model.video_processing_alpro import AlproVideoProcessor
from .names import CONVERTED_TASKS, PROMPTER_FOLDER

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]
PreTrainingPair = tuple[AlproForPreTraining, AlproPrompterModel]
ConvertedModel = AlproForPreTraining | AlproPrompterModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering

MODEL_CLASSES = {
    "pretrain": AlproForPreTraining,
    "prompter": AlproPrompterModel,
    "retrieval": AlproForVideoTextRetrieval,
    "qa": AlproForVideoQuestionAnswering,
}

_PROMPTER = "prompter."  # the teacher inside a pre-training checkpoint
_VIDEO = "visual_encoder.model."
_TIED_HEAD = "text_encoder.cls.predictions."
# Tensors that the original code saves but does not use for the task: TimeSformer's classifier of 400 actions, buffers
# that count positions, the masked-language-modeling head (in pre-training only its copies of tied tensors) and the
# matching head.
_UNUSED = r"visual_encoder\.model\.head\.|text_encoder\.(?:bert\.)?embeddings\.position_ids$"
_UNUSED_OF_TASK = {
    "pretrain": _UNUSED + r"|text_encoder\.cls\.predictions\.decoder\.",
    "prompter": _UNUSED + r"|text_encoder\.cls\.|itm_head\.",
    "retrieval": _UNUSED + r"|text_encoder\.cls\.",
    "qa": _UNUSED + r"|text_encoder\.cls\.|itm_head\.",
}
# parts of our names -> parts of the original names; the text encoder has the names of BERT, see `bert_names`
_VIDEO_NAMES = {
    "embeddings.patch_embed.": "patch_embed.proj.",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.time_embeddings": "time_embed",
    "layers.": "blocks.",
    ".spatial_norm.": ".norm1.",
    ".spatial_attn.": ".attn.",
    ".temporal_norm.": ".temporal_norm1.",
    ".mlp_norm.": ".norm2.",
}
_REST_NAMES = {
    "alpro.temperature": "temp",
    "alpro.text_projection.": "text_proj.",
    "alpro.video_projection.": "vision_proj.",
    "vtm_head.": "itm_head.",
    "pem_head.": "mpm_head.",
    "mlm_head.dense.": _TIED_HEAD + "transform.dense.",
    "mlm_head.norm.": _TIED_HEAD + "transform.LayerNorm.",
    "mlm_head.decoder.bias": _TIED_HEAD + "bias",
    "_prompt_embeds": "_prompt_feat",
}


def convert_original_checkpoint(
    state_dict: State,
    task: str,
    *,
    num_attention_heads: int = 12,
    fusion_layer: int = 6,
    answers: Mapping[str, int] | None = None,
    entities: Sequence[str] | None = None,
) -> ConvertedModel | PreTrainingPair:
    """Build a model from a state dict of the original code.

    Args:
        state_dict: Original name to tensor. The prefix of the text encoder may be `text_encoder.bert.` (pre-training,
            retrieval) or `text_encoder.` (question answering).
        task: `"pretrain"`, `"prompter"`, `"retrieval"` or `"qa"`.
        num_attention_heads: Heads in every layer of both towers (12 in the released checkpoints).
        fusion_layer: Index of the first fusion layer of the text encoder (6 in the released checkpoints).
        answers: For `qa`, answer to index, as in the file `ans2label.json` of the original data. None: the answers are
            called LABEL_0, LABEL_1, ..., with a warning.
        entities: For `pretrain` and `prompter`, the names of the entities, in the order of the entity list that the
            prompts were made from. None: they are called ENTITY_0, ENTITY_1, ..., with a warning.

    Returns:
        The model in float32 and evaluation mode. For `pretrain` a pair: the student and its prompter.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped (all are listed), or tied tensors differ.
        ValueError: The task is unknown, or the answers or entities do not fit the checkpoint.
        StrictDataclassError: The number of heads or the fusion layer does not fit the sizes read off the tensors, or
            an entity is named twice.
    """
    if task not in MODEL_CLASSES:
        raise ValueError(f"task={task!r} is not one of the supported tasks: {', '.join(CONVERTED_TASKS)}.")
    if answers is not None and task != "qa":
        raise ValueError(f"Answers belong to task='qa'; received {len(answers)} answers with task={task!r}.")
    if entities is not None and task not in ("pretrain", "prompter"):
        raise ValueError(
            f"Entities belong to task='pretrain' and 'prompter'; received {len(entities)} entities with task={task!r}."
        )
    labels: dict[str, Any] = {}
    if task == "qa":
        labels["id2label"] = _answer_labels(_shape(state_dict, "classifier.2.weight", 2)[0], answers)
        labels["label2id"] = {label: index for index, label in labels["id2label"].items()}
    elif task == "pretrain":
        labels["entities"] = _entity_names(_shape(state_dict, "mpm_head.2.weight", 2)[0], entities)
    elif task == "prompter":
        labels["entities"] = _entity_names(_shape(state_dict, "video_prompt_feat", 2)[0], entities)
    sizes = {"num_attention_heads": num_attention_heads, "fusion_layer": fusion_layer}
    if task != "pretrain":
        return _build(state_dict, task, labels, sizes)
    # a pre-training checkpoint holds two whole models: the student, and its teacher under another prefix
    parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for name, tensor in state_dict.items():
        parts[name.startswith(_PROMPTER)][name] = tensor
    return _build(parts[0], task, labels, sizes), _build(parts[1], "prompter", labels, sizes, _PROMPTER)


def _build(source: State, task: str, labels: dict[str, Any], sizes: dict[str, int], prefix: str = "") -> Any:
    """Build the model of a task from tensors whose names all start with `prefix`."""
    # for pre-training and retrieval, the original code wraps BERT in a masked-language model
    inside_mlm = any(name.startswith(f"{prefix}text_encoder.bert.") for name in source)
    text = f"{prefix}text_encoder.bert." if inside_mlm else f"{prefix}text_encoder."
    config = _read_config(source, prefix, text, sizes, labels)

    def original_names(target: str) -> tuple[str, ...]:
        if target.startswith("alpro.text_model."):
            return tuple(text + name for name in bert_names(target.removeprefix("alpro.text_model.")))
        if target.startswith("alpro.video_model."):
            return (prefix + _VIDEO + _replace(target.removeprefix("alpro.video_model."), _VIDEO_NAMES),)
        return (prefix + _replace(target, _REST_NAMES),)

    tensors = dict(source)
    if prefix + "temp" in tensors:
        # a scalar in the original code, of shape (1,) here
        tensors[prefix + "temp"] = tensors[prefix + "temp"].reshape(-1)
    with torch.device("meta"):  # all tensors are assigned below, so none is initialized here
        model = MODEL_CLASSES[task](config)
    tied: Mapping[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    targets = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    state = assemble_state(
        tensors,
        targets,
        original_names,
        unused=f"{re.escape(prefix)}(?:{_UNUSED_OF_TASK[task]})",
        what=f"The checkpoint for task={task!r}" if not prefix else f"The prompter ({prefix}*) of the checkpoint",
    )
    # the copies of tied tensors are not loaded, so a difference would go unnoticed
    if task == "pretrain":
        _check_tied(source, _TIED_HEAD + "decoder.weight", text + "embeddings.word_embeddings.weight")
        _check_tied(source, _TIED_HEAD + "decoder.bias", _TIED_HEAD + "bias")
    if task == "prompter":
        _drop_unset_prompts(state)
    # assign: the parameters are on the meta device and cannot be copied into. Tied ones must be named, too, and become
    # one tensor again below
    model.load_state_dict({**state, **{name: state[source] for name, source in tied.items()}}, assign=True)
    model.tie_weights()
    return model.eval()


def _check_tied(state_dict: State, copy: str, original: str) -> None:
    """Refuse a checkpoint in which the copy of a tied tensor differs from the original; the copy may be absent."""
    if copy in state_dict and not torch.equal(state_dict[copy].float(), state_dict[original].float()):
        raise CheckpointError(
            f"{copy} differs from {original}, but ALPRO ties the two: these are weights of another model."
        )


def _drop_unset_prompts(state: dict[str, torch.Tensor]) -> None:
    """Set prompt features to zero that were never computed: training a prompter saves random numbers for them."""
    for kind in ("video", "image"):
        name = f"{kind}_prompt_embeds"
        longest = state[name].norm(dim=1).max().item()
        if longest > 1.01:  # a mean of unit vectors has at most length 1; the margin is for half precision
            logger.warning(
                "The %s prompt features of the checkpoint have a length of up to %.2f, so they are not means of unit "
                "vectors: the prompts were never embedded. They are left out. Call set_prompts(%r, ...) before using "
                "the prompter for %s clips.",
                kind,
                longest,
                kind,
                kind,
            )
            state[name] = torch.zeros_like(state[name])


def load_original_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a `.pt` file of the original code as data, without running code from it.

    Args:
        path: A file written by `torch.save`: a state dict, or a dictionary with a state dict under `model` or
            `state_dict`.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is not a checkpoint, is damaged, contains objects that run code when read, unpacks
            to more than its own size, or has tensors that cannot be weights: sparse, complex, smaller than their
            shape, infinite or NaN.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":  # torch.save writes a zip archive since 1.6, and wrote a pickle before
        _check_archive(path)
    elif start[:1] != b"\x80":
        raise CheckpointError(f"{path} is not a file written by torch.save (it starts with {start!r}).")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch gives the reason only as text
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        detail = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        reason = f"an object of type {blocked[1]}" if blocked else f"more than pure data ({detail and detail[1]})"
        raise CheckpointError(
            f"{path} was refused: it holds {reason}, and reading that could run code from the file. If you trust it, "
            "load it yourself and save only the state dict: torch.save(model.state_dict(), file)."
        ) from error
    # types that torch's reader raises for damaged files
    except (RuntimeError, EOFError, LookupError, UnicodeDecodeError, MemoryError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({type(error).__name__}: {error}).") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict.")
    others = sorted(str(key) for key, value in content.items() if not isinstance(value, torch.Tensor))
    if others:
        raise CheckpointError(f"{path} is not a state dict: these entries are not tensors: {_some(others)}.")
    problems = [f"{name!r} {problem}" for name, tensor in content.items() if (problem := _problem_of(name, tensor))]
    if problems:
        raise CheckpointError(f"{path} was refused: these entries cannot be weights: {_some(problems)}.")
    return content


def _check_archive(path: Path) -> None:
    """Refuse archives that torch.save does not write, before they are unpacked: a small one could fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}.") from error
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} was refused: {_some(packed)} is compressed, but torch.save does not compress.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > path.stat().st_size:
        raise CheckpointError(f"{path} was refused: it has {path.stat().st_size:,} bytes that unpack to {unpacked:,}.")
    odd = [
        name for name in (m.filename for m in members) if "\\" in name or name[:1] == "/" or ".." in name.split("/")
    ]
    if odd:
        raise CheckpointError(f"{path} was refused: the names of these members lead out of the archive: {_some(odd)}.")


def _problem_of(name: object, tensor: torch.Tensor) -> str | None:
    """The reason why an entry of a state dict cannot be a weight; None if it can."""
    if not isinstance(name, str):
        return "is not a name"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        return f"is not a plain tensor ({type(tensor).__name__}, {tensor.layout}, {tensor.dtype})"
    if tensor.device.type != "cpu" or tensor.is_complex():
        return f"has no real values ({tensor.dtype} on {tensor.device.type})"
    # such as a tensor expanded from one element, which would need far more memory once it is copied
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = " x ".join(map(str, tensor.shape))
        return f"says it has the shape {shape} but holds {tensor.untyped_storage().nbytes():,} bytes"
    if not tensor.isfinite().all():
        return "has values that are infinite or NaN"
    return None


def _some(names: Sequence[str]) -> str:
    """The first ten names, long ones truncated: names come from the file and could be of any length."""
    shown = ", ".join(name if len(name) <= 120 else f"{name[:120]}..." for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, and {len(names) - 10} more"


def convert(
    checkpoint: str | Path,
    task: str,
    output: str | Path,
    *,
    num_attention_heads: int = 12,
    fusion_layer: int = 6,
    answers: str | Path | None = None,
    entities: str | Path | None = None,
    vocab: str | Path | None = None,
) -> ConvertedModel | PreTrainingPair:
    """Convert a file of the original code, and write configuration, weights and processor to a folder.

    Args:
        checkpoint: The `.pt` file.
        task, num_attention_heads, fusion_layer: As in `convert_original_checkpoint`.
        output: Folder to write to; created if it does not exist. For `pretrain` it receives the student, and its
            subfolder `prompter` the teacher.
        answers: For `qa`, the `ans2label.json` of the data set.
        entities: For `pretrain` and `prompter`, the entity list, see `read_entities`.
        vocab: The `vocab.txt` of the BERT that the text encoder was initialized with (bert-base-uncased for the
            released checkpoints). None: no tokenizer is written, with a warning.

    Returns:
        The model that was written, or for `pretrain` the student and its prompter.

    Raises:
        OSError: A file cannot be read or written.
        CheckpointError: As in `load_original_checkpoint` and `convert_original_checkpoint`.
        ValueError: The task, the answers, the entities or the vocabulary do not fit the checkpoint.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"The output {output} is a file. Name a folder.")
    # everything is read and checked before the first file is written
    converted = convert_original_checkpoint(
        load_original_checkpoint(checkpoint),
        task,
        num_attention_heads=num_attention_heads,
        fusion_layer=fusion_layer,
        answers=None if answers is None else read_answers(answers),
        entities=None if entities is None else read_entities(entities),
    )
    folders = converted_folders(converted, output)
    processor = _processor(folders[output].config, vocab)
    for folder, model in folders.items():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return converted


def converted_folders(converted: ConvertedModel | PreTrainingPair, output: Path) -> dict[Path, ConvertedModel]:
    """The folder that `convert` writes each of its models to."""
    if not isinstance(converted, tuple):
        return {output: converted}
    return {output: converted[0], output / PROMPTER_FOLDER: converted[1]}


def _shape(state_dict: State, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that determines a size in the configuration."""
    if name not in state_dict:
        raise CheckpointError("The checkpoint lacks a tensor that determines the size of the model.", missing=[name])
    shape = tuple(state_dict[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(
            "A tensor that determines the size of the model has the wrong number of dimensions.",
            misshaped=[f"{name}: {shape}, {dimensions} dimensions needed"],
        )
    if 0 in shape:
        raise CheckpointError(
            "A tensor that determines the size of the model is empty.", misshaped=[f"{name}: {shape}"]
        )
    return shape


def _depth(state_dict: State, prefix: str) -> int:
    """The number of layers `prefix0`, `prefix1`, ... in the checkpoint."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in state_dict)
    layers = {int(match.group(1)) for match in found if match}
    # the first number that is absent; without a gap, it is the number of layers
    missing = next(number for number in range(len(layers) + 1) if number not in layers)
    if missing < len(layers):
        raise CheckpointError(
            f"The checkpoint has {len(layers)} layers with numbers up to {max(layers)}, so not all in between.",
            missing=[f"{prefix}{missing}.*"],
        )
    return len(layers)


def _read_config(
    state_dict: State, prefix: str, text: str, sizes: dict[str, int], labels: dict[str, Any]
) -> AlproConfig:
    """Read the configuration off the tensors. `prefix` starts all names, `text` those of the text encoder."""
    video = prefix + _VIDEO
    vocab_size, text_width = _shape(state_dict, text + "embeddings.word_embeddings.weight", 2)
    video_width, channels, patch_size, _ = _shape(state_dict, video + "patch_embed.proj.weight", 4)
    positions = _shape(state_dict, video + "pos_embed", 3)
    # one position for the CLS token, then a square grid of patches
    grid = round(max(positions[1] - 1, 0) ** 0.5)
    if grid**2 + 1 != positions[1]:
        raise CheckpointError(
            "The space embeddings are not one CLS token and a square of patches.",
            misshaped=[f"{video}pos_embed: {positions}, (1, 1 + n * n, D) needed"],
        )
    text_config = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "intermediate_size": _shape(state_dict, text + "encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": _depth(state_dict, text + "encoder.layer."),
        **sizes,
        "max_position_embeddings": _shape(state_dict, text + "embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": _shape(state_dict, text + "embeddings.token_type_embeddings.weight", 2)[0],
    }
    video_config = {
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "num_channels": channels,
        "num_frames": _shape(state_dict, video + "time_embed", 3)[1],
        "hidden_size": video_width,
        "intermediate_size": _shape(state_dict, video + "blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _depth(state_dict, video + "blocks."),
        "num_attention_heads": sizes["num_attention_heads"],
        "qkv_bias": video + "blocks.0.attn.qkv.bias" in state_dict,
    }
    projection_dim = _shape(state_dict, prefix + "text_proj.weight", 2)[0]
    return AlproConfig(text_config=text_config, video_config=video_config, projection_dim=projection_dim, **labels)


def _answer_labels(count: int, answers: Mapping[str, int] | None) -> dict[int, str]:
    """`id2label` of a classifier with `count` answers."""
    if answers is None:
        logger.warning(
            "No answers were given, so the %d answers are called LABEL_0, LABEL_1, ... Pass the ans2label.json of the "
            "data set (--answers) to name them.",
            count,
        )
        return {index: f"LABEL_{index}" for index in range(count)}
    if sorted(answers.values()) != list(range(count)):
        raise ValueError(
            f"The checkpoint classifies {count} answers, so the answers must have the numbers 0 to {count - 1}, each "
            f"once; received {len(answers)} answers numbered {min(answers.values(), default=None)} to "
            f"{max(answers.values(), default=None)}. Is this the answer file of the same data set?"
        )
    return {index: answer for answer, index in sorted(answers.items(), key=lambda item: item[1])}


def _entity_names(count: int, entities: Sequence[str] | None) -> list[str]:
    """The names of the `count` entities of a checkpoint."""
    if entities is None:
        logger.warning(
            "No entities were given, so the %d entities are called ENTITY_0, ENTITY_1, ... Pass the entity list that "
            "the prompts were made from (--entities) to name them.",
            count,
        )
        return [f"ENTITY_{index}" for index in range(count)]
    if len(entities) != count:
        raise ValueError(
            f"The checkpoint knows {count} entities, so it needs {count} names in the order of its prompts; received "
            f"{len(entities)} entities. Is this the list that its prompts were made from?"
        )
    return list(entities)


def _replace(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def _processor(config: AlproConfig, vocab: str | Path | None) -> AlproProcessor | AlproVideoProcessor:
    """The processor of the model; without a vocabulary only its video part, with a warning."""
    video = config.video_config
    video_processor = AlproVideoProcessor(
        size={"height": video.image_size, "width": video.image_size},
        num_frames=video.num_frames,
        frame_sampling="uniform",  # as in the evaluation of the original code
    )
    if vocab is None:
        logger.warning(
            "No vocabulary was given, so the folder has no tokenizer: AutoProcessor cannot load it, and texts cannot "
            "be tokenized. Convert again with --vocab and the vocab.txt of bert-base-uncased."
        )
        return video_processor
    tokenizer = _tokenizer(vocab, config.text_config)
    return AlproProcessor(video_processor=video_processor, tokenizer=tokenizer)


def _tokenizer(vocab: str | Path, config: AlproTextConfig) -> BertTokenizer:
    """A lower-casing BERT tokenizer with the vocabulary of a file, which must fit the word embeddings."""
    try:
        # not splitlines: a word piece may be a character that Python counts as a line end, such as U+0085
        entries = Path(vocab).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{vocab} is not a text file in utf-8: {error}. Name a vocab.txt.") from error
    if len(entries) != config.vocab_size:
        raise ValueError(
            f"{vocab} has {len(entries)} entries, but the checkpoint embeds {config.vocab_size} words: it belongs to "
            "another model. The released checkpoints use the one of bert-base-uncased (30522 entries)."
        )
    words = {entry: index for index, entry in enumerate(entries)}
    absent = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(words)
    if absent:
        raise ValueError(f"{vocab} is not a BERT vocabulary: it lacks {', '.join(sorted(absent))}.")
    return BertTokenizer(vocab=words, do_lower_case=True, model_max_length=config.max_position_embeddings)


__all__ = ["convert", "convert_original_checkpoint", "converted_folders", "load_original_checkpoint"]
