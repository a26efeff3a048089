"""Annotations in miniature files of exactly the published layouts, to rows, and rows through the collators."""

import csv
import gzip
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from fixtures import colours
from PIL import Image

from alpro_hf.data import tables
from alpro_hf.data.annotation_formats import AnnotationKind
from alpro_hf.data.annotations import SPLIT_FILES, load_annotations
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.label_lists import read_answers
from alpro_hf.data.load_rows import load_rows
from alpro_hf.data.media_folder import MediaFolder
from alpro_hf.data.mixed_rows import MixedRows
from alpro_hf.data.pretraining_collator import AlproPreTrainingCollator
from alpro_hf.data.tables import AnnotationError

CAPTIONS = [("video0", "a man sings"), ("video0", "a man is singing"), ("video1", "two dogs play")]
# the columns and values of the first lines as they are published
MSRVTT = {
    "info": {"contributor": "Microsoft MSM group", "version": "1.0"},
    "videos": [
        {
            "category": category,
            "url": f"https://www.youtube.com/watch?v=abc{number}",
            "video_id": f"video{number}",
            "start time": 137.72,
            "end time": 149.44,
            "split": split,
            "id": number,
        }
        for number, split, category in [(0, "train", 9), (6513, "validate", 3), (7010, "test", 14), (9770, "test", 0)]
    ],
    "sentences": [
        {"caption": "a woman creating a fondant baby", "video_id": "video6513", "sen_id": 0},
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 1},
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 2},
        {"caption": "a girl walks on a ramp", "video_id": "video7010", "sen_id": 3},
        {"caption": "a person fixes a machine", "video_id": "video9770", "sen_id": 4},
    ],
}
ONE_KA = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something to system\n"
WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n"
    "1066674784,https://ak.picdn.net/1066674784/preview/a.mp4,PT00H00M10S,006001_006050,"
    '"Merida, mexico - may 23, 2017: tourists are walking"\n'
    "1019723344,https://ak.picdn.net/1019723344/preview/b.mp4,PT00H00M21S,013151_013200,Aerial view of a lake\n"
)
MOMENTS = [
    {
        "annotation_id": 27022 + i,
        "description": text,
        "dl_link": "https://www.flickr.com/video_download.gne?id=1",
        "num_segments": 6,
        "times": [[i, i], [i, i]],
        "video": video,
    }
    for i, (video, text) in enumerate(
        [
            ("10015567@N08_3655084291.mov", "the girl spins"),
            ("64536146@N03_7371843004.m4v", "a dog runs."),
            ("10015567@N08_3655084291.mov", "camera pans left"),
        ]
    )
]


