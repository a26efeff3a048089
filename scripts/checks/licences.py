"""The packages that alpro-hf installs, with their versions and licences as they declare them.

python scripts/licences.py --extras demo metrics plot
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

ROOT = Path(__file__).parents[1]


def requirements(extras: list[str]) -> list[Requirement]:
    """Of the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for name in extras for text in project["optional-dependencies"][name])]
    return [Requirement(text) for text in texts]


def closure(wanted: list[Requirement]) -> dict[str, tuple[str, str, bool]]:
    """Name -> version, licence, and whether the project itself asks for it; what is not installed has no version."""
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
            continue  # for another platform
        found[name] = package.version, licence(package.metadata), name in direct
        for text in package.requires or ():
            inner = Requirement(text)
            extras = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                wanted.append(inner)
    return found


def licence(metadata: object) -> str:
    """What the package says, in the newest of the three ways that there are."""
    get = metadata.get  # type: ignore[attr-defined]
    classified = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()  # type: ignore[attr-defined]
        if line.startswith("License ::") and line.count("::") > 1
    ]
    text = get("License-Expression") or ", ".join(classified) or (get("License") or "").split("\n")[0]
    return text[:60] or "not declared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], help="optional dependencies to list, too")
    args = parser.parse_args()
    print("| package | version | licence | asked for by alpro-hf |\n| --- | --- | --- | --- |")
    for name, (version, said, direct) in sorted(closure(requirements(args.extras)).items()):
        print(f"| {name} | {version} | {said} | {'yes' if direct else ''} |")


if __name__ == "__main__":
    main()
