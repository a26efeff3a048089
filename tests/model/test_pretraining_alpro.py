"""The student and the prompter: behaviour. Their numbers are in test_modeling_parity.py."""

import pytest
import torch
from fixtures import tiny
from transformers import AutoModelForPreTraining, set_seed

from alpro_hf.model.loss_alpro import crop_on_black
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval
from alpro_hf.model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel

LOSSES = ["loss_vtc", "loss_vtm", "loss_mlm", "loss_pem"]


def build(model_class=AlproForPreTraining, **config):
    torch.manual_seed(0)
    return model_class(tiny.config(**({"entities": tiny.ENTITIES, "pem_threshold": 0} | config))).eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


# --- the student: one pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_each_encoder_runs_once_for_all_four_losses(batch):
    model, rows = build(), {"text": [], "video": [], "fusion": []}
    text, video = model.alpro.text_model.layers, model.alpro.video_model.layers
    for name, layer in (("text", text[0]), ("fusion", text[tiny.TEXT["fusion_layer"]]), ("video", video[0])):
        layer.register_forward_pre_hook(lambda module, args, name=name: rows[name].append(len(args[0])))
    model(**tiny.pretraining_inputs(batch), return_loss=True)
    # two texts of each pair, as it is and masked; true pairs with the tokens of the clip, and in one pass two kinds of
    # wrong pairs and masked texts
    assert rows == {"text": [2 * batch], "video": [batch], "fusion": [batch, 3 * batch]}


def losses_one_by_one(model, inputs, generator):
    """Each loss from its own passes through the encoders, written out as in the paper."""
    alpro, mask, labels = model.alpro, inputs["attention_mask"], inputs["mlm_labels"]

    def encode(ids="input_ids"):
        text, video = (
            alpro.get_text_features(inputs[ids], mask),
            alpro.get_video_features(inputs["pixel_values_videos"]),
        )
        return text.last_hidden_state, video.last_hidden_state, text.pooler_output, video.pooler_output

    def match(texts, videos):
        text, video, _, _ = encode()
        return model.vtm_head(alpro.fuse(text[texts], mask[texts], video[videos]).last_hidden_state[:, 0])

    _, _, text_unit, video_unit = encode()
    logits = text_unit @ video_unit.t() / alpro.temperature
    own = torch.arange(len(mask))
    cross_entropy = torch.nn.functional.cross_entropy
    losses = {"loss_vtc": (cross_entropy(logits, own) + cross_entropy(logits.t(), own)) / 2}

    without_own = logits.detach().masked_fill(torch.eye(len(own), dtype=torch.bool), float("-inf"))
    wrong_videos = torch.multinomial(without_own.softmax(dim=1), 1, generator=generator).squeeze(1)
    wrong_texts = torch.multinomial(without_own.t().softmax(dim=1), 1, generator=generator).squeeze(1)
    matched = cross_entropy(match(own, own), torch.ones_like(own))
    wrong_video = cross_entropy(match(own, wrong_videos), torch.zeros_like(own))
    wrong_text = cross_entropy(match(wrong_texts, own), torch.zeros_like(own))
    losses["loss_vtm"] = (matched + wrong_video + wrong_text) / 3

    text, video, _, _ = encode("mlm_input_ids")
    words = model.mlm_head(alpro.fuse(text, mask, video).last_hidden_state[:, : mask.shape[1]])
    losses["loss_mlm"] = cross_entropy(words[labels >= 0], labels[labels >= 0])

    text, video, _, _ = encode()
    patches = alpro.fuse(text, mask, video).last_hidden_state[:, mask.shape[1] + 1 :]
    total = 0.0
    for row, target, crop in zip(patches, inputs["pem_targets"], inputs["crop_mask"], strict=True):
        mean = row[crop.flatten()].mean(dim=0)
        total = total - (target * model.pem_head(mean).log_softmax(dim=0)).sum()
    losses["loss_pem"] = total / len(patches)
    return losses


