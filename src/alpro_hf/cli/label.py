"""`alpro label`: name what each moment of videos shows, with labels of a list."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..data.spans import span_text
from ..loading import BUNDLED, CommandError, load_model
from .options import DTYPES, add_limit_options, add_window_options, nonblank, video_limits, whole_number
from .videos import (
    WHAT_IS_A_VIDEO,
    add_decoding_options,
    failed_json,
    find_some_videos,
    list_failed,
    note_unfamiliar,
    note_unknown_words,
    shown,
)
from .videos import expected_errors as errors_of_videos

LOOKED_AT = 16  # videos that are checked against what the model knows
EPILOG = f"""\
The file of labels has one on each line. Each label becomes a text by the template and is compared with the video. The
probabilities are those among the labels of the list, also if none of them fits.

A video of up to 30 s is one clip. Longer ones are cut into windows of some seconds, which end at cuts of the film.

{WHAT_IS_A_VIDEO}
examples:
  alpro label holiday --labels labels.txt
  alpro label film.mp4 --labels labels.txt --template "a video of {{}}" --top 3
  alpro label film.mp4 --labels labels.txt --window 4 --stride 2
  alpro label holiday --labels labels.txt --json | jq -r '.results[] | [.path, .labels[0].label] | @tsv'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro label` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(expected_errors=expected_errors)
    parser.add_argument("paths", nargs="+", type=Path, metavar="DIR", help="folders, or single videos")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="a text file, one label a line")
    parser.add_argument(
        "--template", type=nonblank, default="{}", help="text of a label, with {} in its place (default: the label)"
    )
    parser.add_argument("--top", type=whole_number(1), default=1, metavar="N", help="labels to show (default: 1)")
    add_decoding_options(parser)
    add_window_options(parser, "15,7.5")
    add_limit_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the model (default: float32)")
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the bundled one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors of videos and labels that a user can cause; see `cli/main.py`."""
    from ..data.tables import AnnotationError
    from ..data.window_choice import WindowError
    from ..inference.label_moments import LabelError

    return (*errors_of_videos(), AnnotationError, LabelError, WindowError)


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro label`; 1 if some videos could not be used."""
    from ..data.isolated_decoder import IsolatedDecoder
    from ..data.tables import read_lines
    from ..data.window_choice import window_settings
    from ..evaluation.unfamiliar import unfamiliar_videos, unknown_words
    from ..files import inside
    from ..inference.label_moments import Labeller
    from ..model.decoding_types import VideoDecodeError

    windows = window_settings(args.window, args.stride)
    labels = [label for _, label in read_lines(args.labels)]
    if not labels:
        raise CommandError(f"{args.labels} holds no label. Write one on each line.")
    videos, failed = find_some_videos(args.paths)
    name = BUNDLED if args.model is None else args.model
    model, processor = load_model("retrieval", name, args.dtype)
    labeller = Labeller(model, processor, labels, args.template)
    words = list(dict.fromkeys(word for text in labeller.texts for word in unknown_words(model, processor, text)))
    results: list[dict[str, Any]] = []
    folders = [path for path in args.paths if path.is_dir()]
    with IsolatedDecoder(deadline=args.deadline, limits=video_limits(args)) as decoder:
        for video in videos:
            within = video in args.paths or any(inside(video, folder) for folder in folders)
            if not (args.allow_outside or within):
                failed.append((video, "it is a link that leads out of its folder; --allow-outside takes it"))
                continue
            try:
                for moment in labeller.label(video, top=args.top, settings=windows, decoder=decoder):
                    start, end = (None, None) if moment.span is None else (moment.span.start, moment.span.end)
                    found = [{"label": label, "probability": probability} for label, probability in moment.labels]
                    results.append({"path": str(video), "start": start, "end": end, "labels": found})
                    if not args.json:
                        _print(results[-1])
            except VideoDecodeError as error:
                failed.append((video, f"{error.problem}. {error.advice}"))
            except OSError as error:
                failed.append((video, error.strerror or str(error)))
        used = list(dict.fromkeys(Path(result["path"]) for result in results))
        unfamiliar = unfamiliar_videos(model, used[:: max(1, len(used) // LOOKED_AT)][:LOOKED_AT], decoder)
    if args.json:
        output = {
            "model": name,
            "template": args.template,
            "results": results,
            "failed": failed_json(failed),
            "unknown_words": words,
            "unfamiliar": [str(path) for path in unfamiliar],
        }
        print(json.dumps(output, indent=1))
    note_unknown_words(args, words)
    note_unfamiliar(args, unfamiliar)
    return list_failed(failed)


def _print(result: dict[str, Any]) -> None:
    """One line a moment: time, video, labels with their probabilities."""
    time = "-" if result["start"] is None else span_text(result["start"], result["end"])
    labels = ", ".join(f"{one['label']} {one['probability']:.1%}" for one in result["labels"])
    print(f"{time:17}  {shown(Path(result['path']))}  {labels}", flush=True)
