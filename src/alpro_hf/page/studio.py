"""What the page does, without the page: models, gallery, uploads of visitors, searches and questions."""

import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps

from ..assets import bundled_model
from ..data.decode_span import span_decoder
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span, SpanError, parse_span, span_text
from ..evaluation.results import RESULTS
from ..evaluation.unfamiliar import knows_only_sprites, unfamiliar_videos, unknown_words
from ..hub.card import ModelCardError, TrainingFacts, model_card
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
from ..loading import BUNDLED, BUNDLED_BY_TASK, CommandError, download_model, find_model, load_model
from ..model.decoding_types import Frames, VideoDecodeError, VideoInfo, middles_of
from ..model.matching_alpro import EncodedClip, encode_clips, matching_problem, most_similar
from ..model.pretraining_alpro import AlproPrompterModel
from ..model.processing_alpro import AlproProcessor
from ..untrusted_json import read_json
from .clips import MAX_CLIPS, MAX_MEGABYTES, SHOWN_AS, Clip, DemoError, Visit, checked_preview, data_uri, jpeg, poster
from .gallery import Collection, IndexClips, bundled_gallery
from .media import Media
from .trail import trail

MAX_CHARACTERS = 200
DECODE_SECONDS, DECODE_MEMORY = 30.0, 2 * 1024**3  # per file; the process that decodes it is killed beyond them
RERANK = 16
FROM_INDEX = 48  # results of a search in one's own index
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
        model: Folder or Hub id of the retrieval model; None: the one that made the index of the gallery, or the
            bundled one.
        qa_model: Folder or Hub id of the question-answering model; None: the bundled one.
        prompter: Folder or Hub id of a trained prompter and its processor; None: the page names no entities.
        gallery: Videos of one's own; None: clips of the sprite world.
        questions: Whether there is a question-answering model at all.
        say: Called with what is done next, in words.

    Raises:
        CommandError: A checkpoint lacks weights of its task, or the gallery holds no video.
        ModelNotFoundError: There is no such model.
        VideoIndexError: The index of the gallery cannot be used with the model.
    """

    def __init__(
        self,
        model: str | None = None,
        qa_model: str | None = None,
        prompter: str | None = None,
        gallery: Collection | None = None,
        *,
        questions: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.bundled = model is None and gallery is None
        self.qa_bundled = qa_model is None and questions
        search_name = model or (gallery and gallery.model_name()) or BUNDLED
        say(f"loading the model for searches, {shown_name(search_name)}")
        self.model, self.processor = load_model("retrieval", search_name, device="cpu")
        self.model.set_attn_implementation("eager")  # the page shows attention weights, which only it returns
        self.can_match = matching_problem(self.model) is None
        found = find_model(search_name)
        self.source = Path(download_model(found))  # where its measured choices are, also those of a model on the Hub
        self.facts = TrainingFacts.of_model(found)
        self.qa: tuple[Any, Any] | None = None
        qa_name = qa_model or BUNDLED
        if questions:
            say(f"loading the model for questions, {shown_name(qa_name)}")
            self.qa = load_model("qa", qa_name, device="cpu")
        self.names = (shown_name(search_name), shown_name(qa_name) if questions else "")
        self.prompter: tuple[AlproPrompterModel, Any] | None = None
        if prompter is not None:
            say(f"loading the prompter, {shown_name(prompter)}")
            self.prompter = _load(AlproPrompterModel, prompter)
        self._encoded = lru_cache(KEPT_CLIPS)(self._encode)
        # held while the index of the gallery is read: it is read again if another process has changed it
        self._lock = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="alpro-demo-")
        self.folder = Path(self._temporary.name)
        self.media = Media(self.folder / "made")
        self.decoder = IsolatedDecoder(deadline=DECODE_SECONDS, max_memory=DECODE_MEMORY)
        self.collection: IndexClips | None = None
        try:
            if gallery is None:
                say("rendering and encoding the clips of the gallery")
                self.clips = bundled_gallery(self.folder / "gallery", self.media)
                self.index = self._new_index([clip.path for clip in self.clips])
            else:
                say("opening the videos, and encoding what is new in a folder")
                self.index = gallery.open(self.model, self.processor, search_name, self.decoder)
                self.collection = IndexClips(self.index, self.media, self.decoder)
                self.clips = self.collection.shelf()
                if not self.clips:
                    raise CommandError(
                        f"The videos of {gallery.where} lie outside of its folder of videos. If you trust it, allow "
                        "it (--allow-outside)."
                    )
        except BaseException:
            self.close()
            raise
        self._strange: dict[Path, bool] = {}
        self.card = self._card(found)

    def _card(self, source: str) -> str:
        """Address of the card of the model for searches."""
        if not os.path.isdir(source):
            return f"https://huggingface.co/{source}"
        return self.media.add_made(lambda: _card_of(Path(source), self.names[0]), ".txt")

    def _new_index(self, paths: Sequence[Path]) -> VideoIndex:
        return VideoIndex.build(self.model, self.processor, paths, progress=False, decoder=self.decoder)

    def close(self) -> None:
        """Stop the processes that decode, and delete all files, including those of visitors."""
        self.decoder.close()
        self._temporary.cleanup()

    @property
    def sprites(self) -> bool:
        """Whether the model for searches knows the sprite world alone, so that examples of that world suit it."""
        return knows_only_sprites(self.model)

    # ---------------------------------------------------------------------------------------------------------- clips

    def find(self, clip_id: str, visit: Visit) -> Clip:
        """The clip with an id, in the gallery or among the visitor's own.

        Raises:
            DemoError: There is none, or no longer.
        """
        whole, _, moment = clip_id.partition("@")
        for clip in [*visit.clips, *self.clips]:
            if clip.id == whole:
                try:
                    return _moment_of(clip, parse_span(moment)) if moment else clip
                except SpanError:  # an address that somebody has edited
                    break
        found = self.collection.find(clip_id) if self.collection else None
        if found is not None:
            return found
        raise DemoError("This clip is gone: uploads are deleted after an hour. Pick another or upload it again.")

    def add(self, file: Path, name: str, visit: Visit) -> Clip:
        """Add a file to a visit: check it, copy it to the visitor's folder, encode it.

        Args:
            file: The upload.
            name: Name of the file on the visitor's machine.
            visit: The visit, which is changed.

        Raises:
            DemoError: The file cannot be used, and was deleted; or there are too many; or it, or the folder of the
                visit, was deleted meanwhile.
        """
        try:
            return self._added(file, name, visit)
        except FileNotFoundError as error:
            raise DemoError(f"“{name}” was deleted before it was read. Upload it again.") from error

    def _added(self, file: Path, name: str, visit: Visit) -> Clip:
        visit.on_forget = self._forgotten
        # another visitor may have the same file, so it stays
        if len(visit.clips) >= MAX_CLIPS:
            raise DemoError(f"You already have {MAX_CLIPS} clips here, which is the limit. Remove them first.")
        try:
            if file.stat().st_size > MAX_MEGABYTES * 1024**2:
                raise DemoError(f"“{name}” is larger than {MAX_MEGABYTES} MB, the limit here.")
            small = checked_preview(file, name, self.decoder)
            with visit.lock:
                folder = visit.folder or Path(tempfile.mkdtemp(prefix="visit-", dir=self.folder))
                visit.folder, visit.uploads = folder, visit.uploads + 1
                number = visit.uploads
            # A copy, because visitors who upload the same content share one file of gradio. guard.py deletes it later.
            path = Path(shutil.copyfile(file, folder / str(number)))
        except DemoError:
            file.unlink(missing_ok=True)
            raise
        shown, picture = (path.with_suffix(suffix) for suffix in SHOWN_AS)
        shown.write_bytes(small)
        picture.write_bytes(poster(small))
        strange = self._is_strange(path)
        # last, because the visitor may remove all clips meanwhile: what is in the index is also among the clips
        with visit.lock:
            index = visit.index
            if index is None:
                index = visit.index = self._new_index([path])
            else:
                index.add([path], progress=False, decoder=self.decoder)
            if index.report.failed:  # it was readable when it came
                raise FileNotFoundError(path)
            clip = Clip(
                f"mine-{number}",
                Path(name).stem[:60],
                path,
                self.media.add(shown),
                self.media.add(picture),
                mine=True,
                strange=strange,
            )
            visit.clips.append(clip)
        return clip

    def _forgotten(self, clips: Sequence[Clip]) -> None:
        for clip in clips:
            self.media.forget(clip.addresses)

    def _is_strange(self, path: Path) -> bool:
        models = [self.model, *(self.qa or ())[:1]]
        limited = [model for model in models if knows_only_sprites(model)]
        return bool(limited and unfamiliar_videos(limited[0], [path], self.decoder))

    def is_strange(self, clip: Clip) -> bool:
        """Whether a clip is not of the world that one of the models knows, and nothing else."""
        if self.collection is None or clip.mine:
            return clip.strange
        if clip.path not in self._strange:
            self._strange[clip.path] = self._is_strange(clip.path)
        return self._strange[clip.path]

    # ------------------------------------------------------------------------------------------------------ the tasks

    def unknown_words(self, text: str, *, question: bool = False) -> list[str]:
        """Words of a text that the retrieval model, or the one that answers questions, cannot know."""
        return unknown_words(*(self._qa() if question else (self.model, self.processor)), text)

    def unfamiliar(self, visit: Visit) -> list[Clip]:
        """Clips of a visitor that are not of the world that one of the models knows, and nothing else."""
        return [clip for clip in visit.clips if clip.strange]

    def search(self, text: str, visit: Visit) -> list[Found]:
        """Clips, best first: the 16 most similar ones in the order of their match, then the others by similarity.

        These 16 are those of the protocol `rerank`. They are in the order of the matching probability that is shown,
        as in the protocol `reference`. Without a trained matching head, all are in the order of similarity. Of a
        gallery of one's own, the best `FROM_INDEX` are listed.
        """
        text = _checked(text, "Describe what happens in a clip, for instance “the giraffe rises”.")
        own = visit.clips if self.collection else [*visit.clips, *self.clips]
        clips = {clip.path: clip for clip in own}
        found: list[SearchResult] = []
        most = len(self.index) if self.collection is None else FROM_INDEX
        for index, lock, count in ((self.index, self._lock, most), (visit.index, visit.lock, MAX_CLIPS)):
            with lock:
                if index is not None and len(index):
                    found += index.search(text, top_k=count, rerank=RERANK if self.can_match else 0)
        # each index re-ranks its own best candidates; those include the best of all, and only these may count
        before = most_similar(torch.tensor([result.similarity for result in found]), len(found)).tolist()
        matched = before[:RERANK] if self.can_match else []
        # as far as a float32 tells them apart; equal ones by similarity
        matched.sort(key=lambda i: (-(found[i].match_probability or 0.0), -found[i].similarity))
        rank_before = {i: rank for rank, i in enumerate(before, start=1)}
        return [
            Found(
                clip=self._clip_of(found[i], clips),
                rank=rank,
                rank_before=rank_before[i],
                similarity=found[i].similarity,
                match_probability=found[i].match_probability if i in matched else None,
            )
            for rank, i in enumerate([*matched, *before[len(matched) :]], start=1)
        ]

    def _clip_of(self, result: SearchResult, clips: Mapping[Path, Clip]) -> Clip:
        if result.path in clips:
            span = None if result.start is None or result.end is None else Span(result.start, result.end)
            return _moment_of(clips[result.path], span) if span else clips[result.path]
        assert self.collection is not None  # all other clips have a path of their own
        return self.collection.clip(result.path, result.start, result.end)

    def _qa(self) -> tuple[Any, Any]:
        if self.qa is None:
            raise DemoError("There is no model for questions here. The operator of the page can name one.")
        return self.qa

    def ask(self, clip: Clip, question: str) -> list[Answer]:
        """The five most probable answers."""
        question = _checked(question, "Ask something about the clip, for instance “what does the bell do?”.")
        return ask(*self._qa(), clip.path, [question], top_k=ANSWERS, span=clip.span, decoder=self.decoder)[0]

    def _pixels(self, processor: Any, clip: Clip) -> torch.Tensor:
        pixels = processor.video_processor(
            str(clip.path), return_tensors="pt", decoder=self._decoder_of(clip, processor)
        )
        return pixels["pixel_values_videos"]

    def _decoder_of(self, clip: Clip, processor: Any) -> Callable[..., Frames]:
        """Decodes the frames of a clip that a model reads: those of its moment, or of the whole file."""
        return self._decode if clip.span is None else span_decoder(processor, clip.span, self._decode)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that boxes are drawn on."""
        model, processor = self.prompter or (self.model, self.processor)
        size = processor.video_processor.size
        return patch_grid(model, torch.empty(0, size["height"], size["width"]))

    def frames(self, clip: Clip) -> list[str]:
        """The frames that the model reads, in the proportions of the file: data URIs of JPEG images."""
        return [data_uri("image/jpeg", jpeg(pixels)) for pixels in self._frames(clip)]

    def trail(self, clip: Clip) -> str:
        """One picture of the clip, see `trail.trail`: the data URI of a JPEG image."""
        return data_uri("image/jpeg", jpeg(trail(self._frames(clip))))

    def _frames(self, clip: Clip) -> torch.Tensor:
        processor = self.prompter[1] if self.prompter else self.processor
        info = self.decoder.probe(clip.path)
        seen = processor.video_processor(
            str(clip.path), return_tensors="pt", return_metadata=True, decoder=self._decoder_of(clip, processor)
        )
        indices = list(seen["video_metadata"][0].frames_indices)
        return self._decode(clip.path, indices, **_size(info, FRAME_SIDE)).pixels

    def _decode(self, source: Any, indices: Any = None, **options: Any) -> Frames:
        """Decode in a separate process; for clips of the gallery, with the frame positions that the index stores."""
        with self._lock:
            table = self.index.frame_table(source)
        return self.decoder.decode(source, indices, table=table, **options)

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
        advice = "Write a sentence about the clip, for instance “the giraffe rises”."
        texts = [_checked(text, advice) for text in captions]
        info = self.decoder.probe(clip.path)
        span = clip.span or Span(0.0, info.duration)
        windows, encoded = encode_sliding_windows(
            self.model, self.processor, clip.path, info, span, decoder=self._decode
        )
        indices = info.frames_at(middles_of(span.start, span.end, FILM))
        film = self._decode(clip.path, indices, **_size(info, FILM_SIDE)).pixels
        pictures = [data_uri("image/jpeg", jpeg(frame)) for frame in film]
        return windows, score_captions(self.model, self.processor, texts, encoded), pictures


