"""The bundled gallery: clips of the sprite world that the bundled models were not trained on."""

from pathlib import Path

from ..sprites.language import DOING
from ..sprites.render import write_clip
from ..sprites.world import Scene, content, draw_group, draw_scene
from .clips import Clip, data_uri, poster

GALLERY_SIDE = 192


def bundled_gallery(folder: Path) -> list[Clip]:
    """Render 24 test clips of the sprite world: the first 16 of `test`, and the first two groups of `test-hard`."""
    folder.mkdir(parents=True)
    scenes = [draw_scene("test", 0, index) for index in range(16)]
    scenes += [scene for group in range(2) for scene in draw_group("test-hard", 0, group)]
    clips = []
    for number, scene in enumerate(scenes, start=1):
        path = folder / f"{number:02}.mp4"
        write_clip(path, scene, size=GALLERY_SIDE)
        video = path.read_bytes()
        clips.append(Clip(path.stem, _title(scene), path, data_uri("video/mp4", video), poster(video)))
    return clips


def _title(scene: Scene) -> str:
    kind, roles = content(scene)
    if kind == "relation":
        (agent, action), (patient, _) = roles
        return f"{agent} {DOING[action]} {patient}"
    return (", then " if kind == "sequence" else ", ").join(f"{sprite} {DOING[action]}" for sprite, action in roles)
