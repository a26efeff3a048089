"""The Space: its parts, its endpoints called by gradio's client, and its page in a real browser."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
import yaml
from fixtures.gallery import write_video
from fixtures.page_server import CAN_BROWSE, PATIENCE
from PIL import Image
from starlette.exceptions import HTTPException

from alpro_hf import AlproModel, AlproProcessor, VideoDecodeError, bundled_model
from alpro_hf.loading import CommandError
from alpro_hf.page import about, clips, guard, views
from alpro_hf.page.ask import QUESTIONS, AskTab
from alpro_hf.page.clips import MAX_CLIPS, MAX_MEGABYTES, DemoError, Visit
from alpro_hf.page.duel import EXAMPLES, DuelTab, measured_choices
from alpro_hf.page.duel_views import KINDS, LEARNED
from alpro_hf.page.endpoints import Endpoints
from alpro_hf.page.inside import SENTENCES
from alpro_hf.page.layout import Shelf, build
from alpro_hf.page.maps import SHOWN_ENTITIES, _named_regions, region_maps
from alpro_hf.page.search import SEARCHES
from alpro_hf.page.studio import RERANK, Studio
from alpro_hf.sprites.opposites import opposite_kind

SPACE = Path(__file__).parents[2] / "spaces_demo"
needs_browser = pytest.mark.skipif(
    not CAN_BROWSE,
    reason="needs a browser: apt-get install chromium, and pip install playwright",
)


# ------------------------------------------------------------------------------------------------------ without a page


@pytest.fixture(scope="module")
def studio(prompter: str) -> Iterator[Studio]:
    studio = Studio(prompter=prompter)
    yield studio
    studio.close()
    assert not studio.folder.exists()


@pytest.fixture
def upload(tmp_path: Path):
    def upload(name: str, seed: int = 1, **options: Any) -> Path:
        return write_video(tmp_path / name, seed, **options)

    return upload


def test_search_is_the_protocol_over_gallery_and_uploads(studio, upload) -> None:
    """Merging two indexes gives the scores of one index of all clips, and re-ranks the same ones."""
    visit = Visit()
    for i in range(2):
        studio.add(upload(f"{i}.mp4", seed=i), f"{i}.mp4", visit)
    everything = studio._new_index([clip.path for clip in [*visit.clips, *studio.clips]])
    for text in ("the tiger grows", "a rose chases a gem"):
        found = studio.search(text, visit)
        expected = {result.path: result for result in everything.search(text, top_k=len(everything), rerank=RERANK)}
        assert len(found) == len(expected)
        for mine in found:
            other = expected[mine.clip.path]
            assert mine.similarity == pytest.approx(other.similarity, abs=1e-5)
            assert mine.match_probability == (
                other.match_probability and pytest.approx(other.match_probability, abs=1e-4)
            )
        # what is shown descends: the match of those that were re-ranked, and then the similarity of the others
        matches = [result.match_probability for result in found[:RERANK]]
        assert None not in matches and matches == sorted(matches, reverse=True)
        others = [result.similarity for result in found[RERANK:]]
        assert others == sorted(others, reverse=True) and others[0] <= min(r.similarity for r in found[:RERANK]) + 1e-6
        by_similarity = sorted(found, key=lambda result: -result.similarity)
        assert [result.rank_before for result in by_similarity] == list(range(1, len(found) + 1))
    visit.forget()


def test_the_examples_of_the_page_come_out_right(studio) -> None:
    firsts = [studio.search(text, Visit())[0].clip.title for text in SEARCHES]
    for title, words in zip(firsts, ("lemon", "television", "rose following gem", "flamingo", "tiger"), strict=True):
        assert words in title
    answers = [studio.ask(studio.find(clip, Visit()), text)[0].answer for clip, text in QUESTIONS]
    assert answers == ["bouncing", "right", "three", "gem", "appearing"]
    for name, text, other in SENTENCES:
        assert not studio.unknown_words(f"{text} {other}")
        clip = studio.find(name, Visit())
        if ", then " in clip.title:  # each sentence is of one half
            _, scores, film = studio.over_time(clip, [text, other])
            first, then = scores.similarity
            assert first[0] > then[0] and then[-1] > first[-1] and len(film) == 8
        else:
            assert studio.words(clip, text).match_probability > 0.3


def test_opposites_come_out_as_was_measured(studio) -> None:
    tab = DuelTab(studio)
    assert tab.measured.keys() == EXAMPLES.keys() == KINDS.keys()
    for kind, (clip, caption, opposite) in EXAMPLES.items():
        assert opposite_kind(caption, opposite) == kind and not studio.unknown_words(f"{caption} {opposite}")
        html = tab.answer(clip, f"{caption} | {opposite}", None)
        assert f"on {tab.measured[kind].clips} test clips" in html
        if tab.measured[kind].best >= LEARNED:
            assert f"prefers <strong>“{caption}”" in html, kind
        else:
            assert "by a hair" in html and "close to guessing" in html, kind
    assert "Write both captions" in tab.duel("01", "the bell bounces", " ", None)
    assert "squirrel" in tab.duel("01", "the squirrel grows", "the squirrel shrinks", None)
    assert measured_choices(studio.folder) == {}  # a folder without such results


def test_what_the_page_says_of_the_models_is_what_was_measured(studio) -> None:
    assert re.findall(r"[\d.]+ %", about.BUNDLED_MODELS) == ["0.1 %", "50 %"]  # chance; all else comes from files
    said = about.about_bundled(studio)
    measured = {
        task: json.loads(Path(bundled_model(task), "results.json").read_text())["results"]["test"]
        for task in ("retrieval", "qa")
    }
    found, choices = measured["retrieval"]["retrieval"]["rerank"], measured["retrieval"]["choices"]
    assert f"finds its clip first in {found['t2v_r1']:.0f} % of cases" in " ".join(said.split())
    assert f"opposite in {choices['opposite']['vtc']:.0f} % (chance: 50 %)" in " ".join(said.split())
    assert f"{measured['qa']['qa']['accuracy']:.0f} % of questions are answered right" in said
    sizes = [model.num_parameters() / 1e6 for model in (studio.model, studio.qa[0])]
    assert "They have {:.1f}\nand {:.1f} million parameters".format(*sizes) in said
    assert "two models of {:.1f} and {:.1f} million parameters".format(*sizes) in (SPACE / "README.md").read_text(
        "utf-8"
    )
    for pair, words in about.DISTINCTIONS.items():
        learned = max(choices[f"opposite: {pair}"][score] for score in ("vtc", "vtm")) >= about.LEARNED
        assert (words in said) != learned
    assert said.strip() in str(build(studio).get_config_file()["components"]).replace("\\n", "\n")


def test_a_visitor_sees_no_clip_of_another(studio, upload) -> None:
    one, other = Visit(), Visit()
    clip = studio.add(upload("mine.mp4"), "mine.mp4", one)
    assert clip in [found.clip for found in studio.search("the tiger grows", one)]
    assert clip not in [found.clip for found in studio.search("the tiger grows", other)]
    with pytest.raises(DemoError, match="gone"):
        studio.find(clip.id, other)
    folder = one.folder
    assert folder is not None and folder.is_dir()
    one.forget()
    assert not folder.exists()
    with pytest.raises(DemoError, match="gone"):
        studio.find(clip.id, one)


def test_what_cannot_be_taken_says_so_and_leaves_nothing(studio, upload, tmp_path) -> None:
    notes, empty, long = tmp_path / "notes.mp4", tmp_path / "empty.mp4", upload("long.mp4", frames=6 * 61)
    notes.write_text("no video, only words\n" * 100)
    empty.touch()
    half = upload("half.mp4", frames=60, size=64)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    visit = Visit()
    for file, said in ((notes, "is not a video"), (empty, "is empty"), (long, "lasts 61 seconds"), (half, "half.mp4")):
        with pytest.raises(DemoError, match=said):
            studio.add(file, file.name, visit)
        assert not file.exists()
    assert not visit.clips and visit.folder is None
    for i in range(MAX_CLIPS):
        studio.add(upload(f"{i}.mp4", frames=4), f"{i}.mp4", visit)
    with pytest.raises(DemoError, match="the limit"):
        studio.add(upload("more.mp4"), "more.mp4", visit)
    visit.forget()


def test_too_large_a_file_is_refused_before_it_is_read(studio, tmp_path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(MAX_MEGABYTES * 1024**2 + 1)
    with pytest.raises(DemoError, match="larger than"):
        studio.add(large, large.name, Visit())


@pytest.mark.parametrize("text", ["", "  \n", "a" * 201])
def test_texts_that_are_no_text_are_refused(studio, text) -> None:
    clip = studio.clips[0]
    for call in (
        lambda: studio.search(text, Visit()),
        lambda: studio.ask(clip, text),
        lambda: studio.words(clip, text),
    ):
        with pytest.raises(DemoError, match=r"instance|characters"):
            call()


def test_entities_of_a_box_and_of_all_regions(studio) -> None:
    clip = studio.clips[0]
    found = studio.box(clip, (0, 0, *studio.grid))
    prompter, processor = studio.prompter
    pixels = processor(videos=str(clip.path), return_tensors="pt")["pixel_values_videos"]
    whole = prompter.pseudo_labels(pixels)[0]
    assert dict(found)[studio.entities[whole.argmax()]] == pytest.approx(whole.max().item(), abs=1e-5)
    html = region_maps(studio.frames(clip), studio.regions(clip), studio.entities)
    assert html.count('class="frame"') == 4
    assert html.count("<button") == 1 + SHOWN_ENTITIES
    for box in ((0, 0, 0, 1), (0, 0, 5, 5), (-1, 0, 2, 2), (2, 2, 1, 1)):
        with pytest.raises(DemoError, match="outside"):
            studio.box(clip, box)


def test_another_model_without_a_prompter() -> None:
    """A model without a prompter says so, and its page stands all the same, without what needs one."""
    other = Studio(model=str(bundled_model("retrieval")))
    page = build(other)
    config = str(page.get_config_file())
    assert "sprites-retrieval" in config and str(bundled_model("retrieval")) not in config  # the folder is not shown
    with pytest.raises(DemoError, match="ALPRO_PROMPTER"):
        other.box(other.clips[0], (0, 0, 2, 2))
    other.close()
    with pytest.raises(CommandError, match="was not trained for qa"):
        Studio(qa_model=str(bundled_model("retrieval")))


def test_a_model_without_a_matching_head_searches_by_similarity(tmp_path) -> None:
    towers = AlproModel.from_pretrained(bundled_model("retrieval"))
    towers.save_pretrained(tmp_path)
    AlproProcessor.from_pretrained(bundled_model("retrieval")).save_pretrained(tmp_path)
    headless = Studio(model=str(tmp_path))
    found = headless.search("the tiger grows", Visit())
    assert [result.similarity for result in found] == sorted((r.similarity for r in found), reverse=True)
    assert {result.match_probability for result in found} == {None}
    assert all(result.rank == result.rank_before for result in found)
    page = views.results(found)
    assert "Similarity (VTC)" in page and "Match (VTM)" not in page and "same place" not in page
    assert "This model has no trained matching head. Similarity alone decides" in page
    listed = Endpoints(headless).search("the tiger grows", None)
    assert len(listed) == len(found) and not any("match_probability" in one for one in listed)
    with pytest.raises(DemoError, match="no trained matching head"):
        headless.words(headless.clips[0], "the tiger grows")
    assert "tiger" in found[0].clip.title
    headless.close()


def test_labels_of_regions_cover_no_other() -> None:
    maps = torch.eye(16).unflatten(1, (4, 4))  # sixteen entities, one a patch
    html = _named_regions(maps, [f"entity {i}" for i in range(16)])
    places = [(float(x), float(y)) for x, y in re.findall(r"left:(\d+)%;top:(\d+)%", html)]
    assert len(places) == 16
    assert sorted(set(re.findall(r">(entity \d+)<", html))) == sorted(f"entity {i}" for i in range(16))


def test_unknown_words_are_named(studio) -> None:
    assert studio.unknown_words("the squirrel, grows quickly") == ["squirrel", "quickly"]
    assert studio.unknown_words("why does the tiger grow?", question=True) == ["why", "grow"]


def test_a_banner_names_the_clips_that_the_models_cannot_know(studio, upload) -> None:
    page, visit = Shelf(studio), Visit()
    assert page.banner(None) == page.banner(visit) == ""
    copy = upload("copy.mp4")
    copy.write_bytes(studio.clips[0].path.read_bytes())
    studio.add(copy, "copy.mp4", visit)
    assert page.banner(visit) == ""
    studio.add(upload("holiday.mp4", seed=7), "<b>holiday.mp4", visit)
    banner = page.banner(visit)
    assert 'role="alert"' in banner
    assert "“&lt;b&gt;holiday” is not of it" in banner
    assert "copy" not in banner
    visit.forget()
    assert page.banner(visit) == ""


def test_an_answer_says_how_many_there_are_and_what_the_model_cannot_know(studio) -> None:
    html = AskTab(studio).answer(studio.clips[0].id, "what does the astronaut do?", None)
    assert "among the 180 answers that it knows" in html
    assert 'role="alert"' in html and "The model does not know “astronaut”." in html
    assert "alert" not in AskTab(studio).answer(studio.clips[0].id, "what does the bell do?", None)


def test_a_warm_search_takes_less_than_a_second_of_a_core(studio) -> None:
    """Measured in time of the processor, which does not depend on what else runs."""
    studio.search("the tiger grows", Visit())
    begin = time.process_time()
    studio.search("a rose chases a gem", Visit())
    spent = time.process_time() - begin
    print(f"a search took {spent:.3f} s")
    assert spent < 1.0


def test_scores_tell_the_truth(studio) -> None:
    """No green winner where nothing matches; what is not 0 or 1 is not shown as that."""
    assert [views.percent(p) for p in (0.0, 0.004, 0.5, 0.994, 0.996, 1.0)] == [
        *("<1 %", "<1 %", "50 %", "99 %", ">99 %", ">99 %")
    ]
    good, bad = studio.search("the tiger grows", Visit()), studio.search("a boat chases a zebra", Visit())
    assert good[0].match_probability > views.MATCHES > bad[0].match_probability
    assert 'class="card best"' in views.results(good) and "Nothing matches well" not in views.results(good)
    nothing = views.results(bad)
    assert "Nothing matches well" in nothing and "best" not in nothing and nothing.count('class="card weak"') == 6


def test_clips_over_the_limit_give_one_warning_with_their_names(studio, upload, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("alpro_hf.page.layout.gr.Warning", said.append)
    shelf = Shelf(studio)
    files = [str(upload(f"{letter}.mp4", seed=place, frames=4)) for place, letter in enumerate("abcdefghij")]
    for file in files:  # so that none can be another visitor's
        os.utime(file, (1e9, 1e9))
    visit, html, _, _ = shelf.upload(files, None)
    assert len(visit.clips) == MAX_CLIPS and [text.count("Not added: “i.mp4”, “j.mp4”") for text in said] == [1]
    assert not Path(files[-1]).exists()
    # one of them can go alone, with all that is served of it
    gone = visit.clips[2]
    visit, html, chosen, _ = shelf.remove(gone.id, visit)
    assert len(visit.clips) == MAX_CLIPS - 1 and gone.id not in [clip.id for clip in visit.clips]
    assert (
        not list(gone.path.parent.glob(f"{gone.path.name}*"))
        and f'data-id="{gone.id}"' not in html
        and f'data-id="{chosen}"' in html
    )
    with pytest.raises(KeyError):
        studio.media.read(gone.video)
    assert len(studio.search("the tiger grows", visit)) == len(studio.clips) + MAX_CLIPS - 1
    with pytest.raises(DemoError, match="of the gallery"):
        shelf.remove(studio.clips[0].id, visit)
    shelf.forget(visit)
    assert not any(map(os.path.exists, files))  # also what gradio had written


def test_a_still_picture_is_no_video_whatever_its_name(studio, tmp_path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    file = (tmp_path / "picture.png").rename(tmp_path / "clip.mp4")
    with pytest.raises(DemoError, match=r"still picture|not a video|no moving pictures"):
        studio.add(file, file.name, Visit())
    assert not file.exists()


def test_a_small_box_is_enlarged_to_patches(studio) -> None:
    found = Endpoints(studio).entities("01", None, 0.4, 0.4, 0.41, 0.45)
    assert found["box"] == [1, 1, 2, 2] and len(found["entities"]) == 5


def test_names_of_files_are_text_not_html(studio, upload) -> None:
    visit = Visit()
    clip = studio.add(upload("x.mp4"), "<img src=x onerror=alert(1)>.mp4", visit)
    [found] = [found for found in studio.search("a tiger", visit) if found.clip is clip]
    for html in (views.shelf([clip], clip.id), views.stage(clip), views.results([found])):
        assert "<img src=x" not in html
        assert "&lt;img" in html
    visit.forget()


def test_the_card_is_what_the_hub_expects() -> None:
    _, metadata, text = (SPACE / "README.md").read_text("utf-8").split("---\n", 2)
    card = yaml.safe_load(metadata)
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file()
    assert {card["colorFrom"], card["colorTo"]} <= colours
    assert len(card["short_description"]) <= 60
    assert re.fullmatch(r"\d+\.\d+\.\d+", card["sdk_version"])
    files = {path.name for path in SPACE.iterdir() if path.is_file()} - {"README.md", "requirements.txt"}
    assert files == set(re.findall(r"`([a-z]+\.(?:py|webp))`", text))


# ----------------------------------------------------------------------------------------------------------- as served


@pytest.mark.slow
def test_endpoints(address, tmp_path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    assert sorted(client.view_api(return_format="dict")["named_endpoints"]) == [
        "/ask",
        "/clips",
        "/entities",
        "/search",
        "/words",
    ]
    clips = client.predict(api_name="/clips")
    assert len(clips) == 24 and clips[0] == {"id": "01", "title": "bell bouncing"}
    found = client.predict("the tiger grows", None, api_name="/search")
    assert found[0]["title"] == "tiger growing" and len(found) == 24
    assert client.predict("what does the bell do?", "01", None, api_name="/ask")[0]["answer"] == "bouncing"
    box = client.predict("01", None, 0.25, 0.25, 0.75, 0.75, api_name="/entities")
    assert box["box"] == [1, 1, 3, 3] and len(box["entities"]) == 5
    words = client.predict("the tiger grows", "14", None, api_name="/words")
    assert [word["word"] for word in words["words"]] == ["the", "tiger", "grows"]

    own = handle_file(str(write_video(tmp_path / "own.mp4", seed=2)))
    found = client.predict("the tiger grows", [own], api_name="/search")
    assert len(found) == 25 and "own" in [result["title"] for result in found]
    assert len(client.predict("what grows?", "", own, api_name="/ask")) == 5

    notes = tmp_path / "notes.mp4"
    notes.write_text("only words")
    for arguments, name, said in (
        ((" ", None), "/search", "Describe"),
        (("what?", "nowhere", None), "/ask", "gone"),
        (("what?", "", handle_file(str(notes))), "/ask", "not a video"),
        (("01", None, 0.9, 0.0, 0.1, 1.0), "/entities", "turned around"),
    ):
        with pytest.raises(AppError, match=said):
            client.predict(*arguments, api_name=name)


@pytest.mark.slow
def test_the_lines_of_the_readme(address, tmp_path, monkeypatch) -> None:
    """The block that shows how a program uses the page, as it stands there, with another address."""
    [block] = re.findall(r"```python\n(.*?)```", (SPACE / "README.md").read_text("utf-8"), re.DOTALL)
    write_video(tmp_path / "clip.mp4", seed=3)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    answers = []
    for line in block.replace("http://127.0.0.1:7860", address).splitlines():
        if line.startswith("client.predict"):
            answers.append(eval(line, names))
        else:
            exec(line, names)
    clips, found, asked, words, own = answers
    assert clips[0] == {"id": "01", "title": "bell bouncing"} and len(found) == 24
    assert asked[0]["answer"] == "bouncing" and len(own) == 5
    assert [word["word"] for word in words["words"]] == ["the", "tiger", "grows"]


@pytest.mark.slow
def test_the_html_is_light_and_says_what_it_is(address) -> None:
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert len(page) < 400_000 and "data:video" not in page and "data:image/jpeg" not in page.split("drawing")[0]
    card = dict(re.findall(r'<meta (?:property|name)="((?:og|twitter):[a-z:]+)" content="([^"]*)"', page))
    assert card["og:title"] == card["twitter:title"] == "Search and question videos: ALPRO on the Hugging Face stack"
    assert len(card["og:description"]) > 50 and page.count("og:title") == 1
    with urllib.request.urlopen(card["og:image"]) as answer:
        assert answer.headers["content-type"] == "image/jpeg"
        picture = Image.open(answer)
        picture.load()
    assert picture.size == (1200, 630) and len(set(picture.resize((12, 6)).getdata())) > 20
    # clips come from addresses that browsers keep, in the parts that they ask for
    media = re.search(r"media/[-\w]+\.mp4", page)[0]
    with urllib.request.urlopen(urllib.request.Request(f"{address}/{media}", headers={"Range": "bytes=4-7"})) as part:
        assert part.status == 206 and part.read() == b"ftyp" and "max-age" in part.headers["cache-control"]
    for wrong in ("media/", "media/../app.py", "media/%2e%2e/etc/passwd", "media//etc/passwd", media[:-5] + ".mp4"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/{wrong}")


@pytest.mark.slow
def test_no_other_file_of_the_machine_is_served(address, tmp_path) -> None:
    secret = tmp_path / "secret.mp4"
    write_video(secret, seed=5)
    for path in (secret, SPACE / "app.py", Path("/etc/hostname")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    there = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": ["what grows?", "", there]}).encode()
    call = urllib.request.Request(f"{address}/gradio_api/call/ask", data, {"Content-Type": "application/json"})
    event = json.load(urllib.request.urlopen(call))["event_id"]
    said = urllib.request.urlopen(f"{address}/gradio_api/call/ask/{event}").read().decode()
    assert "event: error" in said and "probability" not in said
    assert secret.is_file()


@pytest.mark.slow
def test_no_route_reads_other_files_or_tells_of_the_program(address, tmp_path) -> None:
    """Every route that gradio serves, asked for files in every way that paths are written."""
    from gradio.routes import App

    secret = tmp_path / "secret.txt"
    secret.write_text("a secret that nobody may read")
    targets = [secret, SPACE / "app.py", Path("/etc/passwd")]
    told = [secret.read_bytes(), (SPACE / "app.py").read_bytes()[:200], b"root:x:", b"root:*:", b"Traceback"]
    host, asked, codes = address.removeprefix("http://"), set(), Counter()
    served = App.create_app(gr.Blocks()).openapi()["paths"]
    routes = {route for route, methods in served.items() if "get" in methods}
    assert {"/gradio_api/file={path_or_url}", "/gradio_api/file/{path}", "/static/{path}"} <= routes
    waiting = ("heartbeat", "queue/data", "stream", "upload_progress", "startup-events", "{event_id}", "dev/reload")
    for route in sorted(route for route in routes if not any(part in route for part in waiting)):
        for target in targets if "{" in route else targets[:1]:
            climbed = "../" * 12 + str(target).lstrip("/")
            ways = [str(target), climbed, climbed.replace("../", "..%2f"), climbed.replace("../", "%2e%2e/")]
            for way in [*ways, f"file://{target}", f"http://127.0.0.1:1/{target.name}"]:
                path = re.sub(r"\{[^}]+\}", lambda _, way=way: way, route)
                if path in asked:
                    continue
                asked.add(path)
                connection = http.client.HTTPConnection(host, timeout=20)
                connection.putrequest("GET", path.replace(" ", "%20"), skip_accept_encoding=True)
                connection.endheaders()
                answer = connection.getresponse()
                body = answer.read(200_000)
                connection.close()
                codes[answer.status] += 1
                assert not [said for said in told if said in body], path
                assert answer.getheader("x-content-type-options") == "nosniff", path
    assert len(asked) > 60 and codes[404] + codes[403] > 20, codes


@pytest.mark.slow
def test_uploads_that_come_too_fast_are_turned_away_with_a_sentence(address) -> None:
    """As from another address, so that the other tests may go on uploading."""
    boundary = "x" * 20
    part = 'Content-Disposition: form-data; name="files"; filename="../../a.mp4"'
    body = f"--{boundary}\r\n{part}\r\n\r\nx\r\n--{boundary}--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "X-Forwarded-For": "spoofed, 192.0.2.7"}
    call = urllib.request.Request(f"{address}/gradio_api/upload", body.encode(), headers)
    for _ in range(guard.UPLOADS):
        with urllib.request.urlopen(call) as answer:
            [path] = json.load(answer)
        assert Path(path).name == "a.mp4" and ".." not in path
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(call)
        assert refused.value.code == 429 and "Wait a little" in json.load(refused.value)["detail"]


@pytest.mark.slow
def test_too_large_an_upload_is_refused_by_the_server(served) -> None:
    address, log = served
    head = b'--xx\r\nContent-Disposition: form-data; name="files"; filename="big.mp4"\r\n\r\n'
    body = head + bytes((MAX_MEGABYTES + 1) << 20) + b"\r\n--xx--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=xx", "X-Forwarded-For": "192.0.2.8"}
    before = log.stat().st_size  # of what other tests made it say
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, headers))
    assert refused.value.code == 413
    assert "maximum" in refused.value.read().decode().lower()
    assert b"Traceback" not in log.read_bytes()[before:]


def form(files: int, size: int = 1, boundary: str = "xx") -> bytes:
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="%d.mp4"\r\n\r\n'
    return b"".join((part % i).encode() + b"x" * size + b"\r\n" for i in range(files)) + f"--{boundary}--\r\n".encode()


def send(address: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and body of the answer to a POST; an iterable as body is sent in chunks, without its length."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, body, headers or {}, encode_chunked=not isinstance(body, bytes))
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def uploaded(served: tuple[str, Path]) -> list[Path]:
    return [path for path in (served[1].parent / "gradio").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.slow
def test_files_and_bytes_of_an_upload_are_bounded_before_they_reach_the_disk(served) -> None:
    address, log = served
    kind = {"Content-Type": "multipart/form-data; boundary=xx"}
    before, said = set(uploaded(served)), log.stat().st_size

    def one_by_one(body: bytes) -> Iterator[bytes]:
        yield from (body[i : i + 7] for i in range(0, len(body), 7))

    for number, (body, chunked) in enumerate(
        [(form(300), False), (form(300), True), (form(guard.FILES + 1), True), (form(1, guard.UPLOAD_BYTES), False)]
    ):
        sent = one_by_one(body) if chunked else body
        try:
            status, text = send(
                address,
                "/gradio_api/upload",
                sent,
                kind
                | {"X-Forwarded-For": f"192.0.2.{100 + number}"}
                | ({"Transfer-Encoding": "chunked"} if chunked else {}),
            )
        except (BrokenPipeError, ConnectionResetError):  # the server closed before all was sent
            continue
        assert status == 413 and re.search(r"More than 8 files|maximum allowed size", text), text
    assert len(set(uploaded(served)) - before) <= 3 * guard.FILES
    # the files of a request count one by one
    statuses = [
        send(address, "/gradio_api/upload", form(guard.FILES), kind | {"X-Forwarded-For": "192.0.2.120"})[0]
        for _ in range(4)
    ]
    assert statuses == [200, 200, 200, 429]
    assert send(address, "/gradio_api/upload", b"{}", {"Content-Type": "application/json"})[0] == 400
    assert send(address, "/gradio_api/process_recording", form(1), kind)[0] == 404
    assert b"Traceback" not in log.read_bytes()[said:]


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
CALLS: list[tuple[str, Any, int]] = [
    ("call/nothing", {"data": []}, 404),
    ("call/v2/nothing", {}, 404),
    ("run/nothing", {"data": []}, 404),
    ("api/predict", {"data": []}, 404),
    ("queue/join", {"data": [], "fn_index": 10**6, "session_hash": "x"}, 404),
    ("queue/join", {"data": [], "fn_index": "0", "session_hash": "x"}, 404),
    ("queue/join", {"data": [], "fn_index": -1, "session_hash": "x"}, 404),
    ("queue/join", {"data": [], "fn_index": True, "session_hash": "x"}, 404),
    ("queue/join", {"data": [], "session_hash": "x"}, 404),
    ("call/search", {"data": "the tiger grows"}, 422),
    ("call/search", {"data": {"text": "x"}}, 422),
    ("call/search", {"data": ["a", None, "more"]}, 422),
    ("call/search", {}, 422),
    ("call/search", [], 422),
    ("call/search", {"data": [7, None]}, 422),
    ("call/search", {"data": [{"a": 1}, None]}, 422),
    ("call/search", {"data": [True, None]}, 422),
    ("call/search", {"data": ["a", "file.mp4"]}, 422),
    ("call/search", {"data": ["a", [FILE, 7]]}, 422),
    ("call/search", {"data": ["a", [{"path": 7}]]}, 422),
    ("run/ask", {"data": ["what?", "01", [FILE]]}, 422),
    ("run/ask", {"data": ["what?", "01", {"path": ["x"]}]}, 422),
    ("run/entities", {"data": ["01", None, "top", 0, 1, 1]}, 422),
    ("run/entities", {"data": ["01", None, None, 0, 1, 1]}, 422),
    ("run/entities", {"data": ["01", None, [0], 0, 1, 1]}, 422),
    ("call/entities", b'{"data": ["01", null, NaN, 0, 1, 1]}', 400),
    ("call/entities", b'{"data": ["01", null, Infinity, 0, 1, 1]}', 400),
    ("call/entities", b'{"data": ["01", null, 1e999, 0, 1, 1]}', 400),
    ("call/entities", b'{"data": ["01", null, ' + b"9" * 5000 + b", 0, 1, 1]}", 400),
    ("call/search", b'{"data": ' + b"[" * 100_000, 400),
    ("call/search", b"\xff\xfe", 400),
    ("call/search", b'{"data": [', 400),
    ("call/search", b'{"data": ["' + b"a" * (1 << 20) + b'", null]}', 413),
    ("call/v2/search", {"texts": "a"}, 422),
    ("call/v2/search", {"text": 7}, 422),
    ("queue/join", {"data": [], "fn_index": 0, "session_hash": 7}, 422),
    ("queue/join", {"data": [], "fn_index": 0, "session_hash": "x" * 65}, 422),
    ("heartbeat/" + "x" * 2000, {}, 414),
    ("component_server", {"data": 1}, 404),
    ("vibe-edit", {"prompt": "x"}, 404),
]


@pytest.mark.slow
def test_requests_of_wrong_types_get_a_sentence_and_leave_no_traceback(served) -> None:
    address, log = served
    before = log.stat().st_size
    wrong = []
    for path, body, expected in CALLS:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            status, text = send(address, f"/gradio_api/{path}", sent, {"Content-Type": "application/json"})
        except (BrokenPipeError, ConnectionResetError):  # the server closed before all was sent
            assert expected == 413, path
            continue
        said = json.loads(text).get("detail") if text.startswith("{") else None
        if status != expected or not (isinstance(said, str) and said.endswith(".")):
            wrong.append((path, sent[:60], status, text[:200]))
    assert not wrong
    valid = json.dumps({"data": ["01", None, 1e308, 0, -1e308, 1]}).encode()
    kind = {"Content-Type": "application/json"}
    status, text = send(address, "/gradio_api/run/entities", valid, kind)
    assert status == 404 and "does not accept direct" in text
    status, text = send(address, "/gradio_api/call/entities", valid, kind)
    event = json.loads(text)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/entities/{event}", timeout=60) as answer:
        assert "outside the picture" in answer.read().decode()
    assert b"Traceback" not in log.read_bytes()[before:], log.read_text()[before:][-3000:]


ASKED = [
    "call/search/nothing",
    "call/v2/search/nothing",
    "call/nothing/nothing",
    "call/search/%0a%ff",
    "queue/data?session_hash=nobody",
    "queue/data?session_hash=",
    "queue/data?session_hash=a&session_hash=b",
]


@pytest.mark.slow
def test_streams_that_do_not_exist_get_a_sentence_and_leave_no_traceback(served) -> None:
    address, log = served
    before = log.stat().st_size
    for path in ASKED:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/{path}", timeout=60)
        assert refused.value.code == 404, path
        assert refused.value.headers["x-content-type-options"] == "nosniff", path
        assert json.load(refused.value)["detail"].startswith("There is no such event or session"), path
    with pytest.raises(urllib.error.HTTPError, match="422"):
        urllib.request.urlopen(f"{address}/gradio_api/queue/data", timeout=60)
    # a stream whose text says the same is one that exists
    call = urllib.request.Request(
        f"{address}/gradio_api/call/ask",
        json.dumps({"data": ["404: Not Found", "404: Not Found", None]}).encode(),
        {"Content-Type": "application/json"},
    )
    event = json.load(urllib.request.urlopen(call))["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/ask/{event}", timeout=60) as answer:
        assert "event: error" in answer.read().decode()
    assert b"Traceback" not in log.read_bytes()[before:], log.read_text()[before:][-3000:]


def test_the_guard_ends_a_stream_whose_session_vanishes() -> None:
    """Before its first piece with 404, afterwards by its end; other exceptions stay what they are."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in scope["pieces"]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        raise RuntimeError("the response has begun") from scope["cause"]

    def answered(*pieces: bytes, cause: Exception) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "pieces": pieces, "cause": cause}
        asyncio.run(guard.Guard(app)(scope, None, send))
        return sent

    gone = HTTPException(404)
    missing = b"data: 404: Not Found"
    assert [message.get("status") for message in answered(missing, cause=gone)] == [404, None]
    assert [message.get("status") for message in answered(cause=gone)] == [404, None]
    later = answered(b"one", missing, cause=gone)
    assert later[0]["status"] == 200 and [message["body"] for message in later[1:3]] == [b"one", missing]
    assert not later[-1].get("more_body")
    with pytest.raises(RuntimeError):
        answered(b"one", cause=ValueError())


