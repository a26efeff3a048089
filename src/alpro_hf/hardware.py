"""What the machine computes fast: the answer to `dtype="auto"`."""

import torch


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does with AVX512-BF16 or AMX; on others every product is emulated, several times slower than in float32. A
    GPU does from NVIDIA's Ampere on. Of other devices nothing is known, which counts as no.

    Args:
        device: Such as `model.device` or "cuda:1".
    """
    device = torch.device(device)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where a device has it in hardware, else float32, which is exact and elsewhere also faster."""
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


__all__ = ["best_device", "best_dtype", "fast_bfloat16"]
