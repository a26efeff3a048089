"""`alpro convert`: turn a checkpoint of ALPRO into a model folder."""

import argparse
import json
import re
from pathlib import Path

from ..hub.names import CONVERSION, CONVERTED_TASKS, PROMPTER_FOLDER
from ..trust import printable
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro convert` to a parser."""
    parser.set_defaults(
        expected_errors=lambda: (ValueError,)
    )  # CheckpointError, and answers or entities that do not fit
    parser.description = (
        "Turn a checkpoint of ALPRO, of the original code or of LAVIS, into a folder that from_pretrained loads.\n\n"
        "Layout, task and sizes of the model are read off the tensors, and every tensor is accounted for: if one is\n"
        "missing, unexpected or misshaped, its name is printed and nothing is written. Files are read as data only;\n"
        "if reading one would run code, it is refused."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro convert msrvtt_retrieval.pt --output alpro-msrvtt\n"
        "  alpro convert msvd_qa.pt --output alpro-msvd-qa --answers ans2label.json\n"
        "  alpro convert pretrained.pt --output alpro --entities entities.txt\n\n"
        "then, in Python:\n"
        '  model = AlproForVideoTextRetrieval.from_pretrained("alpro-msrvtt")\n'
        '  processor = AutoProcessor.from_pretrained("alpro-msrvtt")'
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="checkpoint to convert: a file (.pt, .pth, .bin, .safetensors), a folder with one, or a Hub id",
    )
    source.add_argument("--checkpoint", metavar="FILE", help="the same as SOURCE")
    parser.add_argument(
        "--task",
        choices=CONVERTED_TASKS,
        help="task that the checkpoint was trained for (default: told from the names of its tensors)",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help=f"folder to write to; of a pretrain checkpoint, it holds the student, and DIR/{PROMPTER_FOLDER} the "
        "teacher",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model folder DIR, with all files in it, if it exists"
    )
    parser.add_argument(
        "--sha256", type=_sha256, metavar="HASH", help="hash that the file must have; else nothing is written"
    )
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt of the BERT that the text encoder was initialized with (default: that of bert-base-uncased, "
        "which belongs to the released checkpoints)",
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
        args.source or args.checkpoint,
        args.task,
        args.output,
        num_attention_heads=args.num_attention_heads,
        fusion_layer=args.fusion_layer,
        answers=args.answers,
        entities=args.entities,
        vocab=args.vocab,
        sha256=args.sha256,
        overwrite=args.overwrite,
    )
    record = json.loads((args.output / CONVERSION).read_text(encoding="utf-8"))
    for file in record["files"]:
        print(f"{printable(file['name'])}: {file['size']:,} bytes, sha256 {file['sha256']}")
    print(f"a {record['task']} checkpoint" + (f" in the layout {record['layout']!r}" if record["layout"] else ""))
    for folder, model in converted_folders(converted, args.output).items():
        video, text = model.config.video_config, model.config.text_config
        print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        print(f"video: {video.num_hidden_layers} layers, {video.num_frames} frames of {video.image_size} pixels")
        print(f"text:  {text.fusion_layer} text and {text.num_hidden_layers - text.fusion_layer} fusion layers")
        print(printable(f"written to {folder}"))
    return 0


def _sha256(text: str) -> str:
    """Argument type: a sha256 in hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a sha256 (64 hexadecimal digits)")
    return text
