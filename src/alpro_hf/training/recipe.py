"""Recipes of training: small files of values, checked by name and type, each value replaceable on the command line.

A recipe is a JSON or YAML object. Its keys are the fields of `AlproRecipe` and of `AlproTrainingArguments`, and
`task` and `description`. The bundled ones hold the hyper-parameters of the paper (arXiv 2112.09583).
"""

import argparse
import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..data.augmentation import OPERATIONS
from ..model.video_processing_alpro import SamplingStrategy
from .arguments import AlproTrainingArguments

Task = Literal["prompter", "pretrain", "retrieval", "qa"]
TASKS: tuple[Task, ...] = get_args(Task)
RECIPES = Path(__file__).parent / "recipes"
RUN = "run"  # key of a written recipe under which facts of the run stand, which are no values
# fields of the training arguments that the command itself decides, or that do nothing here
_MANAGED = ("output_dir", "do_train", "do_eval", "do_predict", "local_rank", "resume_from_checkpoint")
_DESCRIBING = ("task", "description", RUN)
# training arguments worth a line of help; all others work as well
_SHOWN = (
    *("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "weight_decay"),
    *("max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
    *("bf16", "use_cpu", "seed", "dataloader_num_workers", "logging_steps", "save_strategy", "save_steps"),
    *("save_total_limit", "eval_strategy", "eval_steps", "per_device_eval_batch_size", "report_to", "deepspeed"),
    *("vtc_weight", "vtm_weight", "mlm_weight", "pem_weight", "vtm_negatives", "contrastive_accumulation"),
    *("eval_protocol", "rerank_k", "train_sampling_strategy"),
)


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the key and what to do."""


@dataclass
class AlproRecipe:
    """What a recipe says beside the training arguments. None leaves the choice to the starting checkpoint."""

    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of an optimizer step on all devices together; the batch of a device is this divided by "
            "processes x gradient_accumulation_steps."
        },
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames of a clip."})
    image_frames: int | None = field(
        default=None, metadata={"help": "Frames of the clip that an image becomes (default: as many as of a video)."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Height and width of a frame in pixels."})
    text_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    train_sampling: SamplingStrategy = field(
        default="headtail", metadata={"help": "How the frames of a clip are drawn in training."}
    )
    eval_sampling: SamplingStrategy | None = field(
        default=None, metadata={"help": "How they are chosen otherwise; saved with the processor."}
    )
    augmentation: Literal["pretrain", "finetune", "none"] = field(
        default="finetune",
        metadata={
            "help": "Random changes of frames: 'pretrain' (crop and RandAugment, images their own way), 'finetune' "
            "(RandAugment), 'none'."
        },
    )
    leave_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Operations that RandAugment must not use, such as horizontal_flip where captions tell left from "
            f"right; out of {', '.join(OPERATIONS)}."
        },
    )
    isolate_decoding: bool = field(
        default=False,
        metadata={
            "help": "Decode clips in processes of their own, so that one that crashes or hangs the decoder loses its "
            "row and does not end the training."
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "pretrain: share of words masked."})
    pem_threshold: float | None = field(
        default=None, metadata={"help": "pretrain: least probability of a pseudo-label that is learned from."}
    )
    num_entities: int | None = field(
        default=None, metadata={"help": "Entities to take from the top of the --entities file (default: all)."}
    )
    prompt_length: int = field(default=15, metadata={"help": "prompter: longest prompt of an entity in tokens."})
    num_answers: int | None = field(
        default=None,
        metadata={"help": "qa: answers to know, the most frequent of the training rows; --answers has precedence."},
    )
    data_weights: list[float] = field(
        default_factory=list,
        metadata={"help": "prompter, pretrain: relative frequency of each --data (default: all equal)."},
    )

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "num_frames", "image_frames", "image_size", "num_entities", "num_answers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}={value} must be at least 1.")
        if self.text_length is not None and self.text_length < 3:
            raise RecipeError(f"text_length={self.text_length} leaves no room for words; it must be at least 3.")
        unknown = [name for name in self.leave_out if name not in OPERATIONS]
        if unknown:
            raise RecipeError(f"leave_out names {', '.join(unknown)}; there are only {', '.join(OPERATIONS)}.")


FIELDS = tuple(one.name for one in dataclasses.fields(AlproRecipe))


@cache
def _options() -> dict[str, tuple[argparse.Action, ...]]:
    """Name of a value -> the options that the library's parser makes of it (switches have a second one, --no_...)."""
    described: Any = [AlproRecipe, AlproTrainingArguments]
    parser: Any = HfArgumentParser(described)
    found: dict[str, tuple[argparse.Action, ...]] = {}
    for action in parser._actions:
        if action.dest not in ("help", *_MANAGED):
            found[action.dest] = (*found.get(action.dest, ()), action)
    return found


def add_values(parser: argparse.ArgumentParser) -> None:
    """Give a parser an option for every value of a recipe. The namespace has those that were given, and no others."""
    own = parser.add_argument_group("values of a recipe, all of which may be given here (they win)")
    shared = parser.add_argument_group(
        "training arguments, as in a recipe; every other field of AlproTrainingArguments works the same"
    )
    for name, actions in _options().items():
        shown = name in FIELDS or name in _SHOWN
        for number, action in enumerate(actions):
            options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            options["help"] = action.help if shown and not number else argparse.SUPPRESS
            if action.nargs == 0:
                options["action"] = "store_false"
            else:
                options |= {"type": action.type, "nargs": action.nargs, "const": action.const}
                options |= {"choices": action.choices, "metavar": None if action.choices else "VALUE"}
            (own if name in FIELDS else shared).add_argument(*action.option_strings, **options)


def given_values(args: argparse.Namespace) -> dict[str, Any]:
    """The values on the command line, by name."""
    return {name: value for name, value in vars(args).items() if name in _options()}


def value_names() -> list[str]:
    """What a recipe may say, beside `task` and `description`."""
    return list(_options())


def recipe_names() -> list[str]:
    """The bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Read a recipe: a bundled one by its name, or a `.json`, `.yaml` or `.yml` file, which a finished run has too.

    Returns:
        Its values by key, with `task` and `description` where it has them.

    Raises:
        RecipeError: There is no such recipe, it is not of the format, or has an unknown key or a value of the wrong
            kind. The message names file, key and what comes close.
        OSError: The file cannot be read.
    """
    path = Path(name)
    if str(name) in recipe_names():
        path = RECIPES / f"{name}.json"
    elif not path.is_file():
        close = difflib.get_close_matches(str(name), recipe_names(), n=1)
        raise RecipeError(
            f"There is no recipe {str(name)!r}: it is neither a file nor one of {', '.join(recipe_names())}."
            + (f" Did you mean {close[0]}?" if close else "")
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no recipe, neither JSON nor (as .yaml) YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold one object of keys and values; it holds a {type(values).__name__}.")
    values.pop(RUN, None)
    return {key: _checked(path, key, value) for key, value in values.items()}


def _checked(path: Path, key: Any, value: Any) -> Any:
    options = _options()
    if key not in options and key not in _DESCRIBING:
        if key in _MANAGED:
            raise RecipeError(f"{path}: {key!r} is decided by the command itself (--output). Remove it.")
        close = difflib.get_close_matches(str(key), [*options, *_DESCRIBING], n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "See alpro train --help for those there are."
        raise RecipeError(f"{path}: unknown key {key!r}. {hint}")
    if key == "task" and value not in TASKS:
        raise RecipeError(f"{path}: task={value!r} is unknown. Use one of {', '.join(TASKS)}.")
    if key in _DESCRIBING or value is None:
        return value
    action = options[key][0]
    if action.nargs == "+":
        if not isinstance(value, list):
            raise RecipeError(f"{path}: {key}={value!r} must be a list.")
        return [_converted(path, key, action, one) for one in value]
    return _converted(path, key, action, value)


def _converted(path: Path, key: str, action: argparse.Action, value: Any) -> Any:
    """A value as the command line would make it of the same words."""
    is_switch = action.type is string_to_bool
    if not (is_switch or action.type in (int, float) or action.choices):
        return value  # words, or what the training arguments read in forms of their own
    fits = isinstance(value, bool | str) if is_switch else type(value) in (int, float, str)
    try:
        converted = action.type(str(value)) if fits and callable(action.type) else value
    except (ValueError, argparse.ArgumentTypeError):
        fits = False
    if fits and action.choices and converted not in action.choices:
        fits = False
    if fits:
        return converted
    kind = "true or false" if is_switch else "a whole number" if action.type is int else "a number"
    if action.choices:
        kind = f"one of {', '.join(map(str, action.choices))}"
    raise RecipeError(f"{path}: {key}={value!r} must be {kind}.")


def batch_per_device(global_batch_size: int, world_size: int, accumulation: int) -> int:
    """Rows of a process in a forward pass, so that all of a step are `global_batch_size`.

    Raises:
        RecipeError: It does not divide.
    """
    per_device, rest = divmod(global_batch_size, world_size * accumulation)
    if rest or not per_device:
        fitting = [number for number in range(1, global_batch_size + 1) if global_batch_size % number == 0]
        raise RecipeError(
            f"global_batch_size={global_batch_size} cannot be divided among {world_size} processes x "
            f"{accumulation} gradient_accumulation_steps. Their product must be one of "
            f"{', '.join(map(str, fitting))}; or change --global_batch_size."
        )
    return per_device


def recipe_table() -> str:
    """The bundled recipes, one a line."""
    lines = ["recipe             learning rate   batch  length         frames  text  clip  what it is"]
    for name in recipe_names():
        values: Mapping[str, Any] = read_recipe(name)
        length = (
            f"{values['max_steps']:,} steps" if "max_steps" in values else f"{values['num_train_epochs']:g} epochs"
        )
        lines.append(
            f"{name:<18} {values['learning_rate']:>13g}  {values['global_batch_size']:>6}  {length:<13}  "
            f"{values['num_frames']:>6}  {values['text_length']:>4}  {values['max_grad_norm']:>4g}  "
            f"{values['description']}"
        )
    return "\n".join(lines)


__all__ = [
    "TASKS",
    "AlproRecipe",
    "RecipeError",
    "add_values",
    "batch_per_device",
    "given_values",
    "read_recipe",
    "recipe_names",
    "recipe_table",
    "value_names",
]
