"""Does the method work? Pre-training with different losses on the sprite world, then fine-tuning; some seeds each.

    python scripts/render_sprite_world.py sprite-world --split test --count 400
    python scripts/render_sprite_world.py sprite-world --split test-hard --count 200
    python scripts/pretrain_sprites.py study --output runs/study --data sprite-world --seeds 0 1 2
    python scripts/pretrain_sprites.py table --results runs/study/results

A cell of the study is one pre-training, then fine-tuning for retrieval and for questions, then the evaluation of both
on the rendered tests, and of the pre-trained model as it is (zero-shot, where VTC was among the losses). Without any
loss ("none") there is only fine-tuning. All start from the same image model and language model, see
scripts/sprite_start.py, and all cells of a seed see the same clips in the same order, rendered once. The teacher of
PEM is the bundled retrieval model unless --teacher says otherwise: one trained as short as the students here is
hardly better than chance (scripts/teacher_sprites.py). `study` does the cells that have no results yet, all of the
first seed before those of the second: it may be interrupted and started again, and later with more seeds. `table`
prints means and spreads and draws them.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate_sprites import measure
from numpy._core.multiarray import _reconstruct, scalar
from sprite_start import FRAMES, build_start
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from train_sprites import QUESTIONS_PER_CLIP, SIZE, build_processor
from transformers import PreTrainedModel, set_seed

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
    AlproTrainer,
    AlproTrainingArguments,
)
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.loading import best_device, fast_bfloat16
from alpro_hf.sprites.language import ANSWERS
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import SPRITES
from alpro_hf.training.checkpoints import last_complete_checkpoint
from alpro_hf.training.prompter import build_prompter

LOSSES = {
    "none": (),
    "mlm+vtm": ("mlm", "vtm"),
    "mlm+vtm+pem": ("mlm", "vtm", "pem"),
    "mlm+vtm+vtc": ("mlm", "vtm", "vtc"),
    "all": ("mlm", "vtm", "vtc", "pem"),
}
# stage -> (steps, rows a step, peak learning rate)
STAGES = {
    "prompter": (150, 64, 1e-3),
    "pretrain": (100, 64, 1e-3),
    "retrieval": (30, 64, 5e-4),
    "qa": (40, 128, 8e-4),
}
ROWS_OF_STAGE = {"prompter": 10, "pretrain": 20, "retrieval": 30, "qa": 40}  # which clips, beside the seed
PROTOCOLS = ["vtc", "rerank"]
ONE_SPRITE = 0.4  # share of the steps with clips of a single sprite, at first
LOGGED = ("loss_vtc", "loss_vtm", "vtm_accuracy", "loss_mlm", "mlm_accuracy")
LOGGED += ("loss_pem", "pem_kept", "pem_entropy", "pem_agreement", "temperature", "accuracy", "train_runtime")


def rows_of(stage: str, output: Path, seed: int, scale: float) -> Dataset:
    """The clips of a stage, rendered once for all cells of a seed."""
    steps, rows_a_step, _ = STAGES[stage]
    length = max(1, round(steps * scale)) * rows_a_step
    path = output / f"seed{seed}" / f"rows-{stage}-{length}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = SpriteRows(
            "qa" if stage == "qa" else "retrieval",
            length,
            seed=100 * seed + ROWS_OF_STAGE[stage],
            num_frames=FRAMES,
            size=SIZE,
            curriculum=[(round(ONE_SPRITE * length), ("one",))],
            mixed=stage != "qa",
            questions_per_clip=QUESTIONS_PER_CLIP,
        )
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save([rows[i] for i in tqdm(range(length), desc=f"clips of {stage}", unit="row")], partial)
        os.replace(partial, path)
    arrays = [np.ndarray, np.dtype, np.dtypes.UInt8DType, np.dtypes.Int64DType, _reconstruct, scalar]
    with torch.serialization.safe_globals(arrays):
        return torch.load(path, weights_only=True)


def train(
    stage: str,
    model: PreTrainedModel,
    processor: AlproProcessor,
    output: Path,
    folder: Path,
    seed: int,
    scale: float,
    losses: tuple[str, ...] = (),
    prompter: AlproPrompterModel | None = None,
) -> dict[str, float]:
    """Train and save to `folder`, unless that is done; the last entries of the log."""
    if not (folder / "model.safetensors").is_file():
        steps, rows_a_step, rate = STAGES[stage]
        steps = max(1, round(steps * scale))
        weights = {f"{loss}_weight": float(loss in losses) for loss in ("vtc", "vtm", "mlm", "pem")}
        device = best_device()
        arguments = AlproTrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=rows_a_step,
            learning_rate=rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.02},
            warmup_steps=min(100, steps // 10),
            max_grad_norm=1.0,
            bf16=fast_bfloat16(device),  # emulated it is slower than float32
            use_cpu=device.type == "cpu",
            train_sampling_strategy="sequential",
            logging_steps=20,
            save_steps=100,
            save_total_limit=1,
            seed=seed,
            report_to=[],
            **(weights if losses else {}),
        )
        model.set_attn_implementation("eager")
        if stage == "pretrain":
            collator: AlproCollator = AlproPreTrainingCollator(
                processor, pem="pem" in losses, patch_size=model.config.video_config.patch_size, seed=seed
            )
        else:
            label2id = model.config.label2id if stage == "qa" else None
            collator = AlproCollator(processor, task="qa" if stage == "qa" else "retrieval", label2id=label2id)
        trainer = AlproTrainer(
            model=model,
            args=arguments,
            data_collator=collator,
            train_dataset=rows_of(stage, output, seed, scale),
            processing_class=processor,
            prompter=prompter,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        trainer.save_model(str(folder))
        processor.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {name: round(entry[name], 4) for entry in log for name in LOGGED if name in entry}


def teach(output: Path, seed: int, arguments: argparse.Namespace) -> AlproPrompterModel:
    """The prompter that all cells with PEM share: a model that is there, or one of this seed's own."""
    entities = list(SPRITES[: arguments.entities])
    source = bundled_model("retrieval") if arguments.teacher == "bundled" else arguments.teacher
    if arguments.teacher == "own":
        set_seed(seed)
        source = output / f"seed{seed}" / "prompter"
        model = AlproModel.from_pretrained(output / "start")
        processor = build_processor(output)
        train("prompter", model, processor, output, source, seed, arguments.scale, ("vtc",))
    towers, processor = AlproModel.from_pretrained(source), AlproProcessor.from_pretrained(source)
    return build_prompter(towers, processor, entities, progress=False)


