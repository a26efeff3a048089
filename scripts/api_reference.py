"""Write docs/api.md: the public classes and functions of the package, from their signatures and docstrings.

    python scripts/api_reference.py            # writes docs/api.md
    python scripts/api_reference.py --check    # exits with 1 if docs/api.md is not what would be written

The source is read, not imported: it takes no time, and what is written does not depend on the versions of libraries.
"""

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "api.md"
Definition = ast.ClassDef | ast.FunctionDef
# in the direction of the data; of a module without `__all__`, the names that are worth a page
MODULES: dict[str, tuple[str, ...]] = {
    "configuration_alpro": (),
    "modeling_alpro": (
        *("AlproModel", "AlproForVideoTextRetrieval", "AlproForVideoQuestionAnswering"),
        *("AlproTextModel", "AlproVideoModel", "AlproOutput", "AlproRetrievalOutput"),
    ),
    "pretraining_alpro": (),
    "unimodal_alpro": (),
    "decoding": ("decode", "probe"),
    "video_info": ("Frames", "VideoInfo", "VideoLimits", "VideoDecodeError"),
    "frame_table": (),
    "decoding_worker": (),
    "video_processing_alpro": ("AlproVideoProcessor",),
    "processing_alpro": ("AlproProcessor",),
    "pipeline_alpro": ("VideoQuestionAnsweringPipeline", "TextVideoRetrievalPipeline"),
    "retrieval": ("VideoIndex", "SearchResult"),
    "index_files": ("IndexingReport", "VideoIndexError", "IndexMismatchError"),
    "question_answering": ("ask", "Answer"),
    "inspection": (),
    "loss_alpro": (),
    "trainer": (),
    "recipe": (),
    "data.annotations": (),
    "data.collator": (),
    "data.augmentation": (),
    "data.pretraining": (),
    "data.sources": (),
    "entities": (),
    "pseudo_labels": (),
    "evaluation": (),
    "inference": (),
    "measure": (),
    "breakdown": ("break_down", "groups_of", "plot_breakdown"),
    "results": (),
    "mteb_encoder": (),
    "convert": (),
    "hub": (),
    "hub_upload": ("UploadPlan", "plan_upload", "upload", "publish", "PublishError"),
    "model_card": (),
    "assets.__init__": ("bundled_model",),
}
_SECTIONS = ("Args", "Returns", "Raises", "Yields", "Example", "Examples")


def documented(module: ast.Module, names: tuple[str, ...]) -> list[Definition]:
    """What the module defines and documents itself, of the names that are public."""
    public = names or _public_names(module)
    found = {node.name: node for node in module.body if isinstance(node, Definition) and ast.get_docstring(node)}
    if missing := [name for name in names if name not in found]:
        raise SystemExit(f"{', '.join(missing)} cannot be documented: it is not defined there, or has no docstring.")
    return [found[name] for name in public if name in found]


def _public_names(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def signature(node: Definition) -> str:
    """How it is called: of a class its constructor, or its fields."""
    if isinstance(node, ast.FunctionDef):
        arguments = _arguments(node.args)
        if _bound(node):
            arguments = arguments[1:]
        if arguments[:1] == ["*"] and len(arguments) == 1:
            arguments = []
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    else:
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        arguments, result = (_arguments(init.args)[1:] if init else _fields(node)), ""
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "property" for d in node.decorator_list):
        return f"{node.name}{result}"
    if not arguments:
        return f"{node.name}(){result}" if isinstance(node, ast.FunctionDef) else node.name
    line = f"{node.name}({', '.join(arguments)}){result}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{node.name}(", *(f"    {argument}," for argument in arguments), f"){result}"])


def _bound(node: ast.FunctionDef) -> bool:
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)][:1] in (["self"], ["cls"])


def _arguments(arguments: ast.arguments) -> list[str]:
    """Each argument as the source has it, with its type and default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + [*arguments.defaults]
    shown = [_argument(a, d) for a, d in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        shown.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_argument(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*shown, f"**{ast.unparse(arguments.kwarg)}"] if arguments.kwarg else shown


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    shown = ast.unparse(argument)
    if default is None:
        return shown
    return f"{shown} = {ast.unparse(default)}" if argument.annotation else f"{shown}={ast.unparse(default)}"


def _fields(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass."""
    if not any("dataclass" in ast.unparse(d) or ast.unparse(d) == "strict" for d in node.decorator_list):
        return []
    shown = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not ast.unparse(item.target).startswith("_"):
            line = f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}"
            default: str | None = None if item.value is None else ast.unparse(item.value)
            if given := _field_arguments(item):
                made = f"{given['default_factory']}()" if "default_factory" in given else None
                default = given.get("default", made)
            shown.append(line if default is None else f"{line} = {default}")
    return shown


