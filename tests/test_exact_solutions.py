"""E1, E2 and E3 of docs/theory.md §5 against SciPy, loops of descent, and the dynamics of the package."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from flows import trajectory
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import bures_wasserstein, frobenius, orthogonal, target

from bwdln import losses, networks
from bwdln.dynamics import integrate
from bwdln.dynamics.base import DYNAMICS
from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS
from bwdln.targets import Target
from bwdln.theory import exact_solutions as exact

BURES, FROBENIUS = "bures_wasserstein", "frobenius"
#: Names of losses and τ.
CASES = ((BURES, 0.0), (BURES, 0.3), (FROBENIUS, 0.0))
case = st.sampled_from(CASES)
eigenvalue = st.floats(0.01, 4)
depth = st.floats(1, 9)


def loss_named(name, tau=0.0):
    return losses.LOSSES[name](*((tau,) if name == BURES else ()))


@functools.lru_cache
def gradient_of(name, tau):
    return jax.jit(loss_named(name, tau).gradient)


@jax.jit
def loss_without_tau(generator, sigma):
    return losses.bures_wasserstein().value(generator, sigma)


def slope(s, eigenvalue, tau, name):
    """f'(s) as §5 states it."""
    if name == FROBENIUS:
        return 4 * s * (s**2 - eigenvalue)
    return 2 * s * (1 - np.sqrt(eigenvalue) / np.sqrt(s**2 + tau))


def rest(eigenvalues, tau):
    return np.sqrt(np.maximum(np.asarray(eigenvalues) - tau, 0))


# --- E1 and E2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["distinct", "repeated", "singular"])
@pytest.mark.parametrize("step_size", [0.01, 0.3, 0.5])
def test_one_layer_of_full_rank_by_descent(kind, step_size):
    """E1, every step of a loop; also where the target is singular, as W still has full row rank."""
    rng = np.random.default_rng(0)
    sigma, generator = target(kind, 3, rng), jnp.asarray(rng.normal(size=(3, 5)))
    measured = []
    for _ in range(12):
        measured.append(float(loss_without_tau(generator, sigma)))
        generator = generator - step_size * gradient_of(BURES, 0.0)(generator, sigma)
    predicted = exact.full_rank_loss_descent(measured[0], step_size, np.arange(12))
    np.testing.assert_allclose(measured, predicted, rtol=1e-10, atol=1e-25)


def test_one_layer_of_full_rank_by_flow():
    """E1 against SciPy; several losses at once."""
    rng = np.random.default_rng(1)
    sigma = target("distinct", 3, rng)
    start, times = rng.normal(size=(3, 5)), np.array([0.0, 0.3, 1.1, 2.0])

    def velocity(_, flat):
        return -np.ravel(gradient_of(BURES, 0.0)(jnp.asarray(flat.reshape(3, 5)), sigma))

    found = scipy.integrate.solve_ivp(
        velocity, (0, 2), start.ravel(), "DOP853", times, rtol=1e-12, atol=1e-12
    )
    measured = [float(loss_without_tau(jnp.asarray(each.reshape(3, 5)), sigma)) for each in found.y.T]
    predicted = exact.full_rank_loss_flow([measured[0], 2.0], times)
    np.testing.assert_allclose(measured, predicted[0], rtol=1e-9)
    np.testing.assert_allclose(predicted[1], 2 * np.exp(-4 * times), rtol=1e-14)


@pytest.mark.parametrize("kind", ["distinct", "repeated", "singular"])
def test_half_steps_are_subspace_iteration(kind):
    """E2: the angle between the subspaces, at every step; another step size goes elsewhere."""
    rng = np.random.default_rng(2)
    sigma, start = target(kind, 6, rng), rng.normal(size=(6, 2))
    root = np.asarray(sigma.root)

    def sine(generator, basis):
        measured = np.linalg.qr(root @ np.asarray(generator))[0]
        return np.linalg.norm(measured - basis @ (basis.T @ measured), 2)

    for step_size, follows in ((0.5, True), (0.45, False)):
        generator, sines = jnp.asarray(start), []
        for step in range(20):
            basis = exact.subspace(sigma, start, step)
            np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-14)
            sines.append(sine(generator, basis))
            generator = generator - step_size * gradient_of(BURES, 0.0)(generator, sigma)
        assert (max(sines) < 1e-12) if follows else (max(sines) > 1e-3)


