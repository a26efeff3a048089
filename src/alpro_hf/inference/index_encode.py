"""From video files to what an index keeps of them: decoded ahead by threads, encoded in batches."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..model.decoding import decode
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames, VideoDecodeError
from ..model.modeling_alpro import AlproForVideoTextRetrieval

_DECODERS = 2  # threads that decode ahead; FFmpeg itself uses all cores for one video


@dataclass(frozen=True)
class EncodedVideo:
    """What a model makes of one file, on the CPU.

    Args:
        path: The file.
        embed: float32 unit vector (P,); None for a file that cannot be decoded.
        tokens: (1 + N, D), what the fusion layers read; None for a file that cannot be decoded.
        table: Where its frames are, for the next decode of it; None where only decoding tells.
        problem: Why it cannot be decoded.
    """

    path: Path
    embed: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    table: FrameTable | None = None
    problem: str | None = None


_Loaded = tuple[torch.Tensor, FrameTable | None]  # (T, 3, H, W)


def encode_videos(
    model: AlproForVideoTextRetrieval,
    processor: Any,
    files: Sequence[Path],
    batch_size: int,
    decoder: IsolatedDecoder | None = None,
) -> Generator[list[EncodedVideo], None, None]:
    """Encode files batch by batch, in their order; the next batch is decoded while the model is at work.

    A file that cannot be decoded (`VideoDecodeError`) or read (`OSError`) comes back with its problem. With a
    `decoder` that holds for files that crash or hang FFmpeg, too.
    """
    finished = False
    ahead: deque[list[tuple[Path, Future[_Loaded | str]]]] = deque()
    pool = ThreadPoolExecutor(_DECODERS)
    try:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            ahead.append([(file, pool.submit(_load, processor, file, decoder)) for file in batch])
            if len(ahead) == 2:
                yield _encode(model, ahead.popleft())
        while ahead:
            yield _encode(model, ahead.popleft())
        finished = True
    finally:
        if decoder is not None and not finished:
            decoder.close()  # lets go of the threads that wait for it
        pool.shutdown(cancel_futures=True)


def _load(processor: Any, file: Path, decoder: IsolatedDecoder | None) -> _Loaded | str:
    """What the model sees, and where it was found; or the problem."""
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
    model: AlproForVideoTextRetrieval, batch: Sequence[tuple[Path, Future[_Loaded | str]]]
) -> list[EncodedVideo]:
    decoded = [(file, future.result()) for file, future in batch]
    clips = [loaded[0] for _, loaded in decoded if not isinstance(loaded, str)]
    one_size = len({clip.shape for clip in clips}) == 1  # not so where the processor samples by frame rate
    stacks = [torch.stack(clips)] if one_size else [clip[None] for clip in clips]
    outputs = [model.alpro.get_video_features(stack.to(model.device)) for stack in stacks]
    embeds = (embed for output in outputs for embed in output.pooler_output.float().cpu())
    tokens = (token for output in outputs for token in output.last_hidden_state.cpu())
    return [
        EncodedVideo(file, problem=loaded)
        if isinstance(loaded, str)
        else EncodedVideo(file, embed=next(embeds), tokens=next(tokens), table=loaded[1])
        for file, loaded in decoded
    ]
