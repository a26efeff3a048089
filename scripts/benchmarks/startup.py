"""Measure how long starting takes: the import, help, a search of a small index, and queries of a running search.

    python scripts/benchmarks/startup.py [--repeat 5] [--videos 40] [--importtime]

Every side runs in fresh processes, in turns, so that the load of other programs affects all of them. `cpu` counts the
process and those that it starts; the best repetition counts. The base is what everything with a model has to pay:
importing torch, `AutoModel` and `PreTrainedModel`, and for a search loading the bundled model.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
for number in range(int(sys.argv[2])):
    write_clip(folder / "clips" / f"{number:04d}.mp4", draw_scene("validation", 0, number), size=64)
raise SystemExit(main(["index", str(folder / "clips"), "--output", str(folder / "index")]))
"""
QUERIES = 40
QUERY = "a dog moves to the left"


def seconds(command: list[str], said: str | None = None) -> tuple[float, float]:
    """CPU and wall seconds of a process, together with the processes that it starts."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, input=said, capture_output=True, text=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="fresh processes of each side (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=40, help="videos of the index (default: %(default)s)")
    parser.add_argument("--importtime", action="store_true", help="list what is slowest to import in a search, too")
    arguments = parser.parse_args()
    python = [sys.executable]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        subprocess.run([*python, "-c", MAKE, name, str(arguments.videos)], check=True, stdout=subprocess.DEVNULL)
        search = ["-c", "from alpro_hf_launch import main; raise SystemExit(main())", "search", str(folder / "index")]
        lines = "\n".join([QUERY] * (QUERIES + 1))
        sides: dict[str, tuple[list[str], str | None]] = {
            "torch and transformers": ([*python, "-c", LIBRARY], None),
            "import alpro_hf": ([*python, "-c", "import alpro_hf"], None),
            "torch, transformers and the model": ([*python, "-c", f"{LIBRARY}; {MODEL}"], None),
            "alpro search": ([*python, *search, QUERY], None),
            "alpro search, one line": ([*python, *search], QUERY),
            f"alpro search, {QUERIES + 1} lines": ([*python, *search], lines),
            "alpro --help": ([*python, "-c", search[1], "--help"], None),
            "python -m alpro_hf --help": ([*python, "-m", "alpro_hf", "--help"], None),
        }
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(arguments.repeat):
            for side, (command, said) in sides.items():
                found[side].append(seconds(command, said))
        if arguments.importtime:
            report = subprocess.run(
                [*python, "-X", "importtime", *search, QUERY], capture_output=True, text=True, check=True
            ).stderr
            lines_of = [line.removeprefix("import time:").split("|") for line in report.splitlines() if "|" in line]
            times = [(int(own), module.strip()) for own, _, module in lines_of if own.strip().isdigit()]
            print(*(f"{own / 1000:8.1f} ms  {module}" for own, module in sorted(times, reverse=True)[:20]), sep="\n")
    best = {side: tuple(map(min, zip(*times, strict=True))) for side, times in found.items()}
    print(f"load {os.getloadavg()[0]:.1f}, best of {arguments.repeat}, Python {sys.version.split()[0]}")
    for side, (used, wall) in best.items():
        print(f"{side:36} {used:7.2f} s cpu  {wall:7.2f} s wall")
    for side, base in (
        ("import alpro_hf", "torch and transformers"),
        ("alpro search", "torch, transformers and the model"),
    ):
        cpu, wall = (one / other for one, other in zip(best[side], best[base], strict=True))
        print(f"{side} / {base}: {cpu:.2f} cpu, {wall:.2f} wall")
    one, many = best["alpro search, one line"], best[f"alpro search, {QUERIES + 1} lines"]
    cpu, wall = (1000 * (b - a) / QUERIES for a, b in zip(one, many, strict=True))
    print(f"a further query: {cpu:.0f} ms cpu, {wall:.0f} ms wall")


if __name__ == "__main__":
    main()
