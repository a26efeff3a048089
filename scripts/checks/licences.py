"""List the packages that alpro-hf installs, with their versions and the licences that they declare.

    python scripts/checks/licences.py --extras demo metrics plot

The list comes from the current environment, as a Markdown table.
"""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def requirements(extras: list[str]) -> list[Requirement]:
    """The dependencies of the project and of the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for name in extras for text in project["optional-dependencies"][name])]
    return [Requirement(text) for text in texts]


def closure(wanted: list[Requirement]) -> dict[str, tuple[str, str, bool]]:
    """Name -> (version, licence, whether the project itself requires it), for all direct and indirect dependencies."""
    direct = {one.name.lower().replace("_", "-") for one in wanted}
    found: dict[str, tuple[str, str, bool]] = {}
    while wanted:
        requirement = wanted.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found:
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # required on another platform only
        found[name] = package.version, licence(package.metadata), name in direct
        for text in package.requires or ():
            inner = Requirement(text)
            # a marker with an extra applies if the requirement asks for that extra
            extras = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                wanted.append(inner)
    return found


def licence(metadata: object) -> str:
    """The declared licence: SPDX expression (the newest form), else classifiers, else the field `License`."""
    get = metadata.get  # type: ignore[attr-defined]
    classified = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()  # type: ignore[attr-defined]
        if line.startswith("License ::") and line.count("::") > 1
    ]
    # the field `License` may hold the whole text of a licence: its first line names it
    text = get("License-Expression") or ", ".join(classified) or (get("License") or "").split("\n")[0]
    return text[:60] or "not declared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], help="extras of the project to include")
    args = parser.parse_args()
    print("| package | version | licence | required by alpro-hf |\n| --- | --- | --- | --- |")
    for name, (version, said, direct) in sorted(closure(requirements(args.extras)).items()):
        print(f"| {name} | {version} | {said} | {'yes' if direct else ''} |")


if __name__ == "__main__":
    main()
