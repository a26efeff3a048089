"""Search a folder of videos with a sentence.

    python scripts/examples/search_folder.py holiday "a dog runs into the sea" --model MODEL

The first run encodes every video and stores the index in `holiday-index`. Later runs encode only new
and changed videos.
"""

import argparse
from pathlib import Path

from alpro_hf import VideoIndex
from alpro_hf.data.find_videos import find_videos
from alpro_hf.loading import load_model
from alpro_hf.trust import printable

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="folder of videos")
parser.add_argument("query", help="sentence that describes the video")
parser.add_argument("--model", default="bundled", help="folder, Hub id or 'bundled' (default: %(default)s)")
parser.add_argument("--index", type=Path, help="folder of the index (default: FOLDER-index)")
args = parser.parse_args()

model, processor = load_model("retrieval", args.model)
videos, unreadable = find_videos([args.folder])
directory = args.index or args.folder.with_name(f"{args.folder.name}-index")
index = VideoIndex.build(model, processor, videos, directory=directory)
for path, reason in [*unreadable, *index.report.failed]:
    print(printable(f"skipped {path}: {reason}"))

# similarity (VTC) finds the sixteen nearest videos; matching (VTM) re-ranks them, if the model has learned it
for result in index.search(args.query, top_k=5):
    match = "" if result.match_probability is None else f"{result.match_probability:6.1%}  "
    time = "" if result.start is None else f"{result.start:.0f} to {result.end:.0f} s  "  # a moment of a long video
    print(f"{result.rank}  {match}{result.similarity:.3f}  {time}{printable(result.path)}")
