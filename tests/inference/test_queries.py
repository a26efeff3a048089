"""Queries of several terms: read, added, and compared with what an index holds."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from PIL import Image

from alpro_hf.data.spans import Span, SpanError
from alpro_hf.inference.index_shards import VideoIndexError
from alpro_hf.inference.queries import QueryError, Term, example, parse_terms, query_vector, read_query, text_vector
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.decoding_types import VideoDecodeError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    model, processor = load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")
    return model.eval(), processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(5):
        write_video(folder / f"{seed}.mp4", seed, frames=24)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def index(model, folder) -> VideoIndex:
    return VideoIndex.build(*model, sorted(folder.glob("*.mp4")), progress=False)


@pytest.fixture(autouse=True)
def there(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)


def terms(*words: str) -> list[tuple[str, str, float]]:
    return [(term.text, str(term.file or ""), term.weight) for term in parse_terms(words)]


def test_terms_are_read() -> None:
    assert terms("a dog", "+", "0.mp4", "-", "0.5:snow") == [("a dog", "", 1), ("", "0.mp4", 1), ("snow", "", -0.5)]
    assert terms("-", "snow", "+", "2:0.mp4") == [("snow", "", -1), ("", "0.mp4", 2)]
    assert terms("+", "a dog") == [("a dog", "", 1)]
    assert parse_terms(["0.mp4@1-2", "-", ".25:0.mp4@0-1.5"]) == [
        Term(file=Path("0.mp4"), span=Span(1, 2)),
        Term(file=Path("0.mp4"), span=Span(0, 1.5), weight=-0.25),
    ]
    assert parse_terms([], ["photo.jpg"]) == [Term(file=Path("photo.jpg"))]
    assert parse_terms(["-", "snow"], ["0.mp4"]) == [Term(file=Path("0.mp4")), Term("snow", weight=-1)]
    assert terms("mail a@b", "+", "score: 3-2") == [("mail a@b", "", 1), ("score: 3-2", "", 1)]


def test_an_odd_name_of_a_file_is_a_file(folder) -> None:
    for name in ("2:dog@1-2.mp4", "+", "a dog"):
        (folder / name).write_bytes((folder / "0.mp4").read_bytes())
    try:
        assert [term.file for term in parse_terms(["2:dog@1-2.mp4"])] == [Path("2:dog@1-2.mp4")]
        assert [term.file for term in parse_terms(["a dog", "+", "0.mp4"])] == [Path("a dog"), Path("0.mp4")]
    finally:
        for name in ("2:dog@1-2.mp4", "+", "a dog"):
            (folder / name).unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "dog"], "no \\+ or - before 'dog'"),
        (["a dog", "+"], "last term of the query is missing"),
        (["-"], "last term of the query is missing"),
        ([], "last term of the query is missing"),
        (["a dog", "+", "-", "snow"], "'-' follows another sign"),
        (["a dog", "+", "0:snow"], "weight of '0:snow' is 0"),
        (["a dog", "+", "1: "], "A term of the query is blank"),
        (["a dog", "+", "gone.mp4"], "no file 'gone.mp4'"),
        (["a dog", "+", "gone.jpg"], "no file 'gone.jpg'"),
        (["a dog", "+", "gone.mp4@1-2"], "no file 'gone.mp4'"),
        (["a dog", "+", "0.mp4@2-1"], "does not end after"),
        (["a dog", "+", "0.mp4@soon"], "not a span"),
    ],
)
def test_queries_that_are_none(words, message) -> None:
    with pytest.raises((QueryError, SpanError), match=message):
        parse_terms(words)


def test_lines_are_read() -> None:
    assert read_query("  a dog's ball \n") == "a dog's ball"
    assert read_query('"a dog runs"') == "a dog runs"
    assert read_query("well-known 10:30 a+b") == "well-known 10:30 a+b"
    expected = parse_terms(["a dog's ball", "+", "0.mp4@1-2", "-", "0.5:snow and ice"])
    assert read_query("a dog's ball + 0.mp4@1-2 - 0.5:snow and ice") == expected
    assert read_query('"a dog\'s ball" + 0.mp4@1-2 - 0.5:"snow and ice"') == expected
    with pytest.raises(QueryError, match="not closed"):
        read_query('"a dog + snow')
    with pytest.raises(QueryError, match="missing"):
        read_query("a dog -")


def test_the_vector_is_the_weighted_sum(model) -> None:
    text = text_vector(*model, "a dog runs")
    clip = query_vector(*model, [example("0.mp4")])
    assert text.norm() == pytest.approx(1, abs=1e-5) and clip.norm() == pytest.approx(1, abs=1e-5)
    found = query_vector(*model, parse_terms(["a dog runs", "+", "2:0.mp4", "-", "0.5:a fox"]))
    expected = text + 2 * clip - 0.5 * text_vector(*model, "a fox")
    torch.testing.assert_close(found, expected / expected.norm())
    with pytest.raises(QueryError, match="cancel each other out"):
        query_vector(*model, parse_terms(["a dog", "-", "a dog"]))
    with pytest.raises(QueryError, match="no term"):
        query_vector(*model, [])


def test_like_a_clip_a_moment_and_a_picture(model, index, folder, tmp_path) -> None:
    results = index.search_like("2.mp4", top_k=3)
    assert [result.rank for result in results] == [1, 2, 3]
    assert results[0].path.name == "2.mp4" and results[0].similarity == pytest.approx(1, abs=1e-4)
    assert results[0].score == results[0].similarity and results[0].match_probability is None
    last = index.search_like(*parse_terms(["-", "2.mp4"]), top_k=9)[-1]
    assert last.path.name == "2.mp4" and last.similarity == pytest.approx(-1, abs=1e-4)

    # frames 6 to 17 as a file of their own
    with av.open(str(tmp_path / "part.mp4"), "w") as output, av.open("2.mp4") as whole:
        stream = output.add_stream("libx264", rate=6, options={"crf": "1"})
        stream.width = stream.height = 32
        for number, frame in enumerate(whole.decode(video=0)):
            if 6 <= number < 18:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24")))
        output.mux(stream.encode())
    moment = query_vector(*model, [example("2.mp4@1-3")])
    assert float(moment @ query_vector(*model, [example(str(tmp_path / "part.mp4"))])) > 0.99
    assert float(moment @ query_vector(*model, [example("2.mp4")])) < 0.99

    picture = query_vector(*model, [example("photo.jpg")])
    still = np.repeat(np.asarray(Image.open("photo.jpg"))[None], 4, axis=0)
    seen = model[1](videos=still, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(picture, model[0].alpro.get_video_features(**seen).pooler_output[0])
    assert len(index.search_like("photo.jpg", "0.mp4")) == 5


def test_what_is_no_example(model, index, folder, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("no video, no picture")
    (tmp_path / "photo.jpg").write_text("no picture")
    (tmp_path / "film.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("notes.txt", "photo.jpg", "film.mp4", "empty.mp4"):
        with pytest.raises(QueryError, match=rf"{name} is neither a video nor a picture") as caught:
            index.search_like(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(QueryError, match="is a folder"):
        index.search_like(tmp_path)
    with pytest.raises(QueryError, match=r"no file 'gone\.mp4'"):
        index.search_like("gone.mp4")
    with pytest.raises(QueryError, match=r"photo\.jpg is not a video, so it has no moment 1-2"):
        index.search_like("photo.jpg@1-2")
    with pytest.raises(SpanError, match=r"lasts 4 s"):
        index.search_like("0.mp4@5-6")
    (tmp_path / "cut.mp4").write_bytes((folder / "0.mp4").read_bytes()[:-900])
    with pytest.raises((VideoDecodeError, QueryError), match=r"cut\.mp4"):
        index.search_like(tmp_path / "cut.mp4")
    with pytest.raises(VideoIndexError, match="top_k=0"):
        index.search_like("0.mp4", top_k=0)
