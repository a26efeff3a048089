"""Fuzz the readers of JSON and YAML with structure: files of a grammar in which one value is not what it should be.

    python scripts/checks/stress/fuzz_structure.py annotations --seconds 900
    python scripts/checks/stress/fuzz_structure.py all --seconds 30

fuzz.py changes bytes, so most of its files are refused by the parser. These files are well-formed as often as not, and
reach what is behind the parser: types, ranges, depth, digits, half characters, numbers that are not finite. A reader
must read every file or refuse it with its typed error. Hypothesis shrinks the first file that violates this and prints
it.
"""

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Target = Callable[[str, str], str]  # reads a file with a value in place of a field and returns the outcome
CHARACTERS = st.text(st.characters(max_codepoint=0x2FFF), max_size=12)
NAMES = ("video", "text", "task", "num_frames", "rank", "hidden_size", "..", "", "a", "__class__", "weight_map")


def texts_of_json() -> st.SearchStrategy[str]:
    """JSON values as text, from ordinary ones to those that break parsers."""
    numbers = st.one_of(
        st.integers().map(str),
        st.integers(1, 6000).map(lambda digits: "9" * digits),
        st.floats().map(json.dumps),
        st.sampled_from(("NaN", "-Infinity", "1e999", "-0", "1e-400", "00", "9007199254740993", "1_000", "0x1")),
    )
    strings = st.one_of(
        CHARACTERS.map(json.dumps),
        st.sampled_from(('"\\ud800"', '"\\udc80"', '"\\u0000"', '"../../x"', '"/etc/passwd"', '"\\u202e"', '"', "")),
    )
    scalars = st.one_of(st.sampled_from(("null", "true", "false")), numbers, strings)
    trees = st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
            st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=4).map(
                lambda pairs: "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs) + "}"
            ),
        ),
        max_leaves=12,
    )
    deep = st.tuples(
        st.sampled_from((("[", "]"), ('{"a":', "}"), ("[[", ""))), st.sampled_from((3, 63, 64, 65, 900, 100_000))
    ).map(lambda drawn: drawn[0][0] * drawn[1] + "1" + drawn[0][1] * drawn[1])
    return st.one_of(trees, deep)


def annotations(folder: Path) -> tuple[list[str], Target]:
    """A row of a table, and a video and a sentence of MSR-VTT."""
    from alpro_hf.data.annotations import load_annotations
    from alpro_hf.data.tables import AnnotationError

    (folder / "a.mp4").touch()
    rows = {
        "table": {"video": "a.mp4", "text": "a dog", "video_id": 7, "other": None},
        "msrvtt": {"video_id": "video0", "split": "train", "category": 1, "start time": 1.5, "end time": 2},
    }

    def target(field: str, value: str) -> str:
        kind, name = field.split("/")
        row = _with(rows[kind], name, value)
        sentence = '{"video_id": "video0", "caption": "a dog"}'
        text = row if kind == "table" else f'{{"videos": [{row}], "sentences": [{sentence}]}}'
        path = folder / "rows.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            return f"{len(load_annotations(kind, path, cache_dir=folder / 'cache'))} rows"  # type: ignore[arg-type]
        except AnnotationError as error:
            return "AnnotationError" if str(path) in str(error) else f"an error without the file: {error}"

    return [f"{kind}/{name}" for kind, row in rows.items() for name in row], target


def results(folder: Path) -> tuple[list[str], Target]:
    """A field of results.json, or of a row of its predictions."""
    from alpro_hf.evaluation.compare import compare_results
    from alpro_hf.evaluation.results import PREDICTIONS, RESULTS, Results, ResultsError, write_results

    model, data = {"name": "m", "revision": None}, {"fingerprint": "f", "rows": 1}
    row = {"direction": "t2v", "video": "a.mp4", "text": 0, "rank": 1.0, "correct": True, "answer_type": "what"}
    write_results(folder, Results("retrieval", {"name": "vtc"}, {"t2v_r1": 5.0}, model, data), [row])
    content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))

    def target(field: str, value: str) -> str:
        of_row = field.startswith("row/")
        predictions = _with(row, field.removeprefix("row/"), value) if of_row else json.dumps(row)
        written = f"{predictions}\n".encode("utf-8", "surrogatepass")
        (folder / PREDICTIONS).write_bytes(written)
        now = content | {"predictions": content["predictions"] | {"sha256": hashlib.sha256(written).hexdigest()}}
        text = json.dumps(now) if of_row else _with(now, field, value)
        (folder / RESULTS).write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            return f"{len(compare_results(folder, folder, n=10))} metrics"
        except (ResultsError, FileNotFoundError) as error:
            return type(error).__name__

    return [*content, *(f"row/{name}" for name in row)], target


