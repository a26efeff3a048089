"""Study the pre-training losses on the sprite world: pre-train with some of them, fine-tune, measure, several seeds.

    python scripts/sprites/render.py sprite-world --split test --count 400
    python scripts/sprites/render.py sprite-world --split test-hard --count 200
    python scripts/sprites/study.py study --output runs/study --data sprite-world --seeds 0 1 2
    python scripts/sprites/study.py table --results runs/study/results

A cell of the study is one set of losses with one seed. It pre-trains, then fine-tunes for retrieval and for questions,
and measures both models on the rendered tests. Where VTC was among the losses, it also measures the pre-trained model
zero-shot. The cell "none" only fine-tunes. All cells start from the same image model and language model, which
scripts/sprites/start.py trains. All cells of a seed train on the same clips in the same order.

The teacher of PEM is the bundled retrieval model; --teacher selects another. A teacher that trains as briefly as the
students is hardly better than chance, which scripts/sprites/teacher.py measures. Four more rows run on demand.
`--losses mlm+vtm+pem-young mlm+vtm+whole` tell what PEM owes to an older teacher, and what to its crops.
`--losses mlm+vtm+vtc-uniform mlm+vtm+vtc-warm` draw negatives of VTM that are less hard: some evenly at first, or all
with a higher temperature.

`study` runs the cells without results, seed by seed. You can interrupt it and start it again, later with more seeds.
`table` prints and draws means and standard deviations.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import measure, rounded
from numpy._core.multiarray import _reconstruct, scalar
from start import FRAMES, build_start
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from train import QUESTIONS_PER_CLIP, SIZE, answer_labels, build_processor, fit
from transformers import PreTrainedModel, set_seed

from alpro_hf import (
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
)
from alpro_hf.assets import bundled_model
from alpro_hf.data.collator import AlproCollator, Collated
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.rows import Row
from alpro_hf.sprites.rows import SpriteRows
from alpro_hf.sprites.world import SPRITES
from alpro_hf.training.prompter import build_prompter

# row of the table -> losses of its pre-training
LOSSES = {
    "none": (),
    "mlm+vtm": ("mlm", "vtm"),
    "mlm+vtm+pem": ("mlm", "vtm", "pem"),
    "mlm+vtm+vtc": ("mlm", "vtm", "vtc"),
    "all": ("mlm", "vtm", "vtc", "pem"),
    # controls of PEM, see `CONTROLS`
    "mlm+vtm+pem-young": ("mlm", "vtm", "pem"),
    "mlm+vtm+whole": ("mlm", "vtm", "pem"),
    # VTM beside VTC, see `SAMPLING`
    "mlm+vtm+vtc-uniform": ("mlm", "vtm", "vtc"),
    "mlm+vtm+vtc-warm": ("mlm", "vtm", "vtc"),
}
# Does matching begin to work beside VTC if its negatives are less hard?
# row of the table -> options of its pre-training
SAMPLING = {
    "mlm+vtm+vtc-uniform": {"vtm_uniform_share": 0.5},  # half of the negatives at first, none after half of the steps
    "mlm+vtm+vtc-warm": {"vtm_temperature": 0.2},
}
# Is the gain of PEM that of entities in crops, or that of a teacher that has seen more clips than its student?
# row of the table -> what differs from "mlm+vtm+pem"
CONTROLS = {
    "mlm+vtm+pem-young": "a teacher that trains on as many clips as the student",
    "mlm+vtm+whole": "VTC distilled without crops: teacher and student see the whole clip",
}
TABLE = tuple(losses for losses in LOSSES if losses not in (*CONTROLS, *SAMPLING))  # the rows of the paper's table 1
# stage -> (steps, rows per step, peak learning rate)
STAGES = {
    "prompter": (150, 64, 1e-3),
    "young": (100, 64, 1e-3),
    "pretrain": (100, 64, 1e-3),
    "retrieval": (30, 64, 5e-4),
    "qa": (40, 128, 8e-4),
}
SEED_OFFSETS = {"prompter": 10, "young": 50, "pretrain": 20, "retrieval": 30, "qa": 40}  # each stage draws other clips
# `vtc` and `rerank` cannot show what VTM learned where VTC did not; `reference` matches all pairs
STUDY_PROTOCOLS = ["vtc", "rerank", "reference"]
ONE_SPRITE = 0.4  # the first 40 % of the steps show clips of a single sprite
# entries of the log that go to the results
LOGGED = ("loss_vtc", "loss_vtm", "vtm_accuracy", "loss_mlm", "mlm_accuracy")
LOGGED += ("loss_pem", "pem_kept", "pem_entropy", "pem_agreement", "temperature", "accuracy", "train_runtime")


class WholeClips(AlproPreTrainingCollator):
    """Draws no crops: the box of PEM is the whole clip, for the teacher and for the student."""

    def collate(self, rows: Sequence[Row]) -> Collated:
        collated = super().collate(rows)
        if "crop_mask" in collated.batch:
            collated.batch["crop_mask"] = torch.ones_like(collated.batch["crop_mask"])
        return collated


def rows_of(stage: str, output: Path, seed: int, scale: float) -> Dataset:
    """The rows of a stage. The first cell of a seed renders them; the others load the file."""
    steps, rows_a_step, _ = STAGES[stage]
    length = max(1, round(steps * scale)) * rows_a_step
    path = output / f"seed{seed}" / f"rows-{stage}-{length}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = SpriteRows(
            "qa" if stage == "qa" else "retrieval",
            length,
            seed=100 * seed + SEED_OFFSETS[stage],
            num_frames=FRAMES,
            size=SIZE,
            curriculum=[(round(ONE_SPRITE * length), ("one",))],
            mixed=stage != "qa",
            questions_per_clip=QUESTIONS_PER_CLIP,
        )
        # another process of the study may look for the same file: it sees a whole one or none
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save([rows[i] for i in tqdm(range(length), desc=f"clips of {stage}", unit="row")], partial)
        os.replace(partial, path)
    # rows hold NumPy arrays, whose classes a restricted load has to be told
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
    collator_class: type[AlproPreTrainingCollator] = AlproPreTrainingCollator,
    **options: Any,
) -> dict[str, float]:
    """Train and save, unless `folder` holds the model. Returns the last value of each entry of `LOGGED`.

    `options` are further arguments of the training.
    """
    if not (folder / "model.safetensors").is_file():
        steps, batch_size, learning_rate = STAGES[stage]
        steps = max(1, round(steps * scale))
        if stage == "pretrain":
            collator: AlproCollator = collator_class(
                processor, pem="pem" in losses, patch_size=model.config.video_config.patch_size, seed=seed
            )
        else:
            label2id = model.config.label2id if stage == "qa" else None
            collator = AlproCollator(processor, task="qa" if stage == "qa" else "retrieval", label2id=label2id)
        weights = {f"{loss}_weight": float(loss in losses) for loss in ("vtc", "vtm", "mlm", "pem")}
        fit(
            model,
            processor,
            folder,
            rows_of(stage, output, seed, scale),
            collator,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(100, steps // 10),
            seed=seed,
            prompter=prompter,
            logging_steps=20,
            save_steps=100,
            save_total_limit=1,
            **(weights if losses else {}),
            **options,
        )
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {name: round(entry[name], 4) for entry in log for name in LOGGED if name in entry}


def teach(output: Path, seed: int, arguments: argparse.Namespace, teacher: str) -> AlproPrompterModel:
    """The prompter of the cells with PEM: the bundled model, a folder, or one that this seed trains.

    That is `own`, or `young`, which trains on as many clips as the student.
    """
    entities = list(SPRITES[: arguments.entities])
    source = bundled_model("retrieval") if teacher == "bundled" else teacher
    if teacher in ("own", "young"):
        set_seed(seed)
        stage = "prompter" if teacher == "own" else teacher
        source = output / f"seed{seed}" / stage
        model = AlproModel.from_pretrained(output / "start")
        processor = build_processor(output)
        train(stage, model, processor, output, source, seed, arguments.scale, ("vtc",))
    towers, processor = AlproModel.from_pretrained(source), AlproProcessor.from_pretrained(source)
    return build_prompter(towers, processor, entities, progress=False)


def cell(losses: str, seed: int, arguments: argparse.Namespace) -> None:
    """Run one row of the table for one seed, and write its results, unless the file exists."""
    output, scale = arguments.output, arguments.scale
    results = output / "results" / f"seed{seed}-{losses.replace('+', '-')}.json"
    if results.is_file():
        print(f"{results} exists; skipped")
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
            teacher = "young" if losses == "mlm+vtm+pem-young" else arguments.teacher
            prompter = teach(output, seed, arguments, teacher)
        set_seed(seed)
        student = AlproForPreTraining.from_pretrained(
            start, entities=None if prompter is None else prompter.config.entities
        )
        start = folder / "pretrain"
        collator_class = WholeClips if losses == "mlm+vtm+whole" else AlproPreTrainingCollator
        stages["pretrain"] = train(
            *("pretrain", student, processor, output, start, seed, scale, LOSSES[losses], prompter, collator_class),
            **SAMPLING.get(losses, {}),
        )
    heads: dict[str, Any] = {"retrieval": AlproForVideoTextRetrieval, "qa": AlproForVideoQuestionAnswering}
    for stage, head in heads.items():
        if stage not in arguments.tasks:
            continue
        set_seed(seed)
        model = head.from_pretrained(start, **(answer_labels() if stage == "qa" else {}))
        stages[stage] = train(stage, model, processor, output, folder / stage, seed, scale)
    everything: dict[str, Any] = {"fine-tuned": {}, "zero-shot": {}}
    for split in arguments.splits:
        rows = arguments.data / split
        everything["fine-tuned"][split] = measure(
            rows,
            split,
            folder / "retrieval",
            folder / "qa",
            arguments.protocols,
            ["retrieval", "choices", *(["qa"] if "qa" in arguments.tasks else [])],
        )
        if "vtc" in LOSSES[losses] and split == "test":
            everything["zero-shot"][split] = measure(rows, split, start, None, ["vtc"], ["retrieval"])
    head_of_file = {"losses": losses, "seed": seed, "scale": scale, "seconds": round(time.time() - started)}
    taught = {"teacher": teacher} if "pem" in LOSSES[losses] else {}
    everything = rounded({**head_of_file, **taught, "training": stages, **everything})
    results.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"{results}: {everything['seconds']} s")


TABLE_COLUMNS = ("R@1", "R@10", "median rank", "R@10 VTM", "opposite", "swapped", "QA", "zero-shot R@10")
# in the table if results have them; the accuracy is that at the end of pre-training
REFERENCE_COLUMNS = ("R@1 reference", "R@10 reference", "VTM accuracy")


def numbers_of(result: dict[str, Any], split: str) -> dict[str, float]:
    """The columns of the table for one result. Retrieval is text to video by similarity; R@10 VTM adds re-ranking.

    "reference" matches all pairs, as in the paper.

    The columns of the choices hold the better of both scores.
    """
    fine, zero = result["fine-tuned"][split], result.get("zero-shot", {}).get(split)
    columns = {
        "R@1": fine["retrieval"]["vtc"]["t2v_r1"],
        "R@10": fine["retrieval"]["vtc"]["t2v_r10"],
        "median rank": fine["retrieval"]["vtc"]["t2v_median_rank"],
        "R@10 VTM": fine["retrieval"]["rerank"]["t2v_r10"],
        "opposite": max(fine["choices"]["opposite"][score] for score in ("vtc", "vtm")),
        "swapped": max(fine["choices"]["swapped"][score] for score in ("vtc", "vtm")),
    }
    if "qa" in fine:
        columns["QA"] = fine["qa"]["accuracy"]
    if "reference" in fine["retrieval"]:
        columns |= {f"R@{k} reference": fine["retrieval"]["reference"][f"t2v_r{k}"] for k in (1, 10)}
        if "pretrain" in result.get("training", {}):
            columns["VTM accuracy"] = 100 * result["training"]["pretrain"]["vtm_accuracy"]
    if zero:
        columns["zero-shot R@10"] = zero["retrieval"]["vtc"]["t2v_r10"]
    return columns


def table(folder: Path, splits: list[str]) -> None:
    """Print means and standard deviations over the seeds as Markdown, and draw them to `folder`/table.png."""
    found: dict[str, list[dict[str, Any]]] = {losses: [] for losses in LOSSES}
    for path in sorted(folder.glob("seed*.json")):
        result = json.loads(path.read_text())
        found[result["losses"]].append(result)
    if not any(found.values()):
        raise SystemExit(
            f"{folder} holds no results (seed*.json). Run `study` first, or name another folder with --results."
        )
    everything = [result for results in found.values() for result in results]
    matched = any("reference" in one["fine-tuned"][splits[0]]["retrieval"] for one in everything)
    asked = any("qa" in one["fine-tuned"][splits[0]] for one in everything)
    columns = tuple(name for name in TABLE_COLUMNS if asked or name != "QA") + REFERENCE_COLUMNS * matched
    means: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for split in splits:
        print(f"\n`{split}`\n")
        print("| pre-training | seeds | " + " | ".join(columns) + " |")
        print("| --- |" + " --- |" * (len(columns) + 1))
        means[split] = {}
        for losses, results in found.items():
            if not results:
                continue
            rows = [numbers_of(result, split) for result in results]
            spread = {
                name: (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                for name in columns
                if (values := [row[name] for row in rows if name in row])
            }
            means[split][losses] = spread
            several = len(rows) > 1
            cells = [
                f"{spread[n][0]:.1f}" + f" ± {spread[n][1]:.1f}" * several if n in spread else "" for n in columns
            ]
            print(f"| {losses} | {len(rows)} | " + " | ".join(cells) + " |")
    draw(means, folder / "table.png")


def draw(means: dict[str, dict[str, dict[str, tuple[float, float]]]], path: Path) -> None:
    """Bar charts of the main columns, with standard deviations, a row of panels per split."""
    from matplotlib.figure import Figure

    found = {name for by_losses in means.values() for spread in by_losses.values() for name in spread}
    names = [n for n in ("R@10", "R@10 reference", "median rank", "QA", "zero-shot R@10") if n in found]
    figure = Figure(figsize=(3.2 * len(names), 3 * len(means)), layout="constrained")
    axes = figure.subplots(len(means), len(names), squeeze=False)
    for row, (split, by_losses) in zip(axes, means.items(), strict=True):
        for axis, name in zip(row, names, strict=True):
            shown = {losses: spread[name] for losses, spread in by_losses.items() if name in spread}
            if not shown:  # zero-shot retrieval is measured on `test` alone
                axis.set_axis_off()
                continue
            axis.bar(list(shown), [mean for mean, _ in shown.values()], yerr=[std for _, std in shown.values()])
            axis.set_title(f"{name}, {split}")
            axis.set_ylabel("rank" if "rank" in name else "%")
            axis.set_xticks(range(len(shown)), list(shown), rotation=30, ha="right")
    figure.savefig(path, dpi=80)
    print(f"\nwrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["study", "table"], help="run cells, or print the table of their results")
    parser.add_argument("--output", type=Path, help="folder of the study")
    parser.add_argument("--data", type=Path, help="folder that holds the rendered splits")
    parser.add_argument("--results", type=Path, help="folder of results for `table` (default: OUTPUT/results)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one cell each (default: 0 1 2)")
    parser.add_argument(
        "--losses",
        nargs="+",
        choices=LOSSES,
        default=list(TABLE),
        help="rows to run; those with pem-young and whole are controls of PEM, and those with uniform and warm draw "
        "other negatives (default: the rows of the paper's table)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=["retrieval", "qa"],
        default=["retrieval", "qa"],
        help="tasks to fine-tune for; the table needs retrieval (default: both)",
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=STUDY_PROTOCOLS,
        default=STUDY_PROTOCOLS,
        help="of retrieval; the table needs vtc and rerank (default: all)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["test", "test-hard"],
        help="folders of --data to measure on (default: test test-hard)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for the steps of all stages (default: %(default)s)"
    )
    parser.add_argument(
        "--teacher",
        default="bundled",
        help="teacher of PEM: bundled (the retrieval model of the package), own (one per seed, trained with VTC for "
        "about as many steps as the students), or the folder of a model (default: %(default)s)",
    )
    parser.add_argument(
        "--entities", type=int, default=160, help="number of sprites that the prompter names (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.output is None and (arguments.what == "study" or arguments.results is None):
        parser.error("--output is missing: name the folder of the study")
    if arguments.what == "table":
        table(arguments.results or arguments.output / "results", arguments.splits)
        return
    if arguments.data is None:
        parser.error("--data is missing: name the folder of the rendered tests, see render.py")
    torch.set_num_threads(arguments.threads)
    for seed in arguments.seeds:
        for losses in arguments.losses:
            cell(losses, seed, arguments)


if __name__ == "__main__":
    main()
