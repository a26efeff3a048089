"""Uploading a folder to the Hugging Face Hub: look first (`plan_upload`), then one commit (`upload`).

Large files are sent before the commit and each of them once, so an interrupted upload goes on where it stopped, and a
half-finished one is visible to nobody. Whatever goes wrong is a `PublishError` of one sentence.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj

SKIPPED = ("__pycache__", ".*", "*.pyc")
_CARD = "README.md"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


class PublishError(RuntimeError):
    """Something could not be published; one sentence that says why and what to do. Nothing was lost."""


@dataclass(frozen=True)
class UploadPlan:
    """What uploading a folder would do, before anything is done.

    Args:
        folder: Local folder.
        repo_id: `namespace/name`.
        repo_type: `model`, `dataset` or `space`.
        revision: Branch.
        exists: Whether the repository is there; `head` is then the commit that it was compared with.
        new, changed, unchanged: Local files, relative paths, by how the repository has them.
        removed: Weights in the repository that would be loaded beside, or in place of, those of `folder`.
        others: Further files of the repository; they stay.
    """

    folder: Path
    repo_id: str
    repo_type: str
    revision: str
    exists: bool
    head: str | None
    new: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self.repo_id.partition("/")[2]

    @property
    def replaces(self) -> tuple[str, ...]:
        """Files of the repository that would not be the same afterwards."""
        return (*self.changed, *self.removed)

    @property
    def replaced(self) -> str:
        """`replaces` in words, for a question or a complaint."""
        shown = ", ".join(self.replaces[:5]) + (", ..." if len(self.replaces) > 5 else "")
        return f"{self.repo_id} already holds other versions of {len(self.replaces)} files ({shown})"


def plan_upload(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str = "main",
    skip: Sequence[str] = SKIPPED,
    api: HfApi | None = None,
) -> UploadPlan:
    """Compare a folder with a repository of the Hub. Changes nothing.

    Args:
        folder: Folder to upload, with its sub-folders.
        repo_id: `namespace/name`; it need not exist.
        repo_type: `model`, `dataset` or `space`.
        revision: Branch; it need not exist.
        skip: Patterns of the names of files and folders that stay here; by default what starts with a dot, and
            compiled Python.
        api: Client, for another endpoint or token than those of the environment.

    Raises:
        PublishError: A wrong name, no network, no permission.
        NotADirectoryError: There is no such folder.
    """
    folder, api = Path(folder), api or HfApi()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder.")
    check_name(repo_id)
    local = list(files_below(folder, skip))
    if not local:
        raise PublishError(f"{folder} holds no files; there is nothing to publish.")
    remote: dict[str, RepoFile] = {}
    head, exists = None, True
    with explained(repo_id, api):
        try:
            head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
            tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
            remote = {file.path: file for file in tree if isinstance(file, RepoFile)}
        except RevisionNotFoundError:
            pass
        except RepositoryNotFoundError:
            exists = False
    same = {path for path in local if path in remote and _same_content(folder / path, remote[path])}
    weights = {path for pattern in _WEIGHTS for path in remote if Path(path).match(pattern) and "/" not in path}
    removed = weights - set(local) if any(Path(path).match(_WEIGHTS[0]) for path in local) else set()
    return UploadPlan(
        folder,
        repo_id,
        repo_type,
        revision,
        exists,
        head,
        new=tuple(path for path in local if path not in remote),
        changed=tuple(path for path in local if path in remote and path not in same),
        unchanged=tuple(sorted(same)),
        removed=tuple(sorted(removed)),
        others=tuple(sorted(set(remote) - set(local) - removed)),
    )


def upload(plan: UploadPlan, *, private: bool = False, message: str | None = None, api: HfApi | None = None) -> str:
    """Carry out a plan: create the repository if need be, and upload the new and changed files in one commit.

    Large files are sent first, each of them once: after an interruption the next call sends only those that the Hub
    does not have yet, and nobody sees an unfinished repository, because the commit comes last. If somebody else has
    committed since the plan was made, nothing is published.

    Args:
        plan: From `plan_upload`.
        private: Visibility of a repository that is created; one that exists keeps its own.
        message: Of the commit.
        api: Client, for another endpoint or token than those of the environment.

    Returns:
        URL of the repository.

    Raises:
        PublishError: No token, no permission, no network, a card that the Hub refuses, somebody else's commit.
    """
    api = api or HfApi()
    if not (api.token or get_token()):
        raise PublishError(
            "There is no token to write to the Hub with: run 'hf auth login', or set HF_TOKEN, and repeat. Nothing "
            "was uploaded."
        )
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, plan.folder / path) for path in (*plan.new, *plan.changed)
    ]
    operations += [CommitOperationDelete(path) for path in plan.removed]
    with explained(plan.repo_id, api):
        if not plan.exists:
            sdk = _space_sdk(plan.folder) if plan.repo_type == "space" else None
            api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=private, space_sdk=sdk, exist_ok=True)
        if plan.head is None and plan.revision != "main":
            api.create_branch(plan.repo_id, repo_type=plan.repo_type, branch=plan.revision, exist_ok=True)
        if operations:
            api.create_commit(
                plan.repo_id,
                operations,
                commit_message=message or f"Publish {plan.name}",
                repo_type=plan.repo_type,
                revision=plan.revision,
                parent_commit=plan.head,
            )
    prefix = "" if plan.repo_type == "model" else f"{plan.repo_type}s/"
    branch = "" if plan.revision == "main" else f"/tree/{plan.revision}"
    return f"{api.endpoint}/{prefix}{plan.repo_id}{branch}"


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str = "main",
    private: bool = False,
    overwrite: bool = False,
    message: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a folder to the Hub: `plan_upload` and `upload` in one.

    ```python
    export("runs/msrvtt", "out", name="acme/alpro-msrvtt")
    print(publish("out", "acme/alpro-msrvtt"))
    ```

    Args:
        overwrite: Whether files that the repository has in another version may be replaced.

    Returns:
        URL of the repository.

    Raises:
        PublishError: See `upload`; or the repository holds other versions of files and `overwrite` is False.
    """
    plan = plan_upload(folder, repo_id, repo_type=repo_type, revision=revision, api=api)
    if plan.replaces and not overwrite:
        raise PublishError(f"{plan.replaced}. Pass overwrite=True to replace them. Nothing was uploaded.")
    return upload(plan, private=private, message=message, api=api)