def recipes(folder: Path) -> tuple[list[str], Target]:
    """A key of a recipe, as JSON and as YAML."""
    from alpro_hf.training.recipe import FIELDS, AlproRecipe, RecipeError, read_recipe

    def target(field: str, value: str) -> str:
        suffix, name = field.split("/")
        path = folder / f"mine{suffix}"
        # JSON is YAML, too; a value alone on its line is read by other rules of YAML
        text = _with({"task": "qa"}, name, value) if suffix == ".json" else f"{name}: {value}\n"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            values = read_recipe(path)
            AlproRecipe(**{key: values[key] for key in FIELDS if key in values})
            return "recipe"
        except RecipeError:
            return "RecipeError"

    names = (
        "task",
        "description",
        "learning_rate",
        "num_frames",
        "data_weights",
        "leave_out",
        "augmentation",
        "optim",
    )
    return [f"{suffix}/{name}" for suffix in (".json", ".yaml") for name in names], target


def checkpoints(folder: Path) -> tuple[list[str], Target]:
    """The state of a checkpoint, and its index of weights."""
    from alpro_hf.training.checkpoints import checkpoint_problem

    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir()

    def target(field: str, value: str) -> str:
        for name, good in (("trainer_state.json", '{"global_step": 3}'), ("model.safetensors.index.json", "{}")):
            text = f'{{"{field.split("/")[1]}": {value}}}' if field.startswith(name) else good
            (checkpoint / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        problem = checkpoint_problem(checkpoint)
        assert problem is not None  # there are no weights
        return problem.split()[0]

    return ["trainer_state.json/global_step", "model.safetensors.index.json/weight_map"], target


def configurations(folder: Path) -> tuple[list[str], Target]:
    """A field of a config.json, of the model or of a tower."""
    from huggingface_hub.errors import StrictDataclassError

    from alpro_hf.loading import CommandError, load_model
    from alpro_hf.model.configuration_alpro import AlproConfig

    fields = AlproConfig().to_dict()

    def target(field: str, value: str) -> str:
        tower, _, name = field.rpartition("/")
        text = _with(fields | {tower: "HERE"}, "", "") if tower else _with(fields, name, value)
        if tower:
            text = text.replace('"HERE"', _with(fields[tower], name, value))
        (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            load_model("retrieval", str(folder))
        except (CommandError, StrictDataclassError, OSError) as error:  # the last: there are no weights
            return type(error).__name__
        raise AssertionError("a folder without weights was loaded")

    towers = [f"{tower}/{name}" for tower in ("text_config", "video_config") for name in fields[tower]]
    return [*fields, *towers], target


def _with(fields: dict, name: str, value: str) -> str:
    """An object as JSON, with a text in place of the value of a field."""
    pairs = {key: json.dumps(content) for key, content in fields.items()} | ({name: value} if name else {})
    return "{" + ", ".join(f"{json.dumps(key)}: {content}" for key, content in pairs.items()) + "}"


TARGETS: dict[str, Callable[[Path], tuple[list[str], Target]]] = {
    "annotations": annotations,
    "results": results,
    "recipes": recipes,
    "checkpoints": checkpoints,
    "configurations": configurations,
}


def run(name: str, folder: Path, start: int, examples: int) -> dict[str, int]:
    """Try a number of files on a target; the outcomes and how often each was seen.

    Raises:
        Exception: Whatever the reader raised for the smallest file that is a finding; a note shows the file.
    """
    fields, target = TARGETS[name](folder)
    seen: dict[str, int] = {}

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(fields), texts_of_json())
    def try_one(field: str, value: str) -> None:
        result = target(field, value)
        seen[result] = seen.get(result, 0) + 1

    try_one()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"], help="reader to fuzz")
    parser.add_argument("--seconds", type=float, default=30, help="duration for each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first hundred files (default: %(default)s)")
    args = parser.parse_args()
    logging.getLogger("alpro_hf").setLevel(logging.ERROR)
    for name in TARGETS if args.target == "all" else [args.target]:
        start, number, total = time.monotonic(), args.seed, 0
        while time.monotonic() - start < args.seconds:
            with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
                print(f"{name}: seed {number}", end="\r", flush=True)
                total += sum(run(name, Path(folder), number, 100).values())
            number += 1
        print(
            f"{name}: {total} files in {time.monotonic() - start:.0f} s, seeds {args.seed} to {number - 1}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
