"""Uploads while everything around them is deleted: a running page over an index, visitors who leave, an index that is
made again, and a folder of uploads that is emptied. Requests are real; each gets an answer or a sentence."""

import http.client
import json
import random
import shutil
import socket
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fixtures.gallery import load, write_model, write_video
from fixtures.page_server import serve

from alpro_hf.inference.video_index import VideoIndex

SECONDS = 8
TURNS = 15  # of three programs with two files each: fewer than all addresses together may send in a minute
SENTENCES = (
    "was deleted before it was read. Upload it again.",
    "You have left this page, so its clips were deleted.",
    "This clip can no longer be read.",
    "This clip is of the gallery.",
    "The index of the videos cannot be used now",
    "is not a video.",
)
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=xx"}


class Visitors:
    """Programs that upload, search, and leave. They count the answers, and keep those that say nothing to people."""

    def __init__(self, address: str, contents: list[bytes]) -> None:
        self.place, self.contents = address.removeprefix("http://"), contents
        self.answers: Counter[str] = Counter()
        self.wrong: list[tuple[str, str]] = []
        with urllib.request.urlopen(f"{address}/config") as answer:
            config = json.load(answer)
        kinds = {one["id"]: one["type"] for one in config["components"]}
        events = [
            (one["id"], kinds.get(target), event) for one in config["dependencies"] for target, event in one["targets"]
        ]
        [self.adds] = [number for number, kind, event in events if (kind, event) == ("uploadbutton", "upload")]

    def request(self, method: str, path: str, body: bytes | None = None, headers: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.place, timeout=120)
        try:
            connection.request(method, f"/gradio_api/{path}", body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def upload(self, chance: random.Random) -> list[dict[str, Any]]:
        body = b"".join(
            b'--xx\r\nContent-Disposition: form-data; name="files"; filename="same.mp4"\r\n\r\n%b\r\n'
            % chance.choice(self.contents)
            for _ in range(2)
        )
        whose = {"X-Forwarded-For": f"192.0.2.{chance.randrange(256)}"}
        status, text = self.request("POST", "upload", body + b"--xx--\r\n", FORM | whose)
        self.note("upload", status == 200, text, allowed=status in (429, 503) and text.endswith('."}'))
        return [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in json.loads(text)] * (status == 200)

    def note(self, what: str, worked: bool, text: str, allowed: bool = False) -> None:
        self.answers[f"{what} {'worked' if worked else 'was refused'}"] += 1
        if not worked and not allowed and not any(sentence in text for sentence in SENTENCES):
            self.wrong.append((what, text[-300:]))

    def search(self, files: list[dict[str, Any]]) -> None:
        body = json.dumps({"data": ["a fox moves", files]}).encode()
        status, text = self.request("POST", "call/search", body, JSON)
        assert status == 200, text
        status, text = self.request("GET", f"call/search/{json.loads(text)['event_id']}")
        self.note("search", "event: complete" in text, text.encode().decode("unicode_escape", "replace"))

    def visit(self, session: str, files: list[dict[str, Any]], seconds: float) -> None:
        """Open the page, add files to it, and close it after some seconds, whatever has happened by then."""
        host, _, port = self.place.partition(":")
        alive = socket.create_connection((host, int(port)))
        alive.sendall(f"GET /gradio_api/heartbeat/{session} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        alive.recv(1)
        closing = threading.Timer(seconds, alive.close)
        closing.start()
        try:
            call = {"data": [files, None], "fn_index": self.adds, "session_hash": session}
            status, text = self.request("POST", "queue/join", json.dumps(call).encode(), JSON)
            assert status == 200, text
            _, text = self.request("GET", f"queue/data?session_hash={session}")
            [end] = [line[5:] for line in text.splitlines() if '"process_completed"' in line]
            ended = json.loads(end)
            self.note("page", ended["success"], str(ended["output"].get("error")))
        finally:
            closing.join()
            alive.close()

    def go_on(self, number: int, until: float) -> None:
        chance, turn = random.Random(number), 0
        while time.monotonic() < until and turn < TURNS:
            turn += 1
            if not (files := self.upload(chance)):
                time.sleep(0.5)
            elif turn % 2:
                self.visit(f"{number}-{turn}", files, chance.uniform(0, 1))
            else:
                self.search(files)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_uploads_while_files_sessions_and_the_index_go(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = write_model(tmp_path / "model", "retrieval")
    loaded = load(model, "retrieval")
    videos = [write_video(tmp_path / "videos" / f"{number}.mp4", seed=number) for number in range(3)]
    contents = [write_video(tmp_path / "sent" / f"{number}.mp4", seed=10 + number).read_bytes() for number in range(2)]
    contents.append(b"no video")
    index = tmp_path / "index"

    def build(paths: list[Path]) -> None:
        VideoIndex.build(*loaded, paths, directory=index, root=tmp_path / "videos", progress=False, name=str(model))

    build(videos)
    served = tmp_path / "served"
    served.mkdir()
    with serve(served, ALPRO_GALLERY=str(index), ALPRO_QA_MODEL=str(write_model(tmp_path / "qa", "qa"))) as (
        where,
        log,
    ):
        visitors, until = Visitors(where, contents), time.monotonic() + SECONDS
        threads = [threading.Thread(target=visitors.go_on, args=(number, until)) for number in range(3)]
        for thread in threads:
            thread.start()
        turn = 0
        while time.monotonic() < until:
            turn += 1
            time.sleep(0.3)
            if turn % 3 == 0:
                shutil.rmtree(served / "gradio", ignore_errors=True)
            if turn % 5 == 0:
                shutil.rmtree(index)
                time.sleep(0.1)
                videos.reverse()
                build(videos[: 2 + turn % 2])
        for thread in threads:
            thread.join()
        # afterwards all is as before
        visitors.wrong += [] if (files := visitors.upload(random.Random(1))) else [("upload", "afterwards")]
        before = visitors.answers["search worked"]
        visitors.contents = contents[:1]
        visitors.search(visitors.upload(random.Random(2)) or files)
        assert not visitors.wrong and visitors.answers["search worked"] == before + 1, visitors.answers
        assert visitors.answers["page worked"] + visitors.answers["page was refused"] > 0, visitors.answers
        deadline = time.monotonic() + 60
        while left := list(served.glob("alpro-demo-*/visit-*")):
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
