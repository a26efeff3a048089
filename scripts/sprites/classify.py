"""The first stages of the bundled models: the video tower learns classes of stills and clips of one sprite.

The paper starts from towers that know pictures and language (section 4.1). From random weights, the contrastive loss
needs 1,500 steps with clips of one sprite before it tells left from right, and never learns spins. The classes are
what a clip shows. A still is a clip of one frame: the name of the sprite and its tilt. A longer clip has an action and
a tilt in each frame. A spin is several tilts together; none alone says anything about it, so a tower that knows no
tilts has nothing to start from.

Stills show all sprites of the split turned by any angle, those whose spins are held out, too: a still has no direction
of turning. A third of the stills are crops on black, as the teacher of PEM sees them. Names are learned from stills
alone, because a name and an action together would teach which are held out.

    python scripts/sprites/train.py stills --output runs/sprites
    python scripts/sprites/train.py classify --output runs/sprites
    python scripts/sprites/classify.py runs/sprites/classify --output classify.json

The second command measures the classifiers on new clips of combinations that training shows (`seen`) and of those
that `dev` alone shows (`dev`).
"""

import argparse
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from crops import HELD, draw_box, on_black, shares_inside
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.modeling_outputs import ImageClassifierOutput

from alpro_hf import AlproConfig, AlproModel, AlproProcessor
from alpro_hf.files import write_text_whole
from alpro_hf.model.loss_alpro import IGNORE_INDEX
from alpro_hf.model.modeling_alpro import AlproWithTowers
from alpro_hf.sprites.render import render
from alpro_hf.sprites.world import (
    BASIC_ACTIONS,
    BASIC_PAIRS,
    SPRITES,
    Actor,
    Scene,
    allowed_actions,
    pick,
    pose,
    stage,
)

SPINS = ("clockwise", "counterclockwise")
SPIN_SHARE = 0.5  # of the clips
UPRIGHT_SHARE, CROP_SHARE = 0.2, 1 / 3  # of the stills
GRID = 4  # patches in a row and in a column; a crop has whole patches
TILTS = 12  # classes of tilts, 30 degrees each
MEASURED_SEED = 99  # of clips that no training draws


@cache
def able_sprites(split: str, action: str) -> tuple[str, ...]:
    """The sprites that may do an action in a split."""
    return tuple(sprite for sprite in SPRITES if action in allowed_actions(split, sprite))


def draw_single(split: str, pair: tuple[str, str], rng: random.Random) -> tuple[Scene, int]:
    """A scene of one sprite that does one of a pair of actions, and which of the two."""
    label = int(rng.random() < 0.5)
    sprite = pick(rng, able_sprites(split, pair[0]))
    return stage(("one", ((sprite, pair[label]),)), rng), label


def tilt_class(angle: float) -> int:
    """The class of a clockwise tilt in degrees; 0 is upright."""
    return round(angle * TILTS / 360) % TILTS


def turned(actor: Actor, time: float, angle: float) -> Actor:
    """The actor as it is at a moment, opaque, turned clockwise by an angle in degrees, and at rest."""
    x, y, scale, *_ = pose(actor, time)
    # a spin by nothing
    return replace(actor, action=SPINS[0], x=x, y=y, size=actor.size * scale, amount=0.0, angle=angle)


class SingleSprites(Dataset):
    """Clips of one sprite with their classes: see the module.

    Args:
        length: Number of rows; each is a pure function of (seed, index).
        seed: Seed of scenes and moments.
        num_frames, size, split: As for `SpriteRows`.
    """

    def __init__(self, length: int, *, seed: int, num_frames: int, size: int, split: str):
        self.length = length
        self.seed = seed
        self.num_frames = num_frames
        self.size = size
        self.split = split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"Row {index} of {self.length}.")
        rng = random.Random(f"single sprites/{self.split}/{self.seed}/{index}")
        pair = SPINS if rng.random() < SPIN_SHARE and self.num_frames > 1 else pick(rng, BASIC_PAIRS)
        scene, _ = draw_single(self.split, pair, rng)
        times = tuple((frame + rng.uniform(0.15, 0.85)) / self.num_frames for frame in range(self.num_frames))
        [actor] = scene.actors
        name, action = IGNORE_INDEX, BASIC_ACTIONS.index(actor.action)
        if self.num_frames == 1:
            angle = 0.0 if rng.random() < UPRIGHT_SHARE else rng.uniform(-180, 180)
            actor = turned(actor, times[0], angle)
            scene = replace(scene, actors=(actor,))
            name, action = SPRITES.index(actor.sprite), IGNORE_INDEX
        video = render(scene, times, self.size)
        if self.num_frames == 1 and rng.random() < CROP_SHARE:
            boxes = (draw_box(rng, GRID) for _ in itertools.count())
            video = on_black(video, next(box for box in boxes if shares_inside(scene, box)[actor.sprite] >= HELD))
        tilts = (tilt_class(pose(actor, time).angle) for time in times)
        return {"video": video, "classes": (name, action, *tilts)}


