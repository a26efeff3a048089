"""One picture of a clip in which what moves is seen at all its places."""

import numpy as np
import torch

_STILL = 40.0  # difference of grey levels from which a pixel counts as moving
_MOST_MOVING = 0.5  # share of the picture; above it the camera moves, and ghosts would hide everything
_FAINTEST = 0.35  # of what moves, in the first frame


def trail(frames: torch.Tensor) -> torch.Tensor:
    """One picture of a clip in which what moves is seen at all its places, fainter where it was earlier.

    The model averages patches over time, so one map holds for all frames; such a picture shows where they all were.

    Args:
        frames: uint8 (T, 3, H, W).

    Returns:
        uint8 (3, H, W): the middle frame if more than half of the picture moves.
    """
    clip = frames.numpy().astype(np.float32)
    still = np.median(clip, axis=0)
    moving = np.clip(np.abs(clip - still).max(axis=1, keepdims=True) / _STILL, 0, 1)  # (T, 1, H, W)
    if moving.mean(axis=(1, 2, 3)).max() > _MOST_MOVING:
        return frames[len(frames) // 2]
    picture = still
    for frame, mask, strength in zip(clip, moving, np.linspace(_FAINTEST, 1, len(clip)), strict=True):
        picture = picture + strength * mask * (frame - picture)
    return torch.from_numpy(picture.round().clip(0, 255).astype(np.uint8))


__all__ = ["trail"]
