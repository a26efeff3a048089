"""Does the method work? Pre-training with different losses on the sprite world, then fine-tuning; some seeds each.

    python scripts/render_sprite_world.py sprite-world
    python scripts/pretrain_sprites.py study --output runs/study --data sprite-world --seeds 0 1 2
    python scripts/pretrain_sprites.py table --output runs/study

A cell of the study is one pre-training (with PEM, of a prompter first), then fine-tuning for retrieval and for
questions, then the evaluation of both on the rendered tests, and of the pre-trained model as it is (zero-shot).
Without losses ("none") there is only fine-tuning. `study` does the cells that have no results yet, one after another:
it may be interrupted and started again, and several may run side by side with other seeds. All cells of a seed see the
same clips in the same order. `table` prints means and spreads and draws them.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from train_sprites import FRAMES, QUESTIONS_PER_CLIP, SIZE, build_config, build_processor
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
from alpro_hf.checkpoints import last_complete_checkpoint
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining import AlproPreTrainingCollator
from alpro_hf.data.sprite_language import ANSWERS
from alpro_hf.data.sprite_rows import SpriteRows
from alpro_hf.data.sprite_world import DIRECTIONS, SPRITES
from alpro_hf.entities import build_prompter
from alpro_hf.hardware import best_device, fast_bfloat16

LOSSES = {
    "none": (),
    "mlm+vtm": ("mlm", "vtm"),
    "mlm+vtm+pem": ("mlm", "vtm", "pem"),
    "mlm+vtm+vtc": ("mlm", "vtm", "vtc"),
    "all": ("mlm", "vtm", "vtc", "pem"),
}
# stage -> (steps, rows a step, peak learning rate)
STAGES = {
    "prompter": (700, 96, 1e-3),
    "pretrain": (1000, 64, 1e-3),
    "retrieval": (300, 64, 5e-4),
    "qa": (400, 192, 8e-4),
}
ROWS_OF_STAGE = {"prompter": 10, "pretrain": 20, "retrieval": 30, "qa": 40}  # which clips, beside the seed


def train(
    stage: str,
    model: PreTrainedModel,
    processor: AlproProcessor,
    folder: Path,
    seed: int,
    scale: float,
    losses: tuple[str, ...] = (),
    **kwargs: Any,
) -> PreTrainedModel:
    """Train and save to `folder`; one that is there already is loaded instead."""
    if (folder / "model.safetensors").is_file():
        return type(model).from_pretrained(folder)
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
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=20,
        save_steps=200,
        save_total_limit=1,
        seed=seed,
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
    one_sprite, directions = round(0.4 * steps) * rows_a_step, round(0.55 * steps) * rows_a_step
    trainer = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=SpriteRows(
            "qa" if stage == "qa" else "retrieval",
            steps * rows_a_step,
            seed=100 * seed + ROWS_OF_STAGE[stage],
            num_frames=FRAMES,
            size=SIZE,
            curriculum=[(one_sprite, ("one",)), (directions, ("one", DIRECTIONS))] if stage != "retrieval" else [],
            mixed=stage in ("pretrain", "retrieval"),
            questions_per_clip=QUESTIONS_PER_CLIP,
        ),
        processing_class=processor,
        **kwargs,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    trainer.save_model(str(folder))
    processor.save_pretrained(folder)
    return model


def teach(output: Path, processor: AlproProcessor, seed: int, scale: float, entities: int) -> AlproPrompterModel:
    """The prompter of a seed, which all cells with PEM share."""
    set_seed(seed)
    model = AlproModel(build_config(len(processor.tokenizer)))
    folder = output / f"seed{seed}" / "prompter"
    trained = train("prompter", model, processor, folder, seed, scale, ("vtc",))
    return build_prompter(trained, processor.tokenizer, list(SPRITES[:entities]), progress=False)


def cell(output: Path, data: Path, losses: str, seed: int, scale: float, entities: int, splits: list[str]) -> None:
    """One row of the table for one seed."""
    folder = output / f"seed{seed}" / losses
    results = folder / "results.json"
    if results.is_file():
        print(f"{results} is there already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    processor = build_processor(output)
    prompter = teach(output, processor, seed, scale, entities) if "pem" in LOSSES[losses] else None
    set_seed(seed)
    config = build_config(len(processor.tokenizer))
    config.entities = prompter.config.entities if prompter is not None else None
    start = None
    if LOSSES[losses]:
        start = folder / "pretrain"
        student = AlproForPreTraining(config)
        train("pretrain", student, processor, start, seed, scale, LOSSES[losses], prompter=prompter)
    heads: dict[str, Any] = {"retrieval": AlproForVideoTextRetrieval, "qa": AlproForVideoQuestionAnswering}
    for stage, head in heads.items():
        set_seed(seed)
        labels = {}
        if stage == "qa":
            labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
        if start is None:
            fresh = build_config(len(processor.tokenizer))
            for name, value in labels.items():
                setattr(fresh, name, value)
            model = head(fresh)
        else:
            model = head.from_pretrained(start, **labels)
        train(stage, model, processor, folder / stage, seed, scale)
    everything = {"fine-tuned": evaluate(folder, data, folder / "retrieval", folder / "qa", splits)}
    if start is not None:
        everything["zero-shot"] = evaluate(folder, data, start, None, splits)
    results.write_text(json.dumps({"losses": losses, "seed": seed, "scale": scale, **everything}, indent=2) + "\n")


def evaluate(folder: Path, data: Path, retrieval: Path, qa: Path | None, splits: list[str]) -> dict[str, Any]:
    """The numbers of scripts/evaluate_sprites.py."""
    target = folder / f"evaluation-{retrieval.name}.json"
    command = [sys.executable, str(Path(__file__).with_name("evaluate_sprites.py")), "--data", str(data)]
    command += ["--splits", *splits, "--retrieval", str(retrieval), "--output", str(target)]
    command += ["--protocols", "vtc", "rerank", "--tasks", "retrieval", "choices"]
    command += ["qa", "--qa", str(qa)] if qa else []
    subprocess.run(command, check=True)
    return json.loads(target.read_text())["results"]


def numbers_of(result: dict[str, Any], split: str) -> dict[str, float]:
    """The columns of the table."""
    fine, zero = result["fine-tuned"][split], result.get("zero-shot", {}).get(split)
    columns = {
        "R@1 VTC": fine["retrieval"]["vtc"]["t2v_r1"],
        "R@1 VTM": fine["retrieval"]["rerank"]["t2v_r1"],
        "R@10": fine["retrieval"]["rerank"]["t2v_r10"],
        "opposite": max(fine["choices"]["opposite"][score] for score in ("vtc", "vtm")),
        "swapped": max(fine["choices"]["swapped"][score] for score in ("vtc", "vtm")),
        "QA": fine["qa"]["accuracy"],
    }
    if zero:
        columns["zero-shot R@1"] = max(zero["retrieval"][one]["t2v_r1"] for one in ("vtc", "rerank"))
    return columns


def table(output: Path, splits: list[str]) -> None:
    """Print means and standard deviations as Markdown; draw them if matplotlib is there."""
    found: dict[str, list[dict[str, Any]]] = {losses: [] for losses in LOSSES}
    for path in sorted(output.glob("seed*/*/results.json")):
        result = json.loads(path.read_text())
        found[result["losses"]].append(result)
    if not any(found.values()):
        raise SystemExit(f"{output} holds no results yet; run `study` first.")
    means: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for split in splits:
        print(f"\n`{split}`\n")
        names = ["R@1 VTC", "R@1 VTM", "R@10", "opposite", "swapped", "QA", "zero-shot R@1"]
        print("| pre-training | seeds | " + " | ".join(names) + " |")
        print("| --- |" + " --- |" * (len(names) + 1))
        means[split] = {}
        for losses, results in found.items():
            if not results:
                continue
            rows = [numbers_of(result, split) for result in results]
            spread = {
                name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                for name in names
                if (values := [row[name] for row in rows if name in row])
            }
            means[split][losses] = spread
            cells = [f"{spread[n][0]:.1f} ± {spread[n][1]:.1f}" if n in spread else "" for n in names]
            print(f"| {losses} | {len(rows)} | " + " | ".join(cells) + " |")
    draw(means, output / "table.png")


def draw(means: dict[str, dict[str, dict[str, tuple[float, float]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = ["R@1 VTM", "opposite", "QA", "zero-shot R@1"]
    figure = Figure(figsize=(3.2 * len(names), 3 * len(means)), layout="constrained")
    axes = figure.subplots(len(means), len(names), squeeze=False)
    for row, (split, by_losses) in zip(axes, means.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            shown = {losses: spread[name] for losses, spread in by_losses.items() if name in spread}
            axis.bar(list(shown), [mean for mean, _ in shown.values()], yerr=[std for _, std in shown.values()])
            axis.set_title(f"{name}, {split}")
            axis.set_ylabel("%")
            axis.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=120)
    print(f"\nwritten to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["study", "table"])
    parser.add_argument("--output", type=Path, required=True, help="folder of the study")
    parser.add_argument("--data", type=Path, help="folder that holds the rendered splits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--splits", nargs="+", default=["test", "test-hard"])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of steps (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=160, help="sprites that the prompter names")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.what == "table":
        table(arguments.output, arguments.splits)
        return
    if arguments.data is None:
        parser.error("study needs --data, the rendered tests")
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for losses in arguments.losses:
            cell(arguments.output, arguments.data, losses, seed, arguments.scale, arguments.entities, arguments.splits)


if __name__ == "__main__":
    main()
