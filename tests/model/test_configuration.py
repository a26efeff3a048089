import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from alpro_hf.model.configuration_alpro import AlproConfig, AlproTextConfig, AlproVideoConfig


def test_defaults_are_those_of_the_paper():
    config = AlproConfig()
    assert (config.text_config.num_hidden_layers, config.text_config.fusion_layer) == (12, 6)
    assert (config.video_config.num_hidden_layers, config.video_config.num_frames) == (12, 8)
    assert (config.video_config.image_size, config.video_config.patch_size) == (224, 16)
    assert config.text_config.hidden_size == config.video_config.hidden_size == 768
    assert (config.projection_dim, config.temperature_init) == (256, 0.07)


def test_towers_from_dictionaries_or_configurations():
    by_dictionary = AlproConfig(text_config={"hidden_size": 96}, video_config={"hidden_size": 96, "num_frames": 3})
    by_object = AlproConfig(
        text_config=AlproTextConfig(hidden_size=96), video_config=AlproVideoConfig(hidden_size=96, num_frames=3)
    )
    assert by_dictionary.to_dict() == by_object.to_dict()
    assert by_dictionary.video_config.num_frames == 3


def test_every_field_survives_a_file(tmp_path):
    config = AlproConfig(
        text_config={"vocab_size": 77, "fusion_layer": 3, "hidden_dropout_prob": 0.2},
        video_config={"num_frames": 5, "image_size": 96, "position_initializer_range": 0.5, "qkv_bias": False},
        projection_dim=64,
        temperature_init=0.1,
        temperature_min=0.01,
        temperature_max=1,
        pem_temperature=1,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    config.save_pretrained(tmp_path)
    loaded = AlproConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.id2label == {0: "cat", 1: "dog"}
    assert loaded.num_labels == 2


def test_whole_numbers_of_json_are_accepted_for_fractions(tmp_path):
    fields = {
        "temperature_min": 0,
        "text_config": {"hidden_dropout_prob": 0},
        "video_config": {"initializer_range": 1},
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "alpro", **fields}))
    config = AlproConfig.from_pretrained(tmp_path)
    assert (config.temperature_min, config.text_config.hidden_dropout_prob) == (0, 0)


@pytest.mark.parametrize("tower", [AlproTextConfig, AlproVideoConfig])
def test_a_tower_reads_its_part_of_a_composite_file(tmp_path, tower):
    AlproConfig(text_config={"hidden_size": 96}, video_config={"hidden_size": 96}).save_pretrained(tmp_path)
    assert tower.from_pretrained(tmp_path).hidden_size == 96


def test_a_tower_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"text_config must be an AlproTextConfig.*'bert'"):
        AlproConfig(text_config="bert")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: AlproTextConfig(hidden_size=100), ["text_config.hidden_size=100", "num_attention_heads=12"]),
        (lambda: AlproVideoConfig(hidden_size=100), ["video_config.hidden_size=100", "num_attention_heads=12"]),
        (lambda: AlproTextConfig(fusion_layer=13), ["fusion_layer=13", "num_hidden_layers=12"]),
        (lambda: AlproTextConfig(fusion_layer=-1), ["fusion_layer=-1"]),
        (lambda: AlproVideoConfig(image_size=100), ["image_size=100", "patch_size=16"]),
        (lambda: AlproConfig(text_config={"hidden_size": 96}), ["text_config.hidden_size=96", "hidden_size=768"]),
        (lambda: AlproVideoConfig(num_frames="eight"), ["num_frames"]),
        (lambda: AlproConfig(pem_temperature=0), ["pem_temperature=0", "above 0"]),
        (lambda: AlproConfig(pem_temperature=float("nan")), ["pem_temperature=nan", "above 0"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(build, words):
    with pytest.raises(StrictDataclassError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)
