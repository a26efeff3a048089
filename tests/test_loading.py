"""Models by name, devices and data types."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures.gallery import write_model
from fixtures.hub_double import File, HubDouble, Repo, simulate_cache
from huggingface_hub import constants

from alpro_hf import AlproConfig, bundled_model, loading
from alpro_hf.loading import (
    CommandError,
    ModelNotFoundError,
    best_device,
    best_dtype,
    fast_bfloat16,
    find_model,
    load_model,
    portable_name,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    with HubDouble() as double:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        template = f"{double.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield double


@pytest.fixture
def at_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub's client of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "hub-cache"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model in `alpro-msrvtt` and things that are none."""
    for folder in ("alpro-msrvtt", "runs/msvd", "empty", "weights"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("alpro-msrvtt", "runs/msvd"):
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "weights" / "model.pt").write_bytes(b"1")
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "alpro-msrvtt" / "model.safetensors").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_bundled_models_have_names() -> None:
    assert find_model("bundled") == find_model("bundled", "towers") == find_model("bundled-retrieval", "qa")
    assert find_model("bundled") == bundled_model("retrieval")
    assert find_model("bundled", "qa") == find_model("bundled-qa") == bundled_model("qa")


def test_a_bundled_model_has_a_name_that_travels() -> None:
    assert portable_name(bundled_model("qa")) == "bundled-qa"
    assert portable_name("acme/alpro") == "acme/alpro"


def test_there_are_two_bundled_models() -> None:
    with pytest.raises(ValueError, match=r"no bundled model 'retreival'\. There are two: 'retrieval' and 'qa'"):
        bundled_model("retreival")  # type: ignore[arg-type]
    assert type(bundled_model("qa")) is str


def test_a_folder_is_itself(here: Path) -> None:
    assert find_model("alpro-msrvtt") == "alpro-msrvtt"
    assert find_model(f"{here}/runs/msvd/") == f"{here}/runs/msvd/"
    assert find_model("empty", needs=None) == "empty"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nomodel", r"^There is no folder nomodel here, and no such model on the Hub\. A private"),
        ("acme/nomodel", r"^There is no folder acme/nomodel here, and no such model on the Hub"),
        ("alpro-msrvt", r"no such model on the Hub\. Did you mean alpro-msrvtt\?"),
        ("Alpro-MSRVTT", r"no such model on the Hub\. Did you mean alpro-msrvtt\?"),
        ("runs/msv", r"Did you mean runs/msvd\?"),
        ("./alpro-msrvt", r"cannot be the id of a model on the Hub\. Did you mean alpro-msrvtt\?"),
        ("bundeld", r"Did you mean bundled\?"),
        ("my model!", "There is no folder my model! here, and it cannot be the id of a model on the Hub"),
        ("a/b/c", "cannot be the id of a model"),
        ("/nowhere/at/all", "There is no folder /nowhere/at/all here, and it cannot be"),
        ("müller/modell", "cannot be the id of a model"),
        ("x" * 300, "cannot be the id of a model"),
        ("zero\0byte", "cannot be the id of a model"),
        ("", "is blank"),
        (" ", "is blank"),
        ("empty", "The folder empty does not contain a model: there is no config.json in it"),
        ("runs", r"there is no config.json in it\. There is one in runs/msvd"),
        ("weights", "alpro convert weights/model.pt --output DIR"),
        ("notes.txt", "notes.txt is a file, not the folder of a model"),
        ("weights/model.pt", "weights/model.pt is a file, not .* alpro convert weights/model.pt --output DIR"),
        ("alpro-msrvtt/config.json", "is a file. Name the folder of the model: alpro-msrvtt"),
        ("alpro-msrvtt/model.safetensors", "Name the folder of the model: alpro-msrvtt"),
        ("https://huggingface.co/acme/x", "is a URL. Name a folder or a Hub id"),
    ],
)
def test_what_is_no_model_is_one_sentence(hub: HubDouble, here: Path, name: str, said: str) -> None:
    with pytest.raises(ModelNotFoundError, match=said) as caught:
        find_model(name)
    assert "\n" not in str(caught.value)
    assert hub.count("GET", "/api/models/") <= 1


def publish(hub: HubDouble, *files: str) -> None:
    repo = hub.repos["model", "acme/alpro"] = Repo("model", "acme/alpro", False, None)
    repo.commit("main", {name: File(b"{}", False) for name in files}, "first")


def test_a_model_on_the_hub_is_found_or_said_to_be_none(hub: HubDouble, here: Path, at_cache: Path) -> None:
    publish(hub, "config.json")
    assert find_model("acme/alpro") == "acme/alpro"
    with pytest.raises(ModelNotFoundError, match="acme/alpro on the Hub has no branch, tag or commit 'v9'"):
        find_model("acme/alpro", revision="v9")
    publish(hub, "README.md")
    with pytest.raises(ModelNotFoundError, match=r"acme/alpro on the Hub does not contain a model: .* config\.json"):
        find_model("acme/alpro")


