"""Load a model and its processor by name, and choose a device and a data type.

Importing this module imports no library: torch and transformers are imported when a model is loaded, so that commands
can import it before they parse their arguments.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .untrusted_json import read_json

if TYPE_CHECKING:
    import torch
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

BUNDLED = "bundled"  # as the name of a model: the one that the package contains for the task
# the bundled models by names that say the task, for commands that work with either
BUNDLED_BY_TASK: dict[str, Literal["retrieval", "qa"]] = {"bundled-retrieval": "retrieval", "bundled-qa": "qa"}
CONFIG, _PROCESSOR = "config.json", "processor_config.json"
_WEIGHTS = (".bin", ".pt", ".pth", ".safetensors", ".zip")
_SECONDS = 5.0  # for the Hub to answer whether it has a model
_SETTINGS = (".json", ".txt", ".jinja")  # endings of the files that a model is described by
_ENDPOINT = "Check HF_ENDPOINT and proxies."
_MAX_SETTINGS, _SETTINGS_BYTES = 100, 1 << 26  # how many of them, and the size of each


class CommandError(Exception):
    """A command cannot do its work with the given arguments; the message says why and what to change."""


class ModelNotFoundError(OSError):
    """No model has the given name: neither a folder, nor a bundled model, nor one that the Hub would give."""


def find_model(
    name: str,
    task: Literal["retrieval", "towers", "qa"] = "retrieval",
    revision: str | None = None,
    *,
    needs: str | None = CONFIG,
    api: "HfApi | None" = None,
) -> str:
    """Find a model by its name, before anything is loaded.

    Args:
        name: Folder, Hub id, `bundled`, `bundled-retrieval` or `bundled-qa`.
        task: The task that `bundled` is asked for.
        revision: Branch, tag or commit of a Hub id.
        needs: File that makes a folder the one of a model. None: not looked at, for folders of processors.
        api: Client, for an endpoint or a token other than those of the environment.

    Returns:
        A folder or a Hub id, for `from_pretrained`. If the Hub cannot be reached, the folder of an earlier download.
        Its JSON files were found to be within bounds; those of a Hub id are in the cache now.

    Raises:
        ModelNotFoundError: There is no such model. The message says where it was looked for, and names a similar
            folder if there is one. Without a network, it says that the Hub could not be asked.
        CommandError: Its settings are too large or too many, nested too deep, or not JSON.
    """
    from .assets import bundled_model

    if name == BUNDLED or name in BUNDLED_BY_TASK:
        return bundled_model(BUNDLED_BY_TASK.get(name, "qa" if task == "qa" else "retrieval"))
    if not name.strip():
        raise ModelNotFoundError("The name of the model is blank. Name a folder, a Hub id, or 'bundled'.")
    if os.path.isdir(name):
        if needs is not None and not os.path.isfile(os.path.join(name, needs)):
            raise ModelNotFoundError(_about_folder(Path(name), needs))
        _check_settings(Path(name))
        return name
    if os.path.exists(name):
        raise ModelNotFoundError(_about_file(Path(name)))
    if "://" in name:
        raise ModelNotFoundError(
            f"{name} is a URL. Name a folder or a Hub id, such as acme/alpro-msrvtt; alpro convert takes URLs of "
            "weights."
        )
    return _find_on_hub(name, revision, needs, api)


def portable_name(source: str) -> str:
    """The name of a model for a file that may be read on another machine: bundled models have other folders there."""
    from .assets import bundled_model

    for name, task in BUNDLED_BY_TASK.items():
        if os.path.realpath(source) == os.path.realpath(bundled_model(task)):
            return name
    return source


def _about_folder(folder: Path, needs: str) -> str:
    inner = sorted(path.parent for path in folder.glob(f"*/{needs}"))
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS)
    problem = f"The folder {folder} does not contain a model: there is no {needs} in it."
    if inner:
        problem += f" There is one in {', '.join(map(str, inner[:3]))}."
    elif weights:
        problem += f" alpro convert {folder / weights[0]} --output DIR makes a model folder of its weights."
    return problem


def _about_file(path: Path) -> str:
    if (path.parent / CONFIG).is_file():
        return f"{path} is a file. Name the folder of the model: {path.parent}"
    if path.suffix in _WEIGHTS:
        return f"{path} is a file, not the folder of a model. alpro convert {path} --output DIR makes one of it."
    return f"{path} is a file, not the folder of a model."


def _similar(name: str) -> str:
    """A sentence with the model whose name is most like a wrong one; nothing if there is none."""
    path = Path(name)
    try:
        folders = [found.parent.name for found in path.parent.glob(f"*/{CONFIG}")]
    except (OSError, ValueError):  # the parent cannot be read, or is no path
        folders = []
    known = {str(path.parent / folder): folder for folder in folders}
    known |= {bundled: bundled for bundled in (BUNDLED, *BUNDLED_BY_TASK)}
    lowered = {folder.lower(): shown for shown, folder in known.items()}
    nearest = difflib.get_close_matches(path.name.lower(), lowered, n=1, cutoff=0.75)
    if nearest:
        return f" Did you mean {lowered[nearest[0]]}?"
    if name.startswith("~") and os.path.isdir(os.path.expanduser(name)):
        return f" Did you mean {os.path.expanduser(name)}? The shell expands ~ only at the start of a word."
    return ""


def _find_on_hub(name: str, revision: str | None, needs: str | None, api: "HfApi | None") -> str:
    """The id of a model on the Hub, or the folder of its earlier download if the Hub cannot be reached."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    from .bounded_answers import UnboundedAnswerError, bounded_answers

    missing = f"There is no folder {name} here"
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelNotFoundError(
            f"{missing}, and it cannot be the id of a model on the Hub.{_similar(name)}"
        ) from None
    try:
        # one request without repetitions: loading would try again for half a minute before it gives up
        with bounded_answers(patience=4 * _SECONDS):
            found = (api or HfApi()).model_info(name, revision=revision, timeout=_SECONDS, files_metadata=True)
    except UnboundedAnswerError as error:
        raise ModelNotFoundError(f"{missing}, and the Hub does not answer as one ({error}). {_ENDPOINT}") from error
    except GatedRepoError:
        raise ModelNotFoundError(
            f"{missing}, and {name} on the Hub gives access only on request. Ask for it on its page, then run hf auth "
            "login."
        ) from None
    except RevisionNotFoundError:
        raise ModelNotFoundError(f"{name} on the Hub has no branch, tag or commit {revision!r}.") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404):
            raise ModelNotFoundError(
                f"{missing}, and no such model on the Hub.{_similar(name)} A private model needs hf auth login."
            ) from None
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise ModelNotFoundError(
                f"{missing}, and the Hub refuses to say whether it has {name}: {' '.join(str(error).split())}"
            ) from error
        for file in (CONFIG, _PROCESSOR) if needs is None else (needs,):
            cached = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(cached, str):
                _check_settings(Path(cached).parent)
                return str(Path(cached).parent)
        offline = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE keeps the Hub from being asked" if offline else "the Hub could not be reached"
        raise ModelNotFoundError(
            f"{missing}, {why}, and the cache holds no earlier download of such a model.{_similar(name)}"
        ) from error
    if needs and needs not in {file.rfilename for file in found.siblings or ()}:
        raise ModelNotFoundError(f"{name} on the Hub does not contain a model: there is no {needs} in it.")
    try:
        with bounded_answers(_SETTINGS_BYTES):
            _fetch_settings(name, revision, found, api or HfApi())
    except UnboundedAnswerError as error:
        raise CommandError(f"the settings of {name} on the Hub cannot be downloaded: {error}. {_ENDPOINT}") from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise ModelNotFoundError(
            f"The settings of {name} on the Hub cannot be downloaded: {' '.join(str(error).split())}"
        ) from error
    return name


