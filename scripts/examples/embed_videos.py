"""Write one embedding for each video of a folder to a safetensors file.

    python scripts/examples/embed_videos.py holiday holiday.safetensors --model MODEL

The file holds `video_embeds`: unit vectors, float32 (videos, width). Its metadata entry `paths` holds the paths in the
same order, one per line. The dot product of two embeddings, of videos or texts, is their cosine similarity.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from alpro_hf import VideoDecodeError
from alpro_hf.data.find_videos import find_videos
from alpro_hf.loading import load_model
from alpro_hf.trust import printable

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, help="folder of videos")
parser.add_argument("output", type=Path, help="file to write, such as holiday.safetensors")
parser.add_argument("--model", default="bundled", help="folder, Hub id or 'bundled' (default: %(default)s)")
args = parser.parse_args()

model, processor = load_model("towers", args.model)
videos, unreadable = find_videos([args.folder])
for path, reason in unreadable:
    print(printable(f"skipped {path}: {reason}"))

# one video at a time: the embeddings are small, the frames are not
paths, embeds = [], []
for path in tqdm(videos, unit="video"):
    try:
        inputs = processor(videos=str(path), return_tensors="pt")
    except VideoDecodeError as error:  # names the file and the problem
        print(printable(f"skipped {error}"))
        continue
    with torch.inference_mode():
        embeds.append(model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0])
    paths.append(str(path))
if not paths:
    raise SystemExit(f"{args.folder} contains no readable video.")
save_file({"video_embeds": torch.stack(embeds)}, args.output, metadata={"paths": "\n".join(paths)})
print(f"{len(paths)} videos in {args.output}")
