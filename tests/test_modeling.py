import pytest
import torch
from fixtures import tiny

from alpro_hf.loss_alpro import same_pair_mask, vtc_loss
from alpro_hf.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
    AlproVideoModel,
)


def build(model_class, **config):
    torch.manual_seed(0)
    return model_class(tiny.config(**config)).eval()


def tower(**video):
    torch.manual_seed(0)
    return AlproVideoModel(tiny.config(video=video).video_config).eval()


# --- the text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_more_padding_changes_nothing(attention):
    retrieval, answering = build(AlproForVideoTextRetrieval), build(AlproForVideoQuestionAnswering)
    inputs = tiny.inputs()
    padding = torch.zeros(2, 9, dtype=torch.long)
    padded = inputs | {
        "input_ids": torch.cat([inputs["input_ids"], padding], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], padding], dim=1),
    }
    for model, names in ((retrieval, ["text_embeds", "logits_per_video", "vtm_logits"]), (answering, ["logits"])):
        model.set_attn_implementation(attention)
        short, long = model(**inputs), model(**padded)
        for name in names:
            torch.testing.assert_close(short[name], long[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_mask_means_nothing_is_padded():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs()
    ones = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    without = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    torch.testing.assert_close(model(**ones).vtm_logits, model(**without).vtm_logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_text_layers_do_not_see_the_video_and_fusion_layers_do():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs()
    other = inputs | {"pixel_values_videos": inputs["pixel_values_videos"].flip(0)}
    one, two = model(**inputs), model(**other)
    assert torch.equal(one.text_embeds, two.text_embeds)
    assert (one.vtm_logits - two.vtm_logits).abs().max() > 1e-4


@pytest.mark.parametrize("fusion_layer", [0, 4])
@torch.no_grad()
def test_all_layers_fuse_or_none(fusion_layer):
    model = build(AlproForVideoTextRetrieval, text={"fusion_layer": fusion_layer})
    out = model(**tiny.inputs())
    assert torch.isfinite(out.vtm_logits).all()


def test_a_text_longer_than_the_model_reads_is_refused():
    model = AlproTextModel(tiny.config().text_config)
    with pytest.raises(ValueError, match=r"21 tokens.*at most 20"):
        model(input_ids=torch.ones(1, 21, dtype=torch.long))


def test_ids_and_embeddings_together_are_refused():
    model = AlproTextModel(tiny.config().text_config)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


# --- the video ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_order_of_frames_matters():
    model = tower()
    pixels = tiny.inputs()["pixel_values_videos"]
    swapped = pixels[:, [0, 2, 1, 3]]
    assert (model(pixels).last_hidden_state - model(swapped).last_hidden_state).abs().max() > 1e-3
    model.embeddings.time_embeddings.zero_()  # without them the tower is blind to the order
    torch.testing.assert_close(model(pixels).last_hidden_state, model(swapped).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8])
@torch.no_grad()
def test_any_number_of_frames(frames):
    """As a model configured for that number whose time embeddings are the nearest ones."""
    model, other = tower(), tower(num_frames=frames)
    state = model.state_dict()
    times = state["embeddings.time_embeddings"]
    nearest = [frame * tiny.FRAMES // frames for frame in range(frames)]
    other.load_state_dict(state | {"embeddings.time_embeddings": times[:, nearest]})
    pixels = torch.randn(2, frames, 3, 16, 16)
    found = model(pixels).last_hidden_state
    assert found.shape == (2, 1 + tiny.PATCHES, 32)
    torch.testing.assert_close(found, other(pixels).last_hidden_state, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (8, 8)])
@torch.no_grad()
def test_any_size(height, width):
    """Space embeddings resized in two dimensions: each channel is an image, resized bicubically on its own."""
    model = tower()
    pixels = torch.randn(2, 4, 3, height, width)
    rows, columns = height // 8, width // 8
    found = model(pixels).last_hidden_state
    assert found.shape == (2, 1 + rows * columns, 32)

    patches = model.embeddings.position_embeddings[0, 1:]
    resized = torch.empty(rows * columns, 32)
    for channel in range(32):
        image = patches[:, channel].reshape(1, 1, 2, 2)
        bigger = torch.nn.functional.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False)
        resized[:, channel] = bigger.reshape(-1)
    torch.testing.assert_close(model.embeddings.space_embeddings(rows, columns)[0], resized, atol=1e-6, rtol=1e-6)

    embedded = model.embeddings(pixels)  # (B, 1 + T * N, D), frames first
    frame, row, column = 2, rows - 1, columns - 1
    piece = pixels[1, frame, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
    weight, bias = model.embeddings.patch_embed.weight, model.embeddings.patch_embed.bias
    expected = (weight * piece).sum(dim=(1, 2, 3)) + bias + resized[-1] + model.embeddings.time_embeddings[0, frame]
    token = 1 + frame * rows * columns + row * columns + column
    torch.testing.assert_close(embedded[1, token], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_other_sizes_work_in_half_precision():
    model = tower().to(torch.bfloat16)
    found = model(torch.randn(1, 6, 3, 24, 32)).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert torch.isfinite(found).all()


def test_pixels_of_a_wrong_shape_are_refused():
    model = tower()
    with pytest.raises(ValueError, match=r"batch, frames, channels, height, width.*\(4, 3, 16, 16\)"):
        model(torch.randn(4, 3, 16, 16))
    with pytest.raises(ValueError, match=r"20 x 16 pixels.*8 x 8"):
        model(torch.randn(1, 4, 3, 20, 16))


@torch.no_grad()
def test_tower_without_bias():
    model = tower(qkv_bias=False)
    assert model.layers[0].spatial_attn.qkv.bias is None
    assert model.layers[0].spatial_attn.proj.bias is not None
    assert torch.isfinite(model(tiny.inputs()["pixel_values_videos"]).last_hidden_state).all()


@torch.no_grad()
def test_export_of_the_tower():
    model = tower()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 4, 3, 16, 16),), dynamic_shapes=({0: batch},))
    pixels = torch.randn(5, 4, 3, 16, 16)
    exported = program.module()(pixels)
    torch.testing.assert_close(exported.last_hidden_state, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)


