import logging

import pytest
import torch
from fixtures import tiny
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from alpro_hf.model.modeling_alpro import AlproModel, AlproTextModel, AlproVideoModel
from alpro_hf.model.unimodal_alpro import CheckpointError, text_state_from_bert, video_state_from_vit

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "initializer_range": 0.2}


def vit(**fields):
    torch.manual_seed(1)
    return ViTModel(ViTConfig(**SIZES, num_hidden_layers=3, image_size=16, patch_size=8, **fields)).eval()


def bert(layers=4):
    torch.manual_seed(2)
    config = BertConfig(**SIZES, num_hidden_layers=layers, vocab_size=50, max_position_embeddings=20)
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a ViT and a BERT, both with poolers."""
    folder = tmp_path_factory.mktemp("unimodal")
    vit().save_pretrained(folder / "vit")
    bert().save_pretrained(folder / "bert")
    return folder


def load(saved, **fields):
    torch.manual_seed(3)
    return AlproModel.from_unimodal_pretrained(str(saved / "vit"), str(saved / "bert"), **fields)


def test_time_starts_as_space(saved):
    model = load(saved, video_config={"num_frames": 4})
    assert not model.training
    for index, layer in enumerate(model.video_model.layers):
        for name, space in layer.spatial_attn.state_dict().items():
            assert torch.equal(layer.temporal_attn.state_dict()[name], space)
        for name, space in layer.spatial_norm.state_dict().items():
            assert torch.equal(layer.temporal_norm.state_dict()[name], space)
        is_zero = layer.temporal_fc.weight.abs().max() == 0 and layer.temporal_fc.bias.abs().max() == 0
        assert is_zero == (index > 0)
    assert model.video_model.layers[0].temporal_fc.weight.std() > 0.01
    assert model.video_model.embeddings.time_embeddings.shape == (1, 4, 32)
    assert model.video_model.embeddings.time_embeddings.abs().max() == 0


@torch.no_grad()
def test_without_the_first_time_branch_a_frame_is_encoded_as_by_the_vit(saved):
    model, source = load(saved, video_config={"num_frames": 4}), vit()
    image = torch.randn(2, 3, 16, 16)
    still = image[:, None].expand(-1, 4, -1, -1, -1)
    expected = source(image).last_hidden_state
    assert (model.video_model(still).last_hidden_state - expected).abs().max() > 1e-3
    model.video_model.layers[0].temporal_fc.weight.zero_()
    model.video_model.layers[0].temporal_fc.bias.zero_()
    torch.testing.assert_close(model.video_model(still).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_is_encoded_as_by_bert(saved):
    """With every layer a text layer; with half of them, as by a BERT of half the depth."""
    inputs = tiny.inputs()
    del inputs["pixel_values_videos"]
    used = inputs["attention_mask"].bool()
    whole = load(saved, text_config={"fusion_layer": 4}).text_model(**inputs).last_hidden_state
    torch.testing.assert_close(whole[used], bert()(**inputs).last_hidden_state[used], atol=1e-5, rtol=1e-5)

    half = load(saved).text_model
    assert half.config.fusion_layer == 2
    shallow = bert(layers=2)
    shallow.load_state_dict({k: v for k, v in bert().state_dict().items() if k in shallow.state_dict()})
    expected = shallow(**inputs).last_hidden_state
    torch.testing.assert_close(half(**inputs).last_hidden_state[used], expected[used], atol=1e-5, rtol=1e-5)


def test_the_configuration_is_that_of_the_sources(saved):
    config = load(saved, projection_dim=7, video_config={"num_frames": 3}).config
    assert config.projection_dim == 7
    assert (config.text_config.vocab_size, config.text_config.max_position_embeddings) == (50, 20)
    assert (config.video_config.image_size, config.video_config.patch_size) == (16, 8)
    assert config.video_config.num_frames == 3
    assert config.text_config.layer_norm_eps == config.video_config.layer_norm_eps == 1e-12


def test_space_embeddings_are_resized_bicubically(saved):
    model, source = load(saved, video_config={"image_size": 32}), vit()
    found = model.video_model.embeddings.position_embeddings
    before = source.embeddings.position_embeddings
    assert found.shape == (1, 17, 32)
    assert torch.equal(found[:, 0], before[:, 0])
    for channel in (0, 31):
        image = before[0, 1:, channel].reshape(1, 1, 2, 2)
        bigger = torch.nn.functional.interpolate(image, size=(4, 4), mode="bicubic", align_corners=False)
        torch.testing.assert_close(found[0, 1:, channel], bigger.flatten())


def test_names_in_memory_and_in_files_give_the_same(saved):
    torch.manual_seed(0)
    target = AlproVideoModel(tiny.config().video_config).state_dict()
    in_files = load_file(saved / "vit" / "model.safetensors")
    in_memory = vit().state_dict()
    assert any(name.startswith("encoder.layer.0.attention.attention.query") for name in in_files)
    states = [video_state_from_vit(source, target) for source in (in_files, in_memory)]
    assert set(states[0]) == set(target)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert tensor.shape == target[name].shape


def test_nothing_is_shared_with_the_source():
    target = AlproTextModel(tiny.config().text_config).state_dict()
    source = bert().state_dict()
    state = text_state_from_bert(source, target)
    pointers = {tensor.data_ptr() for tensor in source.values()} | {tensor.data_ptr() for tensor in target.values()}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in state.values())


def test_tensors_that_do_not_fit_are_all_named():
    target = AlproTextModel(tiny.config().text_config).state_dict()
    source = dict(bert().state_dict())
    source["encoder.layer.1.crossattention.self.query.weight"] = torch.zeros(2)
    del source["encoder.layer.3.output.dense.bias"]
    source["encoder.layer.0.attention.self.key.weight"] = torch.zeros(32, 31)
    with pytest.raises(CheckpointError) as caught:
        text_state_from_bert(source, target)
    assert caught.value.unexpected == ["encoder.layer.1.crossattention.self.query.weight"]
    assert caught.value.missing == ["encoder.layer.3.output.dense.bias"]
    assert len(caught.value.misshaped) == 1
    for words in ("crossattention", "layer.3.output.dense.bias", "self.key.weight: (32, 31), (32, 32) needed"):
        assert words in str(caught.value)


def test_fewer_layers_than_the_source_are_an_error_not_a_silent_cut(saved):
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.3\.attention\.self\.query\.weight"):
        load(saved, text_config={"num_hidden_layers": 3})
    with pytest.raises(CheckpointError, match=r"layers\.3\..*missing|missing.*layers\.3\."):
        load(saved, video_config={"num_hidden_layers": 4})


def test_another_architecture_is_refused_by_name(saved):
    with pytest.raises(ValueError, match=r"vision=.*'bert'.*'vit'"):
        AlproModel.from_unimodal_pretrained(str(saved / "bert"), str(saved / "bert"))
    with pytest.raises(ValueError, match=r"text=.*'vit'.*'bert'"):
        AlproModel.from_unimodal_pretrained(str(saved / "vit"), str(saved / "vit"))


def test_half_a_checkpoint_is_refused(saved, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    half = {name: tensor for name, tensor in bert().state_dict().items() if "layer.2" not in name}
    bert().save_pretrained(tmp_path, state_dict=half)
    with pytest.raises(ValueError, match=r"lacks the weights.*encoder\.layer\.2"):
        AlproModel.from_unimodal_pretrained(str(saved / "vit"), str(tmp_path))
