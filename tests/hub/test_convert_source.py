"""What `alpro convert` takes, what it tells from it, and the whole folder that it writes."""

import hashlib
import json
import re
import time

import pytest
import torch
from fixtures.golden import cases
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoProcessor, BlipConfig, BlipForImageTextRetrieval

from alpro_hf.cli.main import main
from alpro_hf.hub.checkpoint_layout import recognise
from alpro_hf.hub.convert import convert, convert_original_checkpoint
from alpro_hf.model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.model.unimodal_alpro import CheckpointError

ARCHITECTURE = cases.architecture("tiny")
SIZES = ("--num-attention-heads", "4", "--fusion-layer", "2")
TASKS = ["pretrain", "prompter", "retrieval", "qa"]
EMBEDDINGS = "text_encoder.bert.embeddings.word_embeddings.weight"


def tiny(task="retrieval"):
    return dict(cases.state_dict("tiny", task))


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    """A vocabulary of the tiny checkpoints."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(123))]) + "\n"
    )
    return path


@pytest.fixture
def command(vocab):
    def run(*arguments):
        return main(["convert", *map(str, arguments), *SIZES, "--vocab", str(vocab)])

    return run


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(tiny(), tmp_path / "some.pt")
    return tmp_path / "some.pt"


def blip_names():
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        return list(BlipForImageTextRetrieval(BlipConfig(text_config=small, vision_config=small)).state_dict())


@pytest.mark.parametrize("task", TASKS)
def test_layout_and_task_are_told_from_the_names(task):
    assert recognise(tiny(task)) == ("original", task)
    assert recognise([name for name in tiny(task) if not name.startswith("visual_encoder.")]) is None


def test_blip_is_told_and_others_are_not():
    assert recognise(blip_names()) == ("blip", None)
    theirs = ["visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.encoder.layer.0.crossattention.self.key.weight"]
    assert recognise(theirs) == ("blip", None)
    assert (
        recognise(["vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"]) is None
    )
    assert recognise([]) is None


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_task_need_not_be_given(tmp_path, capsys, task, command):
    torch.save(tiny(task), tmp_path / "some.pt")
    assert command(tmp_path / "some.pt", "--output", tmp_path / "out") == 0
    content = (tmp_path / "some.pt").read_bytes()
    facts = {"name": "some.pt", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["files"] == [facts]
    assert (record["task"], record["layout"], record["source"]) == (task, "original", str(tmp_path / "some.pt"))
    out = capsys.readouterr().out
    assert f"{len(content):,} bytes, sha256 {facts['sha256']}" in out
    assert f"a {task} checkpoint" in out


@pytest.mark.parametrize(("task", "wrong"), [("retrieval", "pretrain"), ("pretrain", "retrieval"), ("qa", "prompter")])
def test_a_wrong_task_is_one_short_sentence(tmp_path, capsys, task, wrong, command):
    torch.save(tiny(task), tmp_path / "some.pt")
    assert command(tmp_path / "some.pt", "--task", wrong, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert f"is a {task} checkpoint in the layout of the original code, not of {wrong}" in error
    assert len(error) < 400
    assert not (tmp_path / "out").exists()


def test_something_else_is_one_sentence(tmp_path, capsys, command):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "some.pt")
    assert command(tmp_path / "some.pt", "--output", tmp_path / "out") == 1
    assert "is not an ALPRO checkpoint" in capsys.readouterr().err


NO_WEIGHTS = {
    "a web page": (lambda good: b"<!DOCTYPE html><html>sign in</html>", "is a web page"),
    "a pointer": (
        lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "is a pointer of Git LFS",
    ),
    "a half": (lambda good: good[: len(good) // 2], "is damaged or incomplete"),
    "nothing": (lambda good: b"", "is damaged or incomplete|is not a file written by torch.save"),
}


@pytest.mark.parametrize("name", ["some.pt", "model.safetensors"])
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_lies_in_the_place_of_weights_is_told_and_the_file_is_named(tmp_path, capsys, name, case, command):
    save_file({name: tensor.contiguous() for name, tensor in tiny().items()}, tmp_path / "model.safetensors")
    torch.save(tiny(), tmp_path / "some.pt")
    change, said = NO_WEIGHTS[case]
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    assert command(path, "--output", tmp_path / "out") == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alpro convert: ")]
    assert re.search(f"{re.escape(str(path))} ({said})", line) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["a.pt", "--checkpoint", "b.pt"], ["a.pt", "--sha256", "12"]])
def test_wrong_usage(arguments, tmp_path, command):
    with pytest.raises(SystemExit) as caught:
        command(*arguments, "--output", tmp_path / "out")
    assert caught.value.code == 2


# --- the layout of LAVIS --------------------------------------------------------------------------------------------

CONTRASTIVE = ("temp", "text_proj.", "vision_proj.")


def lavis(task):
    """A checkpoint as LAVIS saves it: no language model around BERT; question answering has its own parts alone."""
    left_out = ("text_encoder.cls.", *((*CONTRASTIVE, "itm_head.") if task == "qa" else ()))
    return {
        name.replace("text_encoder.bert.", "text_encoder."): tensor
        for name, tensor in tiny(task).items()
        if not name.startswith(left_out)
    }


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("wrapper", [None, "model"])
@pytest.mark.parametrize("task", ["retrieval", "qa"])
def test_a_checkpoint_of_lavis_computes_the_same(tmp_path, capsys, caplog, task, wrapper, command):
    assert recognise(lavis(task)) == ("lavis", task)
    torch.save(lavis(task) if wrapper is None else {wrapper: lavis(task)}, tmp_path / "lavis.pth")
    with caplog.at_level("WARNING"):
        assert command(tmp_path / "lavis.pth", "--output", tmp_path / "out") == 0
    assert "in the layout 'lavis'" in capsys.readouterr().out
    assert ("frozen" in caplog.text) == (task == "qa")
    golden = cases.tensors("tiny", task)
    if task == "qa":
        model = AlproForVideoQuestionAnswering.from_pretrained(tmp_path / "out")
        inputs = [golden[f"in.{name}"] for name in ("text_input_ids", "text_input_mask", "visual_inputs")]
        found, expected = model(*inputs).logits, golden["out.logits"]
        new = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert new == {
            "alpro.temperature",
            *(f"alpro.{side}_projection.{kind}" for side in ("text", "video") for kind in ("weight", "bias")),
        }
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    else:
        model = AlproForVideoTextRetrieval.from_pretrained(tmp_path / "out")
        inputs = golden["in.caption_ids"], golden["in.caption_mask"], golden["in.visual_inputs"][:1]
        found, expected = model(*inputs).vtm_logits, golden["out.inference_itm_logits"]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_contrastive_parts_are_absent_together_or_not_at_all():
    state = lavis("qa")
    one, two = (convert_original_checkpoint(state, "qa", **ARCHITECTURE).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    state["vision_proj.weight"] = tiny("qa")["vision_proj.weight"]
    with pytest.raises(CheckpointError, match=r"text_proj\.weight"):
        convert_original_checkpoint(state, "qa", **ARCHITECTURE)
    state = {name: tensor for name, tensor in lavis("retrieval").items() if not name.startswith(CONTRASTIVE)}
    with pytest.raises(CheckpointError, match=r"text_proj\.weight"):
        convert_original_checkpoint(state, "retrieval", **ARCHITECTURE)


# --- files, folders and the Hub -------------------------------------------------------------------------------------


def test_safetensors_whole_and_in_parts(tmp_path, vocab):
    state = {name: tensor.contiguous().clone() for name, tensor in tiny().items()}
    (tmp_path / "one").mkdir()
    save_file(state, tmp_path / "one" / "model.safetensors")
    (tmp_path / "two").mkdir()
    names = sorted(state)
    for part, some in enumerate((names[::2], names[1::2]), 1):
        path = tmp_path / "two" / f"model-{part:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in some}, path)
    one = convert(tmp_path / "one", None, tmp_path / "out1", vocab=vocab, **ARCHITECTURE).state_dict()
    two = convert(tmp_path / "two", None, tmp_path / "out2", vocab=vocab, **ARCHITECTURE).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    path.unlink()
    with pytest.raises(CheckpointError, match="1 of the 2 parts"):
        convert(tmp_path / "two", None, tmp_path / "out3", vocab=vocab, **ARCHITECTURE)


def test_a_folder_must_hold_one_checkpoint(tmp_path, checkpoint, vocab):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        convert(tmp_path / "empty", None, tmp_path / "out")
    (tmp_path / "other.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"several checkpoints: other\.pt, some\.pt"):
        convert(tmp_path, None, tmp_path / "out")
    convert(checkpoint, None, tmp_path / "model", vocab=vocab, **ARCHITECTURE)
    with pytest.raises(CheckpointError, match="is an ALPRO model folder already"):
        convert(tmp_path / "model", None, tmp_path / "out")


def test_a_hub_that_cannot_be_reached_is_one_sentence_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"acme/none does not exist here, and the Hub cannot be reached"):
        convert("acme/none", None, tmp_path / "out")
    assert time.monotonic() - start < 5


def test_a_hub_that_may_not_be_asked_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"acme/none cannot be downloaded, because HF_HUB_OFFLINE"):
        convert("acme/none", None, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        convert("acme/absent.pt", None, tmp_path / "out")


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundled_vocabulary_makes_the_folder_whole(tmp_path):
    state = tiny()
    state[EMBEDDINGS] = torch.randn(30522, state[EMBEDDINGS].shape[1])
    torch.save(state, tmp_path / "some.pt")
    convert(tmp_path / "some.pt", None, tmp_path / "out", **ARCHITECTURE)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    ids = processor(text=["A dog runs into the sea"])["input_ids"].tolist()
    assert ids == [[101, 1037, 3899, 3216, 2046, 1996, 2712, 102]]
    assert AlproForVideoTextRetrieval.from_pretrained(tmp_path / "out").config.text_config.vocab_size == 30522


@pytest.mark.slow
def test_a_model_folder_is_replaced_only_when_asked_and_as_a_whole(tmp_path, checkpoint, capsys, command):
    out = tmp_path / "out"
    assert command(checkpoint, "--output", out) == 0
    (out / "stale.json").write_text("{}")
    before = sorted(out.iterdir())
    assert command(checkpoint, "--output", out) == 1
    assert "Pass --overwrite" in capsys.readouterr().err
    assert command(checkpoint, "--output", out, "--overwrite", "--sha256", "0" * 64) == 1
    assert "The sha256 is not 0000" in capsys.readouterr().err
    assert sorted(out.iterdir()) == before
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert command(checkpoint, "--output", out, "--overwrite", "--sha256", digest.upper()) == 0
    assert set(before) - set(out.iterdir()) == {out / "stale.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", "some.pt"}  # nothing temporary stays


def test_a_folder_with_other_files_is_never_replaced(tmp_path, checkpoint, capsys, command):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert command(checkpoint, "--output", tmp_path / "mine", "--overwrite") == 1
    assert "is not replaced" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "mine" / "config.json").write_text("{}")
    inner = checkpoint.rename(tmp_path / "mine" / "some.pt")
    assert command(inner, "--output", tmp_path / "mine", "--overwrite") == 1
    assert "would be replaced" in capsys.readouterr().err
    assert inner.exists()
