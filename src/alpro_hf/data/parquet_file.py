"""Rows of Parquet files, unfolded by a process of their own, see `parquet_process.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted_json import JsonBoundsError, parse_json

MAX_MEMORY = 2 * 1024**3  # bytes that the process may hold; 100 rows of many megabytes fit
LONGEST = 1 << 24  # bytes of a row
# A file may unfold to this many times its size; the smallest ones to more, because their size is mostly headers.
MAX_UNFOLDING, UNFOLDED_ANYWAY = 200, 1 << 26
SCRIPT = Path(__file__).with_name("parquet_process.py")
# Types whose values are no text, no number and no date. Their columns are not read, unless they are asked for.
_NOT_READ = ("binary", "extension", "fixed_size", "large_binary", "large_list", "list", "map", "struct", "union")
# without the current folder among the places of modules
_START = (
    "import sys; sys.path = [path for path in sys.path if path]; "
    "import runpy; runpy.run_path(sys.argv[1], None, '__main__')"
)


class ParquetError(ValueError):
    """A Parquet file cannot be read; the message is the end of a sentence, `row` how many rows were read before."""

    def __init__(self, problem: str, row: int, column: str | None = None) -> None:
        super().__init__(problem)
        self.row, self.column = row, column


@dataclass(frozen=True, repr=False)
class NotRead:
    """Stands for a value of a type that no row needs.

    Args:
        type: The type in words, such as "list<item: string>".
    """

    type: str

    def __repr__(self) -> str:
        return self.type


def parquet_rows(
    path: Path, select: Callable[[Sequence[str]], Sequence[str]] | None = None, max_memory: int = MAX_MEMORY
) -> Iterator[dict[str, Any]]:
    """Read the rows of a Parquet file within a limit of memory, whatever is in it.

    Args:
        path: The file.
        select: From the names of all columns to those to read. None: all columns of text, numbers, truth values and
            dates; values of the other columns are a `NotRead`.
        max_memory: Bytes of data that the process which unfolds the file may hold. Windows has no such limit.

    Yields:
        From the name of each column to the value: None, text, a number, a truth value, or in selected columns a list
        of these. Values of all other types are a `NotRead`.

    Raises:
        ParquetError: The file is no Parquet or damaged, a value is out of the range of its type, or the file unfolds
            to more than `max_memory`, or to more than 200 times its size and 64 MiB.
        OSError: It cannot be opened.
    """
    with _process(path, max_memory) as (process, types, most):
        wanted = (
            [name for name in types if not types[name].startswith(_NOT_READ)]
            if select is None
            else select(list(types))
        )
        others = {} if select else {name: NotRead(kind) for name, kind in types.items() if name not in wanted}
        _ask(process, list(wanted))
        row = unfolded = 0
        while isinstance(values := _message(process, row), list):
            row += 1
            unfolded += sum(len(value) if isinstance(value, str) else 8 for value in values)
            if unfolded > most:
                raise ParquetError(_unfolds(most), row)
            yield dict(zip(wanted, map(_value, values), strict=True)) | others


def check_unfolding(path: Path, max_memory: int = MAX_MEMORY) -> None:
    """Check that a Parquet file may be read at once, for readers that have no bounds of their own.

    Raises:
        ParquetError: As in `parquet_rows`.
        OSError: The file cannot be opened.
    """
    with _process(path, max_memory) as (process, _, most):
        _ask(process, {"most": most})
        if _message(process, 0)["bytes"] > most:
            raise ParquetError(_unfolds(most), 0)


def _unfolds(most: int) -> str:
    return f"it unfolds to more than {most:,} bytes, far more than its size"


@contextmanager
def _process(path: Path, max_memory: int) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, str], int]]:
    """The process for a file, the types of its columns, and how many bytes it may unfold to."""
    with path.open("rb") as file:
        most = max(MAX_UNFOLDING * os.fstat(file.fileno()).st_size, UNFOLDED_ANYWAY)
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(SCRIPT), os.path.abspath(path), str(max_memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},  # the others set aside more than they need
        start_new_session=True,  # Ctrl-C reaches only us
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, _message(process, 0)["columns"], most
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _ask(process: "subprocess.Popen[bytes]", request: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()


def _message(process: "subprocess.Popen[bytes]", row: int) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline(LONGEST + 1)
    if len(line) > LONGEST:
        raise ParquetError(f"the next row is longer than {LONGEST:,} bytes", row)
    if not line.endswith(b"\n"):
        raise ParquetError(f"the process that unfolds it ended with exit code {process.wait()}", row)
    try:
        message = parse_json(line.decode(), nan=True)
    except JsonBoundsError as error:
        raise ParquetError(f"in the next row {error}", row) from error
    if isinstance(message, dict) and "problem" in message:
        raise ParquetError(message["problem"], message.get("row", row), message.get("column"))
    return message


def _value(value: Any) -> Any:
    return NotRead(value["type"]) if isinstance(value, dict) and value.keys() == {"type"} else value


__all__ = ["MAX_MEMORY", "NotRead", "ParquetError", "check_unfolding", "parquet_rows"]
