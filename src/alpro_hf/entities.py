"""Entities: the nouns that captions are about, and the prompts a prompter knows them by (paper, section 3.3).

`alpro entities` reads captions, counts their nouns and writes the most frequent ones; `prompts` puts them into
sentences such as "A video of a dog."; `build_prompter` turns these into the embeddings of an `AlproPrompterModel`.
"""

import argparse
import copy
import importlib.util
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .captions import COLUMNS, CaptionError, read_captions
from .modeling_alpro import AlproModel
from .pretraining_alpro import AlproPrompterModel

if TYPE_CHECKING:
    from spacy.language import Language

logger = logging.getLogger(__name__)

DEFAULT_PIPELINE = "en_core_web_sm"
VIDEO_TEMPLATES = tuple(
    f"{start} {article} {{entity}}."
    for start in ("A footage of", "A video of", "A portrait of", "A video footage of")
    for article in ("a", "the", "one")
)
IMAGE_TEMPLATES = tuple(
    f"{start} {article} {{entity}}."
    for start in ("A photo of", "A picture of", "A good photo of", "A good picture of")
    for article in ("a", "the", "one")
)
_CHUNK = 20_000  # captions after which spaCy forgets the words it met
# what spaCy's components find besides parts of speech and lemmas, which here is time lost
_NOT_NEEDED = (
    *("doc.cats", "doc.ents", "doc.sents", "doc.spans", "span."),
    *("token.dep", "token.ent_", "token.head", "token.is_sent_start", "token.sent_start"),
)


class TaggerError(ValueError):
    """There is no spaCy, no such pipeline, or one that cannot tell nouns and their lemmas."""


class EntityListError(ValueError):
    """A list of entities cannot be read or made; the message names the file and the line."""


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


def write_entities(path: str | os.PathLike[str], counts: Mapping[str, int], n: int = 1000) -> list[str]:
    """Write the `n` most frequent nouns, one `noun count` a line, most frequent first, equals by the alphabet.

    The file appears whole or not at all.

    Returns:
        The nouns written; fewer than `n` where there are fewer.

    Raises:
        EntityListError: There are no nouns.
        OSError: The file cannot be written.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    if not counts:
        raise EntityListError(f"{path} was not written: there are no nouns.")
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{noun} {count}\n" for noun, count in best)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return [noun for noun, _ in best]


def read_entities(path: str | os.PathLike[str]) -> list[str]:
    """Read a list of entities: one name a line, each or none followed by its count, in the order of the file.

    This reads the entity list released with the paper. Names may have several words; `traffic light 12` is one of two
    words in a file of counts.

    Raises:
        EntityListError: A line is blank, a name comes twice, only some lines have a count, or there is no line.
        OSError: The file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        place = error.object.count(b"\n", 0, error.start) + 1
        raise EntityListError(f"{path}, line {place}: not UTF-8; convert the file.") from error
    if lines == [""]:
        raise EntityListError(f"{path} is empty; it must hold one entity a line, such as 'dog 3912' or 'dog'.")
    entities: dict[str, int] = {}
    counted = None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            raise EntityListError(f"{path}, line {number}: blank, where an entity should stand.")
        has_count = len(words) > 1 and re.fullmatch(r"\d+", words[-1]) is not None
        if counted is None:
            counted = has_count
        if has_count != counted:
            raise EntityListError(
                f"{path}, line {number}: {line.strip()!r} has {'a' if has_count else 'no'} number at its end, unlike "
                "the lines before it. Either all lines have a count or none; where a name ends in a number, give all "
                "lines a count."
            )
        name = " ".join(words[:-1] if has_count else words)
        if name in entities:
            raise EntityListError(f"{path}, line {number}: {name!r} is in line {entities[name]} already.")
        entities[name] = number
    return list(entities)


def prompts(entities: Sequence[str], templates: Sequence[str] = VIDEO_TEMPLATES) -> list[str]:
    """Put each entity into each template: all entities in the first template, then all in the second, ...

    Args:
        entities: Names.
        templates: Sentences with `{entity}` where the name goes.

    Returns:
        `len(templates) * len(entities)` sentences.

    Raises:
        ValueError: A template has no `{entity}`, or there are no templates or no entities.
    """
    if not templates or not entities:
        raise ValueError(f"Prompts take templates and entities; received {len(templates)} and {len(entities)}.")
    for template in templates:
        if "{entity}" not in template:
            raise ValueError(f"The template {template!r} has no place for the entity; write {{entity}} where it goes.")
    return [template.replace("{entity}", entity) for template in templates for entity in entities]


