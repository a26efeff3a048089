"""Matching scores in sentence-transformers: a module for its `CrossEncoder`, next to the vectors of the bi-encoder.

The module has the methods and attributes of its `InputModule` without importing it, as sentence-transformers is an
extra.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ..model.decoding_column import file_of, is_file_mapping, is_frame_decoder
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import is_video_source


class AlproPairs(nn.Module):
    """Scores pairs of a text and a video by the fusion layers and the matching head (VTM).

    The score of a pair is the logit of "matched" minus the logit of "not matched". `CrossEncoder` applies a sigmoid,
    which gives the probability of a match. The videos of a batch are decoded and encoded once each.

    A pair is (text, video) or (video, text). A video is a path, a binary file object, an array, a value of a column of
    `datasets.Video`, or any of them as `{"video": ...}`.
    A string is a video if a file of that name exists, otherwise a text.

    Args:
        model: A retrieval model.
        processor: Its processor.

    Example:
        >>> from sentence_transformers import CrossEncoder
        >>> encoder = CrossEncoder(modules=[AlproPairs.load("my-model")])
        >>> encoder.rank("a fox runs to the left", ["fox.mp4", "pizza.mp4"])
    """

    save_in_root = True
    forward_kwargs: ClassVar[set[str]] = set()

    def __init__(self, model: AlproForVideoTextRetrieval, processor: AlproProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer

    @property
    def modalities(self) -> list[Any]:
        return ["text", "video", ("text", "video"), ("video", "text")]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Turn pairs into the inputs of the model.

        Args:
            inputs: Pairs of a text and a video.
            prompt: Text to put in front of each text.
            kwargs: Not used; part of the interface.

        Returns:
            `input_ids` and `attention_mask`, int64 (pairs, L); `pixel_values_videos`, float32 (videos, T, 3, H, W);
            `video_index`, int64 (pairs,), the video of each pair.

        Raises:
            ValueError: A pair is not a text and a video.
            VideoDecodeError: A video cannot be decoded.
        """
        texts: list[str] = []
        videos: list[Any] = []
        places: dict[Any, int] = {}  # path, or identity of another object -> its place in `videos`
        index = []
        for pair in inputs:
            text, video = _text_and_video(pair)
            key = os.fspath(video) if isinstance(video, str | os.PathLike) else id(video)
            if key not in places:
                places[key] = len(videos)
                videos.append(video)
            texts.append((prompt or "") + text)
            index.append(places[key])
        batch = self.processor(text=texts, videos=videos, return_tensors="pt")
        return {**batch, "video_index": torch.tensor(index)}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `scores` (pairs, 1), float32."""
        mask = features["attention_mask"]
        text: Any = self.model.get_text_features(features["input_ids"], mask)
        video: Any = self.model.get_video_features(features["pixel_values_videos"])
        logits = self.model.match(
            text.last_hidden_state, mask, video.last_hidden_state, video_index=features["video_index"]
        )
        features["scores"] = logits[:, 1:] - logits[:, :1]
        return features

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write model and processor to a folder."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "AlproPairs":
        """Load model and processor by folder or Hub id.

        Args:
            model_name_or_path: Folder or Hub id of a retrieval model.
            kwargs: Of these, `revision`, `cache_folder`, `token`, `local_files_only` and `model_kwargs` are used.
        """
        names = {"revision": "revision", "cache_folder": "cache_dir", "token": "token"}
        names |= {"local_files_only": "local_files_only"}
        where = {ours: kwargs[theirs] for theirs, ours in names.items() if kwargs.get(theirs) is not None}
        options = {**(kwargs.get("model_kwargs") or {}), **where}
        options.pop("trust_remote_code", None)  # the classes are here, so that no code of the folder is needed
        model = AlproForVideoTextRetrieval.from_pretrained(model_name_or_path, **options, trust_remote_code=False)
        return cls(model, AlproProcessor.from_pretrained(model_name_or_path, **where, trust_remote_code=False))


def _text_and_video(pair: Any) -> tuple[str, Any]:
    """The two parts of a pair, the text first."""
    items = [item["video"] if isinstance(item, Mapping) and "video" in item else item for item in pair]
    # a string that `{"video": ...}` marks is a video, whatever its name
    is_text = [isinstance(item, str) and not os.path.isfile(item) for item in pair]
    if len(items) != 2 or sum(is_text) != 1:
        found = ", ".join("a text" if text else "a video" for text in is_text)
        raise ValueError(
            f"A pair must be one text and one video; received {pair!r} ({found}). A string is a video if the file "
            "exists."
        )
    text, video = items if is_text[0] else items[::-1]
    if is_file_mapping(video) or is_frame_decoder(video):  # of a column of datasets.Video
        video = file_of(video)
    if is_frame_decoder(video):
        return text, video
    if not is_video_source(video) and not hasattr(video, "shape") and not isinstance(video, list | tuple):
        raise ValueError(f"{type(video).__name__} is not a video: pass a path, a binary file object or an array.")
    return text, video


__all__ = ["AlproPairs"]