def _fetch_settings(name: str, revision: str | None, found: "ModelInfo", api: "HfApi") -> Path | None:
    """Download the files that describe a model, after their sizes are known, into the cache of `from_pretrained`.

    The cache then also knows the revision by its name, so that the model is found without a network.

    Returns:
        Their folder; None if there are none.

    Raises:
        CommandError: They are too many or too large, or see `_check_settings`.
    """
    from huggingface_hub import try_to_load_from_cache

    # the library reads no settings in subfolders
    files = [file for file in found.siblings or () if file.rfilename.endswith(_SETTINGS) and "/" not in file.rfilename]
    if len(files) > _MAX_SETTINGS:
        raise CommandError(
            f"{name} on the Hub has {len(files):,} files of settings; at most {_MAX_SETTINGS} are read."
        )
    for file in files:
        if (file.size or 0) > _SETTINGS_BYTES:
            raise CommandError(
                f"{file.rfilename} of {name} on the Hub has {file.size:,} bytes; at most {_SETTINGS_BYTES:,} are read."
            )
    if files:
        known = try_to_load_from_cache(name, files[0].rfilename, revision=revision)
        if not isinstance(known, str) or Path(known).parent.name != found.sha:
            api.hf_hub_download(name, files[0].rfilename, revision=revision)  # a download by commit notes no name
    path = None
    for file in files:  # by commit: one that is in the cache needs no request
        path = Path(api.hf_hub_download(name, file.rfilename, revision=found.sha))
        if path.stat().st_size > _SETTINGS_BYTES:  # the list may be wrong
            raise CommandError(f"{path} is larger than the {_SETTINGS_BYTES:,} bytes that are read.")
        _check_json(path)
    return path.parent if path else None


