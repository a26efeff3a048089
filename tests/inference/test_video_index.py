"""The index: its results are those of the model, its files survive what happens to files."""

import copy
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from safetensors import safe_open

from alpro_hf.data.find_videos import find_videos, starts_like_a_video
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.files import model_fingerprint
from alpro_hf.inference.index_encode import encode_videos
from alpro_hf.inference.index_shards import IndexFolder, IndexMismatchError, Manifest, VideoIndexError, stored
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.loading import with_int8_weights
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval
from alpro_hf.model.processing_alpro import AlproProcessor

QUERIES = ["a fox runs to the left", "the pizza spins while a dog grows", "a cat"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[AlproForVideoTextRetrieval, AlproProcessor]:
    return load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven clips of different lengths, in a folder and its subfolders."""
    folder = tmp_path_factory.mktemp("clips")
    names = ["a.mp4", "b.mkv", "deep/c.mp4", "deep/down/d.mp4", "e.avi", "f.mp4", "g.mov"]
    return [write_video(folder / name, seed, frames=4 + seed) for seed, name in enumerate(names)]


@pytest.fixture
def copies(clips: list[Path], tmp_path: Path) -> list[Path]:
    """The clips in a folder of the test's own."""
    folder = shutil.copytree(clips[0].parent, tmp_path / "videos")
    return [folder / clip.relative_to(clips[0].parent) for clip in clips]


@torch.inference_mode()
def score_directly(model, processor, query: str, clips: list[Path]) -> tuple[list[float], list[float], list[float]]:
    """Similarity, matching logit and probability of each clip: one forward pass of the whole model a pair."""
    similarities, logits, probabilities = [], [], []
    for clip in clips:
        output = model(**processor(text=[query], videos=[str(clip)], return_tensors="pt"))
        similarities.append((output.text_embeds @ output.video_embeds.t()).item())
        logits.append(output.vtm_logits[0, 1].item())
        probabilities.append(output.vtm_logits.softmax(dim=1)[0, 1].item())
    return similarities, logits, probabilities


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("rerank", [0, 3, 7, 100])
def test_search_equals_scoring_every_pair(trained, clips, tmp_path, on_disk, rerank) -> None:
    index = VideoIndex.build(
        *trained, clips, directory=tmp_path / "index" if on_disk else None, batch_size=3, shard_size=2, progress=False
    )
    for query, results in zip(QUERIES, index.search(QUERIES, top_k=100, rerank=rerank), strict=True):
        similarities, logits, probabilities = score_directly(*trained, query, clips)
        by_similarity = sorted(range(len(clips)), key=lambda i: -similarities[i])
        first = sorted(by_similarity[:rerank], key=lambda i: -(logits[i] + similarities[i]))
        expected = first + by_similarity[rerank:]
        assert [result.path for result in results] == [clips[i] for i in expected]
        assert [result.rank for result in results] == list(range(1, len(clips) + 1))
        for place, (result, i) in enumerate(zip(results, expected, strict=True)):
            assert result.similarity == pytest.approx(similarities[i], abs=1e-5)
            if place < rerank:
                assert result.match_probability == pytest.approx(probabilities[i], abs=1e-5)
                assert result.score == pytest.approx(logits[i] + similarities[i], abs=1e-5)
            else:
                assert result.match_probability is None
                assert result.score == result.similarity


def test_search_takes_one_query_or_many_and_cuts_to_top_k(trained, clips) -> None:
    index = VideoIndex.build(*trained, clips, progress=False)
    assert index.search(QUERIES[0], top_k=2) == index.search(QUERIES, top_k=2)[0]
    assert len(index.search(QUERIES[0], top_k=2, rerank=5)) == 2
    assert index.search(QUERIES[0], top_k=2, rerank=5) == index.search(QUERIES[0], top_k=7, rerank=5)[:2]


def test_a_margin_re_ranks_only_what_is_about_as_similar(trained, clips) -> None:
    index = VideoIndex.build(*trained, clips, progress=False)
    alike = [result.similarity for result in index.search(QUERIES[0], rerank=0)]
    margin = (alike[0] - alike[2] + alike[0] - alike[3]) / 2  # between the third and the fourth
    results = index.search(QUERIES[0], rerank=7, rerank_margin=margin)
    assert [result.match_probability is not None for result in results] == [True] * 3 + [False] * 4
    assert sorted(result.similarity for result in results[:3]) == sorted(alike[:3])
    assert results[:3] == index.search(QUERIES[0], rerank=3, top_k=3)
    assert index.search(QUERIES[0], rerank=7, rerank_margin=2.0) == index.search(QUERIES[0], rerank=7)
    for rerank, wrong in ((7, -0.1), (7, float("nan")), (0, 0.1)):
        with pytest.raises(VideoIndexError, match=r"rerank_margin=.* \(--rerank-margin\)"):
            index.search(QUERIES[0], rerank=rerank, rerank_margin=wrong)


def test_tokens_in_8_bits_take_a_quarter_and_give_nearly_the_same_scores(trained, clips, tmp_path) -> None:
    plain = VideoIndex.build(*trained, clips, directory=tmp_path / "plain", progress=False)
    options = {"directory": tmp_path / "small", "progress": False, "token_dtype": "float8_e4m3fn"}
    small = VideoIndex.build(*trained, clips[:5], **options)
    del options["token_dtype"]  # the index notes it
    small = VideoIndex.build(*trained, clips, **options)
    sizes = []
    for index in (plain, small):
        [*files] = index.folder.glob("*.safetensors")
        with safe_open(files[0], framework="pt") as shard:
            tokens = shard.get_tensor("tokens")
        sizes.append(tokens[0].nbytes)
    assert 4 * sizes[1] == sizes[0]
    opened = VideoIndex.load(tmp_path / "small", *trained)
    assert opened.token_dtype == "float8_e4m3fn" and plain.token_dtype is None
    by_path = {result.path: result for result in plain.search(QUERIES[0], rerank=7)}
    results = opened.search(QUERIES[0], rerank=7)
    assert results == small.search(QUERIES[0], rerank=7)
    changed = [abs(result.score - by_path[result.path].score) for result in results]
    assert 0 < max(changed) < 0.05
    assert all(result.similarity == by_path[result.path].similarity for result in results)
    opened.remove(clips[:1])
    VideoIndex.build(*trained, clips[1:], progress=False, token_dtype="float8_e4m3fn").save(tmp_path / "copy")
    assert VideoIndex.load(tmp_path / "copy", *trained).search(QUERIES[0]) == opened.search(QUERIES[0])


def test_an_index_of_int8_weights_is_searched_with_them(trained, clips, tmp_path) -> None:
    model, processor = trained
    folder = tmp_path / "index"
    made = VideoIndex.build(with_int8_weights(model), processor, clips, directory=folder, progress=False)
    assert json.loads((folder / "index.json").read_text())["model"]["dtype"] == "int8"
    # the float32 model is rounded as it was for the index, as for bfloat16
    assert VideoIndex.load(folder, model, processor).search(QUERIES[0]) == made.search(QUERIES[0])
    with pytest.raises(IndexMismatchError, match="was made in int8, but the model computes in bfloat16"):
        VideoIndex.load(folder, copy.deepcopy(model).bfloat16(), processor)
    plain = VideoIndex.build(*trained, clips, directory=tmp_path / "plain", progress=False)
    with pytest.raises(IndexMismatchError, match="was made in float32, but the model computes in int8"):
        VideoIndex.load(tmp_path / "plain", with_int8_weights(model), processor)
    alike = {result.path: result.similarity for result in plain.search(QUERIES[0])}
    assert all(abs(result.similarity - alike[result.path]) < 0.1 for result in made.search(QUERIES[0]))


def test_numbers_beyond_8_bits_stay_finite() -> None:
    kept = stored(torch.tensor([1e9, -1e9, 0.0, 1.0]), "float8_e4m3fn").float()
    assert kept.tolist() == [448.0, -448.0, 0.0, 1.0]


def test_the_type_of_tokens_belongs_to_an_index(trained, clips, tmp_path) -> None:
    VideoIndex.build(*trained, clips[:1], directory=tmp_path / "plain", progress=False)
    with pytest.raises(IndexMismatchError, match=r"kept in float32, not in float8_e4m3fn: leave token_dtype"):
        VideoIndex.open(tmp_path / "plain", *trained, token_dtype="float8_e4m3fn")
    with pytest.raises(VideoIndexError, match=r"token_dtype='int4' \(--token-dtype\) must be float8_e4m3fn"):
        VideoIndex(*trained, token_dtype="int4")


def test_search_never_opens_a_video(trained, copies, tmp_path) -> None:
    VideoIndex.build(*trained, copies, directory=tmp_path / "index", progress=False)
    shutil.rmtree(copies[0].parent)
    results = VideoIndex.load(tmp_path / "index", *trained).search(QUERIES[0], rerank=7)
    assert {result.path for result in results} == set(copies)


def test_save_and_load(trained, clips, tmp_path) -> None:
    index = VideoIndex.build(*trained, clips, progress=False)
    before = index.search(QUERIES)
    index.save(tmp_path / "index", shard_size=3)
    assert len(list((tmp_path / "index").glob("*.safetensors"))) == 3
    assert index.search(QUERIES) == before == VideoIndex.load(tmp_path / "index", *trained).search(QUERIES)
    with pytest.raises(VideoIndexError, match="already holds an index"):
        index.save(tmp_path / "index")


def test_moved_index_still_searches(trained, copies, tmp_path) -> None:
    home = tmp_path / "home"
    shutil.move(tmp_path / "videos", home / "videos")
    VideoIndex.build(*trained, find_videos([home])[0], directory=home / "index", progress=False)
    both = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(home, both)
    found = VideoIndex.load(both / "index", *trained).search(QUERIES[0])
    assert {result.path for result in found} == set(find_videos([both])[0])

    alone = tmp_path / "alone"
    shutil.move(home / "index", alone / "index")
    found = VideoIndex.load(alone / "index", *trained).search(QUERIES[0])
    assert {result.path for result in found} == set(find_videos([home])[0])
    manifest = json.loads((alone / "index" / "index.json").read_text())
    videos = Manifest.read(alone / "index").videos
    assert len(videos) == 7 and all(not Path(video.path).is_absolute() for video in videos)
    assert manifest["video"] | {"num_frames": 4, "frame_sampling": "center"} == manifest["video"]


def test_continues_where_it_was_interrupted(trained, copies, tmp_path, monkeypatch) -> None:
    directory = tmp_path / "index"
    encode = type(trained[0].alpro).get_video_features
    batches = []

    def counted(self, pixels, **kwargs):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(pixels))
        return encode(self, pixels, **kwargs)

    monkeypatch.setattr(type(trained[0].alpro), "get_video_features", counted)
    with pytest.raises(KeyboardInterrupt):
        VideoIndex.build(*trained, copies, directory=directory, batch_size=1, shard_size=2, progress=False)
    assert [entry.path for entry in Manifest.read(directory).videos] == ["a.mp4", "b.mkv", "deep/c.mp4"]
    monkeypatch.undo()

    (directory / "shard-00009.safetensors").write_bytes(b"what a killed process left")
    index = VideoIndex.build(*trained, copies, directory=directory, progress=False)
    assert [len(index.report.indexed), len(index.report.unchanged)] == [4, 3]
    assert not (directory / "shard-00009.safetensors").exists()
    fresh = VideoIndex.build(*trained, copies, progress=False)
    for found, expected in zip(index.search(QUERIES), fresh.search(QUERIES), strict=True):
        assert [result.path for result in found] == [result.path for result in expected]


