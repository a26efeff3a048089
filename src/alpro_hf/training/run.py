"""A training by recipe: the prompter, pre-training or fine-tuning, in one process or in many.

`train` takes a `TrainingRun`, which has the options of `alpro train` as its fields. All settings of the run are
written to `recipe.json` in the folder of the model; that file is a recipe again. Source of the bundled recipes: arXiv
2112.09583, implementation details.
"""

import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import set_seed
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import logging

from ..adapters import lora_model, merged
from ..data.load_rows import is_labelled, load_rows, refuse_missing_files, video_folders, words_digest
from ..files import write_text_whole, write_whole
from ..loading import download_model, find_model
from ..model.configuration_alpro import AlproConfig
from ..model.pretraining_alpro import AlproPrompterModel
from ..trust import printable
from ..untrusted_json import read_json
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
    Task,
    batch_per_device,
    check_settings,
    read_recipe,
    recipe_names,
)
from .recipe import settings as known_settings
from .start import (
    TrainError,
    answer_labels,
    choose_sizes,
    first_entities,
    make_collator,
    own_sizes,
    pem_entities,
    start_model,
    start_processor,
    training_rows,
)
from .trainer import DROPPED, AlproTrainer

RECIPE = "recipe.json"
ADAPTER = "adapter"  # folder in the output folder, with the adapters that a training with `lora` has learned
# Settings that may change on resume, because they only say how the training is watched, saved or fed. All others must
# stay, and so must a setting that a later version of transformers adds, unless it has its default.
MAY_CHANGE_ON_RESUME = (
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "disable_tqdm",
    "eval_accumulation_steps",
    "eval_delay",
    "eval_do_concat_batches",
    "eval_on_start",
    "eval_protocol",
    "eval_sampling",
    "eval_steps",
    "eval_strategy",
    "eval_use_gather_object",
    "feature_cache",
    "hub_always_push",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "isolate_decoding",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "max_dropped_share",
    "per_device_eval_batch_size",
    "project",
    "push_to_hub",
    "report_to",
    "rerank_k",
    "run_name",
    "save_on_each_node",
    "save_only_model",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "skip_memory_metrics",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "vtm_batch_size",
)
# What runs of earlier versions did that wrote nothing of it, where that is not the default of now.
_DONE_BEFORE = {"randaugment": "torchvision"}
# Not written to recipe.json: the batch of a device follows from `global_batch_size`, and a token is a secret.
_NOT_WRITTEN = ("per_device_train_batch_size", "hub_token")
# trackers whose package on the index has another name
_TRACKER_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml"}
_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "av", "numpy")


class DataLoadingError(RuntimeError):
    """A process that loads data died, possibly out of memory or in a decoder that crashed."""