def write(path: Path, content: str | list[Any] | dict[str, Any]) -> Path:
    """Text as it is; anything else as one JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def released(path: Path, captions: Iterable[tuple[str, str]] = CAPTIONS) -> Path:
    return write_lines(path, ({"caption": caption, "clip_name": name} for name, caption in captions))


@pytest.fixture
def clips(tmp_path):
    """A maker of folders of files that have only the names of videos."""

    def make(*names: str, folder: str = "videos") -> Path:
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path / folder

    return make


def load(kind: AnnotationKind, path: Path, **options: Any) -> Dataset:
    rows = load_annotations(kind, path, **options)
    assert isinstance(rows, Dataset)
    return rows


def pairs(rows: Dataset) -> list[tuple[str, str]]:
    return list(zip(rows["video_id"], rows["text"], strict=True))


# The published files


def test_released_retrieval(tmp_path, clips):
    videos = clips("video0.mp4", "sub/video1.MKV", "video0.json", ".hidden/video1.mp4")
    rows = load("released-retrieval", released(tmp_path / "test.jsonl"), videos=videos)
    assert pairs(rows) == CAPTIONS
    assert rows["video"][0] == str(videos / "video0.mp4") and rows["video"][2] == str(videos / "sub" / "video1.MKV")
    assert load("released-retrieval", tmp_path, split="test", videos=videos)[:] == rows[:]


def test_released_questions_and_their_answers(tmp_path, clips):
    records = [
        {"question": "what sings?", "answer": "man", "video_id": "video7010", "answer_type": "what"},
        {"question": "how many dogs?", "answer": "two", "video_id": "video7010", "answer_type": "how"},
    ]
    rows = load("released-qa", write_lines(tmp_path / "test.jsonl", records), videos=clips("video7010.avi"))
    assert [{name: row[name] for name in records[0]} for row in rows] == records
    assert set(rows["video"]) == {str(tmp_path / "videos" / "video7010.avi")}
    answers = read_answers(write(tmp_path / "train_ans2label.json", {"man": 0, "two": 1}))
    assert [answers[answer] for answer in rows["answer"]] == [0, 1]


@pytest.mark.parametrize(
    ("split", "videos"),
    [
        (None, ["video6513", "video0", "video0", "video7010", "video9770"]),
        ("train", ["video0", "video0"]),
        ("validate", ["video6513"]),
        ("test", ["video7010", "video9770"]),
        ("7k", ["video6513", "video0", "video0"]),
        ("9k", ["video6513", "video0", "video0", "video7010"]),
    ],
)
def test_msrvtt_splits(tmp_path, split, videos):
    write(tmp_path / "MSRVTT_data.json", MSRVTT)
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", ONE_KA)
    rows = load("msrvtt", tmp_path, split=split)
    assert rows["video_id"] == videos
    categories = {video["video_id"]: video["category"] for video in MSRVTT["videos"]}
    assert rows["category"] == [categories[video] for video in videos]
    assert set(rows["duration"]) == {11.72}


def test_msrvtt_by_lists_of_videos(tmp_path):
    path = write(tmp_path / "MSRVTT_data.json", MSRVTT)
    nine = write(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo7010\n")
    assert set(load("msrvtt", path, only=nine)["video_id"]) == {"video0", "video7010"}
    assert set(load("msrvtt", path, only=["video0"])["video_id"]) == {"video0"}
    with pytest.raises(FileNotFoundError, match=r"MSRVTT_JSFUSION_test\.csv.*without=FILE"):
        load("msrvtt", path, split="9k")
    with pytest.raises(AnnotationError, match=r"no videos of the split 'val'; it has test, train, validate"):
        load("msrvtt", path, split="val")


def test_msrvtt_1ka(tmp_path):
    path = write(tmp_path / "MSRVTT_JSFUSION_test.csv", ONE_KA)
    assert pairs(load("msrvtt-1ka", path)) == [("video9770", "a person is connecting something to system")]
    write(path, ONE_KA + "ret1,msr9770,video9770,something else\n")
    with pytest.raises(AnnotationError, match=r"line 3, field 'video_id': 'video9770' was already at .*line 2"):
        load("msrvtt-1ka", path)


def test_msrvtt_that_contradicts_itself(tmp_path):
    path = tmp_path / "MSRVTT_data.json"
    lost = MSRVTT | {"sentences": [{"caption": "a", "video_id": "video5", "sen_id": 0}]}
    with pytest.raises(AnnotationError, match=r"sentences\[0\], field 'video_id': 'video5' is not among the videos"):
        load("msrvtt", write(path, lost))
    with pytest.raises(AnnotationError, match=r"videos\[4\], field 'video_id': 'video0' occurs twice"):
        load("msrvtt", write(path, MSRVTT | {"videos": [*MSRVTT["videos"], MSRVTT["videos"][0]]}))
    with pytest.raises(AnnotationError, match="no list 'videos'"):
        load("msrvtt", write(path, MSRVTT["sentences"]))
    with pytest.raises(AnnotationError, match="line 2: not valid JSON"):
        load("msrvtt", write(path, '{"videos": [],\n'))


@pytest.mark.parametrize(("kind", "name"), [("msrvtt-qa", "video6513"), ("msvd-qa", "vid6513")])
def test_numbered_questions(tmp_path, clips, kind, name):
    records = [
        {"answer": "couch", "category_id": 14, "id": 0, "question": "what are they sitting on?", "video_id": 6513},
        {"answer": "yes", "category_id": 14, "id": 1, "question": "is it day?", "video_id": 6513},
    ]
    write(tmp_path / "test_qa.json", records)
    rows = load(kind, tmp_path, split="test", videos=clips(f"{name}.avi"))
    assert rows["video_id"] == [name] * 2 and rows["answer"] == ["couch", "yes"]
    assert rows["answer_type"] == ["what", None]
    with pytest.raises(ValueError, match=r"one split.*test_qa\.json"):
        load(kind, tmp_path / "test_qa.json", split="test")


def test_msvd_questions_by_the_names_of_the_clips(tmp_path, clips):
    record = {"answer": "cat", "id": 0, "question": "who jumps?", "video_id": 1}
    path = write(tmp_path / "train_qa.json", [record])
    mapping = write(tmp_path / "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\n")
    videos = clips("-4wsuPCjDBc_5_15.avi")
    rows = load("msvd-qa", path, videos=videos, video_names=mapping)
    assert rows[0]["video"] == str(videos / "-4wsuPCjDBc_5_15.avi") and rows[0]["video_id"] == "vid1"
    with pytest.raises(AnnotationError, match=r"item 0: video_names has no name for the id 'vid1'"):
        load("msvd-qa", path, video_names={"vid2": "x"})
    with pytest.raises(AnnotationError, match=r"youtube_mapping.txt, line 1: expected '<name> <id>'"):
        load("msvd-qa", path, video_names=write(mapping, "a b c\n"))


def test_msvd_captions(tmp_path):
    text = "# notice\n\n-4wsuPCjDBc_5_15 a squirrel eats a nut\nmv89psg6zh4_33_46 A bird is bathing.\n"
    write(tmp_path / "AllVideoDescriptions.txt", text)
    write(tmp_path / "test_list.txt", "mv89psg6zh4_33_46\n")
    assert load("msvd", tmp_path)["video_id"] == ["-4wsuPCjDBc_5_15", "mv89psg6zh4_33_46"]
    assert pairs(load("msvd", tmp_path, split="test")) == [("mv89psg6zh4_33_46", "A bird is bathing.")]
    header = "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    lines = ["1,3,English,A bird, bathing", "1,3,German,Ein Vogel", "1,3,English,"]
    rows = [["mv89psg6zh4", *line.split(",", 3)] for line in lines]
    with (tmp_path / "corpus.csv").open("w", newline="") as file:
        file.write(header)
        csv.writer(file).writerows([[*row[:3], "882", "unverified", "55", *row[3:]] for row in rows])
    with pytest.raises(AnnotationError, match=r"corpus.csv, line 4: the text of 'mv89psg6zh4_1_3' is empty"):
        load("msvd", tmp_path / "corpus.csv")
    assert pairs(load("msvd", tmp_path / "corpus.csv", on_empty="drop")) == [("mv89psg6zh4_1_3", "A bird, bathing")]


def test_didemo_moments_become_a_text_for_each_video(tmp_path, clips):
    write(tmp_path / "test_data.json", MOMENTS)
    videos = clips("10015567@N08_3655084291.mp4", "64536146@N03_7371843004.m4v.mp4")
    rows = load("didemo", tmp_path, split="test", videos=videos)
    assert pairs(rows) == [
        ("10015567@N08_3655084291", "the girl spins camera pans left"),
        ("64536146@N03_7371843004", "a dog runs."),
    ]
    assert [Path(video).suffixes[-1] for video in rows["video"]] == [".mp4", ".mp4"]


def test_webvid(tmp_path, clips):
    official = write(tmp_path / "results_2M_val.csv", WEBVID)
    texts = ["Merida, mexico - may 23, 2017: tourists are walking", "Aerial view of a lake"]
    videos = clips("006001_006050/1066674784.mp4", "1019723344.webm")
    rows = load("webvid", tmp_path, split="val", videos=videos)
    assert rows["text"] == texts and rows["video_id"] == ["1066674784", "1019723344"]
    assert rows["video"] == [str(videos / "006001_006050/1066674784.mp4"), str(videos / "1019723344.webm")]
    simple = write(tmp_path / "simple.csv", f'video_id,text\n1066674784,"{texts[0]}"\n1019723344,{texts[1]}\n')
    assert load("webvid", simple, videos=videos)[:] == rows[:]
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(official.read_bytes()))
    assert load("webvid", packed, videos=videos)[:] == rows[:]


def test_cc3m(tmp_path, clips):
    records = [
        {"image": "/data/cc3m/train/0_11.jpg", "caption": "a lake"},
        {"image": "train/5.jpg", "caption": "trees"},
    ]
    images = clips("train/0_11.jpg", "train/5.png", "val/5.jpg", folder="images")
    rows = load("cc3m", write(tmp_path / "cc3m.json", records), videos=images)
    assert rows.column_names == ["image", "text", "video_id"]
    assert rows["image"] == [str(images / "train/0_11.jpg"), str(images / "train/5.png")]
    urls = ["http://a.org/x.jpg", "http://b.org/y?z=1", "http://c.org/x.jpg"]
    lines = [f'a "quoted {i}\t{url}\n' for i, url in enumerate(urls)]
    path = write(tmp_path / "Train_GCC-training.tsv", "".join(lines))
    images = clips(f"0_{crc32(urls[0].encode())}", "00000/000000001.jpg", "x.jpg", folder="urls")
    rows = load("cc3m", path, videos=images)
    assert rows["video_id"] == urls[:2] and rows["text"] == ['a "quoted 0', 'a "quoted 1']
    assert rows["image"] == [str(images / f"0_{crc32(urls[0].encode())}"), str(images / "00000/000000001.jpg")]
    assert load("cc3m", path)["image"] == urls


# One's own files


@pytest.mark.parametrize("name", ["mine.csv", "mine.tsv", "mine.json", "mine.jsonl", "mine.parquet"])
def test_tables_of_every_kind(tmp_path, clips, name):
    records = [{"file_name": f"clips/{i}.mp4", "caption": text} for i, text in enumerate(["ä fox", 'a "cat"'])]
    path = tmp_path / name
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            quoting = csv.QUOTE_MINIMAL if path.suffix == ".csv" else csv.QUOTE_NONE
            table = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", quoting=quoting, quotechar="~")
            if path.suffix == ".csv":
                table = csv.writer(file)
            table.writerows([list(records[0]), *(list(record.values()) for record in records)])
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        (write if path.suffix == ".json" else write_lines)(path, records)
    clips("0.mp4", "1.mp4", folder="clips")
    rows = load("table", path)
    assert rows["text"] == ["ä fox", 'a "cat"']
    assert rows["video"] == [str(tmp_path / "clips/0.mp4"), str(tmp_path / "clips/1.mp4")]
    assert load("table", path, videos=tmp_path / "clips")[:] == rows[:]


def test_a_folder_as_the_datasets_library_knows_it(tmp_path, encode):
    for split, text in (("train", "a man"), ("test", "a globe")):
        (tmp_path / split).mkdir()
        shutil.copy(encode("plain.mp4"), tmp_path / split / "0001.mp4")
        write(tmp_path / split / "metadata.csv", f"file_name,text\n0001.mp4,{text}\n")
    theirs = load_dataset("videofolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "test"):
        rows = load("table", tmp_path, split=split)
        assert rows["text"] == theirs[split]["text"]
        assert rows["video"] == [str(tmp_path / split / "0001.mp4")]
    assert load("table", tmp_path / "test")["text"] == ["a globe"]


def test_columns_and_splits_of_a_table(tmp_path, clips):
    table = "clip,said,part,split\na.mp4,hello,1,train\na.mp4,bye,2,test\n"
    path = write(tmp_path / "mine.csv", table)
    clips("a.mp4", folder=".")
    columns = {"video": "clip", "text": "said", "video_id": "part"}
    rows = load("table", path, columns=columns, split="test")
    assert pairs(rows) == [("2", "bye")]
    with pytest.raises(AnnotationError, match=r"no column 'text', nor one known for it .*columns={'text': \.\.\.}"):
        load("table", path, columns={"video": "clip"})
    with pytest.raises(AnnotationError, match="there is no column 'speech' for 'text'; there are clip, said"):
        load("table", path, columns={"video": "clip", "text": "speech"})
    with pytest.raises(ValueError, match="columns names \\['words'\\], which rows do not have"):
        load("table", path, columns={"words": "said"})
    with pytest.raises(AnnotationError, match="no row in the split 'val'"):
        load("table", path, columns=columns, split="val")


def test_questions_and_images_in_a_table(tmp_path, clips):
    clips("a.mp4", "b.jpg", folder=".")
    path = write(tmp_path / "qa.csv", "video,question,answer\na.mp4,Who sings?,man\n")
    assert load("table", path)[0] == {
        "video": str(tmp_path / "a.mp4"),
        "question": "Who sings?",
        "answer": "man",
        "answer_type": "who",
        "video_id": "a.mp4",
    }
    for header in ("image", "file_name"):
        rows = load("table", write(tmp_path / "images.csv", f"{header},text\nb.jpg,a lake\n"))
        assert rows[0] == {"image": str(tmp_path / "b.jpg"), "text": "a lake", "video_id": "b.jpg"}


# Finding clips


def test_missing_videos_are_counted_listed_and_left_out(tmp_path, clips, caplog):
    path, listing = released(tmp_path / "train.jsonl"), tmp_path / "out" / "missing_videos.txt"
    videos = clips("video1.mp4")
    with caplog.at_level(logging.WARNING):
        rows = load("released-retrieval", path, videos=videos, missing=listing)
    assert pairs(rows) == CAPTIONS[2:]
    assert listing.read_text() == "video0\n"
    (message,) = (record.getMessage() for record in caplog.records)
    assert "1 videos" in message and "'video0'" in message and "line 1" in message and str(listing) in message
    assert "2 rows are dropped, 1 remain" in message
    with pytest.raises(AnnotationError, match=r"1 videos of .* are missing .*'video0'"):
        load("released-retrieval", path, videos=videos, on_missing="error")
    clips("video0.mp4")
    assert len(load("released-retrieval", path, videos=videos, missing=listing)) == 3
    assert listing.read_text() == ""


def test_the_wrong_folder_is_an_error(tmp_path, clips):
    path = released(tmp_path / "train.jsonl")
    with pytest.raises(AnnotationError, match=r"All 2 videos .* there are 1 videos, such as other\.mp4"):
        load("released-retrieval", path, videos=clips("other.mp4"), missing=tmp_path / "missing.txt")
    assert (tmp_path / "missing.txt").read_text() == "video0\nvideo1\n"
    with pytest.raises(AnnotationError, match="All 2 videos"):
        list(load_annotations("released-retrieval", path, videos=tmp_path / "videos", streaming=True))
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        load("released-retrieval", path, videos=tmp_path / "nowhere")


@pytest.mark.slow
def test_memory_hardly_grows_with_the_rows(tmp_path):
    """What Python holds at its peak: rows go to Arrow in batches, and eight bytes of each stay. Measured on a million
    rows by scripts/annotations_memory.py."""
    peaks = []
    for count in (11_000, 25_000):
        path = tmp_path / f"{count}.csv"
        path.write_text("video_id,text\n" + "".join(f"{i},a clip of the number {i}\n" for i in range(count)))
        tracemalloc.start()
        rows = load_annotations("webvid", path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows) == count
    assert peaks[1] - peaks[0] < 14_000 * 50, peaks


def test_lookup_by_any_spelling(clips):
    folder = MediaFolder(clips("a.mp4", "x/b.avi", "y/b.avi", "v1.2.mp4", "c.mov.mp4", "d.mp4", "d.webm", "notes.txt"))
    assert len(folder) == 7
    found = {name: folder.find(name) for name in ("a", "a.avi", "a.mp4", "v1.2", "c.mov", "x/b", "/data/y/b.mp4")}
    assert {name: path and os.path.relpath(path, folder.folder) for name, path in found.items()} == {
        "a": "a.mp4",
        "a.avi": "a.mp4",
        "a.mp4": "a.mp4",
        "v1.2": "v1.2.mp4",
        "c.mov": "c.mov.mp4",
        "x/b": "x/b.avi",
        "/data/y/b.mp4": "y/b.avi",
    }
    assert folder.find("d.webm") == os.path.join(folder.folder, "d.webm")
    assert folder.find("z/b") is None and folder.find("e") is None and folder.find("notes") is None
    for name in ("b", "d", "d.avi"):
        with pytest.raises(AnnotationError, match="matches several files"):
            folder.find(name)
    assert pickle.loads(pickle.dumps(folder)).find("a") == folder.find("a")
    flat = MediaFolder(folder.folder, recursive=False)
    assert len(flat) == 5 and flat.find("x/b") is None


def test_lookup_tells_videos_without_a_known_extension_by_content(clips, encode):
    folder = clips("broken.dat")
    shutil.copy(encode("plain.mp4"), folder / "clip.dat")
    shutil.copy(encode("plain.mp4"), folder / "bare")
    found = MediaFolder(folder)
    assert found.find("clip") == str(folder / "clip.dat") and found.find("bare") == str(folder / "bare")
    assert found.find("broken") is None


def test_lookup_has_every_name_of_a_large_folder(clips):
    names = [f"{i % 7}/{i}.mp4" for i in range(2_000)]
    folder = MediaFolder(clips(*names))
    assert [folder.find(str(i)) for i in range(2_000)] == [os.path.join(folder.folder, name) for name in names]


# Mistakes in files


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        (
            "released-retrieval",
            "a.jsonl",
            '{"caption": "a"}\n',
            r"line 1: there is no field 'clip_name'; there are 'cap",
        ),
        ("released-retrieval", "a.jsonl", '{"caption": 3, "clip_name": "v"}\n', r"line 1, field 'caption': .*int 3"),
        ("released-retrieval", "a.jsonl", '\n{"caption": " ", "clip_name": "v"}', r"line 2: the text of 'v' is empty"),
        ("released-retrieval", "a.jsonl", '{"caption": null, "clip_name": "v"}', r"line 1: the text of 'v' is empty"),
        ("released-retrieval", "a.jsonl", '{"caption": "a", "clip_name": ""}', r"line 1, field 'clip_name': expected"),
        (
            "released-retrieval",
            "a.jsonl",
            '{"caption": "\\ud83d", "clip_name": "v"}',
            r"line 1, field 'caption'.*half",
        ),
        ("released-retrieval", "a.jsonl", '{"caption": "a"\n', r"line 1: not valid JSON"),
        ("released-retrieval", "a.jsonl", '["a"]\n', r"line 1, item 0: expected an object .* str 'a'"),
        ("released-retrieval", "a.txt", "a b\n", r"not that of a file of annotations"),
        ("released-retrieval", "a.jsonl", "", r"has no row: of 0 records"),
        ("released-qa", "a.jsonl", '{"question": "q", "answer": "", "video_id": "v"}', r"line 1: the answer of 'v'"),
        ("msvd", "a.txt", "clip\n", r"line 1: the text of 'clip' is empty"),
        ("msrvtt-1ka", "a.csv", "key,video_id\nret0,video1\n", r"line 2: there is no field 'sentence'"),
        (
            "webvid",
            "a.csv",
            "video_id,text\n1,one, two\n",
            r"line 2: 3 fields, where the first line has 2.*without quotes",
        ),
        ("webvid", "a.csv", 'video_id,text\n1,"open\n2,two\n', r"line 2: .*quotation mark open"),
        ("webvid", "a.csv", "id,name\n1,one\n", r"line 2: there is no field 'video_id'; there are 'id', 'name'"),
        ("webvid", "a.csv", "text,text\n1,one\n", r"line 1: the header names a column twice"),
        ("webvid", "a.csv", 'video_id,text\n1,"two\nlines"\n2,\n', r"line 4: the text of '2' is empty"),
        ("cc3m", "a.tsv", "a lake\n", r"line 1: 1 fields, where 2 are expected: 'caption', 'url'"),
        ("table", "a.csv", "text\na\n", r"line 2: there is no column 'video'"),
        ("table", "a.csv", "video,image,text\na,b,c\n", r"both 'video' and 'image'"),
        ("table", "a.csv", "", r"has no records"),
        ("table", "a.parquet", "no", r"not readable as Parquet"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path, kind, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(AnnotationError, match=message) as caught:
        load(kind, path)
    assert str(path) in str(caught.value)


def test_another_encoding(tmp_path, clips):
    path = tmp_path / "a.csv"
    path.write_bytes("video_id,text\n1,a lake\n2,a café\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"a.csv, line 3: not utf-8: the byte 0xe9"):
        load("webvid", path)
    assert load("webvid", path, encoding="latin-1")["text"] == ["a lake", "a café"]
    with pytest.raises(AnnotationError, match="does not extend ASCII"):
        load("webvid", path, encoding="utf-16")


def test_repeated_rows(tmp_path, caplog):
    path = write(tmp_path / "a.csv", "video_id,text\n1,a lake\n2,a lake\n1,trees\n1,a lake\n2,a lake\n")
    message = r"line 5: the text 'a lake' of '1' was already at .*line 2, and 1 more rows repeat"
    with pytest.raises(AnnotationError, match=message):
        load("webvid", path)
    with caplog.at_level(logging.WARNING):
        assert pairs(load("webvid", path, on_duplicate="drop")) == [("1", "a lake"), ("2", "a lake"), ("1", "trees")]
    assert "2 rows that repeat" in caplog.text
    assert len(load("webvid", path, on_duplicate="keep")) == 5
    twice = released(tmp_path / "train.jsonl", [*CAPTIONS, CAPTIONS[0]])
    assert len(load("released-retrieval", twice)) == 4, "annotators agree"
    with pytest.raises(AnnotationError, match="line 4: the text 'a man sings' of 'video0' was already at"):
        load("released-retrieval", twice, on_duplicate="error")


def test_arguments_that_do_not_fit(tmp_path):
    path = released(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"kind='youcook' is unknown\. Use one of released-retrieval"):
        load_annotations("youcook", path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_missing='skip' is unknown"):
        load("released-retrieval", path, on_missing="skip")
    with pytest.raises(ValueError, match="columns are for the kind 'table'"):
        load("released-retrieval", path, columns={"text": "caption"})
    with pytest.raises(ValueError, match="needs all rows"):
        load_annotations("released-retrieval", path, streaming=True, on_duplicate="drop")
    with pytest.raises(FileNotFoundError, match=r"no annotations .* looked for val\.jsonl"):
        load("released-retrieval", tmp_path, split="val")
    with pytest.raises(FileNotFoundError, match="Choose a split"):
        load("released-retrieval", tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load("released-retrieval", tmp_path / "nothing.jsonl")
    assert set(SPLIT_FILES) >= {"released-retrieval", "released-qa"}


def test_lists_that_belong_to_other_annotations(tmp_path, caplog):
    path = released(tmp_path / "train.jsonl")
    with pytest.raises(AnnotationError, match="3 are not selected"):
        load("released-retrieval", path, only=["video5"])
    with caplog.at_level(logging.WARNING):
        assert pairs(load("released-retrieval", path, only=["video1", "video8"], without=["video9"])) == CAPTIONS[2:]
    assert "2 of the listed ids (only, without) do not occur, the first is 'video8'" in caplog.text
    with pytest.raises(AnnotationError, match="lists no ids"):
        load("released-retrieval", path, only=write(tmp_path / "list.txt", "\n"))


# Streams and Arrow files


def test_a_stream_gives_the_same_rows_and_sees_changes(tmp_path, clips):
    path, videos = released(tmp_path / "train.jsonl"), clips("video0.mp4")
    stream = load_annotations("released-retrieval", path, videos=videos, streaming=True, missing=tmp_path / "m.txt")
    rows = load("released-retrieval", path, videos=videos)
    assert isinstance(stream, IterableDataset) and stream.features == rows.features
    assert list(stream) == list(rows)
    assert (tmp_path / "m.txt").read_text() == "video1\n"
    assert list(pickle.loads(pickle.dumps(stream))) == list(rows)
    strict = load_annotations("released-retrieval", path, videos=videos, streaming=True, on_missing="error")
    with pytest.raises(AnnotationError, match=r"line 3: 'video1' is missing"):
        list(strict)
    released(path, CAPTIONS[:1])
    assert len(list(stream)) == 1 and len(load("released-retrieval", path, videos=videos)) == 1, "nothing stale"


def test_streams_and_tables_are_sources_of_pretraining(tmp_path, clips):
    path, videos = write(tmp_path / "results_2M_train.csv", WEBVID), clips("1066674784.mp4", "1019723344.mp4")
    sources = {
        "stream": load_annotations("webvid", path, videos=videos, streaming=True),
        "rows": load("webvid", path, videos=videos),
    }
    mixed = MixedRows(sources, steps=8, batch_size=2)
    seen = {(row["source"], row["video_id"]) for row in mixed}
    assert seen == {(source, name) for source in sources for name in ("1066674784", "1019723344")}


@pytest.mark.slow
def test_arrow_files_go_where_asked_and_else_leave_with_python(tmp_path):
    path = released(tmp_path / "train.jsonl")
    rows = load("released-retrieval", path, cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert [Path(cached["filename"]) for cached in rows.cache_files] == [file]
    with pytest.raises(AnnotationError):
        load("released-retrieval", path, cache_dir=tmp_path / "cache", only=["video5"])
    assert list((tmp_path / "cache").iterdir()) == [file], "nothing half-made stays"
    code = (
        "from alpro_hf.data.annotations import load_annotations\n"
        f"rows = load_annotations('released-retrieval', {str(path)!r})\n"
        "print(rows.cache_files[0]['filename'])"
    )
    left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert left.endswith(".arrow") and not Path(left).exists()


# To the models


def test_rows_of_real_clips_go_through_the_collators(tmp_path, encode):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(encode("plain.mp4"), videos / "video7010.mp4")
    shutil.copy(encode("other.avi", "mpeg4"), videos / "video7011.avi")
    captions = [("video7010", "red"), ("video7010", "green"), ("video7011", "blue"), ("video7012", "white")]
    rows = load("released-retrieval", released(tmp_path / "test.jsonl", captions), videos=videos)
    batch = AlproCollator(colours.processor())(list(rows))
    assert batch["pixel_values_videos"].shape == (3, colours.FRAMES, 3, colours.SIZE, colours.SIZE)
    assert (batch["video_ids"][0] == batch["video_ids"][1]) and (batch["video_ids"][1] != batch["video_ids"][2])

    questions = [
        {"question": "which colour?", "answer": "red", "video_id": "video7010", "answer_type": "what"},
        {"question": "how many colours?", "answer": "one", "video_id": "video7010", "answer_type": "how"},
        {"question": "which colour?", "answer": "mauve", "video_id": "video7011", "answer_type": "what"},
    ]
    asked = load("released-qa", write_lines(tmp_path / "qa.jsonl", questions), videos=videos)
    answers = read_answers(write(tmp_path / "train_ans2label.json", colours.ANSWERS))
    batch = AlproCollator(colours.processor(), task="qa", label2id=answers)(list(asked))
    assert len(batch["pixel_values_videos"]) == 2 and batch["video_index"].tolist() == [0, 0, 1]
    assert batch["labels"].tolist() == [answers["red"], answers["one"], -100]
    assert batch["answer_types"] == ["what", "how", "what"]


def test_rows_of_images_go_through_the_pretraining_collator(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / "images" / name)
    records = [{"image": "a.jpg", "caption": "red"}, {"image": "b.jpg", "caption": "blue"}]
    rows = load("cc3m", write(tmp_path / "cc3m.json", records), videos=tmp_path / "images")
    batch = AlproPreTrainingCollator(colours.processor(), patch_size=8)(list(rows))
    assert batch["kind"] == "image" and len(batch["pixel_values_videos"]) == 2


# --- bounds, and names that look alike -------------------------------------------------------------------------------

DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.mark.parametrize(
    ("kind", "name"), [("table", "a.jsonl"), ("table", "a.json"), ("released-retrieval", "a.jsonl")]
)
@pytest.mark.parametrize(("value", "said"), [(DEEP, "deeper than 64"), (LONG, "5,000 digits")])
def test_json_beyond_its_bounds(tmp_path, kind, name, value, said):
    (tmp_path / "a.mp4").touch()
    rows = '{"video": "a.mp4", "text": "a", "clip_name": "a", "caption": "a"}\n'
    rows += f'{{"video": "b.mp4", "text": {value}}}\n'
    path = write(tmp_path / name, f"[{rows.replace('}', '},', 1)}]" if name == "a.json" else rows)
    with pytest.raises(AnnotationError, match=rf"{path}, line 2.*, field 'text': .*{said}"):
        load(kind, path, columns=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"cat 0"', DEEP), r"line 1, field 'caption': .*deeper than 64"),
        (('"cat 0"', LONG), r"line 1, field 'caption': .*5,000 digits"),
        (("137.72", "1e999"), r"sentences\[\d\], field 'start time': a time in seconds .* received inf"),
        (("137.72", "9" * 90), r"sentences\[\d\], field 'start time': a time in seconds"),
        (("137.72", "NaN"), r"sentences\[\d\], field 'start time': a time in seconds .* received nan"),
        (
            ('"category": 9', '"category": ' + "9" * 30),
            r"sentences\[0\]: the category of 'video0' is a number; received 999",
        ),
        (
            ('"category": 9', '"category": true'),
            r"sentences\[0\]: the category of 'video0' is a number; received True",
        ),
    ],
    ids=["deep", "long", "infinite", "late", "nan", "category", "truth"],
)
def test_msrvtt_beyond_its_bounds(tmp_path, change, said):
    data = {
        "videos": [{"video_id": "video0", "split": "train", "category": 9, "start time": 137.72, "end time": 149.44}],
        "sentences": [{"video_id": "video0", "caption": "cat 0"}],
    }
    path = write(tmp_path / "MSRVTT_data.json", json.dumps(data).replace(*change))
    with pytest.raises(AnnotationError, match=f"{path}, {said}"):
        load("msrvtt", path)


@pytest.mark.parametrize("kind", ["table", "msrvtt"])
@pytest.mark.parametrize("encoding", ["utf-9", "", "a\0b", "base64", "idna", "undefined", "utf-16", "\ud800"])
def test_encodings_of_no_text(tmp_path, kind, encoding):
    path = write(tmp_path / "a.json", '[{"video": "a.mp4", "text": "a"}]')
    with pytest.raises(AnnotationError, match=rf"{path}: encoding=.*(no encoding of text|does not extend ASCII)"):
        load(kind, path, encoding=encoding)


@pytest.mark.slow
def test_an_archive_that_unfolds_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_UNFOLDED_ANYWAY", 1 << 20)
    row = b'{"video": "a.mp4", "text": "a dog"}\n'
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(row * 40_000)
    with pytest.raises(AnnotationError, match=rf"{path}, line \d+: the archive unfolds to more than 200 times"):
        load("table", path, on_duplicate="keep")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "video;text\na.mp4;a dog\n", r"fields are separated by semicolons \(;\)"),
        ("a.csv", "video;text\na.mp4;a dog, a cat\n", r"semicolons \(;\)"),
        ("a.csv", '"video";"text"\n"a.mp4";"a dog"\n', r"semicolons \(;\)"),
        ("a.csv", "video\ttext\na.mp4\ta dog\n", "separated by tabs"),
        ("a.csv", "video|text\na.mp4|a dog\n", r"bars \(\|\)"),
        ("a.tsv", "video,text\na.mp4,a dog\n", r"commas \(,\)"),
        ("a.csv", "Video,Text\na.mp4,a dog\n", "There is 'Video', which differs in upper and lower case"),
        ("a.csv", "video ,text\na.mp4,a dog\n", "There is 'video ', which differs in spaces"),
        ("a.csv", "\u200bvideo,text\na.mp4,a dog\n", r"There is '\\u200bvideo', which differs in characters"),
    ],
)
def test_the_cause_of_a_column_that_is_not_found_is_named(tmp_path, clips, name, text, said):
    clips("a.mp4", folder=".")
    path = write(tmp_path / name, text)
    with pytest.raises(AnnotationError, match=said):
        load("table", path)
    if name == "a.csv":
        with pytest.raises(ValueError, match=said if text.startswith("video;text\na.mp4;a dog\n") else path.name):
            load_rows(str(path), "retrieval")


@pytest.mark.parametrize("ends", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_all_line_ends(tmp_path, clips, name, ends):
    clips("a.mp4", "b.mp4", folder=".")
    rows = {
        "a.csv": ["video,text", 'a.mp4,"a dog"', "b.mp4,a cat"],
        "a.tsv": ["video\ttext", "a.mp4\ta dog", "b.mp4\ta cat"],
        "a.jsonl": [
            json.dumps({"video": f"{n}.mp4", "text": f"a {text}"}) for n, text in (("a", "dog"), ("b", "cat"))
        ],
    }
    (tmp_path / name).write_bytes(ends.join(rows[name]).encode())
    assert load("table", tmp_path / name)["text"] == ["a dog", "a cat"]


def test_mixed_line_ends_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"video,text\na.mp4,a dog\rb.mp4,a cat\n")
    with pytest.raises(AnnotationError, match=r"carriage return \(CR\) stands inside of a line"):
        load("table", path)


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("folder", [".", "videos"])
def test_accents_may_be_composed_or_decomposed(tmp_path, clips, stored, written, folder):
    name = "café/Zoë.mp4"
    (tmp_path / folder / unicodedata.normalize(stored, "café")).mkdir(parents=True)
    file = tmp_path / folder / unicodedata.normalize(stored, name)
    file.touch()
    path = write(tmp_path / "a.csv", f"video,text\n{unicodedata.normalize(written, name)},a dog\n")
    videos = None if folder == "." else tmp_path / folder
    [row] = load("table", path, videos=videos)
    assert row["video"] == str(file)
    [row] = load("table", path, videos=videos, only=[unicodedata.normalize(stored, name)])
    assert row["text"] == "a dog"


@pytest.mark.parametrize("folder", [".", "videos"])
def test_backslashes_of_windows(tmp_path, clips, folder):
    (tmp_path / folder / "part").mkdir(parents=True)
    (tmp_path / folder / "part" / "a.mp4").touch()
    path = write(tmp_path / "a.csv", "video,text\npart\\a.mp4,a dog\n")
    [row] = load("table", path, videos=None if folder == "." else tmp_path / folder)
    assert row["video"] == str(tmp_path / folder / "part" / "a.mp4")
    (tmp_path / "secret.mp4").touch()
    deep = tmp_path / "deep"
    deep.mkdir()
    with pytest.raises(AnnotationError, match="leads out of"):
        load("table", write(deep / "a.csv", "video,text\n..\\secret.mp4,a dog\n"))


def test_a_file_that_looks_like_the_missing_one_is_named(tmp_path, clips):
    clips("Clip.MP4", "b.mp4", folder=".")
    path = write(tmp_path / "a.csv", "video,text\nclip.mp4,a dog\n")
    with pytest.raises(AnnotationError, match=r"There is 'Clip\.MP4', which differs in upper and lower case"):
        load("table", path)
    with pytest.raises(AnnotationError, match="There is 'Clip', which differs in upper and lower case"):
        load("table", path, videos=tmp_path)
