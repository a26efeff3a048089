"""Measure attention alone, on the shapes of the video tower: sdpa and eager attention take turns. See run.py."""

import argparse
from typing import Any

import torch
from common import alternate
from torch.nn.functional import scaled_dot_product_attention

from alpro_hf import AlproForVideoTextRetrieval
from alpro_hf.loading import fast_bfloat16
from alpro_hf.model.modeling_alpro import eager_attention_forward


def attention(ours: AlproForVideoTextRetrieval, arguments: argparse.Namespace, clips: int) -> list[dict[str, Any]]:
    """Times of one layer of a model, by attention (time, space), numbers and implementation."""
    video = ours.config.video_config
    patches, heads = (video.image_size // video.patch_size) ** 2, video.num_attention_heads
    shapes = {
        "time": (clips * patches, arguments.frames),
        "space": (clips * arguments.frames, 1 + patches),
    }
    module = ours.alpro.video_model.layers[0]
    rows = []
    for dtype in (torch.float32, *([torch.bfloat16] if fast_bfloat16(arguments.device) else [])):
        for name, (sequences, length) in shapes.items():
            wide = torch.randn(sequences, length, 3 * video.hidden_size, device=arguments.device).to(dtype)
            # views of one stacked projection, as in the model
            parts = wide.view(sequences, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            scaling = parts[0].shape[-1] ** -0.5
            sides = {
                "sdpa": lambda parts=parts, scaling=scaling: scaled_dot_product_attention(*parts, scale=scaling),
                "eager": lambda parts=parts, scaling=scaling: eager_attention_forward(
                    module, *parts, None, scaling=scaling
                ),
            }
            found = alternate(sides, 10 * arguments.rounds, arguments.device)
            rows.append(
                {
                    "attention": name,
                    "numbers": str(dtype).removeprefix("torch."),
                    "sequences": sequences,
                    "length": length,
                    **{f"{side} wall ms": 1000 * seconds["wall"] for side, seconds in found.items()},
                    "sdpa over eager": found["sdpa"]["wall"] / found["eager"]["wall"],
                }
            )
    return rows
