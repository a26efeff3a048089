"""The pipelines say what model and processor say by hand, for all kinds of input, from a folder or a repository."""

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from fixtures.gallery import load, write_model
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.logging import enable_progress_bar

import alpro_hf
from alpro_hf import (
    AlproForVideoQuestionAnswering,
    AlproForVideoTextRetrieval,
    AlproModel,
    AlproProcessor,
    VideoDecodeError,
    VideoIndex,
    bundled_model,
)
from alpro_hf.hub.export import add_remote_code
from alpro_hf.inference.video_index import SearchResult
from alpro_hf.model import pipeline_alpro
from alpro_hf.model.decoding import decode
from alpro_hf.sprites.render import write_split

CLIPS = 6
Row = dict[str, Any]


class Rows(Dataset):
    """A data set of rows that counts what is read."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.reads = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        self.reads += 1
        return self.rows[index]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("sprites"), "test", CLIPS, progress=False)


def rows(gallery: Path, name: str) -> list[Row]:
    found = [json.loads(line) for line in (gallery / f"{name}.jsonl").read_text().splitlines()]
    return [row | {"video": str(gallery / row["video"])} for row in found]


@pytest.fixture(scope="module")
def captions(gallery: Path) -> dict[str, str]:
    """Clip -> caption."""
    return {row["video"]: row["text"] for row in rows(gallery, "retrieval")}


@pytest.fixture(scope="module")
def questions(gallery: Path) -> list[Row]:
    return [{"video": row["video"], "question": row["question"]} for row in rows(gallery, "qa")]


@pytest.fixture(scope="module")
def ask() -> Any:
    return pipeline("video-question-answering", model=alpro_hf.bundled_model("qa"), device="cpu")


@pytest.fixture(scope="module")
def search() -> Any:
    return pipeline("text-video-retrieval", model=alpro_hf.bundled_model("retrieval"), device="cpu")


@pytest.fixture(scope="module")
def by_hand() -> dict[str, tuple[Any, AlproProcessor]]:
    classes = {"qa": AlproForVideoQuestionAnswering, "retrieval": AlproForVideoTextRetrieval}
    folders = {task: alpro_hf.bundled_model(task) for task in ("qa", "retrieval")}
    return {
        task: (classes[task].from_pretrained(folder), AlproProcessor.from_pretrained(folder))
        for task, folder in folders.items()
    }


@torch.inference_mode()
def answer(by_hand: Any, row: Row, top_k: int = 5, **options: Any) -> list[Row]:
    model, processor = by_hand["qa"]
    inputs = processor(text=[row["question"]], videos=[row["video"]], return_tensors="pt", **options)
    best = model(**inputs).logits.softmax(dim=1)[0].topk(top_k)
    return [
        {"answer": model.config.id2label[i], "score": score}
        for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@torch.inference_mode()
def pair(by_hand: Any, text: str, video: Any) -> tuple[float, float, float]:
    """Similarity, matching logit and probability."""
    model, processor = by_hand["retrieval"]
    output = model(**processor(text=[text], videos=[video], return_tensors="pt"))
    similarity = (output.text_embeds @ output.video_embeds.t()).item()
    return similarity, output.vtm_logits[0, 1].item(), output.vtm_logits.softmax(dim=1)[0, 1].item()


def rank(by_hand: Any, pairs: list[tuple[str, str]], rerank: int) -> list[Row]:
    """What a query is expected to find, every pair alone through the whole model."""
    scored = [pair(by_hand, text, video) for text, video in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -scored[i][0])
    order = sorted(order[:rerank], key=lambda i: -(scored[i][0] + scored[i][1])) + order[rerank:]
    found = []
    for place, i in enumerate(order):
        similarity, logit, probability = scored[i]
        matched = place < rerank
        score = similarity + logit if matched else similarity
        probability_or_none = probability if matched else None
        found.append({"index": i, "score": score, "similarity": similarity, "match_probability": probability_or_none})
    return found


def assert_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal structures; numbers within the tolerance, fields that only `found` has do not count."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, dict):
        for key, value in expected.items():
            assert_same(found[key], value, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance)
    else:
        assert found == expected


@pytest.fixture
def count(ask, search) -> Iterator[Row]:
    """How many clips and texts went through the towers, and in how many calls."""
    counts = {"clips": 0, "calls": 0, "texts": 0}

    def clips(module: Any, args: Any, kwargs: Any) -> None:
        counts["clips"] += len(kwargs["pixel_values_videos"] if kwargs else args[0])
        counts["calls"] += 1

    hooks = [
        pipe.model.alpro.video_model.embeddings.register_forward_pre_hook(clips, with_kwargs=True)
        for pipe in (ask, search)
    ]
    yield counts
    for hook in hooks:
        hook.remove()


# ----------------------------------------------------------------------------------------------------------- questions


def test_answers_are_those_of_the_model(ask, by_hand, questions) -> None:
    for row in questions[:6]:
        assert_same(ask(row["video"], row["question"]), answer(by_hand, row))
        assert_same(ask(row), answer(by_hand, row))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_answer_as_single_questions_do(ask, by_hand, questions, batch_size) -> None:
    expected = [answer(by_hand, row, top_k=2) for row in questions]
    assert_same(ask(questions, batch_size=batch_size, top_k=2), expected)
    assert_same(list(ask(iter(questions), batch_size=batch_size, top_k=2)), expected)
    table = datasets.Dataset.from_list(questions)
    for stream in (Rows(questions), table, table.to_iterable_dataset()):
        assert_same(list(ask(stream, batch_size=batch_size, top_k=2)), expected)


def test_decoding_in_other_processes_changes_nothing(ask, by_hand, questions) -> None:
    expected = [answer(by_hand, row, top_k=1) for row in questions[:5]]
    assert_same(ask(questions[:5], top_k=1, batch_size=2, num_workers=2), expected)
    assert_same(list(ask(iter(questions[:5]), top_k=1, batch_size=2, num_workers=2)), expected)


def test_each_clip_is_encoded_once_for_all_its_questions(ask, by_hand, questions, count) -> None:
    video = questions[0]["video"]
    asked = [row["question"] for row in questions if row["video"] == video]
    assert len(asked) > 2
    found = ask(video, asked)
    assert count["clips"] == 1
    assert_same(found, [answer(by_hand, {"video": video, "question": text}) for text in asked])

    count.update(clips=0, calls=0)
    mixed = [*questions[::2], {"video": Path(video), "question": asked[:2]}, *questions[1::2]]
    found = ask(mixed, batch_size=4, top_k=1)
    assert count["clips"] == len({row["video"] for row in questions})
    assert count["calls"] == 2
    assert_same(found[0], answer(by_hand, mixed[0], top_k=1))
    assert_same(found[-1], answer(by_hand, mixed[-1], top_k=1))
    several = found[len(questions[::2])]
    assert_same(several, [answer(by_hand, {"video": video, "question": text}, top_k=1) for text in asked[:2]])


def test_one_question_to_many_videos(ask, by_hand, captions) -> None:
    rows = [{"video": video, "question": "how many things are there?"} for video in captions]
    expected = [answer(by_hand, row) for row in rows]
    assert_same(ask(list(captions), rows[0]["question"]), expected)
    assert_same(list(ask(KeyDataset(Rows(rows), "video"), rows[0]["question"])), expected)
    both = ask(list(captions), [rows[0]["question"], "where is it?"])
    assert_same([first for first, _ in both], expected)


@pytest.mark.parametrize("kind", ["path", "bytes", "file", "array", "tensor", "frames"])
def test_every_kind_of_video(ask, search, by_hand, captions, kind, tmp_path) -> None:
    path = Path(next(iter(captions)))
    pixels = decode(path, lambda info: list(range(info.num_frames))).pixels
    array = pixels.permute(0, 2, 3, 1).numpy()
    video: Any = {
        "path": path,
        "bytes": path.read_bytes(),
        "file": path.open("rb"),
        "array": array,
        "tensor": pixels,
        "frames": [Image.fromarray(frame) for frame in array],
    }[kind]
    plain = str(path) if kind in ("path", "bytes", "file") else array
    question = "what is it doing?"
    assert_same(ask(video, question), answer(by_hand, {"video": plain, "question": question}))
    texts = list(captions.values())[:3]
    [similarity, *_] = pair(by_hand, texts[0], plain)
    found = search(video, texts=texts)
    assert next(r for r in found if r["index"] == 0)["similarity"] == pytest.approx(similarity, abs=1e-5)
    assert_same(search([video], texts=texts), [found])
    [only] = search(texts[0], videos=video)
    assert only["similarity"] == pytest.approx(similarity, abs=1e-5)
    assert only["video"] == (str(path) if kind == "path" else None)
    assert_same(search([texts[0]], videos=[video, str(path)])[0], search(texts[0], videos=[video, str(path)]))


def test_clips_of_different_lengths_are_not_padded(ask, search, by_hand, captions, encode) -> None:
    short, long = encode("short.mp4", num_frames=12), encode("long.mp4", num_frames=48)
    rows = [{"video": str(video), "question": "what is it doing?"} for video in (short, long)]
    expected = [answer(by_hand, row, fps=5) for row in rows]
    assert_same(ask(rows, batch_size=2, fps=5), expected)
    text = next(iter(captions.values()))
    alone = [search(text, videos=[video], fps=5)[0]["similarity"] for video in (short, long)]
    together = search(text, videos=[short, long], fps=5, batch_size=2)
    assert [r["similarity"] for r in sorted(together, key=lambda r: r["index"])] == pytest.approx(alone, abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- retrieval


@pytest.mark.parametrize("rerank", [0, 2, CLIPS, 50])
def test_videos_for_texts_are_ranked_as_by_hand(search, by_hand, captions, rerank) -> None:
    videos, texts = list(captions), list(captions.values())
    expected = [rank(by_hand, [(text, video) for video in videos], rerank) for text in texts[:3]]
    found = search(texts[:3], videos=videos, rerank=rerank, batch_size=4)
    assert_same(found, expected)
    assert_same(search(texts[0], videos=[Path(video) for video in videos], rerank=rerank), expected[0])
    assert [[r["video"] for r in results] for results in found] == [
        [videos[r["index"]] for r in results] for results in found
    ]
    assert_same(search(texts[0], videos=videos, rerank=rerank, top_k=2), expected[0][:2])


@pytest.mark.parametrize("rerank", [0, 3, 50])
def test_texts_for_videos_are_ranked_as_by_hand(search, by_hand, captions, rerank) -> None:
    videos, texts = list(captions), [*captions.values(), "a bell"]
    expected = [rank(by_hand, [(text, video) for text in texts], rerank) for video in videos[:3]]
    found = search(videos[:3], texts=texts, rerank=rerank, batch_size=2)
    assert_same(found, expected)
    assert found[0][0]["text"] == texts[found[0][0]["index"]]
    assert_same(search(Path(videos[0]), texts=iter(texts), rerank=rerank), expected[0])


def test_the_bundled_model_finds_its_clips(search, captions) -> None:
    found = search(list(captions.values()), videos=list(captions), rerank=CLIPS, top_k=1)
    assert sum(best["video"] == video for [best], video in zip(found, captions, strict=True)) >= CLIPS - 2


def test_candidates_are_encoded_once_for_all_queries(search, captions, count) -> None:
    videos, texts = list(captions), list(captions.values())
    search(texts, videos=videos, rerank=3, batch_size=4)
    assert (count["clips"], count["calls"]) == (CLIPS, 2)
    count.update(clips=0)
    search(videos[0], texts=texts, rerank=3)
    assert count["clips"] == 1


def test_streams_are_read_as_results_are(search, captions) -> None:
    videos, texts = list(captions), list(captions.values())
    read = []

    def queries() -> Iterator[str]:
        for text in texts:
            read.append(text)
            yield text

    candidates = KeyDataset(Rows([{"clip": video} for video in videos]), "clip")
    stream = search(queries(), videos=candidates, rerank=2)
    assert read == []
    first = next(stream)
    assert read == texts[:1]
    assert_same([first, *stream], search(texts, videos=videos, rerank=2))

    dataset = Rows([{"clip": video} for video in videos])
    stream = search(KeyDataset(dataset, "clip"), texts=texts)
    next(stream)
    assert dataset.reads == 1
    assert len(list(stream)) == CLIPS - 1


@pytest.mark.parametrize("rerank", [0, 3])
def test_an_index_gives_what_its_search_gives(search, by_hand, captions, tmp_path, rerank) -> None:
    index = VideoIndex.build(*by_hand["retrieval"], captions, directory=tmp_path / "index", progress=False)
    texts = list(captions.values())[:2]
    expected = [
        [
            {
                "video": str(result.path),
                "score": result.score,
                "similarity": result.similarity,
                "match_probability": result.match_probability,
            }
            for result in results
        ]
        for results in index.search(texts, top_k=4, rerank=rerank)
    ]
    for given in (index, tmp_path / "index", str(tmp_path / "index")):
        assert_same(search(texts, index=given, top_k=4, rerank=rerank), expected)
        assert_same(search(texts[0], index=given, top_k=4, rerank=rerank), expected[0])
        assert_same(list(search(iter(texts), index=given, top_k=4, rerank=rerank)), expected)
    own = search(texts, videos=list(captions), top_k=4, rerank=rerank)
    assert_same(own, expected)


def test_a_folder_is_opened_by_the_package_alone(search, tmp_path, monkeypatch) -> None:
    """The code that travels with a checkpoint takes anything with the `search` of an index, but opens no folder."""
    monkeypatch.setattr(pipeline_alpro.TextVideoRetrievalPipeline, "open_index", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install alpro-hf.*VideoIndex\.load\(folder, pipe\.model"):
        search("a fox", index=tmp_path)

    class Index:
        def search(self, query: str, *, top_k: int, rerank: int) -> list[Any]:
            return [SearchResult(1, Path(f"{query} {top_k} {rerank}"), 2.0, 0.5, 0.75)]

    [found] = search("a fox", index=Index(), rerank=3)
    assert found == {"video": "a fox 10 3", "score": 2.0, "similarity": 0.5, "match_probability": 0.75}


def test_arguments_of_the_pipeline_are_defaults_of_its_calls(captions) -> None:
    model = alpro_hf.bundled_model("retrieval")
    search = pipeline("text-video-retrieval", model=model, top_k=2, rerank=1, num_frames=2, batch_size=3, device="cpu")
    text = next(iter(captions.values()))
    found = search(text, videos=list(captions))
    assert len(found) == 2
    assert [r["match_probability"] is None for r in found] == [False, True]
    assert found[0]["similarity"] != search(text, videos=list(captions), num_frames=4)[0]["similarity"]
    assert len(search(text, videos=list(captions), top_k=5, rerank=0)) == 5


# -------------------------------------------------------------------------------------------------- errors, progress


def test_errors_name_what_is_wrong_and_what_to_do(ask, search, captions, tmp_path) -> None:
    fake = tmp_path / "holiday.mp4"
    fake.write_text("dear diary, " * 50)
    video, text = next(iter(captions.items()))
    with pytest.raises(VideoDecodeError, match=r"holiday\.mp4"):
        ask(fake, "what is it?")
    with pytest.raises(VideoDecodeError, match=r"holiday\.mp4"):
        search(text, videos=[video, fake])
    with pytest.raises(VideoDecodeError, match=r"<600 bytes>"):
        search(text, videos=[video, fake.read_bytes()])
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        ask(tmp_path / "gone.mp4", "what is it?")
    for blank in ("", "  ", [], ["what?", " "]):
        with pytest.raises(ValueError, match=r"blank .* Ask something"):
            ask(video, blank)
    with pytest.raises(ValueError, match="no question"):
        ask(video)
    with pytest.raises(TypeError, match=r"row .*not str"):
        ask([video])
    with pytest.raises(TypeError, match=r"'clip', 'question'"):
        ask({"clip": video, "question": "what?"})
    with pytest.raises(TypeError, match=r"question is a string.*'3'"):
        ask(video, 3)
    with pytest.raises(TypeError, match="A video is a path"):
        ask({"video": 7, "question": "what?"})
    with pytest.raises(ValueError, match="one of them holds 2"):
        ask([{"video": [video, video], "question": "what?"}])
    for arguments in ({}, {"videos": [video], "texts": [text]}):
        with pytest.raises(ValueError, match="exactly one of videos"):
            search(text, **arguments)
    with pytest.raises(ValueError, match="no candidates: videos is empty"):
        search(text, videos=[])
    with pytest.raises(ValueError, match="no candidates: texts is empty"):
        search(video, texts=[])
    with pytest.raises(ValueError, match="text is blank"):
        search(" ", videos=[video])
    with pytest.raises(TypeError, match="text is a string, not int"):
        search(video, texts=[text, 3])
    for pipe, arguments in ((ask, (video, "what?")), (search, (text,))):
        with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
            pipe(*arguments, top_k=0, **({} if pipe is ask else {"videos": [video]}))
        with pytest.raises(TypeError, match="no argument topk"):
            pipe(*arguments, topk=3, **({} if pipe is ask else {"videos": [video]}))
        with pytest.raises(ValueError, match="batch_size=0"):
            pipe(*arguments, batch_size=0, **({} if pipe is ask else {"videos": [video]}))
    with pytest.raises(ValueError, match="rerank=-1"):
        search(text, videos=[video], rerank=-1)
    assert search([], videos=[video]) == []
    assert ask([]) == []


def test_a_checkpoint_of_another_task_is_refused(captions, tmp_path) -> None:
    with pytest.raises(ValueError, match="holds AlproForVideoQuestionAnswering, which has no trained matching head"):
        pipeline("text-video-retrieval", model=alpro_hf.bundled_model("qa"), device="cpu")
    with pytest.raises(ValueError, match="holds AlproForVideoTextRetrieval, which has no trained answer classifier"):
        pipeline("video-question-answering", model=alpro_hf.bundled_model("retrieval"), device="cpu")
    processor = AlproProcessor.from_pretrained(alpro_hf.bundled_model("retrieval"))
    base = AlproModel.from_pretrained(alpro_hf.bundled_model("retrieval"))
    with pytest.raises(ValueError, match=r"TextVideoRetrievalPipeline needs processor=\.\.\."):
        pipeline_alpro.TextVideoRetrievalPipeline(model=base, task="text-video-retrieval", device="cpu")
    with pytest.raises(ValueError, match="needs an AlproForVideoQuestionAnswering, not a AlproModel"):
        pipeline("video-question-answering", model=base, processor=processor, device="cpu")
    search = pipeline("text-video-retrieval", model=base, processor=processor, device="cpu")
    videos, text = list(captions), next(iter(captions.values()))
    assert search(text, videos=videos)[0]["video"] == videos[0]
    with pytest.raises(ValueError, match="rerank=2 needs a matching head, and AlproModel has none"):
        search(text, videos=videos, rerank=2)
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    search = pipeline("text-video-retrieval", model=tmp_path, device="cpu")
    with pytest.raises(ValueError, match="holds AlproModel, which has no trained matching head"):
        search(text, videos=videos, rerank=2)


def test_a_new_model_may_be_tried_out(tmp_path, captions) -> None:
    """A head is only refused where it was expected in the checkpoint: a model from a config knows of no checkpoint."""
    model, processor = load(write_model(tmp_path, "retrieval"), "retrieval")
    model.config.architectures = None
    search = pipeline("text-video-retrieval", model=model.train(), processor=processor, device="cpu")
    assert not model.training
    assert search("a fox", videos=list(captions), rerank=2)[0]["match_probability"] is not None


def test_long_lists_show_their_progress(ask, search, captions, questions, monkeypatch, capsys) -> None:
    enable_progress_bar()  # which commands switch off, in whatever test ran one before
    ask(questions[:3])
    search(list(captions.values()), videos=list(captions))
    assert capsys.readouterr().err == ""  # it is over before a bar is worth it
    monkeypatch.setattr(pipeline_alpro, "_BAR_AFTER", 0)
    ask(questions[:3])
    search(list(captions.values()), videos=list(captions))
    shown = capsys.readouterr().err
    assert "video-question-answering: 100%" in shown
    assert f"encoding candidates: 100%|██████████| {CLIPS}/{CLIPS}" in shown
    ask(questions[:3], progress=False)
    search(list(captions.values()), videos=list(captions), progress=False)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------------------------------- registered, saved, published


def test_importing_the_package_registers_the_tasks() -> None:
    assert {"video-question-answering", "text-video-retrieval"} <= set(PIPELINE_REGISTRY.get_supported_tasks())


@pytest.mark.parametrize("task", ["qa", "retrieval"])
def test_a_saved_pipeline_opens_again(ask, search, captions, task, tmp_path) -> None:
    pipe, name = (ask, "video-question-answering") if task == "qa" else (search, "text-video-retrieval")
    pipe.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".py")]
    again = pipeline(name, model=tmp_path / "saved", device="cpu")
    video, text = next(iter(captions.items()))
    if task == "qa":
        assert_same(again(video, "what is it?"), ask(video, "what is it?"))
    else:
        assert_same(again(text, videos=[video], rerank=1), search(text, videos=[video], rerank=1))

    # exported, opened with the package, saved: the folder must not ask for code that it does not hold
    add_remote_code(tmp_path / "saved")
    exported = pipeline(name, model=tmp_path / "saved", pipeline_class=type(pipe), device="cpu")
    exported.save_pretrained(tmp_path / "resaved")
    assert pipeline(name, model=tmp_path / "resaved", device="cpu").task == name


REMOTE = """
import json, sys
sys.modules["alpro_hf"] = None  # as where it is not installed
from transformers import pipeline
from transformers.utils.logging import enable_progress_bar
said = []
for task, folder, again, arguments in json.loads(sys.argv[1]):
    pipe = pipeline(task, model=folder, trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules.")
    found = pipe(*arguments[0], **arguments[1])
    pipe.save_pretrained(again)
    second = pipeline(task, model=again, trust_remote_code=True, device="cpu")(*arguments[0], **arguments[1])
    try:
        pipe("a", index="nowhere") if "retrieval" in task else None
    except ModuleNotFoundError as error:
        assert "pip install alpro-hf" in str(error)
    said.append([found, second])
print(json.dumps(said))
"""


@pytest.mark.slow
def test_a_repository_brings_its_own_pipeline(ask, search, captions, tmp_path) -> None:
    videos, text = list(captions)[:3], next(iter(captions.values()))
    given: list[Any] = [[[videos[0], ["what is it?", "where is it?"]], {}], [[text], {"videos": videos, "rerank": 2}]]
    jobs = []
    for pipe, arguments in zip((ask, search), given, strict=True):
        folder = tmp_path / pipe.task
        pipe.save_pretrained(folder / "repo")
        add_remote_code(folder / "repo")
        jobs.append([pipe.task, str(folder / "repo"), str(folder / "again"), arguments])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", REMOTE, json.dumps(jobs)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    for pipe, arguments, said in zip((ask, search), given, json.loads(run.stdout.splitlines()[-1]), strict=True):
        expected = pipe(*arguments[0], **arguments[1])
        assert_same(said, [expected, expected])


def test_examples_of_the_documentation(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(pipeline_alpro)
    assert results.attempted > 10
    assert results.failed == 0


def test_half_precision(captions) -> None:
    folder = alpro_hf.bundled_model("retrieval")
    search = pipeline("text-video-retrieval", model=folder, dtype=torch.bfloat16, device="cpu")
    found = search(next(iter(captions.values())), videos=list(captions), rerank=3)
    assert found[0]["index"] == 0
    assert np.isfinite([r["score"] for r in found]).all()


def test_a_pipeline_without_a_model_takes_the_bundled_one():
    for task, kind in (("text-video-retrieval", "retrieval"), ("video-question-answering", "qa")):
        found = pipeline(task)
        assert Path(found.model.config._name_or_path) == Path(bundled_model(kind))
        assert found.processor is not None
