"""Captions from every kind of source, and what is said about those that cannot be read."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from huggingface_hub import constants

from alpro_hf.data import tables as captions
from alpro_hf.data.tables import CaptionError, read_captions

TEXTS = ["a dog runs", "", "  two cats\t", None, "a café, a “bar”"]
READ = ["a dog runs", None, "two cats", None, "a café, a “bar”"]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(gzip.compress(text.encode(encoding)) if path.suffix == ".gz" else text.encode(encoding))
    return path


def problem(*sources, **options) -> str:
    with pytest.raises(CaptionError) as caught:
        list(read_captions(*sources, **options))
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a dog runs\n\n  two cats\t\r\n   \na café, a “bar”"),
        ("a.csv", 'id,caption\n1,a dog runs\n2,\n3,"  two cats\t"\n4,\n5,"a café, a “bar”"\n'),
        ("a.tsv", "text\tid\r\na dog runs\t1\r\n\t2\r\n  two cats\t3\r\n\t4\r\na café, a “bar”\t5\r\n"),
        ("a.json", json.dumps([{"image": "x.jpg", "caption": text} for text in TEXTS], indent=1)),
        ("b.json", json.dumps(TEXTS, ensure_ascii=False)),
        ("c.json", "\n".join(json.dumps({"clip_name": "x", "caption": text}) for text in TEXTS)),
        ("a.jsonl", "\n".join(json.dumps({"sentence": text}, ensure_ascii=False) for text in TEXTS) + "\n\n"),
        ("a.ndjson", "\n".join(json.dumps(text) for text in TEXTS)),
    ],
)
def test_files_of_text(tmp_path, name, text, packed):
    assert list(read_captions(write(tmp_path / (name + packed), text))) == READ


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert list(read_captions(write(tmp_path / "a.txt", "a dog", "utf-8-sig"))) == ["a dog"]
    assert list(read_captions(write(tmp_path / "a.csv", "text,id\na dog,1\n", "utf-8-sig"))) == ["a dog"]
    assert list(read_captions(write(tmp_path / "a.json", '["a dog"]', "utf-8-sig"))) == ["a dog"]


def test_another_encoding_by_name(tmp_path):
    for name, text in (("a.txt", "a café"), ("a.csv", "text\na café\n"), ("a.json", '["a café"]')):
        assert list(read_captions(write(tmp_path / name, text, "latin-1"), encoding="latin-1")) == ["a café"]


def test_a_quoted_field_may_span_lines(tmp_path):
    file = write(tmp_path / "a.csv", 'text,id\n"a dog\nruns, ""fast""",1\na cat,2\n')
    assert list(read_captions(file)) == ['a dog\nruns, "fast"', "a cat"]


def test_quotes_in_a_tsv_are_text(tmp_path):
    assert list(read_captions(write(tmp_path / "a.tsv", 'text\tid\n"a dog\t1\n'))) == ['"a dog']


def test_a_table_without_a_header(tmp_path):
    file = write(tmp_path / "Train_GCC.tsv", "a dog\thttp://x\na cat\thttp://y\n")
    assert list(read_captions(file, column="#1")) == ["a dog", "a cat"]
    assert "there is no field #3, only 2 fields" in problem(file, column="#3")


def test_parquet_with_a_named_column_of_lists(tmp_path):
    table = pa.table({"text": ["no"] * 3, "captions": [["a dog", "the dog "], [], [None, "a cat"]]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = list(read_captions(tmp_path / "a.parquet", column="captions"))
    assert found == ["a dog", "the dog", None, None, "a cat"]


def test_parquet_of_many_batches(tmp_path):
    pq.write_table(pa.table({"caption": [f"caption {i}" for i in range(2500)]}), tmp_path / "a.parquet")
    assert list(read_captions(tmp_path / "a.parquet")) == [f"caption {i}" for i in range(2500)]


def test_datasets_in_memory_streamed_and_on_disk(tmp_path):
    dataset = Dataset.from_dict({"video": list("abcde"), "caption": TEXTS})
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset}).save_to_disk(tmp_path / "split")
    stream = IterableDataset.from_generator(lambda: ({"caption": text} for text in TEXTS))
    assert stream.column_names is None  # not known before it is read
    for source in (dataset, dataset.to_iterable_dataset(), stream, DatasetDict({"x": dataset}), tmp_path / "one"):
        assert list(read_captions(source)) == READ
    assert list(read_captions(tmp_path / "split")) == READ


