"""Encode video files for an index: threads decode ahead while the model encodes batches.

A long file is decoded once and cut into windows on the way, see `data.windows`. What is decoded ahead is bounded: two
batches of clips, however many files and windows they are of.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..data.isolated_decoder import IsolatedDecoder
from ..data.prefetch import AT_ONCE, sharing
from ..data.windows import WindowSettings, model_windows
from ..model.decoding import choose_frames, decode, decode_stream, probe
from ..model.decoding_table import FrameTable
from ..model.decoding_types import Frames, TruncatedVideoError, VideoDecodeError, VideoInfo, VideoLimits
from ..model.matching_alpro import encode_clips
from ..model.modeling_alpro import AlproPreTrainedModel

_BATCHES_AHEAD = 2  # decoded, or in work, while the model encodes another one


@dataclass(frozen=True)
class EncodedVideo:
    """Features of one file or of one window of it, on the CPU, or the reason why there are none.

    Args:
        path: The file.
        embed: float32 unit vector (P,); None for a file that cannot be decoded.
        tokens: (1 + N, D), what the fusion layers read, or empty if they are not kept; None for a file that cannot
            be decoded.
        table: Where its frames are, which makes the next decoding quick; None if the file gives no table, and for all
            windows of a file but the last one.
        problem: Why it cannot be decoded. If windows of the file came before, it cannot be decoded from there on.
        start, end: Seconds of the window; None for a whole file.
        final: Whether it is the last of its file.
    """

    path: Path
    embed: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    table: FrameTable | None = None
    problem: str | None = None
    start: float | None = None
    end: float | None = None
    final: bool = True


@dataclass(frozen=True)
class _Clip:
    """What a thread has decoded: `pixels` (T, 3, H, W), or a `problem`."""

    pixels: torch.Tensor | None = None
    table: FrameTable | None = None
    problem: str | None = None
    start: float | None = None
    end: float | None = None
    final: bool = True


class _GivenUpError(Exception):
    """Nobody reads the clips any more."""


class _LongVideoError(Exception):
    """A file is too long for one clip, which is known once it is open. `table`: where its frames are."""

    def __init__(self, table: FrameTable | None) -> None:
        super().__init__()
        self.table = table


def encode_videos(
    model: AlproPreTrainedModel,
    processor: Any,
    files: Sequence[Path],
    batch_size: int,
    decoder: IsolatedDecoder | None = None,
    keep_tokens: bool = True,
    *,
    windows: WindowSettings | None = None,
    known: Mapping[Path, int] | None = None,
    limits: VideoLimits | None = None,
) -> Generator[list[EncodedVideo], None, None]:
    """Encode files batch by batch, in their order. The next clips are decoded while the model encodes.

    A file that cannot be decoded (`VideoDecodeError`) or read (`OSError`) is returned with its problem. With a
    `decoder` this includes files that crash or hang FFmpeg.

    Args:
        model: Any ALPRO model with both towers, in evaluation mode and on its device.
        processor: Its `AlproProcessor`.
        files: Video files.
        batch_size: Clips encoded at a time.
        decoder: Decodes in processes of its own. It is closed if the generator is closed early.
        keep_tokens: Whether the tokens are needed. They are much larger than the vectors.
        windows: How longer files are cut. None: each file is one clip.
        known: How many windows of a file are there already and are left out.
        limits: Limits on the cost of a video; None: the defaults.

    Yields:
        Batches of one `EncodedVideo` for each clip or problem.
    """
    waiting = _Waiting(_BATCHES_AHEAD * batch_size)
    _, threads = sharing(len(files), decoder.processes if decoder else None)
    source = _Source(processor, decoder, windows, known or {}, limits, waiting, threads)
    finished = False
    pool = ThreadPoolExecutor(AT_ONCE)
    ahead: deque[tuple[int, Path, Future[None]]] = deque()
    remaining = iter(enumerate(files))

    def submit() -> None:
        for number, file in islice(remaining, 1):
            work = pool.submit(source.decode, number, file)
            work.add_done_callback(waiting.look)
            ahead.append((number, file, work))

    try:
        for _ in range(_BATCHES_AHEAD * batch_size):
            submit()
        batch: list[tuple[Path, _Clip]] = []
        while ahead:
            number, file, work = ahead[0]
            clip = waiting.take(number, work)
            batch.append((file, clip))
            if clip.final:
                ahead.popleft()
            if len(batch) == batch_size or not ahead:
                yield _encode(model, batch, keep_tokens)
                # not before: what the caller has got may be stored by then
                for _ in range(sum(clip.final for _, clip in batch)):
                    submit()
                batch = []
        finished = True
    finally:
        # first, or a thread would begin the next file after its decoder was closed
        waiting.give_up()
        pool.shutdown(wait=False, cancel_futures=True)
        if decoder is not None and not finished:
            running = [work for _, _, work in ahead if not work.cancelled()]
            decoder.close()
            # A thread may have been about to start a process for its file, so closing once is not enough.
            while wait(running, timeout=0.1).not_done:
                decoder.close()
        pool.shutdown()


class _Waiting:
    """Decoded clips that wait for the model, at most `limit` of all files together.

    The file whose clips are taken now may always add the next one. Otherwise clips of later files could fill the
    room, and nobody would take them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clips: dict[int, deque[_Clip]] = defaultdict(deque)  # of each file, by its number
        self._count = 0
        self._taken = -1  # the file whose clips are taken now
        self._given_up = False
        self._changed = threading.Condition()

    def put(self, file: int, clip: _Clip) -> None:
        """Add a clip of a file, as soon as there is room.

        Raises:
            _GivenUpError: Nobody takes the clips any more.
        """

        def may_go_on() -> bool:
            awaited = file == self._taken and not self._clips[file]
            return self._given_up or self._count < self._limit or awaited

        with self._changed:
            self._changed.wait_for(may_go_on)
            if self._given_up:
                raise _GivenUpError
            self._clips[file].append(clip)
            self._count += 1
            self._changed.notify_all()

    def take(self, file: int, work: "Future[None]") -> _Clip:
        """Take the next clip of a file, which `work` decodes."""
        with self._changed:
            self._taken = file
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._clips[file] or work.done())
            if not self._clips[file]:
                work.result()  # raises what the thread did not expect
                raise RuntimeError("A thread that decodes ended without a last clip.")
            clip = self._clips[file].popleft()
            if clip.final:
                del self._clips[file]
            self._count -= 1
            self._changed.notify_all()
            return clip

    def look(self, work: "Future[None]") -> None:
        """Let `take` see that the work on a file has ended."""
        with self._changed:
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let all that wait in `put` end."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()