def test_an_upload_that_is_lost_on_its_way_is_a_sentence(capsys) -> None:
    """The folder was emptied, or there is no room: before gradio answers, or afterwards, when it moves files."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["begun"]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"[]"})
        raise OSError(28, "No space left on device", "\x1b[2Jname")

    def statuses(path: str, begun: bool) -> list[int]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", b"multipart/form-data; boundary=xx")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "begun": begun}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        asyncio.run(guard.Guard(app)(scope, receive, send))
        return [message["status"] for message in sent if "status" in message]

    assert statuses("/gradio_api/upload", False) == [503]
    assert statuses("/gradio_api/upload", True) == [200]
    said = capsys.readouterr().err
    assert said.count("No space left on device") == 2 and "\x1b" not in said
    with pytest.raises(OSError, match="No space"):
        statuses("/gradio_api/queue/join", False)


@pytest.mark.parametrize("side", [1e308, -1e308, 1.5, -0.1, float("nan"), float("inf"), None, 1.0])
def test_sides_of_a_box_that_are_no_shares(studio, side) -> None:
    with pytest.raises(DemoError, match=r"outside the picture|four sides|turned around"):
        Endpoints(studio).entities("01", None, side, 0, 1, 1)


def test_the_guard_counts_by_address_and_all_together(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    watch = guard.Guard(None, uploads=2, all_uploads=5)
    assert [watch._admits("a") for _ in range(3)] == [True, True, False]
    assert [watch._admits(who) for who in "bbccd"] == [True, True, True, False, False]
    now[0] += 61
    assert watch._admits("a")
    scope = {"headers": [(b"x-forwarded-for", b"made up, 192.0.2.1")], "client": ("127.0.0.1", 5)}
    assert guard._address(scope) == "192.0.2.1"
    assert guard._address({"headers": [], "client": ("127.0.0.1", 5)}) == "127.0.0.1"


@pytest.mark.slow
def test_answers_carry_the_headers_that_browsers_heed(address) -> None:
    with urllib.request.urlopen(address) as page:
        given = {name.lower(): value for name, value in page.headers.items()}
    assert {given[name] for name in ("x-content-type-options", "referrer-policy")} == {"nosniff", "no-referrer"}
    assert given["permissions-policy"] == "camera=(), microphone=(), geolocation=()"
    assert "object-src 'none'; frame-ancestors 'self' https://huggingface.co" in given["content-security-policy"]


@pytest.mark.slow
def test_a_visitor_who_leaves_in_the_middle_of_an_upload_is_no_error(served) -> None:
    address, log = served
    host, _, port = address.removeprefix("http://").partition(":")
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.9\r\nContent-Length: 99999\r\n"
    head += "Content-Type: multipart/form-data; boundary=xx\r\n\r\n--xx\r\n"
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode())
            time.sleep(0.5)
    urllib.request.urlopen(address).close()
    time.sleep(0.5)
    assert "ClientDisconnect" not in log.read_text()


def test_what_uploads_leave_is_swept_away(tmp_path) -> None:
    (tmp_path / "hash").mkdir()
    for name in ("empty", "hash/old.mp4", "hash/new.mp4"):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1, 1) if "new" not in name else None)
    guard.sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["new.mp4"]


def test_a_clock_that_goes_back_keeps_no_upload_and_lifts_no_limit(tmp_path, monkeypatch) -> None:
    now = time.time()
    for name, moment in {"tomorrow": now + 86_400, "soon": now + 5, "new": now}.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (moment, moment))
    assert guard.sweep(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"soon", "new"}
    limits = guard.Guard(None, uploads=2, all_uploads=3)
    assert limits._admits("a") and limits._admits("a")
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    assert not limits._admits("a") and limits._admits("b") and not limits._admits("b")


def test_folders_that_vanish_while_uploads_are_swept(tmp_path) -> None:
    """Gradio deletes its folders at any moment; here one thread makes and removes them all the time."""
    done = threading.Event()

    def make_and_remove() -> None:
        while not done.is_set():
            for i in range(20):
                (tmp_path / f"{i}" / "deep").mkdir(parents=True, exist_ok=True)
                (tmp_path / f"{i}" / "deep" / "a.mp4").write_bytes(b"x")
            for i in range(20):
                shutil.rmtree(tmp_path / f"{i}", ignore_errors=True)

    thread = threading.Thread(target=make_and_remove)
    thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert guard.sweep(tmp_path, age=0.001) <= 20
    finally:
        done.set()
        thread.join()


def test_clips_that_are_removed_while_another_is_added(studio, upload) -> None:
    """What happens is an answer or an error that the page has a sentence for, and the visit can be used afterwards."""
    outcomes, visit = Counter(), Visit()
    for number in range(6):
        file, pause = upload(f"{number}.mp4", seed=number), 0.15 * number
        remover = threading.Timer(pause, visit.forget)
        remover.start()
        try:
            studio.add(file, file.name, visit)
            outcomes["added"] += 1
        except (DemoError, VideoDecodeError, FileNotFoundError) as error:
            outcomes[type(error).__name__] += 1
        remover.join()
        assert len(studio.search("the tiger grows", visit)) >= len(studio.clips)
    visit.forget()
    assert outcomes.total() == 6


def test_two_visitors_may_upload_the_same_file(studio, upload) -> None:
    """Gradio gives both of them one path."""
    file, one, other = upload("same.mp4"), Visit(), Visit()
    for visit in (one, other):
        clip = studio.add(file, "same.mp4", visit)
        assert clip.path.is_relative_to(visit.folder)
    one.forget()
    assert other.clips[0].path.is_file()
    other.forget()


def test_equal_files_of_two_visitors_are_not_deleted_between_them(studio, upload, monkeypatch) -> None:
    """One leaves while the other's upload waits to be read; gradio has one file for both."""
    monkeypatch.setattr(clips, "OTHERS_TURN", 3600)
    file = upload("same.mp4")
    shelf = Shelf(studio)
    first, *_ = shelf.upload([str(file)], None)
    first.leave()
    other, *_ = shelf.upload([str(file)], None)
    monkeypatch.setattr(clips, "OTHERS_TURN", time.time() - file.stat().st_mtime + 0.2)
    other.leave()
    deadline = time.monotonic() + 20
    while file.exists():  # nobody waits for it any more
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # the same arrives again, and belongs to whoever sent it last
    second, *_ = shelf.upload([str(upload("same.mp4"))], None)
    upload("same.mp4")
    os.utime(file, (1e9, 1e9))
    second.leave()
    assert file.exists()
    third, *_ = shelf.upload([str(file)], None)
    third.leave()
    assert not file.exists()