def build_prompter(
    model: PreTrainedModel,
    processor: Any,
    entities: Sequence[str],
    *,
    video_templates: Sequence[str] = VIDEO_TEMPLATES,
    image_templates: Sequence[str] = IMAGE_TEMPLATES,
    batch_size: int = 256,
    max_length: int = 15,
    progress: bool = True,
) -> AlproPrompterModel:
    """Make the teacher of PEM from a model trained with VTC: its towers, and an embedding for each entity.

    An embedding is the mean of the text features of all prompts of its kind (paper, section 3.3). The names go into
    `config.entities`, so `save_pretrained` keeps both and `from_pretrained` needs nothing else.

    Args:
        model: An `AlproModel`, or any model around one; of a prompter, the entities are replaced. It is copied and
            stays as it is.
        processor: The tokenizer of that model, or its processor.
        entities: Names, no two alike; see `read_entities`.
        video_templates, image_templates: Sentences with `{entity}`, see `prompts`.
        batch_size: Prompts encoded at a time.
        max_length: Tokens of a prompt, `[CLS]` and `[SEP]` included (15 in the paper). Longer ones are cut off and a
            warning names their entities.
        progress: Whether to show a progress bar (on stderr).

    Returns:
        The prompter, frozen and in evaluation mode, on the device and in the dtype of the model.

    Raises:
        TypeError: The model has no `AlproModel` inside.
        ValueError: Templates, entities or `max_length` cannot be used.
    """
    base = model.base_model
    if not isinstance(base, AlproModel):
        raise TypeError(
            f"A prompter is made from an AlproModel or a model around one; received {type(model).__name__}."
        )
    longest = base.config.text_config.max_position_embeddings
    if not 2 < max_length <= longest or batch_size < 1:
        raise ValueError(
            f"max_length={max_length} must lie between 3 and the {longest} tokens that the model reads, and "
            f"batch_size={batch_size} must be at least 1."
        )
    unusable = sorted(name for name, times in Counter(entities).items() if times > 1 or not name.strip())
    if unusable:
        raise ValueError(f"Each entity needs a name of its own; blank or more than once: {unusable}.")
    tokenizer = getattr(processor, "tokenizer", processor)
    encoded: dict[Literal["video", "image"], Mapping[str, Any]] = {
        "video": _tokenize(tokenizer, prompts(entities, video_templates), entities, max_length),
        "image": _tokenize(tokenizer, prompts(entities, image_templates), entities, max_length),
    }
    config = copy.deepcopy(base.config)
    config.entities = list(entities)
    prompter = AlproPrompterModel(config)
    prompter.to(device=base.device, dtype=base.dtype)  # type: ignore[call-arg]  # the library's wrapper hides self
    prompter.alpro.load_state_dict(base.state_dict())
    prompter.eval().requires_grad_(False)
    total = sum(len(tokens["input_ids"]) for tokens in encoded.values())
    with tqdm(total=total, desc="embedding prompts", unit=" prompts", disable=not progress) as bar:

        def tick(module: Any, inputs: Any, embeds: Sized) -> None:
            bar.update(len(embeds))

        hook = prompter.alpro.text_projection.register_forward_hook(tick)
        for kind, tokens in encoded.items():
            prompter.set_prompts(kind, tokens["input_ids"], tokens["attention_mask"], batch_size=batch_size)
        hook.remove()
    return prompter


def _tokenize(tokenizer: Any, texts: Sequence[str], entities: Sequence[str], max_length: int) -> Mapping[str, Any]:
    """`input_ids` and `attention_mask` (texts, at most max_length)."""
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    cut = sorted({entities[row % len(entities)] for row, length in enumerate(lengths) if length > max_length})
    if cut:
        logger.warning(
            "Prompts of %d entities are longer than max_length=%d tokens and lose their end: %s",
            len(cut),
            max_length,
            ", ".join(cut[:20]) + (", ..." if len(cut) > 20 else ""),
        )
    return tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")


