"""TODO docstring."""

import argparse
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from ..hub.convert import (
    PROMPTER_FOLDER,
    TASKS,
    _folders,
    convert,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro convert` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Turn a checkpoint of the original ALPRO code into a folder that from_pretrained loads.\n\n"
        "The sizes are read off the tensors and every tensor is accounted for: one that is missing,\n"
        "unexpected or misshaped is named and nothing is written. The file is read as data only;\n"
        "one that would have to run code is refused."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro convert --checkpoint msrvtt_retrieval.pt --task retrieval --output alpro-msrvtt --vocab vocab.txt\n"
        "  alpro convert --checkpoint msvd_qa.pt --task qa --output alpro-msvd-qa --vocab vocab.txt \\\n"
        "      --answers ans2label.json\n"
        "  alpro convert --checkpoint pretrained.pt --task pretrain --output alpro --vocab vocab.txt \\\n"
        "      --entities entities.txt\n\n"
        "then, in Python:\n"
        '  model = AlproForVideoTextRetrieval.from_pretrained("alpro-msrvtt")\n'
        '  processor = AutoProcessor.from_pretrained("alpro-msrvtt")'
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE", help="the .pt file to convert")
    parser.add_argument("--task", required=True, choices=TASKS, help="what the checkpoint was trained for")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help=f"folder to write; with --task pretrain the student, and its teacher in DIR/{PROMPTER_FOLDER}",
    )
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt of the BERT the text encoder started from (bert-base-uncased for the released checkpoints); "
        "without it the folder gets no tokenizer",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="qa only: ans2label.json of the data set, one JSON object from answer to index; without it the answers "
        "are called LABEL_0, LABEL_1, ...",
    )
    parser.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="pretrain and prompter only: the entity list the prompts were made from, one 'noun count' or 'noun' a "
        "line; without it the entities are called ENTITY_0, ENTITY_1, ...",
    )
    parser.add_argument(
        "--num-attention-heads",
        type=int,
        default=12,
        metavar="N",
        help="heads in every layer, which no tensor tells (default: %(default)s, as in the released checkpoints)",
    )
    parser.add_argument(
        "--fusion-layer",
        type=int,
        default=6,
        metavar="N",
        help="first text layer that also reads the video, which no tensor tells either (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro convert`; 0 when the folder was written, 1 with the reason on stderr when not."""
    try:
        converted = convert(
            args.checkpoint,
            args.task,
            args.output,
            num_attention_heads=args.num_attention_heads,
            fusion_layer=args.fusion_layer,
            answers=args.answers,
            entities=args.entities,
            vocab=args.vocab,
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        print(f"alpro convert: {error}", file=sys.stderr)
        return 1
    for folder, model in _folders(converted, args.output).items():
        video, text = model.config.video_config, model.config.text_config
        print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        print(f"video: {video.num_hidden_layers} layers, {video.num_frames} frames of {video.image_size} pixels")
        print(f"text:  {text.fusion_layer} text and {text.num_hidden_layers - text.fusion_layer} fusion layers")
        print(f"written to {folder}")
    return 0
