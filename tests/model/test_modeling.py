from contextlib import nullcontext

import pytest
import torch
from fixtures import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutputWithPooling

from alpro_hf.model.loss_alpro import pools_of, same_pair_mask, sample_hard_negatives, vtc_loss
from alpro_hf.model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproOutput,
    AlproPatchProjection,
    AlproTextModel,
    AlproVideoModel,
    AlproVideoModelOutput,
    NegativeSampling,
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


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("cls_per_frame", [False, True])
@torch.no_grad()
def test_no_layer_multiplies_a_view(clips, cls_per_frame):
    """For a view, torch multiplies row by row with a copy of frozen weights each: 8 times as slow for one clip."""
    model = tower(cls_per_frame=cls_per_frame).requires_grad_(False)
    views = []

    def look(name):
        return lambda module, given: views.append(name) if not given[0].is_contiguous() else None

    linear = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert any(name.endswith("temporal_attn.qkv") for name in linear)
    for name, part in linear.items():
        part.register_forward_pre_hook(look(name))
    model(torch.randn(clips, 4, 3, 16, 16))
    assert not views


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


@pytest.mark.parametrize(("channels", "patch", "height", "width"), [(3, 16, 32, 48), (3, 8, 24, 16), (1, 4, 4, 8)])
def test_patches_are_projected_as_by_a_convolution(channels, patch, height, width):
    torch.manual_seed(0)
    projection = AlproPatchProjection(channels, 10, patch).double()
    pixels = torch.randn(5, channels, height, width, dtype=torch.float64, requires_grad=True)
    convolved = torch.nn.functional.conv2d(pixels, projection.weight, projection.bias, stride=patch)
    projected = projection(pixels)
    torch.testing.assert_close(projected, convolved)
    wanted = torch.randn_like(convolved)
    inputs = (pixels, projection.weight, projection.bias)
    gradients = (torch.autograd.grad((out * wanted).sum(), inputs) for out in (projected, convolved))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


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


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("first_tokens", [1, 7])
def test_the_first_fused_tokens_are_those_of_all(attention, padded, first_tokens):
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    model.set_attn_implementation(attention)
    text, video = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    mask = inputs["attention_mask"] if padded else None
    flex = attention == "flex_attention"
    # flex kernels have no backward on a CPU. They take long to compile; test_modeling_common.py runs compiled ones
    with torch.no_grad() if flex else nullcontext(), torch.compiler.set_stance("force_eager" if flex else "default"):
        whole = model.alpro.fuse(text, mask, video).last_hidden_state
        first = model.alpro.fuse(text, mask, video, first_tokens).last_hidden_state
    assert whole.shape == (3, 12, 32) and first.shape == (3, first_tokens, 32)
    torch.testing.assert_close(first, whole[:, :first_tokens], atol=1e-6, rtol=1e-5)
    if first_tokens == 1 and first.requires_grad:
        logits, expected = model.match(text, mask, video), model.vtm_head(whole[:, 0])
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
        weights = list(model.alpro.text_model.layers[2:].parameters())
        pairs = zip(
            torch.autograd.grad(logits.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
        )
        for found, wanted in pairs:
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first_tokens", [None, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_video_that_several_texts_share_is_the_same_as_its_copies(checkpointing, first_tokens):
    model, inputs = build(AlproForVideoTextRetrieval), tiny.inputs(3)
    model.train(checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable()
    text, video, mask = torch.randn(3, 7, 32), torch.randn(2, 5, 32, requires_grad=True), inputs["attention_mask"]
    index = torch.tensor([1, 0, 1])
    torch.manual_seed(0)  # of dropout
    shared = model.alpro.fuse(text, mask, video, first_tokens, index).last_hidden_state
    torch.manual_seed(0)
    copies = model.alpro.fuse(text, mask, video[index], first_tokens).last_hidden_state
    torch.testing.assert_close(shared, copies, atol=1e-6, rtol=1e-5)
    weight = model.alpro.text_model.layers[2].attention.qkv.weight
    for of in (video, weight):
        found, expected = (
            torch.autograd.grad(out.square().sum(), of, retain_graph=True)[0] for out in (shared, copies)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_answers_need_one_fused_token_and_who_looks_inside_gets_all():
    model, inputs = build(AlproForVideoQuestionAnswering), tiny.inputs(2)
    short = model(**inputs)
    model.set_attn_implementation("eager")  # the one that tells its weights
    inside = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert short.fusion_model_output.last_hidden_state.shape == (2, 1, 32)
    assert inside.fusion_model_output.last_hidden_state.shape == (2, 12, 32)
    assert {attention.shape[-2:] for attention in inside.fusion_model_output.attentions} == {(12, 12)}
    torch.testing.assert_close(short.logits, inside.logits, atol=1e-6, rtol=1e-5)


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


# --- which wrong pairs ----------------------------------------------------------------------------------------------

TEMPERATURE = 0.2


@pytest.fixture(scope="module")
def base_model():
    return build(AlproModel, temperature_init=TEMPERATURE)


def numbered_outputs(size, seed=0):
    """Outputs for pairs: the states of text i are all i, those of video i all 100 + i; text i has i + 1 tokens."""
    unit = torch.randn(2, size, 6, generator=torch.Generator().manual_seed(seed))
    text_embeds, video_embeds = torch.nn.functional.normalize(unit, dim=-1)
    number = torch.arange(size, dtype=torch.float32)[:, None, None]
    logits = text_embeds @ video_embeds.t() / TEMPERATURE
    outputs = AlproOutput(
        logits_per_text=logits,
        logits_per_video=logits.t(),
        text_embeds=text_embeds,
        video_embeds=video_embeds,
        text_model_output=BaseModelOutputWithPooling(last_hidden_state=number.expand(-1, size, 2)),
        video_model_output=AlproVideoModelOutput(last_hidden_state=100 + number.expand(-1, 3, 2)),
    )
    return outputs, torch.ones(size, size, dtype=torch.long).tril()


def pairs_of(rows):
    """What `matching_rows` returns, as a list of (text, video, label), after a look at the masks."""
    text, mask, videos, video_index, labels = rows
    video = videos[video_index]
    if mask is not None:
        assert torch.equal(mask.sum(dim=1) - 1, text[:, 0, 0].long())
    assert torch.equal(text, text[:, :1, :1].expand_as(text))
    assert torch.equal(video, video[:, :1, :1].expand_as(video))
    return list(zip(text[:, 0, 0].int().tolist(), (video[:, 0, 0] - 100).int().tolist(), labels.tolist(), strict=True))


def on_two_ranks(model, outputs, mask, *, video_ids=None, text_ids=None, seed=0, negatives="global"):
    """`pairs_of` both halves of a batch, each as a process would draw them that gathers from the other."""
    half = len(mask) // 2
    parts, whole = [], {}

    def split(tensor):
        if tensor is None:
            return None, None
        halves = tensor[:half], tensor[half:]
        whole.update({id(part): tensor for part in halves})
        return halves

    text, video = outputs.text_model_output.last_hidden_state, outputs.video_model_output.last_hidden_state
    columns = [split(t) for t in (text, video, outputs.text_embeds, outputs.video_embeds, mask, video_ids, text_ids)]
    for rank, (text, video, text_embeds, video_embeds, mask, videos, texts) in enumerate(zip(*columns, strict=True)):
        logits = text_embeds @ video_embeds.t() / TEMPERATURE
        local = AlproOutput(
            logits_per_text=logits,
            text_embeds=text_embeds,
            video_embeds=video_embeds,
            text_model_output=BaseModelOutputWithPooling(last_hidden_state=text),
            video_model_output=AlproVideoModelOutput(last_hidden_state=video),
        )
        generator = torch.Generator().manual_seed(seed)
        rows = model.matching_rows(
            local, mask, videos, texts, lambda part: whole[id(part)], rank, generator, negatives
        )
        parts.append(pairs_of(rows))
    return parts


def test_local_negatives_are_one_draw_per_text_then_one_per_video(base_model):
    outputs, mask = numbered_outputs(6)
    ids = torch.tensor([0, 1, 1, 2, 3, 4])
    found = pairs_of(base_model.matching_rows(outputs, mask, ids, generator=torch.Generator().manual_seed(7)))
    same, generator = same_pair_mask(ids, None, size=(6, 6)), torch.Generator().manual_seed(7)
    wrong_videos, _ = sample_hard_negatives(outputs.logits_per_text, same, generator)
    wrong_texts, _ = sample_hard_negatives(outputs.logits_per_video, same, generator)
    expected = [(row, row, 1) for row in range(6)]
    expected += [(row, video, 0) for row, video in enumerate(wrong_videos.tolist())]
    expected += [(text, row, 0) for row, text in enumerate(wrong_texts.tolist())]
    assert found == expected


def test_unpadded_texts_need_no_mask(base_model):
    outputs, mask = numbered_outputs(4)
    text, none, *rest = base_model.matching_rows(outputs, None, generator=torch.Generator().manual_seed(1))
    assert none is None
    masked = base_model.matching_rows(outputs, mask, generator=torch.Generator().manual_seed(1))
    for one, other in zip([text, *rest], [masked[0], *masked[2:]], strict=True):
        assert torch.equal(one, other)


id_lists = st.integers(1, 5).flatmap(
    lambda half: st.tuples(*[st.lists(st.integers(0, 2), min_size=2 * half, max_size=2 * half)] * 2)
)


@settings(max_examples=80, deadline=None)
@given(id_lists, st.integers(0, 1000), st.sampled_from(["local", "global"]))
def test_a_wrong_pair_never_shares_its_video_or_its_caption(base_model, ids, seed, negatives):
    """Many duplicates: three videos and three captions. A row without a possible negative carries no label."""
    videos, texts = ids
    size = len(videos)
    outputs, mask = numbered_outputs(size, seed)
    tensors = {"video_ids": torch.tensor(videos), "text_ids": torch.tensor(texts)}
    parts = on_two_ranks(base_model, outputs, mask, **tensors, seed=seed, negatives=negatives)
    for rank, pairs in enumerate(parts):
        own = range(rank * size // 2, (rank + 1) * size // 2)
        pool = own if negatives == "local" else range(size)

        def has_negative(row, pool=pool):
            return any(videos[row] != videos[other] and texts[row] != texts[other] for other in pool)

        assert pairs[: len(own)] == [(row, row, 1) for row in own]
        for position, (text, video, label) in enumerate(pairs[len(own) :]):
            row = own[position % len(own)]
            assert row == (text if position < len(own) else video)
            assert label == (0 if has_negative(row) else -100)
            if label == 0:
                assert {text, video} <= set(pool)
                assert videos[text] != videos[video]
                assert texts[text] != texts[video]


@pytest.mark.parametrize("with_ids", [False, True])
def test_global_negatives_are_those_of_one_process_with_the_whole_batch(base_model, with_ids):
    outputs, mask = numbered_outputs(8)
    ids = {"video_ids": torch.tensor([0, 1, 2, 0, 3, 0, 4, 5]), "text_ids": torch.tensor([0, 1, 2, 3, 1, 4, 5, 6])}
    ids = ids if with_ids else {}
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        alone = pairs_of(base_model.matching_rows(outputs, mask, **ids, generator=generator))
        for rank, pairs in enumerate(on_two_ranks(base_model, outputs, mask, **ids, seed=seed)):
            mine = slice(4 * rank, 4 * rank + 4)
            assert pairs == alone[:8][mine] + alone[8:16][mine] + alone[16:][mine]
    # without other processes the global pool is the local one
    local = base_model.matching_rows(outputs, mask, **ids, generator=torch.Generator().manual_seed(3))
    same = base_model.matching_rows(
        outputs, mask, **ids, generator=torch.Generator().manual_seed(3), negatives="global"
    )
    assert pairs_of(local) == pairs_of(same)


def test_global_negatives_do_come_from_other_processes(base_model):
    outputs, mask = numbered_outputs(8)
    drawn = {"local": set(), "global": set()}
    for seed in range(30):
        for negatives, found in drawn.items():
            first, _ = on_two_ranks(base_model, outputs, mask, seed=seed, negatives=negatives)
            found.update(video for text, video, _ in first[4:8])
            found.update(text for text, video, _ in first[8:])
    assert drawn == {"local": set(range(4)), "global": set(range(8))}


def test_states_from_other_processes_keep_their_gradients(base_model):
    """The wrong video of rank 0 that comes from rank 1 trains the video tower of rank 1."""
    outputs, mask = numbered_outputs(2)
    states = outputs.video_model_output.last_hidden_state.clone().requires_grad_()
    outputs.video_model_output.last_hidden_state = states
    text = outputs.text_model_output.last_hidden_state
    whole = [text, states, outputs.text_embeds, outputs.video_embeds, mask]
    parts = [tensor[:1] for tensor in whole]
    local = AlproOutput(
        logits_per_text=torch.zeros(1, 1),
        text_embeds=parts[2],
        video_embeds=parts[3],
        text_model_output=BaseModelOutputWithPooling(last_hidden_state=parts[0]),
        video_model_output=AlproVideoModelOutput(last_hidden_state=parts[1]),
    )
    gathered = {id(part): tensor for part, tensor in zip(parts, whole, strict=True)}
    _, _, videos, video_index, labels = base_model.matching_rows(
        local, parts[4], gather=lambda part: gathered[id(part)], negatives="global"
    )
    assert labels.tolist() == [1, 0, 0]
    videos[video_index[1]].sum().backward()
    assert states.grad[1].abs().max() > 0
    assert states.grad[0].abs().max() == 0


def test_wrong_pairs_follow_the_softmax_of_the_similarities(base_model):
    """Pearson's test of 1,500 draws against the softmax over each row's candidates."""
    outputs, mask = numbered_outputs(4)
    draws, generator = 1500, torch.Generator().manual_seed(0)
    ids = torch.tensor([0, 1, 2, 0])  # the first and the last pair show one video
    videos, texts = torch.zeros(4, 4), torch.zeros(4, 4)
    for _ in range(draws):
        pairs = pairs_of(base_model.matching_rows(outputs, mask, ids, generator=generator))
        for text, video, _ in pairs[4:8]:
            videos[text, video] += 1
        for text, video, _ in pairs[8:]:
            texts[video, text] += 1
    same = same_pair_mask(ids, None, size=(4, 4))
    statistic, candidates = 0.0, ~same
    for counts, logits in ((videos, outputs.logits_per_text), (texts, outputs.logits_per_video)):
        expected = draws * logits.masked_fill(same, float("-inf")).softmax(dim=1)
        assert counts[same].sum() == 0
        statistic += ((counts - expected).square() / expected)[candidates].sum().item()
    # each of the eight rows has its candidates less one degrees of freedom: twelve in all
    assert candidates.sum() * 2 - 8 == 12
    assert statistic < 32.9  # exceeded by chance once in a thousand


def test_an_unknown_pool_of_negatives_is_refused(base_model):
    outputs, mask = numbered_outputs(2)
    with pytest.raises(ValueError, match="negatives='all' is unknown; use 'local' or 'global'"):
        base_model.matching_rows(outputs, mask, negatives="all")


@pytest.mark.parametrize(("rows", "size", "pools"), [(8, 4, [4, 4]), (8, 3, [3, 3, 2]), (5, 9, [5]), (7, 4, [4, 3])])
def test_pools_are_neighbours_of_nearly_equal_number(rows, size, pools):
    found = pools_of(rows, size)
    assert (found.diff() >= 0).all()
    assert sorted(found.bincount().tolist()) == sorted(pools)


@pytest.mark.parametrize("pool", [2, 3, 4, 8])
def test_negatives_of_a_pool_are_the_same_however_many_processes_there_are(base_model, pool):
    """Pools of 2 and 4 lie inside one of two processes, those of 3 and 8 across them."""
    outputs, mask = numbered_outputs(8)
    ids = {"video_ids": torch.tensor([0, 1, 2, 0, 3, 0, 4, 5]), "text_ids": torch.tensor([0, 1, 2, 3, 1, 4, 5, 6])}
    group, drawn = pools_of(8, pool).tolist(), set()
    for seed in range(12):
        sampling = NegativeSampling(pool=pool)
        generator = torch.Generator().manual_seed(seed)
        alone = pairs_of(base_model.matching_rows(outputs, mask, **ids, generator=generator, negatives=sampling))
        for text, video, label in alone[8:]:
            assert label != 0 or group[text] == group[video]
            drawn.add((text, video))
        for rank, pairs in enumerate(on_two_ranks(base_model, outputs, mask, **ids, seed=seed, negatives=sampling)):
            mine = slice(4 * rank, 4 * rank + 4)
            wanted = alone[:8][mine] + alone[8:16][mine] + alone[16:][mine]
            # what stands in for a missing negative carries no label and may be any row
            assert [pair if pair[2] >= 0 else pair[2] for pair in pairs] == [
                pair if pair[2] >= 0 else pair[2] for pair in wanted
            ]
    assert len(drawn) >= 8


def test_a_pool_inside_of_a_process_exchanges_no_token_states(base_model):
    outputs, mask = numbered_outputs(4)
    states = {id(outputs.text_model_output.last_hidden_state), id(outputs.video_model_output.last_hidden_state)}
    for pool, exchanged in ((2, False), (4, False), (8, True)):
        seen = []

        def gather(tensor, seen=seen):
            seen.append(id(tensor) in states)
            return torch.cat([tensor, tensor])  # two processes with equal rows

        generator = torch.Generator().manual_seed(0)
        base_model.matching_rows(outputs, mask, None, None, gather, 0, generator, NegativeSampling(pool=pool))
        assert any(seen) is exchanged


def test_a_higher_temperature_and_an_even_share_draw_more_varied_negatives(base_model):
    outputs, mask = numbered_outputs(12)
    outputs.logits_per_text = 40 * outputs.logits_per_text  # as sharp as after VTC

    def different(**options) -> int:
        generator, found = torch.Generator().manual_seed(0), set()
        for _ in range(20):
            rows = base_model.matching_rows(outputs, mask, generator=generator, negatives=NegativeSampling(**options))
            found |= {(text, video) for text, video, _ in pairs_of(rows)[12:24]}
        return len(found)

    plain = different()
    assert plain < 25  # nearly always the same one of eleven
    assert different(temperature=40.0) > 80
    assert different(uniform_share=0.5) > 70
    assert different(uniform_share=1.0) > 90


def test_an_even_share_is_mixed_with_the_softmax():
    same = torch.eye(3, dtype=torch.bool)
    logits = torch.tensor([[0.0, 20.0, 0.0]] * 3)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_hard_negatives(logits, same, generator, 0.4)[0] for _ in range(3000)])
    assert (draws[:, 0] == 1).float().mean().item() == pytest.approx(0.8, abs=0.03)  # 0.6 + 0.4 / 2
    assert (draws[:, 1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not (draws == torch.arange(3)).any()
    _, valid = sample_hard_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), generator, 1.0)
    assert not valid.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": 1}, "pool=1 has no room"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"uniform_share": 1.5}, "uniform_share=1.5 must lie between"),
    ],
)
def test_impossible_draws_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NegativeSampling(**options)