# ------------------------------------------------------------------------------------------------------ alpro entities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro entities` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Find the entities that captions are about: their most frequent nouns, for the prompts of a prompter.\n\n"
        "Captions are read from any number of files and datasets, one at a time: text (one caption a line),\n"
        "CSV, TSV, JSON (a list, or one value a line), each also with .gz; Parquet; a folder written by\n"
        "save_to_disk or laid out for load_dataset; a dataset on the Hub (owner/name, streamed). Nouns are found by\n"
        'a spaCy pipeline: pip install "alpro-hf[entities]", then python -m spacy download ' + DEFAULT_PIPELINE + "."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro entities captions.txt --output entities.txt\n"
        "  alpro entities webvid/*.csv --column name --output entities.txt --processes 8\n"
        "  alpro entities Train_GCC-training.tsv --column '#1' --output entities.txt   a table without a header\n"
        "  alpro entities owner/captions --split train --top 500 --output entities.txt\n\n"
        "then, in Python:\n"
        '  prompter = build_prompter(model, processor, read_entities("entities.txt"))\n\n'
        "The output holds one noun and its count a line, most frequent first. Empty captions are counted and passed\n"
        "over; a row that cannot be read ends the command with its file and line, and nothing is written."
    )
    parser.add_argument("captions", nargs="+", metavar="CAPTIONS", help="a file, a folder, or a dataset on the Hub")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the list to write")
    parser.add_argument("--top", type=_positive, default=1000, metavar="N", help="entities to keep (default: 1000)")
    parser.add_argument(
        "--column", metavar="NAME", help=f"where a row keeps its caption (default: the one of {', '.join(COLUMNS)})"
    )
    parser.add_argument("--split", metavar="NAME", help="split of a dataset that has several")
    parser.add_argument("--subset", metavar="NAME", help="configuration of a dataset that has several")
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="of text files (default: utf-8)")
    parser.add_argument(
        "--pipeline",
        default=DEFAULT_PIPELINE,
        metavar="NAME",
        help="spaCy pipeline with a tagger and a lemmatizer, by name or folder (default: %(default)s)",
    )
    parser.add_argument("--proper-nouns", action="store_true", help="count names such as London too")
    parser.add_argument(
        "--batch-size", type=_positive, default=256, metavar="N", help="captions tagged at a time (default: 256)"
    )
    parser.add_argument("--processes", type=_positive, default=1, metavar="N", help="that tag (default: 1)")
    parser.add_argument(
        "--max-nouns",
        type=_positive,
        default=1_000_000,
        metavar="N",
        help="counts kept in memory; past that the rarest are dropped, and the summary says by how much a count may "
        "be too low (default: 1000000)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro entities`; 0 when the list was written, 1 with the reason on stderr when not."""
    options = {name: getattr(args, name) for name in ("column", "split", "subset", "encoding")}
    try:
        if not args.output.parent.is_dir() or args.output.is_dir():
            raise EntityListError(f"--output {args.output} must name a file in a folder that exists.")
        tagger = load_tagger(args.pipeline)
        for source in args.captions:  # a wrong column of the last file shows now, not when all others are read
            next(read_captions(source, **options), None)
        found = count_nouns(
            read_captions(*args.captions, **options),
            tagger,
            pos=("NOUN", "PROPN") if args.proper_nouns else ("NOUN",),
            batch_size=args.batch_size,
            processes=args.processes,
            max_nouns=args.max_nouns,
        )
        entities = write_entities(args.output, found.counts, args.top)
    except (OSError, ValueError) as error:
        print(f"alpro entities: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{found.captions:,} captions ({found.empty:,} empty), {len(found.counts):,} different nouns")
    print(f"{len(entities):,} entities: {', '.join(entities[:10])}{', ...' if len(entities) > 10 else ''}")
    if found.undercount:
        print(f"rare nouns were dropped to bound the memory: a count may be up to {found.undercount:,} too low")
    print(f"written to {args.output}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


__all__ = [
    "IMAGE_TEMPLATES",
    "VIDEO_TEMPLATES",
    "CaptionError",
    "EntityListError",
    "NounCounts",
    "TaggerError",
    "add_arguments",
    "build_prompter",
    "count_nouns",
    "load_tagger",
    "prompts",
    "read_captions",
    "read_entities",
    "run",
    "write_entities",
]
