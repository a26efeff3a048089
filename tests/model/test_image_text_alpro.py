"""A start from BLIP: the vectors must be those of transformers' own `BlipForImageTextRetrieval`."""

import json
import logging

import pytest
import torch
from fixtures import tiny
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipProcessor,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
)

from alpro_hf.hub.card import TrainingFacts
from alpro_hf.model.configuration_alpro import AlproConfig
from alpro_hf.model.image_text_alpro import image_text_facts
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval, AlproModel, AlproVideoModel
from alpro_hf.model.processing_alpro import AlproProcessor

TEXT = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 40}
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", *(f"w{i}" for i in range(52))]
CLOSE = {"atol": 2e-6, "rtol": 0.0}


def names_on_the_hub(text_layers=4, vision_layers=3):
    """The names in the files of `Salesforce/blip-itm-base-coco`, written out, so that no rename goes unnoticed."""
    linear = ("weight", "bias")
    yield from ("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding")
    modules = ["vision_model.embeddings.patch_embedding", "vision_model.post_layernorm"]
    for i in range(vision_layers):
        parts = ("self_attn.qkv", "self_attn.projection", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
        modules += [f"vision_model.encoder.layers.{i}.{part}" for part in parts]
    yield "text_encoder.embeddings.position_ids"  # a buffer, saved by the version that made the files
    yield "text_encoder.embeddings.word_embeddings.weight"
    yield "text_encoder.embeddings.position_embeddings.weight"
    modules.append("text_encoder.embeddings.LayerNorm")
    for i in range(text_layers):
        for attention in ("attention", "crossattention"):
            parts = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
            modules += [f"text_encoder.encoder.layer.{i}.{attention}.{part}" for part in parts]
        parts = ("intermediate.dense", "output.dense", "output.LayerNorm")
        modules += [f"text_encoder.encoder.layer.{i}.{part}" for part in parts]
    modules += ["vision_proj", "text_proj", "itm_head"]
    for module in modules:
        yield from (f"{module}.{kind}" for kind in linear)


def build_blip(vision=None, text=None):
    """A BLIP whose every tensor is random: zero biases and norms of one would hide mistakes."""
    torch.manual_seed(1)
    blip = BlipForImageTextRetrieval(
        BlipConfig(text_config=TEXT | (text or {}), vision_config=VISION | (vision or {}), image_text_hidden_size=12)
    )
    with torch.no_grad():
        for name, parameter in blip.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_norm else 0.0, std=0.2)
    return blip.eval()


def save_with_processor(blip, folder):
    blip.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=512)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def blip():
    return build_blip()


