"""Measure what makes training cheaper: frozen towers, cached tokens, patch dropout, checkpointing. See run.py.

Speed and memory are those of a step of retrieval at base size, forward and backward, without data and optimizer. The
sides take turns. Recall is that of short trainings of the sprite world from one start, by the switches of the trainer.
"""

import argparse
import ctypes
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import alternate, write
from models import build, flops, texts
from pretraining_cost import kept_for_backward
from savings import scenes
from transformers import set_seed

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.evaluation.encode import encode_batches
from alpro_hf.evaluation.metrics import retrieval_metrics
from alpro_hf.model.matching_alpro import vtc_scores
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.frozen import PrepareLayers, freeze
from alpro_hf.training.trainer import AlproTrainer

ALL = "all weights, all patches"


class Way(NamedTuple):
    """A way to train.

    Args:
        arguments: Fields of `AlproTrainingArguments`.
        patch_dropout: Field of the video tower.
        cached: Whether the tokens of the clips are there.
        more_steps: How many times as many steps the measurement of recall takes.
    """

    arguments: dict[str, Any]
    patch_dropout: float = 0.0
    cached: bool = False
    more_steps: int = 1


def ways(layers: int) -> dict[str, Way]:
    """What is measured, for a video tower of so many layers."""
    half, checkpointing = layers // 2, {"activation_checkpointing": True}
    return {
        ALL: Way({}),
        "checkpointing, all layers": Way(checkpointing),
        f"checkpointing, {half} of {layers} video layers": Way(checkpointing | {"checkpoint_layers": half}),
        "patch dropout 0.5": Way({}, 0.5),
        "patch dropout 0.75": Way({}, 0.75),
        f"{half} of {layers} video layers frozen": Way({"freeze_layers": half}),
        f"{half} of {layers} video layers frozen, patch dropout 0.5": Way({"freeze_layers": half}, 0.5),
        "patch dropout 0.5, checkpointing": Way(checkpointing, 0.5),
        "video tower frozen": Way({"freeze": ["video"]}),
        "video tower frozen, cached tokens": Way({"freeze": ["video"]}, cached=True),
        "both towers frozen, cached tokens": Way({"freeze": ["video", "text"]}, cached=True),
    }


def arguments_of(way: Way, folder: str, **fields: Any) -> AlproTrainingArguments:
    """The training arguments of a way."""
    return AlproTrainingArguments(
        output_dir=folder, use_cpu=True, report_to=[], disable_tqdm=True, **way.arguments, **fields
    )


def prepare(model: Any, way: Way, args: AlproTrainingArguments) -> None:
    """Let a model learn in one way, whatever it did before, with the code of the trainer."""
    model.requires_grad_(True)
    model.activation_checkpointing_disable()
    model.config.video_config.patch_dropout = way.patch_dropout
    model.train()
    freeze(model, args)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    PrepareLayers().on_train_begin(args, None, None, model=model)


class Steps:
    """Steps of retrieval on one model, each in one of the ways.

    Args:
        arguments: `size` of the model, `batch` and `frames`.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.model = build(arguments.size)
        video = self.model.config.video_config
        side, batch = video.image_size, arguments.batch
        ids, mask = texts(batch, self.model.config.text_config.vocab_size)
        self.words = {"input_ids": ids, "attention_mask": mask}
        self.pixels = {"pixel_values_videos": torch.randn(batch, arguments.frames, 3, side, side)}
        patches = (side // video.patch_size) ** 2
        self.tokens = {"video_hidden_states": torch.randn(batch, 1 + patches, video.hidden_size)}
        self.ways = ways(video.num_hidden_layers)
        with tempfile.TemporaryDirectory() as folder:
            self.options = {name: arguments_of(way, folder) for name, way in self.ways.items()}

    def prepare(self, name: str) -> dict[str, torch.Tensor]:
        """Let the model learn in a way; what it reads."""
        prepare(self.model, self.ways[name], self.options[name])
        return self.words | (self.tokens if self.ways[name].cached else self.pixels)

    def run(self, name: str) -> None:
        """Forward and backward."""
        self.model(**self.prepare(name), return_loss=True).loss.backward()
        self.model.zero_grad()


def settings_of(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Some arguments, for the result."""
    return {name: getattr(arguments, name) for name in names}


