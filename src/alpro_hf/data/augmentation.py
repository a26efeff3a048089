"""Random changes to a clip that leave its meaning alone, and the box that prompting entity modeling looks into.

Everything here is a pure function of the frames and of a `torch.Generator`: the global random state is neither read
nor changed. Source: "Pre-training" and "Fine-tuning" in the implementation details of arXiv 2112.09583.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

Kind = Literal["video", "image", "finetune"]
Operation = Literal[
    "identity",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "horizontal_flip",
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

# strengths of RandAugment at the highest level
MAX_MAGNITUDE = 10
MAX_FACTOR = 0.9
MAX_SHEAR = 0.3
MAX_TRANSLATE = 0.45
MAX_DEGREES = 30.0

CANVAS = 256 / 224  # frames of a video are this much larger than the crop
IMAGE_AREA = (0.2, 1.0)
IMAGE_ASPECT = (3 / 4, 4 / 3)
GREY = 128


class AlproAugmentation:
    """What ALPRO does to frames in training, the same to all frames of a clip.

    - `video` (pre-training): resized to a square of 256/224 times the size, whatever the aspect, one random crop, then
      RandAugment(2, 5).
    - `image` (pre-training, an image being a clip of one frame): a random part of 20 to 100 % of the area, aspect
      (width / height) from 3/4 to 4/3, resized; mirrored half of the time; then RandAugment(2, 7).
    - `finetune`: resized without any crop, then RandAugment(2, 5).

    RandAugment(n, m) draws n of the operations with replacement and applies all of them, each at m tenths of its range
    and, where the operation has two directions, in one of them at random:

    | operation | range at magnitude 10 |
    | --- | --- |
    | `identity`, `horizontal_flip` | |
    | `contrast`, `brightness`, `sharpness` | factor 0.1 or 1.9; 1 changes nothing |
    | `shear_x`, `shear_y` | 0.3 pixels for each pixel from the middle |
    | `translate_x`, `translate_y` | 45 % of width or height, in whole pixels |
    | `rotate` | 30 degrees |

    These are the ranges of torchvision's RandAugment. Another convention has factors from 0.1 to 1.9 over the levels
    0 to 10, by which the paper's level 5 would leave contrast, brightness and sharpness exactly as they are. Contrast
    moves away from the mean of the whole clip rather than of each frame, so that a still background stays still when
    something bright appears. Where a picture has moved away, its place turns grey (128).

    Mirroring makes captions with "left" or "right" false. Leave `horizontal_flip` out of `operations` where captions
    speak of directions: then nothing is ever mirrored, images included. Translation can push what a caption names out
    of the picture, as a crop can.

    Args:
        kind: `video`, `image` or `finetune`.
        size: Height and width of the result in pixels; one number for a square.
        num_ops: Operations for each clip; 0 turns RandAugment off.
        magnitude: From 0 to 10; by default 5, and 7 for `image`.
        operations: What RandAugment may do, names out of `OPERATIONS`.

    Attributes:
        input_size: (height, width) to which frames are resized first; frames that have this size already, because the
            decoder was told so, are not resized again. None for `image`, which resizes what it has cut out.

    Raises:
        ValueError: An argument is outside what is listed here.

    Example:
        >>> augment = AlproAugmentation("video", 224, operations=[o for o in OPERATIONS if o != "horizontal_flip"])
        >>> frames = augment(frames, torch.Generator().manual_seed(0))  # uint8 (T, 3, H, W) -> uint8 (T, 3, 224, 224)
    """

    def __init__(
        self,
        kind: Kind,
        size: int | tuple[int, int],
        *,
        num_ops: int = 2,
        magnitude: float | None = None,
        operations: Sequence[Operation] = OPERATIONS,
    ):
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is unknown. Use one of {', '.join(get_args(Kind))}.")
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise ValueError(f"size={size!r} is neither a positive whole number nor a (height, width) of two.")
        if num_ops < 0:
            raise ValueError(f"num_ops={num_ops} is negative. 0 turns the random operations off.")
        if magnitude is None:
            magnitude = 7 if kind == "image" else 5
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude={magnitude} is outside 0 to {MAX_MAGNITUDE}.")
        if isinstance(operations, str):
            raise ValueError(f"operations={operations!r} is one name. Write a sequence of names: [{operations!r}].")
        for operation in operations:
            _check_operation(operation)
        if num_ops and not operations:
            raise ValueError("operations is empty. Name at least one, or turn them off with num_ops=0.")
        self.kind = kind
        self.size = (pair[0], pair[1])
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.operations = tuple(operations)
        self.input_size: tuple[int, int] | None = None
        if kind == "video":
            self.input_size = (round(CANVAS * pair[0]), round(CANVAS * pair[1]))
        elif kind == "finetune":
            self.input_size = self.size

    def __call__(self, frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One clip, changed at random.

        Args:
            frames: uint8 (T, 3, H, W) of any height and width. Left as they are.
            generator: Where every random number comes from; equally seeded generators give equal results.

        Returns:
            uint8 (T, 3, *size). It may share memory with `frames` where nothing changed.

        Raises:
            TypeError: `frames` is not a tensor of dtype uint8.
            ValueError: `frames` has another shape.
        """
        _check_frames(frames)
        height, width = self.size
        if self.kind == "image":
            top, left, rows, columns = _draw_part(frames.shape[-2], frames.shape[-1], generator)
            frames = _resize(frames[..., top : top + rows, left : left + columns], self.size)
            if _uniform(generator) < 0.5 and "horizontal_flip" in self.operations:
                frames = F.horizontal_flip(frames)
        elif self.kind == "video":
            assert self.input_size is not None
            frames = _resize(frames, self.input_size)
            top = _below(self.input_size[0] - height + 1, generator)
            left = _below(self.input_size[1] - width + 1, generator)
            frames = frames[..., top : top + height, left : left + width]
        else:
            frames = _resize(frames, self.size)
        for _ in range(self.num_ops):
            operation = self.operations[_below(len(self.operations), generator)]
            sign = 1 if _uniform(generator) < 0.5 else -1
            frames = apply_operation(frames, operation, sign * self.magnitude / MAX_MAGNITUDE)
        return frames.contiguous()

    def __repr__(self) -> str:
        return (
            f"AlproAugmentation({self.kind!r}, {self.size}, num_ops={self.num_ops}, magnitude={self.magnitude}, "
            f"operations={self.operations})"
        )


