"""Measure a training step of the video tower whose patches are a matrix product, against one with a convolution.

    python scripts/benchmarks/patches.py

A step is forward and backward of clips of 4 frames: 96 of the bundled size, one of the base size. Weights are random.
The sides take turns. Times are CPU seconds of one thread, which depend less on other programs.
"""

import argparse
import copy
import json
from functools import partial

import torch
from common import NO_BF16, alternate, conditions, markdown
from torch import nn

from alpro_hf import AlproVideoConfig, AlproVideoModel
from alpro_hf.loading import fast_bfloat16

SIZES = {
    "bundled": (96, {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}),
    "base": (1, {"image_size": 224}),
}


def with_convolution(tower: AlproVideoModel) -> AlproVideoModel:
    """A copy of the tower with the same weights, whose patches are a convolution."""
    copied = copy.deepcopy(tower)
    patches = copied.embeddings.patch_embed
    convolution = nn.Conv2d(patches.in_channels, patches.out_channels, patches.kernel_size, patches.stride)
    convolution.load_state_dict(patches.state_dict())
    copied.embeddings.patch_embed = convolution
    return copied


def step(tower: AlproVideoModel, clips: torch.Tensor, half: bool) -> None:
    """Forward and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = tower(clips).pooler_output.float().square().mean()
    loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="steps of each side (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models (default: both)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name in arguments.sizes:
        clips, sizes = SIZES[name]
        config = AlproVideoConfig(**{"image_size": 64, "num_frames": 4, **sizes})
        product = AlproVideoModel(config).train()
        sides = {"convolution": with_convolution(product), "product": product}
        for side in sides.values():
            side.set_attn_implementation("eager")  # as in scripts/sprites/train.py
        pixels = torch.randn(clips, 4, 3, config.image_size, config.image_size)
        for half in (False, True):
            row: dict[str, object] = {"model": name, "numbers": "bfloat16" if half else "float32"}
            if half and not fast_bfloat16("cpu"):
                rows.append(row | {"convolution over product": NO_BF16})
                continue
            runs = {side: partial(step, tower, pixels, half) for side, tower in sides.items()}
            cpu = {side: found["cpu"] for side, found in alternate(runs, arguments.rounds).items()}
            ratio = cpu["convolution"] / cpu["product"]
            rows.append(row | {f"{side} cpu s": cpu[side] for side in sides} | {"convolution over product": ratio})
    print(json.dumps(conditions()))
    print(markdown(rows))


if __name__ == "__main__":
    main()
