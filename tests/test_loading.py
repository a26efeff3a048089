import pytest
import torch

from alpro_hf.loading import best_device, best_dtype, fast_bfloat16


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_a_cpu_with_instructions_for_bfloat16_uses_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_bfloat16("cpu") == (avx512 or amx)
    assert best_dtype(torch.device("cpu")) == (torch.bfloat16 if avx512 or amx else torch.float32)


def test_a_cpu_answers_as_its_flags_say():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(file.read().split())
    except FileNotFoundError:
        pytest.skip("the flags of the CPU are in /proc/cpuinfo on Linux alone")
    assert fast_bfloat16("cpu") == bool({"avx512_bf16", "amx_tile"} & flags)


def test_an_unknown_device_computes_in_float32():
    assert best_dtype("meta") == torch.float32
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
