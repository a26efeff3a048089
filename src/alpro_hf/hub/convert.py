"""Conversion of a checkpoint of ALPRO, of the original code or of LAVIS, or of BLIP to a model folder.

This is what `alpro convert` does.

The sizes of the model are read off the tensors. The number of attention heads and the first fusion layer cannot be, so
they are arguments. Files are read with `weights_only=True`: a checkpoint is data, and no code in it runs.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..data.label_lists import read_answers, read_entities
from ..files import inside, write_text_whole
from ..model.configuration_alpro import AlproConfig
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from ..model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel
from ..model.unimodal_alpro import CheckpointError, assemble_state, bert_names
from ..version import __version__
from .checkpoint_file import load_checkpoint, load_original_checkpoint
from .checkpoint_layout import CheckpointKind, mark_of, recognise
from .checkpoint_sizes import VIDEO_PREFIX, read_config, shape_of
from .checkpoint_source import Checkpoint, file_facts, find_checkpoint
from .convert_blip import convert_blip, write_card
from .converted_folder import build_processor, check_output, replaced_whole
from .download import download, is_url, public
from .names import CONVERSION, CONVERTED_TASKS, PROMPTER_FOLDER

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]
PreTrainingPair = tuple[AlproForPreTraining, AlproPrompterModel]
ConvertedModel = (
    AlproForPreTraining | AlproPrompterModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering | AlproModel
)

MODEL_CLASSES = {
    "pretrain": AlproForPreTraining,
    "prompter": AlproPrompterModel,
    "retrieval": AlproForVideoTextRetrieval,
    "qa": AlproForVideoQuestionAnswering,
}

_MAX_ANSWERS = 16 << 20  # bytes of a downloaded answer list
_PROMPTER = "prompter."  # the teacher inside a pre-training checkpoint
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
# the tensors of the contrastive loss, which LAVIS does not have in its question answering
_CONTRASTIVE = {"temp", "text_proj.weight", "text_proj.bias", "vision_proj.weight", "vision_proj.bias"}
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
            retrieval) or `text_encoder.` (question answering, and all of LAVIS). For `qa`, temperature and both
            projections may be absent together, as in LAVIS: then they are new and frozen, with a warning.
        task: `"pretrain"`, `"prompter"`, `"retrieval"` or `"qa"`.
        num_attention_heads: Heads in every layer of both towers (12 in the released checkpoints).
        fusion_layer: Index of the first fusion layer of the text encoder (6 in the released checkpoints).
        answers: For `qa`, answer to index, as in the file `ans2label.json` of the original data. None: the answers are
            called LABEL_0, LABEL_1, ..., with a warning.
        entities: For `pretrain` and `prompter`, the names of the entities, in the order of the entity list that the
            prompts were made from. None: they are called ENTITY_0, ENTITY_1, ..., with a warning.

    Returns:
        The model in float32 and evaluation mode. For `pretrain` a pair, the student and its prompter; the student
        alone, with a warning, if no tensor of a prompter is there.

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
        labels["id2label"] = _answer_labels(shape_of(state_dict, "classifier.2.weight", 2)[0], answers)
        labels["label2id"] = {label: index for index, label in labels["id2label"].items()}
    elif task == "pretrain":
        labels["entities"] = _entity_names(shape_of(state_dict, "mpm_head.2.weight", 2)[0], entities)
    elif task == "prompter":
        labels["entities"] = _entity_names(shape_of(state_dict, "video_prompt_feat", 2)[0], entities)
    sizes = {"num_attention_heads": num_attention_heads, "fusion_layer": fusion_layer}
    if task != "pretrain":
        return _build(state_dict, task, labels, sizes)
    # a pre-training checkpoint holds two whole models: the student, and its teacher under another prefix
    parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    for name, tensor in state_dict.items():
        parts[name.startswith(_PROMPTER)][name] = tensor
    student = _build(parts[0], task, labels, sizes)
    if not parts[1]:
        logger.warning(
            "The checkpoint holds no teacher (prompter.*), so only the student is converted. Retrieval and "
            "fine-tuning need no teacher; to go on with pre-training, train a prompter first."
        )
        return student
    return student, _build(parts[1], "prompter", labels, sizes, _PROMPTER)


def _build(source: State, task: str, labels: dict[str, Any], sizes: dict[str, int], prefix: str = "") -> Any:
    """Build the model of a task from tensors whose names all start with `prefix`."""
    # for pre-training and retrieval, the original code wraps BERT in a masked-language model
    inside_mlm = any(name.startswith(f"{prefix}text_encoder.bert.") for name in source)
    text = f"{prefix}text_encoder.bert." if inside_mlm else f"{prefix}text_encoder."
    config = read_config(source, prefix, text, sizes, labels)

    def original_names(target: str) -> tuple[str, ...]:
        if target.startswith("alpro.text_model."):
            return tuple(text + name for name in bert_names(target.removeprefix("alpro.text_model.")))
        if target.startswith("alpro.video_model."):
            return (prefix + VIDEO_PREFIX + _replace(target.removeprefix("alpro.video_model."), _VIDEO_NAMES),)
        return (prefix + _replace(target, _REST_NAMES),)

    tensors = dict(source)
    if prefix + "temp" in tensors:
        # a scalar in the original code, of shape (1,) here
        tensors[prefix + "temp"] = tensors[prefix + "temp"].reshape(-1)
    with torch.device("meta"):  # all tensors are assigned below, so none is initialized here
        model = MODEL_CLASSES[task](config)
    tied: Mapping[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    targets = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    fresh = {}
    if task == "qa" and _CONTRASTIVE.isdisjoint(source):  # all or none: a single absent tensor is a damaged file
        fresh = _contrastive_parts(config, targets)
        targets = {name: shape for name, shape in targets.items() if name not in fresh}
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
    state |= fresh
    # assign: the parameters are on the meta device and cannot be copied into. Tied ones must be named, too, and become
    # one tensor again below
    model.load_state_dict({**state, **{name: state[source] for name, source in tied.items()}}, assign=True)
    model.tie_weights()
    model.config.matching_trained = "vtm_head.weight" in state
    return model.eval()


def _contrastive_parts(config: AlproConfig, targets: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """New temperature and projections for question answering, which does not use them and keeps them frozen."""
    logger.warning(
        "The checkpoint has no temperature and no projections, as LAVIS saves question answering. The model gets new "
        "ones, which are frozen: it answers questions, but its embeddings of texts and videos mean nothing."
    )
    # of its own, so that every conversion gives the same folder and the global generator stays where it was
    generator = torch.Generator().manual_seed(0)
    fresh = {"alpro.temperature": torch.full((1,), float(config.temperature_init))}
    for part in ("alpro.text_projection.", "alpro.video_projection."):
        shape = targets[part + "weight"]
        fresh[part + "weight"] = torch.randn(shape, generator=generator) * config.initializer_range
        fresh[part + "bias"] = torch.zeros(targets[part + "bias"])
    return fresh


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


def convert(
    checkpoint: str | Path,
    task: str | None,
    output: str | Path,
    *,
    num_attention_heads: int | None = None,
    fusion_layer: int | None = None,
    fusion_layers: int | None = None,
    answers: str | Path | None = None,
    entities: str | Path | None = None,
    vocab: str | Path | None = None,
    member: str | None = None,
    mirror: str | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
) -> ConvertedModel | PreTrainingPair:
    """Convert a checkpoint of the original code, of LAVIS or of BLIP, and write a model folder.

    The folder receives configuration, weights, processor, and `conversion.json` with the source, its layout and task,
    and the size and sha256 of its files. It is written whole: if anything fails, an older folder stays as it was.
    What was downloaded stays in the Hub cache.

    Args:
        checkpoint: Any source that `find_checkpoint` finds.
        task: As in `convert_original_checkpoint`. None: told from the names of the tensors.
        num_attention_heads, fusion_layer: As in `convert_original_checkpoint`. None: 12 and 6, as in the released
            checkpoints. A BLIP model has them in its configuration.
        fusion_layers: For BLIP, the number of fusion layers to append for fine-tuning, with a new matching head.
            None: none, and the model compares by its vectors.
        output: Folder to write to; created if it does not exist. For `pretrain` it receives the student, and its
            subfolder `prompter` the teacher.
        answers: For `qa`, the `ans2label.json` of the data set, a file or an address. None: that of the publisher, if
            the checkpoint is a known name.
        entities: For `pretrain` and `prompter`, the entity list, see `read_entities`.
        vocab: The `vocab.txt` of the BERT that the text encoder was initialized with. None: that of bert-base-uncased,
            which belongs to the released checkpoints; of a BLIP model, the one in its folder.
        member: Name of the checkpoint in an archive. None: the only one there is.
        mirror: Address below which the known checkpoints lie. None: that of their publisher.
        sha256: The hash that the file, or the archive that holds it, must have, as 64 hexadecimal digits. None: any.
        overwrite: Replace a model folder at `output`, with all files in it.

    Returns:
        The model that was written, or for `pretrain` the student and its prompter.

    Raises:
        OSError: A file cannot be read, downloaded or written, or the output holds files already.
        CheckpointError: As in `find_checkpoint`, `load_original_checkpoint`, `convert_original_checkpoint` and
            `convert_blip`, or the checkpoint is of another task or hash.
        ValueError: The task, the answers, the entities, the vocabulary or the fusion layers do not fit the checkpoint.
    """
    output = Path(output)
    check_output(output, overwrite)
    with find_checkpoint(checkpoint, member, mirror) as found:
        if any(inside(path, output) for path in found.files):
            raise FileExistsError(f"{found.source} lies in {output}, which would be replaced. Name another output.")
        record = found.facts()
        if sha256 is not None:
            _check_hash(found, record, sha256.lower())
        # everything is read and checked before the first file is written
        state = _load(found)
        kind = recognise(state)
        converted: ConvertedModel | PreTrainingPair
        if kind is not None and kind.layout == "blip":
            _refuse_options_of_alpro(
                found.source,
                {
                    "task": task,
                    "answers": answers,
                    "entities": entities,
                    "num-attention-heads": num_attention_heads,
                    "fusion-layer": fusion_layer,
                },
            )
            task = "retrieval"
            converted, processor = convert_blip(found, state, fusion_layers or 0, vocab)
        else:
            task = _choose_task(found.source, kind, task)
            if fusion_layers is not None:
                raise ValueError(
                    f"{found.source} is {kind or 'no BLIP model'}, which has its own fusion layers: leave "
                    "--fusion-layers out. The index of the first one is --fusion-layer."
                )
            kind = kind or CheckpointKind("original", task)
            if task == "qa" and answers is None:
                answers = found.answers_url
            if answers is not None and is_url(str(answers)):
                address, answers = str(answers), download(str(answers), max_size=_MAX_ANSWERS)
                record["answers"] = {"url": public(address)} | file_facts(answers)
            converted = convert_original_checkpoint(
                state,
                task,
                num_attention_heads=12 if num_attention_heads is None else num_attention_heads,
                fusion_layer=6 if fusion_layer is None else fusion_layer,
                answers=None if answers is None else read_answers(answers),
                entities=None if entities is None else read_entities(entities),
            )
            processor = build_processor(converted_folders(converted, output)[output].config, vocab)
    record |= {
        "layout": kind.layout,
        "task": task,
        "matching_head": kind._replace(task=task).has_matching_head,
        "alpro_hf": __version__,
    }
    with replaced_whole(output) as staged:
        for folder, model in converted_folders(converted, staged).items():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        if kind.layout == "blip":
            write_card(staged, _name_of(found), output.resolve().name)
        write_text_whole(staged / CONVERSION, json.dumps(record, indent=2) + "\n")
    return converted


def _check_hash(found: Checkpoint, record: Mapping[str, Any], sha256: str) -> None:
    files = [record["archive"]] if "archive" in record else []
    files += record["files"]
    # of a sharded checkpoint, one hash says nothing about the other parts
    if len(record["files"]) > 1 or sha256 not in [file["sha256"] for file in files]:
        listed = ", ".join(f"{file['name']} has {file['sha256']}" for file in files)
        kept = f" The download is kept in {(found.archive or found.files)[0].parent}." if found.url else ""
        raise CheckpointError(f"The sha256 is not {sha256}: {listed}.{kept}")


def _load(found: Checkpoint) -> dict[str, torch.Tensor]:
    """Read the tensors; an error of a downloaded file says how to get it anew."""
    try:
        return load_checkpoint(found.files)
    except (CheckpointError, SafetensorError) as error:
        if found.url is None:
            raise
        path = (found.archive or found.files)[0]
        raise CheckpointError(
            f"{' '.join(str(error).split())} It was downloaded from {found.url}; to download it anew, remove {path}."
        ) from error


def _refuse_options_of_alpro(source: str, options: Mapping[str, object]) -> None:
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise ValueError(f"{source} is a BLIP model, for which {', '.join(given)} means nothing: leave it out.")


def _name_of(found: Checkpoint) -> str:
    """What the card of a model names as its source: no path on this machine."""
    path = Path(found.source)
    return path.resolve().name if path.exists() else found.source


def _choose_task(source: str, kind: CheckpointKind | None, task: str | None) -> str:
    """The task to convert for: the one that was given, or the one that the tensors show."""
    shown = kind.task if kind else None
    if task is not None and task not in MODEL_CLASSES:
        raise ValueError(f"task={task!r} is not one of the supported tasks: {', '.join(CONVERTED_TASKS)}.")
    if task is not None and shown is not None and task != shown:
        raise CheckpointError(
            f"{source} is {kind}, not of {task} (it has {mark_of(shown)}, and not what {task} needs, such as "
            f"{mark_of(task)}): leave --task out."
        )
    if task is None and shown is None:
        raise CheckpointError(
            f"{source} is {kind}, so its task is unknown: pass --task."
            if kind
            else f"{source} is not an ALPRO checkpoint, nor a BLIP model for image-text retrieval: it lacks "
            "text_encoder.* or visual_encoder.model.*."
        )
    return task or str(shown)


def converted_folders(converted: ConvertedModel | PreTrainingPair, output: Path) -> dict[Path, ConvertedModel]:
    """The folder that `convert` writes each of its models to."""
    if not isinstance(converted, tuple):
        return {output: converted}
    return {output: converted[0], output / PROMPTER_FOLDER: converted[1]}


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


__all__ = ["convert", "convert_original_checkpoint", "converted_folders", "load_original_checkpoint"]
