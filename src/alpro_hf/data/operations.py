"""Names of the operations of RandAugment, in a module that imports no torch: help texts and recipes list them."""

from typing import Literal, get_args

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
RandAugment = Literal["released", "torchvision"]
RANDAUGMENTS: tuple[RandAugment, ...] = get_args(RandAugment)

__all__ = ["OPERATIONS", "RANDAUGMENTS", "Operation", "RandAugment"]