def test_takes_up_changed_new_and_vanished_files(trained, copies, tmp_path) -> None:
    directory = tmp_path / "index"
    VideoIndex.build(*trained, copies[:6], directory=directory, progress=False)
    write_video(copies[1], seed=99, frames=9)
    os.utime(copies[2], ns=(1, 1))
    copies[3].write_bytes(b"no longer a video")
    copies[4].unlink()

    index = VideoIndex.load(directory, *trained)
    report = index.add([copies[i] for i in (0, 1, 2, 3, 5, 6)], progress=False)
    assert report.unchanged == [copies[0], copies[5]]
    assert report.indexed == [copies[1], copies[2], copies[6]]
    assert [path for path, _ in report.failed] == [copies[3]]
    assert index.missing() == [copies[4]]
    index.remove(index.missing())

    there = [copies[i] for i in (0, 1, 2, 5, 6)]
    again = VideoIndex.load(directory, *trained)
    assert set(again.paths) == set(there)
    fresh = VideoIndex.build(*trained, there, progress=False)
    assert [result.path for result in again.search(QUERIES[1])] == [result.path for result in fresh.search(QUERIES[1])]
    assert len(list(directory.glob("*.safetensors"))) == len(Manifest.read(directory).shards)


def test_broken_files_are_reported_with_their_reason(trained, copies, tmp_path) -> None:
    (tmp_path / "text.mp4").write_text("not a video at all")
    (tmp_path / "empty.mp4").touch()
    whole = copies[6].read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    broken = [tmp_path / name for name in ("text.mp4", "empty.mp4", "half.mp4", "absent.mp4")]
    index = VideoIndex.build(*trained, [copies[0], *broken, copies[1]], batch_size=2, progress=False)
    assert index.report.indexed == [copies[0], copies[1]]
    reasons = dict(index.report.failed)
    assert set(reasons) == set(broken)
    assert "zero bytes" in reasons[tmp_path / "empty.mp4"]
    assert "No such file" in reasons[tmp_path / "absent.mp4"]
    assert len(index.search("a dog")) == 2


