"""What a model sees: regions, entities of boxes, and the attention of words, against slow ways to the same numbers."""

from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.gallery import write_model, write_video
from torch import nn

from alpro_hf.inference.explain import black_pixel, box_entities, entity_maps, patch_grid, region_masks, word_maps
from alpro_hf.model import modeling_alpro
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval
from alpro_hf.model.processing_alpro import AlproProcessor
from alpro_hf.training.prompter import build_prompter

SENTENCE = "The fox moves, zebra to the left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")


@pytest.fixture(scope="module")
def model(folder) -> AlproForVideoTextRetrieval:
    return AlproForVideoTextRetrieval.from_pretrained(folder, attn_implementation="eager").requires_grad_(False)


@pytest.fixture(scope="module")
def processor(folder) -> AlproProcessor:
    return AlproProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def pixels(processor, tmp_path_factory) -> torch.Tensor:
    video = write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", seed=3)
    return processor(videos=str(video), return_tensors="pt")["pixel_values_videos"]


@pytest.fixture(scope="module")
def prompter(model, processor):
    return build_prompter(model, processor, ["fox", "dog", "pizza"], progress=False)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 5), (4, 4), (14, 14), (24, 12)])
def test_regions_are_boxes_of_about_the_share_and_cover_everything(grid: tuple[int, int]) -> None:
    masks = region_masks(grid)
    assert masks.shape[1:] == grid and masks.dtype == torch.bool
    assert masks.any(dim=0).all()
    assert len(masks) <= 50
    assert len(masks.unique(dim=0)) == len(masks)
    for mask in masks:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns)  # a product of two sets of lines,
        for line in (rows, columns):
            inside = line.nonzero().flatten()
            assert inside[-1] - inside[0] + 1 == len(inside)  # neither of which has a gap
    if min(grid) >= 12:
        assert 0.3 < masks.float().mean() < 0.5


@pytest.mark.parametrize(("grid", "share"), [((0, 4), 0.4), ((4, 4), 0.0), ((4, 4), 1.5)])
def test_regions_of_nothing_are_refused(grid: tuple[int, int], share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        region_masks(grid, share)


def test_a_box_is_the_crop_at_its_place_on_black(prompter, processor, pixels) -> None:
    grid = patch_grid(prompter, pixels)
    assert grid == tiny.GRID
    masks = torch.zeros(20, *grid, dtype=torch.bool)  # more than are encoded at once
    masks[:, 0] = True
    masks[7, 1, 0] = True
    found = box_entities(prompter, pixels, masks, black_pixel(processor.video_processor))
    cropped = pixels.clone()
    black = processor.video_processor(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), return_tensors="pt")
    cropped[..., 8:, :] = black["pixel_values_videos"][..., 8:, :]
    torch.testing.assert_close(found[0], prompter.pseudo_labels(cropped)[0])
    torch.testing.assert_close(found[19], found[0])
    cropped[..., 8:, :8] = pixels[..., 8:, :8]
    torch.testing.assert_close(found[7], prompter.pseudo_labels(cropped)[0])


def test_maps_are_means_over_the_boxes_that_hold_a_patch(prompter, processor, pixels) -> None:
    found = entity_maps(prompter, pixels, black_pixel(processor.video_processor))
    assert found.maps.shape == (3, *tiny.GRID)
    torch.testing.assert_close(found.maps.sum(dim=0), torch.ones(tiny.GRID))
    for row in range(2):
        for column in range(2):
            holding = [p for mask, p in zip(found.regions, found.probabilities, strict=True) if mask[row, column]]
            torch.testing.assert_close(found.maps[:, row, column], torch.stack(holding).mean(dim=0))


