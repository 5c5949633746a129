"""Flows: orders by slope, errors against tolerances, SciPy, how lanes end, and lanes side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import by_scipy, deep_problem, flat, integrated, relative_errors, trajectory

from bwdln import networks
from bwdln.dynamics import integrate, runge_kutta, stabilized
from bwdln.dynamics.base import Outcome
from bwdln.dynamics.runge_kutta import METHODS, TABLEAUS, flow
from bwdln.errors import InvalidOption
from bwdln.networks import Packed

ADAPTIVE = ("auto", "rk32", "rk54", "rkc")
#: In the middle of steps of any size that divides 1, and at the end of one.
TIMES = (0.3, 0.55, 0.71, 1.0)


@functools.cache
def reference(**options):
    """Velocity, start and SciPy's trajectory of a deep problem at `TIMES`."""
    velocity, weights = deep_problem(**options)
    return velocity, weights, by_scipy(velocity, weights, TIMES)[0]


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def column(*numbers):
    """Weights of one layer: a column."""
    return Packed((), (jnp.asarray(numbers)[:, None],))


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_order_of_fixed_steps_at_the_ends_of_steps_and_between(method, order):
    velocity, weights, expected = reference()
    sizes = 1 / np.array([20, 40, 80, 160])

    def run(size):
        dynamics = flow(velocity, networks.squared_size, end_time=1.0, method=method, step_size=size)
        return trajectory(dynamics, weights, TIMES)[0]

    found = jax.jit(run)
    errors = np.array([relative_errors(flat(found(size).weights), expected) for size in sizes])
    for at_time in errors.T:
        np.testing.assert_allclose(slope(sizes, at_time), order, atol=0.25)
    state = found(sizes[0])
    # One evaluation at the start, then one a stage.
    stages = len(TABLEAUS[method].weights)
    np.testing.assert_array_equal(state.evaluations, 1 + stages * state.step)
    np.testing.assert_allclose(state.time, TIMES, rtol=1e-14)


@pytest.mark.parametrize(
    ("method", "at_end", "between"), [("rk32", 4, 4), ("rk54", 6, 5), ("auto", 6, 5), ("rkc", 3, 3)]
)
def test_error_of_one_step_and_within_it(method, at_end, between):
    """Local errors: a power of the step above the order; the interpolant of `rk54` has order 4."""
    velocity, weights, _ = reference()
    sizes = (0.2 if method in ("rk54", "auto") else 0.05) / 2.0 ** np.arange(4)
    dynamics = flow(velocity, networks.squared_size, end_time=1.0, method=method, relative_tolerance=0.5)
    memory = jax.jit(dynamics.init)(weights)

    @jax.jit
    def one(size):
        made = dynamics.step(weights, memory._replace(size=size), 0, True)
        return [dynamics.look_back(made.weights, made.memory, ago) for ago in (0.0, size / 2, size)]

    errors = []
    for size in sizes:
        exact, _ = by_scipy(velocity, weights, (size / 2, size))
        end, middle, begin = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(w)]) for w in one(size))
        errors.append([np.linalg.norm(end - exact[1]), np.linalg.norm(middle - exact[0])])
        np.testing.assert_array_equal(begin, np.concatenate([np.ravel(x) for x in jax.tree.leaves(weights)]))
    for column_of_errors, order in zip(np.array(errors).T, (at_end, between), strict=True):
        assert order - 0.4 < slope(sizes, column_of_errors) < order + 0.8


def test_estimated_error_is_of_the_order_the_control_counts_on():
    velocity, weights, _ = reference()
    sizes = jnp.asarray(0.05 / 2.0 ** np.arange(4))
    for method in ("rk32", "rk54", "rkc"):
        dynamics = flow(velocity, networks.squared_size, end_time=1.0, method=method, relative_tolerance=0.5)
        memory = jax.jit(dynamics.init)(weights)

        @jax.jit
        def error(size, dynamics=dynamics, memory=memory):
            return dynamics.step(weights, memory._replace(size=size), 0, True).memory.error

        errors = [float(error(size)) for size in sizes]
        np.testing.assert_allclose(slope(sizes, errors), 1 / runge_kutta._exponent(method), atol=0.35)