def test_one_pass_equals_a_pass_for_each_loss():
    model, inputs = build(), tiny.pretraining_inputs(4)
    together = model(**inputs, return_loss=True, generator=seeded(3))
    together.loss.backward()
    found = gradients(model)
    model.zero_grad(set_to_none=True)
    apart = losses_one_by_one(model, inputs, seeded(3))
    sum(apart.values()).backward()
    for name, expected in apart.items():
        torch.testing.assert_close(together[name], expected, atol=1e-5, rtol=0, msg=name)
    torch.testing.assert_close(together.loss, sum(apart.values()), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, gradients(model), atol=1e-5, rtol=1e-4)


def test_the_same_pairs_give_the_losses_of_retrieval():
    """VTC and VTM are those of fine-tuning, whatever else is computed beside them."""
    student, inputs = build(), tiny.pretraining_inputs(4)
    retrieval = AlproForVideoTextRetrieval(student.config).eval()
    missing = retrieval.load_state_dict(student.state_dict(), strict=False).missing_keys
    assert missing == []
    ids = {"video_ids": torch.tensor([0, 0, 1, 2]), "text_ids": torch.tensor([0, 1, 1, 2]), "return_loss": True}
    expected = retrieval(**tiny.inputs(4), **ids, generator=seeded())
    found = student(**inputs, **ids, generator=seeded())
    for name in ("loss_vtc", "loss_vtm", "vtm_logits", "vtm_labels", "text_embeds", "logits_per_text"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


# --- the student: which losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [[], ["mlm"], ["pem"], ["mlm", "pem"]], ids=str)
def test_losses_follow_from_the_inputs(without):
    model, inputs = build(), tiny.pretraining_inputs(3)
    left_out = {"mlm": ["mlm_input_ids", "mlm_labels"], "pem": ["pem_targets", "crop_mask"]}
    for name in without:
        for key in left_out[name]:
            del inputs[key]
    out = model(**inputs, return_loss=True)
    computed = {name for name in LOSSES if name in out}
    assert computed == set(LOSSES) - {f"loss_{name}" for name in without}
    torch.testing.assert_close(out.loss, sum(out[name] for name in computed))
    assert (out.mlm_logits is None) == ("mlm" in without)
    assert (out.pem_logits is None) == ("pem" in without)


@torch.no_grad()
def test_without_return_loss_pairs_are_scored_and_words_predicted():
    model, inputs = build(), tiny.pretraining_inputs(3)
    out = model(**inputs)
    assert out.loss is None
    assert all(out.get(name) is None for name in LOSSES)
    assert out.vtm_logits.shape == (3, 2)
    assert out.mlm_logits.shape == (3, 7, tiny.TEXT["vocab_size"])
    assert out.pem_logits.shape == (3, len(tiny.ENTITIES))
    retrieval = AlproForVideoTextRetrieval(model.config).eval()
    retrieval.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(out.vtm_logits, retrieval(**tiny.inputs(3)).vtm_logits, atol=1e-6, rtol=0)
    # words are those of input_ids: reading the masked texts instead gives what training predicts from
    masked = inputs | {"input_ids": inputs["mlm_input_ids"]}
    trained = model(**inputs, return_loss=True).mlm_logits
    torch.testing.assert_close(model(**masked).mlm_logits, trained, atol=1e-5, rtol=0)
    assert (out.mlm_logits - trained).abs().max() > 1e-3


def test_a_batch_of_one_has_positives_only():
    model = build()
    out = model(**tiny.pretraining_inputs(1), return_loss=True)
    out.loss.backward()
    assert out.vtm_labels.tolist() == [1, -100, -100]
    assert out.loss_vtc == 0
    matched = -out.vtm_logits[0].log_softmax(dim=0)[1]
    torch.testing.assert_close(out.loss_vtm, matched)
    assert all(out[name].isfinite() for name in ("loss", *LOSSES))
    assert all(gradient.isfinite().all() for gradient in gradients(model).values() if gradient is not None)


@pytest.mark.parametrize("dropped", ["all", "some", "none"])
def test_pseudo_labels_below_the_threshold_carry_no_loss(dropped):
    targets = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1]])
    threshold = {"all": 0.9, "some": 0.45, "none": 0.0}[dropped]
    model, inputs = build(pem_threshold=threshold), tiny.pretraining_inputs(3) | {"pem_targets": targets}
    out = model(**inputs, return_loss=True)
    kept = {"all": [], "some": [0, 2], "none": [0, 1, 2]}[dropped]
    assert out.pem_kept.nonzero().flatten().tolist() == kept
    rows = [-(targets[row] * out.pem_logits[row].log_softmax(dim=0)).sum() for row in kept]
    assert out.loss_pem.item() == pytest.approx(sum(rows).item() / len(rows) if rows else 0.0, abs=1e-6)
    out.loss.backward()
    found = gradients(model)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert (found["pem_head.0.weight"].abs().max() == 0) == (dropped == "all")
    if dropped == "all":
        assert out.loss_pem.item() == 0.0
        torch.testing.assert_close(out.loss, out.loss_vtc + out.loss_vtm + out.loss_mlm)


