"""Dynamics with exact solutions: E1, E2 and E3 of docs/theory.md §5, as predictions to call.

Times are flow times, and `steps` of descent with step size η stand for a flow time of η · steps. All is
computed on the host in float64, whatever the precision of JAX.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bwdln.errors import check
from bwdln.linalg import RANK_THRESHOLD, safe_divide, safe_sqrt
from bwdln.targets import Target
from bwdln.theory.checks import check_depth, check_loss
from bwdln.theory.separable import InverseSpeed, elapsed, position
from bwdln.types import Array, EndToEnd

# --- E1: one layer of full row rank -----------------------------------------------------------------


def full_rank_loss_flow(
    initial_loss: Float[Array, "*shape"], times: Float[Array, "times"]
) -> Float[Array, "*shape times"]:
    """E1: the loss e^{−4t} L(0) along the flow.

    Holds for the Bures-Wasserstein loss at τ = 0 and depth 1, from any W of full row rank.

    Raises `InvalidOption` for losses or times that are not finite numbers from 0.
    """
    return _losses(initial_loss) * np.exp(-4 * _ascending("times", times))


def full_rank_loss_descent(
    initial_loss: Float[Array, "*shape"], step_size: float, steps: Int[Array, "steps"]
) -> Float[Array, "*shape steps"]:
    """E1: the loss (1 − 2η)^{2t} L(0) after t = `steps` steps of descent with η = `step_size` ≤ 1/2.

    Holds for the Bures-Wasserstein loss at τ = 0 and depth 1, from any W of full row rank. A larger
    step may change the polar factor of R W, and the law with it.

    Raises `InvalidOption` for a step size outside (0, 1/2], and for losses or steps that are not
    finite numbers from 0.
    """
    check(0 < step_size <= 0.5, "step_size", step_size, "a number above 0, at most 1/2")
    return _losses(initial_loss) * (1 - 2 * step_size) ** (2 * _ascending("steps", steps))


# --- E2: half steps are subspace iteration -----------------------------------------------------------


def subspace(target: Target, generator: EndToEnd, steps: int) -> Float[Array, "n m"]:
    """E2: an orthonormal basis of the range of R W_t = Σ₀^t R W_0, t = `steps`, in data coordinates.

    Descent with η = 1/2 on the Bures-Wasserstein loss at τ = 0 and depth 1 is orthogonal iteration.
    W_0 is `generator`, (n, m) with m ≤ n. Orthonormalized at every step, so that it does not matter
    how far the powers of the eigenvalues are apart.

    Raises `InvalidOption` for a negative or fractional number of steps, and where the columns of R W_0
    are not independent: the directions lost there are not determined.
    """
    check(steps == int(steps) and steps >= 0, "steps", steps, "an integer from 0")
    eigenvalues = np.asarray(target.eigenvalues, float)
    basis = (
        np.eye(len(eigenvalues)) if target.eigenvectors is None else np.asarray(target.eigenvectors, float)
    )
    overlap = np.sqrt(eigenvalues)[:, None] * (basis.T @ np.asarray(generator, float))
    rank = _rank(overlap)
    check(rank == overlap.shape[1], "generator", f"rank {rank} of R W", "independent columns of R W")
    found = np.linalg.qr(overlap)[0]
    for _ in range(int(steps)):
        found = np.linalg.qr(eigenvalues[:, None] * found)[0]
    return np.asarray(basis @ found)


def _rank(matrix: Float[Array, "n m"]) -> int:
    check(bool(np.all(np.isfinite(matrix))), "generator", "numbers that are not finite", "finite numbers")
    singular = np.linalg.svd(matrix, compute_uv=False)
    return int(np.sum(singular > RANK_THRESHOLD * np.max(singular, initial=0)))


# --- E3: aligned modes ---------------------------------------------------------------------------------


def mode_loss(
    singular_values: Float[Array, "*shape"],
    eigenvalues: Float[Array, "*#shape"],
    *,
    tau: float = 0.0,
    loss: str = "bures_wasserstein",
) -> Float[Array, "*shape"]:
    """E3: f(s), what each aligned mode adds to the loss: over all n modes (s = 0 beyond the rank) its value.

    (√(s² + τ) − √λ)², to all digits also at λ = τ, and (s² − λ)² for Frobenius. An infinite s, as of
    a diverged mode, costs inf.

    Raises `InvalidOption` for negative or undefined s or λ, and what `checks.check_loss` raises.
    """
    check_loss(loss, tau)
    s, eigenvalue = np.asarray(singular_values, float), _modes("eigenvalues", eigenvalues)
    check(bool(np.all(s >= 0)), "singular_values", "a negative or undefined one", "numbers from 0")
    diverged = np.isinf(s)
    s = np.where(diverged, 0.0, s)
    with np.errstate(over="ignore"):
        difference = s**2 - (eigenvalue - tau)
        if loss == "bures_wasserstein":
            sums = np.hypot(s, np.sqrt(tau)) + np.sqrt(eigenvalue)
            difference = difference / np.where(sums > 0, sums, 1.0)
        return np.where(diverged, np.inf, difference**2)


def mode_flow(
    start: Float[Array, "*shape"],
    eigenvalues: Float[Array, "*#shape"],
    times: Float[Array, "times"],
    *,
    depth: float,
    tau: float = 0.0,
    loss: str = "bures_wasserstein",
) -> Float[Array, "*shape times"]:
    """E3: the singular value s(t) of an aligned mode along the flow of balanced layers, any real depth.

    In closed form where there is one that gives s (Bures-Wasserstein at τ = 0, depths 1 and 2; Frobenius
    at depth 1), else by quadrature of dt = ds / speed and inversion, to about 1e-13 of s. A mode
    grows or shrinks to √(λ − τ), Frobenius √λ, and decays to 0 where λ ≤ τ (below 1e-304 it
    stands still). One that starts at 0 stays there: the loss, or its least gradient, keeps it.

    Args:
        start: s(0) ≥ 0, of any shape that broadcasts with the eigenvalues.
        eigenvalues: λ ≥ 0 of the modes, in any order.
        times: flow times from 0 that do not descend, one dimension.
        depth: N ≥ 1, any real number.
        tau: τ ≥ 0; 0 with Frobenius.
        loss: `bures_wasserstein` or `frobenius`.

    Raises `InvalidOption` for anything else, and what `checks.check_loss` and `check_depth` raise.
    """
    first, eigenvalue = _starts(start, eigenvalues, depth, tau, loss)
    when = _ascending("times", times)
    found = _in_closed_form(first[..., None], eigenvalue[..., None], when, depth, tau, loss)
    if found is None:
        found = np.empty((*first.shape, len(when)))
        for place in np.ndindex(first.shape):
            mode = _mode(eigenvalue[place], depth, tau, loss)
            found[place] = _by_quadrature(mode, float(first[place]), when)
    rests = (first[..., None] == 0) | (when == 0)
    return np.where(rests, first[..., None], found)


def mode_descent(
    start: Float[Array, "*shape"],
    eigenvalues: Float[Array, "*#shape"],
    *,
    step_size: float | Float[Array, "*#shape"],
    steps: Int[Array, "steps"],
    depth: float,
    tau: float = 0.0,
    loss: str = "bures_wasserstein",
) -> Float[Array, "*shape steps"]:
    """E3: the singular value of an aligned mode after `steps` steps of descent of balanced layers.

    w ← w − η w^{N−1} f'(w^N) with w = s^{1/N}. A step may carry w through 0: the layers then
    have changed sign, and s is |w|^N. Where it diverges, s is inf from then on.

    Raises `InvalidOption` as `mode_flow` does, for steps that are not integers from 0 that do not
    descend, and for step sizes that are not positive, finite numbers.
    """
    first, eigenvalue = _starts(start, eigenvalues, depth, tau, loss)
    size = np.asarray(step_size, float)
    check(bool(np.all((size > 0) & np.isfinite(size))), "step_size", step_size, "finite numbers above 0")
    counts = _ascending("steps", steps)
    check(bool(np.all(counts == np.rint(counts))), "steps", "fractions", "integers")
    first, eigenvalue, size = np.broadcast_arrays(first, eigenvalue, size)
    increments = np.diff(counts.astype(np.int64), prepend=0)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        numbers = [jnp.asarray(each, jnp.float64) for each in (first, eigenvalue, size, depth, tau)]
        found = _descended(*numbers, jnp.asarray(increments), loss=loss)
    found = np.moveaxis(np.asarray(found), 0, -1)
    return np.where(counts == 0, first[..., None], found)


@partial(jax.jit, static_argnames="loss")
def _descended(
    start: Array, eigenvalue: Array, size: Array, depth: Array, tau: Array, increments: Array, *, loss: str
) -> Array:
    """|w|^N after each of so many further steps, shape (steps, *shape)."""

    def step(_: int, w: Array) -> Array:
        magnitude = jnp.abs(w)
        slope = jnp.sign(w) * magnitude ** (depth - 1) * _slope(magnitude**depth, eigenvalue, tau, loss)
        following = w - size * slope
        return jnp.where(jnp.isfinite(following), following, jnp.inf)

    def onward(w: Array, count: Array) -> tuple[Array, Array]:
        w = jax.lax.fori_loop(0, count, step, w)
        return w, jnp.abs(w) ** depth

    return jax.lax.scan(onward, start ** (1 / depth), increments)[1]


def _slope(s: Array, eigenvalue: Array, tau: Array, loss: str) -> Array:
    """f'(s) of `mode_loss`; 0 at s = 0."""
    if loss == "frobenius":
        return 4 * s * (s**2 - eigenvalue)
    scale = jnp.sqrt(s**2 + tau)
    return 2 * safe_divide(s, scale) * safe_divide(s**2 + (tau - eigenvalue), scale + safe_sqrt(eigenvalue))


