"""A checkpoint in sentence-transformers: its own package, not a double, encodes, evaluates, trains and saves it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Video
from PIL import Image

from alpro_hf import AlproForVideoTextRetrieval, AlproModel, AlproProcessor, bundled_model
from alpro_hf.model.decoding_column import file_of
from alpro_hf.sprites.render import write_split

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="needs sentence-transformers: pip install 'alpro-hf[sentence-transformers]'"
)
from sentence_transformers import CrossEncoder  # noqa: E402
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402

from alpro_hf.inference.cross_encoder import AlproPairs  # noqa: E402

CLIPS = 4


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Caption -> path."""
    folder = write_split(tmp_path_factory.mktemp("sprites"), "test", CLIPS, progress=False)
    rows = [json.loads(line) for line in (folder / "retrieval.jsonl").read_text().splitlines()]
    return {row["text"]: str(folder / row["video"]) for row in rows}


def open_model(folder: str) -> Any:
    return sentence_transformers.SentenceTransformer(folder, local_files_only=True, device="cpu")


@pytest.fixture(scope="module")
def encoder() -> Any:
    return open_model(bundled_model("retrieval"))


def test_vectors_are_those_of_the_model(encoder, gallery) -> None:
    model = AlproModel.from_pretrained(bundled_model("retrieval")).eval()
    inputs = AlproProcessor.from_pretrained(bundled_model("retrieval"))(text=[*gallery], videos=[*gallery.values()])
    with torch.no_grad():
        expected = model(**inputs)
    texts, videos = encoder.encode([*gallery]), encoder.encode([*gallery.values()], batch_size=3)
    torch.testing.assert_close(torch.from_numpy(texts), expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(videos), expected.video_embeds, atol=1e-5, rtol=0)
    assert encoder.similarity(texts, videos).argmax(dim=1).tolist() == [*range(len(gallery))]
    assert encoder.get_embedding_dimension() in (None, model.config.projection_dim)
    named = encoder.encode([{"video": path} for path in gallery.values()])
    torch.testing.assert_close(torch.from_numpy(named), expected.video_embeds, atol=1e-5, rtol=0)


def test_files_of_a_column_of_videos(encoder, gallery) -> None:
    paths = [*gallery.values()]
    expected = encoder.encode(paths)
    embedded = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    for videos in (paths, embedded):
        column = Dataset.from_dict({"video": videos}).cast_column("video", Video(decode=False))["video"]
        assert (encoder.encode([{"video": file_of(video)} for video in column]) == expected).all()


def test_clips_that_are_images_by_name_and_missing_files(encoder, gallery, tmp_path, monkeypatch, caplog) -> None:
    """sentence-transformers takes a string that ends in .gif for an image, and gives a model without images a text."""
    frames = [Image.new("RGB", (64, 64), (25 * i, 80, 200 - 15 * i)) for i in range(8)]
    for name in ("clip.gif", "clip.png", "still.jpg"):
        frames[0].save(
            tmp_path / name, **({} if name == "still.jpg" else {"save_all": True, "append_images": frames[1:]})
        )
    monkeypatch.chdir(tmp_path)
    processor = AlproProcessor.from_pretrained(bundled_model("retrieval"))
    model = AlproModel.from_pretrained(bundled_model("retrieval")).eval()
    for name in ("clip.gif", "clip.png", "still.jpg"):
        with pytest.raises(ValueError, match=rf"'{name}' is .* file.*{{'video': '{name}'}} to sentence-transformers"):
            encoder.encode([name])
        with torch.no_grad():
            expected = model.get_video_features(**processor(videos=name)).pooler_output
        torch.testing.assert_close(torch.from_numpy(encoder.encode([{"video": name}])), expected, atol=1e-5, rtol=0)
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):  # a command may have silenced the library
            encoder.encode(["smal.mp4 "])
    finally:
        library.removeHandler(caplog.handler)
    assert "text[0]='smal.mp4 ' ends like a video, and there is no such file" in caplog.text