def test_texts_without_a_masked_word_carry_no_loss():
    model, inputs = build(), tiny.pretraining_inputs(2)
    out = model(**inputs | {"mlm_labels": torch.full_like(inputs["mlm_labels"], -100)}, return_loss=True)
    out.loss.backward()
    assert out.loss_mlm.item() == 0.0
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_counts_make_micro_batches_add_up():
    """Divided by the mean count, the mean over unequal micro-batches is the loss of the whole batch."""
    model, inputs = build(pem_threshold=0.6), tiny.pretraining_inputs(4)
    inputs["mlm_labels"][0] = -100
    inputs["pem_targets"] = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0]])
    whole = model(**inputs, return_loss=True)
    counts = {
        "mlm_count": (inputs["mlm_labels"] >= 0).sum() / 2,
        "pem_count": whole.pem_kept.sum() / 2,
    }
    halves = [
        model(**{name: tensor[rows] for name, tensor in inputs.items()}, return_loss=True, **counts)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name in ("loss_mlm", "loss_pem"):
        assert halves[0][name] != halves[1][name]
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name])


@torch.no_grad()
def test_pem_reads_nothing_outside_the_crop_but_through_attention():
    """The mean is taken over the patches of the crop: the logits equal the head on exactly those."""
    model, inputs = build(), tiny.pretraining_inputs(2)
    inputs["crop_mask"] = torch.tensor([[[0, 0], [1, 0]], [[1, 1], [1, 1]]])
    out = model(**inputs)
    fused = model.alpro.fuse(
        out.text_model_output.last_hidden_state,
        inputs["attention_mask"],
        out.video_model_output.last_hidden_state,
    ).last_hidden_state
    first = inputs["input_ids"].shape[1] + 1
    torch.testing.assert_close(out.pem_logits[0], model.pem_head(fused[0, first + 2]), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.pem_logits[1], model.pem_head(fused[1, first:].mean(dim=0)), atol=1e-6, rtol=0)
    as_float = model(**inputs | {"crop_mask": inputs["crop_mask"].float()})
    assert torch.equal(as_float.pem_logits, out.pem_logits)


