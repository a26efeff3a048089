"""Export of a model to ONNX: both encoders, and the head that reads their tokens together.

`export_onnx` writes to a folder:

    video_encoder.onnx   pixel_values_videos (B, T, 3, H, W)
                         -> video_states (B, 1 + N, D), video_embeds (B, P)
    text_encoder.onnx    input_ids, attention_mask (B, L)
                         -> text_states (B, L, D), text_embeds (B, P)
    matcher.onnx         text_states, attention_mask, video_states; row i of the texts with row i of the videos
      or answerer.onnx   -> logits (B, 2), column 1 = matched, or (B, answers)
    onnx.json            names and sizes, the answers, largest difference from the model
    processor and tokenizer, as `AlproProcessor.from_pretrained` reads them

B, T and L are free, H and W are those of the processor. The `*_embeds` are unit vectors, which only retrieval models
have. As with the model itself, a video and a text are encoded once, and only the small last graph runs for a pair.

Each graph is run with onnxruntime on several batch sizes, frame counts and text lengths. If its numbers differ from
those of the model, the export fails.
"""

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..adapters import merged
from ..files import remove_links, write_text_whole, write_whole
from ..loading import download_settings, find_model, load_model
from ..model.configuration_alpro import AlproConfig
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval
from ..model.processing_alpro import AlproProcessor
from .errors import OnnxExportError
from .names import BUNDLED_TO_ONNX

TOLERANCE = 1e-4  # largest absolute difference from the model that an export may have
OPSET = 18
# sizes of the checked batches: texts or clips, frames, text length. The first is that of the traced example, which
# has no size of 1, because torch.export would take it as fixed.
CHECKED_SIZES = ((3, 5, 9), (1, 1, 3), (2, 4, 17), (4, 8, 6))
Exportable = AlproForVideoTextRetrieval | AlproForVideoQuestionAnswering