def speed(arguments: argparse.Namespace) -> None:
    """Samples a second of a step, its operations, and what it keeps for the backward pass, by way."""
    steps, batch = Steps(arguments), arguments.batch
    found = alternate({name: partial(steps.run, name) for name in steps.ways}, arguments.rounds)
    rows = []
    for name, seconds in found.items():
        work = flops(partial(steps.run, name))
        kept = kept_for_backward(steps.model, steps.prepare(name))
        trained = sum(weight.numel() for weight in steps.model.parameters() if weight.requires_grad)
        rows.append(
            {
                "way": name,
                "samples/s": batch / seconds["wall"],
                "ratio wall": found[ALL]["wall"] / seconds["wall"],
                "ratio cpu": found[ALL]["cpu"] / seconds["cpu"],
                "TFLOP": work / 1e12,
                "kept MB a sample": kept / batch / 2**20,
                "gradients and AdamW MB": 12 * trained / 2**20,  # float32: gradient and two moments
            }
        )
    write(arguments.output, settings_of(arguments, "size", "batch", "frames", "rounds", "threads"), {"step": rows})


def memory(arguments: argparse.Namespace) -> None:
    """Resident memory of this process at its highest in a step, by way (Linux)."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: what is freed goes back to the system, and is not counted again
    steps = Steps(arguments)
    steps.run(ALL)  # what is allocated once does not count for the first way
    rows = []
    for name in steps.ways:
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, _ = _resident_mb()
        steps.run(name)
        _, peak = _resident_mb()
        rows.append({"way": name, "peak MB": peak, "over before MB": peak - before})
    for row in rows:
        row["ratio over"] = row["over before MB"] / rows[0]["over before MB"]
    write(arguments.output, settings_of(arguments, "size", "batch", "frames", "threads"), {"memory": rows})


def _resident_mb() -> tuple[float, float]:
    """Resident memory of this process: now, and at its highest since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def recall_of(model: Any, processor: Any, split: str, clips: int) -> float:
    """R@1 of text to video by `vtc`, in percent."""
    model.eval()
    with torch.inference_mode():
        states = encode_batches(model, scenes(split, clips, processor), keep_states=True)
        similarity = vtc_scores(states.text_embeds, states.video_embeds)
    return retrieval_metrics(similarity, states.text_to_video)["t2v_r1"]


def train_once(way: Way, rows: list[dict[str, Any]], seed: int, arguments: argparse.Namespace) -> tuple[Any, float]:
    """A model trained for a while from the common start, and the CPU seconds of it."""
    source = bundled_model(arguments.start)
    set_seed(seed)
    # the heads of another task are left out, and the temperature and projections are those that it started from
    model = AlproForVideoTextRetrieval.from_pretrained(source, attn_implementation="eager")
    model.config.video_config.patch_dropout = way.patch_dropout
    with tempfile.TemporaryDirectory() as folder:
        trainer = AlproTrainer(
            model=model,
            args=arguments_of(
                way,
                folder,
                max_steps=arguments.steps * way.more_steps,
                per_device_train_batch_size=arguments.batch,
                learning_rate=arguments.learning_rate,
                lr_scheduler_type="cosine",
                max_grad_norm=1.0,
                vtm_weight=0.0,
                train_sampling_strategy="sequential",
                logging_strategy="no",
                save_strategy="no",
                dataloader_pin_memory=False,
                seed=seed,
            ),
            data_collator=AlproCollator(AlproProcessor.from_pretrained(source)),
            train_dataset=rows,
        )
        started = time.process_time()
        trainer.train()
        return trainer.model, time.process_time() - started


