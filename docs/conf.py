"""Sphinx builds the documentation from the pages of this folder and the docstrings of the package.

sphinx-build -W --keep-going docs build/docs

Nothing is fetched while it builds, nor when the pages are read: no inventories of other projects, no fonts, no CDN.
"""

import dataclasses
import inspect
import re
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature

from alpro_hf.version import __version__

project = "alpro-hf"
author = "The alpro-hf authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["README.md"]  # index.md includes it: it is the front page of this folder where no site is built
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}

html_theme = "furo"
html_title = f"alpro-hf {__version__}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_heading_anchors = 3  # links to headings, as code forges make them

default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_default_options = {"members": True, "member-order": "bysource", "special-members": "__call__"}
autodoc_mock_imports = ["mteb"]  # the one module that cannot be imported without its extra
autodoc_inherit_docstrings = False  # the methods that the library documents have their place in its own documentation
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100


def markdown_to_rst(lines: list[str]) -> list[str]:
    """Write what docstrings have of Markdown (code, tables, bare asterisks) as reStructuredText."""
    out: list[str] = []
    block = "text"
    for line in lines:
        margin = line[: len(line) - len(line.lstrip())]
        if fence := re.fullmatch(r"\s*```(\w*)", line):
            # the lexer of Python takes the prompts of an interactive session for errors
            language = "pycon" if fence[1] == "python" else fence[1] or "text"
            out += [""] if block == "code" else ["", f"{margin}.. code-block:: {language}", ""]
            block = "text" if block == "code" else "code"
        elif block == "code":
            out.append(f"    {line}" if line else line)
        elif line.lstrip().startswith("| "):
            if block != "table":
                out += ["", f"{margin}.. list-table::", f"{margin}   :header-rows: 1", ""]
                block = "table"
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if set(cells) != {"---"}:
                out += [f"{margin}   {' ' if i else '*'} - {cell}" for i, cell in enumerate(cells)]
        else:
            block = "text"
            out.append(line)
    return re.sub(r"(?<!`)`([^`]+)`(?!`)|, \*", span_to_rst, "\n".join(out)).split("\n")


def span_to_rst(span: re.Match[str]) -> str:
    """A class or a dotted name becomes a link, if it has an entry; all other code stays code."""
    if span[1] is None:
        return ", \\*"  # of a shape, as in (T, 3, *size): no emphasis begins here
    return span[0] if re.fullmatch(r"[A-Z]\w+|[A-Za-z]\w*(\.\w+)+", span[1]) else f"``{span[1]}``"


def add_field_helps(options: type, lines: list[str]) -> None:
    """The help of the fields of a class of options, which the command line shows, too."""
    own = inspect.get_annotations(options)
    helps = [
        (field.name, text)
        for field in dataclasses.fields(options)
        if field.name in own and isinstance(text := field.metadata.get("help"), str)
    ]
    if helps:
        lines += ["", *(f":param {name}: {text}" for name, text in helps), ""]


def own_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """Of a dataclass, the fields of this package: those of a library's class that it extends would bury them."""
    if what != "class" or not dataclasses.is_dataclass(obj) or not isinstance(obj, type):
        return None
    inherited = {
        field.name
        for base in obj.__mro__[1:]
        if "__dataclass_fields__" in base.__dict__ and not base.__module__.startswith("alpro_hf")
        for field in dataclasses.fields(base)
    } - set(inspect.get_annotations(obj))
    whole = inspect.signature(obj)
    shown = [parameter for parameter in whole.parameters.values() if parameter.name not in inherited]
    signature = whole.replace(parameters=shown, return_annotation=inspect.Signature.empty)
    # Sphinx cannot parse the default of a field that a function makes
    return stringify_signature(signature, unqualified_typehints=True).replace("<factory>", "..."), ""


def rewrite_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = markdown_to_rst(lines)
    if what == "class" and dataclasses.is_dataclass(obj):
        add_field_helps(obj, lines)


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples, which their class documents, and attributes that are a class."""
    is_tuple_field = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    is_alias = isinstance(obj, type) and obj.__name__ != name.split(".")[-1]
    return True if is_tuple_field or is_alias else None


def link_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """A link from `name` in a docstring to the entry of that name, if there is one and only one."""
    if node["refdomain"] != "py":
        return None
    domain = env.domains.python_domain
    ending = f".{node['reftarget']}"
    found = [name for name, entry in domain.objects.items() if name.endswith(ending) and not entry.aliased]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", own_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", link_short_name)
    app.connect("autodoc-process-docstring", rewrite_docstring, priority=400)  # before napoleon
