"""Measure whether decoding and encoding wait for each other, while an index is built and in an evaluation. See run.py.

`decode` and `encode` are the two parts alone, and `both` is the real function. `elsewhere` is the same function with a
model that waits as long as it takes alone, with the interpreter's lock released, as for another device. The sides take
turns. On a machine that runs other programs, compare `cpu s`: it shows what running both at once costs in addition.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from common import write
from decoding import SIZES, clip

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.assets import bundled_model
from alpro_hf.evaluation.encode import encode_rows
from alpro_hf.inference.index_encode import encode_videos
from alpro_hf.model.decoding import probe
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene

Encode = Callable[[torch.Tensor], Any]
SPRITES = 64  # height of the clips of the sprite world


class Work:
    """One way to go through the clips, by a model whose video tower is replaced for each side."""

    def __init__(self, model: Any, processor: Any, files: list[Path], batch: int) -> None:
        self.model, self.processor, self.files, self.batch = model, processor, files, batch
        self.encode: Encode = model.alpro.get_video_features
        self.pixels: list[torch.Tensor] = []  # batches, as the function gives them to the model
        self.nothing: Any = None

    def index(self) -> None:
        for _ in encode_videos(self.model, self.processor, self.files, self.batch, keep_tokens=False):
            pass

    def evaluate(self) -> None:
        rows = [{"video": str(file), "text": "a dog moves"} for file in self.files]
        encode_rows(self.model, self.processor, rows, batch_size=self.batch, keep_states=False)

    def sides(self, run: Callable[[], None]) -> dict[str, Callable[[], None]]:
        """Decoding alone, encoding alone, and both."""

        def replaced(encode: Encode) -> None:
            self.model.alpro.get_video_features = encode
            try:
                run()
            finally:
                del self.model.alpro.get_video_features

        def keep(pixels: torch.Tensor) -> Any:
            self.pixels.append(pixels.clone())
            output = self.encode(pixels)
            self.nothing = SimpleNamespace(
                pooler_output=output.pooler_output[:1], last_hidden_state=output.last_hidden_state[:1]
            )
            return output

        def blank(pixels: torch.Tensor) -> Any:
            pooled, states = self.nothing.pooler_output, self.nothing.last_hidden_state
            return SimpleNamespace(
                pooler_output=pooled.expand(len(pixels), -1), last_hidden_state=states.expand(len(pixels), -1, -1)
            )

        def encode_all() -> None:
            with torch.inference_mode():
                for batch in self.pixels:
                    self.encode(batch)

        self.pixels.clear()
        replaced(keep)
        started = time.perf_counter()
        encode_all()
        each = (time.perf_counter() - started) / len(self.files)

        def elsewhere(pixels: torch.Tensor) -> Any:
            time.sleep(each * len(pixels))
            return blank(pixels)

        self.seconds_elsewhere = each * len(self.files)
        return {
            "decode": lambda: replaced(blank),
            "encode": encode_all,
            "both": run,
            "elsewhere": lambda: replaced(elsewhere),
        }


def measured(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each side."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (median(wall for wall, _ in found), median(cpu for _, cpu in found)) for name, found in times.items()
    }


def row(name: str, work: Work, run: Callable[[], None], rounds: int, seconds: float) -> dict[str, Any]:
    """Times of one function, with the ratios that tell of waiting."""
    found = measured(work.sides(run), rounds)
    cores = min(os.cpu_count() or 1, max(2, torch.get_num_threads()))
    decode, encode, both, elsewhere = (found[side] for side in ("decode", "encode", "both", "elsewhere"))
    table: dict[str, Any] = {"work": name}
    for side, (wall, cpu) in found.items():
        table |= {f"{side} wall s": wall, f"{side} cpu s": cpu}
    return table | {
        "elsewhere / slower of the two": elsewhere[0] / max(decode[0], work.seconds_elsewhere),
        "both / cpu s by cores": both[0] / ((decode[1] + encode[1]) / cores),
        "cpu of both / sum": both[1] / (decode[1] + encode[1]),
        "video s / s": seconds / both[0],
    }


def run(arguments: argparse.Namespace) -> None:
    """Measure building an index and encoding for an evaluation, on rendered clips."""
    torch.manual_seed(0)
    source = bundled_model("retrieval")
    processor = AlproProcessor.from_pretrained(source)
    model: Any = AlproForVideoTextRetrieval.from_pretrained(source)
    if arguments.size == "base":
        model = AlproForVideoTextRetrieval(AlproConfig())
        video = processor.video_processor
        video.size, video.num_frames = {"height": 224, "width": 224}, 8
    model.eval()
    rows = []
    for height in arguments.heights:
        with tempfile.TemporaryDirectory() as name:
            files = [Path(name) / f"{number:04d}.mp4" for number in range(arguments.clips)]
            for number, file in enumerate(files):
                if height == SPRITES:
                    write_clip(file, draw_scene("validation", 0, number), size=SPRITES)
                else:
                    file.symlink_to(clip("h264", height, 250, 5))
            work = Work(model, processor, files, arguments.batch)
            length = sum(probe(file).duration for file in files)
            for task, function in (("index", work.index), ("evaluate", work.evaluate)):
                rows.append(row(f"{task}, {height}p", work, function, arguments.rounds, length))
    settings = {key: value for key, value in vars(arguments).items() if key != "run"}
    write(arguments.output, settings, {"overlap": rows})


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("overlap", help="whether decoding and encoding wait for each other")
    command.add_argument("--clips", type=int, default=300, help="of each height (default: %(default)s)")
    command.add_argument(
        "--heights",
        type=int,
        nargs="+",
        choices=[SPRITES, *SIZES],
        default=[SPRITES],
        help=f"of the clips: {SPRITES} for scenes of the sprite world, more for textures (default: {SPRITES})",
    )
    command.add_argument("--size", choices=["base", "sprites"], default="sprites", help="model (default: sprites)")
    command.add_argument("--batch", type=int, default=8, help="clips encoded at a time (default: %(default)s)")
    command.add_argument("--rounds", type=int, default=3, help="of each side (default: %(default)s)")
    command.add_argument("--output", default="overlap", help="name of the result in docs/benchmarks")
    command.set_defaults(run=run)