def _check_settings(folder: Path) -> None:
    """Check that all JSON files of a folder are within bounds, before a library reads them.

    Raises:
        CommandError: One of them is not.
        OSError: One of them cannot be read.
    """
    for path in sorted(folder.glob("*.json")):
        if path.name != "trainer_state.json":  # the log of a training, which no model is loaded from, may be large
            _check_json(path)


def _check_json(path: Path) -> None:
    if path.suffix != ".json":
        return
    try:
        content = read_json(path, max_bytes=_SETTINGS_BYTES, nan=path.name != CONFIG)
    except ValueError as error:
        raise CommandError(f"{path} cannot be used: {error}.") from error
    files = content.get("weight_map") if path.name.endswith(".index.json") and isinstance(content, dict) else None
    if files is not None and not (
        isinstance(files, dict) and all(Path(str(file)).name == file for file in files.values())
    ):
        raise CommandError(f"{path} names files of weights that are not in its folder.")


def load_model(
    task: Literal["retrieval", "towers", "qa"],
    name: str,
    dtype: str | None = None,
    *,
    revision: str | None = None,
    device: Any = None,
) -> tuple[Any, Any]:
    """Load a model and its processor for a task, on the GPU if there is one.

    Args:
        task: `retrieval`, whose model has no matching head if the checkpoint is of a bare `AlproModel`; `towers`,
            which is retrieval without the matching head, so every checkpoint has it; or `qa`.
        name: Folder, Hub id, or `bundled`, see `find_model`.
        dtype: `float32`, `bfloat16`, `auto` for `best_dtype`, or `int8` for `with_int8_weights`; None means float32.
        revision: Branch, tag or commit of a Hub id.
        device: Device of the model; None means `best_device()`, and the CPU for `int8`.

    Returns:
        The model, in evaluation mode and on its device, and its processor.

    Raises:
        CommandError: The checkpoint is not an ALPRO model, is damaged, or lacks the weights of the task.
        ModelNotFoundError: There is no such model.
        OSError: The checkpoint cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    from .model.configuration_alpro import AlproConfig
    from .model.modeling_alpro import AlproForVideoQuestionAnswering, AlproForVideoTextRetrieval, AlproModel
    from .model.processing_alpro import AlproProcessor

    # Missing weights are an error below. The library only warns about them, and also about weights that the task does
    # not use, which is normal: every ALPRO checkpoint serves several tasks.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source, listed = find_model(name, task, revision), None
    if not os.path.isdir(source):
        source, listed = _settings_of(source, revision)
    config = _config_of(source, name)
    kind = config.get("model_type")
    if kind != AlproConfig.model_type:
        advice = f" alpro convert {name} --output DIR makes one of it." if kind == "blip" else ""
        raise CommandError(f"{name} holds a model of type {kind!r}, not an ALPRO model.{advice}")
    model_class: Any = {
        "retrieval": AlproForVideoTextRetrieval,
        "towers": AlproModel,
        "qa": AlproForVideoQuestionAnswering,
    }[task]
    if task == "retrieval" and has_towers_alone(config):
        model_class = AlproModel
    if device is None:
        device = torch.device("cpu") if dtype == "int8" else best_device()
    # 8-bit weights are made of those in float32
    numbers = (
        best_dtype(device) if dtype == "auto" else getattr(torch, "float32" if dtype == "int8" else dtype or "float32")
    )
    _check_weights(source, listed, model_class, config, name)
    if listed is not None:
        fetch_files(name, _weights_in(listed), listed.sha)
    try:  # from a folder, also of a model on the Hub: all of it is in the cache now, and nothing more is asked for
        model, info = model_class.from_pretrained(
            source, dtype=numbers, output_loading_info=True, trust_remote_code=False
        )
    except SafetensorError as error:
        raise CommandError(
            f"the weights of {name} are damaged or incomplete ({error}): copy or download them again."
        ) from error
    if listed is not None:
        model.config._name_or_path = model.name_or_path = name  # not the cache, which another machine does not have
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CommandError(f"{name} was not trained for {task}: it lacks {missing}, ... Name another --model.")
    try:
        processor = AlproProcessor.from_pretrained(source, trust_remote_code=False)
    # the library acts upon the settings before it checks their types
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CommandError(f"the processor of {name} cannot be used ({reason:.300}).") from error
    _check_sides(processor.video_processor, model.config.video_config.patch_size, name)
    model = model.to(device)
    return with_int8_weights(model) if dtype == "int8" else model, processor


def with_int8_weights(model: Any) -> Any:
    """A copy of a model whose linear layers multiply 8-bit integers, which is quicker on many CPUs.

    Weights have one scale for each output. What a layer reads is rounded with one scale for each call, so results
    depend a little on what is computed together. Everything else stays float32. The copy cannot be trained or saved.

    Args:
        model: A float32 model on the CPU.

    Raises:
        CommandError: It is on another device or of another type; or this PyTorch has no such layers.
    """
    import warnings

    import torch

    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise CommandError(
            f"int8 needs a float32 model on the CPU, and this one is in {str(model.dtype).removeprefix('torch.')} on "
            f"{model.device}. On other devices, use bfloat16."
        )
    with warnings.catch_warnings():
        # PyTorch advises torchao instead, whose such layers are many times slower than float32 on a CPU
        warnings.simplefilter("ignore")
        try:
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            return quantize_dynamic(model, {torch.nn.Linear: per_channel_dynamic_qconfig})
        except (ImportError, RuntimeError) as error:  # no engine for them, such as in a build for another processor
            reason = " ".join(str(error).split())
            raise CommandError(f"this PyTorch computes no int8 weights ({reason:.200}). Use float32.") from error


def has_int8_weights(model: Any) -> bool:
    """Whether a model is one of `with_int8_weights`."""
    return any(name.endswith("._packed_params") for name in model.state_dict())


def _check_sides(video: Any, patch: int, name: str) -> None:
    """Check that the frames of a processor fit a model, where its settings tell their size.

    Raises:
        CommandError: Patches do not tile them.
    """
    sides = video.crop_size if video.do_center_crop else video.size if video.do_resize else None
    known = [sides[side] for side in ("height", "width") if sides and sides.get(side)]
    if any(side % patch for side in known):
        raise CommandError(
            f"the processor of {name} cannot be used: it makes frames of {' x '.join(map(str, known))} pixels, which "
            f"patches of {patch} x {patch} do not tile."
        )


def has_towers_alone(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was saved without any head, by the content of its `config.json`.

    Such a model is loaded as an `AlproModel`. It compares texts and videos by similarity alone.
    """
    return config.get("architectures") in (["AlproModel"], ["AlproPrompterModel"])


