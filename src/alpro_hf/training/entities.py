"""Entities: the nouns that captions are about, and the prompts a prompter knows them by (paper, section 3.3).

`alpro entities` reads captions, counts their nouns and writes the most frequent ones; `prompts` puts them into
sentences such as "A video of a dog."; `build_prompter` turns these into the embeddings of an `AlproPrompterModel`.
"""

import argparse
import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from spacy.language import Language

logger = logging.getLogger(__name__)

DEFAULT_PIPELINE = "en_core_web_sm"
_CHUNK = 20_000  # captions after which spaCy forgets the words it met
# what spaCy's components find besides parts of speech and lemmas, which here is time lost
_NOT_NEEDED = (
    *("doc.cats", "doc.ents", "doc.sents", "doc.spans", "span."),
    *("token.dep", "token.ent_", "token.head", "token.is_sent_start", "token.sent_start"),
)


class TaggerError(ValueError):
    """There is no spaCy, no such pipeline, or one that cannot tell nouns and their lemmas."""


# -------------------------------------------------------------------------------------------------------- counting


@dataclass
class NounCounts:
    """How often nouns stand in captions.

    Args:
        counts: By noun. Exact as long as `undercount` is 0.
        undercount: How much too low a count may be, because rare nouns were dropped to bound the memory. A noun that
            is absent from `counts` was not met more often than that.
        captions: Captions read, empty ones included.
        empty: Captions without text.
    """

    counts: dict[str, int] = field(default_factory=dict)
    undercount: int = 0
    captions: int = 0
    empty: int = 0


def count_nouns(
    captions: Iterable[str | None],
    nlp: "str | Language" = DEFAULT_PIPELINE,
    *,
    pos: Sequence[str] = ("NOUN",),
    batch_size: int = 256,
    processes: int = 1,
    max_nouns: int = 1_000_000,
    progress: bool = True,
) -> NounCounts:
    """Count the lemmas of the nouns in captions, in lower case, however many captions there are.

    The memory is bounded: spaCy forgets new words after every 20,000 captions, and at most `max_nouns` counts are
    kept. Whenever there are more, the rarer half is dropped as in lossy counting (Manku and Motwani, 2002): each
    count remembers how often its noun may have been missed before, and what goes are the nouns whose count and
    misses are smallest. The highest sum dropped so far bounds the error of every count and is returned.

    Args:
        captions: Texts; None and blank ones are counted as empty. See `read_captions`.
        nlp: A spaCy pipeline with a tagger and a lemmatizer, or the name or folder of one. Its other components are
            not run.
        pos: Universal parts of speech that count as nouns; add `PROPN` for names such as London.
        batch_size: Captions tagged at a time.
        processes: Processes that tag.
        max_nouns: Most counts kept, from 2 on.
        progress: Whether to show a progress bar (on stderr).

    Raises:
        TaggerError: There is no spaCy, no such pipeline, or one that tells no parts of speech or no lemmas.
        ValueError: An argument is out of range.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("processes", processes, 1),
        ("max_nouns", max_nouns, 2),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    tagger = load_tagger(nlp) if isinstance(nlp, str) else nlp
    from spacy.pipeline import Lemmatizer  # slow, and not installed where nobody counts nouns

    unneeded = _unneeded_components(tagger)
    found = NounCounts()
    missed: dict[str, int] = {}  # of nouns first met after something was dropped
    texts = _texts(captions, found)
    with tqdm(desc="counting nouns", unit=" captions", disable=not progress) as bar:
        while chunk := list(islice(texts, _CHUNK * processes)):
            with tagger.memory_zone():
                for doc in tagger.pipe(chunk, batch_size=batch_size, n_process=processes, disable=unneeded):
                    for token in doc:
                        if token.pos_ in pos and (noun := _noun(token.lemma_)):
                            if noun not in found.counts and found.undercount:
                                missed[noun] = found.undercount
                            found.counts[noun] = found.counts.get(noun, 0) + 1
                    if len(found.counts) > max_nouns:
                        _drop_rare(found, missed)
                    bar.update()
            for _, component in tagger.pipeline:
                if isinstance(component, Lemmatizer):
                    component.cache.clear()  # which keeps every word for good
    return found


def load_tagger(name: str) -> "Language":
    """Load a spaCy pipeline by its name or folder.

    Raises:
        TaggerError: There is no spaCy or no such pipeline; the message says how to get them.
    """
    if importlib.util.find_spec("spacy") is None:
        raise TaggerError(
            'Finding nouns takes spaCy, which is not installed: pip install "alpro-hf[entities]", then '
            f"python -m spacy download {DEFAULT_PIPELINE}"
        )
    import spacy  # slow, and wanted here only

    if not spacy.util.is_package(name) and not Path(name).is_dir():
        installed = ", ".join(spacy.util.get_installed_models()) or "none"
        raise TaggerError(
            f"There is no spaCy pipeline {name!r} (installed: {installed}); get one with python -m spacy download "
            f"{DEFAULT_PIPELINE}, or name a folder that holds one."
        )
    try:
        return spacy.load(name)
    except (OSError, ValueError) as error:  # no pipeline in the folder, or one of another version
        raise TaggerError(f"The spaCy pipeline {name!r} cannot be loaded: {error}") from error


def _unneeded_components(nlp: "Language") -> list[str]:
    """Components that have no part in tagging nouns, of a pipeline that can."""
    assigns = {name: nlp.get_pipe_meta(name).assigns for name in nlp.pipe_names}
    assigned = {attribute for attributes in assigns.values() for attribute in attributes}
    factories = {nlp.get_pipe_meta(name).factory for name in nlp.pipe_names}
    lacking = []
    if "token.pos" not in assigned and not ("token.tag" in assigned and "attribute_ruler" in factories):
        lacking.append("parts of speech (a morphologizer, or a tagger and an attribute_ruler)")
    if "token.lemma" not in assigned:
        lacking.append("lemmas (a lemmatizer)")
    if lacking:
        name = f"{nlp.lang}_{nlp.meta.get('name') or 'pipeline'}"
        raise TaggerError(
            f"The spaCy pipeline {name} lacks what finds {' and '.join(lacking)}; it has "
            f"{', '.join(nlp.pipe_names) or 'no components'}. Use one with both, such as {DEFAULT_PIPELINE}."
        )
    return [name for name, found in assigns.items() if found and all(item.startswith(_NOT_NEEDED) for item in found)]


def _texts(captions: Iterable[str | None], found: NounCounts) -> Iterator[str]:
    """The captions that have text; counts all and the others."""
    for caption in captions:
        found.captions += 1
        if caption is None or not caption.strip():
            found.empty += 1
        else:
            yield caption


def _noun(lemma: str) -> str | None:
    """A lemma as it is counted; None for what the tagger took for a noun but has no letter or is no single word."""
    noun = lemma.lower()
    return noun if any(map(str.isalpha, noun)) and len(noun.split()) == 1 else None


def _drop_rare(found: NounCounts, missed: dict[str, int]) -> None:
    """Drop at least half of the nouns: those that may have been met least often."""
    most = {noun: count + missed.get(noun, 0) for noun, count in found.counts.items()}
    found.undercount = sorted(most.values())[len(most) // 2]
    for noun, highest in most.items():
        if highest <= found.undercount:
            del found.counts[noun]
            missed.pop(noun, None)


# ------------------------------------------------------------------------------------------------ the list of entities


# ------------------------------------------------------------------------------------------------------ alpro entities


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


__all__ = ["NounCounts", "TaggerError", "count_nouns", "load_tagger"]
