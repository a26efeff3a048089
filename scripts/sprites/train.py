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

What captions alone did not teach (order, roles, spins) is tried with the options of the second group. They change
every stage that they apply to, and no stage uses them by itself. `joint` trains matching and answering together, from
answer-2 or from the model that --start names; each step is of one of them. docs/experiments.md tells what came out.
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
from alpro_hf.data.joint_collator import AlproJointCollator
from alpro_hf.loading import best_device, fast_bfloat16
from alpro_hf.model.joint_alpro import AlproForMatchingAndAnswering
from alpro_hf.sprites.language import ANSWERS, FORWARD, NONE, REVERSING, SEQUENCE, captions, questions
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import ACTORS, DIRECTIONS, SPRITE_WORLD, draw_scene
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
    "joint": "answer-2",
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
    "joint": ("joint", 3000, 128, 5e-4, 7000),
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


def build_processor(output: Path, start: Path | None = None) -> AlproProcessor:
    """A processor for frames of the size of the model: that of `start`, or one whose vocabulary is in `output`."""
    if start is not None:
        return AlproProcessor.from_pretrained(start)
    video_processor = AlproVideoProcessor(size={"height": SIZE, "width": SIZE}, num_frames=FRAMES)
    return AlproProcessor(video_processor=video_processor, tokenizer=build_tokenizer(output / "vocabulary"))


