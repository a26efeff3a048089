"""TODO docstring."""

import argparse
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from ..assets import bundled_model
from ..hub.card import CARD, ModelCardError
from ..hub.export import (
    ExportError,
    _read_config,
    export,
)
from ..hub.upload import SKIPPED, PublishError, UploadPlan, check_name, explained, plan_upload, upload

# head -> the variable by which the demo is told of a model
_DEMO_VARIABLES = {
    "AlproForVideoTextRetrieval": "ALPRO_MODEL",
    "AlproForVideoQuestionAnswering": "ALPRO_QA_MODEL",
    "AlproPrompterModel": "ALPRO_PROMPTER",
}


BUNDLED = ("bundled-retrieval", "bundled-qa")


DISTRIBUTION, REQUIREMENTS = "alpro-hf", "requirements.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro publish` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Export a model with the code that loads it and a model card, and upload it to the Hugging Face Hub in one\n"
        "commit. People load it with trust_remote_code=True and need not install this package.\n\n"
        "Log in first: hf auth login, or HF_TOKEN. Files that the repository already has are not sent again, so an\n"
        "interrupted upload goes on when the same command is given again."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro publish runs/msrvtt --repo acme/alpro-msrvtt --results results.json\n"
        "  alpro publish runs/msrvtt --repo acme/alpro-msrvtt --dry-run --output exported\n"
        "  alpro publish bundled-retrieval --repo acme/alpro-sprites --space acme/alpro-demo --metrics acme"
    )
    parser.add_argument("model", metavar="MODEL", help=f"folder of a model, Hub id, {' or '.join(BUNDLED)}")
    parser.add_argument("--repo", required=True, metavar="ID", help="NAMESPACE/NAME of the model on the Hub")
    parser.add_argument("--private", action="store_true", help="a repository that is created shows itself to nobody")
    parser.add_argument("--revision", default="main", metavar="BRANCH", help="branch to commit to (default: main)")
    parser.add_argument("--processor", metavar="DIR", help="folder of the processor, if that of the model has none")
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSON files with numbers for the card (default: a results.json beside the weights)",
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="for the card (default: a drawing of the model)")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, such as apache-2.0")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the exported folder here")
    parser.add_argument("--space", metavar="ID", help="NAMESPACE/NAME of a Space to put the demo into")
    parser.add_argument("--space-folder", type=Path, metavar="DIR", help="its files (default: spaces_demo)")
    parser.add_argument(
        "--metrics", metavar="NAMESPACE", help="publish the metrics as Spaces here, as evaluate.load wants them"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and upload nothing")
    parser.add_argument("--yes", action="store_true", help="replace files of the repository without asking")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro publish`; 0 when everything is up, 1 with the reason on stderr when not."""
    done: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="alpro-publish-") as temporary:
            api = HfApi()
            for plan in _plans(args, Path(temporary), api):
                if args.dry_run:
                    _show(plan, args.private)
                    continue
                done.append(upload(plan, private=args.private, message=f"Publish {plan.name} with alpro-hf", api=api))
                counts = f"{len(plan.new)} new, {len(plan.changed)} changed, {len(plan.unchanged)} unchanged"
                print(f"{done[-1]}  ({counts})")
                if plan.repo_type == "space" and plan.repo_id == args.space:
                    _tell_demo(args, api)
    except (PublishError, ExportError, ModelCardError, OSError) as error:
        print(f"alpro publish: {' '.join(str(error).split())}", file=sys.stderr)
        for url in done:
            print(f"alpro publish: already up: {url}", file=sys.stderr)
        return 1
    return 0


def _plans(args: argparse.Namespace, temporary: Path, api: HfApi) -> list[UploadPlan]:
    """Everything is checked, written, compared and agreed to before the first file is uploaded."""
    demo: Path = args.space_folder or Path(__file__).parents[3] / "spaces_demo"
    metrics = sorted(path.parent for path in (Path(__file__).parents[1] / "metrics").glob(f"*/{CARD}"))
    spaces = {args.space: temporary / "space"} if args.space else {}
    spaces |= {f"{args.metrics}/{folder.name}": folder for folder in metrics if args.metrics}
    for repo_id in (args.repo, *spaces):
        check_name(repo_id)
    if args.space:
        _write_space(demo, temporary / "space")
    model = export(
        _find_model(args.model, api),
        args.output or temporary / "model",
        processor=args.processor,
        name=args.repo,
        results=args.results,
        picture=args.picture,
        licence=args.license,
    )
    if args.dry_run and args.output:
        print(f"exported to {model}")
    plans = [plan_upload(model, args.repo, revision=args.revision, api=api)]
    plans += [plan_upload(folder, repo_id, repo_type="space", api=api) for repo_id, folder in spaces.items()]
    if not args.yes and not args.dry_run:
        for plan in plans:
            _ask(plan)
    return plans


def _write_space(demo: Path, output: Path) -> None:
    """The files of the demo, and beside them this package, which a Space could not install from anywhere.

    So `requirements.txt` names what the package needs in place of the package.
    """
    if not (demo / CARD).is_file():
        raise PublishError(
            f"{demo} holds no {CARD} with the metadata of a Space; name the folder with --space-folder."
        )
    shutil.copytree(demo, output, ignore=shutil.ignore_patterns(*SKIPPED))
    package = Path(__file__).parents[1]
    shutil.copytree(package, output / package.name, ignore=shutil.ignore_patterns(*SKIPPED))
    listed = output / REQUIREMENTS
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    others = [line for line in lines if not line.startswith(DISTRIBUTION)]
    needed = [line for line in metadata.requires(DISTRIBUTION) or () if "extra ==" not in line]
    listed.write_text("\n".join([*others, *needed]) + "\n", encoding="utf-8")


def _tell_demo(args: argparse.Namespace, api: HfApi) -> None:
    """Let the Space run the published model, unless that is one it has anyway."""
    head = _read_config(_find_model(args.model, api))["architectures"][0]
    if args.model not in BUNDLED and head in _DEMO_VARIABLES:
        with explained(args.space, api):
            api.add_space_variable(args.space, _DEMO_VARIABLES[head], args.repo)


def _find_model(name: str, api: HfApi) -> Path:
    if name in BUNDLED:
        return bundled_model("retrieval" if name == "bundled-retrieval" else "qa")
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise PublishError(f"There is no folder {name!r}. MODEL is a folder, a Hub id, {' or '.join(BUNDLED)}.")
    patterns = ["*.json", "*.txt", "*.safetensors", "*.bin"]
    try:
        with explained(name, api):
            return Path(api.snapshot_download(name, allow_patterns=patterns))
    except EntryNotFoundError as error:
        raise PublishError(f"{name} is neither a folder nor a model that can be downloaded: {error}") from error


def _show(plan: UploadPlan, private: bool) -> None:
    total = sum((plan.folder / path).stat().st_size for path in (*plan.new, *plan.changed))
    created = "" if plan.exists else f", which would be created ({'private' if private else 'public'})"
    print(f"{plan.repo_type} {plan.repo_id}, branch {plan.revision}{created}: {total / 1e6:.1f} MB to send")
    kinds = {"new": plan.new, "changed": plan.changed, "unchanged": plan.unchanged, "removed": plan.removed}
    for kind, paths in (kinds | {"left alone": plan.others}).items():
        for path in paths:
            print(f"  {kind:10} {path}")


def _ask(plan: UploadPlan) -> None:
    if not plan.replaces:
        return
    if not sys.stdin.isatty():
        raise PublishError(f"{plan.replaced}. Say --yes to replace them. Nothing was uploaded.")
    print(f"{plan.replaced}. Replace them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PublishError("Nothing was uploaded.")
