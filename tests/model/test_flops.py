"""How much is computed, counted and not timed: a change that computes more has to change a number here."""

from functools import partial

import pytest
import torch
from fixtures import tiny
from torch.utils.flop_counter import FlopCounterMode

from alpro_hf import AlproConfig, AlproForPreTraining, AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.evaluation.encode import encode_batches
from alpro_hf.evaluation.protocols import retrieval_scores, vtm_scores

TEXT, WIDTH = 12, 768  # tokens of a caption as MSR-VTT has them on average
GIGA = 1e9


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def base():
    """The model of the paper, without memory: operations on `meta` tensors are counted and not computed."""
    with torch.device("meta"):
        model = AlproForVideoTextRetrieval(AlproConfig())
    return model.eval()


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def layer(queries: int, keys: int) -> int:
    """One fusion layer: Q, K and V of all tokens; attention, projection and MLP of `queries` of them."""
    products = 3 * keys * WIDTH**2 + queries * WIDTH**2 + 8 * queries * WIDTH**2 + 2 * queries * keys * WIDTH
    return 2 * products


@torch.no_grad()
def test_a_pair_costs_five_fusion_layers_and_the_cls_token_of_the_sixth(base):
    tokens = TEXT + 197
    found = flops(lambda: base.match(on_meta(64, TEXT, WIDTH), None, on_meta(64, 197, WIDTH)))
    assert found == 64 * (5 * layer(tokens, tokens) + layer(1, tokens) + 2 * WIDTH * 2)
    padded_and_whole = 6 * layer(40 + 197, 40 + 197)
    assert found / 64 < 0.77 * padded_and_whole


@torch.no_grad()
def test_a_clip_costs_what_divided_attention_needs(base):
    patches, frames = 196, 8
    time = 8 * WIDTH**2 * patches * frames + 4 * WIDTH * frames * patches * frames + 2 * WIDTH**2 * patches * frames
    space = 8 * WIDTH**2 * (patches + 1) * frames + 4 * WIDTH * (patches + 1) ** 2 * frames
    mlp = 16 * WIDTH**2 * (1 + patches * frames)
    embedding = 2 * 3 * 16 * 16 * WIDTH * patches * frames
    found = flops(lambda: base.alpro.video_model(on_meta(1, 8, 3, 224, 224)))
    assert found == 12 * (time + space + mlp) + embedding
    assert found == pytest.approx(391.7 * GIGA, rel=0.01)


@torch.no_grad()
def test_evaluation_encodes_once_and_a_tenth_of_the_pairs_costs_a_tenth():
    torch.manual_seed(0)
    model = AlproForVideoTextRetrieval(tiny.config()).eval()
    clips = torch.randn(10, 4, 3, 16, 16)
    batches = [
        {
            "input_ids": torch.randint(5, 50, (5, 7)),
            "attention_mask": torch.ones(5, 7, dtype=torch.long),
            "pixel_values_videos": clips[start : start + 5],
            "video_ids": torch.arange(start, start + 5),
        }
        for start in (0, 5)
    ]
    pairs_seen: list[int] = []

    def evaluate(protocol: str, k: int = 1) -> int:
        def run() -> None:
            states = encode_batches(model, batches, keep_states=True)
            retrieval_scores(states, protocol, lambda pairs: score(states, pairs), rerank_k=k)

        return flops(run)

    def score(states, pairs):
        pairs_seen.append(len(pairs))
        # one by one, or the clips that share a batch share a part of the first layer
        return vtm_scores(model, states.text_states, states.text_mask, states.video_states, pairs, batch_size=1)

    towers = flops(
        lambda: [model.alpro.get_video_features(clips), model.alpro.get_text_features(torch.ones(10, 7).long())]
    )
    vtc, reference, rerank = evaluate("vtc"), evaluate("reference"), evaluate("rerank", 1)
    assert vtc == towers + 2 * 10 * 10 * 12  # and the similarities
    assert pairs_seen[0] == 100 and pairs_seen[1] <= 20
    assert (rerank - vtc) * 100 == (reference - vtc) * pairs_seen[1]


