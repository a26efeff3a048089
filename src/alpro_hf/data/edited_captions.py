"""False captions made from true ones by small edits: the order of events, opposite words, who does what to whom.

A model that compares nouns cannot tell such a caption from the true one, so it must learn order, direction and roles.
The edits are for English captions. Their words come from `caption_edits.json`, or from a file of the same form.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from datasets import Dataset as ArrowDataset
from datasets import Features, List, Value, concatenate_datasets

from ..files import write_whole
from ..untrusted_json import read_json
from .load_rows import RowsError

EditKind = Literal["order", "opposites", "roles"]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)
Wording = Literal["then", "before", "after"]
WORDINGS: tuple[Wording, ...] = get_args(Wording)
# wordings that name the later event first, or may do so; a model that reads from left to right fails on them
REVERSING: tuple[Wording, ...] = ("after",)
WORDS = Path(__file__).with_name("caption_edits.json")


_MOST_REPEATED = 100  # rows made of one, all of which are in memory


class EditWordsError(ValueError):
    """A file of words for edits cannot be used; the message names the file and the field."""


class Edit(NamedTuple):
    """A false caption, and the kind of edit that made it."""

    text: str
    kind: EditKind


@dataclass(frozen=True)
class EditWords:
    """The words of the edits.

    Args:
        opposites: Pairs of words or phrases; either replaces the other. Where two fit, the longer one is taken.
        clause_starts: Words that can begin a clause. Two events exchange their places only if both begin with one, so
            that "a dog runs and then jumps" does not become nonsense.
    """

    opposites: tuple[tuple[str, str], ...]
    clause_starts: frozenset[str]


def read_edit_words(path: str | Path = WORDS) -> EditWords:
    """Read the words of edits from a JSON file with the fields `opposites` and `clause_starts`.

    Raises:
        EditWordsError: A field is missing, or is not a list of pairs of texts, or of texts.
            The file is not JSON, or beyond the bounds of `untrusted_json`.
        OSError: The file is missing.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise EditWordsError(f"{path} cannot be used as words of edits: {error}.") from error
    pairs = values.get("opposites") if isinstance(values, dict) else None
    starts = values.get("clause_starts") if isinstance(values, dict) else None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) and word.strip() for word in pair)
        for pair in pairs
    ):
        raise EditWordsError(f'{path}: "opposites" must be a list of pairs of words, such as [["up", "down"]].')
    if not isinstance(starts, list) or not all(isinstance(word, str) for word in starts):
        raise EditWordsError(f'{path}: "clause_starts" must be a list of words, such as ["a", "the"].')
    return EditWords(tuple((first, second) for first, second in pairs), frozenset(map(str.lower, starts)))


# Captions of two events. A comma may stand before a connective; an opening such as "a video where" stays in front.
_HEAD = r"(?P<head>(?:(?:in |here )?(?:a|the|this) (?:video|clip|film)(?: (?:where|that|in which|of))?,? |here )?)"
_THEN = r"(?:and )?(?:then|after that|afterwards),? "
_FORMS: tuple[tuple[Wording, str], ...] = (
    ("then", rf"(?P<one>first )(?P<first>.+?)(?P<link>,? {_THEN})(?P<second>.+?)"),
    ("before", r"(?P<one>before )(?P<first>[^,]+)(?P<link>, )(?P<second>.+?)"),
    ("after", r"(?P<one>after )(?P<first>[^,]+)(?P<link>, )(?P<second>.+?)"),
    ("then", rf"(?P<one>)(?P<first>.+?)(?P<link>,? {_THEN})(?P<second>.+?)"),
    ("before", r"(?P<one>)(?P<first>.+?)(?P<link>,? before )(?P<second>.+?)"),
    ("after", r"(?P<one>)(?P<first>.+?)(?P<link>,? after )(?P<second>.+?)"),
)
_EVENTS: tuple[tuple[Wording, re.Pattern[str]], ...] = tuple(
    (wording, re.compile(rf"^{_HEAD}{form}(?P<end>[.!]?)$", re.IGNORECASE)) for wording, form in _FORMS
)
_OTHER = {"before": "after", "after": "before"}


class _Events(NamedTuple):
    wording: Wording
    parts: re.Match[str]


# "runs after the owl" is one event
_ONE_EVENT = re.compile(r"\b(?:run|go|look|chase)(?:s|es|ning|ing)?$|\b(?:ran|went|named)$", re.IGNORECASE)


def _events(text: str) -> _Events | None:
    for wording, pattern in _EVENTS:
        match = pattern.match(text)
        if match and not (match["link"].strip() == "after" and _ONE_EVENT.search(match["first"])):
            return _Events(wording, match)
    return None


