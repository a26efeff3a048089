"""Build one index with several processes, of one machine or of many that share a folder.

Each process encodes its share of the videos into an index of its own below the folder (`part-<number>-<process>`);
at the end their shards become part of the one index by a new manifest, and no shard is copied. What an interrupted run
has done is taken up by the next one.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..data.isolated_decoder import IsolatedDecoder
from ..model.modeling_alpro import AlproForVideoTextRetrieval
from .index_shards import MANIFEST, IndexFolder, IndexingReport, Manifest, VideoEntry
from .video_index import VideoIndex, VideoPath


def build_in_processes(
    model: AlproForVideoTextRetrieval,
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
    decoder: IsolatedDecoder | None = None,
) -> VideoIndex:
    """What `VideoIndex.build` does, by all processes of `state` together; each calls this with the same arguments.

    Args:
        model, processor: The same in every process, on the device of the process.
        paths: All videos, in the same order everywhere.
        directory: Folder that all processes see.
        batch_size, shard_size, progress, name, allow_outside, decoder: As in `VideoIndex.build`; the first process
            shows its own progress.

    Returns:
        The whole index, with a report of what all processes did.

    Raises:
        IndexMismatchError: `directory` holds an index of another model.
    """
    files = [Path(os.path.abspath(path)) for path in dict.fromkeys(paths)]
    folder = IndexFolder(directory)
    known: dict[str, Any] = {"name": name, "allow_outside": allow_outside}
    whole = VideoIndex(model, processor, **known)
    if (folder.path / MANIFEST).exists():
        whole = VideoIndex.load(folder.path, model, processor, **known)
    else:
        whole._folder = folder
        whole._root = Path(os.path.commonpath([file.parent for file in files])) if files else None
        for left in sorted(folder.path.glob(f"part-*/{MANIFEST}")):  # of an interrupted run
            whole._root = Manifest.read(left.parent).root
    new: list[Path] = []
    unchanged: list[Path] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:  # the process whose share it is reports it
            new.append(file)
            continue
        there = whole._holds(VideoEntry(whole._key(file), stat.st_size, stat.st_mtime_ns))
        (unchanged if there else new).append(file)
    state.wait_for_everyone()  # nobody writes before all have read

    part = VideoIndex.build(
        model,
        processor,
        new[state.process_index :: state.num_processes],
        directory=folder.path / f"part-{whole._next_shard:05d}-{state.process_index:03d}",
        batch_size=batch_size,
        shard_size=shard_size,
        progress=progress and state.is_main_process,
        root=whole._root,
        decoder=decoder,
        **known,
    )
    reports: list[IndexingReport] = gather_object([part.report])
    if state.is_main_process:
        for found in sorted(folder.path.glob(f"part-*/{MANIFEST}")):
            whole.adopt(VideoIndex.load(found.parent, model, processor, **known))
    state.wait_for_everyone()
    if not state.is_main_process and (folder.path / MANIFEST).exists():
        whole = VideoIndex.load(folder.path, model, processor, **known)
    whole.report = IndexingReport(
        indexed=[path for report in reports for path in report.indexed],
        unchanged=unchanged + [path for report in reports for path in report.unchanged],
        failed=[failure for report in reports for failure in report.failed],
    )
    if state.is_main_process:
        folder.write_failed(whole.report.failed)
    return whole


__all__ = ["build_in_processes"]