def files_below(folder: Path, skip: Sequence[str] = SKIPPED) -> Iterator[str]:
    """Paths, relative to `folder`, of the files that an upload takes."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(Path(part).match(pattern) for part in inside.parts for pattern in skip):
            yield inside.as_posix()


def _same_content(path: Path, remote: RepoFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        with path.open("rb") as file:
            return sha_fileobj(file).hex() == remote.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id  # as git names it


def check_name(repo_id: str) -> None:
    """A `PublishError` if this is not `namespace/name`."""
    wrong = f"{repo_id!r} cannot name a repository: write NAMESPACE/NAME, such as acme/alpro-msrvtt"
    if repo_id.count("/") != 1:
        raise PublishError(f"{wrong}. Nothing was uploaded.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{wrong} ({error}) Nothing was uploaded.") from None


def _space_sdk(folder: Path) -> str:
    card = RepoCard.load(folder / _CARD) if (folder / _CARD).is_file() else None
    sdk = card.data.get("sdk") if card else None
    if not sdk:
        raise PublishError(
            f"{folder / _CARD} must say in its metadata which sdk the Space runs on, such as sdk: gradio."
        )
    return str(sdk)


@contextmanager
def explained(repo_id: str, api: HfApi) -> Iterator[None]:
    """Turns what the client raises into a `PublishError` of one sentence."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise PublishError(
            "There is no token for the Hub: run 'hf auth login', or set HF_TOKEN, and repeat."
        ) from None
    except OfflineModeIsEnabled:
        raise PublishError("The Hub may not be asked, because HF_HUB_OFFLINE is set; unset it and repeat.") from None
    except HfHubHTTPError as error:
        raise PublishError(_explain_status(error, repo_id)) from error
    except HTTPError as error:
        raise PublishError(_explain_connection(error, api)) from error
    except ValueError as error:  # so the client reports metadata that the Hub finds wrong
        if not isinstance(error.__cause__, HfHubHTTPError):
            raise
        reason = " ".join(str(error).split())
        raise PublishError(f"The Hub refuses {repo_id}: {reason} Correct it and repeat.") from error
    except RuntimeError as error:  # the client wraps what happens in its upload threads
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise PublishError(_explain_status(cause, repo_id)) from error
        if isinstance(cause, HTTPError):
            raise PublishError(_explain_connection(cause, api)) from error
        raise


def _explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    namespace = repo_id.partition("/")[0]
    said = f"the Hub says: {error.server_message}" if error.server_message else "the Hub does not say why"
    status = error.response.status_code
    sentences = {
        401: "The Hub does not accept the token: run 'hf auth login', or set HF_TOKEN to a valid one, and repeat",
        402: f"{repo_id} needs a paid plan ({said})",
        403: f"The token may not write to {repo_id}: use one that may write to {namespace}, or another name ({said})",
        404: f"The Hub does not find {repo_id}, or the token may not see it; check the name and the token",
        409: f"{repo_id} was changed by somebody else at the same time; look at it and repeat ({said})",
        412: f"Somebody else has committed to {repo_id} since it was looked at; look at their commit and repeat",
        429: "The Hub asks for a pause, because too much was sent; wait some minutes and repeat",
    }
    if status in sentences:
        return f"{sentences[status]}. Nothing was published."
    if status >= 500:
        return f"The Hub is in trouble (status {status}); the same command goes on later where it stopped."
    return f"The Hub refuses {repo_id} (status {status}; {said}). Nothing was published."


def _explain_connection(error: Exception, api: HfApi) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"The connection to {api.endpoint} failed ({reason}): check it and repeat; the same command goes on where it "
        "stopped, and nothing half-done is visible."
    )


__all__ = [
    "SKIPPED",
    "PublishError",
    "UploadPlan",
    "check_name",
    "explained",
    "files_below",
    "plan_upload",
    "publish",
    "upload",
]
