"""TODO docstring."""

import argparse
import signal
from pathlib import Path

from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..training.curves import PICTURE
from ..training.recipe import (
    TASKS,
    add_values,
    recipe_table,
)
from ..training.run import (
    _complain,
    train,
)
from ..training.trainer import DroppedRowsError, NonFiniteLossError
from .options import Terminated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro train` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    parser.usage = (
        "alpro train [--task TASK] --recipe NAME --data ROWS [...] (--model START | --vision VIT --text BERT)\n"
        "                   --output DIR [--eval-data ROWS] [options] [--any_value_of_the_recipe VALUE]"
    )
    parser.description = (
        "Train a model by a recipe: the prompter, the pre-training that it teaches, or a fine-tuning for retrieval\n"
        "or questions. The model comes to DIR with its processor, and with recipe.json: all values of the run,\n"
        "versions and command. Started again, the command goes on from the newest checkpoint in DIR.\n\n"
        "ROWS are JSON lines, CSV, Parquet or a folder of save_to_disk, with the columns\n"
        "  prompter, pretrain   video or image, text; optional: pseudo-labels of alpro pseudo-label\n"
        "  retrieval            video, text\n"
        "  qa                   video, question, answer; optional: answer_type\n"
        "and paths relative to the working directory; or KIND:PATH, annotations as their owners publish them, with\n"
        "--videos naming the folder of the clips."
    )
    parser.epilog = (
        "recipes, with the values of the paper (batch: rows of a step on all devices; clip: norm of the gradient):\n  "
        + recipe_table().replace("\n", "\n  ")
        + "\n\n"
        "A recipe of your own is a JSON or YAML file of such values, for instance a copy of one of these; the\n"
        "recipe.json of an earlier run is one, too. Where the memory is too small for the batch of a recipe, raise\n"
        "--gradient_accumulation_steps: the batch of a device is\n"
        "global_batch_size / (processes x gradient_accumulation_steps). Contrastive losses see a smaller batch then,\n"
        "unless --contrastive_accumulation.\n\n"
        "examples:\n"
        "  alpro train --recipe msrvtt-retrieval --data train.jsonl --eval-data test.jsonl --model my-pretrained \\\n"
        "      --output runs/msrvtt --bf16 --plot\n"
        "  alpro train --recipe msvd-qa --data train.jsonl --answers train_ans2label.json --model my-pretrained \\\n"
        "      --output runs/msvd --learning_rate 3e-5 --num_frames 8\n"
        "from scratch, on your own videos and images:\n"
        "  alpro train --recipe prompter --data clips.jsonl images.parquet --vision VIT --text BERT \\\n"
        "      --entities entities.txt --output runs/prompter\n"
        "  alpro train --recipe pretrain --data clips.jsonl images.parquet --vision VIT --text BERT \\\n"
        "      --prompter runs/prompter --output runs/pretrain\n"
        "on 8 GPUs, either of:\n"
        "  torchrun --nproc_per_node 8 -m alpro_hf train --recipe pretrain ...\n"
        "  accelerate launch --num_processes 8 -m alpro_hf train --recipe pretrain ..."
    )
    parser.add_argument("--task", choices=TASKS, help="what to train for (default: what the recipe is for)")
    parser.add_argument("--recipe", required=True, metavar="NAME", help="a bundled recipe, see below, or a file")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="ROWS",
        help="rows to learn from; for prompter and pretrain one or more sources, of which each step draws one",
    )
    parser.add_argument("--eval-data", metavar="ROWS", help="rows to evaluate with on the way and at the end")
    parser.add_argument("--split", metavar="NAME", help="split of --data, where it has several")
    parser.add_argument("--eval-split", metavar="NAME", help="split of --eval-data, where it has several")
    parser.add_argument(
        "--videos",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folder of the clips of KIND:PATH, or one for each --data",
    )
    parser.add_argument("--eval-videos", type=Path, metavar="DIR", help="the same for --eval-data (default: --videos)")
    parser.add_argument("--model", metavar="START", help="folder or Hub id of any ALPRO checkpoint to start from")
    parser.add_argument("--vision", metavar="VIT", help="start from an image model instead: folder or Hub id of a ViT")
    parser.add_argument("--text", metavar="BERT", help="and from this BERT, which must have its tokenizer")
    parser.add_argument("--processor", metavar="DIR", help="folder or Hub id of the processor (default: START's)")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the run and its model")
    parser.add_argument("--prompter", metavar="DIR", help="pretrain: folder or Hub id of the teacher of PEM")
    parser.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="prompter: entities to make prompts for, as written by alpro entities; pretrain: names of the entities "
        "in the pseudo-labels of the rows, where there is no --prompter",
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="qa: JSON object from answer to index")
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="let annotations (KIND:PATH) name clips outside of their folder, by .., links or absolute paths",
    )
    parser.add_argument("--plot", action="store_true", help=f"draw the curves into DIR/{PICTURE} at the end")
    add_values(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro train`; 1 with the reason on stderr when it failed, 130 when it was interrupted, and 143 when
    SIGTERM ended it, which saves a checkpoint."""
    wrong = (NonFiniteLossError, DroppedRowsError)
    expected = (OSError, ValueError, DatasetsError, StrictDataclassError, SafetensorError, *wrong)
    try:
        if not train(args):
            _complain("told to end; a checkpoint was saved, from which the same command goes on")
            return 128 + signal.SIGTERM
    except Terminated:  # before or after the steps, where there is nothing new to save
        _complain("told to end; the same command goes on from the newest checkpoint")
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        _complain("interrupted; the same command goes on from the newest checkpoint")
        return 130
    except expected as error:
        _complain(" ".join(str(error).split()))
        return 1
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch has no class of its own for it
            raise
        _complain(
            f"a data loading process died ({' '.join(str(error).split())}). The same command goes on from the newest "
            "checkpoint; with --isolate_decoding a clip that is too much for the decoder loses only its row"
        )
        return 1
    return 0
