"""Export and publishing, by the real client against a double of the Hub, and loading without the package."""

import ast
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from fixtures import colours
from fixtures.hub_double import READ_TOKEN, TOKEN, File, HubDouble, RefusedError, Repo, simulate_cache
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_imports
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import alpro_hf
from alpro_hf import (
    AlproCollator,
    AlproConfig,
    AlproForPreTraining,
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    AlproPrompterModel,
    AlproTrainer,
    AlproTrainingArguments,
    AlproVideoProcessor,
)
from alpro_hf.cli.main import main
from alpro_hf.hub import export as hub
from alpro_hf.hub import publish as hub_publish
from alpro_hf.hub import upload as hub_upload

REPO = "acme/alpro-sprites"
SOURCE = Path(alpro_hf.__file__).parents[1]
# what a user of the remote code has installed, and what that brings along
INSTALLED = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL", "av"}
# a process in which the package cannot be imported, however it is installed
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "alpro_hf":
            raise ModuleNotFoundError("No module named 'alpro_hf'")

sys.meta_path.insert(0, Absent())
try:
    import alpro_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is there")
"""


def python(code: str, environment: dict[str, str], *arguments: str) -> str:
    """What a program prints that runs in a new process, away from this package's sources."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which speaks to other machines than the endpoint
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubDouble() as hub_double:
        yield hub_double


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question answering model with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint") / "qa"
    torch.manual_seed(0)
    AlproForVideoQuestionAnswering(colours.config()).save_pretrained(folder)
    colours.processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.export(checkpoint, tmp_path_factory.mktemp("exported") / "alpro-sprites", name=REPO)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real mp4 of 12 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return path


# ---------------------------------------------------------------------------------------------------------- code files


def test_code_files_import_what_users_have_and_each_other() -> None:
    files = hub.code_files()
    names = {path.stem for path in files}
    assert {"configuration_alpro", "modeling_alpro", "pretraining_alpro", "loss_alpro", "decoding"} <= names
    for path in files:
        foreign = {module for module in get_imports(path) if module not in sys.stdlib_module_names}
        assert foreign <= INSTALLED, path.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, path.name
                assert node.module in names, f"{path.name} imports from .{node.module}"


