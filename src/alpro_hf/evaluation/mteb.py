"""The two towers as an encoder for the MTEB harness: `pip install "alpro-hf[mteb]"`.

The harness passes its clips undecoded, so the package's own decoder and frame sampling are used and torchcodec is not
needed. The harness compares embeddings, so it measures the protocol `vtc`; the matching head gives no embeddings.

Example:
    >>> import mteb
    >>> from alpro_hf.evaluation.mteb import AlproEncoder
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
from ..model.matching_alpro import encode_clips

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

_MODALITIES = ("text", "image", "audio", "video")  # columns of the harness that hold input


class AlproEncoder(AbsEncoder):
    """Encodes texts and clips as unit vectors in one space, with the towers of any ALPRO checkpoint.

    Args:
        model_name: Folder, Hub id, or `bundled`.
        revision: Of a Hub id.
        device: Device to compute on; default: the GPU if there is one.
        kwargs: The harness may pass more arguments to a loader; none are supported.

    Raises:
        CommandError: The checkpoint is not an ALPRO model.
        OSError: The checkpoint cannot be found or read.
        TypeError: There are other arguments.
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
                # the harness requires names of the form owner/name; a folder has no owner
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
        """Embeddings of rows that have either texts or clips.

        Args:
            inputs: Loader over the rows.
            task_metadata: Metadata of the task, named in errors.
            hf_split, hf_subset, prompt_type, kwargs: Part of the interface of the harness; not used.
            show_progress_bar: Show a bar on stderr.

        Returns:
            float32 (rows, P) unit vectors.

        Raises:
            ValueError: The rows have images or sound, or both texts and clips.
            VideoDecodeError: A clip cannot be decoded.
        """
        columns = inputs.dataset.column_names if isinstance(inputs.dataset, Dataset) else ["text"]
        given = [name for name in _MODALITIES if name in columns]
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
        # one call for each clip: sampled by frame rate, clips may differ in their number of frames
        pixels = [video_processor(videos=clip, return_tensors="pt")["pixel_values_videos"][0] for clip in clips]
        return torch.stack([clip.embed for clip in encode_clips(self.model, pixels)])


def undecoded(inputs: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over the same rows that gives the files of clips instead of decoded frames.

    Raises:
        ValueError: The rows hold no files of clips.
    """
    rows: Any = inputs.dataset
    if not isinstance(rows.features["video"], Video):
        raise ValueError(f"The column 'video' holds {rows.features['video']}, not files of clips.")
    rows = rows.select_columns(["video"]).cast_column("video", Video(decode=False))
    return DataLoader(rows, batch_size=inputs.batch_size, collate_fn=list, num_workers=inputs.num_workers)


__all__ = ["AlproEncoder"]
