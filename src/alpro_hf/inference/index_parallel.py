"""Build one index with several processes, on one machine or on several that share a folder.

Each process encodes its share of the videos into an index of its own below the folder (`part-<number>-<process>`).
At the end a new manifest names the shards of all parts; no shard is copied. The next run continues an interrupted one.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..data.isolated_decoder import IsolatedDecoder
from ..data.window_choice import WindowChoice
from ..files import is_link
from ..model.decoding_types import VideoLimits
from ..model.modeling_alpro import AlproPreTrainedModel
from .index_shards import IndexFolder, IndexingReport, Manifest
from .video_index import VideoIndex, VideoPath


def build_in_processes(
    model: AlproPreTrainedModel,
    processor: Any,
    paths: Iterable[VideoPath],
    directory: VideoPath,
    state: PartialState,
    *,
    batch_size: int = 8,
    shard_size: int = 64,
    progress: bool = True,
    name: str | None = None,
    allow_outside: bool = False,
    num_frames: int | None = None,
    size: int | None = None,
    window: WindowChoice = None,
    stride: float | None = None,
    token_dtype: str | None = None,
    limits: VideoLimits | None = None,
    decoder: IsolatedDecoder | None = None,
) -> VideoIndex:
    """Build an index as `VideoIndex.build` does, with several processes that each call this with the same arguments.

    Args:
        model, processor: The same in every process, on the device of the process.
        paths: All videos, in the same order in every process.
        directory: Folder that all processes can read and write.
        state: The processes.
        batch_size, shard_size, progress, name, allow_outside, limits, decoder: As in `VideoIndex.build`. Only the
            first process shows its progress.
        num_frames, size, window, stride, token_dtype: As in `VideoIndex.build`.

    Returns:
        The whole index, with a report that covers all processes.

    Raises:
        IndexMismatchError: `directory` holds an index of another model.
        VideoIndexError: `directory` holds a damaged index, or as in `VideoIndex.add`.
    """
    files = [Path(os.path.abspath(path)) for path in dict.fromkeys(paths)]
    folder = IndexFolder(directory)
    known: dict[str, Any] = {"name": name, "allow_outside": allow_outside}
    root = Path(os.path.commonpath([file.parent for file in files])) if files else None
    for unfinished in folder.parts():  # of an interrupted run: its entries are relative to the root of that run
        root = Manifest.read(unfinished, within=root, allow_outside=allow_outside).root
    frames: dict[str, Any] = {"num_frames": num_frames, "size": size, "window": window, "stride": stride}
    frames |= {"token_dtype": token_dtype}
    whole = VideoIndex.open(directory, model, processor, root=root, **frames, **known)
    new: list[Path] = []
    unchanged: list[Path] = []
    for file in files:
        try:
            (unchanged if whole.is_current(file) else new).append(file)
        except OSError:  # the process that gets this file reports it
            new.append(file)
    state.wait_for_everyone()  # no process may write before all have read, or they would share the files differently

    part_folder = whole.part_folder(state.process_index)
    if is_link(part_folder):  # a part is written into a folder of the index
        part_folder.unlink()
    part = VideoIndex.build(
        model,
        whole.processor,  # with the frames that the index notes
        new[state.process_index :: state.num_processes],
        directory=part_folder,
        batch_size=batch_size,
        shard_size=shard_size,
        progress=progress and state.is_main_process,
        root=whole.root,
        window=whole.windows or "none",
        token_dtype=whole.token_dtype,
        limits=limits,
        decoder=decoder,
        **known,
    )
    reports: list[IndexingReport] = gather_object([part.report])
    if state.is_main_process:
        for built in folder.parts():  # also those of an interrupted run
            whole.adopt(VideoIndex.load(built, model, whole.processor, root=whole.root, **known))
    state.wait_for_everyone()
    if not state.is_main_process:
        whole = VideoIndex.open(directory, model, processor, root=root, **known)
    whole.report = IndexingReport(
        indexed=[path for report in reports for path in report.indexed],
        unchanged=unchanged + [path for report in reports for path in report.unchanged],
        failed=[failure for report in reports for failure in report.failed],
    )
    if state.is_main_process:
        folder.write_failed(whole.report.failed)
    return whole


__all__ = ["build_in_processes"]