def test_an_upload_that_vanished_is_a_sentence_and_the_others_stay(studio, upload, tmp_path) -> None:
    files = [str(tmp_path / "gone.mp4"), str(upload("kept.mp4"))]
    visit, *_ = Shelf(studio).upload(files, None)
    assert [clip.title for clip in visit.clips] == ["kept"]
    shutil.rmtree(visit.folder)
    with pytest.raises(DemoError, match="was deleted before it was read"):
        studio.add(upload("late.mp4"), "late.mp4", visit)
    visit.remove(visit.clips[0])
    visit.leave()


def test_a_visitor_who_leaves_during_an_upload_leaves_nothing(studio, upload) -> None:
    shelf, before = Shelf(studio), set(studio.folder.iterdir())
    request: Any = gr.Request(session_hash="leaving")
    files = [str(upload(f"{number}.mp4", seed=number, frames=60)) for number in range(6)]

    def leave() -> None:
        while not any(visit.folder for visit in shelf.visits.get("leaving", [])):
            time.sleep(0.001)
        shelf.leave(request)

    leaving = threading.Thread(target=leave)
    leaving.start()
    with pytest.raises(DemoError, match=r"You have left|was deleted"):
        shelf.upload(files, None, request)
    leaving.join()
    assert set(studio.folder.iterdir()) == before and not shelf.visits
    # what has waited its turn meanwhile
    waited = upload("waited.mp4")
    os.utime(waited, (1e9, 1e9))
    with pytest.raises(DemoError, match="You have left this page, so its clips were deleted"):
        shelf.upload([str(waited)], None, request)
    assert set(studio.folder.iterdir()) == before and not shelf.visits and not waited.exists()


