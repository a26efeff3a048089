"""Crops of sprite-world clips on black, as the teacher of PEM sees them, and what they hold.

A crop "holds" a sprite when at least half of the sprite is inside the box, averaged over the frames. `CropRows` are
training rows: a crop that holds one sprite with a prompt of its name, or one that holds none with the word "nothing".
"""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from alpro_hf import AlproModel, AlproProcessor, AlproPrompterModel
from alpro_hf.data.augmentation import draw_crop
from alpro_hf.inference.explain import black_pixel
from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.sprites.language import PHRASES, noun_phrase
from alpro_hf.sprites.render import render
from alpro_hf.sprites.world import BASIC_ACTIONS, SPRITES, Scene, draw_scene, pose
from alpro_hf.training.prompter import VIDEO_TEMPLATES, build_prompter

# prompts in the language of the captions, one for each action
CAPTIONS = tuple(f"a {{entity}} {PHRASES[action][0][0]}" for action in BASIC_ACTIONS)
CALIBRATION, CALIBRATION_SEED = 1000, 1  # crops that the temperature is fitted to; teacher.py measures on others
EMPTY_KEPT = 0.05  # share of the crops without a sprite whose labels the bundled prompter may keep
BATCH = 50

HELD = 0.5  # least share of a sprite inside a crop that holds it
NOTHING = "nothing"  # what a prompt names where a crop holds no sprite
NOTHINGS = tuple(
    f"{start} nothing." for start in ("A footage of", "A video of", "A portrait of", "A video footage of")
)
EMPTY = 0.15  # share of the training rows that hold no sprite
DRAWS = 10**6  # scenes of a row, more than any draws until its crop holds what it should


def times_of(frames: int) -> tuple[float, ...]:
    """Moments of uniformly spaced frames, as fractions of the clip."""
    return tuple((frame + 0.5) / frames for frame in range(frames))


def shares_inside(scene: Scene, box: torch.Tensor) -> dict[str, float]:
    """Share of each sprite's square inside a box, averaged over eight moments and weighted by its opacity."""
    rows, columns = box.any(dim=1).nonzero().flatten().tolist(), box.any(dim=0).nonzero().flatten().tolist()
    sides = [(lines[0] / len(box), (lines[-1] + 1) / len(box)) for lines in (columns, rows)]
    shares = {}
    for actor in scene.actors:
        total = 0.0
        for moment in times_of(8):
            x, y, scale, _, opacity = pose(actor, moment)
            # the area of an intersection is the product of its sides; a transparent sprite shows less
            half, share = actor.size * scale / 2, opacity
            for centre, (low, high) in zip((x, y), sides, strict=True):
                share *= max(0.0, min(centre + half, high) - max(centre - half, low)) / (2 * half)
            total += share / 8
        shares[actor.sprite] = total
    return shares


@dataclass
class Crops:
    """Clips, boxes and the sprites inside the boxes.

    Args:
        scenes: n scenes.
        boxes: bool (n, 4, 4).
        inside: For each crop: name of a sprite -> share of it inside the box, 0 to 1.
    """

    scenes: list[Scene]
    boxes: torch.Tensor
    inside: list[dict[str, float]]

    def held(self) -> list[str | None]:
        """For each crop the name of the one sprite that it holds; None if it holds none or several."""
        names = [[name for name, share in crop.items() if share >= HELD] for crop in self.inside]
        return [held[0] if len(held) == 1 else None for held in names]

    def empty(self) -> torch.Tensor:
        """bool (n,), the crops that hold no sprite."""
        return torch.tensor([not any(share >= HELD for share in crop.values()) for crop in self.inside])


def draw_crops(count: int, seed: int, grid: int = 4) -> Crops:
    """Clips of the validation split with one random box each, on a grid of `grid` x `grid` patches."""
    scenes = [draw_scene("validation", seed, index) for index in range(count)]
    boxes = torch.stack([draw_crop((grid, grid), torch.Generator().manual_seed(seed + i)) for i in range(count)])
    return Crops(scenes, boxes, [shares_inside(scene, box) for scene, box in zip(scenes, boxes, strict=True)])


def draw_box(rng: random.Random, grid: int) -> torch.Tensor:
    """A box of pre-training, bool (grid, grid)."""
    return draw_crop((grid, grid), torch.Generator().manual_seed(rng.getrandbits(48)))


