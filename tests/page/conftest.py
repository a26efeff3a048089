"""One server for all tests of the page, because it is slow to start, and a browser for each file of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.page_server import browse, serve

from alpro_hf import build_prompter
from alpro_hf.loading import load_model
from alpro_hf.sprites.world import SEEN_SPRITES


@pytest.fixture(scope="session")
def prompter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a prompter; this one was built and not trained, which is enough for what is tested."""
    folder = str(tmp_path_factory.mktemp("prompter"))
    model, processor = load_model("retrieval", "bundled", device="cpu")
    build_prompter(model, processor, SEEN_SPRITES, progress=False).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, prompter: str) -> Iterator[tuple[str, Path]]:
    """The page with all its parts, as a visitor gets it. Its address and its log."""
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, ALPRO_PROMPTER=prompter) as found:
        yield found
    left = [path for path in folder.rglob("*") if path.suffix == ".mp4" or path.name.startswith("alpro-demo-")]
    assert left == []


@pytest.fixture(scope="session")
def address(served: tuple[str, Path]) -> str:
    return served[0]


@pytest.fixture(scope="module")  # while it is open, nothing else in the process can run a loop of asyncio
def browser() -> Iterator[Any]:
    with browse() as browser:
        yield browser
