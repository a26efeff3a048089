"""One list of what a video is: what it names decodes, and every part of the package goes by it."""

import io
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from conftest import Encoder

from alpro_hf.data.annotations import load_annotations
from alpro_hf.data.find_videos import find_videos
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.data.media_folder import MediaFolder
from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_formats import VIDEO_EXTENSIONS, is_video_file, starts_like_a_video
from alpro_hf.model.decoding_types import UnsupportedVideoError, VideoDecodeError

# codecs and formats of pixels for the containers that do not take MPEG-4 video
CODECS = {
    **dict.fromkeys((".mpg", ".mpeg", ".mpe", ".m2v", ".mxf", ".vob"), ("mpeg2video", "yuv420p")),
    **dict.fromkeys((".3gp", ".3g2", ".f4v"), ("libx264", "yuv420p")),
    **dict.fromkeys((".wmv", ".asf"), ("wmv2", "yuv420p")),
    **dict.fromkeys((".webm", ".ivf", ".ogv"), ("libvpx", "yuv420p")),
    ".gif": ("gif", "rgb8"),
    ".apng": ("apng", "rgb24"),
    ".m1v": ("mpeg1video", "yuv420p"),
    ".flv": ("flv", "yuv420p"),
    ".rm": ("rv10", "yuv420p"),
}
MUXERS = {".divx": "avi", ".qt": "mov", ".mpe": "mpeg", ".mj2": "mov", ".apng": "apng"}
UNWRITABLE = {".dv", ".ogm", ".rmvb", ".y4m"}  # read by FFmpeg, and not written by PyAV at any size or at all


def frames_of(folder: Path, name: str, **options: object) -> Path:
    """A moving square, written by Pillow."""
    images = []
    for i in range(5):
        picture = np.full((48, 64, 3), 40, np.uint8)
        picture[10:20, 5 + 8 * i : 15 + 8 * i] = 240
        images.append(PIL.Image.fromarray(picture))
    images[0].save(folder / name, save_all=True, append_images=images[1:], duration=100, **options)
    return folder / name


@pytest.mark.parametrize("extension", sorted(VIDEO_EXTENSIONS - UNWRITABLE))
def test_what_the_list_names_decodes(extension: str, source_frames: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"clip{extension}"
    codec, layout = CODECS.get(extension, ("mpeg4", "yuv420p"))
    muxer = MUXERS.get(extension)
    size = (352, 288) if codec == "rv10" else (160, 96)
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, layout
        for picture in source_frames[:6]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(*size, layout)))
        container.mux(stream.encode(None))
    assert len(decode(path).pixels) >= 5
    unnamed = path.rename(tmp_path / "clip")
    if extension not in {".m1v", ".m2v"} or starts_like_a_video(unnamed.read_bytes()):
        assert is_video_file(unnamed), "told by its content, too"


def test_animations_are_videos_and_still_images_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    moving = [frames_of(folder, "a.gif"), frames_of(folder, "b.apng", format="PNG"), frames_of(folder, "c.png")]
    for name in ("d.png", "e.webp", "f.jpg", "g.bmp", "h.tiff"):
        PIL.Image.new("RGB", (64, 48)).save(folder / name)
    assert find_videos([folder])[0] == moving
    videos = MediaFolder(folder)
    assert {videos[i] for i in range(len(videos))} == {path.name for path in moving}
    for path in moving:
        frames = decode(path)
        assert len(frames.pixels) == 5 and frames.info.fps == pytest.approx(10)
    images = MediaFolder(folder, "image")
    assert {images[i] for i in range(len(images))} >= {"a.gif", "d.png", "f.jpg"}


def test_tables_and_folders_of_gifs(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("one.gif", "two.gif"):
        frames_of(tmp_path / "clips", name)
    (tmp_path / "rows.csv").write_text("file_name,text\none.gif,a square\ntwo.gif,a square moves\n")
    rows = load_annotations("table", tmp_path / "rows.csv", videos=tmp_path / "clips")
    assert [Path(row["video"]).name for row in rows] == ["one.gif", "two.gif"]
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,text\none.gif,a square\n")
    assert "video" in load_annotations("table", tmp_path / "clips" / "metadata.csv").column_names


def test_an_animated_webp_is_unsupported_everywhere(tmp_path: Path) -> None:
    path = frames_of(tmp_path, "a.webp")
    assert is_video_file(path) and find_videos([tmp_path])[0] == [path]
    words = "it is an animated WebP, for which FFmpeg has no decoder"
    with IsolatedDecoder(processes=1) as decoder:
        for call in (probe, decode, decoder.probe, decoder.decode):
            with pytest.raises(UnsupportedVideoError, match=words):
                call(path)
    still = tmp_path / "still.webp"
    PIL.Image.new("RGB", (64, 48)).save(still)
    assert decode(still).pixels.shape == (1, 3, 48, 64) and not is_video_file(still)


def test_a_file_of_which_nothing_decodes_is_refused_by_both(encode: Encoder) -> None:
    data = bytearray(encode("h264_key12.mp4").read_bytes())
    with av.open(io.BytesIO(data)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets:
        data[start + 4 : start + size] = bytes([255]) * (size - 4)
    errors = []
    for call in (probe, decode):
        with pytest.raises(VideoDecodeError) as caught:
            call(bytes(data))
        errors.append(type(caught.value))
    assert errors[0] is errors[1]
