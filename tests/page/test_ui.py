"""`alpro ui`: the page over one's own index, as a process that a browser and other programs reach."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.gallery import write_model, write_video

from alpro_hf.cli.main import main
from alpro_hf.page.clips import DemoError, Visit
from alpro_hf.page.gallery import Collection
from alpro_hf.page.layout import build
from alpro_hf.page.studio import Studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 40  # of the film, which is cut into windows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, videos and their index, which this user has made."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "model", "retrieval")
    write_model(home / "qa", "qa")
    write_video(home / "secret-place" / "films" / "film.mp4", seed=1, frames=6 * SECONDS)
    write_video(home / "secret-place" / "fox.mp4", seed=2)
    index, videos = str(home / "index"), str(home / "secret-place")
    assert main(["index", videos, "--output", index, "--model", str(home / "model")]) == 0
    return home


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    studio = Studio(None, str(home / "qa"), gallery=Collection(home / "index"))
    yield studio
    studio.close()


def test_results_are_moments_of_the_index(studio, home) -> None:
    assert sorted(clip.title for clip in studio.clips) == ["films/film.mp4", "fox.mp4"]
    found = studio.search("a fox moves", Visit())
    times = {result.clip.title: (result.clip.start, result.clip.end) for result in found}
    [film] = [title for title in times if title.startswith("films/film.mp4 00:00:")]
    start, end = times[film]
    assert 0 <= start < end <= SECONDS and times["fox.mp4"] == (None, None)
    expected = studio.index.search("a fox moves", top_k=2)
    assert {result.match_probability for result in found} == {result.match_probability for result in expected}
    # the id in an address leads to the same moment in another process
    [moment] = [result.clip for result in found if result.clip.start is not None]
    again = Studio(None, gallery=Collection(home / "index"), questions=False)
    assert (again.find(moment.id, Visit()).path, again.find(moment.id, Visit()).span) == (moment.path, moment.span)
    with pytest.raises(DemoError, match="gone"):
        again.find("v-0000000000000000", Visit())
    again.close()
    # questions and frames are about the moment
    [whole] = [clip for clip in studio.clips if clip.title == "films/film.mp4"]
    part = moment
    assert studio.ask(part, "what is the fox doing") != studio.ask(whole, "what is the fox doing")
    assert studio.frames(part) != studio.frames(whole)
    assert studio.media.read(part.poster)[:3] == b"\xff\xd8\xff" and studio.media.read(part.fallback)[4:8] == b"ftyp"


def test_what_the_models_cannot_do_is_not_on_the_page(home) -> None:
    studio = Studio(None, gallery=Collection(home / "index"), questions=False)
    labels = str([component["props"].get("label") for component in build(studio).get_config_file()["components"]])
    assert "'What happens?'" in labels and "Question" not in labels
    config = str(build(studio).get_config_file())
    assert "secret-place" not in config and str(home) not in config  # no folder is told
    with pytest.raises(DemoError, match="no model for questions"):
        studio.ask(studio.clips[0], "what?")
    studio.close()


def test_a_link_that_leads_out_is_not_served(home, tmp_path) -> None:
    copy = shutil.copytree(home, tmp_path / "copy")
    outside = write_video(tmp_path / "outside.mp4", seed=9)
    studio = Studio(str(home / "model"), gallery=Collection(copy / "index", copy / "secret-place"), questions=False)
    try:
        [fox] = [clip for clip in studio.clips if clip.title == "fox.mp4"]
        assert studio.index.may_hold(fox.path)
        fox.path.unlink()
        fox.path.symlink_to(outside)
        answer = asyncio.run(studio.media.answer(fox.video.removeprefix("media/")))
        assert answer.status_code == 404 and not studio.index.may_hold(fox.path)
    finally:
        studio.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "There is no index and no folder nowhere"),
        (("index", "--qa-model", "no/such/model"), "no/such/model"),
        (("index", "--qa-model", "model"), "was not trained for qa"),
        (("index", "--host", "203.0.113.1"), "cannot listen at 203.0.113.1"),
        (("qa",), "neither an index nor a folder with videos"),
        (("strangers",), "--videos"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(home, monkeypatch, capsys, arguments, said) -> None:
    monkeypatch.chdir(home)
    if arguments == ("strangers",) and not (home / "strangers").exists():
        shutil.copytree("index", "strangers")
        manifest = json.loads(Path("strangers/index.json").read_text())
        Path("strangers/index.json").write_text(json.dumps(manifest | {"seal": None}))
    assert main(["ui", *arguments, "--no-browser", "--port", str(free_port())]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("alpro ui: ") and "Traceback" not in "".join(lines)


def test_help_says_what_is_served_and_to_whom(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["ui", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("Nothing leaves this machine", "--qa-model", "--allow-outside", 'pip install "alpro-hf[demo]"'):
        assert words in said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def served(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of the page of `alpro ui`, and headers and text of its answer before the models were loaded."""
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    environment = os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    command = [
        sys.executable,
        "-c",
        "from alpro_hf_launch import main; raise SystemExit(main())",
        "ui",
        str(home / "index"),
    ]
    command += ["--no-browser", "--port", str(port)]
    waiting = ""
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            deadline = time.monotonic() + 400
            while True:
                said = (folder / "log.txt").read_text()
                assert process.poll() is None and time.monotonic() < deadline, said
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                        break
                except urllib.error.HTTPError as error:
                    if error.code == 503:
                        waiting = f"{error.headers}{error.read().decode()}"
                except OSError:
                    pass
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", waiting
        finally:
            process.terminate()
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and output == ""
    said = (folder / "log.txt").read_text()
    assert "loading the model for searches, model ..." in said and f"Ready: http://127.0.0.1:{port}" in said
    assert "Traceback" not in said
    assert not list(folder.glob("alpro-demo-*"))