def test_a_file_that_goes_while_it_is_served_is_not_found(studio, tmp_path) -> None:
    async def status() -> list[int]:
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"x" * 100)
        answer = await studio.media.answer(studio.media.add(path).removeprefix("media/"))
        path.unlink()
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.sleep(60)

        await answer({"type": "http", "method": "GET", "headers": [(b"range", b"bytes=5-9")]}, receive, send)
        return [message["status"] for message in sent if "status" in message]

    assert asyncio.run(status()) == [404]


def test_a_file_that_hangs_the_decoder_is_refused(studio, tmp_path, monkeypatch) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    monkeypatch.setattr(studio.decoder, "deadline", 2.0)
    with pytest.raises(DemoError, match=r"takes too long"):
        studio.add(pipe, pipe.name, Visit())
    assert not pipe.exists()


# -------------------------------------------------------------------------------------------------------- in a browser


class Visitor:
    """A page with a session of its own, which notes every request that leaves the machine."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.outside: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        inside = (address, address.replace("127.0.0.1", "localhost"), "data:", "blob:")
        self.page.on("request", lambda request: request.url.startswith(inside) or self.outside.append(request.url))
        self.page.goto(f"{address}/?__theme={scheme}", wait_until="commit", timeout=PATIENCE)
        self.page.wait_for_selector(".pick")

    def tab(self, name: str) -> None:
        self.page.click(f"role=tab[name='{name}']")

    def toast(self, said: str) -> None:
        self.page.wait_for_selector(f".toast-body:has-text('{said}')")

    def upload(self, *files: Path) -> None:
        self.page.set_input_files("input[type=file] >> nth=0", [str(file) for file in files])

    def overflow(self) -> list[str]:
        """What is wider than the page, and texts that their box cuts off."""
        return self.page.evaluate(
            """() => {
              const wide = document.documentElement.scrollWidth > innerWidth ? ["page"] : [];
              const all = "button, .title, .name, .note, label, figcaption, h1, h3, b";
              const texts = [...document.querySelectorAll(all)];
              const cut = texts.filter((e) => e.offsetParent && getComputedStyle(e).overflowX !== "visible"
                && e.scrollWidth > e.clientWidth + 1 && !e.closest(".shelf"));
              return wide.concat(cut.map((e) => e.className + ": " + e.textContent.slice(0, 40)));
            }"""
        )


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_tab_at_one_click(browser, address, width, scheme) -> None:
    visitor = Visitor(browser, address, width, scheme)
    page = visitor.page
    page.click("text=the tiger grows >> nth=0")
    page.wait_for_selector(".card.best:has-text('tiger growing')")
    assert page.locator(".card").count() == 6
    assert page.locator(".card.best video").evaluate("video => video.error === null && video.loop && video.muted")
    assert visitor.overflow() == []
    visitor.tab("Ask")
    page.click("text=which way does the turkey move?")
    page.wait_for_selector(".bars .first:has-text('right')")
    assert page.locator(".pick.chosen").get_attribute("data-id") == "12"
    assert visitor.overflow() == []
    visitor.tab("Look inside")
    page.click("text=a ram rises, a cookie moves up and a toilet appears")
    page.wait_for_selector(".words:has-text('cookie')")
    page.click("text=Name every region")
    page.wait_for_selector(".layer.on svg")
    assert visitor.overflow() == []
    assert visitor.outside == []
    page.context.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(1800)
def test_results_lead_on_and_the_address_keeps_tab_clip_and_text(browser, address) -> None:
    visitor = Visitor(browser, address)
    page = visitor.page
    assert page.locator(".card.best").count() == 1  # a result is there from the start
    begin = time.monotonic()
    page.click("text=the tiger grows >> nth=0")
    page.wait_for_selector(".card.best:has-text('tiger growing')")
    print(f"the first search took {time.monotonic() - begin:.2f} s")
    page.wait_for_url(re.compile(r"tab=search.*q=the\+tiger\+grows"))
    page.click(".card.best .open")
    assert page.locator("dialog.viewer video").evaluate("video => video.controls && video.error === null")
    page.keyboard.press("Escape")
    page.click(".card.best [data-door=ask]")
    page.wait_for_selector(".stage figcaption:has-text('tiger growing'):visible")
    page.wait_for_url(re.compile(r"tab=ask.*clip=14|clip=14.*tab=ask"))
    steps = page.evaluate("history.length")
    page.fill("label:has-text('Question') textarea", "what does the tiger do?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bars .first:has-text('growing')")
    page.wait_for_url(re.compile("q=what"))
    assert page.evaluate("history.length") == steps + 1
    page.reload()
    page.wait_for_selector(".bars .first:has-text('growing'):visible")
    assert page.locator("label:has-text('Question') textarea").input_value() == "what does the tiger do?"
    for _ in range(2):  # the question, and the door; the second one while the first is being answered
        page.go_back()
    page.wait_for_selector(".card.best:has-text('tiger growing'):visible")
    assert "tab=search" in page.url
    assert page.locator("label:has-text('What happens') textarea").input_value() == "the tiger grows"
    page.goto(f"{address}/?tab=nothing&clip=nowhere&q=%3Cimg%20src%3Dx%3E")
    visitor.toast("This clip is gone")
    page.wait_for_selector(".found .banner:has-text('img')")
    assert page.locator(".found img[src=x]").count() == 0
    assert visitor.outside == []
    page.context.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(1800)
def test_uploads_do_not_survive_a_visitor_who_leaves(browser, served, tmp_path) -> None:
    address, log = served
    before = {path for path in log.parent.rglob("*") if path.is_file() and path != log}
    visitor = Visitor(browser, address)
    visitor.upload(write_video(tmp_path / "secret.mp4", seed=11, frames=12, size=64))
    visitor.page.wait_for_selector(".pick.chosen:has-text('secret')")
    visitor.page.wait_for_selector(".side .banner:has-text('“secret” is not of it')")
    kept = {path for path in log.parent.rglob("*") if path.is_file()} - before
    assert any("visit-" in str(path) for path in kept) and any(path.name == "secret.mp4" for path in kept)
    visitor.page.close()
    deadline = time.monotonic() + 60
    while left := [path for path in kept if path.exists() and path.suffix in (".mp4", ".jpg", "") and path != log]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    visitor.page.context.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(1800)
def test_a_box_is_dragged_and_tapped(browser, address) -> None:
    visitor = Visitor(browser, address)
    page = visitor.page
    visitor.tab("Look inside")
    frame = page.locator(".drawing .frame").first
    frame.scroll_into_view_if_needed()
    area = frame.bounding_box()
    before = page.locator(".bars").last.inner_text()
    page.mouse.move(area["x"] + 0.05 * area["width"], area["y"] + 0.05 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.3 * area["width"], area["y"] + 0.95 * area["height"], steps=4)
    page.mouse.up()
    page.wait_for_function("text => document.querySelector('.bars').innerText !== text", arg=before)
    styles = page.locator(".drawing .box").evaluate_all("boxes => boxes.map(box => box.style.cssText)")
    assert (
        len(set(styles)) == 1 and "top: 0%" in styles[0] and "width: 50%" in styles[0] and "height: 100%" in styles[0]
    )
    frame.click(position={"x": 0.9 * area["width"], "y": 0.9 * area["height"]})
    page.wait_for_function("() => document.querySelector('.drawing .box').style.left === '50%'")
    page.context.close()


@pytest.mark.slow
@needs_browser
@pytest.mark.timeout(1800)
def test_two_visitors_upload_and_err(browser, address, tmp_path) -> None:
    good = write_video(tmp_path / "holiday.mp4", seed=7, frames=12, size=64)
    long = write_video(tmp_path / "long.mp4", seed=8, frames=6 * 61)
    notes = tmp_path / "notes.mp4"
    notes.write_text("only words")
    one, other = Visitor(browser, address), Visitor(browser, address)
    one.upload(good)
    one.page.wait_for_selector(".pick.chosen:has-text('holiday')")
    assert one.page.locator(".pick").count() == 25
    assert other.page.locator(".pick").count() == 24

    other.upload(notes)
    other.toast("is not a video")
    assert other.page.locator(".block .error:visible").count() == 0  # nothing covers the clips
    other.upload(long)
    other.toast("lasts 61 seconds")
    with (tmp_path / "large.mp4").open("wb") as file:
        file.truncate(21 * 1024**2)
    other.upload(tmp_path / "large.mp4")
    other.toast("“large.mp4” is larger than 20 MB")
    assert other.page.locator(".pick").count() == 24

    for visitor in (one, other):
        visitor.tab("Ask")
        visitor.page.click("role=button[name='Ask']")
        visitor.toast("Ask something")
    one.page.fill("label:has-text('Question') textarea", "what moves?")
    one.page.click("role=button[name='Ask']")
    one.page.wait_for_selector(".bars li")
    assert one.page.locator(".stage figcaption").inner_text() == "holiday"

    one.tab("Search")
    one.page.fill("label:has-text('What happens') textarea", "a squirrel grows")
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector(".found .banner:has-text('The model does not know “squirrel”')")
    one.page.click("text=Remove my clips")
    one.page.wait_for_selector(".pick.chosen:has-text('bell bouncing')")
    assert one.page.locator(".pick").count() == 24
    assert one.outside == [] and other.outside == []
    for visitor in (one, other):
        visitor.page.context.close()
