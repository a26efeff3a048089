"""The command `alpro` as its users meet it: exit codes, what goes to which stream, what survives an interruption."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.gallery import ANSWERS, load, write_model, write_video
from huggingface_hub import constants
from transformers.utils import logging

import alpro_hf
from alpro_hf.cli.main import COMMANDS, main
from alpro_hf.cli.options import Terminated
from alpro_hf.inference.index_shards import Manifest
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.sprites.render import write_split


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {task: str(write_model(folder / task, task)) for task in ("retrieval", "qa")}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six clips in two folders, one of them under a name that says nothing."""
    folder = tmp_path / "videos"
    for seed in range(6):
        write_video(folder / f"part-{seed % 2}" / f"{seed}.mp4", seed)
    (folder / "part-0" / "0.mp4").rename(folder / "part-0" / "0.download")
    return folder


@pytest.fixture(autouse=True)
def quiet_library() -> Iterator[None]:
    """The command silences the library for its process, which here is everybody's."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def start(*arguments: object) -> subprocess.Popen:
    """A real process that answers to Ctrl-C even where this one was started without a terminal."""
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "alpro_hf", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_videos(index: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (index / "index.json").exists() or len(Manifest.read(index).videos) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_index_survives_kill_and_interrupt(tmp_path, models) -> None:
    """Three real processes on one index; a pipe nobody writes to is the video at which the first two are caught."""
    clips = [write_video(tmp_path / f"{seed}.mp4", seed) for seed in range(8)]
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    pipe, index = tmp_path / "pipe.mp4", tmp_path / "index"
    os.mkfifo(pipe)
    common = ["--output", index, "--model", models["retrieval"], "--batch-size", 1, "--shard-size", 1]
    common += ["--dtype", "float32"]  # to be compared with a model in float32

    killed = start("index", *clips[:3], pipe, *clips[3:], *common)
    wait_for_videos(index, 3, killed)
    killed.kill()
    assert killed.communicate()[0] == ""
    assert [entry.path for entry in Manifest.read(index).videos] == ["0.mp4", "1.mp4", "2.mp4"]

    interrupted = start("index", *clips[:5], pipe, *clips[5:], *common)
    wait_for_videos(index, 5, interrupted)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert out == ""
    assert "alpro index: interrupted; what is done is kept" in err
    assert "Traceback" not in err
    assert len(Manifest.read(index).videos) == 5

    finished = start("index", *clips, broken, *common, "--json")
    out, err = finished.communicate(timeout=120)
    assert finished.returncode == 1
    result = json.loads(out)
    assert {key: result[key] for key in ("videos", "indexed", "unchanged")} == {
        "videos": 8,
        "indexed": 3,
        "unchanged": 5,
    }
    assert [failure["path"] for failure in result["failed"]] == [str(broken)]
    assert [json.loads(line) for line in (index / "failed.jsonl").read_text().splitlines()] == result["failed"]
    assert result["failed"][0]["reason"] in err
    assert "indexing" in err

    loaded = VideoIndex.load(index, *load(Path(models["retrieval"]), "retrieval"))
    fresh = VideoIndex.build(*load(Path(models["retrieval"]), "retrieval"), clips, progress=False)
    assert [result.path for result in loaded.search("a fox")] == [result.path for result in fresh.search("a fox")]


def test_savings_are_chosen_for_an_index_and_for_a_search(capsys, videos, tmp_path, models) -> None:
    index = tmp_path / "index"
    options = ["--token-dtype", "float8_e4m3fn", "--dtype", "int8", "--model", models["retrieval"]]
    assert run(capsys, "index", videos, "--output", index, *options)[0] == 0
    made = Manifest.read(index)
    assert (made.video["token_dtype"], made.model["dtype"]) == ("float8_e4m3fn", "int8")
    code, out, err = run(capsys, "search", index, "a fox runs", "--rerank-margin", 0, "--json")
    matched = [result["match_probability"] is not None for result in json.loads(out)["results"]]
    assert (code, err, matched) == (0, "", [True] + [False] * 5)
    code, out, err = run(capsys, "search", index, "a fox runs", "--rerank", 0, "--rerank-margin", 0.1)
    assert (code, out) == (1, "") and "rerank_margin=0.1 (--rerank-margin) must be" in err


def test_index_then_search(capsys, videos, tmp_path, models, monkeypatch) -> None:
    index = tmp_path / "index"
    code, out, err = run(capsys, "index", videos, "--output", index, "--model", models["retrieval"])
    assert (code, out) == (0, f"{index}: 6 videos\n6 indexed, 0 unchanged, 0 gone, 0 failed\n")
    assert "indexing" in err

    # the index remembers its model, also from elsewhere
    monkeypatch.chdir(videos)
    code, out, err = run(capsys, "search", index, "a fox runs", "--top-k", 4, "--rerank", 3)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 5)
    assert lines[0].split() == ["rank", "match", "similarity", "video"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert lines[1].split()[1].endswith("%")
    assert lines[4].split()[1] == "-"
    assert lines[1].split()[3].startswith("part-")

    code, out, _ = run(capsys, "search", index, "a fox runs", "--top-k", 4, "--rerank", 3, "--json")
    found = json.loads(out)
    assert (code, found["query"], found["model"], found["failed"]) == (0, "a fox runs", models["retrieval"], [])
    direct = VideoIndex.load(index, *load(Path(models["retrieval"]), "retrieval")).search(
        "a fox runs", top_k=4, rerank=3
    )
    for given, expected in zip(found["results"], direct, strict=True):
        assert given == {
            "rank": expected.rank,
            "path": str(expected.path),
            "start": None,
            "end": None,
            "score": expected.score,
            "similarity": expected.similarity,
            "match_probability": expected.match_probability,
        }

    # without an index the same is found
    code, out, _ = run(
        capsys, "search", videos, "a fox runs", "--model", models["retrieval"], "--top-k", 4, "--rerank", 3, "--json"
    )
    assert code == 0
    assert [result["path"] for result in json.loads(out)["results"]] == [result["path"] for result in found["results"]]


def test_index_takes_up_changes(capsys, videos, tmp_path, models) -> None:
    index = tmp_path / "index"
    command = ("index", videos, "--output", index, "--model", models["retrieval"], "--json")
    assert run(capsys, *command)[0] == 0
    gone = videos / "part-1" / "3.mp4"
    gone.unlink()
    write_video(videos / "new.mkv", seed=50)
    write_video(videos / "part-1" / "5.mp4", seed=51, frames=9)
    (videos / "empty.mp4").touch()
    code, out, err = run(capsys, *command)
    result = json.loads(out)
    assert code == 1
    assert [result[key] for key in ("videos", "indexed", "unchanged", "removed")] == [6, 2, 4, [str(gone)]]
    assert "zero bytes" in result["failed"][0]["reason"]
    assert f"gone: {gone}" in err
    assert f"failed: {videos / 'empty.mp4'}: the file has zero bytes" in err


def test_search_in_a_folder_lists_what_is_broken(capsys, videos, models) -> None:
    (videos / "broken.mp4").write_text("not a video")
    code, out, err = run(capsys, "search", videos, "a dog", "--model", models["retrieval"])
    assert code == 1
    assert len(out.splitlines()) == 7
    assert f"failed: {videos / 'broken.mp4'}: " in err


def test_ask(capsys, videos, models) -> None:
    clip = videos / "part-1" / "1.mp4"
    command = ("ask", clip, "which way is the fox", "--model", models["qa"])
    code, out, err = run(capsys, *command, "--top-k", 2)
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    assert out.splitlines()[2] == f"2 of the {len(ANSWERS)} answers that this model knows"
    code, out, _ = run(capsys, *command, "--json")
    result = json.loads(out)
    assert (code, result["video"]) == (0, str(clip))
    assert (result["known_answers"], result["unknown_words"], result["unfamiliar"]) == (len(ANSWERS), [], [])
    assert {answer["answer"] for answer in result["answers"]} == set(ANSWERS)
    probabilities = [answer["probability"] for answer in result["answers"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_words_that_no_tokenizer_knows_are_named_once(capsys, videos, models) -> None:
    code, out, err = run(
        capsys, "search", videos, "a fox 跳 and a bicycle 跳", "--model", models["retrieval"], "--json"
    )
    assert code == 0
    assert json.loads(out)["unknown_words"] == ["跳", "bicycle"]
    assert err.splitlines()[-1].startswith("alpro search: note: the model does not know '跳', 'bicycle'")


@pytest.fixture(scope="module")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("sprites"), "test", 2, progress=False) / "clips"


@pytest.mark.slow
def test_the_bundled_model_says_when_a_clip_is_not_of_its_world(capsys, sprites, tmp_path) -> None:
    folder = tmp_path / "mixed"
    own = folder / "own.mp4"
    write_video(own, seed=1)
    (folder / "sprite.mp4").write_bytes((sprites / "00000.mp4").read_bytes())
    index = tmp_path / "index"
    code, out, err = run(capsys, "index", folder, "--output", index, "--json")
    assert (code, json.loads(out)["unfamiliar"]) == (0, [str(own)])
    assert err.count("nothing else") == 1
    for where in (index, folder):
        code, out, err = run(capsys, "search", where, "the dog jumps", "--json")
        found = json.loads(out)
        assert (code, found["unfamiliar"], found["unknown_words"]) == (0, [str(own)], [])
        assert len(re.findall("note: this model knows a synthetic world .*own.mp4 is not of it", err)) == 1
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"video": str(clip), "text": "a bell"}) + "\n" for clip in folder.iterdir()))
    argv = ["evaluate", "--task", "retrieval", "--data", rows, "--no-plot", "--draws", 5, "--output", tmp_path / "out"]
    code, out, err = run(capsys, *argv, "--json")
    assert (code, json.loads(out)["details"]["unfamiliar"]) == (0, [str(own)])
    assert len(re.findall("evaluate: note: this model knows a synthetic world .*own.mp4 is not of it", err)) == 1
    code, out, err = run(capsys, "ask", own, "what does the astronaut do?", "--top-k", 1)
    assert code == 0
    assert out.splitlines()[1] == "1 of the 180 answers that this model knows"
    assert [line.partition("note: ")[2][:26] for line in err.splitlines()] == [
        "the model does not know 'a",
        "this model knows a synthet",
    ]


def test_the_bundled_model_is_silent_about_its_own_world(capsys, sprites) -> None:
    code, out, err = run(capsys, "ask", sprites / "00000.mp4", "what does the bell do?", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["unfamiliar"] == json.loads(out)["unknown_words"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "{videos}", "a dog", "--model"],
        ["ask", "{clip}", "what is it", "--model"],
        ["index", "{videos}", "--output", "{out}", "--model"],
        ["evaluate", "--task", "retrieval", "--data", "{rows}", "--output", "{out}", "--model"],
        ["train", "--recipe", "msrvtt-retrieval", "--data", "{rows}", "--output", "{out}", "--model"],
        ["train", "--recipe", "prompter", "--data", "{rows}", "--output", "{out}", "--text", "BERT", "--vision"],
        ["train", "--recipe", "pretrain", "--data", "{rows}", "--output", "{out}", "--model", "bundled", "--prompter"],
        ["pseudo-label", "{rows}", "--output", "{out}", "--prompter"],
        ["publish", "--repo", "acme/x", "--dry-run"],
        ["export-onnx", "{out}"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
def test_a_model_that_is_nowhere_is_one_sentence_in_every_command(
    capsys, videos, tmp_path, monkeypatch, arguments
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of `discard`: nobody listens
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"video": str(videos / "part-1" / "1.mp4"), "text": "a fox"}) + "\n")
    places = {"videos": videos, "clip": videos / "part-1" / "1.mp4", "rows": rows, "out": tmp_path / "out"}
    command, *rest = [argument.format(**places) for argument in arguments]
    words = (
        [command, "nomodel", *rest] if rest[-1] in ("--dry-run", str(places["out"])) else [command, *rest, "nomodel"]
    )
    start = time.monotonic()
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert time.monotonic() - start < 25  # the libraries are imported in it; trying again takes half a minute
    complaint = err.splitlines()[-1]
    assert complaint.startswith(f"alpro {command}: There is no folder nomodel here, ")
    assert not places["out"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{nowhere}", "a dog", "--model", "{retrieval}"], "There is no file or folder"),
        (["index", "{empty}", "--output", "{index}", "--model", "{retrieval}"], "there is no video in"),
        (["ask", "{nowhere}", "what is it", "--model", "{qa}"], "there is no file"),
        (["ask", "{videos}/*", "what is it", "--model", "{qa}"], "A pattern with * or ? is not expanded here"),
        (
            ["search", "{videos}/*.mp4", "a dog", "--model", "{retrieval}"],
            "A pattern with * or ? is not expanded here",
        ),
        (["ask", "{videos}", "what is it", "--model", "{qa}"], "is a folder. Name one video, for instance"),
        (["ask", "{text}", "what is it", "--model", "{qa}"], "notes.mp4: "),
        (["search", "{videos}", "a dog", "--model", "{qa}"], "was not trained for retrieval: it lacks vtm_head"),
        (["ask", "{clip}", "what is it", "--model", "{retrieval}"], "was not trained for qa: it lacks classifier"),
        (["search", "{videos}", "a dog", "--model", "{bert}"], "holds a model of type 'bert'"),
        (["search", "{videos}", "a dog", "--model", "{empty}"], "there is no config.json in it"),
    ],
)
def test_errors_are_one_sentence(capsys, videos, tmp_path, models, arguments, message) -> None:
    places = {
        **models,
        "videos": videos,
        "clip": videos / "part-1" / "1.mp4",
        "nowhere": tmp_path / "nowhere",
        "index": tmp_path / "index",
        "text": tmp_path / "notes.mp4",
        "empty": tmp_path / "empty",
        "bert": tmp_path / "bert",
    }
    places["text"].write_text("not a video")
    places["empty"].mkdir()
    places["bert"].mkdir()
    (places["bert"] / "config.json").write_text('{"model_type": "bert"}')
    code, out, err = run(capsys, *[argument.format(**places) for argument in arguments])
    assert (code, out) == (1, "")
    complaint = err.splitlines()[-1]
    assert complaint.startswith(f"alpro {arguments[0]}: ")
    assert message in complaint


@pytest.mark.slow
def test_libraries_keep_the_notes_about_their_installation(videos) -> None:
    """Of torchao and bitsandbytes, which the extra `test` installs and transformers imports."""
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    script = "import sys; from alpro_hf_launch import main; sys.exit(main())"  # that of `alpro`
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    command = [sys.executable, "-c", script, "ask", str(videos), "what is it"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1 and "is a folder. Name one video" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["--json"],
        ["--"],
        ["search", "index", " "],
        ["search", "index", "a dog", "--top-k", "0"],
        ["search", "index", "a dog", "--rerank", "-1"],
        ["index", "videos"],
        ["ask", "clip.mp4", "what is it", "--top-k", "many"],
        ["convert"],
    ],
)
def test_wrong_usage(capsys, arguments) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert "usage: alpro" in err


def test_alpro_alone_prints_its_help_where_no_results_are_expected(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", shown)
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serach", "index", "a dog", "--top-k", "3"], "unknown command serach. Did you mean search?"),
        (["pseudo_label"], "unknown command pseudo_label. Did you mean pseudo-label?"),
        (["xyz"], "unknown command xyz. alpro --help lists them all."),
        (["--versoin"], "unknown option --versoin. Did you mean --version?"),
        (
            ["search", "index", "a dog", "--allow-outsid"],
            "unknown option --allow-outsid. Did you mean --allow-outside?",
        ),
        (["search", "index", "a dog", "--allow"], "unknown option --allow. Did you mean --allow-outside?"),
        (["search", "--allow-outsid"], "unknown option --allow-outsid. Did you mean --allow-outside?"),
        (["index", "videos", "--ouput=there"], "unknown option --ouput. Did you mean --output?"),
        (["ask", "clip.mp4", "why", "-k", "3"], "unknown option -k. "),
        (["demo", "--xyz"], "unknown option --xyz. alpro demo --help lists them all."),
    ],
)
def test_a_misspelt_command_or_option_names_the_nearest_one(capsys, arguments, said) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    usage, complaint = err.splitlines()[0], err.splitlines()[-1]
    assert usage.startswith("usage: alpro")
    assert said in complaint


def test_values_that_look_like_options_are_values(capsys, videos, models) -> None:
    for query in ("-3 dogs", "--dog runs", "-5"):
        code, out, err = run(capsys, "search", videos, query, "--model", models["retrieval"], "--top-k", 1)
        assert (code, len(out.splitlines())) == (0, 2), err
    code, out, err = run(
        capsys, "search", "--model", models["retrieval"], "--top-k", 1, "--", videos, "--allow-outsid"
    )
    assert (code, len(out.splitlines())) == (0, 2), err


STARTED = """
import json, sys
from alpro_hf_launch import main
try:
    code = main()