@torch.no_grad()
def test_global_negatives_are_the_same_under_autocast():
    """Similarities that decide what is drawn are exact: those of one process are too."""
    model = build(AlproModel, temperature_init=0.01)  # bfloat16 would change the logits by 0.4
    outputs, mask = numbered_outputs(8)
    for name in ("text_embeds", "video_embeds"):  # all alike, so that many candidates are probable
        outputs[name] = torch.nn.functional.normalize(1 + 0.1 * outputs[name], dim=-1)
    for seed in range(20):
        exact = on_two_ranks(model, outputs, mask, seed=seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = on_two_ranks(model, outputs, mask, seed=seed)
        assert mixed == exact


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


def test_questions_that_share_a_clip_are_answered_as_if_each_had_its_own():
    model, inputs = build(AlproForVideoQuestionAnswering), tiny.inputs(5)
    clips, index = inputs["pixel_values_videos"][:3], torch.tensor([2, 0, 0, 1, 2])
    labels = torch.tensor([1, 0, 3, -100, 2])
    seen, gradients = [], []
    model.alpro.video_model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = {}
    for name, videos in (
        ("shared", {"pixel_values_videos": clips, "video_index": index}),
        ("repeated", {"pixel_values_videos": clips[index]}),
    ):
        model.zero_grad()
        found[name] = model(**(inputs | videos), labels=labels)
        found[name].loss.backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.requires_grad})
    assert seen == [3, 5], "a shared clip is encoded once"
    torch.testing.assert_close(found["shared"].logits, found["repeated"].logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found["shared"].loss, found["repeated"].loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)
    assert (found["shared"].logits[1] - found["shared"].logits[3]).abs().max() > 1e-4
    in_order = model(**inputs, video_index=torch.arange(5))
    assert torch.equal(in_order.logits, model(**inputs).logits)


