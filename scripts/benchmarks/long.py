"""Measure the indexing of long videos: its speed by part, and its memory over hours. See run.py.

Speed: seconds of video that are indexed in a second, for clips of moving content in H.264 that repeat a shorter one.
All sides take turns: decoding alone, which cuts the file into windows in one pass; encoding these windows alone; both
as `alpro index` does them, with threads that decode ahead, here and with a process that decodes; and a `decode` call
for each window, which seeks.

Memory: `alpro index` runs in a process of its own on files that repeat a film of the sprite world. The peaks of this
process and of its decoder are those that Linux notes (VmHWM).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import torch
from common import RESULTS_FOLDER, alternate, write
from decoding import CLIP_FOLDER, clip, repeat
from models import build

from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.data.windows import Window, WindowSettings, model_windows
from alpro_hf.inference.index_encode import encode_videos
from alpro_hf.inference.index_shards import MANIFEST
from alpro_hf.loading import BUNDLED, load_model
from alpro_hf.model.decoding import decode
from alpro_hf.model.decoding_types import middles_of
from alpro_hf.model.matching_alpro import encode_clips
from alpro_hf.sprites.films import draw_films, pictures_of
from alpro_hf.sprites.render import encode

BATCH = 8  # windows encoded at a time, as in `alpro index`
CODEC, GOP = "h264", 250
FILM_SIZE, FILM_FPS = 64, 12
TURNS = {
    "decode": "decode alone",
    "encode": "encode alone",
    "here": "both",
    "apart": "both, decoder in a process",
    "calls": "a decode call a window, and encode",
}


def add_arguments(commands: Any) -> None:
    """Describe `run.py long`."""
    parser = commands.add_parser("long", help="indexing of long videos: speed by part, memory over hours")
    parser.add_argument("--only", choices=("speed", "memory"), help="measure this and keep the other results")
    parser.add_argument("--heights", type=int, nargs="+", default=[360, 1080], help="of the clips (default: 360 1080)")
    parser.add_argument("--seconds", type=int, default=180, help="of the clips (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument(
        "--base-windows", type=int, default=4, help="windows for the base-size model; 0: none (default: %(default)s)"
    )
    parser.add_argument("--hours", type=float, nargs="+", default=[0.2, 1.0, 10.0], help="(default: 0.2 1 10)")
    parser.add_argument("--model", default=BUNDLED, help="folder, Hub id or 'bundled' (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure what is asked for, and keep the other results of an earlier run."""
    if arguments.seconds < 60 or min(arguments.hours) <= 0 or arguments.rounds < 1:
        raise SystemExit("--seconds must be at least 60, --hours above 0 and --rounds at least 1.")
    if sys.platform != "linux":
        raise SystemExit("The memory of other processes is read from /proc, which only Linux has.")
    path = RESULTS_FOLDER / "long.json"
    kept = json.loads(path.read_text()) if path.exists() else {"settings": {}, "tables": {}}
    tables, settings = kept["tables"], kept["settings"]
    if arguments.only != "memory":
        tables["speed"], tables["base size"] = speed(arguments), base_size(arguments)
        settings |= {"seconds of the clips": arguments.seconds, "key frame every": GOP, "rounds": arguments.rounds}
    if arguments.only != "speed":
        tables["memory"], tables["memory on the way"] = [], []
        for hours in arguments.hours:
            row, way = memory(hours, arguments.model)
            tables["memory"].append(row)
            tables["memory on the way"] += way
            print(row, file=sys.stderr, flush=True)
        settings |= {"films of": f"{FILM_SIZE} px, {FILM_FPS} fps", "model": arguments.model}
    write("long", settings, {name: rows for name, rows in tables.items() if rows})


# --------------------------------------------------------------------------------------------------------------- speed


def speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each height: seconds of video in a second of clock, and ratios to a call a window."""
    model, processor = load_model("retrieval", arguments.model, device="cpu")
    rows = []
    for height in arguments.heights:
        path = clip(CODEC, height, GOP, arguments.seconds)
        with IsolatedDecoder() as decoder:
            decoder.probe(path)  # its process has started
            sides, windows, duration = sides_of(path, model, processor, decoder)
            times = alternate(sides, arguments.rounds)
        calls = times["calls"]
        for name, title in TURNS.items():
            rows.append(
                {
                    "clip": f"{height}p, {duration:.0f} s",
                    "windows": len(windows),
                    "side": title,
                    "s of video a s (wall)": duration / times[name]["wall"],
                    # the process that decodes is not in the CPU time of this one
                    "s of video a s (cpu)": "" if name == "apart" else duration / times[name]["cpu"],
                    "x a call a window (wall)": calls["wall"] / times[name]["wall"],
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def sides_of(
    path: Path, model: Any, processor: Any, decoder: IsolatedDecoder
) -> tuple[dict[str, Callable[[], object]], list[tuple[Window, torch.Tensor]], float]:
    """What takes turns, by the keys of `TURNS`; the windows of the file with their pixels; its seconds."""
    settings = WindowSettings()
    windows = list(model_windows(path, processor, settings))
    clips = [pixels for _, pixels in windows]
    video = processor.video_processor
    height, width = video.decoded_size()

    def encode_all(some: Iterable[torch.Tensor]) -> int:
        waiting, count = iter(some), 0
        with torch.inference_mode():
            while batch := list(islice(waiting, BATCH)):
                count += len(encode_clips(model, batch))
        return count

    def one_by_one() -> Iterator[torch.Tensor]:
        for window, _ in windows:
            middles = middles_of(window.start, window.end, len(window.pixels))
            frames = decode(path, lambda info, middles=middles: info.frames_at(middles), height=height, width=width)
            yield video([frames.pixels], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]

    def indexed(apart: IsolatedDecoder | None) -> int:
        batches = encode_videos(model, processor, [path], BATCH, apart, windows=settings)
        return sum(video.embed is not None for batch in batches for video in batch)

    for name, count in (("here", indexed(None)), ("calls", encode_all(one_by_one()))):
        if count != len(windows):
            raise RuntimeError(f"{name}: {count} windows of {path}, not {len(windows)}")
    sides: dict[str, Callable[[], object]] = {
        "decode": lambda: sum(1 for _ in model_windows(path, processor, settings)),
        "encode": lambda: encode_all(clips),
        "here": lambda: indexed(None),
        "apart": lambda: indexed(decoder),
        "calls": lambda: encode_all(one_by_one()),
    }
    with av.open(str(path)) as container:
        duration = float(container.duration or 0) / av.time_base
    return sides, windows, duration


def base_size(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Encoding with the model of the paper, whose weights are random: time does not depend on them."""
    if not arguments.base_windows:
        return []
    model, settings = build("base"), WindowSettings()
    duration, windows = 600.0, windows_of_still(600.0, settings)
    rows = []
    for frames, side in ((8, 224), (4, 224)):
        clips = torch.randn(arguments.base_windows, frames, 3, side, side)
        with torch.inference_mode():
            times = alternate({"encode": lambda clips=clips: encode_clips(model, clips)}, 1)["encode"]
        each = {name: value / arguments.base_windows for name, value in times.items()}
        rows.append(
            {
                "model": f"base, {frames} frames of {side} px",
                "s a window (wall)": each["wall"],
                "s a window (cpu)": each["cpu"],
                "windows in 10 minutes without cuts": windows,
                "encode, s of video a s (wall)": duration / windows / each["wall"],
            }
        )
    return rows