def test_another_model_or_other_frames_are_refused(trained, clips, tmp_path) -> None:
    directory = tmp_path / "index"
    VideoIndex.build(*trained, clips[:2], directory=directory, progress=False, name="my-model")
    other = write_model(tmp_path / "other", "retrieval", seed=1)
    with pytest.raises(IndexMismatchError, match=r"made by the model 'my-model', whose weights differ .*other"):
        VideoIndex.load(directory, *load(other, "retrieval"))
    with pytest.raises(IndexMismatchError):
        VideoIndex.build(*load(other, "retrieval"), clips, directory=directory)
    processor = AlproProcessor.from_pretrained(other)
    processor.video_processor.frame_sampling = "uniform"
    with pytest.raises(IndexMismatchError, match=r"frame_sampling.*center.*frame_sampling.*uniform"):
        VideoIndex.load(directory, trained[0], processor)


def test_fingerprint_sees_one_weight_and_not_the_place(trained, tmp_path) -> None:
    same, _ = load(write_model(tmp_path, "retrieval"), "retrieval")
    assert model_fingerprint(same) == model_fingerprint(trained[0])
    with torch.no_grad():
        same.vtm_head.bias[1] += 1e-3
    assert model_fingerprint(same) != model_fingerprint(trained[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no index"),
        (lambda folder: (folder / "index.json").write_text('{"format": 2,'), "damaged"),
        (lambda folder: (folder / "index.json").write_text('{"format": 2}'), "damaged"),
        (lambda folder: (folder / "index.json").write_text('{"format": 7}'), "format 7"),
        (lambda folder: (folder / "shard-00000.safetensors").unlink(), r"shard-00000\.safetensors is missing"),
        (lambda folder: (folder / "shard-00000.safetensors").write_bytes(b"x" * 99), "damaged"),
    ],
)
def test_damaged_index_is_named(trained, clips, tmp_path, damage, message) -> None:
    VideoIndex.build(*trained, clips[:2], directory=tmp_path / "index", progress=False)
    damage(tmp_path / "index")
    with pytest.raises(VideoIndexError, match=message):
        VideoIndex.load(tmp_path / "index", *trained)


