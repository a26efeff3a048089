"""Train the bundled sprite-world models, for retrieval and for question answering.

    python scripts/sprites/train.py align --output runs/sprites     contrastive learning (VTC), from scratch
    python scripts/sprites/train.py match --output runs/sprites     VTC and matching (VTM), from align
    python scripts/sprites/train.py answer --output runs/sprites    questions, from match
    python scripts/sprites/train.py answer-2 --output runs/sprites  questions again, from answer
    python scripts/sprites/train.py match-2 --output runs/sprites   VTC and VTM, from answer-2
    python scripts/sprites/train.py match-3 --output runs/sprites   mostly VTM, from match-2
    python scripts/sprites/train.py answer-3 --output runs/sprites  questions, from match-2
    python scripts/sprites/train.py export --output runs/sprites    the folders that the package bundles

An interrupted stage continues from its newest checkpoint when you start it again. `export` writes the two float16
folders that the package bundles: match-3 for retrieval, answer-3 for question answering. The model learns positions,
order and relations from questions; captions alone did not teach them. docs/experiments.md has the measurements.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import Dataset
from transformers import BertTokenizer, PreTrainedModel, set_seed

from alpro_hf import (
    AlproConfig,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
    AlproVideoProcessor,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.loading import best_device, fast_bfloat16
from alpro_hf.sprites.language import ANSWERS, captions, questions
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import DIRECTIONS, SPRITE_WORLD, draw_scene
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.checkpoints import last_complete_checkpoint
from alpro_hf.training.trainer import AlproTrainer

SIZE, FRAMES, MAX_TOKENS = 64, 4, 48
QUESTIONS_PER_CLIP = 4
# stage -> phases: (last step, kinds of groups that alternate until then); after the phases, groups of any kind
CURRICULUM: dict[str, list[tuple[int, tuple[str | None, ...]]]] = {
    "align": [(1500, ("one",)), (1750, ("one", DIRECTIONS))],
    "match": [(500, ("one",))],
    "answer": [(200, ("one",))],
}
# stage -> the stage whose weights it starts from
START = {
    "match": "align",
    "answer": "match",
    "answer-2": "answer",
    "match-2": "answer-2",
    "match-3": "match-2",
    "answer-3": "match-2",
}
# stage -> (task, steps, rows per step, peak learning rate, offset of the seed, so that each stage draws new clips)
STAGES = {
    "align": ("retrieval", 3000, 128, 1e-3, 0),
    "match": ("retrieval", 1800, 96, 5e-4, 1000),
    "answer": ("qa", 3000, 256, 8e-4, 2000),
    "answer-2": ("qa", 2000, 256, 6e-4, 3000),
    "match-2": ("retrieval", 1200, 96, 5e-4, 4000),
    "match-3": ("retrieval", 700, 96, 4e-4, 6000),
    "answer-3": ("qa", 3000, 256, 8e-4, 5000),
}


def build_tokenizer(folder: Path) -> BertTokenizer:
    """A lower-case WordPiece tokenizer of `folder`; builds its vocabulary from the training split if it is missing."""
    vocabulary = folder / "vocab.txt"
    if vocabulary.is_file():
        return BertTokenizer(vocab=str(vocabulary), do_lower_case=True, model_max_length=MAX_TOKENS)
    rng = random.Random(0)
    scenes = [draw_scene("train", 1, index) for index in range(20_000)]
    lines = [captions(scene, rng)[0] for scene in scenes]
    lines += [row["question"] for scene in scenes for row in questions(scene, rng)]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(lines, vocab_size=1000, min_frequency=2, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    (vocab,) = trained.save_model(str(folder))
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=MAX_TOKENS)


def build_config(vocab_size: int) -> AlproConfig:
    """A model of 4.7 million parameters. Dropout is off, because training never repeats a clip."""
    shared = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.05,
    }
    return AlproConfig(
        text_config={**shared, "vocab_size": vocab_size, "fusion_layer": 2, "max_position_embeddings": MAX_TOKENS},
        video_config={
            **shared,
            "image_size": SIZE,
            "patch_size": 16,
            "num_frames": FRAMES,
            "position_initializer_range": 0.5,
        },
        projection_dim=128,
        initializer_range=0.05,
        training_domain=SPRITE_WORLD,
    )


def build_processor(output: Path) -> AlproProcessor:
    """A processor for frames of the model's size; it keeps the vocabulary in `output`."""
    video_processor = AlproVideoProcessor(size={"height": SIZE, "width": SIZE}, num_frames=FRAMES)
    return AlproProcessor(video_processor=video_processor, tokenizer=build_tokenizer(output / "vocabulary"))


def start_model(
    stage: str, output: Path, vocab_size: int
) -> AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering:
    """The model of a stage: random weights for `align`, those of the earlier stage otherwise."""
    if stage == "align":
        return AlproModel(build_config(vocab_size))
    if stage.startswith("match"):
        return AlproForVideoTextRetrieval.from_pretrained(output / START[stage])
    return AlproForVideoQuestionAnswering.from_pretrained(output / START[stage], **answer_labels())


