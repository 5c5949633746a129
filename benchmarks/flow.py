"""The grid of the paper's convergence figure by gradient flow: seconds, and where they go.

Usage: python benchmarks/flow.py [--method auto] [--spacing linear] [--every 1]

924 lanes of n = 20: 21 depths × 11 spectra × 4 perturbations, balanced starts close to the target,
end-to-end flow, relative tolerance 1e-6, 100 records, until the relative gap is below 1e-7 or flow
time 3. The total is from command to results in memory, imports and compilation included; seconds
inside compiled programs are summed over the threads that call them. `--every 10` takes each tenth
lane, for a look.
"""

from __future__ import annotations

import threading
import time

BEGAN = time.perf_counter()

import argparse  # noqa: E402
import itertools  # noqa: E402
import statistics  # noqa: E402
from collections import Counter, defaultdict  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402

from bwdln import lanes, simulate  # noqa: E402
from bwdln.config import Config, from_mapping  # noqa: E402
from bwdln.program import Program, Static, program  # noqa: E402
from bwdln.results import Result  # noqa: E402

DEPTHS = (1, 7, *range(10, 101, 5))
SMALLEST = (None, *(half / 2 for half in range(1, 11)))
PERTURBATIONS = (0.0, 0.1, 0.5, 1.0)
#: A target whose smallest eigenvalue is below 0.1 unless lifted: 84 of the lanes have no margin.
SEED = 5


def grid(method: str, spacing: str) -> Iterator[Config]:
    """The configurations."""
    for depth, smallest, tau in itertools.product(DEPTHS, SMALLEST, PERTURBATIONS):
        dynamics = {"name": "end_to_end_flow", "method": method, "end_time": 3.0}
        yield from_mapping(
            {
                "target": {"name": "random", "dimension": 20, "s_min": smallest, "seed": SEED},
                "network": {"depth": depth},
                "initialization": {"name": "close_to_target", "tau": tau},
                "loss": {"name": "bures_wasserstein", "tau": tau},
                "dynamics": {**dynamics, "relative_tolerance": 1e-6, "gap_tolerance": 1e-7},
                "record": {"count": 100, "spacing": spacing},
                "seeds": 1,
            }
        )


def run(configs: Sequence[Config], seconds: Counter[str]) -> list[Result]:
    """Run them, a program for each static part; what takes how long goes into `seconds`."""
    began = time.perf_counter()
    groups = defaultdict(list)
    for config in configs:
        problem = simulate.prepare(config)
        groups[problem.static].append(problem)
    seconds["targets and checks"] = time.perf_counter() - began
    return [result for group in groups.values() for result in simulate.run_together(group)]


def watch(seconds: Counter[str]) -> None:
    """Let the seconds of tracing and compiling, and of every compiled function, be counted."""
    lock = threading.Lock()  # programs are called from several threads

    def compiled(event: str, duration: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            with lock:
                seconds["compiling"] += duration

    jax.monitoring.register_event_duration_secs_listener(compiled)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start, before = time.perf_counter(), seconds["compiling"]
            result = jax.block_until_ready(function(*arguments))
            with lock:
                seconds[f"in {name}"] += time.perf_counter() - start - (seconds["compiling"] - before)
                seconds[f"calls of {name}"] += 1
            return result

        return call

    def watched(static: Static) -> Program:
        return Program(**{name: timed(name, each) for name, each in program(static)._asdict().items()})

    lanes.program = watched


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="auto")
    parser.add_argument("--spacing", default="linear", choices=("linear", "logarithmic"))
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    seconds: Counter[str] = Counter({"imports": time.perf_counter() - BEGAN})
    watch(seconds)
    results = run(list(grid(given.method, given.spacing))[:: given.every], seconds)
    total = time.perf_counter() - BEGAN
    print(f"{len(results)} lanes, {given.method}, {given.spacing} records: {total:.1f} s")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"  {name:>20}: {value:8.2f}" if "calls" not in name else f"  {name:>20}: {value:5.0f}")
    last = [result.dataset.isel(record=-1, seed=0) for result in results]
    print("  outcomes:", dict(Counter(str(each["outcome"].values) for each in last)))
    print("  without margin:", sum(float(each["margin"]) == 0 for each in last))
    for name in ("step", "rejected", "evaluations"):
        values = [int(each[name]) for each in last]
        print(f"  {name}: median {statistics.median(values):.0f}, max {max(values)}, sum {sum(values)}")


if __name__ == "__main__":
    main()
