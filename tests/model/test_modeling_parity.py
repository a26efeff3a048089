"""The converted model returns the numbers of the original code, and its tower those of the library's TimeSformer."""

import pytest
import torch
from fixtures import tiny
from fixtures.golden import cases
from transformers import TimesformerConfig, TimesformerModel

from alpro_hf.hub.convert import convert_original_checkpoint
from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.model.modeling_alpro import AlproVideoModel

SIZES = ["tiny", pytest.param("base", marks=pytest.mark.slow)]


def load(size, task):
    return convert_original_checkpoint(cases.state_dict(size, task), task, **cases.architecture(size))


@pytest.fixture(scope="module", params=SIZES)
def retrieval(request):
    return request.param, load(request.param, "retrieval")


@pytest.fixture(scope="module", params=SIZES)
def question_answering(request):
    return request.param, load(request.param, "qa")


@pytest.fixture(scope="module")
def pretraining():
    """The student and the prompter of one checkpoint."""
    return load("tiny", "pretrain")


@pytest.fixture(scope="module")
def prompter():
    return load("tiny", "prompter")


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


def pretraining_inputs(golden):
    """What the student takes; two pairs leave the drawing of hard negatives no freedom."""
    return {
        "input_ids": golden["in.text_input_ids"],
        "attention_mask": golden["in.text_input_mask"],
        "pixel_values_videos": golden["in.visual_inputs"],
        "mlm_input_ids": golden["in.mlm_text_input_ids"],
        "mlm_labels": golden["in.mlm_labels"],
        "crop_mask": 1 - golden["in.mpm_mask"],  # there 1 is outside the crop, here inside
        "pem_targets": golden["out.mpm_labels"],
        "return_loss": True,
    }


@torch.no_grad()
def test_outputs_of_pretraining(pretraining, attention):
    student, _ = pretraining
    student.set_attn_implementation(attention)
    golden = cases.tensors("tiny", "pretrain")
    inputs = pretraining_inputs(golden)
    out = student(**inputs)
    text, video = out.text_model_output.last_hidden_state, out.video_model_output.last_hidden_state
    found = {
        "text_embeds": text,
        "video_embeds": video,
        "text_feat": out.text_embeds,
        "video_feat": out.video_embeds,
        "itm_scores": out.vtm_logits,
        "mlm_scores": out.mlm_logits,
        "mpm_logits": out.pem_logits,
        "fusion_last_hidden": student.alpro.fuse(text, inputs["attention_mask"], video).last_hidden_state,
        "itc_loss": out.loss_vtc,
        "itm_loss": out.loss_vtm,
        "mlm_loss": out.loss_mlm,
        "mpm_loss": out.loss_pem,
    }
    # the remaining ones are the prompter's
    rest = {"mpm_labels", "pseudo_labels_image", "built_video_prompt_feat", "built_image_prompt_feat"}
    assert set(found) | rest == {name.removeprefix("out.") for name in golden if name.startswith("out.")}
    for name, value in found.items():
        torch.testing.assert_close(value, golden[f"out.{name}"], atol=cases.TOLERANCE["tiny"], rtol=0, msg=name)
    for name, value in cases.info("tiny")["pretrain"]["losses"].items():
        assert found[name].item() == pytest.approx(value, abs=cases.TOLERANCE["tiny"])
    assert out.vtm_labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert out.pem_kept.tolist() == [True, True]
    assert out.loss.item() == pytest.approx(sum(cases.info("tiny")["pretrain"]["losses"].values()), abs=1e-4)


VIDEO_TOWER, TEXT_TOWER = "visual_encoder.model.", "text_encoder.bert."
GRADIENTS = {
    "temp": "alpro.temperature",
    "itm_head.weight": "vtm_head.weight",
    "mpm_head.0.weight": "pem_head.0.weight",
    "mpm_head.2.bias": "pem_head.2.bias",
    "text_proj.bias": "alpro.text_projection.bias",
    "vision_proj.weight": "alpro.video_projection.weight",
    "text_encoder.cls.predictions.transform.dense.weight": "mlm_head.dense.weight",
    TEXT_TOWER + "embeddings.word_embeddings.weight": "alpro.text_model.embeddings.word_embeddings.weight",
    TEXT_TOWER + "encoder.layer.0.attention.self.query.weight": "alpro.text_model.layers.0.attention.qkv.weight",
    TEXT_TOWER + "encoder.layer.3.output.dense.bias": "alpro.text_model.layers.3.mlp.fc2.bias",
    VIDEO_TOWER + "blocks.0.attn.qkv.weight": "alpro.video_model.layers.0.spatial_attn.qkv.weight",
    VIDEO_TOWER + "blocks.1.temporal_fc.weight": "alpro.video_model.layers.1.temporal_fc.weight",
    VIDEO_TOWER + "cls_token": "alpro.video_model.embeddings.cls_token",
    VIDEO_TOWER + "patch_embed.proj.bias": "alpro.video_model.embeddings.patch_embed.bias",
    VIDEO_TOWER + "time_embed": "alpro.video_model.embeddings.time_embeddings",
}


