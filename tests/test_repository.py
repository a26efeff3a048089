"""The repository itself: no large file by accident, and a top level that stays as it is."""

import hashlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "NOTICE", "CITATION.cff"),
    *("pyproject.toml", ".gitignore", ".pre-commit-config.yaml", ".ci", ".github"),
    *("src", "tests", "scripts", "spaces_demo", "docs"),
}
LARGEST = 1_000_000  # bytes
# the weights that `alpro demo` runs without a network
MAY_BE_LARGER = {
    "src/alpro_hf/assets/sprites-qa/model.safetensors",
    "src/alpro_hf/assets/sprites-retrieval/model.safetensors",
}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of the files that git has, also of those staged."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone: an unpacked source archive does not say which of its files git has")
    # in a container the clone may belong to another user, whose repositories git does not read otherwise
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return listed.split("\0")[:-1]


def test_no_large_file_is_tracked(tracked: list[str]) -> None:
    files = [name for name in tracked if (ROOT / name).is_file()]  # some may be deleted and not yet staged
    large = {name: size for name in files if (size := (ROOT / name).stat().st_size) > LARGEST}
    assert set(large) <= MAY_BE_LARGER, (
        f"larger than {LARGEST:,} bytes: {large}. Generate the file where it is needed; if it has to be in the "
        "repository, name it in MAY_BE_LARGER."
    )
    assert set(large) == MAY_BE_LARGER, "MAY_BE_LARGER names a file that is small, or gone"


def test_the_top_level_has_no_new_entry(tracked: list[str]) -> None:
    new = {name.partition("/")[0] for name in tracked if (ROOT / name).is_file()} - TOP_LEVEL
    assert not new, f"{sorted(new)}: the folders of CONTRIBUTING.md, 'Where things live', have room for everything"


def test_the_vocabulary_is_that_of_bert_and_has_its_notice() -> None:
    folder = ROOT / "src" / "alpro_hf" / "assets" / "bert-base-uncased"
    content = (folder / "vocab.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert content.count(b"\n") == 30522
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "src/alpro_hf/assets/bert-base-uncased" in (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert "src/alpro_hf/assets/bert-base-uncased/LICENSE" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