def test_frames_can_be_chosen(encoder, gallery) -> None:
    [path, *_] = gallery.values()
    two = encoder.encode([path], processing_kwargs={"video": {"num_frames": 2}})
    pixels = AlproProcessor.from_pretrained(bundled_model("retrieval"))(videos=path, num_frames=2)
    with torch.no_grad():
        expected = AlproModel.from_pretrained(bundled_model("retrieval")).eval().get_video_features(**pixels)
    torch.testing.assert_close(torch.from_numpy(two), expected.pooler_output, atol=1e-5, rtol=0)


def test_its_evaluator_trainer_and_saving(gallery, tmp_path) -> None:
    encoder = open_model(bundled_model("retrieval"))
    evaluator = InformationRetrievalEvaluator(
        queries={f"t{i}": text for i, text in enumerate(gallery)},
        corpus={f"v{i}": path for i, path in enumerate(gallery.values())},
        relevant_docs={f"t{i}": {f"v{i}"} for i in range(len(gallery))},
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        mrr_at_k=[3],
        ndcg_at_k=[3],
        map_at_k=[3],
        write_csv=False,
    )
    assert evaluator(encoder)["cosine_accuracy@1"] == 1.0

    with torch.no_grad():  # something to learn
        for parameter in encoder[0].model.text_projection.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3)
    before = {name: value.clone() for name, value in encoder[0].model.state_dict().items()}
    rows = [{"anchor": text, "positive": path} for text, path in gallery.items()]
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=encoder,
        args=sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=4,
            learning_rate=1e-3,
            per_device_train_batch_size=CLIPS,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        loss=MultipleNegativesRankingLoss(encoder),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    changed = {n for n, value in encoder[0].model.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in changed} >= {"text_model", "video_model", "text_projection"}
    fusion = encoder[0].model.config.text_config.fusion_layer
    assert not [name for name in changed if name.startswith(f"text_model.layers.{fusion}.")]  # no part of a vector

    encoder.save_pretrained(str(tmp_path / "saved"))
    again = open_model(str(tmp_path / "saved"))
    videos = [*gallery.values()]
    assert (again.encode(videos) == encoder.encode(videos)).all()
    model = AlproModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(model.text_projection.weight, encoder[0].model.text_projection.weight)


def test_matching_as_a_cross_encoder(gallery, tmp_path) -> None:
    texts, videos = [*gallery], [*gallery.values()]
    encoder = CrossEncoder(modules=[AlproPairs.load(str(bundled_model("retrieval")))], device="cpu")
    model = AlproForVideoTextRetrieval.from_pretrained(bundled_model("retrieval")).eval()
    inputs = AlproProcessor.from_pretrained(bundled_model("retrieval"))(text=texts, videos=videos)
    with torch.no_grad():
        expected = model(**inputs).vtm_logits.softmax(dim=1)[:, 1]
    found = encoder.predict([*zip(texts, videos, strict=True)], batch_size=3)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)
    other_way = encoder.predict([*zip(videos, texts, strict=True)])  # a video, then a text
    torch.testing.assert_close(other_way, found, atol=1e-5, rtol=1e-4)
    assert encoder.predict((texts[0], {"video": videos[0]})) == pytest.approx(found[0], abs=1e-5)
    column = Dataset.from_dict({"video": videos}).cast_column("video", Video(decode=False))["video"]
    of_column = encoder.predict([*zip(texts, column, strict=True)])
    torch.testing.assert_close(of_column, found, atol=1e-5, rtol=1e-4)
    named = encoder.predict([(text, {"video": video}) for text, video in zip(texts, column, strict=True)])
    torch.testing.assert_close(named, found, atol=1e-5, rtol=1e-4)
    for number, text in enumerate(texts):
        assert encoder.rank(text, videos)[0]["corpus_id"] == number
        assert encoder.rank(videos[number], texts)[0]["corpus_id"] == number
    with pytest.raises(ValueError, match=r"one text and one video; received .*\(a text, a text\)"):
        encoder.predict([(texts[0], texts[1])])

    encoder.save_pretrained(str(tmp_path))
    again = CrossEncoder(str(tmp_path), device="cpu", local_files_only=True, trust_remote_code=True)
    assert (again.predict([*zip(texts, videos, strict=True)], batch_size=3) == found).all()
    AlproForVideoTextRetrieval.from_pretrained(tmp_path)
