"""Frames of clips: our decoder, a full decode with PyAV, decord, OpenCV and torchcodec; see benchmark.py.

Exact is counted on every clip: each frame shows its number as a row of black and white squares, read back from what a
decoder returned.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
from benchmark import alternate, peak_memory_mb, write

from alpro_hf.decoding import decode, probe

ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
SIZES = {360: (640, 360), 720: (1280, 720), 1080: (1920, 1080)}
BITS, RATE = 16, 30


def make(path: Path, codec: str, height: int, gop: int, seconds: int) -> Path:
    width, height = SIZES[height]
    fast = {"libx264": {"preset": "veryfast"}, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"}}
    options = fast.get(ENCODERS[codec], {"deadline": "realtime", "cpu-used": "8", "preset": "12"})
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODERS[codec], rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(seconds * RATE):
            frame = np.roll(picture, 4 * number, axis=1)
            square = width // BITS
            for bit in range(BITS):
                frame[:square, bit * square : (bit + 1) * square] = 255 * (number >> bit & 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def number_of(frame: np.ndarray) -> int:
    square = frame.shape[1] // BITS
    middles = [frame[square // 2, bit * square + square // 2].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit, white in enumerate(middles) if white)


def ours(path: Path, wanted: list[int]) -> list[np.ndarray]:
    return [frame.numpy() for frame in decode(path, wanted).pixels.permute(0, 2, 3, 1)]


def whole(path: Path, wanted: list[int]) -> list[np.ndarray]:
    kept = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return kept


def by_decord(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import decord

    return list(decord.VideoReader(str(path)).get_batch(wanted).asnumpy())


def by_opencv(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import cv2

    capture, kept = cv2.VideoCapture(str(path)), []
    for number in wanted:
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        read, frame = capture.read()
        if read:
            kept.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return kept


def by_torchcodec(path: Path, wanted: list[int]) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    return list(VideoDecoder(str(path), dimension_order="NHWC").get_frames_at(wanted).data.numpy())


DECODERS: dict[str, tuple[str | None, Callable[[Path, list[int]], list[np.ndarray]]]] = {
    "ours": (None, ours),
    "PyAV, whole clip": (None, whole),
    "decord": ("decord", by_decord),
    "OpenCV, set position": ("cv2", by_opencv),
    "torchcodec": ("torchcodec", by_torchcodec),
}


def run(arguments: argparse.Namespace) -> None:
    there = {name: frames_of for name, (module, frames_of) in DECODERS.items() if not module or find_spec(module)}
    missing = dict.fromkeys([name for name in DECODERS if name not in there], "not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder) / "first.mp4", "h264", 360, 30, 1)
        for name in [name for name in there if DECODERS[name][0]]:
            try:
                there[name](path, [0])
            except RuntimeError as error:  # torchcodec without FFmpeg's libraries
                missing[name] = str(error).split(".")[0]
                del there[name]
    rows, right = [], dict.fromkeys(there, 0)
    clips = 0
    with tempfile.TemporaryDirectory() as folder:
        for codec in arguments.codecs:
            for height in arguments.heights:
                for gop in arguments.gops:
                    for seconds in arguments.seconds:
                        path = make(Path(folder) / f"{codec}-{height}-{gop}.mp4", codec, height, gop, seconds)
                        total = probe(path).num_frames
                        for count in arguments.frames:
                            wanted = [int((i + 0.5) * total / count) for i in range(count)]
                            clips += 1
                            for name, frames_of in there.items():
                                right[name] += [number_of(frame) for frame in frames_of(path, wanted)] == wanted
                            found = alternate(
                                {name: partial(decode, path, wanted) for name, frames_of in there.items()},
                                arguments.rounds,
                            )
                            clip = f"{codec} {height}p, key frame every {gop}, {seconds} s, {count} frames"
                            times = {f"{name}, cpu ms": 1000 * found[name]["cpu"] for name in there}
                            rows.append({"clip": clip} | times)
                            print(rows[-1])
    exact = [{"decoder": name, "exact clips": f"{number} of {clips}"} for name, number in right.items()]
    exact += [{"decoder": name, "exact clips": f"not measured: {why}"} for name, why in missing.items()]
    settings = {"rounds": arguments.rounds, "peak memory MB": peak_memory_mb()}
    write("decoding", settings, {"decoding": rows, "exactness": exact})


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("decoding", help="against other decoders")
    command.add_argument("--codecs", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    command.add_argument("--heights", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    command.add_argument("--gops", type=int, nargs="+", default=[30, 250])
    command.add_argument("--seconds", type=int, nargs="+", default=[5, 30])
    command.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    command.add_argument("--rounds", type=int, default=3)
    command.set_defaults(run=run)
