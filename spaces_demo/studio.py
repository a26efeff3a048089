"""The demo without its web page: models, gallery, uploads of visitors, searches and questions."""

import base64
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import torch
from PIL import Image

from alpro_hf import (
    AlproConfig,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
    VideoDecodeError,
    VideoIndex,
    build_prompter,
    bundled_model,
)
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.evaluation.results import RESULTS
from alpro_hf.evaluation.unfamiliar import knows_only_sprites, unfamiliar_videos, unknown_words
from alpro_hf.inference.explain import (
    EntityMaps,
    SentenceMaps,
    black_pixel,
    box_entities,
    entity_maps,
    patch_grid,
    word_maps,
)
from alpro_hf.inference.question_answering import Answer, ask
from alpro_hf.inference.video_index import SearchResult
from alpro_hf.loading import download_model, find_model, has_towers_alone
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_types import (
    CorruptVideoError,
    DecoderFailedError,
    EmptyVideoError,
    Frames,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    UnsupportedVideoError,
    VideoInfo,
    VideoTooLargeError,
)
from alpro_hf.model.matching_alpro import matching_problem, most_similar, rerank_order
from alpro_hf.sprites.language import DOING
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import SEEN_SPRITES, Scene, content, draw_group, draw_scene
from alpro_hf.untrusted_json import read_json

MAX_CLIPS = 8  # per visitor
MAX_MEGABYTES = 20
MAX_SECONDS = 60
MAX_PIXELS = 4096 * 2304
MAX_CHARACTERS = 200
DECODE_SECONDS, DECODE_MEMORY = 30.0, 2 * 1024**3  # per file; the process that decodes it is killed beyond them
RERANK = 16
ANSWERS = ENTITIES = 5
GALLERY_SIDE = 192
PREVIEW_SIDE, PREVIEW_FRAMES, PREVIEW_RATE = 240, 240, 10
FRAME_SIDE = 256

# messages for people who know nothing of containers and codecs
PROBLEMS: dict[type[VideoDecodeError], str] = {
    NotAVideoError: "is not a video. Upload an mp4, mov, mkv, webm or avi file.",
    NoVideoStreamError: "contains no moving pictures, only sound or a still image.",
    EmptyVideoError: "is empty.",
    TruncatedVideoError: "is incomplete. Upload the whole file.",
    CorruptVideoError: "is damaged and cannot be read.",
    UnsupportedVideoError: "is of a kind that cannot be decoded here. Upload an mp4, mov, mkv, webm or avi file.",
    DecoderFailedError: "cannot be decoded here: it takes too long or is damaged.",
    VideoTooLargeError: "is too large to be decoded here.",
}


class DemoError(ValueError):
    """A request of a visitor cannot be fulfilled; the message says why, in plain words."""


@dataclass(frozen=True)
class Clip:
    """A video of the gallery or of a visitor.

    Args:
        id: Unique among the clips that a visitor sees.
        title: Title for people.
        path: The file.
        preview: Data URI of a small H.264 version, which every browser plays.
        poster: Data URI of its middle frame as JPEG.
        mine: Whether the visitor uploaded it.
    """

    id: str
    title: str
    path: Path
    preview: str
    poster: str
    mine: bool = False


