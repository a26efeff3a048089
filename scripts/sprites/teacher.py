"""Measure the teacher of PEM: accuracy of its pseudo-labels on crops of sprite clips, whose contents are known.

    python scripts/sprites/teacher.py --output teacher.json
    python scripts/sprites/teacher.py --teachers bundled runs/study/seed0/prompter --output teacher.json

A teacher is a model trained with VTC, with prompts of the sprites' names. "bundled" is the retrieval model of the
package. Clips are new draws of combinations that training shows. Boxes are drawn as in pre-training: 30 to 50 % of the
area, on the grid of patches. The teacher sees the crop on black.

A crop "holds" a sprite when at least half of the sprite is inside the box, averaged over the frames. Accuracy counts
crops that hold exactly one sprite, if the teacher has a name for it. The kept fraction counts all crops.

One setting varies at a time:
  templates     one of the paper, all 12 of the paper, one caption for each of 12 actions, or the 24 of both
  entities      40, 80 or 160; accuracy on crops whose sprite is among the first 40
  frames        1, 2, 4 or 8
  threshold     least probability that PEM keeps
  temperature   of the softmax
  calibrated    12 templates, with the lowest temperature at which 5 % of other crops without a sprite are kept: the
                prompter that is bundled
The table also has accuracy by the visible share of a lone sprite, and accuracy on whole clips of one sprite. "kept,
none held" is the share of crops without any sprite that PEM would keep.
"""

import argparse
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from crops import CAPTIONS, HELD, Crops, draw_crops, embed, prompter_of
from measure import rounded

from alpro_hf import AlproModel, AlproProcessor, AlproPrompterModel
from alpro_hf.assets import bundled_model
from alpro_hf.sprites.world import SPRITES
from alpro_hf.training.prompter import VIDEO_TEMPLATES, build_prompter

# SPRITES is sorted by category: in its order, the first 40 would be animals
ORDER = tuple(random.Random(0).sample(SPRITES, len(SPRITES)))
ENTITY_COUNTS, FRAME_COUNTS = (40, 80, 160), (1, 2, 4, 8)
TEMPLATES = {
    "1": VIDEO_TEMPLATES[1:2],
    "12": VIDEO_TEMPLATES,
    "12 captions": CAPTIONS,
    "both": VIDEO_TEMPLATES + CAPTIONS,
}
SOFTER = (1, 2, 4, 8)  # factors of the temperature
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SEEN = 0.05  # a smaller share counts as not visible
SHARES = (SEEN, 0.25, 0.5, 0.75, 0.95, 1.01)


def labels_of(prompter: AlproPrompterModel, embeds: torch.Tensor) -> torch.Tensor:
    """`AlproPrompterModel.pseudo_labels` from embeddings of clips: probabilities, float32 (n, entities)."""
    return (embeds @ prompter.video_prompt_embeds.t() / prompter.label_temperature()).softmax(dim=1).detach()


def score(labels: torch.Tensor, entities: Sequence[str], held: Sequence[str | None], threshold: float) -> dict:
    """Percentages: accuracy over crops that hold one sprite with a name in `entities`, kept share over all crops."""
    known = [index for index, name in enumerate(held) if name in entities]
    truth = torch.tensor([entities.index(held[index]) for index in known])
    best = labels[known].topk(5, dim=1).indices
    hits = best[:, 0] == truth
    sure = labels.max(dim=1).values >= threshold
    kept = sure[known]
    return {
        "crops": len(known),
        "top1": 100 * float(hits.float().mean()),
        "top5": 100 * float((best == truth[:, None]).any(dim=1).float().mean()),
        "kept": 100 * float(sure.float().mean()),
        "kept_known": 100 * float(kept.float().mean()),
        "top1_kept": 100 * float(hits[kept].float().mean()) if kept.any() else None,
        "entropy": float(torch.special.entr(labels).sum(dim=1).mean()),
    }


