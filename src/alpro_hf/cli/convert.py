"""`alpro convert`: turn a checkpoint of ALPRO into a model folder."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ..hub.known_checkpoints import KNOWN, known_table
from ..hub.names import CONVERSION, CONVERTED_TASKS, PROMPTER_FOLDER
from ..trust import printable
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro convert` to a parser."""
    parser.set_defaults(
        expected_errors=lambda: (ValueError,),  # CheckpointError, and answers or entities that do not fit
        when_stopped="nothing was written; the same command goes on with a download where it stopped",
    )
    parser.description = (
        "Turn a checkpoint of ALPRO (of the original code or of LAVIS) or a BLIP model for image-text retrieval into\n"
        "a folder that from_pretrained loads.\n\n"
        "Layout, task and sizes of the model are read off the tensors, and every tensor is accounted for: if one is\n"
        "missing, unexpected or misshaped, its name is printed and nothing is written. Files are read as data only;\n"
        "if reading one would run code, it is refused. Downloads are kept in the Hub cache (HF_HUB_CACHE). One that\n"
        "was interrupted goes on where it stopped. Size and sha256 are printed, and recorded in conversion.json.\n\n"
        "A converted BLIP model compares texts and clips as BLIP compares texts and images. Its weights are BLIP's,\n"
        "with BLIP's licence (BSD-3-Clause). We have not measured their quality on videos."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro convert --list                                     published checkpoints and their names\n"
        "  alpro convert msrvtt-retrieval --output alpro-msrvtt\n"
        "  alpro convert Salesforce/blip-itm-base-coco --output my-alpro\n"
        "  alpro convert https://example.org/output.zip --member output/ckpt/best.pt --output alpro\n"
        "  alpro convert msrvtt_retrieval.pt --output alpro-msrvtt\n"
        "  alpro convert msvd_qa.pt --output alpro-msvd-qa --answers ans2label.json\n"
        "  alpro convert pretrained.pt --output alpro --entities entities.txt\n\n"
        "then, in Python:\n"
        '  model = AlproForVideoTextRetrieval.from_pretrained("alpro-msrvtt")\n'
        '  processor = AutoProcessor.from_pretrained("alpro-msrvtt")'
    )
    parser.add_argument(
        "--list",
        action=_ListAction,
        nargs=0,
        help="print the names of published checkpoints and their addresses, and exit",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="checkpoint to convert: a file (.pt, .pth, .bin, .safetensors, .zip), a folder with one, a Hub id, an "
        f"address with http or https, or a name: {', '.join(KNOWN)}",
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
        "--sha256",
        type=_sha256,
        metavar="HASH",
        help="hash that the file, or the archive that holds it, must have; else nothing is written",
    )
    parser.add_argument(
        "--member", metavar="NAME", help="of a zip archive: the checkpoint in it (default: the only one there is)"
    )
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="of a known name: address below which a copy of the publisher's files lies (see --list)",
    )
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt of the BERT that the text encoder was initialized with (default: that of bert-base-uncased, "
        "which belongs to the released checkpoints; of a BLIP model, the one in its folder)",
    )
    parser.add_argument(
        "--answers",
        metavar="FILE",
        help="qa only: ans2label.json of the data set, one JSON object from answer to index, as a file or an address; "
        "that of a known name is downloaded; without it, the answers are called LABEL_0, LABEL_1, ...",
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
        metavar="N",
        help="attention heads in every layer, which the tensors do not show (default: 12, as in the released "
        "checkpoints)",
    )
    parser.add_argument(
        "--fusion-layer",
        type=whole_number(0),
        metavar="N",
        help="index of the first fusion layer, which the tensors do not show (default: 6, as in the released "
        "checkpoints)",
    )
    parser.add_argument(
        "--fusion-layers",
        type=whole_number(0),
        metavar="N",
        help="of a BLIP model: fusion layers to append for fine-tuning, copies of the last text layers, with a new "
        "matching head that must be trained (default: none)",
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
        fusion_layers=args.fusion_layers,
        answers=args.answers,
        entities=args.entities,
        vocab=args.vocab,
        member=args.member,
        mirror=args.mirror,
        sha256=args.sha256,
        overwrite=args.overwrite,
    )
    record = json.loads((args.output / CONVERSION).read_text(encoding="utf-8"))
    if "url" in record:
        print(printable(f"from {record['url']}"))
    for file in [*filter(None, [record.get("archive")]), *record["files"], *filter(None, [record.get("answers")])]:
        print(f"{printable(file['name'])}: {file['size']:,} bytes, sha256 {file['sha256']}")
    print(f"a {record['task']} checkpoint" + (f" in the layout {record['layout']!r}" if record["layout"] else ""))
    if record["layout"] == "blip":
        print("BLIP's weights in ALPRO's model, licence BSD-3-Clause; their quality on videos was not measured by us")
    for folder, model in converted_folders(converted, args.output).items():
        video, text = model.config.video_config, model.config.text_config
        print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        print(f"video: {video.num_hidden_layers} layers, {video.num_frames} frames of {video.image_size} pixels")
        print(f"text:  {text.fusion_layer} text and {text.num_hidden_layers - text.fusion_layer} fusion layers")
        print(printable(f"written to {folder}"))
    return 0


class _ListAction(argparse.Action):
    """Print the known names and exit, as `--version` does: nothing else need be given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        print(known_table())
        parser.exit()


def _sha256(text: str) -> str:
    """Argument type: a sha256 in hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a sha256 (64 hexadecimal digits)")
    return text