@dataclass
class TrainingRun:
    """Inputs and outputs of a training: the options of `alpro train`, under the same names.

    Either `model`, or `vision` and `text`, say what to start from.

    Args:
        recipe: A bundled recipe, or a JSON or YAML file, see `read_recipe`.
        data: Rows to learn from: a file or a folder of `save_to_disk`, or `KIND:PATH` for published annotations, see
            `load_rows`. The tasks `prompter` and `pretrain` take several sources.
        output: Folder of the run and of its model, made if it does not exist. If it holds a checkpoint of the same
            run, the training continues from there.
        settings: Settings that win over those of the recipe, by name.
        task: `prompter`, `pretrain`, `retrieval` or `qa`; None: the task of the recipe.
        model: Folder or Hub id of an ALPRO checkpoint or of BLIP for image-text retrieval, or `bundled`.
        vision, text: Folders or Hub ids of a ViT and of a BERT with its tokenizer.
        processor: Folder or Hub id of the processor; None: that of `model`.
        eval_data: Rows to evaluate on during the training and at its end.
        split, eval_split: Splits of `data` and `eval_data`, if they have several.
        videos: Folder of the clips of `KIND:PATH`, or one for each of `data`.
        eval_videos: The same for `eval_data`; None: the first of `videos`.
        prompter: Pre-training: folder or Hub id of the teacher of PEM.
        entities: Prompter: file of the entities to make prompts for. Pre-training: their names, where all rows have
            pseudo-labels and there is no `prompter`.
        answers: Question answering: JSON file from answer to index.
        allow_outside: Whether annotations may name clips outside their folder.
        plot: Whether to draw the curves at the end.
    """

    recipe: str | Path
    data: Sequence[str]
    output: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Task | None = None
    model: str | None = None
    vision: str | None = None
    text: str | None = None
    processor: str | None = None
    eval_data: str | None = None
    split: str | None = None
    eval_split: str | None = None
    videos: Sequence[Path] | None = None
    eval_videos: Path | None = None
    prompter: str | None = None
    entities: Path | None = None
    answers: Path | None = None
    allow_outside: bool = False
    plot: bool = False


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings of a run, once the recipe, the run and the number of processes are known.

    Args:
        task: What the training is for.
        recipe: The settings of ours.
        arguments: The training arguments, with the batch of a device.
        written: All settings for `recipe.json`, with `task` and `description`.
    """

    task: Task
    recipe: AlproRecipe
    arguments: AlproTrainingArguments
    written: dict[str, Any]


# ---------------------------------------------------------------------------------------------------------- a training


def train(run: TrainingRun) -> bool:
    """Train, and write the model, its processor, the log and `recipe.json` to `run.output`.

    The first process prints progress to stderr, and the metrics of the evaluation at the end to stdout. With several
    processes, all of them call this function.

    Returns:
        Whether the training reached its end. False: SIGTERM ended it after a step, and a checkpoint was saved.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training after a step, and a checkpoint was saved; or a second Ctrl-C.
        RecipeError, TrainError: The recipe, a setting or an input cannot be used, or `run.output` holds another run.
        RowsError, EntityListError: Rows or entities cannot be read.
        DataLoadingError: A data loading process died. The same call continues from the newest checkpoint.
        NonFiniteLossError, DroppedRowsError: See `AlproTrainer`.
        OSError, ValueError: A file is missing, or training arguments contradict each other.
    """
    stop = StopWhenTerminated()
    try:
        with quiet_libraries():
            return _train(run, stop)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch has no class of its own for it
            raise
        raise DataLoadingError(
            f"a data loading process died ({' '.join(str(error).split())}). The same command continues from the "
            "newest checkpoint. With --isolate_decoding, a clip that crashes the decoder loses only its row"
        ) from error
    finally:
        stop.restore()  # an error ends a training without its last callbacks


def _train(run: TrainingRun, stop: StopWhenTerminated) -> bool:
    resolved = resolve(run)
    task, recipe, arguments = resolved.task, resolved.recipe, resolved.arguments
    _check_inputs(run, task)
    if recipe.lora is not None and importlib.util.find_spec("peft") is None:
        raise TrainError('lora needs PEFT, which is not installed: pip install "alpro-hf[peft]"')
    if recipe.lora is not None and run.model is None:
        raise TrainError("lora leaves the weights as they are, so it needs a trained model to start from: --model.")
    _check_trackers(arguments)
    # a wrong name is reported now, and not after the rows were read
    for name in filter(None, (run.model, run.vision, run.text, run.prompter)):
        find_model(str(name), "qa" if task == "qa" else "retrieval")
    if run.processor:
        find_model(run.processor, needs=None)
    say = partial(_say, file=sys.stderr) if arguments.process_index == 0 else _nothing
    outside = {"allow_outside": True} if run.allow_outside else {}
    with arguments.main_process_first(desc="rows"):  # so that the other processes find the rows in the cache
        sources = {
            source: load_rows(source, task, videos, run.split, run.output, **outside)
            for source, videos in zip(run.data, video_folders(run.videos, len(run.data)), strict=True)
        }
        eval_rows = None
        if run.eval_data:
            videos = run.eval_videos or video_folders(run.videos, 1)[0]
            eval_rows = load_rows(run.eval_data, task, videos, run.eval_split, run.output, **outside)
    for source, rows in [*sources.items(), *([] if eval_rows is None else [(run.eval_data, eval_rows)])]:
        refuse_missing_files(str(source), rows)
    set_seed(arguments.seed)  # before the model is made, whose new weights are random
    labels = answer_labels(task, recipe, next(iter(sources.values())), run.answers)
    if task == "prompter" and run.entities:
        first_entities(run.entities, recipe)  # an unreadable list is reported now, and not after the training
    entities = None
    if task == "pretrain" and arguments.pem_weight > 0:
        entities = pem_entities(recipe, sources, prompter=run.prompter, entities=run.entities)
    own = own_sizes(
        model=run.model and find_model(run.model, "qa" if task == "qa" else "retrieval"),
        vision=run.vision,
        processor=run.processor and find_model(run.processor, needs=None),
    )
    bundled = read_recipe(run.recipe) if str(run.recipe) in recipe_names() else {}
    sizes = choose_sizes(recipe, own, run.settings, bundled)
    resolved.written.update({name: getattr(recipe, name) for name in own})
    model: Any
    model, fresh = start_model(task, recipe, entities, labels, model=run.model, vision=run.vision, text=run.text)
    processor = start_processor(recipe, model.config, processor=run.processor or run.model, text=run.text)
    facts = _facts(run, arguments, model.config, {source: len(rows) for source, rows in sources.items()})
    facts["words"] = {source: words_digest(rows, task) for source, rows in sources.items()}
    checkpoint = _write_recipe(run.output, resolved.written, facts, writes=arguments.process_index == 0)
    say(f"{task} by {run.recipe}: {', '.join(f'{source} ({len(rows)} rows)' for source, rows in sources.items())}")
    say(f"start: {facts['start']}" + (f"; new weights: {', '.join(fresh)}" if fresh else ""))
    say(
        f"batch: {arguments.per_device_train_batch_size} x {arguments.world_size} processes x "
        f"{arguments.gradient_accumulation_steps} accumulated; all settings are in {run.output / RECIPE}"
    )
    for line in sizes:
        say(line)
    if checkpoint:
        say(f"continues from {checkpoint}")
    if recipe.lora is not None:
        model = lora_model(model, recipe.lora)
        say(f"LoRA: {model.get_nb_trainable_parameters()[0]} trained weights of {model.num_parameters()}")
    prompter = None
    if entities and run.prompter and not all(map(is_labelled, sources.values())):
        prompter = AlproPrompterModel.from_pretrained(
            download_model(find_model(run.prompter)), trust_remote_code=False
        )
    trainer: Any = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=make_collator(task, recipe, arguments, processor, model.config, entities),
        train_dataset=training_rows(task, recipe, arguments, sources),
        eval_dataset=eval_rows,
        prompter=prompter,
        processing_class=processor,
        callbacks=[stop],
    )
    with redirect_stdout(sys.stderr):  # where the library prints its log
        learned = trainer.train(resume_from_checkpoint=checkpoint).metrics
    say(_used(trainer, learned))
    # A signal in the last step ends nothing early: the training is complete.
    if stop.stopped_by and trainer.state.global_step < trainer.state.max_steps:
        if stop.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        return False
    if recipe.lora is None:
        trainer.save_model()
    else:  # the folder holds a model like every other one, and the adapters alone have a folder of their own
        trainer.save_model(str(run.output / ADAPTER))
        if arguments.process_index == 0:
            merged(trainer.model).save_pretrained(run.output)
            processor.save_pretrained(run.output)
    trainer.save_state()
    if eval_rows is not None:
        with redirect_stdout(sys.stderr):
            metrics = _evaluation_at_the_end(trainer)
        trainer.save_metrics("eval", metrics, combined=False)
        if arguments.process_index == 0:
            print(json.dumps({key: value for key, value in metrics.items() if key.startswith("eval_")}, indent=1))
    if task == "prompter" and run.entities and arguments.process_index == 0:
        names = first_entities(run.entities, recipe)
        prompting: dict[str, Any] = {"more_templates": recipe.prompt_templates, "max_length": recipe.prompt_length}
        teacher = build_prompter(trainer.model, processor, names, **prompting)
        teacher.save_pretrained(run.output)
        say(f"a prompter of {len(names)} entities")
    if run.plot and arguments.process_index == 0:
        picture = plot_runs([run.output])
        write_whole(run.output / PICTURE, lambda partial: picture.savefig(partial, format="png"))
        say(f"curves drawn in {run.output / PICTURE}")
    dropped = max((entry.get("dropped_rows", 0) for entry in trainer.state.log_history), default=0)
    if dropped:
        listed = f"the clips are listed with the reasons in {run.output / DROPPED}"
        say(f"{dropped} rows were dropped because their clips cannot be decoded; {listed}")
    say(f"model and processor saved in {run.output}")
    return True


def _say(text: str, file: TextIO | None = None) -> None:
    """Print a text; names in it cannot steer the terminal."""
    print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)


def _used(trainer: AlproTrainer, learned: Mapping[str, float]) -> str:
    """What a training really used, in a sentence."""
    rows, steps, left_out = (int(learned[f"train_{name}"]) for name in ("rows", "steps", "rows_left_out"))
    total = f" (step {trainer.state.global_step} of {trainer.state.max_steps})"
    rest = f"; {left_out} rows did not fill a step and were left out" if left_out else ""
    return f"trained on {rows} rows in {steps} steps{total}{rest}"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the warnings and progress bars of the libraries out of what a training prints; errors stay."""
    verbosity = logging.get_verbosity()
    bars = not are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, FutureWarning, DeprecationWarning):
                warnings.filterwarnings(
                    "ignore", category=category, module=r"(torch|accelerate|transformers|datasets)\b"
                )
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars[0]:
            enable_progress_bars()
        if bars[1]:
            logging.enable_progress_bar()


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for `_say` in all processes but the first."""


def resolve(run: TrainingRun) -> ResolvedSettings:
    """Combine the recipe of a run with its settings, and divide the batch among the processes.

    Raises:
        RecipeError: A setting cannot be used, or the batch cannot be divided.
        ValueError: Training arguments contradict each other.
    """
    values = read_recipe(run.recipe)
    given = check_settings(run.settings, "settings")
    recipe_task = values.pop("task", None)
    if run.task and recipe_task and run.task != recipe_task:
        raise RecipeError(
            f"The recipe {run.recipe} is for the task {recipe_task!r}, not {run.task!r}. Name another recipe."
        )
    task = run.task or recipe_task
    if task not in TASKS:
        raise RecipeError(f"The recipe {run.recipe} names no task. Add --task, one of {', '.join(TASKS)}.")
    description = values.pop("description", None)
    if not run.eval_data:
        if given.get("eval_strategy", "no") != "no":
            raise RecipeError(f"eval_strategy={given['eval_strategy']!r} needs rows to evaluate with: --eval-data.")
        values |= {"eval_strategy": "no", "load_best_model_at_end": False}
    # The batch may be given for a device instead; then the one of the recipe does not count.
    if "per_device_train_batch_size" in given and "global_batch_size" not in given:
        values.pop("global_batch_size", None)
    values |= given
    if values.get("load_best_model_at_end") and values.get("metric_for_best_model") is None:
        # as the trainer chooses; here already, so that recipe.json names it
        values["metric_for_best_model"] = "accuracy" if task == "qa" else "t2v_r1"
    recipe = AlproRecipe(**{name: value for name, value in values.items() if name in FIELDS})
    if recipe.lora is not None and task == "pretrain":
        raise RecipeError("lora is for fine-tuning; pre-training learns all weights. Remove it, or name another task.")
    own = {name: value for name, value in values.items() if name not in FIELDS}
    arguments = AlproTrainingArguments(output_dir=str(run.output), **own | _batch(recipe, own))
    rows = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    if recipe.global_batch_size not in (None, rows):
        raise RecipeError(
            f"global_batch_size={recipe.global_batch_size}, but {arguments.world_size} processes x "
            f"{arguments.per_device_train_batch_size} rows x {arguments.gradient_accumulation_steps} accumulated are "
            f"{rows}. Leave out --per_device_train_batch_size, or start the processes with torchrun or accelerate."
        )
    recipe.global_batch_size = rows
    written = {
        name: value
        for name, value in (dataclasses.asdict(recipe) | arguments.to_dict()).items()
        if name in known_settings() and name not in _NOT_WRITTEN
    }
    return ResolvedSettings(task, recipe, arguments, {"description": description, "task": task, **written})


def _batch(recipe: AlproRecipe, own: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a device, unless it is given. Launchers set the number of processes in the environment."""
    if recipe.global_batch_size is None or "per_device_train_batch_size" in own:
        return {}
    # `arguments.world_size` says the same, but only once the arguments are made, which need the batch
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = own.get("gradient_accumulation_steps", 1)
    return {"per_device_train_batch_size": batch_per_device(recipe.global_batch_size, world_size, accumulation)}


