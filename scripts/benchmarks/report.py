"""Write docs/performance.md, its detail and the films of docs/benchmarks.md from docs/benchmarks. See run.py."""

import argparse
import json
from typing import Any

import summary
from common import RESULTS_FOLDER, markdown

PAGE = RESULTS_FOLDER.parent / "performance.md"
DETAIL = RESULTS_FOLDER.parent / "performance_detail.md"
QUALITY_PAGE = RESULTS_FOLDER.parent / "benchmarks.md"  # its section on films lies between two marks
BEGIN, END = "<!-- films: written by run.py report -->", "<!-- end of films -->"
HEAD = """\
# Performance in detail

[Performance](performance.md) has the answers to most questions. `python scripts/benchmarks/run.py report`
writes both pages from the results in `docs/benchmarks`. The other commands of that script write the results; they
need a checkout of the repository. No number here is typed by hand, except those of other
machines.

`cpu` is the CPU time of the process, summed over its threads. `wall` is the elapsed time. On a machine
that runs other programs, `cpu` seconds and their ratios are more reliable. The number of operations is
also counted, and `tests/model/test_flops.py` checks it.
"""
OTHER = "other-machines"  # results of machines that are not there any more
# name of the result file -> title and text of its section, in the order of the page
SECTIONS = {
    "inference": (
        "Evaluation",
        """"Plain" is the algorithm of the original code: eager attention in float32 and texts padded to 40 tokens. It
encodes each clip again for every 64 texts and each text again for every clip, and passes all tokens
through the last layer.

Whole evaluations are calculated from the measured parts, not run. Rates refer to `cpu` seconds. The GEMM
peak is one matrix product, timed the same way just before. A share above 100 % shows how noisy the machine
was. Weights are random; captions have 6 to 22 tokens, 12 on average. Batches that fit the CPU's cache save
time but no operations. Converting the weights to the layout of the machine costs time.""",
    ),
    "accuracy": (
        "Cost of the inexact savings",
        """Text to video on rendered clips of the sprite world, in float32 unless stated, with the retrieval model that
version 0.1 bundled.""",
    ),
    "savings": (
        "Inexact savings and their cost",
        """Text to video on clips of the sprite world, re-ranked, with the retrieval model that version 0.1 bundled.
Settings are compared on the validation split; the test split shows what they cost elsewhere. `matching, cpu ratio`
is how many times as fast matching is as with the 8 most similar clips of each text.

- `margin` leaves out clips that are less similar than the best one by more (`--rerank-margin`).
- `8-bit tokens` are those of an index with `--token-dtype float8_e4m3fn`. They save space, not time.
- `8-bit weights` are those of `--dtype int8`, for matching alone or also for the towers.
- `pooled` and `merged` join video tokens before matching, without training: by averages of neighbours, or
  the most similar ones as in ToMe (arXiv 2210.09461). They cost more than half a point of R@1, so they are no
  option of the package.

At base size there is no recall, because the weights are random. The table says how far a saving changes the
order in which matching puts clips. With few clips and random weights that is a weak check: measure on data
of your own.""",
    ),
    "inference-inexact": (
        "Evaluation with inexact savings",
        """As in the first section, with 8-bit weights (`--dtype int8`) and candidates by a margin
(`--rerank-margin`), measured in turns in one run (`run.py inference --no-exact --output inference-inexact`).
A margin leaves as many candidates as among 1,000 clips of the sprite world. What these settings cost in R@k
is in the section above, also of 8-bit weights and a margin together. `wall` was measured
while other programs used both cores, so only ratios of `cpu` mean something.

The aim is 150 times the speed of the plain algorithm for 1,000 x 1,000, and 15 times for 100 x 100, with
R@1 within half a point. In float32, encoding the clips alone takes longer than that, whatever is matched.
bfloat16 was measured on another machine: see the next section.""",
    ),
    "inference-bf16": (
        "Evaluation on a CPU with bfloat16",
        """The same measurements on a machine with AMX and AVX512-VNNI (`run.py inference --output inference-bf16`).
`bf16` is `--dtype bfloat16`; what it costs in R@k is in [its own section](#inexact-savings-on-a-cpu-with-bfloat16).
The cores of this machine are shared with others, so its speed changes from minute to minute, and the sides take
turns.

A clip in bfloat16 runs at a smaller share of the GEMM peak than in float32: products get faster, and what lies
between them (copies, normalisation, GELU, softmax) does not. "Attention" compares the fused attention with separate
products. For the few frames of time attention, the fused kernel is the slower of the two in bfloat16. It takes a
small part of a clip, so the model uses one implementation everywhere.""",
    ),
    "savings-bf16": (
        "Inexact savings on a CPU with bfloat16",
        """As in "Inexact savings and their cost", on the machine of the section above
(`run.py savings --output savings-bf16`). `bfloat16 weights` are those of `--dtype bfloat16`.""",
    ),
    "index": (
        "The index",
        """The index contains unit vectors of 256 numbers for synthetic videos. There is one query at a time, and it
returns the best 10. Tokens are left out. The tokens of a base-size clip take 605 KB in float32, half of
that in bfloat16. They take most of the disk space, but a search reads only those of the videos that it
re-ranks.

`own memory` is the memory that the process allocates. `mapped` counts pages of the shards and libraries,
which the system can release when it needs memory.""",
    ),
    "startup": (
        "Starting, and queries of a running search",
        """Every start is a fresh process, and the sides take turns. `base` is what a side cannot avoid. The aims are
1.1 times the base for the import and 1.2 times for a search.

A search without a query on the command line answers one from each line. The searches ran side by side and
answered each query in turn, with another caption each time. `cpu` includes the process that opens the
videos. The aim is 50 ms. The processes computed with one thread (`OMP_NUM_THREADS=1`).""",
    ),
    "overlap": (
        "Nothing waits",
        """What `alpro index` and `alpro evaluate` take, against their parts (`run.py overlap`). The clips of 64p are
scenes of the sprite world; those of the next two sections last 5 s and show moving textures. Sides take turns.

- `decode` and `encode` are the two parts alone, `both` is the real function.
- `elsewhere` is the real function with a model that waits as long as it takes alone, without using a CPU, as a
  model on another device does. The aim is 1.1 times the slower of the two parts.
- `both / cpu s by cores` is the elapsed time over the CPU seconds of both parts divided by the cores: 1 is what
  nobody can beat, and the aim is 1.05.
- `video s / s` is how many seconds of video are indexed or encoded in a second.

Decoding pictures of 64 pixels is mostly Python, which runs one thread at a time, so two threads do not keep two cores
busy and the aim of 1.05 is missed. From 360p on, FFmpeg does the work, which threads share. The speed of shared
machines changes from side to side, and the ratios with it.""",
    ),
    "overlap-large": (
        "Nothing waits, with larger pictures",
        "As above (`run.py overlap --heights 360 1080 --clips 16 --rounds 2 --output overlap-large`).",
    ),
    "overlap-base": (
        "Nothing waits, at base size",
        """As above, with the model of the paper
(`run.py overlap --size base --heights 360 1080 --clips 4 --batch 2 --rounds 2 --output overlap-base`). Four clips are
two batches. Nothing can be encoded while the first one is decoded, which counts at 1080p.""",
    ),
    "training": (
        "Training step of the bundled model",
        """Retrieval (VTC and VTM), forward and backward, without the optimizer. "Plain" uses eager attention, texts
padded to 40 tokens, and one pass through the fusion layers for each kind of pair.""",
    ),
    "training-base": (
        "Training step at base size",
        "The same measurement with the model of the paper and four clips of 8 frames.",
    ),
    "training-base-bf16": (
        "Training step at base size on a CPU with bfloat16",
        """The same again, with `--bf16` beside float32, and how long training waits for two workers that render clips
(`run.py training --size base --workers 2 --data-steps 3 --rounds 1 --output training-base-bf16`).""",
    ),
    "savings-training": (
        "Cheaper training steps",
        """A step of retrieval with the switches of `alpro train`, forward and backward, without data and
optimizer. All ways run in one process and take turns. How to switch them on is in
[How to](how_to.md#train-faster-or-with-less-memory).

- `kept MB a sample` are the activations that the backward pass needs, counted and not timed.
- `gradients and AdamW MB` is calculated: gradient and two moments of each weight that learns, in float32. The
  weights themselves come on top.
- Cached tokens save decoding and augmentation, too, which are not part of this step.""",
    ),
    "savings-training-memory": (
        "Memory of cheaper training steps",
        """The same steps in a process of their own. `peak MB` is its resident memory at its highest, with
libraries and weights. `over before MB` is what the step adds: activations and gradients, and with frozen parts
fewer of both.""",
    ),
    "savings-training-recall": (
        "What cheaper training costs",
        """R@1 of text to video by `vtc` on clips of the sprite world, after short trainings with VTC from one
start: the bundled model for questions, whose vectors were not trained with its last weights. All ways see the
same rows in the same order. A clip has a grid of 16 patches here, of which a sprite covers a few; what it costs
to leave out some of 196 was not measured. Checkpointing changes no weight, and cached tokens are those of the
frozen tower; the tests check both.""",
    ),
    "decoding": (
        "Decoding",
        """The tables show the milliseconds to open a file and read frames at uniform positions, without resizing.
There are two settings. CPU time uses one thread each, as in parallel data loading workers. Elapsed time
uses all cores, as for a single clip that a user waits for.

- torchcodec runs in its exact mode, and OpenCV seeks to the position. The decoder of transformers has no
  option for threads.
- `ours, a second time` uses the frame table that an index keeps.
- `next best` is the fastest other decoder with the right frames. The ratio is our time divided by its
  time: below 1, ours is faster.
- In the clips, two textures move against each other under grain. Each frame shows its number, so wrong
  frames are detected. Clips of 60 s and longer repeat shorter ones.
- Decoders that took more than 1.6 times as long as the fastest in a first run were not measured again.
  Their value is that first run.
- Long files (`run.py long-files`) are H.264 of 360p. Each decode is in a process of its own, which had decoded a
  short clip before; the median of three counts. Memory is its peak minus the memory before.
- A first decode of a long file finds out the time of each frame. The index of an mp4 or mov file tells it,
  unless the file has fragments, several edits, or damage. Otherwise PyAV lists the packets one by one. A
  second decode skips both.
- "First table of a file" compares the two ways (`run.py listing`). Matroska, AVI and transport streams have
  no index of all packets; there, both columns list the packets. Clips of 10 s are listed in any case.""",
    ),
    "long": (
        "Long videos",
        """Rates are seconds of video in a second of clock (`wall`) or of CPU time. Both sides of a ratio take turns in
one run. The clips repeat one of moving textures and have no cuts, so they are cut into all windows that a
length gives. With a process that decodes, its CPU time is not in the column `cpu`.

- `decode alone` decodes a file once, forward, and cuts it into windows.
- `both` is what `alpro index` does: threads decode ahead of the model.
- `a decode call a window` opens the file and seeks for each window.

Memory is that of `alpro index`, and of the process that decodes for it, as Linux notes it. The files repeat
a film of the sprite world. What the decoder reads includes its libraries, about 10 MB. It keeps an index of
the file, which grows with the frames: some 150 bytes a frame, of which 16 are the frame table.""",
    ),
}
# results that are shown elsewhere, or by a plot alone
ELSEWHERE, ONLY_PLOTTED = ("films",), ("memory on the way",)
FILMS = """\
`python scripts/benchmarks/run.py films --data DIR` renders films of 20 to 40 scenes of 1.5 to 6 s, with one query for
each scene, and searches each query among the windows of all films, with the model of version 0.1. What is compared was
chosen on films of the validation split. The test films show combinations that training never showed. `film R@1` asks
for the right film. R@1 and R@5 ask for a moment of it that overlaps with the scene by at least the IoU. Intervals come
from the bootstrap over films. Films of hard cuts are easy to cut; in fading films, scenes fade into each other.
`true scenes` cuts where scenes start and end, which no setting knows. What it misses, no better cuts would find.
"""
ONE_MACHINE = """\
### Limits of one machine

An exact search reads all vectors. The table shows that its time grows with the gallery, but the memory of
the process does not. FAISS (`alpro search --ann`, extra `faiss`) reads only a part of the vectors.

The limit of one machine is its disk. At 605 KB per clip (base size, float32), ten million clips need six
terabytes for tokens and ten gigabytes for vectors. At this size, store the vectors in a vector database
and the shards on the machines that re-rank. `scripts/examples/index_to_qdrant.py` (needs a checkout of the
repository) fills Qdrant from the shards. The same client connects to a folder, a server or a cluster.
"""


