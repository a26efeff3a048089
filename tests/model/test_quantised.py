"""Quantised weights: a layer may store integers, and what the model computes in does not follow from them."""

import copy
from typing import Any

import pytest
import torch
from fixtures import tiny
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig, set_seed

from alpro_hf.files import model_fingerprint
from alpro_hf.loading import CommandError, has_int8_weights, with_int8_weights
from alpro_hf.model.matching_alpro import encode_clips, vtm_scores
from alpro_hf.model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from alpro_hf.model.pretraining_alpro import AlproForPreTraining

MODELS = [AlproModel, AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering, AlproForPreTraining]
DTYPES = [torch.float32, torch.bfloat16]
every_model = pytest.mark.parametrize("model_class", MODELS, ids=lambda c: c.__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Int8Layer(nn.Module):
    """A linear layer or convolution with weights of one byte; like those of bitsandbytes it casts its input itself."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        self.stride = getattr(layer, "stride", None)
        weight = layer.weight.detach().float()
        self.scale = weight.abs().amax() / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype in DTYPES, "the model took the type of the storage for that of its computation"
        weight, bias = self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias.to(x.dtype)
        if self.stride is None:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, stride=self.stride)


class WeightlessLayer(nn.Module):
    """A layer whose weights have another name, as those of GPTQ and AWQ have."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.packed = Int8Layer(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.packed(x)


def build(model_class: Any, **config: Any) -> Any:
    set_seed(0)
    return model_class(tiny.config(entities=tiny.ENTITIES, **config)).eval()


def replaced(model: nn.Module, layer_class: type[nn.Module]) -> nn.Module:
    """A copy of the model with every linear layer and the patch convolution replaced."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer_class(layer))
    return model


def vectors(output: Any) -> list[torch.Tensor]:
    names = [name for name in ("text_embeds", "video_embeds", "logits", "mlm_logits") if name in output]
    return [output[name].float() for name in names]


def assert_close(found: Any, expected: Any) -> None:
    for one, other in zip(vectors(found), vectors(expected), strict=True):
        assert torch.nn.functional.cosine_similarity(one, other, dim=-1).min() > 0.95


@every_model
@every_dtype
@pytest.mark.parametrize("layer_class", [Int8Layer, WeightlessLayer])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@torch.no_grad()
def test_every_layer_in_one_byte(model_class, dtype, layer_class, autocast):
    model, inputs = build(model_class), tiny.inputs(3)
    quantised = replaced(model.to(dtype), layer_class)
    assert quantised.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = quantised(**inputs), model(**inputs)
    assert_close(found, expected)
    if "logits_per_text" in found:
        assert found.logits_per_text.dtype == found.text_embeds.dtype == torch.float32


@every_model
@every_dtype
@pytest.mark.parametrize("activations", [False, True], ids=["weights", "activations"])
@torch.no_grad()
def test_torchao(model_class, dtype, activations):
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    config = torchao.Int8DynamicActivationInt8WeightConfig if activations else torchao.Int8WeightOnlyConfig
    model, inputs = build(model_class).to(dtype), tiny.inputs(3)
    expected = model(**inputs)
    quantised = copy.deepcopy(model)
    torchao.quantize_(quantised, config())
    kinds = {type(layer.weight) for layer in quantised.modules() if isinstance(layer, nn.Linear)}
    assert kinds.isdisjoint({nn.Parameter, torch.Tensor})
    assert_close(quantised(**inputs), expected)
    assert model_fingerprint(quantised) != model_fingerprint(model)  # an index tells the two models apart
    again = copy.deepcopy(model)
    torchao.quantize_(again, config())
    assert model_fingerprint(quantised) == model_fingerprint(again)


@every_model
@torch.no_grad()
def test_int8_weights(model_class):
    model, inputs = build(model_class), tiny.inputs(3)
    before, expected = model_fingerprint(model), model(**inputs)
    quantised = with_int8_weights(model)
    assert nn.Linear not in map(type, quantised.modules())
    assert has_int8_weights(quantised) and not has_int8_weights(model)
    assert model_fingerprint(model) == before != model_fingerprint(quantised)
    assert model_fingerprint(with_int8_weights(model)) == model_fingerprint(quantised)
    found = quantised(**inputs)
    assert_close(found, expected)
    assert any((one - other).abs().max() > 0 for one, other in zip(vectors(found), vectors(expected), strict=True))


def test_the_fingerprint_sees_one_of_the_int8_weights():
    model = build(AlproModel)
    before = model_fingerprint(with_int8_weights(model))
    weight = next(layer.weight for layer in model.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        weight[0, 0] += weight[0].abs().max() / 50
    assert model_fingerprint(with_int8_weights(model)) != before


def test_int8_weights_are_made_of_float32():
    with pytest.raises(
        CommandError, match="int8 needs a float32 model on the CPU, and this one is in bfloat16 on cpu"
    ):
        with_int8_weights(build(AlproModel).bfloat16())


@every_dtype
@torch.no_grad()
def test_torchao_through_from_pretrained(dtype, tmp_path):
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    quantised = AlproForVideoTextRetrieval.from_pretrained(tmp_path, quantization_config=config, dtype=dtype)
    assert_close(quantised(**inputs), model(**inputs))
    clips = encode_clips(quantised, inputs["pixel_values_videos"])
    text = quantised.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    tokens = torch.stack([clip.tokens for clip in clips])
    scores = vtm_scores(
        quantised, text.last_hidden_state, inputs["attention_mask"], tokens, torch.tensor([[0, 0], [1, 1], [2, 2]])
    )
    torch.testing.assert_close(scores, quantised(**inputs).vtm_logits, atol=0.05, rtol=0.05)


@every_dtype
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_bitsandbytes(dtype, bits, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 4 bits have 64 numbers
    model, inputs = build(AlproForVideoTextRetrieval, text=wide, video=wide), tiny.inputs(3)
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4")
    quantised = AlproForVideoTextRetrieval.from_pretrained(
        tmp_path, quantization_config=config, dtype=dtype, device_map="cpu"
    )
    kind = bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit
    assert sum(isinstance(layer, kind) for layer in quantised.modules()) > 20
    assert_close(quantised(**inputs), model(**inputs))


def test_a_quantised_model_learns_adapters(tmp_path):
    """LoRA on weights of one byte: the adapters get gradients through them."""
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    peft = pytest.importorskip("peft", reason="needs PEFT")
    model = build(AlproForVideoTextRetrieval)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv", "proj"])).train()
    model(**tiny.inputs(3), return_loss=True).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert len(gradients) > 10
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
