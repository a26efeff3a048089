"""Train the bundled retrieval model further, with and without pre-training on all losses, and compare.

    python scripts/sprites/render.py sprite-world --split test test-hard
    python scripts/sprites/retrain.py --output runs/retrain --data sprite-world

Two models continue from the bundled weights on the same number of new clips. "more" trains with VTC and VTM alone.
"all losses first" begins with all four losses and ends with VTC and VTM. Its teacher of PEM is a prompter built from
the bundled model. The rendered tests measure both models and the bundled one.

An interrupted run continues when you start it again: it keeps finished stages and results. `results.json` holds every
number. Each model is in `OUTPUT/NAME/match`, ready for `from_pretrained`. To build its prompter, call
`alpro_hf.training.prompter.build_prompter`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measure import measure
from train import FRAMES, SIZE, fit
from transformers import PreTrainedModel, set_seed

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
)
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import SPRITES
from alpro_hf.training.prompter import build_prompter

BATCH_SIZE, LEARNING_RATE = 96, 3e-4
SEED_OFFSET = 9000  # no stage of the bundled models used seeds from here on, so that all clips are new
TITLES = {"vtc": "R@1 by similarity", "rerank": "R@1 with matching"}  # protocol -> column of the table
CHOICES = ("opposite", "swapped", "reversed")


def train(
    model: PreTrainedModel,
    processor: AlproProcessor,
    folder: Path,
    steps: int,
    seed: int,
    prompter: AlproPrompterModel | None = None,
) -> Path:
    """Train and save, unless `folder` holds the model: all four losses with a prompter, else VTC and VTM."""
    if (folder / "model.safetensors").is_file():
        return folder
    collator: AlproCollator = AlproCollator(processor)
    if prompter is not None:
        collator = AlproPreTrainingCollator(processor, patch_size=model.config.video_config.patch_size, seed=seed)
    fit(
        model,
        processor,
        folder,
        SpriteRows("retrieval", steps * BATCH_SIZE, seed=SEED_OFFSET + seed, num_frames=FRAMES, size=SIZE, mixed=True),
        collator,
        steps=steps,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup_steps=min(50, steps // 10),
        seed=seed,
        prompter=prompter,
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        logging_steps=20,
        save_steps=50,
        save_total_limit=1,
        **({"vtc_weight": 1.0, "vtm_weight": 1.0} if prompter is None else {}),
    )
    return folder


def more(output: Path, steps: int) -> Path:
    """The folder of the bundled model, trained further with VTC and VTM."""
    set_seed(0)
    model = AlproForVideoTextRetrieval.from_pretrained(bundled_model("retrieval"))
    return train(
        model, AlproProcessor.from_pretrained(bundled_model("retrieval")), output / "more" / "match", steps, 0
    )


def all_losses_first(output: Path, steps: int, share: float) -> Path:
    """The folder of the model that spends `share` of the steps on all losses and the rest on VTC and VTM."""
    set_seed(0)
    source, folder = bundled_model("retrieval"), output / "all-losses-first"
    processor, first = AlproProcessor.from_pretrained(source), round(share * steps)
    prompter = build_prompter(AlproModel.from_pretrained(source), processor, list(SPRITES), progress=False)
    student = AlproForPreTraining.from_pretrained(source, entities=prompter.config.entities)
    start = train(student, processor, folder / "pretrain", first, 0, prompter)
    set_seed(0)
    model = AlproForVideoTextRetrieval.from_pretrained(start)
    # another seed than the first stage, whose clips would come again otherwise
    return train(model, processor, folder / "match", steps - first, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/retrain"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the rendered tests, see render.py")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["test", "test-hard"],
        help="folders of --data to measure on (default: test test-hard)",
    )
    parser.add_argument(
        "--steps", type=int, default=500, help=f"steps of {BATCH_SIZE} clips for each model (default: 500)"
    )
    parser.add_argument("--share", type=float, default=0.6, help="share of the steps with all losses (default: 0.6)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
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
                results[name][split] = measure(rows, split, model, None, list(TITLES), ["retrieval", "choices"])
                # after each split, so that an interrupted run loses one measurement at most
                path.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)


def print_table(results: dict[str, Any]) -> None:
    """Print one Markdown table per split: R@1 by both protocols, then the choices by matching, all in percent."""
    for split in next(iter(results.values())):
        print(f"\n`{split}`\n\n| model | {' | '.join([*TITLES.values(), *CHOICES])} |\n|{' --- |' * 6}")
        for name, by_split in results.items():
            found = by_split[split]
            cells = [f"{found['retrieval'][protocol]['t2v_r1']:.1f}" for protocol in TITLES]
            cells += [f"{found['choices'][kind]['vtm']:.1f}" for kind in CHOICES]
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
