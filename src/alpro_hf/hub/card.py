"""Model cards, written from what a checkpoint and its result files say: nothing is claimed that no file holds."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..evaluation.results import RESULTS, ResultsError, read_results
from ..training.arguments import AlproTrainingArguments

CARD, PICTURE = "README.md", "model.png"
FACTS, RECIPE, ARGUMENTS, STATE = "training.json", "recipe.json", "training_args.bin", "trainer_state.json"
RUN = "run"  # key of a recipe.json under which the facts of the run stand
PAPER = "https://arxiv.org/abs/2112.09583"
CITATION = """\
@inproceedings{li2022alpro,
  title     = {Align and Prompt: Video-and-Language Pre-training with Entity Prompts},
  author    = {Li, Dongxu and Li, Junnan and Li, Hongdong and Niebles, Juan Carlos and Hoi, Steven C.H.},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  url       = {https://arxiv.org/abs/2112.09583}
}
"""
# of all training arguments, those that a reader wants to know, in this order
_SHOWN = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "global_batch_size"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "adam_beta1", "adam_beta2"),
    *("weight_decay", "max_grad_norm", "bf16", "fp16", "seed", "vtc_weight", "vtm_weight", "mlm_weight"),
    *("pem_weight", "vtm_negatives", "num_frames", "image_size", "text_length", "train_sampling", "augmentation"),
)
_METRICS = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "r50": "R@50",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "accuracy": "accuracy",
}
_WAYS = {"t2v": "text to video", "v2t": "video to text"}
_PROTOCOLS = {
    "vtc": "cosine similarity of the two towers",
    "rerank": "the best candidates by similarity, reordered by matching",
    "reference": "matching probability of all pairs, as in the paper's tables",
    "closed": "the most probable answer of a closed list",
}


class ModelCardError(ValueError):
    """A file that a card is written from cannot be used; the message names it and the key."""


@dataclass(frozen=True)
class _Head:
    """What a card says of a head: its task on the Hub, in a sentence, its losses, and how it is called."""

    pipeline_tag: str
    task: str
    summary: str
    losses: str
    auto_class: str = "AutoModel"

    @property
    def pipeline(self) -> str:
        return "video-question-answering" if self.task == "qa" else "text-video-retrieval"


_VTC = "contrastive (VTC)"
_HEADS = {
    "AlproModel": _Head(
        "feature-extraction", "retrieval", "The two towers of ALPRO: videos and texts to vectors to compare.", _VTC
    ),
    "AlproForVideoTextRetrieval": _Head(
        "feature-extraction",
        "retrieval",
        "ALPRO for text-video retrieval: finds the videos that a sentence describes.",
        f"{_VTC} and matching (VTM)",
    ),
    "AlproForVideoQuestionAnswering": _Head(
        "visual-question-answering",
        "qa",
        "ALPRO for video question answering: chooses an answer from a closed list.",
        "cross-entropy over the answers",
        "AutoModelForVisualQuestionAnswering",
    ),
    "AlproForPreTraining": _Head(
        "feature-extraction",
        "retrieval",
        "ALPRO after pre-training, with all four heads: for zero-shot retrieval, and to start fine-tuning from.",
        f"{_VTC}, matching (VTM), masked words (MLM) and prompted entities (PEM)",
    ),
    "AlproPrompterModel": _Head(
        "feature-extraction",
        "retrieval",
        "ALPRO's prompter: names the entities in crops of videos, as the teacher of pre-training.",
        _VTC,
    ),
}


@dataclass(frozen=True)
class TrainingFacts:
    """What nothing but its author knows of a checkpoint: the file `training.json` beside the weights, all optional.

    Args:
        summary: What the model is, a sentence or two.
        data: What it was trained on, in words.
        datasets: Ids of Hub datasets it was trained on.
        procedure: How it was trained, in words.
        hyperparameters: Name -> value, where no recipe or training arguments lie beside the weights.
        limits: What it cannot do, one entry a point.
        example_texts: Two texts for the example, in words that the model knows; a question answering model takes one.
        license: Identifier, such as `apache-2.0`.
        language: Codes of the languages of its texts, such as `en`.
    """

    summary: str = ""
    data: str = ""
    datasets: list[str] = field(default_factory=list)
    procedure: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    example_texts: list[str] = field(default_factory=list)
    license: str = ""
    language: list[str] = field(default_factory=lambda: ["en"])

    @classmethod
    def read(cls, path: Path) -> "TrainingFacts":
        """The file, or no facts if there is none; a `ModelCardError` if it holds unknown keys or types."""
        if not path.is_file():
            return cls()
        content = _read(path)
        known = {entry.name: entry for entry in fields(cls)}
        for key, value in content.items():
            if key not in known:
                raise ModelCardError(f"{path}: {key!r} is unknown; known are {', '.join(known)}.")
            if type(value) is not type(getattr(cls(), key)):
                raise ModelCardError(f"{path}: {key} must be a {type(getattr(cls(), key)).__name__}; it is {value!r}.")
        return cls(**content)


@dataclass(frozen=True)
class Measured:
    """Numbers of one task on one split under one protocol, in percent but for ranks and counts."""

    task: str
    dataset: str
    split: str
    protocol: str
    metrics: dict[str, float]
    arguments: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def read_measured(path: str | Path) -> list[Measured]:
    """The numbers of a result file: of `alpro evaluate`, or of `scripts/evaluate_sprites.py`.

    Raises:
        ModelCardError: It is no such file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS
    if not path.is_file():
        raise ModelCardError(f"There is no result file {path}.")
    content = _read(path)
    if "format" in content:
        try:
            results = read_results(path)
        except ResultsError as error:
            raise ModelCardError(str(error)) from error
        protocol = dict(results.protocol)
        data, split = results.data, results.data.get("split")
        name = data.get("name") or Path(str(data.get("path") or path.parent.name)).stem
        return [
            Measured(
                results.task,
                str(name),
                str(split or "test"),
                protocol.pop("name"),
                results.metrics,
                {key: value for key, value in protocol.items() if value is not None},
                results.intervals,
            )
        ]
    if not isinstance(content.get("results"), dict):
        raise ModelCardError(
            f"{path} is no result file: neither of alpro evaluate nor of scripts/evaluate_sprites.py."
        )
    rerank = {"rerank_k": content.get("settings", {}).get("rerank_k")}
    measured = []
    for split, parts in content["results"].items():
        for protocol, metrics in parts.get("retrieval", {}).items():
            arguments = rerank if protocol == "rerank" else {}
            measured.append(Measured("retrieval", "sprite-world", split, protocol, metrics, arguments))
        if "qa" in parts:
            measured.append(Measured("qa", "sprite-world", split, "closed", parts["qa"]))
    return measured


def model_card(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    name: str,
    results: Sequence[str | Path] = (),
    licence: str | None = None,
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        folder: Exported checkpoint.
        source: Folder it came from, where `training.json`, `recipe.json`, `training_args.bin` and
            `trainer_state.json` are looked for; None: `folder`.
        name: Title, and id in the example.
        results: Result files; numbers of tasks that the head does not do are passed over. None given: the
            `results.json` in `source`, if there is one.
        licence: Identifier; None: as `training.json` says.

    Raises:
        ModelCardError: A file cannot be used.
    """
    folder = Path(folder)
    source = folder if source is None else Path(source)
    config = _read(folder / "config.json")
    head_name = config["architectures"][0]
    head = _HEADS[head_name]
    facts = TrainingFacts.read(source / FACTS)
    files = list(results) or [path for path in [source / RESULTS] if path.is_file()]
    measured = [entry for path in files for entry in read_measured(path) if entry.task == head.task]
    data = ModelCardData(
        language=facts.language,
        license=licence or facts.license or None,
        library_name="transformers",
        pipeline_tag=head.pipeline_tag,
        tags=["alpro", "video", "video-text-retrieval" if head.task == "retrieval" else "video-question-answering"],
        datasets=facts.datasets or None,
        metrics=(["recall"] if head.task == "retrieval" else ["accuracy"]) if measured else None,
        model_name=name.rpartition("/")[2] if measured else None,
        eval_results=list(_eval_results(measured)) or None,
    )
    sections = (
        f"# {name.rpartition('/')[2]}",
        "\n\n".join(text for text in (head.summary, facts.summary) if text),
        f"![The model: video tower, text tower and fusion layers]({PICTURE})",
        _usage(name, head, facts),
        _sizes(config, head_name),
        _training(source, head, facts),
        _results_table(measured),
        _limits(config, head_name, facts),
        _licence(data.license),
        f"## Citation\n\n[Align and Prompt]({PAPER}) (CVPR 2022):\n\n```bibtex\n{CITATION}```",
    )
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _usage(name: str, head: _Head, facts: TrainingFacts) -> str:
    texts = facts.example_texts or (["what is happening?"] if head.task == "qa" else ["a dog runs", "a car stops"])
    if head.task == "qa":
        call = (
            f'logits = model(**processor(text={json.dumps(texts[0])}, videos="clip.mp4")).logits\n'
            "print(model.config.id2label[logits.argmax().item()])"
        )
    else:
        call = (
            f'outputs = model(**processor(text={json.dumps(texts)}, videos="clip.mp4"))\n'
            "print(outputs.text_embeds @ outputs.video_embeds.T)  # cosine similarity of each text and the clip"
        )
    does = "which answers questions about videos" if head.task == "qa" else "which ranks videos for a text"
    return (
        "## Use\n\n```python\n"
        f"from transformers import {head.auto_class}, AutoProcessor\n\n"
        f'processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)\n'
        f'model = {head.auto_class}.from_pretrained("{name}", trust_remote_code=True)\n{call}\n```\n\n'
        f'In one call: `pipeline("{head.pipeline}", model="{name}", trust_remote_code=True)`, {does}.\n\n'
        "It takes `pip install transformers torch torchvision av`; the code of the model lies in this repository. "
        "With the package alpro-hf installed and imported, its own classes are used, and `trust_remote_code` is not "
        "needed."
    )


def _sizes(config: dict[str, Any], head: str) -> str:
    text, video = config["text_config"], config["video_config"]
    frames, size = video["num_frames"], video["image_size"]
    rows = {
        "Head": f"`{head}`",
        "Video tower": f"{video['num_hidden_layers']} layers of divided space-time attention, width "
        f"{video['hidden_size']}, patches of {video['patch_size']} pixels",
        "Made for": f"{frames} frames of {size} x {size} pixels; other numbers and sizes work",
        "Text tower": f"{text['fusion_layer']} layers, {text['vocab_size']} word pieces, up to "
        f"{text['max_position_embeddings']} tokens",
        "Fusion": f"{text['num_hidden_layers'] - text['fusion_layer']} layers over text and video tokens",
        "Vectors": f"{config['projection_dim']} dimensions",
    }
    if head == "AlproForVideoQuestionAnswering":
        rows["Answers"] = str(len(config.get("id2label", {})))
    if config.get("entities"):
        rows["Entities"] = str(len(config["entities"]))
    return "## The model\n\n" + _table(("", ""), rows.items())


def _training(source: Path, head: _Head, facts: TrainingFacts) -> str:
    recipe = _read(source / RECIPE) if (source / RECIPE).is_file() else {}
    rows = recipe.get(RUN, {}).get("data", {})  # of files of the author's machine, the names alone say enough
    recorded = ", ".join(f"`{Path(name).name}` ({count:,} rows)" for name, count in rows.items())
    data = facts.data or (f"Data: {recorded}." if recorded else "The data of the training is not recorded here.")
    values = facts.hyperparameters or _shown(recipe)
    if not values and (source / ARGUMENTS).is_file():
        values = _shown(_read_arguments(source / ARGUMENTS).to_dict())
    paragraphs = [data, facts.procedure]
    if values or facts.data or recorded:
        paragraphs.append(f"Loss: {head.losses}.")
    if (source / STATE).is_file():
        state = _read(source / STATE)
        logged = {key: value for entry in state["log_history"] for key, value in entry.items() if _is_loss(key)}
        last = ", ".join(f"{key} {value:.3g}" for key, value in logged.items())
        ended = f"; at the end {last}" if last else ""
        paragraphs.append(f"{state['global_step']} steps, {state['epoch']:.3g} epochs{ended}.")
    if values:
        paragraphs.append(_table(("hyper-parameter", "value"), ((f"`{key}`", value) for key, value in values.items())))
    return "## Training\n\n" + "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _is_loss(key: str) -> bool:
    return key.startswith("loss") or key == "eval_loss"


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments worth a line, but for those that switch something off."""
    useless = ("", None, False, -1)
    return {key: values[key] for key in _SHOWN if key in values and values[key] not in useless}


def _read_arguments(path: Path) -> TrainingArguments:
    """The trainer's arguments, without running code that somebody may have put into the pickle."""
    plain = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in (TrainingArguments, AlproTrainingArguments, AcceleratorConfig, PartialState, DistributedType)
    }
    plain |= {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in {type(value) for value in vars(TrainingArguments(use_cpu=True)).values()}
        if issubclass(kind, Enum)
    }
    unknown = set(get_unsafe_globals_in_checkpoint(path)) - set(plain)
    if unknown:
        raise ModelCardError(
            f"{path} holds more than training arguments: {', '.join(sorted(unknown))}. It is not "
            f"read: remove it, or say the hyper-parameters in a {FACTS}."
        )
    with safe_globals(list(plain.values())):
        return torch.load(path, weights_only=True)


def _eval_results(measured: Iterable[Measured]) -> Iterable[EvalResult]:
    for entry in measured:
        arguments = {"protocol": entry.protocol, **entry.arguments}
        task, task_name = "visual-question-answering", "Video question answering"
        if entry.task == "retrieval":
            task, task_name = "text-to-video-retrieval", "Text-video retrieval"
        for key, value in entry.metrics.items():
            title = _metric_title(key)
            if title is not None:
                yield EvalResult(
                    task_type=task,
                    task_name=task_name,
                    dataset_type=entry.dataset.lower().replace(" ", "-"),
                    dataset_name=entry.dataset,
                    dataset_split=entry.split,
                    metric_type="accuracy" if entry.task == "qa" else f"{key}",
                    metric_name=f"{title} ({entry.protocol})",
                    metric_value=round(value, 2),
                    metric_config=entry.protocol,
                    metric_args=arguments,
                )


def _metric_title(key: str) -> str | None:
    way, _, metric = key.partition("_")
    if way in _WAYS and metric in _METRICS:
        return f"{_METRICS[metric]} {_WAYS[way]}"
    return _METRICS.get(key)


def _results_table(measured: Sequence[Measured]) -> str:
    if not measured:
        return ""
    rows = [
        (f"{entry.dataset} ({entry.split})", entry.protocol, title, f"{value:.1f}", _bounds(entry.intervals.get(key)))
        for entry in measured
        for key, value in entry.metrics.items()
        if (title := _metric_title(key)) is not None
    ]
    used = {entry.protocol: entry.arguments for entry in measured}
    protocols = []
    for protocol, arguments in used.items():
        settings = ", ".join(f"{key} {value}" for key, value in arguments.items())
        meaning = _PROTOCOLS.get(protocol, "") + (f" ({settings})" if settings else "")
        protocols.append(f"`{protocol}`: {meaning}" if meaning else f"`{protocol}`")
    return (
        "## Results\n\n"
        + _table(("data", "protocol", "metric", "value", "95 % interval"), rows)
        + f"\n\nShares in percent. Protocols: {'; '.join(protocols)}."
    )


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _limits(config: dict[str, Any], head: str, facts: TrainingFacts) -> str:
    video = config["video_config"]
    points = list(facts.limits)
    points.append(
        f"It sees {video['num_frames']} frames of a clip, spread over it, at {video['image_size']} pixels: what is "
        "shorter or smaller than that escapes it. Sound is not heard."
    )
    if head == "AlproForVideoQuestionAnswering":
        points.append(f"It can give no other answers than the {len(config.get('id2label', {}))} of its list.")
    points.append(
        "It repeats what its training data says of the world, prejudices included. No person should be judged by it."
    )
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _licence(licence: str | list[str] | None) -> str:
    weights = f"The weights: {licence}." if licence else "Its author states no licence for the weights."
    return f"## Licence\n\n{weights} The code files (`*.py`) are from alpro-hf, Apache-2.0."


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelCardError(f"{path} is no JSON file: {error}.") from None
    if not isinstance(content, dict):
        raise ModelCardError(f"{path} must hold a JSON object; it holds a {type(content).__name__}.")
    return content


# ------------------------------------------------------------------------------------------------------------- picture


__all__ = ["Measured", "ModelCardError", "TrainingFacts", "model_card", "read_measured"]