class VideoEncoder(nn.Module):
    """Clips to tokens, and for retrieval also to unit vectors, which question answering does not use."""

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.embeds = isinstance(model, AlproForVideoTextRetrieval)

    def forward(self, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.alpro.get_video_features(pixel_values_videos)
        return (output.last_hidden_state, output.pooler_output)[: 1 + self.embeds]


class TextEncoder(nn.Module):
    """Texts to tokens, and for retrieval also to unit vectors."""

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.embeds = isinstance(model, AlproForVideoTextRetrieval)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.alpro.get_text_features(input_ids, attention_mask)
        return (output.last_hidden_state, output.pooler_output)[: 1 + self.embeds]


class Head(nn.Module):
    """The fusion layers, and the classifier on their first token."""

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        self.alpro = model.alpro
        self.classifier = model.vtm_head if isinstance(model, AlproForVideoTextRetrieval) else model.classifier

    def forward(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor, video_states: torch.Tensor
    ) -> torch.Tensor:
        # only the first token is classified, so the last layer need not compute the others
        fused = self.alpro.fuse(text_states, attention_mask, video_states, first_tokens=1)
        return self.classifier(fused.last_hidden_state[:, 0])


@dataclass(frozen=True)
class Graph:
    """One ONNX file.

    Args:
        name: Name of the file, without its ending.
        module: The part of the model.
        inputs: Name of an input to its free dimensions, each with a name.
        outputs: Names of the outputs.
    """

    name: str
    module: nn.Module
    inputs: dict[str, dict[int, str]]
    outputs: list[str]


def graphs(model: Exportable) -> list[Graph]:
    """The graphs that a model is exported as."""
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
    model: Exportable, size: tuple[int, int], batch: int, frames: int, length: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs of all graphs: random clips of `size` (H, W), and random texts, of which every second one is padded."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, frames, 3, *size, generator=generator)
    input_ids = torch.randint(5, model.config.text_config.vocab_size, (batch, length), generator=generator)
    # padding must be part of the check, as a graph that ignores the mask would give equal numbers without it
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1::2, length // 2 + 1 :] = 0
    return {
        "pixel_values_videos": pixels,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "text_states": model.alpro.get_text_features(input_ids, attention_mask).last_hidden_state,
        "video_states": model.alpro.get_video_features(pixels).last_hidden_state,
    }


def export_onnx(model: Exportable, processor: AlproProcessor, output: Path, *, progress: bool = True) -> list[Path]:
    """Write the graphs of a model to a folder, and check them.

    ```python
    model, processor = load_for_onnx("my-model")
    export_onnx(model, processor, Path("onnx"))
    ```

    Args:
        model: A retrieval or question answering model on the CPU. It is put into evaluation mode and float32.
        processor: Its processor, which is saved to the same folder and determines the size of the frames.
        output: Folder; created if it does not exist.
        progress: Show a progress bar on stderr.

    Returns:
        The ONNX files.

    Raises:
        OnnxExportError: A package is not installed, or the numbers of a graph differ from those of the model.
    """
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise OnnxExportError(f'{", ".join(missing)} must be installed: pip install "alpro-hf[onnx]"')
    output.mkdir(parents=True, exist_ok=True)
    model = merged(model).eval().float()
    sides = processor.video_processor.size
    size = (sides["height"], sides["width"])
    example = examples(model, size, *CHECKED_SIZES[0])
    longest = model.config.text_config.max_position_embeddings
    # torch.export needs a range for each free dimension; a text has at least [CLS] and [SEP]
    limits = {"batch": (1, 2**16), "frames": (1, 2**12), "length": (2, longest)}
    written = []
    for graph in tqdm(graphs(model), desc="exporting", unit="graph", disable=not progress):
        free = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in limits.items()}
        path = output / f"{graph.name}.onnx"
        with warnings.catch_warnings():
            # inputs of one graph share free dimensions here, which the exporter warns about
            warnings.filterwarnings("ignore", message="# The axis name")
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
        write_whole(path, program.save)
        written.append(path)
    differences = check_onnx(model, output, size)
    source = model.config._name_or_path
    description = {
        # of a local folder only the name: its path is a fact about this machine
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
    remove_links(output)  # the library writes to the files behind them
    processor.save_pretrained(output)
    write_text_whole(output / "onnx.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return written


def check_onnx(model: Exportable, folder: Path, size: tuple[int, int]) -> dict[str, float]:
    """Compare the graphs in a folder with their model.

    Args:
        model: On the CPU, in float32 and evaluation mode.
        folder: Folder that `export_onnx` wrote.
        size: Height and width of the frames.

    Returns:
        Name of each graph to its largest absolute difference from the model, over `CHECKED_SIZES`.

    Raises:
        OnnxExportError: A difference is larger than `TOLERANCE`, or an output has another shape.
    """
    import onnxruntime  # an optional dependency, which takes seconds to import

    found = {}
    for graph in graphs(model):
        session = onnxruntime.InferenceSession(folder / f"{graph.name}.onnx", providers=["CPUExecutionProvider"])
        largest = 0.0
        for seed, sizes in enumerate(CHECKED_SIZES):
            given = examples(model, size, *sizes, seed=seed)
            with torch.inference_mode():
                result = graph.module(*(given[name] for name in graph.inputs))
            expected = result if isinstance(result, tuple) else (result,)
            outputs = session.run(graph.outputs, {name: given[name].numpy() for name in graph.inputs})
            for name, one, other in zip(graph.outputs, outputs, expected, strict=True):
                if one.shape != tuple(other.shape):
                    raise OnnxExportError(
                        f"{graph.name}.onnx gives {name} of shape {one.shape}, not {tuple(other.shape)}. Do not use "
                        "it; try another version of torch or onnxruntime."
                    )
                largest = max(largest, (torch.from_numpy(one) - other).abs().max().item())
        if not largest <= TOLERANCE:  # written so that NaN fails, too
            raise OnnxExportError(
                f"{graph.name}.onnx differs from the model by {largest:.2g}, more than {TOLERANCE:g}. Do not use it; "
                "try another version of torch or onnxruntime."
            )
        found[graph.name] = largest
    return found


def load_for_onnx(name: str) -> tuple[Exportable, AlproProcessor]:
    """Load a model and its processor for an export.

    Args:
        name: Folder or Hub id; or `retrieval`, `qa` or a name that `find_model` knows, for a bundled model.

    Returns:
        The model on the CPU in float32, and its processor. A pre-training checkpoint is loaded as a retrieval model.

    Raises:
        OnnxExportError: The model has no head to export.
        CommandError: It is not an ALPRO model.
        ModelNotFoundError: There is no such model.
        OSError: It cannot be read.
    """
    # a folder called `retrieval` was shadowed by the bundled model ever since these short names exist
    name = BUNDLED_TO_ONNX.get(name, name)
    config, _ = AlproConfig.get_config_dict(download_settings(find_model(name)))
    classes = config.get("architectures") or []
    answers = "AlproForVideoQuestionAnswering" in classes
    if config and not answers and not {"AlproForVideoTextRetrieval", "AlproForPreTraining"} & set(classes):
        raise OnnxExportError(
            f"{name} holds {', '.join(classes)}; only retrieval and question answering models have a head to export."
        )
    return load_model("qa" if answers else "retrieval", name, device="cpu")


__all__ = ["Exportable", "OnnxExportError", "check_onnx", "export_onnx", "load_for_onnx"]