DEEP = b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": DEEP}, r"config\.json cannot be used: it is nested deeper than 64 levels"),
        ({"config.json": b"{", "tokenizer.json": b"{}"}, r"config\.json cannot be used"),
        ({"config.json": b"{}", "tokenizer.json": b'{"a": ' + b"9" * 5000 + b"}"}, r"tokenizer\.json cannot be used"),
        (
            {"config.json": b"{}", "tokenizer.json": b" " * ((1 << 26) + 1)},
            r"tokenizer\.json of acme/alpro on",
        ),
        (
            {"config.json": b"{}", "vocab.txt": b" " * ((1 << 26) + 1)},
            r"vocab\.txt of acme/alpro on the Hub has 67",
        ),
        ({"config.json": b"{}"} | {f"{i}.json": b"{}" for i in range(100)}, "has 101 files of settings; at most 100"),
        (
            {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../../b.safetensors"}}'},
            "names files of weights that are not in its folder",
        ),
    ],
)
def test_settings_on_the_hub_have_bounds(hub: HubDouble, here: Path, at_cache: Path, files, said) -> None:
    repo = hub.repos["model", "acme/alpro"] = Repo("model", "acme/alpro", False, None)
    repo.commit("main", {name: File(content, False) for name, content in files.items()}, "first")
    with pytest.raises(CommandError, match=said):
        find_model("acme/alpro")
    large = [name for name, content in files.items() if len(content) > 1 << 26]
    assert not [name for name in large if hub.count("GET", f"/resolve/.*/{name}$")]


def test_a_hub_that_hides_the_sizes_of_files_sends_no_more_than_is_read(
    hub: HubDouble, here: Path, at_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_SETTINGS_BYTES", 1000)
    publish(hub, "config.json")
    repo = hub.repos["model", "acme/alpro"]
    repo.commit("main", {"config.json": File(b"{}", False), "vocab.txt": File(b"x" * 1001, False)}, "second")
    hub.hides_sizes = True
    with pytest.raises(CommandError, match=r"settings of acme/alpro .*vocab\.txt sends more than 1,000 bytes"):
        find_model("acme/alpro")


def test_settings_are_downloaded_once(hub: HubDouble, here: Path, at_cache: Path) -> None:
    publish(hub, "config.json", "tokenizer.json", "inner/other.json", "model.safetensors")
    for _ in range(2):
        assert find_model("acme/alpro") == "acme/alpro"
    assert hub.count("HEAD", "/resolve/") == 2  # not again, and nothing of a subfolder


def test_weights_on_the_hub_that_cannot_be_as_many_as_described(hub: HubDouble, here: Path, at_cache: Path) -> None:
    config = AlproConfig(vision_config={"hidden_size": 768}).to_dict() | {"architectures": ["AlproModel"]}
    repo = hub.repos["model", "acme/alpro"] = Repo("model", "acme/alpro", False, None)
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 100}
    repo.commit("main", {name: File(content, name.endswith("s")) for name, content in files.items()}, "first")
    with pytest.raises(CommandError, match="files of weights have only 100 bytes"):
        load_model("retrieval", "acme/alpro")
    assert hub.count("GET", "/resolve/.*/model.safetensors") == 0


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_answer_is_quick_and_honest(
    hub: HubDouble, here: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    hub.server.shutdown()
    hub.server.server_close()  # nobody listens there any more
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
    why = "HF_HUB_OFFLINE keeps the Hub from being asked" if offline else "the Hub could not be reached"
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=f"no folder alpro-msrvt here, {why}, .*Did you mean alpro-msrvtt"):
        find_model("alpro-msrvt")
    assert time.monotonic() - start < 5
    snapshot = simulate_cache(here / "cache", "acme/alpro", here / "alpro-msrvtt")
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(here / "cache"), raising=False)
    assert find_model("acme/alpro") == str(snapshot)


def test_damaged_weights_are_one_sentence_with_the_name_of_the_model(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "retrieval")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CommandError, match=r"the weights of .*model are damaged or incomplete .*download them again"):
        load_model("retrieval", str(tmp_path / "model"))


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_a_cpu_with_instructions_for_bfloat16_uses_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_bfloat16("cpu") == (avx512 or amx)
    assert best_dtype(torch.device("cpu")) == (torch.bfloat16 if avx512 or amx else torch.float32)


def test_a_cpu_answers_as_its_flags_say():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(file.read().split())
    except FileNotFoundError:
        pytest.skip("the flags of the CPU are in /proc/cpuinfo on Linux alone")
    assert fast_bfloat16("cpu") == bool({"avx512_bf16", "amx_tile"} & flags)


def test_an_unknown_device_computes_in_float32():
    assert best_dtype("meta") == torch.float32
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_frames": 0}, "num_frames=0 must be a whole number"),
        ({"size": [1, 2]}, "it makes frames of 1 x 2 pixels, which patches of 8 x 8 do not tile"),
        ({"do_center_crop": True, "crop_size": {"height": 12, "width": 16}}, "frames of 12 x 16 pixels"),
    ],
    ids=str,
)
def test_a_processor_that_does_not_fit_is_one_sentence(tmp_path: Path, settings: dict, said: str) -> None:
    model = write_model(tmp_path / "model", "retrieval")
    content = json.loads((model / "processor_config.json").read_text())
    content["video_processor"] |= settings
    (model / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(CommandError, match=rf"the processor of {re.escape(str(model))} cannot be used.*{said}"):
        load_model("retrieval", str(model))
