"""What is promised of a run from its start: bounds on the loss, step sizes, rates (docs/theory.md §6).

Every promise has hypotheses. It says of each whether it holds for the given start, with the numbers;
where one fails nothing is promised: the numbers are 0, and asking for the bound is an error. NumPy,
float64, host side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from bwdln.errors import InvalidOption, check, check_one_of
from bwdln.theory import hessians, starts
from bwdln.theory.separable import position
from bwdln.theory.starts import Hypothesis, compared, farthest_distance, from_room
from bwdln.theory.starts import Start as Start
from bwdln.theory.starts import margin as margin
from bwdln.theory.starts import start_at as start_at
from bwdln.theory.starts import start_of as start_of
from bwdln.types import Array

#: Flow times (any shape, not negative) -> what is bounded, at each of them.
Bound: TypeAlias = Callable[[Array], Array]


class Certificate(NamedTuple):
    """An upper bound on the loss L_τ along a run; after T steps of size η the flow time is η T.

    `holds`: all hypotheses do. `failing`: "name: what is the case" of the first that does not, else
    "". `rate` and `final_rate`: of the bound's natural logarithm, per flow time, at the start and in the
    end. `bound(times)`: raises `InvalidOption`, naming the failing hypothesis, where `holds` is false,
    and for times that are negative or no numbers. `scale`: √tr Σ₀, the size of the solution.
    """

    name: str
    hypotheses: tuple[Hypothesis, ...]
    holds: bool
    failing: str
    rate: float
    final_rate: float
    bound: Bound
    scale: float


class Floor(NamedTuple):
    """A lower bound on the smallest singular value of the generator along a run.

    `initial` and `final` are its values at time 0 and in the limit; the rest is as in `Certificate`.
    """

    name: str
    hypotheses: tuple[Hypothesis, ...]
    holds: bool
    failing: str
    initial: float
    final: float
    bound: Bound


class Number(NamedTuple):
    """A number that is predicted of a run, 0 where a hypothesis fails; the rest as in `Certificate`."""

    name: str
    hypotheses: tuple[Hypothesis, ...]
    holds: bool
    failing: str
    value: float


class StepSizes(NamedTuple):
    """The paper's step sizes for descent; all 0 where a hypothesis fails.

    `admissible` is the smallest of η₁, η₂, η₃. `delta` is Δ, inf where that is beyond the largest
    float; `eta_1` is inf for a start that is a minimizer.
    """

    hypotheses: tuple[Hypothesis, ...]
    holds: bool
    failing: str
    eta_1: float
    eta_2: float
    eta_3: float
    delta: float
    admissible: float


# --- bounds on the loss of a flow -----------------------------------------------------------------


def sharp(start: Start) -> Certificate:
    """The envelope: the solution of dL/dt = −4 N c^{2(N−1)/N} c² / (c² + τ) L with c = c(L) along it.

    Its final rate 4 N (λ_n − τ)^{(N−1)/N} (λ_n − τ) / λ_n is attained. At N = 1, τ = 0 it is the loss.
    """

    def bound(times: Array) -> Array:
        farthest = farthest_distance(float(start.eigenvalues[-1]), start.tau)
        return (farthest * _logistic(-_log_room(start, times))) ** 2

    initial, final = _sharp_rate(start, start.value), _sharp_rate(start, 0.0)
    return _certificate("sharp", start, starts.with_margin(start), initial, final, bound)


def sharp_constant(start: Start) -> Certificate:
    """L(0) exp(−4 N c^{2(N−1)/N} c² / (c² + τ) t) with the margin c of the start: below it is `sharp`."""
    rate = _sharp_rate(start, start.value)
    return _exponential("sharp_constant", start, starts.with_margin(start), lambda: rate)


def paper_flow(start: Start) -> Certificate:
    """The bound of the paper, L(0) exp(−8 N c^{2(2N−1)/N} K t), with the margin c of the start.

    K = √(τ λ_n) / (2 C₀²), C₀ = 2 (L(0) + tr Σ₀). It needs τ > 0, and its rate is at most a quarter of
    that of `sharp_constant`.
    """
    return _exponential("paper_flow", start, starts.of_the_paper(start), lambda: _paper_rate(start))


def singular_value_floor(start: Start) -> Floor:
    """σ_min(W(t)) ≥ c(t) along the flow, with the margin of the envelope `sharp`, which only grows (§6).

    Where the losses of a run are known, `margin` of them is a better floor.
    """
    hypotheses, floor = starts.with_margin(start), start.tau**0.5
    failing = starts.failing(hypotheses)

    def bound(times: Array) -> Array:
        farthest = farthest_distance(float(start.eigenvalues[-1]), start.tau)
        return from_room(farthest * _logistic(_log_room(start, times)), floor)

    last = 0.0 if failing else float(margin(start.eigenvalues, 0.0, tau=start.tau))
    first = 0.0 if failing else start.margin
    name = "singular_value_floor"
    return Floor(name, hypotheses, not failing, failing, first, last, _guarded(name, failing, bound))


def _sharp_rate(start: Start, value: float) -> float:
    """4 N c^{2(N−1)/N} c² / (c² + τ) with the margin at a loss; 0 without one."""
    floor = start.tau**0.5
    room = farthest_distance(float(start.eigenvalues[-1]), start.tau) - value**0.5
    if room <= 0:
        return 0.0
    found = float(from_room(room, floor))
    share = (room / (room + floor)) * ((room + 2 * floor) / (room + floor))
    return float(4 * start.depth * found ** (2 * (start.depth - 1) / start.depth) * share)


def _paper_rate(start: Start) -> float:
    """8 N c^{2(2N−1)/N} K."""
    size = 2 * (start.value + float(np.sum(start.eigenvalues)))
    share = start.tau**0.5 * float(start.eigenvalues[-1]) ** 0.5 * (start.margin / size) ** 2
    return float(4 * start.depth * start.margin ** (2 * (start.depth - 1) / start.depth) * share)


def _log_room(start: Start, times: Array) -> Array:
    """z = ln(q / √L) along the envelope, with the room q of `margin`.

    With q∞ = √λ_n − √τ it is L = (q∞ / (1 + e^z))² and q = q∞ / (1 + e^{−z}), and the envelope is
    dz/dt = 2 N q∞ (q (q + 2√τ))^{(N−1)/N} (q + 2√τ) / (q + √τ)². All its singularities have |Im z| = π,
    wherever the start; in ln(L(0)/L) there is one as near to the start as c(0) is to 0.
    """
    times = np.asarray(times, float)
    if start.value == 0:
        return np.full(times.shape, np.inf)
    floor, farthest = start.tau**0.5, farthest_distance(float(start.eigenvalues[-1]), start.tau)
    depth, distance = start.depth, start.value**0.5

    def inverse_speed(z: Array) -> Array:
        room = farthest * _logistic(z)
        inner = from_room(room, floor) ** (2 * (depth - 1) / depth)
        share = (room + floor) / (room + 2 * floor) * ((room + floor) / farthest)
        return np.asarray(share / (2 * depth * inner))

    first = float(np.log((farthest - distance) / distance))
    # Where √L is below e^{−380} = 1e-165, and L below the smallest float.
    last = float(np.log(farthest)) + 380
    order = np.argsort(times, axis=None, kind="stable")
    found = np.empty(times.size)
    found[order] = position(inverse_speed, first, times.ravel()[order], limit=last)
    return found.reshape(times.shape)


def _logistic(z: Array) -> Array:
    """1 / (1 + e^{−z}) to rounding, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def _exponential(
    name: str, start: Start, hypotheses: tuple[Hypothesis, ...], rate: Callable[[], float]
) -> Certificate:
    """L(0) exp(−rate · t)."""
    number = 0.0 if starts.failing(hypotheses) else rate()

    def bound(times: Array) -> Array:
        if number == 0:  # a rate below all floats; times may be inf
            return np.full(np.shape(times), start.value)
        with np.errstate(over="ignore"):  # of rate · t, whose exponential is 0
            return np.asarray(start.value * np.exp(-number * np.asarray(times)))

    return _certificate(name, start, hypotheses, number, number, bound)


