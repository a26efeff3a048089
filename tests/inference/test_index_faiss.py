"""Approximate search: true scores, and what it was not built from is refused."""

import os
import sys
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model, write_video

from alpro_hf.inference.index_shards import VideoEntry, VideoIndexError
from alpro_hf.inference.video_index import VideoIndex

faiss = pytest.importorskip("faiss")

from alpro_hf.cli.main import main  # noqa: E402
from alpro_hf.inference.index_faiss import AnnOutdatedError, AnnSearch, build_ann  # noqa: E402


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    """600 made-up videos in four shards, one of them removed."""
    trained = load(write_model(tmp_path / "model", "retrieval"), "retrieval")
    clip = write_video(tmp_path / "videos" / "clip.mp4", 0, frames=4)
    index = VideoIndex.build(*trained, [clip], directory=tmp_path / "index", progress=False)
    generator = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(600, trained[0].config.projection_dim, generator=generator))
    for start in range(0, 600, 150):
        index._store(
            [(VideoEntry(f"{i}.mp4", 1, i), embeds[i], torch.zeros(5, 32), b"") for i in range(start, start + 150)]
        )
    index.remove([clip])
    return VideoIndex.load(tmp_path / "index", *trained)


def test_looking_at_every_cell_finds_what_an_exact_search_finds(index) -> None:
    assert build_ann(index) == 600
    nearest = AnnSearch(index)
    embeds = torch.nn.functional.normalize(torch.randn(5, next(index.features()).shape[1]))
    nearest._found.faiss_index.nprobe = 10_000
    torch.testing.assert_close(torch.stack(nearest.nearest(embeds, 7)), index.nearest(embeds, 7))
    exact = index.search("a fox runs", rerank=0, top_k=5)
    assert index.search("a fox runs", rerank=0, top_k=5, nearest=nearest.nearest) == exact
    every = torch.cat(list(index.features()))
    assert index.nearest(embeds, 3).tolist() == (embeds @ every.t()).topk(3).indices.tolist()


def test_an_older_one_is_refused(index) -> None:
    with pytest.raises(VideoIndexError, match="is not there"):
        AnnSearch(index)
    build_ann(index, "Flat")
    assert index.folder is not None
    AnnSearch(index)
    index.remove([index.paths[3]])
    os.utime(index.folder / "ann.faiss", ns=(2**62, 2**62))
    with pytest.raises(VideoIndexError, match="older than the index"):
        AnnSearch(index)


def test_without_faiss(index, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for use in (build_ann, AnnSearch):
        with pytest.raises(ImportError, match=r'pip install "alpro-hf\[faiss\]"'):
            use(index)
    command = ["search", str(index.folder), "a fox runs", "--ann", "--model", str(tmp_path / "model")]
    assert main(command) == 1
    assert 'pip install "alpro-hf[faiss]"' in capsys.readouterr().err


def ids_out_of_range(path: Path, width: int) -> None:
    made = faiss.IndexIDMap(faiss.IndexFlatIP(width))
    vectors = torch.nn.functional.normalize(torch.randn(600, width)).numpy()
    made.add_with_ids(vectors, (torch.arange(600) + 10**6).numpy())
    faiss.write_index(made, str(path))


def longer_than_it_is(path: Path, width: int) -> None:
    """A flat index that says it has 2^36 vectors."""
    faiss.write_index(faiss.IndexFlatIP(width), str(path))
    data = bytearray(path.read_bytes())
    data[8:16] = (1 << 36).to_bytes(8, "little")
    path.write_bytes(data + bytes(200))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, width: path.write_bytes(b"junk" * 1000),
        lambda path, width: path.write_bytes(b""),
        lambda path, width: path.write_bytes(path.read_bytes()[:1000]),
        lambda path, width: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, width: path.write_bytes(path.read_bytes()[:-128]),
        lambda path, width: path.write_bytes(path.read_bytes()[:5000] + b"x" + path.read_bytes()[5001:]),
        lambda path, width: path.write_bytes(path.read_bytes()[:-128] + b"0" * 128),
        lambda path, width: path.write_bytes(path.read_bytes() + b"\xff" * 128),
        ids_out_of_range,
        longer_than_it_is,
        lambda path, width: (path.unlink(), os.mkfifo(path)),
        lambda path, width: (path.unlink(), path.mkdir()),
        lambda path, width: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
)
def test_a_file_that_this_user_has_not_built_is_not_read(index, tmp_path, damage, capsys) -> None:
    build_ann(index)
    path, width = index.folder / "ann.faiss", index.model.config.projection_dim
    damage(path, width)
    with pytest.raises(VideoIndexError, match=r"ann\.faiss is damaged .*Delete it"):
        AnnSearch(index)
    capsys.readouterr()
    assert main(["search", str(index.folder), "a fox runs", "--ann", "--model", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_of_somebody_else_is_read_if_the_index_is_trusted(index, tmp_path, monkeypatch) -> None:
    build_ann(index)
    exact = index.search("a fox runs", rerank=0, top_k=3)
    trained = index.model, index.processor
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else"))
    with pytest.raises(VideoIndexError, match="not built by this user"):
        AnnSearch(index)
    trusting = VideoIndex.load(index.folder, *trained, allow_outside=True)
    nearest = AnnSearch(trusting)
    nearest._found.faiss_index.nprobe = 10_000
    found = trusting.search("a fox runs", rerank=0, top_k=3, nearest=nearest.nearest)
    assert [result.score for result in found] == [result.score for result in exact]
    ids_out_of_range(index.folder / "ann.faiss", trained[0].config.projection_dim)
    with pytest.raises(VideoIndexError, match="it names video 10"):
        trusting.search("a fox runs", rerank=0, top_k=3, nearest=AnnSearch(trusting).nearest)


def test_a_clock_that_goes_back_hides_no_change(index) -> None:
    build_ann(index)
    assert index.folder is not None
    index.remove([index.paths[0]])
    index.add([index.folder.parent / "videos" / "clip.mp4"], progress=False)  # as many videos as before
    os.utime(index.folder / "index.json", ns=(1, 1))
    os.utime(index.folder / "ann.faiss", ns=(2**62, 2**62))
    opened = VideoIndex.load(index.folder, index.model, index.processor)
    with pytest.raises(AnnOutdatedError, match="older than the index"):
        AnnSearch(opened)
    build_ann(opened)
    os.utime(index.folder / "ann.faiss", ns=(1, 1))  # and a file that only looks old is not built again
    AnnSearch(opened)


def test_a_file_is_built_again_after_a_change(index, tmp_path, capsys) -> None:
    command = ["search", str(index.folder), "a fox runs", "--ann", "--model", str(tmp_path / "model")]
    for expected in (True, False):
        assert main(command) == 0
        assert ("building" in capsys.readouterr().err) is expected
    index.remove([index.paths[0]])
    assert main(command) == 0
    assert "building" in capsys.readouterr().err
    assert not list(index.folder.glob(".*.partial"))


def test_the_file_is_not_written_through_a_link(index, tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (index.folder / "ann.faiss").symlink_to(precious)
    assert build_ann(index) == 600
    assert precious.read_text() == "precious"
    AnnSearch(index)
