"""`alpro train`: prompter, pre-training and fine-tuning by recipe, in one process or many.

A run is a recipe, rows and a starting checkpoint. What it came down to, every value of it, is written beside the model
as `recipe.json`, which is a recipe again. Source of the bundled ones: arXiv 2112.09583, implementation details.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..data.load_rows import is_labelled, load_rows, video_folders
from ..files import write_whole
from ..model.configuration_alpro import AlproConfig
from ..model.pretraining_alpro import AlproPrompterModel
from ..version import __version__
from .arguments import AlproTrainingArguments
from .callbacks import StopWhenTerminated
from .checkpoints import last_complete_checkpoint
from .curves import PICTURE, plot_runs
from .prompter import build_prompter
from .recipe import (
    FIELDS,
    RUN,
    TASKS,
    AlproRecipe,
    RecipeError,
    batch_per_device,
    given_values,
    read_recipe,
    value_names,
)
from .start import (
    TrainError,
    answer_labels,
    first_entities,
    make_collator,
    pem_entities,
    start_model,
    start_processor,
    training_rows,
)
from .trainer import DROPPED, AlproTrainer

RECIPE = "recipe.json"
_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "av", "numpy")
# values that may be others when a run goes on, because they have no part in what is learned
_HARMLESS = re.compile(
    r"logging_.*|log_.*|isolate_decoding|max_dropped_share|save_.*|eval_.*|dataloader_(?!drop_last).*|report_to|run_name|project|trackio_.*|hub_.*"
    r"|push_to_hub|disable_tqdm|ddp_.*|per_device_eval_batch_size|rerank_k|vtm_batch_size|description|skip_memory.*"
)


# ----------------------------------------------------------------------------------------------------------- arguments


def _complain(message: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    print(f"alpro train{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- a training


def train(args: argparse.Namespace) -> bool:
    """Train as the parsed arguments of `alpro train` say, and write everything to `args.output`.

    Returns:
        Whether the training came to its end; not so if SIGTERM ended it.
    """
    task, recipe, arguments, values = resolve(args)
    _check_arguments(args, task)
    say = print if arguments.process_index == 0 else _nothing
    outside = {"allow_outside": True} if args.allow_outside else {}
    with arguments.main_process_first(desc="rows"):  # the others find what the first one has cached
        sources = {
            spec: load_rows(spec, task, videos, args.split, args.output, **outside)
            for spec, videos in zip(args.data, video_folders(args.videos, len(args.data)), strict=True)
        }
        eval_rows = None
        if args.eval_data:
            videos = args.eval_videos or video_folders(args.videos, 1)[0]
            eval_rows = load_rows(args.eval_data, task, videos, args.eval_split, args.output, **outside)
    set_seed(arguments.seed)
    labels = answer_labels(args, task, recipe, list(sources.values()))
    entities = pem_entities(args, task, recipe, arguments, list(sources.values()))
    model: Any
    model, fresh = start_model(args, task, recipe, entities, labels)
    processor = start_processor(args, recipe, model.config)
    facts = _facts(args, arguments, model.config, {spec: len(rows) for spec, rows in sources.items()})
    checkpoint = _write_recipe(args.output, values, facts, arguments.process_index == 0)
    say(f"{task} by {args.recipe}: {', '.join(f'{spec} ({len(rows)} rows)' for spec, rows in sources.items())}")
    say(f"start: {facts['start']}" + (f"; new weights: {', '.join(fresh)}" if fresh else ""))
    say(
        f"batch: {arguments.per_device_train_batch_size} x {arguments.world_size} processes x "
        f"{arguments.gradient_accumulation_steps} accumulated; values in {args.output / RECIPE}"
    )
    if checkpoint:
        say(f"goes on from {checkpoint}")
    collator = make_collator(task, recipe, arguments, processor, model.config, entities)
    prompter = None
    if entities and args.prompter and task == "pretrain" and not all(map(is_labelled, sources.values())):
        prompter = AlproPrompterModel.from_pretrained(args.prompter)
    trainer: Any = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=training_rows(task, recipe, arguments, sources),
        eval_dataset=eval_rows,
        prompter=prompter,
        processing_class=processor,
        callbacks=[stop := StopWhenTerminated()],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.terminated and trainer.state.global_step < trainer.state.max_steps:
        return False
    trainer.save_model()
    trainer.save_state()
    if eval_rows is not None:
        metrics = _evaluation_at_the_end(trainer)
        trainer.save_metrics("eval", metrics, combined=False)
        say(json.dumps({key: value for key, value in metrics.items() if key.startswith("eval_")}, indent=1))
    if task == "prompter" and args.entities and arguments.process_index == 0:
        names = first_entities(args.entities, recipe)
        teacher = build_prompter(trainer.model, processor, names, max_length=recipe.prompt_length)
        teacher.save_pretrained(args.output)
        say(f"a prompter of {len(names)} entities")
    if args.plot and arguments.process_index == 0:
        plot_runs([args.output]).savefig(args.output / PICTURE)
        say(f"curves drawn in {args.output / PICTURE}")
    dropped = max((entry.get("dropped_rows", 0) for entry in trainer.state.log_history), default=0)
    if dropped:
        listed = f"the clips are listed with the reasons in {args.output / DROPPED}"
        say(f"{dropped} rows were dropped, as their clips cannot be decoded; {listed}", file=sys.stderr)
    say(f"model and processor saved in {args.output}")
    if arguments.world_size > 1:
        trainer.accelerator.end_training()
    return True


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What all processes but the first say."""


