"""Pictures as a player shows them: turned by the camera, with pixels that are not square, and of extreme shapes."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from conftest import Encoder

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_picture import Canvas, square_pixels
from alpro_hf.model.decoding_types import UnsupportedVideoError, VideoDecodeError
from alpro_hf.model.video_processing_alpro import AlproVideoProcessor

LYING, LYING_BACK = (0, 1, -1, 0), (0, -1, 1, 0)


def with_square(path: Path, ratio: Fraction = Fraction(1), turn: tuple[int, int, int, int] | None = None) -> Path:
    """Black with a white square of 64 x 64 shown pixels, stored with pixels of `ratio` and turned by `turn`."""
    picture = np.zeros((128, 256, 3), np.uint8)
    wide, high = (64 / ratio, 64) if ratio > 1 else (64, 64 * ratio)
    picture[32 : 32 + round(high), 64 : 64 + round(wide)] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 128, 256, "yuv420p"
        stream.codec_context.sample_aspect_ratio = ratio
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    if turn is not None:
        data = bytearray(path.read_bytes())
        a, b, c, d = (number << 16 for number in turn)
        struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


def square_of(picture: torch.Tensor) -> tuple[int, int]:
    """Height and width of what is white in a picture (3, H, W)."""
    white = picture.float().mean(dim=0) > 128
    return int(white.any(dim=1).sum()), int(white.any(dim=0).sum())


CASES = [
    (Fraction(2), None),
    (Fraction(1, 2), None),
    (Fraction(2), LYING),
    (Fraction(4, 3), LYING_BACK),
    (Fraction(1), LYING),
]


@pytest.mark.parametrize(("ratio", "turn"), CASES, ids=str)
def test_a_square_is_a_square(tmp_path: Path, ratio: Fraction, turn: tuple[int, int, int, int] | None) -> None:
    path = with_square(tmp_path / "clip.mp4", ratio, turn)
    frames, info = decode(path), probe(path)
    height, width = square_of(frames.pixels[0])
    assert abs(height - 64) <= 2 and abs(width - 64) <= 2
    assert (info.height, info.width) == tuple(frames.pixels.shape[2:]) == (frames.info.height, frames.info.width)
    processor = AlproVideoProcessor(num_frames=1, size={"shortest_edge": 64}, do_rescale=False, do_normalize=False)
    batch = processor(path, return_metadata=True)
    height, width = square_of(batch.pixel_values_videos[0, 0])
    assert abs(height - width) <= 2
    [metadata] = batch.video_metadata
    assert (metadata.height, metadata.width) == (info.height, info.width)
    with IsolatedDecoder(processes=1) as decoder:
        assert decoder.probe(path) == info
        assert torch.equal(decoder.decode(path).pixels, frames.pixels)


def test_sizes_in_square_pixels() -> None:
    assert square_pixels(720, 576, Fraction(16, 15)) == (768, 576)
    assert square_pixels(720, 480, Fraction(8, 9)) == (720, 540)
    for ratio in (None, Fraction(0), Fraction(1), Fraction(1, 65535), Fraction(65535)):
        assert square_pixels(720, 576, ratio) == (720, 576)


def exif(orientation: int) -> bytes:
    body = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_pictures_in_an_avi(orientation: int) -> None:
    """A camera that records JPEG pictures notes in each how it was held. PyAV does not know this kind of side data."""
    picture = PIL.Image.new("RGB", (64, 48))
    picture.paste((255, 200, 100), (0, 0, 20, 10))
    photo = io.BytesIO()
    picture.save(photo, "JPEG")
    content = photo.getvalue()[:2] + exif(orientation) + photo.getvalue()[2:]
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for i in range(4):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base, packet.is_keyframe = (
                stream,
                i,
                i,
                Fraction(1, 10),
                True,
            )
            container.mux(packet)
    expected = np.array(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(content))))
    frames = decode(file.getvalue())
    assert frames.pixels.shape == (4, 3, *expected.shape[:2])
    assert np.abs(frames.pixels[2].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 3
    assert (probe(file.getvalue()).height, probe(file.getvalue()).width) == expected.shape[:2]


@pytest.mark.parametrize(("width", "height"), [(16384, 2), (2, 16384), (8000, 2)])
def test_extreme_shapes(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "clip.mkv"
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2 or 1, : width // 2] = 250
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    for size in (224, 48):
        pixels = decode(path, [1], height=size, width=size).pixels[0].float()
        edge = size // 4
        assert pixels[:, :edge, :edge].mean() > 150 and pixels[:, -edge:, -edge:].mean() < 60
    assert AlproVideoProcessor()(path).pixel_values_videos.shape == (1, 8, 3, 224, 224)


def raw(layout: str) -> bytes:
    """Pictures without a codec in a format of pixels that FFmpeg reads."""
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 48, layout)))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_pixels_that_cannot_be_converted() -> None:
    """One error with the name of the file, here and in another process."""
    with IsolatedDecoder(processes=1) as decoder:
        for layout in ("bgr4", "rgb4"):
            data = raw(layout)
            for call in (decoder.decode, decode):
                with pytest.raises(VideoDecodeError, match=rf"<{len(data)} bytes>: FFmpeg or PyAV cannot convert"):
                    call(data, height=32, width=32)


def test_pixels_that_would_end_the_process() -> None:
    with pytest.raises(UnsupportedVideoError, match=r"clip\.nut: .*yaf32le"):
        Canvas("clip.nut", av.VideoFrame(64, 48, "yaf32le"), 32, 32).draw(av.VideoFrame(64, 48, "yaf32le"))


def test_ordinary_pictures_are_untouched(encode: Encoder) -> None:
    path = encode("h264_key12.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).reformat(160, 90, "rgb24", interpolation="BICUBIC").to_ndarray()
    assert np.array_equal(decode(path, [0]).pixels[0].permute(1, 2, 0).numpy(), frame)
