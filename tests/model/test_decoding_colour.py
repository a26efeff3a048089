"""High dynamic range next to an ordinary copy of the same pictures: they must look alike."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_colour import to_ordinary
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor

WHITE = 203.0  # cd/m2
# x and y of red, green and blue, and of white (D65)
BT709, BT2020, D65 = (
    ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    (0.3127, 0.3290),
)
PQ, HLG, SDR_10BIT = 16, 18, 14  # transfer functions
H265 = {"x265-params": "log-level=none:crf=4"}


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = D65
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


TO_BT2020 = np.linalg.inv(to_xyz(BT2020)) @ to_xyz(BT709)


def pq(light: np.ndarray) -> np.ndarray:
    """Code values of light in cd/m2."""
    power = (np.maximum(light, 0) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light: np.ndarray) -> np.ndarray:
    """Code values of light in cd/m2 on a display of 1000 cd/m2."""
    shown = np.maximum(light, 0) / 1000
    luma = np.maximum(shown @ [0.2627, 0.6780, 0.0593], 1e-9)[..., None]
    scene = shown * luma ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


CODES: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    PQ: pq,
    HLG: hlg,
    SDR_10BIT: lambda light: (np.maximum(light, 0) / WHITE) ** (1 / 2.4),
}


def write(path: Path, pictures: np.ndarray, transfer: int, tagged: bool = True) -> Path:
    """Pictures uint8 (T, H, W, 3) as 10-bit H.265 in the colours of BT.2020."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options=H265)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p10le"
        if tagged:
            stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
            stream.codec_context.colorspace, stream.codec_context.color_range = 9, 1
        for i, picture in enumerate(pictures):
            light = (picture / 255) ** 2.4 @ TO_BT2020.T * WHITE
            codes = (CODES[transfer](light).clip(0, 1) * 65535).round().astype(np.uint16)
            frame = av.VideoFrame.from_ndarray(codes, "rgb48le").reformat(format="yuv420p10le", dst_colorspace=9)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            if tagged:
                frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, 9, 9, 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def pictures(source_frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(source_frames[:4])


@pytest.mark.parametrize(("transfer", "kind"), [(PQ, "pq"), (HLG, "hlg"), (SDR_10BIT, None)])
def test_looks_like_the_ordinary_copy(pictures, tmp_path, transfer: int, kind: str | None) -> None:
    path = write(tmp_path / "clip.mp4", pictures, transfer)
    ordinary = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    frames = decode(path)
    away = (frames.pixels.float() - ordinary).abs().mean()
    assert away < 4, away
    assert frames.info.hdr == probe(path).hdr == kind
    # the same codes without the tags that say what they mean
    unknown = decode(write(tmp_path / "untagged.mp4", pictures, transfer, tagged=False))
    assert unknown.info.hdr is None
    assert (unknown.pixels.float() - ordinary).abs().mean() > 2 * away
    small = decode(path, [1], height=45, width=80).pixels
    assert (small.float() - torch.nn.functional.avg_pool2d(ordinary[1:2], 2)).abs().mean() < 5


def test_the_metadata_and_a_process_of_its_own_say_so(pictures, tmp_path) -> None:
    path = write(tmp_path / "clip.mp4", pictures, HLG)
    with IsolatedDecoder(processes=1) as decoder:
        assert torch.equal(decoder.decode(path).pixels, decode(path).pixels)
        [metadata] = AlproVideoProcessor(num_frames=2)(
            path, return_metadata=True, decoder=decoder.decode
        ).video_metadata
    assert metadata.hdr == "hlg"


def test_light_beyond_white_is_compressed_and_keeps_its_order_and_hue() -> None:
    grey = np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None].repeat(3, axis=2)
    for kind in ("pq", "hlg"):
        shown = to_ordinary(grey, kind, True)[0].astype(int)
        assert np.ptp(shown, axis=1).max() <= 1  # grey stays grey
        assert (np.diff(shown[:, 0]) >= 0).all() and shown[0].max() == 0 and shown[-1].min() == 255
    white = np.full((1, 1, 3), round(float(pq(np.array(WHITE))) * 65535), np.uint16)
    assert 238 <= to_ordinary(white, "pq", True).min() < 255
    orange = np.array([[[0.75, 0.70, 0.60]]]) * 65535
    bright = to_ordinary(orange.astype(np.uint16), "pq", False)[0, 0]
    assert bright[0] > bright[1] > bright[2] + 40
