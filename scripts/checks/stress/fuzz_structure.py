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


def texts_of_yaml() -> st.SearchStrategy[str]:
    """YAML that JSON cannot express: references, types, merges, blocks, several documents, and text that is broken."""
    scalars = st.sampled_from(
        (
            *(
                "1",
                "1_000",
                "0o17",
                "0x1f",
                "1:30:00",
                "1e5",
                ".inf",
                ".nan",
                "-.INF",
                "~",
                "yes",
                "2024-01-01",
                "=",
                "",
            ),
            *(
                "*a",
                "&a 1",
                "&a [*a]",
                "<<: {a: 1}",
                "!!python/name:os.system",
                "!!python/object/apply:os.system [ls]",
            ),
            *("!!binary AAAA", "!!set {a}", "!!omap [a: 1]", "!x 1", "!<tag:yaml.org,2002:int> 3", "! 1", "!!float x"),
            *(
                "|\n  a\n  b",
                ">-\n  a",
                "'a",
                '"\\u202e"',
                '"\\x00"',
                "? [a]\n: b",
                "[a, b",
                "{a: b, a: c}",
                "@",
                "`",
                "%",
            ),
            *(
                "1\n---\n2",
                "1\n...\n%YAML 9.9\n---\n2",
                "\t1",
                "# no value",
                "9" * 5000,
                "\ufeff1",
                "\x85",
                "../x",
                "/etc",
            ),
        )
    )
    lists = st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
            st.lists(inner, min_size=1, max_size=4).map(lambda items: "".join(f"\n- {item}" for item in items)),
            st.lists(st.tuples(scalars, inner), max_size=3).map(
                lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
            ),
        ),
        max_leaves=10,
    )
    laughs = st.integers(1, 12).map(
        lambda levels: "&a0 [1, 1]" + "".join(f"\na{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, levels))
    )
    deep = st.sampled_from(("[", "{a: ", "- ", "? ", "&a [", "!!seq [")).flatmap(
        lambda opening: st.sampled_from((3, 64, 65, 3000)).map(lambda times: opening * times)
    )
    return st.one_of(lists, laughs, deep)


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
    """A key of a recipe, as JSON and as YAML, or a text in place of a key; then the settings that it names."""
    from alpro_hf.training.recipe import FIELDS, AlproRecipe, RecipeError, read_recipe

    def target(field: str, value: str) -> str:
        suffix, name = field.split("/")
        path = folder / f"mine{suffix}"
        if name == "key":
            text = f"{{{json.dumps(value)}: 1}}" if suffix == ".json" else f"{value}: 1\n"
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            return outcome(path)
        # JSON is YAML, too; a value alone on its line is read by other rules of YAML
        text = _with({"task": "qa"}, name, value) if suffix == ".json" else f"{name}: {value}\n"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return outcome(path)

    def outcome(path: Path) -> str:
        try:
            values = read_recipe(path)
            AlproRecipe(**{key: values[key] for key in FIELDS if key in values})
            return "recipe"
        except RecipeError as error:
            text = str(error)
            return "RecipeError" if len(text) < 3000 else f"a message of {len(text)} characters"

    names = (
        "task",
        "description",
        "learning_rate",
        "num_frames",
        "data_weights",
        "leave_out",
        "augmentation",
        "optim",
        "lora",
        "run",
        "key",
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


def manifests(folder: Path) -> tuple[list[str], Target]:
    """A field of the manifest of an index, of its model, or of one of its shards."""
    from alpro_hf.inference.index_frames import noted_frames, noted_windows
    from alpro_hf.inference.index_shards import Manifest, VideoIndexError

    _write_shard(folder)
    shard = {"file": "shard-00000.safetensors", "rows": 2, "removed": []}
    model = {"name": "bundled", "dtype": "float32", "fingerprint": "f"}
    windows = {"lengths": [15.0, 7.5], "stride": None, "short": 30.0, "shortest": 1.0, "cuts": "sudden"}
    content = _manifest(folder) | {"model": model, "shards": [shard]}
    nested: dict[str, dict] = {"model": model, "shards": shard, "video": {"windows": windows, "chosen": {}}}
    nested["video/windows"] = windows

    def target(field: str, value: str) -> str:
        part, _, name = field.rpartition("/")
        key = part.partition("/")[0]
        text = _with(content | ({key: "HERE"} if part else {}), "" if part else name, value)
        if part:
            inner = _with(nested[part], name, value)
            inner = {"shards": f"[{inner}]", "video/windows": f'{{"windows": {inner}}}'}.get(part, inner)
            text = text.replace('"HERE"', inner)
        (folder / "index.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            manifest = Manifest.read(folder)
        except VideoIndexError as error:
            return _named(error, folder)
        try:
            noted_frames(manifest.video)
            noted_windows(manifest.video)
        except VideoIndexError as error:  # which is about settings, whose file the caller knows
            return type(error).__name__
        return f"{len(manifest.shards)} shards"

    return [*content, *(f"{part}/{name}" for part, fields in nested.items() for name in fields)], target


def shards(folder: Path) -> tuple[list[str], Target]:
    """The list of videos in a shard, or a part of its header, or bytes of its tensors."""
    from alpro_hf.inference.index_shards import Manifest, VideoIndexError

    header, data = _write_shard(folder)
    content = _manifest(folder) | {"shards": [{"file": "shard-00000.safetensors", "rows": 2, "removed": []}]}
    (folder / "index.json").write_text(json.dumps(content), encoding="utf-8")

    def target(field: str, value: str) -> str:
        tensor, _, name = field.rpartition("/")
        raw = value.encode("utf-8", "surrogatepass")
        if name == "bytes":
            start = header[tensor]["data_offsets"][0]
            _write_raw(
                folder, json.dumps(header).encode(), (data[:start] + raw + data[start + len(raw) :])[: len(data)]
            )
        elif name == "videos":
            text = raw.decode("utf-8", "replace")
            _write_raw(folder, json.dumps(header | {"__metadata__": {"videos": text}}).encode(), data)
        else:
            inner = _with(header[tensor], name, value) if tensor else value
            text = _with(header | {tensor or name: "HERE"}, "", "").replace('"HERE"', inner)
            _write_raw(folder, text.encode("utf-8", "surrogatepass"), data)
        try:
            [shard] = Manifest.read(folder).shards
            shard.vectors()
            for row, _ in enumerate(shard.entries()):
                shard.tokens_of(row)
                shard.table_of(row)
            return "shard"
        except VideoIndexError as error:
            return _named(error, folder)

    names = [
        f"{tensor}/{name}" for tensor in ("features", "tokens") for name in ("dtype", "shape", "data_offsets", "bytes")
    ]
    return [
        "videos",
        "features",
        "tokens",
        "__metadata__",
        "__metadata__/videos",
        "table_ends",
        "other",
        *names,
    ], target


def _manifest(folder: Path) -> dict:
    from alpro_hf.inference.index_shards import INDEX_FORMAT

    model = {"name": "bundled", "dtype": "float32", "fingerprint": "f"}
    places = {"root": ".", "absolute_root": str(folder), "seal": None}
    return {"format": INDEX_FORMAT, "model": model, "video": {}, "next_shard": 1, "shards": [], **places}


def _write_shard(folder: Path) -> tuple[dict, bytes]:
    """Write a shard of two videos; its header, and what follows it."""
    import torch
    from safetensors.torch import save

    features, listed = torch.eye(2, 4), json.dumps([["a.mp4", 1, 1], ["b.mp4", 1, 1]])
    written = save({"features": features, "tokens": torch.ones(2, 3, 4)}, {"videos": listed})
    end = 8 + int.from_bytes(written[:8], "little")
    (folder / "shard-00000.safetensors").write_bytes(written)
    return json.loads(written[8:end]), written[end:]


def _write_raw(folder: Path, header: bytes, data: bytes) -> None:
    (folder / "shard-00000.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


def _named(error: Exception, folder: Path) -> str:
    return type(error).__name__ if str(folder) in str(error) else f"an error without the file: {error}"


def processors(folder: Path) -> tuple[list[str], Target]:
    """A setting of a processor, of its video processor or of its tokenizer; then a clip and a text are processed."""
    import shutil

    import numpy as np

    from alpro_hf.assets import bundled_model
    from alpro_hf.loading import CommandError, load_model
    from alpro_hf.model.decoding_types import VideoDecodeError

    shutil.copytree(bundled_model("qa"), folder, dirs_exist_ok=True)
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    video = settings["video_processor"] | {
        "fps": None,
        "video_limits": None,
        "do_center_crop": False,
        "crop_size": None,
    }
    clip = np.zeros((6, 3, 8, 8), np.uint8)

    def target(field: str, value: str) -> str:
        part, _, name = field.rpartition("/")
        now, words = json.dumps(settings), json.dumps(tokenizer)
        if part == "video":
            now = _with(settings | {"video_processor": "HERE"}, "", "").replace('"HERE"', _with(video, name, value))
        elif part == "tokenizer":
            words = _with(tokenizer, name, value)
        else:
            now = _with(settings, name, value)
        for file, text in (("processor_config.json", now), ("tokenizer_config.json", words)):
            (folder / file).write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            _, processor = load_model("qa", str(folder), device="cpu")
        except (CommandError, OSError) as error:
            return type(error).__name__
        try:
            processor(videos=[clip], text=["what?"], video_limits={"max_decoded_size": 1 << 24})
            return "processed"
        except (ValueError, TypeError, VideoDecodeError) as error:
            return f"{type(error).__name__} of a call"

    names = [f"{part}/{name}" for part, fields in (("video", video), ("tokenizer", tokenizer)) for name in fields]
    return [*settings, *names], target


def _with(fields: dict, name: str, value: str) -> str:
    """An object as JSON, with a text in place of the value of a field."""
    pairs = {key: json.dumps(content) for key, content in fields.items()} | ({name: value} if name else {})
    return "{" + ", ".join(f"{json.dumps(key)}: {content}" for key, content in pairs.items()) + "}"


VALUES = {"recipes": st.one_of(texts_of_json(), texts_of_yaml())}  # of the others: JSON
TARGETS: dict[str, Callable[[Path], tuple[list[str], Target]]] = {
    "annotations": annotations,
    "results": results,
    "recipes": recipes,
    "checkpoints": checkpoints,
    "configurations": configurations,
    "manifests": manifests,
    "shards": shards,
    "processors": processors,
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
    @given(st.sampled_from(fields), VALUES.get(name, texts_of_json()))
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
