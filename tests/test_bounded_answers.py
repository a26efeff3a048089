"""Answers of a Hub server without an end, too large or too slow: a real server, and the real client."""

import gzip
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.gallery import write_model
from fixtures.hub_double import TOKEN, File, HubDouble, Repo
from huggingface_hub import HfApi, constants, get_session
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from alpro_hf import bounded_answers as bounds
from alpro_hf.hub.errors import PublishError
from alpro_hf.hub.onnx import load_for_onnx
from alpro_hf.hub.upload import plan_upload, publish
from alpro_hf.loading import (
    CommandError,
    ModelNotFoundError,
    download_model,
    download_settings,
    find_model,
    load_model,
)
from alpro_hf.model.configuration_alpro import AlproConfig
from alpro_hf.model.processing_alpro import AlproProcessor
from alpro_hf.training.recipe import AlproRecipe
from alpro_hf.training.start import own_sizes, start_model, start_processor

REPO = "acme/alpro"
PIECE = b" " * (1 << 16)
LIMIT = 1 << 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    with HubDouble() as double:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        template = f"{double.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield double


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller bounds, so that a test ends sooner."""
    monkeypatch.setattr(bounds.bounded_answers.__wrapped__, "__defaults__", (LIMIT, 20, 0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to publish, with two large files, which the client sends in threads of their own."""
    (tmp_path / "out").mkdir()
    for name in ("config.json", "a.safetensors", "b.safetensors"):
        (tmp_path / "out" / name).write_bytes(name.encode())
    return tmp_path / "out"


def lying(place: str, answer: Callable[[], tuple[int, dict[str, str], Any]], sent: list[int] | None = None) -> Any:
    """A lie about requests whose path is like `place`; the bytes of endless ones are counted."""

    def lie(method: str, path: str) -> Any:
        if method == "HEAD" or not re.search(place, path):
            return None
        status, headers, content = answer()
        if isinstance(content, Iterator) and sent is not None:
            content = (sent.append(len(piece)) or piece for piece in content)
        return status, headers, content

    return lie


def endless() -> tuple[int, dict[str, str], Any]:
    return 200, {}, itertools.repeat(PIECE)


PLACES = ["/revision/", "/tree/", "/repos/create", "/preupload/", "/objects/batch", "/large/[0-9a-f]+$", "/verify"]


@pytest.mark.parametrize("place", [*PLACES, "/commit/"])
@pytest.mark.parametrize("status", [200, 404])
def test_publishing_to_a_server_that_does_not_end(hub, small, folder, place, status) -> None:
    if place in ("/revision/", "/tree/"):
        publish(folder, REPO, api=hub.api())
    sent: list[int] = []
    hub.lie = lying(place, lambda: (status, {}, itertools.repeat(PIECE)), sent)
    with pytest.raises(PublishError, match=r"does not answer as the Hub does .* sends more than 1,048,576 bytes"):
        publish(folder, REPO, api=hub.api())
    assert LIMIT < sum(sent) < 60 * LIMIT  # two files at once; the rest is in the buffers of the system


def test_the_bound_of_one_answer(hub, folder) -> None:
    sent: list[int] = []
    hub.lie = lying("/revision/", endless, sent)
    with pytest.raises(PublishError, match="sends more than 67,108,864 bytes"):
        plan_upload(folder, REPO, api=hub.api())
    assert bounds.ANSWER_BYTES < sum(sent) < 2 * bounds.ANSWER_BYTES


ZEROS = gzip.compress(bytes(64 << 20))
LIES = {
    "announced": ((200, {"Content-Length": str(10**12)}, b""), "sends more than 1,048,576 bytes"),
    "gzip": ((200, {"Content-Encoding": "gzip"}, ZEROS), "sends more than 1,048,576 bytes"),
    "no gzip": ((200, {"Content-Encoding": "gzip"}, b"{}"), "in damaged gzip"),
    "brotli": ((200, {"Content-Encoding": "br"}, b"{}"), "in the encoding br, unasked"),
    "twice": ((200, {"Content-Encoding": "gzip, gzip"}, gzip.compress(ZEROS)), "in the encoding gzip, gzip, unasked"),
    "wait": ((429, {"Retry-After": "9" * 12}, b"{}"), "asks to wait for 999999999999 seconds"),
    "window": ((429, {"RateLimit": '"api";r=0;t=86400'}, b"{}"), "asks to wait for 86400 seconds"),
}