def learning_time(
    start: Float[Array, "*shape"],
    eigenvalues: Float[Array, "*#shape"],
    *,
    depth: float,
    tau: float = 0.0,
    loss: str = "bures_wasserstein",
    fraction: float = 0.5,
) -> Float[Array, "*shape"]:
    """The flow time at which an aligned mode reaches `fraction` of where it ends, from below.

    0 where it starts beyond; inf where it never does: λ ≤ τ, λ = 0, or a start at 0. From small s₀
    the leading terms are (docs/theory.md §5, with φ the fraction)

    - Bures-Wasserstein, τ = 0: −½ ln(1 − φ) at N = 1, ln(√λ φ / (s₀ (1 − φ))) / (4 √λ) at N = 2,
      s₀^{−(N−2)/N} / (2 (N − 2) √λ) for N > 2;
    - Bures-Wasserstein, τ > 0: ln(1/s₀) / (2 (√(λ/τ) − 1)) at N = 1,
      s₀^{−2(N−1)/N} / (4 (N − 1) (√(λ/τ) − 1)) for N > 1;
    - Frobenius: ln(1/s₀) / (4 λ) at N = 1, s₀^{−2(N−1)/N} / (8 (N − 1) λ) for N > 1.

    Raises `InvalidOption` as `mode_flow` does, and for a fraction outside (0, 1).
    """
    first, eigenvalue = _starts(start, eigenvalues, depth, tau, loss)
    check(0 < fraction < 1, "fraction", fraction, "a number between 0 and 1")
    mode = _mode(eigenvalue, depth, tau, loss)
    grows = (mode.limit > 0) & (first > 0)
    waits = grows & (first < fraction * mode.limit)
    # Elsewhere the answer is known, and any mode that grows keeps the quadrature quiet.
    harmless = _mode(np.where(waits, eigenvalue, tau + 1.0), depth, tau, loss)
    places = _growth_place(np.where(waits, first, 0.5 * fraction * harmless.limit), harmless.limit)
    end = np.log(fraction) - np.log1p(-fraction)
    limit, deficit, root = (each[..., None] for each in harmless[:3])
    inverse_speed = _growth(harmless._replace(limit=limit, deficit=deficit, root=root))
    duration = np.maximum(elapsed(inverse_speed, places, np.full_like(places, end)), 0.0)
    return np.where(waits, duration, np.where(grows, 0.0, np.inf))


