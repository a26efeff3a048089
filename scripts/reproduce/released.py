"""What the scripts of this folder share: from a folder of released files to a number beside the published one.

    RELEASED/
      checkpoints/  pretrained.pt prompter.pt msrvtt_ret.pt didemo_ret.pt msrvtt_qa.pt msvd_qa.pt
      vocab.txt     of bert-base-uncased
      entities.txt  one `noun count` a line, as released; needed for pre-trained checkpoints only
      msrvtt_ret/   txt/test.jsonl videos/                          (train.jsonl to train)
      didemo_ret/   txt/test.jsonl videos/
      msrvtt_qa/    txt/test.jsonl txt/train_ans2label.json videos/
      msvd_qa/      txt/test.jsonl txt/train_ans2label.json videos/
    and to pre-train
      webvid/       train.csv videos/
      cc3m/         train.json images/
      vit/ bert/    save_pretrained folders (default: --vision and --text)

The original release calls its checkpoints by other names: rename them, or link to them. Every command that runs is
printed; with --print none of them runs, which is the way to several GPUs: put torchrun in front of them.
"""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpro_hf import AlproProcessor, AlproPrompterModel
from alpro_hf.cli import main as cli
from alpro_hf.data.label_lists import read_entities
from alpro_hf.evaluation.encode import processes
from alpro_hf.evaluation.results import RESULTS, read_results
from alpro_hf.training.prompter import build_prompter


@dataclass(frozen=True)
class Benchmark:
    """A data set of the release: its task, recipe of fine-tuning, and what the model sees of a row."""

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
# what makes a training of a dry run small
SMALL = {
    **{"max_steps": 2, "global_batch_size": 4, "gradient_accumulation_steps": 1, "num_frames": 2, "image_size": 32},
    **{"num_entities": 7, "num_answers": 5, "dataloader_num_workers": 0, "dataloader_pin_memory": "false"},
    **{"save_strategy": "no", "eval_strategy": "no", "use_cpu": "true", "disable_tqdm": "true", "logging_steps": 1},
}


def retrieval(r1: float, r5: float, r10: float, median_rank: float | None = None) -> Published:
    """A row of a table of retrieval, text to video."""
    found = {"t2v_r1": r1, "t2v_r5": r5, "t2v_r10": r10}
    return found if median_rank is None else found | {"t2v_median_rank": median_rank}


def protocol(name: str) -> list[str]:
    """The option that names the protocol of the paper's tables, where the task has protocols."""
    return ["--protocol", "reference"] if BENCHMARKS[name].task == "retrieval" else []


