"""Descent against the exact solutions of docs/theory.md §5, against optax, and at its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from problems import orthogonal, target

from bwdln import losses, networks
from bwdln.dynamics import gradient_descent, integrate
from bwdln.dynamics.base import DYNAMICS, Outcome
from bwdln.errors import InvalidOption
from bwdln.initializations import balanced
from bwdln.registry import Choice
from bwdln.targets import Target

ALL_OPTIMIZERS = sorted(gradient_descent.OPTIMIZERS)
ALL_SCHEDULES = sorted(gradient_descent.SCHEDULES)


def dynamics_for(loss, sigma, **options):
    return gradient_descent.gradient_descent(losses.LayerGradients(loss, sigma), 1.0, **options)


@functools.partial(jax.jit, static_argnums=(0, 3))
def descend(name, weights, sigma, steps, step_size, tau=None):
    """The weights after each of `steps` steps of one lane."""
    loss = losses.LOSSES[name](*(() if tau is None else (tau,)))
    dynamics = dynamics_for(loss, sigma, step_size=step_size, steps=10**9)
    state = integrate.start(dynamics, networks.pack(weights), 1e3)

    def step(state, _):
        state = integrate.step(dynamics, state, 2**30)
        return state, networks.unpack(state.weights)

    return jax.lax.scan(step, state, length=steps)[1]


# --- exact solutions ------------------------------------------------------------------------------


@given(st.floats(0.001, 0.5), st.sampled_from([(3, 3), (3, 5), (1, 2)]), st.integers(0, 1000))
@example(0.3125, (1, 2), 1)
@settings(max_examples=15)
def test_exact_solution_1_one_layer_of_full_rank(step_size, shape, seed):
    """E1: L(t) = (1 − 2η)^{2t} L(0), over 300 steps."""
    rng = np.random.default_rng(seed)
    sigma = target("distinct", shape[0], rng)
    scaled = orthogonal(shape[0], rng) * rng.uniform(1, 2, shape[0])
    start = jnp.asarray(scaled @ orthogonal(shape[1], rng)[: shape[0]])
    (trajectory,) = descend("bures_wasserstein", (start,), sigma, 300, step_size)
    loss = losses.bures_wasserstein()
    measured = jax.jit(jax.vmap(lambda generator: loss.value(generator, sigma)))(trajectory)
    expected = (1 - 2 * step_size) ** np.arange(1, 301) * np.sqrt(loss.value(start, sigma))
    np.testing.assert_allclose(np.sqrt(measured), expected, rtol=1e-10, atol=1e-14)


def test_exact_solution_2_half_step_is_subspace_iteration():
    """E2: at η = 1/2 the range of R W_t is the range of Σ₀^t R W_0."""
    rng = np.random.default_rng(0)
    eigenvalues = np.array([1.5, 1.4, 1.3, 1.1, 1.0, 0.9])
    start = rng.normal(size=(6, 2))
    sigma = Target(jnp.asarray(eigenvalues), None)
    (trajectory,) = descend("bures_wasserstein", (jnp.asarray(start),), sigma, 300, 0.5)
    subspace = np.sqrt(eigenvalues)[:, None] * start
    for step in range(300):
        subspace = np.linalg.qr(eigenvalues[:, None] * subspace)[0]
        measured = np.linalg.qr(np.sqrt(eigenvalues)[:, None] * np.asarray(trajectory[step]))[0]
        np.testing.assert_allclose(measured @ measured.T, subspace @ subspace.T, atol=1e-10)


def mode_slope(name, values, eigenvalues, tau):
    """The derivative of one mode's loss in its singular value, §5 E3."""
    if name == "frobenius":
        return 4 * values * (values**2 - eigenvalues)
    return 2 * values * (1 - np.sqrt(eigenvalues) / np.sqrt(values**2 + tau))


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize(
    "case", [("bures_wasserstein", None), ("bures_wasserstein", 0.3), ("frobenius", None)]
)
def test_exact_solution_3_aligned_modes_decouple(depth, case):
    """E3: w ← w − η w^{N−1} f'(w^N) for each mode, 400 steps, uneven widths, rank below n."""
    name, tau = case
    rng = np.random.default_rng(depth)
    eigenvalues = np.array([2.0, 1.2, 0.8, 0.5])
    basis = orthogonal(4, rng)
    sigma = Target(jnp.asarray(eigenvalues), jnp.asarray(basis))
    widths = (5, *[3 + layer % 3 for layer in range(depth - 1)], 4)
    rank = min(widths)
    first = np.array([0.4, 0.9, 1.1, 0.6])[:rank]
    product = (basis[:, :rank] * first) @ orthogonal(5, rng)[:rank]
    weights = balanced(jnp.asarray(product), widths)
    step_size = 0.02 / depth
    trajectory = descend(name, weights, sigma, 400, step_size, tau)
    roots = first ** (1 / depth)
    for step in range(400):
        slope = mode_slope(name, roots**depth, eigenvalues[:rank], tau or 0.0)
        roots = roots - step_size * roots ** (depth - 1) * slope
        if step % 50 == 49:
            product = networks.end_to_end(tuple(layer[step] for layer in trajectory))
            expected = np.zeros((4, 4))
            expected[:rank, :rank] = np.diag(roots ** (2 * depth))
            modes = basis.T @ np.asarray(product)
            np.testing.assert_allclose(modes @ modes.T, expected, atol=1e-10)


