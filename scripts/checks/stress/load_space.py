"""Load test of the demo on this machine: many clients at once, with valid and invalid requests.

    python scripts/checks/stress/load_space.py --clients 20 --seconds 300

The script starts spaces_demo/app.py on a port of 127.0.0.1 and stops it at the end. It prints answers, refusals and
latencies by kind of request, and memory and open files of the server before and after. It also counts the tracebacks
in the log of the server by their last lines. The exit code is 1 in these cases:
  - the server died
  - a valid request failed for another reason than a full queue or a timeout
  - an invalid request was answered
  - an error message is not a sentence for people
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
APP = ROOT / "spaces_demo" / "app.py"
BUSY = ("queue is full", "queue full", "too many")  # messages to clients when the queue is full


@contextmanager
def space(port: int, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start the demo in its own process and wait until it answers: its address and the process."""
    # variables of the user must not choose other models or limits
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ALPRO_")}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "gradio"), "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = str(ROOT / "src")
    address = f"http://127.0.0.1:{port}"
    with (folder / "space.log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=log, stderr=log)
        try:
            for _ in range(600):  # five minutes at least: loading the models is slow on a busy machine
                if process.poll() is not None:
                    raise SystemExit(
                        f"The demo did not start. The end of its log: {(folder / 'space.log').read_text()[-2000:]}"
                    )
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                print("The demo did not stop within 60 seconds; killed.")
                process.kill()


def used(process: psutil.Process) -> dict[str, int]:
    """Memory in MB, open files and number of processes, of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return {
        "mb": sum(one.memory_info().rss for one in family) >> 20,
        "files": sum(one.num_fds() for one in family),
        "processes": len(family),
    }


def requests(folder: Path) -> dict[str, tuple[bool, Callable[[Any], Any]]]:
    """Name -> (whether the request is valid, its call with a client)."""
    from gradio_client import handle_file

    from alpro_hf.sprites.render import write_clip
    from alpro_hf.sprites.world import draw_scene

    clip, text, half = folder / "own.mp4", folder / "notes.mp4", folder / "half.mp4"
    write_clip(clip, draw_scene("test", 0, 40))
    text.write_text("only words " * 50)
    half.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    return {
        "search": (True, lambda c: c.predict("the tiger grows", api_name="/search")),
        "ask": (True, lambda c: c.predict("what does the bell do?", "01", None, api_name="/ask")),
        "words": (True, lambda c: c.predict("the tiger grows", "14", None, api_name="/words")),
        "own clip": (True, lambda c: c.predict("what grows?", "", handle_file(str(clip)), api_name="/ask")),
        "no text": (False, lambda c: c.predict(" ", None, api_name="/search")),
        "long text": (False, lambda c: c.predict("a" * 5000, "01", None, api_name="/ask")),
        "no clip": (False, lambda c: c.predict("what?", "../../etc/passwd", None, api_name="/ask")),
        "no video": (False, lambda c: c.predict("what?", "", handle_file(str(text)), api_name="/ask")),
        "half a video": (False, lambda c: c.predict("what?", "", handle_file(str(half)), api_name="/ask")),
    }


def is_sentence(text: str) -> bool:
    """Whether an error message is for people: it ends like a sentence and shows no code."""
    return text.strip().endswith((".", "!", "”", '"}')) and "Traceback" not in text and 'File "' not in text


def tracebacks(log: str) -> Counter[str]:
    """Last line of each traceback in a log -> number of times. A chain of exceptions counts once, by its last one."""
    found: Counter[str] = Counter()
    inside = led_to_another = False
    last = ""
    for line in [*log.splitlines(), ""]:
        if "Traceback (most recent call last)" in line:
            inside = True
        elif inside and re.match(r"[\w.]+(: |$)", line):  # the exception is the first line without indentation
            last, inside, led_to_another = line, False, False
            found[last[:200]] += 1
        elif last and line.startswith(("During handling of", "The above exception was")) and not led_to_another:
            found[last[:200]] -= 1  # the next traceback stands for the chain
            led_to_another = True
    return +found


class Tally:
    """Outcomes and latencies by name of the request. Threads share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.results: dict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: Counter[str] = Counter()

    def note(self, name: str, seconds: float, result: str, wrong: str | None) -> None:
        """Count an outcome, and what is wrong with it, if anything."""
        with self.lock:
            self.seconds[name].append(seconds)
            self.results[name][result] += 1
            if wrong:
                self.wrong[f"{name}: {wrong}"] += 1

    def ask(self, name: str, good: bool, call: Callable[[Any], Any], client: Any) -> None:
        """Make a request and judge the outcome."""
        start, wrong, result = time.monotonic(), None, "answered"
        try:
            call(client)
            if not good:
                wrong = "was answered, although it is invalid"
        except Exception as error:  # the client raises many types; the message is under test
            said = str(error)
            busy = "429" in said or any(word in said.lower() for word in BUSY)
            late = "timed out" in said  # the client stopped waiting
            result = "busy" if busy else "late" if late else "refused"
            if not busy and not late and (good or not is_sentence(said)):
                wrong = said[:200]
        self.note(name, time.monotonic() - start, result, wrong)

    def show(self) -> None:
        """Print the table of requests, and the 20 most frequent problems."""
        print(f"{'request':<14} {'number':>7} {'median s':>9} {'95 % s':>8} {'most s':>8}  outcomes")
        for name, seconds in self.seconds.items():
            ordered = sorted(seconds)
            last = ordered[int(0.95 * (len(ordered) - 1))]
            outcomes = ", ".join(f"{count} {result}" for result, count in self.results[name].most_common())
            print(f"{name:<14} {len(ordered):7} {median(ordered):9.2f} {last:8.2f} {ordered[-1]:8.2f}  {outcomes}")
        for problem, count in self.wrong.most_common(20):
            print(f"WRONG {count} x {problem}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20, help="clients at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="duration (default: %(default)s)")
    parser.add_argument("--port", type=int, default=17700, help="port of the server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of requests (default: %(default)s)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="copy the log of the server to this file")
    args = parser.parse_args()
    from gradio_client import Client

    with tempfile.TemporaryDirectory(prefix="load-") as name, space(args.port, Path(name)) as (address, process):
        kinds, tally = requests(Path(name)), Tally()
        clients = [Client(address, verbose=False) for _ in range(args.clients)]
        before, end = used(process), time.monotonic() + args.seconds

        def work(number: int) -> None:
            draw = random.Random(f"{args.seed}/{number}")  # each client has its own order of requests
            while time.monotonic() < end:
                kind = draw.choice(list(kinds))
                tally.ask(kind, *kinds[kind], clients[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(args.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        tally.show()
        state = "is running" if alive else "DIED"
        print(f"{args.clients} clients, {args.seconds:.0f} s, {os.cpu_count()} cores; the server {state}: ", end="")
        print(f"{json.dumps(before)} before, {json.dumps(used(process))} after")
        log = (Path(name) / "space.log").read_text(errors="replace")
        if args.log:
            args.log.write_text(log)
        found = tracebacks(log)
        print(f"tracebacks in the log of the server: {found.total()}")
        for line, count in found.most_common():
            print(f"  {count} x {line}")
    return 0 if alive and not tally.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
