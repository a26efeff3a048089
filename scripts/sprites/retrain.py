"""Is the bundled retrieval model better for more training, and better still for pre-training with all losses?

    python scripts/render_sprite_world.py sprite-world --split test test-hard
    python scripts/retrain_sprites.py --output runs/retrain --data sprite-world

Two models go on from the bundled weights over the same number of new clips: one with VTC and VTM alone ("more"), the
other first with all four losses, PEM's teacher being the prompter of the bundled model, then with VTC and VTM ("all
losses first"). Both are measured on the rendered tests beside the bundled model. Stages and results that are there
are kept, so it may be interrupted and started again; `results.json` holds every number. A model that is better is in
`OUTPUT/NAME/match`, ready for `from_pretrained`, its prompter is made by `alpro_hf.entities.build_prompter`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from evaluate_sprites import measure
from train_sprites import FRAMES, SIZE
from transformers import PreTrainedModel, set_seed

from alpro_hf import (
    AlproForPreTraining,
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
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import SPRITES
from alpro_hf.training.checkpoints import last_complete_checkpoint
from alpro_hf.training.prompter import build_prompter

ROWS, RATE = 96, 3e-4
FIRST_CLIPS = 9000  # no stage of the bundled models saw these
TABLE = {"vtc": "R@1 by similarity", "rerank": "R@1 with matching"}
CHOICES = ("opposite", "swapped", "reversed")


def train(
    model: PreTrainedModel,
    processor: AlproProcessor,
    folder: Path,
    steps: int,
    seed: int,
    prompter: AlproPrompterModel | None = None,
) -> Path:
    """Train with all losses if there is a prompter, with VTC and VTM otherwise, and save, unless that is done."""
    if (folder / "model.safetensors").is_file():
        return folder
    device = best_device()
    weights = {"vtc_weight": 1.0, "vtm_weight": 1.0} if prompter is None else {}
    arguments = AlproTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        learning_rate=RATE,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=min(50, steps // 10),
        max_grad_norm=1.0,
        bf16=fast_bfloat16(device),
        use_cpu=device.type == "cpu",
        train_sampling_strategy="sequential",  # neighbours belong together, see SpriteRows
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=20,
        save_steps=50,
        save_total_limit=1,
        seed=seed,
        report_to=[],
        **weights,
    )
    model.set_attn_implementation("eager")
    collator: AlproCollator = AlproCollator(processor)
    if prompter is not None:
        collator = AlproPreTrainingCollator(processor, patch_size=model.config.video_config.patch_size, seed=seed)
    trainer = AlproTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=SpriteRows(
            "retrieval", steps * ROWS, seed=FIRST_CLIPS + seed, num_frames=FRAMES, size=SIZE, mixed=True
        ),
        processing_class=processor,
        prompter=prompter,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    trainer.save_model(str(folder))
    processor.save_pretrained(folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return folder


def more(output: Path, steps: int) -> Path:
    set_seed(0)
    model = AlproForVideoTextRetrieval.from_pretrained(bundled_model("retrieval"))
    return train(
        model, AlproProcessor.from_pretrained(bundled_model("retrieval")), output / "more" / "match", steps, 0
    )


def all_losses_first(output: Path, steps: int, share: float) -> Path:
    set_seed(0)
    source, folder = bundled_model("retrieval"), output / "all-losses-first"
    processor, first = AlproProcessor.from_pretrained(source), round(share * steps)
    prompter = build_prompter(AlproModel.from_pretrained(source), processor, list(SPRITES), progress=False)
    student = AlproForPreTraining.from_pretrained(source, entities=prompter.config.entities)
    start = train(student, processor, folder / "pretrain", first, 0, prompter)
    set_seed(0)
    model = AlproForVideoTextRetrieval.from_pretrained(start)
    return train(model, processor, folder / "match", steps - first, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/retrain"), help="folder of the run")
    parser.add_argument("--data", type=Path, required=True, help="what render_sprite_world.py wrote")
    parser.add_argument("--splits", nargs="+", default=["test", "test-hard"])
    parser.add_argument("--steps", type=int, default=500, help=f"of {ROWS} clips, of both models (default: 500)")
    parser.add_argument("--share", type=float, default=0.6, help="of them with all losses (default: 0.6)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    models = {
        "bundled": bundled_model,
        "more": lambda _: more(arguments.output, arguments.steps),
        "all losses first": lambda _: all_losses_first(arguments.output, arguments.steps, arguments.share),
    }
    for name, make in models.items():
        model = make("retrieval")
        for split in arguments.splits:
            if split not in results.setdefault(name, {}):
                rows = arguments.data / split
                results[name][split] = measure(rows, split, model, None, list(TABLE), ["retrieval", "choices"])
                path.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)


def print_table(results: dict[str, Any]) -> None:
    for split in next(iter(results.values())):
        print(f"\n`{split}`\n\n| model | {' | '.join([*TABLE.values(), *CHOICES])} |\n|{' --- |' * 6}")
        for name, by_split in results.items():
            found = by_split[split]
            cells = [f"{found['retrieval'][protocol]['t2v_r1']:.1f}" for protocol in TABLE]
            cells += [f"{found['choices'][kind]['vtm']:.1f}" for kind in CHOICES]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