def test_words_are_those_of_the_sentence(model, processor, pixels) -> None:
    found = word_maps(model, processor, SENTENCE, pixels)
    assert [word.word for word in found.words] == ["The", "fox", "moves", "zebra", "to", "the", "left"]
    assert [word.word for word in found.words if not word.known] == ["zebra"]
    assert all(word.relevance.shape == tiny.GRID and (word.relevance >= 0).all() for word in found.words)
    assert found.sentence.max() > 0 and any(word.relevance.max() > 0 for word in found.words)
    inputs = processor(text=[SENTENCE], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, pixel_values_videos=pixels).vtm_logits
    assert found.match_probability == pytest.approx(logits.softmax(dim=1)[0, 1].item(), abs=1e-5)


def test_relevance_is_attention_times_what_more_of_it_would_change(model, processor, pixels, monkeypatch) -> None:
    """The words of the first of two fusion layers, by finite differences in double precision."""
    model = _double(model)
    pixels = pixels.double()
    found = word_maps(model, processor, SENTENCE, pixels)
    inputs = processor(text=[SENTENCE], return_tensors="pt")
    text = model.alpro.get_text_features(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    video = model.alpro.get_video_features(pixels).last_hidden_state
    layer = model.alpro.text_model.layers[model.config.text_config.fusion_layer].attention
    length = text.shape[1]
    own, kept = modeling_alpro.eager_attention_forward, {}
    change = torch.zeros(())

    def changed(module: nn.Module, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = own(module, query, key, value, *args, **kwargs)
        if module is layer:
            kept["weights"] = weights
            output = torch.matmul(weights + change, value).transpose(1, 2)
        return output, weights

    monkeypatch.setattr(modeling_alpro, "eager_attention_forward", changed)

    def margin() -> float:
        logits = model.match(text, inputs["attention_mask"], video)[0]
        return (logits[1] - logits[0]).item()

    margin()
    weights = kept["weights"]
    fox = 2  # its place: [CLS] the fox
    for patch in range(4):
        total, place = 0.0, (fox, length + 1 + patch)
        for head in range(weights.shape[1]):
            slopes = []
            for step in (1e-2, -1e-2):  # attention is rounded to single precision
                change = torch.zeros_like(weights)
                change[(0, head, *place)] = step
                slopes.append(margin() / step)
            slope = (slopes[0] + slopes[1]) / 2
            total += max(0.0, slope * weights[(0, head, *place)].item())
        assert found.words[1].relevance.flatten()[patch].item() == pytest.approx(total / weights.shape[1], rel=1e-3)


def _double(model: AlproForVideoTextRetrieval) -> AlproForVideoTextRetrieval:
    copy = AlproForVideoTextRetrieval._from_config(model.config, attn_implementation="eager").double().eval()
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False)


def test_a_clip_of_inference_mode_can_be_explained(model, processor, pixels) -> None:
    with torch.inference_mode():
        clip = pixels.clone()
    assert word_maps(model, processor, "the fox moves", clip).words


@pytest.mark.parametrize(
    ("options", "text", "clips", "said"),
    [
        ({}, " ", 1, "blank"),
        ({"attn_implementation": "sdpa"}, "a fox", 1, "eager"),
        ({"fusion_layer": 3}, "a fox", 1, "two fusion layers"),
        ({}, "a fox", 2, "one clip"),
    ],
)
def test_what_cannot_be_explained_is_refused(processor, pixels, options, text, clips, said) -> None:
    options = {"attn_implementation": "eager"} | options
    layers = {"fusion_layer": options.pop("fusion_layer", 2)}
    model = AlproForVideoTextRetrieval._from_config(tiny.config(text=layers), **options)
    with pytest.raises(ValueError, match=said):
        word_maps(model, processor, text, pixels.expand(clips, -1, -1, -1, -1))


def test_boxes_need_one_clip_and_a_patch(prompter, processor, pixels) -> None:
    black = black_pixel(processor.video_processor)
    with pytest.raises(ValueError, match="one clip"):
        box_entities(prompter, pixels.expand(2, -1, -1, -1, -1), torch.ones(1, 2, 2, dtype=torch.bool), black)
    with pytest.raises(ValueError, match="no patch"):
        box_entities(prompter, pixels, torch.zeros(1, 2, 2, dtype=torch.bool), black)
