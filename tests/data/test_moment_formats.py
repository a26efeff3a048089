"""Annotations of moments: files written as their owners publish them, read as rows with windows of seconds."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import gallery

from alpro_hf.data.annotations import load_annotations
from alpro_hf.data.load_rows import RowsError, load_rows
from alpro_hf.data.moment_formats import read_moments
from alpro_hf.data.tables import AnnotationError
from alpro_hf.sprites.films import write_films

HIGHLIGHT = {
    "qid": 8737,
    "query": "A family plays catch in a park.",
    "duration": 150,
    "vid": "NUsG9BgSes0_210.0_360.0",
    "relevant_clip_ids": [0, 1],
    "saliency_scores": [[4, 3, 3], [2, 1, 3]],
    "relevant_windows": [[0, 4], [90.5, 150]],
}
CHARADES = (
    "AO8RW 0.0 6.9##a person is putting a book on a shelf.\nAO8RW 8 9.5##a person is putting a book on a shelf.\n"
)
DIDEMO = {
    "annotation_id": 5,
    "description": " the dog jumps first ",
    "dl_link": "https://example.org/1.mov",
    "num_segments": 6,
    "times": [[0, 0], [0, 0], [1, 2], [5, 5]],
    "video": "12345@N00_6789_abc.mov",
}
ACTIVITYNET = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "timestamps": [[0.83, 19.86], [17.37, 83.5]],
        "sentences": ["A young woman stands.", " She begins to dance."],
    },
    "v_other": {"duration": 10, "timestamps": [[0, 10]], "sentences": ["A cat sleeps."]},
}


def write(path: Path, kind: str, content: Any) -> Path:
    if kind == "charades-sta":
        path.write_text(content)
    elif kind == "qvhighlights":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))
    return path


def rows_of(tmp_path: Path, kind: str, content: Any, name: str = "file.json") -> list[dict[str, Any]]:
    name = {"qvhighlights": "file.jsonl", "charades-sta": "file.txt"}.get(kind, name)
    return list(load_annotations(kind, write(tmp_path / name, kind, content)))


def row(video_id: str, text: str, *windows: list[float]) -> dict[str, Any]:
    return {"video": video_id, "text": text, "video_id": video_id, "windows": list(windows)}


def test_published_files(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "qvhighlights", [HIGHLIGHT]) == [
        row(HIGHLIGHT["vid"], HIGHLIGHT["query"], [0.0, 4.0], [90.5, 150.0])
    ]
    # the same words at two times are two moments
    sentence = "a person is putting a book on a shelf."
    assert rows_of(tmp_path, "charades-sta", CHARADES) == [
        row("AO8RW", sentence, [0.0, 6.9]),
        row("AO8RW", sentence, [8.0, 9.5]),
    ]
    # segments of 5 s count from 0 and are whole: the last one belongs to the moment
    assert rows_of(tmp_path, "didemo-moments", [DIDEMO]) == [
        row("12345@N00_6789_abc", "the dog jumps first", [0, 5], [0, 5], [5, 15], [25, 30])
    ]
    assert rows_of(tmp_path, "activitynet-captions", ACTIVITYNET) == [
        row("v_QOlSCBRmfWY", "A young woman stands.", [0.83, 19.86]),
        row("v_QOlSCBRmfWY", "She begins to dance.", [17.37, 83.5]),
        row("v_other", "A cat sleeps.", [0, 10]),
    ]
    # paragraph retrieval on DiDeMo reads the same file as ever
    paragraphs = rows_of(tmp_path, "didemo", [DIDEMO, DIDEMO | {"description": "it lands"}])
    assert paragraphs == [
        {"video": "12345@N00_6789_abc", "text": "the dog jumps first it lands", "video_id": "12345@N00_6789_abc"}
    ]


@pytest.mark.parametrize(
    ("kind", "content", "name"),
    [
        ("qvhighlights", [HIGHLIGHT], "highlight_val_release.jsonl"),
        ("charades-sta", CHARADES, "charades_sta_val.txt"),
        ("didemo-moments", [DIDEMO], "val_data.json"),
        ("activitynet-captions", ACTIVITYNET, "val.json"),
    ],
)
def test_folders_as_published_streams_and_clips(tmp_path: Path, kind: str, content: Any, name: str) -> None:
    write(tmp_path / name, kind, content)
    rows = list(load_annotations(kind, tmp_path, split="val"))
    assert list(load_annotations(kind, tmp_path / name, streaming=True)) == rows
    video_id = rows[0]["video_id"]
    gallery.write_video(tmp_path / "videos" / f"{video_id}.mp4", 0)
    found = load_annotations(kind, tmp_path, split="val", videos=tmp_path / "videos")
    assert {one["video"] for one in found} == {str(tmp_path / "videos" / f"{video_id}.mp4")}
    assert len(found) == sum(one["video_id"] == video_id for one in rows)


NAN, INFINITE = float("nan"), float("inf")


def activitynet(times: Any, sentences: Any = ("a",)) -> dict[str, Any]:
    return {"v": {"duration": 9, "timestamps": times, "sentences": list(sentences)}}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (
            "qvhighlights",
            [HIGHLIGHT, HIGHLIGHT | {"relevant_windows": [[4, 2]]}],
            "line 2, field 'relevant_windows'.*ends before it starts",
        ),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[-1, 2]]}], "starts before its video"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[0, 151.1]]}], "ends beyond its video of 150 s"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[NAN, 2]]}], "not finite"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[0, INFINITE]]}], "not finite"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[0, 10**400]]}], "line 1, field 'relevant_windows'"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[False, True]]}], "seconds are expected"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": []}], "at least one pair"),
        ("qvhighlights", [HIGHLIGHT | {"relevant_windows": [[1, 2, 3]]}], "at least one pair"),
        ("qvhighlights", [HIGHLIGHT | {"duration": 0}], "line 1, field 'duration'"),
        ("qvhighlights", [HIGHLIGHT | {"query": 3}], "line 1, field 'query'"),
        ("charades-sta", CHARADES + "AO8RW 3 2##he sits", "line 3, fields 'start' and 'end'.*ends before it starts"),
        ("charades-sta", "AO8RW 3 nan##he sits", "not finite"),
        ("charades-sta", "AO8RW x 4##he sits", "line 1, field 'start'.*'x'"),
        ("charades-sta", "AO8RW 3 4 he sits", "expected 'VID start end##sentence'"),
        ("charades-sta", "AO8RW 3##he sits", "expected 'VID start end##sentence'"),
        ("charades-sta", "AO8RW 3 4##", "the text of 'AO8RW' is empty"),
        ("didemo-moments", [DIDEMO | {"times": [[2, 1]]}], "item 0, field 'times'.*first to its last"),
        ("didemo-moments", [DIDEMO | {"times": [[-1, 1]]}], "field 'times'"),
        ("didemo-moments", [DIDEMO | {"times": [[0, 6]]}], "beyond the 6 segments"),
        ("didemo-moments", [DIDEMO | {"times": [[0.5, 1]]}], "field 'times'"),
        ("didemo-moments", [{**DIDEMO, "times": 5}], "field 'times'.*at least one pair"),
        (
            "activitynet-captions",
            ACTIVITYNET | activitynet([[3, 2]]),
            r"video 'v', field 'timestamps\[0\]'.*ends before",
        ),
        (
            "activitynet-captions",
            activitynet([[0, 2], [3, 10.1]], "ab"),
            r"'timestamps\[1\]'.*beyond its video of 9 s",
        ),
        ("activitynet-captions", activitynet([[0, 2]], "ab"), "two lists of one length"),
        ("activitynet-captions", activitynet([[0, 2]], [1]), r"'sentences\[0\]'"),
        (
            "activitynet-captions",
            {"v": {"timestamps": [[0, 2]], "sentences": ["a"]}},
            "video 'v': there is no field 'duration'",
        ),
        ("activitynet-captions", [ACTIVITYNET], "one JSON object"),
        ("activitynet-captions", {"v": 3}, "video 'v': expected an object"),
    ],
)
def test_wrong_times_name_their_place(tmp_path: Path, kind: str, content: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        rows_of(tmp_path, kind, content)
    assert str(tmp_path / "file") in str(caught.value)


def test_the_test_of_qvhighlights_has_no_moments(tmp_path: Path) -> None:
    test = {name: value for name, value in HIGHLIGHT.items() if name != "relevant_windows"}
    with pytest.raises(AnnotationError, match=r"line 1: .*published without its moments.*highlight_val_release"):
        rows_of(tmp_path, "qvhighlights", [test])


def test_films_load_as_a_table(tmp_path: Path) -> None:
    folder = write_films(tmp_path, "test", 1, scenes=(3, 3), seconds=(0.5, 1.0), size=32, workers=1, progress=False)
    truth = [json.loads(line) for line in (folder / "moments.jsonl").read_text().splitlines()]
    rows = load_rows(f"table:{folder / 'moments.jsonl'}", "moments")
    assert [one["windows"] for one in rows] == [[[one["start"], one["end"]]] for one in truth]
    assert [one["text"] for one in rows] == [one["text"] for one in truth]
    assert {one["video"] for one in rows} == {str(folder / "films" / "00000.mp4")}
    # rows that were saved load again, without a kind
    rows.to_json(tmp_path / "rows.jsonl")
    assert list(load_rows(str(tmp_path / "rows.jsonl"), "moments")) == list(rows)
    rows.remove_columns("windows").to_json(tmp_path / "none.jsonl")
    with pytest.raises(RowsError, match="for the task 'moments' it lacks windows"):
        load_rows(str(tmp_path / "none.jsonl"), "moments")


def test_times_of_a_table(tmp_path: Path) -> None:
    gallery.write_video(tmp_path / "a.mp4", 0)

    def rows(text: str, **options: Any) -> list[dict[str, Any]]:
        (tmp_path / "t.csv").write_text(text)
        return list(load_annotations("table", tmp_path / "t.csv", **options))

    assert rows("video,text,start,end\na.mp4,a fox,1,2.5\n")[0]["windows"] == [[1.0, 2.5]]
    named = rows("video,text,from,to\na.mp4,a fox,1,2.5\n", columns={"start": "from", "end": "to"})
    assert named[0]["windows"] == [[1.0, 2.5]]
    # where a clip was cut out of its film is no moment of the clip
    assert "windows" not in rows("video,text,start,end\na.mp4,a fox,00:01:02,00:01:05\n")[0]
    assert "windows" not in rows("video,question,answer,start,end\na.mp4,what,fox,1,2\n")[0]
    with pytest.raises(AnnotationError, match=re.escape("t.csv, line 3, field 'end': a time in seconds")):
        rows("video,text,start,end\na.mp4,a fox,1,2\na.mp4,a dog,1,\n")
    with pytest.raises(AnnotationError, match=r"line 2, fields 'start' and 'end'.*not finite"):
        rows("video,text,start,end\na.mp4,a fox,nan,2\n")
    with pytest.raises(AnnotationError, match="needs a start and an end"):
        rows("video,text,from\na.mp4,a fox,1\n", columns={"start": "from"})


@pytest.mark.parametrize("kind", ["qvhighlights", "charades-sta", "didemo-moments", "activitynet-captions"])
def test_a_pipe_is_no_file_of_annotations(tmp_path, kind):
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(
        AnnotationError, match=r"pipe\.jsonl.*: it is a pipe or a device, where a plain file is needed"
    ):
        list(read_moments(kind, tmp_path / "pipe.jsonl"))
