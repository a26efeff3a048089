"""TODO docstring."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..data.augmentation import OPERATIONS, AlproAugmentation
from ..data.load_rows import read_rows
from ..data.pretraining_collator import AlproPreTrainingCollator
from ..model.pretraining_alpro import AlproPrompterModel
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import SAMPLING_STRATEGIES
from ..training.pseudo_labels import (
    SKIPPED,
    pseudo_label,
    read_skipped,
    summarise,
)
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro pseudo-label` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Let a prompter name what is in a crop of every clip, once, and keep it beside the rows.\n\n"
        "DATA are the rows of pre-training, {video or image, text}: JSON lines, CSV or Parquet, or a folder written\n"
        "by save_to_disk; all of them videos, or all images. Paths are relative to the working directory. A label\n"
        "holds for one crop of one augmented clip, so train with the same augmentation, frames and sizes. Started\n"
        "again, the command goes on where it was interrupted. Rows that cannot be decoded are left out and listed."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro pseudo-label clips.jsonl --prompter my-prompter --output clips-labelled\n"
        "  alpro pseudo-label images.parquet --prompter my-prompter --output images-1 --epoch 1 --image-frames 1\n"
        "  alpro pseudo-label clips.jsonl --prompter my-prompter --output labelled --leave-out horizontal_flip\n\n"
        "then, in Python:\n"
        '  rows = datasets.load_from_disk("clips-labelled")'
    )
    whole = {"type": whole_number(1), "metavar": "N"}
    parser.add_argument("data", type=Path, metavar="DATA", help="a file or a folder of rows")
    parser.add_argument("--prompter", required=True, metavar="DIR", help="folder or Hub id of the prompter")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--split", metavar="NAME", help="split of a data set that has several")
    parser.add_argument(
        "--processor", metavar="DIR", help="folder or Hub id of the processor (default: the prompter's)"
    )
    parser.add_argument(
        "--epoch", type=whole_number(0), default=0, metavar="N", help="whose draws to label (default: 0)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=42, help="of all draws (default: 42)")
    parser.add_argument("--batch-size", default=32, **whole, help="clips encoded at a time (default: 32)")
    parser.add_argument(
        "--workers", type=whole_number(0), default=0, metavar="N", help="processes that decode (default: 0)"
    )
    parser.add_argument(
        "--shard-size", default=1000, **whole, help="rows that an interruption can lose (default: 1000)"
    )
    parser.add_argument("--num-frames", **whole, help="frames of a clip (default: the processor's)")
    parser.add_argument("--image-frames", **whole, help="frames of an image (default: those of a clip)")
    parser.add_argument(
        "--sampling", choices=SAMPLING_STRATEGIES, default="headtail", help="of the frames (default: %(default)s)"
    )
    parser.add_argument("--no-augmentation", action="store_true", help="only resize")
    parser.add_argument(
        "--leave-out",
        nargs="+",
        choices=OPERATIONS,
        default=[],
        metavar="OPERATION",
        help=f"random operations not to use, out of {', '.join(OPERATIONS)}",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro pseudo-label`; 1 with the reason on stderr when it failed or when rows had to be left out."""
    try:
        dataset = read_rows(args.data, args.split)
        prompter: Any = AlproPrompterModel.from_pretrained(args.prompter)
        prompter.to("cuda" if torch.cuda.is_available() else "cpu")
        collator = _collator(args, prompter)
        labelled = pseudo_label(
            dataset,
            prompter,
            collator,
            args.output,
            epoch=args.epoch,
            batch_size=args.batch_size,
            shard_size=args.shard_size,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        print("alpro pseudo-label: interrupted; the same command goes on from there", file=sys.stderr)
        return 130
    except (OSError, ValueError, DatasetsError, StrictDataclassError, SafetensorError) as error:
        print(f"alpro pseudo-label: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    threshold = prompter.config.pem_threshold
    entities = prompter.config.entities or []
    summary = summarise(labelled, entities, threshold)
    print(f"{summary.rows} rows labelled with {len(entities)} entities, written to {args.output}")
    print(f"kept at threshold {threshold:g}: {summary.kept} ({summary.kept / summary.rows:.1%})")
    print(f"mean entropy: {summary.entropy:.3f} of at most {math.log(len(entities)):.3f} nats")
    print("most frequent: " + ", ".join(f"{entity} {count}" for entity, count in summary.top))
    skipped = read_skipped(args.output)
    for row in skipped:
        print(f"skipped: row {row['row']}: {row['reason']}", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} rows skipped, listed in {args.output / SKIPPED}", file=sys.stderr)
    return 1 if skipped else 0


def _collator(args: argparse.Namespace, prompter: AlproPrompterModel) -> AlproPreTrainingCollator:
    processor = AlproProcessor.from_pretrained(args.processor or args.prompter)
    if args.num_frames is not None:
        processor.video_processor.num_frames = args.num_frames
    size = processor.video_processor.size
    video, image = None, None
    if not args.no_augmentation:
        shape = (size["height"], size["width"])
        operations = [operation for operation in OPERATIONS if operation not in args.leave_out]
        video = AlproAugmentation("video", shape, operations=operations)
        image = AlproAugmentation("image", shape, operations=operations)
    return AlproPreTrainingCollator(
        processor,
        video_augmentation=video,
        image_augmentation=image,
        mlm_probability=0,
        patch_size=prompter.config.video_config.patch_size,
        image_frames=args.image_frames,
        train_sampling=args.sampling,
        seed=args.seed,
    )