@pytest.mark.slow
def test_the_page_of_an_index(served, home) -> None:
    from gradio_client import Client

    address, waiting = served
    assert (
        "Search and question videos" in waiting and "The page is starting" in waiting
    )  # before the models were there
    assert "x-content-type-options: nosniff" in waiting
    client = Client(address, verbose=False)
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == ["/clips", "/search", "/words"]
    found = client.predict("the fox runs", api_name="/search")
    assert [one["rank"] for one in found] == [1, 2] and any("00:00:" in one["title"] for one in found)
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert "secret-place" not in page and str(home) not in page
    poster, video = re.search(r"media/[-\w]+\.jpg", page)[0], re.search(r"media/[-\w]+\.mp4", page)[0]
    with urllib.request.urlopen(f"{address}/{poster}") as answer:
        assert answer.read(3) == b"\xff\xd8\xff"
    files = [path.read_bytes() for path in (home / "secret-place").rglob("*.mp4")]
    with urllib.request.urlopen(f"{address}/{video}") as answer:
        assert answer.read() in files
    for path in (home / "secret-place" / "fox.mp4", home / "index" / "index.json", Path("/etc/hostname")):
        for way in (f"media/{path}", f"gradio_api/file={path}"):
            with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
                urllib.request.urlopen(f"{address}/{way}")
    # a page of the web whose name leads to this machine
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}))
    assert refused.value.headers["x-content-type-options"] == "nosniff"
    port = int(address.rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):  # it listens at this machine's own address alone
        socket.create_connection((_other_address(), port), timeout=5)


def _other_address() -> str:
    return "127.0.0.2"  # of the same machine; an address of the network need not exist


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
def test_a_moment_plays_from_its_start_and_stops_at_its_end(served) -> None:
    sync_api: Any = pytest.importorskip("playwright.sync_api")
    address, _ = served
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.fill("label:has-text('What happens') textarea", "the fox runs")
        page.keyboard.press("Enter")
        page.click(".card:has-text('film.mp4 00:00') .open")
        video = page.locator("dialog.viewer video")
        page.wait_for_function("() => document.querySelector('dialog video').readyState >= 2")
        start, end, now = video.evaluate("v => [+v.dataset.start, +v.dataset.end, v.currentTime]")
        assert start - 0.1 <= now < end
        video.evaluate("(v, end) => { v.currentTime = end - 0.3; return v.play(); }", end)
        page.wait_for_function("() => document.querySelector('dialog video').paused")
        assert abs(video.evaluate("v => v.currentTime") - end) < 0.6
        browser.close()
