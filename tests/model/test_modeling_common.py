"""What users' tools rely on in every model of the library, checked on each ALPRO class."""

import copy
import inspect
import re

import pytest
import torch
from fixtures import tiny
from transformers import set_seed
from transformers.utils import ModelOutput, is_flash_attn_2_available

from alpro_hf.model.modeling_alpro import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproTextModel,
    AlproVideoLayer,
    AlproVideoModel,
)
from alpro_hf.model.pretraining_alpro import AlproForPreTraining, AlproPrompterModel

HEADS = [AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering, AlproForPreTraining]
COMPOSITES = [AlproModel, AlproPrompterModel, *HEADS]
# for pre-training, see test_pretraining_alpro.py: words are also what it predicts
WITH_TEXT = [
    AlproTextModel,
    AlproModel,
    AlproPrompterModel,
    AlproForVideoTextRetrieval,
    AlproForVideoQuestionAnswering,
]
ALL = [AlproVideoModel, AlproTextModel, *COMPOSITES]


def build(model_class, **config):
    full = tiny.config(entities=tiny.ENTITIES, **config)
    if model_class is AlproTextModel:
        full = full.text_config
    elif model_class is AlproVideoModel:
        full = full.video_config
    set_seed(0)
    return model_class(full).eval()


def inputs_for(model_class, batch=2):
    inputs = tiny.inputs(batch)
    if model_class is AlproTextModel:
        del inputs["pixel_values_videos"]
    elif model_class is AlproVideoModel:
        inputs = {"pixel_values_videos": inputs["pixel_values_videos"]}
    return inputs


def training_inputs(model_class, batch=3):
    """Inputs with which the model returns a loss."""
    if model_class is AlproForVideoQuestionAnswering:
        return inputs_for(model_class, batch) | {"labels": torch.tensor([0, 2, 4][:batch])}
    if model_class is AlproForPreTraining:
        return tiny.pretraining_inputs(batch) | {"return_loss": True}
    return inputs_for(model_class, batch) | {"return_loss": True}


def scalar(model, batch=3):
    """A differentiable number that depends on everything the model returns in training."""
    if type(model) in COMPOSITES:
        return model(**training_inputs(type(model), batch)).loss
    return model(**inputs_for(type(model), batch)).last_hidden_state.square().mean()


