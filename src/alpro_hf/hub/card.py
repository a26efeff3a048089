"""Model cards, written from a checkpoint and its result files. A card claims nothing that no file states."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError, OfflineModeIsEnabled
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ..bounded_answers import bounded_answers
from ..evaluation.results import RESULTS, ResultsError, read_results
from .errors import ModelCardError, read_json_object
from .names import PICTURE

if TYPE_CHECKING:
    from transformers import TrainingArguments

# files next to the weights of a checkpoint: facts from its author, and what a training wrote
FACTS, RECIPE, ARGUMENTS, STATE = "training.json", "recipe.json", "training_args.bin", "trainer_state.json"
METRICS = "metrics.json"  # of an exported checkpoint: all its numbers, of which the card shows a few
SHOWN_NUMBERS = 10
_SECONDS = 5.0  # for the Hub to answer whether it has a file
_GETATTR = "builtins.getattr"  # in a pickle
RUN = "run"  # key of a recipe.json that holds facts about the run
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
# the training arguments that a card shows, in this order
_SHOWN_ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "global_batch_size"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "adam_beta1", "adam_beta2"),
    *("weight_decay", "max_grad_norm", "bf16", "fp16", "seed", "vtc_weight", "vtm_weight", "mlm_weight"),
    *("pem_weight", "vtm_negatives", "num_frames", "image_size", "text_length", "train_sampling", "augmentation"),
)
_METRIC_TITLES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "r50": "R@50",
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "accuracy": "accuracy",
}
# the metrics in the order in which a card with little room shows them
_TELLING = ("t2v_r1", "accuracy", "v2t_r1", "t2v_r10", "t2v_r5", "t2v_median_rank", "v2t_r10", "v2t_r5")
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_PROTOCOL_MEANINGS = {
    "vtc": "cosine similarity of the two towers",
    "rerank": "the best candidates by similarity, reordered by matching",
    "reference": "matching probability of all pairs, as in the paper's tables",
    "closed": "the most probable answer of a closed list",
}


@dataclass(frozen=True)
class _Head:
    """Texts of a card that depend on the class of the model.

    Args:
        pipeline_tag: Task in the terms of the Hub.
        task: `retrieval` or `qa`.
        summary: The model in one sentence.
        losses: Names of its training losses.
        auto_class: The Auto class of the example.
    """

    pipeline_tag: str
    task: str
    summary: str
    losses: str
    auto_class: str = "AutoModel"

    @property
    def pipeline(self) -> str:
        """Task of the pipeline that runs the model."""
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
    """Facts that only the author of a checkpoint knows, from `training.json` next to the weights. All are optional.

    Args:
        summary: The model in a sentence or two.
        data: The training data, in words.
        datasets: Ids of Hub datasets it was trained on.
        procedure: The training procedure, in words.
        hyperparameters: Name to value, shown instead of those of a recipe or of training arguments.
        limits: Limitations, one entry for each.
        example_texts: Two texts for the example, or one question, in words that the model knows.
        license: Identifier of the licence, such as `apache-2.0`.
        language: Codes of the languages of the texts, such as `en`.
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
        """Read the file; without it, there are no facts.

        Raises:
            ModelCardError: The file holds unknown keys, or values of the wrong type.
        """
        if not path.is_file():
            return cls()
        content = _read(path)
        known = {entry.name: entry for entry in fields(cls)}
        for key, value in content.items():
            if key not in known:
                raise ModelCardError(f"{path}: the key {key!r} is unknown. Known keys are {', '.join(known)}.")
            # each default has the type of its field
            if type(value) is not type(getattr(cls(), key)):
                raise ModelCardError(f"{path}: {key} must be a {type(getattr(cls(), key)).__name__}; it is {value!r}.")
        return cls(**content)

    @classmethod
    def of_model(cls, name: str) -> "TrainingFacts":
        """The facts of a model that was loaded by this name.

        Args:
            name: Folder or Hub id. The file on the Hub is kept in the cache. If it cannot be fetched, there are no
                facts: they are no reason to refuse a model that is here.

        Raises:
            ModelCardError: As in `read`.
        """
        if Path(name).is_dir():
            return cls.read(Path(name) / FACTS)
        cached = try_to_load_from_cache(name, FACTS)
        if cached is None:  # neither the file nor the news that there is none
            try:
                with bounded_answers():
                    cached = hf_hub_download(name, FACTS, etag_timeout=_SECONDS)
            except (EntryNotFoundError, HTTPError, OfflineModeIsEnabled):
                return cls()
        return cls.read(Path(cached)) if isinstance(cached, str) else cls()