def resolve(args: argparse.Namespace) -> tuple[str, AlproRecipe, AlproTrainingArguments, dict[str, Any]]:
    """From the recipe and the command line: the task, our values, those of the Trainer, and all as one object.

    Raises:
        RecipeError: A value cannot be used, or the batch does not divide.
        ValueError: The training arguments contradict each other.
    """
    values = read_recipe(args.recipe)
    given = given_values(args)
    task = values.pop("task", None)
    if args.task and task and args.task != task:
        raise RecipeError(f"The recipe {args.recipe} is for the task {task!r}, not {args.task!r}. Name another.")
    task = args.task or task
    if task is None:
        raise RecipeError(f"The recipe {args.recipe} names no task. Add --task, one of {', '.join(TASKS)}.")
    description = values.pop("description", None)
    if not args.eval_data:
        if given.get("eval_strategy", "no") != "no":
            raise RecipeError(f"eval_strategy={given['eval_strategy']!r} needs rows to evaluate with: --eval-data.")
        values |= {"eval_strategy": "no", "load_best_model_at_end": False}
    if "per_device_train_batch_size" in given and "global_batch_size" not in given:
        values.pop("global_batch_size", None)
    values |= given
    recipe = AlproRecipe(**{name: value for name, value in values.items() if name in FIELDS})
    own = {name: value for name, value in values.items() if name not in FIELDS}
    arguments = AlproTrainingArguments(output_dir=str(args.output), **own | _batch(recipe, own))
    rows = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    if recipe.global_batch_size not in (None, rows):
        raise RecipeError(
            f"global_batch_size={recipe.global_batch_size}, but {arguments.world_size} processes x "
            f"{arguments.per_device_train_batch_size} rows x {arguments.gradient_accumulation_steps} accumulated are "
            f"{rows}. Leave out --per_device_train_batch_size, or start the processes with torchrun or accelerate."
        )
    recipe.global_batch_size = rows
    written = dataclasses.asdict(recipe) | arguments.to_dict()
    left_out = {"per_device_train_batch_size", "hub_token"}
    kept = {name: value for name, value in written.items() if name in value_names() and name not in left_out}
    return task, recipe, arguments, {"description": description, "task": task, **kept}


