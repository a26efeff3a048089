"""`alpro publish`: upload a model, the demo and the metrics to the Hub."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..hub.errors import ExportError, ModelCardError, PublishError
from ..loading import BUNDLED_BY_TASK
from ..trust import printable

if TYPE_CHECKING:
    from ..hub.upload import UploadPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro publish` to a parser."""
    parser.set_defaults(expected_errors=lambda: (PublishError, ExportError, ModelCardError))
    parser.description = (
        "Export a model with the code that loads it and a model card, and upload it to the Hugging Face Hub in one\n"
        "commit. Others load it with trust_remote_code=True and need not install this package.\n\n"
        "Log in first: hf auth login, or set HF_TOKEN. Files that the repository already has are not sent again. So\n"
        "an interrupted upload continues when you give the same command again."
    )
    parser.epilog = (
        "examples:\n"
        "  alpro publish runs/msrvtt --repo acme/alpro-msrvtt --results results.json\n"
        "  alpro publish runs/msrvtt --repo acme/alpro-msrvtt --dry-run --output exported\n"
        "  alpro publish bundled-retrieval --repo acme/alpro-sprites --space acme/alpro-demo --metrics acme"
    )
    names = " or ".join(BUNDLED_BY_TASK)
    parser.add_argument("model", metavar="MODEL", help=f"folder of a model, Hub id, {names}")
    parser.add_argument("--repo", required=True, metavar="ID", help="NAMESPACE/NAME of the model on the Hub")
    parser.add_argument("--private", action="store_true", help="make repositories that are created private")
    parser.add_argument(
        "--revision", default="main", metavar="BRANCH", help="branch to commit to (default: %(default)s)"
    )
    parser.add_argument("--processor", metavar="DIR", help="folder of the processor (default: that of MODEL)")
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="files with metrics for the card, such as results.json of alpro evaluate (default: a results.json in the "
        "folder of MODEL)",
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="for the card (default: a drawing of the model)")
    parser.add_argument(
        "--license",
        metavar="ID",
        help="licence of the weights, such as apache-2.0 (default: as training.json in the folder of MODEL says)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the exported model in this new folder")
    parser.add_argument("--space", metavar="ID", help="NAMESPACE/NAME of a Space that receives the demo")
    parser.add_argument(
        "--space-folder",
        type=Path,
        metavar="DIR",
        help="files of the demo (default: spaces_demo, in a checkout of the repository)",
    )
    parser.add_argument(
        "--metrics", metavar="NAMESPACE", help="publish the metrics in this namespace, as Spaces for evaluate.load"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be uploaded, and upload nothing; needs no network"
    )
    parser.add_argument("--yes", action="store_true", help="replace files of the repository without asking")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro publish`; 0 when everything is uploaded, or was listed with --dry-run."""
    from ..hub.publish import Publication, carry_out, plan_publication

    publication = Publication(
        model=args.model,
        repo_id=args.repo,
        revision=args.revision,
        private=args.private,
        processor=args.processor,
        results=args.results,
        picture=args.picture,
        licence=args.license,
        output=args.output,
        space=args.space,
        space_folder=args.space_folder,
        metrics=args.metrics,
    )
    with tempfile.TemporaryDirectory(prefix="alpro-publish-") as temporary:
        plans = plan_publication(publication, Path(temporary), unreachable_ok=args.dry_run)
        if args.dry_run:
            if args.output:
                print(printable(f"exported to {args.output}"))
            for plan in plans:
                _show(plan, args.private)
            return 0
        if not args.yes:
            for plan in plans:
                _ask(plan)
        for plan, url in carry_out(publication, plans):
            counts = f"({len(plan.new)} new, {len(plan.changed)} changed, {len(plan.unchanged)} unchanged)"
            print(f"{printable(url)}  {counts}")
    return 0


def _show(plan: "UploadPlan", private: bool) -> None:
    if not plan.compared:
        print(f"{plan.repo_type} {plan.repo_id} was not compared: the Hub cannot be reached. In {plan.folder.name}:")
        for path in plan.new:
            print(f"  {(plan.folder / path).stat().st_size / 1e6:8.3f} MB  {printable(path)}")
        return
    created = "" if plan.exists else f", which would be created ({'private' if private else 'public'})"
    print(
        f"{plan.repo_type} {plan.repo_id}, branch {plan.revision}{created}: {plan.bytes_to_send / 1e6:.1f} MB to send"
    )
    kinds = {"new": plan.new, "changed": plan.changed, "unchanged": plan.unchanged, "removed": plan.removed}
    for kind, paths in (kinds | {"left alone": plan.others}).items():
        for path in paths:
            print(f"  {kind:10} {printable(path)}")


def _ask(plan: "UploadPlan") -> None:
    """Ask whether files of the repository may be replaced; a `PublishError` if not, or if nobody can answer."""
    if not plan.replaces:
        return
    if not sys.stdin.isatty():
        raise PublishError(f"{plan.replaced}. Say --yes to replace them. Nothing was uploaded.")
    print(f"{printable(plan.replaced)}. Replace them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PublishError("Nothing was uploaded.")