def test_gradients_of_pretraining(pretraining, attention):
    student, _ = pretraining
    student.set_attn_implementation(attention)
    golden = cases.tensors("tiny", "pretrain")
    student.zero_grad()
    student(**pretraining_inputs(golden)).loss.backward()
    found = {name: parameter.grad for name, parameter in student.named_parameters()}
    stored = {name.removeprefix("grad."): tensor for name, tensor in golden.items() if name.startswith("grad.")}
    assert set(stored) == set(GRADIENTS)
    for name, expected in stored.items():
        gradient = found[GRADIENTS[name]]
        if name.endswith("self.query.weight"):
            gradient = gradient[: len(expected)]  # query, key and value are one tensor here, in this order
        gradient = gradient.reshape(expected.shape)  # the temperature is a scalar there
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, atol=1e-4 * expected.abs().max().item(), rtol=0, msg=name)


@torch.no_grad()
def test_pseudo_labels_of_the_prompter(pretraining, prompter, attention):
    """Alone and as part of a pre-training checkpoint, in which its weights are others."""
    golden = {task: cases.tensors("tiny", task) for task in ("pretrain", "prompter")}
    for task, kind, model, name in (
        ("pretrain", "video", pretraining[1], "mpm_labels"),
        ("pretrain", "image", pretraining[1], "pseudo_labels_image"),
        ("prompter", "video", prompter, "pseudo_labels_video"),
    ):
        model.set_attn_implementation(attention)
        stored = golden[task]
        black = torch.full((3,), -1.5)
        crops = crop_on_black(stored["in.visual_inputs"], 1 - golden["pretrain"]["in.mpm_mask"], black)
        assert torch.equal(crops, stored["in.crop_visual_inputs"])
        labels = model.pseudo_labels(crops, kind)
        torch.testing.assert_close(labels, stored[f"out.{name}"], atol=cases.TOLERANCE["tiny"], rtol=0)
    labels = pretraining[1].pseudo_labels(crops)
    info = cases.info("tiny")["pretrain"]
    assert labels.argmax(dim=1).tolist() == info["argmax"]
    assert labels.max(dim=1).values.tolist() == pytest.approx(info["max_pseudo"], abs=cases.TOLERANCE["tiny"])


@pytest.mark.parametrize("kind", ["video", "image"])
@torch.no_grad()
def test_prompt_ensembles(attention, kind):
    _, model = load("tiny", "pretrain")
    model.set_attn_implementation(attention)
    golden = cases.tensors("tiny", "pretrain")
    model.set_prompts(kind, golden[f"in.{kind}_prompt_ids"], golden[f"in.{kind}_prompt_mask"])
    found, other = model.video_prompt_embeds, model.image_prompt_embeds
    if kind == "image":
        found, other = other, found
    torch.testing.assert_close(found, golden[f"out.built_{kind}_prompt_feat"], atol=cases.TOLERANCE["tiny"], rtol=0)
    untouched = "image" if kind == "video" else "video"
    assert torch.equal(other, cases.state_dict("tiny", "pretrain")[f"prompter.{untouched}_prompt_feat"])


@torch.no_grad()
def test_the_contrastive_loss_of_the_prompter(prompter, attention):
    prompter.set_attn_implementation(attention)
    golden, tolerance = cases.tensors("tiny", "prompter"), cases.TOLERANCE["tiny"]
    out = prompter(
        golden["in.text_input_ids"], golden["in.text_input_mask"], golden["in.visual_inputs"], return_loss=True
    )
    torch.testing.assert_close(out.loss, golden["out.itc_loss"], atol=tolerance, rtol=0)
    t2v, v2t = out.logits_per_text.log_softmax(dim=1), out.logits_per_video.log_softmax(dim=1)
    torch.testing.assert_close(t2v, golden["out.t2v_log_softmax"], atol=tolerance, rtol=0)
    torch.testing.assert_close(v2t, golden["out.v2t_log_softmax"], atol=tolerance, rtol=0)


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
