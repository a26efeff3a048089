"""BLIP for image-text retrieval through `alpro convert`: the vectors of BLIP, a whole folder, and honest words."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from fixtures.hub_double import LARGE, File, HubDouble, Repo
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor

from alpro_hf.cli.main import main
from alpro_hf.hub.card import TrainingFacts
from alpro_hf.hub.convert import convert
from alpro_hf.model.modeling_alpro import AlproForVideoTextRetrieval, AlproModel
from alpro_hf.model.processing_alpro import AlproProcessor

TEXT = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
TEXT |= {"num_attention_heads": 4, "max_position_embeddings": 40}
VISION = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", *(f"w{i}" for i in range(50))]
SENTENCES = ["A dog runs", "w1 w2 w3 w4 " * 20]


def build_blip(**vision):
    """Every tensor is random: zero biases and norms of one would hide mistakes."""
    torch.manual_seed(1)
    blip = BlipForImageTextRetrieval(
        BlipConfig(text_config=TEXT, vision_config=VISION | vision, image_text_hidden_size=12)
    )
    with torch.no_grad():
        for name, parameter in blip.named_parameters():
            parameter.normal_(mean=float(parameter.ndim == 1 and name.endswith("weight")), std=0.2)
    return blip.eval()


def save_blip(blip, folder, binary=False):
    """As on the Hub: vocabulary without the two words that BLIP adds, settings of images, weights in one format."""
    blip.save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=512).save_pretrained(folder)
    if binary:
        state = load_file(folder / "model.safetensors")
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def command(*arguments):
    return main(["convert", *map(str, arguments)])


@torch.no_grad()
def check_cosines(blip, folder, model_class=AlproModel):
    """The folder compares texts and a clip of one frame as BLIP does, from words and pixels on."""
    model, processor = model_class.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = processor(text=SENTENCES)
    assert texts["input_ids"].shape == (2, 35)
    assert texts["input_ids"][0, :5].tolist() == [2, 5, 6, 7, 3]
    found = model(**texts, pixel_values_videos=pixels)
    expected = blip(**texts, pixel_values=pixels[:, 0], use_itm_head=False).itm_score
    torch.testing.assert_close(found.video_embeds @ found.text_embeds.T, expected, atol=2e-6, rtol=0)
    assert expected.std() > 0.02
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin", "file"])
def test_a_converted_blip_has_its_cosines_and_a_whole_folder(tmp_path, capsys, kind):
    blip = build_blip()
    folder = save_blip(blip, tmp_path / "blip", binary=kind != "safetensors")
    source = folder / "pytorch_model.bin" if kind == "file" else folder
    assert command(source, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "BLIP's weights in ALPRO's model, licence BSD-3-Clause" in said and "not measured" in said
    model = check_cosines(blip, tmp_path / "out")
    assert model.config.architectures == ["AlproModel"]
    assert model.config.video_config.cls_per_frame
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["layout"], record["task"], record["matching_head"]) == ("blip", "retrieval", False)
    ours, theirs = AlproProcessor.from_pretrained(tmp_path / "out"), AlproProcessor.from_image_text_pretrained(folder)
    for name in ("size", "resample", "image_mean", "image_std", "rescale_factor", "num_frames", "frame_sampling"):
        assert getattr(ours.video_processor, name) == getattr(theirs.video_processor, name)
    assert ours(text=SENTENCES)["input_ids"].tolist() == theirs(text=SENTENCES)["input_ids"].tolist()

    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "bsd-3-clause"
    assert "not measured" in card.text and "BLIP" in card.text and str(tmp_path) not in card.text
    assert TrainingFacts.read(tmp_path / "out" / "training.json").license == "bsd-3-clause"


@pytest.mark.slow
def test_a_hub_id(tmp_path):
    """The command in a process of its own, which asks a Hub on this machine."""
    blip = build_blip()
    folder = save_blip(blip, tmp_path / "blip")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "other.safetensors").write_bytes(b"not for us")
    with HubDouble() as hub:
        repo = hub.repos["model", "acme/blip-itm"] = Repo("model", "acme/blip-itm", private=False, sdk=None)
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        contents = {name: File(path.read_bytes(), name.endswith(LARGE)) for name, path in files.items()}
        repo.commit("main", contents, "upload")
        hub.blobs |= {file.sha256: file.content for file in contents.values()}
        done = subprocess.run(
            [sys.executable, "-m", "alpro_hf", "convert", "acme/blip-itm", "--output", "out"],
            env=os.environ | hub.environment(tmp_path / "home"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    check_cosines(blip, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "acme/blip-itm" and "acme/blip-itm" in card.text
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["source"] == "acme/blip-itm"


def test_the_defaults_are_those_of_blip(tmp_path):
    """Without settings of images in the folder."""
    folder = save_blip(build_blip(image_size=384, patch_size=128), tmp_path / "blip")
    (folder / "preprocessor_config.json").unlink()
    convert(folder, None, tmp_path / "out")
    found = AlproProcessor.from_pretrained(tmp_path / "out").video_processor
    assert (found.size["height"], found.size["width"], int(found.resample)) == (384, 384, 3)
    assert [round(value, 4) for value in found.image_mean] == [0.4815, 0.4578, 0.4082]
    assert [round(value, 4) for value in found.image_std] == [0.2686, 0.2613, 0.2758]


def test_the_bundled_vocabulary_serves_a_blip_of_30524_words(tmp_path, monkeypatch):
    monkeypatch.setitem(TEXT, "vocab_size", 30524)
    folder = save_blip(build_blip(), tmp_path / "blip")
    for path in folder.glob("*vocab*"):
        path.unlink()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    convert(folder, None, tmp_path / "out")
    ids = AutoProcessor.from_pretrained(tmp_path / "out")(text=["A dog runs into the sea"])["input_ids"].tolist()
    assert ids == [[101, 1037, 3899, 3216, 2046, 1996, 2712, 102]]


def test_fusion_layers_are_appended_for_fine_tuning(tmp_path):
    blip = build_blip()
    folder = save_blip(blip, tmp_path / "blip")
    assert command(folder, "--output", tmp_path / "out", "--fusion-layers", 2) == 0
    model = check_cosines(blip, tmp_path / "out", AlproForVideoTextRetrieval)
    assert (model.config.text_config.fusion_layer, model.config.text_config.num_hidden_layers) == (4, 6)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["matching_head"] is False
    layers = model.alpro.text_model.layers
    for ours, theirs in zip(layers[4:], layers[2:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_two_widths_convert_where_nothing_is_fused(tmp_path, capsys):
    blip = build_blip(hidden_size=48, num_attention_heads=3)
    folder = save_blip(blip, tmp_path / "blip")
    assert command(folder, "--output", tmp_path / "out") == 0
    model = check_cosines(blip, tmp_path / "out")
    assert (model.config.text_config.hidden_size, model.config.video_config.hidden_size) == (32, 48)
    capsys.readouterr()
    assert command(folder, "--output", tmp_path / "other", "--fusion-layers", 2) == 1
    assert "needs towers of one width" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def change_config(folder, part, **values):
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))


def change_state(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def without(*parts):
    def change(state):
        for name in [name for name in state if any(part in name for part in parts)]:
            del state[name]

    return lambda folder: change_state(folder, change)


BROKEN = {
    "a tensor": (without("layer.2.output.dense.bias"), "1 tensors are missing: text_encoder.encoder.layer.2"),
    "projection": (without("vision_proj"), "tensors are missing: vision_proj.weight"),
    "many tensors": (without("encoder.layers.1.", "encoder.layer.3."), "config.json of .* says .*num_hidden_layers"),
    "norms": (without("norm", "Norm"), r"tensors are missing: .*, and \d+ more"),
    "another": (lambda f: change_state(f, lambda s: s.update(extra=torch.zeros(1))), "1 tensors are unknown: extra"),
    "no config": (lambda f: (f / "config.json").unlink(), "without its config.json"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
    "deep json": (lambda f: (f / "config.json").write_text("[" * 200_000), "is not valid JSON"),
    "other json": (lambda f: (f / "config.json").write_text("[1]"), "does not describe a BLIP model"),
    "other type": (lambda f: change_config(f, "", model_type="clip"), "a model of type 'clip'"),
    "width": (
        lambda f: change_config(f, "text_config", hidden_size=64),
        "text_config.hidden_size=64, but .* shows 32",
    ),
    "depth": (lambda f: change_config(f, "vision_config", num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
    "heads": (lambda f: change_config(f, "text_config", num_attention_heads=0), "num_attention_heads=0"),
    "activation": (lambda f: change_config(f, "text_config", hidden_act="evil"), "hidden_act='evil'"),
    "pixels": (lambda f: change_config(f, "vision_config", image_size=64), "image_size=64, which are 8 x 8 patches"),
    "part": (lambda f: change_config(f, "", vision_config=3), "does not describe a BLIP model"),
    "words": (lambda f: [p.unlink() for p in f.glob("*toke*")], "--vocab"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_whole_is_one_sentence(tmp_path, capsys, case):
    folder = save_blip(build_blip(), tmp_path / "blip")
    breaks, said = BROKEN[case]
    breaks(folder)
    assert command(folder, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("alpro convert: ")]
    assert len(lines) == 1 and len(lines[0]) < 1500
    assert re.search(said, lines[0]), lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in model"])
def test_a_file_of_the_authors_is_told_by_its_layout_and_names_the_copy_on_the_hub(tmp_path, capsys, wrapped):
    """As in `model_base_retrieval_coco.pth`, which has no config.json beside it."""
    state = build_blip().state_dict()
    parts = {"vision_model.encoder.layers.": "visual_encoder.blocks.", "vision_model.": "visual_encoder."}
    for ours, theirs in parts.items():
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    torch.save({"model": state, "epoch": 5} if wrapped else state, tmp_path / "model_base_retrieval_coco.pth")
    assert command(tmp_path / "model_base_retrieval_coco.pth", "--output", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "the layout of its authors' own code (visual_encoder.blocks.0." in said
    assert "Salesforce/blip-itm-base-coco" in said and not (tmp_path / "out").exists()


def test_fewer_words_than_the_model_embeds_are_fine_in_its_own_folder(tmp_path, capsys):
    blip = build_blip()
    folder = save_blip(blip, tmp_path / "blip")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS[:20])}).save_pretrained(folder)
    assert command(folder, "--output", tmp_path / "out") == 0
    check_cosines(blip, tmp_path / "out")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:20]))
    assert command(folder, "--output", tmp_path / "other", "--vocab", tmp_path / "vocab.txt") == 1
    assert "it belongs to another model" in capsys.readouterr().err and not (tmp_path / "other").exists()
    words = {word: i for i, word in enumerate([*WORDS, "one", "two", "three"])}
    BertTokenizer(vocab=words).save_pretrained(folder)
    assert command(folder, "--output", tmp_path / "other") == 1
    assert "has 61 entries, but the model embeds 60 words" in capsys.readouterr().err


def test_options_of_the_one_are_refused_for_the_other(tmp_path, capsys):
    folder = save_blip(build_blip(), tmp_path / "blip")
    for option in (("--task", "retrieval"), ("--fusion-layer", 2), ("--num-attention-heads", 4), ("--answers", "a")):
        assert command(folder, "--output", tmp_path / "out", *option) == 1
        assert f"{option[0]} means nothing" in capsys.readouterr().err


def test_the_code_of_a_stranger_is_not_asked_for(tmp_path, monkeypatch):
    folder = save_blip(build_blip(), tmp_path / "blip")
    change_config(folder, "", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {"AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        (folder / name).write_text(json.dumps(content))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    convert(folder, None, tmp_path / "out")
    assert not (tmp_path / "canary").exists()
