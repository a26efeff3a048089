"""Models, indexes and annotations from strangers are data: they run nothing, fill no memory, keep to their folder."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from fixtures.golden import cases
from fixtures.processes import environment
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alpro_hf.cli.main import main
from alpro_hf.data.annotations import load_annotations
from alpro_hf.data.tables import AnnotationError
from alpro_hf.hub.convert import convert_original_checkpoint, load_original_checkpoint
from alpro_hf.inference.index_shards import VideoIndexError
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval
from alpro_hf.model.unimodal_alpro import CheckpointError

SOURCES = [*Path(__file__).parents[1].glob("src/**/*.py"), *Path(__file__).parents[1].glob("s*/*.py")]
ARCHITECTURE = cases.architecture("tiny")


# --- code -----------------------------------------------------------------------------------------------------------


def calls() -> list[tuple[Path, ast.Call]]:
    found = []
    for path in SOURCES:
        found += [(path, node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return found


def test_nothing_of_ours_trusts_remote_code_or_loads_pickles() -> None:
    loads = 0
    for path, call in calls():
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("trust_remote_code", "False") == "False", path
        if name.endswith(".from_pretrained") and not name.startswith("super()") and "scripts" not in path.parts:
            assert "trust_remote_code" in keywords, (path, call.lineno)
        assert name not in ("eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"), (path, name)
        if name in ("torch.load", "np.load", "numpy.load"):
            loads += 1
            assert keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False", path
    assert len(SOURCES) > 60 and loads >= 1


def test_a_model_that_is_a_pickle_is_not_loaded(tmp_path) -> None:
    folder = write_model(tmp_path / "model", "retrieval")
    model = AlproForVideoTextRetrieval.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict() | {"run": Payload(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AlproForVideoTextRetrieval.from_pretrained(folder)
    assert not (tmp_path / "canary").exists()


# --- checkpoints of the original code -------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def tiny() -> dict:
    return dict(cases.state_dict("tiny", "retrieval"))


def first(state: dict) -> str:
    return "text_encoder.bert.embeddings.word_embeddings.weight" if "temp" in state else next(iter(state))


def nan(state, path):
    state["temp"] = torch.tensor(float("nan"))


def infinite(state, path):
    state["temp"] = torch.tensor(float("inf"))


def complex_numbers(state, path):
    state["temp"] = torch.tensor(1j)


def sparse(state, path):
    state["temp"] = torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,))


def absurd_shape(state, path):
    state["temp"] = torch.zeros(1).expand(1 << 40)


def other_names(state, path):
    state[7] = torch.zeros(1)


def payload(state, path):
    state["run"] = Payload(path.parent / "canary")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nan, "'temp' has values that are infinite or NaN"),
        (infinite, "'temp' has values that are infinite"),
        (complex_numbers, "has no real values"),
        (sparse, "is not a plain tensor"),
        (absurd_shape, "says it has the shape 1099511627776 but holds 4 bytes"),
        (other_names, "7 is not a name"),
        (payload, "could run code"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_weight_is_refused(tmp_path, change, said, zipped) -> None:
    path, state = tmp_path / "file.pt", tiny()
    change(state, path)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=said) as refused:
        load_original_checkpoint(path)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_archives_that_torch_does_not_write_are_refused_unopened(tmp_path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"temp": torch.zeros(4)}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def write(packing: int = zipfile.ZIP_STORED, **more: bytes) -> None:
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, data in (members | more).items():
                archive.writestr(name, data)

    write(zipfile.ZIP_DEFLATED, **{"sound/data/0": bytes(200 << 20)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"is compressed, but torch\.save"):
        load_original_checkpoint(path)
    write(**{"../../evil": b"x"})
    with pytest.raises(CheckpointError, match="lead out of the archive"):
        load_original_checkpoint(path)
    write()
    lying = bytearray(path.read_bytes())  # the directory says that a member is far larger than the file
    place = lying.rindex(b"PK\x01\x02")
    struct.pack_into("<II", lying, place + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    path.write_bytes(lying)
    with pytest.raises(CheckpointError, match=r"that unpack to|damaged"):
        load_original_checkpoint(path)
    write()
    assert torch.equal(load_original_checkpoint(path)["temp"], torch.zeros(4))


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("../../../etc/passwd", torch.zeros(1), r"unexpected \(1\): \.\./\.\./\.\./etc/passwd"),
        ("visual_encoder.model.blocks.999999999.norm1.weight", torch.zeros(1), "so not all in between"),
        ("text_encoder.bert.embeddings.word_embeddings.weight", torch.zeros(0, 32), "is empty"),
        ("visual_encoder.model.pos_embed", torch.zeros(1, 1 << 20, 1), "not one CLS token and a square"),
    ],
)
def test_names_and_shapes_of_no_model_are_refused(name, tensor, said) -> None:
    with pytest.raises(CheckpointError, match=said):
        convert_original_checkpoint(tiny() | {name: tensor}, "retrieval", **ARCHITECTURE)


def test_weights_of_other_types_become_float32() -> None:
    state = {name: tensor.to(torch.bfloat16) for name, tensor in tiny().items()}
    model = convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- indexes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load(write_model(tmp_path_factory.mktemp("model"), "retrieval"), "retrieval")


@pytest.fixture
def index(loaded, tmp_path) -> Path:
    """The folder of an index of two clips."""
    clips = [write_video(tmp_path / "videos" / f"{i}.mp4", i) for i in range(2)]
    VideoIndex.build(*loaded, clips, directory=tmp_path / "index", progress=False)
    return tmp_path / "index"


def rewrite(index: Path, **fields: object) -> None:
    """Change what the only shard says of its first video, or with `shard` what the manifest says of it."""
    if "shard" in fields:
        manifest = json.loads((index / "index.json").read_text())
        manifest["shards"][0] |= fields["shard"]
        (index / "index.json").write_text(json.dumps(manifest))
        return
    [file] = index.glob("*.safetensors")
    with safe_open(file, framework="pt") as shard:
        videos = json.loads(shard.metadata()["videos"])
    videos[0] = list((dict(zip(("path", "size", "mtime_ns"), videos[0], strict=True)) | fields).values())
    save_file(load_file(file), file, metadata={"videos": json.dumps(videos)})


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.mp4", "deep/../../../secret.mp4", "a\0.mp4"])
def test_an_index_names_nothing_outside_of_its_folder(loaded, index, path, capsys) -> None:
    rewrite(index, path=path)
    with pytest.raises(VideoIndexError, match=r"which lies outside .*allow_outside=True"):
        VideoIndex.load(index, *loaded).search("a fox")
    assert main(["search", str(index), "a fox"]) == 1
    assert "--allow-outside" in capsys.readouterr().err
    assert len(VideoIndex.load(index, *loaded, allow_outside=True).search("a fox")) == 2


NONSENSE = [
    *({"path": 7}, {"size": "1"}, {"mtime_ns": 1.5}),
    *({"shard": {"file": "../index.safetensors"}}, {"shard": {"file": "/etc/passwd"}}, {"shard": {"rows": 3}}),
]


@pytest.mark.parametrize("fields", NONSENSE)
def test_an_index_of_nonsense_is_damaged(loaded, index, fields) -> None:
    rewrite(index, **fields)
    with pytest.raises(VideoIndexError, match="damaged"):
        VideoIndex.load(index, *loaded).search("a fox")


def test_links_out_of_the_folder_are_not_followed(loaded, tmp_path, index) -> None:
    secret = write_video(tmp_path / "private" / "secret.mp4", 9)
    clips = sorted((tmp_path / "videos").iterdir())
    link = tmp_path / "videos" / "link.mp4"
    link.symlink_to(secret)
    near = tmp_path / "videos" / "near.mp4"
    near.symlink_to(clips[0])
    opened = VideoIndex.load(index, *loaded)
    report = opened.add([*clips, link, near], progress=False)
    assert report.indexed == [near]
    [(path, reason)] = report.failed
    assert path == link and "leads out" in reason and "--allow-outside" in reason
    trusting = VideoIndex.load(index, *loaded, allow_outside=True)
    assert trusting.add([link], progress=False).indexed == [link]
    with pytest.raises(VideoIndexError, match=r"link\.mp4, which lies outside"):
        VideoIndex.load(index, *loaded).search("a fox", top_k=4)


def test_videos_of_another_folder_are_added_only_if_allowed(loaded, tmp_path, index) -> None:
    other = write_video(tmp_path / "others" / "2.mp4", 2)
    [(path, reason)] = VideoIndex.load(index, *loaded).add([other], progress=False).failed
    assert path == other and "outside" in reason and "--allow-outside" in reason
    trusting = VideoIndex.load(index, *loaded, allow_outside=True)
    assert trusting.add([other], progress=False).indexed == [other]
    assert other in [result.path for result in trusting.search("a fox", top_k=3)]


# --- annotations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_annotations_name_nothing_outside_of_their_folder(tmp_path, kind) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(secret)
    name = {"parent": "../secret.mp4", "absolute": str(secret), "link": "link.mp4"}[kind]
    table = folder / "rows.jsonl"
    table.write_text(json.dumps({"video": name, "text": "a dog"}) + "\n")
    with pytest.raises(AnnotationError, match=r"leads out of .*allow_outside=True"):
        load_annotations("table", table)
    assert load_annotations("table", table, allow_outside=True)[0]["text"] == "a dog"
    if kind == "link":
        with pytest.raises(AnnotationError, match="missing"):
            load_annotations("table", table, videos=folder)
        [row] = load_annotations("table", table, videos=folder, allow_outside=True)
        assert row["video"] == str(folder / "link.mp4")


@pytest.mark.parametrize(
    ("name", "said"),
    [("clip\0.mp4", "not a name that a file"), ("long" * 5000, "missing")],
)
@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_annotations_with_names_that_no_file_has(tmp_path, name, said, allow_outside, elsewhere) -> None:
    """Found by fuzzing: a zero byte in a name."""
    (tmp_path / "clip.mp4").write_bytes(b"x")
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps({"video": name, "text": "a dog"}) + "\n")
    options = {"videos": tmp_path} if elsewhere else {}
    with pytest.raises(AnnotationError, match="missing" if elsewhere else said):
        load_annotations("table", table, allow_outside=allow_outside, **options)


def test_a_parquet_with_text_that_is_none_is_named(tmp_path) -> None:
    """What coverage-guided fuzzing found: a column of text whose bytes are not UTF-8."""
    broken = pa.array([b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"video": pa.array(["a.mp4", "b.mp4"]), "text": broken})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(AnnotationError, match=r"rows\.parquet, after row 0: not readable as Parquet: 'utf-8'"):
        load_annotations("table", tmp_path / "rows.parquet")


def test_pickles_are_no_annotations(tmp_path) -> None:
    for name in ("rows.pkl", "rows.jsonl"):
        (tmp_path / name).write_bytes(pickle.dumps([Payload(tmp_path / "canary")]))
        with pytest.raises(AnnotationError, match="rows"):
            load_annotations("table", tmp_path / name)
    assert not (tmp_path / "canary").exists()


# --- code in a model folder -----------------------------------------------------------------------------------------


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def evil_folder(folder: Path, names: str, canary: Path, task: str = "retrieval") -> Path:
    """A model folder of which one part, or every part, names a class in a file of its own."""
    write_model(folder, task)
    (folder / "evil.py").write_text(f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\nclass Evil: pass\n")
    every = names == "everything"
    if names == "processor" or every:

        def change(content: dict) -> None:
            content["auto_map"] = {"AutoProcessor": "evil.Evil"}
            content["processor_class"] = "Evil"
            content["video_processor"] |= {"auto_map": {"AutoVideoProcessor": "evil.Evil"}}
            content["video_processor"]["video_processor_type"] = "Evil"

        change_json(folder / "processor_config.json", change)
    if names == "tokenizer" or every:
        evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        change_json(folder / "tokenizer_config.json", lambda content: content.update(evil))
    if names == "older processor":  # as older versions of the library wrote it
        (folder / "processor_config.json").unlink()
        evil = {"auto_map": dict.fromkeys(("AutoVideoProcessor", "AutoImageProcessor"), "evil.Evil")}
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            (folder / name).write_text(json.dumps(evil))
    if names == "model" or every:
        kinds = ("AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoProcessor", "AutoTokenizer")
        maps = {"auto_map": dict.fromkeys(kinds, "evil.Evil"), "custom_pipelines": {"x": {"impl": "evil.Evil"}}}
        change_json(folder / "config.json", lambda content: content.update(maps))
    if names == "unknown model":
        evil = {"model_type": "evil", "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Evil")}
        change_json(folder / "config.json", lambda content: content.update(evil))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", ["processor", "tokenizer", "older processor", "model", "unknown model", "everything"]
)
def test_code_in_a_model_folder_never_runs_even_if_standard_input_says_yes(tmp_path, names) -> None:
    canary = tmp_path / "canary"
    folder = evil_folder(tmp_path / "model", names, canary)
    evil_folder(tmp_path / "model-qa", names, canary, "qa")
    clip = write_video(tmp_path / "videos" / "clip.mp4", 0)
    # the index of a stranger, which names this folder as its model
    VideoIndex.build(*load(write_model(tmp_path / "sound", "retrieval"), "retrieval"), [clip],
                     directory=tmp_path / "model-index", name=str(folder), progress=False)  # fmt: skip
    script = Path(__file__).parent / "fixtures" / "load_with_yes.py"
    lines = 1000
    # minutes of training and tracing, which load the folder as `alpro index` does: for some of the kinds alone
    left_out = [] if names in ("model", "everything") else ["alpro train", "alpro pseudo-label", "alpro export-onnx"]
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *left_out],
        input="y\n" * lines,
        capture_output=True,
        text=True,
        env=environment(HF_MODULES_CACHE=str(tmp_path / "modules"), HF_HUB_OFFLINE="1"),
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not canary.exists(), found["said"]
    assert found["unread"] == lines  # nobody asked
    assert "[y/N]" not in done.stdout + done.stderr
    assert len(found["said"]) > 20
    for way, said in found["said"].items():  # no tracebacks of the library for what a stranger sent
        if way.startswith("alpro "):
            assert said in ("exit 0", "exit 1", "exit 2"), (way, said)
    if names in ("model", "tokenizer"):  # the package has classes of its own for these
        assert found["said"]["processor"] == found["said"]["AlproForVideoTextRetrieval"] == "loaded"
        assert found["said"]["alpro search INDEX"] == "exit 0"
    elif names in ("processor", "everything"):
        assert "nothing was run" in found["said"]["processor"]
        assert found["said"]["alpro search INDEX"] == "exit 1"
