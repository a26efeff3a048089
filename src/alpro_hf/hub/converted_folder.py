"""Write a converted model as a whole folder: into a folder of its own first, then in the place of an older one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import BertTokenizer

from ..assets import bundled_vocabulary
from ..model.configuration_alpro import AlproConfig
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import AlproVideoProcessor
from ..untrusted_json import JsonBoundsError, parse_json, read_bounded

_LARGEST_VOCABULARY = 1 << 26  # bytes; the largest known ones have a tenth of this
BUNDLED_WORDS = 30522  # entries of the vocabulary of bert-base-uncased


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that a conversion may not write to.

    Args:
        output: The folder. It need not exist.
        overwrite: Whether a model folder may be replaced.

    Raises:
        NotADirectoryError: The output is a file.
        FileExistsError: The folder is not empty, and `overwrite` is not set or the folder is not a model folder.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"The output {output} is a file. Name a folder.")
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / "config.json").is_file():
        raise FileExistsError(f"{output} holds other files and no model, so it is not replaced. Name another folder.")
    if not overwrite:
        raise FileExistsError(f"{output} holds a model already. Pass --overwrite to replace it with all its files.")


@contextmanager
def replaced_whole(output: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `output` at the end; if writing fails, `output` stays as it was."""
    output = output.resolve()  # a link stays, and the folder behind it is replaced
    output.parent.mkdir(parents=True, exist_ok=True)
    # in the same parent, because a folder cannot be renamed across file systems
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        staged = Path(work, "new")
        staged.mkdir()
        yield staged
        if output.exists():
            os.rename(output, Path(work, "old"))  # removed with `work`, and with it every stale file
        os.rename(staged, output)


def build_processor(config: AlproConfig, vocab: str | Path | None) -> AlproProcessor:
    """The processor of a converted model.

    Args:
        config: Configuration of the model.
        vocab: A `vocab.txt`. None: the bundled one of bert-base-uncased.

    Raises:
        ValueError: The vocabulary does not fit the model.
    """
    video, text = config.video_config, config.text_config
    video_processor = AlproVideoProcessor(
        size={"height": video.image_size, "width": video.image_size},
        num_frames=video.num_frames,
        frame_sampling="uniform",  # as in the evaluation of the original code
    )
    if vocab is None and text.vocab_size != BUNDLED_WORDS:
        raise ValueError(
            f"The checkpoint embeds {text.vocab_size} words, so its vocabulary is not that of bert-base-uncased "
            f"({BUNDLED_WORDS} entries): name its vocab.txt with --vocab."
        )
    path = bundled_vocabulary() if vocab is None else Path(vocab)
    words = read_words(path)
    if len(words) != text.vocab_size:
        raise ValueError(
            f"{path} has {len(words)} entries, but the checkpoint embeds {text.vocab_size} words: it belongs to "
            f"another model. The released checkpoints use the one of bert-base-uncased ({BUNDLED_WORDS} entries)."
        )
    tokenizer = build_tokenizer(path, words, text.max_position_embeddings)
    return AlproProcessor(video_processor=video_processor, tokenizer=tokenizer)


def read_words(path: Path) -> dict[str, int]:
    """Read the entries of a vocabulary: a `vocab.txt` with one a line, or a `tokenizer.json`.

    Returns:
        Entry to number. Numbers count from 0 without a gap.

    Raises:
        ValueError: The file is neither.
    """
    try:
        text = read_bounded(path, _LARGEST_VOCABULARY).decode()
    except JsonBoundsError as error:
        raise ValueError(f"{path} cannot be read: {error}. Name a vocab.txt.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in utf-8: {error}. Name a vocab.txt.") from error
    if path.suffix != ".json":
        # not splitlines: a word piece may be a character that Python counts as a line end, such as U+0085
        entries = text.rstrip("\n").split("\n")
        words = {entry: index for index, entry in enumerate(entries)}
        if len(words) != len(entries):
            twice = next(entry for index, entry in enumerate(entries) if words[entry] != index)
            raise ValueError(f"{path} is not a vocabulary: {twice[:120]!r} is in it twice.")
        return words
    try:
        words = parse_json(text)["model"]["vocab"]
        numbers = sorted(words.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no vocabulary of word pieces ({type(error).__name__}). Name a vocab.txt."
        ) from None
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{path} does not number its {len(numbers)} entries from 0 on. Name a vocab.txt.")
    return words


def build_tokenizer(path: Path, words: dict[str, int], max_length: int) -> BertTokenizer:
    """A lower-casing BERT tokenizer.

    Args:
        path: Where the words come from, for errors.
        words: Entry to number.
        max_length: Tokens of the longest text.

    Raises:
        ValueError: A special token of BERT is missing.
    """
    absent = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(words)
    if absent:
        raise ValueError(f"{path} is not a BERT vocabulary: it lacks {', '.join(sorted(absent))}.")
    return BertTokenizer(vocab=words, do_lower_case=True, model_max_length=max_length)


__all__ = ["build_processor", "build_tokenizer", "check_output", "read_words", "replaced_whole"]
