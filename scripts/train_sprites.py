"""Train the bundled sprite-world models: `align` (VTC), then `match` (VTC + VTM), then `answer` (questions).

    python scripts/train_sprites.py align  --output runs/sprites
    python scripts/train_sprites.py match  --output runs/sprites
    python scripts/train_sprites.py answer --output runs/sprites
    python scripts/train_sprites.py answer-again --output runs/sprites
    python scripts/train_sprites.py export --output runs/sprites

Each stage starts from the one before (`answer-again` is a second, shorter cycle of the learning rate); one that was
interrupted goes on from its newest checkpoint when started again.
`export` writes the two float16 folders that the package bundles.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from alpro_hf import (
    AlproConfig,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproVideoProcessor,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.sprite_language import ANSWERS, captions, questions
from alpro_hf.data.sprite_rows import SpriteRows
from alpro_hf.data.sprite_world import draw_scene
from alpro_hf.trainer import AlproTrainer, AlproTrainingArguments

SIZE, FRAMES, MAX_TOKENS = 64, 4, 48
# stage -> steps up to which clips show a single sprite: at first all actions, then with a diet of directions
CURRICULUM = {"align": (1500, 1750), "match": (500, 0), "answer": (200, 0), "answer-again": (0, 0)}
# stage -> (task, steps, rows a step, peak learning rate)
STAGES = {
    "align": ("retrieval", 3000, 128, 1e-3),
    "match": ("retrieval", 1800, 96, 5e-4),
    "answer": ("qa", 1700, 96, 8e-4),
    "answer-again": ("qa", 1200, 96, 6e-4),
}


def build_tokenizer(folder: Path) -> BertTokenizer:
    """A lower-case WordPiece vocabulary from captions and questions of the training split."""
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
    """4.6 million parameters. Dropout is off: no clip is ever seen twice."""
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
    )


def start_model(
    stage: str, output: Path, vocab_size: int
) -> AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering:
    if stage == "align":
        return AlproModel(build_config(vocab_size))
    if stage == "match":
        return AlproForVideoTextRetrieval.from_pretrained(output / "align")
    if stage == "answer-again":
        return AlproForVideoQuestionAnswering.from_pretrained(output / "answer")
    label2id = {answer: label for label, answer in enumerate(ANSWERS)}
    id2label = {label: answer for answer, label in label2id.items()}
    return AlproForVideoQuestionAnswering.from_pretrained(output / "match", label2id=label2id, id2label=id2label)


def train(stage: str, output: Path, steps: int | None, learning_rate: float | None, seed: int) -> None:
    task, default_steps, rows_a_step, default_rate = STAGES[stage]
    steps = steps or default_steps
    set_seed(seed)
    folder = output / stage
    tokenizer = build_tokenizer(output / "vocabulary")
    video_processor = AlproVideoProcessor(size={"height": SIZE, "width": SIZE}, num_frames=FRAMES)
    processor = AlproProcessor(video_processor=video_processor, tokenizer=tokenizer)
    model = start_model(stage, output, len(tokenizer))
    model.set_attn_implementation("eager")  # a third faster than sdpa for the short sequences of a CPU
    arguments = AlproTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=rows_a_step,
        learning_rate=learning_rate or default_rate,
        lr_scheduler_type="cosine_with_min_lr",
        # `align` stops at a seventh of its peak rate, because the other stages go on from there
        lr_scheduler_kwargs={"min_lr_rate": 0.02, "num_cycles": 0.4 if stage == "align" else 0.5},
        warmup_steps=100 if stage == "align" else 50,
        max_grad_norm=1.0,
        vtm_weight=float(stage == "match"),
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",  # neighbours belong together, see SpriteRows
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=25,
        save_steps=250,
        save_total_limit=2,
        seed=seed,
    )
    seeds = {"align": 0, "match": 1000, "answer": 2000, "answer-again": 3000}
    trainer = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=AlproCollator(processor, task=task, label2id=model.config.label2id if task == "qa" else None),
        train_dataset=SpriteRows(
            task,
            steps * rows_a_step,
            seed=seed + seeds[stage],
            num_frames=FRAMES,
            size=SIZE,
            curriculum=(CURRICULUM[stage][0] * rows_a_step, CURRICULUM[stage][1] * rows_a_step),
            mixed=stage == "match",
        ),
        processing_class=processor,
    )
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder))
    processor.save_pretrained(folder)


def export(output: Path, target: Path) -> None:
    """Weights travel in float16, half the size; the configuration says float32, in which they are used."""
    for stage, model_class, name in (
        ("match", AlproForVideoTextRetrieval, "sprites-retrieval"),
        ("answer-again", AlproForVideoQuestionAnswering, "sprites-qa"),
    ):
        folder = target / name
        model = model_class.from_pretrained(output / stage, dtype=torch.float16)
        model.save_pretrained(folder)
        config = AlproConfig.from_pretrained(folder)
        config.dtype = torch.float32
        config.save_pretrained(folder)
        AlproProcessor.from_pretrained(output / stage).save_pretrained(folder)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--output", type=Path, default=Path("runs/sprites"), help="folder of the run")
    parser.add_argument("--steps", type=int, help="training steps (default: that of the stage)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: that of the stage)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the training process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target", type=Path, default=Path("src/alpro_hf/assets"), help="where `export` writes the bundled folders"
    )
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.output, arguments.target)
        return
    torch.set_num_threads(arguments.threads)
    train(arguments.stage, arguments.output, arguments.steps, arguments.learning_rate, arguments.seed)


if __name__ == "__main__":
    main()
