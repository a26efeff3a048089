"""Publishing a model with its demo and metrics: `alpro publish` for Python.

`plan_publication` checks, exports and compares everything and changes nothing on the Hub; `carry_out` uploads.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from ..bounded_answers import bounded_answers
from ..loading import BUNDLED, BUNDLED_BY_TASK, download_settings, fetch_files, find_model
from .errors import PublishError, explained
from .export import checkpoint_config, export
from .names import CARD
from .upload import SKIPPED, UploadPlan, check_name, files_below, plan_upload, upload

_PACKAGE = Path(__file__).parents[1]
_DISTRIBUTION, _REQUIREMENTS = "alpro-hf", "requirements.txt"
# class of a model -> the variable of the Space that names the model to run
_DEMO_VARIABLES = {
    "AlproForVideoTextRetrieval": "ALPRO_MODEL",
    "AlproForVideoQuestionAnswering": "ALPRO_QA_MODEL",
    "AlproPrompterModel": "ALPRO_PROMPTER",
}


@dataclass(frozen=True)
class Publication:
    """A model to publish, and where; the options of `alpro publish`.

    Args:
        model: Folder, Hub id, `bundled-retrieval`, `bundled-qa`, or `bundled`, which is the retrieval model.
        repo_id: `namespace/name` of the model on the Hub.
        revision: Branch to commit to.
        private: Visibility of repositories that are created.
        processor, results, picture, licence: See `export`.
        output: Folder for the exported model. None: a temporary one.
        space: `namespace/name` of a Space that receives the demo.
        space_folder: Files of the demo. None: `spaces_demo` of a checkout of alpro-hf.
        metrics: Namespace for the metrics, each a Space that `evaluate.load` reads.
    """

    model: str
    repo_id: str
    revision: str = "main"
    private: bool = False
    processor: str | Path | None = None
    results: Sequence[Path] = ()
    picture: Path | None = None
    licence: str | None = None
    output: Path | None = None
    space: str | None = None
    space_folder: Path | None = None
    metrics: str | None = None


def plan_publication(
    publication: Publication, temporary: Path, api: HfApi | None = None, *, unreachable_ok: bool = False
) -> list[UploadPlan]:
    """Check, export and compare everything, so that nothing is uploaded if a part of it cannot be.

    Args:
        publication: The model and where to publish it.
        temporary: Existing folder for files to upload; needed until `carry_out` is done.
        api: Client, for an endpoint or a token other than those of the environment.
        unreachable_ok: Plan without a comparison if the Hub cannot be reached, see `plan_upload`.

    Returns:
        The plan of the model, then those of the Spaces.

    Raises:
        PublishError: A name is invalid, the demo cannot be found, or the Hub cannot be reached.
        ModelNotFoundError: There is no such model.
        ExportError, ModelCardError: See `export`.
    """
    api = api or HfApi()
    # names first: a typing error must not be found after an export of minutes
    spaces = {publication.space: temporary / "space"} if publication.space else {}
    if publication.metrics:
        folders = sorted(path.parent for path in (_PACKAGE / "metrics").glob(f"*/{CARD}"))
        spaces |= {f"{publication.metrics}/{folder.name}": folder for folder in folders}
    for repo_id in (publication.repo_id, *spaces):
        check_name(repo_id)
    if publication.space:
        _write_space(publication.space_folder or _PACKAGE.parents[1] / "spaces_demo", spaces[publication.space])
    processor = publication.processor
    if processor is not None:
        processor = download_settings(find_model(str(processor), needs=None, api=api), api=api)
    model = export(
        _find_model(publication.model, api),
        publication.output or temporary / "model",
        processor=processor,
        name=publication.repo_id,
        results=publication.results,
        picture=publication.picture,
        licence=publication.licence,
    )
    options: dict[str, Any] = {"api": api, "unreachable_ok": unreachable_ok}
    plans = [plan_upload(model, publication.repo_id, revision=publication.revision, **options)]
    return plans + [plan_upload(folder, repo_id, repo_type="space", **options) for repo_id, folder in spaces.items()]


def carry_out(
    publication: Publication, plans: Sequence[UploadPlan], api: HfApi | None = None
) -> Iterator[tuple[UploadPlan, str]]:
    """Upload what `plan_publication` has planned, a repository at a time, and let the demo run the model.

    Yields:
        A plan and the URL of its repository, as soon as it is uploaded.

    Raises:
        PublishError: See `upload`. The message lists the repositories that are uploaded already.
    """
    api = api or HfApi()
    done: list[str] = []
    for plan in plans:
        try:
            message = f"Publish {plan.name} with {_DISTRIBUTION}"
            url = upload(plan, private=publication.private, message=message, api=api)
            done.append(url)
            if plan.repo_type == "space" and plan.repo_id == publication.space:
                _run_model_in_demo(publication, plans[0].folder, api)
        except PublishError as error:
            raise PublishError(f"{error} Already uploaded: {', '.join(done)}." if done else str(error)) from error
        yield plan, url


def _write_space(demo: Path, output: Path) -> None:
    """Write the files of the demo, and this package next to them.

    A Space could not install the package from an index, so `requirements.txt` names its dependencies instead.
    """
    if not (demo / CARD).is_file():
        raise PublishError(
            f"{demo} holds no {CARD} with the metadata of a Space. Name the folder of the demo (--space-folder), "
            "which is part of the repository of alpro-hf and not of the installed package."
        )
    list(files_below(demo))  # raises for links that lead out of it, which the copy would follow
    shutil.copytree(demo, output, ignore=shutil.ignore_patterns(*SKIPPED))
    shutil.copytree(_PACKAGE, output / _PACKAGE.name, ignore=shutil.ignore_patterns(*SKIPPED))
    listed = output / _REQUIREMENTS
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    others = [line for line in lines if not line.startswith(_DISTRIBUTION)]
    # dependencies of an extra carry the marker `extra == "name"`, and the demo needs none of them
    needed = [line for line in metadata.requires(_DISTRIBUTION) or () if "extra ==" not in line]
    listed.write_text("\n".join([*others, *needed]) + "\n", encoding="utf-8")


def _run_model_in_demo(publication: Publication, exported: Path, api: HfApi) -> None:
    """Set the variable by which the Space finds the model; bundled models are part of the package that it has."""
    head = checkpoint_config(exported)["architectures"][0]
    if publication.space and not _is_bundled(publication.model) and head in _DEMO_VARIABLES:
        with explained(publication.space, api), bounded_answers():
            api.add_space_variable(publication.space, _DEMO_VARIABLES[head], publication.repo_id)


def _is_bundled(name: str) -> bool:
    return name == BUNDLED or name in BUNDLED_BY_TASK


def _find_model(name: str, api: HfApi) -> Path:
    """The folder of a model; one of the Hub is downloaded."""
    found = find_model(name, api=api)
    if Path(found).is_dir():
        return Path(found)
    suffixes = (".json", ".txt", ".safetensors", ".bin")  # not the code: `export` writes it again
    try:
        with explained(name, api), bounded_answers():
            listed = api.model_info(name, files_metadata=True)
            wanted = [file for file in listed.siblings or () if file.rfilename.endswith(suffixes)]
            return fetch_files(name, [file for file in wanted if "/" not in file.rfilename], listed.sha, api)
    except EntryNotFoundError as error:
        raise PublishError(f"{name} is neither a folder nor a model that can be downloaded: {error}") from error


__all__ = ["Publication", "carry_out", "plan_publication"]
