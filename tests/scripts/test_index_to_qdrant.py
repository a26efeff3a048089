"""A vector database, run inside the process, filled from the shards of an index."""

import importlib.util
from pathlib import Path

import pytest
from fixtures.gallery import load, write_model, write_video

from alpro_hf.inference.video_index import VideoIndex

qdrant = pytest.importorskip("qdrant_client")


def test_the_database_finds_what_the_index_finds(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "scripts" / "index_to_qdrant.py"
    spec = importlib.util.spec_from_file_location("index_to_qdrant", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    trained = load(write_model(tmp_path / "model", "retrieval"), "retrieval")
    clips = [write_video(tmp_path / "videos" / f"{i}.mp4", i) for i in range(4)]
    index = VideoIndex.build(*trained, clips, directory=tmp_path / "index", shard_size=3, progress=False)
    client = script.client_of(str(tmp_path / "database"))
    assert script.fill(client, index, "videos") == 4
    assert script.fill(client, index, "videos") == 4
    found = script.search(client, index, "videos", "a fox runs", 3)
    expected = index.search("a fox runs", top_k=3, rerank=0)
    assert [path for path, _ in found] == [str(result.path) for result in expected]
    assert [score for _, score in found] == pytest.approx([result.similarity for result in expected], abs=1e-5)
    client.close()
