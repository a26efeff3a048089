"""Fuzz the readers of untrusted files: mutate files until one raises an unexpected error, crashes or hangs.

    python scripts/checks/stress/fuzz.py decoding --seconds 900
    python scripts/checks/stress/fuzz.py annotations --seconds 900 --atheris   # needs: pip install atheris

A reader must read every file or refuse it with its typed error. The script writes the first file that violates this to
--findings, with the traceback, and exits with code 1. A file that crashes FFmpeg ends this process, too; it stays in
--findings under the name `last`. With --atheris, coverage guides the changes. Without it, a seeded generator makes
them: the same seed gives the same files.
"""

import argparse
import contextlib
import gzip
import io
import json
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Target = Callable[[bytes], str]  # reads a file and returns its outcome; raises only errors that are findings
MEMORY = 3 * 1024**3  # bytes this process may allocate; a file that needs more is a finding
SLOW = 20.0  # seconds; a file that takes longer is a finding
BOXES = b"moov trak mdia stbl stsz stts ctts stco stsc mdhd tkhd elst mdat moof ftyp free avc1 hvc1 RIFF movi idx1"
# pieces that mean something in a video or an annotation file
WORDS = (
    *BOXES.split(),
    *(b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xb3", b"\x00\x00\x00\x01", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 8),
    *(
        b'{"',
        b'":',
        b"[[[[",
        b"null",
        b"NaN",
        b"1e999",
        b'"',
        b'\\ud800"',
        b"\t",
        b",",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"../",
    ),
)


def decoding(folder: Path) -> tuple[list[bytes], Target]:
    """Small clips in eight containers, and the decoder."""
    from alpro_hf.model.decoding import decode
    from alpro_hf.model.decoding_types import VideoDecodeError, VideoLimits

    limits = VideoLimits(max_pixels=1 << 22, max_decoded_size=1 << 28)

    def target(data: bytes) -> str:
        try:
            frames = decode(data, lambda info: [0, info.num_frames // 2, info.num_frames - 1], height=16, width=16,
                            limits=limits, allow_truncated=True)  # fmt: skip
        except VideoDecodeError as error:
            return type(error).__name__
        assert frames.pixels.shape == (3, 3, 16, 16)
        return "frames"

    return _clips(), target


def _clips() -> list[bytes]:
    """A clip of six frames for each container and codec that this FFmpeg can write."""
    import av
    import numpy as np

    clips = []
    for container, codec, b_frames in (
        *(("mp4", "libx264", 2), ("matroska", "libx264", 0), ("mpegts", "libx264", 2), ("avi", "mpeg4", 0)),
        *(("webm", "libvpx-vp9", 0), ("flv", "libx264", 0), ("mov", "mjpeg", 0), ("ogg", "libtheora", 0)),
    ):
        file, draw = io.BytesIO(), np.random.default_rng(0)
        if codec not in av.codecs_available:
            continue
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(codec, rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = 3, b_frames
            for _ in range(6):
                pixels = np.kron(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            output.mux(stream.encode())
        clips.append(file.getvalue())
    return clips


def annotations(folder: Path) -> tuple[list[bytes], Target]:
    """Files of each annotation kind, and the loader. Line 1 has the kind and the file name; the content follows."""
    from alpro_hf.data.annotations import load_annotations
    from alpro_hf.data.tables import AnnotationError

    (folder / "clip.mp4").touch()
    logging.getLogger("alpro_hf").setLevel(logging.ERROR)
    row = {"video": "clip.mp4", "text": "a dog runs"}
    lists = {
        "videos": [{"video_id": "video0", "split": "train", "category": 1}],
        "sentences": [{"video_id": "video0", "caption": "a dog"}],
    }
    question = {"id": 1, "video_id": 7, "question": "what runs?", "answer": "dog"}
    line = json.dumps(row).encode() + b"\n"
    csv = b'video,text\nclip.mp4,"a dog, runs"\n'
    files = {
        "table a.jsonl": line * 2,
        "table a.json": json.dumps([row, row]).encode(),
        "table a.csv": csv,
        "table a.tsv": csv.replace(b",", b"\t"),
        "table a.csv.gz": gzip.compress(csv, mtime=0),
        "table a.parquet": _parquet([row]),
        "msrvtt a.json": json.dumps(lists).encode(),
        "msrvtt-1ka a.csv": b"key,vid_key,video_id,sentence\nret0,msr9,video9,a person\n",
        "msrvtt-qa a.json": json.dumps([question]).encode(),
        "msvd a.txt": b"clip_1_2 a dog runs\n",
        "msvd a.csv": b"VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
        b"x,1,2,3,clean,4,English,a\n",
        "didemo a.json": json.dumps([{"video": "v.avi", "description": "first"}]).encode(),
        "webvid a.csv": b"videoid,contentUrl,duration,page_dir,name\n1,http://a,PT1S,000,a dog\n",
        "cc3m a.tsv": b"a dog\thttp://a/b.jpg\n",
        "released-retrieval a.jsonl": b'{"caption": "a", "clip_name": "b"}\n',
        "released-qa a.jsonl": json.dumps(question | {"answer_type": "what"}).encode() + b"\n",
    }
    kinds, names = (sorted({name.split()[part] for name in files}) for part in (0, 1))

    def target(data: bytes) -> str:
        head, _, content = data.partition(b"\n")
        kind, _, name = head.decode("ascii", "replace").partition(" ")
        # a changed first line still has to lead to a loader, and the name must stay inside the folder
        if kind not in kinds or name not in names:
            kind, name = (known[len(head) % len(known)] for known in (kinds, names))
        path = folder / name
        path.write_bytes(content)
        try:
            rows = load_annotations(kind, path, cache_dir=folder / "cache")  # type: ignore[arg-type]
            count = len(rows)
            del rows
            return "rows" if count else "no rows"
        except AnnotationError:
            return "AnnotationError"
        except FileNotFoundError:  # an annotation names a clip that does not exist
            return "FileNotFoundError"
        finally:
            for cached in (folder / "cache").glob("*"):
                cached.unlink()

    return [name.encode() + b"\n" + content for name, content in files.items()], target


def _parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


TARGETS = {"decoding": decoding, "annotations": annotations}


def changed(seeds: list[bytes], draw: random.Random) -> bytes:
    """A seed file with a few changes: bits, bytes, cuts, repeats, pieces of other files, and `WORDS`."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        place = draw.randrange(len(data) + 1)
        size = min(draw.choice((1, 2, 4, 16, 200)), max(len(data) - place, 1))
        match draw.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << draw.randrange(8)
            case 1 if place < len(data):
                data[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
            case 2:
                del data[place : place + size]
            case 3:
                data[place:place] = data[place : place + size] * draw.choice((1, 2, 50))
            case 4:
                word = draw.choice(WORDS)
                data[place : place + draw.choice((0, len(word)))] = word
            case 5:
                other = draw.choice(seeds)
                start = draw.randrange(len(other))
                data[place : place + size] = other[start : start + size]
            case _:
                del data[place:]
    return bytes(data[:200_000])


class Findings:
    """Runs a target, counts the outcomes, and keeps the first file that is a finding."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.seen: dict[str, int] = {}
        self.slowest = 0.0
        self.command = ""  # repeats the run, once the number of files is added

    def begin(self, name: str, seed: int, seeds: list[bytes]) -> random.Random:
        """Try the unchanged files, which must be read. Returns the generator for `changed`."""
        self.command = f"python scripts/checks/stress/fuzz.py {name} --seed {seed} --runs"
        for data in seeds:
            self.try_one(data)
        return random.Random(seed)

    def try_one(self, data: bytes) -> None:
        """Run the target on a file; write the file and raise if it is a finding."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "last").write_bytes(data)  # stays if the process crashes
        start = time.monotonic()
        try:
            result = self.target(data)
        except BaseException as error:  # an interrupt during a hang, too; raised again
            (self.folder / "finding").write_bytes(data)
            again = f". To make it again: {self.command} {sum(self.seen.values()) + 1}" if self.command else ""
            error.__notes__ = [f"The file is {self.folder / 'finding'}{again}"]  # Python 3.11 and later print it
            (self.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            raise
        took = time.monotonic() - start
        if took > SLOW:
            (self.folder / "slow").write_bytes(data)
            raise TimeoutError(f"{self.folder / 'slow'} took {took:.0f} seconds; the limit is {SLOW:.0f}.")
        self.slowest = max(self.slowest, took)
        self.seen[result] = self.seen.get(result, 0) + 1
        (self.folder / "last").unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="reader to fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="duration (default: 60)")
    parser.add_argument("--runs", type=int, help="number of files, in place of --seconds; makes the run repeatable")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes (default: 0)")
    parser.add_argument(
        "--atheris", action="store_true", help="let coverage guide the changes; needs the package atheris"
    )
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="(default: %(default)s)"
    )
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    if args.atheris:
        import atheris

        names = [
            "decoding",
            "decoding_source",
            "decoding_table",
            "decoding_index",
            "decoding_bitstream",
            "decoding_transport",
        ]
        names = [*(f"model.{name}" for name in names), "data.tables", "data.annotations", "data.annotation_formats"]
        instrumented: contextlib.AbstractContextManager = atheris.instrument_imports(
            include=[f"alpro_hf.{name}" for name in names]
        )
    else:
        instrumented = contextlib.nullcontext()
    with instrumented:
        seeds, target = TARGETS[args.target](folder)
    findings = Findings(target, args.findings)
    start = time.monotonic()
    draw = findings.begin(args.target, args.seed, seeds)

    def report() -> None:
        print(f"{args.target}: {sum(findings.seen.values())} files in {time.monotonic() - start:.0f} s, "
              f"slowest {findings.slowest:.2f} s: {json.dumps(findings.seen)}", flush=True)  # fmt: skip

    if args.atheris:
        findings.command = ""  # coverage decides too, so a seed alone does not repeat the run
        corpus = folder / "corpus"
        corpus.mkdir()
        for i, seed in enumerate(seeds):
            (corpus / str(i)).write_bytes(seed)

        def one(data: bytes) -> None:
            findings.try_one(data)
            if sum(findings.seen.values()) % 2000 == 0:
                report()

        limits = [f"-max_total_time={args.seconds:.0f}", f"-seed={args.seed + 1}", "-max_len=20000", "-timeout=60"]
        atheris.Setup([sys.argv[0], str(corpus), *limits, f"-rss_limit_mb={MEMORY >> 20}"], one)
        atheris.Fuzz()  # ends the process
    while (sum(findings.seen.values()) < args.runs) if args.runs else time.monotonic() - start < args.seconds:
        findings.try_one(changed(seeds, draw))
    report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