def recall(arguments: argparse.Namespace) -> None:
    """R@1 after short trainings, by way; each seed has other clips and another order, the same for all ways."""
    source = bundled_model(arguments.start)
    start, processor = AlproForVideoTextRetrieval.from_pretrained(source), AlproProcessor.from_pretrained(source)
    layers = start.config.video_config.num_hidden_layers
    # checkpointing changes no bit, and cached tokens are those of the frozen tower: both are tested, not measured
    measured = {
        name: way
        for name, way in ways(layers).items()
        if not way.cached and "activation_checkpointing" not in way.arguments
    }
    measured["patch dropout 0.5, twice the steps"] = Way({}, 0.5, more_steps=2)
    splits = ("validation", "test")
    before = {split: recall_of(start, processor, split, arguments.clips) for split in splits}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in measured}
    for seed in range(arguments.seeds):
        longest = max(way.more_steps for way in measured.values())
        drawn = SpriteRows("retrieval", arguments.steps * arguments.batch * longest, seed=100 + seed)
        rows = [drawn[number] for number in range(len(drawn))]  # rendered once for all ways
        for name, way in measured.items():
            model, seconds = train_once(
                way, rows[: arguments.steps * arguments.batch * way.more_steps], seed, arguments
            )
            found[name].append(
                {"cpu s": seconds} | {split: recall_of(model, processor, split, arguments.clips) for split in splits}
            )
            print(name, seed, found[name][-1], flush=True)
        settings = settings_of(arguments, "start", "steps", "batch", "learning_rate", "clips", "threads")
        # after each seed, so that a run that is interrupted has a result
        write(arguments.output, settings | {"seeds": seed + 1}, {"recall": recall_table(before, found)})


def recall_table(before: dict[str, float], found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Means over the seeds, and the values of each."""
    table: list[dict[str, Any]] = [{"way": "the start"} | {f"R@1, {split}": value for split, value in before.items()}]
    for name, runs in found.items():
        row: dict[str, Any] = {"way": name}
        for split in before:
            values = [run[split] for run in runs]
            row[f"R@1, {split}"] = statistics.mean(values)
            row[f"{split}: seeds"] = ", ".join(f"{value:.1f}" for value in values)
        row["cpu s"] = statistics.mean(run["cpu s"] for run in runs)
        table.append(row)
    return table


def add_arguments(commands: Any) -> None:
    one = commands.add_parser("savings-training", help="speed of what makes training cheaper")
    one.add_argument("--rounds", type=int, default=2, help="of each side (default: %(default)s)")
    one.set_defaults(run=speed)
    three = commands.add_parser("savings-training-memory", help="memory of what makes training cheaper")
    three.set_defaults(run=memory)
    for command in (one, three):
        command.add_argument("--size", choices=["base", "sprites"], default="base", help="model (default: base)")
        command.add_argument("--batch", type=int, default=2, help="rows of a step (default: %(default)s)")
        command.add_argument("--frames", type=int, default=4, help="of a clip (default: %(default)s)")
    two = commands.add_parser("savings-training-recall", help="what cheaper training costs on the sprite world")
    two.add_argument(
        "--start", choices=["retrieval", "qa"], default="qa", help="bundled model to start from (default: qa)"
    )
    two.add_argument("--steps", type=int, default=60, help="of each training (default: %(default)s)")
    two.add_argument("--batch", type=int, default=64, help="rows of a step (default: %(default)s)")
    two.add_argument("--learning-rate", type=float, default=3e-4, help="peak of the rate (default: %(default)s)")
    two.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    two.add_argument("--clips", type=int, default=500, help="clips of a split (default: %(default)s)")
    two.set_defaults(run=recall)
    for name, command in (
        ("savings-training", one),
        ("savings-training-recall", two),
        ("savings-training-memory", three),
    ):
        command.add_argument("--output", default=name, help="name of the result in docs/benchmarks")
