"""`alpro index`: encode every video once and keep what a search needs."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..loading import BUNDLED, load_model
from ..trust import printable
from .options import DTYPES, add_limit_options, add_window_options, nonblank, video_limits, whole_number
from .videos import (
    WHAT_IS_A_VIDEO,
    add_decoding_options,
    expected_errors,
    failed_json,
    find_some_videos,
    list_failed,
    note_unfamiliar,
    say_what_it_is,
    shown,
)

EPILOG = f"""\
{WHAT_IS_A_VIDEO}
Started again, the command applies changes: new and changed videos (other size or modification time) are encoded,
deleted ones are removed, and all others are left alone. An interrupted run continues in the same way. Videos that
cannot be decoded are listed at the end, and with their reasons in INDEX/failed.jsonl; the next run tries them again.
Videos are decoded in separate processes, so a video that crashes or hangs its decoder only counts as failed.

A video of more than 30 s is cut into windows of 15 and 7.5 s that end at cuts and fades, so that a search says when
something happens. It is decoded once, forward, and memory does not grow with its length.

An index may be moved, and it may cover several folders. It notes its model, data type, frames, size and windows; later
runs and searches use the same. On a CPU most of the time goes into the model: fewer and smaller frames shorten it.

alpro search in a folder keeps an index of it in the cache of the user. --list shows these indexes. --remove deletes
the one of a name that --list prints, or those of a folder that was searched. It deletes nothing else.