def test_imbalance_drifts_by_the_square_of_the_step_size():
    """§5: O(η²) per step; the slope by a fit."""
    rng = np.random.default_rng(1)
    sigma = target("distinct", 3, rng)
    weights = balanced(jnp.asarray(rng.normal(size=(3, 3))), (3, 4, 3))
    sizes = np.geomspace(1e-4, 1e-2, 5)
    drifts = []
    for size in sizes:
        trajectory = descend("bures_wasserstein", weights, sigma, 1, size)
        drifts.append(float(networks.imbalance(tuple(layer[0] for layer in trajectory))[0]))
    np.testing.assert_allclose(np.polyfit(np.log(sizes), np.log(drifts), 1)[0], 2, atol=0.02)


# --- optimizers and schedules ---------------------------------------------------------------------


def reference_optimizer(name, size):
    matrices = optax.contrib.MuonDimensionNumbers()
    return {
        "descent": lambda: optax.sgd(size),
        "momentum": lambda: optax.sgd(size, momentum=0.9),
        "nesterov": lambda: optax.sgd(size, momentum=0.9, nesterov=True),
        "adam": lambda: optax.adam(size),
        "rmsprop": lambda: optax.rmsprop(size),
        "muon": lambda: optax.contrib.muon(
            size, muon_weight_dimension_numbers=lambda tree: [matrices] * len(tree)
        ),
    }[name]()


