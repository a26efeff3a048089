"""docs/performance.md and its plots, from the results in docs/benchmarks; see benchmark.py."""

import argparse
import json
from typing import Any

from benchmark import RESULTS, markdown

PAGE = RESULTS.parent / "performance.md"
HEAD = """\
# Performance

Made by `python scripts/benchmark.py report` from the results in `docs/benchmarks`, which the other commands of
that script write; no number here is typed by hand. `cpu` seconds are what the process computed, summed over its
threads: on a machine that others use at the same time, they and their ratios say more than the clock (`wall`). How
much is computed is also counted, and held by `tests/test_flops.py`.
"""
SECTIONS = {
    "inference": (
        "Evaluation",
        """The plain way is the algorithm of the original code: eager attention in float32, texts padded to 40 tokens,
each clip encoded again for every 64 texts and each text again for every clip, all tokens through the last layer.
Whole evaluations are calculated from the measured parts, not run. Rates are of `cpu` seconds, and the GEMM peak is one
matrix product timed the same way just before: a share above 100 % says how noisy the machine was. Random weights;
captions of 6 to 22 tokens, 12 on average. Batches that fit the CPU's cache save time but no operations; to lay out
weights anew for the machine costs time.""",
    ),
    "accuracy": (
        "What the savings that are not exact cost",
        "The bundled model on rendered clips of the sprite world, float32 unless said otherwise; text to video.",
    ),
    "index": (
        "The index",
        """Unit vectors of 256 numbers in shards of made-up videos, one query at a time, best 10. Tokens are left out:
those of a base-size clip are 605 KB in float32, half of that in bfloat16, which is what fills the disk, and a search
reads only those of the videos that it re-ranks. `own memory` is what the process allocates; `mapped` are pages of the
shards and libraries, which the system may drop when it needs them.""",
    ),
    "training": (
        "A training step of the bundled model",
        """Retrieval (VTC and VTM), forward and backward, without the optimizer. The plain way is eager attention,
texts padded to 40 tokens, and one pass through the fusion layers for each kind of pair.""",
    ),
    "training-base": ("A training step of base size", "The same with the model of the paper, four clips of 8 frames."),
    "decoding": (
        "Decoding",
        """Frames at uniform places, no resize; milliseconds to open the file and get all of them: what is computed
with one thread each (as in data loading workers, side by side), and the clock with all cores each (as for one clip
that somebody waits for). torchcodec is in its exact mode, OpenCV is told the place, and what the library loads with
has no choice of threads. `ours, a second time` has the frame table that an index keeps. `next best` is the fastest
of the others that gave the right frames, by which ours is divided: below 1, ours is faster. Two textures move
against each other under grain, and each frame shows its number, by which a wrong one is noticed. Clips of 60 s and
longer are shorter ones over and over. Decoders that needed more than 1.6 times the fastest at a first try were not
measured again, and theirs is that try. The memory of long files is how much the peak of a process that had decoded
a short clip before lies over what it held then. What a first decode of a long file costs beside its frames is the
listing of its packets, which PyAV hands over one by one; a second decode is spared it.""",
    ),
}
ONE_MACHINE = """\
### Where one machine ends

An exact search reads all vectors: the table shows it grow with the gallery, and the memory of the process does not.
FAISS (`alpro search --ann`, extra `faiss`) reads a part of them. The end of one machine is its disk: at 605 KB a clip
(base size, float32) ten million clips are six terabytes of tokens, against ten gigabytes of vectors. Then the vectors
belong into a vector database and the shards on the machines that re-rank. `scripts/index_to_qdrant.py` fills Qdrant
from the shards; the same client speaks to a folder, to a server and to a cluster.
"""