def _batch(recipe: AlproRecipe, own: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a device, unless it is given itself. Launchers tell the number of processes in the environment."""
    if recipe.global_batch_size is None or "per_device_train_batch_size" in own:
        return {}
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = own.get("gradient_accumulation_steps", 1)
    return {"per_device_train_batch_size": batch_per_device(recipe.global_batch_size, world_size, accumulation)}


def _check_arguments(args: argparse.Namespace, task: str) -> None:
    """Options that a task has no use for are mistakes, and better found now than after hours."""
    if (args.model is None) == (args.vision is None and args.text is None):
        raise TrainError("Say what to start from: --model START, or --vision VIT and --text BERT.")
    if args.model is None and (args.vision is None or args.text is None):
        raise TrainError("--vision and --text go together: a ViT and a BERT make the towers.")
    for option, value, tasks in (
        ("--prompter", args.prompter, ("pretrain",)),
        ("--entities", args.entities, ("prompter", "pretrain")),
        ("--answers", args.answers, ("qa",)),
    ):
        if value is not None and task not in tasks:
            raise TrainError(f"{option} has no part in the task {task!r}, only in {' and '.join(tasks)}. Remove it.")
    if args.prompter and args.entities:
        raise TrainError("The prompter knows its entities: give --prompter or --entities, not both.")
    if len(args.data) > 1 and task not in ("prompter", "pretrain"):
        raise TrainError(f"The task {task!r} learns from one --data; received {len(args.data)}. Join them in a file.")
    if len(set(args.data)) < len(args.data):
        raise TrainError(f"--data names a source twice: {', '.join(args.data)}. Use --data_weights to see one more.")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise TrainError('--plot needs matplotlib, which is not installed: pip install "alpro-hf[plot]"')


# ----------------------------------------------------------------------------------------------------- what is written


def _facts(
    args: argparse.Namespace, arguments: AlproTrainingArguments, config: AlproConfig, rows: Mapping[str, int]
) -> dict[str, Any]:
    """What a run was, beside its values."""
    start = args.model or f"{args.vision} + {args.text}"
    options = ("eval_data", "split", "eval_split", "eval_videos", "processor", "prompter", "entities", "answers")
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "recipe": args.recipe,
        "start": start,
        "start_revision": getattr(config, "_commit_hash", None),
        "data": dict(rows),
        "videos": [str(folder) for folder in args.videos or ()],
        **{name: str(value) for name in options if (value := getattr(args, name)) is not None},
        "processes": arguments.world_size,
        "per_device_train_batch_size": arguments.per_device_train_batch_size,
        "device": arguments.device.type,
        "versions": {
            "alpro-hf": __version__,
            "python": platform.python_version(),
            **{name: import_module(name).__version__ for name in _PACKAGES},
        },
    }


def _write_recipe(output: Path, values: Mapping[str, Any], facts: dict[str, Any], writes: bool) -> str | None:
    """Write `recipe.json` and return the checkpoint to go on from, which must be of the same recipe.

    Raises:
        TrainError: The folder holds a run of another recipe.
    """
    path = output / RECIPE
    checkpoint = last_complete_checkpoint(output)
    text = json.dumps({**values, RUN: facts}, indent=2, default=str, ensure_ascii=False) + "\n"
    if path.is_file() and checkpoint:
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        names = [name for name in now if name != RUN and not _HARMLESS.fullmatch(name)]
        changed = [
            f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in names if before.get(name) != now[name]
        ]
        for name in ("start", "data"):
            if before.get(RUN, {}).get(name) != now[RUN][name]:
                changed.append(f"{name} was {before.get(RUN, {}).get(name)!r}, is {now[RUN][name]!r}")
        if changed:
            raise TrainError(
                f"{output} holds a run by another recipe: {'; '.join(changed)}. To go on with that run, give the same "
                "values; for a new one, name another --output."
            )
    if writes:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return checkpoint


def _evaluation_at_the_end(trainer: AlproTrainer) -> dict[str, float]:
    """Metrics of the final weights: those of the log, if the training ended with an evaluation of them."""
    for entry in reversed(trainer.state.log_history):
        is_last = entry["step"] == trainer.state.global_step and not trainer.args.load_best_model_at_end
        if is_last and any(key.startswith("eval_") for key in entry):
            return entry
    return trainer.evaluate()


__all__ = ["RECIPE", "resolve", "train"]
