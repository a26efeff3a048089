"""Can the video tower tell clockwise from counterclockwise? A classifier of single sprites, at several patch sizes.

    python scripts/sprites/spins.py --minutes 60 --output spins.json

The models of the package do not tell the two spins apart. This test says whether the tower can: without captions,
without other sprites, with nothing to learn but the spin. One classifier is trained for each patch size, on endless
clips of one spinning sprite, and each gets an equal share of the time. It is measured on new clips of combinations
that training shows (`seen`) and of those that `dev` alone shows (`dev`). Chance is 50 %. The control asks for another
pair of actions, such as --pair left right, which the tower is known to learn.

The file is written after each measurement. A run that was interrupted starts again.
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from classify import draw_single
from torch import nn

from alpro_hf import AlproVideoConfig, AlproVideoModel
from alpro_hf.files import write_text_whole
from alpro_hf.loading import fast_bfloat16
from alpro_hf.sprites.render import render
from alpro_hf.sprites.world import BASIC_PAIRS

SIZE, FRAMES, MEASURED = 64, 4, 400


def batch(split: str, pair: tuple[str, str], seeds: list[str], frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (B, T, 3, H, W) from -1 to 1, and labels int64 (B,)."""
    clips, labels = [], []
    for seed in seeds:
        scene, label = draw_single(split, pair, random.Random(f"spins/{split}/{seed}"))
        rng = random.Random(f"spins/{seed}/times")
        times = tuple((frame + rng.uniform(0.15, 0.85)) / frames for frame in range(frames))
        clips.append(torch.from_numpy(render(scene, times, SIZE)))
        labels.append(label)
    return torch.stack(clips).permute(0, 1, 4, 2, 3) / 127.5 - 1, torch.tensor(labels)


class Classifier(nn.Module):
    """The tower of the bundled models with a linear layer on its CLS token."""

    def __init__(self, patch: int, frames: int):
        super().__init__()
        shared = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
        config = AlproVideoConfig(
            **shared, image_size=SIZE, patch_size=patch, num_frames=frames, initializer_range=0.05,
            position_initializer_range=0.5,
        )  # fmt: skip
        config._attn_implementation = "eager"  # the fastest for short sequences on a CPU
        self.tower = AlproVideoModel(config)
        self.head = nn.Linear(192, 2)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(clips).pooler_output)


@torch.no_grad()
def accuracy(model: Classifier, split: str, pair: tuple[str, str], frames: int, count: int) -> float:
    """Percentage of new clips of a split that are told right."""
    model.eval()
    right = 0
    for start in range(0, count, 50):
        seeds = [f"measured/{i}" for i in range(start, min(start + 50, count))]
        clips, labels = batch(split, pair, seeds, frames)
        right += int((model(clips).argmax(dim=1) == labels).sum())
    model.train()
    return 100 * right / count


def train(patch: int, minutes: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one classifier, and return its curve."""
    torch.manual_seed(arguments.seed)
    pair, frames = tuple(arguments.pair), arguments.frames
    model = Classifier(patch, frames).train()
    half = fast_bfloat16(torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=1e-3)
    curve: list[dict[str, Any]] = []
    started, losses = time.time(), []
    for step in itertools.count(1):
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, step / 100)
        seeds = [f"{arguments.seed}/{step}/{i}" for i in range(arguments.batch)]
        clips, labels = batch("train-dev", pair, seeds, frames)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(clips)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        over = time.time() - started > 60 * minutes or step == arguments.steps
        if step % arguments.every == 0 or over:
            found = {
                "step": step,
                "minutes": round((time.time() - started) / 60, 2),
                "loss": round(sum(losses) / len(losses), 4),
                "seen": accuracy(model, "train-dev", pair, frames, arguments.measured),
                "dev": accuracy(model, "dev", pair, frames, arguments.measured),
            }
            losses = []
            curve.append(found)
            print(f"patch {patch}: {found}", flush=True)
        if over:
            return curve
    raise AssertionError  # the loop above has no end of its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the curves")
    parser.add_argument("--minutes", type=float, default=60, help="time of all trainings together (default: 60)")
    parser.add_argument("--steps", type=int, default=0, help="steps of a training at most (default: no limit)")
    parser.add_argument("--patches", type=int, nargs="+", default=[16, 8], help="patch sizes (default: 16 8)")
    parser.add_argument("--pair", nargs=2, default=["clockwise", "counterclockwise"], help="the two actions")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of a clip (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="clips of a step (default: %(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between measurements (default: %(default)s)")
    parser.add_argument("--measured", type=int, default=MEASURED, help="clips of a measurement (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if tuple(arguments.pair) not in BASIC_PAIRS:
        parser.error(f"--pair must be one of {', '.join(' '.join(pair) for pair in BASIC_PAIRS)}")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output} is in no folder that exists")
    torch.set_num_threads(arguments.threads)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    settings["bfloat16"] = fast_bfloat16(torch.device("cpu"))
    curves: dict[str, Any] = {}
    for patch in arguments.patches:
        curves[str(patch)] = train(patch, arguments.minutes / len(arguments.patches), arguments)
        write_text_whole(arguments.output, json.dumps({"settings": settings, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