class Run:
    """One script at work: every step is a command of `alpro`."""

    def __init__(self, args: argparse.Namespace, evaluation: Sequence[str]):
        self.args, self.evaluation = args, list(evaluation)
        self.output: Path = args.output
        self.released: Path = args.output / "released" if args.dry else args.released
        self.commands: list[str] = []

    def alpro(self, *words: object) -> int:
        """Print a command and run it."""
        argv = [str(word) for word in words]
        self.commands.append(shlex.join(["alpro", *argv]))
        print(f"$ {self.commands[-1]}", flush=True)
        return 0 if self.args.print else cli.main(argv)

    def convert(self, name: str, task: str) -> Path:
        """The model of a released checkpoint."""
        target = self.output / f"converted-{name}"
        options: list[object] = ["--vocab", self.released / "vocab.txt"]
        if task == "qa":
            options += ["--answers", self.released / name / "txt" / "train_ans2label.json"]
        if task in ("pretrain", "prompter") and (self.released / "entities.txt").is_file():
            options += ["--entities", self.released / "entities.txt"]
        if self.args.dry:
            from miniature import architecture

            options += architecture()
        checkpoint = self.args.checkpoint or self.released / "checkpoints" / f"{name}.pt"
        with processes().main_process_first():
            if not (target / "model.safetensors").is_file():
                self._need(
                    self.alpro("convert", "--checkpoint", checkpoint, "--task", task, "--output", target, *options)
                )
        return target

    def prompter(self, num_entities: int, ensembled: bool = True) -> Path:
        """The released prompter with prompts for the first so many entities, by all templates or one of each kind."""
        source, target = self.convert("prompter", "prompter"), self.output / "prompter"
        templates = {} if ensembled else {"video_templates": (ONE_VIDEO,), "image_templates": (ONE_IMAGE,)}
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
        """A training by recipe; values as on the command line."""
        target = self.output / output
        if self.args.dry:
            values = SMALL | values
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        self._need(self.alpro("train", "--recipe", recipe, "--output", target, *options, *words))
        return target

    def finetune(self, start: Sequence[object], name: str, **values: object) -> Path:
        """A fine-tuning by the recipe of a data set."""
        folder, benchmark = self.released / name, BENCHMARKS[name]
        options: list[object] = ["--data", f"released-{benchmark.task}:{folder / 'txt' / 'train.jsonl'}"]
        options += ["--videos", folder / "videos"]
        if benchmark.task == "qa":
            options += ["--answers", folder / "txt" / "train_ans2label.json"]
        return self.train("finetuned", benchmark.recipe, *start, *options, **values)

    def pretrain(self, *options: object, **values: object) -> Path:
        """The pre-training of the paper, on WebVid-2M and CC3M, from a ViT and a BERT."""
        options = (*self.sources(), *self.scratch(), *options)
        return self.train("pretrained", "pretrain", *options, **values)

    def sources(self) -> list[object]:
        """The rows of pre-training."""
        webvid, cc3m = self.released / "webvid", self.released / "cc3m"
        return [
            *("--data", f"webvid:{webvid / 'train.csv'}", f"cc3m:{cc3m / 'train.json'}"),
            *("--videos", webvid / "videos", cc3m / "images"),
        ]

    def scratch(self) -> list[object]:
        """A start without pre-training."""
        vision, text = self.args.vision or self.released / "vit", self.args.text or self.released / "bert"
        return ["--vision", vision, "--text", text]

    def evaluate(self, model: Path, name: str, published: Published, *options: object, **changed: int) -> None:
        """Measure a model on the test of a data set and put the numbers beside the published ones."""
        folder, benchmark = self.released / name, BENCHMARKS[name]
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
        if not (self.output / "results" / RESULTS).is_file():
            self._need(code)
        self._compare(published)

    def _compare(self, published: Published) -> None:
        results = read_results(self.output / "results")
        print(f"\n{'':18}{'published':>10}{'here':>8}   95 % interval")
        for name, value in published.items():
            low, high = results.intervals[name]
            where = "" if low <= value <= high else "   the published number is outside"
            print(f"{name:18}{value:10.1f}{results.metrics[name]:8.1f}   [{low:.1f}, {high:.1f}]{where}")
        if self.args.dry:
            print("A dry run: everything works, and the numbers mean nothing.")
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
    """Parse what all scripts take, make the miniature for a dry run, and go."""
    parser = argparse.ArgumentParser(
        description=doc, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--released", type=Path, metavar="DIR", help="folder of the released files, see below")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for all that is made")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the .pt file, where it is elsewhere")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the test.jsonl, where it is elsewhere")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="the clips of the test, where they are elsewhere")
    parser.add_argument("--vision", metavar="VIT", help="folder or Hub id of a ViT, to train from scratch")
    parser.add_argument("--text", metavar="BERT", help="folder or Hub id of a BERT, to train from scratch")
    parser.add_argument("--dry", action="store_true", help="go all the way on a miniature of the released files")
    parser.add_argument("--print", action="store_true", help="print the commands, run nothing")
    if add_options is not None:
        add_options(parser)
    args, evaluation = parser.parse_known_args(argv)  # all else is for alpro evaluate: --workers 8 --dtype auto
    if args.dry == (args.released is not None):
        parser.error("name the folder of the released files with --released, or try a miniature with --dry")
    run = Run(args, evaluation)
    if args.dry:
        from miniature import make_released

        with processes().main_process_first():
            make_released(run.released)
    os.makedirs(args.output, exist_ok=True)
    steps(run)
    return 0
