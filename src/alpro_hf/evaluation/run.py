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

from ..assets import bundled_model
from ..data.load_rows import load_rows, missing_list
from ..loading import BUNDLED, CommandError, best_dtype, load_model
from .breakdown import BREAKDOWN_PICTURE, COLUMNS, WORDS, break_down, groups_of, plot_breakdown
from .encode import processes
from .measure import Measured, clip_name, measure_answers, measure_retrieval
from .protocols import RetrievalProtocol
from .results import RESULTS, Results, data_fingerprint, metric_intervals, model_source, write_results

TASKS = ("retrieval", "qa")
PROTOCOLS = ("reference", "rerank", "vtc")


# ----------------------------------------------------------------------------------------------------------- arguments


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


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


__all__ = ["evaluate"]
