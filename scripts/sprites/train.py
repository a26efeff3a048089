"""Train the bundled sprite-world models, for retrieval and for question answering.

    python scripts/sprites/train.py STAGE --output runs/sprites

    stills     names and tilts of sprites, from random weights
    classify   names, actions and tilts, from stills
    classify-2 more clips than stills, from classify
    align      contrastive learning (VTC), from classify-2
    joint      VTC, matching (VTM) and questions, from align
    joint-2    the same with more relations, from joint
    order      VTC and VTM, half of them sequences, from joint-2
    wordings   the same with fewer sequences, from order
    crops      VTC and VTM, a third of them crops, from wordings
    match      VTC and VTM on all kinds of clips, from crops
    answer     questions, from joint-2
    answer-2   more questions, from answer
    all        these stages in this order
    export     the folders that the package bundles

An interrupted stage continues from its newest checkpoint when you start it again; `all` leaves out what has ended.
`export` writes the two float16 folders that the package bundles: `match` for retrieval, `answer-2` for question
answering. All stages train on combinations that `dev` does not show, so `dev` decides and the tests report.

Each step of `joint` is one of pairs or one of questions. Pairs have a false caption that differs in one detail, and
some questions assume what the clip does not show; their answer is "none". --without leaves such a method out of every
stage that has it. docs/experiments.md has the measurements.
"""

import argparse
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

# the process that renders clips needs the time in which idle threads would wait actively; read when torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from classify import ClassesCollator, SingleSprites, SpriteClassifier
from crops import CropRows, prompter_of
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
from alpro_hf.sprites.rows import GROUP, SpriteRows
from alpro_hf.sprites.world import SPRITE_WORLD, TURNS, draw_scene
from alpro_hf.training.arguments import AlproTrainingArguments
from alpro_hf.training.checkpoints import last_complete_checkpoint
from alpro_hf.training.trainer import AlproTrainer

SIZE, FRAMES, MAX_TOKENS = 64, 4, 48
QUESTIONS_PER_CLIP = 4
# what --without can leave out
METHODS = (
    "questions",
    "negatives",
    "false premises",
    "one wording",
    "order",
    "crops",
    "head warm-up",
    "uniform share",
)


@dataclass(frozen=True)
class Stage:
    """How a stage trains.

    Args:
        task: `stills`; `classes` for steps of clips and a step of stills in turn; `retrieval`; `qa`; or `joint` for a
            step of pairs and a step of questions in turn.
        start: The stage whose weights it starts from; None: random weights.
        steps, rows: Number of steps, and rows of a step.
        learning_rate: Its peak.
        seed: Added to the seed, so that each stage draws new clips.
        kinds: Phases, each (share of the steps until which it lasts, kinds of groups that alternate; None: any kind).
            After the last phase, groups are of any kind.
        details: Whether pairs have false captions that differ in a detail, and questions may have false premises. The
            early stages have none, and no VTM.
        one_wording: Share of the steps in which sequences have one wording; all wordings come after it.
        order_share: Share of the sequences whose only false caption has the other order.
        head_warmup: Steps in which new heads train alone.
        uniform_share: Share of the negatives of VTM that is drawn evenly at first; see `vtm_uniform_share`.
        crop_share: Share of the rows of pairs that are crops with prompts, for the teacher of PEM.
        vtc_weight: Weight of VTC beside VTM.
        clips_per_still: Steps of clips for each step of stills.
    """

    task: Literal["stills", "classes", "retrieval", "qa", "joint"]
    start: str | None
    steps: int
    rows: int
    learning_rate: float
    seed: int
    kinds: tuple[tuple[float, tuple[str | None, ...]], ...] = ()
    details: bool = True
    one_wording: float = 0.0
    order_share: float = 0.0
    head_warmup: int = 0
    uniform_share: float = 0.0
    crop_share: float = 0.2
    vtc_weight: float = 1.0
    clips_per_still: int = 1

    @property
    def matches(self) -> bool:
        """Whether VTM is among the losses."""
        return self.task in ("retrieval", "joint") and self.details


STAGES = {
    "stills": Stage("stills", None, 4000, 128, 1e-3, 8000, details=False),
    "classify": Stage("classes", "stills", 3000, 96, 8e-4, 9000, details=False),
    "classify-2": Stage("classes", "classify", 2400, 96, 8e-4, 9500, details=False, clips_per_still=2),
    "align": Stage(
        "retrieval", "classify-2", 1000, 128, 7e-4, 0,
        kinds=((1 / 5, ("one", TURNS)), (1, (None, None, TURNS))),
        details=False,
    ),
    "joint": Stage(
        "joint", "align", 2400, 128, 6e-4, 1000,
        kinds=((1 / 4, (None, TURNS)),), one_wording=0.5, head_warmup=50, uniform_share=0.5,
    ),
    "joint-2": Stage("joint", "joint", 2400, 128, 6e-4, 1500, kinds=((1 / 2, (None, None, "relation")),)),
    "order": Stage(
        "retrieval", "joint-2", 600, 96, 3e-4, 2000,
        kinds=((1, (None, "sequence")),), one_wording=0.5, order_share=0.6, vtc_weight=0.25,
    ),
    "wordings": Stage(
        "retrieval", "order", 500, 96, 3e-4, 3000, kinds=((1, (None, None, "sequence")),), order_share=0.6
    ),
    "crops": Stage("retrieval", "wordings", 900, 96, 4e-4, 4000, order_share=0.6, crop_share=0.34),
    "match": Stage("retrieval", "crops", 900, 96, 3e-4, 6000, order_share=0.6),
    "answer": Stage("qa", "joint-2", 2000, 256, 8e-4, 5000),
    "answer-2": Stage("qa", "answer", 700, 256, 5e-4, 7000),
}  # fmt: skip


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


