"""TODO docstring."""

import argparse
import json
import sys
from pathlib import Path

from ..evaluation.compare import _positive, compare_results
from ..evaluation.results import Results, ResultsError, read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro compare` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Compare two evaluations of the same data, made by alpro evaluate, row by row: how much better is B than A,\n"
        "and would the difference survive other data of the same kind? Rows are drawn with replacement many times\n"
        "(paired bootstrap), captions of a video and questions about it together."
    )
    parser.epilog = (
        "The interval holds the differences of 95 % of the draws. A small p says that chance alone would rarely give\n"
        "such a difference; with many metrics, some are small by chance.\n\n"
        "examples:\n  alpro compare runs/with-pem/results.json runs/without-pem/results.json\n"
        "  alpro compare runs/a runs/b --json"
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="results, or the folder they are in")
    parser.add_argument("b", type=Path, metavar="B.json", help="results that A is compared with")
    parser.add_argument("--draws", type=_positive, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro compare`; 0 when the comparison was printed, 1 with the reason on stderr when not."""
    try:
        differences = compare_results(args.a, args.b, args.draws, args.seed)
        both = [read_results(path) for path in (args.a, args.b)]
    except (OSError, ResultsError) as error:
        print(f"alpro compare: {error}", file=sys.stderr)
        return 1
    if both[0].protocol != both[1].protocol:
        print("alpro compare: the protocols differ, so this compares more than the models", file=sys.stderr)
    if args.json:
        print(json.dumps({name: value._asdict() for name, value in differences.items()}, indent=1))
        return 0
    for name, path, results in zip("AB", (args.a, args.b), both, strict=True):
        print(f"{name}  {path}: {_shown(results)}")
    width = max(len("metric"), *map(len, differences))
    print(f"\n{'metric':{width}}  {'A':>8}  {'B':>8}  {'B - A':>8}  {'95 % interval':>20}  {'p':>6}")
    for name, (a, b, difference, low, high, p_value) in differences.items():
        interval = f"[{low:+.2f}, {high:+.2f}]"
        print(f"{name:{width}}  {a:8.2f}  {b:8.2f}  {difference:+8.2f}  {interval:>20}  {p_value:6.3f}")
    return 0


def _shown(results: Results) -> str:
    model, protocol = results.model, dict(results.protocol)
    revision = f" at {str(model['revision'])[:14]}" if model["revision"] else ""
    numbers = "".join(f", {key} {value}" for key, value in protocol.items() if key != "name")
    return f"{model['name']}{revision}; protocol {protocol['name']}{numbers}; {results.data['rows']} rows"
