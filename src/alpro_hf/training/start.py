"""What a training by recipe begins with: checked rows, the model with its weights, the processor and the collator."""

import argparse
import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.utils import logging

from ..data.augmentation import OPERATIONS, AlproAugmentation
from ..data.collator import AlproCollator
from ..data.isolated_decoder import IsolatedDecoder
from ..data.label_lists import read_answers, read_entities
from ..data.load_rows import (
    is_labelled,
)
from ..data.mixed_rows import MixedRows
from ..data.pretraining_collator import AlproPreTrainingCollator
from ..model.configuration_alpro import AlproConfig
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from ..model.pretraining_alpro import AlproForPreTraining
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import AlproVideoProcessor
from .arguments import AlproTrainingArguments
from .recipe import AlproRecipe


class TrainError(ValueError):
    """A training cannot begin; the message says why and what to do."""


MODELS: dict[str, Any] = {
    "prompter": AlproModel,
    "pretrain": AlproForPreTraining,
    "retrieval": AlproForVideoTextRetrieval,
    "qa": AlproForVideoQuestionAnswering,
}


# ---------------------------------------------------------------------------------------------------------------- rows


def training_rows(
    task: str,
    recipe: AlproRecipe,
    arguments: AlproTrainingArguments,
    sources: Mapping[str, Dataset],
) -> Any:
    """Mixed by steps for pre-training, which several sources need; else the rows themselves, in epochs."""
    several = len(sources) > 1
    if task not in ("prompter", "pretrain") or not (several or arguments.train_sampling_strategy == "sequential"):
        return next(iter(sources.values()))
    weights = None
    if recipe.data_weights:
        if len(recipe.data_weights) != len(sources):
            raise TrainError(
                f"data_weights={recipe.data_weights} must have one number for each of the {len(sources)} --data."
            )
        weights = dict(zip(sources, recipe.data_weights, strict=True))
    return MixedRows.from_arguments(sources, arguments, weights)


def answer_labels(
    args: argparse.Namespace, task: str, recipe: AlproRecipe, sources: Sequence[Dataset]
) -> list[str] | None:
    """Answers of question answering in the order of their numbers; None: those of the starting checkpoint."""
    if task != "qa":
        return None
    rows = sources[0]
    if args.answers:
        numbers = read_answers(args.answers)
        if sorted(numbers.values()) != list(range(len(numbers))) or not numbers:
            raise TrainError(
                f"{args.answers} must number its {len(numbers)} answers 0 to {len(numbers) - 1}, once each."
            )
        return sorted(numbers, key=lambda answer: numbers[answer])
    if recipe.num_answers is None:
        return None
    counts = Counter(rows["answer"])
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, _ in ranked[: recipe.num_answers]]


def first_entities(path: Path, recipe: AlproRecipe) -> list[str]:
    return read_entities(path)[: recipe.num_entities]


def pem_entities(
    args: argparse.Namespace,
    task: str,
    recipe: AlproRecipe,
    arguments: AlproTrainingArguments,
    sources: Sequence[Dataset],
) -> list[str] | None:
    """Names of the entities that PEM predicts; None: no PEM."""
    if task == "prompter" and args.entities:
        first_entities(args.entities, recipe)  # a list that cannot be read shows now, not after the training
    if task != "pretrain" or arguments.pem_weight == 0:
        return None
    if args.prompter:
        entities = AlproConfig.from_pretrained(args.prompter).entities
        if not entities:
            raise TrainError(
                f"--prompter {args.prompter} names no entities. Make one with alpro train --task prompter --entities."
            )
    elif args.entities:
        entities = first_entities(args.entities, recipe)
    else:
        raise TrainError(
            "PEM needs a teacher: --prompter DIR; or, where all rows have pseudo-labels, --entities FILE; or switch "
            "it off with --pem_weight 0."
        )
    for spec, rows in zip(args.data, sources, strict=True):
        if not is_labelled(rows):
            if not args.prompter:
                raise TrainError(f"{spec} has no pseudo-labels ('pem_targets'), so --prompter must name the teacher.")
            continue
        size = len(next(iter(rows))["pem_targets"])
        if size != len(entities):
            raise TrainError(f"{spec} has pseudo-labels for {size} entities; {len(entities)} are named. Use the same.")
    return entities


# -------------------------------------------------------------------------------------------- the model and its inputs


