"""An index of long videos: windows, moments, and what happens when it is interrupted, damaged or changed."""

import json
import shutil
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, bundled_model
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.data.window_choice import WindowError, window_settings
from alpro_hf.data.windows import WindowSettings, stream_windows
from alpro_hf.inference.index_encode import encode_videos
from alpro_hf.inference.index_shards import INDEX_FORMAT, IndexMismatchError, Manifest, VideoIndexError
from alpro_hf.inference.several_indexes import search_indexes, search_indexes_like
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.decoding import decode
from alpro_hf.sprites.films import write_films
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene


@pytest.fixture(scope="module")
def loaded():
    folder = bundled_model("retrieval")
    return AlproForVideoTextRetrieval.from_pretrained(folder), AlproProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two films of more than 30 s with their captions, and a short clip beside them."""
    folder = write_films(
        tmp_path_factory.mktemp("films"), "validation", 2, scenes=(12, 12), seconds=(3, 4), size=64, progress=False
    )
    write_clip(folder / "films" / "short.mp4", draw_scene("validation", 0, 0), size=64)
    rows = [json.loads(line) for line in (folder / "moments.jsonl").read_text().splitlines()]
    return folder / "films", rows


@pytest.fixture(scope="module")
def index(loaded, films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    return VideoIndex.build(*loaded, sorted(films[0].iterdir()), directory=folder, progress=False)


def overlap(result, row) -> float:
    if result.start is None or result.path.name != Path(row["video"]).name:
        return 0.0
    shared = min(result.end, row["end"]) - max(result.start, row["start"])
    return max(0.0, shared) / (max(result.end, row["end"]) - min(result.start, row["start"]))


def test_a_search_says_when(index, films):
    rows = films[1]
    found = index.search([row["text"] for row in rows], top_k=3)
    best = [overlap(results[0], row) for results, row in zip(found, rows, strict=True)]
    # 24 moments among 25 clips: by chance one in 25 is right
    assert np.mean([one >= 0.5 for one in best]) > 0.7
    for results in found:
        assert len({result.path for result in results}) == len(results) == 3  # each video once
        assert [result.rank for result in results] == [1, 2, 3]


def test_the_short_clip_is_whole_and_long_ones_are_windows(index, films):
    by_name: dict[str, list] = {}
    for path, start, end in index.moments:
        by_name.setdefault(path.name, []).append((start, end))
    assert by_name.pop("short.mp4") == [(None, None)]
    assert len(index) == 1 + sum(map(len, by_name.values())) and len(index.paths) == 3
    for name, spans in by_name.items():
        duration = decode(films[0] / name, [0]).info.duration
        assert spans[0][0] == 0 and max(end for _, end in spans) == pytest.approx(duration)
    [hit] = index.search("a clip", top_k=1, per_video=1)
    frames = index.decode(hit)
    assert len(frames.indices) == index.processor.video_processor.num_frames
    if hit.start is not None:
        assert all(hit.start - 0.1 <= time <= hit.end for time in frames.timestamps)
    assert frames.indices == hit.frames(len(frames.indices)).indices


def test_a_moment_is_decoded_at_exactly_its_frames(index, films):
    path = films[0] / "00000.mp4"
    video = index.processor.video_processor
    height, width = video.decoded_size()
    windows = {
        (one.start, one.end): one.pixels
        for one in stream_windows(path, index.windows, video.num_frames, height=height, width=width)
    }
    found = [one for one in index.search("a dog moves", top_k=20, per_video=0, rerank=0) if one.path == path]
    assert len(found) > 5
    for one in found:
        shown = index.decode(one, height=height, width=width)
        assert np.array_equal(shown.pixels.numpy(), windows[one.start, one.end])
        assert one.frames(video.num_frames).indices == shown.indices


def test_joined_and_trimmed_moments_lie_in_their_video(index, films):
    rows = films[1]
    for options in ({"join": True}, {"trim": True}, {"join": True, "trim": True}):
        results = index.search(rows[0]["text"], top_k=20, per_video=0, rerank=4, **options)
        assert [one.rank for one in results] == list(range(1, len(results) + 1))
        assert all(one.start is None or 0 <= one.start < one.end for one in results)
    joined = index.search([row["text"] for row in rows], top_k=1, join=True)
    plain = index.search([row["text"] for row in rows], top_k=1)
    pairs = [(a, b) for [a], [b] in zip(plain, joined, strict=True) if a.path == b.path and a.start is not None]
    assert len(pairs) > 10 and all(b.end - b.start <= 30 for _, b in pairs)
    assert np.mean([b.start <= a.start + 1e-6 and b.end >= a.end - 1e-6 for a, b in pairs]) > 0.8


def test_stages_that_need_windows(loaded, films):
    index = VideoIndex.build(*loaded, [films[0] / "short.mp4"], window="none", progress=False)
    for stage in ("join", "trim"):
        with pytest.raises(VideoIndexError, match=rf"{stage}=True \(--{stage}\) needs windows"):
            index.search("a dog", **{stage: True})
    with pytest.raises(VideoIndexError, match=r"per_video=-1 \(--per-video\)"):
        index.search("a dog", per_video=-1)


def test_an_approximate_search_says_when(index):
    pytest.importorskip("faiss")
    from alpro_hf.inference.index_faiss import AnnSearch, build_ann

    assert build_ann(index, "Flat") == len(index)
    exact = index.search("something spins", top_k=3)
    assert index.search("something spins", top_k=3, nearest=AnnSearch(index).nearest) == exact
    assert any(one.start is not None for one in exact)


def test_two_indexes_are_searched_as_one(index, loaded, films, tmp_path):
    paths = sorted(films[0].iterdir())
    vectors = dict(zip(index.moments, torch.cat(list(index.features())), strict=True))
    parts = []
    for number, own in enumerate((paths[:1], paths[1:])):
        part = VideoIndex.load(shutil.copytree(index.folder, tmp_path / str(number)), *loaded, root=index.root)
        part.remove(set(paths) - set(own))
        parts.append(part)
    assert sum(map(len, parts)) == len(vectors)
    for options in ({}, {"per_video": 0, "join": True}, {"rerank": 0, "trim": True}):
        whole = index.search("a dog moves", top_k=5, **options)
        both = search_indexes(parts, "a dog moves", top_k=5, **options)
        assert [(one.path, one.start, one.end) for one in both] == [(one.path, one.start, one.end) for one in whole]
        assert [one.score for one in both] == pytest.approx([one.score for one in whole], abs=1e-4)
        assert all(one.index == parts[one.path != paths[0]].folder for one in both)
    like = f"{paths[1]}@0-3"
    assert search_indexes_like(parts, like, top_k=3) == index.search_like(like, top_k=3)
    twice = search_indexes([index, parts[0]], "a dog moves", top_k=9)
    assert len({one.path for one in twice}) == len(twice) == 3  # the same file in two indexes counts once
    other = AlproForVideoTextRetrieval.from_pretrained(bundled_model("retrieval"))
    with torch.no_grad():
        next(other.parameters()).add_(1)
    changed = VideoIndex.build(other, loaded[1], [films[0] / "short.mp4"], progress=False)
    with pytest.raises(IndexMismatchError, match="made by different models, so their scores cannot be compared"):
        search_indexes([index, changed], "a dog")
    with pytest.raises(VideoIndexError, match="no index to search"):
        search_indexes([], "a dog")


def test_moments_of_one_video_do_not_overlap(index):
    for query in ("a dog moves", "something spins"):
        results = index.search(query, top_k=50, per_video=0)
        assert len(results) > 10
        for number, one in enumerate(results):
            for other in results[number + 1 :]:
                if one.path == other.path and one.start is not None:
                    shared = min(one.end, other.end) - max(one.start, other.start)
                    assert shared / (max(one.end, other.end) - min(one.start, other.start)) <= 0.5
        two = index.search(query, top_k=50, per_video=2)
        counts = [sum(result.path == path for result in two) for path in index.paths]
        assert max(counts) == 2 and sum(counts) == len(two)


def test_the_vectors_are_those_of_the_windows(index, loaded, films):
    model, processor = loaded
    path = films[0] / "00000.mp4"
    video = processor.video_processor
    windows = list(stream_windows(path, index.windows, video.num_frames, height=64, width=64))
    vectors = torch.cat(list(index.features())).float()
    places = [place for place, (file, _, _) in enumerate(index.moments) if file == path]
    assert [index.moments[place][1:] for place in places] == [(window.start, window.end) for window in windows]
    pixels = video([torch.from_numpy(window.pixels) for window in windows], do_sample_frames=False)
    with torch.no_grad():
        wanted = model.get_video_features(pixels["pixel_values_videos"]).pooler_output
    assert torch.allclose(vectors[places], wanted.float(), atol=1e-5)


def test_an_index_is_opened_continued_and_unchanged_files_are_left(index, loaded, films, tmp_path):
    copy = tmp_path / "index"
    shutil.copytree(index.folder, copy)
    paths = sorted(films[0].iterdir())
    again = VideoIndex.build(*loaded, paths, directory=copy, progress=False)
    assert sorted(again.report.unchanged) == paths and again.moments == index.moments
    assert json.loads((copy / "index.json").read_text())["format"] == INDEX_FORMAT
    assert Manifest.read(copy).video["windows"]["lengths"] == [15.0, 7.5]
    again.remove([paths[0]])
    assert paths[0] not in again.paths and len(VideoIndex.load(copy, *loaded)) == len(again) < len(index)
    with pytest.raises(IndexMismatchError, match=r"made of windows of 15, 7\.5 s"):
        VideoIndex.build(*loaded, paths, directory=copy, window=5, progress=False)
    with pytest.raises(IndexMismatchError, match="--window"):
        VideoIndex.build(*loaded, paths, directory=copy, window="none", progress=False)


@pytest.mark.parametrize(
    "noted",
    [
        *({"lengths": [1e300, 0.1], "stride": 0.1}, {"lengths": [3600, 0.1], "stride": 0.1, "shortest": 0.1}),
        *({"lengths": [1.0] * 10**5}, {"lengths": "15"}, {"lengths": [True, "a"]}, {"lengths": [15], "cuts": []}),
        *({"lengths": {"a": 1}}, {"lengths": [15], "other": 1}, {}, [], "auto", {"lengths": [15], "short": "1"}),
    ],
    ids=lambda noted: str(noted)[:40],
)
def test_windows_that_a_stranger_noted_are_within_bounds(index, loaded, tmp_path, noted):
    """With the first two, cutting a video would never end."""
    copy = tmp_path / "index"
    shutil.copytree(index.folder, copy)
    manifest = json.loads((copy / "index.json").read_text())
    manifest["video"]["windows"] = noted
    (copy / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(VideoIndexError, match=r"manifest of the index is damaged: windows="):
        VideoIndex.load(copy, *loaded)


def test_an_older_index_opens_as_whole_files_and_takes_more(loaded, films, tmp_path):
    paths = sorted(films[0].iterdir())
    VideoIndex.build(*loaded, paths[:1], directory=tmp_path / "index", window="none", progress=False)
    manifest = tmp_path / "index" / "index.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    opened = VideoIndex.build(*loaded, paths, directory=tmp_path / "index", progress=False)
    assert opened.windows is None and [moment[1:] for moment in opened.moments] == [(None, None)] * 3
    assert json.loads(manifest.read_text())["format"] == 3
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(IndexMismatchError, match="made of whole files"):
        VideoIndex.open(tmp_path / "index", *loaded, window=10)
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 4'))
    with pytest.raises(VideoIndexError, match="format 4"):
        VideoIndex.open(tmp_path / "index", *loaded)


def test_an_interrupted_film_goes_on_at_its_next_window(index, loaded, films, tmp_path, monkeypatch):
    path, calls = films[0] / "00001.mp4", []

    def stop(*arguments, **options):
        for batch in encode_videos(*arguments, **options):
            calls.append(len(batch))
            yield batch
            if len(calls) == 2:
                raise KeyboardInterrupt

    place = "alpro_hf.inference.video_index.encode_videos"
    monkeypatch.setattr(place, stop)
    with pytest.raises(KeyboardInterrupt):
        VideoIndex.build(*loaded, [path], directory=tmp_path / "index", root=films[0], batch_size=4, progress=False)
    begun = VideoIndex.load(tmp_path / "index", *loaded)
    assert len(begun) == 8 and not begun.is_current(path)
    monkeypatch.setattr(
        place, lambda *arguments, **options: (calls.append(0), encode_videos(*arguments, **options))[1]
    )
    done = VideoIndex.build(*loaded, [path], directory=tmp_path / "index", progress=False)
    whole = [moment for moment in index.moments if moment[0] == path]
    assert done.moments == whole and done.is_current(path) and done.report.indexed == [path]
    mine = torch.cat(list(done.features()))
    theirs = torch.cat(list(index.features()))[[moment[0] == path for moment in index.moments]]
    assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("damage", ["middle", "cut"])
def test_a_film_that_breaks_keeps_what_came_before(loaded, films, tmp_path, damage):
    path = tmp_path / "film.mkv"
    with av.open(str(films[0] / "00000.mp4")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) * 9 // 10]
    else:
        with av.open(str(path)) as container:
            places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        for place, size in places[len(places) * 2 // 3 :][:8]:
            data[place + 30 : place + size] = bytes(max(0, size - 30))
    path.write_bytes(data)
    with IsolatedDecoder(processes=1) as decoder:
        index = VideoIndex.build(*loaded, [path], directory=tmp_path / "index", decoder=decoder, progress=False)
    [(failed, reason)] = index.report.failed
    assert failed == path and "kept up to" in reason
    ends = [end for _, _, end in index.moments]
    duration = decode(films[0] / "00000.mp4", [0]).info.duration
    assert 0.4 * duration < max(ends) < 0.95 * duration
    assert not index.is_current(path)
    again = VideoIndex.build(*loaded, [path], directory=tmp_path / "index", progress=False)
    assert again.moments == index.moments and len(again.report.failed) == 1  # tried again, nothing twice


def test_a_changed_film_replaces_all_its_windows(loaded, films, tmp_path):
    path = tmp_path / "film.mp4"
    shutil.copy(films[0] / "00000.mp4", path)
    first = VideoIndex.build(*loaded, [path], directory=tmp_path / "index", progress=False).moments
    shutil.copy(films[0] / "00001.mp4", path)
    second = VideoIndex.build(*loaded, [path], directory=tmp_path / "index", progress=False)
    assert second.report.indexed == [path] and first != second.moments
    expected = [window.end for window in stream_windows(path, WindowSettings(), 4, height=64, width=64)]
    assert [end for _, _, end in second.moments] == expected


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(loaded, films, tmp_path):
    """Fed by a film of 2 and one of 8 minutes, the loader keeps as much."""
    model, processor = loaded
    frames = decode(films[0] / "00000.mp4", range(0, 96, 4)).pixels.permute(0, 2, 3, 1).numpy()

    def write(path: Path, seconds: int) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
            stream.width = stream.height = 64
            for number in range(2 * seconds):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[number % 24]))))
            container.mux(stream.encode())
        return path

    peaks = []
    for seconds in (120, 480):
        path = write(tmp_path / f"{seconds}.mp4", seconds)
        tracemalloc.start()
        count = sum(map(len, encode_videos(model, processor, [path], 8, windows=WindowSettings())))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count >= seconds / 7.5
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (0, None, r"window=0 \(--window\).*length is 0"),
        (10, 0, "stride is 0"),
        (5, 6, "would be in none"),
        ("shots", None, "expected auto, scenes, none"),
        ("none", 3, "needs windows"),
        ((), None, "lengths is empty"),
        ((5, "x"), None, "could not convert"),
        (float("nan"), None, "length is nan"),
    ],
)
def test_windows_that_make_no_sense(window, stride, message):
    with pytest.raises(WindowError, match=message):
        window_settings(window, stride)


def test_the_index_names_such_windows(loaded):
    with pytest.raises(VideoIndexError, match=r"window=0 \(--window\).*length is 0"):
        VideoIndex(*loaded, window=0)


def test_words_and_numbers_for_windows():
    assert window_settings("auto", None) == window_settings(None, None) == WindowSettings()
    assert window_settings("none", None) is None
    assert window_settings(10, 2) == WindowSettings(lengths=(10.0,), stride=2, short=10.0)
    assert window_settings((4, 0.5), None) == WindowSettings(lengths=(4.0, 0.5), short=4.0, shortest=0.5)
    scenes = window_settings("scenes", None)
    assert (scenes.cuts, scenes.short, scenes.shortest, scenes.longest) == ("scenes", 0, 1, 15)


def test_a_window_longer_than_the_video_is_the_whole_video(loaded, films):
    path = films[0] / "short.mp4"
    index = VideoIndex.build(*loaded, [path], window=600, progress=False)
    assert index.moments == [(path, None, None)]


def test_scenes_are_cut_by_pyscenedetect(loaded, films):
    pytest.importorskip("scenedetect")
    path, rows = films[0] / "00000.mp4", [row for row in films[1] if row["video"].endswith("00000.mp4")]
    index = VideoIndex.build(*loaded, [path], window="scenes", progress=False)
    found = [(start, end) for _, start, end in index.moments]
    wanted = [(row["start"], row["end"]) for row in rows]
    hits = [any(abs(a - c) < 0.4 and abs(b - d) < 0.4 for c, d in found) for a, b in wanted]
    assert sum(hits) >= len(wanted) - 3
