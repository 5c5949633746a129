"""A sweep of many tiny runs by launcher, in jobs per second; and what a job of a batched one costs, by part.

Usage: python benchmarks/sweep.py [--jobs 1000] [--sample 20] [--repeats 3] [--parts]

Each sweep is a process of its own, from command to its end, imports and compilation included: `batched`
with all jobs; Hydra's basic launcher, and its joblib launcher where it is installed, with a sample of them
(the first, so many on each side of it), once with half of the sample: the difference of the two is what
another job costs, and the start-up is not counted against them. Medians of the repeats, which take turns.
n = 20, depth 2, 100 steps, 10 records, one seed, no figures; then the basic launcher with figures of each
job, which a batched sweep draws once. `--parts`: what a batched sweep spends where.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUN = ("network.depth=2", "dynamics.steps=100", "record.count=10", "seeds=1")


WITH_FIGURES = "basic, with figures of each job"


def command(jobs: int, launcher: str, folder: str, figures: str = "never") -> list[str]:
    """The arguments of a sweep over as many perturbations as jobs."""
    grid = ",".join(f"{0.01 + number / 1e5:.5f}" for number in range(jobs))
    sweeper = "grid" if launcher == "batched" else "basic"
    choice = (f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}", f"hydra.sweep.dir={folder}")
    return ["-m", *RUN, f"figures={figures}", f"loss.tau={grid}", *choice]


def seconds(jobs: int, launcher: str, figures: str = "never") -> float:
    """From command to end."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        arguments = [sys.executable, "-m", "experiments.train", *command(jobs, launcher, folder, figures)]
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - began


def per_job(launcher: str, sample: int, figures: str = "never") -> float:
    """Seconds that one more job costs."""
    more, fewer = (seconds(count, launcher, figures) for count in (sample, sample // 2))
    return (more - fewer) / (sample - sample // 2)


# --- the parts of a batched sweep -----------------------------------------------------------------


def timed(function: Callable[..., Any], part: str, spent: Counter[str]) -> Callable[..., Any]:
    """The function; the time it takes goes into `spent[part]`."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] += time.perf_counter() - began

    return call


def parts(jobs: int) -> dict[str, float]:
    """Seconds by part of one sweep in this process, imports not counted."""
    sys.path.insert(0, str(ROOT))
    import jax.numpy  # noqa: F401

    from bwdln import lanes, simulate, store, sweep
    from experiments import batches, train

    spent: Counter[str] = Counter()
    seams = (
        ("check the options", batches.Batches, "_read"),
        ("plan", sweep, "plan"),
        ("draw the starts", simulate, "begin"),
        ("run (and compile)", lanes.Lanes, "run"),
        ("results from records", simulate, "finished"),
        ("write the results", store.Store, "keep"),
        ("link and log", batches.Batches, "_finish"),
        ("conclude: dataset, table", batches.Batches, "conclude"),
    )
    for part, owner, name in seams:
        setattr(owner, name, timed(getattr(owner, name), part, spent))
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train.py", *command(jobs, "batched", folder)]
        began = time.perf_counter()
        train.main()
        whole = time.perf_counter() - began
    return {**spent, "compose, and the books of Hydra": whole - sum(spent.values()), "all": whole}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", action="store_true", help="only the parts of a batched sweep")
    given = parser.parse_args()
    if given.parts:
        show(parts(given.jobs), given.jobs)
        return
    launchers = [
        "basic",
        *(["joblib"] if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") else []),
    ]
    whole: list[float] = []
    drawn: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in (*launchers, WITH_FIGURES)}
    for _ in range(given.repeats):
        whole.append(seconds(given.jobs, "batched"))
        drawn.append(seconds(given.jobs, "batched", "auto"))
        for name in launchers:
            others[name].append(per_job(name, given.sample))
        others[WITH_FIGURES].append(per_job("basic", given.sample, "always"))
    print(told("batched", statistics.median(whole), given.jobs))
    print(told("batched, with figures of the sweep", statistics.median(drawn), given.jobs))
    for name, each in others.items():
        one = statistics.median(each)
        batched = statistics.median(drawn if name == WITH_FIGURES else whole)
        ratio = one * given.jobs / batched
        print(
            f"{name}: {one * 1e3:.0f} ms a job, {1 / one:.2f} a second; batched is {ratio:.0f} times as fast"
        )


def told(name: str, taken: float, jobs: int) -> str:
    return f"{name}: {jobs} jobs in {taken:.1f} s, {jobs / taken:.1f} a second, start-up included"


def show(spent: dict[str, float], jobs: int) -> None:
    for part, each in spent.items():
        print(f"{part:32} {each:7.2f} s {each / jobs * 1e3:8.2f} ms a job")


if __name__ == "__main__":
    main()
