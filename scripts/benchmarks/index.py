"""The index from a thousand to a million videos; see benchmark.py.

The videos are made up: unit vectors of 256 numbers, and one small token each in place of the 197 x 768 numbers of a
real clip (605 KB, or 605 GB a million). So building is without encoding, and searching without re-ranking, whose cost
does not depend on the size of the index. Every size runs in a process of its own.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import write
from transformers import BertTokenizer

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval, AlproProcessor, AlproVideoProcessor
from alpro_hf.inference.index_shards import IndexFolder, Manifest, VideoEntry
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.decoding_table import FrameTable

WIDTH, QUERIES = 256, 100


def small_model() -> tuple[AlproForVideoTextRetrieval, AlproProcessor]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AlproForVideoTextRetrieval(
        AlproConfig(
            text_config={**sizes, "fusion_layer": 1, "vocab_size": 50},
            video_config={**sizes, "image_size": 32},
            projection_dim=WIDTH,
        )
    )
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"])}
    return model, AlproProcessor(AlproVideoProcessor(), BertTokenizer(vocab=vocabulary, model_max_length=20))


def status_mb(field: str) -> float:
    """A line of /proc/self/status: RssAnon is memory of our own, RssFile what the memory map has read so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def latency(search: Any, queries: torch.Tensor) -> dict[str, float]:
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query[None], 10)
        times.append(1000 * (time.perf_counter() - started))
    return {"p50 ms": statistics.median(times), "p99 ms": statistics.quantiles(times, n=100)[-1]}


def make(folder: Path, videos: int, shard_size: int) -> None:
    """An index of made-up videos, in the files of a real one."""
    model, processor = small_model()
    empty = VideoIndex(model, processor)
    target = IndexFolder(folder)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, WIDTH, generator=generator)  # real clips come in kinds
    frames = np.arange(900) * 512  # half a minute
    kept = FrameTable.of_packets(frames, frames % 128_000 == 0, True, (1 << 20, "h264", Fraction(1, 15360)))
    assert kept is not None
    table = kept.to_bytes()
    shards = []
    for number, start in enumerate(range(0, videos, shard_size)):
        count = min(shard_size, videos - start)
        kinds = centres[torch.randint(0, len(centres), (count,), generator=generator)]
        vectors = kinds + 0.7 * torch.randn(count, WIDTH, generator=generator)
        entries = [VideoEntry(f"{i // 1000:04d}/{i:07d}.mp4", 1 << 20, i) for i in range(start, start + count)]
        features = torch.nn.functional.normalize(vectors, dim=1)
        shards.append(target.write_shard(number, features, torch.zeros(count, 1, 1), entries, [table] * count))
        target.write_manifest(Manifest(empty._model, empty._video, folder.parent, number + 1, shards))


def measure(folder: Path, videos: int, shard_size: int) -> list[dict[str, Any]]:
    """One size: exact search, and approximate search where FAISS is installed."""
    started = time.perf_counter()
    make(folder, videos, shard_size)
    built = time.perf_counter() - started
    disk = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    model, processor = small_model()
    before = status_mb("RssAnon")
    started = time.perf_counter()
    index = VideoIndex.load(folder, model, processor)
    loaded = time.perf_counter() - started
    every = torch.cat([block[:: max(1, videos // QUERIES)] for block in index.features()])[:QUERIES]
    noise = 0.5 * torch.randn(every.shape, generator=torch.Generator().manual_seed(1)) / WIDTH**0.5
    queries = torch.nn.functional.normalize(every + noise, dim=1)
    exact = index.nearest(queries, 10)
    row: dict[str, Any] = {"videos": videos, "search": "exact", "write s": built, "load s": loaded, "disk MB": disk}
    row |= latency(index.nearest, queries)
    row |= {"own memory MB": status_mb("RssAnon") - before, "mapped MB": status_mb("RssFile"), "recall@10": 1.0}
    rows = [row]
    try:
        import faiss  # noqa: F401
    except ImportError:
        return [*rows, {"videos": videos, "search": "FAISS: not installed"}]
    from alpro_hf.inference.index_faiss import FILE, AnnSearch, build_ann

    started = time.perf_counter()
    build_ann(index)
    built = time.perf_counter() - started
    started = time.perf_counter()
    nearest = AnnSearch(index).nearest
    row = {"videos": videos, "search": "FAISS IVF", "write s": built, "load s": time.perf_counter() - started}
    row |= {"disk MB": (folder / FILE).stat().st_size / 1e6} | latency(nearest, queries)
    found = nearest(queries, 10)
    hits = [len(set(one.tolist()) & set(two.tolist())) for one, two in zip(found, exact, strict=True)]
    # its memory is its file, whole; what building has freed hides that from a measurement here
    row |= {"recall@10": sum(hits) / 10 / len(hits)}
    return [*rows, row]


def run(arguments: argparse.Namespace) -> None:
    if arguments.one:
        print(json.dumps(measure(arguments.folder, arguments.one, arguments.shard_size)))
        return
    rows = []
    for videos in arguments.videos:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder)) / "index"
        command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "index", "--one", str(videos)]
        command += ["--folder", str(folder), "--shard-size", str(arguments.shard_size)]
        command += ["--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        shutil.rmtree(folder.parent)
        print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the process with the most
        settings = {"shard_size": arguments.shard_size, "width": WIDTH, "highest peak MB": peak}
        write("index", settings, {"index": rows})  # after each size, for the next takes ten times as long


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("index", help="10^3 to 10^6 videos")
    command.add_argument("--videos", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    command.add_argument("--shard-size", type=int, default=16_384)
    command.add_argument("--folder", type=Path, help="where to write (default: the system's folder of such files)")
    command.add_argument("--one", type=int, help=argparse.SUPPRESS)
    command.set_defaults(run=run)