def study(teacher: str, crops: Crops) -> dict[str, Any]:
    """All numbers of one teacher: what varied -> its value -> scores."""
    source = bundled_model("retrieval") if teacher == "bundled" else Path(teacher)
    model, processor = AlproModel.from_pretrained(source).eval(), AlproProcessor.from_pretrained(source)
    native, threshold = model.config.video_config.num_frames, model.config.pem_threshold

    def prompter(count: int = len(ORDER), templates: Sequence[str] = VIDEO_TEMPLATES) -> AlproPrompterModel:
        return build_prompter(model, processor, ORDER[:count], video_templates=templates, progress=False)

    held = crops.held()
    # the same crops for all numbers of entities, or the comparison would be of other sprites
    among_first = [name if name in ORDER[: ENTITY_COUNTS[0]] else None for name in held]
    full = prompter()
    embeds = {frames: embed(model, processor, crops, frames) for frames in FRAME_COUNTS}
    usual = labels_of(full, embeds[native])
    results: dict[str, Any] = {
        "frames": {str(f): score(labels_of(full, embeds[f]), ORDER, held, threshold) for f in FRAME_COUNTS},
        "entities": {
            str(count): score(labels_of(prompter(count), embeds[native]), ORDER[:count], among_first, threshold)
            for count in ENTITY_COUNTS
        },
        "templates": {
            name: score(labels_of(prompter(templates=some), embeds[native]), ORDER, held, threshold)
            for name, some in TEMPLATES.items()
        },
        "threshold": {str(least): score(usual, ORDER, held, least) for least in THRESHOLDS},
    }
    alone = [index for index, scene in enumerate(crops.scenes) if len(scene.actors) == 1]
    one = Crops([crops.scenes[i] for i in alone], crops.boxes[alone], [crops.inside[i] for i in alone])
    names = [scene.actors[0].sprite for scene in one.scenes]
    whole = embed(model, processor, one, native, whole=True)
    results["whole clips of one sprite"] = {
        name: score(labels_of(prompter(templates=some), whole), ORDER, names, threshold)
        for name, some in TEMPLATES.items()
    }
    results["share inside"] = {}
    seen = [[(share, name) for name, share in crop.items() if share > SEEN] for crop in crops.inside]
    for low, high in pairwise(SHARES):
        some = [i for i, sprites in enumerate(seen) if len(sprites) == 1 and low < sprites[0][0] <= high]
        names = [seen[i][0][1] for i in some]
        results["share inside"][f"{low:g} to {min(high, 1):g}"] = (
            score(usual[some], ORDER, names, threshold) if some else {}
        )
    # training keeps crops without a sprite, too, if the teacher is sure of one
    empty = crops.empty()
    temperature = model.get_temperature().item()
    fitted = prompter_of(model, processor)
    labels = labels_of(fitted, embeds[native])
    results["calibrated"] = {
        f"{fitted.config.pem_temperature:.4f}": {
            **score(labels, fitted.config.entities or (), held, threshold),
            "kept_empty": 100 * float((labels[empty].max(dim=1).values >= threshold).float().mean()),
        }
    }
    results["temperature"] = {}
    for factor in SOFTER:
        # dividing the logarithms is the same as a higher temperature: the normalisation cancels
        softer = (usual.log() / factor).softmax(dim=1)
        sure = softer.max(dim=1).values >= threshold
        results["temperature"][f"{temperature * factor:.3f}"] = {
            **score(softer, ORDER, held, threshold),
            "kept_empty": 100 * float(sure[empty].float().mean()),
        }
    return {"native_frames": native, "least_kept": threshold, **results}


# settings in the order of the table; the last two have no scale to plot
VARIED = ("frames", "entities", "templates", "threshold", "temperature", "share inside")
TABLED = (*VARIED, "calibrated", "whole clips of one sprite")


def show(results: dict[str, Any]) -> None:
    """Print the table of all teachers as Markdown."""
    print("\n| teacher | varied | | crops | top-1 | top-5 | kept | top-1 of those kept | kept, none held |")
    print("| --- |" + " --- |" * 8)
    for teacher, result in results["teachers"].items():
        for varied in TABLED:
            for value, numbers in result[varied].items():
                if not numbers:
                    continue
                kept = "" if numbers["top1_kept"] is None else f"{numbers['top1_kept']:.1f}"
                cells = f"{numbers['crops']} | {numbers['top1']:.1f} | {numbers['top5']:.1f} | {numbers['kept']:.1f}"
                empty = f"{numbers['kept_empty']:.1f}" if "kept_empty" in numbers else ""
                print(f"| {teacher} | {varied} | {value} | {cells} | {kept} | {empty} |")


def enough(numbers: dict[str, Any]) -> bool:
    """Whether PEM kept at least ten labels of known sprites, so that their accuracy is worth a point in the plot."""
    return numbers["top1_kept"] is not None and numbers["kept_known"] * numbers["crops"] >= 1000


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel per teacher and setting, in percent."""
    from matplotlib.figure import Figure

    panels = VARIED
    figure = Figure(figsize=(2.6 * len(panels), 2.9 * len(results["teachers"])), layout="constrained")
    axes = figure.subplots(len(results["teachers"]), len(panels), squeeze=False, sharey=True)
    for row, (teacher, result) in zip(axes, results["teachers"].items(), strict=True):
        for axis, varied in zip(row, panels, strict=True):
            numbers = {value: one for value, one in result[varied].items() if one}
            for key, label in (("top1", "top-1"), ("top5", "top-5"), ("kept", "kept"), ("top1_kept", "top-1 of kept")):
                shown = [one[key] if key != "top1_kept" or enough(one) else None for one in numbers.values()]
                axis.plot(list(numbers), shown, marker="o", markersize=3, label=label)
            axis.set_title(f"{teacher}: {varied}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.tick_params(axis="x", rotation=30 if max(map(len, numbers)) > 5 else 0)
            axis.set_ylim(-3, 103)
        row[0].set_ylabel("%")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teachers",
        nargs="+",
        default=["bundled"],
        help="folders of models, or `bundled`, the retrieval model of the package (default: bundled)",
    )
    parser.add_argument("--names", nargs="+", help="their names in the table (default: as in --teachers)")
    parser.add_argument("--clips", type=int, default=600, help="clips, each with one crop (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of clips and boxes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; the plot gets the same name, .png")
    arguments = parser.parse_args()
    names = arguments.names or arguments.teachers
    if len(names) != len(arguments.teachers):
        parser.error(f"--names has {len(names)} names for {len(arguments.teachers)} teachers; give one name for each")
    torch.set_num_threads(arguments.threads)
    crops = draw_crops(arguments.clips, arguments.seed)
    held = [sum(share >= HELD for share in crop.values()) for crop in crops.inside]
    results = {
        "clips": arguments.clips,
        "crops by sprites held": {str(n): 100 * held.count(n) / len(held) for n in sorted(set(held))},
        "teachers": {name: study(one, crops) for name, one in zip(names, arguments.teachers, strict=True)},
    }
    arguments.output.write_text(json.dumps(rounded(results), indent=1) + "\n")
    shares = rounded(results["crops by sprites held"])
    print(f"share of crops in percent, by the number of sprites that they hold: {shares}")
    show(results)
    draw(results, arguments.output.with_suffix(".png"))
    print(f"\nwrote {arguments.output} and {arguments.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