@pytest.fixture(scope="module")
def saved(blip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    save_with_processor(blip, folder)
    return str(folder)


def texts():
    inputs = tiny.inputs(batch=3)
    del inputs["pixel_values_videos"]
    return inputs


def clips(frames, size=32, batch=3):
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


def cosines(model, pixels):
    outputs = model(**texts(), pixel_values_videos=pixels)
    return outputs.video_embeds @ outputs.text_embeds.t()


def blip_cosines(blip, pixels):
    """Clip times text: the frames encoded one by one, their features averaged, as BLIP's authors do with videos."""
    batch, frames = pixels.shape[:2]
    outputs = blip(**texts(), pixel_values=pixels.flatten(0, 1), use_itm_head=False, interpolate_pos_encoding=True)
    features = blip.vision_proj(outputs.last_hidden_state[:, 0]).unflatten(0, (batch, frames)).mean(dim=1)
    words = torch.nn.functional.normalize(blip.text_proj(outputs.question_embeds[:, 0]), dim=-1)
    return torch.nn.functional.normalize(features, dim=-1) @ words.t()


@pytest.mark.parametrize("frames", [1, 2, 8, 16])
@pytest.mark.parametrize("cls_per_frame", [False, True])
@torch.no_grad()
def test_still_clips_have_the_cosines_of_blip(blip, saved, frames, cls_per_frame):
    model = AlproModel.from_image_text_pretrained(saved, video_config={"cls_per_frame": cls_per_frame})
    images = clips(1)
    expected = blip(**texts(), pixel_values=images[:, 0], use_itm_head=False).itm_score
    found = cosines(model, images.expand(-1, frames, -1, -1, -1))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert expected.std() > 0.02  # the images and texts do differ


@pytest.mark.parametrize("frames", [2, 8, 16])
@torch.no_grad()
def test_moving_clips_have_the_cosines_of_the_mean_of_frames(blip, saved, frames):
    model = AlproModel.from_image_text_pretrained(saved)
    assert not model.training
    assert model.config.video_config.cls_per_frame
    pixels = clips(frames)
    expected = blip_cosines(blip, pixels)
    torch.testing.assert_close(cosines(model, pixels), expected, **CLOSE)
    shared = AlproModel.from_image_text_pretrained(saved, video_config={"cls_per_frame": False})
    assert (cosines(shared, pixels) - expected).abs().max() > 1e-3  # the option is what makes them equal


@pytest.mark.parametrize("size", [16, 48])
@torch.no_grad()
def test_other_resolutions(blip, saved, size):
    """Resized when a clip comes, or once and for all in the weights."""
    pixels = clips(3, size)
    expected = blip_cosines(blip, pixels)
    at_run_time = AlproModel.from_image_text_pretrained(saved)
    in_weights = AlproModel.from_image_text_pretrained(saved, video_config={"image_size": size})
    assert in_weights.video_model.embeddings.position_embeddings.shape[1] == 1 + (size // 8) ** 2
    for model in (at_run_time, in_weights):
        torch.testing.assert_close(cosines(model, pixels), expected, **CLOSE)


@torch.no_grad()
def test_saved_and_loaded_again(blip, saved, tmp_path):
    model = AlproForVideoTextRetrieval.from_image_text_pretrained(saved, fusion_layers=2)
    model.save_pretrained(tmp_path)
    AlproProcessor.from_image_text_pretrained(saved).save_pretrained(tmp_path)
    pixels = clips(4)
    expected = blip_cosines(blip, pixels)
    for model_class in (AlproForVideoTextRetrieval, AlproModel):
        loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        alpro = loaded if model_class is AlproModel else loaded.alpro
        torch.testing.assert_close(cosines(alpro, pixels), expected, **CLOSE)
    assert AlproProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == 35


@torch.no_grad()
def test_bfloat16(blip, saved, tmp_path):
    """Weights stored in bfloat16 are read exactly; a model that computes in it is as near as BLIP itself is."""
    half = build_blip().to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    model = AlproModel.from_image_text_pretrained(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    pixels = clips(4)
    rounded = blip_cosines(build_blip().to(torch.bfloat16).float(), pixels)
    torch.testing.assert_close(cosines(model, pixels), rounded, **CLOSE)

    exact = blip_cosines(blip, pixels)
    error_of_blip = (blip_cosines(half, pixels.bfloat16()).float() - exact).abs().max().item()
    found = AlproModel.from_image_text_pretrained(saved).to(torch.bfloat16)
    for implementation in ("eager", "sdpa"):
        found.set_attn_implementation(implementation)
        error = (cosines(found, pixels).float() - exact).abs().max().item()
        assert error < max(2 * error_of_blip, 0.01)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@torch.no_grad()
def test_files_as_on_the_hub(blip, tmp_path, file):
    """The names and the configuration of the published files, not those that this version of the library writes."""
    tensors = blip.state_dict()
    tensors["text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    assert set(tensors) == set(names_on_the_hub())
    tensors = {name: tensors[name].clone() for name in names_on_the_hub()}
    if file.endswith(".bin"):
        torch.save(tensors, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file, metadata={"format": "pt"})
    text = TEXT | {"model_type": "blip_text_model", "layer_norm_eps": 1e-12, "hidden_act": "gelu", "is_decoder": True}
    text |= {"bos_token_id": 30522, "pad_token_id": 0, "sep_token_id": 102, "torch_dtype": None, "use_cache": True}
    text |= {"encoder_hidden_size": 32, "projection_dim": 768, "hidden_dropout_prob": 0.0}
    vision = VISION | {"model_type": "blip_vision_model", "layer_norm_eps": 1e-05, "hidden_act": "gelu"}
    vision |= {"attention_dropout": 0.0, "initializer_range": 1e-10, "num_channels": 3, "projection_dim": 512}
    config = {"architectures": ["BlipForImageTextRetrieval"], "model_type": "blip", "text_config": text}
    config |= {"vision_config": vision, "image_text_hidden_size": 12, "logit_scale_init_value": 2.6592}
    config |= {
        "initializer_factor": 1.0,
        "projection_dim": 512,
        "torch_dtype": "float32",
        "transformers_version": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AlproModel.from_image_text_pretrained(str(tmp_path))
    assert model.config.video_config.layer_norm_eps == 1e-5
    assert model.config.text_config.layer_norm_eps == 1e-12
    pixels = clips(4)
    torch.testing.assert_close(cosines(model, pixels), blip_cosines(blip, pixels), **CLOSE)


class Canary:
    ran = False

    def __reduce__(self):
        return (setattr, (Canary, "ran", True))


def test_a_pickle_with_code_is_not_run(blip, tmp_path):
    blip.config.save_pretrained(tmp_path)
    torch.save({**blip.state_dict(), "itm_head.bias": Canary()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        AlproModel.from_image_text_pretrained(str(tmp_path))
    assert not Canary.ran


@torch.no_grad()
def test_fusion_layers_are_copies_and_change_no_vector(blip, saved):
    plain = AlproModel.from_image_text_pretrained(saved)
    assert plain.config.text_config.fusion_layer == plain.config.text_config.num_hidden_layers == 4
    model = AlproForVideoTextRetrieval.from_image_text_pretrained(saved, fusion_layers=3)
    assert not model.training
    layers = model.alpro.text_model.layers
    assert (len(layers), model.config.text_config.fusion_layer) == (7, 4)
    for fusion, text in zip(layers[4:], layers[1:4], strict=True):
        for name, tensor in text.state_dict().items():
            assert torch.equal(fusion.state_dict()[name], tensor), name
            assert fusion.state_dict()[name].data_ptr() != tensor.data_ptr()
    pixels = clips(4)
    torch.testing.assert_close(cosines(model.alpro, pixels), blip_cosines(blip, pixels), **CLOSE)
    assert model(**texts(), pixel_values_videos=pixels).vtm_logits.shape == (3, 2)


def test_every_time_branch_starts_at_zero_and_can_learn(saved):
    model = AlproForVideoTextRetrieval.from_image_text_pretrained(saved, fusion_layers=1).train()
    for layer in model.alpro.video_model.layers:
        assert all(p.abs().max() == 0 for p in layer.temporal_fc.parameters())
        for name, space in layer.spatial_attn.state_dict().items():
            assert torch.equal(layer.temporal_attn.state_dict()[name], space)
    assert model.alpro.video_model.embeddings.time_embeddings.abs().max() == 0
    assert model.alpro.get_temperature().item() == pytest.approx(0.07)
    model(**texts(), pixel_values_videos=clips(4), return_loss=True).loss.backward()
    for layer in model.alpro.video_model.layers:
        assert layer.temporal_fc.weight.grad.abs().max() > 0
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@torch.no_grad()
def test_towers_of_two_widths(tmp_path):
    """As in blip-itm-large, whose towers are 1024 and 768 wide."""
    large = build_blip(vision={"hidden_size": 48})
    large.save_pretrained(tmp_path / "large")
    model = AlproModel.from_image_text_pretrained(str(tmp_path / "large"))
    pixels = clips(4)
    torch.testing.assert_close(cosines(model, pixels), blip_cosines(large, pixels), **CLOSE)
    model.save_pretrained(tmp_path / "ours")
    again = AlproModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(cosines(again, pixels), cosines(model, pixels))
    with pytest.raises(ValueError, match=r"fusion_layers=1 needs.*hidden_size=32.*hidden_size=48"):
        AlproForVideoTextRetrieval.from_image_text_pretrained(str(tmp_path / "large"), fusion_layers=1)
    unfused = AlproForVideoTextRetrieval.from_image_text_pretrained(str(tmp_path / "large"), fusion_layers=0)
    with pytest.raises(ValueError, match=r"width 32 and videos 48.*no fusion layers"):
        unfused(**texts(), pixel_values_videos=pixels)


def test_the_configuration_is_that_of_blip(saved):
    config = AlproModel.from_image_text_pretrained(saved, video_config={"num_frames": 3}, temperature_init=0.05).config
    assert config.projection_dim == 12
    assert (config.text_config.vocab_size, config.text_config.type_vocab_size) == (60, 1)
    assert config.text_config.max_position_embeddings == 40
    assert (config.video_config.image_size, config.video_config.num_frames) == (32, 3)
    assert (config.text_config.num_attention_heads, config.video_config.num_attention_heads) == (4, 2)
    assert config.temperature_init == 0.05


@pytest.mark.parametrize("layers", [-1, 5])
def test_more_fusion_layers_than_there_are_to_copy(saved, layers):
    with pytest.raises(ValueError, match=rf"fusion_layers={layers} must lie between 0 and 4"):
        AlproModel.from_image_text_pretrained(saved, fusion_layers=layers)


def test_missing_and_misshaped_tensors_are_named_in_one_sentence(blip, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    state = blip.state_dict()
    del state["vision_model.encoder.layers.1.self_attn.qkv.weight"]
    state["text_proj.weight"] = torch.zeros(3, 32)
    blip.save_pretrained(tmp_path, state_dict=state)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"lacks the weights text_proj\.weight, vision_model.*qkv\.weight") as caught:
        AlproModel.from_image_text_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@torch.no_grad()
def test_what_is_not_needed_may_be_missing(blip, tmp_path):
    state = {name: t for name, t in blip.state_dict().items() if "crossattention" not in name and "itm" not in name}
    blip.save_pretrained(tmp_path, state_dict=state)
    pixels = clips(2)
    model = AlproModel.from_image_text_pretrained(str(tmp_path))
    torch.testing.assert_close(cosines(model, pixels), blip_cosines(blip, pixels), **CLOSE)


def test_another_architecture_is_refused(blip, tmp_path):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ValueError, match=r"type 'bert'.*'blip'"):
        AlproModel.from_image_text_pretrained(str(tmp_path / "bert"))
    # a BLIP for another task: its text model has other names
    state = {name.replace("text_encoder.", "text_decoder.bert."): t for name, t in blip.state_dict().items()}
    blip.save_pretrained(tmp_path / "captions", state_dict=state)
    with pytest.raises(ValueError, match=r"text_encoder\.\S+ and \d+ more, or .*BlipForImageTextRetrieval"):
        AlproModel.from_image_text_pretrained(str(tmp_path / "captions"))


@torch.no_grad()
def test_the_processor_prepares_as_blip_does(blip, saved):
    processor = AlproProcessor.from_image_text_pretrained(saved, num_frames=2)
    theirs = BlipProcessor.from_pretrained(saved)
    generator = torch.Generator().manual_seed(0)
    picture = Image.fromarray(torch.randint(256, (50, 70, 3), generator=generator, dtype=torch.uint8).numpy())
    inputs = processor(text="a dog runs", videos=[[picture, picture]])
    expected = theirs(images=picture, text="a dog runs", return_tensors="pt")
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 32, 32)
    for frame in inputs["pixel_values_videos"][0]:
        torch.testing.assert_close(frame, expected["pixel_values"][0])
    assert processor(text="a dog " * 40)["input_ids"].shape == (1, 35)
    model = AlproModel.from_image_text_pretrained(saved)
    output = model(**inputs)
    score = blip(**expected, use_itm_head=False).itm_score
    torch.testing.assert_close(output.video_embeds @ output.text_embeds.t(), score, **CLOSE)
    smaller = AlproProcessor.from_image_text_pretrained(saved, size={"height": 16, "width": 16}, max_length=20)
    assert smaller(videos=[[picture]])["pixel_values_videos"].shape[-2:] == (16, 16)
    assert smaller.tokenizer.model_max_length == 20


def test_the_facts_are_those_of_a_training_file(tmp_path):
    path = tmp_path / "training.json"
    path.write_text(json.dumps(image_text_facts("Salesforce/blip-itm-base-coco")))
    facts = TrainingFacts.read(path)
    assert facts.license == "bsd-3-clause"
    assert "not measured" in " ".join(facts.limits)
    assert "BLIP" in facts.summary


# the option `cls_per_frame` by itself, with a time branch that does something


def per_frame(**video):
    torch.manual_seed(0)
    return AlproVideoModel(tiny.config(video={"cls_per_frame": True} | video).video_config).eval()


@torch.no_grad()
def test_off_by_default_and_not_the_same():
    assert not AlproConfig().video_config.cls_per_frame
    on, pixels = per_frame(), tiny.inputs()["pixel_values_videos"]
    off = AlproVideoModel(tiny.config().video_config).eval()
    off.load_state_dict(on.state_dict())  # the option has no weights
    assert on(pixels).last_hidden_state.shape == off(pixels).last_hidden_state.shape
    assert (on(pixels).last_hidden_state - off(pixels).last_hidden_state).abs().max() > 1e-4
    torch.testing.assert_close(on(pixels[:, :1]), off(pixels[:, :1]), atol=1e-6, rtol=1e-6)  # one frame: no difference


@torch.no_grad()
def test_attention_implementations_agree():
    model, pixels = per_frame(), tiny.inputs()["pixel_values_videos"]
    outputs = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        outputs.append(model(pixels).last_hidden_state)
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = per_frame()
    model.set_attn_implementation("eager")
    output = model(
        tiny.inputs()["pixel_values_videos"],
        output_hidden_states=True,
        output_attentions=True,
        output_temporal_attentions=True,
    )
    tokens = tiny.FRAMES * (1 + tiny.PATCHES)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, tokens, 32)] * 4
    assert [tuple(a.shape) for a in output.attentions] == [
        (2 * tiny.FRAMES, 4, 1 + tiny.PATCHES, 1 + tiny.PATCHES)
    ] * 3
    assert [tuple(a.shape) for a in output.temporal_attentions] == [
        (2 * tiny.PATCHES, 4, tiny.FRAMES, tiny.FRAMES)
    ] * 3
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])


@torch.no_grad()
def test_a_batch_equals_its_rows():
    model, pixels = per_frame(), tiny.inputs(batch=3)["pixel_values_videos"]
    together = model(pixels).last_hidden_state
    for row in range(3):
        alone = model(pixels[row : row + 1]).last_hidden_state
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing):
        model = per_frame(hidden_dropout_prob=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(tiny.inputs()["pixel_values_videos"]).last_hidden_state.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@torch.no_grad()
def test_the_option_is_saved(tmp_path):
    model, pixels = per_frame(), tiny.inputs()["pixel_values_videos"]
    model.save_pretrained(tmp_path)
    loaded = AlproVideoModel.from_pretrained(tmp_path)
    assert loaded.config.cls_per_frame
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)


