"""The scripts of this folder read one folder of released files:

    RELEASED/
      checkpoints/  pretrained.pt prompter.pt msrvtt_ret.pt didemo_ret.pt msrvtt_qa.pt msvd_qa.pt
      vocab.txt     of bert-base-uncased
      entities.txt  one `noun count` per line, as released; for pre-trained checkpoints only
      msrvtt_ret/   txt/test.jsonl videos/                          (and txt/train.jsonl to train)
      didemo_ret/   txt/test.jsonl videos/
      msrvtt_qa/    txt/test.jsonl txt/train_ans2label.json videos/
      msvd_qa/      txt/test.jsonl txt/train_ans2label.json videos/
    only to pre-train:
      webvid/       train.csv videos/
      cc3m/         train.json images/
      vit/ bert/    save_pretrained folders (or name others with --vision and --text)

The original release has other names for its checkpoints: rename or link them. The scripts print each command before it
runs. To train on several GPUs, use --print, which runs nothing, and put torchrun in front of the printed commands.
Options that a script does not know go to `alpro evaluate`, such as --workers 8 or --dtype auto.
"""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpro_hf import AlproProcessor, AlproPrompterModel
from alpro_hf.cli.main import main as alpro
from alpro_hf.data.label_lists import read_entities
from alpro_hf.evaluation.encode import processes
from alpro_hf.evaluation.results import RESULTS, read_results
from alpro_hf.training.prompter import build_prompter


@dataclass(frozen=True)
class Benchmark:
    """A data set of the release: task, fine-tuning recipe, frames per clip and tokens per text."""

    task: str
    recipe: str
    num_frames: int
    text_length: int


BENCHMARKS = {
    "msrvtt_ret": Benchmark("retrieval", "msrvtt-retrieval", 8, 40),
    "didemo_ret": Benchmark("retrieval", "didemo-retrieval", 8, 50),
    "msrvtt_qa": Benchmark("qa", "msrvtt-qa", 16, 40),
    "msvd_qa": Benchmark("qa", "msvd-qa", 16, 40),
}
ONE_VIDEO, ONE_IMAGE = "A video of a {entity}.", "A photo of a {entity}."
Published = dict[str, float]
# values of `alpro train` that make the training of a dry run small
SMALL = {
    **{"max_steps": 2, "global_batch_size": 4, "gradient_accumulation_steps": 1, "num_frames": 2, "image_size": 32},
    **{"num_entities": 7, "num_answers": 5, "dataloader_num_workers": 0, "dataloader_pin_memory": "false"},
    **{"save_strategy": "no", "eval_strategy": "no", "use_cpu": "true", "disable_tqdm": "true", "logging_steps": 1},
}


def retrieval(r1: float, r5: float, r10: float, median_rank: float | None = None) -> Published:
    """Published text-to-video metrics under the names of `alpro evaluate`."""
    found = {"t2v_r1": r1, "t2v_r5": r5, "t2v_r10": r10}
    return found if median_rank is None else found | {"t2v_median_rank": median_rank}


def protocol(name: str) -> list[str]:
    """The option for the protocol of the paper's tables; empty for question answering, which has no protocols."""
    return ["--protocol", "reference"] if BENCHMARKS[name].task == "retrieval" else []