def wording_of(text: str) -> Wording | None:
    """How a caption orders two events: `then`, `before` or `after`; None if it does not."""
    events = _events(text)
    return None if events is None else events.wording


def _reordered(text: str, words: EditWords) -> Iterator[str]:
    events = _events(text)
    if events is None:
        return
    head, one, first, link, second, end = (
        events.parts[name] for name in ("head", "one", "first", "link", "second", "end")
    )
    if events.wording in _OTHER:
        # the smallest edit: "before" for "after" keeps every clause and its grammar
        other = _OTHER[events.wording]
        swapped_one = re.sub(events.wording, other, one, flags=re.IGNORECASE)
        swapped_link = re.sub(events.wording, other, link, flags=re.IGNORECASE)
        yield _like(text, f"{head}{swapped_one}{first}{swapped_link}{second}{end}")
    if all(clause.split()[0].lower() in words.clause_starts for clause in (first, second)):
        yield _like(text, f"{head}{one}{second}{link}{first}{end}")


def _like(text: str, edited: str) -> str:
    """The edited caption with the first letter as in the original, and no capital where a clause has moved."""
    if not text[:1].isupper():
        return edited
    start = text.split(maxsplit=1)[0]
    if start.lower() != "i" and not edited.startswith(start):
        edited = edited.replace(start, start[0].lower() + start[1:], 1)
    return edited[0].upper() + edited[1:]


