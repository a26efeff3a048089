"""Checkpoints that are made to crash, stall or fill the process that reads them."""

import pickle
import time
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from alpro_hf.hub import checkpoint_file
from alpro_hf.hub.checkpoint_file import load_checkpoint, load_original_checkpoint
from alpro_hf.model.unimodal_alpro import CheckpointError

PROTOCOL, STOP, EMPTY_DICT, SET = b"\x80\x02", b".", b"}", b"s"


def deep_key(path):
    """A dictionary whose key is a tuple a million deep: hashing it needs more stack than there is."""
    path.write_bytes(PROTOCOL + EMPTY_DICT + b")" + b"\x85" * 1_000_000 + b"K\x01" + SET + STOP)


def endless_key(path):
    """A tuple of twice itself, 60 times over: its hash visits 2 ** 60 tuples."""
    path.write_bytes(PROTOCOL + EMPTY_DICT + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01" + SET + STOP)


def write_zipped(path, pickled):
    """The same inside the archive that torch.save writes."""
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True])
def test_a_key_of_a_million_levels_is_one_sentence(tmp_path, zipped):
    path = tmp_path / "file.pt"
    deep_key(path)
    if zipped:
        write_zipped(path, path.read_bytes())
    with pytest.raises(CheckpointError, match=r"file\.pt (was refused|is damaged)"):
        load_original_checkpoint(path)


@pytest.mark.slow
def test_a_file_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "READ_DEADLINE", 2.0)
    path = tmp_path / "file.pt"
    endless_key(path)
    write_zipped(path, path.read_bytes())
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"file\.pt was refused: reading it took longer than 2 seconds"):
        load_original_checkpoint(path)
    assert time.monotonic() - began < 100


@pytest.mark.slow
def test_a_process_that_may_not_hold_the_file_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.zeros(50_000_000)}, path)
    monkeypatch.setattr(checkpoint_file, "_MEMORY", -500_000_000)
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_original_checkpoint(path)


NOT_WEIGHTS = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
    "bits8",
    "bits16",
    "uint16",
    "uint64",
    "float4_e2m1fn_x2",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NOT_WEIGHTS if hasattr(torch, name)])
def test_data_types_that_weights_do_not_have_are_one_sentence(tmp_path, name):
    tensor = torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))
    torch.save({"weight": tensor}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"file\.pt (was refused|is damaged)"):
        load_original_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "uint16"])
def test_the_same_in_safetensors(tmp_path, name):
    tensor = torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))
    save_file({"weight": tensor}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=f"'weight' has the data type torch.{name}"):
        load_checkpoint([tmp_path / "file.safetensors"])


def test_every_data_type_of_weights_arrives_bit_by_bit(tmp_path):
    state = {
        name: (torch.randn(3, 5) * 10).to(kind) for name, kind in checkpoint_file.DATA_TYPES.items() if name != "bool"
    }
    state |= {"bool": torch.tensor([True, False]), "scalar": torch.tensor(0.07), "empty": torch.zeros(0, 4)}
    state |= {"turned": torch.randn(4, 6).T, "tied": state["float32"]}
    torch.save(state, tmp_path / "file.pt")
    found = load_original_checkpoint(tmp_path / "file.pt")
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.slow
def test_tensors_that_share_one_memory_do_not_multiply_it(tmp_path):
    one = torch.zeros(1_000_000)
    torch.save({f"layer{index}": one for index in range(1000)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=r"share one memory, and take 4,000,000,000 bytes apart"):
        load_original_checkpoint(tmp_path / "file.pt")


def test_the_format_is_told_from_the_content(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "download")
    assert torch.equal(load_checkpoint([tmp_path / "download"])["weight"], torch.ones(3))


def test_a_module_in_the_working_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    torch.save({"weight": torch.ones(3)}, tmp_path / "file.pt")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(load_original_checkpoint("file.pt")["weight"], torch.ones(3))
    assert not (tmp_path / "canary").exists()


def test_a_plain_pickle_is_still_refused_with_the_name_that_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").write_bytes(pickle.dumps([1], protocol=2))
    with pytest.raises(CheckpointError, match=r"^file\.pt "):
        load_original_checkpoint("file.pt")
