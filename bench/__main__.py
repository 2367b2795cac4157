"""`make bench`: samehost beside its peers, in one run, on the same work. Ratios come first: only they travel."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import replace

from bench import report, targets, text
from bench.harness import measure, with_interpreters
from bench.machine import facts
from bench.progress import Progress
from bench.tables import all_tables


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the essential rows, in two minutes")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="PYTHON=LABEL",
        help="samehost's rows once more by this interpreter, which has samehost and uvloop",
    )
    parser.add_argument("--only", metavar="WORD", default="", help="only tables whose key has this in it")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each table, at most")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    others = {label: python for python, _, label in (each.rpartition("=") for each in options.also)}
    tables = [
        replace(with_interpreters(table, others), rounds=min(table.rounds, options.rounds or table.rounds))
        for table in all_tables(is_quick=options.quick)
        if options.only in table.key
    ]
    if not tables:
        sys.exit(f"no table has {options.only!r} in its key")
    begun, known = time.monotonic(), facts(others)
    for name, value in known.items():
        print(f"{name}: {value}")
    progress, results = Progress(tables), []
    try:
        for table in tables:
            results.append(measure(table, progress))
            progress.end()
            print(text.table(results[-1]), flush=True)
    except KeyboardInterrupt:
        progress.end()
        print(f"Broken off after {len(results)} of {len(tables)} tables", file=sys.stderr)
        if not results:
            sys.exit(130)
    judgements = targets.judge(results, list(others))
    print(text.judgements(judgements))
    seconds = time.monotonic() - begun
    run = report.Run(f"python -m bench {shlex.join(sys.argv[1:])}".strip(), seconds, known, results, judgements)
    print(f"\nIt took {seconds:.0f} s. What it found is in")
    for file in report.write(run):
        print(f"  {file}")


if __name__ == "__main__":
    main()
