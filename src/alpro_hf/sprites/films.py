"""Films of the sprite world: many scenes one after another, for search that must say when something happens.

A film is an mp4 of minutes. Each of its scenes comes with one caption, and the truth is known: the seconds between
which the scene is shown. Scenes of all films differ in meaning, so that a caption describes one moment of one film.

Scenes follow each other by hard cuts, or fade into each other, which the detectors of cuts find less well.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import write_whole
from .language import captions
from .render import check_video, claim_folder, encode, frame_times, render, run_jobs, write_rows
from .world import SPLITS, WORLD_VERSION, Scene, SpriteWorldError, content, draw_scenes

MOST_SCENES = 10_000  # of all films together; scenes of different meaning do not last for ever


@dataclass(frozen=True)
class FilmScene:
    """A scene of a film: frames `first` to `first + num_frames - 1` show it."""

    scene: Scene
    first: int
    num_frames: int


@dataclass(frozen=True)
class Film:
    """A film to render.

    Args:
        name: Its file, relative to the folder of the films, with "/".
        scenes: In the order of the film, without gaps.
    """

    name: str
    scenes: tuple[FilmScene, ...]


def draw_films(
    split: str,
    count: int,
    seed: int = 0,
    *,
    scenes: tuple[int, int] = (20, 40),
    seconds: tuple[float, float] = (1.5, 6.0),
    fps: int = 12,
) -> list[Film]:
    """Draw films: a pure function of its arguments.

    Args:
        split: Whose combinations of sprite and action are shown, one of `sprites.world.SPLITS`.
        count: Number of films.
        seed: Seed of scenes, lengths and order.
        scenes: Fewest and most scenes of a film, drawn uniformly.
        seconds: Shortest and longest scene, drawn uniformly and rounded to whole frames.
        fps: Frames per second.

    Raises:
        SpriteWorldError: The split does not exist, or a number is out of range.
    """
    if split not in SPLITS:
        raise SpriteWorldError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    if count < 1 or not 1 <= scenes[0] <= scenes[1] or count * scenes[1] > MOST_SCENES:
        raise SpriteWorldError(
            f"{count} films of {scenes[0]} to {scenes[1]} scenes cannot be drawn; give at least 1 film, at least 1 "
            f"scene, and at most {MOST_SCENES} scenes in all."
        )
    if fps < 1:
        raise SpriteWorldError(f"fps is {fps}; it must be at least 1.")
    if not 4 / fps <= seconds[0] <= seconds[1]:
        raise SpriteWorldError(
            f"scenes of {seconds[0]} to {seconds[1]} s cannot be shown at {fps} frames per second; each needs "
            f"at least 4 frames, {4 / fps:.2f} s, and the longest must not be shorter than the shortest."
        )
    rng = random.Random(f"sprite films/{split}/{seed}/plan")
    lengths = [[round(rng.uniform(*seconds) * fps) for _ in range(rng.randint(*scenes))] for _ in range(count)]
    drawn = iter(draw_scenes(split, seed, "films", sum(map(len, lengths))))
    films = []
    for number, frames in enumerate(lengths):
        starts = [0, *np.cumsum(frames).tolist()]
        shown = tuple(FilmScene(next(drawn), first, length) for first, length in zip(starts, frames, strict=False))
        films.append(Film(f"films/{number:05d}.mp4", shown))
    return films


def claim_films(
    output: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    *,
    scenes: tuple[int, int] = (20, 40),
    seconds: tuple[float, float] = (1.5, 6.0),
    size: int = 128,
    fps: int = 12,
    fade: float = 0.0,
) -> tuple[Path, list[Film]]:
    """Check the settings of films and note them in their folder, without rendering anything.

    Args:
        output, split, count, seed, scenes, seconds, size, fps, fade: As in `write_films`.

    Returns:
        The folder, and the films that belong into it.

    Raises:
        SpriteWorldError: As in `write_films`.
    """
    check_video(size, 4, fps)
    films = draw_films(split, count, seed, scenes=scenes, seconds=seconds, fps=fps)
    if not 0 <= fade <= seconds[0]:
        raise SpriteWorldError(
            f"fade is {fade} s; it must be 0 for hard cuts, or at most {seconds[0]} s, the shortest scene."
        )
    folder = Path(output) / (f"{split}-fading-films" if fade else f"{split}-films")
    settings = {"split": split, "seed": seed, "count": count, "scenes": list(scenes), "seconds": list(seconds)}
    settings |= {"size": size, "fps": fps, "world_version": WORLD_VERSION} | ({"fade": fade} if fade else {})
    claim_folder(folder, settings, "films")
    return folder, films


def write_films(
    output: str | Path,
    split: str = "test",
    count: int = 60,
    seed: int = 0,
    *,
    scenes: tuple[int, int] = (20, 40),
    seconds: tuple[float, float] = (1.5, 6.0),
    size: int = 128,
    fps: int = 12,
    fade: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Render films and their captions. Films that an interrupted call has finished are kept.

    Files in the returned folder, `output / (split + "-films")`, or `output / (split + "-fading-films")` with a fade:

    - `films/NNNNN.mp4`
    - `moments.jsonl`: `video` (relative to the folder), `text`, `start` and `end` in seconds; one row a scene
    - `scenes.jsonl`: `video`, `start`, `end`, and the content and geometry of the scene
    - `split.json`: the settings of the films

    Args:
        output: Parent folder, created if it does not exist.
        split, count, seed, scenes, seconds, fps: As in `draw_films`.
        size: Side of the frames in pixels, an even number.
        fade: Seconds in which a scene fades into the next, half of them on each side of the true boundary; 0: hard
            cuts. At most the shortest scene.
        workers: Processes; default: one for each core.
        progress: Show a bar on stderr.

    Raises:
        SpriteWorldError: As in `draw_films`; a video setting is invalid; or the folder has films with other settings.
    """
    folder, films = claim_films(
        output, split, count, seed, scenes=scenes, seconds=seconds, size=size, fps=fps, fade=fade
    )
    half = round(fade * fps / 2)
    jobs = [(folder / film.name, film, size, fps, half) for film in films if not (folder / film.name).exists()]
    workers = os.cpu_count() or 1 if workers is None else workers
    run_jobs(_write_job, jobs, workers, f"{split}: films", progress, unit="film", worth_processes=4, chunk=1)
    moments, shown_scenes = [], []
    for film in films:
        for number, shown in enumerate(film.scenes):
            rng = random.Random(f"sprite films/{split}/{seed}/{film.name}/{number}/caption")
            start, end = shown.first / fps, (shown.first + shown.num_frames) / fps
            times = {"video": film.name, "start": round(start, 6), "end": round(end, 6)}
            kind, roles = content(shown.scene)
            moments.append({**times, "text": captions(shown.scene, rng)[0]})
            shown_scenes.append(
                {
                    **times,
                    "kind": kind,
                    "roles": [{"sprite": sprite, "action": action} for sprite, action in roles],
                    "actors": [asdict(actor) for actor in shown.scene.actors],
                    "look": shown.scene.look,
                }
            )
    write_rows(folder / "moments.jsonl", moments)
    write_rows(folder / "scenes.jsonl", shown_scenes)
    return folder