def apply_operation(frames: torch.Tensor, operation: Operation, strength: float) -> torch.Tensor:
    """One operation of RandAugment, the same for all frames.

    Args:
        frames: uint8 (T, 3, H, W).
        operation: A name out of `OPERATIONS`.
        strength: From -1 to 1, a share of the ranges that `AlproAugmentation` lists. Above 0: more contrast,
            brightness or sharpness; `shear_x` pushes the upper half to the right and `shear_y` the left half down;
            translation to the right or down; rotation counter-clockwise. Without effect on `identity` and
            `horizontal_flip`.

    Returns:
        uint8 (T, 3, H, W).

    Raises:
        ValueError: The operation is unknown.
    """
    _check_operation(operation)
    factor = 1 + MAX_FACTOR * strength
    match operation:
        case "identity":
            return frames
        case "horizontal_flip":
            return F.horizontal_flip(frames)
        case "brightness":
            return F.adjust_brightness(frames, factor)
        case "contrast":
            # the frames below each other are one picture, with one mean
            tall = frames.transpose(0, 1).flatten(1, 2)
            return F.adjust_contrast(tall, factor).unflatten(1, (len(frames), -1)).transpose(0, 1)
        case "sharpness":
            # several times faster than with each channel in one piece
            return F.adjust_sharpness(frames.contiguous(memory_format=torch.channels_last), factor)
        case "rotate":
            return _warp(frames, degrees=MAX_DEGREES * strength)
        case "shear_x":
            return _warp(frames, shear=(MAX_SHEAR * strength, 0.0))
        case "shear_y":
            return _warp(frames, shear=(0.0, MAX_SHEAR * strength))
        case "translate_x":
            return _shift(frames, round(MAX_TRANSLATE * strength * frames.shape[-1]), dim=-1)
        case "translate_y":
            return _shift(frames, round(MAX_TRANSLATE * strength * frames.shape[-2]), dim=-2)


