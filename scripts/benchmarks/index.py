"""Measure the index with a thousand to a million videos. See run.py.

The videos are synthetic: unit vectors of 256 numbers, with one small token each. The tokens of a real clip have 197 x
768 numbers, 605 KB, which is 605 GB per million clips. Building leaves out encoding, and searching leaves out
re-ranking, whose cost does not depend on the size of the index. Every size runs in its own process.
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
from common import write
from transformers import BertTokenizer

from alpro_hf import AlproConfig, AlproForVideoTextRetrieval, AlproProcessor, AlproVideoProcessor
from alpro_hf.inference.index_shards import IndexFolder, Manifest, VideoEntry
from alpro_hf.inference.video_index import VideoIndex
from alpro_hf.model.decoding_table import FrameTable

WIDTH, QUERIES = 256, 100


def small_model() -> tuple[AlproForVideoTextRetrieval, AlproProcessor]:
    """A tiny model: an index belongs to a model, but nothing here runs it."""
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
    """A field of /proc/self/status in MB: RssAnon is allocated memory, RssFile the pages of mapped files in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def latency(search: Any, queries: torch.Tensor) -> dict[str, float]:
    """Milliseconds of a search for the best 10, one query at a time."""
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query[None], 10)
        times.append(1000 * (time.perf_counter() - started))
    return {"p50 ms": statistics.median(times), "p99 ms": statistics.quantiles(times, n=100)[-1]}


def make(folder: Path, videos: int, shard_size: int) -> None:
    """Write an index of synthetic videos, with the same files as a real one."""
    model, processor = small_model()
    empty = VideoIndex(model, processor)
    target = IndexFolder(folder)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, WIDTH, generator=generator)  # real clips form clusters
    frames = np.arange(900) * 512  # timestamps of half a minute of video
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
    """The rows of one size: exact search, and approximate search if FAISS is installed."""
    started = time.perf_counter()
    make(folder, videos, shard_size)
    built = time.perf_counter() - started
    disk = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    model, processor = small_model()
    before = status_mb("RssAnon")
    started = time.perf_counter()
    index = VideoIndex.load(folder, model, processor)
    loaded = time.perf_counter() - started
    # a query is a vector of the index with noise, as a caption is close to its clip
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
    # no memory in this row: AnnSearch reads its whole file, and memory freed by the build would hide that
    row |= {"recall@10": sum(hits) / 10 / len(hits)}
    return [*rows, row]


def run(arguments: argparse.Namespace) -> None:
    """Measure each size in a process of its own: peaks and caches of one would distort the next."""
    if arguments.one:
        print(json.dumps(measure(arguments.folder, arguments.one, arguments.shard_size)))
        return
    rows = []
    for videos in arguments.videos:
        folder = Path(tempfile.mkdtemp(dir=arguments.folder)) / "index"
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "index", "--one", str(videos)]
        command += ["--folder", str(folder), "--shard-size", str(arguments.shard_size)]
        command += ["--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        shutil.rmtree(folder.parent)
        print(*rows[-2:], sep="\n", file=sys.stderr, flush=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest of all sizes so far
        settings = {"shard_size": arguments.shard_size, "width": WIDTH, "highest peak MB": peak}
        write("index", settings, {"index": rows})  # after each size, because the next takes ten times as long


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("index", help="the index with 10^3 to 10^6 videos")
    command.add_argument(
        "--videos", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="sizes to measure"
    )
    command.add_argument("--shard-size", type=int, default=16_384, help="videos per shard (default: %(default)s)")
    command.add_argument(
        "--folder", type=Path, help="folder to write to (default: the temporary folder of the system)"
    )
    command.add_argument("--one", type=int, help=argparse.SUPPRESS)
    command.set_defaults(run=run)
