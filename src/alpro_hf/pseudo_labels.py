"""Pseudo-labels of prompting entity modeling, made once and kept beside the rows: `alpro pseudo-label`.

The teacher of PEM is frozen, so what it says about a crop need not be computed again in each training. A label holds
for one crop of one augmented clip; the draw (seed, epoch, index) that leads to it is kept with it, and
`AlproPreTrainingCollator` repeats that draw when it meets a row with labels.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data.augmentation import OPERATIONS, AlproAugmentation
from .data.collator import Collated, NumberedRows, Row
from .data.pretraining import KINDS, AlproPreTrainingCollator
from .data.sources import _undecoded
from .index_files import _write_whole, model_fingerprint
from .loss_alpro import crop_on_black
from .pretraining_alpro import AlproPrompterModel
from .processing_alpro import AlproProcessor
from .video_processing_alpro import SAMPLING_STRATEGIES

MANIFEST = "pseudo_labels.json"
SKIPPED = "skipped.jsonl"
COLUMNS = ("pem_targets", "pem_seed", "pem_epoch", "pem_index")
FORMAT = 1
_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_WRITTEN_AT_ONCE = 100  # rows


class PseudoLabelError(ValueError):
    """Rows cannot be labelled, or not into this folder; the message says what to do."""


def pseudo_label(
    dataset: Dataset,
    prompter: AlproPrompterModel,
    collator: AlproPreTrainingCollator,
    output: str | Path,
    *,
    epoch: int = 0,
    batch_size: int = 32,
    shard_size: int = 1000,
    workers: int = 0,
    progress: bool = True,
) -> Dataset:
    """Label the crop of every row and write rows and labels to a folder for `datasets.load_from_disk`.

    Columns added (or replaced): `pem_targets`, float16 (entities), the teacher's probabilities; `pem_seed`,
    `pem_epoch`, `pem_index`, the draw of frames, augmentation and box for which they hold; `pem_index` is the number
    of the row in `dataset`.

    Rows are labelled shard by shard; a shard is written whole or not at all. The same call again goes on with the
    first shard that is missing, and no more than a shard of labels is in memory. Rows whose clip or image cannot be
    decoded are left out and listed in `skipped.jsonl` of the folder, one `{"row", "reason"}` a line.

    Args:
        dataset: Rows of pre-training, all with a video or all with an image.
        prompter: The teacher, on the device where it is to run; put into evaluation mode.
        collator: The one to train with later, with the same seed, sampling, augmentation and sizes.
        output: Folder to write; made if it does not exist.
        epoch: Whose draw to label. For several, label into several folders and train on all.
        batch_size: Clips encoded at a time.
        shard_size: Rows of a shard, which is what an interruption can lose.
        workers: Processes that decode; 0: this one.
        progress: Whether to show a progress bar (on stderr).

    Returns:
        The labelled rows, memory-mapped.

    Raises:
        PseudoLabelError: The folder holds labels of other rows, another prompter or other draws; no row could be
            labelled; the collator draws no crops.
        ValueError: A row is none of pre-training, or the prompter has no prompts for its kind.
        OSError: The folder cannot be written.
    """
    if not collator.pem:
        raise PseudoLabelError("The collator draws no crops to label: make it with pem=True.")
    if not len(dataset):
        raise PseudoLabelError("There is nothing to label: the data set has no rows.")
    if epoch < 0 or batch_size < 1 or shard_size < 1:
        raise PseudoLabelError(f"epoch={epoch} must not be negative, batch_size and shard_size must be at least 1.")
    dataset = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    entities = list(prompter.config.entities or ())
    labels = {"pem_targets": List(Value("float16"), length=len(entities))}
    features = Features(dict(dataset.features) | labels | {name: Value("int64") for name in COLUMNS[1:]})
    folder = _Folder(Path(output), math.ceil(len(dataset) / shard_size))
    folder.open(_description(dataset, prompter, collator, epoch, shard_size))

    shards = {
        shard: range(shard * shard_size, min((shard + 1) * shard_size, len(dataset))) for shard in folder.missing()
    }
    rows = NumberedRows(_undecoded(dataset), training=True)
    rows.set_epoch(epoch)
    batches = [list(part[i : i + batch_size]) for part in shards.values() for i in range(0, len(part), batch_size)]
    loader = iter(DataLoader(rows, batch_sampler=batches, num_workers=workers, collate_fn=_Batches(collator)))
    prompter.eval()
    with tqdm(
        total=len(dataset),
        initial=len(dataset) - sum(map(len, shards.values())),
        desc="pseudo-labels",
        unit=" rows",
        disable=not progress,
    ) as bar:
        for shard, part in shards.items():
            kept: list[int] = []
            skipped: list[dict[str, Any]] = []
            targets = [np.empty((0, len(entities)), np.float16)]
            for start in range(0, len(part), batch_size):
                collated = next(loader)
                if collated.batch:
                    kept += collated.batch["row_ids"].tolist()
                    targets.append(_label(prompter, collated.batch))
                numbers = part[start : start + batch_size]
                skipped += [{"row": numbers[place], "reason": why} for place, why in collated.failures.items()]
                bar.update(len(numbers))
            columns = _label_columns(np.concatenate(targets), collator.seed, epoch, kept)
            table = dataset.select(kept, keep_in_memory=True)
            folder.write(shard, table, columns, features, skipped)
    return folder.close(features)


@torch.inference_mode()
def _label(prompter: AlproPrompterModel, batch: dict[str, Any]) -> np.ndarray:
    """float16 (B, entities)."""
    crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
    targets = prompter.pseudo_labels(crops.to(prompter.device, prompter.dtype), batch["kind"])
    return targets.half().numpy(force=True)


class _Batches:
    """What the loader makes of rows: a batch even of rows that are all broken."""

    def __init__(self, collator: AlproPreTrainingCollator):
        self.collator = collator

    def __call__(self, rows: Sequence[Row]) -> Collated:
        return self.collator.collate(rows)._replace(rows=[])  # whose bytes need not travel between processes


def _label_columns(targets: np.ndarray, seed: int, epoch: int, indices: Sequence[int]) -> pa.Table:
    rows, entities = targets.shape
    return pa.table(
        {
            "pem_targets": pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), entities),
            "pem_seed": pa.array([seed] * rows, pa.int64()),
            "pem_epoch": pa.array([epoch] * rows, pa.int64()),
            "pem_index": pa.array(indices, pa.int64()),
        }
    )


def _description(
    dataset: Dataset, prompter: AlproPrompterModel, collator: AlproPreTrainingCollator, epoch: int, shard_size: int
) -> dict[str, Any]:
    """What labels depend on, by which a folder that was begun is recognised."""
    processor = collator.processor.video_processor
    settings = {
        name: getattr(processor, name)
        for name in ("num_frames", "fps", "frame_sampling", "size", "do_center_crop", "crop_size", "do_normalize")
    }
    return {
        "format": FORMAT,
        "rows": len(dataset),
        "data": _hash_of_texts(dataset),
        "prompter": model_fingerprint(prompter),
        "entities": prompter.config.entities,
        "seed": collator.seed,
        "epoch": epoch,
        "shard_size": shard_size,
        "train_sampling": collator.train_sampling,
        "video_augmentation": repr(collator.augmentation),
        "image_augmentation": repr(collator.image_augmentation),
        "patch_size": collator.patch_size,
        "image_frames": collator.image_frames,
        "processor": json.loads(json.dumps(settings, default=dict)),
    }


def _hash_of_texts(dataset: Dataset) -> str:
    """Of all captions and paths, in their order."""
    features = dataset.features.items()
    names = [name for name, feature in features if name in ("text", *KINDS) and isinstance(feature, Value)]
    digest = hashlib.blake2b(digest_size=16)
    for batch in dataset.select_columns(names).with_format(None).iter(10_000):
        for name in names:
            digest.update("".join(f"{value}\n" for value in batch[name] if not isinstance(value, bytes)).encode())
    return digest.hexdigest()


class _Folder:
    """A folder for `load_from_disk` that becomes one when its last shard is there."""

    def __init__(self, path: Path, shards: int):
        self.path = path
        self.files = [path / f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]

    def open(self, description: dict[str, Any]) -> None:
        manifest = self.path / MANIFEST
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a folder.")
        if not manifest.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise PseudoLabelError(f"{self.path} holds something other than pseudo-labels; name a new folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(description, indent=1) + "\n"
            _write_whole(manifest, lambda path: path.write_text(text, encoding="utf-8"))
            return
        try:
            begun = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PseudoLabelError(f"{manifest} is damaged ({error}). Delete the folder and label again.") from error
        differing = [name for name in description if begun.get(name) != description[name]]
        if differing:
            raise PseudoLabelError(
                f"{self.path} was begun with other pseudo-labels: {', '.join(map(repr, differing))} differ (see "
                f"{MANIFEST} there). Repeat the earlier call to go on, or name a new folder."
            )

    def missing(self) -> list[int]:
        return [shard for shard, file in enumerate(self.files) if not file.exists()]

    def write(
        self, shard: int, rows: Dataset, labels: pa.Table, features: Features, skipped: Sequence[dict[str, Any]]
    ) -> None:
        """Write a shard; the file of the rows comes last and says that it is done."""

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as stream:
                start = 0
                for table in rows.with_format("arrow").iter(_WRITTEN_AT_ONCE):
                    for name in COLUMNS:
                        table = table.append_column(name, labels[name].slice(start, len(table)))
                    stream.write_table(table.cast(features.arrow_schema))
                    start += len(table)

        text = "".join(json.dumps(row) + "\n" for row in skipped)
        if text:
            _write_whole(self._skipped(shard), lambda path: path.write_text(text, encoding="utf-8"))
        else:
            self._skipped(shard).unlink(missing_ok=True)
        _write_whole(self.files[shard], write)

    def _skipped(self, shard: int) -> Path:
        return self.files[shard].with_suffix(".skipped.jsonl")

    def close(self, features: Features) -> Dataset:
        """Make the shards one data set, gather what was skipped, and load it."""
        lists = filter(Path.exists, map(self._skipped, range(len(self.files))))
        skipped = "".join(path.read_text(encoding="utf-8") for path in lists)
        _write_whole(self.path / SKIPPED, lambda path: path.write_text(skipped, encoding="utf-8"))
        filled = [file for file in self.files if len(Dataset.from_file(str(file)))]
        if not filled:
            reasons = {json.loads(line)["reason"] for line in skipped.splitlines()[:3]}
            raise PseudoLabelError("None of the rows can be decoded: " + "; ".join(sorted(reasons)))
        first = Dataset.from_file(str(filled[0]))
        first.info.write_to_directory(str(self.path))
        state = {
            "_data_files": [{"filename": file.name} for file in filled],
            "_fingerprint": first._fingerprint,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        text = json.dumps(state, indent=2) + "\n"
        _write_whole(self.path / "state.json", lambda path: path.write_text(text, encoding="utf-8"))
        return load_from_disk(str(self.path))


def read_skipped(folder: str | Path) -> list[dict[str, Any]]:
    """What `pseudo_label` left out: `{"row", "reason"}` each."""
    return [json.loads(line) for line in (Path(folder) / SKIPPED).read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class LabelSummary:
    """What pseudo-labels are like.

    Args:
        rows: How many there are.
        kept: How many are sure enough to learn from (highest probability at least the threshold).
        entropy: Mean in nats; log(entities) where the teacher knows nothing.
        top: (entity, rows in which it is the most probable one), most frequent first.
    """

    rows: int
    kept: int
    entropy: float
    top: list[tuple[str, int]]


def summarise(dataset: Dataset, entities: Sequence[str], threshold: float, top: int = 10) -> LabelSummary:
    """Look through the column `pem_targets`, a batch of rows at a time."""
    kept, entropy, best = 0, 0.0, Counter[int]()
    for targets in _targets(dataset):
        kept += int((targets.max(axis=1) >= threshold).sum())
        logs = np.log(targets, out=np.zeros_like(targets), where=targets > 0)
        entropy -= float((targets * logs).sum())
        best.update(targets.argmax(axis=1).tolist())
    named = [(entities[index], count) for index, count in best.most_common(top)]
    return LabelSummary(len(dataset), kept, entropy / max(len(dataset), 1), named)


def _targets(dataset: Dataset) -> Iterator[np.ndarray]:
    """float64 (rows, entities)."""
    for batch in dataset.select_columns("pem_targets").with_format("numpy").iter(1000):
        yield np.stack(list(batch["pem_targets"])).astype(np.float64)


# -------------------------------------------------------------------------------------------------- alpro pseudo-label


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
    whole = {"type": _at_least(1), "metavar": "N"}
    parser.add_argument("data", type=Path, metavar="DATA", help="a file or a folder of rows")
    parser.add_argument("--prompter", required=True, metavar="DIR", help="folder or Hub id of the prompter")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--split", metavar="NAME", help="split of a data set that has several")
    parser.add_argument(
        "--processor", metavar="DIR", help="folder or Hub id of the processor (default: the prompter's)"
    )
    parser.add_argument("--epoch", type=_at_least(0), default=0, metavar="N", help="whose draws to label (default: 0)")
    parser.add_argument("--seed", type=_at_least(0), default=42, help="of all draws (default: 42)")
    parser.add_argument("--batch-size", default=32, **whole, help="clips encoded at a time (default: 32)")
    parser.add_argument(
        "--workers", type=_at_least(0), default=0, metavar="N", help="processes that decode (default: 0)"
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


def read_rows(path: str | Path, split: str | None = None) -> Dataset:
    """Rows from a JSON-lines, CSV or Parquet file, or from a folder written by `save_to_disk`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        PseudoLabelError: It is nothing of the above, or has several splits and none was named.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if path.is_dir():
        loaded = load_from_disk(str(path))
        if not isinstance(loaded, DatasetDict):
            return loaded
        splits = list(loaded)
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            raise PseudoLabelError(f"{path} has the splits {', '.join(splits)}; name one of them with --split.")
        return loaded[split]
    if path.suffix.lower() not in _LOADERS:
        raise PseudoLabelError(f"{path}: rows are read from {', '.join(_LOADERS)}, or a folder of save_to_disk.")
    return load_dataset(_LOADERS[path.suffix.lower()], data_files=str(path), split="train")


def _at_least(least: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


__all__ = [
    "COLUMNS",
    "LabelSummary",
    "PseudoLabelError",
    "add_arguments",
    "pseudo_label",
    "read_rows",
    "read_skipped",
    "run",
    "summarise",
]
