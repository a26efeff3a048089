"""The one place that turns what PyAV raises into errors of this package, which name the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import av.error

from .decoding_types import UnsupportedVideoError, VideoDecodeError

# FFmpeg's errors are `FFmpegError`. PyAV raises Python's own errors for what FFmpeg knows and PyAV does not, such as
# new kinds of side data and formats of pixels. `OSError` and `MemoryError` come from the system and pass through.
PYAV_ERRORS = (
    av.error.FFmpegError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)


@contextmanager
def pyav_errors(name: str, action: str) -> Iterator[None]:
    """Run calls into PyAV; put no other code inside.

    Args:
        name: The input, for messages.
        action: What the calls do, such as "read its header".

    Raises:
        VideoDecodeError: PyAV raised an error.
    """
    try:
        yield
    except VideoDecodeError:
        raise
    except PYAV_ERRORS as error:
        raise pyav_error(name, action, error) from error


def pyav_error(name: str, action: str, error: Exception) -> VideoDecodeError:
    """The error of this package for one of PyAV."""
    kind = UnsupportedVideoError if is_unsupported(error) else VideoDecodeError
    return kind(name, f"FFmpeg or PyAV cannot {action} ({shown(error)})", "Re-encode it, for instance to H.264 in mp4")


def is_unsupported(error: Exception) -> bool:
    """Whether an error says that FFmpeg lacks a feature, and not that the data are damaged."""
    return isinstance(error, av.error.PatchWelcomeError | av.error.DecoderNotFoundError | NotImplementedError)


def shown(error: Exception) -> str:
    """The reason in an error of PyAV."""
    return (error.strerror if isinstance(error, av.error.FFmpegError) else "") or str(error) or type(error).__name__


__all__ = ["PYAV_ERRORS", "is_unsupported", "pyav_error", "pyav_errors", "shown"]