class Batches(Dataset):
    """Batches that draw on several data sets, in turn; read in order.

    Args:
        turns: The steps of a turn; each step is (data set, its rows in the batch) for all data sets of the batch. A
            data set that is in several steps goes on where it ended in the step before.
        steps: Number of steps.
    """

    def __init__(self, turns: Sequence[Sequence[tuple[Dataset, int]]], steps: int):
        self.turns = turns
        self.rows = sum(count for _, count in turns[0])
        self.steps = steps

    def __len__(self) -> int:
        return self.steps * self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        step, place = divmod(index, self.rows)
        turn, step = divmod(step, len(self.turns))
        for source, count in self.turns[step]:
            if place < count:
                return source[turn * self._rows_of(source, len(self.turns)) + self._rows_of(source, step) + place]
            place -= count
        raise AssertionError  # the counts of a step are all rows of it

    def _rows_of(self, source: Dataset, steps: int) -> int:
        """Rows of a data set in the first steps of a turn."""
        return sum(count for step in self.turns[:steps] for other, count in step if other is source)


def start_model(
    stage: Stage, start: Path | None, vocab_size: int, answers: tuple[str, ...] = ANSWERS
) -> SpriteClassifier | AlproModel | AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering:
    """The model of a stage, with the weights of the folder `start`, or with random ones."""
    if start is None:
        return SpriteClassifier(build_config(vocab_size))
    if stage.task == "classes":
        return SpriteClassifier.from_pretrained(start)
    if stage.task == "retrieval" and not stage.matches:
        return AlproModel.from_pretrained(start)
    if stage.task == "retrieval":
        return AlproForVideoTextRetrieval.from_pretrained(start)
    model_class = AlproForMatchingAndAnswering if stage.task == "joint" else AlproForVideoQuestionAnswering
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
    collator: Callable,
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


