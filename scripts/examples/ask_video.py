"""Ask several questions about a video. The frames are decoded and encoded once.

    python scripts/examples/ask_video.py clip.mp4 "what does the fox do?" "how many animals are there?" --model MODEL

The model answers from the closed list of its training, `model.config.id2label`.
"""

import argparse

from alpro_hf import VideoDecodeError
from alpro_hf.inference.question_answering import ask
from alpro_hf.loading import load_model
from alpro_hf.trust import printable

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", help="video file")
parser.add_argument("questions", nargs="+", metavar="question", help="question about the video")
parser.add_argument("--model", default="bundled", help="folder, Hub id or 'bundled' (default: %(default)s)")
args = parser.parse_args()

model, processor = load_model("qa", args.model)
try:
    answers = ask(model, processor, args.video, args.questions, top_k=3)
except VideoDecodeError as error:
    raise SystemExit(str(error)) from error
for question, best in zip(args.questions, answers, strict=True):
    print(f"{question}  " + printable(", ".join(f"{answer.answer} {answer.probability:.0%}" for answer in best)))