# --- comparing and matching -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_are_those_of_the_forward_pass():
    model, inputs = build(AlproModel), tiny.inputs()
    out = model(**inputs)
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    video = model.get_video_features(inputs["pixel_values_videos"])
    torch.testing.assert_close(text.pooler_output, out.text_embeds)
    torch.testing.assert_close(video.pooler_output, out.video_embeds)
    torch.testing.assert_close(text.pooler_output.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(video.pooler_output.norm(dim=-1), torch.ones(2))
    cosine = out.text_embeds @ out.video_embeds.T
    torch.testing.assert_close(out.logits_per_text, cosine / 0.07)
    torch.testing.assert_close(out.logits_per_video, out.logits_per_text.T)


@torch.no_grad()
def test_numbers_of_texts_and_videos_may_differ_in_a_comparison():
    model, inputs = build(AlproModel), tiny.inputs(3)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:2]
    assert model(**inputs).logits_per_text.shape == (3, 2)
    with pytest.raises(ValueError, match="3 texts and 2 videos"):
        model(**inputs, return_loss=True)


@torch.no_grad()
def test_one_video_is_matched_with_every_text_and_one_text_with_every_video():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    pairs = {
        (text, video): model(
            inputs["input_ids"][[text]], inputs["attention_mask"][[text]], inputs["pixel_values_videos"][[video]]
        ).vtm_logits[0]
        for text in range(3)
        for video in range(3)
    }
    one_video = model(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values_videos"][:1]).vtm_logits
    one_text = model(inputs["input_ids"][:1], inputs["attention_mask"][:1], inputs["pixel_values_videos"]).vtm_logits
    torch.testing.assert_close(one_video, torch.stack([pairs[row, 0] for row in range(3)]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one_text, torch.stack([pairs[0, row] for row in range(3)]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="3 texts and 2 videos"):
        model(inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values_videos"][:2])


@torch.no_grad()
def test_match_of_cached_states_equals_the_forward_pass():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    text = model.alpro.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    video = model.alpro.get_video_features(inputs["pixel_values_videos"])
    logits = model.match(text.last_hidden_state, inputs["attention_mask"], video.last_hidden_state)
    torch.testing.assert_close(logits, model(**inputs).vtm_logits, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="3 texts and 2 videos"):
        model.match(text.last_hidden_state, inputs["attention_mask"], video.last_hidden_state[:2])


@torch.no_grad()
def test_matching_rows_are_positives_then_wrong_videos_then_wrong_texts():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(4)
    out = model(**inputs, return_loss=True, generator=torch.Generator().manual_seed(0))
    pairs = {
        (text, video): model(
            inputs["input_ids"][[text]], inputs["attention_mask"][[text]], inputs["pixel_values_videos"][[video]]
        ).vtm_logits[0]
        for text in range(4)
        for video in range(4)
    }

    def candidates(row):
        return [pair for pair, logits in pairs.items() if torch.allclose(out.vtm_logits[row], logits, atol=1e-5)]

    assert out.vtm_logits.shape == (12, 2)
    for row in range(4):
        assert (row, row) in candidates(row)
        assert any(text == row != video for text, video in candidates(4 + row))
        assert any(video == row != text for text, video in candidates(8 + row))
    assert out.vtm_labels.tolist() == [1] * 4 + [0] * 8
    expected = torch.nn.functional.cross_entropy(out.vtm_logits, out.vtm_labels)
    torch.testing.assert_close(out.loss_vtm, expected)
    torch.testing.assert_close(out.loss, out.loss_vtc + out.loss_vtm)


@torch.no_grad()
def test_hard_negatives_repeat_with_the_generator():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(8)

    def scores(seed):
        return model(**inputs, return_loss=True, generator=torch.Generator().manual_seed(seed)).vtm_logits

    assert torch.equal(scores(0), scores(0))
    assert not torch.equal(scores(0), scores(1))


@torch.no_grad()
def test_rows_that_share_a_video_or_a_caption_are_no_negatives():
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    all_alike = model(**inputs, return_loss=True, video_ids=torch.tensor([5, 5, 5]))
    assert all_alike.vtm_labels.tolist() == [1, 1, 1] + [-100] * 6
    assert all_alike.loss_vtc.item() == 0
    some = model(**inputs, return_loss=True, text_ids=torch.tensor([0, 0, 1]))
    expected = vtc_loss(
        some.video_embeds, some.text_embeds, 0.07, same_pair=same_pair_mask(None, torch.tensor([0, 0, 1]), size=(3, 3))
    )
    torch.testing.assert_close(some.loss_vtc, expected)


def test_a_batch_of_one_trains_on_its_positive_alone():
    model = build(AlproForVideoTextRetrieval).train()
    out = model(**tiny.inputs(1), return_loss=True)
    assert out.vtm_labels.tolist() == [1, -100, -100]
    torch.testing.assert_close(out.loss_vtm, -out.vtm_logits[0].log_softmax(dim=-1)[1])
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.vtm_head.weight.grad.abs().max() > 0


def test_two_processes_train_as_one():
    """Features gathered by hand: the contrastive loss of two halves is that of the whole batch."""
    model, inputs = build(AlproModel), tiny.inputs(4)
    ids = torch.tensor([3, 4, 3, 5])
    whole = model(**inputs, return_loss=True, video_ids=ids).loss

    halves = [{name: tensor[start : start + 2] for name, tensor in inputs.items()} for start in (0, 2)]
    outputs = [model(**half) for half in halves]
    gathered = {
        "video": torch.cat([out.video_embeds for out in outputs]),
        "text": torch.cat([out.text_embeds for out in outputs]),
    }
    losses = []
    for rank, half in enumerate(halves):
        answers = iter([gathered["video"], gathered["text"], ids])
        loss = model(
            **half,
            return_loss=True,
            video_ids=ids[2 * rank : 2 * rank + 2],
            gather=lambda tensor, answers=answers: next(answers),
            rank=rank,
        ).loss
        losses.append(loss)
    torch.testing.assert_close(torch.stack(losses).mean(), whole)


def test_the_temperature_acts_within_its_limits_and_never_sticks():
    model, inputs = build(AlproModel), tiny.inputs()
    for value, acting in ((0.3, 0.3), (7.0, 0.5), (-1.0, 0.001)):
        model.zero_grad()
        with torch.no_grad():
            model.temperature.fill_(value)
        assert model.get_temperature().item() == pytest.approx(acting, rel=1e-4)
        model(**inputs, return_loss=True).loss.backward()
        assert model.temperature.grad.abs().item() > 0


def test_a_missing_video_is_named():
    with pytest.raises(ValueError, match=r"pixel_values_videos.*get_text_features"):
        build(AlproModel)(input_ids=torch.ones(1, 3, dtype=torch.long))


# --- answering ------------------------------------------------------------------------------------------------------


def test_answers_outside_the_list_carry_no_loss():
    model, inputs = build(AlproForVideoQuestionAnswering), tiny.inputs()
    with torch.no_grad():
        some = model(**inputs, labels=torch.tensor([-100, 3]))
        torch.testing.assert_close(some.loss, -some.logits[1].log_softmax(dim=-1)[3])
        assert model(**inputs).loss is None
    none = model(**inputs, labels=torch.tensor([-100, -100])).loss
    none.backward()
    assert none.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_contrastive_parts_of_a_question_answering_model_stay_frozen(tmp_path):
    build(AlproForVideoQuestionAnswering).save_pretrained(tmp_path)
    for model in (build(AlproForVideoQuestionAnswering), AlproForVideoQuestionAnswering.from_pretrained(tmp_path)):
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        projections = {f"alpro.{side}_projection.{kind}" for side in ("text", "video") for kind in ("weight", "bias")}
        assert frozen == projections | {"alpro.temperature"}


# --- precision ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_similarities_stay_exact_under_autocast():
    model, inputs = build(AlproModel), tiny.inputs(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**inputs, return_loss=True)
    exact = out.text_embeds @ out.video_embeds.t() / model.get_temperature()
    assert out.text_embeds.dtype == out.logits_per_text.dtype == torch.float32
    torch.testing.assert_close(out.logits_per_text, exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        out.loss, vtc_loss(out.video_embeds, out.text_embeds, model.get_temperature()), atol=1e-6, rtol=0
    )
