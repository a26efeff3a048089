"""Render scenes of the sprite world: arrays for training, mp4 files with annotations for all other uses."""

import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..files import remove_partial, write_text_whole, write_whole
from ..untrusted_json import read_json
from .language import ANSWERS, captions, opposite_caption, questions, reversed_caption, swapped_caption
from .world import MARK, SPLIT_SIZES, SPLITS, WORLD_VERSION, Scene, SpriteWorldError, content, draw_scene, pose

WORTH_PROCESSES = 100  # fewer clips are rendered in less time than processes need to start
Job = TypeVar("Job")

SHAKE = 0.015  # largest camera displacement, as a share of the canvas


@lru_cache(maxsize=1)
def _sheet() -> tuple[Image.Image, int, dict[str, tuple[int, int]]]:
    """The sheet of sprites, the side of a tile, and the upper left corner of each sprite."""
    folder = files("alpro_hf") / "assets" / "sprites"
    index = json.loads((folder / "sprites.json").read_text(encoding="utf-8"))
    with (folder / "sheet.png").open("rb") as file:
        sheet = Image.open(file).convert("RGBA")
    side, columns = index["tile"], index["columns"]
    places = {entry["name"]: (i % columns * side, i // columns * side) for i, entry in enumerate(index["sprites"])}
    return sheet, side, places


@lru_cache(maxsize=16384)
def _tile(sprite: str, side: int) -> Image.Image:
    sheet, tile, places = _sheet()
    x, y = places[sprite]
    image = sheet.crop((x, y, x + tile, y + tile))
    return image.resize((side, side), Image.Resampling.LANCZOS)


@lru_cache(maxsize=4096)
def _padded_tile(sprite: str, side: int) -> Image.Image:
    """The tile with a border, so that no corner is cut off when it is rotated."""
    pad = math.ceil(side * 0.21)  # half of (sqrt(2) - 1), by which the diagonal is longer than the side
    image = Image.new("RGBA", (side + 2 * pad, side + 2 * pad))
    image.paste(_tile(sprite, side), (pad, pad))
    return image


def tile_of(sprite: str, side: int, angle: float = 0) -> Image.Image:
    """The picture of a sprite as the renderer draws it: RGBA, `side` pixels wide, or wider if it is tilted.

    Args:
        sprite: Its name.
        side: Side of the upright picture in pixels.
        angle: Clockwise tilt in degrees.
    """
    if not angle:
        return _tile(sprite, side)
    return _padded_tile(sprite, side).rotate(-angle, Image.Resampling.BICUBIC)


@cache
def _mean_colour(sprite: str) -> tuple[float, ...]:
    pixels = np.asarray(_tile(sprite, 16), dtype=np.float64)
    colour = (pixels[..., :3] * pixels[..., 3:]).sum((0, 1)) / pixels[..., 3].sum()
    return tuple(colour.tolist())


# style: (columns, rows, contrast, filter that enlarges the random grid)
_STYLES: dict[str, tuple[int, int, float, Image.Resampling]] = {
    "plain": (1, 1, 0, Image.Resampling.NEAREST),
    "gradient": (2, 2, 70, Image.Resampling.BICUBIC),
    "smooth": (5, 5, 45, Image.Resampling.BICUBIC),
    "clouds": (12, 12, 28, Image.Resampling.BICUBIC),
    "checks": (8, 8, 16, Image.Resampling.NEAREST),
    "stripes": (10, 1, 22, Image.Resampling.NEAREST),
    "bars": (1, 10, 26, Image.Resampling.BILINEAR),
    "grain": (40, 40, 24, Image.Resampling.BILINEAR),
}


def _background(rng: random.Random, sprites: Sequence[str], side: int) -> Image.Image:
    """A muted colour far from those of the sprites, with a texture: a small random grid, enlarged."""
    bases = []
    for _ in range(4):
        colour = [rng.uniform(40, 225) for _ in "rgb"]
        grey = sum(colour) / 3
        bases.append([grey + 0.6 * (channel - grey) for channel in colour])
    base = max(bases, key=lambda colour: min(math.dist(colour, _mean_colour(sprite)) for sprite in sprites))
    columns, rows, contrast, resample = _STYLES[rng.choice(tuple(_STYLES))]
    noise = np.frombuffer(rng.randbytes(rows * columns * 3), dtype=np.uint8).reshape(rows, columns, 3) / 127.5 - 1
    grid = np.array(base) + contrast * (0.7 * noise[..., :1] + 0.3 * noise)
    image = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return image.resize((side, side), resample)


def render(scene: Scene, times: Sequence[float], size: int) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: the scene.
        times: the moments, each in [0, 1].
        size: side of the square frames in pixels.

    Returns:
        uint8 array (len(times), size, size, 3), RGB.
    """
    rng = random.Random(scene.look)
    margin = math.ceil(SHAKE * size)
    backdrop = _background(rng, [actor.sprite for actor in scene.actors], size + 2 * margin)
    # An even function of (time - 1/2): played backwards, the camera moves the same and gives no hint of the direction.
    shake = [(rng.uniform(-SHAKE, SHAKE) * size, rng.uniform(2, 6) * math.pi) for _ in "xy"]
    clip = np.empty((len(times), size, size, 3), dtype=np.uint8)
    for index, time in enumerate(times):
        shift_x, shift_y = (round(reach * math.cos(speed * (time - 0.5))) for reach, speed in shake)
        frame = backdrop.crop((margin - shift_x, margin - shift_y, margin - shift_x + size, margin - shift_y + size))
        for actor in scene.actors:
            x, y, scale, angle, opacity = pose(actor, time)
            if opacity == 0:
                continue
            side = max(1, round(actor.size * scale * size))
            tile = tile_of(actor.sprite, side, angle)
            mask = tile
            if opacity < 1:
                mask = tile.getchannel("A").point([round(level * opacity) for level in range(256)])
            left, top = round(x * size - tile.width / 2) + shift_x, round(y * size - tile.height / 2) + shift_y
            frame.paste(tile, (left, top), mask)
        clip[index] = np.asarray(frame)
    return clip


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _Clip:
    """One file to write: `name` is relative to the folder of the split, with "/"."""

    name: str
    split: str
    index: int
    scene: Scene


def frame_times(num_frames: int) -> list[float]:
    """The moments of the frames of a clip, in the middle of `num_frames` equal parts of [0, 1]."""
    return [(frame + 0.5) / num_frames for frame in range(num_frames)]


def write_clip(path: str | Path, scene: Scene, *, size: int = 128, num_frames: int = 24, fps: int = 12) -> None:
    """Render a scene and encode it as H.264 (yuv420p) in an mp4 file.

    The file is written completely or not at all. `size` must be even and at least 16.
    """
    check_video(size, num_frames, fps)
    pictures = render(scene, frame_times(num_frames), size)
    write_whole(Path(path), lambda partial: encode(partial, pictures, size, fps))


def encode(path: Path, pictures: Iterable[np.ndarray], size: int, fps: int) -> None:
    """Encode pictures, each uint8 (size, size, 3) in RGB, as H.264 (yuv420p) in an mp4 file."""
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = MARK
        # For the same bytes on every run: one thread, and no macroblock tree, which in short clips reads memory that
        # x264 never initialised. Clips are encoded in parallel, so threads would gain nothing.
        options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def check_video(size: int, num_frames: int, fps: int) -> None:
    """Raise `SpriteWorldError` if a clip cannot have these settings."""
    if size < 16 or size % 2:
        raise SpriteWorldError(f"size is {size}; H.264 in yuv420p needs an even number of pixels, at least 16.")
    if num_frames < 4:
        raise SpriteWorldError(f"num_frames is {num_frames}; the actions need at least 4 frames to be told apart.")
    if fps < 1:
        raise SpriteWorldError(f"fps is {fps}; it must be at least 1.")


def _write_job(job: tuple[Path, Scene, int, int, int]) -> None:
    path, scene, size, num_frames, fps = job
    write_clip(path, scene, size=size, num_frames=num_frames, fps=fps)


def _clips(split: str, count: int, seed: int) -> list[_Clip]:
    return [_Clip(f"clips/{i:05d}.mp4", split, i, draw_scene(split, seed, i)) for i in range(count)]


def _out_of_list_clips(count: int, seed: int) -> list[_Clip]:
    """Clips of sprites that training never shows, for `test`: one for each fifty of its own clips."""
    indices = range(min(math.ceil(count / 50), SPLIT_SIZES["test-unseen"]))
    return [_Clip(f"clips/unseen-{i:05d}.mp4", "test-unseen", i, draw_scene("test-unseen", seed, i)) for i in indices]


def _row_rng(clip: _Clip, seed: int, what: str) -> random.Random:
    return random.Random(f"sprite world/{clip.split}/{seed}/{what}/{clip.index}")


def _choice_rows(clip: _Clip, seed: int) -> Iterable[dict[str, str]]:
    rng = _row_rng(clip, seed, "choices")
    text, negative, pair = opposite_caption(clip.scene, rng)
    yield {"video": clip.name, "text": text, "negative": negative, "kind": "opposite", "pair": pair}
    for kind, found in (
        ("swapped", swapped_caption(clip.scene, rng)),
        ("reversed", reversed_caption(clip.scene, rng)),
    ):
        if found is not None:
            yield {"video": clip.name, "text": found[0], "negative": found[1], "kind": kind, "pair": ""}


def _question_rows(clip: _Clip, seed: int) -> list[dict[str, str]]:
    return [{"video": clip.name, **row} for row in questions(clip.scene, _row_rng(clip, seed, "questions"))]


def _scene_row(clip: _Clip, seed: int) -> dict[str, Any]:
    kind, roles = content(clip.scene)
    return {
        "video": clip.name,
        "split": clip.split,
        "seed": seed,
        "index": clip.index,
        "kind": kind,
        "roles": [{"sprite": sprite, "action": action} for sprite, action in roles],
        "actors": [asdict(actor) for actor in clip.scene.actors],
        "look": clip.scene.look,
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, wholly or not at all."""
    write_text_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def claim_folder(folder: Path, settings: dict[str, Any], what: str = "clips") -> None:
    """Note the settings of clips in their folder, and make `folder / what` for them, without unfinished files.

    Raises:
        SpriteWorldError: The folder has clips of other settings.
    """
    note = folder / "split.json"
    if note.exists():
        try:
            found = read_json(note)
        except ValueError as error:
            raise SpriteWorldError(f"{note} cannot be read ({error}); use another folder or delete it.") from error
        if not isinstance(found, dict):
            raise SpriteWorldError(f"{note} holds no settings of clips; use another folder or delete it.")
        if found != settings:
            differing = [key for key in settings if found.get(key) != settings[key]]
            was = ", ".join(f"{key}={found.get(key)!r}" for key in differing)
            now = ", ".join(f"{key}={settings[key]!r}" for key in differing)
            raise SpriteWorldError(
                f"{folder} holds {what} made with {was}, not {now}; use another folder or delete it."
            )
        remove_partial(folder / what)
        return
    (folder / what).mkdir(parents=True, exist_ok=True)
    write_text_whole(note, json.dumps(settings, indent=1) + "\n")


def write_split(
    output: str | Path,
    split: str,
    count: int | None = None,
    seed: int = 0,
    *,
    size: int = 128,
    num_frames: int = 24,
    fps: int = 12,
    captions_per_clip: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Render a split to mp4 files and annotations. Clips that an interrupted call has finished are kept.

    Files in the returned folder, `output / split`; the `video` of every row is relative to it:

    - `clips/NNNNN.mp4`
    - `retrieval.jsonl`: `video`, `text`; one caption a clip in the tests, so that chance R@1 of 1,000 clips is 0.1 %
    - `qa.jsonl`: `video`, `question`, `answer`, `answer_type`. In `test` a few answers are deliberately not in
      `language.ANSWERS`: they are nouns of clips of `test-unseen`, `clips/unseen-NNNNN.mp4`. There is one such clip
      for each fifty, and apart from `scenes.jsonl` no other file lists it
    - `choices.jsonl`: `video`, `text` (true), `negative` (false), `kind` ("opposite", "swapped", or "reversed": true
      of the clip played backwards), `pair` (the difference of an opposite, such as "left/right", "order" or "roles")
    - `scenes.jsonl`: the content and geometry of each clip
    - `split.json`: the settings of the clips

    Args:
        output: parent folder, created if it does not exist.
        split: one of `SPLITS`.
        count: number of clips; default: the whole split. `train` is endless and needs a number.
        seed: seed of the scenes; the same seed gives the same files.
        size: side of the frames in pixels, an even number.
        num_frames, fps: number of frames and frame rate of the clips.
        captions_per_clip: rows of a clip in `retrieval.jsonl`; default: 4 in `train`, `train-dev` and `validation`,
            1 in the tests.
        workers: processes; default: one for each core. With 1, or for few clips, this process does all the work.
        progress: show a bar on stderr.

    Raises:
        SpriteWorldError: The split does not exist, the count or a video setting is invalid, or the folder has clips
            with other settings.
    """
    if split not in SPLITS:
        raise SpriteWorldError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    count = SPLIT_SIZES.get(split) if count is None else count
    if count is None or count < 1 or count > SPLIT_SIZES.get(split, count):
        limit = f"between 1 and {SPLIT_SIZES[split]}" if split in SPLIT_SIZES else "a number of at least 1"
        raise SpriteWorldError(f"count is {count} for split {split!r}; give {limit}.")
    check_video(size, num_frames, fps)
    folder = Path(output) / split
    settings = {"split": split, "seed": seed, "size": size, "num_frames": num_frames, "fps": fps}
    claim_folder(folder, {**settings, "world_version": WORLD_VERSION})
    clips = _clips(split, count, seed)
    extra = _out_of_list_clips(count, seed) if split == "test" else []
    paths = ((folder / clip.name, clip.scene) for clip in (*clips, *extra))
    jobs = [(path, scene, size, num_frames, fps) for path, scene in paths if not path.exists()]
    run_jobs(_write_job, jobs, os.cpu_count() or 1 if workers is None else workers, f"{split}: clips", progress)

    per_clip = captions_per_clip or (4 if split in ("train", "train-dev", "validation") else 1)
    write_rows(
        folder / "retrieval.jsonl",
        (
            {"video": clip.name, "text": text}
            for clip in clips
            for text in captions(clip.scene, _row_rng(clip, seed, "captions"), per_clip)
        ),
    )
    asked = [row for clip in clips for row in _question_rows(clip, seed)]
    asked += [row for clip in extra for row in _question_rows(clip, seed) if row["answer"] not in ANSWERS]
    write_rows(folder / "qa.jsonl", asked)
    write_rows(folder / "choices.jsonl", (row for clip in clips for row in _choice_rows(clip, seed)))
    write_rows(folder / "scenes.jsonl", (_scene_row(clip, seed) for clip in (*clips, *extra)))
    return folder


def run_jobs(
    work: Callable[[Job], None],
    jobs: Sequence[Job],
    workers: int,
    title: str,
    progress: bool,
    *,
    unit: str = "clip",
    worth_processes: int = WORTH_PROCESSES,
    chunk: int = 8,
) -> None:
    """Do jobs in processes; with one worker, or fewer jobs than are worth processes, in this one.

    Args:
        work: A function at the top of a module, so that processes can import it.
        jobs: Its arguments, which must be picklable.
        workers: Number of processes.
        title, unit, progress: The bar on stderr, and whether to show it.
        worth_processes: Fewer jobs than this are done here.
        chunk: Jobs handed to a process at a time.
    """
    with tqdm(total=len(jobs), desc=title, unit=unit, disable=not progress) as bar:
        if workers <= 1 or len(jobs) < worth_processes:
            for job in jobs:
                work(job)
                bar.update()
            return
        # Spawned, not forked: a forked copy of a process with running threads can hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for _ in pool.map(work, jobs, chunksize=chunk):
                bar.update()
