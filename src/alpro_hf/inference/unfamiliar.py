"""What a model cannot know: words it never learned, and clips from outside the closed world that it was trained on.

A model of a closed world answers everything, and with confidence. So whoever shows its results asks here first.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.isolated_decoder import IsolatedDecoder
from ..model.decoding_types import VideoDecodeError
from ..model.modeling_alpro import AlproForVideoQuestionAnswering
from ..sprites.language import training_words
from ..sprites.world import MARK, SPRITE_WORLD


def knows_only_sprites(model: Any) -> bool:
    """Whether a model was trained on the sprite world alone. Its configuration says so, wherever it was copied to."""
    return model.config.training_domain == SPRITE_WORLD


def unfamiliar_videos(model: Any, paths: Iterable[str | Path], decoder: IsolatedDecoder) -> list[Path]:
    """The videos that are not of the world that a model was trained on.

    Args:
        model: Any ALPRO model.
        paths: Video files. Those that cannot be read are passed over.
        decoder: Reads them in a process of its own.

    Returns:
        The videos from outside, in the given order; none if the model was not trained on a closed world.
    """
    if not knows_only_sprites(model):
        return []
    found = []
    for path in paths:
        try:
            if not is_sprite_clip(path, decoder):
                found.append(Path(path))
        except (VideoDecodeError, OSError):  # whoever reads the video for its own sake reports this
            continue
    return found


def is_sprite_clip(path: str | Path, decoder: IsolatedDecoder) -> bool:
    """Whether a video is a clip of the sprite world, by the mark that `write_clip` leaves in its metadata.

    Raises:
        VideoDecodeError: The video cannot be read.
        OSError: There is no such file.
    """
    return decoder.probe(path).comment == MARK


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


__all__ = ["is_sprite_clip", "knows_only_sprites", "unfamiliar_videos", "unknown_words"]
