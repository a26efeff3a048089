"""Train the bundled sprite-world models, for retrieval and for question answering.

    python scripts/train_sprites.py align --output runs/sprites     contrastive learning (VTC), from scratch
    python scripts/train_sprites.py match --output runs/sprites     VTC and matching (VTM), from align
    python scripts/train_sprites.py answer --output runs/sprites    questions, from match
    python scripts/train_sprites.py answer-2 --output runs/sprites  questions again, from answer
    python scripts/train_sprites.py match-2 --output runs/sprites   VTC and VTM, from answer-2
    python scripts/train_sprites.py match-3 --output runs/sprites   above all VTM, from match-2
    python scripts/train_sprites.py answer-3 --output runs/sprites  questions anew, from match-2
    python scripts/train_sprites.py export --output runs/sprites

A stage that was interrupted goes on from its newest checkpoint when started again. `export` writes the two float16
folders that the package bundles: match-3 searches, answer-3 answers. Questions teach where things are, in which order
they move and who follows whom, which captions alone did not; see docs/experiments.md.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizer, set_seed

from alpro_hf import (
    AlproConfig,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproVideoProcessor,
)
from alpro_hf.data.collator import AlproCollator
from alpro_hf.loading import best_device, fast_bfloat16
from alpro_hf.sprites.language import ANSWERS, captions, questions
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import DIRECTIONS, draw_scene
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.checkpoints import last_complete_checkpoint
from alpro_hf.training.trainer import AlproTrainer

SIZE, FRAMES, MAX_TOKENS = 64, 4, 48
QUESTIONS_PER_CLIP = 4
# stage -> phases: (step it ends at, the kinds that its groups take in turn); later any kind
CURRICULUM: dict[str, list[tuple[int, tuple[str | None, ...]]]] = {
    "align": [(1500, ("one",)), (1750, ("one", DIRECTIONS))],
    "match": [(500, ("one",))],
    "answer": [(200, ("one",))],
}
START = {
    "match": "align",
    "answer": "match",
    "answer-2": "answer",
    "match-2": "answer-2",
    "match-3": "match-2",
    "answer-3": "match-2",
}
# stage -> (task, steps, rows a step, peak learning rate, which clips beside the seed)
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
    """A lower-case WordPiece vocabulary from captions and questions of the training split."""
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
    """4.7 million parameters. Dropout is off: no clip is ever seen twice."""
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


def build_processor(output: Path) -> AlproProcessor:
    """Frames of the model's size, words of the training captions; the vocabulary is kept in `output`."""
    video_processor = AlproVideoProcessor(size={"height": SIZE, "width": SIZE}, num_frames=FRAMES)
    return AlproProcessor(video_processor=video_processor, tokenizer=build_tokenizer(output / "vocabulary"))


def start_model(
    stage: str, output: Path, vocab_size: int
) -> AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering:
    if stage == "align":
        return AlproModel(build_config(vocab_size))
    if stage.startswith("match"):
        return AlproForVideoTextRetrieval.from_pretrained(output / START[stage])
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: i for i, answer in enumerate(ANSWERS)}}
    return AlproForVideoQuestionAnswering.from_pretrained(output / START[stage], **labels)


def train(stage: str, output: Path, steps: int | None, learning_rate: float | None, seed: int) -> None:
    task, default_steps, rows_a_step, default_rate, clips = STAGES[stage]
    steps = steps or default_steps
    set_seed(seed)
    folder = output / stage
    processor = build_processor(output)
    model = start_model(stage, output, len(processor.tokenizer))
    model.set_attn_implementation("eager")  # a third faster than sdpa for the short sequences of a CPU
    device = best_device()
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
        vtc_weight=0.25 if stage == "match-3" else 1.0,  # matching learns more slowly
        vtm_weight=float(stage.startswith("match")),
        bf16=fast_bfloat16(device),  # emulated it is slower than float32
        use_cpu=device.type == "cpu",
        train_sampling_strategy="sequential",  # neighbours belong together, see SpriteRows
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=25,
        save_steps=250,
        save_total_limit=2,
        seed=seed,
    )
    trainer = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=AlproCollator(processor, task=task, label2id=model.config.label2id if task == "qa" else None),
        train_dataset=SpriteRows(
            task,
            steps * rows_a_step,
            seed=seed + clips,
            num_frames=FRAMES,
            size=SIZE,
            curriculum=[(until * rows_a_step, kinds) for until, kinds in CURRICULUM.get(stage, [])],
            mixed=stage.startswith("match"),
            questions_per_clip=QUESTIONS_PER_CLIP,
        ),
        processing_class=processor,
    )
    checkpoint = last_complete_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder))
    processor.save_pretrained(folder)


def export(output: Path, target: Path) -> None:
    """Weights travel in float16, half the size; the configuration says float32, in which they are used."""
    for stage, model_class, name in (
        ("match-3", AlproForVideoTextRetrieval, "sprites-retrieval"),
        ("answer-3", AlproForVideoQuestionAnswering, "sprites-qa"),
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
