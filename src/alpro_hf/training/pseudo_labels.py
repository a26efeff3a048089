"""Pseudo-labels of prompting entity modeling, made once and kept beside the rows: `alpro pseudo-label`.

The teacher of PEM is frozen, so what it says about a crop need not be computed again in each training. A label holds
for one crop of one augmented clip; the draw (seed, epoch, index) that leads to it is kept with it, and
`AlproPreTrainingCollator` repeats that draw when it meets a row with labels.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.collator import Collated
from ..data.pretraining_collator import KINDS, AlproPreTrainingCollator
from ..data.rows import NumberedRows, Row, undecoded
from ..files import model_fingerprint, write_whole
from ..model.loss_alpro import crop_on_black
from ..model.pretraining_alpro import AlproPrompterModel

MANIFEST = "pseudo_labels.json"
SKIPPED = "skipped.jsonl"
COLUMNS = ("pem_targets", "pem_seed", "pem_epoch", "pem_index")
FORMAT = 1
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
    rows = NumberedRows(undecoded(dataset), training=True)
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
            write_whole(manifest, lambda path: path.write_text(text, encoding="utf-8"))
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
            write_whole(self._skipped(shard), lambda path: path.write_text(text, encoding="utf-8"))
        else:
            self._skipped(shard).unlink(missing_ok=True)
        write_whole(self.files[shard], write)

    def _skipped(self, shard: int) -> Path:
        return self.files[shard].with_suffix(".skipped.jsonl")

    def close(self, features: Features) -> Dataset:
        """Make the shards one data set, gather what was skipped, and load it."""
        lists = filter(Path.exists, map(self._skipped, range(len(self.files))))
        skipped = "".join(path.read_text(encoding="utf-8") for path in lists)
        write_whole(self.path / SKIPPED, lambda path: path.write_text(skipped, encoding="utf-8"))
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
        write_whole(self.path / "state.json", lambda path: path.write_text(text, encoding="utf-8"))
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


__all__ = ["COLUMNS", "LabelSummary", "PseudoLabelError", "pseudo_label", "read_skipped", "summarise"]