def test_two_writers_do_not_meet(trained, clips, tmp_path) -> None:
    index = VideoIndex.build(*trained, clips[:2], directory=tmp_path / "index", progress=False)
    with IndexFolder(tmp_path / "index").locked(), pytest.raises(VideoIndexError, match="Another process"):
        index.add(clips, progress=False)


def test_takes_up_what_another_process_added(trained, clips, tmp_path) -> None:
    first = VideoIndex.build(*trained, clips[:3], directory=tmp_path / "index", progress=False)
    second = VideoIndex.load(tmp_path / "index", *trained)
    second.add(clips[3:5], progress=False)
    assert first.add(clips[4:], progress=False).indexed == clips[5:]
    second.remove(clips[:1])
    assert set(VideoIndex.load(tmp_path / "index", *trained).paths) == set(clips[1:])


def test_parts_are_adopted_where_they_are(trained, clips, tmp_path) -> None:
    """The work of several processes, one after the other."""
    root = clips[0].parent
    whole = VideoIndex.open(tmp_path / "index", *trained, root=root)
    assert (len(whole), whole.root) == (0, root)
    assert not whole.is_current(clips[0])
    parts = [whole.part_folder(process) for process in (0, 1)]
    for share, part in zip((clips[:4], clips[3:]), parts, strict=True):
        VideoIndex.build(*trained, share, directory=part, shard_size=2, progress=False, root=root)
    assert IndexFolder(tmp_path / "index").parts() == sorted(parts)
    shards = {file: file.stat().st_ino for file in (tmp_path / "index").glob("*/*.safetensors")}
    for part in parts:
        whole.adopt(VideoIndex.load(part, *trained))
    assert IndexFolder(tmp_path / "index").parts() == []
    assert {file: file.stat().st_ino for file in (tmp_path / "index").glob("*/*.safetensors")} == shards
    assert whole.part_folder(0) not in parts

    again = VideoIndex.open(tmp_path / "index", *trained)
    assert sorted(again.paths) == sorted(clips)
    assert all(again.is_current(clip) for clip in clips)
    alone = VideoIndex.build(*trained, clips, progress=False)
    for found, expected in zip(again.search(QUERIES[0]), alone.search(QUERIES[0]), strict=True):
        assert (found.path, found.score) == (expected.path, pytest.approx(expected.score, abs=1e-5))
    with pytest.raises(FileNotFoundError):
        again.is_current(tmp_path / "gone.mp4")