def _certificate(
    name: str, start: Start, hypotheses: tuple[Hypothesis, ...], rate: float, final_rate: float, bound: Bound
) -> Certificate:
    failing = starts.failing(hypotheses)
    rates = (0.0, 0.0) if failing else (rate, final_rate)
    scale = float(np.sum(start.eigenvalues)) ** 0.5
    return Certificate(name, hypotheses, not failing, failing, *rates, _guarded(name, failing, bound), scale)


def _guarded(name: str, failing: str, bound: Bound) -> Bound:
    """The bound, or an error that says why there is none."""

    def guarded(times: Array) -> Array:
        if failing:
            raise InvalidOption(name, f"a start that fails {failing}", "one that its hypotheses hold for")
        values = np.asarray(times, float)
        check(bool(np.all(values >= 0)), "times", values, "numbers from 0")
        return bound(values)

    return guarded


# --- descent --------------------------------------------------------------------------------------


def paper_step_sizes(start: Start) -> StepSizes:
    """The paper's η₁, η₂, η₃ and Δ for descent; admissible are step sizes up to the smallest (§6)."""
    hypotheses = starts.of_the_paper(start)
    failing = starts.failing(hypotheses)
    if failing:
        return StepSizes(hypotheses, False, failing, 0.0, 0.0, 0.0, 0.0, 0.0)
    depth, found, trace = start.depth, start.margin, float(np.sum(start.eigenvalues))
    size = (2 * (start.value + trace)) ** 0.5
    rounded = start.value == 0
    eta_1 = np.inf if rounded else found / (8 * size) * (found / start.value**0.5)
    eta_3 = 1 / (4 * depth * found ** (2 * (depth - 1) / depth))
    # c^{−2N} has no float at depths of hundreds, η₂ may have.
    logarithm = _log_delta(depth, found, size, float(start.eigenvalues[0]), trace)
    eta_2 = np.exp(np.log(depth / 2) + 2 * (depth - 1) / depth * np.log(found) - logarithm)
    with np.errstate(over="ignore"):
        delta = np.exp(logarithm)
    etas = (float(eta_1), float(eta_2), float(eta_3))
    return StepSizes(hypotheses, True, "", *etas, float(delta), min(etas))