def test_auto_map_names_classes_that_are_there() -> None:
    for reference in hub.AUTO_MAP.values():
        module, name = reference.split(".")
        tree = ast.parse((SOURCE / "alpro_hf" / "model" / f"{module}.py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


# -------------------------------------------------------------------------------------------------------------- export


def test_export_twice_gives_the_same_bytes(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    again = hub.export(checkpoint, tmp_path / "alpro-sprites", name=REPO)
    assert {path.name for path in again.iterdir()} == {path.name for path in exported.iterdir()}
    for path in again.iterdir():
        assert path.read_bytes() == (exported / path.name).read_bytes(), path.name


def test_export_of_an_export_changes_nothing(exported: Path, tmp_path: Path) -> None:
    again = hub.export(exported, tmp_path / "again", name=REPO)
    for path in again.iterdir():
        assert path.read_bytes() == (exported / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "head", [AlproModel, AlproForVideoTextRetrieval, AlproForPreTraining, AlproPrompterModel], ids=lambda c: c.__name__
)
def test_export_of_a_model_in_memory_loads_with_equal_weights(head: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = head(colours.config(entities=["red", "green"]))
    hub.export(model, tmp_path / "out", processor=colours.processor())
    loaded, info = head.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True))
    assert type(AutoProcessor.from_pretrained(tmp_path / "out")) is AlproProcessor


def test_export_leaves_the_training_behind_and_keeps_shards(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint-2"
    model = AlproForVideoQuestionAnswering.from_pretrained(checkpoint)
    model.save_pretrained(source, max_shard_size="30KB")
    colours.processor().save_pretrained(source)
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "notes.txt"):
        (source / name).write_bytes(b"not for others")
    out = hub.export(source, tmp_path / "out")
    shards = {path.name for path in source.glob("*.safetensors")}
    assert len(shards) > 2
    assert {path.name for path in out.glob("*.safetensors")} == shards
    assert not {"optimizer.pt", "rng_state.pth", "scheduler.pt", "notes.txt"} & {path.name for path in out.iterdir()}
    state = AlproForVideoQuestionAnswering.from_pretrained(out).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_export_turns_pickled_weights_into_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "old"
    source.mkdir()
    for path in checkpoint.glob("*.json"):
        (source / path.name).write_bytes(path.read_bytes())
    model = AlproForVideoQuestionAnswering.from_pretrained(checkpoint)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    out = hub.export(source, tmp_path / "out")
    assert not list(out.glob("*.bin"))
    state = AlproForVideoQuestionAnswering.from_pretrained(out).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_export_does_not_teach_other_checkpoints_about_remote_code(exported: Path, tmp_path: Path) -> None:
    assert exported.is_dir()
    AlproConfig().save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_export_refuses_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(hub.ExportError, match=r"holds no config\.json"):
        hub.export(bare, tmp_path / "a")
    (bare / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    with pytest.raises(hub.ExportError, match=r"type 'clip', not an ALPRO model"):
        hub.export(bare, tmp_path / "a")
    (bare / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(hub.ExportError, match=r"holds no weights.*alpro convert"):
        hub.export(bare, tmp_path / "a")
    (bare / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(hub.ExportError, match=r"no processor_config\.json"):
        hub.export(bare, tmp_path / "a")
    with pytest.raises(hub.ExportError, match="not an empty folder"):
        hub.export(checkpoint, bare)
    hub.export(bare, tmp_path / "b", processor=checkpoint)


# ------------------------------------------------------------------------------------------- without the package

LOAD = (
    WITHOUT_PACKAGE
    + """
import json, sys
import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering, AutoProcessor, AutoTokenizer,
    pipeline,
)
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

clip, output, *names = sys.argv[1:]
trust = {"trust_remote_code": True}
modules, everything = set(), []
for number, name in enumerate(names):
    constants.HF_HUB_OFFLINE = number < 2  # a folder, a cache, and last what is only on the Hub
    config = AutoConfig.from_pretrained(name, **trust)
    processor = AutoProcessor.from_pretrained(name, **trust)
    video_processor = AutoVideoProcessor.from_pretrained(name, **trust)
    tokenizer = AutoTokenizer.from_pretrained(name, **trust)
    base = AutoModel.from_pretrained(name, **trust).eval()
    qa = AutoModelForVisualQuestionAnswering.from_pretrained(name, **trust).eval()
    pretraining = AutoModelForPreTraining.from_pretrained(name, **trust).eval()
    inputs = processor(text=["red and blue", "how many colours ?"], videos=[clip, clip])
    with torch.no_grad():
        outputs = {"embeds": base(**inputs).video_embeds, "logits": qa(**inputs).logits}
        outputs |= {"tower": pretraining.alpro(**inputs).text_embeds}
    outputs |= {"pixels": inputs["pixel_values_videos"], "alone": video_processor(clip)["pixel_values_videos"]}
    outputs |= {"words": torch.tensor(tokenizer("red and blue")["input_ids"])}
    everything.append(outputs)
    parts = (config, processor, processor.video_processor, video_processor, base, qa, pretraining)
    modules |= {type(thing).__module__ for thing in parts}
ask = pipeline("video-question-answering", model=names[-1], device="cpu", **trust)
everything[-1]["answer"] = torch.tensor(config.label2id[ask(clip, "how many colours ?")[0]["answer"]])
from sentence_transformers import SentenceTransformer

constants.HF_HUB_OFFLINE = True
encoder = SentenceTransformer(names[0], trust_remote_code=True, local_files_only=True, device="cpu")
modules.add(type(encoder[0].model).__module__)
everything[0]["encoded"] = encoder.encode([clip, clip], convert_to_tensor=True)
torch.save(everything, output)
print(json.dumps(sorted(modules)))
"""
)


@pytest.mark.slow
def test_remote_code_gives_equal_numbers_from_a_folder_a_cache_and_the_hub(
    double: HubDouble, exported: Path, clip: Path, tmp_path: Path
) -> None:
    simulate_cache(tmp_path / "cache", REPO, exported)
    hub_upload.publish(exported, "acme/elsewhere", api=double.api())
    environment = double.environment(tmp_path / "home", token=None) | {"HF_HUB_CACHE": str(tmp_path / "cache")}
    before = len(double.requests)
    names = (str(exported), REPO, "acme/elsewhere")
    printed = python(LOAD, environment, str(clip), str(tmp_path / "outputs.pt"), *names)
    modules = json.loads(printed)
    assert len(modules) >= 3 * 4  # each place brings its own code
    assert all(module.startswith("transformers_modules.") for module in modules)
    asked = [path for _, path in double.requests[before:]]
    assert [path for path in asked if re.fullmatch("/acme/elsewhere/resolve/[0-9a-f]{40}/model.safetensors", path)]
    assert not [path for path in asked if REPO in path]

    processor = AlproProcessor.from_pretrained(exported)
    inputs = processor(text=["red and blue", "how many colours ?"], videos=[str(clip), str(clip)])
    with torch.no_grad():
        base = AlproModel.from_pretrained(exported).eval()(**inputs)
        logits = AlproForVideoQuestionAnswering.from_pretrained(exported).eval()(**inputs).logits
    expected = {"embeds": base.video_embeds, "logits": logits, "tower": base.text_embeds}
    expected |= {"pixels": inputs["pixel_values_videos"], "alone": inputs["pixel_values_videos"][:1]}
    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    torch.testing.assert_close(found[0]["encoded"], base.video_embeds, atol=1e-6, rtol=0)  # by sentence-transformers
    assert torch.equal(found[-1]["answer"], logits[1].argmax())  # by the pipeline
    for theirs in found:
        words = {"words": inputs["input_ids"][0][: len(theirs["words"])]}
        for key, value in (expected | words).items():
            assert torch.equal(theirs[key], value), key


@pytest.mark.slow
def test_exports_of_two_versions_in_one_process_keep_their_own_code(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real exports whose folders have one name: the second has other model code, and modules named like others."""
    other = tmp_path / "code"
    other.mkdir()
    for path in hub.code_files():
        (other / path.name).write_bytes(path.read_bytes())
    with (other / "modeling_alpro.py").open("a") as file:  # the code of the configuration is equal
        file.write("\n\nAlproModel.VERSION = 'two'\n")
    monkeypatch.setattr(hub, "code_files", lambda: sorted(other.iterdir()))
    folders = [copied(exported, tmp_path / "one" / "model"), tmp_path / "two" / "model"]
    hub.export(exported, folders[1])
    for name in [path.name for path in other.iterdir()]:
        assert (folders[1] / name).read_bytes() != (folders[0] / name).read_bytes(), name
    for name in ("numpy", "torch", "alpro_hf", "tokenize"):
        (folders[1] / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    code = """
    import sys
    from transformers import AutoConfig, AutoModel, AutoProcessor
    for folder in sys.argv[1:]:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        made = AutoModel.from_config(config, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        print(*(getattr(type(one), "VERSION", "one") for one in (model, made)), type(processor).__name__)
    """
    order = [str(folder) for folder in (*folders, folders[0])]
    said = python(
        WITHOUT_PACKAGE + textwrap.dedent(code), {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}, *order
    )
    assert said.splitlines() == [f"{version} {version} AlproProcessor" for version in ("one", "two", "one")]


def test_local_classes_win(exported: Path) -> None:
    for trust in (None, True):
        assert type(AutoConfig.from_pretrained(exported, trust_remote_code=trust)) is AlproConfig
        assert type(AutoModel.from_pretrained(exported, trust_remote_code=trust)) is AlproModel
        assert type(AutoProcessor.from_pretrained(exported, trust_remote_code=trust)) is AlproProcessor
        assert type(AutoVideoProcessor.from_pretrained(exported, trust_remote_code=trust)) is AlproVideoProcessor
    assert type(AutoProcessor.from_pretrained(exported).video_processor) is AlproVideoProcessor


# ------------------------------------------------------------------------------------------------------------- publish


def test_publish_creates_uploads_in_one_commit_and_downloads_again(
    double: HubDouble, exported: Path, tmp_path: Path
) -> None:
    url = hub_upload.publish(exported, REPO, private=True, api=double.api())
    repo = double.repos["model", REPO]
    assert url == f"{double.url}/{REPO}"
    assert repo.private
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    local = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert {path: file.content for path, file in repo.files().items() if path != ".gitattributes"} == local
    assert repo.files()["model.safetensors"].large
    assert not repo.files()["modeling_alpro.py"].large

    got = snapshot_download(REPO, endpoint=double.url, token=TOKEN, cache_dir=tmp_path, revision=repo.branches["main"])
    assert {path.name: path.read_bytes() for path in Path(got).iterdir() if path.name in local} == local


def test_publish_again_sends_nothing(double: HubDouble, exported: Path) -> None:
    hub_upload.publish(exported, REPO, api=double.api())
    before = len(double.requests)
    assert hub_upload.publish(exported, REPO, api=double.api()) == f"{double.url}/{REPO}"
    assert not [path for method, path in double.requests[before:] if method in ("PUT", "POST")]
    assert len(double.repos["model", REPO].commits) == 2


def test_publish_to_a_branch(double: HubDouble, exported: Path) -> None:
    url = hub_upload.publish(exported, REPO, revision="v2", api=double.api())
    assert url.endswith(f"{REPO}/tree/v2")
    repo = double.repos["model", REPO]
    assert "config.json" in repo.files("v2")
    assert "config.json" not in repo.files("main")


def test_only_changed_files_are_sent_and_only_when_allowed(double: HubDouble, exported: Path, tmp_path: Path) -> None:
    hub_upload.publish(exported, REPO, api=double.api())
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in exported.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (changed / "README.md").write_text("---\nlicense: mit\n---\n# New\n")
    before = dict(double.repos["model", REPO].files())
    with pytest.raises(hub_upload.PublishError, match=r"other versions of 1 files \(README\.md\)"):
        hub_upload.publish(changed, REPO, api=double.api())
    assert double.repos["model", REPO].files() == before
    hub_upload.publish(changed, REPO, overwrite=True, api=double.api())
    assert double.count("PUT", "/large/") == 1  # the weights, the first time
    after = double.repos["model", REPO].files()
    assert {path for path in after if after[path] != before[path]} == {"README.md"}


def test_weights_that_would_be_loaded_instead_are_removed(
    double: HubDouble, exported: Path, checkpoint: Path, tmp_path: Path
) -> None:
    hub_upload.publish(exported, REPO, api=double.api())
    sharded = tmp_path / "sharded"
    AlproForVideoQuestionAnswering.from_pretrained(checkpoint).save_pretrained(sharded, max_shard_size="30KB")
    out = hub.export(sharded, tmp_path / "out", processor=checkpoint, name=REPO)
    plan = hub_upload.plan_upload(out, REPO, api=double.api())
    assert plan.removed == ("model.safetensors",)
    assert "model.safetensors" in plan.replaces
    hub_upload.upload(plan, api=double.api())
    assert "model.safetensors" not in double.repos["model", REPO].files()
    assert plan.others == (".gitattributes",)


def test_somebody_elses_commit_is_not_overwritten(double: HubDouble, exported: Path) -> None:
    hub_upload.publish(exported, REPO, api=double.api())
    plan = hub_upload.plan_upload(exported.parent / exported.name, REPO, api=double.api())
    repo = double.repos["model", REPO]
    repo.commit("main", repo.files() | {"config.json": File(b"{}", False)}, "somebody else's")
    later = hub_upload.plan_upload(exported, REPO, api=double.api())
    assert later.changed == ("config.json",)
    double.before_commit = lambda: None if len(repo.messages) > 3 else _commit_beside(repo)
    with pytest.raises(hub_upload.PublishError, match="Somebody else has committed"):
        hub_upload.upload(later, api=double.api())
    assert repo.files()["config.json"].content == b"{}"
    assert plan.unchanged
    assert not plan.changed


def _commit_beside(repo: Any) -> None:
    repo.commit("main", repo.files() | {"theirs.txt": File(b"theirs", False)}, "a second one")


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        ("alpro", TOKEN, "write NAMESPACE/NAME"),
        ("acme/alpro sprites", TOKEN, "write NAMESPACE/NAME"),
        ("acme/a/b", TOKEN, "write NAMESPACE/NAME"),
        (REPO, False, "hf auth login"),
        (REPO, "hf_wrong", "does not accept the token"),
        (REPO, READ_TOKEN, "may not write to acme/alpro-sprites.*no write permission"),
        ("other/alpro", TOKEN, "may not write to other/alpro"),
    ],
)
def test_a_refusal_is_one_sentence(
    double: HubDouble, exported: Path, monkeypatch: pytest.MonkeyPatch, name: str, token: Any, sentence: str
) -> None:
    monkeypatch.setattr(hub_upload, "get_token", lambda: None)  # whoever runs the tests may be logged in
    with pytest.raises(hub_upload.PublishError, match=sentence) as caught:
        hub_upload.publish(exported, name, api=double.api(token))
    assert "\n" not in str(caught.value)
    assert not double.repos


def test_no_permission_on_an_existing_repository(double: HubDouble, exported: Path) -> None:
    hub_upload.publish(exported, REPO, api=double.api())
    (before,) = {repo.branches["main"] for repo in double.repos.values()}
    double.repos["model", REPO].commit("main", {}, "emptied")
    with pytest.raises(hub_upload.PublishError, match="may not write"):
        hub_upload.publish(exported, REPO, api=double.api(READ_TOKEN))
    assert double.repos["model", REPO].branches["main"] != before
    assert not double.repos["model", REPO].files()


def test_no_network_is_one_sentence(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubDouble() as gone:
        pass
    with pytest.raises(hub_upload.PublishError, match=r"connection to http://127\.0\.0\.1:\d+ failed"):
        hub_upload.publish(exported, REPO, api=HfApi(endpoint=gone.url, token=TOKEN))


def test_a_card_that_the_hub_refuses_publishes_nothing(double: HubDouble, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: 3\n---\n")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(
        hub_upload.PublishError, match=r"refuses acme/alpro-sprites: Invalid metadata in README\.md.*license"
    ):
        hub_upload.publish(tmp_path, REPO, api=double.api())
    assert list(double.repos["model", REPO].files()) == [".gitattributes"]
    assert not double.blobs


HTML = (200, {"Content-Type": "text/html"}, b"<html><body>Log in to the hotel's network</body></html>")
OID = "0123456789abcdef0123456789abcdef01234567"
PLACES = {
    "info": r"/revision/",
    "tree": r"/tree/",
    "creation": r"/repos/create",
    "card": r"/validate-yaml",
    "preupload": r"/preupload/",
    "batch": r"/objects/batch",
    "large": r"/large/[0-9a-f]+$",
    "commit": r"/commit/",
}
ANSWERS = {
    "html": HTML,
    "nothing": (200, {}, b""),
    "null": (200, {}, None),
    "list": (200, {}, [1]),
    "object": (200, {}, {}),
    "types": (200, {}, {"sha": 7, "files": 7, "objects": [7], "commitOid": [], "commitUrl": 7, "success": True}),
    "circle": (302, {"Location": "/circle"}, b""),
    "elsewhere": (307, {"Location": "/elsewhere"}, b""),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_is_no_hub_never_makes_us_claim_success(
    at_double: HubDouble, exported: Path, capsys: pytest.CaptureFixture[str], place: str, answer: str
) -> None:
    """One kind of request gets a wrong answer. Some do not matter, such as the one to an uploaded file."""

    def lie(method: str, path: str) -> Any:
        if path == "/circle":
            return ANSWERS["circle"]
        if path == "/elsewhere":
            return HTML
        return ANSWERS[answer] if re.search(PLACES[place], path) else None

    if place in ("info", "tree"):  # of a repository that exists
        hub_upload.publish(exported, REPO, api=at_double.api())
        at_double.repos["model", REPO].commit("main", {"README.md": File(b"x", False)}, "other files")
    at_double.lie = lie
    code = command(str(exported), "--repo", REPO, "--yes")
    at_double.lie = lambda method, path: None
    out, err = capsys.readouterr()
    repo = at_double.repos.get(("model", REPO))
    there = {path.name: path.read_bytes() for path in exported.iterdir()}
    if code == 0:
        assert repo is not None
        now = {path: file.content for path, file in repo.files().items()}
        assert {name: now[name] for name in there} == there
        return
    # besides the progress of the upload, one sentence
    assert code == 1 and out == "" and err.count("alpro publish: ") == 1 and "Traceback" not in err, err
    assert place in ("info", "tree") or repo is None or list(repo.files()) == [".gitattributes"]


@pytest.mark.parametrize("oid", [OID, "the head", "", "main"])
def test_a_commit_that_did_not_happen_is_no_success(double: HubDouble, exported: Path, oid: str) -> None:
    repo = double.repos["model", REPO] = Repo("model", REPO, False, None)
    head = repo.commit("main", {".gitattributes": File(b"", False)}, "first")
    said = {"commitOid": head if oid == "the head" else oid, "commitUrl": f"{double.url}/{REPO}/commit/{OID}"}
    double.lie = lambda method, path: (200, {}, said | {"success": True}) if "/commit/" in path else None
    with pytest.raises(hub_upload.PublishError, match="confirmed the upload to acme/alpro-sprites, but") as caught:
        hub_upload.publish(exported, REPO, api=double.api())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["other", "missing", "kept"])
def test_a_commit_with_other_files_is_no_success(double: HubDouble, exported: Path, tmp_path: Path, change) -> None:
    repo = double.repos["model", REPO] = Repo("model", REPO, False, None)
    repo.commit("main", {"pytorch_model.bin": File(b"old", True)}, "first")
    commit = repo.commit

    def other(branch: str, files: dict[str, File], message: str) -> str:
        changed = {"other": {"config.json": File(b"{}", False)}, "kept": {"pytorch_model.bin": File(b"old", True)}}
        files = files | changed.get(change, {})
        return commit(branch, {p: file for p, file in files.items() if (change, p) != ("missing", "config.json")}, "x")

    repo.commit = other  # type: ignore[method-assign]
    named = "pytorch_model.bin" if change == "kept" else "config.json"
    with pytest.raises(hub_upload.PublishError, match=f"has other files than were sent, such as {named}"):
        hub_upload.publish(exported, REPO, overwrite=True, api=double.api())


def test_a_commit_of_somebody_else_right_after_ours_is_no_error(double: HubDouble, exported: Path) -> None:
    repo = double.repos["model", REPO] = Repo("model", REPO, False, None)
    repo.commit("main", {}, "first")

    def lie(method: str, path: str) -> None:
        if method == "GET" and "/revision/main" in path and "config.json" in repo.files():
            repo.commit("main", repo.files() | {"theirs.txt": File(b"theirs", False)}, "theirs")

    double.lie = lie
    assert hub_upload.publish(exported, REPO, api=double.api()) == f"{double.url}/{REPO}"
    assert {"theirs.txt", "config.json"} <= set(repo.files())


def copied(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "model.safetensors", "results.json", "training.json"])
def test_a_link_out_of_the_folder_of_a_model_is_not_published(
    at_double: HubDouble, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model, private = copied(checkpoint, tmp_path / "model"), tmp_path / "private"
    private.write_bytes((model / name).read_bytes() if (model / name).exists() else b"{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(private)
    assert command(str(model), "--repo", REPO, "--yes", "--output", str(tmp_path / "out")) == 1
    complaint = capsys.readouterr().err
    assert f"{model / name} is a link to {private}" in complaint and len(complaint.splitlines()) == 1
    assert not at_double.repos and not (tmp_path / "out").exists()
    with pytest.raises(hub.ExportError, match="is a link to"):
        hub.export(checkpoint, tmp_path / "out", processor=model)
    with pytest.raises(hub_upload.PublishError, match="is a link to"):
        hub_upload.publish(model, REPO, api=at_double.api())
    # a link inside the folder leads nowhere else
    (model / name).unlink()
    private.rename(model / ".inner")
    (model / name).symlink_to(".inner")
    hub_upload.plan_upload(model, REPO, api=at_double.api())


def test_a_link_to_a_private_folder_is_not_published(double: HubDouble, exported: Path, tmp_path: Path) -> None:
    model, private = copied(exported, tmp_path / "model"), tmp_path / "keys"
    private.mkdir()
    (private / "id").write_text("secret")
    (model / "more").symlink_to(private)
    with pytest.raises(hub_upload.PublishError, match=r"more is a link to .*keys, outside of the folder"):
        hub_upload.publish(model, REPO, api=double.api())
    assert not double.repos
    (model / "README.md").write_text("---\nsdk: gradio\n---\n")
    publication = hub_publish.Publication("bundled-qa", REPO, space="acme/demo", space_folder=model)
    with pytest.raises(hub_upload.PublishError, match="more is a link to"):
        hub_publish.plan_publication(publication, tmp_path, double.api())


def test_links_of_the_cache_are_followed_to_its_own_blobs_only(
    double: HubDouble, checkpoint: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models--acme--alpro"
    snapshot = copied(checkpoint, root / "snapshots" / OID)
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(root / "blobs" / str(number))
        path.symlink_to(root / "blobs" / str(number))
    hub.export(snapshot, tmp_path / "out")
    other = tmp_path / "models--acme--private" / "blobs"
    other.mkdir(parents=True)
    (root / "blobs" / "0").rename(other / "0")
    first = min(snapshot.iterdir())
    first.unlink()
    first.symlink_to(other / "0")
    with pytest.raises(hub.ExportError, match="is a link to"):
        hub.export(snapshot, tmp_path / "again")


@pytest.mark.parametrize("names", [{"a": "../../private"}, {"a": "/etc/passwd"}, {"a": 7}, [], None])
def test_an_index_of_weights_names_files_of_its_folder_only(checkpoint: Path, tmp_path: Path, names: Any) -> None:
    model = copied(checkpoint, tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(hub.ExportError, match="weight_map must name files of this folder"):
        hub.export(model, tmp_path / "out")


@pytest.mark.slow
def test_an_interrupted_upload_goes_on(double: HubDouble, checkpoint: Path, tmp_path: Path) -> None:
    """The client is killed while its second large file is on the way; the first is not sent again."""
    sharded = tmp_path / "sharded"
    AlproForVideoQuestionAnswering.from_pretrained(checkpoint).save_pretrained(sharded, max_shard_size="30KB")
    out = hub.export(sharded, tmp_path / "out", processor=checkpoint, name=REPO)
    shards = len(list(out.glob("*.safetensors")))
    stuck, release = threading.Event(), threading.Event()

    def hold(count: int) -> None:
        if count > 1:
            stuck.set()
            release.wait(60)
            raise ConnectionAbortedError

    double.on_upload = hold
    client = multiprocessing.get_context("fork").Process(
        target=hub_upload.publish, args=(out, REPO), kwargs={"api": double.api()}
    )
    client.start()
    assert stuck.wait(120)
    deadline = time.monotonic() + 60
    while not double.blobs and time.monotonic() < deadline:  # the first is being stored meanwhile
        time.sleep(0.01)
    client.kill()
    client.join(30)
    assert client.exitcode == -signal.SIGKILL
    release.set()
    arrived = set(double.blobs)
    repo = double.repos["model", REPO]
    assert len(arrived) == 1
    assert list(repo.files()) == [".gitattributes"]  # nothing half-done is visible

    double.uploads, double.on_upload = 0, lambda count: None
    hub_upload.publish(out, REPO, api=double.api())
    assert double.uploads == shards - 1
    assert {path: file.content for path, file in repo.files().items() if path.endswith(".safetensors")} == {
        path.name: path.read_bytes() for path in out.glob("*.safetensors")
    }
    assert len(repo.commits) == 2


def test_datasets_and_spaces(double: HubDouble, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "clips").mkdir(parents=True)
    (data / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Clips\n")
    (data / "clips" / "0.mp4").write_bytes(b"a clip")
    (data / ".cache").write_text("not for others")
    assert (
        hub_upload.publish(data, "acme/clips", repo_type="dataset", api=double.api())
        == f"{double.url}/datasets/acme/clips"
    )
    assert set(double.repos["dataset", "acme/clips"].files()) == {".gitattributes", "README.md", "clips/0.mp4"}

    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("print('hello')\n")
    with pytest.raises(hub_upload.PublishError, match="which sdk the Space runs on"):
        hub_upload.publish(space, "acme/demo", repo_type="space", api=double.api())
    (space / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n")
    assert hub_upload.publish(space, "acme/demo", repo_type="space", api=double.api()).endswith("/spaces/acme/demo")
    assert double.repos["space", "acme/demo"].sdk == "gradio"


# ------------------------------------------------------------------------------------------------------------- command


def command(*words: str) -> int:
    return main(["publish", *words])


@pytest.fixture
def at_double(double: HubDouble, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    """The client of this process talks to the double."""
    monkeypatch.setattr(hub_publish, "HfApi", lambda: double.api())
    return double


def test_command(
    at_double: HubDouble, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    words = (str(checkpoint), "--repo", REPO, "--license", "apache-2.0")
    assert command(*words, "--dry-run", "--output", str(tmp_path / "kept")) == 0
    shown = capsys.readouterr().out
    assert "which would be created (public)" in shown
    assert "new        model.safetensors" in shown
    assert not at_double.repos
    assert (tmp_path / "kept" / "modeling_alpro.py").is_file()

    assert command(*words, "--metrics", "acme") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{at_double.url}/{REPO}  (")
    spaces = {name for kind, name in at_double.repos if kind == "space"}
    assert spaces == {"acme/video_moment_retrieval", "acme/video_qa", "acme/video_text_retrieval"}
    assert "video_qa.py" in at_double.repos["space", "acme/video_qa"].files()

    assert command(*words) == 0  # nothing changed, nothing asked
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115 (it lives as long as the test)
    assert command(str(checkpoint), "--repo", REPO, "--license", "mit") == 1
    complaint = capsys.readouterr().err
    assert "other versions of 1 files (README.md). Say --yes" in complaint
    assert command(str(checkpoint), "--repo", REPO, "--license", "mit", "--yes") == 0
    assert "license: mit" in at_double.repos["model", REPO].files()["README.md"].content.decode()


def test_command_publishes_the_space(at_double: HubDouble, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\napp_file: app.py\n---\n")
    (tmp_path / "app.py").write_text("print('hello')\n")
    (tmp_path / "requirements.txt").write_bytes((SOURCE.parent / "spaces_demo" / "requirements.txt").read_bytes())
    words = (str(checkpoint), "--repo", REPO, "--space", "acme/demo", "--space-folder", str(tmp_path))
    assert command(*words) == 0
    space = at_double.repos["space", "acme/demo"]
    assert {"app.py", "alpro_hf/hub/publish.py", "alpro_hf/assets/sprites-qa/model.safetensors"} <= set(space.files())
    assert space.variables == {"ALPRO_QA_MODEL": REPO}
    required = space.files()["requirements.txt"].content.decode().splitlines()
    names = {re.split(r"[^\w-]", line)[0] for line in required}
    assert {"gradio", "torch", "transformers", "av"} <= names
    assert "alpro-hf" not in names  # it lies beside, and can be had nowhere else


def test_command_publishes_what_is_on_the_hub_already(at_double: HubDouble, exported: Path, tmp_path: Path) -> None:
    hub_upload.publish(exported, REPO, api=at_double.api())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        assert command(REPO, "--repo", "acme/copy", "--yes") == 0
    original, copied = (at_double.repos["model", name].files() for name in (REPO, "acme/copy"))
    assert {path for path in copied if copied[path] != original.get(path)} == {"README.md"}  # with its own name


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("\n", 1)])
def test_command_asks_before_it_overwrites(
    at_double: HubDouble, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, said: str, code: int
) -> None:
    words = (str(checkpoint), "--repo", REPO, "--license")
    assert command(*words, "apache-2.0") == 0
    terminal = StringIO(said)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", terminal)
    assert command(*words, "mit") == code
    assert "other versions of 1 files (README.md). Replace them? [y/N]" in capsys.readouterr().err
    card = at_double.repos["model", REPO].files()["README.md"].content.decode()
    assert ("license: mit" in card) == (code == 0)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (402, "needs a paid plan"),
        (409, "was changed by somebody else at the same time"),
        (429, "asks for a pause"),
        (500, "in trouble .status 500.*repeat later, and the upload continues where it stopped"),
        (418, "refuses acme/alpro-sprites .status 418; the Hub says: no tea"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(double: HubDouble, exported: Path, status: int, sentence: str) -> None:
    def refuse() -> None:
        raise RefusedError(status, "no tea")

    double.before_commit = refuse
    with pytest.raises(hub_upload.PublishError, match=sentence) as caught:
        hub_upload.publish(exported, REPO, api=double.api())
    assert "\n" not in str(caught.value)
    assert list(double.repos["model", REPO].files()) == [".gitattributes"]


def test_offline_is_one_sentence(double: HubDouble, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub_upload.PublishError, match="HF_HUB_OFFLINE is set; unset it and repeat"):
        hub_upload.publish(exported, REPO, api=double.api())


@pytest.mark.parametrize("reason", ["unreachable", "offline"])
def test_a_dry_run_needs_no_network(
    at_double: HubDouble,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    if reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        at_double.server.shutdown()
        at_double.server.server_close()
    assert command("bundled", "--repo", REPO, "--dry-run", "--output", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert f"model {REPO} was not compared: the Hub cannot be reached" in out
    listed = {line.split(" MB  ")[1] for line in out.splitlines() if " MB  " in line}
    assert listed == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "README.md", "metrics.json"} <= listed
    assert command("bundled", "--repo", REPO) == 1  # without --dry-run, the Hub is needed
    plan = hub_upload.plan_upload(tmp_path / "out", REPO, unreachable_ok=True, api=at_double.api())
    with pytest.raises(hub_upload.PublishError, match="was not compared with the Hub"):
        hub_upload.upload(plan, api=at_double.api())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("bundled-qa", "--repo", REPO, "--metrics", "acme/metrics"), "write NAMESPACE/NAME"),
        (("no-such-folder", "--repo", REPO), "There is no folder no-such-folder here, and no such model on"),
        (("bundled-qa", "--repo", "sprites"), "write NAMESPACE/NAME"),
        (("bundled-qa", "--repo", REPO, "--space", "demo"), "write NAMESPACE/NAME"),
        (("bundled-qa", "--repo", REPO, "--results", "missing.json"), r"missing\.json"),
    ],
)
def test_command_complains_in_one_line(
    at_double: HubDouble, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "README.md").write_text("---\nsdk: gradio\n---\n")
    extra = ("--space-folder", str(tmp_path)) if "--space" in words else ()
    assert command(*words, *extra) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert sentence.replace("\\", "") in lines[0]
    assert not at_double.repos


# ------------------------------------------------------------------------------------------------- the whole way round


@pytest.mark.slow
def test_trainer_push_to_hub_then_load_by_name(
    double: HubDouble, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short training pushes itself; what it pushed, and its export with code and card, load by their name."""
    monkeypatch.setattr(constants, "ENDPOINT", double.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{double.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    trained = tmp_path / "trained"
    arguments = AlproTrainingArguments(
        output_dir=str(trained),
        max_steps=2,
        per_device_train_batch_size=3,
        use_cpu=True,
        push_to_hub=True,
        hub_model_id="acme/trained",
        save_strategy="no",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    trainer = AlproTrainer(
        model=AlproForVideoTextRetrieval(colours.config()),
        args=arguments,
        data_collator=AlproCollator(colours.processor()),
        processing_class=colours.processor(),
        train_dataset=colours.retrieval_rows(),
    )
    trainer.train()
    trainer.save_state()
    trainer.push_to_hub()
    repo = double.repos["model", "acme/trained"]
    pushed = repo.branches["main"]
    assert {"training_args.bin", "model.safetensors", "processor_config.json"} <= set(repo.files())
    export = hub.export(trained, tmp_path / "export", name="acme/trained")
    assert hub_upload.publish(export, "acme/trained", overwrite=True) == f"{double.url}/acme/trained"
    files = repo.files()
    assert {"training_args.bin", "modeling_alpro.py"} <= set(files)
    card = files["README.md"].content.decode()
    assert "2 steps, " in card
    assert "| `learning_rate` | 5e-05 |" in card

    texts = ["red and blue", "how many colours ?"]
    with torch.no_grad():
        inputs = AlproProcessor.from_pretrained(trained)(text=texts, videos=[str(clip)] * 2)
        expected = AlproForVideoTextRetrieval.from_pretrained(trained).eval()(**inputs)
        for revision in (pushed, "main"):
            places = {"cache_dir": tmp_path / "cache", "revision": revision}
            processor = AutoProcessor.from_pretrained("acme/trained", **places)
            model = AlproForVideoTextRetrieval.from_pretrained("acme/trained", **places).eval()
            found = model(**processor(text=texts, videos=[str(clip)] * 2))
            assert torch.equal(found.vtm_logits, expected.vtm_logits)
    assert double.count("GET", "^/acme/trained/resolve/") > 0
