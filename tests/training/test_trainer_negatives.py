"""What makes matching learn more than the paper's draw: false captions, varied negatives, heads alone at first."""

import pytest
import torch
from fixtures import coloured_pretraining as coloured
from fixtures import colours
from safetensors.torch import load_file
from transformers import TrainerCallback

from alpro_hf import AlproForPreTraining, AlproForVideoTextRetrieval, AlproModel
from alpro_hf.data.collator import AlproCollator
from alpro_hf.model.loss_alpro import vtc_loss
from alpro_hf.model.modeling_alpro import NegativeSampling
from alpro_hf.training.arguments import AlproTrainingArguments


def edited_rows() -> list[dict]:
    """The rows of two colours, with the captions of their mirror images as false ones; the others have none."""
    rows = []
    for row in coloured.rows():
        words = row["text"].split(" ?")[0].split(" and ")
        rows.append({**row, "negatives": [" and ".join(reversed(words))] if len(words) > 1 else []})
    return rows


def batch_of(rows: list[dict], collator: AlproCollator | None = None) -> dict:
    batch = (collator or coloured.collator(pem=False, mlm_probability=0))(rows)
    return {name: value for name, value in batch.items() if name not in ("kind", "row_ids", "black")}


def retrieval(seed: int = 0) -> AlproForVideoTextRetrieval:
    torch.manual_seed(seed)
    return AlproForVideoTextRetrieval(colours.config()).train()


