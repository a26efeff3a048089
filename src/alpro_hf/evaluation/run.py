"""An evaluation from start to end: a model, rows and a protocol to a folder of results, in one process or many.

Results are metrics with their intervals and everything they depend on, a row for every query, and pictures; see
`results`. The protocols are defined in `protocols` and compared in docs/benchmarks.md.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..data.isolated_decoder import IsolatedDecoder
from ..data.load_rows import load_rows, missing_list
from ..data.window_choice import WindowError, window_settings
from ..data.windows import WindowSettings
from ..files import write_whole
from ..loading import BUNDLED, BUNDLED_BY_TASK, best_dtype, find_model, load_model
from ..model.matching_alpro import matching_problem
from .breakdown import BREAKDOWN_PICTURE, GROUP_COLUMNS, WORDS, break_down, groups_of, plot_breakdown
from .encode import processes
from .measure import EvaluationOutcome, clip_name, measure_answers, measure_retrieval
from .moments import measure_moments
from .results import RESULTS, Results, data_fingerprint, metric_intervals, model_source, write_results
from .settings import DEFAULT_PROTOCOL, DEFAULT_RERANK_K, Evaluation, EvaluationError
from .unfamiliar import knows_only_sprites, sample_of, unfamiliar_videos

logger = logging.getLogger(__name__)


def evaluate(settings: Evaluation) -> Results | None:
    """Evaluate a model and write the results to `settings.output`.

    ```python
    results = evaluate(Evaluation(task="retrieval", data="rows.jsonl", output=Path("results"), protocol="rerank"))
    print(results.metrics["t2v_r1"], results.intervals["t2v_r1"])
    ```

    In a process that torchrun or `accelerate launch` started, all processes share the work. Each must call this.

    Returns:
        The results that the first process wrote; None in all other processes.

    Raises:
        EvaluationError: Settings contradict each other, or do not fit the data or the model.
        CommandError: The model is not an ALPRO model, or was trained for another task.
        OSError, ValueError: Data, clips or model cannot be read.
    """
    started = time.monotonic()
    _check(settings)
    state = processes()
    options: dict[str, Any] = {"video_names": settings.video_names, "on_missing": settings.on_missing}
    options = {name: value for name, value in options.items() if value is not None}
    options |= {"allow_outside": True} if settings.allow_outside else {}
    with state.main_process_first():  # one process reads the files and caches the rows, the others find the cache
        rows = load_rows(settings.data, settings.task, settings.videos, settings.split, settings.output, **options)
    columns = _columns(settings, rows)
    protocol: Any = settings.protocol or DEFAULT_PROTOCOL
    # the protocol vtc uses the two towers alone, so it must not refuse a model without a matching head
    kind: Any = "towers" if protocol == "vtc" or settings.task == "moments" else settings.task
    numbers = "int8" if settings.dtype == "int8" else None  # else float32: bfloat16 is that of autocast
    model, processor = load_model(kind, settings.model, numbers, revision=settings.revision, device=state.device)
    if settings.task == "retrieval":
        protocol = _possible_protocol(settings, model)
    _set_inputs(settings, model.eval(), processor)
    dtype = best_dtype(state.device) if settings.dtype == "auto" else getattr(torch, settings.dtype)
    work: dict[str, Any] = {
        # weights stay float32: autocast keeps sums and normalizations exact
        "computing": torch.autocast(state.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
        "batch_size": settings.batch_size,
        "title": settings.task,
    }
    if settings.task == "moments":
        work |= {"join": settings.join, "trim": settings.trim}
        found = measure_moments(model, processor, rows, _windows(settings), settings.gallery or "own", **work)
    elif settings.task == "qa":
        found = measure_answers(model, processor, rows, workers=settings.workers, **work)
    else:
        work |= {"rerank_k": settings.rerank_k or DEFAULT_RERANK_K, "prior": settings.prior}
        work |= {"rerank_margin": settings.rerank_margin}
        work |= {"pair_batch_size": settings.pair_batch_size, "workers": settings.workers}
        found = measure_retrieval(model, processor, rows, protocol, **work)
    if not state.is_main_process:
        return None
    # the first predictions are about these rows, in this order; rows of clips that could not be decoded have none
    asked = {name: [values[number] for number in found.numbers] for name, values in columns.items()}
    breakdown = break_down(found.predictions[: len(found.numbers)], asked, settings.draws)
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
        task=settings.task,
        protocol=found.protocol | _inputs(processor),
        metrics=found.metrics,
        model=_model(settings, model),
        data=_data(settings, rows) | found.counts,
        intervals=metric_intervals(found.predictions, settings.draws),
        command=settings.command,
        details={
            "breakdown": breakdown,
            **found.details,
            "skipped": skipped,
            "unfamiliar": _unfamiliar(model, rows),
            "run": how,
        },
    )
    write_results(settings.output, results, found.predictions)
    if settings.plot:
        _draw(settings.output, found, breakdown)
    return results


def _check(settings: Evaluation) -> None:
    """Refuse settings that have no effect or cannot be met: better now than after hours of work."""
    of_rerank = {
        "rerank_k (--rerank-k)": settings.rerank_k is not None,
        "rerank_margin (--rerank-margin)": settings.rerank_margin is not None,
        "prior (--no-prior)": not settings.prior,
    }
    for name, given in {"protocol (--protocol)": settings.protocol is not None, **of_rerank}.items():
        if given and settings.task == "qa":
            raise EvaluationError(f"{name} belongs to retrieval; questions are answered by a classifier. Remove it.")
        if given and settings.task == "moments":
            raise EvaluationError(f"{name} belongs to retrieval; moments are ranked by similarity. Remove it.")
    for name, given in of_rerank.items():
        if given and settings.protocol != "rerank":
            protocol = settings.protocol or DEFAULT_PROTOCOL
            raise EvaluationError(f"{name} belongs to the protocol rerank, but the protocol is {protocol}. Remove it.")
    if settings.rerank_margin is not None and not 0 <= settings.rerank_margin < math.inf:
        raise EvaluationError(
            f"rerank_margin={settings.rerank_margin} (--rerank-margin) must be a number of at least 0, such as 0.05."
        )
    of_moments = {
        "gallery (--gallery)": settings.gallery is not None,
        "window (--window)": settings.window is not None,
        "stride (--stride)": settings.stride is not None,
        "cuts (--no-cuts)": not settings.cuts,
        "join (--join)": settings.join,
        "trim (--trim)": settings.trim,
    }
    for name, given in of_moments.items():
        if given and settings.task != "moments":
            raise EvaluationError(f"{name} belongs to moments, but the task is {settings.task}. Remove it.")
    if settings.task == "moments":
        _windows(settings)
        if settings.workers:
            raise EvaluationError("workers (--workers): each video is decoded once, in this process. Remove it.")
    if settings.output.exists() and not settings.output.is_dir():
        raise EvaluationError(f"The output {settings.output} is a file. Name a folder.")
    if (settings.output / RESULTS).exists() and not settings.overwrite:
        raise EvaluationError(
            f"{settings.output} already holds results. Name another folder, or allow to overwrite them (--overwrite)."
        )
    if settings.plot and importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError('Pictures need matplotlib: pip install "alpro-hf[plot]". Or draw none (--no-plot).')


def _windows(settings: Evaluation) -> WindowSettings | None:
    """How videos are cut for moments."""
    try:
        return window_settings(settings.window, settings.stride, cuts=settings.cuts)
    except WindowError as error:
        raise EvaluationError(str(error)) from error


def _possible_protocol(settings: Evaluation, model: Any) -> Any:
    """The protocol that was chosen, or the default one that the model can be evaluated by.

    Raises:
        EvaluationError: The protocol that was chosen needs a trained matching head, and the model has none.
    """
    protocol = settings.protocol or DEFAULT_PROTOCOL
    if protocol == "vtc" or (problem := matching_problem(model)) is None:
        return protocol
    if settings.protocol is not None:
        raise EvaluationError(
            f"The protocol {protocol} needs a matching head, and {problem}: choose protocol='vtc' (--protocol vtc)."
        )
    if processes().is_main_process:
        logger.warning("The protocol is vtc: the default, %s, needs a matching head, and %s.", protocol, problem)
    return "vtc"


def _columns(settings: Evaluation, rows: Dataset) -> dict[str, Sequence[Any]]:
    """The columns to group the rows by: name to the value of each row."""
    if unknown := [name for name in settings.by if name not in (*rows.column_names, WORDS)]:
        raise EvaluationError(
            f"by (--by) names {', '.join(unknown)}, but the rows have only {', '.join(rows.column_names)}."
        )
    text = "question" if settings.task == "qa" else "text"
    known = [name for name in GROUP_COLUMNS if name in rows.column_names]
    named = [name for name in dict.fromkeys([*known, *settings.by]) if name != WORDS]
    values: dict[str, Sequence[Any]] = {}
    for name in named:
        column = list(rows[name])
        try:
            groups_of(column)
        except ValueError as error:
            if name in settings.by:
                raise EvaluationError(f"by (--by) {name}: {error}") from error
            continue  # a column that nobody asked for, which only happens to have this name
        values[name] = column
    return values | {WORDS: [len(words.split()) for words in rows[text]]}


def _set_inputs(settings: Evaluation, model: Any, processor: Any) -> None:
    """Let the processor prepare frames and texts as the settings say."""
    longest = model.config.text_config.max_position_embeddings
    if settings.text_length is not None and settings.text_length > longest:
        raise EvaluationError(
            f"text_length (--text-length) is {settings.text_length}, more than the {longest} tokens that the model "
            "reads. Lower it."
        )
    if settings.text_length is not None:
        processor.tokenizer.model_max_length = settings.text_length
    if settings.num_frames is not None:
        processor.video_processor.num_frames = settings.num_frames


def _unfamiliar(model: Any, rows: Dataset) -> list[str]:
    """Of a sample of the clips, the files from outside the closed world that the model was trained on."""
    if not knows_only_sprites(model):
        return []
    files = list(dict.fromkeys(video for video in rows["video"] if isinstance(video, str)))
    with IsolatedDecoder(processes=1) as decoder:
        return list(map(str, unfamiliar_videos(model, sample_of(files), decoder)))


def _inputs(processor: Any) -> dict[str, Any]:
    """How rows are prepared for the model: metrics depend on it as much as on the protocol."""
    video = processor.video_processor
    return {
        "num_frames": video.num_frames,
        "frame_sampling": video.frame_sampling,
        "size": dict(video.size),
        "text_length": processor.tokenizer.model_max_length,
    }


def _model(settings: Evaluation, model: Any) -> dict[str, Any]:
    if settings.model == BUNDLED or settings.model in BUNDLED_BY_TASK:
        task: Any = "towers" if settings.task == "moments" else settings.task
        return model_source(find_model(settings.model, task)) | {"name": settings.model}
    return dict(model_source(settings.model, getattr(model.config, "_commit_hash", None)))


def _data(settings: Evaluation, rows: Dataset) -> dict[str, Any]:
    found = {
        "fingerprint": data_fingerprint(rows),
        "rows": len(rows),
        "source": settings.data,
        "split": settings.split,
    }
    listed = missing_list(settings.data, settings.output)
    if settings.videos is not None and listed is not None and listed.is_file():
        missing = len(listed.read_text(encoding="utf-8").splitlines())
        found |= {"videos_folder": str(settings.videos), "missing": missing}
    return found


def _draw(folder: Path, found: EvaluationOutcome, breakdown: Mapping[str, Any]) -> None:
    pictures = dict(found.pictures)
    if breakdown:
        pictures[BREAKDOWN_PICTURE] = lambda: plot_breakdown(dict(breakdown))
    for name, picture in pictures.items():
        figure = picture()
        write_whole(folder / name, partial(figure.savefig, format="png"))


__all__ = ["Evaluation", "EvaluationError", "evaluate"]
