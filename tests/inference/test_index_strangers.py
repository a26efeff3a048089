"""Indexes that strangers made: they choose no root, fill no memory, give no wrong numbers and write nowhere else."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from fixtures.processes import environment, run_together
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alpro_hf.cli.main import main
from alpro_hf.inference.index_shards import INDEX_FORMAT, IndexFolder, Manifest, VideoIndexError
from alpro_hf.inference.video_index import VideoIndex


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")


@pytest.fixture(scope="module")
def loaded(model: Path) -> tuple[Any, Any]:
    return load(model, "retrieval")


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [write_video(tmp_path / "home" / "videos" / f"{i}.mp4", i) for i in range(3)]


@pytest.fixture
def index(loaded, clips, model, tmp_path) -> Path:
    """The folder of an index of three clips in two shards."""
    folder = tmp_path / "home" / "index"
    VideoIndex.build(*loaded, clips, directory=folder, shard_size=2, progress=False, name=str(model))
    return folder


def change_manifest(index: Path, **fields: object) -> None:
    content = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(content | fields))


def change_shard(index: Path, **changes: Callable[[Any], Any] | torch.Tensor) -> None:
    """Change tensors, and `videos`, of the first shard."""
    file = index / "shard-00000.safetensors"
    with safe_open(file, framework="pt") as shard:
        listed = shard.metadata()["videos"]
    tensors = load_file(file)
    for name, change in changes.items():
        if name == "videos":
            listed = change if isinstance(change, str) else json.dumps(change(json.loads(listed)))
        else:
            tensors[name] = change(tensors[name]) if callable(change) else change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"videos": listed})


def search(index: Path, loaded: tuple[Any, Any], **options: Any) -> list[Path]:
    return [result.path for result in VideoIndex.load(index, *loaded, **options).search("a fox", rerank=3)]


# --- the root --------------------------------------------------------------------------------------------------------


def to_passwd(videos: list) -> list:
    return [["etc/passwd", 1, 1], *videos[1:]]


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "/"},
        {"root": "../../../../../../../../../.."},
        {"absolute_root": "/", "root": "nowhere"},
        {"absolute_root": "/", "root": "/"},
        {"root": "//"},
        {"root": "./../../../../../../../../../../../."},
        {"root": ".."},
    ],
    ids=str,
)
@pytest.mark.parametrize("sealed", ["seal kept", "none", "made up"])
def test_a_manifest_does_not_choose_its_root(index, loaded, clips, fields, sealed, capsys) -> None:
    change_shard(index, videos=to_passwd)
    change_manifest(index, **fields, **{"none": {"seal": None}, "made up": {"seal": "0" * 64}}.get(sealed, {}))
    with pytest.raises(VideoIndexError, match=r"this user has not made it.*--videos DIR.*--allow-outside"):
        search(index, loaded)
    assert main(["search", str(index), "a fox", "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "--allow-outside" in err and "--videos" in err
    # where the user says the videos are, or with the flag
    found = search(index, loaded, root=clips[0].parent)
    assert {path.parent for path in found} == {clips[0].parent, clips[0].parent / "etc"}
    assert len(search(index, loaded, allow_outside=True)) == 3
    assert main(["search", str(index), "a fox", "--videos", str(clips[0].parent)]) == 0


def test_the_index_of_another_user_needs_the_folder_of_its_videos(index, loaded, clips, tmp_path, monkeypatch) -> None:
    assert set(search(index, loaded)) == set(clips)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else"))
    with pytest.raises(VideoIndexError, match="this user has not made it"):
        search(index, loaded)
    assert set(search(index, loaded, root=clips[0].parent)) == set(clips)
    assert set(search(index, loaded, allow_outside=True)) == set(clips)
    # reading it with the flag is no consent to its root
    VideoIndex.load(index, *loaded, allow_outside=True).remove(clips[:1])
    with pytest.raises(VideoIndexError, match="this user has not made it"):
        search(index, loaded)
    # indexing says where the videos are, so the root is then noted
    assert VideoIndex.build(*loaded, clips, directory=index, progress=False).report.unchanged == clips[1:]
    assert set(search(index, loaded)) == set(clips)


def test_indexing_into_the_index_of_a_stranger_does_not_accept_its_root(index, loaded, clips, capsys) -> None:
    change_shard(index, videos=to_passwd)
    change_manifest(index, root="/")
    assert main(["index", str(clips[0].parent), "--output", str(index), "--model", loaded[0].name_or_path]) == 0
    assert Manifest.read(index).root == clips[0].parent
    assert set(search(index, loaded)) == set(clips)


def test_videos_inside_the_index_need_no_seal(loaded, tmp_path, monkeypatch) -> None:
    clip = write_video(tmp_path / "sent" / "videos" / "a.mp4", 0)
    VideoIndex.build(*loaded, [clip], directory=tmp_path / "sent", progress=False)
    shutil.move(tmp_path / "sent", tmp_path / "downloads" / "sent")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else"))
    assert search(tmp_path / "downloads" / "sent", loaded) == [tmp_path / "downloads" / "sent" / "videos" / "a.mp4"]
    change_manifest(tmp_path / "downloads" / "sent", root="videos/..")
    assert len(search(tmp_path / "downloads" / "sent", loaded)) == 1
    (tmp_path / "downloads" / "sent" / "out").symlink_to("/")
    change_manifest(tmp_path / "downloads" / "sent", root="out")
    with pytest.raises(VideoIndexError, match="this user has not made it"):
        search(tmp_path / "downloads" / "sent", loaded)


def test_without_a_key_indexing_goes_on(loaded, clips, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    VideoIndex.build(*loaded, clips, directory=tmp_path / "keyless", progress=False)
    assert "have to say where its videos are" in caplog.text
    with pytest.raises(VideoIndexError, match="--videos"):
        search(tmp_path / "keyless", loaded)
    assert set(search(tmp_path / "keyless", loaded, root=clips[0].parent)) == set(clips)


# --- manifests and shards --------------------------------------------------------------------------------------------


def in_shards(**fields: object) -> dict[str, object]:
    shard = {"file": "shard-00000.safetensors", "rows": 2, "removed": []} | fields
    return {"shards": [shard]}


@pytest.mark.parametrize(
    "fields",
    [
        {"shards": {}},
        {"shards": [7]},
        {"shards": [{"file": "shard-00000.safetensors"}]},
        {"shards": in_shards()["shards"] * 2},
        {"shards": [*in_shards()["shards"], *in_shards(file="./shard-00000.safetensors")["shards"]]},
        in_shards(rows=True),
        in_shards(rows=2.0),
        in_shards(rows="2"),
        in_shards(rows=0),
        in_shards(rows=-2),
        in_shards(rows=3),
        in_shards(rows=2**40),
        in_shards(rows=10**30),
        in_shards(removed=[-1]),
        in_shards(removed=[2]),
        in_shards(removed=[True]),
        in_shards(removed=[0.0]),
        in_shards(removed=[0, 0]),
        in_shards(removed={"0": 0}),
        in_shards(file=7),
        in_shards(file=""),
        in_shards(file="a" * 10_000),
        in_shards(file="a\0b"),
        {"next_shard": 0},
        {"next_shard": -1},
        {"next_shard": True},
        {"next_shard": "2"},
        {"next_shard": 2**80},
        {"root": None},
        {"root": 7},
        {"root": "a/" * 1_000_000},
        {"absolute_root": ["/"]},
        {"video": []},
        {"model": []},
        {"model": {"name": 7, "dtype": "float32", "fingerprint": ""}},
        {"model": {"name": "m", "dtype": "load", "fingerprint": "0"}},
        {"model": {"name": "m" * 10**6, "dtype": "float32", "fingerprint": "0"}},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_a_manifest_of_nonsense_is_damaged(index, loaded, fields, capsys) -> None:
    change_manifest(index, **fields)
    with pytest.raises(VideoIndexError, match=r"index\.json is damaged|shard-00000\.safetensors is damaged") as error:
        search(index, loaded)
    assert len(str(error.value)) < 1000
    assert main(["search", str(index), "a fox"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 2, "root": ' + "9" * 5000 + "}", '{"format": NaN}', "[]", "null", '"2"', "\xff", "7"],
    ids=lambda text: text[:20],
)
def test_a_manifest_that_is_no_manifest(index, loaded, text) -> None:
    (index / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(VideoIndexError, match=r"index\.json (is damaged|has the format)"):
        search(index, loaded)


def test_long_nonsense_is_not_repeated_to_the_user(index, capsys) -> None:
    change_manifest(index, format="\x1b[2J" + "x" * 10**6)
    assert main(["search", str(index), "a fox"]) == 1
    err = capsys.readouterr().err
    assert len(err) < 5000 and "\x1b" not in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["index.json", "shard-00000.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "endless", "folder"])
def test_what_is_no_file_is_not_read(index, loaded, name, what) -> None:
    (index / name).unlink()
    if what == "pipe":
        os.mkfifo(index / name)
    elif what == "folder":
        (index / name).mkdir()
    else:
        (index / name).symlink_to("/dev/zero")
    with pytest.raises(VideoIndexError, match="damaged"):
        search(index, loaded)


def nan(features: torch.Tensor) -> torch.Tensor:
    return features.index_fill(0, torch.tensor([1]), float("nan"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": nan}, r"row 1 of features has the length nan"),
        ({"features": lambda x: x * float("inf")}, "of features has the length"),
        ({"features": lambda x: x * 1.1}, r"has the length 1\.1"),
        ({"features": torch.zeros_like}, "has the length 0"),
        ({"features": lambda x: x > 0}, "has the shape .* the type BOOL"),
        ({"features": lambda x: x.double()}, "the type F64"),
        ({"features": lambda x: x.to(torch.int8)}, "the type I8"),
        ({"features": lambda x: x.to(torch.float8_e4m3fn)}, "the type F8_E4M3"),
        ({"features": lambda x: x[:1]}, "has 1 videos, not 2"),
        ({"features": lambda x: x[:, :0]}, "holds nothing"),
        ({"features": lambda x: torch.nn.functional.normalize(x[:, :5])}, "vectors of 5"),
        ({"features": lambda x: x.flatten()}, "has the shape"),
        ({"features": lambda x: x[None].contiguous()}, "has the shape"),
        ({"features": lambda x: None}, "has no features"),
        ({"tokens": lambda x: None}, "has no tokens"),
        ({"tokens": lambda x: x * float("nan")}, "tokens are not all finite"),
        ({"tokens": lambda x: x + float("inf")}, "tokens are not all finite"),
        ({"tokens": lambda x: x * 0 + 3e38}, "scores of the matching head are not all finite"),
        ({"tokens": lambda x: x[:, :0]}, "0 tokens for each video"),
        ({"tokens": lambda x: x[:, :, :0]}, "holds nothing"),
        ({"tokens": lambda x: x[:, :0, :0]}, "holds nothing"),
        ({"tokens": lambda x: x[:, :, :7].contiguous()}, "tokens of 7 numbers"),
        ({"tokens": lambda x: x[:, 0].contiguous()}, "has the shape"),
        ({"tokens": lambda x: x.half()}, "tokens of the type F16"),
        ({"tokens": lambda x: x[:1]}, "has 1 videos"),
        ({"tokens": lambda x: x.repeat(1, 20_000, 1)}, "tokens for each video"),
        ({"tokens": lambda x: x[:, :2].contiguous()}, "different numbers of tokens"),
        ({"videos": lambda videos: videos[:1]}, "names 1 videos, not 2"),
        ({"videos": lambda videos: [*videos, *videos]}, "names 4 videos"),
        ({"videos": lambda videos: [videos[0], videos[0]]}, "names a video or a window twice"),
        ({"videos": lambda videos: {"0": 1, "1": 2}}, "names no videos"),
        ({"videos": lambda videos: [[[], 1, 1], videos[1]]}, "a path is not a text"),
        ({"videos": lambda videos: [["", 1, 1], videos[1]]}, "a path is not a text"),
        ({"videos": lambda videos: [["../" * 700_000 + "x", 1, 1], videos[1]]}, "a path is not a text of 1 to 4096"),
        ({"videos": lambda videos: [["a", True, 1], videos[1]]}, "a size is True"),
        ({"videos": lambda videos: [["a", -1, 1], videos[1]]}, "a size is -1"),
        ({"videos": lambda videos: [["a", 1, 2**70], videos[1]]}, "a time is"),
        ({"videos": lambda videos: [["a", 1], videos[1]]}, "not a path, a size and a time"),
        ({"videos": "[" * 50_000}, "nested deeper"),
        ({"videos": '[["a", 1, 1' + "0" * 5000 + "]]"}, "digits"),
        ({"videos": '[["a", 1, NaN]]'}, "NaN"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_shard_of_nonsense_is_damaged(index, loaded, changes, said, capsys) -> None:
    change_shard(index, **changes)
    with pytest.raises(VideoIndexError, match=said) as error:
        search(index, loaded)
    assert len(str(error.value)) < 1000
    capsys.readouterr()
    assert main(["search", str(index), "a fox", "--json", "--rerank", "3"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("noted", "tokens", "said"),
    [
        ("float8_e4m3fn", None, "tokens of the type F32"),
        (None, torch.float8_e4m3fn, "tokens of the type F8_E4M3"),
        ("float8_e4m3fn", torch.float8_e5m2, r"has the shape .* the type F8_E5M2"),
        ("float8_e4m3fn", torch.bfloat16, "tokens of the type BF16"),
        ("load", None, "token_dtype='load' is no type of tokens"),
        (["float8_e4m3fn"], None, "is no type of tokens"),
        ({"a" * 10**6: 1}, None, "is no type of tokens"),
    ],
)
def test_the_type_of_tokens_is_that_of_the_manifest(index, loaded, noted, tokens, said) -> None:
    video = json.loads((index / "index.json").read_text())["video"]
    change_manifest(index, video=video | {"token_dtype": noted} if noted else video)
    if tokens:
        change_shard(index, tokens=lambda x: x.to(tokens))
    with pytest.raises(VideoIndexError, match=said) as error:
        search(index, loaded)
    assert len(str(error.value)) < 1000


def test_tokens_of_8_bits_that_are_no_numbers_are_damage(loaded, clips, tmp_path) -> None:
    folder = tmp_path / "home" / "small"
    VideoIndex.build(*loaded, clips, directory=folder, shard_size=2, progress=False, token_dtype="float8_e4m3fn")
    change_shard(folder, tokens=lambda x: (x.float() * float("nan")).to(x.dtype))
    with pytest.raises(VideoIndexError, match="tokens are not all finite"):
        search(folder, loaded)


@pytest.mark.parametrize("change", [lambda ends: -ends, lambda ends: ends * 10**6, lambda ends: ends.flip(0)])
def test_frame_tables_at_impossible_places_are_damage(index, loaded, clips, change) -> None:
    change_shard(index, table_ends=lambda ends: change(ends).contiguous())
    opened = VideoIndex.load(index, *loaded)
    with pytest.raises(VideoIndexError, match=r"shard-00000\.safetensors is damaged"):
        list(map(opened.frame_table, clips[:2]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_shard_of_87_bytes_takes_no_memory(tmp_path) -> None:
    """A shape of 2^27 rows of no numbers: the file is as long as it says."""
    rows = 2**27
    head = {name: {"dtype": "F32", "shape": [rows, 0], "data_offsets": [0, 0]} for name in ("features",)}
    text = json.dumps(head).encode()
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "shard-00000.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    manifest = {
        "format": INDEX_FORMAT,
        "model": {"name": "m", "dtype": "float32", "fingerprint": "0"},
        "video": {},
        "root": ".",
        "absolute_root": str(folder),
        "next_shard": 1,
        "shards": [{"file": "shard-00000.safetensors", "rows": rows, "removed": []}],
    }
    (folder / "index.json").write_text(json.dumps(manifest))
    code = (
        "import resource, sys\n"
        "from alpro_hf.inference.index_shards import Manifest, VideoIndexError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    Manifest.read(sys.argv[1]).videos\n"
        "except VideoIndexError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment(), timeout=120
    )
    said, grown = done.stdout.splitlines()
    assert "damaged" in said and int(grown) < 50_000  # KiB


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder outside of the index, with files of the names that an index has."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in (
        "index.json",
        ".lock",
        "shard-00000.safetensors",
        "shard-00007.safetensors",
        "failed.jsonl",
        ".1.partial",
    ):
        (folder / name).write_text("precious")
    return folder


def untouched(precious: Path) -> bool:
    return len(list(precious.iterdir())) == 6 and all(file.read_text() == "precious" for file in precious.iterdir())


@pytest.mark.parametrize("existing", [False, True])
def test_links_in_an_index_lead_no_write_and_no_deletion_out_of_it(
    loaded, clips, index, precious, existing, tmp_path
) -> None:
    folder = index if existing else tmp_path / "sent"
    folder.mkdir(exist_ok=True)
    for name in (
        ".lock",
        ".index.json.partial",
        ".shard-00002.safetensors.partial",
        "failed.jsonl",
        "shard-00009.safetensors",
    ):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(precious / "index.json")
    (folder / "shard-00002.safetensors").symlink_to(precious / "shard-00000.safetensors")
    (folder / "shard-00008.safetensors").symlink_to(tmp_path / "nothing")
    (folder / "shard-00010.safetensors").mkdir()
    for name in ("part-00000-000", "part-00002-000", "part-x"):
        (folder / name).symlink_to(precious)
    (folder / "part-y").mkdir()
    (folder / "part-y" / "shard-00000.safetensors").symlink_to(precious / "shard-00000.safetensors")
    new = write_video(clips[0].parent / "new.mp4", 9)
    (clips[0].parent / "broken.mp4").write_text("not a video")
    built = VideoIndex.build(*loaded, [*clips, new, clips[0].parent / "broken.mp4"], directory=folder, progress=False)
    assert len(built) == 4
    built.remove([new])
    assert untouched(precious)
    assert not (tmp_path / "nothing").exists()
    assert set(search(folder, loaded)) == set(clips)
    assert not (folder / "failed.jsonl").is_symlink()
    assert IndexFolder(folder).parts() == []


def test_a_manifest_that_is_a_link_is_replaced_and_not_written_through(loaded, clips, index, tmp_path) -> None:
    kept = (index / "index.json").rename(tmp_path / "kept.json")
    (index / "index.json").symlink_to(kept)
    before = kept.read_bytes()
    VideoIndex.load(index, *loaded).remove(clips[:1])
    assert kept.read_bytes() == before and not (index / "index.json").is_symlink()
    assert set(search(index, loaded)) == set(clips[1:])


@pytest.mark.slow
def test_parts_of_several_processes_are_not_written_through_links(model, clips, precious, tmp_path) -> None:
    folder = tmp_path / "sent"
    folder.mkdir()
    for process in range(2):
        (folder / f"part-00000-{process:03d}").symlink_to(precious)
    command = ["-m", "alpro_hf", "index", str(clips[0].parent), "--output", str(folder), "--model", str(model)]
    done = run_together(2, command)
    assert done.returncode == 0, done.stderr
    assert untouched(precious)
    assert sorted(Path(entry.path).name for entry in Manifest.read(folder).videos) == ["0.mp4", "1.mp4", "2.mp4"]


# --- others at the same time -----------------------------------------------------------------------------------------


def test_a_reader_during_a_removal_sees_the_index_before_or_after_it(loaded, clips, tmp_path) -> None:
    more = [write_video(clips[0].parent / f"more-{i}.mp4", i) for i in range(12)]
    folder = tmp_path / "index"
    writer = VideoIndex.build(*loaded, [*clips, *more], directory=folder, shard_size=1, progress=False)
    opened = VideoIndex.load(folder, *loaded)
    problems: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                opened.search("a fox", rerank=15, top_k=15)
                Manifest.read(folder).videos  # noqa: B018
            except VideoIndexError as error:
                problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for clip in more:
            writer.remove([clip])
    finally:
        done.set()
        thread.join()
    assert not [problem for problem in problems if "Delete" in str(problem)]
    assert set(opened.search("a fox", rerank=15, top_k=15)) and {
        result.path for result in opened.search("a fox", rerank=15, top_k=15)
    } == set(clips)


def test_an_opened_index_follows_a_removal(loaded, clips, index) -> None:
    opened = VideoIndex.load(index, *loaded)
    VideoIndex.load(index, *loaded).remove(clips[:2])  # the first shard and its file
    assert [result.path for result in opened.search("a fox", rerank=3)] == clips[2:]


def test_a_shard_that_is_really_missing_is_named(loaded, index) -> None:
    opened = VideoIndex.load(index, *loaded)
    (index / "shard-00000.safetensors").unlink()
    for use in (lambda: opened.search("a fox", rerank=3), lambda: search(index, loaded)):
        with pytest.raises(VideoIndexError, match=r"shard-00000\.safetensors is missing"):
            use()


def test_an_opened_index_follows_one_that_is_made_again(loaded, clips, index) -> None:
    """Its shards have the names of those before, and vectors of the old ones would be shown with names of the new."""
    opened = VideoIndex.load(index, *loaded)
    opened.search("a fox", rerank=3)
    shutil.rmtree(index)
    with pytest.raises(VideoIndexError, match="holds no index"):
        opened.search("a fox", rerank=3)
    VideoIndex.build(*loaded, clips[::-1], directory=index, shard_size=2, progress=False)
    expected = VideoIndex.load(index, *loaded).search("a fox", rerank=3)
    assert opened.search("a fox", rerank=3) == expected
    assert len({result.similarity for result in expected}) == 3
    shutil.rmtree(index)
    VideoIndex.build(*loaded, clips[:1], directory=index, progress=False)
    assert opened.frame_table(clips[0]) is not None and opened.paths == clips[:1]


def test_an_opened_index_that_others_have_emptied(loaded, clips, index) -> None:
    opened = VideoIndex.load(index, *loaded)
    VideoIndex.load(index, *loaded).remove(clips)
    with pytest.raises(VideoIndexError, match="is empty"):
        opened.search("a fox", rerank=3)