def paper_descent(start: Start, step_size: float) -> Certificate:
    """L(0) exp(−4 N c^{2(2N−1)/N} K t), t = η T, for descent with an admissible step size η.

    That is half the rate of `paper_flow`, which is what the descent lemma behind η₂ leaves; it was
    checked numerically, not quoted. Raises `InvalidOption` for a step size that is not above 0.
    """
    check(0 < step_size < np.inf, "step_size", step_size, "a finite number above 0")
    sizes = paper_step_sizes(start)
    admissible = step_size <= sizes.admissible
    left, right = f"the step size {step_size:.6g}", f"at most the admissible {sizes.admissible:.6g}"
    hypotheses = (*sizes.hypotheses, compared("step_size", admissible, left, right))
    return _exponential("paper_descent", start, hypotheses, lambda: _paper_rate(start) / 2)


def _log_delta(depth: float, found: float, size: float, largest: float, trace: float) -> float:
    """ln Δ, Δ = 2^{N+1} c^{−2N} N² M^{(4N−3)/N} √λ_1 + 8 N (N−1) M^{(3N−4)/N} (M^{1/N} + tr Σ₀)."""
    log_size = np.log(size)
    first = (depth + 1) * np.log(2) - 2 * depth * np.log(found) + 2 * np.log(depth)
    first += (4 * depth - 3) / depth * log_size + np.log(largest) / 2
    if depth == 1:
        return float(first)
    second = np.log(8 * depth * (depth - 1)) + (3 * depth - 4) / depth * log_size
    return float(np.logaddexp(first, second + np.log(size ** (1 / depth) + trace)))


# --- numbers --------------------------------------------------------------------------------------


