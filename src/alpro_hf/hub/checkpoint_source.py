"""Find the files of a checkpoint that a user names: a file, a folder, or a repository on the Hub."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from ..model.unimodal_alpro import CheckpointError
from ..untrusted_json import read_json

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")  # in the order of preference, where a repository has several


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint on this machine.

    Attributes:
        source: What the user named.
        files: Files with weights: one, or the parts of a sharded checkpoint.
        folder: Folder that holds them, with a configuration in it, where the source is a folder or a repository.
    """

    source: str
    files: tuple[Path, ...]
    folder: Path | None = None

    def facts(self) -> list[dict[str, Any]]:
        """Name, size in bytes and sha256 of each file; reads them once."""
        return [{"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)} for path in self.files]


def find_checkpoint(source: str | Path) -> Checkpoint:
    """Find the files of a checkpoint, and download them where they are not on this machine.

    Args:
        source: A file, a folder, or a Hub id (`namespace/name`). What exists on this machine comes first.

    Raises:
        FileNotFoundError: There is no such file, and the name cannot be one on the Hub.
        CheckpointError: The folder or repository has no weights, several checkpoints, or an ALPRO model; or the Hub
            cannot be asked.
    """
    path = Path(source)
    if path.is_dir():
        return Checkpoint(str(source), _weights_of(path), path)
    if path.exists():
        return Checkpoint(str(source), (path,))
    if _is_hub_id(str(source)):
        folder = _from_hub(str(source))
        return Checkpoint(str(source), _weights_of(folder, str(source)), folder)
    raise FileNotFoundError(f"{source} does not exist. Name a file, a folder, or a Hub id (namespace/name).")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    """Whether a name that is no path on this machine can be one on the Hub."""
    # `checkpoints/file.pt` with a typing error is a file that does not exist, not a question for the Hub
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)) and not (
        source.endswith(WEIGHTS) or Path(source).parent.is_dir()
    )


def _from_hub(repo_id: str) -> Path:
    """Download weights and configuration of a repository to the cache, and return their folder."""
    try:
        names = huggingface_hub.HfApi().list_repo_files(repo_id)
        found = next((group for suffix in WEIGHTS if (group := [n for n in names if n.endswith(suffix)])), [])
        wanted = [*found, *(f"{name}.index.json" for name in found), "*.index.json", "config.json"]
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=wanted))
    except OfflineModeIsEnabled:
        raise CheckpointError(f"{repo_id} cannot be downloaded, because HF_HUB_OFFLINE is set.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(
            f"{repo_id} does not exist here, and the Hub does not give it (status {status}): check the name."
        ) from error
    except (HTTPError, ConnectionError) as error:
        raise CheckpointError(
            f"{repo_id} does not exist here, and the Hub cannot be reached ({type(error).__name__}): check the name "
            "and the connection."
        ) from error


def _weights_of(folder: Path, name: str | None = None) -> tuple[Path, ...]:
    """The files of the one checkpoint in a folder."""
    name = name or str(folder)
    if _model_type(folder) == "alpro":
        raise CheckpointError(f"{name} is an ALPRO model folder already: use it as it is, for example with --model.")
    for suffix in WEIGHTS:
        files = sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())
        sharded = files and all(re.search(r"-\d{5}-of-\d{5}\.", path.name) for path in files)
        if len(files) > 1 and not sharded:
            listed = ", ".join(path.name for path in files[:10])
            raise CheckpointError(f"{name} holds several checkpoints: {listed}. Name one of these files.")
        if sharded and len(files) != (whole := int(files[0].stem[-5:])):
            raise CheckpointError(f"{name} holds {len(files)} of the {whole} parts of its checkpoint.")
        if files:
            return tuple(files)
    raise CheckpointError(f"{name} holds no weights: there is no file that ends in {', '.join(WEIGHTS)}.")


def _model_type(folder: Path) -> object:
    """The type of model that a folder has a configuration of; None without one."""
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not valid JSON: {error}.") from None
    return config.get("model_type") if isinstance(config, dict) else None


__all__ = ["WEIGHTS", "Checkpoint", "find_checkpoint", "sha256_of"]