def section(name: str) -> str:
    title, text = SECTIONS.get(name, (name, ""))
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"## {title}\n\nNot measured yet: `python scripts/benchmark.py {name}`.\n"
    result = json.loads(path.read_text())
    about = result["conditions"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    where = about.get("gpu", f"{about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])})")
    lines = [f"## {title}", "", text, ""]
    threads = f"{about['threads']} threads, load {about['load']} by all programs"
    lines += [f"{where}; {threads}; Python {about['python']}, {versions}."]
    if not about["bf16 in hardware"]:
        lines += ["bf16 was not measured: this machine has no instructions for it."]
    settings = {key: value for key, value in result["settings"].items() if key not in ("what", "output")}
    lines += ["", "Settings: `" + json.dumps(settings, default=str) + "`", ""]
    for title, rows in result["tables"].items():
        if len(result["tables"]) > 1:
            lines += [f"### {title.capitalize()}", ""]
        lines += [markdown(rows), ""]
    if name in PLOTS:
        lines += [f"![{name}](benchmarks/{name}.png)", ""]
    if name == "index":
        lines += [ONE_MACHINE]
    return "\n".join(lines)


def plot_index(tables: dict[str, list[dict[str, Any]]], path: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axis, column in zip(figure.subplots(1, 3), ("p50 ms", "load s", "own memory MB"), strict=True):
        for kind in ("exact", "FAISS IVF"):
            rows = [row for row in tables["index"] if row["search"] == kind and column in row]
            axis.plot([row["videos"] for row in rows], [row[column] for row in rows], "o-", label=kind)
        axis.set(xscale="log", yscale="log", xlabel="videos", title=column)
        axis.legend()
    figure.savefig(path, dpi=100)


def plot_evaluation(tables: dict[str, list[dict[str, Any]]], path: Any) -> None:
    from matplotlib.figure import Figure

    rows = [row for row in tables["evaluation"] if "cpu h" in row]
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1), layout="constrained")
    axis = figure.subplots()
    axis.barh([row["evaluation"] for row in rows][::-1], [row["cpu h"] for row in rows][::-1])
    axis.set(xscale="log", xlabel="hours of one thread")
    figure.savefig(path, dpi=100)


def plot_decoding(tables: dict[str, list[dict[str, Any]]], path: Any) -> None:
    from matplotlib.figure import Figure

    rows = tables["cpu ms, one thread each"][::-1]
    names = [row["decoder"] for row in tables["exactness"] if row["decoder"] in rows[0]]
    figure = Figure(figsize=(9, 0.2 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    for name in names:
        right = [(i, row) for i, row in enumerate(rows) if not isinstance(row[name], str)]
        marks = "D" if name == "ours" else "o"
        axis.plot([row[name] / row["ours"] for _, row in right], [i for i, _ in right], marks, label=name, ms=4)
    axis.set_yticks(range(len(rows)), [row["clip"] for row in rows], fontsize=7)
    axis.set(
        xscale="log", xlabel="cpu time over ours, one thread each, where the frames are right", ylim=(-1, len(rows))
    )
    axis.grid(axis="x", which="both", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=100)


PLOTS = {"index": plot_index, "inference": plot_evaluation, "decoding": plot_decoding}


def page() -> str:
    """What docs/performance.md has to be."""
    more = sorted(path.stem for path in RESULTS.glob("*.json") if path.stem not in SECTIONS)
    pages = [section(name) for name in [*SECTIONS, *more]]
    if not any(name.startswith("gpu") for name in more):
        pages.append("## On a GPU\n\nNot measured: `python scripts/benchmark.py gpu` on a machine that has one.\n")
    return "\n".join([HEAD, *pages]).rstrip() + "\n"


def report(arguments: argparse.Namespace) -> None:
    PAGE.write_text(page())
    for name, plot in PLOTS.items():
        if (RESULTS / f"{name}.json").exists():
            plot(json.loads((RESULTS / f"{name}.json").read_text())["tables"], RESULTS / f"{name}.png")
    print(f"written to {PAGE}")


def add_arguments(commands: Any) -> None:
    commands.add_parser("report", help="docs/performance.md from the results").set_defaults(run=report)