class Alternating(Dataset):
    """Rows of two data sets, a batch of the one and a batch of the other in turn; read in order.

    Args:
        first, second: The data sets.
        batch_size: Rows of a batch.
        length: Rows of both together.
    """

    def __init__(self, first: Dataset, second: Dataset, batch_size: int, length: int):
        self.sources = (first, second)
        self.batch_size = batch_size
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, place = divmod(index, self.batch_size)
        return self.sources[step % 2][step // 2 * self.batch_size + place]


def start_model(
    stage: str, start: Path, vocab_size: int, answers: tuple[str, ...] = ANSWERS
) -> AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering:
    """The model of a stage: random weights for `align`, those of the folder `start` otherwise."""
    if stage == "align":
        return AlproModel(build_config(vocab_size))
    if stage.startswith("match"):
        return AlproForVideoTextRetrieval.from_pretrained(start)
    model_class = AlproForMatchingAndAnswering if stage == "joint" else AlproForVideoQuestionAnswering
    # a classifier of another size, for one answer more, is new
    return model_class.from_pretrained(start, **answer_labels(answers), ignore_mismatched_sizes=answers != ANSWERS)


def answer_labels(answers: tuple[str, ...] = ANSWERS) -> dict[str, dict]:
    """Both label maps of the closed answer list, as arguments of `from_pretrained`."""
    return {"id2label": dict(enumerate(answers)), "label2id": {answer: i for i, answer in enumerate(answers)}}


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


def train(stage: str, arguments: argparse.Namespace) -> None:
    """Train a stage; arguments that are None stand for the values of the stage."""
    task, default_steps, batch_size, default_rate, seed_offset = STAGES[stage]
    output, seed, steps = arguments.output, arguments.seed, arguments.steps or default_steps
    set_seed(seed)
    processor = build_processor(output, arguments.start)
    answers = (*ANSWERS, NONE) if arguments.false_premises else ANSWERS
    start = arguments.start or output / START.get(stage, stage)
    model = start_model(stage, start, len(processor.tokenizer), answers)
    length = steps * batch_size
    curriculum = [(until * batch_size, kinds) for until, kinds in CURRICULUM.get(stage, [])]
    if arguments.kinds:
        curriculum = [(length, tuple(None if kind == "any" else kind for kind in arguments.kinds))]
    # one wording first, then all of them, with those that reverse the order twice as often
    wordings = [
        (round(arguments.one_wording * length), FORWARD[:1]),
        (length, SEQUENCE + REVERSING),
    ]
    shared: dict[str, Any] = {
        "num_frames": FRAMES,
        "size": SIZE,
        "curriculum": curriculum,
        "split": arguments.split,
    }
    pairs = SpriteRows(
        "retrieval",
        length,
        seed=seed + seed_offset,
        mixed=task == "joint" or stage.startswith("match"),
        negatives=arguments.negatives,
        wordings=wordings if arguments.negatives else (),
        order_share=arguments.order_share,
        **shared,
    )
    asked = SpriteRows(
        "qa",
        length,
        seed=seed + seed_offset,
        questions_per_clip=QUESTIONS_PER_CLIP,
        candidates=not arguments.no_candidates,
        false_premises=arguments.false_premises,
        **shared,
    )
    rows: Dataset = {"retrieval": pairs, "qa": asked}.get(task) or Alternating(pairs, asked, batch_size, length)
    label2id = model.config.label2id
    collator = AlproCollator(processor, task="qa" if task == "qa" else "retrieval", label2id=label2id)
    fit(
        model,
        processor,
        output / stage,
        rows,
        AlproJointCollator(processor, label2id) if task == "joint" else collator,
        steps=steps,
        batch_size=batch_size,
        learning_rate=arguments.learning_rate or default_rate,
        warmup_steps=100 if stage == "align" else 50,
        seed=seed,
        # `align` stops at a seventh of its peak rate, because the other stages continue from there
        cycles=0.4 if stage == "align" else 0.5,
        vtc_weight=0.25 if stage == "match-3" else 1.0,  # matching learns more slowly
        vtm_weight=float(task == "joint" or stage.startswith("match")),
        vtm_uniform_share=arguments.uniform_share,
        vtm_temperature=arguments.vtm_temperature,
        head_warmup_steps=arguments.head_warmup,
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=25,
        save_steps=250,
        save_total_limit=2,
    )


def export(output: Path, target: Path, stages: dict[str, str]) -> None:
    """Write bundled folders. Weights are float16 for half the size; the configuration loads them as float32.

    Args:
        stages: Task to the stage whose model is written.
    """
    classes = {"retrieval": AlproForVideoTextRetrieval, "qa": AlproForVideoQuestionAnswering}
    for task, stage in stages.items():
        model_class, name = classes[task], f"sprites-{task}"
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
    parser.add_argument(
        "--start", type=Path, help="folder of the model to start from (default: that of the earlier stage in --output)"
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
    parser.add_argument(
        "--tasks", nargs="+", choices=["retrieval", "qa"], default=["retrieval", "qa"], help="export: models to write"
    )
    parser.add_argument("--retrieval", choices=STAGES, default="match-3", help="export: stage for retrieval")
    parser.add_argument("--qa", choices=STAGES, default="answer-3", help="export: stage for questions")
    tried = parser.add_argument_group("what was never learned")
    tried.add_argument("--negatives", action="store_true", help="pairs have false captions that differ in a detail")
    tried.add_argument(
        "--one-wording",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --negatives: share of the training in which sequences have one wording (default: %(default)s)",
    )
    tried.add_argument(
        "--order-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --negatives: share of the sequences whose false caption has the other order (default: %(default)s)",
    )
    tried.add_argument(
        "--kinds",
        nargs="+",
        choices=["any", *ACTORS],
        metavar="KIND",
        help=f"kinds of the groups of clips that alternate, of any {' '.join(ACTORS)} (default: those of the stage)",
    )
    tried.add_argument("--uniform-share", type=float, default=0.0, help="vtm_uniform_share (default: %(default)s)")
    tried.add_argument("--vtm-temperature", type=float, help="vtm_temperature (default: the learned one)")
    tried.add_argument("--head-warmup", type=float, default=0.0, help="head_warmup_steps (default: %(default)s)")
    tried.add_argument("--false-premises", action="store_true", help="ask questions whose answer is none, too")
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.output, arguments.target, {task: getattr(arguments, task) for task in arguments.tasks})
        return
    if arguments.start and arguments.stage == "align":
        parser.error("--start does not go with align, which begins with random weights")
    if not arguments.negatives and (arguments.one_wording or arguments.order_share):
        parser.error("--one-wording and --order-share change false captions; add --negatives")
    torch.set_num_threads(arguments.threads)
    train(arguments.stage, arguments)


if __name__ == "__main__":
    main()