@dataclass(frozen=True)
class CardResult:
    """Metrics of one task on one split under one protocol, as a card shows them.

    Args:
        task: `retrieval` or `qa`.
        dataset, split: Names of the data.
        protocol: Name of the protocol.
        metrics: Name to value. Shares are in percent.
        arguments: Settings of the protocol.
        intervals: Name of a metric to the bounds of its interval.
    """

    task: str
    dataset: str
    split: str
    protocol: str
    metrics: dict[str, float]
    arguments: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def read_card_results(path: str | Path) -> list[CardResult]:
    """Read the metrics of a result file: of `alpro evaluate`, of `scripts/sprites/measure.py`, or of an export.

    Args:
        path: The file, or the folder of a `results.json`.

    Raises:
        ModelCardError: The file does not exist, or is not a result file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS
    if not path.is_file():
        raise ModelCardError(f"There is no result file {path}.")
    content = _read(path)
    if "format" in content:  # only results of alpro evaluate have this key
        try:
            results = read_results(path)
        except ResultsError as error:
            raise ModelCardError(str(error)) from error
        protocol = dict(results.protocol)
        return [
            CardResult(
                results.task,
                _dataset_name(results.data) or path.parent.name,
                str(results.data.get("split") or "test"),
                protocol.pop("name"),
                results.metrics,
                {key: value for key, value in protocol.items() if value is not None},
                results.intervals,
            )
        ]
    if isinstance(content.get("results"), list):  # of an exported model
        return _read_exported(content["results"], path)
    if not isinstance(content.get("results"), dict):
        raise ModelCardError(
            f"{path} is not a result file, neither of alpro evaluate nor of scripts/sprites/measure.py."
        )
    # results of the sprite models: split -> retrieval -> protocol -> metrics, and split -> qa -> metrics
    rerank = {"rerank_k": content.get("settings", {}).get("rerank_k")}
    measured = []
    for split, parts in content["results"].items():
        for protocol, metrics in parts.get("retrieval", {}).items():
            arguments = rerank if protocol == "rerank" else {}
            measured.append(CardResult("retrieval", "sprite-world", split, protocol, metrics, arguments))
        if "qa" in parts:
            measured.append(CardResult("qa", "sprite-world", split, "closed", parts["qa"]))
    return measured


def _dataset_name(data: Mapping[str, Any]) -> str:
    """A name for the rows of an evaluation, without the folders of whoever evaluated; "" if nothing names them."""
    if data.get("name"):
        return str(data["name"])
    source = str(data.get("source") or "")
    # published annotations are named KIND:PATH; a single letter is a drive of Windows
    kind = re.match(r"([a-z][\w-]+):", source)
    return kind[1] if kind else Path(source).stem


def _read_exported(entries: list[Any], path: Path) -> list[CardResult]:
    known = {entry.name for entry in fields(CardResult)}
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not {"task", "dataset", "split", "protocol", "metrics"} <= set(entry) <= known
        ):
            raise ModelCardError(f"{path}: {entry!r} is not the result of an evaluation.")
    return [CardResult(**entry) for entry in entries]


def write_card_results(folder: str | Path, results: Sequence[str | Path]) -> None:
    """Write all numbers of result files to the `metrics.json` of an exported checkpoint, where its card links to.

    Paths of the machine that evaluated are left out.

    Args:
        folder: Exported checkpoint.
        results: Result files, see `read_card_results`.

    Raises:
        ModelCardError: A file cannot be used.
    """
    measured = [asdict(entry) for path in results for entry in read_card_results(path)]
    text = json.dumps({"results": measured}, indent=1, sort_keys=True, ensure_ascii=False)
    (Path(folder) / METRICS).write_text(text + "\n", encoding="utf-8")


def result_files(source: str | Path, results: Sequence[str | Path] = ()) -> list[Path]:
    """The result files of a checkpoint: the given ones, or else those next to its weights."""
    beside = [Path(source) / name for name in (RESULTS, METRICS)]
    return [Path(path) for path in results] or [path for path in beside if path.is_file()][:1]


def _telling(measured: Sequence[CardResult]) -> list[CardResult]:
    """The results with the `SHOWN_NUMBERS` metrics that tell most: first R@1 or accuracy of each, then the others."""
    order = {key: place for place, key in enumerate(_TELLING)}
    numbers = [
        (order.get(key, len(order)), place, key)
        for place, entry in enumerate(measured)
        for key in entry.metrics
        if _metric_title(key) is not None
    ]
    kept = {(place, key) for _, place, key in sorted(numbers)[:SHOWN_NUMBERS]}
    shown = [
        replace(entry, metrics={key: value for key, value in entry.metrics.items() if (place, key) in kept})
        for place, entry in enumerate(measured)
    ]
    return [entry for entry in shown if entry.metrics]


def _count(measured: Sequence[CardResult]) -> int:
    """How many numbers have a place on a card."""
    return sum(_metric_title(key) is not None for entry in measured for key in entry.metrics)


def model_card(
    folder: str | Path,
    *,
    source: str | Path | None = None,
    name: str,
    results: Sequence[str | Path] = (),
    licence: str | None = None,
) -> ModelCard:
    """Write the card of a checkpoint.

    Args:
        folder: Exported checkpoint.
        source: Folder that it was exported from, with `training.json`, `recipe.json`, `training_args.bin` or
            `trainer_state.json`, if any. None: `folder`.
        name: Title, and id in the example.
        results: Result files. Metrics of a task that the model does not do are left out, and of many numbers the card
            shows the ten that tell most. None given: the `results.json` in `source`, if there is one.
        licence: Identifier of the licence of the weights. None: as `training.json` says.

    Raises:
        ModelCardError: A file cannot be used.
    """
    folder = Path(folder)
    source = folder if source is None else Path(source)
    config = _read(folder / "config.json")
    head_name = config["architectures"][0]
    head = _HEADS[head_name]
    facts = TrainingFacts.read(source / FACTS)
    files = result_files(source, results)
    measured = [entry for path in files for entry in read_card_results(path) if entry.task == head.task]
    shown = _telling(measured)
    data = ModelCardData(
        language=facts.language,
        license=licence or facts.license or None,
        library_name="transformers",
        pipeline_tag=head.pipeline_tag,
        tags=["alpro", "video", "video-text-retrieval" if head.task == "retrieval" else "video-question-answering"],
        datasets=facts.datasets or None,
        metrics=(["recall"] if head.task == "retrieval" else ["accuracy"]) if measured else None,
        model_name=name.rpartition("/")[2] if measured else None,  # the Hub requires it for results
        eval_results=list(_eval_results(shown)) or None,
    )
    sections = (
        f"# {name.rpartition('/')[2]}",
        "\n\n".join(text for text in (head.summary, facts.summary) if text),
        f"![The model: video tower, text tower and fusion layers]({PICTURE})",
        _usage(name, head, facts),
        _sizes(config, head_name),
        _training(source, head, facts),
        _results_table(shown, more=_count(shown) < _count(measured) and (folder / METRICS).is_file()),
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
        "Install its requirements with `pip install transformers torch torchvision av`; the code of the model is in "
        "this repository. If the package alpro-hf is installed and imported, its classes are used, and "
        "`trust_remote_code` is not needed."
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
    rows = recipe.get(RUN, {}).get("data", {})
    # names without folders: paths on the author's machine are nobody's business
    recorded = ", ".join(f"`{Path(name).name}` ({count:,} rows)" for name, count in rows.items())
    data = facts.data or (f"Data: {recorded}." if recorded else "The training data is not recorded.")
    values = facts.hyperparameters or _shown(recipe)
    if not values and (source / ARGUMENTS).is_file():
        values = _shown(_read_arguments(source / ARGUMENTS).to_dict())
    paragraphs = [data, facts.procedure]
    if values or facts.data or recorded:
        paragraphs.append(f"Loss: {head.losses}.")
    if (source / STATE).is_file():
        state = _read(source / STATE)
        # later entries overwrite earlier ones, which leaves the last value of each loss
        logged = {key: value for entry in state["log_history"] for key, value in entry.items() if _is_loss(key)}
        last = ", ".join(f"{key} {value:.3g}" for key, value in logged.items())
        ended = f"; at the end {last}" if last else ""
        paragraphs.append(f"{state['global_step']} steps, {state['epoch']:.3g} epochs{ended}.")
    if values:
        paragraphs.append(_table(("hyperparameter", "value"), ((f"`{key}`", value) for key, value in values.items())))
    return "## Training\n\n" + "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _is_loss(key: str) -> bool:
    return key.startswith("loss") or key == "eval_loss"


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a card shows, except those that switch something off."""
    off = ("", None, False, -1)
    return {key: values[key] for key in _SHOWN_ARGUMENTS if key in values and values[key] not in off}