class _Mode(NamedTuple):
    """What the flow of a mode depends on: numbers, or arrays of one shape for the first three.

    ds/dt = −s (s² − limit² + deficit²) / resistance(s).
    """

    limit: Array  # √(λ − τ), where the mode ends, 0 if λ ≤ τ
    deficit: Array  # √(τ − λ), 0 if λ ≥ τ
    root: Array  # √λ
    depth: float
    tau: float
    loss: str

    def resistance(self, s: Array) -> Array:
        """μ (√λ + μ) / (2 N s^{2−2/N}), μ = √(s² + τ); Frobenius 1 / (4 N s^{2−2/N})."""
        if self.loss == "frobenius":
            return s ** (2 / self.depth - 2) / (4 * self.depth)
        scale = np.hypot(s, np.sqrt(self.tau))
        return (scale / s) * (self.root + scale) * s ** (2 / self.depth - 1) / (2 * self.depth)


def _mode(eigenvalue: Array, depth: float, tau: float, loss: str) -> _Mode:
    above = eigenvalue - tau
    limit, deficit = np.sqrt(np.maximum(above, 0)), np.sqrt(np.maximum(-above, 0))
    return _Mode(limit, deficit, np.sqrt(eigenvalue), float(depth), float(tau), loss)


#: Beyond it a mode is at its limit to rounding: y = ln(s / (limit − s)) and y = −ln(s / limit − 1).
_ARRIVED = 40.0
#: ln s below which a decaying mode stands still, before numbers lose their digits.
_VANISHED = -700.0


def _by_quadrature(mode: _Mode, start: float, times: Float[Array, "times"]) -> Float[Array, "times"]:
    """s(t) from s(0) > 0, in the coordinate that makes 1/speed analytic in the strip |Im y| < π/2."""
    limit = float(mode.limit)
    if start == 0 or start == limit:
        return np.full(times.shape, start)
    if limit == 0:
        y = np.log(start)
        return np.exp(position(_decay(mode), y, times, limit=min(_VANISHED, y)))
    if start < limit:
        place, inverse_speed, sign = _growth_place(np.asarray(start), limit), _growth(mode), -1
    else:
        place, inverse_speed, sign = np.log(limit) - np.log(start - limit), _descent_to_limit(mode), 1
    return _from_place(position(inverse_speed, float(place), times, limit=_ARRIVED), limit, sign)


