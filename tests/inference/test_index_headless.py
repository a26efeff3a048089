"""Models without a trained matching head in every room that searches: similarity alone, and no match column."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.gallery import load, write_model, write_video
from fixtures.headless import KINDS, write_headless
from fixtures.hub_double import LARGE, File, HubDouble, Repo
from safetensors import safe_open
from transformers import pipeline

from alpro_hf import AlproForVideoTextRetrieval, AlproModel, AlproProcessor, VideoIndex
from alpro_hf.cli.main import main
from alpro_hf.evaluation.results import read_results
from alpro_hf.hub.export import export
from alpro_hf.inference.index_shards import IndexMismatchError, VideoIndexError
from alpro_hf.loading import load_model
from alpro_hf.model.image_text_alpro import image_text_facts

QUERY = "a fox runs to the left"


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headless(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{seed}.mp4", seed, frames=4 + seed) for seed in range(5)]


@torch.inference_mode()
def cosines(folder: Path, clips: list[Path], dtype: torch.dtype = torch.float32) -> dict[Path, float]:
    model, processor = AlproModel.from_pretrained(folder, dtype=dtype).eval(), AlproProcessor.from_pretrained(folder)
    text = model.get_text_features(**processor(text=[QUERY])).pooler_output.float()
    videos = [model.get_video_features(**processor(videos=[str(clip)])).pooler_output.float() for clip in clips]
    return {clip: (text @ video.t()).item() for clip, video in zip(clips, videos, strict=True)}


def alpro(capsys, *argv) -> tuple[int, str, str]:
    code = main([*map(str, argv)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_index_and_search(capsys, model, clips, tmp_path) -> None:
    index = tmp_path / "index"
    code, out, err = alpro(capsys, "index", clips[0].parent, "--output", index, "--model", model, "--dtype", "float32")
    assert (code, out.splitlines()[0]) == (0, f"{index}: 5 videos")
    assert f"{model}: Videos are ordered by similarity alone." in err
    expected = cosines(model, clips)
    order = sorted(clips, key=lambda clip: -expected[clip])

    code, out, err = alpro(capsys, "search", index, QUERY)
    assert code == 0 and "similarity alone" in err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["rank", "similarity", "video"] and "%" not in out
    assert [line[2] for line in lines[1:]] == [str(clip) for clip in order]
    assert [float(line[1]) for line in lines[1:]] == pytest.approx([expected[clip] for clip in order], abs=6e-4)

    code, out, _ = alpro(capsys, "search", index, QUERY, "--json")
    results = json.loads(out)["results"]
    assert [result.keys() for result in results] == [{"rank", "path", "start", "end", "score", "similarity"}] * 5
    assert [result["score"] for result in results] == pytest.approx([expected[clip] for clip in order], abs=1e-5)

    code, out, _ = alpro(capsys, "search", clips[0].parent, QUERY, "--model", model, "--dtype", "float32")
    assert [line.split()[2] for line in out.splitlines()[1:]] == [str(clip) for clip in order]
    assert alpro(capsys, "search", index, QUERY, "--rerank", 0)[0] == 0
    code, out, err = alpro(capsys, "search", index, QUERY, "--rerank", 3)
    assert (code, out) == (1, "")
    assert re.search(r"alpro search: rerank=3 \(--rerank\) needs a matching head, and .*\. Use rerank=0", err)
    with safe_open(next(index.glob("shard-*.safetensors")), framework="pt") as shard:
        assert shard.get_slice("tokens").get_shape()[1] == 0  # nobody would read them, and they are large


def test_the_index_in_memory_and_in_a_folder(model, clips, tmp_path) -> None:
    loaded = load_model("retrieval", str(model))
    index = VideoIndex.build(*loaded, clips, progress=False)
    found = index.search([QUERY, "a dog"], top_k=3)
    assert {result.match_probability for results in found for result in results} == {None}
    index.save(tmp_path / "index")
    assert VideoIndex.load(tmp_path / "index", *loaded).search([QUERY, "a dog"], top_k=3) == found
    with pytest.raises(VideoIndexError, match=r"rerank=2 .* needs a matching head"):
        index.search(QUERY, rerank=2)
    # the class that the checkpoint is loaded as does not matter, as its head plays no part
    for kind in (AlproModel, AlproForVideoTextRetrieval):
        again = VideoIndex.load(tmp_path / "index", kind.from_pretrained(model), loaded[1])
        assert again.search([QUERY, "a dog"], top_k=3) == found


def test_the_pipeline(model, clips, tmp_path) -> None:
    expected = cosines(model, clips)
    search = pipeline("text-video-retrieval", model=str(model), device="cpu")
    found = search(QUERY, videos=[str(clip) for clip in clips])
    assert [result["video"] for result in found] == sorted(map(str, clips), key=lambda clip: -expected[Path(clip)])
    assert {result["match_probability"] for result in found} == {None}
    VideoIndex.build(*load_model("retrieval", str(model)), clips, directory=tmp_path / "index", progress=False)
    again = search(QUERY, index=tmp_path / "index")
    assert [result["video"] for result in again] == [result["video"] for result in found]
    for where in ({"videos": [str(clips[0])]}, {"index": tmp_path / "index"}):
        with pytest.raises(ValueError, match="rerank=2 needs a matching head, and"):
            search(QUERY, rerank=2, **where)


STRANGER = """
import json, sys
sys.modules["alpro_hf"] = None  # only the code that travels with the checkpoint
from transformers import pipeline
query, folder, *clips = sys.argv[1:]
search = pipeline("text-video-retrieval", model=folder, trust_remote_code=True, device="cpu")
found = search(query, videos=clips)
try:
    search(query, videos=clips[:1], rerank=2)
