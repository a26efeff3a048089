"""Recipes: small files of settings for a training run, checked by name and type.

A recipe is a JSON or YAML object. Its keys are `task`, `description` and the fields of `AlproRecipe` and
`AlproTrainingArguments`. The bundled recipes hold the hyper-parameters of the paper (arXiv 2112.09583, implementation
details), and where it is silent those of the released code.

Importing this module imports no torch, so that the help of `alpro train` can list recipes and settings at once.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ..data.operations import OPERATIONS, RandAugment
from ..model.decoding_types import SamplingStrategy
from ..untrusted_json import MAX_DEPTH, JsonBoundsError, parse_json, read_bounded
from .settings import Setting, settings_of

Task = Literal["prompter", "pretrain", "retrieval", "qa"]
TASKS: tuple[Task, ...] = get_args(Task)
RECIPES = Path(__file__).parent / "recipes"
# key of a written recipe with facts about the run, such as versions; not a setting, and skipped when a recipe is read
RUN = "run"
# Training arguments that a run decides itself from `--output`, or that do nothing here.
_MANAGED = ("output_dir", "do_train", "do_eval", "do_predict", "local_rank", "resume_from_checkpoint")
_LARGEST = 1 << 18  # bytes of a recipe
_HUGE = 1e100
_MOST = 1 << 24  # of a setting that counts something; far more than any hardware has room for
_DESCRIBING = ("task", "description")  # keys of a recipe that are not settings


class RecipeError(ValueError):
    """A recipe or a setting cannot be used; the message names the file, the key and the remedy."""


@dataclass
class AlproRecipe:
    """Settings of a recipe besides the training arguments. None leaves the choice to the starting checkpoint."""

    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of one optimizer step on all devices; each device takes this divided by (processes x "
            "gradient_accumulation_steps)."
        },
    )
    num_frames: int | None = field(default=None, metadata={"help": "Frames of a clip."})
    image_frames: int | None = field(
        default=None, metadata={"help": "Frames of the clip that an image becomes (default: num_frames)."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Height and width of a frame in pixels."})
    text_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    fusion_layers: int | None = field(
        default=None,
        metadata={
            "help": "Fusion layers of a start without any, such as BLIP; they begin as copies of its last text layers."
        },
    )
    train_sampling: SamplingStrategy = field(
        default="headtail", metadata={"help": "How the frames of a clip are chosen in training."}
    )
    eval_sampling: SamplingStrategy | None = field(
        default=None, metadata={"help": "How frames are chosen in evaluation; saved with the processor."}
    )
    augmentation: Literal["pretrain", "finetune", "none"] = field(
        default="finetune",
        metadata={
            "help": "Random changes of frames: 'pretrain' (crops and RandAugment, with a variant for images), "
            "'finetune' (RandAugment), or 'none'."
        },
    )
    randaugment: RandAugment = field(
        default="released",
        metadata={
            "help": "Ranges and draws of RandAugment: 'released' (those of the original code), or 'torchvision' "
            "(stronger, in both directions)."
        },
    )
    drop_path_rate: float | None = field(
        default=None,
        metadata={
            "help": "Stochastic depth of the video tower: probability of dropping a branch of its last layer in "
            "training, 0.1 in the paper. It is saved with the model (default: that of the start)."
        },
    )
    patch_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Share of the patches of a clip that training leaves out, as in FLIP: 0.5 is about twice as fast "
            "in half the memory, at a cost in accuracy. It is saved with the model (default: that of the start)."
        },
    )
    leave_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Operations that RandAugment must not use, such as horizontal_flip if captions tell left from "
            f"right; any of {', '.join(OPERATIONS)}."
        },
    )
    isolate_decoding: bool = field(
        default=False,
        metadata={
            "help": "Decode clips in separate processes, so that a clip that crashes or hangs the decoder loses its "
            "row and does not end the training."
        },
    )
    lora: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Train low-rank updates (LoRA) instead of the weights: fields of peft.LoraConfig, such as "
            '{"r": 16}. All attention layers get updates, unless target_modules says otherwise. Needs PEFT.'
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "pretrain: share of words to mask."})
    pem_threshold: float | None = field(
        default=None, metadata={"help": "pretrain: lowest top probability of a pseudo-label that is learned from."}
    )
    num_entities: int | None = field(
        default=None, metadata={"help": "Entities to take from the start of the --entities file (default: all)."}
    )
    prompt_length: int = field(default=15, metadata={"help": "prompter: longest prompt of an entity in tokens."})
    prompt_templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "prompter: sentences with {entity}, in the language of the captions, used beside the templates of "
            'the paper, such as "a {entity} runs across the street".'
        },
    )
    crop_share: float = field(
        default=0.0,
        metadata={
            "help": "prompter: share of clips that training shows as a crop on black, as PEM will show them to the "
            "teacher; 0 in the paper."
        },
    )
    num_answers: int | None = field(
        default=None,
        metadata={
            "help": "qa: size of the answer list, the most frequent answers of the rows; --answers wins over it."
        },
    )
    data_weights: list[float] = field(
        default_factory=list,
        metadata={"help": "prompter, pretrain: relative frequency of each --data (default: equal)."},
    )

    def __post_init__(self) -> None:
        # null in a recipe is the default, which of a list is an empty one
        self.leave_out, self.data_weights = self.leave_out or [], self.data_weights or []
        self.prompt_templates = self.prompt_templates or []
        if wrong_templates := [one for one in self.prompt_templates if "{entity}" not in one]:
            raise RecipeError(f"prompt_templates has {wrong_templates[0]!r:.80}, without a place for the {{entity}}.")
        for name in ("global_batch_size", "num_frames", "image_frames", "image_size", "num_entities", "num_answers"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise RecipeError(f"{name}={value} must be at least 1 and at most {_MOST:,}.")
        if self.fusion_layers is not None and not 0 <= self.fusion_layers <= _MOST:
            raise RecipeError(f"fusion_layers={self.fusion_layers} must be at least 0 and at most {_MOST:,}.")
        if self.text_length is not None and self.text_length < 3:
            raise RecipeError(f"text_length={self.text_length} leaves no room for words; it must be at least 3.")
        for name in ("text_length", "prompt_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise RecipeError(f"{name}={value} must be at least 1 and at most {_MOST:,}.")
        for name in ("mlm_probability", "pem_threshold", "crop_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"{name}={value} must lie between 0 and 1.")
        if self.drop_path_rate is not None and not 0 <= self.drop_path_rate < 1:
            raise RecipeError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and below 1.")
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise RecipeError(f"patch_dropout={self.patch_dropout} must be at least 0 and below 1.")
        if wrong := [weight for weight in self.data_weights if not (math.isfinite(weight) and weight >= 0)]:
            raise RecipeError(f"data_weights has {wrong[0]}; a weight is a number of at least 0.")
        unknown = [name for name in self.leave_out if name not in OPERATIONS]
        if unknown:
            raise RecipeError(f"leave_out names {', '.join(map(str, unknown))}; choose from {', '.join(OPERATIONS)}.")


FIELDS = tuple(one.name for one in dataclasses.fields(AlproRecipe))


@cache
def settings() -> dict[str, Setting]:
    """All settings of a recipe by name: those of `AlproRecipe`, then those of `AlproTrainingArguments`."""
    from .arguments import AlproTrainingArguments  # takes torch, which a look at the bundled recipes does not need

    arguments = settings_of(AlproTrainingArguments)
    return settings_of(AlproRecipe) | {name: one for name, one in arguments.items() if name not in _MANAGED}


def check_settings(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings with values of the right types, where a text such as "1e-5" is read as on the command line.

    Args:
        values: Values by name.
        source: Where they come from, such as the path of a recipe; messages start with it.

    Raises:
        RecipeError: A name is unknown, or a value has the wrong type. The message names the nearest setting.
    """
    known = settings()
    checked = {}
    for name, value in values.items():
        if name in _MANAGED:
            raise RecipeError(f"{source}: {name!r} is decided by the command itself (--output). Remove it.")
        if name not in known:
            close = difflib.get_close_matches(str(name)[:80], [*known, *_DESCRIBING], n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else "See alpro train --help for the settings."
            raise RecipeError(f"{source}: unknown key {name!r:.80}. {hint}")
        try:
            checked[name] = known[name].check(value)
        except ValueError as error:
            raise RecipeError(f"{source}: {name}={error}") from error
    return checked


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Read a bundled recipe by its name, or a `.json`, `.yaml` or `.yml` file, such as the one a finished run wrote.

    Returns:
        Its values by key, with `task` and `description` where the recipe has them.

    Raises:
        RecipeError: There is no such recipe, the file is not valid, or it has an unknown key or a value of the wrong
            type. The message names the file, the key and the nearest known one.
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
        text = read_bounded(path, _LARGEST).decode("utf-8-sig")
        values = _parse_yaml(text) if path.suffix in (".yaml", ".yml") else parse_json(text)
    except JsonBoundsError as error:
        raise RecipeError(f"{path} is not a recipe{_field(error)}: {error}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{path} is not a recipe: it is not valid JSON or (as .yaml) YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold one object of keys and values; it holds a {type(values).__name__}.")
    values.pop(RUN, None)
    describing = {key: values.pop(key) for key in _DESCRIBING if key in values}
    if "task" in describing and describing["task"] not in TASKS:
        raise RecipeError(f"{path}: task={describing['task']!r:.80} is unknown. Use one of {', '.join(TASKS)}.")
    if not isinstance(describing.get("description", ""), str):
        raise RecipeError(f"{path}: description={describing['description']!r:.80} must be a text.")
    return describing | check_settings(values, str(path))


class _PlainLoader(yaml.SafeLoader):
    """Reads what JSON can express: texts, numbers, truth values, null, lists and objects; dates stay texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the library's way)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(("timestamp", "merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _parse_yaml(text: str) -> Any:
    """Parse YAML within the bounds of `parse_json`, and without references, which unfold to more than was written."""
    depth = 0
    for event in yaml.parse(text, _PlainLoader):
        place = f"in line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise JsonBoundsError(f"{place} there is a reference (& or *), which a recipe may not have")
        if str(getattr(event, "tag", None) or "!").lstrip("!"):
            raise JsonBoundsError(f"{place} there is the type {event.tag!r:.40}, which a recipe may not have")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise JsonBoundsError(f"{place} it is nested deeper than {MAX_DEPTH} levels")
    values = _PlainLoader(text).get_single_data()
    _check_numbers(values)
    return values


def _check_numbers(values: Any) -> None:
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            _check_numbers(value)
    elif isinstance(values, int | float) and not (abs(values) < _HUGE):  # also NaN
        raise JsonBoundsError(f"the number {values!r:.24} is not finite, or too large")


def _field(error: JsonBoundsError) -> str:
    return f", field {error.path[0]!r:.80}" if error.path else ""


def batch_per_device(global_batch_size: int, world_size: int, accumulation: int) -> int:
    """Rows of one process in one forward pass, for `global_batch_size` rows in each optimizer step.

    Raises:
        RecipeError: The batch cannot be divided evenly.
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
    """The bundled recipes with their main values, one a line."""
    lines = ["recipe             learning rate   batch  length         frames  text  clip  description"]
    for name in recipe_names():
        # not by `read_recipe`, which checks the values and takes torch; the bundled ones are checked by the tests
        values = parse_json((RECIPES / f"{name}.json").read_text(encoding="utf-8"))
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
    "batch_per_device",
    "check_settings",
    "read_recipe",
    "recipe_names",
    "recipe_table",
    "settings",
]