def test_a_false_caption_is_one_more_negative_of_its_clip_alone():
    generator = torch.Generator().manual_seed(0)
    video, text, false = torch.nn.functional.normalize(torch.randn(3, 4, 6, generator=generator), dim=-1)
    exist = torch.tensor([True, False, True, True])
    found = vtc_loss(video, text, 0.1, edited_text_embeds=false, has_edited=exist)
    v2t = 0.0
    for i in range(4):
        scores = [video[i] @ text[j] / 0.1 for j in range(4)] + [video[i] @ false[i] / 0.1] * bool(exist[i])
        v2t -= torch.log_softmax(torch.stack(scores), dim=0)[i] / 4
    t2v = torch.nn.functional.cross_entropy(text @ video.t() / 0.1, torch.arange(4))
    torch.testing.assert_close(found, (v2t + t2v) / 2)
    none = vtc_loss(video, text, 0.1, edited_text_embeds=false, has_edited=torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(none, vtc_loss(video, text, 0.1))


@pytest.mark.parametrize("model_class", [AlproForVideoTextRetrieval, AlproForPreTraining])
def test_false_captions_are_matched_with_their_own_clips(model_class):
    torch.manual_seed(0)
    model = model_class(colours.config()).eval()
    rows = edited_rows()[2:10]
    batch = batch_of(rows, coloured.collator(pem=False) if model_class is AlproForPreTraining else None)
    exist = batch["has_negative"]
    assert exist.any() and not exist.all()
    out = model(**batch, return_loss=True)
    assert out.vtm_labels[24:].tolist() == torch.where(exist, 0, -100).tolist()
    plain = model(**{k: v for k, v in batch.items() if "negative" not in k}, return_loss=True)
    torch.testing.assert_close(out.vtm_logits[:24], plain.vtm_logits)
    text = model.alpro.get_text_features(batch["negative_input_ids"], batch["negative_attention_mask"])
    video = model.alpro.get_video_features(batch["pixel_values_videos"])
    direct = model.match(text.last_hidden_state, batch["negative_attention_mask"], video.last_hidden_state)
    torch.testing.assert_close(out.vtm_logits[24:], direct, atol=1e-5, rtol=1e-4)
    assert out.loss_vtc > plain.loss_vtc
    if model_class is AlproForPreTraining:
        torch.testing.assert_close(out.loss_mlm, plain.loss_mlm)
    with pytest.raises(ValueError, match="must have the shape of input_ids"):
        model(**{**batch, "negative_input_ids": batch["negative_input_ids"][:, :-1]}, return_loss=True)


def test_another_false_caption_in_each_epoch_also_beside_cached_labels():
    false = [f"red {'? ' * i}and blue" for i in range(6)]
    row = {**coloured.pseudo_labelled(coloured.rows())[0], "negatives": false, "index": 3}
    collator = coloured.collator()
    drawn = {tuple(collator([{**row, "epoch": epoch}])["negative_input_ids"][0].tolist()) for epoch in range(12)}
    assert len(drawn) > 2
    again = [collator([{**row, "epoch": 5}])["negative_input_ids"] for _ in range(2)]
    assert torch.equal(*again)
    with pytest.raises(TypeError, match="must be a list of false captions"):
        collator([{**row, "negatives": "red"}])
    assert "negative_input_ids" not in collator([{**row, "negatives": []}])


@torch.no_grad()
def share_ordered(model: AlproForVideoTextRetrieval) -> float:
    """Share of clips of two colours whose true caption matches better than its mirror image."""
    batch = batch_of([row for row in edited_rows() if row["negatives"]])
    video = model.eval().alpro.get_video_features(batch["pixel_values_videos"]).last_hidden_state
    margins = []
    for kind in ("", "negative_"):
        mask = batch[f"{kind}attention_mask"]
        text = model.alpro.get_text_features(batch[f"{kind}input_ids"], mask).last_hidden_state
        margins.append(model.match(text, mask, video)[:, 1] - model.match(text, mask, video)[:, 0])
    return (margins[0] > margins[1]).float().mean().item()


@pytest.mark.slow
def test_matching_learns_which_colour_is_first_from_false_captions(tmp_path):
    """Mirror images differ from their clips in nothing but the order of two colours."""
    args = coloured.arguments(
        tmp_path, max_steps=150, learning_rate=5e-3, per_device_train_batch_size=16, vtm_uniform_share=0.5
    )
    trainer = coloured.trainer(retrieval(), args, edited_rows(), data_collator=AlproCollator(colours.processor()))
    assert sum(share_ordered(retrieval(seed)) for seed in range(6)) / 6 < 0.75
    trainer.train()
    assert share_ordered(trainer.model) == 1
    last = coloured.logs(trainer)[-1]
    assert last["vtm_edited_accuracy"] > 0.9 and {"vtm_accuracy", "loss_vtm"} <= last.keys()


def test_gradients_of_all_micro_steps_do_not_go_with_false_captions(tmp_path):
    args = coloured.arguments(tmp_path, max_steps=1, gradient_accumulation_steps=2, contrastive_accumulation=True)
    trainer = coloured.trainer(retrieval(), args, edited_rows(), data_collator=AlproCollator(colours.processor()))
    with pytest.raises(ValueError, match="does not work with false captions"):
        trainer.train()


def test_the_even_share_falls_to_nothing(tmp_path):
    args = AlproTrainingArguments(str(tmp_path), vtm_uniform_share=0.4, vtm_uniform_steps=0.5, vtm_pool=8)
    shares = [args.negative_sampling(step, 100).uniform_share for step in (0, 25, 50, 99)]
    assert shares == pytest.approx([0.4, 0.2, 0, 0])
    assert args.negative_sampling(0, 100) == NegativeSampling("local", 8, None, 0.4)
    args = AlproTrainingArguments(str(tmp_path), vtm_uniform_share=0.4, vtm_uniform_steps=10)
    assert [args.negative_sampling(step, 100).uniform_share for step in (0, 5, 10)] == pytest.approx([0.4, 0.2, 0])
    assert AlproTrainingArguments(str(tmp_path)).negative_sampling(3, 9) == NegativeSampling()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vtm_pool": 1}, "vtm_pool.*pool=1 has no room"),
        ({"vtm_temperature": 0}, "vtm_temperature.*must be above 0"),
        ({"vtm_uniform_share": 2}, "vtm_uniform_share.*between 0 and 1"),
        ({"head_warmup_steps": -1}, "head_warmup_steps=-1"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        AlproTrainingArguments(str(tmp_path), **fields)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_at_first_only_heads_and_projections_learn(tmp_path, accumulation):
    model, seen = retrieval(), []
    args = coloured.arguments(
        tmp_path, max_steps=4, head_warmup_steps=2, gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4, weight_decay=0.5,
    )  # fmt: skip
    trainer = coloured.trainer(model, args, data_collator=AlproCollator(colours.processor()))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
            seen.append({name.split(".")[1] if name.startswith("alpro.") else name.split(".")[0] for name in changed})

    trainer.add_callback(Note())
    trainer.train()
    heads = {"vtm_head", "text_projection", "video_projection", "temperature"}
    assert seen[0] | seen[1] <= heads and {"vtm_head", "text_projection"} <= seen[1]
    assert {"text_model", "video_model"} <= seen[2]


@pytest.mark.slow
def test_stochastic_depth_goes_on_exactly_after_a_stop(tmp_path):
    def training(folder, seed, **fields):
        torch.manual_seed(seed)
        config = colours.config()
        config.video_config.num_hidden_layers, config.video_config.drop_path_rate = 2, 0.5
        args = coloured.arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, **fields)
        return coloured.trainer(AlproModel(config), args, data_collator=AlproCollator(colours.processor()))

    whole = training(tmp_path / "a", 0)
    whole.train()
    other = training(tmp_path / "b", 7)
    other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    expected = load_file(tmp_path / "a" / "checkpoint-4" / "model.safetensors")
    found = load_file(tmp_path / "b" / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    checkpointed = training(tmp_path / "c", 0, gradient_checkpointing=True)
    checkpointed.train()
    again = load_file(tmp_path / "c" / "checkpoint-4" / "model.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4, msg=name)
