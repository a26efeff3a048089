"""Patch dropout of the video tower: which patches stay, what travels with them, and when it does nothing."""

import pytest
import torch
from fixtures import tiny
from huggingface_hub.errors import StrictDataclassError

from alpro_hf import AlproForPreTraining, AlproForVideoTextRetrieval
from alpro_hf.model.configuration_alpro import AlproVideoConfig
from alpro_hf.model.modeling_alpro import AlproVideoModel

BATCH, SIDE, PATCHES = 3, 32, 16  # 4 x 4 patches, more than the grid of the position embeddings
CLIPS = torch.randn(BATCH, tiny.FRAMES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def tower(rate: float, **fields) -> AlproVideoModel:
    torch.manual_seed(0)
    return AlproVideoModel(tiny.config(video={"patch_dropout": rate, **fields}).video_config).train()


def run(model: AlproVideoModel, seed: int = 3, clips: torch.Tensor = CLIPS):
    torch.manual_seed(seed)
    return model(clips)


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 8), (0.75, 4), (0.99, 1), (0.01, 16)])
def test_each_clip_keeps_its_own_choice_of_positions(rate, kept):
    found = run(tower(rate))
    assert found.last_hidden_state.shape == (BATCH, 1 + kept, 32)
    assert found.kept_patches.shape == (BATCH, kept)
    assert (found.kept_patches.diff(dim=1) > 0).all()  # ascending, so each position once
    if kept == 8:
        assert len(found.kept_patches.unique(dim=0)) == BATCH
        assert not torch.equal(run(tower(rate), seed=4).kept_patches, found.kept_patches)
        assert torch.equal(run(tower(rate)).last_hidden_state, found.last_hidden_state)


def test_all_positions_are_kept_equally_often():
    model = tower(0.75, num_hidden_layers=0)
    counts = (
        run(model, clips=CLIPS[:1].expand(2000, -1, -1, -1, -1)).kept_patches.flatten().bincount(minlength=PATCHES)
    )
    assert (counts / 2000 - 0.25).abs().max() < 0.05


@pytest.mark.parametrize("cls_per_frame", [False, True])
def test_a_patch_keeps_its_embeddings_and_its_column_of_frames(cls_per_frame):
    model = tower(0.5, cls_per_frame=cls_per_frame)
    kept = torch.tensor([[0, 3, 7], [1, 2, 15], [4, 5, 6]])
    whole, found = model.embeddings(CLIPS), model.embeddings(CLIPS, kept)
    first = tiny.FRAMES if cls_per_frame else 1
    assert torch.equal(found[:, :first], whole[:, :first])
    columns = whole[:, first:].view(BATCH, tiny.FRAMES, PATCHES, -1)
    for clip, positions in enumerate(kept):
        wanted = columns[clip][:, positions]
        assert torch.equal(found[clip, first:].view(tiny.FRAMES, 3, -1), wanted)


def test_what_is_left_out_has_no_effect_and_gets_no_gradient():
    model, pixels = tower(0.5), CLIPS.clone().requires_grad_()
    out = run(model, clips=pixels)
    out.last_hidden_state.square().sum().backward()
    changed = (pixels.grad != 0).any(dim=2).unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).any(dim=-1)  # (B, T, 4, 4)
    seen = torch.zeros(BATCH, PATCHES, dtype=torch.bool).scatter_(1, out.kept_patches, True)
    assert torch.equal(changed.flatten(2), seen[:, None].expand(-1, tiny.FRAMES, -1))


def test_in_evaluation_and_without_a_rate_no_bit_changes_and_nothing_is_drawn():
    plain, dropping = tower(0.0), tower(0.5)
    state = torch.get_rng_state()
    expected = plain(CLIPS).last_hidden_state
    found = dropping.eval()(CLIPS)
    assert torch.equal(found.last_hidden_state, expected) and found.kept_patches is None
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpointing_sees_the_same_patches():
    model = tower(0.5, drop_path_rate=0.4)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        run(model).last_hidden_state.square().sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for name, value in gradients().items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_half_the_patches_are_half_the_work():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(rate: float) -> int:
        with torch.device("meta"):
            model = AlproVideoModel(AlproVideoConfig(patch_dropout=rate, num_hidden_layers=2)).train()
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 8, 3, 224, 224)).last_hidden_state.sum().backward()
        return counter.get_total_flops()

    assert flops(0.5) < 0.51 * flops(0)


def test_losses_of_retrieval_follow():
    torch.manual_seed(0)
    model = AlproForVideoTextRetrieval(tiny.config(video={"patch_dropout": 0.5})).train()
    out = model(**tiny.inputs(4), return_loss=True)
    out.loss.backward()
    assert out.video_model_output.last_hidden_state.shape == (4, 3, 32)
    assert out.vtm_logits.shape == (12, 2) and torch.isfinite(out.loss)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_a_crop_of_pem_is_that_of_the_patches_that_stay():
    torch.manual_seed(0)
    config = tiny.config(entities=tiny.ENTITIES, pem_threshold=0, video={"patch_dropout": 0.5})
    model = AlproForPreTraining(config).train()
    for part in model.modules():  # dropout would hide whether equal patches give equal logits
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    inputs = tiny.pretraining_inputs(6)
    # the left column and the one patch at the bottom right of a grid of 2 x 2
    inputs["crop_mask"] = torch.tensor([[[1, 0], [1, 0]]] * 3 + [[[0, 0], [0, 1]]] * 3).bool()
    seen = []
    model.pem_head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    fused = []
    model.alpro.text_model.layers[-1].register_forward_hook(lambda *call: fused.append(call[-1]))
    torch.manual_seed(5)
    out = model(**inputs, return_loss=True)
    kept = out.video_model_output.kept_patches
    patches = fused[0][:, inputs["input_ids"].shape[1] + 1 :]  # of the true pairs
    empty = 0
    for row, positions in enumerate(kept.tolist()):
        inside = [place for place, one in enumerate(positions) if inputs["crop_mask"][row].flatten()[one]]
        wanted = patches[row, inside].mean(dim=0) if inside else torch.zeros(32)
        torch.testing.assert_close(seen[0][row], wanted)
        assert bool(out.pem_kept[row]) == bool(inside)
        empty += not inside
    assert 0 < empty < 6  # the seed shows both
    assert torch.isfinite(out.loss_pem)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(rate):
    with pytest.raises(StrictDataclassError, match=r"video_config\.patch_dropout="):
        AlproVideoConfig(patch_dropout=rate)