@cache
def _opposites(pairs: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    other: dict[str, str] = {}
    for first, second in pairs:
        other.setdefault(first.lower(), second)
        other.setdefault(second.lower(), first)
    longest_first = sorted(other, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE), other


def _opposed(text: str, words: EditWords) -> Iterator[str]:
    if not words.opposites:
        return
    pattern, other = _opposites(words.opposites)
    for match in pattern.finditer(text):
        word = other[match[0].lower()]
        word = word[0].upper() + word[1:] if match[0][0].isupper() else word
        yield text[: match.start()] + word + text[match.end() :]


_SUBJECTS, _PASSIVE = ("nsubj",), ("nsubjpass", "nsubj:pass")
_OBJECTS, _AGENTS = ("dobj", "obj"), ("agent", "obl:agent")


def _exchanged(doc: Any) -> Iterator[str]:
    """Exchange the subject and the object of each verb of a parsed caption (a `Doc` of spaCy)."""
    for verb in doc:
        children = list(verb.children)
        subjects = [child for child in children if child.dep_ in (*_SUBJECTS, *_PASSIVE)]
        objects = [child for child in children if child.dep_ in _OBJECTS]
        # "runs after the dog", "is chased by the dog": the noun is below the preposition
        prepositions = [child for child in children if child.dep_ in ("prep", *_AGENTS)]
        objects += [noun for child in prepositions for noun in child.children if noun.dep_ == "pobj"]
        # of Universal Dependencies, where the noun is below the verb
        objects += [child for child in children if child.dep_ in _AGENTS and child.pos_ in ("NOUN", "PROPN")]
        for subject in subjects[:1]:
            for thing in objects:
                if not {subject.pos_, thing.pos_} <= {"NOUN", "PROPN"} or subject.lower_ == thing.lower_:
                    continue
                first, second = _span(subject), _span(thing)
                if first[1] <= second[0]:
                    yield _with_exchanged(doc.text, first, second)


def _span(noun: Any) -> tuple[int, int]:
    """First and last character of a noun with the words before it, such as its article; what follows it stays."""
    words = list(noun.lefts)
    first = min((word.left_edge for word in words), key=lambda word: word.i, default=noun)
    return first.idx, noun.idx + len(noun)


def _with_exchanged(text: str, first: tuple[int, int], second: tuple[int, int]) -> str:
    one, other = text[slice(*first)], text[slice(*second)]
    if first[0] == 0 and text[:1].isupper():
        one, other = one[0].lower() + one[1:], other[0].upper() + other[1:]
    return text[: first[0]] + other + text[first[1] : second[0]] + one + text[second[1] :]


def edit_caption(
    text: str,
    kinds: Sequence[EditKind] = ("order", "opposites"),
    words: EditWords | None = None,
    parse: Callable[[str], Any] | None = None,
) -> list[Edit]:
    """Make all false captions that one edit gives.

    Kinds of edits:
        - `order`: two events change their order. "before" becomes "after" and the other way round, and the clauses
          exchange their places if both begin with an article or the like: "a dog runs, then a cat sits".
        - `opposites`: one word or phrase becomes its opposite, see `EditWords`.
        - `roles`: subject and object of a verb exchange their places: "a dog chases a cat". This needs a parser.

    An edited caption can be true of the clip by chance, as "a man and a boy push" is of both. Look at some of them.

    Args:
        text: A true caption, in English.
        kinds: Kinds of edits to make, names of `EDIT_KINDS`.
        words: Words of the edits. None: the list of the package.
        parse: Function from a text to a `Doc` of spaCy with dependencies, such as `load_parser()`; needed for `roles`.

    Returns:
        The edits, each with another text, in the order of `kinds`.

    Raises:
        ValueError: A kind is unknown, or `roles` has no parser.
    """
    unknown = [kind for kind in kinds if kind not in EDIT_KINDS]
    if unknown or ("roles" in kinds and parse is None):
        raise ValueError(
            f"kinds={list(kinds)!r}: choose from {', '.join(EDIT_KINDS)}; 'roles' needs parse, such as load_parser()."
        )
    words = read_edit_words() if words is None else words
    found: dict[str, EditKind] = {}
    for kind in kinds:
        if kind == "order":
            edits: Iterable[str] = _reordered(text, words)
        elif kind == "opposites":
            edits = _opposed(text, words)
        else:
            assert parse is not None
            edits = _exchanged(parse(text))
        for edited in edits:
            if edited.lower() != text.lower():
                found.setdefault(edited, kind)
    return [Edit(edited, kind) for edited, kind in found.items()]


class EditCounts(NamedTuple):
    """What `edit_rows` did: rows written, how many have a false caption, and the numbers of edits by kind."""

    rows: int
    edited: int
    edits: dict[str, int]


def edit_rows(
    rows: ArrowDataset,
    output: str | Path,
    kinds: Sequence[EditKind] = ("order", "opposites"),
    *,
    words: EditWords | None = None,
    parse: Callable[[str], Any] | None = None,
    wordings: Sequence[Wording] = (),
    repeat_reversing: int = 1,
) -> EditCounts:
    """Add false captions to rows, and write them to a file that `alpro train` reads.

    Columns added (or replaced): `negatives`, the list of false captions, which may be empty; `wording`, how the
    caption orders two events (`then`, `before`, `after`), or null.

    Args:
        rows: Rows with a column `text`.
        output: File to write, `.jsonl` or `.parquet`.
        kinds, words, parse: As in `edit_caption`.
        wordings: Write rows of these wordings alone: a training that sees one wording first, and all of them later,
            learns the order of events more surely. Empty: all rows, those without events, too.
        repeat_reversing: How often a row is written whose wording may name the later event first (`REVERSING`).

    Raises:
        RowsError: There is no column `text`, it holds no text somewhere, no row is left, or the file has another
            extension.
        OSError: The file cannot be written.
    """
    output = Path(output)
    if output.suffix not in (".jsonl", ".parquet"):
        raise RowsError(f"{output} must end with .jsonl or .parquet, which tell the format to write.")
    if "text" not in rows.column_names:
        raise RowsError(f"The rows have the columns {', '.join(rows.column_names)}, and no 'text' to edit.")
    if not 1 <= repeat_reversing <= _MOST_REPEATED:
        raise RowsError(f"repeat_reversing={repeat_reversing} must be at least 1 and at most {_MOST_REPEATED}.")
    words = read_edit_words() if words is None else words
    counts: dict[str, int] = dict.fromkeys(map(str, kinds), 0)
    places: list[int] = []
    negatives: list[list[str]] = []
    found: list[str | None] = []
    place = 0
    for batch in rows.select_columns("text").with_format(None).iter(batch_size=1000):
        for text in batch["text"]:
            if not isinstance(text, str):
                raise RowsError(
                    f"Row {place} (counted from 0), field 'text': {text!r:.60} is no text. Remove the row."
                )
            wording = wording_of(text)
            if not wordings or wording in wordings:
                edits = edit_caption(text, kinds, words, parse)
                for edit in edits:
                    counts[edit.kind] += 1
                for _ in range(repeat_reversing if wording in REVERSING else 1):
                    places.append(place)
                    negatives.append([edit.text for edit in edits])
                    found.append(wording)
            place += 1
    if not places:
        raise RowsError(f"None of {place} captions orders two events by {' or '.join(wordings)}; nothing was written.")
    kept = rows.remove_columns([name for name in ("negatives", "wording") if name in rows.column_names]).select(places)
    features = Features({"negatives": List(Value("string")), "wording": Value("string")})
    added = ArrowDataset.from_dict({"negatives": negatives, "wording": found}, features=features)
    whole = concatenate_datasets([kept, added], axis=1)
    write = whole.to_json if output.suffix == ".jsonl" else whole.to_parquet
    write_whole(output, lambda path: write(str(path)))
    return EditCounts(len(places), sum(map(bool, negatives)), counts)


__all__ = [
    "EDIT_KINDS",
    "REVERSING",
    "WORDINGS",
    "Edit",
    "EditCounts",
    "EditWords",
    "EditWordsError",
    "edit_caption",
    "edit_rows",
    "read_edit_words",
    "wording_of",
]