@pytest.mark.parametrize("index", [[0, 2, 1], [0, 1, -1]])
def test_a_clip_that_is_not_there_is_refused(index):
    model, inputs = build(AlproForVideoQuestionAnswering), tiny.inputs(3)
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:2]
    with pytest.raises(ValueError, match=rf"video_index.*2 clips.*from 0 to 1; received \[{str(index)[1:-1]}\]"):
        model(**inputs, video_index=torch.tensor(index))


def test_as_many_questions_as_numbers_of_clips():
    model, inputs = build(AlproForVideoQuestionAnswering), tiny.inputs(3)
    with pytest.raises(ValueError, match="3 texts and 2 videos"):
        model(**inputs, video_index=torch.tensor([0, 1]))


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


@torch.no_grad()
def test_an_answer_mask_leaves_only_candidates():
    model = AlproForVideoQuestionAnswering(tiny.config()).eval()
    inputs = tiny.inputs(3)
    free = model(**inputs).logits
    mask = torch.ones_like(free, dtype=torch.bool)
    best = free[0].argmax()
    mask[0, best] = False
    labels = mask.float().argmax(dim=1)
    out = model(**inputs, answer_mask=mask, labels=labels)
    assert out.logits[0, best] == float("-inf") and out.logits[0].argmax() != best
    torch.testing.assert_close(out.logits[1:], free[1:])
    expected = torch.nn.functional.cross_entropy(free.masked_fill(~mask, -1e9), labels)
    torch.testing.assert_close(out.loss, expected)
