"""The start of a training by recipe: rows, the model with its weights, its processor and the collator."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from ..data.augmentation import OPERATIONS, AlproAugmentation
from ..data.collator import AlproCollator
from ..data.isolated_decoder import IsolatedDecoder
from ..data.label_lists import read_answers, read_entities
from ..data.load_rows import is_labelled
from ..data.mixed_rows import MixedRows
from ..data.pretraining_collator import AlproPreTrainingCollator
from ..loading import CONFIG, download_model, download_settings, find_model
from ..model.configuration_alpro import AlproConfig
from ..model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
from ..model.pretraining_alpro import AlproForPreTraining
from ..model.processing_alpro import AlproProcessor
from ..model.video_processing_alpro import AlproVideoProcessor
from .arguments import AlproTrainingArguments
from .recipe import AlproRecipe, Task


class TrainError(ValueError):
    """A training cannot begin; the message says why and what to do. It names inputs as options of `alpro train` do."""


MODELS: dict[Task, Any] = {
    "prompter": AlproModel,
    "pretrain": AlproForPreTraining,
    "retrieval": AlproForVideoTextRetrieval,
    "qa": AlproForVideoQuestionAnswering,
}


# ---------------------------------------------------------------------------------------------------------------- rows


def training_rows(
    task: Task, recipe: AlproRecipe, arguments: AlproTrainingArguments, sources: Mapping[str, Dataset]
) -> Dataset | MixedRows:
    """The data set to train on.

    Args:
        task: What the training is for.
        recipe: Its `data_weights` say how often each source is drawn.
        arguments: With `train_sampling_strategy="sequential"`, pre-training counts steps and not epochs.
        sources: Rows by the name of their source.

    Returns:
        Rows mixed step by step for pre-training, which several sources need; otherwise the rows of the only source.

    Raises:
        TrainError: There is not one weight for each source.
    """
    mixes = len(sources) > 1 or arguments.train_sampling_strategy == "sequential"
    if task not in ("prompter", "pretrain") or not mixes:
        return next(iter(sources.values()))
    weights = None
    if recipe.data_weights:
        if len(recipe.data_weights) != len(sources):
            raise TrainError(
                f"data_weights={recipe.data_weights} must have one number for each of the {len(sources)} --data."
            )
        weights = dict(zip(sources, recipe.data_weights, strict=True))
    return MixedRows.from_arguments(sources, arguments, weights)


def answer_labels(
    task: Task, recipe: AlproRecipe, rows: Dataset, answers: str | Path | None = None
) -> list[str] | None:
    """The answers that a question answering model chooses from, in the order of their indices.

    Args:
        task: What the training is for.
        recipe: Its `num_answers` is the size of the list if there is no file of answers.
        rows: Rows with the column `answer`, of which the most frequent are taken; ties are ordered by the alphabet.
        answers: A JSON file from answer to index, see `read_answers`.

    Returns:
        The answers; None: the task has none, or those of the starting checkpoint stay.

    Raises:
        TrainError: The indices of the file are not 0, 1, 2, ...
        OSError, ValueError: The file cannot be read.
    """
    if task != "qa":
        return None
    if answers:
        indices = read_answers(answers)
        if sorted(indices.values()) != list(range(len(indices))) or not indices:
            raise TrainError(f"{answers} must number its {len(indices)} answers 0 to {len(indices) - 1}, once each.")
        return sorted(indices, key=lambda answer: indices[answer])
    if recipe.num_answers is None:
        return None
    ranked = sorted(Counter(rows["answer"]).items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, _ in ranked[: recipe.num_answers]]


def first_entities(path: str | Path, recipe: AlproRecipe) -> list[str]:
    """The first `num_entities` names of a list of entities; all of them if the recipe sets no number."""
    return read_entities(path)[: recipe.num_entities]


def pem_entities(
    recipe: AlproRecipe,
    sources: Mapping[str, Dataset],
    *,
    prompter: str | Path | None = None,
    entities: str | Path | None = None,
) -> list[str]:
    """The names of the entities that pre-training predicts in PEM.

    Args:
        recipe: Its `num_entities` limits `entities`.
        sources: Rows by the name of their source; those with pseudo-labels need no teacher.
        prompter: Folder or Hub id of the teacher, which names its entities.
        entities: File with the names, where all rows have pseudo-labels.

    Raises:
        TrainError: There is no teacher for some rows, or pseudo-labels have another number of entities.
    """
    if prompter:
        names = AlproConfig.from_pretrained(_settings(str(prompter)), trust_remote_code=False).entities
        if not names:
            raise TrainError(
                f"--prompter {prompter} names no entities. Make one with alpro train --task prompter --entities."
            )
    elif entities:
        names = first_entities(entities, recipe)
    else:
        raise TrainError(
            "PEM needs a teacher: --prompter DIR; or, if all rows have pseudo-labels, --entities FILE; or switch it "
            "off with --pem_weight 0."
        )
    for source, rows in sources.items():
        if not is_labelled(rows):
            if not prompter:
                raise TrainError(f"{source} has no pseudo-labels ('pem_targets'); name the teacher with --prompter.")
            continue
        size = len(next(iter(rows))["pem_targets"])
        if size != len(names):
            raise TrainError(f"{source} has pseudo-labels for {size} entities; {len(names)} are named. Use the same.")
    return names


# -------------------------------------------------------------------------------------------- the model and its inputs


def own_sizes(*, model: str | None = None, vision: str | None = None, processor: str | None = None) -> dict[str, int]:
    """The sizes that the start of a training was made for, by the names of settings.

    Args:
        model: Folder or Hub id of an ALPRO checkpoint; or else
        vision: folder or Hub id of a ViT, which has an `image_size` alone.
        processor: Folder or Hub id of the processor, which has a `text_length`.
    """
    if model is None:
        if vision is None:
            return {}  # `start_model` refuses it
        size = getattr(AutoConfig.from_pretrained(_settings(vision), trust_remote_code=False), "image_size", None)
        return {"image_size": size} if isinstance(size, int) else {}
    settings = _settings(model)
    if AlproConfig.get_config_dict(settings)[0].get("model_type") != AlproConfig.model_type:
        return {}  # `start_model` refuses it
    video = AlproConfig.from_pretrained(settings, trust_remote_code=False).video_config
    source = _settings(processor, needs=None) if processor else settings
    tokenizer = AlproProcessor.from_pretrained(source, trust_remote_code=False).tokenizer
    return {
        "num_frames": video.num_frames,
        "image_size": video.image_size,
        "text_length": tokenizer.model_max_length,
    }


def _settings(name: str, needs: str | None = CONFIG) -> str:
    """The folder with the settings of a model by its name: given an id, the library would ask without bounds."""
    return download_settings(find_model(name, needs=needs))


def choose_sizes(
    recipe: AlproRecipe, own: Mapping[str, int], given: Collection[str], bundled: Mapping[str, Any]
) -> list[str]:
    """Let a model keep its own sizes where nobody asked for others, and say what becomes of them.

    The sizes of a bundled recipe are those of the paper, whose models see frames of 224 pixels. A model that was made
    for other frames keeps all its sizes. A recipe of one's own and `given` settings always win.

    Args:
        recipe: Its sizes are set to None where the model keeps its own.
        own: See `own_sizes`.
        given: Names of settings besides the recipe.
        bundled: Values of the recipe if it is a bundled one; else empty.

    Returns:
        Sentences for the user; none if all sizes stay as they are.
    """
    is_papers = own.get("image_size") == bundled.get("image_size", own.get("image_size"))
    kept, changed = [], []
    for name, size in own.items():
        value = getattr(recipe, name)
        if value in (None, size):
            continue
        if name in given or is_papers:
            changed.append(f"{name} {size} -> {value}")
        else:
            setattr(recipe, name, None)
            kept.append(f"{name} {size} instead of {value}")
    lines = []
    if kept:
        lines.append(
            f"sizes: the model keeps its own, {', '.join(kept)}: those of the recipe are for models of "
            f"{bundled['image_size']} pixels. Options such as --{kept[0].split()[0]} change them"
        )
    if changed:
        lines.append(
            f"sizes: the model was made for others, {', '.join(changed)}. Options such as "
            f"--{changed[0].split()[0]} {changed[0].split()[1]} keep them"
        )
    return lines


def start_model(
    task: Task,
    recipe: AlproRecipe,
    entities: list[str] | None = None,
    labels: list[str] | None = None,
    *,
    model: str | None = None,
    vision: str | None = None,
    text: str | None = None,
) -> tuple[Any, list[str]]:
    """The model of a task, with all weights of the starting checkpoint that fit it.

    Space and time embeddings are resized to the frames of the recipe, so that each frame learns its own. A head for
    other entities or answers than those of the checkpoint is new, even if its shape would fit.

    Args:
        task: What the training is for.
        recipe: Its number and size of frames, `drop_path_rate`, `patch_dropout` and `pem_threshold` go into the
            configuration. Its `fusion_layers` are appended to a start that has none.
        entities: Names of the entities of PEM; None: no PEM.
        labels: Answers in the order of their indices; None: those of the checkpoint.
        model: Folder or Hub id of an ALPRO checkpoint or of BLIP for image-text retrieval, or `bundled`; or else
        vision, text: folders or Hub ids of a ViT and a BERT.

    Returns:
        The model in float32, and the names of its parts whose weights are new.

    Raises:
        TrainError: There is no starting checkpoint, or it is of another type, incomplete, or has unnamed answers; or
            it does not fit `fusion_layers`.
        ValueError: A BLIP checkpoint is incomplete.
    """
    model_class = MODELS[task]
    source: Any
    video = {"num_frames": recipe.num_frames, "image_size": recipe.image_size}
    video = {name: value for name, value in video.items() if value is not None}
    if model:
        model = find_model(model, "qa" if task == "qa" else "retrieval")
    if model and is_image_text(model):
        towers = AlproModel.from_image_text_pretrained(download_model(model, pickled=True), video_config=video)
        source, new = _with_towers(model_class, towers)
        new |= {"temperature"}
    elif model:
        found, _ = AlproConfig.get_config_dict(_settings(model))
        if found.get("model_type") != AlproConfig.model_type:
            raise TrainError(
                f"--model {model} holds a model of type {found.get('model_type')!r}, neither an ALPRO model nor BLIP "
                "for image-text retrieval. A ViT and a BERT are given with --vision and --text."
            )
        # The library would warn about every new weight. `train` prints the new parts of the model instead.
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        source, info = model_class.from_pretrained(
            download_model(model), dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        logging.set_verbosity(verbosity)
        new = set(info["missing_keys"])
        if any(name.startswith(("alpro.", "text_model.", "video_model.")) for name in new):
            raise TrainError(f"--model {model} is incomplete: it lacks {', '.join(sorted(new)[:3])}, ...")
    elif vision is None or text is None:
        raise TrainError("Say what to start from: --model START, or --vision VIT and --text BERT.")
    else:
        folders = [download_model(find_model(name), pickled=True) for name in (vision, text)]
        source, new = _with_towers(model_class, AlproModel.from_unimodal_pretrained(*folders, video_config=video))
        new |= {"projections", "temperature"}
    config = _start_config(source.config, task, recipe, entities, labels)
    kept = _fitting(source, config)
    if added := _add_fusion_layers(kept, source.config, config):
        new.add(f"{added} fusion layers from the last text layers")
    started = model_class(config)
    state = started.state_dict()
    new |= state.keys() - kept.keys()
    started.load_state_dict(state | kept)
    if "vtm_head.weight" in kept:
        started.config.matching_trained = source.config.matching_trained
    return started, sorted({name.removeprefix("alpro.").split(".")[0] for name in new})


def is_image_text(source: str | Path) -> bool:
    """Whether a folder or Hub id holds an image-text model that a training can start from: BLIP or ChineseCLIP."""
    found, _ = AlproConfig.get_config_dict(download_settings(str(source)))
    return found.get("model_type") in ("blip", "chinese_clip")


def _with_towers(model_class: Any, towers: AlproModel) -> tuple[Any, set[str]]:
    """A model with the weights of two towers, and the names of its other weights, which are new."""
    source = model_class(copy.deepcopy(towers.config))
    source.base_model.load_state_dict(towers.state_dict())
    # a model without a head is the towers themselves
    new = set() if source.base_model is source else {n for n, _ in source.named_parameters() if n[:6] != "alpro."}
    return source, new


def _add_fusion_layers(state: dict[str, torch.Tensor], source: AlproConfig, config: AlproConfig) -> int:
    """Add fusion layers to the weights of a start that has none, as copies of its last text layers.

    Returns:
        The number of layers added.
    """
    before, after = source.text_config.num_hidden_layers, config.text_config.num_hidden_layers
    for name in list(state):
        head, layers, rest = name.partition("text_model.layers.")
        number, _, tensor = rest.partition(".")
        if layers and int(number) >= 2 * before - after:
            state[f"{head}{layers}{int(number) + after - before}.{tensor}"] = state[name].clone()
    return after - before


def _start_config(
    source: AlproConfig, task: Task, recipe: AlproRecipe, entities: list[str] | None, labels: list[str] | None
) -> AlproConfig:
    config: Any = copy.deepcopy(source)  # Any: the library's `id2label` may be None for its type, and never is
    config.video_config.num_frames = recipe.num_frames or config.video_config.num_frames
    config.video_config.image_size = recipe.image_size or config.video_config.image_size
    if recipe.drop_path_rate is not None:
        config.video_config.drop_path_rate = recipe.drop_path_rate
    if recipe.patch_dropout is not None:
        config.video_config.patch_dropout = recipe.patch_dropout
    text = config.text_config
    if recipe.fusion_layers and text.fusion_layer == text.num_hidden_layers:
        if recipe.fusion_layers > text.fusion_layer or text.hidden_size != config.video_config.hidden_size:
            raise TrainError(
                f"--fusion_layers {recipe.fusion_layers} does not fit the start: it needs as many text layers, which "
                f"are {text.fusion_layer}, and towers of one width, which are {text.hidden_size} (text) and "
                f"{config.video_config.hidden_size} (video). Fewer layers are possible, or none: --fusion_layers 0 "
                "--vtm_weight 0."
            )
        text.num_hidden_layers += recipe.fusion_layers
    config.entities = entities if task == "pretrain" else None
    if recipe.pem_threshold is not None and task == "pretrain":
        config.pem_threshold = recipe.pem_threshold
    if labels is not None:
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    # the names that the library makes up for a configuration without labels
    elif task == "qa" and set(config.id2label.values()) == {f"LABEL_{i}" for i in range(len(config.id2label))}:
        raise TrainError("The answers are not named. Give --answers FILE, or num_answers in the recipe.")
    config.video_config.validate()
    config.validate()
    return config


def _fitting(source: Any, config: AlproConfig) -> dict[str, torch.Tensor]:
    """The weights of a model that a model with another configuration takes over, with resized embeddings."""
    state = source.state_dict()
    # Heads for other names are dropped even if they have the same size: their weights would load and be wrong.
    stale = {"pem_head.": source.config.entities != config.entities}
    stale["classifier."] = source.config.id2label != config.id2label
    state = {
        name: tensor
        for name, tensor in state.items()
        if not any(name.startswith(head) and old for head, old in stale.items())
    }
    tower = source.base_model.video_model.embeddings
    prefix = "" if isinstance(source, AlproModel) else "alpro."
    grid = config.video_config.image_size // config.video_config.patch_size
    with torch.no_grad():
        state[f"{prefix}video_model.embeddings.time_embeddings"] = tower.frame_embeddings(
            config.video_config.num_frames
        ).clone()
        # the first position is [CLS], which has no place in the grid
        state[f"{prefix}video_model.embeddings.position_embeddings"] = torch.cat(
            [tower.position_embeddings[:, :1], tower.space_embeddings(grid, grid)], dim=1
        )
    return state


def start_processor(
    recipe: AlproRecipe, config: AlproConfig, *, processor: str | None = None, text: str | None = None
) -> AlproProcessor:
    """The processor for training, which is also saved with the model.

    Args:
        recipe: Its sizes, `eval_sampling` and `text_length` are set on the processor.
        config: Configuration of the model to train.
        processor: Folder or Hub id of a processor to start from, or of BLIP; or else
        text: folder or Hub id of a BERT with its tokenizer.

    Raises:
        TrainError: `text_length` is more than the model can read.
    """
    if processor:
        processor = _settings(processor, needs=None)
    if processor and is_image_text(processor):
        started = AlproProcessor.from_image_text_pretrained(processor)
    elif processor:
        started = AlproProcessor.from_pretrained(processor, trust_remote_code=False)
    else:
        if text is None:
            raise TrainError("Say where the tokenizer is: --processor, or --text BERT.")
        tokenizer = AutoTokenizer.from_pretrained(_settings(text, needs=None), trust_remote_code=False)
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        started = AlproProcessor(video_processor=AlproVideoProcessor(), tokenizer=tokenizer)
    video = started.video_processor
    video.num_frames = config.video_config.num_frames
    if recipe.image_size or not processor:
        video.size = {"height": config.video_config.image_size, "width": config.video_config.image_size}
    if recipe.eval_sampling:
        video.frame_sampling = recipe.eval_sampling
    if recipe.text_length:
        longest = config.text_config.max_position_embeddings
        if recipe.text_length > longest:
            raise TrainError(f"text_length={recipe.text_length} is more than the {longest} tokens the model reads.")
        started.tokenizer.model_max_length = recipe.text_length
    return started


def make_collator(
    task: Task,
    recipe: AlproRecipe,
    arguments: AlproTrainingArguments,
    processor: AlproProcessor,
    config: AlproConfig,
    entities: list[str] | None,
) -> AlproCollator:
    """The collator of a task, with the augmentation, the masking and the seeds of the recipe.

    Args:
        task: What the training is for.
        recipe: Augmentation, sampling and masking.
        arguments: The seed, and `mlm_weight`, whose 0 switches masking off.
        processor: Tokenizer and video processor.
        config: Configuration of the model, whose `label2id` numbers the answers.
        entities: Names of the entities of PEM; None: no crops are drawn.
    """
    size = processor.video_processor.size
    operations = [operation for operation in OPERATIONS if operation not in recipe.leave_out]
    augmentations: dict[str, AlproAugmentation | None] = {"video": None, "image": None}
    if recipe.augmentation != "none":
        for kind in ("video", "image"):
            augmentations[kind] = AlproAugmentation(
                kind if recipe.augmentation == "pretrain" else "finetune",
                (size["height"], size["width"]),
                operations=operations,
                randaugment=recipe.randaugment,
            )
    decoder = IsolatedDecoder(processes=1) if recipe.isolate_decoding else None
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if task in ("prompter", "pretrain"):
        return AlproPreTrainingCollator(
            processor,
            video_augmentation=augmentations["video"],
            image_augmentation=augmentations["image"],
            mlm_probability=recipe.mlm_probability if task == "pretrain" and arguments.mlm_weight else 0,
            pem=entities is not None,
            patch_size=config.video_config.patch_size,
            image_frames=recipe.image_frames,
            crop_share=recipe.crop_share if task == "prompter" else 0.0,
            train_sampling=recipe.train_sampling,
            seed=seed,
            decoder=decoder,
        )
    labels: Any = config.label2id
    return AlproCollator(
        processor,
        task="qa" if task == "qa" else "retrieval",
        label2id=labels if task == "qa" else None,
        train_sampling=recipe.train_sampling,
        seed=seed,
        augmentation=augmentations["video"],
        decoder=decoder,
    )


__all__ = [
    "MODELS",
    "TrainError",
    "answer_labels",
    "choose_sizes",
    "first_entities",
    "is_image_text",
    "make_collator",
    "own_sizes",
    "pem_entities",
    "start_model",
    "start_processor",
    "training_rows",
]
