"""`alpro train`: the prompter, pre-training and fine-tuning by recipe."""

import argparse
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..training.curves import PICTURE
from ..training.recipe import TASKS, AlproRecipe, recipe_table
from ..training.settings import Setting, settings_of
from .options import Parser, complain

# Training arguments with a line of help. Their types stand in `AlproTrainingArguments`, a subclass of the library's
# `TrainingArguments`, which takes torch; so help describes them here, and the options are added when a command runs.
SHOWN = {
    "learning_rate": "Peak learning rate of AdamW.",
    "num_train_epochs": "Passes over the rows.",
    "max_steps": "Optimizer steps; above 0 it wins over the epochs.",
    "warmup_steps": "Steps of linear warm-up; below 1: their share of all steps.",
    "lr_scheduler_type": "Shape of the learning rate after warm-up: linear, cosine, constant, ...",
    "weight_decay": "Weight decay of AdamW.",
    "max_grad_norm": "Norm to which gradients are clipped.",
    "per_device_train_batch_size": "Rows of a device in a forward pass, instead of global_batch_size.",
    "gradient_accumulation_steps": "Forward passes of an optimizer step.",
    "gradient_checkpointing": "Switch: compute activations twice to save memory.",
    "checkpoint_layers": "With it: only so many first layers of the video tower are computed twice.",
    "freeze": "Towers that stay as they are (locked, as in LiT): video, text or both.",
    "freeze_layers": "First layers of the video tower that stay as they are, with its embeddings.",
    "feature_cache": "With --freeze video: folder of the tokens of clips, computed once, before the first step.",
    "bf16": "Switch: train in bfloat16.",
    "use_cpu": "Switch: train on the CPU even if there is a GPU.",
    "seed": "Seed of all random numbers.",
    "dataloader_num_workers": "Processes that decode for a device; 0: the training process does.",
    "logging_steps": "Steps between two lines of the log.",
    "save_strategy": "When checkpoints are saved: no, steps, epoch or best.",
    "save_steps": "Steps between two checkpoints.",
    "save_total_limit": "Checkpoints to keep; older ones are deleted.",
    "eval_strategy": "When --eval-data is evaluated on: no, steps or epoch.",
    "eval_steps": "Steps between two evaluations.",
    "per_device_eval_batch_size": "Rows of a device in a forward pass of an evaluation.",
    "report_to": "Trackers to report to, such as tensorboard or wandb.",
    "deepspeed": "Configuration file of DeepSpeed.",
    "vtc_weight": "Weight of the contrastive loss VTC in pre-training and retrieval.",
    "vtm_weight": "Weight of the matching loss VTM; in retrieval, 0 trains and saves the two towers alone.",
    "mlm_weight": "Weight of masked language modeling in pre-training.",
    "pem_weight": "Weight of prompting entity modeling in pre-training.",
    "vtm_negatives": "Where the hard negatives of VTM come from: local (the batch of a process) or global.",
    "contrastive_accumulation": "Switch: VTC contrasts all forward passes of an optimizer step (GradCache).",
    "eval_protocol": "Scores of retrieval: vtc, rerank or reference.",
    "rerank_k": "Candidates of a query that the protocol rerank reorders.",
    "train_sampling_strategy": "Order of the rows: random, sequential, ...",
}