def section(name: str) -> str:
    """Markdown of one result: conditions, settings, tables and plot. Without a result, only its text."""
    title, text = SECTIONS.get(name, (name, ""))
    path = RESULTS_FOLDER / f"{name}.json"
    if not path.exists():
        return f"## {title}\n\n{text}\n\nNot measured yet.\n"
    result = json.loads(path.read_text())
    about = result["conditions"]
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    where = about.get("gpu", f"{about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])})")
    lines = [f"## {title}", "", text, ""]
    # the load counts all programs on the machine, this one too
    threads = f"{about['threads']} threads, load {about['load']} by all programs"
    lines += [f"{where}; {threads}; Python {about['python']}, {versions}."]
    if not about["bf16 in hardware"]:
        lines += ["bf16 was not measured: this machine has no bf16 instructions."]
    settings = {key: value for key, value in result["settings"].items() if key not in ("what", "output")}
    lines += ["", "Settings: `" + json.dumps(settings, default=str) + "`", ""]
    lines += tables_of(result, 3)
    if name in PLOTS:
        lines += [f"![{name}](benchmarks/{name}.png)", ""]
    if name == "index":
        lines += [ONE_MACHINE]
    return "\n".join(lines)


def tables_of(result: dict[str, Any], level: int) -> list[str]:
    """The tables of a result, with titles if there are several."""
    lines = []
    for title, rows in result["tables"].items():
        if title in ONLY_PLOTTED:
            continue
        if len(result["tables"]) > 1:
            lines += [f"{'#' * level} {title.capitalize()}", ""]
        lines += [markdown(rows), ""]
    return lines


