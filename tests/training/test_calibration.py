"""The teacher of PEM: a temperature that fits held-out crops, prompts of one's own, and crops in its training."""

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours

from alpro_hf.data.rows import NumberedRows
from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.training.calibration import CalibrationError, calibrate, fit_temperature, named_entities
from alpro_hf.training.prompter import build_prompter
from alpro_hf.training.recipe import AlproRecipe, RecipeError


def test_what_a_caption_names():
    named = named_entities(["two dogs and a car", "Carpet", "a DOG"], ["dog", "car"])
    assert named.tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("true_temperature", [0.02, 0.1])
def test_the_temperature_of_drawn_labels_is_found(true_temperature):
    """Entities drawn with the probabilities of a temperature: the likeliest temperature is that one."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(4000, 8, generator=generator) * 0.3
    drawn = torch.multinomial((similarity / true_temperature).softmax(dim=1), 1, generator=generator)
    named = torch.zeros(4000, 8, dtype=torch.bool).scatter(1, drawn, True)
    assert fit_temperature(similarity, named) == pytest.approx(true_temperature, rel=0.1)
    # rows that say nothing change nothing
    silent = torch.cat([named, torch.zeros(50, 8, dtype=torch.bool), torch.ones(50, 8, dtype=torch.bool)])
    more = torch.cat([similarity, torch.rand(100, 8, generator=generator)])
    assert fit_temperature(more, silent) == fit_temperature(similarity, named)
    with pytest.raises(CalibrationError, match="No caption names an entity"):
        fit_temperature(similarity, torch.zeros(4000, 8, dtype=torch.bool))


def test_a_calibrated_teacher_explains_held_out_crops_better():
    prompter, rows, collator = coloured.prompter(), coloured.rows(), coloured.collator(mlm_probability=0)
    numbered = NumberedRows(rows, training=True)
    batch = collator([numbered[i] for i in range(len(rows))])
    crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
    named = named_entities([row["text"] for row in rows], coloured.ENTITIES)

    def likelihood() -> float:
        labels = prompter.pseudo_labels(crops).double()
        telling = named.any(dim=1) & ~named.all(dim=1)
        return (labels * named).sum(dim=1)[telling].log().mean().item()

    before, learned = likelihood(), prompter.alpro.get_temperature().item()
    found = calibrate(prompter, rows, collator, batch_size=5)
    assert prompter.label_temperature().item() == pytest.approx(found) == prompter.config.pem_temperature
    assert prompter.alpro.get_temperature().item() == learned  # that of VTC stays
    after = likelihood()
    assert after > before
    again = build_prompter(prompter, colours.processor(), coloured.ENTITIES, progress=False)
    assert again.config.pem_temperature is None  # the calibration was that of other prompts
    for other in (0.8 * found, 1.25 * found):
        prompter.config.pem_temperature = min(other, prompter.config.temperature_max)
        assert likelihood() <= after + 1e-6


def test_a_share_of_clips_is_shown_as_crops_in_training_alone():
    rows = [{**row, "index": i, "epoch": 0} for i, row in enumerate(coloured.rows())]
    whole = coloured.collator(pem=False)(rows)["pixel_values_videos"]
    black = coloured.collator()(rows)["black"]
    shown = coloured.collator(pem=False, crop_share=0.5)(rows)["pixel_values_videos"]
    same = (shown == whole).flatten(1).all(dim=1)
    assert 2 < same.sum() < 14
    for i in (~same).nonzero().flatten().tolist():
        changed = (shown[i] != whole[i]).any(dim=1)
        assert torch.equal(shown[i].movedim(1, -1)[changed], black.expand(int(changed.sum()), 3))
    every = coloured.collator(crop_share=1.0)(rows)
    expected = crop_on_black(whole, every["crop_mask"], black)
    torch.testing.assert_close(every["pixel_values_videos"], expected)
    still = [{k: v for k, v in row.items() if k != "epoch"} for row in rows]
    assert torch.equal(
        coloured.collator(crop_share=1.0)(still)["pixel_values_videos"],
        coloured.collator()(still)["pixel_values_videos"],
    )
    with pytest.raises(ValueError, match="crop_share=2"):
        coloured.collator(crop_share=2)


def test_templates_of_ones_own_are_averaged_with_those_of_the_paper():
    processor = colours.processor()
    towers = coloured.prompter().alpro
    given = {"video_templates": ["{entity}"], "image_templates": ["which {entity}"], "progress": False}
    both = build_prompter(towers, processor, coloured.ENTITIES, more_templates=["{entity} and red"], **given)
    tokens = processor.tokenizer(
        [*coloured.ENTITIES, *(f"{name} and red" for name in coloured.ENTITIES)], padding=True, return_tensors="pt"
    )
    vectors = (
        towers.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        .pooler_output.unflatten(0, (2, -1))
        .mean(dim=0)
    )
    torch.testing.assert_close(both.video_prompt_embeds, vectors)
    assert not torch.allclose(both.image_prompt_embeds, vectors)


def test_templates_need_a_place_for_the_entity():
    assert AlproRecipe(prompt_templates=["a {entity} runs"]).prompt_templates == ["a {entity} runs"]
    with pytest.raises(RecipeError, match="prompt_templates has 'a dog runs'"):
        AlproRecipe(prompt_templates=["a dog runs"])
