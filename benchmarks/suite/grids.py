"""The grid of the paper's convergence figure: by flow, from the command to results, and by descent.

924 lanes (benchmarks/flow.py). Descent takes steps of 1e-5 to flow time 3, 300,000 steps, or fewer where a
lane stops once its relative gap is 1e-7; the flow says when. What is measured is the time of a step for the
44 lanes of each depth, over a stated part of all steps; the sum over depths is an estimate.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.suite import descent, measure
from benchmarks.suite.measure import Row, Settings
from bwdln import simulate
from bwdln.config import Config
from bwdln.registry import Choice

ROOT = Path(__file__).resolve().parents[2]
STEP_SIZE, STEPS = 1e-5, 300_000


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    every = 160 if settings.short else 1
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite.grids", str(every)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds = time.perf_counter() - began
    ends = json.loads(done.stdout.splitlines()[-1])
    configs = _configs(every)
    finite = all(np.isfinite(ends["gaps"]))
    row = _row("by flow, command to results", len(configs), "one run in a process of its own")
    row.agrees = finite
    row.note += f"; the largest relative gap left {max(ends['gaps']):.0e}"
    if settings.short:
        yield row
        return
    row.seconds = row.minimum = seconds / len(configs)
    row.note += f"; {seconds:.1f} s in all"
    yield row
    yield from _by_descent(configs, ends, settings)


def _by_descent(configs: list[Config], ends: dict[str, list[float]], settings: Settings) -> Iterator[Row]:
    """Estimates from the seconds of a step of each depth, until lanes stop and for all steps."""
    depths = np.array([config.network.depth for config in configs])
    times, depths_of_times = np.array(ends["times"]), np.array(ends["depths"])
    stopped = whole = measured_steps = 0.0
    for depth in sorted(set(depths.tolist())):
        chosen = [_descending(config) for config, own in zip(configs, depths, strict=True) if own == depth]
        lanes = len(chosen)
        # Perturbations that are 0 and those that are not may have different programs.
        groups = defaultdict(list)
        for config in chosen:
            groups[simulate.prepare(config).static].append(config)
        seconds = 0.0  # of a step of all lanes of this depth
        for group in groups.values():
            work = measure.Work(descent.Ours(*group).advance, least=500)
            (timing,) = measure.timings([work], settings)
            seconds += timing.median
            measured_steps += settings.repeats * work.units * len(group)
        own_times = times[depths_of_times == depth]
        stopped += seconds / lanes * float(np.sum(np.ceil(own_times / STEP_SIZE)))
        whole += seconds * STEPS
    share = measured_steps / (len(configs) * STEPS)
    note = f"estimated; {share:.2%} of all steps measured"
    for what, total in (("until the gap is 1e-7", stopped), (f"all {STEPS:,} steps", whole)):
        row = _row(f"by descent, {what}", len(configs), f"{note}; {total:,.0f} s in all")
        row.seconds = row.minimum = total / len(configs)
        yield row


def _row(contestant: str, lanes: int, note: str) -> Row:
    sizes = 20, 0, 20, lanes
    return Row(
        "grids",
        "the paper's grid",
        f"bwdln, {contestant}",
        *sizes,
        "float64",
        "as in the paper",
        True,
        note=note,
    )


def _configs(every: int) -> list[Config]:
    from benchmarks import flow

    return list(flow.grid("auto", "linear"))[::every]


def _descending(config: Config) -> Config:
    """The same lane by descent, all layers, one record far away."""
    options = (("step_size", STEP_SIZE), ("steps", 10**9))
    dynamics = Choice("gradient_descent", options)
    record = dataclasses.replace(config.record, count=1)
    return dataclasses.replace(config, dynamics=dynamics, record=record)


def worker(every: int) -> None:
    """Run the grid by flow; print when each lane ended and the gap it left."""
    from benchmarks import flow

    results = flow.run(_configs(every), Counter())
    last = [result.dataset.isel(record=-1, seed=0) for result in results]
    found = {
        "depths": [float(result.config.network.depth) for result in results],
        "times": [float(each["time"]) for each in last],
        "gaps": [float(each["relative_gap"]) for each in last],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    worker(int(sys.argv[1]))