@dataclass
class _Source:
    """Decodes files for the model, in threads."""

    processor: Any
    decoder: IsolatedDecoder | None
    windows: WindowSettings | None
    known: Mapping[Path, int]
    limits: VideoLimits | None
    waiting: _Waiting
    threads: int  # of FFmpeg, for one clip; a long file has those that it wants

    def decode(self, number: int, file: Path) -> None:
        """Let the clips of a file wait for the model under its number; the last one is `final`."""
        with suppress(_GivenUpError):
            try:
                for clip in self._clips(file):
                    self.waiting.put(number, clip)
            except VideoDecodeError as error:
                self.waiting.put(number, _Clip(problem=f"{error.problem}. {error.advice}"))
            except OSError as error:
                self.waiting.put(number, _Clip(problem=error.strerror or str(error)))

    def _clips(self, file: Path) -> Generator[_Clip, None, None]:
        limits: dict[str, Any] = {} if self.limits is None else {"limits": self.limits}
        table: FrameTable | None = None
        try:
            yield self._whole(file)
            return
        except _LongVideoError as error:
            table = error.table  # its packets need not be listed again
        except TruncatedVideoError:
            if self.windows is None:
                raise
            # the readable part of a long video is worth its windows
            info = (self.decoder.probe if self.decoder else probe)(file, **limits)
            if info.duration <= self.windows.short:
                raise
        assert self.windows is not None
        tables: list[FrameTable | None] = []
        stream = self.decoder.stream if self.decoder else decode_stream

        def noting(*source: Any, **options: Any) -> Generator[Frames, None, None]:
            with closing(stream(*source, **options)) as parts:  # type: ignore[type-var]
                for frames in parts:
                    tables[:] = [frames.table]
                    yield frames

        left_out = self.known.get(file, 0)
        held: _Clip | None = None  # one window back, because only the last one is final
        with closing(
            model_windows(file, self.processor, self.windows, stream=noting, table=table, **limits)
        ) as windows:
            try:
                for number, (window, pixels) in enumerate(windows):
                    if held is not None:
                        yield held
                    clip = _Clip(pixels, start=window.start, end=window.end, final=False)
                    held = clip if number >= left_out else None
            except VideoDecodeError:
                if held is not None:  # what came before the damage counts
                    yield held
                raise
        if held is None:
            raise VideoDecodeError(str(file), "it has no window that is not known", "Index again, into a new folder")
        yield replace(held, final=True, table=tables[0] if tables else None)

    def _whole(self, file: Path) -> _Clip:
        tables: list[FrameTable | None] = []

        def decode_and_note(source: Any, indices: Any, **options: Any) -> Frames:
            long = False

            def choose(info: VideoInfo) -> list[int]:
                nonlocal long
                long = self.windows is not None and info.duration > self.windows.short
                # one frame, because an error here would cost the process of a decoder
                return [0] if long else choose_frames(indices, info)

            if self.limits is not None:
                options["limits"] = self.limits
            options["threads"] = self.threads
            frames = (self.decoder.decode if self.decoder else decode)(source, choose, **options)
            if long:
                raise _LongVideoError(frames.table)
            tables.append(frames.table)
            return frames

        seen = self.processor.video_processor(file, return_tensors="pt", decoder=decode_and_note)
        return _Clip(seen["pixel_values_videos"][0], tables[-1])


@torch.inference_mode()
def _encode(model: AlproPreTrainedModel, batch: Sequence[tuple[Path, _Clip]], keep_tokens: bool) -> list[EncodedVideo]:
    clips = [clip.pixels for _, clip in batch if clip.pixels is not None]
    encoded = iter(encode_clips(model, clips))
    videos = []
    for file, clip in batch:
        if clip.pixels is None:
            videos.append(EncodedVideo(file, problem=clip.problem))
        else:
            found = next(encoded)
            tokens = (found.tokens if keep_tokens else found.tokens[:0]).cpu()
            videos.append(
                EncodedVideo(file, found.embed.cpu(), tokens, clip.table, None, clip.start, clip.end, clip.final)
            )
    return videos


__all__ = ["EncodedVideo", "encode_videos"]
