"""The converted model returns the numbers of the original code, and its tower those of the library's TimeSformer."""

import pytest
import torch
from fixtures import tiny
from fixtures.golden import cases
from transformers import TimesformerConfig, TimesformerModel

from alpro_hf.convert import convert_original_checkpoint
from alpro_hf.modeling_alpro import AlproVideoModel

SIZES = ["tiny", pytest.param("base", marks=pytest.mark.slow)]


def load(size, task):
    return convert_original_checkpoint(cases.state_dict(size, task), task, **cases.architecture(size))


@pytest.fixture(scope="module", params=SIZES)
def retrieval(request):
    return request.param, load(request.param, "retrieval")


@pytest.fixture(scope="module", params=SIZES)
def question_answering(request):
    return request.param, load(request.param, "qa")


@pytest.fixture(params=["eager", "sdpa"])
def attention(request):
    return request.param


@torch.no_grad()
def test_losses_and_matching_scores_of_retrieval(retrieval, attention):
    size, model = retrieval
    model.set_attn_implementation(attention)
    golden, tolerance = cases.tensors(size, "retrieval"), cases.TOLERANCE[size]
    # two pairs: each has exactly one possible negative, so the drawing of hard negatives has no freedom
    out = model(
        golden["in.text_input_ids"], golden["in.text_input_mask"], golden["in.visual_inputs"], return_loss=True
    )
    torch.testing.assert_close(out.loss_vtc, golden["out.itc_loss"].squeeze(), atol=tolerance, rtol=0)
    torch.testing.assert_close(out.loss_vtm, golden["out.itm_loss"].squeeze(), atol=tolerance, rtol=0)
    torch.testing.assert_close(out.vtm_logits, golden["out.itm_scores"], atol=tolerance, rtol=0)
    assert out.vtm_labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert out.loss == out.loss_vtc + out.loss_vtm


@torch.no_grad()
def test_one_video_against_three_captions(retrieval, attention):
    size, model = retrieval
    model.set_attn_implementation(attention)
    golden, tolerance = cases.tensors(size, "retrieval"), cases.TOLERANCE[size]
    out = model(golden["in.caption_ids"], golden["in.caption_mask"], golden["in.visual_inputs"][:1])
    torch.testing.assert_close(out.logits_per_video, golden["out.inference_itc_scores"], atol=tolerance, rtol=0)
    torch.testing.assert_close(out.vtm_logits, golden["out.inference_itm_logits"], atol=tolerance, rtol=0)
    probabilities = out.vtm_logits.softmax(dim=-1)[:, 1]
    expected = torch.tensor(cases.info(size)["retrieval"]["itm_prob"])
    torch.testing.assert_close(probabilities, expected, atol=tolerance, rtol=0)
    assert probabilities.argsort().tolist() == expected.argsort().tolist()


@torch.no_grad()
def test_answers(question_answering, attention):
    size, model = question_answering
    model.set_attn_implementation(attention)
    golden, tolerance = cases.tensors(size, "qa"), cases.TOLERANCE[size]
    out = model(
        golden["in.text_input_ids"],
        golden["in.text_input_mask"],
        golden["in.visual_inputs"],
        labels=golden["in.labels"],
    )
    torch.testing.assert_close(out.logits, golden["out.logits"], atol=tolerance, rtol=0)
    torch.testing.assert_close(out.loss, golden["out.loss"].squeeze(), atol=tolerance, rtol=0)
    assert out.logits.argmax(dim=-1).tolist() == cases.info(size)["qa"]["top"]


TIMESFORMER_NAMES = {
    "embeddings.patch_embed": "embeddings.patch_embeddings.projection",
    "layers.": "encoder.layer.",
    "temporal_norm": "temporal_layernorm",
    "temporal_attn.qkv": "temporal_attention.attention.qkv",
    "temporal_attn.proj": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
    "spatial_norm": "layernorm_before",
    "spatial_attn.qkv": "attention.attention.qkv",
    "spatial_attn.proj": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def timesformer_name(name):
    for ours, theirs in TIMESFORMER_NAMES.items():
        name = name.replace(ours, theirs)
    return name.replace("norm.", "layernorm.") if name.startswith("norm.") else name


@torch.no_grad()
def test_tower_equals_the_timesformer_of_the_library(attention):
    config = tiny.config().video_config
    ours = AlproVideoModel(config).eval()
    ours.set_attn_implementation(attention)
    fields = {name: getattr(config, name) for name in tiny.VIDEO}
    theirs = TimesformerModel(TimesformerConfig(**fields, layer_norm_eps=config.layer_norm_eps)).eval()
    theirs.load_state_dict({timesformer_name(name): tensor for name, tensor in ours.state_dict().items()})
    pixels = torch.randn(2, tiny.FRAMES, 3, 16, 16)

    out = ours(pixels, output_hidden_states=True)
    before_pooling = ours.norm(out.hidden_states[-1])
    expected = theirs(pixels).last_hidden_state
    # there the patches come first and their frames within, here the frames first and their patches within
    expected_patches = expected[:, 1:].unflatten(1, (tiny.PATCHES, tiny.FRAMES)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(before_pooling[:, :1], expected[:, :1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(before_pooling[:, 1:], expected_patches, atol=1e-5, rtol=1e-5)
    pooled = expected_patches.unflatten(1, (tiny.FRAMES, tiny.PATCHES)).mean(dim=1)
    torch.testing.assert_close(out.last_hidden_state[:, 1:], pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.pooler_output, expected[:, 0], atol=1e-5, rtol=1e-5)
