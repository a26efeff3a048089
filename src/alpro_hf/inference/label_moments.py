"""Name what windows of a video show: the labels of a list whose texts are nearest."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span
from ..data.windows import WindowSettings
from ..model.decoding import decode, probe
from ..model.decoding_source import VideoSource
from ..model.matching_alpro import encode_clips
from .best_moment import encode_windows

TEMPLATE = "{}"
MAX_LABELS, MAX_CHARACTERS = 10_000, 1000
DEFAULT_WINDOWS = WindowSettings()


class LabelError(ValueError):
    """Labels, or the template of their texts, cannot be used."""


@dataclass(frozen=True)
class LabelledMoment:
    """The best labels of a moment.

    Args:
        span: Seconds of the video; None: it is short, and the labels are those of the whole.
        labels: (label, probability) with the most probable first. Probabilities of all labels add up to 1.
    """

    span: Span | None
    labels: list[tuple[str, float]]


class Labeller:
    """Labels windows by the text tower: a softmax over the similarities of all labels, at the model's temperature.

    Args:
        model: Any ALPRO model with both towers, on its device. It is put in evaluation mode.
        processor: Its `AlproProcessor`.
        labels: What to choose from, each once.
        template: Text of a label, with `{}` in its place, such as "a video of {}".

    Raises:
        LabelError: There is no label, one is blank or occurs twice, there are more than `MAX_LABELS` or longer ones
            than `MAX_CHARACTERS`, or the template has no `{}`.
    """

    def __init__(self, model: Any, processor: Any, labels: Sequence[str], template: str = TEMPLATE) -> None:
        if template.count("{}") != 1:
            raise LabelError(f"The template {template!r} must have {{}} once, in the place of the label.")
        if not labels or any(not label.strip() for label in labels):
            raise LabelError("There is no label, or one is blank. Give one or more texts.")
        if len(labels) > MAX_LABELS:  # the model reads each
            raise LabelError(f"There are {len(labels):,} labels. Give at most {MAX_LABELS:,}.")
        if long := next((text for text in (template, *labels) if len(text) > MAX_CHARACTERS), None):
            raise LabelError(
                f"The text {long[:60]!r}... has {len(long):,} characters. A label or template has at most "
                f"{MAX_CHARACTERS:,}."
            )
        twice = next((label for label, count in Counter(labels).items() if count > 1), None)
        if twice is not None:
            raise LabelError(f"The label {twice!r} occurs twice. Give each once.")
        self.model, self.processor, self.labels = model.eval(), processor, list(labels)
        self.texts = [template.replace("{}", label) for label in labels]
        self.vectors = torch.stack([self._vector(text) for text in self.texts])  # (labels, P)

    @torch.inference_mode()
    def _vector(self, text: str) -> torch.Tensor:
        inputs = self.processor(text=[text], return_tensors="pt").to(self.model.device)
        return self.model.base_model.get_text_features(inputs["input_ids"]).pooler_output[0].float()

    def probabilities(self, embed: torch.Tensor) -> torch.Tensor:
        """Probabilities of all labels, float32 (labels,), for the unit vector (P,) of a clip."""
        with torch.inference_mode():
            temperature = self.model.base_model.get_temperature().float()
            return (self.vectors @ embed.to(self.vectors) / temperature).softmax(dim=0).cpu()

    def label(
        self,
        video: VideoSource,
        *,
        top: int = 1,
        settings: WindowSettings | None = DEFAULT_WINDOWS,
        decoder: IsolatedDecoder | None = None,
    ) -> Iterator[LabelledMoment]:
        """Label the windows of a video, in one pass; a short video (`settings.short`) is one clip.

        Args:
            video: Path, bytes or file object.
            top: Labels of each window; all, if there are fewer.
            settings: How a long video is cut; None: it is one clip, too.
            decoder: Decodes in a process of its own.

        Raises:
            VideoDecodeError: The video is damaged. The windows before the damage come first.
        """
        info = probe(video) if decoder is None else decoder.probe(video)
        if settings is None or info.duration <= settings.short:
            frames_of = decode if decoder is None else decoder.decode
            seen = self.processor(videos=video, return_tensors="pt", decoder=frames_of)
            [clip] = encode_clips(self.model, seen["pixel_values_videos"])
            yield LabelledMoment(None, self._best(clip.embed, top))
            return
        for span, clip in encode_windows(self.model, self.processor, video, settings, decoder):
            yield LabelledMoment(span, self._best(clip.embed, top))

    def _best(self, embed: torch.Tensor, top: int) -> list[tuple[str, float]]:
        best = self.probabilities(embed).topk(min(top, len(self.labels)))
        return [(self.labels[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


__all__ = ["TEMPLATE", "LabelError", "LabelledMoment", "Labeller"]