def on_black(video: np.ndarray, box: torch.Tensor) -> np.ndarray:
    """Frames (T, H, W, 3) that are black outside a box of whole patches."""
    patch = video.shape[1] // len(box)
    return video * box.numpy().repeat(patch, 0).repeat(patch, 1)[None, :, :, None]


@torch.no_grad()
def embed(
    model: AlproModel, processor: AlproProcessor, crops: Crops, frames: int, whole: bool = False
) -> torch.Tensor:
    """Unit vectors (n, P) of the crops on black, or of the clips as they are."""
    black = black_pixel(processor.video_processor)
    embeds, side = [], model.config.video_config.image_size
    for start in tqdm(range(0, len(crops.scenes), BATCH), desc=f"{frames} frames", unit="batch", leave=False):
        clips = [render(scene, times_of(frames), side) for scene in crops.scenes[start : start + BATCH]]
        pixels = processor.video_processor(clips, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        if not whole:
            pixels = crop_on_black(pixels, crops.boxes[start : start + BATCH], black)
        embeds.append(model.get_video_features(pixels).pooler_output)
    return torch.cat(embeds)


def prompter_of(model: AlproModel, processor: AlproProcessor) -> AlproPrompterModel:
    """The prompter of all sprites, with the templates of the paper.

    Its temperature is the sharpest that keeps few of the crops without a sprite; see `sharpest_temperature`.
    """
    prompter = build_prompter(model, processor, SPRITES, progress=False)
    crops = draw_crops(CALIBRATION, CALIBRATION_SEED)
    embeds = embed(model, processor, crops, model.config.video_config.num_frames)
    similarity = embeds[crops.empty()] @ prompter.video_prompt_embeds.t()
    prompter.config.pem_temperature = sharpest_temperature(similarity, prompter.config.pem_threshold)
    return prompter


def sharpest_temperature(similarity: torch.Tensor, threshold: float, kept: float = EMPTY_KEPT) -> float:
    """The lowest temperature at which at most the share `kept` of crops has an entity of at least the threshold.

    Args:
        similarity: float (n, entities), of crops that hold no entity.
        threshold: Probability from which on PEM keeps a label.
        kept: Share of the crops.
    """
    for temperature in torch.arange(0.005, 0.5, 0.0005).tolist():
        sure = (similarity / temperature).softmax(dim=1).max(dim=1).values >= threshold
        if sure.float().mean() <= kept:
            break
    return round(temperature, 4)


class CropRows(Dataset):
    """Rows of the task `retrieval`, each a pure function of (seed, index); see the module.

    Half of the prompts are templates of the paper ("A video of a fox."), the others are in the language of the
    captions ("a fox grows").

    Args:
        length: Number of rows.
        seed: Seed of scenes, boxes and prompts.
        num_frames, size, split: As for `SpriteRows`.
        grid: Patches in a row and in a column; a box has whole patches.
    """

    def __init__(self, length: int, *, seed: int, num_frames: int, size: int, split: str, grid: int = 4):
        self.length = length
        self.seed = seed
        self.num_frames = num_frames
        self.size = size
        self.split = split
        self.grid = grid

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"crop rows/{self.split}/{self.seed}/{index}")
        count = int(rng.random() >= EMPTY)  # sprites that the crop holds
        for draw in itertools.count():
            scene = draw_scene(self.split, self.seed, index * DRAWS + draw)
            box = draw_box(rng, self.grid)
            held = [name for name, share in shares_inside(scene, box).items() if share >= HELD]
            if len(held) == count:
                break
        times = tuple((frame + rng.uniform(0.15, 0.85)) / self.num_frames for frame in range(self.num_frames))
        video = on_black(render(scene, times, self.size), box)
        name = held[0] if held else NOTHING
        # crops of the same sprite are no negatives of each other
        return {"video": video, "video_id": f"crop {name}", "text": prompt(scene, name, rng)}


def prompt(scene: Scene, name: str, rng: random.Random) -> str:
    """A prompt that names a sprite of a scene, or nothing."""
    if name == NOTHING:
        return rng.choice(NOTHINGS)
    actions = [actor.action for actor in scene.actors if actor.sprite == name and actor.action in BASIC_ACTIONS]
    template = rng.choice(VIDEO_TEMPLATES)
    if not actions or rng.random() < 0.5:
        return template.replace("{entity}", name)
    return f"{noun_phrase(name)} {rng.choice(PHRASES[actions[0]])[0]}"