def train(name: str, arguments: argparse.Namespace) -> None:
    """Train a stage; arguments that are None stand for the values of the stage."""
    stage, without = STAGES[name], set(arguments.without)
    output, seed = arguments.output, arguments.seed
    steps = arguments.steps or max(1, round(arguments.scale * stage.steps))
    task = "retrieval" if stage.task == "joint" and "questions" in without else stage.task
    set_seed(seed)
    start = arguments.start or (output / stage.start if stage.start else None)
    processor = build_processor(output, start)  # a vocabulary that is built again may number its words otherwise
    false_premises = stage.details and "false premises" not in without
    answers = (*ANSWERS, NONE) if false_premises else ANSWERS
    model = start_model(replace(stage, task=task), start, len(processor.tokenizer), answers)
    own_steps = (steps + 1) // 2 if task == "joint" else steps  # steps of each kind of rows, at most
    cropped = int(stage.crop_share * stage.rows) if stage.matches and "crops" not in without else 0
    cropped -= cropped % GROUP  # groups of clips are whole

    def sprite_rows(kind: Literal["retrieval", "qa"], rows: int, **options: Any) -> SpriteRows:
        length = own_steps * rows
        phases = [
            (round(share * length), kinds)
            for share, kinds in stage.kinds
            if "order" not in without or "sequence" not in kinds
        ]
        return SpriteRows(kind, length, curriculum=phases, **shared, **options)

    shared: dict[str, Any] = {
        "num_frames": FRAMES,
        "size": SIZE,
        "split": arguments.split,
        "seed": seed + stage.seed,
    }
    negatives = stage.matches and stage.details and "negatives" not in without
    # one wording first, then all of them, with those that reverse the order twice as often
    one_wording = 0.0 if "one wording" in without else stage.one_wording
    paired = stage.rows - cropped
    length = own_steps * paired
    pairs = sprite_rows(
        "retrieval",
        paired,
        mixed=stage.matches,
        negatives=negatives,
        wordings=[(round(one_wording * length), FORWARD[:1]), (length, SEQUENCE + REVERSING)] if negatives else (),
        order_share=stage.order_share * (negatives and "order" not in without),
    )
    asked = sprite_rows(
        "qa",
        stage.rows,
        questions_per_clip=QUESTIONS_PER_CLIP,
        candidates=not arguments.no_candidates,
        false_premises=false_premises,
    )
    of_pairs = [(pairs, paired), (CropRows(own_steps * cropped, **shared), cropped)]
    of_questions = [(asked, stage.rows)]
    of_stills, of_clips = (
        [(SingleSprites(own_steps * stage.rows, **(shared | {"num_frames": frames})), stage.rows)]
        for frames in (1, FRAMES)
    )
    turns = {
        "stills": [of_stills],
        "classes": [*[of_clips] * stage.clips_per_still, of_stills],
        "retrieval": [of_pairs],
        "qa": [of_questions],
        "joint": [of_pairs, of_questions],
    }[task]
    label2id: dict[str, int] = model.config.label2id
    collators = {
        "stills": ClassesCollator(processor),
        "classes": ClassesCollator(processor),
        "retrieval": AlproCollator(processor, task="retrieval"),
        "qa": AlproCollator(processor, task="qa", label2id=label2id),
        "joint": AlproJointCollator(processor, label2id),
    }
    fit(
        model,
        processor,
        output / name,
        Batches(turns, steps),
        collators[task],
        steps=steps,
        batch_size=stage.rows,
        learning_rate=arguments.learning_rate or stage.learning_rate,
        warmup_steps=min(50 if stage.details else 100, steps // 10),
        seed=seed,
        # the early stages stop at a seventh of their peak rate, because the others continue from there
        cycles=0.5 if stage.details else 0.4,
        vtc_weight=stage.vtc_weight,
        vtm_weight=float(stage.matches),
        vtm_uniform_share=0.0 if "uniform share" in without else stage.uniform_share,
        vtm_temperature=arguments.vtm_temperature,
        head_warmup_steps=0 if "head warm-up" in without else stage.head_warmup,
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=25,
        save_steps=250,
        save_total_limit=2,
    )


EXPORTED = {"retrieval": "match", "qa": "answer-2"}  # task -> the stage whose model the package bundles


def export(output: Path, target: Path, tasks: list[str]) -> None:
    """Write bundled folders. Weights are float16 for half the size; the configuration loads them as float32.

    The folder for retrieval is that of a prompter, too: with the embeddings of the prompts, which a retrieval model
    leaves out, and with their temperature in the configuration.
    """
    classes = {"retrieval": AlproForVideoTextRetrieval, "qa": AlproForVideoQuestionAnswering}
    for task in tasks:
        source, folder = output / EXPORTED[task], target / f"sprites-{task}"
        model = classes[task].from_pretrained(source, dtype=torch.float16)
        weights = model.state_dict()
        if task == "retrieval":
            prompter = prompter_of(AlproModel.from_pretrained(source).eval(), AlproProcessor.from_pretrained(source))
            weights |= {kind: prompts.half() for kind, prompts in prompter.named_buffers(recurse=False)}
            for name in ("entities", "pem_temperature"):
                setattr(model.config, name, getattr(prompter.config, name))
        model.save_pretrained(folder, state_dict=weights)
        config = AlproConfig.from_pretrained(folder)
        # `save_pretrained` wrote the dtype of the weights; users compute in float32
        config.dtype = torch.float32
        config.save_pretrained(folder)
        # a new one: the tokenizer that encoded prompts keeps their length
        AlproProcessor.from_pretrained(source).save_pretrained(folder)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def needed(arguments: argparse.Namespace) -> Path | None:
    """The folder that a stage starts from if it holds no model; None if all is there."""
    before = STAGES[arguments.stage].start
    start = arguments.start or (arguments.output / before if before else None)
    return None if start is None or (start / "config.json").is_file() else start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all", "export"], help="stage to train, `all`, or `export`")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sprites"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument(
        "--start", type=Path, help="folder of the model to start from (default: that of the earlier stage in --output)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: those of the stage)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for the steps of the stage (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: that of the stage)")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads of the training process (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and clips (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=["train", "train-dev"],
        default="train-dev",
        help="combinations to train on; train-dev lacks those of dev, for decisions by dev (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        type=Path,
        default=Path("src/alpro_hf/assets"),
        help="where `export` writes the folders (default: %(default)s)",
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=EXPORTED, default=list(EXPORTED), help="export: models to write (default: both)"
    )
    tried = parser.add_argument_group("what each method contributes")
    tried.add_argument(
        "--without",
        nargs="+",
        choices=METHODS,
        default=[],
        metavar="METHOD",
        help=f"methods to leave out, of {', '.join(METHODS)}",
    )
    tried.add_argument(
        "--no-candidates",
        action="store_true",
        help="let all answers compete for a question, also those that the definition of the split excludes",
    )
    tried.add_argument("--vtm-temperature", type=float, help="vtm_temperature (default: the learned one)")
    arguments = parser.parse_args()
    if arguments.stage == "export":
        export(arguments.output, arguments.target, arguments.tasks)
        return
    if arguments.start and (arguments.stage == "all" or STAGES[arguments.stage].start is None):
        parser.error(f"--start does not go with {arguments.stage}, which begins with random weights")
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "all":
        for name in STAGES:
            if (arguments.output / name / "trainer_state.json").is_file():  # written last
                print(f"{arguments.output / name} has ended; skipped")
            else:
                print(f"stage {name}")
                train(name, arguments)
        return
    missing = needed(arguments)
    if missing is not None:
        parser.error(f"{missing} holds no model; run that stage first, or name a folder with --start")
    train(arguments.stage, arguments)


if __name__ == "__main__":
    main()
