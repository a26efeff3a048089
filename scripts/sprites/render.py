"""Render splits of the sprite world, or films of many scenes, to mp4 files and annotations."""

import argparse
from pathlib import Path

from alpro_hf.sprites.films import write_films
from alpro_hf.sprites.render import write_split
from alpro_hf.sprites.world import SPLIT_SIZES, SPLITS, SpriteWorldError

EPILOG = """\
splits:
  train         as many clips as --count says
  validation    1,000 clips, new draws of the sprite-action combinations of train
  test          1,000 clips of combinations that train never shows; qa.jsonl adds a few clips with answers outside of
                the training list
  test-hard     250 groups of four clips with the same sprites and different actions, held-out combinations too
  test-unseen   200 clips of eight sprites that train never shows

Each split becomes a folder with clips/*.mp4, retrieval.jsonl, qa.jsonl, choices.jsonl and scenes.jsonl. To load one:
  datasets.load_dataset("json", data_files="OUTPUT/test/retrieval.jsonl")

With --films, many scenes follow each other in one file. Each split becomes a folder SPLIT-films with films/*.mp4 and
moments.jsonl: a caption of each scene, and the seconds between which it is shown. With --fade the folder is
SPLIT-fading-films.

examples:
  python scripts/sprites/render.py sprite_world                          # the three tests and validation
  python scripts/sprites/render.py sprite_world --split train --count 20000
  python scripts/sprites/render.py gallery --split test-hard --count 40 --size 224
  python scripts/sprites/render.py films --films --split test --count 60

To continue an interrupted run, start it again with the same arguments.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="parent folder; each split gets a folder of its own inside")
    parser.add_argument(
        "--split",
        action="append",
        choices=SPLITS,
        help="split to render; repeat for several (default: all but train; films: validation and test)",
    )
    parser.add_argument(
        "--count",
        type=int,
        help="clips per split (default: the whole split; required for train), or films (default: 60)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the clips (default: 0)")
    parser.add_argument(
        "--size", type=int, default=128, help="side of the frames in pixels, an even number (default: 128)"
    )
    parser.add_argument("--num-frames", type=int, default=24, help="frames per clip (default: 24)")
    parser.add_argument("--fps", type=int, default=12, help="frames per second (default: 12)")
    parser.add_argument(
        "--captions-per-clip", type=int, help="captions per clip in retrieval.jsonl (default: 4, in the tests 1)"
    )
    parser.add_argument("--films", action="store_true", help="films of many scenes instead of clips of one")
    parser.add_argument(
        "--scenes",
        type=int,
        nargs=2,
        default=(20, 40),
        metavar=("LEAST", "MOST"),
        help="with --films: number of scenes of a film (default: 20 40)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        nargs=2,
        default=(1.5, 6.0),
        metavar=("LEAST", "MOST"),
        help="with --films: length of a scene (default: 1.5 6)",
    )
    parser.add_argument(
        "--fade",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="with --films: a scene fades into the next in this time (default: 0, hard cuts)",
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    arguments = parser.parse_args()
    for split in arguments.split or (("validation", "test") if arguments.films else SPLIT_SIZES):
        try:
            print(_films(arguments, split) if arguments.films else _clips(arguments, split))
        except SpriteWorldError as error:
            parser.error(str(error))


def _clips(arguments: argparse.Namespace, split: str) -> Path:
    return write_split(
        arguments.output,
        split,
        arguments.count,
        arguments.seed,
        size=arguments.size,
        num_frames=arguments.num_frames,
        fps=arguments.fps,
        captions_per_clip=arguments.captions_per_clip,
        workers=arguments.workers,
    )


def _films(arguments: argparse.Namespace, split: str) -> Path:
    return write_films(
        arguments.output,
        split,
        60 if arguments.count is None else arguments.count,
        arguments.seed,
        scenes=tuple(arguments.scenes),
        seconds=tuple(arguments.seconds),
        size=arguments.size,
        fps=arguments.fps,
        fade=arguments.fade,
        workers=arguments.workers,
    )


if __name__ == "__main__":
    main()
