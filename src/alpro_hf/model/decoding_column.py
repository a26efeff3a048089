"""Clips as the `datasets` library gives them: mappings of bytes and path, and decoders of torchcodec.

A column of the type `datasets.Video` gives a `torchcodec.decoders.VideoDecoder`, or with `decode=False` a mapping
`{"bytes", "path"}`. This module imports neither library.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from transformers.video_utils import VideoMetadata

_FILE_KEYS = {"bytes", "path"}


class FrameDecoder(Protocol):
    """What is used of a `torchcodec.decoders.VideoDecoder`: its length, its metadata, and its frames by number."""

    metadata: Any

    def __len__(self) -> int: ...
    def get_frames_at(self, indices: list[int]) -> Any: ...


def is_file_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a mapping `{"bytes", "path"}`; one of the two may be absent."""
    return isinstance(value, Mapping) and bool(value) and value.keys() <= _FILE_KEYS


def is_frame_decoder(value: object) -> TypeGuard[FrameDecoder]:
    """Whether a value is an open video of torchcodec, told by what it can do."""
    return hasattr(value, "get_frames_at") and hasattr(value, "metadata")


def is_column(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a sequence of items besides list and tuple, such as a column of a data set."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview | list | tuple)


def file_of(value: Any) -> Any:
    """Return the file behind a value of a column of videos or images; any other value unchanged.

    Of a mapping `{"bytes", "path"}` it is the bytes, or else the path. Of a decoder that the `datasets` library made
    from a local file, it is that file, so that the frames are the same with and without torchcodec. Other decoders
    stay as they are, see `sampled_frames`: those of remote files, and those of another stream than the first.

    Raises:
        ValueError: A mapping has neither bytes nor a path.
    """
    if is_frame_decoder(value):
        encoded = _encoded(value)
        if getattr(value, "stream_index", 0) != 0:
            return value
        if encoded.get("bytes") is not None:
            return encoded["bytes"]
        path = encoded.get("path")
        return path if isinstance(path, str | os.PathLike) and os.path.exists(path) else value
    if not isinstance(value, Mapping):
        return value
    source = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if source is None:
        raise ValueError(
            f"A clip or image given as a mapping needs 'bytes' or a 'path' that is not None; it has {sorted(value)}."
        )
    return source


def path_of(value: Any) -> str | None:
    """Return the path of a clip or image, also of one whose bytes are at hand; None if it has none."""
    if is_frame_decoder(value):
        value = _encoded(value)
    path = value.get("path") if isinstance(value, Mapping) else value
    return os.fsdecode(path) if isinstance(path, str | os.PathLike) else None


def sampled_frames(decoder: FrameDecoder, choose: Callable[..., Any] | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the chosen frames of a decoder at their size, and their metadata by the names of `VideoMetadata`.

    Args:
        decoder: An open video.
        choose: Function from `metadata` to frame numbers; None: all frames.

    Returns:
        uint8 (T, 3, height, width) or (T, height, width, 3), as the decoder gives them; and a dictionary.
    """
    count, about = len(decoder), decoder.metadata
    facts = {
        "total_num_frames": count,
        "fps": about.average_fps,
        "width": about.width,
        "height": about.height,
        "duration": about.duration_seconds,
        "video_backend": "torchcodec",
    }
    chosen = list(range(count)) if choose is None else [int(i) for i in choose(metadata=VideoMetadata(**facts))]
    pixels: torch.Tensor = decoder.get_frames_at(chosen).data
    return pixels.cpu(), {**facts, "frames_indices": chosen, "frames_repeated": len(set(chosen)) < len(chosen)}


def _encoded(decoder: Any) -> Mapping[str, Any]:
    """What the `datasets` library made a decoder from; empty for a decoder of somebody else."""
    encoded = getattr(decoder, "_hf_encoded", None)
    return encoded if isinstance(encoded, Mapping) else {}


__all__ = [
    "FrameDecoder",
    "file_of",
    "is_column",
    "is_file_mapping",
    "is_frame_decoder",
    "path_of",
    "sampled_frames",
]
