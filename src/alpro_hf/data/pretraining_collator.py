"""Collate rows for pre-training: clips or still images with captions, masked words, and the crop boxes of PEM."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from ..model.decoding_column import file_of
from ..model.loss_alpro import crop_on_black
from ..model.video_processing_alpro import SamplingStrategy
from .augmentation import AlproAugmentation, draw_crop
from .collator import AlproCollator, Collated
from .columns import MEDIA_COLUMNS
from .images import read_image
from .isolated_decoder import IsolatedDecoder
from .rows import Draw, Row

if TYPE_CHECKING:
    from ..model.processing_alpro import AlproProcessor


class AlproPreTrainingCollator(AlproCollator):
    """Collate rows of one medium into a batch for pre-training (arXiv 2112.09583, sections 3.2 and 3.3).

    Rows are `{"video", "text"}` or `{"image", "text"}`; one batch holds only one of the two. A row may have the other
    column with the value None. Videos are given as to `AlproCollator`. An image is a path, the bytes of a file,
    `{"bytes", "path"}` or a `PIL.Image`, and becomes a clip of equal frames. `video_id`, `index`, `epoch` and rows
    that cannot be decoded are treated as there.

    All random choices for a row are functions of (seed, epoch, index), with a stream of its own for each purpose:
    frames, augmentation, box, masked words. Rows without an `epoch` (evaluation) get the frames of the processor, no
    augmentation, and the boxes and masks of epoch 0. Without an `index`, the position in the batch takes its place.

    Cached pseudo-labels (see `alpro pseudo-label`) describe one draw: a row with `pem_targets` gets frames,
    augmentation and box by its (`pem_seed`, `pem_epoch`, `pem_index`), in evaluation, too: the student must see what
    the teacher has seen. Label several epochs for other frames in each. Its words are masked as for other rows.
    Augmentation, sampling and sizes of the collator must be the same as when the labels were made.

    Args:
        processor: As in `AlproCollator`.
        video_augmentation, image_augmentation: Random changes of clips and of images in training, in the paper
            `AlproAugmentation("video", size)` and `AlproAugmentation("image", size)`; None to resize only.
        mlm_probability: Share of the words masked for MLM: 80 % of these become `[MASK]`, 10 % a random word, and 10 %
            stay. By chance a text may keep all its words. 0 for no MLM.
        pem: Whether to draw a box for PEM; if not, `pem_targets` of rows are ignored.
        patch_size: Pixels of a patch, `config.video_config.patch_size`; boxes are on the grid of patches.
        image_frames: Frames of the clip that an image becomes; None for the number of the processor. The model takes
            any number, and 1 is the cheapest.
        crop_share: Share of the clips that training shows as a crop on black, like those that PEM shows to its
            teacher; for the training of a teacher. 0, as in the paper: a teacher never sees a crop.
        train_sampling, seed, decoder, dropped_file: As in `AlproCollator`; images are decoded in this process.

    Returns (from a call):
        - `input_ids`, `attention_mask` (B, L), `pixel_values_videos` (B, T, 3, height, width), `video_ids`,
          `text_ids`, `row_ids`: as from `AlproCollator` for retrieval;
        - `kind`: "video" or "image";
        - `mlm_input_ids`, `mlm_labels` int64 (B, L): the texts with masked words; the original word where one is
          masked, else -100;
        - `crop_mask` bool (B, height / patch_size, width / patch_size), True inside the box;
        - `black` float32 (3,): a black pixel after normalisation;
        - `pem_targets` float32 (B, entities), if all rows have them.

    Example:
        >>> collator = AlproPreTrainingCollator(processor, video_augmentation=AlproAugmentation("video", 224))
        >>> batch = collator([{"video": "clip.mp4", "text": "a fox runs to the left", "index": 0, "epoch": 0}])
        >>> batch["crop_mask"].shape
        torch.Size([1, 14, 14])
    """

    def __init__(
        self,
        processor: "AlproProcessor",
        *,
        video_augmentation: AlproAugmentation | None = None,
        image_augmentation: AlproAugmentation | None = None,
        mlm_probability: float = 0.15,
        pem: bool = True,
        patch_size: int = 16,
        image_frames: int | None = None,
        crop_share: float = 0.0,
        train_sampling: SamplingStrategy = "headtail",
        seed: int = 42,
        decoder: IsolatedDecoder | None = None,
        dropped_file: str | os.PathLike[str] | None = None,
    ):
        super().__init__(
            processor,
            train_sampling=train_sampling,
            seed=seed,
            augmentation=video_augmentation,
            decoder=decoder,
            dropped_file=dropped_file,
        )
        if not 0 <= mlm_probability < 1:
            raise ValueError(f"mlm_probability={mlm_probability} must be at least 0 (no MLM) and below 1.")
        if not 0 <= crop_share <= 1:
            raise ValueError(f"crop_share={crop_share} must lie between 0 and 1.")
        if patch_size < 1 or (image_frames is not None and image_frames < 1):
            raise ValueError(f"patch_size={patch_size} and image_frames={image_frames} must be at least 1.")
        self.image_augmentation = image_augmentation
        self.pem = pem
        self.patch_size = patch_size
        self.image_frames = processor.video_processor.num_frames if image_frames is None else image_frames
        self.crop_share = crop_share
        self.masking = None
        if mlm_probability:
            self.masking = DataCollatorForLanguageModeling(processor.tokenizer, mlm_probability=mlm_probability)

    def collate(self, rows: Sequence[Row]) -> Collated:
        kinds = [_kind(row) for row in rows]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"A batch holds rows with a video or rows with an image, not both: row {kinds.index('video')} of this "
                f"one has a video and row {kinds.index('image')} an image. Make them two sources of MixedRows."
            )
        collated = super().collate(rows)
        batch, kept, _ = collated
        if not kept:
            return collated
        batch["kind"] = kinds[0]
        if kinds[0] == "image":
            # after augmentation and normalisation, which then process one frame instead of several equal ones
            batch["pixel_values_videos"] = batch["pixel_values_videos"].repeat(1, self.image_frames, 1, 1, 1)
        if self.crop_share:
            self._show_crops(batch, kept)
        if self.masking is not None:
            # Not the draw of cached labels: a row would get the same masks in every epoch.
            draws = [AlproCollator._draw(self, row) or self._still(row, i) for i, row in enumerate(kept)]
            batch |= self._masked(batch["input_ids"], batch["attention_mask"], draws)
        if self.pem:
            grid = self._grid(batch["pixel_values_videos"])
            draws = [self._draw(row) or self._still(row, i) for i, row in enumerate(kept)]
            batch["crop_mask"] = torch.stack([draw_crop(grid, draw.generator("crop")) for draw in draws])
            # for the teacher, which sees the box on black: the model does not know mean and standard deviation
            batch["black"] = -self._mean / self._std
            targets = [row.get("pem_targets") for row in kept]
            if all(target is not None for target in targets):
                batch["pem_targets"] = torch.from_numpy(np.stack([np.asarray(t, np.float32) for t in targets]))
        return collated

    def _frames(self, row: Row, threads: int = 0) -> torch.Tensor:
        if _kind(row) == "video":
            return super()._frames(row, threads)
        image = read_image(file_of(row["image"]))
        return self._prepare(row, image, self.image_augmentation, do_sample_frames=False)

    def _draw(self, row: Row) -> Draw | None:
        """The draw of frames, augmentation and box: that of the cached pseudo-labels, if the row has any."""
        if not self.pem or row.get("pem_targets") is None:
            return super()._draw(row)
        numbers = [row[name] for name in ("pem_seed", "pem_epoch", "pem_index") if row.get(name) is not None]
        if len(numbers) < 3:
            raise ValueError(
                "A row has 'pem_targets' but not all of 'pem_seed', 'pem_epoch' and 'pem_index', which tell the crop "
                f"that they describe; it has {sorted(row)}. Keep all columns that alpro pseudo-label wrote."
            )
        return Draw(*map(int, numbers))

    def _still(self, row: Row, place: int) -> Draw:
        """The draw of box and words in evaluation, where nothing else is random."""
        return Draw(self.seed, 0, row.get("index", place))

    def _show_crops(self, batch: dict[str, Any], rows: Sequence[Row]) -> None:
        """Show some clips of a batch as crops on black; none in evaluation."""
        pixels = batch["pixel_values_videos"]
        masks = torch.ones(len(rows), *self._grid(pixels), dtype=torch.bool)
        for i, draw in enumerate(map(self._draw, rows)):
            if draw is not None and torch.rand((), generator=draw.generator("shown as a crop")) < self.crop_share:
                masks[i] = draw_crop((masks.shape[1], masks.shape[2]), draw.generator("crop"))
        batch["pixel_values_videos"] = crop_on_black(pixels, masks, -self._mean / self._std)

    def _grid(self, pixels: torch.Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Frames of {height} x {width} pixels cannot be divided into patches of {self.patch_size}. Set "
                "patch_size to that of the model, or the size of processor and augmentation to a multiple of it."
            )
        return height // self.patch_size, width // self.patch_size

    def _masked(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, draws: Sequence[Draw]
    ) -> dict[str, torch.Tensor]:
        """`mlm_input_ids` and `mlm_labels`. The draw for a text must not depend on its padding."""
        assert self.masking is not None
        special = torch.isin(input_ids, torch.tensor(self.processor.tokenizer.all_special_ids))
        masked, labels = input_ids.clone(), torch.full_like(input_ids, -100)
        for i, draw in enumerate(draws):
            own = attention_mask[i].bool()
            self.masking.generator = draw.generator("masking")
            text, text_labels = self.masking.torch_mask_tokens(input_ids[i, own][None], special[i, own][None])
            masked[i, own], labels[i, own] = text[0], text_labels[0]
        return {"mlm_input_ids": masked, "mlm_labels": labels}


def _kind(row: Row) -> str:
    kinds = [kind for kind in MEDIA_COLUMNS if row.get(kind) is not None]
    if len(kinds) != 1:
        raise ValueError(
            f"A row for pre-training needs a 'video' or an 'image', one of the two; this one has "
            f"{' and '.join(kinds) or 'neither'} among {sorted(row)}. Rename the column, or filter such rows out."
        )
    return kinds[0]


__all__ = ["AlproPreTrainingCollator"]
