"""What an index is made of: the settings of its processor, and what was chosen for the index, such as frames."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..data.windows import WindowSettings
from .index_bounds import TOKEN_DTYPES
from .index_shards import VideoIndexError

# settings of the video processor that change the pixels; an index is only valid for the ones it was made with
_SETTINGS = ("num_frames", "fps", "frame_sampling", "size", "resample", "image_mean", "image_std")
_WINDOWS = "windows"  # key of the manifest's settings: how long videos are cut
_TOKENS = "token_dtype"  # key of the manifest's settings: the type of the tokens, if it is not that of the model
_CHOSEN = "chosen"  # key of the manifest's settings: those that were chosen for the index, with their values


def chosen_frames(num_frames: int | None, size: int | None) -> dict[str, int]:
    """The settings that are not None, by name."""
    given = {"num_frames": num_frames, "size": size}
    return {name: value for name, value in given.items() if value is not None}


def choose_frames(processor: Any, patch: int, chosen: Mapping[str, int]) -> Any:
    """A processor with other frames.

    Args:
        processor: An `AlproProcessor`, which stays as it is.
        patch: Side of the model's patches in pixels.
        chosen: `num_frames`, `size` or both, see `chosen_frames`.

    Returns:
        The processor if nothing is chosen, else a copy.

    Raises:
        VideoIndexError: A number is out of range, or patches do not tile frames of this size.
    """
    for name, value in chosen.items():
        if type(value) is not int or value < 1:
            raise VideoIndexError(f"{name}={value!r} must be a whole number of at least 1.")
    if not chosen:
        return processor
    processor = copy.copy(processor)
    video = processor.video_processor = copy.deepcopy(processor.video_processor)
    if "num_frames" in chosen:
        video.num_frames, video.fps, video.do_sample_frames = chosen["num_frames"], None, True
    if "size" in chosen:
        side = chosen["size"]
        if side % patch:
            near = sorted({max(patch, side // patch * patch), (side // patch + 1) * patch})
            raise VideoIndexError(
                f"size={side} must be a multiple of {patch}, the side of the model's patches in pixels, such as "
                f"{' or '.join(map(str, near))}."
            )
        video.size = {"height": side, "width": side}
    return processor


def noted_windows(settings: Mapping[str, Any]) -> WindowSettings | None:
    """How the long videos of an index are cut, from the settings of its manifest; None: they are not.

    Raises:
        VideoIndexError: The manifest is damaged.
    """
    noted = settings.get(_WINDOWS)
    if noted is None:
        return None
    try:
        return WindowSettings(**noted | {"lengths": tuple(noted["lengths"])})
    except (KeyError, TypeError, ValueError) as error:
        raise VideoIndexError(f"The manifest of the index is damaged: {_WINDOWS}={noted!r:.200} ({error}).") from error


def check_token_dtype(token_dtype: str | None) -> str | None:
    """The data type that tokens are stored in; None: that of the model.

    Raises:
        VideoIndexError: There is no such type.
    """
    if token_dtype is not None and token_dtype not in TOKEN_DTYPES:
        raise VideoIndexError(
            f"token_dtype={token_dtype!r:.80} (--token-dtype) must be {' or '.join(TOKEN_DTYPES)}, or left out."
        )
    return token_dtype


def noted_token_dtype(settings: Mapping[str, Any]) -> str | None:
    """The data type of the tokens of an index, from the settings of its manifest; None: that of the model.

    Raises:
        VideoIndexError: The manifest is damaged.
    """
    noted = settings.get(_TOKENS)
    if noted is not None and not (isinstance(noted, str) and noted in TOKEN_DTYPES):
        raise VideoIndexError(f"The manifest of the index is damaged: {_TOKENS}={noted!r:.80} is no type of tokens.")
    return noted


def video_settings(
    processor: Any,
    chosen: Mapping[str, int],
    windows: WindowSettings | None = None,
    token_dtype: str | None = None,
) -> dict[str, Any]:
    """The settings that decide what an index is made of, as a manifest keeps them.

    Args:
        processor: The processor of the index.
        chosen: What was chosen for the index instead of the model's own, see `chosen_frames`.
        windows: How long videos are cut.
        token_dtype: See `noted_token_dtype`.
    """
    settings = json.loads(processor.video_processor.to_json_string())
    found = {key: settings.get(key) for key in _SETTINGS}
    if chosen:
        found |= {_CHOSEN: dict(chosen)}
    if windows is not None:
        found |= {_WINDOWS: asdict(windows) | {"lengths": list(windows.lengths)}}
    if token_dtype is not None:
        found |= {_TOKENS: token_dtype}
    return found


def noted_frames(settings: Mapping[str, Any]) -> dict[str, int]:
    """The settings that were chosen for an index, from those of its manifest."""
    noted = settings.get(_CHOSEN, {})
    if not isinstance(noted, dict) or not noted.keys() <= {"num_frames", "size"}:
        raise VideoIndexError(f"The manifest of the index is damaged: {_CHOSEN}={noted!r} names no frames.")
    return noted


def made_with(settings: Mapping[str, Any], name: str) -> Any:
    """The value of `num_frames` or `size` that an index was made with, from the settings of its manifest."""
    value = settings.get(name)
    if name == "size" and isinstance(value, dict) and value.get("height") == value.get("width"):
        return value.get("height")
    return value


__all__ = [
    "check_token_dtype",
    "choose_frames",
    "chosen_frames",
    "made_with",
    "noted_frames",
    "noted_token_dtype",
    "noted_windows",
    "video_settings",
]