# --- ChineseCLIP ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """A small model whose every tensor is random, and its folder."""
    torch.manual_seed(1)
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=float(parameter.ndim == 1 and name.endswith("weight")), std=0.2)
    folder = tmp_path_factory.mktemp("chinese")
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=512).save_pretrained(folder)
    ChineseCLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])
@torch.no_grad()
def test_chinese_clip_keeps_its_cosines_when_saved_and_loaded_again(chinese, tmp_path, dtype, close):
    original, folder = chinese
    AlproModel.from_image_text_pretrained(str(folder)).save_pretrained(tmp_path)
    model = AlproModel.from_pretrained(tmp_path, dtype=dtype)
    assert model.config.video_config.norm_embeddings
    pixels = clips(4)
    expected = original.get_image_features(pixel_values=pixels.flatten(0, 1)).pooler_output.unflatten(0, (3, 4))
    videos = torch.nn.functional.normalize(expected.mean(dim=1), dim=-1)
    sentences = torch.nn.functional.normalize(original.get_text_features(**texts()).pooler_output, dim=-1)
    torch.testing.assert_close(cosines(model, pixels), videos @ sentences.t(), atol=close, rtol=0)
    assert (videos @ sentences.t()).std() > 0.02
    model.video_model.embeddings.norm = torch.nn.Identity()
    assert (cosines(model, pixels) - videos @ sentences.t()).abs().max() > 0.1  # it is this norm that makes it equal


def test_a_processor_and_a_start_with_fusion_layers_from_chinese_clip(chinese, tmp_path):
    original, folder = chinese
    processor = AlproProcessor.from_image_text_pretrained(str(folder), max_length=20)
    images = ChineseCLIPImageProcessor.from_pretrained(folder)
    assert processor.video_processor.image_mean == images.image_mean and processor.tokenizer.model_max_length == 20
    model = AlproForVideoTextRetrieval.from_image_text_pretrained(str(folder), fusion_layers=2)
    assert model.config.matching_trained is False
    with torch.no_grad():
        model(**texts(), pixel_values_videos=clips(2))
    state = {name: tensor for name, tensor in original.state_dict().items() if "pre_layrnorm" not in name}
    original.config.save_pretrained(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the weights vision_model\.pre_layrnorm\.bias, .*ChineseCLIPModel"):
        AlproModel.from_image_text_pretrained(str(tmp_path))
