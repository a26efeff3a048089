"""Sprites in pictures: how much of a place they explain."""

import numpy as np
import pytest
import torch

from alpro_hf.sprites.recognise import FRAMES, SHARE, SIDE, sprite_share
from alpro_hf.sprites.render import frame_times, render, tile_of
from alpro_hf.sprites.world import draw_scene


def frames_of(clip: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


@pytest.mark.parametrize("index", [4, 9])
def test_a_rendered_clip_shows_a_sprite(index: int) -> None:
    clip = render(draw_scene("test", 0, index), frame_times(FRAMES), SIDE)
    assert SHARE < sprite_share(frames_of(clip)) <= 1


def test_pictures_without_a_sprite_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (FRAMES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    assert sprite_share(noise) < 0.2
    assert sprite_share(torch.full_like(noise, 128)) == 0


def test_colours_count_and_not_only_shapes() -> None:
    """A sprite in the colours of its negative is a drawing of something else."""
    clip = render(draw_scene("test", 0, 4), frame_times(FRAMES), SIDE)
    assert sprite_share(frames_of(255 - clip)) < SHARE


def test_a_tile_is_tilted_as_the_renderer_does() -> None:
    upright, tilted = tile_of("fox", 40), tile_of("fox", 40, 30)
    assert upright.size == (40, 40)
    assert min(tilted.size) > 40
