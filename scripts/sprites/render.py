"""Render splits of the sprite world to mp4 files and annotations."""

import argparse
from pathlib import Path

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

examples:
  python scripts/sprites/render.py sprite_world                          # the three tests and validation
  python scripts/sprites/render.py sprite_world --split train --count 20000
  python scripts/sprites/render.py gallery --split test-hard --count 40 --size 224

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
        help="split to render; repeat for several (default: all but train)",
    )
    parser.add_argument("--count", type=int, help="clips per split (default: the whole split; required for train)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clips (default: 0)")
    parser.add_argument(
        "--size", type=int, default=128, help="side of the frames in pixels, an even number (default: 128)"
    )
    parser.add_argument("--num-frames", type=int, default=24, help="frames per clip (default: 24)")
    parser.add_argument("--fps", type=int, default=12, help="frames per second (default: 12)")
    parser.add_argument(
        "--captions-per-clip", type=int, help="captions per clip in retrieval.jsonl (default: 4, in the tests 1)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    arguments = parser.parse_args()
    for split in arguments.split or SPLIT_SIZES:
        try:
            folder = write_split(
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
        except SpriteWorldError as error:
            parser.error(str(error))
        print(folder)


if __name__ == "__main__":
    main()
