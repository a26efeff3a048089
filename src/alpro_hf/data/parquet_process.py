"""The process that reads a Parquet file for `tables.py`, within a limit of memory.

A file of a few hundred bytes can unfold to gigabytes: by repetition, by references into a dictionary, by compression.
How much a page takes is known only when it is unfolded, so a process does it that may hold a limited amount of data.

This file is run as a script, by its path. It imports pyarrow, but neither the package `alpro_hf` nor torch.

Each message is a line of JSON. The process first writes the columns of the file and their types, `{"columns": {...}}`,
and reads a list of the columns to send. It then writes a list of values for each row, and `{"rows": n}` at the end. If
it reads `{"most": bytes}` instead of a list, it writes no values but `{"bytes": n}`: how much all rows take in memory,
at least if that is not more than `most`. Columns of bytes, pictures for instance, are not counted.
What JSON cannot express is written as `{"type": "..."}`, its type in words. A `{"problem": "..."}`, with `row` and
`column` where they are known, ends the conversation at any point.
"""

import json
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 100  # rows that are unfolded at a time
OPTIONS: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}  # page by page, not a whole group of rows


class ValueProblemError(Exception):
    """A value cannot be expressed; the arguments are the reason, the row from 1 and the column."""


def send(message: Any) -> None:
    sys.stdout.write(json.dumps(message, default=in_words) + "\n")


def in_words(value: Any) -> dict[str, str]:
    return {"type": f"{type(value).__name__} {value!s:.60}"}


def serve(path: str) -> None:
    """Answer one request for the rows of a file."""
    row = 0
    try:
        with open(path, "rb") as file:
            parquet = pq.ParquetFile(file, **OPTIONS)
            schema = parquet.schema_arrow
            send({"columns": {name: str(schema.field(i).type) for i, name in enumerate(schema.names)}})
            sys.stdout.flush()
            wanted = json.loads(sys.stdin.readline())
            if isinstance(wanted, dict):
                send({"bytes": size_of(parquet, wanted["most"])})
                wanted = []
            for batch in parquet.iter_batches(BATCH, columns=wanted, use_threads=False):
                columns = [(name, batch.column(name)) for name in wanted]
                # one row after the other: all values of a column could be the same large one
                for i in range(batch.num_rows):
                    row += 1
                    send([value_of(column, i, row, name) for name, column in columns])
        send({"rows": row})
    except ValueProblemError as problem:
        reason, at, name = problem.args
        send({"problem": reason, "row": at, "column": name})
    except MemoryError:
        send({"problem": "it unfolds to more than this process may hold"})
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last if a text is not UTF-8
        send({"problem": str(error)})
    sys.stdout.flush()


def size_of(parquet: pq.ParquetFile, most: int) -> int:
    """Bytes of the rows in memory, counted until they are more than `most`."""
    names = [field.name for field in parquet.schema_arrow if "binary" not in str(field.type)]
    size = 0
    for batch in parquet.iter_batches(BATCH, columns=names, use_threads=False):
        size += batch.nbytes
        if size > most:
            break
    return size


def value_of(column: pa.Array, i: int, row: int, name: str) -> Any:
    try:
        return column[i].as_py()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError, LookupError) as error:  # dates of no calendar, unknown time zones
        raise ValueProblemError(f"a value of the type {column.type} cannot be read: {error}", row, name) from error


def limit_memory(max_memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    resource.setrlimit(resource.RLIMIT_DATA, (max_memory, max_memory))


if __name__ == "__main__":
    limit_memory(int(sys.argv[3]))
    serve(sys.argv[2])