examples:
  alpro index holiday --output holiday-index
  alpro index talks films/*.mkv --output my-index --model my-alpro --batch-size 16
  alpro index films --output my-index --model my-alpro --num-frames 4 --size 224
  alpro index match.mp4 --output match-index --window 10 --stride 2
  alpro index films --output my-index --window scenes       with pip install "alpro-hf[scenes]"
  accelerate launch --num_processes 4 -m alpro_hf index films --output my-index    four processes, one index
  alpro index --list
  alpro index --remove holiday
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options of `alpro index` to a parser."""
    parser.epilog = EPILOG
    parser.set_defaults(
        expected_errors=expected_errors,
        when_stopped="what is done is kept, and the same command continues from there",
    )
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("paths", nargs="*", type=Path, metavar="DIR", help="folders, or single videos")
    parser.add_argument("--output", type=Path, metavar="INDEX", help="folder of the index")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--list", action="store_true", help="list the indexes that alpro search keeps in the cache")
    kept.add_argument("--remove", type=nonblank, metavar="NAME|DIR", help="delete such an index, or those of a folder")
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=8, metavar="N", help="videos encoded at a time (default: 8)"
    )
    parser.add_argument(
        "--shard-size",
        type=whole_number(1),
        default=64,
        metavar="N",
        help="videos in each file of the index; a crash loses at most as many (default: 64)",
    )
    add_decoding_options(parser)
    parser.add_argument(
        "--num-frames",
        type=whole_number(1),
        metavar="N",
        help="frames of a video; fewer are quicker (default: as the index was made, or as the model's processor)",
    )
    parser.add_argument(
        "--size",
        type=whole_number(1),
        metavar="S",
        help="height and width of a frame in pixels, a multiple of the model's patches; smaller is quicker (default: "
        "as for --num-frames)",
    )
    add_window_options(parser, "that of the index, or 15,7.5")
    add_limit_options(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="data type of the model; auto: bfloat16 where the hardware supports it, else float32; int8: "
        "weights of 8 bits, quicker on a CPU (default: that of the index, or auto)",
    )
    parser.add_argument(
        "--token-dtype",
        choices=("float8_e4m3fn",),
        help="keep what re-ranking reads in 8 bits a number: a quarter of the disk space of float32, and scores "
        "change a little (default: as the index was made, or as the model)",
    )
    parser.add_argument("--model", metavar="M", help="folder, Hub id or 'bundled' (default: the bundled one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro index`; 1 if some videos could not be used."""
    if args.list or args.remove is not None:
        if args.paths or args.output:
            args.usage_error("--list and --remove stand alone, without DIR and --output")
        return _list_cached(args) if args.list else _remove_cached(args)
    if not args.paths or args.output is None:
        args.usage_error("name the folders of videos, and the folder of the index with --output")
    from ..data.isolated_decoder import IsolatedDecoder
    from ..evaluation.unfamiliar import sample_of, unfamiliar_videos
    from ..inference.index_frames import made_with
    from ..inference.index_shards import FAILED, MANIFEST, Manifest
    from ..inference.video_index import VideoIndex

    videos, failed = find_some_videos(args.paths)
    name = _lasting_name(BUNDLED if args.model is None else args.model)
    dtype = args.dtype or "auto"
    if args.dtype is None and (args.output / MANIFEST).is_file():
        # an index made elsewhere is continued as it began; its root does not matter here
        dtype = Manifest.read(args.output, allow_outside=True).model["dtype"]
    model, processor = load_model("retrieval", name, dtype)
    if os.environ.get("RANK", "0") == "0":
        say_what_it_is(name, model)
    first = True
    with IsolatedDecoder(deadline=args.deadline, limits=video_limits(args)) as decoder:
        options: dict[str, Any] = {
            "decoder": decoder,
            "allow_outside": args.allow_outside,
            "batch_size": args.batch_size,
            "shard_size": args.shard_size,
            "name": name,
            "num_frames": args.num_frames,
            "size": args.size,
            "window": args.window,
            "stride": args.stride,
            "token_dtype": args.token_dtype,
        }
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by accelerate launch or torchrun
            from accelerate import PartialState

            from ..inference.index_parallel import build_in_processes

            state = PartialState(cpu=model.device.type == "cpu")
            first = state.is_main_process
            index = build_in_processes(model.to(state.device), processor, videos, args.output, state, **options)
        else:
            index = VideoIndex.build(model, processor, videos, directory=args.output, **options)
        unfamiliar = unfamiliar_videos(model, sample_of(index.report.indexed) if first else [], decoder)
    if not first:  # the first process reports for all
        return 0
    failed += index.report.failed
    gone = index.missing()
    index.remove(gone)
    result = {
        "index": str(args.output),
        "videos": len(index.paths),
        "windows": len(index),
        "dtype": index.model_facts["dtype"],
        **{name: made_with(index.video_settings, name) for name in ("num_frames", "size")},
        "indexed": len(index.report.indexed),
        "unchanged": len(index.report.unchanged),
        "removed": [str(path) for path in gone],
        "failed": failed_json(failed),
        "unfamiliar": [str(path) for path in unfamiliar],
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        cut = f", {len(index)} windows" if len(index) > len(index.paths) else ""
        print(f"{printable(args.output)}: {len(index.paths)} videos{cut}")
        print(f"{result['indexed']} indexed, {result['unchanged']} unchanged, {len(gone)} gone, {len(failed)} failed")
    note_unfamiliar(args, unfamiliar)
    for path in gone:
        print(f"gone: {shown(path)}", file=sys.stderr)
    if index.report.failed:
        print(f"all failures are listed in {printable(args.output / FAILED)}", file=sys.stderr)
    return list_failed(failed)


def _list_cached(args: argparse.Namespace) -> int:
    from ..inference.cached_index import as_json, cache_folder, cached_indexes

    kept = cached_indexes()
    if args.json:
        print(json.dumps({"cache": str(cache_folder()), "indexes": [as_json(one) for one in kept]}, indent=1))
        return 0
    width = max([len(one.name) for one in kept] + [4])
    print(f"{'name':{width}}  videos      MB  model and folder")
    for one in kept:
        videos = "damaged" if one.videos is None else str(one.videos)
        about = f"{printable(one.model)}  {printable(one.folder)}"
        print(f"{printable(one.name):{width}}  {videos:>6}  {one.size / 1e6:6.1f}  {about}")
    print(f"{len(kept)} in {cache_folder()}", file=sys.stderr)
    return 0


def _remove_cached(args: argparse.Namespace) -> int:
    from ..inference.cached_index import as_json, remove_cached

    removed = remove_cached(args.remove)
    if args.json:
        print(json.dumps({"removed": [as_json(one) for one in removed]}, indent=1))
    else:
        for one in removed:
            print(f"removed {printable(one.name)}, of {printable(one.folder)}")
    return 0


def _lasting_name(model: str) -> str:
    """The name of a model as an index keeps it: searches may start in another directory, so folders are absolute."""
    return os.path.abspath(model) if model != BUNDLED and Path(model).is_dir() else model
