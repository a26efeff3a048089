"""Publishing on the Hugging Face Hub: `export` writes a folder that loads without this package, `publish` uploads it.

An exported checkpoint carries the flat code files of the model, the processor and the pipelines, so that
`AutoModel.from_pretrained(..., trust_remote_code=True)` works where only transformers, torch, torchvision and av are
installed. An upload is one commit; files that the repository already has are not sent again, which is also how an
interrupted upload goes on.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from . import modeling_alpro, pretraining_alpro
from .assets import bundled_model
from .configuration_alpro import AlproConfig
from .hub_upload import (
    SKIPPED,
    PublishError,
    UploadPlan,
    check_name,
    explained,
    plan_upload,
    publish,
    upload,
)
from .model_card import CARD, PICTURE, ModelCardError, draw_model, model_card
from .processing_alpro import AlproProcessor

AUTO_MAP = {
    "AutoConfig": "configuration_alpro.AlproConfig",
    "AutoModel": "modeling_alpro.AlproModel",
    "AutoModelForPreTraining": "pretraining_alpro.AlproForPreTraining",
    "AutoModelForVisualQuestionAnswering": "modeling_alpro.AlproForVideoQuestionAnswering",
    # the library has no class for matching; this one, too, decides whether two things belong together
    "AutoModelForNextSentencePrediction": "modeling_alpro.AlproForVideoTextRetrieval",
    "AutoProcessor": "processing_alpro.AlproProcessor",
    "AutoVideoProcessor": "video_processing_alpro.AlproVideoProcessor",
}
_SEARCH, _ASK = "text-video-retrieval", "video-question-answering"
_PIPELINES = {
    _SEARCH: "pipeline_alpro.TextVideoRetrievalPipeline",
    _ASK: "pipeline_alpro.VideoQuestionAnsweringPipeline",
}
# head -> its class, and the pipeline that it is for with the Auto class that this loads
HEADS = {
    "AlproModel": (modeling_alpro.AlproModel, _SEARCH, "AutoModel"),
    "AlproPrompterModel": (pretraining_alpro.AlproPrompterModel, _SEARCH, "AutoModel"),
    "AlproForVideoTextRetrieval": (
        modeling_alpro.AlproForVideoTextRetrieval,
        _SEARCH,
        "AutoModelForNextSentencePrediction",
    ),
    "AlproForPreTraining": (pretraining_alpro.AlproForPreTraining, _SEARCH, "AutoModelForNextSentencePrediction"),
    "AlproForVideoQuestionAnswering": (
        modeling_alpro.AlproForVideoQuestionAnswering,
        _ASK,
        "AutoModelForVisualQuestionAnswering",
    ),
}
# head -> the variable by which the demo is told of a model
_DEMO_VARIABLES = {
    "AlproForVideoTextRetrieval": "ALPRO_MODEL",
    "AlproForVideoQuestionAnswering": "ALPRO_QA_MODEL",
    "AlproPrompterModel": "ALPRO_PROMPTER",
}
BUNDLED = ("bundled-retrieval", "bundled-qa")
DISTRIBUTION, REQUIREMENTS = "alpro-hf", "requirements.txt"
CONFIG, PROCESSOR, TOKENIZER = "config.json", "processor_config.json", "tokenizer_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# of a checkpoint folder, what is part of the model; optimizer, random states and logs of a training are not
_TRAVELLING = (
    *(CONFIG, PROCESSOR, TOKENIZER, "tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"),
    *("video_preprocessor_config.json", "preprocessor_config.json"),
)


class ExportError(ValueError):
    """A checkpoint cannot be exported; the message names the file and what to do."""


# -------------------------------------------------------------------------------------------------------------- export


def code_files() -> list[Path]:
    """The source files that travel: those of `AUTO_MAP`, the pipelines, and what they import of each other."""
    folder = Path(__file__).parent
    named = (*AUTO_MAP.values(), *_PIPELINES.values())
    roots = {folder / f"{reference.split('.')[0]}.py" for reference in named}
    found = {path.resolve() for path in roots}
    for path in roots:
        found |= {Path(imported).resolve() for imported in get_relative_import_files(path)}
    return sorted(found)


def add_remote_code(folder: str | Path) -> None:
    """Make a saved checkpoint load without this package: add the code files and name the classes in its configs.

    Only adds to `folder`; a checkpoint that a `Trainer` wrote stays one. Written twice, the files stay the same.

    Args:
        folder: What `save_pretrained` of a model and its processor wrote.

    Raises:
        ExportError: It holds no ALPRO model or no processor.
    """
    folder = Path(folder)
    config = _read_config(folder)
    for path in code_files():
        shutil.copyfile(path, folder / path.name)
    config["auto_map"] = {name: path for name, path in AUTO_MAP.items() if "Processor" not in name}
    config.pop("_name_or_path", None)  # a path of this machine
    _, task, auto_class = HEADS[config["architectures"][0]]
    config["custom_pipelines"] = {task: {"impl": _PIPELINES[task], "pt": [auto_class], "type": "multimodal"}}
    _write_json(folder / CONFIG, config)

    if not (folder / PROCESSOR).is_file():
        raise ExportError(
            f"{folder} holds no {PROCESSOR}: save the AlproProcessor of the model into it with save_pretrained, or "
            "name a folder that has one as the processor."
        )
    processor = _read_json(folder / PROCESSOR)
    processor["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    processor["video_processor"]["auto_map"] = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
    _write_json(folder / PROCESSOR, processor)
    tokenizer = _read_json(folder / TOKENIZER)
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)  # how it was loaded here
    _write_json(folder / TOKENIZER, tokenizer)


def export(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    *,
    processor: AlproProcessor | str | Path | None = None,
    name: str | None = None,
    results: Sequence[str | Path] = (),
    picture: str | Path | None = None,
    licence: str | None = None,
) -> Path:
    """Write a model as a folder that is ready for the Hub.

    It holds the weights as safetensors, the configs, tokenizer and processor, the code files, and a model card with
    its picture. The same input gives the same bytes.

    Args:
        model: A model, or a folder with one (also a checkpoint of a training; what is not part of the model stays).
        output: New or empty folder.
        processor: Processor of the model, or a folder with one; None: it is in the folder of the model.
        name: Title of the card and id in its example, such as `acme/alpro-msrvtt`; None: the name of `output`.
        results: JSON files with measured numbers, for the card; none given: a `results.json` beside the weights.
        picture: PNG for the card; None: a drawing of the model.
        licence: Identifier of the licence of the weights, such as `apache-2.0`; None: as the checkpoint's own
            `training.json` says, otherwise none is claimed.

    Returns:
        `output`.

    Raises:
        ExportError: `model` is no ALPRO checkpoint, files of it are missing, or `output` is not empty.
        ModelCardError: A result file or `training.json` cannot be used.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder; name a new one to export to.")
    source = None if isinstance(model, PreTrainedModel) else Path(model)
    if source is not None:
        config = _read_config(source)
        weights = _weights(source)
    output.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(output)
        config = _read_config(output)
    elif weights:
        for file in weights:
            shutil.copyfile(file, output / file.name)
    else:  # an old pickle, which the library reads with weights_only=True: whoever publishes it says what it is
        HEADS[config["architectures"][0]][0].from_pretrained(source, use_safetensors=False).save_pretrained(output)
    if source is not None:
        for file_name in _TRAVELLING:
            if (source / file_name).is_file():
                shutil.copyfile(source / file_name, output / file_name)
    if processor is not None:
        if not isinstance(processor, AlproProcessor):
            processor = AlproProcessor.from_pretrained(processor)
        processor.save_pretrained(output)
    add_remote_code(output)
    if picture is None:
        draw_model(config).save(output / PICTURE)
    else:
        shutil.copyfile(picture, output / PICTURE)
    card = model_card(output, source=source, name=name or output.name, results=results, licence=licence)
    card.save(output / CARD)
    return output


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path.parent} holds no {path.name}.") from None
    except ValueError as error:
        raise ExportError(f"{path} is no JSON file: {error}.") from None
    if not isinstance(content, dict):
        raise ExportError(f"{path} must hold a JSON object; it holds a {type(content).__name__}.")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder. Name the folder of a model.")
    config = _read_json(folder / CONFIG)
    kind, heads = config.get("model_type"), config.get("architectures")
    if kind != AlproConfig.model_type:
        raise ExportError(f"{folder / CONFIG} describes a model of type {kind!r}, not an ALPRO model.")
    if not heads or heads[0] not in HEADS:
        raise ExportError(f"{folder / CONFIG}: architectures must name one of {', '.join(HEADS)}; it is {heads!r}.")
    return config


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, with their index; [] if its weights have another format."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        if not any(folder.glob("pytorch_model*.bin")):
            raise ExportError(
                f"{folder} holds no weights ({WEIGHTS}). A checkpoint of the original code becomes a model folder by "
                "alpro convert."
            )
        return []
    files = [folder / name for name in sorted(set(_read_json(folder / WEIGHTS_INDEX)["weight_map"].values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ExportError(f"{folder / WEIGHTS_INDEX} names files that are missing: {', '.join(missing)}.")
    return [*files, folder / WEIGHTS_INDEX]


# ------------------------------------------------------------------------------------------------------------- command


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
    demo: Path = args.space_folder or Path(__file__).parents[2] / "spaces_demo"
    metrics = sorted(path.parent for path in (Path(__file__).parent / "metrics").glob(f"*/{CARD}"))
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
    package = Path(__file__).parent
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


__all__ = [
    "AUTO_MAP",
    "ExportError",
    "PublishError",
    "UploadPlan",
    "add_arguments",
    "add_remote_code",
    "code_files",
    "export",
    "plan_upload",
    "publish",
    "run",
    "upload",
]
