"""What a manifest and a shard of a video index may say. An index may come from a stranger.

Each check runs before memory is allocated for what it checks: numbers are compared with limits and with each other,
and safetensors has compared shapes with the size of the file. Each raises a `ValueError` that says what is wrong.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..untrusted_json import parse_json

MAX_TEXT = 4096  # characters of a path or a name; Linux takes no longer paths
MAX_SECONDS = 1e9  # some thirty years
MAX_NUMBER = 2**63  # sizes, times and numbers of shards are below
# in a manifest and in a shard; what a model with 8-bit weights computes is float32
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "F32"}
TOKEN_DTYPES = {"float8_e4m3fn": "F8_E4M3"}  # that tokens alone may be stored in, for a model of any type
UNIT_TOLERANCE = 1e-2  # how far from 1 the length of a vector may be whose numbers a model rounded to 16 bits


def check_manifest(content: Mapping[str, Any]) -> None:
    """Check the types and ranges of a manifest's fields, except for those of the model and video that are compared.

    Raises:
        KeyError: A field is missing.
        ValueError: A field has another type or a value out of range, a shard is listed twice, or the next shard has
            the number of one that is there.
    """
    for name in ("root", "absolute_root"):
        _text(name, content[name])
    for name in ("name", "dtype", "fingerprint"):
        _text(f"model.{name}", content["model"][name])
    if content["model"]["dtype"] not in DTYPES:
        raise ValueError(f"model.dtype is {content['model']['dtype']!r}, not one of {', '.join(DTYPES)}")
    if not isinstance(content["video"], dict):
        raise ValueError("video is not an object")
    following = _whole("next_shard", content["next_shard"], 0, MAX_NUMBER)
    if not isinstance(content["shards"], list):
        raise ValueError("shards is not a list")
    files = set()
    for number, shard in enumerate(content["shards"]):
        file = os.path.normpath(_text(f"the file of shard {number}", shard["file"]))
        if file in files:
            raise ValueError(f"it lists {file} twice")
        files.add(file)
        if (named := re.fullmatch(r"shard-(\d{5,18})\.safetensors", file)) and int(named[1]) >= following:
            raise ValueError(f"next_shard is {following}, but there is {file}")
        rows = _whole(f"rows of {file}", shard["rows"], 1, MAX_NUMBER)
        removed = shard["removed"]
        if not isinstance(removed, list):
            raise ValueError(f"removed of {file} is not a list")
        for row in removed:
            _whole(f"a removed row of {file}", row, 0, rows)
        if len(set(removed)) != len(removed):
            raise ValueError(f"removed of {file} names a row twice")


def check_shapes(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str], rows: int) -> None:
    """Check the tensors of a shard by their shapes and data types, as safetensors names these.

    Raises:
        ValueError: A tensor is missing, empty, or has another rank, data type or number of rows. Tokens may be none.
    """
    numbers = set(DTYPES.values())
    expected = {"features": (2, numbers), "tokens": (3, numbers | set(TOKEN_DTYPES.values()))}
    if "table_ends" in shapes or "tables" in shapes:  # an index made before tables were kept has none
        expected |= {"table_ends": (1, {"I64"}), "tables": (1, {"U8"})}
    for name, (rank, allowed) in expected.items():
        if name not in shapes:
            raise ValueError(f"it has no {name}")
        shape = list(shapes[name])
        if len(shape) != rank or dtypes[name] not in allowed:
            raise ValueError(f"{name} has the shape {shape[:8]} and the type {dtypes[name]}")
        if name == "tables":  # of all videos end to end
            continue
        if shape[0] != rows:
            raise ValueError(f"{name} has {shape[0]} videos, not {rows}")
        if name == "tokens" and shape[1] == 0:  # an index of a model that cannot match holds vectors alone
            shape[1] = 1
        if 0 in shape:  # nothing of the file's size would bound the other sides
            raise ValueError(f"{name} has the shape {shape}, which holds nothing")


def read_entries(listed: str, rows: int) -> list[tuple[Any, ...]]:
    """Read the list of a shard's videos: path, size in bytes and modification time in nanoseconds of each.

    For a window follow its start and end in seconds, and whether it is the last of its file.

    Raises:
        ValueError: The list is no JSON of this form, has another length or names a window twice, a path is empty or
            longer than `MAX_TEXT`, or a window ends before it starts.
    """
    found = parse_json(listed)
    if not isinstance(found, list) or len(found) != rows:
        raise ValueError(f"it names {len(found) if isinstance(found, list) else 'no'} videos, not {rows}")
    entries: list[tuple[Any, ...]] = []
    for entry in found:
        if not isinstance(entry, list) or len(entry) not in (3, 6):
            raise ValueError("an entry is not a path, a size and a time, with or without a window")
        path, size, time, *window = entry
        size = _whole("a size", size, 0, MAX_NUMBER)
        file = (_text("a path", path), size, _whole("a time", time, -MAX_NUMBER, MAX_NUMBER))
        entries.append((*file, *(_window(*window) if window else ())))
    if len({(entry[0], *entry[3:5]) for entry in entries}) != rows:
        raise ValueError("it names a video or a window twice")
    return entries


def _window(start: Any, end: Any, final: Any) -> tuple[float, float, bool]:
    if type(final) is not bool or not all(type(time) in (int, float) for time in (start, end)):
        raise ValueError("a window is not a start, an end, and whether it is the last")
    if not 0 <= start < end < MAX_SECONDS:
        raise ValueError(f"a window goes from {start!r:.40} to {end!r:.40}")
    return float(start), float(end), final


def check_unit_vectors(features: torch.Tensor) -> None:
    """Check that all rows of (n, P) are unit vectors, up to `UNIT_TOLERANCE`.

    Raises:
        ValueError: A row is not; this includes NaN and infinite values.
    """
    start = 0
    for part in features.split(1 << 14):  # a whole shard of half precision is not copied at once
        lengths = torch.linalg.vector_norm(part.float(), dim=1)
        wrong = ((lengths - 1).abs() <= UNIT_TOLERANCE).logical_not()  # so that NaN is wrong
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"row {start + row} of features has the length {lengths[row].item():g}, not 1")
        start += len(part)


def check_finite(name: str, numbers: torch.Tensor) -> None:
    """Check that a tensor has no NaN and no infinite values.

    Raises:
        ValueError: It has.
    """
    if numbers.numel() and not math.isfinite(numbers.abs().max().item()):
        raise ValueError(f"{name} are not all finite numbers")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError(f"{name} is not a text of 1 to {MAX_TEXT} characters")
    return value


def _whole(name: str, value: Any, least: int, end: int) -> int:
    if type(value) is not int or not least <= value < end:  # a truth value is an int to Python
        raise ValueError(f"{name} is {str(value)[:40]}, not a whole number from {least} to {end - 1}")
    return value