def test_subspace_does_not_underflow():
    """Two thousand steps with eigenvalues far from each other end at the leading eigenvectors."""
    rng = np.random.default_rng(3)
    basis = orthogonal(4, rng)
    sigma = Target(jnp.asarray([1e3, 1.0, 1e-3, 1e-6]), jnp.asarray(basis))
    found = exact.subspace(sigma, rng.normal(size=(4, 2)), 2000)
    np.testing.assert_allclose(found @ found.T, basis[:, :2] @ basis[:, :2].T, atol=1e-13)


# --- E3: the flow -----------------------------------------------------------------------------------


@given(case, eigenvalue, st.floats(-4, 1), depth, st.integers(0, 1000))
def test_mode_flow_against_scipy(case, eigenvalue, magnitude, depth, seed):
    """Growth, decay and shrinking from above, at real depths, by DOP853 in ln s."""
    (name, tau), start = case, 10.0**magnitude

    def velocity(_, logarithm):
        s = np.exp(logarithm)
        return -depth * s ** (1 - 2 / depth) * slope(s, eigenvalue, tau, name)

    initial = abs(velocity(0, np.log(start)))
    times = np.sort(np.random.default_rng(seed).uniform(0, min(20 / max(initial, 1e-3), 30), 4))
    found = exact.mode_flow(start, eigenvalue, times, depth=depth, tau=tau, loss=name)
    reference = scipy.integrate.solve_ivp(
        velocity, (0, times[-1]), [np.log(start)], "LSODA", times, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(found, np.exp(reference.y[0]), rtol=1e-8)


@given(st.floats(1e-12, 10), st.floats(0, 10), st.sampled_from([(BURES, 1), (BURES, 2), (FROBENIUS, 1)]))
def test_closed_forms_equal_the_quadrature(start, eigenvalue, case):
    """The formulas and the quadrature know nothing of each other."""
    name, depth = case
    assume(eigenvalue == 0 or eigenvalue > 1e-200)
    times = np.array([0.0, 1e-9, 1e-3, 0.1, 0.7, 3.0, 20.0, 1e3])
    closed = exact.mode_flow(start, eigenvalue, times, depth=depth, loss=name)
    quadrature = exact._by_quadrature(exact._mode(np.float64(eigenvalue), depth, 0.0, name), start, times)
    np.testing.assert_allclose(quadrature, closed, rtol=1e-11, atol=1e-290)


def test_closed_forms_as_stated():
    """§5, and the logistic equation of s² for Frobenius at N = 1, from below and above."""
    start, eigenvalues, times = np.array([[0.2], [3.0]]), np.array([0.5, 2.0]), np.array([0.1, 0.4, 1.5])
    s, root, t = start[..., None], np.sqrt(eigenvalues)[:, None], times
    one, two, square = (
        exact.mode_flow(start, eigenvalues, times, depth=depth, loss=name)
        for name, depth in ((BURES, 1), (BURES, 2), (FROBENIUS, 1))
    )
    assert one.shape == (2, 2, 3)
    np.testing.assert_allclose(one, root + (s - root) * np.exp(-2 * t), rtol=1e-13)
    np.testing.assert_allclose(two, root / (1 + (root / s - 1) * np.exp(-4 * root * t)), rtol=1e-13)
    logistic = root**2 / (1 + (root**2 / s**2 - 1) * np.exp(-8 * root**2 * t))
    np.testing.assert_allclose(square, np.sqrt(logistic), rtol=1e-13)


@given(eigenvalue, st.floats(-10, -0.5), st.floats(0.05, 0.95))
def test_frobenius_at_two_layers_by_its_implicit_solution(eigenvalue, magnitude, fraction):
    """t = (1/s₀ − 1/s) / (8 λ) + (artanh(s/√λ) − artanh(s₀/√λ)) / (8 λ^{3/2}), forth and back."""
    root = np.sqrt(eigenvalue)
    start, end = fraction * 10.0**magnitude * root, fraction * root
    primitive = [np.arctanh(s / root) / (8 * root**3) - 1 / (8 * eigenvalue * s) for s in (start, end)]
    time = primitive[1] - primitive[0]
    options = {"depth": 2, "loss": FROBENIUS}
    np.testing.assert_allclose(
        exact.learning_time(start, eigenvalue, fraction=fraction, **options), time, rtol=1e-10
    )
    # The time at the end of a long wait says little about s: its rounding times the speed.
    found = exact.mode_flow(start, eigenvalue, np.array([time]), **options)[0]
    rounding = 1e-15 * time * 8 * end * (eigenvalue - end**2)
    np.testing.assert_allclose(found, end, rtol=1e-10 + 10 * rounding)


@given(
    case,
    st.sampled_from([1.0, 2.5, 100.0]),
    st.sampled_from([0.0, 0.3, np.nextafter(0.3, 1), np.nextafter(0.3, 0), 1e-30, 5.0]),
    st.sampled_from([0.0, 1e-300, 1e-12, 0.5, "rest", "below", "above", 10.0, 1e80]),
)
@settings(max_examples=150)
def test_limits(case, depth, eigenvalue, start):
    """Tiny and huge starts and times, critical modes, starts at rest: finite, one way, to the limit."""
    name, tau = case
    limit = float(rest(eigenvalue, tau))
    named = {"rest": limit, "below": np.nextafter(limit, 0), "above": np.nextafter(limit, 1)}
    first = named.get(start, start)
    times = np.array([0.0, 0.0, 1e-300, 1e-9, 1.0, 1e3, 1e100, 1e307])
    found = exact.mode_flow(first, eigenvalue, times, depth=depth, tau=tau, loss=name)
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(found[:2], first)
    # Rounding of ln s is relative to s.
    steps = np.diff(found) * np.sign(limit - first)
    assert np.all(steps >= -3e-13 * found[1:])
    if first == 0 or start == "rest":
        np.testing.assert_allclose(found, first, rtol=3e-16)
    elif first >= 1e-12 and limit > 1e-3:
        np.testing.assert_allclose(found[-1], limit, rtol=1e-12)
    time = float(exact.learning_time(first, eigenvalue, depth=depth, tau=tau, loss=name))
    assert time >= 0
    assert (time == np.inf) == (first == 0 or limit == 0 or (first == 1e-300 and time > 1e300))


@pytest.mark.parametrize(
    ("name", "tau", "eigenvalue", "depth", "power"),
    [
        (BURES, 0.5, 0.2, 3.0, 1.5),
        (BURES, 0.5, 0.5, 3.0, 6 / 5),
        (BURES, 0.5, 0.5, 1.0, 2.0),
        (BURES, 0.0, 0.0, 4.0, 4 / 3),
        (FROBENIUS, 0.0, 0.0, 1.0, 2.0),
        (FROBENIUS, 0.0, 0.0, 3.0, 6 / 5),
    ],
)
def test_modes_that_are_not_learnt_decay_algebraically(name, tau, eigenvalue, depth, power):
    """Gap ~ t^{−N/(N−1)} below τ (§6) and at λ = τ = 0; t^{−2N/(2N−1)} at λ = τ > 0, and for Frobenius."""
    times = np.array([1e8, 1e9])
    options = {"tau": tau, "loss": name}
    s = exact.mode_flow(0.5, eigenvalue, times, depth=depth, **options)
    gaps = {0.5: s**4, 0.0: s**4 if name == FROBENIUS else s**2}.get(eigenvalue, s**2)
    np.testing.assert_allclose(-np.diff(np.log(gaps)) / np.diff(np.log(times)), power, rtol=1e-3)


def test_mode_below_tau_at_depth_one_decays_exponentially():
    """Rate 4 (1 − √(λ/τ)) of the gap ~ s² (§6)."""
    times = np.array([20.0, 25.0])
    s = exact.mode_flow(0.5, 0.2, times, depth=1, tau=0.5)
    rate = -2 * np.diff(np.log(s)) / np.diff(times)
    np.testing.assert_allclose(rate, 4 * (1 - np.sqrt(0.2 / 0.5)), rtol=1e-5)


@given(case, st.lists(st.floats(0, 3), min_size=4, max_size=4), st.integers(0, 1000))
@settings(max_examples=15)
def test_modes_add_up_to_the_loss(case, values, seed):
    """Σ f(s) is the loss of the aligned generator, with a mode of value 0 beyond the rank."""
    (name, tau), rng = case, np.random.default_rng(seed)
    sigma, values = target("distinct", 4, rng), np.array([*values[:3], 0.0])
    generator, covariance = np.asarray(sigma.eigenvectors)[:, :3] * values[:3], np.asarray(sigma.covariance)
    found = np.sum(exact.mode_loss(values, sigma.eigenvalues, tau=tau, loss=name))
    if name == BURES:
        expected = bures_wasserstein(generator, covariance, tau)
    else:
        expected = frobenius(generator, covariance)
    np.testing.assert_allclose(
        found, expected, rtol=1e-6 if name == BURES and tau == 0 else 1e-11, atol=1e-13
    )


def test_mode_loss_does_not_cancel():
    """At a distance of 1e-9 of rest; at λ = τ, where f = s⁴ / (4 τ) from small s; and infinite s."""
    s = np.sqrt(2.0 - 0.5) + 1e-9
    exactly = (1e-9 * np.sqrt(1.5 / 2)) ** 2
    np.testing.assert_allclose(exact.mode_loss(s, 2.0, tau=0.5), exactly, rtol=1e-6)
    np.testing.assert_allclose(exact.mode_loss(1e-6, 0.5, tau=0.5), 1e-24 / 2, rtol=1e-10)
    np.testing.assert_array_equal(exact.mode_loss([0.0, np.inf], 0.0), [0.0, np.inf])


# --- E3: descent ------------------------------------------------------------------------------------


@given(
    case,
    st.floats(0.01, 3),
    st.floats(0, 3),
    st.sampled_from([1.0, 2.0, 2.5, 3.0, 7.0]),
    st.floats(1e-3, 0.6),
)
@settings(max_examples=80)
def test_mode_descent_by_its_formula(case, start, eigenvalue, depth, step_size):
    """Also with steps that overshoot, through 0 where the depth is an integer; inf for ever once diverged."""
    name, tau = case
    counts = np.array([0, 1, 2, 2, 5, 13])
    options = {"depth": depth, "tau": tau, "loss": name, "step_size": step_size}
    found = exact.mode_descent(start, eigenvalue, steps=counts, **options)
    w, expected, signed = start ** (1 / depth), [], depth == int(depth)
    power = int(depth) if signed else depth
    for _ in range(14):
        expected.append(abs(w**power))
        if w == 0 or abs(w) > 1e10:
            break
        w = w - step_size * w ** (power - 1) * slope(w**power, eigenvalue, tau, name)
        if not signed and w < 0:
            break
    known = counts < len(expected)
    np.testing.assert_allclose(found[known], np.asarray(expected)[counts[known]], rtol=1e-7, atol=1e-12)
    assert not np.any(np.isnan(found))


def test_mode_descent_that_diverges():
    """inf from then on; beside it a mode that is not touched by it."""
    options = {"steps": np.array([0, 3, 50, 1000]), "depth": 3}
    found = exact.mode_descent([4.0, 0.5], 1.0, step_size=[5.0, 0.01], loss=FROBENIUS, **options)
    np.testing.assert_array_equal(found[0, 2:], np.inf)
    alone = exact.mode_descent(0.5, 1.0, step_size=0.01, loss=FROBENIUS, **options)
    np.testing.assert_array_equal(found[1], alone)


def test_mode_descent_is_in_float64_everywhere():
    options = {"step_size": 0.01, "steps": np.array([10, 1000]), "depth": 2, "tau": 0.1}
    double = exact.mode_descent(1e-3, [0.5, 2.0], **options)
    with jax.enable_x64(False):
        single = exact.mode_descent(1e-3, [0.5, 2.0], **options)
    assert single.dtype == np.float64
    np.testing.assert_array_equal(single, double)


def test_small_steps_follow_the_flow():
    """The difference from the flow at time 1 is of first order in η."""
    options = {"depth": 2.5, "tau": 0.2}
    (flow,) = exact.mode_flow(0.3, 1.5, np.array([1.0]), **options)
    sizes = np.array([1e-2, 1e-3, 1e-4])
    gaps = [
        abs(
            exact.mode_descent(0.3, 1.5, step_size=size, steps=np.array([round(1 / size)]), **options)[0]
            - flow
        )
        for size in sizes
    ]
    np.testing.assert_allclose(np.polyfit(np.log(sizes), np.log(gaps), 1)[0], 1, atol=0.02)


@pytest.mark.parametrize(("name", "tau"), CASES)
def test_descent_of_real_layers(name, tau):
    """Aligned starts of uneven widths, by the package's dynamics: every mode to 1e-10."""
    rng = np.random.default_rng(4)
    sigma, loss = target("distinct", 4, rng), loss_named(name, tau)
    start = STARTS["aligned"](jax.random.key(0), (5, 3, 4, 4), sigma, scale=0.2)
    counts, size = np.array([0, 1, 10, 100, 400]), 0.02
    dynamics = DYNAMICS["gradient_descent"](
        losses.LayerGradients(loss, sigma), 3, step_size=size, steps=10**6
    )

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda state, _: (integrate.step(dynamics, state, 2**30), networks.unpack(state.weights)),
            state,
            length=401,
        )[1]

    layers = run(integrate.start(dynamics, networks.pack(start), 1e6))
    predicted = exact.mode_descent(
        0.2, sigma.eigenvalues[:3], step_size=size, steps=counts, depth=3, tau=tau, loss=name
    )
    for column, count in enumerate(counts):
        product = np.asarray(networks.end_to_end(tuple(layer[count] for layer in layers)))
        modes = np.asarray(sigma.eigenvectors).T @ product
        variances = np.zeros(4)
        variances[:3] = predicted[:, column] ** 2
        np.testing.assert_allclose(modes @ modes.T, np.diag(variances), atol=1e-10)
    assert np.all(np.abs(predicted[:, -1] - 0.2) > 0.05)