@dataclass
class Visit:
    """The uploads of one visitor, which nobody else sees."""

    clips: list[Clip] = field(default_factory=list)
    index: VideoIndex | None = None
    folder: Path | None = None
    uploads: int = 0

    def forget(self) -> None:
        """Delete all uploads."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.clips, self.index, self.folder = [], None, None


@dataclass(frozen=True)
class Found:
    """A result of a search.

    Args:
        clip: The clip.
        rank: Rank after re-ranking, from 1.
        rank_before: Rank by similarity alone, from 1.
        similarity: Cosine similarity of text and clip (VTC).
        match_probability: Probability by the matching head (VTM); None if the clip was not re-ranked.
    """

    clip: Clip
    rank: int
    rank_before: int
    similarity: float
    match_probability: float | None


class Studio:
    """The models, loaded once, and the gallery.

    Args:
        model: Folder or Hub id of the retrieval model; None: the bundled one.
        qa_model: Folder or Hub id of the question-answering model; None: the bundled one.
        prompter: Folder or Hub id of the prompter and its processor; None: a prompter built from the towers of the
            bundled retrieval model, or no prompter for any other model.

    Raises:
        SystemExit: A checkpoint lacks weights of its task.
    """

    def __init__(self, model: str | None = None, qa_model: str | None = None, prompter: str | None = None) -> None:
        self.bundled = model is None
        self.names = (model or "sprites-retrieval (bundled)", qa_model or "sprites-qa (bundled)")
        # the page shows attention weights, which only eager attention returns
        source = find_model(model or str(bundled_model("retrieval")))
        headless = has_towers_alone(AlproConfig.get_config_dict(source)[0])
        self.model, self.processor = _load(
            AlproModel if headless else AlproForVideoTextRetrieval, source, attn_implementation="eager"
        )
        self.can_match = matching_problem(self.model) is None
        self.qa = _load(AlproForVideoQuestionAnswering, qa_model or str(bundled_model("qa")))
        self.prompter: tuple[AlproPrompterModel, Any] | None = None
        self.own_prompter = prompter is not None
        if prompter is not None:
            self.prompter = _load(AlproPrompterModel, prompter)
        elif self.bundled:
            built = build_prompter(self.model, self.processor, SEEN_SPRITES, progress=False)
            self.prompter = (built, self.processor)
        self._temporary = tempfile.TemporaryDirectory(prefix="alpro-demo-")
        self.folder = Path(self._temporary.name)
        self.decoder = IsolatedDecoder(deadline=DECODE_SECONDS, max_memory=DECODE_MEMORY)
        self.clips = _gallery(self.folder / "gallery")
        self.index = self._new_index([clip.path for clip in self.clips])

    def _new_index(self, paths: Sequence[Path]) -> VideoIndex:
        return VideoIndex.build(self.model, self.processor, paths, progress=False, decoder=self.decoder)

    def close(self) -> None:
        """Stop the processes that decode, and delete all files, including those of visitors."""
        self.decoder.close()
        self._temporary.cleanup()

    # ---------------------------------------------------------------------------------------------------------- clips

    def find(self, clip_id: str, visit: Visit) -> Clip:
        """The clip with an id, in the gallery or among the visitor's own.

        Raises:
            DemoError: There is none, or no longer.
        """
        for clip in [*visit.clips, *self.clips]:
            if clip.id == clip_id:
                return clip
        raise DemoError("This clip is gone: uploads are deleted after an hour. Pick another or upload it again.")

    def add(self, file: Path, name: str, visit: Visit) -> Clip:
        """Add a file to a visit: check it, copy it to the visitor's folder, encode it.

        Args:
            file: The upload.
            name: Name of the file on the visitor's machine.
            visit: The visit, which is changed.

        Raises:
            DemoError: The file cannot be used. It was deleted.
        """
        try:
            if len(visit.clips) >= MAX_CLIPS:
                raise DemoError(f"You already have {MAX_CLIPS} clips here, which is the limit. Remove them first.")
            if file.stat().st_size > MAX_MEGABYTES * 1024**2:
                raise DemoError(f"“{name}” is larger than {MAX_MEGABYTES} MB, the limit here.")
            preview = _checked_preview(file, name, self.decoder)
            if visit.folder is None:
                visit.folder = Path(tempfile.mkdtemp(prefix="visit-", dir=self.folder))
            visit.uploads += 1
            # A copy, because visitors who upload the same content share one file of gradio. guard.py deletes it later.
            path = Path(shutil.copyfile(file, visit.folder / str(visit.uploads)))
        except DemoError:
            file.unlink(missing_ok=True)
            raise
        clip = Clip(
            f"mine-{visit.uploads}",
            Path(name).stem[:60],
            path,
            _data_uri("video/mp4", preview),
            _poster(preview),
            mine=True,
        )
        if visit.index is None:
            visit.index = self._new_index([path])
        else:
            visit.index.add([path], progress=False, decoder=self.decoder)
        visit.clips.append(clip)
        return clip

    # ------------------------------------------------------------------------------------------------------ the tasks

    def unknown_words(self, text: str, *, question: bool = False) -> list[str]:
        """Words of a text that the retrieval model, or the one that answers questions, cannot know."""
        return unknown_words(*(self.qa if question else (self.model, self.processor)), text)

    def unfamiliar(self, visit: Visit) -> list[Clip]:
        """Clips of a visitor that are not of the world that one of the models knows, and nothing else."""
        limited = [model for model in (self.model, self.qa[0]) if knows_only_sprites(model)]
        paths = [clip.path for clip in visit.clips]
        strange = unfamiliar_videos(limited[0], paths, self.decoder) if limited else []
        return [clip for clip in visit.clips if clip.path in strange]

    def search(self, text: str, visit: Visit) -> list[Found]:
        """All clips, best first: the 16 most similar ones in the order of the matching head, then the others.

        Without a trained matching head, all are in the order of similarity.
        """
        text = _checked(text, "Describe what happens in a clip, for instance “the giraffe rises”.")
        clips = {clip.path: clip for clip in [*visit.clips, *self.clips]}
        found: list[SearchResult] = []
        for index in (self.index, visit.index):
            if index is not None and len(index):
                found += index.search(text, top_k=len(index), rerank=RERANK if self.can_match else 0)
        # each index re-ranks its own best candidates; those include the best of all, and only these may count
        similarity = torch.tensor([result.similarity for result in found])
        scores = torch.tensor([result.score for result in found])
        before = {found[i].path: rank for rank, i in enumerate(most_similar(similarity, len(found)).tolist(), start=1)}
        after = [found[i] for i in rerank_order(similarity, scores, RERANK).tolist()]
        return [
            Found(
                clip=clips[result.path],
                rank=rank,
                rank_before=before[result.path],
                similarity=result.similarity,
                match_probability=result.match_probability if rank <= RERANK else None,
            )
            for rank, result in enumerate(after, start=1)
        ]

    def ask(self, clip: Clip, question: str) -> list[Answer]:
        """The five most probable answers."""
        question = _checked(question, "Ask something about the clip, for instance “what does the bell do?”.")
        return ask(*self.qa, clip.path, [question], top_k=ANSWERS, decoder=self.decoder)[0]

    def _pixels(self, processor: Any, clip: Clip) -> torch.Tensor:
        pixels = processor.video_processor(str(clip.path), return_tensors="pt", decoder=self._decode)
        return pixels["pixel_values_videos"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that boxes are drawn on."""
        model, processor = self.prompter or (self.model, self.processor)
        size = processor.video_processor.size
        return patch_grid(model, torch.empty(0, size["height"], size["width"]))

    def frames(self, clip: Clip) -> list[str]:
        """The frames that the model reads, in the proportions of the file: data URIs of JPEG images."""
        processor = self.prompter[1] if self.prompter else self.processor
        info = self.decoder.probe(clip.path)
        seen = processor.video_processor(
            str(clip.path), return_tensors="pt", return_metadata=True, decoder=self._decode
        )
        indices = list(seen["video_metadata"][0].frames_indices)
        scale = FRAME_SIDE / max(info.width, info.height)
        size = {"height": max(1, round(info.height * scale)), "width": max(1, round(info.width * scale))}
        return [_jpeg(pixels) for pixels in self._decode(clip.path, indices, **size).pixels]

    def _decode(self, source: Any, indices: Any = None, **options: Any) -> Frames:
        """Decode in a separate process; for clips of the gallery, with the frame positions that the index stores."""
        return self.index.decode(source, indices, decoder=self.decoder, **options)

    def _prompter(self) -> tuple[AlproPrompterModel, Any]:
        if self.prompter is None:
            raise DemoError(
                "This model has no prompter, so it cannot name what is in a box. The operator of the demo can set one "
                "with ALPRO_PROMPTER."
            )
        return self.prompter

    @property
    def entities(self) -> list[str]:
        """Names of the entities that the prompter knows."""
        return list(self._prompter()[0].config.entities or ())

    def box(self, clip: Clip, box: Sequence[int]) -> list[tuple[str, float]]:
        """The most probable entities of a box.

        Args:
            clip: The clip.
            box: Top, left, bottom, right, in patches; bottom and right are exclusive.
        """
        prompter, processor = self._prompter()
        rows, columns = self.grid
        top, left, bottom, right = box
        if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
            raise DemoError("The box lies outside the picture. Draw it inside.")
        mask = torch.zeros(1, rows, columns, dtype=torch.bool)
        mask[:, top:bottom, left:right] = True
        pixels = self._pixels(processor, clip)
        found = box_entities(prompter, pixels, mask, black_pixel(processor.video_processor))[0]
        best = found.topk(min(ENTITIES, len(found)))
        return [(self.entities[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def regions(self, clip: Clip) -> EntityMaps:
        """The probability of every entity at every patch."""
        prompter, processor = self._prompter()
        return entity_maps(prompter, self._pixels(processor, clip), black_pixel(processor.video_processor))

    def words(self, clip: Clip, sentence: str) -> SentenceMaps:
        """The patches that each word of a sentence attends to."""
        sentence = _checked(sentence, "Write a sentence about the clip, for instance “the giraffe rises”.")
        if not self.can_match:
            raise DemoError(
                "This model has no trained matching head, so no words and patches read each other. Search works, by "
                "similarity alone."
            )
        return word_maps(self.model, self.processor, sentence, self._pixels(self.processor, clip))


def bundled_results(task: Literal["retrieval", "qa"]) -> dict[str, Any]:
    """Measured results of a bundled model on the split `test`, from the file next to its weights."""
    content = read_json(Path(bundled_model(task)) / RESULTS)
    return content["results"]["test"]


def _load(kind: Any, source: str, **options: Any) -> tuple[Any, Any]:
    source = download_model(find_model(source))
    model, report = kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
    if report["missing_keys"]:
        raise SystemExit(
            f"{source} is not a checkpoint of {kind.__name__}: "
            f"it lacks {', '.join(sorted(report['missing_keys'])[:5])}."
        )
    return model.eval(), AlproProcessor.from_pretrained(source, trust_remote_code=False)


def _checked(text: str, advice: str) -> str:
    text = " ".join((text or "").split())
    if not text:
        raise DemoError(advice)
    if len(text) > MAX_CHARACTERS:
        raise DemoError(f"This text has {len(text)} characters; the limit is {MAX_CHARACTERS}.")
    return text


# --------------------------------------------------------------------------------------------------------------- clips


def _gallery(folder: Path) -> list[Clip]:
    """Render 24 test clips of the sprite world: the first 16 of `test`, and the first two groups of `test-hard`."""
    folder.mkdir(parents=True)
    scenes = [draw_scene("test", 0, index) for index in range(16)]
    scenes += [scene for group in range(2) for scene in draw_group("test-hard", 0, group)]
    clips = []
    for number, scene in enumerate(scenes, start=1):
        path = folder / f"{number:02}.mp4"
        write_clip(path, scene, size=GALLERY_SIDE)
        video = path.read_bytes()
        clips.append(Clip(path.stem, _title(scene), path, _data_uri("video/mp4", video), _poster(video)))
    return clips


def _title(scene: Scene) -> str:
    kind, roles = content(scene)
    if kind == "relation":
        (agent, action), (patient, _) = roles
        return f"{agent} {DOING[action]} {patient}"
    return (", then " if kind == "sequence" else ", ").join(f"{sprite} {DOING[action]}" for sprite, action in roles)


def _checked_preview(file: Path, name: str, decoder: IsolatedDecoder) -> bytes:
    try:
        info = decoder.probe(file)
        if info.duration > MAX_SECONDS:
            raise DemoError(f"“{name}” lasts {info.duration:.0f} seconds; the limit is {MAX_SECONDS} seconds.")
        if info.width * info.height > MAX_PIXELS:
            raise DemoError(
                f"“{name}” has {info.width} x {info.height} pixels, more than 4K. Upload a smaller version."
            )
        return _preview(file, info, decoder)
    except VideoDecodeError as error:
        problem = PROBLEMS.get(type(error), f"cannot be used: {error.problem}.")
        raise DemoError(f"“{name}” {problem}") from error


def _preview(file: Path, info: VideoInfo, decoder: IsolatedDecoder) -> bytes:
    """A small H.264 version in the original speed, without sound."""
    rate = min(PREVIEW_RATE, PREVIEW_FRAMES / max(info.duration, 1))
    if info.frame_times is None and info.fps is not None:  # more frames than there are would only repeat some
        rate = min(rate, info.fps)
    count = max(1, round(info.duration * rate))
    scale = min(1.0, PREVIEW_SIDE / max(info.width, info.height))
    height, width = (max(16, round(side * scale / 2) * 2) for side in (info.height, info.width))
    indices = info.frames_at([(i + 0.5) / rate for i in range(count)])
    frames = decoder.decode(file, indices, height=height, width=width).pixels
    result = io.BytesIO()
    with av.open(result, "w", format="mp4") as container:
        options = {"crf": "26", "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            picture = pixels.permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return result.getvalue()


def _poster(video: bytes) -> str:
    return _jpeg(decode(video, lambda info: [info.num_frames // 2]).pixels[0])


def _jpeg(pixels: torch.Tensor) -> str:
    """A frame, uint8 (3, H, W), as a data URI of a JPEG image."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=85)
    return _data_uri("image/jpeg", file.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def from_environment() -> Studio:
    """A studio with the models named by `ALPRO_MODEL`, `ALPRO_QA_MODEL` and `ALPRO_PROMPTER` (folders or Hub ids)."""
    names = ("ALPRO_MODEL", "ALPRO_QA_MODEL", "ALPRO_PROMPTER")
    return Studio(*(os.environ.get(name) or None for name in names))