class ClassesCollator:
    """Makes the batch of `SpriteClassifier` of rows of `SingleSprites`."""

    def __init__(self, processor: AlproProcessor):
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        # as the frames of one clip: the video processor has a high cost per clip
        frames = torch.from_numpy(np.concatenate([row["video"] for row in rows])).permute(0, 3, 1, 2)
        pixels = self.processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")
        clips = pixels["pixel_values_videos"][0].unflatten(0, (len(rows), -1))
        return {"pixel_values_videos": clips, "labels": torch.tensor([row["classes"] for row in rows])}


class SpriteClassifier(AlproWithTowers):
    """A video tower with a classifier of names, one of actions, and one of tilts for each frame.

    The text tower is there, and is not trained: `AlproModel.from_pretrained` reads the folder of this model.
    """

    training_inputs = ("pixel_values_videos", "labels")
    training_losses: ClassVar[dict[str, tuple[str, ...]]] = {"loss": ()}

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        self.alpro = AlproModel(config)
        # as many classes of each kind as of names, most of them without a clip, so that all fit in one tensor
        self.kinds = 2 + config.video_config.num_frames
        self.classifier = nn.Linear(config.video_config.hidden_size, self.kinds * len(SPRITES))
        self.post_init()

    def forward(self, pixel_values_videos: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Classify clips (B, T, 3, H, W): logits (B, names, 2 + T), `labels` int64 (B, 2 + T)."""
        hidden_states = self.alpro.video_model(pixel_values_videos).pooler_output
        logits = self.classifier(hidden_states).float().unflatten(1, (len(SPRITES), self.kinds))
        logits = logits[..., : 2 + pixel_values_videos.shape[1]]
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


@torch.no_grad()
def measure(
    model: SpriteClassifier, processor: AlproProcessor, split: str, count: int, batch: int = 100
) -> dict[str, float]:
    """Percentages of new stills and clips that are told right: names and tilts of stills, and each action of clips.

    Stills are turned and cropped as in training. A tilt is right if it is within a class of the true one, which is 45
    degrees at most.
    """
    video = model.config.video_config
    collator, right = ClassesCollator(processor), defaultdict(list)
    for frames in (1, video.num_frames):
        rows = SingleSprites(count, seed=MEASURED_SEED, num_frames=frames, size=video.image_size, split=split)
        for start in tqdm(range(0, count, batch), desc=f"{split}, {frames} frames", unit="batch", leave=False):
            inputs = collator([rows[index] for index in range(start, min(start + batch, count))])
            found = model(inputs["pixel_values_videos"]).logits.argmax(dim=1)
            for (name, action, tilt, *_), (true_name, true_action, true_tilt, *_) in zip(
                found.tolist(), inputs["labels"].tolist(), strict=True
            ):
                if frames == 1:
                    off = (tilt - true_tilt) % TILTS
                    right["names"].append(name == true_name)
                    right["tilts"].append(min(off, TILTS - off) <= 1)
                else:
                    right[BASIC_ACTIONS[true_action]].append(action == true_action)
    percent = {kind: 100 * sum(found) / len(found) for kind, found in right.items()}
    spins = [percent[action] for action in SPINS]
    others = [percent[action] for action in BASIC_ACTIONS if action not in SPINS]
    summary = {"spins": sum(spins) / len(spins), "other actions": sum(others) / len(others)}
    return {kind: round(value, 1) for kind, value in (percent | summary).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the stage `classify`")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the percentages")
    parser.add_argument("--clips", type=int, default=2000, help="stills and clips of a split (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"{arguments.model} holds no model; run the stage `classify` of train.py first")
    torch.set_num_threads(arguments.threads)
    model = SpriteClassifier.from_pretrained(arguments.model).eval()
    processor = AlproProcessor.from_pretrained(arguments.model)
    splits = {"seen": "train-dev", "dev": "dev"}
    found = {name: measure(model, processor, split, arguments.clips) for name, split in splits.items()}
    write_text_whole(arguments.output, json.dumps({"clips": arguments.clips, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