except SystemExit as stopped:
    code = stopped.code
registered = "alpro_hf.registration" in sys.modules
loaded = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
if registered:
    from transformers import MODEL_MAPPING, AutoConfig
    loaded.append(MODEL_MAPPING[type(AutoConfig.for_model("alpro"))].__name__)
print(json.dumps([code, registered, loaded]), file=sys.stderr)
"""


def started(*arguments: str) -> tuple[str, int, bool, list[str]]:
    """Output of the console script in a process of its own, its exit code, and what it imported."""
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    command = [sys.executable, "-c", STARTED, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    code, registered, loaded = json.loads(ran.stderr.splitlines()[-1])
    return ran.stdout + ran.stderr, code, registered, loaded


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_library_of_models(command) -> None:
    said, code, registered, loaded = started(*command.split(), "--help")
    assert (code, registered, loaded) == (0, False, [])
    assert f"usage: alpro {command}".strip() in said


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), ([], 2), (["serach"], 2), (["search"], 2)])
def test_version_and_wrong_usage_import_no_library_of_models(arguments, code) -> None:
    assert started(*arguments)[1:] == (code, False, [])


def test_help_of_the_module_imports_no_library_of_models_and_others_register() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "alpro_hf", "--help"]
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in ran.stderr.splitlines()}
    assert ran.stdout.startswith("usage: alpro")
    assert "alpro_hf.cli.main" in imported
    assert not {"torch", "transformers", "alpro_hf.registration"} & imported


# what a command that finds or asks has no use for; some of it takes as long to import as torch
HEAVY = (
    *("accelerate.accelerator", "bitsandbytes", "datasets", "evaluate", "gradio", "matplotlib", "mteb", "pandas"),
    *("peft", "pyarrow", "sentence_transformers", "sklearn", "spacy", "torch._inductor.compile_fx"),
    *("transformers.trainer", "transformers.training_args"),
)
WORKED = """
import json, sys
from transformers import PreTrainedModel
before = set(sys.modules)
from alpro_hf.cli.main import main
loaded = {}
for line in json.loads(sys.argv[1]):
    assert main(line) == 0, line
    loaded[line[0]] = sorted(set(sys.modules) - before)
