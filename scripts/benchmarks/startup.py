"""Measure how long starting takes: the import, help, a search of a small index; and queries of a running search.

Every start is a fresh process, and the sides take turns, so that the load of other programs affects all of them. The
base is what everything with a model has to pay: importing torch, `AutoModel` and `PreTrainedModel`, and for a search
loading the bundled model. `cpu` counts a process and those that it starts.

The searches that read queries from lines run side by side and answer one query each in turn. Each query is another
caption, and most find videos that no query before has found.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import psutil
from common import write

from alpro_hf.sprites.language import captions
from alpro_hf.sprites.world import draw_scene

LIBRARY = "import torch; from transformers import AutoModel, PreTrainedModel"
MODEL = (
    "import alpro_hf; from alpro_hf.assets import bundled_model; "
    "alpro_hf.AlproForVideoTextRetrieval.from_pretrained(bundled_model('retrieval'))"
)
MAKE = """
import sys
from pathlib import Path
from alpro_hf.cli.main import main
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene
folder = Path(sys.argv[1])
(folder / "clips").mkdir(parents=True)
for number in range(int(sys.argv[2])):
    write_clip(folder / "clips" / f"{number:04d}.mp4", draw_scene("validation", 0, number), size=64)
raise SystemExit(main(["index", str(folder / "clips"), "--output", str(folder / "index")]))
"""
PYTHON = sys.executable
ALPRO = [PYTHON, "-c", "from alpro_hf_launch import main; raise SystemExit(main())"]
RERANKED = (0, 16)


def seconds(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a process, together with the processes that it starts."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.perf_counter() - started


def starts(index: Path, query: str, rounds: int) -> list[dict[str, Any]]:
    """Medians of fresh processes, each side against its base."""
    sides: dict[str, tuple[list[str], str | None]] = {
        "torch and transformers": ([PYTHON, "-c", LIBRARY], None),
        "import alpro_hf": ([PYTHON, "-c", "import alpro_hf"], "torch and transformers"),
        "torch, transformers and the model": ([PYTHON, "-c", f"{LIBRARY}; {MODEL}"], None),
        "alpro search": ([*ALPRO, "search", str(index), query], "torch, transformers and the model"),
        "alpro --help": ([*ALPRO, "--help"], "torch and transformers"),
    }
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, (command, _) in sides.items():
            used = seconds(command)
            if number:  # the first round reads files into the memory of the system
                found[side].append(used)
    middle = {side: tuple(map(statistics.median, zip(*times, strict=True))) for side, times in found.items()}
    rows: list[dict[str, Any]] = []
    for side, (_, base) in sides.items():
        row: dict[str, Any] = {"start": side, "cpu s": middle[side][0], "wall s": middle[side][1]}
        if base:
            row |= {"base": base}
            row |= {f"ratio {name}": middle[side][i] / middle[base][i] for i, name in enumerate(("cpu", "wall"))}
        rows.append(row)
    return rows


class Loop:
    """A running `alpro search` that answers the queries of its standard input."""

    def __init__(self, index: Path, rerank: int) -> None:
        command = [*ALPRO, "search", str(index), "--rerank", str(rerank), "--json"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, query: str) -> float:
        """Seconds until the answer."""
        to: IO[str] = self.process.stdin  # type: ignore[assignment]
        answers: IO[str] = self.process.stdout  # type: ignore[assignment]
        started = time.perf_counter()
        print(query, file=to, flush=True)
        answer = json.loads(answers.readline())
        assert answer["query"] == query and answer["results"]
        return time.perf_counter() - started

    def cpu(self) -> float:
        """CPU seconds so far, of the process that searches and of the one that opens the videos."""
        own = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def close(self) -> None:
        self.process.communicate()


def queries(indexes: dict[int, Path], texts: list[str]) -> list[dict[str, Any]]:
    """Milliseconds of each further query, in indexes of several sizes, with and without re-ranking."""
    loops = {(videos, rerank): Loop(index, rerank) for videos, index in indexes.items() for rerank in RERANKED}
    try:
        for loop in loops.values():  # the first answer includes the start
            loop.ask(texts[0])
        before = {case: loop.cpu() for case, loop in loops.items()}
        each = [{case: loop.ask(text) for case, loop in loops.items()} for text in texts[1:]]
        after = {case: loop.cpu() for case, loop in loops.items()}
    finally:
        for loop in loops.values():
            loop.close()
    rows = []
    for case in loops:
        wall = [1000 * times[case] for times in each]
        row: dict[str, Any] = {"videos": case[0], "re-ranked": case[1]}
        row |= {"cpu ms": 1000 * (after[case] - before[case]) / len(each), "wall ms": statistics.median(wall)}
        rows.append(row | {"wall ms, 90 %": statistics.quantiles(wall, n=10)[-1]})
    return rows


def slow_imports(command: list[str]) -> list[str]:
    """The modules that take longest to import in a command, with their own milliseconds."""
    ran = subprocess.run([PYTHON, "-X", "importtime", *command[1:]], capture_output=True, text=True, check=True)
    lines = [line.removeprefix("import time:").split("|") for line in ran.stderr.splitlines() if "|" in line]
    times = [(int(own), module.strip()) for own, _, module in lines if own.strip().isdigit()]
    return [f"{own / 1000:8.1f} ms  {module}" for own, module in sorted(times, reverse=True)[:20]]


def run(arguments: argparse.Namespace) -> None:
    """Measure starts and queries; what is done is written after each table."""
    texts = [
        captions(draw_scene("validation", 0, number), random.Random(number))[0]
        for number in range(arguments.queries + 1)
    ]
    settings = {"rounds": arguments.rounds, "queries": arguments.queries, "videos": arguments.videos}
    with tempfile.TemporaryDirectory() as folder:
        indexes = {}
        for videos in arguments.videos:
            made = Path(folder) / str(videos)
            subprocess.run([PYTHON, "-c", MAKE, str(made), str(videos)], check=True, stdout=subprocess.DEVNULL)
            indexes[videos] = made / "index"
        smallest = indexes[min(indexes)]
        if arguments.importtime:
            print(*slow_imports([*ALPRO, "search", str(smallest), texts[0]]), sep="\n")
        tables = {"queries of a running search": queries(indexes, texts)}
        write(arguments.output, settings, tables)
        tables = {"starts": starts(smallest, texts[0], arguments.rounds)} | tables
        write(arguments.output, settings, tables)


def add_arguments(commands: Any) -> None:
    command = commands.add_parser("startup", help="the import, help, a search, and queries of a running search")
    command.add_argument("--rounds", type=int, default=5, help="fresh processes of each side (default: %(default)s)")
    command.add_argument("--queries", type=int, default=40, help="of each running search (default: %(default)s)")
    command.add_argument("--videos", type=int, nargs="+", default=[40, 1000], help="of the indexes (default: 40 1000)")
    command.add_argument("--importtime", action="store_true", help="list what is slowest to import in a search, too")
    command.add_argument("--output", default="startup", help="name of the result in docs/benchmarks")
    command.set_defaults(run=run)