def test_stabilized_method_is_stable_as_far_as_its_stages_promise():
    """On dw/dt = −λ w one step of any size up to the limit contracts every mode in 0 ≤ λ ≤ radius."""
    modes = jnp.linspace(0.0, 1.0, 500)
    for stages in (2, 3, 7, 30, stabilized.MOST_STAGES):
        radius = ((stages - 1 + 0.999) ** 2 - 1) / stabilized.STAGES
        start = jnp.ones((500, 1))
        after = stabilized._advanced(
            lambda w, radius=radius: Packed((), (-radius * modes[:, None] * w.above[0],)),
            Packed((), (start,)),
            Packed((), (-radius * modes[:, None] * start,)),
            jnp.asarray(1.0),
            jnp.asarray(stages, jnp.int32),
        ).above[0][:, 0]
        assert np.max(np.abs(after)) <= 1 + 1e-12
        assert np.max(np.abs(after[modes > 0.6])) < 0.97
        small = np.asarray(modes * radius) < 0.05
        np.testing.assert_allclose(after[small], np.exp(-modes[small] * radius), atol=3e-5)


# --- error against tolerance, cost against SciPy --------------------------------------------------


def errors_at(method, tolerances, **options):
    velocity, weights, expected = reference(**options)
    errors = []
    for tolerance in tolerances:
        made = {"relative_tolerance": float(tolerance), "absolute_tolerance": 1e-9}
        seen, last = integrated(velocity, weights, TIMES, method=method, **made)
        assert last.time >= 1 and last.outcome == Outcome.RUNNING
        errors.append(np.max(relative_errors(flat(seen.weights), expected)))
    return np.array(errors)


@pytest.mark.parametrize("method", ["auto", "rk32", "rk54"])
def test_global_error_is_a_small_multiple_of_the_tolerance(method):
    """At records between the ends of steps, too."""
    tolerances = 10.0 ** -np.arange(4, 11)
    for options in ({}, {"depth": 6, "width": 5, "seed": 1}):
        ratios = errors_at(method, tolerances, **options) / tolerances
        assert np.all(ratios < 6) and np.all(ratios > 1e-3), ratios


def test_global_error_of_the_stabilized_method():
    """Its order is 2 and the error of each step 3, so it goes with the tolerance to the power 2/3."""
    tolerances = 10.0 ** -np.arange(4, 8)
    errors = errors_at("rkc", tolerances)
    assert np.all(errors < 50 * tolerances)
    np.testing.assert_allclose(slope(tolerances, errors), 2 / 3, atol=0.1)


@pytest.mark.parametrize("options", [{}, {"depth": 2, "width": 5, "tau": 0.5, "seed": 2}])
@pytest.mark.parametrize(("method", "theirs"), [("rk54", "RK45"), ("rk32", "RK23")])
def test_same_end_as_scipy_at_its_cost(method, theirs, options):
    velocity, weights, expected = reference(**options)
    for tolerance in (1e-4, 1e-6, 1e-8):
        tight = {"relative_tolerance": tolerance, "absolute_tolerance": 1e-9}
        seen, last = integrated(velocity, weights, TIMES, method=method, **tight)
        found, evaluations = by_scipy(velocity, weights, TIMES, theirs, tolerance, 1e-9)
        assert last.evaluations <= 1.3 * evaluations
        assert relative_errors(flat(seen.weights), expected)[-1] < 6 * tolerance
        np.testing.assert_allclose(flat(seen.weights)[-1], found[-1], atol=30 * tolerance)


# --- the automatic choice -------------------------------------------------------------------------


