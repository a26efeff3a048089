"""`alpro pseudo-label`: labels of PEM, precomputed by the prompter."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.operations import OPERATIONS, RANDAUGMENTS
from ..loading import download_model, download_settings, find_model
from ..model.decoding_types import SAMPLING_STRATEGIES
from ..trust import printable
from .options import whole_number

if TYPE_CHECKING:
    from ..data.pretraining_collator import AlproPreTrainingCollator
    from ..model.pretraining_alpro import AlproPrompterModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro pseudo-label` to a parser."""
    parser.description = (
        "Let a prompter label a crop of every clip with entities, and store the labels with the rows.\n\n"
        "DATA are the rows of pre-training, {video or image, text}: JSON lines, CSV or Parquet, or a folder written\n"
        "by save_to_disk; all of them videos, or all images. Paths are relative to the working directory. A label\n"
        "holds for one crop of one augmented clip, so train with the same augmentation, frames and sizes. A\n"
        "training that repeats the rows needs --epochs, or it repeats frames and augmentation, too. Started\n"
        "again, the command continues where it was interrupted. Rows that cannot be decoded are left out and listed."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro pseudo-label clips.jsonl --prompter my-prompter --output clips-labelled\n"
        "  alpro pseudo-label clips.jsonl --prompter my-prompter --output clips-labelled --epochs 5\n"
        "  alpro pseudo-label images.parquet --prompter my-prompter --output images-1 --epoch 1 --image-frames 1\n"
        "  alpro pseudo-label clips.jsonl --prompter my-prompter --output labelled --leave-out horizontal_flip\n\n"
        "then:\n"
        "  alpro train --recipe pretrain --data clips-labelled --entities entities.txt ...\n\n"
        "or in Python:\n"
        '  rows = datasets.load_from_disk("clips-labelled")'
    )
    whole: Any = {"type": whole_number(1), "metavar": "N"}
    parser.add_argument("data", type=Path, metavar="DATA", help="a file or a folder of rows")
    parser.add_argument("--prompter", required=True, metavar="DIR", help="folder or Hub id of the prompter")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--split", metavar="NAME", help="split of DATA, if it has several")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="ROWS",
        help="first fit the temperature of the prompter to crops of these rows, which it was not trained on; without, "
        "it is that of whole clips, and labels are surer than they are right",
    )
    parser.add_argument(
        "--calibrated", type=Path, metavar="DIR", help="with --calibrate: also save the calibrated prompter here"
    )
    parser.add_argument(
        "--processor", metavar="DIR", help="folder or Hub id of the processor (default: the prompter's)"
    )
    parser.add_argument(
        "--epoch", type=whole_number(0), default=0, metavar="N", help="epoch whose draws are labelled (default: 0)"
    )
    parser.add_argument(
        "--epochs",
        default=1,
        **whole,
        help="label the draws of so many epochs; the rows are then stored once for each, and a training on them sees "
        "other frames, crops and augmentation each time (default: 1)",
    )
    parser.add_argument("--seed", type=whole_number(0), default=42, help="seed of all draws (default: 42)")
    parser.add_argument("--batch-size", default=32, **whole, help="clips encoded at a time (default: 32)")
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="processes that decode (default: 0, this one)",
    )
    parser.add_argument(
        "--shard-size", default=1000, **whole, help="rows that an interruption can lose (default: 1000)"
    )
    parser.add_argument("--num-frames", **whole, help="frames of a clip (default: the processor's)")
    parser.add_argument("--image-frames", **whole, help="frames of an image (default: as for a clip)")
    parser.add_argument(
        "--sampling",
        choices=SAMPLING_STRATEGIES,
        default="headtail",
        help="how frames are chosen (default: %(default)s)",
    )
    parser.add_argument("--no-augmentation", action="store_true", help="resize clips and change nothing else")
    parser.add_argument(
        "--leave-out",
        nargs="+",
        choices=OPERATIONS,
        default=[],
        metavar="OPERATION",
        help=f"random operations not to use, any of {', '.join(OPERATIONS)}",
    )
    parser.add_argument(
        "--randaugment",
        choices=RANDAUGMENTS,
        default="released",
        help="ranges and draws of the random operations, as in alpro train (default: %(default)s)",
    )
    parser.set_defaults(
        expected_errors=_expected_errors, when_stopped="the same command continues with the first missing shard"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro pseudo-label`; 1 also when rows had to be left out."""
    import torch

    from ..data.load_rows import read_rows
    from ..model.pretraining_alpro import AlproPrompterModel
    from ..training.calibration import calibrate
    from ..training.pseudo_labels import SKIPPED, pseudo_label, read_skipped, summarise

    if args.calibrated is not None and args.calibrate is None:
        raise ValueError("--calibrated saves what --calibrate ROWS has fitted; give both.")
    source = find_model(args.prompter)  # a wrong name is reported before the rows are read
    dataset = read_rows(args.data, args.split)
    prompter: Any = AlproPrompterModel.from_pretrained(download_model(source), trust_remote_code=False)
    prompter.to("cuda" if torch.cuda.is_available() else "cpu")
    collator = _collator(args, prompter)
    if args.calibrate is not None:
        before = prompter.label_temperature().item()
        held_out = read_rows(args.calibrate)
        after = calibrate(prompter, held_out, collator, batch_size=args.batch_size)
        print(printable(f"temperature: {before:.4f} -> {after:.4f}, from {len(held_out)} rows of {args.calibrate}"))
        if args.calibrated is not None:
            prompter.save_pretrained(args.calibrated)
            collator.processor.save_pretrained(args.calibrated)
    labelled = pseudo_label(
        dataset,
        prompter,
        collator,
        args.output,
        epoch=args.epoch,
        epochs=args.epochs,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        workers=args.workers,
    )
    threshold = prompter.config.pem_threshold
    entities = prompter.config.entities or []
    summary = summarise(labelled, entities, threshold)
    print(printable(f"{summary.rows} rows labelled with {len(entities)} entities, written to {args.output}"))
    print(f"kept at threshold {threshold:g}: {summary.kept} ({summary.kept / summary.rows:.1%})")
    print(f"mean entropy: {summary.entropy:.3f} of at most {math.log(len(entities)):.3f} nats")
    print(printable("most frequent: " + ", ".join(f"{entity} {count}" for entity, count in summary.top)))
    skipped = read_skipped(args.output)
    for row in skipped:
        print(printable(f"skipped: row {row['row']}: {row['reason']}"), file=sys.stderr)
    if skipped:
        print(printable(f"{len(skipped)} rows skipped, listed in {args.output / SKIPPED}"), file=sys.stderr)
    return 1 if skipped else 0


def _collator(args: argparse.Namespace, prompter: "AlproPrompterModel") -> "AlproPreTrainingCollator":
    from ..data.augmentation import AlproAugmentation
    from ..data.pretraining_collator import AlproPreTrainingCollator
    from ..model.processing_alpro import AlproProcessor

    source = download_settings(find_model(args.processor or args.prompter, needs=None))
    processor = AlproProcessor.from_pretrained(source, trust_remote_code=False)
    if args.num_frames is not None:
        processor.video_processor.num_frames = args.num_frames
    size = processor.video_processor.size
    video, image = None, None
    if not args.no_augmentation:
        shape = (size["height"], size["width"])
        operations = [operation for operation in OPERATIONS if operation not in args.leave_out]
        video = AlproAugmentation("video", shape, operations=operations, randaugment=args.randaugment)
        image = AlproAugmentation("image", shape, operations=operations, randaugment=args.randaugment)
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


def _expected_errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError

    return ValueError, DatasetsError