def test_a_dataset_of_many_batches():
    texts = [f"caption {i}" for i in range(2500)]
    assert list(read_captions(Dataset.from_dict({"text": texts}))) == texts


def test_a_folder_laid_out_for_load_dataset_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "load_from_disk", None)
    for split, text in (("train", "a dog"), ("test", "a cat")):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [text, None]}), tmp_path / "data" / f"{split}-0.parquet")
    assert list(read_captions(tmp_path, split="test")) == ["a cat", None]
    assert "name the split to read (--split); the splits are train, test" in problem(tmp_path)
    assert "dev" in problem(tmp_path, split="dev")


def test_iterables_of_captions_and_of_rows():
    assert list(read_captions(iter(TEXTS))) == READ
    assert list(read_captions([{"video": "x", "text": text} for text in TEXTS])) == READ


def test_several_sources_one_after_the_other(tmp_path):
    file = write(tmp_path / "a.txt", "one\n")
    assert list(read_captions(file, ["two"], str(file))) == ["one", "two", "one"]


def test_a_json_list_on_one_line_is_read_in_pieces(tmp_path, monkeypatch):
    texts = [f'käptn {i}, [x] \\ "{"y" * (i % 40)}"' for i in range(300)]
    rows = [{"caption": text, "more": [1, {"a": None}]} for text in texts]
    for dumped in (json.dumps(rows), json.dumps(rows, ensure_ascii=False), json.dumps(rows, indent=2)):
        file = write(tmp_path / "a.json", dumped)
        for size in (17, 64, 1000):  # the ends of the pieces fall everywhere
            monkeypatch.setattr(captions, "_CHUNK", size)
            assert list(read_captions(file)) == texts
    assert list(read_captions(write(tmp_path / "b.json", " [ ] \n"))) == []


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path, name, monkeypatch):
    monkeypatch.setattr(captions, "_CHUNK", 1 << 14)
    texts = [f"a caption of some length with the number {i}" for i in range(20_000)]
    write(tmp_path / name, json.dumps(texts) if name == "a.json" else "text\n" + "\n".join(texts))
    del texts
    assert (tmp_path / name).stat().st_size > 900_000
    tracemalloc.start()
    count = sum(1 for _ in read_captions(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 + (name == "a.txt")
    assert peak < 300_000


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_column_and_several_columns(tmp_path):
    file = write(tmp_path / "a.csv", "videoid,name\n1,a dog\n")
    assert list(read_captions(file, column="name")) == ["a dog"]
    message = problem(file)
    assert f"{file}, line 1: no column of captions is known" in message
    assert "'videoid', 'name'" in message
    assert "--column" in message
    both = Dataset.from_dict({"text": ["a"], "caption": ["b"], "id": [1]})
    assert "several columns may be the captions (text, caption)" in problem(both)
    assert list(read_captions(both, column="caption")) == ["b"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_a_column_that_is_not_there(tmp_path, name):
    file = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["a"]}), file)
    else:
        write(file, {"a.csv": "text\na\n", "a.jsonl": '{"text": "a"}', "a.json": '[{"text": "a"}]'}[name])
    message = problem(file, column="name")
    assert str(file) in message
    assert "there is no column 'name'; the columns are 'text'" in message


