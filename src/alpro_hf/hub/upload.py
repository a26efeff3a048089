"""Upload of a folder to the Hugging Face Hub: compare first (`plan_upload`), then send one commit (`upload`).

The client sends large files before the commit, and each of them once. So an interrupted upload continues where it
stopped, and nobody sees a half-finished one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from ..bounded_answers import ANSWERS, bounded_answers
from ..files import belongs_to
from .errors import PublishError, explained
from .names import CARD

SKIPPED = ("__pycache__", ".*", "*.pyc")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class UploadPlan:
    """The difference between a folder and a repository of the Hub: what an upload would change.

    Args:
        folder: Local folder.
        repo_id: `namespace/name`.
        repo_type: `model`, `dataset` or `space`.
        revision: Branch.
        exists: Whether the repository exists.
        head: The commit that the folder was compared with; None if the branch does not exist.
        new, changed, unchanged: Local files, as relative paths: not in the repository, in another version, or equal.
        removed: Weights in the repository that would be loaded together with, or instead of, those of `folder`.
        others: Further files of the repository, which stay.
        compared: Whether the Hub was asked. If not, all files count as new, and `exists` says nothing.
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
    compared: bool = True

    @property
    def name(self) -> str:
        """Name of the repository without its namespace."""
        return self.repo_id.partition("/")[2]

    @property
    def bytes_to_send(self) -> int:
        """Total size of the new and changed files; the Hub may already have some of them from an earlier attempt."""
        return sum((self.folder / path).stat().st_size for path in (*self.new, *self.changed))

    @property
    def replaces(self) -> tuple[str, ...]:
        """Files of the repository that the upload would change or remove."""
        return (*self.changed, *self.removed)

    @property
    def replaced(self) -> str:
        """`replaces` in words, for a question or an error message."""
        shown = ", ".join(self.replaces[:5]) + (", ..." if len(self.replaces) > 5 else "")
        return f"{self.repo_id} already holds other versions of {len(self.replaces)} files ({shown})"


def plan_upload(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    revision: str = "main",
    skip: Sequence[str] = SKIPPED,
    unreachable_ok: bool = False,
    api: HfApi | None = None,
) -> UploadPlan:
    """Compare a folder with a repository of the Hub. Changes nothing.

    Args:
        folder: Folder to upload, with its subfolders.
        repo_id: `namespace/name`; it need not exist.
        repo_type: `model`, `dataset` or `space`.
        revision: Branch; it need not exist.
        skip: Patterns for names of files and folders that are not uploaded. Default: names that start with a dot, and
            compiled Python.
        unreachable_ok: Make a plan without a comparison if the Hub cannot be reached; `upload` refuses such a plan.
        api: Client, for an endpoint or a token other than those of the environment.

    Raises:
        PublishError: The name is invalid, the folder is empty, a link leads out of it, or the Hub cannot be reached
            or refuses.
        NotADirectoryError: The folder does not exist.
    """
    folder, api = Path(folder), api or HfApi()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder.")
    check_name(repo_id)
    local = list(files_below(folder, skip))
    if not local:
        raise PublishError(f"{folder} holds no files; there is nothing to publish.")
    remote: dict[str, RepoFile] = {}
    head, exists, compared = None, True, True
    with explained(repo_id, api), bounded_answers():
        try:
            head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
            # the tree of this commit, not of the branch, which may move on between the two requests
            tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=head, recursive=True)
            remote = {file.path: file for file in tree if isinstance(file, RepoFile)}
        except RevisionNotFoundError:
            pass
        except RepositoryNotFoundError:
            exists = False
        except HfHubHTTPError:  # the Hub was reached
            raise
        except (HTTPError, OfflineModeIsEnabled):
            if not unreachable_ok:
                raise
            compared = False
    same = {path for path in local if path in remote and _same_content(folder / path, remote[path])}
    weights = {path for pattern in _WEIGHTS for path in remote if Path(path).match(pattern) and "/" not in path}
    # a folder without weights, such as a corrected card, leaves those of the repository alone
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
        compared=compared,
    )