def quality_page() -> str:
    """docs/benchmarks.md, with the films of their result."""
    text = QUALITY_PAGE.read_text()
    path = RESULTS_FOLDER / "films.json"
    if path.exists():
        result = json.loads(path.read_text())
        lines = [FILMS, "Settings: `" + json.dumps(result["settings"]) + "`", "", "![films](benchmarks/films.png)", ""]
        lines += tables_of(result, 5)
    else:
        lines = ["Not measured yet. Run `python scripts/benchmarks/run.py films --data DIR`.", ""]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + "\n".join([BEGIN, "", *lines, END]) + after


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

    rows = tables["cpu ms, one thread each"][::-1]  # the vertical axis counts from the bottom
    names = [row["decoder"] for row in tables["exactness"] if row["decoder"] in rows[0]]
    figure = Figure(figsize=(9, 0.2 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    for name in names:
        # a decoder that failed or returned wrong frames has a word in place of its milliseconds
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


def plot_films(tables: dict[str, list[dict[str, Any]]], path: Any) -> None:
    from matplotlib.figure import Figure

    kinds = [kind for kind in tables if kind.startswith("test") and not kind.endswith("intervals")]
    figure = Figure(figsize=(9, 2.6 * len(kinds) + 0.6), layout="constrained")
    for axis, kind in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        rows = tables[kind][::-1]  # the vertical axis counts from the bottom
        for shift, column in ((0.2, "film R@1"), (-0.2, "R@1, IoU 0.5")):
            places = [place + shift for place in range(len(rows))]
            bars = axis.barh(places, [row[column] for row in rows], 0.38, label=column)
            axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axis.set_yticks(range(len(rows)), [f"{row['cut']} (x {row['x one length']:g})" for row in rows], fontsize=8)
        axis.set(xlim=(0, 109), title=kind.removeprefix("test, "), xlabel="% of queries")
    axis.legend(loc="lower right", fontsize=8)
    figure.supylabel("cut (windows over those of one length)", fontsize=8)
    figure.savefig(path, dpi=100)


def plot_long(tables: dict[str, list[dict[str, Any]]], path: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    peaks, way = figure.subplots(1, 2)
    for process in ("index", "decoder"):
        rows = tables["memory"]
        peaks.plot([row["hours"] for row in rows], [row[f"{process}: peak MB"] for row in rows], "o-", label=process)
        longest = max(row["hours"] for row in rows)
        column = f"{process} MB"
        samples = [row for row in tables["memory on the way"] if row["hours"] == longest and column in row]
        way.plot([row["minute"] for row in samples], [row[column] for row in samples], label=process)
    peaks.set(xscale="log", xlabel="hours of the film", ylabel="MB", ylim=0, title="peak of memory")
    way.set(xlabel="minute of the command", ylabel="MB", ylim=0, title=f"memory while {longest:g} hours are indexed")
    peaks.legend()
    figure.savefig(path, dpi=100)


PLOTS = {
    "index": plot_index,
    "inference": plot_evaluation,
    "decoding": plot_decoding,
    "films": plot_films,
    "long": plot_long,
}


def detail() -> str:
    """The text of docs/performance_detail.md. Results that no section names follow at the end."""
    known = (*SECTIONS, *ELSEWHERE, OTHER)
    more = sorted(path.stem for path in RESULTS_FOLDER.glob("*.json") if path.stem not in known)
    pages = [section(name) for name in [*SECTIONS, *more]]
    if not any(name.startswith("gpu") for name in more):
        pages.append("## On a GPU\n\nNot measured. On a GPU, run `python scripts/benchmarks/run.py gpu`.\n")
    return "\n".join([HEAD, *pages, other_machines()]).rstrip() + "\n"


def other_machines() -> str:
    """Markdown of results whose machine is not there to repeat them, with its name."""
    result = summary.read(OTHER)
    lines = ["## On other machines", ""]
    lines += [f"{summary.last_measured(result)} Each number says how many times as fast this package was."]
    for title, rows in result["tables"].items():
        lines += ["", f"### {title.capitalize()}", "", markdown(rows)]
    return "\n".join(lines)


def report(arguments: argparse.Namespace) -> None:
    PAGE.write_text(summary.page())
    DETAIL.write_text(detail())
    QUALITY_PAGE.write_text(quality_page())
    for name, plot in PLOTS.items():
        if (RESULTS_FOLDER / f"{name}.json").exists():
            plot(json.loads((RESULTS_FOLDER / f"{name}.json").read_text())["tables"], RESULTS_FOLDER / f"{name}.png")
    print(f"wrote {PAGE}, {DETAIL} and {QUALITY_PAGE}")


def add_arguments(commands: Any) -> None:
    commands.add_parser("report", help="write pages and plots from the results").set_defaults(run=report)
