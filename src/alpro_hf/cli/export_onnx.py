"""`alpro export-onnx`: export a model to ONNX."""

import argparse
from pathlib import Path

from ..hub.errors import OnnxExportError
from ..hub.names import BUNDLED_TO_ONNX
from ..trust import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro export-onnx` to a parser."""
    parser.set_defaults(expected_errors=lambda: (OnnxExportError,))
    parser.description = (
        "Export a retrieval or question answering model to ONNX: both encoders, and the head that reads their tokens\n"
        'together. Needs pip install "alpro-hf[onnx]". DIR receives\n\n'
        "  video_encoder.onnx   pixel_values_videos (B, T, 3, H, W)\n"
        "                       -> video_states (B, 1 + N, D), video_embeds (B, P)\n"
        "  text_encoder.onnx    input_ids, attention_mask (B, L)\n"
        "                       -> text_states (B, L, D), text_embeds (B, P)\n"
        "  matcher.onnx         text_states, attention_mask, video_states; text i with video i\n"
        "    or answerer.onnx   -> logits (B, 2), column 1 = matched, or (B, answers)\n"
        "  onnx.json            names and sizes, the answers, largest difference from the model\n"
        "  processor and tokenizer, as AlproProcessor.from_pretrained reads them\n\n"
        "B, T and L are free, H and W are those of the processor; only retrieval models have *_embeds. Each graph is\n"
        "run with onnxruntime on several sizes. If its numbers differ from those of the model, the export fails."
    )
    parser.epilog = (
        "examples:\n  alpro export-onnx retrieval onnx-retrieval\n  alpro export-onnx runs/msrvtt onnx-msrvtt"
    )
    bundled = " or ".join(BUNDLED_TO_ONNX)
    parser.add_argument("model", metavar="MODEL", help=f"folder or Hub id; {bundled} or 'bundled' for a bundled model")
    parser.add_argument("output", metavar="DIR", type=Path, help="folder to write to")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro export-onnx`; 0 when the graphs were written and agree with the model."""
    from ..hub.onnx import export_onnx, load_for_onnx

    model, processor = load_for_onnx(args.model)
    for path in export_onnx(model, processor, args.output):
        print(f"{printable(path)}  {path.stat().st_size / 2**20:.1f} MiB")
    return 0
