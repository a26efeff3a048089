"""Frozen towers and layers, and checkpointing of the first layers: what learns, what is stored, what is equal."""

import pytest
import torch
from fixtures import colours
from fixtures.colours import arguments
from fixtures.frozen_trainings import model_of, trainer_for
from transformers import TrainerCallback

from alpro_hf import AlproForVideoQuestionAnswering, AlproModel
from alpro_hf.training.trainer import AlproTrainer

DROPOUT = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
VIDEO, TEXT = "video_model.", ("text_model.embeddings", "text_model.layers.0.")  # one text layer, one that fuses


def changed(model, before) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def frozen_names(model, freeze, freeze_layers) -> set[str]:
    prefixes = [f"{VIDEO}"] if "video" in freeze else []
    prefixes += [*TEXT] if "text" in freeze else []
    if freeze_layers:
        prefixes += [f"{VIDEO}embeddings", *(f"{VIDEO}layers.{layer}." for layer in range(freeze_layers))]
    return {name for name in model.state_dict() if any(prefix in name for prefix in prefixes)}


WAYS = [({"freeze": ["video"]}), ({"freeze": ["text"]}), ({"freeze": ["video", "text"]}), ({"freeze_layers": 2})]
IDS = ["video", "text", "both", "layers"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_frozen_parts_stay_and_store_nothing_and_the_rest_learns(way, checkpointing, tmp_path):
    model = model_of(**DROPOUT, drop_path_rate=0.5)
    model.config.text_config.hidden_dropout_prob = 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = []
    model.alpro.video_model.register_forward_hook(lambda *call: outputs.append(("video", call[-1].last_hidden_state)))
    model.alpro.text_model.layers[0].register_forward_hook(lambda *call: outputs.append(("text", call[-1])))
    args = arguments(tmp_path, max_steps=2, activation_checkpointing=checkpointing, **way)
    trainer = trainer_for(model, args)
    trainer.train()
    frozen = frozen_names(model, way.get("freeze", ()), way.get("freeze_layers", 0))
    learned = {name for name, value in model.named_parameters() if value.requires_grad}
    assert frozen and changed(model, before).isdisjoint(frozen)
    assert changed(model, before) == learned == set(before) - frozen
    assert {id(one) for group in trainer.optimizer.param_groups for one in group["params"]} == {
        id(value) for name, value in model.named_parameters() if name in learned
    }
    for name, states in outputs:
        assert states.requires_grad != (name in way.get("freeze", ()))
    if "video" in way.get("freeze", ()):  # as in evaluation: no dropout, no stochastic depth
        twice = [states for name, states in outputs if name == "video"]
        assert len(twice) == 2
        rows = trainer.train_dataset
        model.eval()
        clips = trainer.data_collator([rows[index] for index in range(6)])["pixel_values_videos"]
        whole = model.alpro.video_model(clips).last_hidden_state
        for states in twice:  # each step has seen the six clips in an order of its own
            torch.testing.assert_close(states.sum(dim=0), whole.sum(dim=0))


def test_the_first_trained_layer_has_the_gradients_of_a_training_without_frozen_layers(tmp_path):
    gradients = []
    for way in ({}, {"freeze_layers": 2}, {"freeze_layers": 2, "activation_checkpointing": True}):
        kept = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, *args, model=None, kept=kept, **kwargs):
                kept.update(
                    (name, value.grad.clone()) for name, value in model.named_parameters() if value.grad is not None
                )

        args = arguments(tmp_path, max_steps=1, max_grad_norm=0.0, **way)
        trainer = trainer_for(model_of(), args, callbacks=[Keep()])
        trainer.train()
        gradients.append(kept)
    whole, *others = gradients
    for some in others:
        assert set(whole) - set(some) == {f"alpro.{name}" for name in frozen_names(model_of().alpro, (), 2)}
        for name, value in some.items():
            torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("layers", [1, 3])
