"""What a model cannot know: words it never learned, and clips from outside the closed world that it was trained on.

A model of a closed world answers everything, and with confidence. So whoever shows its results asks here first.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..data.isolated_decoder import IsolatedDecoder
from ..model.decoding_types import VideoDecodeError
from ..model.modeling_alpro import AlproForVideoQuestionAnswering
from ..sprites.language import training_words
from ..sprites.recognise import FRAMES, SHARE, SIDE, sprite_share
from ..sprites.world import MARK, SPRITE_WORLD

Video = TypeVar("Video", bound=str | Path)

LOOKED_AT = 16  # videos of a sample
# Answers of `unfamiliar_videos`, by path, size and time of the file: queries of one search find the same videos again,
# and opening ten of them takes longer than the search.
_REMEMBERED = 10_000
_ANSWERS: dict[tuple[str, int, int], bool] = {}
MOVEMENT = 32  # levels of 256 by which some pixel changes in every clip of the sprite world


def knows_only_sprites(model: Any) -> bool:
    """Whether a model was trained on the sprite world alone. Its configuration says so, wherever it was copied to."""
    return model.config.training_domain == SPRITE_WORLD


def unfamiliar_videos(model: Any, paths: Iterable[str | Path], decoder: IsolatedDecoder) -> list[Path]:
    """The videos that are not of the world that a model was trained on.

    Args:
        model: Any ALPRO model.
        paths: Video files. Those that cannot be read are passed over.
        decoder: Reads them in a process of its own. A file that has not changed is read once.

    Returns:
        The videos from outside, in the given order; none if the model was not trained on a closed world.
    """
    if not knows_only_sprites(model):
        return []
    found = []
    for path in paths:
        try:
            stat = os.stat(path)
            key = os.path.abspath(path), stat.st_size, stat.st_mtime_ns
            if key not in _ANSWERS:
                if len(_ANSWERS) >= _REMEMBERED:
                    _ANSWERS.clear()
                _ANSWERS[key] = is_sprite_clip(path, decoder)
            if not _ANSWERS[key]:
                found.append(Path(path))
        except (VideoDecodeError, OSError):  # whoever reads the video for its own sake reports this
            continue
    return found


def sample_of(paths: Sequence[Video]) -> Sequence[Video]:
    """Up to `LOOKED_AT` of many videos, evenly chosen: each that is asked about is opened once more."""
    return paths[:: max(1, len(paths) // LOOKED_AT)][:LOOKED_AT]


def is_sprite_clip(path: str | Path, decoder: IsolatedDecoder) -> bool:
    """Whether a video is a clip of the sprite world, whatever its name.

    The renderer leaves a mark in the metadata, which most copies keep. Copies without it are recognised by their
    pictures: they are square, and somewhere a sprite explains what is seen, see `sprites.recognise`.

    Args:
        path: A video file.
        decoder: Reads it in a process of its own.

    Raises:
        VideoDecodeError: The video cannot be read.
        OSError: There is no such file.
    """
    if decoder.comment(path) == MARK:  # asked first, because describing a file takes several times as long
        return True
    info = decoder.probe(path)
    if info.width != info.height or info.num_frames < FRAMES:
        return False
    frames = [place * (info.num_frames - 1) // (FRAMES - 1) for place in range(FRAMES)]
    pixels = decoder.decode(path, frames, height=SIDE, width=SIDE).pixels
    # something happens in every clip; a still picture is none, whatever it shows
    moves = bool((pixels.amax(0).int() - pixels.amin(0).int()).max() > MOVEMENT)
    return moves and sprite_share(pixels) >= SHARE


def unknown_words(model: Any, processor: Any, text: str) -> list[str]:
    """The words of a text that a model cannot know, each once, in order and as they are written.

    For a model of the sprite world these are the words that its training never had. For every other model, they are
    the words that its tokenizer reads as unknown tokens.

    Args:
        model: Any ALPRO model.
        processor: Its `AlproProcessor`.
        text: A query or a question.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:  # others do not tell which token is part of which word
        return []
    tokens = tokenizer(text, add_special_tokens=False)
    known = None
    if knows_only_sprites(model):
        known = training_words("qa" if isinstance(model, AlproForVideoQuestionAnswering) else "retrieval")
    found: dict[str, None] = {}
    for place, number in enumerate(tokens.word_ids(0)):
        start, end = tokens.word_to_chars(number)
        word = text[start:end]
        strange = tokens["input_ids"][place] == tokenizer.unk_token_id if known is None else word.lower() not in known
        if strange and any(map(str.isalnum, word)):
            found[word] = None
    return list(found)


__all__ = ["LOOKED_AT", "is_sprite_clip", "knows_only_sprites", "sample_of", "unfamiliar_videos", "unknown_words"]
