"""Code that all benchmarks share: conditions of a result, timing in turns, tables, and the folder of results."""

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

RESULTS_FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
NO_BF16 = "not measured: this CPU has no bf16 instructions"
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
REPORTED_PACKAGES = ("torch", "transformers", "av", "datasets", "accelerate")


def conditions(device: str = "cpu") -> dict[str, Any]:
    """Hardware, load and versions: everything besides the code that a number depends on."""
    # only Linux has this file; elsewhere the flags stay unknown
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found: dict[str, Any] = {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "bf16 in hardware": fast_bfloat16(device),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in REPORTED_PACKAGES},
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def alternate(sides: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, dict[str, float]]:
    """Median `wall` and `cpu` seconds of each side.

    The sides take turns in every round, so that a change in the load of the machine affects all of them.
    """
    for run in sides.values():  # warm-up: allocations and compilation do not count
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if device != "cpu":  # kernels run asynchronously
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {"wall": statistics.median(w for w, _ in found), "cpu": statistics.median(c for _, c in found)}
        for name, found in times.items()
    }


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MB (Linux reports KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(name: str, settings: dict[str, Any], tables: dict[str, list[dict[str, Any]]], device: str = "cpu") -> None:
    """Print the tables, and write them with settings and conditions to docs/benchmarks/`name`.json."""
    result = {"conditions": conditions(device), "settings": settings, "tables": tables}
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    path = RESULTS_FOLDER / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["conditions"]))
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    print(f"\nwrote {path}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with a column for each key that any row has."""
    # a dict keeps the order of the first appearance, a set would not
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A cell: three digits of a float, thousands separated."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
