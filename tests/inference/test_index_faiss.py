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
from alpro_hf.inference.index_faiss import AnnSearch, build_ann  # noqa: E402


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
