"""What is fast and what is not: every number of docs/performance.md.

    python scripts/benchmark.py inference                evaluation and its parts, base size
    python scripts/benchmark.py accuracy --data DIR      what the savings that are not exact cost, on the sprite world
    python scripts/benchmark.py index                    10^3 to 10^6 videos
    python scripts/benchmark.py training                 a step, and the share of it that waits for data
    python scripts/benchmark.py decoding                 against PyAV, decord, OpenCV, torchcodec, where installed
    python scripts/benchmark.py gpu                      inference and training on a GPU
    python scripts/benchmark.py report                   docs/performance.md and plots, from the results

Both sides of a comparison run alternately in one process, after one run of each that does not count; a time is the
median of the rounds. `wall` is what a clock shows, `cpu` what the process computed, summed over its threads: where
other programs share the machine, ratios of `cpu` say more. Results are JSON files in docs/benchmarks.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alpro_hf.loading import fast_bfloat16

RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks"
NOT_HERE = "not measured: this CPU has no bf16 instructions"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "transformers", "av", "datasets", "accelerate")


def conditions(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found: dict[str, Any] = {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "bf16 in hardware": fast_bfloat16(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def alternate(sides: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Median seconds, `wall` and `cpu`, of each side, taken in turn."""
    for run in sides.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"wall": statistics.median(w for w, _ in found), "cpu": statistics.median(c for _, c in found)}
        for name, found in times.items()
    }


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(name: str, settings: dict[str, Any], tables: dict[str, list[dict[str, Any]]], device: str = "cpu") -> None:
    """Print the tables and keep them."""
    result = {"conditions": conditions(device), "settings": settings, "tables": tables}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["conditions"]))
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    print(f"\nwritten to {path}")


def markdown(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    import benchmark_decoding
    import benchmark_index
    import benchmark_models
    import benchmark_report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for add in (
        benchmark_models.add_arguments,
        benchmark_index.add_arguments,
        benchmark_decoding.add_arguments,
        benchmark_report.add_arguments,
    ):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
