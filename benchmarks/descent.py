"""Microseconds per descent step and lane, and compile time, beside a plain NumPy loop.

Usage: python benchmarks/descent.py [--quick]

Every figure is the median of five repeats in one process, after a warm-up, with the program that
`experiments.train` runs: a target of condition number 10, Bures-Wasserstein loss at τ = 0, balanced
orthogonal starts.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bwdln import simulate
from bwdln.config import Config, from_mapping
from bwdln.program import _program

REPEATS = 5


def job(widths: tuple[int, ...], lanes: int, precision: str = "float64") -> Config:
    """One configuration: a geometric target of condition 10, balanced orthogonal starts."""
    config: Config = from_mapping(
        {
            "target": {"name": "geometric", "dimension": widths[-1], "condition_number": 10.0},
            "network": {"widths": list(widths)},
            "initialization": {"name": "orthogonal", "balanced": True},
            "loss": {"name": "bures_wasserstein"},
            "dynamics": {"name": "gradient_descent", "step_size": 1e-5, "steps": 10**9},
            "record": {"count": 1},
            "seeds": lanes,
            "precision": precision,
        }
    )
    return config


def median_seconds(call: Callable[[], Any]) -> float:
    """The median time of five calls."""
    return statistics.median(_seconds(call) for _ in range(REPEATS))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(widths: tuple[int, ...], lanes: int, target_seconds: float) -> tuple[float, float]:
    """Microseconds per step and lane, and the seconds until the first step was done."""
    _program.cache_clear()
    _, running = simulate.begin([simulate.prepare(job(widths, lanes))])
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        running.advance(np.full(lanes, done, np.int32))

    compiled = _seconds(lambda: advance(1))
    per_step = _seconds(lambda: advance(4)) / 4
    steps = max(4, int(target_seconds / per_step))
    return 1e6 * median_seconds(lambda: advance(steps)) / (steps * lanes), compiled


def numpy_microseconds(widths: tuple[int, ...], target_seconds: float) -> float:
    """The same step for one lane as a plain NumPy loop would do it."""
    problem = simulate.prepare(job(widths, 1))
    weights = [np.array(layer[0]) for layer in simulate.starts([problem]).weights]
    weights[-1] = np.asarray(problem.target.to_eigenbasis(weights[-1]))
    root = np.sqrt(np.asarray(problem.target.eigenvalues))[:, None]

    def step() -> None:
        prefixes = [None, weights[0]]
        for layer in weights[1:]:
            prefixes.append(layer @ prefixes[-1])
        generator = prefixes[-1]
        left, _, right = np.linalg.svd(root * generator, full_matrices=False)
        cotangent = 2 * (generator - root * (left @ right))
        for index in reversed(range(len(weights))):
            prefix = prefixes[index]
            gradient = cotangent if prefix is None else cotangent @ prefix.T
            cotangent = weights[index].T @ cotangent
            weights[index] = weights[index] - 1e-5 * gradient

    step()
    steps = max(2, int(target_seconds / _seconds(step)))
    return 1e6 * median_seconds(lambda: [step() for _ in range(steps)]) / steps


def label(widths: tuple[int, ...]) -> str:
    """Widths in few words."""
    equal = len(set(widths)) == 1
    return f"n = {widths[0]}, depth {len(widths) - 1}" if equal else str(widths)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for a look")
    seconds = 0.05 if parser.parse_args().quick else 0.5
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, float64, median of {REPEATS}")
    print(f"{'widths':>24} {'lanes':>6} {'us/step/lane':>13} {'first call, s':>14}")
    shapes = [((20,) * (depth + 1), batch) for depth in (2, 10, 100) for batch in (1, 16, 128)]
    shapes += [((16, 500, 500, 500), 1), ((500, 16, 500), 1), ((100,) * 4, 16)]
    for widths, lanes in shapes:
        cost, compiled = measure(widths, lanes, seconds)
        name = label(widths)
        print(f"{name:>24} {lanes:>6} {cost:>13.1f} {compiled:>14.2f}", flush=True)
    plain = functools.partial(numpy_microseconds, target_seconds=seconds)
    for widths in sorted({widths for widths, _ in shapes}, key=lambda each: (len(each), each)):
        name = label(widths)
        print(f"{name:>24} {'NumPy':>6} {plain(widths):>13.1f}", flush=True)


if __name__ == "__main__":
    main()
