"""Settings of an evaluation.

This module imports neither torch nor datasets, so that the command line can describe its options quickly.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub.dataclasses import strict

from ..loading import BUNDLED

EVALUATED_TASKS = ("retrieval", "qa", "moments")
RETRIEVAL_PROTOCOLS = ("reference", "rerank", "vtc")
MOMENT_GALLERIES = ("own", "all")
MomentGallery = Literal["own", "all"]
DEFAULT_PROTOCOL = "reference"
DEFAULT_RERANK_K = 16


class EvaluationError(ValueError):
    """An evaluation cannot be carried out with its settings; the message names the setting and what to do."""


@strict
@dataclass(kw_only=True)
class Evaluation:
    """Settings of `evaluate`; the options of `alpro evaluate` have the same names.

    Args:
        task: `retrieval`, `qa` (question answering) or `moments` (when a video shows what a text says).
        data: A file or folder of rows, or KIND:PATH for annotations in a published format, see `load_rows`.
        output: Folder for the results.
        overwrite: Replace results that `output` already holds.
        videos: Folder of the clips of KIND:PATH.
        split: Split of the data, where it has several.
        video_names: For KIND:PATH, a file with lines `<name> <id>`, such as `youtube_mapping.txt` of MSVD.
        on_missing: For KIND:PATH, what to do about clips that do not exist: `drop` their rows and list the clips in
            `output`, or `error`. None: `drop`.
        allow_outside: For KIND:PATH, accept clips outside of their folder, reached by `..`, links or absolute paths.
        by: Columns to group the metrics by, besides `category`, `duration` and the number of words.
        model: Folder, Hub id, or `bundled`.
        revision: Branch, tag or commit of a Hub id.
        num_frames: Frames to sample from a clip. None: as the processor of the model.
        text_length: Tokens after which a text is cut. None: as the tokenizer of the model.
        protocol: For retrieval, `reference`, `rerank` or `vtc`, see `retrieval_scores`. None: `reference`, or `vtc` if
            the model has no trained matching head.
        rerank_k: For `rerank`, candidates per query that are re-ranked. None: 16.
        rerank_margin: For `rerank`, how much less similar than the best candidate of a query another one may be to be
            re-ranked, at least 0. None: any.
        prior: For `rerank`, whether to add the similarity to the matching logit.
        gallery: For moments, the windows that a text is compared with, `own` (of its own video) or `all` (of all
            videos), see `measure_moments`. None: `own`.
        window: For moments, seconds of a window; several lengths each cut the whole video. `scenes`: the scenes that
            PySceneDetect finds. None: as `WindowSettings`.
        stride: For moments, seconds between the starts of windows of the greatest length. None: half of it.
        cuts: For moments, whether windows end at cuts and fades.
        join: For moments, join neighbouring windows of about the same similarity, see `VideoIndex.search`.
        trim: For moments, cut off ends where the similarity is lower, see `VideoIndex.search`.
        batch_size: Clips, or windows, to encode at a time.
        pair_batch_size: Pairs to match at a time. None: chosen for the device, see `vtm_scores`.
        workers: Processes that decode ahead of the model; 0: a thread of the main process does.
        dtype: `float32`; `bfloat16`, which rounds; `auto`, which is bfloat16 if the device has it in hardware; or
            `int8` for `loading.with_int8_weights`, on a CPU.
        draws: Resamples of the bootstrap behind the intervals.
        plot: Draw the pictures, which needs matplotlib.
        command: Command line to record in the results. Default: that of the process.

    Raises:
        StrictDataclassError: A setting has the wrong type, or is none of the values above.
    """

    task: Literal["retrieval", "qa", "moments"]
    data: str
    output: Path
    overwrite: bool = False
    videos: Path | None = None
    split: str | None = None
    video_names: Path | None = None
    on_missing: Literal["drop", "error"] | None = None
    allow_outside: bool = False
    by: list[str] = field(default_factory=list)
    model: str = BUNDLED
    revision: str | None = None
    num_frames: int | None = None
    text_length: int | None = None
    protocol: Literal["reference", "rerank", "vtc"] | None = None
    rerank_k: int | None = None
    rerank_margin: float | int | None = None
    prior: bool = True
    gallery: MomentGallery | None = None
    window: list[float | int] | Literal["scenes"] | None = None
    stride: float | int | None = None
    cuts: bool = True
    join: bool = False
    trim: bool = False
    batch_size: int = 16
    pair_batch_size: int | None = None
    workers: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "float32"
    draws: int = 1000
    plot: bool = True
    command: list[str] = field(default_factory=lambda: list(sys.argv))


__all__ = [
    "DEFAULT_PROTOCOL",
    "DEFAULT_RERANK_K",
    "EVALUATED_TASKS",
    "MOMENT_GALLERIES",
    "RETRIEVAL_PROTOCOLS",
    "Evaluation",
    "EvaluationError",
    "MomentGallery",
]
