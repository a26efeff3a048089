"""TODO docstring."""

import argparse
import sys
from pathlib import Path

from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..evaluation.breakdown import COLUMNS, WORDS
from ..evaluation.encode import processes
from ..evaluation.results import RESULTS, Results
from ..evaluation.run import (
    PROTOCOLS,
    TASKS,
    _at_least,
    _complain,
    evaluate,
)
from ..loading import BUNDLED, CommandError

_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


_PREFIXES = {"": "", "vtc": "towers alone", "with_prior": "with similarity", "without_prior": "without similarity"}


_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r50": "R@50", "median_rank": "median", "mean_rank": "mean"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro evaluate` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = (
        "alpro evaluate --task {retrieval,qa} --data ROWS [--videos DIR] --model MODEL --output DIR\n"
        "                      [--protocol {reference,rerank,vtc}] [options]"
    )
    parser.description = (
        "Measure a model on a benchmark, or on rows of your own. DIR gets results.json (metrics with 95 % intervals\n"
        "and all that they depend on: protocol, weights, data, versions, command), predictions.jsonl (a row for\n"
        "every query or question) and pictures: recall over rank, R@1 over the number of re-ranked candidates,\n"
        "metrics by group. alpro compare tells whether two such folders differ by more than chance.\n\n"
        "ROWS are KIND:PATH, annotations as their owners publish them, with --videos naming the folder of the clips:\n"
        "  released-retrieval, released-qa            the files released with ALPRO\n"
        "  msrvtt-1ka, msrvtt, msvd, didemo, webvid   captions\n"
        "  msrvtt-qa, msvd-qa                         questions\n"
        "  table                                      CSV, JSON lines, Parquet or a folder with metadata.csv\n"
        "or JSON lines, CSV, Parquet or a folder of save_to_disk, with the columns video and text, or video,\n"
        "question and answer (optional: answer_type), and paths relative to the working directory."
    )
    parser.epilog = (
        "protocols of retrieval\n"
        "  reference  every text with every clip by the matching head: the tables of the paper\n"
        "  rerank     the best K by cosine similarity reordered by matching logit + similarity: the second, public\n"
        "             protocol, and what alpro search does; --no-prior leaves the similarity out of the sum\n"
        "  vtc        cosine similarity of the two towers alone, the fastest; the only one without a matching head\n"
        "Beside those of the protocol, metrics of vtc and of the same protocol with or without the similarity are\n"
        "written too. Questions have no protocol to choose: the most probable of the known answers counts, and one\n"
        "that is not known counts as wrong.\n\n"
        "examples:\n"
        "  alpro evaluate --task retrieval --data released-retrieval:txt/test.jsonl --videos videos \\\n"
        "      --model alpro-msrvtt --protocol reference --text-length 40 --output results/msrvtt\n"
        "  alpro evaluate --task qa --data msvd-qa:test_qa.json --video-names youtube_mapping.txt --videos videos \\\n"
        "      --model alpro-msvd-qa --output results/msvd-qa\n"
        "  alpro evaluate --task retrieval --data my.jsonl --model my-model --by camera --output results/my\n"
        "on 8 GPUs, with the same result, either of:\n"
        "  torchrun --nproc_per_node 8 -m alpro_hf evaluate ...\n"
        "  accelerate launch --num_processes 8 -m alpro_hf evaluate ..."
    )
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data", required=True, metavar="ROWS", help="a file or folder, or KIND:PATH, see above")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that DIR has")
    data = parser.add_argument_group("data")
    data.add_argument("--videos", type=Path, metavar="DIR", help="folder of the clips of KIND:PATH")
    data.add_argument("--split", metavar="NAME", help="split of the data, where they have several")
    data.add_argument("--video-names", type=Path, metavar="FILE", help="lines '<name> <id>', as youtube_mapping.txt")
    data.add_argument(
        "--on-missing",
        choices=("drop", "error"),
        help="what to do about clips of KIND:PATH that are not there (default: drop their rows, and list them)",
    )
    data.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help=f"columns to tell the metrics apart by, beside {', '.join(COLUMNS)} and the number of {WORDS}",
    )
    data.add_argument(
        "--allow-outside",
        action="store_true",
        help="let annotations (KIND:PATH) name clips outside of their folder, by .., links or absolute paths",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=BUNDLED, metavar="M", help="folder, Hub id or 'bundled' (default)")
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    model.add_argument("--num-frames", type=_at_least(1), metavar="N", help="frames of a clip (default: the model's)")
    model.add_argument(
        "--text-length", type=_at_least(3), metavar="N", help="longest text in tokens (default: the model's)"
    )
    protocol = parser.add_argument_group("protocol of retrieval")
    protocol.add_argument("--protocol", choices=PROTOCOLS, help="default: reference")
    protocol.add_argument("--rerank-k", type=_at_least(1), metavar="K", help="candidates of rerank (default: 16)")
    protocol.add_argument(
        "--no-prior", action="store_true", help="rerank by the matching logit alone, without the similarity"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", type=_at_least(1), default=16, metavar="N", help="clips at a time (default: 16)")
    work.add_argument(
        "--pair-batch-size",
        type=_at_least(1),
        metavar="N",
        help="pairs matched at a time (default: 256, on a CPU what its cache holds)",
    )
    work.add_argument(
        "--workers", type=_at_least(0), default=0, metavar="N", help="processes that decode ahead (default: none)"
    )
    work.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="float32",
        help="numbers to compute in; bfloat16 is not exact, auto takes it where the machine has it in hardware "
        "(default: float32)",
    )
    work.add_argument("--draws", type=_at_least(1), default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    work.add_argument("--no-plot", action="store_true", help="draw no pictures")
    work.add_argument("--json", action="store_true", help="print results.json instead of a table")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro evaluate`; 1 with the reason on stderr when it failed, or clips could not be decoded."""
    expected = (CommandError, OSError, ValueError, DatasetsError, StrictDataclassError, SafetensorError)
    state = processes()
    try:
        results = evaluate(args)
    except expected as error:
        _complain(" ".join(str(error).split()))
        return 1
    if state.num_processes > 1:
        state.destroy_process_group()
    if results is None:
        return 0
    if args.json:
        print((args.output / RESULTS).read_text(encoding="utf-8"), end="")
    else:
        print(report(results))
        print(f"\nresults in {args.output}")
    skipped = results.details["skipped"]
    for clip in skipped:
        print(f"failed: {clip['video']} ({clip['rows']} rows): {clip['reason']}", file=sys.stderr)
    return 1 if skipped else 0


def report(results: Results) -> str:
    """The metrics as text: what they are of, a table with intervals, the groups, and what is not in them."""
    protocol, data = dict(results.protocol), results.data
    size = f"{data['questions']} questions" if results.task == "qa" else f"{data['texts']} texts"
    named = [key for key in ("rerank_k", "prior", "num_frames", "text_length") if key in protocol]
    settings = "".join(f", {key} {protocol[key]}" for key in named)
    lines = [
        f"{results.model['name']} on {data['source']}: {size}, {data['videos']} videos",
        f"protocol {protocol['name']}{settings}",
        "",
    ]
    lines += _retrieval_lines(results) if results.task == "retrieval" else _answer_lines(results)
    for column, groups in results.details["breakdown"].items():
        lines += ["", f"by {column}"]
        name, shown = ("accuracy", "accuracy") if results.task == "qa" else ("t2v_r1", "R@1")
        for group, found in groups.items():
            low, high = found["interval"]
            lines.append(f"  {group:20} n {found['n']:6}  {shown} {found[name]:5.1f}  [{low:.1f}, {high:.1f}]")
    if data.get("missing"):
        lines += ["", f"{data['missing']} clips are missing, so these numbers are of a part of the data only."]
    return "\n".join(lines)


def _retrieval_lines(results: Results) -> list[str]:
    lines = [f"{'':34}" + "".join(f"{title:>9}" for title in _COLUMNS.values())]
    for prefix, what in _PREFIXES.items():
        for way, name in _DIRECTIONS.items():
            stem = f"{prefix}_{way}" if prefix else way
            if f"{stem}_r1" not in results.metrics:
                continue
            title = f"{name}, {what}" if what else name
            lines.append(f"{title:34}" + "".join(f"{results.metrics[f'{stem}_{key}']:9.1f}" for key in _COLUMNS))
            for bound, place in (("  95 % interval from", 0), ("  to", 1)):
                if f"{stem}_r1" in results.intervals:
                    values = [results.intervals[f"{stem}_{key}"][place] for key in _COLUMNS]
                    lines.append(f"{bound:34}" + "".join(f"{value:9.1f}" for value in values))
    return lines


def _answer_lines(results: Results) -> list[str]:
    lines = []
    for name, value in results.metrics.items():
        interval = results.intervals.get(name)
        shown = f"{value:8.1f}" + (f"  [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
        lines.append(f"{name:24}{shown}")
    return lines