def stability_limit(start: Start) -> Number:
    """2 over the largest curvature: near the balanced minimizer, descent converges below this step size.

    It is local, and exact: at τ = 0 and full rank 1 / (N λ_1^{(N−1)/N}). Frobenius has one, too.
    """
    largest = float(start.eigenvalues[0])
    left, right = f"λ_1 = {largest:.6g}", f"above τ = {start.tau:.6g}"
    learned = compared("largest_eigenvalue", largest > start.tau, left, right)
    hypotheses = (learned, starts.balanced(start))

    def value() -> float:
        numbers = {"depth": start.depth, "tau": start.tau}
        return float(_largest_stable_step(start.eigenvalues, start.rank, **numbers, loss=start.loss))

    return _number("stability_limit", hypotheses, value)


#: Compiled as a whole: operation by operation, the first call takes seconds.
_largest_stable_step = jax.jit(hessians.largest_stable_step, static_argnames=("rank", "loss"))


def rank_deficient_rate(start: Start) -> Number:
    """4 λ_k^{(N−1)/N} (1 − λ_{k+1}/λ_k): the asymptotic rate of the gap of a flow to the minimizer, k < n.

    It is of the natural logarithm, per flow time. Depth has no factor: it does not help to find
    the subspace. No promise from this start: a start within the stable set of a saddle ends there.
    """
    rank, values = start.rank, start.eigenvalues
    # 0 beyond the dimension.
    last, following = np.pad(values, (0, 1))[rank - 1 : rank + 1].tolist()
    deficient = compared(
        "deficient", rank < len(values), f"the bottleneck {rank}", f"below the dimension {len(values)}"
    )
    unperturbed = compared("unperturbed", start.tau == 0, f"τ = {start.tau:.6g}", "0")
    eigengap = compared("eigengap", last > following, f"λ_k = {last:.6g}", f"above λ_k+1 = {following:.6g}")
    hypotheses = (starts.bures_wasserstein(start), deficient, unperturbed, eigengap, starts.balanced(start))

    def value() -> float:
        return float(4 * last ** ((start.depth - 1) / start.depth) * ((last - following) / last))

    return _number("rank_deficient_rate", hypotheses, value)


def _number(name: str, hypotheses: tuple[Hypothesis, ...], value: Callable[[], float]) -> Number:
    failing = starts.failing(hypotheses)
    return Number(name, hypotheses, not failing, failing, 0.0 if failing else value())


#: The bounds for gradient flow, by the names that a run records them by.
FLOW: Mapping[str, Callable[[Start], Certificate]] = {
    "sharp": sharp,
    "sharp_constant": sharp_constant,
    "paper_flow": paper_flow,
}

# --- what a run was promised, and whether it kept it ----------------------------------------------


def entitled(
    start: Start, dynamics: Literal["flow", "descent"], step_size: float | None = None
) -> tuple[Certificate, ...]:
    """The bounds on the loss whose hypotheses hold: of `FLOW`, or for descent the paper's.

    Raises `InvalidOption` for another dynamics, and for descent without a step size above 0.
    """
    check_one_of("dynamics", dynamics, Literal["flow", "descent"])
    every: tuple[Certificate, ...]
    if dynamics == "flow":
        every = tuple(promise(start) for promise in FLOW.values())
    else:
        check(step_size is not None, "step_size", step_size, "a number above 0 with descent")
        every = (paper_descent(start, float(step_size or 0)),)
    return tuple(each for each in every if each.holds)


def obeyed(
    certificate: Certificate,
    times: Float[Array, "*shape"],
    losses: Float[Array, "*shape"],
    *,
    slack: float = 1e-5,
) -> bool:
    """Whether the losses of a run, at flow times, stay within the bound; never where one is not a number.

    `slack` is the relative error that the weights of the run may have: a change of W by
    `slack` · √tr Σ₀ changes √L_τ by at most as much, so that √L_τ ≤ √bound + `slack` · √tr Σ₀ is asked
    for. Below that, losses are the integrator's, or rounding.

    Raises `InvalidOption` where the certificate does not hold, and for a slack below 0.
    """
    check(0 <= slack < np.inf, "slack", slack, "a finite number from 0")
    allowed = (np.sqrt(certificate.bound(times)) + slack * certificate.scale) ** 2
    return bool(np.all(np.asarray(losses) <= allowed))