print(json.dumps(loaded))
"""


@pytest.mark.slow
def test_commands_import_what_they_use(videos, models, tmp_path) -> None:
    lines = [
        ["index", videos, "--output", tmp_path / "index", "--model", models["retrieval"]],
        ["search", tmp_path / "index", "a dog", "--top-k", "2"],
        ["ask", videos / "part-1" / "1.mp4", "what is it", "--model", models["qa"]],
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(alpro_hf.__file__).parents[1])}
    command = [sys.executable, "-c", WORKED, json.dumps([list(map(str, line)) for line in lines])]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded = json.loads(ran.stdout.splitlines()[-1])
    assert "alpro_hf.inference.video_index" in loaded["index"]
    for command_name, modules in loaded.items():
        assert not set(HEAVY) & set(modules), command_name


@pytest.mark.slow
def test_auto_classes_know_our_models_when_a_command_works(tmp_path) -> None:
    said, code, registered, loaded = started("ask", str(tmp_path / "nowhere.mp4"), "what is it")
    assert "alpro ask: there is no file" in said
    assert (code, registered) == (1, True)
    assert {"torch", "transformers", "AlproModel"} <= set(loaded)


@pytest.mark.parametrize("command", [[], ["demo"], ["index"], ["search"], ["ask"], ["convert"]])
def test_help_teaches(capsys, command) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    out, err = capsys.readouterr()
    assert (stopped.value.code, err) == (0, "")
    if command != ["demo"]:
        assert "examples:" in out
    if not command:
        assert "exit codes:" in out


def test_our_own_mistakes_keep_their_traceback(videos, models, monkeypatch) -> None:
    def mistaken(self, *arguments, **keywords):
        raise ValueError("a bug")

    monkeypatch.setattr(VideoIndex, "search", mistaken)
    with pytest.raises(ValueError, match="a bug"):
        main(["search", str(videos), "a dog", "--model", models["retrieval"]])


@pytest.mark.parametrize(("rank", "speaker"), [("0", "alpro ask: "), ("1", "alpro ask (process 1): ")])
def test_processes_after_the_first_say_which_they_are(capsys, monkeypatch, tmp_path, rank, speaker) -> None:
    monkeypatch.setenv("RANK", rank)
    code, _, err = run(capsys, "ask", tmp_path / "nowhere.mp4", "what is it")
    assert (code, err.splitlines()[-1].startswith(f"{speaker}there is no file")) == (1, True)


@pytest.mark.parametrize(
    ("error", "code", "said"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")]
)
def test_a_command_that_is_stopped_says_so(capsys, monkeypatch, videos, models, tmp_path, error, code, said) -> None:
    def stopped(*arguments, **keywords):
        raise error

    monkeypatch.setattr(VideoIndex, "build", stopped)
    where = ["--output", tmp_path / "index", "--model", models["retrieval"]]
    assert run(capsys, "index", videos, *where)[::2] == (
        code,
        f"alpro index: {said}; what is done is kept, and the same command continues from there\n",
    )
    searched = run(capsys, "search", videos, "a dog", "--no-cache", *where[2:])
    assert searched[::2] == (code, f"alpro search: {said}\n")