def _settings_of(name: str, revision: str | None, api: "HfApi | None" = None) -> "tuple[str, ModelInfo]":
    """The folder in the cache with the settings of a model on the Hub, and the list of its files.

    Raises:
        CommandError: The Hub does not answer as one, or see `_fetch_settings`.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    from .bounded_answers import UnboundedAnswerError, bounded_answers

    api = api or HfApi()
    try:
        with bounded_answers(_SETTINGS_BYTES):
            listed = api.model_info(name, revision=revision, files_metadata=True)
            folder = _fetch_settings(name, revision, listed, api)
            return str(folder or Path(api.hf_hub_download(name, CONFIG, revision=listed.sha)).parent), listed
    except UnboundedAnswerError as error:
        raise CommandError(f"the settings of {name} cannot be downloaded: {error}. {_ENDPOINT}") from error


def download_settings(source: str, revision: str | None = None, api: "HfApi | None" = None) -> str:
    """Download the files that describe a model of the Hub to the cache, within the bounds that `find_model` names.

    Args:
        source: What `find_model` returned: a folder, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        api: Client, for an endpoint or a token other than those of the environment.

    Returns:
        The folder, for configurations and processors, which then ask for nothing more.

    Raises:
        CommandError, OSError: As `download_model`.
    """
    return source if os.path.isdir(source) else _settings_of(source, revision, api)[0]


def download_model(source: str, revision: str | None = None, *, pickled: bool = False) -> str:
    """Download a model of the Hub to the cache, within bounds: what `find_model` says, and weights as large as listed.

    Args:
        source: What `find_model` returned: a folder, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        pickled: Whether weights may be old `.bin` files if there are no safetensors, for models of other makers.

    Returns:
        The folder, for `from_pretrained`, which then asks for nothing more.

    Raises:
        CommandError: The Hub does not answer as one, or something is too large.
        OSError: The Hub cannot be reached.
    """
    if os.path.isdir(source):
        return source
    folder, listed = _settings_of(source, revision)
    if weights := _weights_in(listed, pickled):  # without any, `from_pretrained` has an error for it
        fetch_files(source, weights, listed.sha)
    return folder


def _weights_in(listed: "ModelInfo", pickled: bool = False) -> "list[RepoSibling]":
    """The files of a model on the Hub that its weights are loaded from."""
    files = {file.rfilename: file for file in listed.siblings or () if "/" not in file.rfilename}
    chosen: list[RepoSibling] = []
    for stem, ending in (("model", ".safetensors"), *([("pytorch_model", ".bin")] if pickled else ())):
        parts = [file for path, file in files.items() if path.startswith(f"{stem}-") and path.endswith(ending)]
        chosen = chosen or ([files[stem + ending]] if stem + ending in files else parts)
    return chosen


def fetch_files(name: str, files: "Sequence[RepoSibling]", commit: str | None, api: "HfApi | None" = None) -> Path:
    """Download files of a model on the Hub to the cache; none may be larger than the list says.

    Args:
        name: Hub id.
        files: One or more of its files, not in subfolders, as `HfApi.model_info(files_metadata=True)` lists them.
        commit: The commit that was listed.
        api: Client, for an endpoint or a token other than those of the environment.

    Returns:
        The folder in the cache.

    Raises:
        CommandError: The list does not say how large one is; or the server sends more, or less.
        OSError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    from .bounded_answers import UnboundedAnswerError, bounded_answers

    if hidden := [file.rfilename for file in files if file.size is None]:
        raise CommandError(f"the Hub does not say how large {hidden[0]} of {name} is. {_ENDPOINT}")
    for file in files:
        try:
            with bounded_answers(max(file.size or 0, _SETTINGS_BYTES)):  # the other answers are bounded, too
                path = (api or HfApi()).hf_hub_download(name, file.rfilename, revision=commit)
        except UnboundedAnswerError as error:
            raise CommandError(f"the files of {name} on the Hub cannot be downloaded: {error}. {_ENDPOINT}") from error
        if (size := os.path.getsize(path)) != file.size:
            raise CommandError(f"{path} has {size:,} bytes, but the Hub lists it with {file.size:,}. {_ENDPOINT}")
    return Path(path).parent