def _field_arguments(item: ast.AnnAssign) -> dict[str, str]:
    """What stands in the `field(...)` of a dataclass; nothing if its value is something else."""
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) == "field":
        return {str(keyword.arg): ast.unparse(keyword.value) for keyword in item.value.keywords}
    return {}


def _helps(node: ast.ClassDef) -> str:
    """The help of the fields of a dataclass, as a list."""
    lines = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and "metadata" in (given := _field_arguments(item)):
            metadata = ast.parse(given["metadata"], mode="eval").body
            assert isinstance(metadata, ast.Dict)
            texts = [
                v for k, v in zip(metadata.keys, metadata.values, strict=True) if k and ast.unparse(k) == "'help'"
            ]
            if texts and isinstance(texts[0], ast.Constant):  # one that is computed is told by `alpro train --help`
                lines.append(f"- `{ast.unparse(item.target)}`: {texts[0].value}")
    return "\n".join(lines)


def prose(text: str) -> str:
    """A docstring as Markdown: its sections as lists, its examples as code."""
    parts = re.split(rf"^({'|'.join(_SECTIONS)}):[ ]*\n", text, flags=re.MULTILINE)
    out = [_examples(parts[0].strip())]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        indented, rest = _split_indented(body)
        if title.startswith("Example"):
            out.append(f"```pycon\n{textwrap.dedent(indented).strip()}\n```")
        else:
            out.append(f"**{title}**\n\n{_entries(textwrap.dedent(indented).strip(), title)}")
        if rest.strip():
            out.append(_examples(rest.strip()))
    return "\n\n".join(part for part in out if part)


def _examples(text: str) -> str:
    return re.sub(r"^```python$", "```pycon", text, flags=re.MULTILINE)


def _split_indented(body: str) -> tuple[str, str]:
    """The indented lines of a section, and what follows it."""
    lines = body.split("\n")
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            return "\n".join(lines[:number]), "\n".join(lines[number:])
    return body, ""


def _entries(text: str, title: str) -> str:
    """`name: what` with continuation lines, as a list."""
    if title in ("Returns", "Yields"):
        return text
    entries: list[str] = []
    for line in text.split("\n"):
        if line and not line.startswith(" "):
            name, colon, what = line.partition(": ")
            entries.append(f"- `{name.replace('`', '')}`: {what}" if colon else f"- {line}")
        elif line.strip() and entries:
            entries[-1] += f" {line.strip()}"
    return "\n".join(entries)


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Public methods with a docstring, in the order of the source."""
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    return [item for item in functions if not item.name.startswith("_") and ast.get_docstring(item)]


def entry(node: Definition) -> str:
    lines = [f"### `{node.name}`"]
    shown = signature(node)
    if shown != node.name:
        lines.append(f"```text\n{shown}\n```")
    lines.append(prose(ast.get_docstring(node) or ""))
    if isinstance(node, ast.ClassDef):
        lines += [helps] if (helps := _helps(node)) else []
        for call in [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__call__"]:
            if text := ast.get_docstring(call):
                lines += [f"#### `{node.name}.__call__`", f"```text\n{signature(call)}\n```", prose(text)]
        for method in methods(node):
            lines += [f"#### `{node.name}.{method.name}`", f"```text\n{signature(method)}\n```"]
            lines.append(prose(ast.get_docstring(method) or ""))
    return "\n\n".join(lines)


def reference() -> str:
    """The whole page."""
    parts = [
        "# API reference",
        "Written by `python scripts/api_reference.py` from the docstrings: change those, not this file. Shapes: B "
        "batch,\nT frames, L word pieces, D width, P width of the common space, N patches.",
    ]
    for path, names in MODULES.items():
        source = ROOT / "src" / "alpro_hf" / f"{path.replace('.', '/')}.py"
        module = ast.parse(source.read_text(encoding="utf-8"))
        parts.append(f"## `alpro_hf.{path.removesuffix('.__init__')}`\n\n{prose(ast.get_docstring(module) or '')}")
        parts += [entry(node) for node in documented(module, names)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; tell whether docs/api.md is up to date")
    arguments = parser.parse_args()
    page = reference()
    if arguments.check:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page
        print(f"{TARGET} is {'up to date' if current else 'out of date: run python scripts/api_reference.py'}")
        return 0 if current else 1
    TARGET.write_text(page, encoding="utf-8")
    print(f"{TARGET}: {page.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
