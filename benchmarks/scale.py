"""What a sweep costs as it grows: time, memory of the command, and disk, by jobs and lanes.

Usage: python benchmarks/scale.py [--sweeps 1000x1 100x100 100x1000] [--options …]

Each sweep is a process of its own, inline, from command to end: so many jobs (perturbations τ) times so many
seeds. n = 20, depth 2, 20 steps, two records: little is computed, so that what is seen is the cost of
planning, keeping and gathering. Then the same command again, which finds all of it stored and only gathers,
as a command does whose tasks ran elsewhere. Then what another job and another lane cost, by least squares.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TINY = ("network.depth=2", "target.dimension=20", "dynamics.steps=20", "record.count=2")
#: Runs a command, then says how much memory it held at most, in MiB.
MEASURED = """
import resource
import subprocess
import sys

subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (1024 if sys.platform == "linux" else 2**20))
"""


class Cost(NamedTuple):
    """Of a sweep: seconds, those of the same command again, MiB of the command at most, MB on disk in all and
    of the dataset.
    """

    seconds: float
    again: float
    memory: float
    disk: float
    dataset: float


def measured(jobs: int, seeds: int, options: list[str]) -> Cost:
    """The cost of a sweep of so many jobs with so many seeds each."""
    grid = ",".join(f"{0.01 + number / 1e6:.7f}" for number in range(jobs))
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep")
        told = ("report=never", "figures=never", f"hydra.sweep.dir={sweep}", f"loss.tau={grid}")
        command = [sys.executable, "-m", "experiments.train", "-m", *told, f"seeds={seeds}", *TINY, *options]
        seconds, memory = run(command)
        again, _ = run(command)
        files = {(each.stat().st_ino, each.stat().st_blocks) for each in sweep.rglob("*")}
        disk = sum(512 * blocks for _, blocks in files) / 1e6  # a file with several names counts once
        return Cost(seconds, again, memory, disk, (sweep / "sweep.nc").stat().st_size / 1e6)


def run(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and MiB that it holds at most."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], cwd=ROOT, text=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="+", default=["100x1", "1000x1", "100x100", "100x1000"])
    parser.add_argument("--options", nargs="*", default=[], help="of the sweeps, as record.count=10")
    given = parser.parse_args()

    sizes = [(int(jobs), int(seeds)) for jobs, seeds in (each.split("x") for each in given.sweeps)]
    costs = []
    print("  jobs x seeds     lanes   seconds     again  memory MiB   disk MB   dataset MB")
    for jobs, seeds in sizes:
        cost = measured(jobs, seeds, given.options)
        costs.append(cost)
        print(
            f"{jobs:6,} x {seeds:5,}  {jobs * seeds:8,}  {cost.seconds:8.1f}  {cost.again:8.1f}"
            f"  {cost.memory:10,.0f}  {cost.disk:8,.0f}  {cost.dataset:11,.1f}",
            flush=True,
        )
    if len(sizes) >= 3:
        counts = np.array([(1, jobs, jobs * seeds) for jobs, seeds in sizes], dtype=float)
        for name, unit in (
            ("seconds", 1e3),
            ("again", 1e3),
            ("memory", 1024.0),
            ("disk", 1e3),
            ("dataset", 1e3),
        ):
            values = np.array([getattr(cost, name) for cost in costs])
            # Relative errors count: the largest sweep is not to decide alone.
            _, job, lane = np.linalg.lstsq(counts / values[:, None], np.ones(len(values)), rcond=None)[0]
            of = {"memory": "KiB", "disk": "kB", "dataset": "kB"}.get(name, "ms")
            print(f"  {name:8} another job {unit * job:8.2f} {of}, another lane {unit * lane:8.3f} {of}")


if __name__ == "__main__":
    main()