def test_automatic_choice_is_cheaper_where_the_flow_is_stiff():
    velocity, weights, expected = reference(depth=20, width=5, seed=3)
    for tolerance in (1e-4, 1e-6):
        made = {"relative_tolerance": tolerance}
        long = (*TIMES, 4.0)
        explicit = integrated(velocity, weights, long, method="rk54", **made)[1]
        seen, last = integrated(velocity, weights, long, method="auto", **made)
        assert last.memory.stabilized
        assert last.evaluations < 0.6 * explicit.evaluations
        assert np.max(relative_errors(flat(seen.weights)[:-1], expected)) < 6 * tolerance


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_automatic_choice_is_the_explicit_pair_where_the_flow_is_not(tolerance):
    velocity, weights, _ = reference()
    states = [
        integrated(
            velocity, weights, TIMES, method=method, relative_tolerance=tolerance, absolute_tolerance=1e-9
        )[1]
        for method in ("rk54", "auto")
    ]
    assert states[1].evaluations <= 1.1 * states[0].evaluations
    np.testing.assert_allclose(
        *(flat(jax.tree.map(lambda x: x[None], s.weights)) for s in states), atol=1e-12
    )


def test_automatic_choice_goes_back_where_stiffness_ends():
    """dw/dt = −λ(c) w + c, dc/dt = 1, with λ that falls from 3000 to 1."""

    def velocity(weights):
        w, clock = weights.above[0][0, 0], weights.above[0][1, 0]
        rate = 1 + 3000 / (1 + jnp.exp(40 * (clock - 1)))
        return column(-rate * w + clock, 1.0)

    times = (0.9, 3.0)
    seen, last = integrated(velocity, column(1.0, 0.0), times, method="auto", relative_tolerance=1e-5)
    np.testing.assert_array_equal(seen.memory.stabilized, [True, False])
    expected, _ = by_scipy(velocity, column(1.0, 0.0), times, "LSODA", 1e-11, 1e-13)
    np.testing.assert_allclose(flat(seen.weights), expected, atol=5e-5)
    explicit = integrated(velocity, column(1.0, 0.0), times, method="rk54", relative_tolerance=1e-5)[1]
    assert last.evaluations < 0.5 * explicit.evaluations


# --- what is counted ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_evaluation_is_counted(method):
    calls = []
    rates = jnp.array([[1.0], [400.0]])

    def velocity(weights):
        calls.append(weights)
        return Packed((), (-rates * weights.above[0],))

    size = {} if method in ADAPTIVE else {"step_size": 0.004}
    with jax.disable_jit():
        dynamics = flow(velocity, networks.squared_size, end_time=0.1, method=method, **size)
        state = integrate.start(dynamics, column(1.0, 1.0), 1.0)
        for _ in range(12):
            state = integrate.step(dynamics, state, jnp.inf)
    assert state.evaluations == len(calls)
    assert state.step + state.rejected == 12


def test_rejected_attempts_move_nothing_and_are_counted():
    velocity, weights, _ = reference()
    dynamics = flow(velocity, networks.squared_size, end_time=1.0, method="rk54")
    state = jax.jit(lambda weights: integrate.start(dynamics, weights, 1e6))(weights)
    state = state._replace(memory=state.memory._replace(size=jnp.asarray(0.9)))
    step = jax.jit(lambda state: integrate.step(dynamics, state, 1.0))
    after = step(state)
    assert (after.step, after.rejected, after.time, after.evaluations) == (0, 1, 0, 8)
    assert after.memory.size < 0.9 * state.memory.size
    for old, new in zip(jax.tree.leaves(state.weights), jax.tree.leaves(after.weights), strict=True):
        np.testing.assert_array_equal(old, new)
    while after.step == 0:
        size, after = after.memory.size, step(after)
    # No growth right after a rejection.
    assert after.memory.duration == size >= after.memory.size
    assert after.evaluations == 2 + 6 * (after.step + after.rejected)


# --- how lanes end --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTIVE)
def test_stalled_after_so_many_attempts(method):
    velocity, weights, _ = reference()
    state = integrated(velocity, weights, TIMES, method=method, max_steps=5)[1]
    assert state.outcome == Outcome.STALLED
    assert state.step + state.rejected == 5
    assert 0 < state.time < 1