class Run:
    """Steps of a script. Each is a command of `alpro`, which is printed, run and recorded."""

    def __init__(self, args: argparse.Namespace, evaluation: Sequence[str]):
        self.args, self.evaluation = args, list(evaluation)
        self.output: Path = args.output
        self.released: Path = args.output / "released" if args.dry else args.released
        self.commands: list[str] = []

    def alpro(self, *words: object) -> int:
        """Print a command, and run it unless --print was given. Returns its exit code."""
        argv = [str(word) for word in words]
        self.commands.append(shlex.join(["alpro", *argv]))
        print(f"$ {self.commands[-1]}", flush=True)
        return 0 if self.args.print else alpro(argv)

    def convert(self, name: str, task: str) -> Path:
        """Convert a released checkpoint, unless that is done. Returns the folder of the model."""
        target = self.output / f"converted-{name}"
        options: list[object] = ["--overwrite", "--vocab", self.released / "vocab.txt"]
        if task == "qa":
            options += ["--answers", self.released / name / "txt" / "train_ans2label.json"]
        if task in ("pretrain", "prompter") and (self.released / "entities.txt").is_file():
            options += ["--entities", self.released / "entities.txt"]
        if self.args.dry:
            from miniature import architecture

            # the tiny checkpoints have another number of heads and fusion layer than the defaults
            options += architecture()
        checkpoint = self.args.checkpoint or self.released / "checkpoints" / f"{name}.pt"
        # under torchrun, one process converts and the others wait for the files
        with processes().main_process_first():
            if not (target / "model.safetensors").is_file():
                self._need(
                    self.alpro("convert", "--checkpoint", checkpoint, "--task", task, "--output", target, *options)
                )
        return target

    def prompter(self, num_entities: int, ensembled: bool = True) -> Path:
        """The released prompter with prompts for the first entities of the list.

        Args:
            num_entities: Number of entities.
            ensembled: Whether a prompt is the mean over all templates; else there is one template per kind of input.
        """
        source, target = self.convert("prompter", "prompter"), self.output / "prompter"
        templates = {} if ensembled else {"video_templates": (ONE_VIDEO,), "image_templates": (ONE_IMAGE,)}
        # no command of `alpro` does this: the line is a comment, so that the printed list stays a shell script
        self.commands.append(
            f"# build_prompter({source}, first {num_entities} entities, {templates or 'all templates'})"
        )
        print(self.commands[-1], flush=True)
        if not self.args.print:
            processor = AlproProcessor.from_pretrained(source)
            names = read_entities(self.released / "entities.txt")[:num_entities]
            model = AlproPrompterModel.from_pretrained(source)
            build_prompter(model, processor, names, **templates).save_pretrained(target)
            processor.save_pretrained(target)
        return target

    def train(self, output: str, recipe: str, *options: object, **values: object) -> Path:
        """Train by a recipe. `values` are options of `alpro train`. Returns the folder of the model."""
        target = self.output / output
        if self.args.dry:
            values = SMALL | values  # a value that the step itself varies wins
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        self._need(self.alpro("train", "--recipe", recipe, "--output", target, *options, *words))
        return target

    def finetune(self, start: Sequence[object], name: str, **values: object) -> Path:
        """Fine-tune by the recipe of a data set. `start` are the options that name the start."""
        folder, benchmark = self.released / name, BENCHMARKS[name]
        options: list[object] = ["--data", f"released-{benchmark.task}:{folder / 'txt' / 'train.jsonl'}"]
        options += ["--videos", folder / "videos"]
        if benchmark.task == "qa":
            options += ["--answers", folder / "txt" / "train_ans2label.json"]
        return self.train("finetuned", benchmark.recipe, *start, *options, **values)

    def pretrain(self, *options: object, **values: object) -> Path:
        """Pre-train as the paper does: on WebVid-2M and CC3M, from a ViT and a BERT."""
        options = (*self.sources(), *self.scratch(), *options)
        return self.train("pretrained", "pretrain", *options, **values)

    def sources(self) -> list[object]:
        """Options that name the rows of pre-training."""
        webvid, cc3m = self.released / "webvid", self.released / "cc3m"
        return [
            *("--data", f"webvid:{webvid / 'train.csv'}", f"cc3m:{cc3m / 'train.json'}"),
            *("--videos", webvid / "videos", cc3m / "images"),
        ]

    def scratch(self) -> list[object]:
        """Options that name a start without pre-training."""
        vision, text = self.args.vision or self.released / "vit", self.args.text or self.released / "bert"
        return ["--vision", vision, "--text", text]

    def evaluate(self, model: Path, name: str, published: Published, *options: object, **changed: int) -> None:
        """Evaluate a model on the test set of a data set, and compare the result with the published numbers."""
        folder, benchmark = self.released / name, BENCHMARKS[name]
        # frames and tokens are part of the protocol: the converted model may carry other defaults
        frames = changed.get("num_frames", benchmark.num_frames)
        code = self.alpro(
            *("evaluate", "--task", benchmark.task, "--model", model, *options),
            *("--data", f"released-{benchmark.task}:{self.args.annotations or folder / 'txt' / 'test.jsonl'}"),
            *("--videos", self.args.videos or folder / "videos"),
            *("--num-frames", frames, "--text-length", benchmark.text_length),
            *("--output", self.output / "results", *self.evaluation),
        )
        if self.args.print or not processes().is_main_process:
            return
        # clips that cannot be read give an exit code, but the results of the others stand
        if not (self.output / "results" / RESULTS).is_file():
            self._need(code)
        self._compare(published)

    def _compare(self, published: Published) -> None:
        results = read_results(self.output / "results")
        print(f"\n{'':18}{'published':>10}{'here':>8}   95 % interval")
        for name, value in published.items():
            low, high = results.intervals[name]
            where = "" if low <= value <= high else "   published number outside"
            print(f"{name:18}{value:10.1f}{results.metrics[name]:8.1f}   [{low:.1f}, {high:.1f}]{where}")
        if self.args.dry:
            print("This was a dry run: all steps work, but the numbers mean nothing.")
        record = {
            "published": published,
            "here": {name: results.metrics[name] for name in published},
            "intervals": {name: results.intervals[name] for name in published},
            "dry": self.args.dry,
            "commands": self.commands,
        }
        (self.output / "reproduction.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _need(self, code: int) -> None:
        if code:
            raise SystemExit(code)


def reproduce(
    doc: str | None,
    argv: Sequence[str] | None,
    steps: Callable[[Run], None],
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Parse the command line of a script, make the miniature for a dry run, and run its steps.

    Args:
        doc: Description for --help.
        argv: Words of the command line; None takes those of the process.
        steps: Function that runs the steps.
        add_options: Function that adds the options of this script alone.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        description=doc, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--released", type=Path, metavar="DIR", help="folder of the released files, as described below"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for models and results")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint (.pt), if it is not in --released")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="annotations of the test, if they are not in --released"
    )
    parser.add_argument("--videos", type=Path, metavar="DIR", help="clips of the test, if they are not in --released")
    parser.add_argument("--vision", metavar="VIT", help="folder or Hub id of the ViT that pre-training starts from")
    parser.add_argument("--text", metavar="BERT", help="folder or Hub id of the BERT that pre-training starts from")
    parser.add_argument("--dry", action="store_true", help="run all steps on a miniature of the released files")
    parser.add_argument("--print", action="store_true", help="print the commands and run none")
    if add_options is not None:
        add_options(parser)
    args, evaluation = parser.parse_known_args(argv)
    if args.dry == (args.released is not None):
        parser.error("give either --released with the folder of the released files, or --dry for a miniature of them")
    run = Run(args, evaluation)
    if args.dry:
        from miniature import make_released

        with processes().main_process_first():
            make_released(run.released)
    os.makedirs(args.output, exist_ok=True)
    steps(run)
    return 0