@pytest.mark.parametrize("name", ALL_OPTIMIZERS)
@pytest.mark.parametrize("depth", [3, 14])
def test_optimizers_equal_optax_on_plain_layers(name, depth):
    """Also where layers are stacked (depth 14): a stack is so many matrices, not one array."""
    rng = np.random.default_rng(2)
    sigma = target("distinct", 3, rng)
    weights = tuple(jnp.asarray(np.eye(3) + 0.1 * rng.normal(size=(3, 3))) for _ in range(depth))
    loss = losses.bures_wasserstein()
    dynamics = dynamics_for(loss, sigma, step_size=0.01, steps=9, optimizer=Choice(name))
    state = integrate.start(dynamics, networks.pack(weights), 1e3)
    optimizer = reference_optimizer(name, 0.01)

    @jax.jit
    def reference(layers, memory):
        gradients = jax.grad(lambda each: losses.deep_value(loss, tuple(each), sigma))(layers)
        updates, memory = optimizer.update(gradients, memory, layers)
        return optax.apply_updates(layers, updates), memory

    layers, memory = list(weights), optimizer.init(list(weights))
    step = jax.jit(lambda state: integrate.step(dynamics, state, 2**30))
    for _ in range(5):
        layers, memory = reference(layers, memory)
        state = step(state)
    for ours, theirs in zip(networks.unpack(state.weights), layers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11)
    assert state.step == 5
    np.testing.assert_allclose(state.time, 0.05, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "options", "first", "last"),
    [
        ("constant", (), 1.0, 1.0),
        ("cosine", (("final_fraction", 0.1),), 1.0, 0.1),
        ("linear", (("final_fraction", 0.1),), 1.0, 0.1),
        ("exponential", (("final_fraction", 0.1),), 1.0, 0.1),
        ("warmup_cosine", (("final_fraction", 0.1), ("warmup_steps", 10)), 0.0, 0.1),
    ],
)
def test_schedules_scale_the_step_and_the_flow_time(name, options, first, last):
    dynamics = gradient_descent.gradient_descent(
        lambda weights: weights, 1.0, step_size=0.5, steps=100, schedule=Choice(name, options)
    )
    weights = networks.pack((jnp.ones((1, 1)),))
    memory = dynamics.init(weights)
    for count, factor in ((0, first), (100, last)):
        step = dynamics.step(weights, memory, jnp.asarray(count), True)
        np.testing.assert_allclose(step.duration, 0.5 * factor, rtol=1e-12)
        np.testing.assert_allclose(step.weights.above[0], np.full((1, 1), 1 - step.duration), rtol=1e-12)


def test_every_optimizer_and_schedule_is_in_these_tests():
    assert ALL_OPTIMIZERS == ["adam", "descent", "momentum", "muon", "nesterov", "rmsprop"]
    assert ALL_SCHEDULES == ["constant", "cosine", "exponential", "linear", "warmup_cosine"]


# --- how lanes end --------------------------------------------------------------------------------


def advanced(step_sizes, until):
    """A batch of lanes of the same start that differ in their step size."""
    sigma = Target(jnp.array([2.0, 1.0]), None)
    loss, weights = losses.bures_wasserstein(), (jnp.array([[0.5, 0.1], [0.2, 0.4]]),) * 3

    def dynamics(size):
        return dynamics_for(loss, sigma, step_size=size, steps=1000)

    def start(size):
        return integrate.start(dynamics(size), networks.pack(weights), 6.0)

    sizes = jnp.asarray(step_sizes)
    states = integrate.lanes_placed(jax.vmap(start)(sizes))
    axes = integrate.lane_axes(states)
    step = jax.vmap(lambda size, s: integrate.step(dynamics(size), s, until), (0, axes), axes)
    going = jax.vmap(lambda size, s: integrate.active(dynamics(size), s, until), (0, axes))

    @jax.jit
    def run(states):
        return integrate.advance(
            functools.partial(step, sizes), lambda s: jnp.any(going(sizes, s)), states, 10**6
        )

    return run(states)


def test_a_diverging_lane_is_frozen_finite_and_harmless():
    alone, together = advanced([0.05, 0.05], 200), advanced([0.05, 10.0], 200)
    np.testing.assert_array_equal(together.outcome, [Outcome.RUNNING, Outcome.DIVERGED])
    assert together.step[1] < 200
    for mixed, quiet in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(mixed[0], quiet[0])
        assert np.all(np.isfinite(mixed))


def test_every_running_lane_reaches_the_step_asked_for():
    states = advanced([0.05, 0.01], 37)
    np.testing.assert_array_equal(states.step, [37, 37])
    np.testing.assert_allclose(states.time, [37 * 0.05, 37 * 0.01], rtol=1e-13)


