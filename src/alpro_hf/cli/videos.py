"""Parts that `alpro index` and `alpro search` share: which files they take, options, and reports of failures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.find_videos import find_videos
from ..loading import CommandError
from ..trust import printable
from .options import complain, whole_number

# path and reason
Failures = Sequence[tuple[Path, str]]

WHAT_IS_A_VIDEO = """\
In a folder, a file is a video if its extension is a well-known one of videos (.mp4, .mkv, .gif, ...) or if its first
bytes are those of a video container, whatever its name. Hidden files and folders are skipped.
"""


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add `--allow-outside` and `--deadline`."""
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="use videos outside of the folder that links, or the paths in an index, lead to (default: refuse)",
    )
    parser.add_argument(
        "--deadline",
        type=whole_number(1),
        default=300,
        metavar="SECONDS",
        help="give up on a video that takes longer to decode (default: 300)",
    )


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors of videos and indexes that a user can cause; see `cli/main.py`."""
    from ..hub.errors import ModelCardError
    from ..inference.index_shards import VideoIndexError
    from ..model.decoding_types import VideoDecodeError

    return VideoIndexError, VideoDecodeError, ModelCardError


def find_some_videos(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The videos among files and in folders, and what could not be read, with reasons.

    Raises:
        CommandError: There is no video. What could not be read was printed.
        FileNotFoundError: One of the paths does not exist.
    """
    videos, failed = find_videos(paths)
    if not videos:
        list_failed(failed)
        raise CommandError(f"there is no video in {', '.join(map(str, paths))}. {WHAT_IS_A_VIDEO}")
    return videos, failed


def say_what_it_is(name: str, model: Any) -> None:
    """Print to stderr what a model without a trained matching head is, such as BLIP's weights that saw no video.

    Args:
        name: Folder or Hub id. It may hold `training.json`, in which its converter wrote what the weights are.
        model: The model.

    Raises:
        ModelCardError: `training.json` cannot be used.
    """
    from ..model.matching_alpro import matching_problem

    if matching_problem(model) is None:
        return
    from ..hub.card import TrainingFacts

    facts = TrainingFacts.of_model(name)
    licence = [f"The licence of the weights is {facts.license}."] if facts.license else []
    said = [*filter(None, [facts.summary]), *facts.limits, *licence, "Videos are ordered by similarity alone."]
    print(printable(f"{name}: {' '.join(said)}"), file=sys.stderr)


def shown(path: Path) -> str:
    """A path for people: relative to the working directory if it is inside, and on one line."""
    here = Path.cwd()
    return printable(path.relative_to(here) if path.is_relative_to(here) else path)


def failed_json(failed: Failures) -> list[dict[str, str]]:
    """Failures as the JSON output has them: `path` and `reason`."""
    return [{"path": str(path), "reason": reason} for path, reason in failed]


def note_unknown_words(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Name the words of a text that the model does not know, in one line on stderr."""
    if words:
        listed = ", ".join(map(repr, words))
        complain(args, f"note: the model does not know {listed}; do not trust what it makes of the rest.")


def note_unfamiliar(args: argparse.Namespace, videos: Sequence[Path]) -> None:
    """Say in one line on stderr that videos are from outside the world that the model knows."""
    if videos:
        others = f" and {len(videos) - 1} more" if len(videos) > 1 else ""
        complain(
            args,
            f"note: this model knows a synthetic world of moving pictograms and nothing else, and {shown(videos[0])}"
            f"{others} {'are' if others else 'is'} not of it. Do not trust the result; name a model trained on real "
            "videos with --model.",
        )


def list_failed(failed: Failures) -> int:
    """Print failures to stderr and return the exit code: 1 if there were any, else 0."""
    for path, reason in failed:
        print(f"failed: {shown(path)}: {printable(reason)}", file=sys.stderr)
    return 1 if failed else 0
