"""The examples run as a user runs them: each in a process of its own, on real files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import index_to_qdrant
import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from safetensors import safe_open
from safetensors.torch import load_file

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from alpro_hf.inference.video_index import VideoIndex

EXAMPLES = Path(index_to_qdrant.__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six videos, rows for them, and a model for each task."""
    folder = tmp_path_factory.mktemp("examples")
    for task in ("retrieval", "qa"):
        write_model(folder / task, task)
    words = ["fox moves left", "dog runs", "cat spins", "pizza grows", "two dogs", "a fox shrinks"]
    captions, questions = [], []
    for number, text in enumerate(words):
        video = str(write_video(folder / "videos" / f"{number}.mp4", number))
        captions.append({"video": video, "text": text})
        questions.append({"video": video, "question": "what is it doing", "answer": text.split()[number % 2]})
    for name, rows in (("captions", captions), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "videos" / "broken.mp4").write_text("not a video")
    return folder


def run(place: Path, name: str, *arguments: object) -> str:
    """The output of an example."""
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        cwd=place,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_there_is_a_test_for_each_example() -> None:
    tested = {"search_folder", "embed_videos", "finetune_retrieval", "finetune_questions", "ask_video"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*tested, "index_to_qdrant"}


def test_search_folder(place: Path) -> None:
    lines = run(place, "search_folder", "videos", "a fox moves", "--model", "retrieval").splitlines()
    assert "broken.mp4" in lines[0]
    index = VideoIndex.load(place / "videos-index", *load(place / "retrieval", "retrieval"))
    expected = index.search("a fox moves", top_k=5, rerank=16)
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4", "5"]
    assert [Path(line.split()[-1]).name for line in lines[1:]] == [result.path.name for result in expected]


def test_search_folder_with_a_model_that_cannot_match(place: Path) -> None:
    model, processor = load(place / "retrieval", "retrieval")
    model.alpro.save_pretrained(place / "towers")
    processor.save_pretrained(place / "towers")
    lines = run(place, "search_folder", "videos", "a fox", "--model", "towers", "--index", "towers-index").splitlines()
    assert all(re.fullmatch(r"\d  -?\d\.\d{3}  .*\.mp4", line) for line in lines[1:]) and len(lines) == 6


def test_embed_videos(place: Path) -> None:
    out = run(place, "embed_videos", "videos", "videos.safetensors", "--model", "retrieval")
    assert "6 videos in videos.safetensors" in out and "broken.mp4" in out
    embeds = load_file(place / "videos.safetensors")["video_embeds"]
    with safe_open(place / "videos.safetensors", "pt") as file:
        paths = file.metadata()["paths"].splitlines()
    assert [Path(path).name for path in paths] == [f"{number}.mp4" for number in range(6)]
    model, processor = load(place / "retrieval", "retrieval")
    pixels = processor(videos=str(place / "videos" / "3.mp4"), return_tensors="pt")["pixel_values_videos"]
    with torch.inference_mode():
        expected = model.eval().alpro.get_video_features(pixels).pooler_output[0]
    torch.testing.assert_close(embeds[3], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_finetune_retrieval(place: Path) -> None:
    words = ["captions.jsonl", "--test", "captions.jsonl", "--model", "retrieval", "--output", "trained"]
    out = run(place, "finetune_retrieval", *words, "--batch-size", 3, "--epochs", 1)
    assert [line.split()[0] for line in out.splitlines() if line.startswith("t2v_")] == ["t2v_r1", "t2v_r5", "t2v_r10"]
    trained = AlproForVideoTextRetrieval.from_pretrained(place / "trained").state_dict()
    before = AlproForVideoTextRetrieval.from_pretrained(place / "retrieval").state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)


@pytest.mark.slow
def test_finetune_questions(place: Path) -> None:
    words = ["questions.jsonl", "--test", "questions.jsonl", "--model", "retrieval", "--output", "trained-qa"]
    out = run(place, "finetune_questions", *words, "--batch-size", 3, "--epochs", 1, "--answers", 4)
    assert "with 4 answers" in out
    model = AlproForVideoQuestionAnswering.from_pretrained(place / "trained-qa")
    assert len(model.config.id2label) == 4


def test_ask_video(place: Path) -> None:
    lines = run(place, "ask_video", "videos/1.mp4", "what is it doing", "which way", "--model", "qa").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["what is it doing", "which way"]
    assert all(line.count("%") == 3 for line in lines)


def test_the_database_finds_what_the_index_finds(place: Path) -> None:
    """A vector database inside this process, filled from the shards of an index."""
    clips = sorted((place / "videos").glob("[0-3].mp4"))
    trained = load(place / "retrieval", "retrieval")
    index = VideoIndex.build(*trained, clips, directory=place / "index", shard_size=3, progress=False)
    client = index_to_qdrant.client_of(str(place / "database"))
    assert index_to_qdrant.fill(client, index, "videos") == 4
    assert index_to_qdrant.fill(client, index, "videos") == 4
    found = index_to_qdrant.search(client, index, "videos", "a fox runs", 3)
    expected = index.search("a fox runs", top_k=3, rerank=0)
    assert [path for path, *_ in found] == [str(result.path) for result in expected]
    assert [times for _, *times, _ in found] == [[None, None]] * 3  # whole files
    assert [score for *_, score in found] == pytest.approx([result.similarity for result in expected], abs=1e-5)
    client.close()
