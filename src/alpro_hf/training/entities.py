"""The nouns that captions are about, counted: the most frequent ones become the entities of PEM (paper, section 3.3).

`write_entities` keeps the most frequent nouns in a file, and `build_prompter` makes the teacher of PEM from them.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from spacy.language import Language

DEFAULT_PIPELINE = "en_core_web_sm"
_CHUNK = 20_000  # captions after which spaCy forgets new words
# What components of spaCy assign besides parts of speech and lemmas. Components that assign nothing else are not run.
_NOT_NEEDED = (
    *("doc.cats", "doc.ents", "doc.sents", "doc.spans", "span."),
    *("token.dep", "token.ent_", "token.head", "token.is_sent_start", "token.sent_start"),
)


class TaggerError(ValueError):
    """A spaCy pipeline is missing or cannot find nouns and their lemmas; the message says what to install."""


@dataclass
class NounCounts:
    """Nouns of captions and how often they occur.

    Args:
        counts: Occurrences by noun. Exact if `undercount` is 0.
        undercount: Upper bound of what a count may lack, because rare nouns were dropped to bound the memory. A noun
            that is not in `counts` occurred at most this often.
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
    """Count the lemmas of the nouns in captions, in lower case, in bounded memory.

    spaCy forgets new words after every 20,000 captions, and at most `max_nouns` counts are kept. When there are more,
    the rarer half is dropped as in lossy counting (Manku and Motwani, 2002). Each count remembers how often its noun
    may have been missed before; nouns with the smallest sum of both are dropped. The highest sum dropped so far bounds
    the error of every count.

    Args:
        captions: Texts; None and blank texts are counted as empty. See `read_captions`.
        nlp: A spaCy pipeline with a tagger and a lemmatizer, or its name or folder. Other components are not run.
        pos: Universal parts of speech to count; add `PROPN` for names such as London.
        batch_size: Captions tagged at a time.
        processes: Processes that tag.
        max_nouns: Counts to keep at most, from 2 on.
        progress: Whether to show a progress bar on stderr.

    Raises:
        TaggerError: spaCy or the pipeline is missing, or the pipeline finds no parts of speech or no lemmas.
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
    from spacy.pipeline import Lemmatizer  # optional, and slow to import

    unneeded = _unneeded_components(tagger)
    found = NounCounts()
    missed: dict[str, int] = {}  # noun -> how often it may have been dropped before; only those not 0
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
                    component.cache.clear()  # the memory zone does not cover this cache, which keeps every word
    return found


def load_parser(name: str = DEFAULT_PIPELINE) -> "Language":
    """Load a spaCy pipeline that finds subjects and objects, by its name or folder.

    Raises:
        TaggerError: spaCy or the pipeline is missing, cannot be loaded, or has no parser.
    """
    nlp = load_tagger(name, purpose="Finding subjects and objects")
    if not any("token.dep" in nlp.get_pipe_meta(one).assigns for one in nlp.pipe_names):
        raise TaggerError(
            f"The spaCy pipeline {name!r} has no parser; it has {', '.join(nlp.pipe_names) or 'no components'}. Use "
            f"one with a parser, such as {DEFAULT_PIPELINE}."
        )
    return nlp


def load_tagger(name: str, purpose: str = "Finding nouns") -> "Language":
    """Load a spaCy pipeline by its name or folder. The error for a missing spaCy begins with the purpose.

    Raises:
        TaggerError: spaCy or the pipeline is missing, or cannot be loaded. The message says how to get it.
    """
    if importlib.util.find_spec("spacy") is None:
        raise TaggerError(
            f'{purpose} needs spaCy, which is not installed: pip install "alpro-hf[entities]", then '
            f"python -m spacy download {DEFAULT_PIPELINE}"
        )
    import spacy

    if not Path(name).is_dir():
        name = name.replace("-", "_")  # pip shows the package en_core_web_sm as en-core-web-sm
    if not spacy.util.is_package(name) and not Path(name).is_dir():
        installed = ", ".join(spacy.util.get_installed_models()) or "none"
        raise TaggerError(
            f"There is no spaCy pipeline {name!r} (installed: {installed}). Get one with python -m spacy download "
            f"{DEFAULT_PIPELINE}, or name a folder that holds one."
        )
    try:
        return spacy.load(name)
    except (OSError, ValueError) as error:  # the folder holds no pipeline, or one for another version of spaCy
        raise TaggerError(f"The spaCy pipeline {name!r} cannot be loaded: {error}") from error


def _unneeded_components(nlp: "Language") -> list[str]:
    """Names of the components that have no part in tagging nouns.

    Raises:
        TaggerError: The pipeline finds no parts of speech or no lemmas.
    """
    assigns = {name: nlp.get_pipe_meta(name).assigns for name in nlp.pipe_names}
    assigned = {attribute for attributes in assigns.values() for attribute in attributes}
    factories = {nlp.get_pipe_meta(name).factory for name in nlp.pipe_names}
    lacking = []
    # a tagger assigns fine-grained tags, which an attribute ruler maps to parts of speech
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
    """Captions that have text. All captions and the empty ones are counted in `found`."""
    for caption in captions:
        found.captions += 1
        if caption is None or not caption.strip():
            found.empty += 1
        else:
            yield caption


def _noun(lemma: str) -> str | None:
    """A lemma in lower case; None if it has no letter or is not a single word, which taggers sometimes call a noun."""
    noun = lemma.lower()
    return noun if any(map(str.isalpha, noun)) and len(noun.split()) == 1 else None


def _drop_rare(found: NounCounts, missed: dict[str, int]) -> None:
    """Drop at least half of the nouns: those that may have occurred least often."""
    most = {noun: count + missed.get(noun, 0) for noun, count in found.counts.items()}
    found.undercount = sorted(most.values())[len(most) // 2]
    for noun, highest in most.items():
        if highest <= found.undercount:
            del found.counts[noun]
            missed.pop(noun, None)


__all__ = ["NounCounts", "TaggerError", "count_nouns", "load_parser", "load_tagger"]
