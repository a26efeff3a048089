"""`alpro evaluate`: a model on a benchmark, by a protocol that is named, in one process or many.

What comes out is a folder of results, see `results`: metrics with their intervals and all that they depend on, a row
for every query, and pictures. Protocols are explained in `evaluation` and in docs/benchmarks.md.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .assets import bundled_model
from .breakdown import BREAKDOWN_PICTURE, COLUMNS, WORDS, break_down, groups_of, plot_breakdown
from .evaluation import RetrievalProtocol
from .hardware import best_dtype
from .inference import processes
from .loading import BUNDLED, CommandError, load_model
from .measure import Measured, clip_name, measure_answers, measure_retrieval
from .results import RESULTS, Results, data_fingerprint, metric_intervals, model_source, write_results
from .training_inputs import load_rows, missing_list

TASKS = ("retrieval", "qa")
PROTOCOLS = ("reference", "rerank", "vtc")
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_PREFIXES = {"": "", "vtc": "towers alone", "with_prior": "with similarity", "without_prior": "without similarity"}
_COLUMNS = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r50": "R@50", "median_rank": "median", "mean_rank": "mean"}


# ----------------------------------------------------------------------------------------------------------- arguments


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


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


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


def _complain(message: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    print(f"alpro evaluate{f' (process {rank})' if rank else ''}: {message}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------- an evaluation


def evaluate(args: argparse.Namespace) -> Results | None:
    """Evaluate as the parsed arguments of `alpro evaluate` say.

    Returns:
        What the first process wrote to `args.output`; None in all others, which did their share of the work.

    Raises:
        CommandError: The options contradict each other, or the model is none for the task.
        OSError, ValueError: Data, clips or model cannot be read.
    """
    started = time.monotonic()
    _check_arguments(args)
    state = processes()
    options = {"video_names": args.video_names, "on_missing": args.on_missing}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"allow_outside": True} if args.allow_outside else {}
    with state.main_process_first():  # the others find what the first one has cached
        rows = load_rows(args.data, args.task, args.videos, args.split, args.output, **options)
    columns = _columns(args, rows)
    protocol: RetrievalProtocol = args.protocol or "reference"
    kind: Any = "qa" if args.task == "qa" else "towers" if protocol == "vtc" else "retrieval"
    model, processor = load_model(kind, args.model, revision=args.revision, device=state.device)
    _set_inputs(args, model.eval(), processor)
    dtype = best_dtype(state.device) if args.dtype == "auto" else getattr(torch, args.dtype)
    work: dict[str, Any] = {
        "computing": torch.autocast(state.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
        "batch_size": args.batch_size,
        "workers": args.workers,
        "title": args.task,
    }
    if args.task == "qa":
        found = measure_answers(model, processor, rows, **work)
    else:
        work |= {"rerank_k": args.rerank_k or 16, "prior": not args.no_prior, "pair_batch_size": args.pair_batch_size}
        found = measure_retrieval(model, processor, rows, protocol, **work)
    if not state.is_main_process:
        return None
    asked = {name: [values[number] for number in found.numbers] for name, values in columns.items()}
    breakdown = break_down(found.predictions[: len(found.numbers)], asked, args.draws)
    skipped = [
        {"video": clip_name(rows[clip.row], clip.row), "reason": " ".join(clip.reason.split()), "rows": clip.rows}
        for clip in found.skipped
    ]
    how = {
        "seconds": round(time.monotonic() - started, 1),
        "device": state.device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "processes": state.num_processes,
    }
    results = Results(
        task=args.task,
        protocol=found.protocol | _inputs(processor),
        metrics=found.metrics,
        model=_model(args, model),
        data=_data(args, rows) | found.counts,
        intervals=metric_intervals(found.predictions, args.draws),
        command=list(args.command_line),
        details={"breakdown": breakdown, **found.details, "skipped": skipped, "run": how},
    )
    write_results(args.output, results, found.predictions)
    if not args.no_plot:
        _draw(args.output, found, breakdown)
    return results


def _check_arguments(args: argparse.Namespace) -> None:
    """Options that have no part in what is asked for are mistakes, and better found now than after hours."""
    of_rerank = {"--rerank-k": args.rerank_k is not None, "--no-prior": args.no_prior}
    for option, given in {"--protocol": args.protocol is not None, **of_rerank}.items():
        if given and args.task == "qa":
            raise CommandError(f"{option} is of retrieval; questions are answered by the classifier. Remove it.")
    for option, given in of_rerank.items():
        if given and args.protocol != "rerank":
            raise CommandError(f"{option} is of --protocol rerank, not {args.protocol or 'reference'}. Remove it.")
    if args.output.exists() and not args.output.is_dir():
        raise CommandError(f"--output {args.output} is a file; name a folder.")
    if (args.output / RESULTS).exists() and not args.overwrite:
        raise CommandError(f"{args.output} holds results already. Name another folder, or add --overwrite.")
    if not args.no_plot and importlib.util.find_spec("matplotlib") is None:
        raise CommandError('Pictures need matplotlib: pip install "alpro-hf[plot]"; or add --no-plot.')


def _columns(args: argparse.Namespace, rows: Dataset) -> dict[str, Sequence[Any]]:
    """What rows are told apart by: name to the value of each row."""
    if unknown := [name for name in args.by if name not in (*rows.column_names, WORDS)]:
        raise CommandError(f"--by {', '.join(unknown)}: the rows have only {', '.join(rows.column_names)}.")
    text = "question" if args.task == "qa" else "text"
    known = [name for name in COLUMNS if name in rows.column_names]
    named = [name for name in dict.fromkeys([*known, *args.by]) if name != WORDS]
    values: dict[str, Sequence[Any]] = {}
    for name in named:
        column = list(rows[name])
        try:
            groups_of(column)
        except ValueError as error:
            if name in args.by:
                raise CommandError(f"--by {name}: {error}") from error
            continue  # not asked for
        values[name] = column
    return values | {WORDS: [len(words.split()) for words in rows[text]]}


def _set_inputs(args: argparse.Namespace, model: Any, processor: Any) -> None:
    longest = model.config.text_config.max_position_embeddings
    if args.text_length is not None and args.text_length > longest:
        raise CommandError(f"--text-length {args.text_length} is more than the {longest} tokens the model reads.")
    if args.text_length is not None:
        processor.tokenizer.model_max_length = args.text_length
    if args.num_frames is not None:
        processor.video_processor.num_frames = args.num_frames


def _inputs(processor: Any) -> dict[str, Any]:
    """What the model sees of a row, on which metrics depend as they do on the protocol."""
    video = processor.video_processor
    return {
        "num_frames": video.num_frames,
        "frame_sampling": video.frame_sampling,
        "size": dict(video.size),
        "text_length": processor.tokenizer.model_max_length,
    }


def _model(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    if args.model == BUNDLED:
        return model_source(str(bundled_model(args.task))) | {"name": BUNDLED}
    return dict(model_source(args.model, getattr(model.config, "_commit_hash", None)))


def _data(args: argparse.Namespace, rows: Dataset) -> dict[str, Any]:
    found = {"fingerprint": data_fingerprint(rows), "rows": len(rows), "source": args.data, "split": args.split}
    listed = missing_list(args.data, args.output)
    if args.videos is not None and listed is not None and listed.is_file():
        found |= {"videos_folder": str(args.videos), "missing": len(listed.read_text(encoding="utf-8").splitlines())}
    return found


def _draw(folder: Path, found: Measured, breakdown: Mapping[str, Any]) -> None:
    pictures = dict(found.pictures)
    if breakdown:
        pictures[BREAKDOWN_PICTURE] = lambda: plot_breakdown(dict(breakdown))
    for name, picture in pictures.items():
        picture().savefig(folder / name)


# ------------------------------------------------------------------------------------------------------ what is shown


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


__all__ = ["add_arguments", "evaluate", "report", "run"]