def _size(info: VideoInfo, side: int) -> dict[str, int]:
    """Height and width of frames in the proportions of a video, the longer of them `side` pixels."""
    scale = side / max(info.width, info.height)
    return {"height": max(1, round(info.height * scale)), "width": max(1, round(info.width * scale))}


def _moment_of(clip: Clip, span: Span) -> Clip:
    """A moment of an upload that is long enough to have some."""
    title = f"{clip.title} {span_text(span.start, span.end)}"
    return replace(clip, id=f"{clip.id}@{span.start:g}-{span.end:g}", title=title, start=span.start, end=span.end)


def bundled_results(task: Literal["retrieval", "qa"]) -> dict[str, Any]:
    """Measured results of a bundled model on the split `test`, from the file next to its weights."""
    content = read_json(Path(bundled_model(task)) / RESULTS)
    return content["results"]["test"]


def _load(kind: Any, source: str, **options: Any) -> tuple[Any, Any]:
    source = download_model(find_model(source))
    model, report = kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
    if report["missing_keys"]:
        raise CommandError(
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


def _card_of(folder: Path, name: str) -> bytes:
    try:
        return str(model_card(folder, name=name)).encode()
    except ModelCardError as error:
        raise OSError(str(error)) from error


def cover(studio: Studio) -> bytes:
    """A picture of the page: clips of the gallery side by side, 1200 x 630 pixels, as JPEG."""
    columns, rows = 6, 3
    picture = Image.new("RGB", (1200, 630), "#131519")
    for place, clip in enumerate(studio.clips[: columns * rows]):
        with suppress(VideoDecodeError, OSError):  # a video that is gone leaves its place empty
            small = Image.open(io.BytesIO(studio.media.read(clip.poster)))
            tile = ImageOps.fit(small, (196, 206))
            picture.paste(tile, (2 + 200 * (place % columns), 2 + 210 * (place // columns)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def shown_name(name: str) -> str:
    """A model for visitors: its Hub id, or the last part of a folder, whose place is nobody's business."""
    if name == BUNDLED or name in BUNDLED_BY_TASK:
        return "the bundled model"
    return Path(name).resolve().name if os.path.isdir(name) else name


def from_environment(say: Callable[[str], None] = lambda text: None) -> Studio:
    """A studio with what `ALPRO_MODEL`, `ALPRO_QA_MODEL`, `ALPRO_PROMPTER` and `ALPRO_GALLERY` name.

    The first three are folders or Hub ids; the last one is an index, or a folder of videos.
    """
    model, qa_model, prompter, gallery = (
        os.environ.get(f"ALPRO_{name}") or None for name in ("MODEL", "QA_MODEL", "PROMPTER", "GALLERY")
    )
    return Studio(model, qa_model, prompter, Collection(Path(gallery)) if gallery else None, say=say)