def cell(losses: str, seed: int, arguments: argparse.Namespace) -> None:
    """One row of the table for one seed."""
    output, scale = arguments.output, arguments.scale
    results = output / "results" / f"seed{seed}-{losses.replace('+', '-')}.json"
    if results.is_file():
        print(f"{results} is there already")
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    start = build_start(output, scale)
    folder = output / f"seed{seed}" / losses
    processor = build_processor(output)
    stages: dict[str, Any] = {}
    if LOSSES[losses]:
        prompter = None
        if "pem" in LOSSES[losses]:
            prompter = teach(output, seed, arguments)
        set_seed(seed)
        student = AlproForPreTraining.from_pretrained(
            start, entities=None if prompter is None else prompter.config.entities
        )
        start = folder / "pretrain"
        stages["pretrain"] = train(
            "pretrain", student, processor, output, start, seed, scale, LOSSES[losses], prompter
        )
    heads: dict[str, Any] = {"retrieval": AlproForVideoTextRetrieval, "qa": AlproForVideoQuestionAnswering}
    for stage, head in heads.items():
        set_seed(seed)
        labels = {}
        if stage == "qa":
            labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
        model = head.from_pretrained(start, **labels)
        stages[stage] = train(stage, model, processor, output, folder / stage, seed, scale)
    everything: dict[str, Any] = {"fine-tuned": {}, "zero-shot": {}}
    for split in arguments.splits:
        rows = arguments.data / split
        everything["fine-tuned"][split] = measure(
            rows, split, folder / "retrieval", folder / "qa", PROTOCOLS, ["retrieval", "choices", "qa"]
        )
        if "vtc" in LOSSES[losses] and split == "test":
            everything["zero-shot"][split] = measure(rows, split, start, None, PROTOCOLS, ["retrieval"])
    head_of_file = {"losses": losses, "seed": seed, "scale": scale, "seconds": round(time.time() - started)}
    teacher = {"teacher": arguments.teacher} if "pem" in LOSSES[losses] else {}
    everything = rounded({**head_of_file, **teacher, "training": stages, **everything})
    results.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"{results}: {everything['seconds']} s")


