"""Search a folder of videos with a sentence.

    python scripts/examples/search_folder.py holiday "a dog runs into the sea" --model MODEL

The first run encodes every video and stores the index in `holiday-index`. Later runs encode only new
and changed videos.
"""

import argparse
from pathlib import Path

from alpro_hf import AlproForVideoTextRetrieval, AlproProcessor, VideoIndex, bundled_model
from alpro_hf.data.find_videos import find_videos

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="folder of videos")
parser.add_argument("query", help="sentence that describes the video")
parser.add_argument("--model", default=bundled_model("retrieval"), help="folder or Hub id (default: the bundled one)")
parser.add_argument("--index", type=Path, help="folder of the index (default: FOLDER-index)")
args = parser.parse_args()

model = AlproForVideoTextRetrieval.from_pretrained(args.model).eval()
processor = AlproProcessor.from_pretrained(args.model)
videos, unreadable = find_videos([args.folder])
directory = args.index or args.folder.with_name(f"{args.folder.name}-index")
index = VideoIndex.build(model, processor, videos, directory=directory)
for path, reason in [*unreadable, *index.report.failed]:
    print(f"skipped {path}: {reason}")

# similarity (VTC) finds the sixteen nearest videos; matching (VTM) re-ranks them
for result in index.search(args.query, top_k=5, rerank=16):
    print(f"{result.rank}  {result.match_probability:6.1%}  {result.similarity:.3f}  {result.path}")