@torch.no_grad()
def test_pairs_of_one_clip_project_it_once():
    torch.manual_seed(0)
    model = AlproForVideoTextRetrieval(tiny.config()).eval()
    text, video = torch.randn(6, 7, 32), torch.randn(2, 5, 32)
    pairs = torch.cartesian_prod(torch.arange(6), torch.arange(2))

    def cost(batch_size: int) -> int:
        return flops(lambda: vtm_scores(model, text, None, video, pairs, batch_size))

    projections = 2 * 5 * 32 * 3 * 32  # of the tokens of a clip to their Q, K and V
    assert cost(1) - cost(6) == (12 - 2) * projections  # sorted by clips: a batch of six is all of one
    assert cost(1) - cost(12) == (12 - 2) * projections


@pytest.mark.parametrize("pem", [False, True])
def test_a_training_step_runs_each_tower_once_and_ends_where_a_head_reads(pem):
    torch.manual_seed(0)
    model = AlproForPreTraining(tiny.config(entities=tiny.ENTITIES, pem_threshold=0)).eval()
    inputs = tiny.pretraining_inputs(4)
    if not pem:
        inputs = {name: value for name, value in inputs.items() if name not in ("crop_mask", "pem_targets")}
    with torch.no_grad():
        found = flops(lambda: model(**inputs, return_loss=True))
        fused = flops(lambda: model.alpro.fuse(torch.randn(16, 7, 32), None, torch.randn(16, 5, 32)))
        own = flops(lambda: model.alpro.fuse(torch.randn(4, 7, 32), None, torch.randn(4, 5, 32)))
        others = 3 * flops(lambda: model.alpro.fuse(torch.randn(4, 7, 32), None, torch.randn(4, 5, 32), 7))
        towers = flops(
            lambda: [
                model.alpro.get_text_features(torch.ones(8, 7).long()),
                model.alpro.get_video_features(inputs["pixel_values_videos"]),
            ]
        )
        similarities = 2 * 12 * (8 * 4 + 4 * 4)
        heads = flops(lambda: [model.vtm_head(torch.randn(12, 32)), model.mlm_head(torch.randn(4, 7, 32))])
        heads += flops(lambda: model.pem_head(torch.randn(4, 32))) + 2 * 4 * 4 * 32 if pem else 0
    projections = 2 * 5 * 32 * 3 * 32  # of a clip's tokens to Q, K and V, once however many texts it meets
    fusion = own + others - 8 * projections if pem else others * 4 // 3 - 12 * projections
    assert fusion < fused
    assert found == pytest.approx(towers + fusion + heads + similarities, rel=0.002)


def test_a_retrieval_step_and_an_answer_fuse_no_token_that_no_head_reads():
    torch.manual_seed(0)
    inputs = tiny.inputs(2)
    for head, rows in ((AlproForVideoTextRetrieval, 6), (AlproForVideoQuestionAnswering, 2)):
        model = head(tiny.config()).eval()
        tokens = torch.randn(rows, 7, 32), None, torch.randn(rows, 5, 32)
        with torch.no_grad():
            whole = flops(partial(model, **inputs, **({"return_loss": True} if rows == 6 else {})))
            towers = flops(partial(model.alpro.video_model, inputs["pixel_values_videos"]))
            towers += flops(partial(model.alpro.text_model, inputs["input_ids"]))
            one, every = flops(partial(model.alpro.fuse, *tokens, 1)), flops(partial(model.alpro.fuse, *tokens))
        one -= (rows - 2) * 2 * 5 * 32 * 3 * 32  # two clips, whose tokens are projected once
        assert one < 0.75 * every
        assert towers + one < whole < towers + 0.95 * every
