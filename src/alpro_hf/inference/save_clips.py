"""Write the moments that a search has found as videos."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.cut_clip import CutError, cut_clip
from ..data.isolated_decoder import IsolatedDecoder
from ..data.spans import Span, SpanError, span_text
from ..model.decoding import probe
from ..model.decoding_types import VideoDecodeError
from .video_index import SearchResult

_LONGEST = 200  # bytes of the name of a video in the name of its clip


def clip_name(result: SearchResult) -> str:
    """A file name with rank, video and time, such as `01_match_00.41.08-00.41.23.mp4`; a long name is cut."""
    span = _span_of(result)
    time = "" if span is None else "_" + span_text(span.start, span.end).replace(":", ".")
    # in bytes, of which a file system takes 255; a character that is cut is left out
    stem = os.fsencode(result.path.stem)[:_LONGEST].decode(errors="surrogateescape")
    while "\udc80" <= stem[-1:] <= "\udcff" and not result.path.stem.startswith(stem):
        stem = stem[:-1]
    return f"{result.rank:02d}_{stem}{time}.mp4"


def unreadable(path: Path, decoder: IsolatedDecoder | None = None) -> str | None:
    """Why a video of an index cannot be read, which may have changed since it was encoded; None if it can.

    A pipe would keep whoever opens it for ever, and so may a file that a stranger has made.

    Args:
        path: The video.
        decoder: Looks into it in a process of its own.
    """
    if not path.is_file():
        return "it is not there any more, or is no file. Index its folder again"
    try:
        (probe if decoder is None else decoder.probe)(path)
    except VideoDecodeError as error:
        return f"{error.problem}. {error.advice}"
    except OSError as error:
        return error.strerror or str(error)
    return None


def save_clips(
    results: Sequence[SearchResult], folder: Path, *, exact: bool = False, decoder: IsolatedDecoder | None = None
) -> tuple[dict[int, Path], list[tuple[Path, str]]]:
    """Write the moment of each result as an mp4; see `cut_clip`. A result without a moment is written as a whole.

    Args:
        results: Results of a search.
        folder: Where to write; made if it does not exist.
        exact: Encode exactly the moments instead of copying them from the key frame before.
        decoder: Looks into each video first, in a process of its own.

    Returns:
        Rank -> file; and (video, reason) for those that could not be written.

    Raises:
        CutError: One of the files exists already. Nothing was written.
        OSError: The folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {result.rank: folder / clip_name(result) for result in results}
    existing = next((file for file in files.values() if file.exists()), None)
    if existing is not None:
        raise CutError(str(existing), "the file exists already", "Name another folder, or delete it first")
    failed: list[tuple[Path, str]] = []
    for result in results:
        problem = unreadable(result.path, decoder)
        if problem is None:
            try:
                cut_clip(result.path, files[result.rank], _span_of(result), exact=exact)
            except VideoDecodeError as error:
                problem = f"{error.problem}. {error.advice}"
            except SpanError as error:  # what the index says of a video that has changed, or that a stranger made up
                problem = str(error).removesuffix(".")
        if problem is not None:
            failed.append((result.path, problem))
            del files[result.rank]
    return files, failed


def _span_of(result: SearchResult) -> Span | None:
    return None if result.start is None or result.end is None else Span(result.start, result.end)


__all__ = ["clip_name", "save_clips", "unreadable"]
