"""Measure time and peak memory of loading annotations, by the number of rows.

    python scripts/benchmarks/annotations_memory.py [--rows 100000 1000000] [--folder DIR]

The script writes synthetic files in published layouts and loads each in a fresh process. The table shows the seconds
of `load_annotations`, the peak resident memory of the process in MB, and the part of it above the imports. The row
"looked up" resolves every clip to an empty file. It needs as many inodes as rows.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TEXT = "a the young old red green man woman dog cat bird runs plays sings cooks near over lake field kitchen"
WORDS = TEXT.split()


def captions(rows: int) -> Iterator[tuple[str, str]]:
    """Ids and captions of fourteen words; no two captions are equal."""
    for i in range(rows):
        yield str(1_000_000_000 + i), " ".join(WORDS[(i // 7**j + j) % len(WORDS)] for j in range(13)) + f" {i}"


def page(identity: str) -> str:
    """The folder of a clip, with a thousand clips each, as WebVid has them."""
    start = int(identity) % 1_000_000_000 // 1000
    return f"{start:06d}_{start + 1:06d}"


def write_webvid(path: Path, rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for identity, text in captions(rows):
            url = f"https://example.org/{identity}/preview.mp4"
            table.writerow([identity, url, "PT00H00M10S", page(identity), text])


def write_released(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for identity, text in captions(rows):
            file.write(json.dumps({"caption": text, "clip_name": identity}) + "\n")


def write_cc3m(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i, (identity, text) in enumerate(captions(rows)):
            file.write(f"{',' if i else '['}{json.dumps({'image': f'{identity}.jpg', 'caption': text})}")
        file.write("]")


def write_table(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"video": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, str]] = []
        for identity, text in captions(rows):
            batch.append({"video": str(path.parent / "clip.mp4"), "text": f"{identity} {text}"})
            if len(batch) == 10_000:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch.clear()
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
    (path.parent / "clip.mp4").touch()


def write_clips(folder: Path, rows: int) -> None:
    for i in range(rows):
        identity = str(1_000_000_000 + i)
        if i % 1000 == 0:
            (folder / page(identity)).mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / page(identity) / f"{identity}.mp4", os.O_CREAT | os.O_WRONLY))


# title -> (annotation kind, file name, function that writes it)
FILES: dict[str, tuple[str, str, Callable[[Path, int], None]]] = {
    "WebVid CSV": ("webvid", "webvid.csv", write_webvid),
    "JSON lines": ("released-retrieval", "released.jsonl", write_released),
    "JSON list": ("cc3m", "cc3m.json", write_cc3m),
    "Parquet": ("table", "table.parquet", write_table),
}


def peak() -> float:
    """Peak resident memory of this process in MB. Linux reports KB, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def measure(kind: str, path: str, videos: str | None) -> None:
    """Load a file and print rows, seconds, peak memory and peak memory before loading, as JSON."""
    from alpro_hf.data.annotations import load_annotations

    before, start = peak(), time.perf_counter()
    rows = load_annotations(kind, path, videos=videos, cache_dir=os.path.dirname(path))  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    print(json.dumps([len(rows), seconds, peak(), before]))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[100_000, 1_000_000],
        help="sizes of the files (default: 100000 1000000)",
    )
    parser.add_argument("--folder", type=Path, help="folder to write to (default: the temporary folder of the system)")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, *[None] * (3 - len(arguments.measure)))
        return
    print(f"Python {sys.version.split()[0]}, {platform.system()} {platform.machine()}, one fresh process per line\n")
    print("| file | rows | file size MB | seconds | peak MB | above the imports MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            for title, (kind, file, make) in FILES.items():
                make(Path(name, file), rows)
                report(title, kind, Path(name, file))
            write_clips(Path(name, "clips"), rows)
            report("WebVid CSV, looked up", "webvid", Path(name, "webvid.csv"), str(Path(name, "clips")))


def report(title: str, kind: str, path: Path, *videos: str) -> None:
    """Measure a file in a fresh process, because the peak of a process never falls, and print its row."""
    command = [sys.executable, __file__, "--measure", kind, str(path), *videos]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    count, seconds, total, before = json.loads(output.splitlines()[-1])
    size = path.stat().st_size / 1e6
    print(f"| {title} | {count:,} | {size:.0f} | {seconds:.1f} | {total:.0f} | {total - before:.0f} |", flush=True)


if __name__ == "__main__":
    main()