def rounded(value: Any) -> Any:
    """Two decimals tell more than a few hundred clips can."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 2) if isinstance(value, float) else value


COLUMNS = ("R@1", "R@10", "median rank", "R@10 VTM", "opposite", "swapped", "QA", "zero-shot R@10")


def numbers_of(result: dict[str, Any], split: str) -> dict[str, float]:
    """The columns of the table: text to video by similarity, unless matching (VTM) reorders its best."""
    fine, zero = result["fine-tuned"][split], result.get("zero-shot", {}).get(split)
    columns = {
        "R@1": fine["retrieval"]["vtc"]["t2v_r1"],
        "R@10": fine["retrieval"]["vtc"]["t2v_r10"],
        "median rank": fine["retrieval"]["vtc"]["t2v_median_rank"],
        "R@10 VTM": fine["retrieval"]["rerank"]["t2v_r10"],
        "opposite": max(fine["choices"]["opposite"][score] for score in ("vtc", "vtm")),
        "swapped": max(fine["choices"]["swapped"][score] for score in ("vtc", "vtm")),
        "QA": fine["qa"]["accuracy"],
    }
    if zero:
        columns["zero-shot R@10"] = zero["retrieval"]["vtc"]["t2v_r10"]
    return columns


def table(folder: Path, splits: list[str]) -> None:
    """Print means and standard deviations as Markdown; draw them if matplotlib is there."""
    found: dict[str, list[dict[str, Any]]] = {losses: [] for losses in LOSSES}
    for path in sorted(folder.glob("seed*.json")):
        result = json.loads(path.read_text())
        found[result["losses"]].append(result)
    if not any(found.values()):
        raise SystemExit(f"{folder} holds no results yet; run `study` first.")
    means: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for split in splits:
        print(f"\n`{split}`\n")
        print("| pre-training | seeds | " + " | ".join(COLUMNS) + " |")
        print("| --- |" + " --- |" * (len(COLUMNS) + 1))
        means[split] = {}
        for losses, results in found.items():
            if not results:
                continue
            rows = [numbers_of(result, split) for result in results]
            spread = {
                name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                for name in COLUMNS
                if (values := [row[name] for row in rows if name in row])
            }
            means[split][losses] = spread
            several = len(rows) > 1
            cells = [
                f"{spread[n][0]:.1f}" + f" ± {spread[n][1]:.1f}" * several if n in spread else "" for n in COLUMNS
            ]
            print(f"| {losses} | {len(rows)} | " + " | ".join(cells) + " |")
    draw(means, folder / "table.png")


def draw(means: dict[str, dict[str, dict[str, tuple[float, float]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = ["R@10", "median rank", "QA", "zero-shot R@10"]
    figure = Figure(figsize=(3.2 * len(names), 3 * len(means)), layout="constrained")
    axes = figure.subplots(len(means), len(names), squeeze=False)
    for row, (split, by_losses) in zip(axes, means.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            shown = {losses: spread[name] for losses, spread in by_losses.items() if name in spread}
            if not shown:  # no retrieval before fine-tuning was measured on this split
                axis.set_axis_off()
                continue
            axis.bar(list(shown), [mean for mean, _ in shown.values()], yerr=[std for _, std in shown.values()])
            axis.set_title(f"{name}, {split}")
            axis.set_ylabel("rank" if "rank" in name else "%")
            axis.set_xticks(range(len(shown)), list(shown), rotation=30, ha="right")
    figure.savefig(path, dpi=80)
    print(f"\nwritten to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["study", "table"])
    parser.add_argument("--output", type=Path, help="folder of the study")
    parser.add_argument("--data", type=Path, help="folder that holds the rendered splits")
    parser.add_argument("--results", type=Path, help="folder of results, for `table` (default: OUTPUT/results)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--splits", nargs="+", default=["test", "test-hard"])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps (default: %(default)s)")
    parser.add_argument(
        "--teacher",
        default="bundled",
        help="of PEM: own (a prompter trained by VTC as long as the students, for each seed), bundled (the retrieval "
        "model of the package), or the folder of a model (default: %(default)s)",
    )
    parser.add_argument("--entities", type=int, default=160, help="sprites that the prompter names")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.output is None and (arguments.what == "study" or arguments.results is None):
        parser.error("name the folder of the study with --output")
    if arguments.what == "table":
        table(arguments.results or arguments.output / "results", arguments.splits)
        return
    if arguments.data is None:
        parser.error("study needs --data, the rendered tests")
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for losses in arguments.losses:
            cell(losses, seed, arguments)


if __name__ == "__main__":
    main()
