"""Find the cuts of a video from frames that come one after another, a few a second."""

from collections import deque
from statistics import fmean
from typing import Any, Protocol

import numpy as np

GRID = 8  # cells to a side, over which colours are averaged before two frames are compared
LARGE = 10.0  # of 255: the mean change of the cells at a cut; chosen on films of the validation split
SUDDEN = 3.0  # times the mean change of the frames before
REMEMBERED = 10  # frames before, of which that mean is taken
FAR = 5  # frames back with which a frame is compared to find a fade: a second at 5 frames a second
FADED = 16.0  # of 255: the mean change of the cells over so many frames, in the middle of a fade
STEADY = 2.0  # times the change that came in the same time before
_RATE = 5.0  # frames a second that PySceneDetect is told; its decisions do not depend on it


class CutDetector(Protocol):
    """Decides for each frame whether it begins a new shot.

    Attributes:
        delay: Frames that must follow a frame before the answer about it is known.
    """

    delay: int

    def is_cut(self, pixels: np.ndarray) -> bool:
        """Take the next frame, uint8 (3, H, W) in RGB. The answer is about the frame `delay` frames before it."""
        ...


class SuddenChange:
    """A cut is a change of the picture that is large, and large compared with the changes just before it.

    Fades are not found, see `AnyChange`. The numbers were chosen on films of the validation split of the sprite world.
    """

    delay = 0

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=REMEMBERED)

    def is_cut(self, pixels: np.ndarray) -> bool:
        """Take the next frame, uint8 (3, H, W) in RGB."""
        return self.is_jump(_grid_of(pixels))

    def is_jump(self, grid: np.ndarray) -> bool:
        """Take the next frame as mean colours of cells, float32 (3, cells, cells)."""
        before = self._before
        self._before = grid
        if before is None:
            return False
        change = float(np.abs(grid - before).mean())
        usual = fmean(self._changes) if self._changes else 0.0
        self._changes.append(change)
        return change > LARGE and change > SUDDEN * usual


class AnyChange:
    """A cut is a sudden change, or one that takes about a second: a fade from one shot to the next.

    The frame in the middle of a fade counts as the cut. A camera that moves steadily changes the picture as much in
    the second before, so it is no fade. The numbers were chosen on films of the validation split, with and without
    fades.
    """

    delay = 0

    def __init__(self) -> None:
        self._sudden = SuddenChange()
        self._grids: deque[np.ndarray] = deque(maxlen=2 * FAR + 1)

    def is_cut(self, pixels: np.ndarray) -> bool:
        """Take the next frame, uint8 (3, H, W) in RGB."""
        grid = _grid_of(pixels)
        jumped = self._sudden.is_jump(grid)
        self._grids.append(grid)
        if not jumped and not self._has_faded():
            return False
        self._grids.clear()  # what follows is compared with the new shot only
        self._grids.append(grid)
        return True

    def _has_faded(self) -> bool:
        middle = len(self._grids) - 1 - FAR
        if middle < 2:  # too little is known of what came before
            return False
        change = float(np.abs(self._grids[-1] - self._grids[middle]).mean())
        if change <= FADED:
            return False
        # the most in that time, and not at its end: a picture that flickers may end as it began
        before = max(float(np.abs(self._grids[number] - self._grids[0]).mean()) for number in range(1, middle + 1))
        return change > STEADY * before * FAR / middle


class SceneChange:
    """The adaptive detector of PySceneDetect (extra `scenes`) with its own defaults.

    It compares a change of the picture with the changes before and after it. Fades are not found, see `AnyChange`.
    On films of the validation split it found every cut and nothing else; the content detector missed 9 % of the cuts.

    Raises:
        ImportError: PySceneDetect is not installed.
    """

    def __init__(self) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector
        except ImportError as error:
            raise ImportError(
                'Cuts by "scenes" need PySceneDetect, which is not installed: pip install "alpro-hf[scenes]"'
            ) from error
        self._time: Any = FrameTimecode
        # the shortest length of a shot is a matter of the windows
        self._detector: Any = AdaptiveDetector(min_scene_len=1)
        self.delay: int = self._detector.event_buffer_length
        self._number = 0

    def is_cut(self, pixels: np.ndarray) -> bool:
        """Take the next frame, uint8 (3, H, W) in RGB. The answer is about the frame `delay` frames before it."""
        picture = np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))  # OpenCV's order of colours
        found = self._detector.process_frame(self._time(self._number, _RATE), picture)
        self._number += 1
        return bool(found)


def _grid_of(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of cells: float32 (3, cells, cells)."""
    cells: np.ndarray = pixels.astype(np.float32)
    for axis in (1, 2):
        edges = np.linspace(0, cells.shape[axis], min(GRID, cells.shape[axis]) + 1).astype(int)
        widths = np.diff(edges).reshape((-1, 1) if axis == 1 else (1, -1))
        cells = np.add.reduceat(cells, edges[:-1], axis=axis) / widths
    return cells


__all__ = ["AnyChange", "CutDetector", "SceneChange", "SuddenChange"]
