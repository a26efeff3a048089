"""Tables of rows as people write them: separators, and names that are not byte for byte those of the files."""

import unicodedata
from pathlib import Path

import pytest
from fixtures.gallery import write_video

from alpro_hf.data.find_videos import find_videos
from alpro_hf.data.load_rows import RowsError, load_rows
from alpro_hf.model.decoding import decode

NAME = "caf\u00e9.mp4"


@pytest.fixture(params=["NFC", "NFD"])
def clips(request, tmp_path: Path, monkeypatch) -> Path:
    """The working directory, with `clips/café.mp4` in one of its two spellings."""
    write_video(tmp_path / "clips" / unicodedata.normalize(request.param, NAME), 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("separator", ["/", "\\"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_find_the_files_that_people_mean(clips, form, separator) -> None:
    path = f"clips{separator}{unicodedata.normalize(form, NAME)}"
    table = clips / "rows.csv"
    table.write_text(f"video,text\r{path},a fox\rclips/none.mp4,a pizza\r", encoding="utf-8", newline="")
    rows = load_rows(str(table), "retrieval")
    assert [row["text"] for row in rows] == ["a fox", "a pizza"]
    found, missing = (row["video"] for row in rows)
    assert decode(found, lambda info: [0]).info.num_frames > 0
    assert missing == "clips/none.mp4"
    assert find_videos([path])[0] == [Path(found)]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_another_spelling_is_named_where_a_path_is_taken_as_it_is(clips, form) -> None:
    [file] = (clips / "clips").iterdir()
    path = f"clips\\{unicodedata.normalize(form, NAME)}"
    with pytest.raises(FileNotFoundError, match=r"No such file, but there is .*differs in slashes or in how accents"):
        decode(path, lambda info: [0])
    assert decode(f"clips/{file.name}", lambda info: [0]).pixels.shape[0] == 1


def test_separators(tmp_path) -> None:
    tabs = tmp_path / "rows.tsv"
    tabs.write_text('video\ttext\na.mp4\ta "fox, red"\n')
    assert load_rows(str(tabs), "retrieval")[0] == {"video": "a.mp4", "text": 'a "fox, red"'}
    for separator, name in ((";", r"semicolons \(;\)"), ("|", r"bars \(\|\)"), ("\t", "tabs")):
        (tmp_path / "rows.csv").write_text(f"video{separator}text\na.mp4{separator}a fox\n")
        with pytest.raises(RowsError, match=f"separated by {name}: separate them with commas in a .csv and with tabs"):
            load_rows(str(tmp_path / "rows.csv"), "retrieval")


def test_a_folder_of_clips_that_is_not_used_is_named(tmp_path, caplog) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("video,text\na.mp4,a fox\n")
    load_rows(str(table), "retrieval", videos=tmp_path)
    [warning] = caplog.records
    assert f"--videos {tmp_path} is not used for {table}" in warning.getMessage()