def _check_inputs(run: TrainingRun, task: Task) -> None:
    """Refuse inputs that the task does not use: they are mistakes, and better found now than after hours."""
    if (run.model is None) == (run.vision is None and run.text is None):
        raise TrainError("Say what to start from: --model START, or --vision VIT and --text BERT.")
    if run.model is None and (run.vision is None or run.text is None):
        raise TrainError("--vision and --text go together: a ViT and a BERT make the towers.")
    for option, value, tasks in (
        ("--prompter", run.prompter, ("pretrain",)),
        ("--entities", run.entities, ("prompter", "pretrain")),
        ("--answers", run.answers, ("qa",)),
    ):
        if value is not None and task not in tasks:
            raise TrainError(f"{option} is not used by the task {task!r}, only by {' and '.join(tasks)}. Remove it.")
    if run.prompter and run.entities:
        raise TrainError("The prompter knows its entities: give --prompter or --entities, not both.")
    if len(run.data) > 1 and task not in ("prompter", "pretrain"):
        raise TrainError(f"The task {task!r} learns from one --data; received {len(run.data)}. Join them in a file.")
    if len(set(run.data)) < len(run.data):
        raise TrainError(
            f"--data names a source twice: {', '.join(run.data)}. Use --data_weights to draw one more often."
        )
    if run.plot and importlib.util.find_spec("matplotlib") is None:
        raise TrainError('--plot needs matplotlib, which is not installed: pip install "alpro-hf[plot]"')


