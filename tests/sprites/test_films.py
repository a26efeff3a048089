"""Films of the sprite world: the pictures lie where the annotations say, and no two scenes mean the same."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from alpro_hf.sprites.films import draw_films, pictures_of, write_films
from alpro_hf.sprites.render import frame_times, render
from alpro_hf.sprites.world import SpriteWorldError, allowed_actions, content, semantic_key

SMALL = {"scenes": (3, 5), "seconds": (0.5, 1.5)}
SCRIPT = Path(__file__).parents[2] / "scripts" / "sprites" / "render.py"


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"), "test", 3, size=32, workers=1, progress=False, **SMALL)


def test_films_are_a_pure_function_and_their_scenes_differ_in_meaning():
    films = draw_films("test", 10)
    assert films == draw_films("test", 10) and films != draw_films("test", 10, seed=1)
    scenes = [shown for film in films for shown in film.scenes]
    assert all(20 <= len(film.scenes) <= 40 for film in films)
    assert all(18 <= shown.num_frames <= 72 for shown in scenes)
    assert len({semantic_key(content(shown.scene)) for shown in scenes}) == len(scenes)
    for film in films:
        ends = [shown.first + shown.num_frames for shown in film.scenes]
        assert [shown.first for shown in film.scenes] == [0, *ends[:-1]]
    # held-out combinations only: the films of a test show nothing that training showed
    for _, roles in (content(shown.scene) for shown in scenes):
        assert all(
            action in allowed_actions("test", sprite) for sprite, action in roles if action not in ("lead", "passed")
        )


def test_the_scene_of_a_row_is_what_the_film_shows_then(folder: Path):
    moments, scenes = rows_of(folder / "moments.jsonl"), rows_of(folder / "scenes.jsonl")
    drawn = draw_films("test", 3, **SMALL)
    assert len(moments) == len(scenes) == sum(len(film.scenes) for film in drawn)
    row = iter(moments)
    for film in drawn:
        with av.open(str(folder / film.name)) as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == film.scenes[-1].first + film.scenes[-1].num_frames
        for scene in film.scenes:
            moment = next(row)
            first, last = round(moment["start"] * 12), round(moment["end"] * 12)
            assert (moment["video"], first, last - first) == (film.name, scene.first, scene.num_frames)
            drawn_frames = render(scene.scene, frame_times(scene.num_frames), 32)
            difference = np.abs(np.stack(shown[first:last]).astype(int) - drawn_frames).mean()
            assert difference < 8  # what H.264 changes; another scene differs by some 40
    pictures = np.stack(list(pictures_of(drawn[0], 32)))
    assert np.abs(pictures[1:].astype(int) - pictures[:-1]).mean((1, 2, 3)).max() > 20  # there are cuts


def test_an_interrupted_call_goes_on_and_other_settings_are_refused(folder: Path):
    films = sorted((folder / "films").iterdir())
    kept = films[0].stat().st_mtime_ns
    content_of_last = films[-1].read_bytes()
    films[-1].unlink()
    assert write_films(folder.parent, "test", 3, size=32, workers=1, progress=False, **SMALL) == folder
    assert films[0].stat().st_mtime_ns == kept and films[-1].read_bytes() == content_of_last
    with pytest.raises(SpriteWorldError, match="holds films made with seed=0, not seed=1"):
        write_films(folder.parent, "test", 3, seed=1, size=32, workers=1, progress=False, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, "split is 'tests'"),
        ({"count": 0}, "give at least 1 film"),
        ({"scenes": (5, 3)}, "5 to 3 scenes"),
        ({"count": 300}, "at most 10000 scenes"),
        ({"seconds": (0.1, 3)}, "at least 4 frames"),
        ({"seconds": (3, 2)}, "longest must not be shorter"),
        ({"fps": 0}, "fps is 0"),
        ({"size": 33}, "even number"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(SpriteWorldError, match=message):
        write_films(tmp_path, **{"split": "test", "count": 1, "progress": False, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_renders_films(tmp_path: Path):
    arguments = ["--films", "--split", "validation", "--count", "1", "--scenes", "2", "2", "--seconds", "0.5", "1"]
    made = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *arguments, "--size", "32"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(tmp_path / "validation-films")
    assert len(rows_of(tmp_path / "validation-films" / "moments.jsonl")) == 2


def test_scenes_that_fade_into_each_other(folder: Path, tmp_path: Path):
    [film] = draw_films("test", 1, scenes=(3, 3), seconds=(1.0, 1.5))
    cut, faded = (np.stack(list(pictures_of(film, 32, half))).astype(int) for half in (0, 4))
    assert cut.shape == faded.shape
    edges = [scene.first for scene in film.scenes[1:]]
    changed = {number for number in range(len(cut)) if (cut[number] != faded[number]).any()}
    assert changed <= {number for edge in edges for number in range(edge - 4, edge + 4)}
    for edge in edges:
        steps = np.abs(np.diff(faded[edge - 5 : edge + 5], axis=0)).mean((1, 2, 3))
        assert steps.max() < np.abs(cut[edge] - cut[edge - 1]).mean() / 3  # nothing sudden is left
        # in the first mixed picture 1/16 is the next scene, in the last 15/16
        for number, share in ((edge - 4, 1 / 16), (edge + 3, 15 / 16)):
            mixed = (1 - share) * cut[min(number, edge - 1)] + share * cut[max(number, edge)]
            assert np.abs(faded[number] - mixed).max() <= 0.51
    made = write_films(tmp_path, "test", 1, size=32, fade=0.5, workers=1, progress=False, **SMALL)
    assert made.name == "test-fading-films" and json.loads((made / "split.json").read_text())["fade"] == 0.5
    assert len(rows_of(made / "moments.jsonl")) == len(draw_films("test", 1, **SMALL)[0].scenes)
    with pytest.raises(SpriteWorldError, match=r"at most 0\.5 s"):
        write_films(tmp_path, "test", 1, size=32, fade=0.6, workers=1, progress=False, **SMALL)
