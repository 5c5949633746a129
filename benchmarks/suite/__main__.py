"""All sections, with their tables and figures.

Usage: python -m benchmarks.suite [--short] [--only losses,descent] [--seconds S] [--repeats R] [--out FOLDER]

`--short` compares every contestant with the reference in tiny cases, times nothing, and exits with 1 where
ours disagrees.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.suite import figures, measure, tables
from benchmarks.suite.measure import Row, Settings
from bwdln import simulate

SECTIONS = ("losses", "descent", "flow", "grids", "scaling", "startup")


def main() -> None:
    """Measure, tell, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="compare in tiny cases, time nothing")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a slice, at least")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    given = parser.parse_args()
    sections = given.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    settings = Settings(True, 0.0, 1) if given.short else Settings(False, given.seconds, given.repeats)

    simulate.set_up_process()
    measure.one_thread()
    print(json.dumps(tables.machine(), ensure_ascii=False), flush=True)
    rows = []
    for row in _measured(sections, settings):
        rows.append(row)
        print(_line(row), flush=True)
        if not settings.short and not len(rows) % 50:
            tables.write(rows, given.out, settings)
    if not settings.short:
        tables.write(rows, given.out, settings)
        figures.draw(rows, given.out)
        print(f"The tables and figures are in {given.out}")
    if wrong := [row for row in rows if row.ours and not row.agrees]:
        sys.exit(
            f"{len(wrong)} of ours disagree with the reference, as {wrong[0].contestant}, {wrong[0].case}"
        )


def _measured(sections: list[str], settings: Settings) -> Iterator[Row]:
    for section in sections:
        began = time.perf_counter()
        yield from importlib.import_module(f"benchmarks.suite.{section}").measured(settings)
        print(f"--- {section}: {time.perf_counter() - began:.0f} s", flush=True)


def _line(row: Row) -> str:
    state = "" if row.agrees else " DISAGREES"
    error = "" if row.error != row.error else f"  error {row.error:.0e}{state}"
    time_taken = f"  {tables.duration(row.seconds)}" if row.seconds == row.seconds else ""
    spread = f" ± {row.spread:.0%}" if row.spread == row.spread else ""
    return f"{row.section}: {row.case}: {row.contestant}{time_taken}{spread}{error}  {row.note}".rstrip()


if __name__ == "__main__":
    main()
