"""Settings of a recipe, described by the fields of a dataclass: their names, types, choices and help.

The rules are those that `transformers.HfArgumentParser` documents for its dataclasses, including the keys `help`,
`choices` and `const` of a field's metadata. This module imports no torch, and nothing that parses a command line.
"""

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..untrusted_json import parse_json

_SWITCHES = dict.fromkeys(("true", "t", "yes", "y", "1"), True) | dict.fromkeys(("false", "f", "no", "n", "0"), False)


@dataclass(frozen=True)
class Setting:
    """One value of a recipe, which is also an option of `alpro train`.

    Args:
        name: Name of the field.
        kind: `bool`, `int`, `float`, `dict` or `str`: the type of the value, or of each item of a list. A `str` stays
            as it is: `TrainingArguments` reads some texts in forms of its own.
        default: Default of the field.
        help: One sentence for the help of the command; empty if the field has none.
        choices: Values that are allowed; empty: any of the type.
        takes_list: Whether the value may be a list.
        takes_one: Whether the value may be a single one. Settings of some lists take both.
        or_text: Whether a `bool` may also be another word.
        alone: Value of an option that is given without one; None: it needs a value.
    """

    name: str
    kind: type
    default: Any
    help: str = ""
    choices: tuple[Any, ...] = ()
    takes_list: bool = False
    takes_one: bool = True
    or_text: bool = False
    alone: Any = None

    def parse(self, word: str) -> Any:
        """The value that a word of a command line stands for; of a list, one item.

        Raises:
            ValueError: The word has another type, or is not one of the choices. The message starts with the word.
        """
        return self._read(word)

    def check(self, value: Any) -> Any:
        """The value that a recipe or a Python program gives, with texts read as on the command line.

        None stands for the choice of the training arguments or of the starting checkpoint, and is always allowed.

        Raises:
            ValueError: The value has another type, or is not one of the choices. The message starts with the value.
        """
        if value is None:
            return None
        if self.takes_list and isinstance(value, list | tuple):
            return [self._check_one(item) for item in value]
        if not self.takes_one:
            raise ValueError(f"{value!r:.120} must be a list.")
        return self._check_one(value)

    def _check_one(self, value: Any) -> Any:
        value = value.value if isinstance(value, Enum) else value
        # A number is read as the word it is written with, so that 4.5 is refused for an int. By `type`, because a bool
        # is an int for `isinstance`, but `num_frames: true` is a mistake.
        is_number = self.kind in (int, float) and type(value) in (int, float)
        if is_number or isinstance(value, str):  # YAML reads 1e-5 as a text
            return self._read(value)
        right_type = self.kind is str or (self.kind in (bool, dict) and isinstance(value, self.kind))
        if self.choices or not right_type:
            raise ValueError(f"{value!r:.120} must be {self._expected()}.")
        return value

    def _read(self, value: Any) -> Any:
        try:
            return self._convert(str(value))
        except (KeyError, ValueError):
            raise ValueError(f"{value!r:.120} must be {self._expected()}.") from None

    def _convert(self, word: str) -> Any:
        if self.choices:
            return self.choices[self.choices.index(word)]
        if self.kind is bool:
            return _SWITCHES.get(word.lower(), word) if self.or_text else _SWITCHES[word.lower()]
        if self.kind is dict:
            value = parse_json(word)
            if not isinstance(value, dict):
                raise ValueError
            return value
        value = self.kind(word)
        if self.kind is float and not math.isfinite(value):
            raise ValueError
        return value

    def _expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        return {bool: "true or false", int: "a whole number", float: "a number", dict: "a JSON object"}[self.kind]


def settings_of(described: type) -> dict[str, Setting]:
    """The fields of a dataclass as settings, by name, in their order."""
    hints = get_type_hints(described)
    return {field.name: _setting(field, hints[field.name]) for field in dataclasses.fields(described)}


def _setting(field: "dataclasses.Field[Any]", hint: Any) -> Setting:
    types = [one for one in _alternatives(hint) if one is not NoneType]
    lists = [one for one in types if get_origin(one) is list]
    singles = [one for one in types if one not in lists]
    items = [item for one in lists for item in _alternatives(get_args(one)[0])]
    kind, choices = _kind_and_choices([*singles, *items])
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return Setting(
        name=field.name,
        kind=kind,
        default=default.value if isinstance(default, Enum) else default,
        help=field.metadata.get("help", ""),
        choices=tuple(field.metadata.get("choices", choices)),
        takes_list=bool(lists),
        takes_one=bool(singles),
        or_text=kind is bool and str in singles,
        alone=True if kind is bool else field.metadata.get("const"),
    )


def _kind_and_choices(types: list[Any]) -> tuple[type, tuple[Any, ...]]:
    """The type in which words are read, and the words that are allowed; none: any of the type."""
    for one in types:
        if isinstance(one, type) and issubclass(one, Enum):  # the library has `Enum | str`, where str is the value
            return str, tuple(member.value for member in one)
    if str in types and bool not in types:  # such as `dict | str`: the library reads both forms itself
        return str, ()
    for one in types:
        if get_origin(one) is Literal:
            return str, get_args(one)
    origins = [get_origin(one) or one for one in types]
    return next((kind for kind in (bool, int, float, dict) if kind in origins), str), ()


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


__all__ = ["Setting", "settings_of"]
