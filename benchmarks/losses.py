"""Microseconds per gradient of the Bures-Wasserstein loss, by route.

Usage: python benchmarks/losses.py

For W of shape (n, k): τ = 0 (a k × k problem), and τ > 0 by quadrature (k × k problems) beside the
polar factor (an n × n problem). It is where `polar.THIN_FROM` and `THIN_RATIO` come
from. Medians of seven repeats in one process; 16 lanes where n ≤ 100, else one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwdln import linalg, losses, simulate
from bwdln.targets import Target

SHAPES = (
    *((64, 8), (100, 5), (100, 12), (100, 25), (200, 10)),
    *((200, 25), (200, 50), (400, 25), (400, 100), (625, 10)),
)
REPEATS = 7


def microseconds(function: Callable[..., Any], arguments: Sequence[Any], lanes: int) -> float:
    """The median time of a call, per lane."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return 1e6 * statistics.median(times) / lanes


def main() -> None:
    """Print the table."""
    simulate.set_up_process()
    quadrature = jax.jit(lambda b, d: linalg._by_quadrature(b, d)[0])
    decomposition = jax.jit(linalg._leading_polar_factor)
    at_zero = jax.jit(jax.vmap(losses.bures_wasserstein().gradient, in_axes=(0, None)))
    rng = np.random.default_rng(0)
    print(f"{'n':>5} {'k':>5} {'tau = 0':>10} {'quadrature':>12} {'n x n':>10} {'largest difference':>20}")
    for n, k in SHAPES:
        lanes = 16 if n <= 100 else 1
        eigenvalues = jnp.asarray(np.geomspace(10, 1e-3, n))
        modes = jnp.asarray(rng.normal(size=(lanes, n, k)))
        overlap = jnp.sqrt(eigenvalues)[None, :, None] * modes
        perturbed = (overlap, jnp.broadcast_to(0.1 * eigenvalues, (lanes, n)))
        difference = jnp.max(jnp.abs(quadrature(*perturbed) - decomposition(*perturbed)))
        times = (
            microseconds(at_zero, (modes, Target(eigenvalues, None)), lanes),
            microseconds(quadrature, perturbed, lanes),
            microseconds(decomposition, perturbed, lanes),
        )
        figures = f"{times[0]:>10.0f} {times[1]:>12.0f} {times[2]:>10.0f}"
        print(f"{n:>5} {k:>5} {figures} {difference:>20.1e}", flush=True)


if __name__ == "__main__":
    main()