@pytest.mark.parametrize("method", ADAPTIVE)
def test_stalled_where_no_step_is_short_enough(method):
    """dw/dt = w² leaves every bound at t = 1."""
    weights = column(1.0)

    def run():
        dynamics = flow(
            lambda w: jax.tree.map(jnp.square, w), networks.squared_size, end_time=3.0, method=method
        )
        return trajectory(dynamics, weights, (3.0,), scale=1e290)[1]

    state = jax.jit(run)()
    assert state.outcome == Outcome.STALLED
    np.testing.assert_allclose(state.time, 1.0, rtol=1e-3)
    assert np.all(np.isfinite(flat(jax.tree.map(lambda x: x[None], state.weights))))


@pytest.mark.parametrize("method", ADAPTIVE)
def test_stalled_at_once_without_a_velocity(method):
    state = integrated(
        lambda w: jax.tree.map(lambda x: x * jnp.nan, w), column(1.0, 2.0), (1.0,), method=method
    )[1]
    assert state.outcome == Outcome.STALLED and state.step == 0 and state.rejected < 60
    np.testing.assert_array_equal(state.weights.above[0][:, 0], [1, 2])


@pytest.mark.parametrize("method", ADAPTIVE)
def test_at_rest_a_flow_reaches_its_end(method):
    """A critical point, and weights and velocity that vanish."""
    for weights in (column(1.0, 2.0), column(0.0, 0.0)):
        state = integrated(lambda w: jax.tree.map(jnp.zeros_like, w), weights, (7.0,), method=method)[1]
        assert state.outcome == Outcome.RUNNING and state.time >= 7 and state.step < 30
        np.testing.assert_array_equal(state.weights.above[0], weights.above[0])


def test_fixed_steps_that_are_too_long_diverge():
    velocity = functools.partial(jax.tree.map, lambda x: -10 * x)
    state = integrated(velocity, column(1.0, 2.0), (50.0,), method="rk4", step_size=0.5)[1]
    assert state.outcome == Outcome.DIVERGED and np.all(np.isfinite(state.weights.above[0]))


# --- lanes side by side ---------------------------------------------------------------------------


@functools.cache
def lanes_program(method):
    """Lanes dw/dt = −rate (1, ½, ¼) w − w³ up to time 2, each its own rate, as a run has them."""
    share = jnp.array([1.0, 0.5, 0.25])[:, None]

    def dynamics(rate):
        def velocity(weights):
            w = weights.above[0]
            return Packed((), (-rate * share * w - w**3,))

        return flow(velocity, networks.squared_size, end_time=2.0, method=method)

    def start(rate):
        return integrate.start(dynamics(rate), column(1.0, 2.0, 3.0), 1e3)

    def run(rates):
        step = jax.vmap(lambda rate, state: integrate.step(dynamics(rate), state, 2.0))
        active = jax.vmap(lambda rate, state: integrate.active(dynamics(rate), state, 2.0))
        states = jax.vmap(start)(rates)
        return integrate.advance(
            functools.partial(step, rates), functools.partial(active, rates), states, 100_000
        )

    return jax.jit(run)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_lane_is_the_same_beside_a_stiff_one_and_one_that_fails(method):
    run, rates = lanes_program(method), [1.0, 3000.0, np.nan, 20.0]
    together = run(jnp.asarray(rates))
    expected = [Outcome.RUNNING, Outcome.RUNNING, Outcome.STALLED, Outcome.RUNNING]
    np.testing.assert_array_equal(together.outcome, expected)
    for lane, rate in enumerate(rates):
        alone = run(jnp.full(4, rate))
        for count in ("step", "rejected", "evaluations"):
            assert getattr(together, count)[lane] == getattr(alone, count)[lane]
        np.testing.assert_allclose(together.time[lane], alone.time[lane], rtol=1e-12)
        values = together.weights.above[0][lane], alone.weights.above[0][lane]
        np.testing.assert_allclose(*values, rtol=1e-12)


