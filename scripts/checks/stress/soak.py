"""Soak test of indexing, searching and the demo: look for growing memory, open files and leftover files.

    python scripts/checks/stress/soak.py --minutes 120 --output soak.jsonl

Each round builds an index from valid and broken clips, adds, changes and removes clips, and loads and searches the
index. It also sends valid and invalid requests to the demo, which runs in its own process. --output gets a line of
figures per round. At the end, the script prints the change from the second quarter of the rounds to the last. Caches
fill up in the first quarter, so it does not count.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import psutil
from load_space import Tally, requests, space, used

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, VideoIndex, bundled_model
from alpro_hf.data.isolated_decoder import IsolatedDecoder
from alpro_hf.sprites.render import write_clip
from alpro_hf.sprites.world import draw_scene

CLIPS = 24


def index_and_search(model: AlproForVideoTextRetrieval, processor: AlproProcessor, folder: Path,
                     decoder: IsolatedDecoder, draw: random.Random) -> None:  # fmt: skip
    """Build, extend, change, shrink, load, search and delete an index."""
    clips = sorted((folder / "clips").glob("*.mp4"))
    index = VideoIndex.build(model, processor, clips[: CLIPS // 2], directory=folder / "index", shard_size=4,
                             progress=False, decoder=decoder)  # fmt: skip
    index.add(clips, shard_size=4, progress=False, decoder=decoder)
    assert len(index.report.failed) == CLIPS // 6, index.report.failed
    os.utime(draw.choice(index.paths))  # a changed time alone makes the index encode a clip again
    index.add(clips, shard_size=4, progress=False, decoder=decoder)
    index.remove(draw.sample(index.paths, 3))
    found = VideoIndex.load(folder / "index", model, processor).search(["the tiger grows", "a bell bounces"], top_k=5)
    assert all(len(results) == 5 for results in found)
    shutil.rmtree(folder / "index")


def write_clips(folder: Path) -> None:
    """Write `CLIPS` clips; every sixth is cut in half."""
    folder.mkdir()
    for number in range(CLIPS):
        path = folder / f"{number:02}.mp4"
        write_clip(path, draw_scene("test", 0, number), size=64)
        if number % 6 == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Means of the second and of the last quarter."""
    quarter = max(len(values) // 4, 1)
    return mean(values[quarter : 2 * quarter] or values), mean(values[-quarter:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120, help="duration (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("soak.jsonl"),
        help="file for the figures of each round (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=17800, help="port of the demo (default: %(default)s)")
    args = parser.parse_args()
    from gradio_client import Client

    source = bundled_model("retrieval")
    model, processor = AlproForVideoTextRetrieval.from_pretrained(source), AlproProcessor.from_pretrained(source)
    draw, rounds, tally = random.Random(0), [], Tally()
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        space(args.port, Path(name)) as (address, process),
        IsolatedDecoder(deadline=60) as decoder,
        args.output.open("w") as output,
    ):
        folder = Path(name)
        write_clips(folder / "clips")
        kinds, client = requests(folder), Client(address, verbose=False)
        while not rounds or time.monotonic() - start < 60 * args.minutes:
            index_and_search(model, processor, folder, decoder, draw)
            for kind, (good, call) in kinds.items():
                tally.ask(kind, good, call, client)
            own = psutil.Process()  # the index lives in this process, the demo in another
            figures = {
                "minutes": round((time.monotonic() - start) / 60, 2),
                "index_mb": own.memory_info().rss >> 20,
                "index_files": own.num_fds(),
                **{f"space_{what}": value for what, value in used(process).items()},
                "temporary_files": sum(len(files) for _, _, files in os.walk(folder)),
            }
            rounds.append(figures)
            output.write(json.dumps(figures) + "\n")
            output.flush()  # readable while the test runs, and after an abort
    tally.show()
    print(
        f"{len(rounds)} rounds in {(time.monotonic() - start) / 60:.1f} minutes; means of the second and last quarter:"
    )
    for what in rounds[0]:
        if what != "minutes":
            before, after = trend([one[what] for one in rounds])
            print(f"  {what:<16} {before:8.1f} {after:8.1f}  {after - before:+.1f}")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
