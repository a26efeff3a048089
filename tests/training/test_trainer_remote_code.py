"""Training of models whose classes come with a checkpoint (`trust_remote_code`), not from the package."""

import sys
from pathlib import Path

import pytest
import torch
from fixtures import colours
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproPrompterModel,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.hub.export import add_remote_code
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.trainer import AlproTrainer

ENTITIES = ["red", "green"]
FILES = {
    AlproForVideoTextRetrieval: "modeling_alpro",
    AlproForVideoQuestionAnswering: "modeling_alpro",
    AlproForPreTraining: "pretraining_alpro",
    AlproPrompterModel: "pretraining_alpro",
}


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Save a model with its code, and load it by that code: a function from a model to its remote twin."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    # transformers appends the folder of its modules; that of an earlier test in this process would be found first
    elsewhere = [entry for entry in sys.path if not Path(entry, "transformers_modules").exists()]
    monkeypatch.setattr(sys, "path", elsewhere)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)

    def twin(model):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        colours.processor().save_pretrained(folder)
        add_remote_code(folder)
        name = type(model).__name__
        found = get_class_from_dynamic_module(f"{FILES[type(model)]}.{name}", str(folder))
        assert found.__name__ == name and not issubclass(found, type(model))
        return found.from_pretrained(folder, trust_remote_code=True).train()

    return twin


def build(model_class, **config):
    torch.manual_seed(0)
    return model_class(colours.config(**config))


def trained(model, folder: Path, prompter=None) -> AlproTrainer:
    is_qa, is_pretraining = "QuestionAnswering" in type(model).__name__, "PreTraining" in type(model).__name__
    rows = colours.question_rows() if is_qa else colours.retrieval_rows()
    if is_pretraining:
        collator: AlproCollator = AlproPreTrainingCollator(colours.processor(), patch_size=8)
    else:
        labels = colours.ANSWERS if is_qa else None
        collator = AlproCollator(colours.processor(), task="qa" if is_qa else "retrieval", label2id=labels)
    args = AlproTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        contrastive_accumulation=is_pretraining,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        eval_protocol="rerank",
    )
    trainer = AlproTrainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows,
        prompter=prompter,
        processing_class=colours.processor(),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "model_class", [AlproForVideoTextRetrieval, AlproForVideoQuestionAnswering, AlproForPreTraining]
)
def test_remote_code_is_trained_and_evaluated_like_the_package(remote, tmp_path, model_class):
    pretraining = model_class is AlproForPreTraining
    model = build(model_class, entities=ENTITIES, pem_threshold=0) if pretraining else build(model_class)
    prompter = None
    if pretraining:
        prompter = build(AlproPrompterModel, entities=ENTITIES)
        prompter.video_prompt_embeds.normal_()
    far, far_prompter = remote(model), prompter and remote(prompter)

    here = trained(model, tmp_path / "here", prompter)
    there = trained(far, tmp_path / "there", far_prompter)
    assert type(there.model) is not type(here.model)
    for name, expected in here.model.state_dict().items():
        assert torch.equal(there.model.state_dict()[name], expected), name
    logs = [[log for log in trainer.state.log_history if "loss" in log] for trainer in (here, there)]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert set(model.training_losses) <= set(logs[0][0])
    metrics = [
        {name: value for name, value in trainer.evaluate().items() if "second" not in name and "runtime" not in name}
        for trainer in (here, there)
    ]
    assert metrics[0] == metrics[1]


def test_remote_towers_are_trained_alone_without_matching(remote, tmp_path):
    far = remote(build(AlproForVideoTextRetrieval))
    args = AlproTrainingArguments(output_dir=str(tmp_path), use_cpu=True, vtm_weight=0)
    trainer = AlproTrainer(model=far, args=args, data_collator=AlproCollator(colours.processor()))
    assert trainer.model is far.alpro
    assert args.ddp_find_unused_parameters
