"""Stochastic depth of the video tower: which rows it drops, how often, and when it does nothing."""

import pytest
import torch
from fixtures import tiny
from huggingface_hub.errors import StrictDataclassError

from alpro_hf.model.configuration_alpro import AlproVideoConfig
from alpro_hf.model.modeling_alpro import AlproDropPath, AlproVideoModel

BATCH, SEEN = 5, tiny.inputs(5)["pixel_values_videos"]


def tower(rate: float, **fields) -> AlproVideoModel:
    torch.manual_seed(0)
    return AlproVideoModel(tiny.config(video={"drop_path_rate": rate, **fields}).video_config).train()


def features(model: AlproVideoModel, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(SEEN).last_hidden_state


def test_the_rate_grows_linearly_from_the_first_layer_to_the_last():
    twelve = AlproVideoModel(
        AlproVideoConfig(hidden_size=12, intermediate_size=4, image_size=32, drop_path_rate=0.1)  # 12 layers
    )
    rates = [layer.drop_path.rate for layer in twelve.layers]
    assert rates == pytest.approx(torch.linspace(0, 0.1, 12).tolist())
    assert tower(0.1, num_hidden_layers=1).layers[0].drop_path.rate == 0


def test_dropped_rows_are_zero_and_the_mean_stays():
    drop = AlproDropPath(0.3).train()
    torch.manual_seed(0)
    rows = drop(torch.ones(20_000, 2, 3))
    assert ((rows == 0) | (rows == 1 / 0.7)).all()
    assert (rows == rows[:, :1, :1]).all()  # a row is dropped as a whole
    assert (rows[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert rows.mean().item() == pytest.approx(1, abs=0.02)
    assert (drop(torch.ones(2000, 1, dtype=torch.bfloat16)) == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_time_drops_by_patch_position_space_by_frame_and_the_mlp_by_clip():
    model, seen = tower(0.5), []
    for layer in model.layers:
        layer.drop_path.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    features(model)
    assert seen == 3 * [BATCH * tiny.PATCHES, BATCH * tiny.FRAMES, BATCH]


def test_a_dropped_time_branch_leaves_the_bias_of_its_projection():
    # parity: the released code drops before the projection `temporal_fc`
    layer = tower(0.5).layers[2]
    layer.drop_path.rate = 1 - 1e-12
    states = torch.randn(2, 1 + tiny.FRAMES * tiny.PATCHES, 32)
    expected = states.clone()
    expected[:, 1:] += layer.temporal_fc.bias
    torch.testing.assert_close(layer(states, tiny.FRAMES), expected)


def test_without_a_rate_and_in_evaluation_nothing_is_drawn_and_no_bit_changes():
    plain = tower(0.0)
    state = torch.get_rng_state()
    expected = plain(SEEN).last_hidden_state
    assert torch.equal(torch.get_rng_state(), state)
    deep = tower(0.4).eval()
    assert torch.equal(deep(SEEN).last_hidden_state, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(features(deep.train()), expected)


@pytest.mark.parametrize("cls_per_frame", [False, True])
def test_equal_seeds_drop_equal_branches_also_under_checkpointing(cls_per_frame):
    model = tower(0.6, cls_per_frame=cls_per_frame)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        features(model).square().sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    expected = gradients()
    assert not torch.equal(features(model, seed=4), features(model, seed=3))
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        found = gradients()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_what_is_no_probability_is_refused(rate):
    with pytest.raises(StrictDataclassError, match=r"video_config\.drop_path_rate="):
        AlproVideoConfig(drop_path_rate=rate)