def _check_trackers(arguments: AlproTrainingArguments) -> None:
    """Refuse trackers that are not installed; the library would find out after everything is loaded."""
    available = get_available_reporting_integrations()
    for name in arguments.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise TrainError(
                f"--report_to {name} is no tracker. Name one of {', '.join(INTEGRATION_TO_CALLBACK)}, or none."
            )
        if name not in available and name != "flyte":  # the library does not tell whether this one is there
            package = _TRACKER_PACKAGES.get(name, name)
            raise TrainError(
                f"--report_to {name} needs {name}, which is not installed: pip install {package}, or leave it out."
            )


# ----------------------------------------------------------------------------------------------------- what is written


def _facts(
    run: TrainingRun, arguments: AlproTrainingArguments, config: AlproConfig, rows: Mapping[str, int]
) -> dict[str, Any]:
    """Facts about a run besides its settings, for `recipe.json`."""
    inputs = {
        "eval_data": run.eval_data,
        "split": run.split,
        "eval_split": run.eval_split,
        "eval_videos": run.eval_videos,
        "processor": run.processor,
        "prompter": run.prompter,
        "entities": run.entities,
        "answers": run.answers,
    }
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "recipe": run.recipe,
        "start": run.model or f"{run.vision} + {run.text}",
        "start_revision": getattr(config, "_commit_hash", None),
        "data": dict(rows),
        "videos": [str(folder) for folder in run.videos or ()],
        **{name: str(value) for name, value in inputs.items() if value is not None},
        "processes": arguments.world_size,
        "per_device_train_batch_size": arguments.per_device_train_batch_size,
        "device": arguments.device.type,
        "versions": {
            "alpro-hf": __version__,
            "python": platform.python_version(),
            **{name: import_module(name).__version__ for name in _PACKAGES},
        },
    }


