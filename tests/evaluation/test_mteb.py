"""The encoder in the hands of the real MTEB harness, on the tasks that it brings for testing.

The harness is large (some 500 MB with what it needs), so the extra `test` does without: pip install mteb to run these.
"""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from fixtures import gallery
from torch.utils.data import DataLoader

mteb = pytest.importorskip("mteb", reason="needs the harness: pip install mteb")
mocks = pytest.importorskip("mteb.mocks")

from alpro_hf import AlproModel, AlproProcessor  # noqa: E402
from alpro_hf.evaluation.mteb import AlproEncoder  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return gallery.write_model(tmp_path_factory.mktemp("models") / "tiny", "retrieval", seed=3)


@pytest.fixture(scope="module")
def encoder(folder):
    return AlproEncoder(str(folder))


def evaluate(encoder, task):
    return mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False).task_results[0]


def test_it_is_an_encoder_of_the_harness(encoder):
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.modalities) == ("local/tiny", 12, ["text", "video"])
    with pytest.raises(TypeError, match="nothing of fps"):
        AlproEncoder(fps=2)


@pytest.mark.parametrize("name", ["MockVideoRetrievalT2V", "MockVideoRetrievalV2T"])
def test_retrieval_scores_are_those_of_the_towers(encoder, folder, name):
    task = getattr(mocks, name)()
    task.load_data()
    split = task.dataset["default"]["test"]
    texts, clips = (split["queries"], split["corpus"]) if name.endswith("T2V") else (split["corpus"], split["queries"])
    model, processor = AlproModel.from_pretrained(folder).eval(), AlproProcessor.from_pretrained(folder)
    files = clips.data.column("video").to_pylist()
    with torch.no_grad():
        text = model.get_text_features(**processor(text=list(texts["text"]), return_tensors="pt")).pooler_output
        pixels = processor(videos=[file["bytes"] for file in files], return_tensors="pt")
        video = model.get_video_features(**pixels).pooler_output
    similarity = (text @ video.T) if name.endswith("T2V") else (text @ video.T).T
    expected = np.mean([1.0 if row.argmax() == i else 1 / math.log2(3) for i, row in enumerate(similarity)])
    [scores] = evaluate(encoder, task).scores["test"]
    assert scores["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)


def test_other_kinds_of_tasks_run(encoder):
    for name in ("MockVideoZeroshotClassificationTask", "MockVideoClassification", "MockVideoPairClassificationTask"):
        [scores] = evaluate(encoder, getattr(mocks, name)()).scores["test"]
        assert 0 <= scores["main_score"] <= 1


def test_rows_of_two_kinds_have_no_one_embedding(encoder):
    rows = Dataset.from_dict({"text": ["a fox"], "video": ["fox.mp4"]})
    task = mocks.MockVideoRetrievalT2V()
    with pytest.raises(ValueError, match=r"embeds texts or silent clips; .* text and video"):
        encoder.encode(DataLoader(rows), task_metadata=task.metadata, hf_split="test", hf_subset="default")