def test_wrong_arguments_are_named(trained, clips, tmp_path) -> None:
    empty = VideoIndex(*trained)
    with pytest.raises(VideoIndexError, match="nothing to search"):
        empty.search("a fox")
    with pytest.raises(VideoIndexError, match="nothing to save"):
        empty.save(tmp_path / "index")
    index = VideoIndex.build(*trained, clips[:1], progress=False)
    with pytest.raises(VideoIndexError, match="blank"):
        index.search(["a fox", "  "])
    with pytest.raises(VideoIndexError, match="top_k=0"):
        index.search("a fox", top_k=0)
    with pytest.raises(VideoIndexError, match="batch_size=0"):
        index.add(clips, batch_size=0)


def test_finds_videos_by_extension_or_content(copies, tmp_path) -> None:
    folder = tmp_path / "videos"
    shutil.copy(copies[0], folder / "no_extension")
    shutil.copy(copies[1], folder / "matroska.dat")
    write_video(folder / "stream.ts", seed=3, container="mpegts")
    (folder / "script.ts").write_text("export const fps: number = 25;\n" * 40)
    (folder / "notes.txt").write_text("ftyp is a word")
    (folder / "picture.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(64))
    (folder / "sound.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    (folder / "BROKEN.MP4").write_bytes(b"")
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / ".cache").mkdir()
    shutil.copy(copies[0], folder / ".cache" / "a.mp4")
    found, unreadable = find_videos([folder, folder / "notes.txt", folder])
    extra = {folder / name for name in ("no_extension", "matroska.dat", "stream.ts", "BROKEN.MP4", "notes.txt")}
    assert set(found) == {*copies, *extra}
    assert len(found) == len(set(found))
    assert unreadable == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_videos([tmp_path / "nowhere"])


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "flv", "mpegts", "nut", "asf", "mpeg"])
def test_knows_how_containers_start(tmp_path, container) -> None:
    path = write_video(tmp_path / "clip", seed=0, container=container)
    assert starts_like_a_video(path.read_bytes()[:768])


def test_an_interruption_right_after_a_shard_was_stored_stores_nothing_twice(
    trained, copies, tmp_path, monkeypatch
) -> None:
    directory = tmp_path / "index"
    write = VideoIndex._write
    writes = []

    def interrupted(self):
        write(self)
        writes.append(len(self))
        if len(writes) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoIndex, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VideoIndex.build(*trained, copies, directory=directory, batch_size=2, shard_size=2, progress=False)
    monkeypatch.undo()
    kept = [entry.path for entry in Manifest.read(directory).videos]
    assert kept == ["a.mp4", "b.mkv"]
    index = VideoIndex.build(*trained, copies, directory=directory, progress=False)
    assert len(index) == len({*index.paths}) == len(copies)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("attempt", range(3))
def test_closing_early_ends_although_files_wait_that_would_hang(trained, copies, tmp_path, attempt) -> None:
    """Two threads hang in pipes that nobody writes to, and a third pipe waits: no thread may begin with it."""
    pipes = [tmp_path / f"{number}.mp4" for number in range(3)]
    for pipe in pipes:
        os.mkfifo(pipe)
    with IsolatedDecoder(deadline=300) as decoder:
        batches = encode_videos(*trained, [*copies[:3], *pipes], 3, decoder)
        assert [video.path for video in next(batches)] == [Path(path) for path in copies[:3]]
        started = time.monotonic()
        batches.close()
    assert time.monotonic() - started < 60
