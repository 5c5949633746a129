"""Milliseconds for Hessians in closed form, by automatic differentiation, and matrix-free.

Usage: python benchmarks/theory.py

Medians of repeats in one process, after compilation, whose time stands beside them: the spectra of
all 924 critical points of n = 12, k = 6; of one point of n = 500, k = 250 at depth 50; of one point of
n = 8, k = 4 at depth 3 in closed form and from the Hessian by automatic differentiation and its
eigenvalues, with the ratio; and both ends at arbitrary weights of widths (500, 16, 500) by Lanczos.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bwdln import losses, networks, simulate
from bwdln.initializations.base import from_factors
from bwdln.targets import Target
from bwdln.theory import curvature, hessians
from bwdln.types import Array, Weights


def measured(title: str, function: Callable[..., Any], *arguments: Any, repeats: int = 15) -> float:
    """Print and return the median time of a call, in milliseconds, and print that of compilation."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compilation = time.perf_counter() - began
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - began)
    median = 1e3 * statistics.median(times)
    print(f"{title:<62} {median:>10.3f} ms {compilation:>8.2f} s", flush=True)
    return median


def closed_form(eigenvalues: Array, positions: Array, depth: float, tau: float) -> tuple[Array, Any]:
    """The whole spectrum of a point and its extremes."""
    return (
        hessians.spectrum(eigenvalues, positions, depth=depth, tau=tau),
        hessians.extremes(eigenvalues, positions, depth=depth, tau=tau),
    )


def automatic(weights: Weights, eigenvalues: Array, tau: float) -> Array:
    """The eigenvalues of the Hessian in all layers."""
    flat, unravel = ravel_pytree(weights)
    loss, target = losses.bures_wasserstein(tau), Target(eigenvalues, None)
    return jnp.linalg.eigvalsh(jax.hessian(lambda each: losses.deep_value(loss, unravel(each), target))(flat))


def sharpness(weights: networks.Packed, eigenvalues: Array, *, tau: float) -> curvature.Ritz:
    """Both ends of the spectrum at any weights."""
    return curvature.curvature(losses.bures_wasserstein(tau), weights, Target(eigenvalues, None))


def main() -> None:
    """Print the table."""
    simulate.set_up_process()
    rng = np.random.default_rng(0)
    print(f"{'':<62} {'median':>13} {'compiling':>10}")
    points = jnp.asarray(list(itertools.combinations(range(12), 6)))
    lanes = jax.vmap(closed_form, in_axes=(None, 0, None, None))
    measured("closed form, 924 points of n = 12, k = 6, depth 3", lanes, geometric(12), points, 3.0, 0.01)
    half = jnp.arange(0, 500, 2)
    measured("closed form, n = 500, k = 250, depth 50", closed_form, geometric(500), half, 50.0, 1e-4)
    spectrum, positions = geometric(8), np.arange(0, 8, 2)
    left, right = np.eye(8)[:, positions], np.eye(4)
    weights = from_factors(left, jnp.sqrt(spectrum[positions] - 0.01), right, (4, 8, 8, 8))
    arguments = (spectrum, jnp.asarray(positions), 3.0, 0.01)
    fast = measured("closed form, n = 8, k = 4, depth 3", closed_form, *arguments)
    title = "automatic differentiation of the same (160 parameters)"
    slow = measured(title, automatic, weights, spectrum, 0.01)
    print(f"{'ratio':<62} {slow / fast:>10.0f}")
    wide = tuple(jnp.asarray(rng.normal(size=shape) / 4) for shape in ((16, 500), (500, 16)))
    for tau in (0.0, 0.1):
        title = f"Lanczos, {curvature.ITERATIONS} steps, widths (500, 16, 500), tau = {tau}"
        call = functools.partial(sharpness, tau=tau)
        measured(title, call, networks.pack(wide), geometric(500), repeats=5)


def geometric(dimension: int) -> Array:
    """Eigenvalues over three decades."""
    return jnp.asarray(np.geomspace(10, 1e-2, dimension)) + 0.01


if __name__ == "__main__":
    main()