def test_the_wrong_encoding(tmp_path):
    lines = ["fine"] * 6 + ["a café"]
    message = problem(write(tmp_path / "a.txt", "\n".join(lines), "latin-1"))
    assert message.startswith(f"{tmp_path / 'a.txt'}, line 7: not utf-8: the byte 0xe9")
    assert "line 8: not utf-8" in problem(write(tmp_path / "a.csv", "\n".join(["text", *lines]), "latin-1"))
    listed = json.dumps(lines, indent=0, ensure_ascii=False)
    assert "line 8: not utf-8" in problem(write(tmp_path / "a.json", listed, "latin-1"))
    assert "not utf-8" in problem(write(tmp_path / "b.txt", "a dog", "utf-16"))
    assert "does not extend ASCII" in problem(tmp_path / "b.txt", encoding="utf-16")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'text,id\na,1\n"b,2\nc,3\n', "line 3: unexpected end of data"),
        ("a.csv", "text,id\na,1\nb\n", "line 3: 1 fields, where the first line has 2"),
        ("a.tsv", "text\tid\na\t1\nb\t2\t3\n", "line 3: 3 fields, where the first line has 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"caption": "b"}\n', "line 2: the row lacks 'text'; it has 'caption'"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 7}\n', "line 3, field 'text': a caption is text; received int 7"),
        ("a.json", '[{"text": "a"},\n{"text": 7}]', "line 2, item 1, field 'text': a caption is text"),
        ("a.json", '["a",\n"b"', "line 2, item 1: not JSON: no ',' or ']' behind the item"),
        ("a.json", '["a",\n"b]', "item 1: not JSON"),
        ("a.json", '["a"\n"b"]', "item 0: not JSON: no ',' or ']' behind the item"),
        ("a.json", '["a"]\n["b"]', "line 1: there is something behind the end of the list"),
        ("a.json", '{"sentences": [\n"a"]}', "line 1: not JSON"),
        ("a.json", "[1, 2]", "line 1, item 0: a caption is text; received int 1"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, name, text, expected):
    message = problem(write(tmp_path / name, text))
    assert message.startswith(f"{tmp_path / name}, ")
    assert expected in message


def test_rows_that_are_no_rows(tmp_path):
    file = write(tmp_path / "a.json", '["a"]')
    assert "item 0: no row with a field 'text' but str 'a'" in problem(file, column="text")
    assert "received int 3" in problem(["a", 3])
    assert "received 3" in problem(3)


def test_numbers_in_a_column(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "id": [1, 2]}), tmp_path / "a.parquet")
    assert "row 1, field 'id': a caption is text; received int 1" in problem(tmp_path / "a.parquet", column="id")
    assert "row 1, field 'id'" in problem(Dataset.from_dict({"id": [1]}), column="id")


def test_damaged_files(tmp_path):
    packed = gzip.compress("\n".join(f"caption {i * i}" for i in range(20_000)).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    message = problem(tmp_path / "a.txt.gz")
    assert "the archive is damaged or incomplete" in message
    assert int(message.split("line ")[1].split(":")[0]) > 1000
    (tmp_path / "b.json.gz").write_bytes(b'["a"]')
    assert "damaged" in problem(tmp_path / "b.json.gz")
    pq.write_table(pa.table({"text": ["a"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    assert f"{tmp_path / 'b.parquet'}, after row 0: no readable Parquet" in problem(tmp_path / "b.parquet")


def test_a_line_that_is_no_caption(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "_LONGEST", 1000)
    assert "line 2: longer than 1000 bytes" in problem(write(tmp_path / "a.txt", "a dog\n" + "x" * 1001))
    assert "item 1: not JSON" in problem(write(tmp_path / "a.json", '["a", "' + "x" * 5_000_000))


def test_files_that_are_not_there_or_unknown(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file nowhere/captions\.csv"):
        list(read_captions("nowhere/captions.csv"))
    with pytest.raises(FileNotFoundError, match="There is no file captions"):
        list(read_captions("captions"))
    assert "no file of captions by its name; known are .txt, .csv" in problem(write(tmp_path / "a.doc", "x"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty doesn't contain any data files"):
        list(read_captions(tmp_path / "empty"))


def test_a_dataset_that_the_hub_does_not_give(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="nobody/nothing"):
        list(read_captions("nobody/nothing"))