def tensors(output):
    """All tensors of an output, flattened in order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, ModelOutput):
        output = output.to_tuple()
    return [tensor for part in output for tensor in tensors(part)]


def assert_same_output(left, right, atol=0.0, rtol=0.0):
    left, right = tensors(left), tensors(right)
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=rtol)


every_model = pytest.mark.parametrize("model_class", ALL, ids=lambda c: c.__name__)
every_composite = pytest.mark.parametrize("model_class", COMPOSITES, ids=lambda c: c.__name__)
every_head = pytest.mark.parametrize("model_class", HEADS, ids=lambda c: c.__name__)
every_text_model = pytest.mark.parametrize("model_class", WITH_TEXT, ids=lambda c: c.__name__)


@every_model
@torch.no_grad()
def test_evaluation_is_deterministic_and_training_is_not(model_class):
    dropout = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model, inputs = build(model_class, text=dropout, video=dropout), inputs_for(model_class)
    assert_same_output(model(**inputs), model(**inputs))
    model.train()
    assert (tensors(model(**inputs))[0] - tensors(model(**inputs))[0]).abs().max() > 0


@pytest.mark.parametrize("model_class", [AlproForVideoTextRetrieval, AlproForPreTraining])
@torch.no_grad()
def test_the_loss_of_evaluation_is_deterministic(model_class):
    """Negatives are drawn in training only, or from a generator."""
    model, inputs = build(model_class), training_inputs(model_class, batch=6)
    state = torch.get_rng_state()
    first = model(**inputs)
    assert torch.equal(torch.get_rng_state(), state)  # a validation between steps changes no later draw
    torch.randn(5)
    assert_same_output(model(**inputs), first)
    assert_same_output(model(**inputs, return_dict=False), first)
    drawn = [model(**inputs, generator=torch.Generator().manual_seed(seed)).vtm_logits for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(drawn[0], drawn[1])
    assert not all(torch.equal(drawn[0], other) for other in drawn)
    # the wrong clip of text i is the most similar one
    similarity = first.logits_per_text.masked_fill(torch.eye(6, dtype=torch.bool), float("-inf"))
    pixels = inputs["pixel_values_videos"][similarity.argmax(dim=1)]
    pairs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values_videos=pixels)
    torch.testing.assert_close(first.vtm_logits[6:12], pairs.vtm_logits, atol=1e-5, rtol=1e-4)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    assert len({model(**inputs).loss.item() for _ in range(8)}) > 1


@every_model
@torch.no_grad()
def test_tuple_and_dict_hold_the_same(model_class):
    model, inputs = build(model_class), inputs_for(model_class)
    as_dict = model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_dict, ModelOutput)
    assert isinstance(as_tuple, tuple)
    assert_same_output(as_dict, as_tuple)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)
    assert_same_output(model(**inputs), as_dict)
    assert_same_output(model(**inputs, return_dict=True), as_dict)


@every_composite
@torch.no_grad()
def test_features_as_tuple_and_dict(model_class):
    model = build(model_class)
    alpro = model if model_class is AlproModel else model.alpro
    inputs = tiny.inputs()
    pixels = inputs.pop("pixel_values_videos")
    assert_same_output(alpro.get_video_features(pixels), alpro.get_video_features(pixels, return_dict=False))
    assert_same_output(alpro.get_text_features(**inputs), alpro.get_text_features(**inputs, return_dict=False))


def tower_outputs(model_class, output):
    """(video output, text output), None where the model has no such tower."""
    if model_class is AlproVideoModel:
        return output, None
    if model_class is AlproTextModel:
        return None, output
    return output.video_model_output, output.text_model_output


@every_model
@torch.no_grad()
def test_hidden_states_and_attentions(model_class):
    model = build(model_class)
    model.set_attn_implementation("eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    if model_class is not AlproTextModel:
        wanted["output_temporal_attentions"] = True
    inputs = inputs_for(model_class)
    output = model(**inputs, **wanted)
    video, text = tower_outputs(model_class, output)
    batch, width, heads = 2, tiny.VIDEO["hidden_size"], tiny.VIDEO["num_attention_heads"]
    frames, patches = tiny.FRAMES, tiny.PATCHES
    if video is not None:
        layers = tiny.VIDEO["num_hidden_layers"]
        assert [tuple(h.shape) for h in video.hidden_states] == [(batch, 1 + frames * patches, width)] * (layers + 1)
        space = (batch * frames, heads, 1 + patches, 1 + patches)
        time = (batch * patches, heads, frames, frames)
        assert [tuple(a.shape) for a in video.attentions] == [space] * layers
        assert [tuple(a.shape) for a in video.temporal_attentions] == [time] * layers
        for weights in (*video.attentions, *video.temporal_attentions):
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    if text is not None:
        layers, length = tiny.TEXT["fusion_layer"], inputs["input_ids"].shape[1]
        assert [tuple(h.shape) for h in text.hidden_states] == [(batch, length, width)] * (layers + 1)
        assert [tuple(a.shape) for a in text.attentions] == [(batch, heads, length, length)] * layers
        torch.testing.assert_close(text.hidden_states[-1], text.last_hidden_state)
        assert text.attentions[0][1, :, :, 4:].abs().max() == 0  # the second text is padded from its fifth token
    if model_class is AlproForVideoQuestionAnswering:
        fused = output.fusion_model_output
        layers = tiny.TEXT["num_hidden_layers"] - tiny.TEXT["fusion_layer"]
        length = inputs["input_ids"].shape[1] + 1 + patches
        assert [tuple(h.shape) for h in fused.hidden_states] == [(batch, length, width)] * (layers + 1)
        assert [tuple(a.shape) for a in fused.attentions] == [(batch, heads, length, length)] * layers
    plain = tower_outputs(model_class, model(**inputs))
    for tower in plain:
        assert tower is None or (tower.hidden_states is None and tower.attentions is None)


@every_model
def test_hidden_states_and_attentions_keep_gradients(model_class):
    model = build(model_class)
    model.set_attn_implementation("eager")
    output = model(**inputs_for(model_class), output_hidden_states=True, output_attentions=True)
    kept = [tower for tower in tower_outputs(model_class, output) if tower is not None]
    for tower in kept:
        tower.hidden_states[0].retain_grad()
        tower.attentions[0].retain_grad()
    sum(tower.last_hidden_state.square().sum() for tower in kept).backward()
    for tower in kept:
        assert tower.hidden_states[0].grad.abs().max() > 0
        assert tower.attentions[0].grad.abs().max() > 0


@every_model
@torch.no_grad()
def test_every_attention_implementation_returns_the_same(model_class):
    model, inputs = build(model_class), inputs_for(model_class)
    outputs = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        used = {m.config._attn_implementation for m in model.modules() if hasattr(m, "attention_dropout")}
        assert used == {implementation}
        outputs[implementation] = model(**inputs)
    assert_same_output(outputs["eager"], outputs["sdpa"], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_returns_the_same():
    """Forward only: the library's flex kernels have no backward on a CPU. Slow, because they are compiled.

    Of one model, which runs every kind of attention there is: space, time, text and fusion.
    """
    model_class = AlproForVideoTextRetrieval
    model, inputs = build(model_class), inputs_for(model_class)
    expected = model(**inputs)
    model.set_attn_implementation("flex_attention")
    assert_same_output(model(**inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()),
    reason="flash attention needs a GPU and flash_attn",
)
@every_composite
@torch.no_grad()
def test_flash_attention_returns_the_same(model_class):
    model, inputs = build(model_class).to("cuda", torch.bfloat16), inputs_for(model_class)
    inputs = {name: tensor.cuda() for name, tensor in inputs.items()}
    expected = tensors(model(**inputs))[0]
    model.set_attn_implementation("flash_attention_2")
    torch.testing.assert_close(tensors(model(**inputs))[0], expected, atol=0.05, rtol=0.05)


@every_model
@torch.no_grad()
def test_a_batch_equals_its_rows(model_class):
    model, inputs = build(model_class), inputs_for(model_class, batch=3)
    names = {
        AlproModel: ["text_embeds", "video_embeds"],
        AlproPrompterModel: ["text_embeds", "video_embeds"],
        AlproForPreTraining: ["text_embeds", "video_embeds", "vtm_logits", "mlm_logits"],
        AlproForVideoTextRetrieval: ["text_embeds", "video_embeds", "vtm_logits"],
        AlproForVideoQuestionAnswering: ["logits"],
    }.get(model_class, ["last_hidden_state", "pooler_output"])
    together = model(**inputs)
    for row in range(3):
        alone = model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        for name in names:
            torch.testing.assert_close(together[name][row : row + 1], alone[name], atol=1e-5, rtol=1e-4)


@every_model
@torch.no_grad()
def test_saved_model_returns_the_same(model_class, tmp_path):
    model, inputs = build(model_class), inputs_for(model_class)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    assert_same_output(model(**inputs), loaded(**inputs))


@pytest.mark.parametrize("model_class", [*HEADS, AlproPrompterModel], ids=lambda c: c.__name__)
@torch.no_grad()
def test_base_and_head_load_each_other(model_class, tmp_path):
    head, inputs = build(model_class), tiny.inputs()
    head.save_pretrained(tmp_path / "head")
    base, report = AlproModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not report["missing_keys"]
    assert_same_output(base(**inputs), head.alpro(**inputs))

    base.save_pretrained(tmp_path / "base")
    again, report = model_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    own = {name for name in head.state_dict() if not name.startswith("alpro.")}
    tied = set(getattr(head, "_tied_weights_keys", None) or ())
    assert set(report["missing_keys"]) == own - tied
    assert not report["unexpected_keys"]
    assert_same_output(again.alpro(**inputs), base(**inputs))


@every_model
def test_every_parameter_is_initialised(model_class):
    """A model loaded without any weights is as well initialised as a new one: no parameter is left as found."""
    new = build(model_class)
    set_seed(1)
    loaded = model_class.from_pretrained(None, config=new.config, state_dict={})
    set_seed(1)
    repeated = model_class.from_pretrained(None, config=new.config, state_dict={})
    parameters = dict(loaded.named_parameters())
    again = dict(repeated.named_parameters())
    assert set(parameters) == set(dict(new.named_parameters()))
    for name, expected in new.named_parameters():
        found = parameters[name]
        torch.testing.assert_close(found, again[name], msg=name)
        spread = expected.std(correction=0).item()
        chance = 6 * spread / found.numel() ** 0.5  # over four standard errors of a difference of means
        assert found.mean().item() == pytest.approx(expected.mean().item(), abs=chance + 1e-6), name
        assert found.std(correction=0).item() == pytest.approx(spread, rel=0.3), name


def test_initial_values_are_those_of_the_configuration():
    config = tiny.config(temperature_init=0.2, video={"position_initializer_range": 0.5})
    state = AlproForVideoTextRetrieval(config).state_dict()
    assert state["alpro.temperature"].tolist() == [pytest.approx(0.2)]
    assert state["alpro.video_model.embeddings.time_embeddings"].std().item() == pytest.approx(0.5, rel=0.3)
    assert state["alpro.video_model.embeddings.position_embeddings"].std().item() == pytest.approx(0.5, rel=0.3)
    assert state["alpro.video_model.embeddings.cls_token"].abs().max() == 0
    assert state["alpro.text_model.embeddings.word_embeddings.weight"].std().item() == pytest.approx(0.1, rel=0.1)
    assert state["alpro.text_model.embeddings.word_embeddings.weight"][0].abs().max() == 0  # padding


@every_model
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(model_class, reentrant):
    def gradients(checkpointing):
        model = build(model_class).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        calls = []
        for module in model.modules():
            if type(module).__name__.endswith("Layer"):
                module.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        set_seed(5)  # the same dropout and the same hard negatives
        scalar(model).backward()
        return {name: p.grad for name, p in model.named_parameters()}, len(calls)

    plain, calls = gradients(False)
    checkpointed, calls_again = gradients(True)
    assert calls_again == 2 * calls  # every layer really ran a second time
    assert any(gradient is not None for gradient in plain.values())
    for name, gradient in plain.items():
        if gradient is None:
            assert checkpointed[name] is None, name
        else:
            torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@every_head
def test_every_trainable_parameter_gets_a_gradient(model_class):
    """Otherwise distributed training would wait for it."""
    model = build(model_class).train()
    scalar(model).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@every_composite
def test_training_lowers_the_loss(model_class):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = build(model_class, text=dropout, video=dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = scalar(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@every_text_model
@torch.no_grad()
def test_resized_word_embeddings(model_class, tmp_path):
    model, inputs = build(model_class), inputs_for(model_class)
    before = model(**inputs)
    model.resize_token_embeddings(61, mean_resizing=False)
    config = model.config if model_class is AlproTextModel else model.config.text_config
    assert config.vocab_size == 61
    assert model.get_input_embeddings().weight.shape[0] == 61
    assert_same_output(model(**inputs), before)
    inputs["input_ids"][0, 1] = 60
    after = model(**inputs)
    model.save_pretrained(tmp_path)
    assert_same_output(model_class.from_pretrained(tmp_path)(**inputs), after)
    model.resize_token_embeddings(50)
    inputs["input_ids"][0, 1] = 49
    assert all(torch.isfinite(tensor).all() for tensor in tensors(model(**inputs)))


@every_text_model
@torch.no_grad()
def test_word_embeddings_instead_of_ids(model_class):
    model, inputs = build(model_class), inputs_for(model_class)
    expected = model(**inputs)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert_same_output(model(**inputs, inputs_embeds=embeds), expected)


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_close(model_class, dtype, tmp_path):
    model, inputs = build(model_class), inputs_for(model_class)
    expected = tensors(model(**inputs))[0]
    model.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    for implementation in ("eager", "sdpa"):
        half.set_attn_implementation(implementation)
        found = tensors(half(**inputs))[0]  # pixels in float32 are cast to the weights
        compared = model_class not in (AlproVideoModel, AlproTextModel, AlproForVideoQuestionAnswering)
        assert found.dtype == (torch.float32 if compared else dtype)  # similarities in half precision would tie
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    "model_class", [AlproModel, AlproPrompterModel, AlproForVideoTextRetrieval, AlproForPreTraining]
)
@torch.no_grad()
def test_scores_of_half_precision_weights_do_not_tie(model_class):
    """Weights of bfloat16 give different clips different similarities and different matching scores."""
    model = build(model_class).to(torch.bfloat16)
    base = model.base_model
    inputs, clips = tiny.inputs(3), 100
    # clips that differ little from each other, as the best candidates of a query do
    pixels = inputs["pixel_values_videos"][:1] + 0.05 * torch.randn(clips, *inputs["pixel_values_videos"].shape[1:])
    text = base.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    video = base.get_video_features(pixels)
    logits = base(**(inputs | {"pixel_values_videos": pixels})).logits_per_text
    assert logits.dtype == text.pooler_output.dtype == video.pooler_output.dtype == torch.float32
    exact = text.pooler_output.double() @ video.pooler_output.double().t() / model.base_model.temperature.double()
    torch.testing.assert_close(logits.double(), exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(video.pooler_output.norm(dim=1), torch.ones(clips), atol=1e-6, rtol=0)
    scores = [*zip(logits, exact, strict=True)]
    if hasattr(model, "match"):
        read: list[torch.Tensor] = []  # by the head, in bfloat16
        hook = model.vtm_head.register_forward_hook(lambda head, inputs, output: read.append(inputs[0]))
        matched = model.match(text.last_hidden_state[:1].expand(clips, -1, -1), None, video.last_hidden_state)
        hook.remove()
        assert matched.dtype == torch.float32
        head = model.vtm_head
        scores.append((matched[:, 1], read[0].double() @ head.weight[1].double() + head.bias[1].double()))
    for row, without_rounding in scores:
        sorted_exactly = without_rounding.sort()
        told_apart = sorted_exactly.values.diff() > 1e-6  # closer ones may round to one number of float32
        assert told_apart.sum() > 0.9 * clips
        assert (row[sorted_exactly.indices].diff()[told_apart] > 0).all()
        assert len(row.bfloat16().unique()) < clips / 2  # which bfloat16 could not tell apart


@every_model
@torch.no_grad()
def test_double_precision_agrees(model_class):
    model, inputs = build(model_class), inputs_for(model_class)
    expected = tensors(model(**inputs))[0]
    found = tensors(model.to(torch.float64)(**inputs))[0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


@every_head
def test_autocast_trains(model_class):
    model = build(model_class).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = scalar(model)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@torch.no_grad()
def test_gpu_agrees(model_class, dtype):
    model, inputs = build(model_class), inputs_for(model_class)
    expected = tensors(model(**inputs))[0]
    model = model.to("cuda", dtype)
    found = tensors(model(**{name: tensor.cuda() for name, tensor in inputs.items()}))[0]
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.float().cpu(), expected, atol=tolerance, rtol=tolerance)


@every_model
@torch.no_grad()
def test_device_map_places_every_tensor(model_class, tmp_path):
    model, inputs = build(model_class), inputs_for(model_class)
    model.save_pretrained(tmp_path)
    placed = model_class.from_pretrained(tmp_path, device_map="cpu")
    assert {tensor.device.type for tensor in placed.state_dict().values()} == {"cpu"}
    assert_same_output(placed(**inputs), model(**inputs))


@every_model
def test_signature_starts_with_the_main_input(model_class):
    names = list(inspect.signature(model_class.forward).parameters)
    assert names[1] == model_class.main_input_name


@every_model
def test_layers_that_must_stay_whole_exist(model_class):
    model = build(model_class)
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & set(model_class._no_split_modules)
    if model_class is AlproVideoModel:
        assert AlproVideoLayer.__name__ in model_class._no_split_modules


@pytest.mark.parametrize("model_class", [AlproPrompterModel, *HEADS], ids=lambda c: c.__name__)
@torch.no_grad()
def test_features_of_either_tower_from_the_model_with_a_head(model_class):
    model, inputs = build(model_class), tiny.inputs()
    pixels = inputs.pop("pixel_values_videos")
    assert_same_output(model.get_text_features(**inputs), model.alpro.get_text_features(**inputs))
    assert_same_output(model.get_video_features(pixels), model.alpro.get_video_features(pixels))
    as_tuple = model.get_video_features(pixels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    wanted = {"output_hidden_states": True}
    assert len(model.get_text_features(**inputs, **wanted).hidden_states) == tiny.TEXT["fusion_layer"] + 1


@pytest.mark.parametrize("model_class", [AlproForVideoTextRetrieval, AlproForPreTraining])
@pytest.mark.parametrize("with_loss", [False, True], ids=["scores", "loss"])
@torch.no_grad()
def test_the_fusion_layers_show_their_attention(model_class, with_loss):
    if model_class is AlproForPreTraining and with_loss:
        pytest.skip("pre-training fuses in several batches")
    model, inputs = build(model_class), tiny.inputs(3) | {"return_loss": with_loss}
    model.set_attn_implementation("eager")
    plain = model(**inputs)
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    rows = 9 if with_loss else 3
    layers, length = tiny.TEXT["num_hidden_layers"] - tiny.TEXT["fusion_layer"], 7 + 1 + tiny.PATCHES
    fused = output.fusion_model_output
    heads, width = tiny.TEXT["num_attention_heads"], tiny.TEXT["hidden_size"]
    assert [tuple(a.shape) for a in fused.attentions] == [(rows, heads, length, length)] * layers
    assert [tuple(h.shape) for h in fused.hidden_states] == [(rows, length, width)] * (layers + 1)
    assert fused.attentions[0][1, :, :, 4:7].abs().max() == 0  # padding of the second text
    torch.testing.assert_close(fused.attentions[0].sum(dim=-1), torch.ones(rows, heads, length))
    torch.testing.assert_close(output.vtm_logits, plain.vtm_logits, atol=1e-5, rtol=1e-4)
    assert plain.fusion_model_output.attentions is None and plain.fusion_model_output.hidden_states is None
    model.config.text_config.output_attentions = True
    assert len(model(**inputs).fusion_model_output.attentions) == layers


@every_model
def test_input_embeddings_can_be_replaced(model_class):
    model = build(model_class)
    old = model.get_input_embeddings()
    new = copy.deepcopy(old)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    with torch.no_grad():
        before = tensors(model(**inputs_for(model_class)))[0]
        new.weight.add_(torch.randn(new.weight.shape))
        assert (tensors(model(**inputs_for(model_class)))[0] - before).abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("model_class", [AlproVideoModel, AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering])
@torch.no_grad()
def test_the_whole_model_compiles_without_a_break(model_class):
    model, inputs = build(model_class), inputs_for(model_class)
    assert model._can_compile_fullgraph
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # the graph is what counts, not its speed
    assert_same_output(compiled(**inputs), model(**inputs), atol=1e-5, rtol=1e-4)


@every_model
@torch.no_grad()
def test_shapes_without_numbers(model_class):
    """On the device "meta", which tools use to plan memory and which has no autocast."""
    with torch.device("meta"):
        model = model_class(build(model_class).config).eval()
    inputs = inputs_for(model_class)
    inputs.pop("attention_mask", None)  # the library reads its values
    meta = {name: tensor.to("meta") for name, tensor in inputs.items()}
    shapes = [tuple(tensor.shape) for tensor in tensors(model(**meta))]
    assert shapes == [tuple(tensor.shape) for tensor in tensors(build(model_class)(**inputs))]


@pytest.mark.slow
@pytest.mark.parametrize("traced", [tiny.FRAMES, tiny.FRAMES + 1], ids=["trained", "other"])
@torch.no_grad()
def test_an_exported_graph_takes_any_number_of_frames(traced):
    """Also the number that the time embeddings are trained for, inside a range."""
    model = build(AlproVideoModel)
    free = {0: torch.export.Dim("batch", min=1, max=16), 1: torch.export.Dim("frames", min=1, max=32)}
    example = torch.randn(2, traced, 3, 16, 16)
    program = torch.export.export(model, (example,), dynamic_shapes={"pixel_values_videos": free}).module()
    for frames in (1, tiny.FRAMES - 1, tiny.FRAMES, traced, 2 * tiny.FRAMES):
        pixels = torch.randn(3, frames, 3, 16, 16)
        assert_same_output(program(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-4)


@every_model
def test_the_plan_of_fully_sharded_training_names_modules(model_class):
    model = build(model_class)
    names = dict(model.named_modules())
    covered = set()
    assert set(model.fsdp_plan.values()) <= {"free_full_weight", "keep_full_weight"}
    for pattern in model.fsdp_plan:
        found = {name for name in names if re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), name)}
        assert found, f"{pattern} names no module"
        covered |= found
    layers = {name for name, module in names.items() if type(module).__name__ in ("AlproVideoLayer", "AlproTextLayer")}
    assert layers <= covered
    assert not [name for name in covered if any(name.startswith(f"{other}.") for other in covered)]  # none in another


@pytest.fixture
def one_process():
    """A process group of one, which sharding needs."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@every_head
@pytest.mark.usefixtures("one_process")
def test_the_plan_shards_and_gives_the_same_loss(model_class):
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    model = build(model_class)
    inputs = training_inputs(model_class)
    expected = model(**inputs).loss
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    plan = model.fsdp_plan
    tied = getattr(model, "_tied_weights_keys", None) or {}
    if any("word_embeddings" in target for target in tied.values()):
        # as the library does: a tied matrix is not a unit of its own
        plan = {name: style for name, style in plan.items() if "word_embeddings" not in name}
    for pattern in plan:
        regex = pattern.replace(".", r"\.").replace("*", r"\d+")
        for name, module in list(model.named_modules()):
            if re.fullmatch(regex, name):
                fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(**inputs).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
