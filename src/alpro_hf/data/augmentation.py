"""Random changes of a clip that keep its meaning, and the crop box of prompting entity modeling.

All functions here are pure functions of the frames and a `torch.Generator`: they neither read nor change the global
random state. Source: "Pre-training" and "Fine-tuning" in the implementation details of arXiv 2112.09583.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F  # noqa: N812

from .operations import OPERATIONS, RANDAUGMENTS, Operation, RandAugment

Kind = Literal["video", "image", "finetune"]

MAX_MAGNITUDE = 10
# ranges of the operations at the highest magnitude, those of torchvision's RandAugment
MAX_FACTOR = 0.9
MAX_SHEAR = 0.3
MAX_TRANSLATE = 0.45
MAX_DEGREES = 30.0

CANVAS = 256 / 224  # side of the resized frames of a video, as a multiple of the side of the crop
IMAGE_AREA = (0.2, 1.0)
IMAGE_ASPECT = (3 / 4, 4 / 3)
GREY = 128  # fills areas from outside of the picture

# RandAugment of the released code, at the highest magnitude
RELEASED_FACTOR = (0.1, 1.9)  # at the magnitudes 0 and 10
RELEASED_PIXELS = 10  # of a translation, whatever the size of the frame
IMAGE_PROBABILITY = 0.5  # with which a drawn operation is applied to an image
NOT_FOR_IMAGES = ("contrast", "horizontal_flip")


class AlproAugmentation:
    """The augmentation of ALPRO in training, the same for all frames of a clip.

    - `video` (pre-training): resize to 256/224 times the size, ignoring the aspect ratio; one random crop; then
      RandAugment(2, 5).
    - `image` (pre-training; an image is a clip of one frame): cut out a random part of 20 to 100 % of the area, aspect
      ratio (width / height) from 3/4 to 4/3; resize; mirror half of the time; then RandAugment(2, 7).
    - `finetune`: resize without a crop, then RandAugment(2, 5).

    `randaugment` chooses what RandAugment(n, m) means.

    - `released`, as in the released code: a clip gets n different operations, all applied, always in one direction.
      An image gets n operations, drawn with replacement, each applied with probability 0.5; `contrast` and
      `horizontal_flip` are not among them. At magnitude 5 a factor is 1, so that `contrast`, `brightness` and
      `sharpness` change nothing, and 13 % of clips stay as they are.
    - `torchvision`: clips and images get n operations, drawn with replacement, all applied. If an operation has two
      directions, one is drawn. The ranges are those of torchvision's RandAugment.

    | operation | `released` at magnitude m | `torchvision` at magnitude m |
    | --- | --- | --- |
    | `identity`, `horizontal_flip` | | |
    | `contrast`, `brightness`, `sharpness` | factor 0.1 + 0.18 m | factor 1 - 0.09 m or 1 + 0.09 m |
    | `shear_x`, `shear_y` | 0.03 m about the upper left corner, right or down | 0.03 m about the middle |
    | `translate_x`, `translate_y` | m pixels, left or up | 4.5 m % of width or height, in whole pixels |
    | `rotate` | 3 m degrees counter-clockwise | 3 m degrees |

    A factor of 1 changes nothing. A shear is in pixels for each pixel of distance.

    Contrast is relative to the mean of the whole clip instead of each frame, so that a still background stays still
    when something bright appears. Areas from outside of the picture are filled with grey (128). The kernels are
    torchvision's, also for `released`, whose original uses OpenCV: single pixels differ by interpolation.

    Mirroring makes captions with "left" or "right" false. If captions speak of directions, leave `horizontal_flip` out
    of `operations`: then nothing is mirrored, including images. Translation, like a crop, can push what a caption
    names out of the picture.

    Args:
        kind: `video`, `image` or `finetune`.
        size: Height and width of the result in pixels; one number for a square.
        num_ops: Number of operations for each clip; 0 turns RandAugment off.
        magnitude: From 0 to 10; by default 5, and 7 for `image`.
        operations: Operations that RandAugment draws from, names of `OPERATIONS`.
        randaugment: `released` or `torchvision`, see above.

    Attributes:
        input_size: (height, width) to which frames are resized first; frames that the decoder has given this size are
            not resized again. None for `image`, which resizes the part that it has cut out.

    Raises:
        ValueError: An argument is outside of the values listed here.

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
        randaugment: RandAugment = "released",
    ):
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is unknown. Use one of {', '.join(get_args(Kind))}.")
        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise ValueError(f"size={size!r} is neither a positive whole number nor a pair (height, width).")
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
        if randaugment not in RANDAUGMENTS:
            raise ValueError(f"randaugment={randaugment!r} is unknown. Use one of {', '.join(RANDAUGMENTS)}.")
        self.kind = kind
        self.randaugment = randaugment
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
        """Augment one clip.

        Args:
            frames: uint8 (T, 3, H, W) of any height and width. They are not changed in place.
            generator: Source of all random numbers; equally seeded generators give equal results.

        Returns:
            uint8 (T, 3, *size). It may share memory with `frames` if nothing changed.

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
        if self.randaugment == "released":
            for operation in self._draw_released(generator):
                frames = apply_released_operation(frames, operation, self.magnitude)
        else:
            for _ in range(self.num_ops):
                operation = self.operations[_below(len(self.operations), generator)]
                sign = 1 if _uniform(generator) < 0.5 else -1
                frames = apply_operation(frames, operation, sign * self.magnitude / MAX_MAGNITUDE)
        return frames.contiguous()

    def _draw_released(self, generator: torch.Generator) -> list[Operation]:
        """Draw the operations of the released code for a clip, or for an image."""
        if self.kind == "image":
            operations = [operation for operation in self.operations if operation not in NOT_FOR_IMAGES]
            drawn = [operations[_below(len(operations), generator)] for _ in range(self.num_ops if operations else 0)]
            return [operation for operation in drawn if _uniform(generator) < IMAGE_PROBABILITY]
        order = torch.randperm(len(self.operations), generator=generator).tolist()
        return [self.operations[index] for index in order[: self.num_ops]]

    def __repr__(self) -> str:
        return (
            f"AlproAugmentation({self.kind!r}, {self.size}, num_ops={self.num_ops}, magnitude={self.magnitude}, "
            f"operations={self.operations}, randaugment={self.randaugment!r})"
        )


def apply_operation(frames: torch.Tensor, operation: Operation, strength: float) -> torch.Tensor:
    """Apply one operation of RandAugment with the ranges of torchvision, the same to all frames.

    Args:
        frames: uint8 (T, 3, H, W).
        operation: A name of `OPERATIONS`.
        strength: From -1 to 1, a share of the ranges that `AlproAugmentation` lists. Above 0: more contrast,
            brightness or sharpness; `shear_x` pushes the upper half to the right and `shear_y` the left half down;
            translation is to the right or down, rotation counter-clockwise. `identity` and `horizontal_flip` ignore
            it.

    Returns:
        uint8 (T, 3, H, W).

    Raises:
        ValueError: The operation is unknown.
    """
    _check_operation(operation)
    match operation:
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
        case _:
            return _recolour(frames, operation, 1 + MAX_FACTOR * strength)


def apply_released_operation(frames: torch.Tensor, operation: Operation, magnitude: float) -> torch.Tensor:
    """Apply one operation of RandAugment as in the released code, the same to all frames.

    Args:
        frames: uint8 (T, 3, H, W).
        operation: A name of `OPERATIONS`.
        magnitude: From 0 to 10, see `AlproAugmentation`. Translations are rounded to whole pixels.

    Returns:
        uint8 (T, 3, H, W).

    Raises:
        ValueError: The operation is unknown.
    """
    _check_operation(operation)
    share = magnitude / MAX_MAGNITUDE
    match operation:
        case "rotate":
            return _warp(frames, degrees=MAX_DEGREES * share)
        # Parity: OpenCV shears about the upper left corner. A shear of torchvision takes the opposite sign.
        case "shear_x":
            return _warp(frames, shear=(-MAX_SHEAR * share, 0.0), center=[0.0, 0.0])
        case "shear_y":
            return _warp(frames, shear=(0.0, -MAX_SHEAR * share), center=[0.0, 0.0])
        case "translate_x":
            return _shift(frames, -round(RELEASED_PIXELS * share), dim=-1)
        case "translate_y":
            return _shift(frames, -round(RELEASED_PIXELS * share), dim=-2)
        case _:
            low, high = RELEASED_FACTOR
            return _recolour(frames, operation, low + (high - low) * share)


def draw_crop(
    grid: tuple[int, int],
    generator: torch.Generator,
    *,
    area: tuple[float, float] = (0.3, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> torch.Tensor:
    """Draw the box of prompting entity modeling on the grid of patches, the same in all frames.

    The share of the area is drawn uniformly; then the aspect ratio, uniformly among those with which a box of this
    area fits (at half of the area, a box is at most twice as high as wide); then the position, uniformly among all
    inside the grid. Height and then width are rounded to whole patches, at least 1 and at most the grid. Rounding
    changes the share by up to half a row or column of the box: it lies between 0.28 and 0.54 on 14 x 14 patches, and
    between 0.25 and 0.57 on 4 x 4. On 2 x 2 patches a box has one or two patches.

    Args:
        grid: Number of patches, (h, w).
        generator: Source of all random numbers.
        area: Smallest and largest share of the grid.
        aspect: Smallest and largest height / width.

    Returns:
        bool (h, w), True inside the box.

    Raises:
        ValueError: A range is empty or impossible, or the grid has no patch.
    """
    if min(grid) < 1:
        raise ValueError(f"grid={grid} has no patch. Divide height and width of the frames by the patch size.")
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area={area} is not a range of shares. Give (smallest, largest) above 0 and at most 1.")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect={aspect} is not a range of height / width. Give (smallest, largest) above 0.")
    rows, columns = grid
    patches = max(1.0, rows * columns * _between(area, generator))
    # aspect ratios at which neither side of the box is below one patch or above the grid
    lowest = max(patches / columns**2, 1 / patches)
    highest = min(rows**2 / patches, patches)
    fitting = (min(max(aspect[0], lowest), highest), max(min(aspect[1], highest), lowest))
    height = _clamp(round(math.sqrt(patches * _between(fitting, generator))), 1, rows)
    width = _clamp(round(patches / height), 1, columns)
    top, left = _below(rows - height + 1, generator), _below(columns - width + 1, generator)
    return box_mask(grid, top, left, height, width)


def box_mask(grid: tuple[int, int], top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Make a mask of a box of patches.

    Args:
        grid: (h, w) in patches.
        top, left: First row and column of the box.
        height, width: Size of the box in patches, at least 1.

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


def _recolour(frames: torch.Tensor, operation: Operation, factor: float) -> torch.Tensor:
    """Apply an operation that moves nothing, except by mirroring. A factor of 1 changes nothing."""
    match operation:
        case "horizontal_flip":
            return F.horizontal_flip(frames)
        case "brightness" if factor != 1:
            return F.adjust_brightness(frames, factor)
        case "contrast" if factor != 1:
            # the frames, one below the other, are one picture with one mean
            tall = frames.transpose(0, 1).flatten(1, 2)
            return F.adjust_contrast(tall, factor).unflatten(1, (len(frames), -1)).transpose(0, 1)
        case "sharpness" if factor != 1:
            # several times faster than with the channels first in memory
            return F.adjust_sharpness(frames.contiguous(memory_format=torch.channels_last), factor)
        case _:
            return frames


def _warp(
    frames: torch.Tensor,
    degrees: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> torch.Tensor:
    """Rotate counter-clockwise or shear (pixels for each pixel), bilinear, with a grey fill.

    The fixed point is `center` (x, y), in pixels from the upper left corner; None: the middle.

    torchvision fills with 0 in half the time of any other value. The frames are mapped to signed bytes in which grey
    is 0.
    """
    signed = (frames ^ GREY).view(torch.int8)
    moved = F.affine(
        signed,
        angle=-degrees,
        translate=[0, 0],
        scale=1.0,
        shear=[math.degrees(math.atan(push)) for push in shear],
        interpolation=InterpolationMode.BILINEAR,
        center=center,
    )
    return moved.view(torch.uint8) ^ GREY


def _shift(frames: torch.Tensor, pixels: int, dim: int) -> torch.Tensor:
    """Move to the right or down, or to the left or up if `pixels` is negative, with a grey fill."""
    kept = frames.shape[dim] - abs(pixels)
    moved = torch.full_like(frames, GREY)
    moved.narrow(dim, max(pixels, 0), kept).copy_(frames.narrow(dim, max(-pixels, 0), kept))
    return moved


def _draw_part(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a part of an image by the rule of torchvision's `RandomResizedCrop`: top, left, height, width.

    A part that does not fit is drawn again. After ten draws (for a very high or wide image) it is the middle of the
    image, as large as the aspect ratios allow.
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
    """A number in [0, 1)."""
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
        raise ValueError(f"The operation {operation!r} is unknown. Choose from {', '.join(OPERATIONS)}.")


def _check_frames(frames: torch.Tensor) -> None:
    if isinstance(frames, np.ndarray):
        raise TypeError(
            f"Frames are a numpy array of shape {frames.shape}, not a tensor. Write torch.from_numpy(frames), with "
            ".permute(0, 3, 1, 2) if channels come last."
        )
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8:
        received = frames.dtype if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise TypeError(f"Frames must be a uint8 tensor, received {received}. Augment before scaling and normalising.")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"Frames must have the shape (T, 3, height, width), received {tuple(frames.shape)}. Use "
            ".permute(0, 3, 1, 2) if channels come last, and pass one clip at a time."
        )


__all__ = ["OPERATIONS", "AlproAugmentation", "apply_operation", "apply_released_operation", "box_mask", "draw_crop"]
