"""The two towers as an encoder that the MTEB harness can drive: `pip install "alpro-hf[mteb]"`.

The harness hands over its data undecoded, so clips go through the package's own decoder and sampling, as everywhere
else; torchcodec is not needed. What is measured is the protocol `vtc`: the harness compares embeddings, and the
matching head of ALPRO gives none.

Example:
    >>> import mteb
    >>> from alpro_hf.mteb_encoder import AlproEncoder
    >>> tasks = mteb.get_tasks(tasks=["MSVDT2VRetrieval"])
    >>> mteb.evaluate(AlproEncoder("my-alpro"), tasks)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, Video
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..loading import BUNDLED, load_model

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "mteb":
        raise
    raise ImportError('The MTEB harness is not installed: pip install "alpro-hf[mteb]"') from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType

_COLUMNS = ("text", "image", "audio", "video")


class AlproEncoder(AbsEncoder):
    """Texts and clips to unit vectors of one space, by the towers of any ALPRO checkpoint.

    Args:
        model_name: Folder, Hub id, or `bundled`.
        revision: Of a Hub id.
        device: Where to compute; default the GPU if there is one.
        kwargs: What else the harness passes to a loader; there is nothing else.

    Raises:
        CommandError: The model is none of ALPRO.
        OSError: It cannot be found or read.
    """

    def __init__(
        self, model_name: str = BUNDLED, revision: str | None = None, device: str | None = None, **kwargs: Any
    ):
        if kwargs:
            raise TypeError(f"AlproEncoder knows nothing of {', '.join(kwargs)}; frames are set in the processor.")
        model, self.processor = load_model("towers", model_name, revision=revision, device=device)
        self.model = model.eval()
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                # the harness wants an owner in front, which a folder has not
                "name": model_name if model_name.count("/") == 1 else f"local/{Path(model_name).name}",
                "revision": revision or getattr(model.config, "_commit_hash", None),
                "n_parameters": model.num_parameters(),
                "max_tokens": self.processor.tokenizer.model_max_length,
                "embed_dim": model.config.projection_dim,
                "languages": ["eng-Latn"],
                "modalities": ["text", "video"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
            }
        )

    @torch.inference_mode()
    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings float32 (rows, P) of a loader over rows that have either texts or clips.

        Raises:
            ValueError: The rows have images, sound, or both texts and clips, of which there is no one embedding.
            VideoDecodeError: A clip cannot be decoded.
        """
        columns = inputs.dataset.column_names if isinstance(inputs.dataset, Dataset) else ["text"]
        given = [name for name in _COLUMNS if name in columns]
        hidden = not show_progress_bar
        if given == ["text"]:
            parts = [self._texts(batch["text"]) for batch in tqdm(inputs, desc="texts", disable=hidden)]
        elif given == ["video"]:
            loader = undecoded(inputs)
            parts = [self._clips(batch) for batch in tqdm(loader, desc="clips", disable=hidden)]
        else:
            raise ValueError(
                f"{task_metadata.name}: ALPRO embeds texts or silent clips; these rows have {' and '.join(given)}. "
                "Choose a task from text to video, or from video to text or labels."
            )
        return torch.cat(parts).cpu().numpy()

    def _texts(self, texts: list[str]) -> torch.Tensor:
        words = self.processor(text=list(texts), return_tensors="pt").to(self.model.device)
        return self.model.get_text_features(**words).pooler_output.float()

    def _clips(self, rows: list[dict[str, Any]]) -> torch.Tensor:
        video_processor = self.processor.video_processor
        clips = [row["video"]["bytes"] or row["video"]["path"] for row in rows]
        pixels = torch.cat(
            [video_processor(videos=clip, return_tensors="pt")["pixel_values_videos"] for clip in clips]
        )
        return self.model.get_video_features(pixels.to(self.model.device)).pooler_output.float()


def undecoded(inputs: DataLoader[Any]) -> DataLoader[Any]:
    """The same rows with the files of their clips."""
    rows: Any = inputs.dataset
    if not isinstance(rows.features["video"], Video):
        raise ValueError(f"The column 'video' holds {rows.features['video']}, where files of clips are needed.")
    rows = rows.select_columns(["video"]).cast_column("video", Video(decode=False))
    return DataLoader(rows, batch_size=inputs.batch_size, collate_fn=list, num_workers=inputs.num_workers)


__all__ = ["AlproEncoder"]
