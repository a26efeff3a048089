"""How people say how long videos are cut, for an index, for labels and for an evaluation."""

from collections.abc import Sequence
from dataclasses import replace

from .windows import WindowSettings

# `auto`, `scenes`, `none`, or seconds of one or several lengths; None: `auto`, or as an index was made
WindowChoice = str | float | Sequence[float] | WindowSettings | None

WINDOW_WORDS = ("auto", "scenes", "none")
_SCENES = WindowSettings(lengths=(15.0,), short=0.0, shortest=1.0, cuts="scenes")


class WindowError(ValueError):
    """Windows were asked for that cannot be made."""


def window_settings(window: WindowChoice, stride: float | None = None, *, cuts: bool = True) -> WindowSettings | None:
    """How long videos are cut.

    Args:
        window: `auto` (and None): windows of 15 and 7.5 s of videos longer than 30 s, ending at cuts and fades.
            `scenes`: the scenes that PySceneDetect finds, those under 1 s joined with the next one and those over
            15 s cut. `none`: whole files. One or several numbers: seconds of a window, of videos that are longer than
            that. Settings are taken as they are.
        stride: Seconds from one window to the next; None: half of the length.
        cuts: Whether windows end at cuts and fades; not looked at for `scenes`, `none` and settings.

    Returns:
        The settings; None for whole files.

    Raises:
        WindowError: The words or numbers make no sense.
    """
    if isinstance(window, WindowSettings):
        return window
    try:
        if window == "scenes":
            return replace(_SCENES, stride=stride)
        if window == "none":
            if stride is not None:
                raise ValueError("a stride needs windows")
            return None
        ends = WindowSettings.cuts if cuts else None
        if window is None or window == "auto":
            return WindowSettings(stride=stride, cuts=ends)
        if isinstance(window, str):
            raise ValueError(f"expected {', '.join(WINDOW_WORDS)}, or seconds")
        lengths = tuple(float(length) for length in (window if isinstance(window, Sequence) else (window,)))
        shortest = min((WindowSettings.shortest, *lengths))
        return WindowSettings(lengths, stride, short=max(lengths, default=0.0), shortest=shortest, cuts=ends)
    except (TypeError, ValueError) as error:
        strided = "" if stride is None else f" with stride={stride!r} (--stride)"
        raise WindowError(f"window={window!r} (--window){strided} cannot be used: {error}") from error


__all__ = ["WINDOW_WORDS", "WindowChoice", "WindowError", "window_settings"]