def pictures_of(film: Film, size: int, half_fade: int = 0) -> Iterator[np.ndarray]:
    """The frames of a film in order, each uint8 (size, size, 3) in RGB.

    Args:
        film: What to render.
        size: Side of a frame in pixels.
        half_fade: Frames on each side of a boundary in which the scenes of both sides are mixed. Outside of its own
            time a scene stands still, at its first or last frame.
    """
    before: np.ndarray | None = None  # the last picture of the scene before
    pictures = _scene(film, 0, size)
    for place in range(len(film.scenes)):
        after = _scene(film, place + 1, size) if place + 1 < len(film.scenes) else None
        for number, picture in enumerate(pictures):
            left = len(pictures) - number  # frames until the next scene
            if before is not None and number < half_fade:
                yield _mixed(before, picture, 0.5 + (number + 0.5) / (2 * half_fade))
            elif after is not None and left <= half_fade:
                yield _mixed(picture, after[0], 0.5 - (left - 0.5) / (2 * half_fade))
            else:
                yield picture
        if after is not None:
            before, pictures = pictures[-1], after


def _scene(film: Film, place: int, size: int) -> np.ndarray:
    return render(film.scenes[place].scene, frame_times(film.scenes[place].num_frames), size)


def _mixed(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Two pictures on top of each other; `share` in [0, 1] is that of the other one."""
    mixed: np.ndarray = np.round((1 - share) * one + share * other).astype(np.uint8)
    return mixed


def _write_job(job: tuple[Path, Film, int, int, int]) -> None:
    path, film, size, fps, half_fade = job
    write_whole(path, lambda partial: encode(partial, pictures_of(film, size, half_fade), size, fps))


__all__ = ["Film", "FilmScene", "claim_films", "draw_films", "pictures_of", "write_films"]
