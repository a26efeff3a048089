"""Random changes to clips, one operation at a time and together, and the boxes for prompting entity modeling."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from alpro_hf.data.augmentation import (
    OPERATIONS,
    AlproAugmentation,
    apply_operation,
    apply_released_operation,
    box_mask,
    draw_crop,
)
from alpro_hf.sprites.render import render
from alpro_hf.sprites.world import draw_scene

KINDS = ("video", "image", "finetune")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "horizontal_flip")
GREY = 128


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sprite_clip(size: int = 48, num_frames: int = 4) -> torch.Tensor:
    times = [(frame + 0.5) / num_frames for frame in range(num_frames)]
    return torch.from_numpy(render(draw_scene("train", 0, 1), times, size)).permute(0, 3, 1, 2)


def square(row: int, column: int, side: int = 5, size: int = 101) -> torch.Tensor:
    """A white square about a point on black, the point counted from the middle, rows downwards: (2, 3, size, size)."""
    frames = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    middle, half = size // 2, side // 2
    top, left = middle + row - half, middle + column - half
    frames[:, :, top : top + side, left : left + side] = 255
    return frames


def position(frame: torch.Tensor) -> tuple[float, float]:
    """Row and column of the middle of what is brighter than grey, counted from the middle of the frame."""
    weight = (frame[0].double() - 140).clamp(min=0)
    places = torch.arange(len(weight)) - len(weight) // 2
    return (weight.sum(1) @ places.double() / weight.sum()).item(), (
        weight.sum(0) @ places.double() / weight.sum()
    ).item()


def side_lengths(mask: torch.Tensor) -> tuple[int, int]:
    return int(mask.any(1).sum()), int(mask.any(0).sum())


# ---------------------------------------------------------------------------------------------------------- operations


def test_the_operations_are_those_of_the_paper():
    assert set(OPERATIONS) == {"identity", "contrast", "brightness", "sharpness", *GEOMETRIC}


def test_identity_leaves_every_pixel_alone():
    clip = sprite_clip()
    assert torch.equal(apply_operation(clip, "identity", 1.0), clip)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "horizontal_flip"])
def test_at_strength_zero_nothing_changes(operation: str):
    clip = sprite_clip()
    assert torch.equal(apply_operation(clip, operation, 0.0), clip)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("strength", [-0.5, 0.7])
def test_operations_keep_shape_and_type_and_do_not_write_into_their_input(operation: str, strength: float):
    clip = sprite_clip()[..., :40]
    before = clip.clone()
    changed = apply_operation(clip, operation, strength)
    assert changed.shape == clip.shape and changed.dtype == torch.uint8
    assert torch.equal(clip, before)
    assert (operation == "identity") == torch.equal(changed, clip)


def test_horizontal_flip_reverses_columns():
    clip = sprite_clip()
    assert torch.equal(apply_operation(clip, "horizontal_flip", 0.5), clip.flip(-1))


@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.5, 0.7])
def test_translation_moves_by_its_share_of_the_size_and_leaves_grey(strength: float):
    clip = sprite_clip(size=80)[..., :60]  # 80 high, 60 wide
    right = apply_operation(clip, "translate_x", strength)
    down = apply_operation(clip, "translate_y", strength)
    across, along = round(0.45 * abs(strength) * 60), round(0.45 * abs(strength) * 80)
    if strength > 0:
        assert torch.equal(right[..., across:], clip[..., :-across]) and (right[..., :across] == GREY).all()
        assert torch.equal(down[..., along:, :], clip[..., :-along, :]) and (down[..., :along, :] == GREY).all()
    else:
        assert torch.equal(right[..., :-across], clip[..., across:]) and (right[..., -across:] == GREY).all()
        assert torch.equal(down[..., :-along, :], clip[..., along:, :]) and (down[..., -along:, :] == GREY).all()


@pytest.mark.parametrize("strength", [-1.0, -0.5, 0.5])
def test_rotation_turns_counter_clockwise_by_its_angle(strength: float):
    angle = math.radians(30 * strength)
    row, column = position(apply_operation(square(0, 30), "rotate", strength)[0])
    assert row == pytest.approx(-30 * math.sin(angle), abs=0.3)  # rows count downwards
    assert column == pytest.approx(30 * math.cos(angle), abs=0.3)


@pytest.mark.parametrize("strength", [-1.0, 0.5])
def test_shear_pushes_the_upper_half_right_and_the_left_half_down(strength: float):
    row, column = position(apply_operation(square(-30, 0), "shear_x", strength)[0])
    assert row == pytest.approx(-30, abs=0.3) and column == pytest.approx(30 * 0.3 * strength, abs=0.3)
    row, column = position(apply_operation(square(0, -30), "shear_y", strength)[0])
    assert column == pytest.approx(-30, abs=0.3) and row == pytest.approx(30 * 0.3 * strength, abs=0.3)


@pytest.mark.parametrize("operation", ["rotate", "shear_x", "shear_y"])
def test_what_a_warp_uncovers_is_grey_and_the_border_blends_into_it(operation: str):
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    warped = apply_operation(white, operation, 1.0)
    corners = warped[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == GREY).any() and (warped[..., 20:44, 20:44] == 255).all()
    assert warped.min() == GREY  # never darker than both of what meets at the border


def test_brightness_multiplies_by_up_to_nine_tenths_more_or_less():
    clip = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    for strength, expected in ((-1.0, 10), (-0.5, 55), (0.5, 145), (1.0, 190)):
        assert (apply_operation(clip, "brightness", strength).int() - expected).abs().max() <= 1, strength


def test_contrast_pulls_values_towards_the_mean_of_the_clip_or_away_from_it():
    clip = torch.full((2, 3, 8, 8), 80, dtype=torch.uint8)
    clip[..., 4:] = 120  # mean 100
    for strength, low, high in ((-0.5, 89, 111), (0.5, 71, 129), (1.0, 62, 138)):
        changed = apply_operation(clip, "contrast", strength).int()
        assert (changed[..., :4] - low).abs().max() <= 1 and (changed[..., 4:] - high).abs().max() <= 1, strength


def test_sharpness_steepens_edges_or_blurs_them():
    clip = torch.full((2, 3, 8, 8), 80, dtype=torch.uint8)
    clip[..., 4:] = 120

    def step(frames: torch.Tensor) -> int:
        return int(frames[0, 0, 4, 4]) - int(frames[0, 0, 4, 3])

    assert step(apply_operation(clip, "sharpness", -1.0)) < step(clip) < step(apply_operation(clip, "sharpness", 1.0))
    flat = torch.full((2, 3, 8, 8), 80, dtype=torch.uint8)
    assert torch.equal(apply_operation(flat, "sharpness", 1.0), flat)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_the_same_to_every_frame(operation: str):
    clip = sprite_clip()
    changed = apply_operation(clip, operation, 0.5)
    still = apply_operation(clip[:1].expand(4, -1, -1, -1), operation, 0.5)
    assert (still == still[:1]).all()
    if operation != "contrast":  # its mean is that of the clip
        for index in range(4):
            alone = apply_operation(clip[index : index + 1], operation, 0.5)
            assert torch.equal(changed[index : index + 1], alone)


def test_a_still_background_stays_still_under_contrast_when_something_bright_appears():
    clip = torch.full((2, 3, 16, 16), 60, dtype=torch.uint8)
    clip[1, :, :8] = 255
    changed = apply_operation(clip, "contrast", 0.5)
    assert torch.equal(changed[0, :, 8:], changed[1, :, 8:])
    assert not torch.equal(changed[0, :, 8:], clip[0, :, 8:])


# --------------------------------------------------------------------------------------- operations as in the released


@pytest.mark.parametrize(("magnitude", "pixels"), [(5, 5), (7, 7), (10, 10)])
@pytest.mark.parametrize("size", [60, 224])
def test_as_released_a_translation_is_by_whole_pixels_to_the_upper_left(magnitude: int, pixels: int, size: int):
    clip = sprite_clip(size=size)
    left = apply_released_operation(clip, "translate_x", magnitude)
    up = apply_released_operation(clip, "translate_y", magnitude)
    assert torch.equal(left[..., :-pixels], clip[..., pixels:]) and (left[..., -pixels:] == GREY).all()
    assert torch.equal(up[..., :-pixels, :], clip[..., pixels:, :]) and (up[..., -pixels:, :] == GREY).all()


@pytest.mark.parametrize("operation", ["identity", "contrast", "brightness", "sharpness"])
def test_as_released_the_factor_is_exactly_one_at_magnitude_five(operation: str):
    clip = sprite_clip()
    assert torch.equal(apply_released_operation(clip, operation, 5), clip)


def test_as_released_factors_go_from_a_tenth_to_nineteen_tenths():
    clip = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    for magnitude, expected in ((0, 10), (2.5, 55), (7, 136), (10, 190)):
        found = apply_released_operation(clip, "brightness", magnitude).int()
        assert (found - expected).abs().max() <= 1, magnitude
    clip[..., 4:] = 140  # mean 120
    found = apply_released_operation(clip, "contrast", 7).int()  # factor 1.36
    assert (found[..., :4] - 93).abs().max() <= 1 and (found[..., 4:] - 147).abs().max() <= 1


@pytest.mark.parametrize("magnitude", [5, 7])
def test_as_released_a_shear_fixes_the_upper_left_corner(magnitude: int):
    # the released code: cv2.warpAffine with [[1, m, 0], [0, 1, 0]], so that x becomes x + m y
    share, size = 0.03 * magnitude, 101
    moved = apply_released_operation(square(30, -30, size=size), "shear_x", magnitude)
    row, column = position(moved[0])
    assert row == pytest.approx(30, abs=0.3) and column == pytest.approx(-30 + share * (30 + size // 2), abs=0.3)
    moved = apply_released_operation(square(-30, 30, size=size), "shear_y", magnitude)
    row, column = position(moved[0])
    assert column == pytest.approx(30, abs=0.3) and row == pytest.approx(-30 + share * (30 + size // 2), abs=0.3)


@pytest.mark.parametrize("magnitude", [5, 7])
def test_as_released_a_rotation_is_counter_clockwise_by_three_degrees_a_level(magnitude: int):
    angle = math.radians(3 * magnitude)
    row, column = position(apply_released_operation(square(0, 30), "rotate", magnitude)[0])
    assert row == pytest.approx(-30 * math.sin(angle), abs=0.3)
    assert column == pytest.approx(30 * math.cos(angle), abs=0.3)


def drawn_by(kind: str, count: int, **options) -> list[list[str]]:
    augment, generator = AlproAugmentation(kind, 8, **options), seeded()
    return [augment._draw_released(generator) for _ in range(count)]


@pytest.mark.parametrize("kind", ["video", "finetune"])
def test_as_released_a_clip_gets_two_different_operations(kind: str):
    pairs = drawn_by(kind, 4000)
    assert all(len(set(pair)) == 2 for pair in pairs)
    for place in (0, 1):
        drawn = Counter(pair[place] for pair in pairs)
        assert set(drawn) == set(OPERATIONS) and min(drawn.values()) > 330 and max(drawn.values()) < 470  # 400
    # two of the four that change nothing at magnitude 5: 4 / 10 x 3 / 9
    unchanged = sum({"identity", "contrast", "brightness", "sharpness"} >= set(pair) for pair in pairs) / 4000
    assert unchanged == pytest.approx(12 / 90, abs=0.017)
    assert drawn_by(kind, 5, operations=["rotate"]) == [["rotate"]] * 5  # there is no second one


def test_as_released_thirteen_percent_of_clips_stay_as_they_are():
    augment, generator, clip = AlproAugmentation("finetune", 16), seeded(), sprite_clip(16, 2)
    still = sum(torch.equal(augment(clip, generator), clip) for _ in range(1200)) / 1200
    assert still == pytest.approx(12 / 90, abs=0.03)


def test_as_released_an_image_gets_each_drawn_operation_half_of_the_time():
    drawn = drawn_by("image", 4000)
    counts = Counter(map(len, drawn))
    assert [counts[n] / 4000 for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    names = Counter(name for names in drawn for name in names)
    assert set(names) == set(OPERATIONS) - {"contrast", "horizontal_flip"}
    assert min(names.values()) > 420 and max(names.values()) < 580  # 500 expected of each
    assert any(len(names) == 2 and len(set(names)) == 1 for names in drawn)  # with replacement
    assert drawn_by("image", 3, operations=["contrast"]) == [[], [], []]


# ------------------------------------------------------------------------------------------------------- augmentations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, (24, 40)])
def test_results_have_the_size_asked_for(kind: str, size: int | tuple[int, int]):
    augment = AlproAugmentation(kind, size)
    height, width = (size, size) if isinstance(size, int) else size
    for seed, clip in enumerate((sprite_clip(48), sprite_clip(20, 1), sprite_clip(90)[..., :30])):
        changed = augment(clip, seeded(seed))
        assert changed.shape == (len(clip), 3, height, width)
        assert changed.dtype == torch.uint8 and changed.is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_depends_on_the_frames_and_the_generator_alone(kind: str):
    augment, clip = AlproAugmentation(kind, 32), sprite_clip()
    before, state = clip.clone(), torch.get_rng_state()
    results = [augment(clip, seeded(seed)) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clip, before)
    assert len({result.numpy().tobytes() for result in results}) > 6
    torch.manual_seed(99)
    np.random.seed(99)
    travelled = pickle.loads(pickle.dumps(augment))
    for seed, result in enumerate(results):
        assert torch.equal(travelled(clip, seeded(seed)), result)
        # channels last in memory, as decoders deliver them, or channels first
        assert torch.equal(augment(clip.contiguous(), seeded(seed)), result)
    again = seeded(0)
    assert torch.equal(augment(clip, again), results[0])
    assert not torch.equal(again.get_state(), seeded(0).get_state())


@pytest.mark.parametrize("kind", KINDS)
def test_a_still_clip_stays_still(kind: str):
    augment = AlproAugmentation(kind, 32)
    still = sprite_clip()[:1].expand(5, -1, -1, -1)
    for seed in range(30):
        changed = augment(still, seeded(seed))
        assert (changed == changed[:1]).all(), seed


@pytest.mark.parametrize("kind", ["video", "finetune"])
def test_frames_of_a_moving_clip_get_the_same_geometry(kind: str):
    augment = AlproAugmentation(kind, 64, operations=GEOMETRIC)
    clip = sprite_clip(64)
    for seed in range(30):
        together = augment(clip, seeded(seed))
        for index in range(len(clip)):
            assert torch.equal(together[index], augment(clip[index : index + 1], seeded(seed))[0]), seed


def test_a_video_is_cropped_at_every_place_and_nowhere_else():
    augment = AlproAugmentation("video", 7, num_ops=0)
    assert augment.input_size == (8, 8)
    clip = torch.arange(8 * 8, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(2, 3, 8, 8)
    generator, corners = seeded(), Counter()
    for _ in range(400):
        crop = augment(clip, generator)
        top, left = divmod(int(crop[0, 0, 0, 0]), 8)
        assert torch.equal(crop, clip[..., top : top + 7, left : left + 7])
        corners[top, left] += 1
    assert set(corners) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert min(corners.values()) > 60  # 100 expected of each


def test_a_video_is_squeezed_into_a_square_of_256_224ths_of_the_size():
    assert AlproAugmentation("video", 224).input_size == (256, 256)
    assert AlproAugmentation("video", (224, 112)).input_size == (256, 128)
    ramp = torch.linspace(0, 255, 512).to(torch.uint8).expand(1, 3, 128, 512)
    crop = AlproAugmentation("video", 224, num_ops=0)(ramp, seeded())
    assert int(crop[0, 0, 0, -1]) - int(crop[0, 0, 0, 0]) == pytest.approx(255 * 224 / 256, abs=3)


def test_fine_tuning_never_crops():
    augment = AlproAugmentation("finetune", 32, num_ops=0)
    assert augment.input_size == (32, 32)
    ready = sprite_clip(32)
    assert torch.equal(augment(ready, seeded()), ready)
    clip = sprite_clip(48)[..., :40]
    results = [augment(clip, seeded(seed)) for seed in range(5)]
    assert all(torch.equal(result, results[0]) for result in results)
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(1, 3, 48, 64)
    row = augment(ramp, seeded())[0, 0, 0]
    assert row[0] <= 6 and row[-1] >= 249


def test_images_show_a_fifth_to_all_of_their_area_and_are_mirrored_half_of_the_time():
    size = 64
    places = torch.linspace(0, 255, size).round().to(torch.uint8)
    image = torch.stack([places.expand(size, size), places[:, None].expand(size, size), places.expand(size, size)])
    augment = AlproAugmentation("image", 48, num_ops=0)
    assert augment.input_size is None
    generator, shares, aspects, mirrored = seeded(), [], [], 0
    for _ in range(600):
        result = augment(image[None], generator)[0].double()
        across = (result[0, 24, 42] - result[0, 24, 6]).item() / 255 * 48 / 36
        along = (result[1, 42, 24] - result[1, 6, 24]).item() / 255 * 48 / 36
        mirrored += across < 0
        shares.append(abs(across) * along)
        aspects.append(abs(across) / along)
    assert 0.17 < min(shares) < 0.25 and 0.9 < max(shares) < 1.06
    assert 0.70 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.42
    assert 250 < mirrored < 350
    directed = AlproAugmentation("image", 48, operations=["identity"])
    for _ in range(40):
        result = directed(image[None], generator)[0].int()
        assert result[0, 24, 42] > result[0, 24, 6]


@pytest.mark.parametrize(("height", "width"), [(8, 200), (200, 8), (1, 1), (3, 2)])
def test_images_of_any_shape_have_a_part_to_show(height: int, width: int):
    image = torch.full((1, 3, height, width), 77, dtype=torch.uint8)
    for seed in range(10):
        assert (AlproAugmentation("image", 16, num_ops=0)(image, seeded(seed)) == 77).all()


def test_every_operation_is_drawn_equally_often_and_in_both_directions():
    clip = square(0, 0, side=1, size=21)[:1]
    augment = AlproAugmentation(
        "finetune", 21, num_ops=1, operations=["translate_x", "translate_y"], randaugment="torchvision"
    )
    generator, seen = seeded(), Counter()
    for _ in range(800):
        seen[position(augment(clip, generator)[0])] += 1
    reach = round(0.45 * 0.5 * 21)
    assert set(seen) == {(0, reach), (0, -reach), (reach, 0), (-reach, 0)}
    assert min(seen.values()) > 150 and max(seen.values()) < 250


def test_operations_and_their_number_and_strength_are_arguments():
    clip = square(0, 0, side=1, size=41)[:1]
    for magnitude in (2, 10):
        augment = AlproAugmentation(
            "finetune", 41, num_ops=1, magnitude=magnitude, operations=["translate_x"], randaugment="torchvision"
        )
        assert abs(position(augment(clip, seeded())[0])[1]) == round(0.045 * magnitude * 41)
    twice = AlproAugmentation("finetune", 41, operations=["horizontal_flip"], randaugment="torchvision")
    assert torch.equal(twice(sprite_clip(41), seeded()), sprite_clip(41))
    assert [AlproAugmentation(kind, 8).magnitude for kind in KINDS] == [5, 7, 5]
    assert AlproAugmentation("video", 8).num_ops == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "film"}, r"kind='film' is unknown. Use one of video, image, finetune"),
        ({"size": 0}, r"size=0 is neither"),
        ({"size": (8, 8, 8)}, r"size=\(8, 8, 8\)"),
        ({"num_ops": -1}, r"num_ops=-1"),
        ({"magnitude": 11}, r"magnitude=11 is outside 0 to 10"),
        ({"operations": ["rotate", "zoom"]}, r"'zoom' is unknown. Choose from identity, contrast"),
        ({"operations": "rotate"}, r"Write a sequence of names: \['rotate'\]"),
        ({"operations": []}, r"num_ops=0"),
        ({"randaugment": "strong"}, r"randaugment='strong' is unknown. Use one of released, torchvision"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        AlproAugmentation(**{"kind": "video", "size": 8, **arguments})


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (torch.zeros(4, 3, 8, 8), TypeError, "received torch.float32. Augment before"),
        (np.zeros((4, 8, 8, 3), np.uint8), TypeError, r"numpy array of shape \(4, 8, 8, 3\).*from_numpy"),
        (["a.mp4"], TypeError, "received list"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), ValueError, r"received \(4, 8, 8, 3\).*permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, r"received \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), ValueError, r"received \(0, 3, 8, 8\)"),
    ],
)
def test_frames_of_another_kind_are_refused(frames: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        AlproAugmentation("video", 8)(frames, seeded())


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="'posterize' is unknown"):
        apply_operation(sprite_clip(), "posterize", 0.5)


# --------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    ("grid", "smallest", "largest"),
    [((14, 14), 0.28, 0.54), ((4, 4), 0.25, 0.57), ((2, 2), 0.25, 0.5), ((8, 14), 0.26, 0.55), ((2, 14), 0.28, 0.5)],
)
def test_boxes_are_full_rectangles_of_about_the_area(grid: tuple[int, int], smallest: float, largest: float):
    generator, shares = seeded(), []
    for _ in range(2000):
        mask = draw_crop(grid, generator)
        assert mask.shape == grid and mask.dtype == torch.bool
        height, width = side_lengths(mask)
        assert mask.sum() == height * width  # with one gap, rows or columns would be more than a box of this area has
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert rows[-1] - rows[0] + 1 == height and columns[-1] - columns[0] + 1 == width
        shares.append(height * width / (grid[0] * grid[1]))
    assert smallest <= min(shares) and max(shares) <= largest
    assert np.mean(shares) == pytest.approx(0.4, abs=0.02)


def test_area_and_aspect_are_uniform_where_the_grid_is_fine():
    grid, generator = (200, 200), seeded()
    sides = [side_lengths(draw_crop(grid, generator)) for _ in range(3000)]
    shares = np.array([height * width / 200**2 for height, width in sides])
    assert shares.min() == pytest.approx(0.3, abs=0.003) and shares.max() == pytest.approx(0.5, abs=0.003)
    np.testing.assert_allclose(np.histogram(shares, 4, (0.3, 0.5))[0] / len(sides), 0.25, atol=0.03)
    # aspects that fit at every area up to a half: from 0.5 to 2; for one area, the range is from it to its inverse
    aspects = np.array([height / width for height, width in sides])
    assert aspects.min() == pytest.approx(0.3, abs=0.03) and aspects.max() == pytest.approx(1 / 0.3, abs=0.15)
    position_in_range = (aspects - shares) / (1 / shares - shares)
    np.testing.assert_allclose(np.histogram(position_in_range, 5, (-0.02, 1.02))[0] / len(sides), 0.2, atol=0.03)


def test_a_box_lies_anywhere_with_equal_chance():
    generator, corners = seeded(), Counter()
    for _ in range(6000):
        mask = draw_crop((6, 8), generator, area=(0.25, 0.25), aspect=(0.75, 0.75))
        assert side_lengths(mask) == (3, 4)
        first = mask.nonzero()[0]
        corners[int(first[0]), int(first[1])] += 1
    assert set(corners) == {(row, column) for row in range(4) for column in range(5)}
    assert min(corners.values()) > 220 and max(corners.values()) < 380  # 300 expected of each


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 3)])
def test_the_smallest_grids_have_boxes(grid: tuple[int, int]):
    generator = seeded()
    for _ in range(200):
        mask = draw_crop(grid, generator)
        assert mask.any()
        if grid[0] * grid[1] > 1:
            assert not mask.all()


def test_boxes_come_from_the_generator_alone():
    state = torch.get_rng_state()
    boxes = [draw_crop((14, 14), seeded(seed)) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert all(torch.equal(box, draw_crop((14, 14), seeded(seed))) for seed, box in enumerate(boxes))
    assert len({box.numpy().tobytes() for box in boxes}) > 15


def test_area_and_aspect_are_arguments():
    generator = seeded()
    for _ in range(100):
        assert draw_crop((10, 10), generator, area=(1, 1)).all()
        assert side_lengths(draw_crop((40, 40), generator, area=(0.25, 0.25), aspect=(4, 4))) == (40, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (0, 4)}, r"grid=\(0, 4\) has no patch"),
        ({"area": (0.5, 0.3)}, r"area=\(0.5, 0.3\)"),
        ({"area": (0.3, 1.2)}, r"area=\(0.3, 1.2\)"),
        ({"aspect": (0, 1)}, r"aspect=\(0, 1\)"),
        ({"aspect": (3, 1)}, r"aspect=\(3, 1\)"),
    ],
)
def test_boxes_that_cannot_be_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        draw_crop(**{"grid": (4, 4), "generator": seeded(), **arguments})


def test_a_box_becomes_a_mask():
    mask = box_mask((3, 4), top=1, left=2, height=2, width=1)
    assert mask.tolist() == [[False] * 4, [False, False, True, False], [False, False, True, False]]
    for box in ((2, 0, 2, 1), (0, 4, 1, 1), (-1, 0, 1, 1), (0, 0, 0, 1)):
        with pytest.raises(ValueError, match="empty or not inside the grid of 3 x 4"):
            box_mask((3, 4), *box)
