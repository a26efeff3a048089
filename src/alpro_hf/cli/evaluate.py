"""`alpro evaluate`: measure a model on a benchmark or on rows of your own."""

import argparse
import sys
from pathlib import Path

from ..evaluation.breakdown import GROUP_COLUMNS, WORDS
from ..evaluation.results import RESULTS, Results
from ..evaluation.settings import (
    DEFAULT_PROTOCOL,
    DEFAULT_RERANK_K,
    EVALUATED_TASKS,
    MOMENT_GALLERIES,
    RETRIEVAL_PROTOCOLS,
    Evaluation,
)
from ..loading import BUNDLED
from ..trust import printable
from .options import DTYPES, number_from_zero, whole_number
from .videos import note_unfamiliar

_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
# prefix of the metrics of a variant -> its description
_VARIANTS = {"": "", "vtc": "towers alone", "with_prior": "with similarity", "without_prior": "without similarity"}
# task -> the metric of a group, and its name
_LEADING = {"retrieval": ("t2v_r1", "R@1"), "qa": ("accuracy", "accuracy"), "moments": ("r1_iou_0.5", "R@1, IoU 0.5")}
_RETRIEVAL_TITLES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "r50": "R@50",
    "median_rank": "median",
    "mean_rank": "mean",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro evaluate` to a parser."""
    parser.set_defaults(expected_errors=_expected_errors)
    parser.usage = (
        f"alpro evaluate --task {{{','.join(EVALUATED_TASKS)}}} --data ROWS [--videos DIR] [--model M] --output DIR\n"
        f"                      [--protocol {{{','.join(RETRIEVAL_PROTOCOLS)}}}] [options]"
    )
    parser.description = (
        "Measure a model on a benchmark, or on rows of your own. DIR receives results.json (metrics with 95 %\n"
        "intervals and everything they depend on: protocol, weights, data, versions, command), predictions.jsonl (a\n"
        "row for every query or question) and pictures: recall against rank, R@1 against the number of re-ranked\n"
        "candidates, metrics by group. alpro compare tests whether two such folders differ by more than chance.\n\n"
        "ROWS are a file or folder: JSON lines, CSV, Parquet, or a folder written by save_to_disk. The columns are\n"
        "video and text; or video, question, answer (optional: answer_type); for moments, video, text and windows,\n"
        "a list of [start, end] in seconds. Paths are relative to the working directory.\n"
        "Or ROWS are KIND:PATH, annotations in a published format; --videos names the folder of the clips:\n"
        "  released-retrieval, released-qa            the files released with ALPRO\n"
        "  msrvtt-1ka, msrvtt, msvd, didemo, webvid   captions\n"
        "  msrvtt-qa, msvd-qa                         questions\n"
        "  qvhighlights, charades-sta,\n"
        "  didemo-moments, activitynet-captions       moments\n"
        "  table                                      CSV, JSON lines, Parquet, or a folder with metadata.csv; with\n"
        "                                             columns start and end (seconds) also for moments"
    )
    parser.epilog = (
        "protocols of retrieval:\n"
        "  reference  the matching head scores every text with every clip: the tables of the paper\n"
        "  rerank     the K candidates with the highest cosine similarity are reordered by matching logit plus\n"
        "             similarity: the second published protocol, and what alpro search does; --no-prior leaves the\n"
        "             similarity out of the sum\n"
        "  vtc        cosine similarity of the two towers alone: the fastest, and the only protocol for models\n"
        "             without a matching head\n"
        "With reference and rerank, the results also contain the metrics of vtc (prefix vtc_) and of re-ranking with\n"
        "or without the similarity (prefix with_prior_ or without_prior_).\n"
        "Question answering has one protocol: the most probable of the answers that the model knows. A question\n"
        "whose answer the model does not know counts as wrong.\n"
        "Moments are windows of the videos, ranked by cosine similarity; of two that overlap by more than half, the\n"
        "better one stays. With --gallery own, they are those of the video that the text is about, as the data sets\n"
        "define the task; with --gallery all, those of all videos. r5_iou_0.5 is the share of texts of which one of\n"
        "the first 5 moments overlaps with a right one by at least 0.5 (intersection over union).\n\n"
        "examples:\n"
        "  alpro evaluate --task retrieval --data released-retrieval:txt/test.jsonl --videos videos \\\n"
        "      --model alpro-msrvtt --protocol reference --text-length 40 --output results/msrvtt\n"
        "  alpro evaluate --task qa --data msvd-qa:test_qa.json --video-names youtube_mapping.txt --videos videos \\\n"
        "      --model alpro-msvd-qa --output results/msvd-qa\n"
        "  alpro evaluate --task moments --data qvhighlights:highlight_val_release.jsonl --videos videos \\\n"
        "      --model alpro-msrvtt --window 30 10 --output results/qvhighlights\n"
        "  alpro evaluate --task retrieval --data my.jsonl --model my-model --by camera --output results/my\n"
        "on 8 GPUs, with the same result, either of:\n"
        "  torchrun --nproc_per_node 8 -m alpro_hf evaluate ...\n"
        "  accelerate launch --num_processes 8 -m alpro_hf evaluate ..."
    )
    parser.add_argument(
        "--task",
        required=True,
        choices=EVALUATED_TASKS,
        help="text-video retrieval, question answering (qa), or moments",
    )
    parser.add_argument("--data", required=True, metavar="ROWS", help="a file or folder, or KIND:PATH; see above")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that DIR already holds")
    data = parser.add_argument_group("data")
    data.add_argument("--videos", type=Path, metavar="DIR", help="KIND:PATH: folder of the clips")
    data.add_argument("--split", metavar="NAME", help="split of the data, where it has several")
    data.add_argument(
        "--video-names",
        type=Path,
        metavar="FILE",
        help="KIND:PATH: file with lines '<name> <id>', such as youtube_mapping.txt of MSVD",
    )
    data.add_argument(
        "--on-missing",
        choices=("drop", "error"),
        help="KIND:PATH: what to do about clips that do not exist (default: drop their rows, and list them in DIR)",
    )
    data.add_argument(
        "--allow-outside",
        action="store_true",
        help="KIND:PATH: accept clips outside of their folder, reached by .., links or absolute paths",
    )
    data.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help=f"group the metrics by these columns, besides {', '.join(GROUP_COLUMNS)} and the number of {WORDS}",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", default=Evaluation.model, metavar="M", help=f"folder, Hub id or {BUNDLED!r} (default: {BUNDLED})"
    )
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id (default: main)")
    model.add_argument(
        "--num-frames", type=whole_number(1), metavar="N", help="frames of a clip (default: as the model's processor)"
    )
    model.add_argument(
        "--text-length",
        type=whole_number(3),
        metavar="N",
        help="tokens after which a text is cut (default: as the model's tokenizer)",
    )
    protocol = parser.add_argument_group("protocol (retrieval only)")
    protocol.add_argument(
        "--protocol",
        choices=RETRIEVAL_PROTOCOLS,
        help=f"see below (default: {DEFAULT_PROTOCOL}, or vtc for a model that cannot match)",
    )
    protocol.add_argument(
        "--rerank-k",
        type=whole_number(1),
        metavar="K",
        help=f"rerank: number of candidates (default: {DEFAULT_RERANK_K})",
    )
    protocol.add_argument(
        "--rerank-margin",
        type=number_from_zero,
        metavar="M",
        help="rerank: leave out candidates that are less similar than the best one by more than M; 0.05 matches a "
        "quarter as many for the bundled model (default: none)",
    )
    protocol.add_argument(
        "--no-prior", action="store_true", help="rerank: order by the matching logit alone, without the similarity"
    )
    moments = parser.add_argument_group("moments only")
    moments.add_argument(
        "--gallery",
        choices=MOMENT_GALLERIES,
        help="windows that a text is compared with: of its own video, or of all (default: own)",
    )
    moments.add_argument(
        "--window",
        nargs="+",
        type=_seconds_or_scenes,
        metavar="SECONDS",
        help="length of a window; of several lengths, each cuts the whole video; scenes: the scenes of PySceneDetect "
        "(default: 15 7.5)",
    )
    moments.add_argument(
        "--stride",
        type=float,
        metavar="SECONDS",
        help="time between the starts of the longest windows; shorter ones have the same share (default: half)",
    )
    moments.add_argument("--no-cuts", action="store_true", help="let windows reach over cuts and fades")
    moments.add_argument("--join", action="store_true", help="join neighbouring windows of about the same similarity")
    moments.add_argument("--trim", action="store_true", help="cut off ends of moments where the similarity is lower")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=Evaluation.batch_size,
        metavar="N",
        help="clips, or windows, encoded at a time (default: %(default)s)",
    )
    work.add_argument(
        "--pair-batch-size",
        type=whole_number(1),
        metavar="N",
        help="retrieval: pairs matched at a time (default: 256; on a CPU, as many as fit its cache)",
    )
    work.add_argument(
        "--workers",
        type=whole_number(0),
        default=Evaluation.workers,
        metavar="N",
        help="processes that decode ahead of the model (default: %(default)s, a thread of the main process does)",
    )
    work.add_argument(
        "--dtype",
        choices=DTYPES,
        default=Evaluation.dtype,
        help="precision of the model; bfloat16 rounds, auto takes bfloat16 if the device has it in hardware, int8 "
        "rounds the weights to 8 bits, which is quicker on a CPU "
        "(default: %(default)s)",
    )
    work.add_argument(
        "--draws",
        type=whole_number(1),
        default=Evaluation.draws,
        metavar="N",
        help="resamples of the bootstrap behind the intervals (default: %(default)s)",
    )
    work.add_argument("--no-plot", action="store_true", help="draw no pictures, which need matplotlib")
    work.add_argument("--json", action="store_true", help="print results.json instead of a table")


def _seconds_or_scenes(text: str) -> float | str:
    """What `--window` says."""
    if text == "scenes":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seconds nor scenes") from None


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors that users can cause: wrong settings, rows that cannot be read, clips that cannot be decoded."""
    from datasets.exceptions import DatasetsError

    return ValueError, DatasetsError


def settings_of(args: argparse.Namespace) -> Evaluation:
    """The settings that parsed arguments of `alpro evaluate` stand for."""
    return Evaluation(
        task=args.task,
        data=args.data,
        output=args.output,
        overwrite=args.overwrite,
        videos=args.videos,
        split=args.split,
        video_names=args.video_names,
        on_missing=args.on_missing,
        allow_outside=args.allow_outside,
        by=args.by,
        model=args.model,
        revision=args.revision,
        num_frames=args.num_frames,
        text_length=args.text_length,
        protocol=args.protocol,
        rerank_k=args.rerank_k,
        rerank_margin=args.rerank_margin,
        prior=not args.no_prior,
        gallery=args.gallery,
        window="scenes" if args.window == ["scenes"] else args.window,
        stride=args.stride,
        cuts=not args.no_cuts,
        join=args.join,
        trim=args.trim,
        batch_size=args.batch_size,
        pair_batch_size=args.pair_batch_size,
        workers=args.workers,
        dtype=args.dtype,
        draws=args.draws,
        plot=not args.no_plot,
        command=args.command_line,
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro evaluate`.

    Returns:
        0, or 1 if some clips could not be decoded; they are named on stderr.
    """
    from ..evaluation.encode import processes
    from ..evaluation.run import evaluate

    results = evaluate(settings_of(args))
    state = processes()
    if state.num_processes > 1:
        state.destroy_process_group()
    if results is None:  # the first process reports for all
        return 0
    if args.json:
        print((args.output / RESULTS).read_text(encoding="utf-8"), end="")
    else:
        print("\n".join(map(printable, report(results).split("\n"))))
        print(f"\nresults in {printable(args.output)}")
    note_unfamiliar(args, list(map(Path, results.details["unfamiliar"])))
    skipped = results.details["skipped"]
    for clip in skipped:
        print(printable(f"failed: {clip['video']} ({clip['rows']} rows): {clip['reason']}"), file=sys.stderr)
    return 1 if skipped else 0


def report(results: Results) -> str:
    """Results as text: model, data and protocol, a table with intervals, the groups, and what is missing."""
    protocol, data = dict(results.protocol), results.data
    counted = {"qa": ("questions",), "moments": ("queries", "windows")}.get(results.task, ("texts",))
    size = ", ".join(f"{data[name]} {name}" for name in counted)
    settings_of_task = (
        "rerank_k",
        "rerank_margin",
        "prior",
        "gallery",
        "windows",
        "stride",
        "cuts",
        "join",
        "trim",
        "num_frames",
        "text_length",
    )
    named = [key for key in settings_of_task if key in protocol]
    settings = "".join(f", {key} {protocol[key]}" for key in named)
    lines = [
        f"{results.model['name']} on {data['source']}: {size}, {data['videos']} videos",
        f"protocol {protocol['name']}{settings}",
        "",
    ]
    lines += _retrieval_lines(results) if results.task == "retrieval" else _metric_lines(results)
    for column, groups in results.details["breakdown"].items():
        lines += ["", f"by {column}"]
        name, shown = _LEADING[results.task]
        for group, found in groups.items():
            low, high = found["interval"]
            lines.append(f"  {group:20} n {found['n']:6}  {shown} {found[name]:5.1f}  [{low:.1f}, {high:.1f}]")
    if data.get("missing"):
        lines += ["", f"{data['missing']} clips are missing, so these numbers are of a part of the data only."]
    return "\n".join(lines)


def _retrieval_lines(results: Results) -> list[str]:
    lines = [f"{'':34}" + "".join(f"{title:>9}" for title in _RETRIEVAL_TITLES.values())]
    for prefix, variant in _VARIANTS.items():
        for way, name in _DIRECTIONS.items():
            stem = f"{prefix}_{way}" if prefix else way
            if f"{stem}_r1" not in results.metrics:
                continue
            title = f"{name}, {variant}" if variant else name
            values = [results.metrics[f"{stem}_{key}"] for key in _RETRIEVAL_TITLES]
            lines.append(f"{title:34}" + "".join(f"{value:9.1f}" for value in values))
            for bound, place in (("  95 % interval from", 0), ("  to", 1)):
                if f"{stem}_r1" in results.intervals:
                    values = [results.intervals[f"{stem}_{key}"][place] for key in _RETRIEVAL_TITLES]
                    lines.append(f"{bound:34}" + "".join(f"{value:9.1f}" for value in values))
    return lines


def _metric_lines(results: Results) -> list[str]:
    lines = []
    for name, value in results.metrics.items():
        interval = results.intervals.get(name)
        shown = f"{value:8.1f}" + (f"  [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")
        lines.append(f"{name:24}{shown}")
    return lines
