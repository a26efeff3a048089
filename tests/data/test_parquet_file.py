"""Small Parquet files that unfold to gigabytes are refused, in little memory; others give their rows."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro_hf.data.annotations import load_annotations
from alpro_hf.data.load_rows import RowsError, load_rows
from alpro_hf.data.parquet_file import NotRead, ParquetError, check_unfolding, parquet_rows
from alpro_hf.data.tables import AnnotationError, CaptionError, read_captions, read_records

VIDEOS = pa.array(["a.mp4"] * 200)


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])


def repeated_text(path: Path) -> None:
    """A dictionary of one text of 4 MB, and 200 references to it."""
    table = pa.table({"video": VIDEOS, "text": repeated("x" * 4_000_000, 200)})
    pq.write_table(table, path, compression="zstd", store_schema=False)


def shared_prefixes(path: Path) -> None:
    """Texts of which each is stored as the length of what it shares with the one before."""
    encoding = {"text": "DELTA_BYTE_ARRAY", "video": "PLAIN"}
    table = pa.table({"video": VIDEOS, "text": pa.array(["x" * 500_000] * 200)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=encoding)


def many_rows(path: Path) -> None:
    """Each column is one value, repeated."""
    table = pa.table({"video": repeated("a dog runs " * 50, 300_000), "text": repeated("a dog runs " * 50, 300_000)})
    pq.write_table(table, path, compression="zstd", store_schema=False)


def long_list(path: Path) -> None:
    """One row that is a list of 20 million numbers."""
    offsets, numbers = pa.array([0, 20_000_000], pa.int32()), pa.array(np.zeros(20_000_000, np.int64))
    table = pa.table({"video": ["a.mp4"], "text": ["a dog"], "numbers": pa.ListArray.from_arrays(offsets, numbers)})
    pq.write_table(table, path, compression="zstd")


@pytest.mark.parametrize("bomb", [repeated_text, shared_prefixes, many_rows])
def test_what_unfolds_to_gigabytes_is_refused(tmp_path, bomb: Callable[[Path], None]) -> None:
    path = tmp_path / "rows.parquet"
    bomb(path)
    (tmp_path / "a.mp4").touch()
    assert path.stat().st_size < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AnnotationError, match=rf"{path}, after row \d+: not readable as Parquet: it unfolds"):
        load_annotations("table", path)
    with pytest.raises(CaptionError, match=rf"{path}, after row \d+: not readable as Parquet: it unfolds"):
        for _ in read_captions(path):
            pass
    with pytest.raises(RowsError, match=rf"{path} cannot be read as rows, or has none: it unfolds"):
        load_rows(str(path), "retrieval")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KB; the rows before are real


def test_memory_of_the_process_is_limited(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    repeated_text(path)
    with pytest.raises(ParquetError):
        list(parquet_rows(path, max_memory=150_000_000))


def test_a_column_that_no_row_needs_is_not_unfolded(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    long_list(path)
    [(place, record)] = read_records(path)
    assert place == f"{path}, row 1" and record["text"] == "a dog"
    assert isinstance(record["numbers"], NotRead) and repr(record["numbers"]) == "list<element: int64>"
    with pytest.raises(ParquetError, match="unfolds"):
        check_unfolding(path)


def test_what_is_read(tmp_path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table(
        {
            "text": ["a", None, "ä\n\0"],
            "n": pa.array([1, None, -(2**63)]),
            "x": [1.5, float("nan"), None],
            "on": [True, False, None],
            "when": pa.array([0, 1, 2], pa.timestamp("s")),
            "bytes": [b"x"] * 3,
            "said": [["a", "b"], [], None],
        }
    )
    pq.write_table(table, path, row_group_size=2)
    rows = list(parquet_rows(path))
    assert [row["text"] for row in rows] == ["a", None, "ä\n\0"] and [row["n"] for row in rows] == [1, None, -(2**63)]
    assert rows[0]["x"] == 1.5 and rows[1]["x"] != rows[1]["x"] and rows[0]["on"] is True
    assert "1970-01-01 00:00:00" in repr(rows[0]["when"]) and repr(rows[0]["bytes"]) == "binary"
    assert list(parquet_rows(path, lambda names: ["said"])) == [{"said": ["a", "b"]}, {"said": []}, {"said": None}]
    check_unfolding(path)


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_times_of_no_calendar_are_named(tmp_path, unit) -> None:
    path = tmp_path / "rows.parquet"
    times = pa.array([0, 2**62], pa.int64()).view(pa.timestamp(unit))
    pq.write_table(pa.table({"video": ["a.mp4"] * 2, "text": ["a", "b"], "when": times}), path)
    with pytest.raises(AnnotationError, match=rf"{path}, row 2, field 'when': a value of the type timestamp\["):
        list(read_records(path))


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        next(parquet_rows(tmp_path / "none.parquet"))
    (tmp_path / "two.parquet").write_bytes(b"PAR1 no footer PAR1")
    with pytest.raises(ParquetError):
        next(parquet_rows(tmp_path / "two.parquet"))