except ValueError as error:
    print(json.dumps({"found": found, "error": str(error), "module": type(search.model).__module__}))
"""


@pytest.mark.slow
def test_the_pipeline_of_remote_code(model, clips, tmp_path) -> None:
    folder = export(model, tmp_path / "exported")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, QUERY, folder, *clips], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["module"].startswith("transformers_modules.")
    expected = cosines(model, clips)
    assert {Path(found["video"]): found["similarity"] for found in result["found"]} == pytest.approx(
        expected, abs=1e-5
    )
    assert "rerank=2 needs a matching head, and" in result["error"]


def test_evaluate_falls_to_vtc(capsys, caplog, model, clips, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = ["a fox", "the dog moves", "a cat spins", "pizza", "what is here"]
    rows.write_text(
        "".join(json.dumps({"video": str(c), "text": t}) + "\n" for c, t in zip(clips, texts, strict=True))
    )
    argv = ["evaluate", "--task", "retrieval", "--data", rows, "--model", model, "--draws", 5, "--no-plot"]
    code, out, err = alpro(capsys, *argv, "--output", tmp_path / "out")
    assert code == 0, err
    assert read_results(tmp_path / "out").protocol["name"] == "vtc" and "protocol vtc" in out
    assert "The protocol is vtc: the default, reference, needs a matching head, and" in caplog.text
    caplog.clear()
    assert alpro(capsys, *argv, "--output", tmp_path / "chosen", "--protocol", "vtc")[0] == 0
    assert not caplog.records
    chosen = read_results(tmp_path / "chosen")
    assert chosen.metrics == read_results(tmp_path / "out").metrics and not any("prior" in m for m in chosen.metrics)
    for protocol in ("rerank", "reference"):
        code, _, err = alpro(capsys, *argv, "--output", tmp_path / protocol, "--protocol", protocol)
        assert code == 1 and not (tmp_path / protocol).exists()
        assert re.search(rf"The protocol {protocol} needs a matching head, and .*--protocol vtc", err)


def test_sentence_transformers(model, clips) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(model), local_files_only=True, device="cpu")
    expected = cosines(model, clips)
    similarity = encoder.similarity(encoder.encode([QUERY]), encoder.encode([str(clip) for clip in clips]))[0]
    torch.testing.assert_close(similarity, torch.tensor([*expected.values()]), atol=1e-5, rtol=0)


def test_what_a_model_is_stands_beside_its_results(capsys, clips, tmp_path) -> None:
    folder = write_headless(tmp_path / "model", "blip")
    (folder / "training.json").write_text(json.dumps(image_text_facts("Salesforce/blip-itm-base-coco")))
    said = r"The weights of the image-text model BLIP \(Salesforce/blip-itm-base-coco\) in ALPRO's architecture\..*"
    said += r"quality of this model was not measured\..* The licence of the weights is bsd-3-clause\."
    code, _, err = alpro(capsys, "index", clips[0], "--output", tmp_path / "index", "--model", folder)
    assert code == 0 and re.search(said, err)
    code, out, err = alpro(capsys, "search", tmp_path / "index", QUERY, "--json")
    assert code == 0 and re.search(said, err) and len(json.loads(out)["results"]) == 1
    (folder / "training.json").write_text('{"sumary": "x"}')
    code, _, err = alpro(capsys, "search", tmp_path / "index", QUERY)
    assert code == 1 and "the key 'sumary' is unknown" in err


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_model_on_the_hub_says_the_same_and_also_without_a_network(clips, tmp_path, told) -> None:
    write_headless(tmp_path / "model", "blip")
    if told:
        facts = image_text_facts("Salesforce/blip-itm-base-coco")
        (tmp_path / "model" / "training.json").write_text(json.dumps(facts))
    export(tmp_path / "model", tmp_path / "exported")
    with HubDouble() as hub:
        repo = hub.repos["model", "acme/blip"] = Repo("model", "acme/blip", private=False, sdk=None)
        files = [path for path in (tmp_path / "exported").iterdir() if path.is_file()]
        contents = {path.name: File(path.read_bytes(), path.name.endswith(LARGE)) for path in files}
        repo.commit("main", contents, "upload")
        hub.blobs |= {file.sha256: file.content for file in contents.values()}
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_HUB_CACHE": str(tmp_path / "cache")}

        def run(*argv) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "alpro_hf", *map(str, argv)], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return done.stderr

        said = [run("index", clips[0], "--output", tmp_path / "index", "--model", "acme/blip")]
    said.append(run("search", tmp_path / "index", QUERY))  # the Hub is gone
    for err in said:
        assert err.count("acme/blip: ") == 1 and "Videos are ordered by similarity alone." in err
        assert ("The licence of the weights is bsd-3-clause." in err) == told


def test_a_model_of_questions_is_still_refused(capsys, clips, tmp_path) -> None:
    write_model(tmp_path / "qa", "qa")
    code, _, err = alpro(capsys, "index", clips[0], "--output", tmp_path / "index", "--model", tmp_path / "qa")
    assert code == 1 and "was not trained for retrieval: it lacks vtm_head" in err


def test_auto_computes_as_the_machine_is_quick_and_searches_follow(capsys, clips, tmp_path, monkeypatch) -> None:
    model = write_model(tmp_path / "model", "retrieval")
    monkeypatch.setattr("alpro_hf.loading.fast_bfloat16", lambda device: True)
    index = tmp_path / "index"
    code, out, _ = alpro(capsys, "index", *clips[:4], "--output", index, "--model", model, "--json")
    assert code == 0 and json.loads(out)["dtype"] == "bfloat16"
    assert json.loads((index / "index.json").read_text())["model"]["dtype"] == "bfloat16"
    code, out, _ = alpro(capsys, "search", index, QUERY, "--rerank", 0, "--json")
    expected = cosines(model, clips, torch.bfloat16)
    found = {Path(result["path"]): result["similarity"] for result in json.loads(out)["results"]}
    assert found == pytest.approx({clip: expected[clip] for clip in clips[:4]}, abs=1e-6)
    # products are summed in float32: in bfloat16 there are 256 steps between 0.5 and 1
    assert any(torch.tensor(value).bfloat16().item() != value for value in found.values())

    # additions and programs follow the index, also where another type would be quicker
    monkeypatch.setattr("alpro_hf.loading.fast_bfloat16", lambda device: False)
    assert alpro(capsys, "index", *clips, "--output", index, "--model", model)[0] == 0
    loaded, processor = load(model, "retrieval")
    opened = VideoIndex.load(index, loaded, processor)
    assert loaded.dtype == torch.float32 and opened.model.dtype == torch.bfloat16
    again = {result.path: result.similarity for result in opened.search(QUERY, rerank=0)}
    assert again == pytest.approx(expected, abs=1e-6)
    searched = pipeline("text-video-retrieval", model=str(model), device="cpu")(QUERY, index=index, rerank=2)
    assert [result["video"] for result in searched] == [str(r.path) for r in opened.search(QUERY, rerank=2)]
    VideoIndex.build(loaded, processor, clips[:2], directory=tmp_path / "exact", progress=False)
    with pytest.raises(IndexMismatchError, match="made in float32, but the model computes in bfloat16"):
        VideoIndex.load(tmp_path / "exact", loaded.bfloat16(), processor)


def test_the_bar_tells_the_time_left_after_each_batch(clips, monkeypatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    model, processor = load_model("retrieval", "bundled")
    VideoIndex.build(model, processor, clips, batch_size=2)
    states = re.findall(r"(\d)/5 \[\d\d:\d\d<([\d:?]+)", written.getvalue())
    assert [count for count, _ in dict(states).items()] == ["0", "2", "4", "5"]
    assert all(left != "?" for count, left in states if count != "0")