# --- learning times -----------------------------------------------------------------------------------


@given(case, st.floats(0.35, 4), st.floats(-5, -1), st.floats(1, 4), st.floats(0.1, 0.95))
def test_learning_time_is_when_scipy_gets_there(case, eigenvalue, magnitude, depth, fraction):
    """An event of SciPy's trajectory of ln s."""
    (name, tau), start = case, 10.0**magnitude
    level = fraction * rest(eigenvalue, tau)
    assume(start < level)
    time = exact.learning_time(start, eigenvalue, depth=depth, tau=tau, loss=name, fraction=fraction)

    def velocity(_, logarithm):
        s = np.exp(logarithm)
        return -depth * s ** (1 - 2 / depth) * slope(s, eigenvalue, tau, name)

    def there(_, logarithm):
        return logarithm[0] - np.log(level)

    there.terminal = True
    found = scipy.integrate.solve_ivp(
        velocity, (0, 2 * time), [np.log(start)], "DOP853", events=there, rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(found.t_events[0][0], time, rtol=1e-7)
    at_that_time = exact.mode_flow(start, eigenvalue, time[None], depth=depth, tau=tau, loss=name)
    np.testing.assert_allclose(at_that_time, level, rtol=1e-9)


def test_learning_time_of_arrays():
    """0 beyond the level, at it, and from above; inf from 0, and where the mode is not learnt."""
    start = np.array([0.0, 0.01, 0.5, 0.7, 1.0, 3.0])
    found = exact.learning_time(start, np.array([[1.3], [0.3], [0.1], [0.0]]), depth=2, tau=0.3, fraction=0.5)
    assert found.shape == (4, 6)
    np.testing.assert_array_equal(found[0, [0, 2, 3, 4, 5]], [np.inf, 0, 0, 0, 0])
    alone = exact.learning_time(0.01, 1.3, depth=2, tau=0.3)
    assert 0 < alone < np.inf
    assert found[0, 1] == pytest.approx(float(alone), rel=1e-13)
    np.testing.assert_array_equal(found[1:], np.inf)


@functools.cache
def flows_of_modes(name, layered):
    """A program of the package: an aligned generator, or its layers, at recorded times."""
    tolerances = {"relative_tolerance": 1e-11, "absolute_tolerance": 1e-13}

    @jax.jit
    def run(weights, sigma, tau, depth, times):
        loss = losses.bures_wasserstein(tau) if name == BURES else losses.frobenius()
        dynamics = DYNAMICS["gradient_flow" if layered else "end_to_end_flow"](
            lambda packed: losses.layer_gradients(loss, packed, sigma),
            depth,
            end_time=1e6,
            method="rk54",
            **tolerances,
        )
        seen = trajectory(dynamics, networks.pack(weights), times)[0].weights
        return jax.vmap(lambda each: sigma.to_eigenbasis(networks.end_to_end(networks.unpack(each))))(seen)

    return run


@pytest.mark.parametrize(
    ("name", "tau", "depth", "layered"),
    [
        (BURES, 0.0, 2.0, False),
        (BURES, 0.3, 2.0, False),
        (BURES, 0.1, 4.5, False),
        (FROBENIUS, 0.0, 2.0, False),
        (BURES, 0.1, 3.0, True),
    ],
)
def test_learning_times_of_the_package_s_flows(name, tau, depth, layered):
    """From `aligned` starts: at the predicted time of each mode it is half-way, and all others as predicted.

    In time the error is below 1e-5 of the prediction.
    """
    rng = np.random.default_rng(5)
    sigma = Target(jnp.asarray([2.0, 1.2, 0.7, 0.05]), jnp.asarray(orthogonal(4, rng)))
    eigenvalues = np.asarray(sigma.eigenvalues)[:3]
    widths = (3, 3, 4, 4) if layered else (3, 4)
    start = STARTS["aligned"](jax.random.key(1), widths, sigma, scale=0.01)
    options = {"depth": depth, "tau": tau, "loss": name}
    times = exact.learning_time(0.01, eigenvalues, **options)
    assert np.all(np.diff(times) > 0)
    found = np.asarray(flows_of_modes(name, layered)(start, sigma, tau, depth, times))
    squares = found @ np.swapaxes(found, 1, 2)
    singular = np.sqrt(np.diagonal(squares, axis1=1, axis2=2)[:, :3])
    predicted = exact.mode_flow(0.01, eigenvalues, times, **options).T
    np.testing.assert_allclose(singular, predicted, rtol=1e-5)
    half = rest(eigenvalues, tau) / 2
    speed = -depth * half ** (2 - 2 / depth) * slope(half, eigenvalues, tau, name)
    errors = (np.diagonal(singular) - half) / speed / times
    assert np.max(np.abs(errors)) < 1e-5


@pytest.mark.parametrize("depth", [1.0, 2.0, 2.5, 3.0, 6.0])
@pytest.mark.parametrize(("name", "tau"), CASES)
def test_learning_times_from_small_starts(name, tau, depth):
    """The leading terms that `learning_time` states: the ratio tends to 1."""
    eigenvalue, fraction, n = 1.7, 0.6, depth
    starts = np.array([1e-20, 1e-60])
    root, excess = np.sqrt(eigenvalue), np.sqrt(eigenvalue / tau) - 1 if tau else None
    hyperbolic = starts ** (-2 * (n - 1) / n) / (n - 1) if n > 1 else -np.log(starts)
    if name == FROBENIUS:
        leading = hyperbolic / ((8 if n > 1 else 4) * eigenvalue)
    elif tau:
        leading = hyperbolic / ((4 if n > 1 else 2) * excess)
    elif n == 1:
        leading = np.full(2, -np.log(1 - fraction) / 2)
    elif n == 2:
        leading = np.log(root * fraction / starts / (1 - fraction)) / (4 * root)
    else:
        leading = starts ** (-(n - 2) / n) / (2 * (n - 2) * root)
    found = exact.learning_time(starts, eigenvalue, depth=depth, tau=tau, loss=name, fraction=fraction)
    errors = np.abs(found / leading - 1)
    assert errors[1] < 0.03
    assert errors[1] < 0.6 * errors[0] or errors[1] < 1e-10


@given(st.floats(0.001, 0.25), st.floats(-9, -0.05), st.floats(1, 50), st.floats(0.05, 0.99))
def test_bures_wasserstein_is_sooner_for_small_modes(eigenvalue, magnitude, depth, fraction):
    """λ ≤ 1/4, τ = 0: sooner at every depth, from every start, to every fraction of the rest."""
    start = fraction * 10.0**magnitude * np.sqrt(eigenvalue)
    sooner, later = (
        exact.learning_time(start, eigenvalue, depth=depth, loss=name, fraction=fraction)
        for name in (BURES, FROBENIUS)
    )
    assert sooner < later


@given(st.floats(0.001, 9), st.floats(0.01, 0.99), st.floats(1, 50))
def test_ratio_of_the_speeds_of_the_two_losses(eigenvalue, fraction, depth):
    """Frobenius over Bures-Wasserstein at s, τ = 0, is 2 s (√λ + s), at every depth.

    Bures-Wasserstein is faster up to s = (√(λ + 2) − √λ) / 2, which is below the rest where λ > 1/4.
    """
    s, root = fraction * np.sqrt(eigenvalue), np.sqrt(eigenvalue)
    # Short enough for the speed to be constant, long enough to be no rounding.
    bures, other = (
        exact.learning_time(s * (1 - 1e-6), eigenvalue, depth=depth, loss=name, fraction=fraction)
        for name in (BURES, FROBENIUS)
    )
    np.testing.assert_allclose(bures / other, 2 * s * (root + s), rtol=1e-4)
    assume(abs(2 * s * (root + s) - 1) > 1e-3)
    assert (bures < other) == (s < (np.sqrt(eigenvalue + 2) - root) / 2)


@given(case, st.floats(1.05, 5), st.floats(1.5, 30))
def test_large_modes_are_learnt_first(case, ratio, depth):
    """From a small start common to all; the spread is √(λ₁/λ₂) for Bures-Wasserstein, λ₁/λ₂ for Frobenius."""
    (name, tau), start = case, 1e-15
    eigenvalues = 0.4 * np.array([ratio, 1.0])
    large, small = exact.learning_time(start, eigenvalues, depth=depth, tau=tau, loss=name)
    assert large < small
    if depth > 4:
        spread = ratio if name == FROBENIUS else np.sqrt(ratio)
        if tau:
            spread = np.divide(*(np.sqrt(eigenvalues / tau) - 1))
        np.testing.assert_allclose(small / large, spread, rtol=1e-3)


# --- bad input ----------------------------------------------------------------------------------------

TIMES = np.array([0.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0.5}, r"^depth: got 0\.5; takes a finite number from 1"),
        ({"depth": np.nan}, r"^depth: got nan"),
        ({"tau": -1.0}, r"^tau: got -1\.0"),
        ({"tau": 0.1, "loss": FROBENIUS}, r"^tau: got 0\.1; takes 0 with frobenius"),
        ({"loss": "frobenus"}, r"^loss: got frobenus; takes one of .*did you mean frobenius"),
        ({"start": -0.1}, r"^start: got \[-0\.1\]; takes numbers from 0 to 1e\+90"),
        ({"start": np.nan}, r"^start: got \[nan\]"),
        ({"start": [0.1, 0.2]}, r"^start: got shapes \(2,\) and \(3,\); takes a shape that broadcasts"),
        ({"eigenvalues": [1.0, np.inf, 0.2]}, r"^eigenvalues: got \[inf\]"),
        ({"eigenvalues": [1.0, -0.5, 0.2]}, r"^eigenvalues: got \[-0\.5\]"),
    ],
)
@pytest.mark.parametrize("function", ["mode_flow", "mode_descent", "learning_time"])
def test_refuses_bad_modes(function, changes, message):
    options = {"start": 0.1, "eigenvalues": [2.0, 1.0, 0.5], "depth": 2.0} | changes
    options |= {
        "mode_flow": {"times": TIMES},
        "mode_descent": {"step_size": 0.1, "steps": np.array([1])},
        "learning_time": {},
    }[function]
    with pytest.raises(InvalidOption, match=message) as caught:
        getattr(exact, function)(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: exact.mode_flow(0.1, 1.0, [1.0, 0.5], depth=1),
            r"^times: got \[1\.0, 0\.5\]; takes one dimension",
        ),
        (lambda: exact.mode_flow(0.1, 1.0, [np.inf], depth=1), r"^times: got \[inf\]"),
        (lambda: exact.mode_flow(0.1, 1.0, 1.0, depth=1), r"^times: got 1\.0"),
        (
            lambda: exact.mode_descent(0.1, 1, step_size=0, steps=[1], depth=1),
            r"^step_size: got 0; takes finite",
        ),
        (lambda: exact.mode_descent(0.1, 1, step_size=1, steps=[1.5], depth=1), r"^steps: got fractions"),
        (lambda: exact.mode_descent(0.1, 1, step_size=1, steps=[-1], depth=1), r"^steps: got \[-1\]"),
        (
            lambda: exact.learning_time(0.1, 1, depth=1, fraction=1),
            r"^fraction: got 1; takes a number between 0",
        ),
        (lambda: exact.full_rank_loss_descent(1.0, 0.6, [1]), r"^step_size: got 0\.6; takes .* at most 1/2"),
        (
            lambda: exact.full_rank_loss_flow(-1.0, [1]),
            r"^initial_loss: got -1\.0; takes finite numbers from 0",
        ),
        (lambda: exact.full_rank_loss_flow(1.0, [-1]), r"^times: got \[-1\]"),
        (lambda: exact.mode_loss(-1.0, 1.0), r"^singular_values: got a negative or undefined one"),
        (lambda: exact.mode_loss(1.0, 1.0, tau=np.nan), r"^tau: got nan"),
    ],
)
def test_refuses_bad_options(call, message):
    with pytest.raises(InvalidOption, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("generator", "steps", "message"),
    [
        (np.eye(3)[:, :2], -1, r"^steps: got -1; takes an integer from 0"),
        (np.eye(3)[:, :2], 1.5, r"^steps: got 1\.5"),
        (np.ones((3, 2)), 1, r"^generator: got rank 1 of R W; takes independent columns of R W"),
        (np.eye(3), 1, r"^generator: got rank 2 of R W"),
        (np.full((3, 2), np.nan), 1, r"^generator: got numbers that are not finite"),
    ],
)
def test_subspace_refuses_what_determines_none(generator, steps, message):
    with pytest.raises(InvalidOption, match=message):
        exact.subspace(Target(jnp.asarray([2.0, 1.0, 0.0])), generator, steps)


def test_every_case_of_the_flow_is_continuous_in_its_options():
    """Depth and τ next to where another formula takes over give the same mode."""
    times = np.array([0.01, 0.3, 1.5])
    for name, depth, start in itertools.product((BURES, FROBENIUS), (1.0, 2.0), (0.05, 1.4, 3.0)):
        at, beside = (
            exact.mode_flow(start, 1.6, times, depth=depth + shift, loss=name) for shift in (0, 1e-9)
        )
        np.testing.assert_allclose(beside, at, rtol=1e-7)
        if name == BURES:
            perturbed = exact.mode_flow(start, 1.6, times, depth=depth, tau=1e-12)
            np.testing.assert_allclose(perturbed, at, rtol=1e-7)