def answer_labels() -> dict[str, dict]:
    """Both label maps of the closed answer list, as arguments of `from_pretrained`."""
    return {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: i for i, answer in enumerate(ANSWERS)}}


def fit(
    model: PreTrainedModel,
    processor: AlproProcessor,
    folder: Path,
    rows: Dataset,
    collator: AlproCollator,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    seed: int,
    cycles: float = 0.5,
    prompter: AlproPrompterModel | None = None,
    **options: Any,
) -> None:
    """Train with the settings that all sprite models share. Save the model, the processor and the log to `folder`.

    Training continues from the newest complete checkpoint in `folder`, if there is one.

    Args:
        rows: Rows for all steps, in the order of training.
        cycles: Share of a cosine cycle that the learning rate follows. 0.5 ends at 2 % of the peak, less ends higher.
        prompter: Teacher of PEM.
        options: Further arguments of `AlproTrainingArguments`.
    """
    device = best_device()
    model.set_attn_implementation("eager")  # a third faster than sdpa for the short sequences of a CPU
    trainer = AlproTrainer(
        model=model,
        args=AlproTrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.02, "num_cycles": cycles},
            warmup_steps=warmup_steps,
            max_grad_norm=1.0,
            bf16=fast_bfloat16(device),  # emulated bf16 is slower than float32
            use_cpu=device.type == "cpu",
            # SpriteRows puts similar scenes next to each other; shuffling would remove these hard negatives
            train_sampling_strategy="sequential",
            seed=seed,
            report_to=[],
            **options,
        ),
        data_collator=collator,
        train_dataset=rows,
        processing_class=processor,
        prompter=prompter,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    trainer.save_model(str(folder))
    processor.save_pretrained(folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def train(
    stage: str, output: Path, steps: int | None, learning_rate: float | None, seed: int, split: str, candidates: bool
) -> None:
    """Train a stage; `None` stands for the number of steps or the learning rate of the stage."""
    task, default_steps, batch_size, default_rate, seed_offset = STAGES[stage]
    steps = steps or default_steps
    set_seed(seed)
    processor = build_processor(output)
    model = start_model(stage, output, len(processor.tokenizer))
    rows = SpriteRows(
        task,
        steps * batch_size,
        seed=seed + seed_offset,
        num_frames=FRAMES,
        size=SIZE,
        curriculum=[(until * batch_size, kinds) for until, kinds in CURRICULUM.get(stage, [])],
        mixed=stage.startswith("match"),
        questions_per_clip=QUESTIONS_PER_CLIP,
        split=split,
        candidates=candidates,
    )
    fit(
        model,
        processor,
        output / stage,
        rows,
        AlproCollator(processor, task=task, label2id=model.config.label2id if task == "qa" else None),
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate or default_rate,
        warmup_steps=100 if stage == "align" else 50,
        seed=seed,
        # `align` stops at a seventh of its peak rate, because the other stages continue from there
        cycles=0.4 if stage == "align" else 0.5,
        vtc_weight=0.25 if stage == "match-3" else 1.0,  # matching learns more slowly
        vtm_weight=float(stage.startswith("match")),
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=25,
        save_steps=250,
        save_total_limit=2,
    )


def export(output: Path, target: Path) -> None:
    """Write the bundled folders. Weights are float16 for half the size; the configuration loads them as float32."""
    for stage, model_class, name in (
        ("match-3", AlproForVideoTextRetrieval, "sprites-retrieval"),
        ("answer-3", AlproForVideoQuestionAnswering, "sprites-qa"),
    ):
        folder = target / name
        model = model_class.from_pretrained(output / stage, dtype=torch.float16)
        model.save_pretrained(folder)
        config = AlproConfig.from_pretrained(folder)
        # `save_pretrained` wrote the dtype of the weights; users compute in float32
        config.dtype = torch.float32
        config.save_pretrained(folder)
        AlproProcessor.from_pretrained(output / stage).save_pretrained(folder)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "export"], help="stage to train, or `export`")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sprites"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: those of the stage)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: that of the stage)")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads of the training process (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=["train", "train-dev"],
        default="train",
        help="combinations to train on; train-dev lacks those of dev, for decisions by dev (default: %(default)s)",
    )
    parser.add_argument(
        "--no-candidates",
        action="store_true",
        help="let all answers compete for a question, also those that the definition of the split excludes",
    )
    parser.add_argument(
        "--target",
        type=Path,
        default=Path("src/alpro_hf/assets"),
        help="where `export` writes the folders (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.output, arguments.target)
        return
    torch.set_num_threads(arguments.threads)
    train(
        arguments.stage,
        arguments.output,
        arguments.steps,
        arguments.learning_rate,
        arguments.seed,
        arguments.split,
        not arguments.no_candidates,
    )


if __name__ == "__main__":
    main()
