"""What it costs to hand a sweep out, and what a second process brings.

Usage: python benchmarks/engines.py [--jobs 1000] [--tasks 10] [--repeats 3] [--engines inline slurm …]

Overhead: so many tiny jobs (n = 20, depth 2, 100 steps, one seed) in so many tasks, from command to end,
imports and compilation included, by engine; engines take turns, and the medians are held against inline.
Slurm is the one that SLURM_CONF names; engines that are not there are left out.

Speed-up: 16 lanes of 8,000 steps at n = 40, which take seconds: on one core inline, on all cores inline, in
one process that is handed all cores, and in two that share them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIET = ("report=never", "figures=never")
TINY = ("network.depth=2", "dynamics.steps=100", "record.count=10", "seeds=1")
LONG = (
    *("loss.tau=0.1,0.2,0.3,0.4", "network.depth=3", "target.dimension=40", "seeds=4"),
    *("dynamics.steps=8000", "dynamics.step_size=1e-3", "record.count=50"),
)
#: What the speed-up is measured of: options, and variables of the environment.
SHARED = {
    "inline, one core": ((), {"BWDLN_CORES": "1"}),
    "inline, all cores": ((), {}),
    "one process, all cores": (("sweep.engine=processes", "sweep.processes.parallel=1"), {}),
    "two processes, half of them each": (("sweep.engine=processes", "sweep.processes.parallel=2"), {}),
}


def seconds(options: tuple[str, ...], variables: dict[str, str]) -> float:
    """A sweep from command to end."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            sys.executable,
            "-m",
            "experiments.train",
            "-m",
            *QUIET,
            f"hydra.sweep.dir={folder}/sweep",
        ]
        began = time.perf_counter()
        done = subprocess.run(
            [*arguments, *options], cwd=ROOT, capture_output=True, text=True, env=os.environ | variables
        )
        taken = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        return taken


def in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Every measurement so often; they take turns, so that a noisy minute hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(run())
    return taken


def available(engine: str) -> bool:
    """Whether an engine can run here."""
    library = {"processes": "submitit", "slurm": "submitit", "ray": "ray"}.get(engine)
    installed = library is None or importlib.util.find_spec(library) is not None
    return installed and (engine != "slurm" or shutil.which("sbatch") is not None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["inline", "processes", "slurm", "ray"])
    given = parser.parse_args()

    grid = ",".join(f"{0.01 + number / 1e5:.5f}" for number in range(given.jobs))
    handed = {
        engine: () if engine == "inline" else (f"sweep.engine={engine}", f"sweep.tasks={given.tasks}")
        for engine in filter(available, given.engines)
    }
    print(f"{given.jobs:,} tiny jobs in {given.tasks} tasks, seconds (median of {given.repeats}, and all)")
    sweeps = {
        engine: lambda options=options: seconds((*TINY, f"loss.tau={grid}", *options), {})
        for engine, options in handed.items()
    }
    taken = in_turns(sweeps, given.repeats)
    base = statistics.median(taken.get("inline", [float("nan")]))
    for engine, every in taken.items():
        median = statistics.median(every)
        more = (median - base) / given.tasks
        listed = " ".join(f"{each:.1f}" for each in every)
        print(
            f"  {engine:10} {median:6.1f}   {median / base:5.2f} x inline, {more:5.2f} s a task   ({listed})"
        )

    print(f"16 lanes of 8,000 steps, seconds (median of {given.repeats}, and all)")
    sweeps = {
        name: lambda options=options, variables=variables: seconds((*LONG, *options), variables)
        for name, (options, variables) in SHARED.items()
    }
    taken = in_turns(sweeps, given.repeats)
    base = statistics.median(taken["inline, one core"])
    for name, every in taken.items():
        median, listed = statistics.median(every), " ".join(f"{each:.1f}" for each in every)
        print(f"  {name:33} {median:6.1f}   {base / median:5.2f} x as fast as one core   ({listed})")


if __name__ == "__main__":
    main()
