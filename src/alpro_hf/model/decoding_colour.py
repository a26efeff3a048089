"""High dynamic range (PQ, HLG) and wide gamut (BT.2020) to the range and colours of ordinary video.

FFmpeg's scaler does not convert these, and the filter that does (zscale) is in none of PyAV's wheels. Without a
conversion HDR looks grey and dark, because its code values mean other amounts of light. The formulas are those of
ITU-R BT.2100 (PQ, HLG and its OOTF), BT.2087 (colours) and BT.2408 (reference white: 203 cd/m2, 75 % of HLG).
"""

from functools import cache
from typing import Literal

import numpy as np

HdrKind = Literal["pq", "hlg"]

# FFmpeg's numbers, which are those of ITU-T H.273
_TRANSFERS: dict[int, HdrKind] = {16: "pq", 18: "hlg"}
_UNSPECIFIED, _BT2020 = 2, 9

REFERENCE_WHITE = 203.0  # cd/m2 of diffuse white, which becomes nearly the white of ordinary video
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # of the reference display
# Light up to this share of reference white keeps its brightness; what is brighter is compressed into the rest.
KNEE = 0.7
DISPLAY_GAMMA = 2.4  # of ordinary video, BT.1886

# BT.2087, linear light, columns are R, G, B of BT.2020
_BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def hdr_kind(transfer: int) -> HdrKind | None:
    """The kind of high dynamic range that FFmpeg's number of a transfer function means; None for ordinary video."""
    return _TRANSFERS.get(transfer)


def is_wide(transfer: int, primaries: int) -> bool:
    """Whether a video has the primary colours of BT.2020, as HDR has them unless it says otherwise."""
    return primaries == _BT2020 or (primaries == _UNSPECIFIED and transfer in _TRANSFERS)


def to_ordinary(rgb: np.ndarray, kind: HdrKind | None, wide: bool) -> np.ndarray:
    """Convert a picture.

    Args:
        rgb: uint16 (H, W, 3), code values of R', G', B' over the full range.
        kind: PQ, HLG, or None for ordinary brightness.
        wide: Whether its primary colours are those of BT.2020.

    Returns:
        uint8 (H, W, 3), as a decoder returns ordinary video (BT.709, display gamma 2.4).
    """
    light = _light_of_codes(kind)[rgb]
    if kind == "hlg":  # the OOTF: from light of the scene to light of the display
        luma = (light @ _BT2020_LUMA)[..., None]
        light = light * np.maximum(luma, 1e-6) ** np.float32(HLG_GAMMA - 1) * np.float32(HLG_PEAK / REFERENCE_WHITE)
    if wide:
        light = light @ _BT2020_TO_BT709.T
    light = np.maximum(light, 0)
    if kind is not None:
        brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        light *= _roll_off(brightest) / brightest  # one factor for the three colours keeps the hue
    codes = np.minimum(light, 1) ** np.float32(1 / DISPLAY_GAMMA) * 255
    return (codes + 0.5).astype(np.uint8)


@cache
def _light_of_codes(kind: HdrKind | None) -> np.ndarray:
    """Light for each 16-bit code, float32 (65536,); reference white is 1, for HLG the peak of the scene is."""
    code = np.arange(1 << 16, dtype=np.float64) / ((1 << 16) - 1)
    if kind == "pq":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = code ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * (10_000 / REFERENCE_WHITE)
    elif kind == "hlg":
        a = 0.17883277
        b = 1 - 4 * a
        c = 0.5 - a * np.log(4 * a)
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = code**DISPLAY_GAMMA
    return light.astype(np.float32)


def _roll_off(light: np.ndarray) -> np.ndarray:
    """Light below the knee as it is; above it, a curve with the same slope at the knee that never exceeds 1."""
    rest = 1 - KNEE
    above = KNEE + rest * -np.expm1(-np.maximum(light - KNEE, 0) / rest)
    return np.where(light <= KNEE, light, above)


__all__ = ["HdrKind", "hdr_kind", "is_wide", "to_ordinary"]