# --- precision, size of the program ---------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_stays_single_and_keeps_its_tolerance(method):
    rates = jnp.array([[1.0], [30.0]], jnp.float32)
    weights = Packed((), (jnp.ones((2, 1), jnp.float32),))
    size = {} if method in ADAPTIVE else {"step_size": 0.001}

    def run(weights, end):
        dynamics = flow(
            lambda w: Packed((), (-rates * w.above[0],)),
            networks.squared_size,
            end_time=end,
            method=method,
            **size,
        )
        return trajectory(dynamics, weights, end[None])[0]

    end = jnp.float32(1.0)
    assert "f64" not in str(jax.make_jaxpr(run)(weights, end))
    found = jax.jit(run)(weights, end).weights.above[0][0, :, 0]
    slack = 1e-3 if method == "euler" else 5e-5
    np.testing.assert_allclose(found, [np.exp(-1.0), np.exp(-30.0)], atol=slack)


def test_velocity_is_traced_once_for_all_stages():
    traced = []

    def velocity(weights):
        traced.append(weights)
        return jax.tree.map(jnp.negative, weights)

    dynamics = flow(velocity, networks.squared_size, end_time=1.0)
    jax.make_jaxpr(lambda weights: dynamics.step(weights, dynamics.init(weights), 0, True))(column(1.0))
    assert len(traced) == 1


def test_only_the_automatic_choice_carries_what_it_needs():
    def memory(method):
        size = {} if method in ADAPTIVE else {"step_size": 0.1}
        return flow(lambda w: w, networks.squared_size, end_time=1.0, method=method, **size).init(column(1.0))

    for method in METHODS:
        carried = memory(method)
        assert (carried.correction is not None) == (method in ("auto", "rk54"))
        assert (carried.spectrum is not None) == (method in ("auto", "rkc"))
        assert (carried.stabilized is not None) == (method == "auto")


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_are_consistent(name):
    tableau = TABLEAUS[name]
    assert np.isclose(sum(tableau.weights), 1, atol=1e-15)
    for combination in (tableau.error, tableau.dense):
        if combination is not None:
            assert len(combination) == len(tableau.weights) + 1
            assert abs(sum(combination)) < 1e-14


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end_time": 0.0}, r"^end_time: got 0\.0; takes a finite number above 0$"),
        ({"end_time": -1}, r"^end_time: got -1;"),
        ({"end_time": float("inf")}, r"^end_time: got inf;"),
        ({"method": "rk45"}, r"^method: got rk45; takes one of auto, .*did you mean .*rk54"),
        ({"relative_tolerance": -1e-6}, r"^relative_tolerance: got -1e-06; takes null or a number from 0"),
        ({"relative_tolerance": 1.0}, r"^relative_tolerance: got 1\.0; .* below 1$"),
        ({"absolute_tolerance": -1.0}, r"^absolute_tolerance: got -1\.0; takes null or a finite number"),
        ({"absolute_tolerance": 0.0}, r"^absolute_tolerance: got 0\.0;"),
        ({"gap_tolerance": -1.0}, r"^gap_tolerance: got -1\.0; takes null or a number from 0$"),
        ({"max_steps": 0}, r"^max_steps: got 0; takes an integer from 1 to"),
        ({"step_size": 0.1}, r"^step_size: got 0\.1; takes null with method = auto, which finds its"),
        ({"method": "euler"}, r"^step_size: got null; takes a finite number above 0 with method = euler$"),
        ({"method": "rk4", "step_size": 0.0}, r"^step_size: got 0\.0; takes a finite number above 0 with"),
        ({"method": "heun", "step_size": 0.1, "relative_tolerance": 1e-6}, r"^relative_tolerance: .*fixed$"),
        ({"method": "heun", "step_size": 0.1, "absolute_tolerance": 1e-6}, r"^absolute_tolerance: .*fixed$"),
        (
            {"method": "euler", "step_size": 1e-6},
            r"^max_steps: got 100000; takes an integer from end_time / step_size = 1e\+06$",
        ),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(InvalidOption, match=message):
        flow(lambda w: w, networks.squared_size, **({"end_time": 1.0} | options))