def add_arguments(parser: Parser) -> None:
    """Describe `alpro train` to a parser."""
    parser.usage = (
        "alpro train [--task TASK] --recipe NAME --data ROWS [...] (--model START | --vision VIT --text BERT)\n"
        "                   --output DIR [--eval-data ROWS] [options] [--ANY_SETTING VALUE]"
    )
    parser.description = (
        "Train a model by a recipe: the prompter, the pre-training that it teaches, or a fine-tuning for retrieval\n"
        "or questions. DIR receives the model, its processor, and recipe.json with all settings of the run, versions\n"
        "and command. Started again, the command continues from the newest checkpoint in DIR.\n\n"
        "ROWS are JSON lines, CSV, Parquet or a folder of save_to_disk, with the columns\n"
        "  prompter, pretrain   video or image, text; optional: pseudo-labels of alpro pseudo-label\n"
        "  retrieval            video, text\n"
        "  qa                   video, question, answer; optional: answer_type\n"
        "and paths relative to the working directory. Or ROWS are KIND:PATH, published annotations, with --videos\n"
        "naming the folder of the clips."
    )
    parser.epilog = (
        "recipes, with the values of the paper (batch: rows of a step on all devices; clip: norm of the gradient);\n"
        "blip-retrieval is not of the paper, and its values were not tuned:\n  "
        + recipe_table().replace("\n", "\n  ")
        + "\n\n"
        "A recipe of your own is a JSON or YAML file of settings, for instance a copy of a bundled one or the\n"
        "recipe.json of an earlier run. If the memory is too small for the batch of a recipe, raise\n"
        "--gradient_accumulation_steps: the batch of a device is\n"
        "global_batch_size / (processes x gradient_accumulation_steps). Contrastive losses then see a smaller batch,\n"
        "unless --contrastive_accumulation is given.\n\n"
        "examples:\n"
        "  alpro train --recipe msrvtt-retrieval --data train.jsonl --eval-data test.jsonl --model my-pretrained \\\n"
        "      --output runs/msrvtt --bf16 --plot\n"
        "  alpro train --recipe msvd-qa --data train.jsonl --answers train_ans2label.json --model my-pretrained \\\n"
        "      --output runs/msvd --learning_rate 3e-5 --num_frames 8\n"
        "from BLIP, by its Hub id or as a folder of alpro convert:\n"
        "  alpro train --recipe blip-retrieval --data clips.jsonl --model Salesforce/blip-itm-base-coco \\\n"
        "      --output runs/mine --image_size 224\n"
        "from scratch, on your own videos and images:\n"
        "  alpro train --recipe prompter --data clips.jsonl images.parquet --vision VIT --text BERT \\\n"
        "      --entities entities.txt --output runs/prompter\n"
        "  alpro train --recipe pretrain --data clips.jsonl images.parquet --vision VIT --text BERT \\\n"
        "      --prompter runs/prompter --output runs/pretrain\n"
        "on 8 GPUs, either of:\n"
        "  torchrun --nproc_per_node 8 -m alpro_hf train --recipe pretrain ...\n"
        "  accelerate launch --num_processes 8 -m alpro_hf train --recipe pretrain ..."
    )
    parser.add_argument("--task", choices=TASKS, help="what to train for (default: the task of the recipe)")
    parser.add_argument("--recipe", required=True, metavar="NAME", help="a bundled recipe, see below, or a file")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="ROWS",
        help="rows to learn from; for prompter and pretrain one or more sources, of which each step draws one",
    )
    parser.add_argument("--eval-data", metavar="ROWS", help="rows to evaluate on during the training and at its end")
    parser.add_argument("--split", metavar="NAME", help="split of --data, if it has several")
    parser.add_argument("--eval-split", metavar="NAME", help="split of --eval-data, if it has several")
    parser.add_argument(
        "--videos",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folder of the clips of KIND:PATH, or one for each --data",
    )
    parser.add_argument("--eval-videos", type=Path, metavar="DIR", help="the same for --eval-data (default: --videos)")
    parser.add_argument(
        "--model",
        metavar="START",
        help="folder, Hub id or 'bundled' to start from: any ALPRO checkpoint, or BLIP for image-text retrieval",
    )
    parser.add_argument("--vision", metavar="VIT", help="folder or Hub id of a ViT to start from instead")
    parser.add_argument("--text", metavar="BERT", help="folder or Hub id of a BERT with its tokenizer, with --vision")
    parser.add_argument("--processor", metavar="DIR", help="folder or Hub id of the processor (default: START's)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run and its model")
    parser.add_argument("--prompter", metavar="DIR", help="pretrain: folder or Hub id of the teacher of PEM")
    parser.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="prompter: entities to make prompts for, as written by alpro entities; pretrain: names of the entities "
        "in the pseudo-labels of the rows, if there is no --prompter",
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="qa: JSON object from answer to index")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="let annotations (KIND:PATH) name clips outside of their folder, by .., links or absolute paths",
    )
    parser.add_argument("--plot", action="store_true", help=f"draw the curves into DIR/{PICTURE} at the end")
    own = parser.add_argument_group("settings of a recipe; given here, they win over the recipe")
    for setting in settings_of(AlproRecipe).values():
        _add_setting(own, setting)
    parser.add_argument_group(
        "training arguments, which are settings too; every other field of AlproTrainingArguments works the same",
        description="Each takes a value; a switch may also stand alone.\n"
        + "\n".join(_shown(name, text) for name, text in SHOWN.items()),
    )
    parser.add_unlisted = _add_training_arguments
    parser.set_defaults(
        expected_errors=_expected_errors, when_stopped="the same command continues from the newest checkpoint"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro train`; 143 when SIGTERM ended it, which saves a checkpoint, as Ctrl-C does."""
    from torch import distributed

    from ..training.run import TrainingRun, train

    finished = train(
        TrainingRun(
            recipe=args.recipe,
            data=args.data,
            output=args.output,
            settings=given_settings(args),
            task=args.task,
            model=args.model,
            vision=args.vision,
            text=args.text,
            processor=args.processor,
            eval_data=args.eval_data,
            split=args.split,
            eval_split=args.eval_split,
            videos=args.videos,
            eval_videos=args.eval_videos,
            prompter=args.prompter,
            entities=args.entities,
            answers=args.answers,
            allow_outside=args.allow_outside,
            plot=args.plot,
        )
    )
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # else torch warns at exit; trainings may follow in Python
    if finished:
        return 0
    message = "terminated; a checkpoint was saved, from which the same command continues"
    return complain(args, message, code=128 + signal.SIGTERM)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings on the command line, by name. One word is a list only where a setting must be one."""
    from ..training.recipe import settings

    known = settings()
    given = {name: value for name, value in vars(args).items() if name in known}
    return {
        name: value[0] if known[name].takes_list and known[name].takes_one and len(value) == 1 else value
        for name, value in given.items()
    }


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all fields of `AlproTrainingArguments`, without help."""
    from ..training.recipe import FIELDS, settings

    for name, setting in settings().items():
        if name not in FIELDS:
            _add_setting(parser, setting, shown=False)


def _add_setting(parser: Any, setting: Setting, *, shown: bool = True) -> None:
    """Add the option of a setting to a parser or a group; the namespace has it only if it was given.

    An option may be spelt with underscores, like the field, or with dashes. A switch that is on by default also has
    the option `--no_NAME`, as with the library's parser.
    """
    options: dict[str, Any] = {
        "dest": setting.name,
        "default": argparse.SUPPRESS,
        "help": setting.help if shown else argparse.SUPPRESS,
    }
    alone = {} if setting.alone is None else {"nargs": "?", "const": setting.alone}
    parser.add_argument(
        *_spellings(setting.name),
        **options,
        **({"nargs": "+"} if setting.takes_list else alone),
        **({"choices": setting.choices} if setting.choices else {"metavar": "VALUE", "type": _reader(setting)}),
    )
    if setting.default is True:
        parser.add_argument(
            *_spellings(f"no_{setting.name}"), **options | {"help": argparse.SUPPRESS}, action="store_false"
        )


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _reader(setting: Setting) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        try:
            return setting.parse(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _shown(name: str, text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=f"{f'--{name}':<32}", subsequent_indent=" " * 32)


def _expected_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError

    from ..training.run import DataLoadingError
    from ..training.trainer import DroppedRowsError, NonFiniteLossError

    # ValueError: the base of our own errors, and what the library says about training arguments
    return ValueError, DatasetsError, DataLoadingError, DroppedRowsError, NonFiniteLossError
