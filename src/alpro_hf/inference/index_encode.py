"""Encode video files for an index: threads decode ahead while the model encodes batches."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..model.decoding import decode
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames, VideoDecodeError
from ..model.matching_alpro import encode_clips
from ..model.modeling_alpro import AlproPreTrainedModel

_DECODERS = 2  # threads that decode ahead; FFmpeg itself uses all cores for one video


@dataclass(frozen=True)
class EncodedVideo:
    """Features of one file, on the CPU, or the reason why there are none.

    Args:
        path: The file.
        embed: float32 unit vector (P,); None for a file that cannot be decoded.
        tokens: (1 + N, D), what the fusion layers read, or (0, D) if they are not kept; None for a file that cannot
            be decoded.
        table: Where its frames are, which makes the next decoding quick; None if the file gives no table.
        problem: Why it cannot be decoded.
    """

    path: Path
    embed: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    table: FrameTable | None = None
    problem: str | None = None


_Loaded = tuple[torch.Tensor, FrameTable | None]  # (T, 3, H, W)


def encode_videos(
    model: AlproPreTrainedModel,
    processor: Any,
    files: Sequence[Path],
    batch_size: int,
    decoder: IsolatedDecoder | None = None,
    keep_tokens: bool = True,
) -> Generator[list[EncodedVideo], None, None]:
    """Encode files batch by batch, in their order. The next batch is decoded while the model encodes.

    A file that cannot be decoded (`VideoDecodeError`) or read (`OSError`) is returned with its problem. With a
    `decoder` this includes files that crash or hang FFmpeg.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode and on its device.
        processor: Its `AlproProcessor`.
        files: Video files.
        batch_size: Files encoded at a time.
        decoder: Decodes in processes of its own. It is closed if the generator is closed early.
        keep_tokens: Whether the tokens are needed. They are much larger than the vectors.

    Yields:
        One `EncodedVideo` for each file of a batch.
    """
    finished = False
    ahead: deque[list[tuple[Path, Future[_Loaded | str]]]] = deque()
    pool = ThreadPoolExecutor(_DECODERS)
    try:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            ahead.append([(file, pool.submit(_load, processor, file, decoder)) for file in batch])
            if len(ahead) == 2:
                yield _encode_next(model, ahead, keep_tokens)
        while ahead:
            yield _encode_next(model, ahead, keep_tokens)
        finished = True
    finally:
        # first, or a thread would begin the next file after its decoder was closed
        pool.shutdown(wait=False, cancel_futures=True)
        if decoder is not None and not finished:
            running = [future for batch in ahead for _, future in batch if not future.cancelled()]
            decoder.close()
            # A thread may have been about to start a process for its file, so closing once is not enough.
            while wait(running, timeout=0.1).not_done:
                decoder.close()
        pool.shutdown()


def _encode_next(
    model: AlproPreTrainedModel, ahead: deque[list[tuple[Path, Future[_Loaded | str]]]], keep_tokens: bool
) -> list[EncodedVideo]:
    encoded = _encode(model, ahead[0], keep_tokens)
    ahead.popleft()  # not before: an interruption while its files are decoded must find them here
    return encoded


def _load(processor: Any, file: Path, decoder: IsolatedDecoder | None) -> _Loaded | str:
    """Pixels of a file and its frame table, or the problem."""
    tables: list[FrameTable | None] = []

    def decode_and_note(*source: Any, **options: Any) -> Frames:
        frames = (decoder.decode if decoder else decode)(*source, **options)
        tables.append(frames.table)
        return frames

    try:
        seen = processor.video_processor(file, return_tensors="pt", decoder=decode_and_note)
        return seen["pixel_values_videos"][0], tables[-1]
    except VideoDecodeError as error:
        return f"{error.problem}. {error.advice}"
    except OSError as error:
        return error.strerror or str(error)


@torch.inference_mode()
def _encode(
    model: AlproPreTrainedModel, batch: Sequence[tuple[Path, Future[_Loaded | str]]], keep_tokens: bool
) -> list[EncodedVideo]:
    decoded = [(file, future.result()) for file, future in batch]
    clips = [loaded[0] for _, loaded in decoded if not isinstance(loaded, str)]
    encoded = iter(encode_clips(model, clips))
    videos = []
    for file, loaded in decoded:
        if isinstance(loaded, str):
            videos.append(EncodedVideo(file, problem=loaded))
        else:
            clip = next(encoded)
            tokens = clip.tokens if keep_tokens else clip.tokens[:0]
            videos.append(EncodedVideo(file, clip.embed.cpu(), tokens.cpu(), table=loaded[1]))
    return videos