def upload(plan: UploadPlan, *, private: bool = False, message: str | None = None, api: HfApi | None = None) -> str:
    """Carry out a plan: create the repository if necessary, and upload the new and changed files in one commit.

    After an interruption, call this again with a new plan: large files that the Hub has received are not sent again.
    If somebody else has committed since the plan was made, nothing is published.

    Args:
        plan: From `plan_upload`.
        private: Visibility of a repository that is created; one that exists keeps its own.
        message: Commit message.
        api: Client, for an endpoint or a token other than those of the environment.

    Returns:
        URL of the repository.

    Raises:
        PublishError: The plan was made without the Hub, there is no token, the Hub cannot be reached or refuses,
            somebody else has committed, or the Hub does not have the files afterwards.
    """
    api = api or HfApi()
    if not plan.compared:
        raise PublishError(f"{plan.repo_id} was not compared with the Hub. Make a new plan when it can be reached.")
    if not (api.token or get_token()):
        raise PublishError(
            "There is no token to write to the Hub with: run 'hf auth login', or set HF_TOKEN, and repeat. Nothing "
            "was uploaded."
        )
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, plan.folder / path) for path in (*plan.new, *plan.changed)
    ]
    operations += [CommitOperationDelete(path) for path in plan.removed]
    # a large file needs up to five requests, and as many repetitions of each
    answers = ANSWERS + 30 * len(operations)
    with explained(plan.repo_id, api), bounded_answers(max_answers=answers):
        if not plan.exists:
            sdk = _space_sdk(plan.folder) if plan.repo_type == "space" else None
            api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=private, space_sdk=sdk, exist_ok=True)
        if plan.head is None and plan.revision != "main":
            api.create_branch(plan.repo_id, repo_type=plan.repo_type, branch=plan.revision, exist_ok=True)
        if operations:
            # Not upload_folder: where hf_xet is installed, that makes several commits, and compares the parent of the
            # first one only. Others could then load new code with old weights.
            commit = api.create_commit(
                plan.repo_id,
                operations,
                commit_message=message or f"Publish {plan.name}",
                repo_type=plan.repo_type,
                revision=plan.revision,
                parent_commit=plan.head,
            )
            _check_published(plan, str(commit.oid), api)
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
    """Upload a folder to the Hub: `plan_upload` and `upload` in one call.

    ```python
    export("runs/msrvtt", "out", name="acme/alpro-msrvtt")
    print(publish("out", "acme/alpro-msrvtt"))
    ```

    Args:
        folder, repo_id, repo_type, revision: See `plan_upload`.
        private, message: See `upload`.
        overwrite: Replace files that the repository has in another version.
        api: Client, for an endpoint or a token other than those of the environment.

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
    """Paths, relative to `folder`, of the files that an upload takes.

    Raises:
        PublishError: One of them, or a folder, is a link that leads out of `folder`: its content may be private.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(Path(part).match(pattern) for part in inside.parts for pattern in skip):
            continue
        if path.exists() and not belongs_to(path, folder):
            raise PublishError(
                f"{path} is a link to {path.resolve()}, outside of the folder. Put a copy in its place if that may be "
                "published. Nothing was uploaded."
            )
        if path.is_file():
            yield inside.as_posix()


def _check_published(plan: UploadPlan, commit: str, api: HfApi) -> None:
    """Ask for the files of a commit, because an answer alone is no proof that it happened.

    Raises:
        PublishError: The branch has not moved, or the commit does not have the files of the plan.
    """
    where: dict[str, Any] = {"repo_type": plan.repo_type}
    unproven = f"{api.endpoint} confirmed the upload to {plan.repo_id}, but"
    advice = "Look at the repository before you rely on it, then repeat."
    try:
        head = api.repo_info(plan.repo_id, revision=plan.revision, **where).sha
        tree = list(api.list_repo_tree(plan.repo_id, revision=commit, recursive=True, **where))
    except HfHubHTTPError as error:
        if error.response.status_code not in (400, 404):
            raise
        raise PublishError(f"{unproven} does not have its commit {commit!r:.60}. {advice}") from error
    remote = {file.path: file for file in tree if isinstance(file, RepoFile)}
    wrong = [path for path in (*plan.new, *plan.changed, *plan.unchanged) if path not in remote]
    wrong += [path for path in remote if path in plan.removed]
    wrong += [
        path
        for path in (*plan.new, *plan.changed)
        if path in remote and not _same_content(plan.folder / path, remote[path])
    ]
    if wrong:
        raise PublishError(f"{unproven} has other files than were sent, such as {wrong[0]}. {advice}")
    if head == plan.head:
        raise PublishError(f"{unproven} its branch {plan.revision} is where it was before. {advice}")


def _same_content(path: Path, remote: RepoFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is None:
        return git_hash(path.read_bytes()) == remote.blob_id
    with path.open("rb") as file:  # by parts: weights may be larger than the memory
        return sha_fileobj(file).hex() == remote.lfs.sha256


def check_name(repo_id: str) -> None:
    """Check that a name has the form `namespace/name`.

    Raises:
        PublishError: It does not.
    """
    wrong = f"{repo_id!r} is not a valid name of a repository: write NAMESPACE/NAME, such as acme/alpro-msrvtt"
    if repo_id.count("/") != 1:
        raise PublishError(f"{wrong}. Nothing was uploaded.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{wrong} ({error}) Nothing was uploaded.") from None


def _space_sdk(folder: Path) -> str:
    card = RepoCard.load(folder / CARD) if (folder / CARD).is_file() else None
    sdk = card.data.get("sdk") if card else None
    if not sdk:
        raise PublishError(
            f"{folder / CARD} must say in its metadata which sdk the Space runs on, such as sdk: gradio."
        )
    return str(sdk)


__all__ = ["SKIPPED", "PublishError", "UploadPlan", "check_name", "files_below", "plan_upload", "publish", "upload"]
