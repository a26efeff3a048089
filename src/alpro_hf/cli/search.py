"""TODO docstring."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..loading import BUNDLED, CommandError, load_model
from .options import complain, exit_code_of, reason_of

WHAT_IS_A_VIDEO = """\
In a folder, a file is a video if its extension is a well-known one of videos (.mp4, .mkv, .avi, ...) or if its first
bytes are those of a video container, whatever it is called. Hidden files and folders are passed over.
"""


INDEX_EPILOG = f"""\
{WHAT_IS_A_VIDEO}
Started again, the command takes up changes: new and changed videos (other size or time of change) are encoded, those
that are gone are dropped, all others are left alone. That is also how an interrupted run goes on. Videos that cannot
be decoded are listed at the end, and with their reasons in INDEX/failed.jsonl, and tried again next time. Decoding
runs in processes of its own, so that a video that crashes or hangs it is one of those.

An index may be moved, and be made from several folders.

examples:
  alpro index holiday --output holiday-index
  alpro index talks films/*.mkv --output my-index --model my-alpro --batch-size 16
  accelerate launch --num_processes 4 -m alpro_hf index films --output my-index    four processes, one index
"""


SEARCH_EPILOG = """\
First all videos are ordered by the cosine similarity of video and query (column "similarity"); then the best K are
reordered by the sum of similarity and matching logit of a second, slower look at video and query together (column
"match" is the probability it gives). An index remembers its model, so --model is rarely needed with one.

examples:
  alpro search holiday-index "two people dance" --top-k 5
  alpro search holiday-index "two people dance" --rerank 0 --json | jq -r '.results[].path'
"""


ASK_EPILOG = """\
The answers come from the closed list that the model was trained with.

examples:
  alpro ask clip.mp4 "which way does the fox move?"
  alpro ask clip.mp4 "how many animals are there?" --top-k 1 --json
"""


def _index(args: argparse.Namespace) -> int:
    from ..data.isolated_decoder import IsolatedDecoder
    from ..inference.index_shards import FAILED
    from ..inference.video_index import VideoIndex

    videos, failed = _find_videos(args.paths)
    name = _lasting_name(args.model or BUNDLED)
    model, processor = load_model("retrieval", name, args.dtype)
    sizes = {"batch_size": args.batch_size, "shard_size": args.shard_size, "name": name}
    first = True
    try:
        with IsolatedDecoder(deadline=args.deadline) as decoder:
            options: dict[str, Any] = {"decoder": decoder, "allow_outside": args.allow_outside, **sizes}
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by accelerate launch or torchrun
                from accelerate import PartialState

                from ..inference.index_parallel import build_in_processes

                state = PartialState(cpu=model.device.type == "cpu")
                first = state.is_main_process
                index = build_in_processes(model.to(state.device), processor, videos, args.output, state, **options)
            else:
                index = VideoIndex.build(model, processor, videos, directory=args.output, **options)
    except KeyboardInterrupt as stopped:
        kept = "what is done is kept, and the same command goes on from there"
        return complain(args, f"{reason_of(stopped)}; {kept}", code=exit_code_of(stopped))
    if not first:  # one process speaks for all
        return 0
    failed += index.report.failed
    gone = index.missing()
    index.remove(gone)
    result = {
        "index": str(args.output),
        "videos": len(index),
        "indexed": len(index.report.indexed),
        "unchanged": len(index.report.unchanged),
        "removed": [str(path) for path in gone],
        "failed": _failed_json(failed),
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{args.output}: {len(index)} videos")
        print(f"{result['indexed']} indexed, {result['unchanged']} unchanged, {len(gone)} gone, {len(failed)} failed")
    for path in gone:
        print(f"gone: {_shown(path)}", file=sys.stderr)
    if index.report.failed:
        print(f"all that failed are listed in {args.output / FAILED}", file=sys.stderr)
    return _list_failed(failed)


def _search(args: argparse.Namespace) -> int:
    from ..data.isolated_decoder import IsolatedDecoder
    from ..inference.index_shards import MANIFEST, Manifest
    from ..inference.video_index import VideoIndex

    outside = args.allow_outside

    failed: list[tuple[Path, str]] = []
    if (args.where / MANIFEST).is_file():
        made = Manifest.read(args.where).model
        name = args.model or made["name"]
        loaded = load_model("retrieval", name, args.dtype or made["dtype"])
        index = VideoIndex.load(args.where, *loaded, name=name, allow_outside=outside)
    else:
        videos, failed = _find_videos([args.where])
        name = args.model or BUNDLED
        model, processor = load_model("retrieval", name, args.dtype)
        with IsolatedDecoder(deadline=args.deadline) as decoder:
            index = VideoIndex.build(model, processor, videos, allow_outside=outside, decoder=decoder)
        failed += index.report.failed
    if not len(index):
        _list_failed(failed)
        raise CommandError(f"there is no usable video in {args.where}.")
    nearest = None
    if args.ann:
        from ..inference.index_faiss import FILE, AnnSearch, build_ann

        if index.folder is None:
            raise CommandError(f"--ann needs an index; make one with alpro index {args.where} --output INDEX.")
        if find_spec("faiss") is None:
            raise CommandError('--ann needs FAISS, which is not installed: pip install "alpro-hf[faiss]"')
        if not (index.folder / FILE).exists() or (index.folder / FILE).stat().st_mtime_ns < index.changed_ns():
            print(f"building {index.folder / FILE} ...", file=sys.stderr)
            build_ann(index)
        nearest = AnnSearch(index).nearest
    results = index.search(args.query, top_k=args.top_k, rerank=args.rerank, nearest=nearest)
    if args.json:
        found = [
            {
                "rank": result.rank,
                "path": str(result.path),
                "score": result.score,
                "similarity": result.similarity,
                "match_probability": result.match_probability,
            }
            for result in results
        ]
        shown = {"query": args.query, "model": name, "results": found, "failed": _failed_json(failed)}
        print(json.dumps(shown, indent=1))
    else:
        print("rank   match  similarity  video")
        for result in results:
            match = "-" if result.match_probability is None else f"{result.match_probability:.1%}"
            print(f"{result.rank:4}  {match:>6}  {result.similarity:10.3f}  {_shown(result.path)}")
    return _list_failed(failed)


def _ask(args: argparse.Namespace) -> int:
    from ..inference.question_answering import ask

    if not args.video.is_file():
        raise CommandError(f"there is no file {str(args.video)!r}.")
    model, processor = load_model("qa", args.model or BUNDLED)
    [answers] = ask(model, processor, args.video, [args.question], top_k=args.top_k)
    if args.json:
        listed = [{"answer": answer.answer, "probability": answer.probability} for answer in answers]
        print(json.dumps({"video": str(args.video), "question": args.question, "answers": listed}, indent=1))
    else:
        for answer in answers:
            print(f"{answer.probability:6.1%}  {answer.answer}")
    return 0


def _find_videos(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, str]]]:
    from ..data.find_videos import find_videos

    videos, failed = find_videos(paths)
    if not videos:
        _list_failed(failed)
        raise CommandError(f"there is no video in {', '.join(map(str, paths))}. {WHAT_IS_A_VIDEO}")
    return videos, failed


def _lasting_name(model: str) -> str:
    """A name that an index may keep: of a local folder, the absolute path."""
    return os.path.abspath(model) if model != BUNDLED and Path(model).is_dir() else model


def _shown(path: Path) -> str:
    """Relative to the working directory if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _failed_json(failed: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    return [{"path": str(path), "reason": reason} for path, reason in failed]


def _list_failed(failed: Sequence[tuple[Path, str]]) -> int:
    """Name on stderr the videos that could not be used; the exit code that says whether there were any."""
    for path, reason in failed:
        print(f"failed: {_shown(path)}: {reason}", file=sys.stderr)
    return 1 if failed else 0
