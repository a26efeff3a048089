"""Tokens of clips in a folder, for trainings whose video tower is frozen: each clip is decoded and encoded once.

As in a video index, shards are safetensors and read in place: reading the tokens of one clip reads no other. A shard
is written completely or not at all, and its header lists its clips, so an interrupted training has lost nothing. The
folder serves every training with the same tower, frames and clips, whatever else differs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..data.collator import AlproCollator
from ..data.mixed_rows import MixedRows
from ..data.prefetch import prefetched
from ..data.rows import NumberedRows, Row, clip_label, is_decoded_clip
from ..files import model_fingerprint, remove_partial, write_text_whole, write_whole
from ..model.decoding_column import file_of
from ..model.decoding_types import VideoDecodeError
from ..model.matching_alpro import encode_clips
from ..model.wrappers_alpro import plain_model
from ..untrusted_json import parse_json, read_json
from .distributed import in_parallel
from .frozen import still

MANIFEST = "features.json"
_FORMAT = 1
_SHARD = 64  # clips of a file, which is also how many a crash can lose
_FIXED = ("center", "uniform")  # ways of sampling that choose the same frames in every epoch


class FeatureCacheError(ValueError):
    """A folder of tokens is damaged, or holds those of another tower or of other frames; the message says which."""


def clip_version(row: Row) -> str:
    """What tells a clip and its state from all others: path, size and time of a file, or the content itself.

    Raises:
        TypeError: The clip is neither a path, nor bytes, nor decoded frames.
    """
    clip = file_of(row["video"])
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(clip, str | os.PathLike):
        path = os.path.abspath(clip)
        try:
            stat = os.stat(path)
            state = f"{stat.st_size}/{stat.st_mtime_ns}"
        except OSError:  # decoding will say what is wrong with it
            state = "missing"
        digest.update(f"{path}\n{state}".encode())
    elif isinstance(clip, bytes):
        digest.update(clip)
    elif is_decoded_clip(clip):
        digest.update(f"{tuple(clip.shape)}".encode() + np.ascontiguousarray(clip).tobytes())
    else:
        raise TypeError(
            f"feature_cache needs clips that can be told from each other: paths, bytes or decoded frames; received "
            f"{type(clip).__name__}."
        )
    return digest.hexdigest()


class FeatureCache:
    """The tokens of clips in a folder, by `clip_version`.

    Args:
        folder: Made if it does not exist.
        description: All that tokens depend on besides the clips, as JSON. A folder with another one is refused.

    Raises:
        FeatureCacheError: The folder holds other tokens, or something else, or is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], description: dict[str, Any]):
        self.folder = Path(folder)
        self._places: dict[str, tuple[Path, int]] = {}
        self._lost: dict[str, str] = {}  # version of a clip -> why it cannot be decoded
        manifest = self.folder / MANIFEST
        if manifest.exists():
            try:
                found = read_json(manifest)
            except ValueError as error:
                raise FeatureCacheError(f"{manifest} is damaged ({error}). Delete the folder.") from error
            if found != description:
                known = found if isinstance(found, dict) else {}
                differing = [name for name in description if known.get(name) != description[name]]
                raise FeatureCacheError(
                    f"feature_cache={os.fspath(folder)!r} holds the tokens of another tower or of other frames: "
                    f"{', '.join(differing) or 'its format'} differs (see {MANIFEST} there). Name another folder."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise FeatureCacheError(f"{self.folder} holds something other than tokens; name a new folder.")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_whole(manifest, json.dumps(description, indent=1) + "\n")
        self.refresh()

    def refresh(self) -> None:
        """Look which clips are there; other processes may have added some."""
        for file in sorted(self.folder.glob("tokens-*.safetensors")):
            try:
                with safe_open(file, framework="pt") as tensors:
                    listed = parse_json((tensors.metadata() or {}).get("clips", "null"))
                    rows = tensors.get_slice("tokens").get_shape()[0]
                if not isinstance(listed, list) or len(listed) != rows:
                    raise ValueError("its list of clips does not fit its tokens")
            except (SafetensorError, ValueError) as error:
                raise FeatureCacheError(f"{file} is damaged ({error}). Delete this file.") from error
            self._places.update((str(clip), (file, row)) for row, clip in enumerate(listed))

    def __contains__(self, version: str) -> bool:
        return version in self._places

    def __len__(self) -> int:
        return len(self._places)

    def tokens(self, row: Row) -> torch.Tensor:
        """The tokens (1 + N, D) of the clip of a row.

        Raises:
            VideoDecodeError: The clip could not be decoded, or has changed since.
            FeatureCacheError: The file with its tokens is damaged.
        """
        version = clip_version(row)
        if version not in self._places:
            problem = self._lost.get(version, "it is another file than when its tokens were computed")
            raise VideoDecodeError(clip_label(row), problem.rstrip("."), "Start the training again once it is right")
        file, place = self._places[version]
        try:
            with safe_open(file, framework="pt") as tensors:
                tokens: torch.Tensor = tensors.get_slice("tokens")[place]
        except (OSError, SafetensorError) as error:
            raise FeatureCacheError(f"{file} is damaged ({error}). Delete this file.") from error
        return tokens

    def fill(
        self,
        model: Any,
        rows: Any,
        collator: AlproCollator,
        *,
        batch_size: int,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        progress: bool = True,
    ) -> int:
        """Compute the tokens that are missing.

        Args:
            model: The model, on its device, with a tower in evaluation mode.
            rows: `NumberedRows` to train on.
            collator: Decodes as in training.
            batch_size: Clips encoded at a time.
            workers: Processes that decode ahead; 0: a thread does.
            process, processes: Number of this process and of all that share the folder. Each computes its part; call
                `agree` after.
            autocast: Context of the precision of the training.
            progress: Show a bar on stderr.

        Returns:
            How many clips this process has encoded.
        """
        wanted: dict[str, int] = {}  # version -> number of the first row about the clip
        for number in range(len(rows)):
            version = clip_version(rows[number])
            if version not in self._places:
                wanted.setdefault(version, number)
        own = list(wanted.values())[process::processes]
        batches = [range(start, min(start + batch_size, len(own))) for start in range(0, len(own), batch_size)]
        loader = DataLoader(
            Subset(rows, own),
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=partial(_decoded, collator),
            num_workers=workers,
        )
        pending: list[tuple[str, torch.Tensor]] = []
        encoded = 0
        bar = tqdm(total=len(own), desc="tokens of clips", unit="clip", disable=not progress, delay=1)
        with closing(prefetched(loader)) if not workers else nullcontext(loader) as found:
            for batch in found:
                seen = [(version, clip) for version, clip in batch if isinstance(clip, torch.Tensor)]
                self._lost.update((version, clip) for version, clip in batch if isinstance(clip, str))
                if seen:
                    with torch.inference_mode(), autocast():
                        tokens = [clip.tokens.cpu() for clip in encode_clips(model, [clip for _, clip in seen])]
                    pending += zip([version for version, _ in seen], tokens, strict=True)
                encoded += len(seen)
                bar.update(len(batch))
                while len(pending) >= _SHARD:
                    self._write(pending[:_SHARD])
                    pending = pending[_SHARD:]
        bar.close()
        if pending:
            self._write(pending)
        return encoded

    def agree(self) -> None:
        """Learn what the other processes have encoded, and which clips they could not decode. All call this."""
        if in_parallel():
            for lost in gather_object([self._lost]):
                self._lost.update(lost)
        self.refresh()

    def _write(self, clips: Sequence[tuple[str, torch.Tensor]]) -> None:
        versions = [version for version, _ in clips]
        tensors = {"tokens": torch.stack([tokens for _, tokens in clips])}
        # a name of the content, so that processes do not write to the same file
        name = hashlib.blake2b("".join(versions).encode(), digest_size=8).hexdigest()
        file, listed = self.folder / f"tokens-{name}.safetensors", json.dumps(versions)
        write_whole(file, lambda path: save_file(tensors, path, metadata={"clips": listed}))
        self._places.update((version, (file, row)) for row, version in enumerate(versions))


def _decoded(collator: AlproCollator, rows: Iterable[Row]) -> list[tuple[str, torch.Tensor | str]]:
    """Version and frames of each clip, or why it cannot be decoded; runs in data loading processes."""
    return [(clip_version(row), collator.clip_of(row)) for row in rows]


def check_cache(model: Any, collator: Any, rows: Any) -> None:
    """Refuse a training whose clips have other frames in each epoch, or that needs the frames themselves.

    Raises:
        ValueError: The message names the setting and what to do.
    """
    plain = plain_model(model)
    if "video_hidden_states" not in plain.training_inputs or type(collator) is not AlproCollator:
        raise ValueError(
            f"feature_cache is for fine-tuning on pairs or on questions; {type(plain).__name__} with "
            f"{type(collator).__name__} needs the frames of every clip in every step. Leave feature_cache out."
        )
    if collator.augmentation is not None or collator.train_sampling not in _FIXED:
        changing = (
            f"train_sampling={collator.train_sampling!r}"
            if collator.augmentation is None
            else "an augmentation (the recipe setting augmentation)"
        )
        raise ValueError(
            f"feature_cache keeps one version of each clip, and {changing} shows another one in each epoch. Set "
            "train_sampling='uniform' or 'center' and augmentation='none', or leave feature_cache out."
        )
    if rows is not None and (not isinstance(rows, NumberedRows) or isinstance(rows, MixedRows)):
        raise ValueError("feature_cache needs rows with a length that are read by their number, not a stream of rows.")


class FillFeatures(TrainerCallback):
    """Fills `feature_cache` before the first step, and lets the collator read from it.

    Args:
        trainer: The `AlproTrainer`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # here, because weights of a checkpoint have been loaded by now
        trainer, plain = self.trainer, plain_model(model)
        if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("feature_cache does not work with sharded models (FSDP, DeepSpeed).")
        collator, tower = trainer.data_collator, plain.base_model.video_model
        still([tower])
        processor = collator.processor.video_processor
        names = ("num_frames", "fps", "size", "do_center_crop", "crop_size", "do_normalize", "image_mean", "image_std")
        description = {
            "format": _FORMAT,
            "tower": model_fingerprint(tower),
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else str(tower.dtype).removeprefix("torch."),
            "train_sampling": collator.train_sampling,
            "processor": json.loads(json.dumps({name: getattr(processor, name) for name in names}, default=dict)),
        }
        with args.main_process_first(local=False, desc="folder of tokens"):
            cache = FeatureCache(args.feature_cache, description)
            if args.process_index == 0:
                remove_partial(cache.folder)  # of a training that was killed
        cache.fill(
            plain,
            trainer.train_dataset,
            collator,
            batch_size=args.per_device_train_batch_size,
            workers=args.dataloader_num_workers,
            process=args.process_index,
            processes=args.world_size,
            autocast=trainer.accelerator.autocast,
            progress=not args.disable_tqdm and args.process_index == 0,
        )
        trainer.accelerator.wait_for_everyone()
        cache.agree()
        collator.features = cache.tokens


__all__ = ["MANIFEST", "FeatureCache", "FeatureCacheError", "FillFeatures", "check_cache", "clip_version"]
