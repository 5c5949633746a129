"""How our cost grows: with lanes, n, k and depth, by slopes in log-log; and the memory of a lane.

Steps are timed without records here: with 100,000 lanes a record takes longer than the steps.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.suite import descent, flow, measure
from benchmarks.suite.measure import Row, Settings, Work
from bwdln import simulate
from bwdln.lanes import bytes_per_lane

ROOT = Path(__file__).resolve().parents[2]


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    if settings.short:
        yield from _descent(
            "lanes", [descent.Case(descent.square(5, 2), count) for count in (1, 3)], settings
        )
        yield _memory((8, 24), 5, 2)
        return
    square, case = descent.square, descent.Case
    counts = [10**power for power in range(6)]
    yield from _descent("lanes", [case(square(20, 3), count) for count in counts], settings)
    yield from _descent("n", [case(square(n, 3), 8) for n in (10, 20, 50, 100, 200)], settings)
    yield from _descent("k", [case((500, k, 500), 4) for k in (4, 8, 16, 32, 64, 128)], settings)
    yield from _descent("depth", [case(square(20, depth), 16) for depth in (1, 3, 10, 30, 100)], settings)
    yield from _flow([flow.Case(20, depth, 128) for depth in (1, 3, 10, 30, 100)], settings)
    for n, counts in ((20, (2_000, 10_000)), (100, (100, 500))):
        yield _memory(counts, n, 3)


def _descent(against: str, cases: Sequence[descent.Case], settings: Settings) -> Iterator[Row]:
    """Seconds per step and lane."""

    def work(case: descent.Case) -> Work:
        return Work(descent.Ours(descent.job(case)).advance_only)

    def row(case: descent.Case) -> Row:
        n, depth, k = case.shape
        return _row(f"descent against {against}", n, depth, k, case.lanes)

    yield from _series(against, cases, work, row, settings)


def _flow(cases: Sequence[flow.Case], settings: Settings) -> Iterator[Row]:
    """Seconds per evaluation of the end-to-end velocity and lane."""

    def work(case: flow.Case) -> Work:
        contestant = next(flow._ours(case, flow.drawn(case)))
        return measure.repeated(contestant.call)

    def row(case: flow.Case) -> Row:
        return _row("flow, end to end, against depth", case.n, case.depth, case.n, case.batch)

    yield from _series("depth", cases, work, row, settings)


def _series(
    against: str,
    cases: Sequence,
    work: Callable[..., Work],
    row: Callable[..., Row],
    settings: Settings,
) -> Iterator[Row]:
    """The lines of a series, each with the slope from the one before; the last with that of all."""
    rows: list[Row] = []
    for case in cases:
        each = row(case)
        # One at a time: together they would not fit.
        (timing,) = measure.timings([work(case)], settings)
        each.seconds, each.minimum = timing.median / each.batch, timing.minimum / each.batch
        each.spread = timing.spread
        rows.append(each)
    if settings.short:
        for each in rows:
            each.seconds = each.minimum = each.spread = np.nan
        yield from rows
        return
    name = {"lanes": "batch"}.get(against, against)
    sizes = np.log([getattr(each, name) for each in rows])
    seconds = np.log([each.seconds for each in rows])
    for (x, y), each in zip(itertools.pairwise(zip(sizes, seconds, strict=True)), rows[1:], strict=True):
        each.note = f"slope from the one before {(y[1] - x[1]) / (y[0] - x[0]):.2f}"
    rows[-1].note += f"; of all {np.polyfit(sizes, seconds, 1)[0]:.2f}"
    yield from rows


def _row(case: str, n: int, depth: int, k: int, batch: int) -> Row:
    name = f"bwdln, n = {n}, depth {depth}, k = {k}, {batch} lanes"
    return Row("scaling", case, name, n, depth, k, batch, "float64", "condition 1e+01 (target)", True)


# --- memory ---------------------------------------------------------------------------------------


def _memory(counts: tuple[int, int], n: int, depth: int) -> Row:
    """The memory of a lane from the peaks of two processes, beside what we say it takes."""
    found = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.suite.scaling", str(n), str(depth), str(count)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    peaks = [each["peak"] for each in found]
    lane = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    row = _row("memory", n, depth, n, counts[1])
    row.note = (
        f"peaks {peaks[0] / 1e6:,.0f} and {peaks[1] / 1e6:,.0f} MB with {counts[0]:,} and {counts[1]:,} "
        f"lanes: {lane / 1e3:,.0f} kB a lane, estimated {found[0]['estimate'] / 1e3:,.0f} kB"
    )
    return row


def worker(n: int, depth: int, count: int) -> None:
    """Ten steps of so many lanes, to the end; print the peak of memory and our estimate for a lane."""
    config = descent.job(descent.Case(descent.square(n, depth), count))
    ours = descent.Ours(config)
    ours.advance(10)
    ours.running.finish()
    problem = simulate.prepare(config)
    needed = bytes_per_lane(problem.static, problem.lane, config.precision, records=1)
    print(json.dumps({"peak": _peak(), "estimate": needed.state + needed.work + needed.host}))


def _peak() -> int:
    """The bytes this process held at most; `getrusage` counts those of the one that started it, too."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:]))
