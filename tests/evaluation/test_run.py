"""`alpro evaluate` as users run it, on released annotations and clips in files; its numbers against the Trainer's."""

import json
import subprocess
import sys

import pytest
import torch
from fixtures import evaluate_in_processes as script
from fixtures import gallery
from fixtures.processes import environment
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers.utils import logging

from alpro_hf import AlproConfig, AlproForPreTraining, AlproModel, AlproProcessor, AlproTrainer, AlproTrainingArguments
from alpro_hf.cli.main import main
from alpro_hf.data.annotations import load_annotations
from alpro_hf.data.collator import AlproCollator
from alpro_hf.evaluation.compare import compare_results
from alpro_hf.evaluation.results import data_fingerprint, model_source, read_predictions, read_results, row_metrics
from alpro_hf.evaluation.run import Evaluation, EvaluationError
from alpro_hf.evaluation.run import evaluate as evaluate_in_python
from alpro_hf.loading import best_dtype

TEXTS = [
    "a fox moves",
    "the dog runs to the left",
    "a cat spins and then grows",
    "pizza",
    "two dogs",
    "a video of a fox",
]
QUESTIONS = [
    ("what is this", "fox", "what"),
    ("how many things are there", "two", "how"),
    ("what does the dog do in this clip", "spins", "what"),
    ("which way", "left", None),
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def quiet_library():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight clips, of which one is broken and one is missing, in the released form; captions twice for some."""
    folder = tmp_path_factory.mktemp("released")
    for number in range(8):
        gallery.write_video(folder / "videos" / f"video70{number}.mp4", number)
    (folder / "videos" / "video707.mp4").write_bytes(b"not a video")
    names = [f"video70{number}" for number in range(7)]
    rows = [
        {"caption": f"{text} {extra}".strip(), "clip_name": name}
        for extra in ("", "here", "moves up")
        for text, name in zip(TEXTS, names, strict=False)
    ]
    questions = [
        {"question": question, "answer": answer, "video_id": name} | ({"answer_type": kind} if kind else {})
        for question, answer, kind in QUESTIONS
        for name in names[:6]
    ]
    write_lines(folder / "captions.jsonl", rows)
    write_lines(folder / "questions.jsonl", [*questions, questions[0] | {"video_id": "video707"}])
    write_lines(folder / "broken.jsonl", [*rows, {"caption": "a pizza spins", "clip_name": "video707"}])
    write_lines(folder / "missing.jsonl", [*rows, {"caption": "a pizza spins", "clip_name": "video799"}])
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A retrieval and a question-answering model; a pre-trained one and towers with the weights of the first."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("retrieval", "qa"):
        gallery.write_model(folder / task, task)
    retrieval, processor = gallery.load(folder / "retrieval", "retrieval")
    config = AlproConfig.from_dict(retrieval.config.to_dict() | {"entities": ["fox", "dog"]})
    pretrained = AlproForPreTraining(config)
    pretrained.load_state_dict(retrieval.state_dict(), strict=False)
    pretrained.config.matching_trained = True
    retrieval.alpro.save_pretrained(folder / "towers")
    pretrained.save_pretrained(folder / "pretrained")
    for name in ("towers", "pretrained"):
        processor.save_pretrained(folder / name)
    return folder


def evaluate(capsys, *argv):
    code = main(["evaluate", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def retrieval_options(data, models, output, file="captions.jsonl", model="retrieval"):
    options = ["--task", "retrieval", "--data", f"released-retrieval:{data / file}", "--videos", data / "videos"]
    return [*options, "--model", models / model, "--output", output, "--draws", 50]


def trainer_metrics(task, model_folder, rows, text_length=32, **arguments):
    """The same evaluation, by the Trainer."""
    model, processor = gallery.load(model_folder, task)
    processor.tokenizer.model_max_length = text_length
    collator = AlproCollator(processor, task=task, label2id=model.config.label2id if task == "qa" else None)
    args = AlproTrainingArguments(
        output_dir=str(model_folder.parent / "trainer"), use_cpu=True, report_to="none", **arguments
    )
    metrics = AlproTrainer(model=model, args=args, data_collator=collator, eval_dataset=rows).evaluate()
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def test_retrieval_by_the_reference_protocol(data, models, tmp_path, capsys):
    argv = retrieval_options(data, models, tmp_path / "out")
    code, out, err = evaluate(capsys, *argv, "--text-length", 8)
    assert code == 0, err
    results = read_results(tmp_path / "out")
    rows = load_annotations("released-retrieval", data / "captions.jsonl", videos=data / "videos")

    assert results.protocol == {
        "name": "reference",
        "num_frames": 4,
        "frame_sampling": "center",
        "size": {"height": 16, "width": 16},
        "text_length": 8,
    }
    assert results.model == model_source(str(models / "retrieval"))
    assert results.model["revision"].startswith("sha256:")
    assert results.data["fingerprint"] == data_fingerprint(rows)
    assert {name: results.data[name] for name in ("rows", "texts", "videos", "missing")} == {
        "rows": 18, "texts": 18, "videos": 6, "missing": 0,
    }  # fmt: skip
    assert results.command == ["alpro", "evaluate", *map(str, argv), "--text-length", "8"]
    assert results.versions["torch"] == torch.__version__
    assert results.details["skipped"] == []

    expected = trainer_metrics("retrieval", models / "retrieval", rows, 8, eval_protocol="reference")
    shared = [name for name in results.metrics if name in expected]
    assert {"t2v_r1", "v2t_mean_rank", "vtc_t2v_r5", "vtc_v2t_median_rank"} <= set(shared)
    assert {name: results.metrics[name] for name in shared} == pytest.approx({name: expected[name] for name in shared})
    predictions = read_predictions(tmp_path / "out")
    assert len(predictions) == 18 + 6
    assert predictions[6]["caption"] == "a fox moves here"
    assert predictions[6]["video"] == "video700"
    for name, metric in row_metrics(predictions).items():
        assert results.metrics[name] == pytest.approx(metric.statistic(metric.values))
        low, high = results.intervals[name]
        assert low <= results.metrics[name] <= high

    curve = results.details["rerank_curve"]
    assert curve["k"] == list(range(1, 19))
    assert curve["with_prior_t2v_r1"][0] == curve["without_prior_t2v_r1"][0] == results.metrics["vtc_t2v_r1"]
    assert curve["with_prior_t2v_r1"][-1] == results.metrics["with_prior_t2v_r1"]
    groups = results.details["breakdown"]["words"]
    assert sum(group["n"] for group in groups.values()) == 18
    weighted = sum(group["n"] * group["t2v_r1"] for group in groups.values()) / 18
    assert weighted == pytest.approx(results.metrics["t2v_r1"])
    for name in ("ranks", "rerank", "breakdown"):
        assert Image.open(tmp_path / "out" / f"{name}.png").size[0] > 600
    assert "protocol reference, num_frames 4, text_length 8" in out
    assert f"text to video{results.metrics['t2v_r1']:30.1f}" in out
    assert err == ""


def test_the_prior_is_in_or_out(data, models, tmp_path, capsys):
    argv = ["--protocol", "rerank", "--rerank-k", 3, "--no-plot"]
    for name, option in (("with", []), ("without", ["--no-prior"])):
        code, _, err = evaluate(capsys, *retrieval_options(data, models, tmp_path / name), *argv, *option)
        assert code == 0, err
    metrics = {name: read_results(tmp_path / name).metrics for name in ("with", "without")}
    assert read_results(tmp_path / "without").protocol["prior"] is False
    for name in ("t2v_r1", "t2v_mean_rank", "v2t_r5", "v2t_mean_rank"):
        assert metrics["with"][name] == metrics["without"][f"with_prior_{name}"]
        assert metrics["without"][name] == metrics["with"][f"without_prior_{name}"]
    assert metrics["with"]["t2v_mean_rank"] != metrics["without"]["t2v_mean_rank"]
    rows = load_annotations("released-retrieval", data / "captions.jsonl", videos=data / "videos")
    expected = trainer_metrics("retrieval", models / "retrieval", rows, eval_protocol="rerank", rerank_k=3)
    assert metrics["with"]["t2v_mean_rank"] == pytest.approx(expected["t2v_mean_rank"])
    curve = read_results(tmp_path / "with").details["rerank_curve"]
    assert curve["k"] == [1, 2, 3]
    assert curve["with_prior_v2t_r1"][-1] == pytest.approx(metrics["with"]["v2t_r1"])
    assert curve["without_prior_t2v_r1"][-1] == pytest.approx(metrics["without"]["t2v_r1"])
    assert not list(tmp_path.rglob("*.png"))
    differences = compare_results(tmp_path / "with", tmp_path / "without", n=20)
    assert differences["t2v_mean_rank"].b == metrics["without"]["t2v_mean_rank"]


def test_zero_shot_from_a_pretrained_checkpoint(data, models, tmp_path, capsys):
    """The student has matching: the same numbers as the retrieval model that it becomes. Towers alone have `vtc`."""
    found = {}
    for model, protocol in (("retrieval", "reference"), ("pretrained", "reference"), ("towers", "vtc")):
        output = tmp_path / model
        options = ["--protocol", protocol, "--num-frames", 6, "--no-plot"]
        code, _, err = evaluate(capsys, *retrieval_options(data, models, output, model=model), *options)
        assert code == 0, err
        found[model] = read_results(output)
    assert found["pretrained"].metrics == found["retrieval"].metrics
    assert found["pretrained"].protocol["num_frames"] == 6
    for name in ("t2v_r1", "v2t_mean_rank"):
        assert found["towers"].metrics[name] == found["retrieval"].metrics[f"vtc_{name}"]
    assert found["towers"].details.keys() == {"breakdown", "skipped", "unfamiliar", "run"}
    argv = retrieval_options(data, models, tmp_path / "no", model="towers")
    code, _, err = evaluate(capsys, *argv, "--protocol", "reference")
    assert code == 1
    assert "The protocol reference needs a matching head, and AlproModel has none" in err


def test_the_numbers_to_compute_in_are_chosen_by_name_or_by_the_machine(data, models, tmp_path, capsys):
    scores = {}
    for dtype in ("auto", "float32", "bfloat16", "int8"):
        options = ["--protocol", "vtc", "--dtype", dtype, "--no-plot"]
        code, _, err = evaluate(capsys, *retrieval_options(data, models, tmp_path / dtype), *options)
        assert code == 0, err
        results = read_results(tmp_path / dtype)
        scores[dtype] = results.metrics
        expected = {"auto": str(best_dtype("cpu")).removeprefix("torch.")}.get(dtype, dtype)
        assert results.details["run"]["dtype"] == expected
    assert scores["auto"] == scores[str(best_dtype("cpu")).removeprefix("torch.")]


def test_questions(data, models, tmp_path, capsys):
    argv = ["--task", "qa", "--data", f"released-qa:{data / 'questions.jsonl'}", "--videos", data / "videos"]
    code, out, err = evaluate(capsys, *argv, "--model", models / "qa", "--output", tmp_path, "--draws", 50)
    assert code == 1, "a clip is broken"
    assert "failed: video707 (1 rows): " in err
    results, predictions = read_results(tmp_path), read_predictions(tmp_path)
    assert [clip["video"] for clip in results.details["skipped"]] == ["video707"]
    assert results.protocol["name"] == "classifier"
    assert results.protocol["answers"] == 5
    assert (results.data["rows"], results.data["questions"], results.data["videos"]) == (25, 24, 6)
    rows = load_annotations("released-qa", data / "questions.jsonl", videos=data / "videos").select(range(24))
    expected = trainer_metrics("qa", models / "qa", rows)
    assert results.metrics == pytest.approx({name: expected[name] for name in results.metrics})
    assert results.metrics["out_of_list"] == 6
    assert {"accuracy", "accuracy_what", "accuracy_how"} <= results.metrics.keys()
    assert [row["question"] for row in predictions] == rows["question"][:]
    assert all(row["rank"] is None for row in predictions if row["answer"] == "spins")
    hits = [row["rank"] == 1 for row in predictions]
    assert hits == [row["correct"] for row in predictions]
    assert f"accuracy                {results.metrics['accuracy']:8.1f}" in out
    assert (tmp_path / "ranks.png").stat().st_size > 5000


def test_questions_as_their_owners_publish_them(data, models, tmp_path, capsys):
    """MSVD-QA: numbered clips, and the file that says what they are called."""
    asked = [{"id": i, "video_id": i + 1, "question": "what is this", "answer": "fox"} for i in range(3)]
    (tmp_path / "test_qa.json").write_text(json.dumps(asked))
    (tmp_path / "youtube_mapping.txt").write_text("".join(f"video70{i} vid{i + 1}\n" for i in range(3)))
    argv = ["--task", "qa", "--data", f"msvd-qa:{tmp_path / 'test_qa.json'}", "--videos", data / "videos"]
    names = ["--video-names", tmp_path / "youtube_mapping.txt"]
    options = ["--model", models / "qa", "--output", tmp_path / "out", "--draws", 10, "--no-plot"]
    code, _, err = evaluate(capsys, *argv, *names, *options)
    assert code == 0, err
    assert [row["video"] for row in read_predictions(tmp_path / "out")] == ["vid1", "vid2", "vid3"]
    assert read_results(tmp_path / "out").metrics.keys() == {
        "accuracy", "accuracy_what", "out_of_list", "out_of_list_share", "n",
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video": "a.mp4", "question": "what?", "answer": "fox"}) + "\n")
    code, _, err = evaluate(
        capsys, "--task", "qa", "--data", tmp_path / "rows.jsonl", *names, "--output", tmp_path / "no"
    )
    assert code == 1
    assert "video_names belong to annotations as their owners publish them, KIND:PATH" in err


def test_broken_and_missing_clips_are_told(data, models, tmp_path, capsys):
    broken = retrieval_options(data, models, tmp_path / "broken", "broken.jsonl")
    code, _, err = evaluate(capsys, *broken, "--protocol", "vtc", "--no-plot")
    assert code == 1
    assert "failed: video707 (1 rows): " in err
    assert read_results(tmp_path / "broken").data["texts"] == 18

    missing = retrieval_options(data, models, tmp_path / "missing", "missing.jsonl")
    code, out, err = evaluate(capsys, *missing, "--protocol", "vtc", "--no-plot")
    assert code == 0
    assert "1 clips are missing, so these numbers are of a part of the data only." in out
    assert (tmp_path / "missing" / "missing-released-retrieval-missing.txt").read_text() == "video799\n"
    assert read_results(tmp_path / "missing").data["missing"] == 1
    strict = retrieval_options(data, models, tmp_path / "strict", "missing.jsonl")
    code, _, err = evaluate(capsys, *strict, "--on-missing", "error")
    assert code == 1
    assert "'video799'" in err


def test_by_category_and_by_columns_of_ones_own(data, models, tmp_path, capsys):
    """MSR-VTT as its owners publish it, and a plain table of one's own."""
    videos = [{"video_id": f"video70{i}", "split": "test", "category": i % 2} for i in range(6)]
    sentences = [{"video_id": f"video70{i}", "caption": text, "sen_id": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    table = ["video,text,camera"] + [
        f"{data}/videos/video70{i}.mp4,{text},{'ab'[i > 3]}" for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(table) + "\n")
    argv = ["--task", "retrieval", "--model", models / "retrieval", "--protocol", "vtc", "--draws", 20]
    options = ["--data", f"msrvtt:{tmp_path}", "--videos", data / "videos", "--split", "test"]
    code, out, err = evaluate(capsys, *argv, *options, "--output", tmp_path / "msrvtt")
    assert code == 0, err
    groups = read_results(tmp_path / "msrvtt").details["breakdown"]["category"]
    assert {name: group["n"] for name, group in groups.items()} == {"0": 3, "1": 3}
    # a column of names is none of groups: an error where it was asked for, and found before the work begins
    many = [f"{data}/videos/video700.mp4,{text},{i}x" for i, text in enumerate(TEXTS * 20)]
    (tmp_path / "many.csv").write_text("\n".join(["video,text,category", *many]) + "\n")
    options = ["--data", tmp_path / "many.csv", "--output", tmp_path / "many", "--no-plot"]
    code, _, err = evaluate(capsys, *argv, *options, "--by", "category")
    assert code == 1
    assert "by (--by) category: 120 different values, such as '0x', are no groups" in err
    assert evaluate(capsys, *argv, *options)[0] == 0
    assert read_results(tmp_path / "many").details["breakdown"].keys() == {"words"}
    assert "by category" in out
    options = ["--data", tmp_path / "mine.csv", "--by", "camera", "--output", tmp_path / "mine", "--no-plot"]
    code, out, err = evaluate(capsys, *argv, *options, "--workers", 1, "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert {name: group["n"] for name, group in printed["details"]["breakdown"]["camera"].items()} == {"a": 4, "b": 2}
    assert "missing" not in printed["data"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "qa", "--protocol", "vtc"], "protocol (--protocol) belongs to retrieval"),
        (["--rerank-k", "4"], "rerank_k (--rerank-k) belongs to the protocol rerank, but the protocol is reference"),
        (["--rerank-margin", "0.1"], "rerank_margin (--rerank-margin) belongs to the protocol rerank"),
        (
            ["--protocol", "vtc", "--no-prior"],
            "prior (--no-prior) belongs to the protocol rerank, but the protocol is vtc",
        ),
        (["--text-length", "33"], "text_length (--text-length) is 33, more than the 32 tokens"),
        (["--by", "camera"], "by (--by) names camera, but the rows have only video, text, video_id"),
        (["--data", "captions.jsonl"], "captions.jsonl"),
        (["--model", "/nowhere/at-all"], "/nowhere/at-all"),
    ],
)
def test_what_does_not_fit_is_refused(data, models, tmp_path, capsys, options, message):
    code, out, err = evaluate(capsys, *retrieval_options(data, models, tmp_path / "out"), *options)
    assert (code, out) == (1, "")
    assert err.startswith("alpro evaluate: ")
    assert message in err
    assert "Traceback" not in err


def test_python_has_the_settings_of_the_command_line(data, models, tmp_path, capsys):
    shared = {"task": "retrieval", "model": str(models / "retrieval"), "videos": data / "videos", "draws": 20}
    margin = {"rerank_margin": 0.5, "plot": False}
    rows = f"released-retrieval:{data / 'captions.jsonl'}"
    settings = Evaluation(data=rows, output=tmp_path / "python", protocol="rerank", rerank_k=2, **margin, **shared)
    results = evaluate_in_python(settings)
    argv = retrieval_options(data, models, tmp_path / "command")
    assert (
        evaluate(
            capsys, *argv, "--draws", 20, "--protocol", "rerank", "--rerank-k", 2, "--rerank-margin", 0.5, "--no-plot"
        )[0]
        == 0
    )
    assert results.protocol["rerank_margin"] == 0.5
    by_command = read_results(tmp_path / "command")
    for name in ("task", "protocol", "metrics", "model", "data", "intervals"):
        assert getattr(results, name) == getattr(by_command, name)
    assert results.metrics == read_results(tmp_path / "python").metrics
    with pytest.raises(EvaluationError, match="already holds results"):
        evaluate_in_python(settings)
    with pytest.raises(EvaluationError, match=r"rerank_k .* belongs to the protocol rerank"):
        evaluate_in_python(Evaluation(data=rows, output=tmp_path / "other", rerank_k=2, **shared))
    with pytest.raises(EvaluationError, match=r"rerank_margin=-1 \(--rerank-margin\) must be a number of at least 0"):
        evaluate_in_python(
            Evaluation(data=rows, output=tmp_path / "other", protocol="rerank", rerank_margin=-1, **shared)
        )
    with pytest.raises(StrictDataclassError, match="'protocol'"):
        Evaluation(data=rows, output=tmp_path / "other", protocol="cosine", **shared)


def test_results_are_replaced_only_when_asked_to(data, models, tmp_path, capsys):
    argv = [*retrieval_options(data, models, tmp_path), "--protocol", "vtc", "--no-plot"]
    assert evaluate(capsys, *argv)[0] == 0
    before = (tmp_path / "results.json").read_bytes()
    code, _, err = evaluate(capsys, *argv)
    assert code == 1
    assert "already holds results" in err
    assert (tmp_path / "results.json").read_bytes() == before
    assert evaluate(capsys, *argv, "--overwrite")[0] == 0


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(data, models, tmp_path, capsys):
    """Under `accelerate launch`: same metrics, intervals, predictions, skipped clips; in retrieval and questions."""
    arguments = [str(models / "retrieval"), str(models / "qa"), str(data), str(tmp_path / "two")]
    # with the option --cpu, the launcher would need MPI to start two
    variables = environment(ACCELERATE_USE_CPU="true")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [*command, script.__file__, *arguments], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("out_of_list_share") == 1, "the first process speaks"
    assert done.stderr.count("failed: video707") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for task in ("retrieval", "qa"):
        main(["evaluate", *script.arguments(task, str(models / task), data, tmp_path / "one" / task)])
        one, two = (read_results(tmp_path / name / task) for name in ("one", "two"))
        assert (one.details["run"]["processes"], two.details["run"]["processes"]) == (1, 2)
        for name in ("metrics", "intervals", "protocol", "data", "model"):
            assert getattr(two, name) == getattr(one, name)
        assert two.details["skipped"] == one.details["skipped"]
        assert read_predictions(tmp_path / "two" / task) == read_predictions(tmp_path / "one" / task)
    torch.set_num_threads(threads)
    capsys.readouterr()


def test_a_model_of_towers_can_be_loaded_by_its_own_class(models):
    assert isinstance(AlproModel.from_pretrained(models / "pretrained"), AlproModel)
    assert AlproProcessor.from_pretrained(models / "pretrained").tokenizer.model_max_length == 32
