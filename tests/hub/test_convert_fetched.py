"""`alpro convert` of what is on the web and in archives: a real server, real archives, and those who lie."""

import hashlib
import json
import random
import stat
import struct
import zipfile

import pytest
import torch
from fixtures.file_server import Behaviour, FileServer
from fixtures.golden import cases
from huggingface_hub import constants

from alpro_hf.cli.main import main
from alpro_hf.hub import download as module
from alpro_hf.hub.download import FOLDER
from alpro_hf.hub.known_checkpoints import KNOWN, PUBLISHER
from alpro_hf.model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval

SIZES = ("--num-attention-heads", "4", "--fusion-layer", "2")
ANSWERS = {"cat": 1, "dog": 0, "fish": 4, "bird": 2, "cow": 3}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Bytes of a checkpoint of each task."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for task in ("retrieval", "qa"):
        torch.save(dict(cases.state_dict("tiny", task)), folder / task)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(123))]) + "\n"
    )
    return path


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    return tmp_path.joinpath("assets", *FOLDER)


@pytest.fixture
def command(cache, tmp_path, vocab):
    def run(*arguments):
        return main(
            ["convert", *map(str, arguments), "--output", str(tmp_path / "out"), *SIZES, "--vocab", str(vocab)]
        )

    return run


@pytest.fixture
def sentence(command, capsys, tmp_path):
    """The one sentence with which a conversion fails, having written nothing."""

    def run(*arguments):
        assert command(*arguments) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("alpro convert: ") and len(lines[0]) < 1500, lines
        assert not (tmp_path / "out").exists()
        return lines[0]

    return run


def digest(content):
    return hashlib.sha256(content).hexdigest()


