"""Export a model to ONNX: both encoders, and the head that reads their tokens together.

    pip install "alpro-hf[onnx]"
    python scripts/export_onnx.py MODEL onnx/

MODEL is the folder or Hub id of a retrieval or question answering model, or `retrieval` or `qa` for a bundled one.
Written are

    video_encoder.onnx   pixel_values_videos (B, T, 3, H, W)
                         -> video_states (B, 1 + N, D), video_embeds (B, P)
    text_encoder.onnx    input_ids, attention_mask (B, L)
                         -> text_states (B, L, D), text_embeds (B, P)
    matcher.onnx         text_states, attention_mask, video_states; row i of the texts with row i of the videos
      or answerer.onnx   -> logits (B, 2), column 1 = matched, or (B, answers)
    onnx.json            names and sizes, the answers, how far the numbers are from the model's
    processor and tokenizer, as `AlproProcessor.from_pretrained` reads them

B, T and L are free, H and W are those of the processor. As in retrieval with the model itself, a video and a text are
encoded once and only the small last graph runs for a pair. Each graph is run with onnxruntime on several batch sizes,
frame counts and text lengths, and the export fails where its numbers differ from the model's.
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig

from alpro_hf import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproProcessor, bundled_model

BUNDLED: dict[str, Literal["retrieval", "qa"]] = {"retrieval": "retrieval", "qa": "qa"}
TOLERANCE = 1e-4
OPSET = 18
# (texts or clips, frames, text length) of the checks; the first is that of the traced example
CHECKED = ((3, 5, 9), (1, 1, 3), (2, 4, 17), (4, 8, 6))
Model = AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering


class VideoEncoder(nn.Module):
    """Clips to tokens, and for retrieval to unit vectors; in answering these have no role."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.embeds = isinstance(model, AlproForVideoTextRetrieval)

    def forward(self, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.alpro.get_video_features(pixel_values_videos)
        return (output.last_hidden_state, output.pooler_output)[: 1 + self.embeds]


class TextEncoder(nn.Module):
    """Texts to tokens, and for retrieval to unit vectors."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.embeds = isinstance(model, AlproForVideoTextRetrieval)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.alpro.get_text_features(input_ids, attention_mask)
        return (output.last_hidden_state, output.pooler_output)[: 1 + self.embeds]


class Head(nn.Module):
    """Fusion layers and the classifier on their first token."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.classifier = model.vtm_head if isinstance(model, AlproForVideoTextRetrieval) else model.classifier

    def forward(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor, video_states: torch.Tensor
    ) -> torch.Tensor:
        fused = self.alpro.fuse(text_states, attention_mask, video_states, first_tokens=1)
        return self.classifier(fused.last_hidden_state[:, 0])


@dataclass(frozen=True)
class Graph:
    """One ONNX file."""

    name: str
    module: nn.Module
    inputs: dict[str, dict[int, str]]  # name -> free dimensions
    outputs: list[str]


def graphs(model: Model) -> list[Graph]:
    """What is exported of a model."""
    rows, tokens = {0: "batch"}, {0: "batch", 1: "length"}
    retrieval = isinstance(model, AlproForVideoTextRetrieval)
    return [
        Graph(
            "video_encoder",
            VideoEncoder(model).eval(),
            {"pixel_values_videos": {0: "batch", 1: "frames"}},
            ["video_states", "video_embeds"][: 1 + retrieval],
        ),
        Graph(
            "text_encoder",
            TextEncoder(model).eval(),
            {"input_ids": tokens, "attention_mask": tokens},
            ["text_states", "text_embeds"][: 1 + retrieval],
        ),
        Graph(
            "matcher" if retrieval else "answerer",
            Head(model).eval(),
            {"text_states": tokens, "attention_mask": tokens, "video_states": rows},
            ["logits"],
        ),
    ]


@torch.no_grad()
def examples(
    model: Model, size: tuple[int, int], batch: int, frames: int, length: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Every input of every graph: random clips of `size` (H, W), and random texts, each second one padded."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, frames, 3, *size, generator=generator)
    input_ids = torch.randint(5, model.config.text_config.vocab_size, (batch, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1::2, length // 2 + 1 :] = 0
    return {
        "pixel_values_videos": pixels,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "text_states": model.alpro.get_text_features(input_ids, attention_mask).last_hidden_state,
        "video_states": model.alpro.get_video_features(pixels).last_hidden_state,
    }


def export(model: Model, processor: AlproProcessor, output: Path, *, progress: bool = True) -> list[Path]:
    """Write the graphs of a model and check them.

    Args:
        model: On the CPU, in float32.
        processor: Saved beside the graphs.
        output: Folder.
        progress: Show a bar on stderr.

    Returns:
        The ONNX files.

    Raises:
        ValueError: A graph does not give the model's numbers.
    """
    output.mkdir(parents=True, exist_ok=True)
    model = model.eval().float()
    sides = processor.video_processor.size
    size = (sides["height"], sides["width"])
    example = examples(model, size, *CHECKED[0])
    longest = model.config.text_config.max_position_embeddings
    limits = {"batch": (1, 2**16), "frames": (1, 2**12), "length": (2, longest)}
    written = []
    # inputs of one graph share free dimensions, as they should
    warnings.filterwarnings("ignore", message="# The axis name")
    for graph in tqdm(graphs(model), desc="exporting", unit="graph", disable=not progress):
        free = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in limits.items()}
        path = output / f"{graph.name}.onnx"
        program: Any = torch.onnx.export(
            graph.module,
            tuple(example[name] for name in graph.inputs),
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=tuple(
                {place: free[name] for place, name in dimensions.items()} for dimensions in graph.inputs.values()
            ),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        program.save(path)
        written.append(path)
    differences = check(model, output, size)
    source = model.config._name_or_path
    description = {
        "model": Path(source).name if Path(source).is_dir() else source,
        "architecture": type(model).__name__,
        "height": size[0],
        "width": size[1],
        "max_text_length": longest,
        "opset": OPSET,
        "largest_difference": differences,
        "graphs": {graph.name: {"inputs": list(graph.inputs), "outputs": graph.outputs} for graph in graphs(model)},
    }
    if isinstance(model, AlproForVideoQuestionAnswering):
        names: Any = model.config.id2label
        description["answers"] = [names[i] for i in range(len(names))]
    processor.save_pretrained(output)
    (output / "onnx.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return written


def check(model: Model, folder: Path, size: tuple[int, int]) -> dict[str, float]:
    """Largest absolute difference of each graph from the model, over `CHECKED`.

    Raises:
        ValueError: One of them is above the tolerance.
    """
    import onnxruntime  # an optional dependency, which takes seconds to import

    found = {}
    for graph in graphs(model):
        session = onnxruntime.InferenceSession(folder / f"{graph.name}.onnx", providers=["CPUExecutionProvider"])
        largest = 0.0
        for seed, sizes in enumerate(CHECKED):
            given = examples(model, size, *sizes, seed=seed)
            with torch.inference_mode():
                result = graph.module(*(given[name] for name in graph.inputs))
            expected = result if isinstance(result, tuple) else (result,)
            outputs = session.run(graph.outputs, {name: given[name].numpy() for name in graph.inputs})
            for name, one, other in zip(graph.outputs, outputs, expected, strict=True):
                if one.shape != tuple(other.shape):
                    raise ValueError(f"{graph.name}.onnx gives {name} of shape {one.shape}, not {tuple(other.shape)}.")
                largest = max(largest, (torch.from_numpy(one) - other).abs().max().item())
        if not largest <= TOLERANCE:
            raise ValueError(
                f"{graph.name}.onnx differs from the model by {largest:.2g}, more than {TOLERANCE:g}. Do not use it; "
                "try another version of torch or onnxruntime."
            )
        found[graph.name] = largest
    return found


def load(name: str) -> tuple[Model, AlproProcessor]:
    """Model and processor from a folder, a Hub id, or the name of a bundled model."""
    if name in BUNDLED:
        name = str(bundled_model(BUNDLED[name]))
    made = AutoConfig.from_pretrained(name).architectures or []
    answers = "AlproForVideoQuestionAnswering" in made
    if not answers and not {"AlproForVideoTextRetrieval", "AlproForPreTraining"} & set(made):
        raise ValueError(f"{name} holds {made}; only retrieval and question answering models have a head to export.")
    kind = AlproForVideoQuestionAnswering if answers else AlproForVideoTextRetrieval
    return kind.from_pretrained(name, dtype=torch.float32), AlproProcessor.from_pretrained(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id, or retrieval or qa for a bundled model")
    parser.add_argument("output", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        sys.exit(f'Not installed: {", ".join(missing)}. pip install "alpro-hf[onnx]"')
    for path in export(*load(arguments.model), arguments.output):
        print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