def _config_of(source: str, name: str) -> dict[str, Any]:
    """The fields of a config.json.

    Raises:
        CommandError: The configuration cannot be used.
        OSError: The folder cannot be read.
    """
    from .model.configuration_alpro import AlproConfig

    try:
        fields, _ = AlproConfig.get_config_dict(source)
        if fields.get("model_type") == AlproConfig.model_type:
            AlproConfig.from_dict(dict(fields))
    # the library acts upon some fields before their types are checked
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise CommandError(f"the config.json of {name} cannot be used: {error}") from error
    return fields


def _check_weights(
    source: str, listed: "ModelInfo | None", model_class: Any, config: dict[str, Any], name: str
) -> None:
    """Check that the weights of a model may be as many as its configuration says, before memory is taken for them.

    Raises:
        CommandError: They are fewer: each takes at least half a byte; or the Hub does not say how large they are.
    """
    import torch

    if listed is None:
        sizes = [path.stat().st_size for path in Path(source).glob("*.safetensors")]
    else:
        files = _weights_in(listed)
        if any(file.size is None for file in files):  # an error of `fetch_files`
            return
        sizes = [file.size or 0 for file in files]
    if not sizes:  # an error of `from_pretrained`
        return
    with torch.device("meta"):
        described = sum(
            one.numel() for one in model_class(model_class.config_class.from_dict(dict(config))).parameters()
        )
    if described > 2 * sum(sizes):
        raise CommandError(
            f"the config.json of {name} describes {described:,} weights, but its files of weights have only "
            f"{sum(sizes):,} bytes."
        )


def fast_bfloat16(device: "torch.device | str") -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    A CPU does so with AVX512-BF16 or AMX. Other CPUs emulate each product, which is several times slower than float32.
    NVIDIA GPUs do so since Ampere. For all other devices the answer is False.

    Args:
        device: A device such as `model.device` or "cuda:1".
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        # torch has no public function for this question
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current device
            # by default also GPUs that emulate bfloat16 count as supporting it
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def best_device() -> "torch.device":
    """The first GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_dtype(device: "torch.device | str") -> "torch.dtype":
    """bfloat16 if the device has it in hardware, else float32, which is more exact and on such devices also faster."""
    import torch

    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


__all__ = [
    "BUNDLED",
    "BUNDLED_BY_TASK",
    "CONFIG",
    "CommandError",
    "ModelNotFoundError",
    "best_device",
    "best_dtype",
    "download_model",
    "download_settings",
    "fast_bfloat16",
    "fetch_files",
    "find_model",
    "has_int8_weights",
    "has_towers_alone",
    "load_model",
    "portable_name",
    "with_int8_weights",
]