def _read_arguments(path: Path) -> "TrainingArguments":
    """Read a pickle of training arguments without running code that may be in it: only these types are allowed."""
    # imported here: they bring the whole trainer, and a search asks this module what a model is
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import TrainingArguments
    from transformers.trainer_pt_utils import AcceleratorConfig

    from ..training.arguments import AlproTrainingArguments

    # torch names blocked types in this way; the enumerations of TrainingArguments differ between versions, so they are
    # collected from an instance
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
    if unknown - {_GETATTR}:
        raise ModelCardError(
            f"{path} holds more than training arguments: {', '.join(sorted(unknown))}. It was not "
            f"read. Remove it; hyperparameters can be named in {FACTS}."
        )
    try:
        with safe_globals([*plain.values(), (_member, _GETATTR)]):
            return torch.load(path, weights_only=True)
    except UnpicklingError as error:
        raise ModelCardError(
            f"{path} is damaged, or holds more than training arguments. It was not read. Remove it; hyperparameters "
            f"can be named in {FACTS}."
        ) from error


def _member(kind: type[Enum], name: str) -> Enum:
    """A member of an enumeration. Python 3.11.0 to 3.11.3 write it as `getattr(kind, name)`, which can do far more."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise UnpicklingError(f"getattr of {name!r:.40} is no member of an enumeration")
    return kind[name]


def _eval_results(measured: Iterable[CardResult]) -> Iterable[EvalResult]:
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
                    # the Hub requires an id here, and a data set of one's own has none
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
    # keys with another prefix, such as with_prior_t2v_r1, are variants of the protocol, and have no line on a card
    direction, _, metric = key.partition("_")
    if direction in _DIRECTIONS and metric in _METRIC_TITLES:
        return f"{_METRIC_TITLES[metric]} {_DIRECTIONS[direction]}"
    return _METRIC_TITLES.get(key)


def _results_table(measured: Sequence[CardResult], more: bool) -> str:
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
        meaning = _PROTOCOL_MEANINGS.get(protocol, "") + (f" ({settings})" if settings else "")
        protocols.append(f"`{protocol}`: {meaning}" if meaning else f"`{protocol}`")
    return (
        "## Results\n\n"
        + _table(("data", "protocol", "metric", "value", "95 % interval"), rows)
        + f"\n\nShares in percent. Protocols: {'; '.join(protocols)}."
        + (f" All numbers are in [{METRICS}]({METRICS})." if more else "")
    )


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _limits(config: dict[str, Any], head: str, facts: TrainingFacts) -> str:
    video = config["video_config"]
    points = list(facts.limits)
    if config.get("training_domain") and not points:
        points.append(f"It was trained on the {config['training_domain']} alone and knows nothing else.")
    points.append(
        f"It sees {video['num_frames']} frames of a clip, spread over its length, at {video['image_size']} pixels, "
        "and misses what is shorter or smaller. It does not hear sound."
    )
    if head == "AlproForVideoQuestionAnswering":
        points.append(f"It can give no other answers than the {len(config.get('id2label', {}))} of its list.")
    points.append("It repeats the biases of its training data. Do not use it to judge people.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _licence(licence: str | list[str] | None) -> str:
    weights = f"The weights: {licence}." if licence else "Its author states no licence for the weights."
    return f"## Licence\n\n{weights} The code files (`*.py`) are from alpro-hf, Apache-2.0."


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelCardError)


__all__ = [
    "CardResult",
    "ModelCardError",
    "TrainingFacts",
    "model_card",
    "read_card_results",
    "result_files",
    "write_card_results",
]