@pytest.mark.parametrize("name", LIES)
def test_other_answers_without_measure(hub, small, folder, name) -> None:
    answer, said = LIES[name]
    hub.lie = lying("/preupload/", lambda: (*answer[:2], iter([answer[2]])))
    start = time.monotonic()
    with pytest.raises(PublishError, match=said):
        publish(folder, REPO, api=hub.api())
    assert time.monotonic() - start < 60  # and not as long as the server says


def test_packed_answers_are_read(hub, small, folder) -> None:
    hub.lie = lying("/preupload/", lambda: (200, {"Content-Encoding": "gzip"}, gzip.compress(b'{"files": []}')))
    with pytest.raises(PublishError) as refused:  # by the client, which has read that there are no files
        publish(folder, REPO, api=hub.api())
    assert "gzip" not in str(refused.value)


def drop() -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(0.02)


def test_an_answer_drop_by_drop_and_none_at_all(hub, small, folder, monkeypatch) -> None:
    hub.lie = lying("/tree/|/revision/", lambda: (200, {}, drop()))
    with pytest.raises(PublishError, match=r"sent \d+ bytes in 1 seconds and no end"):
        plan_upload(folder, REPO, api=hub.api())
    monkeypatch.setattr(bounds, "SILENCE", 0.3)
    hub.lie = lambda method, path: time.sleep(2)
    with pytest.raises(PublishError, match=r"connection to http.* failed \(timed out\)"):
        plan_upload(folder, REPO, api=hub.api())


def test_a_list_of_files_that_goes_on_and_on(hub, small, folder) -> None:
    publish(folder, REPO, api=hub.api())
    next_page = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main>; rel="next"'}
    hub.lie = lying("/tree/", lambda: (200, next_page, []))
    with pytest.raises(PublishError, match="one call does not need more than 20 answers"):
        plan_upload(folder, REPO, api=hub.api())


def test_a_connection_that_fails_in_between_does_not_lift_the_bounds(hub, small, folder) -> None:
    """The client takes a new session after a failed connection: here to a port where nobody listens."""
    with HubDouble() as gone:
        pass
    answers = iter([(307, {"Location": f"{gone.url}/x"}, b""), endless()])
    hub.lie = lying("/objects/batch", lambda: next(answers))
    with pytest.raises(PublishError, match=r"does not answer as the Hub does .* sends more than"):
        publish(folder, REPO, api=hub.api())


def test_calls_of_the_user_are_not_bounded(hub, small, folder) -> None:
    size, seen, entered, done = 4 * LIMIT, [], threading.Event(), threading.Event()
    hub.lie = lying("/large-page", lambda: (200, {}, b"x" * size))

    def download() -> None:
        entered.wait(20)
        seen.append(len(get_session().get(f"{hub.url}/large-page").content))
        done.set()

    user = threading.Thread(target=download)
    user.start()
    with bounds.bounded_answers():
        entered.set()
        assert done.wait(20)
        with pytest.raises(bounds.UnboundedAnswerError):
            get_session().get(f"{hub.url}/large-page")
    user.join()
    request = get_session().get(f"{hub.url}/large-page")
    assert seen == [size] and len(request.content) == size
    assert "trace" not in request.request.extensions and request.request.headers["accept-encoding"] != "gzip"


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(hub: HubDouble, tmp_path: Path) -> HubDouble:
    model = write_model(tmp_path / "model", "retrieval")
    repo = hub.repos["model", REPO] = Repo("model", REPO, False, None)
    repo.commit("main", {path.name: File(path.read_bytes(), False) for path in model.iterdir()}, "first")
    return hub


def test_a_model_on_the_hub_is_loaded_within_its_bounds(published) -> None:
    model, _ = load_model("retrieval", REPO)
    assert model.config._name_or_path == REPO
    before = len(published.requests)
    load_model("retrieval", REPO)
    asked = {path for _, path in published.requests[before:]}
    assert asked == {f"/api/models/{REPO}"}  # what it holds, and nothing else


def test_answers_about_a_model_do_not_go_on(published, small) -> None:
    published.lie = lying("/api/models/", endless)
    with pytest.raises(ModelNotFoundError, match=r"the Hub does not answer as one \(GET .* sends more than"):
        find_model(REPO)


def test_settings_do_not_go_on(published, monkeypatch) -> None:
    monkeypatch.setattr("alpro_hf.loading._SETTINGS_BYTES", LIMIT)
    published.lie = lying("/resolve/.*/config.json", endless)
    with pytest.raises(CommandError, match=r"settings of acme/alpro .* sends more than 1,048,576 bytes"):
        find_model(REPO)


