"""The gallery of the page: bundled clips of the sprite world, or the videos of one's own index or folder."""

import hashlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.find_videos import find_videos
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span, span_text
from ..inference.cached_index import build_cached
from ..inference.index_shards import MANIFEST, Manifest
from ..inference.video_index import VideoIndex
from ..loading import CommandError
from ..sprites.language import DOING
from ..sprites.render import write_clip
from ..sprites.world import Scene, content, draw_group, draw_scene
from .clips import Clip, poster, poster_of, preview
from .media import Media

GALLERY_SIDE = 192
SHOWN = 24  # videos of an index beside the tabs
Place = tuple[Path, float | None, float | None]  # file, start and end of a moment


def bundled_gallery(folder: Path, media: Media) -> list[Clip]:
    """Render 24 test clips of the sprite world: the first 16 of `test`, and the first two groups of `test-hard`."""
    folder.mkdir(parents=True)
    scenes = [draw_scene("test", 0, index) for index in range(16)]
    scenes += [scene for group in range(2) for scene in draw_group("test-hard", 0, group)]
    clips = []
    for number, scene in enumerate(scenes, start=1):
        path = folder / f"{number:02}.mp4"
        write_clip(path, scene, size=GALLERY_SIDE)
        picture = path.with_suffix(".jpg")
        picture.write_bytes(poster(path.read_bytes()))
        clips.append(Clip(path.stem, _title(scene), path, media.add(path), media.add(picture)))
    return clips


def _title(scene: Scene) -> str:
    kind, roles = content(scene)
    if kind == "relation":
        (agent, action), (patient, _) = roles
        return f"{agent} {DOING[action]} {patient}"
    return (", then " if kind == "sequence" else ", ").join(f"{sprite} {DOING[action]}" for sprite, action in roles)


@dataclass(frozen=True)
class Collection:
    """Videos of one's own that the page shows.

    Args:
        where: An index, or a folder of videos, whose index is kept in the cache.
        videos: Folder of the videos, for an index that somebody else has made.
        allow_outside: Whether videos may lie outside of the folder of the index.
    """

    where: Path
    videos: Path | None = None
    allow_outside: bool = False

    def model_name(self) -> str | None:
        """The model that made the index; None for a folder.

        Raises:
            VideoIndexError: The index is damaged, or its folder of videos was not noted by this user.
        """
        if not (self.where / MANIFEST).is_file():
            return None
        made = Manifest.read(self.where, root=self.videos, allow_outside=self.allow_outside)
        return made.model["name"]

    def open(self, model: Any, processor: Any, name: str, decoder: IsolatedDecoder) -> VideoIndex:
        """The index, for the loaded model; of a folder, what is new in it is encoded.

        Raises:
            VideoIndexError: As `VideoIndex.load`; or the index is empty.
            CommandError: There is no video.
            FileNotFoundError: `where` does not exist.
        """
        if (self.where / MANIFEST).is_file():
            options: dict[str, Any] = {"root": self.videos, "allow_outside": self.allow_outside}
            index = VideoIndex.load(self.where, model, processor, name=name, **options)
        else:
            if self.videos is not None:
                raise CommandError(f"--videos belongs to an index, and {self.where} holds none.")
            videos, _ = find_videos([self.where])
            if not videos:
                raise CommandError(
                    f"{self.where} is neither an index nor a folder with videos. Make an index with alpro index."
                )
            options = {"name": name, "allow_outside": self.allow_outside, "progress": False, "decoder": decoder}
            index = build_cached(model, processor, self.where, videos, **options)
        if not len(index):
            raise CommandError(f"{self.where} holds no video that can be searched. Add some with alpro index.")
        return index


class IndexClips:
    """Clips of the moments and the files of an index, by ids that stay the same while the index does.

    Args:
        index: The index.
        media: Serves the files.
        decoder: Reads pictures of them.
    """

    def __init__(self, index: VideoIndex, media: Media, decoder: IsolatedDecoder) -> None:
        self.index, self.media, self.decoder = index, media, decoder
        self._clips: dict[str, Clip] = {}
        self._places: dict[str, Place] | None = None

    def shelf(self) -> list[Clip]:
        """The first files of the index, whole."""
        paths = dict.fromkeys(path for path, _, _ in self.index.moments)
        allowed = filter(self.index.may_hold, paths)  # a link may lead out of the folder of the videos
        return [self.clip(path, None, None) for path in islice(allowed, SHOWN)]

    def find(self, clip_id: str) -> Clip | None:
        """The clip with an id; None if the index has no such file or moment."""
        if clip_id not in self._clips:
            if self._places is None:
                places = [*self.index.moments]
                places += [(path, None, None) for path in dict.fromkeys(path for path, _, _ in places)]
                self._places = {self._id(*place): place for place in places}
            if clip_id not in self._places:
                return None
            if not self.index.may_hold(self._places[clip_id][0]):
                return None
            self.clip(*self._places[clip_id])
        return self._clips[clip_id]

    def clip(self, path: Path, start: float | None, end: float | None) -> Clip:
        """The clip of a file of the index, or of a moment of it."""
        clip_id = self._id(path, start, end)
        if clip_id not in self._clips:
            span = None if start is None or end is None else Span(start, end)
            time = "" if span is None else f" {span_text(span.start, span.end)}"
            self._clips[clip_id] = Clip(
                clip_id,
                self._name(path) + time,
                path,
                self.media.add(path, self.index.may_hold),
                self.media.add_made(lambda: poster_of(path, self.decoder, span), ".jpg"),
                start,
                end,
                self.media.add_made(lambda: preview(path, self.decoder, span=span), ".mp4"),
            )
        return self._clips[clip_id]

    def _name(self, path: Path) -> str:
        """The path below the folder of the videos: other folders of the machine are not shown."""
        root = self.index.root
        return path.relative_to(root).as_posix() if root is not None and path.is_relative_to(root) else path.name

    def _id(self, path: Path, start: float | None, end: float | None) -> str:
        text = f"{os.fspath(path)}\0{start}\0{end}".encode("utf-8", "surrogateescape")
        return f"v-{hashlib.sha256(text).hexdigest()[:16]}"
