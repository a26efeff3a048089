"""Measure reading frames of clips: our decoder, a full decode with PyAV, decord, OpenCV and torchcodec. See run.py.

Each frame shows its number as a row of black and white squares. The benchmark reads the number back from the frames
that a decoder returns, and so counts on every clip whether the decoder is exact.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import RESULTS_FOLDER, alternate, conditions, markdown, peak_memory_mb, write

from alpro_hf.model.decoding import decode, probe
from alpro_hf.model.decoding_table import FrameTable
from alpro_hf.model.decoding_types import DEFAULT_LIMITS
from alpro_hf.model.decoding_video import open_video

ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "b": "1500k"},
    "libsvtav1": {"preset": "12"},
}
SIZES = {360: (640, 360), 720: (1280, 720), 1080: (1920, 1080)}
BITS, RATE = 16, 30  # squares that show the number of a frame; frames per second
CONTAINERS = ("mp4", "mkv")
SHORT = 10  # seconds; longer clips repeat a shorter one, because encoding them takes too long
# decoder -> its name on PyPI, where that differs
DISTRIBUTIONS = {"OpenCV": "opencv-python-headless"}
# titles of the two tables; docs/benchmarks/decoding.json and the plot use them as keys
CPU, WALL = "cpu ms, one thread each", "wall ms, all cores each"
LISTING = "first table of a file"
LONG = "long files"
LONG_FILES = ((600, 8, "mp4"), (7200, 8, "mp4"), (7200, 16, "mp4"), (7200, 8, "mkv"))  # seconds, frames, container
CLIP_FOLDER = Path(tempfile.gettempdir()) / "alpro-benchmark-clips"


def make(path: Path, codec: str, height: int, gop: int, frames: int) -> Path:
    """A clip of two textures that move against each other under grain. Each frame shows its number.

    The file stays in `CLIP_FOLDER` for the next run.
    """
    if path.exists():
        return path
    width, height = SIZES[height]
    rng = np.random.default_rng(0)
    near, far = texture(rng, height, width), texture(rng, height, width)
    shape = texture(rng, height, width)[..., :1] > 128
    grain = rng.normal(0, 3, (8, height, width, 1)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}")
    policy = os.sched_getscheduler(0), os.sched_getparam(0)  # SVT-AV1 changes it when run as root
    with av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream(ENCODERS[codec], rate=RATE, options=OPTIONS[ENCODERS[codec]])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(frames):
            layers = [np.roll(layer, shift, axis=(0, 1)) for layer, shift in moved(near, far, shape, number)]
            frame = np.where(layers[2], layers[0], layers[1]) + grain[number % len(grain)]
            frame = frame.clip(0, 255).astype(np.uint8)
            square = width // BITS
            for bit in range(BITS):
                frame[:square, bit * square : (bit + 1) * square] = 255 * (number >> bit & 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    os.sched_setscheduler(0, *policy)
    return partial_path.rename(path)


def repeat(path: Path, base: Path, times: int) -> Path:
    """A long clip that repeats the packets of a short one, without encoding again. The file stays for the next run.

    The extension of `path` chooses the container.
    """
    if path.exists():
        return path
    partial_path = path.with_name(f".{path.name}")
    with av.open(str(base)) as source, av.open(str(partial_path), "w") as container:
        shown = source.streams.video[0]
        stream = container.add_stream_from_template(shown, opaque=True)
        packets = [packet for packet in source.demux(shown) if packet.size]
        length = max(packet.pts for packet in packets) - min(packet.pts for packet in packets) + packets[0].duration
        for round_ in range(times):
            source.seek(0, stream=shown)
            for packet in source.demux(shown):
                if packet.size:
                    packet.pts, packet.dts = packet.pts + round_ * length, packet.dts + round_ * length
                    packet.stream = stream
                    container.mux(packet)
    return partial_path.rename(path)


def clip(codec: str, height: int, gop: int, seconds: int, container: str = "mp4") -> Path:
    """The file of a clip with a key frame every `gop` frames; made if it is missing."""
    path = CLIP_FOLDER / f"{codec}-{height}-{gop}-{seconds}s.{container}"
    if seconds <= SHORT:
        made = make(path.with_suffix(".mp4"), codec, height, gop, seconds * RATE)
        return made if container == "mp4" else repeat(path, made, 1)
    # whole groups of pictures, or a repetition would not begin with a key frame at the right distance
    frames = gop * max(1, 240 // gop)
    base = make(CLIP_FOLDER / f"{codec}-{height}-{gop}-{frames}.mp4", codec, height, gop, frames)
    return repeat(path, base, seconds * RATE // frames)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with details of several sizes, as in a photograph: int16 (height, width, 3)."""
    total = np.zeros((height, width, 3))
    for size in (4, 8, 16, 40):
        total += (
            size
            * np.kron(rng.normal(0, 1, (height // size + 1, width // size + 1, 3)), np.ones((size, size, 1)))[
                :height, :width
            ]
        )
    return (128 + total).clip(0, 255).astype(np.int16)


def moved(near: np.ndarray, far: np.ndarray, shape: np.ndarray, number: int) -> list[tuple[np.ndarray, Any]]:
    """Both textures and the mask between them, each with its shift in pixels at frame `number`."""
    return [(near, (number, 3 * number)), (far, (0, -number)), (shape, (number, 3 * number))]


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame shows."""
    square = frame.shape[1] // BITS
    middles = [frame[square // 2, bit * square + square // 2].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit, white in enumerate(middles) if white)


def ours(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    return [frame.numpy() for frame in decode(path, wanted, threads=threads).pixels.permute(0, 2, 3, 1)]


def ours_again(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    """Our decoder with the frame table that an index keeps."""
    table = FrameTable.from_bytes(kept_table(path))
    return [frame.numpy() for frame in decode(path, wanted, threads=threads, table=table).pixels.permute(0, 2, 3, 1)]


@cache
def kept_table(path: Path) -> bytes:
    """The frame table of a clip as an index stores it."""
    table = decode(path, [0]).table
    assert table is not None
    return table.to_bytes()


def whole(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    """PyAV decodes every frame: the reference for the right frames."""
    kept = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        container.streams.video[0].codec_context.thread_count = threads
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
    return kept


def by_the_library(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    from transformers.video_utils import load_video

    return list(load_video(str(path), backend="pyav", sample_indices_fn=lambda metadata, **_: np.array(wanted))[0])


def by_decord(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    import decord

    try:
        return list(decord.VideoReader(str(path), num_threads=threads).get_batch(wanted).asnumpy())
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from error


def by_opencv(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    import cv2

    capture, kept = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads]), []
    for number in wanted:
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        read, frame = capture.read()
        if read:
            kept.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return kept


def by_torchcodec(path: Path, wanted: list[int], threads: int) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
    return list(decoder.get_frames_at(wanted).data.numpy())


Decoder = Callable[[Path, list[int], int], list[np.ndarray]]  # (file, wanted frames, threads; 0: all cores) -> frames
OURS = ("ours", AGAIN := "ours, a second time")
# name -> (module that must be installed, None if it always is; function)
DECODERS: dict[str, tuple[str | None, Decoder]] = {
    "ours": (None, ours),
    AGAIN: (None, ours_again),
    "PyAV, whole clip": (None, whole),
    "transformers": (None, by_the_library),
    "decord": ("decord", by_decord),
    "OpenCV": ("cv2", by_opencv),
    "torchcodec": ("torchcodec", by_torchcodec),
}


def timed(frames_of: Decoder, path: Path, wanted: list[int], threads: int) -> tuple[Any, float, float]:
    """The frames (None after an error), and `cpu` and `wall` milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        frames = frames_of(path, wanted, threads)
    except (RuntimeError, IndexError, av.error.FFmpegError) as error:  # torchcodec and decord: RuntimeError
        print(f"{path.name}: {frames_of.__name__}: {str(error).splitlines()[0]}")
        frames = None
    return frames, 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


# decoder -> (cpu ms with one thread, wall ms with all cores) of each round
Costs = dict[str, list[tuple[float, float]]]


def both(frames_of: Decoder, path: Path, wanted: list[int]) -> tuple[list[Any], tuple[float, float]]:
    """Frames with one thread and with all cores; `cpu` milliseconds of the first and `wall` of the second."""
    one, cpu, _ = timed(frames_of, path, wanted, 1)
    every, _, wall = timed(frames_of, path, wanted, 0)
    return [one, every], (cpu, wall)


def first_try(available: dict[str, Any], path: Path, wanted: list[int]) -> tuple[dict[str, list[Any]], Costs]:
    """Compare the frames of each decoder with those of a full decode, with one thread and with all cores.

    Returns:
        For each decoder two values, True for the right frames and None after an error, and the costs of this try.
    """
    shown: dict[str, Any] = {}
    costs: Costs = {}
    for name, frames_of in available.items():
        tries, cost = both(frames_of, path, wanted)
        shown[name] = [None if frames is None else [number_of(frame) for frame in frames] for frames in tries]
        costs[name] = [cost]
    right = shown["PyAV, whole clip"][0]
    exact = {
        name: [None if numbers is None else numbers == right for numbers in tries] for name, tries in shown.items()
    }
    return exact, costs


def repeat_fast(
    available: dict[str, Any], path: Path, wanted: list[int], exact: Any, costs: Costs, rounds: int
) -> None:
    """Repeat in turns the decoders that may be the fastest exact one. The rounds replace the first try in `costs`."""
    # a slow decoder cannot become the fastest by noise, and repeating it takes most of the time
    limits = [1.6 * min(cost[0][clock] for name, cost in costs.items() if exact[name][clock]) for clock in (0, 1)]
    fast = [
        name
        for name, [cost] in costs.items()
        if name in OURS or any(exact[name][clock] and cost[clock] < limits[clock] for clock in (0, 1))
    ]
    for round_ in range(rounds):
        for name in fast:
            cost = both(available[name], path, wanted)[1]
            costs[name] = [*costs[name], cost] if round_ else [cost]


def medians(exact: dict[str, Any], costs: Costs) -> dict[str, dict[str, Any]]:
    """For each decoder whether it is exact, and the medians of both clocks."""
    found = {}
    for name, pairs in costs.items():
        found[name] = {"exact": exact[name], "cost": [statistics.median(one) for one in zip(*pairs, strict=True)]}
    return found


def row_of(about: str, found: dict[str, dict[str, Any]], clock: int) -> dict[str, Any]:
    """A row of the table: milliseconds of each decoder, and ours divided by the fastest other exact decoder."""
    row: dict[str, Any] = {"clip": about}
    others = {}
    for name, one in found.items():
        exact, cost = one["exact"][clock], one["cost"][clock]
        row[name] = cost if exact else "fails" if exact is None else "wrong frames"
        if exact and name not in OURS:
            others[name] = cost
    row["next best"] = min(others, key=others.__getitem__)
    row["ratio"] = found["ours"]["cost"][clock] / min(others.values())
    row["ratio, a second time"] = found[AGAIN]["cost"][clock] / min(others.values())
    return row


def summary(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """How often our decoder is the fastest or close to it, by table and with or without a frame table."""
    lines = []
    for title, rows in tables.items():
        for ratio in ("ratio", "ratio, a second time"):
            ratios = [row[ratio] for row in rows]
            within, ahead = sum(one <= 1.1 for one in ratios), sum(one < 1 for one in ratios)
            lines.append(
                {
                    "by": title + (", a second time" if "second" in ratio else ""),
                    "within 10 % of the fastest exact": f"{within} of {len(rows)}",
                    "fastest": f"{ahead} of {len(rows)}",
                    "median ratio": statistics.median(ratios),
                    "largest ratio": max(ratios),
                }
            )
    return lines


# One decode in a fresh process. A short clip comes first, so that loading the libraries does not count in the peak.
# Writing 5 to clear_refs resets VmHWM, the peak of resident memory.
MEMORY_PROBE = """
import re, sys, time
from pathlib import Path
import decoding as b

def status(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

name, path, total, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
read = b.DECODERS[name][1]
read(b.clip("h264", 360, 250, 5), [0], 1)
if name == b.AGAIN:
    b.kept_table(path)  # an index has it before the search
Path("/proc/self/clear_refs").write_text("5")
before, start = status("VmRSS"), time.process_time()
frames = read(path, [int((i + 0.5) * total / count) for i in range(count)], 1)
print(time.process_time() - start, status("VmHWM") - before, sum(frame.nbytes for frame in frames) / 2**20)
"""


def long_files(available: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """CPU time and memory for long files, which repeat a short clip of 360p.

    Each decode has its own process. The decoders take turns in so many rounds; the medians count.
    """
    rows, names = [], [name for name in (*OURS, "torchcodec", "decord") if name in available]
    for seconds, count, container in LONG_FILES:
        path, total = clip("h264", 360, 250, seconds, container), seconds * RATE // 250 * 250
        found: dict[str, list[list[float]]] = {name: [] for name in names}
        for name in names * rounds:
            command = [sys.executable, "-c", MEMORY_PROBE, name, str(path), str(total), str(count)]
            done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
            found[name].append([float(number) for number in done.stdout.split()[-3:]])
        about = f"{seconds} s, {container}, {path.stat().st_size / 1e6:,.0f} MB"
        for name, numbers in found.items():
            cpu, grown, frames = (statistics.median(each) for each in zip(*numbers, strict=True))
            costs = {"cpu s": cpu, "peak over before MB": grown, "of which frames MB": frames}
            rows.append({"clip": about, "frames": count, "decoder": name, **costs})
            print(rows[-1], flush=True)
    kept = kept_table(clip("h264", 360, 250, 7200))
    rows.append({"clip": "the frame table of two hours", "KB": len(kept) / 1000})
    return rows


def listing(heights: list[int], lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """CPU time until the frames of a file are known: by its index, where that tells all, and by listing its packets.

    Args:
        heights, lengths: Of the clips, in pixels and in seconds.
        rounds: The two take turns in so many rounds; the medians count.
    """
    rows = []
    for height, seconds, container in product(heights, lengths, CONTAINERS):
        path = clip("h264", height, 250, seconds, container)
        sides = {"index": partial(first_table, path), "listing": partial(listed_table, path)}
        by_index, by_packets = first_table(path), listed_table(path)
        costs = {name: 1000 * found["cpu"] for name, found in alternate(sides, rounds).items()}
        rows.append(
            {
                "clip": f"{height}p, {seconds} s, {container}",
                "MB": path.stat().st_size / 1e6,
                "frames": len(by_index.pts),
                "ms by index where it tells all": costs["index"],
                "ms by listing packets": costs["listing"],
                "ratio": costs["index"] / costs["listing"],
                "equal": by_index == by_packets,
            }
        )
        print(rows[-1], flush=True)
    return rows


def first_table(path: Path) -> FrameTable:
    """The table of a file as `decode` makes it."""
    with open_video(path, DEFAULT_LIMITS, False, 1) as video:
        return next(video.tables())


def listed_table(path: Path) -> FrameTable | None:
    """The table of a file by listing its packets, whatever its index tells."""
    with open_video(path, DEFAULT_LIMITS, False, 1) as video:
        return video.packet_table()


def into_results(title: str, rows: list[dict[str, Any]]) -> None:
    """Put rows into a table of decoding.json, which keeps its rows of other clips.

    They are measured at another time than the other tables, so each names its machine.
    """
    path = RESULTS_FOLDER / "decoding.json"
    result = json.loads(path.read_text())
    found = conditions()
    about = f"{found['cpu']}, {found['cores']} cores, load {found['load']}, av {found['versions']['av']}"
    clips = {row["clip"] for row in rows}
    kept = [row for row in result["tables"].get(title, []) if row["clip"] not in clips]
    result["tables"][title] = [*kept, *({**row, "machine": about} for row in rows)]
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found), markdown(result["tables"][title]), sep="\n\n")


def run_listing(arguments: argparse.Namespace) -> None:
    """Measure the first table of files, and put the rows into the results of the other measurements."""
    into_results(LISTING, listing(arguments.heights, arguments.seconds, arguments.rounds))


def run_long_files(arguments: argparse.Namespace) -> None:
    """Measure long files, and put the rows into the results of the other measurements."""
    into_results(LONG, long_files(usable()[0], arguments.rounds))


def usable() -> tuple[dict[str, Any], dict[str, str]]:
    """The decoders that are installed and work, with their functions, and why the others are missing."""
    os.environ.setdefault("SVT_LOG", "1")
    available = {name: frames_of for name, (module, frames_of) in DECODERS.items() if not module or find_spec(module)}
    missing = dict.fromkeys([name for name in DECODERS if name not in available], "not installed")
    first = clip("h264", 360, 30, 5)
    for name in [name for name in available if DECODERS[name][0]]:
        try:
            available[name](first, [0], 1)
        except RuntimeError as error:  # torchcodec does not find the libraries of FFmpeg
            missing[name] = str(error).split(".")[0]
            del available[name]
    return available, missing


def run(arguments: argparse.Namespace) -> None:
    """Measure all combinations of the options until the time is up, and write the tables."""
    available, missing = usable()
    before = json.loads((RESULTS_FOLDER / "decoding.json").read_text())["tables"] if arguments.update else {}
    by_clock = {clock: {row["clip"]: row for row in before.get(clock, [])} for clock in (CPU, WALL)}
    start = time.monotonic()
    for height, seconds, codec, gop in product(arguments.heights, arguments.seconds, arguments.codecs, arguments.gops):
        if seconds > SHORT and height > 360:
            continue
        path = clip(codec, height, gop, seconds)
        total = probe(path).num_frames
        for count in arguments.frames[:1] if height > 720 else arguments.frames:
            if time.monotonic() - start > 60 * arguments.minutes:
                continue
            wanted = [int((i + 0.5) * total / count) for i in range(count)]
            exact, costs = first_try(available, path, wanted)
            repeat_fast(available, path, wanted, exact, costs, arguments.rounds)
            about = f"{codec} {height}p, key every {gop}, {seconds} s, {count} frames"
            found = medians(exact, costs)
            for clock, title in enumerate((CPU, WALL)):
                by_clock[title][about] = row_of(about, found, clock)
                print(title, by_clock[title][about], flush=True)
    rows = {clock: list(found.values()) for clock, found in by_clock.items()}
    exactness = []
    for name in available:
        wrong = {row["clip"] for found in rows.values() for row in found if isinstance(row[name], str)}
        exactness.append({"decoder": name, "exact": f"{len(rows[CPU]) - len(wrong)} of {len(rows[CPU])}"})
    exactness += [{"decoder": name, "exact": f"not measured: {why}"} for name, why in missing.items()]
    settings = {
        "rounds": arguments.rounds,
        "minutes": arguments.minutes,
        "peak memory MB": peak_memory_mb(),
        "versions": {
            name: importlib.metadata.version(DISTRIBUTIONS.get(name, name)) for name in available if DECODERS[name][0]
        },
    }
    tables = {
        "summary": summary(rows),
        **rows,
        "exactness": exactness,
        LONG: before.get(LONG) or long_files(available, arguments.rounds),
    }
    if LISTING in before:
        tables[LISTING] = before[LISTING]
    write("decoding", settings, tables)


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("decoding", help="our decoder and others")
    command.add_argument("--codecs", nargs="+", choices=ENCODERS, default=list(ENCODERS), help="(default: all)")
    command.add_argument("--heights", type=int, nargs="+", choices=SIZES, default=list(SIZES), help="(default: all)")
    command.add_argument("--gops", type=int, nargs="+", default=[30, 250], help="frames from key frame to key frame")
    command.add_argument("--seconds", type=int, nargs="+", default=[5, 60], help="lengths of the clips")
    command.add_argument("--frames", type=int, nargs="+", default=[8, 16], help="numbers of frames to read")
    command.add_argument("--minutes", type=float, default=60, help="start no clip after this time (default: 60)")
    command.add_argument("--rounds", type=int, default=3, help="of each fast decoder (default: 3)")
    command.add_argument(
        "--update", action="store_true", help="keep earlier results of clips that this run does not measure"
    )
    command.set_defaults(run=run)
    command = commands.add_parser("listing", help="the first table of a file: by its index, and by its packets")
    command.add_argument("--heights", type=int, nargs="+", choices=SIZES, default=[360, 1080], help="(default: both)")
    command.add_argument("--seconds", type=int, nargs="+", default=[10, 600, 7200], help="(default: 10 600 7200)")
    command.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    command.set_defaults(run=run_listing)
    command = commands.add_parser("long-files", help="the decoders, for files of ten minutes and two hours")
    command.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    command.set_defaults(run=run_long_files)