@torch.no_grad()
def test_clips_that_are_not_square():
    model, inputs = build(), tiny.pretraining_inputs(2)
    inputs["pixel_values_videos"] = torch.randn(2, 3, 3, 16, 24)
    inputs["crop_mask"] = torch.tensor([[[0, 0, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]])
    assert model(**inputs, return_loss=True).loss.isfinite()
    with pytest.raises(ValueError, match=r"crop_mask must have the shape \(2, 2, 3\).*received \(2, 3, 2\)"):
        model(**inputs | {"crop_mask": inputs["crop_mask"].transpose(1, 2)}, return_loss=True)


def test_recorded_states_are_those_of_the_texts_as_they_are():
    model, inputs = build(), tiny.pretraining_inputs(2)
    model.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with_mlm = model(**inputs, return_loss=True, **wanted).text_model_output
    plain = model(**tiny.inputs(2), return_loss=True, **wanted).text_model_output
    assert len(with_mlm.hidden_states) == tiny.TEXT["fusion_layer"] + 1
    torch.testing.assert_close(with_mlm.to_tuple(), plain.to_tuple(), atol=1e-6, rtol=1e-5)


WRONG_INPUTS = [
    (["pixel_values_videos"], {}, "needs input_ids and pixel_values_videos"),
    (["input_ids"], {}, "needs input_ids and pixel_values_videos"),
    (["mlm_labels"], {}, "mlm_input_ids and mlm_labels belong together"),
    (["mlm_input_ids"], {}, "mlm_input_ids and mlm_labels belong together"),
    ([], {"mlm_input_ids": torch.ones(2, 6, dtype=torch.long)}, r"mlm_input_ids \(2, 6\).*input_ids \(2, 7\)"),
    (["crop_mask"], {}, "pem_targets need the crop_mask"),
    ([], {"pem_targets": torch.ones(2, 4) / 4}, r"pem_targets must have the shape \(2, 3\).*received \(2, 4\)"),
    ([], {"pem_targets": torch.ones(1, 3) / 3}, r"pem_targets must have the shape \(2, 3\).*received \(1, 3\)"),
    ([], {"crop_mask": torch.ones(2, 4)}, r"crop_mask must have the shape \(2, 2, 2\).*received \(2, 4\)"),
    ([], {"crop_mask": torch.zeros(2, 2, 2)}, r"crop_mask is empty in the rows \[0, 1\]"),
    ([], {"pixel_values_videos": torch.zeros(3, 4, 3, 16, 16)}, "received 2 texts and 3 videos"),
    ([], {"negatives": "hard"}, "negatives='hard' is unknown"),
]


@pytest.mark.parametrize(("absent", "changed", "words"), WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_refused(absent, changed, words):
    inputs = {name: tensor for name, tensor in tiny.pretraining_inputs(2).items() if name not in absent}
    with pytest.raises(ValueError, match=words):
        build()(**inputs | changed, return_loss=True)


def test_without_entities_there_is_no_pem():
    model, inputs = build(entities=None), tiny.pretraining_inputs(2)
    assert model.pem_head is None
    with pytest.raises(ValueError, match=r"pem_targets must have the shape \(2, 0\)"):
        model(**inputs, return_loss=True)
    del inputs["pem_targets"]
    out = model(**inputs, return_loss=True)
    out.loss.backward()
    assert out.pem_logits is None
    assert all(gradient is not None for gradient in gradients(model).values())


# --- the student: words are read and predicted ----------------------------------------------------------------------


def is_tied(model):
    return model.mlm_head.decoder.weight is model.alpro.text_model.embeddings.word_embeddings.weight


@torch.no_grad()
def test_the_words_it_reads_are_those_it_predicts(tmp_path):
    model = build()
    assert is_tied(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is AlproForPreTraining
    assert is_tied(loaded)
    assert loaded.config.entities == tiny.ENTITIES
    inputs = tiny.pretraining_inputs(2)
    assert torch.equal(loaded(**inputs, return_loss=True).loss, model(**inputs, return_loss=True).loss)


@torch.no_grad()
def test_resized_vocabulary(tmp_path):
    model, inputs = build(), tiny.pretraining_inputs(2)
    before = model(**inputs)
    model.resize_token_embeddings(61, mean_resizing=False)
    assert model.config.text_config.vocab_size == 61
    assert is_tied(model)
    assert model.mlm_head.decoder.bias.shape == (61,)
    after = model(**inputs)
    assert after.mlm_logits.shape == (2, 7, 61)
    torch.testing.assert_close(after.mlm_logits[..., :50], before.mlm_logits)
    torch.testing.assert_close(after.vtm_logits, before.vtm_logits)
    inputs["mlm_labels"][0, 1] = inputs["mlm_input_ids"][0, 2] = 60
    trained = model(**inputs, return_loss=True)
    assert trained.loss_mlm.isfinite()
    model.save_pretrained(tmp_path)
    loaded = AlproForPreTraining.from_pretrained(tmp_path)
    assert is_tied(loaded)
    assert torch.equal(loaded(**inputs, return_loss=True).loss_mlm, trained.loss_mlm)


def test_training_learns_all_four_tasks():
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, inputs = build(text=dropout, video=dropout).train(), tiny.pretraining_inputs(4)
    entropy = torch.distributions.Categorical(inputs["pem_targets"]).entropy().mean().item()  # the least loss of PEM
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        out = model(**inputs, return_loss=True, generator=seeded())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        history.append({name: out[name].item() for name in LOSSES})
    for name in LOSSES:
        least = entropy if name == "loss_pem" else 0.0
        assert history[-1][name] - least < 0.3 * (history[0][name] - least), name
    assert is_tied(model)


# --- the prompter ---------------------------------------------------------------------------------------------------


def prompt_ids(templates=4, seed=0):
    """Prompts of 6 tokens for each of the entities, template by template; (ids, mask)."""
    rows = templates * len(tiny.ENTITIES)
    ids = torch.randint(5, tiny.TEXT["vocab_size"], (rows, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    return ids * mask, mask


def build_prompter(**config):
    model = build(AlproPrompterModel, **config)
    model.set_prompts("video", *prompt_ids())
    return model


@torch.no_grad()
def test_prompts_are_averaged_over_wordings_and_not_normalised_again():
    model, (ids, mask) = build_prompter(), prompt_ids()
    for entity in range(len(tiny.ENTITIES)):
        rows = [entity + template * len(tiny.ENTITIES) for template in range(4)]
        units = [model.alpro.get_text_features(ids[row : row + 1], mask[row : row + 1]).pooler_output for row in rows]
        expected = torch.cat(units).mean(dim=0)
        torch.testing.assert_close(model.video_prompt_embeds[entity], expected, atol=1e-6, rtol=0)
    assert (model.video_prompt_embeds.norm(dim=1) < 0.999).all()
    assert model.image_prompt_embeds.abs().max() == 0


@pytest.mark.parametrize("batch_size", [1, 5, 12, 1000])
def test_prompts_embedded_in_parts_are_the_same(batch_size):
    model = build_prompter()
    expected = model.video_prompt_embeds.clone()
    sizes = []
    model.alpro.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.set_prompts("image", *prompt_ids(), batch_size=batch_size)
    torch.testing.assert_close(model.image_prompt_embeds, expected, atol=1e-6, rtol=0)
    assert sum(sizes) == 12
    assert max(sizes) == min(batch_size, 12)


def test_prompts_without_a_mask_are_not_padded():
    model, (ids, mask) = build(AlproPrompterModel), prompt_ids()
    model.set_prompts("video", ids, torch.ones_like(mask))
    model.set_prompts("image", ids)
    torch.testing.assert_close(model.image_prompt_embeds, model.video_prompt_embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_prompts_are_embedded_without_dropout_and_the_mode_comes_back(training):
    expected = build_prompter().video_prompt_embeds
    model = build(AlproPrompterModel, text={"hidden_dropout_prob": 0.5}).train(training)
    model.set_prompts("video", *prompt_ids())
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert torch.equal(model.video_prompt_embeds, expected)
    assert not model.video_prompt_embeds.requires_grad


@torch.no_grad()
def test_pseudo_labels_are_similarities_over_the_temperature():
    model, clips = build_prompter(temperature_init=0.2), tiny.inputs(3)["pixel_values_videos"]
    labels = model.pseudo_labels(clips)
    assert labels.shape == (3, len(tiny.ENTITIES))
    unit = model.alpro.get_video_features(clips).pooler_output
    for row in range(3):
        scores = torch.stack([unit[row] @ embed / 0.2 for embed in model.video_prompt_embeds])
        torch.testing.assert_close(labels[row], scores.exp() / scores.exp().sum(), atol=1e-6, rtol=0)


def test_pseudo_labels_need_prompts_of_their_kind():
    model, clips = build_prompter(), tiny.inputs()["pixel_values_videos"]
    with pytest.raises(ValueError, match=r"no image prompts yet; call set_prompts\('image'"):
        model.pseudo_labels(clips, "image")
    model.set_prompts("image", *prompt_ids(seed=1))
    assert (model.pseudo_labels(clips, "image") - model.pseudo_labels(clips)).abs().max() > 1e-4
    assert not model.pseudo_labels(clips).requires_grad


@pytest.mark.parametrize("rows", [0, 2, 7])
def test_prompts_that_do_not_fit_the_entities_are_refused(rows):
    model, (ids, mask) = build_prompter(), prompt_ids()
    before = model.video_prompt_embeds.clone()
    with pytest.raises(ValueError, match=rf"received {rows} prompts for 3 entities"):
        model.set_prompts("video", ids[:rows], mask[:rows])
    assert torch.equal(model.video_prompt_embeds, before)


def test_a_prompter_without_entities_takes_no_prompts():
    model = build(AlproPrompterModel, entities=None)
    with pytest.raises(ValueError, match="12 prompts for 0 entities"):
        model.set_prompts("video", *prompt_ids())


def test_other_kinds_of_prompts_are_refused():
    model = build_prompter()
    with pytest.raises(ValueError, match="kind='audio' is unknown"):
        model.set_prompts("audio", *prompt_ids())
    with pytest.raises(ValueError, match="kind='audio' is unknown"):
        model.pseudo_labels(tiny.inputs()["pixel_values_videos"], kind="audio")


@torch.no_grad()
def test_a_saved_prompter_keeps_prompts_and_names(tmp_path):
    model, clips = build_prompter(), tiny.inputs()["pixel_values_videos"]
    model.save_pretrained(tmp_path)
    loaded, report = AlproPrompterModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert loaded.config.entities == tiny.ENTITIES
    assert torch.equal(loaded.pseudo_labels(clips), model.pseudo_labels(clips))
    assert torch.equal(loaded.video_prompt_embeds, model.video_prompt_embeds)


def test_a_prompter_without_saved_prompts_knows_that_it_has_none(tmp_path):
    build(AlproForVideoTextRetrieval).save_pretrained(tmp_path)
    set_seed(1)
    loaded, report = AlproPrompterModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"video_prompt_embeds", "image_prompt_embeds"}
    assert loaded.video_prompt_embeds.abs().max() == 0
    with pytest.raises(ValueError, match="no video prompts yet"):
        loaded.pseudo_labels(tiny.inputs()["pixel_values_videos"])


@torch.no_grad()
def test_pseudo_labels_in_half_precision_are_probabilities_in_float32():
    model, clips = build_prompter(), tiny.inputs()["pixel_values_videos"]
    exact = model.pseudo_labels(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.pseudo_labels(clips)
    half = model.to(torch.bfloat16)
    half.set_prompts("video", *prompt_ids())
    for labels in (mixed, half.pseudo_labels(clips)):
        assert labels.dtype == torch.float32
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(2))
        torch.testing.assert_close(labels, exact, atol=0.1, rtol=0)


@torch.no_grad()
def test_teacher_and_student_meet():
    """Pseudo-labels of crops on black are what the student takes."""
    teacher, student, inputs = build_prompter(), build(), tiny.pretraining_inputs(3)
    crops = crop_on_black(inputs["pixel_values_videos"], inputs["crop_mask"], torch.full((3,), -1.8))
    out = student(**inputs | {"pem_targets": teacher.pseudo_labels(crops)}, return_loss=True)
    assert out.pem_kept.all()
    assert out.loss_pem > 0
