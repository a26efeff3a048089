"""Frames that are chosen for an index: noted in it, and used by all that follow."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from transformers import pipeline

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, VideoIndex
from alpro_hf.cli.main import main
from alpro_hf.inference.index_shards import IndexMismatchError, VideoIndexError

QUERY = "a fox runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "retrieval")  # 4 frames of 16 pixels, patches of 8


@pytest.fixture(scope="module")
def trained(folder) -> tuple[AlproForVideoTextRetrieval, AlproProcessor]:
    return load(folder, "retrieval")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("clips")
    return [write_video(place / f"{seed}.mp4", seed, frames=6 + seed) for seed in range(4)]


@torch.inference_mode()
def scores(trained, clips, **frames) -> dict[Path, tuple[float, float]]:
    """Similarity, and similarity plus matching logit, of each clip with the query: one forward pass a pair."""
    model, processor = trained
    found = {}
    for clip in clips:
        output = model(**processor(text=[QUERY], videos=[str(clip)], **frames))
        similarity = (output.text_embeds @ output.video_embeds.t()).item()
        found[clip] = (similarity, similarity + output.vtm_logits[0, 1].item())
    return found


def found_by(index: VideoIndex, **options) -> dict[Path, tuple[float, float]]:
    return {result.path: (result.similarity, result.score) for result in index.search(QUERY, rerank=9, **options)}


def close(expected):
    return {path: pytest.approx(values, abs=1e-5) for path, values in expected.items()}


def test_what_was_chosen_is_noted_and_counts_for_all_that_follows(trained, clips, folder, tmp_path) -> None:
    model, processor = trained
    expected = scores(trained, clips, num_frames=2, size={"height": 24, "width": 24})
    assert expected[clips[0]] != pytest.approx(scores(trained, clips)[clips[0]], abs=1e-3)
    directory = tmp_path / "index"
    index = VideoIndex.build(model, processor, clips[:2], directory=directory, num_frames=2, size=24, progress=False)
    assert found_by(index) == close({clip: expected[clip] for clip in clips[:2]})
    video = json.loads((directory / "index.json").read_text())["video"]
    assert (video["num_frames"], video["size"]) == (2, {"height": 24, "width": 24})
    assert video["chosen"] == {"num_frames": 2, "size": 24}
    # the processor of the caller stays as it was
    assert (processor.video_processor.num_frames, dict(processor.video_processor.size)["height"]) == (4, 16)

    index = VideoIndex.build(model, processor, clips[:3], directory=directory, progress=False)  # an addition
    assert len(index.report.unchanged) == 2
    again = VideoIndex.load(directory, model, processor)
    again.add(clips, progress=False)
    assert found_by(again) == close(expected)
    assert found_by(VideoIndex.open(directory, model, processor, num_frames=2)) == close(expected)
    assert json.loads((directory / "index.json").read_text())["video"] == video
    search = pipeline("text-video-retrieval", model=str(folder), device="cpu")
    searched = search(QUERY, index=directory, rerank=9)
    assert {Path(one["video"]): (one["similarity"], one["score"]) for one in searched} == close(expected)
    saved = VideoIndex.build(model, processor, clips, num_frames=2, size=24, progress=False)
    saved.save(tmp_path / "saved")
    assert found_by(VideoIndex.load(tmp_path / "saved", model, processor)) == close(expected)


def test_a_contradiction_is_one_sentence(trained, clips, tmp_path) -> None:
    chosen, plain = tmp_path / "chosen", tmp_path / "plain"
    VideoIndex.build(*trained, clips[:1], directory=chosen, num_frames=2, progress=False)
    VideoIndex.build(*trained, clips[:1], directory=plain, progress=False)
    for directory, made, options, setting in (
        (chosen, 2, {"num_frames": 3}, "num_frames"),
        (chosen, 16, {"size": 24}, "size"),
        (plain, 4, {"num_frames": 3}, "num_frames"),
        (plain, 16, {"size": 32}, "size"),
    ):
        before = (directory / "index.json").read_bytes()
        option = setting.replace("_", "-")
        message = rf"was made with {setting}={made}, not {options[setting]}: leave {setting} \(--{option}\) out"
        with pytest.raises(IndexMismatchError, match=message):
            VideoIndex.build(*trained, clips, directory=directory, progress=False, **options)
        assert (directory / "index.json").read_bytes() == before
    # saying again what the index was made with is none
    VideoIndex.build(*trained, clips[:2], directory=plain, num_frames=4, size=16, progress=False)
    assert "chosen" not in json.loads((plain / "index.json").read_text())["video"]
    assert len(VideoIndex.load(plain, *trained)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 must be a whole number of at least 1"),
        ({"size": -8}, "size=-8 must be a whole number of at least 1"),
        ({"size": 20}, "size=20 must be a multiple of 8, .* such as 16 or 24"),
        ({"size": 5}, r"size=5 must be a multiple of 8, .* such as 8\."),
    ],
)
def test_impossible_frames_are_refused_before_any_work(trained, clips, tmp_path, options, message) -> None:
    with pytest.raises(VideoIndexError, match=message):
        VideoIndex.build(*trained, clips, directory=tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


def test_a_manifest_that_notes_nonsense_is_refused(trained, clips, tmp_path) -> None:
    VideoIndex.build(*trained, clips[:1], directory=tmp_path, num_frames=2, progress=False)
    content = json.loads((tmp_path / "index.json").read_text())
    for nonsense in ([2], {"fps": 2}, {"num_frames": "2"}, {"size": 12}, {"num_frames": 3}):
        content["video"]["chosen"] = nonsense
        (tmp_path / "index.json").write_text(json.dumps(content))
        with pytest.raises(VideoIndexError):
            VideoIndex.load(tmp_path, *trained)


def test_a_number_of_frames_wins_over_a_frame_rate(trained, clips) -> None:
    model, _ = trained
    sampled = AlproProcessor.from_pretrained(model.name_or_path)
    sampled.video_processor.fps, sampled.video_processor.num_frames = 3, None
    index = VideoIndex.build(model, sampled, clips, num_frames=2, progress=False)
    assert found_by(index) == close(scores(trained, clips, num_frames=2))


def test_the_command(capsys, trained, clips, folder, tmp_path) -> None:
    index = str(tmp_path / "index")
    argv = ["index", *map(str, clips), "--output", index, "--model", str(folder), "--dtype", "float32"]
    assert main([*argv, "--num-frames", "2", "--size", "24", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [result[name] for name in ("num_frames", "size", "dtype")] == [2, 24, "float32"]
    assert main(["search", index, QUERY, "--rerank", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    expected = scores(trained, clips, num_frames=2, size={"height": 24, "width": 24})
    assert {Path(one["path"]): (one["similarity"], one["score"]) for one in found} == close(expected)
    assert main([*argv, "--num-frames", "8"]) == 1
    assert "was made with num_frames=2, not 8: leave num_frames (--num-frames) out" in capsys.readouterr().err
    assert main([*argv[:-4], "--output", index + "2", "--model", str(folder), "--size", "100"]) == 1
    assert "size=100 must be a multiple of 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "--num-frames", "0"])
    assert "'0' is not a whole number of at least 1" in capsys.readouterr().err