def test_checkpointing_of_the_first_layers_computes_them_alone_twice_with_equal_gradients(layers, tmp_path):
    runs, results = {}, []
    for way in ({}, {"activation_checkpointing": True, "checkpoint_layers": layers}):
        model = model_of(drop_path_rate=0.5)
        counts: list[int] = []
        watched = [*model.alpro.video_model.layers, model.alpro.text_model.layers[1]]
        for number, layer in enumerate(watched):
            # its first part, because computing again ends once all that is needed is there
            getattr(layer, "temporal_norm", layer.mlp).register_forward_hook(
                lambda *_, number=number, runs=counts: runs.append(number)
            )
        trainer = trainer_for(model, arguments(tmp_path, max_steps=2, **way))
        trainer.train()
        runs[bool(way)] = [counts.count(number) for number in range(4)]
        results.append((model.state_dict(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    assert runs[False] == [2, 2, 2, 2]
    assert runs[True] == [4] * layers + [2] * (3 - layers) + [2]
    assert results[0][1] == results[1][1]
    for name, value in results[0][0].items():
        assert torch.equal(results[1][0][name], value), name


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"freeze": ["vide"]}, "names 'vide'. Use 'video' and 'text'"),
        ({"freeze_layers": -1}, "freeze_layers=-1 must be a number of layers"),
        ({"freeze": "video", "freeze_layers": 2}, "Use one of the two"),
        ({"checkpoint_layers": 2}, "Set gradient_checkpointing=True, too"),
        ({"checkpoint_layers": 0, "activation_checkpointing": True}, "frozen or none"),
        (
            {"checkpoint_layers": 2, "freeze_layers": 2, "activation_checkpointing": True},
            "Frozen layers store nothing",
        ),
        (
            {
                "checkpoint_layers": 2,
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"every_n_layers": 2},
            },
            "both choose layers",
        ),
        (
            {
                "freeze": "text",
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": True},
            },
            "Leave use_reentrant out",
        ),
        ({"feature_cache": "tokens"}, "Add freeze='video'"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(way, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **way)


def test_a_model_that_was_trained_with_checkpointing_before_stores_nothing_either(tmp_path):
    model = model_of()
    checkpointed = trainer_for(model, arguments(tmp_path, max_steps=1, activation_checkpointing=True))
    for _ in range(2):
        checkpointed.train()
    states = []
    model.alpro.video_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    model.alpro.text_model.layers[0].register_forward_hook(lambda *call: states.append(call[-1]))
    trainer_for(model, arguments(tmp_path, max_steps=1, freeze=["video", "text"])).train()
    assert len(states) == 2 and not any(one.requires_grad for one in states)


def test_null_of_a_recipe_is_the_default(tmp_path):
    args = arguments(tmp_path, freeze=None, freeze_layers=None)
    assert (args.freeze, args.freeze_layers, args.checkpoint_layers) == ([], 0, None)


def test_a_model_that_cannot_be_frozen_so_is_refused(tmp_path):
    with pytest.raises(ValueError, match="freeze_layers=4 is more than the 3 layers"):
        trainer_for(model_of(), arguments(tmp_path, freeze_layers=4))
    with pytest.raises(ValueError, match=r"patch_dropout=0\.5 leaves patches out"):
        trainer_for(model_of(patch_dropout=0.5), arguments(tmp_path, freeze=["video"]))
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model_of(), LoraConfig(target_modules=["qkv"]))
    with pytest.raises(ValueError, match="Leave layers out with target_modules"):
        trainer_for(adapted, arguments(tmp_path, freeze=["text"]))


@pytest.mark.parametrize("model_class", [AlproModel, AlproForVideoQuestionAnswering])
def test_the_other_models_learn_with_both_towers_frozen(model_class, tmp_path):
    model = model_of(model_class)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer_for(model, arguments(tmp_path, max_steps=2, freeze=["video", "text"])).train()
    heads = {"projection", "temperature"} if model_class is AlproModel else {"classifier", "text_model.layers.1"}
    assert changed(model, before) and all(any(head in name for head in heads) for name in changed(model, before))


def test_part_of_a_tower_and_patch_dropout_go_together(tmp_path):
    model = model_of(patch_dropout=0.5)
    shapes = []
    model.alpro.video_model.layers[0].register_forward_hook(lambda *call: shapes.append(call[-1].shape))
    trainer_for(model, arguments(tmp_path, max_steps=1, freeze_layers=1)).train()
    assert shapes == [(6, 1 + colours.FRAMES * 2, 32)]  # two of four patches


def test_an_interrupted_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def train(folder, resume=None, **fields):
        model = model_of(drop_path_rate=0.5, patch_dropout=0.5)
        way = {"freeze": ["text"], "freeze_layers": 1, "activation_checkpointing": True, "checkpoint_layers": 2}
        args = arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, **way, **fields)
        trainer = trainer_for(model, args)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize(("video", "way"), [(DROPOUT, {"freeze": ["video"]}), ({"patch_dropout": 0.5}, {})])
def test_both_passes_of_accumulated_contrast_see_the_same(video, way, tmp_path):
    model = model_of(AlproModel, **video)
    args = {"gradient_accumulation_steps": 2, "contrastive_accumulation": True, "per_device_train_batch_size": 3}
    seen = []
    model.video_model.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.detach()))
    trainer_for(model, arguments(tmp_path, max_steps=1, **way, **args)).train()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_a_model_made_by_model_init_is_frozen(tmp_path):
    trainer = AlproTrainer(
        model_init=lambda: model_of(),
        args=arguments(tmp_path, max_steps=1, freeze=["video"]),
        data_collator=trainer_for(model_of(), arguments(tmp_path)).data_collator,
        train_dataset=colours.retrieval_rows(),
    )
    trainer.train()
    assert not any(value.requires_grad for value in trainer.model.alpro.video_model.parameters())
