"""Measure the time that `import alpro_hf` adds to importing torch and transformers, which all users need.

    python scripts/benchmarks/import_time.py [--repeat 5]

Each import runs in a fresh process under `python -X importtime`, and the best repetition counts. transformers imports
lazily, so the baseline names the parts of it that every video-language model needs.
"""

import argparse
import subprocess
import sys

BASELINE = (
    "import torch, transformers, transformers.modeling_utils, transformers.processing_utils, "
    "transformers.video_processing_utils"
)
OURS = "import alpro_hf"


def seconds(statement: str) -> float:
    """Seconds of all imports: the sum of the self times, which `-X importtime` prints in microseconds in column 1."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = [line.removeprefix("import time:") for line in report.splitlines() if line.startswith("import time:")]
    times = [line.split("|")[0].strip() for line in lines]
    return sum(int(time) for time in times if time.isdigit()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="fresh processes per side (default: 5)")
    arguments = parser.parse_args()
    # in turns, so that the load of other programs affects both sides
    pairs = [(seconds(BASELINE), seconds(OURS)) for _ in range(arguments.repeat)]
    baseline, ours = (min(times) for times in zip(*pairs, strict=True))
    print(f"torch + transformers  {baseline:6.2f} s")
    print(f"alpro_hf, both included  {ours:6.2f} s")
    print(f"ratio  {ours / baseline:.2f}   (best of {arguments.repeat}, Python {sys.version.split()[0]})")


if __name__ == "__main__":
    main()