def _write_recipe(output: Path, values: Mapping[str, Any], facts: dict[str, Any], *, writes: bool) -> str | None:
    """Write `recipe.json`, and return the checkpoint to continue from.

    Args:
        output: Folder of the run.
        values: All settings, with `task` and `description`.
        facts: What comes under the key `run`.
        writes: Whether this process writes the file; all processes compare it.

    Raises:
        TrainError: The folder holds a run with other settings, another start or other rows.
    """
    path = output / RECIPE
    checkpoint = last_complete_checkpoint(output)
    text = json.dumps({**values, RUN: facts}, indent=2, default=str, ensure_ascii=False) + "\n"
    if path.is_file() and checkpoint:
        # `now` from its text, so that both have the types of JSON
        try:
            before = read_json(path)
            changed = _changes(before, json.loads(text)) if isinstance(before, dict) else ["it is no object"]
        except ValueError as error:
            raise TrainError(f"{path} is damaged ({error}). For a new run, name another --output.") from error
        if changed:
            raise TrainError(
                f"{output} holds a run by another recipe: {'; '.join(changed)}. To continue that run, give the same "
                "values; for a new one, name another --output."
            )
    if writes:
        output.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, text)
    return checkpoint


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences between two recipes of a run that make it another run, in words."""
    changed = []
    for name, value in now.items():
        if name in (RUN, "description", *MAY_CHANGE_ON_RESUME):
            continue
        # A setting that an earlier version did not have was at its default then, or see `_DONE_BEFORE`.
        default = known_settings()[name].default if name in known_settings() else None
        earlier = before.get(name, _DONE_BEFORE.get(name, default))
        if earlier != value:
            changed.append(f"{name} was {earlier!r}, is {value!r}")
    for name in ("start", "data"):
        earlier = before.get(RUN, {}).get(name)
        if earlier != now[RUN][name]:
            changed.append(f"{name} was {earlier!r}, is {now[RUN][name]!r}")
    words = before.get(RUN, {}).get("words", {})  # earlier versions did not write them
    for source, digest in now[RUN]["words"].items():
        if words.get(source, digest) != digest:
            changed.append(f"the rows of {source} have other texts, or another order")
    return changed


def _evaluation_at_the_end(trainer: AlproTrainer) -> dict[str, float]:
    """Metrics of the final weights: those of the log, if the training ended with an evaluation of them."""
    for entry in reversed(trainer.state.log_history):
        is_last = entry["step"] == trainer.state.global_step and not trainer.args.load_best_model_at_end
        if is_last and any(key.startswith("eval_") for key in entry):
            return entry
    return trainer.evaluate()


__all__ = [
    "ADAPTER",
    "MAY_CHANGE_ON_RESUME",
    "RECIPE",
    "DataLoadingError",
    "ResolvedSettings",
    "TrainingRun",
    "resolve",
    "train",
]
