"""Downloads against a real server, which breaks off, lies, redirects and changes its files."""

import fcntl
import json
import logging
import os
import pty
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures.file_server import Behaviour, FileServer
from huggingface_hub import constants

from alpro_hf.hub import download as module
from alpro_hf.hub.download import FOLDER, download, public
from alpro_hf.hub.errors import DownloadError

SIZE = 3_000_000
CONTENT = random.Random(0).randbytes(SIZE)
OTHER = random.Random(1).randbytes(SIZE)


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    return tmp_path.joinpath("assets", *FOLDER)


def partial(cache):
    found = list(cache.glob("*/*.partial"))
    return found[0].read_bytes() if found else b""


def fails(server, path="/a.pt", **options):
    """The one sentence with which a download fails."""
    with pytest.raises(DownloadError) as caught:
        download(server.url + path, **options)
    assert f"{server.url}{path}" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_downloaded_once_and_kept_in_the_cache_of_the_hub(server, cache):
    server.files["/deep/a.pt"] = Behaviour(CONTENT)
    path = download(f"{server.url}/deep/a.pt")
    assert path.name == "a.pt" and path.parent.parent == cache
    assert path.read_bytes() == CONTENT
    assert server.requests[0][1]["accept-encoding"] == "identity"
    assert download(f"{server.url}/deep/a.pt") == path
    assert "if-none-match" in server.requests[1][1] and len(server.requests) == 2
    server.files["/deep/a.pt"] = Behaviour(OTHER)
    assert download(f"{server.url}/deep/a.pt").read_bytes() == OTHER


@pytest.mark.parametrize("etag", ["strong", "weak", "none"])
@pytest.mark.parametrize("dates", ["", "Mon, 06 Jun 2022 10:00:00 GMT"])
def test_a_connection_that_breaks_is_taken_up_again(server, cache, etag, dates):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000, cuts=1, etag=etag, dates=dates)
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=2000000-"]
    assert not list(cache.glob("*/*.partial*"))


def test_a_server_that_always_stops_is_one_sentence_and_the_next_time_goes_on(server, cache):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000)
    said = fails(server)
    assert "2,000,000 bytes are kept" in said
    assert partial(cache) == CONTENT[:2_000_000]
    assert len(server.requests) == module.ATTEMPTS
    server.files["/a.pt"].cut = None
    server.requests.clear()
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    assert server.ranges() == ["bytes=2000000-"]


def test_a_server_that_brings_something_new_each_time_is_not_given_up(server):
    told = Behaviour(random.Random(2).randbytes(9_000_000), cut=1_200_000)
    server.files["/a.pt"] = told

    def further(path):
        told.cut = 1_200_000 * len(server.requests)

    server.on_request = further
    assert download(f"{server.url}/a.pt").read_bytes() == told.content
    assert len(server.requests) == 8


def test_a_server_that_stalls(server, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server.files["/a.pt"] = Behaviour(CONTENT, cut=1_000_000, stall=1.0)
    assert "1,000,000 bytes are kept" in fails(server)


def test_a_server_that_ignores_range_sends_the_file_anew(server):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000, cuts=1, ranges=False)
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=2000000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("etag", ["strong", "weak"])
def test_a_file_that_changes_between_two_parts_is_never_mixed(server, cache, heeds_if_range, etag):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000, etag=etag)
    fails(server)
    server.files["/a.pt"] = Behaviour(OTHER, heeds_if_range=heeds_if_range, etag=etag)
    assert download(f"{server.url}/a.pt").read_bytes() == OTHER


@pytest.mark.parametrize("size", [1_000_000, 2_000_000, 2_500_000])
def test_a_file_that_became_shorter_is_downloaded_anew(server, size):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000, etag="none")
    fails(server)
    server.files["/a.pt"] = Behaviour(OTHER[:size], etag="none")
    assert download(f"{server.url}/a.pt").read_bytes() == OTHER[:size]


def test_without_a_size_the_end_of_the_connection_is_the_end(server):
    server.files["/a.pt"] = Behaviour(CONTENT, length=False)
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT


@pytest.mark.slow
def test_a_killed_download_goes_on(server, cache, tmp_path):
    """And on a terminal it shows how far it is."""
    server.files["/a.pt"] = Behaviour(CONTENT, slow=0.05)
    program = f"from alpro_hf.hub.download import download; download({server.url + '/a.pt'!r})"
    environment = os.environ | {"HF_ASSETS_CACHE": str(tmp_path / "assets"), "HF_HUB_OFFLINE": "0"}
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows and columns
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=end) as process:
        deadline = time.monotonic() + 120
        while len(partial(cache)) < 500_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    arrived = len(partial(cache))
    assert 500_000 <= arrived < SIZE
    os.close(end)
    shown = ""
    with suppress(OSError), open(terminal, "rb", buffering=0) as screen:  # an error is the end of a terminal
        while block := screen.read(1 << 12):
            shown += block.decode()
    assert re.search(r"a\.pt: +[1-9]\d?%.*/3\.00M", shown), shown
    server.files["/a.pt"].slow = 0
    server.requests.clear()
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={arrived}-"]


def test_two_downloads_of_one_file_do_not_disturb_each_other(server):
    server.files["/a.pt"] = Behaviour(CONTENT, slow=0.002)
    found = []
    threads = [threading.Thread(target=lambda: found.append(download(f"{server.url}/a.pt"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in found] == [True] * 3
    assert ["if-none-match" in headers for _, headers in server.requests] == [False, True, True]


# --- answers that are no file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418, 204])
def test_a_refusal_is_one_sentence_and_is_not_repeated(server, status):
    server.files["/a.pt"] = Behaviour(CONTENT, status=[(status, {})])
    assert f"(status {status})" in fails(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.files["/a.pt"] = Behaviour(CONTENT, status=[(status, {"Retry-After": "0"})] * 2)
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    server.files["/b.pt"] = Behaviour(CONTENT, status=[(status, {})] * 9)
    assert f"status {status}" in fails(server, "/b.pt")


PAGES = {
    "type": Behaviour(b"please log in", headers={"Content-Type": "text/html; charset=utf-8"}),
    "content": Behaviour(b"\n <!DOCTYPE html><html>log in</html>"),
    "bare": Behaviour(b"<html>log in</html>", headers={"Content-Type": "application/octet-stream"}),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_web_page_is_not_kept_and_does_not_replace_what_was_fetched(server, cache, page):
    server.files["/a.pt"] = PAGES[page]
    assert "is a web page" in fails(server)
    assert not [path for path in cache.glob("*/*") if path.name != ".lock"]
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000)
    fails(server)
    server.files["/a.pt"] = PAGES[page]
    assert "is a web page" in fails(server)
    assert partial(cache) == CONTENT[:2_000_000]


def test_an_empty_file(server):
    server.files["/a.pt"] = Behaviour(b"")
    assert "is an empty file" in fails(server)


def test_what_is_compressed_on_the_way_is_refused(server):
    server.files["/a.pt"] = Behaviour(CONTENT, headers={"Content-Encoding": "gzip"})
    assert "is sent compressed" in fails(server)


# --- redirects ------------------------------------------------------------------------------------------------------


def test_a_redirect_is_followed_also_by_the_rest_of_a_file(server):
    server.files["/a.pt"] = Behaviour(status=[(code, {"Location": "b.pt"}) for code in (301, 302, 303, 307, 308)])
    server.files["/b.pt"] = Behaviour(CONTENT, cut=2_000_000, cuts=1)
    path = download(f"{server.url}/a.pt")
    assert path.read_bytes() == CONTENT and path.name == "a.pt"
    assert server.ranges() == [None, None, "bytes=2000000-", "bytes=2000000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "javascript:1", "data:,a", ""])
def test_a_redirect_elsewhere_than_to_the_web_is_refused(server, target):
    server.files["/a.pt"] = Behaviour(status=[(302, {"Location": target})] * 9)
    assert "redirects" in fails(server) or "not an address" in fails(server)
    assert len(server.requests) <= 2


def test_a_redirect_from_https_to_http_is_refused():
    """Asked without a connection: a certificate for this machine would have to be trusted first."""
    transfer = module._Transfer("https://example.org/a.pt", Path("."), 1)
    with pytest.raises(DownloadError, match=r"redirects to 'http://example\.org/b', and only redirects to https"):
        transfer._redirected("https://example.org/a.pt", "http://example.org/b?key=secret")
    assert transfer._redirected("https://example.org/a.pt", "//example.net/b") == "https://example.net/b"
    assert transfer._redirected("http://example.org/a.pt", "https://example.org/b") == "https://example.org/b"


def test_a_loop_of_redirects(server):
    server.files["/a.pt"] = Behaviour(status=[(302, {"Location": "/a.pt"})] * 99)
    assert "redirects more than" in fails(server)


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.org/a.pt", "file:///etc/passwd", "http://", "http:///a.pt", "http://a b/c", "http://a:x/b"),
        *(
            "http://a..b/c",
            "http://../c",
            f"http://{'a' * 300}/c",
            "http://[::1/c",
            "http://a\n/c",
            "http://a:99999/b",
        ),
    ],
)
def test_what_is_no_address_of_a_file_on_the_web(url):
    with pytest.raises(DownloadError, match=r"is not an address|only addresses with http and https"):
        download(url)


def test_secrets_in_an_address_are_not_shown(server):
    host = server.url.removeprefix("http://")
    with pytest.raises(DownloadError) as caught:
        download(f"http://me:secret@{host}/a.pt?signature=hidden#part")
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    assert "authorization" in server.requests[0][1]
    assert public("https://me:secret@example.org:8080/a.pt?token=x#y") == "https://example.org:8080/a.pt"


@pytest.mark.parametrize("path", ["/..%2F..%2Fevil", "/.ssh", "/%2e%2e", "/", "/" + "a" * 300, "/a%00b"])
def test_the_address_does_not_choose_a_place(server, cache, path):
    server.files[path] = Behaviour(CONTENT)
    stored = download(server.url + path)
    assert stored.parent.parent == cache and stored.read_bytes() == CONTENT and stored.name[0] != "."


# --- no network, no room --------------------------------------------------------------------------------------------


def test_no_network_is_one_sentence_or_the_copy_that_is_here(cache, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    with pytest.raises(DownloadError, match="the connection failed"):
        download(f"http://127.0.0.1:{free}/a.pt")
    with FileServer() as server:
        server.files["/a.pt"] = Behaviour(CONTENT)
        url = f"{server.url}/a.pt"
        download(url)
    with caplog.at_level(logging.WARNING):
        assert download(url).read_bytes() == CONTENT
    assert "The copy in the cache is used" in caplog.text


def test_offline_mode(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.files["/a.pt"] = Behaviour(CONTENT)
    assert "HF_HUB_OFFLINE is set" in fails(server)
    assert not server.requests


@pytest.mark.parametrize("length", [True, False])
def test_a_file_that_is_too_large(server, length):
    server.files["/a.pt"] = Behaviour(CONTENT, length=length)
    assert "2,000,000 are allowed" in fails(server, max_size=2_000_000)


def test_a_size_for_which_there_is_no_room(server):
    server.files["/a.pt"] = Behaviour(CONTENT, length=False, headers={"Content-Length": str(10**17)})
    assert "has room for" in fails(server, max_size=10**18)


def test_a_disk_that_takes_no_more(server, cache):
    """A limit of the system on the size of files: the kernel refuses the write, as it does on a full disk."""
    server.files["/a.pt"] = Behaviour(CONTENT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        said = fails(server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "cannot be stored" in said and "set HF_ASSETS_CACHE" in said
    assert partial(cache) == CONTENT[:1_000_000]
    server.requests.clear()
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
    assert server.ranges() == ["bytes=1000000-"]


def test_facts_that_were_damaged_are_as_none(server, cache):
    server.files["/a.pt"] = Behaviour(CONTENT, cut=2_000_000)
    fails(server)
    for facts in cache.glob("*/*.partial.json"):
        facts.write_text(json.dumps({"size": 1, "unknown": 2}))
    server.files["/a.pt"] = Behaviour(CONTENT)
    assert download(f"{server.url}/a.pt").read_bytes() == CONTENT