def windows_of_still(duration: float, settings: WindowSettings) -> int:
    """How many windows a film without cuts has: all but the first of a length begin a stride after the one before."""
    return sum(1 + int(-(-(duration - length) // settings.stride_of(length))) for length in settings.lengths)


# -------------------------------------------------------------------------------------------------------------- memory


def film(hours: float) -> Path:
    """A film of so many hours, which repeats one of minutes without encoding it again. It stays for the next run."""
    base = CLIP_FOLDER / f"film-{FILM_SIZE}-{FILM_FPS}.mp4"
    [drawn] = draw_films("validation", 1, fps=FILM_FPS)
    frames = sum(scene.num_frames for scene in drawn.scenes)
    if not base.exists():
        CLIP_FOLDER.mkdir(parents=True, exist_ok=True)
        partial = base.with_name(f".{base.name}")
        encode(partial, pictures_of(drawn, FILM_SIZE), FILM_SIZE, FILM_FPS)
        partial.rename(base)
    times = max(1, round(3600 * hours * FILM_FPS / frames))
    return repeat(CLIP_FOLDER / f"film-{FILM_SIZE}-{FILM_FPS}-{hours:g}h.mp4", base, times)


def memory(hours: float, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Index a film by the command. Its row, and the memory of both processes on the way."""
    path = film(hours)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        command = [sys.executable, "-m", "alpro_hf", "index", str(path), "--output", str(index), "--model", model]
        command += ["--max-duration", f"{hours + 1:g}", "--json"]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            found = watched(process)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read()[-2000:]}")
        told = json.loads(found["output"])
        sizes = {file.name: file.stat().st_size for file in index.iterdir() if file.is_file()}
    frames, size = packets_of(path), path.stat().st_size
    row = {
        "hours": hours,
        "frames": frames,
        "file MB": size / 1e6,
        "windows": told["windows"],
        "minutes": found["seconds"] / 60,
        "index: peak MB": found["peaks"]["index"],
        "decoder: peak MB": found["peaks"].get("decoder", 0.0),
        "decoder: read MB": found["read"] / 1e6,
        f"{MANIFEST}, KB an hour": sizes[MANIFEST] / 1000 / hours,
        "shards, MB an hour": sum(sizes.values()) / 1e6 / hours,
    }
    return row, [{"hours": hours, **sample} for sample in thinned(found["samples"], 40)]


def watched(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Look at a command and its decoder until it ends."""
    began, peaks, samples, read = time.monotonic(), {"index": 0.0}, [], 0
    while process.poll() is None:
        sample: dict[str, float] = {"minute": (time.monotonic() - began) / 60}
        for pid in (process.pid, *children_of(process.pid)):
            try:
                facts = Path(f"/proc/{pid}/status").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_text()
                bytes_read = int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[1])  # type: ignore[index]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            name = "index" if pid == process.pid else "decoder" if "decode_server" in command else ""
            peak, now = (re.search(rf"{field}:\s+(\d+)", facts) for field in ("VmHWM", "VmRSS"))
            if not name or peak is None or now is None:
                continue
            peaks[name] = max(peaks.get(name, 0.0), int(peak[1]) / 1024)
            sample[f"{name} MB"] = int(now[1]) / 1024
            if name == "decoder":
                read = max(read, bytes_read)
        samples.append(sample)
        time.sleep(0.25)
    assert process.stdout is not None
    return {
        "seconds": time.monotonic() - began,
        "peaks": peaks,
        "samples": samples,
        "read": read,
        "output": process.stdout.read(),
    }


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def thinned(samples: Sequence[dict[str, float]], count: int) -> list[dict[str, float]]:
    """About so many of the samples, at equal distances."""
    return [
        {name: round(value, 2) for name, value in one.items()} for one in samples[:: max(1, len(samples) // count)]
    ]


def packets_of(path: Path) -> int:
    """The number of frames of a file, as its header says."""
    with av.open(str(path)) as container:
        return container.streams.video[0].frames
