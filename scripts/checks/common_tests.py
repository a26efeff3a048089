"""Run the library's own common tests on our classes: those that each of its models and processors has to pass.

    python scripts/checks/common_tests.py

They are not in the wheel of transformers, so they are taken from the source distribution of the installed version. Our
classes are entered into them by the files in `common/`. Needs transformers' test dependencies `parameterized` and
`psutil` besides the extra `test`.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CASES = Path(__file__).parent / "common"
# What the common tests import and the source distribution lacks. They are about generation, export to other formats
# and many GPUs, for which our classes have tests of their own or no use.
MISSING = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "distributed_testing_utils.py": (
        "import unittest\n\n\n"
        "def run_distributed(*args, **kwargs):\n"
        '    raise unittest.SkipTest("needs a part of the test suite that is not distributed")\n\n\n'
        "def __getattr__(name):\n"
        '    if name.startswith("__"):\n'
        "        raise AttributeError(name)\n"
        "    return run_distributed\n"
    ),
    # fields that every configuration has, with values that are not their defaults
    "utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "output_attentions": True,\n'
        '    "architectures": ["AlproModel"], "id2label": {0: "yes"}, "label2id": {"yes": "0"}}\n'
    ),
}
# a function of the repository of transformers that finds stored copies of files on the Hub
FETCH = "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n"
SETTINGS = """[pytest]
addopts = -p no:cacheprovider -p no:xdist -q
filterwarnings = ignore
"""


def lay_out(folder: Path) -> Path:
    """Write the test files of the library and our cases to a folder; return the package with the cases."""
    version = importlib.metadata.version("transformers")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    # the source needs not be built to be unpacked, but pip asks it for its metadata
    subprocess.run([*command, "--dest", str(folder), f"transformers=={version}"], check=True)
    [archive] = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    package = folder / "library_tests"
    shutil.copytree(folder / f"transformers-{version}" / "tests", package)
    for name, content in MISSING.items():
        path = package / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
    cases = package / "models" / "alpro"
    cases.mkdir(parents=True, exist_ok=True)
    for case in CASES.glob("*.py"):
        shutil.copyfile(case, cases / f"test_{case.name}")
    for inner in {package, *(path.parent for path in package.rglob("*.py"))} | {package / "models"}:
        (inner / "__init__.py").touch()
    (folder / "utils").mkdir()
    (folder / "utils" / "fetch_hub_objects_for_ci.py").write_text(FETCH, encoding="utf-8")
    (folder / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="run only the tests with such names, as in pytest")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = lay_out(Path(folder))
        chosen = ["-k", arguments.k] if arguments.k else []
        return subprocess.run([sys.executable, "-m", "pytest", str(cases), *chosen], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
