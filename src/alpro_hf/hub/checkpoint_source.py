"""Find the files of a checkpoint that a user names: a file, a folder, a known name, an address, or a repository."""

import difflib
import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from ..bounded_answers import bounded_answers
from ..loading import CommandError, fetch_files
from ..model.unimodal_alpro import CheckpointError
from ..untrusted_json import read_json
from .checkpoint_archive import is_archive, member_of
from .checkpoint_file import WEIGHTS
from .download import download, is_url, public
from .known_checkpoints import KNOWN

# files that the conversion of a BLIP model reads besides weights and config.json
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
VOCABULARIES = ("vocab.txt", "tokenizer.json")
_SECONDS = 5.0  # for the Hub to answer whether it has a repository


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint on this machine.

    Attributes:
        source: What the user named, without passwords in an address.
        files: Files with weights: one, or the parts of a sharded checkpoint.
        folder: Folder that holds them, with a configuration in it, where the source is a folder or a repository.
        url: Where the checkpoint, or the archive that holds it, was downloaded from.
        archive: The archive that the file was read from, and the name of the file in it.
        answers_url: Where the publisher has the answer list of this checkpoint.
    """

    source: str
    files: tuple[Path, ...]
    folder: Path | None = None
    url: str | None = None
    archive: tuple[Path, str] | None = None
    answers_url: str | None = None

    def facts(self) -> dict[str, Any]:
        """What a conversion records of its source; reads each file once.

        Returns:
            `source`; `files`, each with name, size in bytes and sha256; and where they exist `url`, and `archive` with
            name, size, sha256 and the name of its `member`.
        """
        facts: dict[str, Any] = {"source": self.source}
        if self.url:
            facts["url"] = self.url
        if self.archive:
            facts["archive"] = file_facts(self.archive[0]) | {"member": self.archive[1]}
        return facts | {"files": [file_facts(path) for path in self.files]}


@contextmanager
def find_checkpoint(source: str | Path, member: str | None = None, mirror: str | None = None) -> Iterator[Checkpoint]:
    """Find the files of a checkpoint, and download them where they are not on this machine.

    A context, because a file out of an archive is temporary and removed at the end.

    Args:
        source: A file, a folder, a name in `KNOWN`, an address with http or https, or a Hub id (`namespace/name`).
            What exists on this machine comes first.
        member: Name of the checkpoint in an archive. None: the only one there is.
        mirror: Address below which the known checkpoints lie. None: that of their publisher.

    Raises:
        FileNotFoundError: There is no such file, and the name cannot be one on the Hub.
        CheckpointError: The folder, archive or repository has no weights, several checkpoints, or an ALPRO model; or
            the Hub cannot be asked.
        DownloadError: As in `download`.
    """
    path, name = Path(source), str(source)
    known = None if path.exists() else KNOWN.get(name)
    url = known.url(mirror) if known else name if is_url(name) and not path.exists() else None
    if mirror is not None and known is None:
        raise CheckpointError(f"A mirror belongs to the names of known checkpoints; received {name!r}.")
    if path.is_dir():
        found = Checkpoint(name, _weights_of(path), path)
    elif path.exists():
        found = Checkpoint(name, (path,), path.parent)
    elif url is not None:
        stored = download(url)  # first, because it also checks the address
        found = Checkpoint(
            name if known else public(url),
            (stored,),
            url=public(url),
            answers_url=known.answers_url(mirror) if known else None,
        )
    elif _is_hub_id(name):
        folder = _from_hub(name)
        found = Checkpoint(name, _weights_of(folder, name), folder)
    else:
        raise FileNotFoundError(
            f"{name} does not exist.{_nearest(name)} Name a file, a folder, an address, a Hub id (namespace/name), or "
            f"one of {', '.join(KNOWN)}."
        )
    with ExitStack() as stack:
        if len(found.files) == 1 and is_archive(found.files[0]):
            archive = found.files[0]
            work = archive.parent if url else Path(tempfile.gettempdir())
            entry, copy = stack.enter_context(member_of(archive, member, found.source, work))
            found = Checkpoint(found.source, (copy,), None, found.url, (archive, entry), found.answers_url)
        elif member is not None:
            raise CheckpointError(f"{found.source} is not an archive, so it has no member {member!r}.")
        yield found


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size in bytes and sha256 of a file."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _nearest(name: str) -> str:
    nearest = difflib.get_close_matches(name, KNOWN, n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _is_hub_id(source: str) -> bool:
    """Whether a name that is no path on this machine can be one on the Hub."""
    # `checkpoints/file.pt` with a typing error is a file that does not exist, not a question for the Hub
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)) and not (
        source.endswith((*WEIGHTS, ".zip")) or Path(source).parent.is_dir()
    )


def _from_hub(repo_id: str) -> Path:
    """Download weights, configuration and vocabulary of a repository to the cache, and return their folder."""
    try:
        # one request without repetitions: listing the files would try again for half a minute before it gives up
        with bounded_answers():
            found = huggingface_hub.HfApi().model_info(repo_id, timeout=_SECONDS, files_metadata=True)
        files = {file.rfilename: file for file in found.siblings or ()}
        wanted = [*_at_the_top(list(files)), "config.json", *IMAGE_SETTINGS, *VOCABULARIES]
        if chosen := [files[name] for name in wanted if name in files]:
            return fetch_files(repo_id, chosen, found.sha)
        raise CheckpointError(f"{repo_id} on the Hub holds no weights: no file ends in {', '.join(WEIGHTS)}.")
    except CommandError as error:
        raise CheckpointError(str(error)) from error
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


def _at_the_top(names: Sequence[str]) -> list[str]:
    """The weights outside subfolders, in the first format that a repository has."""
    top = [name for name in names if "/" not in name]
    return next((group for suffix in WEIGHTS if (group := [name for name in top if name.endswith(suffix)])), [])


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
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not valid JSON: {error}.") from None
    return config.get("model_type") if isinstance(config, dict) else None


__all__ = ["IMAGE_SETTINGS", "VOCABULARIES", "Checkpoint", "file_facts", "find_checkpoint", "sha256_of"]