def start_model(
    args: argparse.Namespace,
    task: str,
    recipe: AlproRecipe,
    entities: list[str] | None,
    labels: list[str] | None,
) -> tuple[Any, list[str]]:
    """The model of a task, with the weights of the starting checkpoint as far as it has them.

    Space and time embeddings are resized to the frames of the recipe, so that each frame learns its own. A head for
    other entities or answers than those of the checkpoint is new.

    Returns:
        The model, and the names of its parts whose weights are new.

    Raises:
        TrainError: The checkpoint is not of ALPRO, or its answers have no names.
    """
    model_class = MODELS[task]
    if args.model:
        found, _ = AlproConfig.get_config_dict(args.model)
        if found.get("model_type") != AlproConfig.model_type:
            raise TrainError(
                f"--model {args.model} holds a model of type {found.get('model_type')!r}, not an ALPRO model. A ViT "
                "and a BERT are given with --vision and --text."
            )
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # which weights are new is told here, by the parts of the model
        loaded: Any = model_class.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True)
        logging.set_verbosity(verbosity)
        source, info = loaded
        new = set(info["missing_keys"])
        if any(name.startswith(("alpro.", "text_model.", "video_model.")) for name in new):
            raise TrainError(f"--model {args.model} is not whole: it lacks {', '.join(sorted(new)[:3])}, ...")
    else:
        video = {"num_frames": recipe.num_frames, "image_size": recipe.image_size}
        towers = AlproModel.from_unimodal_pretrained(
            args.vision, args.text, video_config={name: value for name, value in video.items() if value is not None}
        )
        source = model_class(copy.deepcopy(towers.config))
        source.base_model.load_state_dict(towers.state_dict())
        new = {name for name, _ in source.named_parameters() if not name.startswith("alpro.")}
        new = (set() if task == "prompter" else new) | {"projections", "temperature"}
    config = copy.deepcopy(source.config)
    config.video_config.num_frames = recipe.num_frames or config.video_config.num_frames
    config.video_config.image_size = recipe.image_size or config.video_config.image_size
    config.entities = entities if task == "pretrain" else None
    if recipe.pem_threshold is not None and task == "pretrain":
        config.pem_threshold = recipe.pem_threshold
    if labels is not None:
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    elif task == "qa" and set(config.id2label.values()) == {f"LABEL_{i}" for i in range(len(config.id2label))}:
        raise TrainError("The answers are not named. Give --answers FILE, or num_answers in the recipe.")
    config.video_config.validate()
    config.validate()
    kept = _fitting(source, config)
    model = model_class(config)
    state = model.state_dict()
    new |= state.keys() - kept.keys()
    model.load_state_dict(state | kept)
    return model, sorted({name.removeprefix("alpro.").split(".")[0] for name in new})


def _fitting(source: Any, config: AlproConfig) -> dict[str, torch.Tensor]:
    """The state of a model as one with another configuration takes it: without heads for other labels, and resized."""
    state = source.state_dict()
    stale = {"pem_head.": source.config.entities != config.entities}
    stale["classifier."] = source.config.id2label != config.id2label
    state = {
        name: tensor
        for name, tensor in state.items()
        if not any(name.startswith(head) and old for head, old in stale.items())
    }
    tower = source.base_model.video_model.embeddings
    prefix = "" if isinstance(source, AlproModel) else "alpro."
    grid = config.video_config.image_size // config.video_config.patch_size
    with torch.no_grad():
        state[f"{prefix}video_model.embeddings.time_embeddings"] = tower.frame_embeddings(
            config.video_config.num_frames
        ).clone()
        state[f"{prefix}video_model.embeddings.position_embeddings"] = torch.cat(
            [tower.position_embeddings[:, :1], tower.space_embeddings(grid, grid)], dim=1
        )
    return state


def start_processor(args: argparse.Namespace, recipe: AlproRecipe, config: AlproConfig) -> AlproProcessor:
    """The processor that training and the saved model use: that of the start, with the values of the recipe."""
    if args.model or args.processor:
        processor = AlproProcessor.from_pretrained(args.processor or args.model)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.text)
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        processor = AlproProcessor(video_processor=AlproVideoProcessor(), tokenizer=tokenizer)
    video = processor.video_processor
    video.num_frames = config.video_config.num_frames
    if recipe.image_size or not (args.model or args.processor):
        video.size = {"height": config.video_config.image_size, "width": config.video_config.image_size}
    if recipe.eval_sampling:
        video.frame_sampling = recipe.eval_sampling
    if recipe.text_length:
        longest = config.text_config.max_position_embeddings
        if recipe.text_length > longest:
            raise TrainError(f"text_length={recipe.text_length} is more than the {longest} tokens the model reads.")
        processor.tokenizer.model_max_length = recipe.text_length
    return processor


def make_collator(
    task: str,
    recipe: AlproRecipe,
    arguments: AlproTrainingArguments,
    processor: AlproProcessor,
    config: AlproConfig,
    entities: list[str] | None,
) -> AlproCollator:
    size = processor.video_processor.size
    operations = [operation for operation in OPERATIONS if operation not in recipe.leave_out]
    augmentations: dict[str, AlproAugmentation | None] = {"video": None, "image": None}
    if recipe.augmentation != "none":
        for kind in ("video", "image"):
            augmentations[kind] = AlproAugmentation(
                kind if recipe.augmentation == "pretrain" else "finetune",
                (size["height"], size["width"]),
                operations=operations,
            )
    decoder = IsolatedDecoder(processes=1) if recipe.isolate_decoding else None
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if task in ("prompter", "pretrain"):
        return AlproPreTrainingCollator(
            processor,
            video_augmentation=augmentations["video"],
            image_augmentation=augmentations["image"],
            mlm_probability=recipe.mlm_probability if task == "pretrain" and arguments.mlm_weight else 0,
            pem=entities is not None,
            patch_size=config.video_config.patch_size,
            image_frames=recipe.image_frames,
            train_sampling=recipe.train_sampling,
            seed=seed,
            decoder=decoder,
        )
    labels: Any = config.label2id
    return AlproCollator(
        processor,
        task="qa" if task == "qa" else "retrieval",
        label2id=labels if task == "qa" else None,
        train_sampling=recipe.train_sampling,
        seed=seed,
        augmentation=augmentations["video"],
        decoder=decoder,
    )


__all__ = [
    "MODELS",
    "TrainError",
    "answer_labels",
    "first_entities",
    "make_collator",
    "pem_entities",
    "start_model",
    "start_processor",
    "training_rows",
]
