"""ONNX graphs give the model's numbers, for any number of clips, frames and words."""

import importlib.util
import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import alpro_hf
from alpro_hf import AlproForVideoTextRetrieval, AlproModel, AlproProcessor
from alpro_hf.sprites.render import write_split

NEEDED = "the graphs need onnx, onnxruntime and onnxscript: pip install 'alpro-hf[onnx]'"
onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDED)
pytest.importorskip("onnxscript", reason=NEEDED)
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "export_onnx.py"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("export_onnx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["export_onnx"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = write_split(tmp_path_factory.mktemp("sprites"), "test", 3, progress=False)
    found = [json.loads(line) for line in (folder / "retrieval.jsonl").read_text().splitlines()]
    return [row | {"video": str(folder / row["video"])} for row in found]


@pytest.fixture(scope="module", params=["retrieval", "qa"])
def exported(request, script, tmp_path_factory) -> tuple[Any, Path]:
    """A bundled model, and the folder that the command made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setattr(sys, "argv", [str(SCRIPT), request.param, str(folder)])
        script.main()
    assert "video_encoder.onnx" in said.getvalue()
    classes = {"retrieval": AlproForVideoTextRetrieval, "qa": alpro_hf.AlproForVideoQuestionAnswering}
    return classes[request.param].from_pretrained(alpro_hf.bundled_model(request.param)), folder


def run(folder: Path, name: str, **inputs: Any) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {key: np.asarray(value) for key, value in inputs.items()}), strict=True))


@torch.inference_mode()
def test_real_clips_and_texts_score_as_with_the_model(exported, gallery) -> None:
    model, folder = exported
    processor = AlproProcessor.from_pretrained(folder)
    inputs = processor(text=[row["text"] for row in gallery], videos=[row["video"] for row in gallery])
    video = run(folder, "video_encoder", pixel_values_videos=inputs["pixel_values_videos"])
    text = run(folder, "text_encoder", input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    given = {
        "text_states": text["text_states"],
        "attention_mask": inputs["attention_mask"],
        "video_states": video["video_states"],
    }
    expected = model(**inputs)
    description = json.loads((folder / "onnx.json").read_text())
    if isinstance(model, AlproForVideoTextRetrieval):
        np.testing.assert_allclose(run(folder, "matcher", **given)["logits"], expected.vtm_logits, atol=TOLERANCE)
        similarity = text["text_embeds"] @ video["video_embeds"].T
        np.testing.assert_allclose(similarity, expected.text_embeds @ expected.video_embeds.T, atol=TOLERANCE)
        assert (similarity.argmax(axis=1) == range(3)).all()
        assert "answers" not in description
    else:
        np.testing.assert_allclose(run(folder, "answerer", **given)["logits"], expected.logits, atol=TOLERANCE)
        assert description["answers"] == [model.config.id2label[i] for i in range(model.config.num_labels)]
        assert "video_embeds" not in video
    assert str(folder.parent) not in json.dumps(description)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("batch", "frames"), [(1, 1), (1, 2), (2, 3), (3, 4), (1, 6), (2, 7), (1, 9), (5, 16), (1, 33)]
)
def test_any_number_of_clips_and_frames(exported, batch, frames) -> None:
    model, folder = exported
    pixels = torch.randn(batch, frames, 3, 64, 64, generator=torch.Generator().manual_seed(frames))
    expected = model.alpro.get_video_features(pixels)
    found = run(folder, "video_encoder", pixel_values_videos=pixels)
    np.testing.assert_allclose(found["video_states"], expected.last_hidden_state, atol=TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 48), (7, 3), (2, 20)])
def test_any_number_of_texts_and_words(exported, batch, length) -> None:
    model, folder = exported
    generator = torch.Generator().manual_seed(length)
    input_ids = torch.randint(5, model.config.text_config.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[::2, max(1, length // 3) :] = 0
    expected = model.alpro.get_text_features(input_ids, mask)
    states = run(folder, "text_encoder", input_ids=input_ids, attention_mask=mask)["text_states"]
    np.testing.assert_allclose(states, expected.last_hidden_state, atol=TOLERANCE)

    video = torch.randn(batch, 17, model.config.text_config.hidden_size, generator=generator)
    fused = model.alpro.fuse(expected.last_hidden_state, mask, video).last_hidden_state[:, 0]
    retrieval = isinstance(model, AlproForVideoTextRetrieval)
    name, head = ("matcher", model.vtm_head) if retrieval else ("answerer", model.classifier)
    found = run(folder, name, text_states=states, attention_mask=mask, video_states=video)
    np.testing.assert_allclose(found["logits"], head(fused), atol=TOLERANCE)


def test_the_check_notices_another_model(script, exported) -> None:
    model, folder = exported
    assert max(script.check(model, folder, (64, 64)).values()) <= TOLERANCE
    with torch.no_grad():
        kept = model.alpro.video_model.norm.bias.clone()
        model.alpro.video_model.norm.bias += 0.01
    with pytest.raises(ValueError, match=r"video_encoder\.onnx differs from the model by 0\.01"):
        script.check(model, folder, (64, 64))
    with torch.no_grad():
        model.alpro.video_model.norm.bias.copy_(kept)


def test_a_model_without_a_head_is_refused(script, tmp_path) -> None:
    AlproModel.from_pretrained(alpro_hf.bundled_model("retrieval")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only retrieval and question answering models have a head to export"):
        script.load(str(tmp_path))
