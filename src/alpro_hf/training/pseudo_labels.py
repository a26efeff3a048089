"""Pseudo-labels of prompting entity modeling (PEM), precomputed and stored with the rows.

The teacher of PEM is frozen, so its labels are the same in each training. A label holds for one crop of one augmented
clip. The draw (seed, epoch, index) that leads to this crop is stored with it, and `AlproPreTrainingCollator` repeats
the draw for a row with labels. A training of several epochs needs a label for each: it would see the same frames, crop
and augmentation in every epoch otherwise, in the other losses, too.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import (
    Dataset,
    Features,
    List,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..data.collator import Collated
from ..data.columns import MEDIA_COLUMNS
from ..data.pretraining_collator import AlproPreTrainingCollator
from ..data.rows import NumberedRows, Row, undecoded
from ..files import model_fingerprint, remove_partial, write_text_whole, write_whole
from ..model.loss_alpro import crop_on_black
from ..model.pretraining_alpro import AlproPrompterModel
from ..untrusted_json import parse_json, read_json

MANIFEST = "pseudo_labels.json"
SKIPPED = "skipped.jsonl"
LABEL_COLUMNS = ("pem_targets", "pem_seed", "pem_epoch", "pem_index")
_MANIFEST_FORMAT = 1
_WRITTEN_AT_ONCE = 100  # rows of a record batch of Arrow; rows may hold the bytes of images


class PseudoLabelError(ValueError):
    """Rows cannot be labelled, or not in this folder; the message says what to do."""


def pseudo_label(
    dataset: Dataset,
    prompter: AlproPrompterModel,
    collator: AlproPreTrainingCollator,
    output: str | Path,
    *,
    epoch: int = 0,
    epochs: int = 1,
    batch_size: int = 32,
    shard_size: int = 1000,
    workers: int = 0,
    progress: bool = True,
) -> Dataset:
    """Label the crop of every row, and write rows and labels to a folder for `datasets.load_from_disk`.

    Columns added (or replaced): `pem_targets`, float16 (entities), the probabilities of the teacher; `pem_seed`,
    `pem_epoch` and `pem_index`, the draw of frames, augmentation and box for which they hold. `pem_index` is the
    position of the row in `dataset`.

    Rows are labelled shard by shard; a shard is written completely or not at all. The same call again continues with
    the first missing shard. At most one shard of labels is in memory. Rows whose clip or image cannot be decoded are
    left out and listed in `skipped.jsonl` of the folder, one `{"row", "reason"}` a line.

    Args:
        dataset: Rows of pre-training, all with a video or all with an image.
        prompter: The teacher, on the device where it is to run. It is put into evaluation mode.
        collator: The collator to train with later: same seed, sampling, augmentation and sizes.
        output: Folder to write, made if it does not exist.
        epoch: The first epoch whose draws are labelled.
        epochs: How many epochs are labelled. The result has all rows of the first epoch, then all of the next one,
            and so on, so an epoch of training on it is that many epochs of the data. Each costs the teacher's forward
            pass once more, and its rows are stored once more.
        batch_size: Clips encoded at a time.
        shard_size: Rows of a shard, which is what an interruption can lose.
        workers: Processes that decode; 0: this one.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The labelled rows, memory-mapped.

    Raises:
        PseudoLabelError: The folder holds labels of other rows, another prompter or other draws; no row could be
            labelled; the collator draws no crops.
        ValueError: A row is not a row of pre-training, or the prompter has no prompts for its kind.
        OSError: The folder cannot be written.
    """
    if not collator.pem:
        raise PseudoLabelError("The collator draws no crops to label: make it with pem=True.")
    if not len(dataset):
        raise PseudoLabelError("There is nothing to label: the data set has no rows.")
    if epoch < 0 or min(epochs, batch_size, shard_size) < 1:
        raise PseudoLabelError(
            f"epoch={epoch} must not be negative; epochs, batch_size and shard_size must be at least 1."
        )
    dataset = dataset.remove_columns([name for name in LABEL_COLUMNS if name in dataset.column_names])
    entities = list(prompter.config.entities or ())
    labels = {"pem_targets": List(Value("float16"), length=len(entities))}
    features = Features(dict(dataset.features) | labels | {name: Value("int64") for name in LABEL_COLUMNS[1:]})
    rows = _Epochs(undecoded(dataset), epoch, epochs)
    folder = _Folder(Path(output), math.ceil(len(rows) / shard_size), features)
    folder.open(_description(dataset, prompter, collator, epoch, shard_size) | {"epochs": epochs})

    shards = {shard: range(shard * shard_size, min((shard + 1) * shard_size, len(rows))) for shard in folder.missing()}
    # batches end with their shard, so that the file of a shard can be written when its last batch is done
    batches = [list(part[i : i + batch_size]) for part in shards.values() for i in range(0, len(part), batch_size)]
    loader = iter(DataLoader(rows, batch_sampler=batches, num_workers=workers, collate_fn=_Batches(collator)))
    prompter.eval()
    with tqdm(
        total=len(rows),
        initial=len(rows) - sum(map(len, shards.values())),
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
                numbers = part[start : start + batch_size]
                if collated.batch:
                    kept += [number for place, number in enumerate(numbers) if place not in collated.failures]
                    targets.append(_label(prompter, collated.batch))
                skipped += [
                    {"row": numbers[place] % len(dataset), "reason": why} for place, why in collated.failures.items()
                ]
                bar.update(len(numbers))
            draws = [rows.draw(number) for number in kept]
            columns = _label_columns(np.concatenate(targets), collator.seed, draws)
            table = dataset.select([index for _, index in draws], keep_in_memory=True)
            folder.write(shard, table, columns, skipped)
    return folder.close()


@torch.inference_mode()
def _label(prompter: AlproPrompterModel, batch: dict[str, Any]) -> np.ndarray:
    """Probabilities of the entities, float16 (B, entities)."""
    crops = crop_on_black(batch["pixel_values_videos"], batch["crop_mask"], batch["black"])
    targets = prompter.pseudo_labels(crops.to(prompter.device, prompter.dtype), batch["kind"])
    return targets.half().numpy(force=True)


class _Epochs(TorchDataset):
    """Rows of several epochs, one after the other: row i of epoch e has the number e * rows + i.

    Args:
        rows: The rows, not decoded.
        first: Number of the first epoch.
        count: Number of epochs.
    """

    def __init__(self, rows: Dataset, first: int, count: int):
        self.rows = NumberedRows(rows)
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count * len(self.rows)

    def draw(self, number: int) -> tuple[int, int]:
        """Epoch and index of a row."""
        epoch, index = divmod(number, len(self.rows))
        return self.first + epoch, index

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        draws = [self.draw(number) for number in numbers]
        rows = self.rows.__getitems__([index for _, index in draws])
        return [{**row, "epoch": epoch} for row, (epoch, _) in zip(rows, draws, strict=True)]


class _Batches:
    """Collates rows as the collator does, but returns a result even if all rows of a batch are broken."""

    def __init__(self, collator: AlproPreTrainingCollator):
        self.collator = collator

    def __call__(self, rows: Sequence[Row]) -> Collated:
        # without the rows, whose bytes would be sent from the process that decodes to this one
        return self.collator.collate(rows)._replace(rows=[])


def _label_columns(targets: np.ndarray, seed: int, draws: Sequence[tuple[int, int]]) -> pa.Table:
    """The columns of labels, for rows with (epoch, index) as their draws."""
    rows, entities = targets.shape
    return pa.table(
        {
            "pem_targets": pa.FixedSizeListArray.from_arrays(pa.array(targets.reshape(-1)), entities),
            "pem_seed": pa.array([seed] * rows, pa.int64()),
            "pem_epoch": pa.array([epoch for epoch, _ in draws], pa.int64()),
            "pem_index": pa.array([index for _, index in draws], pa.int64()),
        }
    )


def _description(
    dataset: Dataset, prompter: AlproPrompterModel, collator: AlproPreTrainingCollator, epoch: int, shard_size: int
) -> dict[str, Any]:
    """Everything that labels depend on. A folder is continued only if its description is the same."""
    processor = collator.processor.video_processor
    settings = {
        name: getattr(processor, name)
        for name in ("num_frames", "fps", "frame_sampling", "size", "do_center_crop", "crop_size", "do_normalize")
    }
    return {
        "format": _MANIFEST_FORMAT,
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
    """A hash over all captions and paths, in their order. Bytes of images are left out: reading them takes long."""
    features = dataset.features.items()
    names = [name for name, feature in features if name in ("text", *MEDIA_COLUMNS) and isinstance(feature, Value)]
    digest = hashlib.blake2b(digest_size=16)
    for batch in dataset.select_columns(names).with_format(None).iter(10_000):
        for name in names:
            digest.update("".join(f"{value}\n" for value in batch[name] if not isinstance(value, bytes)).encode())
    return digest.hexdigest()


class _Folder:
    """A folder of shards, which `load_from_disk` can read once all of them are there.

    Args:
        path: The folder.
        shards: How many there will be.
        features: Columns of the rows with their labels.
    """

    def __init__(self, path: Path, shards: int, features: Features):
        self.path = path
        self.features = features
        # the names that `save_to_disk` gives to as many shards, see `_write_metadata`
        self.files = [path / f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]

    def open(self, description: dict[str, Any]) -> None:
        """Make the folder with its manifest, or check that the manifest there has the same description."""
        manifest = self.path / MANIFEST
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a folder.")
        if not manifest.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise PseudoLabelError(f"{self.path} holds something other than pseudo-labels; name a new folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_whole(manifest, json.dumps(description, indent=1) + "\n")
            return
        try:
            begun = read_json(manifest)
        except ValueError as error:
            raise PseudoLabelError(f"{manifest} is damaged ({error}). Delete the folder and label again.") from error
        if not isinstance(begun, dict):
            raise PseudoLabelError(f"{manifest} is damaged (it is no object). Delete the folder and label again.")
        begun.setdefault("epochs", 1)  # earlier versions labelled one
        differing = [name for name in description if begun.get(name) != description[name]]
        if differing:
            raise PseudoLabelError(
                f"{self.path} was begun with other pseudo-labels: {', '.join(map(repr, differing))} differ (see "
                f"{MANIFEST} there). Repeat the earlier call to continue it, or name a new folder."
            )

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [shard for shard, file in enumerate(self.files) if not file.exists()]

    def write(self, shard: int, rows: Dataset, labels: pa.Table, skipped: Sequence[dict[str, Any]]) -> None:
        """Write a shard. The file of its rows comes last, because its existence means that the shard is done."""

        def write(path: Path) -> None:
            # the streaming format of Arrow, which `Dataset.from_file` reads
            schema = self.features.arrow_schema
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
                start = 0
                for table in rows.with_format("arrow").iter(_WRITTEN_AT_ONCE):
                    for name in LABEL_COLUMNS:
                        table = table.append_column(name, labels[name].slice(start, len(table)))
                    stream.write_table(table.cast(schema))
                    start += len(table)

        if skipped:
            write_text_whole(self._skipped(shard), "".join(json.dumps(row) + "\n" for row in skipped))
        else:
            # one that a run left which was killed before it wrote the rows
            self._skipped(shard).unlink(missing_ok=True)
        write_whole(self.files[shard], write)

    def _skipped(self, shard: int) -> Path:
        return self.files[shard].with_suffix(".skipped.jsonl")

    def close(self) -> Dataset:
        """Make the shards one data set, join the lists of what was skipped, and load the data set."""
        remove_partial(self.path)
        lists = filter(Path.exists, map(self._skipped, range(len(self.files))))
        # a clip that is broken is so in every epoch
        skipped = "".join(dict.fromkeys("".join(path.read_text("utf-8") for path in lists).splitlines(keepends=True)))
        write_text_whole(self.path / SKIPPED, skipped)
        rows = sum(len(Dataset.from_file(str(file))) for file in self.files)
        if not rows:
            reasons = {parse_json(line)["reason"] for line in skipped.splitlines()[:3]}
            raise PseudoLabelError("None of the rows can be decoded: " + "; ".join(sorted(reasons)))
        self._write_metadata()
        labelled = load_from_disk(str(self.path))
        if len(labelled) != rows:
            raise PseudoLabelError(
                f"{self.path} has shards of {rows} rows, of which `datasets` loads {len(labelled)}: this version of "
                "it names shards in another way. Load the files data-*.arrow with datasets.Dataset.from_file."
            )
        return labelled

    def _write_metadata(self) -> None:
        """Add the files that `save_to_disk` writes next to the shards.

        It writes them here for an empty data set of as many shards. Saving the real rows would copy them all.
        """
        # a selection of the real rows, because its fingerprint, under which `datasets` caches what is made of them,
        # must not be that of other pseudo-labels
        empty = Dataset.from_file(str(self.files[0])).select([])
        shown = not are_progress_bars_disabled()
        with tempfile.TemporaryDirectory() as scratch:
            disable_progress_bars()
            empty.save_to_disk(scratch, num_shards=len(self.files))
            if shown:
                enable_progress_bars()
            for file in sorted(Path(scratch).glob("*.json")):
                write_whole(self.path / file.name, partial(shutil.copyfile, file))


def read_skipped(folder: str | Path) -> list[dict[str, Any]]:
    """Rows that `pseudo_label` left out: `{"row", "reason"}` each.

    Raises:
        PseudoLabelError: The list is damaged.
        OSError: It cannot be read.
    """
    path = Path(folder) / SKIPPED
    try:
        return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise PseudoLabelError(f"{path} is damaged: {error}. Label again, into a new folder.") from error


@dataclass(frozen=True)
class LabelSummary:
    """Statistics of pseudo-labels.

    Args:
        rows: Number of rows.
        kept: Number of rows to learn from: their highest probability is at least the threshold.
        entropy: Mean entropy in nats; log(entities) for a teacher that knows nothing.
        top: (entity, rows in which it is the most probable one), most frequent first.
    """

    rows: int
    kept: int
    entropy: float
    top: list[tuple[str, int]]


def summarise(dataset: Dataset, entities: Sequence[str], threshold: float, top: int = 10) -> LabelSummary:
    """Compute statistics of the column `pem_targets`, a batch of rows at a time.

    Args:
        dataset: Rows with labels.
        entities: Names in the order of the labels.
        threshold: Lowest top probability of a row to learn from.
        top: Entities to name.
    """
    kept, entropy, best = 0, 0.0, Counter[int]()
    for targets in _targets(dataset):
        kept += int((targets.max(axis=1) >= threshold).sum())
        logs = np.log(targets, out=np.zeros_like(targets), where=targets > 0)
        entropy -= float((targets * logs).sum())
        best.update(targets.argmax(axis=1).tolist())
    named = [(entities[index], count) for index, count in best.most_common(top)]
    return LabelSummary(len(dataset), kept, entropy / max(len(dataset), 1), named)


def _targets(dataset: Dataset) -> Iterator[np.ndarray]:
    """Batches of labels, float64 (rows, entities)."""
    for batch in dataset.select_columns("pem_targets").with_format("numpy").iter(1000):
        yield np.stack(list(batch["pem_targets"])).astype(np.float64)


__all__ = ["LABEL_COLUMNS", "LabelSummary", "PseudoLabelError", "pseudo_label", "read_skipped", "summarise"]