@pytest.mark.parametrize(
    ("step", "gap", "tolerance", "before", "after"),
    [
        (5, 1.0, None, Outcome.RUNNING, Outcome.RUNNING),
        (10, 1.0, None, Outcome.RUNNING, Outcome.REACHED_END),
        (5, 1e-10, 1e-9, Outcome.RUNNING, Outcome.CONVERGED),
        (10, 1e-10, 1e-9, Outcome.RUNNING, Outcome.CONVERGED),
        (5, 1e-8, 1e-9, Outcome.RUNNING, Outcome.RUNNING),
        (5, np.nan, 1e-9, Outcome.RUNNING, Outcome.RUNNING),
        (10, 1e-10, 1e-9, Outcome.DIVERGED, Outcome.DIVERGED),
    ],
)
def test_stop_rule(step, gap, tolerance, before, after):
    dynamics = gradient_descent.gradient_descent(
        lambda weights: weights, 1.0, step_size=1.0, steps=10, gap_tolerance=tolerance
    )
    state = integrate.start(dynamics, networks.pack((jnp.eye(2),)), 1.0)
    state = state._replace(step=jnp.asarray(step), outcome=jnp.asarray(before, jnp.int32))
    assert integrate.settle(dynamics, state, state, 100 * jnp.asarray(gap), jnp.asarray(gap)).outcome == after


def test_a_lane_ends_once_its_gap_was_below_for_long_enough():
    """Records every 0.04: below from 0.08 on, above once more at 0.12, and then for good from 0.16 on."""
    dynamics = gradient_descent.gradient_descent(
        lambda weights: weights, 1.0, step_size=0.01, steps=100, absolute_gap_tolerance=1e-4, patience=0.1
    )
    state = integrate.start(dynamics, networks.pack((jnp.eye(2),)), 1.0)
    gaps = [1.0, 1e-3, 1e-5, 1e-3, 1e-5, 1e-5, 1e-6, 1e-7, 1e-8]
    outcomes = []
    for record, gap in enumerate(gaps):
        state = state._replace(time=jnp.asarray(0.04 * record), step=jnp.asarray(4 * record))
        state = integrate.settle(dynamics, state, state, jnp.asarray(gap), jnp.asarray(gap / 100))
        outcomes.append(int(state.outcome))
    assert outcomes == [Outcome.RUNNING] * 7 + [Outcome.CONVERGED] * 2
    assert float(state.within_since) == pytest.approx(0.16)


def test_an_ended_lane_does_not_move():
    dynamics = gradient_descent.gradient_descent(lambda weights: weights, 1.0, step_size=0.1, steps=10)
    state = integrate.start(dynamics, networks.pack((jnp.eye(2),)), 1.0)
    state = state._replace(outcome=jnp.int32(Outcome.CONVERGED))
    after = integrate.step(dynamics, state, 2**30)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(left, right)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, r"^dynamics\.step_size: got 0\.0; takes a finite number above 0"),
        ({"step_size": -1}, r"^dynamics\.step_size: got -1\.0"),
        ({"step_size": float("nan")}, r"^dynamics\.step_size: got nan"),
        ({"steps": 0}, r"^dynamics\.steps: got 0; takes an integer from 1"),
        ({"steps": 1.5}, r"^dynamics\.steps: got 1\.5; takes an integer"),
        ({"gap_tolerance": -1e-9}, r"^dynamics\.gap_tolerance: got -1e-09; takes null or a number from 0"),
        ({"stepsize": 0.1}, r"^dynamics\.stepsize: got 0\.1; takes one of .*did you mean step_size"),
        ({"optimizer": Choice("adm")}, r"^dynamics\.optimizer: got adm; takes one of .*did you mean adam"),
        (
            {"optimizer": Choice("adam", (("b1", 1.0),))},
            r"^dynamics\.optimizer\.b1: got 1\.0; takes a number from 0 to below 1",
        ),
        (
            {"schedule": Choice("cosine", (("final_fraction", 2.0),))},
            r"^dynamics\.schedule\.final_fraction: got 2\.0; takes a number from 0 to 1",
        ),
        (
            {"schedule": Choice("warmup_cosine", (("warmup_steps", 10),))},
            r"^dynamics\.schedule\.warmup_steps: got 10; takes an integer from 0 below 10",
        ),
    ],
)
def test_refuses_bad_options(options, message):
    full = {"step_size": 0.1, "steps": 10} | options
    with pytest.raises(InvalidOption, match=message):
        DYNAMICS.build(Choice("gradient_descent", tuple(full.items())), lambda weights: weights, 1.0)
