"""`alpro convert`: turn a checkpoint of the original ALPRO code into a model folder."""

import argparse
from pathlib import Path

from ..hub.names import CONVERTED_TASKS, PROMPTER_FOLDER
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro convert` to a parser."""
    parser.set_defaults(
        expected_errors=lambda: (ValueError,)
    )  # CheckpointError, and answers or entities that do not fit
    parser.description = (
        "Turn a checkpoint of the original ALPRO code into a folder that from_pretrained loads.\n\n"
        "The sizes of the model are read off the tensors, and every tensor is accounted for: if one is missing,\n"
        "unexpected or misshaped, its name is printed and nothing is written. The file is read as data only; if\n"
        "reading it would run code, it is refused."
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
    parser.add_argument(
        "--task", required=True, choices=CONVERTED_TASKS, help="task that the checkpoint was trained for"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help=f"folder to write to; with --task pretrain, it holds the student, and DIR/{PROMPTER_FOLDER} the teacher",
    )
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt of the BERT that the text encoder was initialized with (bert-base-uncased for the released "
        "checkpoints); without it, no tokenizer is written",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="qa only: ans2label.json of the data set, one JSON object from answer to index; without it, the answers "
        "are called LABEL_0, LABEL_1, ...",
    )
    parser.add_argument(
        "--entities",
        type=Path,
        metavar="FILE",
        help="pretrain and prompter only: the entity list that the prompts were made from, one 'noun count' or "
        "'noun' a line; without it, the entities are called ENTITY_0, ENTITY_1, ...",
    )
    parser.add_argument(
        "--num-attention-heads",
        type=whole_number(1),
        default=12,
        metavar="N",
        help="attention heads in every layer, which the tensors do not show (default: %(default)s, as in the released "
        "checkpoints)",
    )
    parser.add_argument(
        "--fusion-layer",
        type=whole_number(0),
        default=6,
        metavar="N",
        help="index of the first fusion layer, which the tensors do not show (default: %(default)s, as in the "
        "released checkpoints)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro convert`; 0 when the folder was written."""
    from ..hub.convert import convert, converted_folders

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
    for folder, model in converted_folders(converted, args.output).items():
        video, text = model.config.video_config, model.config.text_config
        print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        print(f"video: {video.num_hidden_layers} layers, {video.num_frames} frames of {video.image_size} pixels")
        print(f"text:  {text.fusion_layer} text and {text.num_hidden_layers - text.fusion_layer} fusion layers")
        print(f"written to {folder}")
    return 0