def _growth_place(s: Array, limit: Array) -> Array:
    """y = ln(s / (limit − s))."""
    return np.log(s) - np.log(limit - s)


def _from_place(y: Array, limit: Array, sign: int) -> Array:
    """s = limit (1 + e^{−y})^{±1}, without overflow."""
    return np.asarray(limit * np.exp(sign * np.logaddexp(0, -y)))


def _growth(mode: _Mode) -> InverseSpeed:
    """From below: y = ln(s / (limit − s)), dy/dt = limit (limit + s) / resistance."""

    def inverse_speed(y: Array) -> Array:
        s = _from_place(y, mode.limit, -1)
        return mode.resistance(s) / mode.limit / (mode.limit + s)

    return inverse_speed


def _descent_to_limit(mode: _Mode) -> InverseSpeed:
    """From above: y = −ln(s / limit − 1), dy/dt = s (s + limit) / resistance."""

    def inverse_speed(y: Array) -> Array:
        s = _from_place(y, mode.limit, 1)
        return mode.resistance(s) / s / (mode.limit + s)

    return inverse_speed


def _decay(mode: _Mode) -> InverseSpeed:
    """λ ≤ τ: y = ln s, dy/dt = −(s² + deficit²) / resistance."""

    def inverse_speed(y: Array) -> Array:
        s = np.exp(y)
        distance = np.hypot(s, mode.deficit)
        return -mode.resistance(s) / distance / distance

    return inverse_speed


def _in_closed_form(
    start: Array, eigenvalue: Array, times: Array, depth: float, tau: float, loss: str
) -> Float[Array, "*shape times"] | None:
    """s(t) where an elementary formula gives it, else None: sums of non-negative terms only."""
    root = np.sqrt(eigenvalue)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if loss == "frobenius" and depth == 1:
            # s² obeys the logistic equation dv/dt = 8 v (λ − v).
            rest = np.hypot(np.exp(-4 * eigenvalue * times), start * np.sqrt(_ramp(8 * times, eigenvalue)))
            return np.asarray(start / rest)
        if loss == "bures_wasserstein" and tau == 0 and depth == 1:
            return np.asarray(start * np.exp(-2 * times) - root * np.expm1(-2 * times))
        if loss == "bures_wasserstein" and tau == 0 and depth == 2:
            return np.asarray(start / (np.exp(-4 * root * times) + start * _ramp(4 * times, root)))
    return None


def _ramp(times: Array, rate: Array) -> Array:
    """(1 − e^{−rate · time}) / rate, which is the time at rate 0."""
    return np.where(rate > 0, -np.expm1(-rate * times) / np.where(rate > 0, rate, 1.0), times)


# --- what they take -------------------------------------------------------------------------------------


def _starts(start: Array, eigenvalues: Array, depth: float, tau: float, loss: str) -> tuple[Array, Array]:
    """Starts and eigenvalues of one shape."""
    check_loss(loss, tau)
    check_depth(depth)
    first, eigenvalue = _modes("start", start), _modes("eigenvalues", eigenvalues)
    try:
        first, eigenvalue = np.broadcast_arrays(first, eigenvalue)
    except ValueError:
        shapes = f"shapes {first.shape} and {eigenvalue.shape}"
        check(False, "start", shapes, "a shape that broadcasts with the eigenvalues")
    return first, eigenvalue


def _modes(name: str, values: Array) -> Array:
    numbers = np.asarray(values, float)
    sound = (numbers >= 0) & (numbers <= _LARGEST)
    check(bool(np.all(sound)), name, numbers[~sound], f"numbers from 0 to {_LARGEST:g}")
    return numbers


#: The cube of a start, and the square of an eigenvalue, are far from overflow.
_LARGEST = 1e90


def _losses(values: Array) -> Array:
    numbers = np.asarray(values, float)
    sound = bool(np.all((numbers >= 0) & np.isfinite(numbers)))
    check(sound, "initial_loss", values, "finite numbers from 0")
    return numbers[..., None]


def _ascending(name: str, values: Array) -> Float[Array, "count"]:
    numbers = np.asarray(values, float)
    sound = numbers.ndim == 1 and bool(np.all(np.isfinite(numbers) & (numbers >= 0)))
    sound = sound and bool(np.all(numbers[:-1] <= numbers[1:]))
    check(sound, name, values, "one dimension of finite numbers from 0 that do not descend")
    return numbers
