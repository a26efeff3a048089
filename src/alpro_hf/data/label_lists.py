"""Lists of labels in files: the entities of prompts and pseudo-labels, and the answers of a classifier."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..files import write_text_whole
from ..untrusted_json import JsonBoundsError, read_bounded, read_json

_LARGEST_LIST = 1 << 26  # bytes; the list of the paper has about 15 KB


class EntityListError(ValueError):
    """A list of entities cannot be read or written; the message names the file and the line."""


def write_entities(path: str | os.PathLike[str], counts: Mapping[str, int], n: int = 1000) -> list[str]:
    """Write the `n` most frequent nouns, one `noun count` a line.

    The most frequent noun comes first; nouns of equal frequency are in alphabetical order. The file is written
    completely or not at all.

    Returns:
        The nouns written; fewer than `n` where there are fewer.

    Raises:
        EntityListError: There are no nouns.
        OSError: The file cannot be written.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1.")
    if not counts:
        raise EntityListError(f"{path} was not written: there are no nouns. Do the sources hold captions?")
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]
    lines = "".join(f"{noun} {count}\n" for noun, count in best)
    write_text_whole(Path(path), lines)
    return [noun for noun, _ in best]


def read_entities(path: str | os.PathLike[str]) -> list[str]:
    """Read a list of entities: one name a line, followed by its count in all lines or in none.

    The list released with the paper has this format. A name may have several words: in a file of counts, the name of
    the line `traffic light 12` has two.

    Returns:
        The names, in the order of the file.

    Raises:
        EntityListError: A line is blank, a name occurs twice, only some lines have a count, or the file is empty.
        OSError: The file cannot be read.
    """
    try:
        # "-sig" skips the byte order mark that editors on Windows write
        text = read_bounded(path, _LARGEST_LIST).decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    except JsonBoundsError as error:
        raise EntityListError(f"{path} cannot be used as a list of entities: {error}.") from error
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
            raise EntityListError(f"{path}, line {number}: blank, where an entity is expected. Remove the line.")
        # A name may end in a number, so one line alone does not tell whether that is a count.
        has_count = len(words) > 1 and re.fullmatch(r"\d+", words[-1]) is not None
        if counted is None:
            counted = has_count
        if has_count != counted:
            raise EntityListError(
                f"{path}, line {number}: {line.strip()!r} has {'a' if has_count else 'no'} number at its end, unlike "
                "the lines before it. Either all lines have a count or none; if a name ends in a number, give all "
                "lines a count."
            )
        name = " ".join(words[:-1] if has_count else words)
        if name in entities:
            raise EntityListError(
                f"{path}, line {number}: {name!r} is in line {entities[name]} already. Remove one of them."
            )
        entities[name] = number
    return list(entities)


def read_answers(path: str | Path) -> dict[str, int]:
    """Read an `ans2label.json`: a JSON object from each answer to its index in the classifier.

    Raises:
        ValueError: The file is not valid JSON, or holds something else.
        OSError: The file cannot be read.
    """
    try:
        answers = read_json(path)
    except JsonBoundsError as error:
        raise ValueError(f"{path} cannot be used as a list of answers: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(answers, dict) or not all(type(index) is int for index in answers.values()):
        raise ValueError(f'{path} must hold one JSON object from answer to index, such as {{"dog": 0, "cat": 1}}.')
    return answers


__all__ = ["EntityListError", "read_answers", "read_entities", "write_entities"]
