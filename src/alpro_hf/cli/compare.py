"""`alpro compare`: test whether two evaluations differ by more than chance."""

import argparse
import json
import sys
from pathlib import Path

from ..evaluation.compare import compare_results
from ..evaluation.results import Results, ResultsError, read_results
from ..trust import printable
from .options import whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe `alpro compare` to a parser."""
    parser.set_defaults(expected_errors=lambda: (ResultsError,))
    parser.description = (
        "Compare two evaluations of the same data row by row: how much better is B than A, and would the difference\n"
        "hold on other data of the same kind? Rows are drawn many times with replacement (paired bootstrap). All\n"
        "captions of a video, and all questions about it, are drawn together."
    )
    parser.epilog = (
        "The interval contains the differences of 95 % of the draws. A small p means that chance alone would rarely\n"
        "give such a difference. If you look at many metrics, some p are small by chance.\n\n"
        "examples:\n  alpro compare runs/with-pem/results.json runs/without-pem/results.json\n"
        "  alpro compare runs/a runs/b --json"
    )
    parser.add_argument("a", type=Path, metavar="A.json", help="results of alpro evaluate, or their folder")
    parser.add_argument("b", type=Path, metavar="B.json", help="results to compare with A")
    parser.add_argument(
        "--draws", type=whole_number(1), default=1000, metavar="N", help="number of draws (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Carry out `alpro compare`; 0 when the comparison was printed."""
    differences = compare_results(args.a, args.b, args.draws, args.seed)
    both = [read_results(path) for path in (args.a, args.b)]
    if both[0].protocol != both[1].protocol:
        print("alpro compare: the protocols differ, so this compares more than the models", file=sys.stderr)
    if args.json:
        print(json.dumps({name: value._asdict() for name, value in differences.items()}, indent=1))
        return 0
    for name, path, results in zip("AB", (args.a, args.b), both, strict=True):
        print(f"{name}  {printable(path)}: {printable(_summary(results))}")
    width = max(len("metric"), *map(len, differences))
    print(f"\n{'metric':{width}}  {'A':>8}  {'B':>8}  {'B - A':>8}  {'95 % interval':>20}  {'p':>6}")
    for name, (a, b, difference, low, high, p_value) in differences.items():
        interval = f"[{low:+.2f}, {high:+.2f}]"
        print(f"{printable(name):{width}}  {a:8.2f}  {b:8.2f}  {difference:+8.2f}  {interval:>20}  {p_value:6.3f}")
    return 0


def _summary(results: Results) -> str:
    """Model, protocol and number of rows of an evaluation, in one line."""
    model, protocol = results.model, dict(results.protocol)
    revision = f" at {str(model['revision'])[:14]}" if model["revision"] else ""
    settings = "".join(f", {key} {value}" for key, value in protocol.items() if key != "name")
    return f"{model['name']}{revision}; protocol {protocol['name']}{settings}; {results.data['rows']} rows"
