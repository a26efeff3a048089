"""The five tables of docs/performance.md, from the results in docs/benchmarks. See report.py."""

import json
from typing import Any

from common import RESULTS_FOLDER, markdown

from alpro_hf.data.windows import WindowSettings

HOURS = 100  # of video, in the first table
CLIP = 30  # seconds of a short file
PAPER = "of the paper"  # the model of base size
# rows of the table of evaluations; the detail has all
SHOWN = (
    "plain, all pairs",
    "ours, top 20 (rerank, text to video)",
    "bf16, top 20",
    "bf16, margin 0.05",
    "int8, margin 0.05",
)
HEAD = """\
# Performance

Five questions, and what was measured. [The detail](performance_detail.md) has all tables, their settings and the
commands that give them. `python scripts/benchmarks/run.py report` writes both pages from the results in
`docs/benchmarks`; it needs a checkout of the repository.
"""
INDEXING = """\
## How long will my {hours} hours take to index?

Calculated from the measured time of a clip and of decoding, at base size (8 frames of 224 x 224) in float32. Decoding
and encoding overlap. On a CPU both use all cores, so their times add up; with the model on another device, the longer
one counts. Files of up to {clip} s are one clip each; longer ones are cut into windows. `bfloat16` divides encoding by
{ratio:.3g}, which was measured on another machine ({machine}).
"""
SEARCHING = """\
## How long does a search take?

For the best 10 of an index, one query at a time, without re-ranking. Re-ranking adds the time of a pair for each
candidate, which does not depend on the size of the index.
"""
EVALUATING = """\
## How long does an evaluation take?

Texts x clips at base size. "Plain" is the algorithm of the original code in float32. `top 20` matches the best 20
clips of each text. Calculated from parts that were measured in one run; ratios are of CPU time.

`bf16` and `int8` are `--dtype bfloat16` and `--dtype int8`, and `margin` is `--rerank-margin`. They are inexact. The
detail says [what they cost in R@k](performance_detail.md#inexact-savings-on-a-cpu-with-bfloat16), and
[how much they save without bfloat16](performance_detail.md#evaluation-with-inexact-savings).
"""
TRAINING = """\
## How long does training take?

Samples a second of a retrieval step, forward and backward. The bundled model has 4 frames of 64 x 64, the one of the
paper 8 of 224 x 224. "Plain" pads texts to 40 tokens and passes each kind of pair for itself.
"""
ORIGINAL = """\
## How much faster than the original's own code?

How many times as fast this package is as the original's own code, both on one machine with shared weights. At equal
shapes, float32 is on par. What helps is that texts are trimmed to the longest of a batch, that each clip is encoded
once, and that only the best candidates are matched. bfloat16 helps where the CPU has it.
"""


def read(name: str) -> dict[str, Any]:
    """A result."""
    result: dict[str, Any] = json.loads((RESULTS_FOLDER / f"{name}.json").read_text())
    return result


def machine_of(result: dict[str, Any]) -> str:
    """The machine of a result, with its instructions."""
    about = result["conditions"]
    return f"{about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])})"


def where(result: dict[str, Any]) -> str:
    """The machine of a result, in one sentence."""
    return f"Measured on {machine_of(result)}, {result['conditions']['threads']} threads."


def last_measured(result: dict[str, Any]) -> str:
    """The machine of results that cannot be repeated here, in one sentence."""
    about = result["conditions"]
    return f"Last measured with version {about['version']} on an {about['machine']}."


def indexing(inference: dict[str, Any], decoding: dict[str, Any], ratio: float) -> list[dict[str, Any]]:
    """Hours for `HOURS` hours of video."""
    parts = inference["tables"]["parts"]
    clip = next(row["wall s each"] for row in parts if (row["part"], row["side"]) == ("clip", "ours"))
    milliseconds = {row["clip"]: row for row in decoding["tables"]["wall ms, all cores each"]}

    def row(video: str, name: str, length: float, column: str, clips: float) -> dict[str, Any]:
        """`clips` an hour; decoding took a `column` of a clip of `length` seconds."""
        decode = milliseconds[name][column] / 1000 * HOURS * 3600 / length / 3600
        encode = HOURS * clips * clip / 3600
        return {
            "video": video,
            "clips": round(HOURS * clips),
            "decoding h": decode,
            "encoding h": encode,
            "both h": decode + encode,
            "bfloat16, both h": decode + encode / ratio,
        }

    settings = WindowSettings()
    an_hour = {length: 3600 / settings.stride_of(length) for length in settings.lengths}
    default, longest = sum(an_hour.values()), an_hour[settings.longest]
    lengths = " and ".join(f"{length:g}" for length in settings.lengths)
    whole = "PyAV, whole clip"  # windows need all frames
    return [
        row(f"files of {CLIP} s, 360p", "h264 360p, key every 250, 60 s, 8 frames", 2 * CLIP, "ours", 3600 / CLIP),
        row(
            f"films, windows of {settings.longest:g} s, 360p",
            "h264 360p, key every 250, 60 s, 8 frames",
            60,
            whole,
            longest,
        ),
        row(f"films, windows of {lengths} s, 360p", "h264 360p, key every 250, 60 s, 8 frames", 60, whole, default),
        row(f"films, windows of {lengths} s, 720p", "h264 720p, key every 250, 5 s, 8 frames", 5, whole, default),
        row(f"films, windows of {lengths} s, 1080p", "h264 1080p, key every 250, 5 s, 8 frames", 5, whole, default),
    ]


def training(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of the models, plain and ours."""
    return [
        {"model": model, "step": row["step"], "samples/s": row["samples/s"], "ratio cpu": row["ratio cpu"]}
        for model, result in results.items()
        for row in result["tables"]["step"]
        if "samples/s" in row and row["step"] in ("plain", "ours", "ours, checkpointing", "ours, bf16")
    ]


def picked(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Some columns of the rows that were measured."""
    return [{column: row[column] for column in columns} for row in rows if all(column in row for column in columns)]


def page() -> str:
    """The text of docs/performance.md."""
    inference, decoding, index, other = map(read, ("inference", "decoding", "index", "other-machines"))
    half = read("inference-bf16")
    steps = {"bundled": read("training"), PAPER: read("training-base-bf16")}
    clip = {row["side"]: row["wall s each"] for row in half["tables"]["parts"] if row["part"] == "clip"}
    ratio = clip["ours"] / clip["ours, bf16"]
    words = {
        "hours": HOURS,
        "clip": CLIP,
        "ratio": ratio,
        "machine": machine_of(half),
    }
    evaluation = ("evaluation", "wall h", "cpu h", "ratio cpu")
    tables = [
        (INDEXING, indexing(inference, decoding, ratio), where(inference)),
        (
            SEARCHING,
            picked(index["tables"]["index"], ("videos", "search", "p50 ms", "p99 ms", "load s", "disk MB")),
            where(index),
        ),
        (
            EVALUATING,
            picked([row for row in half["tables"]["evaluation"] if row["evaluation"].endswith(SHOWN)], evaluation),
            where(half),
        ),
        (TRAINING, training(steps), " ".join(f"{where(result)[:-1]} ({model})." for model, result in steps.items())),
        (ORIGINAL, other["tables"]["over the original's own code"], last_measured(other)),
    ]
    parts = [HEAD]
    for text, rows, machine in tables:
        parts += [text.format(**words), markdown(rows), "", machine, ""]
    return "\n".join(parts)