def draw_crop(
    grid: tuple[int, int],
    generator: torch.Generator,
    *,
    area: tuple[float, float] = (0.3, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> torch.Tensor:
    """The box of prompting entity modeling, on the grid of patches and the same in all frames.

    The share of the area is drawn uniformly, then the aspect uniformly among those with which a box of this area fits
    (at half of the area, a box is at most twice as high as wide), then the place uniformly among all that are inside.
    Height and then width are rounded to whole patches, at least 1 and at most the grid. Rounding moves the share by up
    to half a row or column of the box: it lies between 0.28 and 0.54 on 14 x 14 patches, and between 0.25 and 0.57 on
    4 x 4. On 2 x 2 patches a box is one patch or two.

    Args:
        grid: Patches from top to bottom and from left to right, (h, w).
        generator: Where every random number comes from.
        area: Smallest and largest share of the grid.
        aspect: Smallest and largest height / width.

    Returns:
        bool (h, w), True inside the box.

    Raises:
        ValueError: A range is empty or outside what is possible, or the grid has no patch.
    """
    if min(grid) < 1:
        raise ValueError(f"grid={grid} has no patch. Divide height and width of the frames by the patch size.")
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area={area} is not a range of shares. Give (smallest, largest) above 0 and at most 1.")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect={aspect} is not a range of height / width. Give (smallest, largest) above 0.")
    rows, columns = grid
    patches = max(1.0, rows * columns * _between(area, generator))
    # neither side of the box under one patch or over the grid
    lowest = max(patches / columns**2, 1 / patches)
    highest = min(rows**2 / patches, patches)
    fitting = (min(max(aspect[0], lowest), highest), max(min(aspect[1], highest), lowest))
    height = _clamp(round(math.sqrt(patches * _between(fitting, generator))), 1, rows)
    width = _clamp(round(patches / height), 1, columns)
    top, left = _below(rows - height + 1, generator), _below(columns - width + 1, generator)
    return box_mask(grid, top, left, height, width)


def box_mask(grid: tuple[int, int], top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A box of patches as a mask.

    Args:
        grid: (h, w) in patches.
        top, left: The box's first row and column.
        height, width: Its size in patches, at least 1.

    Returns:
        bool (h, w), True inside.

    Raises:
        ValueError: The box is empty or not inside the grid.
    """
    bottom, right = top + height, left + width
    if not (0 <= top < bottom <= grid[0] and 0 <= left < right <= grid[1]):
        raise ValueError(
            f"The box of rows {top} to {bottom} and columns {left} to {right} (ends excluded) is empty or not inside "
            f"the grid of {grid[0]} x {grid[1]} patches."
        )
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


# ---------------------------------------------------------------------------------------------------------- the pixels


def _resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing, as the processor resizes arrays."""
    return F.resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _warp(frames: torch.Tensor, degrees: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    """Turned counter-clockwise or sheared (pixels for each pixel) about the middle, bilinear, on grey.

    torchvision fills with 0 at half the price of any other value. With grey as the zero of signed bytes, 0 is grey.
    """
    signed = (frames ^ GREY).view(torch.int8)
    moved = F.affine(
        signed,
        angle=-degrees,
        translate=[0, 0],
        scale=1.0,
        shear=[math.degrees(math.atan(push)) for push in shear],
        interpolation=InterpolationMode.BILINEAR,
    )
    return moved.view(torch.uint8) ^ GREY


def _shift(frames: torch.Tensor, pixels: int, dim: int) -> torch.Tensor:
    """Moved to the right or down, or where `pixels` is negative to the left or up, on grey."""
    kept = frames.shape[dim] - abs(pixels)
    moved = torch.full_like(frames, GREY)
    moved.narrow(dim, max(pixels, 0), kept).copy_(frames.narrow(dim, max(-pixels, 0), kept))
    return moved


def _draw_part(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of an image, by torchvision's rule for `RandomResizedCrop`.

    What does not fit is drawn again. After ten draws (a very long or flat image) it is the middle, as large as the
    aspects allow.
    """
    for _ in range(10):
        area = height * width * _between(IMAGE_AREA, generator)
        shape = math.exp(_between((math.log(IMAGE_ASPECT[0]), math.log(IMAGE_ASPECT[1])), generator))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return _below(height - rows + 1, generator), _below(width - columns + 1, generator), rows, columns
    rows = min(height, max(1, round(width / IMAGE_ASPECT[0])))
    columns = min(width, max(1, round(height * IMAGE_ASPECT[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


# --------------------------------------------------------------------------------------------------------------- draws


def _uniform(generator: torch.Generator) -> float:
    """In [0, 1)."""
    return torch.rand((), generator=generator).item()


def _between(limits: tuple[float, float], generator: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * _uniform(generator)


def _below(end: int, generator: torch.Generator) -> int:
    """A whole number from 0 to end - 1."""
    return int(torch.randint(end, (), generator=generator))


def _clamp(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


# -------------------------------------------------------------------------------------------------------------- checks


def _check_operation(operation: str) -> None:
    if operation not in OPERATIONS:
        raise ValueError(f"The operation {operation!r} is unknown. Use names out of {', '.join(OPERATIONS)}.")


def _check_frames(frames: torch.Tensor) -> None:
    if isinstance(frames, np.ndarray):
        raise TypeError(
            f"Frames are a numpy array of shape {frames.shape}, not a tensor. Write torch.from_numpy(frames), with "
            ".permute(0, 3, 1, 2) where channels come last."
        )
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8:
        received = frames.dtype if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise TypeError(f"Frames must be a uint8 tensor, received {received}. Augment before scaling and normalising.")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"Frames must have the shape (T, 3, height, width), received {tuple(frames.shape)}. Use "
            ".permute(0, 3, 1, 2) where channels come last, and one clip at a time."
        )


__all__ = ["OPERATIONS", "AlproAugmentation", "apply_operation", "box_mask", "draw_crop"]
