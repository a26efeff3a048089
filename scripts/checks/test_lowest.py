"""Install the lowest versions that pyproject.toml declares, and run the fast tests with them.

    python scripts/checks/test_lowest.py --folder lowest-env

The script makes a virtual environment in --folder and keeps it for the next run. It installs each dependency, and each
package of the extra `test`, at exactly its lower bound, and runs a selection of tests. If these versions conflict, pip
stops with an error.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# tests that use each dependency; no browsers, few processes, no models of base size
TESTS = (
    *("model/test_configuration.py", "model/test_modeling.py", "model/test_modeling_parity.py"),
    *("model/test_loss_alpro.py", "model/test_decoding.py", "model/test_processing_alpro.py"),
    *("model/test_video_processing_alpro.py", "model/test_pipeline_alpro.py", "model/test_sentence_transformers.py"),
    *("data/test_annotations.py", "data/test_collator.py", "data/test_isolated_decoder.py"),
    *(
        "evaluation/test_protocols.py",
        "evaluation/test_results.py",
        "training/test_trainer.py",
        "training/test_curves.py",
    ),
    *("training/test_entities.py", "inference/test_video_index.py", "inference/test_index_faiss.py"),
    *("inference/test_explain.py", "hub/test_convert.py", "hub/test_export.py", "hub/test_onnx.py"),
    *("test_package.py", "metrics"),
)
ANY_VERSION = {"pytest", "pytest-timeout", "pytest-xdist", "hypothesis"}  # tools without a tested lower bound
# datasets 4.0 opens folders of videos with pandas 2 only, and does not declare it
EXTRA_PINS = ("pandas<3",)
# packages of the extra `test` that the tests above do not need
NOT_NEEDED = {"import-linter", "mypy", "ruff", "playwright", "types-tqdm", "bitsandbytes", "peft", "torchao"}


def lowest() -> list[str]:
    """`name==lower bound` for each dependency and each package that the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = {}
    for text in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        wanted = Requirement(text)
        bounds = [one.version for one in wanted.specifier if one.operator == ">="]
        here = wanted.marker is None or wanted.marker.evaluate()
        if here and wanted.name not in NOT_NEEDED:
            pinned = bounds and wanted.name not in ANY_VERSION
            found[wanted.name] = f"{wanted.name}=={bounds[0]}" if pinned else wanted.name
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("lowest-env"),
        help="folder of the virtual environment (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="print the versions; install and run nothing")
    args = parser.parse_args()
    print("\n".join(lowest()))
    if args.list:
        return 0
    python = args.folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", args.folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *lowest(), *EXTRA_PINS], check=True)
    # --no-deps: the dependencies are there, and pip must not change their versions
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", ROOT], check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    command = [python, "-m", "pytest", "-q", "-m", "not slow", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
