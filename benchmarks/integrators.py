"""The same flow by our integrators, by SciPy's and, where it is installed, by diffrax's.

Usage: python benchmarks/integrators.py [--quick]

End-to-end flow of 16 lanes, n = 20, from balanced starts near the target, to flow time 1, at
relative tolerance 1e-6: gradients evaluated by the slowest lane, milliseconds per lane (median of
five), and the largest relative error against a run of ours at 1e-11. SciPy takes one lane after the
other, with the same compiled gradient; diffrax takes all lanes in one vmapped program, like ours.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from bwdln import losses, networks, simulate, targets
from bwdln.dynamics import end_to_end_flow, integrate
from bwdln.program import compiled

LANES, DIMENSION, TOLERANCE = 16, 20, 1e-6

try:
    import diffrax
except ImportError:
    diffrax = None


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median time of a call after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def problem(depth: float, tau: float) -> tuple[Any, Any]:
    """The gradients of the loss as our dynamics take them, and starts (lanes, n, n)."""
    target = targets.geometric(dimension=DIMENSION, condition_number=20.0, largest=4.0).in_eigenbasis()
    loss = losses.bures_wasserstein(tau)
    noise = np.random.default_rng(0).normal(size=(LANES, DIMENSION, DIMENSION))
    starts = np.diag(np.sqrt(target.eigenvalues)) + 0.05 * noise
    return lambda weights: losses.layer_gradients(loss, weights, target), jnp.asarray(starts)


def ours(gradients: Any, depth: float, method: str, tolerance: float) -> Callable[[Any], Any]:
    """Final generators and evaluations of all lanes, by one of our methods."""
    dynamics = end_to_end_flow.end_to_end_flow(
        gradients, depth, end_time=1.0, method=method, relative_tolerance=tolerance
    )

    def lane(start: Any) -> Any:
        state = integrate.start(dynamics, networks.Packed((), (start,)), 1e3)
        state = integrate.advance(
            lambda each: integrate.step(dynamics, each, 1.0),
            lambda each: integrate.active(dynamics, each, 1.0),
            state,
            10**6,
        )
        return integrate.at(dynamics, state, 1.0).weights.above[0], state.evaluations

    return compiled(jax.vmap(lane))


def by_diffrax(velocity: Any, solver: Any) -> Callable[[Any], Any]:
    """Final generators and evaluations of all lanes by diffrax; its pairs take six a step."""
    term = diffrax.ODETerm(lambda t, y, _: velocity(y))
    control = diffrax.PIDController(rtol=TOLERANCE, atol=1e-9)

    def lane(start: Any) -> Any:
        found = diffrax.diffeqsolve(
            term, solver, 0.0, 1.0, None, start, stepsize_controller=control, max_steps=10**5
        )
        return found.ys[-1], 6 * found.stats["num_steps"] + 1

    return compiled(jax.vmap(lane))


def by_scipy(velocity: Any, name: str) -> Callable[[Any], Any]:
    """Final generators and the most evaluations of a lane, lane after lane, by SciPy."""
    flat = compiled(lambda y: velocity(y.reshape(DIMENSION, DIMENSION)).ravel())

    def run(starts: Any) -> Any:
        options = {"method": name, "rtol": TOLERANCE, "atol": 1e-9}
        lanes = [np.asarray(start).ravel() for start in starts]
        found = [solve_ivp(lambda t, y: np.asarray(flat(y)), (0, 1), y, **options) for y in lanes]
        final = np.stack([each.y[:, -1].reshape(DIMENSION, DIMENSION) for each in found])
        return final, max(each.nfev for each in found)

    return run


def methods(gradients: Any, depth: float) -> dict[str, Callable[[Any], Any]]:
    """Every method by its name: a function of the starts to final generators and evaluations."""

    def velocity(generator: Any) -> Any:
        (gradient,) = gradients(networks.Packed((), (generator,))).above
        return end_to_end_flow.velocity(generator, gradient, depth)

    found = {name: ours(gradients, depth, name, TOLERANCE) for name in ("auto", "rk54", "rk32", "rkc")}
    found |= {f"SciPy {name}": by_scipy(velocity, name) for name in ("RK45", "DOP853")}
    if diffrax is not None:
        solvers = (diffrax.Dopri5(), diffrax.Tsit5())
        found |= {f"diffrax {type(each).__name__}": by_diffrax(velocity, each) for each in solvers}
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, for a look")
    repeats = 1 if parser.parse_args().quick else 5
    simulate.set_up_process()
    print(f"{'depth':>6} {'tau':>4} {'method':>18} {'evaluations':>12} {'ms/lane':>8} {'error':>9}")
    for depth, tau in ((2.0, 0.0), (10.0, 0.0), (10.0, 0.1), (50.0, 0.0)):
        gradients, starts = problem(depth, tau)
        exact = np.asarray(ours(gradients, depth, "rk54", 1e-11)(starts)[0])
        size = np.max(np.linalg.norm(exact, axis=(1, 2)))
        for name, run in methods(gradients, depth).items():
            final, evaluations = run(starts)
            cost = 1e3 * seconds(functools.partial(finished, run, starts), repeats) / LANES
            error = np.max(np.linalg.norm(np.asarray(final) - exact, axis=(1, 2))) / size
            most = int(np.max(evaluations))
            print(f"{depth:6.0f} {tau:4} {name:>18} {most:12} {cost:8.2f} {error:9.1e}", flush=True)


def finished(run: Callable[[Any], Any], starts: Any) -> None:
    """Run to the end."""
    jax.block_until_ready(run(starts))


if __name__ == "__main__":
    main()