# --- addresses and known names --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_address_is_downloaded_converted_and_recorded(server, command, tmp_path, capsys, checkpoints, cache):
    content = checkpoints["retrieval"]
    server.files["/models/some.pt"] = Behaviour(content, cut=len(content) // 2, cuts=1)
    url = f"{server.url}/models/some.pt"
    assert command(url + "?signature=secret", "--sha256", digest(content)) == 0
    said = capsys.readouterr().out
    assert f"from {url}\n" in said and f"some.pt: {len(content):,} bytes, sha256 {digest(content)}" in said
    text = (tmp_path / "out" / "conversion.json").read_text()
    record = json.loads(text)
    assert (record["source"], record["url"], record["matching_head"]) == (url, url, True)
    assert record["files"] == [{"name": "some.pt", "size": len(content), "sha256": digest(content)}]
    assert "secret" not in text
    model = AlproForVideoTextRetrieval.from_pretrained(tmp_path / "out")
    assert torch.equal(model.vtm_head.weight, cases.state_dict("tiny", "retrieval")["itm_head.weight"])
    assert len(list(cache.glob("*/some.pt"))) == 1


@pytest.mark.slow
def test_a_known_name_comes_from_its_publisher_or_a_mirror_with_its_answers(server, command, tmp_path, checkpoints):
    content, answers = checkpoints["qa"], json.dumps(ANSWERS).encode()
    server.files["/copy/LAVIS/models/ALPRO/alpro_msvd_qa.pth"] = Behaviour(content)
    server.files["/copy/LAVIS/datasets/msvd/train_ans2label.json"] = Behaviour(answers)
    assert command("msvd-qa", "--mirror", f"{server.url}/copy/") == 0
    model = AlproForVideoQuestionAnswering.from_pretrained(tmp_path / "out")
    assert model.config.label2id == ANSWERS
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (record["source"], record["task"]) == ("msvd-qa", "qa")
    assert record["answers"] == {
        "url": f"{server.url}/copy/LAVIS/datasets/msvd/train_ans2label.json",
        "name": "train_ans2label.json",
        "size": len(answers),
        "sha256": digest(answers),
    }


def test_the_known_names_are_listed_with_what_is_not_known(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--list"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert set(KNOWN) > {"pretrain", "msrvtt-retrieval", "didemo-retrieval", "msrvtt-qa", "msvd-qa"}
    for name, known in KNOWN.items():
        assert name in said and known.url() in said and known.url().startswith(f"{PUBLISHER}/")
        assert (known.answers_url() is not None) == name.endswith("-qa")
    assert "could not be tried" in said and "Sizes: not known" in said and "Licence" in said


def test_a_misspelt_name_is_one_sentence(sentence):
    assert "Did you mean msrvtt-retrieval?" in sentence("msrvtt-retreival")
    assert "A mirror belongs to the names" in sentence("other/name", "--mirror", "http://127.0.0.1:9")


def test_a_wrong_hash_keeps_the_download(server, sentence, cache, checkpoints):
    server.files["/some.pt"] = Behaviour(checkpoints["retrieval"])
    said = sentence(f"{server.url}/some.pt", "--sha256", "0" * 64)
    assert f"some.pt has {digest(checkpoints['retrieval'])}" in said and str(cache) in said
    assert next(cache.glob("*/some.pt")).read_bytes() == checkpoints["retrieval"]


def test_what_is_no_checkpoint_says_where_it_came_from(server, sentence, cache, checkpoints):
    half = checkpoints["retrieval"][: len(checkpoints["retrieval"]) // 2]
    server.files["/some.pt"] = Behaviour(half)
    said = sentence(f"{server.url}/some.pt")
    assert "damaged or incomplete" in said and f"downloaded from {server.url}/some.pt; to download it anew" in said
    assert next(cache.glob("*/some.pt")).read_bytes() == half
    server.files["/page.pt"] = Behaviour(b"<html>log in</html>")
    assert "is a web page" in sentence(f"{server.url}/page.pt")
    server.files["/some.safetensors"] = Behaviour(random.Random(0).randbytes(1000))
    assert "to download it anew" in sentence(f"{server.url}/some.safetensors")
    assert "only addresses with http and https" in sentence("ftp://127.0.0.1/some.pt")
    assert "(status 404)" in sentence(f"{server.url}/absent.pt")


@pytest.mark.slow
def test_answers_that_the_publisher_does_not_give(server, sentence, checkpoints):
    server.files["/LAVIS/models/ALPRO/alpro_msvd_qa.pth"] = Behaviour(checkpoints["qa"])
    assert "train_ans2label.json cannot be downloaded" in sentence("msvd-qa", "--mirror", server.url)
    server.files["/LAVIS/datasets/msvd/train_ans2label.json"] = Behaviour(b'{"cat": 0}')
    assert "classifies 5 answers" in sentence("msvd-qa", "--mirror", server.url)


# --- archives -------------------------------------------------------------------------------------------------------


def write(path, members, packing=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.slow
def test_a_member_of_an_archive(server, command, sentence, tmp_path, capsys, checkpoints, cache):
    path = write(
        tmp_path / "output.zip",
        {
            "output/ret/best.pt": checkpoints["retrieval"],
            "output/qa/best.pt": checkpoints["qa"],
            "__MACOSX/output/qa/._best.pt": b"shadow",
            "output/log.txt": b"no weights",
        },
    )
    server.files["/output.zip"] = Behaviour(path.read_bytes())
    for source in (path, f"{server.url}/output.zip"):
        said = sentence(source)
        assert "several checkpoints" in said and "output/ret/best.pt (" in said and "__MACOSX" not in said
        assert "holds no output/best.pt" in sentence(source, "--member", "output/best.pt")
    assert (
        command(f"{server.url}/output.zip", "--member", "output/qa/best.pt", "--sha256", digest(path.read_bytes()))
        == 0
    )
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["archive"] == {
        "name": "output.zip",
        "size": path.stat().st_size,
        "sha256": digest(path.read_bytes()),
        "member": "output/qa/best.pt",
    }
    assert record["files"] == [
        {"name": "best.pt", "size": len(checkpoints["qa"]), "sha256": digest(checkpoints["qa"])}
    ]
    assert record["task"] == "qa"
    kept = {item.name for item in next(cache.iterdir()).iterdir()}
    assert kept == {"output.zip", "output.zip.json", ".lock"}  # no copy of the member stays


@pytest.mark.slow
def test_the_only_checkpoint_of_an_archive_is_taken(command, tmp_path, checkpoints):
    path = write(tmp_path / "some.zip", {"a/best.pt": checkpoints["retrieval"], "a/log.txt": b""})
    assert command(path) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def encrypted(path, good):
    write(path, {"best.pt": good})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # of the member itself, and of its entry in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def link(path, good):
    entry = zipfile.ZipInfo("best.pt")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")


def nested(path, good):
    write(path.with_name("inner.zip"), {"best.pt": good})
    write(path, {"best.pt": path.with_name("inner.zip").read_bytes()})


def twice(path, good):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("best.pt", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("best.pt", good)


def damaged(path, good):
    write(path, {"best.pt": good}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[len(good) // 2] ^= 255
    path.write_bytes(content)


def huge_directory(path, good):
    write(path, {"best.pt": good})
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x05\x06") + 12, 1 << 30)
    path.write_bytes(content)


def lying_size(path, good):
    """The directory says that the member is smaller than what is packed."""
    write(path, {"best.pt": good})
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, 1000)
    path.write_bytes(content)


ARCHIVES = {
    "path up": (lambda p, g: write(p, {"best.pt": g, "../../evil.pt": b""}), "lead out of the archive: ../../evil.pt"),
    "path from the root": (lambda p, g: write(p, {"/etc/evil.pt": g}), "lead out of the archive: /etc/evil.pt"),
    "escapes": (lambda p, g: write(p, {"\x1b[2J.pt": g, "b.pt": g}), r"'\x1b[2J.pt ("),
    "path of Windows": (lambda p, g: write(p, {"C:\\evil.pt": g}), "lead out of the archive"),
    "bomb": (lambda p, g: write(p, {"best.pt": bytes(50_000_000)}), "that unpack to 50,000,000"),
    "encrypted": (encrypted, "best.pt is encrypted"),
    "link": (link, "is a folder or a link"),
    "archive inside": (nested, "is an archive itself"),
    "same name twice": (twice, "holds 2 members called best.pt"),
    "damaged": (damaged, "Bad CRC-32"),
    "directory": (huge_directory, "the directory of this archive has 1,073,741,824 bytes"),
    "size": (lying_size, "damaged or incomplete"),
    "no weights": (lambda p, g: write(p, {"readme.txt": g}), "holds no weights"),
    "empty": (lambda p, g: write(p, {}), "holds no weights"),
    "page inside": (lambda p, g: write(p, {"best.pt": b"<html>"}), "is a web page and not a file of weights"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_that_is_not_to_be_trusted_is_one_sentence(tmp_path, sentence, checkpoints, case):
    make, said = ARCHIVES[case]
    make(tmp_path / "some.zip", checkpoints["retrieval"])
    before = {path.name for path in tmp_path.iterdir()}
    options = ("--member", "best.pt") if case == "same name twice" else ()
    assert said in sentence(tmp_path / "some.zip", *options)
    assert {path.name for path in tmp_path.iterdir()} - {"assets"} == before - {"assets"}


def test_a_member_of_what_is_no_archive(tmp_path, sentence, checkpoints):
    (tmp_path / "some.pt").write_bytes(checkpoints["retrieval"])
    assert "is not an archive" in sentence(tmp_path / "some.pt", "--member", "best.pt")
