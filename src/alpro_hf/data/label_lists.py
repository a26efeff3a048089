"""TODO docstring."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path


class EntityListError(ValueError):
    """A list of entities cannot be read or made; the message names the file and the line."""


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


def read_answers(path: str | Path) -> dict[str, int]:
    """Read an `ans2label.json`: one JSON object from answer to its index in the classifier."""
    try:
        answers = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(answers, dict) or not all(type(index) is int for index in answers.values()):
        raise ValueError(f'{path} must hold one JSON object from answer to index, such as {{"dog": 0, "cat": 1}}.')
    return answers
