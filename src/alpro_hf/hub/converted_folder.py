"""Write a converted model as a whole folder: into a folder of its own first, then in the place of an older one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import BertTokenizer

from ..assets import bundled_vocabulary
from ..model.configuration_alpro import AlproConfig, AlproTextConfig
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import AlproVideoProcessor

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


def build_processor(config: AlproConfig, vocab: str | Path | None) -> AlproProcessor | AlproVideoProcessor:
    """The processor of a converted model.

    Args:
        config: Configuration of the model.
        vocab: A `vocab.txt`. None: the bundled one of bert-base-uncased if the model embeds that many words.

    Returns:
        The processor; only its video part if `vocab` is None and the bundled vocabulary does not fit.

    Raises:
        ValueError: The vocabulary does not fit the model.
    """
    video = config.video_config
    video_processor = AlproVideoProcessor(
        size={"height": video.image_size, "width": video.image_size},
        num_frames=video.num_frames,
        frame_sampling="uniform",  # as in the evaluation of the original code
    )
    if vocab is None and config.text_config.vocab_size != BUNDLED_WORDS:
        return video_processor
    tokenizer = _tokenizer(bundled_vocabulary() if vocab is None else vocab, config.text_config)
    return AlproProcessor(video_processor=video_processor, tokenizer=tokenizer)


def _tokenizer(vocab: str | Path, config: AlproTextConfig) -> BertTokenizer:
    """A lower-casing BERT tokenizer with the vocabulary of a file, which must fit the word embeddings."""
    try:
        # not splitlines: a word piece may be a character that Python counts as a line end, such as U+0085
        entries = Path(vocab).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{vocab} is not a text file in utf-8: {error}. Name a vocab.txt.") from error
    if len(entries) != config.vocab_size:
        raise ValueError(
            f"{vocab} has {len(entries)} entries, but the checkpoint embeds {config.vocab_size} words: it belongs to "
            "another model. The released checkpoints use the one of bert-base-uncased (30522 entries)."
        )
    words = {entry: index for index, entry in enumerate(entries)}
    absent = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(words)
    if absent:
        raise ValueError(f"{vocab} is not a BERT vocabulary: it lacks {', '.join(sorted(absent))}.")
    return BertTokenizer(vocab=words, do_lower_case=True, model_max_length=config.max_position_embeddings)


__all__ = ["build_processor", "check_output", "replaced_whole"]
