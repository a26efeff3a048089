"""Prepare the next items while the last one is worked on."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
AT_ONCE = 2  # videos that threads of one process decode at the same time; what is not FFmpeg's holds Python's lock
_END: Any = object()


def sharing(clips: int, processes: int | None = None) -> tuple[int, int]:
    """How many of some clips to decode at the same time, and FFmpeg's threads for each: 0 for one per core.

    `processes` are those of an `IsolatedDecoder`, if one decodes.
    """
    together = min(AT_ONCE, clips, processes or AT_ONCE)
    return together, max(1, (os.cpu_count() or 1) // together) if together > 1 else 0


def prefetched(items: Iterable[T], ahead: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, taken from their source by a thread before they are asked for.

    Decoding and tensor operations release the interpreter's lock, so a thread is enough, and nothing is copied between
    processes. An error of the source is raised where its item would have come.

    Args:
        items: The source. Only the thread takes items from it, one after the other.
        ahead: How many items may be ready or in work, besides the one that the caller has.

    Yields:
        The items.
    """
    source = iter(items)
    # threads begin outside of inference mode, and a source that was made in it may hold tensors of that mode
    mode = torch.is_inference_mode_enabled()

    def take() -> T:
        with torch.inference_mode(mode):
            return next(source, _END)

    with ThreadPoolExecutor(1, thread_name_prefix="alpro-prefetch") as pool:
        waiting: deque[Future[T]] = deque(pool.submit(take) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(take))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            if isinstance(source, Generator):
                source.close()


__all__ = ["AT_ONCE", "prefetched", "sharing"]
