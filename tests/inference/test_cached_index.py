"""Indexes that searches in folders keep: as good as new ones, brought up to date, and deleted alone."""

import shutil
from pathlib import Path

import pytest
from fixtures.gallery import load, write_model, write_video
from huggingface_hub import constants
from huggingface_hub.utils import _cache_assets

from alpro_hf.inference.cached_index import build_cached, cached_indexes, remove_cached
from alpro_hf.inference.index_shards import IndexFolder, VideoIndexError
from alpro_hf.inference.video_index import VideoIndex


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (constants, _cache_assets):
        monkeypatch.setattr(module, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alpro_hf" / "indexes"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")


@pytest.fixture
def films(tmp_path: Path) -> Path:
    for seed in range(3):
        write_video(tmp_path / "films" / f"{seed}.mp4", seed)
    return tmp_path / "films"


def search(model: tuple, films: Path, **options) -> VideoIndex:
    return build_cached(*model, films, sorted(films.glob("*.mp4")), name="tiny", progress=False, **options)


def test_a_second_search_encodes_only_what_has_changed(model, films, cache) -> None:
    first = search(model, films)
    assert len(first.report.indexed) == 3 and first.folder.parent == cache
    fresh = VideoIndex.build(*model, sorted(films.glob("*.mp4")), progress=False)
    assert [r.path for r in first.search("a fox")] == [r.path for r in fresh.search("a fox")]

    again = search(model, films)
    assert (again.report.indexed, again.folder, len(again)) == ([], first.folder, 3)
    (films / "0.mp4").unlink()
    write_video(films / "1.mp4", seed=9, frames=8)
    write_video(films / "3.mp4", seed=3)
    (films / "broken.mp4").write_text("no video")
    changed = search(model, films)
    assert sorted(path.name for path in changed.report.indexed) == ["1.mp4", "3.mp4"]
    assert [path.name for path, _ in changed.report.failed] == ["broken.mp4"]
    assert sorted(path.name for path in changed.paths) == ["1.mp4", "2.mp4", "3.mp4"]
    # a failed file is tried again, and named again
    assert [path.name for path, _ in search(model, films).report.failed] == ["broken.mp4"]


def test_each_folder_and_model_has_an_index_of_its_own(model, films, tmp_path) -> None:
    other = load(write_model(tmp_path / "other", "retrieval", seed=1), "retrieval")
    (tmp_path / "else").mkdir()
    shutil.copytree(films, tmp_path / "else" / "films")
    built = [search(model, films), search(other, films), search(model, tmp_path / "else" / "films")]
    built.append(search(model, films, allow_outside=True))
    built.append(build_cached(*model, films / "0.mp4", [films / "0.mp4"], name="tiny", progress=False))
    assert len({index.folder for index in built}) == 5 and len(built[-1]) == 1
    kept = cached_indexes()
    assert {one.path for one in kept} == {index.folder for index in built}
    assert all(one.size > 0 and one.videos in (1, 3) for one in kept)
    removed = remove_cached(str(films))
    assert {one.path for one in removed} == {built[0].folder, built[1].folder, built[3].folder}
    assert len(cached_indexes()) == 2 and len(list(films.iterdir())) == 3


def test_searches_at_the_same_time_and_damage(model, films) -> None:
    first = search(model, films)
    with IndexFolder(first.folder).locked():  # another process is writing
        assert len(search(model, films)) == 3
        write_video(films / "new.mp4", seed=5)
        with pytest.raises(VideoIndexError, match="Another process"):
            search(model, films)
    next(first.folder.glob("shard-*")).write_bytes(b"damaged")
    assert cached_indexes()[0].videos is None
    assert len(search(model, films).report.indexed) == 4
    (first.folder / "index.json").write_text("{")
    assert len(search(model, films).report.indexed) == 4
    (first.folder / "index.json").write_text("{")
    assert remove_cached(first.folder.name)[0].videos is None and not first.folder.exists()


def test_nothing_else_is_ever_deleted(model, films, tmp_path, cache, monkeypatch) -> None:
    kept = search(model, films)
    own = tmp_path / "own-index"
    VideoIndex.build(*model, [films / "0.mp4"], directory=own, progress=False)
    stranger = cache / "stranger"
    shutil.copytree(own, stranger)
    monkeypatch.chdir(tmp_path)
    for name in (own, "own-index", "films/0.mp4", stranger, "stranger", "..", ".", "/", cache, "*", ""):
        with pytest.raises(VideoIndexError, match="only indexes in the cache are removed"):
            remove_cached(str(name))
    assert [one.path for one in cached_indexes()] == [kept.folder] and (stranger / "index.json").exists()
    assert len(VideoIndex.load(own, *model)) == 1
    (kept.folder / "diary.txt").write_text("mine")
    with pytest.raises(VideoIndexError, match=r"also holds diary\.txt"):
        remove_cached(kept.folder.name)
    assert (kept.folder / "diary.txt").read_text() == "mine" and not (kept.folder / "index.json").exists()
    (kept.folder / "diary.txt").unlink()
    assert [one.name for one in remove_cached("films")] == [kept.folder.name]
    assert cached_indexes() == [] and not kept.folder.exists()


def test_a_link_in_the_cache_is_not_followed(model, films, cache) -> None:
    kept = search(model, films)
    target = films.parent / "precious.safetensors"
    target.write_text("kept")
    (kept.folder / "shard-99999.safetensors").symlink_to(target)
    remove_cached(kept.folder.name)
    assert target.read_text() == "kept" and not kept.folder.exists()


@pytest.mark.parametrize("name", ["linked", "part-00000-000"])
def test_a_link_to_a_folder_in_the_cache_is_not_followed(model, films, cache, name) -> None:
    """Its files could be those of an index, with the names that are deleted."""
    kept = search(model, films)
    precious = films.parent / "precious"
    precious.mkdir()
    for file in ("folder.json", "index.json", "shard-00000.safetensors"):
        (precious / file).write_text('{"folder": "/videos", "model": "m"}')
    (kept.folder.parent if name == "linked" else kept.folder).joinpath(name).symlink_to(precious)
    if name == "linked":
        assert [one.path for one in cached_indexes()] == [kept.folder]
        for asked in (name, str(precious), "/videos"):
            with pytest.raises(VideoIndexError, match="only indexes in the cache are removed"):
                remove_cached(asked)
    else:
        with pytest.raises(VideoIndexError, match=f"also holds {name}, which is not of an index"):
            remove_cached(kept.folder.name)
    assert len(list(precious.iterdir())) == 3


def test_a_link_in_the_place_of_a_cached_index_is_refused(model, films) -> None:
    folder = search(model, films).folder
    folder.rename(films.parent / "elsewhere")
    folder.symlink_to(films.parent / "elsewhere")
    with pytest.raises(VideoIndexError, match="is a link, and an index in the cache is a folder"):
        search(model, films)
