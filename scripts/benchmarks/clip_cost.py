"""Measure what a clip costs at base size, by number of frames, size and data type: the table of docs/how_to.md.

    python scripts/benchmarks/clip_cost.py

The video tower has random weights. Times are CPU seconds of one thread, which depend less on other programs.
"""

import os
import time

import torch

from alpro_hf import AlproConfig, AlproModel

CLIPS_OF_AN_HOUR = 360  # of ten seconds


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AlproConfig(
        text_config={"num_hidden_layers": 1, "fusion_layer": 1},
        video_config={"image_size": 384, "cls_per_frame": True},
    )
    model = AlproModel(config).eval()
    print(f"torch {torch.__version__}, load of the machine {os.getloadavg()[0]:.1f}")
    print("| data type | frames | pixels | CPU s of a clip | CPU min of 360 clips |\n| --- | --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for frames, size in ((4, 224), (8, 224), (4, 384), (8, 384)):
            clip = torch.randn(1, frames, 3, size, size)
            with torch.inference_mode():
                if (frames, size) == (4, 224):
                    model.get_video_features(clip)  # the first call of a data type prepares its kernels
                start = time.process_time()
                model.get_video_features(clip)
            seconds = time.process_time() - start
            name = str(dtype).removeprefix("torch.")
            minutes = seconds * CLIPS_OF_AN_HOUR / 60
            print(f"| {name} | {frames} | {size} | {seconds:.1f} | {minutes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