def test_weights_are_as_large_as_listed(published, monkeypatch) -> None:
    monkeypatch.setattr("alpro_hf.loading._SETTINGS_BYTES", LIMIT)
    find_model(REPO)
    sent: list[int] = []
    published.lie = lying("/resolve/.*/model.safetensors", endless, sent)
    for load in (lambda: load_model("retrieval", REPO), lambda: download_model(REPO)):
        with pytest.raises(
            CommandError, match=r"files of acme/alpro on the Hub cannot be downloaded: GET .* sends more than"
        ):
            load()
    assert sum(sent) < 60 * LIMIT
    published.lie = lying("/resolve/.*/model.safetensors", lambda: (200, {"ETag": '"1"'}, b"x"))
    with pytest.raises((CommandError, OSError), match=r"has 1 bytes|Consistency check failed"):
        load_model("retrieval", REPO)


def test_a_hub_that_hides_the_size_of_weights(published) -> None:
    published.hides_sizes = True
    with pytest.raises(CommandError, match=r"does not say how large model\.safetensors of acme/alpro is"):
        load_model("retrieval", REPO)


def test_the_session_keeps_its_own_hooks_once(hub) -> None:
    for _ in range(3):
        with bounds.bounded_answers():
            pass
    hooks = get_session().event_hooks
    assert hooks["request"].count(bounds._before) == hooks["response"].count(bounds._after) == 1
    assert HfApi(endpoint=hub.url, token=TOKEN).whoami()["name"]


# --- the start of a training ----------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


@pytest.fixture
def towers(published: HubDouble, tmp_path: Path) -> HubDouble:
    """Beside the model, a ViT in safetensors, and a BERT with its tokenizer in an old pickle."""
    image = ViTModel(ViTConfig(**SIZES, num_hidden_layers=3, image_size=16, patch_size=8))
    image.save_pretrained(tmp_path / "vit")
    text = BertModel(BertConfig(**SIZES, num_hidden_layers=3, vocab_size=50, max_position_embeddings=32))
    text.config.save_pretrained(tmp_path / "bert")
    AlproProcessor.from_pretrained(tmp_path / "model").tokenizer.save_pretrained(tmp_path / "bert")
    torch.save(text.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    for name in ("vit", "bert"):
        repo = published.repos["model", f"acme/{name}"] = Repo("model", f"acme/{name}", False, None)
        repo.commit(
            "main", {path.name: File(path.read_bytes(), False) for path in (tmp_path / name).iterdir()}, "first"
        )
    return published


def starts() -> list[Any]:
    """What begins a training from a model, and from towers."""
    recipe = AlproRecipe(num_frames=4, fusion_layers=1, image_size=16)
    vision, text = "acme/vit", "acme/bert"
    from_towers, _ = start_model("retrieval", recipe, vision=vision, text=text)
    return [
        own_sizes(model=REPO),
        own_sizes(vision=vision),
        start_model("retrieval", recipe, model=REPO)[0].config.projection_dim,
        start_processor(recipe, from_towers.config, processor=REPO).tokenizer.model_max_length,
        start_processor(recipe, from_towers.config, text=text).tokenizer.model_max_length,
    ]


def test_a_training_starts_from_the_hub_within_its_bounds(towers, monkeypatch) -> None:
    first = starts()
    assert first[:2] == [{"num_frames": 4, "image_size": 16, "text_length": 32}, {"image_size": 16}]
    before = len(towers.requests)
    assert starts() == first
    asked = {path for _, path in towers.requests[before:]}
    assert asked == {f"/api/models/{name}" for name in (REPO, "acme/vit", "acme/bert")}  # nothing by the library


@pytest.mark.parametrize(
    ("repo", "file"), [(REPO, "config.json"), ("acme/vit", "model.safetensors"), ("acme/bert", "pytorch_model.bin")]
)
def test_a_training_does_not_start_from_a_hub_that_does_not_end(towers, monkeypatch, repo, file) -> None:
    monkeypatch.setattr("alpro_hf.loading._SETTINGS_BYTES", LIMIT)
    sent: list[int] = []
    towers.lie = lying(f"{repo}/resolve/.*/{file}", endless, sent)
    with pytest.raises(CommandError, match=rf"of {repo} .* cannot be downloaded|cannot be downloaded.* sends more"):
        starts()
    assert 0 < sum(sent) < 60 * LIMIT


def test_other_tools_read_settings_within_bounds(published, tmp_path) -> None:
    folder = download_settings(REPO)
    before = len(published.requests)
    assert load_for_onnx(REPO)[0].config.projection_dim == AlproConfig.from_pretrained(folder).projection_dim
    assert {path for _, path in published.requests[before:]} <= {f"/api/models/{REPO}"} | {
        path for _, path in published.requests if path.endswith("model.safetensors")
    }
