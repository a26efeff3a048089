"""An index keeps where the frames of its videos are, and decodes them without listing their packets again."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor
from alpro_hf.data.collator import AlproCollator
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.data.prefetch import sharing
from alpro_hf.inference.index_shards import VideoIndexError
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_video import Video


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[AlproForVideoTextRetrieval, AlproProcessor]:
    return load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [write_video(tmp_path / "videos" / f"{i}.mp4", i, frames=5 + i) for i in range(5)]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose packets are listed."""
    names: list[str] = []
    list_packets = Video.packet_table

    def noting(self: Video):
        names.append(Path(self.name).name)
        return list_packets(self)

    monkeypatch.setattr(Video, "packet_table", noting)
    return names


@pytest.mark.parametrize("kept", ["in memory", "on disk", "saved", "adopted anew"])
def test_decodes_without_listing(trained, clips, tmp_path, listed, kept) -> None:
    folder = tmp_path / "index"
    with IsolatedDecoder(processes=1) as decoder:
        options = {"progress": False, "shard_size": 2, "decoder": decoder}
        index = VideoIndex.build(*trained, clips, directory=folder if kept == "on disk" else None, **options)
    if kept in ("saved", "adopted anew"):
        index.remove([clips[1]])
        index.save(folder, shard_size=3)
        index.add([clips[1]], progress=False)
    if kept != "in memory":
        index = VideoIndex.load(folder, *trained)
    for clip in clips:
        expected = decode(clip)
        listed.clear()
        frames = index.decode(clip)
        assert torch.equal(frames.pixels, expected.pixels) and frames.indices == expected.indices
        assert index.frame_table(clip) == expected.table
        seen = trained[1].video_processor(str(clip), return_tensors="pt", decoder=index.decode)
        assert listed == []
        assert torch.equal(
            *(one["pixel_values_videos"] for one in (seen, trained[1].video_processor(str(clip), return_tensors="pt")))
        )


def test_a_changed_or_unknown_file_is_listed(trained, clips, tmp_path, listed) -> None:
    index = VideoIndex.build(*trained, clips[:3], directory=tmp_path / "index", progress=False)
    shutil.copyfile(clips[4], clips[0])
    os.utime(clips[1], ns=(1, 1))
    index.remove([clips[2]])
    listed.clear()
    for clip in clips:
        assert index.frame_table(clip) is None
        assert torch.equal(index.decode(clip, [0, 1]).pixels, decode(clip, [0, 1]).pixels)
    assert len(listed) == 10
    assert torch.equal(index.decode(clips[1].read_bytes(), [1]).pixels, decode(clips[1], [1]).pixels)
    clips[3].unlink()
    with pytest.raises(FileNotFoundError):
        index.decode(clips[3])
    with pytest.raises(FileNotFoundError):
        VideoIndex(*trained).decode(clips[3])


def test_an_index_from_before_there_were_tables(trained, clips, tmp_path) -> None:
    VideoIndex.build(*trained, clips, directory=tmp_path / "index", progress=False)
    [shard] = (tmp_path / "index").glob("*.safetensors")
    tensors = load_file(shard)
    videos = [[clip.name, clip.stat().st_size, clip.stat().st_mtime_ns] for clip in clips]
    save_file(
        {name: tensors[name] for name in ("features", "tokens")},
        shard,
        metadata={"videos": str(videos).replace("'", '"')},
    )
    index = VideoIndex.load(tmp_path / "index", *trained)
    assert index.frame_table(clips[2]) is None
    assert torch.equal(index.decode(clips[2], [4]).pixels, decode(clips[2], [4]).pixels)
    assert len(index.search("a fox runs")) == 5


def test_a_damaged_table_is_named(trained, clips, tmp_path) -> None:
    VideoIndex.build(*trained, clips, directory=tmp_path / "index", progress=False)
    [shard] = (tmp_path / "index").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    place = data.index(decode(clips[0], [0]).table.to_bytes())
    data[place + 10] ^= 255
    shard.write_bytes(data)
    index = VideoIndex.load(tmp_path / "index", *trained)
    with pytest.raises(VideoIndexError, match=r"shard-00000\.safetensors is damaged .*not a frame table"):
        index.decode(clips[0])
    assert index.decode(clips[1], [0]).indices == [0]


class Threads:
    """Rows whose clips say how many threads decode them."""

    def __init__(self, clip: Path) -> None:
        self.rows = [{"video": str(clip), "text": "a fox runs"} for _ in range(4)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, str]:
        return self.rows[i]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_decode_with_one_thread_each_and_a_single_process_shares_the_cores(
    trained, clips, tmp_path, monkeypatch, workers
) -> None:
    open_it = Video.open

    def noting(self: Video) -> None:
        open_it(self)
        with (tmp_path / "threads").open("a") as file:
            file.write(f"{self.threads}\n")

    monkeypatch.setattr(Video, "open", noting)
    collator = AlproCollator(trained[1], "retrieval")
    loader = DataLoader(
        Threads(clips[0]),
        2,
        num_workers=workers,
        collate_fn=collator,
        multiprocessing_context="fork" if workers else None,
    )
    pixels = torch.cat([batch["pixel_values_videos"] for batch in loader])
    assert set((tmp_path / "threads").read_text().split()) == {"1" if workers else str(sharing(2)[1])}
    assert np.isfinite(pixels.numpy()).all() and len({clip.numpy().tobytes() for clip in pixels}) == 1
