"""What the page does, without the page: models, gallery, uploads of visitors, searches and questions."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from ..assets import bundled_model
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span
from ..evaluation.results import RESULTS
from ..evaluation.unfamiliar import knows_only_sprites, unfamiliar_videos, unknown_words
from ..inference.caption_scores import CaptionScores, encode_sliding_windows, score_captions
from ..inference.explain import (
    EntityMaps,
    SentenceMaps,
    black_pixel,
    box_entities,
    entity_maps,
    patch_grid,
    word_maps,
)
from ..inference.question_answering import Answer, ask
from ..inference.video_index import SearchResult, VideoIndex
from ..loading import find_model, has_towers_alone
from ..model.configuration_alpro import AlproConfig
from ..model.decoding_types import Frames, VideoInfo
from ..model.matching_alpro import EncodedClip, encode_clips, matching_problem, most_similar, rerank_order
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from ..model.pretraining_alpro import AlproPrompterModel
from ..model.processing_alpro import AlproProcessor
from ..untrusted_json import read_json
from .clips import MAX_CLIPS, MAX_MEGABYTES, Clip, DemoError, Visit, checked_preview, data_uri, jpeg, poster
from .gallery import bundled_gallery
from .word_maps import trail

MAX_CHARACTERS = 200
DECODE_SECONDS, DECODE_MEMORY = 30.0, 2 * 1024**3  # per file; the process that decodes it is killed beyond them
RERANK = 16
ANSWERS = ENTITIES = 5
FRAME_SIDE = 256
FILM, FILM_SIDE = 8, 128  # frames under a curve, and the longer side of each in pixels
KEPT_CLIPS = 32  # features of clips that captions compete for


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
        prompter: Folder or Hub id of a trained prompter and its processor; None: the page names no entities.

    Raises:
        SystemExit: A checkpoint lacks weights of its task.
    """

    def __init__(self, model: str | None = None, qa_model: str | None = None, prompter: str | None = None) -> None:
        self.bundled = model is None
        self.names = (model or "sprites-retrieval (bundled)", qa_model or "sprites-qa (bundled)")
        # the page shows attention weights, which only eager attention returns
        source = find_model(model or str(bundled_model("retrieval")))
        self.source = Path(source)
        headless = has_towers_alone(AlproConfig.get_config_dict(source)[0])
        self.model, self.processor = _load(
            AlproModel if headless else AlproForVideoTextRetrieval, source, attn_implementation="eager"
        )
        self.can_match = matching_problem(self.model) is None
        self.qa = _load(AlproForVideoQuestionAnswering, qa_model or str(bundled_model("qa")))
        self.prompter: tuple[AlproPrompterModel, Any] | None = (
            None if prompter is None else _load(AlproPrompterModel, prompter)
        )
        self._encoded = lru_cache(KEPT_CLIPS)(self._encode)
        self._temporary = tempfile.TemporaryDirectory(prefix="alpro-demo-")
        self.folder = Path(self._temporary.name)
        self.decoder = IsolatedDecoder(deadline=DECODE_SECONDS, max_memory=DECODE_MEMORY)
        self.clips = bundled_gallery(self.folder / "gallery")
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
            preview = checked_preview(file, name, self.decoder)
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
            data_uri("video/mp4", preview),
            poster(preview),
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
        return [jpeg(pixels) for pixels in self._frames(clip)]

    def trail(self, clip: Clip) -> str:
        """One picture of the clip, see `word_maps.trail`: the data URI of a JPEG image."""
        return jpeg(trail(self._frames(clip)))

    def _frames(self, clip: Clip) -> torch.Tensor:
        processor = self.prompter[1] if self.prompter else self.processor
        info = self.decoder.probe(clip.path)
        seen = processor.video_processor(
            str(clip.path), return_tensors="pt", return_metadata=True, decoder=self._decode
        )
        indices = list(seen["video_metadata"][0].frames_indices)
        return self._decode(clip.path, indices, **_size(info, FRAME_SIDE)).pixels

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

    def _encode(self, clip: Clip) -> EncodedClip:
        with torch.inference_mode():
            return encode_clips(self.model, self._pixels(self.processor, clip))[0]

    def scores(self, clip: Clip, captions: Sequence[str]) -> CaptionScores:
        """Scores of captions that compete for a clip, (captions, 1)."""
        advice = "Write two captions, for instance “the giraffe rises” and “the giraffe falls”."
        texts = [_checked(caption, advice) for caption in captions]
        return score_captions(self.model, self.processor, texts, [self._encoded(clip)])

    def over_time(self, clip: Clip, captions: Sequence[str]) -> tuple[list[Span], CaptionScores, list[str]]:
        """Windows that slide over a clip, the scores of captions for them, and frames as data URIs of JPEG images."""
        texts = [
            _checked(text, "Write a sentence about the clip, for instance “the giraffe rises”.") for text in captions
        ]
        info = self.decoder.probe(clip.path)
        windows, encoded = encode_sliding_windows(self.model, self.processor, clip.path, info, decoder=self._decode)
        indices = info.frames_at([info.duration * (i + 0.5) / FILM for i in range(FILM)])
        film = self._decode(clip.path, indices, **_size(info, FILM_SIDE)).pixels
        return windows, score_captions(self.model, self.processor, texts, encoded), [jpeg(frame) for frame in film]


def _size(info: VideoInfo, side: int) -> dict[str, int]:
    """Height and width of frames in the proportions of a video, the longer of them `side` pixels."""
    scale = side / max(info.width, info.height)
    return {"height": max(1, round(info.height * scale)), "width": max(1, round(info.width * scale))}


def bundled_results(task: Literal["retrieval", "qa"]) -> dict[str, Any]:
    """Measured results of a bundled model on the split `test`, from the file next to its weights."""
    content = read_json(Path(bundled_model(task)) / RESULTS)
    return content["results"]["test"]


def _load(kind: Any, source: str, **options: Any) -> tuple[Any, Any]:
    source = find_model(source)
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


def from_environment() -> Studio:
    """A studio with the models named by `ALPRO_MODEL`, `ALPRO_QA_MODEL` and `ALPRO_PROMPTER` (folders or Hub ids)."""
    names = ("ALPRO_MODEL", "ALPRO_QA_MODEL", "ALPRO_PROMPTER")
    return Studio(*(os.environ.get(name) or None for name in names))
